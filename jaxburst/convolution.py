"""Convolution, written the way that is fast for the shape at hand.

Three facts about XLA on CPU decide. Where the feature map is smaller than the kernel,
its convolution is pathological: 3x3, 512 to 512 channels on a 2x2 map takes seventy
times as long as one matrix product over the whole map, forwards and backwards. For 3x3
kernels between at least 32 channels each, Winograd's F(4x4, 3x3) takes between a half
and a third of the time, forwards, and backwards by the same algorithm. And up to 16
channels go to an older library (Eigen), which takes 1.7 times as long on one core as
the newer one (YNNPACK) for two columns of outputs at once, zeros included.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxburst.devices import one_core_each
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
      need not be exact, the kernel in Winograd's domain, `[36, C_in, C_out]`, or the
      kernel of two columns of outputs, `[3, 4, C_in, 2 * C_out]`.
    """
    height, width, _ = shape
    if min(height, width) < layer.kernel:
        return _whole_map(kernel, layer, height, width)
    if not exact and _winograd_pays(kernel, layer, shape):
        return _to_winograd(kernel)
    if not exact and _pairs_pay(kernel, layer, shape):
        return _to_pairs(kernel)
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


def convolve(
    x: jax.Array, prepared: jax.Array, layer: Conv, dtype: jnp.dtype | None = None
) -> jax.Array:
    """Convolves `x` with a kernel from `prepare`.

    Args:
      x: `[B, H, W, C_in]`.
      prepared: what `prepare` returned for this layer and the shape of `x`.
      layer: stride and padding.
      dtype: what sums are kept in, if not in the type of `x`.

    Returns:
      `[B, H_out, W_out, C_out]`.
    """
    if prepared.ndim == 2:
        batch, height, width, _ = x.shape
        height_out, width_out = _sides_out(layer, height, width)
        flat = x.reshape(batch, -1)
        product = jnp.matmul(flat, prepared, preferred_element_type=dtype)
        return product.reshape(batch, height_out, width_out, layer.features)
    if prepared.ndim == 3:
        return _winograd(x, prepared)
    pairs = prepared.shape[1] > layer.kernel
    out = lax.conv_general_dilated(
        x,
        prepared,
        window_strides=(layer.stride, 2 if pairs else layer.stride),
        padding=((layer.padding, layer.padding),) * 2,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=dtype,
    )
    return out.reshape(*x.shape[:3], -1) if pairs else out


def convolve_once(x: jax.Array, kernel: jax.Array, layer: Conv) -> jax.Array:
    """Convolves with a kernel that is used once, as in training.

    The gradients take the fast way, too.

    Args:
      x: `[B, H, W, C_in]`.
      kernel: `[kernel, kernel, C_in, C_out]`.
      layer: stride and padding.

    Returns:
      `[B, H_out, W_out, C_out]`.
    """
    if _winograd_pays(kernel, layer, x.shape[1:]):
        return _winograd_once(x, kernel)
    return convolve(x, prepare(kernel, layer, x.shape[1:]), layer)


def _sides_out(layer: Conv, height: int, width: int) -> tuple[int, int]:
    height_out, width_out = (
        (side + 2 * layer.padding - layer.kernel) // layer.stride + 1
        for side in (height, width)
    )
    return height_out, width_out


# Two columns of outputs at once: of the four columns of inputs that they read, each
# reads three.


def _pairs_pay(kernel: jax.Array, layer: Conv, shape: tuple[int, ...]) -> bool:
    # Where cores share a device, Eigen has the better of it: it uses all of them.
    return (
        one_core_each()
        and kernel.dtype == jnp.float32
        and (layer.kernel, layer.stride, layer.padding) == (3, 1, 1)
        and max(kernel.shape[2:]) <= 16
        and shape[1] % 2 == 0
    )


def _to_pairs(kernel: jax.Array) -> jax.Array:
    nothing = jnp.zeros_like(kernel[:, :1])
    first = jnp.concatenate([kernel, nothing], 1)
    second = jnp.concatenate([nothing, kernel], 1)
    return jnp.concatenate([first, second], -1)


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
    return (
        jax.default_backend() == "cpu"
        and kernel.dtype == jnp.float32
        and (layer.kernel, layer.stride, layer.padding) == (3, 1, 1)
        and min(kernel.shape[2:]) >= 32
        and all(4 * _tiles(side) <= 1.2 * side for side in shape[:2])
    )


def _tiles(side: int) -> int:
    return -(-side // 4)


def _to_winograd(kernel: jax.Array) -> jax.Array:
    both = jnp.asarray(np.kron(_KERNEL_SIDE, _KERNEL_SIDE), kernel.dtype)
    return jnp.tensordot(both, kernel.reshape(9, *kernel.shape[2:]), 1)


def _winograd(x: jax.Array, transformed: jax.Array) -> jax.Array:
    batch, height, width, channels = x.shape
    rows, columns, features = _tiles(height), _tiles(width), transformed.shape[2]
    edges = ((1, 4 * rows - height + 1), (1, 4 * columns - width + 1))
    padded = jnp.pad(x, ((0, 0), *edges, (0, 0)))
    # Rows first, so that what follows runs over whole lines of memory.
    down = _combine(
        _INPUT_SIDE, [padded[:, i : i + 4 * rows - 3 : 4] for i in range(6)], 0
    )
    tiles = _combine(
        _INPUT_SIDE, [down[..., j : j + 4 * columns - 3 : 4, :] for j in range(6)], 1
    )
    products = jnp.einsum(
        "pnc,pcf->pnf", tiles.reshape(36, -1, channels), transformed
    ).reshape(6, 6, batch, rows, columns, features)
    across = _combine(_OUTPUT_SIDE, [products[:, j] for j in range(6)], -2)
    out = _combine(_OUTPUT_SIDE, list(across), 2)
    out = out.reshape(batch, 4 * rows, 4 * columns, features)
    return out[:, :height, :width]


def _combine(matrix: np.ndarray, parts: list[jax.Array], axis: int) -> jax.Array:
    """The rows of `matrix` times the parts, stacked; without products by 0 and 1."""

    def row(factors: list[int]) -> jax.Array:
        terms = [
            part if factor == 1 else factor * part
            for factor, part in zip(factors, parts, strict=True)
            if factor
        ]
        return sum(terms[1:], terms[0])

    return jnp.stack([row(factors) for factors in matrix.tolist()], axis)


@jax.custom_vjp
def _winograd_once(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _winograd(x, _to_winograd(kernel))


def _forwards(x: jax.Array, kernel: jax.Array):
    return _winograd_once(x, kernel), (x, kernel)


def _backwards(saved, gradient: jax.Array):
    """Both gradients. That of `x` is a convolution with the kernel turned around."""
    x, kernel = saved
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    of_kernel = jax.vjp(lambda kernel: _winograd(x, _to_winograd(kernel)), kernel)[1]
    return _winograd(gradient, _to_winograd(turned)), *of_kernel(gradient)


_winograd_once.defvjp(_forwards, _backwards)
