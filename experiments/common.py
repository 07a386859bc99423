"""What the experiments share: settings, networks, measurements, records, figures."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import platform
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Literal

import jax
import numpy as np
import tyro

import jaxburst as jb
from jaxburst import checks
from jaxburst.io import files
from jaxburst.io.files import folder as prepare_folder
from jaxburst.training.stopping import Stopped

COLOURS = {"refining": "#2a7f4f", "burst": "#c8451b", "IF": "#3a6ea5"}

# Settings: which network, on which data, and how it is converted.


KINDS = {
    name: kind
    for kind, names in {
        "count": "at_once bits calibration choice draws gamma gammas levels limit "
        "selection train_limit trials",
        "steps": "steps longest",
        "fraction": "agreement initial",
        "percentile": "percentile percentiles",
        "positive": "budgets",
        "seed": "seed",
    }.items()
    for name in names.split()
}
"""What settings of these names are, as for the arguments of functions."""


def check_settings(settings) -> None:
    """Refuses settings that cannot be meant, before minutes of work.

    Raises:
      ValueError: naming the option.
    """
    for field in dataclasses.fields(settings):
        value, kind = getattr(settings, field.name), KINDS.get(field.name)
        if kind and value is not None:
            option = f"--{field.name.replace('_', '-')}"
            for one in value if isinstance(value, tuple) else (value,):
                checks.KINDS[kind](option, one, {})


@dataclasses.dataclass(frozen=True)
class Source:
    """Which network, with which weights and data.

    Attributes:
      arch: the network.
      checkpoint: a folder of trained weights (`OUT/training` of another run) to use
        instead of training.
      torch_weights: a PyTorch state dict (.safetensors) to use instead of training.
      mean: of the image channels, if the weights were trained with other constants.
      std: of the image channels, if the weights were trained with other constants.
      data_dir: folder of the prepared dataset; it is downloaded there if missing.
    """

    arch: Literal[tuple(jb.zoo.NETWORKS)] = "vgg9"
    checkpoint: Path | None = None
    torch_weights: Path | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    data_dir: Path = Path("data")

    def __post_init__(self):
        if self.checkpoint and self.torch_weights:
            raise ValueError("give --checkpoint or --torch-weights, not both")
        if (self.mean is None) != (self.std is None):
            raise ValueError("--mean and --std go together")

    def load(self, name: str, validation: int | None = None):
        """The dataset of this name, the module, and its variables if they are given."""
        dataset = jb.data.load(name, self.data_dir, validation=validation)
        if self.mean is not None:
            dataset = dataset.with_normalisation(self.mean, self.std)
        module = jb.zoo.NETWORKS[self.arch](dataset.classes)
        example, variables = dataset.test[:1].inputs, None
        if self.torch_weights is not None:
            variables = jb.load_pytorch(module, self.torch_weights, example).variables
        elif self.checkpoint is not None:
            variables = jb.training.restore(module, self.checkpoint)
        return dataset, module, variables

    def load_trained(self, name: str):
        """The dataset, the traced network and its variables, released if not given."""
        dataset, module, variables = self.load(name)
        if variables is None:
            released = f"{self.arch}-{name}"
            if released not in jb.released.names():
                raise ValueError(
                    f"no weights of {self.arch} on {name} are released (there are "
                    f"{', '.join(jb.released.names()) or 'none'}); give --checkpoint "
                    "or --torch-weights, or train with cifar10.py or cifar100.py"
                )
            module, variables = jb.pretrained(released)
        return dataset, trace(module, variables, dataset), variables


def trace(module, variables, dataset: jb.data.Dataset) -> jb.Network:
    """The traced network of a module, for the images of a dataset."""
    return jb.trace(module.apply, variables, dataset.test[:1].inputs)


@dataclasses.dataclass(frozen=True)
class Study:
    """What every study of one trained network is told.

    Attributes:
      dataset: what the network was trained on.
      source: which network, with which weights and data.
      out: folder for the results; runs/EXPERIMENT/DATASET_ARCH if not given.
    """

    dataset: Literal["cifar10", "cifar100"] = "cifar10"
    source: tyro.conf.OmitArgPrefixes[Source] = Source()
    out: Path | None = None

    def __post_init__(self):
        check_settings(self)

    @property
    def name(self) -> str:
        """DATASET_ARCH."""
        return f"{self.dataset}_{self.source.arch}"

    @property
    def title(self) -> str:
        """The same for figures."""
        return f"{self.dataset}, {self.source.arch}"

    def begin(self, experiment: str):
        """The folder for results, and what `Source.load_trained` returns."""
        folder = prepare_folder(self.out or Path("runs", experiment, self.name))
        return folder, *self.source.load_trained(self.dataset)


@dataclasses.dataclass(frozen=True)
class Simulation:
    """How a trained network is converted and simulated.

    Attributes:
      steps: number of time steps.
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
        check_settings(self)


# Measurements.


def convert(
    network, variables, images, neuron, *, percentile=99.9, initial=0.5, batch_size=100
):
    """A network of bursts, or of IF, with a percentile for its range."""
    thresholds = jb.calibrate(
        *(network, variables, images, neuron),
        percentile=percentile,
        batch_size=batch_size,
    )
    spiking = jb.convert(network, variables, thresholds, initial=initial)
    return jb.Model(network, neuron), spiking


def measure(model, spiking, test, steps: int, batch_size: int = 100):
    """Accuracy and energy of every step and the seconds it took; and the events."""
    start = time.perf_counter()
    curves = jb.evaluate(model, spiking, test, steps, batch_size=batch_size)
    seconds = time.perf_counter() - start
    energy = jb.energy.relative(model.network, curves.events)
    return {
        "accuracy": curves.accuracy.tolist(),
        "energy_over_ann": energy.tolist(),
        "seconds": seconds,
    }, curves.events


def compare(dataset, network, variables, settings: Simulation, folder: Path) -> dict:
    """Converts a trained network to refining bursts, bursts and IF; simulates all.

    `settings` is about bursts and IF; refining bursts take their preset and at most 8
    steps. Prints the report of each layer, saves the burst network in `folder`, and
    returns everything that was measured, ready for `write`.
    """
    test = dataset.test[: settings.limit]
    images = dataset.train[: settings.calibration].inputs
    size = settings.at_once
    ann = jb.accuracy(network, variables, test, batch_size=size)
    print(f"ANN: {ann:.2%} of {len(test):,} test images")
    runs = {}
    for name, gamma in (("refining", None), ("burst", settings.gamma), ("IF", 1)):
        steps = settings.steps
        if name == "refining":
            steps = min(steps, 8)
            model, spiking = jb.presets.refining(
                network, variables, images, batch_size=size
            )
        else:
            model, spiking = convert(
                *(network, variables, images, jb.Burst(gamma)),
                percentile=settings.percentile,
                initial=settings.initial,
                batch_size=size,
            )
        row, events = measure(model, spiking, test, steps, size)
        if name == "burst":
            some = images[: min(size, 50)]
            apart = jb.verify(
                network, variables, spiking, images[:100], batch_size=size
            )
            worst = max(apart.values())
            print(f"converted against trained: largest difference {worst:.1e}")
            print(f"\nlayers, {steps} steps of bursts on {len(some)} training images")
            rows = jb.analysis.report(model, spiking, some, steps)
            print(jb.analysis.table(rows), end="\n\n")
            notes = {"dataset": dataset.name, "mean": test.mean, "std": test.std}
            path = folder / "spiking.safetensors"
            jb.save(path, model, spiking, notes=notes)
        runs[name] = {"neuron": repr(model.neuron)} | row
        runs[name]["joules"] = jb.energy.joules(network, events).tolist()
        runs[name]["events"] = sum(events.values()).tolist()  # of each step
    return {
        "dataset": dataset.name,
        "test_images": len(test),
        "settings": dataclasses.asdict(settings),
        "network": str(network).splitlines(),
        "ann_accuracy": ann,
        "ann_joules": jb.energy.ann_joules(network),
        "runs": runs,
    }


@contextlib.contextmanager
def silent_channels():
    """Some channels never fire: true of most networks, and of no consequence."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="channels with the threshold 0")
        yield


def reached(accuracy: Sequence[float], goal: float) -> int | None:
    """The first time step, from 1, with at least the accuracy of the goal."""
    hits = np.array(accuracy) >= goal
    return int(hits.argmax()) + 1 if hits.any() else None


def drawn(dataset: jb.data.Dataset, count: int, rng: np.random.Generator):
    """Training images drawn at random, normalised."""
    return dataset.train[rng.choice(len(dataset.train), count, replace=False)].inputs


def shown(steps: int) -> list[int]:
    """1, 2, 4, 8, ... and the last step."""
    return sorted({2**k for k in range(steps.bit_length())} | {steps})


# Records.


def write(folder: Path, name: str, results: dict[str, dict], config: object) -> None:
    """Prints the table of each network; writes `name.json` and `name.png`.

    Args:
      folder: where to write; made by `prepare_folder`.
      name: of the experiment.
      results: `{network: what compare returned}`.
      config: the experiment's settings, written down with the results.
    """
    for network, result in results.items():
        print(f"{network} on {result['dataset']}, ANN {result['ann_accuracy']:.2%}")
        print(_table(result), end="\n\n")
    write_record(folder, name, config, results=results)
    _draw(folder / f"{name}.png", results)


def write_record(folder: Path, name: str, config, *optional: str, **found) -> None:
    """Writes what an experiment found, all or nothing, and what it was found with.

    Args:
      folder: where to write `name.json`.
      name: of the experiment.
      config: its settings: a dataclass or a dictionary.
      optional: packages whose versions are written down where they are installed.
      found: everything else.
    """
    if dataclasses.is_dataclass(config):
        config = dataclasses.asdict(config)
    record = {"experiment": name, "config": config, "provenance": provenance(*optional)}
    write_json(folder / f"{name}.json", record | found)


def write_json(path: Path, record: dict) -> None:
    """Writes a record, all or nothing: rows on a line each, six digits of a number."""
    write_text(path, _json(record))


def _json(value, indent: int = 0) -> str:
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, float):
        return json.dumps(float(f"{value:.6g}"))
    if not isinstance(value, dict | list | tuple):
        plain = value is None or isinstance(value, str | bool | int)
        return json.dumps(value if plain else str(value), ensure_ascii=False)
    named = isinstance(value, dict)
    inner = value.values() if named else value
    texts = [_json(item, indent + 1) for item in inner]
    if named:
        names = (json.dumps(str(name), ensure_ascii=False) for name in value)
        texts = [f"{n}: {text}" for n, text in zip(names, texts, strict=True)]
    start, end = "{}" if named else "[]"
    row = not any(isinstance(item, dict) for item in inner)
    if row and not any("\n" in text for text in texts):
        return start + ", ".join(texts) + end
    space = "\n" + " " * (indent + 1)
    return start + space + ("," + space).join(texts) + space[:-1] + end


def write_text(path: Path, text: str) -> None:
    """Writes a text, all or nothing."""
    write_file(path, text + "\n")


def write_file(path: Path, content: str | bytes) -> None:
    """Writes a file, all or nothing, and says so."""
    print(f"wrote {files.write(path, content)}")


class Kept:
    """What a long experiment has measured, kept until it is complete.

    The same command with the same versions continues where it was interrupted. A line
    of JSON for each result, in `unfinished.jsonl` of the folder.
    """

    def __init__(self, folder: Path, config: object):
        self.path = folder / "unfinished.jsonl"
        self.origin = repr((config, provenance()["versions"]))
        self.found = {}
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            with contextlib.suppress(json.JSONDecodeError):  # empty, or cut off
                origin, name, value = json.loads(line)
                if origin == self.origin:
                    self.found[name] = value
        if self.found:
            print(f"continuing with {len(self.found)} results of {self.path}")

    def __call__(self, name: str, measure: Callable[[], dict]) -> dict:
        """What was kept under this name; else measures and keeps it."""
        if name not in self.found:
            self.found[name] = measure()
            with self.path.open("a") as file:
                # On a line of its own, even after one that was cut off.
                file.write("\n" + json.dumps([self.origin, name, self.found[name]]))
        return self.found[name]

    def within(self, scope: str) -> Callable[[str, Callable[[], dict]], dict]:
        """The same for results whose names are their own within the scope only."""
        return lambda name, measure: self(f"{scope}: {name}", measure)

    def done(self) -> None:
        """Everything is written elsewhere."""
        self.path.unlink(missing_ok=True)


def provenance(*optional: str) -> dict:
    """Command, versions and machine, for the JSON of an experiment.

    `optional` packages are named where they are installed.
    """
    versions = {"jaxburst": jb.__version__}
    for package in ("jax", "jaxlib", "flax", "optax", "numpy", *optional):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "command": ["python", *sys.argv],
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
        "cpus": os.cpu_count(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def run(main: Callable[[], None]) -> None:
    """Runs an experiment; what a user can mend ends in one line, not in a traceback.

    Programs that took over a second to compile are kept for the next run, in
    `~/.cache/jaxburst` if `JAX_COMPILATION_CACHE_DIR` names no other folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = Path.home() / ".cache/jaxburst"
        jax.config.update("jax_compilation_cache_dir", str(folder))

    def terminate(*_):
        raise _Terminated

    signal.signal(signal.SIGTERM, terminate)
    try:
        main()
    except (OSError, ValueError, TypeError, ImportError, ArithmeticError) as error:
        sys.exit(f"error: {error}")
    except Stopped:  # has said how to go on
        raise
    except KeyboardInterrupt as error:
        print(
            "stopped; a training with checkpoints continues with --resume; ablation, "
            "codes and energy with the same command",
            file=sys.stderr,
        )
        sys.exit(143 if isinstance(error, _Terminated) else 130)


class _Terminated(KeyboardInterrupt):
    """By SIGTERM, outside a training."""


def one_device_per_core() -> None:
    """Makes a device of every CPU core, so that all take part in `jb.evaluate`.

    Nothing changes where JAX already runs, or was given a number of CPU devices.
    """
    if jax.config.jax_num_cpu_devices < 0:
        with contextlib.suppress(RuntimeError):  # raised where JAX runs
            jax.config.update("jax_num_cpu_devices", jb.devices.cores())


# Tables and figures.


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], rule=None) -> str:
    """A Markdown table; the rule is a `---` for each column if not given."""
    lines = [" | ".join(head), " | ".join(rule or ["---"] * len(head))]
    lines += [" | ".join(row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


@contextlib.contextmanager
def figure(path: Path, *shape: int, dpi: int = 130, **options):
    """Gives `(figure, axes)` to draw on; a PNG of it is written at the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    made, axes = plt.subplots(*shape, layout="constrained", **options)
    yield made, axes
    drawn = io.BytesIO()
    made.savefig(drawn, dpi=dpi, format="png")
    plt.close(made)
    write_file(path, drawn.getvalue())


def doubling(axis, label: str = "time steps") -> None:
    """An axis on which time steps or energies double from mark to mark."""
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set_xlabel(label)
    axis.grid(alpha=0.3)


def accuracy_against_energy(axis, ann: float, title: str) -> None:
    """Dresses a figure of that kind: the ANN's line, title, labels, legend."""
    axis.axhline(100 * ann, color="0.35", linestyle="--", label=f"ANN, {ann:.2%}")
    axis.set(
        title=f"{title}: accuracy and energy, a dot per time step",
        xlabel="energy / ANN",
        ylabel="test accuracy (%)",
    )
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8, loc="lower right")


def _table(result: dict) -> str:
    lines = ["    T" + "".join(f"  {name:>9}  energy/ANN" for name in result["runs"])]
    for t in shown(result["settings"]["steps"]):
        cells = (
            f"  {run['accuracy'][t - 1]:>9.2%}  {run['energy_over_ann'][t - 1]:>10.3f}"
            if t <= len(run["accuracy"])
            else " " * 23
            for run in result["runs"].values()
        )
        lines.append((f"{t:>5}" + "".join(cells)).rstrip())
    return "\n".join(lines)


def _draw(path: Path, results: dict[str, dict]) -> None:
    """Accuracy against energy and against time, one row for each network."""
    rows = len(results)
    with figure(path, rows, 2, figsize=(11, 3.9 * rows), squeeze=False) as (_, axes):
        for (network, result), row in zip(results.items(), axes, strict=True):
            gamma = result["settings"]["gamma"]
            labels = {
                "refining": "refining bursts",
                "burst": f"bursts, γ = {gamma}",
                "IF": "integrate-and-fire",
            }
            runs = {labels[name]: run for name, run in result["runs"].items()}
            images, about = result["test_images"], f"{network}, {result['dataset']}"
            curves = {
                label: jb.evaluation.Curves(np.array(run["accuracy"]), {}, images)
                for label, run in runs.items()
            }
            energy = {label: run["energy_over_ann"] for label, run in runs.items()}
            ann, title = result["ann_accuracy"], f"{about}, {images:,} images"
            jb.plot.accuracy(curves, energy=energy, ann=ann, title=title, axes=row[0])
            jb.plot.accuracy(curves, ann=ann, title=title, axes=row[1])
