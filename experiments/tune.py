"""What `tune` gains over the best fixed preset at equal energy.

    python experiments/tune.py --dataset cifar10 --arch resnet20 \\
        --torch-weights resnet20.safetensors --mean .485 .456 .406 --std .229 .224 .225

For each budget of energy the settings found without labels, on training images, beside
the refining preset and its relatives with other levels; then anytime inference, which
stops each image when its decision is settled. The presets take the first 500 images of
calibration. Everything on the test images. With `--dataset cifar100 --budgets 0.15
--trials 16 --steps 3 --calibration 1000` five minutes of one CPU core.
"""

from __future__ import annotations

import dataclasses
import time
from itertools import count
from pathlib import Path

import common
import numpy as np

import jaxburst as jb

PRESETS = {f"preset, {levels} levels": levels for levels in (2, 3, 4, 6)}
DEFAULT = "preset, 4 levels"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Study):
    """Tunes one trained network for budgets of energy."""

    budgets: tuple[float, ...] = (0.2, 0.25)  # of energy over the ANN's
    calibration: int = 2000
    steps: int = 4  # largest number of time steps
    trials: int = 20  # of the search
    agreement: float = 0.99  # of anytime inference with the decisions after all steps
    seed: int = 0  # of the draw of calibration images and of the search


def measure(config: Config, run: common.Kept) -> dict:
    """Presets, anytime inference with one of them, and what is tuned for budgets."""
    dataset, network, variables = config.load(run)
    rng = np.random.default_rng(config.seed)
    images = common.drawn(dataset, config.calibration, rng)
    test = dataset.test[: config.limit]
    ann = run("ANN", jb.accuracy, network, variables, test)
    print(f"ANN: {ann:.2%} of {len(test):,} test images")

    def preset(title: str):
        levels = PRESETS[title]
        return jb.presets.refining(network, variables, images[:500], levels=levels)

    def fixed(title: str) -> dict:
        return simulated(*preset(title), test, config.steps)

    def within(budget: float) -> dict:
        start = time.perf_counter()
        tuned = jb.tune(
            *(network, variables, images),
            energy=budget,
            steps=config.steps,
            trials=config.trials,
            seed=config.seed,
        )
        seconds = time.perf_counter() - start
        print(tuned.report, flush=True)
        best = tuned.report.as_dict()["best"]
        row = simulated(tuned.model, tuned.spiking, test, tuned.steps)
        return {"budget": budget, "seconds": seconds, "best": best} | row

    def anytime() -> dict:
        """Each image stops when it is settled; how long it takes without compiling."""
        task, some = preset(DEFAULT), {"agreement": config.agreement}
        margins = jb.anytime.settle(*task, images[:500], config.steps, **some)
        jb.anytime.evaluate_anytime(*task, test[:100], margins, progress=False)
        start = time.perf_counter()
        stopped = jb.anytime.evaluate_anytime(*task, test, margins)
        seconds = time.perf_counter() - start
        energy = float(jb.energy.relative(network, stopped.events)[-1])
        row = {"accuracy": stopped.accuracy, "steps": stopped.steps}
        return row | {"energy_over_ann": energy, "seconds_to_simulate": seconds}

    presets = {title: run(title, fixed, title) for title in PRESETS}
    stopping = run("anytime", anytime)
    stopping["seconds_of_all_steps"] = presets[DEFAULT]["seconds_to_simulate"]
    tuned = [run(f"budget {budget}", within, budget) for budget in config.budgets]
    return {
        "test_images": len(test),
        "ann_accuracy": ann,
        "presets": presets,
        "tuned": tuned,
        "rows": compare(tuned, presets),
        "anytime": stopping,
    }


def simulated(model: jb.Model, spiking: dict, test: jb.data.Split, steps: int) -> dict:
    """Accuracy and energy after each step, and how long it took without compiling."""
    jb.evaluate(model, spiking, test[:100], steps, progress=False)
    row, _ = common.measure(model, spiking, test, steps)
    return {"seconds_to_simulate": row.pop("seconds")} | row


def compare(tuned: list[dict], presets: dict[str, dict]) -> list[dict]:
    """Beside each tuned network what presets reach with no more energy.

    If it takes more than its budget on the test images, the presets may take as much.
    The best preset is the best on the test images: more than anybody could choose.
    """
    points = [
        {"preset": title, "steps": t, "accuracy": accuracy, "energy_over_ann": spent}
        for title, row in presets.items()
        for t, accuracy, spent in zip(
            count(1), row["accuracy"], row["energy_over_ann"], strict=False
        )
    ]
    rows = []
    for network in tuned:
        own = {"steps": len(network["accuracy"])}
        own |= {key: network[key][-1] for key in ("accuracy", "energy_over_ann")}
        allowed = max(network["budget"], own["energy_over_ann"])
        within = [point for point in points if point["energy_over_ann"] <= allowed]
        default = [point for point in within if point["preset"] == DEFAULT]
        row = {"budget": network["budget"], "tuned": own}
        for name, found in (("default", default), ("best", within)):
            row[name] = max(found, key=lambda one: one["accuracy"], default=None)
        rows.append(row)
    return rows


def text(record: dict) -> str:
    """The table of budgets, and anytime inference in a sentence."""
    early, config = record["anytime"], record["config"]
    kinds = {"tuned": "tuned", "default": "preset", "best": "best of the presets"}
    rows = [
        [f"{row['budget']:g}", *(_shown(row[kind]) for kind in kinds)]
        for row in record["rows"]
    ]
    return (
        f"{record['test_images']:,} test images, ANN {record['ann_accuracy']:.2%}: "
        "accuracy in %, in brackets energy over the ANN's and steps.\n\n"
        + common.markdown(["budget", *kinds.values()], rows, "--:")
        + f"\n\nAnytime, {DEFAULT}, up to {config['steps']} steps, agreement "
        f"{config['agreement']:g}: {early['accuracy']:.2%} after {early['steps']:.2f} "
        f"steps on average, energy {early['energy_over_ann']:.3f}, "
        f"{early['seconds_to_simulate']:.0f} s; every image to the end takes "
        f"{early['seconds_of_all_steps']:.0f} s."
    )


def _shown(point: dict | None) -> str:
    if point is None:
        return "–"
    levels = f", {PRESETS[point['preset']]} levels" if "preset" in point else ""
    spent, steps = point["energy_over_ann"], point["steps"]
    return f"{100 * point['accuracy']:.2f} ({spent:.3f}, T = {steps}{levels})"


def draw(record: dict, folder: Path) -> None:
    """Accuracy against energy: a line for each preset, a star where tuned."""
    presets, ann = record["presets"], 100 * record["ann_accuracy"]
    energy = {name: row["energy_over_ann"] for name, row in presets.items()}
    title = f"{common.title_of(record)}, {record['test_images']:,} test images"
    with common.figure(folder / "tune.png", figsize=(7, 4.2)) as (_, axis):
        common.accuracies(presets, record, axis, energy=energy, title=title)
        spent = [row["energy_over_ann"][-1] for row in record["tuned"]]
        accuracy = [100 * row["accuracy"][-1] for row in record["tuned"]]
        axis.plot(spent, accuracy, "k*", label="tuned", ms=11, zorder=5)
        axis.set_ylim(ann - 6, ann + 1)
        axis.legend()


if __name__ == "__main__":
    common.answer("tune", Config, measure, text, draw, __doc__)
