"""Where the conversion error comes from, by layer, time and cause, and what mends it.

    python experiments/errors.py --dataset cifar10 --arch resnet20 \\
        --torch-weights resnet20.safetensors --mean .485 .456 .406 --std .229 .224 .225

Starts from integrate-and-fire neurons and adds one remedy after the other; each time
`jaxburst.analysis.errors` splits the error of all rates exactly. `errors.png` shows the
parts by time and by remedy, `layers.png` the whole error by layer. For a network with
max pooling, `limit.png` shows that its logits come as close as one likes to the trained
network's under lateral pooling, and do not under gating. All images are one batch.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import common
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
SIZE = "mean |error| / mean activation (%)"
LEAST = 0.02  # percent; less is not drawn over time
LATERAL = "+ lateral pooling"
REMEDIES = {
    f"+ bursts, γ = {GAMMA}": {"neuron": jb.Burst(GAMMA)},
    LATERAL: {"pool": "lateral"},
    "+ v₀ = θ/2": {"initial": 0.5},
    "+ signed spikes": {"neuron": jb.Burst(GAMMA, signed=True)},
    "+ least-squares θ": {"percentile": None},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Study):
    """Takes the conversion error of a trained network apart."""

    limit: int = 100  # test images, all in one batch
    calibration: int = 500
    steps: int = 32  # number of time steps
    seed: int = 0  # of the draw of calibration images


def measure(config: Config, run: common.Kept) -> dict:
    """The errors of every remedy."""
    dataset, network, variables = config.load(run)
    seen = common.drawn(dataset, config.calibration, np.random.default_rng(config.seed))
    images = dataset.test[: config.limit].inputs
    times, methods = common.shown(config.steps), remedies(bool(network.pools))

    def one(method: str) -> dict:
        model, spiking = methods[method](network, variables, seen)
        rows = jb.analysis.errors(model, spiking, images, config.steps)
        neurons = [row for row in rows if "pooling" not in row.size]
        return {
            "mean_over_layers_percent": over_layers(rows, np.array(times) - 1),
            "last_percent": {row.name: relative(row, "total")[-1] for row in neurons},
        }

    found = {method: run(method, one, method) for method in methods}
    record = {"images": len(images), "times": times, "methods": found}
    if network.pools:
        some = images[:LIMIT_IMAGES]
        record["limit"] = run("limit", limit, network, variables, some)
    return record


def remedies(pools: bool) -> dict[str, common.Conversion]:
    """Each adds one remedy to those before."""
    setting = common.Conversion(neuron=jb.Burst(1), pool="gated", initial=0.0)
    found = {"integrate-and-fire": setting}
    for name, change in REMEDIES.items():
        setting = dataclasses.replace(setting, **change)
        if pools or name != LATERAL:
            found[name] = setting
    return found


def relative(row: LayerErrors, cause: str) -> np.ndarray:
    """`[T]`: mean size over mean activation, in percent."""
    return 100 * row.size[cause] / (row.activation or np.nan)


def over_layers(rows: list[LayerErrors], steps: np.ndarray) -> dict[str, np.ndarray]:
    """`{cause: [times]}`, in percent: the mean over the layers where it exists.

    The total is that of the neurons: what a pool adds, they inherit.
    """
    found = {}
    for row in rows:
        for cause in row.size:
            if ("pooling" in row.size) == (cause == "pooling"):
                found.setdefault(cause, []).append(relative(row, cause)[steps])
    return {cause: np.nanmean(values, 0) for cause, values in found.items()}


def limit(network, variables, images) -> dict:
    """`{pool: [T]}`: T times the mean distance of the logits to the trained network's.

    No neuron is saturated: thresholds are the maximum over these very images, over γ.
    """
    logits = common.outputs(network, variables, images)
    times = common.sampled(LIMIT_STEPS)
    found = {"times": times}
    for pool in ("lateral", "gated"):
        made = common.Conversion(neuron=jb.Burst(GAMMA), percentile=100, pool=pool)
        trace = jb.simulate(*made(network, variables, images), images, LIMIT_STEPS)
        distance = np.abs(np.asarray(trace.logits) - logits[None]).mean((1, 2))
        found[pool] = distance[times - 1] * times
    return found


def text(record: dict) -> str:
    """Every remedy at a few times: the mean over the layers, in percent."""
    times, causes, rows = record["times"], [*CAUSES, "total"], []
    few = sorted({min(1, len(times) - 1), len(times) // 2, len(times) - 1})
    for method, found in record["methods"].items():
        means = found["mean_over_layers_percent"]
        for i in few:
            cells = [f"{means[c][i]:.2f}" if c in means else "" for c in causes]
            rows.append([method, str(times[i]), *cells])
    found = common.markdown(["% of the activations", "T", *causes], rows)
    if "limit" not in record:
        return found
    head, limits = ("lateral", "gated"), record["limit"]
    rows = [
        [str(t), *(f"{limits[pool][i]:.2f}" for pool in head)]
        for i, t in enumerate(limits["times"])
        if t in common.shown(LIMIT_STEPS)
    ]
    return (
        f"{found}\n\nT × distance to the trained network's logits, by pooling\n\n"
        + common.markdown(["T", *head], rows)
    )


def draw(record: dict, folder: Path) -> None:
    """By time and by remedy; by layer; and the limit of long times."""
    about = f"{common.title_of(record)}, {record['images']:,} test images"
    draw_parts(folder / "errors.png", record, about)
    last = {name: of["last_percent"] for name, of in record["methods"].items()}
    curves = [
        (list(of.values()), list(of), {"label": name}) for name, of in last.items()
    ]
    count = len(curves[0][0])
    limits = {"xscale": "log", "ylim": (count - 0.5, -0.5)}  # from the input downwards
    title = f"Error by layer, T = {record['times'][-1]}: {about}"
    panel = common.Panel(title, SIZE, "", curves, limits=limits)
    size = 8, 0.18 * count + 1.5
    common.picture(folder / "layers.png", [panel], 1, size=size)
    if "limit" in record:
        found, pools = record["limit"], ("lateral", "gated")
        look = {p: {"label": f"{p} pooling", "marker": ""} for p in pools}
        curves = [(found["times"], found[p], look[p]) for p in pools]
        title = (
            f"Bursts, γ = {GAMMA}, none saturated; flat is an error like 1/T\n{about}"
        )
        labels = "time steps T", "T × mean distance to the ANN's logits"
        panel = common.Panel(title, *labels, curves, True, True)
        common.picture(folder / "limit.png", [panel], 1, size=(6, 4))


def draw_parts(path: Path, record: dict, about: str) -> None:
    """The parts over time for the first method and all remedies, and their sum for
    every remedy at the last time."""
    times, last = record["times"], len(record["times"]) - 1
    means = {
        name: {k: np.array(v) for k, v in of["mean_over_layers_percent"].items()}
        for name, of in record["methods"].items()
    }
    methods, panels = list(means), []
    for method, title in {methods[0]: methods[0], methods[-1]: "all remedies"}.items():
        own, curves = means[method], []
        for cause in filter(own.__contains__, PARTS):
            shown = np.where(own[cause] > LEAST, own[cause], np.nan)
            # Others lie on what remains.
            look = {"lw": 5, "zorder": 1} if cause == "remainder" else {}
            curves.append((times, shown, look | {"color": PARTS[cause][0]}))
        curves.append((times, own["total"], {"color": "black", "ls": "--"}))
        task = f"by time: {title}", "time steps", SIZE, curves, True, True
        panels.append(common.Panel(*task, limits={"ylim": (LEAST, None)}))

    def bars(axis) -> None:
        start = np.zeros(len(methods))
        for cause, (colour, label) in PARTS.items():
            values = [m[cause][last] if cause in m else 0 for m in means.values()]
            if any(values):
                axis.barh(methods, values, left=start, color=colour, label=label)
                start += values
        label = "the whole error (parts of opposite sign cancel)"
        total = [mean["total"][last] for mean in means.values()]
        axis.plot(total, methods, "ko", label=label)
        axis.invert_yaxis()
        labels = {"xlabel": "mean over layers (%)"}
        axis.set(title=f"by remedy, T = {times[last]}", **labels)

    title = f"Conversion error by cause: {about}"
    task = path, [*panels, bars], 3, title
    common.picture(*task, size=(14 / 3, 4.5), below=True)


if __name__ == "__main__":
    common.answer("errors", Config, measure, text, draw, __doc__)
