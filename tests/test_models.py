"""The zoo is ordinary Flax, and the networks that it was in version 0.1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxburst import models, zoo
from jaxburst.ann import Network

PAIRS = {
    **{name: (models.NETWORKS[name], zoo.NETWORKS[name]) for name in zoo.NETWORKS},
    "resnet18_imagenet": (models.resnet18_imagenet, zoo.resnet18_imagenet),
    "resnet34_imagenet": (models.resnet34_imagenet, zoo.resnet34_imagenet),
    "vgg16_imagenet": (models.vgg16_imagenet, zoo.vgg16_imagenet),
}


def image(name):
    side = 224 if "imagenet" in name else 8 if "tiny" in name else 32
    return jnp.zeros((1, side, side, 3))


def shapes(module, name, **options):
    return jax.eval_shape(module.init, jax.random.key(0), image(name), **options)


@pytest.mark.parametrize("name", PAIRS)
def test_each_network_has_the_parameters_it_had(name):
    new, old = (make(10) for make in PAIRS[name])
    before = models.renamed(shapes(Network(old), name))
    now = shapes(new, name)
    assert jax.tree.map(str, now) == jax.tree.map(str, before)  # shapes and dtypes
    assert models.renamed(now) == now


def settled(variables):
    """With batch statistics as of a trained network, and no scale or bias trivial."""
    rng = np.random.default_rng(0)

    def settle(path, value):
        if path[-1].key == "kernel":
            return value
        return jnp.asarray(rng.uniform(0.5, 1.5, value.shape), value.dtype)

    return jax.tree_util.tree_map_with_path(settle, variables)


@pytest.mark.parametrize(
    ("new", "old"),
    [
        (models.vgg_tiny(5), zoo.vgg_tiny(5)),
        (models.VGG((4, "M", 5, "M"), 3, False, (6, 7)), "hidden"),
        (models.resnet_tiny(5), zoo.resnet_tiny(5)),
        (models.resnet_tiny(5, shortcut="conv"), zoo.resnet_tiny(5, shortcut="conv")),
        (models.ResNet((4, 6), (1, 2), 3, "conv", "imagenet"), "imagenet"),
        (models.ResNet((4, 6), 1, 3, "conv", 3, "max"), "wide"),
    ],
)
def test_each_network_computes_what_it_did(new, old):
    if old == "hidden":
        old = zoo.vgg((4, "M", 5, "M"), 3, bias=False, hidden=(6, 7))
    elif old == "imagenet":
        stem = zoo.Conv(4, 7, 2, 3, norm=True), zoo.Relu(), zoo.MaxPool(3, 2, 1)
        old = zoo.resnet(stem, (4, 6), (1, 2), 3, shortcut="conv")
    elif old == "wide":
        stem = (zoo.Conv(4, norm=True), zoo.Relu()) * 3
        body = zoo.resnet(stem, (4, 6), 1, 3, shortcut="conv")
        old = (*body[:-3], zoo.MaxPool(4), zoo.Flatten(), zoo.Dense(3))
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 16, 16, 3)), jnp.float32)
    variables = settled(Network(old).init(jax.random.key(0), x))
    for train in (False, True):
        options = {"train": train, "mutable": ["batch_stats"] if train else []}
        (expected, _), before = Network(old).apply(variables, x, **options)
        found, after = new.apply(models.renamed(variables), x, **options)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)
        assert jax.tree.structure(after) == jax.tree.structure(models.renamed(before))


def test_an_unknown_shortcut_is_refused():
    with pytest.raises(ValueError, match="shortcut must be .*, found 'identity'"):
        shapes(models.resnet_tiny(3, shortcut="identity"), "tiny")
