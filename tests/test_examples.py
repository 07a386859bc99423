"""Every public function and class has an example, and every example is true."""

import contextlib
import doctest
import importlib
import pkgutil
import sys
import warnings

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


@pytest.fixture(scope="module")
def names():
    """What every example may use: the network of `docs/api/index.md`."""
    weights = {
        "hidden": np.eye(2, dtype=np.float32),
        "out": np.ones((2, 1), np.float32),
    }

    def net(weights, x):
        return jax.nn.relu(x @ weights["hidden"]) @ weights["out"]

    inputs = np.array([[0.5, -1.0], [2.5, 0.25]], np.float32)
    network = jb.trace(net, weights, inputs[:1])
    spiking = jb.convert(network, weights, {"relu0": 0.5})
    return {
        "jax": jax,
        "jnp": jnp,
        "np": np,
        "jb": jb,
        "weights": weights,
        "inputs": inputs,
        "network": network,
        "spiking": spiking,
        "model": jb.Model(network, jb.Burst(5)),
    }


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
