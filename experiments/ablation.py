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
import warnings
from dataclasses import replace
from pathlib import Path

import common
import numpy as np

import jaxburst as jb

SHOWN = (4, 8, 16, 32, 64)
GOALS = (0.01, 0.005)
LEAST = 0.1  # points; less is drawn as this


@dataclasses.dataclass(frozen=True, kw_only=True)
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


def factors(config: Config, pools: bool, chosen: float) -> dict[str, dict]:
    """`{factor: {value: setting}}`; the first value is the paper's, by itself."""
    gamma, steps = config.gamma, config.steps
    paper = Setting(jb.Burst(gamma), gamma, steps)
    single = replace(paper, neuron=jb.Burst(1))
    settings = {
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
    if not pools:
        del settings["max pooling"]
    return settings


def measure(config: Config, run: common.Kept) -> dict:
    """Every setting, on training images."""
    dataset, network, variables = config.load(run)
    images = dataset.train[: config.calibration].inputs
    unseen = dataset.validation[: config.limit]
    ann = run("ANN", jb.accuracy, network, variables, unseen)
    print(f"ANN: {ann:.2%} of {len(unseen):,} training images held out of calibration")
    chosen, divergences = run(
        *("percentile", jb.calibration.choose_percentile),
        *(network, variables, images[:400], jb.Burst(config.gamma)),
        steps=config.steps,
        candidates=config.percentiles,
        initial=0.0,
    )
    print(f"percentile chosen without labels: {chosen:g}")
    rows = []
    for factor, settings in factors(config, bool(network.pools), chosen).items():
        for value, setting in settings.items():
            print(f"{factor}: {value}")
            name = repr(setting)
            row = run(name, one, setting, network, variables, images, unseen, ann)
            rows.append({"factor": factor, "value": value, "setting": name} | row)
    return {
        "images": len(unseen),
        "ann_accuracy": ann,
        "divergences": divergences,
        "rows": rows,
    }


def one(setting: Setting, network, variables, images, unseen, ann: float) -> dict:
    """Accuracy and energy at some times, and when goals are reached; or why not."""
    try:
        with warnings.catch_warnings():
            # True of most networks, and of no consequence.
            warnings.filterwarnings("ignore", message="channels with the threshold 0")
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
    accuracy, energy = row["accuracy"], row["energy_over_ann"]
    when = [common.reached(accuracy, ann - goal) for goal in GOALS]
    times = common.sampled(setting.steps)
    return {
        "within": [[t, energy[t - 1]] if t else None for t in when],
        "times": times,
        "accuracy": accuracy[times - 1],
        "energy_over_ann": energy[times - 1],
    }


def text(record: dict) -> str:
    """Accuracy in % and, in brackets, energy over the ANN's."""
    config = record["config"]
    steps, longest = config["steps"], config["gamma"] * config["steps"]
    times = sorted({t for t in SHOWN if t < steps} | {steps, longest})
    head = ["factor", "value", *(f"T = {t}" for t in times), "within 1", "within 0.5"]
    lines, previous = [], None
    for row in record["rows"]:
        cells = ["" if row["factor"] == previous else row["factor"], row["value"]]
        previous = row["factor"]
        if "impossible" in row:
            cells += ["a threshold would be 0"] + [""] * (len(head) - 3)
        else:
            values = zip(row["accuracy"], row["energy_over_ann"], strict=True)
            at = dict(zip(row["times"], values, strict=True))
            cells += [
                f"{100 * at[t][0]:.1f} ({at[t][1]:.2f})" if t in at else ""
                for t in times
            ]
            for at_goal in row["within"]:
                cells.append(f"T = {at_goal[0]} ({at_goal[1]:.2f})" if at_goal else "–")
        lines.append(cells)
    return common.markdown(head, lines) + (
        f"\n\nAccuracy in % (energy over the ANN's) on {record['images']:,} training "
        f"images held out of calibration; ANN {record['ann_accuracy']:.2%}. The first "
        "value of each factor is the paper's."
    )


def draw(record: dict, folder: Path) -> None:
    """Points below the ANN over time, a panel for each factor; black: the paper's."""
    rows, ann, columns = record["rows"], record["ann_accuracy"], 3
    names = list(dict.fromkeys(row["factor"] for row in rows))
    lines = -(-len(names) // columns)
    size = {"figsize": (11, 2.9 * lines), "squeeze": False}
    size |= {"sharex": True, "sharey": True}
    path = folder / "ablation.png"
    with common.figure(path, lines, columns, **size) as (whole, axes):
        for axis in axes.flat[len(names) :]:
            axis.remove()
        for name, axis in zip(names, axes.flat, strict=False):
            shown = [row for row in rows if row["factor"] == name and "accuracy" in row]
            for i, row in enumerate(shown):
                style = {"color": jb.plot.COLOURS[(i - 1) % 6], "lw": 1.4}
                style |= {"ls": "-" if i < 7 else "--"}
                if i == 0:  # wide, so that what lies on it shows
                    style = {"color": "black", "lw": 3}
                lost = 100 * (ann - np.array(row["accuracy"]))
                lost = lost.clip(min=LEAST)
                axis.plot(row["times"], lost, label=row["value"], **style)
            axis.set_title(name, fontsize=10)
            jb.plot.doubling(axis, "")
            axis.legend(frameon=False, fontsize=7, loc="lower right")
        axes[0, 0].set_yscale("log")
        axes[0, 0].set_yticks([LEAST, 0.5, 1, 5, 20, 80], minor=False)
        axes[0, 0].yaxis.set_major_formatter("{x:g}")
        axes[0, 0].set_ylim(100, 0.9 * LEAST)
        axes[0, 0].set_xlim(0.8, 3000)  # room for the legends
        whole.supxlabel("time steps", fontsize=10)
        whole.supylabel(f"points below the ANN ({LEAST:g}: or none)", fontsize=10)
        whole.suptitle(
            f"{common.title_of(record)}, {record['images']:,} training images: one "
            "factor at a time (black: the paper's setting)",
            fontsize=11,
        )


if __name__ == "__main__":
    common.answer("ablation", Config, measure, text, draw, __doc__)
