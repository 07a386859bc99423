"""Thresholds balanced between layers: fine where errors harm, coarse where spikes cost.

thresholds = calibrate_mse(network, variables, inputs, Burst(4))
thresholds = balance(network, variables, thresholds, inputs[:100], Refining())
"""

from __future__ import annotations

from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.batching import add_up, length, sweep, together
from jaxburst.checks import door
from jaxburst.circuit import prepared
from jaxburst.convert import Spiking, Thresholds, convert
from jaxburst.energy import HOROWITZ_FP32, Cost, by_sender
from jaxburst.graph import (
    Input,
    Node,
    Pool,
    apply,
    at_batch,
    over,
    read,
    stands_for,
)
from jaxburst.graph import Neuron as Population
from jaxburst.methods.calibration import reached
from jaxburst.methods.channels import by_channel, centred
from jaxburst.model import Model
from jaxburst.network import Network
from jaxburst.neurons import Neuron
from jaxburst.run import trace_of
from jaxburst.traffic import Traffic


@door(inputs="calibration")
def balance(
    network: Network,
    variables,
    thresholds: Thresholds,
    inputs,
    neuron: Neuron,
    *,
    steps: int = 3,
    cost: Cost = HOROWITZ_FP32,
    unit: str = "quanta",
    progress: bool = False,
) -> Thresholds:
    r"""Multiplies the thresholds of each layer by a factor, for less error at no cost.

    .. math::
        k_l \propto (E_l / D_l)^{1/3}, \qquad \sum_l E_l / k_l = \sum_l E_l

    `D` is the squared error of the outputs when the activations of layer `l` alone are
    rounded to what one of its spikes is worth at the last step, and `E` is the energy
    that its spikes cause up to there, by default that of their synaptic operations.
    Graded events become fewer more slowly than quanta do. Rounding errors grow like
    :math:`k_l^2` and are independent from layer to layer; spikes become fewer like
    :math:`1/k_l`. The factors make :math:`\sum_l D_l k_l^2` least for a given
    :math:`\sum_l E_l / k_l`, by Lagrange's rule. None is more than 4, nor less than ¼
    unless a single step still reaches the largest activation, :math:`\gamma k \theta`.
    Where no later step makes up for it, with one step or neurons that repeat, none cuts
    off more than `thresholds` do.
    Of logits, errors are relative to their mean; of several outputs, over the mean
    square of each.

    Args:
      network: the network.
      variables: its trained variables.
      thresholds: `{name: θ}` for every population, from `calibrate` or `calibrate_mse`.
      inputs: calibration inputs `[N, ...]`, normalised; no labels. A hundred: the
        network is applied to them about once for every second population.
      neuron: the kind of neuron that the thresholds are for.
      steps: number of time steps after which the error should be small.
      cost: the cost model, see `energy.prices`.
      unit: what the hardware sends: `'quanta'`, `'events'` or `'digits'`.
      progress: whether to show a bar.

    Returns:
      `{name: k θ}`.

    Raises:
      ValueError: as `convert` and `simulate`.

    Example:
      >>> # One layer alone has no other to be balanced with
      >>> balance(network, weights, {"relu0": 0.25}, inputs, jb.Refining())
      {'relu0': Array(0.25, dtype=float32)}
    """
    spiking = convert(network, variables, thresholds)
    model = Model(network, neuron)
    _, spent = caused(model, spiking, inputs, steps, cost=cost, unit=unit)
    words = "Balancing" if progress else ""
    harm = _harm(network, spiking, inputs, _quantum(neuron, steps), words)
    spent = np.array([spent[name] for name in network.neurons])
    finest = _reach(network, spiking, inputs) / (neuron.most or np.inf)
    lasting = neuron.repeats or steps == 1
    least = np.minimum(finest, 1.0 if lasting else 0.25)
    factors = _factors(spent, harm).clip(least, 4)
    balanced = {}
    for name, factor in zip(network.neurons, factors, strict=True):
        theta = jnp.asarray(thresholds[name])
        balanced[name] = theta * theta.dtype.type(factor)
    return balanced


def _reach(network: Network, spiking: Spiking, inputs) -> np.ndarray:
    """The largest activation over the threshold of its channel, `[L]`."""
    found = reached(network, spiking, inputs, "channel", 100, 100)
    thetas = [np.ravel(spiking[name].theta) for name in network.neurons]
    columns = [found[name][0] for name in network.neurons]
    return np.array([(x / y).max() for x, y in zip(columns, thetas, strict=True)])


def _quantum(neuron: Neuron, steps: int) -> float:
    """What one spike of the last step is worth, over its threshold."""
    return float(neuron.worth(jnp.asarray(steps)))


def _factors(spent: np.ndarray, harm: np.ndarray) -> np.ndarray:
    # Layers that send nothing, or that nobody hears, should not move the others.
    known = (spent > 0) & (harm > 0)
    if not known.any():
        return np.ones_like(spent)
    factors = np.ones_like(spent)
    factors[known] = np.cbrt(spent[known] / harm[known])
    factors[known] *= (spent[known] / factors[known]).sum() / spent[known].sum()
    return factors


def caused(
    model: Model, spiking: Spiking, inputs, steps: int, *, cost: Cost, unit: str
) -> tuple[dict[str, Traffic], dict[str, float]]:
    """Of a whole run, per image: what populations and pools send, and
    `{population: joules}` that its spikes cause."""
    circuit, count = prepared(model, spiking), length(inputs)
    sums = add_up(_traffic(model, steps), circuit, inputs, 100)
    traffic = jax.tree.map(lambda total: float(total) / count, sums)
    return traffic, charged(model, traffic, cost=cost, unit=unit)


@lru_cache(maxsize=8)
def _traffic(model: Model, steps: int):
    """Counts of a whole run, summed over the images that count."""

    def function(circuit, batch, counts):
        trace = trace_of(model, circuit, model.network.leaves(batch), steps)
        # Whole numbers could grow too large for their type.
        once = counts.astype(jnp.float32)
        return jax.tree.map(
            lambda own: (own.sum(0).astype(jnp.float32) * once).sum(), trace.traffic
        )

    return function


def charged(
    network: Network | Model,
    events: dict[str, Traffic | float],
    *,
    cost: Cost = HOROWITZ_FP32,
    unit: str = "quanta",
) -> dict[str, float]:
    """Joules that events cause, charged to the populations that sent them: what is
    spent behind a pool to whoever sends to it, in proportion to its events."""
    events = jax.tree.map(lambda count: np.reshape(count, 1), events)
    found = by_sender(network, events, cost=cost, unit=unit)
    spent = {name: float(joules.sum()) for name, joules in found.items()}
    graph = (network.network if isinstance(network, Model) else network).graph
    for node in reversed(graph.of(Pool)):
        if node.name not in spent:
            continue
        price = spent.pop(node.name)
        senders = graph.senders[node.name]  # none of charges
        parts = np.array([float(jax.tree.leaves(events[n])[0][0]) for n in senders])
        for name, part in zip(senders, parts / (parts.sum() or 1.0), strict=True):
            spent[name] = spent.get(name, 0.0) + price * float(part)
    return spent


def _harm(network, spiking: Spiking, inputs, quantum: float, words: str = ""):
    """The error `D` of each population, `[L]`."""
    count = len(network.neurons)
    size = max(1, 256 // (count + 1)) * jax.local_device_count()
    errors, sizes = 0.0, 0.0
    function = _variants(network, quantum)
    for rows, found in sweep(function, spiking, inputs, size, description=words):
        error, square = (x[:rows].sum(0, dtype=np.float64) for x in found)
        errors, sizes = errors + error, sizes + square
    outputs = len(network.graph.outputs)
    errors = np.broadcast_to(errors, (count, outputs))
    errors, sizes = together((errors, np.broadcast_to(sizes, outputs)))
    return (errors / np.where(sizes > 0, sizes, 1)).sum(1)


@lru_cache(maxsize=8)
def _variants(network: Network, quantum: float):
    """Squared errors `[B, L, outputs]` when one population after the other is rounded,
    and the squares of the exact outputs `[B, outputs]`.

    The variants of a batch stand side by side, the exact one first. Before a population
    its variant is the exact one, so each begins where it begins to differ.
    """
    graph, order = network.graph, network.neurons

    def function(spiking, inputs):
        leaves = network.leaves(inputs)
        images = len(leaves[0])

        def parts(node: Node, x):
            """How many variants there are."""
            axis = node.batch_axis
            return 1 if axis is None else x.shape[axis] // _rows(node, images)

        def exact(node: Node, x):
            return jax.lax.slice_in_dim(x, 0, _rows(node, images), axis=node.batch_axis)

        def widen(node: Node, x, count: int):
            more = count - parts(node, x)
            if node.batch_axis is None or not more:
                return x
            return jnp.concatenate([x, *[exact(node, x)] * more], node.batch_axis)

        def visit(node: Node, *values):
            if isinstance(node.role, Input):
                return values[0]
            before = [graph[name] for name in node.inputs]
            count = max(map(parts, before, values), default=1)
            values = [widen(n, x, count) for n, x in zip(before, values, strict=True)]
            batch = count * images
            match node.role:
                case Population():
                    x = stands_for(node, spiking, batch)(values[0])
                    x = widen(node, x, order.index(node.name) + 1)
                    theta = over(spiking[node.name].theta, x).astype(x.dtype) * quantum
                    rounded = theta * jnp.floor(exact(node, x) / theta + 0.5)
                    return jnp.concatenate([x, rounded], node.batch_axis)
            return apply(node, spiking, *values, batch=batch)

        errors, sizes = [], []
        found = read(graph, visit, *leaves)
        for name, x in zip(graph.outputs, found, strict=True):
            x = widen(graph[name], x, len(order) + 1)
            x = centred(by_channel(network, name, 1.0 * x))  # truths are numbers
            x = x.reshape(len(order) + 1, images, *x.shape[1:])
            errors.append(jnp.square(x[1:] - x[:1]).mean((2, 3)).T)
            sizes.append(jnp.square(x[0]).mean((1, 2)))
        return jnp.stack(errors, 2), jnp.stack(sizes, 1)

    return function


def _rows(node: Node, images: int) -> int:
    return at_batch(node.shape, images)[node.batch_axis]
