"""Neurons with several thresholds of both signs, one of which fires."""

from __future__ import annotations

import dataclasses

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
from jaxburst.neurons.sigma_delta import Said


@dataclasses.dataclass(frozen=True)
class MultiThreshold(Neuron):
    r"""Neurons with thresholds ±θ, ±2θ, ±4θ, ... ±γθ, after ECMT: one fires a step.

    .. math::
        u_t = v_{t-1} + I_t, \qquad
        k_t = \max(\lfloor u_t / \theta \rfloor, -N_{t-1}), \qquad
        v_t = u_t - \theta\, n_t

    where :math:`n_t` is :math:`k_t` cut to a power of two of its sign, at most
    :math:`\gamma`, and :math:`N` counts what has been sent. What a spike leaves over
    stays for the next. Charge is conserved. Of a population with a cap
    :math:`k_t` is at most what a `Burst` may still send. The hardware needs signed
    spikes of a few sizes, a shift at every synapse, and a count of what was sent.

    Assumed: of a ReLU the authors' compensated expectation, :math:`t\, f(m_t)` of the
    mean so far, is the ReLU of the sum; their networks have none. In their program
    thresholds of the two signs differ, which a neuron that only takes back does not
    need.

    Attributes:
      gamma: the largest size of a spike, a power of two; the authors have 128.

    Example:
      >>> threshold = Threshold(jnp.array(1.0), jnp.array(0.5), jnp.array(0.0))
      >>> neuron, sent = MultiThreshold(8), []
      >>> state = neuron.rest(threshold, (1, 1), jnp.float32)
      >>> for t, current in enumerate([6.8, 0.0, 0.0, -4.0], 1):
      ...     drive = jnp.array([[current]])
      ...     state, n = neuron.step(threshold, state, drive, jnp.array(t))
      ...     sent.append(n.item())
      >>> sent  # 7 in three steps; 3 are left
      [4.0, 2.0, 1.0, -4.0]

    References:
      Huang et al., "Towards High-performance Spiking Transformers from ANN to SNN
      Conversion", ACM Multimedia 2024 (ECMT), and their program.
    """

    gamma: int = 128

    def __post_init__(self):
        whole("MultiThreshold: gamma", self.gamma, 1, 2**16)
        check_digits("MultiThreshold", self.gamma, 1)

    @property
    def most(self) -> int:
        """Gamma."""
        return self.gamma

    @property
    def conserves(self) -> bool:
        """Always."""
        return True

    def rest(self, threshold: Threshold, shape, dtype, f=RELU) -> Said:
        """`v_0 = initial θ`, and nothing sent."""
        start = potential_at_rest(threshold, shape, dtype)
        return Said(start, jnp.zeros(shape, dtype))

    def step(self, threshold, state, current, t, f=RELU):
        """Advances by one time step; arguments as `Neuron.step`."""
        theta, bias = over(threshold.theta, current), over(threshold.bias, current)
        charged = state.potential + (current + bias)
        due = jnp.maximum(jnp.floor(charged / theta), -state.sent)
        if f.cap is not None:
            due = jnp.minimum(due, within(f.cap, theta, t) - state.sent)
        size = jnp.minimum(jnp.abs(due), float(self.gamma))
        mantissa, _ = jnp.frexp(size)  # ½ .. 1, so that size / mantissa is exact
        power = jnp.where(size > 0, size / (2 * mantissa), jnp.zeros_like(size))
        spikes = jax.lax.optimization_barrier(jnp.sign(due) * power)
        return Said(charged - theta * spikes, state.sent + spikes), spikes

    def potential(self, threshold: Threshold, state: Said) -> jax.Array:
        """The potential `v`."""
        return state.potential

    def heard(self, threshold, state, spikes, t):
        """`θ n`, the mean of which over the steps is the rate."""
        return over(threshold.theta, spikes) * spikes
