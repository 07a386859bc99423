"""Convolution, written the way that is fast for the shape at hand.

XLA on CPU is pathological where the feature map is smaller than the kernel: 3x3,
512 to 512 channels on a 2x2 map takes seventy times as long as one matrix product over
the whole map, forwards and backwards. Three layers of VGG-16 on CIFAR are of this kind.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from jaxburst.layers import Conv


def prepare(kernel: jax.Array, layer: Conv, shape: tuple[int, ...]) -> jax.Array:
    """Writes the kernel the way `convolve` wants it. Depends on the weights only.

    Args:
      kernel: `[kernel, kernel, C_in, C_out]`.
      layer: stride and padding.
      shape: `(H, W, C_in)` of the input.

    Returns:
      The kernel itself; or, where the map is smaller than the kernel, the matrix
      `[H * W * C_in, H_out * W_out * C_out]` of the whole layer.
    """
    height, width, _ = shape
    if min(height, width) >= layer.kernel:
        return kernel
    taps_in, taps_out = kernel.shape[2:]
    nothing = jnp.zeros((taps_in, taps_out), kernel.dtype)

    def block(row: int, column: int, row_out: int, column_out: int) -> jax.Array:
        down = row - row_out * layer.stride + layer.padding
        right = column - column_out * layer.stride + layer.padding
        inside = 0 <= down < layer.kernel and 0 <= right < layer.kernel
        return kernel[down, right] if inside else nothing

    height_out, width_out = (
        (side + 2 * layer.padding - layer.kernel) // layer.stride + 1
        for side in (height, width)
    )
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
        height_out, width_out = (
            (side + 2 * layer.padding - layer.kernel) // layer.stride + 1
            for side in (height, width)
        )
        product = x.reshape(batch, -1) @ prepared
        return product.reshape(batch, height_out, width_out, layer.features)
    return lax.conv_general_dilated(
        x,
        prepared,
        window_strides=(layer.stride, layer.stride),
        padding=((layer.padding, layer.padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
