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

import common
import jax
import jax.numpy as jnp
import numpy as np
import tyro

import jaxburst as jb
from jaxburst.methods.analysis import CAUSES, LayerErrors

PARTS = {
    "inherited": ("#b8b8b8", "inherited from the layers below"),
    "inactivated": ("#c8451b", "spikes of inactivated neurons"),
    "initial": ("#e3b23c", "initial charge"),
    "remainder": ("#7fb2d9", "residual information: below the threshold"),
    "stuck": ("#1f4e79", "residual information: stuck above it"),
    "overfiring": ("#8e5ea2", "over-firing"),
    "pooling": ("#2a7f4f", "pooling error (rows of pools)"),
}
GAMMA = 5
LIMIT_STEPS, LIMIT_IMAGES = 256, 10
LEAST = 0.02  # percent; less is not drawn over time
LATERAL = "+ lateral pooling"


@dataclasses.dataclass(frozen=True)
class Config(common.Study):
    """Takes the conversion error of a trained network apart.

    Attributes:
      limit: number of test images; simulated as one batch.
      calibration: number of training images that are looked at for the thresholds.
      steps: number of time steps.
      seed: of the draw of calibration images.
    """

    limit: int = 100
    calibration: int = 500
    steps: int = 32
    seed: int = 0


def remedies(network, variables, images) -> dict[str, tuple[jb.Model, dict]]:
    """`{name: (model, spiking)}`: each adds one remedy to those before."""
    one, burst = jb.Burst(1), jb.Burst(GAMMA)
    signed = jb.Burst(GAMMA, signed=True)
    highest = jb.calibrate(network, variables, images, one)
    split = {name: theta / GAMMA for name, theta in highest.items()}
    with common.silent_channels():
        best = jb.methods.calibrate_mse(network, variables, images, burst)
    rows = {
        "integrate-and-fire": (one, "gated", highest, 0.0),
        f"+ bursts, γ = {GAMMA}": (burst, "gated", split, 0.0),
        LATERAL: (burst, "lateral", split, 0.0),
        "+ v₀ = θ/2": (burst, "lateral", split, 0.5),
        "+ signed spikes": (signed, "lateral", split, 0.5),
        "+ least-squares θ": (signed, "lateral", best, 0.5),
    }
    if not network.pools:
        del rows[LATERAL]
    return {
        name: (
            jb.Model(network, neuron, pool),
            jb.convert(network, variables, thresholds, initial=initial),
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
    return row._replace(mean=mean, size=size)


def relative(rows: list[LayerErrors], cause: str) -> np.ndarray:
    """Size over mean activation, `[layers, times]`; NaN where a cause is missing."""
    nothing = np.full_like(rows[0].size["total"], np.nan)
    return np.stack(
        [row.size.get(cause, nothing) / (row.activation or np.nan) for row in rows]
    )


def over_layers(rows: list[LayerErrors]) -> dict[str, np.ndarray]:
    """`{cause: [times]}`, in percent: the mean over the layers where it exists.

    The total is that of the neurons: what a pool adds, they inherit.
    """
    pools = [row for row in rows if "pooling" in row.size]
    neurons = [row for row in rows if "pooling" not in row.size]
    found = {}
    for cause in (*CAUSES, "total"):
        chosen = pools if cause == "pooling" else neurons
        if chosen:
            found[cause] = 100 * np.nanmean(relative(chosen, cause), 0)
    return found


def limit(network, variables, images) -> dict[str, np.ndarray]:
    """`{pool: [T]}`: T times the mean distance of the logits to the trained network's.

    No neuron is saturated: thresholds are the maximum over these very images, over γ.
    """
    neuron = jb.Burst(GAMMA)
    thresholds = jb.calibrate(network, variables, images, neuron, percentile=100)
    spiking = jb.convert(network, variables, thresholds)
    logits, found = np.asarray(jax.jit(network)(variables, images)), {}
    for pool in ("lateral", "gated"):
        model = jb.Model(network, neuron, pool)
        trace = jb.simulate(model, spiking, images, LIMIT_STEPS)
        distance = np.abs(np.asarray(trace.logits) - logits[None])
        found[pool] = distance.mean((1, 2)) * np.arange(1, LIMIT_STEPS + 1)
    return found


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    folder, dataset, network, variables = config.begin("errors")
    seen = common.drawn(dataset, config.calibration, np.random.default_rng(config.seed))
    images = dataset.test[: config.limit].inputs
    times, results = common.shown(config.steps), {}
    for method, (model, spiking) in remedies(network, variables, seen).items():
        rows = jb.analysis.errors(model, spiking, images, config.steps)
        results[method] = [at(row, times) for row in rows]
        total = over_layers(results[method])["total"][-1]
        print(f"{method}: {total:.2f}% of the activations at T = {times[-1]}")
    for method in (next(iter(results)), list(results)[-1]):
        print(f"\n{method}, T = {times[-1]}: mean absolute error over mean activation")
        print(jb.analysis.error_table(results[method], len(times)))
    print("\n" + _table(results, times) + "\n")
    found = {}
    if network.pools:
        found["limit"] = limit(network, variables, images[:LIMIT_IMAGES])
        print(_limit_table(found["limit"]) + "\n")
        _draw_limit(folder / "limit.png", found["limit"])
    common.write_record(
        *(folder, "errors", config),
        images=len(images),
        times=times,
        last_percent={  # of each layer, the total over its mean activation
            method: {
                row.name: 100 * row.size["total"][-1] / (row.activation or np.nan)
                for row in rows
            }
            for method, rows in results.items()
        },
        mean_over_layers_percent={
            method: over_layers(rows) for method, rows in results.items()
        },
        **found,
    )
    _draw_staircase(folder / "staircase.png")
    title = f"{config.source.arch}, {config.dataset}, {len(images):,} test images"
    _draw(folder / "errors.png", results, times, title)


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
    for t in common.shown(LIMIT_STEPS):
        lines.append(
            f"{t:>5}{found['lateral'][t - 1]:>10.2f}{found['gated'][t - 1]:>10.2f}"
        )
    return "\n".join(lines)


def _few(times: list[int]) -> list[int]:
    """Where a first, a middle and the last time stand among `times`."""
    return sorted({min(1, len(times) - 1), len(times) // 2, len(times) - 1})


def _draw(path: Path, results, times: list[int], title: str) -> None:
    """Rows: layers under the first method and under bursts; time; remedies."""
    few, methods = _few(times), list(results)
    paper = methods[2] if LATERAL in methods else methods[1]
    with common.figure(path, 4, 3, dpi=110, figsize=(14, 14)) as (whole, axes):
        for method, line in ((methods[0], axes[0]), (paper, axes[1])):
            for axis, i in zip(line, few, strict=False):
                _draw_layers(axis, results[method], i)
                axis.set_title(f"by layer: {_label(method, methods)}, T = {times[i]}")
            line[0].set_ylabel("mean |error| / mean activation (%)")
        for axis, method in zip(axes[2], (methods[0], paper, methods[-1]), strict=True):
            means = over_layers(results[method])
            for cause, (colour, _) in PARTS.items():
                if cause in means:
                    seen = np.where(means[cause] > LEAST, means[cause], np.nan)
                    style = {"color": colour, "marker": "o", "markersize": 4}
                    if cause == "remainder":
                        style |= {"linewidth": 5, "zorder": 1}
                    axis.plot(times, seen, **style)
            axis.plot(times, means["total"], color="k", linestyle="--")
            common.doubling(axis)
            axis.set_yscale("log")
            axis.set_ylim(bottom=LEAST)
            axis.yaxis.set_major_formatter("{x:g}")
            axis.set_title(f"by time: {_label(method, methods)}")
        axes[2][0].set_ylabel("mean over layers (%)")
        for axis, i in zip(axes[3], few, strict=False):
            means = [over_layers(rows) for rows in results.values()]
            parts = {
                cause: np.array(
                    [mean[cause][i] if cause in mean else 0 for mean in means]
                )
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
        there = {cause for row in results[methods[0]] for cause in row.size}
        handles = [
            axes[0][0].bar(0, 0, color=colour, label=label)
            for cause, (colour, label) in PARTS.items()
            if cause in there
        ]
        label = "the whole error (parts of opposite sign cancel)"
        handles += axes[0][0].plot([], [], "k--o", markersize=4, label=label)
        whole.suptitle(f"Conversion error by cause: {title}")
        place = {"loc": "outside lower center", "ncols": 3}
        whole.legend(handles=handles, frameon=False, **place)


def _draw_layers(axis, rows: list[LayerErrors], i: int) -> None:
    parts = {cause: 100 * relative(rows, cause)[:, i] for cause in (*CAUSES, "total")}
    _stack(axis.bar, "bottom", parts)
    axis.scatter(range(len(rows)), parts["total"], color="k", s=14, zorder=3)
    axis.set_ylim(bottom=0)
    every = -(-len(rows) // 28)  # more would overlap
    names = [row.name for row in rows][::every]
    axis.set_xticks(range(0, len(rows), every), names, rotation=90, fontsize=6)


def _label(method: str, methods: list[str]) -> str:
    """A remedy includes those before."""
    if method == methods[-1]:
        return "all remedies"
    return "bursts, lateral pooling" if method == LATERAL else method.removeprefix("+ ")


def _stack(bar, start: str, parts) -> None:
    """Stacked bars of all causes; `start` is the side where they stand."""
    positions = range(len(parts["total"]))
    below = np.zeros(len(positions))
    for cause, (colour, _) in PARTS.items():
        values = np.nan_to_num(parts[cause])
        bars = bar(positions, values, 0.75, **{start: below}, color=colour)
        for patch in bars:  # leave room beyond the last
            patch.sticky_edges.x.clear()
            patch.sticky_edges.y.clear()
        below += values


def staircase(neuron: jb.Burst, theta, initial, currents, steps: int) -> jax.Array:
    """The rate `θ N / T` of one neuron for each constant current."""
    threshold = jb.neurons.Threshold(*map(jnp.asarray, (theta, initial, 0.0)))
    state = neuron.rest(threshold, currents.shape, currents.dtype)
    total = jnp.zeros_like(currents)
    for t in range(1, steps + 1):
        state, spikes = neuron.step(threshold, state, currents, jnp.asarray(t))
        total += theta * spikes
    return total / steps


def _draw_staircase(path: Path) -> None:
    """Rate against current: with the same threshold, and for the same range."""
    steps, most = 8, 2.0
    currents = jnp.linspace(-0.4, 1.25 * most, 1500)
    with common.figure(path, 1, 2, figsize=(10, 4.2)) as (_, axes):
        for axis, thetas, title in (
            (axes[0], (1.0, 1.0), f"the same threshold θ = 1, T = {steps}, v₀ = 0"),
            (
                axes[1],
                (most, most / GAMMA),
                f"the same range, [0, {most:g}], T = {steps}",
            ),
        ):
            axis.plot(currents, jnp.maximum(currents, 0), "k--", label="ReLU", lw=1)
            kinds = {"IF": "integrate-and-fire", "burst": f"burst, γ = {GAMMA}"}
            for kind, gamma, theta in zip(kinds, (1, GAMMA), thetas, strict=True):
                rate = staircase(jb.Burst(gamma), theta, 0.0, currents, steps)
                label = f"{kinds[kind]}, θ = {theta:g}"
                axis.plot(
                    currents, rate, color=common.COLOURS[kind], label=label, lw=1.6
                )
            axis.set(title=title, xlabel="current")
            axis.grid(alpha=0.3)
        rate = staircase(jb.Burst(1), most, 0.5, currents, steps)
        label = "integrate-and-fire, v₀ = θ/2"
        axes[1].plot(currents, rate, ":", color=common.COLOURS["IF"], label=label)
        axes[0].set_ylabel("rate θN/T")
        for axis in axes:
            axis.legend(frameon=False)


def _draw_limit(path: Path, found: dict[str, np.ndarray]) -> None:
    with common.figure(path, figsize=(6, 4)) as (_, axis):
        times = np.arange(1, LIMIT_STEPS + 1)
        for pool, colour in (("lateral", "#2a7f4f"), ("gated", "#c8451b")):
            axis.plot(times, found[pool], color=colour, label=f"{pool} pooling")
        common.doubling(axis, "time steps T")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.set_title(
            f"bursts, γ = {GAMMA}, none saturated: flat is an error like 1/T"
        )
        axis.set_ylabel("T × mean distance to the ANN's logits")
        axis.legend(frameon=False)


if __name__ == "__main__":
    common.run(main)
