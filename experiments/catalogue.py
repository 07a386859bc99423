"""Every training-free code: how a network is converted to it, with which settings.

What each sends, its source, and what its hardware must be able to do: docs/codes.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import cache, partial

import jaxburst as jb
from jaxburst.methods.rounding import rounded
from jaxburst.neurons import (
    Burst,
    Differential,
    Growing,
    MultiThreshold,
    OneSpike,
    Phase,
    Refining,
    SigmaDelta,
    SignDescent,
)


class Draw:
    """One draw of calibration images, and the thresholds that several codes ask of it.

    Attributes:
      network: the traced network.
      variables: its trained variables.
      images: of calibration.
    """

    def __init__(self, network, variables, images):
        self.network, self.variables, self.images = network, variables, images
        task = network, variables, images
        self.least_squares = cache(lambda n: jb.methods.calibrate_mse(*task, Burst(n)))
        self.ranges = cache(lambda p: jb.calibrate(*task, Burst(1), percentile=p))
        some = network, variables, images[:200]
        self.allotted = cache(lambda: jb.methods.allot(*some, error=1.0))

    def thresholds(self, levels, percentile: float | None = None, steps=1) -> dict:
        """A percentile divided by the levels; or by least squares, with what spikes of
        so many steps add up to: those of one alone would cut off too much."""
        if percentile is None:
            found = self.least_squares(levels * steps)
            return {name: steps * theta for name, theta in found.items()}
        return {name: top / levels for name, top in self.ranges(percentile).items()}

    def convert(self, neuron, thresholds, initial: float = 0.5):
        """`(model, spiking)`."""
        spiking = jb.convert(self.network, self.variables, thresholds, initial=initial)
        return jb.Model(self.network, neuron), spiking


@dataclasses.dataclass(frozen=True)
class Code:
    """A code: how a network is converted to it, and with which settings.

    Attributes:
      make: `make(draw, **setting)` gives `(model, spiking)`.
      steps: the most time steps it is given.
      unit: what its hardware is charged by.
      settings: those to choose from; `before` are steps of a first run that does not
        answer, `held` of one that each layer makes of what it hears.
      slots: of a time step, given the setting.
      waits: whether one step stands for a window, whose other slots are priced apart.
      alike: the code that sends the same numbers, as other spikes.
      preset: the setting that `jb.presets` has, measured in full whatever is chosen.
      at: the time step that goes with it.
      plain: whether it sends plain binary digits; the signed ones counted are fewer.
      spikes: whether it is one; else it is priced as a conventional network of as many
        bits as its activations need.
    """

    make: Callable
    steps: int
    unit: str
    settings: tuple[dict, ...] = ({},)
    slots: Callable[..., int] = lambda **_: 1
    waits: bool = False
    alike: str | None = None
    preset: dict | None = None
    at: int = 1
    plain: bool = False
    spikes: bool = True


def repeating(
    draw, *, neuron, percentile=None, steps=1, initial=0.5, correct=0, each=False
):
    """Codes that are presented the input at every step: a percentile for the range, or
    least squares; corrected means if asked for."""
    thresholds = draw.thresholds(neuron.levels, percentile, steps)
    model, spiking = draw.convert(neuron, thresholds, initial)
    if correct:
        some = draw.images[: min(100, 3200 // correct)]  # a layer holds all steps
        how = {"steps": correct, "each_step": each}
        spiking = jb.methods.correct(model, spiking, some, **how)
    return model, spiking


def changing(draw, *, neuron=None, levels, initial=0.5, rows=1):
    """Codes that are presented the input once: least squares, balanced, corrected."""
    neuron = neuron or SigmaDelta(levels)
    task = draw.network, draw.variables, draw.thresholds(levels), draw.images[:100]
    thresholds = jb.methods.balance(*task, neuron, steps=rows)
    model, spiking = draw.convert(neuron, thresholds, initial)
    return model, jb.methods.correct(model, spiking, draw.images[:200], steps=rows)


def once(draw, *, error):
    """The preset, whose thresholds are scaled from one error to another."""
    thresholds = {n: theta * error**0.5 for n, theta in draw.allotted().items()}
    model, spiking = draw.convert(SigmaDelta(), thresholds)
    return model, jb.methods.correct(model, spiking, draw.images[:200], steps=1)


def within(draw, *, digits):
    """The same, at the error where calibration images take so many digits per MAC."""
    images, cost = draw.images[:200], jb.energy.cost_per_event(draw.network)
    macs = sum(jb.energy.macs(draw.network).values())
    little, much = 1e-5, 1.0
    for _ in range(12):
        error = (little * much) ** 0.5
        sent = jb.simulate(*once(draw, error=error), images, 1).traffic
        spent = sum(own.digits.mean() * cost.get(n, 0.0) for n, own in sent.items())
        little, much = (error, much) if spent > digits * macs else (little, error)
    return once(draw, error=much)


def refining(draw):
    """The preset."""
    return jb.presets.refining(
        draw.network, draw.variables, draw.images, progress=False
    )


def exact(draw):
    """The whole range of activations, in as many slots as there are."""
    slots = 2**16 - 1
    return draw.convert(SigmaDelta(slots), draw.thresholds(slots, 100))


def single(draw, *, slots, base):
    """One spike in a window, whose sizes are those of a base."""
    neuron = OneSpike(slots, base)
    return changing(draw, neuron=neuron, levels=neuron.most)


def descending(draw, *, decay, first):
    """A first quantum of a part of the largest activation."""
    return draw.convert(SignDescent(decay), draw.thresholds(1 / first, 100))


def phases(draw, *, period, steps=1):
    """Weighted spikes: thresholds of the numbers that some periods can say."""
    return draw.convert(Phase(period), draw.thresholds(2**period - 1, steps=steps))


def silencing(draw, *, before, **how):
    """Those of a first run that fired too much (SRP), which counts."""
    del before  # of a run, not of the weights
    return repeating(draw, neuron=Burst(1), **how)


def shifting(draw, *, held, **how):
    """Those of each layer that sent a spike too many or too few (COS)."""
    del held  # of a run, not of the weights
    return repeating(draw, neuron=Burst(1), **how)


def quantised(draw, *, bits):
    """Weights in 8 bits, activations in so many."""
    return rounded(draw.network, draw.variables, draw.images, bits=bits)


def some(name: str, *values, **others) -> tuple[dict, ...]:
    """Settings that differ in one thing."""
    return tuple({name: value, **others} for value in values)


RANGES = some("percentile", 99.9, 99.0) + some("steps", 8)
LONGER = RANGES + some("steps", 32)
WINDOWS = some("levels", 7, 15, 31)
from_zero = partial(repeating, initial=0.0)
signed = partial(Burst, signed=True)

# fmt: off
CODES = {
    "once":
        Code(once, 1, "digits", some("error", 0.003, 0.005, 0.01, 0.02, 0.03),
             preset={"error": 0.005}),
    "once, by digits":
        Code(within, 1, "digits", some("digits", 0.65)),
    "refining":
        Code(refining, 4, "digits", preset={}, at=3),
    "quantised ANN":
        Code(quantised, 1, "events", some("bits", 3, 4, 5, 6), spikes=False),
    "refining, no silence":
        Code(partial(changing, neuron=Refining(15, silence=0), rows=4), 4, "digits",
             some("levels", 2, 4, 7)),
    "radix":
        Code(changing, 1, "digits", WINDOWS, lambda levels: levels.bit_length(), True,
             plain=True),
    "parallel, after Hao":
        Code(changing, 1, "quanta", WINDOWS, lambda levels: levels, True, "radix"),
    "first spike":
        Code(changing, 1, "events", WINDOWS, lambda levels: levels, True, "radix"),
    "first spike, exact":
        Code(exact, 1, "events", slots=lambda: 2**16 - 1, waits=True),
    "one spike, after Hwang and Kung":
        Code(single, 1, "events",
             ({"slots": 8, "base": 2.0}, {"slots": 9, "base": 1.5},
              {"slots": 16, "base": 1.2}, {"slots": 24, "base": 1.1}),
             lambda slots, base: slots),
    "few spikes":
        Code(partial(changing, initial=0.0), 1, "digits",
             some("levels", 15, 31, 63), lambda levels: levels.bit_length(), True,
             plain=True),
    "once, two digits":
        Code(partial(changing, neuron=SigmaDelta(digits=2)), 1, "digits",
             some("levels", 8, 16)),
    "sigma-delta, one digit a step":
        Code(partial(changing, neuron=SigmaDelta(digits=1), rows=3), 4, "digits",
             some("levels", 8, 16)),
    "hierarchical thresholds, after H-MT":
        Code(partial(repeating, correct=1), 4, "digits",
             some("neuron", Burst(15), Burst(31), Burst(63)), plain=True),
    "signed bursts, each step corrected, after FTBC":
        Code(partial(repeating, neuron=signed(5), correct=4, each=True), 4, "quanta",
             some("steps", 1, 4)),
    "differential, after DCGS":
        Code(partial(changing, rows=4), 8, "digits",
             some("levels", 4, 8, neuron=Differential(8))
             + some("levels", 16, neuron=Differential(128))),
    "signed bursts, means corrected":
        Code(partial(repeating, correct=2), 8, "quanta",
             some("steps", 1, 8, neuron=signed(5)) + some("neuron", signed(10))),
    "several thresholds, one a step, after ECMT":
        Code(repeating, 16, "digits",
             ({"neuron": MultiThreshold(8), "steps": 4, "correct": 2},
              {"neuron": MultiThreshold(8), "steps": 8, "correct": 8},
              {"neuron": MultiThreshold(128), "correct": 8})),
    "bursts, means corrected, after AdaFire":
        Code(partial(repeating, neuron=Burst(5)), 16, "quanta",
             some("correct", 2, 4) + some("correct", 8, 16, steps=8)),
    "sign descent (signGD)":
        Code(descending, 48, "quanta",
             ({"decay": 0.95, "first": 0.15}, {"decay": 0.9, "first": 0.25})),
    "phase, after Kim":
        Code(phases, 64, "quanta",
             some("period", 2, 4, steps=4) + some("period", 2, steps=8)),
    "bursts (the paper)":
        Code(partial(from_zero, neuron=Burst(5)), 32, "quanta", RANGES),
    "bursts that grow, after Park":
        Code(repeating, 64, "digits",
             some("neuron", Growing(2), Growing(4), steps=8)
             + some("neuron", Growing(2), steps=16)),
    "bursts, SpiCalib":
        Code(partial(from_zero, steps=8), 32, "quanta",
             some("neuron", *(Burst(5, allowance=n) for n in (2, 4, 8, 16)))),
    "signed spikes (SNM, ST-BIF)":
        Code(partial(repeating, neuron=signed(1)), 32, "quanta", RANGES),
    "integrate-and-fire, means corrected (SNNC)":
        Code(partial(repeating, neuron=Burst(1)), 64, "quanta",
             tuple({"steps": n, "correct": n} for n in (8, 16, 32, 64))),
    "integrate-and-fire, some silenced (SRP)":
        Code(silencing, 64, "quanta", some("before", 4, 8, 16, 32, steps=8)),
    "integrate-and-fire, some shifted (COS)":
        Code(shifting, 32, "quanta", some("held", 4, 8, 16, steps=8)),
    "integrate-and-fire from θ/2 (OPI)":
        Code(partial(repeating, neuron=Burst(1)), 64, "quanta", LONGER),
    "integrate-and-fire":
        Code(partial(from_zero, neuron=Burst(1)), 64, "quanta", LONGER),
}
# fmt: on
"""Parallel, radix and first spike are told apart by what they send: the numbers are the
same, and measured once. A mean is corrected after as many steps as one is fitted to."""
