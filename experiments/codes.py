"""Every training-free code on the same networks: what each costs, and what it loses.

    python experiments/codes.py --weights FOLDER            # everything
    python experiments/codes.py --network vgg9-cifar10 --code once refining --limit 500

Settings of each code are chosen on training images that calibration does not see: for
every goal (a loss of 1, 0.5 or 0.2 points there) the cheapest setting and time step, in
the unit that the hardware of the code is charged in. These alone meet test images: the
first draw of calibration images all of them, the other draws the first 2,000; codes of
more than 8 steps a fifth of that. Differences from the trained network are paired, with
an interval of 95 %. The same command continues what was interrupted; `--network`,
`--code` and `--limit` do parts. FOLDER holds PyTorch state dicts of networks that are
not released, such as `resnet20_cifar10.safetensors`; without it they are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import common
import jax
import numpy as np
import tyro

import jaxburst as jb
from jaxburst.methods.rounding import rounded
from jaxburst.neurons import (
    Burst,
    Differential,
    FirstSpike,
    Parallel,
    Phase,
    Radix,
    Refining,
    SigmaDelta,
)

NETWORKS = ("resnet20-cifar10", "resnet56-cifar10", "vgg9-cifar10", "vgg9-cifar100")
GOALS = (1.0, 0.5, 0.2)
UNITS = jb.energy.UNITS
LONG = 8


@dataclasses.dataclass(frozen=True)
class Config:
    """Compares codes that need no training.

    Attributes:
      network: which networks, ARCH-DATASET.
      code: which codes, by the beginning of their names; all if none is given.
      weights: folder of state dicts ARCH_DATASET.safetensors, trained on images that
        were normalised with ImageNet's constants.
      data_dir: folder of the prepared datasets.
      draws: how often calibration images are drawn.
      calibration: number of calibration images in a draw.
      choice: number of other training images on which settings are chosen.
      limit: at most so many test images of each draw.
      seed: of the draws.
      out: folder for the results.
    """

    network: tuple[str, ...] = NETWORKS
    code: tuple[str, ...] = ()
    weights: Path | None = None
    data_dir: Path = Path("data")
    draws: int = 5
    calibration: int = 1000
    choice: int = 500
    limit: int = 10_000
    seed: int = 0
    out: Path = Path("runs/codes")

    def __post_init__(self):
        common.check_settings(self)


# The codes.


@dataclasses.dataclass(frozen=True)
class Code:
    """A code: how a network is converted to it, and with which settings.

    Attributes:
      make: `make(network, variables, images, **setting)` gives `(model, spiking)`.
      steps: the most time steps it is given.
      unit: what its hardware is charged by.
      settings: those to choose from, its paper's and by least squares.
      spikes: whether it is one; else it is priced as a conventional network of as many
        bits as its activations need.
    """

    make: Callable
    steps: int
    unit: str
    settings: tuple[dict, ...] = ({},)
    spikes: bool = True


def repeating(
    network, variables, images, *, neuron, percentile=None, initial=0.5, correct=0,
    each_step=False,
):  # fmt: skip
    """Codes that are presented the input at every step: a percentile for the range, or
    least squares; corrected means if asked for."""
    if percentile is None:
        thresholds = jb.methods.calibrate_mse(network, variables, images, neuron)
    else:
        thresholds = jb.calibrate(
            network, variables, images, neuron, percentile=percentile
        )
    model = jb.Model(network, neuron)
    spiking = jb.convert(network, variables, thresholds, initial=initial)
    if correct:
        spiking = jb.methods.correct(
            model, spiking, images[:200], steps=correct, each_step=each_step
        )
    return model, spiking


def changing(network, variables, images, *, neuron, levels=None, initial=0.5, rows=1):
    """Codes that are presented the input once: least squares, balanced, corrected."""
    own = Burst(levels) if levels else neuron
    thresholds = jb.methods.calibrate_mse(network, variables, images, own)
    thresholds = jb.methods.balance(
        network, variables, thresholds, images[:100], neuron, steps=rows
    )
    model = jb.Model(network, neuron)
    spiking = jb.convert(network, variables, thresholds, initial=initial)
    return model, jb.methods.correct(model, spiking, images[:200], steps=rows)


def exact(network, variables, images, *, neuron):
    """The whole range of activations, in as many slots as there are."""
    thresholds = jb.calibrate(network, variables, images, neuron, percentile=100)
    return jb.Model(network, neuron), jb.convert(network, variables, thresholds)


def phases(network, variables, images, *, period):
    """Weighted spikes: thresholds of the numbers that a period can say."""
    neuron = Phase(period)
    thresholds = jb.methods.calibrate_mse(network, variables, images, neuron)
    return jb.Model(network, neuron), jb.convert(network, variables, thresholds)


def some(name: str, *values, **others) -> tuple[dict, ...]:
    """Settings that differ in one thing."""
    return tuple({name: value, **others} for value in values)


def windows(kind, *slots: int) -> tuple[dict, ...]:
    """Settings that differ in the window of time."""
    return tuple({"neuron": kind(count)} for count in slots)


RANGES = some("percentile", 99.9, 99.0, None)
from_zero = partial(repeating, initial=0.0)
signed = partial(Burst, signed=True)

# fmt: off
CODES = {
    "integrate-and-fire":
        Code(partial(from_zero, neuron=Burst(1)), 32, "quanta", RANGES),
    "integrate-and-fire from θ/2 (OPI)":
        Code(partial(repeating, neuron=Burst(1)), 32, "quanta", RANGES),
    "bursts (the paper)":
        Code(partial(from_zero, neuron=Burst(5)), 32, "quanta", RANGES),
    "bursts, SpiCalib":
        Code(partial(from_zero, neuron=Burst(5, allowance=16)), 32, "quanta", RANGES),
    "signed spikes (ST-BIF)":
        Code(partial(repeating, neuron=signed(1)), 32, "quanta", RANGES),
    "signed bursts (SNM)":
        Code(partial(repeating, correct=2), 8, "quanta",
             some("neuron", signed(5), signed(10))),
    "signed bursts, each step corrected (FTBC)":
        Code(partial(repeating, neuron=signed(5), correct=4, each_step=True), 4,
             "quanta"),
    "hierarchical thresholds, after H-MT":
        Code(repeating, 4, "digits", some("neuron", Burst(15), Burst(255))),
    "differential, after DCGS":
        Code(partial(changing, rows=4), 8, "digits",
             some("levels", 4, 8, neuron=Differential(8))
             + some("levels", 16, neuron=Differential(128))),
    "phase, after Kim":
        Code(phases, 16, "quanta", some("period", 4, 8)),
    "parallel, after Hao":
        Code(changing, 1, "quanta", windows(Parallel, 4, 8, 16)),
    "radix":
        Code(changing, 1, "digits", windows(Radix, 3, 4, 5, 6)),
    "few spikes":
        Code(partial(changing, initial=0.0), 1, "digits", windows(Radix, 4, 5, 6, 8)),
    "first spike":
        Code(changing, 1, "events", windows(FirstSpike, 7, 15, 31)),
    "first spike, exact":
        Code(exact, 1, "events", windows(FirstSpike, 2**16 - 1)),
    "once":
        Code(jb.presets.once, 1, "digits",
             some("error", 0.003, 0.006, 0.01, 0.02, 0.03)),
    "once, least squares":
        Code(partial(changing, neuron=SigmaDelta()), 1, "digits",
             some("levels", 6, 8, 16, 32)),
    "once, two digits":
        Code(partial(changing, neuron=SigmaDelta(digits=2)), 1, "digits",
             some("levels", 8, 16, 32)),
    "sigma-delta, one digit a step":
        Code(partial(changing, neuron=SigmaDelta(digits=1), rows=3), 4, "digits",
             some("levels", 8, 16)),
    "refining":
        Code(partial(jb.presets.refining, progress=False), 4, "digits",
             some("levels", 2, 4, 7)),
    "refining, no silence":
        Code(partial(changing, neuron=Refining(15, silence=0), rows=4), 4, "digits",
             some("levels", 2, 4, 7)),
    "quantised ANN":
        Code(rounded, 1, "events", some("bits", 3, 4, 5, 8), spikes=False),
}
# fmt: on
"""Parallel, radix, first spike and the quantised ANN are told apart by what they send:
the numbers are the same."""


# Measurements.


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    common.one_device_per_core()
    folder = common.prepare_folder(config.out)
    kept = common.Kept(folder, dataclasses.replace(config, network=(), code=()))
    chosen = [
        name
        for name in CODES
        if not config.code or any(name.startswith(one) for one in config.code)
    ]
    if not chosen:
        raise ValueError(f"code: expected beginnings of {list(CODES)}")
    records = {}
    for title in config.network:
        loaded = load(title, config)
        if loaded is None:
            print(f"{title}: left out, for want of its weights in --weights")
            continue
        scope, rows = kept.within(title), {}
        ann = scope("ANN", partial(conventional, *loaded, config))
        print(f"{title}: ANN {ann['accuracy']:.2%} of {ann['images']:,} test images")
        for name in chosen:
            task = partial(examine, CODES[name], *loaded, config)
            rows[name] = scope(name, task)
            print(line(name, rows[name]), flush=True)
            jax.clear_caches()
        streams = scope("streams", partial(streamed, *loaded, config))
        records[title] = {"ann": ann, "rows": rows, "streams": streams}
    text = "\n\n".join(table(title, record) for title, record in records.items())
    print("\n" + text + "\n")
    common.write_record(folder, "codes", config, networks=records)
    common.write_text(folder / "codes.md", text)
    draw(folder / "codes.png", records)
    draw_goals(folder / "goals.png", records)
    draw_anytime(folder / "anytime.png", records)
    draw_streams(folder / "streams.png", records)


def load(title: str, config: Config):
    """The dataset, the traced network and its variables; None without its weights."""
    arch, data = title.split("-")
    source = common.Source(arch, data_dir=config.data_dir)
    if f"{arch}-{data}" not in jb.released.names():
        path = (config.weights or Path()) / f"{arch}_{data}.safetensors"
        if not path.exists():
            return None
        source = dataclasses.replace(
            source,
            torch_weights=path,
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        )
    return source.load_trained(data)


def conventional(dataset, network, variables, config: Config) -> dict:
    """What the trained network reaches, and what it costs by every model."""
    test = dataset.test[: config.limit]
    costs = jb.energy.PRESETS.values()
    return {
        "accuracy": jb.accuracy(network, variables, test),
        "images": len(test),
        "depth": jb.energy.depth(network),
        "neurons": sum(
            int(np.prod(network.graph[name].image_shape)) for name in network.neurons
        ),
        "macs": int(sum(jb.energy.macs(network).values())),
        "joules": {
            reuse: {
                cost.name: jb.energy.ann_joules(network, cost=cost, reuse=reuse)
                for cost in costs
            }
            for reuse in ("no", "full")
        },
    }


def examine(code: Code, dataset, network, variables, config: Config) -> dict:
    """Chooses settings on training images, and measures them on test images."""
    rng = np.random.default_rng(config.seed)
    order = rng.permutation(len(dataset.train))
    choice, order = order[: config.choice], order[config.choice :]
    draws = [
        dataset.train[rng.choice(order, config.calibration, replace=False)].inputs
        for _ in range(config.draws)
    ]
    held = dataset.train[choice]
    make = partial(code.make, network, variables)
    candidates = []
    for setting in code.settings:
        with common.silent_channels():
            model, spiking = make(draws[0], **setting)
        logits, spent, _ = record(model, spiking, held.inputs, code.steps)
        expected = answers(network, variables, held.inputs)
        lost = (expected == held.labels).mean() - (
            logits.argmax(-1) == held.labels
        ).mean(1)
        unit = UNITS.index(code.unit)
        for t in range(code.steps):
            cost = spent[: t + 1, :, unit].sum(0).mean()
            candidates.append((setting, t + 1, 100 * float(lost[t]), float(cost)))
    goals, points = {}, {}
    for goal in GOALS:
        fits = [one for one in candidates if one[2] <= goal]
        best = min(fits, key=lambda one: one[3]) if fits else None
        goals[goal] = best and {"setting": repr(best[0]), "steps": best[1]}
        if best:
            points[repr(best[0])] = best[0]
    if not points:
        least = min(candidates, key=lambda one: one[2])
        points[repr(least[0])] = least[0]
    main = goals[0.5] or goals[1.0] or {"setting": next(iter(points))}
    measured = {
        key: measure(code, partial(make, **setting), dataset, network, variables, draws,
                     held if key == main["setting"] else None, config)
        for key, setting in points.items()
    }  # fmt: skip
    slots = make(draws[0][:100], **points[main["setting"]])[0].neuron.slots
    return {
        "unit": code.unit, "slots": slots, "main": main, "goals": goals,
        "settings": measured,
    }  # fmt: skip


def measure(code, make, dataset, network, variables, draws, held, config) -> dict:
    """On test images, of every draw; where `held` images settle margins, anytime."""
    found, most = [], min(config.limit, len(dataset.test))
    share = 5 if code.steps > LONG else 1
    for i, images in enumerate(draws):
        test = dataset.test[: (most if i == 0 else min(most, 2000)) // share]
        with common.silent_channels():
            model, spiking = make(images)
        logits, spent, traffic = record(model, spiking, test.inputs, code.steps)
        own = answers(network, variables, test.inputs)
        own_right = own == test.labels
        classes = logits.argmax(-1)
        apart = (classes == test.labels) - 1.0 * own_right
        row = {
            "images": len(test),
            "accuracy": (classes == test.labels).mean(1),
            "difference": apart.mean(1),
            "interval": 1.96 * apart.std(1) / np.sqrt(len(test)),
            "agreement": (classes == own).mean(1),
            "operations": spent.mean(1).cumsum(0),
            "sent": sum(
                np.stack([traffic[name][k] for k in UNITS], -1)
                for name in network.neurons
            ).cumsum(0),
        }
        if i == 0:
            counted = {n: jb.traffic.Traffic(**one) for n, one in traffic.items()}
            curves = jb.evaluation.Curves(row["accuracy"], counted, len(test))
            first = {"joules": priced(code, model, curves)}
            if not code.spikes:
                first["conventional"] = skipping(model, curves)
            if held is not None and code.steps > 1:
                margins = jb.anytime.settle(
                    model, spiking, held.inputs, code.steps, agreement=0.99
                )
                first["anytime"] = stopped(logits, spent, test.labels, margins)
        found.append(row)
    return first | {
        "draws": [{k: np.asarray(v).tolist() for k, v in row.items()} for row in found],
        "spread": np.std([row["accuracy"] for row in found], 0).tolist(),
    }


def record(model, spiking, inputs, steps: int, size: int = 100):
    """Logits `[T, N, C]`; operations per MAC `[T, N, 3]` in each unit; mean traffic."""
    logits, spent, sums = [], [], {}
    for start in range(0, len(inputs), size):
        batch = inputs[start : start + size]
        trace = jax.device_get(jb.simulate(model, spiking, batch, steps))
        logits.append(trace.logits)
        spent.append(operations(model.network, trace.traffic))
        for name, counts in trace.traffic.items():
            for unit in UNITS:
                mean = getattr(counts, unit).sum(1) / len(inputs)
                own = sums.setdefault(name, dict.fromkeys(UNITS, 0.0))
                own[unit] = own[unit] + mean
    return np.concatenate(logits, 1), np.concatenate(spent, 1), sums


def operations(network, traffic) -> np.ndarray:
    """What traffic causes per MAC of the trained network, `[..., 3]` in each unit."""
    cost = jb.energy.cost_per_event(network)
    macs = sum(jb.energy.macs(network).values())
    return sum(
        np.stack([getattr(counts, unit) for unit in UNITS], -1)
        * (cost.get(name, 0.0) / macs)
        for name, counts in traffic.items()
    )


def streamed(dataset, network, variables, config: Config) -> list[dict]:
    """A second frame in which a square of another image appears: operations per MAC of
    what it changes (sigma-delta), and of the whole frame sent once."""
    rng = np.random.default_rng(config.seed)
    images = common.drawn(dataset, config.calibration, rng)
    frame = dataset.test[: min(config.limit, 100)].inputs
    model, spiking = jb.presets.once(network, variables, images)
    height, width = frame.shape[1:3]
    found = []
    for share in (0.01, 0.03, 0.1, 0.3, 1.0):
        tall, wide = (max(1, round(n * share**0.5)) for n in (height, width))
        after = frame.copy()
        for i, image in enumerate(np.roll(frame, 1, axis=0)):
            top = rng.integers(height - tall + 1)
            left = rng.integers(width - wide + 1)
            place = slice(top, top + tall), slice(left, left + wide)
            after[(i, *place)] = image[place]
        changed, _ = jb.stream(model, spiking, np.stack([frame, after]))
        whole = jb.simulate(model, spiking, after, 1)
        changed, whole = jax.device_get((changed, whole))
        same = changed.logits[1].argmax(-1) == whole.logits[0].argmax(-1)
        spent = [
            operations(network, trace.traffic)[-1].mean(0).tolist()
            for trace in (changed, whole)
        ]
        found.append({
            "share": tall * wide / (height * width), "changes": spent[0],
            "whole": spent[1], "agreement": float(same.mean()), "images": len(frame),
        })  # fmt: skip
    return found


def answers(network, variables, inputs) -> np.ndarray:
    """The classes of the trained network, `[N]`."""
    parts = [
        np.asarray(jax.jit(network)(variables, inputs[i : i + 100])).argmax(-1)
        for i in range(0, len(inputs), 100)
    ]
    return np.concatenate(parts)


def priced(code: Code, model, curves) -> dict:
    """Joules after each step by every cost model; of a conventional network, with zeros
    skipped and without reuse."""
    if not code.spikes:
        return {name: [spent["zeros skipped"]["no"]]
                for name, spent in skipping(model, curves).items()}  # fmt: skip
    return {
        cost.name: jb.energy.joules(model, curves, cost=cost, unit=code.unit).tolist()
        for cost in jb.energy.PRESETS.values()
    }


def skipping(model, curves) -> dict:
    """Joules of a conventional network by every cost model: zeros skipped or not, with
    reuse or without."""
    bits = int(np.ceil(np.log2(model.neuron.most + 1)))
    ways = {"zeros skipped": curves, "every zero": None}
    return {
        cost.name: {
            way: {
                reuse: jb.energy.ann_joules(
                    model, cost=cost, reuse=reuse, bits=bits, sent=sent
                )
                for reuse in ("no", "full")
            }
            for way, sent in ways.items()
        }
        for cost in jb.energy.PRESETS.values()
    }


def stopped(logits, spent, labels, margins) -> dict:
    """Where each image stops when it is settled."""
    best = np.sort(logits, -1)
    apart = best[..., -1] - best[..., -2]
    done = apart >= margins.threshold[:, None]
    done[-1] = True
    step = done.argmax(0)
    every = np.arange(len(labels))
    return {
        "accuracy": float((logits.argmax(-1)[step, every] == labels).mean()),
        "steps": float(step.mean() + 1),
        "operations": spent.cumsum(0)[step, every].mean(0).tolist(),
    }


# Tables and figures.


def at(row: dict, goal: float = 0.5):
    """The measured setting, and the time step (from 0), of a goal."""
    chosen = row["goals"].get(goal) or row["goals"].get(str(goal)) or row["main"]
    own = row["settings"][chosen["setting"]]
    return own, chosen.get("steps", len(own["spread"])) - 1


def line(name: str, row: dict) -> str:
    own, t = at(row)
    draw = own["draws"][0]
    return (
        f"{name}: {draw['accuracy'][t]:.2%} at T = {t + 1}, "
        f"{100 * draw['difference'][t]:+.2f} ± {100 * draw['interval'][t]:.2f} points, "
        + ", ".join(
            f"{n:.2f} {unit}"
            for n, unit in zip(draw["operations"][t], UNITS, strict=True)
        )
    )


def table(title: str, record: dict) -> str:
    """Markdown of one network."""
    ann = record["ann"]
    models = list(ann["joules"]["no"])
    head = ["code", "T", "slots", "accuracy", "± draws", "difference", "agreement",
            *(f"{u} per MAC" for u in UNITS), *(f"{u} per neuron" for u in UNITS),
            *models]  # fmt: skip
    lines = []
    for name, row in record["rows"].items():
        own, t = at(row)
        draw, reached = own["draws"][0], row["goals"]
        mark = "" if reached.get(0.5) or reached.get("0.5") else " (0.5 not reached)"
        time = row["slots"] * (t + 1 + ann["depth"])
        lines.append([
            name + mark, str(t + 1), str(time), f"{100 * draw['accuracy'][t]:.2f}",
            f"{100 * own['spread'][t]:.2f}",
            f"{100 * draw['difference'][t]:+.2f} ± {100 * draw['interval'][t]:.2f}",
            f"{100 * draw['agreement'][t]:.1f}",
            *(f"{x:.2f}" for x in draw["operations"][t]),
            *(f"{x / ann['neurons']:.2f}" for x in draw["sent"][t]),
            *(f"{own['joules'][m][t] / ann['joules']['no'][m]:.2f}" for m in models),
        ])  # fmt: skip
    counts = sorted(
        {
            row["images"]
            for r in record["rows"].values()
            for own in r["settings"].values()
            for row in own["draws"][:1]
        }
    )
    return f"{title}, ANN {ann['accuracy']:.2%}\n\n" + common.markdown(head, lines) + (
        f"\n\nAt the settings that lose at most 0.5 points on held-out "
        "training images. Accuracy in %; difference from the ANN in points on "
        f"the same images, ± 95 %; first draw, {counts} test images. Slots: time until "
        "the answer, a step for each layer included. Energies over the ANN's without "
        "reuse, each code in the unit that its hardware is charged by."
    )  # fmt: skip


def points_of(row: dict):
    """`(operations [T, 3], difference in points [T])` of every measured setting."""
    for own in row["settings"].values():
        draw = own["draws"][0]
        yield np.array(draw["operations"]), 100 * np.array(draw["difference"])


def styles(records) -> dict:
    """A colour and a marker for every code."""
    import matplotlib

    names = list(dict.fromkeys(n for r in records.values() for n in r["rows"]))
    shades = matplotlib.colormaps["tab20"].colors
    return {
        name: {"color": shades[i % 20], "marker": "os^D"[i // 20 + i % 3]}
        for i, name in enumerate(names)
    }


def draw(path: Path, records: dict) -> None:
    """Difference from the ANN against operations, a panel for each unit."""
    look, rows = styles(records), len(records)
    size = {"figsize": (13, 3.6 * rows + 1.2), "squeeze": False, "sharey": True}
    with common.figure(path, rows, 3, **size) as (whole, axes):
        for (title, found), line in zip(records.items(), axes, strict=True):
            for axis, (i, unit) in zip(line, enumerate(UNITS), strict=True):
                for name, row in found["rows"].items():
                    label = name
                    for spent, apart in points_of(row):
                        axis.plot(spent[:, i], apart, label=label, lw=1, ms=4,
                                  **look[name])  # fmt: skip
                        label = None
                axis.axhline(0, color="0.35", linestyle="--", lw=0.9)
                axis.set(title=f"{title}: {unit}", xscale="log", ylim=(-6, 1),
                         xlabel=f"{unit} per MAC of the ANN")  # fmt: skip
                axis.grid(alpha=0.3)
            line[0].set_ylabel("points from the ANN")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        whole.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8,
                     frameon=False)  # fmt: skip


def draw_goals(path: Path, records: dict) -> None:
    """The least cost for each goal, in every unit; a row for each code."""
    look, rows = styles(records), len(records)
    count = max(len(found["rows"]) for found in records.values())
    size = {"figsize": (13, 0.26 * count * rows + 1.5), "squeeze": False}
    with common.figure(path, rows, 3, sharey="row", **size) as (whole, axes):
        for (title, found), panels in zip(records.items(), axes, strict=True):
            names = list(found["rows"])
            for axis, (i, unit) in zip(panels, enumerate(UNITS), strict=True):
                for y, name in enumerate(names):
                    row = found["rows"][name]
                    for goal, mark in zip(GOALS, "<o>", strict=True):
                        if not (row["goals"].get(goal) or row["goals"].get(str(goal))):
                            continue
                        own, t = at(row, goal)
                        axis.plot(own["draws"][0]["operations"][t][i], y, mark, ms=5,
                                  color=look[name]["color"])  # fmt: skip
                axis.set(title=f"{title}: {unit} per MAC", xscale="log",
                         yticks=range(len(names)), yticklabels=names)  # fmt: skip
                axis.tick_params(axis="y", labelsize=7)
                axis.grid(alpha=0.3)
            panels[0].invert_yaxis()
        whole.suptitle(
            "least cost for a loss of 1 (<), 0.5 (o) and 0.2 (>) points, chosen on "
            "training images", fontsize=10,
        )  # fmt: skip


def draw_anytime(path: Path, records: dict) -> None:
    """From all steps for every image to as many as each needs, in graded events."""
    look, columns = styles(records), len(records)
    size = {"figsize": (5.2 * columns, 4.2), "squeeze": False}
    with common.figure(path, 1, columns, **size) as (_, axes):
        for (title, found), axis in zip(records.items(), axes[0], strict=True):
            ann = found["ann"]["accuracy"]
            for name, row in found["rows"].items():
                for own in row["settings"].values():
                    if "anytime" not in own:
                        continue
                    k, draw = UNITS.index(row["unit"]), own["draws"][0]
                    x = [draw["operations"][-1][k], own["anytime"]["operations"][k]]
                    y = [draw["accuracy"][-1], own["anytime"]["accuracy"]]
                    axis.plot(x, 100 * np.array(y), lw=1, label=name, ms=5,
                              markevery=[1], **look[name])  # fmt: skip
            axis.axhline(100 * ann, color="0.35", linestyle="--", lw=0.9)
            axis.set(
                title=f"{title}: all steps, to as many as settle (marker)",
                xlabel="operations per MAC, in the unit of each code",
                ylabel="accuracy (%)",
                ylim=(100 * ann - 6, 100 * ann + 1),
            )
            axis.grid(alpha=0.3)
            if len(axis.lines) > 1:
                axis.legend(fontsize=7, frameon=False)


def draw_streams(path: Path, records: dict) -> None:
    """Cost of a frame against the share of pixels that change."""
    with common.figure(path, 1, len(UNITS), figsize=(12, 3.8)) as (_, axes):
        for k, (unit, axis) in enumerate(zip(UNITS, axes, strict=True)):
            for i, (title, found) in enumerate(records.items()):
                rows = found["streams"]
                share = [100 * row["share"] for row in rows]
                for kind, style in (("changes", "o-"), ("whole", "--")):
                    label = f"{title}, {kind}" + (" sent once" if "--" in style else "")
                    spent = [row[kind][k] for row in rows]
                    axis.plot(share, spent, style, color=f"C{i}", ms=4, label=label)
            axis.set(xlabel="pixels that change (%)", xscale="log",
                     ylabel=f"{unit} per MAC and frame", ylim=(0, None))  # fmt: skip
            axis.grid(alpha=0.3)
        axes[0].legend(fontsize=7, frameon=False)


if __name__ == "__main__":
    common.run(main)
