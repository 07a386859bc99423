"""Networks on disk: safetensors, JSON and a SHA-256 that is verified.

A saved network, converted (`save`, `load`) or trained (`save_trained`, `load_trained`),
is a folder of two files:

    weights.safetensors   the arrays, under '/'-joined paths: `conv0/kernel`
    network.json          layers, settings, notes, and the SHA-256 of it all
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file

from jaxburst import layers as vocabulary
from jaxburst.conversion import Affine, Shortcut, Spiking
from jaxburst.layers import Layers
from jaxburst.neuron import Burst, Refining, Threshold
from jaxburst.simulation import Model

_NEURONS = {neuron.__name__: neuron for neuron in (Burst, Refining)}
_PARTS = {part.__name__: part for part in (Affine, Threshold, Shortcut)}


def save(
    directory: str | os.PathLike,
    model: Model,
    spiking: Spiking,
    notes: dict[str, Any] | None = None,
) -> Path:
    """Saves a converted network; replaces one that is there, all or nothing.

    Args:
      directory: the folder to write.
      model: layers, neuron and pooling.
      spiking: the converted weights.
      notes: anything JSON can hold that should travel along: where the weights come
        from, how they were calibrated, how images are normalised.

    Returns:
      The folder.

    Raises:
      FileExistsError: if something is there that is not a saved network.
    """
    arrays = {
        f"{path}/{field}": np.asarray(value)
        for path, part in spiking.items()
        for field, value in part._asdict().items()
    }
    description = {
        "layers": to_json(model.layers),
        "neuron": {
            "kind": type(model.neuron).__name__,
            **dataclasses.asdict(model.neuron),
        },
        "pool": model.pool,
        "exact": model.exact,
        "precision": model.precision,
        "parts": {path: type(part).__name__ for path, part in spiking.items()},
        "notes": notes or {},
    }
    return _write(Path(directory), arrays, description)


def load(directory: str | os.PathLike) -> tuple[Model, Spiking, dict[str, Any]]:
    """Loads a converted network and verifies its SHA-256.

    Args:
      directory: a folder written by `save`.

    Returns:
      `(model, spiking, notes)`.

    Raises:
      FileNotFoundError: if one of the two files is not there.
      ValueError: if they are damaged or do not belong together.
    """
    description, arrays = _read(Path(directory), "neuron")
    settings = dict(description["neuron"])
    if "gammas" in settings:  # JSON has lists only
        settings["gammas"] = tuple(map(tuple, settings["gammas"]))
    neuron = _NEURONS[settings.pop("kind")](**settings)
    layers = from_json(description["layers"])
    others = {field: description[field] for field in ("pool", "exact", "precision")}
    model = Model(layers, neuron, **others)
    spiking = {
        path: _PARTS[kind](
            *(jnp.asarray(arrays[f"{path}/{field}"]) for field in _PARTS[kind]._fields)
        )
        for path, kind in description["parts"].items()
    }
    return model, spiking, description["notes"]


def save_trained(
    directory: str | os.PathLike,
    layers: Layers,
    variables: dict,
    notes: dict[str, Any] | None = None,
) -> Path:
    """Saves a trained network, kernels in 16 bits; replaces one, all or nothing.

    Args:
      directory: the folder to write.
      layers: the network.
      variables: its trained `{'params', 'batch_stats'}`.
      notes: anything JSON can hold that should travel along: data, recipe, accuracy.

    Returns:
      The folder.

    Raises:
      FileExistsError: if something is there that is not a saved network.
      ValueError: if a kernel does not fit into 16 bits.
    """
    arrays = {}
    for path, value in flatten_dict(variables, sep="/").items():
        wide = not path.endswith("/kernel")
        arrays[path] = np.asarray(value, np.float32 if wide else np.float16)
        if not np.isfinite(arrays[path]).all():
            raise ValueError(f"{path}: a weight is not finite in 16 bits")
    description = {"layers": to_json(layers), "trained": True, "notes": notes or {}}
    return _write(Path(directory), arrays, description)


def load_trained(directory: str | os.PathLike) -> tuple[Layers, dict, dict[str, Any]]:
    """Loads a trained network and verifies its SHA-256.

    Args:
      directory: a folder written by `save_trained`.

    Returns:
      `(layers, variables, notes)`; variables are float32.

    Raises:
      FileNotFoundError: if one of the two files is not there.
      ValueError: if they are damaged, do not belong together, or are of a converted
        network.
    """
    description, arrays = _read(Path(directory), "trained")
    floats = {path: jnp.asarray(value, jnp.float32) for path, value in arrays.items()}
    variables = unflatten_dict(floats, sep="/")
    return from_json(description["layers"]), variables, description["notes"]


def _write(directory: Path, arrays: dict, description: dict[str, Any]) -> Path:
    if directory.exists() and not (directory / "network.json").is_file():
        raise FileExistsError(
            f"{directory}: is there already and is not a saved network; choose another "
            "folder or remove it"
        )
    directory.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        save_file(arrays, made / "weights.safetensors")
        description["sha256"] = _sha256(made / "weights.safetensors", description)
        (made / "network.json").write_text(json.dumps(description, indent=1) + "\n")
        made.chmod(0o755)
        (made / "weights.safetensors").chmod(0o644)
    except BaseException:
        shutil.rmtree(made, ignore_errors=True)
        raise
    if directory.exists():
        # Aside first: whenever this is interrupted, one of the two is whole.
        old = made.with_name(f"{made.name}-old")
        directory.rename(old)
        made.rename(directory)
        shutil.rmtree(old)
    else:
        made.rename(directory)
    return directory


def _read(directory: Path, kind: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What `_write` wrote, verified; `kind` is a key of the description."""
    for name in ("network.json", "weights.safetensors"):
        if not (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory / name}: not found; expected the folder of a saved network"
            )
    try:
        description = json.loads((directory / "network.json").read_text())
        expected = description.pop("sha256")
    except (ValueError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{directory / 'network.json'}: damaged ({error!r}); save the network again"
        ) from error
    found = _sha256(directory / "weights.safetensors", description)
    if found != expected:
        raise ValueError(
            f"{directory}: weights.safetensors or network.json is damaged, or they are "
            f"of different networks: the SHA-256 of both is {found[:12]}…, expected "
            f"{expected[:12]}…; copy or save the network again"
        )
    if kind not in description:
        raise ValueError(
            f"{directory}: is a network of the other kind; converted ones are loaded "
            "by load, trained ones by load_trained"
        )
    return description, load_file(directory / "weights.safetensors")


def to_json(layers: Layers) -> list[dict[str, Any]]:
    """A network as plain data: one dictionary per layer, `kind` and settings."""

    def encode(layer):
        settings = {
            field.name: getattr(layer, field.name)
            for field in dataclasses.fields(layer)
            if getattr(layer, field.name) != field.default
        }
        for name, value in settings.items():
            if isinstance(value, tuple):
                settings[name] = to_json(value)
        return {"kind": type(layer).__name__, **settings}

    return [encode(layer) for layer in layers]


def from_json(data: list[dict[str, Any]]) -> Layers:
    """The network that `to_json` wrote.

    Raises:
      ValueError: for a kind or a setting that is not in the vocabulary.
    """

    def decode(settings):
        settings = dict(settings)
        kind = settings.pop("kind")
        for name, value in settings.items():
            if isinstance(value, list):
                settings[name] = from_json(value)
        known = {kind.__name__: kind for kind in vocabulary.KINDS}
        if kind not in known:
            raise ValueError(f"{kind!r} is not a layer; the layers are {sorted(known)}")
        return known[kind](**settings)

    return tuple(decode(settings) for settings in data)


def _sha256(weights: Path, description: dict[str, Any]) -> str:
    """The hash of the weights followed by everything else that `network.json` says."""
    with open(weights, "rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(description, sort_keys=True).encode())
    return digest.hexdigest()
