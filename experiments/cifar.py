"""What the CIFAR experiments share: which network, its data, training or loading."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro
from common import (
    Simulation,
    compare,
    one_device_per_core,
    prepare_folder,
    run,
    write,
)

import jaxburst as jb

IMAGE = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Source:
    """Which network, with which weights and data.

    Attributes:
      arch: the network.
      checkpoint: a folder of trained weights (`OUT/training` of another run) to use
        instead of training.
      torch_weights: a PyTorch state dict (.safetensors) to use instead of training.
      mean: of the image channels, if the weights were trained with other constants.
      std: of the image channels, if the weights were trained with other constants.
      data_dir: folder of the prepared dataset; it is downloaded there if missing.
    """

    arch: Literal[tuple(jb.zoo.NETWORKS)] = "vgg9"
    checkpoint: Path | None = None
    torch_weights: Path | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    data_dir: Path = Path("data")

    def __post_init__(self):
        if self.checkpoint and self.torch_weights:
            raise ValueError("give --checkpoint or --torch-weights, not both")
        if (self.mean is None) != (self.std is None):
            raise ValueError("--mean and --std go together")

    def load(
        self, name: str, validation: int | None = None
    ) -> tuple[jb.data.Dataset, jb.layers.Layers, dict | None]:
        """The dataset of this name, the layers, and the weights if they are given."""
        dataset = jb.data.load(name, self.data_dir, validation=validation)
        if self.mean is not None:
            dataset = dataset.with_normalisation(self.mean, self.std)
        layers = jb.zoo.NETWORKS[self.arch](dataset.classes)
        jb.validate(layers, IMAGE)
        variables = None
        if self.torch_weights is not None:
            variables = jb.load_pytorch(layers, self.torch_weights, IMAGE)
        elif self.checkpoint is not None:
            variables = jb.training.restore(layers, self.checkpoint)
        return dataset, layers, variables

    def load_trained(self, name: str) -> tuple[jb.data.Dataset, jb.layers.Layers, dict]:
        """As `load`, but weights that are not given are those released."""
        dataset, layers, variables = self.load(name)
        if variables is None:
            released = f"{self.arch}-{name}"
            if released not in jb.released.names():
                raise ValueError(
                    f"no weights of {self.arch} on {name} are released (there are "
                    f"{', '.join(jb.released.names()) or 'none'}); give --checkpoint "
                    "or --torch-weights, or train with cifar10.py or cifar100.py"
                )
            layers, variables = jb.pretrained(released)
        return dataset, layers, variables


@dataclasses.dataclass(frozen=True)
class Config:
    """Loads a network or trains it, converts it, simulates it on the test images.

    Without --epochs it is loaded: the released one, or that of the weights given.

    Attributes:
      source: which network, with which weights and data.
      epochs: passes over the training images, to train; Li and Zeng take 300.
      batch_size: training images per step.
      learning_rate: its peak.
      nesterov: whether the momentum is Nesterov's.
      warmup_epochs: length of the warm-up; may be a fraction.
      label_smoothing: share of the target that is spread evenly over all classes.
      augment: how training images are varied: cropped and flipped, moreover by
        AutoAugment and Cutout as Li and Zeng do (authors), or not at all.
      cutout: side of Cutout's squares in pixels, if not that of --augment.
      cutout_until: share of the training that has Cutout, such as 0.8.
      alternate_flips: flip an image in every other epoch, and not at random.
      precision: what training computes the network in; bfloat16 halves the memory of
        activations. Weights and statistics stay float32.
      ema: decay of a moving average of the weights over the training steps, which is
        then the trained network, such as 0.999; 0 for the last weights.
      resume: continue the training in `out` where it stopped.
      validation: training images held out of training, to watch it; 0 trains on all.
      train_limit: number of training images; all of them if not given.
      seed: of the weights, batches and augmentation.
      out: folder for checkpoints and results; runs/DATASET/ARCH if not given.
      simulation: how the network is converted and simulated.
    """

    source: tyro.conf.OmitArgPrefixes[Source] = Source()
    epochs: int | None = None
    batch_size: int = 128
    learning_rate: float = 0.1
    nesterov: bool = False
    warmup_epochs: float = 0
    label_smoothing: float = 0.1
    augment: Literal[jb.augmentation.KINDS] = "authors"
    cutout: int | None = None
    cutout_until: float = 1.0
    alternate_flips: bool = False
    precision: Literal[jb.training.PRECISIONS] = "float32"
    ema: float = 0.0
    resume: bool = False
    validation: int = 5000
    train_limit: int | None = None
    seed: int = 0
    out: Path | None = None
    simulation: tyro.conf.OmitArgPrefixes[Simulation] = Simulation()

    def __post_init__(self):
        if self.train_limit is not None and self.train_limit < 1:
            raise ValueError(
                f"--train-limit must be at least 1, found {self.train_limit}"
            )
        if self.epochs and (self.source.checkpoint or self.source.torch_weights):
            raise ValueError("give --epochs to train or weights to load, not both")


def main(name: str, description: str) -> None:
    """Runs the experiment on CIFAR-10 or CIFAR-100, by the dataset's `name`."""
    config = tyro.cli(Config, description=description)
    arch = config.source.arch
    folder = prepare_folder(config.out or Path("runs", name, arch))
    if config.epochs is None:
        one_device_per_core()
        dataset, layers, variables = config.source.load_trained(name)
    else:
        dataset, layers, _ = config.source.load(name, config.validation)
        train = dataset.train[: config.train_limit]
        print(f"training {arch} on {len(train):,} images, {config.epochs} epochs")
        recipe = jb.Recipe(
            epochs=config.epochs,
            batch_size=min(config.batch_size, len(train)),
            learning_rate=config.learning_rate,
            nesterov=config.nesterov,
            warmup_epochs=config.warmup_epochs,
            label_smoothing=config.label_smoothing,
            augment=config.augment,
            cutout=config.cutout,
            cutout_until=config.cutout_until,
            alternate_flips=config.alternate_flips,
            precision=config.precision,
            ema=config.ema,
            seed=config.seed,
        )
        variables, _ = jb.fit(
            layers,
            train,
            recipe,
            validation=dataset.validation if config.validation else None,
            directory=folder / "training",
            resume=config.resume,
        )
    results = {arch: compare(dataset, layers, variables, config.simulation, folder)}
    write(folder, name, results, config)


__all__ = ["IMAGE", "Source", "main", "run"]
