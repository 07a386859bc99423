"""Synaptic operations and joules, spiking and conventional, of any traced network.

A synaptic operation is one event reaching one synapse: one tap of a kernel that exists
(padding has none) and is not zero. Events are counted where they enter a synapse: after
max pooling, and before average pooling, which merges into the synapse it feeds. A burst
of `k` spikes is `k` events, a negative spike is an event. Wires and biases count
nothing; a wire that multiplies by a constant kernel, such as bilinear resizing, sends
an event along each of the kernel's taps that is not zero.

What is constant over time is weighed once, as multiply-accumulates: the first synapses,
and the part of a later one that the input reaches through wires. A synapse that follows
another with no neuron between them receives charges, not events: it is counted as
multiply-accumulates at every step.

The conventional network counts the same taps, so operations = mean events per place x
multiply-accumulates wherever every place reaches as many synapses.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxburst.graph import (
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
    unknown,
)
from jaxburst.tracing import Network

PICOJOULES_PER_AC = 0.9
"""One accumulate, 32-bit floating point, 45 nm (Horowitz, ISSCC 2014)."""

PICOJOULES_PER_MAC = 4.6
"""One multiply-accumulate, 32-bit floating point, 45 nm (Horowitz, ISSCC 2014)."""

PICOJOULES_PER_INT8_MAC = 0.3
"""One 8-bit multiply (0.2) and 32-bit integer add (0.1), 45 nm (Horowitz, 2014)."""

PICOJOULES_PER_INT_AC = 0.1
"""One 32-bit integer add, 45 nm (Horowitz, 2014): a spike at an 8-bit weight."""

Events = dict[str, Any]


def macs(network: Network, weights: dict | None = None) -> dict[str, int]:
    """Multiply-accumulates of one image, taps on zero padding left out.

    Args:
      network: the network.
      weights: leave out weights that are zero in these, a converted network or what
        `Network.weights` gives.

    Returns:
      `{synapse: how many}`, in order.
    """
    if weights is not None:
        return {
            name: int(taps.sum()) for name, taps in reach(network, weights).taps.items()
        }
    graph = network.graph
    return {node.name: _macs(node, graph) for node in graph.of(Synapse)}


def _macs(node: Node, graph: Graph) -> int:
    """Those of one synapse, from the shapes alone."""
    role, before = node.role, graph[node.inputs[0]].image_shape
    if not role.is_conv:
        axes, _ = role.contracted
        return math.prod(node.image_shape) * math.prod(before[i] for i in axes)
    params, numbers = role.params, role.params["dimension_numbers"]
    # Of the output's spatial axes, each pair of a place and a tap that meet an input.
    found = math.prod(node.image_shape[i] for i in numbers.out_spec[:2])
    found *= role.kernel[numbers.rhs_spec[1]]
    rows = zip(
        numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:],
        params["window_strides"], params["padding"], params["lhs_dilation"],
        params["rhs_dilation"], strict=True,
    )  # fmt: skip
    for data, kernel, out, stride, (low, _), apart, dilation in rows:
        places = np.arange(node.image_shape[out])[:, None] * stride - low
        places = places + np.arange(role.kernel[kernel]) * dilation
        inside = (places >= 0) & (places <= (before[data] - 1) * apart)
        found *= int((inside & (places % apart == 0)).sum())
    return found


def fan_out(
    network: Network, spiking: dict | None = None
) -> dict[tuple[str, str], float]:
    """Synapses that one event reaches, on average over the places it can come from.

    Args:
      network: the network.
      spiking: leave out weights that are zero in these.

    Returns:
      `{(sender, synapse): fan-out}` for every population or pool and every synapse that
      its events reach through wires.
    """
    found = reach(network, spiking).events
    return {pair: float(places.mean()) for pair, places in found.items()}


def cost_per_event(network: Network, spiking: dict | None = None) -> dict[str, float]:
    """Operations that one event causes, on average, in all synapses that it reaches.

    Returns:
      `{sender: operations}`, of the populations and pools that reach a synapse.
    """
    found: dict[str, float] = {}
    for (sender, _), fan in fan_out(network, spiking).items():
        found[sender] = found.get(sender, 0.0) + fan
    return found


def operations(
    network: Network, events: Events, spiking: dict | None = None
) -> dict[str, np.ndarray]:
    """Synaptic operations of every step by itself: events times fan-out.

    Exact where every place of a population reaches as many synapses, or where all its
    places are equally active; otherwise, at the edges of a map, on average.

    Args:
      network: the network.
      events: from `Curves` or `Trace`, `{population or pool: [T, ...]}`.
      spiking: leave out weights that are zero in these.

    Returns:
      `{synapse: [T, ...]}`, for every synapse that events reach.

    Raises:
      ValueError: for events that are missing, of another network, of different shapes
        or not finite.
    """
    events, found = check_events(network, events), {}
    for (sender, synapse), fan in fan_out(network, spiking).items():
        found[synapse] = found.get(synapse, 0.0) + events[sender] * fan
    return found


def joules(
    network: Network,
    events: Events,
    *,
    spiking: dict | None = None,
    first_layer: str = "once",
) -> np.ndarray:
    """Energy of the spiking network up to each time step, in joules per image.

    Args:
      network: the network.
      events: as in `operations`.
      spiking: leave out weights that are zero in these.
      first_layer: whether the multiply-accumulates of what is constant count `'once'`,
        or at `'every step'`, as some papers count.

    Returns:
      `[T, ...]`, energy spent up to and including step `t`.

    Raises:
      ValueError: as `operations`.
    """
    if first_layer not in ("once", "every step"):
        raise ValueError(
            f"first_layer must be 'once' or 'every step', found {first_layer!r}"
        )
    checked, analog = check_events(network, events), reach(network, spiking)
    shape = next(iter(checked.values())).shape
    total = sum(operations(network, events, spiking).values(), np.zeros(shape))
    spent = np.cumsum(total, axis=0) * PICOJOULES_PER_AC
    steps = np.arange(1, shape[0] + 1).reshape(-1, *[1] * (len(shape) - 1))
    times = steps if first_layer == "every step" else np.ones_like(steps)
    weighed = times * sum(analog.once.values()) + steps * sum(analog.charges.values())
    return (spent + weighed * PICOJOULES_PER_MAC) * 1e-12


def ann_joules(network: Network) -> float:
    """Energy of one image through the conventional network, in joules."""
    return sum(macs(network).values()) * PICOJOULES_PER_MAC * 1e-12


def relative(
    network: Network,
    events: Events,
    *,
    spiking: dict | None = None,
    first_layer: str = "once",
) -> np.ndarray:
    """Energy up to each step over the conventional network's; arguments as `joules`."""
    spent = joules(network, events, spiking=spiking, first_layer=first_layer)
    return spent / ann_joules(network)


def check_events(network: Network, events: Events) -> dict[str, np.ndarray]:
    """Events as arrays of one shape, those of every sender among them.

    Raises:
      ValueError: naming what is missing, unknown, or does not fit.
    """
    graph = network.graph
    known = [n.name for n in graph.of(Neuron, Pool) if n.name in graph.dynamic]
    strange = sorted(set(events) - set(known))
    if strange:
        raise ValueError(
            f"events: {strange} are no populations or pools of this network, which are "
            f"{known}; pass the events of a simulation of this very network"
        )
    sending = {
        sender for node in graph.of(Synapse) for sender in graph.senders[node.name]
    }
    for name in known:
        if name in sending and name not in events:
            raise ValueError(
                f"{name}: its events are missing; pass the events of a simulation of "
                "this very network"
            )
    found = {name: np.asarray(count, np.float64) for name, count in events.items()}
    if not found:
        raise ValueError("events: there are none; pass those of a simulation")
    first, like = next(iter(found.items()))
    for name, count in found.items():
        if count.ndim == 0 or count.shape != like.shape:
            raise ValueError(
                f"{name}: its events must be [T, ...] and of one shape with all "
                f"others; {first} has {list(like.shape)}, found {list(count.shape)}"
            )
        if not np.isfinite(count).all() or (count < 0).any():
            raise ValueError(
                f"{name}: events must be counts, found a number that is negative or "
                "not finite"
            )
    return found


# What reaches which synapse, place by place.


class Reach(NamedTuple):
    """Synapses that signals reach.

    Attributes:
      taps: `{synapse: [...]}`, how many weights each place of its input meets there.
      events: `{(sender, synapse): [...]}`, how many an event of each place of the
        sender meets, along all ways through wires.
      once: `{synapse: multiply-accumulates}` of what is constant over time.
      charges: `{synapse: multiply-accumulates}` at every step, of what comes from
        another synapse with no neuron between them.
    """

    taps: dict[str, np.ndarray]
    events: dict[tuple[str, str], np.ndarray]
    once: dict[str, float]
    charges: dict[str, float]


def reach(network: Network, weights: dict | None = None) -> Reach:
    """Counts the synapses that signals reach; all places are like one image's, `[1,
    ...]`.

    Args:
      network: the network.
      weights: leave out weights that are zero in these; without them, all count.
    """
    if not isinstance(network, Network):
        raise TypeError(
            f"network: expected what trace returns, found {type(network).__name__}"
        )
    if weights is None:
        return _dense(network)
    present = {}
    for node in network.graph.of(Synapse, Wire):
        if node.name in network.program.uses:
            if node.name not in weights:
                raise ValueError(
                    f"{node.name}: there are no weights for it; pass those of the same "
                    "network"
                )
            own = weights[node.name]
            one = isinstance(node.role, Synapse)
            present[node.name] = tuple(
                np.asarray(value) != 0 if one or _multiplies(node) else value
                for value in (own[:1] if one else own)
            )
            if one and present[node.name][0].shape != node.role.kernel:
                raise ValueError(
                    f"{node.name}: the kernel must be {node.role.kernel}, found "
                    f"{present[node.name][0].shape}"
                )
    return _reach(network, present)


@lru_cache(maxsize=64)
def _dense(network: Network) -> Reach:
    """All weights count."""
    present = {}
    for node in network.graph.of(Synapse):
        present[node.name] = (np.ones(node.role.kernel, bool),)
    for node in network.graph.of(Wire):
        use = network.program.uses.get(node.name)
        if use is not None:
            fill = np.ones if _multiplies(node) else np.zeros
            own = [getattr(value, "value", value) for value in use.values]
            present[node.name] = tuple(fill(v.shape, v.dtype) for v in own)
    return _reach(network, present)


def _reach(network: Network, present: dict) -> Reach:
    # On a CPU counts are exact in single precision; other devices may round products.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        found = jax.device_get(_count(network.graph, present))
    taps, events, constant, charged = found
    taps, events = (
        {name: value.astype(np.float64) for name, value in part.items()}
        for part in (taps, events)
    )
    sums = [
        {name: float((taps[name] * where).sum()) for name, where in part.items()}
        for part in (constant, charged)
    ]
    return Reach(taps, events, *sums)


@partial(jax.jit, static_argnums=0)
def _count(graph: Graph, present: dict):
    """The counts of `Reach`, and where constants and charges arrive."""
    taps, events, constant, charged = {}, {}, {}, {}
    kind = jnp.float32
    for node in graph.of(Synapse):
        kernel = present[node.name][0].astype(kind)
        above = graph[node.inputs[0]]
        apply = partial(_weigh, node.role, kernel)
        out, pull = jax.vjp(apply, jnp.zeros(above.image_shape, kind))
        (met,) = pull(jnp.ones_like(out))
        taps[node.name] = met
        region = _region(node, graph)
        starts = {name: graph[name] for name in region}
        senders = [n for n in region if isinstance(starts[n].role, Neuron | Pool)
                   and n in graph.dynamic]  # fmt: skip
        lead = partial(_lead, graph, present, node, tuple(region))
        if senders:
            zeros = {n: jnp.zeros(graph[n].image_shape, kind) for n in senders}
            _, pull = jax.vjp(lead, zeros)
            (back,) = pull(met)
            events |= {(name, node.name): back[name] for name in senders}
        still = [n for n in region if n not in graph.dynamic]
        moving = [n for n in region if n in graph.dynamic and n not in senders]
        for names, where in ((still, constant), (moving, charged)):
            if names:
                ones = {n: jnp.ones(graph[n].image_shape, kind) for n in names}
                where[node.name] = lead(ones) > 0
    return taps, events, constant, charged


def _weigh(role: Synapse, kernel, x):
    """A synapse whose transpose can be trusted.

    Of a convolution padded by more than its kernel reaches, the transpose has negative
    padding, with which XLA on CPU reads memory that is not its own. Here padding is a
    step of its own.
    """
    if not role.is_conv:
        return role.apply(x, kernel)
    params = dict(role.params)
    around = [(0, 0, 0)] * x.ndim
    sides = params["dimension_numbers"].lhs_spec[2:]
    padding, apart = params["padding"], params["lhs_dilation"]
    for axis, (low, high), gap in zip(sides, padding, apart, strict=True):
        around[axis] = (low, high, gap - 1)
    params["padding"] = ((0, 0),) * len(sides)
    params["lhs_dilation"] = (1,) * len(sides)
    padded = lax.pad(x, jnp.zeros((), x.dtype), around)
    return role.primitive.bind(padded, kernel, **params)


def _region(node: Node, graph: Graph) -> list[str]:
    """Where the wires before a synapse begin: senders, constants, other synapses."""
    queue, found = list(node.inputs), []
    while queue:
        name = queue.pop(0)
        if isinstance(graph[name].role, Wire) and name in graph.dynamic:
            queue += [n for n in graph[name].inputs if n not in queue]
        elif name not in found:
            found.append(name)
    return found


def _lead(graph: Graph, present, node: Node, region, values: dict):
    """What arrives at a synapse along the wires, an indicator for each way."""
    on_the_way = _between(graph, node, region)

    def visit(one: Node, *arriving):
        if one.name in region:
            if one.name in values:
                return values[one.name]
            return jnp.zeros(one.image_shape, jnp.float32)
        if one.name not in on_the_way:
            return None
        if isinstance(one.role, Wire):
            return _indicate(one, present.get(one.name, ()), *arriving)
        raise unknown(one, "fan-out")

    part = dataclasses.replace(graph, outputs=node.inputs)
    (found,) = read(part, visit, *[None] * len(graph.of(Input)))
    return found


def _between(graph: Graph, node: Node, region) -> set[str]:
    queue, found = list(node.inputs), set()
    while queue:
        name = queue.pop()
        if name not in region and name not in found:
            found.add(name)
            queue += graph[name].inputs
    return found


_PRODUCTS = ("mul", "div", "dot_general", "conv_general_dilated")


def _multiplies(node: Node) -> bool:
    return isinstance(node.role, Wire) and node.role.primitive.name in _PRODUCTS


def _indicate(node: Node, own: tuple, *values):
    """A wire on indicators: constants that multiply are 1 or 0, signs are lost."""
    role, kind = node.role, jnp.float32
    name = role.primitive.name
    if name == "neg":
        return values[0]
    if name == "sub":
        role = dataclasses.replace(role, primitive=lax.add_p)
    if name == "select_n" and isinstance(role.operands[0], Operand):
        return sum(values)  # an unknown choice: both
    if name in _PRODUCTS:
        held = [
            value
            if value is None
            else jnp.asarray(
                (own[value.index] if isinstance(value, Operand) else value.value) != 0,
                kind,
            )
            for value in role.operands
        ]
        if name in ("mul", "div"):
            (factor,) = [value for value in held if value is not None]
            return jnp.broadcast_to(values[0] * factor, node.image_shape)
        role = dataclasses.replace(
            role, operands=tuple(v if v is None else Operand(0) for v in held)
        )
        own = tuple(value for value in held if value is not None)
    node = dataclasses.replace(node, role=role)
    return apply_wire(node, own, *values, batch=1, linear=True)
