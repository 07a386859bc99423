"""The report of a simulation says what the simulation did."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxburst as jb
from jaxburst.conversion import Affine, Threshold
from jaxburst.layers import Conv, Dense, Flatten, Relu

LAYERS = (Conv(3, kernel=1, padding=0), Relu(), Flatten(), Dense(2))
MODEL = jb.Model(LAYERS, jb.Burst(2))
# Three channels, constant currents 0.5, -1 and 5 for a white pixel; θ = 1, γ = 2:
# the first is in reach, the second silent, the third beyond γθ.
SPIKING = {
    "conv0": Affine(jnp.array([[[[0.5, -1.0, 5.0]]]]), jnp.zeros(3)),
    "relu0": Threshold(jnp.array(1.0), jnp.array(0.0), jnp.array(0.0)),
    "dense0": Affine(jnp.ones((3, 2)), jnp.zeros(2)),
}


def test_report_by_hand():
    (row,) = jb.analysis.report(MODEL, SPIKING, jnp.ones((4, 1, 1, 1)), steps=8)
    assert row.path == "relu0"
    assert row.theta == 1
    assert row.activation == pytest.approx((0.5 + 0 + 5) / 3)
    assert row.rate == pytest.approx((0.5 + 0 + 2) / 3)  # 4, 0 and 16 spikes in 8 steps
    assert row.error == pytest.approx(np.sqrt((0 + 0 + 9) / 3))
    assert row.saturated == pytest.approx(1 / 3)
    assert row.silent == pytest.approx(1 / 3)
    assert row.events == 4 + 0 + 16


def test_report_agrees_with_simulate():
    layers = jb.zoo.resnet_tiny(10)
    images = jax.random.normal(jax.random.key(0), (5, 8, 8, 1))
    variables = jb.Network(layers).init(jax.random.key(1), images)
    neuron = jb.Burst(3, signed=True)
    thresholds = jb.calibrate(layers, variables, np.asarray(images), neuron)
    spiking = jb.convert(layers, variables, thresholds)
    model = jb.Model(layers, neuron)
    trace = jb.simulate(model, spiking, images, 6)
    rows = jb.analysis.report(model, spiking, images, 6)
    paths = [path for path, layer in jb.layers.walk(layers) if isinstance(layer, Relu)]
    assert [row.path for row in rows] == paths
    for row in rows:
        assert row.events == pytest.approx(trace.events[row.path].sum(0).mean())
        assert row.events > 0
    lines = jb.analysis.table(rows).splitlines()
    assert len(lines) == 1 + len(rows)
    assert "residual0/body/relu0" in lines[2]
