"""The report of a simulation says what the simulation did; errors say why."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxburst as jb
from jaxburst import analysis
from jaxburst.conversion import Affine, Threshold, forward
from jaxburst.layers import Conv, Dense, Flatten, Relu
from jaxburst.neuron import fire, remaining
from jaxburst.simulation import build, drive, rest, step

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


def test_the_causes_by_hand():
    """The currents 0.5, -1 and 5 leave a remainder, nothing, and stuck charge."""
    (row,) = analysis.errors(MODEL, SPIKING, jnp.ones((4, 1, 1, 1)), steps=3)
    assert row.activation == pytest.approx(5.5 / 3)
    assert row.mean["remainder"] == pytest.approx([-0.5 / 3, 0, -0.5 / 9])
    assert row.mean["stuck"] == pytest.approx([-1, -1, -1])  # 3 more at every step
    assert row.size["total"] == pytest.approx([3.5 / 3, 1, 1 + 0.5 / 9])
    silent = ("inherited", "inactivated", "initial", "overfiring")
    assert all(not row.size[cause].any() for cause in silent)
    lines = analysis.error_table([row], 2).splitlines()
    assert lines[0].split() == ["path", "activation", *analysis.CAUSES, "total"]
    assert lines[1].split()[-1] == "54.55%"


def test_the_causes_add_up_in_single_precision():
    """Neuron by neuron, with the drives that were measured on the way."""
    layers, steps = jb.zoo.resnet_tiny(10), 30
    images = jax.random.normal(jax.random.key(0), (6, 16, 16, 1))
    variables = jb.Network(layers).init(jax.random.key(1), images)
    neuron = jb.Burst(3)
    thresholds = jb.calibrate(layers, variables, np.asarray(images), neuron)
    spiking = jb.convert(layers, variables, thresholds)
    model = jb.Model(layers, neuron)
    activations = jax.jit(forward, static_argnums=0)(layers, spiking, images)[1]
    circuit = build(model, spiking, images.shape[1:])
    current = drive(model, circuit, images)

    @jax.jit
    def advance(state, sums):
        drives = {}

        def respond(path, threshold, membrane, current, t):
            drives[path] = current
            return fire(neuron, threshold, membrane, current)

        state, info = step(model, circuit, current, state, respond)
        return state, jax.tree.map(jnp.add, sums, (drives, info.spikes))

    start = state = rest(model, circuit, images.shape)
    sums = (jax.tree.map(jnp.zeros_like, activations),) * 2
    for _ in range(steps):
        state, sums = advance(state, sums)
    rows = analysis.errors(model, spiking, images, steps)
    for row in rows:
        theta, activation = spiking[row.path].theta, activations[row.path]
        charge, sent = (total[row.path] for total in sums)
        ends = (
            remaining(model.neuron, row.path, spiking[row.path], when[row.path])
            for when in (start, state)
        )
        rate = theta * sent / steps
        found = analysis.parts(theta, *ends, charge / steps, rate, activation, steps)
        error = rate - activation
        atol = 1e-5 * float(activation.max())
        np.testing.assert_allclose(sum(found.values()), error, rtol=0, atol=atol)
        for cause, part in (found | {"total": error}).items():
            expected = float(part.mean()), float(jnp.abs(part).mean())
            kept = row.mean[cause][-1], row.size[cause][-1]
            assert kept == pytest.approx(expected, rel=1e-3, abs=1e-2 * atol)
        assert row.size["total"].min() > 0


@pytest.mark.parametrize(
    ("neuron", "says"),
    [
        (jb.Refining(), "use a Burst"),
        (jb.Burst(1, reset="zero"), "reset='subtract'"),
        (jb.Burst(5, allowance=2), "use allowance=None"),
    ],
)
def test_neurons_without_conserved_rates_are_refused(neuron, says):
    model = jb.Model(LAYERS, neuron)
    with pytest.raises(ValueError, match=says):
        analysis.errors(model, SPIKING, jnp.ones((1, 1, 1, 1)), 2)
