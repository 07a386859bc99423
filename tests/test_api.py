"""The public API is documented, and the README's lines run as they stand."""

import inspect
import re
import sys
from pathlib import Path

import pytest

import jaxburst as jb

README = Path(__file__).parent.parent / "README.md"
PUBLIC = [getattr(jb, name) for name in jb.__all__ if not name.startswith("__")]
MODULES = [thing for thing in PUBLIC if inspect.ismodule(thing)]
CALLABLE = {
    f"{thing.__module__}.{thing.__qualname__}": thing
    for module in [jb, *MODULES]
    for name, thing in vars(module).items()
    if (inspect.isfunction(thing) or inspect.isclass(thing) or hasattr(thing, "lower"))
    and not name.startswith("_")
    and getattr(thing, "__module__", "").startswith("jaxburst")
}


def test_all_is_sorted_and_complete():
    assert jb.__all__ == sorted(jb.__all__)
    assert all(hasattr(jb, name) for name in jb.__all__)
    assert len(CALLABLE) > 50


@pytest.mark.parametrize("name", CALLABLE)
def test_everything_public_is_documented(name):
    thing = CALLABLE[name]
    assert thing.__doc__ and not thing.__doc__.startswith(f"{thing.__name__}(")


def test_what_needs_an_extra_says_so_when_it_is_called(monkeypatch):
    monkeypatch.setitem(sys.modules, "jaxburst.io.nir", None)
    assert hasattr(jb, "to_nir") and not hasattr(jb, "to_others")
    with pytest.raises(ImportError, match="nir"):
        jb.to_nir()


def test_modules_are_documented():
    assert all(module.__doc__ for module in MODULES)


def test_nothing_but_the_data_module_imports_tensorflow_datasets_or_grain():
    package = Path(jb.__file__).parent
    naming = [
        path.name
        for path in package.rglob("*.py")
        if re.search(r"import (tensorflow_datasets|grain)", path.read_text())
    ]
    assert naming == ["data.py"]


def test_the_lines_of_the_readme_run():
    (lines,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
    data, net = jb.data.digits(), jb.zoo.vgg_tiny(10)
    recipe = jb.Recipe(epochs=5, batch_size=64, warmup_epochs=1, augment="none")
    variables, _ = jb.fit(net, data.train, recipe)
    images, test = data.train.inputs[:200], data.test
    given = {"jb": jb, "net": net, "variables": variables, "images": images}
    given |= {"test_images": test.inputs, "test_labels": test.labels}
    exec(compile(lines, "README.md", "exec"), given)
    curves, network = given["curves"], given["network"]
    assert curves.accuracy[-1] > 0.9  # the digits are recognised
    assert 0 < jb.energy.relative(network, curves)[0] < 1
