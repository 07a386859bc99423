"""Puts a network that was trained here into the package, in 16 bits.

    python experiments/release.py --dataset cifar100 --arch vgg9 \\
        --checkpoint runs/cifar100/vgg9/training

Measures it on the whole test set before and after rounding, refuses to release one that
rounding changes by more than 0.1 points, and writes jaxburst/weights/ARCH-DATASET with
its recipe and accuracy. A minute on one CPU core.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Literal

import tyro
from cifar import Source, run
from common import provenance

import jaxburst as jb
from jaxburst import checkpoint, released, training


@dataclasses.dataclass(frozen=True)
class Config:
    """Rounds a trained network to 16 bits, measures it and ships it.

    Attributes:
      dataset: what the network was trained on.
      source: which network, with which weights and data; give --checkpoint.
      out: folder of all released networks.
    """

    dataset: Literal["cifar10", "cifar100"]
    source: tyro.conf.OmitArgPrefixes[Source] = Source()
    out: Path = released.FOLDER


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    if config.source.checkpoint is None:
        raise ValueError("give the --checkpoint of the network to release")
    if config.source.mean is not None:
        raise ValueError(
            "released networks see images normalised by the data set's own constants; "
            "train and release without --mean and --std"
        )
    dataset, layers, variables = config.source.load(config.dataset)
    record = training.record(config.source.checkpoint)
    folder = config.out / f"{config.source.arch}-{config.dataset}"
    exact = jb.accuracy(layers, variables, dataset.test)
    with tempfile.TemporaryDirectory() as made:
        trial = checkpoint.save_trained(Path(made, "trial"), layers, variables)
        rounded = jb.accuracy(*checkpoint.load_trained(trial)[:2], dataset.test)
    print(
        f"{folder.name}: {exact:.2%} of {len(dataset.test):,} test images, "
        f"{rounded:.2%} in 16 bits"
    )
    if abs(exact - rounded) > 0.001:
        raise ValueError("rounding changes the accuracy by more than 0.1 points")
    notes = {
        "dataset": config.dataset,
        "mean": dataset.test.mean,
        "std": dataset.test.std,
        "training_images": record["split"]["shape"][0],
        "recipe": record["recipe"],
        "history": record["history"],
        "test_accuracy": rounded,
        "test_accuracy_32_bits": exact,
        "provenance": provenance(),
    }
    checkpoint.save_trained(folder, layers, variables, notes)
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"wrote {folder}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    run(main)
