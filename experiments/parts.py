"""What each part of refining bursts is worth: one factor at a time.

    python experiments/parts.py --arch vit

From the preset `refining` (black) every row changes one thing: how fine thresholds are,
how much less a spike weighs at every step, how large it may be, when neurons stay
silent, in all populations or in those of some functions alone, balancing, and
corrections. On training images that calibration does not see, against the network's
own logits. The released transformer takes ten minutes of one CPU core.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import ablation
import common

import jaxburst as jb
from jaxburst.neurons import Burst, Refining


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Study):
    """Changes one part of refining bursts at a time."""

    steps: int = 6  # number of time steps
    calibration: int = 500
    limit: int = 500  # training images to measure on


@dataclasses.dataclass(frozen=True)
class Partly(Refining):
    """Refining neurons; populations whose names end alike have their own silence."""

    only: tuple[str, ...] = ()  # how their names end, without the number
    own: float = 0.0  # their silence

    def at(self, name: str) -> Refining:
        """The neuron of one population."""
        kind = name.rpartition("/")[2].rstrip("0123456789")
        silence = self.own if kind in self.only else self.silence
        return Refining(self.gamma, self.ratio, silence)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One conversion."""

    neuron: Refining
    exact: Callable = dataclasses.field(repr=False)  # least squares, of so many levels
    steps: int  # for how long it is simulated
    levels: int = 4
    balanced: bool = True
    corrected: bool = True

    def __call__(self, network, variables, images):
        """`(model, spiking)`."""
        thresholds, neuron = self.exact(self.levels), self.neuron
        if self.balanced:
            task = network, variables, thresholds, images[:100], neuron
            thresholds = jb.methods.balance(*task)
        model = jb.Model(network, neuron)
        spiking = jb.convert(network, variables, thresholds, initial=0.4)
        if self.corrected:
            spiking = jb.methods.correct(model, spiking, images[:200], steps=4)
        return model, spiking


def settings(config: Config, network, variables, images, run) -> tuple[dict, dict]:
    """`{factor: {value: setting}}`; the first value is the preset's."""

    @cache
    def exact(levels: int):
        return jb.methods.calibrate_mse(network, variables, images, Burst(levels))

    other = common.beyond_relu(network)
    most, ratio = (None, 4) if other else (15, 2)
    neuron = Refining(most, ratio, 0.6)
    preset = Setting(neuron, exact, config.steps)
    quiet = (0.9, 1.5) if ratio > 3 else (0.9,)  # less than half of the ratio

    def neurons(name: str, *values) -> dict[str, Setting]:
        return {
            f"{value}": replace(preset, neuron=replace(neuron, **{name: value}))
            for value in values
        }

    def leveled(levels: int) -> Setting:
        """With a limit that reaches as far."""
        gamma = most and most * levels // 4
        return replace(preset, levels=levels, neuron=replace(neuron, gamma=gamma))

    kinds = ("norm", "identity")
    found = {
        "levels of the first step": {"4": preset}
        | {f"{n}": leveled(n) for n in (2, 8, 16)},
        "ratio": {f"{ratio}": preset} | neurons("ratio", 2, 4, 8),
        "spikes a step": {f"{most}": preset} | neurons("gamma", 15, 127, None),
        "silence": {"0.6": preset} | neurons("silence", 0.0, 0.3, *quiet),
        "thresholds": {"balanced": preset, "not": replace(preset, balanced=False)},
        "means": {"corrected": preset, "not": replace(preset, corrected=False)},
    }
    if other:
        found["silence of norms and of queries, keys, values"] = {"0.6": preset} | {
            f"{own}": replace(preset, neuron=Partly(most, ratio, 0.6, kinds, own))
            for own in (0.0, *quiet)
        }
    return found, {}


if __name__ == "__main__":
    ablation.answer("parts", Config, settings, "error", "the preset's", __doc__)
