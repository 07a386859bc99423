"""A VGG on CIFAR-100: convert the released one, or train it, to burst spikes.

    python experiments/cifar100.py --limit 1000    # minutes, no training

The released vgg9 was trained in 88 minutes of a busy machine with 2 CPU cores, by

    python experiments/cifar100.py --epochs 24 --batch-size 64 --learning-rate 0.05 \\
        --nesterov --warmup-epochs 1.5 --augment crop_flip --validation 0

With --epochs, the other defaults are the recipe of Li and Zeng for their VGG-16, which
wants an accelerator:

    python experiments/cifar100.py --arch vgg16 --epochs 300 --validation 0

To try every part of it in minutes, train a little: `--arch vgg16 --epochs 1 --limit 500
--train-limit 2000`. An interrupted training continues with --resume.
"""

import conversion

if __name__ == "__main__":
    conversion.answer("cifar100", __doc__)
