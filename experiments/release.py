"""Puts a network that was trained here into the package, in 16 or 8 bits.

    python experiments/release.py --dataset cifar100 --arch vgg9 \\
        --checkpoint runs/cifar100/vgg9/training

Measures it on the whole test set before and after rounding, refuses to release one that
rounding changes by more than 0.1 points, and writes it to jaxburst/weights with its
recipe and accuracy. A minute on one CPU core.
"""

from __future__ import annotations

import dataclasses
import tempfile
from pathlib import Path
from typing import Literal

import common
import tyro

import jaxburst as jb


@dataclasses.dataclass(frozen=True)
class Config:
    """Rounds a trained network to 16 or 8 bits, measures it and ships it."""

    dataset: Literal["cifar10", "cifar100", "fashion_mnist"]  # it was trained on
    source: tyro.conf.OmitArgPrefixes[common.Source] = common.Source()
    bits: Literal[16, 8] = 16  # of a kernel's weight
    out: Path = jb.released.FOLDER  # of all released networks


def main() -> None:
    config = tyro.cli(Config, description=__doc__)
    if config.source.checkpoint is None:
        raise ValueError("give the --checkpoint of the network to release")
    if config.source.mean is not None:
        raise ValueError(
            "released networks see images normalised by the data set's own constants; "
            "train and release without --mean and --std"
        )
    dataset, module, variables = config.source.load(config.dataset)
    record, arch = jb.training.record(config.source.checkpoint), config.source.arch
    network, test = common.trace(module, variables, dataset), dataset.test
    exact = jb.accuracy(network, variables, test)
    with tempfile.TemporaryDirectory() as made:
        trial = Path(made, "trial.safetensors")
        jb.released.save(trial, arch, dataset.classes, variables, bits=config.bits)
        rounded = jb.accuracy(network, jb.released.load(trial)[1], test)
    path = config.out / f"{arch}-{config.dataset}.safetensors"
    print(
        f"{path.stem}: {exact:.2%} of {len(test):,} test images, {rounded:.2%} in "
        f"{config.bits} bits"
    )
    if abs(exact - rounded) > 0.001:
        raise ValueError("rounding changes the accuracy by more than 0.1 points")
    notes = {
        "dataset": config.dataset,
        "mean": test.mean,
        "std": test.std,
        "training_images": record["split"]["shape"][0],
        "recipe": record["recipe"],
        "history": record["history"],
        "test_accuracy": rounded,
        "test_accuracy_32_bits": exact,
        "provenance": common.provenance(),
    }
    jb.released.save(path, arch, dataset.classes, variables, notes, bits=config.bits)
    print(f"wrote {path}, {path.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    common.run(main)
