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
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import common
import numpy as np
import tasks

import jaxburst as jb
from jaxburst.methods.channels import centred

GOALS = (0.01, 0.005)
LEAST = 0.1  # points; less is drawn as this


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Study):
    """Changes one factor of the conversion at a time."""

    gamma: int = 5  # largest number of spikes per step in the paper's setting
    gammas: tuple[int, ...] = (1, 2, 3, 5, 10, 15)  # it is compared with
    # that 99.9 is compared with
    percentiles: tuple[float, ...] = (95, 97, 99, 99.5, 99.9, 99.99, 100)
    steps: int = 64  # integrate-and-fire takes gamma times as many
    limit: int = 1000  # training images to measure on


@dataclasses.dataclass(frozen=True, kw_only=True)
class Setting(common.Conversion):
    """A conversion, and for how long it is simulated."""

    steps: int
    initial: float = 0.0


def settings(config: Config, network, variables, images, run) -> tuple[dict, dict]:
    """`{factor: {value: setting}}`, and the divergences by which a percentile is chosen
    without labels."""
    gamma, steps = config.gamma, config.steps
    chosen, divergences = run(
        *("percentile", jb.calibration.choose_percentile),
        *(network, variables, images[:400], jb.Burst(gamma)),
        steps=steps,
        candidates=config.percentiles,
        initial=0.0,
    )
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
    if not network.pools:
        del found["max pooling"]
    return found, {"divergences": divergences}


# One factor at a time, for parts.py, too. The first value of each factor is that of the
# setting from which every other changes one thing. A setting makes `(model, spiking)`
# of the network, its variables and images, and has `steps`.


def answer(
    name: str, config: type, settings: Callable, shows: str, base: str, about: str
) -> None:
    """Runs the experiment. `settings` makes of the configuration, the network, its
    variables, images of calibration and `Kept` the settings, and what else belongs to
    the record. "accuracy" is shown over time, "error" over energy; `base` says whose
    setting the first values are; the rest is as of `common.answer`."""
    measured = partial(measure, settings, shows, base)
    common.answer(name, config, measured, text, draw, about)


def measure(settings: Callable, shows: str, base: str, config, run: common.Kept):
    """A row for every value; what several factors have in common is measured once."""
    dataset, *trained = config.load(run)
    images = dataset.train[: config.calibration].inputs
    unseen = dataset.validation[: config.limit]
    logits = common.outputs(*trained, unseen.inputs)
    size = np.square(centred(logits)).mean()
    ann = float(tasks.right(logits, unseen.labels).mean())
    print(f"ANN: {ann:.2%} of {len(unseen):,} training images held out of calibration")

    def error(found, wanted) -> np.ndarray:
        """Squared, over the variance. A shift of all logits decides nothing."""
        return np.square(centred(found) - centred(wanted)).mean(-1) / size

    targets, metric = logits, error
    if shows == "accuracy":
        targets, metric = unseen.labels, tasks.right

    def one(setting) -> dict:
        try:
            with warnings.catch_warnings():
                # True of most networks, and of no consequence.
                warnings.filterwarnings("ignore", message="channels with the threshold")
                model, spiking = setting(*trained, images)
        except jb.calibration.ZeroThreshold as error:
            return {"impossible": str(error)}
        task = model, spiking, (unseen.inputs, targets), setting.steps, metric
        numbers, curves = common.scores(*task)
        found, energy = numbers.mean(1), jb.energy.relative(network, curves.events)
        when = [common.reached(found, ann - goal) for goal in GOALS]
        within = {"within": [[t, energy[t - 1]] if t else None for t in when]}
        times = common.sampled(setting.steps)
        row = {"times": times, shows: found[times - 1]}
        row |= {"energy_over_ann": energy[times - 1]}
        return row | within if shows == "accuracy" else row

    rows, network = [], trained[0]
    factors, more = settings(config, *trained, images, run)
    for factor, values in factors.items():
        for value, setting in values.items():
            print(f"{factor}: {value}", flush=True)
            row = {"factor": factor, "value": value}
            rows.append(row | run(repr(setting), one, setting))
    record = {"shows": shows, "base": base, "images": len(unseen), "ann_accuracy": ann}
    return record | more | {"rows": rows}


def text(record: dict) -> str:
    """Accuracy, or the root of the relative squared error, in % and, in brackets,
    energy."""
    accuracy = record["shows"] == "accuracy"
    ends = {row["times"][-1] for row in record["rows"] if "times" in row}
    often = {4, 8, 16, 32, 64} if accuracy else {1, 2, 4, 6}
    times = sorted({t for t in often if t < max(ends)} | ends)
    head = [f"T = {t}" for t in times]
    head += [f"within {100 * goal:g}" for goal in GOALS if accuracy]
    lines, last = [], None
    for row in record["rows"]:
        cells = ["a threshold would be 0"]
        if "times" in row:
            found = zip(_percent(row, record), row["energy_over_ann"], strict=True)
            at = dict(zip(row["times"], found, strict=True))
            cells = ["{:.1f} ({:.2f})".format(*at[t]) if t in at else "" for t in times]
            for goal in row.get("within", ()):
                cells.append("T = {} ({:.2f})".format(*goal) if goal else "–")
        cells += [""] * (len(head) - len(cells))
        factor, last = "" if row["factor"] == last else row["factor"], row["factor"]
        lines.append([factor, row["value"], *cells])
    what = "Accuracy" if accuracy else "Relative error of the logits"
    own = f"; ANN {record['ann_accuracy']:.2%}" if accuracy else ""
    return common.markdown(["factor", "value", *head], lines) + (
        f"\n\n{what} in % (energy over the network's own) on {record['images']:,} "
        f"training images that calibration does not see{own}. The first value of each "
        f"factor is {record['base']}."
    )


def _percent(row: dict, record: dict) -> np.ndarray:
    values = np.array(row[record["shows"]])
    return 100 * (np.sqrt(values) if record["shows"] == "error" else values)


def draw(record: dict, folder: Path) -> None:
    """A panel for each factor; the first value is black, and wide, so that what lies on
    it shows."""
    accuracy, found = record["shows"] == "accuracy", {}
    for row in (row for row in record["rows"] if "times" in row):
        curves = found.setdefault(row["factor"], [])
        look = {"color": jb.plot.COLOURS[(len(curves) - 1) % 6]}
        look |= {"ls": "-" if len(curves) < 7 else "--"}
        look = look if curves else {"color": "black", "lw": 3}
        look |= {"marker": "" if accuracy else "o", "label": row["value"]}
        x, y = row["energy_over_ann"], _percent(row, record)
        if accuracy:
            x, y = row["times"], (100 * record["ann_accuracy"] - y).clip(min=LEAST)
        curves.append((x, y, look))
    limits = {}
    labels = "energy over the network's own", "relative error of the logits (%)"
    if accuracy:
        labels = "time steps", f"points below the ANN ({LEAST:g}: or none)"
        limits = {"xlim": (0.8, 3000), "ylim": (100, 0.9 * LEAST)}  # room for legends
        limits["yticks"] = [LEAST, 0.5, 1, 5, 20, 80]
    more = {"doubling": accuracy, "log": True, "limits": limits}
    panels = [common.Panel(name, *labels, own, **more) for name, own in found.items()]
    title = (
        f"{common.title_of(record)}, {record['images']:,} training images: one factor "
        f"at a time (black: {record['base']})"
    )
    path = folder / f"{record['experiment']}.png"
    shared = {"sharex": True, "sharey": True, "size": (3.7, 3)}
    common.picture(path, panels, 3 if accuracy else 4, title, **shared)


if __name__ == "__main__":
    task = Config, settings, "accuracy", "the paper's"
    answer("ablation", *task, __doc__)
