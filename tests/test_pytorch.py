"""State dicts as PyTorch writes them come back as the variables they were."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_variables
from safetensors.numpy import save_file

from jaxburst import load_pytorch, zoo
from jaxburst.ann import Network
from jaxburst.layers import Conv, Dense, Flatten, MaxPool, Relu, Residual, walk

BLOCK = ("conv1", "bn1", "conv2", "bn2")


def written(layers, variables, names):
    """A state dict with `names` of each affine layer and its norm, in network order.

    Channel-first, with PyTorch's names, in an order of its own. What follows a Flatten
    must have seen a map of 1x1, so that there is nothing to permute.
    """
    tensors = {}
    names = iter(names)
    for path, layer in walk(layers):
        if not isinstance(layer, Conv | Dense):
            continue
        own, seen = variables["params"], variables["batch_stats"]
        for key in path.split("/"):
            own, seen = own[key], seen.get(key, {})
        name = next(names)
        axes = (3, 2, 0, 1) if isinstance(layer, Conv) else (1, 0)
        tensors[f"{name}.weight"] = own["kernel"].transpose(axes)
        if layer.bias:
            tensors[f"{name}.bias"] = own["bias"]
        if layer.norm:
            name = next(names)
            tensors[f"{name}.weight"] = own["norm"]["scale"]
            tensors[f"{name}.bias"] = own["norm"]["bias"]
            tensors[f"{name}.running_mean"] = seen["norm"]["mean"]
            tensors[f"{name}.running_var"] = seen["norm"]["var"]
            tensors[f"{name}.num_batches_tracked"] = np.array([7])
    assert next(names, None) is None
    order = np.random.default_rng(1).permutation(sorted(tensors))
    return {name: np.ascontiguousarray(tensors[name]) for name in order}


def resnet(blocks, shortcut):
    stem = (Conv(2, norm=True), Relu())
    return zoo.resnet(stem, (2, 3, 4), blocks, 5, shortcut=shortcut)


def blocks(*counts, downsample):
    """Names of torchvision's and akamaster's blocks, stage by stage."""
    names = ["conv1", "bn1"]
    for stage, count in enumerate(counts, 1):
        for block in range(count):
            names += [f"layer{stage}.{block}.{name}" for name in BLOCK]
            if downsample and stage > 1 and block == 0:
                names += [f"layer{stage}.0.downsample.{i}" for i in (0, 1)]
    return names


# name: (layers, image shape, PyTorch's names in network order)
DIALECTS = {
    # github.com/akamaster/pytorch_resnet_cifar10; eleven blocks: 1.10 after 1.9
    "akamaster": (
        resnet((11, 1, 1), "subsample"),
        (8, 8, 3),
        [*blocks(11, 1, 1, downsample=False), "linear"],
    ),
    "torchvision resnet": (
        resnet((2, 2, 2), "conv"),
        (8, 8, 3),
        [*blocks(2, 2, 2, downsample=True), "fc"],
    ),
    # features.10 after features.7; a BatchNorm1d in the head
    "torchvision vgg": (
        (
            *(Conv(2, bias=True, norm=True), Relu(), MaxPool(2)),
            *(Conv(3, bias=True, norm=True), Relu(), MaxPool(2)),
            *(Conv(4, bias=True, norm=True), Relu()),
            *(Conv(5, bias=True, norm=True), Relu(), MaxPool(2)),
            *(Flatten(), Dense(6, norm=True), Relu(), Dense(3)),
        ),
        (8, 8, 3),
        [
            *("features.0", "features.1", "features.4", "features.5"),
            *("features.8", "features.9", "features.11", "features.12"),
            *("classifier.0", "classifier.1", "classifier.4"),
        ],
    ),
    "one sequential": (
        (Conv(2, norm=True), Relu(), MaxPool(8), Flatten(), Dense(6), Relu(), Dense(3)),
        (8, 8, 3),
        ["0", "1", "5", "7"],
    ),
}


def dialect(name):
    layers, image_shape, names = DIALECTS[name]
    variables = random_variables(layers, image_shape, np.random.default_rng(0))
    variables = jax.tree.map(np.float32, variables)
    return layers, image_shape, variables, written(layers, variables, names)


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", DIALECTS)
def test_round_trip(name, prefix):
    layers, image_shape, variables, tensors = dialect(name)
    tensors = {prefix + key: value for key, value in tensors.items()}
    assert len(jax.tree.leaves(variables)) > 4
    assert_equal(load_pytorch(layers, tensors, image_shape), variables)


def test_round_trip_through_a_file(tmp_path):
    layers, image_shape, variables, tensors = dialect("akamaster")
    path = tmp_path / "weights.safetensors"
    save_file(tensors, path)
    assert_equal(load_pytorch(layers, path, image_shape), variables)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_pytorch(layers, path, image_shape)
    with pytest.raises(FileNotFoundError, match="weights.none"):
        load_pytorch(layers, tmp_path / "weights.none", image_shape)


def test_order_names_what_comes_first():
    layers = (
        *(Conv(2), Relu(), Residual((Conv(2), Relu(), Conv(2))), Relu()),
        *(MaxPool(8), Flatten(), Dense(2)),
    )
    variables = random_variables(layers, (8, 8, 2), np.random.default_rng(0))
    variables = jax.tree.map(np.float32, variables | {"batch_stats": {}})
    names = ["stem.conv", "body.conv1", "body.conv2", "head"]
    tensors = written(layers, variables, names)
    found = load_pytorch(layers, tensors, (8, 8, 2), order=("stem", "body"))
    assert_equal(found, {"params": variables["params"]})
    other = load_pytorch(layers, tensors, (8, 8, 2))  # alphabetical: body, body, stem
    expected = variables["params"]["residual0"]["body"]["conv0"]["kernel"]
    np.testing.assert_array_equal(other["params"]["conv0"]["kernel"], expected)


def test_a_dense_after_flatten_reads_channel_first_order():
    """The network computes what PyTorch does: flatten `[C, H, W]`, then multiply."""
    layers = (Relu(), MaxPool(2, 1), Flatten(), Dense(5), Relu(), Dense(3))
    rng = np.random.default_rng(0)
    tensors = {
        "fc1.weight": rng.normal(size=(5, 4 * 2 * 3)).astype("f4"),
        "fc1.bias": rng.normal(size=5).astype("f4"),
        "fc2.weight": rng.normal(size=(3, 5)).astype("f4"),
        "fc2.bias": rng.normal(size=3).astype("f4"),
    }
    images = rng.uniform(size=(6, 3, 4, 4)).astype("f4")  # [B, H, W, C], positive
    first = images.transpose(0, 3, 1, 2)  # PyTorch's [B, C, H, W]
    pooled = np.maximum(first[..., :-1], first[..., 1:])
    pooled = np.maximum(pooled[:, :, :-1], pooled[:, :, 1:])
    hidden = pooled.reshape(6, -1) @ tensors["fc1.weight"].T + tensors["fc1.bias"]
    expected = np.maximum(hidden, 0) @ tensors["fc2.weight"].T + tensors["fc2.bias"]
    variables = load_pytorch(layers, tensors, (3, 4, 4))
    logits, _ = Network(layers).apply(variables, jnp.asarray(images))
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_dense_layers_that_timm_writes_as_convolutions():
    """timm's VGG: a convolution over the whole map, and one over a single place."""
    layers = zoo.vgg((2, "M", 3, "M"), 4, hidden=(5, 6))
    variables = random_variables(layers, (8, 8, 3), np.random.default_rng(0))
    variables = jax.tree.map(np.float32, variables)
    names = ["features.0", "features.1", "features.4", "features.5"]
    heads = ["pre_logits.fc1", "pre_logits.fc2", "head.fc"]
    tensors = written(layers, variables, [*names, *heads])
    first = tensors["pre_logits.fc1.weight"].reshape(5, 2, 2, 3)  # [.., H, W, C] here
    tensors["pre_logits.fc1.weight"] = first.transpose(0, 3, 1, 2)
    tensors["pre_logits.fc2.weight"] = tensors["pre_logits.fc2.weight"][..., None, None]
    assert_equal(load_pytorch(layers, tensors, (8, 8, 3)), variables)
    del tensors["head.fc.weight"], tensors["head.fc.bias"]
    with pytest.raises(ValueError, match="left over: pre_logits.fc1.weight"):
        load_pytorch(layers, tensors, (8, 8, 3))


def test_every_misfit_is_listed_in_one_error():
    layers, image_shape, _, tensors = dialect("torchvision vgg")
    del tensors["features.4.bias"]
    tensors["features.0.weight"] = tensors["features.0.weight"][:, :, :2]
    tensors["classifier.9.running_mean"] = np.zeros(3, np.float32)
    tensors["classifier.0.mask"] = np.zeros(3, np.float32)
    tensors["temperature"] = np.zeros(1, np.float32)
    with pytest.raises(ValueError) as caught:
        load_pytorch(layers, tensors, image_shape)
    message = str(caught.value)
    for problem in (
        "5 problems",
        "missing: features.4.bias for conv1",
        "wrong shape: features.0.weight is (2, 3, 2, 3), but conv0 needs (2, 3, 3, 3)",
        "left over: classifier.9.running_mean",
        "left over: classifier.0.mask",
        "left over: temperature",
    ):
        assert problem in message


def test_missing_layers_are_listed_by_path():
    layers, image_shape, _, tensors = dialect("torchvision resnet")
    gone = {key: value for key, value in tensors.items() if not key.startswith("fc")}
    with pytest.raises(ValueError, match="missing: dense weight of dense0"):
        load_pytorch(layers, gone, image_shape)
