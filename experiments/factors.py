"""One factor of a conversion at a time: what ablation.py and parts.py share.

Settings are `{factor: {value: setting}}`; the first value of each factor is that of the
setting from which every other changes one thing. A setting makes `(model, spiking)` of
the network, its variables and images, and has `steps`. All meet the same training
images, which calibration does not see.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import common
import numpy as np
import tasks

import jaxburst as jb
from jaxburst.methods.channels import centred

GOALS = (0.01, 0.005)
LEAST = 0.1  # points; less is drawn as this


def answer(
    name: str, config: type, settings: Callable, shows: str, base: str, about: str
) -> None:
    """Runs the experiment.

    Args:
      name, config, about: as of `common.answer`.
      settings: of the configuration, the network, its variables, the images of
        calibration and `Kept`.
      shows: "accuracy", over time, or "error", over energy.
      base: whose setting the first values are.
    """
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
    for factor, values in settings(config, *trained, images, run).items():
        for value, setting in values.items():
            print(f"{factor}: {value}", flush=True)
            row = {"factor": factor, "value": value}
            rows.append(row | run(repr(setting), one, setting))
    record = {"shows": shows, "base": base, "images": len(unseen), "ann_accuracy": ann}
    return record | {"rows": rows}


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
