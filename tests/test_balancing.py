"""Balanced thresholds: Lagrange's rule, and what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from networks import NAMES, case

import jaxburst as jb
from jaxburst import balancing
from jaxburst.neuron import Burst, Refining

pytestmark = pytest.mark.usefixtures("float64")


def test_the_factors_are_the_best_of_their_cost():
    rng = np.random.default_rng(0)
    spent, harm = rng.uniform(1, 3, 6), rng.uniform(1, 3, 6)
    factors = balancing._factors(spent, harm)
    cost = (spent / factors).sum()
    assert cost == pytest.approx(spent.sum())
    error = (harm * factors**2).sum()
    assert error < 0.99 * harm.sum(), "equal thresholds are worse"
    for _ in range(100):
        other = factors * np.exp(0.1 * rng.normal(size=6))
        other *= (spent / other).sum() / spent.sum()
        assert (harm * other**2).sum() > error


def test_layers_without_spikes_or_listeners_keep_their_threshold():
    factors = balancing._factors(np.array([1.0, 0.0, 2.0]), np.array([1.0, 1.0, 0.0]))
    np.testing.assert_allclose(factors, 1)
    np.testing.assert_array_equal(balancing._factors(np.zeros(2), np.ones(2)), 1)


@pytest.mark.parametrize("neuron", [Refining(), Burst(5)])
@pytest.mark.parametrize("name", NAMES)
def test_whole_layers_are_scaled(name, neuron):
    it = case(name)
    thresholds = it.thresholds(Burst(3), "channel")
    balanced = jb.balance(it.layers, it.variables, thresholds, it.images, neuron)
    assert tuple(balanced) == it.relus
    for path, theta in balanced.items():
        ratio = np.asarray(theta) / thresholds[path]
        np.testing.assert_allclose(ratio, ratio.flat[0])
        assert 0.25 <= ratio.flat[0] <= 4


def test_harm_is_the_error_of_one_rounded_layer():
    it = case("resnet")
    thresholds = it.thresholds(Burst(3), "layer")
    spiking = jb.convert(it.layers, it.variables, thresholds)
    images, row = jnp.asarray(it.images), 2

    def relu(path, current):
        activation = np.maximum(current, 0)
        if path == it.relus[row]:
            theta = thresholds[path] / 4
            activation = theta * np.floor(activation / theta + 0.5)
        return activation, np.ones(())

    expected, _, _ = oracle._evaluate(
        it.layers, it.variables, it.images[None], relu, None
    )
    expected = expected[0] - expected[0].mean(-1, keepdims=True)
    found = balancing._logits(it.layers, spiking, images, 0.25, row)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    exact = balancing._logits(it.layers, spiking, images, 0.25, -1)
    assert np.abs(found - exact).max() > 1e-3
    np.testing.assert_allclose(
        exact, it.logits - it.logits.mean(-1, keepdims=True), atol=1e-12
    )


def test_operations_are_charged_to_whoever_sent_the_spikes():
    it = case("nested")
    spiking = it.spiking(Burst(3), "layer", 0.5)
    images = jnp.asarray(it.images)
    spent = balancing._operations(it.layers, spiking, images, Burst(3), 4)
    trace = it.simulate(spiking, Burst(3), steps=4)
    counted = jb.energy.operations(it.layers, it.image_shape, trace.events)
    total = sum(count.sum() for count in counted.values()) / len(images)
    assert sum(spent.values()) == pytest.approx(total)
    senders = jb.energy.senders(it.layers)
    assert senders["residual0/body/conv0"] == "relu0"
    assert senders["residual0/shortcut/conv0"] == "relu0"
    assert senders["residual0/body/residual0/body/conv0"] == (
        "residual0/body/residual0/body/relu0"
    )
    assert senders["dense0"] == "relu1"


def test_it_lowers_the_error_at_the_same_cost():
    it = case("vgg")
    neuron, steps = Refining(), 3
    with jax.enable_x64(False):
        single = jax.tree.map(lambda x: np.asarray(x, np.float32), it.variables)
        rng = np.random.default_rng(3)
        images = rng.normal(size=(64, *it.image_shape)).astype(np.float32)
        model = jb.Model(it.layers, neuron)
        exact, _ = jb.ann.apply(it.layers, single, images)
        # Far from balanced: the first layer is resolved worst.
        start = {
            path: np.float32(theta * share)
            for (path, theta), share in zip(
                it.thresholds(Burst(2), "layer").items(), (3, 1, 1, 0.3), strict=True
            )
        }
        found = {}
        for name, thresholds in (
            ("start", start),
            ("balanced", jb.balance(it.layers, single, start, images, neuron)),
        ):
            spiking = jb.convert(it.layers, single, thresholds)
            trace = jb.simulate(model, spiking, images, steps)
            error = float(jnp.square(trace.logits[-1] - exact).mean())
            events = {path: n.mean(1) for path, n in trace.events.items()}
            spent = jb.energy.relative(it.layers, it.image_shape, events)[-1]
            found[name] = error * spent
    assert found["balanced"] < 0.8 * found["start"]
