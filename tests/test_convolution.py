"""Each way of writing a convolution equals its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from jaxburst import convolution
from jaxburst.convolution import convolve, convolve_once, prepare
from jaxburst.layers import Conv


def by_definition(x, kernel, stride, padding):
    """One output at a time: the sum over the taps that lie inside the map."""
    batch, height, width, _ = x.shape
    size, _, _, features = kernel.shape
    rows, columns = (
        (side + 2 * padding - size) // stride + 1 for side in (height, width)
    )
    out = np.zeros((batch, rows, columns, features))
    for row, column, down, right in np.ndindex(rows, columns, size, size):
        i, j = row * stride + down - padding, column * stride + right - padding
        if 0 <= i < height and 0 <= j < width:
            out[:, row, column] += x[:, i, j] @ kernel[down, right]
    return out


# (height, width), kernel, stride, padding; the second half is smaller than the kernel
SHAPES = [
    ((5, 4), 3, 1, 1),
    ((5, 4), 3, 2, 1),
    ((5, 4), 2, 2, 0),
    ((6, 7), 5, 3, 2),
    ((4, 5), 1, 2, 0),
    ((2, 2), 3, 1, 1),
    ((2, 2), 3, 2, 1),
    ((1, 1), 3, 1, 1),
    ((2, 5), 3, 1, 1),
    ((3, 2), 5, 2, 3),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("sides, size, stride, padding", SHAPES)
def test_convolution_by_definition(sides, size, stride, padding):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *sides, 3))
    kernel = rng.normal(size=(size, size, 3, 4))
    layer = Conv(4, size, stride, padding)
    prepared = prepare(jnp.asarray(kernel), layer, x.shape[1:])
    assert (prepared.ndim == 2) == (min(sides) < size), "a small map is one product"
    expected = by_definition(x, kernel, stride, padding)
    assert np.abs(expected).min((0, 3)).all()
    found = convolve(jnp.asarray(x), prepared, layer)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        oracle.convolve(x, kernel, stride, padding), expected, rtol=0, atol=1e-13
    )


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_through_a_small_map(stride):
    """Those of the one matrix product are those of the convolution it stands for."""
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(3, 2, 2, 4)))
    kernel = jnp.asarray(rng.normal(size=(3, 3, 4, 5)))
    layer = Conv(5, stride=stride)

    def ours(x, kernel):
        return jnp.tanh(convolve(x, prepare(kernel, layer, x.shape[1:]), layer)).sum()

    def theirs(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            *(x, kernel, (stride, stride), ((1, 1), (1, 1))), dimension_numbers=numbers
        )
        return jnp.tanh(y).sum()

    found, expected = (
        jax.jit(jax.grad(loss, (0, 1)))(x, kernel) for loss in (ours, theirs)
    )
    for ours_is, theirs_is in zip(found, expected, strict=True):
        assert np.abs(theirs_is).max() > 0.1
        np.testing.assert_allclose(ours_is, theirs_is, rtol=0, atol=1e-12)


on_cpu = pytest.mark.skipif(
    jax.default_backend() != "cpu", reason="Winograd pays on CPU only"
)


@on_cpu
@pytest.mark.parametrize("sides", [(4, 4), (8, 8), (16, 12), (7, 14)])
def test_winograd_equals_the_definition_up_to_rounding(sides):
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2, *sides, 64)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 64, 33)).astype(np.float32)
    layer = Conv(33)
    prepared = prepare(jnp.asarray(kernel), layer, x.shape[1:], exact=False)
    assert prepared.shape == (36, 64, 33), "this shape is one that pays"
    expected = by_definition(x.astype(float), kernel.astype(float), 1, 1)
    found = np.asarray(jax.jit(convolve, static_argnums=2)(x, prepared, layer))
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 1e-5


@on_cpu
@pytest.mark.parametrize("sides", [(8, 8), (7, 14)])
def test_gradients_of_winograd_are_those_of_the_convolution(sides):
    rng = np.random.default_rng(3)
    x = rng.normal(size=(3, *sides, 32)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 32, 40)).astype(np.float32)
    layer = Conv(40)
    assert prepare(kernel, layer, x.shape[1:], exact=False) is not kernel, "it pays"

    def loss(convolution):
        return lambda x, kernel: jnp.tanh(0.1 * convolution(x, kernel)).sum()

    def theirs(x, kernel):
        return convolve(x, kernel, layer)

    found, expected = (
        jax.jit(jax.grad(loss(convolution), (0, 1)))(x, kernel)
        for convolution in (lambda x, kernel: convolve_once(x, kernel, layer), theirs)
    )
    for ours_is, theirs_is in zip(found, expected, strict=True):
        error = np.abs(ours_is - theirs_is).max() / np.abs(theirs_is).max()
        assert error < 1e-5


@on_cpu
@pytest.mark.parametrize("sides", [(4, 4), (7, 6), (3, 16)])
def test_two_columns_at_once_equal_the_definition(sides, monkeypatch):
    monkeypatch.setattr(convolution, "one_core_each", lambda: True)
    rng = np.random.default_rng(4)
    x = rng.normal(size=(2, *sides, 5)).astype(np.float32)
    kernel = rng.normal(size=(3, 3, 5, 16)).astype(np.float32)
    layer = Conv(16)
    prepared = prepare(jnp.asarray(kernel), layer, x.shape[1:], exact=False)
    assert prepared.shape == (3, 4, 5, 32), "this shape is one that pays"
    expected = by_definition(x.astype(float), kernel.astype(float), 1, 1)
    found = np.asarray(jax.jit(convolve, static_argnums=2)(x, prepared, layer))
    assert np.abs(found - expected).max() < 1e-6 * np.abs(expected).max()
    for shape, other in (
        ((*sides[:1], 5, 5), layer),  # an odd number of columns
        (x.shape[1:], Conv(16, stride=2)),
        (x.shape[1:], Conv(16, padding=0)),
    ):
        assert prepare(kernel, other, shape, exact=False) is kernel
    monkeypatch.setattr(convolution, "one_core_each", lambda: False)
    assert prepare(kernel, layer, x.shape[1:], exact=False) is kernel


@pytest.mark.parametrize(
    "shape, layer",
    [
        ((8, 8, 64), Conv(16)),  # too few channels
        ((5, 5, 64), Conv(64)),  # most of two tiles would be padding
        ((8, 8, 128), Conv(128, stride=2)),
        ((8, 8, 128), Conv(128, kernel=1, padding=0)),
    ],
)
def test_where_winograd_does_not_pay_kernels_stay_as_they_are(shape, layer):
    size = (layer.kernel, layer.kernel, shape[-1], layer.features)
    kernel = jnp.zeros(size, jnp.float32)
    assert prepare(kernel, layer, shape, exact=False) is kernel
