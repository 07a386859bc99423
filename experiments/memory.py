"""Energy that counts memory: spikes beside the quantised conventional network.

    python experiments/memory.py --dataset cifar10 --arch resnet20 \\
        --torch-weights resnet20.safetensors --mean .485 .456 .406 --std .229 .224 .225

Refining bursts (the preset) and the paper's bursts, under every cost model of
`jaxburst.energy` and in the unit that the hardware of each code sends, against the
conventional network without and with reuse of what is read, and against the same
network with every activation rounded once, to each of `--bits`, and weights of 8 bits,
with and without skipping zeros. Its accuracy is measured, too. How often neurons may
fire before spikes cost more is drawn over the number of steps, beside what others
found: Yan et al. (arXiv 2409.08290v4), unary spikes, below 5.7 % per neuron and step at
5 steps; Dampfhoffer et al. (IEEE TETCI 7(3), 2023), binary spikes, 0.15 to 1.38 per
synapse and inference. The preset balances thresholds for quanta; beside it are refining
bursts that are balanced for graded events under a model with memory.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from itertools import product
from pathlib import Path

import common
import numpy as np

import jaxburst as jb
from jaxburst.methods.rounding import rounded

USUAL, MEMORY = "horowitz_fp32", "horowitz_int8"
REUSE = ("no", "full")
PUBLISHED = {
    "Yan et al. 2026, unary": (5, 5 * 0.057, 5 * 0.057),
    "Dampfhoffer et al. 2023, binary": (1, 0.15, 1.38),
}
"""At which step, the least and the most events per synapse and image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Study):
    """Prices conversions with memory."""

    steps: int = 4  # number of time steps
    bits: tuple[int, ...] = (2, 3, 4, 6, 8)  # of activations of quantised networks
    calibration: int = 500


def measure(config: Config, run: common.Kept) -> dict:
    """The conventional networks, and every code in the units of its hardware."""
    dataset, *trained = config.load(run)
    task = *trained, dataset.train[: config.calibration].inputs
    test = dataset.test[: config.limit]
    ann = run("ANN", jb.accuracy, *trained, test)
    print(f"ANN: {ann:.2%} of {len(test):,} test images")
    quantised = {b: run(f"{b} bits", once, *task, test, b) for b in config.bits}
    sent = {bits: row["events"] for bits, row in quantised.items()}
    preset = partial(jb.presets.refining, *task)
    for_events = partial(preset, cost=jb.energy.LEMAIRE, unit="events")
    makers = {
        "refining": (preset, jb.energy.UNITS),
        "balanced for events": (for_events, ("quanta", "events")),
        "bursts": (partial(common.Conversion(neuron=jb.Burst(5)), *task), ("quanta",)),
    }
    codes = {
        name: run(name, spikes, make, units, test, config.steps, sent)
        for name, (make, units) in makers.items()
    }
    network, costs = trained[0], jb.energy.PRESETS.values()
    conventional = {cost.name: opponents(network, cost, sent) for cost in costs}
    accuracies = {str(bits): row["accuracy"] for bits, row in quantised.items()}
    return {
        "test_images": len(test),
        "ann_accuracy": ann,
        "standard_error": float(np.sqrt(ann * (1 - ann) / len(test))),
        "break_even": codes["refining"].pop("break_even"),
        "codes": codes,
        "quantised": accuracies,
        "conventional": conventional,
        "verdicts": verdicts(ann, codes, accuracies, conventional),
    }


def once(network, variables, images, test, bits: int) -> dict:
    """The quantised network: accuracy, and how many activations are not zero."""
    curves = jb.evaluate(*rounded(network, variables, images, bits=bits), test, 1)
    events = {name: counts.events for name, counts in curves.traffic.items()}
    return {"accuracy": float(curves.accuracy[0]), "events": events}


def spikes(make, units, test, steps: int, sent: dict) -> dict:
    """Accuracy, operations and joules after each step, by model and unit."""
    model, weights = make()
    curves, costs = jb.evaluate(model, weights, test, steps), jb.energy.PRESETS
    macs, operations = sum(jb.energy.macs(model.network).values()), {}
    for unit in ("quanta", "events"):
        counts = {node: getattr(c, unit) for node, c in curves.traffic.items()}
        done = sum(jb.energy.operations(model.network, counts).values())
        operations[unit] = np.cumsum(done) / macs
    joules = {
        name: {u: jb.energy.joules(model, curves, cost=cost, unit=u) for u in units}
        for name, cost in costs.items()
    }
    row = {"neuron": repr(model.neuron), "accuracy": curves.accuracy}
    row |= {"operations_per_mac": operations, "joules": joules}
    if units == jb.energy.UNITS:
        for cost, unit in ((USUAL, "quanta"), (MEMORY, "digits")):
            said = jb.energy.report(model, curves, cost=costs[cost], unit=unit)
            print(said, end="\n\n")
        row["break_even"] = {
            name: even(model, cost, steps + 4, sent) for name, cost in costs.items()
        }
    return row


def opponents(network, cost, sent: dict) -> dict:
    """Joules of the conventional networks, `{reuse: {network: joules}}`."""
    joules = {}
    for reuse in REUSE:
        price = partial(jb.energy.ann_joules, network, cost=cost, reuse=reuse)
        of = joules[f"{reuse}_reuse"] = {"full_width": price()}
        for bits, events in sent.items():
            of[f"{bits}_bits"] = price(bits=bits)
            of[f"{bits}_bits_zeros_skipped"] = price(bits=bits, sent=events)
    return joules


def even(model, cost, steps: int, sent: dict) -> dict:
    """Events per neuron and step at which spikes cost as much, for every opponent."""
    bits = min(sent, key=lambda bits: abs(bits - 4))
    some = {"bits": bits, "sent": sent[bits]}
    return {
        f"{name}{reuse}_reuse": jb.energy.break_even(
            model, steps, cost=cost, reuse=reuse, **options
        )
        for name, options in (("", {}), (f"{bits}_bits_zeros_skipped_", some))
        for reuse in REUSE
    }


def verdicts(ann, codes, quantised, conventional) -> list[str]:
    """The least energy within a point of the ANN, of spikes and of rounded numbers."""
    near = [bits for bits, accuracy in quantised.items() if accuracy >= ann - 0.01]
    t = common.reached(codes["refining"]["accuracy"], ann - 0.01)
    if not near or t is None:
        return ["nothing is within a point of the ANN"]
    lines = []
    for cost, joules in conventional.items():
        units = codes["refining"]["joules"][cost]
        unit = min(units, key=lambda unit: units[unit][t - 1])
        spent = f"{1e6 * units[unit][t - 1]:.1f} µJ at T = {t} ({unit})"
        others = []
        for reuse, own in joules.items():
            names = [f"{bits}_bits_zeros_skipped" for bits in near]
            name = min(names, key=own.get)
            others.append(f"{1e6 * own[name]:.1f} with {reuse.replace('_', ' ')}")
        lines.append(
            f"{cost}: refining bursts {spent}; quantised, {near[0]} bits, zeros "
            f"skipped: {', '.join(others)}; within a point of the ANN's accuracy"
        )
    return lines


def text(record: dict) -> str:
    """Accuracy and energy over the conventional network's, without and with memory."""
    of = record["conventional"]
    models = [name for name in of if name != USUAL]
    kinds = [(USUAL, "no"), *product(models, REUSE)]
    head = ["code", "T", "accuracy", "unit", USUAL]
    head += [f"{name}, {reuse} reuse" for name, reuse in kinds[1:]]
    rows = []
    for name, row in record["codes"].items():
        for unit, (t, accuracy) in product(
            row["joules"][MEMORY], enumerate(row["accuracy"])
        ):
            over = [
                row["joules"][cost][unit][t] / of[cost][f"{reuse}_reuse"]["full_width"]
                for cost, reuse in kinds
            ]
            cells = [name, str(t + 1), f"{accuracy:.2%}", unit, f"{over[0]:.3f}"]
            rows.append(cells + [f"{ratio:.2f}" for ratio in over[1:]])
    bits = [f"{bits} {accuracy:.2%}" for bits, accuracy in record["quantised"].items()]
    lines = [
        f"{record['test_images']:,} test images, ANN {record['ann_accuracy']:.2%}; "
        f"rounded once, to bits: {', '.join(bits)}",
        *("", common.markdown(head, rows), "", *record["verdicts"]),
    ]
    return "\n".join(lines)


def draw(record: dict, folder: Path) -> None:
    """Events per synapse of a whole run: measured, and where spikes cost as much."""
    curves = []
    for i, (name, found) in enumerate(record["break_even"].items()):
        for reuse, style in (("no", "-"), ("full", ":")):
            if name == USUAL and reuse == "full":
                continue  # it knows no memory
            each = np.array(found[f"{reuse}_reuse"], float)
            times = np.arange(1, len(each) + 1)
            label = f"{name}, {reuse} reuse" if name != USUAL else name
            label += "" if (each * times).max() > 0.01 else ": below 0.01"
            look = {"color": jb.plot.COLOURS[i], "ls": style, "label": label}
            curves.append((times, np.where(each > 0, each * times, np.nan), look))
    for name, unit, mark in (("refining", "events", "o"), ("bursts", "quanta", "s")):
        values = record["codes"][name]["operations_per_mac"][unit]
        look = {"color": "black", "marker": mark, "label": f"measured: {name}, {unit}"}
        curves.append((range(1, len(values) + 1), values, look))
    for name, (at, low, high) in PUBLISHED.items():
        middle, half = (low + high) / 2, (high - low) / 2
        look = {"yerr": half or None, "color": "black", "marker": "x", "label": name}
        curves.append((at, middle, look | {"ls": ""}))
    title = f"{common.title_of(record)}: below its line a code costs less than the ANN"
    labels = "time steps", "events per synapse and image"
    limits = {"ylim": (0.01, 5)}
    panel = common.Panel(title, *labels, curves, log=True, limits=limits)
    common.picture(folder / "memory.png", [panel], 1, size=(8, 5), below=True)


if __name__ == "__main__":
    common.answer("memory", Config, measure, text, draw, __doc__)
