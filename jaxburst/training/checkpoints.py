"""Checkpoints of a run: a file `STEP.safetensors` for each of the two latest. Several
processes write one run; the first decides what there is."""

from __future__ import annotations

import builtins
import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxburst.checks import finite
from jaxburst.io import files
from jaxburst.io.sealed import seal, unseal

FORMAT = "jaxburst run 1"
_KEPT = 2
_RECORD = {"recipe": dict, "split": dict} | dict.fromkeys(
    ("parameters", "module", "example", "history", "losses", "hits"), list
)


@contextlib.contextmanager
def opened(directory: str | Path, resume: bool) -> Iterator[Path]:
    """Keeps a directory to this run: one that is new, or is to be resumed.

    Raises:
      OSError: nothing can be written there, or another process does.
      ValueError: it holds a run already, which is not to be resumed.
    """
    path = files.as_path(directory, "directory").expanduser().resolve()
    with contextlib.ExitStack() as kept:

        def begin():
            files.folder(path, "directory")
            kept.enter_context(files.locked(path))
            if _steps(path) and not resume:
                raise ValueError(
                    f"{path}: holds a run already; pass resume=True (--resume) to "
                    "continue it, or choose another directory"
                )
            if any(entry.name.isdecimal() for entry in path.iterdir()):
                raise ValueError(
                    f"{path}: holds a run of an earlier version; continue it with "
                    "that, or choose another directory"
                )

        in_first(begin)
        yield path


def latest(directory: str | Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The record and the arrays of the latest checkpoint, verified.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged.
    """
    folder = files.as_path(directory, "directory").expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: expected a run, found no directory")
    while steps := _steps(folder):
        path = _file(folder, steps[-1])
        try:
            return unseal(path, FORMAT, "a checkpoint", **_RECORD)
        except FileNotFoundError:  # there are newer ones, since the folder was read
            continue
        except ValueError as error:
            raise ValueError(
                f"{error}; or delete this file, to go on from the checkpoint before it"
            ) from error
    raise FileNotFoundError(f"{folder}: expected a run, found no checkpoint")


def any_in(directory: Path) -> bool:
    """Whether there is a checkpoint, as the first process sees it."""
    return in_first(lambda: bool(_steps(directory)))


def newest(directory: Path) -> Path | None:
    """The file of the latest checkpoint."""
    steps = _steps(directory)
    return _file(directory, steps[-1]) if steps else None


def save(directory: Path, step: int, tree: dict, record: dict) -> None:
    """Writes a checkpoint: a pytree of arrays on the host, and a record in JSON."""

    def write():
        content = seal(FORMAT, record, _named(tree))
        files.write(_file(directory, step), content)
        for old in _steps(directory)[:-_KEPT]:
            _file(directory, old).unlink(missing_ok=True)

    in_first(write)


def load(arrays: dict[str, np.ndarray], like: Any) -> Any:
    """The arrays of a checkpoint, in a pytree `like` what was saved.

    Raises:
      ValueError: it was saved of something else.
    """
    expected = _named(like)
    for name, leaf in expected.items():
        found = arrays.get(name)
        kinds = [x is not None and f"{x.dtype} {x.shape}" for x in (leaf, found)]
        if kinds[0] != kinds[1]:
            raise ValueError(
                f"{name}: expected {kinds[0]}, found {kinds[1] or 'nothing'}; this is "
                "the checkpoint of something else"
            )
        finite(name, found, "the checkpoint before it may be whole")
    leaves = [arrays[name] for name in expected]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def _named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree, by their paths."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in leaves
    }
    if len(named) != len(leaves):
        raise ValueError("two variables have the same path, joined by '/'")
    return named


def _steps(directory: Path) -> list[int]:
    names = [path.stem for path in directory.glob("*.safetensors")]
    return sorted(int(name) for name in names if name.isdecimal())


def _file(directory: Path, step: int) -> Path:
    return directory / f"{step}.safetensors"


def in_first(function: Callable):
    """Calls a function in process 0, and returns or raises in all what it does there.

    Among several processes, what is returned must be something that JSON can hold.
    """
    if jax.process_count() == 1:
        return function()
    from jax.experimental.multihost_utils import broadcast_one_to_all

    content = np.zeros(0, np.uint8)
    if jax.process_index() == 0:
        try:
            outcome = [function(), None, ""]
        except Exception as error:
            outcome = [None, type(error).__name__, str(error)]
        content = np.frombuffer(json.dumps(outcome).encode(), np.uint8)
    size = int(broadcast_one_to_all(np.int32(len(content))))
    content = broadcast_one_to_all(np.resize(content, size))
    result, kind, message = json.loads(np.asarray(content).tobytes())
    if kind is not None:
        raise getattr(builtins, kind, RuntimeError)(message)
    return result
