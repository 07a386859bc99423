"""A network on Fashion-MNIST: train it or load it, convert it, simulate it.

    python experiments/fashion_mnist.py --data-dir /usr/share/datasets --steps 16

The images are read as tensorflow-datasets prepares them, or from the four idx files
(Debian's package dataset-fashion-mnist puts them in /usr/share/datasets). The released
network was trained in 47 minutes of a busy machine with 2 CPU cores:

    python experiments/fashion_mnist.py --epochs 12 --learning-rate 0.05 --nesterov \\
        --warmup-epochs 1 --augment crop_flip --ema 0.998 --validation 0
"""

import conversion

if __name__ == "__main__":
    conversion.answer("fashion_mnist", __doc__, arch="vgg7")
