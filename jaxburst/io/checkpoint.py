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
import inspect
import os
from ast import literal_eval
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst import neurons
from jaxburst.checks import KINDS, corrected_for, door, instance
from jaxburst.convert import Spiking
from jaxburst.graph import Constant, Graph, Input, Node, Synapse, Wire
from jaxburst.graph import Neuron as Rectifier
from jaxburst.io.files import as_path, write
from jaxburst.io.sealed import is_sealed, seal, unseal
from jaxburst.model import Model
from jaxburst.network import Affine, Network
from jaxburst.neurons import Neuron, Threshold
from jaxburst.tracing import trace

FORMAT = "jaxburst 1"
_PARTS = {part.__name__: part for part in (Affine, Threshold)}
_SOURCE = "/onnx"  # no node is called so


@door
def save(
    path: str | os.PathLike,
    model: Model,
    spiking: Spiking,
    *,
    notes: dict[str, Any] | None = None,
    source: bytes | None = None,
) -> Path:
    """Saves a converted network in one file; replaces one, all or nothing.

    Whatever interrupts it, the file is the old network or the new one.

    Args:
      path: the file; in a folder that exists, `network.safetensors`.
      model: network, neuron and settings.
      spiking: the converted weights.
      notes: anything JSON can hold that should travel along: where the weights come
        from, how they were calibrated, how images are normalised. `describe` gives
        them back.
      source: the content of the ONNX file that the network was read from: whoever
        loads the saved one then needs no other file.

    Returns:
      The file.

    Raises:
      FileExistsError: if something is there that is not a saved network.
      OSError: if the file cannot be written; what was there is intact.
      ValueError: if the weights are not those of the network, or the source is that of
        another one.
      TypeError: if a setting of the neuron, or a note, is no plain data.

    Example:
      >>> save("net", model, spiking).exists()
      True
    """
    path = _file(path)
    if path.exists() and not is_sealed(path, FORMAT):
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
            arrays[f"{name}/{field}"] = value
    description = {
        "neuron": _encoded(model.neuron, "neuron"),
        "settings": {name: getattr(model, name) for name in _settings()},
        "nodes": _table(model.network.graph),
        "outputs": list(model.network.graph.outputs),
        "parts": parts,
        "notes": notes or {},
    }
    if source is not None:
        content = instance("source", source, bytes, "the content of an ONNX file")
        network, _ = _from_source(content, "source", description["nodes"])
        if difference := _difference(description, network.graph):
            raise ValueError(f"source: is of another network: {difference}")
        arrays[_SOURCE] = np.frombuffer(content, np.uint8)
    return write(path, seal(FORMAT, description, arrays))


@door
def load(
    path: str | os.PathLike,
    network: Network | None = None,
    *,
    kinds: Iterable[type[Neuron]] = (),
) -> tuple[Model, Spiking]:
    """Loads a converted network, and verifies every byte of it.

    Args:
      path: what `save` was given.
      network: the network that was saved, traced again; not needed where the file
        holds the source of it.
      kinds: kinds of neurons that are not jaxburst's own.

    Returns:
      `(model, spiking)`.

    Raises:
      FileNotFoundError: if the file is not there.
      ValueError: if it is damaged, of another network (naming the first difference), of
        an unknown kind of neuron, or in a precision that is switched off.

    Example:
      >>> path = save("net", model, spiking)
      >>> again, weights = load(path, network)
      >>> again == model, float(weights["relu0"].theta)
      (True, 0.5)
    """
    path = _file(path)
    traced = restored(path)[0] if network is None else network
    description, arrays = _read(path)
    try:
        difference = _difference(description, traced.graph)
    except (TypeError, LookupError, AttributeError) as error:
        raise ValueError(f"{path}: says nothing of its network ({error!r})") from error
    if difference:
        raise ValueError(
            f"{path}: was saved of another network: {difference}; trace the function "
            "that was saved, or convert this one again"
        )
    wide = sorted(name for name in arrays if arrays[name].dtype.itemsize == 8)
    if wide and not jax.config.read("jax_enable_x64"):
        raise ValueError(
            f"{path}: {wide[0]} is {arrays[wide[0]].dtype}, which JAX would round; "
            "set jax_enable_x64, or save in single precision"
        )
    known = _kinds(kinds)
    try:
        spiking = _assembled(description["parts"], arrays)
        neuron: Any = _decoded(description["neuron"], known)
        model = Model(traced, neuron, **description["settings"])
        KINDS["spiking"]("weights", spiking, {"model": model})
    except (TypeError, ValueError, LookupError) as error:
        raise ValueError(f"{path}: {error}") from error
    return model, corrected_for(neuron, spiking)


def _assembled(parts: dict[str, Any], arrays: dict[str, np.ndarray]) -> Spiking:
    spiking: Spiking = {}
    for name, kind in parts.items():
        part = _PARTS[kind] if isinstance(kind, str) else None
        fields = part._fields if part else range(int(kind))
        values = tuple(jnp.asarray(arrays[f"{name}/{field}"]) for field in fields)
        spiking[name] = part(*values) if part else values
    return spiking


@door
def describe(path: str | os.PathLike) -> dict[str, Any]:
    """What a saved network says of itself, without the network.

    Returns:
      `{'neuron', 'settings', 'nodes', 'outputs', 'notes', 'source'}`, plain data;
      `source` says whether the file holds the ONNX file of its network.

    Raises:
      FileNotFoundError, ValueError: as `load`.

    Example:
      >>> path = save("net", model, spiking, notes={"data": "two rows"})
      >>> describe(path)["notes"]
      {'data': 'two rows'}
    """
    description, arrays = _read(_file(path))
    del description["parts"]
    return description | {"source": _SOURCE in arrays}


def restored(path: str | os.PathLike) -> tuple[Network, dict[str, jax.Array]]:
    """The trained network of a file that holds the source of it.

    Several inputs are taken by their names.

    Returns:
      `(network, variables)`.

    Raises:
      FileNotFoundError, ValueError: as `load`, or if it does not hold that.
      ImportError: if the package onnx is missing.
    """
    path = _file(path)
    description, arrays = _read(path)
    if _SOURCE not in arrays:
        raise ValueError(
            f"{path}: does not hold the trained network; pass load the network, traced "
            "again"
        )
    return _from_source(arrays[_SOURCE].tobytes(), str(path), description["nodes"])


def _from_source(content: bytes, place: str, nodes: list[dict[str, Any]]):
    from jaxburst.io.onnx import from_onnx, parse

    try:
        proto = parse(content)
        function, variables = from_onnx(proto)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    held = {tensor.name for tensor in proto.graph.initializer}
    names = [value.name for value in proto.graph.input if value.name not in held]
    return trace(function, variables, example(nodes, names)), variables


def example(nodes: list[dict[str, Any]], names: list[str] | None = None):
    """Zeros like one image of each input; one array, or a dictionary of several.

    Args:
      nodes: from `describe`.
      names: of the inputs; those of their nodes if left out.
    """
    rows = [row for row in nodes if row["kind"] == "input"]
    arrays = []
    for row in rows:
        shape = [int(size) for size in literal_eval(row["shape"])[1:]]
        kind = row["details"].get("dtype", "float32")
        arrays.append(np.zeros((1, *shape), kind))
    if len(rows) == 1:
        return arrays[0]
    names = names or [row["name"] for row in rows]
    return dict(zip(sorted(names), arrays, strict=True))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    return unseal(
        path, FORMAT, nodes=list, outputs=list, neuron=dict, settings=dict, parts=dict,
        notes=dict,
    )  # fmt: skip


def _file(path: str | os.PathLike) -> Path:
    place = as_path(path)
    return place / "network.safetensors" if place.is_dir() else place


def _settings() -> list[str]:
    """The fields of a `Model` beside its network and neuron."""
    names = [field.name for field in dataclasses.fields(Model)]
    return [name for name in names if name not in ("network", "neuron")]


# Neurons as plain data.


def _encoded(value, where: str):
    if isinstance(value, Neuron):
        own: Any = value  # all kinds of neurons are dataclasses
        own = {
            field.name: _encoded(getattr(value, field.name), f"{where}.{field.name}")
            for field in dataclasses.fields(own)
            if field.init
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
    role: Any = node.role
    details = {}
    params = getattr(role, "params", {})
    for name, value in params.items():
        if _is_data(value):
            details[name] = str(_as_tuple(value))
    match role:
        case Input():
            details["dtype"] = role.dtype
        case Rectifier():
            details["cap"] = str(role.cap)
        case Synapse():
            details["kernel"] = str(role.kernel)
        case Wire():
            held = [repr(v) for v in role.operands if isinstance(v, Constant)]
            details["constants"] = ", ".join(held)
    kind = type(role).__name__.lower()
    if primitive := getattr(node.role, "primitive", None):
        kind = f"{kind} ({primitive.name})"
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
