"""Simulation, evaluation and one pass: what comes out, how often it is compiled, and
what is refused. The laws over time are in `test_laws`."""

import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from nets import case

import jaxburst as jb
from jaxburst import circuit as circuit_of
from jaxburst import evaluation, run
from jaxburst.convert import convert
from jaxburst.network import Affine
from jaxburst.neurons import Burst, Refining, SigmaDelta
from jaxburst.run import Model, Plan, infer, simulate
from jaxburst.tracing import trace

pytestmark = pytest.mark.usefixtures("double")
OPTIMISED = True

SMALL = "residual first"


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield


def small(**changes):
    """Arguments of `simulate` for the small network, some of them changed."""
    it = case(SMALL)
    arguments = {
        "model": it.model(),
        "spiking": it.spiking(Burst(5)),
        "inputs": it.inputs,
        "steps": 4,
    }
    return arguments | changes


@functools.partial(nets.quick, static=(0, 3, 4))
def answer(model, spiking, inputs, steps, schedule):
    return infer(model, spiking, inputs, steps, schedule=schedule)


@pytest.mark.parametrize("schedule", ["step", "layer", "auto"])
def test_inference_is_the_last_step_of_a_simulation(schedule):
    it = case(SMALL)
    inputs = np.resize(it.inputs, (32, *it.inputs.shape[1:]))  # in parts on a CPU
    model, spiking = it.model(Burst(3)), it.spiking(Burst(3), "channel")
    expected = it.run(model, spiking, 7, inputs=inputs, schedule=Plan(1, 32))
    last = answer(model, spiking, inputs, 7, schedule)
    np.testing.assert_allclose(last, expected.logits[-1], rtol=0, atol=1e-12)
    assert np.ptp(last, axis=0).min() > 0, "images differ"


def test_single_populations_can_have_a_gamma_of_their_own():
    it = case(SMALL)
    own, other = it.network.neurons
    neuron = Burst(5, gammas=((own, 1),))
    trace = it.run(it.model(neuron), it.spiking(Burst(5)), 12)
    assert trace.spikes[own].max() == 1
    assert trace.spikes[other].max() == 5, "the cap of the others binds"
    wide, narrow = (
        jb.calibrate(it.network, it.variables, it.inputs, n) for n in (Burst(5), neuron)
    )
    assert float(narrow[own]) == pytest.approx(5 * float(wide[own]))
    assert narrow[other] == wide[other]
    with pytest.raises(ValueError, match=r"found \['relu9'\]"):
        it.model(Burst(5, gammas=(("relu9", 1),)))


def test_steps_by_hand():
    it, steps = case(SMALL), 6
    neuron = Burst(2, signed=True)
    model, spiking = it.model(neuron), it.spiking(neuron, "channel")
    circuit = circuit_of.prepare(model, spiking)
    leaves = it.network.leaves(it.inputs)
    held = circuit_of.constants(model, circuit, leaves)
    state = circuit_of.rest(model, circuit, len(it.inputs))
    trace = it.run(model, spiking, steps)
    advance = nets.quick(circuit_of.block, 0)
    for t in range(steps):
        state, info = advance(model, circuit, held, state)
        logits = state["outputs"][0] / (t + 1)
        np.testing.assert_allclose(logits, trace.logits[t], rtol=0, atol=1e-12)
        np.testing.assert_array_equal(info.outputs[0][0], logits)
        for name in it.network.neurons:
            spikes = trace.spikes[name]
            np.testing.assert_array_equal(info.spikes[name][0], spikes[t])
            sent = spikes[: t + 1].sum(0)
            np.testing.assert_array_equal(state[name].sent, sent)
        for name, events in trace.events.items():
            np.testing.assert_array_equal(info.traffic[name].quanta[0], events[t])
    assert all(n.any() for n in trace.spikes.values()) and state["time"] == steps


def test_only_what_is_asked_for_is_recorded():
    name, other = case(SMALL).network.neurons
    lean = simulate(**small())
    assert (lean.spikes, lean.potentials) == ({}, {})
    for record in (name, [name], (name,)):
        one = simulate(**small(), record=record)
        assert list(one.spikes) == list(one.potentials) == [name]
        assert one.spikes[name].shape == (4, 3, 4, 4, 3)
        np.testing.assert_array_equal(lean.logits, one.logits)
    with pytest.raises(ValueError, match=rf"cannot record \['conv9'\].*{other}"):
        simulate(**small(), record=(name, "conv9"))


@pytest.mark.parametrize("schedule", ["step", "layer"])
def test_memory_does_not_grow_with_time(schedule):
    model, spiking, inputs, _ = small().values()
    inputs = np.resize(inputs, (4, *inputs.shape[1:]))  # blocks of 64 steps

    def needed(steps):
        lowered = answer.lower(model, spiking, inputs, steps, schedule)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    assert needed(128) == needed(12 * 128) > 0


# Whole data sets.


@pytest.fixture(scope="module")
def labelled(double):
    """Ten images for the small network, and its weights, in single precision."""
    it = case(SMALL)
    rng = np.random.default_rng(7)
    images = rng.integers(0, 256, (10, *it.inputs.shape[1:]), dtype=np.uint8)
    labels = rng.integers(0, 4, 10, dtype=np.int32)
    split = jb.data.Split(images, labels, (0.5, 0.4), (0.3, 0.2))
    narrow = jax.tree.map(np.float32, it.variables)
    network = trace(it.function, narrow, split[:1].inputs)
    spiking = jax.tree.map(lambda x: x.astype(jnp.float32), it.spiking(Burst(5)))
    return Model(network, Burst(5)), spiking, split, narrow


def test_evaluate_is_the_mean_over_the_images(labelled):
    """The last of three batches holds 2 images and 2 that do not count."""
    model, spiking, split, _ = labelled
    curves = jb.evaluate(model, spiking, split, 8, batch_size=4, progress=False)
    trace = simulate(model, spiking, split.inputs, 8)
    assert trace.logits.dtype == jnp.float32
    right = (np.asarray(trace.logits).argmax(-1) == split.labels).sum(1)
    assert 0 < right[-1] < 10
    np.testing.assert_array_equal(curves.accuracy, right / 10)
    assert curves.images == 10
    assert tuple(curves.events) == model.network.senders
    for name, count in trace.events.items():
        assert count.any()
        total = np.asarray(count).sum(1)
        np.testing.assert_array_equal(curves.events[name], total / 10)


def test_the_accuracy_of_the_trained_network_counts_every_image_once(labelled):
    model, _, split, variables = labelled
    logits = np.asarray(model.network(variables, split.inputs))
    right = (logits.argmax(-1) == split.labels).mean()
    assert 0 < right < 1
    for size in (3, 4, 10, 250):
        found = jb.accuracy(model.network, variables, split, batch_size=size)
        assert found == pytest.approx(right)


def test_one_compilation_serves_all_batches(labelled, monkeypatch):
    model, spiking, split, _ = labelled
    chex.clear_trace_counter()
    once = chex.assert_max_traces(evaluation.trace_of, n=1)
    monkeypatch.setattr(evaluation, "trace_of", once)
    settings = {"batch_size": 5, "progress": False}
    one = jb.evaluate(model, spiking, split[:5], 9, **settings)
    two = jb.evaluate(model, spiking, split[:8], 9, **settings)
    twice = jax.tree.map(lambda x: x * 2, spiking)
    jb.evaluate(model, twice, split, 9, **settings)
    assert (one.images, two.images) == (5, 8)
    with pytest.raises(AssertionError, match="traced > 1 times"):
        jb.evaluate(model, spiking, split, 10, **settings)


def test_a_metric_may_compare_with_texts(labelled):
    """A text recogniser's targets are words, which no device can hold."""
    model, spiking, split, _ = labelled
    words = np.array([f"word {label}" for label in split.labels])

    def reads(outputs, targets):
        return np.array([f"word {k}" for k in outputs.argmax(-1)]) == targets

    settings = {"batch_size": 4, "progress": False}
    said = jb.evaluate(
        model, spiking, (split.inputs, words), 3, metric=reads, **settings
    )
    counted = jb.evaluate(model, spiking, split, 3, **settings)
    assert counted.accuracy[-1] > 0
    np.testing.assert_array_equal(said.accuracy, counted.accuracy)


def test_what_cannot_be_evaluated_is_refused(labelled):
    model, spiking, split, _ = labelled
    with pytest.raises(ValueError, match="at least one"):
        jb.evaluate(model, spiking, split[:0], 4)
    with pytest.raises(ValueError, match=r"expected 0 \.\. 3.*found 0 \.\. 4"):
        labels = np.arange(10) % 5
        jb.evaluate(model, spiking, (split.inputs, labels), 4)
    with pytest.raises(TypeError, match="a Split, or .inputs"):
        jb.evaluate(model, spiking, split.inputs, 4)


def narrow_and_wide(channels):
    """Two populations, of which the first has most neurons."""
    layers = nn.Conv(channels, (1, 1)), nn.relu, nn.Conv(64, (1, 1), 4), nn.relu
    module = nn.Sequential(layers)
    images = np.ones((1, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: np.ones(x.shape, x.dtype), shapes)
    return trace(module.apply, variables, images), variables, images


on_cpu = pytest.mark.skipif(jax.default_backend() != "cpu", reason="about XLA on CPU")


@on_cpu
@pytest.mark.parametrize("channels, level", [(16, 2), (32, None)])
def test_narrow_networks_are_compiled_otherwise(optimised, channels, level):
    options = run.compiler_options(narrow_and_wide(channels)[0])
    assert options.get("xla_backend_optimization_level") == level


@on_cpu
@pytest.mark.parametrize(
    "neuron", [Burst(5), Burst(5, signed=True), Refining(), SigmaDelta()]
)
def test_spikes_are_computed_once(optimised, neuron):
    """Not for the next layer, for the potential and for the counts each."""
    network, variables, images = narrow_and_wide(16)
    spiking = convert(network, variables, dict.fromkeys(network.neurons, 1.0))
    options = run.compiler_options(network)

    @functools.partial(jax.jit, compiler_options=options)
    def program(spiking, images):
        trace = simulate(Model(network, neuron), spiking, images, 1)
        return trace.logits, trace.traffic

    text = program.lower(spiking, images).compile().as_text()
    assert text.count(" floor(") == len(network.neurons) == 2


# The order of the work.


@pytest.mark.parametrize("each, images", [(False, 50), (True, 10)])
def test_a_plan_says_what_it_chose(each, images, monkeypatch):
    monkeypatch.setattr(run, "one_core_each", lambda: each)
    wide, narrow = (of_channels(count) for count in (17, 16))
    plan = functools.partial(run.plan, wide)
    assert plan(1, 16, "step") == Plan(1, 1)
    assert plan(1, 16, "layer") == Plan(16, 1)
    assert plan(100, 1000, "step", "cpu") == Plan(1, images)
    assert plan(100, 1000, "layer", "cpu") == Plan(256 // images, images)
    assert plan(2 * 37, 1000, platform="cpu") == Plan(1, 74 if each else 37)
    assert plan(64, 1000, platform="tpu") == Plan(4, 64)
    assert run.plan(narrow, 64, 1000, platform="tpu") == Plan(4, 64)
    assert run.plan(narrow, 1, 4, platform="cpu") == Plan(1 if each else 4, 1)
    assert str(Plan(1, 32)) == "1 step of 32 images at a time"
    assert str(plan(1, 4)) == "4 steps, layer by layer, of 1 images at a time"
    with pytest.raises(ValueError, match="jaxburst.direct"):
        plan(1, 1, "direct")


def of_channels(count: int):
    """A network of one population with so many."""
    kernel = jnp.ones((1, count))

    def function(kernel, x):
        return nn.relu(x @ kernel)

    return trace(function, kernel, np.ones((1, 4, 1), np.float32))


def single(layers, shape, thetas, affine, rng):
    """A network and its spiking form in single precision, of weights `affine` makes."""
    module, images = nn.Sequential(layers), np.zeros((1, *shape), np.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images)
    variables = jax.tree.map(lambda x: affine(x.shape), shapes)
    network = trace(module.apply, variables, images)
    assert len(network.neurons) == len(thetas)
    thresholds = dict(zip(network.neurons, map(np.float32, thetas), strict=True))
    return network, convert(network, variables, thresholds)


def flat(x):
    return x.reshape(x.shape[0], -1)


def pooled(x):
    return nn.max_pool(x, (2, 2), (2, 2))


def test_faster_convolutions_and_other_orders_spike_alike_up_to_rounding():
    """Few spikes move, if any: by Winograd's algorithm, which `exact` switches off, and
    by the other sums of larger batches."""
    rng = np.random.default_rng(0)

    def normal(shape):
        if len(shape) < 2:
            return np.zeros(shape, np.float32)
        spread = (2 / np.prod(shape[:-1])) ** 0.5
        return rng.normal(0, spread, shape).astype(np.float32)

    wide = nn.Conv(128, (3, 3)), nn.relu, nn.Conv(128, (3, 3)), nn.relu, flat
    network, spiking = single((*wide, nn.Dense(10)), (4, 4, 3), (0.4, 0.4), normal, rng)
    images = rng.normal(size=(8, 4, 4, 3)).astype(np.float32)
    exact, fast, other = (
        simulate(Model(network, Burst(2), exact=flag), spiking, images, 8, schedule=how)
        for flag, how in ((True, "step"), (False, "step"), (True, "layer"))
    )
    if jax.default_backend() == "cpu":
        forms = circuit_of._forms(Model(network), None, jnp.float32)
        assert any(forms.values()), "Winograd's, where it pays"
    assert exact.events["relu1"].sum() > 10_000
    for found, share in ((fast, 1e-3), (other, 1e-4)):
        for name, count in exact.events.items():
            moved = abs(count - found.events[name]).sum()
            assert int(moved) <= share * int(count.sum())
        np.testing.assert_array_equal(
            exact.logits[-1].argmax(-1), found.logits[-1].argmax(-1)
        )


def test_bfloat16_kernels_that_lose_nothing_change_nothing():
    """Spikes are whole numbers, and sums keep single precision."""
    rng = np.random.default_rng(0)

    def short(shape):  # 8 bits of a kernel survive
        most = 100 if len(shape) > 1 else 50
        return (rng.integers(-most, most, shape) / 256).astype(np.float32)

    layers = (
        *(nn.Conv(6, (3, 3)), nn.relu, nn.Conv(8, (3, 3)), nn.relu, pooled),
        *(nn.Conv(6, (3, 3)), nn.relu, pooled),
        *(nn.Conv(8, (3, 3)), nn.relu, flat, nn.Dense(4)),  # here one small product
    )
    network, spiking = single(layers, (8, 8, 3), (0.5,) * 4, short, rng)
    images = (rng.integers(-100, 100, (4, 8, 8, 3)) / 64).astype(np.float32)
    whole, rounded = (
        simulate(Model(network, Burst(5), precision=kind), spiking, images, 6)
        for kind in ("float32", "bfloat16")
    )
    for name, count in whole.events.items():
        assert np.asarray(count).sum() > 10
        np.testing.assert_array_equal(rounded.events[name], count)
    np.testing.assert_allclose(rounded.logits, whole.logits, rtol=0, atol=1e-5)
    narrow = Model(network, Burst(5), precision="bfloat16")
    circuit = circuit_of.prepared(narrow, spiking)
    kinds = {name: str(circuit.own[name].kernel.dtype) for name in network.synapses}
    first, *others, last = network.synapses
    assert kinds.pop(first) == kinds.pop(last) == "float32"
    assert set(kinds.values()) == {"bfloat16"} and list(kinds) == others


def test_bfloat16_is_refused_where_counts_may_be_too_large_for_it():
    def net(w, x):
        x = nn.avg_pool(jax.nn.relu(x @ w[0]), (2, 2), (2, 2))
        kernel = w[1].reshape(1, 1, 3, 3)
        x = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(x).sum((1, 2))

    network = trace(net, [np.ones((2, 3)), np.ones((3, 3))], np.ones((1, 4, 4, 2)))
    Model(network, Burst(64), precision="bfloat16")
    for neuron in (Burst(None), Burst(65), Burst(1, gammas=(("relu0", 99),))):
        with pytest.raises(ValueError, match="whole numbers up to 256"):
            Model(network, neuron, precision="bfloat16")
    with pytest.raises(ValueError, match="'float32', 'bfloat16', found 'int8'"):
        Model(network, precision="int8")


# What is refused.


@pytest.mark.parametrize("call", [simulate, infer])
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"inputs": np.zeros((4, 4, 2))}, r"\[B, 4, 4, 2\].*found.*\[4, 4, 2\]"),
        ({"inputs": np.zeros((1, 4, 4, 3))}, r"\[B, 4, 4, 2\].*found.*\[1, 4, 4, 3\]"),
        ({"inputs": np.zeros((1, 6, 6, 2))}, r"\[B, 4, 4, 2\].*found.*\[1, 6, 6, 2\]"),
        ({"steps": 0}, "steps: .* at least 1 .*, found 0"),
        ({"steps": 2.5}, "steps: .* whole number .* found 2.5"),
        ({"steps": True}, "steps: .* whole number .* found True"),
        ({"spiking": {}}, "residual0_body/conv0: the converted network has no weights"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(call, changes, message):
    with pytest.raises(ValueError, match=message):
        call(**small(**changes))


def test_weights_of_another_network_are_refused():
    it = case(SMALL)
    other = case("dense").spiking(Burst(5))
    with pytest.raises(ValueError, match="residual0_body/conv0: the converted"):
        simulate(**small(spiking=other))
    first, name = it.network.synapses[0], it.network.neurons[0]
    own = it.spiking(Burst(5))
    wrong = own | {first: Affine(own[first].kernel[..., :2], own[first].bias)}
    with pytest.raises(ValueError, match=rf"{first}: the kernel must be \(3, 3, 2, 3"):
        simulate(**small(spiking=wrong))
    wrong = own | {name: own[name]._replace(theta=jnp.ones(2))}
    with pytest.raises(ValueError, match=rf"{name}: .*theta .*\(3,\)\].*found \(2,\)"):
        simulate(**small(spiking=wrong))


@pytest.mark.parametrize(
    "settings, error, message",
    [
        ({"pool": "max"}, ValueError, "pool: expected one of 'lateral', 'gated'"),
        ({"neuron": 5}, TypeError, "neuron: expected a kind of neuron.*found 5"),
        ({"network": (1, 2)}, TypeError, "network: expected what trace returns"),
        ({"exact": 1}, TypeError, "exact: expected True or False, found 1"),
        ({"neuron": Refining(), "pool": "gated"}, ValueError, "use pool='lateral'"),
    ],
)
def test_impossible_models_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        Model(**{"network": case(SMALL).network} | settings)


@pytest.mark.parametrize(
    "neuron", [Burst(5, signed=True), Burst(None), Refining(), Refining(None)]
)
def test_one_pass_is_refused_where_spikes_depend_on_more_than_sums(neuron):
    it = case(SMALL)
    with pytest.raises(ValueError, match="use simulate"):
        jb.direct(it.model(neuron), it.spiking(Burst(3)), it.inputs, (1, 2))


def test_times_of_one_pass_are_checked():
    it = case(SMALL)
    model = it.model(Burst(None, signed=True))
    for times, message in (
        ((), "times: expected at least one"),
        ((2, 0), "at least 1 .*found 0"),
    ):
        with pytest.raises(ValueError, match=message):
            jb.direct(model, it.spiking(Burst(3)), it.inputs, times)
