"""How fast spiking networks run, beside PyTorch programs of the same network.

    python benchmarks/throughput.py --arch vgg16 --batch-sizes 1 32 128 --steps 4 16
    python benchmarks/throughput.py --against 422d67f    # beside an older version

Every program gets the same converted network, images and number of steps, and all run
in turn, round after round, in one process: jaxburst's schedules, the same network as a
user writes it in Flax, a stepping loop in plain PyTorch, SpikingJelly step by step and
with all steps of a layer at once, and the ANN in both frameworks. As a table and as
JSON: medians over the rounds; of speeds the least, the median and the most. PyTorch and
SpikingJelly come with the extra `oracles`; what is missing is left out, and said so.

The network has random weights and sees random images: the time hardly depends on them,
but thresholds are calibrated on others like them, so that spikes flow (how many is
written down). Membranes start at half a threshold. Max pooling is by lateral
inhibition in all programs; SpikingJelly has none, and gets a module of its own for it.
`--pool average` takes VGGs with average pooling instead, which SpikingJelly does have.
Predictions are compared: the programs are the same network, so that they agree but for
spikes that rounding moves by a step.

`--against COMMIT` runs jaxburst alone, as it is here and as it was at a commit, in a
process each that take turns. The ratio is that of their speeds, the best of the rounds:
above 1, today's is faster.

All CPU cores take part: in jaxburst as devices that share the images, in PyTorch as
threads. Eleven minutes on 2 cores with `--rounds 3`; VGG-16 at batch 32, T = 16: 1,088
image-steps per second, SpikingJelly 446, the loop in PyTorch 593. Let nothing else run
on the machine: programs whose threads wait for one another at every layer (PyTorch's)
lose most when they have to share a core. The load at the start is written down.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

# JAX would take most of a GPU's memory before PyTorch has any.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
sys.path.append(str(Path(__file__).resolve().parents[1] / "experiments"))

import common
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peers
from flax.traverse_util import flatten_dict, unflatten_dict
from peers import Program, seconds_of

import jaxburst as jb

IMAGE = (32, 32, 3)
ALLOCATOR = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_CONF")
"""Variables that decide how memory is taken, which costs more than it seems to."""
PAUSE = 0.05
"""Seconds before every timing. The threads of whoever ran before spin for some
milliseconds after their work (OpenMP's, PyTorch's) and would take a core."""
SCHEDULES = ("step", "layer", "auto")
CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""The times of the curve that `jaxburst.direct` draws."""


# --- networks ---------------------------------------------------------------------


class HandVGG(nn.Module):
    """A VGG as a user writes it: Flax's own names, and padding as it comes."""

    plan: tuple[int | str, ...]
    classes: int
    bias: bool = True
    average: bool = False

    @nn.compact
    def __call__(self, x):
        for entry in self.plan:
            if entry == "M":
                pool = nn.avg_pool if self.average else nn.max_pool
                x = pool(x, (2, 2), strides=(2, 2))
            else:
                x = nn.Conv(entry, (3, 3), use_bias=self.bias)(x)
                x = nn.relu(nn.BatchNorm(use_running_average=True)(x))
        return nn.Dense(self.classes)(x.reshape(x.shape[0], -1))


class HandResNet(nn.Module):
    """A CIFAR ResNet as a user writes it."""

    widths: tuple[int, ...]
    blocks: int
    classes: int

    @nn.compact
    def __call__(self, x):
        def convolve(x, width, stride=1):
            x = nn.Conv(width, (3, 3), stride, padding=1, use_bias=False)(x)
            return nn.BatchNorm(use_running_average=True)(x)

        x = nn.relu(convolve(x, self.widths[0]))
        for i in range(len(self.widths) * self.blocks):
            width = self.widths[i // self.blocks]
            stride = 2 if width != x.shape[-1] else 1
            y = convolve(nn.relu(convolve(x, width, stride)), width)
            if stride == 2:
                new = (width - x.shape[-1]) // 2
                x = jnp.pad(x[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (new, new)))
            x = nn.relu(x + y)
        return nn.Dense(self.classes)(jnp.mean(x, axis=(1, 2)))


def by_hand(module, variables, images, average: bool):
    """The same network as a user writes it, of the VGGs and the CIFAR ResNets."""
    if isinstance(module, jb.zoo.VGG):
        own = HandVGG(module.plan, module.classes, module.bias, average)
    elif module.shortcut == "subsample":
        own = HandResNet(module.widths, module.blocks, module.classes)
    else:
        return None, None
    made, found = own.init(jax.random.key(0), images), {}
    for collection, there in made.items():  # both in the order of use
        values = flatten_dict(variables[collection]).values()
        pairs = zip(flatten_dict(there), values, strict=True)
        found[collection] = unflatten_dict(dict(pairs))
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, made)
    return own, found


def drawn(config, count: int, stream: int = 0) -> np.ndarray:
    """Random images, normalised."""
    rng = np.random.default_rng([config.seed, stream])
    return rng.normal(size=(count, *IMAGE)).astype(np.float32)


def converted(module, variables, config):
    """The network of a module as bursts."""
    network = jb.trace(module.apply, variables, drawn(config, 1))
    neuron, seen = jb.Burst(config.gamma), drawn(config, 64, stream=1)
    thresholds = jb.calibrate(network, variables, seen, neuron)
    model = jb.Model(network, neuron, exact=config.exact)
    return model, jb.convert(network, variables, thresholds)


# --- jaxburst ---------------------------------------------------------------------


def prepared(arch: str, batch: int, steps: int, config):
    """A network, `(module, model, spiking, images)`, and jaxburst's programs of it."""
    images = drawn(config, batch)
    module = jb.zoo.NETWORKS[arch](10)
    variables = module.init(jax.random.key(config.seed), images[:1])
    average = config.pool == "average"
    own, owned = by_hand(module, variables, images[:1], average)
    if average and own:
        module, variables = own, owned
    model, spiking = converted(module, variables, config)
    programs = {
        f"jaxburst {name}": inference(model, spiking, images, steps, name)
        for name in SCHEDULES
    }
    options = jb.run.compiler_options(model.network)
    circuit = jb.circuit.prepared(model, peers.threshold_1(model, spiking))
    conventional = functools.partial(ann, model)
    programs["jaxburst ANN"] = program("ANN", options, conventional, circuit, images)
    if own and own is not module:
        written = inference(*converted(own, owned, config), images, steps, "auto")
        programs["jaxburst auto, by hand"] = written
    return (module, model, spiking, images), programs


def inference(model, spiking, images, steps: int, schedule: str) -> Program:
    """The logits after some steps, of weights that are prepared once."""
    each = jb.devices.per_device(len(images))
    order = jb.run.plan(model.network, each, steps, schedule)
    note = f"{order}, on {len(images) // each} devices"

    def function(circuit, images):
        return jb.run.last_of(model, circuit, [images], steps, schedule)[0]

    options = jb.run.compiler_options(model.network)
    circuit = jb.circuit.prepared(model, spiking)
    return program("SNN", options, function, circuit, images, note)


def ann(model, circuit, images) -> jax.Array:
    """The ANN with the convolutions of the spiking network: one step of ReLUs.

    In `circuit` every threshold is 1, so that activations are what travels.
    """

    def relu(name, neuron, threshold, state, arriving, f):
        currents, _ = arriving
        return state, jax.nn.relu(currents), None

    def outputs(state, info):
        return info.outputs[0]

    return jb.run.unroll(model, circuit, [images], 1, outputs, respond=relu)[1][0]


def program(kind: str, options, function, weights, images, note="") -> Program:
    """A function of weights and images, compiled; all devices share the images."""
    shard, replicate = jb.devices.share(len(images))
    arguments = replicate(weights), shard(jnp.asarray(images))
    start = time.perf_counter()
    parallel = getattr(jb.devices, "data_parallel", None) or jb.devices.divided
    run = jax.jit(parallel(function, len(images)), compiler_options=options)
    compiled = run.lower(*arguments).compile()
    seconds = time.perf_counter() - start

    def call():
        return np.asarray(compiled(*arguments))

    if jax.default_backend() == "cpu":
        return Program(call, kind, seconds, peers.resident(call), note)
    memory = compiled.memory_analysis()
    needed = memory and memory.temp_size_in_bytes + memory.output_size_in_bytes
    return Program(call, kind, seconds, needed, note)


def curve(network, spiking, images, ann: Program, rounds: int) -> float:
    """Nine points up to T = 256 by `jaxburst.direct`, in passes of the ANN."""
    model = jb.Model(network, jb.Burst(None, signed=True))

    def function(spiking, images):
        return jb.direct(model, spiking, images, CURVE).swapaxes(0, 1)

    options, ratios = jb.run.compiler_options(network), []
    curve = program("SNN", options, function, spiking, images)
    for _ in range(rounds):
        time.sleep(PAUSE)
        ratios.append(seconds_of(curve.call) / seconds_of(ann.call))
    return median(ratios)


def whole(module, config) -> dict:
    """The training of a network, and 10,000 images for 32 time steps."""
    rng, half = np.random.default_rng(config.seed), (0.5,) * 3

    def split(count: int) -> jb.data.Split:
        images = rng.integers(0, 256, (count, *IMAGE), np.uint8)
        return jb.data.Split(images, rng.integers(0, 10, count, np.int32), half, half)

    recipe = jb.Recipe(epochs=3, batch_size=512, precision="bfloat16")
    variables, history = jb.fit(module, split(25_600), recipe)
    test = split(10_000)
    seen = test[:200].inputs
    network = jb.trace(module.apply, variables, seen[:1])
    model, spiking = jb.presets.paper(network, variables, seen)
    settings = {"steps": 32, "batch_size": 1000}
    jb.evaluate(model, spiking, test[:1000], **settings)
    seconds = seconds_of(lambda: jb.evaluate(model, spiking, test, **settings))
    rate = history[-1]["images_per_second"]
    passes = 3 * sum(operations(network))  # one forwards, two backwards
    print(
        f"training {rate:,.0f} images/s, {rate * passes / 1e12:.1f} Tflop/s; "
        f"10,000 images, T = 32: {seconds:.2f} s"
    )
    return {
        "training_images_per_second": rate,
        "training_operations_per_second": rate * passes,
        "seconds_of_10000_images_at_32_steps": seconds,
    }


# --- the race ---------------------------------------------------------------------


def peaks() -> dict[str, Callable[[], float]]:
    """`{framework: one measurement of its matrix products, in operations per second}`.

    On CPU the products that a VGG consists of; larger ones on a GPU.
    """
    sizes = [(2048, 2304, 512), (4096, 1152, 256)]
    if jax.default_backend() == "gpu":
        sizes = [(8192, 8192, 8192), (16384, 4608, 512)]
    rng = np.random.default_rng(0)
    pairs = [
        (rng.random((m, k), np.float32), rng.random((k, n), np.float32))
        for m, k, n in sizes
    ]
    product = jax.jit(jnp.matmul)

    def best(pairs, multiply):
        for a, b in pairs:
            multiply(a, b)
        return max(
            2 * a.shape[0] * math.prod(b.shape) / seconds_of(multiply, a, b)
            for a, b in pairs
            for _ in range(3)
        )

    ours = [tuple(map(jnp.asarray, pair)) for pair in pairs]
    found = {"jax": lambda: best(ours, lambda a, b: product(a, b).block_until_ready())}
    if not peers.missing("torch"):
        import torch

        device = peers.torch_device()
        theirs = [[torch.from_numpy(x).to(device) for x in pair] for pair in pairs]

        def multiply(a, b):
            a @ b
            if device.type == "cuda":
                torch.cuda.synchronize()

        found["torch"] = lambda: best(theirs, multiply)
    return found


def mean_seconds(call, once: float) -> float:
    """Of one call; of short calls, their mean over a tenth of a second."""
    repeats = max(1, round(0.1 / once))
    time.sleep(PAUSE)
    return sum(seconds_of(call) for _ in range(repeats)) / repeats


def race(programs: dict[str, Program], rounds: int) -> tuple[dict, dict]:
    """Runs every program once per round, one after the other.

    Returns:
      `(seconds, peak)`: the time of one call, `{program: [rounds]}`, and the operations
      per second of matrix products, `{framework: [rounds]}`.
    """
    products, seconds = peaks(), {name: [] for name in programs}
    peak = {name: [] for name in products}
    once = {name: seconds_of(program.call) for name, program in programs.items()}
    for _ in range(rounds):
        for name, measure in products.items():
            time.sleep(PAUSE)
            peak[name].append(measure())
        for name, program in programs.items():
            seconds[name].append(mean_seconds(program.call, once[name]))
    return seconds, peak


def compared(programs: dict[str, Program]) -> dict[str, dict]:
    """How far the logits of every program are from those of the first of its kind.

    Rounding differs from program to program, most with Winograd's algorithm: now and
    then a potential at its threshold crosses it a step apart, which moves the logits of
    that image, and the prediction of an untrained network where it was a near tie. The
    logits of most images differ by rounding alone.

    Raises:
      ArithmeticError: for a program that computes another network.
    """
    found, reference = {}, {}
    for name, program in programs.items():
        logits = program.call()
        first, expected = reference.setdefault(program.kind, (name, logits))
        apart = np.abs(logits - expected).max(-1)
        spread = float(expected.std(-1).mean())
        if not np.median(apart) < spread / 4:
            raise ArithmeticError(
                f"{name}: its logits are {np.median(apart):.2g} away from those of "
                f"{first}, whose spread is {spread:.2g}; it is not the same network"
            )
        same = logits.argmax(-1) == expected.argmax(-1)
        found[name] = {
            "same_predictions": float(same.mean()),
            "difference_of_logits": float(np.median(apart)),
        }
    return found


def operations(network) -> tuple[int, int]:
    """`(first, rest)`: of one image, two per multiply-accumulate.

    Of convolutions by definition, without taps on zero padding.
    """
    first, *rest = jb.energy.macs(network).values()
    return 2 * first, 2 * sum(rest)


def measure(arch: str, batch: int, steps: int, config) -> dict:
    """One batch size and number of steps: every program, checked and raced."""
    one, programs = prepared(arch, batch, steps, config)
    for build in (peers.torch_programs, peers.spikingjelly_programs):
        programs |= build(*one, steps)
    _, model, spiking, images = one
    checks = compared(programs)
    seconds, peak = race(programs, config.rounds)
    conventional = programs["jaxburst ANN"]
    passes = curve(model.network, spiking, images, conventional, config.rounds)
    peak = {name: max(values) for name, values in peak.items()}
    first, rest = operations(model.network)
    rows = {}
    for name, program in programs.items():
        length = steps if program.kind == "SNN" else 1
        typical = median(seconds[name])
        times = max(seconds[name]), typical, min(seconds[name])
        # The ANN of the same framework, that is, with the same convolutions.
        other = "jaxburst ANN" if name.startswith("jaxburst") else "PyTorch ANN"
        pairs = zip(seconds[name], seconds[other], strict=True)
        rows[name] = {
            "kind": program.kind,
            "image_steps_per_second": [batch * length / time for time in times],
            "over_t_times_ann": median(own / (length * other) for own, other in pairs),
            "fraction_of_peak": batch
            * (first + length * rest)
            / typical
            / max(peak.values()),
            "bytes": program.bytes,
            "compile_seconds": program.compile_seconds,
            "note": program.note,
        } | checks[name]
    return {
        "batch": batch,
        "steps": steps,
        "spikes_per_neuron_and_step": spike_rate(model, spiking, images[:8], steps),
        "peak_operations_per_second": peak,
        "direct_over_ann": passes,
        "programs": rows,
    }


def spike_rate(model, spiking, images, steps: int) -> tuple[float, float]:
    """Mean spikes per neuron and step of the least and most active layer."""
    events = jb.simulate(model, spiking, images, steps).events
    nodes = [model.network.graph[name] for name in model.network.neurons]
    rates = [
        float(events[node.name].mean()) / math.prod(node.image_shape) for node in nodes
    ]
    return min(rates), max(rates)


def table(result: dict) -> str:
    """One batch size and number of steps, as printed."""
    columns = ("image-steps/s", "least", "most", "/(T ANN)", "of peak")
    columns += ("MB", "compile s", "same", "logits apart")
    rows = [("program", *columns)]
    for name, row in result["programs"].items():
        least, typical, most = row["image_steps_per_second"]
        rows.append(
            (
                name,
                *(f"{speed:.1f}" for speed in (typical, least, most)),
                f"{row['over_t_times_ann']:.3f}",
                f"{row['fraction_of_peak']:.1%}",
                "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.0f}",
                f"{row['compile_seconds']:.1f}",
                f"{row['same_predictions']:.1%}",
                f"{row['difference_of_logits']:.1e}",
            )
        )
    peak = ", ".join(
        f"{name} {highest / 1e9:.0f}"
        for name, highest in result["peak_operations_per_second"].items()
    )
    least, most = result["spikes_per_neuron_and_step"]
    return (
        f"batch {result['batch']}, T = {result['steps']}; matrix products, Gop/s: "
        f"{peak}; spikes per neuron and step {least:.3f} to {most:.3f}\n"
        f"{aligned(rows)}\nT = 1 ... 256, nine points in one go (direct): "
        f"{result['direct_over_ann']:.1f} passes of the ANN"
    )


def aligned(rows: list[tuple[str, ...]]) -> str:
    """Cells under one another, the first column to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


# --- against an older version -----------------------------------------------------


def of_layers(arch: str, batch: int, steps: int, config) -> dict[str, Program]:
    """The programs of version 0.1, which knew tuples of layers and no functions.

    It stays for `--against`, and no test runs it: that takes a checkout of then.
    """
    from jaxburst import simulation

    layers, images = jb.zoo.NETWORKS[arch](10), drawn(config, batch)
    variables = jb.Network(layers).init(jax.random.key(config.seed), images[:1])
    neuron, seen = jb.Burst(config.gamma), drawn(config, 64, stream=1)
    thresholds = jb.calibrate(layers, variables, seen, neuron)
    spiking = jb.convert(layers, variables, thresholds)
    model = jb.Model(layers, neuron, exact=config.exact)
    circuit = simulation.build(model, spiking, IMAGE)

    def ann(circuit, images):
        def relu(path, threshold, membrane, current, t):
            return membrane, jax.nn.relu(current)

        current = simulation.drive(model, circuit, images)
        state = simulation.rest(model, circuit, images.shape)
        state, _ = simulation.step(model, circuit, current, state, respond=relu)
        return simulation.readout(model, state)

    functions = {
        f"jaxburst {name}": functools.partial(
            jb.infer, model, steps=steps, schedule=name
        )
        for name in SCHEDULES
    }
    options = simulation.compiler_options(model, IMAGE)
    return {
        name: program("", options, function, circuit, images)
        for name, function in (functions | {"jaxburst ANN": ann}).items()
    }


def work(config) -> None:
    """Serves one side: says which programs there are, then times those it is told."""
    case = config.arch[0], config.batch_sizes[0], config.steps[0], config
    programs = prepared(*case)[1] if hasattr(jb, "trace") else of_layers(*case)
    once = {name: seconds_of(program.call) for name, program in programs.items()}
    print(json.dumps(list(programs)), flush=True)
    for line in sys.stdin:
        name = line.strip()
        print(json.dumps(mean_seconds(programs[name].call, once[name])), flush=True)


@contextlib.contextmanager
def worker(options: list[str], package: Path | None):
    """A process with one version, as a function of a line that returns its answer."""
    environment, script = dict(os.environ), __file__
    if package is not None:
        environment["PYTHONPATH"] = str(package)
        script = str(package / "experiments" / Path(__file__).name)
    command = [sys.executable, script, "--worker", *options]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:

        def ask(line: str = ""):
            if line:
                print(line, file=process.stdin, flush=True)
            answer = process.stdout.readline()
            if not answer:
                raise ChildProcessError(f"{package or 'here'}: the process has ended")
            return json.loads(answer)

        try:
            yield ask
        finally:
            process.stdin.close()


@contextlib.contextmanager
def checked_out(commit: str):
    """A temporary worktree of a commit, outside of this one."""
    git = ["git", "-C", str(Path(__file__).resolve().parent), "worktree"]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder, "jaxburst")
        add = subprocess.run(
            [*git, "add", "--detach", place, commit], capture_output=True, text=True
        )
        if add.returncode:
            raise ValueError(f"--against {commit}: {add.stderr.strip()}")
        try:
            # Today's programs beside what the experiments shared then.
            for name in (Path(__file__).name, "peers.py"):
                shutil.copy(Path(__file__).with_name(name), place / "experiments")
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", place], check=True)


def against(arch: str, batch: int, steps: int, config, package: Path) -> dict:
    """Every program of both versions in turn: seconds, and the ratio of speeds."""
    options = ["--arch", arch, "--batch-sizes", str(batch), "--steps", str(steps)]
    options += ["--gamma", str(config.gamma), "--seed", str(config.seed)]
    options += ["--exact"] if config.exact else []
    with worker(options, package) as old, worker(options, None) as new:
        then, now = old(), new()
        # What is written by hand stands beside the zoo's of then.
        pairs = {
            name: other
            for name in now
            for other in (name, name.removesuffix(", by hand"))
            if other in then
        }
        seconds = {name: {"old": [], "new": []} for name in pairs}
        for i in range(config.rounds):
            for name, other in pairs.items():
                turns = [("old", old, other), ("new", new, name)]
                for side, ask, asked in turns[:: 1 if i % 2 else -1]:
                    seconds[name][side].append(ask(asked))
    for row in seconds.values():
        # Whoever is first in a turn is slower, and rounds may be odd: the least counts.
        row["ratio"] = min(row["old"]) / min(row["new"])
    return {"batch": batch, "steps": steps, "programs": seconds}


def table_against(result: dict) -> str:
    """One batch size and number of steps: milliseconds, and the ratio of speeds."""
    rows = [("program", "old ms", "new ms", "new/old")]
    for name, row in result["programs"].items():
        times = (f"{1e3 * min(row[side]):.1f}" for side in ("old", "new"))
        rows.append((name, *times, f"{row['ratio']:.3f}"))
    return f"batch {result['batch']}, T = {result['steps']}\n{aligned(rows)}"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def add(name: str, **settings):
        parser.add_argument(f"--{name}", **settings)

    numbers = {"nargs": "+", "type": int}
    archs = ["vgg16", "resnet20"]
    add("arch", nargs="+", default=archs, choices=jb.zoo.NETWORKS)
    add("batch-sizes", default=[1, 32, 128], **numbers)
    add("steps", default=[4, 16], **numbers)
    add("rounds", type=int, default=5)
    add("gamma", type=int, default=1, help="spikes per step at most; 1 is IF")
    add("pool", choices=["lateral", "average"], default="lateral")
    exact = "jaxburst without Winograd's algorithm"
    add("exact", action="store_true", help=exact)
    both = "also train, and simulate 10,000 images for 32 steps: for accelerators"
    add("whole", action="store_true", help=both)
    add("against", metavar="COMMIT", help="beside jaxburst as it was at a commit")
    add("worker", action="store_true", help=argparse.SUPPRESS)
    add("seed", type=int, default=0)
    add("out", type=Path, default=Path("runs/throughput"))
    config = parser.parse_args()
    for name in ("batch_sizes", "steps", "rounds"):
        if np.min(getattr(config, name)) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if config.against and (config.pool != "lateral" or config.whole):
        parser.error("--against takes neither --pool nor --whole")
    return config


def main() -> None:
    config = arguments()
    common.one_device_per_core()
    if config.worker:
        return work(config)
    folder = common.prepare_folder(config.out)
    if not peers.missing("torch"):
        peers.set_up_torch(jb.devices.cores())
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"load average {load:.1f}: something else is running; times will be off")
    results, wholes = {arch: [] for arch in config.arch}, {}
    name, then, show = "throughput", contextlib.nullcontext(), table
    if config.against:
        name, then, show = "against", checked_out(config.against), table_against
    with then as package:
        for arch in config.arch:
            for batch in config.batch_sizes:
                for steps in config.steps:
                    case = [arch, batch, steps, config]
                    found = against(*case, package) if package else measure(*case)
                    results[arch].append(found)
                    print(f"{arch}, {show(found)}\n", flush=True)
            if config.whole:
                wholes[arch] = whole(jb.zoo.NETWORKS[arch](10), config)
    common.write_record(
        *(folder, name, vars(config), "torch", "spikingjelly"),
        environment={name: os.environ.get(name) for name in ALLOCATOR},
        threads=jb.devices.cores(),
        load_average=load,
        results=results,
        whole=wholes,
    )


if __name__ == "__main__":
    common.run(main)
