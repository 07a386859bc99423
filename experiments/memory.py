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
synapse and inference.

`--balance` adds refining bursts whose thresholds are balanced for graded events under
two models with memory instead of quanta.
"""

from __future__ import annotations

import dataclasses
import warnings

import common
import numpy as np
import tyro

import jaxburst as jb
from jaxburst.methods.rounding import rounded

MEMORY = "horowitz_int8"  # the model with memory that is printed
PUBLISHED = (
    ("Yan et al. 2026, unary", 5, (5 * 0.057, 5 * 0.057)),
    ("Dampfhoffer et al. 2023, binary", None, (0.15, 1.38)),
)


@dataclasses.dataclass(frozen=True)
class Config(common.Study):
    """Prices conversions with memory.

    Attributes:
      steps: number of time steps.
      bits: of the activations of the quantised networks.
      calibration: number of training images.
      limit: number of test images.
      balance: whether to try thresholds that are balanced for graded events.
      levels: of the thresholds that are balanced.
    """

    steps: int = 4
    bits: tuple[int, ...] = (2, 3, 4, 6, 8)
    calibration: int = 500
    limit: int = 10_000
    balance: bool = False
    levels: tuple[int, ...] = (3, 4, 6)


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    common.one_device_per_core()
    folder, dataset, network, variables = config.begin("memory")
    images = dataset.train[: config.calibration].inputs
    test = dataset.test[: config.limit]
    ann = jb.accuracy(network, variables, test)
    print(f"ANN: {ann:.2%} of {len(test):,} test images")
    quantised = {}
    for bits in config.bits:
        pair = rounded(network, variables, images, bits=bits)
        quantised[bits] = jb.evaluate(*pair, test, 1)
        print(f"{bits} bits: {quantised[bits].accuracy[0]:.2%}")
    spiking = {"refining": jb.presets.refining(network, variables, images)}
    with common.silent_channels():
        spiking["bursts"] = common.convert(network, variables, images, jb.Burst(5))
    if config.balance:
        for levels in config.levels:
            spiking |= balanced(network, variables, images, levels)
    codes, reports = {}, {}
    for name, (model, weights) in spiking.items():
        curves = jb.evaluate(model, weights, test, config.steps)
        codes[name] = code(model, curves)
        units = ("quanta",) if name == "bursts" else jb.energy.UNITS
        reports[name] = {
            cost.name: {
                unit: priced(model, curves, cost, unit, name in ("refining", "bursts"))
                for unit in units
            }
            for cost in jb.energy.PRESETS.values()
        }
        if name == "refining":
            for cost, unit in (("horowitz_fp32", "quanta"), (MEMORY, "digits")):
                cost = jb.energy.PRESETS[cost]
                print(jb.energy.report(model, curves, cost=cost, unit=unit), end="\n\n")
    conventional = {
        cost.name: opponents(network, cost, quantised)
        for cost in jb.energy.PRESETS.values()
    }
    model = spiking["refining"][0]
    even = {
        cost.name: thresholds(model, cost, config.steps + 4, quantised)
        for cost in jb.energy.PRESETS.values()
    }
    rows = table(codes, reports, conventional)
    print(common.markdown(*rows))
    accuracies = {b: float(curves.accuracy[0]) for b, curves in quantised.items()}
    lines = verdicts(ann, codes, accuracies, conventional, reports)
    print("\n".join(["", *lines]))
    common.write_record(
        *(folder, "memory", config),
        test_images=len(test),
        ann_accuracy=ann,
        standard_error=float(np.sqrt(ann * (1 - ann) / len(test))),
        depth=jb.energy.depth(network),
        macs=sum(jb.energy.macs(network).values()),
        codes=codes,
        quantised=accuracies,
        verdicts=lines,
        conventional=conventional,
        reports=reports,
        break_even=even,
        published={name: [steps, *span] for name, steps, span in PUBLISHED},
    )
    _draw(folder / "memory.png", even, codes, config)


def balanced(network, variables, images, levels: int) -> dict:
    """Refining bursts as of the preset, balanced for quanta and for graded events."""
    neuron = jb.Refining(gamma=15, ratio=2, silence=0.6)
    with common.silent_channels():
        start = jb.methods.calibrate_mse(network, variables, images, jb.Burst(levels))
    found = {}
    for unit, cost in (
        ("quanta", jb.energy.HOROWITZ_FP32),
        ("digits", jb.energy.HOROWITZ_INT8),
        ("events", jb.energy.LEMAIRE),
    ):
        thresholds = jb.methods.balance(
            *(network, variables, start, images[:100], neuron), cost=cost, unit=unit
        )
        model = jb.Model(network, neuron)
        spiking = jb.convert(network, variables, thresholds, initial=0.4)
        spiking = jb.methods.correct(model, spiking, images[:200], steps=4)
        found[f"{levels} levels, balanced for {unit}, {cost.name}"] = (model, spiking)
    return found


def code(model, curves) -> dict:
    """What a code sends, of all populations together."""
    graph = model.network.graph
    neurons = sum(np.prod(graph[n].image_shape) for n in model.network.neurons)
    sent = [curves.traffic[name] for name in model.network.neurons]
    total = jb.traffic.Traffic(*(sum(counts) for counts in zip(*sent, strict=True)))
    taps = sum(jb.energy.macs(model.network).values())
    per_synapse = {}
    for unit in ("quanta", "events"):
        counts = {name: getattr(c, unit) for name, c in curves.traffic.items()}
        done = sum(jb.energy.operations(model.network, counts).values())
        per_synapse[unit] = np.cumsum(done) / taps
    return {
        "neuron": repr(model.neuron),
        "accuracy": curves.accuracy,
        "events_per_neuron": total.events / neurons,
        "quanta_per_event": total.quanta / np.maximum(total.events, 1e-9),
        "digits_per_event": total.digits / np.maximum(total.events, 1e-9),
        "operations_per_mac": per_synapse,
    }


def priced(model, curves, cost, unit: str, whole: bool) -> dict:
    """Joules per image up to each step, over the ANN's, and by column."""
    found = jb.energy.report(model, curves, cost=cost, unit=unit)
    rows = [row for row in found.rows if row["steps"]]
    columns = {}
    if whole:
        for column in jb.energy.COLUMNS:
            columns[column] = [row[column] for row in rows]
    total = np.array([row["total"] for row in rows])
    ratios = {
        f"over_{name.replace(' ', '_')}": total / found[name]["total"]
        for name in ("no reuse", "full reuse")
    }
    return {"joules": total, **ratios, **columns}


def opponents(network, cost, quantised: dict) -> dict:
    """Joules of the conventional networks."""
    joules, found = jb.energy.ann_joules, {}
    for reuse in ("no", "full"):
        of = {"full_width": joules(network, cost=cost, reuse=reuse)}
        for bits, curves in quantised.items():
            options = {"cost": cost, "reuse": reuse, "bits": bits}
            of[f"{bits}_bits"] = joules(network, **options)
            of[f"{bits}_bits_zeros_skipped"] = joules(network, **options, sent=curves)
        found[f"{reuse}_reuse"] = of
    return found


def thresholds(model, cost, steps: int, quantised: dict) -> dict:
    """Events per neuron and step at which spikes cost as much, for every opponent."""
    bits = min(quantised, key=lambda bits: abs(bits - 4))
    some = {"bits": bits, "sent": quantised[bits]}
    return {
        f"{name}{reuse}_reuse": jb.energy.break_even(
            model, steps, cost=cost, reuse=reuse, **options
        )
        for name, options in (("", {}), (f"{bits}_bits_zeros_skipped_", some))
        for reuse in ("no", "full")
    }


def verdicts(ann, codes, quantised, conventional, reports) -> list[str]:
    """The least energy within a point of the ANN, of spikes and of rounded numbers."""
    lines = []
    near = [bits for bits, accuracy in quantised.items() if accuracy >= ann - 0.01]
    t = common.reached(codes["refining"]["accuracy"], ann - 0.01)
    if not near or t is None:
        return ["nothing is within a point of the ANN"]
    for cost, found in conventional.items():
        units = reports["refining"][cost]
        unit = min(units, key=lambda unit: units[unit]["joules"][t - 1])
        spent = f"{1e6 * units[unit]['joules'][t - 1]:.1f} µJ at T = {t} ({unit})"
        others = []
        for reuse, own in found.items():
            names = [f"{bits}_bits_zeros_skipped" for bits in near]
            name = min(names, key=own.get)
            others.append(f"{1e6 * own[name]:.1f} with {reuse.replace('_', ' ')}")
        lines.append(
            f"{cost}: refining bursts {spent}; quantised, {min(near)} bits, zeros "
            f"skipped: {', '.join(others)}; within a point of the ANN's accuracy"
        )
    return lines


def table(codes: dict, reports: dict, conventional: dict):
    """Accuracy and energy over the conventional network's, without and with memory."""
    head = ["code", "T", "accuracy", "unit", "horowitz_fp32"]
    models = [name for name in conventional if name != "horowitz_fp32"]
    head += [f"{name}, {reuse} reuse" for name in models for reuse in ("no", "full")]
    rows = []
    for name, found in codes.items():
        for unit in reports[name][MEMORY]:
            for t, accuracy in enumerate(found["accuracy"]):
                usual = reports[name]["horowitz_fp32"][unit]["over_no_reuse"][t]
                cells = [name, str(t + 1), f"{accuracy:.2%}", unit, f"{usual:.3f}"]
                for cost in models:
                    own = reports[name][cost][unit]
                    cells += [
                        f"{own[f'over_{reuse}_reuse'][t]:.2f}"
                        for reuse in ("no", "full")
                    ]
                rows.append(cells)
    return head, rows


def _draw(path, even: dict, codes: dict, config) -> None:
    """Events per synapse of a whole run: measured, and where spikes cost as much."""
    with common.figure(path, figsize=(8, 4.5)) as (_, axis):
        for i, (name, curves) in enumerate(even.items()):
            for kind, style in (("no_reuse", "-"), ("full_reuse", ":")):
                times = np.arange(1, len(curves[kind]) + 1)
                whole = np.array(curves[kind]) * times
                label = f"{name}, {kind.replace('_', ' ')}"
                line = {"linestyle": style, "color": f"C{i}", "label": label}
                axis.plot(times, np.where(whole > 0, whole, np.nan), **line)
        for name, colour in (("refining", "black"), ("bursts", "0.5")):
            unit = "quanta" if name == "bursts" else "events"
            values = codes[name]["operations_per_mac"][unit]
            times = np.arange(1, len(values) + 1)
            axis.plot(times, values, "o-", color=colour, label=f"measured: {name}")
        label, _, span = PUBLISHED[1]
        axis.axhspan(*span, color="0.85", label=label)
        label, at, span = PUBLISHED[0]
        axis.plot(at, span[0], "kx", label=label)
        axis.set_yscale("log")
        axis.set_ylim(0.01, 5)
        axis.set_xlabel("time steps")
        axis.set_ylabel("events per synapse and image")
        axis.set_title(f"{config.title}: break-even of graded events", fontsize=11)
        axis.legend(fontsize=7, ncols=2, loc="center left", bbox_to_anchor=(1, 0.5))


if __name__ == "__main__":
    warnings.filterwarnings("ignore", message="channels with the threshold 0")
    common.run(main)
