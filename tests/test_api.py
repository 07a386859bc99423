"""The public API is documented, and the README's program runs as it stands."""

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


def test_the_readme_program_runs(capsys):
    program = re.search(
        r"```python\n(import jaxburst as jb.*?)```", README.read_text(), re.S
    )
    exec(compile(program[1], "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"0\.9\d", printed), printed  # the digits are recognised
