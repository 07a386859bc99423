"""Converted networks on disk: one safetensors file each, with a SHA-256 of every byte.

    save("digits.safetensors", model, spiking)
    model, spiking = load("digits.safetensors", network)

A traced network is a function, which no file can hold. So the file holds the arrays
under the names of their nodes, the settings of the `Model`, and the network's table:
`load` is given the network, traced again, and says where it differs from what was
saved. Nothing in a file is executed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as to_bytes

from jaxburst import neurons
from jaxburst.convert import Spiking, check_spiking
from jaxburst.graph import Constant, Graph, Node, Synapse, Wire
from jaxburst.graph import Neuron as Rectifier
from jaxburst.neurons import Neuron, Threshold
from jaxburst.run import Model
from jaxburst.tracing import Affine, Network

FORMAT = "jaxburst 1"
_UNKNOWN = "0" * 64  # in the place of the SHA-256 while it is computed
_PARTS = {part.__name__: part for part in (Affine, Threshold)}
_MARGINS = "/margins"  # no node is called so


def save(
    path: str | os.PathLike,
    model: Model,
    spiking: Spiking,
    margins: Any = None,
    *,
    notes: dict[str, Any] | None = None,
) -> Path:
    """Saves a converted network in one file; replaces one, all or nothing.

    Whatever interrupts it, the file is the old network or the new one.

    Args:
      path: the file; in a folder that exists, `network.safetensors`.
      model: network, neuron and settings.
      spiking: the converted weights.
      margins: those of anytime inference, an array, if there are any.
      notes: anything JSON can hold that should travel along: where the weights come
        from, how they were calibrated, how images are normalised.

    Returns:
      The file.

    Raises:
      FileExistsError: if something is there that is not a saved network.
      ValueError: if the weights are not those of the network.
      TypeError: if a setting of the neuron, or a note, is no plain data.
    """
    path = _file(path)
    if not isinstance(model, Model):
        raise TypeError(f"save: expected a Model, found {type(model).__name__}")
    check_spiking(model.network, spiking)
    if path.exists() and not _is_saved(path):
        raise FileExistsError(
            f"{path}: is there already and is not a saved network; choose another name "
            "or remove it"
        )
    arrays, parts = {}, {}
    for name, own in spiking.items():
        kind = type(own).__name__
        parts[name] = kind if kind in _PARTS else len(own)
        fields = own._fields if kind in _PARTS else range(len(own))
        for field, value in zip(fields, own, strict=True):
            arrays[f"{name}/{field}"] = _plain(value)
    if margins is not None:
        arrays[_MARGINS] = _plain(margins)
    description = {
        "neuron": _encoded(model.neuron, "neuron"),
        "settings": {name: getattr(model, name) for name in _settings()},
        "nodes": _table(model.network.graph),
        "outputs": list(model.network.graph.outputs),
        "parts": parts,
        "notes": notes or {},
    }
    metadata = {"format": FORMAT, "sha256": _UNKNOWN}
    metadata["description"] = json.dumps(description)
    content = to_bytes(arrays, metadata)
    content = content.replace(_UNKNOWN.encode(), _digest(content).encode(), 1)
    _replace(path, content)
    return path


def load(
    path: str | os.PathLike, network: Network, *, kinds: Iterable[type[Neuron]] = ()
) -> tuple[Model, Spiking]:
    """Loads a converted network, and verifies every byte of it.

    Args:
      path: what `save` was given.
      network: the network that was saved, traced again.
      kinds: kinds of neurons that are not jaxburst's own.

    Returns:
      `(model, spiking)`.

    Raises:
      FileNotFoundError: if the file is not there.
      ValueError: if it is damaged, of another network (naming the first difference), of
        an unknown kind of neuron, or in a precision that is switched off.
    """
    path = _file(path)
    if not isinstance(network, Network):
        raise TypeError(
            f"load: network must be what trace returns, found {type(network).__name__}"
        )
    description, arrays = _read(path)
    difference = _difference(description, network.graph)
    if difference:
        raise ValueError(
            f"{path}: was saved of another network: {difference}; trace the function "
            "that was saved, or convert this one again"
        )
    arrays.pop(_MARGINS, None)
    wide = sorted(name for name in arrays if arrays[name].dtype.itemsize == 8)
    if wide and not jax.config.jax_enable_x64:
        raise ValueError(
            f"{path}: {wide[0]} is {arrays[wide[0]].dtype}, which JAX would round; "
            "set jax_enable_x64, or save in single precision"
        )
    spiking: Spiking = {}
    for name, kind in description["parts"].items():
        part = _PARTS.get(kind) if isinstance(kind, str) else None
        fields = part._fields if part else range(kind)
        values = tuple(jnp.asarray(arrays[f"{name}/{field}"]) for field in fields)
        spiking[name] = part(*values) if part else values
    known = _kinds(kinds)
    try:
        neuron = _decoded(description["neuron"], known)
        model = Model(network, neuron, **description["settings"])
        check_spiking(network, spiking)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    return model, spiking


def describe(path: str | os.PathLike) -> dict[str, Any]:
    """What a saved network says of itself, without the network.

    Returns:
      `{'neuron', 'settings', 'nodes', 'outputs', 'notes', 'margins'}`; margins are an
      array, or None.

    Raises:
      FileNotFoundError, ValueError: as `load`.
    """
    description, arrays = _read(_file(path))
    del description["parts"]
    return description | {"margins": arrays.get(_MARGINS)}


def _file(path: str | os.PathLike) -> Path:
    path = Path(path)
    return path / "network.safetensors" if path.is_dir() else path


def _settings() -> list[str]:
    """The fields of a `Model` beside its network and neuron."""
    names = [field.name for field in dataclasses.fields(Model)]
    return [name for name in names if name not in ("network", "neuron")]


def _plain(value) -> np.ndarray:
    """On the host and in C order, which is how safetensors takes what it is given."""
    return np.array(value, order="C")


# The file.


def _digest(content: bytes) -> str:
    """Of a file in which the place of the SHA-256 holds zeros."""
    return hashlib.sha256(content).hexdigest()


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    start, end = f".{path.name}.", ".part"
    made = path.with_name(f"{start}{secrets.token_hex(8)}{end}")
    try:
        with open(made, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(made, path)
    except BaseException:
        made.unlink(missing_ok=True)
        raise
    for left in path.parent.iterdir():  # by saves that were killed
        if left.name.startswith(start) and left.name.endswith(end):
            left.unlink(missing_ok=True)
    if hasattr(os, "O_DIRECTORY"):  # the name reaches the disk, too
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _header(content: bytes, size: int) -> dict[str, Any]:
    """The header of a safetensors file of so many bytes, or of its beginning."""
    length = int.from_bytes(content[:8], "little")
    if size < 8 or length > size - 8:
        raise ValueError(
            f"it has {size} bytes, too few for its header; it is cut short, or no "
            "safetensors file"
        )
    found = json.loads(content[8 : 8 + length])
    ends = [
        row["data_offsets"][1] for name, row in found.items() if name != "__metadata__"
    ]
    expected = 8 + length + max(ends, default=0)
    if expected != size:
        raise ValueError(f"it has {size} bytes, by its header it should be {expected}")
    return found


def _is_saved(path: Path) -> bool:
    """Whether a file is a network that `save` wrote."""
    try:
        with open(path, "rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            size = os.fstat(file.fileno()).st_size
            if length > size:
                return False
            header = _header(start + file.read(length), size)
        return str(header["__metadata__"]["format"]).startswith("jaxburst")
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return False


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `save` wrote, verified."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not found; expected a file of jaxburst's save"
        )
    content = path.read_bytes()
    try:
        metadata = _header(content, len(content)).get("__metadata__", {})
        if "format" not in metadata or "sha256" not in metadata:
            raise ValueError("it is a safetensors file, but not of jaxburst's save")
        if metadata["format"] != FORMAT:
            raise ValueError(
                f"it is of the format {metadata['format']!r}, this version reads "
                f"{FORMAT!r}"
            )
        expected = metadata["sha256"]
        zeroed = content.replace(expected.encode(), _UNKNOWN.encode(), 1)
        found = _digest(zeroed)
        if found != expected:
            raise ValueError(f"its SHA-256 is {found[:12]}…, expected {expected[:12]}…")
        arrays = {name: _array(row) for name, row in deserialize(content)}
        return json.loads(metadata["description"]), arrays
    except (
        *(ValueError, LookupError, TypeError, AttributeError),
        *(SafetensorError, RecursionError),
    ) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); copy or save the network again"
        ) from error


_KINDS = {"BF": "bfloat", "F": "float", "I": "int", "U": "uint"}


def _array(row: dict[str, Any]) -> np.ndarray:
    """One tensor; safetensors' own reader for NumPy lacks bfloat16."""
    kind = row["dtype"].rstrip("0123456789")
    name = "bool" if kind == "BOOL" else _KINDS[kind] + row["dtype"][len(kind) :]
    return np.frombuffer(row["data"], jnp.dtype(name)).reshape(row["shape"])


# Neurons as plain data.


def _encoded(value, where: str):
    if isinstance(value, Neuron):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        own = {
            name: _encoded(getattr(value, name), f"{where}.{name}") for name in fields
        }
        return {"kind": type(value).__name__, "fields": own}
    if isinstance(value, tuple):
        return [_encoded(item, where) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(
        f"save: {where} must be numbers, strings, None, neurons or tuples of these, "
        f"found {value!r}"
    )


def _decoded(value, kinds: dict[str, type]):
    if isinstance(value, list):
        return tuple(_decoded(item, kinds) for item in value)
    if not isinstance(value, dict):
        return value
    name = value["kind"]
    if name not in kinds:
        raise ValueError(
            f"its neurons are of the kind {name!r}, which is none of {sorted(kinds)}; "
            f"pass kinds=({name},)"
        )
    fields = {key: _decoded(item, kinds) for key, item in value["fields"].items()}
    return kinds[name](**fields)


def _kinds(given: Iterable[type[Neuron]]) -> dict[str, type]:
    own = [
        kind
        for kind in vars(neurons).values()
        if inspect.isclass(kind)
        and issubclass(kind, Neuron)
        and not inspect.isabstract(kind)
    ]
    return {kind.__name__: kind for kind in (*own, *given)}


# The table of a network.


def _table(graph: Graph) -> list[dict[str, Any]]:
    return [_row(node) for node in graph.nodes]


def _row(node: Node) -> dict[str, Any]:
    """What a node is, in words that another version of JAX would use, too."""
    role, details = node.role, {}
    params = getattr(role, "params", {})
    for name, value in params.items():
        if _is_data(value):
            details[name] = str(_as_tuple(value))
    match role:
        case Rectifier():
            details["cap"] = str(role.cap)
        case Synapse():
            details["kernel"] = str(role.kernel)
        case Wire():
            held = [repr(v) for v in role.operands if isinstance(v, Constant)]
            details["constants"] = ", ".join(held)
    kind = type(role).__name__.lower()
    if hasattr(role, "primitive"):
        kind = f"{kind} ({role.primitive.name})"
    return {
        "name": node.name,
        "kind": kind,
        "shape": str(tuple(map(str, node.shape))),
        "inputs": list(node.inputs),
        "details": details,
    }


def _is_data(value) -> bool:
    """Whether a parameter is sizes and places, the batch's among them."""
    if isinstance(value, tuple):
        return all(_is_data(item) for item in value)
    return isinstance(value, int | float | str | np.number) or hasattr(
        value, "_evaluate"
    )


def _as_tuple(value):
    """Without the names of fields, and symbols as text."""
    if isinstance(value, tuple):
        return tuple(_as_tuple(item) for item in value)
    return str(value)


def _difference(description: dict[str, Any], graph: Graph) -> str:
    """The first difference between a saved table and a graph; nothing if none."""
    rows, own = description["nodes"], _table(graph)
    for saved, found in zip(rows, own, strict=False):
        for field in ("name", "kind", "shape", "inputs"):
            if saved[field] != found[field]:
                return f"there, {_words(saved)}; here, {_words(found)}"
        for name in saved["details"].keys() & found["details"].keys():
            there, here = saved["details"][name], found["details"][name]
            if there != here:
                return f"{saved['name']} has {name} {there} there, {here} here"
    if len(rows) != len(own):
        more, place = (rows, "there") if len(rows) > len(own) else (own, "here")
        return f"{_words(more[min(len(rows), len(own))])}, is only {place}"
    if list(graph.outputs) != description["outputs"]:
        return f"its outputs are {description['outputs']}, here {list(graph.outputs)}"
    return ""


def _words(row: dict[str, Any]) -> str:
    return f"{row['name']!r} is a {row['kind']} {row['shape'].replace(chr(39), '')}"
