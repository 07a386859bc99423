"""Pooling and subsampling of maps, shared by the two readings of a network."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxburst.layers import AvgPool, MaxPool, Subsample


def max_pool(x: jax.Array, layer: MaxPool) -> jax.Array:
    """Largest value of each window, `[B, H, W, C]` to `[B, H_out, W_out, C]`."""
    stride = layer.stride or layer.window
    if layer.padding == 0 and stride == layer.window:
        return _windows(x, layer.window).max((2, 4))
    return lax.reduce_window(
        x,
        np.array(-np.inf, x.dtype),
        lax.max,
        (1, layer.window, layer.window, 1),
        (1, stride, stride, 1),
        ((0, 0), (layer.padding,) * 2, (layer.padding,) * 2, (0, 0)),
    )


def sum_pool(x: jax.Array, layer: AvgPool) -> jax.Array:
    """Sum of each window: whole numbers stay whole. Divide by `area` for the mean."""
    window = layer.window or x.shape[1]
    stride = layer.stride or window
    if stride == window:
        return _windows(x, window).sum((2, 4))
    return lax.reduce_window(
        x,
        np.array(0, x.dtype),
        lax.add,
        (1, window, window, 1),
        (1, stride, stride, 1),
        "VALID",
    )


def area(layer: AvgPool, shape: tuple[int, ...]) -> int:
    """Number of values in one window, for an input `[B, H, W, C]`."""
    return (layer.window or shape[1]) ** 2


def subsample(x: jax.Array, layer: Subsample) -> jax.Array:
    """Every `stride`-th row and column, channels of zeros half before, half after."""
    before = (layer.features - x.shape[3]) // 2
    after = layer.features - x.shape[3] - before
    rows = x[:, :: layer.stride, :: layer.stride]
    return jnp.pad(rows, ((0, 0), (0, 0), (0, 0), (before, after)))


def _windows(x: jax.Array, window: int) -> jax.Array:
    """Windows side by side, `[B, H_out, window, W_out, window, C]`; the rest is cut.

    On CPU the gradient of a reduction over a reshaped array takes a fifth of the time
    of a general window reduction's (2x2 on 32x32x64); the reduction itself, twice.
    """
    batch, height, width, channels = x.shape
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    return x.reshape(batch, rows, window, columns, window, channels)
