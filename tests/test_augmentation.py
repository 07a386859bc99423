"""Augmentation: Pillow's operations, the published policy, nothing but the key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from jaxburst.training import augmentation
from jaxburst.training.augmentation import (
    OPERATIONS,
    POLICY,
    alternating_flips,
    augment,
    auto_augment,
    crop_and_flip,
    cutout,
)

# Crop and flip.


def images_of(batch, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(1, 256, (batch, 6, 7, 3), dtype=np.uint8)


@pytest.mark.parametrize("padding", [0, 1, 4])
def test_crop_and_flip_against_numpy(padding):
    key, images = jax.random.key(3), images_of(16)
    corners, flips = map(np.asarray, augmentation._draw_crop(key, 16, padding))
    border = ((padding, padding), (padding, padding), (0, 0))
    expected = []
    for image, (row, column), flip in zip(images, corners, flips, strict=True):
        crop = np.pad(image, border)[row : row + 6, column : column + 7]
        expected.append(crop[:, ::-1] if flip else crop)
    out = crop_and_flip(key, images, padding)
    assert out.dtype == np.uint8 and out.shape == images.shape
    np.testing.assert_array_equal(out, np.stack(expected))


def test_crop_and_flip_is_the_same_under_jit():
    key, images = jax.random.key(3), images_of(16)
    np.testing.assert_array_equal(
        jax.jit(crop_and_flip)(key, images), crop_and_flip(key, images)
    )


def test_every_shift_and_both_sides_occur():
    corners, flips = augmentation._draw_crop(jax.random.key(0), 4000, 4)
    counts = np.zeros((9, 9), int)
    np.add.at(counts, tuple(np.asarray(corners).T), 1)
    assert counts.min() > 20 and counts.sum() == 4000
    assert 0.45 < np.asarray(flips).mean() < 0.55


def test_keys_decide():
    images = images_of(16)
    one, same, other = (
        np.asarray(crop_and_flip(jax.random.key(seed), images)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, same)
    assert (one != other).any()


def test_flips_are_given_or_drawn():
    key, images = jax.random.key(3), images_of(16)
    corners, _ = augmentation._draw_crop(key, 16, 2)
    flips = np.arange(16) % 3 == 0
    np.testing.assert_array_equal(
        crop_and_flip(key, images, 2, flips),
        augmentation._crop_and_flip(images, corners, flips, 2),
    )


def test_flips_alternate_from_a_random_beginning():
    key, rows = jax.random.key(0), np.arange(4000, dtype=np.int32)
    first, second, third = (alternating_flips(key, rows, i) for i in range(3))
    np.testing.assert_array_equal(second, ~first)
    np.testing.assert_array_equal(third, first)
    assert 0.45 < np.asarray(first).mean() < 0.55
    # Of the image, wherever in whatever batch it is.
    some = np.random.default_rng(0).permutation(rows)[:64]
    np.testing.assert_array_equal(alternating_flips(key, some, 1), second[some])
    assert (alternating_flips(jax.random.key(1), rows, 0) != first).any()


# The operations, against Pillow.


def by_pillow(name, image, level, sign):
    """The operation as programs that convert networks have it, on uint8 [H, W, C]."""
    grey = image.shape[-1] == 1
    image = Image.fromarray(image[..., 0] if grey else image)
    sign = (-1, 1)[sign]
    factor = 1 + sign * np.linspace(0, 0.9, 10)[level]
    shift = sign * np.linspace(0, 150 / 331, 10)[level]
    fill = 128 if grey else (128, 128, 128)

    def affine(*row_and_column, **options):
        data = (1, 0, 0, 0, 1, 0) if not row_and_column else row_and_column
        method = Image.Transform.AFFINE
        return image.transform(image.size, method, data, fillcolor=fill, **options)

    def rotate():
        turned = image.convert("RGBA").rotate(np.linspace(0, 30, 10)[level])
        outside = Image.new("RGBA", image.size, (128,) * 4)
        return Image.composite(turned, outside, turned).convert(image.mode)

    match name:
        case "identity":
            out = image
        case "autocontrast" | "equalize" | "invert":
            out = getattr(ImageOps, name)(image)
        case "posterize":
            out = ImageOps.posterize(image, int(np.linspace(8, 4, 10).round()[level]))
        case "solarize":
            out = ImageOps.solarize(image, np.linspace(256, 0, 10)[level])
        case "brightness" | "color" | "contrast" | "sharpness":
            out = getattr(ImageEnhance, name.capitalize())(image).enhance(factor)
        case "translate_x":
            out = affine(1, 0, shift * image.size[0], 0, 1, 0)
        case "translate_y":
            out = affine(1, 0, 0, 0, 1, shift * image.size[1])
        case "shear_y":
            slope = sign * np.linspace(0, 0.3, 10)[level]
            bicubic = Image.Resampling.BICUBIC
            out = affine(1, 0, 0, slope, 1, 0, resample=bicubic)
        case "rotate":
            out = rotate()
    out = np.asarray(out)
    return out[..., None] if grey else out


def pictures(channels=3, size=32):
    """Noise, dim noise, smooth pictures, one that is even, one of few values."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (3, size, size, channels), dtype=np.uint8)
    coarse = rng.integers(0, 256, (3, 6, 6, channels), dtype=np.uint8)
    smooth = [
        np.stack(
            [
                Image.fromarray(channel).resize((size, size), Image.Resampling.BICUBIC)
                for channel in np.moveaxis(picture, -1, 0)
            ],
            axis=-1,
        )
        for picture in coarse
    ]
    even = np.full((size, size, channels), 77, np.uint8)
    return np.stack([*noise, noise[0] // 3 + 40, *smooth, even, noise[1] // 90])


# Operations that cut off decimals: Pillow's may fall short of a whole number.
CUT_OFF = {"autocontrast", "brightness", "color", "contrast", "sharpness", "shear_y"}


@pytest.mark.parametrize(
    ("name", "channels"), [(name, 3) for name in OPERATIONS] + [("color", 1)]
)
def test_every_operation_is_that_of_pillow_at_every_level(name, channels):
    images = pictures(channels)
    sign, level = (i.ravel().astype(np.int32) for i in np.indices((2, 10)))
    operate = jax.vmap(jax.vmap(OPERATIONS[name], (None, 0, 0)), (0, None, None))
    found = jax.jit(operate)(images.astype(np.int32), level, sign)
    pairs = list(zip(level, sign, strict=True))
    expected = np.array(
        [[by_pillow(name, image, *pair) for pair in pairs] for image in images]
    )
    excess = np.asarray(found) - expected.astype(int)
    if name in CUT_OFF:
        assert set(np.unique(excess)) <= {0, 1}
        assert (excess != 0).mean() < 2e-3
    else:
        np.testing.assert_array_equal(excess, 0)


# The policy.


@pytest.fixture(scope="module")
def policy():
    return jax.jit(auto_augment)


def test_the_policy_is_its_operations_one_after_the_other(policy):
    key, images = jax.random.key(1), np.concatenate([pictures()] * 6)
    names = list(OPERATIONS)
    steps = (np.asarray(i) for i in augmentation._draw_policy(key, len(images)))
    expected = []
    for image, *pairs in zip(images, *steps, strict=True):
        for operation, level, sign in zip(*pairs, strict=True):
            image = by_pillow(names[operation], image, level, sign)
        expected.append(image)
    found = np.asarray(policy(key, images))
    assert found.dtype == np.uint8 and (found != images).any((1, 2, 3)).mean() > 0.6
    # A grey level less can become several, or another threshold.
    assert (found == np.stack(expected)).mean() > 0.995


def test_images_together_are_images_one_by_one(policy):
    key, images = jax.random.key(1), pictures()
    steps = augmentation._draw_policy(key, len(images))
    together = jax.vmap(augmentation._apply)((images.astype(np.int32), *steps))
    np.testing.assert_array_equal(policy(key, images), together)


def test_the_policy_has_25_pairs_and_needs_every_operation():
    assert len(POLICY) == 25 and all(len(pair) == 2 for pair in POLICY)
    assert POLICY[16] == (("equalize", 0.2, 8), ("equalize", 0.8, 4))
    assert {name for pair in POLICY for name, _, _ in pair} | {"identity"} == set(
        OPERATIONS
    )


def test_sub_policies_are_equally_likely_and_steps_as_likely_as_they_say():
    count = 100_000
    operation, level, sign = map(
        np.asarray, augmentation._draw_policy(jax.random.key(0), count)
    )
    assert abs(sign.mean() - 0.5) < 0.005
    found = np.zeros((2, len(OPERATIONS), 10))
    expected = np.zeros_like(found)
    for slot in (0, 1):
        np.add.at(found[slot], (operation[:, slot], level[:, slot]), 1 / count)
        for pair in POLICY:
            name, chance, at = pair[slot]
            expected[slot, list(OPERATIONS).index(name), at] += chance / 25
            expected[slot, 0, at] += (1 - chance) / 25
    # Five standard deviations of the likeliest.
    np.testing.assert_allclose(found, expected, atol=5 * np.sqrt(0.1 / count))
    # The two steps of a sub-policy happen independently.
    both = (operation != 0).all(1).mean()
    law = np.mean([a[1] * b[1] for a, b in POLICY])
    assert abs(both - law) < 5 * np.sqrt(0.25 / count)


def test_the_policy_refuses_what_it_would_get_wrong():
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="expected uint8.*found float32"):
        auto_augment(key, jnp.zeros((1, 8, 8, 3)))
    with pytest.raises(ValueError, match=r"grey.*found \[1, 8, 8, 2\]"):
        auto_augment(key, jnp.zeros((1, 8, 8, 2), jnp.uint8))


# Cutout.


@pytest.mark.parametrize(
    ("side", "tall", "wide"), [(4, 9, 11), (5, 9, 11), (16, 32, 32)]
)
def test_cutout_is_one_square_cut_off_by_the_border(side, tall, wide):
    images = np.full((600, tall, wide, 3), 9, np.uint8)
    out = np.asarray(cutout(jax.random.key(0), images, side))
    assert out.dtype == np.uint8
    assert set(np.unique(out)) == {0, 9}
    rows, columns = (out[..., 0] == 0).any(2), (out[..., 0] == 0).any(1)
    hole = rows[:, :, None, None] & columns[:, None, :, None]
    np.testing.assert_array_equal(out == 0, np.broadcast_to(hole, out.shape))
    for covered, size in ((rows, tall), (columns, wide)):
        # Every centre gives another stretch, of `side` pixels cut off by the border.
        first = np.arange(size) - side // 2
        inside = np.arange(size)[None]
        stretches = (first[:, None] <= inside) & (inside < first[:, None] + side)
        assert set(map(bytes, covered)) == set(map(bytes, stretches))


def test_no_cutout_of_no_side():
    images = images_of(4)
    np.testing.assert_array_equal(cutout(jax.random.key(0), images, 0), images)


# All together.


def test_kinds_build_on_each_other(policy):
    key, images = jax.random.key(2), pictures()
    keys = jax.random.split(key, 3)
    np.testing.assert_array_equal(augment("none", key, images), images)
    cropped = crop_and_flip(keys[0], images, 4)
    np.testing.assert_array_equal(augment("crop_flip", key, images), cropped)
    expected = cutout(keys[2], policy(keys[1], cropped), 16)
    np.testing.assert_array_equal(augment("li2022", key, images), expected)


def test_the_side_of_cutout_can_be_chosen_while_running(policy):
    key, images = jax.random.key(2), pictures()
    cropped = augment("crop_flip", key, images)
    expected = cutout(jax.random.split(key, 3)[2], cropped, 8)
    np.testing.assert_array_equal(augment("crop_flip", key, images, side=8), expected)
    traced = jax.jit(lambda side: augment("crop_flip", key, images, side=side))
    np.testing.assert_array_equal(traced(8), expected)
    np.testing.assert_array_equal(traced(0), cropped)
    whole = augment("li2022", key, images, side=0)
    np.testing.assert_array_equal(whole, policy(jax.random.split(key, 3)[1], cropped))
