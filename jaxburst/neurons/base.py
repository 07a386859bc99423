"""The protocol of neurons, and what they share.

A kind of neuron is a frozen dataclass: hashable, static configuration, with the methods
of `Neuron`. A new kind is one file that subclasses it; nothing that simulates asks what
kind a neuron is. What belongs to one population is data, a `Threshold`, and what
changes over time is a state, a pytree of arrays `[B, ...]` that the neuron alone reads.

What travels between populations is whole numbers of spikes; `n` spikes of a neuron with
threshold `θ` carry the charge `worth(t) θ n`. Potentials, currents and thresholds are
in the unit of the trained network's activations.
"""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxburst.checks import is_whole, refuse
from jaxburst.graph import RELU, Function, over


class Threshold(NamedTuple):
    """What belongs to one population of neurons: data, not configuration.

    Each array is a scalar or has one value per channel: `[C]`, or `[C, 1, 1]` where
    channels come first; `initial` and `bias` may also have one per neuron.

    Attributes:
      theta: the threshold `θ > 0`, the charge carried by one spike (of refining
        neurons: at the first step).
      initial: the initial potential over the threshold, `v_0 / θ`. 0 in the paper;
        ½ centres the error of the rate (Bu et al., AAAI 2022). Of refining neurons:
        what the first step rounds by.
      bias: a correction that is added to the current (of refining neurons, to the
        drive): a scalar for all steps, or one row per step, `[S, ...]`. What a run
        does beyond the last row is the neuron's: see `correction`.

    Example:
      >>> spiking["relu0"]._replace(theta=1.0).theta
      1.0
    """

    theta: jax.Array
    initial: jax.Array
    bias: jax.Array


class Neuron(abc.ABC):
    """What a kind of neuron answers.

    `repeats` says whether the input and all constants are presented at every step; if
    not, at the first step alone, and what travels afterwards is changes. `universal`
    says whether a population may stand for any function of its drive, and products of
    two signals be taken of what has been sent; if not, for ReLUs alone, capped or not.
    A step takes `slots` of time: more than one where a layer hears all of them before
    it answers in the next; the answer of a network is there after `slots (T + depth)`.

    Example:
      >>> neuron = jb.Burst(5)
      >>> neuron.repeats, neuron.most, neuron.worth(3)
      (True, 5, 1.0)
    """

    repeats: bool = True
    universal: bool = False
    slots: int = 1

    def at(self, name: str) -> Neuron:
        """The neuron of one population, where they differ."""
        del name
        return self

    def check(self, populations: tuple[str, ...]) -> None:
        """Refuses a configuration that does not fit a network's populations."""
        del populations

    @abc.abstractmethod
    def rest(
        self,
        threshold: Threshold,
        shape: tuple[int, ...],
        dtype,
        f: Function = RELU,
    ) -> Any:
        """The state before the first step, of neurons with drives of a shape `[B, ...]`
        that stand for `f(drive)`, `[B, ...]`, too."""

    @abc.abstractmethod
    def step(
        self,
        threshold: Threshold,
        state: Any,
        current: jax.Array,
        t: jax.Array,
        f: Function = RELU,
    ) -> tuple[Any, jax.Array]:
        """Advances a population by one time step.

        Args:
          threshold: its data; the bias is that of this step.
          state: after the previous step.
          current: the input `I_t`, `[B, ...]`, in units of activation.
          t: the step, counted from 1.
          f: what the population stands for.

        Returns:
          `(state, spikes)`: whole numbers `[B, ...]`, shaped as `f(drive)`, in the type
          of the current. Where the state follows from the spikes, compute it from
          `jax.lax.optimization_barrier(spikes)`, or XLA computes these twice.
        """

    @abc.abstractmethod
    def potential(self, threshold: Threshold, state: Any) -> jax.Array:
        """The membrane potential `v` after a step and its reset, `[B, ...]`."""

    def worth(self, t: jax.Array) -> jax.Array | float:
        """What one spike of step `t` is worth, over its threshold."""
        del t
        return 1.0

    def presented(self, t: jax.Array) -> jax.Array | float:
        """1 where the input and all constants are presented, else 0."""
        return 1.0 if self.repeats else (t == 1).astype(float)

    def readout(self, total: jax.Array, t: jax.Array) -> jax.Array:
        """The output after `t` steps, of the sum of its currents."""
        return total / t.astype(total.dtype) if self.repeats else total

    def growth(self, t: jax.Array) -> jax.Array | int:
        """How many quanta of step `t` one of the step before is: `worth(t - 1) /
        worth(t)`; 1 if all weigh the same."""
        del t
        return 1

    def train(self, spikes: jax.Array) -> jax.Array:
        """What a step's spikes `[...]` are on the wire, `[slots, ...]`."""
        return spikes[None]

    @property
    def most(self) -> int | None:
        """The largest number of spikes of a step; None if there is no limit."""
        return None

    @property
    def levels(self) -> int | None:
        """How many thresholds the range of a population is divided into."""
        return self.most

    def correction(self, bias: jax.Array, t: jax.Array) -> jax.Array:
        """The row of a threshold's bias that is meant for step `t`.

        Corrections are for what the first steps get wrong: beyond the last row there is
        none left.
        """
        if not bias.ndim:
            return bias
        row = bias[jnp.minimum(t, len(bias)) - 1]
        return jnp.where(t <= len(bias), row, jnp.zeros_like(row))

    @abc.abstractmethod
    def heard(
        self, threshold: Threshold, state: Any, spikes: jax.Array, t: jax.Array
    ) -> jax.Array:
        """What the spikes of a step say the activation is, `[B, ...]`."""

    def direct(
        self,
        threshold: Threshold,
        drive: jax.Array,
        t: jax.Array,
        f: Function = RELU,
    ) -> jax.Array:
        """The activation that all spikes up to `t` stand for, from the drive alone.

        Raises:
          ValueError: for neurons whose spikes depend on more than the sum of their
            input.
        """
        raise ValueError(
            "direct: needs neurons whose count depends on the sum of their input, "
            "Burst(gamma=None, signed=True) or Refining(gamma=None, silence=0); found "
            f"{self!r}; use simulate"
        )

    @property
    def soft(self) -> Neuron:
        """The same neurons with a gradient: what they have sent changes like the drive.

        Raises:
          TypeError: for neurons that have none.
        """
        raise TypeError(
            f"polish: the neurons must have a gradient, as Refining, found {self!r}"
        )

    def check_steps(self, steps: int) -> None:
        """Refuses numbers of steps that make no sense for the neuron."""
        del steps

    def still(self, threshold: Threshold, t: jax.Array) -> tuple[Neuron, Threshold]:
        """What sends changes of a stream in quanta of step `t`; else the same."""
        del t
        return self, threshold

    @property
    def conserves(self) -> bool:
        """Whether `v_T + θ Σn = v_0 + ΣI` at every time."""
        return False


def potential_at_rest(threshold: Threshold, shape, dtype) -> jax.Array:
    """`v_0 = initial θ`, of neurons that integrate, `[B, ...]`.

    Example:
      >>> threshold = Threshold(jnp.array(2.0), jnp.array(0.5), jnp.array(0.0))
      >>> potential_at_rest(threshold, (1, 2), jnp.float32).tolist()
      [[1.0, 1.0]]
    """
    none = jnp.zeros(shape, dtype)
    start = over(threshold.theta, none) * over(threshold.initial, none)
    return none + start.astype(dtype)


def within(cap: float, theta: jax.Array, times: jax.Array) -> jax.Array:
    r"""`⌊times · cap / θ⌋`: how many quanta a number of caps holds, `[...]` as `θ`.

    A whole number stays one, however it is rounded.

    Example:
      >>> within(6.0, jnp.array(1.2), jnp.arange(1, 5)).tolist()
      [5.0, 10.0, 15.0, 20.0]
    """
    most = times.astype(theta.dtype) * theta.dtype.type(cap) / theta
    return jnp.floor(most * (1 + 4 * jnp.finfo(theta.dtype).eps))


def check_gamma(kind: str, gamma: int | None) -> None:
    """Refuses what cannot be a largest number of spikes.

    Raises:
      ValueError: saying what was found.

    Example:
      >>> check_gamma("Burst", None)
      >>> check_gamma("Burst", 0)
      Traceback (most recent call last):
      ValueError: Burst: gamma...
    """
    if gamma is not None and not is_whole(gamma, 1):
        refuse(
            f"{kind}: gamma",
            "the largest number of spikes per step, a whole number of at least 1, or "
            "None for no limit",
            gamma,
        )


def check_digits(kind: str, gamma: int | None, digits: int | None) -> None:
    """Refuses a largest spike that takes more signed powers of two than a spike may.

    Raises:
      ValueError: saying what was found.

    Example:
      >>> check_digits("SigmaDelta", 7, 2)  # 8 - 1
      >>> check_digits("Growing", 6, 1)
      Traceback (most recent call last):
      ValueError: Growing: gamma: expected a power of two, ...found 6
    """
    if gamma is None or digits is None:
        return
    if (gamma ^ 3 * gamma).bit_count() <= digits:
        return
    few = "a power of two" if digits == 1 else f"a sum of {digits} signed powers of two"
    refuse(f"{kind}: gamma", f"{few}, as all of its spikes are", gamma)
