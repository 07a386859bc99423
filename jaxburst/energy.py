"""Synaptic operations and joules, spiking and conventional, of any traced network.

    print(report(model, curves, cost=LEMAIRE, unit="events"))

A synaptic operation is one event reaching one synapse, see `reach`. Events are counted
where they enter a synapse: after max pooling, and before average pooling, which merges
into the synapse it feeds. Wires and biases count nothing.

A spike is a whole number, and a code is charged in the unit that its hardware has:

* `'quanta'`: unary spikes; a burst of `k` is `k` of them, each an accumulate and an
  access to memory. The paper's bursts pay these.
* `'events'`: graded events, whose number multiplies the weight: memory once for each.
* `'digits'`: graded events, too, but the datapath shifts and adds: an accumulate for
  each signed binary digit of the number, memory once for each event.

What is constant over time is weighed once, as multiply-accumulates; what comes from
another synapse with no neuron between them is a charge, weighed so at every step. A
product of two signals is a synapse whose weights are what the other side has sent so
far. The function of a population that is no ReLU is evaluated once for each update of
its neurons, at the multiply-accumulates of `costs.FUNCTIONS`.

The conventional network counts the same taps, so operations = mean events per place x
multiply-accumulates wherever every place reaches as many synapses.
"""

from __future__ import annotations

import dataclasses
import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxburst.checks import door
from jaxburst.costs import (
    FUNCTIONS,
    HOROWITZ_FP32,
    HOROWITZ_INT8,
    LEMAIRE,
    NEUROMC,
    PRESETS,
    SENECA,
    Cost,
    Memory,
)
from jaxburst.graph import Graph, Input, Neuron, Node, Pool, Product, Synapse
from jaxburst.model import Model
from jaxburst.network import Network
from jaxburst.neurons import Threshold
from jaxburst.reach import Reach, reach
from jaxburst.traffic import Traffic

__all__ = [
    "HOROWITZ_FP32", "HOROWITZ_INT8", "LEMAIRE", "NEUROMC", "PRESETS", "SENECA",
    "Cost", "Memory", "Reach", "Report", "ann_joules", "break_even", "by_sender",
    "cost_per_event", "depth", "fan_out", "joules", "macs", "operations", "prices",
    "reach", "relative", "report",
]  # fmt: skip

UNITS = ("quanta", "events", "digits")

COLUMNS = (
    "operations", "weights", "potentials", "events", "neurons", "sums", "pools"
)  # fmt: skip
"""What is paid for: arithmetic of synapses; weights read; potentials read and written;
events or activations sent, stored, captured; arithmetic of neurons; sums at shortcuts;
pools."""
_OPERATIONS, _WEIGHTS, _POTENTIALS, _EVENTS, _NEURONS, _SUMS, _POOLS = range(7)

Events = dict[str, Any]


@door(weights="mapping")
def macs(network: Network, weights: dict | None = None) -> dict[str, int]:
    """Multiply-accumulates of one image, taps on zero padding left out.

    Args:
      network: the network.
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
    numbers, kernel_shape = params["dimension_numbers"], _kernel(node, graph)
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


def _kernel(node: Node, graph: Graph) -> tuple[int, ...]:
    """The shape of what a synapse or product multiplies with."""
    if isinstance(node.role, Synapse):
        return node.role.kernel
    return graph[node.inputs[1]].image_shape


def _function(node: Node) -> int:
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
        sizes = [_size(inner), *(_size(graph[name]) for name in inner.inputs)]
        total += price * max(sizes)
    return total


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
      network: the network.
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


# What a count costs.


class Prices(NamedTuple):
    """Picojoules by column (`COLUMNS`), `[7]` each.

    Attributes:
      event: `{sender: [7]}` of one event: memory, the way, sums.
      operation: `{sender: [7]}` of one operation at all synapses that it reaches: of a
        quantum, an event or a digit, by the unit.
      step: of every step, whatever is sent.
      once: of what is constant.

    Example:
      >>> prices(network).once.sum().item()  # four products of the first layer, 4.6 pJ
      18.4
    """

    event: dict[str, np.ndarray]
    operation: dict[str, np.ndarray]
    step: np.ndarray
    once: np.ndarray


@door(network="subject", spiking="mapping")
def prices(
    network: Network | Model,
    *,
    cost: Cost = HOROWITZ_FP32,
    unit: str = "quanta",
    spiking: dict | None = None,
) -> Prices:
    r"""What events cost, and what the network costs without any.

    With the fan-out `F` of a sender into a synapse, the energy of an event is

    .. math::
        \mathrm{write}_s + \mathrm{sent} + \sum_l \big( \mathrm{read}_s +
        \mathrm{captured} + F_l (\mathrm{read}_w + \mathrm{address} + \mathrm{read}_v +
        \mathrm{write}_v) \big)

    with the memories of signals `s`, weights `w` and potentials `v` of each layer; each
    operation takes :math:`F_l` accumulates, or products where the unit is `'events'`,
    whose factor has as many bits as the largest number that the neurons of a `Model`
    send. A sum at a shortcut is an event without a weight: an addition, a potential
    read and written. A pool adds an event to its running sum, and compares it with the
    maximum of each window that the place is in; what it passes on is written. Every
    step every neuron's state is read, updated and written: as many numbers as the
    neurons of a `Model` keep, of a `Network` one. What is constant is weighed as graded
    events of full width are.

    Args:
      network: the network, or a model, whose neurons are known.
      cost: the cost model.
      unit: `'quanta'`, `'events'` or `'digits'`.
      spiking: leave out weights that are zero in these.

    Returns:
      The `Prices`.

    Example:
      >>> prices(network).operation["relu0"][0].item()  # one synapse, 0.9 pJ
      0.9
    """
    net, states, bits = _parts(network)
    graph, found = net.graph, reach(net, spiking)
    operation = cost.product(bits) if unit == "events" else cost.accumulate
    event, ops = ({name: _nothing() for name in net.senders} for _ in range(2))
    step, once = _nothing(), _nothing()

    def arrives(name: str) -> float:
        return cost.signal.of(_size(graph[name]))[0] + cost.captured

    for name, own in event.items():
        node, size = graph[name], _size(graph[name])
        before = _size(graph[node.inputs[0]])
        own[_EVENTS] += cost.signal.of(size)[1] + cost.sent
        if isinstance(node.role, Neuron):
            step[_NEURONS] += size * cost.neuron + _function(node) * cost.mac
            step[_POTENTIALS] += before * _updated(cost, before)
            step[_POTENTIALS] += (states - 1) * size * _updated(cost, size)
            continue
        own[_POOLS] += cost.potential.of(size)[1]
        if not any(receiver == name for _, receiver in found.sums):  # charges
            step[_POOLS] += before * (cost.addition + _updated(cost, before))
            step[_POOLS] += found.windows[name].sum() * _compared(cost, node)
    for (sender, name), places in found.events.items():
        fan = places.mean()
        event[sender][_EVENTS] += arrives(sender)
        event[sender] += fan * _synapse(cost, graph[name], graph)
        ops[sender][_OPERATIONS] += fan * operation
        if isinstance(graph[name].role, Product):  # what its own side has sent
            event[sender][_OPERATIONS] += cost.addition
            event[sender][_POTENTIALS] += _updated(cost, _size(graph[sender]))
    for (sender, name), places in found.sums.items():
        pool = _is_pool(name, graph)
        node = graph[graph[name].inputs[0] if name in graph.dynamic else name[1:]]
        ways = places.mean() * (cost.addition + _updated(cost, _size(node)))
        event[sender][_EVENTS] += arrives(sender)
        event[sender][_POOLS if pool else _SUMS] += ways
        if pool:
            windows = found.compared[sender, name].mean()
            event[sender][_POOLS] += windows * _compared(cost, graph[name])
    for amounts, into in ((found.once, once), (found.charges, step)):
        for name, taps in amounts.items():
            node, met = graph[name], found.taps[name]
            into[_OPERATIONS] += taps * cost.mac
            into += taps * _synapse(cost, node, graph)
            share = taps / max(met.sum(), 1)
            into[_EVENTS] += share * (met > 0).sum() * arrives(node.inputs[0])
    return Prices(event, ops, step, once)


def _nothing() -> np.ndarray:
    return np.zeros(len(COLUMNS))


def _is_pool(name: str, graph: Graph) -> bool:
    """Whether a receiver of sums is a pool over spikes, and no population or output."""
    return name in graph.dynamic and isinstance(graph[name].role, Pool)


def _updated(cost: Cost, words: int) -> float:
    """A potential out of so many that is read and written."""
    return sum(cost.potential.of(words))


def _size(node: Node) -> int:
    return math.prod(node.image_shape)


def _synapse(cost: Cost, node: Node, graph: Graph) -> np.ndarray:
    """The memory of one event at one synapse, or at one number of a product."""
    found = _nothing()
    memory = cost.potential if isinstance(node.role, Product) else cost.weight
    found[_WEIGHTS] = memory.of(math.prod(_kernel(node, graph)))[0] + cost.address
    found[_POTENTIALS] = _updated(cost, _size(node))
    return found


def _compared(cost: Cost, node: Node) -> float:
    """A comparison with the maximum of a window."""
    return cost.addition + cost.potential.of(_size(node))[0]


def _parts(network: Network | Model) -> tuple[Network, int, int | None]:
    """The network, how many numbers a neuron keeps, and the bits of what it sends."""
    if not isinstance(network, Model):
        return network, 1, None
    neuron, none = network.neuron, jnp.zeros(())
    name = network.network.neurons[0]
    rest = partial(neuron.at(name).rest, Threshold(none, none, none), (1,), none.dtype)
    state = jax.tree.leaves(jax.eval_shape(rest))
    states = sum(math.prod(x.shape) for x in state if x.ndim)
    most = neuron.most
    return network.network, states, most and math.ceil(math.log2(most + 1))


@door(network="subject", spiking="mapping")
def by_sender(
    network: Network | Model,
    events,
    *,
    cost: Cost = HOROWITZ_FP32,
    unit: str = "quanta",
    spiking: dict | None = None,
) -> dict[str, np.ndarray]:
    """Joules that the events of each population and pool cause, `{sender: [T, ...]}`,
    of each step by itself. Args: as `joules`.

    Example:
      >>> spent = by_sender(network, {"relu0": np.array([2.0, 1.0])})
      >>> (spent["relu0"] * 1e12).tolist()
      [1.8, 0.9]
    """
    own = prices(network, cost=cost, unit=unit, spiking=spiking)
    found = _caused(own, _parts(network)[0], events, unit)
    return {name: spent.sum(-1) * 1e-12 for name, spent in found.items()}


def _caused(own: Prices, network: Network, events, unit: str) -> dict[str, np.ndarray]:
    """Picojoules by column that each sender's events cause, `[T, ..., 7]`."""
    sent, worked = _counts(network, events, unit)
    return {
        name: sent[name][..., None] * own.event[name]
        + worked[name][..., None] * own.operation[name]
        for name in sent
    }


def _spent(network, events, cost, unit, spiking, first_layer) -> np.ndarray:
    """Picojoules of each step by itself, by column, `[T, ..., 7]`."""
    own = prices(network, cost=cost, unit=unit, spiking=spiking)
    spent = sum(_caused(own, _parts(network)[0], events, unit).values()) + own.step
    spent[: len(spent) if first_layer == "every step" else 1] += own.once
    return spent


def _counts(network: Network, events, unit: str) -> tuple[dict, dict]:
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


@door(network="subject", spiking="mapping")
def joules(
    network: Network | Model,
    events,
    *,
    cost: Cost = HOROWITZ_FP32,
    unit: str = "quanta",
    spiking: dict | None = None,
    first_layer: str = "once",
) -> np.ndarray:
    """Energy of the spiking network up to each time step, in joules per image.

    Args:
      network: the network, or a model, as for `prices`.
      events: `Curves`, a `Trace`, or the counts of one unit as in `operations`.
      cost: the cost model.
      unit: what the hardware of the code sends: `'quanta'`, `'events'` or `'digits'`.
      spiking: leave out weights that are zero in these.
      first_layer: whether what is constant is weighed `'once'`, or at `'every step'`,
        as some papers count.

    Returns:
      `[T, ...]`, energy spent up to and including step `t`.

    Raises:
      ValueError: as `operations`.

    Example:
      >>> spent = joules(network, {"relu0": np.array([2.0, 1.0])})
      >>> (spent * 1e12).round(1).tolist()  # 4 MACs of 4.6 pJ; 2, then 3 of 0.9
      [20.2, 21.1]
    """
    spent = _spent(network, events, cost, unit, spiking, first_layer)
    return np.cumsum(spent.sum(-1), axis=0) * 1e-12


@door(network="subject", spiking="mapping")
def ann_joules(
    network: Network | Model,
    *,
    cost: Cost = HOROWITZ_FP32,
    reuse: str = "no",
    bits: int | None = None,
    sent: Events | None = None,
    spiking: dict | None = None,
) -> float:
    """Energy of one image through the conventional network, in joules.

    Its sums stay in registers. Every activation is written once. Without reuse each
    multiply-accumulate reads a weight and an activation. With full reuse each weight is
    read once, and each activation once by each layer: no accelerator does better, all
    are in between. Additions of averages are not counted.

    Args:
      network: the network.
      cost: the cost model.
      reuse: `'no'` or `'full'`.
      bits: of activations, if they are quantised; weights are those of the model.
      sent: `{population or pool: [...]}`, how many activations are not zero: zeros are
        skipped, and a bit for each activation, read and written with it, says where.
        Take the events of `rounded` networks at their only step.
      spiking: leave out weights that are zero in these.

    Example:
      >>> round(ann_joules(network) * 1e12, 1)  # 6 MACs
      27.6
    """
    return float(_ann(network, cost, reuse, bits, sent, spiking).sum()) * 1e-12


def _ann(network, cost, reuse="no", bits=None, sent=None, spiking=None) -> np.ndarray:
    """Picojoules by column."""
    network, full = _parts(network)[0], reuse == "full"
    graph, found, spent = network.graph, reach(network, spiking), _nothing()
    share = 1.0 if bits is None else min(bits / cost.signal.bits, 1.0)
    mask = 0.0 if sent is None else 1 / cost.signal.bits
    if sent is not None:
        counts, _ = _counts(network, sent, "events")
        if len(next(iter(counts.values()))) != 1:
            raise ValueError("sent: expected the events of one step, found several")
        sent = {name: float(count.mean()) for name, count in counts.items()}

    def density(name: str) -> float:
        """The part of a node's numbers that is not zero."""
        return (
            sent[name] / _size(graph[name]) if sent and name in graph.dynamic else 1.0
        )

    def read(name: str) -> float:
        return cost.signal.of(_size(graph[name]))[0]

    for node in graph.of(Synapse, Product):
        name, met = node.name, found.taps[node.name]
        if isinstance(node.role, Product):  # both sides are activations, and dense
            spent[_OPERATIONS] += met.sum() * cost.product(bits)
            for side in node.inputs:
                reads = _size(graph[side]) if full else met.sum()
                spent[_EVENTS] += reads * share * read(side)
            continue
        plain = found.once.get(name, 0.0) + found.charges.get(name, 0.0)
        taps, active = met.sum() - plain, 1.0
        if sent is not None:  # averages are dense
            some = {s: x for (s, to), x in found.events.items() if to == name}
            active = sum(sent[s] * x.mean() for s, x in some.items()) / max(taps, 1)
            active = min(active, 1.0)
        values = (met > 0).sum() * np.array([plain, taps]) / max(met.sum(), 1)
        done = np.array([plain, taps * active])
        spent[_OPERATIONS] += done @ [cost.mac, cost.product(bits)]
        kernel = math.prod(node.role.kernel)
        weight = cost.weight.of(kernel)[0] + cost.address
        if spiking is not None:
            kernel = int((np.asarray(spiking[name].kernel) != 0).sum())
        spent[_WEIGHTS] += (kernel if full else done.sum()) * weight
        reads = values * [1.0, active] if full else done
        signals = reads @ [1.0, share] + mask * values[1]
        spent[_EVENTS] += read(node.inputs[0]) * signals
    for node in graph.of(Neuron, Pool):
        size, (_, write) = _size(node), cost.signal.of(_size(node))
        spent[_EVENTS] += size * (density(node.name) * share + mask) * write
        if isinstance(node.role, Neuron):
            spent[_NEURONS] += size * cost.neuron + _function(node) * cost.mac
        elif node.name in graph.dynamic:
            windows = found.windows[node.name]
            reads = windows.size if full else windows.sum()
            spent[_POOLS] += windows.sum() * cost.addition
            spent[_POOLS] += read(node.inputs[0]) * share * reads
    for (sender, name), places in found.sums.items():
        if not _is_pool(name, graph):
            ways = places.sum() * density(sender)
            spent[_SUMS] += ways * (cost.addition + share * read(sender))
    return spent


@door(network="subject", spiking="mapping")
def relative(
    network: Network | Model,
    events,
    *,
    cost: Cost = HOROWITZ_FP32,
    unit: str = "quanta",
    spiking: dict | None = None,
    first_layer: str = "once",
    reuse: str = "no",
) -> np.ndarray:
    """Energy up to each step over the conventional network's.

    Args: as for `joules`, and `reuse` as for `ann_joules`.

    Example:
      >>> # 4 products once; 2 and 3 additions; over 6 products
      >>> spent = relative(network, {"relu0": np.array([2.0, 3.0])})
      >>> [round(float(x), 3) for x in spent]
      [0.732, 0.83]
    """
    spent = joules(
        network, events, cost=cost, unit=unit, spiking=spiking, first_layer=first_layer
    )
    return spent / ann_joules(network, cost=cost, reuse=reuse)


@dataclasses.dataclass(frozen=True)
class Report:
    """What each part of a network costs, in joules per image; as a string, a table.

    Attributes:
      cost: the name of the cost model.
      unit: what events are charged in.
      baseline: the row that `relative` is over.
      rows: one for each number of steps and each conventional network: `name`; `steps`
        and `latency`, with the depth of the pipeline, of spiking ones; the `COLUMNS`;
        `total`; `step`, what the last step alone cost; `relative`.

    Example:
      >>> labels = np.zeros(2, int)
      >>> curves = jb.evaluate(model, spiking, (inputs, labels), 2, progress=False)
      >>> found = report(model, curves)
      >>> found.cost, found.unit
      ('horowitz_fp32', 'quanta')
    """

    cost: str
    unit: str
    baseline: str
    rows: tuple[dict, ...]

    def __getitem__(self, name: str) -> dict:
        """The row of that name, such as `'T = 3'` or `'full reuse'`."""
        return next(row for row in self.rows if row["name"] == name)

    def __str__(self) -> str:
        heads = [*COLUMNS, "total", "step"]
        lines = [
            f"{self.cost}, charged in {self.unit}; nanojoules per image; "
            f"relative to {self.baseline}",
            "  ".join([f"{'':32}", " T", "latency", *(f"{h:>10}" for h in heads)])
            + "  relative",
        ]
        for row in self.rows:
            cells = [f"{row['name']:32}", f"{row['steps'] or '':>2}"]
            cells.append(f"{row['latency'] or '':>7}")
            cells += [_nano(row[head]) for head in heads]
            lines.append("  ".join([*cells, f"{row['relative']:8.3f}"]))
        return "\n".join(lines)


def _nano(joules: float | None) -> str:
    return f"{'':>10}" if joules is None else f"{joules * 1e9:>10,.1f}"


@door(network="subject", spiking="mapping")
def report(
    network: Network | Model,
    events,
    *,
    cost: Cost = HOROWITZ_FP32,
    unit: str = "quanta",
    baseline: str = "no reuse",
    bits: int | None = None,
    rounded=None,
    spiking: dict | None = None,
    first_layer: str = "once",
) -> Report:
    """A table of what is paid for, beside the conventional network's.

    Args:
      network, events, cost, unit, spiking, first_layer: as for `joules`. Counts of
        several images are averaged.
      baseline: the conventional network that `relative` is over: `'no reuse'` or
        `'full reuse'`, alone or after `'4 bits, '` or `'4 bits, zeros skipped, '`.
      bits: of the activations of the quantised network, by default as many as the
        largest number needs that the neurons of a `Model` send, otherwise 8.
      rounded: the `Curves` of that network, run for one step (`rounded` makes it): for
        rows in which zeros are skipped.

    Returns:
      The `Report`; print it.

    Raises:
      ValueError: as `joules`, and for a baseline that is no row.

    Example:
      >>> found = report(network, {"relu0": np.array([2.0, 1.0])})
      >>> f"{found['T = 2']['total']:.3g}", f"{found['no reuse']['total']:.3g}"
      ('2.11e-11', '2.76e-11')
    """
    spent = _spent(network, events, cost, unit, spiking, first_layer)
    spent = spent.reshape(len(spent), -1, len(COLUMNS)).mean(1)
    net, _, needed = _parts(network)
    bits, late = bits or needed or 8, depth(net)
    found = {}
    for t, total in enumerate(np.cumsum(spent, 0), 1):
        found[f"T = {t}"] = (t, t + late, total, float(spent[t - 1].sum()) * 1e-12)
    kinds = {"": {}, f"{bits} bits, ": {"bits": bits}}
    if rounded is not None:
        kinds[f"{bits} bits, zeros skipped, "] = {"bits": bits, "sent": rounded}
    for kind, options in kinds.items():
        for reuse in ("no", "full"):
            total = _ann(net, cost, reuse, spiking=spiking, **options)
            found[f"{kind}{reuse} reuse"] = (None, None, total, None)
    conventional = [name for name, row in found.items() if row[0] is None]
    if baseline not in conventional:
        raise ValueError(f"baseline must be one of {conventional}, found {baseline!r}")
    least, rows = found[baseline][2].sum(), []
    for name, (t, latency, total, last) in found.items():
        paid = dict(zip(COLUMNS, (total * 1e-12).tolist(), strict=True))
        row = {"name": name, "steps": t, "latency": latency} | paid
        row |= {"total": float(total.sum()) * 1e-12, "step": last}
        rows.append(row | {"relative": float(total.sum() / least)})
    return Report(cost.name, unit, baseline, tuple(rows))


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


@door(network="subject")
def break_even(
    network: Network | Model,
    steps: int,
    *,
    cost: Cost = HOROWITZ_FP32,
    unit: str = "events",
    reuse: str = "no",
    bits: int | None = None,
    sent: Events | None = None,
) -> np.ndarray:
    """How often neurons may fire before spikes cost more than the conventional network.

    Every neuron is taken to send as often, and every pool to pass on as much.

    Args:
      network, cost, unit: as for `prices`; a graded event in `'digits'` has one digit.
      steps: the largest number of time steps.
      reuse, bits, sent: of the conventional network, as for `ann_joules`.

    Returns:
      `[T]`, events per neuron and step; times `t`, about the spikes per synapse of a
      whole run. Negative where the network costs more without any.

    Example:
      >>> break_even(network, 2).round(2).tolist()  # 9.2 pJ buy two events of 4.6
      [1.0, 0.5]
    """
    own = prices(network, cost=cost, unit=unit)
    net = _parts(network)[0]
    dense = ann_joules(net, cost=cost, reuse=reuse, bits=bits, sent=sent) * 1e12
    times = np.arange(1, steps + 1)
    each = sum(
        _size(net.graph[name]) * (own.event[name] + own.operation[name]).sum()
        for name in own.event
    )
    return (dense - own.once.sum() - times * own.step.sum()) / (times * each)


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
        if not np.isfinite(count).all() or (count < 0).any():
            raise ValueError(
                f"{name}: events must be counts, found a number that is negative or "
                "not finite"
            )
    return found
