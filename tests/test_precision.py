"""Weights and inputs of different precision: the wider one, as JAX promotes them."""

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxburst.convert import convert, verify
from jaxburst.methods.calibration import calibrate
from jaxburst.neurons import Burst
from jaxburst.run import Model, infer
from jaxburst.tracing import trace

OPTIMISED = True


@pytest.mark.parametrize("weights", ["float32", "float64"])
@pytest.mark.parametrize("inputs", ["float32", "float64"])
def test_the_wider_of_two_types_is_used(weights, inputs):
    with jax.enable_x64(True):
        layers = nn.Conv(3, (3, 3)), nn.BatchNorm(True), nn.relu, nn.Conv(2, (3, 3))
        module = nn.Sequential(layers)
        images = np.random.default_rng(0).normal(size=(4, 4, 4, 2)).astype(inputs)
        variables = module.init(jax.random.key(0), images)
        variables = jax.tree.map(lambda leaf: leaf.astype(weights), variables)
        network = trace(module.apply, variables, images)
        thresholds = calibrate(network, variables, images, Burst())
        spiking = convert(network, variables, thresholds)
        worst = verify(network, variables, spiking, images)["logits"]
        both = {weights, inputs}
        assert worst < (1e-12 if both == {"float64"} else 1e-6)
        found = infer(Model(network), spiking, images, 4)
        assert found.dtype == ("float64" if "float64" in both else "float32")
