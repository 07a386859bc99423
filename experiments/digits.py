"""Bursts against integrate-and-fire on handwritten digits, from nothing.

    python experiments/digits.py

Trains a small max-pooled VGG and a small ResNet on scikit-learn's digits, converts both
and simulates them on the 360 test images. Draws accuracy against energy and time, and
the spikes of a layer. No download. Half a minute on 2 CPU cores: the VGG recognises
99.7 % like its ANN after 2 steps of bursts; plain IF takes 10.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import common
import conversion
import tyro

import jaxburst as jb


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Experiment):
    """Trains, converts and simulates two small networks on handwritten digits."""

    epochs: int = 30  # passes over the 1,257 training images
    seed: int = 0  # of the weights, batches and augmentation
    simulation: tyro.conf.OmitArgPrefixes[conversion.Simulation] = (
        conversion.Simulation(calibration=500)
    )


def measure(config: Config, run: common.Kept) -> dict:
    """Both networks, each with a picture of its spikes."""
    names = ("vgg_tiny", "resnet_tiny")
    return {"results": {name: run(name, whole, name, config, run) for name in names}}


def whole(name: str, config: Config, run: common.Kept) -> dict:
    """One network, from training to its picture."""
    print(f"training {name}")
    dataset, folder = jb.data.digits(), run.folder / name
    recipe = jb.Recipe(
        epochs=config.epochs,
        batch_size=64,
        warmup_epochs=min(1, config.epochs / 2),
        augment="none",  # a mirrored digit is another digit
        seed=config.seed,
    )
    module = jb.zoo.NETWORKS[name](dataset.classes)
    variables, _ = jb.fit(module, dataset.train, recipe, validation=dataset.validation)
    inputs = dataset, common.trace(module, variables, dataset), variables
    result = conversion.compare(*inputs, config.simulation, run.within(name), folder)
    draw_spikes(*inputs, folder)
    return result


def draw_spikes(dataset, network: jb.Network, variables, folder: Path) -> None:
    """The spikes of one layer for one test image: bursts beside refining bursts."""
    inputs, image = dataset.train.inputs[:500], dataset.test[:1].inputs
    name = network.neurons[1]
    converted = {
        "bursts": jb.load(folder / "spiking.safetensors", network),
        "refining bursts": jb.presets.refining(network, variables, inputs),
    }
    with common.figure(folder / "raster.png", 1, 2, figsize=(13, 4)) as (_, axes):
        for axis, (title, both) in zip(axes, converted.items(), strict=True):
            trace = jb.simulate(*both, image, steps=8, record=name)
            jb.plot.raster(trace, name, axes=axis)
            axis.set_title(f"{title}, {axis.get_title()}", fontsize=10)


if __name__ == "__main__":
    text, draw = conversion.text, conversion.draw
    common.answer("digits", Config, measure, text, draw, __doc__)
