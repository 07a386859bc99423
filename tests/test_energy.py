"""Operations and joules of networks small enough to count by eye."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxburst import energy, zoo
from jaxburst.conversion import Affine, Shortcut, Threshold
from jaxburst.layers import (
    AvgPool,
    Conv,
    Dense,
    Flatten,
    MaxPool,
    Relu,
    Residual,
    Subsample,
    trace_shapes,
)
from jaxburst.neuron import Burst
from jaxburst.simulation import Model, simulate

PASS = Conv(1, kernel=1, padding=0)  # with the kernel 1: hands on what it receives


def affine(*shape, kernel=0.0, bias=0.0):
    return Affine(jnp.full(shape, kernel, "f4"), jnp.full(shape[-1], bias, "f4"))


def threshold(theta=1.0):
    return Threshold(jnp.float32(theta), jnp.float32(0), jnp.float32(0))


def events(layers, spiking, image, steps, **settings):
    model = Model(layers, Burst(**settings))
    trace = simulate(model, spiking, jnp.asarray(image, jnp.float32), steps)
    return {path: np.asarray(count)[:, 0] for path, count in trace.events.items()}


def test_operations_by_hand():
    layers = (
        *(PASS, Relu(), Conv(2, padding=1), Relu(), MaxPool(2)),
        *(Flatten(), Dense(5)),
    )
    spiking = {
        "conv0": affine(1, 1, 1, 1, kernel=1),
        "relu0": threshold(),
        "conv1": affine(3, 3, 1, 2, bias=1),  # every neuron: one spike per step
        "relu1": threshold(),
        "dense0": affine(2, 5),
    }
    image = [[[[0.5], [1.0]], [[2.0], [-3.0]]]]
    # The four neurons of relu0, γ = 5, θ = 1, v_0 = 0:
    #   current   t = 1  2  3  4
    #     0.5         0  1  0  1
    #     1.0         1  1  1  1
    #     2.0         2  2  2  2    a burst of two is two events
    #    -3.0         0  0  0  0
    #   events        3  4  3  4
    # conv1 has 9 taps x 1 channel x 2 features at 4 places, 72 MACs for 4 inputs: 18
    # synapses each, those on padding included.
    # relu1 has 2x2x2 neurons and sends 8; 2 of them pass the pool, to 5 synapses each.
    found = events(layers, spiking, image, 4)
    assert found["relu0"].tolist() == [3, 4, 3, 4]
    assert found["conv1"].tolist() == [3, 4, 3, 4]
    assert found["relu1"].tolist() == [8, 8, 8, 8]
    assert found["dense0"].tolist() == [2, 2, 2, 2]
    assert energy.macs(layers, (2, 2, 1)) == {"conv0": 4, "conv1": 72, "dense0": 10}
    assert energy.fan_out(layers, (2, 2, 1)) == {"conv1": 18, "dense0": 5}
    operations = energy.operations(layers, (2, 2, 1), found)
    assert {path: count.tolist() for path, count in operations.items()} == {
        "conv1": [54, 72, 54, 72],
        "dense0": [10, 10, 10, 10],
    }
    # Joules: 0.9 pJ per operation so far, 4.6 pJ for each of the 4 analog MACs.
    spent = np.array([64, 146, 210, 292]) * 0.9e-12
    once = energy.joules(layers, (2, 2, 1), found)
    np.testing.assert_allclose(once, spent + 4 * 4.6e-12)
    every = energy.joules(layers, (2, 2, 1), found, first_layer="every step")
    np.testing.assert_allclose(every, spent + 4 * 4.6e-12 * np.array([1, 2, 3, 4]))
    # The conventional network: 4 + 72 + 10 MACs.
    assert energy.ann_joules(layers, (2, 2, 1)) == pytest.approx(86 * 4.6e-12)
    relative = energy.relative(layers, (2, 2, 1), found)
    np.testing.assert_allclose(relative, once / (86 * 4.6e-12))


def test_a_negative_spike_is_an_event():
    layers = (PASS, Relu(), PASS, Relu(), Flatten(), Dense(3))
    spiking = {
        "conv0": affine(1, 1, 1, 1, kernel=1),
        "relu0": threshold(2.0),
        "conv1": Affine(jnp.full((1, 1, 1, 1), -2.0), jnp.array([3.0])),
        "relu1": threshold(),
        "dense0": affine(1, 3),
    }
    # relu0, θ = 2, current 1:      0  1  0  1    carries 2, weighted with -2
    # relu1 receives 3 - 4 n:       3 -1  3 -1
    # and sends, signed:            3 -1  3 -1    events 3 1 3 1
    found = events(layers, spiking, np.ones((1, 1, 1, 1)), 4, signed=True)
    assert found["relu0"].tolist() == [0, 1, 0, 1]
    assert found["dense0"].tolist() == [3, 1, 3, 1]
    operations = energy.operations(layers, (1, 1, 1), found)
    assert operations["dense0"].tolist() == [9, 3, 9, 3]


def test_average_pooling_merges_into_the_next_layer():
    layers = (PASS, Relu(), AvgPool(2), Flatten(), Dense(3))
    spiking = {
        "conv0": affine(1, 1, 1, 1, kernel=1),
        "relu0": threshold(),
        "dense0": affine(4, 3),
    }
    # 16 neurons fire once; each reaches one window, and from there 3 synapses.
    found = events(layers, spiking, np.ones((1, 4, 4, 1)), 1)
    assert found["dense0"].tolist() == [16]
    assert energy.operations(layers, (4, 4, 1), found)["dense0"].tolist() == [48]


def test_overlapping_and_missing_windows():
    """On average over the map, as the docstring says."""
    # 5x5, windows of 3 with stride 1: 9 windows of 9 members, 81 / 25 for each input.
    layers = (PASS, Relu(), AvgPool(3, 1), Flatten(), Dense(2))
    assert energy.fan_out(layers, (5, 5, 1))["dense0"] == pytest.approx(2 * 81 / 25)
    # 5x5, windows of 2: 4 windows of 4 members; the last row and column reach none.
    layers = (PASS, Relu(), AvgPool(2), Flatten(), Dense(2))
    assert energy.fan_out(layers, (5, 5, 1))["dense0"] == pytest.approx(2 * 16 / 25)


def test_every_neuron_once_per_step_costs_what_the_conventional_network_costs():
    """operations = mean events x MACs, padding included, through every kind of layer.

    Kernels are 0 and biases θ, so that each neuron fires exactly once at each step.
    """
    theta = 0.75
    layers = (
        *(Conv(3), Relu(), MaxPool(2), Conv(4), Relu()),
        Residual((Conv(4), Relu(), Conv(4))),
        Relu(),
        Residual(
            (Conv(6, stride=2), Relu(), Conv(6)),
            (Conv(6, kernel=1, stride=2, padding=0),),
        ),
        Relu(),
        Residual((Conv(8, stride=2),), (Subsample(8),)),
        *(Relu(), Flatten(), Dense(5), Relu(), Dense(3)),
    )
    rows = {row.path: row for row in trace_shapes(layers, (14, 14, 2))}
    silent = {path for path in rows if "shortcut/" in path}
    spiking = {}
    for path, row in rows.items():
        match row.layer:
            case Conv(features, kernel):
                bias = 0 if path in silent else theta
                spiking[path] = affine(
                    *(kernel, kernel, row.input[-1], features), bias=bias
                )
            case Dense(features):
                spiking[path] = affine(row.input[-1], features, bias=theta)
            case Relu():
                spiking[path] = threshold(theta)
            case Residual():
                spiking[path] = Shortcut(jnp.float32(0))
    found = events(layers, spiking, np.zeros((1, 14, 14, 2)), 3)
    operations = energy.operations(layers, (14, 14, 2), found)
    macs = energy.macs(layers, (14, 14, 2))
    assert macs.pop("conv0") == 14 * 14 * 9 * 2 * 3  # the analog layer
    assert operations.keys() == macs.keys()
    for path, count in operations.items():
        np.testing.assert_allclose(count, [macs[path]] * 3, rtol=1e-14)


def test_vgg16_costs_what_the_literature_says():
    macs = energy.macs(zoo.vgg16(10), (32, 32, 3))
    assert sum(macs.values()) == 313_201_664
    assert macs["conv0"] / sum(macs.values()) == pytest.approx(0.00565, rel=1e-3)


def test_constants_of_45_nm():
    assert (energy.PICOJOULES_PER_AC, energy.PICOJOULES_PER_MAC) == (0.9, 4.6)


def test_unusable_arguments_are_refused_by_name():
    layers = (PASS, Relu(), Flatten(), Dense(2))
    with pytest.raises(ValueError, match="dense0: its events are missing"):
        energy.operations(layers, (2, 2, 1), {"relu0": np.ones(3)})
    with pytest.raises(ValueError, match="'once' or 'every step', found 'never'"):
        energy.joules(layers, (2, 2, 1), {"dense0": np.ones(3)}, first_layer="never")
