"""Networks beyond ReLU on CIFAR-10: a vision transformer, and squeeze-and-excitation.

    python experiments/transformer.py --arch vit --epochs 20
    python experiments/transformer.py --arch seresnet20 --epochs 20

trains the network on all training images (the released one took 100 minutes on a busy
machine of two cores); again with --resume continues. Without --epochs the released
weights are used, or those of --checkpoint. Both networks convert to refining neurons,
one population for each LayerNorm, GELU, softmax, gate, query, key and value.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import common
import optax
import refined

import jaxburst as jb


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(refined.Config):
    """Trains a network beyond ReLU, or loads it.

    Attributes:
      arch: the network.
      epochs: passes over the training images, to train.
      checkpoint: a folder of trained weights (`OUT/training` of another run).
      data_dir: folder of the prepared dataset; it is downloaded there if missing.
      resume: continue the training in `out` where it stopped.
      limit: number of test images; all of them if not given.
    """

    arch: Literal["vit", "seresnet20"] = "vit"
    epochs: int | None = None
    checkpoint: Path | None = None
    data_dir: Path = Path("data")
    resume: bool = False
    limit: int | None = None


def train(config: Config, module, split: jb.data.Split, folder: Path) -> dict:
    """Trains on all images of a split: transformers by AdamW, others by SGD."""
    recipe = jb.Recipe(
        epochs=config.epochs,
        batch_size=128,
        learning_rate=1e-3 if config.arch == "vit" else 0.1,
        nesterov=True,
        warmup_epochs=min(2.0, config.epochs / 4),
        augment="crop_flip",
        alternate_flips=True,
        ema=0.998,
        seed=config.seed,
    )
    optimiser = None
    if config.arch == "vit":
        rate = jb.training.schedule(recipe, len(split) // recipe.batch_size)
        optimiser = optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05)
        )
    variables, _ = jb.fit(
        *(module, split, recipe),
        optimiser=optimiser,
        directory=folder / "training",
        resume=config.resume,
    )
    return variables


def measure(config: Config, run: common.Kept) -> dict:
    """The network, its activations rounded once, and its spikes."""
    dataset = jb.data.load("cifar10", config.data_dir, validation=0)
    module = jb.zoo.NETWORKS[config.arch](dataset.classes)
    if config.epochs is not None:
        variables = train(config, module, dataset.train, run.folder)
    elif config.checkpoint is not None:
        variables = jb.training.restore(module, config.checkpoint)
    else:
        module, variables = jb.pretrained(f"{config.arch}-cifar10")
    run.same(variables)
    some = dataset.train[: config.calibration].inputs
    network = jb.trace(module.apply, variables, some[:1])
    test = dataset.test[: config.limit]
    task = config, network, variables, some, (test.inputs, test.labels)
    return run("all", refined.compared, *task, refined.right, "right")


if __name__ == "__main__":
    text, draw = refined.text, refined.draw
    common.answer("transformer", Config, measure, text, draw, __doc__)
