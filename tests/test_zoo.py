"""The zoo is ordinary Flax, of the sizes that are published."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxburst as jb
from jaxburst import zoo

# He et al. (2016), section 4.2, as counted by akamaster/pytorch_resnet_cifar10; VGGs
# and ResNet-18 as by kuangliu/pytorch-cifar.
PUBLISHED = {
    "resnet18": 11_173_962,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "vgg11": 9_231_114,
    "vgg13": 9_416_010,
    "vgg16": 14_728_266,
    "vgg19": 20_040_522,
}


def shapes(module, name):
    side, channels = (8, 1) if "tiny" in name else (32, 3)
    image = jnp.zeros((1, side, side, channels))
    return jax.eval_shape(module.init, jax.random.key(0), image)


@pytest.mark.parametrize("name", PUBLISHED)
def test_networks_have_the_published_number_of_parameters(name):
    params = shapes(zoo.NETWORKS[name](10), name)["params"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert count == PUBLISHED[name]


def test_a_transformer_has_the_parameters_of_its_formula():
    width, hidden, depth, tokens = 128, 256, 5, 64
    attention = 4 * (width * width + width)
    dense = 2 * width * hidden + hidden + width
    norms = 2 * 2 * width
    params = shapes(zoo.vit(10), "vit")["params"]
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert count == (
        (48 * width + width + tokens * width)
        + depth * (attention + dense + norms)
        + (2 * width + width * 10 + 10)
    )


@pytest.mark.parametrize("name", zoo.NETWORKS)
def test_names_of_old_trees_become_those_of_now(name):
    now = shapes(zoo.NETWORKS[name](10), name)
    assert zoo.renamed(now) == now
    old = {
        "params": {"conv0": {"kernel": 1, "norm": {"scale": 2}}},
        "batch_stats": {"conv0": {"norm": {"mean": 3}}},
    }
    assert zoo.renamed(old) == {
        "params": {"conv0": {"kernel": 1}, "norm0": {"scale": 2}},
        "batch_stats": {"norm0": {"mean": 3}},
    }


@pytest.mark.parametrize("name", ["vgg_tiny", "resnet_tiny"])
def test_training_uses_the_statistics_of_the_batch(name):
    module = zoo.NETWORKS[name](3)
    x = jnp.asarray(np.random.default_rng(0).normal(2, 3, (4, 8, 8, 1)), jnp.float32)
    variables = module.init(jax.random.key(0), x)
    logits, changed = module.apply(variables, x, train=True, mutable=["batch_stats"])
    assert logits.shape == (4, 3)
    before, after = variables["batch_stats"], changed["batch_stats"]
    assert (before["norm0"]["mean"] != after["norm0"]["mean"]).all()


def test_a_network_traces_under_its_own_names():
    module = zoo.resnet_tiny(3)
    x = np.zeros((1, 8, 8, 1), np.float32)
    network = jb.trace(module.apply, module.init(jax.random.key(0), x), x)
    assert network.synapses == (
        *("conv0", "block0/conv0", "block0/conv1"),
        *("block1/conv0", "block1/conv1", "dense0"),
    )
    assert network.neurons[:2] == ("relu0", "block0/relu0")


def traced(name, classes):
    module = zoo.NETWORKS[name](classes)
    made = jax.tree.map(lambda x: np.full(x.shape, 0.1, x.dtype), shapes(module, name))
    side, channels = (8, 1) if "tiny" in name else (32, 3)
    return jb.trace(module.apply, made, np.zeros((1, side, side, channels), "f4"))


def test_the_summary_of_a_network():
    expected = """
        name role output parameters MACs source
        input0 input 8x8x1
        conv0 synapse 8x8x16 160 7,744
        relu0 neuron 8x8x16
        block0/conv0 synapse 8x8x16 2,320 123,904
        block0/relu0 neuron 8x8x16
        block0/conv1 synapse 8x8x16 2,320 123,904
        block0/relu1 neuron 8x8x16
        block1/conv0 synapse 4x4x32 4,640 61,952
        block1/relu0 neuron 4x4x32
        block1/conv1 synapse 4x4x32 9,248 102,400
        block1/relu1 neuron 4x4x32
        dense0 synapse 3 99 96
        total 18,787 420,000
    """
    found = str(traced("resnet_tiny", 3))
    assert len(found.splitlines()) == 14
    assert found.split() == expected.split()


def taps(side, stride=1):
    """Of a 3x3 kernel that is padded by 1, along one axis: those on the map."""
    return 3 * side - 2 if stride == 1 else 3 * side // 2 - 1


MACS = {
    "resnet20": taps(32) ** 2 * (3 * 16 + 6 * 16 * 16)
    + taps(32, 2) ** 2 * 16 * 32
    + taps(16) ** 2 * 5 * 32 * 32
    + taps(16, 2) ** 2 * 32 * 64
    + taps(8) ** 2 * 5 * 64 * 64
    + 64 * 10,
    "vgg16": taps(32) ** 2 * (3 * 64 + 64 * 64)
    + taps(16) ** 2 * (64 * 128 + 128 * 128)
    + taps(8) ** 2 * (128 * 256 + 2 * 256 * 256)
    + taps(4) ** 2 * (256 * 512 + 2 * 512 * 512)
    + taps(2) ** 2 * 3 * 512 * 512
    + 512 * 10,
}


@pytest.mark.parametrize("name", MACS)
def test_multiplications_by_formula(name):
    network = traced(name, 10)
    assert sum(jb.energy.macs(network).values()) == MACS[name]
    *_, total = str(network).splitlines()
    assert total.split()[-1] == f"{MACS[name]:,}"


def test_an_unknown_shortcut_is_refused():
    with pytest.raises(ValueError, match="shortcut: .*, found 'identity'"):
        shapes(zoo.resnet_tiny(3, shortcut="identity"), "tiny")
