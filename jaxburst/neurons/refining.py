"""Refining neurons: spikes are changes, finer at every step."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxburst.checks import number, whole
from jaxburst.graph import RELU, over
from jaxburst.neurons.base import Neuron, Threshold, check_gamma
from jaxburst.neurons.sigma_delta import SigmaDelta


class Drive(NamedTuple):
    """What a population of refining neurons carries from step to step.

    Attributes:
      potential: its whole drive `v`, `[B, ...]`, in units of activation.
      sent: `N`, quanta of the present step that have been sent, whole `[B, ...]`.

    Example:
      >>> threshold = Threshold(jnp.array(1.0), jnp.array(0.5), jnp.array(0.0))
      >>> state = Refining().rest(threshold, (1, 1), jnp.float32)
      >>> current = jnp.array([[2.25]])
      >>> state, _ = Refining().step(threshold, state, current, jnp.array(1))
      >>> state.potential.item(), state.sent.item()
      (2.25, 2)
    """

    potential: jax.Array
    sent: jax.Array


@dataclasses.dataclass(frozen=True)
class Refining(Neuron):
    r"""Neurons whose spikes are changes that weigh less at every step.

    The input and all constants are presented once. What a neuron has sent stands until
    it is corrected, by spikes of either sign that weigh `ratio` times less at every
    step. The hardware needs graded spikes of whole numbers, and a shift of all weights
    that every layer knows from the time step alone.

    .. math::
        \theta_t = \theta / r^{t-1}, \qquad
        v_t = v_{t-1} + I_t, \qquad
        n_t = \lfloor f(v_t) / \theta_t + \tfrac12 \rfloor - r N_{t-1}, \qquad
        N_t = r N_{t-1} + n_t

    with :math:`f(v) = \max(v, 0)`, up to the cap of the population, or any other
    function that it stands for, taken of the exact sums `v` and rounded. It is silent,
    `n = 0`, at `t > 1` where :math:`|f(v_t) / \theta_t - r N_{t-1}| \le h`, its
    `silence`. At `t = 1` it rounds by the `initial` of its threshold instead of ½.

    Without silence and without a limit, :math:`\theta_t N_t` is the activation
    rounded to :math:`\theta_t`, so that the network at step `t` is the conventional one
    with its activations quantised at :math:`\theta_t`.

    Attributes:
      gamma: largest number of spikes per step, of either sign; `None` sets no limit.
      ratio: how many times less a spike weighs at the next step, a whole number.
      silence: a neuron stays silent after the first step while what it has sent is
        within so many of the step's quanta of what it should have; less than
        `ratio / 2`. 0 makes every step the network quantised at that step's quantum.

    Example:
      >>> threshold = Threshold(jnp.array(1.0), jnp.array(0.5), jnp.array(0.0))
      >>> neuron = Refining(silence=0)
      >>> state = neuron.rest(threshold, (1, 1), jnp.float32)
      >>> state, n = neuron.step(threshold, state, jnp.array([[2.3]]), jnp.array(1))
      >>> state, m = neuron.step(threshold, state, jnp.array([[0.0]]), jnp.array(2))
      >>> n.item(), m.item()  # 2, then one half more
      (2.0, 1.0)
    """

    gamma: int | None = 15
    ratio: int = 2
    silence: float = 0.75

    repeats = False
    universal = True

    def __post_init__(self):
        check_gamma("Refining", self.gamma)
        half = whole("Refining: ratio", self.ratio, 2) / 2
        # Or errors outgrow what the next step can take back.
        expected = f"a number in 0 <= x < {half:g}, half of the ratio"
        number("Refining: silence", self.silence, expected, lambda x: 0 <= x < half)

    def growth(self, t):
        """The same charge is `ratio` times as many quanta at the next step."""
        return self.ratio

    @property
    def most(self) -> int | None:
        """Gamma."""
        return self.gamma

    @property
    def levels(self) -> int | None:
        """None: thresholds are chosen for a number of levels, not for gamma."""
        return None

    def worth(self, t):
        """`r^(1 - t)`."""
        return float(self.ratio) ** (1 - t).astype(float)

    def correction(self, bias, t):
        """The row for step `t`; beyond the last row it shrinks as the quanta do."""
        if not bias.ndim:
            return bias
        row = bias[jnp.minimum(t, len(bias)) - 1]
        later = jnp.maximum(t - len(bias), 0).astype(row.dtype)
        return row * row.dtype.type(self.ratio) ** -later

    def rest(self, threshold: Threshold, shape, dtype, f=RELU) -> Drive:
        """Nothing received, nothing sent."""
        sent = jnp.zeros(f.shape(shape, dtype), jnp.int32)
        return Drive(jnp.zeros(shape, dtype), sent)

    def step(self, threshold, state, current, t, f=RELU):
        """Advances by one time step; arguments as `Neuron.step`."""
        first = t == 1
        potential = state.potential + current
        wanted = self._wanted(threshold, potential, t, f)
        start = over(threshold.initial, wanted).astype(wanted.dtype)
        rounding = jnp.where(first, start, jnp.full_like(start, 0.5))
        sent = state.sent * self.ratio
        known = sent.astype(current.dtype)
        spikes = jnp.floor(wanted + rounding) - known
        close = ~first & (jnp.abs(wanted - known) <= self.silence)
        spikes = jnp.where(close, jnp.zeros_like(spikes), spikes)
        if self.gamma is not None:
            spikes = jnp.clip(spikes, float(-self.gamma), float(self.gamma))
        spikes = jax.lax.optimization_barrier(spikes)  # or XLA computes them twice
        return Drive(potential, sent + spikes.astype(sent.dtype)), spikes

    def _wanted(self, threshold, potential, t, f):
        """What the population stands for, in quanta of this step.

        A ReLU comes last: XLA computes spikes once for every reader, here with a fused
        multiply-add of the rounding and there without, and where a drive is at the very
        threshold they would differ for good. Nothing is fused across a maximum.
        """
        if f.other is not None:
            activation = f(potential)
            activation = activation + over(threshold.bias, activation)
            return activation / self._quantum(threshold, activation, t)
        quantum = self._quantum(threshold, potential, t)
        drive = potential + over(threshold.bias, potential)
        wanted = jnp.maximum(drive / quantum, 0.0)
        return wanted if f.cap is None else jnp.minimum(wanted, f.cap / quantum)

    def _quantum(self, threshold, x, t):
        return over(threshold.theta, x) * jnp.asarray(self.worth(t)).astype(x.dtype)

    def potential(self, threshold: Threshold, state: Drive) -> jax.Array:
        """The whole drive."""
        return state.potential

    def heard(self, threshold, state, spikes, t):
        """`θ_t N_t`: what all spikes so far add up to."""
        return self._quantum(threshold, spikes, t) * state.sent.astype(spikes.dtype)

    def direct(self, threshold, drive, t, f=RELU):
        """Without a limit and silence: the drive rounded to `θ_t`."""
        if self.gamma is not None or self.silence != 0:
            return super().direct(threshold, drive, t, f)
        threshold = threshold._replace(bias=self.correction(threshold.bias, t))
        wanted = self._wanted(threshold, drive, t, f)
        start = over(threshold.initial, wanted).astype(wanted.dtype)
        rounding = jnp.where(t == 1, start, jnp.full_like(start, 0.5))
        return self._quantum(threshold, wanted, t) * jnp.floor(wanted + rounding)

    def still(self, threshold, t):
        """Sigma-delta neurons at the quantum of step `t`, which round by ½."""
        theta = threshold.theta * jnp.asarray(self.worth(t)).astype(
            threshold.theta.dtype
        )
        half = jnp.full_like(threshold.initial, 0.5)
        bias = self.correction(threshold.bias, t)
        if threshold.bias.ndim:
            bias = bias[None]  # one row, for all frames
        return SigmaDelta(), Threshold(theta, half, bias)

    @property
    def soft(self) -> Refining:
        """The gradient goes straight through the rounding: `θ_t N_t ≈ f(v_t)`."""
        return _Soft(self.gamma, self.ratio, self.silence)

    def check_steps(self, steps: int) -> None:
        """Refuses steps whose spikes are below the rounding of the weights."""
        most = 1 + int(math.log(2**16, self.ratio))
        if steps > most:
            raise ValueError(
                f"steps: spikes that weigh {self.ratio} times less at every step are "
                f"below the rounding of the weights after {most} steps, found {steps}; "
                "a handful is enough"
            )


class _Soft(Refining):
    """Refining neurons whose spikes have a gradient; `sent` is floating-point."""

    def rest(self, threshold: Threshold, shape, dtype, f=RELU) -> Drive:
        whole = super().rest(threshold, shape, dtype, f)
        return whole._replace(sent=whole.sent.astype(dtype))

    def step(self, threshold, state, current, t, f=RELU):
        whole = state._replace(sent=jnp.round(state.sent).astype(jnp.int32))
        given = jax.lax.stop_gradient((threshold, whole, current))
        after, _ = super().step(*given, t, f)
        potential = state.potential + current
        soft = self._wanted(threshold, potential, t, f)
        sent = soft + jax.lax.stop_gradient(after.sent.astype(soft.dtype) - soft)
        return Drive(potential, sent), sent - state.sent * self.ratio
