"""Codes that say one number by the spikes of a window of time.

A layer hears a whole window before it answers in the next one. What matters then is the
number, which is that of the quantised network; its spikes in the slots of a window are
a function of it. So a network of them is simulated in one step, and answers after
`slots (1 + depth)` slots of time, where a step-by-step code takes `T + depth`.
"""

from __future__ import annotations

import abc
import dataclasses
import itertools

import jax
import jax.numpy as jnp

from jaxburst.checks import number, whole
from jaxburst.graph import over
from jaxburst.neurons.base import check_gamma
from jaxburst.neurons.sigma_delta import SigmaDelta


@dataclasses.dataclass(frozen=True)
class Window(SigmaDelta, abc.ABC):
    r"""Neurons whose number :math:`n = \mathrm{clip}(\lfloor f(v) / \theta + s \rfloor,
    0, \gamma)` is sent as binary spikes in `slots`; `s` is the `initial` of their
    threshold, `γ` what the window can say.

    Attributes:
      slots: of a window.

    Example:
      >>> Radix(4).most, Parallel(4).most, FirstSpike(4).most
      (15, 4, 4)
    """

    gamma: int | None = dataclasses.field(init=False, default=None, repr=False)
    digits: int | None = dataclasses.field(init=False, default=None, repr=False)
    slots: int = 8

    universal = False
    longest = 2**24  # what single precision counts to

    def __post_init__(self):
        kind = type(self).__name__
        whole(f"{kind}: slots", self.slots, 1, self.longest)
        object.__setattr__(self, "gamma", self._most())
        check_gamma(kind, self.gamma)

    def _most(self) -> int:
        """The largest number that a window can say."""
        return self.slots

    @property
    def levels(self) -> int | None:
        """Gamma: the range of a population is what a window can say."""
        return self.gamma

    def check_steps(self, steps: int) -> None:
        """Refuses more than one step: all is said in the first."""
        if steps != 1:
            raise ValueError(
                f"steps: {self!r} says everything in one window of {self.slots} slots, "
                f"which is one step; found {steps}"
            )

    @abc.abstractmethod
    def train(self, spikes: jax.Array) -> jax.Array:
        """The spikes of a window, 0 or 1, `[slots, ...]`, from its number `[...]`."""

    @abc.abstractmethod
    def said(self, train: jax.Array) -> jax.Array:
        """The number that a window's spikes say: the inverse of `train`."""


def _slot(slots: int, like: jax.Array) -> jax.Array:
    """1, 2, ..., in front of the axes of what is sent, and in its type."""
    slot = jnp.arange(1, slots + 1, dtype=like.dtype)
    return slot.reshape(-1, *[1] * jnp.ndim(like))


class Parallel(Window):
    r"""Parallel spiking neurons, after Hao et al.: all spikes of a window at once.

    .. math:: s_k = [\, v + \theta / 2 \ge k\, \theta \,], \qquad k = 1, ..., T

    for :math:`v = T \bar x`, what all slots of the window before brought: spikes in the
    first `n` slots of `T = slots`. Each weighs the same, so that hardware for binary
    spikes will do; it must hold a layer's spikes of a whole window.

    Assumed, of their training-free form: thresholds by `calibrate_mse` and means by
    `correct` stand for their own error terms.

    Example:
      >>> Parallel(4).train(jnp.array([3.0]))[:, 0].tolist()
      [1.0, 1.0, 1.0, 0.0]

    References:
      Hao et al., ICML 2025, parallel conversion.
    """

    def train(self, spikes):
        """The first `n` slots have a spike."""
        return (spikes[None] >= _slot(self.slots, spikes)).astype(spikes.dtype)

    def said(self, train):
        """How many slots have one."""
        return train.sum(0)


class Radix(Window):
    r"""Radix code, and few-spike code for ReLU: slot `k` of `K` weighs `2^(K - k)`.

    .. math:: s_k = [\, v_k \ge 2^{K-k}\, \theta \,], \qquad
        v_{k+1} = v_k - 2^{K-k}\, \theta\, s_k

    from :math:`v_1 = v + s\, \theta`: the binary digits of `n`, up to `2^K - 1`, the
    most significant first. With `initial=0.5` it rounds to the nearest; the few-spike
    neuron of Stöckl and Maass, with the constants that give ReLU, is `initial=0`. The
    hardware doubles what it has gathered in every slot.

    Example:
      >>> Radix(4).train(jnp.array([6.0]))[:, 0].tolist()
      [0.0, 1.0, 1.0, 0.0]

    References:
      Wang et al., "Efficient Spiking Neural Networks With Radix Encoding", TNNLS 2022;
      Stöckl and Maass, Nature Machine Intelligence 2021.
    """

    longest = 24

    def _most(self):
        return 2**self.slots - 1

    def train(self, spikes):
        """The binary digits of `n`."""
        weight = 2.0 ** (self.slots - _slot(self.slots, spikes))
        return jnp.floor(spikes[None] / weight) % 2

    def said(self, train):
        """`Σ 2^(K - k) s_k`."""
        weight = 2.0 ** (self.slots - _slot(self.slots, train[0]))
        return (train * weight).sum(0)


class FirstSpike(Window):
    r"""Time to first spike, after Stanojevic et al.: one spike, early if large.

    .. math:: s_k = [\, k = \mathrm{slots} + 1 - n \,], \qquad n > 0

    A neuron integrates with a slope of `w` from each input spike to the end of the
    window, :math:`w\, n\, \theta`, and then rises by one quantum in each slot of its
    own until it meets the threshold. A neuron that is not active stays silent. With
    many slots this is exact: theirs are points in continuous time. The hardware needs a
    slope for each synapse that has had its spike, and updates it in every slot.

    Example:
      >>> FirstSpike(5).train(jnp.array([4.0, 0.0])).T.tolist()
      [[0.0, 1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 0.0]]

    References:
      Stanojevic et al., "An Exact Mapping From ReLU Networks to Spiking Neural
      Networks", 2022 (arXiv 2212.12522).
    """

    def train(self, spikes):
        """One spike, `n` slots before the end."""
        time = self.slots + 1 - spikes[None]
        return (_slot(self.slots, spikes) == time).astype(spikes.dtype)

    def said(self, train):
        """From its slot to the end."""
        return (train * (self.slots + 1 - _slot(self.slots, train[0]))).sum(0)


@dataclasses.dataclass(frozen=True)
class OneSpike(Window):
    r"""One spike in a window, after Hwang and Kung: when it comes says how large it is.

    .. math::
        p_1 = 1, \qquad p_{k+1} = \max(p_k + 1, \lfloor b\, p_k + \tfrac12 \rfloor)

    are the sizes of the slots, the largest first, for a base `b`. A neuron sends the
    size nearest to its activation over the threshold, the larger of two as near; below
    1 - `initial` it stays silent. A smaller base says it more closely and takes more
    slots. The hardware needs a factor that all layers share in every slot; with a base
    of 2 it is a shift.

    Assumed: sizes are whole numbers of quanta, and what the authors choose for each
    layer, their shift of thresholds and their base, is the nearest size, and one base.

    Attributes:
      slots: of a window, which is how many sizes there are.
      base: how much larger a spike is one slot earlier, at most 2.

    Example:
      >>> OneSpike(5).sizes, OneSpike(8, base=1.5).sizes
      ((1, 2, 4, 8, 16), (1, 2, 3, 5, 8, 12, 18, 27))
      >>> OneSpike(5).train(jnp.array([4.0]))[:, 0].tolist()
      [0.0, 0.0, 1.0, 0.0, 0.0]

    References:
      Hwang and Kung, "One-Spike SNN: Single-Spike Phase Coding with Base Manipulation
      for ANN-to-SNN Conversion Loss Minimization", 2024 (read in the abstract).
    """

    base: float = 2.0

    longest = 1024

    def __post_init__(self):
        expected = "a number in 1 < x <= 2"
        number("OneSpike: base", self.base, expected, lambda x: 1 < x <= 2)
        super().__post_init__()

    @property
    def sizes(self) -> tuple[int, ...]:
        """`p_1 ... p_K`, up to what single precision counts to."""
        found = [1]
        for _ in range(self.slots - 1):
            found.append(max(found[-1] + 1, int(self.base * found[-1] + 0.5)))
        return tuple(found)

    def _most(self):
        return whole("OneSpike: its largest size", self.sizes[-1], 1, 2**24)

    def _rounded(self, threshold, wanted, t, sent=0.0):
        """The nearest size, or 0."""
        del t, sent
        start = over(threshold.initial, wanted).astype(wanted.dtype)
        found = (wanted >= 1 - start).astype(wanted.dtype)
        for low, high in itertools.pairwise(self.sizes):
            larger = wanted >= (low + high) / 2
            found = found + (high - low) * larger.astype(wanted.dtype)
        return found

    def train(self, spikes):
        """One spike, in the slot of its size."""
        sizes = jnp.asarray(self.sizes[::-1], spikes.dtype)
        sizes = sizes.reshape(-1, *[1] * spikes.ndim)
        return (spikes[None] == sizes).astype(spikes.dtype)

    def said(self, train):
        """The size of its slot."""
        sizes = jnp.asarray(self.sizes[::-1], train.dtype)
        return jnp.tensordot(sizes, train, 1)
