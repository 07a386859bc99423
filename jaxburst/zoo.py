"""Networks people convert, as functions that return tuples of layers.

VGG (Simonyan and Zisserman, 2015) and ResNet (He et al., 2016) with the stems and heads
used on 32x32 images and, `..._imagenet`, on 224x224 ones; `vgg` and `resnet` are the
builders, the rest are one line each.
"""

from __future__ import annotations

from jaxburst.layers import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    Layers,
    MaxPool,
    Relu,
    Residual,
    Subsample,
)


def vgg(
    plan: tuple[int | str, ...],
    classes: int,
    *,
    bias: bool = True,
    hidden: tuple[int, ...] = (),
) -> Layers:
    """A VGG with batch normalisation and 2x2 max pooling.

    Args:
      plan: channels of each 3x3 convolution, `'M'` for a pool: `(64, 'M', 128, 'M')`.
      classes: number of logits.
      bias: whether convolutions have a bias in front of their normalisation.
      hidden: features of each Dense layer before the last.

    Returns:
      The network.
    """
    layers: list = []
    for entry in plan:
        if entry == "M":
            layers.append(MaxPool(2))
        else:
            layers += [Conv(entry, bias=bias, norm=True), Relu()]
    layers.append(Flatten())
    for features in hidden:
        layers += [Dense(features), Relu()]
    return (*layers, Dense(classes))


def _vgg_plan(*repeats: int) -> tuple[int | str, ...]:
    plan: list[int | str] = []
    for width, repeat in zip((64, 128, 256, 512, 512), repeats, strict=True):
        plan += [width] * repeat + ["M"]
    return tuple(plan)


def vgg11(classes: int) -> Layers:
    """VGG-11 for 32x32 images: 8 convolutions, one Dense layer."""
    return vgg(_vgg_plan(1, 1, 2, 2, 2), classes)


def vgg13(classes: int) -> Layers:
    """VGG-13 for 32x32 images: 10 convolutions, one Dense layer."""
    return vgg(_vgg_plan(2, 2, 2, 2, 2), classes)


def vgg16(classes: int) -> Layers:
    """VGG-16 for 32x32 images: 13 convolutions, one Dense layer, 313 million MACs."""
    return vgg(_vgg_plan(2, 2, 3, 3, 3), classes)


def vgg19(classes: int) -> Layers:
    """VGG-19 for 32x32 images: 16 convolutions, one Dense layer."""
    return vgg(_vgg_plan(2, 2, 4, 4, 4), classes)


def vgg16_imagenet(classes: int) -> Layers:
    """VGG-16 for 224x224 images, torchvision's `vgg16_bn`: 15.5 billion MACs.

    13 convolutions and three Dense layers, the first of which holds 103 of its 138
    million parameters. torchvision's pooling to 7x7 before them does nothing to images
    of this size; its dropout is not for inference.
    """
    return vgg(_vgg_plan(2, 2, 3, 3, 3), classes, hidden=(4096, 4096))


def vgg9(classes: int) -> Layers:
    """A narrow VGG of 8 convolutions that trains on CPU: 133 million MACs.

    2.4 million parameters; convolutions on 32x32 maps are 32 channels wide, since those
    maps take most of the time, and 128, 128, 256, 256, 256 and 256 after them.
    """
    plan = (32, 32, "M", 128, 128, "M", 256, 256, "M", 256, 256, "M")
    return vgg(plan, classes, bias=False)


def vgg_tiny(classes: int) -> Layers:
    """A VGG of four convolutions and two pools for 8x8 images (digits, tests)."""
    return vgg((16, 16, "M", 32, 32, "M"), classes)


def resnet(
    stem: Layers,
    widths: tuple[int, ...],
    blocks: int | tuple[int, ...],
    classes: int,
    *,
    shortcut: str,
) -> Layers:
    """A ResNet of basic blocks: two 3x3 convolutions and a shortcut each.

    Args:
      stem: the layers before the first block, ending in a Relu or a MaxPool.
      widths: channels of each stage; every stage but the first halves the map.
      blocks: blocks per stage, one number for all stages or one for each.
      classes: number of logits.
      shortcut: where the shape changes: `'subsample'`, without parameters ("option A"
        of He et al., section 4.2), or `'conv'`, a 1x1 convolution ("option B").

    Returns:
      The network, ending in global average pooling and one Dense layer.
    """
    if shortcut not in ("subsample", "conv"):
        raise ValueError(f"shortcut must be 'subsample' or 'conv', found {shortcut!r}")
    if isinstance(blocks, int):
        blocks = (blocks,) * len(widths)
    layers: list = [*stem]
    channels = [layer.features for layer in stem if isinstance(layer, Conv)][-1]
    for stage, (width, count) in enumerate(zip(widths, blocks, strict=True)):
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            layers += _basic_block(channels, width, stride, shortcut)
            channels = width
    return (*layers, AvgPool(), Flatten(), Dense(classes))


def _basic_block(channels: int, width: int, stride: int, shortcut: str) -> Layers:
    body = (
        Conv(width, stride=stride, norm=True),
        Relu(),
        Conv(width, norm=True),
    )
    if stride == 1 and channels == width:
        around: Layers = ()
    elif shortcut == "subsample":
        around = (Subsample(width, stride),)
    else:
        around = (Conv(width, kernel=1, stride=stride, padding=0, norm=True),)
    return (Residual(body, around), Relu())


def _cifar_resnet(blocks: int, classes: int, shortcut: str) -> Layers:
    stem = (Conv(16, norm=True), Relu())
    return resnet(stem, (16, 32, 64), blocks, classes, shortcut=shortcut)


def resnet20(classes: int, *, shortcut: str = "subsample") -> Layers:
    """The CIFAR ResNet-20 of He et al., section 4.2: 0.27 million parameters."""
    return _cifar_resnet(3, classes, shortcut)


def resnet32(classes: int, *, shortcut: str = "subsample") -> Layers:
    """The CIFAR ResNet-32 of He et al., section 4.2: 0.46 million parameters."""
    return _cifar_resnet(5, classes, shortcut)


def resnet44(classes: int, *, shortcut: str = "subsample") -> Layers:
    """The CIFAR ResNet-44 of He et al., section 4.2: 0.66 million parameters."""
    return _cifar_resnet(7, classes, shortcut)


def resnet56(classes: int, *, shortcut: str = "subsample") -> Layers:
    """The CIFAR ResNet-56 of He et al., section 4.2: 0.85 million parameters."""
    return _cifar_resnet(9, classes, shortcut)


def resnet18(classes: int) -> Layers:
    """ResNet-18 with a 3x3 stem for 32x32 images: 11.2 million parameters."""
    stem = (Conv(64, norm=True), Relu())
    return resnet(stem, (64, 128, 256, 512), 2, classes, shortcut="conv")


def _imagenet_resnet(blocks: int | tuple[int, ...], classes: int) -> Layers:
    stem = (
        Conv(64, kernel=7, stride=2, padding=3, norm=True),
        Relu(),
        MaxPool(3, stride=2, padding=1),
    )
    return resnet(stem, (64, 128, 256, 512), blocks, classes, shortcut="conv")


def resnet18_imagenet(classes: int) -> Layers:
    """The ResNet-18 of He et al. for 224x224 images: 11.7 million parameters."""
    return _imagenet_resnet(2, classes)


def resnet34_imagenet(classes: int) -> Layers:
    """The ResNet-34 of He et al. for 224x224 images: 21.8 million parameters."""
    return _imagenet_resnet((3, 4, 6, 3), classes)


def resnet20_wide(classes: int) -> Layers:
    """The network that the authors of the burst paper call "ResNet20".

    A stem of three 3x3 convolutions before the stages of ResNet-18, and max pooling at
    its head. It has forty times the weights of the CIFAR `resnet20`.
    """
    stem = (Conv(64, norm=True), Relu()) * 3
    body = resnet(stem, (64, 128, 256, 512), 2, classes, shortcut="conv")
    head = (MaxPool(4), Flatten(), Dense(classes))
    return (*body[: -len(head)], *head)


def resnet_tiny(classes: int, *, shortcut: str = "subsample") -> Layers:
    """A ResNet of two blocks for 8x8 images (digits, tests)."""
    stem = (Conv(16, norm=True), Relu())
    return resnet(stem, (16, 32), 1, classes, shortcut=shortcut)


NETWORKS = {
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet20_wide": resnet20_wide,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet_tiny": resnet_tiny,
    "vgg11": vgg11,
    "vgg13": vgg13,
    "vgg16": vgg16,
    "vgg19": vgg19,
    "vgg9": vgg9,
    "vgg_tiny": vgg_tiny,
}
"""For images of 32x32, those called tiny of 8x8."""

IMAGENET = {
    "resnet18": resnet18_imagenet,
    "resnet34": resnet34_imagenet,
    "vgg16": vgg16_imagenet,
}
"""For images of 224x224."""
