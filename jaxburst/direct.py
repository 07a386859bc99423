"""The logits of a spiking network at any time, from one pass.

What a neuron that may take back all it has sent has sent up to `t` depends on the sum
of its input alone, not on the order in which it came. Layer after layer,

.. math:: A_l(t) = \\theta_l \\max\\big(0, \\lfloor (v_0 + W_l A_{l-1}(t) + t\\, b_l)
          / \\theta_l \\rfloor\\big)

is the charge that has been sent, at the cost of one pass of the conventional network,
whatever `t` is.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

from jaxburst.conversion import Spiking, forward
from jaxburst.data import check_normalised
from jaxburst.neuron import Burst, Refining, at_step, over_channels, worth
from jaxburst.simulation import Model, check, check_steps


@partial(jax.jit, static_argnames=("model", "times"))
def direct(
    model: Model, spiking: Spiking, images: jax.Array, times: tuple[int, ...]
) -> jax.Array:
    """The logits that a simulation would give after some numbers of steps.

    Of networks whose neurons depend on sums alone: `Burst(gamma=None, signed=True)`,
    and `Refining(gamma=None, silence=0)`, which at every step is the conventional
    network with quantised activations. There are no events on the way, hence no
    energy.

    Args:
      model: the network and neuron; pooling by lateral inhibition. Static.
      spiking: its converted weights.
      images: `[B, H, W, C]`, normalised.
      times: numbers of steps, e.g. `(1, 2, 4, 8, 16)`; static.

    Returns:
      `[len(times), B, classes]`, in the network's unit.

    Raises:
      ValueError: for neurons whose spikes depend on more than the sum of their input,
        and for images or weights that do not fit the network.
    """
    neuron = model.neuron
    sums = neuron == Burst(None, signed=True) or (
        isinstance(neuron, Refining) and neuron.gamma is None and neuron.silence == 0
    )
    if not sums or model.pool != "lateral":
        raise ValueError(
            "direct: needs neurons whose count depends on the sum of their input, "
            "Burst(gamma=None, signed=True) or Refining(gamma=None, silence=0), and "
            f"pool='lateral'; found {neuron!r} and pool={model.pool!r}; use simulate"
        )
    check_normalised(images)
    check(model, spiking, images.shape, max(times))
    for t in times:
        check_steps(model, images.shape, t)

    def at(t: jax.Array) -> jax.Array:
        respond = partial(_rate, neuron, spiking, t)
        return forward(model.layers, spiking, images, respond)[0]

    few = max(1, 32 // len(images))  # times side by side, where batches are small
    return jax.lax.map(at, jnp.asarray(times), batch_size=few)


def _rate(neuron, spiking, t, path: str, drive: jax.Array) -> jax.Array:
    """The charge sent up to `t`; of repeating neurons its mean over the steps."""
    theta, initial, bias = spiking[path]
    theta, initial = (over_channels(value, drive) for value in (theta, initial))
    steps = t.astype(drive.dtype)
    if isinstance(neuron, Refining):
        quantum = theta * worth(neuron, t).astype(drive.dtype)
        bias = over_channels(at_step(bias, t), drive)
        rounding = jnp.where(t == 1, initial, 0.5)
        wanted = jnp.maximum(drive + bias, 0.0) / quantum
        return quantum * jnp.floor(wanted + rounding)
    if bias.ndim:  # one row per step, of which the last one stays
        taken = jnp.clip(t - jnp.arange(len(bias)), 0, 1)
        taken = taken.at[-1].set(jnp.maximum(t - len(bias) + 1, 0))
        bias = jnp.tensordot(taken.astype(drive.dtype) / steps, bias, 1)
    drive = drive + over_channels(bias, drive)
    sent = jnp.floor(initial + steps * drive / theta)
    return theta * jnp.maximum(sent, 0.0) / steps
