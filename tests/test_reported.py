"""What users of other converters reported, from weights to spikes.

Expected values are PyTorch's definitions in NumPy, channel-first, or Flax's own.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_state_dict import (
    Net,
    batch_norm,
    conv,
    conv3,
    dense,
    last,
    norm,
    pool,
    random_norm,
    relu,
    under,
    weights,
)

from jaxburst.convert import convert
from jaxburst.evaluation import evaluate
from jaxburst.io.state_dict import load_pytorch
from jaxburst.methods import presets
from jaxburst.methods.calibration import calibrate
from jaxburst.neurons import Burst
from jaxburst.run import Model, infer
from jaxburst.tracing import trace

RNG = np.random.default_rng(0)


def traced(module, state, inputs):
    variables = load_pytorch(module, state, np.shape(inputs)).variables
    return trace(module.apply, variables, np.float32(inputs[:1])), variables


def assert_spikes_say(expected, network, variables, inputs, tolerance=0.02):
    """Bursts after 128 steps, and the preset after 8, are where they should be."""
    thresholds = calibrate(network, variables, inputs, Burst(5), percentile=100)
    bursts = convert(network, variables, thresholds)
    found = [infer(Model(network, Burst(5)), bursts, inputs, 128)]
    found.append(infer(*presets.refining(network, variables, inputs), inputs, 8))
    for one in found:
        error = np.abs(np.asarray(one) - expected).max()
        assert error < tolerance * np.abs(expected).max()


def averaged(x):
    """Convolution, ReLU, global average, dense."""
    return dense(3)(nn.relu(conv3(5)(x)).mean((1, 2)))


def averaging(shape, kind=np.float32):
    """Images, the state dict of `averaged`, and its outputs."""
    x, kernel, out = RNG.normal(size=shape), weights(5, shape[1], 3, 3), weights(3, 5)
    expected = relu(conv(x, kernel, pad=1)).mean((2, 3)) @ out.T
    return last(x).astype(kind), {"c.weight": kernel, "f.weight": out}, expected


def test_a_global_average_of_a_wide_map():
    images, state, expected = averaging((6, 2, 6, 10))
    assert_spikes_say(expected, *traced(Net(averaged), state, images), images)


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_images_in_half_precision_are_widened(kind):
    images, state, expected = averaging((6, 3, 8, 8), jnp.dtype(kind))
    assert_spikes_say(expected, *traced(Net(averaged), state, images), images)


def test_images_with_channels_first_are_refused_by_name():
    images, state, _ = averaging((4, 3, 8, 8))
    network, variables = traced(Net(averaged), state, images)
    with pytest.raises(ValueError, match=r"Conv_0: .*\(height, width, channels\)"):
        calibrate(network, variables, images.transpose(0, 3, 1, 2), Burst())


def test_a_normalisation_after_the_relu():
    """Behind it max pooling, of numbers of both signs."""
    x, a, b = RNG.normal(size=(6, 3, 8, 8)), weights(5, 3, 3, 3), weights(4, 5, 3, 3)
    values, out = random_norm(5), weights(3, 4)
    maps = pool(norm(relu(conv(x, a, pad=1)), values), 2)
    expected = relu(conv(maps, b, pad=1)).mean((2, 3)) @ out.T

    def call(x):
        x = nn.max_pool(batch_norm()(nn.relu(conv3(5)(x))), (2, 2), (2, 2))
        return dense(3)(nn.relu(conv3(4)(x)).mean((1, 2)))

    state = {"0.weight": a, **under("2", values), "4.weight": b, "7.weight": out}
    images = last(x)
    assert_spikes_say(expected, *traced(Net(call), state, images), images, 0.03)


def test_flaxs_padding_of_a_convolution_with_stride():
    """'SAME' pads one side alone; this network was trained in Flax."""
    images = np.float32(RNG.normal(size=(5, 8, 8, 3)))
    layers = nn.Conv(4, (3, 3), 2), nn.relu, lambda x: x.mean((1, 2)), nn.Dense(3)
    module = nn.Sequential(layers)
    variables = module.init(jax.random.key(0), images)
    network = trace(module.apply, variables, images)
    expected = np.asarray(module.apply(variables, images))
    assert_spikes_say(expected, network, variables, images)


def test_labelled_data_that_are_not_pixels():
    signals = np.float32(RNG.normal(size=(48, 8, 8, 2)))  # negative, too
    labels = np.int32(signals[..., 0].mean((1, 2)) > 0)
    _, state, _ = averaging((1, 2, 8, 8))
    network, variables = traced(Net(averaged), state, signals)
    model, spiking = presets.refining(network, variables, signals)
    logits = np.asarray(infer(model, spiking, signals, 4))
    curves = evaluate(model, spiking, (signals, labels), 4, progress=False)
    assert curves.accuracy[-1] == pytest.approx((logits.argmax(-1) == labels).mean())
