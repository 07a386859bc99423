"""Where the conversion error comes from, by layer, time and cause, and what mends it.

    python experiments/errors.py --dataset cifar10 --arch resnet20 \\
        --torch-weights resnet20.safetensors --mean .485 .456 .406 --std .229 .224 .225

Takes under a minute of one CPU core with `--limit 20 --calibration 100`, and reaches,
in mean absolute error over mean activation, averaged over layers, at T = 32: 38.1 % for
integrate-and-fire, 10.8 % with bursts, 7.4 % with v_0 = θ/2 and 5.7 % with signed
spikes. Least-squares thresholds are for few steps: 29.1 % instead of 35.2 % at T = 2,
but what is stuck stays, 14.9 % at T = 32.

Starts from integrate-and-fire neurons and adds one remedy after the other; each time
`jaxburst.analysis.errors` splits the error of all rates exactly. `staircase.png` shows
what one neuron makes of its current, `errors.png` the parts by layer, by time and by
remedy. For a network with max pooling, `limit.png` shows that its logits come as close
as one likes to the trained network's under lateral pooling, and do not under gating.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from cifar import Source, run
from common import (
    prepare_folder,
    provenance,
    shown,
    silent_channels,
    write_file,
    write_json,
)

import jaxburst as jb
from jaxburst.analysis import CAUSES, LayerErrors
from jaxburst.layers import MaxPool, walk
from jaxburst.neuron import Membrane, Threshold, fire

COLOURS = {
    "inherited": ("#b8b8b8", "inherited from the layers below"),
    "inactivated": ("#c8451b", "spikes of inactivated neurons"),
    "initial": ("#e3b23c", "initial charge"),
    "remainder": ("#7fb2d9", "residual information: below the threshold"),
    "stuck": ("#1f4e79", "residual information: stuck above it"),
    "overfiring": ("#8e5ea2", "over-firing"),
    "pooling": ("#2a7f4f", "pooling error (MaxPool rows)"),
}
GAMMA = 5
LIMIT_STEPS, LIMIT_IMAGES = 256, 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Takes the conversion error of a trained network apart.

    Attributes:
      dataset: what the network was trained on.
      source: which network, with which weights and data.
      limit: number of test images; simulated as one batch.
      calibration: number of training images that are looked at for the thresholds.
      steps: number of time steps.
      seed: of the draw of calibration images.
      out: folder for the results; runs/errors/DATASET_ARCH if not given.
    """

    dataset: Literal["cifar10", "cifar100"] = "cifar10"
    source: tyro.conf.OmitArgPrefixes[Source] = Source()
    limit: int = 100
    calibration: int = 500
    steps: int = 32
    seed: int = 0
    out: Path | None = None

    def __post_init__(self):
        for name in ("limit", "calibration", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"--{name} must be at least 1, found {getattr(self, name)}"
                )


def remedies(layers, variables, images) -> dict[str, tuple[jb.Model, dict]]:
    """`{name: (model, spiking)}`: each adds one remedy to those before."""
    pooled = any(isinstance(layer, MaxPool) for _, layer in walk(layers))
    one, burst = jb.Burst(1), jb.Burst(GAMMA)
    signed = jb.Burst(GAMMA, signed=True)
    highest = jb.calibrate(layers, variables, images, one)
    split = {path: theta / GAMMA for path, theta in highest.items()}
    with silent_channels():
        best = jb.calibrate_mse(layers, variables, images, burst)
    rows = {
        "integrate-and-fire": (one, "gated", highest, 0.0),
        f"+ bursts, γ = {GAMMA}": (burst, "gated", split, 0.0),
        "+ lateral pooling": (burst, "lateral", split, 0.0),
        "+ v₀ = θ/2": (burst, "lateral", split, 0.5),
        "+ signed spikes": (signed, "lateral", split, 0.5),
        "+ least-squares θ": (signed, "lateral", best, 0.5),
    }
    if not pooled:
        del rows["+ lateral pooling"]
    return {
        name: (
            jb.Model(layers, neuron, pool),
            jb.convert(layers, variables, thresholds, initial=initial),
        )
        for name, (neuron, pool, thresholds, initial) in rows.items()
    }


def at(row: LayerErrors, times: list[int]) -> LayerErrors:
    """The errors after these steps only."""
    steps = np.array(times) - 1
    mean, size = (
        {cause: values[steps] for cause, values in found.items()}
        for found in (row.mean, row.size)
    )
    return LayerErrors(row.path, row.activation, mean, size)


def relative(rows: list[LayerErrors], cause: str) -> np.ndarray:
    """Size over mean activation, `[layers, times]`; NaN where a cause is missing."""
    nothing = np.full_like(rows[0].size["total"], np.nan)
    return np.stack(
        [row.size.get(cause, nothing) / (row.activation or np.nan) for row in rows]
    )


def over_layers(rows: list[LayerErrors]) -> dict[str, np.ndarray]:
    """`{cause: [times]}`, in percent: the mean over the layers where it exists.

    The total is that of the Relus: what a MaxPool adds, they inherit.
    """
    pools = [row for row in rows if "pooling" in row.size]
    relus = [row for row in rows if "pooling" not in row.size]
    found = {}
    for cause in (*CAUSES, "total"):
        chosen = pools if cause == "pooling" else relus
        if chosen:
            found[cause] = 100 * np.nanmean(relative(chosen, cause), 0)
    return found


def limit(layers, variables, images) -> dict[str, np.ndarray]:
    """`{pool: [T]}`: T times the mean distance of the logits to the trained network's.

    No neuron is saturated: thresholds are the maximum over these very images, over γ.
    """
    neuron = jb.Burst(GAMMA)
    thresholds = jb.calibrate(layers, variables, images, neuron, percentile=100)
    spiking = jb.convert(layers, variables, thresholds)
    logits, _ = jax.jit(jb.conversion.forward, static_argnums=0)(
        layers, spiking, images
    )
    found = {}
    for pool in ("lateral", "gated"):
        model = jb.Model(layers, neuron, pool)
        trace = jb.simulate(model, spiking, images, LIMIT_STEPS)
        distance = np.abs(np.asarray(trace.logits) - np.asarray(logits)[None])
        found[pool] = distance.mean((1, 2)) * np.arange(1, LIMIT_STEPS + 1)
    return found


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    name = f"{config.dataset}_{config.source.arch}"
    folder = prepare_folder(config.out or Path("runs", "errors", name))
    dataset, layers, variables = config.source.load_trained(config.dataset)
    rng = np.random.default_rng(config.seed)
    drawn = rng.choice(len(dataset.train), config.calibration, replace=False)
    images = dataset.test[: config.limit].inputs
    times = shown(config.steps)
    results = {}
    converted = remedies(layers, variables, dataset.train[drawn].inputs)
    for method, (model, spiking) in converted.items():
        rows = jb.analysis.errors(model, spiking, images, config.steps)
        results[method] = [at(row, times) for row in rows]
        total = over_layers(results[method])["total"][-1]
        print(f"{method}: {total:.2f}% of the activations at T = {times[-1]}")
    record = {
        "experiment": "errors",
        "config": dataclasses.asdict(config),
        "provenance": provenance(),
        "images": len(images),
        "times": times,
        "layers": {
            method: [row._asdict() for row in rows] for method, rows in results.items()
        },
        "mean_over_layers_percent": {
            method: over_layers(rows) for method, rows in results.items()
        },
    }
    for method in (next(iter(results)), list(results)[-1]):
        print(f"\n{method}, T = {times[-1]}: mean absolute error over mean activation")
        print(jb.analysis.error_table(results[method], len(times)))
    print("\n" + _table(results, times) + "\n")
    if any(isinstance(layer, MaxPool) for _, layer in walk(layers)):
        record["limit"] = limit(layers, variables, images[:LIMIT_IMAGES])
        print(_limit_table(record["limit"]) + "\n")
        write_file(
            folder / "limit.png", lambda path: _draw_limit(path, record["limit"])
        )
    write_json(folder / "errors.json", _plain(record))
    write_file(folder / "staircase.png", _draw_staircase)
    title = f"{config.source.arch}, {config.dataset}, {len(images):,} test images"
    write_file(folder / "errors.png", lambda path: _draw(path, results, times, title))


def _plain(value):
    """Arrays as lists, for JSON."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value.tolist() if isinstance(value, np.ndarray) else value


def _table(results, times) -> str:
    """Every remedy at a few times: the mean over the layers, in percent."""
    causes = [*CAUSES, "total"]
    head = f"{'in % of the activations':<24}{'T':>5}"
    lines = [head + "".join(f"{cause:>13}" for cause in causes)]
    for method, rows in results.items():
        means = over_layers(rows)
        for i in _few(times):
            cells = (
                f"{means[cause][i]:>13.2f}" if cause in means else " " * 13
                for cause in causes
            )
            lines.append(f"{method:<24}{times[i]:>5}" + "".join(cells))
    return "\n".join(lines)


def _limit_table(found) -> str:
    lines = [
        "T × distance to the trained network's logits",
        "    T   lateral     gated",
    ]
    for t in shown(LIMIT_STEPS):
        lines.append(
            f"{t:>5}{found['lateral'][t - 1]:>10.2f}{found['gated'][t - 1]:>10.2f}"
        )
    return "\n".join(lines)


def _few(times: list[int]) -> list[int]:
    """Where a first, a middle and the last time stand among `times`."""
    return sorted({min(1, len(times) - 1), len(times) // 2, len(times) - 1})


def _pyplot():
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt


def _draw(path: Path, results, times: list[int], title: str) -> None:
    """Rows: layers under the first method and under bursts; time; remedies."""
    plt = _pyplot()
    few, methods = _few(times), list(results)
    paper = methods[2] if "+ lateral pooling" in methods else methods[1]
    names = [row.path for row in results[methods[0]]]
    figure, axes = plt.subplots(
        4, 3, figsize=(14, 14), layout="constrained", squeeze=False
    )
    for method, line in ((methods[0], axes[0]), (paper, axes[1])):
        for axis, i in zip(line, few, strict=False):
            parts = {
                cause: 100 * relative(results[method], cause)[:, i]
                for cause in (*CAUSES, "total")
            }
            _stack(axis.bar, "bottom", parts)
            axis.scatter(range(len(names)), parts["total"], color="k", s=14, zorder=3)
            axis.set_ylim(bottom=0)
            every = -(-len(names) // 28)  # more would overlap
            ticks = range(0, len(names), every)
            axis.set_xticks(ticks, names[::every], rotation=90, fontsize=6)
            axis.set_title(f"by layer: {_label(method, methods)}, T = {times[i]}")
        line[0].set_ylabel("mean |error| / mean activation (%)")
    for axis, method in zip(axes[2], (methods[0], paper, methods[-1]), strict=True):
        means = over_layers(results[method])
        for cause, (colour, _) in COLOURS.items():
            if cause in means:
                wide = {"linewidth": 5, "zorder": 1} if cause == "remainder" else {}
                seen = np.where(means[cause] > _LEAST, means[cause], np.nan)
                axis.plot(times, seen, color=colour, marker="o", markersize=4, **wide)
        axis.plot(times, means["total"], color="k", linestyle="--")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_ylim(bottom=_LEAST)
        axis.xaxis.set_major_formatter("{x:.0f}")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.set(title=f"by time: {_label(method, methods)}", xlabel="time steps")
        axis.grid(alpha=0.3)
    axes[2][0].set_ylabel("mean over layers (%)")
    for axis, i in zip(axes[3], few, strict=False):
        means = [over_layers(rows) for rows in results.values()]
        parts = {
            cause: np.array([mean.get(cause, [0] * len(times))[i] for mean in means])
            for cause in (*CAUSES, "total")
        }
        _stack(axis.barh, "left", parts)
        axis.scatter(parts["total"], range(len(methods)), color="k", s=20, zorder=3)
        axis.set_yticks(range(len(methods)), methods if axis is axes[3][0] else [])
        axis.set_xlim(left=0)
        axis.invert_yaxis()
        axis.set(title=f"by remedy, T = {times[i]}", xlabel="mean over layers (%)")
    for axis in axes.flat:
        axis.set_visible(axis.has_data())
        axis.spines[["top", "right"]].set_visible(False)
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=colour, label=label)
        for cause, (colour, label) in COLOURS.items()
        if any(cause in row.size for row in results[methods[0]])
    ]
    whole = "the whole error (parts of opposite sign cancel)"
    handles += plt.plot([], [], "k--o", markersize=4, label=whole)
    figure.suptitle(f"Conversion error by cause: {title}")
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


_LEAST = 0.02  # percent; less is not drawn over time


def _label(method: str, methods: list[str]) -> str:
    """A remedy includes those before."""
    if method == methods[-1]:
        return "all remedies"
    if method == "+ lateral pooling":
        return "bursts, lateral pooling"
    return method.removeprefix("+ ")


def _stack(bar, start: str, parts) -> None:
    """Stacked bars of all causes; `start` is the side where they stand."""
    positions = range(len(parts["total"]))
    below = np.zeros(len(positions))
    for cause, (colour, _) in COLOURS.items():
        values = np.nan_to_num(parts[cause])
        bars = bar(positions, values, 0.75, **{start: below}, color=colour)
        for patch in bars:  # leave room beyond the last
            patch.sticky_edges.x.clear()
            patch.sticky_edges.y.clear()
        below += values


def staircase(neuron: jb.Burst, theta, initial, currents, steps: int) -> jax.Array:
    """The rate `θ N / T` of one neuron for each constant current."""
    threshold = Threshold(*(jnp.asarray(x) for x in (theta, initial, 0.0)))
    membrane = Membrane(jnp.full_like(currents, theta * initial), None)
    total = jnp.zeros_like(currents)
    for _ in range(steps):
        membrane, spikes = fire(neuron, threshold, membrane, currents)
        total += theta * spikes
    return total / steps


def _draw_staircase(path: Path) -> None:
    """Rate against current: with the same threshold, and for the same range."""
    plt = _pyplot()
    steps, most = 8, 2.0
    currents = jnp.linspace(-0.4, 1.25 * most, 1500)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.2), layout="constrained")
    for axis, thetas, title in (
        (axes[0], (1.0, 1.0), f"the same threshold θ = 1, T = {steps}, v₀ = 0"),
        (axes[1], (most, most / GAMMA), f"the same range, [0, {most:g}], T = {steps}"),
    ):
        axis.plot(currents, jnp.maximum(currents, 0), "k--", label="ReLU", linewidth=1)
        for gamma, theta, colour in zip(
            (1, GAMMA), thetas, ("#3a6ea5", "#c8451b"), strict=True
        ):
            kind = "integrate-and-fire" if gamma == 1 else f"burst, γ = {gamma}"
            rate = staircase(jb.Burst(gamma), theta, 0.0, currents, steps)
            label = f"{kind}, θ = {theta:g}"
            axis.plot(currents, rate, color=colour, label=label, linewidth=1.6)
        axis.set(title=title, xlabel="current")
        axis.grid(alpha=0.3)
    rate = staircase(jb.Burst(1), most, 0.5, currents, steps)
    label = "integrate-and-fire, v₀ = θ/2"
    axes[1].plot(currents, rate, color="#3a6ea5", linestyle=":", label=label)
    axes[0].set_ylabel("rate θN/T")
    for axis in axes:
        axis.legend(frameon=False)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)


def _draw_limit(path: Path, found: dict[str, np.ndarray]) -> None:
    plt = _pyplot()
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    times = np.arange(1, LIMIT_STEPS + 1)
    for pool, colour in (("lateral", "#2a7f4f"), ("gated", "#c8451b")):
        axis.plot(times, found[pool], color=colour, label=f"{pool} pooling")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.xaxis.set_major_formatter("{x:.0f}")
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter("")
    axis.set(
        title=f"bursts, γ = {GAMMA}, none saturated: flat is an error like 1/T",
        xlabel="time steps T",
        ylabel="T × mean distance to the ANN's logits",
    )
    axis.grid(alpha=0.3)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)


if __name__ == "__main__":
    run(main)
