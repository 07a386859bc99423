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
import time
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

import common
import jax
import jax.numpy as jnp
import numpy as np

import jaxburst as jb
from jaxburst.batching import sweep
from jaxburst.circuit import prepared
from jaxburst.methods.rounding import quantise
from jaxburst.methods.silencing import silenced_of
from jaxburst.neurons import Burst, Differential, Phase, Refining, SigmaDelta
from jaxburst.run import compiler_options, trace_of

NETWORKS = ("resnet20-cifar10", "vgg9-cifar100", "vgg9-cifar10", "resnet56-cifar10")
GOALS = (0.5, 1.0, 0.2)
UNITS = jb.energy.UNITS
LONG = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Experiment):
    """Compares codes that need no training.

    Attributes:
      network: which networks, ARCH-DATASET.
      code: which codes, by the beginning of their names; all if none is given.
      weights: folder of state dicts ARCH_DATASET.safetensors, trained on images that
        were normalised with ImageNet's constants.
      data_dir: folder of the prepared datasets.
      draws: how often calibration images are drawn.
      calibration: number of calibration images in a draw.
      choice: number of other training images on which settings are chosen; half of
        them for codes of more than 8 steps.
      limit: at most so many test images of each draw.
      seed: of the draws.
    """

    network: tuple[str, ...] = NETWORKS
    code: tuple[str, ...] = ()
    weights: Path | None = None
    data_dir: Path = Path("data")
    draws: int = 5
    calibration: int = 1000
    choice: int = 1000
    limit: int = 10_000
    seed: int = 0

    @property
    def identity(self):
        """The parts of a table may be measured one by one."""
        return dataclasses.replace(super().identity, network=(), code=())


# The codes.


class Draw:
    """One draw of calibration images, and the thresholds that several codes ask of it.

    Attributes:
      network: the traced network.
      variables: its trained variables.
      images: of calibration.
    """

    def __init__(self, network, variables, images):
        self.network, self.variables, self.images = network, variables, images
        self.kept = {}

    def thresholds(self, levels: int, percentile: float | None = None) -> dict:
        """By least squares, or a percentile divided by the levels."""
        if percentile is None:
            return self._once(jb.methods.calibrate_mse, Burst(levels))
        ranges = self._once(jb.calibrate, Burst(1), percentile=percentile)
        return {name: theta / levels for name, theta in ranges.items()}

    def allotted(self, error: float) -> dict:
        """Those of the preset `once`; for another error they are scaled."""
        if "allotted" not in self.kept:
            self.kept["allotted"] = jb.methods.allot(
                self.network, self.variables, self.images[:200], error=1.0
            )
        return {n: theta * error**0.5 for n, theta in self.kept["allotted"].items()}

    def _once(self, calibrate, neuron, **settings) -> dict:
        key = repr((neuron, settings))
        if key not in self.kept:
            self.kept[key] = calibrate(
                self.network, self.variables, self.images, neuron, **settings
            )
        return self.kept[key]

    def convert(self, neuron, thresholds, initial: float):
        """`(model, spiking)`."""
        spiking = jb.convert(self.network, self.variables, thresholds, initial=initial)
        return jb.Model(self.network, neuron), spiking


@dataclasses.dataclass(frozen=True)
class Code:
    """A code: how a network is converted to it, and with which settings.

    Attributes:
      make: `make(draw, **setting)` gives `(model, spiking)`.
      steps: the most time steps it is given.
      unit: what its hardware is charged by.
      settings: those to choose from.
      slots: of a time step, given the setting.
      alike: the code that sends the same numbers, as other spikes.
      before: steps of a first run that silences neurons (SRP); they count.
      preset: the setting that `jb.presets` has, measured in full whatever is chosen.
      spikes: whether it is one; else it is priced as a conventional network of as many
        bits as its activations need.
    """

    make: Callable
    steps: int
    unit: str
    settings: tuple[dict, ...] = ({},)
    slots: Callable[..., int] = lambda **_: 1
    alike: str | None = None
    before: int = 0
    preset: dict | None = None
    spikes: bool = True


def repeating(
    draw, *, neuron, percentile=None, initial=0.5, correct=0, each_step=False
):
    """Codes that are presented the input at every step: a percentile for the range, or
    least squares; corrected means if asked for."""
    thresholds = draw.thresholds(neuron.levels, percentile)
    model, spiking = draw.convert(neuron, thresholds, initial)
    if correct:
        spiking = jb.methods.correct(
            model, spiking, draw.images[:100], steps=correct, each_step=each_step
        )
    return model, spiking


def changing(draw, *, neuron=None, levels, initial=0.5, rows=1, balanced=True):
    """Codes that are presented the input once: least squares, balanced, corrected."""
    neuron = neuron or SigmaDelta(levels)
    thresholds = draw.thresholds(levels)
    if balanced:
        thresholds = jb.methods.balance(
            draw.network, draw.variables, thresholds, draw.images[:100], neuron,
            steps=rows,
        )  # fmt: skip
    model, spiking = draw.convert(neuron, thresholds, initial)
    return model, jb.methods.correct(model, spiking, draw.images[:200], steps=rows)


def once(draw, *, error):
    """The preset."""
    model, spiking = draw.convert(SigmaDelta(), draw.allotted(error), 0.5)
    return model, jb.methods.correct(model, spiking, draw.images[:200], steps=1)


def refining(draw):
    """The preset."""
    return jb.presets.refining(
        draw.network, draw.variables, draw.images, progress=False
    )


def exact(draw):
    """The whole range of activations, in as many slots as there are."""
    slots = 2**16 - 1
    return draw.convert(SigmaDelta(slots), draw.thresholds(slots, 100), 0.5)


def phases(draw, *, period):
    """Weighted spikes: thresholds of the numbers that a period can say."""
    return draw.convert(Phase(period), draw.thresholds(2**period - 1), 0.5)


def quantised(draw, *, bits):
    """`jb.methods.rounded`: weights in 8 bits, activations in so many."""
    most = 2**bits - 1
    model, spiking = changing(
        draw, neuron=Refining(most, silence=0), levels=most, balanced=False
    )
    return model, quantise(model, spiking, 8)


def some(name: str, *values, **others) -> tuple[dict, ...]:
    """Settings that differ in one thing."""
    return tuple({name: value, **others} for value in values)


RANGES = some("percentile", 99.9, 99.0, None)
WINDOWS = some("levels", 7, 15, 31)
from_zero = partial(repeating, initial=0.0)
signed = partial(Burst, signed=True)

# fmt: off
CODES = {
    "once":
        Code(once, 1, "digits", some("error", 0.003, 0.005, 0.01, 0.02, 0.03),
             preset={"error": 0.005}),
    "refining":
        Code(refining, 4, "digits"),
    "quantised ANN":
        Code(quantised, 1, "events", some("bits", 3, 4, 5, 6), spikes=False),
    "refining, no silence":
        Code(partial(changing, neuron=Refining(15, silence=0), rows=4), 4, "digits",
             some("levels", 2, 4, 7)),
    "radix":
        Code(changing, 1, "digits", WINDOWS, lambda levels: levels.bit_length()),
    "parallel, after Hao":
        Code(changing, 1, "quanta", WINDOWS, lambda levels: levels, "radix"),
    "first spike":
        Code(changing, 1, "events", WINDOWS, lambda levels: levels, "radix"),
    "first spike, exact":
        Code(exact, 1, "events", slots=lambda: 2**16 - 1),
    "few spikes":
        Code(partial(changing, initial=0.0), 1, "digits",
             some("levels", 15, 31, 63), lambda levels: levels.bit_length()),
    "once, two digits":
        Code(partial(changing, neuron=SigmaDelta(digits=2)), 1, "digits",
             some("levels", 8, 16)),
    "sigma-delta, one digit a step":
        Code(partial(changing, neuron=SigmaDelta(digits=1), rows=3), 4, "digits",
             some("levels", 8, 16)),
    "hierarchical thresholds, after H-MT":
        Code(repeating, 4, "digits", some("neuron", Burst(15), Burst(63))),
    "signed bursts, each step corrected (FTBC)":
        Code(partial(repeating, neuron=signed(5), correct=4, each_step=True), 4,
             "quanta"),
    "differential, after DCGS":
        Code(partial(changing, rows=4), 8, "digits",
             some("levels", 4, 8, neuron=Differential(8))
             + some("levels", 16, neuron=Differential(128))),
    "signed bursts (SNM)":
        Code(partial(repeating, correct=2), 8, "quanta",
             some("neuron", signed(5), signed(10))),
    "bursts, means corrected (AdaFire)":
        Code(partial(repeating, neuron=Burst(5), correct=4), 16, "quanta"),
    "phase, after Kim":
        Code(phases, 16, "quanta", some("period", 4, 8)),
    "bursts (the paper)":
        Code(partial(from_zero, neuron=Burst(5)), 32, "quanta", RANGES),
    "bursts, SpiCalib":
        Code(partial(from_zero, neuron=Burst(5, allowance=16)), 32, "quanta", RANGES),
    "signed spikes (ST-BIF)":
        Code(partial(repeating, neuron=signed(1)), 32, "quanta", RANGES),
    "integrate-and-fire, means corrected (SNNC)":
        Code(partial(repeating, neuron=Burst(1), correct=8), 32, "quanta"),
    "integrate-and-fire, some silenced (SRP)":
        Code(partial(repeating, neuron=Burst(1)), 32, "quanta", RANGES, before=4),
    "integrate-and-fire from θ/2 (OPI)":
        Code(partial(repeating, neuron=Burst(1)), 32, "quanta", RANGES),
    "integrate-and-fire":
        Code(partial(from_zero, neuron=Burst(1)), 32, "quanta", RANGES),
}
# fmt: on
"""Parallel, radix and first spike are told apart by what they send: the numbers are the
same, and measured once."""


# Measurements.


class Bench:
    """A trained network, its data, and what it answers.

    Attributes:
      network, variables: the network.
      draws: of calibration images.
      test, held: test images, and the training images on which settings are chosen.
      ann: `{id of a split: classes}` of the trained network.
    """

    def __init__(self, title: str, config: Config):
        self.config = config
        dataset, self.network, self.variables = load(title, config)
        rng = np.random.default_rng(config.seed)
        order = rng.permutation(len(dataset.train))
        choice, order = order[: config.choice], order[config.choice :]
        self.draws = [
            Draw(
                self.network,
                self.variables,
                dataset.train[
                    rng.choice(order, config.calibration, replace=False)
                ].inputs,
            )
            for _ in range(config.draws)
        ]
        self.held, self.test = dataset.train[choice], dataset.test[: config.limit]
        self.ann = {
            part: answers(self.network, self.variables, split.inputs)
            for part, split in (("held", self.held), ("test", self.test))
        }

    def run(self, code: Code, setting: dict, draw: int, part: str, count, steps):
        """`(model, spiking, logits [N, T, C], traffic {name: [N, T, 3]})` of the first
        images of a part."""
        model, spiking = code.make(self.draws[draw], **setting)
        split = getattr(self, part)
        images = split.inputs[:count]
        return model, spiking, *record(model, spiking, images, steps, code.before)

    def right(self, part: str, classes) -> tuple[np.ndarray, np.ndarray]:
        """`[N, T]`: whether classes are right, less whether the trained network's are;
        whether they are the same."""
        own, labels = self.ann[part][: len(classes)], getattr(self, part).labels
        labels = labels[: len(classes), None]
        own = own[:, None]
        return (classes == labels) - 1.0 * (own == labels), classes == own


def load(title: str, config: Config):
    """The dataset, the traced network and its variables."""
    arch, data = title.split("-")
    source = common.Source(arch, data_dir=config.data_dir)
    if not released(title):
        source = dataclasses.replace(
            source,
            torch_weights=weights(title, config),
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
        )
    return source.load_trained(data)


def released(title: str) -> bool:
    """Whether the weights are."""
    return title in jb.released.names()


def weights(title: str, config: Config) -> Path:
    """Where the weights would be."""
    return (config.weights or Path()) / f"{title.replace('-', '_')}.safetensors"


@lru_cache(maxsize=8)
def _answering(network):
    return lambda variables, batch: network(variables, batch).argmax(-1)


def answers(network, variables, inputs) -> np.ndarray:
    """The classes of the trained network, `[N]`."""
    parts = sweep(_answering(network), variables, inputs, 100)
    return np.concatenate([found[:rows] for rows, found in parts])


@lru_cache(maxsize=8)
def _running(model, steps: int, before: int):
    """Logits `[B, T, C]` and counts `{name: [B, T, 3]}` in each unit."""

    def function(circuit, batch):
        leaves = model.network.leaves(batch)
        if before:
            trace = silenced_of(model, circuit, leaves, steps - before, before)
        else:
            trace = trace_of(model, circuit, leaves, steps)
        counts = {
            name: jnp.stack([getattr(own, unit) for unit in UNITS], -1).swapaxes(0, 1)
            for name, own in trace.traffic.items()
        }
        return trace.logits[0].swapaxes(0, 1), counts

    return function


def record(model, spiking, inputs, steps: int, before: int = 0):
    """Logits `[N, T, C]`, and what is sent at each step `{name: [N, T, 3]}`."""
    parts = [
        jax.tree.map(lambda x, rows=rows: x[:rows], found)
        for rows, found in sweep(
            _running(model, steps, before), prepared(model, spiking), inputs, 100,
            options=compiler_options(model.network),
        )
    ]  # fmt: skip
    return jax.tree.map(lambda *x: np.concatenate(x), *parts)


def operations(network, traffic) -> np.ndarray:
    """What traffic causes per MAC of the trained network, in the shape of a count."""
    cost = jb.energy.cost_per_event(network)
    macs = sum(jb.energy.macs(network).values())
    return sum(own * (cost.get(name, 0.0) / macs) for name, own in traffic.items())


def conventional(bench: Bench) -> dict:
    """What the trained network reaches, and what it costs by every model."""
    network, costs = bench.network, jb.energy.PRESETS.values()
    return {
        "accuracy": float((bench.ann["test"] == bench.test.labels).mean()),
        "held": float((bench.ann["held"] == bench.held.labels).mean()),
        "images": len(bench.test),
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


def tried(bench: Bench, code: Code, setting: dict) -> dict:
    """On held-out training images with the first draw: points lost and operations, of
    every time step."""
    count = bench.config.choice // (2 if code.steps > LONG else 1)
    *_, logits, traffic = bench.run(code, setting, 0, "held", count, code.steps)
    apart, _ = bench.right("held", logits.argmax(-1))
    return {
        "lost": (-100 * apart.mean(0)).tolist(),
        "operations": operations(bench.network, means(traffic)).tolist(),
    }


def means(traffic: dict) -> dict:
    """Over images, added up over time, `{name: [T, 3]}`."""
    return {name: own.mean(0).cumsum(0) for name, own in traffic.items()}


def choose(code: Code, found: list[dict]) -> dict:
    """The cheapest setting and time step for every goal: `{goal: (setting, steps)}`.
    Without any for half a point, the one that loses least."""
    unit, points = UNITS.index(code.unit), []
    for i, one in enumerate(found):
        for t, (lost, spent) in enumerate(
            zip(one["lost"], one["operations"], strict=True)
        ):
            points.append((i, t + 1, lost, spent[unit]))
    goals = {}
    for goal in GOALS:
        fits = [one for one in points if one[2] <= goal + 1e-9]
        if fits:
            goals[goal] = min(fits, key=lambda one: one[3])[:2]
    if GOALS[0] not in goals:
        goals["least"] = min(points, key=lambda one: (one[2], one[3]))[:2]
    return goals


def measured(
    bench: Bench, code: Code, setting: dict, draw: int, count: int, steps: int
) -> dict:
    """On test images."""
    model, spiking, logits, traffic = bench.run(
        code, setting, draw, "test", count, steps
    )
    classes = logits.argmax(-1)
    apart, same = bench.right("test", classes)
    common_ = apart[: images_of(code, bench.config)[1]]
    mean = {name: own.mean(0) for name, own in traffic.items()}
    sent = sum(mean[name].cumsum(0) for name in bench.network.neurons)
    row = {
        "images": len(classes),
        "accuracy": (classes == bench.test.labels[: len(classes), None]).mean(0),
        "difference": apart.mean(0),
        "deviation": apart.std(0),
        "shared": common_.mean(0),
        "agreement": same.mean(0),
        "operations": operations(bench.network, means(traffic)),
        "sent": sent,
    }
    row = {name: np.asarray(value).tolist() for name, value in row.items()}
    if draw:
        return row
    counted = {
        name: jb.traffic.Traffic(*np.moveaxis(own, -1, 0)) for name, own in mean.items()
    }
    curves = jb.evaluation.Curves(np.array(row["accuracy"]), counted, len(classes))
    row["joules"] = priced(code, model, curves)
    if steps > 1 and not code.before:
        margins = jb.anytime.settle(
            model, spiking, bench.held.inputs[:500], steps, agreement=0.99
        )
        spent = operations(bench.network, traffic)
        labels = bench.test.labels[: len(classes)]
        row["anytime"] = stopped(logits, spent, labels, margins)
    return row


def images_of(code: Code, config: Config) -> tuple[int, int]:
    """How many test images meet the first draw, and how many the others."""
    share = 5 if code.steps > LONG else 1
    return config.limit // share, min(config.limit, 2000) // share


def examine(bench: Bench, name: str, keep: Callable) -> dict:
    """Chooses settings, and measures them; each measurement is kept by itself."""
    code, numbers = CODES[name], CODES[name].alike or name
    tries = [
        keep(f"{numbers}: {setting} tried", partial(tried, bench, code, setting))
        for setting in code.settings
    ]
    goals = choose(code, tries)
    first, others = images_of(code, bench.config)
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
                partial(measured, bench, code, setting, *plan),
            )
            for plan in plans
        ]
        first_ = draws[0] | {"joules": draws[0]["joules"][code.unit]}
        rows[str(setting)] = [first_, *draws[1:]]
    return {
        "unit": code.unit,
        "slots": code.slots(**code.settings[main[0]]),
        "main": {"setting": str(code.settings[main[0]]), "steps": main[1]},
        "goals": {
            str(goal): {"setting": str(code.settings[i]), "steps": steps}
            for goal, (i, steps) in goals.items()
            if goal in GOALS
        },
        "settings": rows,
    }


def spread(draws: list[dict], t: int) -> float:
    """Deviation of the difference over draws, on the images that all of them meet."""
    if len(draws) < 2:
        return 0.0
    return float(np.std([draw["shared"][t] for draw in draws], ddof=1))


def interval(draws: list[dict], t: int) -> float:
    """Half of the 95 % interval of the first draw's difference, over images."""
    return 1.96 * draws[0]["deviation"][t] / draws[0]["images"] ** 0.5


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
    frame = bench.test[:100].inputs
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
        found.append({
            "share": tall * wide / (height * width),
            "changes": operations(bench.network, sent).mean(0).tolist(),
            "whole": operations(bench.network, whole).mean(0).tolist(),
            "agreement": float(same.mean()), "images": len(frame),
        })  # fmt: skip
    return found


def measure(config: Config, run: common.Kept) -> dict:
    """Every code on every network."""
    run.whole = not config.code and set(NETWORKS) <= set(config.network)
    common.one_device_per_core()
    chosen = [
        name
        for name in CODES
        if not config.code
        or any(
            name == one or (one not in CODES and name.startswith(one))
            for one in config.code
        )
    ]
    if not chosen:
        raise ValueError(f"code: expected beginnings of {list(CODES)}")
    records = {}
    for title in config.network:
        if not released(title) and not weights(title, config).exists():
            print(f"{title}: left out, for want of its weights in --weights")
            continue
        bench, scope, rows = Bench(title, config), run.within(title), {}

        def keep(name: str, measure: Callable, scope=scope) -> dict:
            return scope(name, timed, name, measure)

        ann = keep("ANN", partial(conventional, bench))
        print(f"{title}: ANN {ann['accuracy']:.2%} of {ann['images']:,} test images")
        for name in chosen:
            rows[name] = examine(bench, name, keep)
            print(line(name, rows[name]), flush=True)
            jax.clear_caches()
        streams = keep("streams", partial(streamed, bench))
        records[title] = {"ann": ann, "rows": rows, "streams": streams}
    return {"networks": records}


def timed(name: str, measure: Callable) -> dict:
    """What is measured, and says how long it took."""
    start, spent = time.perf_counter(), time.process_time()
    found = measure()
    print(
        f"  {name}: {time.process_time() - spent:.0f} s of CPU, "
        f"{time.perf_counter() - start:.0f} s",
        flush=True,
    )
    return found


# Tables and figures.


def at(row: dict, goal: float | None = None):
    """The draws of the setting, and the time step (from 0), of a goal."""
    chosen = row["goals"][str(goal)] if goal else row["main"]
    return row["settings"][chosen["setting"]], chosen["steps"] - 1


def line(name: str, row: dict) -> str:
    draws, t = at(row)
    first = draws[0]
    return (
        f"{name} {row['main']['setting']}: {first['accuracy'][t]:.2%} at T = {t + 1}, "
        f"{100 * first['difference'][t]:+.2f} ± {100 * interval(draws, t):.2f} points, "
        + ", ".join(
            f"{n:.2f} {unit}"
            for n, unit in zip(first["operations"][t], UNITS, strict=True)
        )
    )


def table(title: str, record: dict) -> str:
    """Markdown of one network."""
    ann = record["ann"]
    models = list(ann["joules"]["no"])
    head = ["code", "T", "time", "images", "accuracy", "difference", "lossless",
            "± draws", "agreement", *(f"{u} per MAC" for u in UNITS),
            *(f"{u} per neuron" for u in UNITS), *models]  # fmt: skip
    lines = []
    every = [
        (name, setting, draws, row)
        for name, row in record["rows"].items()
        for setting, draws in row["settings"].items()
        if setting == row["main"]["setting"] or len(draws) > 1
    ]
    for name, setting, draws, row in every:
        t, first = row["main"]["steps"] - 1, draws[0]
        if setting != row["main"]["setting"]:
            name = f"{name}, preset"
        joules = first["joules"]
        apart, within = 100 * first["difference"][t], 100 * interval(draws, t)
        lines.append([
            name if "0.5" in row["goals"] else f"{name} ¹",
            str(t + 1), str(row["slots"] * (t + 1 + ann["depth"])),
            f"{first['images']:,}", f"{100 * first['accuracy'][t]:.2f}",
            f"{apart:+.2f} ± {within:.2f}", "yes" if abs(apart) <= within else "no",
            f"{100 * spread(draws, t):.2f}", f"{100 * first['agreement'][t]:.1f}",
            *(f"{x:.2f}" for x in first["operations"][t]),
            *(f"{x / ann['neurons']:.2f}" for x in first["sent"][t]),
            *(f"{joules[m][t] / ann['joules']['no'][m]:.2f}" for m in models),
        ])  # fmt: skip
    counts = {len(at(row)[0]) for row in record["rows"].values()}
    return (
        f"{title}, ANN {ann['accuracy']:.2%} of {ann['images']:,} test images "
        f"({ann['held']:.1%} of the training images of the choice)\n\n"
        + common.markdown(head, lines)
        + f"\n\nEach at the cheapest setting and time step that lose at most half a "
        "point on held-out training images (¹ none does; the one that loses least). "
        "Accuracy in %; difference from the trained network in points on the same test "
        "images, first draw of calibration images, ± 95 % over images; lossless: the "
        "interval includes 0. ± draws: standard deviation of the accuracy over "
        f"{', '.join(map(str, sorted(counts)))} draws, on the images that all of them "
        "met (in part because these are few). Time: until the answer, in slots, a step "
        "for each layer included. Digits are signed binary. Energies over the "
        "trained network's without reuse, each code in the unit that its hardware is "
        "charged by; the quantised network's with zeros skipped."
    )


def text(record: dict) -> str:
    """All tables."""
    return "\n\n".join(map(table, *zip(*record["networks"].items(), strict=True)))


def draw(record: dict, folder: Path) -> None:
    """All figures."""
    records = record["networks"]
    draw_codes(folder / "codes.png", records, UNITS)
    draw_codes(folder / "methods.png", dict([*records.items()][:1]), UNITS[::2])
    draw_goals(folder / "goals.png", records)
    draw_anytime(folder / "anytime.png", records)
    draw_streams(folder / "streams.png", records)


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
    every = [draws[0] for draws in row["settings"].values()]
    if len(every[0]["accuracy"]) > 1:
        every = at(row)[0][:1]
    cost, apart = (
        np.concatenate([one[what] for one in every])
        for what in ("operations", "difference")
    )
    cost = cost[:, UNITS.index(unit)]
    order = cost.argsort()
    return cost[order], ann + 100 * apart[order]


def draw_codes(path: Path, records: dict, units) -> None:
    """Accuracy against operations, a panel for each unit."""
    look, rows = styles(records), len(records)
    size = {"figsize": (5.4 * len(units), 4 * rows + 1), "squeeze": False}
    with common.figure(path, rows, len(units), sharey="row", **size) as (whole, axes):
        for (title, found), panels in zip(records.items(), axes, strict=True):
            ann = 100 * found["ann"]["accuracy"]
            for axis, unit in zip(panels, units, strict=True):
                costs = []
                for name, row in found["rows"].items():
                    if name == "quantised ANN" and unit == "quanta":
                        continue  # it has no unary spikes
                    cost, accuracy = curve_of(row, unit, ann)
                    label, draws, t = name, *at(row)
                    if accuracy.max() < ann - 3.2:
                        label = f"{name} (below: {accuracy[t]:.0f} % at T = {t + 1})"
                    axis.plot(cost, accuracy, label=label, lw=1.2, ms=5, **look[name])
                    costs.append(draws[0]["operations"][t][UNITS.index(unit)])
                    axis.errorbar(
                        costs[-1], ann + 100 * draws[0]["difference"][t],
                        100 * interval(draws, t), color=look[name]["color"], lw=0.8,
                    )  # fmt: skip
                axis.axhline(ann, color="0.35", linestyle="--", lw=0.9)
                axis.set(title=f"{title}: cost in {unit}",
                         xlabel=f"{unit} that reach a synapse, per MAC of the ANN",
                         ylim=(ann - 3.2, ann + 0.8))  # fmt: skip
                doubling(axis)
                axis.set_xlim(min(costs) / 2, max(costs) * 2)
                axis.grid(alpha=0.3, which="both")
            panels[0].set_ylabel("test accuracy (%); dashed: the ANN")
        handles, labels = axes[0, -1].get_legend_handles_labels()
        whole.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8,
                     frameon=False)  # fmt: skip


def doubling(axis) -> None:
    """A logarithmic axis of costs with plain numbers."""
    from matplotlib.ticker import LogLocator

    axis.set_xscale("log", base=2)
    axis.xaxis.set_minor_locator(LogLocator(2, subs=[1.5]))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:g}")


def draw_goals(path: Path, records: dict) -> None:
    """What the settings that were chosen for each goal cost, and lose on test images;
    in the unit of each code."""
    look, rows = styles(records), len(records)
    size = {"figsize": (11, 4.6 * rows + 0.8), "squeeze": False}
    with common.figure(path, rows, 2, **size) as (whole, axes):
        for (title, found), panels in zip(records.items(), axes, strict=True):
            for axis, kinds in zip(panels, (("quanta",), ("digits", "events")),
                                   strict=True):  # fmt: skip
                for name, row in found["rows"].items():
                    if row["unit"] not in kinds:
                        continue
                    points, k = [], UNITS.index(row["unit"])
                    for goal in GOALS:
                        if str(goal) in row["goals"]:
                            draws, t = at(row, goal)
                            one = draws[0]
                            points.append((one["operations"][t][k],
                                           -100 * one["difference"][t]))  # fmt: skip
                    if points:
                        points = np.array(sorted(points)).T
                        axis.plot(*points, label=name, lw=1, ms=6, **look[name])
                for goal in GOALS:
                    axis.axhline(goal, color="0.5", linestyle=":", lw=0.9)
                axis.set(title=f"{title}: paid in {' or '.join(kinds)}",
                         xlabel="operations per MAC of the ANN",
                         ylabel="points lost on test images",
                         ylim=(-0.5, 4))  # fmt: skip
                doubling(axis)
                axis.margins(x=0.3)
                axis.invert_yaxis()
                axis.grid(alpha=0.3)
                if len(axis.lines) > len(GOALS):
                    axis.legend(fontsize=7, frameon=False, loc="lower right")
        whole.suptitle(
            "least cost for a loss of 1, 0.5 and 0.2 points on training images",
            fontsize=10,
        )


def draw_anytime(path: Path, records: dict) -> None:
    """From a fixed number of steps to as many as each image needs."""
    look, columns = styles(records), len(records)
    size = {"figsize": (5.6 * columns, 4.4), "squeeze": False}
    with common.figure(path, 1, columns, **size) as (_, axes):
        for (title, found), axis in zip(records.items(), axes[0], strict=True):
            ann, costs = 100 * found["ann"]["accuracy"], [1.0]
            for name, row in found["rows"].items():
                first, k = at(row)[0][0], UNITS.index(row["unit"])
                if "anytime" not in first:
                    continue
                cost = np.array(first["operations"])[:, k]
                accuracy = 100 * np.array(first["accuracy"])
                if accuracy.max() < ann - 6:
                    continue
                costs += cost[accuracy > ann - 6].tolist()
                axis.plot(cost, accuracy, lw=1, ms=3, **look[name])
                own = first["anytime"]
                axis.plot(own["operations"][k], 100 * own["accuracy"], ms=10, ls="",
                          label=f"{name}: {own['steps']:.1f} of {len(cost)} steps",
                          **look[name])  # fmt: skip
            axis.axhline(ann, color="0.35", linestyle="--", lw=0.9)
            axis.set(ylabel="accuracy (%)", ylim=(ann - 6, ann + 1),
                     title=f"{title}: all images as long (lines), or each as it needs",
                     xlabel="operations per MAC, in the unit of each code")  # fmt: skip
            doubling(axis)
            axis.set_xlim(min(costs) / 1.5, max(costs) * 1.5)
            axis.title.set_fontsize(9)
            axis.grid(alpha=0.3)
            if len(axis.lines) > 1:
                axis.legend(fontsize=7, frameon=False, loc="lower right")


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
    common.answer("codes", Config, measure, text, draw, __doc__)
