"""Networks that the project has trained and ships.

    module, variables = pretrained("vgg9-cifar100")
    logits = module.apply(variables, images)

Each is one safetensors file, NETWORK-DATASET: kernels in 16 bits, all else in 32, under
'/'-joined paths (`params/conv0/kernel`). Its header says which network it is and what
is known of it, and holds the SHA-256 of it all.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from jaxburst.zoo import NETWORKS

FOLDER = Path(__file__).parent / "weights"
"""Where they are."""


def names() -> tuple[str, ...]:
    """The names that `pretrained` knows, `NETWORK-DATASET`."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.safetensors")))


def pretrained(name: str) -> tuple[nn.Module, dict]:
    """A network that the project has trained.

    Images are normalised with the constants of `data.load` for that dataset. It has
    seen all training images, those that `data.load` holds back for validation, too.

    Args:
      name: one of `names()`, such as `vgg9-cifar100`.

    Returns:
      `(module, variables)`: a Flax module of `models`, and its trained `{'params',
      'batch_stats'}`, in float32.

    Raises:
      ValueError: for an unknown name, or a file that is damaged.
    """
    module, variables, _ = load(_path(name))
    return module, variables


def notes(name: str) -> dict[str, Any]:
    """What is known of a released network: data, recipe, seed, accuracy."""
    return load(_path(name))[2]


def save(
    path: str | os.PathLike,
    network: str,
    classes: int,
    variables: dict,
    notes: dict[str, Any] | None = None,
) -> Path:
    """Saves a trained network, kernels in 16 bits; replaces one, all or nothing.

    Args:
      path: the file to write.
      network: its name in `zoo.NETWORKS`.
      classes: what that makes it for.
      variables: its trained `{'params', 'batch_stats'}`.
      notes: anything JSON can hold that should travel along: data, recipe, accuracy.

    Returns:
      The path.

    Raises:
      ValueError: if the network is unknown, or a kernel does not fit into 16 bits.
    """
    if network not in NETWORKS:
        known = ", ".join(NETWORKS)
        raise ValueError(f"network: expected one of {known}; found {network!r}")
    arrays = {}
    for name, value in flatten_dict(variables, sep="/").items():
        wide = not name.endswith("/kernel")
        arrays[name] = np.asarray(value, np.float32 if wide else np.float16)
        if not np.isfinite(arrays[name]).all():
            raise ValueError(f"{name}: a weight is not finite in 16 bits")
    about = {"network": network, "classes": classes, "notes": notes or {}}
    about["sha256"] = _sha256(about, arrays)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    made = path.with_name(f".{path.name}.part")
    save_file(arrays, made, {"about": json.dumps(about)})
    os.replace(made, path)
    return path


def load(path: str | os.PathLike) -> tuple[nn.Module, dict, dict[str, Any]]:
    """Loads a trained network and verifies its SHA-256.

    Args:
      path: a file written by `save`.

    Returns:
      `(module, variables, notes)`; variables are float32.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged, or not one of these.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: not found; expected a trained network")
    try:
        with safe_open(path, "numpy") as file:
            about = json.loads((file.metadata() or {})["about"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}
        expected = about.pop("sha256")
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path}: damaged, or not a network that was saved here ({error!r}); copy "
            "or save it again"
        ) from error
    found = _sha256(about, arrays)
    if found != expected:
        raise ValueError(
            f"{path}: damaged: its SHA-256 is {found[:12]}…, expected {expected[:12]}…;"
            " copy or save it again"
        )
    floats = {path: jnp.asarray(value, jnp.float32) for path, value in arrays.items()}
    module = NETWORKS[about["network"]](about["classes"])
    return module, unflatten_dict(floats, sep="/"), about["notes"]


def _path(name: str) -> Path:
    if name not in names():
        known = ", ".join(names())
        raise ValueError(f"pretrained: expected one of {known}; found {name!r}")
    return FOLDER / f"{name}.safetensors"


def _sha256(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()
