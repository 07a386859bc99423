"""What the CIFAR experiments share: which network, its data, training or loading."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro
from common import Simulation, compare, prepare_folder, run, write

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

    arch: Literal[tuple(jb.zoo.NETWORKS)] = "vgg16"
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
        """As `load`, for an experiment that does not train."""
        dataset, layers, variables = self.load(name)
        if variables is None:
            raise ValueError(
                "give the trained network: --checkpoint or --torch-weights"
            )
        return dataset, layers, variables


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains (or loads) a network, converts it, simulates it on the test images.

    Attributes:
      source: which network, with which weights and data.
      epochs: passes over the training images.
      batch_size: training images per step.
      learning_rate: its peak.
      nesterov: whether the momentum is Nesterov's.
      warmup_epochs: length of the warm-up; may be a fraction.
      resume: continue the training in `out` where it stopped.
      validation: training images held out of training, to watch it; 0 trains on all.
      train_limit: number of training images; all of them if not given.
      seed: of the weights, batches and augmentation.
      out: folder for checkpoints and results; runs/DATASET/ARCH if not given.
      simulation: how the network is converted and simulated.
    """

    source: tyro.conf.OmitArgPrefixes[Source] = Source()
    epochs: int = 300
    batch_size: int = 128
    learning_rate: float = 0.1
    nesterov: bool = False
    warmup_epochs: float = 0
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


def main(name: str, description: str) -> None:
    """Runs the experiment on CIFAR-10 or CIFAR-100, by the dataset's `name`."""
    config = tyro.cli(Config, description=description)
    arch = config.source.arch
    folder = prepare_folder(config.out or Path("runs", name, arch))
    dataset, layers, variables = config.source.load(name, config.validation)
    if variables is None:
        train = dataset.train[: config.train_limit]
        print(f"training {arch} on {len(train):,} images, {config.epochs} epochs")
        recipe = jb.Recipe(
            epochs=config.epochs,
            batch_size=min(config.batch_size, len(train)),
            learning_rate=config.learning_rate,
            nesterov=config.nesterov,
            warmup_epochs=config.warmup_epochs,
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
