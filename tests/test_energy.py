"""Operations of traced networks against loops that count every synapse by itself."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from jax import lax

from jaxburst import energy
from jaxburst.convert import convert
from jaxburst.neurons import Burst
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def meet(size, kernel, stride, low, high, apart, dilation):
    """`{(place, output, tap)}` along one axis, by trying all."""
    span = (size - 1) * apart + 1 + low + high
    outputs = (span - (kernel - 1) * dilation - 1) // stride + 1
    found = set()
    for o, k, i in itertools.product(range(outputs), range(kernel), range(size)):
        if o * stride + k * dilation - low == i * apart:
            found.add((i, o, k))
    return found, outputs


def taps_of_conv(shape, kernel, axes, groups):
    """Of an NHWC image and HWIO kernel: how many non-zero weights each place meets."""
    *_, channels = shape
    met = np.zeros(shape)
    per_group, features = kernel.shape[-2:]
    pairs = [
        meet(n, k, *axis)[0]
        for n, k, axis in zip(shape[:-1], kernel.shape, axes, strict=False)
    ]
    for ways in itertools.product(*pairs):
        place, tap = tuple(w[0] for w in ways), tuple(w[2] for w in ways)
        for c, f in itertools.product(range(channels), range(features)):
            if c // per_group == f // (features // groups):
                met[(*place, c)] += kernel[(*tap, c % per_group, f)] != 0
    return met


@st.composite
def convolutions(draw):
    rank = draw(st.integers(1, 3))
    groups = draw(st.sampled_from((1, 2, 4)))
    inner = {1: (1, 3), 2: (1, 2), 4: (1,)}[groups]  # depthwise among them
    size = st.integers(1, 5 if rank < 3 else 3)
    shape = tuple(draw(size) for _ in range(rank))
    kernel = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    axes = [
        (
            draw(st.integers(1, 3)),
            draw(st.integers(0, 2)),
            draw(st.integers(0, 2)),
            draw(st.integers(1, 2)),
            draw(st.integers(1, 2)),
        )
        for _ in range(rank)
    ]
    per_group = draw(st.sampled_from(inner))
    zeros = draw(st.sampled_from((0.0, 0.3, 1.0)))
    return shape, kernel, axes, groups, per_group, zeros


@settings(max_examples=25, deadline=None)
@given(convolutions(), st.integers(0, 99))
@example(((1, 3), (2, 2), [(1, 2, 0, 1, 1), (1, 1, 1, 1, 1)], 1, 1, 0.0), 0)
def test_any_convolution_against_a_loop_over_its_taps(found, seed):
    shape, kernel, axes, groups, per_group, zeros = found
    outputs = [meet(n, k, *a)[1] for n, k, a in zip(shape, kernel, axes, strict=True)]
    assume(min(outputs) > 0)
    rng = np.random.default_rng(seed)
    channels, features = groups * per_group, groups * 2
    w = rng.normal(size=(*kernel, per_group, features)).astype(np.float32)
    sparse = np.where(rng.random(w.shape) < zeros, 0, w)
    strides, low, high, apart, dilation = zip(*axes, strict=True)
    letters = "DHW"[-len(shape) :]

    def net(w, x):
        return lax.conv_general_dilated(
            jax.nn.relu(x), w, strides, tuple(zip(low, high, strict=True)), apart,
            dilation, (f"N{letters}C", f"{letters}IO", f"N{letters}C"), groups,
        )  # fmt: skip

    network = trace(net, w, np.ones((1, *shape, channels), np.float32))
    (synapse,) = network.synapses
    for kernel_now, given_now in ((w, None), (sparse, network.weights(sparse))):
        expected = taps_of_conv((*shape, channels), kernel_now, axes, groups)
        reach = energy.reach(network, given_now)
        np.testing.assert_array_equal(reach.taps[synapse][0], expected)
        np.testing.assert_array_equal(reach.events["relu0", synapse][0], expected)
        assert energy.macs(network, given_now) == {synapse: expected.sum()}
        fan = energy.fan_out(network, given_now)
        assert fan == {("relu0", synapse): pytest.approx(expected.mean(), rel=1e-12)}


@pytest.mark.parametrize(
    ("spec", "data", "kernel", "expected"),
    [
        ("bi,io->bo", (4,), (4, 5), 20),
        ("bhwc,co->bhwo", (3, 2, 4), (4, 5), 6 * 20),
        ("bhi,hio->bho", (3, 4), (3, 4, 5), 3 * 20),  # a kernel for each head
        ("bhi,hio->bo", (3, 4), (3, 4, 5), 60),
        ("bi,ioe->boe", (4,), (4, 5, 2), 40),  # several axes of features
        ("bci,oc->boi", (4, 3), (5, 4), 60),  # channels first
    ],
)
def test_any_product(spec, data, kernel, expected):
    w = normal(*kernel)
    network = trace(
        lambda w, x: jnp.einsum(spec, jax.nn.relu(x), w), w, np.ones((1, *data), "f4")
    )
    (synapse,) = network.synapses
    assert energy.macs(network) == {synapse: expected}
    assert energy.macs(network, network.weights(w)) == {synapse: expected}
    fan = energy.fan_out(network)["relu0", synapse]
    assert fan * np.prod(data) == expected


def test_a_kernel_on_a_map_smaller_than_itself():
    """Of a 3x3 kernel on a 2x2 map 16 of 36 taps exist."""
    w = normal(3, 3, 1, 1)
    network = trace(
        lambda w, x: conv(jax.nn.relu(x), w), w, np.ones((1, 2, 2, 1), np.float32)
    )
    assert list(energy.macs(network).values()) == [16]


def conv(x, w, stride=1, groups=1):
    return lax.conv_general_dilated(
        x, w, (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )  # fmt: skip


def same(n, k, stride):
    """The axis of `conv`: stride, uneven SAME padding, no dilation."""
    total = max((-(-n // stride) - 1) * stride + k - n, 0)
    return (stride, total // 2, total - total // 2, 1, 1)


def of_conv(x, w, stride=1, groups=1):
    """Taps that each place of `[H, W, C]` meets in `conv`."""
    axes = [same(n, k, stride) for n, k in zip(x, w.shape, strict=False)]
    return taps_of_conv(x, w, axes, groups)


def branched(w, x):
    """Concat, residual sum, a strided depthwise, average and max pooling, two heads."""
    a = jax.nn.relu(conv(x, w["a"]))  # 6x6x2
    b = jax.nn.relu(conv(a, w["b"]))  # 6x6x3
    joined = jnp.concatenate([a, b], -1)
    c = jax.nn.relu(conv(joined, w["c"], 2, groups=5))  # 3x3x5
    d = jax.nn.relu(conv(c, w["d"]) - 0.5 * c)  # a shortcut
    best = nn.max_pool(d, (2, 2), (1, 1))
    mean = nn.avg_pool(d, (2, 2), (1, 1))
    return best.reshape(x.shape[0], -1) @ w["e"], mean.reshape(x.shape[0], -1) @ w["f"]


BRANCHED = {
    "a": normal(3, 3, 1, 2),
    "b": normal(3, 3, 2, 3),
    "c": normal(3, 3, 1, 5),
    "d": normal(1, 1, 5, 5),
    "e": normal(20, 4),
    "f": normal(20, 2),
}
for kernel in BRANCHED.values():
    kernel[RNG.random(kernel.shape) < 0.3] = 0
NETWORK = trace(branched, BRANCHED, np.ones((1, 6, 6, 1), np.float32))
THETAS = dict.fromkeys(NETWORK.neurons, 0.25)


def places_by_hand():
    """What each place of `branched` reaches, from the definition of its layers."""
    w = BRANCHED
    joined = of_conv((6, 6, 5), w["c"], 2, 5)
    mean = np.zeros((3, 3, 5))
    for y, x in np.ndindex(2, 2):  # each window sends all that enters it to `f`
        rows = (w["f"].reshape(2, 2, 5, 2)[y, x] != 0).sum(-1)
        mean[y : y + 2, x : x + 2] += rows
    return {
        ("relu0", "b"): of_conv((6, 6, 2), w["b"]),
        ("relu0", "c"): joined[..., :2],
        ("relu1", "c"): joined[..., 2:],
        ("relu2", "d"): of_conv((3, 3, 5), w["d"]),
        ("maxpool0", "e"): (w["e"] != 0).sum(-1).reshape(2, 2, 5),
        ("relu3", "f"): mean,
    }


def named(pair):
    """Names as `places_by_hand` has them."""
    sender, synapse = pair
    return sender.split("/")[-1].replace("reduce_window_max", "maxpool"), synapse


def test_a_network_of_all_wires_against_a_loop():
    spiking = convert(NETWORK, BRANCHED, THETAS)
    found = {
        named(pair): places[0]
        for pair, places in energy.reach(NETWORK, spiking).events.items()
    }
    expected = places_by_hand()
    assert found.keys() == expected.keys()
    for pair, places in expected.items():
        np.testing.assert_array_equal(found[pair], places, err_msg=str(pair))


def test_operations_are_events_counted_one_by_one():
    """Of all spikes of a simulation, by place; the mean fan-out where all are alike."""
    spiking = convert(NETWORK, BRANCHED, THETAS)
    model = Model(NETWORK, Burst(5, signed=True))
    x = RNG.normal(size=(2, 6, 6, 1)).astype(np.float32)
    seen = simulate(model, spiking, x, 4, record=NETWORK.neurons)
    operations = energy.operations(NETWORK, seen.events, spiking)
    fan = energy.fan_out(NETWORK, spiking)
    for (sender, synapse), places in places_by_hand().items():
        if sender not in seen.spikes:
            continue
        spikes = np.abs(np.asarray(seen.spikes[sender]))
        counted = (spikes * places).sum((2, 3, 4))
        mean = np.asarray(seen.events[sender]) * fan[sender, synapse]
        # Edges reach fewer synapses than the middle.
        np.testing.assert_allclose(mean.sum(), counted.sum(), rtol=0.25)
        if synapse == "b":
            np.testing.assert_allclose(operations["b"], mean)
    assert set(operations) == {"b", "c", "d", "e", "f"}
    both = fan["relu0", "c"] * np.asarray(seen.events["relu0"]) + fan[
        "relu1", "c"
    ] * np.asarray(seen.events["relu1"])
    np.testing.assert_allclose(operations["c"], both)


def test_every_neuron_once_per_step_costs_what_the_conventional_network_costs():
    """operations = mean events x MACs, for every kind of wire and synapse."""
    events = {}
    for name in (*NETWORK.neurons, *NETWORK.pools):
        events[name] = np.full(3, np.prod(NETWORK.graph[name].image_shape))
    for weights in (None, NETWORK.weights(BRANCHED)):
        macs = energy.macs(NETWORK, weights)
        operations = energy.operations(NETWORK, events, weights)
        assert operations.keys() == macs.keys() - {"a"}
        for name in "bcde":
            np.testing.assert_allclose(operations[name], [macs[name]] * 3, rtol=1e-12)
    # Average pooling adds four events up to one number.
    dense = energy.operations(NETWORK, events)["f"]
    np.testing.assert_allclose(dense, [4 * energy.macs(NETWORK)["f"]] * 3)


def test_joules_by_hand():
    """The network of version 0.1's test: taps on padding no longer count."""

    def net(w, x):
        x = jax.nn.relu(x * w["scale"])
        x = jax.nn.relu(conv(x, w["conv"]) + 1)
        return nn.max_pool(x, (2, 2), (2, 2)).reshape(x.shape[0], -1) @ w["dense"]

    w = {
        "scale": np.ones((1, 1, 1, 1), np.float32),
        "conv": np.zeros((3, 3, 1, 2), np.float32),
        "dense": normal(2, 5),
    }

    def first(w, x):  # a 1x1 kernel that hands on what it receives
        return net(w, conv(x, w["pass"]))

    w |= {"pass": np.ones((1, 1, 1, 1), np.float32)}
    network = trace(first, w, np.ones((1, 2, 2, 1), np.float32))
    spiking = convert(network, w, dict.fromkeys(network.neurons, 1.0), initial=0.0)
    image = np.float32([[[[0.5], [1.0]], [[2.0], [-3.0]]]])
    seen = simulate(Model(network, Burst(5)), spiking, image, 4).events
    events = {name: np.asarray(count)[:, 0] for name, count in seen.items()}
    (pool,) = network.pools
    # The four neurons of relu0, γ = 5, θ = 1, v_0 = 0:
    #   current   t = 1  2  3  4
    #     0.5         0  1  0  1
    #     1.0         1  1  1  1
    #     2.0         2  2  2  2    a burst of two is two events
    #    -3.0         0  0  0  0
    #   events        3  4  3  4
    # conv: each of the 4 places reaches 4 taps x 2 features, 8 synapses.
    # relu1 has 2x2x2 neurons and sends 8; 2 of them pass the pool, to 5 synapses each.
    assert events["relu0"].tolist() == [3, 4, 3, 4]
    assert events["relu1"].tolist() == [8, 8, 8, 8]
    assert events[pool].tolist() == [2, 2, 2, 2]
    assert energy.macs(network) == {"pass": 4, "conv": 32, "dense": 10}
    assert energy.fan_out(network) == {("relu0", "conv"): 8, (pool, "dense"): 5}
    assert energy.cost_per_event(network) == {"relu0": 8, pool: 5}
    operations = energy.operations(network, events)
    assert {name: count.tolist() for name, count in operations.items()} == {
        "conv": [24, 32, 24, 32],
        "dense": [10, 10, 10, 10],
    }
    spent = np.array([34, 76, 110, 152]) * 0.9e-12
    once = energy.joules(network, events)
    np.testing.assert_allclose(once, spent + 4 * 4.6e-12)
    every = energy.joules(network, events, first_layer="every step")
    np.testing.assert_allclose(every, spent + 4 * 4.6e-12 * np.array([1, 2, 3, 4]))
    assert energy.ann_joules(network) == pytest.approx(46 * 4.6e-12)
    relative = energy.relative(network, events)
    np.testing.assert_allclose(relative, once / (46 * 4.6e-12))
    # The kernel of `conv` is zero: no event reaches a synapse there.
    pruned = energy.joules(network, events, spiking=spiking)
    np.testing.assert_allclose(pruned, (np.arange(1, 5) * 9 + 4 * 4.6) * 1e-12)


def test_averages_count_windows_that_overlap_and_places_that_reach_none():
    def net(w, x, window, stride):
        x = nn.avg_pool(jax.nn.relu(x), (window, window), (stride, stride))
        return x.reshape(x.shape[0], -1) @ w

    for window, stride, fan in ((3, 1, 2 * 81 / 25), (2, 2, 2 * 16 / 25)):
        count = ((5 - window) // stride + 1) ** 2
        network = trace(
            lambda w, x, window=window, stride=stride: net(w, x, window, stride),
            normal(count, 2),
            np.ones((1, 5, 5, 1), np.float32),
        )
        assert list(energy.fan_out(network).values()) == [pytest.approx(fan)]


def test_a_constant_kernel_is_a_wire_of_as_many_ways():
    """Nearest and bilinear resizing, then a product with every place."""
    w = normal(16, 3)
    for method, ways in (("nearest", 4), ("linear", 9)):

        def net(w, x, method=method):
            x = jax.image.resize(jax.nn.relu(x), (x.shape[0], 4, 4, 1), method)
            return x.reshape(x.shape[0], -1) @ w

        network = trace(net, w, np.ones((1, 2, 2, 1), np.float32))
        # Linear, along one axis: 0, ¼-¾, ¾-¼, 1: each of two inputs has three ways.
        assert list(energy.fan_out(network).values()) == [3 * ways]


def test_what_the_input_reaches_later_is_weighed_once():
    w = {"a": normal(3, 4), "b": normal(7, 5), "c": normal(5, 2), "d": normal(2, 6)}

    def net(w, x):
        joined = jnp.concatenate([x, jax.nn.relu(x @ w["a"])], -1)
        return jax.nn.relu(joined @ w["b"]) @ w["c"] @ w["d"]

    network = trace(net, w, np.ones((1, 3), np.float32))
    reach = energy.reach(network)
    assert {name: x.tolist() for name, x in reach.once.items()} == {
        "a": [[4, 4, 4]],
        "b": [[5, 5, 5, 0, 0, 0, 0]],
    }
    # No neurons between c and d: it weighs charges at every step.
    assert {name: x.tolist() for name, x in reach.charges.items()} == {"d": [[6, 6]]}
    fan = energy.fan_out(network)
    assert fan == {("relu0", "b"): 5, ("relu1", "c"): 2}
    events = {"relu0": np.array([1, 0]), "relu1": np.array([0, 3])}
    expected = np.array([5, 5 + 6]) * 0.9 + (27 + 12 * np.array([1, 2])) * 4.6
    np.testing.assert_allclose(energy.joules(network, events), expected * 1e-12)


def test_a_network_without_spiking_synapses_costs_its_first_layer():
    w = normal(3, 4)
    network = trace(lambda w, x: jax.nn.relu(x @ w), w, np.ones((1, 3), np.float32))
    assert energy.operations(network, {"relu0": np.ones(2)}) == {}
    spent = energy.joules(network, {"relu0": np.ones((2, 5))})
    np.testing.assert_allclose(spent, np.full((2, 5), 12 * 4.6e-12))


def test_other_spellings_of_a_network_count_the_same():
    equinox, haiku = pytest.importorskip("equinox"), pytest.importorskip("haiku")

    class Linen(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(4, (3, 3), strides=2)(x))
            x = nn.avg_pool(nn.relu(nn.Conv(6, (3, 3))(x)), (2, 2), (2, 2))
            return nn.Dense(3)(x.reshape(x.shape[0], -1))

    def hk_net(x):
        x = jax.nn.relu(haiku.Conv2D(4, 3, 2)(x))
        x = jax.nn.relu(haiku.Conv2D(6, 3)(x))
        x = haiku.avg_pool(x, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
        return haiku.Linear(3)(haiku.Flatten()(x))

    class Equinox(equinox.Module):
        layers: list

        def __init__(self, key):
            keys, layer = jax.random.split(key, 3), equinox.nn
            self.layers = [
                # SAME with stride 2 of an even map pads behind only.
                layer.Conv2d(2, 4, 3, 2, ((0, 1), (0, 1)), key=keys[0]),
                jax.nn.relu,
                layer.Conv2d(4, 6, 3, 1, 1, key=keys[1]),
                jax.nn.relu,
                layer.AvgPool2d(2, 2),
                jnp.ravel,
                layer.Linear(24, 3, key=keys[2]),
            ]

        def __call__(self, x):
            for layer in self.layers:
                x = layer(x)
            return x

    x, key = np.ones((1, 8, 8, 2), np.float32), jax.random.key(0)
    linen, hk = Linen(), haiku.without_apply_rng(haiku.transform(hk_net))
    networks = [
        trace(linen.apply, linen.init(key, x), x),
        trace(hk.apply, hk.init(key, x), x),
        trace(Equinox(key), x.transpose(0, 3, 1, 2)),
    ]
    counts = [list(energy.macs(network).values()) for network in networks]
    fans = [list(energy.fan_out(network).values()) for network in networks]
    assert counts[0] == counts[1] == counts[2]
    assert fans[0] == fans[1] == fans[2]


def test_unusable_events_are_refused_by_name():
    fine = {name: np.ones((3, 2)) for name in (*NETWORK.neurons, *NETWORK.pools)}
    operations = energy.operations
    assert operations(NETWORK, fine)["b"].shape == (3, 2)
    with pytest.raises(ValueError, match="relu1: its events are missing"):
        operations(NETWORK, {k: v for k, v in fine.items() if k != "relu1"})
    with pytest.raises(ValueError, match=r"\['relu9'\] are no populations or pools"):
        operations(NETWORK, fine | {"relu9": np.ones((3, 2))})
    for other in (np.ones((4, 2)), np.ones((1, 2)), np.ones(3), np.ones(())):
        with pytest.raises(ValueError, match="relu2: its events must be"):
            operations(NETWORK, fine | {"relu2": other})
    for bad in (np.nan, np.inf, -1):
        with pytest.raises(ValueError, match="events: relu2: expected counts"):
            operations(NETWORK, fine | {"relu2": np.full((3, 2), bad)})
    with pytest.raises(ValueError, match="'once', 'every step', found 'never'"):
        energy.joules(NETWORK, fine, first_layer="never")
    with pytest.raises(ValueError, match="a: there are no weights for it"):
        energy.fan_out(NETWORK, {})
    with pytest.raises(TypeError, match="expected what trace returns"):
        energy.fan_out(())


def test_constants_of_45_nm():
    usual = energy.HOROWITZ_FP32
    assert (usual.accumulate, usual.mac) == (0.9, 4.6)
    assert energy.HOROWITZ_INT8.mac == pytest.approx(0.2 + 0.1)
