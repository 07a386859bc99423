"""A network on CIFAR-10: train it or load it, convert it to burst spikes, simulate it.

    python experiments/cifar10.py --arch vgg16 --epochs 300 --validation 0

trains VGG-16 by the recipe of Li and Zeng and wants an accelerator. The CIFAR ResNets
that others have trained convert as they are. This one is that of
akamaster/pytorch_resnet_cifar10, saved as safetensors:

    python experiments/cifar10.py --arch resnet20 \\
        --torch-weights resnet20.safetensors \\
        --mean .485 .456 .406 --std .229 .224 .225 --steps 32

Twenty minutes on 2 CPU cores: ANN 91.73 %, bursts 91.61 % after 32 steps, IF 86.17 %.
The released networks beyond ReLU were trained by

    python experiments/cifar10.py --arch seresnet20 --epochs 20 --nesterov \\
        --warmup-epochs 2 --augment crop_flip --alternate-flips --ema 0.998 \\
        --validation 0

and the transformer by the same with `--arch vit --learning-rate 0.001 --optimiser
adamw`; they become refining bursts only (see beyond.py, too).
"""

import conversion

if __name__ == "__main__":
    conversion.answer("cifar10", __doc__)
