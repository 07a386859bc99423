"""Checkpoints of a run: a folder per step, which counts once it holds the sums of its
files. Several processes write one run; the first decides what there is."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

SUMS = "sha256.json"


def open_run(directory: str | Path, resume: bool):
    """The checkpoints in a directory that will be written to, the latest one intact.

    Raises:
      OSError: nothing can be written there.
      ValueError: it holds a run already, which is not to be resumed, or whose latest
        checkpoint is damaged.
    """
    directory = Path(directory).expanduser().resolve()
    in_first(lambda: _inspect(directory, resume))
    return checkpointer(directory, clean=True)


def checkpointer(directory: Path, clean: bool = False):
    """Orbax's view of a directory; `clean` removes what was being written."""
    from orbax.checkpoint import v1 as ocp  # slow to import

    return ocp.training.Checkpointer(
        directory,
        preservation_policy=ocp.training.preservation_policies.LatestN(2),
        cleanup_tmp_directories=clean,  # what was being written when a run was killed
    )


def latest(directory: str | Path) -> tuple[Path, int]:
    """The directory, and the step of its latest whole checkpoint, verified.

    Raises:
      FileNotFoundError: there is none.
      ValueError: it is damaged.
    """
    directory = Path(directory).expanduser().resolve()
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: expected a run, found no directory")
    # One without sums is being written, or was when the run was killed.
    whole = [folder for folder in _steps(directory) if (folder / SUMS).exists()]
    if not whole:
        raise FileNotFoundError(f"{directory}: expected a run, found no checkpoint")
    _verify(whole[-1])
    return directory, int(whole[-1].name)


def save(store, step: int, tree: dict, record: dict) -> None:
    """Writes a checkpoint: a pytree of arrays on the host, and a record in JSON."""
    store.save(step, tree, custom_metadata=record, force=True)
    in_first(lambda: _seal(Path(store.latest.path)))


def record_of(store, step: int) -> dict:
    """The record that a checkpoint was saved with."""
    return store.checkpointables_metadata(step).custom_metadata


def load(store, step: int, like: Any = None) -> Any:
    """The arrays of a checkpoint, in a pytree `like` this, or else in dictionaries."""
    if like is None:
        return store.load(step)
    # As NumPy arrays, which belong to no device.
    return store.load(step, jax.tree.map(lambda x: np.empty(x.shape, x.dtype), like))


def _inspect(directory: Path, resume: bool) -> None:
    """Makes the directory, refuses what cannot be used, removes what is unfinished."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise OSError(
            f"{directory}: cannot be written to ({error.strerror}); choose another "
            "directory"
        ) from error
    if _steps(directory) and not resume:
        raise ValueError(
            f"{directory}: holds a run already; pass resume=True (--resume) to "
            "continue it, or choose another directory"
        )
    for checkpoint in _steps(directory):
        # Stopped between Orbax's last word and the checksums.
        if (checkpoint / "state").is_dir() and not (checkpoint / SUMS).exists():
            shutil.rmtree(checkpoint)
    for newest in _steps(directory)[-1:]:
        _verify(newest)


def _steps(directory: Path) -> list[Path]:
    folders = [path for path in directory.iterdir() if path.name.isdigit()]
    return sorted(folders, key=lambda path: int(path.name))


def _seal(folder: Path) -> None:
    """Makes a written checkpoint count."""
    sums = folder / f"{SUMS}.part"
    sums.write_text(json.dumps(_sums(folder), indent=1))
    os.replace(sums, folder / SUMS)


def _sums(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a checkpoint."""
    sums = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith(SUMS):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            sums[path.relative_to(folder).as_posix()] = digest
    return sums


def _verify(folder: Path) -> None:
    # Orbax itself notices few flipped bits, and is verbose about the rest.
    try:
        expected, found = json.loads((folder / SUMS).read_bytes()), _sums(folder)
        wrong = [name for name in expected if found.get(name) != expected[name]]
    except (OSError, ValueError):
        wrong = [SUMS]
    if wrong:
        raise ValueError(
            f"{folder}: this checkpoint is damaged ({wrong[0]} is not as it was "
            "written); delete this folder to go on from the checkpoint before it"
        )


def in_first(function: Callable):
    """Calls a function in process 0, and returns or raises in all what it does there.

    Among several processes, what is returned must be small, and can be pickled.
    """
    if jax.process_count() == 1:
        return function()
    from jax.experimental.multihost_utils import broadcast_one_to_all

    content = np.zeros(0, np.uint8)
    if jax.process_index() == 0:
        try:
            outcome = function(), None
        except Exception as error:
            outcome = None, error
        content = np.frombuffer(pickle.dumps(outcome), np.uint8)
    size = int(broadcast_one_to_all(np.int32(len(content))))
    content = broadcast_one_to_all(np.resize(content, size))
    result, error = pickle.loads(np.asarray(content).tobytes())
    if error is not None:
        raise error
    return result
