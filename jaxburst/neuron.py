"""The equations: burst neurons and lateral-inhibition pooling, and refining neurons.

The first two are those of Li and Zeng, "Efficient and Accurate Conversion of Spiking
Neural Network with Burst Spikes", IJCAI 2022 (arXiv 2204.13271).

What travels between layers is whole numbers of spikes. A layer that receives `n` spikes
of a neuron with threshold `θ` receives the charge `θ n`; potentials, currents and
thresholds are all in the unit of the trained network's activations.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.layers import MaxPool
from jaxburst.pooling import max_pool


@dataclasses.dataclass(frozen=True)
class Burst:
    """The kind of neuron; `fire` gives its equations.

    Attributes:
      gamma: largest number of spikes per step. 1 is the integrate-and-fire neuron,
        `None` sets no limit.
      gammas: that of single layers, `(("relu0", 10), ...)`; the others have `gamma`.
      signed: whether a neuron may take back spikes it has sent, by sending negative
        ones.
      reset: `'subtract'` the charge of the spikes, or set the potential to `'zero'`
        after a spike (the hard-reset baseline).
      allowance: how many steps longer than usual a neuron may stay silent before its
        spikes count as false, and it takes back one at every step (SpiCalib); `None`
        never does.
    """

    gamma: int | None = 5
    signed: bool = False
    reset: str = "subtract"
    gammas: tuple[tuple[str, int | None], ...] = ()
    allowance: int | None = None

    def __post_init__(self):
        _check_gamma("Burst", self.gamma)
        for path, gamma in self.gammas:
            _check_gamma(f"Burst, {path}", gamma)
        if self.reset not in ("subtract", "zero"):
            raise ValueError(
                f"Burst: reset must be 'subtract' or 'zero', found {self.reset!r}"
            )
        if self.signed and self.reset == "zero":
            raise ValueError(
                "Burst: a signed neuron takes back charge it keeps count of, so it "
                "resets by subtraction; use reset='subtract'"
            )
        if self.allowance is None:
            return
        if not (_whole(self.allowance) and self.allowance >= 0):
            raise ValueError(
                "Burst: allowance, in time steps, must be a whole number of at least "
                f"0, or None to take nothing back; found {self.allowance!r}"
            )
        if self.signed:
            raise ValueError(
                "Burst: a signed neuron takes back false spikes as soon as its "
                "potential says so; use signed=True or an allowance, not both"
            )

    @property
    def counts(self) -> bool:
        """Whether the neuron keeps count of what it has sent."""
        return self.signed or self.allowance is not None

    def at(self, path: str) -> Burst:
        """The neuron of one layer: `gamma` is the layer's own, for `fire`."""
        own = dict(self.gammas).get(path, self.gamma)
        return dataclasses.replace(self, gamma=own, gammas=())


@dataclasses.dataclass(frozen=True)
class Refining:
    """Neurons whose spikes are changes, finer at every step; `refine` says how.

    The image and the biases are presented once. What a neuron has sent stands until it
    is corrected, by spikes of either sign that weigh `ratio` times less at every step.
    The hardware needs graded spikes of whole numbers, and a shift of all weights that
    every layer knows from the time step alone.

    Attributes:
      gamma: largest number of spikes per step, of either sign; `None` sets no limit.
      ratio: how many times less a spike weighs at the next step, a whole number.
      silence: a neuron stays silent after the first step while what it has sent is
        within so many of the step's quanta of what it should have; less than
        `ratio / 2`. 0 makes every step the network quantised at that step's quantum.
    """

    gamma: int | None = 15
    ratio: int = 2
    silence: float = 0.75

    def __post_init__(self):
        _check_gamma("Refining", self.gamma)
        if not (_whole(self.ratio) and self.ratio >= 2):
            raise ValueError(
                "Refining: ratio, by which spikes weigh less at every step, must be a "
                f"whole number of at least 2; found {self.ratio!r}"
            )
        if not 0 <= self.silence < self.ratio / 2:
            raise ValueError(
                f"Refining: silence must be at least 0 and less than ratio / 2 = "
                f"{self.ratio / 2:g}, or errors outgrow the next step; found "
                f"{self.silence!r}"
            )


def _whole(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_gamma(kind: str, gamma: int | None) -> None:
    if gamma is not None and not (_whole(gamma) and gamma >= 1):
        raise ValueError(
            f"{kind}: gamma, the largest number of spikes per step, must be a whole "
            f"number of at least 1, or None for no limit; found {gamma!r}"
        )


class Threshold(NamedTuple):
    """What belongs to one layer of neurons: data, not configuration.

    Each array is a scalar or has one value per channel, `[C]`; `initial` and `bias` may
    also have one per neuron.

    Attributes:
      theta: the threshold `θ > 0`, the charge carried by one spike (of refining
        neurons: at the first step).
      initial: the initial potential over the threshold, `v_0 / θ`. 0 in the paper;
        ½ centres the error of the rate (Bu et al., AAAI 2022). Of refining neurons:
        what the first step rounds by.
      bias: a correction, 0 or one row per step, `[S, ...]`, the last of which stays.
        It is added to the current; of refining neurons, to the drive.
    """

    theta: jax.Array
    initial: jax.Array
    bias: jax.Array


class History(NamedTuple):
    """When neurons with an `allowance` fired: whole numbers.

    Attributes:
      time: steps taken so far, a scalar.
      bursts: how many of them had a spike, `[B, ...]`.
      last: the latest that had, counted from 1, `[B, ...]`.
    """

    time: jax.Array
    bursts: jax.Array
    last: jax.Array


class Membrane(NamedTuple):
    """What a layer of neurons carries from step to step.

    Attributes:
      potential: `[B, ...]`, in units of activation: `v`, or, while the reset is due,
        the `u` that the last spikes follow from. `remaining` gives `v` of both.
      sent: spikes sent so far, less those taken back, whole numbers `[B, ...]`; `None`
        for neurons that keep no count.
      history: `None` unless the neuron has an `allowance`.
      due: whether the reset is left to the next step; a scalar.
    """

    potential: jax.Array
    sent: jax.Array | None
    history: History | None = None
    due: jax.Array | bool = False


def remaining(
    neuron: Burst | Refining, path: str, threshold: Threshold, membrane: Membrane
) -> jax.Array:
    """The potential `v` of the layer at `path`, `[B, ...]`, after a step and its reset.

    `fire` leaves the reset to the next step where spikes follow from the potential
    alone: if `v` and the spikes were both to come out of a step, XLA on CPU would read
    potentials and currents once for each, and copy the potentials before.
    """
    if isinstance(neuron, Refining):
        return membrane.potential
    return _after_reset(neuron.at(path), threshold, membrane)


def _after_reset(neuron: Burst, threshold: Threshold, membrane: Membrane) -> jax.Array:
    charged = membrane.potential
    if neuron.counts:
        return charged
    theta = over_channels(threshold.theta, charged)
    after = _reset(neuron, theta, charged, _spikes(neuron, theta, charged, 0.0))
    return jnp.where(membrane.due, after, charged)


def _spikes(
    neuron: Burst, theta: jax.Array, charged: jax.Array, low: jax.Array | float
) -> jax.Array:
    spikes = jnp.maximum(jnp.floor(charged / theta), low)
    return spikes if neuron.gamma is None else jnp.minimum(spikes, float(neuron.gamma))


def _reset(
    neuron: Burst, theta: jax.Array, charged: jax.Array, spikes: jax.Array
) -> jax.Array:
    if neuron.reset == "zero":
        return jnp.where(spikes > 0, jnp.zeros_like(charged), charged)
    return charged - theta * spikes


def fire(
    neuron: Burst, threshold: Threshold, membrane: Membrane, current: jax.Array
) -> tuple[Membrane, jax.Array]:
    r"""Advances a layer of burst integrate-and-fire neurons by one time step.

    .. math::
        u_t = v_{t-1} + I_t, \qquad
        n_t = \mathrm{clip}(\lfloor u_t / \theta \rfloor, \mathrm{low}, \gamma), \qquad
        v_t = u_t - \theta\, n_t

    with low = 0 or, for signed neurons, :math:`\max(-\gamma, -N_{t-1})`, where
    :math:`N` counts the spikes sent so far. Charge is conserved:
    :math:`v_T + \theta \sum_t n_t = v_0 + \sum_t I_t`. With `reset='zero'` the
    potential is 0 after a spike instead.

    With an `allowance` a neuron that had :math:`k` steps with spikes, the last of them
    :math:`l`, is taken as falsely active when it stays silent for longer than its mean
    interval from the beginning, :math:`l / k`, and the allowance:

    .. math:: n_t = -1 \quad\text{where}\quad t - l > l / k + \mathrm{allowance}
        \quad\text{and}\quad N_{t-1} \ge 1

    The charge of a spike that is taken back does not return to the potential, or the
    neuron would at once fire again; the law of charge then holds for the positive
    spikes alone.

    Args:
      neuron: gamma, signed, reset and allowance.
      threshold: `θ`, and the bias that is part of the current. `initial` is not read.
      membrane: the state after the previous step, `[B, ...]`.
      current: the input `I_t`, `[B, ...]`, in units of activation.

    Returns:
      `(membrane, spikes)`: the state after this step, and `n_t`, whole numbers
      `[B, ...]` in the type of the potential.

    References:
      Li and Zeng, IJCAI 2022, "burst spikes"; signed neurons with memory as in Wang et
      al., "Signed Neuron with Memory", IJCAI 2022; the allowance: Li, He, Dong, Kong
      and Zeng, "Spike Calibration", arXiv 2207.02702.
    """
    theta = over_channels(threshold.theta, current)
    bias = over_channels(threshold.bias, current)
    charged = _after_reset(neuron, threshold, membrane) + (current + bias)
    if not neuron.counts:
        spikes = _spikes(neuron, theta, charged, 0.0)
        return Membrane(charged, None, due=jnp.array(True)), spikes
    low: jax.Array | float = 0.0
    if neuron.signed:
        low = -membrane.sent.astype(charged.dtype)
        if neuron.gamma is not None:
            low = jnp.maximum(low, float(-neuron.gamma))
    spikes = _spikes(neuron, theta, charged, low)
    spikes = jax.lax.optimization_barrier(spikes)  # or XLA computes them twice
    potential, history = _reset(neuron, theta, charged, spikes), None
    if neuron.allowance is not None:
        history, spikes = _take_back(neuron.allowance, membrane, spikes)
    sent = membrane.sent + spikes.astype(membrane.sent.dtype)
    return Membrane(potential, sent, history), spikes


def _take_back(
    allowance: int, membrane: Membrane, spikes: jax.Array
) -> tuple[History, jax.Array]:
    """The history after this step, and -1 for spikes of neurons overdue."""
    fires = spikes > 0
    time = membrane.history.time + 1
    bursts = membrane.history.bursts + fires.astype(jnp.int32)
    last = jnp.where(fires, time, membrane.history.last)
    # Times the number of bursts, so that all of it is whole numbers.
    overdue = (time - last - allowance) * bursts > last
    back = overdue & (membrane.sent > 0)
    spikes = jnp.where(back, jnp.full_like(spikes, -1), spikes)
    return History(time, bursts, last), spikes


def worth(neuron: Burst | Refining, t: jax.Array) -> jax.Array | float:
    """What one spike of step `t` is worth, over its threshold; `t` counts from 1."""
    if isinstance(neuron, Burst):
        return 1.0
    return float(neuron.ratio) ** (1 - t).astype(float)


def refine(
    neuron: Refining,
    threshold: Threshold,
    membrane: Membrane,
    current: jax.Array,
    t: jax.Array,
) -> tuple[Membrane, jax.Array]:
    r"""Advances a layer of refining neurons by one time step.

    .. math::
        \theta_t = \theta / r^{t-1}, \qquad
        v_t = v_{t-1} + I_t, \qquad
        n_t = \max(\lfloor v_t / \theta_t + \tfrac12 \rfloor, 0) - r N_{t-1}, \qquad
        N_t = r N_{t-1} + n_t

    The neuron keeps its whole drive `v` and the whole number `N` of quanta it has sent,
    and is silent, `n = 0`, at `t > 1` where
    :math:`|\max(v_t, 0) / \theta_t - r N_{t-1}| \le h`. At `t = 1` it rounds by the
    `initial` of its threshold instead of ½.

    Without silence and without a limit, :math:`\theta_t N_t` is the rectified drive
    rounded to :math:`\theta_t`, so that the network at step `t` is the conventional one
    with its activations quantised at :math:`\theta_t`.

    Args:
      neuron: gamma, ratio and silence.
      threshold: `θ`, the rounding of the first step, and the correction of this step.
      membrane: the state after the previous step, `[B, ...]`; at first zeros.
      current: the input `I_t`, `[B, ...]`, in units of activation.
      t: the step, counted from 1.

    Returns:
      `(membrane, spikes)`: the state after this step, and `n_t`, whole numbers of
      either sign, `[B, ...]`, in the type of the potential.
    """
    theta = over_channels(threshold.theta, current)
    first = t == 1
    potential = membrane.potential + current
    quantum = theta * worth(neuron, t).astype(current.dtype)
    drive = jnp.maximum(potential + over_channels(threshold.bias, current), 0.0)
    wanted = drive / quantum
    start = over_channels(threshold.initial, current).astype(current.dtype)
    rounding = jnp.where(first, start, jnp.full_like(start, 0.5))
    sent = membrane.sent * neuron.ratio
    known = sent.astype(current.dtype)
    spikes = jnp.floor(wanted + rounding) - known
    close = ~first & (jnp.abs(wanted - known) <= neuron.silence)
    spikes = jnp.where(close, jnp.zeros_like(spikes), spikes)
    if neuron.gamma is not None:
        spikes = jnp.clip(spikes, float(-neuron.gamma), float(neuron.gamma))
    spikes = jax.lax.optimization_barrier(spikes)  # or XLA computes them twice
    return Membrane(potential, sent + spikes.astype(sent.dtype)), spikes


def answer(
    neuron: Burst | Refining,
    path: str,
    threshold: Threshold,
    membrane: Membrane,
    current: jax.Array,
    t: jax.Array,
) -> tuple[Membrane, jax.Array]:
    """How the layer of neurons at `path` answers its current at step `t`.

    The bias of the threshold is that of this step.
    """
    if isinstance(neuron, Burst):
        return fire(neuron.at(path), threshold, membrane, current)
    return refine(neuron, threshold, membrane, current, t)


def at_step(bias: jax.Array, t: jax.Array) -> jax.Array:
    """The row of a threshold's bias that is meant for step `t`; the last one stays."""
    return bias[jnp.minimum(t, len(bias)) - 1] if bias.ndim else bias


def over_channels(value: jax.Array, x: jax.Array) -> jax.Array:
    """Gives a scalar, per-channel or per-neuron value the rank of `x`, `[B, ...]`."""
    return value.reshape((1,) * (x.ndim - value.ndim) + value.shape)


def over_rows(value: jax.Array, kernel: jax.Array) -> jax.Array:
    """Gives a scalar or per-channel value the rank of a kernel `[..., C_in, C_out]`."""
    return over_channels(value.reshape(-1, 1), kernel)


class Pool(NamedTuple):
    """What a pooling layer carries from step to step: whole numbers.

    Attributes:
      total: running sum `S` of the input, `[B, H, W, C]`.
      sent: `pool(S)`, what has been passed on so far, `[B, H_out, W_out, C]`.
    """

    total: jax.Array
    sent: jax.Array


def lateral_pool(
    layer: MaxPool, pool: Pool, spikes: jax.Array
) -> tuple[Pool, jax.Array]:
    r"""Max pooling by lateral inhibition, one time step.

    .. math::
        S_t = S_{t-1} + n_t, \qquad \mathrm{out}_t = \max S_t - \max S_{t-1}

    with the maximum over each window. Whoever leads inhibits the others by what has
    been passed on, so the outputs up to `t` add up to the pool of the summed inputs,
    for any window, stride and padding.

    Args:
      layer: window, stride and padding.
      pool: the state after the previous step.
      spikes: whole numbers `[B, H, W, C]`.

    Returns:
      `(pool, out)`: the state after this step and the spikes passed on,
      `[B, H_out, W_out, C]`.

    References:
      Li and Zeng, IJCAI 2022, "lateral inhibition pooling".
    """
    total = pool.total + spikes
    best = max_pool(total, layer)
    return Pool(total, best), best - pool.sent


def gated_pool(layer: MaxPool, pool: Pool, spikes: jax.Array) -> tuple[Pool, jax.Array]:
    """Max pooling by gating, one time step: the baseline of earlier work.

    Among the inputs of a window whose count up to now is the largest, the largest
    current output passes. The winner changes over time, so more can pass than any one
    input sent: the pooling error that `lateral_pool` removes.

    Args and Returns: as `lateral_pool`.

    References:
      Rueckauer et al., Frontiers in Neuroscience 2017, section 2.2.6.
    """
    total = pool.total + spikes
    totals = _candidates(total, layer)
    current = _candidates(spikes, layer)
    leads = totals == totals.max(0, keepdims=True)
    out = jnp.where(leads, current, jnp.full_like(current, -np.inf)).max(0)
    return Pool(total, pool.sent + out), out


def _candidates(x: jax.Array, layer: MaxPool) -> jax.Array:
    """The members of each window, `[window * window, B, H_out, W_out, C]`."""
    edge, stride = layer.padding, layer.stride or layer.window
    x = jnp.pad(
        x, ((0, 0), (edge, edge), (edge, edge), (0, 0)), constant_values=-np.inf
    )
    height, width = ((side - layer.window) // stride + 1 for side in x.shape[1:3])
    return jnp.stack(
        [
            x[
                :,
                row : row + (height - 1) * stride + 1 : stride,
                column : column + (width - 1) * stride + 1 : stride,
            ]
            for row in range(layer.window)
            for column in range(layer.window)
        ]
    )
