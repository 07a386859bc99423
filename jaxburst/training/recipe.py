"""How to train: a recipe of plain numbers, and the rate that follows from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from jaxburst.checks import door, instance, number, one_of, refuse, whole
from jaxburst.training.augmentation import KINDS as AUGMENTATIONS

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
        def check(how: Callable, name: str, *expected) -> None:
            value = how(f"Recipe.{name}", getattr(self, name), *expected)
            # Plain numbers, which JSON can hold.
            value = value.item() if hasattr(value, "item") else value
            object.__setattr__(self, name, value)

        def between(low: str, name: str, high: str, fine: Callable) -> None:
            check(number, name, f"a number in {low} x {high}", fine)

        check(whole, "epochs", 1, 10**6)
        check(whole, "batch_size", 1)
        check(whole, "seed", 0, 2**32 - 1)
        if self.cutout is not None:
            check(whole, "cutout")
        for name in ("momentum", "label_smoothing", "ema"):
            between("0 <=", name, "< 1", lambda x: 0 <= x < 1)
        between("0 <", "learning_rate", "< inf", lambda x: x > 0)
        between("0 <=", "weight_decay", "< inf", lambda x: x >= 0)
        between("0 <=", "cutout_until", "<= 1", lambda x: 0 <= x <= 1)
        epochs = f"< {self.epochs}, the epochs"
        between("0 <=", "warmup_epochs", epochs, lambda x: 0 <= x < self.epochs)
        check(one_of, "augment", AUGMENTATIONS)
        check(one_of, "precision", PRECISIONS)
        for name in ("nesterov", "alternate_flips"):
            check(instance, name, bool, "True or False")
        if self.nesterov and not self.momentum:
            refuse("Recipe.nesterov", "False without momentum", True)
        if self.alternate_flips and self.augment == "none":
            expected = "False with augment 'none', which flips no image"
            refuse("Recipe.alternate_flips", expected, True)


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
