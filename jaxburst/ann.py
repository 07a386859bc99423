"""The conventional reading of a network: the Flax module that is trained."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from jaxburst.convolution import convolve_once
from jaxburst.data import Split, check_normalised
from jaxburst.devices import evenly, share
from jaxburst.layers import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    Layers,
    MaxPool,
    Relu,
    Residual,
    Subsample,
    named,
    validate,
    walk,
)
from jaxburst.pooling import area, max_pool, subsample, sum_pool

EPSILON = 1e-5
"""Added to the variance in every batch normalisation, as in PyTorch."""

Record = dict[str, jax.Array]


class Network(nn.Module):
    """A network as a Flax module.

    `Network(layers).apply(variables, images)` returns `(logits, record)`: the logits
    `[B, classes]`, and the output `[B, ...]` of every Relu under its path,
    `record['residual0/body/relu0']`. What is not used of the record is not computed
    under `jit`. Parameters nest under the same paths, a batch normalisation under
    `norm`: `variables['params']['residual0']['body']['conv1']['norm']['scale']`.

    Attributes:
      layers: the network.
    """

    layers: Layers

    @nn.compact
    def __call__(
        self, images: jax.Array, train: bool = False
    ) -> tuple[jax.Array, Record]:
        """Applies the network to normalised images, `[B, H, W, C]`."""
        validate(self.layers, images.shape[1:])
        record: Record = {}
        return _forward(self.layers, images, train, "", record), record


def _forward(
    layers: Layers, x: jax.Array, train: bool, scope: str, record: Record
) -> jax.Array:
    for name, layer in named(layers):
        path = f"{scope}{name}"
        match layer:
            case Conv() | Dense():
                x = _Affine(layer, name=name)(x, train)
            case Relu():
                x = record[path] = nn.relu(x)
            case MaxPool():
                x = max_pool(x, layer)
            case AvgPool():
                x = sum_pool(x, layer) / area(layer, x.shape)
            case Flatten():
                x = x.reshape(x.shape[0], -1)
            case Subsample():
                x = subsample(x, layer)
            case Residual():
                x, inside = _Residual(layer, path, name=name)(x, train)
                record |= inside
    return x


class _Residual(nn.Module):
    """A scope of its own, with the scopes `body` and `shortcut` in it."""

    layer: Residual
    place: str

    @nn.compact
    def __call__(self, x, train):
        body, record = _Scope(self.layer.body, f"{self.place}/body/", name="body")(
            x, train
        )
        shortcut, inside = _Scope(
            self.layer.shortcut, f"{self.place}/shortcut/", name="shortcut"
        )(x, train)
        return body + shortcut, record | inside


class _Scope(nn.Module):
    layers: Layers
    prefix: str

    @nn.compact
    def __call__(self, x, train):
        record: Record = {}
        return _forward(self.layers, x, train, self.prefix, record), record


class _Affine(nn.Module):
    """A Conv or a Dense, with its bias and batch normalisation."""

    layer: Conv | Dense

    @nn.compact
    def __call__(self, x, train):
        layer, channels = self.layer, x.shape[-1]
        if isinstance(layer, Conv):
            shape = (layer.kernel, layer.kernel, channels, layer.features)
            kernel = self.param(
                "kernel", nn.initializers.he_normal(), shape, jnp.float32
            )
            x = convolve_once(x, kernel, layer)
        else:
            shape = (channels, layer.features)
            init = nn.initializers.lecun_normal()
            x = x @ self.param("kernel", init, shape, jnp.float32)
        if layer.bias:
            shape = (layer.features,)
            bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
            x = x + bias.reshape((1,) * (x.ndim - 1) + (-1,))
        if layer.norm:
            x = nn.BatchNorm(not train, momentum=0.9, epsilon=EPSILON, name="norm")(x)
        return x


@partial(jax.jit, static_argnames="layers")
def apply(
    layers: Layers, variables: dict, images: jax.Array
) -> tuple[jax.Array, Record]:
    """`Network(layers).apply(variables, images)` under `jit`: `(logits, record)`."""
    return Network(layers).apply(variables, images)


def apply_in_batches(
    layers: Layers, variables: dict, images: np.ndarray, batch_size: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Yields `(logits, record)` of successive batches; one compilation serves all.

    The record is in network order. All local devices share every batch.

    Args:
      layers: the network.
      variables: its trained `{'params', 'batch_stats'}`.
      images: `[N, H, W, C]`, normalised. The last batch may be smaller.
      batch_size: number of images at a time.
    """
    relus = [path for path, layer in walk(layers) if isinstance(layer, Relu)]
    if len(images) == 0:
        raise ValueError("there are no images; pass at least one, [N, H, W, C]")
    check_normalised(images)
    batch_size = evenly(min(batch_size, len(images)))
    cut, copy = share(batch_size)
    variables = copy(variables)
    for start in range(0, len(images), batch_size):
        batch = np.asarray(images[start : start + batch_size])
        missing = batch_size - len(batch)
        padded = np.concatenate([batch, np.repeat(batch[:1], missing, axis=0)])
        logits, record = jax.device_get(apply(layers, variables, cut(padded)))
        count = len(batch)
        yield logits[:count], {path: record[path][:count] for path in relus}


def check_finite(variables: dict) -> None:
    """Refuses weights that are not finite; a ReLU can swallow what they cause.

    Raises:
      ValueError: naming the first such weight.
    """
    for path, value in flatten_dict(variables, sep="/").items():
        if not isinstance(value, jax.core.Tracer) and not np.isfinite(value).all():
            raise ValueError(
                f"{path.partition('/')[2]}: a weight is not finite; train again with a "
                "lower learning rate, or load another checkpoint"
            )


def accuracy(
    layers: Layers, variables: dict, split: Split, batch_size: int = 250
) -> float:
    """Share of the images of `split` that the trained network classifies correctly.

    All local devices share every batch.
    """
    if len(split) == 0:
        raise ValueError("accuracy: there are no images in this split")
    correct, batch_size = 0, evenly(min(batch_size, len(split)))
    cut, copy = share(batch_size)
    variables = copy(variables)
    for start in range(0, len(split), batch_size):
        # The last batch begins again from the front, so that one compilation serves.
        rows = np.arange(start, start + batch_size)
        part = split[rows % len(split)]
        logits, _ = apply(layers, variables, cut(part.inputs))
        hits = np.asarray(logits).argmax(-1) == part.labels
        correct += int(hits[rows < len(split)].sum())
    return correct / len(split)
