"""The command line: `jaxburst` and `python -m jaxburst` (extra `cli`).

    jaxburst info model.onnx
    jaxburst convert model.onnx --calibration x.npy --out net
    jaxburst evaluate net --data test.npz
    jaxburst tune model.onnx --calibration x.npy --energy 0.2 --out tuned
    jaxburst export net --to artefact --out net.npz
    jaxburst plot net --data test.npz --out curve.png

A command prints what it found on standard output, as a table or with `--json` as one
object, and how far it is on standard error. It returns 0, or 1 after an error, which is
one line, or 2 where it was not understood.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, cast

try:
    import tyro
except ImportError:  # main says so, in one line
    tyro = cast(Any, None)

import jax
import numpy as np

import jaxburst as jb
from jaxburst.batching import sweep
from jaxburst.cli.sources import Data, Source, Unread, read_data, zeros
from jaxburst.evaluation import Curves
from jaxburst.graph import Input
from jaxburst.io import artefact, checkpoint, events, files, integers
from jaxburst.io.artefact import free
from jaxburst.io.sealed import is_sealed, unseal
from jaxburst.plot import interval

Presets = Literal["refining", "paper", "once", "if"]
Targets = Literal["artefact", "integers", "c", "nir", "events"]
Pictures = Literal["accuracy", "energy", "raster", "graph"]
STEPS = {"refining": 4, "paper": 32, "once": 1, "if": 64}
"""Of the presets, where nothing else is said."""


class Found(dict):
    """What a command found: plain data, and as a string what people read."""

    def __init__(self, text: str, **data):
        super().__init__(data)
        self.text = text


@dataclasses.dataclass(kw_only=True)
class _Command:
    json: bool = False
    """Print one JSON object instead of a table."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclasses.dataclass(kw_only=True)
class _Reads(_Command):
    """A command that reads data."""

    images: int | None = None
    """Number of images to use, from the front; all of them if left out."""
    data_dir: str = "data"
    """Folder of the prepared data sets, as tensorflow-datasets lays them out."""
    mean: tuple[float, ...] = ()
    """Of each channel, in units of pixel/255: normalises files of pixels 0..255, and
    replaces the usual constants of a data set."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel, likewise."""

    def read(self, text: str, rows, part: str) -> Data:
        if self.images is not None and self.images < 1:
            raise ValueError(f"--images: expected at least 1, found {self.images}")
        return read_data(
            text, rows, part=part, images=self.images, data_dir=self.data_dir,
            mean=self.mean, std=self.std,
        )  # fmt: skip


@dataclasses.dataclass(kw_only=True)
class _Makes(_Reads):
    """A command that makes a spiking network."""

    network: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NETWORK")]
    """The trained network: a file .onnx, a Python function module:name, or the name of
    a released network."""
    calibration: str
    """Inputs that thresholds are chosen by, without labels and never of the test set:
    a file .npy or .npz, or the name of a data set, whose training images are used."""
    out: str
    """The file to write."""
    weights: str | None = None
    """Weights of a Python function: .npz, .safetensors, or a PyTorch state dict."""
    images: int | None = 500
    """Number of calibration images to use, from the front."""

    def opened(self) -> tuple[Unread, Data, Source, Path]:
        """What was named, once the result is known to have a place."""
        out = free(self.out, _is_saved, "a saved network")
        unread = Unread(self.network, self.weights)
        data = self.read(self.calibration, unread.shapes(), "train")
        inputs = _read(data.inputs)
        first = jax.tree.map(lambda x: x[:1], inputs)
        return unread, dataclasses.replace(data, inputs=inputs), unread.open(first), out

    def saved(self, out: Path, source: Source, model, spiking, **notes) -> None:
        named = {"network": self.network, "calibration": self.calibration}
        notes = named | {"mean": self.mean, "std": self.std} | notes
        jb.save(out, model, spiking, notes=notes, source=source.onnx)


@dataclasses.dataclass(kw_only=True)
class _Uses(_Reads):
    """A command that uses a saved network."""

    saved: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SAVED")]
    """What `jaxburst convert` or `jaxburst tune` wrote."""
    network: str | None = None
    """The trained network, where the saved one does not hold it: module:name, ..."""
    weights: str | None = None
    """Weights of a Python function."""
    steps: int | None = None
    """Number of time steps; those that it was converted for if left out."""

    def opened(self) -> tuple[jb.Model, Any, Source, int]:
        """`(model, spiking, source, steps)`."""
        described = checkpoint.describe(self.saved)
        notes = described["notes"]
        steps = notes.get("steps", 4) if self.steps is None else self.steps
        if not (self.mean or self.std):
            self.mean, self.std = (
                tuple(notes.get(name, ())) for name in ("mean", "std")
            )
        if self.network is None:
            if described["source"]:
                network, variables = checkpoint.restored(self.saved)
                source = Source(network, variables, None)
                return *jb.load(self.saved, network), source, steps
            named = notes.get("network")
            if named not in jb.released.names():
                raise ValueError(
                    f"{self.saved}: does not hold its trained network; give --network"
                    + (f" {named}, if you trust it" if named else "")
                    + ", and the --weights of a Python function"
                )
        source = Unread(self.network or str(named), self.weights).open(
            checkpoint.example(described["nodes"])
        )
        return *jb.load(self.saved, source.network), source, steps


@dataclasses.dataclass(kw_only=True)
class Info(_Command):
    """Says what a file or a network is.

    For example:
      jaxburst info model.onnx --shape 3 224 224
      jaxburst info net
      jaxburst info vgg9-cifar100 --json
    """

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """A trained network, a saved conversion, an artefact, a file of integers or of
    events, or a NIR graph."""
    shape: tuple[int, ...] = ()
    """Shape of one image, where a network leaves it open."""
    weights: str | None = None
    """Weights of a Python function."""

    def run(self) -> Found:
        path = Path(self.file)
        path = path / "network.safetensors" if path.is_dir() else path
        if path.is_file() and artefact.is_artefact(path):
            return _listed("artefact", artefact.describe(path))
        if path.is_file() and events.is_events(path):
            header, rows = events.read(path)
            return _listed("events", header | {"rows": len(rows)})
        if path.is_file() and _is_saved(path):
            found = checkpoint.describe(path)
            return _listed("saved conversion", found | found.pop("notes"))
        if path.is_file() and _is_nir(path):
            from jaxburst.io import nir

            return _listed("NIR graph", nir.describe(path))
        if path.is_file() and is_sealed(path, integers.FORMAT):
            found, arrays = unseal(path, integers.FORMAT, parts=list, links=list)
            parts = [{k: row[k] for k in ("name", "kind", "shape") if k in row}
                     for row in found.pop("parts")]  # fmt: skip
            del found["links"]
            numbers = sum(array.size for array in arrays.values())
            return _listed("integers", found | {"numbers": numbers, "parts": parts})
        unread = Unread(self.file, self.weights)
        source = unread.open(zeros(unread.shapes(), self.shape or None))
        network = source.network
        return Found(
            str(network),
            kind="network",
            inputs=[list(shape) for shape in network.input_shapes],
            populations=list(network.neurons),
            parameters=sum(network.program.parameters.values()),
            macs=sum(jb.energy.macs(network).values()),
        )


@dataclasses.dataclass(kw_only=True)
class Convert(_Makes):
    """Converts a trained network into a spiking one, and saves it.

    For example:
      jaxburst convert model.onnx --calibration x.npy --out net
      jaxburst convert model.onnx --calibration x.npy --data test.npz --out net
      jaxburst convert vgg9-cifar100 --calibration cifar100 --preset paper --out net
      jaxburst convert my_module:net --weights net.npz --calibration x.npy --out net
    """

    preset: Presets = "refining"
    """How: refining bursts for a few steps, bursts as in the paper for tens, everything
    at once as graded events, or integrate-and-fire neurons as NIR has them."""
    steps: int | None = None
    """Number of time steps to report on; 4, 32, 1 and 64 if left out."""
    data: str | None = None
    """Images to report on, with labels if there are any; otherwise the report compares
    the two networks on the calibration images."""

    def run(self) -> Found:
        steps = STEPS[self.preset] if self.steps is None else self.steps
        unread, seen, source, out = self.opened()
        judged = self._judged(unread, seen)
        make = _integrate_and_fire
        if self.preset != "if":
            make = getattr(jb.presets, self.preset)
        model, spiking = make(source.network, source.variables, seen.inputs)
        error = jb.verify(
            source.network, source.variables, spiking,
            jax.tree.map(lambda x: x[:100], seen.inputs),
        )  # fmt: skip
        report, _ = measured(model, spiking, judged, steps, source)
        self.saved(
            out, source, model, spiking, preset=self.preset, steps=steps, report=report
        )
        text = (
            f"{self.network}: {len(source.network.neurons)} populations, converted "
            f"with {len(seen)} calibration images\n{table(report)}\n"
            f"{out}: saved, {out.stat().st_size / 1e6:.2f} MB"
        )
        return Found(text, out=str(out), folding_error=max(error.values()), **report)

    def _judged(self, unread: Unread, seen: Data) -> Data:
        if self.data is None:
            return dataclasses.replace(seen, labels=None)
        return dataclasses.replace(self, images=None).read(
            self.data, unread.shapes(), "test"
        )


@dataclasses.dataclass(kw_only=True)
class Evaluate(_Uses):
    """Says how well a saved network does, and what it costs, at every time step.

    With labels its accuracy is measured, without them how often it agrees with the
    trained network.

    For example:
      jaxburst evaluate net --data test.npz
      jaxburst evaluate net --data cifar10 --images 1000 --steps 8
      jaxburst evaluate net.npz --data test.npz --json     (an artefact, or integers)
    """

    data: str
    """The images: a file .npy or .npz, or the name of a data set, whose test images are
    used."""

    def run(self) -> Found:
        path = Path(self.saved)
        if path.is_file() and artefact.is_artefact(path):
            program = artefact.load(path)
            steps = program.header["steps"]
            rows = [
                (row["name"], tuple(row["shape"][1:]), np.dtype(row["dtype"]))
                for row in program.header["inputs"]
            ]
            return self._alone(rows, [steps], program)
        if path.is_file() and is_sealed(path, integers.FORMAT):
            whole = integers.Integers.load(path)
            kind, steps = np.dtype("f"), self.steps or whole.steps
            rows = [(part.name, part.given, kind) for part in whole.of("input")]

            def run(batch):
                return whole.simulate(batch, steps, record=False).logits[0][-1]

            return self._alone(rows, range(1, whole.steps + 1), run)
        model, spiking, source, steps = self.opened()
        data = self.read(self.data, _rows(model.network), "test")
        report, _ = measured(model, spiking, data, steps, source)
        return Found(table(report), **report)

    def _alone(self, rows, possible: Sequence[int], run) -> Found:
        """Accuracy of what does not know its trained network."""
        steps = self.steps or possible[-1]
        if steps not in possible:
            raise ValueError(
                f"--steps: {self.saved} takes {possible[0]} to {possible[-1]} steps, "
                f"found {steps}; export it again"
            )
        data = self.read(self.data, rows, "test")
        if data.labels is None:
            raise ValueError(
                f"{self.data}: has no labels, and {self.saved} has no trained network "
                "to compare with"
            )
        right = 0
        for start in range(0, len(data), 100):
            batch = jax.tree.map(
                lambda x, at=start: np.asarray(x[at : at + 100]), data.inputs
            )
            logits = np.asarray(run(batch))
            right += int((logits.argmax(-1) == data.labels[start : start + 100]).sum())
        share = right / len(data)
        text = f"{data.what}: accuracy {share:.2%} after {steps} steps"
        return Found(
            text, data=data.what, images=len(data), steps=steps, accuracy=share
        )


@dataclasses.dataclass(kw_only=True)
class Tune(_Makes):
    """Searches settings for a budget of energy or of agreement, and saves the best.

    For example:
      jaxburst tune model.onnx --calibration x.npy --energy 0.2 --out tuned
      jaxburst tune vgg9-cifar100 --calibration cifar100 --agreement 0.98 --out tuned
    """

    energy: float | None = None
    """Largest energy, over the trained network's."""
    agreement: float | None = None
    """Least share of images on which both networks decide alike."""
    steps: int = 4
    """Largest number of time steps."""
    trials: int = 40
    """Number of settings to try."""
    seed: int = 0
    """Of the search."""
    images: int | None = 2000
    """Number of calibration images to use, from the front."""

    def run(self) -> Found:
        if (self.energy is None) == (self.agreement is None):
            raise ValueError("give one budget, --energy or --agreement")
        _, seen, source, out = self.opened()
        tuned = jb.tune(
            source.network, source.variables, seen.inputs, energy=self.energy,
            agreement=self.agreement, steps=self.steps, trials=self.trials,
            seed=self.seed,
        )  # fmt: skip
        report = tuned.report.as_dict()
        self.saved(
            out, source, tuned.model, tuned.spiking, steps=tuned.steps,
            budget=report["budget"],
        )  # fmt: skip
        text = f"{tuned.report}\n{out}: saved, for {tuned.steps} steps"
        return Found(text, out=str(out), steps=tuned.steps, **report)


@dataclasses.dataclass(kw_only=True)
class Export(_Uses):
    """Writes a saved network for others to run or to read.

    artefact: a file that runs wherever JAX does, without jaxburst. integers: whole
    numbers alone, 8-bit weights. c: a program that works where an event arrives. nir: a
    graph for neuromorphic tools. events: the spikes of the images of --data.

    For example:
      jaxburst export net --to artefact --out net.npz --platforms cpu tpu
      jaxburst export net --to c --data x.npy --out net.c
      jaxburst export net --to nir --out net.nir
      jaxburst export net --to events --data x.npy --images 10 --out spikes.npz
    """

    to: Targets
    """What to write."""
    out: str
    """The file."""
    platforms: tuple[str, ...] = ("cpu", "cuda", "tpu")
    """Of an artefact: where it shall run."""
    data: str | None = None
    """Images: of events, to record; of integers and c, to find their range."""

    def run(self) -> Found:
        if self.data is None and self.to in ("integers", "c", "events"):
            raise ValueError(f"--data: {self.to} needs images")
        model, spiking, _, steps = self.opened()
        if self.to == "artefact":
            example = zeros(_rows(model.network))
            path = jb.export(
                model, spiking, example, self.out, steps=steps,
                platforms=self.platforms,
            )  # fmt: skip
        elif self.to == "nir":
            path = jb.to_nir(model, spiking, self.out)
        else:
            path = self._with_images(model, spiking, steps, self.data)
        size = path.stat().st_size
        return Found(
            f"{path}: {self.to}, {size / 1e6:.2f} MB", out=str(path), bytes=size
        )

    def _with_images(self, model, spiking, steps: int, data) -> Path:
        inputs = self.read(data, _rows(model.network), "test").inputs
        if self.to == "events":
            return events.write(self.out, model, spiking, inputs, steps)
        from jaxburst.io import c

        suffixes = (".c", ".h") if self.to == "c" else ("",)
        for suffix in suffixes:
            path = Path(self.out).with_suffix(suffix) if suffix else Path(self.out)
            free(path, self._replaces, f"{self.to} of jaxburst's")
        found = integers.to_integers(model, spiking, _read(inputs), steps)
        if self.to == "c":
            c.to_c(found, self.out)
        else:
            found.save(self.out)
        return Path(self.out)

    def _replaces(self, path: Path) -> bool:
        if self.to == "integers":
            return is_sealed(path, integers.FORMAT)
        return f"{path.stem}_infer" in path.read_text(errors="replace")


@dataclasses.dataclass(kw_only=True)
class Plot(_Uses):
    """Draws a saved network, or what it does.

    accuracy, energy: the curve over time steps, or over energy. raster: the spikes of a
    layer for the first image. graph: the network.

    For example:
      jaxburst plot net --data test.npz --out curve.png
      jaxburst plot net --kind raster --layer relu1 --data x.npy --out raster.svg
      jaxburst plot net --kind graph --out graph.pdf
    """

    out: str
    """The picture: .png, .svg or .pdf."""
    kind: Pictures = "accuracy"
    """What to draw."""
    data: str | None = None
    """The images."""
    layer: str | None = None
    """Of a raster: the population; the first if left out."""

    def run(self) -> Found:
        out = Path(self.out)
        if out.suffix not in (".png", ".svg", ".pdf"):
            raise ValueError(f"--out: expected .png, .svg or .pdf, found {self.out}")
        free(out, lambda path: True, "a file")
        if self.kind != "graph" and self.data is None:
            raise ValueError(f"--data: {self.kind} needs images")
        try:
            import matplotlib
        except ImportError as error:
            raise ImportError(
                'plot draws with matplotlib: pip install "jaxburst[plot]"'
            ) from error
        matplotlib.use("Agg")
        axes = self._drawn(*self.opened())
        content = io.BytesIO()
        axes.figure.savefig(content, format=out.suffix[1:], bbox_inches="tight")
        files.write(out, content.getvalue())
        return Found(f"{out}: {self.kind}", out=str(out))

    def _drawn(self, model, spiking, source: Source, steps: int):
        if self.kind == "graph" or self.data is None:
            return jb.plot.graph(model.network)
        data = self.read(self.data, _rows(model.network), "test")
        if self.kind == "raster":
            layer = self.layer or model.network.neurons[0]
            first = jax.tree.map(lambda x: np.asarray(x[:1]), data.inputs)
            trace = jb.simulate(model, spiking, first, steps, record=layer)
            return jb.plot.raster(trace, layer)
        report, curves = measured(model, spiking, data, steps, source)
        spent = {"": [row["energy"] for row in report["steps"]]}
        axes = jb.plot.accuracy(
            {self.saved: curves},
            ann=report["trained"],
            energy={self.saved: spent[""]} if self.kind == "energy" else None,
            title=data.what,
        )
        axes.set_ylabel(f"{report['measure']} (%)")
        return axes


COMMANDS = {
    "info": Info,
    "convert": Convert,
    "evaluate": Evaluate,
    "tune": Tune,
    "export": Export,
    "plot": Plot,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
      arguments: those of the command line; the process's own if left out.

    Returns:
      0, or 1 after an error, 2 where the command was not understood, 130 after Ctrl-C.
    """
    if tyro is None:
        return _error('the command line needs tyro: pip install "jaxburst[cli]"')
    command = None
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _note
        try:
            command = tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="jaxburst", args=arguments,
                description="Trained networks become spiking ones: convert, evaluate, "
                "tune and export them. See `jaxburst convert --help`.",
                config=(tyro.conf.FlagCreatePairsOff,),
            )  # fmt: skip
            found = command.run()
            print(json.dumps(found) if command.json else found.text, flush=True)
        except SystemExit as stop:  # help, or not understood
            return int(stop.code or 0)
        except KeyboardInterrupt:
            return _error("interrupted", 130)
        except BrokenPipeError:  # whoever reads, such as `head`, has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except Exception as error:
            if command is None or command.debug:
                traceback.print_exc()
                return 1
            words = str(error)
            if not isinstance(error, ValueError | TypeError | OSError | ImportError):
                words = f"{type(error).__name__}: {error}; --debug shows where"
            return _error(words)
    return 0


def measured(
    model: jb.Model, spiking, data: Data, steps: int, source: Source
) -> tuple[dict[str, Any], Curves]:
    """Accuracy, agreement with the trained network, or the distance from it.

    Returns:
      The report, plain data, and the curves it was made of.
    """
    network, inputs = model.network, data.inputs
    outputs = network.graph.outputs
    classes = len(outputs) == 1 and len(network.graph[outputs[0]].shape) == 2
    trained, metric = None, None
    if data.labels is not None:
        measure, targets = "accuracy", data.labels
        trained = jb.accuracy(network, source.variables, (inputs, targets))
    else:
        targets = _answers(network, source.variables, inputs)
        measure, metric = "error", _distance
        if classes:
            measure, targets, metric = "agreement", targets[0].argmax(-1), None
    curves = jb.evaluate(model, spiking, (inputs, targets), steps, metric=metric)
    spent = jb.energy.relative(network, curves.events)
    sent = np.sum([curves.events[name] for name in network.neurons], 0).cumsum()
    rows = [
        {"step": t, measure: float(value), "energy": float(used), "spikes": float(n)}
        for t, (value, used, n) in enumerate(
            zip(curves.accuracy, spent, sent, strict=True), 1
        )
    ]
    report = {"data": data.what, "images": len(data), "measure": measure}
    return report | {"trained": trained, "steps": rows}, curves


def table(report: dict[str, Any]) -> str:
    """A report as text."""
    measure, count = report["measure"], report["images"]
    share = measure != "error"
    words = {"agreement": "with the trained network's decisions"}
    lines = [f"{measure} {words.get(measure, '')}".strip() + f", on {report['data']}"]
    if report["trained"] is not None:
        lines[0] += f"; of the trained network {report['trained']:.2%}"
    lines.append(f"{'step':>5}  {measure:>9}  {'energy':>7}  {'spikes':>9}")
    for row in report["steps"]:
        value = f"{row[measure]:9.2%}" if share else f"{row[measure]:9.2e}"
        lines.append(
            f"{row['step']:5}  {value}  {row['energy']:7.3f}  {row['spikes']:9.0f}"
        )
    last = report["steps"][-1][measure]
    note = "energy: up to the step, over the trained network's; spikes: of an image"
    if share:
        low, high = interval(last, count)
        note += f"; 95 % interval of the last step: {max(low, 0):.2%} .. {high:.2%}"
    return "\n".join([*lines, note])


def _distance(found, targets) -> np.ndarray:
    """How far an image's outputs are from the trained network's, over their size."""

    def flat(tree):
        rows = [np.asarray(x, np.float64) for x in jax.tree.leaves(tree)]
        return np.concatenate([x.reshape(len(x), -1) for x in rows], 1)

    expected = flat(targets)
    size = np.maximum(np.linalg.norm(expected, axis=1), 1e-30)
    return np.linalg.norm(flat(found) - expected, axis=1) / size


def _integrate_and_fire(network, variables, inputs) -> tuple[jb.Model, Any]:
    """Neurons as NIR has them: one spike at a step, potentials that start at 0."""
    neuron = jb.Burst(1)
    thresholds = jb.calibrate(network, variables, inputs, neuron, percentile=99.9)
    spiking = jb.convert(network, variables, thresholds, initial=0.0)
    return jb.Model(network, neuron), spiking


def _read(inputs):
    """Inputs in memory."""
    return jax.tree.map(lambda x: np.asarray(x[: len(x)]), inputs)


def _answers(network, variables, inputs) -> list[np.ndarray]:
    """The trained network's outputs for all images."""
    parts = [
        [x[:count] for x in found]
        for count, found in sweep(_forward(network), variables, inputs, 100)
    ]
    return [np.concatenate(column) for column in zip(*parts, strict=True)]


@lru_cache(maxsize=8)
def _forward(network):
    return lambda variables, batch: jax.tree.leaves(network(variables, batch))


def _rows(network) -> list[tuple[str, tuple[int, ...], np.dtype]]:
    """Names, shapes and types of a network's inputs."""
    places = jax.tree_util.tree_leaves_with_path(
        jax.tree.unflatten(network.tree[0], network.graph.of(Input))
    )
    return [
        (
            jax.tree_util.keystr(place, simple=True, separator="/"),
            node.image_shape[1:],
            np.dtype(node.role.dtype),
        )
        for place, node in places
    ]


def _is_saved(path: Path) -> bool:
    return is_sealed(path, checkpoint.FORMAT)


def _is_nir(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x89HDF"


def _listed(kind: str, data: dict[str, Any]) -> Found:
    """Data with a line for each; tables with one for each row."""
    lines = [kind]
    for key, value in data.items():
        if value is False or value == []:
            continue
        if key == "program":
            value = f"{len(value.splitlines())} lines of Python"
        elif key == "report":
            value = "\n" + table(value)
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            rows = [[str(x) for x in row.values() if x and not isinstance(x, dict)]
                    for row in value]  # fmt: skip
            value = "".join("\n    " + "  ".join(row) for row in rows)
            value = value.replace("'", "")
        elif isinstance(value, dict) and len(value) > 8:
            value = f"{len(value)} arrays"
        lines.append(f"  {key}: {value}")
    return Found("\n".join(lines), kind=kind, **data)


def _note(message, *_, **__) -> None:
    """A warning, in one line."""
    print(f"jaxburst: note: {' '.join(str(message).split())}", file=sys.stderr)


def _error(words: str, code: int = 1) -> int:
    print(f"jaxburst: {' '.join(words.split())}", file=sys.stderr)
    return code
