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
from pathlib import Path

import common
import jax
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
      calibration: number of training images for the thresholds.
      limit: number of other training images to measure on.
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


def factors(network: jb.Network) -> dict[str, dict[str, Setting]]:
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


class Bench:
    """A network, its calibration images, and others to measure on."""

    def __init__(self, config: Config, run: common.Kept):
        dataset, self.network, self.variables = config.load(run)
        self.config, self.kept = config, {}
        self.images = dataset.train[: config.calibration].inputs
        stop = config.calibration + config.limit
        inputs = dataset.train[config.calibration : stop].inputs
        own, size = jax.jit(self.network.__call__), config.at_once
        parts = np.array_split(inputs, -(-len(inputs) // size))
        logits = np.concatenate([own(self.variables, part) for part in parts])
        self.held = inputs, logits
        self.spread = float(np.square(centred(logits)).mean())

    def thresholds(self, setting: Setting):
        """Those of the levels; balanced for the neuron."""
        key, some = repr(setting.levels), self.images[: self.config.at_once]
        task = self.network, self.variables
        if key not in self.kept:
            self.kept[key] = jb.methods.calibrate_mse(
                *task, self.images, Burst(setting.levels)
            )
        if not setting.balanced:
            return self.kept[key]
        return jb.methods.balance(*task, self.kept[key], some, setting.neuron)

    def one(self, setting: Setting) -> dict:
        """Error, agreement and energy of every step."""
        config, (inputs, logits) = self.config, self.held
        model = jb.Model(self.network, setting.neuron)
        spiking = jb.convert(
            self.network, self.variables, self.thresholds(setting), initial=0.4
        )
        if setting.corrected:
            some = self.images[: 2 * config.at_once]
            spiking = jb.methods.correct(model, spiking, some, steps=4)
        options = {"steps": config.steps, "batch_size": config.at_once}
        errors = jb.evaluate(model, spiking, self.held, metric=self.error, **options)
        right = jb.evaluate(model, spiking, (inputs, logits.argmax(-1)), **options)
        traffic = errors.traffic.values()
        return {
            "error": errors.accuracy,
            "agreement": right.accuracy,
            "energy_over_ann": jb.energy.relative(self.network, errors.events),
            "quanta": sum(of.quanta for of in traffic),
            "events": sum(of.events for of in traffic),
        }

    def error(self, found, wanted) -> np.ndarray:
        """Of logits, squared, over their variance; a shift of all decides nothing."""
        apart = centred(np.asarray(found)) - centred(wanted)
        return np.square(apart).mean(-1) / self.spread


def measure(config: Config, run: common.Kept) -> dict:
    """Every setting, on training images."""
    bench, rows = Bench(config, run), []
    for factor, settings in factors(bench.network).items():
        for value, setting in settings.items():
            print(f"{factor}: {value}", flush=True)
            found = run(repr(setting), bench.one, setting)
            rows.append({"factor": factor, "value": value} | found)
    return {"images": len(bench.held[0]), "rows": rows}


def text(record: dict) -> str:
    """Root of the relative squared error in % and, in brackets, energy."""
    times = [t for t in SHOWN if t <= record["config"]["steps"]]
    head = ["factor", "value", *(f"T = {t}" for t in times)]
    lines, previous = [], None
    for row in record["rows"]:
        error = 100 * np.sqrt(row["error"])
        cells = ["" if row["factor"] == previous else row["factor"], row["value"]]
        previous = row["factor"]
        for t in times:
            cells.append(f"{error[t - 1]:.1f} ({row['energy_over_ann'][t - 1]:.2f})")
        lines.append(cells)
    return common.markdown(head, lines) + (
        "\n\nRelative error of the logits in % (energy by operations over the "
        f"network's own) on {record['images']:,} training images that calibration "
        "does not see. The first value of each factor is the preset's."
    )


def draw(record: dict, folder: Path) -> None:
    """Error against energy, a panel for each factor; black: the preset's."""
    names = list(dict.fromkeys(row["factor"] for row in record["rows"]))
    columns = 4
    lines = -(-len(names) // columns)
    size = {"figsize": (13, 3.2 * lines), "sharex": True, "sharey": True}
    path = folder / "parts.png"
    with common.figure(path, lines, columns, squeeze=False, **size) as (whole, axes):
        for axis in axes.flat[len(names) :]:
            axis.remove()
        for name, axis in zip(names, axes.flat, strict=False):
            rows = [row for row in record["rows"] if row["factor"] == name]
            for i, row in enumerate(rows):
                look = {"color": jb.plot.COLOURS[i - 1], "lw": 1.4, "ms": 4}
                if i == 0:
                    look = {"color": "black", "lw": 2.5, "ms": 5}
                error = 100 * np.sqrt(row["error"])
                cost = row["energy_over_ann"]
                axis.plot(cost, error, "o-", label=row["value"], **look)
            axis.set_title(name, fontsize=9)
            axis.legend(frameon=False, fontsize=8)
            axis.grid(alpha=0.3, which="both")
        axes[0, 0].set_yscale("log")
        axes[0, 0].yaxis.set_major_formatter("{x:g}")
        whole.supxlabel("energy by operations, over the network's own", fontsize=10)
        whole.supylabel("relative error of the logits (%)", fontsize=10)
        whole.suptitle(
            f"{common.title_of(record)}: refining bursts, one factor at a time (black: "
            "the preset); a point for each time step",
            fontsize=11,
        )


if __name__ == "__main__":
    common.answer("parts", Config, measure, text, draw, __doc__)
