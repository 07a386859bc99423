"""VGG-16 on CIFAR-100: train it, convert it to burst spikes, simulate it.

    python experiments/cifar100.py
    python experiments/cifar100.py --epochs 1 --limit 500 --train-limit 2000   # minutes

The first trains for 300 epochs by the authors' recipe and wants an accelerator. The
second takes five minutes on 2 CPU cores and tries every part, but 15 training steps
teach the network nothing. An interrupted training continues with --resume.
"""

from cifar import main, run

if __name__ == "__main__":
    run(lambda: main("cifar100", __doc__))
