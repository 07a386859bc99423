"""Layers as PyTorch and ONNX define them, spelled in plain JAX primitives.

Arrays are channel-first, `[B, C, *spatial]` with one to three spatial axes. `B` may be
symbolic, the other axes are numbers. Both front ends call these, so that one reader of
jaxprs sees one spelling: a convolution is one `conv_general_dilated`, a maximum pool
one `reduce_window_max`, an average pool one `reduce_window_sum` and one constant.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Padding = Sequence[tuple[int, int]]  # (low, high) of each spatial axis


def per_channel(values: jax.Array, rank: int) -> jax.Array:
    """`[C]` beside an array `[B, C, ...]` of this rank."""
    return jnp.reshape(values, (1, -1) + (1,) * (rank - 2))


def convolution(x, kernel, bias, strides, padding: Padding | str, dilation, groups):
    """Cross-correlates `[B, C, ...]` with `[C_out, C / groups, ...]`."""
    spatial = "DHW"[-len(strides) :]
    y = lax.conv_general_dilated(
        x,
        kernel,
        tuple(strides),
        padding if isinstance(padding, str) else list(padding),
        rhs_dilation=tuple(dilation),
        dimension_numbers=(f"NC{spatial}", f"OI{spatial}", f"NC{spatial}"),
        feature_group_count=groups,
    )
    return y if bias is None else y + per_channel(bias, y.ndim)


def transposed_convolution(
    x, kernel, bias, strides, padding: Padding, dilation, groups
):
    """The transpose of a convolution whose kernel is `[C, C_out / groups, ...]`.

    `padding` is what the convolution had; a high side may be negative, by which output
    is added (PyTorch's and ONNX's output_padding).
    """
    spatial = "DHW"[-len(strides) :]
    channels, features, *window = kernel.shape
    grouped = kernel.reshape(groups, channels // groups, features, *window)
    grouped = jnp.flip(grouped.swapaxes(1, 2), range(3, grouped.ndim))
    reach = [(d * (k - 1), d * (k - 1)) for k, d in zip(window, dilation, strict=True)]
    y = lax.conv_general_dilated(
        x,
        grouped.reshape(groups * features, channels // groups, *window),
        (1,) * len(window),
        [(r - p, s - q) for (r, s), (p, q) in zip(reach, padding, strict=True)],
        lhs_dilation=tuple(strides),
        rhs_dilation=tuple(dilation),
        dimension_numbers=(f"NC{spatial}", f"OI{spatial}", f"NC{spatial}"),
        feature_group_count=groups,
    )
    return y if bias is None else y + per_channel(bias, y.ndim)


def max_pool(x, window, strides, padding: Padding, dilation, ceil_mode):
    """Maxima over windows; with `ceil_mode` the last one may hang over the edge."""
    low = -np.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
    padding = _reached(x, window, strides, padding, dilation, ceil_mode)
    return _reduce_windows(x, low, lax.max, window, strides, padding, dilation)


def average_pool(
    x,
    window,
    strides,
    padding: Padding,
    dilation,
    ceil_mode,
    count_include_pad,
    divisor=None,
):
    """Means over windows.

    A window counts the elements it reaches, with `count_include_pad` the padding too,
    but never what `ceil_mode` adds; or every window has the same `divisor`.
    """
    reached = _reached(x, window, strides, padding, dilation, ceil_mode)
    y = _reduce_windows(x, 0, lax.add, window, strides, reached, dilation)
    if divisor is not None:
        return y * (1 / divisor)
    counts = np.ones((1, 1), x.dtype)
    for axis, (size, (low, high)) in enumerate(
        zip(x.shape[2:], padding, strict=True), 2
    ):
        start = np.arange(y.shape[axis]) * strides[axis - 2] - low
        taps = start[:, None] + np.arange(window[axis - 2]) * dilation[axis - 2]
        first, end = (-low, size + high) if count_include_pad else (0, size)
        count = ((first <= taps) & (taps < end)).sum(1)
        counts = counts[..., None] * count.astype(x.dtype)
    if (counts == counts.flat[0]).all():
        return y * (1 / counts.flat[0].item())
    return y / counts


def _reached(x, window, strides, padding, dilation, ceil_mode):
    """The padding up to which windows reach: with `ceil_mode` one more may fit."""
    if not ceil_mode:
        return list(padding)
    reached = []
    for size, k, s, d, (low, high) in zip(
        x.shape[2:], window, strides, dilation, padding, strict=True
    ):
        span = d * (k - 1) + 1
        count = -(-(size + low + high - span) // s) + 1
        if (count - 1) * s >= size + low:  # it would start in the padding
            count -= 1
        reached.append((low, max(high, (count - 1) * s + span - size - low)))
    return reached


def _reduce_windows(x, start, operation, window, strides, padding, dilation):
    return lax.reduce_window(
        x,
        np.array(start, x.dtype),
        operation,
        (1, 1, *window),
        (1, 1, *strides),
        [(0, 0), (0, 0), *padding],
        window_dilation=(1, 1, *dilation),
    )


def adaptive_pool(x, sizes, maximum):
    """Means (or maxima) over `sizes` bins, which may overlap, of the last axes."""
    spatial = x.shape[x.ndim - len(sizes) :]
    axes = range(x.ndim - len(sizes), x.ndim)
    if all(size == 1 for size in sizes):
        return (jnp.max if maximum else jnp.mean)(x, tuple(axes), keepdims=True)
    if all(n % size == 0 for n, size in zip(spatial, sizes, strict=True)):
        window = [n // size for n, size in zip(spatial, sizes, strict=True)]
        none, ones = [(0, 0)] * len(sizes), [1] * len(sizes)
        if maximum:
            return max_pool(x, window, window, none, ones, False)
        return average_pool(x, window, window, none, ones, False, False)
    for axis, n, size in zip(axes, spatial, sizes, strict=True):
        bins = [(i * n // size, -(-(i + 1) * n // size)) for i in range(size)]
        if maximum:
            cut = [lax.slice_in_dim(x, *edges, axis=axis) for edges in bins]
            x = jnp.concatenate([c.max(axis, keepdims=True) for c in cut], axis)
        else:
            matrix = np.zeros((n, size), x.dtype)
            for i, (low, high) in enumerate(bins):
                matrix[low:high, i] = 1 / (high - low)
            x = mix(x, axis, matrix)
    return x


def mix(x, axis, matrix):
    """Replaces an axis by the linear combinations in the columns of `[n, m]`."""
    y = lax.dot_general(x, jnp.asarray(matrix, x.dtype), (((axis,), (0,)), ((), ())))
    return jnp.moveaxis(y, -1, axis)


def pick(x, axis, index):
    """`x` at the constant positions `[m]` of an axis."""
    index = np.asarray(index)
    size = x.shape[axis]
    times = len(index) // size
    if np.array_equal(index, np.arange(size)):
        return x
    if np.array_equal(index, np.repeat(np.arange(size), times)):
        wide = lax.broadcast_in_dim(
            x,
            (*x.shape[: axis + 1], times, *x.shape[axis + 1 :]),
            [i + (i > axis) for i in range(x.ndim)],
        )
        return wide.reshape(*x.shape[:axis], size * times, *x.shape[axis + 1 :])
    return jnp.take(x, index, axis, mode="clip")


def tile(x, repeats):
    """`jnp.tile` with one repeat per axis or more, for a symbolic batch too."""
    x = x.reshape((1,) * (len(repeats) - x.ndim) + x.shape)
    wide = [n for pair in zip(repeats, x.shape, strict=True) for n in pair]
    y = lax.broadcast_in_dim(x, wide, tuple(range(1, 2 * x.ndim, 2)))
    return y.reshape([r * n for r, n in zip(repeats, x.shape, strict=True)])


def linear_weights(positions, size):
    """The `[size, m]` that interpolates between the two neighbours of `positions`."""
    positions = np.clip(positions, 0, size - 1)
    low = np.minimum(np.floor(positions).astype(int), size - 1)
    high = np.minimum(low + 1, size - 1)
    matrix = np.zeros((size, len(low)), np.float32)
    columns = np.arange(len(low))
    matrix[low, columns] += 1 - (positions - low)
    matrix[high, columns] += positions - low
    return matrix


def cubic_weights(positions, size, a):
    """The `[size, m]` of Keys' cubic convolution; beyond the edge lies the edge."""
    matrix = np.zeros((size, len(positions)), np.float32)
    low = np.floor(positions).astype(int)
    columns = np.arange(len(positions))
    for offset in (-1, 0, 1, 2):
        t = np.abs(positions - (low + offset))
        near = ((a + 2) * t - (a + 3)) * t * t + 1
        far = ((a * t - 5 * a) * t + 8 * a) * t - 4 * a
        rows = np.clip(low + offset, 0, size - 1)
        np.add.at(matrix, (rows, columns), np.where(t <= 1, near, far))
    return matrix


def batch_norm(x, scale, shift, mean, variance, epsilon):
    """`x * factor + offset` per channel, in inference; scale and shift may be None."""
    factor = 1 / jnp.sqrt(variance + epsilon)
    factor = factor if scale is None else scale * factor
    offset = -mean * factor if shift is None else shift - mean * factor
    return x * per_channel(factor, x.ndim) + per_channel(offset, x.ndim)


def standardize(x, axes, epsilon):
    """Mean 0 and (biased) variance 1 over these axes."""
    centred = x - x.mean(axes, keepdims=True)
    variance = (centred * centred).mean(axes, keepdims=True)
    return centred * lax.rsqrt(variance + epsilon)


def group_norm(x, groups, scale, shift, epsilon):
    """Every group of channels of every image on its own: `[B, C, ...]`."""
    batch, channels, *spatial = x.shape
    grouped = x.reshape(batch, groups, channels // groups, *spatial)
    y = standardize(grouped, tuple(range(2, grouped.ndim)), epsilon).reshape(x.shape)
    y = y if scale is None else y * per_channel(scale, x.ndim)
    return y if shift is None else y + per_channel(shift, x.ndim)


def integer_power(x, exponent):
    """`x ** exponent` by products or roots where the exponent is such a number."""
    if exponent == 0.5:
        return jnp.sqrt(x)
    if float(exponent).is_integer() and abs(exponent) <= 8:
        return lax.integer_pow(x, int(exponent))
    return x**exponent
