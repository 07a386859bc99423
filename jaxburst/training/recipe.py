"""How to train: a recipe of plain numbers, and the rate that follows from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax.numpy as jnp

from jaxburst.checks import door
from jaxburst.training.augmentation import KINDS

PRECISIONS = ("float32", "bfloat16")
"""What a network can be trained in."""


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are those of Li and Zeng (IJCAI 2022).

    Attributes:
      epochs: passes over the training split.
      batch_size: images per step. The rest that fills no batch is left out of an epoch.
      learning_rate: its peak; see `schedule`.
      momentum: share of the previous update that is kept.
      nesterov: whether the momentum is Nesterov's.
      weight_decay: multiple of each parameter that is added to its gradient, as in
        PyTorch's SGD: of all parameters, biases and normalisations included.
      warmup_epochs: length of the warm-up; may be a fraction.
      label_smoothing: share of the target that is spread evenly over all classes.
      augment: how images are varied. `crop_flip`: flipped, and shifted by up to an
        eighth of their height (4 pixels of 32). `li2022`: moreover by AutoAugment's
        policy and Cutout; see `augmentation.augment`. Or `none`.
      cutout: side of Cutout's squares, in pixels; None for those of `augment` (half the
        height with `li2022`, else none).
      cutout_until: share of the steps that have Cutout, the first ones. The last ones
        train on whole images, which are what the network is for.
      alternate_flips: whether an image is flipped in every other epoch, and not at
        random; see `augmentation.alternating_flips`.
      precision: what a step computes the network in, `float32` or `bfloat16`.
        Parameters, batch statistics, loss and optimiser are float32 in either case.
      ema: decay of an exponential moving average over the steps, of parameters and
        batch statistics, which is then the trained network; 0 for the last ones.
      seed: chooses the initial weights, the batches and the augmentation.

    Raises:
      ValueError: naming the field, what it expects and what it found.

    Example:
      >>> Recipe(epochs=10, label_smoothing=0.0).batch_size
      128
    """

    epochs: int = 300
    batch_size: int = 128
    learning_rate: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    warmup_epochs: float = 0
    label_smoothing: float = 0.1
    augment: str = "li2022"
    cutout: int | None = None
    cutout_until: float = 1.0
    alternate_flips: bool = False
    precision: str = "float32"
    ema: float = 0.0
    seed: int = 0

    def __post_init__(self):
        def require(fine: bool, name: str, expected: str) -> None:
            if not fine:
                found = getattr(self, name)
                raise ValueError(f"Recipe.{name}: expected {expected}, found {found!r}")

        require(is_whole(self.epochs, 1), "epochs", "a whole number of at least 1")
        require(
            is_whole(self.batch_size, 1), "batch_size", "a whole number of at least 1"
        )
        require(
            is_number(self.learning_rate) and self.learning_rate > 0,
            "learning_rate",
            "a positive number",
        )
        require(is_number(self.momentum, 1), "momentum", "a number in 0 <= x < 1")
        require(is_number(self.weight_decay), "weight_decay", "a number of at least 0")
        require(
            is_number(self.warmup_epochs, self.epochs),
            "warmup_epochs",
            f"a number in 0 <= x < {self.epochs}, the epochs",
        )
        require(
            is_number(self.label_smoothing, 1),
            "label_smoothing",
            "a number in 0 <= x < 1",
        )
        for name, known in (("augment", KINDS), ("precision", PRECISIONS)):
            require(getattr(self, name) in known, name, f"one of {', '.join(known)}")
        require(
            self.cutout is None or is_whole(self.cutout, 0),
            "cutout",
            "a whole number of pixels, or None",
        )
        require(
            is_number(self.cutout_until, math.nextafter(1, 2)),
            "cutout_until",
            "a number in 0 <= x <= 1",
        )
        require(is_number(self.ema, 1), "ema", "a number in 0 <= x < 1")
        require(is_whole(self.seed, 0, 2**32), "seed", "a whole number below 2**32")
        for name in ("nesterov", "alternate_flips"):
            value = getattr(self, name)
            require(isinstance(value, bool), name, "True or False")
        require(
            not self.nesterov or self.momentum > 0, "nesterov", "False without momentum"
        )
        require(
            not self.alternate_flips or self.augment != "none",
            "alternate_flips",
            "False with augment 'none', which flips no image",
        )


def is_whole(value, low: int, high: float = math.inf) -> bool:
    """Whether it is a whole number in `low <= value < high`."""
    # To Python, True is a whole number too.
    known = isinstance(value, int) and not isinstance(value, bool)
    return known and low <= value < high


def is_number(value, high: float = math.inf) -> bool:
    """Whether it is a number in `0 <= value < high`."""
    known = isinstance(value, int | float) and not isinstance(value, bool)
    return known and 0 <= value < high


LI2022 = Recipe()
"""The recipe of Li and Zeng (IJCAI 2022)."""


@door
def schedule(recipe: Recipe, steps_per_epoch: int) -> Callable:
    """The learning rate as a function of the step, counted from 0.

    With `W` steps of warm-up among `T`, and the peak `η`: `η (t + 1) / W` for `t < W`,
    then `η (1 + cos(π (t - W) / (T - W))) / 2`.

    Args:
      recipe: `epochs`, `warmup_epochs` and `learning_rate`.
      steps_per_epoch: batches in the split.

    Example:
      >>> rate = schedule(Recipe(epochs=10, warmup_epochs=2, learning_rate=0.1), 5)
      >>> [round(float(rate(step)), 3) for step in (0, 10, 30, 50)]
      [0.01, 0.1, 0.05, 0.0]
    """
    total = recipe.epochs * steps_per_epoch
    warm = min(round(recipe.warmup_epochs * steps_per_epoch), total - 1)

    def learning_rate(step):
        rise = jnp.minimum(1.0, (step + 1) / max(warm, 1))
        done = jnp.maximum(0, step - warm) / (total - warm)
        return recipe.learning_rate * rise * (1 + jnp.cos(jnp.pi * done)) / 2

    return learning_rate
