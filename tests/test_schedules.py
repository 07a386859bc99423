"""The order of the work changes nothing but time and memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NAMES, STEPS, case, quick, relus

from jaxburst import simulation
from jaxburst.ann import Network
from jaxburst.conversion import convert
from jaxburst.direct import direct
from jaxburst.layers import Conv, Dense, Flatten, MaxPool, Relu
from jaxburst.neuron import Burst, Refining
from jaxburst.simulation import Model, Plan, infer, plan, simulate

pytestmark = pytest.mark.usefixtures("float64")

NEURONS = (Burst(4, signed=True), Refining(), Burst(2, allowance=2))


@pytest.mark.parametrize("neuron", NEURONS, ids=["signed", "refining", "SpiCalib"])
@pytest.mark.parametrize("name", NAMES)
def test_layer_by_layer_equals_step_by_step(name, neuron):
    it = case(name)
    model, images = Model(it.layers, neuron), jnp.asarray(it.images)
    spiking = it.spiking(Burst(3), "channel", 0.5)
    circuit = simulation.build(model, spiking, it.image_shape)
    record = relus(it.layers)
    orders = (Plan(1, 4), Plan(5, 2))  # blocks that leave a rest, images in parts

    def unroll(circuit, images, order):
        return simulation._unroll(model, circuit, images, STEPS, order, record)

    expected, found = (quick(unroll, 2)(circuit, images, order) for order in orders)
    assert all(count.any() for count in expected.events.values())
    assert expected.logits.shape[:2] == (STEPS, 4)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for path in record:
        np.testing.assert_array_equal(found.spikes[path], expected.spikes[path])
        np.testing.assert_allclose(
            found.potentials[path], expected.potentials[path], rtol=0, atol=1e-12
        )
    for path, count in expected.events.items():
        np.testing.assert_array_equal(found.events[path], count)
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("schedule", ["step", "layer", "auto"])
@pytest.mark.parametrize("batch", [4, 32])
def test_inference_is_the_last_step_of_a_simulation(schedule, batch):
    it = case(NAMES[0])
    model = Model(it.layers, Burst(3))
    images = jnp.asarray(np.tile(it.images, (batch // 4, 1, 1, 1)))
    spiking = it.spiking(Burst(3), "channel", 0.5)
    expected = simulate(model, spiking, images, 7, schedule=schedule)
    found = infer(model, spiking, images, 7, schedule=schedule)
    np.testing.assert_allclose(found, expected.logits[-1], rtol=0, atol=1e-12)


SUMS = (
    (Burst(None, signed=True), (1, 2, 5, STEPS)),
    (Refining(None, silence=0), (1, 2, 3, 6)),
    (Refining(None, ratio=3, silence=0), (1, 2, 4)),
)


@pytest.mark.parametrize("neuron, times", SUMS, ids=["burst", "halves", "thirds"])
@pytest.mark.parametrize("name", NAMES)
def test_one_pass_gives_the_logits_of_any_time(name, neuron, times):
    """Law 6. With corrections of each step, too."""
    it = case(name)
    model, images = Model(it.layers, neuron), jnp.asarray(it.images)
    rng = np.random.default_rng(0)
    spiking = dict(it.spiking(Burst(3), "channel", 0.37))
    for path in it.relus:
        theta = np.asarray(spiking[path].theta)
        bias = 0.05 * rng.normal(size=(3, *theta.shape)) * theta
        spiking[path] = spiking[path]._replace(bias=jnp.asarray(bias))
    trace = quick(simulate, (0, 3))(model, spiking, images, times[-1])
    found = direct(model, spiking, images, times)
    assert all(count.any() for count in trace.events.values())
    rows = np.array(times) - 1
    assert np.ptp(np.asarray(trace.logits)[rows], axis=0).max() > 1e-3
    np.testing.assert_allclose(found, trace.logits[rows], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "neuron", [Burst(5, signed=True), Burst(None), Refining(), Refining(None)]
)
def test_one_pass_is_refused_where_spikes_depend_on_more_than_sums(neuron):
    it = case(NAMES[0])
    spiking = it.spiking(Burst(3), "channel", 0.5)
    with pytest.raises(ValueError, match="use simulate"):
        direct(Model(it.layers, neuron), spiking, jnp.asarray(it.images), (1, 2))


def test_float32_spikes_alike_up_to_ties():
    """In single precision sums round differently in larger batches: few spikes move."""
    rng = np.random.default_rng(0)
    layers = (
        *(Conv(32), Relu(), Conv(32), Relu(), MaxPool(2), Conv(48), Relu()),
        *(Flatten(), Dense(10)),
    )
    with jax.enable_x64(False):
        images = jnp.asarray(rng.normal(size=(16, 8, 8, 3)), jnp.float32)
        variables = Network(layers).init(jax.random.key(0), images)
        thresholds = {path: jnp.float32(0.31) for path in relus(layers)}
        spiking = convert(layers, variables, thresholds)
        step, layer = (
            simulate(Model(layers, Burst(4)), spiking, images, 8, schedule=schedule)
            for schedule in ("step", "layer")
        )
    for path, count in step.events.items():
        moved = np.abs(np.asarray(count) - np.asarray(layer.events[path])).sum()
        assert np.asarray(count).sum() > 1000
        assert moved <= 1e-4 * np.asarray(count).sum()
    decided = (np.asarray(trace.logits)[-1].argmax(-1) for trace in (step, layer))
    np.testing.assert_array_equal(*decided)


@pytest.mark.parametrize("each, images", [(False, 50), (True, 10)])
def test_a_plan_says_what_it_chose(each, images, monkeypatch):
    monkeypatch.setattr(simulation, "one_core_each", lambda: each)
    assert plan(1, 16, "step") == Plan(1, 1)
    assert plan(1, 16, "layer") == Plan(16, 1)
    if jax.default_backend() == "cpu":
        assert plan(100, 1000, "step") == Plan(1, images)
        assert plan(100, 1000, "layer") == Plan(256 // images, images)
        assert plan(2 * 37, 1000) == Plan(1, 74 if each else 37)
    assert str(Plan(1, 32)) == "1 step of 32 images at a time"
    assert str(plan(1, 4)) == "4 steps, layer by layer, of 1 images at a time"
    with pytest.raises(ValueError, match="jaxburst.direct"):
        plan(1, 1, "direct")


def test_a_circuit_stands_for_the_weights_it_was_built_from():
    it = case(NAMES[0])
    model, images = Model(it.layers, Burst(3)), jnp.asarray(it.images)
    spiking = it.spiking(Burst(3), "channel", 0.5)
    circuit = simulation.build(model, spiking, it.image_shape)
    again = jax.tree.map(lambda x: x, circuit)
    assert isinstance(again, simulation.Circuit) and again == circuit
    expected = simulate(model, spiking, images, 5)
    found = simulate(model, circuit, images, 5)
    assert np.abs(expected.logits).max() > 0.1
    np.testing.assert_allclose(found.logits, expected.logits, rtol=0, atol=1e-12)
    logits = infer(model, circuit, images, 5)
    np.testing.assert_allclose(logits, expected.logits[-1], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="was built for images of"):
        infer(Model(it.layers, Burst(2)), circuit, images, 5)
    with pytest.raises(ValueError, match="was built for images of"):
        simulate(model, circuit, images[:, 1:], 5)
    with pytest.raises(ValueError, match="steps must be a whole number"):
        infer(model, circuit, images, 0)
    unbounded = Model(it.layers, Burst(None, signed=True))
    circuit = simulation.build(unbounded, spiking, it.image_shape)
    with pytest.raises(ValueError, match="only infer, simulate and evaluate"):
        direct(unbounded, circuit, images, (1, 2))
