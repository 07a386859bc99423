"""VGG-16 on CIFAR-100: train it, convert it to burst spikes, simulate it.

    python experiments/cifar100.py
    python experiments/cifar100.py --epochs 1 --limit 500 --train-limit 2000   # minutes

The whole run wants an accelerator; TIME. An interrupted
training continues with --resume.
"""

from cifar import main, run

if __name__ == "__main__":
    run(lambda: main("cifar100", __doc__))
