"""What is trained: a module, told whether it trains, and inputs and labels that fit.

`N` counts inputs, `[N, ...]`.
"""

from __future__ import annotations

import functools
import inspect
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.errors import InvalidRngError
from flax.traverse_util import flatten_dict

from jaxburst.checks import finite, is_numeric, refuse
from jaxburst.data import OnDisk, Split

FLAGS = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""Arguments of `__call__` that tell a module whether it trains, and what says so."""


class Static:
    """A module that `jit` can compile for, even if lists are among its attributes."""

    def __init__(self, module: nn.Module):
        self.module = module
        known = inspect.signature(type(module).__call__).parameters
        flags = {name: says for name, says in FLAGS.items() if name in known}
        self.training: dict[str, Any] = flags

    def __hash__(self) -> int:
        return hash(type(self.module))

    def __eq__(self, other) -> bool:
        mine, theirs = self.module, other.module
        return mine is theirs or type(mine) is type(theirs) and mine == theirs

    @property
    def _inference(self) -> dict[str, Any]:
        return {name: not value for name, value in self.training.items()}

    def init(self, key, x) -> Any:
        return self.module.init(key, x, **self._inference)

    def infer(self, variables, x):
        return self.module.apply(variables, x, **self._inference)

    def train(self, variables, x, key):
        """Logits, and the variables that are not parameters, after this batch."""
        others = [name for name in variables if name != "params"]
        # What is drawn under another name than 'params' takes that one's, too.
        logits, updated = self.module.apply(
            variables, x, **self.training, rngs={"params": key}, mutable=others
        )
        return logits, {name: updated[name] for name in others}


class Example(NamedTuple):
    """What one input looks like to the module."""

    shape: tuple[int, ...]  # [1, ...]
    dtype: str

    def zeros(self) -> jax.Array:
        return jnp.zeros(self.shape, self.dtype)


class Data(NamedTuple):
    """Inputs and labels in memory; `mean` and `std` where they are pixels."""

    inputs: np.ndarray
    labels: np.ndarray
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None


def read(name: str, split: Split | tuple[Any, Any]) -> Data:
    mean = std = None
    if isinstance(split, tuple):
        inputs, labels = split
    else:
        inputs, labels = split.images, split.labels
        if inputs.dtype == np.uint8:
            mean, std = tuple(split.mean), tuple(split.std)
    if isinstance(inputs, OnDisk):
        raise TypeError(
            f"{name}: expected images in memory, found them on disk; read some of them "
            "with np.asarray, images and labels, into another Split"
        )
    for what, array in (("inputs", inputs), ("labels", labels)):
        if isinstance(array, np.ma.MaskedArray):
            refuse(f"{name}: {what}", "numbers, nothing masked", array)
    inputs, labels = np.asarray(inputs), np.asarray(labels)
    if inputs.ndim == 0 or labels.ndim == 0 or not 0 < len(labels) == len(inputs):
        counts = [len(array) if array.ndim else "no" for array in (inputs, labels)]
        raise ValueError(
            f"{name}: expected as many images as labels, and at least one, found "
            f"{counts[0]} images and {counts[1]} labels"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"{name}: expected labels that are whole numbers, found {labels.dtype}"
        )
    if not is_numeric(inputs, "biuf"):
        refuse(f"{name}: inputs", "numbers", str(inputs.dtype))
    finite(name, inputs, "normalise the data again")
    if (labels != labels.astype(np.int32)).any():
        raise ValueError(f"{name}: expected labels of 0 .. C - 1, found {labels.max()}")
    return Data(inputs, labels.astype(np.int32), mean, std)


def example_of(data: Data) -> Example:
    pixels = data.mean is not None
    dtype = np.float32 if pixels else data.inputs.dtype
    dtype = jax.dtypes.canonicalize_dtype(dtype)
    return Example((1, *data.inputs.shape[1:]), str(dtype))


def require_own(module: nn.Module, variables: dict, example: Example) -> None:
    """Refuses variables that are not those of the module."""
    init = functools.partial(Static(module).init, jax.random.key(0), example.zeros())
    own, found = (
        {name: np.shape(leaf) for name, leaf in flat(tree).items()}
        for tree in (jax.eval_shape(init), variables)
    )
    for name in sorted(own.keys() | found.keys()):
        if own.get(name) != found.get(name):
            raise ValueError(
                f"variables: {name}: expected {own.get(name, 'nothing')}, found "
                f"{found.get(name, 'nothing')}; these are not those of the module"
            )


def check(module: nn.Module, name: str, data: Data) -> None:
    """Refuses what cannot be trained, before anything is compiled."""
    static, kind = Static(module), type(module).__name__
    key, x = jax.random.key(0), example_of(data).zeros()
    one_of = f"one of the arguments {', '.join(FLAGS)}"
    try:
        variables = jax.eval_shape(static.init, key, x)
        empty = any(0 in leaf.shape for leaf in jax.tree.leaves(variables))
    except ZeroDivisionError:  # that of an initialiser, for a kernel without inputs
        empty = True
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: {kind} takes no inputs of {x.dtype} {list(x.shape)} ({error})"
        ) from error
    if empty:
        raise ValueError(
            f"{name}: expected inputs that {kind} leaves something of, found "
            f"{list(data.inputs.shape[1:])}, too small for this network"
        )
    kept = sorted(variables.keys() - {"params"})
    if kept and not static.training:
        raise ValueError(
            f"module: expected {kind}.__call__ to take {one_of}, since it keeps "
            f"{', '.join(kept)}, which change in training only; found none of them"
        )
    try:
        two = jax.ShapeDtypeStruct((2, *x.shape[1:]), x.dtype)
        logits = jax.eval_shape(static.infer, variables, two)
    except InvalidRngError as error:
        raise ValueError(
            f"module: {kind} draws random numbers when it does not train, too "
            f"({error}); let {kind}.__call__ take {one_of}, and draw by that"
        ) from error
    expected = data.labels.shape[1:]
    shape = getattr(logits, "shape", None)
    if shape is None or len(shape) < 2 or shape[:-1] != (2, *expected):
        places = "".join(f"{side}, " for side in (len(data.labels), *expected))
        first = "N" if shape and shape[0] == 2 else 1
        found = shape and f"[{', '.join(map(str, (first, *shape[1:])))}]"
        raise ValueError(
            f"{name}: expected {kind} to return logits for every label, [{places}"
            f"classes], found {found or jax.tree.structure(logits)}; train a module "
            "that returns nothing else"
        )
    lowest, highest = int(data.labels.min()), int(data.labels.max())
    if lowest < 0 or highest >= shape[-1]:
        raise ValueError(
            f"{name}: expected labels in 0 .. {shape[-1] - 1}, since the network ends "
            f"in {shape[-1]} classes, found {lowest} .. {highest}"
        )


def flat(tree: Any) -> dict[str, Any]:
    return dict(flatten_dict(tree, sep="/"))
