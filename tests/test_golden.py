"""Every spike of another program: the paper's authors' code, in double precision.

`golden/` holds what it computed on a small network of convolutions, batch
normalisation, max pooling and a dense layer; here the network is a Linen module.
"""

from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest

from jaxburst.convert import convert, verify
from jaxburst.network import forward
from jaxburst.neurons import Burst
from jaxburst.normalise import normalise
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace

pytestmark = pytest.mark.usefixtures("float64")
OPTIMISED = True

GOLDEN = np.load(Path(__file__).parent / "golden" / "vgg_small.npz")
CONVS = [f"conv{i}" for i in range(4)]


class Small(nn.Module):
    @nn.compact
    def __call__(self, x):
        for i, pooled in enumerate((True, False, True, True)):
            features = GOLDEN[f"conv{i}_kernel"].shape[-1]
            x = nn.Conv(features, (3, 3), name=f"conv{i}", dtype="float64")(x)
            x = nn.BatchNorm(
                use_running_average=True,
                epsilon=float(GOLDEN["bn_epsilon"]),
                name=f"norm{i}",
                dtype="float64",
            )(x)
            x = nn.relu(x)
            if pooled:
                x = nn.max_pool(x, (2, 2), (2, 2))
        return nn.Dense(10, name="dense", dtype="float64")(x.reshape(x.shape[0], -1))


def variables():
    params = {
        name: {part: GOLDEN[f"{name}_{part}"] for part in ("kernel", "bias")}
        for name in (*CONVS, "dense")
    }
    stats = {}
    for name in (f"norm{i}" for i in range(4)):
        params[name] = {part: GOLDEN[f"{name}_{part}"] for part in ("scale", "bias")}
        stats[name] = {part: GOLDEN[f"{name}_{part}"] for part in ("mean", "var")}
    return {"params": params, "batch_stats": stats}


@pytest.fixture(scope="module")
def converted():
    """The network and its weights, in activation units and in the paper's."""
    network = trace(Small().apply, variables(), GOLDEN["images"])
    thresholds = dict(zip(network.neurons, GOLDEN["scales"], strict=True))
    spiking = convert(network, variables(), thresholds, initial=0.0)
    logits = float(GOLDEN["scale_logits"])
    return (network, spiking), normalise(network, spiking, logits=logits)


def test_the_conventional_network(converted):
    network, spiking = converted[0]
    (logits,), _ = forward(network, spiking, GOLDEN["images"])
    np.testing.assert_allclose(logits, GOLDEN["ann_logits"], rtol=0, atol=1e-12)
    worst = verify(network, variables(), spiking, GOLDEN["images"])
    assert worst["logits"] < 1e-12


def test_weights_in_the_unit_of_the_paper(converted):
    network, spiking = converted[1]
    assert {float(spiking[name].theta) for name in network.neurons} == {1.0}
    for name in (*CONVS, "dense"):
        for part in ("kernel", "bias"):
            expected = GOLDEN[f"normalised_{name}_{part}"]
            found = getattr(spiking[name], part)
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("pool", ["lateral", "gated"])
@pytest.mark.parametrize("gamma", [1, 2, 5])
def test_every_spike(converted, gamma, pool):
    setting = f"gamma{gamma}_{pool}"
    assert GOLDEN[f"at_cap_{setting}"] > 0
    times = np.arange(1, 33).reshape(-1, 1, 1)
    for (network, spiking), unit in zip(
        converted, (GOLDEN["scale_logits"], 1.0), strict=True
    ):
        model = Model(network, Burst(gamma), pool)
        seen = simulate(model, spiking, GOLDEN["images"], 32, record=network.neurons)
        sums = np.stack([seen.events[name].sum(1) for name in network.neurons], 1)
        np.testing.assert_array_equal(sums, GOLDEN[f"spike_sums_{setting}"])
        at_cap = sum((np.asarray(n) == gamma).sum() for n in seen.spikes.values())
        assert at_cap == GOLDEN[f"at_cap_{setting}"]
        running = np.asarray(seen.logits) * times / unit
        np.testing.assert_allclose(
            running, GOLDEN[f"logits_{setting}"], rtol=0, atol=1e-9
        )
