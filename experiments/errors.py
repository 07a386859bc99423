"""Where the conversion error comes from, by layer, time and cause, and what mends it.

    python experiments/errors.py --dataset cifar10 --arch resnet20 \\
        --torch-weights resnet20.safetensors --mean .485 .456 .406 --std .229 .224 .225

Takes under a minute of one CPU core with `--limit 20 --calibration 100`, and reaches,
in mean absolute error over mean activation, averaged over layers, at T = 32: 38.1 % for
integrate-and-fire, 10.8 % with bursts, 7.4 % with v_0 = θ/2 and 5.7 % with signed
spikes. Least-squares thresholds are for few steps: 29.1 % instead of 35.2 % at T = 2,
but what is stuck stays, 14.9 % at T = 32.

Starts from integrate-and-fire neurons and adds one remedy after the other; each time
`jaxburst.analysis.errors` splits the error of all rates exactly. `errors.png` shows the
parts by time and by remedy, `layers.png` the whole error by layer. For a network with
max pooling, `limit.png` shows that its logits come as close as one likes to the trained
network's under lateral pooling, and do not under gating.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import common
import jax
import numpy as np

import jaxburst as jb
from jaxburst.methods.analysis import CAUSES, LayerErrors

PARTS = {
    "inherited": ("#b8b8b8", "inherited from the layers below"),
    "inactivated": ("#c8451b", "spikes of inactivated neurons"),
    "initial": ("#e3b23c", "initial charge"),
    "remainder": ("#7fb2d9", "residual information: below the threshold"),
    "stuck": ("#1f4e79", "residual information: stuck above it"),
    "overfiring": ("#8e5ea2", "over-firing"),
    "pooling": ("#2a7f4f", "pooling error, of pools alone"),
}
GAMMA = 5
LIMIT_STEPS, LIMIT_IMAGES = 256, 10
LEAST = 0.02  # percent; less is not drawn over time
LATERAL = "+ lateral pooling"


@dataclasses.dataclass(frozen=True, kw_only=True)
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


def measure(config: Config, run: common.Kept) -> dict:
    """The errors of every remedy."""
    dataset, network, variables = config.load(run)
    seen = common.drawn(dataset, config.calibration, np.random.default_rng(config.seed))
    images = dataset.test[: config.limit].inputs
    times, methods = common.shown(config.steps), remedies(network, variables, seen)

    def one(method: str) -> dict:
        model, spiking = methods[method]()
        rows = jb.analysis.errors(model, spiking, images, config.steps)
        return {
            "mean_over_layers_percent": over_layers(rows, times),
            "last_percent": {
                row.name: relative(row, times[-1:])["total"][0]
                for row in rows
                if "pooling" not in row.size
            },
        }

    found = {method: run(method, one, method) for method in methods}
    record = {"images": len(images), "times": times, "methods": found}
    if network.pools:
        some = images[:LIMIT_IMAGES]
        record["limit"] = run("limit", limit, network, variables, some)
    return record


def remedies(network, variables, images) -> dict:
    """`{name: makes (model, spiking)}`: each adds one remedy to those before."""
    one, burst = jb.Burst(1), jb.Burst(GAMMA)
    signed = jb.Burst(GAMMA, signed=True)

    def made(neuron, pool: str, initial: float, best: bool = False):
        if best:
            thresholds = jb.methods.calibrate_mse(network, variables, images, burst)
        else:
            levels = one if neuron == one else burst
            thresholds = jb.calibrate(network, variables, images, levels)
        spiking = jb.convert(network, variables, thresholds, initial=initial)
        return jb.Model(network, neuron, pool), spiking

    rows = {
        "integrate-and-fire": (one, "gated", 0.0),
        f"+ bursts, γ = {GAMMA}": (burst, "gated", 0.0),
        LATERAL: (burst, "lateral", 0.0),
        "+ v₀ = θ/2": (burst, "lateral", 0.5),
        "+ signed spikes": (signed, "lateral", 0.5),
        "+ least-squares θ": (signed, "lateral", 0.5, True),
    }
    if not network.pools:
        del rows[LATERAL]
    return {name: lambda row=row: made(*row) for name, row in rows.items()}


def relative(row: LayerErrors, times: list[int]) -> dict[str, np.ndarray]:
    """`{cause: [times]}`: mean size over mean activation, in percent."""
    steps, whole = np.array(times) - 1, row.activation or np.nan
    return {cause: 100 * size[steps] / whole for cause, size in row.size.items()}


def over_layers(rows: list[LayerErrors], times: list[int]) -> dict[str, np.ndarray]:
    """`{cause: [times]}`, in percent: the mean over the layers where it exists.

    The total is that of the neurons: what a pool adds, they inherit.
    """
    found = {}
    for cause in (*CAUSES, "total"):
        values = [
            relative(row, times)[cause]
            for row in rows
            if cause in row.size and ("pooling" in row.size) == (cause == "pooling")
        ]
        if values:
            found[cause] = np.nanmean(values, 0)
    return found


def limit(network, variables, images) -> dict:
    """`{pool: [T]}`: T times the mean distance of the logits to the trained network's.

    No neuron is saturated: thresholds are the maximum over these very images, over γ.
    """
    neuron = jb.Burst(GAMMA)
    thresholds = jb.calibrate(network, variables, images, neuron, percentile=100)
    spiking = jb.convert(network, variables, thresholds)
    logits = np.asarray(jax.jit(network)(variables, images))
    times = common.sampled(LIMIT_STEPS)
    found = {"times": times}
    for pool in ("lateral", "gated"):
        model = jb.Model(network, neuron, pool)
        trace = jb.simulate(model, spiking, images, LIMIT_STEPS)
        distance = np.abs(np.asarray(trace.logits) - logits[None]).mean((1, 2))
        found[pool] = distance[times - 1] * times
    return found


def text(record: dict) -> str:
    """Every remedy at a few times: the mean over the layers, in percent."""
    times, rows = record["times"], []
    for method, found in record["methods"].items():
        means = found["mean_over_layers_percent"]
        for i in _few(times):
            cells = [f"{means[c][i]:.2f}" if c in means else "" for c in _causes()]
            rows.append([method, str(times[i]), *cells])
    head = ["% of the activations", "T", *_causes()]
    lines = [common.markdown(head, rows)]
    if "limit" in record:
        found = record["limit"]
        values = zip(found["times"], found["lateral"], found["gated"], strict=True)
        rows = [
            [str(t), f"{lateral:.2f}", f"{gated:.2f}"]
            for t, lateral, gated in values
            if t in common.shown(LIMIT_STEPS)
        ]
        lines += ["", "T × distance to the trained network's logits, by pooling", ""]
        lines += [common.markdown(["T", "lateral", "gated"], rows)]
    return "\n".join(lines)


def _causes() -> list[str]:
    return [*CAUSES, "total"]


def _few(times: list[int]) -> list[int]:
    """Where a first, a middle and the last time stand among `times`."""
    return sorted({min(1, len(times) - 1), len(times) // 2, len(times) - 1})


def draw(record: dict, folder: Path) -> None:
    """By time for three methods, by remedy at three times; and by layer."""
    times, methods = record["times"], list(record["methods"])
    means = {
        name: of["mean_over_layers_percent"] for name, of in record["methods"].items()
    }
    chosen = [methods[0], LATERAL if LATERAL in means else methods[1], methods[-1]]
    path = folder / "errors.png"
    with common.figure(path, 2, 3, figsize=(14, 8)) as (whole, (above, below)):
        for axis, method in zip(above, chosen, strict=True):
            for cause, (colour, _) in PARTS.items():
                if cause in means[method]:
                    values = np.array(means[method][cause])
                    style = {"color": colour, "marker": "o", "ms": 4}
                    if cause == "remainder":  # others lie on it
                        style |= {"lw": 5, "zorder": 1}
                    axis.plot(times, np.where(values > LEAST, values, np.nan), **style)
            axis.plot(times, means[method]["total"], color="k", linestyle="--")
            jb.plot.doubling(axis, "time steps")
            axis.set_yscale("log")
            axis.set_ylim(bottom=LEAST)
            axis.yaxis.set_major_formatter("{x:g}")
            axis.set_title(f"by time: {_label(method, methods)}")
        above[0].set_ylabel("mean |error| / mean activation (%)")
        for axis, i in zip(below, _few(times), strict=False):
            start = np.zeros(len(methods))
            for cause, (colour, _) in PARTS.items():
                values = [
                    mean[cause][i] if cause in mean else 0 for mean in means.values()
                ]
                axis.barh(methods, values, 0.75, left=start, color=colour)
                start += values
            total = [mean["total"][i] for mean in means.values()]
            axis.scatter(total, methods, color="k", s=20, zorder=3)
            axis.set_yticks(range(len(methods)), methods if axis is below[0] else [])
            axis.set_xlim(0, 1.05 * max(start.max(), max(total)))
            axis.invert_yaxis()
            axis.set(title=f"by remedy, T = {times[i]}", xlabel="mean over layers (%)")
        for axis in (*above, *below):
            axis.set_visible(axis.has_data())
            axis.spines[["top", "right"]].set_visible(False)
        handles = [
            above[0].bar(1, np.nan, color=colour, label=label)
            for cause, (colour, label) in PARTS.items()
            if any(cause in mean for mean in means.values())
        ]
        label = "the whole error (parts of opposite sign cancel)"
        handles += above[0].plot([], [], "k--o", markersize=4, label=label)
        whole.suptitle(f"Conversion error by cause: {_about(record)}")
        place = {"loc": "outside lower center", "ncols": 3}
        whole.legend(handles=handles, frameon=False, **place)
    _draw_layers(folder / "layers.png", record)
    if "limit" in record:
        _draw_limit(folder / "limit.png", record)


def _draw_layers(path: Path, record: dict) -> None:
    """The whole error of each layer after all steps, a curve for each remedy."""
    with common.figure(path, figsize=(9, 4.2)) as (_, axis):
        for i, (method, of) in enumerate(record["methods"].items()):
            names, values = list(of["last_percent"]), list(of["last_percent"].values())
            style = {"color": jb.plot.COLOURS[i], "marker": "os^Dv<"[i], "ms": 3}
            axis.plot(range(len(names)), values, label=method, **style)
        every = -(-len(names) // 28)  # more would overlap
        axis.set_xticks(range(0, len(names), every), names[::every], rotation=90)
        axis.tick_params(axis="x", labelsize=7)
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.grid(alpha=0.3)
        axis.set_ylabel("mean |error| / mean activation (%)")
        axis.set_title(f"Error by layer, T = {record['times'][-1]}: {_about(record)}")
        axis.legend(frameon=False, fontsize=8, ncols=2)


def _about(record: dict) -> str:
    return f"{common.title_of(record)}, {record['images']:,} test images"


def _label(method: str, methods: list[str]) -> str:
    """A remedy includes those before."""
    if method == methods[-1]:
        return "all remedies"
    return "bursts, lateral pooling" if method == LATERAL else method.removeprefix("+ ")


def _draw_limit(path: Path, record: dict) -> None:
    found = record["limit"]
    with common.figure(path, figsize=(6, 4)) as (_, axis):
        for i, pool in enumerate(("lateral", "gated")):
            style = {"color": jb.plot.COLOURS[i], "marker": "os"[i], "ms": 3}
            axis.plot(found["times"], found[pool], label=f"{pool} pooling", **style)
        jb.plot.doubling(axis, "time steps T")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        axis.yaxis.set_minor_formatter("")
        axis.set_title(
            f"{common.title_of(record)}: bursts, γ = {GAMMA}, none saturated;\n"
            "flat is an error like 1/T",
            fontsize=10,
        )
        axis.set_ylabel("T × mean distance to the ANN's logits")
        axis.legend(frameon=False)


if __name__ == "__main__":
    common.answer("errors", Config, measure, text, draw, __doc__)
