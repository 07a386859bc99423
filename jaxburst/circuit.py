"""A converted network that runs: prepared weights, a state, and a block of steps.

    circuit = prepare(model, spiking)             # what depends on the weights alone
    held = constants(model, circuit, inputs)      # what depends on the inputs alone
    state = rest(model, circuit, batch)           # and what changes from step to step
    state, info = block(model, circuit, held, state)

Spikes cross all nodes within one step. As a population needs nothing but the spikes of
those below, a block may hold several steps: every node takes all of them before the
next node, steps side by side with images.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxburst.convert import Spiking
from jaxburst.devices import one_core_each
from jaxburst.graph import (
    Input,
    Neuron,
    Node,
    Pool,
    Product,
    Synapse,
    Wire,
    apply,
    apply_wire,
    at_batch,
    execute,
    images_first,
    over,
    read,
    stands_for,
    unknown,
)
from jaxburst.kernels import convolution
from jaxburst.model import Model
from jaxburst.network import Affine, Network
from jaxburst.neurons import POOLS, Pooled
from jaxburst.traffic import Traffic
from jaxburst.traffic import count as traffic_of
from jaxburst.units import folds, shifts, unit_of_places, unit_of_rows

State = dict[str, Any]
Respond = Callable[..., tuple[Any, jax.Array, Any]]


class Circuit(NamedTuple):
    """What `prepare` makes of converted weights: what does not depend on the inputs.

    Attributes:
      own: `{node: arrays}`: kernels in their fast form, with the units of what they
        receive; thresholds; the arrays of wires.
      units: `{node: what one of the whole numbers it passes on is worth}`.
    """

    own: dict[str, Any]
    units: dict[str, jax.Array]


class Multiplied(NamedTuple):
    """What a product of two signals carries from step to step.

    Attributes:
      a, b: what has arrived so far: whole numbers, or charges.
      sent: their product.
    """

    a: jax.Array
    b: jax.Array
    sent: jax.Array


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


def prepare(model: Model, spiking: Spiking, platform: str | None = None) -> Circuit:
    """Does the work that depends on the weights only, once for all inputs and steps.

    The threshold of whoever sends spikes moves into the kernels that receive them, so
    that kernels act on whole numbers; convolutions take the form that is fast for their
    shape on the platform.
    """
    graph, routes, units = model.network.graph, model.routes, {}
    own = {n.name: spiking[n.name] for n in graph.weighing if n.name in spiking}
    for name, route in routes.items():
        units[name] = unit_of_places(graph[name], route, spiking, graph)
    forms = _forms(model, platform, dtype_of(model, own))
    for node in graph.of(Synapse):
        kernel, bias = spiking[node.name]
        route = routes.get(node.inputs[0])
        unit = route and unit_of_rows(node, route, spiking, graph)
        if unit is not None:
            kernel = kernel * unit
            if model.precision == "bfloat16" and node.role.is_conv:
                kernel = kernel.astype(jnp.bfloat16)
        if node.name in forms:
            kernel = convolution.prepare(forms[node.name], kernel)
        own[node.name] = Affine(kernel, bias)
    return Circuit(own, units)


prepared = partial(jax.jit, static_argnames=("model", "platform"))(prepare)
"""`prepare` by itself, outside of other jitted functions."""


def _forms(model: Model, platform: str | None, dtype) -> dict[str, convolution.Form]:
    """How each convolution is computed, by name."""
    graph, platform = model.network.graph, platform_of(platform)
    one_core = platform == "cpu" and one_core_each()
    forms = {}
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


def platform_of(platform: str | None = None) -> str:
    """The platform that is asked for, or the default one."""
    return platform or jax.default_backend()


def dtype_of(model: Model, own: dict[str, Any]):
    """The type of currents and potentials."""
    for node in model.network.graph.of(Synapse):
        return own[node.name].bias.dtype
    return own[model.network.neurons[0]].theta.dtype


def rest(model: Model, circuit: Circuit, batch: int) -> State:
    """The state before the first step, for so many images.

    Returns:
      `{name: state}` of every population and pool, what the outputs have integrated,
      and the time.
    """
    graph, state = model.network.graph, {}
    dtype = dtype_of(model, circuit.own)

    def zeros(name: str) -> jax.Array:
        return jnp.zeros(at_batch(graph[name].shape, batch), dtype)

    for node in graph.nodes:
        if node.name not in graph.dynamic:
            continue
        match node.role:
            case Neuron():
                own, f = circuit.own[node.name], stands_for(node, circuit.own, batch)
                shape = at_batch(graph[node.inputs[0]].shape, batch)
                kind = model.neuron.at(node.name)
                state[node.name] = kind.rest(own, shape, dtype, f)
            case Pool():
                state[node.name] = Pooled(zeros(node.inputs[0]), zeros(node.name))
            case Product():
                a, b = map(zeros, node.inputs)
                state[node.name] = Multiplied(a, b, zeros(node.name))
    totals = tuple(map(zeros, graph.outputs))
    return state | {"outputs": totals, "time": jnp.zeros((), jnp.int32)}


def constants(model: Model, circuit: Circuit, inputs: list, platform=None) -> dict:
    """What does not change over time: `{node: value}` for one presentation."""
    graph, batch = model.network.graph, inputs[0].shape[0]
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
    moving = [node for node in graph.nodes if node.name in graph.dynamic]
    used = {name for node in moving for name in node.inputs}
    for name in set(graph.outputs) - graph.dynamic - used:
        found[name] = found[name].astype(dtype)  # given out, numbers are charges
    used.update(graph.outputs)
    return {name: value for name, value in found.items() if name in used}


def _weigh(node: Node, forms, kernel, x, dtype):
    if node.name in forms:
        return convolution.convolve(forms[node.name], x, kernel, dtype)
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
      model, circuit, held: what is run, from `prepare` and `constants`.
      state: after the previous step, at first `rest`.
      steps: how many steps `K` to take.
      record: the populations whose potentials are wanted.
      respond: how a population answers its currents, if not by `answer`, with the same
        arguments after the node's name.
      changes: whether what is held is what has changed, which arrives as it is, and not
        what is presented.
      platform: where it will run, if not here.

    Returns:
      `(state, info)`.
    """
    return _Block(
        model, circuit, held, state, steps, record, respond, changes, platform
    ).advance()


class _Signal(NamedTuple):
    """A value on its way: whole numbers of a node, a charge, or constant over time."""

    value: jax.Array
    node: Node
    whole: bool = False
    constant: bool = False


class _Block:
    """`block`, with a method for each role."""

    def __init__(
        self, model, circuit, held, state, steps, record, respond, changes, platform
    ):
        self.model, self.circuit, self.held = model, circuit, held
        self.graph, self.neuron = model.network.graph, model.neuron
        self.steps, self.record, self.respond = steps, record, respond
        self.changes, self.state = changes, dict(state)
        self.dtype = dtype_of(model, circuit.own)
        self.forms = _forms(model, platform, self.dtype)
        self.t = state["time"] + 1 + jnp.arange(steps, dtype=jnp.int32)
        self.presented, self.worth = (
            value if isinstance(value, float) else value.astype(self.dtype)
            for value in (self.neuron.presented(self.t), self.neuron.worth(self.t))
        )
        output = self.graph[self.graph.outputs[0]]
        images = state["outputs"][0].shape[output.batch_axis]
        self.batch = images // output.image_shape[output.batch_axis]
        self.spikes: dict[str, jax.Array] = {}
        self.traffic: dict[str, Traffic] = {}
        self.potentials: dict[str, Any] = {}

    def advance(self) -> tuple[State, Info]:
        # Inputs are in `held` already: what stands for them here is not looked at.
        inputs = [None] * len(self.graph.of(Input))
        signals = [
            # Whole numbers that are given out are presented like others.
            s._replace(value=s.value.astype(self.dtype)) if s.constant else s
            for s in read(self.graph, self.visit, *inputs)
        ]
        arriving = tuple(self.split(self.charge(s), s.node) for s in signals)

        def integrate(carried, arriving):
            totals, _ = carried
            currents, t = arriving
            totals = tuple(a + b for a, b in zip(totals, currents, strict=True))
            return (totals, t), tuple(self.neuron.readout(x, t) for x in totals)

        carried = (self.state["outputs"], self.state["time"])
        (totals, time), outputs = over_steps(integrate, carried, (arriving, self.t))
        self.state |= {"outputs": totals, "time": time}
        return self.state, Info(outputs, self.spikes, self.traffic, self.potentials)

    def visit(self, node: Node, *signals: _Signal) -> _Signal:
        if node.name not in self.graph.dynamic:
            return _Signal(self.held.get(node.name), node, constant=True)
        match node.role:
            case Synapse():
                return _Signal(self.synapse(node, *signals), node)
            case Wire():
                whole = node.name in self.model.routes
                wire = self.move if whole else self.wire
                return _Signal(wire(node, signals), node, whole)
            case Neuron():
                return _Signal(self.population(node, *signals), node, whole=True)
            case Pool():
                whole = node.name in self.model.routes
                return _Signal(self.pool(node, whole, *signals), node, whole)
            case Product():
                return _Signal(self.product(node, signals), node)
        raise unknown(node, "a spiking step")

    def synapse(self, node: Node, signal: _Signal) -> jax.Array:
        (kernel, bias), routes = self.circuit.own[node.name], self.model.routes
        before = signal.node.name
        folded = signal.whole and folds(node, routes[before], self.circuit.own)
        value = signal.value if folded else self.charge(signal)
        if node.role.is_conv:
            value = value.astype(kernel.dtype)
        current = _weigh(node, self.forms, kernel, value, bias.dtype)
        if folded:
            current = self.along(self.worth, current, node)
        bias = over(bias, current)
        if not isinstance(self.presented, float):
            bias = jnp.broadcast_to(bias, current.shape)
            bias = self.along(self.presented, bias, node)
        return current + bias

    def move(self, node: Node, signals) -> jax.Array:
        """A wire on whole numbers."""
        values = [signal.value for signal in signals]
        if node.role.primitive.name in ("mul", "div"):
            return values[0]  # it is in the unit
        return apply_wire(node, (), *values, batch=self.steps * self.batch)

    def wire(self, node: Node, signals) -> jax.Array:
        """A wire on charges; what it adds is presented."""
        values = [self.charge(signal) for signal in signals]
        own = self.circuit.own.get(node.name, ())
        wire = partial(apply_wire, node, own, batch=self.steps * self.batch)
        if self.neuron.repeats or not shifts(node):
            return wire(*values)
        # Without a charge; a mask or a place stays what it is.
        still = [jnp.zeros_like(x) if _is_charge(x) else x for x in values]
        added = self.along(self.presented, wire(*still), node)
        return wire(*values, linear=True) + added

    def population(self, node: Node, signal: _Signal) -> jax.Array:
        name, threshold = node.name, self.circuit.own[node.name]
        f = stands_for(node, self.circuit.own, self.batch)
        arriving = self.split(self.charge(signal), signal.node), self.t
        own, before = self.neuron.at(name), self.state[name]
        if self.respond is not None:
            found = self.respond(name, own, threshold, before, arriving, f)
        else:
            found = answer(own, threshold, before, arriving, f, name in self.record)
        self.state[name], spikes, potentials = found
        if name in self.record:
            self.potentials[name] = potentials
        return self.sent(node, spikes, True)

    def pool(self, node: Node, whole: bool, signal: _Signal) -> jax.Array:
        value = signal.value if whole else self.charge(signal)

        def advance(before: Pooled, arriving):
            value, t = arriving
            if whole:  # the same charge in new quanta
                growth = jnp.asarray(self.neuron.growth(t), value.dtype)
                before = Pooled(*(total * growth for total in before))
            return POOLS[self.model.pool](node, before, value, self.batch)

        arriving = self.split(value, signal.node), self.t
        self.state[node.name], out = over_steps(
            advance, self.state[node.name], arriving
        )
        return self.sent(node, out, whole)

    def product(self, node: Node, signals) -> jax.Array:
        """What the product of two signals changes by, of the sums of what arrived."""
        arriving = [
            self.split(s.value if s.whole else self.charge(s), s.node) for s in signals
        ]

        def grown(total, change, t, signal: _Signal):
            growth = jnp.asarray(self.neuron.growth(t), self.dtype)
            return total * (growth if signal.whole else 1) + change

        def charge(total, t, signal: _Signal):
            if not signal.whole:
                return total
            unit = over(self.circuit.units[signal.node.name], total)
            return total * unit * jnp.asarray(self.neuron.worth(t), self.dtype)

        def advance(before: Multiplied, arriving):
            *changes, t = arriving
            sides = zip((before.a, before.b), changes, signals, strict=True)
            a, b = (grown(total, change, t, s) for total, change, s in sides)
            values = [charge(x, t, s) for x, s in zip((a, b), signals, strict=True)]
            out = execute(node, *values, batch=self.batch)
            return Multiplied(a, b, out), out - before.sent

        self.state[node.name], out = over_steps(
            advance, self.state[node.name], (*arriving, self.t)
        )
        return self.merge(out, node)

    def sent(self, node: Node, spikes, whole: bool) -> jax.Array:
        """Keeps and counts what is sent, `[K, B, ...]`; returns it as one batch."""
        spikes = jax.lax.optimization_barrier(spikes)  # or XLA computes them twice
        self.spikes[node.name] = spikes
        values = images_first(self.graph, node.name, spikes, node.batch_axis + 1)
        values = jnp.moveaxis(values, node.batch_axis + 1, 1)
        values = values.reshape(self.steps, self.batch, -1)
        self.traffic[node.name] = traffic_of(values, whole)
        return self.merge(spikes, node)

    def charge(self, signal: _Signal) -> jax.Array:
        """A signal in units of activation."""
        value, node = signal.value, signal.node
        if signal.constant:
            if self.steps > 1 and node.batch_axis is not None:
                value = self.merge(jnp.stack([value] * self.steps), node)
            if self.changes or not _is_charge(value):
                return value
            return self.along(self.presented, value, node)
        if signal.whole:
            unit = over(self.circuit.units[node.name], value)
            return self.along(self.worth, value * unit, node)
        return value

    def along(self, factor, value, node: Node) -> jax.Array:
        """Multiplies every step of a value by its factor."""
        if isinstance(factor, float):
            return value if factor == 1 else value * value.dtype.type(factor)
        if self.steps == 1:
            factors = factor.reshape(())
        else:
            shape = [1] * value.ndim
            shape[node.batch_axis] = -1
            ahead = self.graph.ahead[node.name]
            each = value.shape[node.batch_axis] // (self.steps * ahead)
            factors = jnp.tile(jnp.repeat(factor, each), ahead).reshape(shape)
        if factor is self.presented:  # a mask may be infinite
            return jnp.where(factors != 0, value, jnp.zeros_like(value))
        return value * factors

    def split(self, value, node: Node) -> jax.Array:
        """`[K, B, ...]` of steps beside images."""
        if self.steps == 1:
            return value[None]
        axis, ahead = node.batch_axis, self.graph.ahead[node.name]
        before, after = value.shape[:axis], value.shape[axis + 1 :]
        value = value.reshape(*before, ahead, self.steps, -1, *after)
        value = jnp.moveaxis(value, axis + 1, 0)
        return value.reshape(self.steps, *before, -1, *after)

    def merge(self, value, node: Node) -> jax.Array:
        """And back."""
        if self.steps == 1:
            return value[0]
        axis, ahead = node.batch_axis, self.graph.ahead[node.name]
        before, after = value.shape[1 : axis + 1], value.shape[axis + 2 :]
        value = value.reshape(self.steps, *before, ahead, -1, *after)
        value = jnp.moveaxis(value, 0, axis + 1)
        return value.reshape(*before, -1, *after)


def answer(neuron, threshold, state, arriving, f, record: bool = False):
    """How a population answers its currents, by the neuron's equations.

    Args:
      neuron, threshold, state, f: of the population; the threshold with all rows.
      arriving: its currents and the times of the steps, `([K, B, ...], [K])`.
      record: whether potentials are wanted.

    Returns:
      `(state, spikes, potentials)`, the last of them None if they are not wanted.
    """

    def advance(before, arriving):
        current, t = arriving
        row = threshold._replace(bias=neuron.correction(threshold.bias, t))
        after, spikes = neuron.step(row, before, current, t, f)
        return after, (spikes, neuron.potential(threshold, after) if record else None)

    state, (spikes, potentials) = over_steps(advance, state, arriving)
    return state, spikes, potentials


def _is_charge(value: jax.Array) -> bool:
    """And not a mask, or a place."""
    return jnp.issubdtype(value.dtype, jnp.floating)


def over_steps(advance: Callable, state, arriving):
    """`lax.scan`, without a loop for a single step."""
    if len(jax.tree.leaves(arriving)[0]) > 1:
        return jax.lax.scan(advance, state, arriving)
    state, shown = advance(state, jax.tree.map(lambda x: x[0], arriving))
    return state, jax.tree.map(lambda x: x[None], shown)


def outputs_first(network: Network, values, axis: int = 0) -> list[jax.Array]:
    """Outputs with the images at an axis, wherever the network has them behind it."""
    axes = [network.graph[name].batch_axis for name in network.graph.outputs]
    pairs = zip(values, axes, strict=True)
    return [jnp.moveaxis(value, axis + own, axis) for value, own in pairs]
