"""The laws of a whole spiking network over time."""

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from networks import NAMES, STEPS, case, quick, random_variables

from jaxburst import simulation
from jaxburst.calibration import calibrate
from jaxburst.conversion import Affine, Threshold, convert
from jaxburst.data import Split
from jaxburst.layers import AvgPool, Conv, Dense, Flatten, MaxPool, Relu
from jaxburst.neuron import Burst
from jaxburst.simulation import (
    Model,
    build,
    compiler_options,
    drive,
    evaluate,
    infer,
    rest,
    simulate,
    step,
)

pytestmark = pytest.mark.usefixtures("float64")

SMALL = "residual first"


@pytest.mark.parametrize("name", NAMES)
def test_the_first_layer_in_closed_form(name):
    """Law 5: it sees a constant current, so `N(t)` needs no simulation."""
    it = case(name)
    path, *_ = it.relus
    neuron, theta = Burst(5), it.thresholds(Burst(5), "channel")[it.relus[0]]
    trace = it.simulate(it.spiking(neuron, "channel", 0.5), neuron)
    times = np.arange(1, STEPS + 1).reshape(-1, *[1] * it.activations[path].ndim)
    current = it.activations[path]  # a negative one never fires: 0 will do
    expected = np.clip(np.floor(0.5 + times * current / theta), 0, 5 * times)
    assert (expected == 5 * times).any() and (current > 0).any()
    spikes = np.asarray(trace.spikes[path]).cumsum(0)
    np.testing.assert_array_equal(spikes, expected)
    charge = (0.5 + 0 * current) * theta + times * current
    held = np.where(current > 0, trace.potentials[path] + theta * spikes, charge)
    np.testing.assert_allclose(held, charge, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_signed_and_unbounded_is_a_quantised_network(name):
    """Law 6: the state after t steps is one step of thresholds θ / t."""
    it = case(name)
    neuron = Burst(None, signed=True)
    trace = it.simulate(it.spiking(neuron, "layer", 0.5), neuron)
    assert all(trace.spikes[path].min() < 0 for path in it.relus[1:])
    for t in (1, 2, 5, STEPS):
        thresholds = it.thresholds(neuron, "layer", 0.5718 / t)
        logits, spikes, _ = oracle.snn(
            *(it.layers, it.variables, it.images, 1),
            *(Burst(None), "lateral", thresholds, 0.5),
        )
        np.testing.assert_allclose(trace.logits[t - 1], logits[0], atol=1e-12)
        for path in it.relus:
            total = trace.spikes[path][:t].sum(0)
            np.testing.assert_array_equal(total, spikes[path][0])


@pytest.mark.parametrize("name", [SMALL, "nested"])
def test_a_shorter_simulation_is_a_prefix(name):
    """Law 8, to the last bit step by step; blocks of steps round as their length is."""
    it = case(name)
    neuron = Burst(5)
    spiking, images = it.spiking(neuron, "channel", 0.5), jnp.asarray(it.images)
    whole, part = (
        simulate(Model(it.layers, neuron), spiking, images, steps, schedule="step")
        for steps in (STEPS, 5)
    )
    assert whole.logits.shape[0] == STEPS and part.logits.any()
    first = jax.tree.map(lambda x: x[:5], whole)
    jax.tree.map(np.testing.assert_array_equal, first, part)


@pytest.mark.parametrize("name", NAMES)
def test_permuted_images_give_permuted_logits(name):
    """Law 8: images do not know of each other."""
    it = case(name)
    neuron = Burst(5)
    spiking = it.spiking(neuron, "channel", 0.5)
    order = np.array([2, 0, 3, 1])
    before = it.simulate(spiking, neuron)
    after = it.simulate(spiking, neuron, images=it.images[order])
    assert np.ptp(before.logits[-1], axis=0).min() > 0, "images differ"
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a[:, order], b, rtol=0, atol=1e-12),
        before,
        after,
    )


def distances(layers, spiking, images, expected, pool="lateral"):
    """T times the largest distance to the logits of the ANN, for T = 1 ... 512."""
    model = Model(layers, Burst(5), pool)
    logits = simulate(model, spiking, jnp.asarray(images), 512).logits
    times = np.arange(1, 513).reshape(-1, 1, 1)
    return np.abs(times * (np.asarray(logits) - expected)).max((1, 2))


@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_error_falls_like_one_over_time(name):
    """Law 9: with no neuron saturated, T x distance stays flat."""
    it = case(name)
    spiking = it.spiking(Burst(5), "layer", 0.5, share=1.0)
    distance = distances(it.layers, spiking, it.images, it.logits)
    assert distance[:32].max() > 0.1
    assert distance.max() < 1.5 * distance[:32].max()


def test_error_of_pooling_stays_under_gating():
    """Law 9: where members of a window tie, as in an enlarged image, gated pooling adds
    up what they send in turn, for ever; lateral inhibition does not."""
    layers = (Conv(4, kernel=1, padding=0), Relu(), MaxPool(2), Flatten(), Dense(3))
    rng = np.random.default_rng(0)
    variables = random_variables(layers, (6, 6, 2), rng)
    images = rng.normal(size=(4, 3, 3, 2)).repeat(2, 1).repeat(2, 2)
    logits, record = oracle.ann(layers, variables, images)
    theta = record["relu0"].max() / 5
    spiking = convert(layers, variables, {"relu0": theta})
    start = jnp.asarray(rng.uniform(0, 1, (6, 6, 4)))  # v_0 differs: they take turns
    spiking["relu0"] = spiking["relu0"]._replace(initial=start)
    lateral = distances(layers, spiking, images, logits)
    gated = distances(layers, spiking, images, logits, "gated")
    assert 0.1 < lateral.max() < 2 * lateral[:32].max()
    assert gated[511] > 20 * lateral.max()
    assert gated[511] == pytest.approx(2 * gated[255], rel=0.1)


@pytest.mark.parametrize("name", [SMALL, "preactivation"])
def test_infer_gives_the_last_logits(name):
    it = case(name)
    neuron = Burst(5)
    spiking = it.spiking(neuron, "channel", 0.5)
    logits = infer(Model(it.layers, neuron), spiking, jnp.asarray(it.images), STEPS)
    expected = it.simulate(spiking, neuron).logits[-1]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-12)


def test_single_layers_can_have_a_gamma_of_their_own():
    it = case("resnet")
    path = it.relus[1]
    neuron = Burst(5, gammas=((path, 1),))
    trace = it.simulate(it.spiking(neuron, "layer", 0.5), neuron)
    most = {path: float(n.max()) for path, n in trace.spikes.items()}
    assert most.pop(path) == 1
    assert max(most.values()) == 5, "the cap of the others binds"
    wide, own = (
        calibrate(it.layers, it.variables, it.images, n) for n in (Burst(5), neuron)
    )
    assert float(own[path]) == pytest.approx(5 * float(wide[path]))
    assert own[it.relus[0]] == wide[it.relus[0]]
    with pytest.raises(ValueError, match=r"found \['relu9'\]"):
        simulation.Model(it.layers, Burst(5, gammas=(("relu9", 1),)))


def test_steps_by_hand():
    it = case(SMALL)
    neuron = Burst(2, signed=True)
    spiking = it.spiking(neuron, "channel", 0.5)
    model, images = Model(it.layers, neuron), jnp.asarray(it.images)
    circuit = build(model, spiking, it.image_shape)
    current = drive(model, circuit, images)
    state = rest(model, spiking, images.shape)
    trace = it.simulate(spiking, neuron)
    advance = quick(step)
    for t in range(STEPS):
        state, info = advance(model, circuit, current, state)
        np.testing.assert_allclose(
            state["dense0"] / (t + 1), trace.logits[t], rtol=0, atol=1e-12
        )
        for path in it.relus:
            np.testing.assert_array_equal(info.spikes[path], trace.spikes[path][t])
            np.testing.assert_array_equal(
                state[path].sent, trace.spikes[path][: t + 1].sum(0)
            )
        for path in trace.events:
            np.testing.assert_array_equal(info.events[path], trace.events[path][t])
    assert info.spikes["relu0"].any()


def test_only_what_is_asked_for_is_recorded():
    it = case(SMALL)
    model, images = Model(it.layers, Burst(5)), jnp.asarray(it.images)
    spiking = it.spiking(Burst(5), "channel", 0.5)
    lean = simulate(model, spiking, images, 3)
    assert (lean.spikes, lean.potentials) == ({}, {})
    one = simulate(model, spiking, images, 3, record=("relu0",))
    assert list(one.spikes) == list(one.potentials) == ["relu0"]
    assert one.spikes["relu0"].shape == (3, 4, 4, 4, 3)
    np.testing.assert_array_equal(lean.logits, one.logits)


@pytest.mark.parametrize("schedule", ["step", "layer"])
def test_memory_does_not_grow_with_time(schedule):
    it = case(SMALL)
    model, images = Model(it.layers, Burst(5)), jnp.asarray(it.images)
    spiking = it.spiking(Burst(5), "channel", 0.5)
    needed = [
        infer.lower(model, spiking, images, steps, schedule=schedule)
        .compile()
        .memory_analysis()
        for steps in (128, 128 * STEPS)
    ]
    assert needed[0].temp_size_in_bytes == needed[1].temp_size_in_bytes > 0


@pytest.fixture(scope="module")
def labelled(float64):
    """Ten images for the small network, and its weights, in single precision."""
    it = case(SMALL)
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (10, *it.image_shape), dtype=np.uint8)
    labels = rng.integers(0, 4, 10, dtype=np.int32)
    split = Split(images, labels, (0.5, 0.4), (0.3, 0.2))
    spiking = it.spiking(Burst(5), "layer", 0.5)
    spiking = jax.tree.map(lambda x: x.astype(jnp.float32), spiking)
    return Model(it.layers, Burst(5)), spiking, split


def test_evaluate_is_the_mean_over_the_images(labelled):
    """The last of three batches holds 2 images and 2 that do not count."""
    model, spiking, split = labelled
    curves = evaluate(model, spiking, split, 8, batch_size=4, progress=False)
    trace = simulate(model, spiking, jnp.asarray(split.inputs), 8)
    assert trace.logits.dtype == jnp.float32
    right = (np.asarray(trace.logits).argmax(-1) == split.labels).sum(1)
    assert 0 < right[-1] < 10
    np.testing.assert_array_equal(curves.accuracy, right / 10)
    assert curves.images == 10
    assert list(curves.events) == [
        *("residual0/body/relu0", "residual0/body/conv1", "relu0", "dense0")
    ]
    for path, count in trace.events.items():
        assert count.any()
        total = np.asarray(count).sum(1)
        np.testing.assert_array_equal(curves.events[path], total / 10)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA on CPU")
@pytest.mark.parametrize("channels, level", [(16, 2), (32, None)])
def test_narrow_networks_are_compiled_otherwise(channels, level):
    layers = (Conv(channels), Relu(), Conv(64, stride=4), Relu(), Flatten(), Dense(3))
    options = compiler_options(Model(layers), (16, 16, 3))
    assert options.get("xla_backend_optimization_level") == level


def test_one_compilation_serves_all_batches(labelled, monkeypatch):
    model, spiking, split = labelled
    traced = []

    advance = simulation._block

    def counting(*arguments):
        traced.append(arguments)
        return advance(*arguments)

    monkeypatch.setattr(simulation, "_block", counting)
    settings = {"batch_size": 5, "progress": False}
    one = evaluate(model, spiking, split[:5], 9, **settings)
    once = len(traced)
    assert once > 0
    two = evaluate(model, spiking, split[:8], 9, **settings)
    evaluate(model, jax.tree.map(lambda x: x * 2, spiking), split, 9, **settings)
    assert len(traced) == once
    assert (one.images, two.images) == (5, 8)


def test_faster_convolutions_spike_alike_up_to_rounding():
    """Model(exact=False) may use Winograd's algorithm; few spikes move, if any."""
    rng = np.random.default_rng(0)
    layers = (Conv(128), Relu(), Conv(128), Relu(), Flatten(), Dense(10))

    def normal(*shape):
        return jnp.asarray(rng.normal(0, (2 / np.prod(shape[:-1])) ** 0.5, shape), "f4")

    numbers = (jnp.asarray(x, "f4") for x in (0.4, 0.5, 0.0))
    threshold = Threshold(*numbers)
    spiking = {
        "conv0": Affine(normal(3, 3, 3, 128), jnp.zeros(128, "f4")),
        "relu0": threshold,
        "conv1": Affine(normal(3, 3, 128, 128), jnp.zeros(128, "f4")),
        "relu1": threshold,
        "dense0": Affine(normal(2048, 10), jnp.zeros(10, "f4")),
    }
    images = jnp.asarray(rng.normal(size=(8, 4, 4, 3)), "f4")
    exact, fast = (
        simulate(Model(layers, Burst(2), exact=flag), spiking, images, 8)
        for flag in (True, False)
    )
    assert exact.events["relu1"].sum() > 10_000
    for path, count in exact.events.items():
        moved = abs(count - fast.events[path]).sum()
        assert int(moved) <= 1e-3 * int(count.sum())
    np.testing.assert_array_equal(
        exact.logits[-1].argmax(-1), fast.logits[-1].argmax(-1)
    )


def small(**changes):
    """Arguments of `simulate` for the small network, some of them changed."""
    it = case(SMALL)
    arguments = {
        "model": Model(it.layers, Burst(5)),
        "spiking": it.spiking(Burst(5), "layer", 0.5),
        "images": jnp.asarray(it.images),
        "steps": 4,
    }
    return arguments | changes


@pytest.mark.parametrize("run", [simulate, infer])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"images": jnp.zeros((4, 4, 2))}, r"\[B, H, W, C\], found .*\(4, 4, 2\)"),
        ({"images": jnp.zeros((1, 1, 1, 2))}, "maxpool0: a window of 2 .* 1x1"),
        ({"images": jnp.zeros((1, 4, 4, 3))}, r"conv0: .*\(4, 4, 3\) the kernel must"),
        ({"images": jnp.zeros((1, 6, 6, 2))}, r"dense0: .*\(27, 4\), found \(12, 4\)"),
        ({"steps": 0}, "steps .* at least 1, found 0"),
        ({"steps": 2.5}, "steps .* whole number .* found 2.5"),
        ({"spiking": {}}, "residual0/body/conv0: the converted network has no weights"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(run, changes, message):
    with pytest.raises(ValueError, match=message):
        run(**small(**changes))


def test_unknown_paths_cannot_be_recorded():
    message = r"cannot record \['dense0', 'relu7'\]; the Relus are \['residual0/body"
    with pytest.raises(ValueError, match=message):
        simulate(**small(), record=("relu7", "relu0", "dense0"))


def test_weights_of_another_network_are_refused():
    other = case("vgg").spiking(Burst(5), "layer", 0.5)
    with pytest.raises(ValueError, match="residual0/body/conv0: the converted"):
        simulate(**small(spiking=other))


def test_an_empty_split_is_refused(labelled):
    model, spiking, split = labelled
    with pytest.raises(ValueError, match="no images"):
        evaluate(model, spiking, split[:0], 4)


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"pool": "max"}, ValueError, r"pool must be one of \['lateral', 'gated'\]"),
        ({"neuron": 5}, TypeError, "neuron must be a Burst or Refining, found 5"),
        ({"layers": (Conv(3), Relu())}, ValueError, "ends in relu0"),
    ],
)
def test_impossible_models_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Model(**{"layers": case(SMALL).layers} | settings)


def test_thresholds_of_another_width_are_refused_by_name():
    it = case(SMALL)
    thresholds = it.thresholds(Burst(5), "layer") | {"relu0": np.ones(2)}
    spiking = convert(it.layers, it.variables, thresholds)
    with pytest.raises(ValueError, match=r"relu0: .*theta .*\(3,\)\], found \(2,\)"):
        simulate(**small(spiking=spiking))


def test_bfloat16_kernels_that_lose_nothing_change_nothing():
    """Spikes are whole numbers, and sums keep single precision."""
    rng = np.random.default_rng(0)
    layers = (
        *(Conv(6), Relu(), Conv(8), Relu(), MaxPool(2), Conv(6), Relu(), MaxPool(2)),
        *(Conv(8), Relu(), Flatten(), Dense(4)),  # the last map is one small product
    )

    def affine(*shape):  # 8 bits of a kernel survive
        kernel = rng.integers(-100, 100, shape) / 256
        bias = rng.integers(-50, 50, shape[-1]) / 256
        return Affine(jnp.asarray(kernel, "f4"), jnp.asarray(bias, "f4"))

    threshold = Threshold(*(jnp.asarray(x, "f4") for x in (0.5, 0.5, 0.0)))
    spiking = {f"relu{i}": threshold for i in range(4)} | {
        "conv0": affine(3, 3, 3, 6),
        "conv1": affine(3, 3, 6, 8),
        "conv2": affine(3, 3, 8, 6),
        "conv3": affine(3, 3, 6, 8),
        "dense0": affine(32, 4),
    }
    images = jnp.asarray(rng.integers(-100, 100, (4, 8, 8, 3)) / 64, "f4")
    whole, rounded = (
        simulate(Model(layers, Burst(5), precision=kind), spiking, images, 6)
        for kind in ("float32", "bfloat16")
    )
    for path, count in whole.events.items():
        assert np.asarray(count).sum() > 10
        np.testing.assert_array_equal(rounded.events[path], count)
    np.testing.assert_allclose(rounded.logits, whole.logits, rtol=0, atol=1e-5)
    circuit = build(Model(layers, Burst(5), precision="bfloat16"), spiking, (8, 8, 3))
    kinds = {path: circuit[path].kernel.dtype for path in ("conv0", "conv1", "conv3")}
    assert kinds == {"conv0": "float32", "conv1": "bfloat16", "conv3": "bfloat16"}


@pytest.mark.parametrize(
    "neuron", [Burst(None), Burst(65), Burst(1, gammas=(("relu0", 99),))]
)
def test_bfloat16_is_refused_where_counts_may_be_too_large_for_it(neuron):
    layers = (Conv(4), Relu(), AvgPool(2), Conv(4), Relu(), Flatten(), Dense(3))
    Model(layers, Burst(64), precision="bfloat16")
    with pytest.raises(ValueError, match="whole numbers up to 256"):
        Model(layers, neuron, precision="bfloat16")
    with pytest.raises(ValueError, match="'float32' or 'bfloat16'"):
        Model(layers, precision="int8")
