"""Networks that the project has trained and ships.

layers, variables = jb.pretrained("vgg9-cifar100")
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jaxburst.checkpoint import load_trained
from jaxburst.layers import Layers

FOLDER = Path(__file__).parent / "weights"
"""Where they are: a folder each, `NETWORK-DATASET`."""


def names() -> tuple[str, ...]:
    """The names that `pretrained` knows, `NETWORK-DATASET`."""
    return tuple(sorted(folder.parent.name for folder in FOLDER.glob("*/*.json")))


def pretrained(name: str) -> tuple[Layers, dict]:
    """A network that the project has trained.

    Images are normalised with the constants of `data.load` for that dataset. It has
    seen all training images, those that `data.load` holds back for validation, too.

    Args:
      name: one of `names()`, such as `vgg9-cifar100`.

    Returns:
      `(layers, variables)`, for `calibrate`, `convert` and the presets.

    Raises:
      ValueError: for an unknown name, or files that are damaged.
    """
    layers, variables, _ = load_trained(_folder(name))
    return layers, variables


def notes(name: str) -> dict[str, Any]:
    """What is known of a released network: data, recipe, seed, accuracy."""
    return load_trained(_folder(name))[2]


def _folder(name: str) -> Path:
    if name not in names():
        known = ", ".join(names())
        raise ValueError(f"pretrained: expected one of {known}; found {name!r}")
    return FOLDER / name
