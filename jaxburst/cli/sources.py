"""What a command line names: networks, weights and data.

A network is an ONNX file; one that jaxburst trained, by its file or the name of a
released one; or `module:name`, an object of a Python module: a Linen module, a function
`f(variables, inputs)`, or a module or function of the inputs alone.

Data are `inputs.npy`; an archive `.npz` with `inputs` (or `x`, or `images`; or the
names of several inputs) and, where they are known, `labels` (or `y`, or `targets`); or
the name of a data set.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxburst import data as sets
from jaxburst import released
from jaxburst.checks import LARGEST, refuse, whole
from jaxburst.io.sealed import is_sealed
from jaxburst.network import Network
from jaxburst.tracing import trace

DATASETS = ("digits", "fashion_mnist", "cifar10", "cifar100", "imagenet2012")
SHAPES = {
    "digits": (8, 8, 1),
    "fashion_mnist": (28, 28, 1),
    "cifar": (32, 32, 3),
    "imagenet": (224, 224, 3),
}
INPUTS, LABELS = ("inputs", "x", "images"), ("labels", "y", "targets")


class Source(NamedTuple):
    """A trained network, as a command line named it.

    Attributes:
      network: traced.
      variables: its trained variables.
      onnx: the content of its ONNX file, if it is one.
    """

    network: Network
    variables: Any
    onnx: bytes | None


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """Images, with or without their labels.

    Attributes:
      inputs: as the network takes them.
      labels: the class of each, or None.
      what: where they come from, in words.
    """

    inputs: Any
    labels: np.ndarray | None
    what: str

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.inputs)[0])


@dataclasses.dataclass(frozen=True)
class Unread:
    """A network that was named, before anything is traced.

    Attributes:
      text: how it was named.
      weights: the file of its variables, if they are in one.
    """

    text: str
    weights: str | None = None

    def __post_init__(self):
        if self.weights is not None and self.kind != "python":
            raise ValueError(
                f"--weights: {self.text} holds its own; leave it out, or name a Python "
                "function, module:name"
            )

    @property
    def kind(self) -> str:
        """What it is.

        Raises:
          FileNotFoundError, ValueError: if it is nothing that is known.
        """
        path = Path(self.text)
        if path.suffix.lower() == ".onnx":
            if not path.is_file():
                raise FileNotFoundError(f"{path}: there is no such ONNX file")
            return "onnx"
        if path.is_file() and is_sealed(path, released.FORMAT):
            return "trained"
        if self.text in released.names():
            return "released"
        name, _, attribute = self.text.partition(":")
        if attribute.isidentifier() and all(p.isidentifier() for p in name.split(".")):
            return "python"
        why = "is no network that can be read" if path.exists() else "not found"
        raise ValueError(
            f"{self.text}: {why}; expected a file .onnx, a Python function "
            f"module:name, or one of {', '.join(released.names())}"
        )

    def shapes(self) -> list[tuple[str, tuple | None, Any]]:
        """Name, shape of one image (None if it is open) and type of every input.

        Raises:
          ValueError: where a network does not say.
        """
        if self.kind == "onnx":
            from jaxburst.io.onnx import declared, read

            rows = []
            for name, dtype, shape in declared(read(self.text).graph):
                image = shape and shape[1:]
                rows.append((name, None if None in (image or ()) else image, dtype))
            return rows
        if self.kind == "python":
            _imported(self.text)
            return [("", None, np.dtype("float32"))]
        name = Path(self.text).stem
        shape = next((shape for known, shape in SHAPES.items() if known in name), None)
        return [("", shape, np.dtype("float32"))]

    def open(self, example) -> Source:
        """Traces it for inputs like the example's.

        Raises:
          ImportError: for a package, or a module of the user's, that is not there.
          Refused: for what has no spiking meaning.
          ValueError: for weights that do not fit.
        """
        if self.kind == "onnx":
            from jaxburst.io.onnx import from_onnx, read

            proto = read(self.text)
            function, variables = from_onnx(proto)
            network = trace(function, variables, example)
            return Source(network, variables, proto.SerializeToString())
        if self.kind == "python":
            return self._python(example)
        if self.kind == "trained":
            module, variables, _ = released.load(self.text)
        else:
            module, variables = released.pretrained(self.text)
        return Source(trace(module.apply, variables, example), variables, None)

    def _python(self, example) -> Source:
        from flax import linen

        found = _imported(self.text)
        made = inspect.isclass(found) or (
            inspect.isfunction(found) and not inspect.signature(found).parameters
        )
        if made:
            try:
                found = found()
            except TypeError as error:
                raise ValueError(f"{self.text}: cannot be made ({error})") from error
        is_linen = isinstance(found, linen.Module)
        if self.weights is None:
            if is_linen:
                raise ValueError(
                    f"{self.text}: is a Linen module, which does not hold its "
                    "variables; give --weights"
                )
            network = trace(found, example)
            return Source(network, network.variables, None)
        variables = _weights(self.weights, found if is_linen else None, example)
        function = found.apply if is_linen else found
        return Source(trace(function, variables, example), variables, None)


def _imported(text: str):
    """An object of a module, which may lie in the present folder."""
    name, _, attribute = text.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ImportError(
            f"{text}: there is no Python module {name!r}, here or installed"
        ) from error
    if not hasattr(module, attribute):
        raise ImportError(f"{text}: the module {name!r} has no {attribute!r}")
    return getattr(module, attribute)


def _weights(path: str, module, example):
    """Variables from a file, nested by the slashes of their names."""
    from flax.traverse_util import unflatten_dict

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file of weights")
    arrays = None
    if path.endswith(".npz"):
        arrays = dict(_archive(path))
    elif path.endswith(".safetensors"):
        from safetensors.numpy import load_file

        arrays = load_file(path)
    nested = arrays and any(name.startswith("params/") for name in arrays)
    if module is not None and not nested:
        from jaxburst.io.state_dict import load_pytorch

        return load_pytorch(module, arrays or path, example).variables
    if arrays is None:
        raise ValueError(f"{path}: expected .npz or .safetensors, for a function")
    return unflatten_dict(arrays, sep="/")


def zeros(rows, shape: Sequence[int] | None = None):
    """An example of inputs, of which there is one or a dictionary.

    Args:
      rows: from `Unread.shapes`.
      shape: of one image, where the network leaves it open.

    Raises:
      ValueError: if it is not known, or no shape of an image.
    """
    found = {}
    for size in shape or ():
        whole("--shape", size, 1)
    if math.prod(shape or ()) > LARGEST:
        refuse(
            "--shape", f"the shape of one image, of at most {LARGEST:,} numbers", shape
        )
    for name, own, dtype in rows:
        own = own if own is not None else shape
        if own is None:
            raise ValueError(
                f"the shape of {name or 'the input'} is open: give --shape, such as "
                "--shape 3 224 224, without the number of images"
            )
        found[name] = np.zeros((1, *own), dtype)
    return found if len(found) > 1 else next(iter(found.values()))


def read_data(
    text: str,
    rows,
    *,
    part: str,
    images: int | None = None,
    data_dir: str = "data",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> Data:
    """Reads what a command line names as data.

    Args:
      text: a file or the name of a data set.
      rows: what the network declares of its inputs, from `Unread.shapes`.
      part: of a data set, `'train'` or `'test'`.
      images: how many at most, from the front.
      data_dir: the folder of prepared data sets.
      mean: of each channel, in units of pixel/255, for whole numbers 0..255.
      std: likewise.

    Raises:
      FileNotFoundError, ValueError: saying what was expected.
    """
    if text in DATASETS:
        found = sets.load(text, data_dir)
        if mean or std:
            found = found.with_normalisation(mean, std)
        split = getattr(found, part)[: images or None]
        inputs, labels = split.pair
        wanted = rows[0][1]
        if wanted and wanted[0] == split.images.shape[-1] != wanted[-1]:
            inputs = _ChannelsFirst(inputs)
        what = f"{len(split)} {part}ing images of {text}".replace("testing", "test")
        return Data(inputs, labels, what.replace("training", "training"))
    path = Path(text)
    if not path.is_file():
        raise FileNotFoundError(
            f"{text}: not found; expected a file .npy or .npz, or one of "
            f"{', '.join(DATASETS)}"
        )
    arrays = dict(_archive(text))
    names = [name for name in LABELS if name in arrays]
    labels = np.asarray(arrays.pop(names[0])) if names else None
    several = [name for name, _, _ in rows]
    if len(several) > 1 and set(several) <= set(arrays):
        inputs: Any = {name: arrays[name] for name in several}
    else:
        names = [name for name in (*INPUTS, "", *several) if name in arrays]
        if not names and len(arrays) == 1:
            names = list(arrays)
        if not names or len(several) > 1:
            wanted = several if len(several) > 1 else INPUTS
            raise ValueError(
                f"{text}: expected the inputs as {' or '.join(wanted)}, found "
                f"{', '.join(arrays) or 'nothing'}"
            )
        inputs = arrays[names[0]]
    whole = any(np.issubdtype(dtype, np.integer) for _, _, dtype in rows)
    inputs = jax.tree.map(
        lambda x: _numbers(text, x, mean, std, whole)[:images], inputs
    )
    count = len(jax.tree.leaves(inputs)[0])
    if labels is not None:
        if len(labels) < count:
            raise ValueError(f"{text}: {len(labels)} labels for {count} images")
        labels = labels[:count]
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.dtype.kind == "f" and (labels == np.rint(labels)).all():
            labels = labels.astype(np.int64)
    return Data(inputs, labels, f"{count} images of {path.name}")


@dataclasses.dataclass(frozen=True, eq=False)
class _ChannelsFirst:
    """Images whose channels are moved to the front when they are asked for."""

    inputs: Any

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, rows) -> np.ndarray:
        return np.moveaxis(self.inputs[rows], -1, 1)


def _archive(path: str):
    """Names and arrays of a file of NumPy's; the array of a `.npy` has no name."""
    try:
        with open(path, "rb") as stream:
            found = np.load(stream, allow_pickle=False)
            if isinstance(found, np.ndarray):
                return [("", found)]
            return [(name, found[name]) for name in found.files]
    except Exception as error:  # zip, zlib, NumPy: each has its own
        raise ValueError(
            f"{path}: cannot be read ({error}); expected .npy or .npz, as numpy.save "
            "and numpy.savez write them"
        ) from error


def _numbers(text: str, x: np.ndarray, mean, std, whole: bool) -> np.ndarray:
    """Pixels are normalised, where constants for that are given."""
    if not x.ndim:
        raise ValueError(f"{text}: expected images [N, ...], found one number")
    if not (mean or std):
        if x.dtype == np.uint8 and not whole:
            raise ValueError(
                f"{text}: holds pixels 0..255 (uint8), but the network takes floating-"
                "point numbers: give --mean and --std, in units of pixel/255, as in "
                "training"
            )
        return x
    if x.dtype != np.uint8:
        raise ValueError(
            f"--mean: normalises pixels 0..255 (uint8), but {text} holds {x.dtype}; "
            "leave it out for images that are normalised"
        )
    first = x.ndim > 1 and x.shape[1] == len(mean) != x.shape[-1]
    x = sets.normalise(np.moveaxis(x, 1, -1) if first else x, mean, std)
    return np.moveaxis(x, -1, 1) if first else x
