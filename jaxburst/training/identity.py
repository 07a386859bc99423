"""What a run is a function of, so that only the same run is resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import re
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from jaxburst.training.recipe import Recipe
from jaxburst.training.task import Data, Example, Static, example_of, flat


def describe_module(module: nn.Module, example: Example) -> dict:
    variables = jax.eval_shape(Static(module).init, jax.random.key(0), example.zeros())
    leaves = {
        name: leaf
        for collection in sorted(variables, key=lambda name: name != "params")
        for name, leaf in flat(variables[collection]).items()
    }
    # Where functions lie in memory is another place every time.
    text = re.sub(r" at 0x[0-9a-f]+", "", repr(module))
    return {
        "parameters": [[name, _type(leaf)] for name, leaf in leaves.items()],
        "module": [line.strip() for line in text.splitlines()],
    }


def _type(leaf) -> str:
    return f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]"


def _sha256(*arrays) -> str:
    content = hashlib.sha256()
    for array in arrays:
        content.update(np.ascontiguousarray(array).data)
    return content.hexdigest()


def describe(module, recipe: Recipe, variables, optimiser, data: Data) -> dict:
    """What a run is a function of, in JSON."""
    constants = np.array([data.mean or (), data.std or ()])
    started = None if variables is None else _sha256(*jax.tree.leaves(variables))
    return {
        **describe_module(module, example_of(data)),
        "example": example_of(data),
        "recipe": dataclasses.asdict(recipe),
        "started": started,
        "optimiser": "the recipe's" if optimiser is None else "given to fit",
        "split": {
            "shape": list(data.inputs.shape),
            "dtype": str(data.inputs.dtype),
            "sha256": _sha256(data.inputs, data.labels, constants),
        },
    }


def require_same(directory: Path, there: dict, here: dict) -> None:
    """Compares the parts of two runs that `here` names."""
    pairs = itertools.zip_longest(
        there["parameters"], here["parameters"], fillvalue=("nothing", "more")
    )
    different = [f"{a[0]} {a[1]}, not {b[0]} {b[1]}" for a, b in pairs if a != b][:1]
    if not different:
        lines = itertools.zip_longest(there["module"], here["module"], fillvalue="")
        different = [f"{a}, not {b}" for a, b in lines if a != b][:1]
    for part, prefix in (("recipe", "Recipe."), ("split", "split.")):
        different += [
            f"{prefix}{name} {there[part].get(name)!r}, not {value!r}"
            for name, value in here.get(part, {}).items()
            if there[part].get(name) != value
        ]
    if there["optimiser"] != here.get("optimiser", there["optimiser"]):
        different.append(f"the optimiser {there['optimiser']}, not {here['optimiser']}")
    if there.get("started") != here.get("started", there.get("started")):
        different.append("other variables at its start")
    if different:
        raise ValueError(
            f"{directory}: holds another run, with {'; '.join(different)}; pass what "
            "it was started with, or choose another directory"
        )
