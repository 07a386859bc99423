"""Refining bursts: at every step the quantised network, finer and finer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from networks import NAMES, case

import jaxburst as jb
from jaxburst.neuron import Burst, Membrane, Refining, Threshold, refine

pytestmark = pytest.mark.usefixtures("float64")

STEPS = 5


def quantised(it, thresholds, quantum):
    """The trained network with activations rounded to `θ · quantum`, by the oracle."""

    levels = {}

    def relu(path, current):
        theta = thresholds[path] * quantum
        levels[path] = np.floor(np.maximum(current[0], 0) / theta + 0.5)
        return theta * levels[path][None], np.ones(())

    logits, _, _ = oracle._evaluate(
        it.layers, it.variables, it.images[None], relu, None
    )
    return logits[0], levels


@pytest.mark.parametrize("ratio", [2, 3])
@pytest.mark.parametrize("name", NAMES)
def test_without_silence_every_step_is_the_quantised_network(name, ratio):
    it = case(name)
    neuron = Refining(gamma=None, ratio=ratio, silence=0)
    thresholds = it.thresholds(Burst(3), "channel" if ratio == 2 else "layer")
    spiking = it.spiking(Burst(3), "channel" if ratio == 2 else "layer", 0.5)
    trace = it.simulate(spiking, neuron, steps=STEPS)
    distances = []
    for t in range(STEPS):
        logits, levels = quantised(it, thresholds, float(ratio) ** -t)
        np.testing.assert_allclose(trace.logits[t], logits, rtol=0, atol=1e-11)
        for path, n in levels.items():
            worth = float(ratio) ** np.arange(t, -1, -1)  # in quanta of step t
            sent = np.tensordot(worth, trace.spikes[path][: t + 1], 1)
            np.testing.assert_array_equal(sent, n)
            assert n.any(), "the layer fires"
        distances.append(np.abs(logits - it.logits).max())
    assert distances[-1] < 0.25 * distances[0], "and it approaches the network"


@pytest.mark.parametrize("name", ["vgg", "resnet", "nested"])
def test_silence_saves_spikes_and_keeps_errors_below_it(name):
    it = case(name)
    spiking = it.spiking(Burst(3), "layer", 0.5)
    loud = it.simulate(spiking, Refining(None, 2, 0.0), steps=STEPS)
    quiet = it.simulate(spiking, Refining(None, 2, 0.75), steps=STEPS)
    first = next(iter(it.activations))
    drive, theta = it.activations[first], spiking[first].theta
    for t in range(STEPS):
        worth = 2.0 ** -np.arange(t + 1)
        heard = theta * np.tensordot(worth, quiet.spikes[first][: t + 1], 1)
        assert np.abs(heard - drive).max() <= 0.75 * float(theta) * 2.0**-t + 1e-12
    for path in it.relus:
        later = np.abs(quiet.spikes[path][1:]).sum()
        assert 0 < later < np.abs(loud.spikes[path][1:]).sum()


def test_whole_numbers_of_either_sign_within_gamma():
    it = case("vgg")
    trace = it.simulate(it.spiking(Burst(6), "channel", 0.5), Refining(3), steps=STEPS)
    spikes = np.concatenate([np.ravel(n) for n in trace.spikes.values()])
    np.testing.assert_array_equal(spikes, np.round(spikes))
    assert spikes.min() < 0 < spikes.max() == 3, "the cap binds"
    assert spikes.min() >= -3


def test_prefix_and_batch():
    it = case("resnet")
    spiking, neuron = it.spiking(Burst(3), "layer", 0.5), Refining()
    trace = it.simulate(spiking, neuron, steps=STEPS)
    shorter = it.simulate(spiking, neuron, steps=3)
    # Blocks of another length may round differently.
    np.testing.assert_allclose(trace.logits[:3], shorter.logits, rtol=0, atol=1e-12)
    order = np.arange(len(it.images))[::-1]
    turned = it.simulate(spiking, neuron, images=it.images[order], steps=STEPS)
    np.testing.assert_allclose(turned.logits[:, order], trace.logits, atol=1e-12)
    model = jb.Model(it.layers, neuron)
    last = jb.infer(model, spiking, jnp.asarray(it.images), STEPS)
    np.testing.assert_allclose(last, trace.logits[-1], atol=1e-12)


def test_refine_by_hand():
    """θ = 1, r = 2, h = ¾, a drive of 2.3 that grows to 2.45 and falls to -1."""
    threshold = Threshold(jnp.array(1.0), jnp.array(0.5), jnp.array(0.0))
    membrane = Membrane(jnp.zeros((1, 1)), jnp.zeros((1, 1), jnp.int32))
    expected = [
        # current, quanta wanted, spikes, sent
        (2.3, 2.3, 2, 2),  # rounds to 2 quanta of 1
        (0.15, 4.9, 1, 5),  # 4.9 quanta of ½; 4 are sent, off by 0.9 > ¾
        (0.0, 9.8, 0, 10),  # 9.8 quanta of ¼; 10 are sent, near enough
        (-3.45, 0.0, -20, 0),  # everything is taken back
    ]
    for step, (current, _, spikes, sent) in enumerate(expected, 1):
        current = jnp.full((1, 1), current)
        neuron, t = Refining(gamma=None), jnp.array(step)
        membrane, n = refine(neuron, threshold, membrane, current, t)
        assert (float(n[0, 0]), int(membrane.sent[0, 0])) == (spikes, sent)


def test_corrections_match_mean_activations():
    it = case("resnet")
    neuron, images = Refining(15, 2, 0.75), jnp.asarray(it.images)
    model = jb.Model(it.layers, neuron)
    spiking = it.spiking(Burst(2), "layer", 0.3)
    corrected = jb.correct(model, spiking, images, 3)

    def gap(weights, path):
        """Mean estimate minus mean activation of each channel after three steps."""
        spikes = it.simulate(weights, neuron, steps=3).spikes[path]
        heard = weights[path].theta * np.tensordot(2.0 ** -np.arange(3), spikes, 1)
        axes = tuple(range(heard.ndim - 1))
        return np.abs(heard.mean(axes) - it.activations[path].mean(axes)).sum()

    assert all(corrected[path].bias.shape[0] == 3 for path in it.relus)
    for path in it.relus[1:]:
        assert gap(corrected, path) < gap(spiking, path)


def test_burst_corrections_match_mean_rates():
    it = case("resnet")
    neuron, images = Burst(5, signed=True), jnp.asarray(it.images)
    model = jb.Model(it.layers, neuron)
    spiking = it.spiking(neuron, "layer", 0.0)  # rates are too low on average
    corrected = jb.correct(model, spiking, images, 2)

    def gap(weights):
        trace = it.simulate(weights, neuron, steps=2)
        return sum(
            np.abs(
                weights[path].theta * trace.spikes[path].mean(0).mean((0, 1, 2))
                - it.activations[path].mean((0, 1, 2))
            ).sum()
            for path in it.relus
        )

    assert gap(corrected) < 0.6 * gap(spiking)


@pytest.mark.parametrize("signed", [False, True])
def test_corrections_of_each_step_match_the_spikes_of_each_step(signed):
    it = case("resnet")
    neuron, images = Burst(5, signed=signed), jnp.asarray(it.images)
    model = jb.Model(it.layers, neuron)
    spiking = it.spiking(neuron, "layer", 0.0)
    corrected = jb.correct(model, spiking, images, 3, each_step=True)

    def gaps(weights):
        """Mean of every single step minus mean activation, `[3]`."""
        trace = it.simulate(weights, neuron, steps=3)
        gap = np.zeros(3)
        for path in it.relus:
            sent = float(weights[path].theta) * np.asarray(trace.spikes[path])
            means = sent.mean((1, 2, 3))
            gap += np.abs(means - it.activations[path].mean((0, 1, 2))).sum(1)
        return gap

    assert all(corrected[path].bias.shape[0] == 3 for path in it.relus)
    assert not np.allclose(corrected["relu0"].bias[0], corrected["relu0"].bias[2])
    assert (gaps(corrected) < 0.7 * gaps(spiking)).all()


def test_the_last_correction_stays():
    it = case("vgg")
    neuron = Burst(5)
    spiking = it.spiking(neuron, "layer", 0.5)
    model = jb.Model(it.layers, neuron)
    short = jb.correct(model, spiking, jnp.asarray(it.images), 2, each_step=True)
    longer = {
        path: part._replace(bias=part.bias[np.array([0, 1, 1, 1])])
        if isinstance(part, Threshold)
        else part
        for path, part in short.items()
    }
    one, other = (it.simulate(weights, neuron) for weights in (short, longer))
    assert sum(np.abs(n).sum() for n in one.spikes.values()) > 0
    np.testing.assert_array_equal(one.logits, other.logits)


def test_least_squares_thresholds_beat_their_neighbours():
    it = case("vgg")
    with pytest.warns(UserWarning, match="did not fire"):
        thresholds = jb.calibrate_mse(it.layers, it.variables, it.images, Burst(3))
    for path, activations in it.activations.items():
        values = activations.reshape(-1, activations.shape[-1])

        def error(theta, values=values):
            levels = np.clip(np.floor(values / theta + 0.5), 0, 3)
            return np.square(theta * levels - values).sum(0)

        theta = np.asarray(thresholds[path])
        best = error(theta)
        step = values.max(0) / 3 / 100
        alive = values.max(0) > 0
        for other in (theta + step, theta - step):
            usable = alive & (other > 0) & (other <= values.max(0) / 3)
            other = np.where(usable, other, 1)
            assert (best <= error(other) + 1e-9)[usable].all()
        assert (best < error(values.max(0).max() / 3))[alive].any()


def test_refining_networks_are_saved_with_their_corrections(tmp_path):
    it = case("nested")
    model = jb.Model(it.layers, Refining(7, 3, 1.0))
    spiking = it.spiking(Burst(2), "channel", 0.4)
    spiking = jb.correct(model, spiking, jnp.asarray(it.images), 2)
    folder = jb.save(tmp_path / "net", model, spiking)
    loaded_model, loaded, _ = jb.load(folder)
    assert loaded_model == model
    jax.tree.map(np.testing.assert_array_equal, loaded, spiking)


def test_report_of_refining_neurons_approaches_the_activations():
    it = case("resnet")
    model = jb.Model(it.layers, Refining(None))
    spiking = it.spiking(Burst(2), "layer", 0.5)
    early, late = (
        jb.analysis.report(model, spiking, jnp.asarray(it.images), steps)
        for steps in (1, 8)
    )
    for first, last in zip(early, late, strict=True):
        assert last.error < 0.1 * first.error
        assert last.saturated == 0


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"gamma": 0}, "gamma"),
        ({"ratio": 1}, "ratio"),
        ({"ratio": 2.0}, "ratio"),
        ({"silence": 1.0}, "silence must be at least 0 and less than ratio / 2 = 1"),
        ({"silence": -0.1}, "silence"),
    ],
)
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(Refining(), **settings)


def test_presets_reach_the_network_in_a_few_steps():
    it = case("vgg")
    images = np.concatenate([it.images, -it.images, 2 * it.images])
    with jax.enable_x64(False):
        single = jax.tree.map(lambda x: np.asarray(x, np.float32), it.variables)
        images = images.astype(np.float32)
        logits, _ = jb.ann.apply(it.layers, single, images)
        for preset, steps, share in (
            (jb.presets.refining, 5, 0.1),
            (jb.presets.paper, 40, 0.2),
        ):
            model, spiking = preset(it.layers, single, images)
            trace = jb.simulate(model, spiking, images, steps)
            distance = np.abs(np.asarray(trace.logits) - np.asarray(logits)).max((1, 2))
            assert distance[-1] < share * np.abs(logits).max()
            assert distance[-1] < distance[0]


def test_more_steps_than_the_rounding_allows_are_refused():
    it = case("vgg")
    spiking = it.spiking(Burst(3), "layer", 0.5)
    model = jb.Model(it.layers, Refining())
    with pytest.raises(ValueError, match="after 17 steps, found 18"):
        jb.infer(model, spiking, jnp.asarray(it.images), 18)


def test_refining_bursts_are_not_gated():
    with pytest.raises(ValueError, match="use pool='lateral'"):
        jb.Model(case("vgg").layers, Refining(), "gated")
