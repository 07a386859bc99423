"""Pooling and subsampling equal their definitions."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from jaxburst.layers import AvgPool, MaxPool, Subsample
from jaxburst.pooling import area, max_pool, subsample, sum_pool

pytestmark = pytest.mark.usefixtures("float64")

X = np.random.default_rng(0).normal(size=(2, 7, 6, 3)) - 3  # a padding of 0 would win


def by_definition(reduce, x, window, stride, padding=0):
    """One window at a time, cut to what lies inside the map."""
    height, width = x.shape[1:3]
    rows, columns = (
        range(-padding, side + padding - window + 1, stride) for side in (height, width)
    )
    out = [
        reduce(
            x[:, max(row, 0) : row + window, max(column, 0) : column + window], (1, 2)
        )
        for row, column in itertools.product(rows, columns)
    ]
    return np.stack(out, 1).reshape(len(x), len(rows), len(columns), -1)


@pytest.mark.parametrize(
    "window, stride, padding",
    [(2, None, 0), (2, 2, 0), (3, 3, 0), (3, 2, 1), (2, 1, 0), (2, 1, 1), (2, 3, 1)],
)
def test_max_pool(window, stride, padding):
    found = max_pool(jnp.asarray(X), MaxPool(window, stride, padding))
    expected = by_definition(np.max, X, window, stride or window, padding)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("window, stride", [(2, None), (3, 3), (2, 1), (3, 2), (6, 1)])
def test_sum_pool(window, stride):
    layer = AvgPool(window, stride)
    found = sum_pool(jnp.asarray(X), layer)
    expected = by_definition(np.sum, X, window, stride or window)
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    assert area(layer, X.shape) == window**2


def test_average_over_the_whole_map():
    x = X[:, :6]
    mean = sum_pool(jnp.asarray(x), AvgPool()) / area(AvgPool(), x.shape)
    np.testing.assert_allclose(mean[:, 0, 0], x.mean((1, 2)), rtol=1e-14)


def test_sums_of_whole_numbers_are_whole():
    """Also in single precision, up to 2^24, where means would not be."""
    x = jnp.asarray(np.random.default_rng(1).integers(0, 99999, (2, 6, 6, 3)), "f4")
    found = np.asarray(sum_pool(x, AvgPool(3)))
    assert found.dtype == np.float32 and (found > 10**5).all()
    expected = by_definition(np.sum, np.asarray(x).astype(np.int64), 3, 3)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("features, before, after", [(3, 0, 0), (8, 2, 3), (7, 2, 2)])
def test_subsample(features, before, after):
    found = subsample(jnp.asarray(X), Subsample(features, 2))
    assert found.shape == (2, 4, 3, features)
    np.testing.assert_array_equal(found[..., before : before + 3], X[:, ::2, ::2])
    assert not found[..., :before].any() and not found[..., features - after :].any()
