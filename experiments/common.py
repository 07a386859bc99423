"""What experiments share: settings, a network and its data, a run, a record, figures.

An experiment is one page: its settings, what it measures, a text and a figure of that.

    class Config(common.Study): ...

    def measure(config, run) -> dict:       # the record
        dataset, network, variables = config.load(run)
        row = run("IF", function, network)  # kept; a killed run goes on behind it

    if __name__ == "__main__":
        common.answer("energy", Config, measure, text, draw, __doc__)
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import platform
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro

import jaxburst as jb
from jaxburst import checks
from jaxburst.batching import gather
from jaxburst.io import files
from jaxburst.training.stopping import Stopped

# Settings: which network, on which data, and how it is converted.


KINDS = {
    "steps": ("longest", "steps"),
    "fraction": ("agreement", "initial"),
    "percentile": ("percentile", "percentiles"),
    "positive": ("budgets",),
    "natural": ("cutout", "hops", "speeds", "validation"),
    "seed": ("seed",),
}
"""What settings of these names are, as for the arguments of functions; others that
are whole numbers are counts."""


def check_settings(settings) -> None:
    """Refuses settings that cannot be meant, before minutes of work.

    Raises:
      ValueError: naming the option.
    """
    for field in dataclasses.fields(settings):
        value, counts = getattr(settings, field.name), re.search(r"\bint\b", field.type)
        own = [kind for kind, names in KINDS.items() if field.name in names]
        kind = own[0] if own else counts and "count"
        if kind and value is not None:
            option = f"--{field.name.replace('_', '-')}"
            for one in value if isinstance(value, tuple) else (value,):
                checks.KINDS[kind](option, one, {})


@dataclasses.dataclass(frozen=True)
class Source:
    """Which network, with which weights and data."""

    arch: Literal[tuple(jb.zoo.NETWORKS | jb.zoo.IMAGENET)] = "vgg9"  # the network
    checkpoint: Path | None = None  # trained weights: OUT/training of another run
    torch_weights: Path | None = None  # a PyTorch state dict (.safetensors)
    # of the image channels, if the weights were trained with other constants
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    data_dir: Path = Path("data")  # folder of the dataset; downloaded if missing

    def __post_init__(self):
        if self.checkpoint and self.torch_weights:
            raise ValueError("give --checkpoint or --torch-weights, not both")
        if (self.mean is None) != (self.std is None):
            raise ValueError("--mean and --std go together")

    def load(self, name: str, validation: int | None = None):
        """The dataset of this name, the module, and its variables if they are given."""
        zoo = jb.zoo.IMAGENET if name == "imagenet2012" else jb.zoo.NETWORKS
        if self.arch not in zoo:
            raise ValueError(f"--arch: for {name} expected one of {', '.join(zoo)}")
        dataset = jb.data.load(name, self.data_dir, validation=validation)
        if self.mean is not None:
            dataset = dataset.with_normalisation(self.mean, self.std)
        module = zoo[self.arch](dataset.classes)
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
                    "or --torch-weights, or train with --epochs"
                )
            module, variables = jb.pretrained(released)
        return dataset, trace(module, variables, dataset), variables


def trace(module, variables, dataset: jb.data.Dataset) -> jb.Network:
    """The traced network of a module, for the images of a dataset."""
    return jb.trace(module.apply, variables, dataset.test[:1].inputs)


def beyond_relu(network: jb.Network) -> bool:
    """Whether it has populations of other functions, which only refining bursts say."""
    return any(node.role.function for node in network.graph.of(jb.graph.Neuron))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """What every experiment is told; the comments are what `--help` says."""

    out: Path | None = None  # folder for the results, if not runs/EXPERIMENT/NETWORK
    redraw: bool = False  # only draw the record again that `out` holds

    def __post_init__(self):
        check_settings(self)

    @property
    def name(self) -> str:
        """Of the folder below runs/EXPERIMENT: DATASET_NETWORK, or one of them."""
        found = self.told | self.told.get("source", {})
        found = [found.get(name) for name in ("dataset", "arch", "network")]
        return "_".join(name for name in found if isinstance(name, str))

    @property
    def identity(self) -> Experiment:
        """What results depend on."""
        return dataclasses.replace(self, out=None)

    @property
    def told(self) -> dict:
        """What is written down of it."""
        left = {name: None for name in ("out", "redraw", "resume")}
        return _given(dataclasses.asdict(self) | left)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study(Experiment):
    """What every study of one trained network is told."""

    dataset: Literal["cifar10", "cifar100"] = "cifar10"  # it was trained on
    source: tyro.conf.OmitArgPrefixes[Source] = Source()
    calibration: int = 1000  # training images for the thresholds
    limit: int | None = None  # images to measure on; all of them if not given

    def load(self, run: Kept):
        """What `Source.load_trained` returns, with a device of every core."""
        one_device_per_core()
        dataset, network, variables = self.source.load_trained(self.dataset)
        run.same(variables)
        return dataset, network, variables


def _given(settings: dict) -> dict:
    """Without those that were not given and have no default."""
    found = {
        name: _given(value) if isinstance(value, dict) else value
        for name, value in settings.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def title_of(record: dict) -> str:
    """Data and network of a study's record, for its figures."""
    config = record["config"]
    return f"{config['dataset']}, {config['source']['arch']}"


# Measurements.


def outputs(network, variables, inputs, batch_size: int = 100) -> np.ndarray:
    """The first output of the trained network itself, `[N, ...]`."""

    def first(variables, batch):
        return jax.tree.leaves(network(variables, batch))[0]

    return gather(first, variables, inputs, batch_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """To bursts, or to integrate-and-fire: thresholds by a range of activations."""

    neuron: jb.Burst
    levels: int | None = None  # that divide the range, if not the largest burst
    percentile: float | None = 99.9  # the range; None: least squares, per channel
    per: str = "layer"  # or "channel": what has a threshold of its own
    pool: str = "lateral"  # how maxima are taken, see `jb.Model`
    initial: float = 0.5  # potential over threshold

    def __call__(self, network, variables, images, batch_size: int = 100):
        """`(model, spiking)`, with the images of calibration."""
        task = network, variables, images, jb.Burst(self.levels or self.neuron.gamma)
        some = {"batch_size": batch_size}
        if self.percentile is None:
            thresholds = jb.methods.calibrate_mse(*task, **some)
        else:
            some |= {"percentile": self.percentile, "per": self.per}
            thresholds = jb.calibrate(*task, **some)
        spiking = jb.convert(network, variables, thresholds, initial=self.initial)
        return jb.Model(network, self.neuron, self.pool), spiking


def measure(model, spiking, test, steps: int, batch_size: int = 100):
    """Accuracy and energy of every step and the seconds it took; and the events."""
    start = time.perf_counter()
    curves = jb.evaluate(model, spiking, test, steps, batch_size=batch_size)
    seconds = time.perf_counter() - start
    energy = jb.energy.relative(model.network, curves.events)
    row = {"accuracy": curves.accuracy, "energy_over_ann": energy, "seconds": seconds}
    return row, curves.events


def scores(model, spiking, data, steps: int, metric: Callable, batch_size: int = 100):
    """What a metric says of every input after every step, and what is sent.

    Returns `(numbers [T, N], Curves)`. The metric is of the first output and targets of
    a batch; the rest is as for `jb.evaluate`.
    """
    each = []

    def kept(found, wanted) -> np.ndarray:
        first = np.asarray(jax.tree.leaves(found)[0])
        each.append(np.asarray(metric(first, wanted), np.float64))
        return each[-1]

    some = {"metric": kept, "batch_size": batch_size}
    curves = jb.evaluate(model, spiking, data, steps, **some)
    # The metric is asked once for each step of a batch.
    return np.stack([np.concatenate(each[t::steps]) for t in range(steps)]), curves


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


def sampled(steps: int) -> np.ndarray:
    """Time steps, at most four from each power of two to the next, and the last."""
    octaves = np.arange(int(4 * np.log2(steps)) + 1) / 4
    return np.unique(np.append(np.rint(2**octaves), steps).astype(int))


# A run: locked, kept as far as it has come, stopped by signals in one line.


class Kept:
    """What a long experiment has measured, kept until all of it is written.

    The same command with the same versions continues where it was interrupted, and
    gives the same record. A line of JSON for each result, in `unfinished.jsonl`; those
    of other commands stay there.
    """

    whole = True

    def __init__(self, folder: Path, config: object):
        self.folder, self.path = folder, folder / "unfinished.jsonl"
        self.origin, self.found, self.others = repr((config, versions())), {}, ""
        lines = self.path.read_text() if self.path.exists() else ""
        for line in lines.splitlines(keepends=True):
            with contextlib.suppress(ValueError):  # empty, or cut off
                origin, name, value = json.loads(line)
                if origin == self.origin:
                    self.found[name] = value
                else:
                    self.others += line
        if self.found:
            print(f"continuing with {len(self.found)} results of {self.path}")

    def __call__(self, name: str, measure: Callable, *arguments, **keywords):
        """What was kept under this name; else measures and keeps it, as JSON has it.

        Says what was measured, and how long it took.
        """
        if name not in self.found:
            start, used = time.perf_counter(), time.process_time()
            value = measure(*arguments, **keywords)
            seconds, used = time.perf_counter() - start, time.process_time() - used
            if seconds > 1:
                print(f"  {name}: {seconds:.0f} s, {used:.0f} s of CPU", flush=True)
            text = json.dumps([self.origin, name, value], default=_plain)
            with self.path.open("a") as file:
                # On a line of its own, even after one that was cut off.
                file.write(f"\n{text}\n")
            self.found[name] = json.loads(text)[2]
        return self.found[name]

    def same(self, variables) -> None:
        """Refuses to go on with other weights.

        Raises:
          ValueError: they are not those that results were kept of.
        """
        leaves = map(np.asarray, jax.tree.leaves(variables))
        mark = hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()
        if self("weights", lambda: mark) != mark:
            raise ValueError(
                f"{self.path}: these results are of other weights; delete the file, "
                "or choose another --out"
            )

    def within(self, scope: str) -> Callable:
        """The same for results whose names are their own within the scope only."""
        return lambda name, *task, **more: self(f"{scope}: {name}", *task, **more)

    def done(self) -> None:
        """Everything is written elsewhere, unless it was a part of a `whole`."""
        if not self.whole:
            return
        if self.others:
            print(f"{self.path} keeps what other commands, stopped, have measured")
            files.write(self.path, self.others)
        else:
            self.path.unlink(missing_ok=True)


def _plain(value):
    """Arrays, NumPy's numbers and paths, for JSON."""
    return str(value) if isinstance(value, Path) else np.asarray(value).tolist()


def answer(
    name: str,
    settings: type[Experiment],
    measure: Callable[[Any, Kept], dict],
    text: Callable[[dict], str],
    draw: Callable[[dict, Path], None],
    description: str | None,
    *optional: str,
    **default: Experiment,
) -> None:
    """Runs an experiment as its command line says, and writes what it found: the record
    that `measure` makes of the settings and of `Kept`, its text, and figures.

    `description` is for `--help`; of `optional` packages versions are written down
    where they are installed; `default=` are settings that options change.
    """

    def main():
        config = tyro.cli(settings, description=description, **default)
        folder = prepare_folder(config.out or Path("runs", name, config.name))
        kept, path = None, folder / f"{name}.json"
        if not config.redraw:
            kept = Kept(folder, config.identity)
            write_record(folder, name, config.told, *optional, **measure(config, kept))
        elif not path.exists():
            raise FileNotFoundError(f"{path}: no record to draw; leave out --redraw")
        record = json.loads(path.read_text())
        print(f"\n{text(record)}\n")
        write(folder / f"{name}.md", text(record))
        draw(record, folder)
        if kept:
            kept.done()

    run(main)


_held = contextlib.ExitStack()


def prepare_folder(path: Path) -> Path:
    """A folder for results, which is this process's alone as long as `run` runs.

    Raises:
      OSError: files cannot be written to it, or another process writes to it.
    """
    folder = files.folder(path)
    _held.enter_context(files.locked(folder))
    return folder


def run(main: Callable[[], None]) -> None:
    """Runs an experiment; what a user can mend ends in one line, not in a traceback.

    Programs that took over a second to compile are kept for the next run, in
    `~/.cache/jaxburst` if `JAX_COMPILATION_CACHE_DIR` names no other folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = Path.home() / ".cache/jaxburst"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    came = signal.SIGINT

    def terminate(number, _):
        nonlocal came
        came = number
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, terminate)
    try:
        with _held:
            main()
    except (OSError, ValueError, TypeError, ImportError, ArithmeticError) as error:
        sys.exit(f"error: {error}")
    except Stopped:  # has said how to go on
        raise
    except KeyboardInterrupt:
        line = "stopped; the same command goes on, with --resume where it trains"
        print(line, file=sys.stderr)
        sys.exit(128 + came)


def one_device_per_core() -> None:
    """Makes a device of every CPU core, so that all take part in `jb.evaluate`.

    Nothing changes where JAX already runs, or was given a number of CPU devices.
    """
    if jax.config.jax_num_cpu_devices < 0:
        with contextlib.suppress(RuntimeError):  # raised where JAX runs
            jax.config.update("jax_num_cpu_devices", jb.devices.cores())


# Records.


def write_record(folder: Path, name: str, config, *optional: str, **found) -> None:
    """Writes what an experiment found to `name.json`, and what it was found with: its
    settings (a dataclass, or a dictionary), and versions, of `optional` packages too.
    """
    if dataclasses.is_dataclass(config):
        config = dataclasses.asdict(config)
    record = {"experiment": name, "config": config, "provenance": provenance(*optional)}
    write(folder / f"{name}.json", record | found)


def provenance(*optional: str) -> dict:
    """Command, versions and machine, for the JSON of an experiment.

    `optional` packages are named where they are installed.
    """
    return {
        "command": ["python", *sys.argv],
        "versions": versions(*optional),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": [device.device_kind for device in jax.devices()],
        "cpus": os.cpu_count(),
        "time": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }


def versions(*optional: str) -> dict[str, str]:
    """Of jaxburst, and of what is installed of the packages it computes with."""
    found = {"jaxburst": jb.__version__}
    for package in ("jax", "jaxlib", "flax", "optax", "numpy", *optional):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def write(path: Path, content: dict | str | bytes) -> None:
    """Writes a record, a text or a picture, all or nothing, and says so."""
    content = _json(content) if isinstance(content, dict) else content
    content = f"{content}\n" if isinstance(content, str) else content
    print(f"wrote {files.write(path, content)}")


def _json(record: dict) -> str:
    """With five digits of a number; an object that holds no other is a line."""
    exact = json.dumps(record, default=_plain)
    rounded = json.loads(
        exact,
        parse_float=lambda x: float(f"{float(x):.5g}"),
        parse_constant=lambda name: None,  # what is not finite
    )
    return _laid(rounded)


def _laid(value, margin: str = "\n") -> str:
    text, inner = json.dumps(value, ensure_ascii=False), f"{margin} "
    inside = any(mark in text[1:] for mark in (": {", "[{", ", {"))
    if not isinstance(value, dict | list) or not inside:
        return text
    cells = [_laid(one, inner) for one in (value.values() if text[0] == "{" else value)]
    if text[0] == "{":
        names = (json.dumps(name, ensure_ascii=False) for name in value)
        cells = [f"{name}: {cell}" for name, cell in zip(names, cells, strict=True)]
    return text[0] + inner + f",{inner}".join(cells) + margin + text[-1]


# Tables and figures.


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], rule="---") -> str:
    """A Markdown table, with the rule below the head of all columns, or of each."""
    rule = [rule] * len(head) if isinstance(rule, str) else rule
    lines = map(" | ".join, [head, rule, *rows])
    return "\n".join(f"| {line} |" for line in lines)


STYLE = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.labelsize": 10,
    "figure.titlesize": 11,
    "grid.alpha": 0.3,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "savefig.dpi": 110,
}
"""Of all figures."""


@contextlib.contextmanager
def figure(path: Path, *shape: int, **options):
    """Gives `(figure, axes)` to draw on; a PNG of it is written at the end."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    look = {"color": jb.plot.COLOURS, "marker": list("os^Dv<>")}
    with plt.rc_context(STYLE | {"axes.prop_cycle": plt.cycler(**look)}):
        made, axes = plt.subplots(*shape, **options)
        yield made, axes
        picture = io.BytesIO()
        made.savefig(picture, format="png")
    plt.close(made)
    write(path, picture.getvalue())


@dataclasses.dataclass
class Panel:
    """What a part of a figure shows."""

    title: str
    x: str
    y: str
    curves: list[tuple[Any, Any, dict]]  # x, y, look of what `Axes.errorbar` takes
    doubling: bool = False  # whether the horizontal axis doubles from mark to mark
    log: bool = False  # whether the vertical axis has powers of ten, in plain numbers
    levels: Sequence[float] = ()  # heights of dashed lines
    limits: dict = dataclasses.field(default_factory=dict)  # what `Axes.set` takes

    def draw(self, axis) -> None:
        """Draws it, without a legend."""
        for x, y, look in self.curves:
            axis.errorbar(x, y, **look)
        for level in self.levels:
            axis.axhline(level, color="0.35", ls="--", lw=0.9)
        if self.doubling:
            jb.plot.doubling(axis, self.x)
        if self.log:
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
        axis.set(title=self.title, xlabel=self.x, ylabel=self.y, **self.limits)


def picture(
    path: Path,
    panels: Sequence[Panel | Callable],
    columns: int,
    title: str = "",
    **options,
) -> None:
    """Writes a figure of panels, or of what draws on axes, row by row.

    `size=` is that of a panel in inches; with `below=` one legend, of all panels, is
    below them; other options are those of `subplots`.
    """
    wide, high = options.pop("size", (5.4, 4))
    below, rows = options.pop("below", False), -(-len(panels) // columns)
    size = {"figsize": (wide * columns, high * rows), "squeeze": False}
    with figure(path, rows, columns, **size | options) as (whole, axes):
        for axis in axes.flat[len(panels) :]:
            axis.remove()
        named = {}
        for axis, panel in zip(axes.flat, panels, strict=False):
            (panel.draw if isinstance(panel, Panel) else panel)(axis)
            found = axis.get_legend_handles_labels()
            named = dict(zip(*found[::-1], strict=True)) | named
            if below and axis.get_legend():
                axis.get_legend().remove()
            elif found[1] and not below and not axis.get_legend():
                axis.legend(fontsize=7)
        if below:
            whole.legend(named.values(), named, loc="outside lower center", ncols=3)
        if title:
            whole.suptitle(title)


def accuracies(runs: dict[str, dict], record: dict, axes, **options) -> None:
    """Draws the accuracy of rows as of `measure`, `{label: row}`, over time, or over
    `energy`; options are those of `jb.plot.accuracy`. The record tells of
    `test_images` and `ann_accuracy`."""
    images, ann = record["test_images"], record["ann_accuracy"]
    curves = {
        label: jb.evaluation.Curves(np.array(row["accuracy"]), {}, images)
        for label, row in runs.items()
    }
    jb.plot.accuracy(curves, ann=ann, axes=axes, **options)
