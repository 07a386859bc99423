"""The same spiking network, derived a second way: NumPy, layer by layer.

`jaxburst.simulation` advances all layers by one step, again and again. Since spikes
cross every layer within one step, a layer is also a function from one sequence
`[T, ...]` to another, and here the layers are evaluated one after the other, each over
all of time. Normalisation is applied as it stands, not folded, thresholds stay out of
the kernels, and lateral pooling is the difference of pooled running sums.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

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
)


def ann(layers, variables, images):
    """`(logits [B, classes], {path: activations [B, ...]})` of the trained network."""

    def relu(path, current):
        return np.maximum(current, 0), np.ones(())

    sequence, record, _ = _evaluate(layers, variables, images[None], relu, None)
    return sequence[0], {path: values[0] for path, values in record.items()}


def snn(layers, variables, images, steps, neuron, pool, thresholds, initial):
    """`(logits [T, B, classes], {path: spikes [T, B, ...]}, {path: events [T, B]})`."""

    def spike(path, current):
        theta = np.broadcast_to(thresholds[path], current.shape[1:])
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


def _evaluate(layers, variables, sequence, relu, pool):
    """Values travel as `n` times `unit`: spikes and what one of them is worth."""
    record, entering = {}, {}

    def leaves(collection, path):
        found = variables.get(collection, {})
        for key in path.split("/"):
            found = found.get(key, {})
        return found

    def affine(path, y):
        own = leaves("params", path)
        y = y + own.get("bias", 0)
        if "norm" in own:
            seen = leaves("batch_stats", path)["norm"]
            y = (y - seen["mean"]) / np.sqrt(seen["var"] + 1e-5)
            y = y * own["norm"]["scale"] + own["norm"]["bias"]
        return y

    def scope(layers, prefix, n, unit, events):
        for name, layer in named(layers):
            path, charge = prefix + name, n * unit
            match layer:
                case Conv() | Dense():
                    if events is not None:
                        entering[path] = events
                    kernel = leaves("params", path)["kernel"]
                    if isinstance(layer, Conv):
                        y = convolve(charge, kernel, layer.stride, layer.padding)
                    else:
                        y = charge @ kernel
                    n, unit, events = affine(path, y), np.ones(()), None
                case Relu():
                    n, unit = relu(path, charge)
                    record[path] = n
                    entering[path] = events = _count(n)
                case MaxPool() if pool is None:
                    n = max_windows(n, layer).max((-2, -1))
                case MaxPool():
                    n = {"lateral": lateral, "gated": gated}[pool](n, layer)
                    unit = max_windows(unit, layer).max((-2, -1))
                    events = _count(n)
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
                    unit, events = np.ones(()), None
                case Residual(body, shortcut):
                    parts = (
                        scope(body, f"{path}/body/", n, unit, events),
                        scope(shortcut, f"{path}/shortcut/", n, unit, events),
                    )
                    n, unit, events = sum(a * b for a, b, _ in parts), np.ones(()), None
        return n, unit, events

    logits, _, _ = scope(layers, "", sequence, np.ones(()), None)
    return logits, record, entering


def _count(spikes):
    return np.abs(spikes).sum(tuple(range(2, spikes.ndim)))
