"""Events in C beside a dense 8-bit network in onnxruntime, on one core.

    python benchmarks/event_driven.py --data-dir TFDS --weights FOLDER

For every network: the accuracy that whole numbers cost, on the same test images; time
per image of the C program after 1 to 4 steps, of refining bursts as the preset makes
them, and of onnxruntime's 8-bit and floating-point networks; and of streams, frames in
which a square of some size is that of another image, time per frame against the share
of activations that change, with the share at which both are as fast. Times are those of
the processor, the least of some repetitions of each image or frame, on average over
images. Constants and state are those of the generated program, code that of an
optimised build for size.

Needs onnx, onnxruntime and a C compiler. Released networks are jaxburst's own; FOLDER
holds others' state dicts, ARCH_DATASET.safetensors, whose images are normalised with
the constants of ImageNet.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))

import common
import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

import jaxburst as jb
from jaxburst.graph import Input, Neuron, Pool, Synapse
from jaxburst.io.c import to_c
from jaxburst.io.integers import Integers, to_integers

NETWORKS = (
    *("resnet20-cifar10", "resnet56-cifar10"),
    *("vgg9-cifar10", "vgg9-cifar100", "vgg16-cifar100"),
)
STEPS = 4
CHANGES = [(0, 1), (1, 0.02), (1, 0.05), (1, 0.1), (1, 0.3)]
CHANGES += [(side, 1) for side in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)]
"""Sides of the square that changes, and how far it goes towards another image."""

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

MAIN = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "net.h"

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t changed(void) {
  uint64_t found = 0;
  for (int i = 0; i < net_POPULATIONS; i++) {
    const net_population *p = &net_populations[i];
    for (uint32_t k = 0; k < p->size; k++)
      found += p->bytes == 1   ? ((const int8_t *)p->spikes)[k] != 0
               : p->bytes == 2 ? ((const int16_t *)p->spikes)[k] != 0
                               : ((const int32_t *)p->spikes)[k] != 0;
  }
  return found;
}

/* MODE COUNT REPEATS: "outputs" of every step, "time" of every step, or "stream". */
int main(int argc, char **argv) {
  (void)argc;
  const int count = atoi(argv[2]), repeats = atoi(argv[3]);
  int16_t *images = malloc((size_t)count * net_INPUT0 * 2);
  if (!fread(images, (size_t)count * net_INPUT0 * 2, 1, stdin)) return 1;
  if (!strcmp(argv[1], "stream")) {
    double *best = malloc((size_t)count * sizeof *best);
    uint64_t events = 0;
    for (int r = 0; r < repeats; r++) {
      net_reset();
      events = 0;
      for (int i = 0; i < count; i++) {
        const double start = seconds();
        if (net_step(images + (size_t)i * net_INPUT0)) return 2;
        const double took = seconds() - start;
        if (!r || took < best[i]) best[i] = took;
        if (i) events += changed();
      }
    }
    double total = 0;
    for (int i = 1; i < count; i++) total += best[i];
    printf("%.9g %.9g\n", total / (count - 1), (double)events / (count - 1));
    return 0;
  }
  for (int t = 1; t <= net_STEPS; t++) {
    double total = 0;
    for (int i = 0; i < count; i++) {
      double best = 1e9;
      for (int r = 0; r < repeats; r++) {
        const double start = seconds();
        if (net_infer(images + (size_t)i * net_INPUT0, t)) return 3;
        const double took = seconds() - start;
        best = took < best ? took : best;
      }
      total += best;
      if (!strcmp(argv[1], "outputs")) fwrite(net_output0, 4, net_OUTPUT0, stdout);
    }
    if (!strcmp(argv[1], "time")) printf("%.9g\n", total / count);
  }
  return 0;
}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", default=NETWORKS)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path, help="folder of others' state dicts")
    parser.add_argument("--images", type=int, default=10000, help="for the accuracy")
    parser.add_argument("--timed", type=int, default=20, help="images that are timed")
    work = "folder that keeps what takes long, which is not made again"
    parser.add_argument("--work", type=Path, default=Path("runs/event"), help=work)
    parser.add_argument("--out", type=Path, default=Path("results/event_driven"))
    options = parser.parse_args()
    folder = common.prepare_folder(options.out)
    for name in options.networks:
        record = {"network": name, **measure(name, options), "provenance": machine()}
        common.write(folder / f"{name}.json", record)
        show(record)
    draw(folder)


def draw(folder: Path) -> None:
    """All records of a folder: time of a frame over what changes in it."""
    with common.figure(folder / "event_driven.png", figsize=(6, 4)) as (_, axes):
        for path in sorted(folder.glob("*.json")):
            record = json.loads(path.read_text())
            dense, streams = record["dense"]["int8_seconds"], record["streams"]
            shares = [100 * row["activations"] for row in streams]
            times = [row["seconds"] / dense for row in streams]
            axes.plot(shares, times, label=record["network"])
        axes.axhline(1, color="black", lw=1, label="int8 in onnxruntime")
        axes.axvline(2, color="grey", lw=0.5)
        axes.set(xscale="log", xlabel="activations that change (%)", xlim=(0.08, 100))
        axes.set(yscale="log", ylabel="time of a frame, over the dense network's")
        axes.legend()


def machine() -> dict:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((x.split(": ")[1] for x in lines if x.startswith("model name")), "")
    cc = subprocess.run(["cc", "--version"], capture_output=True, text=True).stdout
    compiler = {"cc": cc.split("\n")[0], "flags": "-O3 -march=native", "seed": 0}
    return common.provenance("onnxruntime") | {"processor": model} | compiler


def load(name: str, options):
    """`(network, variables, images to calibrate on, test images and labels)`."""
    arch, data = name.split("-")
    source, released = common.Source(arch, data_dir=options.data_dir), None
    if name in jb.released.names():
        released = jb.pretrained(name)[1]
    else:
        path = options.weights / f"{arch}_{data}.safetensors"
        source = dataclasses.replace(source, torch_weights=path, mean=MEAN, std=STD)
    dataset, module, variables = source.load(data, 0)
    variables = released or variables
    network = common.trace(module, variables, dataset)
    test = dataset.test[: options.images]
    some, images = np.asarray(dataset.train[:400].inputs), np.asarray(test.inputs)
    return network, variables, some, images, np.asarray(test.labels)


def measure(name: str, options) -> dict:
    network, variables, some, images, labels = load(name, options)
    integers, float_right, int_right = converted(
        name, network, variables, some, images, labels, options.work
    )
    right = common.outputs(network, variables, images).argmax(-1) == labels
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        program = build(integers, folder)
        whole = integers.quantised(images)[0]
        lost = float_right * 1.0 - int_right
        accuracy = {
            "images": len(images),
            "ann": percent(right),
            "spikes": [percent(x) for x in float_right],
            "integers": [percent(x) for x in int_right],
            "cost": [100 * float(x.mean()) for x in lost],
            "cost_standard_error": [
                100 * float(x.std() / len(labels) ** 0.5) for x in lost
            ],
        }
        rng = np.random.default_rng(0)
        chosen = rng.choice(len(images), options.timed, replace=False)
        per_step = [float(x) for x in program("time", whole[chosen], 5).split()]
        neurons = sum(part.size for part in integers.of("neuron", "pool"))
        streams = []
        for side, part in CHANGES:
            frames = moving(images[chosen], side, part, rng)
            took, events = map(
                float, program("stream", integers.quantised(frames)[0], 20).split()
            )
            pixels = side * side / (images.shape[1] * images.shape[2])
            row = {"part": part, "pixels": pixels, "activations": events / neurons}
            streams.append(row | {"seconds": took})
        dense = opponents(network, variables, some, images, labels, chosen, folder)
        sizes = flash_and_ram(integers, folder)
    streams.sort(key=lambda row: row["activations"])
    shares, times = ([row[k] for row in streams] for k in ("activations", "seconds"))
    goal = np.interp(0.02, shares, times)
    return {
        "accuracy": accuracy,
        "bits": {part.name: part.bits for part in integers.of("neuron")},
        "seconds_per_image": per_step,
        "dense": dense,
        "streams": streams,
        "crossing": crossing(streams, dense["int8_seconds"]),
        "faster_at_2_percent": dense["int8_seconds"] / float(goal),
        "sizes": sizes,
    }


def converted(name: str, network, variables, some, images, labels, work: Path):
    """Whole numbers, and which images floating-point spikes and they get right.

    The latter `[T, N]`, of the program itself.
    """
    work.mkdir(parents=True, exist_ok=True)
    path, right = work / f"{name}.safetensors", work / f"{name}.npy"
    if not right.exists():
        model, spiking = jb.presets.refining(network, variables, some)
        integers = to_integers(model, spiking, some, STEPS)
        integers.save(path)
        print(f"{name}: converted", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            program = build(integers, Path(folder))
            found = program("outputs", integers.quantised(images)[0], 1)
        outputs = np.frombuffer(found, np.int32).reshape(STEPS, len(images), -1)
        own = outputs.argmax(-1) == labels
        data = images, labels
        spikes, _ = common.scores(model, spiking, data, STEPS, jb.evaluation.top1)
        np.save(right, [spikes > 0, own])
    return Integers.load(path), *np.load(right)


def percent(right) -> float:
    return 100 * float(np.mean(right))


def build(integers, folder: Path):
    """Compiles the program; gives a function `(mode, images, repeats)` to its text."""
    to_c(integers, folder / "net.c")
    (folder / "main.c").write_text(MAIN)
    flags = "-std=gnu11 -O3 -march=native -o net net.c main.c"
    subprocess.run(["cc", *flags.split()], cwd=folder, check=True)

    def program(mode: str, images, repeats: int) -> bytes:
        command = [str(folder / "net"), mode, str(len(images)), str(repeats)]
        given = np.ascontiguousarray(images, np.int16).tobytes()
        return subprocess.run(
            command, input=given, capture_output=True, check=True
        ).stdout

    return program


def moving(images, side: int, part: float, rng) -> np.ndarray:
    """A still image in which a square moves, frame by frame, towards another image."""
    frames = [images[0]]
    for other in images[1:]:
        frame = frames[-1].copy()
        y, x = (int(rng.integers(0, n - side + 1)) for n in frame.shape[:2])
        square = slice(y, y + side), slice(x, x + side)
        frame[square] += part * (other[square] - frame[square])
        frames.append(frame)
    return np.stack(frames)


def crossing(streams, dense: float) -> float | None:
    """The share of activations at which events take as long as the dense network."""
    for a, b in zip(streams, streams[1:], strict=False):
        if a["seconds"] <= dense < b["seconds"]:
            part = (dense - a["seconds"]) / (b["seconds"] - a["seconds"])
            return a["activations"] + part * (b["activations"] - a["activations"])
    return None


def flash_and_ram(integers, folder: Path) -> dict:
    """Bytes of the program, built for size: code and constants, state."""
    command = "cc -std=c11 -Os -c net.c -o small.o".split()
    subprocess.run(command, cwd=folder, check=True)
    table = subprocess.run(
        ["size", "small.o"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    text, data, bss = (int(x) for x in table.splitlines()[1].split()[:3])
    kernels = sum(p.arrays["kernel"].size for p in integers.of("synapse"))
    return {"flash": text + data, "kernels": kernels, "ram": data + bss}


def opponents(network, variables, some, images, labels, chosen, folder: Path) -> dict:
    """onnxruntime on one core: accuracy and seconds per image, 8 bits and 32."""
    path, small = folder / "dense.onnx", folder / "int8.onnx"
    onnx.save(dense_model(network, variables), path)
    rows = some[:200].transpose(0, 3, 1, 2)

    class Reader(quantization.CalibrationDataReader):
        left = iter(rows)

        def get_next(self):
            row = next(self.left, None)
            return None if row is None else {"input": row[None]}

    quantization.quantize_static(
        path, small, Reader(), per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip
    settings, found = onnxruntime.SessionOptions(), {}
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    for kind, file in ("float", path), ("int8", small):
        session = onnxruntime.InferenceSession(
            file, settings, providers=["CPUExecutionProvider"]
        )
        given = images.transpose(0, 3, 1, 2)
        best = np.full(len(chosen), np.inf)
        for _ in range(20):
            for k, i in enumerate(chosen):
                feed = {"input": given[i : i + 1]}
                start = time.process_time()
                session.run(None, feed)
                best[k] = min(best[k], time.process_time() - start)
        found[f"{kind}_seconds"] = float(best.mean())
        logits = [session.run(None, {"input": x[None]})[0] for x in given]
        right = np.concatenate(logits).argmax(-1) == labels
        found[f"{kind}_accuracy"] = percent(right)
    return found


def dense_model(network, variables) -> onnx.ModelProto:
    """The trained network in ONNX, channels first: what VGG and ResNet are made of."""
    weights, nodes, held = network.weights(variables), [], []

    def constant(value, name: str) -> str:
        held.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def emit(op: str, node, *inputs, **attributes) -> str:
        nodes.append(helper.make_node(op, inputs, [node.name], **attributes))
        return node.name

    def visit(node, *values):
        role, name = node.role, node.name
        kind = getattr(getattr(role, "primitive", None), "name", "")
        if isinstance(role, Input):
            return "input"
        if isinstance(role, Synapse):
            kernel, bias = (np.asarray(x) for x in weights[name])
            bias = constant(bias.reshape(-1), f"{name}/b")
            if not role.is_conv:
                return emit("Gemm", node, *values, constant(kernel, f"{name}/w"), bias)
            low = [int(p[0]) for p in role.params["padding"]]
            high = [int(p[1]) for p in role.params["padding"]]
            kernel = constant(kernel.transpose(3, 2, 0, 1), f"{name}/w")
            strides = [int(s) for s in role.params["window_strides"]]
            return emit(
                "Conv", node, *values, kernel, bias, pads=low + high, strides=strides
            )
        if isinstance(role, Neuron):
            return emit("Relu", node, *values)
        if isinstance(role, Pool):
            window = [int(n) for n in role.params["window_dimensions"][1:3]]
            strides = [int(n) for n in role.params["window_strides"][1:3]]
            return emit("MaxPool", node, *values, kernel_shape=window, strides=strides)
        if kind == "add":
            return emit("Add", node, *values)
        if kind == "reshape":  # rows, columns, channels
            nodes.append(
                helper.make_node("Transpose", values, [f"{name}/t"], perm=[0, 2, 3, 1])
            )
            return emit("Flatten", node, f"{name}/t")
        if kind == "gather":  # every second pixel
            ends = [np.array(x, np.int64) for x in ([0, 0], [9**9] * 2, [2, 3], [2, 2])]
            names = [constant(x, f"{name}/{i}") for i, x in enumerate(ends)]
            return emit("Slice", node, *values, *names)
        if kind == "pad":
            pads = [(int(low), int(high)) for low, high, _ in
                    role.params["padding_config"]]  # fmt: skip
            order = [pads[i] for i in (0, 3, 1, 2)]
            both = np.array([p[k] for k in (0, 1) for p in order], np.int64)
            return emit("Pad", node, *values, constant(both, f"{name}/p"))
        if kind == "reduce_sum":
            nodes.append(
                helper.make_node("GlobalAveragePool", values, [f"{name}/mean"])
            )
            return emit("Flatten", node, f"{name}/mean")
        if kind == "div":  # by the number of pixels, which is done
            return values[0]
        raise SystemExit(f"{name}: {kind} has no dense form here")

    (output,) = jb.graph.read(network.graph, visit, "input")
    shape = network.graph.nodes[0].image_shape
    given = helper.make_tensor_value_info(
        "input", TensorProto.FLOAT, [1, shape[3], shape[1], shape[2]]
    )
    classes = network.graph[output].image_shape[-1]
    made = helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, classes])
    graph = helper.make_graph(nodes, "dense", [given], [made], held)
    opset = [helper.make_opsetid("", 17)]
    found = helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.checker.check_model(found)
    return found


def show(record: dict) -> None:
    accuracy, dense = record["accuracy"], record["dense"]
    print(f"\n{record['network']}: ANN {accuracy['ann']:.2f} %, int8 in onnxruntime "
          f"{dense['int8_accuracy']:.2f} %, {accuracy['images']} images")  # fmt: skip
    print("T  spikes  integers  cost (standard error)  ms per image")
    rows = zip(
        accuracy["spikes"], accuracy["integers"], accuracy["cost"],
        accuracy["cost_standard_error"], record["seconds_per_image"], strict=True,
    )  # fmt: skip
    for t, (a, b, cost, error, took) in enumerate(rows, 1):
        print(f"{t}  {a:6.2f}  {b:8.2f}  {cost:+.2f} ({error:.2f})  {1e3 * took:17.2f}")
    print(f"onnxruntime: int8 {1e3 * dense['int8_seconds']:.2f} ms, float "
          f"{1e3 * dense['float_seconds']:.2f} ms")  # fmt: skip
    print("streams: pixels, activations that change, ms per frame, times faster")
    for row in record["streams"]:
        gain = dense["int8_seconds"] / row["seconds"]
        print(f"{row['pixels']:7.1%} x {row['part']:<4g} {row['activations']:7.1%} "
              f"{1e3 * row['seconds']:8.3f} {gain:6.2f}")  # fmt: skip
    at = record["crossing"]
    print(f"at 2 % {record['faster_at_2_percent']:.2f} times faster; as fast at "
          f"{f'{at:.1%}' if at else 'none of these'}; {record['sizes']}")  # fmt: skip
    sys.stdout.flush()


if __name__ == "__main__":
    common.run(main)
