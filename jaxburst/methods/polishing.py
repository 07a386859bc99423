"""Thresholds and corrections learned from the trained network's own outputs.

spiking = polish(model, spiking, inputs, steps=2, energy=0.2)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxburst import energy as joules
from jaxburst.batching import first, length
from jaxburst.checks import corrected_for, door
from jaxburst.circuit import prepare
from jaxburst.convert import Spiking
from jaxburst.devices import data_parallel, mean_over, share
from jaxburst.graph import over
from jaxburst.methods.balancing import caused
from jaxburst.methods.channels import by_channel, centred, shape_of
from jaxburst.model import Model
from jaxburst.network import forward
from jaxburst.neurons import Threshold
from jaxburst.progress import track
from jaxburst.run import Plan, unroll

_STRICTNESS = 200.0  # keeps the energy within about a percent of the budget


@door(inputs="calibration", energy="positive")
def polish(
    model: Model,
    spiking: Spiking,
    inputs,
    steps: int,
    *,
    energy: float,
    cost: joules.Cost = joules.HOROWITZ_FP32,
    unit: str = "quanta",
    iterations: int = 200,
    batch_size: int = 50,
    rate: float = 0.01,
    seed: int = 0,
    progress: bool = True,
) -> Spiking:
    r"""Learns thresholds and corrections of refining neurons for an energy; no labels.

    .. math::
        \min_{\theta, b}\; \log \overline{(z_T - z)^2} + \rho\, (E / B - 1)^2

    over the threshold of every channel and its correction at every step: `z_T` are the
    outputs after `steps` steps and `z` the conventional network's (logits relative to
    their mean, several outputs over the mean square of each), `E` is the energy and `B`
    the budget. Gradients pass straight through the rounding, as if a neuron had sent
    its whole drive,

    .. math:: \theta_t N_t \approx \max(v_t, 0) .

    Nothing else of the network changes: neither its weights nor the kind of neuron.
    Layers of a handful of neurons, whose errors do not average out, may get worse.

    Args:
      model: the network, with neurons that have a gradient: `Refining`.
      spiking: its converted weights, to start from.
      inputs: calibration inputs `[N, ...]`, normalised; no labels. A thousand: it
        learns them by heart if they are few.
      steps: number of time steps `T`.
      energy: the budget `B` over the conventional network's, kept to a few percent.
      cost: the cost model, see `energy.prices`. Gradients are of quanta, each at the
        mean price of a population's.
      unit: what the hardware sends: `'quanta'`, `'events'` or `'digits'`.
      iterations: number of batches.
      batch_size: images in a batch, which all local devices share that divide it.
      rate: Adam's learning rate at first; it falls to 0 like a cosine. Thresholds are
        learned by their logarithm, corrections in units of the threshold.
      seed: of the order of the images.

    Returns:
      `spiking` with other thresholds and corrections.

    Raises:
      TypeError: for neurons without a gradient.

    Example:
      >>> refining = jb.Model(network, jb.Refining())
      >>> budget = dict(energy=1.0, iterations=1, progress=False)
      >>> polished = polish(refining, spiking, inputs, 2, **budget)
      >>> polished["relu0"].theta.shape  # one for each channel now
      (2,)

    References:
      The straight-through gradient of a step's size: Esser et al., "Learned Step Size
      Quantization", ICLR 2020.
    """
    soft = dataclasses.replace(model, neuron=model.neuron.soft)
    count = length(inputs)
    spiking = _with_rows(model, spiking, steps)
    size = min(batch_size, count)
    shard, replicate = share(size)
    budget = energy * joules.ann_joules(model, cost=cost)
    prices = _prices(model, spiking, first(inputs, size), steps, budget, cost, unit)
    there = replicate((spiking, prices))
    names = model.network.neurons
    start = {name: (spiking[name].theta, spiking[name].bias) for name in names}
    change = jax.tree.map(jnp.zeros_like, start)
    memory = _OPTIMISER.init(change)
    gradient = _gradient(soft, steps, size, unit)
    rates = optax.cosine_decay_schedule(rate, iterations)

    rng = np.random.default_rng(seed)
    numbers = range(iterations)
    for i in track(numbers, "Polishing") if progress else numbers:
        chosen = rng.choice(count, size, replace=False)
        batch = jax.tree.map(lambda x, rows=chosen: np.asarray(x[rows]), inputs)
        found = gradient((*there, replicate(change)), shard(batch))
        change, memory = _update(change, memory, jax.device_get(found), rates(i))
    return corrected_for(model.neuron, _changed(spiking, change))


_OPTIMISER = optax.scale_by_adam(b2=0.99)


@jax.jit
def _update(change: dict, memory, found: dict, rate: jax.Array):
    """A step of Adam against the gradient, of which each device has a row."""
    step, memory = _OPTIMISER.update(jax.tree.map(lambda x: x[0], found), memory)
    change = jax.tree.map(lambda x, d: x - rate.astype(x.dtype) * d, change, step)
    return change, memory


@lru_cache(maxsize=4)
def _gradient(soft: Model, steps: int, size: int, unit: str) -> Callable:
    """The gradient of the loss, the same row on each device."""
    network = soft.network

    def function(given, inputs):
        spiking, prices, change = given
        target, _ = forward(network, spiking, inputs)
        target = _outputs(network, target)
        squares = [mean_over(jnp.square(z).mean(), size) for z in target]

        def parts(change):
            changed = _changed(spiking, change)
            found, spent = _run(soft, changed, inputs, steps, prices, unit)
            error: Any = sum(
                jnp.square(z - goal).mean() / jnp.where(square > 0, square, 1.0)
                for z, goal, square in zip(found, target, squares, strict=True)
            )
            return error, spent

        (error, spent), pull = jax.vjp(parts, change)
        # Both are means over images, of which each device has a part; the loss of them
        # all is pulled back through the parts, whose mean is its gradient.
        error, spent = mean_over(error, size), mean_over(spent, size)
        (found,) = pull((1 / error, 2 * _STRICTNESS * (spent - 1)))
        return jax.tree.map(lambda x: mean_over(x, size)[None], found)

    return jax.jit(data_parallel(function, size))


def _outputs(network, found: list) -> list[jax.Array]:
    pairs = zip(network.graph.outputs, found, strict=True)
    return [centred(by_channel(network, name, x)) for name, x in pairs]


def _with_rows(model: Model, spiking: Spiking, steps: int) -> Spiking:
    """A threshold and a rounding for each channel, and a correction for each step."""
    found = dict(spiking)
    for name in model.network.neurons:
        own, shape = model.neuron.at(name), shape_of(model.network, name)

        def wide(x, shape=shape):
            return jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, shape))

        theta, initial, bias = spiking[name]
        rows = [own.correction(bias, jnp.asarray(t)) for t in range(1, steps + 1)]
        rows = jnp.stack([wide(row.astype(theta.dtype)) for row in rows])
        found[name] = Threshold(wide(theta), wide(initial), rows)
    return found


class _Prices(NamedTuple):
    """Parts of the budget.

    Attributes:
      quantum: `{population: part}`, what one quantum causes on average, behind pools,
        too.
      exact: `{sender: (part, part)}`, what an event and an operation take themselves.
      fixed: what a run takes without any.
    """

    quantum: dict[str, np.float32]
    exact: dict[str, tuple[np.float32, np.float32]]
    fixed: np.float32


def _prices(model, spiking, inputs, steps: int, budget: float, cost, unit) -> _Prices:
    traffic, spent = caused(model, spiking, inputs, steps, cost=cost, unit=unit)
    own = joules.prices(model, cost=cost, unit=unit)

    def part(value) -> np.float32:
        return np.float32(np.sum(value) / budget)

    return _Prices(
        {
            name: part(spent.get(name, 0.0) / (traffic[name].quanta or 1.0))
            for name in model.network.neurons
        },
        {
            name: (part(1e-12 * own.event[name]), part(1e-12 * own.operation[name]))
            for name in own.event
        },
        part(1e-12 * (own.once + steps * own.step)),
    )


def _changed(spiking: Spiking, change: dict) -> Spiking:
    found = dict(spiking)
    for name, (grown, shifted) in change.items():
        theta, initial, bias = spiking[name]
        bias = bias + shifted * over(theta, bias)
        found[name] = Threshold(theta * jnp.exp(grown), initial, bias)
    return found


def _run(soft: Model, spiking, inputs, steps: int, prices: _Prices, unit: str):
    """Outputs `[B, n, C]`, logits relative to their mean, and the part of the budget
    that an image takes, after some steps, with gradients."""
    network = soft.network
    circuit, leaves = prepare(soft, spiking), network.leaves(inputs)

    def observe(state, info):
        counted = 0.0
        for name, paid in prices.exact.items():
            counts = info.traffic[name].paid(unit)
            counted += sum(p * n.sum(1) for p, n in zip(paid, counts, strict=True))
        sizes = {name: jnp.abs(info.spikes[name]) for name in prices.quantum}
        priced = sum(
            price * sizes[name].sum(tuple(range(1, sizes[name].ndim)))
            for name, price in prices.quantum.items()
        )
        # Pools pass on whole numbers without a gradient: take that of what is sent.
        spent = priced + jax.lax.stop_gradient(counted - priced)
        return info.outputs, spent

    # All steps of a population at once: XLA on CPU is slow with the gradient of a
    # kernel inside a loop.
    order = Plan(steps, len(leaves[0]))
    _, (found, spent) = unroll(soft, circuit, leaves, steps, observe, order=order)
    spent = prices.fixed + spent.sum() / len(leaves[0])
    return _outputs(network, [x[-1] for x in found]), spent
