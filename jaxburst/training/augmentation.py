"""Augmentation of the training images: crop and flip, AutoAugment, Cutout.

    images = augment("li2022", key, images)    # uint8 [B, H, W, C] in and out

AutoAugment's policy for CIFAR-10 is that of Cubuk et al. (CVPR 2019, appendix, table
7) in the variant that published ANN-SNN conversions train with. It departs from the
paper in the second probability of the 17th sub-policy (0.8 for 0.6), and in what a
level means: see `OPERATIONS`. The operations are those of Pillow, in whole numbers and
hence the same on every device. Where one cuts off decimals, and the exact value is a
whole number, Pillow's floating point can fall short of it and give one grey level less.

All functions are pure and run under `jit`; `B` counts images.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxburst.checks import WORDS, door

KINDS = WORDS["kind"]
"""What `augment` can do."""

_LEVELS = 10
_GREY = 128  # of what comes into view from outside the image


@door(images="batch")
def augment(
    kind: str,
    key: jax.Array,
    images: jax.Array,
    *,
    flips: jax.Array | None = None,
    side: int | jax.Array | None = None,
) -> jax.Array:
    """Augments a batch: crop, flip, AutoAugment, Cutout, in this order.

    Args:
      kind: `none`; `crop_flip`, with a border of an eighth of the height (4 pixels of
        32); or `li2022`, all four, with squares of half the height (16 pixels of 32),
        as in the published code of Li and Zeng (IJCAI 2022).
      key: JAX random key.
      images: pixels, before `normalise` (so that black is black). uint8 `[B, H, W, C]`.
      flips: as for `crop_and_flip`.
      side: of Cutout's squares, in pixels, instead of those of `kind`; 0 for none.

    Returns:
      As `images`.
    """
    crop_key, policy_key, cutout_key = jax.random.split(key, 3)
    height = images.shape[1]
    if kind != "none":
        images = crop_and_flip(crop_key, images, height // 8, flips)
    if kind == "li2022":
        images = auto_augment(policy_key, images)
        side = height // 2 if side is None else side
    return images if side is None else cutout(cutout_key, images, side)


@door(images="batch")
def crop_and_flip(
    key: jax.Array,
    images: jax.Array,
    padding: int = 4,
    flips: jax.Array | None = None,
) -> jax.Array:
    """Shifts each image at random, and mirrors half of them.

    Each image gets a border of `padding` black pixels, is cropped at a random place
    to its old size, then flipped left to right with probability 1/2.

    Args:
      key: JAX random key.
      images: pixels, before `normalise` (so that the border is black). `[B, H, W, C]`.
      padding: width of the border, in pixels; static under `jit`.
      flips: which images are flipped, if chance does not decide. bool `[B]`.

    Returns:
      As `images`, same dtype.
    """
    corners, drawn = _draw_crop(key, len(images), padding)
    return _crop_and_flip(images, corners, drawn if flips is None else flips, padding)


def alternating_flips(key: jax.Array, rows: jax.Array, epoch: jax.Array) -> jax.Array:
    """Which images are flipped in an epoch: every other time, the first at random.

    `flips_i(epoch) = flips_i(0) xor (epoch mod 2)`, so two epochs in a row show both
    sides of an image, where chance shows the same one twice in every other case (as in
    Jordan, arXiv 2404.00498).

    Args:
      key: JAX random key, the same in all epochs.
      rows: numbers of the images in their split. int32 `[B]`.
      epoch: counted from 0.

    Returns:
      For `crop_and_flip`. bool `[B]`.
    """
    first = jax.vmap(lambda row: jax.random.bernoulli(jax.random.fold_in(key, row)))
    return first(rows) ^ (epoch % 2 == 1)


@door(images="batch")
def auto_augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Applies a random sub-policy of AutoAugment's CIFAR-10 policy to each image.

    Each of the two operations of a sub-policy happens with its own probability, those
    of a signed magnitude in either direction with probability 1/2.

    Args:
      key: JAX random key.
      images: pixels, in one or three channels. uint8 `[B, H, W, C]`.

    Returns:
      As `images`.

    Raises:
      TypeError: the images are not uint8.
      ValueError: they have neither one channel nor three.
    """
    if images.dtype != np.uint8:
        raise TypeError(
            f"auto_augment: expected uint8 pixels 0..255, found {images.dtype}; "
            "normalise afterwards"
        )
    if images.shape[-1] not in (1, 3):
        raise ValueError(
            "auto_augment: expected grey images or red, green and blue, [B, H, W, 1] "
            f"or [B, H, W, 3], found {list(images.shape)}"
        )

    # Together, all images go through all operations: fast only on accelerators.
    augmented = lax.platform_dependent(
        (images.astype(jnp.int32), *_draw_policy(key, len(images))),
        cpu=lambda batch: lax.map(_apply, batch),
        default=jax.vmap(_apply),
    )
    return augmented.astype(jnp.uint8)


@door(images="batch")
def cutout(key: jax.Array, images: jax.Array, side: int | jax.Array = 16) -> jax.Array:
    """Blackens a square in each image (DeVries and Taylor, arXiv 1708.04552).

    Its centre is any pixel with equal probability, so the border may cut it off.

    Args:
      key: JAX random key.
      images: pixels, before `normalise` (so that the square is black). `[B, H, W, C]`.
      side: of the square, in pixels; 0 for none.

    Returns:
      As `images`, same dtype.
    """
    batch, height, width, _ = images.shape
    row_key, column_key = jax.random.split(key)

    def covered(key, size):
        centre = jax.random.randint(key, (batch, 1), 0, size, dtype=jnp.int32)
        place = jnp.arange(size, dtype=jnp.int32)[None] - (centre - side // 2)
        return (0 <= place) & (place < side)

    rows, columns = covered(row_key, height), covered(column_key, width)
    hole = rows[:, :, None, None] & columns[:, None, :, None]
    return jnp.where(hole, jnp.zeros((), images.dtype), images)


# Crop and flip.


def _draw_crop(key, batch: int, padding: int):
    """Random corners `[B, 2]` (row, column) and flips `[B]`."""
    corner_key, flip_key = jax.random.split(key)
    corners = jax.random.randint(
        corner_key, (batch, 2), 0, 2 * padding + 1, dtype=jnp.int32
    )
    return corners, jax.random.bernoulli(flip_key, shape=(batch,))


def _crop_and_flip(images, corners, flips, padding: int):
    batch, height, width, _ = images.shape
    border = (padding, padding)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)))
    row = np.arange(height, dtype=np.int32)[None, :]
    column = np.arange(width, dtype=np.int32)[None, :]
    rows = corners[:, :1] + row
    columns = corners[:, 1:] + jnp.where(flips[:, None], width - 1 - column, column)
    image = np.arange(batch, dtype=np.int32)[:, None, None]
    return padded[image, rows[:, :, None], columns[:, None, :]]


# Operations on one image, int32 [H, W, C], at a level 0 .. 9 and with a sign, 0 for
# minus and 1 for plus. What depends on these two only is a table made by NumPy.


def _invert(image, level, sign):
    return 255 - image


def _posterize(image, level, sign):
    bits = np.round(np.linspace(8, 4, _LEVELS)).astype(np.int32)
    return image & jnp.asarray(-(2 ** (8 - bits)))[level]


def _solarize(image, level, sign):
    # A whole number is below the threshold if it is below the next whole number.
    threshold = np.ceil(np.linspace(256, 0, _LEVELS)).astype(np.int32)
    return jnp.where(image < jnp.asarray(threshold)[level], image, 255 - image)


def _autocontrast(image, level, sign):
    low, high = (f(image, (0, 1), keepdims=True) for f in (jnp.min, jnp.max))
    stretched = (image - low) * 255 // jnp.maximum(high - low, 1)
    return jnp.where(high > low, stretched, image)


def _equalize(image, level, sign):
    return jax.vmap(_equalize_channel, -1, -1)(image)


def _equalize_channel(channel):
    counts = _histogram(channel.reshape(-1))
    darker = jnp.cumsum(counts) - counts
    step = darker[channel.max()] // 255
    table = jnp.minimum((darker + step // 2) // jnp.maximum(step, 1), 255)
    return jnp.where(step > 0, table[channel], channel)


def _histogram(values):
    """How often each of 0 .. 255 occurs, int32 `[256]`."""
    # A matrix product, for scatters are slow; exact in any precision.
    high, low = jax.nn.one_hot(values // 16, 16), jax.nn.one_hot(values % 16, 16)
    return (high.T @ low).astype(jnp.int32).reshape(256)


def _brightness(image, level, sign):
    return _blend(jnp.zeros_like(image), image, level, sign)


def _color(image, level, sign):
    return _blend(jnp.broadcast_to(_grey(image), image.shape), image, level, sign)


def _contrast(image, level, sign):
    grey = _grey(image)
    mean = (2 * grey.sum() + grey.size) // (2 * grey.size)  # to the nearest
    return _blend(jnp.full_like(image, mean), image, level, sign)


def _sharpness(image, level, sign):
    height, width, _ = image.shape
    if min(height, width) < 3:
        return image  # all border, which is never smoothed
    triples = image[:-2] + image[1:-1] + image[2:]
    total = triples[:, :-2] + triples[:, 1:-1] + triples[:, 2:]
    total += 4 * image[1:-1, 1:-1]
    inner = lax.div(2 * total + 13, 26)  # total / 13, to the nearest
    return _blend(image.at[1:-1, 1:-1].set(inner), image, level, sign)


def _grey(image):
    """Luminance, `[H, W, 1]` (ITU-R BT.601)."""
    if image.shape[-1] == 1:
        return image
    red, green, blue = (image[..., i : i + 1] for i in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 32768) >> 16


def _blend(without, image, level, sign):
    """From `without`, at factor 0, past the image, at factor 1."""
    tenths = 10 * image + (2 * sign - 1) * level * (image - without)
    return lax.div(jnp.clip(tenths, 0, 2550), 10)


def _translate_x(image, level, sign):
    return _translate(image, 1, level, sign)


def _translate_y(image, level, sign):
    return _translate(image, 0, level, sign)


def _translate(image, axis: int, level, sign):
    size = image.shape[axis]
    shift = np.outer([-1, 1], np.linspace(0, 150 / 331, _LEVELS)) * size
    # The pixel whose area holds the centre.
    nearest = jnp.asarray(np.floor(shift + 0.5).astype(np.int32))[sign, level]
    source = jnp.arange(size, dtype=jnp.int32) + nearest
    inside = (0 <= source) & (source < size)
    moved = jnp.take(image, source, axis, mode="clip")
    return jnp.where(jnp.expand_dims(inside, (1 - axis, 2)), moved, _GREY)


def _shear_y(image, level, sign):
    # Columns stay in place: of bicubic interpolation, the vertical half is left.
    height, width, _ = image.shape
    row = jnp.arange(height, dtype=jnp.int32)[:, None]
    column = jnp.arange(width, dtype=jnp.int32)[None, :]
    # In sixtieths of a pixel, since the slope is level / 30.
    shift = (2 * sign - 1) * level * (2 * column + 1)
    above, part = shift // 60, shift % 60

    def tap(i):
        return image[jnp.clip(row + above + i, 0, height - 1), column]

    a, b, c, d = tap(-1), tap(0), tap(1), tap(2)
    t = part[..., None]
    # Cubic convolution (Keys 1981), with -1 for the slope at the neighbours.
    cubic = (c - a) * 3600 + t * ((2 * (a - b) + c - d) * 60 + t * (b - a + d - c))
    value = lax.div(jnp.clip(b * 60**3 + t * cubic, 0, 255 * 60**3), 60**3)
    place = row + (shift + 30) // 60
    inside = (0 <= place) & (place < height)
    return jnp.where(inside[..., None], value, _GREY)


def _rotate(image, level, sign):
    height, width, _ = image.shape
    table = jnp.asarray(_rotations(height, width))
    row = jnp.arange(height, dtype=jnp.int32)[:, None]
    column = jnp.arange(width, dtype=jnp.int32)[None, :]
    y, x = (
        (a * row + b * column + c) >> 16
        for a, b, c in (table[level, 0], table[level, 1])
    )
    inside = (0 <= y) & (y < height) & (0 <= x) & (x < width)
    turned = image[jnp.clip(y, 0, height - 1), jnp.clip(x, 0, width - 1)]
    return jnp.where(inside[..., None], turned, _GREY)


@functools.cache
def _rotations(height: int, width: int) -> np.ndarray:
    """Source row and column as affine functions of (row, column), times 65536.

    Counter-clockwise about the centre of the image, by 0 to 30 degrees. `[10, 2, 3]`.
    """
    rows = []
    for degrees in np.linspace(0, 30, _LEVELS):
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        y, x = (height - 1) / 2, (width - 1) / 2
        rows.append(
            [
                [cos, sin, height / 2 - cos * y - sin * x],
                [-sin, cos, width / 2 + sin * y - cos * x],
            ]
        )
    return np.floor(np.array(rows) * 65536 + 0.5).astype(np.int32)


OPERATIONS = {
    "identity": lambda image, level, sign: image,
    "autocontrast": _autocontrast,
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "equalize": _equalize,
    "invert": _invert,
    "posterize": _posterize,
    "rotate": _rotate,
    "sharpness": _sharpness,
    "shear_y": _shear_y,
    "solarize": _solarize,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
}
"""Operations on one image, int32 `[H, W, C]`, a level 0 .. 9 and a sign, 0 or 1.

Brightness, color, contrast, sharpness: by the factor `1 ± level / 10`. Posterize: from
8 bits to 4. Solarize: from the threshold 256 to 0. Translate: by ± 0 to 45 % of the
side, to the nearest pixel. Shear: by a slope of ± 0 to 0.3, bicubic. Rotate: by 0 to 30
degrees, counter-clockwise only, to the nearest pixel. The outside is grey, 128.
"""


# The policy.

POLICY = (
    (("invert", 0.1, 7), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("translate_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.5, 8), ("equalize", 0.9, 2)),
    (("shear_y", 0.2, 7), ("posterize", 0.3, 7)),
    (("color", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalize", 0.6, 5), ("equalize", 0.5, 1)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("color", 0.7, 7), ("translate_x", 0.5, 8)),
    (("equalize", 0.3, 7), ("autocontrast", 0.4, 8)),
    (("translate_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("color", 0.2, 8)),
    (("solarize", 0.5, 2), ("invert", 0.0, 3)),
    (("equalize", 0.2, 0), ("autocontrast", 0.6, 0)),
    (("equalize", 0.2, 8), ("equalize", 0.8, 4)),
    (("color", 0.9, 9), ("equalize", 0.6, 6)),
    (("autocontrast", 0.8, 4), ("solarize", 0.2, 8)),
    (("brightness", 0.1, 3), ("color", 0.7, 0)),
    (("solarize", 0.4, 5), ("autocontrast", 0.9, 3)),
    (("translate_y", 0.9, 9), ("translate_y", 0.7, 9)),
    (("autocontrast", 0.9, 2), ("solarize", 0.8, 3)),
    (("equalize", 0.8, 8), ("invert", 0.1, 3)),
    (("translate_y", 0.7, 9), ("autocontrast", 0.9, 1)),
)
"""25 sub-policies of two steps: operation, probability, level."""


def _draw_policy(key, batch: int):
    """Operation, level and sign of both steps; the operation of a step that does not
    happen is the identity. Each int32 `[B, 2]`."""
    names = list(OPERATIONS)
    operation, chance, level = (
        jnp.asarray(np.array(column, kind).reshape(-1, 2))
        for column, kind in (
            ([names.index(name) for pair in POLICY for name, _, _ in pair], np.int32),
            ([chance for pair in POLICY for _, chance, _ in pair], np.float32),
            ([level for pair in POLICY for _, _, level in pair], np.int32),
        )
    )
    policy_key, chance_key, sign_key = jax.random.split(key, 3)
    policy = jax.random.randint(policy_key, (batch,), 0, len(POLICY))
    happens = jax.random.uniform(chance_key, (batch, 2)) < chance[policy]
    sign = jax.random.randint(sign_key, (batch, 2), 0, 2, dtype=jnp.int32)
    identity = jnp.int32(names.index("identity"))
    return jnp.where(happens, operation[policy], identity), level[policy], sign


def _apply(image_and_steps):
    """Two operations on one image; the steps are arrays `[2]`."""

    def operate(image, step):
        operation, level, sign = step
        branches = list(OPERATIONS.values())
        return lax.switch(operation, branches, image, level, sign), None

    image, *steps = image_and_steps
    return lax.scan(operate, image, tuple(steps))[0]
