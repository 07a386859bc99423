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
from typing import Literal

import numpy as np
import tyro
from cifar import IMAGE, Source, run
from common import (
    accuracy_against_energy,
    prepare_folder,
    provenance,
    write_file,
    write_json,
)

import jaxburst as jb
from jaxburst import anytime, energy

PRESETS = {f"preset, {levels} levels": levels for levels in (2, 3, 4, 6)}
DEFAULT = "preset, 4 levels"


@dataclasses.dataclass(frozen=True)
class Config:
    """Tunes one trained network for budgets of energy.

    Attributes:
      dataset: what the network was trained on.
      source: which network, with which weights and data.
      budgets: of energy over the ANN's.
      calibration: number of training images for `tune`; the presets take the first
        500, as `settle` does.
      steps: largest number of time steps.
      trials: of the search.
      agreement: of anytime inference with the decisions after all steps.
      limit: number of test images; all of them if not given.
      seed: of the draw of calibration images and of the search.
      out: folder for the results; runs/tune/DATASET_ARCH if not given.
    """

    dataset: Literal["cifar10", "cifar100"] = "cifar10"
    source: tyro.conf.OmitArgPrefixes[Source] = Source()
    budgets: tuple[float, ...] = (0.2, 0.25)
    calibration: int = 2000
    steps: int = 4
    trials: int = 20
    agreement: float = 0.99
    limit: int | None = None
    seed: int = 0
    out: Path | None = None


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    name = f"{config.dataset}_{config.source.arch}"
    folder = prepare_folder(config.out or Path("runs", "tune", name))
    dataset, layers, variables = config.source.load_trained(config.dataset)
    rng = np.random.default_rng(config.seed)
    chosen = rng.choice(len(dataset.train), config.calibration, replace=False)
    images = dataset.train[chosen].inputs
    test = dataset.test[: config.limit]
    ann = jb.accuracy(layers, variables, test)
    print(f"ANN: {ann:.2%} of {len(test):,} test images")
    presets = {}
    for title, levels in PRESETS.items():
        converted = jb.presets.refining(layers, variables, images[:500], levels=levels)
        presets[title] = measure(*converted, test, config.steps)
        print(f"{title}: {presets[title]['accuracy']}", flush=True)
        if title == DEFAULT:
            stopping = stop_early(*converted, images[:500], test, config)
    tuned = []
    for budget in config.budgets:
        start = time.perf_counter()
        found = jb.tune(
            *(layers, variables, images),
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
    table = _table(rows, ann, len(test)) + "\n\n" + _stopping(stopping, config)
    print("\n" + table + "\n")
    record = {
        "experiment": "tune",
        "config": dataclasses.asdict(config),
        "provenance": provenance(),
        "test_images": len(test),
        "ann_accuracy": ann,
        "presets": presets,
        "tuned": tuned,
        "rows": rows,
        "anytime": stopping,
    }
    write_json(folder / "tune.json", record)
    write_file(folder / "tune.md", lambda path: path.write_text(table + "\n"))
    write_file(folder / "tune.png", lambda path: _draw(path, presets, tuned, ann, name))


def measure(model: jb.Model, spiking: dict, test: jb.data.Split, steps: int) -> dict:
    """Accuracy and energy after each step, and how long it took without compiling."""
    jb.evaluate(model, spiking, test[:100], steps, progress=False)
    start = time.perf_counter()
    curves = jb.evaluate(model, spiking, test, steps)
    return {
        "seconds_to_simulate": time.perf_counter() - start,
        "accuracy": curves.accuracy.tolist(),
        "energy_over_ann": energy.relative(model.layers, IMAGE, curves.events).tolist(),
    }


def stop_early(model, spiking, images, test, config: Config) -> dict:
    """Anytime inference: mean steps, accuracy, energy, and how long it took."""
    margins = anytime.settle(
        model, spiking, images, config.steps, agreement=config.agreement
    )
    anytime.evaluate_anytime(model, spiking, test[:100], margins, progress=False)
    start = time.perf_counter()
    found = anytime.evaluate_anytime(model, spiking, test, margins)
    seconds = time.perf_counter() - start
    spent = energy.relative(model.layers, IMAGE, found.events)
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
    rows = []
    for network in tuned:
        own = {"steps": len(network["accuracy"])}
        own |= {key: network[key][-1] for key in ("accuracy", "energy_over_ann")}
        allowed = max(network["budget"], own["energy_over_ann"])
        within = [point for point in points if point["energy_over_ann"] <= allowed]
        default = [point for point in within if point["preset"] == DEFAULT]
        best, default = (
            max(some, key=lambda point: point["accuracy"], default=None)
            for some in (within, default)
        )
        rows.append(
            {
                "budget": network["budget"],
                "tuned": own,
                "default": default,
                "best": best,
            }
        )
    return rows


def _table(rows: list[dict], ann: float, images: int) -> str:
    lines = [
        f"{images:,} test images, ANN {ann:.2%}: accuracy in %, in brackets "
        "energy over the ANN's and steps.",
        "",
        "| budget | tuned | preset | best of the presets |",
        "|--:|--:|--:|--:|",
    ]
    for row in rows:
        shown = (_shown(row[key]) for key in ("tuned", "default", "best"))
        lines.append(f"| {row['budget']:g} | {' | '.join(shown)} |")
    return "\n".join(lines)


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


def _draw(path: Path, presets: dict, tuned: list[dict], ann: float, name: str) -> None:
    """Accuracy against energy: a line for each preset, a star where tuned."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for title, curve in presets.items():
        accuracy = 100 * np.array(curve["accuracy"])
        axis.plot(
            curve["energy_over_ann"],
            accuracy,
            "o-",
            label=title,
            lw=1.2,
            markersize=3.5,
        )
    spent = [row["energy_over_ann"][-1] for row in tuned]
    reached = [100 * row["accuracy"][-1] for row in tuned]
    axis.plot(spent, reached, "*", color="black", label="tuned", markersize=10)
    axis.set_ylim(100 * ann - 6, 100 * ann + 1)
    accuracy_against_energy(axis, ann, name)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)


if __name__ == "__main__":
    run(main)
