"""A converted network in the paper's unit: every threshold is 1."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxburst.checks import door, traced
from jaxburst.convert import Spiking
from jaxburst.graph import (
    Graph,
    Input,
    Neuron,
    Node,
    Operand,
    Pool,
    Route,
    Synapse,
    Wire,
    channel_axis,
    routes,
)
from jaxburst.network import Affine, Network
from jaxburst.neurons import Threshold
from jaxburst.units import shifts, unit_of_places, unit_of_rows

_LOGITS = " logits"  # no node has this name


@door
def normalise(
    network: Network, spiking: Spiking, *, logits: float = 1.0
) -> tuple[Network, Spiking]:
    r"""Writes a converted network in the paper's unit: every threshold is 1.

    .. math::
        W' = W\, \theta_\mathrm{in} / \theta_\mathrm{out}, \qquad
        b' = b / \theta_\mathrm{out}

    where :math:`\theta_\mathrm{in}` is the threshold of the neurons whose spikes a
    synapse receives and :math:`\theta_\mathrm{out}` that of the neurons it drives.
    Spikes that are added to a current without a synapse, as by identity shortcuts, are
    multiplied by the same ratio in a wire of their own, so the network changes, too.
    Both forms spike alike; in this one a membrane is counted in thresholds.

    Args:
      spiking: converted weights, in any unit.
      logits: the unit of the outputs: they come out divided by it.

    Returns:
      `(network, spiking)` with `θ = 1` everywhere. (Neurons cannot choose the unit of a
      current that others read too, that contains the input or a constant beside a
      synapse's bias, or that has a cap; nor can thresholds per channel where the
      channels are mixed on the way. These keep a threshold in that unit.)

    Example:
      >>> network, unit = normalise(network, spiking)
      >>> unit["hidden"].kernel.tolist(), float(unit["relu0"].theta)  # 1 / 0.5
      ([[2.0, 0.0], [0.0, 2.0]], 1.0)

    References:
      Li and Zeng, IJCAI 2022; weight normalisation of Diehl et al., IJCNN 2015.
    """
    return _Units(network, spiking, logits).rewrite()


class _Units:
    """Which unit every current is written in, and the network rewritten in them.

    A region is a set of nodes that carry charges and are joined by wires; it has one
    unit: the threshold of the one population that reads it, that of the outputs, or 1.
    """

    def __init__(self, network: Network, spiking: Spiking, logits):
        self.network, self.graph, self.spiking = network, network.graph, spiking
        self.routes = routes(self.graph)
        self.one = jnp.ones((), spiking[network.neurons[0]].theta.dtype)
        self.logits = self.one * logits
        plain = isinstance(logits, int | float) and logits == 1
        self.of_outputs = None if plain else _LOGITS  # what their unit is named after
        self.regions = self.find_regions()
        readers: dict[str, list[Node]] = {}
        for node in self.graph.nodes:
            for name in node.inputs:
                readers.setdefault(name, []).append(node)
        # What each region's unit is named after: a population, the outputs, or nothing.
        self.keys: dict[str, str | None] = {}
        for members in {id(m): m for m in self.regions.values()}.values():
            key = self.choose(members, [r for m in members for r in readers.get(m, ())])
            self.keys |= dict.fromkeys(members, key)
        # The unit of each population's current, in the place of its threshold.
        self.units = {_LOGITS: self.as_threshold(self.logits)}
        for node in self.graph.of(Neuron):
            key = self.wanted(node)
            value = self.one
            if key is not None:
                value = self.logits if key == _LOGITS else spiking[key].theta
            self.units[node.name] = self.as_threshold(value)

    def as_threshold(self, value) -> Threshold:
        return Threshold(value, self.one, self.one)

    def find_regions(self) -> dict[str, list[str]]:
        """`{node: all of its region}` of the nodes that carry charges."""
        found: dict[str, list[str]] = {}
        for node in self.graph.nodes:
            if node.name in self.routes:
                continue
            members = [node.name]
            if isinstance(node.role, Wire | Pool):
                for name in node.inputs:
                    if name in found and name not in members:
                        members += found[name]
            for name in members:
                found[name] = members
        return found

    def choose(self, members: list[str], readers: list[Node]) -> str | None:
        """What the unit of a region is named after; None is 1."""
        graph = self.graph
        for name in members:
            role = graph[name].role
            if isinstance(role, Input) or (
                isinstance(role, Wire) and (not role.affine or shifts(graph[name]))
            ):
                return None
        if any(name in graph.outputs for name in members):
            return self.of_outputs
        neurons = {n.name: n for n in readers if isinstance(n.role, Neuron)}
        if len(neurons) != 1:
            return None
        ((name, node),) = neurons.items()
        return name if self.chooses(node, members, readers) else None

    def chooses(self, neuron: Node, members: list[str], readers: list[Node]) -> bool:
        """Whether the threshold of a population can be the unit of what it reads."""
        theta, _, bias = self.spiking[neuron.name]
        if neuron.role.cap is not None or neuron.role.function is not None:
            return False
        if not jnp.ndim(theta):
            return True
        if not jnp.ndim(bias) and (traced(bias) or float(bias) != 0):
            return False  # one number for all channels and steps
        graph = self.graph
        for name in members:
            node = graph[name]
            if isinstance(node.role, Synapse):
                if node.role.feature_axis is None:
                    return False
            elif not self.keeps_channels(node):
                return False
        for node in readers:
            if isinstance(node.role, Synapse):
                route = self.charge_route(node.inputs[0], neuron.name)
                units = {neuron.name: self.as_threshold(theta)}
                if unit_of_rows(node, route, units, graph) is None:
                    return False
        return True

    def keeps_channels(self, node: Node) -> bool:
        """Whether a wire or pool leaves every channel to itself."""
        graph, params = self.graph, node.role.params
        axis, name = graph.channel_axes[node.name], node.role.primitive.name
        for one in node.inputs:
            before = self.axis_before(one, node)
            found = channel_axis(node, [before], graph)
            if found is None or found % len(node.shape) != axis:
                return False
            if graph[one].image_shape[before] != node.image_shape[axis]:
                return False
        if name == "pad":
            return tuple(params["padding_config"][axis]) == (0, 0, 0)
        if name == "rev":
            return axis not in params["dimensions"]
        return "window_dimensions" not in params or (
            params["window_dimensions"][axis] == 1
        )

    def axis_before(self, name: str, node: Node) -> int:
        """The axis of channels of what a wire reads."""
        # Of spikes it may be unknown, but sums keep it.
        if name in self.routes and len(self.graph[name].shape) == len(node.shape):
            return self.graph.channel_axes[node.name]
        return self.graph.channel_axes[name]

    def wanted(self, node: Node) -> str | None:
        """What the unit of a population's current is named after."""
        before = node.inputs[0]
        if before in self.keys:
            return self.keys[before]
        # Spikes of others are multiplied on the way.
        return node.name if self.chooses(node, [], []) else None

    def sources(self, name: str) -> set[str | None]:
        """What the unit of whole numbers is named after."""
        graph = self.graph
        return {self.wanted(graph[one]) for one in self.routes[name].sources}

    def charge_route(self, name: str, key: str) -> Route:
        """A charge as if it came from the population that its unit is named after."""
        node, axis = self.graph[name], self.graph.channel_axes[name]
        shape = [-1 if i == axis else 1 for i in range(len(node.shape))]
        ids = np.arange(node.image_shape[axis]).reshape(shape)
        return Route((key,), np.broadcast_to(ids, node.image_shape), 1.0)

    def route(self, name: str) -> Route | None:
        """Whose unit a node's output has at each place; None is 1."""
        if name in self.routes:
            keys = self.sources(name)
            return None if keys == {None} else self.routes[name]._replace(factor=1.0)
        key = self.keys[name]
        return None if key is None else self.charge_route(name, key)

    def place(self, name: str):
        """The unit of a node's output: a scalar or `[1, ...]`, like one image."""
        node, route = self.graph[name], self.route(name)
        if route is None:
            return self.one
        unit = unit_of_places(node, route, self.units, self.graph)
        if not unit.ndim:
            return unit
        return unit.reshape((1,) * (len(node.shape) - unit.ndim) + unit.shape)

    # The network in these units.

    def rewrite(self) -> tuple[Network, Spiking]:
        nodes: list[Node] = []
        names = {node.name for node in self.graph.nodes}
        scaled = {n: own for n, own in self.spiking.items() if n not in names}
        renamed = dict(zip(self.graph.outputs, self.graph.outputs, strict=True))
        for node in self.graph.nodes:
            inputs = []
            for name in node.inputs:
                factor = self.ratio(name, node)
                if factor is not None:
                    name = self.insert(nodes, scaled, name, node.name, factor)
                inputs.append(name)
            nodes.append(dataclasses.replace(node, inputs=tuple(inputs)))
            if node.name in self.spiking:
                scaled[node.name] = self.weights(node, inputs)
        for name in renamed:
            if self.key_of_output(name) != self.of_outputs:
                factor = self.place(name) / self.logits
                renamed[name] = self.insert(nodes, scaled, name, "output", factor)
        outputs = tuple(renamed[name] for name in self.graph.outputs)
        graph = Graph(tuple(nodes), outputs)
        added = {name: own for name, own in scaled.items() if name not in self.spiking}
        program = self.network.program.with_factors(added)
        network = dataclasses.replace(self.network, graph=graph, program=program)
        return network, scaled

    def key_of_output(self, name: str) -> str | None:
        """What the unit of an output is named after; of several, none of these."""
        if name in self.keys:
            return self.keys[name]
        keys = self.sources(name)
        return next(iter(keys)) if len(keys) == 1 else ""

    def ratio(self, name: str, node: Node):
        """What to multiply by between two nodes, if anything."""
        passed_on = node.name in self.routes and not isinstance(node.role, Neuron)
        if name not in self.routes or passed_on:
            return None
        keys = self.sources(name)
        match node.role:
            case Synapse():
                # Kernels take it, unless one of their rows receives several units.
                route = self.route(name)
                if route is None:
                    return None
                rows = unit_of_rows(node, route, self.units, self.graph)
                return self.place(name) if rows is None else None
            case Neuron():
                key, unit = self.wanted(node), self.units[node.name].theta
            case _:
                key = self.keys[node.name]
                unit = self.units[key].theta if key is not None else self.one
        if keys == {key} and key in (None, _LOGITS):
            return None
        axis = self.axis_before(name, node)
        return self.place(name) / _along(unit, axis, len(self.graph[name].shape))

    def insert(self, nodes, scaled, name: str, before: str, factor) -> str:
        """A wire that multiplies; its name."""
        node = self.graph[name]
        taken = {n.name for n in nodes} | {n.name for n in self.graph.nodes}
        count = 0
        while (new := f"{before}/unit{count}") in taken:
            count += 1
        factor = jnp.asarray(factor, self.one.dtype)
        role = Wire(lax.mul_p, {}, (None, Operand(0)))
        nodes.append(Node(new, role, (name,), node.shape, node.source))
        scaled[new] = (factor,)
        return new

    def weights(self, node: Node, inputs: list[str]):
        """A node's weights in the new units."""
        own = self.spiking[node.name]
        match node.role:
            case Synapse() as role:
                kernel, bias = own
                before = inputs[0]
                route = self.route(before) if before == node.inputs[0] else None
                if route is not None:
                    kernel = kernel * unit_of_rows(node, route, self.units, self.graph)
                key = self.keys[node.name]
                if key is None:
                    return Affine(kernel, bias)
                unit = self.logits if key == _LOGITS else self.spiking[key].theta
                if not jnp.ndim(unit):
                    return Affine(kernel / unit, bias / unit)
                shape = [1] * kernel.ndim
                shape[role.features] = -1
                axis = self.graph.channel_axes[node.name]
                rest = [1] * (len(node.shape) - 1 - axis)
                return Affine(
                    kernel / unit.reshape(shape), bias / unit.reshape(-1, *rest)
                )
            case Neuron():
                return self.threshold(node, own)
        return own

    def threshold(self, node: Node, own: Threshold) -> Threshold:
        key, unit = self.wanted(node), self.units[node.name].theta
        theta = self.one if key == node.name else own.theta / unit
        bias = own.bias
        if not jnp.ndim(unit):
            bias = bias / unit
        elif jnp.ndim(bias):  # a row for each step
            rank = max(unit.ndim, bias.ndim - 1)
            rows = (1,) * (rank + 1 - bias.ndim)
            bias = bias.reshape(bias.shape[0], *rows, *bias.shape[1:])
            bias = bias / unit.reshape((1,) * (rank + 1 - unit.ndim) + unit.shape)
        return Threshold(theta, own.initial, bias)


def _along(unit, axis: int, rank: int):
    """A unit per channel along an axis, `[1, ...]`; a scalar stays one."""
    if not jnp.ndim(unit):
        return unit
    return unit.reshape([-1 if i == axis else 1 for i in range(rank)])
