"""Thresholds allotted by harm and cost: Lagrange's rule, and the error asked for."""

import jax
import nets
import numpy as np
import pytest
from nets import case

from jaxburst.convert import convert
from jaxburst.energy import cost_per_event
from jaxburst.methods.allotting import allot
from jaxburst.methods.calibration import calibrate_mse
from jaxburst.methods.presets import once
from jaxburst.network import forward
from jaxburst.neurons import Burst, SigmaDelta
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield


def derivatives(it):
    """`{name: [outputs, B, ...]}`, exactly, of outputs less their mean."""
    weights = it.network.weights(it.variables)

    def outputs(noise):
        found, _ = forward(
            it.network, weights, it.inputs, lambda node, x, f: f(x) + noise[node.name]
        )
        # One image does not reach another's outputs.
        return (found[0] - found[0].mean(-1, keepdims=True)).sum(0)

    none = {name: np.zeros_like(x) for name, x in it.activations.items()}
    return jax.device_get(jax.jacrev(outputs)(none))


def test_harm_over_cost_is_the_same_for_every_channel():
    """By exact derivatives; those of random signs scatter about them."""
    it = case("resnet")
    thresholds = allot(it.network, it.variables, it.inputs)
    exact, fans, found = derivatives(it), cost_per_event(it.network), []
    for path, x in it.activations.items():
        if path not in fans:  # it sends to a pool
            continue
        axes = tuple(range(x.ndim - 1))
        harm = np.square(exact[path]).sum(0) * (x != 0)
        harm = harm.sum(axes) * np.asarray(thresholds[path]) ** 2
        cost = ((x != 0) & np.square(exact[path]).any(0)).sum(axes) * fans[path]
        found += list(harm[cost > 0] / cost[cost > 0])
    assert len(found) >= 5
    spread = np.log(np.array(found) / np.mean(found))
    assert np.abs(spread).max() < 1.5 and spread.std() < 0.5


@pytest.mark.parametrize("name", ["vgg", "resnet", "channels first", "ends in relu"])
def test_the_error_is_the_one_asked_for(name):
    it, model = case(name), Model(case(name).network, SigmaDelta())
    shape = 60, *it.inputs.shape[1:]
    inputs = np.random.default_rng(0).normal(size=shape)
    own = forward(it.network, it.network.weights(it.variables), inputs)[0][0]
    own = np.asarray(own - own.mean(-1, keepdims=True))
    for error in (1e-5, 1e-3):
        thresholds = allot(it.network, it.variables, inputs, error=error)
        spiking = convert(it.network, it.variables, thresholds)
        one = simulate(model, spiking, inputs, 1).logits[0]
        one = np.asarray(one - one.mean(-1, keepdims=True))
        assert 0.5 < np.square(one - own).mean() / np.square(own).mean() / error < 2


def test_it_costs_less_than_a_range_divided_alike():
    """At the same error of rounding, in digits of what reaches synapses."""
    it = case("resnet")
    model, fans = Model(it.network, SigmaDelta()), cost_per_event(it.network)

    def digits_and_error(thresholds):
        spiking = convert(it.network, it.variables, thresholds)
        trace = simulate(model, spiking, it.inputs, 1)
        spent = sum(
            float(n.digits.sum()) * fans[name] for name, n in trace.traffic.items()
        )
        apart = trace.logits[0] - it.traced[0]
        apart = apart - apart.mean(-1, keepdims=True)
        return spent, float(np.square(apart).mean() / np.square(it.traced[0]).mean())

    alike = calibrate_mse(it.network, it.variables, it.inputs, Burst(255))
    spent, error = digits_and_error(alike)
    own, reached = digits_and_error(
        allot(it.network, it.variables, it.inputs, error=error)
    )
    assert own < spent and reached < 5 * error


def test_the_preset_says_everything_in_one_step():
    it = case("vgg")
    model, spiking = once(it.network, it.variables, it.inputs, error=1e-4)
    logits = simulate(model, spiking, it.inputs, 2).logits
    np.testing.assert_array_equal(logits[0], logits[1])
    assert np.abs(logits[0] - it.traced[0]).max() < 0.1 * np.abs(it.traced[0]).max()


def test_what_stays_silent_takes_the_largest_threshold():
    """And leaves the others theirs."""
    w, x = nets.weights((4, 6), (6, 3)), nets.images(4)

    def both(w, x):
        hidden = jax.nn.relu(x @ w[0])
        return hidden @ w[1] + jax.nn.relu(-1 - hidden) @ w[1]

    alone = trace(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], w, x)
    expected, found = (allot(net, w, x) for net in (alone, trace(both, w, x)))
    np.testing.assert_allclose(found["relu0"], expected["relu0"], rtol=1e-6)
    np.testing.assert_array_equal(found["relu1"], [found["relu0"].max()] * 6)


def test_what_makes_no_sense_is_refused():
    it = case("vgg")
    with pytest.raises(ValueError, match="error"):
        allot(it.network, it.variables, it.inputs, error=0)
    silent = jax.tree.map(np.zeros_like, it.variables)
    with pytest.raises(ValueError, match="no neuron is active and heard"):
        allot(it.network, silent, it.inputs)
