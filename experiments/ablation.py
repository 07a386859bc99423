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
from functools import partial
from pathlib import Path

import common
import factors
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
    """

    gamma: int = 5
    gammas: tuple[int, ...] = (1, 2, 3, 5, 10, 15)
    percentiles: tuple[float, ...] = (95, 97, 99, 99.5, 99.9, 99.99, 100)
    steps: int = 64
    limit: int = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(common.Conversion):
    """A conversion, and for how long it is simulated."""

    steps: int
    initial: float = 0.0


def settings(config: Config, pools: bool, chosen: float) -> dict[str, dict]:
    """`{factor: {value: setting}}`; the first value is the paper's, by itself."""
    gamma, steps = config.gamma, config.steps
    paper = Setting(neuron=jb.Burst(gamma), levels=gamma, steps=steps)
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
    if not pools:
        del found["max pooling"]
    return found


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
    one = partial(course, network, variables, images, unseen, ann)
    rows = settings(config, bool(network.pools), chosen)
    return {
        "images": len(unseen),
        "ann_accuracy": ann,
        "divergences": divergences,
        "rows": factors.measured(rows, run, one),
    }


def course(network, variables, images, unseen, ann: float, setting: Setting) -> dict:
    """Accuracy and energy at some times, and when goals are reached; or why not."""
    try:
        with warnings.catch_warnings():
            # True of most networks, and of no consequence.
            warnings.filterwarnings("ignore", message="channels with the threshold 0")
            model, spiking = setting(network, variables, images)
    except jb.calibration.ZeroThreshold as error:
        return {"setting": repr(setting), "impossible": str(error)}
    row, _ = common.measure(model, spiking, unseen, setting.steps)
    accuracy, energy = row["accuracy"], row["energy_over_ann"]
    when = [common.reached(accuracy, ann - goal) for goal in GOALS]
    times = common.sampled(setting.steps)
    return {
        "setting": repr(setting),
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
    head = [*(f"T = {t}" for t in times), "within 1", "within 0.5"]

    def cells(row: dict) -> list[str]:
        if "impossible" in row:
            return ["a threshold would be 0"] + [""] * (len(head) - 1)
        values = zip(row["accuracy"], row["energy_over_ann"], strict=True)
        at = dict(zip(row["times"], values, strict=True))
        return [
            *(
                f"{100 * at[t][0]:.1f} ({at[t][1]:.2f})" if t in at else ""
                for t in times
            ),
            *(
                f"T = {goal[0]} ({goal[1]:.2f})" if goal else "–"
                for goal in row["within"]
            ),
        ]

    return factors.table(record["rows"], head, cells) + (
        f"\n\nAccuracy in % (energy over the ANN's) on {record['images']:,} training "
        f"images held out of calibration; ANN {record['ann_accuracy']:.2%}. The first "
        "value of each factor is the paper's."
    )


def draw(record: dict, folder: Path) -> None:
    """Points below the ANN over time, a panel for each factor; black: the paper's."""

    def lost(row: dict):
        points = 100 * (record["ann_accuracy"] - np.array(row["accuracy"]))
        return row["times"], points.clip(min=LEAST)

    rows = [row for row in record["rows"] if "accuracy" in row]
    with factors.figure(folder / "ablation.png", rows, 3, lost) as (whole, axis):
        axis.set_xscale("log", base=2)
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_yticks([LEAST, 0.5, 1, 5, 20, 80], minor=False)
        axis.set_xlim(0.8, 3000)  # room for the legends
        axis.set_ylim(100, 0.9 * LEAST)
        whole.supxlabel("time steps")
        whole.supylabel(f"points below the ANN ({LEAST:g}: or none)")
        whole.suptitle(
            f"{common.title_of(record)}, {record['images']:,} training images: one "
            "factor at a time (black: the paper's setting)"
        )


if __name__ == "__main__":
    common.answer("ablation", Config, measure, text, draw, __doc__)
