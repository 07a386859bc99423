"""Channels, wherever they are among the axes, and outputs that are compared."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxburst.convert import threshold_shapes
from jaxburst.graph import images_first
from jaxburst.network import Network


def by_channel(network: Network, name: str, x: jax.Array) -> jax.Array:
    """A node's values `[B, n, C]`: images in front, channels last, places between."""
    node, axis = network.graph[name], network.graph.channel_axes[name]
    batch = node.batch_axis
    images = x.shape[batch] // node.image_shape[batch]
    x = images_first(network.graph, name, x, batch)
    if axis == batch:  # one number per image
        return x.reshape(images, -1, 1)
    return jnp.moveaxis(x, (batch, axis), (0, -1)).reshape(images, -1, x.shape[axis])


def channels(network: Network, name: str) -> int:
    """How many channels a node has."""
    node, axis = network.graph[name], network.graph.channel_axes[name]
    return 1 if axis == node.batch_axis else node.image_shape[axis]


def shape_of(network: Network, name: str) -> tuple[int, ...]:
    """The shape of one value per channel, as a threshold takes it."""
    if network.graph.channel_axes[name] == network.graph[name].batch_axis:
        return ()
    return threshold_shapes(network, name)[1]


def channel_mean(network: Network, name: str, x: jax.Array) -> jax.Array:
    """The mean of each channel over images and places, as a threshold takes it."""
    means = by_channel(network, name, x).mean((0, 1))
    return means.reshape(shape_of(network, name))


def has_classes(network: Network) -> bool:
    """Whether the outputs are logits: one output, of two channels or more."""
    outputs = network.graph.outputs
    return len(outputs) == 1 and channels(network, outputs[0]) > 1


def outputs_by_channel(network: Network, found: list) -> list[jax.Array]:
    """Outputs `[B, ...]` as `[B, n, C]`; the images are in front already."""
    return [
        by_channel(network, name, jnp.moveaxis(x, 0, network.graph[name].batch_axis))
        for name, x in zip(network.graph.outputs, found, strict=True)
    ]


def distance(network: Network, expected: list, found: list) -> np.ndarray:
    r"""How far outputs are from those of the trained network, one number per image.

    Of logits, the Kullback-Leibler divergence of the class probabilities, in nats. One
    number, or several outputs, are no classes; there it is the squared error over the
    variance of each output,

    .. math:: \mathrm{mean}\, (y - \hat y)^2 / \mathrm{var}(y)

    Args: the network's outputs `[N, n, C]`, and those to compare, `[..., N, n, C]`.
    Returns: `[..., N]`.
    """
    if has_classes(network):
        return divergence(expected[0], found[0]).mean(-1)
    total = np.zeros(())
    for one, other in zip(expected, found, strict=True):
        spread = np.var(one, dtype=np.float64) or 1.0
        error = np.square(other.astype(np.float64) - one.astype(np.float64))
        total = total + error.mean((-1, -2)) / spread
    return total


def divergence(expected: np.ndarray, found: np.ndarray) -> np.ndarray:
    r"""Kullback-Leibler divergence of class probabilities, in nats.

    .. math:: \sum_k p_k \log (p_k / q_k)

    with `p` and `q` the softmax of the logits `expected` and `found`, `[..., classes]`.
    """
    expected, found = _log_softmax(expected), _log_softmax(found)
    return (np.exp(expected) * (expected - found)).sum(-1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def centred(x: jax.Array) -> jax.Array:
    """Logits `[..., C]` relative to their mean: a shift of all decides nothing."""
    return x - x.mean(-1, keepdims=True) if x.shape[-1] > 1 else x
