"""One trained network as refining bursts, bursts and IF: accuracy and energy over time.

What cifar10.py, cifar100.py, fashion_mnist.py, digits.py and imagenet.py share.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import common
import optax
import tyro

import jaxburst as jb
from jaxburst.training import checkpoints

LABELS = {"refining": "refining bursts", "burst": "bursts", "IF": "integrate-and-fire"}


@dataclasses.dataclass(frozen=True)
class Simulation:
    """How a trained network is converted and simulated.

    Attributes:
      steps: number of time steps; refining bursts take at most 8.
      gamma: largest number of spikes per step of a burst neuron.
      percentile: of the activations; the range that thresholds are made to cover.
      initial: initial potential over threshold (0 in the paper).
      calibration: number of training images that are looked at for the thresholds.
      limit: number of test images; all of them if not given.
      at_once: number of images at a time; memory grows with it.
    """

    steps: int = 64
    gamma: int = 5
    percentile: float = 99.9
    initial: float = 0.5
    calibration: int = 1000
    limit: int | None = None
    at_once: int = 100

    def __post_init__(self):
        common.check_settings(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Experiment, jb.Recipe):
    """Loads a network or trains it, converts it, simulates it on the test images.

    Attributes:
      source: which network, with which weights and data.
      epochs: passes over the training images, to train, from the weights if any are
        given; Li and Zeng take 300. Without, the network is loaded: the released one,
        or that of the weights given.
      resume: continue the training in `out` where it stopped.
      validation: training images held out of training, to watch it; 0 trains on all.
      train_limit: number of training images; all of them if not given.
      optimiser: SGD; or AdamW, with a decay of 0.05, for transformers.
      simulation: how the network is converted and simulated.
    """

    source: tyro.conf.OmitArgPrefixes[common.Source] = common.Source()
    epochs: int | None = None
    resume: bool = False
    validation: int = 5000
    train_limit: int | None = None
    optimiser: Literal["sgd", "adamw"] = "sgd"
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
        used = super().told
        unused = () if self.epochs else {*_RECIPE, "validation", "optimiser"}
        return {name: value for name, value in used.items() if name not in unused}

    def recipe(self, images: int) -> jb.Recipe:
        """Of a training on so many images."""
        own = {name: getattr(self, name) for name in _RECIPE}
        return jb.Recipe(**own | {"batch_size": min(self.batch_size, images)})


_RECIPE = [field.name for field in dataclasses.fields(jb.Recipe)]


def answer(name: str, description: str, arch: str = "vgg9") -> None:
    """Runs the experiment on a dataset, by its name, with a default network."""

    def measure(config: Config, run: common.Kept) -> dict:
        trained = _loaded if config.epochs is None else _trained
        dataset, network, variables = trained(name, config, run.folder / "training")
        run.same(variables)
        task = dataset, network, variables, config.simulation, run, run.folder
        return {"results": {config.source.arch: compare(*task)}}

    default = Config(source=common.Source(arch=arch))
    common.answer(name, Config, measure, text, draw, description, default=default)


def _loaded(name: str, config: Config, folder: Path):
    common.one_device_per_core()
    return config.source.load_trained(name)


def _trained(name: str, config: Config, folder: Path):
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

    `settings` is about bursts and IF; refining bursts take their preset. Prints the
    report of each layer, and saves the burst network in `folder`.
    """
    test = dataset.test[: settings.limit]
    images = dataset.train[: settings.calibration].inputs
    size = settings.at_once
    ann = run("ANN", jb.accuracy, network, variables, test, batch_size=size)
    print(f"ANN: {ann:.2%} of {len(test):,} test images")

    def one(name: str) -> dict:
        task, steps = (network, variables, images), settings.steps
        if name == "refining":
            steps = min(steps, 8)
            model, spiking = jb.presets.refining(*task, batch_size=size)
        else:
            neuron = jb.Burst(settings.gamma if name == "burst" else 1)
            how = {"percentile": settings.percentile, "initial": settings.initial}
            made = common.Conversion(neuron=neuron, **how)
            model, spiking = made(*task, size)
        row, events = common.measure(model, spiking, test, steps, size)
        if name == "burst":
            check(network, variables, model, spiking, images, settings)
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


def check(network, variables, model, spiking, images, settings: Simulation) -> None:
    """Prints how far the converted network is from the trained one, and its layers."""
    size, some = settings.at_once, images[: min(settings.at_once, 50)]
    apart = jb.verify(network, variables, spiking, images[:100], batch_size=size)
    print(f"converted against trained: largest difference {max(apart.values()):.1e}")
    print(f"\nlayers, {settings.steps} steps of bursts on {len(some)} training images")
    rows = jb.analysis.report(model, spiking, some, settings.steps)
    print(jb.analysis.table(rows), end="\n\n")


def text(record: dict) -> str:
    """For each network: accuracy and, in brackets, energy over the ANN's."""
    tables = []
    for network, result in record["results"].items():
        runs = result["runs"]
        longest = max(len(run["accuracy"]) for run in runs.values())
        rows = [
            [str(t), *(_cell(run, t) for run in runs.values())]
            for t in common.shown(longest)
        ]
        head = ["T", *(LABELS[name] for name in runs)]
        tables.append(
            f"{network} on {result['dataset']}, {result['test_images']:,} test images, "
            f"ANN {result['ann_accuracy']:.2%}; accuracy in %, in brackets energy over "
            f"the ANN's\n\n{common.markdown(head, rows, '--:')}"
        )
    return "\n\n".join(tables)


def _cell(run: dict, t: int) -> str:
    """Accuracy and energy after `t` steps."""
    if t > len(run["accuracy"]):
        return ""
    return f"{100 * run['accuracy'][t - 1]:.2f} ({run['energy_over_ann'][t - 1]:.2f})"


def draw(record: dict, folder: Path) -> None:
    """Accuracy against energy and against time, one row for each network."""
    results, path = record["results"], folder / f"{record['experiment']}.png"
    size = {"figsize": (11, 3.9 * len(results)), "squeeze": False}
    with common.figure(path, len(results), 2, **size) as (_, axes):
        for (network, result), (left, right) in zip(results.items(), axes, strict=True):
            runs = {LABELS[name]: run for name, run in result["runs"].items()}
            energy = {label: run["energy_over_ann"] for label, run in runs.items()}
            images = f"{result['test_images']:,} test images"
            title = f"{network}, {result['dataset']}, {images}"
            common.accuracies(runs, result, left, energy=energy, title=title)
            common.accuracies(runs, result, right, title=title)
