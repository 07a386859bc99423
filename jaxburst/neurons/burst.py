"""Burst integrate-and-fire neurons.

Li and Zeng, "Efficient and Accurate Conversion of Spiking Neural Network with Burst
Spikes", IJCAI 2022 (arXiv 2204.13271).
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxburst.checks import instance, one_of, refuse, whole
from jaxburst.graph import RELU, over
from jaxburst.neurons.base import (
    Neuron,
    Threshold,
    check_gamma,
    potential_at_rest,
    within,
)


class History(NamedTuple):
    """When neurons with an `allowance` fired: whole numbers.

    Attributes:
      time: steps taken so far, a scalar.
      bursts: how many of them had a spike, `[B, ...]`.
      last: the latest that had, counted from 1, `[B, ...]`.

    Example:
      >>> threshold = Threshold(jnp.array(1.0), jnp.array(0.0), jnp.array(0.0))
      >>> neuron = Burst(5, allowance=2)
      >>> state = neuron.rest(threshold, (1, 2), jnp.float32)
      >>> current = jnp.array([[2.25, 0.5]])
      >>> state, _ = neuron.step(threshold, state, current, jnp.array(1))
      >>> state.history.bursts.tolist(), state.history.last.tolist()
      ([[1, 0]], [[1, 0]])
    """

    time: jax.Array
    bursts: jax.Array
    last: jax.Array


class Membrane(NamedTuple):
    """What a population of burst neurons carries from step to step.

    Attributes:
      potential: `[B, ...]`, in units of activation: `v`, or, while the reset is due,
        the `u` that the last spikes follow from.
      sent: spikes sent so far, less those taken back, whole numbers `[B, ...]`; `None`
        for neurons that keep no count.
      history: `None` unless the neuron has an `allowance`.
      due: whether the reset is left to the next step; a scalar.

    Example:
      >>> threshold = Threshold(jnp.array(1.0), jnp.array(0.5), jnp.array(0.0))
      >>> state = Burst(5).rest(threshold, (1, 2), jnp.float32)
      >>> state.potential.tolist(), state.sent, state.due.item()
      ([[0.5, 0.5]], None, False)
    """

    potential: jax.Array
    sent: jax.Array | None
    history: History | None
    due: jax.Array


@dataclasses.dataclass(frozen=True)
class Burst(Neuron):
    r"""Burst integrate-and-fire neurons: up to `gamma` spikes per time step.

    .. math::
        u_t = v_{t-1} + I_t, \qquad
        n_t = \mathrm{clip}(\lfloor u_t / \theta \rfloor, \mathrm{low}, \gamma), \qquad
        v_t = u_t - \theta\, n_t

    with low = 0 or, for signed neurons, :math:`\max(-\gamma, -N_{t-1})`, where
    :math:`N` counts the spikes sent so far. Charge is conserved:
    :math:`v_T + \theta \sum_t n_t = v_0 + \sum_t I_t`. With `reset='zero'` the
    potential is 0 after a spike instead.

    A population that stands for `min(max(x, 0), cap)` has sent at most
    :math:`N_t \le \lfloor \mathrm{cap}\, t / \theta \rfloor` spikes.

    With an `allowance` a neuron that had :math:`k` steps with spikes, the last of them
    :math:`l`, is taken as falsely active when it stays silent for longer than its mean
    interval from the beginning, :math:`l / k`, and the allowance:

    .. math:: n_t = -1 \quad\text{where}\quad t - l > l / k + \mathrm{allowance}
        \quad\text{and}\quad N_{t-1} \ge 1

    The charge of a spike that is taken back does not return to the potential, or the
    neuron would at once fire again; the law of charge then holds for the positive
    spikes alone.

    Attributes:
      gamma: largest number of spikes per step. 1 is the integrate-and-fire neuron,
        `None` sets no limit.
      signed: whether a neuron may take back spikes it has sent, by sending negative
        ones.
      reset: `'subtract'` the charge of the spikes, or set the potential to `'zero'`
        after a spike (the hard-reset baseline).
      gammas: that of single populations, `(("relu0", 10), ...)`; the others have
        `gamma`.
      allowance: how many steps longer than usual a neuron may stay silent before its
        spikes count as false, and it takes back one at every step (SpiCalib); `None`
        never does.

    Example:
      >>> threshold = Threshold(jnp.array(1.0), jnp.array(0.0), jnp.array(0.0))
      >>> neuron = Burst(5)
      >>> state = neuron.rest(threshold, (1, 2), jnp.float32)
      >>> current = jnp.array([[2.25, 0.5]])
      >>> state, spikes = neuron.step(threshold, state, current, jnp.array(1))
      >>> spikes.tolist(), neuron.potential(threshold, state).tolist()
      ([[2.0, 0.0]], [[0.25, 0.5]])

    References:
      Li and Zeng, IJCAI 2022, "burst spikes"; signed neurons with memory as in Wang et
      al., "Signed Neuron with Memory", IJCAI 2022; the allowance: Li, He, Dong, Kong
      and Zeng, "Spike Calibration", arXiv 2207.02702.
    """

    gamma: int | None = 5
    signed: bool = False
    reset: str = "subtract"
    gammas: tuple[tuple[str, int | None], ...] = ()
    allowance: int | None = None

    def __post_init__(self):
        check_gamma("Burst", self.gamma)
        pairs = isinstance(self.gammas, tuple | list) and [*map(tuple, self.gammas)]
        if pairs is False or any(len(p) != 2 or type(p[0]) is not str for p in pairs):
            refuse("Burst: gammas", "pairs ((population, gamma), ...)", self.gammas)
        object.__setattr__(self, "gammas", tuple(pairs))
        for name, gamma in self.gammas:
            check_gamma(f"Burst, {name}", gamma)
        if len(dict(self.gammas)) < len(self.gammas):
            raise ValueError(f"Burst: gammas names a population twice: {self.gammas}")
        instance("Burst: signed", self.signed, bool, "True or False")
        one_of("Burst: reset", self.reset, ("subtract", "zero"))
        if self.signed and self.reset == "zero":
            raise ValueError(
                "Burst: a signed neuron takes back charge it keeps count of, so it "
                "resets by subtraction; use reset='subtract'"
            )
        if self.allowance is None:
            return
        whole("Burst: allowance", self.allowance)
        if self.signed:
            raise ValueError(
                "Burst: a signed neuron takes back false spikes as soon as its "
                "potential says so; use signed=True or an allowance, not both"
            )

    @property
    def counts(self) -> bool:
        """Whether the neuron keeps count of what it has sent."""
        return self.signed or self.allowance is not None

    @property
    def most(self) -> int | None:
        """The largest gamma."""
        gammas = [self.gamma, *dict(self.gammas).values()]
        known = [gamma for gamma in gammas if gamma is not None]
        return max(known) if len(known) == len(gammas) else None

    @property
    def levels(self) -> int | None:
        """The gamma of this population."""
        return self.gamma

    @property
    def conserves(self) -> bool:
        """With reset by subtraction, and nothing taken back without its charge."""
        return self.reset == "subtract" and self.allowance is None

    def at(self, name: str) -> Burst:
        """The neuron of one population: `gamma` is its own."""
        if not self.gammas:
            return self
        own = dict(self.gammas).get(name, self.gamma)
        return dataclasses.replace(self, gamma=own, gammas=())

    def check(self, populations: tuple[str, ...]) -> None:
        """Refuses a gamma for a population that is not there."""
        strange = sorted(set(dict(self.gammas)) - set(populations))
        if strange:
            raise ValueError(
                "Model: gammas must name populations of the network, found "
                f"{strange}; they are {list(populations)}"
            )

    def rest(self, threshold: Threshold, shape, dtype, f=RELU) -> Membrane:
        """`v_0 = initial θ`, and no spikes."""
        potential = potential_at_rest(threshold, shape, dtype)
        counts, history = jnp.zeros(shape, jnp.int32), None
        if self.allowance is not None:
            history = History(jnp.zeros((), jnp.int32), counts, counts)
        sent = counts if self.counts or f.cap is not None else None
        return Membrane(potential, sent, history, jnp.array(False))

    def step(self, threshold, state, current, t, f=RELU):
        """Advances by one time step; arguments as `Neuron.step`."""
        theta, bias = over(threshold.theta, current), over(threshold.bias, current)
        charged = self.potential(threshold, state) + (current + bias)
        if state.sent is None:
            # The reset is left to the next step: if the potential and the spikes were
            # both to come out of a step, XLA on CPU would read potentials and currents
            # once for each, and copy the potentials before.
            spikes = self._spikes(theta, charged, 0.0)
            return Membrane(charged, None, None, jnp.array(True)), spikes
        low: jax.Array | float = 0.0
        if self.signed:
            low = -state.sent.astype(charged.dtype)
            if self.gamma is not None:
                low = jnp.maximum(low, float(-self.gamma))
        spikes = self._spikes(theta, charged, low)
        if f.cap is not None:
            allowed = within(f.cap, theta, t)
            spikes = jnp.minimum(spikes, allowed - state.sent.astype(charged.dtype))
        spikes = jax.lax.optimization_barrier(spikes)  # or XLA computes them twice
        potential, history = self._reset(theta, charged, spikes), None
        if self.allowance is not None and state.history is not None:
            history = _after(state.history, spikes)
            back = _overdue(self.allowance, history) & (state.sent > 0)
            spikes = jnp.where(back, jnp.full_like(spikes, -1), spikes)
        sent = state.sent + spikes.astype(state.sent.dtype)
        return Membrane(potential, sent, history, jnp.array(False)), spikes

    def potential(self, threshold: Threshold, state: Membrane) -> jax.Array:
        """The potential `v`, its reset done."""
        charged = state.potential
        if state.sent is not None:
            return charged
        theta = over(threshold.theta, charged)
        after = self._reset(theta, charged, self._spikes(theta, charged, 0.0))
        return jnp.where(state.due, after, charged)

    def heard(self, threshold, state, spikes, t):
        """`θ n`, the mean of which over the steps is the rate."""
        return over(threshold.theta, spikes) * spikes

    def direct(self, threshold, drive, t, f=RELU):
        r"""Of signed neurons without a limit (:math:`z` is the mean drive):

        .. math:: \theta N_t / t, \qquad N_t = \max(0, \lfloor (v_0 + t z) / \theta
            \rfloor)
        """
        if self != Burst(None, signed=True):
            return super().direct(threshold, drive, t, f)
        theta, initial, bias = threshold
        theta, initial = over(theta, drive), over(initial, drive)
        steps = t.astype(drive.dtype)
        if bias.ndim:  # one row per step, and none afterwards
            taken = (jnp.arange(len(bias)) < t).astype(drive.dtype)
            bias = jnp.tensordot(taken / steps, bias, 1)
        sent = jnp.floor(initial + steps * (drive + over(bias, drive)) / theta)
        if f.cap is not None:
            sent = jnp.minimum(sent, within(f.cap, theta, t))
        return theta * jnp.maximum(sent, 0.0) / steps

    def _spikes(self, theta, charged, low):
        spikes = jnp.maximum(jnp.floor(charged / theta), low)
        return spikes if self.gamma is None else jnp.minimum(spikes, float(self.gamma))

    def _reset(self, theta, charged, spikes):
        if self.reset == "zero":
            return jnp.where(spikes > 0, jnp.zeros_like(charged), charged)
        return charged - theta * spikes


def _after(history: History, spikes: jax.Array) -> History:
    """The history after a step."""
    time, fires = history.time + 1, spikes > 0
    bursts = history.bursts + fires.astype(jnp.int32)
    return History(time, bursts, jnp.where(fires, time, history.last))


def _overdue(allowance: int, history: History) -> jax.Array:
    """`t - l > l / k + allowance`, times `k`, so that all of it is whole numbers."""
    time, bursts, last = history
    return (time - last - allowance) * bursts > last
