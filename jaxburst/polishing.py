"""Thresholds and corrections learned from the trained network's own logits.

spiking = polish(model, spiking, images, steps=2, energy=0.2)
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxburst import energy as joules
from jaxburst.conversion import Spiking, forward
from jaxburst.layers import Relu, trace_shapes, walk
from jaxburst.neuron import (
    Membrane,
    Refining,
    Threshold,
    answer,
    over_channels,
    worth,
)
from jaxburst.progress import track
from jaxburst.simulation import Model, build, drive, readout, rest, simulate, step

_AC_PER_MAC = joules.PICOJOULES_PER_AC / joules.PICOJOULES_PER_MAC
_STRICTNESS = 200.0  # keeps the energy within about a percent of the budget


def polish(
    model: Model,
    spiking: Spiking,
    images: np.ndarray,
    steps: int,
    *,
    energy: float,
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
    logits after `steps` steps and `z` the conventional network's, each relative to
    their mean, `E` is the energy and `B` the budget. Gradients pass straight through
    the rounding, as if a neuron had sent its whole drive,

    .. math:: \theta_t N_t \approx \max(v_t, 0) .

    Nothing else of the network changes: neither its weights nor the kind of neuron.
    Layers of a handful of neurons, whose errors do not average out, may get worse.

    Args:
      model: the network, with `Refining` neurons.
      spiking: its converted weights, to start from.
      images: calibration images `[N, H, W, C]`, normalised; no labels. A thousand:
        it learns them by heart if they are few.
      steps: number of time steps `T`.
      energy: the budget `B` over the conventional network's, kept to a few percent.
      iterations: number of batches.
      batch_size: images in a batch.
      rate: Adam's learning rate at first; it falls to 0 like a cosine. Thresholds are
        learned by their logarithm, corrections in units of the threshold.
      seed: of the order of the images.
      progress: whether to show a progress bar.

    Returns:
      `spiking` with other thresholds and corrections.

    Raises:
      TypeError: for neurons that do not refine.

    References:
      The straight-through gradient of a step's size: Esser et al., "Learned Step Size
      Quantization", ICLR 2020.
    """
    if not isinstance(model.neuron, Refining):
        raise TypeError(f"polish: neurons must be Refining, found {model.neuron!r}")
    shape = images.shape[1:]
    spiking = _with_rows(model, spiking, shape, steps)
    batch_size = min(batch_size, len(images))
    prices = _prices(model, spiking, images[:batch_size], steps)
    paths = [path for path, layer in walk(model.layers) if isinstance(layer, Relu)]
    start = {path: (spiking[path].theta, spiking[path].bias) for path in paths}
    change = jax.tree.map(jnp.zeros_like, start)
    optimiser = optax.adam(optax.cosine_decay_schedule(rate, iterations), b2=0.99)
    memory = optimiser.init(change)
    rows = trace_shapes(model.layers, shape)
    analog = sum(row.macs for row in rows if row.signal == "image")
    whole = sum(joules.macs(model.layers, shape).values())

    @jax.jit
    def improve(change, memory, batch):
        target, _ = forward(model.layers, spiking, batch)

        def loss(change):
            changed = _changed(spiking, change)
            logits, operations = _run(model, changed, batch, steps, prices)
            error = _centred(logits) - _centred(target)
            spent = analog + operations * _AC_PER_MAC
            excess = spent / (energy * whole) - 1
            return jnp.log(jnp.square(error).mean()) + _STRICTNESS * excess**2

        update, memory = optimiser.update(jax.grad(loss)(change), memory)
        return optax.apply_updates(change, update), memory

    rng = np.random.default_rng(seed)
    numbers = range(iterations)
    for _ in track(numbers, "Polishing") if progress else numbers:
        chosen = rng.choice(len(images), batch_size, replace=False)
        change, memory = improve(change, memory, images[chosen])
    return _changed(spiking, change)


def _with_rows(model: Model, spiking: Spiking, shape, steps: int) -> Spiking:
    """A threshold and a rounding for each channel, and a correction for each step."""
    found = dict(spiking)
    for row in trace_shapes(model.layers, shape):
        if isinstance(row.layer, Relu):
            theta, initial, bias = spiking[row.path]
            none = jnp.zeros(row.input[-1:], theta.dtype)
            bias = jnp.atleast_1d(bias)
            bias = bias[jnp.minimum(jnp.arange(steps), len(bias) - 1)]
            bias = bias[:, None] if bias.ndim == 1 else bias
            bias = bias + over_channels(none, bias)
            found[row.path] = Threshold(theta + none, initial + none, bias)
    return found


def _prices(model, spiking, images, steps) -> dict[str, float]:
    """Synaptic operations that one spike of each Relu causes, on average."""
    events = simulate(model, spiking, images, steps).events
    caused: dict[str, float] = {}
    senders = joules.senders(model.layers)
    for path, counts in joules.operations(
        model.layers, images.shape[1:], events
    ).items():
        sender = senders[path]
        caused[sender] = caused.get(sender, 0.0) + float(counts.sum())
    return {
        path: total / max(1, int(events[path].sum())) for path, total in caused.items()
    }


def _changed(spiking: Spiking, change: dict) -> Spiking:
    found = dict(spiking)
    for path, (grown, shifted) in change.items():
        theta, initial, bias = spiking[path]
        found[path] = Threshold(
            theta * jnp.exp(grown), initial, bias + shifted * over_channels(theta, bias)
        )
    return found


def _run(model, spiking, images, steps, prices):
    """Logits and operations per image after some steps, with gradients."""
    shape = images.shape[1:]
    fans = joules.fan_out(model.layers, shape)
    circuit = build(model, spiking, shape)
    current = drive(model, circuit, images)
    state = rest(model, circuit, images.shape)
    respond = partial(_respond, model.neuron)
    counted = priced = 0.0
    for _ in range(steps):
        state, info = step(model, circuit, current, state, respond)
        counted += sum(fan * info.events[path].sum() for path, fan in fans.items())
        priced += sum(
            price * jnp.abs(info.spikes[path]).sum() for path, price in prices.items()
        )
    # Pools pass on whole numbers, which have no gradient: take that of what is sent.
    operations = priced + jax.lax.stop_gradient(counted - priced)
    return readout(model, state), operations / len(images)


def _respond(neuron, path, threshold, membrane, current, t):
    """As `answer`, but what was sent has the gradient of the drive."""
    threshold = threshold._replace(bias=threshold.bias[t - 1])
    known = membrane.sent * neuron.ratio
    whole = jax.lax.stop_gradient(jnp.round(membrane.sent)).astype(jnp.int32)
    before = Membrane(membrane.potential, whole)
    after, _ = answer(neuron, path, threshold, before, current, t)
    drive = jax.nn.relu(after.potential + over_channels(threshold.bias, current))
    quantum = over_channels(threshold.theta, current) * worth(neuron, t)
    soft = drive / quantum.astype(current.dtype)
    sent = soft + jax.lax.stop_gradient(after.sent - soft)
    return Membrane(after.potential, sent), sent - known


def _centred(logits: jax.Array) -> jax.Array:
    return logits - logits.mean(-1, keepdims=True)
