"""The page that cifar10.py and cifar100.py share: train or load, convert, simulate."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro
from common import Simulation, compare, prepare_folder, run, write

import jaxburst as jb

IMAGE = (32, 32, 3)


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains (or loads) a network, converts it, simulates it on the test images.

    Attributes:
      arch: the network.
      epochs: passes over the training images.
      resume: continue the training in `out` where it stopped.
      checkpoint: a folder of trained weights (`OUT/training` of another run) to use
        instead of training.
      torch_weights: a PyTorch state dict (.safetensors) to use instead of training.
      mean: of the image channels, if the weights were trained with other constants.
      std: of the image channels, if the weights were trained with other constants.
      data_dir: folder of the prepared dataset; it is downloaded there if missing.
      train_limit: number of training images; all of them if not given.
      seed: of the weights, batches and augmentation.
      out: folder for checkpoints and results; runs/DATASET/ARCH if not given.
      simulation: how the network is converted and simulated.
    """

    arch: Literal[tuple(jb.zoo.NETWORKS)] = "vgg16"
    epochs: int = 300
    resume: bool = False
    checkpoint: Path | None = None
    torch_weights: Path | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    data_dir: Path = Path("data")
    train_limit: int | None = None
    seed: int = 0
    out: Path | None = None
    simulation: tyro.conf.OmitArgPrefixes[Simulation] = Simulation()

    def __post_init__(self):
        if self.checkpoint and self.torch_weights:
            raise ValueError("give --checkpoint or --torch-weights, not both")
        if (self.mean is None) != (self.std is None):
            raise ValueError("--mean and --std go together")
        if self.train_limit is not None and self.train_limit < 1:
            raise ValueError(
                f"--train-limit must be at least 1, found {self.train_limit}"
            )


def main(name: str, description: str) -> None:
    """Runs the experiment on CIFAR-10 or CIFAR-100, by the dataset's `name`."""
    config = tyro.cli(Config, description=description)
    folder = prepare_folder(config.out or Path("runs", name, config.arch))
    dataset = jb.data.load(name, config.data_dir)
    if config.mean is not None:
        dataset = dataset.with_normalisation(config.mean, config.std)
    layers = jb.zoo.NETWORKS[config.arch](dataset.classes)
    jb.validate(layers, IMAGE)
    variables = _trained(config, layers, dataset, folder)
    results = {
        config.arch: compare(dataset, layers, variables, config.simulation, folder)
    }
    write(folder, name, results, config)


def _trained(config, layers, dataset, folder):
    if config.torch_weights is not None:
        return jb.load_pytorch(layers, config.torch_weights, IMAGE)
    if config.checkpoint is not None:
        return jb.training.restore(layers, config.checkpoint)
    train = dataset.train[: config.train_limit]
    recipe = jb.Recipe(epochs=config.epochs, seed=config.seed)
    print(f"training {config.arch} on {len(train):,} images, {config.epochs} epochs")
    variables, _ = jb.fit(
        layers,
        train,
        recipe,
        validation=dataset.validation,
        directory=folder / "training",
        resume=config.resume,
    )
    return variables


__all__ = ["main", "run"]
