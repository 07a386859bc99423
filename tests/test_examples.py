"""Every public function and class has an example, and every example is true."""

import contextlib
import doctest
import importlib
import inspect
import pkgutil
import re
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxburst as jb


def _modules():
    """Those whose packages are installed, by name."""
    for _, name, _ in pkgutil.walk_packages(jb.__path__, "jaxburst."):
        if not name.rpartition(".")[2].startswith("_"):
            with contextlib.suppress(ImportError):  # of an extra: its tests skip, too
                yield name, importlib.import_module(name)


MODULES = dict(_modules())
EXAMPLES = {
    test.name: test
    for module in MODULES.values()
    for test in doctest.DocTestFinder(exclude_empty=True).find(module)
    if test.examples
}


MODULES_OF_THE_API = [
    thing for name in jb.__all__ if inspect.ismodule(thing := getattr(jb, name))
]

PAGES = Path(__file__).parents[1] / "docs/api"
SHOWN = [
    MODULES[name]
    for page in sorted(PAGES.glob("*.md"))
    for name in re.findall("automodule:: (.+)", page.read_text())
    if name in MODULES
]


def _public():
    """What `jb`, its public modules and the pages of the API offer: functions and
    classes."""
    for module in [jb, *MODULES_OF_THE_API, *SHOWN]:
        own = getattr(module, "__all__", None) or [
            name
            for name, thing in vars(module).items()
            if getattr(thing, "__module__", "") == module.__name__ and name[0] != "_"
        ]
        for name in own:
            thing = getattr(module, name)
            if inspect.isfunction(thing) or inspect.isclass(thing):
                yield f"{thing.__module__}.{thing.__qualname__}", thing


PUBLIC = dict(_public())


def parameters(module, shape):
    """How many parameters a Flax module has, for an image of this shape."""
    image = jnp.zeros((1, *shape))
    variables = jax.eval_shape(module.init, jax.random.key(0), image)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


@pytest.fixture(scope="module")
def names():
    """What every example may use: the networks of `docs/api/index.md`."""
    identity, ones = np.eye(2, dtype=np.float32), np.ones((2, 1), np.float32)
    weights = {"hidden": identity, "out": ones}

    def net(weights, x):
        return jax.nn.relu(x @ weights["hidden"]) @ weights["out"]

    inputs = np.array([[0.5, -1.0], [2.5, 0.25]], np.float32)
    network = jb.trace(net, weights, inputs[:1])
    classes = {"hidden": identity, "out": identity}
    of_two = jb.trace(net, classes, inputs[:1])
    return {
        "jax": jax,
        "jnp": jnp,
        "np": np,
        "jb": jb,
        "weights": weights,
        "inputs": inputs,
        "network": network,
        "spiking": jb.convert(network, weights, {"relu0": 0.5}),
        "model": jb.Model(network, jb.Burst(5)),
        "two": jb.Model(of_two, jb.Burst(5)),
        "of_two": jb.convert(of_two, classes, {"relu0": 0.5}),
        "parameters": parameters,
    }


def test_everything_public_has_an_example():
    assert len(PUBLIC) > 150
    without = [
        name for name, thing in PUBLIC.items() if ">>>" not in str(thing.__doc__)
    ]
    assert not without


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_is_true(name, names, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    example = EXAMPLES[name]
    module = max(one for one in MODULES if name.startswith(one))
    example.globs = {**vars(MODULES[module]), **names}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    told = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        runner.run(example, out=told.append)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
    assert runner.failures == 0, "".join(told)
