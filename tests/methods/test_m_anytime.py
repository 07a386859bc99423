"""An image that stops early is the whole simulation, cut short for that image."""

import inspect

import jax
import numpy as np
import pytest
from nets import case

from jaxburst import energy
from jaxburst.convert import convert
from jaxburst.evaluation import evaluate
from jaxburst.methods import anytime
from jaxburst.methods.anytime import Margins, decide, evaluate_anytime, settle
from jaxburst.neurons import Burst, Refining
from jaxburst.run import Model
from jaxburst.tracing import trace

pytestmark = pytest.mark.usefixtures("double")

STEPS = 4


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield


def network(name, neuron, count, seed=5):
    """A network of the table, and random images for it."""
    it = case(name)
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(count, *it.network.input_shapes[0]))
    return it.model(neuron), it.spiking(Burst(3), "channel", 0.4), images


def course(name, neuron, spiking, images):
    """Decisions and margins after each step, `[T, B]`, of a whole simulation."""
    it = case(name)
    trace = it.run(it.model(neuron), spiking, STEPS, inputs=images)
    logits = np.asarray(trace.logits)
    second, first = np.moveaxis(np.sort(logits)[..., -2:], -1, 0)
    return logits.argmax(-1), first - second, trace.events


def gradual(margins):
    """Thresholds that some of those still running reach at every step."""
    running, found = np.ones(margins.shape[1], bool), []
    for margin in margins:
        found.append(np.quantile(margin[running], 0.7) if running.any() else 0.0)
        running &= margin < found[-1]
    return np.array(found)


EACH = [("windows", Refining(), 14), ("resnet", Burst(5), 5)]  # margins that differ
EACH += [("channels first", Refining(), 5), ("spellings", Burst(5), 5)]
EACH += [("recurrent", Refining(), 5)]


@pytest.mark.parametrize("name, neuron, seed", EACH)
def test_each_image_is_as_in_a_simulation_up_to_its_own_step(name, neuron, seed):
    """Leaving the batch, and the batch shrinking, changes nothing for who stays."""
    model, spiking, images = network(name, neuron, 7, seed)
    classes, margins, events = course(name, neuron, spiking, images)
    threshold = gradual(margins)
    found = decide(model, spiking, images, Margins(threshold))
    settled = margins >= threshold.reshape(-1, 1)
    settled[-1] = True
    np.testing.assert_array_equal(found.steps, settled.argmax(0) + 1)
    # Batches of 7, 7, 3 and 3: with and without those who have stopped.
    assert np.bincount(found.steps).tolist() == [0, 2, 2, 1, 2]
    last = classes[found.steps - 1, np.arange(7)]
    np.testing.assert_array_equal(found.classes, last)
    ran = np.arange(1, STEPS + 1).reshape(-1, 1) <= found.steps
    assert set(found.events) == set(events)
    for path, count in events.items():
        np.testing.assert_array_equal(found.events[path], np.asarray(count) * ran)
        assert found.events[path].any()


@pytest.fixture(scope="module")
def labelled(double):
    """Forty images for a pooled network, and its weights."""
    model, spiking, images = network("windows", Refining(), 40)
    labels = np.random.default_rng(7).integers(0, 3, 40, dtype=np.int32)
    return model, spiking, (images, labels)


def anyhow(labelled, threshold):
    rule = Margins(np.asarray(threshold))
    return evaluate_anytime(*labelled, rule, batch_size=16, progress=False)


def rules(labelled):
    """Margins that more and more of the images have at the first step."""
    model, spiking, (images, _) = labelled
    _, margins, _ = course("windows", model.neuron, spiking, images)
    levels = np.unique(margins[0].round(6))  # few, as whole numbers come in
    return (levels[1:] + levels[:-1])[::-1] / 2


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
    model = labelled[0]
    found = [anyhow(labelled, [threshold] * STEPS) for threshold in rules(labelled)]
    steps = [one.steps for one in found]
    assert 1 < steps[-1] and steps[0] < STEPS
    assert steps == sorted(set(steps), reverse=True)
    spent = [energy.joules(model.network, one.events)[-1] for one in found]
    assert spent == sorted(set(spent), reverse=True)
    for one in found:
        assert one.stopped.sum() == 40 and len(one.stopped) == STEPS
        assert one.steps == pytest.approx(one.stopped @ np.arange(1, 5) / 40)


def test_each_size_is_compiled_once(labelled, monkeypatch):
    """Sixteen images at a time: 16, 8, 4 and 2, whoever stops when."""
    jax.clear_caches()
    block, sizes = anytime.block, []

    def traced(model, circuit, held, state):
        sizes.append(len(state["outputs"][0]))
        return block(model, circuit, held, state)

    monkeypatch.setattr(anytime, "block", traced)
    for threshold in (np.inf, *rules(labelled)):
        anyhow(labelled, [threshold] * STEPS)
    assert sorted(sizes) == [2, 4, 8, 16]


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
    arguments = ["model", "spiking", "inputs", "steps", "agreement", "batch_size"]
    assert list(inspect.signature(settle).parameters) == arguments


@pytest.mark.parametrize("agreement", [-0.1, 1.01, 99.5])
def test_an_agreement_that_is_no_share_is_refused(agreement):
    with pytest.raises(
        ValueError, match="agreement: expected a number between 0 and 1"
    ):
        settle(*network("resnet", Burst(5), 2), STEPS, agreement=agreement)


@pytest.mark.parametrize("threshold", [1.0, [], [[1.0]], [1.0, np.nan]])
def test_margins_of_another_form_are_refused(labelled, threshold):
    with pytest.raises(ValueError, match="margins.threshold: expected"):
        anyhow(labelled, threshold)


def test_nothing_to_look_at_is_refused(labelled):
    model, spiking, (images, labels) = labelled
    with pytest.raises(ValueError, match="at least one"):
        settle(model, spiking, images[:0], STEPS)
    with pytest.raises(ValueError, match="at least one"):
        rule = Margins(np.zeros(STEPS))
        evaluate_anytime(model, spiking, (images[:0], labels[:0]), rule)


def test_what_does_not_fit_is_refused(labelled):
    model, spiking, (images, labels) = labelled
    rule = Margins(np.zeros(STEPS))
    with pytest.raises(TypeError, match="found uint8"):
        decide(model, spiking, images.astype(np.uint8), rule)
    with pytest.raises(ValueError, match="the converted network has no weights"):
        first = {"conv0": spiking["conv0"]}
        evaluate_anytime(model, first, (images, labels), rule)
    weights, inputs = np.ones((2, 1)), np.ones((1, 2))
    single = trace(lambda w, x: jax.nn.relu(x @ w), weights, inputs)
    spiking = convert(single, weights, {"relu0": 1.0})
    with pytest.raises(ValueError, match="two classes or more"):
        decide(Model(single), spiking, inputs, rule)
    for it in map(case, ("u net", "several")):
        with pytest.raises(ValueError, match="two classes or more"):
            decide(it.model(), it.spiking(Burst(5)), it.inputs, rule)
