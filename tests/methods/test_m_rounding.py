"""The quantised conventional network against NumPy that rounds by definition."""

import jax
import numpy as np
import pytest
from nets import case

from jaxburst.convert import convert
from jaxburst.energy import HOROWITZ_INT8, ann_joules, macs
from jaxburst.evaluation import evaluate
from jaxburst.methods.rounding import quantise, rounded
from jaxburst.neurons import Burst, Refining
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace

RNG = np.random.default_rng(3)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


W = [normal(4, 6), normal(6, 5), normal(5, 3)]
NETWORK = trace(
    lambda w, x: jax.nn.relu(jax.nn.relu(x @ w[0]) @ w[1]) @ w[2],
    W, np.ones((1, 4), np.float32),
)  # fmt: skip
THETAS = {"relu0": np.linspace(0.1, 2, 6).astype(np.float32), "relu1": np.float32(0.3)}


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_kernels_are_whole_multiples_of_a_step_per_output(bits):
    model = Model(NETWORK, Burst(5))
    found = quantise(model, convert(NETWORK, W, THETAS), bits)
    most = 2 ** (bits - 1) - 1
    for name, kernel, unit in (
        ("0", W[0], 1.0),
        ("1", W[1], THETAS["relu0"][:, None]),
        ("2", W[2], 0.3),
    ):
        stored = np.float64(kernel) * unit
        step = np.abs(stored).max(0) / most
        levels = np.asarray(found[name].kernel, np.float64) * unit / step
        np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
        np.testing.assert_allclose(np.abs(levels).max(0), most, rtol=1e-5)
        assert (np.abs(levels * step - stored) <= 0.5001 * step).all()
        assert not np.allclose(found[name].kernel, kernel, rtol=1e-6)


@pytest.mark.parametrize("name", ["resnet", "depthwise", "channels first"])
def test_any_network_of_many_bits_is_nearly_itself(name):
    it = case(name)
    model = Model(it.network, Refining())
    spiking = convert(it.network, it.variables, it.thresholds(Burst(3), "channel"))
    found = quantise(model, spiking, 20)
    for synapse in it.network.synapses:
        kernel = np.asarray(spiking[synapse].kernel)
        change = np.abs(np.asarray(found[synapse].kernel) - kernel).max()
        assert 0 < change < 1e-4 * np.abs(kernel).max()


def test_weights_that_have_decayed_to_almost_nothing_stay_finite():
    """Regularised away, with a step below the smallest number: a text recogniser's."""
    for size in (1e-36, 3e-38, 1e-41, 0):
        w = [W[0], W[1] * np.float32([1, size, 1, 1, 1]), W[2]]
        model, spiking = Model(NETWORK, Burst(5)), convert(NETWORK, w, THETAS)
        kernel = np.asarray(quantise(model, spiking, 8)["1"].kernel)
        assert np.isfinite(kernel).all() and np.abs(kernel[:, 1]).max() <= 4 * size
        assert np.abs(kernel[:, 0] - w[1][:, 0]).max() < 0.3


@pytest.mark.parametrize("bits", [1, 3, 5])
def test_activations_are_rounded_once(bits):
    inputs = normal(200, 4)
    model, spiking = rounded(NETWORK, W, inputs, bits=bits)
    seen = simulate(model, spiking, inputs, 1)
    x = np.float64(inputs)
    for layer, name in enumerate(("relu0", "relu1")):
        theta, _, bias = (np.float64(value) for value in spiking[name])
        drive = x @ np.float64(spiking[str(layer)].kernel) + bias.reshape(-1)
        levels = np.floor(np.maximum(drive, 0) / theta + 0.5)
        x = theta * np.minimum(levels, 2**bits - 1)
        assert (levels > 2**bits - 1).any() and (levels == 0).any()
        nonzero = (x > 0).sum(1)
        assert (np.asarray(seen.traffic[name].events)[0] == nonzero).mean() > 0.99
    logits = x @ np.float64(spiking["2"].kernel)
    found = np.asarray(seen.logits)[0]
    same = np.isclose(found, logits, atol=1e-4).all(1)  # some are at a very half
    assert same.mean() > 0.99


def test_more_bits_are_closer_and_cost_more():
    inputs = normal(300, 4)
    exact = np.asarray(NETWORK(W, inputs))
    errors, spent = [], []
    for bits in (1, 2, 4, 8):
        pair = rounded(NETWORK, W, inputs, bits=bits)
        found = np.asarray(simulate(*pair, inputs, 1).logits)[0]
        errors.append(np.abs(found - exact).mean() / np.abs(exact).mean())
        curves = evaluate(*pair, (inputs, exact.argmax(-1)), 1, progress=False)
        sizes = {"bits": bits, "sent": curves, "cost": HOROWITZ_INT8}
        spent.append(ann_joules(NETWORK, **sizes))
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.02 < errors[0]
    assert spent == sorted(spent) and spent[0] < spent[-1]
    assert spent[-1] < ann_joules(NETWORK, cost=HOROWITZ_INT8)
    assert sum(macs(NETWORK).values()) == 4 * 6 + 6 * 5 + 5 * 3


def test_bits_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="bits: .* at least 1 .*found 0"):
        rounded(NETWORK, W, normal(5, 4), bits=0)
    model, spiking = Model(NETWORK), convert(NETWORK, W, THETAS)
    with pytest.raises(ValueError, match="bits: expected at least 2.* found 1"):
        quantise(model, spiking, 1)
