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
from dataclasses import replace
from functools import cache
from pathlib import Path

import common
import factors
import numpy as np

import jaxburst as jb
from jaxburst.methods.channels import centred
from jaxburst.neurons import Burst, Refining

SHOWN = (1, 2, 4, 6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Study):
    """Changes one part of refining bursts at a time.

    Attributes:
      steps: number of time steps.
      at_once: images at a time.
    """

    steps: int = 6
    calibration: int = 500
    limit: int = 500
    at_once: int = 100


@dataclasses.dataclass(frozen=True)
class Partly(Refining):
    """Refining neurons; populations whose names end alike have a silence of their own.

    Attributes:
      only: how their names end, without the number.
      own: their silence.
    """

    only: tuple[str, ...] = ()
    own: float = 0.0

    def at(self, name: str) -> Refining:
        """The neuron of one population."""
        kind = name.rpartition("/")[2].rstrip("0123456789")
        silence = self.own if kind in self.only else self.silence
        return Refining(self.gamma, self.ratio, silence)


@dataclasses.dataclass(frozen=True)
class Setting:
    """One conversion."""

    neuron: Refining
    levels: int = 4
    balanced: bool = True
    corrected: bool = True


def settings(network: jb.Network) -> dict[str, dict[str, Setting]]:
    """`{factor: {value: setting}}`; the first value is the preset's."""
    other = any(node.role.function for node in network.graph.of(jb.graph.Neuron))
    most, ratio = (None, 4) if other else (15, 2)
    neuron = Refining(most, ratio, 0.6)
    preset = Setting(neuron)
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
    return found


def measure(config: Config, run: common.Kept) -> dict:
    """Every setting, on training images that calibration does not see."""
    dataset, network, variables = config.load(run)
    trained, size = (network, variables), config.at_once
    images = dataset.train[: config.calibration].inputs
    held = dataset.train[config.calibration :][: config.limit].inputs
    logits = common.outputs(*trained, held, size)
    spread = float(np.square(centred(logits)).mean())

    @cache
    def exact(levels: int):
        return jb.methods.calibrate_mse(*trained, images, Burst(levels))

    def errors(found, wanted) -> np.ndarray:
        """Squared, over the variance; a shift of all logits decides nothing. Whether
        the class is the network's own."""
        error = np.square(centred(found) - centred(wanted)).mean(-1) / spread
        return np.stack([error, found.argmax(-1) == wanted.argmax(-1)], -1)

    def one(setting: Setting) -> dict:
        thresholds, neuron = exact(setting.levels), setting.neuron
        if setting.balanced:
            start, some = thresholds, images[:size]
            thresholds = jb.methods.balance(*trained, start, some, neuron)
        model = jb.Model(network, neuron)
        spiking = jb.convert(*trained, thresholds, initial=0.4)
        if setting.corrected:
            spiking = jb.methods.correct(model, spiking, images[: 2 * size], steps=4)
        task = model, spiking, (held, logits), config.steps, errors, size
        numbers, curves = common.scores(*task)
        traffic, (error, agreement) = curves.traffic.values(), numbers.mean(1).T
        return {
            "error": error,
            "agreement": agreement,
            "energy_over_ann": jb.energy.relative(network, curves.events),
            "quanta": sum(of.quanta for of in traffic),
            "events": sum(of.events for of in traffic),
        }

    rows = factors.measured(settings(network), run, one)
    return {"images": len(held), "rows": rows}


def text(record: dict) -> str:
    """Root of the relative squared error in % and, in brackets, energy."""
    times = [t for t in SHOWN if t <= record["config"]["steps"]]

    def cells(row: dict) -> list[str]:
        error, spent = 100 * np.sqrt(row["error"]), row["energy_over_ann"]
        return [f"{error[t - 1]:.1f} ({spent[t - 1]:.2f})" for t in times]

    return factors.table(record["rows"], [f"T = {t}" for t in times], cells) + (
        "\n\nRelative error of the logits in % (energy by operations over the "
        f"network's own) on {record['images']:,} training images that calibration "
        "does not see. The first value of each factor is the preset's."
    )


def draw(record: dict, folder: Path) -> None:
    """Error against energy, a panel for each factor; black: the preset's."""

    def curve(row: dict):
        return row["energy_over_ann"], 100 * np.sqrt(row["error"])

    path, rows = folder / "parts.png", record["rows"]
    with factors.figure(path, rows, 4, curve, marker="o") as (whole, _):
        whole.supxlabel("energy by operations, over the network's own")
        whole.supylabel("relative error of the logits (%)")
        whole.suptitle(
            f"{common.title_of(record)}: refining bursts, one factor at a time (black: "
            "the preset); a point for each time step"
        )


if __name__ == "__main__":
    common.answer("parts", Config, measure, text, draw, __doc__)
