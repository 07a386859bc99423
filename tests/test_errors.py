"""Where conversion error comes from: the causes add up to it, neuron by neuron."""

import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from networks import NAMES, POOLED, STEPS, case, quick

import jaxburst as jb
from jaxburst import analysis
from jaxburst.neuron import Burst

pytestmark = pytest.mark.usefixtures("float64")


PLAIN = {name: Burst((1, 5)[i % 2]) for i, name in enumerate(NAMES)}


@pytest.fixture(autouse=True)
def compiled_quickly(monkeypatch):
    unoptimised = quick(analysis._errors.__wrapped__, static=(0, 3))
    monkeypatch.setattr(analysis, "_errors", unoptimised)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_causes_add_up_to_the_error(name, signed):
    """Neuron by neuron, with drives from the oracle; and `errors` says their means."""
    it, neuron = case(name), Burst(3, signed=True) if signed else PLAIN[name]
    spiking = it.spiking(neuron, "channel", 0.25)
    trace = it.simulate(spiking, neuron)
    drives = _drives(it, neuron, 0.25)
    rows = _errors(it, neuron, spiking)
    assert set(it.relus) <= set(rows)
    for path in it.relus:
        theta = np.broadcast_to(spiking[path].theta, drives[path].shape[1:])
        for t in (1, 2, STEPS):
            rate = theta * np.asarray(trace.spikes[path][:t]).sum(0) / t
            activation, end = it.activations[path], trace.potentials[path][t - 1]
            arrays = (0.25 * theta, end, drives[path][:t].mean(0), rate, activation)
            found = analysis.parts(theta, *arrays, jnp.float64(t))
            error = rate - activation
            np.testing.assert_allclose(sum(found.values()), error, rtol=0, atol=1e-12)
            for cause, part in (found | {"total": error}).items():
                kept = [means[cause][t - 1] for means in rows[path][2:]]
                expected = [np.mean(part), np.abs(part).mean()]
                np.testing.assert_allclose(kept, expected, rtol=0, atol=1e-12)
    happened = {"inherited", "initial", "remainder", "stuck"}
    if not signed and len(it.relus) > 2:  # signed neurons take such spikes back
        happened.add("inactivated")
    for cause in happened:
        assert max(rows[path].size[cause].max() for path in it.relus) > 1e-4
    assert rows[it.relus[0]].size["inherited"].max() < 1e-12


@pytest.mark.parametrize("name", POOLED)
def test_pooling_errs_by_gating_only(name):
    it, neuron = case(name), Burst(2)
    spiking = it.spiking(neuron, "channel", 0.0)
    lateral, gated = (
        _errors(it, neuron, spiking, pool) for pool in ("lateral", "gated")
    )
    paths = [path for path in lateral if path not in it.relus]
    assert paths and set(lateral) == set(gated)
    for path in paths:
        assert set(gated[path].size) == {"pooling", "total"}
        assert lateral[path].activation > 0
        assert lateral[path].size["pooling"].max() < 1e-12
    assert max(gated[path].mean["pooling"].max() for path in paths) > 0.01


def _errors(it, neuron, spiking, pool="lateral"):
    model = jb.Model(it.layers, neuron, pool)
    rows = analysis.errors(model, spiking, jnp.asarray(it.images), STEPS)
    return {row.path: row for row in rows}


def _drives(it, neuron, initial):
    """The current of every neuron and step by the oracle, `{path: [T, B, ...]}`."""
    thresholds, currents = it.thresholds(neuron, "channel"), {}

    def spike(path, current):
        currents[path] = current
        theta = np.broadcast_to(thresholds[path], current.shape[1:])
        return oracle.fire(neuron, theta, initial * theta, current), theta[0]

    sequence = np.broadcast_to(it.images, (STEPS, *it.images.shape))
    oracle._evaluate(it.layers, it.variables, sequence, spike, "lateral")
    return currents
