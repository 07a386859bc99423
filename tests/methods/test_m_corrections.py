"""Corrections match means, and leave nothing behind when their steps are over."""

import jax
import numpy as np
import pytest
from nets import case

from jaxburst.convert import check_spiking
from jaxburst.methods import presets
from jaxburst.methods.corrections import correct
from jaxburst.neurons import Burst, Refining, Threshold
from jaxburst.run import infer

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield


def means(it, name, x):
    """Means of each channel, of `[B, ...]`."""
    axis = it.network.graph.channel_axes[name]
    return x.mean(tuple(i for i in range(x.ndim) if i != axis))


def test_corrections_match_mean_activations():
    it = case("resnet")
    neuron = Refining(15, 2, 0.75)
    model, spiking = it.model(neuron), it.spiking(Burst(2), initial=0.3)
    corrected = correct(model, spiking, it.inputs, 3)

    def gap(weights, name):
        """Mean estimate minus mean activation of each channel after three steps."""
        spikes = it.run(model, weights, 3).spikes[name]
        heard = weights[name].theta * np.tensordot(2.0 ** -np.arange(3), spikes, 1)
        return np.abs(
            means(it, name, heard) - means(it, name, it.activations[name])
        ).sum()

    assert all(len(corrected[name].bias) == 3 for name in it.network.neurons)
    first, *others = it.network.neurons
    for name in others:
        assert gap(corrected, name) < gap(spiking, name)


@pytest.mark.parametrize("name", ["nested", "channels first"])
def test_burst_corrections_match_mean_rates(name):
    it, neuron = case(name), Burst(5, signed=True)
    model = it.model(neuron)
    spiking = it.spiking(neuron, initial=0.0)  # rates are too low on average
    corrected = correct(model, spiking, it.inputs, 2)
    check_spiking(it.network, corrected)

    def gap(weights):
        trace = it.run(model, weights, 2)
        return sum(
            np.abs(
                means(it, name, weights[name].theta * trace.spikes[name].mean(0))
                - means(it, name, it.activations[name])
            ).sum()
            for name in it.network.neurons
        )

    assert gap(corrected) < 0.6 * gap(spiking)
    for name in it.network.neurons:
        rows = np.asarray(corrected[name].bias)
        assert len(rows) == 2
        np.testing.assert_array_equal(*rows)


@pytest.mark.parametrize("name", ["nested", "leaky"])
def test_each_population_hears_those_below_corrected(name):
    """One at a time, in the order of the network, which is not that of the names."""
    it, neuron = case(name), Burst(2)
    model, spiking = it.model(neuron), it.spiking(neuron, initial=0.2)
    names = it.network.neurons
    assert sorted(names) != list(names)
    corrected, weights = correct(model, spiking, it.inputs, 3), dict(spiking)
    for name in names:
        spikes = it.run(model, weights, 3).spikes[name]
        heard = means(it, name, weights[name].theta * spikes.mean(0))
        short = means(it, name, it.activations[name]) - heard
        found = np.asarray(corrected[name].bias)[0].ravel()
        np.testing.assert_allclose(found, short, rtol=0, atol=1e-9)
        weights[name] = corrected[name]


@pytest.mark.parametrize("signed", [False, True])
def test_corrections_of_each_step_match_the_spikes_of_each_step(signed):
    it, neuron = case("resnet"), Burst(5, signed=signed)
    model, spiking = it.model(neuron), it.spiking(neuron, initial=0.0)
    corrected = correct(model, spiking, it.inputs, 3, each_step=True)

    def gaps(weights):
        """Mean of every single step minus mean activation, `[3]`."""
        trace = it.run(model, weights, 3)
        gap = np.zeros(3)
        for name in it.network.neurons:
            for t, spikes in enumerate(trace.spikes[name]):
                sent = weights[name].theta * np.asarray(spikes)
                found = means(it, name, sent) - means(it, name, it.activations[name])
                gap[t] += np.abs(found).sum()
        return gap

    first = it.network.neurons[0]
    assert not np.allclose(corrected[first].bias[0], corrected[first].bias[2])
    assert (gaps(corrected) < 0.7 * gaps(spiking)).all()


def test_errors_keep_falling_beyond_the_corrected_steps():
    it = case("windows")
    inputs = np.random.default_rng(0).normal(size=(50, *it.network.input_shapes[0]))
    exact = np.asarray(it.function(it.variables, inputs))
    model, spiking = presets.refining(it.network, it.variables, inputs, progress=False)
    plain = {
        name: part._replace(bias=np.zeros(())) if isinstance(part, Threshold) else part
        for name, part in spiking.items()
    }
    logits = it.run(model, spiking, 16, inputs=inputs).logits
    errors = np.abs(logits - exact).max((1, 2))
    without = np.abs(np.asarray(infer(model, plain, inputs, 16)) - exact).max()
    assert errors[15] < 0.1 * errors[7] < 0.01 * errors[0]
    assert errors[15] < 10 * without


def test_a_correction_of_bursts_ends_with_its_steps():
    """Beyond them, T times the error is what it is without a limit on T (law 9)."""
    it, neuron = case("dense"), Burst(None)
    spiking = it.spiking(neuron, initial=0.5)
    model = it.model(neuron)
    corrected = correct(model, spiking, it.inputs, 4)
    steps = 256
    logits = np.asarray(it.run(model, corrected, steps).logits)
    error = np.abs(logits - it.outputs[0]).max((1, 2))
    assert steps * error[-1] < 2 * 64 * error[63:65].max() + 1


def test_presets_reach_the_network_in_a_few_steps():
    it = case("vgg")
    inputs = np.concatenate([it.inputs, -it.inputs, 2 * it.inputs])
    exact = np.asarray(it.function(it.variables, inputs))
    for preset, steps, share in (
        (lambda *args: presets.refining(*args, progress=False), 5, 0.1),
        (presets.paper, 40, 0.2),
    ):
        model, spiking = preset(it.network, it.variables, inputs)
        logits = it.run(model, spiking, steps, inputs=inputs).logits
        distance = np.abs(logits - exact).max((1, 2))
        assert distance[-1] < share * np.abs(exact).max()
        assert distance[-1] < distance[0]


@pytest.mark.parametrize("name", ["several", "recurrent"])
@pytest.mark.filterwarnings("ignore:populations that did not fire")
def test_the_preset_takes_any_network(name):
    it = case(name)
    model, spiking = presets.refining(
        it.network, it.variables, it.inputs, progress=False
    )
    found = jax.tree.leaves(infer(model, spiking, it.inputs, 12))
    for one, exact in zip(found, it.outputs, strict=True):
        np.testing.assert_allclose(one, exact, atol=0.02 * np.abs(exact).max())
