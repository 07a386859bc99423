"""Every training-free code on the same networks: what each costs, and what it loses.

    python experiments/codes.py --weights FOLDER            # everything
    python experiments/codes.py --network vgg9-cifar10 --code once refining --limit 500

Settings of each code are chosen on training images that calibration does not see: for
every goal (a loss of 1, 0.5 or 0.2 points there) the cheapest setting and time step, in
the unit that the hardware of the code is charged in. The setting for half a point meets
test images: with the first draw of calibration images all of them, with the other draws
the first 2,000; codes of more than 8 steps a fifth of that. The settings of the other
goals meet as few with the first draw. Differences from the trained network are paired.

Every measurement is kept as soon as it is made: the same command continues what was
interrupted, and `--network`, `--code` do parts. FOLDER holds PyTorch state dicts of
networks that are not released, such as `resnet20_cifar10.safetensors`; without it they
are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import common
import jax
import numpy as np
from catalogue import CODES, Code, Draw, once

import jaxburst as jb
from jaxburst.batching import gather
from jaxburst.circuit import prepared
from jaxburst.methods.shifting import shifted_of
from jaxburst.methods.silencing import silenced_of
from jaxburst.neurons import Radix
from jaxburst.run import compiler_options, trace_of

NETWORKS = ("resnet20-cifar10", "vgg9-cifar100", "vgg9-cifar10", "resnet56-cifar10")
GOALS = (0.5, 1.0, 0.2)
UNITS = jb.energy.UNITS
ENDS, PAID = UNITS[::2], (UNITS[:1], UNITS[1:])
LONG = 8
PICTURED = (
    "once",
    "refining",
    "quantised ANN",
    "signed bursts, means corrected",
    "differential, after DCGS",
    "bursts (the paper)",
    "signed spikes (SNM, ST-BIF)",
    "integrate-and-fire from θ/2 (OPI)",
)
"""In `methods.png`, where all could not be told apart."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Experiment):
    """Compares codes that need no training."""

    network: tuple[str, ...] = NETWORKS  # ARCH-DATASET, each
    code: tuple[str, ...] = ()  # the beginnings of their names; all if none is given
    # folder of state dicts ARCH_DATASET.safetensors, trained on images normalised
    # with ImageNet's constants
    weights: Path | None = None
    data_dir: Path = Path("data")  # folder of the prepared datasets
    draws: int = 5  # how often calibration images are drawn
    calibration: int = 1000  # images in a draw
    # other training images, on which settings are chosen; half of them for codes of
    # more than 8 steps
    choice: int = 1000
    limit: int = 10_000  # at most so many test images of each draw
    seed: int = 0  # of the draws

    @property
    def identity(self):
        """The parts of a table may be measured one by one."""
        return dataclasses.replace(super().identity, network=(), code=())


# Measurements.


class Bench:
    """A trained network, draws of calibration images, test images and training images
    on which settings are chosen, and the classes that the network gives both."""

    def __init__(self, title: str, config: Config):
        self.config = config
        dataset, *trained = source(title, config).load_trained(title.split("-")[1])
        self.network, self.variables = trained
        rng = np.random.default_rng(config.seed)
        order = rng.permutation(len(dataset.train))
        choice, order = order[: config.choice], order[config.choice :]
        drawn = [
            rng.choice(order, config.calibration, replace=False)
            for _ in range(config.draws)
        ]
        self.draws = [Draw(*trained, dataset.train[rows].inputs) for rows in drawn]
        test, held = dataset.test[: config.limit], dataset.train[choice]
        self.parts = {"test": test, "held": held}
        self.ann = {
            part: common.outputs(*trained, split.inputs).argmax(-1)
            for part, split in self.parts.items()
        }


def source(title: str, config: Config) -> common.Source:
    """Where a network comes from: released, or from a state dict."""
    own = common.Source(title.split("-")[0], data_dir=config.data_dir)
    if title in jb.released.names():
        return own
    weights = (config.weights or Path()) / f"{title.replace('-', '_')}.safetensors"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return dataclasses.replace(own, torch_weights=weights, mean=mean, std=std)


@lru_cache(maxsize=8)
def _running(model, steps: int, before: int, held: int):
    """Logits `[B, T, C]` and traffic `{name: [B, T]}`, to be stacked on the host: here
    the populations would be gone through once more for each unit."""

    def function(circuit, batch):
        leaves = model.network.leaves(batch)
        if before:
            trace = silenced_of(model, circuit, leaves, steps - before, before)
        elif held:
            trace = shifted_of(model, circuit, leaves, steps, held)
        else:
            trace = trace_of(model, circuit, leaves, steps)
        counts = jax.tree.map(lambda own: own.swapaxes(0, 1), trace.traffic)
        return trace.logits[0].swapaxes(0, 1), counts

    return function


def record(model, spiking, inputs, steps: int, before: int = 0, held: int = 0):
    """Logits `[N, T, C]`, and what is sent at each step `{name: [N, T, 3]}`, with a
    first run of all layers, or of each."""
    size = 50 if held else 100  # a layer holds all steps
    task = _running(model, steps, before, held), prepared(model, spiking), inputs, size
    logits, traffic = gather(*task, options=compiler_options(model.network))
    return logits, {name: np.stack(own, -1) for name, own in traffic.items()}


def operations(network, traffic) -> np.ndarray:
    """What traffic causes per MAC of the trained network, in the shape of a count."""
    cost = jb.energy.cost_per_event(network)
    macs = sum(jb.energy.macs(network).values())
    return sum(own * (cost.get(name, 0.0) / macs) for name, own in traffic.items())


def conventional(bench: Bench) -> dict:
    """What the trained network reaches, and what it costs by every model."""
    network, costs = bench.network, jb.energy.PRESETS
    shapes = [network.graph[name].image_shape for name in network.neurons]
    right = {
        part: float((bench.ann[part] == split.labels).mean())
        for part, split in bench.parts.items()
    }
    return {
        "accuracy": right["test"],
        "held": right["held"],
        "images": len(bench.parts["test"]),
        "depth": jb.energy.depth(network),
        "neurons": sum(int(np.prod(shape)) for shape in shapes),
        "joules": {
            reuse: {
                name: jb.energy.ann_joules(network, cost=cost, reuse=reuse)
                for name, cost in costs.items()
            }
            for reuse in ("no", "full")
        },
    }


def choose(code: Code, found: list[dict]) -> dict:
    """The cheapest setting and time step for every goal: `{goal: (setting, steps)}`.
    Without any for half a point, the one that loses least."""
    unit, points = UNITS.index(code.unit), []
    for i, one in enumerate(found):
        curve = zip(one["difference"], one["operations"], strict=True)
        setting = code.settings[i]
        least = max(setting.get("before", 0) + 1, setting.get("held", 1))
        for t, (gained, spent) in enumerate(curve, 1):
            if t >= least:
                points.append((i, t, -100 * gained, spent[unit]))
    goals = {}
    for goal in GOALS:
        fits = [one for one in points if one[2] <= goal + 1e-9]
        if fits:
            goals[goal] = min(fits, key=lambda one: one[3])[:2]
    if GOALS[0] not in goals:
        goals["least"] = min(points, key=lambda one: (one[2], one[3]))[:2]
    return goals


def measured(
    bench: Bench,
    code: Code,
    setting: dict,
    draw: int,
    count: int,
    steps: int,
    part: str,
) -> dict:
    """On images of a part; what is sent, priced, and early stops with the first draw
    and test images only."""
    model, spiking = code.make(bench.draws[draw], **setting)
    split, own = bench.parts[part][:count], bench.ann[part][:count, None]
    first = {name: setting[name] for name in ("before", "held") if name in setting}
    logits, traffic = record(model, spiking, split.inputs, steps, **first)
    classes, labels = logits.argmax(-1), split.labels[:, None]
    # Less whether the trained network is right.
    apart = (classes == labels) - 1.0 * (own == labels)
    mean = {name: counts.mean(0) for name, counts in traffic.items()}
    row = {
        "images": len(classes),
        "accuracy": (classes == labels).mean(0),
        "difference": apart.mean(0),
        "deviation": apart.std(0),
        "shared": apart[: images_of(code, bench.config)[1]].mean(0),
        "agreement": (classes == own).mean(0),
        "operations": operations(bench.network, mean).cumsum(0),
        "sent": sum(mean[name].cumsum(0) for name in bench.network.neurons),
    }
    if draw or part == "held":
        return row
    counted = {
        name: jb.traffic.Traffic(*np.moveaxis(own, -1, 0)) for name, own in mean.items()
    }
    curves = jb.evaluation.Curves(row["accuracy"], counted, len(classes))
    row["joules"] = priced(code, model, curves)
    if steps > 1 and not first:
        some = bench.parts["held"].inputs[:500]
        margins = jb.anytime.settle(model, spiking, some, steps, agreement=0.99)
        spent = operations(bench.network, traffic)
        row["anytime"] = stopped(logits, spent, split.labels, margins)
    return row


def images_of(code: Code, config: Config) -> tuple[int, int]:
    """How many test images meet the first draw, and how many the others."""
    share = 5 if code.steps > LONG else 1
    return config.limit // share, min(config.limit, 2000) // share


def examine(bench: Bench, name: str, keep: Callable) -> dict:
    """Chooses settings, and measures them; each measurement is kept by itself."""
    code, numbers = CODES[name], CODES[name].alike or name
    first, others = images_of(code, bench.config)
    held = bench.config.choice // (2 if code.steps > LONG else 1)
    tries = [
        keep(
            f"{numbers}: {setting} tried",
            *(measured, bench, code, setting, 0, held, code.steps, "held"),
        )
        for setting in code.settings
    ]
    goals = choose(code, tries)
    main, rows = goals.get(GOALS[0]) or goals["least"], {}
    full = {main[0]} | {i for i, s in enumerate(code.settings) if s == code.preset}
    for i in sorted(full | {i for i, _ in goals.values()}):
        setting, plans = code.settings[i], [(0, others, code.steps)]
        if i in full:
            plans = [(0, first, code.steps)]
            last = main[1] if code.steps > LONG else code.steps
            plans += [(d, others, last) for d in range(1, bench.config.draws)]
        draws = [
            keep(
                f"{numbers}: {setting} draw {plan[0]} of {plan[1]} images, T {plan[2]}",
                *(measured, bench, code, setting, *plan, "test"),
            )
            for plan in plans
        ]
        when = {main[1], *(steps for j, steps in goals.values() if j == i)}
        when |= set(common.sampled(code.steps).tolist()) if i in full else set()
        held, spent = setting.get("held", 0), draws[0]["operations"]
        # The next layer has to hear so many steps, whenever the answer is read.
        spent = [spent[held - 1]] * held + spent[held:]
        draws[0] = draws[0] | {"operations": spent}
        rows[str(setting)] = own = kept(draws, code.unit, main[1], sorted(when))
        more = held + code.waits * (code.slots(**setting) - 1)
        for model, joules in waited(bench.network).items() if more else ():
            own["joules"][model] += more * joules
    return {
        "unit": code.unit,
        "held": code.settings[main[0]].get("held", 0),
        "slots": code.slots(**code.settings[main[0]]),
        "main": {"setting": str(code.settings[main[0]]), "steps": main[1]},
        "goals": {
            str(goal): {"setting": str(code.settings[i]), "steps": steps}
            for goal, (i, steps) in goals.items()
            if goal in GOALS
        },
        "settings": rows,
    }


def kept(draws: list[dict], unit: str, step: int, times: list[int]) -> dict:
    """What the record keeps of a setting: the course of the first draw at some time
    steps; there, as far as it was simulated, the difference of every draw on the images
    that all of them meet; and what a table says of one step."""
    first, t = draws[0], step - 1

    def thinned(values: list) -> list:
        return [values[time - 1] for time in times if time <= len(values)]

    course = {
        name: thinned(first[name]) for name in ("accuracy", "deviation", "operations")
    }
    row = {"images": first["images"], "times": times} | course
    row["own"] = first["accuracy"][t] - first["difference"][t]
    row |= {name: first[name][t] for name in ("agreement", "sent")}
    row["joules"] = {name: spent[t] for name, spent in first["joules"][unit].items()}
    row["draws"] = [thinned(draw["shared"]) for draw in draws]
    return row | {name: first[name] for name in {"anytime"} & set(first)}


def lossless(points: float, within: float) -> str:
    """Whether an interval includes 0; a wide one tells nothing."""
    if abs(points) > within:
        return "no"
    return "yes" if within <= GOALS[0] else "not resolved"


def spread(row: dict, i: int) -> float:
    """Deviation of the difference over draws, in points."""
    found = [draw[i] for draw in row["draws"]]
    return 100 * float(np.std(found, ddof=1)) if len(found) > 1 else 0.0


def interval(row: dict, i: int) -> float:
    """Half of the 95 % interval of the first draw's difference, in points."""
    return 196 * row["deviation"][i] / row["images"] ** 0.5


def apart(row: dict) -> np.ndarray:
    """Points from the trained network on the same images, over time."""
    return 100 * (np.array(row["accuracy"]) - row["own"])


def priced(code: Code, model, curves) -> dict:
    """Joules after each step by every cost model, for every unit; of a conventional
    network without reuse, zeros skipped."""
    costs, bits = jb.energy.PRESETS.values(), None
    if not code.spikes:
        bits = int(np.ceil(np.log2(model.neuron.most + 1)))
    return {
        unit: {
            cost.name: (
                jb.energy.joules(model, curves, cost=cost, unit=unit).tolist()
                if code.spikes
                else [jb.energy.ann_joules(model, cost=cost, bits=bits, sent=curves)]
            )
            for cost in costs
        }
        for unit in (UNITS if code.spikes else [code.unit])
    }


def waited(network) -> dict[str, float]:
    """Joules of all neurons' updates in one slot of a window, or in one step of a first
    run whose spikes go nowhere, by every cost model."""
    one, two = (jb.Model(network, Radix(slots)) for slots in (1, 2))
    none = {name: np.zeros(1) for name in network.senders}
    costs = jb.energy.PRESETS.values()
    spent = [[jb.energy.joules(m, none, cost=c)[0] for c in costs] for m in (one, two)]
    return dict(zip(jb.energy.PRESETS, np.subtract(*spent[::-1]).tolist(), strict=True))


def stopped(logits, spent, labels, margins) -> dict:
    """Where each image stops when it is settled; of what has images, then time."""
    best = np.sort(logits, -1)
    done = best[..., -1] - best[..., -2] >= margins.threshold
    done[:, -1] = True
    step, every = done.argmax(1), np.arange(len(labels))
    return {
        "accuracy": float((logits.argmax(-1)[every, step] == labels).mean()),
        "steps": float(step.mean() + 1),
        "operations": spent.cumsum(1)[every, step].mean(0).tolist(),
    }


def streamed(bench: Bench) -> list[dict]:
    """A second frame in which a square of another image appears: operations per MAC of
    what it changes (sigma-delta), and of the whole frame sent once."""
    rng = np.random.default_rng(bench.config.seed)
    frame = bench.parts["test"][:100].inputs
    model, spiking = once(bench.draws[0], error=0.01)
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
        logits, whole = record(model, spiking, after, 1)
        same = np.asarray(changed.logits[1]).argmax(-1) == logits[:, 0].argmax(-1)
        sent = {
            name: np.stack([np.asarray(getattr(own, unit))[1] for unit in UNITS], -1)
            for name, own in changed.traffic.items()
        }
        whole = {name: own[:, 0] for name, own in whole.items()}
        row = {"changes": sent, "whole": whole}
        row = {of: operations(bench.network, own).mean(0) for of, own in row.items()}
        share = tall * wide / (height * width)
        found.append({"share": share, "agreement": same.mean()} | row)
    return found


def measure(config: Config, run: common.Kept) -> dict:
    """Every code on every network."""
    run.whole = not config.code and set(NETWORKS) <= set(config.network)
    common.one_device_per_core()

    def asked(name: str) -> bool:
        begins = [one for one in config.code if one not in CODES]
        return name in config.code or name.startswith(tuple(begins))

    chosen = [name for name in CODES if not config.code or asked(name)]
    if not chosen:
        raise ValueError(f"code: expected beginnings of {list(CODES)}")
    records = {}
    for title in config.network:
        file = source(title, config).torch_weights
        if file is not None and not file.exists():
            print(f"{title}: left out, for want of its weights in --weights")
            continue
        bench, keep, rows = Bench(title, config), run.within(title), {}
        ann = keep("ANN", conventional, bench)
        print(f"{title}: ANN {ann['accuracy']:.2%} of {ann['images']:,} test images")
        for name in chosen:
            rows[name] = examine(bench, name, keep)
            print(line(name, rows[name]), flush=True)
            jax.clear_caches()
        streams = keep("streams", streamed, bench)
        records[title] = {"ann": ann, "rows": rows, "streams": streams}
    return {"networks": records}


# Tables and figures.


def by_itself(right: float, images: int) -> float:
    """Half of the 95 % interval of an accuracy by itself, in points."""
    return 196 * (right * (1 - right) / images) ** 0.5


def stops(early: dict, images: int) -> str:
    """Accuracy with its 95 % interval, and steps, with an early stop."""
    right = early["accuracy"]
    within = by_itself(right, images)
    return f"{100 * right:.2f} ± {within:.2f} at {early['steps']:.2f}"


def at(row: dict, goal: float | None = None) -> tuple[dict, int]:
    """The setting for a goal, and where its time step is in the setting's `times`."""
    chosen = row["goals"][str(goal)] if goal else row["main"]
    setting = row["settings"][chosen["setting"]]
    return setting, setting["times"].index(chosen["steps"])


def line(name: str, row: dict) -> str:
    course, i = at(row)
    spent = zip(course["operations"][i], UNITS, strict=True)
    return (
        f"{name} {row['main']['setting']}: {course['accuracy'][i]:.2%} at "
        f"T = {row['main']['steps']}, {apart(course)[i]:+.2f} ± "
        f"{interval(course, i):.2f} points, "
        + ", ".join(f"{n:.2f} {unit}" for n, unit in spent)
    )


def lines(record: dict) -> Iterator[tuple[str, dict, str, int]]:
    """Of every code what a line is called, its row, a setting and a time step: those
    chosen for half a point, and those of the preset."""
    for name, row in record["rows"].items():
        chosen, code = (row["main"]["setting"], row["main"]["steps"]), CODES[name]
        preset = str(code.preset), code.at
        if code.preset is not None and preset != chosen:
            yield f"{name}, preset", row, *preset
        yield name, row, *chosen


def points_of(row: dict, course: dict, i: int) -> str:
    """Points with their interval."""
    mark = "" if "0.5" in row["goals"] else " ¹"
    points = f"{apart(course)[i]:+.2f}".replace("-", "−")
    return f"{points} ± {interval(course, i):.2f}{mark}"


def in_units(name: str, counts: list) -> list[str]:
    """In each unit; signed digits of a code that sends plain ones are fewer."""
    code = CODES[name.removesuffix(", preset")]
    numbers = [f"{count:.2f}" for count in counts]
    numbers[2] = ("≥ " if code.plain else "") + numbers[2]
    return [
        number if code.spikes or unit == code.unit else "–"
        for number, unit in zip(numbers, UNITS, strict=True)
    ]


def overview(records: dict) -> str:
    """Markdown of all networks: points, and what is sent."""
    head, cells = ["code", "paid in"], {}
    for k, (title, record) in enumerate(records.items()):
        head += [f"{title}, {record['ann']['accuracy']:.2%}", " / ".join(UNITS)]
        for name, row, setting, steps in lines(record):
            course = row["settings"][setting]
            i = course["times"].index(steps)
            own = cells.setdefault(name, [row["unit"]] + 2 * len(records) * [""])
            own[1 + 2 * k] = f"{points_of(row, course, i)} (T = {steps})"
            own[2 + 2 * k] = " / ".join(in_units(name, course["operations"][i]))
    names = [name for code in CODES for name in (f"{code}, preset", code)]
    rows = [[name, *cells[name]] for name in names if name in cells]
    return common.markdown(head, rows) + "\n\n" + NOTE


NOTE = (
    "Each at the cheapest setting and time step that lose at most half a point on "
    "held-out training images (¹ none does; the one that loses least). Points from the "
    "trained network on the same test images, first draw of calibration images, ± 95 % "
    "over images. Then what reaches a synapse, per MAC of the trained network (≥: "
    "counted in signed digits; it sends plain ones)."
)


def table(title: str, record: dict) -> str:
    """Markdown of one network: what is sent, and what that takes."""
    ann = record["ann"]
    models = list(ann["joules"]["no"])
    sent, takes = [], []
    for name, row, setting, steps in lines(record):
        course, depth = row["settings"][setting], ann["depth"]
        i = course["times"].index(steps)
        sent.append([
            name, str(steps), f"{course['images']:,}", points_of(row, course, i),
            lossless(apart(course)[i], interval(course, i)), f"{spread(course, i):.2f}",
            *in_units(name, course["operations"][i]),
        ])  # fmt: skip
        if steps != row["main"]["steps"]:
            continue  # the record has the rest for the step that was chosen
        share = {m: x / ann["joules"]["no"][m] for m, x in course["joules"].items()}
        time = row["slots"] * (steps + depth) + row.get("held", 0) * depth
        early = course.get("anytime")
        takes.append([
            name, setting.strip("{}").replace("'", ""), f"{time:,}",
            f"{100 * course['accuracy'][i]:.2f}", f"{100 * course['agreement']:.1f}",
            *in_units(name, [x / ann["neurons"] for x in course["sent"]]),
            *(f"{share[m]:.2f}" for m in models),
            stops(early, course["images"]) if early else "",
        ])  # fmt: skip
    counts = {len(at(row)[0]["draws"]) for row in record["rows"].values()}
    sides = ["changes", "whole"]
    streams = [
        [f"{row['share']:.1%}", *(f"{x:.2f}" for side in sides for x in row[side])]
        for row in record["streams"]
    ]
    labels = [f"{unit} of {side}" for side in sides for unit in UNITS]
    first = ["code", "T", "images", "points", "lossless", "± draws", *UNITS]
    second = ["code", "setting", "time", "accuracy", "agreement"]
    second += [*(f"{unit} per neuron" for unit in UNITS), *models, "early stop"]
    return "\n\n".join([
        f"## {title}",
        f"The trained network: {ann['accuracy']:.2%} of {ann['images']:,} test images "
        f"({ann['held']:.1%} of the training images of the choice). Per MAC:",
        common.markdown(first, sent),
        "Lossless: the interval includes 0 (not resolved: and is wider than half a "
        "point). ± draws: standard deviation of the accuracy over "
        f"{', '.join(map(str, sorted(counts)))} draws, on the images that all of them "
        "met (in part because these are few).",
        common.markdown(second, takes),
        "Accuracy in %. Time: until the answer, in slots, a step for each layer "
        "included. Energies over the trained network's without reuse, each code in the "
        "unit that its hardware is charged by; the quantised network's with zeros "
        "skipped. Early stop: accuracy (95 %, not paired) and mean time step where "
        "each image stops when settled.",
        common.markdown(["pixels that change", *labels], streams),
        "Per MAC, of what a frame changes (sigma-delta), and of the whole frame sent "
        "once.",
    ])  # fmt: skip


def text(record: dict) -> str:
    """All tables."""
    records = record["networks"]
    return "\n\n".join(
        [overview(records), *map(table, *zip(*records.items(), strict=True))]
    )


def draw(record: dict, folder: Path) -> None:
    """All figures."""
    records = record["networks"]
    title, first = next(iter(records.items()))
    few = {name: row for name, row in first["rows"].items() if name in PICTURED}
    few = {title: first | {"rows": few or first["rows"]}}
    for name, shown, units in (("methods", few, ENDS), ("codes", records, UNITS)):
        look, rows = styles(shown), shown.items()
        how = look, len(shown) == 1
        panels = [accuracies(*one, unit, *how) for one in rows for unit in units]
        options = {"below": True, "sharey": "row", "size": (5.4, 4.5)}
        common.picture(folder / f"{name}.png", panels, len(units), **options)
    panels = [goals(*one, units, look) for one in rows for units in PAID]
    title = "least cost for a loss of 1, 0.5 and 0.2 points on training images"
    common.picture(folder / "goals.png", panels, 2, title, size=(5.5, 4.6))
    panels = [anytime(*one, unit, look) for one in rows for unit in ENDS]
    common.picture(folder / "anytime.png", panels, 2, size=(6.5, 4.4))
    panels = [changes(records, unit) for unit in UNITS]
    common.picture(folder / "streams.png", panels, 3, size=(4, 3.6), below=True)


def styles(records) -> dict:
    """A colour and a marker for every code."""
    import matplotlib

    names = list(dict.fromkeys(n for r in records.values() for n in r["rows"]))
    shades = matplotlib.colormaps["tab20"].colors
    order = [*range(0, 20, 2), *range(1, 20, 2)]
    return {
        name: {"color": shades[order[i % 20]], "marker": "os^Dv"[i // 20 + i % 4]}
        for i, name in enumerate(names)
    } | {"quantised ANN": {"color": "black", "marker": "X"}}


def curve_of(row: dict, unit: str, ann: float):
    """Cost and accuracy in percent, the trained network's on all images and the paired
    difference: over time, or, for a single step, over the settings."""
    every = list(row["settings"].values())
    if len(every[0]["times"]) > 1:
        every = [at(row)[0]]
    cost = np.concatenate([course["operations"] for course in every])
    cost, points = cost[:, UNITS.index(unit)], np.concatenate([*map(apart, every)])
    order = cost.argsort()
    return cost[order], ann + points[order]


def doubling(course: dict) -> dict:
    """Marks at T = 1, 2, 4, ..., where there are many steps."""
    times = course["times"]
    marks = [times.index(t) for t in common.shown(times[-1])]
    return {"markevery": marks} if times[-1] > LONG else {}


def accuracies(
    title: str, record: dict, unit: str, look: dict, alone: bool
) -> common.Panel:
    """Accuracy against operations in one unit; bars of 95 % where a code is chosen. Of
    a network alone labels say what is outside."""
    ann, curves, costs = 100 * record["ann"]["accuracy"], [], []
    rows, k = record["rows"], UNITS.index(unit)
    least = [course["operations"][i][k] for course, i in map(at, rows.values())]
    most = 64 * min(least)
    for name, row in rows.items():
        if name == "quantised ANN" and unit == "quanta":
            continue  # it has no unary spikes
        cost, accuracy = curve_of(row, unit, ann)
        course, i = at(row)
        label, spent, own = name, course["operations"][i][k], ann + apart(course)[i]
        if alone and accuracy.max() < ann - 3.2:
            label = f"{name} (below: {own:.0f} % at T = {row['main']['steps']})"
        if alone and spent > most:
            label = f"{name} (to the right: {spent:,.0f} {unit})"
        bar = {"yerr": interval(course, i), "color": look[name]["color"], "lw": 0.8}
        curve = look[name] | doubling(course) | {"label": label}
        curves.append((cost, accuracy, curve))
        curves.append((spent, own, bar))
        costs += [spent] if spent <= most else []
    limits = {"ylim": (ann - 3.2, ann + 0.8)}
    if costs:
        limits["xlim"] = min(costs) / 2, max(costs) * 2
    labels = f"{unit} that reach a synapse, per MAC of the ANN", "test accuracy (%)"
    task = f"{title}: cost in {unit}; dashed: the ANN", *labels, curves, True
    return common.Panel(*task, levels=[ann], limits=limits)


def goals(title: str, record: dict, units, look: dict) -> common.Panel:
    """What the settings that were chosen for each goal cost, and lose on test images
    (bars of 95 %), of the codes that are charged by one of these units."""
    curves = []
    for name, row in record["rows"].items():
        met = [at(row, goal) for goal in GOALS if str(goal) in row["goals"]]
        if row["unit"] in units and met:
            k = UNITS.index(row["unit"])
            points = sorted(
                (one["operations"][i][k], -apart(one)[i], interval(one, i))
                for one, i in met
            )
            cost, lost, within = zip(*points, strict=True)
            bars = {"yerr": within, "elinewidth": 0.5, "label": name}
            curves.append((cost, lost, look[name] | bars))
    labels = "operations per MAC of the ANN", "points lost on test images"
    task = f"{title}: paid in {' or '.join(units[::-1])}", *labels, curves, True
    return common.Panel(*task, levels=GOALS, limits={"ylim": (4, -1), "xmargin": 0.3})


def anytime(title: str, record: dict, unit: str, look: dict) -> Callable:
    """From a fixed number of steps to as many as each image needs, with bars of 95 %;
    the trained network's accuracy on all images, and the difference on the same."""
    ann, curves, costs = 100 * record["ann"]["accuracy"], [], [1.0]
    for name, row in record["rows"].items():
        course, k = at(row)[0], UNITS.index(unit)
        accuracy = ann + apart(course)
        if "anytime" not in course or accuracy.max() < ann - 6:
            continue
        cost, own = np.array(course["operations"])[:, k], course["anytime"]
        costs += cost[accuracy > ann - 6].tolist()
        label = f"{name}: {own['steps']:.1f} of {course['times'][-1]} steps"
        mark = look[name] | {"ms": 10, "ls": "", "label": label, "elinewidth": 0.8}
        mark |= {"yerr": by_itself(own["accuracy"], course["images"])}
        height = ann + 100 * (own["accuracy"] - course["own"])
        curves.append((cost, accuracy, look[name] | doubling(course)))
        curves.append((own["operations"][k], height, mark))
    limits = {"ylim": (ann - 6, ann + 1), "xlim": (min(costs) / 1.5, max(costs) * 1.5)}
    task = f"{title}: all images as long (lines), or each as it needs"
    task = task, f"{unit} per MAC", "accuracy (%)", curves
    panel = common.Panel(*task, True, levels=[ann], limits=limits)

    def draw(axis) -> None:
        panel.draw(axis)
        beside = {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)}
        if curves:
            axis.legend(**beside, fontsize=7, markerscale=0.6)
            axis.get_legend().set_visible(unit == ENDS[-1])  # one is enough

    return draw


def changes(records: dict, unit: str) -> common.Panel:
    """Cost of a frame against the share of pixels that change."""
    curves, k = [], UNITS.index(unit)
    for i, (title, found) in enumerate(records.items()):
        share = [100 * row["share"] for row in found["streams"]]
        for kind, label, style in (("changes", "changes", "-"),
                                   ("whole", "whole sent once", "--")):  # fmt: skip
            spent = [row[kind][k] for row in found["streams"]]
            look = {"color": f"C{i}", "ls": style, "label": f"{title}, {label}"}
            curves.append((share, spent, look))
    limits = {"xscale": "log", "ylim": (0, None)}
    labels = "pixels that change (%)", f"{unit} per MAC and frame"
    return common.Panel(f"a stream, in {unit}", *labels, curves, limits=limits)


if __name__ == "__main__":
    common.answer("codes", Config, measure, text, draw, __doc__)
