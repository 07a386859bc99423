"""Refining bursts: at every step the quantised network, finer and finer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from nets import LAYERS, case

import jaxburst as jb
from jaxburst.network import forward
from jaxburst.neurons import Burst, Refining, Threshold

pytestmark = pytest.mark.usefixtures("double")

STEPS = 5


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield


def quantised(it, layers, thresholds, quantum):
    """The trained network with activations rounded to `θ · quantum`, by the oracle."""

    def relu(i, current):
        theta = thresholds[i] * quantum
        levels = np.floor(np.maximum(current, 0) / theta + 0.5)
        return theta * levels, np.ones(())

    found, sent, _ = oracle._evaluate(layers, it.variables, it.inputs[None], relu, None)
    return found[0], [
        x[0] / (quantum * t) for x, t in zip(sent, thresholds, strict=True)
    ]


CASES = [("vgg", 2), ("resnet", 3), ("nested", 2), ("windows", 3), ("dense", 3)]


@pytest.mark.parametrize("name, ratio", CASES)
def test_without_silence_every_step_is_the_quantised_network(name, ratio):
    it, (layers, _) = case(name), LAYERS[name]
    per = "channel" if ratio == 2 else "layer"
    spiking = it.spiking(Burst(3), per)
    thresholds = [np.ravel(x) if x.ndim else x for x in
                  it.thresholds(Burst(3), per).values()]  # fmt: skip
    model = it.model(Refining(gamma=None, ratio=ratio, silence=0))
    trace = it.run(model, spiking, STEPS)
    distances = []
    for t in range(STEPS):
        logits, levels = quantised(it, layers, thresholds, float(ratio) ** -t)
        np.testing.assert_allclose(trace.logits[t], logits, rtol=0, atol=1e-11)
        for path, n in zip(it.network.neurons, levels, strict=True):
            worth = float(ratio) ** np.arange(t, -1, -1)  # in quanta of step t
            sent = np.tensordot(worth, trace.spikes[path][: t + 1], 1)
            np.testing.assert_array_equal(sent, np.round(n))
            assert n.any(), "the population fires"
        distances.append(np.abs(logits - it.outputs[0]).max())
    assert distances[-1] < 0.25 * distances[0], "and it approaches the network"


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_silence_saves_spikes_and_keeps_errors_below_it(name):
    it = case(name)
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(30, *it.inputs.shape[1:]))
    spiking = it.spiking(Burst(3))
    loud, quiet = (
        it.run(it.model(Refining(None, 2, h)), spiking, STEPS, inputs=inputs)
        for h in (0.0, 0.75)
    )
    first, *_ = names = it.network.neurons
    drive = forward(it.network, spiking, inputs)[1][first]
    theta = float(spiking[first].theta)
    for t in range(STEPS):
        worth = 2.0 ** -np.arange(t + 1)
        heard = theta * np.tensordot(worth, quiet.spikes[first][: t + 1], 1)
        assert np.abs(heard - drive).max() <= 0.75 * theta * 2.0**-t + 1e-12
    for path in names:
        later = np.abs(quiet.spikes[path][1:]).sum()
        assert 0 < later < 0.9 * np.abs(loud.spikes[path][1:]).sum()


def test_whole_numbers_of_either_sign_within_gamma():
    it = case("vgg")
    trace = it.run(it.model(Refining(3)), it.spiking(Burst(6), "channel"), STEPS)
    spikes = np.concatenate([np.ravel(n) for n in trace.spikes.values()])
    np.testing.assert_array_equal(spikes, np.round(spikes))
    assert spikes.min() < 0 < spikes.max() == 3, "the cap binds"
    assert spikes.min() >= -3


def test_by_hand():
    """θ = 1, r = 2, h = ¾, a drive of 2.3 that grows to 2.45 and falls to -1."""
    threshold = Threshold(jnp.array(1.0), jnp.array(0.5), jnp.array(0.0))
    neuron = Refining(gamma=None)
    state = neuron.rest(threshold, (1, 1), jnp.float64)
    expected = [
        # current, spikes, sent
        (2.3, 2, 2),  # rounds to 2 quanta of 1
        (0.15, 1, 5),  # 4.9 quanta of ½; 4 are sent, off by 0.9 > ¾
        (0.0, 0, 10),  # 9.8 quanta of ¼; 10 are sent, near enough
        (-3.45, -20, 0),  # everything is taken back
    ]
    for step, (current, spikes, sent) in enumerate(expected, 1):
        current, t = jnp.full((1, 1), current), jnp.array(step)
        state, n = neuron.step(threshold, state, current, t)
        assert (float(n[0, 0]), int(state.sent[0, 0])) == (spikes, sent)


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"gamma": 0}, "gamma"),
        ({"ratio": 1}, "ratio"),
        ({"ratio": 2.0}, "ratio"),
        ({"silence": 1.0}, "silence: .* in 0 <= x < 1, half of the ratio"),
        ({"silence": -0.1}, "silence"),
    ],
)
def test_impossible_settings_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(Refining(), **settings)


def test_more_steps_than_the_rounding_allows_are_refused():
    it = case("dense")
    with pytest.raises(ValueError, match="after 17 steps, found 18"):
        jb.infer(it.model(Refining()), it.spiking(Burst(3)), it.inputs, 18)
