"""What is paid: joules of the spiking network and of the conventional one."""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.checks import door
from jaxburst.energy.costs import HOROWITZ_FP32, Cost
from jaxburst.energy.counting import (
    Events,
    counted,
    function_macs,
    size_of,
)
from jaxburst.energy.reaching import reach
from jaxburst.graph import Graph, Neuron, Node, Pool, Product, Synapse
from jaxburst.model import Model
from jaxburst.network import Network
from jaxburst.neurons import Threshold

COLUMNS = (
    "operations", "weights", "potentials", "events", "neurons", "sums", "pools"
)  # fmt: skip
"""What is paid for: arithmetic of synapses; weights read; potentials read and written;
events or activations sent, stored, captured; arithmetic of neurons; sums at shortcuts;
pools."""
_OPERATIONS, _WEIGHTS, _POTENTIALS, _EVENTS, _NEURONS, _SUMS, _POOLS = range(7)


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
    step, in each of its slots, every neuron's state is read, updated and written: as
    many numbers as the neurons of a `Model` keep, of a `Network` one. What is constant,
    and charges that a pool passes on, are weighed as graded events of full width are.

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
    net, states, bits, slots = parts_of(network)
    graph, found = net.graph, reach(net, spiking)
    operation = cost.product(bits) if unit == "events" else cost.accumulate
    charged = {node.name for node in graph.of(Pool)} - {name for _, name in found.sums}
    event, ops = ({name: _nothing() for name in net.senders} for _ in range(2))
    step, once = _nothing(), _nothing()

    def arrives(name: str, met=1.0) -> float:
        """Of an event, on average over what its places meet: some may meet nothing."""
        word, _ = cost.signal.of(size_of(graph[name]))
        return float(np.mean(np.asarray(met) > 0)) * (word + cost.captured)

    for name, own in event.items():
        node, size = graph[name], size_of(graph[name])
        before = size_of(graph[node.inputs[0]])
        own[_EVENTS] += cost.signal.of(size)[1] + cost.sent
        if isinstance(node.role, Neuron):
            updated = before * _updated(cost, before)
            updated += (states - 1) * size * _updated(cost, size)
            step[_POTENTIALS] += slots * updated
            step[_NEURONS] += slots * size * cost.neuron
            step[_NEURONS] += function_macs(node) * cost.mac
            continue
        own[_POOLS] += cost.potential.of(size)[1]
        if name in charged:
            step[_POOLS] += before * (cost.addition + _updated(cost, before))
            step[_POOLS] += found.windows[name].sum() * _compared(cost, node)
    for (sender, name), places in found.events.items():
        fan = places.mean()
        event[sender][_EVENTS] += arrives(sender, places)
        event[sender] += fan * _synapse(cost, graph[name], graph)
        ops[sender][_OPERATIONS] += fan * (cost.mac if sender in charged else operation)
        if isinstance(graph[name].role, Product):  # what its own side has sent
            event[sender][_OPERATIONS] += cost.addition
            event[sender][_POTENTIALS] += _updated(cost, size_of(graph[sender]))
    for (sender, name), places in found.sums.items():
        pool = _is_pool(name, graph)
        node = graph[graph[name].inputs[0] if name in graph.dynamic else name[1:]]
        ways = places.mean() * (cost.addition + _updated(cost, size_of(node)))
        event[sender][_EVENTS] += arrives(sender, places)
        event[sender][_POOLS if pool else _SUMS] += ways
        if pool:
            windows = found.compared[sender, name].mean()
            event[sender][_POOLS] += windows * _compared(cost, graph[name])
    for amounts, into in ((found.once, once), (found.charges, step)):
        for name, places in amounts.items():
            node = graph[name]
            into[_OPERATIONS] += places.sum() * cost.mac
            into += places.sum() * _synapse(cost, node, graph)
            into[_EVENTS] += places.size * arrives(node.inputs[0], places)
    return Prices(event, ops, step, once)


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

    What is not said here is as for `prices`.

    Args:
      events: `Curves`, a `Trace`, or the counts of one unit as in `operations`.
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
    spent = spent_by_step(network, events, cost, unit, spiking, first_layer)
    return np.cumsum(spent.sum(-1), axis=0) * 1e-12


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
    found = _caused(own, parts_of(network)[0], events, unit)
    return {name: spent.sum(-1) * 1e-12 for name, spent in found.items()}


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
    return float(ann_spent(network, cost, reuse, bits, sent, spiking).sum()) * 1e-12


def _caused(own: Prices, network: Network, events, unit: str) -> dict[str, np.ndarray]:
    """Picojoules by column that each sender's events cause, `[T, ..., 7]`."""
    sent, worked = counted(network, events, unit)
    return {
        name: sent[name][..., None] * own.event[name]
        + worked[name][..., None] * own.operation[name]
        for name in sent
    }


def spent_by_step(network, events, cost, unit, spiking, first_layer) -> np.ndarray:
    """Picojoules of each step by itself, by column, `[T, ..., 7]`."""
    own = prices(network, cost=cost, unit=unit, spiking=spiking)
    spent = sum(_caused(own, parts_of(network)[0], events, unit).values()) + own.step
    spent[: len(spent) if first_layer == "every step" else 1] += own.once
    return spent


def ann_spent(
    network, cost, reuse="no", bits=None, sent=None, spiking=None
) -> np.ndarray:
    """Picojoules by column."""
    network, full = parts_of(network)[0], reuse == "full"
    graph, found, spent = network.graph, reach(network, spiking), _nothing()
    share = 1.0 if bits is None else min(bits / cost.signal.bits, 1.0)
    mask = 0.0 if sent is None else 1 / cost.signal.bits
    if sent is not None:
        counts, _ = counted(network, sent, "events")
        if len(next(iter(counts.values()))) != 1:
            raise ValueError("sent: expected the events of one step, found several")
        sent = {name: float(count.mean()) for name, count in counts.items()}

    def density(name: str) -> float:
        """The part of a node's numbers that is not zero."""
        return (
            sent[name] / size_of(graph[name]) if sent and name in graph.dynamic else 1.0
        )

    def read(name: str) -> float:
        return cost.signal.of(size_of(graph[name]))[0]

    for node in graph.of(Synapse, Product):
        name, met = node.name, found.taps[node.name]
        if isinstance(node.role, Product):  # both sides are activations, and dense
            spent[_OPERATIONS] += met.sum() * cost.product(bits)
            for side in node.inputs:
                reads = size_of(graph[side]) if full else met.sum()
                spent[_EVENTS] += reads * share * read(side)
            continue
        plain = np.zeros_like(met)  # taps of what is not rounded
        for amounts in (found.once, found.charges):
            plain = np.maximum(plain, amounts.get(name, plain))
        values = np.array([(plain > 0).sum(), (met > plain).sum()])
        taps, active = (met - plain).sum(), 1.0
        if sent is not None:  # averages are dense
            some = {s: x for (s, to), x in found.events.items() if to == name}
            active = sum(sent[s] * x.mean() for s, x in some.items()) / max(taps, 1)
            active = min(active, 1.0)
        done = np.array([plain.sum(), taps * active])
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
        size, (_, write) = size_of(node), cost.signal.of(size_of(node))
        spent[_EVENTS] += size * (density(node.name) * share + mask) * write
        if isinstance(node.role, Neuron):
            spent[_NEURONS] += size * cost.neuron + function_macs(node) * cost.mac
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


def parts_of(network: Network | Model) -> tuple[Network, int, int | None, int]:
    """The network, how many numbers a neuron keeps, the bits of what it sends, and the
    slots of a step."""
    if not isinstance(network, Model):
        return network, 1, None, 1
    neuron, none = network.neuron, jnp.zeros(())
    name = network.network.neurons[0]
    rest = partial(neuron.at(name).rest, Threshold(none, none, none), (1,), none.dtype)
    state = jax.tree.leaves(jax.eval_shape(rest))
    states = sum(math.prod(x.shape) for x in state if x.ndim)
    most = neuron.most
    bits = most and math.ceil(math.log2(most + 1))
    return network.network, states, bits, neuron.slots


def _nothing() -> np.ndarray:
    return np.zeros(len(COLUMNS))


def _is_pool(name: str, graph: Graph) -> bool:
    """Whether a receiver of sums is a pool over spikes, and no population or output."""
    return name in graph.dynamic and isinstance(graph[name].role, Pool)


def _updated(cost: Cost, words: int) -> float:
    """A potential out of so many that is read and written."""
    return sum(cost.potential.of(words))


def _synapse(cost: Cost, node: Node, graph: Graph) -> np.ndarray:
    """The memory of one event at one synapse, or at one number of a product."""
    found = _nothing()
    if isinstance(node.role, Product):  # in a memory as large as the larger side
        memory, words = cost.potential, max(size_of(graph[n]) for n in node.inputs)
    else:
        memory, words = cost.weight, math.prod(node.role.kernel)
    found[_WEIGHTS] = memory.of(words)[0] + cost.address
    found[_POTENTIALS] = _updated(cost, size_of(node))
    return found


def _compared(cost: Cost, node: Node) -> float:
    """A comparison with the maximum of a window."""
    return cost.addition + cost.potential.of(size_of(node))[0]
