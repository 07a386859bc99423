"""Bursts that grow: each spike of a burst weighs twice the one before."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxburst.checks import whole
from jaxburst.graph import RELU, over
from jaxburst.neurons.base import (
    Neuron,
    Threshold,
    check_digits,
    potential_at_rest,
    within,
)


class Growth(NamedTuple):
    """What a population carries from step to step.

    Attributes:
      potential: `v`, `[B, ...]`, in units of activation.
      size: what the next spike will be, `[B, ...]`.
      sent: the sum of all spikes, `[B, ...]`; None without a cap.

    Example:
      >>> threshold = Threshold(jnp.array(1.0), jnp.array(0.0), jnp.array(0.0))
      >>> state = Growing(4).rest(threshold, (1, 1), jnp.float32)
      >>> drive = jnp.array([[7.25]])
      >>> state, _ = Growing(4).step(threshold, state, drive, jnp.array(1))
      >>> state.potential.item(), state.size.item()
      (6.25, 2.0)
    """

    potential: jax.Array
    size: jax.Array
    sent: Any


@dataclasses.dataclass(frozen=True)
class Growing(Neuron):
    r"""Burst coding, after Park et al.: spikes double for as long as a neuron fires.

    .. math::
        u_t = v_{t-1} + I_t, \qquad
        n_t = g_t\, [\, u_t \ge g_t\, \theta \,], \qquad
        v_t = u_t - \theta\, n_t

    with :math:`g_t = \min(2 g_{t-1}, \gamma)` after a spike, otherwise 1. Charge is
    conserved. A population with a cap sends no spike that would be more than a
    `Burst` may have sent. The hardware needs binary spikes, and a shift in every
    neuron, at either end of a synapse.

    Assumed: the burst constant 2; a largest weight, by which the range of a population
    is divided; the input and constants at every step, as real numbers.

    Attributes:
      gamma: the largest weight of a spike, a power of two.

    Example:
      >>> threshold = Threshold(jnp.array(1.0), jnp.array(0.0), jnp.array(0.0))
      >>> neuron, sent = Growing(4), []
      >>> state = neuron.rest(threshold, (1, 1), jnp.float32)
      >>> for t, current in enumerate([7.2, 0.0, 0.0, 0.0], 1):
      ...     drive = jnp.array([[current]])
      ...     state, n = neuron.step(threshold, state, drive, jnp.array(t))
      ...     sent.append(n.item())
      >>> sent  # 1 + 2 + 4
      [1.0, 2.0, 4.0, 0.0]

    References:
      Park, Kim, Choe and Yoon, "Fast and Efficient Information Transmission with Burst
      Spikes in Deep Spiking Neural Networks", DAC 2019 (arXiv 1809.03142).
    """

    gamma: int = 8

    def __post_init__(self):
        whole("Growing: gamma", self.gamma, 1, 2**16)
        check_digits("Growing", self.gamma, 1)

    @property
    def most(self) -> int:
        """Gamma."""
        return self.gamma

    @property
    def conserves(self) -> bool:
        """Always."""
        return True

    def rest(self, threshold: Threshold, shape, dtype, f=RELU) -> Growth:
        """`v_0 = initial θ`, and no spikes."""
        none = jnp.zeros(shape, dtype)
        sent = none if f.cap is not None else None
        return Growth(potential_at_rest(threshold, shape, dtype), none + 1, sent)

    def step(self, threshold, state, current, t, f=RELU):
        """Advances by one time step; arguments as `Neuron.step`."""
        theta, bias = over(threshold.theta, current), over(threshold.bias, current)
        charged, sent = state.potential + (current + bias), state.sent
        fires = charged >= state.size * theta
        if f.cap is not None:
            fires &= sent + state.size <= within(f.cap, theta, t)
        fires = jax.lax.optimization_barrier(fires)  # or XLA computes them twice
        spikes = jnp.where(fires, state.size, 0.0)
        size = jnp.where(fires, jnp.minimum(2 * state.size, float(self.gamma)), 1.0)
        if f.cap is not None:
            sent = sent + spikes
        return Growth(charged - theta * spikes, size, sent), spikes

    def potential(self, threshold: Threshold, state: Growth) -> jax.Array:
        """The potential `v`."""
        return state.potential

    def heard(self, threshold, state, spikes, t):
        """`θ n`, the mean of which over the steps is the rate."""
        return over(threshold.theta, spikes) * spikes
