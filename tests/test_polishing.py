"""Polishing lowers the error, keeps the energy, and sees what the simulation does."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import case, random_variables

import jaxburst as jb
from jaxburst import polishing
from jaxburst.layers import AvgPool, Conv, Dense, Flatten, MaxPool, Relu, Residual
from jaxburst.polishing import polish

STEPS = 2
WIDE = (
    *(Conv(16, norm=True), Relu()),
    Residual((Conv(16, norm=True), Relu(), Conv(16, norm=True))),
    *(Relu(), MaxPool(2), Conv(16, norm=True), Relu()),
    *(AvgPool(4), Flatten(), Dense(10)),
)  # so many neurons that their rounding errors average out, as in real networks


@functools.cache
def network(name):
    """Layers, variables and images in single precision; the preset for them."""
    it = case(name)
    images = np.random.default_rng(0).normal(size=(40, *it.images.shape[1:]))
    images = images.astype(np.float32)
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), it.variables)
    return images, *jb.presets.refining(it.layers, variables, images)


def measured(model, spiking, images):
    """Error of the centred logits, and energy, after each step."""
    trace = jb.simulate(model, spiking, images, STEPS)
    logits, _ = jb.conversion.forward(model.layers, spiking, images)
    events = {path: np.asarray(n).mean(1) for path, n in trace.events.items()}
    energy = jb.energy.relative(model.layers, images.shape[1:], events)
    error = trace.logits - logits[None]
    error -= error.mean(-1, keepdims=True)
    return np.square(error).mean((1, 2)), energy


def test_what_was_spoilt_is_mended_at_the_same_energy():
    rng = np.random.default_rng(0)
    variables = random_variables(WIDE, (8, 8, 3), rng)
    variables = jax.tree.map(lambda x: np.asarray(x, np.float32), variables)
    images = rng.normal(size=(50, 8, 8, 3)).astype(np.float32)
    model, spiking = jb.presets.refining(WIDE, variables, images)
    factors = iter((0.5, 2.0) * 2)
    spoilt = {
        path: leaf._replace(theta=leaf.theta * next(factors), bias=jnp.zeros(()))
        if isinstance(leaf, jb.neuron.Threshold)
        else leaf
        for path, leaf in spiking.items()
    }
    before, energy = measured(model, spoilt, images)
    budget = {"energy": energy[-1], "iterations": 100, "rate": 0.02}
    mended = polish(model, spoilt, images, STEPS, **budget, progress=False)
    after, spent = measured(model, mended, images)
    assert after[-1] < 0.5 * before[-1]
    assert spent[-1] == pytest.approx(energy[-1], rel=0.03)


def test_only_thresholds_and_corrections_change():
    images, model, spiking = network("vgg")
    short = {"energy": 0.3, "iterations": 2, "batch_size": 10, "progress": False}
    polished = polish(model, spiking, images, STEPS, **short)
    for path, leaf in spiking.items():
        if isinstance(leaf, jb.neuron.Threshold):
            assert polished[path].bias.shape[0] == STEPS
            assert (polished[path].theta > 0).all()
            np.testing.assert_array_equal(
                *np.broadcast_arrays(polished[path].initial, leaf.initial)
            )
        else:
            jax.tree.map(np.testing.assert_array_equal, polished[path], leaf)
    again = polish(model, spiking, images, STEPS, **short)
    jax.tree.map(np.testing.assert_array_equal, polished, again)


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_what_is_differentiated_is_the_simulation(name):
    images, model, spiking = network(name)
    spiking = polishing._with_rows(model, spiking, images.shape[1:], STEPS)
    prices = polishing._prices(model, spiking, images, STEPS)
    logits, operations = polishing._run(model, spiking, images, STEPS, prices)
    trace = jb.simulate(model, spiking, images, STEPS)
    np.testing.assert_allclose(logits, trace.logits[-1], atol=1e-4)
    counted = jb.energy.operations(model.layers, images.shape[1:], trace.events)
    total = sum(float(jnp.sum(n)) for n in counted.values()) / len(images)
    assert float(operations) == pytest.approx(total, rel=1e-4)


def test_other_neurons_are_refused():
    images, model, spiking = network("vgg")
    burst = jb.Model(model.layers, jb.Burst())
    with pytest.raises(TypeError, match="Refining, found Burst"):
        polish(burst, spiking, images, STEPS, energy=0.2)
