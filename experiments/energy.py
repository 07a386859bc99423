"""The claim about energy: bursts against plain integrate-and-fire, at equal accuracy.

    python experiments/energy.py --dataset cifar10 --arch resnet20 \\
        --torch-weights resnet20.safetensors --mean .485 .456 .406 --std .229 .224 .225

The paper claims nearly lossless conversion at 0.693 times the energy and about a tenth
of the time steps of the typical, integrate-and-fire conversion. Here each method takes
the percentile and the initial potential that serve it best on training images that its
calibration does not see; then the test set says when it comes within 1 point and 0.5
points of the trained network, and what was spent until then. The released vgg9 on
CIFAR-10 takes half an hour of one CPU core: bursts are within 1 point after 2 steps,
integrate-and-fire after 41, and bursts take 0.36 of its energy; ResNet-20 takes longer.
`--limit` and `--longest` shorten it, and the same command continues what was
interrupted.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path

import common
import jax
import numpy as np
import tyro

import jaxburst as jb

GOALS = (0.01, 0.005)
CLAIMED = {"energy": 0.693, "time": 0.1}
CONVENTIONS = ("once", "every step")
FIRST = 64  # steps of a simulation of which nothing is known
PART = 1000  # images that are simulated before what was found is kept


@dataclasses.dataclass(frozen=True)
class Config(common.Study):
    """Measures time and energy at equal accuracy, bursts over integrate-and-fire.

    Attributes:
      gamma: largest number of spikes per step of a burst neuron.
      percentiles: those that each method may choose from, likely ones first: what the
        best so far needs is the most that others are allowed from the same v_0.
      steps: longest simulation of bursts.
      longest: longest simulation of integrate-and-fire.
      calibration: number of training images for the thresholds.
      selection: number of other training images, to choose percentile and v_0 on.
      limit: number of test images.
    """

    gamma: int = 5
    percentiles: tuple[float, ...] = (99.9, 99.99, 99.0)
    steps: int = 64
    longest: int = 512
    calibration: int = 1000
    selection: int = 500
    limit: int = 10_000


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    common.one_device_per_core()
    folder, dataset, *trained = config.begin("energy")
    kept = common.Kept(folder, config)
    images = dataset.train[: config.calibration].inputs
    selection = dataset.validation[: config.selection]
    test = dataset.test[: config.limit]
    expected = jb.accuracy(*trained, selection)
    ann = jb.accuracy(*trained, test)
    print(f"ANN: {ann:.2%} of {len(test):,} test images")
    runs, first = {}, FIRST
    for method, neuron, longest in (
        ("burst", jb.Burst(config.gamma), config.steps),
        ("IF", jb.Burst(1), config.longest),
    ):
        make = functools.partial(common.convert, *trained, images, neuron)
        trials = attempts(
            make, config.percentiles, selection, first, longest, expected, kept
        )
        best = min(trials, key=_rank)
        settings, time = ({key: best[key] for key in _SETTINGS}, best["time"])
        print(f"{method}: {settings} serve best on {len(selection):,} training images")
        # Half as long again as on the training images mostly saves a second simulation.
        steps = max(FIRST, math.ceil(1.5 * time)) if time else longest
        keep = kept.within(f"{neuron}, {settings}, test")
        found = until_reached(*make(**settings), test, steps, longest, ann, keep)
        runs[method] = {"neuron": repr(neuron), "settings": settings} | found
        runs[method]["trials"] = trials
        # Integrate-and-fire needs about gamma times the steps of bursts.
        first = max(FIRST, math.ceil(1.25 * config.gamma * (time or 0)))
    rows = compare(runs, ann)
    print("\n" + table(rows) + "\n")
    print("\n".join(verdicts(rows)))
    common.write_record(
        *(folder, "energy", config),
        test_images=len(test),
        ann_accuracy=ann,
        ann_accuracy_selection=expected,
        claimed=CLAIMED,
        rows=rows,
        verdicts=verdicts(rows),
        runs=runs,
    )
    title = f"{config.title}, {len(test):,} test images"
    _draw(folder / "energy.png", runs, rows, ann, title)
    kept.done()


_SETTINGS = ("percentile", "initial")


def _rank(trial: dict):
    """Least energy at the stricter goal; where none reaches it, the most accurate."""
    return trial["energy"] is None, trial["energy"] or -trial["final"]


def attempts(make, percentiles, selection, first, longest, expected, kept) -> list:
    """What every percentile and v_0 needs for the stricter goal.

    Simulations take `first` steps at first.
    """
    trials = []
    for initial in (0.5, 0.0):
        best = np.inf  # so that what is possible from 0, as in the paper, is found, too
        for percentile in percentiles:
            settings = {"percentile": percentile, "initial": initial}
            try:
                model, spiking = make(**settings)
            except jb.calibration.ZeroThreshold as error:
                print(f"left out {settings}: {error}")
                continue
            keep = kept.within(f"{model.neuron}, {settings}")
            found = until_reached(
                model, spiking, selection, first, longest, expected, keep, best
            )
            t = common.reached(found["accuracy"], expected - min(GOALS))
            spent = found["energy_over_ann"]["once"][t - 1] if t else None
            best = min(best, spent or np.inf)
            final = found["accuracy"][-1]
            trials.append(settings | {"time": t, "energy": spent, "final": final})
    if not trials:
        raise ValueError("no percentile leaves every threshold above 0; give higher")
    return trials


def until_reached(
    model, spiking, split, steps, longest, ann, keep, budget=np.inf
) -> dict:
    """Accuracy and energy of every step until all goals are reached.

    `steps` are doubled until they are, or until the longest simulation, or until more
    than the budget is spent, from where energy can only grow. `keep` is as `Kept`.
    """
    steps = min(steps, longest)
    while True:
        accuracy, events = simulate(model, spiking, split, steps, keep)
        energy = {
            how: jb.energy.relative(model.network, events, first_layer=how)
            for how in CONVENTIONS
        }
        done = all(common.reached(accuracy, ann - goal) for goal in GOALS)
        if done or steps == longest or energy["once"][-1] > budget:
            break
        steps = min(2 * steps, longest)
    return {
        "accuracy": accuracy.tolist(),
        "energy_over_ann": {how: spent.tolist() for how, spent in energy.items()},
        "events": sum(events.values()).tolist(),  # of each step
    }


def simulate(model, spiking, split, steps, keep):
    """Accuracy and events as of `evaluate`, a part of the images after the other."""

    def measure(part) -> dict:
        curves = jb.evaluate(model, spiking, part, steps)
        events = {name: mean * len(part) for name, mean in curves.events.items()}
        correct = np.rint(curves.accuracy * len(part))
        return jax.tree.map(np.ndarray.tolist, {"correct": correct, "events": events})

    parts = []
    for start in range(0, len(split), PART):
        part = split[start : start + PART]
        name = f"{steps} steps, {len(part)} images from {start}"
        parts.append(keep(name, functools.partial(measure, part)))

    def mean(*values):
        return np.sum(values, 0) / len(split)

    means = jax.tree.map(mean, *parts, is_leaf=lambda node: isinstance(node, list))
    return means["correct"], means["events"]


def compare(runs: dict, ann: float) -> list[dict]:
    """One row for each goal and way of counting the first layer."""
    rows = []
    for goal in GOALS:
        times = {
            name: common.reached(found["accuracy"], ann - goal)
            for name, found in runs.items()
        }
        for how in CONVENTIONS:
            energies = {
                name: found["energy_over_ann"][how][times[name] - 1]
                for name, found in runs.items()
                if times[name]
            }
            rows.append(
                {
                    "goal": goal,
                    "first_layer": how,
                    "time": times,
                    "energy_over_ann": energies,
                    "time_ratio": _ratio(times),
                    "energy_ratio": _ratio(energies),
                }
            )
    return rows


def _ratio(values: dict) -> float | None:
    """Bursts over integrate-and-fire, if both reached the goal."""
    if not values.get("burst") or not values.get("IF"):
        return None
    return values["burst"] / values["IF"]


def table(rows: list[dict]) -> str:
    """Markdown: times, energies and their ratios."""
    head = ["within", "first layer", "T burst", "T IF", "T ratio"]
    head += ["energy/ANN burst", "energy/ANN IF", "energy ratio"]
    lines = []
    for row in rows:
        cells = [f"{100 * row['goal']:g} points", row["first_layer"]]
        cells += [str(row["time"][name] or "–") for name in ("burst", "IF")]
        spent = [row["energy_over_ann"].get(name) for name in ("burst", "IF")]
        values = [row["time_ratio"], *spent, row["energy_ratio"]]
        lines.append([*cells, *("–" if x is None else f"{x:.3f}" for x in values)])
    return common.markdown(head, lines)


def verdicts(rows: list[dict]) -> list[str]:
    """What was found beside what is claimed, in words; energy as counted once."""
    lines = []
    for row in rows:
        if row["first_layer"] != "once":
            continue
        within = f"within {100 * row['goal']:g} points"
        for kind, claimed in CLAIMED.items():
            ratio = row[f"{kind}_ratio"]
            if ratio is None:
                missing = [name for name, t in row["time"].items() if t is None]
                lines.append(f"{within}: no ratio, not reached by {', '.join(missing)}")
                break
            # A claim holds where bursts are at least as frugal, within a twentieth.
            holds = "as claimed" if ratio <= 1.05 * claimed else "OTHERWISE"
            lines.append(
                f"{within}: {kind} of bursts over IF {ratio:.3f}, "
                f"claimed {claimed:g}: {holds}"
            )
    return lines


def _draw(path: Path, runs: dict, rows: list[dict], ann: float, title: str) -> None:
    """Accuracy against energy and against time; a dot where a goal is first reached."""
    with common.figure(path, 1, 2, figsize=(9.5, 4), sharey=True) as (
        whole,
        (left, right),
    ):
        for name, found in runs.items():
            settings, colour = found["settings"], common.COLOURS[name]
            accuracy = 100 * np.array(found["accuracy"])
            label = {"burst": "bursts", "IF": "integrate-and-fire"}[name]
            label += f", p = {settings['percentile']:g}, v₀ = {settings['initial']:g} θ"
            energy = np.array(found["energy_over_ann"]["once"])
            times = np.arange(1, len(accuracy) + 1)
            at = [row["time"][name] - 1 for row in rows if row["time"][name]]
            for axis, values in ((left, energy), (right, times)):
                axis.plot(values, accuracy, color=colour, label=label)
                axis.plot(values[at], accuracy[at], "o", color=colour, markersize=6)
        for axis, kind in ((left, "energy / ANN"), (right, "time steps")):
            label = f"ANN, {ann:.2%}"
            axis.axhline(100 * ann, color="0.35", linestyle="--", label=label)
            for goal in GOALS:
                below = 100 * (ann - goal)
                axis.axhline(below, color="0.6", linewidth=0.8, linestyle=":")
            common.doubling(axis, kind)
        left.xaxis.set_major_formatter("{x:.3g}")
        left.set_xlim(left=1 / 16)  # what costs less is too far off to be shown
        left.set_ylim(100 * ann - 20, 100 * ann + 2)
        left.set_ylabel("test accuracy (%)")
        style = {"frameon": False, "fontsize": 8, "ncols": 3}
        lines = right.get_legend_handles_labels()
        whole.legend(*lines, loc="outside lower center", **style)
        whole.suptitle(f"{title}; dots: within 1 and 0.5 points", fontsize=11)


if __name__ == "__main__":
    common.run(main)
