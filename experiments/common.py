"""What the experiments share: convert, simulate, write down, draw.

Every experiment ends in `compare`: refining bursts, the paper's bursts and the
integrate-and-fire baseline on the same trained network, as a table, a JSON file and a
figure.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import jax
import numpy as np

import jaxburst as jb


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
        jb.Burst(self.gamma)
        jb.calibration.check_percentile(self.percentile)
        if not 0 <= self.initial <= 1:
            raise ValueError(f"initial must be between 0 and 1, found {self.initial}")
        for name in ("steps", "calibration", "limit", "at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, found {value}")


def compare(
    dataset: jb.data.Dataset,
    layers: jb.layers.Layers,
    variables: dict,
    settings: Simulation,
    folder: Path,
) -> dict:
    """Converts a trained network to refining bursts, bursts and IF; simulates all.

    `settings` is about bursts and IF; refining bursts take their preset and at most 8
    steps. Prints the report of each layer, saves the burst network under `folder`, and
    returns everything that was measured, ready for `write`.
    """
    test = dataset.test[: settings.limit]
    images = dataset.train[: settings.calibration].inputs
    shape = test.images.shape[1:]
    at_once = settings.at_once
    ann = jb.accuracy(layers, variables, test, at_once)
    print(f"ANN: {ann:.2%} of {len(test):,} test images")
    runs = {}
    for name, gamma in (("refining", None), ("burst", settings.gamma), ("IF", 1)):
        if name == "refining":
            model, spiking = jb.presets.refining(
                layers, variables, images, batch_size=at_once
            )
        else:
            model, spiking = convert(
                *(layers, variables, images, jb.Burst(gamma)),
                percentile=settings.percentile,
                initial=settings.initial,
                batch_size=at_once,
            )
        steps = min(settings.steps, 8) if name == "refining" else settings.steps
        start = time.perf_counter()
        curves = jb.evaluate(model, spiking, test, steps, batch_size=at_once)
        seconds = time.perf_counter() - start
        if name == "burst":
            folded = jb.verify(
                layers, variables, spiking, images[:100], batch_size=at_once
            )
            worst = max(folded.values())
            print(f"folded against trained: largest difference {worst:.1e}")
            some = images[: min(at_once, 50)]
            rows = jb.analysis.report(model, spiking, some, steps)
            print(f"\nlayers, {steps} steps of bursts on {len(some)} training images")
            print(jb.analysis.table(rows), end="\n\n")
            notes = {"dataset": dataset.name, "mean": test.mean, "std": test.std}
            jb.save(folder / "spiking", model, spiking, notes)
        energy = jb.energy.relative(layers, shape, curves.events)
        runs[name] = {
            "neuron": repr(model.neuron),
            "accuracy": curves.accuracy.tolist(),
            "energy_over_ann": energy.tolist(),
            "joules": jb.energy.joules(layers, shape, curves.events).tolist(),
            "events": {path: mean.tolist() for path, mean in curves.events.items()},
            "seconds": seconds,
        }
    return {
        "dataset": dataset.name,
        "test_images": len(test),
        "settings": dataclasses.asdict(settings),
        "layers": jb.checkpoint.to_json(layers),
        "ann_accuracy": ann,
        "ann_joules": jb.energy.ann_joules(layers, shape),
        "runs": runs,
    }


def convert(
    layers: jb.layers.Layers,
    variables: dict,
    images: np.ndarray,
    neuron: jb.Burst,
    *,
    percentile: float,
    initial: float,
    pool: str = "lateral",
    batch_size: int = 100,
) -> tuple[jb.Model, dict]:
    """A network of bursts, or of IF, with a percentile for its range."""
    thresholds = jb.calibrate(
        *(layers, variables, images, neuron),
        percentile=percentile,
        batch_size=batch_size,
    )
    spiking = jb.convert(layers, variables, thresholds, initial=initial)
    return jb.Model(layers, neuron, pool), spiking


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
    record = {
        "experiment": name,
        "config": dataclasses.asdict(config),
        "provenance": provenance(),
        "results": results,
    }
    write_json(folder / f"{name}.json", record)
    write_file(folder / f"{name}.png", lambda path: _draw(path, results))


def write_json(path: Path, record: dict) -> None:
    """Writes a record, all or nothing."""
    text = json.dumps(record, indent=1, default=str) + "\n"
    write_file(path, lambda partial: partial.write_text(text))


def write_file(path: Path, draw: Callable[[Path], None]) -> None:
    """Lets `draw` write a file, which appears only when it is complete."""
    partial = path.with_name(f".partial-{path.name}")
    draw(partial)
    os.replace(partial, path)
    print(f"wrote {path}")


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


def prepare_folder(folder: Path) -> Path:
    """Makes the output folder, and sees now, not after hours, that it can be written.

    Raises:
      OSError: naming the folder and what to do.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise OSError(
            f"{folder}: cannot be written ({error.strerror}); choose another --out"
        ) from error
    return folder


def run(main: Callable[[], None]) -> None:
    """Runs an experiment; what a user can mend ends in one line, not in a traceback.

    Programs that took over a second to compile are kept for the next run, in
    `~/.cache/jaxburst` if `JAX_COMPILATION_CACHE_DIR` names no other folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        folder = Path.home() / ".cache/jaxburst"
        jax.config.update("jax_compilation_cache_dir", str(folder))
    try:
        main()
    except (OSError, ValueError, TypeError, ImportError, ArithmeticError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(
            "interrupted; a training with checkpoints continues with --resume, energy "
            "and ablation with the same command"
        )


def one_device_per_core() -> None:
    """Makes a device of every CPU core, so that all take part in `jb.evaluate`.

    Nothing changes where JAX already runs, or was given a number of CPU devices.
    """
    if jax.config.jax_num_cpu_devices < 0:
        with contextlib.suppress(RuntimeError):  # raised where JAX runs
            jax.config.update("jax_num_cpu_devices", jb.devices.cores())


def shown(steps: int) -> list[int]:
    """1, 2, 4, 8, ... and the last step."""
    return sorted({2**k for k in range(steps.bit_length())} | {steps})


def accuracy_against_energy(axis, ann: float, name: str) -> None:
    """Dresses a figure of that kind: the ANN's line, title, labels, legend."""
    axis.axhline(100 * ann, color="0.35", linestyle="--", label=f"ANN, {ann:.2%}")
    axis.set(
        title=f"{name.replace('_', ', ')}: accuracy and energy, a dot per time step",
        xlabel="energy / ANN",
        ylabel="test accuracy (%)",
    )
    axis.grid(alpha=0.3)
    axis.legend(frameon=False, fontsize=8, loc="lower right")


def _table(result: dict) -> str:
    names = list(result["runs"])
    head = "    T" + "".join(f"  {name:>9}  energy/ANN" for name in names)
    lines = [head]
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
    """Accuracy and energy against time steps, one row for each network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"refining": "#2a7f4f", "burst": "#c8451b", "IF": "#3a6ea5"}
    figure, axes = plt.subplots(
        len(results),
        2,
        figsize=(9, 3.4 * len(results)),
        squeeze=False,
        layout="constrained",
    )
    for (network, result), (left, right) in zip(results.items(), axes, strict=True):
        gamma = result["settings"]["gamma"]
        labels = {
            "refining": "refining bursts",
            "burst": f"bursts, γ = {gamma}",
            "IF": "integrate-and-fire",
        }
        for name, run in result["runs"].items():
            style = {"color": colours[name], "label": labels[name], "linewidth": 1.8}
            times = np.arange(1, len(run["accuracy"]) + 1)
            left.plot(times, 100 * np.array(run["accuracy"]), **style)
            right.plot(times, run["energy_over_ann"], **style)
        ann = f"ANN, {result['ann_accuracy']:.2%}"
        left.axhline(
            100 * result["ann_accuracy"], color="0.35", linestyle="--", label=ann
        )
        right.axhline(1, color="0.35", linestyle="--", label="ANN")
        left.set(
            title=f"{network}, {result['dataset']}, {result['test_images']:,} images",
            ylabel="test accuracy (%)",
        )
        left.set_ylim(bottom=0)
        right.set(title="synaptic operations and first layer", ylabel="energy / ANN")
        right.set_yscale("log")
        for axis in (left, right):
            axis.set_xscale("log", base=2)
            axis.set_xlabel("time steps")
            axis.xaxis.set_major_formatter("{x:.0f}")
            axis.grid(alpha=0.3)
            axis.legend(frameon=False)
    figure.savefig(path, dpi=130, format="png")
    plt.close(figure)
