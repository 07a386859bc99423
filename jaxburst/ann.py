"""The conventional reading of a network: the Flax module that is trained."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from jaxburst.convolution import convolve, prepare
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
    has_parameters,
    named,
    validate,
)
from jaxburst.pooling import area, max_pool, subsample, sum_pool

EPSILON = 1e-5
"""Added to the variance in every batch normalisation, as in PyTorch."""

Record = dict[str, Any]


class Network(nn.Module):
    """A network as a Flax module.

    `Network(layers).apply(variables, images)` returns `(logits, record)`: the logits
    `[B, classes]` and a tree with the output `[B, ...]` of every Relu under the
    layer's path. What is not used of the record is not computed under `jit`.

    Parameters nest under the same paths, a batch normalisation under `norm`:
    `variables['params']['residual0']['body']['conv1']['norm']['scale']`.

    Attributes:
      layers: the network.
    """

    layers: Layers

    @nn.compact
    def __call__(self, images: jax.Array, train: bool = False):
        """Applies the network to `images`, `[B, H, W, C]`, already normalised."""
        validate(self.layers, images.shape[1:])
        return _forward(self.layers, images, train)


def _forward(layers: Layers, x: jax.Array, train: bool) -> tuple[jax.Array, Record]:
    record: Record = {}
    for name, layer in named(layers):
        match layer:
            case Conv() | Dense():
                x = _Affine(layer, name=name)(x, train)
            case Relu():
                x = record[name] = nn.relu(x)
            case MaxPool():
                x = max_pool(x, layer)
            case AvgPool():
                x = sum_pool(x, layer) / area(layer, x.shape)
            case Flatten():
                x = x.reshape(x.shape[0], -1)
            case Subsample():
                x = subsample(x, layer)
            case Residual():
                x, inside = _Residual(layer, name=name)(x, train)
                record |= {name: inside} if inside else {}
    return x, record


class _Scope(nn.Module):
    """The inside of a residual: `body` or `shortcut`."""

    layers: Layers

    @nn.compact
    def __call__(self, x, train):
        return _forward(self.layers, x, train)


class _Residual(nn.Module):
    layer: Residual

    @nn.compact
    def __call__(self, x, train):
        body, record = _Scope(self.layer.body, name="body")(x, train)
        record = {"body": record} if record else {}
        if has_parameters(self.layer.shortcut):
            shortcut, inside = _Scope(self.layer.shortcut, name="shortcut")(x, train)
        else:
            shortcut, inside = _forward(self.layer.shortcut, x, train)
        record |= {"shortcut": inside} if inside else {}
        return body + shortcut, record


class _Affine(nn.Module):
    """A Conv or a Dense, with its bias and batch normalisation."""

    layer: Conv | Dense

    @nn.compact
    def __call__(self, x, train):
        layer, channels = self.layer, x.shape[-1]
        if isinstance(layer, Conv):
            shape = (layer.kernel, layer.kernel, channels, layer.features)
            kernel = self.param("kernel", nn.initializers.he_normal(), shape)
            x = convolve(x, prepare(kernel, layer, x.shape[1:]), layer)
        else:
            shape = (channels, layer.features)
            x = x @ self.param("kernel", nn.initializers.lecun_normal(), shape)
        if layer.bias:
            bias = self.param("bias", nn.initializers.zeros, (layer.features,))
            x = x + bias.reshape((1,) * (x.ndim - 1) + (-1,))
        if layer.norm:
            x = nn.BatchNorm(not train, momentum=0.9, epsilon=EPSILON, name="norm")(x)
        return x
