"""Any JAX function to a graph, and to the pure function that makes its weights.

    network = trace(net.apply, variables, images[:1])  # f(variables, inputs)
    network = trace(module, images[:1])                # NNX, Equinox, or a closure

The jaxpr of the function is followed with the inputs traced and calls inlined. What
depends on the variables alone is set aside as `Network.weights`; evaluated, it is the
folding of batch normalisation. What is left becomes nodes of the four roles in
`graph`, and anything else is refused by name.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import math
import os
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax._src import source_info_util  # the only way to a user's line
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun

from jaxburst import sizes
from jaxburst.graph import (
    Constant,
    Function,
    Graph,
    Input,
    Neuron,
    Node,
    Operand,
    Pool,
    Synapse,
    Wire,
    apply,
    at_batch,
    is_number,
    read,
    stands_for,
)

AFFINE_TOLERANCE = 1e-3
_SINGLE = np.dtype("float32")


class Affine(NamedTuple):
    """The weights of a synapse, with what scales and shifts its channels folded in.

    Attributes:
      kernel: as the primitive takes it.
      bias: added to every image's output: `[C]`, or `[C, 1, 1]` where channels come
        first; presented at every time step, by refining neurons at the first.
    """

    kernel: jax.Array
    bias: jax.Array


class Refused(ValueError):
    """Something in the function has no spiking meaning; the message names it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Network:
    """A traced function: a graph, and how its weights follow from the variables.

    Hashable and equal by structure, so that it can be a static argument under `jit`;
    `print(network)` shows its table.

    Attributes:
      graph: the nodes.
      function: the user's own `f(variables, inputs)`.
      variables: what a traced module held; None for a function of variables.
      tree: the structures of the inputs and of the outputs.
      aside: what was set aside behind an output, by the output's position.
      program: how weights follow from variables.
    """

    graph: Graph
    function: Callable
    variables: Any
    tree: tuple[Any, Any]
    aside: dict[int, str]
    program: _Program

    def __eq__(self, other) -> bool:
        return isinstance(other, Network) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self):
        return self.graph.fingerprint, self.program.fingerprint, self.tree

    @property
    def neurons(self) -> tuple[str, ...]:
        """The names of the populations of neurons, in order."""
        return tuple(node.name for node in self.graph.of(Neuron))

    @property
    def pools(self) -> tuple[str, ...]:
        """The names of the maxima over spikes, in order."""
        return tuple(
            node.name for node in self.graph.of(Pool) if node.name in self.graph.dynamic
        )

    @property
    def senders(self) -> tuple[str, ...]:
        """The names of all that sends spikes, populations and pools, in order."""
        return tuple(
            node.name
            for node in self.graph.of(Neuron, Pool)
            if node.name in self.graph.dynamic
        )

    @property
    def synapses(self) -> tuple[str, ...]:
        """The names of the synapses, in order."""
        return tuple(node.name for node in self.graph.of(Synapse))

    @property
    def input_shapes(self) -> tuple[tuple[int, ...], ...]:
        """The shape of one image of each input, without the batch."""
        return tuple(node.image_shape[1:] for node in self.graph.of(Input))

    def weights(self, variables) -> dict[str, Any]:
        """The weights of every node that has some, a pure function of the variables.

        Returns:
          `{name: Affine}` for synapses, `{name: (arrays, ...)}` for wires.
        """
        return self.program(variables)

    def leaves(self, inputs) -> list:
        """The inputs' arrays, of a floating-point type where the network has one.

        Raises:
          TypeError, ValueError: for a structure, shape or type that was not traced.
        """
        return _checked(self, inputs)

    def outputs(self, found: list):
        """Arrays, one for each output, in the structure that the function returns."""
        return jax.tree.unflatten(self.tree[1], found)

    def __call__(self, variables, inputs):
        """The conventional network as the graph has it: the function's outputs."""
        return self.outputs(forward(self, self.weights(variables), inputs)[0])

    def __str__(self) -> str:
        return summary(self)

    __repr__ = __str__


def _checked(network: Network, inputs) -> list:
    found, tree = jax.tree.flatten(inputs)
    if tree != network.tree[0]:
        raise ValueError(
            f"inputs: expected the structure {network.tree[0]}, found {tree}"
        )
    first = next((n.name for n in network.graph.of(Synapse)), "the network")
    leaves, batch = [], None
    for node, value in zip(network.graph.of(Input), found, strict=True):
        shape, expected = np.shape(value), node.image_shape[1:]
        if shape[1:] != expected or len(shape) != len(node.shape):
            hint = ""
            if sorted(shape[1:]) == sorted(expected):
                hint = (
                    "; the axes look transposed: this network was traced with "
                    f"(height, width, channels) = {expected}"
                    if len(expected) == 3
                    else "; the axes look transposed"
                )
            raise ValueError(
                f"{first}: inputs must have the shape [B, "
                f"{', '.join(map(str, expected))}], found {list(shape)}{hint}"
            )
        batch = shape[0] if batch is None else batch
        if shape[0] != batch or batch == 0:
            raise ValueError(
                "inputs: expected the same number of images in each, at least one, "
                f"found {[np.shape(leaf)[0] for leaf in found]}"
            )
        kind, wanted = jnp.result_type(value), jnp.dtype(node.role.dtype)
        floating = jnp.issubdtype(wanted, jnp.floating)
        if floating and not jnp.issubdtype(kind, jnp.floating):
            raise TypeError(
                f"inputs must be floating-point numbers as {wanted}, found {kind}; "
                "normalise pixels as for training (`split.inputs`)"
            )
        if not floating and jnp.issubdtype(kind, jnp.floating):
            raise TypeError(f"inputs must be whole numbers ({wanted}), found {kind}")
        if floating and isinstance(value, np.ndarray) and not np.isfinite(value).all():
            raise ValueError("inputs: a number is not finite")
        leaves.append(jnp.asarray(value, wanted) if kind != wanted else value)
    return leaves


def forward(
    network: Network,
    weights: dict,
    inputs,
    neuron: Callable[[Node, jax.Array, Function], jax.Array] | None = None,
) -> tuple[list[jax.Array], dict[str, jax.Array]]:
    """The conventional reading of a network: what its spikes approach.

    Args:
      network: the network.
      weights: from `Network.weights`, or a converted network, in any unit.
      inputs: `[B, ...]`, as the function takes them.
      neuron: what a population makes of its drive, if not the function that it stands
        for: `neuron(node, drive, f)`.

    Returns:
      `(outputs, record)`: the outputs' arrays, and the output of every neuron `[B,
      ...]` under its name.
    """
    leaves = network.leaves(inputs)
    batch, record = len(leaves[0]), {}

    def visit(node: Node, *values):
        match node.role:
            case Input():
                return values[0]
            case Neuron():
                f = stands_for(node, weights, batch)
                found = neuron(node, values[0], f) if neuron else f(values[0])
                record[node.name] = found
                return found
        return apply(node, weights, *values, batch=batch)

    return read(network.graph, visit, *leaves), record


def summary(network: Network) -> str:
    """A table of the network: name, role, output, parameters, MACs, and where it is.

    MACs are multiply-accumulates of one image, taps on zero padding left out.
    """
    from jaxburst.energy import macs  # which reads networks

    counted = macs(network)
    kernels = network.program.parameters
    rows = [("name", "role", "output", "parameters", "MACs", "source")]
    total = 0
    for node in network.graph.nodes:
        if isinstance(node.role, Wire) and node.name not in kernels:
            continue
        kind = type(node.role).__name__.lower()
        if isinstance(node.role, Wire):
            kind = node.role.primitive.name
        number = kernels.get(node.name, 0)
        total += number
        shape = "x".join(map(str, node.image_shape[1:]))
        cells = (f"{number:,}" if number else "", f"{counted.get(node.name, 0):,}")
        cells = (cells[0], cells[1] if node.name in counted else "")
        rows.append((node.name, kind, shape, *cells, node.source))
    rows.append(("total", "", "", f"{total:,}", f"{sum(counted.values()):,}", ""))
    widths = [max(len(row[i]) for row in rows) for i in range(6)]
    lines = []
    for row in rows:
        left = [row[i].ljust(widths[i]) for i in range(3)]
        right = [row[i].rjust(widths[i]) for i in (3, 4)]
        lines.append("  ".join([*left, *right, row[5]]).rstrip())
    for position, what in network.aside.items():
        lines.append(f"output {position}: {what} is set aside, logits come out")
    return "\n".join(lines)


def trace(function, *arguments) -> Network:
    """Traces a function of `(variables, inputs)`, or a module that holds its variables.

    Args:
      function: `f(variables, inputs)`, such as `net.apply` of Flax or Haiku; or, with
        the example alone, an NNX or Equinox module or any closure over arrays. An
        Equinox module takes one image, so `jax.vmap` of it is traced.
      arguments: `variables, example` or `example`. An example is what the function
        takes, `[B, ...]` with the batch in front, or a pytree of that.

    Returns:
      The `Network`, for any number of images.

    Raises:
      Refused: naming what has no spiking meaning, where it is, and what to do.

    Example:
      >>> def net(w, x): return jax.nn.relu(x @ w[0]) @ w[1]
      >>> network = trace(net, (np.ones((3, 4)), np.ones((4, 2))), np.ones((1, 3)))
      >>> network.neurons
      ('relu0',)
    """
    if len(arguments) not in (1, 2):
        raise TypeError(
            "trace: expected (function, variables, example) or (module, example), "
            f"found {1 + len(arguments)} arguments"
        )
    *variables, example = arguments
    if not variables and _is_nnx(function):
        from flax import nnx

        definition, state = nnx.split(function)
        held = _network(lambda s, x: nnx.merge(definition, s)(x), state, example)
        return dataclasses.replace(held, variables=state)
    if variables:
        return _network(function, variables[0], example)
    return _closure(function, example)


def _is_nnx(module) -> bool:
    from flax import nnx

    return isinstance(module, nnx.Module)


def _network(function: Callable, variables, example) -> Network:
    """Traces `f(variables, inputs)`."""
    flat, tree = jax.tree_util.tree_flatten_with_path(variables)
    arrays = [
        i for i, (_, leaf) in enumerate(flat) if _is_array(leaf) or type(leaf) is float
    ]
    values = [flat[i][1] for i in arrays]
    kind = _widest([*values, *jax.tree.leaves(example)])
    widened = _widened(values, kind)
    names = [_path(flat[i][0]) for i in arrays]

    def call(values, inputs):
        leaves = [leaf for _, leaf in flat]  # whole numbers and others stay as they are
        for i, value in zip(arrays, values, strict=True):
            leaves[i] = value
        return function(jax.tree.unflatten(tree, leaves), inputs)

    def own(variables, inputs):
        found = jax.tree.leaves(variables)
        return call([found[i] for i in arrays], inputs)

    def pick(variables) -> list:
        found, structure = jax.tree.flatten(variables)
        if structure != tree:
            raise ValueError(_difference(tree, flat, variables))
        for i, (path, leaf) in enumerate(flat):
            was, now = leaf, found[i]
            if i in arrays:
                was, now = np.shape(leaf), np.shape(found[i])
            elif isinstance(now, jax.core.Tracer):
                continue
            if was != now:
                name = _path(path)
                raise ValueError(f"variables: {name} was {was} when traced, is {now}")
        return _widened([found[i] for i in arrays], kind)

    symbols, inputs_tree = _symbolic(example, kind)
    with warnings.catch_warnings():
        # Widened weights meet casts to what they were.
        warnings.filterwarnings("ignore", message="Explicitly requested dtype")
        closed, shapes = _jaxpr(call, widened, symbols)
    return _follow(
        closed, len(widened), names, widened, pick,
        function if len(arrays) == len(flat) else own, variables, example,
        (inputs_tree, jax.tree.structure(shapes)), held=False,
    )  # fmt: skip


def _path(path) -> str:
    return "/".join(map(_part, path))


def _difference(tree, flat, variables) -> str:
    """What is wrong with variables of another structure than was traced."""
    there = [_path(path) for path, _ in flat]
    here = [_path(path) for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    missing = ", ".join(name for name in there if name not in here)
    more = ", ".join(name for name in here if name not in there)
    if missing or more:
        return (
            "variables: expected those of the network that was traced; missing: "
            f"{missing or 'none'}; unknown: {more or 'none'}"
        )
    found = jax.tree.structure(variables)
    return f"variables: expected the structure that was traced, {tree}, found {found}"


def _jaxpr(function: Callable, *arguments):
    """The function's jaxpr for any number of images, and its outputs' shapes.

    Raises:
      Refused: for Python code that depends on the data or on the number of images.
    """
    make = jax.make_jaxpr(function, return_shape=True)
    depends = "Python code that depends on the number of images"
    try:
        return make(*arguments)
    except Exception as error:  # perhaps it insists on a number of images
        failed = error
    if "dimension comparison" in str(failed):
        raise Refused(f"{_line(failed)}: {depends}; a network treats them alike")
    try:
        found = [make(*_sized(arguments, size)) for size in sizes.SIZES]
    except jax.errors.ConcretizationTypeError as error:
        why = "Python code that depends on a signal"
        raise Refused(f"{_line(error)}: {why} has no spiking meaning") from error
    (symbol,) = export.symbolic_shape("b")
    try:
        closed = sizes.unified(found[0][0], found[1][0], symbol)
    except sizes.Differs:
        raise Refused(f"{_line(failed)}: {depends}") from failed
    return closed, found[0][1]


def _sized(arguments, size: int):
    def sized(leaf):
        shape = tuple(np.shape(leaf))
        if all(is_number(n) for n in shape):
            return leaf
        return jax.ShapeDtypeStruct(at_batch(shape, size), leaf.dtype)

    return jax.tree.map(sized, arguments)


def _line(error: Exception) -> str:
    """The user's line that an error comes from."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not _framework(frame.filename):
            return f"{frame.filename}:{frame.lineno} ({frame.name})"
    return "the function"


def _closure(function: Callable, example) -> Network:
    """Traces a function of the inputs; its variables are the arrays it holds."""
    from flax import linen

    if isinstance(function, linen.Module):
        raise TypeError(
            "trace: a Linen module does not hold its variables; pass "
            "trace(module.apply, variables, example)"
        )
    if not callable(function):
        raise TypeError(f"trace: expected a function or a module, found {function!r}")
    if dataclasses.is_dataclass(function):  # Equinox: a module takes one image
        function = jax.vmap(function)
    symbols, inputs_tree = _symbolic(example)
    closed, shapes = _jaxpr(function, symbols)
    found = _names_of(function)
    names, variables = [], {}
    for i, value in enumerate(closed.consts):
        name = found.get(id(value), found.get(_content(value), f"const{i}"))
        while name in variables:
            name = f"{name}#2"
        names.append(name)
        variables[name] = value
    # The constants become arguments.
    invars = [*closed.jaxpr.constvars, *closed.jaxpr.invars]
    jaxpr = closed.jaxpr.replace(constvars=(), invars=invars)

    def pick(variables) -> list:
        missing = sorted(set(names) - set(variables))
        if missing:
            raise ValueError(
                f"variables: expected network.variables, missing {missing}"
            )
        return _widened([variables[name] for name in names])

    def own(variables, inputs):
        """The function with other arrays than it holds."""
        again = jax.make_jaxpr(function)(inputs)
        consts = [variables[name] for name in names]
        run = jaxpr_as_fun(ClosedJaxpr(again.jaxpr, consts))
        return jax.tree.unflatten(
            jax.tree.structure(shapes), run(*jax.tree.leaves(inputs))
        )

    return _follow(
        ClosedJaxpr(jaxpr, ()), len(names), names, _widened(list(closed.consts)), pick,
        own, variables, example,
        (inputs_tree, jax.tree.structure(shapes)), held=True,
    )  # fmt: skip


def _content(value):
    """An array of NumPy is another one in a jaxpr."""
    return (np.shape(value), str(value.dtype), np.asarray(value).tobytes())


def _names_of(function) -> dict[Any, str]:
    """The path of every array that a function holds, by its identity and content."""
    found: dict[Any, str] = {}
    queue, seen = [function], set()
    while queue:
        owner = queue.pop(0)
        if id(owner) in seen or len(seen) > 1000:
            continue
        seen.add(id(owner))
        leaves = jax.tree_util.tree_leaves_with_path(_tree_of(owner))
        for path, leaf in leaves:
            if _is_array(leaf):
                name = "/".join(_part(key) for key in path)
                found.setdefault(id(leaf), name)
                if isinstance(leaf, np.ndarray):
                    found.setdefault(_content(leaf), name)
            elif leaf is not owner and callable(leaf):
                queue.append(leaf)
        held = [getattr(owner, name, None) for name in ("__wrapped__", "__self__")]
        held += [getattr(owner, name, None) for name in ("func", "args", "keywords")]
        cells = getattr(owner, "__closure__", None) or ()
        names = owner.__code__.co_freevars if cells else ()
        for name, cell in zip(names, cells, strict=True):
            if _filled(cell):
                value = cell.cell_contents
                held.append({name: value} if _is_array(value) else value)
        queue += [item for item in held if item is not None]
    return found


def _tree_of(owner):
    """A pytree of what an object holds; NNX modules by their state."""
    if _is_nnx(owner):
        from flax import nnx

        return nnx.to_pure_dict(nnx.state(owner))
    return owner


def _filled(cell) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:
        return False


def _is_array(leaf) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic) or isinstance(
        leaf, jax.ShapeDtypeStruct
    )


def _part(key) -> str:
    for name in ("key", "name", "idx"):
        if hasattr(key, name):
            return str(getattr(key, name))
    return str(key)


def _widest(leaves: list):
    """The floating-point type that weights and inputs have in common."""
    kinds = [jnp.result_type(leaf) for leaf in leaves]
    wide = any(kind == jnp.float64 for kind in kinds)
    return jnp.dtype("float64" if wide else "float32")


def _symbolic(example, least=_SINGLE):
    """The example's shapes with the symbol `b` for the batch."""
    (symbol,) = export.symbolic_shape("b")
    leaves, tree = jax.tree.flatten(example)
    if not leaves:
        raise ValueError("trace: the example is empty; pass inputs [B, ...]")
    for leaf in leaves:
        if np.ndim(leaf) == 0:
            raise ValueError(
                "trace: every input needs a batch in front, [B, ...]; found a scalar"
            )
    shapes = []
    for leaf in leaves:
        kind = jnp.result_type(leaf)
        if jnp.issubdtype(kind, jnp.floating) and kind.itemsize < least.itemsize:
            kind = least
        shapes.append(jax.ShapeDtypeStruct((symbol, *np.shape(leaf)[1:]), kind))
    return jax.tree.unflatten(tree, shapes), tree


def _widened(values: list, least=_SINGLE) -> list:
    """Arrays of less precision in single precision, or in that of others."""
    return [
        value.astype(least)
        if _is_array(value)
        and jnp.issubdtype(value.dtype, jnp.floating)
        and value.dtype.itemsize < least.itemsize
        else value
        for value in values
    ]


# What a variable of the jaxpr stands for while it is followed.


class _Held(NamedTuple):
    """A constant: known now."""

    value: np.ndarray


class _Sized(NamedTuple):
    """A constant that depends on the number of images: for one of them, and for two."""

    one: np.ndarray
    two: np.ndarray
    source: str


class _Made(NamedTuple):
    """A value that depends on the variables: made by the program, at `slot`.

    `root` is the parameter it comes from; `varies` the axes along which it may vary.
    """

    slot: int
    shape: tuple
    dtype: Any
    root: str | None
    varies: tuple[int, ...]


class _Signal(NamedTuple):
    """A node's output."""

    name: str


class _Mask(NamedTuple):
    """Where a signal is greater than a constant."""

    signal: str
    level: Any
    flipped: bool  # where it is not
    eqn: Any


class _Tail(NamedTuple):
    """Behind something that is not affine; fine at the end, refused before a synapse.

    `nodes` are the signals that entered it; `falling` whether it falls where they rise.
    """

    eqn: Any
    stack: tuple[str, ...]
    nodes: tuple[str, ...]
    call: str
    falling: bool = False


class _Program:
    """How weights follow from the variables: a list of primitives, then folds."""

    def __init__(self, pick):
        self.pick = pick
        self.steps: list[tuple] = []  # primitive, operands, params, slots
        self.slots = 0
        self.uses: dict[str, Any] = {}  # node -> what it takes
        self.parameters: dict[str, int] = {}
        self.fingerprint = ""
        self.rounding = 0.0  # of the shortest numbers in the user's function

    def slot(self) -> int:
        self.slots += 1
        return self.slots - 1

    def seal(self, needed: set[str]) -> None:
        """Keeps what the nodes that are left need."""
        self.uses = {name: use for name, use in self.uses.items() if name in needed}
        wanted = {
            value.slot
            for use in self.uses.values()
            for value in use.operands()
            if isinstance(value, _Made)
        }
        kept = []
        for step in reversed(self.steps):
            primitive, operands, params, slots = step
            if wanted.intersection(slots):
                kept.append(step)
                wanted |= {v.slot for v in operands if isinstance(v, _Made)}
        self.steps = kept[::-1]
        text = [(str(p), _texts(o), str(q), s) for p, o, q, s in self.steps]
        text += sorted((name, use.text()) for name, use in self.uses.items())
        self.fingerprint = hashlib.sha256(repr(text).encode()).hexdigest()

    def with_factors(self, factors: dict[str, tuple]) -> _Program:
        """Of a network with more wires, which multiply: by 1, as far as it knows.

        Args:
          factors: `{wire: (what it multiplies by,)}`.
        """
        if not factors:
            return self
        found = copy.copy(self)
        one = _WireUse([_Held(np.ones((), np.float32))])
        found.uses = self.uses | dict.fromkeys(factors, one)
        sizes = {name: own[0].size for name, own in factors.items()}
        found.parameters = self.parameters | sizes
        found.fingerprint = f"{self.fingerprint}, {sorted(factors)}"
        return found

    def __call__(self, variables) -> dict[str, Any]:
        return self.make(self.pick(variables))

    def make(self, leaves: list) -> dict[str, Any]:
        """The weights that follow from the variables' arrays."""
        values = dict(enumerate(leaves))

        def look(value):
            return values[value.slot] if isinstance(value, _Made) else value.value

        for primitive, operands, params, slots in self.steps:
            found = _bind(primitive, [look(v) for v in operands], at_batch(params, 1))
            values.update(zip(slots, found, strict=True))
        return {name: use.make(look) for name, use in self.uses.items()}


def _texts(operands) -> list[str]:
    return [
        str(v.slot) if isinstance(v, _Made) else repr(Constant(v.value))
        for v in operands
    ]


@dataclasses.dataclass
class _SynapseUse:
    """A kernel, and what scales and shifts its channels afterwards."""

    kernel: _Made
    features: int | None
    rank: int  # of the output
    axis: int | None  # of its channels
    folds: list = dataclasses.field(default_factory=list)  # (name, value, position)

    def operands(self):
        return [self.kernel, *(value for _, value, _ in self.folds)]

    def text(self) -> str:
        folds = [(name, position) for name, _, position in self.folds]
        return repr((self.features, self.axis, folds, _texts(self.operands())))

    def make(self, look) -> Affine:
        kernel = jnp.asarray(look(self.kernel))
        bias = jnp.zeros((), kernel.dtype)

        def of_kernel(value):
            """One value per channel, along the kernel's axis of channels."""
            if value.size == 1:
                return value.reshape((1,) * kernel.ndim)
            shape = [1] * kernel.ndim
            shape[self.features] = -1
            return value.reshape(shape)

        for name, held, position in self.folds:
            value = jnp.asarray(look(held), kernel.dtype)
            value = self._one_image(value)
            if name == "mul":
                kernel, bias = kernel * of_kernel(value), bias * value
            elif name == "div":
                kernel, bias = kernel / of_kernel(value), bias / value
            elif name == "add":
                bias = bias + value
            elif position == 1:  # x - value
                bias = bias - value
            else:  # value - x
                kernel, bias = -kernel, value - bias
        bias = jnp.broadcast_to(
            bias, jnp.broadcast_shapes(bias.shape, self._least(kernel))
        )
        return Affine(kernel, bias)

    def _least(self, kernel) -> tuple:
        if self.features is None:
            return ()
        return self._shape(kernel.shape[self.features])

    def _shape(self, channels: int) -> tuple:
        """`[C]` with the axes behind it."""
        return (channels, *[1] * (self.rank - 1 - self.axis % self.rank))

    def _one_image(self, value):
        """A value that varies along the channels only, `[C]` or `[C, 1, 1]`."""
        if value.size == 1:
            return value.reshape(())
        axis = self.axis % self.rank
        index = tuple(
            slice(None) if i == axis else slice(0, 1) for i in range(value.ndim)
        )
        return value[index].reshape(self._shape(-1))


@dataclasses.dataclass
class _WireUse:
    """The arrays that a wire takes."""

    values: list

    def operands(self):
        return self.values

    def text(self) -> str:
        return repr(_texts(self.values))

    def make(self, look) -> tuple:
        return tuple(jnp.asarray(look(value)) for value in self.values)


def _bind(primitive, values, params) -> list:
    params = primitive.get_bind_params(params)
    if isinstance(params, tuple):  # before JAX 0.9.2
        subfuns, params = params
        values = [*subfuns, *values]
    found = primitive.bind(*values, **params)
    return list(found) if primitive.multiple_results else [found]


_OWN_JAXPR = frozenset(
    ("scan", "while", "cond", "reduce", "reduce_window", "custom_linear_solve")
    + ("select_and_scatter", "select_and_gather_add", "reduce_precision")
)


def _inner(eqn) -> ClosedJaxpr | None:
    """The jaxpr of an equation that does nothing but call it."""
    if eqn.primitive.name in _OWN_JAXPR or eqn.primitive.name.startswith("scatter"):
        return None
    for value in eqn.params.values():
        if isinstance(value, Jaxpr):
            value = ClosedJaxpr(value, ())
        if isinstance(value, ClosedJaxpr) and (
            len(value.jaxpr.invars) == len(eqn.invars)
            and len(value.jaxpr.outvars) == len(eqn.outvars)
        ):
            return value
    return None


# Primitives by what they mean for a signal.

_MOVES = frozenset(
    ("reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "slice")
    + ("rev", "copy", "copy_p", "dynamic_slice", "gather", "concatenate", "pad", "tile")
    + ("dynamic_update_slice", "scatter", "scatter-add", "cumsum", "reduce_sum")
    + ("reduce_window_sum", "neg", "add", "add_any", "sub", "real")
)
_WHOLE = frozenset(  # take no operand with one image instead of all
    ("concatenate", "select_n", "dynamic_update_slice", "dot_general", "gather")
    + ("scatter", "scatter-add", "scatter-mul", "conv_general_dilated", "clamp")
)
_NOTHING = frozenset(("stop_gradient", "copy", "copy_p", "optimization_barrier"))
_HEADS = frozenset(
    ("exp", "log", "log1p", "logistic", "tanh", "argmax", "argmin", "exp2", "is_finite")
    + ("top_k", "sort", "erf_inv")
)
_AFTER_HEAD = _HEADS | frozenset(
    ("max", "min", "sub", "add", "div", "mul", "neg", "abs", "reduce_sum", "reduce_max")
    + (
        "broadcast_in_dim",
        "reshape",
        "stop_gradient",
        "convert_element_type",
        "select_n",
    )
    + ("eq", "ne", "gt", "ge", "lt", "le", "squeeze", "transpose", "slice", "copy")
    + ("concatenate", "iota", "not", "and", "or")
)
_COMPARE = {"gt": False, "ge": False, "lt": True, "le": True}
_INFERENCE = (
    "put the network into inference mode (Linen: train=False, deterministic=True, "
    "use_running_average=True; NNX: model.eval(); Equinox: "
    "eqx.nn.inference_mode(model); Haiku: is_training=False)"
)
_RANDOM = ("random_", "threefry", "rng_")


_REGISTERED: dict[str, type] = {}


def register(primitive: str, role: type) -> None:
    """Says what a primitive of your own is.

    Args:
      primitive: its name.
      role: `Wire`, if it is linear in all its signals together, and adds what it holds;
        or `Synapse`, if it is a product of a signal and a kernel, in either order.

    Raises:
      ValueError: for another role; a nonlinearity becomes a neuron by its equations.
    """
    if role not in (Wire, Synapse):
        raise ValueError(f"register: expected Wire or Synapse, found {role!r}")
    _REGISTERED[primitive] = role


class _Follower:
    """Follows the equations of a jaxpr, and keeps nodes and the program."""

    def __init__(self, program: _Program, dtype):
        self.program, self.dtype = program, dtype
        self.nodes: dict[str, Node] = {}
        self.counts: dict[str, int] = {}
        self.scaled: dict[str, tuple[str, Any]] = {}  # signal -> (of what, how much)
        self.raised: dict[str, tuple[str, Any]] = {}  # signal -> (neuron, shift)
        self.integers: set[str] = set()  # signals that are whole numbers
        self.source = ""  # the user's line
        self.own = 0  # how deep in functions of ours

    # Jaxprs.

    def follow(self, jaxpr, consts, arguments, stack: tuple[str, ...], call: str = ""):
        env: dict[Any, Any] = {}
        for var, value in zip(jaxpr.constvars, consts, strict=True):
            env[var] = value if isinstance(value, tuple) else _held(value)
        env.update(zip(jaxpr.invars, arguments, strict=True))

        def look(var):
            return _Held(np.asarray(var.val)) if isinstance(var, Literal) else env[var]

        for eqn in jaxpr.eqns:
            scopes = (*stack, *_scopes(eqn))
            if not self.own:
                self.source = _source(eqn) or self.source
            found = self.equation(eqn, [look(v) for v in eqn.invars], scopes, call)
            env.update(zip(eqn.outvars, found, strict=True))
        return [look(v) for v in jaxpr.outvars]

    def equation(self, eqn, values, stack, call):
        name = eqn.primitive.name
        if name.startswith(_RANDOM):
            self.refuse(
                eqn,
                stack,
                f"draws random numbers, as in training: {_INFERENCE}",
            )
        inner = _inner(eqn)
        if inner is not None:
            label = eqn.params.get("name", call)
            label = label if isinstance(label, str) else call
            return self.follow(
                inner.jaxpr,
                [_held(c) for c in inner.consts],
                values,
                stack,
                label or call,
            )
        if name == "scan":
            return self.scan(eqn, values, stack, call)
        if name == "cond" and isinstance(values[0], _Held):
            branch = eqn.params["branches"][int(values[0].value)]
            consts = [_held(c) for c in branch.consts]
            return self.follow(branch.jaxpr, consts, values[1:], stack, call)
        if all(isinstance(v, _Held | _Sized) for v in values):
            return self.constant(eqn, values)
        for value in values:
            if isinstance(value, _Sized):
                self.refuse(
                    eqn,
                    stack,
                    "depends on the number of images or on the place of an image in "
                    f"its batch, by what is computed at {value.source}",
                )
        if all(isinstance(v, _Held | _Made) for v in values):
            return self.known(eqn, values, stack)
        if name in ("while", "cond"):
            self.refuse(eqn, stack, "is control flow that depends on the data")
        found = self.signal(eqn, values, stack, call)
        return found if isinstance(found, list) else [found]

    def scan(self, eqn, values, stack, call):
        """A loop of a fixed length, one round after the other."""
        p = eqn.params
        consts = values[: p["num_consts"]]
        carry = values[p["num_consts"] : p["num_consts"] + p["num_carry"]]
        over_rounds = values[p["num_consts"] + p["num_carry"] :]
        body, length, rows = p["jaxpr"], p["length"], []
        if not is_number(length):
            self.refuse(eqn, stack, "loops over the batch; use jax.vmap")
        collects = len(eqn.outvars) > p["num_carry"]
        if collects and length * len(over_rounds) > 4096:
            self.refuse(eqn, stack, f"loops {length} times")
        order = range(length - 1, -1, -1) if p["reverse"] else range(length)
        held = [_held(c) for c in body.consts]
        for i in order:
            parts = [self.row(value, i, stack) for value in over_rounds]
            found = self.follow(
                body.jaxpr, held, [*consts, *carry, *parts], stack, call
            )
            carry, row = found[: p["num_carry"]], found[p["num_carry"] :]
            rows.append(row)
        if p["reverse"]:
            rows = rows[::-1]
        columns = zip(*rows, strict=True)
        return [*carry, *(self.stack(list(column), stack) for column in columns)]

    def row(self, value, i, stack):
        """`value[i]`."""

        def take(x):
            return lax.index_in_dim(x, i, keepdims=False)

        if isinstance(value, _Held):
            return _Held(np.asarray(value.value[i]))
        return self.apply(take, [value], stack)[0]

    def stack(self, values, stack):
        if all(isinstance(v, _Held) for v in values):
            return _Held(np.stack([v.value for v in values]))
        return self.apply(_beside, values, stack)[0]

    def apply(self, function, values, stack, call=""):
        """Follows a function of ours, written in JAX."""
        closed = jax.make_jaxpr(function)(*[self.aval(v) for v in values])
        consts = [_held(c) for c in closed.consts]
        self.own += 1  # its lines are not the user's
        found = self.follow(closed.jaxpr, consts, values, stack, call)
        self.own -= 1
        return found

    def aval(self, value):
        match value:
            case _Held():
                return jax.ShapeDtypeStruct(value.value.shape, value.value.dtype)
            case _Made():
                return jax.ShapeDtypeStruct(value.shape, value.dtype)
            case _Signal():
                return jax.ShapeDtypeStruct(self.nodes[value.name].shape, self.dtype)
        raise AssertionError(value)

    # Values without a signal.

    def known(self, eqn, values, stack):
        slots = [self.program.slot() for _ in eqn.outvars]
        params = dict(eqn.params)
        if eqn.primitive.name == "convert_element_type":
            kind = jnp.dtype(params["new_dtype"])
            if jnp.issubdtype(kind, jnp.floating) and _floating(values[0]):
                # Weights keep their precision.
                return self.shortened(
                    eqn, values, stack, "", float(jnp.finfo(kind).eps)
                )
        self.program.steps.append((eqn.primitive, tuple(values), params, slots))
        root = next((v.root for v in values if isinstance(v, _Made) and v.root), None)
        found = []
        for slot, var in zip(slots, eqn.outvars, strict=True):
            shape = at_batch(tuple(var.aval.shape), 1)
            varies = tuple(i for i, size in enumerate(shape) if size != 1)
            if eqn.primitive.name == "broadcast_in_dim" and isinstance(
                values[0], _Made
            ):
                dims = eqn.params["broadcast_dimensions"]
                varies = tuple(dims[i] for i in values[0].varies)
            found.append(_Made(slot, shape, var.aval.dtype, root, varies))
        return found

    def constant(self, eqn, values):
        """Evaluated now: for one image, and for two where their number enters."""
        shapes = [var.aval.shape for var in eqn.outvars]
        sized = any(isinstance(v, _Sized) for v in values)
        sized = sized or any(not is_number(n) for shape in shapes for n in shape)
        sized = sized or _symbol_in(eqn.params)

        def at(batch):
            arguments = []
            for value, var in zip(values, eqn.invars, strict=True):
                if isinstance(value, _Sized):
                    arguments.append(value.one if batch == 1 else value.two)
                else:
                    shape = at_batch(tuple(var.aval.shape), batch)
                    arguments.append(np.broadcast_to(value.value, shape))
            if eqn.primitive.name == "dim_as_value":
                size = at_batch(eqn.params["dim"], batch)
                return [np.asarray(size, eqn.outvars[0].aval.dtype)]
            with jax.ensure_compile_time_eval():
                found = _bind(eqn.primitive, arguments, at_batch(eqn.params, batch))
            return [np.asarray(x) for x in found]

        if not sized:
            return [_Held(value) for value in at(1)]
        found = []
        for one, two in zip(at(1), at(2), strict=True):
            nan = np.issubdtype(one.dtype, np.inexact)
            same = np.array_equal(np.broadcast_to(one, two.shape), two, equal_nan=nan)
            found.append(_Held(one) if same else _Sized(one, two, self.source))
        return found

    # Signals.

    def signal(self, eqn, values, stack, call):
        name = eqn.primitive.name
        if any(isinstance(v, _Tail) for v in values):
            return self.behind(eqn, values, stack, call)
        if any(isinstance(v, _Mask) for v in values):
            return self.masked(eqn, values, stack, call)
        if self.whole(values):
            return self.front(eqn, values, stack)
        method = getattr(self, f"_{name}".replace("-", "_"), None)
        if method is not None:
            return method(eqn, values, stack, call)
        if name in _NOTHING:
            return list(values)
        if name in _COMPARE:
            return self.compare(eqn, values, stack, call)
        if name in _MOVES or _REGISTERED.get(name) is Wire:
            return self.wire(eqn, values, stack)
        if _REGISTERED.get(name) is Synapse:
            return self.product(eqn, values, stack, call)
        return self.tail(eqn, values, stack, call)

    def whole(self, values) -> bool:
        """Whether all signals are whole numbers that the network is given."""
        signals = [v for v in values if isinstance(v, _Signal)]
        return all(v.name in self.integers for v in signals)

    def front(self, eqn, values, stack):
        out = self.emit_wire(eqn, values, stack, front=True)
        for signal, var in zip(out, eqn.outvars, strict=True):
            if not jnp.issubdtype(var.aval.dtype, jnp.floating):
                self.integers.add(signal.name)
        return out

    def tail(self, eqn, values, stack, call):
        nodes = tuple(v.name for v in values if isinstance(v, _Signal))
        mark = _Tail(eqn, stack, nodes, call)
        if eqn.primitive.name not in _HEADS:
            self.refuse(eqn, stack, _why(eqn.primitive.name), nodes, call)
        return [mark for _ in eqn.outvars]

    def behind(self, eqn, values, stack, call):
        """What is computed from something that is not affine."""
        tails = [v for v in values if isinstance(v, _Tail)]
        weighs = any(isinstance(v, _Made) for v in values)
        if eqn.primitive.name not in _AFTER_HEAD or weighs:
            first = tails[0]
            self.refuse(
                first.eqn,
                first.stack,
                _why(first.eqn.primitive.name)
                + "; at the end of a network it is set aside, but here "
                f"{eqn.primitive.name} follows",
                first.nodes,
                first.call,
            )
        entered = [v.name for v in values if isinstance(v, _Signal)]
        entered += [v.signal for v in values if isinstance(v, _Mask)]
        entered += [name for tail in tails for name in tail.nodes]
        mark = tails[0]._replace(nodes=tuple(dict.fromkeys(entered)))
        turned = eqn.primitive.name in ("sub", "div") and (
            not isinstance(values[0], _Tail) and isinstance(values[1], _Tail)
        )
        if turned or eqn.primitive.name == "neg":
            mark = mark._replace(falling=not mark.falling)
        return [mark for _ in eqn.outvars]

    def compare(self, eqn, values, stack, call):
        left, right = values
        flipped = _COMPARE[eqn.primitive.name]
        if isinstance(left, _Signal) and not isinstance(right, _Signal):
            return [_Mask(left.name, right, flipped, eqn)]
        if isinstance(right, _Signal) and not isinstance(left, _Signal):
            return [_Mask(right.name, left, not flipped, eqn)]
        return self.tail(eqn, values, stack, call)

    def masked(self, eqn, values, stack, call):
        """`where(x > 0, a x, b x)`, however spelled, is made of two ReLUs."""
        name = eqn.primitive.name
        masks = [v for v in values if isinstance(v, _Mask)]
        mask = masks[0]
        known = len(masks) == 1 and _is_zero(mask.level)
        if known and name in ("convert_element_type", "stop_gradient", "copy"):
            return [mask]
        if known and name == "mul":
            other = next(v for v in values if not isinstance(v, _Mask))
            factor = self.factor(other, mask.signal)
            if factor is not None:
                zero = _Held(np.zeros((), self.dtype))
                pair = (factor, zero) if not mask.flipped else (zero, factor)
                return [self.two_sided(mask.signal, *pair, stack, call)]
        if known and name == "select_n" and isinstance(values[0], _Mask):
            negative, positive = values[1:]
            if mask.flipped:
                negative, positive = positive, negative
            factors = [self.factor(v, mask.signal) for v in (positive, negative)]
            if None not in factors:
                return [self.two_sided(mask.signal, *factors, stack, call)]
        self.refuse(
            mask.eqn,
            stack,
            "compares a signal, and what follows is no ReLU",
            (mask.signal,),
            call,
        )

    def factor(self, value, signal: str):
        """By how much `value` is a multiple of `signal`; None if it is not."""
        if isinstance(value, _Signal):
            if value.name == signal:
                return _Held(np.ones((), self.dtype))
            of, much = self.scaled.get(value.name, (None, None))
            return much if of == signal else None
        if isinstance(value, _Held) and not np.any(value.value):
            return _Held(np.zeros((), self.dtype))
        return None

    def two_sided(self, signal: str, positive, negative, stack, call):
        """`positive relu(x) - negative relu(-x)`."""
        parts = []
        for factor, sign in ((positive, 1), (negative, -1)):
            if isinstance(factor, _Held) and not np.any(factor.value):
                continue
            x = _Signal(signal)
            if sign < 0:
                (x,) = self.apply(jnp.negative, [x], stack)
            part = self.neuron(x, stack)
            if not (isinstance(factor, _Held) and (factor.value == 1).all()):
                (part,) = self.apply(lambda a, b: a * b, [part, factor], stack)
            if sign < 0:
                (part,) = self.apply(jnp.negative, [part], stack)
            parts.append(part)
        if not parts:
            return self.apply(jnp.zeros_like, [_Signal(signal)], stack)[0]
        if len(parts) == 1:
            return parts[0]
        return self.apply(jnp.add, parts, stack)[0]

    # Primitives that need a thought.

    def _convert_element_type(self, eqn, values, stack, call):
        kind = jnp.dtype(eqn.params["new_dtype"])
        if not jnp.issubdtype(kind, jnp.floating):
            names = tuple(v.name for v in values)
            self.refuse(eqn, stack, f"makes {kind} of a signal", names, call)
        return self.shortened(eqn, values, stack, call, float(jnp.finfo(kind).eps))

    def _reduce_precision(self, eqn, values, stack, call):
        eps = 2.0 ** -eqn.params["mantissa_bits"]
        return self.shortened(eqn, values, stack, call, eps)

    def shortened(self, eqn, values, stack, call, eps: float):
        """A signal in half precision is taken as it is before it is rounded."""
        if eps > jnp.finfo(jnp.bfloat16).eps:
            names = tuple(v.name for v in values)
            self.refuse(eqn, stack, "rounds a signal to few bits", names, call)
        if eps > jnp.finfo(jnp.float32).eps:
            self.program.rounding = max(self.program.rounding, eps)
        return list(values)

    def _max(self, eqn, values, stack, call):
        signals = [v for v in values if isinstance(v, _Signal)]
        if len(signals) == 2:
            return self.apply(lambda a, b: _beside(a, b).max(0), values, stack)
        (x,) = signals
        level = next(v for v in values if not isinstance(v, _Signal))
        if isinstance(level, _Held) and np.all(np.isneginf(level.value)):
            return [x]
        if _is_zero(level):
            return [self.neuron(x, stack)]
        (below,) = self.apply(lambda a, b: a - b, [x, level], stack)
        neuron = self.neuron(below, stack)
        (out,) = self.apply(lambda a, b: a + b, [neuron, level], stack)
        self.raised[out.name] = (neuron.name, level)
        return [out]

    def _min(self, eqn, values, stack, call):
        signals = [v for v in values if isinstance(v, _Signal)]
        if len(signals) == 2:
            found = self.apply(lambda a, b: _beside(-a, -b).max(0), values, stack)
            return self.apply(jnp.negative, found, stack)
        (x,) = signals
        level = next(v for v in values if not isinstance(v, _Signal))
        if isinstance(level, _Held) and np.all(np.isposinf(level.value)):
            return [x]
        neuron, shift = self.raised.get(x.name, (x.name, None))
        role = self.nodes[neuron].role
        fits = isinstance(role, Neuron) and role.cap is None
        fits = fits and isinstance(level, _Held) and level.value.size == 1
        if shift is not None:
            fits = fits and isinstance(shift, _Held) and shift.value.size == 1
        if fits:
            low = 0.0 if shift is None else float(shift.value.item())
            cap = float(level.value.item()) - low
            if cap > 0:
                drive = _Signal(self.nodes[neuron].inputs[0])
                capped = self.neuron(drive, stack, cap)
                if shift is None:
                    return [capped]
                return self.apply(lambda a, b: a + b, [capped, shift], stack)
        (above,) = self.apply(lambda a, b: b - a, [x, level], stack)
        neuron = self.neuron(above, stack)
        return self.apply(lambda a, b: b - a, [neuron, level], stack)

    def _clamp(self, eqn, values, stack, call):
        low, x, high = values
        if not isinstance(x, _Signal):
            return self.tail(eqn, values, stack, call)
        found = self.apply(lambda a, b: jnp.maximum(a, b), [x, low], stack, call)
        return self.apply(lambda a, b: jnp.minimum(a, b), [*found, high], stack, call)

    def _abs(self, eqn, values, stack, call):
        one, less = (_Held(np.full((), v, self.dtype)) for v in (1, -1))
        return [self.two_sided(values[0].name, one, less, stack, call)]

    def _square(self, eqn, values, stack, call):
        self.refuse(
            eqn,
            stack,
            "multiplies a signal by itself, as GELU and LayerNorm do; batch "
            f"normalisation does so in training: {_INFERENCE}",
            (values[0].name,),
            call,
        )

    def _stack(self, eqn, values, stack, call):
        axis = eqn.params.get("axis", eqn.params.get("dimension", 0))
        return self.apply(partial(_beside, axis=axis), values, stack)

    def _integer_pow(self, eqn, values, stack, call):
        if eqn.params["y"] == 1:
            return list(values)
        return self._square(eqn, values, stack, call)

    def _mul(self, eqn, values, stack, call):
        data = self.factor_of(eqn, values, stack, call)
        x, factor = values[data], values[1 - data]
        if isinstance(factor, _Held) and np.all(factor.value == 1):
            if factor.value.ndim == 0 or self.nodes[x.name].shape == tuple(
                eqn.outvars[0].aval.shape
            ):
                return [x]
        if isinstance(factor, _Held) and factor.value.ndim == 0 and factor.value == 0:
            return self.apply(jnp.zeros_like, [x], stack)
        (out,) = self.wire(eqn, values, stack)
        # A scaling by one number is remembered, for leaky ReLUs.
        self.scaled[out.name] = (x.name, factor)
        return [out]

    def _div(self, eqn, values, stack, call):
        if not isinstance(values[0], _Signal) or isinstance(values[1], _Signal):
            names = tuple(v.name for v in values if isinstance(v, _Signal))
            self.refuse(eqn, stack, "divides by a signal", names, call)
        return self.wire(eqn, values, stack)

    def _neg(self, eqn, values, stack, call):
        (out,) = self.wire(eqn, values, stack)
        self.scaled[out.name] = (values[0].name, _Held(np.full((), -1.0, self.dtype)))
        return [out]

    def _select_n(self, eqn, values, stack, call):
        which, *cases = values
        if not isinstance(which, _Held | _Made):
            return self.tail(eqn, values, stack, call)
        return self.wire(eqn, values, stack)  # a constant choice: affine

    def _scatter_mul(self, eqn, values, stack, call):
        if isinstance(values[2], _Signal):
            names = tuple(v.name for v in values if isinstance(v, _Signal))
            self.refuse(eqn, stack, "multiplies two signals", names, call)
        return self._scatter(eqn, values, stack, call)

    def _scatter(self, eqn, values, stack, call):
        return self.at_places(eqn, values, stack, values[1:2], "writes to")

    _scatter_add = _scatter

    def _dynamic_update_slice(self, eqn, values, stack, call):
        return self.at_places(eqn, values, stack, values[2:], "writes to")

    def _gather(self, eqn, values, stack, call):
        return self.at_places(eqn, values, stack, values[1:2], "looks up at")

    def _dynamic_slice(self, eqn, values, stack, call):
        return self.at_places(eqn, values, stack, values[1:], "looks up at")

    def at_places(self, eqn, values, stack, places, what: str):
        """A wire, if its places are known."""
        if any(isinstance(v, _Signal) for v in places):
            self.refuse(eqn, stack, f"{what} places that depend on a signal")
        return self.wire(eqn, values, stack)

    def _split(self, eqn, values, stack, call):
        (x,), axis, found, start = values, eqn.params["axis"], [], 0
        for size in eqn.params["sizes"]:

            def part(x, start=start, size=size):
                return lax.slice_in_dim(x, start, start + size, axis=axis)

            found += self.apply(part, [x], stack)
            start += size
        return found

    def _add(self, eqn, values, stack, call):
        for i, value in enumerate(values):
            other = values[1 - i]
            if _is_zero(value) and isinstance(other, _Signal):
                if self.nodes[other.name].shape == tuple(eqn.outvars[0].aval.shape):
                    return [other]
        return self.wire(eqn, values, stack)

    def _reduce_window_max(self, eqn, values, stack, call):
        return [self.pool(eqn, values[0], stack)]

    def _reduce_max(self, eqn, values, stack, call):
        self.keeps_batch(eqn, stack)
        return [self.pool(eqn, values[0], stack)]

    def _reduce_window_min(self, eqn, values, stack, call):
        def least(x):
            return -lax.reduce_window_max_p.bind(-x, **eqn.params)

        return self.apply(least, values, stack)

    def _reduce_min(self, eqn, values, stack, call):
        axes = eqn.params["axes"]
        return self.apply(lambda x: -(-x).max(axes), values, stack)

    def _conv_general_dilated(self, eqn, values, stack, call):
        x, kernel = values
        if isinstance(kernel, _Signal):
            self.refuse(eqn, stack, "convolves with a kernel that is a signal")
        if eqn.params["batch_group_count"] != 1:
            self.refuse(eqn, stack, "mixes images (batch_group_count)")
        params = dict(eqn.params) | {"preferred_element_type": None}
        if isinstance(kernel, _Held):
            return self.emit_wire(eqn, values, stack, params=params)
        return [self.synapse(eqn, params, x, kernel, 0, stack)]

    def product(self, eqn, values, stack, call):
        """A synapse that was registered."""
        data = self.factor_of(eqn, values, stack, call)
        kernel, params = values[1 - data], dict(eqn.params)
        if isinstance(kernel, _Held):
            shape, kind = kernel.value.shape, kernel.value.dtype
            slot = self.program.slot()
            self.program.steps.append((lax.copy_p, (kernel,), {}, [slot]))
            kernel = _Made(slot, shape, kind, None, ())
        return [self.synapse(eqn, params, values[data], kernel, data, stack)]

    def factor_of(self, eqn, values, stack, call) -> int:
        """Which of two factors is the signal."""
        signals = [i for i, v in enumerate(values) if isinstance(v, _Signal)]
        if len(signals) == 2:
            names = tuple(v.name for v in values)
            self.refuse(eqn, stack, "multiplies two signals", names, call)
        return signals[0]

    def _dot_general(self, eqn, values, stack, call):
        data = self.factor_of(eqn, values, stack, call)
        params = dict(eqn.params) | {"preferred_element_type": None}
        kernel = values[1 - data]
        x = self.nodes[values[data].name]
        contracted = eqn.params["dimension_numbers"][0][data]
        if any(not is_number(x.shape[i]) for i in contracted):
            self.refuse(eqn, stack, "sums over the batch")
        if isinstance(kernel, _Held):
            return self.emit_wire(eqn, values, stack, params=params)
        copies = any(not is_number(n) for n in eqn.invars[1 - data].aval.shape)
        if len(kernel.shape) == 0 or kernel.root is None or copies:
            return self.emit_wire(eqn, values, stack, params=params)
        return [self.synapse(eqn, params, values[data], kernel, data, stack)]

    # Nodes.

    def keeps_batch(self, eqn, stack):
        """Refuses what mixes the images of a batch."""
        for var in eqn.outvars:
            if all(is_number(n) for n in var.aval.shape):
                self.refuse(
                    eqn,
                    stack,
                    "mixes the images of a batch, as batch normalisation does in "
                    f"training: {_INFERENCE}",
                )

    def wire(self, eqn, values, stack):
        name = eqn.primitive.name
        if name in ("cumsum",):
            axis = eqn.params["axis"]
            if not is_number(eqn.invars[0].aval.shape[axis]):
                self.refuse(eqn, stack, "sums over the batch")
        return self.emit_wire(eqn, values, stack)

    def emit_wire(self, eqn, values, stack, params=None, front=False):
        self.keeps_batch(eqn, stack)
        if eqn.primitive.multiple_results and len(eqn.outvars) > 1:
            self.refuse(eqn, stack, "has several results that are not known here")
        operands, own = [], []
        for value in values:
            if isinstance(value, _Signal):
                operands.append(None)
            elif isinstance(value, _Held):
                operands.append(Constant(value.value))
            else:
                operands.append(Operand(len(own)))
                own.append(value)
        shapes = tuple(
            tuple(var.aval.shape)
            if held is not None and any(not is_number(n) for n in var.aval.shape)
            else None
            for held, var in zip(operands, eqn.invars, strict=True)
        )
        role = Wire(
            eqn.primitive,
            dict(eqn.params) if params is None else params,
            tuple(operands),
            front,
            shapes if eqn.primitive.name in _WHOLE else (),
        )
        inputs = tuple(v.name for v in values if isinstance(v, _Signal))
        shape = tuple(eqn.outvars[0].aval.shape)
        kind = eqn.primitive.name
        name = self.emit(role, inputs, shape, eqn, self.place(stack, kind))
        if own:
            self.program.uses[name] = _WireUse(own)
        return [_Signal(name)]

    def synapse(self, eqn, params, x, kernel: _Made, data, stack):
        role = Synapse(eqn.primitive, params, data, kernel.shape)
        shape = tuple(eqn.outvars[0].aval.shape)
        name = self.emit(
            role, (x.name,), shape, eqn, _owner(kernel.root) or eqn.primitive.name, "#"
        )
        self.program.uses[name] = _SynapseUse(
            kernel, role.features, len(shape), role.feature_axis
        )
        return _Signal(name)

    def neuron(self, x: _Signal, stack, cap=None) -> _Signal:
        node = self.nodes[x.name]
        name = self.emit(
            Neuron(cap), (x.name,), node.shape, None, self.place(stack, "relu")
        )
        return _Signal(name)

    def pool(self, eqn, x, stack) -> _Signal:
        role = Pool(eqn.primitive, dict(eqn.params))
        shape = tuple(eqn.outvars[0].aval.shape)
        name = self.emit(role, (x.name,), shape, eqn, self.place(stack, "maxpool"))
        return _Signal(name)

    def place(self, stack, kind: str) -> str:
        """The scope, without the outermost module, and the kind."""
        return "/".join([*stack[1:], kind])

    def emit(self, role, inputs, shape, eqn, base: str, sign: str = "") -> str:
        count = self.counts.get(base, 0)
        self.counts[base] = count + 1
        if sign:
            name = base if count == 0 else f"{base}#{count + 1}"
        else:
            name = f"{base}{count}"
        if name in self.nodes:  # a parameter is called like what is numbered
            return self.emit(role, inputs, shape, eqn, base, sign)
        self.nodes[name] = Node(name, role, inputs, shape, self.source)
        return name

    def refuse(self, eqn, stack, why: str, nodes=(), call="") -> NoReturn:
        before = self.nearest(nodes)
        where = "/".join(stack[1:] or stack) or "the function"
        of = f" (in {call})" if call and call != eqn.primitive.name else ""
        after = f", after {before}" if before else ""
        raise Refused(
            f"{where}: {eqn.primitive.name}{of}{after}, at {self.source}: {why}"
        )

    def nearest(self, nodes) -> str:
        """The synapse that a refused primitive comes after."""
        queue = list(nodes)
        if not queue and self.nodes:
            queue = [next(reversed(self.nodes))]
        while queue:
            name = queue.pop(0)
            if isinstance(self.nodes[name].role, Synapse):
                return name
            queue += self.nodes[name].inputs
        return ""


def _held(value) -> _Held:
    """A constant of a jaxpr; keys of random numbers are no arrays of NumPy."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return _Held(value)
    return _Held(np.asarray(value))


def _beside(*values, axis: int = 0):
    """Signals side by side along a new axis."""
    return lax.concatenate([lax.expand_dims(x, [axis]) for x in values], axis)


def _symbol_in(value) -> bool:
    """Whether a parameter depends on the number of images."""
    if isinstance(value, dict):
        return any(_symbol_in(item) for item in value.values())
    if isinstance(value, tuple):
        return any(_symbol_in(item) for item in value)
    return hasattr(value, "_evaluate")


def _floating(value) -> bool:
    kind = value.dtype if isinstance(value, _Made) else value.value.dtype
    return bool(jnp.issubdtype(kind, jnp.floating))


def _is_zero(value) -> bool:
    return isinstance(value, _Held) and not np.any(value.value)


def _why(name: str) -> str:
    populations = {
        "erf": "GELU is not piecewise linear",
        "tanh": "tanh (or GELU by tanh) is not piecewise linear",
        "logistic": "a sigmoid (or SiLU) is not piecewise linear",
        "rsqrt": "a normalisation by the signal's own statistics (LayerNorm, RMSNorm, "
        "GroupNorm) is not affine",
        "sqrt": "a normalisation by the signal's own statistics is not affine",
        "exp": "a softmax or exponential is not piecewise linear",
    }
    rounding = ("floor", "ceil", "round", "sign", "rem")
    if name in rounding:
        return "rounding a signal has no spiking meaning"
    return populations.get(name, "has no spiking meaning") + (
        "; a ReLU network is expected"
    )


def _scopes(eqn) -> tuple[str, ...]:
    """The modules that an equation stands in."""
    stack = getattr(eqn.source_info.name_stack, "stack", ())
    return tuple(
        part
        for scope in stack
        if type(scope).__name__ == "Scope" and not scope.name.startswith("eqx.")
        for part in scope.name.split("/")
        if "->" not in part  # of an einsum
    )


def _source(eqn) -> str:
    """The innermost line that is the user's own; none if all are a framework's."""
    for frame in source_info_util.user_frames(eqn.source_info.traceback):
        if not _framework(frame.file_name):
            return f"{frame.file_name}:{frame.start_line} ({frame.function_name})"
    return ""


def _framework(path: str) -> bool:
    known = ("site-packages", "dist-packages", os.path.dirname(__file__))
    return any(part in path for part in known)


_COLLECTIONS = ("params", "batch_stats", "value", "raw_value", "get_value")


def _owner(root: str | None) -> str | None:
    """The layer that a parameter belongs to: its path without the last part."""
    if root is None:
        return None
    parts = [part for part in root.split("/") if part not in _COLLECTIONS]
    return "/".join(parts[:-1] or parts) or None


def _follow(
    closed, count, names, values, pick, function, variables, example, trees, *, held
) -> Network:
    program = _Program(pick)
    jaxpr = closed.jaxpr
    made = []
    for var, name in zip(jaxpr.invars[:count], names, strict=True):
        shape = tuple(var.aval.shape)
        varies = tuple(i for i, n in enumerate(shape) if n != 1)
        made.append(_Made(program.slot(), shape, var.aval.dtype, name, varies))
    inputs = jaxpr.invars[count:]
    kinds = [v.aval.dtype for v in jaxpr.invars]
    kinds = [k for k in kinds if jnp.issubdtype(k, jnp.floating)]
    dtype = jnp.result_type(*kinds) if kinds else jnp.dtype(jnp.float32)
    follower = _Follower(program, dtype)
    signals = []
    for i, var in enumerate(inputs):
        name = f"input{i}"
        follower.nodes[name] = Node(
            name, Input(str(var.aval.dtype)), (), tuple(var.aval.shape), ""
        )
        if not jnp.issubdtype(var.aval.dtype, jnp.floating):
            follower.integers.add(name)
        signals.append(_Signal(name))
    consts = [_held(c) for c in closed.consts]
    found = follower.follow(jaxpr, consts, [*made, *signals], ())
    outputs, aside = [], {}
    for i, value in enumerate(found):
        if isinstance(value, _Tail):
            what = value.eqn.primitive.name
            names = {"exp": "sigmoid" if value.falling else "softmax"}
            names["logistic"] = "sigmoid"
            aside[i] = value.call or names.get(what, what)
            outputs.append(_peeled(follower, value))
        elif isinstance(value, _Signal):
            outputs.append(value.name)
        else:
            raise Refused(
                f"output {i} does not depend on the inputs; leave it out of what the "
                "function returns"
            )
    nodes = _living(follower.nodes, outputs)
    nodes, outputs = _folded(nodes, outputs, program)
    program.seal({node.name for node in nodes})
    graph = Graph(tuple(nodes), tuple(outputs))
    if not graph.of(Neuron):
        raise Refused(
            "the function has no ReLU, so nothing in it would spike; a network needs "
            "one before its last layer"
        )
    network = Network(
        graph, function, variables if held else None, trees, aside, program
    )
    _count_parameters(network, values)
    _prove(network, variables, example)
    for position, what in aside.items():
        warnings.warn(
            f"output {position}: the final {what} is set aside; what comes out is what "
            "it was given",
            stacklevel=4,
        )
    return network


def _living(nodes: dict[str, Node], outputs: list[str]) -> list[Node]:
    """The nodes that the outputs need, and all inputs."""
    needed, kept = set(outputs), []
    for node in reversed(nodes.values()):
        if node.name in needed or isinstance(node.role, Input):
            kept.append(node)
            needed.update(node.inputs)
    return kept[::-1]


def _peeled(follower: _Follower, tail: _Tail) -> str:
    """The one signal that what was set aside is a function of.

    A softmax subtracts the maximum of its logits first: they are what is meant.
    """
    nodes = follower.nodes
    order = {name: i for i, name in enumerate(nodes)}

    def above(name: str) -> set[str]:
        found, queue = set(), [name]
        while queue:
            one = queue.pop()
            if one not in found:
                found.add(one)
                queue += nodes[one].inputs
        return found

    def reaches(start: tuple[str, ...], without: str) -> bool:
        """Whether an input is reached from `start` by a path around `without`."""
        queue, seen = [n for n in start if n != without], set()
        while queue:
            name = queue.pop()
            if isinstance(nodes[name].role, Input):
                return True
            for before in nodes[name].inputs:
                if before != without and before not in seen:
                    seen.add(before)
                    queue.append(before)
        return False

    def softened(name: str) -> str:
        """`x`, if a node is `x - max(x)`."""
        node = nodes[name]
        if not isinstance(node.role, Wire) or node.role.primitive.name != "sub":
            return name
        x, most = node.inputs[0], node.inputs[-1]
        while isinstance(nodes[most].role, Wire) and len(nodes[most].inputs) == 1:
            (most,) = nodes[most].inputs
        pooled = isinstance(nodes[most].role, Pool) and nodes[most].inputs == (x,)
        return x if pooled else name

    def weighs(name: str) -> bool:
        role = nodes[name].role
        if isinstance(role, Wire):
            return any(isinstance(held, Operand) for held in role.operands)
        return not isinstance(role, Pool)

    everything = set().union(*(above(name) for name in tail.nodes))
    for name in sorted(everything, key=order.get, reverse=True):
        if reaches(tail.nodes, name):
            continue
        if any(weighs(n) for n in everything if n != name and name in above(n)):
            break
        name = softened(name)
        if not tail.falling:
            return name
        turned = nodes[name].role
        if isinstance(turned, Wire) and turned.primitive.name == "neg":
            return nodes[name].inputs[0]
        return follower.apply(jnp.negative, [_Signal(name)], tail.stack)[0].name
    follower.refuse(
        tail.eqn,
        tail.stack,
        "is computed from several signals, so it cannot be set aside; return them",
        tail.nodes,
        tail.call,
    )


def _folded(nodes: list[Node], outputs: list[str], program: _Program):
    """Moves scales and shifts per channel right behind a synapse into it."""
    users: dict[str, int] = {}
    for name in [name for node in nodes for name in node.inputs] + outputs:
        users[name] = users.get(name, 0) + 1
    renamed: dict[str, str] = {}
    synapses: dict[str, str] = {}  # a node that stands for a synapse -> the synapse
    kept: list[Node] = []
    shapes = {node.name: node.shape for node in nodes}
    for node in nodes:
        inputs = tuple(renamed.get(name, name) for name in node.inputs)
        node = dataclasses.replace(node, inputs=inputs)
        role = node.role
        if isinstance(role, Synapse):
            synapses[node.name] = node.name
        elif isinstance(role, Wire) and len(inputs) == 1 and inputs[0] in synapses:
            name = role.primitive.name
            before = inputs[0]
            alone = users[before] == 1 and node.shape == shapes[before]
            if name in ("add", "sub", "mul", "div") and alone:
                use = program.uses[synapses[before]]
                fold = _fold_of(node, role, program, use)
                if fold is not None:
                    use.folds.append(fold)
                    renamed[node.name] = before
                    users[before] = users[node.name]
                    program.uses.pop(node.name, None)
                    continue
        kept.append(node)
    return kept, [renamed.get(name, name) for name in outputs]


def _fold_of(node: Node, role: Wire, program: _Program, use: _SynapseUse):
    """`(primitive, value, its position)` if it acts on channels alone."""
    position = next(i for i, held in enumerate(role.operands) if held is not None)
    held = role.operands[position]
    if isinstance(held, Constant):
        value: Any = _Held(held.value)
        varies = tuple(i for i, n in enumerate(held.value.shape) if n != 1)
        rank = held.value.ndim
    else:
        value = program.uses[node.name].values[held.index]
        varies, rank = value.varies, len(value.shape)
    name = role.primitive.name
    if name == "div" and position == 0:
        return None
    if not varies:
        return name, value, position
    if use.axis is None or rank != use.rank:
        return None
    if any(i != use.axis % use.rank for i in varies):
        return None
    return name, value, position


def _count_parameters(network: Network, values: list) -> None:
    for name, own in jax.eval_shape(network.program.make, values).items():
        sizes = (math.prod(leaf.shape) for leaf in jax.tree.leaves(own))
        network.program.parameters[name] = sum(sizes)


# Proofs, once for each trace.


def _prove(network: Network, variables, example) -> None:
    """Checks numerically that wires are affine, and that the graph is the function.

    Raises:
      Refused: where something that should be affine is not.
      AssertionError: where the graph is not the user's function: a fault of this
        library.
    """
    inputs = jax.tree.map(_some, example)
    if any(
        isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables)
    ):
        raise TypeError("trace: variables must be arrays, found shapes alone")
    weights = _quick(network.weights)(variables)
    _check_wires(network, weights, inputs)

    def both(variables, weights, inputs):
        own = jax.tree.leaves(network.function(variables, inputs))
        return own, forward(network, weights, inputs)[0]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected, found = jax.device_get(_quick(both)(variables, weights, inputs))
    tolerance = max(1e-4, 16 * network.program.rounding)
    for i, (one, other) in enumerate(zip(expected, found, strict=True)):
        if i in network.aside:
            continue
        one = np.asarray(one, np.float64)
        error = np.abs(one - np.asarray(other)).max() / max(np.abs(one).max(), 1e-30)
        if np.isfinite(one).all() and not error <= tolerance:
            raise AssertionError(
                f"output {i} of the traced network differs from the function's by "
                f"{error:.1e} of the largest; this is a fault of jaxburst, please "
                "report it"
            )


def _some(leaf) -> np.ndarray:
    """Up to two images of the example, or random ones of its shape."""
    kind = jnp.result_type(leaf)
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return np.asarray(leaf)[:2]
    shape = (2, *leaf.shape[1:])
    if jnp.issubdtype(kind, jnp.floating):
        return np.random.default_rng(0).normal(size=shape).astype(kind)
    return np.zeros(shape, kind)


def _quick(function: Callable) -> Callable:
    """`jax.jit` for what runs once: compiling takes longer than running."""
    level = {"xla_backend_optimization_level": 0}
    return jax.jit(function, compiler_options=level)


def _check_wires(network: Network, weights, inputs) -> None:
    """Checks that every neuron, pool and output is affine in what it is sent.

    Of five images three hold 0, 1 and 2 times the same random numbers at every input,
    neuron and pool, one holds others, and the last is the second again. An affine
    function has no second difference among the first three, and what keeps images
    apart gives the same for the second and the last.

    Raises:
      Refused: where it is not so.
    """
    graph = network.graph
    rng = np.random.default_rng(0)
    given, integers = {}, {}
    for node, leaf in zip(graph.of(Input), network.leaves(inputs), strict=True):
        if not jnp.issubdtype(jnp.dtype(node.role.dtype), jnp.floating):
            integers[node.name] = np.stack([leaf[0]] * 3 + [leaf[-1], leaf[0]])
    for node in graph.of(Input, Neuron, Pool):
        if node.name not in integers:
            numbers = rng.normal(size=at_batch(node.shape, 2)).astype(np.float32)
            given[node.name] = np.split(numbers, 2, node.batch_axis)

    def run(weights, given, integers):
        found = {}

        def note(name: str, value) -> None:
            if not jnp.issubdtype(value.dtype, jnp.floating):
                return
            none, one, two, _, again = jnp.split(value, 5, graph[name].batch_axis)
            second, mixed = abs(none - 2 * one + two).max(), abs(one - again).max()
            found[name] = (second, mixed, abs(value).max() + 1e-30)

        def signal(node: Node, like) -> jax.Array:
            one, other = (x.astype(like) for x in given[node.name])
            parts = [jnp.zeros_like(one), one, one + one, other, one]
            return jnp.concatenate(parts, node.batch_axis)

        def visit(node: Node, *values):
            match node.role:
                case Input() if node.name in integers:
                    return integers[node.name]
                case Input():
                    return signal(node, node.role.dtype)
                case Neuron() | Pool():
                    note(node.inputs[0], values[0])
                    return signal(node, values[0].dtype)
            return apply(node, weights, *values, batch=5)

        outputs = read(graph, visit, *graph.of(Input))
        for name, value in zip(graph.outputs, outputs, strict=True):
            note(name, value)
        return found

    found = jax.device_get(_quick(run)(weights, given, integers))
    for name, (second, mixed, size) in found.items():
        node = graph[name]
        if not mixed <= AFFINE_TOLERANCE * size:
            raise Refused(
                f"{name}, at {node.source}: what leads to it mixes the images of a "
                "batch, or does not keep the numbers of each together"
            )
        if not second <= AFFINE_TOLERANCE * size:
            raise Refused(
                f"{name}, at {node.source}: what leads to it is not affine: doubling "
                f"the signals changes it by {second / size:.1e} too much"
            )
