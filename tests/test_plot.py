"""Pictures show what was measured, and say what is missing."""

import sys

import matplotlib

matplotlib.use("agg")

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

import jaxburst as jb
from jaxburst import plot
from jaxburst.methods.analysis import LayerReport
from jaxburst.run import Trace


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def ran():
    data = jb.data.digits()
    net = jb.zoo.resnet_tiny(10)
    inputs = data.train.inputs[:40]
    variables = net.init(jax.random.key(0), inputs[:1])
    network = jb.trace(net.apply, variables, inputs[:1])
    return network, variables, inputs


@pytest.mark.parametrize("kind", ["bursts", "refining"])
def test_raster_and_membrane_are_the_spikes_of_the_trace(ran, kind):
    network, variables, inputs = ran
    if kind == "bursts":
        neuron = jb.Burst(5)
        thresholds = jb.calibrate(network, variables, inputs, neuron)
        model = jb.Model(network, neuron)
        spiking = jb.convert(network, variables, thresholds)
    else:
        model, spiking = jb.presets.refining(network, variables, inputs)
    name = network.neurons[1]
    trace = jb.simulate(model, spiking, inputs[:2], 4, record=name)
    spikes = np.asarray(trace.spikes[name])[:, 1].reshape(4, -1)
    assert np.abs(spikes).sum() > 100
    axes = plot.raster(trace, name, image=1, neurons=10**6)
    dots = sum(len(dots.get_offsets()) for dots in axes.collections)
    assert dots == np.count_nonzero(spikes)
    assert f"{np.abs(spikes).sum():,.0f} spikes" in axes.get_title()
    for wrong in (99, (10**6,), ()):
        with pytest.raises(ValueError, match="neurons: expected 1 to 12 of .* found"):
            plot.membrane(model, spiking, trace, name, neurons=wrong)
    axes = plot.membrane(model, spiking, trace, name, image=1, neurons=2)
    shown = [int(t.get_text().replace("−", "-")) for row in axes for t in row.texts]
    busiest = np.sort(np.argsort(-np.abs(spikes).sum(0), kind="stable")[:2])
    expected = spikes[:, busiest].T.reshape(-1)
    assert shown == [n for n in expected if n]
    if kind == "bursts":  # the picture obeys the law of charge
        _, levels = axes[0].lines[0].get_data()
        theta = float(np.ravel(spiking[name].theta)[0])
        np.testing.assert_allclose(
            levels[1::2] - levels[2::2], theta * spikes[:, busiest[0]], atol=1e-5
        )


def test_what_all_spikes_say_is_what_the_report_says(ran):
    network, variables, inputs = ran
    model, spiking = jb.presets.refining(network, variables, inputs)
    rows = plot.rates(model, spiking, inputs[:4], 3, names=network.neurons[:2])
    report = jb.analysis.report(model, spiking, inputs[:4], 3)
    for axes, row in zip(rows, report[:2], strict=True):
        assert f"{row.error:.2g}" in axes.get_title() and row.error > 0


def test_a_graph_shows_every_synapse_neuron_and_pool_once():
    for name in ("vgg_tiny", "resnet_tiny"):
        net = jb.zoo.NETWORKS[name](10)
        images = np.ones((1, 8, 8, 1), np.float32)
        variables = net.init(jax.random.key(0), images)
        network = jb.trace(net.apply, variables, images)
        axes = plot.graph(network)
        texts = filter(None, (text.get_text() for text in axes.texts))
        shown = [text.splitlines()[0] for text in texts]
        for node in (*network.synapses, *network.neurons, *network.pools):
            assert shown.count(node) == 1


def test_accuracy_marks_powers_of_two_and_says_what_lies_below():
    long = jb.evaluation.Curves(np.linspace(0.85, 0.92, 40), {}, 1000)
    poor = jb.evaluation.Curves(np.full(40, 0.3), {}, 1000)
    energy = {"good": np.linspace(0.1, 2, 40), "poor": np.linspace(0.001, 9, 40)}
    axes = plot.accuracy({"good": long, "poor": poor}, energy=energy, ann=0.92)
    texts = [text.get_text() for text in axes.get_legend().get_texts()]
    assert texts == ["good", "poor (below)", "ANN, 92.00%"]
    assert axes.lines[0].get_markevery() == [0, 1, 3, 7, 15, 31]
    assert "T = 1, 2, 4" in axes.get_xlabel()
    low, high = axes.get_xlim()  # of what can be seen
    assert 0.05 < low < 0.1 and 2 < high < 3


def test_errors_name_what_is_wrong(ran, monkeypatch):
    trace = Trace(None, {}, {"relu0": np.ones((2, 3, 4))}, {})
    with pytest.raises(ValueError, match="relu1: it was not recorded.*relu0"):
        plot.raster(trace, "relu1")
    with pytest.raises(ValueError, match="one of the 3"):
        plot.raster(trace, "relu0", image=3)
    with pytest.raises(ValueError, match="expected 2 to draw on, found 1"):
        row = LayerReport("relu0", *np.ones(len(LayerReport._fields) - 1))
        plot.layers([row], axes=[plt.gca()])
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"jaxburst\[plot\]"):
        plot.raster(trace, "relu0")
