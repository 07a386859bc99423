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
from functools import partial
from pathlib import Path

import common
import numpy as np
import tyro

import jaxburst as jb

SHOWN = (1, 2, 3, 4, 8, 32)
INT8 = jb.energy.HOROWITZ_INT8.mac / jb.energy.HOROWITZ_FP32.mac


@dataclasses.dataclass(frozen=True)
class Config(common.Study):
    """Compares conversion methods on one trained network.

    Attributes:
      limit: number of test images for the comparison; the headline takes all.
      draws: how often calibration images are drawn.
      calibration: number of calibration images in a draw, from the training set.
      steps: time steps of the paper's method; few-step methods take up to 8, plain IF
        five times as many.
      seed: of the draws.
    """

    limit: int = 2000
    draws: int = 3
    calibration: int = 500
    steps: int = 32
    seed: int = 0


def remedied(network, variables, images, *, gamma, each_step=False):
    """Repeating bursts with least-squares thresholds per channel, v_0 = θ/2, signed
    spikes, and means corrected for two steps or at each of the first four (FTBC)."""
    neuron = jb.Burst(gamma, signed=True)
    model, spiking = least_squares(network, variables, images, neuron=neuron)
    steps = 4 if each_step else 2
    return model, jb.correct(
        model, spiking, images[:200], steps=steps, each_step=each_step
    )


def least_squares(network, variables, images, *, neuron):
    """Least-squares thresholds per channel, v_0 = θ/2. One step of bursts up to
    2^b - 1 is the ANN with activations of b bits."""
    thresholds = jb.calibrate_mse(network, variables, images, neuron)
    return jb.Model(network, neuron), jb.convert(network, variables, thresholds)


ALL_REMEDIES = "bursts, all remedies, γ = 10"


def methods(steps: int) -> dict:
    """`{name: (how to convert, number of steps)}`, from few steps to many."""
    few, refining = min(8, steps), jb.presets.refining
    each_step = partial(remedied, gamma=5, each_step=True)
    return {
        "refining, 2 levels": (partial(refining, levels=2), few),
        "refining (preset, 4 levels)": (refining, few),
        "refining, 7 levels": (partial(refining, levels=7), few),
        "bursts, all remedies, γ = 5": (partial(remedied, gamma=5), few),
        "the same, each step corrected": (each_step, few),
        ALL_REMEDIES: (partial(remedied, gamma=10), few),
        "bursts of the paper, γ = 5": (jb.presets.paper, steps),
        "integrate-and-fire": (partial(common.convert, neuron=jb.Burst(1)), 5 * steps),
        "quantised ANN, 4 bits": (partial(least_squares, neuron=jb.Burst(15)), 1),
        "quantised ANN, 2 bits": (partial(least_squares, neuron=jb.Burst(3)), 1),
    }


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    common.one_device_per_core()
    folder, dataset, network, variables = config.begin("compare")
    rng = np.random.default_rng(config.seed)
    count = config.calibration
    draws = [common.drawn(dataset, count, rng) for _ in range(config.draws)]
    test = dataset.test[: config.limit]
    ann = jb.accuracy(network, variables, test)
    print(f"ANN: {ann:.2%} of {len(test):,} test images")
    rows = []
    for method, way in methods(config.steps).items():
        row = measure(method, *way, network, variables, draws, test)
        if method.startswith("quantised"):
            row["energy_over_ann"] = [INT8]  # multiplies and adds, not spikes
        rows.append(row)
        print(
            f"{method}: {row['accuracy'][-1]:.2%} at T = {len(row['accuracy'])}, "
            f"within 0.5 points at {_reached(row, ann - 0.005)}",
            flush=True,
        )
    chosen = {
        "refining (preset)": jb.presets.refining,
        ALL_REMEDIES: partial(remedied, gamma=10),
    }
    headlines = [
        measure(method, way, 4, network, variables, draws[:1], dataset.test)
        for method, way in chosen.items()
    ]
    whole = jb.accuracy(network, variables, dataset.test)
    text = _table(rows, ann) + "\n\n" + _headline(headlines, whole, len(dataset.test))
    print("\n" + text + "\n")
    common.write_record(
        *(folder, "compare", config),
        ann_accuracy=ann,
        ann_accuracy_all=whole,
        int8_ann_energy_over_ann=INT8,
        rows=rows,
        headlines=headlines,
    )
    common.write_text(folder / "compare.md", text)
    _draw(folder / "compare.png", rows, ann, config.title)


def measure(method, way, steps, network, variables, draws, test) -> dict:
    """Converts by one method with each draw, and simulates."""
    found = []
    for images in draws:
        with common.silent_channels():
            model, spiking = way(network, variables, images)
        found.append(common.measure(model, spiking, test, steps)[0])
    few, some = min(steps, 8), draws[0][:20]
    spikes = jb.simulate(model, spiking, some, few, record=network.neurons).spikes
    accuracy, energy, seconds = (
        np.array([row[key] for row in found]) for key in found[0]
    )
    return {
        "method": method,
        "accuracy": accuracy.mean(0).tolist(),
        "accuracy_spread": accuracy.std(0).tolist(),
        "energy_over_ann": energy.mean(0).tolist(),
        "largest_burst": int(max(np.abs(n).max() for n in spikes.values())),
        "seconds": float(seconds.mean()),
    }


def _reached(row: dict, goal: float) -> str:
    """The first step, and the energy up to it, at which the accuracy is reached."""
    t = common.reached(row["accuracy"], goal)
    return f"T = {t} ({row['energy_over_ann'][t - 1]:.2f})" if t else "–"


def _table(rows: list[dict], ann: float) -> str:
    head = ["method", *(f"T = {t}" for t in SHOWN), "within 1", "within 0.5"]
    lines = []
    for row in rows:
        cells = [
            f"{100 * row['accuracy'][t - 1]:.1f} ± "
            f"{100 * row['accuracy_spread'][t - 1]:.1f} "
            f"({row['energy_over_ann'][t - 1]:.2f})"
            if t <= len(row["accuracy"])
            else ""
            for t in SHOWN
        ]
        cells += [_reached(row, ann - 0.01), _reached(row, ann - 0.005)]
        cells += [str(row["largest_burst"]), f"{row['seconds']:.0f}"]
        lines.append([row["method"], *cells])
    return common.markdown([*head, "max n", "seconds"], lines) + (
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


def _draw(path: Path, rows: list[dict], ann: float, title: str) -> None:
    """Accuracy against energy, with the Pareto front of the spiking methods."""
    with common.figure(path, figsize=(8, 4.6)) as (_, axis):
        points = []
        for row in rows:
            spent, accuracy = row["energy_over_ann"], 100 * np.array(row["accuracy"])
            style = {"marker": "o", "markersize": 3.5, "linewidth": 1.2}
            if row["method"].startswith("quantised"):
                style = {"marker": "D", "markersize": 6, "linewidth": 0}
            else:
                points += list(zip(spent, accuracy, strict=True))
            axis.plot(spent, accuracy, label=row["method"], **style)
        points = np.array(sorted(points))
        best = np.maximum.accumulate(points[:, 1])
        axis.step(points[:, 0], best, where="post", color="0.2", linewidth=0.8)
        axis.set_xscale("log")
        axis.set_ylim(100 * ann - 25, 100 * ann + 2)
        common.accuracy_against_energy(axis, ann, title)


if __name__ == "__main__":
    common.run(main)
