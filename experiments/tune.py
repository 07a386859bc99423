"""What `tune` gains over the best fixed preset at equal energy.

    python experiments/tune.py --dataset cifar10 --arch resnet20 \\
        --torch-weights resnet20.safetensors --mean .485 .456 .406 --std .229 .224 .225

For each budget of energy the settings found without labels, on training images, beside
the refining preset and its relatives with other levels; then anytime inference, which
stops each image when its decision is settled. Everything on the test images. With
`--dataset cifar100 --budgets 0.15 --trials 16 --steps 3 --calibration 1000` and the
released vgg9: tuned 71.01 %, the best preset within the budget 70.74 %; five minutes of
one CPU core.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path

import common
import numpy as np
import tyro

import jaxburst as jb

PRESETS = {f"preset, {levels} levels": levels for levels in (2, 3, 4, 6)}
DEFAULT = "preset, 4 levels"


@dataclasses.dataclass(frozen=True)
class Config(common.Study):
    """Tunes one trained network for budgets of energy.

    Attributes:
      budgets: of energy over the ANN's.
      calibration: number of training images for `tune`; the presets take the first
        500, as `settle` does.
      steps: largest number of time steps.
      trials: of the search.
      agreement: of anytime inference with the decisions after all steps.
      limit: number of test images; all of them if not given.
      seed: of the draw of calibration images and of the search.
    """

    budgets: tuple[float, ...] = (0.2, 0.25)
    calibration: int = 2000
    steps: int = 4
    trials: int = 20
    agreement: float = 0.99
    limit: int | None = None
    seed: int = 0


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    folder, dataset, network, variables = config.begin("tune")
    rng = np.random.default_rng(config.seed)
    images = common.drawn(dataset, config.calibration, rng)
    test = dataset.test[: config.limit]
    ann = jb.accuracy(network, variables, test)
    print(f"ANN: {ann:.2%} of {len(test):,} test images")
    presets = {}
    for title, levels in PRESETS.items():
        converted = jb.presets.refining(network, variables, images[:500], levels=levels)
        presets[title] = measure(*converted, test, config.steps)
        print(f"{title}: {presets[title]['accuracy']}", flush=True)
        if title == DEFAULT:
            stopping = stop_early(*converted, images[:500], test, config)
    tuned = []
    for budget in config.budgets:
        start = time.perf_counter()
        found = jb.tune(
            *(network, variables, images),
            energy=budget,
            steps=config.steps,
            trials=config.trials,
            seed=config.seed,
        )
        seconds = time.perf_counter() - start
        print(found.report, flush=True)
        row = measure(found.model, found.spiking, test, found.steps)
        report = found.report.as_dict()
        tuned.append({"budget": budget, "seconds": seconds, "report": report} | row)
    rows = compare(tuned, presets)
    stopping["seconds_of_all_steps"] = presets[DEFAULT]["seconds_to_simulate"]
    text = _table(rows, ann, len(test)) + "\n\n" + _stopping(stopping, config)
    print("\n" + text + "\n")
    common.write_record(
        *(folder, "tune", config),
        test_images=len(test),
        ann_accuracy=ann,
        presets=presets,
        tuned=tuned,
        rows=rows,
        anytime=stopping,
    )
    common.write_text(folder / "tune.md", text)
    _draw(folder / "tune.png", presets, tuned, ann, config.title)


def measure(model: jb.Model, spiking: dict, test: jb.data.Split, steps: int) -> dict:
    """Accuracy and energy after each step, and how long it took without compiling."""
    jb.evaluate(model, spiking, test[:100], steps, progress=False)
    row, _ = common.measure(model, spiking, test, steps)
    return {"seconds_to_simulate": row.pop("seconds")} | row


def stop_early(model, spiking, images, test, config: Config) -> dict:
    """Anytime inference: mean steps, accuracy, energy, and how long it took."""
    margins = jb.anytime.settle(
        model, spiking, images, config.steps, agreement=config.agreement
    )
    jb.anytime.evaluate_anytime(model, spiking, test[:100], margins, progress=False)
    start = time.perf_counter()
    found = jb.anytime.evaluate_anytime(model, spiking, test, margins)
    seconds = time.perf_counter() - start
    spent = jb.energy.relative(model.network, found.events)
    return {
        "seconds_to_simulate": seconds,
        "accuracy": found.accuracy,
        "steps": found.steps,
        "energy_over_ann": float(spent[-1]),
    }


def compare(tuned: list[dict], presets: dict[str, dict]) -> list[dict]:
    """Beside each tuned network what presets reach with no more energy.

    If it takes more than its budget on the test images, the presets may take as much.
    The best preset is the best on the test images: more than anybody could choose.
    """
    points = [
        {"preset": title, "steps": t, "accuracy": accuracy, "energy_over_ann": spent}
        for title, curve in presets.items()
        for t, (accuracy, spent) in enumerate(
            zip(curve["accuracy"], curve["energy_over_ann"], strict=True), 1
        )
    ]

    def best(points: list[dict], allowed: float) -> dict | None:
        within = [point for point in points if point["energy_over_ann"] <= allowed]
        return max(within, key=lambda point: point["accuracy"], default=None)

    rows = []
    for network in tuned:
        own = {"steps": len(network["accuracy"])}
        own |= {key: network[key][-1] for key in ("accuracy", "energy_over_ann")}
        allowed = max(network["budget"], own["energy_over_ann"])
        default = [point for point in points if point["preset"] == DEFAULT]
        rows.append(
            {
                "budget": network["budget"],
                "tuned": own,
                "default": best(default, allowed),
                "best": best(points, allowed),
            }
        )
    return rows


def _table(rows: list[dict], ann: float, images: int) -> str:
    lines = [
        [
            f"{row['budget']:g}",
            *(_shown(row[key]) for key in ("tuned", "default", "best")),
        ]
        for row in rows
    ]
    head = ["budget", "tuned", "preset", "best of the presets"]
    table = common.markdown(head, lines, ["--:"] * 4)
    return (
        f"{images:,} test images, ANN {ann:.2%}: accuracy in %, in brackets "
        "energy over the ANN's and steps.\n\n" + table
    )


def _shown(point: dict | None) -> str:
    if point is None:
        return "–"
    levels = f", {PRESETS[point['preset']]} levels" if "preset" in point else ""
    spent, steps = point["energy_over_ann"], point["steps"]
    return f"{100 * point['accuracy']:.2f} ({spent:.3f}, T = {steps}{levels})"


def _stopping(found: dict, config: Config) -> str:
    return (
        f"Anytime, {DEFAULT}, up to {config.steps} steps, agreement "
        f"{config.agreement:g}: {found['accuracy']:.2%} after {found['steps']:.2f} "
        f"steps on average, energy {found['energy_over_ann']:.3f}, "
        f"{found['seconds_to_simulate']:.0f} s; every image to the end takes "
        f"{found['seconds_of_all_steps']:.0f} s."
    )


def _draw(path: Path, presets: dict, tuned: list[dict], ann: float, title: str) -> None:
    """Accuracy against energy: a line for each preset, a star where tuned."""
    with common.figure(path, figsize=(7, 4.2)) as (_, axis):
        for name, curve in presets.items():
            accuracy = 100 * np.array(curve["accuracy"])
            style = {"label": name, "linewidth": 1.2, "markersize": 3.5}
            axis.plot(curve["energy_over_ann"], accuracy, "o-", **style)
        spent = [row["energy_over_ann"][-1] for row in tuned]
        accuracy = [100 * row["accuracy"][-1] for row in tuned]
        axis.plot(spent, accuracy, "*", color="black", label="tuned", markersize=10)
        axis.set_ylim(100 * ann - 6, 100 * ann + 1)
        common.accuracy_against_energy(axis, ann, title)


if __name__ == "__main__":
    common.run(main)
