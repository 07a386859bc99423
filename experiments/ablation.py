"""What each part of the paper's conversion is worth: one factor at a time.

    python experiments/ablation.py --dataset cifar10 --arch resnet20 \\
        --torch-weights resnet20.safetensors --mean .485 .456 .406 --std .229 .224 .225

From the paper's setting (bursts of up to 5, lateral pooling, the 99.9th percentile
over 5 for each layer, reset by subtraction, v_0 = 0) every row changes one thing.
Bursts with a range divided by gamma are paced like integrate-and-fire with the whole
range, gamma times as many steps: that row is there, too. On 1,000 training images that
calibration does not see. The released vgg9 on CIFAR-10 takes half an hour of one CPU
core, a ResNet-20 as long, a ResNet-56 an hour and a half; `--limit` and `--steps`
shorten it, and the same command continues what was interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import replace
from pathlib import Path

import common
import numpy as np
import tyro

import jaxburst as jb

SHOWN = (4, 8, 16, 32, 64)


@dataclasses.dataclass(frozen=True)
class Config(common.Study):
    """Changes one factor of the conversion at a time.

    Attributes:
      gamma: largest number of spikes per step in the paper's setting.
      gammas: those it is compared with.
      percentiles: those that 99.9 is compared with.
      steps: number of time steps; integrate-and-fire takes gamma times as many.
      calibration: number of training images for the thresholds.
      limit: number of other training images to measure on.
    """

    gamma: int = 5
    gammas: tuple[int, ...] = (1, 2, 3, 5, 10, 15)
    percentiles: tuple[float, ...] = (95, 97, 99, 99.5, 99.9, 99.99, 100)
    steps: int = 64
    calibration: int = 1000
    limit: int = 1000


@dataclasses.dataclass(frozen=True)
class Setting:
    """One conversion; `levels` is what the percentile is divided by."""

    neuron: jb.Burst
    levels: int
    steps: int
    percentile: float = 99.9
    per: str = "layer"
    pool: str = "lateral"
    initial: float = 0.0


def factors(config: Config, network, chosen: float) -> dict[str, dict[str, Setting]]:
    """`{factor: {value: setting}}`; the first value is the paper's, by itself."""
    gamma, steps = config.gamma, config.steps
    paper = Setting(jb.Burst(gamma), gamma, steps)
    single = replace(paper, neuron=jb.Burst(1))
    found = {
        "bursts": {
            f"on, γ = {gamma}": paper,
            "off": single,
            "off, whole range": replace(single, levels=1, steps=gamma * steps),
        },
        "max pooling": {"lateral": paper, "gated": replace(paper, pool="gated")},
        "gamma": {f"{gamma}": paper}
        | {
            f"{most}": replace(paper, neuron=jb.Burst(most), levels=most)
            for most in config.gammas
        },
        "percentile": {"99.9": paper}
        | {f"{p:g}": replace(paper, percentile=p) for p in config.percentiles}
        | {f"{chosen:g}, without labels": replace(paper, percentile=chosen)},
        "range": {"divided by γ": paper, "whole": replace(paper, levels=1)},
        "threshold": {"per layer": paper, "per channel": replace(paper, per="channel")},
        "reset": {
            "by subtraction": paper,
            "to zero": replace(paper, neuron=jb.Burst(gamma, reset="zero")),
        },
        "v₀": {"0": paper, "θ / 2": replace(paper, initial=0.5)},
        "SpiCalib": {"off": paper}
        | {
            f"allowance {some}": replace(paper, neuron=jb.Burst(gamma, allowance=some))
            for some in (steps // 8, steps // 2)
        },
    }
    if not network.pools:
        del found["max pooling"]
        print("this network has no max pooling to compare")
    return found


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    common.one_device_per_core()
    folder, dataset, network, variables = config.begin("ablation")
    kept = common.Kept(folder, config)
    images = dataset.train[: config.calibration].inputs
    unseen = dataset.validation[: config.limit]
    ann = jb.accuracy(network, variables, unseen)
    print(f"ANN: {ann:.2%} of {len(unseen):,} training images held out of calibration")
    chosen, divergences = jb.calibration.choose_percentile(
        *(network, variables, images[:400], jb.Burst(config.gamma)),
        steps=config.steps,
        candidates=config.percentiles,
        initial=0.0,
    )
    print(f"percentile chosen without labels: {chosen:g}")
    rows = []
    for factor, settings in factors(config, network, chosen).items():
        for value, setting in settings.items():
            print(f"{factor}: {value}")
            task = functools.partial(
                measure, setting, network, variables, images, unseen
            )
            row = {"factor": factor, "value": value, "setting": repr(setting)}
            rows.append(row | kept(row["setting"], task))
    text = table(rows, ann, config)
    print("\n" + text + "\n")
    common.write_record(
        *(folder, "ablation", config),
        images=len(unseen),
        ann_accuracy=ann,
        divergences=divergences,
        rows=rows,
    )
    common.write_text(folder / "ablation.md", text)
    title = f"{config.title}: one factor at a time, {len(unseen):,} images"
    _draw(folder / "ablation.png", rows, ann, title)
    kept.done()


def measure(setting: Setting, network, variables, images, unseen) -> dict:
    """Accuracy and energy of every step, or why there is none."""
    try:
        with common.silent_channels():
            thresholds = jb.calibrate(
                *(network, variables, images, jb.Burst(setting.levels)),
                percentile=setting.percentile,
                per=setting.per,
            )
    except jb.calibration.ZeroThreshold as error:
        return {"impossible": str(error)}
    model = jb.Model(network, setting.neuron, setting.pool)
    spiking = jb.convert(network, variables, thresholds, initial=setting.initial)
    row, _ = common.measure(model, spiking, unseen, setting.steps)
    return {key: row[key] for key in ("accuracy", "energy_over_ann")}


def table(rows: list[dict], ann: float, config: Config) -> str:
    """Markdown: accuracy in % and, in brackets, energy over the ANN's."""
    longest = config.gamma * config.steps
    times = [t for t in SHOWN if t < config.steps] + [config.steps, longest]
    head = ["factor", "value", *(f"T = {t}" for t in times), "within 1", "within 0.5"]
    lines, previous = [], None
    for row in rows:
        cells = ["" if row["factor"] == previous else row["factor"], row["value"]]
        previous = row["factor"]
        if "impossible" in row:
            cells += ["a threshold would be 0"] + [""] * (len(head) - 3)
        else:
            accuracy, energy = row["accuracy"], row["energy_over_ann"]
            cells += [
                f"{100 * accuracy[t - 1]:.1f} ({energy[t - 1]:.2f})"
                if t <= len(accuracy)
                else ""
                for t in times
            ]
            for goal in (0.01, 0.005):
                t = common.reached(accuracy, ann - goal)
                cells.append(f"T = {t} ({energy[t - 1]:.2f})" if t else "–")
        lines.append(cells)
    return common.markdown(head, lines) + (
        f"\n\nAccuracy in % (energy over the ANN's) on {config.limit:,} training "
        f"images held out of calibration; ANN {ann:.2%}. The first value of each "
        "factor is the paper's."
    )


def _draw(path: Path, rows: list[dict], ann: float, title: str) -> None:
    """Accuracy against time, one panel for each factor; the paper's is black."""
    import matplotlib

    names, columns = list(dict.fromkeys(row["factor"] for row in rows)), 3
    lines = -(-len(names) // columns)
    size = {"figsize": (11, 2.9 * lines), "squeeze": False}
    with common.figure(path, lines, columns, sharex=True, sharey=True, **size) as (
        whole,
        axes,
    ):
        for axis in axes.flat[len(names) :]:
            axis.remove()
        for name, axis in zip(names, axes.flat, strict=False):
            found = [row for row in rows if row["factor"] == name and "accuracy" in row]
            shades = np.linspace(0.1, 0.85, max(len(found) - 1, 1))
            for i, row in enumerate(found):
                style = {"color": matplotlib.colormaps["plasma"](shades[i - 1])}
                if i == 0:  # wide, so that what lies on it shows
                    style = {"color": "black", "lw": 2.8}
                accuracy = 100 * np.array(row["accuracy"])
                times = np.arange(1, len(accuracy) + 1)
                axis.plot(times, accuracy, label=row["value"], **{"lw": 1.2} | style)
            axis.axhline(100 * ann, color="0.35", linestyle="--", linewidth=0.9)
            axis.set_title(name, fontsize=10)
            common.doubling(axis, "")
            axis.legend(frameon=False, fontsize=7, loc="lower right")
        axes[0, 0].set_ylim(0, 100 * ann + 3)
        whole.supxlabel("time steps", fontsize=10)
        whole.supylabel("accuracy (%)", fontsize=10)
        whole.suptitle(
            f"{title} (black: the paper's setting; dashed: ANN)", fontsize=11
        )


if __name__ == "__main__":
    common.run(main)
