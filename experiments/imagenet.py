"""A network that torchvision trained on ImageNet: convert it to burst spikes.

    python experiments/imagenet.py --arch resnet18 --torch-weights resnet18.safetensors

simulates it on the 50,000 validation images, shared by all local devices; `--limit 500`
tries it. Its time and accuracy have not been measured.

Weights: torchvision's `resnet18`, `resnet34` and `vgg16_bn` (`--arch vgg16`), or those
that timm publishes under the same names (images are cut as torchvision cuts them),
saved once where PyTorch is installed:

    import torchvision
    from safetensors.torch import save_file

    network = torchvision.models.resnet18(weights="IMAGENET1K_V1")
    save_file(network.state_dict(), "resnet18.safetensors")

Data: `pip install "jaxburst[imagenet]"`, put ILSVRC2012_img_train.tar and
ILSVRC2012_img_val.tar, which image-net.org gives to those who register, into
DIR/downloads/manual/, and pass `--data-dir DIR`. The first run writes them to
DIR/imagenet2012/5.1.0 as tensorflow-datasets does, without TensorFlow. Images stay on
disk. Memory grows with --at-once: for each image a VGG-16 keeps up to 140 MB of
membranes and running sums, a ResNet-18 up to 23.
"""

import conversion

if __name__ == "__main__":
    few = conversion.Simulation(steps=32, calibration=200, at_once=25)
    task = "imagenet", __doc__, "imagenet2012"
    conversion.answer(*task, arch="resnet18", simulation=few)
