"""Balanced thresholds: Lagrange's rule, and what it is for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import LAYERS, case

from jaxburst import energy
from jaxburst.convert import convert
from jaxburst.graph import over
from jaxburst.methods import balancing
from jaxburst.methods.balancing import balance
from jaxburst.network import forward
from jaxburst.neurons import Burst, Radix, Refining, SigmaDelta
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield


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


OTHERS = ["channels first", "several", "spellings", "recurrent", "capped"]


@pytest.mark.parametrize("neuron", [Refining(), Burst(5)], ids=["refining", "burst"])
@pytest.mark.parametrize("name", ["nested", "windows", *OTHERS])
def test_whole_populations_are_scaled(name, neuron):
    it = case(name)
    thresholds = it.thresholds(Burst(3), "channel")
    balanced = balance(it.network, it.variables, thresholds, it.inputs, neuron)
    assert tuple(balanced) == it.network.neurons
    for name, theta in balanced.items():
        ratio = np.asarray(theta) / thresholds[name]
        np.testing.assert_allclose(ratio, ratio.flat[0])
        assert 0.25 <= ratio.flat[0] <= 4
    assert len({float(np.ravel(x)[0]) for x in balanced.values()}) > 1


def test_larger_spikes_allow_finer_thresholds():
    """One that is far too coarse comes down as far as a step of its neurons reaches."""
    it = case("nested")
    thresholds = dict(it.thresholds(Burst(30), "layer"))
    first = it.network.neurons[0]
    thresholds[first] = 30 * thresholds[first]
    _, activations = forward(it.network, it.network.weights(it.variables), it.inputs)
    largest = float(activations[first].max() / thresholds[first])
    task = it.network, it.variables, thresholds, it.inputs
    factors = [
        balance(*task, Refining(gamma))[first] / thresholds[first]
        for gamma in (2, 15, 127)
    ]
    assert largest / 2 > 0.25 > largest / 15
    assert factors[:2] == pytest.approx([0.25, largest / 15])
    assert largest / 127 < factors[2] < largest / 15


@pytest.mark.parametrize("neuron", [Radix(4), SigmaDelta(9), Burst(5)], ids=repr)
def test_no_range_is_cut_that_no_later_step_makes_up_for(neuron):
    """What a window, a single step, or a step of bursts can say still reaches every
    activation that it reached before."""
    it = case("resnet")
    _, record = forward(it.network, it.network.weights(it.variables), it.inputs)
    whole = {name: np.abs(x).max() / neuron.most for name, x in record.items()}
    balanced = balance(it.network, it.variables, whole, it.inputs, neuron, steps=1)
    factors = [float(balanced[name] / whole[name]) for name in whole]
    assert min(factors) >= 1 - 1e-9 and max(factors) > 1.01
    halves = {name: theta / 2 for name, theta in whole.items()}  # they cut by half
    balanced = balance(it.network, it.variables, halves, it.inputs, neuron, steps=1)
    assert min(float(balanced[name] / halves[name]) for name in whole) >= 1 - 1e-9


@pytest.mark.parametrize("name", [*LAYERS, *OTHERS])
def test_harm_is_the_error_of_one_rounded_population(name):
    """A second way: the network once for every population, from the beginning."""
    it, quantum = case(name), 0.25
    spiking = it.spiking(Burst(3), "channel")
    network = it.network
    found = balancing._harm(network, spiking, it.inputs, quantum)

    def outputs(rounded):
        def neuron(node, x, f):
            x = jnp.maximum(x, 0)
            x = x if node.role.cap is None else jnp.minimum(x, node.role.cap)
            theta = over(spiking[node.name].theta, x) * quantum
            whole = theta * jnp.floor(x / theta + 0.5)
            return whole if node.name == rounded else x

        exact, _ = forward(network, spiking, it.inputs, neuron)
        for name, x in zip(network.graph.outputs, exact, strict=True):
            axis = network.graph.channel_axes[name]
            shift = x.mean(axis, keepdims=True) if x.shape[axis] > 1 and axis else 0
            yield np.asarray(x - shift)

    exact = list(outputs(None))
    for name, error in zip(network.neurons, found, strict=True):
        expected = sum(
            np.square(x - y).mean() / np.square(x).mean()
            for x, y in zip(exact, outputs(name), strict=True)
        )
        np.testing.assert_allclose(error, expected, rtol=1e-9)
    assert (found > 0).sum() >= len(found) - 1


@pytest.mark.parametrize("name", ["nested", "vgg", "maxima", "inception"])
@pytest.mark.parametrize("unit", energy.UNITS)
def test_energy_is_charged_to_whoever_sent_the_spikes(name, unit):
    it, neuron = case(name), Burst(3)
    spiking, model, cost = it.spiking(neuron, "layer"), it.model(neuron), energy.LEMAIRE
    _, spent = balancing.caused(model, spiking, it.inputs, 4, cost=cost, unit=unit)
    trace = it.run(model, spiking, 4)
    whole = energy.joules(model, trace, cost=cost, unit=unit)[-1].mean()
    still = energy.prices(model, cost=cost, unit=unit)
    whole -= 1e-12 * (still.once + 4 * still.step).sum()
    assert sum(spent.values()) == pytest.approx(whole)
    assert set(spent) <= set(it.network.neurons)


def test_the_sender_of_each_synapse():
    """In a residual network within another, and behind a pool and wires."""
    inner = "residual0_body/residual0_body"
    assert (
        case("nested").network.graph.senders.items()
        >= {
            "conv0": (),
            "residual0_body/conv0": ("relu0",),
            f"{inner}/conv0": (f"{inner}/relu0",),
            "residual0_body/conv1": ("residual0_body/relu0",),
            "residual0_shortcut/conv0": ("relu0",),
            "dense0": ("relu1",),
        }.items()
    )
    network = case("residual first").network
    (pool,) = network.pools
    assert network.graph.senders["dense0"] == (pool,)
    assert network.graph.senders[pool] == ("relu0",)


def test_one_number_is_not_taken_relative_to_itself():
    rng = np.random.default_rng(0)
    weights = [rng.normal(size=pair) for pair in ((5, 8), (8, 7), (7, 1))]

    def net(w, x):
        return jax.nn.relu(jax.nn.relu(x @ w[0]) @ w[1]) @ w[2]

    inputs = rng.normal(size=(20, 5))
    network = trace(net, weights, inputs[:1])
    thresholds = {"relu0": np.float64(1), "relu1": np.float64(1)}
    found = balance(network, weights, thresholds, inputs, Refining())
    assert found["relu0"] != 1


def test_it_lowers_the_error_at_the_same_cost():
    it = case("vgg")
    neuron, steps = Refining(), 3
    rng = np.random.default_rng(3)
    images = rng.normal(size=(64, *it.network.input_shapes[0]))
    model = Model(it.network, neuron)
    exact = it.function(it.variables, images)
    # Far from balanced: the first layer is resolved worst.
    thresholds = it.thresholds(Burst(2), "layer")
    start = {
        name: theta * share
        for (name, theta), share in zip(thresholds.items(), (3, 1, 1, 0.3), strict=True)
    }
    found = {}
    for name, thresholds in (
        ("start", start),
        ("balanced", balance(it.network, it.variables, start, images, neuron)),
    ):
        spiking = convert(it.network, it.variables, thresholds)
        trace = simulate(model, spiking, images, steps)
        error = float(jnp.square(trace.logits[-1] - exact).mean())
        events = {key: n.mean(1) for key, n in trace.events.items()}
        spent = energy.relative(it.network, events)[-1]
        found[name] = error * spent
    assert found["balanced"] < 0.8 * found["start"]
