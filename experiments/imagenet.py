"""A network that torchvision trained on ImageNet: convert it to burst spikes.

    python experiments/imagenet.py --arch resnet18 --torch-weights resnet18.safetensors

simulates it on the 50,000 validation images, shared by all local devices; `--limit 500`
tries it. Its time and accuracy have not been measured.

Weights: torchvision's `resnet18`, `resnet34` and `vgg16_bn`, or the networks that timm
publishes under the same names (images are cut as torchvision cuts them), saved once
where PyTorch is installed:

    import torchvision
    from safetensors.torch import save_file

    network = torchvision.models.resnet18(weights="IMAGENET1K_V1")
    save_file(network.state_dict(), "resnet18.safetensors")

Data: with `pip install "jaxburst[imagenet]"`, put ILSVRC2012_img_train.tar and
ILSVRC2012_img_val.tar, which image-net.org gives to those who register, into
DIR/downloads/manual/ and pass `--data-dir DIR`. The first run writes them to
DIR/imagenet2012/5.1.0 as tensorflow-datasets does, without TensorFlow; a folder that
it has written is read as it is. Images stay on disk.

Memory grows with --at-once: for each image a VGG-16 keeps up to 140 MB of membranes and
running sums, a ResNet-18 up to 23, besides what a step needs while it is taken.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

import common
import conversion
import numpy as np
import tyro

import jaxburst as jb

CLASSES, IMAGE = 1000, (224, 224, 3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(common.Experiment):
    """Loads a network, converts it and simulates it on ImageNet's validation images.

    Attributes:
      torch_weights: a PyTorch state dict (.safetensors).
      arch: the network whose weights these are.
      data_dir: folder of the prepared dataset, or of its archives.
      simulation: how the network is converted and simulated.
    """

    torch_weights: Path
    arch: Literal[tuple(jb.zoo.IMAGENET)] = "resnet18"
    data_dir: Path = Path("data")
    simulation: tyro.conf.OmitArgPrefixes[conversion.Simulation] = (
        conversion.Simulation(steps=32, calibration=200, at_once=25)
    )


def measure(config: Config, run: common.Kept) -> dict:
    """The network as refining bursts, bursts and IF."""
    common.one_device_per_core()
    # First the weights: if they do not fit, nobody waits for the data.
    module = jb.zoo.IMAGENET[config.arch](CLASSES)
    example = np.zeros((1, *IMAGE), np.float32)
    variables = jb.load_pytorch(module, config.torch_weights, example).variables
    run.same(variables)
    dataset = jb.data.imagenet(config.data_dir)
    task = dataset, common.trace(module, variables, dataset), variables
    result = conversion.compare(*task, config.simulation, run, run.folder)
    return {"results": {config.arch: result}}


if __name__ == "__main__":
    text, draw = conversion.text, conversion.draw
    common.answer("imagenet", Config, measure, text, draw, __doc__)
