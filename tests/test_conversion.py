"""Conversion changes the way a network is written, and nothing else."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import NAMES, case, quick

from jaxburst.conversion import convert, forward, normalise, verify
from jaxburst.layers import Conv, Dense, Flatten, MaxPool, Relu
from jaxburst.neuron import Burst, Threshold
from jaxburst.simulation import Model, simulate

pytestmark = pytest.mark.usefixtures("float64")

GOLDEN = np.load(Path(__file__).parent / "golden" / "vgg_small.npz")
CONVS = [f"conv{i}" for i in range(4)]
RELUS = [f"relu{i}" for i in range(4)]

_convert = quick(convert)
_forward = quick(forward)
_normalise = quick(normalise, (0, 2))


def golden_conv(i):
    features = GOLDEN[f"conv{i}_bias"].size
    return Conv(features, bias=True, norm=True), Relu()


GOLDEN_LAYERS = (
    *(*golden_conv(0), MaxPool(2), *golden_conv(1), *golden_conv(2), MaxPool(2)),
    *(*golden_conv(3), MaxPool(2), Flatten(), Dense(10)),
)


def golden_variables():
    params = {
        conv: {
            "kernel": GOLDEN[f"conv{i}_kernel"],
            "bias": GOLDEN[f"conv{i}_bias"],
            "norm": {name: GOLDEN[f"norm{i}_{name}"] for name in ("scale", "bias")},
        }
        for i, conv in enumerate(CONVS)
    }
    dense = {"kernel": GOLDEN["dense_kernel"], "bias": GOLDEN["dense_bias"]}
    stats = {
        conv: {"norm": {name: GOLDEN[f"norm{i}_{name}"] for name in ("mean", "var")}}
        for i, conv in enumerate(CONVS)
    }
    return {"params": params | {"dense0": dense}, "batch_stats": stats}


def golden_spiking():
    thresholds = dict(zip(RELUS, GOLDEN["scales"], strict=True))
    return _convert(GOLDEN_LAYERS, golden_variables(), thresholds, initial=0.0)


@quick
def _golden_simulate(model, spiking, images):
    return simulate(model, spiking, images, 32, record=tuple(RELUS))


def golden_normalised():
    unit = float(GOLDEN["scale_logits"])
    return _normalise(GOLDEN_LAYERS, golden_spiking(), (8, 8, 3), logits=unit)


def test_golden_conventional_network():
    logits, _ = _forward(GOLDEN_LAYERS, golden_spiking(), GOLDEN["images"])
    np.testing.assert_allclose(logits, GOLDEN["ann_logits"], rtol=0, atol=1e-12)


def test_golden_weights_in_the_unit_of_the_paper():
    spiking = golden_normalised()
    for path, name in [*zip(CONVS, CONVS, strict=True), ("dense0", "dense")]:
        for part in ("kernel", "bias"):
            expected = GOLDEN[f"normalised_{name}_{part}"]
            found = getattr(spiking[path], part)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("pool", ["lateral", "gated"])
@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_golden_spiking_network(gamma, pool):
    """Every spike of another program, in activation units and in the paper's."""
    setting = f"gamma{gamma}_{pool}"
    assert GOLDEN[f"at_cap_{setting}"] > 0
    times = np.arange(1, 33).reshape(-1, 1, 1)
    for spiking, unit in (
        (golden_spiking(), GOLDEN["scale_logits"]),
        (golden_normalised(), 1.0),
    ):
        model = Model(GOLDEN_LAYERS, Burst(gamma), pool)
        images = jnp.asarray(GOLDEN["images"])
        trace = _golden_simulate(model, spiking, images)
        sums = np.stack([trace.events[path].sum(1) for path in RELUS], 1)
        np.testing.assert_array_equal(sums, GOLDEN[f"spike_sums_{setting}"])
        at_cap = sum((trace.spikes[path] == gamma).sum() for path in RELUS)
        assert at_cap == GOLDEN[f"at_cap_{setting}"]
        running = np.asarray(trace.logits) * times / unit
        np.testing.assert_allclose(
            running, GOLDEN[f"logits_{setting}"], rtol=0, atol=1e-9
        )


@pytest.mark.parametrize("name", NAMES)
def test_folding_changes_no_activation(name):
    """Law 10, against normalisation as it stands."""
    it = case(name)
    logits, record = _forward(it.layers, it.spiking(Burst(5), "layer", 0.5), it.images)
    assert record.keys() == it.activations.keys()
    for path, expected in it.activations.items():
        assert expected.any()
        np.testing.assert_allclose(record[path], expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(logits, it.logits, rtol=0, atol=1e-12)


def test_verify_measures_what_folding_changed():
    it = case("resnet")
    spiking = it.spiking(Burst(5), "layer", 0.5)
    worst = verify(it.layers, it.variables, spiking, it.images)
    assert list(worst) == [*it.relus, "logits"]
    assert max(worst.values()) < 1e-12
    # A constant added to what one layer receives shows there, and not before.
    place = "residual1/body/conv0"
    kernel, bias = spiking[place]
    broken = spiking | {place: type(spiking[place])(kernel, bias + 0.25)}
    worst = verify(it.layers, it.variables, broken, it.images)
    assert worst["residual0/body/relu0"] < 1e-12
    assert worst["relu2"] == pytest.approx(0.25)


# Relus that read the image, spikes of others, or a current that also goes elsewhere
# cannot choose the unit of what they read.
BOUND = {
    "nested": {"residual0/body/residual0/body/relu0", "relu1"},
    "preactivation": {"residual0/body/relu0", "residual1/body/relu0"},
    "dense": {"relu0"},
}


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("name", NAMES)
def test_normalised_networks_spike_alike(name, per):
    """Thresholds are 1, the logits come in their unit, and no spike moves."""
    it = case(name)
    neuron = Burst(1) if per == "layer" else Burst(5)
    spiking = it.spiking(neuron, per, 0.5)
    normalised = _normalise(it.layers, spiking, it.image_shape, logits=1.7)
    assert normalised.keys() == spiking.keys()
    for path in it.relus:
        ones = np.allclose(normalised[path].theta, 1, rtol=0, atol=1e-12)
        assert ones == (path not in BOUND.get(name, ()))
    before = it.simulate(spiking, neuron)
    after = it.simulate(normalised, neuron)
    assert all(count.any() for count in before.events.values())
    jax.tree.map(np.testing.assert_array_equal, before.spikes, after.spikes)
    jax.tree.map(np.testing.assert_array_equal, before.events, after.events)
    np.testing.assert_allclose(before.logits, after.logits * 1.7, atol=1e-12)


def test_normalise_again_changes_nothing():
    it = case("vgg")
    once = _normalise(it.layers, it.spiking(Burst(5), "channel", 0.5), it.image_shape)
    twice = _normalise(it.layers, once, it.image_shape)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), once, twice)


def test_corrections_are_rescaled_too():
    it = case("residual first")
    spiking = it.spiking(Burst(5), "channel", 0.5)
    for path in it.relus:
        theta = spiking[path].theta
        rng = np.random.default_rng(0)
        initial, bias = rng.uniform(0, 1, (2, 4, 4, theta.size))  # one per neuron
        spiking[path] = Threshold(theta, jnp.asarray(initial), jnp.asarray(bias)[None])
    before = it.simulate(spiking, Burst(5))
    normalised = _normalise(it.layers, spiking, it.image_shape)
    after = it.simulate(normalised, Burst(5))
    assert before.events["relu0"].any()
    jax.tree.map(np.testing.assert_array_equal, before.spikes, after.spikes)


def test_convert_under_jit():
    it = case("resnet")
    thresholds = it.thresholds(Burst(5), "channel")
    expected = convert(it.layers, it.variables, thresholds)
    found = _convert(it.layers, it.variables, thresholds)
    assert found.keys() == expected.keys()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-14), expected, found)


def test_initial_potential_is_half_a_threshold_unless_asked():
    it = case("vgg")
    thresholds = it.thresholds(Burst(5), "layer")
    half = convert(it.layers, it.variables, thresholds)
    zero = convert(it.layers, it.variables, thresholds, initial=0.0)
    assert {float(half[path].initial) for path in it.relus} == {0.5}
    assert {float(zero[path].initial) for path in it.relus} == {0.0}


def test_whole_numbers_are_thresholds_too():
    it = case("vgg")
    spiking = convert(it.layers, it.variables, dict.fromkeys(it.relus, 1))
    assert {float(spiking[path].initial) for path in it.relus} == {0.5}


def replaced(tree, path, value):
    """A copy of the nested dictionary with another value at 'a/b/c'."""
    first, _, rest = path.partition("/")
    return tree | {first: replaced(tree[first], rest, value) if rest else value}


@pytest.mark.parametrize(
    "path, change, message",
    [
        ("params/conv0/kernel", lambda x: x * np.nan, "conv0/kernel: .*not finite"),
        (
            "batch_stats/residual1/body/conv0/norm/var",
            lambda x: x + np.inf,
            "residual1/body/conv0/norm/var: .*not finite",
        ),
        ("params/residual0/body", lambda x: {}, "residual0/body/conv0/kernel: not"),
        ("params/dense0/bias", lambda x: x[1:], r"dense0/bias: found the shape \(2,\)"),
        ("params/conv0/kernel", lambda x: x[0], "conv0/kernel: found the shape"),
        ("params/dense0/extra", lambda x: np.ones(3), "dense0/extra"),
        ("params/dense1", lambda x: {"kernel": np.ones(3)}, "dense1/kernel"),
    ],
)
def test_unfit_variables_are_refused_by_name(path, change, message):
    it = case("resnet")
    value = it.variables
    for key in path.split("/"):
        value = value.get(key, {})
    variables = replaced(it.variables, path, change(value))
    with pytest.raises(ValueError, match=message):
        convert(it.layers, variables, it.thresholds(Burst(5), "layer"))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("relu1"), "missing: .'relu1'., unknown: none"),
        (lambda t: t.update(relu9=1.0), "missing: none, unknown: .'relu9'."),
        (lambda t: t.update(relu1=0.0), "relu1: .*greater than 0"),
        (lambda t: t.update(relu1=np.array([1.0, -2.0])), "relu1: .*-2.0"),
        (lambda t: t.update(relu1=np.nan), "relu1: .*finite"),
    ],
)
def test_unfit_thresholds_are_refused_by_name(change, message):
    it = case("resnet")
    thresholds = it.thresholds(Burst(5), "layer")
    change(thresholds)
    with pytest.raises(ValueError, match=message):
        convert(it.layers, it.variables, thresholds)


def test_variables_of_another_network_are_refused():
    it, other = case("resnet"), case("vgg")
    with pytest.raises(ValueError, match="residual0/body/conv0/kernel"):
        convert(it.layers, other.variables, it.thresholds(Burst(5), "layer"))
