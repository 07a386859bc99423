"""An image that stops early is the whole simulation, cut short for that image."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import case

import jaxburst as jb
from jaxburst import anytime
from jaxburst.anytime import Margins, decide, evaluate_anytime, settle
from jaxburst.data import Split
from jaxburst.neuron import Burst, Refining
from jaxburst.simulation import Model, evaluate

pytestmark = pytest.mark.usefixtures("float64")

STEPS = 4


def network(name, neuron, count):
    """A network of the table, and random images for it."""
    it = case(name)
    spiking = it.spiking(Burst(3), "channel", 0.4)
    images = np.random.default_rng(5).normal(size=(count, *it.image_shape))
    return Model(it.layers, neuron), spiking, images


def course(name, neuron, spiking, images):
    """Decisions and margins after each step, `[T, B]`, of a whole simulation."""
    trace = case(name).simulate(spiking, neuron, images=images, steps=STEPS)
    logits = np.asarray(trace.logits)
    second, first = np.moveaxis(np.sort(logits)[..., -2:], -1, 0)
    return logits.argmax(-1), first - second, trace.events


def gradual(margins):
    """Thresholds that some of those still running reach at every step."""
    running, found = np.ones(margins.shape[1], bool), []
    for margin in margins:
        found.append(np.quantile(margin[running], 0.7))
        running &= margin < found[-1]
    return np.array(found)


@pytest.mark.parametrize("neuron", [Burst(5), Refining()], ids=["burst", "refining"])
@pytest.mark.parametrize("name", ["windows", "resnet"])
def test_each_image_is_as_in_a_simulation_up_to_its_own_step(name, neuron):
    """Leaving the batch, and the batch shrinking, changes nothing for who stays."""
    model, spiking, images = network(name, neuron, 7)
    classes, margins, events = course(name, neuron, spiking, images)
    threshold = gradual(margins)
    found = decide(model, spiking, jnp.asarray(images), Margins(threshold))
    settled = margins >= threshold.reshape(-1, 1)
    settled[-1] = True
    np.testing.assert_array_equal(found.steps, settled.argmax(0) + 1)
    # Batches of 7, 7, 3 and 3: with and without those who have stopped.
    assert np.bincount(found.steps).tolist() == [0, 2, 2, 1, 2]
    last = classes[found.steps - 1, np.arange(7)]
    np.testing.assert_array_equal(found.classes, last)
    ran = np.arange(1, STEPS + 1).reshape(-1, 1) <= found.steps
    assert list(found.events) == list(events)
    for path, count in events.items():
        np.testing.assert_array_equal(found.events[path], np.asarray(count) * ran)
        assert found.events[path].any()


@pytest.fixture(scope="module")
def labelled(float64):
    """Forty images for a pooled network, and its weights, in single precision."""
    model, spiking, images = network("windows", Refining(), 40)
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, images.shape, dtype=np.uint8)
    labels = rng.integers(0, 3, 40, dtype=np.int32)
    split = Split(images, labels, (0.5, 0.4), (0.3, 0.2))
    return model, jax.tree.map(lambda x: x.astype(jnp.float32), spiking), split


def anyhow(labelled, threshold):
    rule = Margins(np.asarray(threshold))
    return evaluate_anytime(*labelled, rule, batch_size=16, progress=False)


@pytest.mark.parametrize("threshold, steps", [(np.inf, STEPS), (0.0, 1)])
def test_the_extremes_are_fixed_numbers_of_steps(labelled, threshold, steps):
    found = anyhow(labelled, [threshold] * STEPS)
    curves = evaluate(*labelled, steps, batch_size=16, progress=False)
    assert found.accuracy == curves.accuracy[-1]
    assert (found.steps, found.images) == (steps, 40)
    assert list(found.events) == list(curves.events)
    for path, events in curves.events.items():
        np.testing.assert_array_equal(found.events[path][:steps], events)
        assert not found.events[path][steps:].any()


def test_looser_margins_take_fewer_steps_and_less_energy(labelled):
    model, _, split = labelled
    rules = [0.2, 0.1, 0.05, 0.02]
    found = [anyhow(labelled, [threshold] * STEPS) for threshold in rules]
    steps = [one.steps for one in found]
    assert 1 < steps[-1] and steps[0] < STEPS
    assert steps == sorted(set(steps), reverse=True)
    energy = [
        jb.energy.joules(model.layers, split.images.shape[1:], one.events)[-1]
        for one in found
    ]
    assert energy == sorted(set(energy), reverse=True)
    for one in found:
        assert one.stopped.sum() == 40 and len(one.stopped) == STEPS
        assert one.steps == pytest.approx(one.stopped @ np.arange(1, 5) / 40)


def test_each_size_is_compiled_once(labelled):
    """Sixteen images at a time: 16, 8, 4 and 2, whoever stops when."""
    anytime._advance.clear_cache()
    for threshold in (np.inf, 0.2, 0.1, 0.05, 0.02):
        anyhow(labelled, [threshold] * STEPS)
    assert anytime._advance._cache_size() == 4


@pytest.mark.parametrize("agreement", [0.0, 0.8, 0.95, 1.0])
def test_calibrated_margins_agree_and_none_smaller_does(agreement):
    name, neuron = "resnet", Burst(5)
    model, spiking, images = network(name, neuron, 60)
    rule = settle(model, spiking, images, STEPS, agreement=agreement, batch_size=25)
    found = rule.threshold
    classes, margins, _ = course(name, neuron, spiking, images)
    agrees, running = classes == classes[-1], np.ones(60, bool)
    assert not agrees[0].all()
    for t in range(STEPS):

        def share(threshold, t=t, running=running):
            return agrees[t, running & (margins[t] >= threshold)].mean()

        stops = running & (margins[t] >= found[t])
        if stops.any():
            assert share(found[t]) >= agreement
        for smaller in margins[t, running & (margins[t] < found[t])]:
            assert share(smaller) < agreement
        running = running & ~stops
    assert not running.any(), "after the last step every image stops"


def test_margins_by_hand():
    margins = np.array([5.0, 4.0, 4.0, 3.0, 1.0])
    agrees = np.array([True, True, False, True, True])
    assert anytime._least(margins, agrees, 1.0) == 4.5  # those that tie stop together
    assert anytime._least(margins, agrees, 0.7) == 0.0
    assert anytime._least(margins, ~agrees, 0.3) == 3.5
    assert anytime._least(margins, ~agrees, 0.5) == np.inf
    assert anytime._least(margins[:0], agrees[:0], 0.0) == np.inf


def test_no_label_can_reach_the_calibration():
    arguments = ["model", "spiking", "images", "steps", "agreement", "batch_size"]
    assert list(inspect.signature(settle).parameters) == arguments


@pytest.mark.parametrize("agreement", [-0.1, 1.01, 99.5])
def test_an_agreement_that_is_no_share_is_refused(agreement):
    with pytest.raises(ValueError, match=r"agreement must lie in 0 .. 1, found"):
        settle(*network("resnet", Burst(5), 2), STEPS, agreement=agreement)


@pytest.mark.parametrize("threshold", [1.0, [], [[1.0]], [1.0, np.nan]])
def test_margins_of_another_form_are_refused(labelled, threshold):
    with pytest.raises(ValueError, match="one threshold per time step"):
        anyhow(labelled, threshold)


def test_nothing_to_look_at_is_refused(labelled):
    model, spiking, split = labelled
    with pytest.raises(ValueError, match="the calibration set is empty"):
        settle(model, spiking, split.inputs[:0], STEPS)
    with pytest.raises(ValueError, match="no images in this split"):
        evaluate_anytime(model, spiking, split[:0], Margins(np.zeros(STEPS)))


def test_what_does_not_fit_is_refused(labelled):
    model, spiking, split = labelled
    rule = Margins(np.zeros(STEPS))
    with pytest.raises(TypeError, match="found uint8"):
        decide(model, spiking, split.images, rule)
    with pytest.raises(ValueError, match="relu0: the converted network has no weights"):
        evaluate_anytime(model, {"conv0": spiking["conv0"]}, split, rule)
    last = dataclasses.replace(model.layers[-1], features=1)
    single = dataclasses.replace(model, layers=(*model.layers[:-1], last))
    with pytest.raises(ValueError, match="two classes or more"):
        decide(single, spiking, split.inputs, rule)
