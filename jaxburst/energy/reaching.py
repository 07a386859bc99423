"""Who reaches what: synapses, sums and pools that each event meets, place by place.

A synaptic operation is one event reaching one synapse: one tap of a kernel that exists
(padding has none) and is not zero. Wires move events and may send one along several
ways: bilinear resizing along each tap that is not zero, an average along each window.
"""

from __future__ import annotations

import dataclasses
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxburst.checks import door
from jaxburst.graph import (
    Graph,
    Input,
    Neuron,
    Node,
    Operand,
    Pool,
    Product,
    Synapse,
    Wire,
    apply_wire,
    at_batch,
    execute,
    read,
    unknown,
)
from jaxburst.network import Network


class Reach(NamedTuple):
    """Synapses, sums and pools that signals reach; places are one image's, `[1, ...]`.

    Attributes:
      taps: `{synapse: [...]}`, how many weights each place of its input meets there;
        of a product of two signals, how many numbers of the second each of the first.
      events: `{(sender, synapse): [...]}`, how many an event of each place of the
        sender meets, along all ways through wires; at a product, of either side.
      once: `{synapse: [...]}`, the same of its taps of what is constant over time.
      charges: `{synapse: [...]}`, of what comes from another synapse at every step,
        with no neuron between them.
      sums: `{(sender, receiver): [...]}`, how many places of a population, pool or
        output an event of each place reaches through wires alone: at shortcuts, before
        pools.
        Outputs have a `/` before their names.
      windows: `{pool: [...]}`, in how many windows each place of its input is.
      compared: `{(sender, pool): [...]}`, in how many an event of each place is.

    Example:
      >>> jb.energy.reach(network).events["relu0", "out"].tolist()
      [[1.0, 1.0]]
    """

    taps: dict[str, np.ndarray]
    events: dict[tuple[str, str], np.ndarray]
    once: dict[str, np.ndarray]
    charges: dict[str, np.ndarray]
    sums: dict[tuple[str, str], np.ndarray]
    windows: dict[str, np.ndarray]
    compared: dict[tuple[str, str], np.ndarray]


@door(weights="mapping")
def reach(network: Network, weights: dict | None = None) -> Reach:
    """Counts what signals reach.

    Args:
      network: the network.
      weights: leave out weights that are zero in these; without them, all count.

    Example:
      >>> {pair: places.tolist() for pair, places in reach(network).events.items()}
      {('relu0', 'out'): [[1.0, 1.0]]}
    """
    return _dense(network) if weights is None else _reach(network, weights)


@lru_cache(maxsize=64)
def _dense(network: Network) -> Reach:
    """All weights count."""
    return _reach(network, None)


def _reach(network: Network, weights: dict | None) -> Reach:
    present = {
        node.name: _present(network, node, weights)
        for node in network.graph.of(Synapse, Wire)
        if node.name in network.program.uses
    }
    # On a CPU counts are exact in single precision; other devices may round products.
    with jax.default_device(jax.local_devices(backend="cpu")[0]):
        found = jax.device_get(_count(network.graph, present))
    return jax.tree.map(lambda x: x.astype(np.float64), found)


def _present(network: Network, node: Node, weights: dict | None) -> tuple:
    """Which weights of a synapse, or of a wire that multiplies, are there; of another
    wire what it holds."""
    synapse = isinstance(node.role, Synapse)
    if weights is None:
        if synapse:
            return (np.ones(node.role.kernel, bool),)
        fill = np.ones if _multiplies(node) else np.zeros
        held = network.program.uses[node.name].values
        arrays = [getattr(value, "value", value) for value in held]
        return tuple(fill(value.shape, value.dtype) for value in arrays)
    if node.name not in weights:
        raise ValueError(
            f"{node.name}: there are no weights for it; pass those of the same network"
        )
    own = weights[node.name]
    if not synapse:
        return tuple(np.asarray(x) != 0 for x in own) if _multiplies(node) else own
    found = np.shape(own[0]) if isinstance(own, tuple) else own
    if found != node.role.kernel:
        raise ValueError(
            f"{node.name}: the kernel must be {node.role.kernel}, found {found!r:.80}"
        )
    return (np.asarray(own[0]) != 0,)


@partial(jax.jit, static_argnums=0)
def _count(graph: Graph, present: dict) -> Reach:
    """The counts."""
    kind = jnp.float32
    nothing: list[dict[Any, Any]] = [{} for _ in Reach._fields]
    found: Any = Reach(*nothing)

    def back(lead, names, met):
        """What an event of each place of some nodes meets, given what it meets last."""
        zeros = {n: jnp.zeros(graph[n].image_shape, kind) for n in names}
        _, pull = jax.vjp(lead, zeros)
        return pull(met)[0]

    def starts(inputs: tuple[str, ...]):
        """Where the wires to a node begin: senders, constants, other synapses."""
        region = _region(inputs, graph)
        senders = [n for n in region if n in graph.dynamic
                   and isinstance(graph[n].role, Neuron | Pool)]  # fmt: skip
        still = [n for n in region if n not in graph.dynamic]
        moving = [n for n in region if n in graph.dynamic and n not in senders]
        return senders, still, moving, partial(_lead, graph, present, inputs, region)

    for node in graph.of(Synapse):
        kernel = present[node.name][0].astype(kind)
        above = graph[node.inputs[0]]
        apply = partial(_weigh, node.role, kernel)
        out, pull = jax.vjp(apply, jnp.zeros(above.image_shape, kind))
        (met,) = pull(jnp.ones_like(out))
        found.taps[node.name] = met
        senders, still, moving, lead = starts(node.inputs)
        if senders:
            for name, places in back(lead, senders, met).items():
                found.events[name, node.name] = places
        for names, where in ((still, found.once), (moving, found.charges)):
            if names:
                ones = {n: jnp.ones(graph[n].image_shape, kind) for n in names}
                where[node.name] = jnp.where(lead(ones) > 0, met, 0)
    for node in graph.of(Product):
        ones = [jnp.ones(graph[name].image_shape, kind) for name in node.inputs]
        out, pull = jax.vjp(partial(execute, node, batch=1), *ones)
        sides = pull(jnp.ones_like(out))
        found.taps[node.name] = sides[0]
        if node.name not in graph.dynamic:
            found.once[node.name] = sides[0]
            continue
        for name, met in zip(node.inputs, sides, strict=True):
            senders, _, moving, lead = starts((name,))
            if senders:
                for sender, places in back(lead, senders, met).items():
                    pair = sender, node.name
                    found.events[pair] = found.events.get(pair, 0.0) + places
            if moving:
                found.charges[node.name] = sides[0]
    receivers = [(n.name, n.inputs) for n in graph.of(Neuron, Pool)]
    for name, inputs in [*receivers, *((f"/{n}", (n,)) for n in graph.outputs)]:
        senders, _, _, lead = starts(inputs)
        ones = jnp.ones(graph[inputs[0]].image_shape, kind)
        if senders:
            places = back(lead, senders, ones)
            found.sums.update({(s, name): x for s, x in places.items()})
        if name in graph.dynamic and isinstance(graph[name].role, Pool):
            found.windows[name] = _windows(graph[name], ones)
            if senders:
                places = back(lead, senders, found.windows[name])
                found.compared.update({(s, name): x for s, x in places.items()})
    return found


def _windows(node: Node, ones):
    """How many windows of a pool each place of its input is in."""
    params = at_batch(node.role.params, 1)
    if "axes" in params:
        return ones
    sums = partial(lax.reduce_window_sum_p.bind, **params)
    out, pull = jax.vjp(sums, ones)
    return pull(jnp.ones_like(out))[0]


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


def _region(inputs: tuple[str, ...], graph: Graph) -> list[str]:
    """Where the wires to a node begin."""
    queue, found = list(inputs), []
    while queue:
        name = queue.pop(0)
        if isinstance(graph[name].role, Wire) and name in graph.dynamic:
            queue += [n for n in graph[name].inputs if n not in queue]
        elif name not in found:
            found.append(name)
    return found


def _lead(graph: Graph, present, inputs, region, values: dict):
    """What arrives at a node along the wires, an indicator for each way."""
    on_the_way, queue = set(), [name for name in inputs if name not in region]
    while queue:
        name = queue.pop()
        on_the_way.add(name)
        queue += [n for n in graph[name].inputs if n not in {*region, *on_the_way}]

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

    part = dataclasses.replace(graph, outputs=inputs)
    (found,) = read(part, visit, *[None] * len(graph.of(Input)))
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
        held = [_held(value, own, kind) for value in role.operands]
        if name in ("mul", "div"):
            (factor,) = [value for value in held if value is not None]
            return jnp.broadcast_to(values[0] * factor, node.image_shape)
        role = dataclasses.replace(
            role, operands=tuple(v if v is None else Operand(0) for v in held)
        )
        own = tuple(value for value in held if value is not None)
    node = dataclasses.replace(node, role=role)
    return apply_wire(node, own, *values, batch=1, linear=True)


def _held(value, own: tuple, kind):
    """What a wire multiplies by, as 1 or 0; None for a signal."""
    if value is None:
        return None
    value = own[value.index] if isinstance(value, Operand) else value.value
    return jnp.asarray(value).astype(bool).astype(kind)
