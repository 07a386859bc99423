"""Networks people convert, as Flax modules that anybody could have written.

VGG (Simonyan and Zisserman, 2015) and ResNet (He et al., 2016) with the stems and heads
used on 32x32 images and, `..._imagenet`, on 224x224 ones; a ResNet with
squeeze-and-excitation (Hu et al., 2018) and hard-swish, and a vision transformer
(Dosovitskiy et al., 2021). All padding is explicit and the same on both sides, and
batch normalisation has the epsilon 1e-5, as in PyTorch.

    module = vgg16(100)
    variables = module.init(key, images)
    logits = module.apply(variables, images)
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxburst.checks import door, fields, one_of, refuse, whole


def _conv(features: int, kernel: int, stride: int, name: str, bias: bool = False):
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=(stride, stride),
        padding=kernel // 2,
        use_bias=bias,
        kernel_init=nn.initializers.he_normal(),
        name=name,
    )


def _norm(train: bool, name: str):
    return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, name=name)


class VGG(nn.Module):
    """A VGG with batch normalisation and 2x2 max pooling.

    Parameters are named `conv0`, `norm0`, `conv1`, ..., `dense0`, ...

    Attributes:
      plan: channels of each 3x3 convolution, `'M'` for a pool: `(64, 'M', 128, 'M')`.
      classes: number of logits.
      bias: whether convolutions have a bias in front of their normalisation.
      hidden: features of each dense layer before the last.

    Example:
      >>> parameters(VGG((8, "M", 16), 10), (8, 8, 1))
      3866
    """

    plan: tuple[int | str, ...]
    classes: int
    bias: bool = True
    hidden: tuple[int, ...] = ()

    def __post_init__(self):
        fields(self, plan="plan", classes="classes", bias="flag", hidden="sizes")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[B, classes]` of normalised images `[B, H, W, C]`."""
        count = 0
        for entry in self.plan:
            if isinstance(entry, str):  # "M"
                x = nn.max_pool(x, (2, 2), (2, 2))
                continue
            x = _conv(entry, 3, 1, f"conv{count}", self.bias)(x)
            x = nn.relu(_norm(train, f"norm{count}")(x))
            count += 1
        x = x.reshape(x.shape[0], -1)
        for i, features in enumerate(self.hidden):
            x = nn.relu(nn.Dense(features, name=f"dense{i}")(x))
        return nn.Dense(self.classes, name=f"dense{len(self.hidden)}")(x)


class ResNet(nn.Module):
    """A ResNet of basic blocks, with a stem before and one dense layer behind them.

    Parameters are named `conv0`, `norm0` (the stem), `block0/conv0`, `block0/norm0`,
    `block0/conv1`, `block0/norm1`, `block0/shortcut`, `block0/shortcut_norm`, ...,
    `dense0`.

    Attributes:
      widths: channels of each stage; every stage but the first halves the map.
      blocks: blocks per stage, one number for all stages or one for each.
      classes: number of logits.
      shortcut: as in `Block`.
      stem: how many 3x3 convolutions, of the first width, come before the blocks; or
        `'imagenet'`: a 7x7 convolution with stride 2, and max pooling.
      head: what the last maps are reduced by: `'mean'` over all of it, or `'max'` over
        windows of 4x4.
      excite: whether blocks have squeeze-and-excitation, and hard-swish for ReLU.

    Example:
      >>> parameters(ResNet((8, 16), 1, 10), (8, 8, 1))
      4962
    """

    widths: tuple[int, ...]
    blocks: int | tuple[int, ...]
    classes: int
    shortcut: str = "subsample"
    stem: int | str = 1
    head: str = "mean"
    excite: bool = False

    def __post_init__(self):
        fields(self, widths="sizes", classes="classes", shortcut="shortcut")
        fields(self, head="head", excite="flag")
        if isinstance(self.stem, str):
            one_of("ResNet.stem", self.stem, ("imagenet",))
        else:
            whole("ResNet.stem", self.stem, 1)
        if isinstance(self.blocks, int):
            whole("ResNet.blocks", self.blocks, 1)
        else:
            fields(self, blocks="sizes")
            if len(self.blocks) != len(self.widths):
                refuse("ResNet.blocks", "one for each of the widths", self.blocks)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[B, classes]` of normalised images `[B, H, W, C]`."""
        activation = nn.hard_swish if self.excite else nn.relu
        if isinstance(self.stem, str):  # "imagenet"
            x = _conv(self.widths[0], 7, 2, "conv0")(x)
            x = activation(_norm(train, "norm0")(x))
            edges: Any = ((1, 1), (1, 1))  # Flax's own type knows names alone
            x = nn.max_pool(x, (3, 3), (2, 2), edges)
        else:
            for i in range(self.stem):
                x = _conv(self.widths[0], 3, 1, f"conv{i}")(x)
                x = activation(_norm(train, f"norm{i}")(x))
        counts = self.blocks
        if isinstance(counts, int):
            counts = (counts,) * len(self.widths)
        number = 0
        for stage, (width, count) in enumerate(zip(self.widths, counts, strict=True)):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                block = Block(width, stride, self.shortcut, self.excite,
                              name=f"block{number}")  # fmt: skip
                x = block(x, train)
                number += 1
        if self.head == "max":
            x = nn.max_pool(x, (4, 4), (4, 4)).reshape(x.shape[0], -1)
        else:
            x = x.mean((1, 2))
        return nn.Dense(self.classes, name="dense0")(x)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut around them; the ReLU is after their sum.

    With `excite`, what the second gives is scaled per channel by a gate between 0 and 1
    that two dense layers make of its mean over the map (Hu et al., CVPR 2018).

    Attributes:
      features: number of output channels.
      stride: of the first convolution.
      shortcut: where the shape changes: `'subsample'`, every second row and column and
        channels of zeros, half of them before the old ones and half after ("option A"
        of He et al., section 4.2), or `'conv'`, a 1x1 convolution ("option B").
      excite: squeeze-and-excitation by a quarter, and hard-swish for ReLU.

    Example:
      >>> parameters(Block(16, stride=2), (8, 8, 16))
      4672
    """

    features: int
    stride: int = 1
    shortcut: str = "subsample"
    excite: bool = False

    def __post_init__(self):
        fields(self, features="count", stride="count")
        fields(self, shortcut="shortcut", excite="flag")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """`[B, H, W, C]` to `[B, H / stride, W / stride, features]`."""
        activation = nn.hard_swish if self.excite else nn.relu
        y = _conv(self.features, 3, self.stride, "conv0")(x)
        y = activation(_norm(train, "norm0")(y))
        y = _norm(train, "norm1")(_conv(self.features, 3, 1, "conv1")(y))
        if self.excite:
            gate = y.mean((1, 2), keepdims=True)
            gate = nn.relu(nn.Dense(self.features // 4, name="squeeze")(gate))
            y = y * nn.hard_sigmoid(nn.Dense(self.features, name="excite")(gate))
        new = self.features - x.shape[-1]
        if self.stride > 1 or new:
            if self.shortcut == "conv":
                x = _conv(self.features, 1, self.stride, "shortcut")(x)
                x = _norm(train, "shortcut_norm")(x)
            else:
                x = x[:, :: self.stride, :: self.stride]
                x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (new // 2, new - new // 2)))
        return activation(x + y)


class ViT(nn.Module):
    """A vision transformer: normalisation first, the mean over tokens at the end.

    Parameters are named `embed`, `position`, `block0/norm0`, `block0/attention/query`,
    ..., `block0/dense1`, ..., `norm0`, `dense0`.

    Attributes:
      classes: number of logits.
      patch: side of the squares of pixels that become tokens.
      width: features of a token.
      depth: number of blocks.
      heads: of the attention.
      hidden: features of the layer in the middle of each block's second half.

    Example:
      >>> parameters(ViT(10, patch=4, width=16, depth=1, heads=2, hidden=32), (8, 8, 1))
      2762
    """

    classes: int
    patch: int = 4
    width: int = 128
    depth: int = 5
    heads: int = 4
    hidden: int = 256

    def __post_init__(self):
        fields(self, classes="classes", patch="count", width="count", depth="count")
        fields(self, heads="count", hidden="count")
        if self.width % self.heads:
            refuse("ViT.heads", f"a divisor of the width {self.width}", self.heads)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits `[B, classes]` of normalised images `[B, H, W, C]`."""
        del train  # nothing in it differs
        patch = (self.patch, self.patch)
        x = nn.Conv(self.width, patch, strides=patch, padding=0, name="embed")(x)
        x = x.reshape(x.shape[0], -1, self.width)
        drawn = nn.initializers.normal(0.02)
        x = x + self.param("position", drawn, (1, x.shape[1], self.width))
        for i in range(self.depth):
            x = Encoder(self.heads, self.hidden, name=f"block{i}")(x)
        x = nn.LayerNorm(name="norm0")(x).mean(1)
        return nn.Dense(self.classes, name="dense0")(x)


class Encoder(nn.Module):
    """Attention over tokens, then two dense layers with a GELU, each with a shortcut.

    Attributes:
      heads: of the attention.
      hidden: features between the two dense layers.

    Example:
      >>> parameters(Encoder(2, 32), (4, 16))
      2224
    """

    heads: int
    hidden: int

    def __post_init__(self):
        fields(self, heads="count", hidden="count")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """`[B, tokens, width]` to the same."""
        y = nn.LayerNorm(name="norm0")(x)
        x = x + nn.MultiHeadDotProductAttention(self.heads, name="attention")(y)
        y = nn.Dense(self.hidden, name="dense0")(nn.LayerNorm(name="norm1")(x))
        return x + nn.Dense(x.shape[-1], name="dense1")(nn.gelu(y))


def _vgg_plan(*repeats: int) -> tuple[int | str, ...]:
    plan: list[int | str] = []
    for width, repeat in zip((64, 128, 256, 512, 512), repeats, strict=True):
        plan += [width] * repeat + ["M"]
    return tuple(plan)


@door
def vgg11(classes: int) -> VGG:
    """VGG-11 for 32x32 images: 8 convolutions, one dense layer.

    Example:
      >>> parameters(vgg11(10), (32, 32, 3))
      9231114
    """
    return VGG(_vgg_plan(1, 1, 2, 2, 2), classes)


@door
def vgg13(classes: int) -> VGG:
    """VGG-13 for 32x32 images: 10 convolutions, one dense layer.

    Example:
      >>> parameters(vgg13(10), (32, 32, 3))
      9416010
    """
    return VGG(_vgg_plan(2, 2, 2, 2, 2), classes)


@door
def vgg16(classes: int) -> VGG:
    """VGG-16 for 32x32 images: 13 convolutions, one dense layer, 313 million MACs.

    Example:
      >>> parameters(vgg16(100), (32, 32, 3))
      14774436
    """
    return VGG(_vgg_plan(2, 2, 3, 3, 3), classes)


@door
def vgg19(classes: int) -> VGG:
    """VGG-19 for 32x32 images: 16 convolutions, one dense layer.

    Example:
      >>> parameters(vgg19(10), (32, 32, 3))
      20040522
    """
    return VGG(_vgg_plan(2, 2, 4, 4, 4), classes)


@door
def vgg16_imagenet(classes: int) -> VGG:
    """VGG-16 for 224x224 images, torchvision's `vgg16_bn`: 15.5 billion MACs.

    13 convolutions and three dense layers, the first of which holds 103 of its 138
    million parameters. torchvision's pooling to 7x7 before them does nothing to images
    of this size; its dropout is not for inference.

    Example:
      >>> parameters(vgg16_imagenet(1000), (224, 224, 3))
      138365992
    """
    return VGG(_vgg_plan(2, 2, 3, 3, 3), classes, hidden=(4096, 4096))


@door
def vgg9(classes: int) -> VGG:
    """A narrow VGG of 8 convolutions that trains on CPU: 133 million MACs.

    2.4 million parameters; convolutions on 32x32 maps are 32 channels wide, since those
    maps take most of the time, and 128, 128, 256, 256, 256 and 256 after them.

    Example:
      >>> parameters(vgg9(100), (32, 32, 3))
      2363972
    """
    plan = (32, 32, "M", 128, 128, "M", 256, 256, "M", 256, 256, "M")
    return VGG(plan, classes, bias=False)


@door
def vgg7(classes: int) -> VGG:
    """A VGG of 6 convolutions, 16 to 64 channels wide, for the 28x28 grey images of
    Fashion-MNIST: 78,000 parameters that train in minutes.

    Example:
      >>> parameters(vgg7(10), (28, 28, 1))
      77786
    """
    plan = (16, 16, "M", 32, 32, "M", 64, 64, "M")
    return VGG(plan, classes, bias=False)


@door
def vgg_tiny(classes: int) -> VGG:
    """A VGG of four convolutions and two pools for 8x8 images (digits, tests).

    Example:
      >>> parameters(vgg_tiny(10), (8, 8, 1))
      17850
    """
    return VGG((16, 16, "M", 32, 32, "M"), classes)


@door
def resnet20(classes: int, *, shortcut: str = "subsample") -> ResNet:
    """The CIFAR ResNet-20 of He et al., section 4.2: 0.27 million parameters.

    Example:
      >>> parameters(resnet20(10), (32, 32, 3))
      269722
    """
    return ResNet((16, 32, 64), 3, classes, shortcut)


@door
def resnet32(classes: int, *, shortcut: str = "subsample") -> ResNet:
    """The CIFAR ResNet-32 of He et al., section 4.2: 0.46 million parameters.

    Example:
      >>> parameters(resnet32(10), (32, 32, 3))
      464154
    """
    return ResNet((16, 32, 64), 5, classes, shortcut)


@door
def resnet44(classes: int, *, shortcut: str = "subsample") -> ResNet:
    """The CIFAR ResNet-44 of He et al., section 4.2: 0.66 million parameters.

    Example:
      >>> parameters(resnet44(10), (32, 32, 3))
      658586
    """
    return ResNet((16, 32, 64), 7, classes, shortcut)


@door
def resnet56(classes: int, *, shortcut: str = "subsample") -> ResNet:
    """The CIFAR ResNet-56 of He et al., section 4.2: 0.85 million parameters.

    Example:
      >>> parameters(resnet56(10), (32, 32, 3))
      853018
    """
    return ResNet((16, 32, 64), 9, classes, shortcut)


@door
def seresnet20(classes: int) -> ResNet:
    """The CIFAR ResNet-20 with squeeze-and-excitation, and hard-swish for ReLU.

    Example:
      >>> parameters(seresnet20(10), (32, 32, 3))
      278206
    """
    return ResNet((16, 32, 64), 3, classes, excite=True)


@door
def vit(classes: int) -> ViT:
    """A vision transformer for 32x32 images: 64 tokens of 128 features, 5 blocks.

    Example:
      >>> parameters(vit(10), (32, 32, 3))
      678410
    """
    return ViT(classes)


@door
def resnet18(classes: int) -> ResNet:
    """ResNet-18 with a 3x3 stem for 32x32 images: 11.2 million parameters.

    Example:
      >>> parameters(resnet18(10), (32, 32, 3))
      11173962
    """
    return ResNet((64, 128, 256, 512), 2, classes, "conv")


@door
def resnet18_imagenet(classes: int) -> ResNet:
    """The ResNet-18 of He et al. for 224x224 images: 11.7 million parameters.

    Example:
      >>> parameters(resnet18_imagenet(1000), (224, 224, 3))
      11689512
    """
    return ResNet((64, 128, 256, 512), 2, classes, "conv", stem="imagenet")


@door
def resnet34_imagenet(classes: int) -> ResNet:
    """The ResNet-34 of He et al. for 224x224 images: 21.8 million parameters.

    Example:
      >>> parameters(resnet34_imagenet(1000), (224, 224, 3))
      21797672
    """
    return ResNet((64, 128, 256, 512), (3, 4, 6, 3), classes, "conv", stem="imagenet")


@door
def resnet20_wide(classes: int) -> ResNet:
    """The network that the authors of the burst paper call "ResNet20".

    A stem of three 3x3 convolutions before the stages of ResNet-18, and max pooling at
    its head. It has forty times the weights of the CIFAR `resnet20`.

    Example:
      >>> parameters(resnet20_wide(10), (32, 32, 3))
      11247946
    """
    return ResNet((64, 128, 256, 512), 2, classes, "conv", stem=3, head="max")


@door
def vit_tiny(classes: int) -> ViT:
    """A vision transformer of one block for 8x8 images (digits, tests).

    Example:
      >>> parameters(vit_tiny(10), (8, 8, 1))
      9610
    """
    return ViT(classes, patch=2, width=32, depth=1, heads=2, hidden=64)


@door
def resnet_tiny(classes: int, *, shortcut: str = "subsample") -> ResNet:
    """A ResNet of two blocks for 8x8 images (digits, tests).

    Example:
      >>> parameters(resnet_tiny(10), (8, 8, 1))
      19130
    """
    return ResNet((16, 32), 1, classes, shortcut)


NETWORKS = {
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet20_wide": resnet20_wide,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet_tiny": resnet_tiny,
    "seresnet20": seresnet20,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "vgg7": vgg7,
    "vgg9": vgg9,
    "vgg_tiny": vgg_tiny,
    "vit": vit,
    "vit_tiny": vit_tiny,
}
"""For images of 32x32, `vgg7` of 28x28, those called tiny of 8x8."""

IMAGENET = {
    "resnet18": resnet18_imagenet,
    "resnet34": resnet34_imagenet,
    "vgg16": vgg16_imagenet,
}
"""For images of 224x224."""


@door(variables="mapping")
def renamed(variables: dict[str, Any]) -> dict[str, Any]:
    """Variables under the names of version 0.1, under the names of these modules.

    `conv3/norm/scale` becomes `norm3/scale`, `residual0/body/conv1` `block0/conv1`, and
    `residual0/shortcut/conv0` `block0/shortcut`. Names that fit already stay.

    Example:
      >>> old = {"params": {"conv3": {"norm": {"scale": np.ones(2)}}}}
      >>> list(renamed(old)["params"])
      ['norm3']
    """
    return unflatten_dict(
        {_renamed(path): value for path, value in flatten_dict(variables).items()}
    )


def _renamed(path: tuple[str, ...]) -> tuple[str, ...]:
    collection, *scopes, leaf = path
    if not scopes:
        return path
    norm = scopes[-1] == "norm"
    if norm:
        scopes.pop()
    layer = scopes.pop()
    if "shortcut" in scopes:
        layer = "shortcut_norm" if norm else "shortcut"
    elif norm:
        layer = layer.replace("conv", "norm")
    kept = [name for name in scopes if name not in ("body", "shortcut")]
    block = [name.replace("residual", "block") for name in kept]
    return collection, *block, layer, leaf
