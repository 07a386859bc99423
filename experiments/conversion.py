"""One trained network as refining bursts, bursts and IF: accuracy and energy over time.

What cifar10.py, cifar100.py, fashion_mnist.py, imagenet.py and digits.py share.
"""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Literal

import common
import optax
import tyro

import jaxburst as jb
from jaxburst.training import checkpoints

LABELS = {"refining": "refining bursts", "burst": "bursts", "IF": "integrate-and-fire"}
RECIPE = [field.name for field in dataclasses.fields(jb.Recipe)]


@dataclasses.dataclass(frozen=True)
class Simulation:
    """How a trained network is converted and simulated."""

    steps: int = 64  # number of time steps; refining bursts take at most 8
    gamma: int = 5  # largest number of spikes per step of a burst neuron
    percentile: float = 99.9  # of the activations; the range that thresholds cover
    initial: float = 0.5  # potential over threshold (0 in the paper)
    calibration: int = 1000  # training images that are looked at for the thresholds
    limit: int | None = None  # number of test images; all of them if not given
    at_once: int = 100  # number of images at a time; memory grows with it

    def __post_init__(self):
        common.check_settings(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Experiment, jb.Recipe):
    """Loads a network or trains it, converts it, simulates it on the test images."""

    source: tyro.conf.OmitArgPrefixes[common.Source] = common.Source()
    # passes over the training images, to train, from the weights if any are given; Li
    # and Zeng take 300. Without, the network is the released one, or that of the
    # weights given
    epochs: int | None = None
    resume: bool = False  # continue the training in `out` where it stopped
    validation: int = 5000  # training images held out, to watch it; 0 trains on all
    train_limit: int | None = None  # number of training images; all if not given
    optimiser: Literal["sgd", "adamw"] = "sgd"  # AdamW, decay 0.05: for transformers
    simulation: tyro.conf.OmitArgPrefixes[Simulation] = Simulation()

    def __post_init__(self):
        super().__post_init__()
        if self.epochs:
            self.recipe(self.batch_size)

    @property
    def identity(self) -> Config:
        """A training that is resumed is the same."""
        return dataclasses.replace(super().identity, resume=False)

    @property
    def told(self) -> dict:
        """Nothing of a training that never was."""
        unused = () if self.epochs else {*RECIPE, "validation", "optimiser"}
        return {name: v for name, v in super().told.items() if name not in unused}

    def recipe(self, images: int) -> jb.Recipe:
        """Of a training on so many images."""
        own = {name: getattr(self, name) for name in RECIPE}
        return jb.Recipe(**own | {"batch_size": min(self.batch_size, images)})


def answer(name: str, about: str, dataset: str | None = None, **default) -> None:
    """Runs the experiment of this name on a dataset, whose name it has if none is
    given, with an architecture, `arch=`, and a `simulation=` as defaults."""
    arch = common.Source(arch=default.pop("arch", "vgg9"))

    def measure(config: Config, run: common.Kept) -> dict:
        load = loaded if config.epochs is None else fitted
        trained = load(dataset or name, config, run.folder / "training")
        run.same(trained[-1])
        result = compare(*trained, config.simulation, run, run.folder)
        return {"results": {config.source.arch: result}}

    task = name, Config, measure, text, draw, about
    common.answer(*task, default=Config(source=arch, **default))


def loaded(name: str, config: Config, folder: Path):
    """The dataset, the traced network and its variables, released or given."""
    common.one_device_per_core()
    return config.source.load_trained(name)


def fitted(name: str, config: Config, folder: Path):
    """The same, after a training."""
    with checkpoints.opened(folder, config.resume):
        pass  # an occupied folder is refused before data are read
    dataset, module, given = config.source.load(name, config.validation)
    train = dataset.train[: config.train_limit]
    arch = config.source.arch
    print(f"training {arch} on {len(train):,} images, {config.epochs} epochs")
    recipe, optimiser = config.recipe(len(train)), None
    if config.optimiser == "adamw":
        rate = jb.training.schedule(recipe, len(train) // recipe.batch_size)
        decayed = optax.adamw(rate, weight_decay=0.05)
        optimiser = optax.chain(optax.clip_by_global_norm(1.0), decayed)
    variables, _ = jb.fit(
        *(module, train, recipe),
        variables=given,
        optimiser=optimiser,
        validation=dataset.validation if config.validation else None,
        directory=folder,
        resume=config.resume,
    )
    return dataset, common.trace(module, variables, dataset), variables


def compare(dataset, network, variables, settings: Simulation, run, folder) -> dict:
    """Converts a trained network to refining bursts, bursts and IF; simulates all.

    `settings` is about bursts and IF; refining bursts take their preset. Saves the
    burst network in `folder`.
    """
    test, size = dataset.test[: settings.limit], settings.at_once
    task = network, variables, dataset.train[: settings.calibration].inputs
    ann = run("ANN", jb.accuracy, network, variables, test, batch_size=size)
    print(f"ANN: {ann:.2%} of {len(test):,} test images")

    def one(name: str) -> dict:
        steps = settings.steps
        if name == "refining":
            steps = min(steps, 8)
            model, spiking = jb.presets.refining(*task, batch_size=size)
        else:
            neuron = jb.Burst(settings.gamma if name == "burst" else 1)
            how = {"percentile": settings.percentile, "initial": settings.initial}
            model, spiking = common.Conversion(neuron=neuron, **how)(*task, size)
        row, events = common.measure(model, spiking, test, steps, size)
        if name == "burst":
            apart = jb.verify(*task[:2], spiking, task[2][:100], batch_size=size)
            print(f"converted against trained: {max(apart.values()):.1e} apart at most")
            notes = {"dataset": dataset.name, "mean": test.mean, "std": test.std}
            jb.save(folder / "spiking.safetensors", model, spiking, notes=notes)
        joules = jb.energy.joules(network, events)
        return {"neuron": repr(model.neuron)} | row | {"joules": joules}

    kinds = ["refining"] if common.beyond_relu(network) else LABELS
    return {
        "dataset": dataset.name,
        "test_images": len(test),
        "ann_accuracy": ann,
        "ann_joules": jb.energy.ann_joules(network),
        "runs": {name: run(name, one, name) for name in kinds},
    }


def text(record: dict) -> str:
    """For each network: accuracy and, in brackets, energy over the ANN's."""
    tables = []
    for network, result in record["results"].items():
        cells = {LABELS[name]: cells_of(run) for name, run in result["runs"].items()}
        rows = [
            [str(t), *(of[t - 1] if t <= len(of) else "" for of in cells.values())]
            for t in common.shown(max(map(len, cells.values())))
        ]
        tables.append(
            f"{network} on {result['dataset']}, {result['test_images']:,} test images, "
            f"ANN {result['ann_accuracy']:.2%}; accuracy in %, in brackets energy over "
            f"the ANN's\n\n{common.markdown(['T', *cells], rows, '--:')}"
        )
    return "\n\n".join(tables)


def cells_of(run: dict) -> list[str]:
    """Accuracy and, in brackets, energy after each step."""
    pairs = zip(run["accuracy"], run["energy_over_ann"], strict=True)
    return [f"{100 * accuracy:.2f} ({energy:.2f})" for accuracy, energy in pairs]


def draw(record: dict, folder: Path) -> None:
    """Accuracy against energy and against time, one row for each network."""
    panels = []
    for network, result in record["results"].items():
        runs = {LABELS[name]: run for name, run in result["runs"].items()}
        energy = {label: run["energy_over_ann"] for label, run in runs.items()}
        images = f"{result['test_images']:,} test images"
        title = f"{network}, {result['dataset']}, {images}"
        for spent in (energy, None):
            look = {"energy": spent, "title": title}
            panels.append(partial(common.accuracies, runs, result, **look))
    path = folder / f"{record['experiment']}.png"
    common.picture(path, panels, 2, size=(5.5, 3.9))
