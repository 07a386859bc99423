"""What cifar10.py, cifar100.py and fashion_mnist.py share: a network, a comparison."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import tyro
from common import (
    Simulation,
    Source,
    check_settings,
    compare,
    one_device_per_core,
    prepare_folder,
    run,
    trace,
    write,
)

import jaxburst as jb


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
        AutoAugment and Cutout as Li and Zeng do (li2022), or not at all.
      cutout: side of Cutout's squares in pixels, if not that of --augment.
      cutout_until: share of the training that has Cutout, such as 0.8.
      alternate_flips: flip an image in every other epoch, and not at random.
      precision: what training computes the network in; bfloat16 halves the memory of
        activations. Weights and statistics stay float32.
      ema: decay of a moving average of the weights over the training steps, which is
        then the trained network, such as 0.999; 0 for the last weights.
      seed: of the weights, batches and augmentation.
      resume: continue the training in `out` where it stopped.
      validation: training images held out of training, to watch it; 0 trains on all.
      train_limit: number of training images; all of them if not given.
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
    augment: Literal[jb.training.augmentation.KINDS] = "li2022"
    cutout: int | None = None
    cutout_until: float = 1.0
    alternate_flips: bool = False
    precision: Literal[jb.training.PRECISIONS] = "float32"
    ema: float = 0.0
    seed: int = 0
    resume: bool = False
    validation: int = 5000
    train_limit: int | None = None
    out: Path | None = None
    simulation: tyro.conf.OmitArgPrefixes[Simulation] = Simulation()

    def __post_init__(self):
        check_settings(self)
        if self.epochs and (self.source.checkpoint or self.source.torch_weights):
            raise ValueError("give --epochs to train or weights to load, not both")

    def recipe(self, images: int) -> jb.Recipe:
        """The recipe that the settings of the same names make, for so many images."""
        names = [field.name for field in dataclasses.fields(jb.Recipe)]
        own = {name: getattr(self, name) for name in names if hasattr(self, name)}
        return jb.Recipe(**own | {"batch_size": min(self.batch_size, images)})


def main(name: str, description: str, arch: str = "vgg9") -> None:
    """Runs the experiment on a dataset, by its name, with a default network."""
    default = Config(source=Source(arch=arch))
    config = tyro.cli(Config, description=description, default=default)
    arch = config.source.arch
    folder = prepare_folder(config.out or Path("runs", name, arch))
    if config.epochs is None:
        one_device_per_core()
        dataset, network, variables = config.source.load_trained(name)
    else:
        dataset, module, _ = config.source.load(name, config.validation)
        train = dataset.train[: config.train_limit]
        print(f"training {arch} on {len(train):,} images, {config.epochs} epochs")
        variables, _ = jb.fit(
            *(module, train, config.recipe(len(train))),
            validation=dataset.validation if config.validation else None,
            directory=folder / "training",
            resume=config.resume,
        )
        network = trace(module, variables, dataset)
    results = {arch: compare(dataset, network, variables, config.simulation, folder)}
    write(folder, name, results, config)


__all__ = ["main", "run"]
