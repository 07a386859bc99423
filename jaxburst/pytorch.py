"""Weights from elsewhere: a PyTorch state dict becomes the variables of a network.

The rule by which tensors find their layers, in order and not by name:

1. A leading `module.` is dropped, `num_batches_tracked` is ignored, and tensors with
   the same name up to the last dot belong together.
2. A 4-D weight is a convolution, a 2-D weight a dense layer, and whatever has a
   `running_mean` a batch normalisation. Convolutions after the network's last are its
   first dense layers, where it lacks just as many (timm's VGG).
3. Each kind is put in natural order (`layer1.10` after `layer1.9`) and fills the layers
   of that kind in network order: in a residual, the body before the shortcut. A
   normalisation next to dense layers comes after those next to convolutions.

Where alphabetical order is not network order (`head` before `stem`), name the prefixes
that come first with `order=("stem", "blocks", "head")`.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from itertools import zip_longest

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from safetensors import SafetensorError
from safetensors.numpy import load_file

from jaxburst.ann import check_finite
from jaxburst.layers import Conv, Dense, Flatten, Layers, trace_shapes, validate, walk

_NORM = {  # PyTorch's names, and where Flax keeps them
    "weight": ("params", "scale"),
    "bias": ("params", "bias"),
    "running_mean": ("batch_stats", "mean"),
    "running_var": ("batch_stats", "var"),
}


def load_pytorch(
    layers: Layers,
    source: str | os.PathLike | Mapping[str, np.ndarray],
    image_shape: tuple[int, ...],
    *,
    order: Sequence[str] = (),
) -> dict:
    """Reads a PyTorch state dict into the variables of a network.

    Kernels change from `[C_out, C_in, H, W]` to `[H, W, C_in, C_out]`; a Dense after a
    Flatten is permuted from channel-first order; every tensor is accounted for.

    Args:
      layers: the network the weights are for.
      source: a `.safetensors` file, or the state dict itself as NumPy arrays.
      image_shape: `(H, W, C)`.
      order: name prefixes in network order, where alphabetical order is not it.

    Returns:
      `{'params', 'batch_stats'}` of `Network(layers)`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: listing every tensor that is missing, left over or of a wrong shape.
    """
    validate(layers, image_shape)
    if isinstance(order, str):
        raise TypeError(f"order must be a sequence of prefixes, found {order!r}")
    groups = _group(source if isinstance(source, Mapping) else _read(source))
    kinds = {"conv": {}, "norm": {}, "dense": {}, "other": {}}
    for owner, tensors in groups.items():
        kinds[_kind(tensors)][owner] = tensors

    tops = {
        kind: {owner.split(".")[0] for owner in found} for kind, found in kinds.items()
    }
    head = tops["dense"] - tops["conv"]

    def position(owner: str) -> tuple:
        first = next(
            (
                i
                for i, prefix in enumerate(order)
                if f"{owner}.".startswith(f"{prefix}.")
            ),
            len(order),
        )
        digits = re.split(r"(\d+)", owner)
        natural = [(int(part), "") if part.isdigit() else (0, part) for part in digits]
        return first, owner.split(".")[0] in head, natural

    sorted_owners = {kind: sorted(found, key=position) for kind, found in kinds.items()}
    flattened = _flattened(layers, image_shape)
    inputs = {row.path: row.input for row in trace_shapes(layers, image_shape)}
    affine = [pair for pair in walk(layers) if isinstance(pair[1], Conv | Dense)]
    wanted = {
        "conv": [pair for pair in affine if isinstance(pair[1], Conv)],
        "dense": [pair for pair in affine if isinstance(pair[1], Dense)],
        "norm": [pair for pair in affine if pair[1].norm],
        "other": [],
    }
    convs, denses = sorted_owners["conv"], sorted_owners["dense"]
    surplus = convs[len(wanted["conv"]) :]
    if len(surplus) + len(denses) == len(wanted["dense"]):
        sorted_owners["conv"] = convs[: len(wanted["conv"])]
        sorted_owners["dense"] = surplus + denses
        for owner in surplus:
            tensors = kinds["conv"][owner]
            weight = tensors["weight"].reshape(len(tensors["weight"]), -1)
            kinds["dense"][owner] = tensors | {"weight": weight}
    variables: dict[tuple[str, ...], np.ndarray] = {}
    problems: list[str] = []
    for kind, pairs in wanted.items():
        for pair, owner in zip_longest(pairs, sorted_owners[kind]):
            if pair is None:
                names = [_join(owner, name) for name in kinds[kind][owner]]
                problems += [f"left over: {name}" for name in names]
                continue
            path, layer = pair
            expected = _expected(kind, layer, inputs[path], flattened.get(path))
            if owner is None:
                problems += [f"missing: {kind} {name} of {path}" for name in expected]
                continue
            tensors = dict(kinds[kind][owner])
            for name, (shape, where, rewrite) in expected.items():
                value = tensors.pop(name, None)
                if value is None:
                    problems.append(f"missing: {_join(owner, name)} for {path}")
                elif value.shape != shape:
                    problems.append(
                        f"wrong shape: {_join(owner, name)} is {value.shape}, "
                        f"but {path} needs {shape}"
                    )
                else:
                    collection, leaf = where
                    inner = ("norm", leaf) if kind == "norm" else (leaf,)
                    key = (collection, *path.split("/"), *inner)
                    variables[key] = jnp.asarray(rewrite(value), jnp.float32)
            problems += [f"left over: {_join(owner, name)}" for name in tensors]
    if problems:
        raise ValueError(
            f"these tensors do not fit the network ({len(problems)} problems; check "
            "the layers, their bias and shortcut settings, and `order`):\n  "
            + "\n  ".join(problems)
        )
    variables = unflatten_dict(variables)
    check_finite(variables)
    return variables


def _read(path: str | os.PathLike) -> Mapping[str, np.ndarray]:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: there is no such file of weights")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path}: not a whole safetensors file ({error}); save the state dict with "
            "safetensors.torch.save_file"
        ) from error


def _group(state_dict: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    groups: dict[str, dict[str, np.ndarray]] = {}
    for name, value in state_dict.items():
        owner, _, leaf = name.removeprefix("module.").rpartition(".")
        if leaf != "num_batches_tracked":
            groups.setdefault(owner, {})[leaf] = np.asarray(value)
    return groups


def _kind(tensors: dict[str, np.ndarray]) -> str:
    if "running_mean" in tensors:
        return "norm"
    rank = tensors["weight"].ndim if "weight" in tensors else 0
    return {4: "conv", 2: "dense"}.get(rank, "other")


def _join(owner: str, leaf: str) -> str:
    return f"{owner}.{leaf}" if owner else leaf


def _flattened(layers: Layers, image_shape: tuple[int, ...]) -> dict[str, tuple]:
    """The map `(H, W, C)` that each Dense reads in flattened form."""
    shapes, pending = {}, None
    for row in trace_shapes(layers, image_shape):
        if isinstance(row.layer, Flatten):
            pending = row.input
        elif isinstance(row.layer, Dense) and pending is not None:
            shapes[row.path], pending = pending, None
    return shapes


def _expected(kind, layer, shape_in, flattened) -> dict[str, tuple]:
    """`{PyTorch name: (shape, (collection, Flax name), how to rewrite it)}`."""
    features = layer.features
    if kind == "norm":
        return {name: ((features,), where, _same) for name, where in _NORM.items()}
    if kind == "conv":
        shape = (features, shape_in[-1], layer.kernel, layer.kernel)
        rewrite = _kernel_last
    else:
        shape = (features, math.prod(shape_in))
        rewrite = np.transpose

        if flattened is not None:
            height, width, channels = flattened

            def rewrite(value):
                maps = value.reshape(features, channels, height, width)
                return maps.transpose(2, 3, 1, 0).reshape(-1, features)

    expected = {"weight": (shape, ("params", "kernel"), rewrite)}
    if layer.bias:
        expected["bias"] = ((features,), ("params", "bias"), _same)
    return expected


def _same(value: np.ndarray) -> np.ndarray:
    return value


def _kernel_last(value: np.ndarray) -> np.ndarray:
    return value.transpose(2, 3, 1, 0)
