"""The trained network is the one the tuple describes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from flax.traverse_util import flatten_dict
from networks import NAMES, TABLE, case, quick

from jaxburst.ann import Network, accuracy, apply, apply_in_batches
from jaxburst.data import Split
from jaxburst.layers import Conv, Dense, Flatten, Relu, walk

pytestmark = pytest.mark.usefixtures("float64")


@pytest.mark.parametrize("name", NAMES)
def test_network_equals_the_definition(name):
    """Logits and the activations of every Relu, against NumPy."""
    it = case(name)
    logits, record = quick(apply)(it.layers, it.variables, it.images)
    np.testing.assert_allclose(logits, it.logits, rtol=0, atol=1e-12)
    assert record.keys() == set(it.relus)
    for path, activations in it.activations.items():
        assert activations.any() and not activations.all()
        np.testing.assert_allclose(record[path], activations, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_parameters_nest_under_the_paths_of_their_layers(name):
    layers, image_shape = TABLE[name]
    image = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    variables = jax.eval_shape(Network(layers).init, jax.random.key(0), image)
    expected = set()
    for path, layer in walk(layers):
        if isinstance(layer, Conv | Dense):
            trained = ["kernel"] + ["bias"] * layer.bias
            trained += ["norm/scale", "norm/bias"] * layer.norm
            seen = ["norm/mean", "norm/var"] * layer.norm
            expected |= {("params", f"{path}/{name}") for name in trained}
            expected |= {("batch_stats", f"{path}/{name}") for name in seen}
    found = {
        (collection, "/".join(path)): leaf
        for collection, tree in variables.items()
        for path, leaf in flatten_dict(tree).items()
    }
    assert found.keys() == expected
    assert {leaf.dtype for leaf in found.values()} == {jnp.dtype(jnp.float32)}


def test_batches_are_those_of_the_whole():
    it = case("residual first")
    images = np.concatenate([it.images, it.images[::-1]])[:7]
    batches = list(apply_in_batches(it.layers, it.variables, images, 4))
    assert [len(logits) for logits, _ in batches] == [4, 3]
    assert all(list(record) == list(it.relus) for _, record in batches)
    logits = np.concatenate([logits for logits, _ in batches])
    expected, _ = oracle.ann(it.layers, it.variables, images)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)


def test_batch_statistics_follow_with_momentum():
    """new = 0.9 old + 0.1 of the batch, mean and (biased) variance."""
    layers = (Conv(3, bias=True, norm=True), Relu(), Flatten(), Dense(2))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(2, 3, (6, 4, 4, 2)), jnp.float32)
    network = Network(layers)
    variables = quick(network.init, ())(jax.random.key(0), images)
    train = functools.partial(network.apply, train=True, mutable=["batch_stats"])
    _, changed = quick(train, ())(variables, images)
    own = variables["params"]["conv0"]
    x = oracle.convolve(np.asarray(images, float), np.asarray(own["kernel"]), 1, 1)
    found = changed["batch_stats"]["conv0"]["norm"]
    mean, variance = x.mean((0, 1, 2)), x.var((0, 1, 2))
    assert np.abs(mean).max() > 0.5
    np.testing.assert_allclose(found["mean"], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(found["var"], 0.9 + 0.1 * variance, rtol=1e-5)


def test_accuracy_counts_a_partial_batch_right():
    it = case("residual first")
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (7, *it.image_shape), dtype=np.uint8)
    split = Split(images, np.zeros(7, np.int32), (0.5, 0.4), (0.3, 0.2))
    logits, _ = oracle.ann(it.layers, it.variables, split.inputs.astype(float))
    best = logits.argmax(-1).astype(np.int32)
    variables = jax.tree.map(np.float32, it.variables)
    # Wrong in the first batch of 3 and in the last, which holds one image.
    for wrong in ([], [1], [6], [0, 5, 6]):
        labels = best.copy()
        labels[wrong] = (labels[wrong] + 1) % 4
        marked = Split(images, labels, split.mean, split.std)
        found = accuracy(it.layers, variables, marked, batch_size=3)
        assert found == (7 - len(wrong)) / 7


def test_networks_are_validated_on_their_first_image():
    with pytest.raises(ValueError, match="ends in a Dense"):
        Network((Conv(3), Relu())).init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
