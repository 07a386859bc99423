"""The presets, as far as nothing else tests them."""

import jax
import numpy as np
import pytest
from flax.linen import max_pool
from jax.nn import relu

from jaxburst.energy import LEMAIRE
from jaxburst.methods import balance, calibrate_mse
from jaxburst.methods.presets import once, paper, refining
from jaxburst.neurons import Burst, Refining
from jaxburst.run import simulate
from jaxburst.tracing import trace

RNG = np.random.default_rng(5)
W = [RNG.normal(size=shape).astype(np.float32) for shape in ((4, 16), (16, 3))]
DEEP = [RNG.normal(size=s).astype(np.float32) for s in ((4, 9), (9, 30), (30, 3))]


@pytest.mark.parametrize("f", [jax.nn.gelu, jax.nn.hard_swish])
def test_outliers_leave_no_error_that_stays(f):
    """With 15 quanta a step, 30 thresholds are the most that spikes add up to. A text
    recogniser's activations reach hundreds, and the error stayed from T = 4 on."""
    inputs = RNG.normal(size=(300, 4)).astype(np.float32)
    network = trace(lambda w, x: f(x @ w[0]) @ w[1], W, inputs[:1])
    model, spiking = refining(network, W, inputs, progress=False)
    inputs *= 20
    seen = simulate(model, spiking, inputs, 8, record=network.neurons[0])
    most = np.abs(seen.spikes[network.neurons[0]]).max()
    assert most > 30
    wanted = np.asarray(network(W, inputs))
    error = np.linalg.norm(np.asarray(seen.logits) - wanted, axis=(1, 2))
    assert (error[3:] < 0.7 * error[2:-1]).all()
    assert error[-1] < 0.002 * np.linalg.norm(wanted)


def test_balanced_for_another_cost():
    """As by hand; and it matters, where memory is as large as each layer needs."""
    inputs = RNG.normal(size=(200, 4)).astype(np.float32)
    network = trace(lambda w, x: relu(relu(x @ w[0]) @ w[1]) @ w[2], DEEP, inputs[:1])
    given = network, DEEP, inputs
    how = {"cost": LEMAIRE, "unit": "events"}
    _, spiking = refining(*given, **how, progress=False)
    thetas = calibrate_mse(*given, Burst(4))
    neuron = Refining(15, silence=0.6)
    expected = balance(network, DEEP, thetas, inputs[:100], neuron, **how)
    _, usual = refining(*given, progress=False)
    for name, theta in expected.items():
        np.testing.assert_array_equal(spiking[name].theta, theta)
        assert (spiking[name].theta != usual[name].theta).any()


@pytest.mark.parametrize("preset", [paper, once, refining])
def test_maxima_before_relus(preset):
    """Convolution, pool, ReLU, and again: a pool of currents has no senders."""
    rng = np.random.default_rng(3)
    x = rng.normal(size=(60, 8, 3)).astype(np.float32)
    w = [rng.normal(size=s).astype(np.float32) for s in ((3, 4), (4, 6), (6, 2))]

    def net(w, x):
        x = relu(max_pool(x @ w[0], (2,), (2,)))
        return relu((x @ w[1]).max(1)) @ w[2]

    network = trace(net, w, x[:1])
    how = {"progress": False} if preset is refining else {}
    model, spiking = preset(network, w, x, **how)
    steps = {paper: 64, once: 1, refining: 4}[preset]
    wanted, seen = np.asarray(network(w, x)), simulate(model, spiking, x, steps)
    error = np.square(seen.logits[-1] - wanted).mean() / np.square(wanted).mean()
    assert 0 < error < 0.02 and all(n.sum() > 0 for n in seen.events.values())
