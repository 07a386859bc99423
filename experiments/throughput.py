"""How fast spiking networks run, beside PyTorch programs of the same network.

    python experiments/throughput.py --arch vgg16 --batch-sizes 1 32 128 --steps 4 16

Every program gets the same converted network, images and number of steps, and all run
in turn, round after round, in one process: jaxburst's schedules, a stepping loop in
plain PyTorch, SpikingJelly step by step and with all steps of a layer at once, and the
ANN in both frameworks. Medians over the rounds as a table and as JSON. PyTorch and
SpikingJelly come with the extra `oracles`; what is missing is left out, and said so.

The network has random weights and sees random images: the time hardly depends on them,
but thresholds are calibrated on others like them, so that spikes flow (how many is
written down). Membranes start at half a threshold. Max pooling is by lateral
inhibition in all programs; SpikingJelly has none, and gets a module of its own for it.
`--pool average` exchanges every MaxPool for an AvgPool instead, which SpikingJelly
does have. Predictions are compared: the programs are the same network, so that they
agree but for spikes that rounding moves by a step.

All CPU cores take part: in jaxburst as devices that share the images, in PyTorch as
threads. Eleven minutes on 2 cores with `--rounds 3`; VGG-16 at batch 32, T = 16: 1,088
image-steps per second, SpikingJelly 446, the loop in PyTorch 593. Let nothing else run
on the machine: programs whose threads wait for one another at every layer (PyTorch's)
lose most when they have to share a core. The load at the start is written down.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import importlib.util
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

# JAX would take most of a GPU's memory before PyTorch has any.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from common import (
    one_device_per_core,
    prepare_folder,
    provenance,
    run,
    silent_channels,
    write_json,
)

import jaxburst as jb
from jaxburst import simulation
from jaxburst.layers import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    MaxPool,
    Relu,
    Residual,
    Subsample,
    named,
    trace_shapes,
)

IMAGE = (32, 32, 3)
ALLOCATOR = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_CONF")
"""Variables that decide how memory is taken, which costs more than it seems to."""
PAUSE = 0.05
"""Seconds before every timing. The threads of whoever ran before spin for some
milliseconds after their work (OpenMP's, PyTorch's) and would take a core."""


class Program(NamedTuple):
    """What is raced: `call()` classifies one batch of images in `steps` time steps.

    Attributes:
      call: returns the logits `[B, classes]`, as NumPy.
      kind: 'SNN' or 'ANN'.
      compile_seconds: compilation by XLA; of PyTorch, how much longer its first call
        took than the next.
      bytes: what a call takes at most of memory that was free before it; `None`
        where nobody counts.
      note: the memory format, in PyTorch; in jaxburst what was done at a time.
    """

    call: Callable[[], np.ndarray]
    kind: str
    compile_seconds: float
    bytes: int | None
    note: str = ""


# --- jaxburst ---------------------------------------------------------------------


SCHEDULES = ("step", "layer", "auto")
CURVE = (1, 2, 4, 8, 16, 32, 64, 128, 256)
"""The times of the curve that `jaxburst.direct` draws."""


def conventional(model, circuit, images) -> jax.Array:
    """The ANN with the convolutions of the spiking network: one step of ReLUs.

    In `circuit` every threshold is 1, so that activations are what travels.
    """

    def relu(path, threshold, membrane, current, t):
        return membrane, jax.nn.relu(current)

    current = simulation.drive(model, circuit, images)
    state = simulation.rest(model, circuit, images.shape)
    state, _ = simulation.step(model, circuit, current, state, respond=relu)
    return simulation.readout(model, state)


def jaxburst_programs(model, spiking, images, steps: int) -> dict[str, Program]:
    """All schedules, and the ANN."""
    circuit = simulation.build(model, spiking, images.shape[1:])
    each = jb.devices.of_each(len(images))
    programs = {}
    for name in SCHEDULES:
        function = functools.partial(jb.infer, model, steps=steps, schedule=name)
        note = f"{simulation.plan(each, steps, name)}, on {len(images) // each} devices"
        program = _compiled("SNN", model, function, circuit, images)
        programs[f"jaxburst {name}"] = program._replace(note=note)
    units = {
        path: value._replace(theta=jnp.ones_like(value.theta))
        if hasattr(value, "theta")
        else value
        for path, value in spiking.items()
    }
    circuit = simulation.build(model, units, images.shape[1:])
    function = functools.partial(conventional, model)
    programs["jaxburst ANN"] = _compiled("ANN", model, function, circuit, images)
    return programs


def curve(layers, spiking, images, ann: Program, rounds: int) -> dict:
    """Nine points up to T = 256 by `jaxburst.direct`, in passes of the ANN."""
    model = jb.Model(layers, jb.Burst(None, signed=True))

    def function(spiking, images):
        return jb.direct(model, spiking, images, CURVE).swapaxes(0, 1)

    program = _compiled("SNN", model, function, spiking, images)
    program.call()
    ratios = []
    for _ in range(rounds):
        time.sleep(PAUSE)
        ratios.append(_seconds(program.call) / _seconds(ann.call))
    return {"times": CURVE, "passes": statistics.median(ratios)}


def whole(layers, config) -> dict:
    """The training of a network, and 10,000 images for 32 time steps."""
    rng = np.random.default_rng(config.seed)
    half = (0.5,) * 3

    def drawn(count: int) -> jb.data.Split:
        images = rng.integers(0, 256, (count, *IMAGE), np.uint8)
        return jb.data.Split(images, rng.integers(0, 10, count, np.int32), half, half)

    recipe = jb.Recipe(epochs=3, batch_size=512, precision="bfloat16")
    variables, history = jb.fit(layers, drawn(25_600), recipe)
    test = drawn(10_000)
    with silent_channels():
        model, spiking = jb.presets.paper(layers, variables, test[:200].inputs)
    settings = {"steps": 32, "batch_size": 1000}
    jb.evaluate(model, spiking, test[:1000], **settings)
    seconds = _seconds(lambda: jb.evaluate(model, spiking, test, **settings))
    rate = history[-1]["images_per_second"]
    passes = 3 * sum(operations(layers))  # one forwards, two backwards
    print(
        f"training {rate:,.0f} images/s, {rate * passes / 1e12:.1f} Tflop/s; "
        f"10,000 images, T = 32: {seconds:.2f} s"
    )
    return {
        "training_images_per_second": rate,
        "training_operations_per_second": rate * passes,
        "seconds_of_10000_images_at_32_steps": seconds,
    }


def _compiled(kind: str, model, function, weights, images) -> Program:
    """A function of weights and images; all devices share the images."""
    options = simulation.compiler_options(model, IMAGE)
    cut, copy = jb.devices.share(len(images))
    arguments = copy(weights), cut(jnp.asarray(images))
    start = time.perf_counter()
    divided = jb.devices.divided(function, len(images))
    run = jax.jit(divided, compiler_options=options)
    compiled = run.lower(*arguments).compile()
    seconds = time.perf_counter() - start

    def call():
        return np.asarray(compiled(*arguments))

    if jax.default_backend() == "cpu":
        return Program(call, kind, seconds, resident(call))
    memory = compiled.memory_analysis()
    needed = memory and memory.temp_size_in_bytes + memory.output_size_in_bytes
    return Program(call, kind, seconds, needed)


def resident(call) -> int | None:
    """By how much a call raises the peak of the memory this process occupies.

    The same for every program, libraries' scratch included. Linux only.
    """
    call()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        before = _status("VmRSS")
        call()
        return max(0, _status("VmHWM") - before)
    except (OSError, AttributeError):
        return None


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


# --- PyTorch ----------------------------------------------------------------------


def missing(*packages: str) -> str:
    """Why programs are left out, or nothing."""
    absent = [name for name in packages if importlib.util.find_spec(name) is None]
    return f"{', '.join(absent)} not installed (extra `oracles`)" if absent else ""


def torch_modules():
    """Classes for the parts of a network that PyTorch does not have."""
    import torch
    from torch import nn

    class Neurons(nn.Module):
        """Burst neurons of threshold 1; the spikes may overwrite the current."""

        def __init__(self, gamma, overwrite):
            super().__init__()
            self.gamma, self.overwrite, self.v = gamma, overwrite, None

        def forward(self, current):
            if self.v is None:
                self.v = torch.full_like(current, 0.5)
            self.v += current
            spikes = torch.floor(self.v, out=current if self.overwrite else None)
            self.v -= spikes.clamp_(0, self.gamma)
            return spikes

        def reset(self):
            self.v = None

    class LateralPool(nn.Module):
        """Passes on what the running sums of a window have gained at their maximum."""

        def __init__(self, layer):
            super().__init__()
            window = layer.window, layer.stride or layer.window, layer.padding
            self.pool = nn.MaxPool2d(*window)
            self.reset()

        def forward(self, spikes):
            if self.total is None:
                self.total = spikes.clone()
                self.sent = self.pool(spikes)
                return self.sent
            self.total += spikes
            before, self.sent = self.sent, self.pool(self.total)
            return self.sent - before

        def reset(self):
            self.total = self.sent = None

    class Sum(nn.Module):
        def __init__(self, body, shortcut, scale):
            super().__init__()
            self.body, self.shortcut, self.scale = body, shortcut, scale

        def forward(self, x):
            return self.body(x).add_(self.shortcut(x), alpha=self.scale)

    class Subsampled(nn.Module):
        def __init__(self, layer, channels):
            super().__init__()
            before = (layer.features - channels) // 2
            self.stride = layer.stride
            self.edge = (0, 0, 0, 0, before, layer.features - channels - before)

        def forward(self, x):
            x = x[..., :: self.stride, :: self.stride]
            return nn.functional.pad(x, self.edge)

    return Neurons, LateralPool, Sum, Subsampled


def torch_network(layers, spiking, kit, neurons: Callable, pool: Callable):
    """A converted network as PyTorch modules, channels first.

    Args:
      layers: the network.
      spiking: its weights; with thresholds of 1 for a spiking one.
      kit: where `Conv2d`, `Linear`, `AvgPool2d` and `Flatten` are taken from.
      neurons: makes the module that stands for a Relu, from its path.
      pool: makes the module that stands for a MaxPool, from the layer.

    Returns:
      `(stem, rest)`: what is constant in time, up to the first Relu, and the rest.
    """
    import torch

    Sum, Subsampled = torch_modules()[2:]
    rows = {row.path: row for row in trace_shapes(layers, IMAGE)}

    def loaded(module, kernel, bias):
        module.weight.data = torch.from_numpy(np.array(kernel, order="C"))
        module.bias.data = torch.from_numpy(np.array(bias))
        return module

    def scope(layers, prefix):
        modules, flattened = [], None
        for name, layer in named(layers):
            path = f"{prefix}{name}"
            shape = rows[path].input if path in rows else None
            match layer:
                case Conv(features, kernel, stride, padding):
                    weight, bias = spiking[path]
                    module = kit.Conv2d(
                        *(shape[-1], features, kernel), stride=stride, padding=padding
                    )
                    weight = np.transpose(weight, (3, 2, 0, 1))
                    modules.append(loaded(module, weight, bias))
                case Dense(features):
                    weight, bias = spiking[path]
                    if flattened:
                        maps = np.reshape(weight, (*flattened, features))
                        weight = maps.transpose(2, 0, 1, 3).reshape(-1, features)
                        flattened = None
                    module = kit.Linear(shape[0], features)
                    modules.append(loaded(module, np.transpose(weight), bias))
                case Relu():
                    modules.append(neurons(path))
                case MaxPool():
                    modules.append(pool(layer))
                case AvgPool(window, stride):
                    modules.append(kit.AvgPool2d(window or shape[0], stride))
                case Flatten():
                    modules.append(kit.Flatten())
                    flattened = shape
                case Subsample():
                    modules.append(Subsampled(layer, shape[-1]))
                case Residual(body, shortcut):
                    scale = float(spiking[path].scale)
                    inside = scope(body, f"{path}/body/")
                    around = scope(shortcut, f"{path}/shortcut/")
                    parts = torch.nn.Sequential(*inside), torch.nn.Sequential(*around)
                    modules.append(Sum(*parts, scale))
        return modules

    modules = scope(layers, "")
    first = [isinstance(layer, Relu) for layer in layers].index(True)
    stem, rest = modules[:first], modules[first:]
    return torch.nn.Sequential(*stem).eval(), torch.nn.Sequential(*rest).eval()


def torch_programs(model, spiking, images, steps: int) -> dict[str, Program]:
    """A plain stepping loop, and the ANN."""
    if reason := missing("torch"):
        print(f"without PyTorch: {reason}")
        return {}
    from torch import nn

    Neurons, LateralPool, *_ = torch_modules()
    scaled = jb.normalise(model.layers, spiking, IMAGE)
    first = next(name for name, layer in named(model.layers) if layer == Relu())
    stem, rest = torch_network(
        model.layers,
        scaled,
        nn,
        # The first current is the same at every step, and must stay.
        lambda path: Neurons(model.neuron.gamma, overwrite=path != first),
        LateralPool,
    )

    def loop(images):
        for module in rest.modules():
            if hasattr(module, "reset"):
                module.reset()
        current = stem(images)
        total = rest(current)
        for _ in range(steps - 1):
            total += rest(current)
        return total / steps

    start, end = torch_network(
        model.layers,
        spiking,
        nn,
        lambda path: nn.ReLU(inplace=True),
        lambda layer: nn.MaxPool2d(
            layer.window, layer.stride or layer.window, layer.padding
        ),
    )
    ann = nn.Sequential(start, end)
    return {
        "PyTorch loop": _raced("SNN", (stem, rest), loop, images),
        "PyTorch ANN": _raced("ANN", (ann,), ann, images),
    }


def spikingjelly_programs(model, spiking, images, steps: int) -> dict[str, Program]:
    """SpikingJelly step by step, and layer by layer with all steps at once.

    Its `IFNode` is the integrate-and-fire neuron, its `ILIFNode` the burst neuron
    that starts at half a threshold (tests/test_peers.py). As its tutorials do, the
    first convolution is applied once.
    """
    if reason := missing("torch", "spikingjelly"):
        print(f"without SpikingJelly: {reason}")
        return {}
    import torch
    from spikingjelly.activation_based import base, functional, layer, neuron, surrogate

    class LateralPool(base.MemoryModule):
        def __init__(self, pool):
            super().__init__()
            window = pool.window, pool.stride or pool.window, pool.padding
            self.pool = torch.nn.MaxPool2d(*window)
            self.register_memory("total", 0.0)
            self.register_memory("sent", 0.0)

        def single_step_forward(self, spikes):
            self.total = self.total + spikes
            before, self.sent = self.sent, self.pool(self.total)
            return self.sent - before

        def multi_step_forward(self, spikes):
            best = functional.seq_to_ann_forward(spikes.cumsum(0), (self.pool,))
            return best.diff(dim=0, prepend=torch.zeros_like(best[:1]))

    def neurons(path):
        if model.neuron.gamma == 1:
            node = neuron.IFNode(v_reset=None)
            node.set_reset_value("v", 0.5)
            return node
        levels = surrogate.MultiLevelSpikeCount(model.neuron.gamma)
        return neuron.ILIFNode(tau=1e9, surrogate_function=levels)  # without a leak

    scaled = jb.normalise(model.layers, spiking, IMAGE)

    def network(mode):
        # Subsampling and sums work on [T, B, ...] as they stand.
        parts = torch_network(model.layers, scaled, layer, neurons, LateralPool)
        functional.set_step_mode(parts[1], mode)
        return parts

    stem, rest = network("s")
    stem_all, rest_all = network("m")

    def single(images):
        functional.reset_net(rest)
        current = stem(images)
        total = rest(current)
        for _ in range(steps - 1):
            total += rest(current)
        return total / steps

    def multi(images):
        functional.reset_net(rest_all)
        current = stem_all(images)
        return rest_all(current.expand(steps, *current.shape)).mean(0)

    return {
        "SpikingJelly single-step": _raced("SNN", (stem, rest), single, images),
        "SpikingJelly multi-step": _raced("SNN", (stem_all, rest_all), multi, images),
    }


def torch_device():
    import torch

    gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def set_up_torch() -> None:
    """As many threads as there are cores; on a GPU TF32, as JAX has by default."""
    import torch

    torch.set_num_threads(jb.devices.cores())
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def _raced(kind: str, parts, function, images) -> Program:
    """A PyTorch program in the memory format in which it is faster."""
    import torch

    device = torch_device()

    def prepared(name):
        form = getattr(torch, name)
        for part in parts:
            part.to(device, memory_format=form)
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        x = x.to(device, memory_format=form)

        def call():
            with torch.inference_mode():
                return function(x).cpu().numpy()

        return call

    times = {}
    for name in ("contiguous_format", "channels_last"):
        call = prepared(name)
        times[name] = [_seconds(call) for _ in range(3)]
    name = min(times, key=lambda name: min(times[name]))
    call = prepared(name)
    extra = times[name][0] - min(times[name])
    return Program(call, kind, extra, _torch_bytes(call), name)


def _torch_bytes(call) -> int | None:
    """What a call takes on a GPU by PyTorch's own count; else as for all programs."""
    import torch

    if torch_device().type == "cpu":
        return resident(call)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return torch.cuda.max_memory_allocated() - before


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
    ours = [tuple(map(jnp.asarray, pair)) for pair in pairs]

    def best(pairs, multiply):
        for a, b in pairs:
            multiply(a, b)
        return max(
            2 * a.shape[0] * math.prod(b.shape) / _seconds(multiply, a, b)
            for a, b in pairs
            for _ in range(3)
        )

    found = {"jax": lambda: best(ours, lambda a, b: product(a, b).block_until_ready())}
    if not missing("torch"):
        import torch

        device = torch_device()
        theirs = [[torch.from_numpy(x).to(device) for x in pair] for pair in pairs]

        def multiply(a, b):
            a @ b
            if device.type == "cuda":
                torch.cuda.synchronize()

        found["torch"] = lambda: best(theirs, multiply)
    return found


def _seconds(call, *arguments) -> float:
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def race(programs: dict[str, Program], rounds: int) -> tuple[dict, dict]:
    """Runs every program once per round, one after the other.

    Returns:
      `(seconds, peak)`: the time of one call, `{program: [rounds]}`, and the operations
      per second of matrix products, `{framework: [rounds]}`.
    """
    seconds = {name: [] for name in programs}
    products = peaks()
    peak = {name: [] for name in products}
    once = {name: _seconds(program.call) for name, program in programs.items()}
    for _ in range(rounds):
        for name, measure in products.items():
            time.sleep(PAUSE)
            peak[name].append(measure())
        for name, program in programs.items():
            repeats = max(1, round(0.1 / once[name]))  # short calls: their mean
            time.sleep(PAUSE)
            total = sum(_seconds(program.call) for _ in range(repeats))
            seconds[name].append(total / repeats)
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
            "difference_of_logits": {
                "median": float(np.median(apart)),
                "largest": float(apart.max()),
            },
            "spread_of_logits": spread,
        }
    return found


def operations(layers) -> tuple[int, int]:
    """`(first, rest)`: of one image, two per multiply-accumulate.

    Of convolutions by definition, taps on zero padding included.
    """
    macs = list(jb.energy.macs(layers, IMAGE).values())
    return 2 * macs[0], 2 * sum(macs[1:])


def measure(layers, batch: int, steps: int, config) -> dict:
    """One batch size and number of steps: every program, checked and raced."""
    rng = np.random.default_rng(config.seed)
    images = rng.normal(size=(batch, *IMAGE)).astype(np.float32)
    seen = rng.normal(size=(64, *IMAGE)).astype(np.float32)
    variables = jb.Network(layers).init(jax.random.key(config.seed), images[:1])
    neuron = jb.Burst(config.gamma)
    with silent_channels():
        thresholds = jb.calibrate(layers, variables, seen, neuron)
    spiking = jb.convert(layers, variables, thresholds)
    model = jb.Model(layers, neuron, exact=config.exact)
    programs = {}
    for build in (jaxburst_programs, torch_programs, spikingjelly_programs):
        programs |= build(model, spiking, images, steps)
    checks = compared(programs)
    seconds, peak = race(programs, config.rounds)
    drawn = curve(layers, spiking, images, programs["jaxburst ANN"], config.rounds)
    highest = max(max(values) for values in peak.values())
    first, rest = operations(layers)
    rows = {}
    for name, program in programs.items():
        length = steps if program.kind == "SNN" else 1
        median = statistics.median(seconds[name])
        # The ANN of the same framework, that is, with the same convolutions.
        ann = "jaxburst ANN" if name.startswith("jaxburst") else "PyTorch ANN"
        over = [
            own / (length * other)
            for own, other in zip(seconds[name], seconds[ann], strict=True)
        ]
        rows[name] = {
            "kind": program.kind,
            "image_steps_per_second": batch * length / median,
            "seconds": seconds[name],
            "over_t_times_ann": statistics.median(over),
            "fraction_of_peak": batch * (first + length * rest) / median / highest,
            "bytes": program.bytes,
            "compile_seconds": program.compile_seconds,
            "note": program.note,
        } | checks[name]
    return {
        "batch": batch,
        "steps": steps,
        "spikes_per_neuron_and_step": spike_rate(model, spiking, images[:8], steps),
        "peak_operations_per_second": peak,
        "direct": drawn,
        "programs": rows,
    }


def spike_rate(model, spiking, images, steps: int) -> dict[str, float]:
    """Mean spikes per neuron and step in every layer: that something flows."""
    events = jb.simulate(model, spiking, images, steps).events
    return {
        row.path: float(events[row.path].mean()) / math.prod(row.output)
        for row in trace_shapes(model.layers, IMAGE)
        if isinstance(row.layer, Relu)
    }


def table(result: dict) -> str:
    """One batch size and number of steps, as printed."""
    columns = ("image-steps/s", "least", "most", "/(T ANN)", "of peak")
    columns += ("MB", "compile s", "same", "logits apart")
    rows = [("program", *columns)]
    for name, row in result["programs"].items():
        length = result["steps"] if row["kind"] == "SNN" else 1
        speeds = [result["batch"] * length / value for value in row["seconds"]]
        used = "" if row["bytes"] is None else f"{row['bytes'] / 1e6:.0f}"
        rows.append(
            (
                name,
                f"{row['image_steps_per_second']:.1f}",
                f"{min(speeds):.1f}",
                f"{max(speeds):.1f}",
                f"{row['over_t_times_ann']:.3f}",
                f"{row['fraction_of_peak']:.1%}",
                used,
                f"{row['compile_seconds']:.1f}",
                f"{row['same_predictions']:.1%}",
                f"{row['difference_of_logits']['median']:.1e}",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if k == 0 else cell.rjust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    peak = {
        name: max(values) / 1e9
        for name, values in result["peak_operations_per_second"].items()
    }
    products = ", ".join(f"{name} {value:.0f}" for name, value in peak.items())
    rates = list(result["spikes_per_neuron_and_step"].values())
    head = (
        f"batch {result['batch']}, T = {result['steps']}; matrix products, Gop/s: "
        f"{products}; spikes per neuron and step {min(rates):.3f} to {max(rates):.3f}"
    )
    passes = result["direct"]["passes"]
    last = (
        f"T = 1 ... 256, nine points in one go (direct): {passes:.1f} passes of the ANN"
    )
    return "\n".join([head, *lines, last])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--arch", nargs="+", default=["vgg16", "resnet20"], choices=jb.zoo.NETWORKS
    )
    parser.add_argument("--batch-sizes", nargs="+", type=int, default=[1, 32, 128])
    parser.add_argument("--steps", nargs="+", type=int, default=[4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--gamma", type=int, default=1, help="spikes per step at most; 1 is IF"
    )
    parser.add_argument("--pool", choices=["lateral", "average"], default="lateral")
    parser.add_argument(
        "--exact", action="store_true", help="jaxburst without Winograd's algorithm"
    )
    parser.add_argument(
        "--whole",
        action="store_true",
        help="also train, and simulate 10,000 images for 32 steps: for accelerators",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/throughput"))
    config = parser.parse_args()
    for name in ("batch_sizes", "steps", "rounds"):
        if np.min(getattr(config, name)) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    return config


def main() -> None:
    config = arguments()
    one_device_per_core()
    folder = prepare_folder(config.out)
    if not missing("torch"):
        set_up_torch()
    load = os.getloadavg()[0]
    if load > 0.5:
        print(f"load average {load:.1f}: something else is running; times will be off")
    record = {
        "experiment": "throughput",
        "config": vars(config),
        "provenance": provenance("torch", "spikingjelly"),
        "environment": {name: os.environ.get(name) for name in ALLOCATOR},
        "threads": jb.devices.cores(),
        "load_average": load,
        "results": {},
        "whole": {},
    }
    for arch in config.arch:
        layers = jb.zoo.NETWORKS[arch](10)
        if config.pool == "average":
            layers = tuple(
                AvgPool(layer.window, layer.stride)
                if isinstance(layer, MaxPool)
                else layer
                for layer in layers
            )
        record["results"][arch] = []
        for batch in config.batch_sizes:
            for steps in config.steps:
                result = measure(layers, batch, steps, config)
                record["results"][arch].append(result)
                print(f"{arch}, {table(result)}\n", flush=True)
        if config.whole:
            record["whole"][arch] = whole(layers, config)
    write_json(folder / "throughput.json", record)


if __name__ == "__main__":
    run(main)
