"""Spike trains as events in a file: which neuron fired when, and how often.

    write("spikes.npz", model, spiking, images, steps=4, names=["relu0"])
    header, events = read("spikes.npz")
    events[events["layer"] == 0]["neuron"]

The file is a NumPy archive, which `numpy.load` reads without jaxburst:

* `header`, JSON: `format`, the version, `steps`, `images`, `neuron`, and `layers`, a
  list of `{"name", "shape"}`, the shape of one image's population;
* `events`, a structured array with one row for each neuron, image and step with spikes,
  in the order of images, then layers, then steps: `image` and `layer` (from 0),
  `neuron` (from 0, in C order of the shape), `step` (from 1), and `count`, the number
  of spikes, negative where they are taken back.

The events of a batch are on the disk before the next batch is simulated, so memory does
not grow with the number of images.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from jaxburst.batching import length, sweep
from jaxburst.checks import door
from jaxburst.circuit import prepared
from jaxburst.convert import Spiking
from jaxburst.io.artefact import WRONG, free
from jaxburst.io.files import archive, named, replacing
from jaxburst.model import Model
from jaxburst.run import trace_of

__all__ = [
    "read",
    "write",
]

FORMAT, VERSION = "jaxburst events", 1
ROW = np.dtype(
    [("image", "<u4"), ("layer", "<u2"), ("neuron", "<u4"), ("step", "<u4"),
     ("count", "<i4")]
)  # fmt: skip
"""What a row of `events` holds."""


@door
def write(
    path: str | os.PathLike,
    model: Model,
    spiking: Spiking,
    inputs,
    steps: int,
    *,
    names: str | Iterable[str] | None = None,
    batch_size: int = 100,
    progress: bool = True,
) -> Path:
    """Simulates and writes every spike; replaces a file of events, all or nothing.

    Args:
      path: the file, `.npz`.
      model: the network, neuron and pooling.
      spiking: its converted weights.
      inputs: `[N, ...]`, as the network takes them.
      steps: number of time steps.
      names: of the populations; all of them if left out.
      batch_size: number of images at a time; memory grows with it.
      progress: whether to show progress.

    Returns:
      The path.

    Raises:
      FileExistsError: if something else is there; OSError: if it cannot be written.
        Both come before the work.
      ValueError: for unknown names, or as `simulate`.

    Example:
      >>> import jaxburst as jb
      >>> function = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1]
      >>> weights = (np.eye(3, dtype="f"), np.ones((3, 2), "f"))
      >>> network = jb.trace(function, weights, np.ones((1, 3), "f"))
      >>> spiking = jb.convert(network, weights, {"relu0": 1.0}, initial=0)
      >>> model, images = jb.Model(network, jb.Burst(5)), np.array([[0.5, 0, 2]], "f")
      >>> path = write(tempfile.mkdtemp() + "/x.npz", model, spiking, images, 2)
      >>> read(path)[1].tolist()
      [(0, 0, 2, 1, 2), (0, 0, 0, 2, 1), (0, 0, 2, 2, 2)]
    """
    known = model.network.neurons
    names = known if names is None else (names,) if isinstance(names, str) else names
    names = tuple(names)
    wrong = sorted(set(names) - set(known))
    if wrong or not names:
        raise ValueError(
            f"names: expected some of {list(known)}, found {wrong or 'none'}"
        )
    place = free(path, is_events, "a file of events")
    count = length(inputs)
    shapes = {}
    with tempfile.TemporaryFile(dir=place.parent) as rows:
        done = total = 0
        for number, spikes in sweep(
            _recorder(model, steps, names),
            prepared(model, spiking),
            inputs,
            batch_size,
            description=f"Recording {steps} steps" if progress else "",
        ):
            shapes = {name: spikes[name].shape[2:] for name in names}
            found = _rows(names, spikes, number, done)
            with named(place):
                rows.write(found.tobytes())
                rows.flush()
            done, total = done + number, total + len(found)
        header = {
            "format": f"{FORMAT} {VERSION}",
            "steps": steps,
            "images": count,
            "neuron": repr(model.neuron),
            "layers": [{"name": name, "shape": shapes[name]} for name in names],
        }
        with replacing(place) as file:
            _archive(file, header, rows, total)
    return place


@lru_cache(maxsize=8)
def _recorder(model: Model, steps: int, names: tuple[str, ...]):
    """The spikes of a batch, the images in front: `[B, T, ...]`, whole numbers."""

    def record(circuit, batch):
        leaves = model.network.leaves(batch)
        trace = trace_of(model, circuit, leaves, steps, record=names)
        return {n: trace.spikes[n].swapaxes(0, 1).astype(np.int32) for n in names}

    return record


def _rows(names, spikes, number: int, first: int) -> np.ndarray:
    """The events of a batch, of which so many images count."""
    parts = []
    for layer, name in enumerate(names):
        found = spikes[name][:number]
        found = found.reshape(*found.shape[:2], -1)
        image, step, neuron = np.nonzero(found)
        part = np.empty(len(image), ROW)
        part["image"], part["layer"] = image + first, layer
        part["neuron"], part["step"] = neuron, step + 1
        part["count"] = found[image, step, neuron]
        parts.append(part)
    rows = np.concatenate(parts)
    return rows[np.argsort(rows["image"], kind="stable")]


def _archive(place, header: dict[str, Any], rows, total: int) -> None:
    """What `numpy.savez` would write, of rows that lie in a file."""
    with zipfile.ZipFile(place, "w") as archive:
        with archive.open("header.npy", "w") as file:
            np.lib.format.write_array(file, np.array(json.dumps(header)))
        with archive.open("events.npy", "w", force_zip64=True) as file:
            about = {
                "descr": np.lib.format.dtype_to_descr(ROW),
                "fortran_order": False,
                "shape": (total,),
            }
            np.lib.format.write_array_header_2_0(file, about)
            rows.seek(0)
            while block := rows.read(1 << 20):
                file.write(block)


@door
def read(path: str | os.PathLike) -> tuple[dict[str, Any], np.ndarray]:
    """Reads what `write` wrote.

    Returns:
      `(header, events)`.

    Raises:
      FileNotFoundError: if the file is not there.
      ValueError: if it is damaged, or none of events.

    Example:
      >>> path = write("spikes.npz", model, spiking, inputs, steps=2, progress=False)
      >>> header, events = read(path)
      >>> len(events)  # 2.5 is a burst at each step, and so on
      5
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected a file of events")
    try:
        with archive(path) as file:
            header = _header(file)
            events = file["events"]
        if events.dtype != ROW:
            raise ValueError(f"its events are {events.dtype}, expected {ROW}")
    except WRONG as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); it is damaged or no file of events: "
            "copy or write it again"
        ) from error
    return header, events


def is_events(path: Path) -> bool:
    """Whether a file is one of events; only its header is read."""
    try:
        with archive(path) as file:
            _header(file)
    except WRONG:
        return False
    return True


def _header(file) -> dict[str, Any]:
    header = json.loads(str(file["header"]))
    if header["format"] != f"{FORMAT} {VERSION}":
        raise ValueError(f"it is {header['format']!r}, expected {FORMAT} {VERSION}")
    return header
