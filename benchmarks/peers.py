"""Programs that throughput.py lets race, and those of PyTorch.

A stepping loop in plain PyTorch, SpikingJelly step by step and with all steps of a
layer at once, and the ANN. Their networks are channels first, and thresholds are in
their weights, so that those of the neurons are 1. PyTorch and SpikingJelly come with
the extra `oracles`.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np


class Program(NamedTuple):
    """What is raced: `call()` classifies one batch of images in some time steps.

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


def seconds_of(call, *arguments) -> float:
    """How long a call takes."""
    start = time.perf_counter()
    call(*arguments)
    return time.perf_counter() - start


def resident(call) -> int | None:
    """By how much a call raises the peak of the memory this process occupies.

    The same for every program, libraries' scratch included. Linux only.
    """

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * next(int(row.split()[1]) for row in lines if row.startswith(name))

    call()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak
        before = status("VmRSS")
        call()
        return max(0, status("VmHWM") - before)
    except (OSError, AttributeError):
        return None


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

        def __init__(self, window):
            super().__init__()
            self.pool = nn.MaxPool2d(window)
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
        """A block and its shortcut: a convolution, or every second place, padded."""

        def __init__(self, body, shortcut, scale, new):
            super().__init__()
            self.body, self.shortcut = nn.Sequential(*body), shortcut
            self.scale, self.new = scale, new

        def forward(self, x):
            around = self.shortcut(x) if self.shortcut else x
            if self.new:
                edge = (0, 0, 0, 0, self.new // 2, self.new - self.new // 2)
                around = nn.functional.pad(x[..., ::2, ::2], edge)
            return self.body(x).add_(around, alpha=self.scale)

    return Neurons, LateralPool, Sum


def torch_network(module, network, spiking, kit, neurons: Callable, pool: Callable):
    """A converted network of the zoo as PyTorch modules.

    Args:
      module: the network.
      network: the same, traced.
      spiking: its weights, with a threshold for each layer.
      kit: where `Conv2d`, `Linear`, `AdaptiveAvgPool2d` and `Flatten` are taken from.
      neurons: makes the module that stands for a ReLU; is told if it is the first.
      pool: makes the module that stands for a pool, from the side of its window.

    Returns:
      `(stem, rest)`: what is constant in time, up to the first ReLU, and the rest.
    """
    import torch

    Sum = torch_modules()[2]
    weights = iter([spiking[name] for name in network.synapses])
    thetas = iter([float(spiking[name].theta) for name in network.neurons])
    modules, theta = [], 1.0

    def synapse(before: float, after: float, stride: int = 1):
        nonlocal wide
        kernel, bias = (np.asarray(value) for value in next(weights))
        if kernel.ndim == 4:
            side, _, incoming, wide = kernel.shape
            shape = (incoming, wide, side)
            made = kit.Conv2d(*shape, stride=stride, padding=side // 2)
            kernel = kernel.transpose(3, 2, 0, 1)
        else:
            side = math.isqrt(len(kernel) // wide)
            maps = kernel.reshape(side, side, wide, -1)
            made = kit.Linear(*kernel.shape)
            kernel = maps.transpose(3, 2, 0, 1).reshape(kernel.shape[::-1])
        kernel = np.array(kernel * before / after, order="C")
        made.weight.data = torch.from_numpy(kernel)
        made.bias.data = torch.from_numpy(np.array(bias / after))
        return made

    def convolve():
        nonlocal theta
        before, theta = theta, next(thetas)
        modules.extend([synapse(before, theta), neurons(len(modules) == 0)])

    wide = 0  # channels of the last convolution
    if hasattr(module, "plan"):
        for entry in module.plan:
            modules.append(pool(2)) if entry == "M" else convolve()
    else:
        for _ in range(module.stem):
            convolve()
        for i, width in enumerate(np.repeat(module.widths, module.blocks).tolist()):
            stride = 2 if i and i % module.blocks == 0 else 1
            new = width - wide
            inner, outer = next(thetas), next(thetas)
            body = synapse(theta, inner, stride), neurons(False), synapse(inner, outer)
            shortcut, scale = None, theta / outer
            if new and module.shortcut == "conv":
                shortcut, scale, new = synapse(theta, outer, stride), 1.0, 0
            modules += [Sum(body, shortcut, scale, new), neurons(False)]
            theta = outer
        modules.append(pool(4) if module.head == "max" else kit.AdaptiveAvgPool2d(1))
    modules += [kit.Flatten(), synapse(theta, 1.0)]
    parts = modules[:1], modules[1:]
    return [torch.nn.Sequential(*part).eval() for part in parts]


def torch_programs(module, model, spiking, images, steps: int) -> dict[str, Program]:
    """A plain stepping loop, and the ANN."""
    if reason := missing("torch"):
        print(f"without PyTorch: {reason}")
        return {}
    from torch import nn

    Neurons, LateralPool, _ = torch_modules()
    average = getattr(module, "average", False)
    # The first current is the same at every step, and must stay.
    stem, rest = torch_network(
        *(module, model.network, spiking, nn),
        lambda first: Neurons(model.neuron.gamma, overwrite=not first),
        nn.AvgPool2d if average else LateralPool,
    )

    def loop(images):
        for part in rest.modules():
            if hasattr(part, "reset"):
                part.reset()
        return _stepping(stem, rest, images, steps)

    ann = nn.Sequential(
        *torch_network(
            *(module, model.network, threshold_1(model, spiking), nn),
            lambda first: nn.ReLU(inplace=True),
            nn.AvgPool2d if average else nn.MaxPool2d,
        )
    )
    return {
        "PyTorch loop": _raced("SNN", (stem, rest), loop, images),
        "PyTorch ANN": _raced("ANN", (ann,), ann, images),
    }


def threshold_1(model, spiking) -> dict:
    """Weights with all thresholds 1, so that activations are what travels."""
    ones = {n: np.ones_like(spiking[n].theta) for n in model.network.neurons}
    return spiking | {n: spiking[n]._replace(theta=one) for n, one in ones.items()}


def _stepping(stem, rest, images, steps: int):
    current = stem(images)
    total = rest(current)
    for _ in range(steps - 1):
        total += rest(current)
    return total / steps


def spikingjelly_programs(module, model, spiking, images, steps: int):
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
        def __init__(self, window):
            super().__init__()
            self.pool = torch.nn.MaxPool2d(window)
            self.register_memory("total", 0.0)
            self.register_memory("sent", 0.0)

        def single_step_forward(self, spikes):
            self.total = self.total + spikes
            before, self.sent = self.sent, self.pool(self.total)
            return self.sent - before

        def multi_step_forward(self, spikes):
            best = functional.seq_to_ann_forward(spikes.cumsum(0), (self.pool,))
            return best.diff(dim=0, prepend=torch.zeros_like(best[:1]))

    def neurons(first):
        if model.neuron.gamma == 1:
            node = neuron.IFNode(v_reset=None)
            node.set_reset_value("v", 0.5)
            return node
        levels = surrogate.MultiLevelSpikeCount(model.neuron.gamma)
        return neuron.ILIFNode(tau=1e9, surrogate_function=levels)  # without a leak

    pool = layer.AvgPool2d if getattr(module, "average", False) else LateralPool

    def program(mode, function):
        # Subsampling and sums work on [T, B, ...] as they stand.
        parts = torch_network(module, model.network, spiking, layer, neurons, pool)
        functional.set_step_mode(parts[1], mode)

        def reset(images):
            functional.reset_net(parts[1])
            return function(*parts, images, steps)

        return _raced("SNN", parts, reset, images)

    def at_once(stem, rest, images, steps):
        current = stem(images)
        return rest(current.expand(steps, *current.shape)).mean(0)

    return {
        "SpikingJelly single-step": program("s", _stepping),
        "SpikingJelly multi-step": program("m", at_once),
    }


def torch_device():
    """The GPU where JAX has one, too."""
    import torch

    gpu = jax.default_backend() == "gpu" and torch.cuda.is_available()
    return torch.device("cuda" if gpu else "cpu")


def set_up_torch(threads: int) -> None:
    """As many threads as there are cores; on a GPU TF32, as JAX has by default."""
    import torch

    torch.set_num_threads(threads)
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
        times[name] = [seconds_of(call) for _ in range(3)]
    name = min(times, key=lambda name: min(times[name]))
    call, extra = prepared(name), times[name][0] - min(times[name])
    if device.type == "cpu":
        return Program(call, kind, extra, resident(call), name)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    used = torch.cuda.max_memory_allocated() - before
    return Program(call, kind, extra, used, name)
