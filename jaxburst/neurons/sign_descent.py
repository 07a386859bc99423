"""Sign descent: every neuron says at every step whether it has sent too little."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from jaxburst.checks import number
from jaxburst.graph import RELU, over
from jaxburst.neurons.base import Neuron, Threshold
from jaxburst.neurons.sigma_delta import Said, in_quanta


@dataclasses.dataclass(frozen=True)
class SignDescent(Neuron):
    r"""Neurons that follow what they stand for by the sign of the error (signGD).

    The input and all constants are presented once. What a population has sent goes up
    or down by a quantum that shrinks at every step, as a descent by the sign of the
    gradient of the squared error does:

    .. math::
        \theta_t = \theta\, d^{\,t-1}, \qquad
        v_t = v_{t-1} + I_t, \qquad
        n_t = \pm 1 \text{ as } f(v_t) > y_{t-1} \text{ or not}, \qquad
        y_t = y_{t-1} + \theta_t n_t

    Of a still drive within reach, :math:`|f(v)| \le \theta / (1 - d)`, the error after
    `t` steps is no more than what may still be sent, :math:`\theta d^t / (1 - d)`.

    No neuron is ever silent. The authors send spikes of the sign that takes back and,
    instead of the others, a constant current: half as many. The hardware needs a
    constant factor that all layers share at every step.

    Assumed: the input is presented at the first step as real numbers, which the authors
    encode in the same way.

    Attributes:
      decay: `d`, what a quantum keeps from step to step; ½ or more, so that a
        step that went the wrong way can be taken back. 0.95 in the authors' program.

    Example:
      >>> threshold = Threshold(jnp.array(1.0), jnp.array(0.5), jnp.array(0.0))
      >>> neuron, sent = SignDescent(decay=0.5), []
      >>> state = neuron.rest(threshold, (1, 1), jnp.float32)
      >>> for t, current in enumerate([1.3, 0.0, 0.0], 1):
      ...     drive = jnp.array([[current]])
      ...     state, n = neuron.step(threshold, state, drive, jnp.array(t))
      ...     sent.append(n.item())
      >>> sent, state.sent.item()  # 1 + 1/2 - 1/4
      ([1.0, 1.0, -1.0], 1.25)

    References:
      Oh and Lee, "Sign Gradient Descent-based Neuronal Dynamics: ANN-to-SNN Conversion
      Beyond ReLU Network", ICML 2024 (arXiv 2407.01645), and their program.
    """

    decay: float = 0.95

    repeats = False
    universal = True

    def __post_init__(self):
        expected = "a number in 0.5 <= x < 1"
        number("SignDescent: decay", self.decay, expected, lambda x: 0.5 <= x < 1)

    @property
    def most(self) -> int:
        """One spike a step."""
        return 1

    @property
    def levels(self) -> None:
        """None: thresholds are chosen for what all steps add up to."""
        return None

    def worth(self, t):
        """`d^(t - 1)`."""
        return self.decay ** (t - 1).astype(float)

    def growth(self, t):
        """The same charge is `1 / d` times as many quanta at the next step."""
        del t
        return 1 / self.decay

    def rest(self, threshold: Threshold, shape, dtype, f=RELU) -> Said:
        """Nothing received, nothing sent."""
        none = jnp.zeros(shape, dtype)
        return Said(none, jnp.zeros(f.shape(shape, dtype), dtype))

    def step(self, threshold, state, current, t, f=RELU):
        """Advances by one time step; arguments as `Neuron.step`."""
        potential = state.potential + current
        higher = in_quanta(threshold, potential, f) > state.sent
        spikes = jnp.where(higher, 1.0, -1.0).astype(current.dtype)
        spikes = jax.lax.optimization_barrier(spikes)  # or XLA computes them twice
        quantum = self.worth(t).astype(current.dtype)
        return Said(potential, state.sent + quantum * spikes), spikes

    def potential(self, threshold: Threshold, state: Said) -> jax.Array:
        """The whole drive."""
        return state.potential

    def heard(self, threshold, state, spikes, t):
        """`y_t`: what all spikes so far add up to."""
        return over(threshold.theta, state.sent) * state.sent

    def still(self, threshold, t):
        """Refuses streams: what is left to send shrinks, however much a frame changes.

        Raises:
          ValueError: with what to take.
        """
        raise ValueError(
            f"stream: quanta of {self!r} shrink from frame to frame: later ones "
            "could not be followed; use SigmaDelta() or Refining()"
        )
