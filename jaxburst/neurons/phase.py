"""Phase coding: a spike weighs by when in a period it is sent."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxburst.checks import whole
from jaxburst.graph import RELU, over
from jaxburst.neurons.base import Neuron, Threshold, potential_at_rest, within
from jaxburst.neurons.sigma_delta import Said


@dataclasses.dataclass(frozen=True)
class Phase(Neuron):
    r"""Weighted spikes, after Kim et al.: a clock that all share halves their weight.

    .. math::
        w_t = 2^{K - 1 - (t - 1) \bmod K}, \qquad
        u_t = v_{t-1} + I_t, \qquad
        n_t = [\, u_t \ge w_t\, \theta \,], \qquad
        v_t = u_t - w_t\, \theta\, n_t

    A period of `K` steps says up to `2^K - 1` quanta of `θ`. No layer waits for
    another: what comes too late in a period is left for the next, and a mean over
    periods is read out. Charge is conserved over the weighted spikes, of which a
    population with a cap sends no more than the cap for each period that has begun. The
    hardware needs one shift per layer and step.

    Assumed: the input and constants are presented at the first step of each period, as
    real numbers; a correction is one of these constants, with the row of that step.

    Attributes:
      period: the `K` steps of a period.

    Example:
      >>> threshold = Threshold(jnp.array(1.0), jnp.array(0.0), jnp.array(0.0))
      >>> neuron, sent = Phase(3), []
      >>> state = neuron.rest(threshold, (1, 1), jnp.float32)
      >>> for t, current in enumerate([5.2, 0.0, 0.0], 1):
      ...     drive = jnp.array([[current]])
      ...     state, n = neuron.step(threshold, state, drive, jnp.array(t))
      ...     sent.append(n.item())
      >>> sent  # 5 = 4 + 1
      [1.0, 0.0, 1.0]

    References:
      Kim et al., "Deep Neural Networks with Weighted Spikes", Neurocomputing 2018.
    """

    period: int = 8

    repeats = False

    def __post_init__(self):
        whole("Phase: period", self.period, 1, 16)

    @property
    def levels(self) -> int:
        """What a period can say."""
        return 2**self.period - 1

    def worth(self, t):
        """The clock: `2^(K - 1)` down to 1."""
        return 2.0 ** (self.period - 1 - (t - 1) % self.period).astype(float)

    def growth(self, t):
        """Half as many quanta before a spike weighs half; a period's last, the most."""
        first = (t - 1) % self.period == 0
        return jnp.where(first, 0.5 ** (self.period - 1), 2.0)

    def presented(self, t):
        """1 at the first step of a period."""
        return ((t - 1) % self.period == 0).astype(float)

    def readout(self, total, t):
        """The mean over the periods that have begun."""
        return total / ((t - 1) // self.period + 1).astype(total.dtype)

    def rest(self, threshold: Threshold, shape, dtype, f=RELU) -> Said:
        """`v_0 = initial θ`, and no spikes."""
        sent = jnp.zeros(shape, dtype) if f.cap is not None else None
        return Said(potential_at_rest(threshold, shape, dtype), sent)

    def step(self, threshold, state, current, t, f=RELU):
        """Advances by one time step; arguments as `Neuron.step`."""
        bias = over(threshold.bias, current) * self.presented(t).astype(current.dtype)
        charged = state.potential + (current + bias)
        theta = over(threshold.theta, current)
        weight = self.worth(t).astype(current.dtype)
        fires, sent = charged >= weight * theta, state.sent
        if f.cap is not None:
            periods = (t - 1) // self.period + 1
            fires &= sent + weight <= within(f.cap, theta, periods)
        spikes = jax.lax.optimization_barrier(fires.astype(current.dtype))
        if f.cap is not None:
            sent = sent + weight * spikes
        return Said(charged - weight * theta * spikes, sent), spikes

    def potential(self, threshold: Threshold, state: Said) -> jax.Array:
        """The potential `v`."""
        return state.potential

    def heard(self, threshold, state, spikes, t):
        """`K w_t θ n_t`, the mean of which over the steps is the rate."""
        weight = self.period * self.worth(t).astype(spikes.dtype)
        return weight * over(threshold.theta, spikes) * spikes
