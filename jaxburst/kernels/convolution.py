"""Convolution, written the way that is fast for its shape and platform.

    form = choose(params, kernel.shape, x.shape, x.dtype, platform="cpu")
    prepared = prepare(form, kernel)    # once
    y = convolve(form, x, prepared)     # often

`params` are those of `lax.conv_general_dilated` as a jaxpr holds them, so any module's
convolution has a form: of any rank, layout, padding, stride and dilation.

Four facts about XLA on CPU decide. Within a loop, and time steps are one, a convolution
whose channels do not come last takes eighty times as long as one whose channels do.
Where the map has fewer positions than the kernel
has taps, its convolution is pathological: 3x3, 512 to 512 channels on a 2x2 map takes
two hundred times as long as one matrix product over the whole map. For 3x3 kernels
between at least 32 channels each, Winograd's F(4x4, 3x3) takes between a half and a
third of the time, forwards, and backwards by the same algorithm. And up to 16 channels
go to an older library (Eigen), which takes 1.7 times as long on one core as the newer
one (YNNPACK) for two columns of outputs at once, zeros included.

Nothing here asks JAX where it runs: what is traced on one platform may be for another.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LARGEST = 2**26
"""Numbers in the largest matrix of a whole map: 256 MiB in single precision."""
CACHED = 2**21
"""Numbers that a core's cache may hold: 8 MiB in single precision."""


@dataclasses.dataclass(frozen=True)
class Form:
    """How one convolution is computed. Static: hashable, and without arrays.

    Attributes:
      kind: `plain`, as XLA does it; `last`, so with the channels last; `map`, one
        matrix product over the whole map; `winograd`, by Winograd's F(4x4, 3x3);
        `pairs`, two columns of outputs at once.
      items: the parameters of `conv_general_dilated`.
      kernel_shape: of the kernel, in its own layout.
      sides: of the input, in the order of the kernel's.
    """

    kind: str
    items: tuple[tuple[str, Any], ...]
    kernel_shape: tuple[int, ...]
    sides: tuple[int, ...]

    @property
    def params(self) -> dict[str, Any]:
        """The parameters by name."""
        return dict(self.items)

    @property
    def numbers(self) -> lax.ConvDimensionNumbers:
        """Layouts of input, kernel and output."""
        return self.params["dimension_numbers"]

    @property
    def taps(self) -> tuple[int, ...]:
        """Sides of the kernel."""
        return tuple(self.kernel_shape[axis] for axis in self.numbers.rhs_spec[2:])

    @property
    def channels(self) -> int:
        """Channels that one output reads: those of the input, of a group with some."""
        return self.kernel_shape[self.numbers.rhs_spec[1]]

    @property
    def features(self) -> int:
        """Channels of the output."""
        return self.kernel_shape[self.numbers.rhs_spec[0]]

    @property
    def sides_out(self) -> tuple[int, ...]:
        """Sides of the output."""

        def extent(size: int, dilation: int) -> int:
            return (size - 1) * dilation + 1 if size else 0

        found = []
        for side, tap, (low, high), stride, apart, dilation in zip(
            self.sides, self.taps, *_axes(self.params), strict=True
        ):
            room = extent(side, apart) + low + high - extent(tap, dilation)
            found.append(max(0, room // stride + 1))
        return tuple(found)


def _axes(params: Mapping[str, Any]) -> tuple:
    """Padding, strides, and how far apart positions and taps are, axis by axis."""
    names = "padding", "window_strides", "lhs_dilation", "rhs_dilation"
    return tuple(tuple(params[name]) for name in names)


def choose(
    params: Mapping[str, Any],
    kernel_shape: tuple[int, ...],
    input_shape: tuple[int, ...],
    dtype: Any,
    *,
    platform: str,
    exact: bool = False,
    one_core: bool = False,
) -> Form:
    """The fastest form of a convolution. Depends on shapes only.

    Args:
      params: those of a `conv_general_dilated` equation in a jaxpr.
      kernel_shape: of the kernel, in its own layout.
      input_shape: of the input, in its own layout; its batch does not matter.
      dtype: of kernel and input.
      platform: where it will run: `cpu`, `gpu`, `cuda`, `tpu`, ...
      exact: whether to convolve by definition, without Winograd's algorithm, whose
        rounding error is 1e-5 of the largest output in single precision, and without
        pairs of columns, which add up in another order.
      one_core: whether every core is a device of its own (`devices.one_core_each`).

    Returns:
      The form, for `prepare` and `convolve`.
    """
    spec = params["dimension_numbers"].lhs_spec
    sides = tuple(input_shape[axis] for axis in spec[2:])
    form = Form("plain", tuple(params.items()), tuple(kernel_shape), sides)
    return dataclasses.replace(form, kind=_kind(form, dtype, platform, exact, one_core))


def _kind(form: Form, dtype, platform: str, exact: bool, one_core: bool) -> str:
    plain = "last" if platform == "cpu" and not _is_last(form) else "plain"
    if form.params["feature_group_count"] > 1 or form.params["batch_group_count"] > 1:
        return plain
    if _map_pays(form):
        return "map"
    if exact or platform != "cpu" or dtype != jnp.float32 or not _is_same_3x3(form):
        return plain
    if _winograd_pays(form):
        return "winograd"
    # Where cores share a device, Eigen has the better of it: it uses all of them.
    if one_core and max(form.channels, form.features) <= 16 and form.sides[1] % 2 == 0:
        return "pairs"
    return plain


def _is_last(form: Form) -> bool:
    """Whether channels come last."""
    last = _layouts(len(form.sides))
    return tuple(map(tuple, form.numbers)) == tuple(map(tuple, last))


def _layouts(sides: int) -> lax.ConvDimensionNumbers:
    """`[B, H, W, C]`, and of kernels `[H, W, C_in, C_out]`, for so many sides."""
    data = (0, sides + 1, *range(1, sides + 1))
    kernel = (sides + 1, sides, *range(sides))
    return lax.ConvDimensionNumbers(data, kernel, data)


def _map_pays(form: Form) -> bool:
    positions, taps = math.prod(form.sides), math.prod(form.taps)
    products = positions * math.prod(form.sides_out)
    size = products * form.channels * form.features
    return 0 < size <= LARGEST and (positions < taps or products <= taps)


def _is_same_3x3(form: Form) -> bool:
    """Whether it is 3x3 with as many outputs as inputs, and asks for nothing else."""
    usual = ((1, 1), (1, 1)), (1, 1), (1, 1), (1, 1)
    precision, sums = form.params["precision"], form.params["preferred_element_type"]
    careful = precision not in (None, (lax.Precision.DEFAULT,) * 2)
    plain_sums = sums in (None, jnp.float32)
    asked = _axes(form.params)
    return form.taps == (3, 3) and asked == usual and plain_sums and not careful


def prepare(form: Form, kernel: jax.Array) -> jax.Array:
    """Writes the kernel the way `convolve` wants it. Depends on the weights only.

    Returns:
      `plain`: the kernel itself. `last`: the kernel `[H, W, C_in, C_out]`. `map`: the
      matrix of the whole convolution, with a row for each number of an input and a
      column for each of an output. `winograd`: the kernel in Winograd's domain, `[36,
      C_in, C_out]`. `pairs`: the kernel of two columns of outputs, `[3, 4, C_in, 2 *
      C_out]`.
    """
    _require("kernel", form.kernel_shape, kernel.shape)
    if form.kind == "plain":
        return kernel
    kernel = _kernel_last(form, kernel)
    if form.kind == "last":
        return kernel
    if form.kind == "map":
        return _whole_map(form, kernel)
    return _to_winograd(kernel) if form.kind == "winograd" else _to_pairs(kernel)


def convolve(
    form: Form, x: jax.Array, prepared: jax.Array, dtype: Any = None
) -> jax.Array:
    """Convolves `x` with a kernel from `prepare`.

    Args:
      form: from `choose`.
      x: the input in its own layout, of the shape that was chosen for, any batch.
      prepared: what `prepare` returned for this form.
      dtype: what sums are kept in, if not in what the form says.

    Returns:
      The output, in its own layout.
    """
    sides = tuple(x.shape[axis] for axis in form.numbers.lhs_spec[2:])
    _require("sides of the input", form.sides, sides)
    dtype = form.params["preferred_element_type"] if dtype is None else dtype
    if form.kind == "plain":
        return _plain(form.params, x, prepared, dtype)
    if form.kind == "map":
        return _over_the_map(form, x, prepared, dtype)
    x = _channels_last(form, x)
    if form.kind == "last":
        numbers = {"dimension_numbers": _layouts(len(form.sides))}
        out = _plain(form.params | numbers, x, prepared, dtype)
    elif form.kind == "winograd":
        out = _winograd(x, prepared, _by_threes).astype(dtype or x.dtype)
    else:
        out = _two_columns(x, prepared, dtype)
    return _as_output(form, out)


def convolve_once(form: Form, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves with a kernel that is used once, as in training.

    The gradients take the fast way, too; forward differentiation (`jvp`) does not know
    Winograd's.

    Args: as for `convolve`, and the kernel in its own layout.
    """
    if form.kind != "winograd":
        return convolve(form, x, prepare(form, kernel))
    out = _winograd_once(_channels_last(form, x), _kernel_last(form, kernel))
    return _as_output(form, out)


def convolve_anywhere(
    params: Mapping[str, Any], x: jax.Array, kernel: jax.Array
) -> jax.Array:
    """Convolves by definition, once, on whatever platform it will be.

    Args: as for `choose`, and the input and the kernel in their own layouts.
    """
    shapes = kernel.shape, x.shape
    form = choose(params, *shapes, x.dtype, platform="", exact=True)
    return convolve_once(form, x, kernel)


def _require(what: str, expected: tuple, found: tuple) -> None:
    if expected != found:
        raise ValueError(
            f"convolution: expected the {what} to be {expected}, for which its form "
            f"was chosen, found {found}; choose a form for this shape"
        )


# Layouts. Fast forms know one: channels last, `[B, H, W, C]`, and of kernels
# `[H, W, C_in, C_out]`.


def _channels_last(form: Form, x: jax.Array) -> jax.Array:
    batch, channel, *sides = form.numbers.lhs_spec
    return _transpose(x, (batch, *sides, channel))


def _kernel_last(form: Form, kernel: jax.Array) -> jax.Array:
    feature, channel, *taps = form.numbers.rhs_spec
    return _transpose(kernel, (*taps, channel, feature))


def _as_output(form: Form, out: jax.Array) -> jax.Array:
    batch, channel, *sides = form.numbers.out_spec
    return _transpose(out, np.argsort((batch, *sides, channel)))


def _transpose(x: jax.Array, order) -> jax.Array:
    """`x.transpose(order)`, and `x` itself where that changes nothing."""
    order = tuple(map(int, order))
    return x if order == tuple(range(x.ndim)) else x.transpose(order)


def _plain(params: dict[str, Any], x, kernel, dtype) -> jax.Array:
    params = params | {"preferred_element_type": dtype}
    return lax.conv_general_dilated_p.bind(x, kernel, **params)


# One product over the whole map.


def _whole_map(form: Form, kernel: jax.Array) -> jax.Array:
    """The matrix, rows and columns in the order of the layouts of input and output."""
    nothing = jnp.zeros(kernel.shape[-2:], kernel.dtype)
    outputs = list(np.ndindex(*form.sides_out))

    def block(position: tuple[int, ...], output: tuple[int, ...]) -> jax.Array:
        tap = _tap(form, position, output)
        return nothing if tap is None else kernel[tap]

    # Blocks of concatenations, whose gradients are fast; those of a gather are not.
    rows = [
        jnp.concatenate([block(position, output) for output in outputs], 1)
        for position in np.ndindex(*form.sides)
    ]
    matrix = jnp.concatenate(rows)
    whole = (*form.sides, form.channels, *form.sides_out, form.features)
    axes = len(form.sides) + 1
    order = (
        *_without_batch(form.numbers.lhs_spec),
        *(axes + axis for axis in _without_batch(form.numbers.out_spec)),
    )
    if order != tuple(range(2 * axes)):
        matrix = matrix.reshape(whole).transpose(order).reshape(matrix.shape)
    return matrix


def _tap(form: Form, position, output) -> tuple[int, ...] | None:
    """Which tap of the kernel takes an input position to an output, if one does."""
    tap = []
    for place, out, size, (low, _), stride, apart, dilation in zip(
        position, output, form.taps, *_axes(form.params), strict=True
    ):
        tap_at, rest = divmod(place * apart + low - out * stride, dilation)
        if rest or not 0 <= tap_at < size:
            return None
        tap.append(tap_at)
    return tuple(tap)


def _without_batch(spec: Sequence[int]) -> tuple[int, ...]:
    """For each axis of a layout but its batch, which of (*sides, channel) it is."""
    batch, channel, *sides = spec
    names = {axis: i for i, axis in enumerate((*sides, channel))}
    return tuple(names[axis] for axis in range(len(spec)) if axis != batch)


def _over_the_map(form: Form, x: jax.Array, matrix: jax.Array, dtype) -> jax.Array:
    flat = jnp.moveaxis(x, form.numbers.lhs_spec[0], 0).reshape(-1, len(matrix))
    out = jnp.matmul(
        flat, matrix, precision=form.params["precision"], preferred_element_type=dtype
    )
    whole = (*form.sides_out, form.features)
    shape = [whole[axis] for axis in _without_batch(form.numbers.out_spec)]
    return jnp.moveaxis(out.reshape(-1, *shape), 0, form.numbers.out_spec[0])


# Two columns of outputs at once: of the four columns of inputs that they read, each
# reads three.


def _to_pairs(kernel: jax.Array) -> jax.Array:
    nothing = jnp.zeros_like(kernel[:, :1])
    first = jnp.concatenate([kernel, nothing], 1)
    second = jnp.concatenate([nothing, kernel], 1)
    return jnp.concatenate([first, second], -1)


def _two_columns(x: jax.Array, pairs: jax.Array, dtype) -> jax.Array:
    out = lax.conv_general_dilated(
        x,
        pairs,
        window_strides=(1, 2),
        padding=((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        preferred_element_type=dtype,
    )
    return out.reshape(*x.shape[:3], -1)


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


def _winograd_pays(form: Form) -> bool:
    wide = min(form.channels, form.features) >= 32
    return wide and all(4 * _tiles(side) <= 1.2 * side for side in form.sides)


def _tiles(side: int) -> int:
    return -(-side // 4)


def _to_winograd(kernel: jax.Array) -> jax.Array:
    both = jnp.asarray(np.kron(_KERNEL_SIDE, _KERNEL_SIDE), kernel.dtype)
    return jnp.tensordot(both, kernel.reshape(9, *kernel.shape[2:]), 1)


def _products(tiles: jax.Array, kernels: jax.Array) -> jax.Array:
    """The 36 matrix products, of `[36, N, C_in]` and `[36, C_in, C_out]`."""
    return jnp.einsum("pnc,pcf->pnf", tiles, kernels)


def _by_threes(tiles: jax.Array, kernels: jax.Array) -> jax.Array:
    """The same, faster where no gradient is asked for: XLA on CPU packs all kernels
    before it multiplies, and where they do not fit a cache, three at a time do."""
    if kernels.size <= CACHED or tiles.shape[1] < 8:
        return _products(tiles, kernels)
    threes = [x.reshape(12, 3, *x.shape[1:]) for x in (tiles, kernels)]
    products = lax.map(lambda pair: _products(*pair), threes)
    return products.reshape(36, *products.shape[2:])


def _winograd(x: jax.Array, transformed: jax.Array, multiply=_products) -> jax.Array:
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
    products = multiply(tiles.reshape(36, -1, channels), transformed)
    products = products.reshape(6, 6, batch, rows, columns, features)
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
