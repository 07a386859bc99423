"""Differential coding: spikes correct a running mean."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxburst.graph import RELU
from jaxburst.neurons.sigma_delta import Said, SigmaDelta, in_quanta


@dataclasses.dataclass(frozen=True)
class Differential(SigmaDelta):
    r"""Differential coding, after DCGS: a spike of step `t` weighs `θ / t`.

    A mean of `t` steps, `m_t = m_{t-1} + (x_t - m_{t-1}) / t`, is sent as what changes
    it, :math:`n_t = x_t - m_{t-1}`, so that a mean that is right already costs nothing.
    In units of the threshold:

    .. math::
        e_t = f(v_t) / \theta - N_{t-1}, \qquad
        n_t = Q(t\, e_t), \qquad
        N_t = N_{t-1} + n_t / t

    `Q` rounds to the nearest number of `digits` signed powers of two, by default one,
    and gives at most `gamma`: thresholds θ, 2θ, ... γθ, and their negatives, of which
    one fires. Ties go away from zero, those of the first step by `initial`. No more is
    taken back than was sent: of a ReLU a spike that would, is halved instead, and cut
    to a whole number.

    The hardware needs signed spikes of a few sizes and, at every synapse, the division
    by `t` that all layers know from the time alone; what max pooling passes on is no
    whole number of quanta of its step, and counts as the next. A correction stays, as
    that of `SigmaDelta` does.

    Assumed, for want of the authors' equations of every part: the membrane integrates
    the whole mean so far, so that its potential is :math:`t\, e_t`, and a potential
    below zero is that of a neuron whose mean is zero. Their thresholds come from a
    fixed point of Gaussian statistics; here use `calibrate_mse`.

    Attributes:
      gamma: the largest number of quanta of a spike, itself of so many digits.
      digits: signed powers of two in a spike.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxburst.neurons import Threshold
      >>> threshold = Threshold(jnp.array(1.0), jnp.array(0.5), jnp.array(0.0))
      >>> neuron, sent = Differential(gamma=8), []
      >>> state = neuron.rest(threshold, (1, 1), jnp.float32)
      >>> for t, current in enumerate([2.9, 0.0, 0.0], 1):
      ...     drive = jnp.array([[current]])
      ...     state, n = neuron.step(threshold, state, drive, jnp.array(t))
      ...     sent.append(n.item())
      >>> sent  # 2, then two halves, then nothing: 3
      [2.0, 2.0, 0.0]

    References:
      Huang et al., "Differential Coding for Training-Free ANN-to-SNN Conversion", ICML
      2025 (arXiv 2503.00301).
    """

    gamma: int | None = 8
    digits: int | None = 1

    def worth(self, t):
        """`1 / t`."""
        return 1 / jnp.maximum(t, 1).astype(float)

    def growth(self, t):
        """The same charge is `t / (t - 1)` times as many quanta as a step before."""
        return t / jnp.maximum(t - 1, 1)

    def step(self, threshold, state, current, t, f=RELU):
        """Advances by one time step; arguments as `Neuron.step`."""
        potential = state.potential + current
        steps = t.astype(current.dtype)
        error = steps * (in_quanta(threshold, potential, f) - state.sent)
        # Ties are common where a mean goes back to zero: away from it, however rounded.
        spikes = self._rounded(threshold, error * (1 + 1e-6), t)
        if f.other is None:  # of means: 0.001 is less than one of their quanta
            below = steps * state.sent + spikes < -0.001
            spikes = jnp.where(below, jnp.trunc(spikes / 2), spikes)
        spikes = jax.lax.optimization_barrier(spikes)  # or XLA computes them twice
        return Said(potential, state.sent + spikes / steps), spikes

    def direct(self, threshold, drive, t, f=RELU):
        """There is none: what is sent depends on what was."""
        return super(SigmaDelta, self).direct(threshold, drive, t, f)
