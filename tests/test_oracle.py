"""Two derivations of one spiking network agree, neuron by neuron and step by step."""

import jax
import numpy as np
import oracle
import pytest
from networks import NAMES, POOLED, STEPS, case

from jaxburst.neuron import Burst

pytestmark = pytest.mark.usefixtures("float64")

# (neuron, thresholds per layer or channel, pooling)
SETTINGS = {
    "integrate and fire": (Burst(1), "layer", "lateral"),
    "burst": (Burst(5), "channel", "lateral"),
    "unbounded, signed": (Burst(None, signed=True), "layer", "lateral"),
    "unbounded": (Burst(None), "channel", "lateral"),
    "signed": (Burst(2, signed=True), "channel", "lateral"),
    "gated": (Burst(5), "layer", "gated"),
    "allowance": (Burst(2, allowance=1), "layer", "lateral"),
}
EVERYWHERE = ("integrate and fire", "burst", "unbounded, signed", "unbounded")
CASES = [(name, setting) for name in NAMES for setting in EVERYWHERE]
CASES += [(name, "signed") for name in ("residual first", "nested", "windows")]
CASES += [(name, "gated") for name in POOLED]
CASES += [(name, "allowance") for name in ("vgg", "resnet")]


@pytest.mark.parametrize("initial", [0.0, 0.5])
@pytest.mark.parametrize("name, setting", CASES)
def test_simulation_equals_the_oracle(name, setting, initial):
    it = case(name)
    neuron, per, pool = SETTINGS[setting]
    logits, spikes, events = oracle.snn(
        *(it.layers, it.variables, it.images, STEPS),
        *(neuron, pool, it.thresholds(neuron, per), initial),
    )
    assert all(count.any() for count in spikes.values()), "every layer fires"
    largest = max(count.max() for count in spikes.values())
    if neuron.gamma is None:
        assert largest > 1
    else:
        assert largest == neuron.gamma, "the cap binds"
    assert (min(count.min() for count in spikes.values()) < 0) == neuron.counts

    trace = it.simulate(it.spiking(neuron, per, initial), neuron, pool)
    jax.tree.map(np.testing.assert_array_equal, trace.spikes, spikes)
    jax.tree.map(np.testing.assert_array_equal, trace.events, events)
    np.testing.assert_allclose(trace.logits, logits, rtol=0, atol=1e-12)
