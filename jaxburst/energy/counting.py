"""How often: operations and events of a network, whatever they cost."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from jax import lax

from jaxburst.checks import door
from jaxburst.energy.costs import FUNCTIONS
from jaxburst.energy.reaching import reach
from jaxburst.graph import Graph, Input, Neuron, Node, Product, Synapse
from jaxburst.network import Network
from jaxburst.traffic import Traffic

Events = dict[str, Any]


@door(weights="mapping")
def macs(network: Network, weights: dict | None = None) -> dict[str, int]:
    """Multiply-accumulates of one image, taps on zero padding left out.

    Args:
      weights: leave out weights that are zero in these, a converted network or what
        `Network.weights` gives.

    Returns:
      `{synapse or product of two signals: how many}`, in order.

    Example:
      >>> macs(network)
      {'hidden': 4, 'out': 2}
      >>> macs(network, spiking)  # two weights of the identity are zero
      {'hidden': 2, 'out': 2}
    """
    if weights is not None:
        return {
            name: int(taps.sum()) for name, taps in reach(network, weights).taps.items()
        }
    graph = network.graph
    return {node.name: _macs(node, graph) for node in graph.of(Synapse, Product)}


def _macs(node: Node, graph: Graph) -> int:
    """Those of one synapse, from the shapes alone."""
    role, before = node.role, graph[node.inputs[0]].image_shape
    primitive, params = role.primitive.name, role.params
    if primitive != "conv_general_dilated":
        axes = ()
        if primitive == "dot_general":
            side = 0 if isinstance(role, Product) else role.data
            axes = params["dimension_numbers"][0][side]
        return math.prod(node.image_shape) * math.prod(before[i] for i in axes)
    numbers, kernel_shape = params["dimension_numbers"], kernel_of(node, graph)
    # Of the output's spatial axes, each pair of a place and a tap that meet an input.
    found = math.prod(node.image_shape[i] for i in numbers.out_spec[:2])
    found *= kernel_shape[numbers.rhs_spec[1]]
    rows = zip(
        numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:],
        params["window_strides"], params["padding"], params["lhs_dilation"],
        params["rhs_dilation"], strict=True,
    )  # fmt: skip
    for data, kernel, out, stride, (low, _), apart, dilation in rows:
        places = np.arange(node.image_shape[out])[:, None] * stride - low
        places = places + np.arange(kernel_shape[kernel]) * dilation
        inside = (places >= 0) & (places <= (before[data] - 1) * apart)
        found *= int((inside & (places % apart == 0)).sum())
    return found


@door(spiking="mapping")
def fan_out(
    network: Network, spiking: dict | None = None
) -> dict[tuple[str, str], float]:
    """Synapses that one event reaches, on average over the places it can come from:
    `{(sender, synapse): fan-out}`. Args: as `operations`.

    Example:
      >>> fan_out(network)
      {('relu0', 'out'): 1.0}
    """
    found = reach(network, spiking).events
    return {pair: float(places.mean()) for pair, places in found.items()}


@door(spiking="mapping")
def cost_per_event(network: Network, spiking: dict | None = None) -> dict[str, float]:
    """Operations that one event causes, on average, in all synapses that it reaches:
    `{sender: operations}`. Args: as `operations`.

    Example:
      >>> cost_per_event(network)
      {'relu0': 1.0}
    """
    found: dict[str, float] = {}
    for (sender, _), fan in fan_out(network, spiking).items():
        found[sender] = found.get(sender, 0.0) + fan
    return found


@door(spiking="mapping")
def operations(
    network: Network, events: Events, spiking: dict | None = None
) -> dict[str, np.ndarray]:
    """Synaptic operations of every step by itself: events times fan-out.

    Exact where every place of a population reaches as many synapses, or where all its
    places are equally active; otherwise, at the edges of a map, on average.

    Args:
      events: from `Curves` or `Trace`, `{population or pool: [T, ...]}`.
      spiking: leave out weights that are zero in these.

    Returns:
      `{synapse: [T, ...]}`, for every synapse that events reach.

    Raises:
      ValueError: for events that are missing, of another network, of different shapes
        or not finite.

    Example:
      >>> operations(network, {"relu0": np.array([2.0, 3.0])})["out"].tolist()
      [2.0, 3.0]
    """
    events, found = check_events(network, events), {}
    for (sender, synapse), fan in fan_out(network, spiking).items():
        found[synapse] = found.get(synapse, 0.0) + events[sender] * fan
    return found


@door
def depth(network: Network) -> int:
    """The most populations on a way from an input to an output: what a pipeline in
    which each passes its spikes on at the next step adds to the latency.

    Example:
      >>> depth(network)
      1
    """
    found: dict[str, int] = {}
    for node in network.graph.nodes:
        before = max((found[name] for name in node.inputs), default=0)
        found[node.name] = before + isinstance(node.role, Neuron)
    return max(found[name] for name in network.graph.outputs)


def kernel_of(node: Node, graph: Graph) -> tuple[int, ...]:
    """The shape of what a synapse or product multiplies with."""
    if isinstance(node.role, Synapse):
        return node.role.kernel
    return graph[node.inputs[1]].image_shape


def size_of(node: Node) -> int:
    return math.prod(node.image_shape)


def function_macs(node: Node) -> int:
    """Multiply-accumulates of a population's function, for one image."""
    graph, total = node.role.function, 0
    for inner in graph.nodes if graph else ():
        if isinstance(inner.role, Input):
            continue
        primitive = getattr(inner.role, "primitive", None)
        price = 1  # a comparison of a ReLU within
        if primitive is not None:
            price = FUNCTIONS.get(primitive.name, max(FUNCTIONS.values()))
        if primitive is lax.integer_pow_p:
            power = inner.role.params["y"]
            price = max(abs(power) - 1, 0) + FUNCTIONS["div"] * (power < 0)
        sizes = [size_of(inner), *(size_of(graph[name]) for name in inner.inputs)]
        total += price * max(sizes)
    return total


def counted(network: Network, events, unit: str) -> tuple[dict, dict]:
    """How many events, and how many operations, by sender."""
    traffic = getattr(events, "traffic", events)
    if all(isinstance(counts, Traffic) for counts in traffic.values()):
        sent, worked = (
            {name: counts.paid(unit)[i] for name, counts in traffic.items()}
            for i in (0, 1)
        )
        return check_events(network, sent), check_events(network, worked)
    if unit == "digits":
        raise ValueError(
            "unit 'digits' needs the events and their digits; pass what evaluate or "
            "simulate returns, not its events alone"
        )
    found = check_events(network, traffic)
    return found, found


def check_events(network: Network, events: Events) -> dict[str, np.ndarray]:
    """Events as arrays of one shape, those of every sender among them.

    Raises:
      ValueError: naming what is missing, unknown, or does not fit.

    Example:
      >>> check_events(network, {"relu0": [1, 2]})["relu0"].tolist()
      [1.0, 2.0]
    """
    graph, known = network.graph, network.senders
    strange = sorted(set(events) - set(known))
    if strange:
        raise ValueError(
            f"events: {strange} are no populations or pools of this network, which are "
            f"{list(known)}; pass the events of a simulation of this very network"
        )
    for node in graph.of(Synapse):
        for name in graph.senders[node.name]:
            if name not in events:
                raise ValueError(
                    f"{name}: its events are missing; pass the events of a simulation "
                    "of this very network"
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
    return found
