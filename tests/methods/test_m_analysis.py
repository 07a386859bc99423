"""The report says what a simulation did; errors say why, and add up to it."""

import dataclasses

import jax
import jax.numpy as jnp
import nets
import numpy as np
import oracle
import pytest
from nets import LAYERS, case

from jaxburst.circuit import answer, prepare
from jaxburst.convert import convert
from jaxburst.graph import over
from jaxburst.methods import analysis
from jaxburst.network import Affine
from jaxburst.neurons import Burst, Refining, Threshold
from jaxburst.run import Model, unroll
from jaxburst.tracing import trace

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


SIGNED = Burst(3, signed=True)


@pytest.mark.parametrize(
    "name, neuron",
    [
        *(("channels first", SIGNED), ("spellings", Refining())),
        *(("leaky", SIGNED), ("vgg", Refining())),
    ],
)
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
    it = case("residual first")
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


PLAIN = {name: Burst((1, 5)[i % 2]) for i, name in enumerate(LAYERS)}
CASES = list(PLAIN.items())
CASES += [(name, Burst(3, signed=True)) for name in ("vgg", "resnet", "nested")]
CASES += [("channels first", Burst(3)), ("maxima", Burst(3))]


@pytest.mark.parametrize("name, neuron", CASES)
def test_the_causes_add_up_to_the_error(name, neuron):
    """Neuron by neuron, with drives from the oracle where it has the network, else
    with those measured on the way; and `errors` says their means."""
    it = case(name)
    spiking, model = it.spiking(neuron, "channel", 0.25), it.model(neuron)
    trace = it.run(model, spiking, STEPS)
    drives = derived(name, neuron) if name in LAYERS else measured(model, spiking, it)
    rows = errors(it, neuron, spiking)
    names = it.network.neurons
    assert set(names) | set(it.network.pools) == set(rows)
    for name in names:
        activation = it.activations[name]
        theta = np.asarray(over(spiking[name].theta, activation))
        theta = np.broadcast_to(theta, activation.shape)
        for t in (1, 2, STEPS):
            rate = theta * np.asarray(trace.spikes[name][:t]).sum(0) / t
            end = trace.potentials[name][t - 1]
            arrays = (0.25 * theta, end, drives[name][:t].mean(0), rate, activation)
            found = analysis.parts(theta, *arrays, jnp.float64(t))
            error = rate - activation
            np.testing.assert_allclose(sum(found.values()), error, atol=1e-12)
            for cause, part in (found | {"total": error}).items():
                kept = [means[cause][t - 1] for means in rows[name][2:]]
                expected = [np.mean(part), np.abs(part).mean()]
                np.testing.assert_allclose(kept, expected, rtol=0, atol=1e-12)
    happened = {"inherited", "initial", "remainder", "stuck"}
    if not neuron.signed and len(names) > 2:  # signed neurons take such spikes back
        happened.add("inactivated")
    for cause in happened:
        assert max(rows[name].size[cause].max() for name in names) > 1e-4
    graph = it.network.graph
    if graph[names[0]].inputs[0] not in graph.dynamic:
        assert rows[names[0]].size["inherited"].max() < 1e-12


def derived(name, neuron):
    """The current of every neuron and step by the oracle, `{name: [T, B, ...]}`."""
    it, (layers, _), found = case(name), LAYERS[name], []
    thresholds = [np.ravel(x) for x in it.thresholds(neuron, "channel").values()]

    def spike(i, current):
        found.append(current)
        theta = np.broadcast_to(thresholds[i], current.shape[1:])
        return oracle.fire(neuron, theta, 0.25 * theta, current), theta[0]

    sequence = np.broadcast_to(it.inputs, (STEPS, *it.inputs.shape))
    oracle._evaluate(layers, it.variables, sequence, spike, "lateral")
    return dict(zip(it.network.neurons, found, strict=True))


def measured(model, spiking, it):
    """The current of every neuron at every step, `{name: [T, B, ...]}`."""
    drives = {}

    def respond(name, neuron, threshold, state, arriving, f):
        drives[name], _ = arriving
        return answer(neuron, threshold, state, arriving, f)

    def observe(state, info):
        return dict(drives)

    @nets.quick
    def run(spiking, inputs):
        circuit, leaves = prepare(model, spiking), model.network.leaves(inputs)
        return unroll(model, circuit, leaves, STEPS, observe, respond=respond)[1]

    return run(spiking, it.inputs)


@pytest.mark.parametrize(
    "name, share", [("vgg", 0.5718), ("windows", 0.5718), ("residual first", 1.0)]
)
def test_pooling_errs_by_gating_only(name, share):
    it, neuron = case(name), Burst(2)
    spiking = it.spiking(neuron, "channel", 0.0, share)
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


def test_the_causes_add_up_in_single_precision():
    """`errors` measures in single precision what it measures in double."""
    with jax.enable_x64(False):
        function, variables, inputs = nets.TABLE["resnet"]()
        network, neuron = trace(function, variables, inputs[:1]), Burst(3)
        thresholds = {
            name: x.astype(np.float32)
            for name, x in case("resnet").thresholds(neuron, "channel").items()
        }
        spiking = convert(network, variables, thresholds)
        single = analysis.errors(Model(network, neuron), spiking, inputs, 30)
    wide = jax.tree.map(lambda x: x.astype(np.float64), spiking)
    double = analysis.errors(
        case("resnet").model(neuron), wide, case("resnet").inputs, 30
    )
    for row, other in zip(single, double, strict=True):
        scale = row.activation
        parts = [row.mean[cause] for cause in analysis.CAUSES if cause in row.mean]
        np.testing.assert_allclose(sum(parts), row.mean["total"], atol=1e-5 * scale)
        assert row.size["total"].min() > 0
        for cause, size in row.size.items():
            expected = other.size[cause]
            np.testing.assert_allclose(size, expected, rtol=1e-3, atol=1e-4 * scale)


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
