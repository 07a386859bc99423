"""Networks for ImageNet: torchvision's sizes, and torchvision's weights on them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from jaxburst.energy import macs
from jaxburst.io.state_dict import load_pytorch
from jaxburst.tracing import trace
from jaxburst.zoo import IMAGENET, resnet18_imagenet

WIDTHS = (64, 128, 256, 512)


def taps(size: int, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """Of a window along one side: all taps, and those that are not on padding."""
    starts = range(-padding, size + padding - kernel + 1, stride)
    inside = [len([i for i in range(s, s + kernel) if 0 <= i < size]) for s in starts]
    return kernel * len(starts), sum(inside)


# Learnable parameters as torchvision publishes them with its weights. Its billions of
# operations, 1.81, 3.66 and 15.47, are multiply-accumulates, with those on padding.
@pytest.mark.parametrize(
    "name, parameters, published",
    [
        ("resnet18", 11_689_512, 1.81e9),
        ("resnet34", 21_797_672, 3.66e9),
        ("vgg16", 138_365_992, 15.47e9),
    ],
)
def test_the_networks_have_the_size_of_torchvisions(name, parameters, published):
    module = IMAGENET[name](1000)
    image = jnp.zeros((1, 224, 224, 3))
    shapes = jax.eval_shape(module.init, jax.random.key(0), image)
    sizes = [leaf.size for leaf in jax.tree.leaves(shapes["params"])]
    assert sum(sizes) == parameters
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, "f4"), shapes)
    network = trace(module.apply, variables, image)
    everywhere, inside = {}, {}
    for name in network.synapses:
        node = network.graph[name]
        kernel = node.role.kernel
        everywhere[name] = inside[name] = math.prod(kernel)
        if node.role.is_conv:
            params = node.role.params
            size = network.graph[node.inputs[0]].image_shape[1]
            stride, (padding, _) = params["window_strides"][0], params["padding"][0]
            both = taps(size, kernel[0], stride, padding)
            channels = math.prod(kernel[2:])
            everywhere[name], inside[name] = (channels * n**2 for n in both)
    assert sum(everywhere.values()) == pytest.approx(published, rel=3e-3)
    assert macs(network) == inside


def resnet18_state_dict(rng) -> dict[str, np.ndarray]:
    """Small weights under torchvision's names, in its order: downsample last."""
    state = {}

    def conv(name, wide, to, kernel):
        scale = np.sqrt(2 / (wide * kernel**2))
        state[f"{name}.weight"] = rng.normal(0, scale, (to, wide, kernel, kernel))

    def norm(name, width):
        state[f"{name}.weight"] = rng.uniform(0.5, 1, width)
        state[f"{name}.bias"] = rng.normal(0, 0.1, width)
        state[f"{name}.running_mean"] = rng.normal(0, 0.1, width)
        state[f"{name}.running_var"] = rng.uniform(0.5, 1.5, width)
        state[f"{name}.num_batches_tracked"] = np.array(7)

    conv("conv1", 3, 64, 7)
    norm("bn1", 64)
    channels = 64
    for stage, width in enumerate(WIDTHS, 1):
        for block in (0, 1):
            place = f"layer{stage}.{block}"
            conv(f"{place}.conv1", channels, width, 3)
            norm(f"{place}.bn1", width)
            conv(f"{place}.conv2", width, width, 3)
            norm(f"{place}.bn2", width)
            if channels != width:
                conv(f"{place}.downsample.0", channels, width, 1)
                norm(f"{place}.downsample.1", width)
            channels = width
    state["fc.weight"] = rng.normal(0, 512**-0.5, (1000, 512))
    state["fc.bias"] = rng.normal(0, 0.1, 1000)
    return {
        name: value if value.dtype == np.int64 else value.astype(np.float32)
        for name, value in state.items()
    }


def resnet18_by_hand(state, images) -> np.ndarray:
    """The logits of images `[B, C, H, W]`, in NumPy, from torchvision's names."""

    def windows(x, kernel, stride, padding, fill=0.0):
        around = ((0, 0), (0, 0), (padding, padding), (padding, padding))
        padded = np.pad(x, around, constant_values=fill)
        view = sliding_window_view(padded, (kernel, kernel), (2, 3))
        return view[:, :, ::stride, ::stride]

    def conv(x, name, stride=1):
        weight = state[f"{name}.weight"]
        seen = windows(x, weight.shape[2], stride, weight.shape[2] // 2)
        return np.einsum("bchwij,ocij->bohw", seen, weight, optimize=True)

    def norm(x, name):
        mean, variance, scale, bias = (
            state[f"{name}.{part}"].reshape(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / np.sqrt(variance + 1e-5) * scale + bias

    x = np.maximum(norm(conv(images, "conv1", 2), "bn1"), 0)
    x = windows(x, 3, 2, 1, fill=-np.inf).max((4, 5))
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            place, around = f"layer{stage}.{block}", x
            stride = 2 if stage > 1 and block == 0 else 1
            if stride == 2:
                around = conv(x, f"{place}.downsample.0", 2)
                around = norm(around, f"{place}.downsample.1")
            x = np.maximum(norm(conv(x, f"{place}.conv1", stride), f"{place}.bn1"), 0)
            x = norm(conv(x, f"{place}.conv2"), f"{place}.bn2")
            x = np.maximum(x + around, 0)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def test_torchvisions_resnet_computes_the_same_here():
    rng = np.random.default_rng(0)
    state = resnet18_state_dict(rng)
    assert len(state) == 122  # as many entries as torchvision's state dict
    images = rng.normal(size=(2, 64, 64, 3)).astype(np.float32)
    module = resnet18_imagenet(1000)
    loaded = load_pytorch(module, state, images)
    logits = jax.jit(module.apply)(loaded.variables, images)
    expected = resnet18_by_hand(state, images.transpose(0, 3, 1, 2))
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
