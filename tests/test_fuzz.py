"""Random networks: every spike as NumPy has it, a layer at a time over all of time.

A network is a list of operations, which two functions read: one in JAX, that is traced,
and one in NumPy, that takes each operation over the whole sequence `[T, B, H, W, C]`.
"""

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jax import lax
from nets import quick
from numpy.lib.stride_tricks import sliding_window_view
from oracle import fire

from jaxburst.convert import convert
from jaxburst.neurons import Burst
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace

pytestmark = pytest.mark.usefixtures("float64")

STEPS, SIDE = 5, 7


@st.composite
def operations(draw, channels, depth=0):
    """Operations one after the other, and how many channels come out."""
    found = []
    for _ in range(draw(st.integers(1, 2 if depth else 4))):
        if draw(st.booleans()):
            found.append(("norm", channels))
        groups = draw(st.sampled_from([g for g in (1, 2) if channels % g == 0]))
        pads = draw(st.tuples(st.integers(0, 2), st.integers(0, 1)))
        kernel, stride = draw(st.integers(1, 3)), draw(st.integers(1, 2))
        features = 2 * draw(st.integers(1, 2))
        if depth:  # branches meet again
            kernel, stride, pads, features = 3, 1, (1, 1), channels
        bias = draw(st.booleans())
        found.append(("conv", channels, features, kernel, stride, pads, groups, bias))
        channels = features
        if draw(st.booleans()):
            found.append(("norm", channels))
        found.append(("relu",))
        if depth:
            continue
        if draw(st.booleans()):
            window, pad = draw(st.integers(1, 2)), draw(st.integers(0, 1))
            kind = draw(st.sampled_from(("max", "mean")))
            found.append((kind, window, draw(st.integers(1, 2)), pad * (window - 1)))
        if draw(st.booleans()):
            parts = [draw(operations(channels, 1)), []]
            if draw(st.booleans()):
                parts[1] = draw(operations(channels, 1))
            found += [("branch", *parts), ("relu",)]
    return found


def sizes(found, side):
    """The side of the map at the end; nothing if none is left."""
    for op, *how in found:
        if op == "conv":
            _, _, kernel, stride, pads, *_ = how
            side = (side + sum(pads) - kernel) // stride + 1
        elif op in ("max", "mean"):
            window, stride, pad = how
            side = (side + pad - window) // stride + 1
        if side < 1:
            return 0
    return side


def weights_of(found, rng):
    made = []
    for op, *how in found:
        if op == "conv":
            inner, features, kernel, _, _, groups, bias = how
            shape = kernel, kernel, inner // groups, features
            scale = np.sqrt(2 / (kernel**2 * inner / groups))
            own = [rng.normal(size=shape) * scale, rng.normal(size=features) * bias]
        elif op == "norm":
            own = [rng.normal(size=how[0]), rng.normal(size=how[0]) * 0.3]
        elif op == "branch":
            own = [weights_of(part, rng) for part in how]
        else:
            own = []
        made.append(own)
    return made


def in_jax(found, made, x):
    for (op, *how), own in zip(found, made, strict=True):
        if op == "conv":
            _, _, _, stride, pads, groups, _ = how
            x = own[1].reshape(1, 1, 1, -1) + lax.conv_general_dilated(
                x, own[0], (stride, stride), (pads, pads), feature_group_count=groups,
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )  # fmt: skip
        elif op == "norm":
            x = x * own[0].reshape(1, 1, 1, -1) + own[1].reshape(1, 1, 1, -1)
        elif op == "relu":
            x = jax.nn.relu(x)
        elif op == "branch":
            x = sum(in_jax(*both, x) for both in zip(how, own, strict=True))
        else:
            window, stride, pad = how
            start, add = (-np.inf, lax.max) if op == "max" else (0.0, lax.add)
            edges = ((0, 0), (0, pad), (0, pad), (0, 0))
            shape, step = (1, window, window, 1), (1, stride, stride, 1)
            x = lax.reduce_window(x, start, add, shape, step, edges)
            x = x / window**2 if op == "mean" else x
    return x


def windows(x, window, stride, low, high, fill):
    edges = [(0, 0)] * 2 + [(low, high)] * 2 + [(0, 0)]
    views = sliding_window_view(
        np.pad(x, edges, constant_values=fill), (window, window), (2, 3)
    )
    return views[:, :, ::stride, ::stride]  # [T, B, H, W, C, window, window]


def in_numpy(found, made, x, spike):
    for (op, *how), own in zip(found, made, strict=True):
        if op == "conv":
            _, features, kernel, stride, pads, groups, _ = how
            taps = windows(x, kernel, stride, *pads, 0.0)
            parts = zip(
                np.split(taps, groups, 4), np.split(own[0], groups, 3), strict=True
            )
            ways = [np.einsum("tbhwcij,ijcf->tbhwf", *both) for both in parts]
            x = np.concatenate(ways, -1) + own[1]
        elif op == "norm":
            x = x * own[0] + own[1]
        elif op == "relu":
            x = spike(x)
        elif op == "branch":
            x = sum(in_numpy(*both, x, spike) for both in zip(how, own, strict=True))
        elif op == "mean":
            window, stride, pad = how
            x = windows(x, window, stride, 0, pad, 0.0).mean((-2, -1))
        else:  # what has come so far is pooled, and the difference passed on
            window, stride, pad = how
            taps = windows(x.cumsum(0), window, stride, 0, pad, -np.inf)
            x = np.diff(taps.max((-2, -1)), axis=0, prepend=0)
    return x


@settings(
    max_examples=8,
    deadline=None,
    phases=[Phase.generate],  # shrinking compiles a hundred networks
    suppress_health_check=[*HealthCheck],
)
@given(
    found=operations(2).filter(lambda found: sizes(found, SIDE) > 0),
    gamma=st.sampled_from((1, 3, None)),
    signed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_spike_of_a_random_network(found, gamma, signed, seed):
    check(found, Burst(gamma, signed=signed), seed)


def check(found, neuron, seed) -> int:
    rng = np.random.default_rng(seed)
    made, x = weights_of(found, rng), rng.normal(size=(2, SIDE, SIDE, 2))
    network = trace(lambda w, x: in_jax(found, w, x), made, x[:1])
    thetas = {name: rng.uniform(0.2, 0.6) for name in network.neurons}
    spiking = convert(network, made, thetas)
    model, names = Model(network, neuron), network.neurons
    read = quick(lambda spiking, x: simulate(model, spiking, x, STEPS, record=names))
    expected, sent, left = [], 0, list(network.neurons)

    def spike(current):
        theta = thetas[left.pop(0)]
        spikes = fire(neuron, theta, 0.5 * theta, current)
        expected.append(spikes)
        return theta * spikes

    sequence = np.broadcast_to(x, (STEPS, *x.shape))
    outputs = in_numpy(found, made, sequence, spike)
    run = read(spiking, x)
    for name, spikes in zip(names, expected, strict=True):
        np.testing.assert_array_equal(run.spikes[name], spikes, err_msg=name)
        sent += abs(spikes).sum()
    times = np.arange(1, STEPS + 1).reshape(-1, 1, 1, 1, 1)
    logits = outputs.cumsum(0) / times
    np.testing.assert_allclose(run.logits, logits, rtol=1e-9, atol=1e-9)
    return int(sent)


def test_random_networks_fire():
    found = [("conv", 2, 4, 3, 2, (2, 1), 2, True), ("norm", 4), ("relu",)]
    found += [("max", 2, 1, 1), ("norm", 4), ("conv", 4, 2, 2, 1, (0, 0), 1, False)]
    assert check([*found, ("relu",)], Burst(3), 0) > 100
