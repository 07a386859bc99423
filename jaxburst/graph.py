"""A network as a flat graph: nodes in an order in which inputs come first.

A node has one of five roles, or is an input:

* `Synapse`: a kernel that receives spikes or the input; operations are counted there.
* `Wire`: moves and adds numbers. Affine; executed as the primitive it is.
* `Neuron`: a ReLU or any other function, which becomes a population of neurons.
* `Pool`: a maximum, over windows or axes.
* `Product`: of two signals, linear in each.

`read` visits nodes with the values of those they read. A reading (the conventional
network, a spiking time step, fan-outs, ...) is one function that is called for every
node:

    def visit(node, *values): ...
    outputs = read(graph, visit, *inputs)

Arrays that depend on the variables are not here; `Network.weights` makes them. So a
graph is hashable, and a static argument of jitted functions. Sizes of the batch are the
symbol `b` in shapes and parameters; `at_batch` puts a number there.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive

from jaxburst.checks import door
from jaxburst.kernels import convolution

__all__ = [
    "Constant",
    "Function",
    "Graph",
    "Input",
    "Neuron",
    "Node",
    "Operand",
    "Pool",
    "Product",
    "Synapse",
    "Wire",
    "over",
    "read",
]

Shape = tuple[Any, ...]


class Constant:
    """An array that belongs to the graph: equal and hashed by its content.

    Example:
      >>> Constant(np.ones(2)) == Constant([1.0, 1.0])
      True
    """

    def __init__(self, value):
        self.value = np.asarray(value)
        content = np.ascontiguousarray(self.value)
        digest = hashlib.sha256(content.tobytes()).hexdigest()[:16]
        self._text = f"Constant({self.value.dtype}{list(self.value.shape)}, {digest})"

    def __repr__(self) -> str:
        return self._text

    def __eq__(self, other) -> bool:
        return isinstance(other, Constant) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


@dataclasses.dataclass(frozen=True)
class Operand:
    """The array at `index` among a node's own weights.

    Example:
      >>> Operand(index=0)  # the first of the arrays that a wire holds
      Operand(index=0)
    """

    index: int


@dataclasses.dataclass(frozen=True)
class Input:
    """What the network is given: the inputs' leaves, in order.

    Example:
      >>> network.graph.of(Input)[0].role.dtype
      'float32'
    """

    dtype: str


@dataclasses.dataclass(frozen=True)
class Synapse:
    """A convolution or product with a kernel that depends on the variables.

    Attributes:
      primitive: `conv_general_dilated`, `dot_general`, or one that was registered, of
        which no axes are known.
      params: its parameters.
      data: the position of the signal among its two operands; the other is the kernel.
      kernel: the kernel's shape.

    Example:
      >>> network.graph["hidden"].role.kernel
      (2, 2)
    """

    primitive: Primitive
    params: dict
    data: int
    kernel: Shape

    @property
    def is_conv(self) -> bool:
        """Whether it is a convolution."""
        return self.primitive.name == "conv_general_dilated"

    @property
    def contracted(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The input's axes that are summed over channels, and the kernel's."""
        if self.is_conv:
            numbers = self.params["dimension_numbers"]
            return (numbers.lhs_spec[1],), (numbers.rhs_spec[1],)
        if self.primitive.name != "dot_general":
            return (), ()
        (left, right), _ = self.params["dimension_numbers"]
        return (left, right) if self.data == 0 else (right, left)

    @property
    def features(self) -> int | None:
        """The kernel's axis of output channels; None if it has several."""
        if self.is_conv:
            return self.params["dimension_numbers"].rhs_spec[0]
        if self.primitive.name != "dot_general":
            return None
        _, batch = self.params["dimension_numbers"]
        taken = (*self.contracted[1], *batch[1 - self.data])
        free = [axis for axis in range(len(self.kernel)) if axis not in taken]
        return free[0] if len(free) == 1 else None

    @property
    def feature_axis(self) -> int | None:
        """The output's axis of channels; None if there are several."""
        if self.is_conv:
            return self.params["dimension_numbers"].out_spec[1]
        if self.features is None:
            return None
        (left, _), (batched, _) = self.params["dimension_numbers"]
        if self.data == 1:
            return len(batched)
        return -1

    def apply(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
        """The synapse by definition, without a bias."""
        if self.is_conv:
            return convolution.convolve_anywhere(self.params, x, kernel)
        operands = (x, kernel) if self.data == 0 else (kernel, x)
        return self.primitive.bind(*operands, **self.params)


@dataclasses.dataclass(frozen=True)
class Wire:
    """An affine primitive.

    Attributes:
      primitive: what it is.
      params: its parameters.
      operands: one for each argument: None for a signal (they come in the order of the
        node's inputs), a `Constant`, or an `Operand` of the node's weights.
      affine: if not, it is part of the function of a population, or computed from the
        inputs alone (indices, comparisons, masks) and so constant over time.
      shapes: of operands that are the same for every image but must be there for each;
        None of the others.

    Example:
      >>> [node.name for node in network.graph.of(Wire)]
      []
    """

    primitive: Primitive
    params: dict
    operands: tuple[Any, ...]
    affine: bool = True
    shapes: tuple[Shape | None, ...] = ()


class Function(NamedTuple):
    """What a population stands for, `f(drive)`; that of a ReLU unless it is `other`.

    Attributes:
      cap: the largest activation of `min(max(x, 0), cap)`, if there is one.
      other: what another function makes of the drive, `[B, ...]` to `[B, ...]`.

    Example:
      >>> RELU(jnp.array([-1.0, 2.0])).tolist(), RELU.cap
      ([0.0, 2.0], None)
    """

    cap: float | None = None
    other: Callable[[jax.Array], jax.Array] | None = None

    def __call__(self, drive: jax.Array) -> jax.Array:
        """The activation."""
        if self.other is not None:
            return self.other(drive)
        x = jax.nn.relu(drive)
        return x if self.cap is None else jnp.minimum(x, x.dtype.type(self.cap))

    def shape(self, shape: tuple[int, ...], dtype) -> tuple[int, ...]:
        """The shape of the activation of a drive."""
        return jax.eval_shape(self.__call__, jax.ShapeDtypeStruct(shape, dtype)).shape


RELU = Function()


@dataclasses.dataclass(frozen=True)
class Neuron:
    """A population: of a ReLU, `min(max(x, 0), cap)`, or of any function of its drive.

    Attributes:
      cap: of a ReLU; None if there is no cap.
      function: another function than a ReLU: a graph whose one input is the drive, and
        whose nodes find their arrays under their names, as those of the network do.

    Example:
      >>> network.graph["relu0"].role.cap is None
      True
    """

    cap: float | None = None
    function: Graph | None = None


@dataclasses.dataclass(frozen=True)
class Pool:
    """The maximum of a signal over windows (`reduce_window_max`) or axes.

    Example:
      >>> len(network.graph.of(Pool))
      0
    """

    primitive: Primitive
    params: dict


@dataclasses.dataclass(frozen=True)
class Product:
    """Two signals multiplied: `mul`, `dot_general` or a convolution; linear in each.

    Example:
      >>> len(network.graph.of(Product))
      0
    """

    primitive: Primitive
    params: dict


Role = Input | Synapse | Wire | Neuron | Pool | Product


@dataclasses.dataclass(frozen=True)
class Node:
    """One node of a graph.

    Attributes:
      name: addresses it in every tree of the library.
      role: what it is.
      inputs: the names of the nodes it reads.
      shape: of its output, the symbol `b` where the batch enters.
      source: where it stands in the user's program.

    Example:
      >>> network.graph["out"].image_shape, network.graph["out"].batch_axis
      ((1, 1), 0)
    """

    name: str
    role: Any  # one of the roles: a reading knows which where it reads its fields
    inputs: tuple[str, ...]
    shape: Shape
    source: str = ""

    @cached_property
    def batch_axis(self) -> Any:
        """The axis in which the batch is; None if it is in none."""
        return next((i for i, n in enumerate(self.shape) if not is_number(n)), None)

    @cached_property
    def image_shape(self) -> tuple[int, ...]:
        """The shape of one image's part of the output, with 1 for the batch."""
        return at_batch(self.shape, 1)


@dataclasses.dataclass(frozen=True, eq=False)
class Graph:
    """Nodes in order, and which of them are the outputs.

    Example:
      >>> network.graph["relu0"].inputs, network.graph.outputs
      (('hidden',), ('out',))
    """

    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    @cached_property
    def fingerprint(self) -> str:
        """A hash of the structure, constants included."""
        text = repr([(n.name, n.role, n.inputs, n.shape) for n in self.nodes])
        return hashlib.sha256(f"{text}{self.outputs}".encode()).hexdigest()

    def __repr__(self) -> str:
        return f"Graph({len(self.nodes)} nodes, {self.fingerprint[:16]})"

    def __eq__(self, other) -> bool:
        return isinstance(other, Graph) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> dict[str, Node]:
        return {node.name: node for node in self.nodes}

    def of(self, *roles: type) -> tuple[Node, ...]:
        """The nodes of some roles, in order."""
        return tuple(node for node in self.nodes if isinstance(node.role, roles))

    @cached_property
    def weighing(self) -> tuple[Node, ...]:
        """All nodes that may have weights, those of functions included."""
        inner = [n.role.function for n in self.of(Neuron) if n.role.function]
        return (*self.nodes, *(node for graph in inner for node in graph.weighing))

    @cached_property
    def dynamic(self) -> frozenset[str]:
        """The nodes that change over time: neurons, and what depends on them."""
        found: set[str] = set()
        for node in self.nodes:
            if isinstance(node.role, Neuron) or found.intersection(node.inputs):
                found.add(node.name)
        return frozenset(found)

    @cached_property
    def channel_axes(self) -> dict[str, int]:
        """The axis of channels of every node's output; the last where it is unknown."""
        found: dict[str, int] = {}
        for node in self.nodes:
            axis = channel_axis(node, [found[name] for name in node.inputs], self)
            last = len(node.shape) - 1
            found[node.name] = last if axis is None else axis % (last + 1)
        return found

    @cached_property
    def ahead(self) -> dict[str, int]:
        """How many places stand before the images within the axis they share.

        `[3 b, C]` from `[3, b, C]` has 3, from `[b, 3, C]` it has 1.
        """
        found: dict[str, int] = {}
        for node in self.nodes:
            axis, before = node.batch_axis, None
            for name in node.inputs:
                if self[name].batch_axis is not None:
                    before = self[name]
                    break
            if axis is None or before is None or node.image_shape[axis] == 1:
                found[node.name] = 1
            elif getattr(node.role, "primitive", None) is lax.reshape_p:
                # As many numbers come after an image as before.
                old = before.batch_axis
                after = before.image_shape[old] // found[before.name]
                after *= math.prod(before.image_shape[old + 1 :])
                after //= math.prod(node.image_shape[axis + 1 :])
                found[node.name] = node.image_shape[axis] // max(after, 1)
            else:
                found[node.name] = found[before.name]
        return found

    @cached_property
    def senders(self) -> dict[str, tuple[str, ...]]:
        """Whose spikes reach each node through wires: neurons and pools, in order."""
        found: dict[str, tuple[str, ...]] = {}
        for node in self.nodes:
            names: list[str] = []
            for name in node.inputs:
                role = self[name].role
                own = isinstance(role, Neuron | Pool) and name in self.dynamic
                if own or isinstance(role, Wire):
                    names += [name] if own else found[name]
            found[node.name] = tuple(dict.fromkeys(names))
        return found


@door(inputs="anything")
def read(graph: Graph, visit: Callable[..., Any], *inputs) -> list:
    """Visits every node, with what the nodes it reads gave; returns the outputs'.

    Args:
      graph: the graph.
      visit: called as `visit(node, *values)`; of an input, with the input.
      inputs: one value for each `Input`.

    Raises:
      TypeError: for a number of inputs that the network does not take.

    Example:
      >>> # How deep the network is
      >>> read(network.graph, lambda node, *before: 1 + max(before, default=0), -1)
      [3]
    """
    given = iter(inputs)
    expected = len(graph.of(Input))
    if len(inputs) != expected:
        raise TypeError(f"the network takes {expected} inputs, found {len(inputs)}")
    values: dict[str, Any] = {}
    for node in graph.nodes:
        arguments = [values[name] for name in node.inputs]
        if isinstance(node.role, Input):
            arguments = [next(given)]
        values[node.name] = visit(node, *arguments)
    return [values[name] for name in graph.outputs]


def unknown(node: Node, reading: str) -> TypeError:
    """The error of a reading that does not know a role."""
    kind = type(node.role).__name__
    return TypeError(
        f"{node.name}: {reading} does not know what to do with a {kind}; a reading "
        "must answer for every role"
    )


def is_number(size) -> bool:
    """Whether a size is known; otherwise the batch is part of it."""
    return isinstance(size, int | np.integer)


def at_batch(value, batch: int) -> Any:
    """Replaces the symbol of the batch in shapes and parameters by another size."""
    if hasattr(value, "_evaluate"):  # a symbolic size
        found = value._evaluate({"b": batch})
        return int(found) if is_number(found) else found
    if isinstance(value, tuple):
        found = [at_batch(item, batch) for item in value]
        return type(value)(*found) if hasattr(value, "_fields") else tuple(found)
    if isinstance(value, dict):
        return {name: at_batch(item, batch) for name, item in value.items()}
    return value


FACTORS = ("mul", "div", "dot_general", "conv_general_dilated", "scatter-mul")
"""Wires that multiply by what they hold; others add it."""


def apply_wire(
    node: Node, weights: tuple, *values: jax.Array, batch: int, linear: bool = False
) -> jax.Array:
    """Executes a wire on charges.

    Args:
      node: the wire.
      weights: its own arrays.
      values: the signals.
      batch: number of images.
      linear: whether to leave constants out: what it makes of a change.

    Returns:
      The output.
    """
    role, signals = node.role, iter(values)
    kind = next((v.dtype for v in values if jnp.issubdtype(v.dtype, jnp.inexact)), None)
    name = role.primitive.name
    arguments = []
    for held in role.operands:
        if held is None:
            arguments.append(next(signals))
            continue
        value = weights[held.index] if isinstance(held, Operand) else held.value
        value = jnp.asarray(value)
        if jnp.issubdtype(value.dtype, jnp.inexact) and kind is not None:
            value = value.astype(kind)
            if linear and name not in FACTORS:
                value = jnp.zeros_like(value)
        arguments.append(value)
    for i, shape in enumerate(role.shapes):
        if shape is not None:
            arguments[i] = jnp.broadcast_to(arguments[i], at_batch(shape, batch))
    params = at_batch(role.params, batch)
    found = role.primitive.bind(*arguments, **params)
    return found[0] if role.primitive.multiple_results else found


def apply(node: Node, weights: dict, *values: jax.Array, batch: int) -> jax.Array:
    """What any node but an input makes of charges: the conventional network there.

    Args:
      node: the node.
      weights: of the whole network, `{name: arrays}`; of a synapse `(kernel, bias)`.
      values: the signals it reads.
      batch: number of images.

    Returns:
      Its output.

    Raises:
      TypeError: for another role.
    """
    match node.role:
        case Synapse():
            kernel, bias = weights[node.name]
            x = node.role.apply(values[0], kernel)
            return x + over(bias, x)
        case Wire():
            return apply_wire(node, weights.get(node.name, ()), *values, batch=batch)
        case Pool() | Product():
            return execute(node, *values, batch=batch)
        case Neuron():
            return stands_for(node, weights, batch)(values[0])
    raise unknown(node, "the conventional network")


def execute(node: Node, *values, batch: int) -> jax.Array:
    """The maximum that a pool stands for, or the product of two signals."""
    return node.role.primitive.bind(*values, **at_batch(node.role.params, batch))


def stands_for(node: Node, weights: dict, batch: int) -> Function:
    """What a population stands for.

    Args:
      node: the population.
      weights: of the whole network, `{name: arrays}`.
      batch: number of images.
    """
    graph = node.role.function
    if graph is None:
        return Function(node.role.cap)

    def visit(inner: Node, *values):
        if isinstance(inner.role, Input):
            return values[0]
        return apply(inner, weights, *values, batch=batch)

    return Function(None, lambda drive: read(graph, visit, drive)[0])


def images_first(
    graph: Graph, name: str, x: jax.Array, axis: int, *, back: bool = False
) -> jax.Array:
    """Values with the images as the leading part of the axis they share with others;
    or back from there."""
    ahead = graph.ahead[name]
    if ahead == 1:
        return x
    parts = ahead, x.shape[axis] // graph[name].image_shape[graph[name].batch_axis]
    parts = parts[::-1] if back else parts
    shape = (*x.shape[:axis], *parts, -1, *x.shape[axis + 1 :])
    return x.reshape(shape).swapaxes(axis, axis + 1).reshape(x.shape)


def over(value, x) -> jax.Array:
    """Gives a value that belongs to one image, `[...]`, the rank of `x`, `[B, ...]`.

    Example:
      >>> over(jnp.ones(3), jnp.ones((2, 4, 3))).shape
      (1, 1, 3)
    """
    value = jnp.asarray(value)
    return value.reshape((1,) * (x.ndim - value.ndim) + value.shape)


_SAME_RANK = frozenset(
    """add sub mul div neg add_any pad rev copy slice reduce_window_sum
    reduce_window_max concatenate dynamic_slice select_n""".split()
)


def channel_axis(node: Node, axes: list[int], graph: Graph) -> int | None:
    """The axis of channels of a node's output, from those of what it reads; None if
    it is lost or never was."""
    match node.role:
        case Synapse() as role:
            return role.feature_axis
        case Neuron() as role:
            return _through(role.function, axes[0]) if role.function else axes[0]
        case Product() as role:
            if role.primitive.name == "dot_general":  # heads, before what is summed
                return len(role.params["dimension_numbers"][1][0]) - 1
            if role.primitive.name == "conv_general_dilated":
                return role.params["dimension_numbers"].out_spec[1]
            return axes[0]
        case Pool() | Wire() if axes:
            name, params = node.role.primitive.name, node.role.params
            before = graph[node.inputs[0]].shape
            axis = axes[0]
            if name in _SAME_RANK:
                return axis
            if node.shape == before and not getattr(node.role, "affine", True):
                return axis  # a function of every number by itself
            if name == "transpose":
                return list(params["permutation"]).index(axis)
            if name in ("squeeze", "reduce_sum", "reduce_max"):
                gone = params["dimensions" if name == "squeeze" else "axes"]
                gone = [i % len(before) for i in gone]
                return None if axis in gone else axis - sum(i < axis for i in gone)
            if name == "broadcast_in_dim":
                return params["broadcast_dimensions"][axis]
            if name == "reshape":
                # The axis stands where as many numbers come after it as before.
                after = math.prod(at_batch(before, 1)[axis + 1 :])
                for i, size in enumerate(node.shape):
                    rest = math.prod(at_batch(node.shape, 1)[i + 1 :])
                    if size == before[axis] and rest == after:
                        return i
    return None


def _through(graph: Graph, start: int) -> int | None:
    """The axis of channels of what a function makes of its drive."""
    found: dict[str, int] = {}
    for node in graph.nodes:
        axis: int | None = start
        if not isinstance(node.role, Input):
            axis = channel_axis(node, [found[name] for name in node.inputs], graph)
        last = len(node.shape) - 1
        found[node.name] = last if axis is None else axis % (last + 1)
    return found[graph.outputs[0]]


# Units: which threshold what travels is worth, known without any weights.


class Route(NamedTuple):
    """Whole numbers on their way: whose they are, and what one of them is worth.

    Attributes:
      sources: the neurons that sent them.
      ids: `[1, ...]`, like one image: the channel of its source each place stands for,
        counted through all `sources`; -1 where there is always nothing.
      factor: what one is worth, over the threshold of its channel.
    """

    sources: tuple[str, ...]
    ids: np.ndarray
    factor: float


_MOVES = frozenset(
    """reshape transpose squeeze broadcast_in_dim slice rev copy pad concatenate
    dynamic_slice gather expand_dims""".split()
)


def routes(graph: Graph) -> dict[str, Route]:
    """The whole numbers that travel in a graph, `{node: Route}`; the rest is charges.

    Sums of whole numbers that are worth the same are whole numbers, so are moves of
    them and scalings by one positive constant.
    """
    found: dict[str, Route] = {}
    with jax.ensure_compile_time_eval():
        for node in graph.nodes:
            known = [found[name] for name in node.inputs if name in found]
            route = _route(node, known, graph)
            if route is not None:
                found[node.name] = route
    return found


def _route(node: Node, before: list[Route], graph: Graph) -> Route | None:
    role = node.role
    if isinstance(role, Neuron):
        axis = graph.channel_axes[node.name]
        channels = np.arange(node.image_shape[axis])
        shape = [-1 if i == axis else 1 for i in range(len(node.shape))]
        ids = np.broadcast_to(channels.reshape(shape), node.image_shape)
        return Route((node.name,), ids, 1.0)
    if not isinstance(role, Wire | Pool) or not before:
        return None
    if len(before) < len(node.inputs):  # charges among them
        return None
    name = role.primitive.name
    if isinstance(role, Pool) or name in ("reduce_sum", "reduce_window_sum"):
        most, least = (_extreme(role, before[0].ids, sign) for sign in (1, -1))
        return before[0]._replace(ids=most) if (most == least).all() else None
    if name in _MOVES and not any(isinstance(o, Operand) for o in role.operands):
        return _moved(node, before, graph)
    if name in ("mul", "div") and len(before) == 1:
        held = next(o for o in role.operands if o is not None)
        scales = isinstance(held, Constant) and (held.value == held.value.flat[0]).all()
        scales = scales and (name == "mul" or role.operands[0] is None)
        value = float(held.value.flat[0]) if scales else 0.0
        if value > 0 and node.shape == graph[node.inputs[0]].shape:
            factor = value if name == "mul" else 1 / value
            return before[0]._replace(factor=before[0].factor * factor)
    return None


def _extreme(role: Wire | Pool, ids: np.ndarray, sign: int) -> np.ndarray:
    """The largest (smallest) channel in each window; nothing never decides."""
    params = at_batch(role.params, 1)
    values = np.where(ids < 0, -np.inf, sign * ids).astype(np.float32)
    if "axes" in params:
        best = values.max(tuple(params["axes"]))
    else:
        best = np.asarray(lax.reduce_window_max_p.bind(jnp.asarray(values), **params))
    return np.where(np.isinf(best), -1, sign * best).astype(np.int64)


def _moved(node: Node, before: list[Route], graph: Graph) -> Route | None:
    if len({route.factor for route in before}) > 1:
        return None
    sources: list[str] = []
    arguments, moving = [], iter(before)
    for held in node.role.operands:
        if held is not None:
            if np.issubdtype(held.value.dtype, np.inexact) and held.value.any():
                return None  # a constant that is presented
            fill = -np.ones(np.shape(held.value), np.int64)
            whole = np.issubdtype(held.value.dtype, np.integer)
            arguments.append(held.value if whole else fill)
            continue
        route = next(moving)
        sources += [name for name in route.sources if name not in sources]
        # Count the channels anew through all sources; nothing stays nothing.
        counts = [graph[n].image_shape[graph.channel_axes[n]] for n in sources]
        places = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
        own = [places[sources.index(name)] for name in route.sources]
        arguments.append(np.concatenate([*own, [-1]])[route.ids])
    arguments = [jnp.asarray(a, jnp.int32) for a in arguments]
    params = at_batch(node.role.params, 1)
    ids = np.asarray(node.role.primitive.bind(*arguments, **params))
    return Route(tuple(sources), ids.astype(np.int64), before[0].factor)
