"""A spiking network as one file that runs wherever JAX does, without jaxburst.

    export(model, spiking, images[:1], "network.npz", steps=4)
    network = load("network.npz")
    logits = network(images)                        # any number of images
    state, logits = network.step(None, frame)       # one time step at a time
    state, logits = network.step(state, frame)

The file is a NumPy archive: weights, a JSON header with the SHA-256 of it all, and four
programs for every platform, lowered by `jax.export` with the number of images open:

* `prepare(weights)` brings the weights into the form that is fast on that platform,
* `infer(circuit, inputs)` takes all steps,
* `rest(circuit, inputs)` is the state before the first step,
* `step(circuit, state, inputs)` takes one and returns `(state, outputs)`.

`PROGRAM` runs it with `jax`, `numpy` and `flatbuffers`, by which JAX reads programs.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as lowering

from jaxburst import circuit as circuits
from jaxburst.checks import array, door, finite, one_of, refuse
from jaxburst.convert import Spiking
from jaxburst.graph import Input
from jaxburst.io.files import archive, as_path, folder, write
from jaxburst.model import Model
from jaxburst.run import infer, unroll

__all__ = [
    "Artefact",
    "PROGRAM",
    "describe",
    "export",
    "load",
]

FORMAT, VERSION = "jaxburst artefact", 1
PLATFORMS = ("cpu", "cuda", "rocm", "tpu")

PROGRAM = """\
import json, sys
import jax, numpy as np

file, images = np.load(sys.argv[1]), np.load(sys.argv[2])
header = json.loads(str(file["header"]))
def program(name):
    content = file[f"{name}/{jax.export.default_export_platform()}"]
    return jax.jit(jax.export.deserialize(bytearray(content)).call)
weights = [file[name].view(kind) for name, kind in header["weights"].items()]
print(program("infer")(program("prepare")(weights), images).argmax(-1))
"""
"""Runs an artefact without jaxburst: `python program.py network.npz images.npy`."""

WRONG = (ValueError, LookupError, TypeError, AttributeError, EOFError, OSError)
WRONG += (BadZipFile, zlib.error, NotImplementedError, RecursionError)
"""What reading a damaged archive may raise."""


@door
def export(
    model: Model,
    spiking: Spiking,
    example,
    path: str | os.PathLike,
    *,
    steps: int,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Path:
    """Writes a spiking network as a file that runs without jaxburst.

    What it computes is `infer`, one step at a time through all layers; kernels are in
    the form that is fast on the platform that they are for.

    Args:
      model: the network, neuron and pooling.
      spiking: its converted weights.
      example: inputs as the network takes them; their number does not matter.
      path: the file; an artefact that is there is replaced, all or nothing.
      steps: number of time steps of `infer`.
      platforms: where it shall run, some of `PLATFORMS`.

    Returns:
      The path.

    Raises:
      FileExistsError: if something is there that is not an artefact.
      OSError: if the file cannot be written. Both come before the work.
      ValueError: for a platform that is unknown, or as `infer`.

    Example:
      >>> import tempfile
      >>> import jaxburst as jb
      >>> function = lambda w, x: jax.nn.relu(x @ w[0]) @ w[1]
      >>> weights = (np.eye(3, dtype="f"), np.ones((3, 2), "f"))
      >>> network = jb.trace(function, weights, np.ones((1, 3), "f"))
      >>> spiking = jb.convert(network, weights, {"relu0": 1.0})
      >>> inputs = np.array([[0.5, 1, 2]], "f")
      >>> path = tempfile.mkdtemp() + "/network.npz"
      >>> model = jb.Model(network, jb.Burst(5))
      >>> _ = export(model, spiking, inputs, path, steps=4, platforms=["cpu"])
      >>> load(path)(inputs)
      Array([[3.5, 3.5]], dtype=float32)
    """
    platforms = _checked(platforms)
    path = free(path, is_artefact, "an artefact")
    network = model.network
    (batch,) = lowering.symbolic_shape("b")
    shapes = [
        jax.ShapeDtypeStruct((batch, *node.image_shape[1:]), node.role.dtype)
        for node in network.graph.of(Input)
    ]
    given, returned = (
        tree if _is_plain(tree) else jax.tree.structure([0] * tree.num_leaves)
        for tree in network.tree
    )
    inputs = jax.tree.unflatten(given, shapes)
    leaves, tree = jax.tree_util.tree_flatten_with_path(spiking)
    names = [f"weights/{_name(place)}" for place, _ in leaves]
    weights = [np.asarray(leaf) for _, leaf in leaves]
    entries = {
        name: value.view(f"u{value.itemsize}") if value.dtype.kind == "V" else value
        for name, value in zip(names, weights, strict=True)
    }
    for platform in platforms:
        entries |= {
            f"{name}/{platform}": np.frombuffer(exported.serialize(), np.uint8)
            for name, exported in _lowered(
                model, (weights, tree), inputs, returned, steps, platform
            ).items()
        }
    from jaxburst import __version__

    found = jax.eval_shape(
        lambda x: infer(model, spiking, x, steps),
        jax.tree.unflatten(network.tree[0], [_one(shape) for shape in shapes]),
    )
    header = {
        "format": f"{FORMAT} {VERSION}",
        "what": "a spiking network, for jaxburst.artefact.load or the program below",
        "program": PROGRAM,
        "jaxburst": __version__,
        "jax": jax.__version__,
        "platforms": list(platforms),
        "steps": steps,
        "neuron": repr(model.neuron),
        "input_presented": "at every step" if model.neuron.repeats else "first step",
        "inputs": _described(jax.tree.unflatten(given, [_one(s) for s in shapes])),
        "outputs": _described(jax.tree.unflatten(returned, jax.tree.leaves(found))),
        "weights": {n: str(w.dtype) for n, w in zip(names, weights, strict=True)},
    }
    header["sha256"] = _digest(header, entries)
    content = io.BytesIO()
    entries["header"] = np.array(json.dumps(header))
    np.savez(content, allow_pickle=False, **entries)
    return write(path, content.getvalue())


def _lowered(model, spiking, inputs, returned, steps: int, platform: str) -> dict:
    """The four programs for a platform."""
    weights, tree = spiking

    def prepare(weights):
        spiking = jax.tree.unflatten(tree, weights)
        return jax.tree.leaves(circuits.prepare(model, spiking, platform))

    whole = jax.eval_shape(
        lambda w: circuits.prepare(model, jax.tree.unflatten(tree, w), platform),
        weights,
    )
    circuit_tree = jax.tree.structure(whole)

    graph = model.network.graph
    axes = [graph[name].batch_axis for name in graph.outputs]

    def answer(values):
        found = [jnp.moveaxis(x, axis, 0) for x, axis in zip(values, axes, strict=True)]
        return jax.tree.unflatten(returned, found)

    def unpacked(circuit, inputs):
        return jax.tree.unflatten(circuit_tree, circuit), jax.tree.leaves(inputs)

    def infer(circuit, inputs):
        circuit, leaves = unpacked(circuit, inputs)
        state, _ = unroll(
            model, circuit, leaves, steps, lambda *_: (), platform=platform
        )
        total = [model.neuron.readout(x, state["time"]) for x in state["outputs"]]
        return answer(total)

    def start(circuit, inputs):
        circuit, leaves = unpacked(circuit, inputs)
        return circuits.rest(model, circuit, leaves[0].shape[0])

    def rest(circuit, inputs):
        return jax.tree.leaves(start(circuit, inputs))

    circuit = jax.tree.leaves(whole)
    state_tree = jax.tree.structure(jax.eval_shape(start, circuit, inputs))

    def step(circuit, state, inputs):
        circuit, leaves = unpacked(circuit, inputs)
        held = circuits.constants(model, circuit, leaves, platform)
        state = jax.tree.unflatten(state_tree, state)
        state, info = circuits.block(model, circuit, held, state, platform=platform)
        return jax.tree.leaves(state), answer([x[0] for x in info.outputs])

    def lower(function: Callable, *arguments):
        return lowering.export(jax.jit(function), platforms=[platform])(*arguments)

    state = jax.tree.leaves(jax.eval_shape(start, circuit, inputs))
    return {
        "prepare": lower(prepare, weights),
        "infer": lower(infer, circuit, inputs),
        "rest": lower(rest, circuit, inputs),
        "step": lower(step, circuit, state, inputs),
    }


class Artefact:
    """A spiking network from a file: what `load` returns.

    `artefact(inputs)` gives the outputs after `header["steps"]` time steps, for any
    number of images.

    Attributes:
      header: what the file says of itself.
      platform: the one of its platforms that it runs on.

    Example:
      >>> path = export(model, spiking, inputs[:1], "n.npz", steps=2, platforms=["cpu"])
      >>> load(path)(inputs).tolist()
      [[0.5], [2.75]]
    """

    def __init__(self, header: dict[str, Any], entries: dict[str, np.ndarray]):
        self.header, self._entries = header, entries
        self.platform = lowering.default_export_platform()

    def __call__(self, inputs):
        """The outputs after all steps: logits `[B, classes]`.

        Raises:
          TypeError, ValueError: for inputs that the network does not take.
        """
        return self._run("infer", self._circuit, self._checked(inputs))

    def step(self, state, inputs):
        """One time step, for those whose inputs arrive one after the other.

        Neurons that are shown their input once, as the header says, look at that of
        the first step alone.

        Args:
          state: what the step before returned, None at the first.
          inputs: those of this step, as many as at the first.

        Returns:
          `(state, outputs)`; outputs as `infer` would give them after this step.

        Raises:
          TypeError, ValueError: for inputs that the network does not take.
        """
        inputs = self._checked(inputs)
        if state is None:
            state = self._run("rest", self._circuit, inputs)
        fresh = jax.eval_shape(self._compiled("rest"), self._circuit, inputs)
        kinds = [
            jax.tree.map(lambda x: (np.shape(x), getattr(x, "dtype", None)), one)
            for one in (state, fresh)
        ]
        if kinds[0] != kinds[1]:
            refuse("state", "what step returned for as many inputs, or None", state)
        return self._run("step", self._circuit, state, inputs)

    def program(self, name: str, platform: str | None = None) -> lowering.Exported:
        """One of the four programs, for a platform of the header."""
        platform = platform or self.platform
        one_of("name", name, ("prepare", "infer", "rest", "step"))
        one_of("platform", platform, self.header["platforms"])
        content = self._entries[f"{name}/{platform}"]
        return lowering.deserialize(bytearray(content))

    def _run(self, name: str, *arguments):
        return self._compiled(name)(*arguments)

    def _compiled(self, name: str) -> Callable:
        if name not in self._programs:
            self._programs[name] = jax.jit(self.program(name).call)
        return self._programs[name]

    @cached_property
    def _programs(self) -> dict[str, Callable]:
        return {}

    @cached_property
    def _circuit(self) -> list[jax.Array]:
        kinds = self.header["weights"].items()
        return self._run(
            "prepare", [self._entries[name].view(kind) for name, kind in kinds]
        )

    def _checked(self, inputs):
        rows = self.header["inputs"]
        found = jax.tree_util.tree_leaves_with_path(inputs)
        names = [_name(place) for place, _ in found]
        if names != [row["name"] for row in rows]:
            raise ValueError(
                f"inputs: expected {[row['name'] for row in rows]}, found {names}"
                if len(rows) > 1
                else f"inputs: expected one array, found {len(names)}"
            )
        counts = set()
        for row, (_, value) in zip(rows, found, strict=True):
            array("inputs", value)
            shape, kind = np.shape(value), jnp.result_type(value)
            whole = not jnp.issubdtype(row["dtype"], jnp.floating)
            if list(shape[1:]) != row["shape"][1:] or not shape or not shape[0]:
                raise ValueError(
                    f"inputs{row['name'] and ' '}{row['name']}: expected the shape "
                    f"[B, {', '.join(map(str, row['shape'][1:]))}], found {list(shape)}"
                )
            if whole == jnp.issubdtype(kind, jnp.floating):
                raise TypeError(f"inputs: expected {row['dtype']}, found {kind}")
            counts.add(shape[0])
        finite("inputs", inputs, "normalise the data again")
        if len(counts) > 1:
            raise ValueError(
                f"inputs: expected as many images in each, found {sorted(counts)}"
            )
        kinds = [row["dtype"] for row in rows]
        leaves = [jnp.asarray(x, k) for (_, x), k in zip(found, kinds, strict=True)]
        return jax.tree.unflatten(jax.tree.structure(inputs), leaves)


@door
def load(path: str | os.PathLike) -> Artefact:
    """Loads an artefact, and verifies every byte of it.

    Args:
      path: what `export` was given.

    Returns:
      The `Artefact`, a function of the inputs.

    Raises:
      FileNotFoundError: if the file is not there.
      ValueError: if it is damaged, of a newer version, for other platforms, or in a
        precision that is switched off.

    Example:
      >>> path = export(model, spiking, inputs[:1], "n.npz", steps=2, platforms=["cpu"])
      >>> load(path).header["platforms"]
      ['cpu']
    """
    header, entries = _read(as_path(path))
    artefact = Artefact(header, entries)
    if artefact.platform not in header["platforms"]:
        raise ValueError(
            f"{path}: was exported for {', '.join(header['platforms'])}; this is "
            f"{artefact.platform}: export it with platforms=({artefact.platform!r},)"
        )
    kinds = [*header["weights"].values(), *(row["dtype"] for row in header["inputs"])]
    if not jax.config.read("jax_enable_x64") and any("64" in kind for kind in kinds):
        raise ValueError(
            f"{path}: is in double precision, which JAX would round; set "
            "jax_enable_x64, or export it in single precision"
        )
    return artefact


@door
def describe(path: str | os.PathLike) -> dict[str, Any]:
    """The header of an artefact, whatever platforms it is for.

    Raises:
      FileNotFoundError, ValueError: as `load`.

    Example:
      >>> path = export(model, spiking, inputs[:1], "n.npz", steps=2, platforms=["cpu"])
      >>> describe(path)["steps"]
      2
    """
    return _read(as_path(path))[0]


def is_artefact(path: Path) -> bool:
    """Whether a file is one, of any version; only its header is read."""
    try:
        with archive(path) as file:
            header = json.loads(str(file["header"]))
        return header["format"].rpartition(" ")[0] == FORMAT
    except WRONG:
        return False


def free(path: str | os.PathLike, mine: Callable[[Path], bool], what: str) -> Path:
    """A path that can be written to, asked before the work.

    Args:
      path: the file.
      mine: whether what is there already may be replaced.
      what: what that is.

    Raises:
      FileExistsError: something else is there.
      OSError: no file can be written there.
    """
    path = as_path(path)
    if path.is_dir() or path.exists() and not mine(path):
        raise FileExistsError(
            f"{path}: is there already and is not {what}; choose another name or "
            "remove it"
        )
    folder(path.parent)
    return path


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not found; expected an artefact")
    try:
        with archive(path) as file:
            header = json.loads(str(file["header"]))
            kind, _, version = header["format"].rpartition(" ")
            newer = kind == FORMAT and int(version) > VERSION
            if kind != FORMAT:
                raise ValueError(f"it is {header['format']!r}, no {FORMAT}")
            entries = {} if newer else {n: file[n] for n in file.files if n != "header"}
        if not newer:
            expected, found = header["sha256"], _digest(header, entries)
            if found != expected:
                raise ValueError(
                    f"its SHA-256 is {found[:12]}…, expected {expected[:12]}…"
                )
    except WRONG as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); it is damaged or no artefact: copy or "
            "export it again"
        ) from error
    if newer:
        raise ValueError(
            f"{path}: was written by jaxburst {header.get('jaxburst')} in version "
            f"{version} of the format, this one reads version {VERSION}: update "
            "jaxburst"
        )
    return header, entries


def _digest(header: dict[str, Any], entries: dict[str, np.ndarray]) -> str:
    """SHA-256 of the header without it, and of the entries by name."""
    rest = {key: value for key, value in header.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name, value in sorted(entries.items()):
        digest.update(f"{name} {value.dtype.str} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def _checked(platforms: Sequence[str]) -> tuple[str, ...]:
    platforms = (platforms,) if isinstance(platforms, str) else tuple(platforms)
    if not platforms or set(platforms) - set(PLATFORMS):
        raise ValueError(
            f"platforms: expected some of {', '.join(PLATFORMS)}, found "
            f"{', '.join(map(str, platforms)) or 'none'}"
        )
    return tuple(dict.fromkeys(platforms))


def _is_plain(tree) -> bool:
    """Whether a structure is one that every Python program has."""
    data = tree.node_data()
    kind = None if data is None else data[0]
    plain = kind in (None, dict, list, tuple, type(None))
    return plain and all(map(_is_plain, tree.children()))


def _described(tree) -> list[dict[str, Any]]:
    """Names, shapes and types of arrays; `B` stands for the number of images."""
    return [
        {"name": _name(place), "shape": ["B", *x.shape[1:]], "dtype": str(x.dtype)}
        for place, x in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _one(shape: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *shape.shape[1:]), shape.dtype)


def _name(place) -> str:
    return jax.tree_util.keystr(place, simple=True, separator="/")
