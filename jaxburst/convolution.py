"""Convolution, written the way that is fast for the shape at hand.

Two facts about XLA on CPU decide. Where the feature map is smaller than the kernel, its
convolution is pathological: 3x3, 512 to 512 channels on a 2x2 map takes seventy times
as long as one matrix product over the whole map, forwards and backwards. And on 4x4
and 8x8 maps with many channels, Winograd's F(4x4, 3x3) takes half the time.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxburst.layers import Conv


def prepare(
    kernel: jax.Array, layer: Conv, shape: tuple[int, ...], *, exact: bool = True
) -> jax.Array:
    """Writes the kernel the way `convolve` wants it. Depends on the weights only.

    Args:
      kernel: `[kernel, kernel, C_in, C_out]`.
      layer: stride and padding.
      shape: `(H, W, C_in)` of the input.
      exact: whether to convolve by definition, without Winograd's algorithm, whose
        rounding error is 1e-5 of the largest output in single precision.

    Returns:
      The kernel itself; where the map is smaller than the kernel, the matrix
      `[H * W * C_in, H_out * W_out * C_out]` of the whole layer; where it pays and
      need not be exact, the kernel in Winograd's domain, `[36, C_in, C_out]`.
    """
    height, width, _ = shape
    if min(height, width) < layer.kernel:
        return _whole_map(kernel, layer, height, width)
    if not exact and _winograd_pays(kernel, layer, shape):
        both = jnp.asarray(np.kron(_KERNEL_SIDE, _KERNEL_SIDE), kernel.dtype)
        return jnp.tensordot(both, kernel.reshape(9, *kernel.shape[2:]), 1)
    return kernel


def _whole_map(kernel: jax.Array, layer: Conv, height: int, width: int) -> jax.Array:
    taps_in, taps_out = kernel.shape[2:]
    nothing = jnp.zeros((taps_in, taps_out), kernel.dtype)

    def block(row: int, column: int, row_out: int, column_out: int) -> jax.Array:
        down = row - row_out * layer.stride + layer.padding
        right = column - column_out * layer.stride + layer.padding
        inside = 0 <= down < layer.kernel and 0 <= right < layer.kernel
        return kernel[down, right] if inside else nothing

    height_out, width_out = _sides_out(layer, height, width)
    return jnp.block(
        [
            [
                block(row, column, row_out, column_out)
                for row_out in range(height_out)
                for column_out in range(width_out)
            ]
            for row in range(height)
            for column in range(width)
        ]
    )


def convolve(x: jax.Array, prepared: jax.Array, layer: Conv) -> jax.Array:
    """Convolves `x` with a kernel from `prepare`.

    Args:
      x: `[B, H, W, C_in]`.
      prepared: what `prepare` returned for this layer and the shape of `x`.
      layer: stride and padding.

    Returns:
      `[B, H_out, W_out, C_out]`.
    """
    if prepared.ndim == 2:
        batch, height, width, _ = x.shape
        height_out, width_out = _sides_out(layer, height, width)
        product = x.reshape(batch, -1) @ prepared
        return product.reshape(batch, height_out, width_out, layer.features)
    if prepared.ndim == 3:
        return _winograd(x, prepared)
    return lax.conv_general_dilated(
        x,
        prepared,
        window_strides=(layer.stride, layer.stride),
        padding=((layer.padding, layer.padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def _sides_out(layer: Conv, height: int, width: int) -> tuple[int, int]:
    height_out, width_out = (
        (side + 2 * layer.padding - layer.kernel) // layer.stride + 1
        for side in (height, width)
    )
    return height_out, width_out


# Winograd's F(4x4, 3x3): tiles of 4x4 outputs from 6x6 inputs with 36 products instead
# of 144 per pair of channels. Lavin and Gray, CVPR 2016, section 4.

_INPUT_SIDE = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_KERNEL_SIDE = np.array(
    [
        [1 / 4, 0, 0],
        [-1 / 6, -1 / 6, -1 / 6],
        [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6],
        [1 / 24, -1 / 12, 1 / 6],
        [0, 0, 1],
    ]
)
_OUTPUT_SIDE = np.array(
    [
        [1, 1, 1, 1, 1, 0],
        [0, 1, -1, 2, -2, 0],
        [0, 1, 1, 4, 4, 0],
        [0, 1, -1, 8, -8, 1],
    ]
)


def _winograd_pays(kernel: jax.Array, layer: Conv, shape: tuple[int, ...]) -> bool:
    height, width, channels = shape
    return (
        jax.default_backend() == "cpu"
        and kernel.dtype == jnp.float32
        and (layer.kernel, layer.stride, layer.padding) == (3, 1, 1)
        and (height, width) in ((4, 4), (8, 8))
        and min(channels, layer.features) >= 128
    )


def _winograd(x: jax.Array, transformed: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    rows, columns, features = height // 4, width // 4, transformed.shape[2]
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    tiles = jnp.stack(
        [
            padded[:, i : i + 4 * rows - 3 : 4, j : j + 4 * columns - 3 : 4]
            for i in range(6)
            for j in range(6)
        ]
    )
    into = jnp.asarray(np.kron(_INPUT_SIDE, _INPUT_SIDE), x.dtype)
    back = jnp.asarray(np.kron(_OUTPUT_SIDE, _OUTPUT_SIDE), x.dtype)
    inputs = (into @ tiles.reshape(36, -1)).reshape(36, -1, channels)
    products = jnp.einsum("pnc,pcf->pnf", inputs, transformed)
    outputs = (back @ products.reshape(36, -1)).reshape(
        4, 4, batch, rows, columns, features
    )
    return outputs.transpose(2, 3, 0, 4, 1, 5).reshape(batch, height, width, features)
