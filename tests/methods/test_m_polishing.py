"""Polishing lowers the error, keeps the energy, and sees what the simulation does."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import TABLE, settled

from jaxburst import energy as joules
from jaxburst.methods import polishing, presets
from jaxburst.methods.polishing import polish
from jaxburst.network import forward
from jaxburst.neurons import Burst, Threshold
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace

STEPS = 2


class Wide(nn.Module):
    """So many neurons that their rounding errors average out, as in real networks."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(16, (3, 3))(x))
        y = nn.Conv(16, (3, 3))(nn.relu(nn.Conv(16, (3, 3))(x)))
        x = nn.max_pool(nn.relu(x + y), (2, 2), (2, 2))
        x = nn.relu(nn.Conv(16, (3, 3))(x)).mean((1, 2))
        return nn.Dense(10)(x)


@functools.cache
def preset(name):
    """Images, model and spiking of the preset."""
    function, variables, inputs = TABLE[name]()
    network = trace(function, variables, inputs[:1])
    rng = np.random.default_rng(0)
    images = rng.normal(size=(40, *inputs.shape[1:])).astype(np.float32)
    found = presets.refining(network, variables, images, progress=False)
    return images, *found


def measured(model, spiking, images):
    """Error of the centred logits, and energy, after each step."""
    trace = simulate(model, spiking, images, STEPS)
    (logits,), _ = forward(model.network, spiking, images)
    events = {name: np.asarray(n).mean(1) for name, n in trace.events.items()}
    energy = joules.relative(model.network, events)
    error = trace.logits - logits[None]
    error -= error.mean(-1, keepdims=True)
    return np.square(error).mean((1, 2)), energy


def test_what_was_spoilt_is_mended_at_the_same_energy():
    rng = np.random.default_rng(0)
    images = rng.normal(size=(50, 8, 8, 3)).astype(np.float32)
    shapes = jax.eval_shape(Wide().init, jax.random.key(0), images)
    variables = settled(shapes, "wide")
    network = trace(Wide().apply, variables, images[:1])
    model, spiking = presets.refining(network, variables, images, progress=False)
    factors = iter((0.5, 2.0) * 2)
    spoilt = {
        name: leaf._replace(theta=leaf.theta * next(factors), bias=jnp.zeros(()))
        if isinstance(leaf, Threshold)
        else leaf
        for name, leaf in spiking.items()
    }
    before, energy = measured(model, spoilt, images)
    budget = {"energy": energy[-1], "iterations": 100, "rate": 0.02}
    mended = polish(model, spoilt, images, STEPS, **budget, progress=False)
    after, spent = measured(model, mended, images)
    assert after[-1] < 0.5 * before[-1]
    assert spent[-1] == pytest.approx(energy[-1], rel=0.03)


@pytest.mark.parametrize("name", ["vgg", "channels first"])
def test_only_thresholds_and_corrections_change(name):
    images, model, spiking = preset(name)
    short = {"energy": 0.3, "iterations": 2, "batch_size": 10, "progress": False}
    polished = polish(model, spiking, images, STEPS, **short)
    for name, leaf in spiking.items():
        if isinstance(leaf, Threshold):
            assert polished[name].bias.shape[0] == STEPS
            assert (polished[name].theta > 0).all()
            np.testing.assert_array_equal(
                *np.broadcast_arrays(polished[name].initial, leaf.initial)
            )
        else:
            jax.tree.map(np.testing.assert_array_equal, polished[name], leaf)
    again = polish(model, spiking, images, STEPS, **short)
    jax.tree.map(np.testing.assert_array_equal, polished, again)
    simulate(model, polished, images, STEPS)


@pytest.mark.parametrize("name", ["vgg", "resnet", "channels first", "capped"])
@pytest.mark.parametrize("unit", ["quanta", "digits"])
def test_what_is_differentiated_is_the_simulation(name, unit):
    images, model, spiking = preset(name)
    spiking = polishing._with_rows(model, spiking, STEPS)
    paid = {"cost": joules.LEMAIRE, "unit": unit}
    budget = joules.ann_joules(model, cost=joules.LEMAIRE)
    prices = polishing._prices(model, spiking, images, STEPS, budget, *paid.values())
    soft = Model(model.network, model.neuron.soft)
    (logits,), spent = polishing._run(soft, spiking, images, STEPS, prices, unit)
    trace = simulate(model, spiking, images, STEPS)
    expected = trace.logits[-1] - trace.logits[-1].mean(-1, keepdims=True)
    np.testing.assert_allclose(logits[:, 0], expected, atol=1e-4)
    expected = joules.relative(model, trace, **paid)[-1].mean()
    assert float(spent) == pytest.approx(expected, rel=1e-4)


def test_gradients_are_those_of_a_drive_that_was_sent():
    """θ N of one neuron follows its correction as if it had sent its whole drive."""
    images, model, spiking = preset("vgg")
    neuron = model.neuron.soft
    threshold = Threshold(jnp.array(0.5), jnp.array(0.5), jnp.array(0.1))

    def sent(bias, theta):
        own = threshold._replace(bias=bias, theta=theta)
        state = neuron.rest(own, (1, 3), jnp.float32)
        for t in (1, 2):
            current = jnp.array([[0.3, 2.2, -1.0]])
            state, n = neuron.step(own, state, current, jnp.array(t))
        return neuron.heard(own, state, n, jnp.array(2)).sum()

    bias, theta = jax.grad(sent, (0, 1))(threshold.bias, threshold.theta)
    assert bias == pytest.approx(2)  # the third is silent
    quanta = np.round(np.array([0.7, 4.5]) / 0.25) * 0.25 - np.array([0.7, 4.5])
    assert theta == pytest.approx(quanta.sum() / 0.5, abs=1e-5)


def test_other_neurons_are_refused():
    images, model, spiking = preset("vgg")
    burst = Model(model.network, Burst())
    with pytest.raises(ValueError, match="corrections were made for Refining"):
        polish(burst, spiking, images, STEPS, energy=0.2)
    copy = jax.tree.map(np.array, spiking)
    with pytest.raises(ValueError, match="corrections were made for Refining"):
        polish(burst, copy, images, STEPS, energy=0.2)
    for name in model.network.neurons:
        copy[name] = copy[name]._replace(bias=np.float32(0))
    with pytest.raises(TypeError, match="Refining, found Burst"):
        polish(burst, copy, images, STEPS, energy=0.2)
