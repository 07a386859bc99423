"""Thresholds are percentiles of everything a Relu was seen to give."""

import jax
import numpy as np
import oracle
import pytest
from networks import case

from jaxburst.calibration import (
    ZeroThreshold,
    calibrate,
    choose_percentile,
    divergence,
)
from jaxburst.layers import Conv, Flatten, Relu
from jaxburst.neuron import Burst, Refining

pytestmark = pytest.mark.usefixtures("float64")

IT = case("residual first")
IMAGES = np.random.default_rng(5).normal(size=(7, *IT.image_shape))
_, ACTIVATIONS = oracle.ann(IT.layers, IT.variables, IMAGES)


DEFAULTS = {
    "variables": IT.variables,
    "images": IMAGES,
    "neuron": Burst(1),
    "batch_size": 3,  # two batches and a partial one
}


def thresholds(**settings):
    return calibrate(IT.layers, **DEFAULTS | settings)


@pytest.mark.parametrize("batch_size", [3, 7])
@pytest.mark.parametrize("percentile", [70, 99, 99.9, 100])
def test_layer_thresholds_are_percentiles(percentile, batch_size):
    found = thresholds(percentile=percentile, batch_size=batch_size)
    assert found.keys() == ACTIVATIONS.keys()
    for path, values in ACTIVATIONS.items():
        assert 0.2 < (values == 0).mean() < 0.7, "zeros count, and there are many"
        expected = np.percentile(values, percentile)
        np.testing.assert_allclose(found[path], expected, rtol=1e-13)
        assert found[path].shape == ()


@pytest.mark.parametrize("batch_size", [3, 7])
@pytest.mark.parametrize("percentile", [90, 99.9, 100])
def test_channel_thresholds_are_percentiles(percentile, batch_size):
    found = thresholds(percentile=percentile, batch_size=batch_size, per="channel")
    for path, values in ACTIVATIONS.items():
        expected = np.percentile(values, percentile, axis=(0, 1, 2))
        assert len(set(expected)) == values.shape[-1]
        np.testing.assert_allclose(found[path], expected, rtol=1e-13)


def test_the_largest_activation_by_itself():
    found = thresholds(percentile=100)
    for path, values in ACTIVATIONS.items():
        np.testing.assert_allclose(found[path], values.max(), rtol=1e-14)


def test_a_burst_divides_the_range():
    whole, parts = thresholds(neuron=Burst(1)), thresholds(neuron=Burst(5))
    for path in IT.relus:
        np.testing.assert_allclose(whole[path], 5 * parts[path], rtol=1e-15)


def silenced(channels):
    """Variables whose `residual0/body/conv0` never makes these channels fire."""
    bias = IT.variables["params"]["residual0"]["body"]["conv0"]["bias"].copy()
    bias[channels] = -1e3
    body = IT.variables["params"]["residual0"]["body"]
    body = body | {"conv0": body["conv0"] | {"bias": bias}}
    params = IT.variables["params"] | {"residual0": {"body": body}}
    return IT.variables | {"params": params}


def test_a_silent_channel_takes_the_largest_threshold_with_a_warning():
    place = "residual0/body/relu0"
    with pytest.warns(UserWarning, match=f"did not fire.*'{place}': 1"):
        found = thresholds(variables=silenced([1]), per="channel", percentile=100)
    values = ACTIVATIONS[place].max((0, 1, 2))
    expected = [values[0], max(values[0], values[2]), values[2]]
    np.testing.assert_allclose(found[place], expected, rtol=1e-13)


@pytest.mark.parametrize("per", ["layer", "channel"])
def test_a_relu_that_never_fires_is_named(per):
    with pytest.raises(ValueError, match="residual0/body/relu0: its threshold .* 0"):
        thresholds(variables=silenced([0, 1, 2]), per=per)


def test_a_percentile_of_mostly_zeros_is_refused():
    with pytest.raises(ZeroThreshold, match="10th percentile .* is 0"):
        thresholds(percentile=10)


def test_activations_that_are_not_finite_are_named():
    images = IMAGES.copy()
    images[5, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="residual0/body/relu0: .* not finite"):
        thresholds(images=images)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"percentile": 101}, "percentile .* 101"),
        ({"percentile": -1}, "percentile .* -1"),
        ({"percentile": float("nan")}, "percentile .* nan"),
        ({"per": "neuron"}, "per must be 'layer' or 'channel', found 'neuron'"),
        ({"neuron": Burst(None)}, "without limit"),
        ({"images": IMAGES[:0]}, "empty"),
        ({"images": IMAGES[:, :1]}, "maxpool0: .* 1x4"),
    ],
)
def test_unusable_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        thresholds(**settings)


def test_refining_neurons_have_no_range_of_their_own():
    with pytest.raises(TypeError, match=r"pass Burst\(levels\); found Refining"):
        thresholds(neuron=Refining())


def test_networks_are_validated_first():
    with pytest.raises(ValueError, match="ends in a Dense"):
        calibrate((Conv(3), Relu(), Flatten()), {}, IMAGES, Burst())


def test_weights_that_are_not_finite_are_named_even_where_a_relu_swallows_them():
    """XLA on CPU computes max(NaN, 0) = 0, so that activations alone do not tell."""
    broken = jax.tree.map(np.array, IT.variables)
    broken["params"]["residual0"]["body"]["conv0"]["kernel"][0, 0, 0, 0] = np.nan
    with pytest.raises(
        ValueError, match="residual0/body/conv0/kernel: a weight is not finite"
    ):
        thresholds(variables=broken)


def test_the_percentile_chosen_without_labels_diverges_least():
    """A second way: every candidate converted, simulated and compared by itself."""
    candidates, images = (60, 99, 100), np.concatenate([IMAGES, IMAGES[:3] + 0.1])
    neuron = Burst(3)
    chosen, scores = choose_percentile(
        *(IT.layers, IT.variables, images, neuron),
        steps=4,
        candidates=(10, *candidates),  # 10 leaves a threshold 0 and is passed over
        batch_size=3,
    )
    expected, _ = oracle.ann(IT.layers, IT.variables, images[1::2])
    _, seen = oracle.ann(IT.layers, IT.variables, images[::2])
    own = {}
    for p in candidates:
        theta = {path: np.percentile(a, p) / 3 for path, a in seen.items()}
        logits, spikes, _ = oracle.snn(
            *(IT.layers, IT.variables, images[1::2], 4, neuron, "lateral", theta, 0.5)
        )
        assert all(n.any() for n in spikes.values())
        own[p] = divergence(expected, logits[-1]).mean()
    assert scores.keys() == own.keys()
    np.testing.assert_allclose(list(scores.values()), list(own.values()), rtol=1e-9)
    assert chosen == min(own, key=own.get)
    assert len(set(own.values())) == 3


def test_divergence_by_hand():
    half, quarter = np.log([[0.5, 0.5], [0.25, 0.75]])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    np.testing.assert_allclose(divergence(half + 7, quarter), expected, rtol=1e-12)
    assert divergence(half, half) == 0


def test_a_percentile_is_not_chosen_from_nothing():
    with pytest.raises(ValueError, match="at least 2, found 1"):
        choose_percentile(IT.layers, IT.variables, IMAGES[:1], Burst(), steps=2)
    with pytest.raises(ZeroThreshold, match="all of .10,. leave"):
        choose_percentile(
            *(IT.layers, IT.variables, IMAGES, Burst()), steps=2, candidates=(10,)
        )
