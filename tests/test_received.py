"""What a population receives is what the one before has sent, at the very threshold.

XLA computes spikes once for every reader. Where the product that a neuron rounds is
fused with an addition for one reader and not for another, a drive that lies within
rounding of a threshold gives them different spikes, and the difference stays for good.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxburst.convert import convert
from jaxburst.neurons import Burst, Refining
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace

CHANNELS, STEPS = 64, 4
convolve = functools.partial(
    lax.conv_general_dilated,
    window_strides=(1, 1),
    padding="SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
)


def net(weights, x):
    """Both readers of the first population: a fast convolution, and a sum."""
    y = jax.nn.relu(convolve(x, weights[0]))
    z = jax.nn.relu(convolve(y, weights[1]) + y)
    return z.mean((1, 2)) @ weights[2]


@pytest.mark.parametrize("start", [0.4, 0.5])
@pytest.mark.parametrize(
    "neuron", [Refining(), Refining(None, 3, 0), Burst(5), Burst(5, signed=True)]
)
def test_drives_at_the_threshold_are_spikes_for_all_or_none(neuron, start):
    rng = np.random.default_rng(0)
    shapes = (3, 3, 3, CHANNELS), (3, 3, CHANNELS, CHANNELS), (CHANNELS, 4)
    weights = [0.1 * rng.normal(size=shape).astype(np.float32) for shape in shapes]
    images = rng.normal(size=(32, 8, 8, 3)).astype(np.float32)
    network = trace(net, weights, images[:1])
    model = Model(network, neuron)
    rows = 1e-3 * rng.normal(size=(STEPS, CHANNELS)).astype(np.float32)
    # In every channel the largest drive is at the very threshold of four spikes.
    drive = np.asarray(convolve(images, weights[0])) + rows[0]
    first = drive.reshape(-1, CHANNELS).max(0) / np.float32(4 - start)
    spiking = convert(network, weights, {"relu0": first, "relu1": 0.5}, initial=start)
    spiking["relu0"] = spiking["relu0"]._replace(bias=jnp.asarray(rows))
    shown = simulate(model, spiking, images, STEPS, record=network.neurons)
    worth = [float(neuron.worth(jnp.asarray(t))) for t in range(1, STEPS + 1)]

    def sent(name, theta):
        """All charge that left up to each step."""
        spikes = np.asarray(shown.spikes[name], np.float64)
        return np.cumsum(spikes * np.reshape(worth, (-1, 1, 1, 1, 1)), 0) * theta

    received = np.asarray(shown.potentials["relu1"], np.float64)
    if neuron.repeats:  # the law of charge
        received = received + sent("relu1", 0.5) - 0.5 * start
    for charge, found in zip(sent("relu0", first), received, strict=True):
        charge = charge.astype(np.float32)
        expected = np.asarray(convolve(charge, weights[1])) + charge
        # A spike of any channel is worth a hundred times as much.
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-4)
    assert np.asarray(shown.spikes["relu0"][0]).max() >= 3
