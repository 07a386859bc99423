"""Every way of converting one trained network, on the same images.

    python experiments/compare.py --dataset cifar10 --arch resnet20 \\
        --torch-weights resnet20.safetensors --mean .485 .456 .406 --std .229 .224 .225

Accuracy against energy: refining bursts, repeating bursts with every remedy, the paper,
plain integrate-and-fire, and the quantised ANN. Mean and spread over several draws of
calibration images; then the preset and the most accurate repeating bursts on the whole
test set.
"""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Literal

import jax.numpy as jnp
import numpy as np
import tyro
from cifar import IMAGE, Source, run
from common import (
    accuracy_against_energy,
    one_device_per_core,
    prepare_folder,
    provenance,
    reached,
    silent_channels,
    write_file,
    write_json,
)

import jaxburst as jb
from jaxburst import energy


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares conversion methods on one trained network.

    Attributes:
      dataset: what the network was trained on.
      source: which network, with which weights and data.
      limit: number of test images for the comparison; the headline takes all.
      draws: how often calibration images are drawn.
      calibration: number of calibration images in a draw, from the training set.
      steps: time steps of the paper's method; few-step methods take up to 8, plain IF
        five times as many.
      seed: of the draws.
      out: folder for the results; runs/compare/DATASET_ARCH if not given.
    """

    dataset: Literal["cifar10", "cifar100"] = "cifar10"
    source: tyro.conf.OmitArgPrefixes[Source] = Source()
    limit: int = 2000
    draws: int = 3
    calibration: int = 500
    steps: int = 32
    seed: int = 0
    out: Path | None = None


def methods(steps: int) -> dict:
    """`{name: (how to convert, number of steps)}`, from few steps to many."""
    few = min(8, steps)
    return {
        "refining, 2 levels": (lambda *a: jb.presets.refining(*a, levels=2), few),
        "refining (preset, 4 levels)": (jb.presets.refining, few),
        "refining, 7 levels": (lambda *a: jb.presets.refining(*a, levels=7), few),
        "bursts, all remedies, γ = 5": (lambda *a: remedied(*a, gamma=5), few),
        "the same, each step corrected": (
            lambda *a: remedied(*a, gamma=5, each_step=True),
            few,
        ),
        "bursts, all remedies, γ = 10": (lambda *a: remedied(*a, gamma=10), few),
        "bursts of the paper, γ = 5": (jb.presets.paper, steps),
        "integrate-and-fire": (plain, 5 * steps),
        "quantised ANN, 4 bits": (lambda *a: quantised(*a, bits=4), 1),
        "quantised ANN, 2 bits": (lambda *a: quantised(*a, bits=2), 1),
    }


def remedied(layers, variables, images, *, gamma, each_step=False):
    """Repeating bursts with least-squares thresholds per channel, v_0 = θ/2, signed
    spikes, and means corrected for two steps or at each of the first four (FTBC)."""
    neuron = jb.Burst(gamma, signed=True)
    thresholds = jb.calibrate_mse(layers, variables, images, neuron)
    model = jb.Model(layers, neuron)
    spiking = jb.convert(layers, variables, thresholds)
    steps = 4 if each_step else 2
    return model, jb.correct(
        model, spiking, images[:200], steps=steps, each_step=each_step
    )


def plain(layers, variables, images):
    """One spike per step at most, the 99.9th percentile, v_0 = θ/2."""
    neuron = jb.Burst(1)
    thresholds = jb.calibrate(layers, variables, images, neuron)
    return jb.Model(layers, neuron), jb.convert(layers, variables, thresholds)


def quantised(layers, variables, images, *, bits):
    """The ANN with activations of a few bits: one step of bursts that start at θ/2."""
    neuron = jb.Burst(2**bits - 1)
    thresholds = jb.calibrate_mse(layers, variables, images, neuron)
    return jb.Model(layers, neuron), jb.convert(layers, variables, thresholds)


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    one_device_per_core()
    name = f"{config.dataset}_{config.source.arch}"
    folder = prepare_folder(config.out or Path("runs", "compare", name))
    dataset, layers, variables = config.source.load_trained(config.dataset)
    rng = np.random.default_rng(config.seed)
    draws = [
        dataset.train[rng.choice(len(dataset.train), config.calibration, False)].inputs
        for _ in range(config.draws)
    ]
    test = dataset.test[: config.limit]
    ann = jb.accuracy(layers, variables, test)
    print(f"ANN: {ann:.2%} of {len(test):,} test images")
    rows = []
    for method, (convert, steps) in methods(config.steps).items():
        row = measure(method, convert, steps, layers, variables, draws, test)
        if method.startswith("quantised"):
            row["energy_over_ann"] = [_INT8]  # multiplies and adds, not spikes
        rows.append(row)
        print(_line(rows[-1], ann), flush=True)
    chosen = {"refining (preset)": (jb.presets.refining, 4)}
    chosen["bursts, all remedies, γ = 10"] = (lambda *a: remedied(*a, gamma=10), 4)
    headlines = [
        measure(method, *way, layers, variables, draws[:1], dataset.test)
        for method, way in chosen.items()
    ]
    whole = jb.accuracy(layers, variables, dataset.test)
    table = _table(rows, ann) + "\n\n" + _headline(headlines, whole, len(dataset.test))
    print("\n" + table + "\n")
    write_json(
        folder / "compare.json",
        {
            "experiment": "compare",
            "config": dataclasses.asdict(config),
            "provenance": provenance(),
            "ann_accuracy": ann,
            "ann_accuracy_all": whole,
            "int8_ann_energy_over_ann": _INT8,
            "rows": rows,
            "headlines": headlines,
        },
    )
    write_file(folder / "compare.md", lambda path: path.write_text(table + "\n"))
    write_file(folder / "compare.png", lambda path: _draw(path, rows, ann, name))


_INT8 = energy.PICOJOULES_PER_INT8_MAC / energy.PICOJOULES_PER_MAC


def measure(method, convert, steps, layers, variables, draws, test) -> dict:
    """Converts by one method with each draw, and simulates."""
    accuracy, spent, seconds = [], [], []
    for images in draws:
        with silent_channels():
            model, spiking = convert(layers, variables, images)
        start = time.perf_counter()
        curves = jb.evaluate(model, spiking, test, steps)
        seconds.append(time.perf_counter() - start)
        accuracy.append(curves.accuracy)
        spent.append(energy.relative(layers, IMAGE, curves.events))
    relus = tuple(
        path
        for path, layer in jb.layers.walk(layers)
        if isinstance(layer, jb.layers.Relu)
    )
    few = min(steps, 8)
    trace = jb.simulate(model, spiking, draws[0][:20], few, record=relus)
    return {
        "method": method,
        "accuracy": np.mean(accuracy, 0).tolist(),
        "accuracy_spread": np.std(accuracy, 0).tolist(),
        "energy_over_ann": np.mean(spent, 0).tolist(),
        "largest_burst": int(max(jnp.abs(n).max() for n in trace.spikes.values())),
        "seconds": float(np.mean(seconds)),
    }


def _reached(row: dict, goal: float) -> str:
    """The first step, and the energy up to it, at which the accuracy is reached."""
    t = reached(row["accuracy"], goal)
    return f"T = {t} ({row['energy_over_ann'][t - 1]:.2f})" if t else "–"


def _line(row: dict, ann: float) -> str:
    last = len(row["accuracy"])
    return (
        f"{row['method']}: {row['accuracy'][-1]:.2%} at T = {last}, within 0.5 points "
        f"at {_reached(row, ann - 0.005)}"
    )


def _table(rows: list[dict], ann: float) -> str:
    shown = [1, 2, 3, 4, 8, 32]
    head = ["method", *(f"T = {t}" for t in shown), "within 1", "within 0.5"]
    head += ["max n", "seconds"]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [row["method"]]
        for t in shown:
            if t > len(row["accuracy"]):
                cells.append("")
                continue
            value, spread = row["accuracy"][t - 1], row["accuracy_spread"][t - 1]
            used = row["energy_over_ann"][t - 1]
            cells.append(f"{100 * value:.1f} ± {100 * spread:.1f} ({used:.2f})")
        cells += [_reached(row, ann - 0.01), _reached(row, ann - 0.005)]
        cells += [str(row["largest_burst"]), f"{row['seconds']:.0f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + (
        f"\n\nAccuracy in % ± standard deviation over draws (energy over the ANN's); "
        f"ANN {ann:.2%}. Quantised ANNs are charged for 8-bit arithmetic, though "
        "their weights are not quantised here; with 8-bit weights an accumulate, too, "
        "takes a ninth of what the spiking networks are charged for it."
    )


def _headline(rows: list[dict], ann: float, images: int) -> str:
    lines = [f"All {images:,} test images, ANN {ann:.2%}:", ""]
    for row in rows:
        values = zip(row["accuracy"], row["energy_over_ann"], strict=True)
        shown = (
            f"T = {t}: {value:.2%} ({used:.3f})"
            for t, (value, used) in enumerate(values, 1)
        )
        lines.append(f"- {row['method']}: {', '.join(shown)}")
    return "\n".join(lines)


def _draw(path: Path, rows: list[dict], ann: float, name: str) -> None:
    """Accuracy against energy, with the Pareto front of the spiking methods."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(8, 4.6), layout="constrained")
    points = []
    for row in rows:
        spent, accuracy = row["energy_over_ann"], 100 * np.array(row["accuracy"])
        marker = {"marker": "o", "markersize": 3.5, "linewidth": 1.2}
        if row["method"].startswith("quantised"):
            marker = {"marker": "D", "markersize": 6, "linewidth": 0}
        else:
            points += list(zip(spent, accuracy, strict=True))
        axis.plot(spent, accuracy, label=row["method"], **marker)
    front, best = [], -np.inf
    for spent, accuracy in sorted(points):
        if accuracy > best:
            front.append((spent, accuracy))
            best = accuracy
    axis.step(*zip(*front, strict=True), where="post", color="0.2", linewidth=0.8)
    axis.set_xscale("log")
    axis.set_ylim(100 * ann - 25, 100 * ann + 2)
    accuracy_against_energy(axis, ann, name)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)


if __name__ == "__main__":
    run(main)
