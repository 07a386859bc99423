"""Thresholds are percentiles of everything a population was seen to give."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from nets import LAYERS, case

from jaxburst.batching import sweep
from jaxburst.convert import convert, threshold_shapes
from jaxburst.methods import calibration
from jaxburst.methods.calibration import (
    ZeroThreshold,
    calibrate,
    calibrate_mse,
    choose_percentile,
)
from jaxburst.methods.channels import by_channel, divergence
from jaxburst.network import forward
from jaxburst.neurons import Burst, Refining
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield


def activations(it, inputs):
    weights = it.network.weights(it.variables)
    return forward(it.network, weights, inputs)[1]


@pytest.fixture(scope="module")
def it(double):
    return case("residual first")


@pytest.fixture(scope="module")
def seven(it):
    """Seven images and their activations `[n, C]`."""
    rng = np.random.default_rng(5)
    images = rng.normal(size=(7, *it.network.input_shapes[0])) + 0.6
    found = {k: np.asarray(x) for k, x in activations(it, images).items()}
    return images, {name: x.reshape(-1, x.shape[-1]) for name, x in found.items()}


def thresholds(it, seven, **settings):
    how = {"neuron": Burst(1), "batch_size": 3}  # two batches and a partial one
    how |= {"variables": it.variables, "inputs": seven[0]} | settings
    return calibrate(it.network, **how)


@pytest.mark.parametrize("batch_size", [3, 7])
@pytest.mark.parametrize("percentile", [70, 99, 99.9, 100])
def test_layer_thresholds_are_percentiles(it, seven, percentile, batch_size):
    found = thresholds(it, seven, percentile=percentile, batch_size=batch_size)
    assert tuple(found) == it.network.neurons
    for name, values in seven[1].items():
        assert 0.2 < (values == 0).mean() < 0.7, "zeros count, and there are many"
        expected = np.percentile(values, percentile)
        np.testing.assert_allclose(found[name], expected, rtol=1e-13)
        assert found[name].shape == ()


@pytest.mark.parametrize("batch_size", [3, 7])
@pytest.mark.parametrize("percentile", [90, 99.9, 100])
def test_channel_thresholds_are_percentiles(it, seven, percentile, batch_size):
    how = {"percentile": percentile, "batch_size": batch_size}
    found = thresholds(it, seven, **how, per="channel")
    for name, values in seven[1].items():
        expected = np.percentile(values, percentile, axis=0)
        assert len(set(expected)) == values.shape[-1]
        np.testing.assert_allclose(found[name], expected, rtol=1e-13)


@pytest.mark.parametrize("name", ["channels first", "several", "spellings"])
@pytest.mark.parametrize("method", [calibrate, calibrate_mse])
@pytest.mark.filterwarnings("ignore:channels with the threshold 0")
def test_channels_are_wherever_they_are(name, method):
    it = case(name)
    graph = it.network.graph
    settings = {"per": "channel", "batch_size": 2}
    found = method(it.network, it.variables, it.inputs, Burst(1), **settings)
    for name, values in it.activations.items():
        assert found[name].shape == threshold_shapes(it.network, name)[1]
        axis = graph.channel_axes[name]
        most = values.max(tuple(i for i in range(values.ndim) if i != axis))
        if method is calibrate:
            expected = np.percentile(
                np.moveaxis(values, axis, 0).reshape(len(most), -1), 99.9, axis=1
            )
            expected = np.where(expected == 0, expected.max(), expected)
            np.testing.assert_allclose(np.ravel(found[name]), expected)
        else:
            assert (np.ravel(found[name])[most > 0] <= most[most > 0]).all()
    convert(it.network, it.variables, found)


def test_a_burst_divides_the_range(it, seven):
    whole, parts = (thresholds(it, seven, neuron=Burst(n)) for n in (1, 5))
    own = thresholds(it, seven, neuron=Burst(1, gammas=(("relu0", 4),)))
    for name in it.network.neurons:
        np.testing.assert_allclose(whole[name], 5 * parts[name], rtol=1e-15)
        share = 4 if name == "relu0" else 1
        np.testing.assert_allclose(whole[name], share * own[name], rtol=1e-15)


def silenced(it, channels):
    """Variables whose first block never makes these channels fire."""
    variables = jax.tree.map(np.array, it.variables)
    variables["params"]["residual0_body"]["conv0"]["bias"][channels] = -1e3
    return variables


@pytest.fixture
def inner(it):
    (name,) = (name for name in it.network.neurons if "body" in name)
    return name


def test_a_silent_channel_takes_the_largest_with_a_warning(it, seven, inner):
    with pytest.warns(UserWarning, match=f"did not fire.*'{inner}': 1"):
        found = thresholds(
            it, seven, variables=silenced(it, [1]), per="channel", percentile=100
        )
    values = seven[1][inner].max(0)
    expected = [values[0], max(values[0], values[2]), values[2]]
    np.testing.assert_allclose(found[inner], expected, rtol=1e-13)


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("method", [calibrate, calibrate_mse])
def test_a_population_that_never_fires_stays_silent(it, seven, inner, method, per):
    variables = silenced(it, [0, 1, 2])
    arguments = it.network, variables, seven[0], Burst(2)
    warnings.filterwarnings("ignore", message="channels with the threshold 0")
    with pytest.warns(UserWarning, match=f"did not fire.* stay silent.*{inner}"):
        found = method(*arguments, per=per)
    others = [float(x.max()) for name, x in found.items() if name != inner]
    np.testing.assert_allclose(found[inner], max(others))
    spiking = convert(it.network, variables, found)
    trace = simulate(Model(it.network, Burst(2)), spiking, seven[0], 4)
    assert not trace.events[inner].any()
    assert all(n.any() for name, n in trace.events.items() if name != inner)


def test_a_network_that_never_fires_at_all():
    network = trace(lambda w, x: jax.nn.relu(x @ w), np.ones((2, 3)), np.ones((1, 2)))
    with pytest.warns(UserWarning, match="did not fire"):
        found = calibrate(network, np.ones((2, 3)), -np.ones((4, 2)), Burst())
    assert found["relu0"] == 1


def test_a_percentile_of_mostly_zeros_is_refused(it, seven):
    with pytest.raises(ZeroThreshold, match="10th percentile .* is 0"):
        thresholds(it, seven, percentile=10)


def test_activations_that_are_not_finite_are_named(it, seven):
    images = seven[0].copy()
    images[5, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="inputs: a number is not finite"):
        thresholds(it, seven, inputs=images)
    with pytest.raises(ValueError, match="inputs: a number is not finite"):
        calibrate_mse(it.network, it.variables, images, Burst(2))
    images[5] = 1.7e308  # sums of such numbers overflow
    for method in (calibrate, calibrate_mse):
        with pytest.raises(ValueError, match="relu0: an activation is not finite"):
            method(it.network, it.variables, images, Burst(2))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"percentile": 101}, "percentile: .* 101"),
        ({"percentile": -1}, "percentile: .* -1"),
        ({"percentile": float("nan")}, "percentile: .* nan"),
        ({"per": "neuron"}, "per: .* 'layer', 'channel', found 'neuron'"),
        ({"neuron": Burst(None)}, "no range of its own"),
        ({"neuron": Refining()}, r"Refining.* no range of its own.* Burst\(levels\)"),
        ({"neuron": Burst(2, gammas=(("relu0", None),))}, "no range of its own"),
        ({"inputs": np.zeros((0, 4, 4, 2))}, "at least one"),
        ({"inputs": np.zeros((3, 1, 4, 2))}, "inputs must have the shape"),
    ],
)
def test_unusable_arguments_are_refused(it, seven, settings, message):
    with pytest.raises(ValueError, match=message):
        thresholds(it, seven, **settings)


def test_weights_that_are_not_finite_are_named_even_where_a_relu_swallows_them(
    it, seven
):
    """XLA on CPU computes max(NaN, 0) = 0, so that activations alone do not tell."""
    broken = jax.tree.map(np.array, it.variables)
    broken["params"]["residual0_body"]["conv0"]["kernel"][0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match="conv0/kernel: a number is not finite"):
        thresholds(it, seven, variables=broken)


@pytest.mark.parametrize("name", list(LAYERS))
@pytest.mark.parametrize("per", ["layer", "channel"])
def test_least_squares_thresholds_are_the_best_of_a_hundred(name, per):
    """The errors are computed by definition here, from histograms there."""
    it, levels = case(name), 3
    found = calibrate_mse(
        it.network, it.variables, it.inputs, Burst(levels), per=per, batch_size=2
    )
    for name, values in it.activations.items():
        values = values.reshape(-1, values.shape[-1] if per == "channel" else 1)
        most = values.max(0)
        alive = most > 0
        theta = np.linspace(0.01, 1, 100).reshape(-1, 1, 1) * most[alive] / levels
        levels_of = np.clip(np.floor(values[None, :, alive] / theta + 0.5), 0, levels)
        error = np.square(theta * levels_of - values[None, :, alive]).sum(1)
        chosen = np.ravel(found[name])[alive]
        place = np.round(chosen / most[alive] * levels * 100).astype(int) - 1
        np.testing.assert_allclose(chosen, theta[place, 0, np.arange(alive.sum())])
        least = error[place, np.arange(alive.sum())]
        np.testing.assert_allclose(least, error.min(0), rtol=1e-9, atol=1e-12)
        silent = np.ravel(found[name])[~alive]
        assert (silent == chosen.max()).all()


def test_the_percentile_chosen_without_labels_diverges_least(it):
    """A second way: every candidate converted and simulated by the oracle."""
    candidates, neuron = (60, 99, 100), Burst(3)
    layers, shape = LAYERS["residual first"]
    images = np.random.default_rng(7).normal(size=(10, *shape)) + 1.2
    chosen, scores = choose_percentile(
        *(it.network, it.variables, images, neuron),
        steps=4,
        candidates=(10, *candidates),  # 10 leaves a threshold 0 and is passed over
        batch_size=3,
    )
    expected, _ = oracle.ann(layers, it.variables, images[1::2])
    _, seen = oracle.ann(layers, it.variables, images[::2])
    own = {}
    for p in candidates:
        theta = [np.percentile(a, p) / 3 for a in seen]
        logits, spikes, _ = oracle.snn(
            *(layers, it.variables, images[1::2], 4, neuron, "lateral", theta, 0.5)
        )
        assert all(n.any() for n in spikes)
        own[p] = divergence(expected, logits[-1]).mean()
    assert scores.keys() == own.keys()
    np.testing.assert_allclose(list(scores.values()), list(own.values()), rtol=1e-9)
    assert chosen == min(own, key=own.get)
    assert len(set(own.values())) == 3


def test_of_a_single_number_the_squared_error_chooses():
    """Not the divergence, which is 0 for every candidate."""
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(6, 20)), rng.normal(size=(20, 1))

    def net(w, x):
        return jax.nn.relu(x @ w[0]) @ w[1]

    inputs = rng.normal(size=(80, 6))
    network = trace(net, weights, inputs[:1])
    chosen, scores = choose_percentile(network, weights, inputs, Burst(1), steps=64)
    assert chosen > 95 and len(set(scores.values())) > 3
    assert min(scores.values()) < 0.2 * scores[95]


def test_several_outputs_are_compared_by_their_errors():
    it = case("several")
    chosen, scores = choose_percentile(
        it.network, it.variables, it.inputs, Burst(2), steps=8, candidates=(90, 100)
    )
    assert scores[100] != scores[90] and chosen == min(scores, key=scores.get)


def test_divergence_by_hand():
    half, quarter = np.log([[0.5, 0.5], [0.25, 0.75]])
    expected = 0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75)
    np.testing.assert_allclose(divergence(half + 7, quarter), expected, rtol=1e-12)
    assert divergence(half, half) == 0


def test_a_percentile_is_not_chosen_from_nothing(it, seven):
    arguments = it.network, it.variables
    with pytest.raises(ValueError, match="at least 2, found 1"):
        choose_percentile(*arguments, seven[0][:1], Burst(), steps=2)
    with pytest.raises(ZeroThreshold, match="all of .10,. leave"):
        choose_percentile(*arguments, seven[0], Burst(), steps=2, candidates=(10,))


def test_a_second_sweep_compiles_nothing(it, seven):
    """Tuning calibrates again and again: the programs are kept."""
    thresholds(it, seven)
    function = calibration._values(it.network, "layer", False)
    before = function.__wrapped__ if hasattr(function, "__wrapped__") else function
    count = []

    def counted(weights, batch):
        count.append(1)
        return before(weights, batch)

    weights = it.network.weights(it.variables)
    for _ in range(2):
        for _ in sweep(counted, weights, seven[0], 3):
            pass
    assert len(count) == 1


def test_by_channel_keeps_images_together():
    it = case("spellings")
    for name, values in it.activations.items():
        found = np.asarray(by_channel(it.network, name, jnp.asarray(values)))
        assert len(found) == 3
        np.testing.assert_array_equal(np.sort(found.ravel()), np.sort(values.ravel()))
