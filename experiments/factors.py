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
        calibration and `Kept`: settings, and what else belongs to the record.
      shows: "accuracy", over time, or "error", over energy.
      base: whose setting the first values are.
    """

    def draw_it(record: dict, folder: Path) -> None:
        draw(folder / f"{name}.png", record, shows, base)

    measured, told = partial(measure, settings), partial(text, shows=shows, base=base)
    common.answer(name, config, measured, told, draw_it, about)


def measure(settings: Callable, config, run: common.Kept) -> dict:
    """A row for every value; what several factors have in common is measured once."""
    dataset, *trained = config.load(run)
    images = dataset.train[: config.calibration].inputs
    unseen = dataset.validation[: config.limit]
    logits = common.outputs(*trained, unseen.inputs)
    own, size = logits.argmax(-1), np.square(centred(logits)).mean()
    ann = float((own == unseen.labels).mean())
    print(f"ANN: {ann:.2%} of {len(unseen):,} training images held out of calibration")
    targets = np.column_stack([logits, unseen.labels])

    def compared(found, wanted) -> np.ndarray:
        """Whether the class is right, and the network's own; and the squared error,
        over the variance. A shift of all logits decides nothing."""
        wanted, labels = wanted[:, :-1], wanted[:, -1]
        error = np.square(centred(found) - centred(wanted)).mean(-1) / size
        classes = found.argmax(-1)
        agree = classes == wanted.argmax(-1)
        return np.stack([classes == labels, agree, error], -1)

    def one(setting) -> dict:
        row = {"setting": repr(setting)}
        try:
            with warnings.catch_warnings():
                # True of most networks, and of no consequence.
                warnings.filterwarnings("ignore", message="channels with the threshold")
                model, spiking = setting(*trained, images)
        except jb.calibration.ZeroThreshold as error:
            return row | {"impossible": str(error)}
        data, times = (unseen.inputs, targets), common.sampled(setting.steps)
        numbers, curves = common.scores(model, spiking, data, setting.steps, compared)
        energy = jb.energy.relative(model.network, curves.events)
        accuracy, agreement, error = numbers.mean(1)[times - 1].T
        when = [common.reached(numbers[..., 0].mean(1), ann - goal) for goal in GOALS]
        return row | {
            "within": [[t, energy[t - 1]] if t else None for t in when],
            "times": times,
            "accuracy": accuracy,
            "agreement": agreement,
            "error": error,
            "energy_over_ann": energy[times - 1],
        }

    rows = []
    factors, more = settings(config, *trained, images, run)
    for factor, values in factors.items():
        for value, setting in values.items():
            print(f"{factor}: {value}", flush=True)
            row = {"factor": factor, "value": value}
            rows.append(row | run(repr(setting), one, setting))
    return {"images": len(unseen), "ann_accuracy": ann} | more | {"rows": rows}


def text(record: dict, shows: str, base: str) -> str:
    """Accuracy, or the root of the relative squared error, in % and, in brackets,
    energy."""
    rows = [row for row in record["rows"] if "times" in row]
    ends = {row["times"][-1] for row in rows}
    often = {1, 2, 4, 6} if shows == "error" else {4, 8, 16, 32, 64}
    times = sorted({t for t in often if t < max(ends)} | ends)
    goals = GOALS if shows == "accuracy" else ()
    head = [f"T = {t}" for t in times] + [f"within {100 * goal:g}" for goal in goals]
    lines, last = [], None
    for row in record["rows"]:
        cells = ["a threshold would be 0"]
        if "times" in row:
            found = zip(_percent(row, shows), row["energy_over_ann"], strict=True)
            at = dict(zip(row["times"], found, strict=True))
            cells = [
                f"{at[t][0]:.1f} ({at[t][1]:.2f})" if t in at else "" for t in times
            ]
            for goal in row["within"] if goals else ():
                cells.append(f"T = {goal[0]} ({goal[1]:.2f})" if goal else "–")
        cells += [""] * (len(head) - len(cells))
        lines.append(["" if row["factor"] == last else row["factor"], row["value"]])
        lines[-1] += cells
        last = row["factor"]
    what = "Accuracy" if shows == "accuracy" else "Relative error of the logits"
    return common.markdown(["factor", "value", *head], lines) + (
        f"\n\n{what} in % (energy over the network's own) on {record['images']:,} "
        "training images that calibration does not see"
        + (f"; ANN {record['ann_accuracy']:.2%}" if "ann_accuracy" in record else "")
        + f". The first value of each factor is {base}."
    )


def _percent(row: dict, shows: str) -> np.ndarray:
    values = np.array(row[shows])
    return 100 * (np.sqrt(values) if shows == "error" else values)


def draw(path: Path, record: dict, shows: str, base: str) -> None:
    """A panel for each factor; the first value is black, and wide, so that what lies on
    it shows."""
    found = {}
    for row in (row for row in record["rows"] if "times" in row):
        curves = found.setdefault(row["factor"], [])
        look = {"color": jb.plot.COLOURS[(len(curves) - 1) % 6]}
        look |= {"ls": "-" if len(curves) < 7 else "--"}
        look = look if curves else {"color": "black", "lw": 3}
        look["marker"] = "" if shows == "accuracy" else "o"
        x, y = row["energy_over_ann"], _percent(row, shows)
        if shows == "accuracy":
            x, y = row["times"], (100 * record["ann_accuracy"] - y).clip(min=LEAST)
        curves.append((x, y, look | {"label": row["value"]}))
    labels = "energy over the network's own", "relative error of the logits (%)"
    limits = {}
    if shows == "accuracy":
        labels = "time steps", f"points below the ANN ({LEAST:g}: or none)"
        limits = {"xlim": (0.8, 3000), "ylim": (100, 0.9 * LEAST)}  # room for legends
        limits["yticks"] = [LEAST, 0.5, 1, 5, 20, 80]
    more = {"doubling": shows == "accuracy", "log": True, "limits": limits}
    panels = [common.Panel(name, *labels, own, **more) for name, own in found.items()]
    title = (
        f"{common.title_of(record)}, {record['images']:,} training images: one factor "
        f"at a time (black: {base})"
    )
    shared = {"sharex": True, "sharey": True, "size": (3.7, 3)}
    common.picture(path, panels, 3 if shows == "accuracy" else 4, title, **shared)
