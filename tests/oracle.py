"""Spiking networks derived a second way: NumPy, a layer at a time over all of time.

The library advances all nodes of a graph by one step, again and again. Since spikes
cross every layer within one step, a layer is also a function from one sequence
`[T, ...]` to another, and here the layers are evaluated one after the other. Nothing is
traced: a network is a tuple of the layers below, which `nets` builds in five ways.
Normalisation is applied as it stands, not folded, thresholds stay out of the kernels,
and lateral pooling is the difference of pooled running sums.

Variables are those of Flax: `variables["params"][name]`, with the names of `named`.
"""

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


class Conv(NamedTuple):
    features: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    bias: bool = False
    norm: bool = False


class Dense(NamedTuple):
    features: int
    bias: bool = True
    norm: bool = False


class Relu(NamedTuple):
    pass


class MaxPool(NamedTuple):
    window: int
    stride: int = 0
    padding: int = 0


class AvgPool(NamedTuple):
    """Over the whole map without a window."""

    window: int = 0
    stride: int = 0


class Flatten(NamedTuple):
    pass


class Subsample(NamedTuple):
    """Every `stride`-th pixel, with zeros for new channels on both sides."""

    features: int
    stride: int = 2


class Residual(NamedTuple):
    body: tuple
    shortcut: tuple = ()


def named(layers):
    """The layers with their names: kind and number."""
    counts = {}
    for layer in layers:
        kind = type(layer).__name__.lower()
        counts[kind] = counts.get(kind, -1) + 1
        yield f"{kind}{counts[kind]}", layer


def ann(layers, variables, images):
    """`(logits [B, classes], [activations [B, ...] of every ReLU])`."""

    def relu(_, current):
        return np.maximum(current, 0), np.ones(())

    sequence, record, _ = _evaluate(layers, variables, images[None], relu, None)
    return sequence[0], [values[0] for values in record]


def snn(layers, variables, images, steps, neuron, pool, thresholds, initial):
    """`(logits [T, B, classes], [spikes [T, B, ...] of every ReLU], [those of pools])`.

    Args:
      thresholds: one for each ReLU, in order: a number, or one per channel.
    """

    def spike(i, current):
        theta = np.broadcast_to(thresholds[i], current.shape[1:])
        return fire(neuron, theta, initial * theta, current), theta[0]

    sequence = np.broadcast_to(images, (steps, *images.shape))
    currents, *record = _evaluate(layers, variables, sequence, spike, pool)
    times = np.arange(1, steps + 1).reshape(-1, 1, 1)
    return currents.cumsum(0) / times, *record


def fire(neuron, theta, start, current):
    """Whole numbers of spikes `[T, ...]` of burst neurons on a current `[T, ...]`."""
    most = np.inf if neuron.gamma is None else neuron.gamma
    potential, sent, sequence = start, np.zeros_like(current[0]), []
    for step in current:
        least = -np.minimum(sent, most) if neuron.signed else 0
        spikes = np.clip(np.floor((potential + step) / theta), least, most)
        potential = potential + step - theta * spikes
        sent = sent + spikes
        sequence.append(spikes)
    sequence = np.stack(sequence)
    if neuron.allowance is None:
        return sequence
    for place in np.ndindex(sequence.shape[1:]):
        own = (slice(None), *place)
        sequence[own] = take_back(sequence[own], neuron.allowance)
    return sequence


def take_back(spikes, allowance):
    """Spikes `[T]` of one neuron, with -1 when overdue by its list of firing times."""
    times, found = [0], []
    for t, n in enumerate(spikes, 1):
        if n > 0:
            times.append(t)
        elif len(times) > 1 and sum(found) > 0:
            if t - times[-1] > np.diff(times).mean() + allowance:
                n = -1
        found.append(n)
    return np.array(found)


def windows(x, window, stride, padding, fill):
    """`[..., H, W, C]` to `[..., H_out, W_out, C, window, window]`."""
    edges = [(0, 0)] * (x.ndim - 3) + [(padding, padding)] * 2 + [(0, 0)]
    padded = np.pad(x, edges, constant_values=fill)
    views = sliding_window_view(padded, (window, window), (-3, -2))
    return views[..., ::stride, ::stride, :, :, :]


def max_windows(x, layer):
    stride = layer.stride or layer.window
    return windows(x, layer.window, stride, layer.padding, -np.inf)


def lateral(spikes, layer):
    pooled = max_windows(spikes.cumsum(0), layer).max((-2, -1))
    return np.diff(pooled, axis=0, prepend=0)


def gated(spikes, layer):
    totals, current = max_windows(spikes.cumsum(0), layer), max_windows(spikes, layer)
    leads = totals == totals.max((-2, -1), keepdims=True)
    return np.where(leads, current, -np.inf).max((-2, -1))


def convolve(x, kernel, stride, padding):
    taps = windows(x, len(kernel), stride, padding, 0)
    return np.einsum("...cij,ijcf->...f", taps, kernel)


def _evaluate(layers, variables, sequence, relu, pool, presented=1.0):
    """Values travel as `n` times `unit`: spikes and what one of them is worth.

    `presented`, 1 or one for each step, is what constants are multiplied by.
    """
    populations, pools = [], []

    def leaves(collection, path):
        found = variables.get(collection, {})
        for key in path.split("/"):
            found = found.get(key, {})
        return found

    def affine(path, y):
        none = shifted(path, np.zeros_like(y))
        there = np.reshape(presented, (-1,) + (1,) * (y.ndim - 1))
        return shifted(path, y) - (1 - there) * none

    def shifted(path, y):
        y = y + leaves("params", path).get("bias", 0)
        own, seen = (leaves(c, f"{path}_norm") for c in ("params", "batch_stats"))
        if own:
            y = (y - seen["mean"]) / np.sqrt(seen["var"] + 1e-5)
            y = y * own["scale"] + own["bias"]
        return y

    def scope(layers, prefix, n, unit):
        for name, layer in named(layers):
            path, charge = prefix + name, n * unit
            match layer:
                case Conv() | Dense():
                    kernel = leaves("params", path)["kernel"]
                    if isinstance(layer, Conv):
                        y = convolve(charge, kernel, layer.stride, layer.padding)
                    else:
                        y = charge @ kernel
                    n, unit = affine(path, y), np.ones(())
                case Relu():
                    n, unit = relu(len(populations), charge)
                    populations.append(n)
                case MaxPool() if pool is None:
                    n = max_windows(n, layer).max((-2, -1))
                case MaxPool():
                    n = {"lateral": lateral, "gated": gated}[pool](n, layer)
                    unit = max_windows(unit, layer).max((-2, -1))
                    pools.append(n)
                case AvgPool():
                    window = layer.window or n.shape[2]
                    how = window, layer.stride or window, 0, 0
                    n = windows(n, *how).sum((-2, -1))
                    unit = windows(unit, *how).mean((-2, -1)) if unit.ndim else unit
                    unit = unit / window**2
                case Flatten():
                    n = n.reshape(*n.shape[:2], -1)
                    unit = unit.reshape(-1) if unit.ndim else unit
                case Subsample(features, stride):
                    n = charge[:, :, ::stride, ::stride]
                    new = features - n.shape[-1]
                    n = np.pad(n, [(0, 0)] * 4 + [(new // 2, new - new // 2)])
                    unit = np.ones(())
                case Residual(body, shortcut):
                    parts = (
                        scope(body, f"{path}_body/", n, unit),
                        scope(shortcut, f"{path}_shortcut/", n, unit),
                    )
                    n, unit = sum(a * b for a, b in parts), np.ones(())
        return n, unit

    logits, _ = scope(layers, "", sequence, np.ones(()))
    return logits, populations, pools
