"""From nothing to the trained network's accuracy: how long a user waits.

    python benchmarks/time_to_accuracy.py --weights FOLDER --data-dir DIR

Each program starts in a process of its own, loads the same trained ResNet-20 (a
PyTorch state dict), converts it with the same 500 training images, and classifies
test images of CIFAR-10 with as few time steps as bring it within half a point of the
trained network. How many these are is found before, on the first images, and not
timed. The time is that of the whole process: imports, compilation, calibration, all
time steps. Images are prepared before. Programs take turns, round after round; beside
the clock stands the time of all cores, which others on the machine change less.

jaxburst converts by its presets of refining bursts and of the paper's bursts,
SpikingJelly by its rate coding with the 99.9th percentile, as its tutorials do. It
comes with the extra `oracles`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

BATCH, CALIBRATION, WITHIN = 100, 500, 0.005
LONGEST = {"refining": 4, "bursts": 64, "SpikingJelly": 256, "PyTorch ANN": 1}


# What is timed. Each returns how many images are right after every time step.


def with_jaxburst(preset: str, steps: int, images, labels, seen, weights) -> np.ndarray:
    import jax

    import jaxburst as jb

    jax.config.update("jax_num_cpu_devices", jb.devices.cores())
    module = jb.zoo.NETWORKS["resnet20"](10)
    variables = jb.load_pytorch(module, weights, images[:1]).variables
    network = jb.trace(module.apply, variables, images[:1])
    if preset == "refining":
        model, spiking = jb.presets.refining(network, variables, seen, progress=False)
    else:
        model, spiking = jb.presets.paper(network, variables, seen)
    curves = jb.evaluate(model, spiking, (images, labels), steps, batch_size=BATCH)
    return np.rint(curves.accuracy * len(labels)).astype(int)


def resnet20():
    """The ResNet-20 whose weights are loaded, as a PyTorch module; shortcuts take every
    second place and zeros for new channels."""
    import torch
    from torch import nn

    class Normalised(nn.Module):
        """Adds a convolution and its normalisation to a module, by number."""

        def add(self, i, before, after, stride=1):
            conv = nn.Conv2d(before, after, 3, stride, 1, bias=False)
            setattr(self, f"conv{i}", conv)
            setattr(self, f"bn{i}", nn.BatchNorm2d(after))
            setattr(self, f"relu{i}", nn.ReLU())

    class Block(Normalised):
        def __init__(self, before, after):
            super().__init__()
            self.add(1, before, after, after // before)
            self.add(2, after, after)
            self.around = nn.Identity()
            if after > before:  # as a convolution, which SpikingJelly converts
                self.around = nn.Conv2d(before, after, 1, 2, bias=False)
                every = torch.arange(before)
                weight = torch.zeros(after, before, 1, 1)
                weight[every + (after - before) // 2, every] = 1
                self.around.weight.data = weight

        def forward(self, x):
            around = self.around(x)
            x = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
            return self.relu2(x + around)

    class Network(Normalised):
        def __init__(self):
            super().__init__()
            self.add(1, 3, 16)
            for i, (before, after) in enumerate([(16, 16), (16, 32), (32, 64)], 1):
                blocks = Block(before, after), Block(after, after), Block(after, after)
                setattr(self, f"layer{i}", nn.Sequential(*blocks))
            self.pool, self.linear = nn.AdaptiveAvgPool2d(1), nn.Linear(64, 10)

        def forward(self, x):
            x = self.relu1(self.bn1(self.conv1(x)))
            x = self.layer3(self.layer2(self.layer1(x)))
            return self.linear(torch.flatten(self.pool(x), 1))

    return Network()


def with_pytorch(
    spiking: bool, steps: int, images, labels, seen, weights
) -> np.ndarray:
    import torch
    from safetensors.torch import load_file

    module = resnet20()
    module.load_state_dict(module.state_dict() | load_file(weights))
    module.eval()

    def batches(array):
        array = torch.from_numpy(np.ascontiguousarray(array.transpose(0, 3, 1, 2)))
        return array.split(BATCH)

    if spiking:
        from spikingjelly.activation_based import ann2snn, functional

        loader = [(batch, None) for batch in batches(seen)]
        recipe = ann2snn.RateCodingRecipe(dataloader=loader, mode="99.9%")
        module = ann2snn.Converter(recipe=recipe).convert(module)
    right, wanted = np.zeros(steps, int), torch.from_numpy(labels).split(BATCH)
    with torch.inference_mode():
        for batch, labels_ in zip(batches(images), wanted, strict=True):
            total = 0.0
            for t in range(steps):
                total = total + module(batch)
                right[t] += int((total.argmax(1) == labels_).sum())
            if spiking:
                functional.reset_net(module)
    return right


def contend(name: str, steps: int, count: int, folder: Path, weights: Path) -> None:
    """What a process of its own does."""
    images, labels, seen = (
        np.load(folder / f"{what}.npy") for what in ("images", "labels", "seen")
    )
    given = steps, images[:count], labels[:count], seen, weights
    if name in ("refining", "bursts"):
        right = with_jaxburst(name, *given)
    else:
        right = with_pytorch(name == "SpikingJelly", *given)
    print(json.dumps(right.tolist()))


# The race.


def timed(name: str, steps: int, count: int, folder: Path, weights: Path) -> dict:
    """Accuracy after every step, seconds by the clock and of cores of one program."""
    command = [sys.executable, "-W", "ignore", __file__, "--contend", name]
    command += ["--steps", str(steps), "--images", str(count), "--folder", str(folder)]
    command += ["--weights", str(weights)]
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "JAX_COMPILATION_CACHE_DIR"
    }
    start, before = time.perf_counter(), os.times()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    seconds, after = time.perf_counter() - start, os.times()
    cores = sum(after[2:4]) - sum(before[2:4])
    right = json.loads(done.stdout.decode().splitlines()[-1])
    accuracy = [n / count for n in right]
    return {"seconds": seconds, "cores": cores, "accuracy": accuracy}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument(
        "--pilot", type=int, default=1000, help="images on which T is found"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/time_to_accuracy"))
    parser.add_argument("--contend", choices=LONGEST, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contend:
        return contend(
            options.contend,
            options.steps,
            options.images,
            options.folder,
            options.weights,
        )
    sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))
    import common

    import jaxburst as jb

    weights = options.weights / "resnet20_cifar10.safetensors"
    dataset = jb.data.load("cifar10", options.data_dir).with_normalisation(
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        test = dataset.test[: options.images]
        np.save(folder / "images.npy", test.inputs)
        np.save(folder / "labels.npy", np.asarray(test.labels, np.int64))
        np.save(folder / "seen.npy", dataset.train[:CALIBRATION].inputs)
        rows, pilot = {}, min(options.pilot, options.images)
        goal = timed("PyTorch ANN", 1, pilot, folder, weights)["accuracy"][0] - WITHIN
        for name, longest in LONGEST.items():
            found = timed(name, longest, pilot, folder, weights)["accuracy"]
            steps = common.reached(found, goal)
            rows[name] = {"steps": steps or longest, "reached": bool(steps), "runs": []}
            print(f"{name}: T = {steps or f'over {longest}'} on {pilot:,} images")
        for _ in range(options.rounds):
            for name, row in rows.items():
                run = timed(name, row["steps"], options.images, folder, weights)
                row["runs"].append(
                    run | {"accuracy": run["accuracy"][-1], "load": os.getloadavg()[0]}
                )
    head = ["program", "T", "accuracy", "seconds", "seconds of cores"]
    lines = [
        [
            name, f"{row['steps']}" + ("" if row["reached"] else " (not reached)"),
            f"{100 * row['runs'][0]['accuracy']:.2f}",
            f"{median(run['seconds'] for run in row['runs']):.0f}",
            f"{median(run['cores'] for run in row['runs']):.0f}",
        ]
        for name, row in rows.items()
    ]  # fmt: skip
    text = common.markdown(head, lines) + (
        f"\n\nResNet-20 on {options.images:,} test images of CIFAR-10, medians of "
        f"{options.rounds} runs. From the start of the process to the last answer; T "
        f"is the least within half a point of the trained network on {pilot:,} of them."
    )
    print("\n" + text + "\n")
    out = common.prepare_folder(options.out)
    versions = "torch", "spikingjelly"
    common.write_record(
        out, "time_to_accuracy", vars(options), *versions, programs=rows
    )
    common.write(out / "time_to_accuracy.md", text)


if __name__ == "__main__":
    main()
