"""A network on CIFAR-10: train it or load it, convert it to burst spikes, simulate it.

    python experiments/cifar10.py

The CIFAR ResNets that others have trained convert as they are. This one is that of
akamaster/pytorch_resnet_cifar10, saved as safetensors:

    python experiments/cifar10.py --arch resnet20 \\
        --torch-weights resnet20.safetensors \\
        --mean .485 .456 .406 --std .229 .224 .225
"""

from cifar import main, run

if __name__ == "__main__":
    run(lambda: main("cifar10", __doc__))
