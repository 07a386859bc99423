"""Sigma-delta neurons with a fixed quantum; in one step, the quantised ANN as events.

O'Connor and Welling, "Sigma Delta Quantized Networks", ICLR 2017; Loihi 2's
sigma-delta neurons.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxburst.checks import whole
from jaxburst.graph import RELU, Function, over
from jaxburst.neurons.base import Neuron, Threshold, check_digits, check_gamma


class Said(NamedTuple):
    """What a population carries that sends changes.

    Attributes:
      potential: its whole drive `v`, `[B, ...]`, in units of activation.
      sent: what its spikes add up to, over the threshold, `[B, ...]`; None where no
        neuron asks.

    Example:
      >>> threshold = Threshold(jnp.array(1.0), jnp.array(0.5), jnp.array(0.0))
      >>> state = SigmaDelta().rest(threshold, (1, 1), jnp.float32)
      >>> current = jnp.array([[2.25]])
      >>> state, _ = SigmaDelta().step(threshold, state, current, jnp.array(1))
      >>> state.potential.item(), state.sent.item()
      (2.25, 2.0)
    """

    potential: jax.Array
    sent: Any


@dataclasses.dataclass(frozen=True)
class SigmaDelta(Neuron):
    r"""Neurons that say once what they stand for, and then what has changed.

    The input and all constants are presented once. What a neuron has sent stands until
    a spike of either sign corrects it.

    .. math::
        v_t = v_{t-1} + I_t, \qquad
        n_t = \lfloor f(v_t) / \theta + \tfrac12 \rfloor - N_{t-1}, \qquad
        N_t = N_{t-1} + n_t

    At the first step it rounds by the `initial` of the threshold instead of ½. With
    `digits` a spike is the number nearest to what is missing, :math:`f(v_t) / \theta -
    N_{t-1}`, that so many signed powers of two add up to, the larger of two as near;
    none is sent where the equation gives none, nor of less than 1 - `initial` at the
    first step. It is at most `gamma`, of either sign.

    One step (`steps=1`) is the conventional network with its activations rounded to
    `θ`, each sent once, and none that is 0. With `digits` it is sent in a floating
    format: a number costs no more than so many shifts and additions at a synapse, and
    another step corrects what they leave out.

    The hardware needs graded spikes of whole numbers. As every code that is presented
    once, it waits until a layer's whole input is there.

    Attributes:
      gamma: largest number of spikes of a step, of either sign; `None` sets no limit.
      digits: largest number of signed binary digits of a spike: 2 sends 7 as 8 - 1,
        and, instead of 11, 12 = 8 + 4; `None` sets no limit.

    Example:
      >>> threshold = Threshold(jnp.array(1.0), jnp.array(0.5), jnp.array(0.0))
      >>> neuron = SigmaDelta(digits=1)
      >>> state = neuron.rest(threshold, (1, 1), jnp.float32)
      >>> state, n = neuron.step(threshold, state, jnp.array([[5.3]]), jnp.array(1))
      >>> state, m = neuron.step(threshold, state, jnp.array([[0.0]]), jnp.array(2))
      >>> n.item(), m.item()  # 4, then one more
      (4.0, 1.0)
    """

    gamma: int | None = None
    digits: int | None = None

    repeats = False
    universal = True

    def __post_init__(self):
        kind = type(self).__name__
        check_gamma(kind, self.gamma)
        if self.digits is not None:
            whole(f"{kind}: digits", self.digits, 1)
            check_digits(kind, self.gamma, self.digits)

    @property
    def most(self) -> int | None:
        """Gamma."""
        return self.gamma

    def rest(self, threshold: Threshold, shape, dtype, f=RELU) -> Said:
        """Nothing received, nothing sent."""
        own = shape if f.other is None else f.shape(shape, dtype)
        return Said(jnp.zeros(shape, dtype), jnp.zeros(own, dtype))

    def step(self, threshold, state, current, t, f=RELU):
        """Advances by one time step; arguments as `Neuron.step`."""
        potential = state.potential + current
        wanted = in_quanta(threshold, potential, f)
        spikes = self._rounded(threshold, wanted, t, state.sent)
        spikes = jax.lax.optimization_barrier(spikes)  # or XLA computes them twice
        return Said(potential, state.sent + spikes), spikes

    def _rounded(self, threshold, wanted, t, sent=0.0):
        """What is sent of what is wanted, in quanta.

        What is wanted is rounded, not what is missing of it: there a tie could be
        rounded to and fro for ever, and a still input would never be silent.
        """
        start = over(threshold.initial, wanted).astype(wanted.dtype)
        rounding = jnp.where(t == 1, start, jnp.full_like(start, 0.5))
        found = jnp.floor(wanted + rounding) - sent
        if self.digits is not None:
            some = nearest(wanted - sent, self.digits, 1 - rounding)
            found = jnp.where(found == 0, found, some)
        if self.gamma is None:
            return found
        return jnp.clip(found, float(-self.gamma), float(self.gamma))

    def potential(self, threshold: Threshold, state: Said) -> jax.Array:
        """The whole drive."""
        return state.potential

    def heard(self, threshold, state, spikes, t):
        """`θ N_t`: what all spikes so far add up to."""
        return over(threshold.theta, state.sent) * state.sent

    def direct(self, threshold, drive, t, f=RELU):
        """Without limits: the activation rounded to `θ`, from the first step on."""
        if self.gamma is not None or self.digits is not None:
            return super().direct(threshold, drive, t, f)
        threshold = threshold._replace(bias=self.correction(threshold.bias, t))
        wanted = in_quanta(threshold, drive, f)
        return over(threshold.theta, wanted) * self._rounded(threshold, wanted, t)

    def correction(self, bias, t):
        """The row for step `t`; the last stays, as what has been sent does."""
        return bias[jnp.minimum(t, len(bias)) - 1] if bias.ndim else bias


def in_quanta(
    threshold: Threshold, potential: jax.Array, f: Function = RELU
) -> jax.Array:
    """What a population stands for, over its threshold; rectified last, see `Refining`.

    Args:
      threshold: its data; the bias is that of this step.
      potential: its drive `[B, ...]`.
      f: the function.

    Returns:
      `f(v) / θ`, shaped as `f(drive)`.

    Example:
      >>> threshold = Threshold(jnp.array(0.5), jnp.array(0.5), jnp.array(0.0))
      >>> in_quanta(threshold, jnp.array([-1.0, 2.25])).tolist()
      [0.0, 4.5]
    """
    if f.other is not None:
        found = f(potential)
        found = found + over(threshold.bias, found)
        return found / over(threshold.theta, found)
    drive = potential + over(threshold.bias, potential)
    theta = over(threshold.theta, drive)
    found = jnp.maximum(drive / theta, 0.0)
    return found if f.cap is None else jnp.minimum(found, f.cap / theta)


def nearest(x: jax.Array, digits: int, least: jax.Array | float = 0.5) -> jax.Array:
    """The nearest whole numbers with no more than so many signed binary digits.

    Args:
      x: any numbers.
      digits: how many signed powers of two may be added up.
      least: what is smaller becomes 0.

    Returns:
      Whole numbers in the shape and type of `x`.

    Example:
      >>> nearest(jnp.array([0.4, 2.9, 7.2, 11.0, -21.0]), 2).tolist()
      [0.0, 3.0, 7.0, 12.0, -20.0]
    """
    found = jnp.zeros_like(x)
    for _ in range(digits):
        rest = x - found
        size = jnp.abs(rest)
        mantissa, _ = jnp.frexp(size)  # ½ .. 1, so that size / mantissa is exact
        up = jnp.where(mantissa >= 0.75, size / mantissa, size / (2 * mantissa))
        power = jnp.where(size < 0.5, jnp.zeros_like(up), jnp.maximum(up, 1.0))
        found = found + jnp.sign(rest) * power
    return jnp.where(jnp.abs(x) < least, jnp.zeros_like(x), found)
