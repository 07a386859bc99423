"""Integrate-and-fire networks as NIR graphs, for neuromorphic tools, and back.

    to_nir(model, spiking, "network.nir")
    model, spiking = from_nir("network.nir")

NIR (Pedersen et al., "Neuromorphic Intermediate Representation", Nature Communications
2024) describes networks of neurons in continuous time. Here a neuron is `IF` and

* inputs and maps have their channels first, and no axis for images or time;
* the input is presented at every time step, and the output is the mean of all steps;
* spikes are ones: thresholds move into the weights that receive the spikes.

NIR has no word for how a potential is reset, nor for how many spikes a step may have.
Both are in the metadata of every `IF`, as `reset` and `max_spikes_per_step`: others do
not read them, so look at what they make of it. sinabs, for one, takes away the charge
of any number of spikes, and keeps potentials above -θ; make it the same neurons by

    for layer in network.modules():
        if isinstance(layer, sinabs.layers.IAFSqueeze):
            layer.spike_fn, layer.min_v_mem = sinabs.activation.SingleSpike, None
"""

from __future__ import annotations

import dataclasses
import inspect
import io
import itertools
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxburst.checks import door
from jaxburst.convert import Spiking, check_spiking, convert
from jaxburst.graph import (
    Constant,
    Graph,
    Input,
    Neuron,
    Node,
    Operand,
    Pool,
    Synapse,
    Wire,
    apply_wire,
    read,
)
from jaxburst.io._operations import convolution
from jaxburst.io.artefact import free
from jaxburst.io.files import as_path, write
from jaxburst.model import Model
from jaxburst.neurons import Burst
from jaxburst.tracing import trace

try:
    import nir
except ImportError as error:
    raise ImportError(
        'to_nir and from_nir need the package nir: pip install "jaxburst[nir]"'
    ) from error

MOVES = ("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "copy")
MOVES += ("slice", "rev", "gather", "pad", "dynamic_slice")
RESETS: dict[Any, str] = {Burst(1, reset=how): how for how in ("subtract", "zero")}
"""The neurons that NIR has a word for, and how each is reset."""


def as_it_is() -> dict[str, Any]:
    """How graphs are made and read: without the check that came after nir 1.0.4. It
    takes kernels to be square and without groups, and knows no scalars, which other
    tools write.

    Example:
      >>> nodes = {"i": nir.Input({"input": [2]}), "o": nir.Output({"output": [2]})}
      >>> len(nir.NIRGraph(nodes, [("i", "o")], **as_it_is()).nodes)
      2
    """
    checks = "type_check" in inspect.signature(nir.NIRGraph).parameters
    return {"type_check": False} if checks else {}


class Unspoken(ValueError):
    """Something that NIR has no words for; the message says what to do instead.

    Example:
      >>> to_nir(model, spiking, "bursts.nir")
      Traceback (most recent call last):
      jaxburst.io.nir.Unspoken: ...
    """


# Writing.


@door
def to_nir(model: Model, spiking: Spiking, path: str | os.PathLike) -> Path:
    """Writes a network of integrate-and-fire neurons as a NIR graph.

    Neurons that start at 0 and send at most one spike at a step; convolutions of one
    and two dimensions, products, sums (residual networks), and pooling by sums and
    means. The reset is in the metadata, see above. Newer versions of the package nir
    check graphs as if all kernels were square, without groups: other tools read those
    that are not by `nir.read(path, type_check=False)`.

    Args:
      model: its neuron must be `Burst(1)`, reset by subtraction or to zero.
      spiking: its converted weights, with `initial=0`.
      path: the file; a NIR graph that is there is replaced, all or nothing.

    Returns:
      The path.

    Raises:
      ImportError: if the package nir is missing.
      FileExistsError, OSError: if the file cannot be written, before the work.
      Unspoken: for what NIR cannot say, with the alternative.
      ValueError: for weights that are not the network's.

    Example:
      >>> import tempfile
      >>> import jaxburst as jb
      >>> function = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1]
      >>> weights = (np.eye(3, dtype="f"), np.ones((3, 2), "f"))
      >>> network = jb.trace(function, weights, np.ones((1, 3), "f"))
      >>> spiking = jb.convert(network, weights, {"relu0": 1.0}, initial=0)
      >>> path = tempfile.mkdtemp() + "/network.nir"
      >>> sorted(nir.read(to_nir(jb.Model(network, jb.Burst(1)), spiking, path)).nodes)
      ['input', 'n0', 'n1', 'output', 'relu0']
    """
    path = free(path, is_nir, "a NIR graph")
    _check(model, spiking)
    writer = _Writer(model, spiking)
    outputs = read(model.network.graph, writer.visit, *model.network.graph.of(Input))
    writer.finish(outputs)
    content = io.BytesIO()
    # Simulators that go depth first then meet a sum after all that it is made of.
    place = {name: i for i, name in enumerate(writer.nodes)}
    edges = sorted(writer.edges, key=lambda edge: [place[name] for name in edge])
    graph = nir.NIRGraph(writer.nodes, edges, **as_it_is())
    nir.write(content, graph)  # pyright: ignore[reportArgumentType] (any file will do)
    return write(path, content.getvalue())


def is_nir(path: Path) -> bool:
    """Whether a file is a NIR graph.

    Example:
      >>> import pathlib
      >>> pathlib.Path("notes.txt").write_text("no graph")
      8
      >>> is_nir(pathlib.Path("notes.txt"))
      False
    """
    try:
        nir.read(str(path), **as_it_is())
    except Exception:  # of HDF5
        return False
    return True


def describe(source: str | os.PathLike | Any) -> dict[str, Any]:
    """What a NIR graph, or its file, holds: its nodes in order, and how many edges.

    Raises:
      FileNotFoundError, ValueError: as `from_nir`.

    Example:
      >>> node = nir.Affine(np.eye(2), np.zeros(2))
      >>> ends = {"i": nir.Input({"input": [2]}), "o": nir.Output({"output": [2]})}
      >>> graph = nir.NIRGraph(ends | {"n": node}, [("i", "n"), ("n", "o")])
      >>> describe(graph)["nodes"][-1]
      {'name': 'n', 'kind': 'Affine', 'output': [2]}
    """
    nodes, edges = _unnested(_opened(source))
    kept = [(name, node) for name, node in nodes.items() if node is not None]
    rows = [
        {"name": name, "kind": type(node).__name__, "output": _size(node)}
        for name, node in kept
    ]
    return {"nodes": rows, "edges": len(edges)}


def _size(node) -> list[int]:
    (shape,) = (node.output_type or {"output": None}).values()
    return [] if shape is None else [int(n) for n in np.atleast_1d(shape)]


def _check(model: Model, spiking: Spiking) -> None:
    """Refuses what NIR has no word for."""
    check_spiking(model.network, spiking)
    for name in model.network.neurons:
        own = model.neuron.at(name)
        if own not in RESETS:
            raise Unspoken(
                f"to_nir: {name}: NIR has no word for {own!r}, graded or negative "
                "spikes: convert for Burst(1), or take the network elsewhere as an "
                "artefact (jaxburst.export)"
            )
        _, initial, bias = map(np.asarray, spiking[name])
        if initial.any():
            raise Unspoken(
                f"to_nir: {name}: NIR's neurons start at 0, these at {initial.max():g} "
                "of their threshold: convert(..., initial=0)"
            )
        if bias.any():
            raise Unspoken(
                f"to_nir: {name}: NIR has no word for a correction of the current; "
                "convert without"
            )
    if model.precision != "float32":
        raise Unspoken("to_nir: Model: precision must be 'float32' in NIR")


class _Value(NamedTuple):
    """What a node gives, as NIR has it.

    Attributes:
      terms: NIR nodes whose outputs add up to it.
      shape: in NIR, `(C, ...)`.
      ids: in the node's own layout, one image: 1 + the place in NIR's; 0 for a zero.
      unit: what a number at a place is worth, of NIR's shape; None for 1.
    """

    terms: tuple[str, ...]
    shape: tuple[int, ...]
    ids: np.ndarray
    unit: np.ndarray | None = None

    @property
    def axes(self) -> tuple[int, ...] | None:
        """The node's axes in the order of NIR's, if it is the same map."""
        rank = self.ids.ndim
        order = itertools.permutations(reversed(range(rank)), len(self.shape))
        return next(filter(self.lies, order), None)

    def lies(self, axes: Sequence[int]) -> bool:
        """Whether it is the same map, the node's axes in this order."""
        rest = [i for i in range(self.ids.ndim) if i not in axes]
        moved = self.ids.transpose(*axes, *rest)
        counted = np.arange(1, self.ids.size + 1)
        shape = (*self.shape, *[1] * len(rest))
        return moved.shape == shape and (moved.reshape(-1) == counted).all()


class _Writer:
    def __init__(self, model: Model, spiking: Spiking):
        self.model, self.spiking = model, spiking
        self.graph: Graph = model.network.graph
        self.nodes: dict[str, Any] = {}
        self.edges: set[tuple[str, str]] = set()

    def visit(self, node: Node, *values):
        match node.role:
            case Input():
                return self._input(node)
            case Synapse() if node.role.is_conv:
                return self._convolution(node, *values)
            case Synapse():
                return self._product(node, *values)
            case Wire():
                return self._wire(node, *values)
            case Neuron():
                return self._neuron(node, *values)
            case Pool():
                what = "lateral inhibition (max pooling)"
                _refuse(node, what, "train with average pooling")
        _refuse(node, f"a {type(node.role).__name__.lower()}", "train a ReLU network")

    def finish(self, outputs: Sequence[_Value]) -> None:
        for i, (name, value) in enumerate(
            zip(self.graph.outputs, outputs, strict=True)
        ):
            value = self._ones(self.graph[name], value)
            shape = np.array(value.shape)
            title = "output" if len(outputs) == 1 else f"output{i}"
            self._add(title, nir.Output({"output": shape}), value.terms)

    def _add(self, name: str, made, sources: tuple[str, ...]) -> str:
        name = re.sub(r"\W+", "_", name).strip("_") or "n"
        if name[0].isdigit():
            name = f"n{name}"
        unique, count = name, 1
        while unique in self.nodes:
            unique, count = f"{name}_{count}", count + 1
        self.nodes[unique] = made
        self.edges |= {(source, unique) for source in sources}
        return unique

    def _input(self, node: Node) -> _Value:
        axes = _channels_in_front(self.graph, node.name, range(len(node.shape)))
        axes = [axis for axis in axes or range(len(node.shape)) if axis]
        shape = tuple(node.image_shape[axis] for axis in axes)
        made = nir.Input({"input": np.array(shape)})
        title = "input" if len(self.graph.of(Input)) == 1 else node.name
        name = self._add(title, made, ())
        ids = np.arange(1, np.prod(shape) + 1).reshape(1, *shape)
        return _Value((name,), shape, ids.transpose(0, *np.argsort(axes) + 1))

    def _neuron(self, node: Node, value: _Value) -> _Value:
        if node.role != Neuron():
            _refuse(node, "a neuron that is no plain ReLU", "train with ReLU")
        if value.unit is not None and not (value.unit > 0).all():
            value = self._ones(node, value)
        if not _is_whole(value):
            _refuse(node, "neurons for a part of a map", "leave that part out before")
        theta = np.asarray(self.spiking[node.name].theta)
        full = np.broadcast_to(theta, node.image_shape[1:])
        theta = self._placed(node, value, full)
        reset = RESETS[self.model.neuron.at(node.name)]
        made = nir.IF(
            r=np.ones_like(theta),
            v_threshold=theta if value.unit is None else theta / value.unit,
            metadata={"reset": reset, "max_spikes_per_step": 1},
        )
        name = self._add(node.name, made, value.terms)
        return value._replace(terms=(name,), unit=theta)

    def _placed(self, node: Node, value: _Value, numbers) -> np.ndarray:
        """Numbers in a node's layout, or that broadcast to it, in NIR's shape."""
        shape = value.ids.shape
        full = np.broadcast_to(numbers, shape)
        placed = np.zeros(int(np.prod(value.shape)), full.dtype)
        there = value.ids > 0
        placed[value.ids[there] - 1] = full[there]
        if (placed[value.ids[there] - 1] != full[there]).any():
            _refuse(node, "one number with several scales", "leave the scales out")
        return placed.reshape(value.shape)

    def _convolution(self, node: Node, value: _Value) -> _Value:
        role, numbers = node.role, node.role.params["dimension_numbers"]
        params = role.params
        batch, *axes = numbers.lhs_spec
        if not value.lies(axes):
            _refuse(
                node, "a convolution over numbers that were rearranged", "keep maps"
            )
        if len(axes) not in (2, 3):
            _refuse(node, f"a convolution of {len(axes) - 1} dimensions", "use 1 or 2")
        if set(params["lhs_dilation"]) != {1} or params["batch_group_count"] != 1:
            _refuse(node, "a transposed convolution", "resize, then convolve")
        kernel, bias = map(np.asarray, self.spiking[node.name])
        kernel = kernel.transpose(numbers.rhs_spec)
        out = node.image_shape[numbers.out_spec[1]]
        bias = np.broadcast_to(bias.reshape(-1), (out,))
        sides = tuple(node.image_shape[axis] for axis in numbers.out_spec[2:])
        value = self._filtered(
            node, value, kernel, bias, sides, params["window_strides"],
            params["padding"], params["rhs_dilation"], params["feature_group_count"],
        )  # fmt: skip
        ids = value.ids.reshape(1, *value.shape)
        return value._replace(ids=ids.transpose(np.argsort(numbers.out_spec)))

    def _filtered(
        self, node, value, kernel, bias, sides, strides, padding, dilation, groups
    ) -> _Value:
        """A convolution of a map `(C, ...)`; `ids` of what it returns are flat."""
        unit = self._per_channel(node, value)
        if unit is not None:
            rows = unit.reshape(groups, 1, -1)
            rows = np.repeat(rows, len(kernel) // groups, 1).reshape(len(kernel), -1)
            kernel = kernel * rows.reshape(*rows.shape, *[1] * (kernel.ndim - 2))
        kernel, pads = _symmetric(node, kernel, padding, dilation)
        one = kernel.ndim == 3
        size, stride, pad, apart = (
            int(numbers[0]) if one else tuple(map(int, numbers))
            for numbers in (value.shape[1:], strides, pads, dilation)
        )
        kind: Any = nir.Conv1d if one else nir.Conv2d
        made = kind(size, kernel, stride, pad, apart, int(groups), np.array(bias))
        name = self._add(node.name, made, value.terms)
        shape = (len(kernel), *sides)
        return _Value((name,), shape, np.arange(1, np.prod(shape) + 1))

    def _product(self, node: Node, value: _Value) -> _Value:
        role = node.role
        if role.primitive.name != "dot_general":
            _refuse(node, role.primitive.name, "use convolutions and products")
        of_data, of_kernel = role.contracted
        _, batched = role.params["dimension_numbers"]
        before = self.graph[node.inputs[0]]
        free_axes = [i for i in range(value.ids.ndim) if i not in of_data]
        if any(batched) or free_axes != [before.batch_axis]:
            _refuse(node, "a product at every place of a map", "use a 1x1 convolution")
        kernel, bias = map(np.asarray, self.spiking[node.name])
        rest = [i for i in range(kernel.ndim) if i not in of_kernel]
        kernel = kernel.transpose(*rest, *of_kernel)
        out = int(np.prod(kernel.shape[: len(rest)]))
        kernel = kernel.reshape(out, -1)
        bias = np.broadcast_to(bias, node.image_shape).reshape(-1)
        ids = value.ids.transpose(*of_data, *free_axes).reshape(-1)
        matrix = np.zeros((out, int(np.prod(value.shape))), kernel.dtype)
        np.add.at(matrix.T, ids[ids > 0] - 1, kernel[:, ids > 0].T)
        if value.unit is not None:
            matrix = matrix * value.unit.reshape(-1)
        value = self._flat(value)
        name = self._add(node.name, nir.Affine(matrix, np.array(bias)), value.terms)
        ids = np.arange(1, out + 1).reshape(node.image_shape)
        return _Value((name,), (out,), ids)

    def _flat(self, value: _Value) -> _Value:
        if len(value.shape) == 1:
            return value
        shape = {"input": np.array(value.shape)}
        terms = tuple(
            self._add(f"{name}_flat", nir.Flatten(shape, 0, -1), (name,))
            for name in value.terms
        )
        return value._replace(terms=terms, shape=(int(np.prod(value.shape)),))

    def _wire(self, node: Node, *values: _Value) -> _Value:
        role, name = node.role, node.role.primitive.name
        if not role.affine:
            _refuse(node, "what is not affine", "compute it before")
        if len(values) == 2 and name in ("add", "add_any", "sub"):
            return self._sum(node, *values, sign=-1 if name == "sub" else 1)
        if len(values) != 1:
            _refuse(node, name, "add signals instead")
        (value,) = values
        if name in MOVES:
            ids = apply_wire(node, (), jnp.asarray(value.ids), batch=1)
            return value._replace(ids=np.asarray(ids))
        if name == "neg":
            return self._scaled(node, value, -1.0)
        if name in ("mul", "div"):
            held = self._held(node)
            if name == "div" and role.operands[0] is not None:
                _refuse(node, "a quotient", "multiply")
            return self._scaled(node, value, 1 / held if name == "div" else held)
        if name in ("add", "add_any", "sub"):
            held = self._held(node)
            if not held.any():
                return value
            if name == "sub" and role.operands[0] is not None:
                value, held = self._scaled(node, value, -1.0), -held
            held = -held if name == "sub" else held
            return self._affine(node, value, self._placed(node, value, held))
        if name in ("reduce_window_sum", "reduce_sum"):
            return self._pooled(node, value)
        _refuse(node, name, "add, scale and pool instead")

    def _held(self, node: Node) -> np.ndarray:
        """The array that a wire holds."""
        (held,) = (held for held in node.role.operands if held is not None)
        if isinstance(held, Constant):
            return held.value
        assert isinstance(held, Operand)
        return np.asarray(self.spiking[node.name][held.index])

    def _scaled(self, node: Node, value: _Value, by) -> _Value:
        unit = self._placed(node, value, np.asarray(by))
        before = 1 if value.unit is None else value.unit
        return value._replace(unit=before * unit)

    def _sum(self, node: Node, one: _Value, other: _Value, sign: int) -> _Value:
        if sign < 0:
            other = self._scaled(node, other, -1.0)
        if one.ids.shape != other.ids.shape or (one.ids != other.ids).any():
            _refuse(node, "a sum of maps in different layouts", "give both one layout")
        units = [1 if value.unit is None else value.unit for value in (one, other)]
        if set(one.terms) & set(other.terms):
            one, other = self._ones(node, one), self._ones(node, other)
        elif np.any(units[0] != units[1] * np.ones(one.shape)):
            # Spikes and a current, as in a residual network: the current takes the unit
            # of the spikes, so that nothing stands between them and their neuron.
            names = node.inputs
            if self._rescaled(names[1], other, one.unit):
                other = other._replace(unit=one.unit)
            elif self._rescaled(names[0], one, other.unit):
                one = one._replace(unit=other.unit)
            else:
                one, other = self._ones(node, one), self._ones(node, other)
        if set(one.terms) & set(other.terms):
            return self._scaled(node, one, 2.0)
        return one._replace(terms=(*one.terms, *other.terms))

    def _rescaled(self, name: str, current: _Value, unit: np.ndarray | None) -> bool:
        """Gives a current of a node another unit, if that is all synapses' own."""
        if unit is None or current.unit is not None or not (unit > 0).all():
            return False
        rows = unit.reshape(len(unit), -1)
        if (len(unit.shape) > 1 and (rows != rows[:, :1]).any()) or not self._own(name):
            return False
        for term in current.terms:
            made = self.nodes[term]
            scale = rows[:, 0].reshape(-1, *[1] * (made.weight.ndim - 1))
            made.weight, made.bias = made.weight / scale, made.bias / rows[:, 0]
        return True

    def _own(self, name: str) -> bool:
        """Whether a node is the current of synapses that nobody else reads."""
        node = self.graph[name]
        users = sum(n.inputs.count(name) for n in self.graph.nodes)
        if users != 1 or name in self.graph.outputs:
            return False
        if isinstance(node.role, Wire):
            adds = node.role.primitive.name in ("add", "add_any", *MOVES)
            return adds and all(map(self._own, node.inputs))
        return isinstance(node.role, Synapse)

    def _pooled(self, node: Node, value: _Value) -> _Value:
        axes, params = value.axes, node.role.params
        if axes is None or len(axes) != 3:
            _refuse(node, "a sum of numbers that are no map", "use a layer")
        rank = value.ids.ndim
        if node.role.primitive.name == "reduce_sum":
            if {i % rank for i in params["axes"]} != set(axes[1:]):
                _refuse(node, "a sum over some axes of a map", "sum over whole maps")
            window = strides = value.shape[1:]
            padding, dilation = ((0, 0), (0, 0)), (1, 1)
        else:
            every = params["window_dimensions"]
            if every[axes[0]] != 1 or set(params["base_dilation"]) != {1}:
                _refuse(node, "sums over channels, or with gaps", "pool over maps")
            keys = "window_dimensions window_strides padding window_dilation".split()
            window, strides, padding, dilation = (
                tuple(params[key][axis] for axis in axes[1:]) for key in keys
            )
        sides = tuple(
            (size + sum(pads) - (width - 1) * apart - 1) // step + 1
            for size, pads, width, step, apart in zip(
                value.shape[1:], padding, window, strides, dilation, strict=True
            )
        )
        channels = value.shape[0]
        if np.any(padding) or set(dilation) != {1}:  # a sum by another name
            kind = np.float32 if value.unit is None else value.unit.dtype
            kernel = np.ones((channels, 1, *window), kind)
            found = self._filtered(
                node, value, kernel, np.zeros(channels, kind), sides, strides, padding,
                dilation, channels,
            )  # fmt: skip
        else:
            unit = self._per_channel(node, value)
            made = nir.SumPool2d(np.array(window), np.array(strides), np.zeros(2, int))
            name = self._add(node.name, made, value.terms)
            found = _Value((name,), (channels, *sides), np.empty(0))
            if unit is not None:
                full = np.broadcast_to(unit.reshape(-1, 1, 1), found.shape)
                found = found._replace(unit=full)
        ids = np.arange(1, np.prod(found.shape) + 1).reshape(found.shape)
        if node.role.primitive.name == "reduce_sum":
            return found._replace(ids=ids.reshape(node.image_shape))
        rest = [i for i in range(rank) if i not in axes]
        ids = ids.reshape(*found.shape, *[1] * len(rest))
        return found._replace(ids=ids.transpose(np.argsort([*axes, *rest])))

    def _per_channel(self, node: Node, value: _Value) -> np.ndarray | None:
        """The unit of every channel of a map, `[C]`."""
        if value.unit is None:
            return None
        rows = value.unit.reshape(value.shape[0], -1)
        if (rows != rows[:, :1]).any():
            _refuse(node, "a scale for every place of a map", "scale channels")
        return rows[:, 0]

    def _ones(self, node: Node, value: _Value) -> _Value:
        """The same with a unit of 1: scaled by a node of its own, where it has none."""
        if value.unit is None or (value.unit == 1).all():
            return value._replace(unit=None)
        return self._affine(node, value, np.zeros_like(value.unit))

    def _affine(self, node: Node, value: _Value, shift: np.ndarray) -> _Value:
        """Every channel by its unit, and a shift."""
        if not _is_whole(value):
            _refuse(node, "a scale or shift for a part of a map", "use a whole one")
        name, channels = f"{node.name}_scale", value.shape[0]
        scale = np.ones_like(shift) if value.unit is None else value.unit
        if len(value.shape) == 1:
            made = nir.Affine(np.diag(scale), shift)
            terms = (self._add(name, made, value.terms),)
            return value._replace(terms=terms, unit=None)
        rows = shift.reshape(channels, -1)
        if (rows != rows[:, :1]).any():
            _refuse(node, "a shift for every place of a map", "shift channels")
        rank = len(value.shape) - 1
        # Not in groups of one channel, which sinabs does not read.
        kernel = np.eye(channels, dtype=scale.dtype).reshape(-1, channels, *[1] * rank)
        named = dataclasses.replace(node, name=name)
        found = self._filtered(
            named, value, kernel, rows[:, 0], value.shape[1:], (1,) * rank,
            ((0, 0),) * rank, (1,) * rank, 1,
        )  # fmt: skip
        return found._replace(ids=value.ids)


def _refuse(node: Node, what: str, instead: str) -> NoReturn:
    place = f", at {node.source}" if node.source else ""
    raise Unspoken(
        f"to_nir: {node.name}{place}: NIR has no word for {what}: {instead}, or take "
        "the network elsewhere as an artefact (jaxburst.export)"
    )


def _is_whole(value: _Value) -> bool:
    """Whether every number is there once."""
    count = int(np.prod(value.shape))
    found = value.ids.reshape(-1)
    return len(found) == count and (np.sort(found) == np.arange(1, count + 1)).all()


def _channels_in_front(graph: Graph, name: str, axes) -> list[int] | None:
    """A node's axes as the first convolution that reads it has them: batch, channels,
    sides."""
    for node in graph.nodes:
        if name not in node.inputs:
            continue
        if isinstance(node.role, Synapse) and node.role.is_conv:
            return [axes[i] for i in node.role.params["dimension_numbers"].lhs_spec]
        if isinstance(node.role, Wire):
            if node.role.primitive.name == "transpose":
                moved = [axes[i] for i in node.role.params["permutation"]]
            elif len(node.shape) == len(axes):
                moved = axes
            else:
                continue
            found = _channels_in_front(graph, node.name, moved)
            if found:
                return found
    return None


def _symmetric(node: Node, kernel: np.ndarray, padding, dilation):
    """The same convolution with as much padding before as after: taps of zeros make up
    for the rest."""
    pads, more = [], [(0, 0), (0, 0)]
    for (low, high), apart in zip(padding, dilation, strict=True):
        most = max(low, high)
        if min(low, high) < 0 or (most - low) % apart or (most - high) % apart:
            _refuse(node, f"a padding of {padding}", "pad evenly")
        pads.append(most)
        more.append(((most - low) // apart, (most - high) // apart))
    return np.pad(kernel, more), pads


# Reading.


@door(source="anything")
def from_nir(
    source: str | os.PathLike | Any, *, neuron: Burst | None = None
) -> tuple[Model, Spiking]:
    """Reads a network of integrate-and-fire neurons from a NIR graph.

    Args:
      source: a file, or a graph in memory.
      neuron: the kind of its neurons, where the graph does not say, as only `to_nir`
        does: `Burst(1, reset="zero")` is what NIR's equations say, `Burst(None)` what
        sinabs means, `Burst(1)` what most others do.

    Returns:
      `(model, spiking)`; the network takes its inputs channels first, `[B, C, ...]`,
      and has the graph's names. A neuron fires at its threshold, not only above it.

    Raises:
      FileNotFoundError: if there is no such file.
      ImportError: if the package nir is missing.
      ValueError: for a damaged file, other kinds of nodes (a leak, for one), recurrent
        graphs, and neurons of which nobody says how they reset.

    Example:
      >>> ones = np.ones(2)
      >>> neuron = nir.IF(r=ones, v_threshold=ones / 2, v_reset=0 * ones)
      >>> ends = {"i": nir.Input({"input": [2]}), "o": nir.Output({"output": [2]})}
      >>> nodes = ends | {"w": nir.Affine(np.eye(2), np.zeros(2)), "n": neuron}
      >>> edges = [("i", "w"), ("w", "n"), ("n", "o")]
      >>> model, spiking = from_nir(nir.NIRGraph(nodes, edges), neuron=Burst(1))
      >>> spiking[model.network.neurons[0]].theta.item()
      0.5
    """
    graph = _opened(source)
    nodes, edges = _unnested(graph)
    order = _in_order(nodes, edges)
    inputs = [name for name in order if isinstance(nodes[name], nir.Input)]
    outputs = [name for name in order if isinstance(nodes[name], nir.Output)]
    if not inputs or not outputs:
        raise ValueError("from_nir: expected an Input and an Output, found none")
    units = {name: _threshold(name, nodes[name]) for name in order
             if isinstance(nodes[name], nir.IF | nir.LIF)}  # fmt: skip
    neuron = _kind(nodes, units, neuron)
    variables = {
        name: {
            key: jnp.asarray(_array(getattr(nodes[name], key)))
            for key in ("weight", "bias", "scale")
            if hasattr(nodes[name], key)
        }
        for name in order
    }
    variables = {name: own for name, own in variables.items() if own}

    def function(variables, x):
        given = [x] if len(inputs) == 1 else [x[name] for name in inputs]
        values = dict(zip(inputs, given, strict=True))
        for name in order:
            arriving = [values[a] for a, b in edges if b == name]
            if not arriving:
                continue
            total = sum(arriving[1:], arriving[0])
            # NIR broadcasts, whatever the user of JAX has forbidden.
            with jax.named_scope(name), jax.numpy_rank_promotion("allow"):
                own = variables.get(name, {})
                values[name] = _applied(name, nodes[name], own, total, units)
        found = {name: values[name] for name in outputs}
        return found if len(outputs) > 1 else found[outputs[0]]

    def example(name: str) -> np.ndarray:
        shape = nodes[name].input_type["input"]
        return np.zeros((1, *(int(n) for n in shape)), np.float32)

    examples: Any = {name: example(name) for name in inputs}
    network = trace(
        function, variables, examples if len(inputs) > 1 else examples[inputs[0]]
    )
    read_by = set(outputs)  # and, from the back, whoever these read
    for name in reversed(order):
        read_by |= {a for a, b in edges if b == name and name in read_by}
    living = [units[name] for name in order if name in units and name in read_by]
    thresholds = {
        name: unit.theta for name, unit in zip(network.neurons, living, strict=True)
    }
    spiking = convert(network, variables, thresholds, initial=0)
    return Model(network, neuron), spiking


class _Unit(NamedTuple):
    """Threshold of a population, and what scales its current: `v_threshold` and `r`."""

    theta: np.ndarray
    scale: np.ndarray | None
    reset: str | None
    most: int | None


def _opened(source):
    if isinstance(source, nir.NIRGraph):
        return source
    path = as_path(source, "source")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected a NIR graph")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            return nir.read(str(path), **as_it_is())
    except Exception as error:  # of HDF5
        raise ValueError(
            f"{path}: cannot be read ({error}); it is damaged or no NIR graph: copy or "
            "write it again"
        ) from error


def _unnested(graph, prefix: str = "") -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Nodes and edges; graphs inside are taken apart."""
    nodes: dict[str, Any] = {}
    edges = []
    ends: dict[str, tuple[str, str]] = {}
    for name, node in graph.nodes.items():
        full = prefix + re.sub(r"\W+", "_", name)
        if isinstance(node, nir.NIRGraph):
            inner, between = _unnested(node, f"{full}_")
            first = [n for n in inner if isinstance(inner[n], nir.Input)]
            last = [n for n in inner if isinstance(inner[n], nir.Output)]
            if len(first) != 1 or len(last) != 1:
                raise ValueError(
                    f"from_nir: {full}: a graph inside must have one input and one "
                    f"output, found {len(first)} and {len(last)}"
                )
            inner[first[0]], inner[last[0]] = None, None  # they pass on what arrives
            nodes |= inner
            edges += between
            ends[name] = first[0], last[0]
        else:
            nodes[full] = node
            ends[name] = full, full
    for a, b in dict.fromkeys((str(a), str(b)) for a, b in graph.edges):
        if a not in ends or b not in ends:
            raise ValueError(f"from_nir: an edge from {a} to {b}: there are no such")
        edges.append((ends[a][1], ends[b][0]))
    return nodes, edges


def _in_order(nodes, edges) -> list[str]:
    """Nodes after those that they read."""
    order: list[str] = []
    left = dict.fromkeys(nodes)
    while left:
        ready = [n for n in left if not any(b == n and a in left for a, b in edges)]
        if not ready:
            raise ValueError(
                f"from_nir: {', '.join(left)} form a loop; recurrent graphs are not "
                "read"
            )
        for name in ready:
            order.append(name)
            del left[name]
    return order


def _array(value) -> np.ndarray:
    """Of the file, or a tensor of PyTorch's."""
    value = np.asarray(value.detach() if hasattr(value, "detach") else value)
    kind = value.dtype if jax.config.read("jax_enable_x64") else np.float32
    return value.astype(kind) if value.dtype.kind == "f" else value


def _threshold(name: str, node) -> _Unit:
    theta, r = _array(node.v_threshold), _array(node.r)
    if isinstance(node, nir.LIF):
        # An integrate-and-fire neuron, as snnTorch writes it: what does not leak has an
        # endless time constant, and as large a resistance.
        if not np.isinf(_array(node.tau)).all() or _array(node.v_leak).any():
            raise ValueError(
                f"from_nir: {name}: its potential leaks (tau = "
                f"{_array(node.tau).min():g}); only neurons that do not are read"
            )
        r = np.ones_like(theta)
    reset = _array(getattr(node, "v_reset", 0.0))
    if reset.any():
        raise ValueError(
            f"from_nir: {name}: resets to {reset.max():g}; only a reset to 0, or by "
            "subtraction, is known"
        )
    if not (theta > 0).all() or not (r > 0).all():
        raise ValueError(f"from_nir: {name}: a threshold or r is not greater than 0")
    about: dict[str, Any] = {
        key: _plain(value) for key, value in (node.metadata or {}).items()
    }
    said = about.get("reset"), about.get("max_spikes_per_step")
    rows = theta.reshape(len(theta), -1) if theta.ndim else theta.reshape(1, 1)
    if (r == 1).all() and (rows == rows[:, :1]).all():
        if (rows == rows[0, 0]).all():
            return _Unit(rows[0, 0], None, *said)
        return _Unit(rows[:, 0].reshape(-1, *[1] * (theta.ndim - 1)), None, *said)
    return _Unit(np.ones((), theta.dtype), r / theta, *said)


def _plain(value):
    value = value.decode() if isinstance(value, bytes) else value
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


def _kind(nodes, units: dict[str, _Unit], neuron: Burst | None) -> Burst:
    """The neuron that the graph says, or that was given."""
    if not units:
        found = sorted({type(n).__name__ for n in nodes.values() if n is not None})
        raise ValueError(f"from_nir: expected neurons (IF), found {', '.join(found)}")
    said = {(unit.reset, unit.most) for unit in units.values()}
    if len(said) > 1:
        raise ValueError(
            "from_nir: expected one kind of neuron, found (reset, most spikes per "
            f"step): {sorted(said, key=str)}"
        )
    ((reset, most),) = said
    if neuron is not None:
        return neuron
    if reset is None or most is None:
        raise ValueError(
            "from_nir: the graph does not say how its neurons reset, nor how many "
            "spikes a step may have: give neuron=Burst(1, reset='zero'), which is what "
            "NIR's equations say; Burst(None), what sinabs means; or Burst(1)"
        )
    return Burst(int(most), reset=reset)


def _applied(name: str, node, own, x, units: dict[str, _Unit]):
    """What a node makes of its current, one time step."""
    if node is None or isinstance(node, nir.Output):
        return x
    match type(node).__name__:
        case "IF" | "LIF":
            unit = units[name]
            if unit.scale is not None:
                return jax.nn.relu(x * unit.scale)
            return jax.nn.relu(x) / unit.theta
        case "Affine" | "Linear":
            return x @ own["weight"].T + own.get("bias", 0.0)
        case "Scale":
            return x * own["scale"]
        case "Flatten":
            start, end = (
                int(dim) + 1 if dim >= 0 else x.ndim + int(dim)
                for dim in (node.start_dim, node.end_dim)
            )
            middle = int(np.prod(x.shape[start : end + 1]))
            return x.reshape(*x.shape[:start], middle, *x.shape[end + 1 :])
        case "Conv1d" | "Conv2d":
            return _convolved(node, own, x)
        case "SumPool2d" | "AvgPool2d":
            sizes = node.kernel_size, node.stride, node.padding
            window, stride, pads = (_each(numbers, 2) for numbers in sizes)
            padding = ((0, 0), (0, 0), *((n, n) for n in pads))
            found = lax.reduce_window(
                x, np.zeros((), x.dtype), lax.add, (1, 1, *window), (1, 1, *stride),
                padding,
            )  # fmt: skip
            mean = type(node).__name__ == "AvgPool2d"
            return found / np.prod(window) if mean else found
    raise ValueError(
        f"from_nir: {name}: expected IF, Affine, Linear, Conv, SumPool2d, AvgPool2d, "
        f"Scale or Flatten, found {type(node).__name__}, which has no counterpart here"
    )


def _each(numbers, rank: int) -> list[int]:
    """A number for each side of a map."""
    return [int(n) for n in np.broadcast_to(_array(numbers), rank)]


def _convolved(node, own, x):
    rank, padding = x.ndim - 2, node.padding
    if isinstance(padding, str | bytes):
        padding = str(_plain(padding)).upper()
    else:
        padding = [(n, n) for n in _each(padding, rank)]
    strides, dilation = _each(node.stride, rank), _each(node.dilation, rank)
    kernel, bias = own["weight"], own["bias"]
    return convolution(x, kernel, bias, strides, padding, dilation, int(node.groups))
