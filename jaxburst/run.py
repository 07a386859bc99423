"""The spiking reading of a network: neurons unrolled over time.

    trace = simulate(model, spiking, inputs, steps=8)
    logits = infer(model, spiking, inputs, steps=8)
    curves = evaluate(model, spiking, (inputs, labels), steps=8)

Spikes cross all nodes within one step, and what no neuron leads to is computed once,
outside the loop. Outputs integrate and do not spike; they come in the trained network's
unit.

As a population needs nothing but the spikes of those below, it may as well take several
steps before the next takes its own: its convolutions then see a larger batch. How many
steps at once, and how many images, is a `Plan`; what comes out is the same, up to the
rounding of sums.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.checks import door
from jaxburst.convert import Spiking, check_spiking
from jaxburst.devices import one_core_each
from jaxburst.graph import (
    FACTORS,
    Graph,
    Input,
    Neuron,
    Node,
    Pool,
    Product,
    Route,
    Synapse,
    Wire,
    apply,
    apply_wire,
    at_batch,
    images_first,
    multiply,
    over,
    read,
    routes,
    stands_for,
    unknown,
)
from jaxburst.kernels import convolution
from jaxburst.network import Affine, Network
from jaxburst.neurons import POOLS, Burst, Pooled
from jaxburst.neurons import Neuron as Kind
from jaxburst.traffic import Traffic
from jaxburst.traffic import count as traffic_of


@dataclasses.dataclass(frozen=True)
class Model:
    """Everything about a simulation that is not an array: hashable, static under jit.

    Attributes:
      network: the traced network.
      neuron: the kind of neuron that every population is made of.
      pool: max pooling by `'lateral'` inhibition, or `'gated'`, the baseline.
      exact: convolve by definition only. Otherwise some layers use a faster algorithm
        where there is one (Winograd's, on CPU, in single precision), which rounds
        differently: a potential at the very threshold may cross it a step apart.
      precision: of the kernels of convolutions that receive spikes, `'float32'` or
        `'bfloat16'`, for accelerators. Spikes are whole numbers, exact in both, and
        sums, currents and membranes keep the precision of the weights; but these
        kernels are rounded to 8 bits of mantissa.

    Example:
      >>> model.network.neurons, model.neuron.gamma, model.pool
      (('relu0',), 5, 'lateral')
    """

    network: Network
    neuron: Kind = Burst()
    pool: str = "lateral"
    exact: bool = False
    precision: str = "float32"

    def __post_init__(self):
        if not isinstance(self.network, Network):
            raise TypeError(
                "Model: network must be what trace returns, found "
                f"{type(self.network).__name__}"
            )
        if not isinstance(self.neuron, Kind):
            raise TypeError(
                "Model: neuron must be a kind of neuron, such as Burst() or "
                f"Refining(), found {self.neuron!r}"
            )
        if not isinstance(self.exact, bool):
            raise TypeError(f"Model: exact must be True or False, found {self.exact!r}")
        self.neuron.check(self.network.neurons)
        if not self.neuron.universal:
            _check_rectifies(self.network, self.neuron)
        if self.pool not in POOLS:
            raise ValueError(
                f"Model: pool must be one of {list(POOLS)}, found {self.pool!r}"
            )
        if self.pool == "gated" and not self.neuron.repeats:
            raise ValueError(
                "Model: gating passes current spikes, but those of refining neurons "
                "are changes; use pool='lateral'"
            )
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(
                "Model: precision must be 'float32' or 'bfloat16', found "
                f"{self.precision!r}"
            )
        if self.precision == "bfloat16":
            most = _largest_count(self)
            if not most <= 256:
                raise ValueError(
                    "Model: bfloat16 holds whole numbers up to 256, but a convolution "
                    f"may receive {most}: the most spikes of a step, times the window "
                    "of an average pool before it; use a smaller gamma or "
                    "precision='float32'"
                )

    @property
    def routes(self) -> dict[str, Route]:
        """Which nodes pass on whole numbers, and what these are worth."""
        return _routes(self.network.graph)


@lru_cache
def _routes(graph: Graph) -> dict[str, Route]:
    return routes(graph)


def _largest_count(model: Model) -> float:
    """Most spikes of a step that arrive at one place of a convolution."""
    most = model.neuron.most
    if most is None:
        return np.inf
    graph, windows = model.network.graph, [1]
    for node in graph.of(Synapse):
        name = node.inputs[0]
        if node.role.is_conv and name in model.routes:
            windows.append(_summed(graph, name))
    return most * max(windows)


def _summed(graph: Graph, name: str) -> int:
    """How many places are added up on the way from the neurons to a node."""
    node = graph[name]
    if not isinstance(node.role, Wire):
        return 1
    before = max(_summed(graph, one) for one in node.inputs)
    params = node.role.params
    if node.role.primitive.name == "reduce_window_sum":
        return before * int(np.prod(params["window_dimensions"]))
    if node.role.primitive.name == "reduce_sum":
        shape = graph[node.inputs[0]].image_shape
        return before * int(np.prod([shape[i] for i in params["axes"]]))
    return before


def _check_rectifies(network: Network, neuron: Kind) -> None:
    """Refuses functions and products that a kind of neuron cannot do."""
    for node in network.graph.of(Neuron, Product):
        what = "is a product of two signals"
        if isinstance(node.role, Neuron):
            if node.role.function is None:
                continue
            what = "stands for another function than a ReLU"
        raise ValueError(
            f"Model: {node.name} {what} ({node.source}), which {neuron!r} cannot do; "
            "use Refining(), whose spikes add up to any function of what they receive"
        )


State = dict[str, Any]


class Multiplied(NamedTuple):
    """What a product of two signals carries from step to step.

    Attributes:
      a, b: what has arrived so far: whole numbers, or charges.
      sent: their product.
    """

    a: jax.Array
    b: jax.Array
    sent: jax.Array


Respond = Callable[..., tuple[Any, jax.Array]]


class Circuit(NamedTuple):
    """What `prepare` makes of converted weights: what does not depend on the inputs.

    Attributes:
      own: `{node: arrays}`: kernels in their fast form, with the units of what they
        receive; thresholds; the arrays of wires.
      units: `{node: what one of the whole numbers it passes on is worth}`.
    """

    own: dict[str, Any]
    units: dict[str, jax.Array]


class Info(NamedTuple):
    """What a block of steps shows; nothing of it needs to be carried to the next.

    Attributes:
      outputs: the outputs after each step, `[K, B, ...]` each.
      spikes: `{name: n_t}` of every population and pool, `[K, B, ...]`, the batch where
        the network has it.
      traffic: `{name: Traffic}`, `[K, B]` each, per step and image: of a population
        what is sent, of a pool what is passed on.
      potentials: `{name: v_t}`, `[K, B, ...]`, of the populations asked for.
    """

    outputs: tuple[jax.Array, ...]
    spikes: dict[str, jax.Array]
    traffic: dict[str, Traffic]
    potentials: dict[str, jax.Array]

    @property
    def events(self) -> dict[str, jax.Array]:
        """`{name: [K, B]}`, quanta: a burst of k as k and a negative spike as one."""
        return {name: counts.quanta for name, counts in self.traffic.items()}


class _Signal(NamedTuple):
    """A value on its way: whole numbers of a node, a charge, or constant over time."""

    value: jax.Array
    node: Node
    whole: bool = False
    constant: bool = False


def platform_of(platform: str | None = None) -> str:
    """The platform that is asked for, or the default one."""
    return platform or jax.default_backend()


# Preparing weights.


def prepare(model: Model, spiking: Spiking, platform: str | None = None) -> Circuit:
    """Does the work that depends on the weights only, once for all inputs and steps.

    The threshold of whoever sends spikes moves into the kernels that receive them, so
    that kernels act on whole numbers; convolutions take the form that is fast for their
    shape on the platform.
    """
    graph, own, units = model.network.graph, {}, {}
    for node in graph.weighing:
        if node.name in spiking:
            own[node.name] = spiking[node.name]
        route = model.routes.get(node.name)
        if route is not None:
            units[node.name] = unit_of_places(node, route, spiking, graph)
    forms = _forms(model, platform, dtype_of(model, own))
    for node in graph.of(Synapse):
        kernel, bias = spiking[node.name]
        received = node.inputs[0]
        if received in model.routes:
            unit = unit_of_rows(node, model.routes[received], spiking, graph)
            if unit is not None:
                kernel = kernel * unit
                if model.precision == "bfloat16" and node.role.is_conv:
                    kernel = kernel.astype(jnp.bfloat16)
        form = forms.get(node.name)
        if form is not None:
            kernel = convolution.prepare(form, kernel)
        own[node.name] = Affine(kernel, bias)
    return Circuit(own, units)


prepared = partial(jax.jit, static_argnames=("model", "platform"))(prepare)
"""`prepare` by itself, outside of other jitted functions."""


def _forms(model: Model, platform: str | None, dtype) -> dict[str, convolution.Form]:
    """How each convolution is computed, by name."""
    platform = platform_of(platform)
    one_core = platform == "cpu" and one_core_each()
    return _forms_of(model, platform, jnp.dtype(dtype), one_core)


@lru_cache
def _forms_of(model: Model, platform: str, dtype, one_core: bool):
    graph, forms = model.network.graph, {}
    for node in graph.of(Synapse):
        if node.role.is_conv:
            narrow = model.precision == "bfloat16" and node.inputs[0] in model.routes
            forms[node.name] = convolution.choose(
                node.role.params,
                node.role.kernel,
                graph[node.inputs[0]].image_shape,
                jnp.bfloat16 if narrow else dtype,
                platform=platform,
                exact=model.exact,
                one_core=one_core,
            )
    return forms


def _thetas(route: Route, spiking: Spiking, graph: Graph) -> jax.Array:
    """The thresholds of a route's sources, one after the other."""
    found = []
    for name in route.sources:
        theta = jnp.asarray(spiking[name].theta)
        count = graph[name].image_shape[graph.channel_axes[name]]
        found.append(jnp.broadcast_to(theta.reshape(-1), (count,)))
    return jnp.concatenate(found)


def _uniform(route: Route, spiking: Spiking) -> jax.Array | None:
    """The threshold that all places share, if they do."""
    if len(route.sources) > 1:
        return None
    theta = jnp.asarray(spiking[route.sources[0]].theta)
    return theta * theta.dtype.type(route.factor) if theta.ndim == 0 else None


def unit_of_places(
    node: Node, route: Route, spiking: Spiking, graph: Graph
) -> jax.Array:
    """What one whole number of a node is worth: a scalar, or like one image's `[...]`,
    with 1 for axes along which it does not vary."""
    shared = _uniform(route, spiking)
    if shared is not None:
        return shared
    ids = route.ids
    for axis in range(ids.ndim):  # where all that is there agrees, one will do
        best = ids.max(axis, keepdims=True)
        if ((ids == best) | (ids < 0)).all():
            ids = best
    if node.batch_axis == 0:
        ids = ids[0]
    thetas = _thetas(route, spiking, graph)
    return thetas[np.maximum(ids, 0)] * thetas.dtype.type(route.factor)


def unit_of_rows(node: Node, route: Route, spiking: Spiking, graph: Graph):
    """The unit of what a synapse receives, in the shape of its kernel.

    None where one row of the kernel receives several units.
    """
    shared = _uniform(route, spiking)
    if shared is not None:
        return shared
    rows = _rows(node, route)
    if rows is None:
        return None
    role, (_, of_kernel) = node.role, node.role.contracted
    thetas = _thetas(route, spiking, graph)
    units = thetas[np.maximum(rows, 0)] * thetas.dtype.type(route.factor)
    shape = [1] * len(role.kernel)
    groups = role.params.get("feature_group_count", 1) if role.is_conv else 1
    if groups == 1:
        for axis in of_kernel:
            shape[axis] = role.kernel[axis]
        return units.reshape(shape)
    (axis,), features = of_kernel, role.features
    each = units.reshape(groups, -1)  # [groups, rows]
    table = jnp.repeat(each, role.kernel[features] // groups, axis=0)
    shape[axis], shape[features] = role.kernel[axis], role.kernel[features]
    return (table.T if axis < features else table).reshape(shape)


def _rows(node: Node, route: Route) -> np.ndarray | None:
    """The channel that each row of a synapse's kernel receives, in the kernel's order.

    None where one row receives several.
    """
    of_data, of_kernel = node.role.contracted
    others = tuple(i for i in range(route.ids.ndim) if i not in of_data)
    best = route.ids.max(others, keepdims=True)
    if not ((route.ids == best) | (route.ids < 0)).all():
        return None
    order = [of_data[i] for i in np.argsort(of_kernel)]
    return best.transpose(*order, *others).reshape([best.shape[i] for i in order])


# The state.


def rest(model: Model, circuit: Circuit, batch: int) -> State:
    """The state before the first step, for so many images.

    Returns:
      `{name: state}` of every population and pool, what the outputs have integrated,
      and the time.
    """
    graph, state = model.network.graph, {}
    dtype = dtype_of(model, circuit.own)
    for node in graph.nodes:
        if node.name not in graph.dynamic:
            continue
        before = [at_batch(graph[name].shape, batch) for name in node.inputs]
        sent = jnp.zeros(at_batch(node.shape, batch), dtype)
        match node.role:
            case Neuron():
                own, f = circuit.own[node.name], stands_for(node, circuit.own, batch)
                neuron = model.neuron.at(node.name)
                state[node.name] = neuron.rest(own, *before, dtype, f)
            case Pool():
                state[node.name] = Pooled(jnp.zeros(*before, dtype), sent)
            case Product():
                arrays = [jnp.zeros(size, dtype) for size in before]
                state[node.name] = Multiplied(*arrays, sent)
    totals = tuple(
        jnp.zeros(at_batch(graph[name].shape, batch), dtype) for name in graph.outputs
    )
    return state | {"outputs": totals, "time": jnp.zeros((), jnp.int32)}


def dtype_of(model: Model, own: dict[str, Any]):
    """The type of currents and potentials."""
    for node in model.network.graph.of(Synapse):
        return own[node.name].bias.dtype
    return next(iter(own[name].theta.dtype for name in model.network.neurons))


# One block of steps.


def constants(model: Model, circuit: Circuit, inputs: list, platform=None) -> dict:
    """What does not change over time: `{node: value}` for one presentation."""
    graph = model.network.graph
    batch = inputs[0].shape[0]
    dtype = dtype_of(model, circuit.own)
    forms, found = _forms(model, platform, dtype), {}

    def visit(node: Node, *values):
        if node.name in graph.dynamic:
            return None
        match node.role:
            case Input():
                value = values[0]
                if jnp.issubdtype(value.dtype, jnp.floating):
                    value = value.astype(dtype)
            case Synapse():
                kernel, bias = circuit.own[node.name]
                value = _weigh(node, forms, kernel, values[0], None)
                value = value + over(bias, value)
            case Wire() | Pool() | Product():
                value = apply(node, circuit.own, *values, batch=batch)
            case _:
                raise unknown(node, "the constant part of a network")
        found[node.name] = value
        return value

    read(graph, visit, *inputs)
    used = {name for node in graph.nodes if node.name in graph.dynamic
            for name in node.inputs} | set(graph.outputs)  # fmt: skip
    return {name: value for name, value in found.items() if name in used}


def _weigh(node: Node, forms, kernel, x, dtype):
    form = forms.get(node.name)
    if form is not None:
        return convolution.convolve(form, x, kernel, dtype)
    return node.role.apply(x, kernel)


def block(
    model: Model,
    circuit: Circuit,
    held: dict,
    state: State,
    steps: int = 1,
    *,
    record: tuple[str, ...] = (),
    respond: Respond | None = None,
    changes: bool = False,
    platform: str | None = None,
) -> tuple[State, Info]:
    """Advances by some steps, every node by all of them before the next node.

    Args:
      model: the network, neuron and pooling.
      circuit: from `prepare`.
      held: from `constants`.
      state: after the previous step, at first `rest`.
      steps: how many steps `K` to take.
      record: the populations whose potentials are wanted.
      respond: how a population answers its current, if not by the neuron's equations:
        `respond(node, threshold, state, current, t, f)`, the threshold with all rows.
      changes: whether what is held is what has changed, which arrives as it is, and not
        what is presented.
      platform: where it will run, if not here.

    Returns:
      `(state, info)`.
    """
    graph, neuron = model.network.graph, model.neuron
    dtype = dtype_of(model, circuit.own)
    forms, state = _forms(model, platform, dtype), dict(state)
    t = state["time"] + 1 + jnp.arange(steps, dtype=jnp.int32)
    presented, worth = (
        value if isinstance(value, float) else value.astype(dtype)
        for value in (neuron.presented(t), neuron.worth(t))
    )
    batch = state["outputs"][0].shape[_output_axis(graph)] // _per_image(graph)
    spikes_of, traffic, potentials = {}, {}, {}

    def along(factor, value, node: Node):
        """Multiplies every step of a value by its factor."""
        if isinstance(factor, float):
            return value if factor == 1 else value * value.dtype.type(factor)
        if steps == 1:
            factors = factor.reshape(())
        else:
            shape = [1] * value.ndim
            shape[node.batch_axis] = -1
            each = value.shape[node.batch_axis] // steps
            factors = jnp.repeat(factor, each).reshape(shape)
        if factor is presented:  # a mask may be infinite
            return jnp.where(factors != 0, value, jnp.zeros_like(value))
        return value * factors

    def charge(signal: _Signal) -> jax.Array:
        value, node = signal.value, signal.node
        if signal.constant:
            if steps > 1 and node.batch_axis is not None:
                value = jnp.concatenate([value] * steps, node.batch_axis)
            if changes or not jnp.issubdtype(value.dtype, jnp.floating):
                return value  # or a mask, or a place
            return along(presented, value, node)
        if signal.whole:
            unit = circuit.units[node.name]
            return along(worth, value * over(unit, value), node)
        return value

    def split(value, node: Node):
        """`[K, B, ...]` of steps beside images."""
        if steps == 1:
            return value[None]
        axis = node.batch_axis
        value = jnp.moveaxis(value, axis, 0)
        value = value.reshape(steps, -1, *value.shape[1:])
        return jnp.moveaxis(value, 1, axis + 1)

    def merge(value, node: Node):
        if steps == 1:
            return value[0]
        axis = node.batch_axis
        value = jnp.moveaxis(value, axis + 1, 1)
        value = value.reshape(-1, *value.shape[2:])
        return jnp.moveaxis(value, 0, axis)

    def count(node: Node, spikes, whole: bool):
        values = images_first(graph, node.name, spikes, node.batch_axis + 1)
        values = jnp.moveaxis(values, node.batch_axis + 1, 1)
        return traffic_of(values.reshape(steps, batch, -1), whole)

    def visit(node: Node, *signals):
        if node.name not in graph.dynamic:
            return _Signal(held.get(node.name), node, constant=True)
        match node.role:
            case Synapse() as role:
                (signal,) = signals
                kernel, bias = circuit.own[node.name]
                folded = signal.whole and _folds(model, node, circuit)
                value = signal.value if folded else charge(signal)
                if role.is_conv:
                    value = value.astype(kernel.dtype)
                current = _weigh(node, forms, kernel, value, bias.dtype)
                if folded:
                    current = along(worth, current, node)
                bias = over(bias, current)
                if not isinstance(presented, float):
                    bias = along(presented, jnp.broadcast_to(bias, current.shape), node)
                return _Signal(current + bias, node)
            case Wire():
                if node.name in model.routes:
                    values = [signal.value for signal in signals]
                    if node.role.primitive.name in ("mul", "div"):
                        return _Signal(values[0], node, whole=True)  # in the unit
                    value = apply_wire(node, (), *values, batch=steps * batch)
                    return _Signal(value, node, whole=True)
                values = [charge(signal) for signal in signals]
                own = circuit.own.get(node.name, ())
                wire = partial(apply_wire, node, own, batch=steps * batch)
                if neuron.repeats or not shifts(node):
                    return _Signal(wire(*values), node)
                none = wire(*map(_nothing, values))
                value = wire(*values, linear=True)
                return _Signal(value + along(presented, none, node), node)
            case Neuron():
                spikes = answer(node, split(charge(signals[0]), signals[0].node))
                spikes_of[node.name] = spikes
                traffic[node.name] = count(node, spikes, True)
                return _Signal(merge(spikes, node), node, whole=True)
            case Pool():
                (signal,) = signals
                whole = node.name in model.routes
                value = signal.value if whole else charge(signal)
                out = pooled(node, split(value, signal.node), whole)
                spikes_of[node.name] = out
                traffic[node.name] = count(node, out, whole)
                return _Signal(merge(out, node), node, whole=whole)
            case Product():
                return _Signal(product(node, signals), node)
        raise unknown(node, "a spiking step")

    def answer(node: Node, current):
        own, name = neuron.at(node.name), node.name
        threshold, f = circuit.own[name], stands_for(node, circuit.own, batch)

        def advance(before, arriving):
            current, t = arriving
            if respond is not None:
                after, spikes = respond(node, threshold, before, current, t, f)
            else:
                row = threshold._replace(bias=own.correction(threshold.bias, t))
                after, spikes = own.step(row, before, current, t, f)
            shown = own.potential(threshold, after) if name in record else None
            return after, (spikes, shown)

        state[name], (spikes, shown) = _over_steps(advance, state[name], (current, t))
        if name in record:
            potentials[name] = shown
        return spikes

    def product(node: Node, signals):
        """What the product of two signals changes by, of the sums of what arrived."""
        wholes = [signal.whole for signal in signals]
        arriving = [s.value if s.whole else charge(s) for s in signals]
        arriving = [split(x, s.node) for x, s in zip(arriving, signals, strict=True)]

        def worthy(total, t, signal: _Signal):
            if not signal.whole:
                return total
            unit = over(circuit.units[signal.node.name], total)
            return total * unit * jnp.asarray(neuron.worth(t), dtype)

        def advance(before: Multiplied, arriving):
            *changes, t = arriving
            sums = [
                total * (jnp.asarray(neuron.growth(t), dtype) if whole else 1) + change
                for total, change, whole in zip(before, changes, wholes, strict=False)
            ]
            values = [worthy(x, t, s) for x, s in zip(sums, signals, strict=True)]
            out = multiply(node, *values, batch=batch)
            return Multiplied(*sums, out), out - before.sent

        state[node.name], out = _over_steps(advance, state[node.name], (*arriving, t))
        return merge(out, node)

    def pooled(node: Node, value, whole: bool):
        def advance(before: Pooled, arriving):
            value, t = arriving
            if whole:  # the same charge in new quanta
                growth = jnp.asarray(neuron.growth(t), value.dtype)
                before = Pooled(*(total * growth for total in before))
            return POOLS[model.pool](node, before, value, batch)

        state[node.name], out = _over_steps(advance, state[node.name], (value, t))
        return out

    # Inputs are in `held` already: what stands for them here is not looked at.
    signals = read(graph, visit, *[None] * len(graph.of(Input)))
    arriving = tuple(split(charge(s), s.node) for s in signals)

    def integrate(carried, arriving):
        totals, _ = carried
        currents, t = arriving
        totals = tuple(a + b for a, b in zip(totals, currents, strict=True))
        return (totals, t), tuple(neuron.readout(total, t) for total in totals)

    carried = (state["outputs"], state["time"])
    (totals, time), outputs = _over_steps(integrate, carried, (arriving, t))
    state |= {"outputs": totals, "time": time}
    return state, Info(outputs, spikes_of, traffic, potentials)


def _nothing(value: jax.Array) -> jax.Array:
    """No charge; a mask or a place stays what it is."""
    return jnp.zeros_like(value) if jnp.issubdtype(value.dtype, jnp.floating) else value


def _output_axis(graph: Graph) -> int:
    return graph[graph.outputs[0]].batch_axis


def _per_image(graph: Graph) -> int:
    """How many rows of the first output's batch axis belong to one image."""
    node = graph[graph.outputs[0]]
    return node.image_shape[node.batch_axis]


def _folds(model: Model, node: Node, circuit: Circuit) -> bool:
    """Whether the unit of what a synapse receives went into its kernel."""
    name = node.inputs[0]
    route = model.routes[name]
    return _uniform(route, circuit.own) is not None or _rows(node, route) is not None


def shifts(node: Node) -> bool:
    """Whether a wire adds something that is presented."""
    role = node.role
    if role.primitive.name in FACTORS:
        return False
    return any(held is not None and not _is_index(held, role) for held in role.operands)


def _is_index(held, role: Wire) -> bool:
    value = getattr(held, "value", None)
    if value is None:
        return False
    return not np.issubdtype(value.dtype, np.inexact) or not value.any()


def _over_steps(advance: Callable, state, arriving):
    """`lax.scan`, without a loop for a single step."""
    if len(jax.tree.leaves(arriving)[0]) > 1:
        return jax.lax.scan(advance, state, arriving)
    state, shown = advance(state, jax.tree.map(lambda x: x[0], arriving))
    return state, jax.tree.map(lambda x: x[None], shown)


# One unrolling.


class Plan(NamedTuple):
    """The order of a simulation. What comes out depends on it by rounding only.

    Attributes:
      steps: how many time steps a population takes before the next takes its own.
      images: how many images are simulated at a time.
    """

    steps: int
    images: int

    def __str__(self) -> str:
        steps = "1 step" if self.steps == 1 else f"{self.steps} steps, layer by layer,"
        return f"{steps} of {self.images} images at a time"


def plan(
    batch: int, steps: int, schedule: str = "auto", platform: str | None = None
) -> Plan:
    """Chooses the order of a simulation.

    `'step'` takes one step at a time through all layers: its memory does not depend on
    the number of steps. `'layer'` takes as many as make 256 images, each layer all of
    them before the next: kernels are read once for all. `'auto'` does so up to 256
    images, but on a CPU up to 32, or 16 where every core is a device of its own: there
    larger batches are no faster. A CPU simulates large batches in equal parts that fit
    its cache, if there are any: of 16 to 64 images, on a single core of 8 to 16.

    Args:
      batch: number of images on one device.
      steps: number of time steps.
      schedule: `'auto'`, `'step'` or `'layer'`.
      platform: where it will run, if not here.

    Returns:
      The `Plan`.
    """
    if schedule not in ("auto", "step", "layer"):
        raise ValueError(
            f"schedule must be 'auto', 'step' or 'layer', found {schedule!r}; logits "
            "from one pass, without events, are `jaxburst.direct`"
        )
    images, enough = batch, 256
    if platform_of(platform) == "cpu":
        least, largest, enough = (8, 16, 16) if one_core_each() else (16, 64, 32)
        part = max(part for part in range(1, largest + 1) if batch % part == 0)
        images = part if part >= least else batch
    most = {"step": 1, "layer": 256, "auto": enough}[schedule]
    return Plan(min(steps, max(1, most // images)), images)


def unroll(
    model: Model,
    circuit: Circuit,
    inputs: list,
    steps: int,
    observe: Callable[[State, Info], Any],
    *,
    order: Plan | None = None,
    record: tuple[str, ...] = (),
    respond: Respond | None = None,
    follow: tuple[Callable, Callable] | None = None,
    platform: str | None = None,
):
    """Presents inputs for a number of time steps: the only loop over time.

    Args:
      model: the network, neuron and pooling.
      circuit: from `prepare`.
      inputs: the arrays of the inputs, `[B, ...]`.
      steps: number of time steps `T`.
      observe: makes of `(state, info)` after a block of `K` steps what is wanted of
        them, a pytree of arrays `[K, B, ...]`. With blocks of one step, which is the
        default order, the state is that of the step.
      order: the order of the work.
      record: the populations whose potentials `info` shows.
      respond: as in `block`.
      follow: what an observer carries along is `state["seen"]`: at rest it is
        `follow[0](state)`, after a block `follow[1](seen, state, info)`.
      platform: where it will run, if not here.

    Returns:
      `(state, observed)`: the last state (of the last part of the batch, if it is done
      in parts), and what was observed, `[T, B, ...]`.
    """
    count = inputs[0].shape[0]
    order = order or Plan(1, count)
    if any(places > 1 for places in model.network.graph.ahead.values()):
        order = order._replace(steps=1)  # steps side by side would mix with them
    if order.images < count:
        parts = [x.reshape(-1, order.images, *x.shape[1:]) for x in inputs]

        def one(part):
            whole = order._replace(images=order.images)
            return unroll(
                model, circuit, part, steps, observe, order=whole, record=record,
                respond=respond, follow=follow, platform=platform,
            )  # fmt: skip

        state, seen = jax.lax.map(one, parts)
        seen = jax.tree.map(  # [parts, T, images, ...] to [T, B, ...]
            lambda x: x.swapaxes(0, 1).reshape(steps, -1, *x.shape[3:]), seen
        )
        return jax.tree.map(lambda x: x[-1], state), seen
    held = constants(model, circuit, inputs, platform)

    def advance(state: State, _, taken: int = order.steps):
        state, info = block(
            model, circuit, held, state, taken, record=record, respond=respond,
            platform=platform,
        )  # fmt: skip
        if follow is not None:
            state["seen"] = follow[1](state["seen"], state, info)
        return state, observe(state, info)

    blocks, left = divmod(steps, order.steps)
    state = rest(model, circuit, count)
    if follow is not None:
        state["seen"] = follow[0](state)
    if blocks == 1:  # in a loop XLA on CPU is slow with the gradient of a kernel
        state, seen = advance(state, None)
    else:
        state, seen = jax.lax.scan(advance, state, length=blocks)
        seen = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), seen)
    if left:
        state, last = advance(state, None, left)
        seen = jax.tree.map(lambda *both: jnp.concatenate(both), seen, last)
    return state, seen


class Trace(NamedTuple):
    """What `simulate` records.

    Attributes:
      logits: the outputs after each step, in the network's unit, `[T, B, ...]`, in the
        structure that the network returns.
      traffic: `{name: Traffic}`, `[T, B]` each, as in `Info`, of each step by itself.
      spikes: `{name: [T, B, ...]}` of the populations asked for.
      potentials: `{name: [T, B, ...]}` of the populations asked for, after each step.

    Example:
      >>> trace = simulate(model, spiking, inputs, steps=2)
      >>> trace.events["relu0"].tolist()
      [[1, 6], [1, 5]]
    """

    logits: Any
    traffic: dict[str, Traffic]
    spikes: dict[str, jax.Array]
    potentials: dict[str, jax.Array]

    @property
    def events(self) -> dict[str, jax.Array]:
        """`{name: [T, B]}`, quanta: a burst of k as k and a negative spike as one."""
        return {name: counts.quanta for name, counts in self.traffic.items()}


@door
def simulate(
    model: Model,
    spiking: Spiking,
    inputs,
    steps: int,
    *,
    record: str | tuple[str, ...] = (),
    schedule: str = "auto",
    platform: str | None = None,
) -> Trace:
    """Presents inputs for a number of time steps and records what is asked for.

    Memory does not grow with `steps` but for what is recorded (and, in layer order, up
    to the length of a block).

    Args:
      model: the network, neuron and pooling; static.
      spiking: its converted weights.
      inputs: `[B, ...]`, as the network takes them.
      steps: number of time steps `T`; static.
      record: names of populations whose spikes and potentials are wanted; static.
      schedule: the order of the work, see `plan`; static.
      platform: where it will run, if not here; static.

    Returns:
      The `Trace`: outputs and events of every step.

    Raises:
      ValueError: for inputs, weights or names that do not fit the network.

    Example:
      >>> trace = simulate(model, spiking, inputs, steps=2, record="relu0")
      >>> trace.spikes["relu0"][:, 1].tolist()  # of 2.5 and 0.25, a burst is 5
      [[5.0, 1.0], [5.0, 0.0]]
      >>> trace.logits[:, 1].tolist()
      [[3.0], [2.75]]
    """
    record = (record,) if isinstance(record, str) else tuple(record)
    wrong = sorted(set(record) - set(model.network.neurons))
    if wrong:
        raise ValueError(
            f"simulate: cannot record {wrong}; the populations are "
            f"{list(model.network.neurons)}"
        )
    leaves = check(model, spiking, inputs, steps)
    found = _simulate(model, spiking, leaves, steps, record, schedule, platform)
    return found._replace(logits=model.network.outputs(found.logits))


@partial(
    jax.jit,
    static_argnames=("model", "steps", "record", "schedule", "platform"),
)
def _simulate(model, spiking, leaves, steps, record, schedule, platform) -> Trace:
    circuit = prepare(model, spiking, platform)
    return trace_of(model, circuit, leaves, steps, schedule, record, platform)


def trace_of(
    model: Model,
    circuit: Circuit,
    leaves: list,
    steps: int,
    schedule: str | Plan = "auto",
    record: tuple[str, ...] = (),
    platform: str | None = None,
) -> Trace:
    """The `Trace` of a circuit; the outputs as a list."""
    order = schedule
    if not isinstance(order, Plan):
        order = plan(leaves[0].shape[0], steps, order, platform)

    def front(name: str, value) -> jax.Array:
        """The images in front of all else that is one image's."""
        node = model.network.graph[name]
        value = images_first(model.network.graph, name, value, node.batch_axis + 1)
        value = jnp.moveaxis(value, node.batch_axis + 1, 1)
        parts = node.image_shape[node.batch_axis]
        if parts == 1:
            return value
        return value.reshape(len(value), -1, parts, *value.shape[2:])

    def observe(_, info: Info) -> Trace:
        spikes = {name: front(name, info.spikes[name]) for name in record}
        potentials = {n: front(n, value) for n, value in info.potentials.items()}
        outputs = [
            jnp.moveaxis(value, model.network.graph[name].batch_axis + 1, 1)
            for name, value in zip(
                model.network.graph.outputs, info.outputs, strict=True
            )
        ]
        return Trace(outputs, info.traffic, spikes, potentials)

    return unroll(
        model, circuit, leaves, steps, observe, order=order, record=record,
        platform=platform,
    )[1]  # fmt: skip


@door
def infer(
    model: Model,
    spiking: Spiking,
    inputs,
    steps: int,
    *,
    schedule: str = "auto",
    platform: str | None = None,
):
    """The outputs after `steps` time steps, and nothing else: logits `[B, classes]`.

    Args and errors: as `simulate`. Who calls it again and again with the same weights
    saves their preparation with `compiled`.

    Example:
      >>> infer(model, spiking, inputs, steps=4).tolist()
      [[0.5], [2.75]]
    """
    leaves = check(model, spiking, inputs, steps)
    return model.network.outputs(
        _infer(model, spiking, leaves, steps, schedule, platform)
    )


@partial(jax.jit, static_argnames=("model", "steps", "schedule", "platform"))
def _infer(model, spiking, leaves, steps, schedule, platform):
    circuit = prepare(model, spiking, platform)
    return last_of(model, circuit, leaves, steps, schedule, platform)


def last_of(model, circuit, leaves, steps, schedule="auto", platform=None) -> list:
    """The outputs of a circuit after the last step."""
    count = leaves[0].shape[0]
    order = plan(count, steps, schedule, platform)

    def part(leaves):
        whole = order._replace(images=leaves[0].shape[0])
        state, _ = unroll(
            model, circuit, leaves, steps, lambda *_: (), order=whole, platform=platform
        )
        return [
            jnp.moveaxis(
                model.neuron.readout(total, state["time"]),
                model.network.graph[name].batch_axis,
                0,
            )
            for name, total in zip(
                model.network.graph.outputs, state["outputs"], strict=True
            )
        ]

    if order.images == count:
        return part(leaves)
    parts = [x.reshape(-1, order.images, *x.shape[1:]) for x in leaves]
    return [x.reshape(-1, *x.shape[2:]) for x in jax.lax.map(part, parts)]


def check(model: Model, spiking: Spiking, inputs, steps: int) -> list:
    """The inputs' arrays; refuses what does not fit the network.

    Raises:
      TypeError, ValueError: naming the argument or the layer, what was expected and
        what was found.
    """
    if not isinstance(model, Model):
        raise TypeError(f"model: expected a Model, found {type(model).__name__}")
    check_steps(model, steps)
    check_spiking(model.network, spiking)
    return model.network.leaves(inputs)


def check_steps(model: Model, steps: int) -> None:
    """Refuses numbers of steps that no network can take."""
    if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps < 2**24:
        raise ValueError(f"steps must be a whole number of at least 1, found {steps!r}")
    model.neuron.check_steps(steps)


def narrow(network: Network) -> bool:
    """Whether most neurons are in populations of up to 16 channels."""
    graph = network.graph
    sizes = {True: 0, False: 0}
    for node in graph.of(Neuron):
        shape = node.image_shape
        few = shape[graph.channel_axes[node.name]] <= 16
        sizes[few] += int(np.prod(shape))
    return sizes[True] > sizes[False]


def compiler_options(network: Network) -> dict[str, int]:
    """What to give `jax.jit` besides a function that simulates a network.

    On a CPU XLA unrolls loops over up to 16 channels and vectorises over columns
    instead, with gathers. Where most neurons are in such layers, as in CIFAR's ResNets,
    a lower level of optimisation saves a tenth of the time; wider networks lose by it.
    """
    if jax.default_backend() != "cpu" or not narrow(network):
        return {}
    return {"xla_backend_optimization_level": 2}
