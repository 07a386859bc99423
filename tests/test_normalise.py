"""A network written in the paper's unit spikes as before: every spike, in float64."""

from functools import lru_cache

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxburst import energy
from jaxburst.convert import convert, threshold_shapes, verify
from jaxburst.network import forward
from jaxburst.neurons import Burst, Refining
from jaxburst.normalise import normalise
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace

pytestmark = pytest.mark.usefixtures("float64")


def conv(x, w, stride=1, groups=1):
    return lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def flat(x):
    return x.reshape(x.shape[0], -1)


def relu(x):
    return jnp.maximum(x, 0)


def mean(x, window, stride=None):
    found = nn.pooling.pool(x, 0.0, lax.add, window, stride or (1, 1), "VALID")
    return found / float(np.prod(window))


def plain(w, x):
    x = relu(conv(x, w["a"]) + w["bias"].reshape(1, 1, 1, -1))
    x = relu(conv(x, w["b"], groups=2))
    return flat(nn.max_pool(x, (2, 2), (2, 2))) @ w["out"]


def residual(w, x):
    """Identity shortcuts: what is added to a current are spikes."""
    a = relu(conv(x, w["a"]))
    b = relu(conv(relu(conv(a, w["b2"])), w["c"]) + a)
    return flat(relu(conv(b, w["b2"]) - 0.5 * b)) @ w["wide"]


def preactivation(w, x):
    """The sum is read by a neuron and by the next sum: nobody chooses its unit."""
    a = conv(x, w["a"])
    b = a + conv(relu(a), w["b2"])
    c = b + conv(relu(b), w["c"])
    return flat(relu(c)) @ w["wide"]


def joined(w, x):
    """Concatenated spikes, and spikes beside charges."""
    a = relu(conv(x, w["a"]))
    b = relu(conv(jnp.concatenate([a, relu(conv(a, w["b2"]))], -1), w["d"]))
    c = jnp.concatenate([b, conv(b, w["c"])], -1)
    return flat(relu(c)) @ w["joined"]


def pooled(w, x):
    """Maximum before the ReLU; averages after it."""
    x = relu(nn.max_pool(conv(x, w["a"]), (2, 2), (1, 1)))
    x = relu(mean(conv(x, w["b2"]), (2, 2), (1, 1)))
    return flat(mean(x, (2, 2), (1, 1))) @ w["mean"]


def capped(w, x):
    """A cap is in the unit of activations, and so is what it caps."""
    x = jnp.minimum(relu(conv(x, w["a"])), 0.75)
    return flat(relu(conv(x, w["b2"]))) @ w["wide"]


def ends(w, x):
    """Outputs that are spikes, spikes and the input, and a sum that a neuron reads."""
    a = relu(conv(x, w["a"]))
    logits = conv(a, w["b2"])
    return a, x + a[..., :1], logits, mean(relu(logits), (4, 4))


def rectified_twice(w, x):
    x = relu(conv(x, w["a"]))
    return flat(relu(mean(x, (2, 2), (1, 1)))) @ w["twice"]


def mixed(w, x):
    """Channels are mixed on the way: a constant product, and a product of charges."""
    x = relu(conv(x, w["a"]))
    blur = np.array([[0.5, 0.5, 0, 0]] * 4)
    x = relu(conv(x, w["b2"]) @ blur)
    x = conv(conv(x, w["c"]), w["b2"])
    return flat(relu(x)) @ w["wide"]


def channels_first(w, x):
    x = x.transpose(0, 3, 1, 2)
    numbers = ("NCHW", "HWIO", "NCHW")

    def conv(x, w):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers)

    a = relu(conv(x, w["a"]) + w["bias"].reshape(1, -1, 1, 1))
    b = relu(conv(a, w["b2"]) + a)
    return flat(b) @ w["wide"]


def shifted(w, x):
    """Batch normalisation behind a ReLU, and a constant beside it."""
    x = relu(conv(x, w["a"])) * w["bias"].reshape(1, 1, 1, -1) + w["shift"]
    x = relu(conv(x, w["b2"]) + w["map"])
    return flat(x) @ w["wide"] + w["out"][:1]


NETS = (
    *(plain, residual, preactivation, joined, pooled, capped, ends, rectified_twice),
    *(mixed, channels_first, shifted),
)
# Populations that cannot choose the unit of what they read.
BOUND = {
    ("preactivation", "layer"): {0, 1, 2},
    ("preactivation", "channel"): {0, 1, 2},
    ("capped", "layer"): {0},
    ("capped", "channel"): {0},
    ("ends", "layer"): {1},
    ("ends", "channel"): {1},
    ("mixed", "channel"): {1},
    ("shifted", "layer"): {1},
    ("shifted", "channel"): {1},
    ("joined", "channel"): {3},
}
FACTORS = {"residual": 2, "preactivation": 0, "joined": 1, "ends": 3}


def weights():
    rng = np.random.default_rng(0)
    shapes = {
        **{"a": (3, 3, 1, 4), "b": (3, 3, 2, 4), "b2": (3, 3, 4, 4), "c": (1, 1, 4, 4)},
        **{"d": (3, 3, 8, 4), "out": (16, 3), "wide": (64, 3), "joined": (128, 3)},
        **{"mean": (4, 3), "twice": (36, 3), "bias": (4,), "shift": (1, 1, 1, 4)},
        "map": (1, 4, 4, 4),
    }
    return {k: rng.normal(size=s) / s[-2:][0] ** 0.5 for k, s in shapes.items()}


IMAGES = np.random.default_rng(1).normal(size=(3, 4, 4, 1))


@lru_cache
def case(net, per):
    w, rng = weights(), np.random.default_rng(2)
    network = trace(net, w, IMAGES)
    thresholds = {}
    for name in network.neurons:
        shape = threshold_shapes(network, name)[per == "channel"]
        thresholds[name] = jnp.asarray(rng.uniform(0.1, 0.7, shape))
    return network, convert(network, w, thresholds), w


@pytest.mark.parametrize("per", ["layer", "channel"])
@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__)
def test_no_spike_moves(net, per):
    """Thresholds are 1, the outputs come in their unit, and no spike moves."""
    network, spiking, _ = case(net, per)
    found, normalised = normalise(network, spiking, logits=1.7)
    bound = BOUND.get((net.__name__, per), ())
    for i, name in enumerate(network.neurons):
        ones = np.all(np.asarray(normalised[name].theta) == 1)
        assert ones == (i not in bound), name
    added = normalised.keys() - spiking.keys()
    assert len(added) == FACTORS.get(net.__name__, len(added))
    neuron = Burst(3, signed=True)
    before = simulate(
        Model(network, neuron), spiking, IMAGES, 12, record=network.neurons
    )
    after = simulate(Model(found, neuron), normalised, IMAGES, 12, record=found.neurons)
    assert all(np.any(n) for n in before.spikes.values())
    jax.tree.map(np.testing.assert_array_equal, before.spikes, after.spikes)
    jax.tree.map(np.testing.assert_array_equal, before.events, after.events)
    close = lambda a, b: np.testing.assert_allclose(a, b * 1.7, rtol=0, atol=1e-12)  # noqa: E731
    jax.tree.map(close, before.logits, after.logits)
    # So does the conventional network.
    one, _ = forward(network, spiking, IMAGES)
    other, _ = forward(found, normalised, IMAGES)
    jax.tree.map(close, one, other)


@pytest.mark.parametrize("net", [residual, shifted, ends], ids=lambda net: net.__name__)
def test_changes_are_scaled_too(net):
    """Of refining neurons, whose input is presented once."""
    network, spiking, _ = case(net, "channel")
    found, normalised = normalise(network, spiking)
    neuron = Refining()
    before = simulate(
        Model(network, neuron), spiking, IMAGES, 4, record=network.neurons
    )
    after = simulate(Model(found, neuron), normalised, IMAGES, 4, record=found.neurons)
    jax.tree.map(np.testing.assert_array_equal, before.spikes, after.spikes)


def test_normalise_again_changes_nothing():
    network, spiking, _ = case(plain, "channel")
    network, once = normalise(network, spiking)
    again, twice = normalise(network, once)
    assert again == network
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), once, twice)


def test_the_new_network_is_the_users_function():
    """With weights of its own, and in what is measured of it."""
    network, spiking, w = case(residual, "layer")
    found, normalised = normalise(network, spiking)
    assert found != network and hash(found) != hash(network)
    worst = verify(found, w, normalised, IMAGES)
    assert worst["logits"] < 1e-12
    thetas = {name: spiking[name].theta for name in network.neurons}
    worst = verify(found, w, convert(found, w, thetas), IMAGES)
    assert worst["logits"] < 1e-12
    assert energy.fan_out(found) == energy.fan_out(network)
    assert energy.fan_out(found, normalised) == energy.fan_out(network, spiking)
    (wire, *_) = sorted(normalised.keys() - spiking.keys())
    assert wire in str(found)
    with pytest.raises(ValueError, match=f"{wire}: the converted network has no weig"):
        normalise(found, spiking)


def test_corrections_are_rescaled_too():
    network, spiking, _ = case(residual, "channel")
    rng, spiking = np.random.default_rng(3), dict(spiking)
    for name in network.neurons:
        theta, _, _ = spiking[name]
        initial = rng.uniform(0, 1, threshold_shapes(network, name)[2])
        bias = rng.uniform(0, 0.2, (2, *np.shape(initial)))
        spiking[name] = type(spiking[name])(
            theta, jnp.asarray(initial), jnp.asarray(bias)
        )
    found, normalised = normalise(network, spiking)
    neuron = Burst(5)
    before = simulate(
        Model(network, neuron), spiking, IMAGES, 6, record=network.neurons
    )
    after = simulate(Model(found, neuron), normalised, IMAGES, 6, record=found.neurons)
    jax.tree.map(np.testing.assert_array_equal, before.spikes, after.spikes)
    # One number for all channels and steps has no place among units per channel.
    name = network.neurons[0]
    scalar = spiking | {name: spiking[name]._replace(bias=jnp.asarray(0.1))}
    found, normalised = normalise(network, scalar)
    np.testing.assert_array_equal(normalised[name].theta, spiking[name].theta)
    before = simulate(Model(network, neuron), scalar, IMAGES, 6)
    after = simulate(Model(found, neuron), normalised, IMAGES, 6)
    jax.tree.map(np.testing.assert_array_equal, before.events, after.events)


def test_unusable_units_are_refused():
    network, spiking, _ = case(plain, "layer")
    for logits in (0.0, -1.0, np.nan):
        with pytest.raises(
            ValueError, match="logits: expected a number greater than 0"
        ):
            normalise(network, spiking, logits=logits)
