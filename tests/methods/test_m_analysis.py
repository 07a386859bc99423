"""The report says what a simulation did; errors say why, and add up to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nets import LAYERS, case

from jaxburst.graph import over
from jaxburst.methods import analysis
from jaxburst.neurons import Burst, Refining, Threshold
from jaxburst.run import Model, prepare, unroll
from jaxburst.tracing import Affine, trace

pytestmark = pytest.mark.usefixtures("double")
STEPS = 12


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def hand(double):
    """Three channels, constant currents 0.5, -1 and 5 for an image of 1; θ = 1, γ = 2:
    the first is in reach, the second silent, the third beyond γθ."""
    weights = np.array([[0.5, -1.0, 5.0]]), np.ones((3, 2))
    network = trace(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], weights, np.ones((1, 1)))
    first, second = network.synapses
    spiking = {
        first: Affine(jnp.asarray(weights[0]), jnp.zeros(3)),
        "relu0": Threshold(jnp.array(1.0), jnp.array(0.0), jnp.array(0.0)),
        second: Affine(jnp.asarray(weights[1]), jnp.zeros(2)),
    }
    return Model(network, Burst(2)), spiking, np.ones((4, 1))


def test_report_by_hand(hand):
    (row,) = analysis.report(*hand, steps=8)
    assert row.name == "relu0"
    assert row.theta == 1
    assert row.activation == pytest.approx((0.5 + 0 + 5) / 3)
    assert row.rate == pytest.approx((0.5 + 0 + 2) / 3)  # 4, 0 and 16 spikes in 8 steps
    assert row.error == pytest.approx(np.sqrt((0 + 0 + 9) / 3))
    assert row.saturated == pytest.approx(1 / 3)
    assert row.silent == pytest.approx(1 / 3)
    assert row.events == 4 + 0 + 16


@pytest.mark.parametrize("neuron", [Burst(3, signed=True), Refining()], ids=repr)
@pytest.mark.parametrize("name", ["resnet", "channels first", "spellings", "leaky"])
def test_report_agrees_with_simulate(name, neuron):
    it = case(name)
    model, spiking = it.model(neuron), it.spiking(Burst(3), "channel")
    trace = it.run(model, spiking, 6)
    rows = analysis.report(model, spiking, it.inputs, 6)
    assert tuple(row.name for row in rows) == it.network.neurons
    worth = np.ones(6) / 6 if neuron.repeats else 0.5 ** np.arange(6)
    for row in rows:
        assert row.events == pytest.approx(float(trace.events[row.name].sum(0).mean()))
        sent = np.tensordot(worth, trace.spikes[row.name], 1)
        node = it.network.graph[row.name]
        # Thresholds and activations are laid out as the network has the population;
        # recordings have the images in front, and what is merged with them apart.
        if node.image_shape[node.batch_axis] > 1:
            sent = sent.reshape(-1, *sent.shape[2:])
        sent = np.moveaxis(sent, 0, node.batch_axis)
        rate = np.asarray(over(spiking[row.name].theta, sent)) * sent
        assert row.rate == pytest.approx(rate.mean())
        error = np.square(rate - it.activations[row.name]).mean()
        assert row.error == pytest.approx(np.sqrt(error))
    lines = analysis.table(rows).splitlines()
    assert len(lines) == 1 + len(rows) and rows[1].name in lines[2]


def test_report_of_refining_neurons_approaches_the_activations():
    it = case("resnet")
    model, spiking = it.model(Refining(None)), it.spiking(Burst(2))
    early, late = (
        analysis.report(model, spiking, it.inputs, steps) for steps in (1, 8)
    )
    for first, last in zip(early, late, strict=True):
        assert last.error < 0.1 * first.error
        assert last.saturated == 0


def test_the_causes_by_hand(hand):
    """The currents 0.5, -1 and 5 leave a remainder, nothing, and stuck charge."""
    (row,) = analysis.errors(*hand, steps=3)
    assert row.activation == pytest.approx(5.5 / 3)
    assert row.mean["remainder"] == pytest.approx([-0.5 / 3, 0, -0.5 / 9])
    assert row.mean["stuck"] == pytest.approx([-1, -1, -1])  # 3 more at every step
    assert row.size["total"] == pytest.approx([3.5 / 3, 1, 1 + 0.5 / 9])
    silent = ("inherited", "inactivated", "initial", "overfiring")
    assert all(not row.size[cause].any() for cause in silent)
    lines = analysis.error_table([row], 2).splitlines()
    assert lines[0].split() == ["name", "activation", *analysis.CAUSES, "total"]
    assert lines[1].split()[-1] == "54.55%"


def errors(it, neuron, spiking, pool="lateral"):
    rows = analysis.errors(it.model(neuron, pool), spiking, it.inputs, STEPS)
    return {row.name: row for row in rows}


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", [*LAYERS, "channels first", "maxima"])
def test_the_causes_add_up_to_the_error(name, signed):
    """Neuron by neuron, with the drives measured on the way; `errors` says means."""
    it, neuron = case(name), Burst(3, signed=signed)
    spiking, model = it.spiking(neuron, "channel", 0.25), it.model(neuron)
    trace = it.run(model, spiking, STEPS)
    drives = measured(model, spiking, it.inputs)
    rows = errors(it, neuron, spiking)
    names = it.network.neurons
    assert set(names) | set(it.network.pools) == set(rows)
    for name in names:
        theta = np.broadcast_to(
            over(spiking[name].theta, it.activations[name]), it.activations[name].shape
        )
        for t in (1, 2, STEPS):
            rate = theta * np.asarray(trace.spikes[name][:t]).sum(0) / t
            activation, end = it.activations[name], trace.potentials[name][t - 1]
            arrays = (0.25 * theta, end, drives[name][:t].mean(0), rate, activation)
            found = analysis.parts(theta, *arrays, jnp.float64(t))
            error = rate - activation
            np.testing.assert_allclose(sum(found.values()), error, rtol=0, atol=1e-12)
            for cause, part in (found | {"total": error}).items():
                kept = [means[cause][t - 1] for means in rows[name][2:]]
                expected = [np.mean(part), np.abs(part).mean()]
                np.testing.assert_allclose(kept, expected, rtol=0, atol=1e-12)
    for cause in ("inherited", "initial", "remainder", "stuck"):
        assert max(rows[name].size[cause].max() for name in names) > 1e-4
    first = names[0]
    if not it.network.graph.senders[first] and name != "maxima":
        assert rows[first].size["inherited"].max() < 1e-12


def measured(model, spiking, inputs):
    """The current of every neuron at every step, `{name: [T, B, ...]}`."""
    drives = {}

    def respond(node, threshold, state, current, t, f):
        drives[node.name] = current
        own = model.neuron.at(node.name)
        return own.step(threshold, state, current, t, f)

    def observe(state, info):
        return {name: current[None] for name, current in drives.items()}

    @jax.jit
    def run(spiking, inputs):
        circuit, leaves = prepare(model, spiking), model.network.leaves(inputs)
        return unroll(model, circuit, leaves, STEPS, observe, respond=respond)[1]

    return run(spiking, inputs)


@pytest.mark.parametrize("name", ["vgg", "windows", "residual first", "u net"])
def test_pooling_errs_by_gating_only(name):
    it, neuron = case(name), Burst(2)
    spiking = it.spiking(neuron, "channel", 0.0)
    lateral, gated = (
        errors(it, neuron, spiking, pool) for pool in ("lateral", "gated")
    )
    pools = it.network.pools
    assert pools and set(lateral) == set(gated)
    for name in pools:
        assert set(gated[name].size) == {"pooling", "total"}
        assert lateral[name].activation > 0
        assert lateral[name].size["pooling"].max() < 1e-12
    assert max(gated[name].mean["pooling"].max() for name in pools) > 0.01


@pytest.mark.parametrize(
    ("neuron", "says"),
    [
        (Refining(), "use a neuron that repeats"),
        (Burst(1, reset="zero"), "reset='subtract'"),
        (Burst(5, allowance=2), "allowance=None"),
    ],
)
def test_neurons_without_conserved_rates_are_refused(hand, neuron, says):
    model, spiking, inputs = hand
    with pytest.raises(ValueError, match=says):
        analysis.errors(dataclasses.replace(model, neuron=neuron), spiking, inputs, 2)
