"""Networks that the project has trained and ships.

    module, variables = pretrained("vgg9-cifar100")
    logits = module.apply(variables, images)

Each is one safetensors file, NETWORK-DATASET: kernels in 16 or 8 bits, all else in 32,
under '/'-joined paths (`params/conv0/kernel`). Its header says which network it is and
what is known of it, and holds the SHA-256 of it all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxburst.checks import door, finite, one_of, refuse
from jaxburst.io.files import write
from jaxburst.io.sealed import seal, unseal
from jaxburst.zoo import NETWORKS

__all__ = [
    "folders",
    "load",
    "names",
    "notes",
    "pretrained",
]

FORMAT = "jaxburst weights 1"
FOLDER = Path(__file__).parent / "weights"
"""Where those are that come with the package."""


def folders() -> list[Path]:
    """Where `pretrained` looks, in this order.

    The folder that the variable `JAXBURST_WEIGHTS` names, if it does; the package; and
    `weights` beside it, in a checkout.

    Example:
      >>> folders()[-1].name
      'weights'
    """
    own = os.environ.get("JAXBURST_WEIGHTS")
    given = [Path(own).expanduser()] if own else []
    return [*given, FOLDER, FOLDER.parents[1] / "weights"]


def names() -> tuple[str, ...]:
    """The names that `pretrained` knows, `NETWORK-DATASET`.

    Example:
      >>> "vgg9-cifar100" in names()
      True
    """
    found = (path for folder in folders() for path in folder.glob("*.safetensors"))
    return tuple(sorted({path.stem for path in found}))


@door
def pretrained(name: str) -> tuple[nn.Module, dict]:
    """A network that the project has trained.

    Images are normalised with the constants of `data.load` for that dataset. It has
    seen all training images, those that `data.load` holds back for validation, too.

    Args:
      name: one of `names()`, such as `vgg9-cifar100`.

    Returns:
      `(module, variables)`: a Flax module of `zoo`, and its trained `{'params',
      'batch_stats'}`, in float32.

    Raises:
      ValueError: for an unknown name, saying where to put a file that is missing; or
        for a file that is damaged.

    Example:
      >>> module, variables = pretrained("vgg9-cifar100")
      >>> variables["params"]["conv0"]["kernel"].shape
      (3, 3, 3, 32)
    """
    module, variables, _ = load(_path(name))
    return module, variables


@door
def notes(name: str) -> dict[str, Any]:
    """What is known of a released network: data, recipe, seed, accuracy.

    Example:
      >>> notes("vgg9-cifar100")["recipe"]["epochs"]
      24
    """
    return load(_path(name))[2]


@door(network="zoo")
def save(
    path: str | os.PathLike,
    network: str,
    classes: int,
    variables: dict,
    notes: dict[str, Any] | None = None,
    *,
    bits: int = 16,
) -> Path:
    r"""Saves a trained network, kernels in 16 or 8 bits; replaces one, all or nothing.

    In 8 bits each output channel `c` has a scale of its own:

    .. math:: W_c \approx s_c Q_c, \qquad s_c = \max |W_c| / 127, \qquad
        Q_c = \mathrm{round}(W_c / s_c) \in \{-127, \dots, 127\}

    Args:
      path: the file to write.
      network: its name in `zoo.NETWORKS`.
      classes: what that makes it for.
      variables: its trained `{'params', 'batch_stats'}`.
      notes: anything JSON can hold that should travel along: data, recipe, accuracy.
      bits: of a kernel's weight, 16 or 8.

    Returns:
      The path.

    Raises:
      OSError: if the file cannot be written; what was there is intact.
      ValueError: if the network is unknown, the variables are not its own, or one is
        not finite in so many bits.
    """
    if bits not in (8, 16):
        raise ValueError(f"bits: expected 8 or 16, found {bits!r}")
    flat = flatten_dict(variables, sep="/")
    _check_own("variables", network, classes, flat)
    arrays = {}
    for name, value in flat.items():
        value = np.asarray(value, np.float32)
        if name.endswith("/kernel"):
            with np.errstate(over="ignore"):
                rounded = value.astype(np.float16)
            if np.isfinite(rounded).all() and bits == 8:
                arrays[name + _SCALE], rounded = _eight_bits(value)
            value = rounded
        if not np.isfinite(value).all():
            raise ValueError(f"{name}: a weight is not finite in 16 bits")
        arrays[name] = value
    about = {"network": network, "classes": classes, "notes": notes or {}}
    return write(path, seal(FORMAT, about, arrays))


@door
def load(path: str | os.PathLike) -> tuple[nn.Module, dict, dict[str, Any]]:
    """Loads a trained network and verifies its SHA-256.

    Args:
      path: a file written by `save`.

    Returns:
      `(module, variables, notes)`; variables are float32.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged, or not one of these.

    Example:
      >>> module, variables, notes = load(FOLDER / "vgg9-cifar10.safetensors")
      >>> module.classes, variables["params"]["dense0"]["bias"].shape
      (10, (10,))
    """
    about, arrays = unseal(path, FORMAT, "a trained network", notes=dict)
    floats = {}
    for name, value in arrays.items():
        if not name.endswith(_SCALE):
            scale = arrays.get(name + _SCALE, np.float32(1))
            floats[name] = jnp.asarray(value * scale, jnp.float32)
    network: Any = about.get("network")
    classes: Any = about.get("classes")
    one_of(f"{path}: its network", network, NETWORKS)
    _check_own(str(path), network, classes, floats)
    return NETWORKS[network](classes), unflatten_dict(floats, sep="/"), about["notes"]


def _check_own(name: str, network: str, classes: int, flat: dict) -> None:
    """Refuses variables that are not a network's: what the size of an image and its
    channels decide aside, shapes are compared, too."""
    image = jnp.zeros((1, 32, 32, 3))
    init = NETWORKS[network](classes).init
    wanted: Any = jax.eval_shape(init, jax.random.key(0), image)
    own: dict[str, Any] = flatten_dict(wanted, sep="/")
    for odd in sorted(flat.keys() ^ own.keys()):
        raise ValueError(f"{name}: {odd} is in only one of {network} and these")
    for place, leaf in own.items():
        found = np.shape(flat[place])
        if (len(found), *found[-1:]) != (leaf.ndim, *leaf.shape[-1:]):
            refuse(f"{name}: {place}", f"a shape such as {leaf.shape}", found)
    finite(name, flat, "train it again")


_SCALE = ".scale"  # beside a kernel in 8 bits


def _eight_bits(kernel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale `[1, ..., C]` and whole numbers of a kernel, its output channels last."""
    axes = tuple(range(kernel.ndim - 1))
    scale = np.abs(kernel).max(axes, keepdims=True) / np.float32(127)
    scale = np.where(scale > 0, scale, np.float32(1)).astype(np.float32)
    return scale, np.rint(kernel / scale).astype(np.int8)


def _path(name: str) -> Path:
    for folder in folders():
        path = folder / f"{name}.safetensors"
        if name in names() and path.is_file():
            return path
    known = ", ".join(names()) or "none"
    raise ValueError(
        f"name: expected one of the trained networks that are here ({known}), found "
        f"{name!r}; if you have its file, put {name}.safetensors into a folder and set "
        f"JAXBURST_WEIGHTS to it, or into {FOLDER}"
    )
