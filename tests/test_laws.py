"""The laws of conversion, asked of every network of `nets`.

1. Charge: `v_T + θ Σn = v_0 + ΣI`.
2. Rate: of a constant `0 <= c < γθ`, `|θ N_T / T - c| <= θ / T`.
3. Pool: what lateral pooling passes adds up to the pool of the summed inputs.
4. Bursts of γ for T steps are integrate-and-fire on `I / γ` for γT steps.
5. What is affine in the input up to the first neuron is a constant current.
6. Signed and unbounded: `N(t) = max(0, floor((v_0 + ΣI) / θ))`, from one pass.
7. Unsigned and unbounded: the running maximum, from 0, of `floor((v_0 + ΣI) / θ)`.
8. Prefix and batch: shorter runs are parts of longer ones, images are alone.
9. Limit: T times the error stays flat under lateral pooling, grows under gating.
10. Fold: the traced network is the user's function.
11. Same function, other spelling: the same spikes.

2, 4 and 7 are about one layer, in `test_neurons`.
"""

import dataclasses
import functools

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import nets
import numpy as np
import oracle
import pytest
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir
from nets import LAYERS, TABLE, case

import jaxburst.tracing as tracing
from jaxburst.convert import convert, verify
from jaxburst.graph import RELU, Synapse, Wire, over
from jaxburst.graph import Neuron as Population
from jaxburst.methods.direct import direct
from jaxburst.network import Refused, forward
from jaxburst.neurons import Burst, Neuron, Refining, Threshold
from jaxburst.run import Model, Plan, infer, simulate
from jaxburst.streams import stream

pytestmark = pytest.mark.usefixtures("double")

STEPS = 512
SOME = ("nested", "inception", "averages", "maxima", "capped", "norm after relu")
SOME += ("several", "spellings", "channels first")
HALF = ("bfloat16", "float16")


@pytest.fixture(scope="module")
def double():
    with jax.enable_x64(True):
        yield


def precision(name: str) -> float:
    """What rounding may do, over the largest number."""
    kind = next(iter(case(name).activations.values())).dtype
    return 1e-12 if kind == np.float64 else 1e-5


def close(found, expected, tolerance: float) -> None:
    size = max(np.abs(expected).max(), 1e-6)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * size)


def grown(logits, expected) -> np.ndarray:
    """T times the largest error, `[T]`."""
    errors = np.abs(logits - expected).reshape(len(logits), -1).max(1)
    return errors * np.arange(1, len(logits) + 1)


def at_rates(network, spiking, inputs, rates):
    """Outputs and drives of the network in which every population gives its rate."""
    drives = {}

    def rate(node, x, f):
        drives[node.name] = x
        return rates[node.name]

    return forward(network, spiking, inputs, rate)[0], drives


# Fold, and the three of time: one long run of each network serves them all.


@pytest.mark.parametrize("name", TABLE)
def test_the_network_is_the_function_and_spikes_approach_it(name):
    it = case(name)
    assert all(0 not in node.image_shape for node in it.network.graph.nodes)
    rounding = 0.02 if name in HALF else precision(name)
    for one, other in zip(it.traced, it.outputs, strict=True):
        close(one, other, rounding)  # law 10

    spiking = it.spiking(Burst(5), share=1.01)  # no neuron saturates
    trace = it.run(it.model(), spiking, STEPS)
    for spikes in trace.spikes.values():
        assert spikes.max() > 0, "every population fires"
        assert (spikes == np.round(spikes)).all()

    outputs = jax.tree.leaves(trace.logits)
    for logits, expected in zip(outputs, it.traced, strict=True):
        distance = grown(logits, expected)
        least, most = (0.1, 1.5) if name in LAYERS else (0.02, 2)
        assert distance[:32].max() > least * np.abs(expected).max(), "law 9"
        assert distance.max() < most * distance[:32].max()

    # Laws 1 and 3, and the readout: after t steps the network is the conventional one
    # in which every population gives its rate.
    totals = {path: np.cumsum(n, 0, np.float64) for path, n in trace.spikes.items()}
    reading = nets.quick(at_rates, 0)
    for t in (1, 7, STEPS):
        rates = {
            path: np.asarray(over(spiking[path].theta, it.activations[path]))
            * it.placed(path, n[t - 1] / t).astype(it.activations[path].dtype)
            for path, n in totals.items()
        }
        found, drives = reading(it.network, spiking, it.inputs, rates)
        for logits, expected in zip(outputs, found, strict=True):
            close(logits[t - 1], jax.device_get(expected), 20 * precision(name))
        for path, drive in jax.device_get(drives).items():
            theta, initial, _ = (np.asarray(over(x, drive)) for x in spiking[path])
            start = theta * initial
            left = it.placed(path, trace.potentials[path][t - 1]) + t * rates[path]
            close(left, start + t * drive, STEPS * precision(name))

    for path, spikes in trace.spikes.items():
        counted = np.abs(spikes).sum(tuple(range(2, spikes.ndim)))
        np.testing.assert_array_equal(trace.events[path], counted)


NEURONS = Burst(5), Burst(4, signed=True), Refining(), Burst(2, allowance=2)


@pytest.mark.parametrize("i, name", list(enumerate(SOME)))
def test_prefix_and_batch(i, name):
    """Law 8: a shorter run of other batches, and in another order of the work: blocks
    of four steps, which leave a rest, and images in parts. And law 5."""
    it, steps, neuron = case(name), 6, NEURONS[i % len(NEURONS)]
    spiking = it.spiking(Burst(3), "channel")
    order = np.array([2, 0, 1, 0, 1, 2])
    swapped = jax.tree.map(lambda x: x[order], it.inputs)
    model = it.model(neuron)
    trace = it.run(model, spiking, 2 * steps, schedule=Plan(1, 3))
    again = it.run(model, spiking, steps, inputs=swapped, schedule=Plan(4, 2))
    assert all(spikes.any() for spikes in trace.spikes.values())
    for path, spikes in trace.spikes.items():
        np.testing.assert_array_equal(again.spikes[path], spikes[:steps, order])
        potentials = trace.potentials[path][:steps, order]
        close(again.potentials[path], potentials, 10 * precision(name))
    for path, events in trace.events.items():
        np.testing.assert_array_equal(again.events[path], events[:steps, order])
    outputs = [jax.tree.leaves(found.logits) for found in (again, trace)]
    for one, other in zip(*outputs, strict=True):
        close(one, other[:steps, order], precision(name))
    if neuron == Burst(5):
        closed_form(it, spiking, trace.spikes)


def closed_form(it, spiking, spikes):
    """Law 5: what sees a constant current sends what `N(t)` says, without a loop."""
    graph, seen = it.network.graph, 0
    for node in graph.of(Population):
        if node.inputs[0] in graph.dynamic:
            continue
        current = it.activations[node.name]  # a negative one never fires: 0 will do
        theta = np.asarray(over(spiking[node.name].theta, current))
        for t in range(1, 13):
            most = np.floor(t * (node.role.cap or np.inf) / theta)
            expected = np.floor(0.5 + t * current / theta)
            expected = np.clip(expected, 0, np.minimum(5 * t, most))
            sent = it.placed(node.name, spikes[node.name][:t].sum(0))
            np.testing.assert_array_equal(sent, expected)
            seen += (0 < expected).sum()
    assert seen > 10


SUMS = Burst(None, signed=True), Refining(None, 2, 0), Refining(None, 3, 0)


@pytest.mark.parametrize("i, name", list(enumerate(SOME)))
def test_one_pass_gives_the_outputs_of_any_time(i, name):
    """Law 6, of bursts; and refining neurons without silence and limit are the
    quantised network at every step. With corrections of each step, too."""
    it, neuron = case(name), SUMS[i % len(SUMS)]
    spiking = dict(it.spiking(Burst(3), "channel", 0.37))
    rng = np.random.default_rng(0)
    for path in it.network.neurons:
        theta = np.asarray(spiking[path].theta)
        bias = 0.05 * rng.normal(size=(3, *theta.shape)) * theta
        spiking[path] = spiking[path]._replace(bias=jnp.asarray(bias, theta.dtype))
    times = (1, 2, 5, 12) if neuron.repeats else (1, 2, 4)
    model = it.model(neuron)
    trace = it.run(model, spiking, times[-1])
    assert all(count.any() for count in trace.events.values())
    passes = nets.quick(functools.partial(direct, times=times), 0)
    found = jax.tree.leaves(jax.device_get(passes(model, spiking, it.inputs)))
    rows = np.array(times) - 1
    for one, other in zip(found, jax.tree.leaves(trace.logits), strict=True):
        assert np.ptp(other[rows], axis=0).max() > 1e-3
        close(one, other[rows], 1e3 * precision(name))


# Every spike, derived a second way.

ORACLE = {
    "integrate and fire": (Burst(1), "layer", "lateral"),
    "burst": (Burst(5), "channel", "lateral"),
    "unbounded, signed": (Burst(None, signed=True), "layer", "lateral"),
    "unbounded": (Burst(None), "channel", "lateral"),
    "signed": (Burst(2, signed=True), "channel", "lateral"),
    "gated": (Burst(5), "layer", "gated"),
    "allowance": (Burst(2, allowance=1), "layer", "lateral"),
}
EVERYWHERE = ("integrate and fire", "burst", "unbounded, signed", "unbounded")
CASES = [(name, setting) for name in LAYERS for setting in EVERYWHERE]
CASES += [(name, "signed") for name in ("residual first", "nested", "windows")]
CASES += [(name, "gated") for name in ("vgg", "windows", "residual first")]
CASES += [(name, "allowance") for name in ("vgg", "resnet")]


@pytest.mark.parametrize("name, setting", CASES)
def test_every_spike_is_the_oracles(name, setting):
    it, steps = case(name), 12
    layers, _ = LAYERS[name]
    neuron, per, pool = ORACLE[setting]
    for initial in (0.0, 0.5):
        thresholds = it.thresholds(neuron, per)
        flat = [
            np.ravel(value) if value.ndim else value for value in thresholds.values()
        ]
        logits, spikes, pools = oracle.snn(
            *(layers, it.variables, it.inputs, steps),
            *(neuron, pool, flat, initial),
        )
        assert all(count.any() for count in spikes), "every layer fires"
        most = max(count.max() for count in spikes)
        assert most == neuron.gamma if neuron.gamma else most > 1, "the cap binds"
        assert (min(count.min() for count in spikes) < 0) == neuron.counts

        spiking = it.spiking(neuron, per, initial)
        trace = it.run(it.model(neuron, pool), spiking, steps)
        for path, expected in zip(it.network.neurons, spikes, strict=True):
            np.testing.assert_array_equal(trace.spikes[path], expected)
        for path, expected in zip(it.network.pools, pools, strict=True):
            counted = np.abs(expected).sum(tuple(range(2, expected.ndim)))
            np.testing.assert_array_equal(trace.events[path], counted)
        np.testing.assert_allclose(trace.logits, logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["nnx", "equinox", "haiku", "plain"])
@pytest.mark.parametrize("name", ["vgg", "resnet"])
def test_other_spellings_spike_alike(name, how):
    """Law 11, across frameworks and transformations."""
    it, neuron = case(name), Burst(5)
    layers, _ = LAYERS[name]
    arguments = nets.spelled(how, layers, it.variables)
    network = tracing.trace(*arguments, it.inputs[:1])
    variables = arguments[1] if len(arguments) == 2 else network.variables
    assert len(network.neurons) == len(it.network.neurons)
    thresholds = it.thresholds(neuron)
    renamed = dict(zip(network.neurons, thresholds.values(), strict=True))
    spiking = convert(network, variables, renamed)
    found = it.run(Model(network, neuron), spiking, 12)
    expected = it.run(it.model(neuron), it.spiking(neuron), 12)
    for path, own in zip(network.neurons, it.network.neurons, strict=True):
        one, other = found.spikes[path], expected.spikes[own]
        if how == "equinox" and one.ndim == 5:  # channels in front
            one = one.transpose(0, 1, 3, 4, 2)
        np.testing.assert_array_equal(one, other)
    close(found.logits, expected.logits, 1e-12)


def test_gating_keeps_its_error():
    """Law 9's other half: where members of a window tie, as in an enlarged image, gated
    pooling adds up what they send in turn, for ever; lateral inhibition does not."""

    def net(w, x):
        x = nn.max_pool(jax.nn.relu(x @ w[0]), (2, 2), (2, 2))
        return x.reshape(x.shape[0], -1) @ w[1]

    rng = np.random.default_rng(0)
    w = rng.normal(size=(2, 4)), rng.normal(size=(36, 3))
    x = rng.normal(size=(4, 3, 3, 2)).repeat(2, 1).repeat(2, 2)
    network = tracing.trace(net, w, x[:1])
    theta = np.maximum(x @ w[0], 0).max() / 5
    spiking = convert(network, w, {"relu0": theta})
    start = jnp.asarray(rng.uniform(0, 1, (6, 6, 4)))  # v_0 differs: they take turns
    spiking["relu0"] = spiking["relu0"]._replace(initial=start)
    expected, how = jax.device_get(net(w, x)), {}
    for pool in ("lateral", "gated"):
        logits = simulate(Model(network, Burst(5), pool), spiking, x, STEPS).logits
        how[pool] = grown(jax.device_get(logits), expected)
    lateral, gated = how["lateral"], how["gated"]
    assert 0.1 < lateral.max() < 2 * lateral[:32].max()
    assert gated[511] > 20 * lateral.max()
    assert gated[511] == pytest.approx(2 * gated[255], rel=0.1)


# Conversion is a pure function.


@pytest.mark.parametrize("name", ["vgg", "several", "bfloat16"])
def test_verify_compares_with_the_function(name):
    it = case(name)
    spiking = it.spiking(Burst(5))
    worst = verify(it.network, it.variables, spiking, it.inputs)
    size = max(np.abs(x).max() for x in it.outputs)
    rounding = 0.02 if name in HALF else precision(name)
    assert len(worst) == len(it.outputs)
    assert all(value <= rounding * size for value in worst.values())
    path = it.network.synapses[0]
    wrong = spiking[path]._replace(kernel=1.5 * spiking[path].kernel)
    worst = verify(it.network, it.variables, spiking | {path: wrong}, it.inputs)
    assert max(worst.values()) > 0.1 * size


@pytest.mark.parametrize("neuron", [Burst(5), Refining()])
def test_whole_numbers_that_are_given_out_stay_what_they_are(neuron):
    """An image's number beside its logits, at every step."""

    def net(w, inputs):
        x, number = inputs
        return jax.nn.relu(x @ w) @ w, number, number > 3, x

    x, number = np.ones((5, 2), np.float32), np.arange(1, 6)
    network = tracing.trace(net, np.eye(2, dtype=np.float32), (x[:1], number[:1]))
    spiking = convert(network, np.eye(2, dtype=np.float32), {"relu0": np.float32(0.3)})
    found = simulate(Model(network, neuron), spiking, (x, number), 6)
    assert found.events["relu0"].any()
    for one, expected in zip(found.logits[1:], (number, number > 3, x), strict=True):
        np.testing.assert_allclose(one, [expected] * 6, rtol=1e-6)
    frames = np.stack([x, 2 * x]), np.stack([number, number[::-1]])
    found, _ = stream(Model(network, neuron), spiking, frames)
    if not neuron.repeats:
        np.testing.assert_array_equal(found.logits[1], frames[1])


@pytest.mark.parametrize("end", ["softmax", "log_softmax", "falling", "argmax"])
def test_verify_puts_back_what_was_set_aside(end):
    """Chances are compared; places of the largest cannot be."""
    ends = {"falling": lambda y: jax.nn.sigmoid(1 - 2 * y), "argmax": jnp.argmax}
    last = ends.get(end) or getattr(jax.nn, end)

    def net(w, x):
        return jax.vmap(last)(jax.nn.relu(x @ w[0]) @ w[1])

    rng = np.random.default_rng(0)
    w = [rng.normal(size=(4, 4)).astype(np.float32) for _ in "ab"]
    x = rng.normal(size=(8, 4)).astype(np.float32)
    with pytest.warns(UserWarning, match="set aside"):
        network = tracing.trace(net, w, x[:1])
    spiking = convert(network, w, {"relu0": 1.0})
    if end == "argmax":
        with pytest.raises(ValueError, match=r"every output \(argmax\)"):
            verify(network, w, spiking, x)
        return
    assert verify(network, w, spiking, x)["logits"] < 1e-5
    wrong = spiking["1"]._replace(kernel=-spiking["1"].kernel)
    assert verify(network, w, spiking | {"1": wrong}, x)["logits"] > 0.1


def test_conversion_under_jit_vmap_and_grad():
    it = case("vgg")
    thresholds = it.thresholds(Burst(5))
    one = convert(it.network, it.variables, thresholds)
    jitted = jax.jit(convert, static_argnums=0)(it.network, it.variables, thresholds)
    chex.assert_trees_all_close(jitted, one, rtol=1e-12)

    seeds = jnp.arange(1.0, 4.0)
    many = jax.tree.map(lambda x: jnp.tensordot(seeds, x, 0), it.variables)
    stacked = jax.vmap(convert, (None, 0, None))(it.network, many, thresholds)
    third = jax.tree.map(lambda x: x[2], many)
    alone = convert(it.network, third, thresholds)
    chex.assert_trees_all_close(
        jax.tree.map(lambda x: x[2], stacked), alone, rtol=1e-12
    )
    chex.assert_tree_shape_prefix(stacked, (3,))

    def loss(variables, of):
        spiking = convert(it.network, variables, thresholds)
        return (of(spiking) ** 2).sum()

    def traced(spiking):
        return forward(it.network, spiking, it.inputs)[0][0]

    found = jax.grad(loss)(it.variables, traced)
    expected = jax.grad(lambda v: (it.function(v, it.inputs) ** 2).sum())(it.variables)
    chex.assert_trees_all_close(found, expected, rtol=1e-9, atol=1e-12)


def test_a_network_is_static_and_compiles_once():
    it = case("resnet")
    again = tracing.trace(it.function, it.variables, it.inputs[:1])
    assert again == it.network and hash(again) == hash(it.network)
    assert again != case("vgg").network
    assert it.model() == it.model(Burst(5)) and it.model() != it.model(Burst(4))

    @chex.assert_max_traces(n=1)
    def logits(model, spiking, inputs):
        return infer(model, spiking, inputs, 3)

    chex.clear_trace_counter()
    run = nets.quick(logits, 0)
    spiking = it.spiking(Burst(5))
    for scale in (1.0, 2.0, 3.0):
        run(Model(again, Burst(5)), spiking, scale * it.inputs)


def test_networks_that_differ_in_a_long_constant_are_not_equal():
    rng = np.random.default_rng(0)
    table = rng.normal(size=(40, 50))
    other = table.copy()
    other[20, 20] += 1

    def of(table):
        def function(w, x):
            return jax.nn.relu(x @ (w * table)) @ w.T

        return tracing.trace(function, np.ones((40, 50)), np.ones((1, 40)))

    assert of(table) == of(table) and of(table) != of(other)


def test_lowering_for_a_tpu_has_no_winograd():
    def net(w, x):
        for kernel in w:
            x = jax.nn.relu(
                lax.conv_general_dilated(
                    x,
                    kernel,
                    (1, 1),
                    "SAME",
                    dimension_numbers=("NHWC", "HWIO", "NHWC"),
                )
            )
        return x.sum((1, 2))

    with jax.enable_x64(False):
        w = [np.ones((3, 3, 64, 64), np.float32)] * 2
        x = np.ones((2, 16, 16, 64), np.float32)
        network = tracing.trace(net, w, x[:1])
        spiking = convert(network, w, dict.fromkeys(network.neurons, 1.0))

        def count(platform):
            def run(x):
                return infer(Model(network), spiking, x, 4, platform=platform)

            text = jax.jit(run).trace(x).lower(lowering_platforms=(platform,)).as_text()
            return text.count("stablehlo.convolution"), text.count("dot_general")

        assert count("tpu")[1] == 0
        assert count("tpu")[0] == 2
        if jax.default_backend() == "cpu":
            assert count("cpu")[1] > 0, "Winograd's, where it pays"


# From outside.


def primitive(name: str, definition):
    """A primitive of a user, defined by other JAX."""
    found = Primitive(name)
    found.def_impl(definition)
    shape = functools.partial(jax.eval_shape, definition)
    found.def_abstract_eval(lambda *avals: shaped(shape(*avals), *avals))
    mlir.register_lowering(found, mlir.lower_fun(definition, multiple_results=False))
    return found


def shaped(like, *_):
    return jax.core.ShapedArray(like.shape, like.dtype)


def test_a_wire_and_a_synapse_from_outside():
    """Two primitives that the library has never seen; names and one line each."""
    reverse = primitive("reverse_channels", lambda x: x[..., ::-1])
    weave = primitive("weave", lambda x, w: x @ (w * w))

    def net(product, turn):
        def function(w, x):
            x = jax.nn.relu(turn(product(x, w["in"])))
            return product(turn(x), w["out"]["kernel"])

        return function

    own = net(weave.bind, reverse.bind)
    rng = np.random.default_rng(0)
    w = {"in": rng.normal(size=(4, 5)), "out": {"kernel": rng.normal(size=(5, 3))}}
    x = rng.normal(size=(3, 4))
    with pytest.raises(Refused, match="weave"):
        tracing.trace(own, w, x[:1])
    roles = {"weave": Synapse, "reverse_channels": Wire}
    found = tracing.trace(own, w, x[:1], roles=roles)
    known = tracing.trace(net(lambda x, w: x @ (w * w), lambda x: x[:, ::-1]), w, x[:1])
    assert found.synapses == known.synapses == ("in", "out")
    for neuron in (Burst(5), Refining()):
        run = [
            simulate(Model(n, neuron), convert(n, w, {"relu0": 0.5}), x, 8)
            for n in (found, known)
        ]
        assert run[0].events["relu0"].any()
        chex.assert_trees_all_close(*run, rtol=1e-12)
    with pytest.raises(ValueError, match=r"roles\['weave'\] must be graph.Wire"):
        tracing.trace(own, w, x[:1], roles={"weave": Neuron})


@dataclasses.dataclass(frozen=True)
class Leaky(Neuron):
    """A neuron of a user: integrates, leaks a little, and fires once at most."""

    leak: float = 0.0

    def rest(self, threshold, shape, dtype, f=RELU):
        return over(
            threshold.theta * threshold.initial, jnp.zeros(shape, dtype)
        ) + 0 * (jnp.zeros(shape, dtype))

    def step(self, threshold, state, current, t, f=RELU):
        charged = (1 - self.leak) * state + current
        spikes = (charged >= over(threshold.theta, charged)).astype(current.dtype)
        return charged - over(threshold.theta, charged) * spikes, spikes

    def potential(self, threshold, state):
        return state

    @property
    def most(self):
        return 1

    def heard(self, threshold, state, spikes, t):
        return over(threshold.theta, spikes) * spikes


@pytest.mark.parametrize("name", ["resnet", "maxima"])
def test_a_neuron_from_outside(name):
    """Without a leak it is the integrate-and-fire neuron; with one it is not."""
    it = case(name)
    spiking = it.spiking(Burst(1))
    assert all(isinstance(spiking[path], Threshold) for path in it.network.neurons)
    own, known, other = (
        it.run(it.model(neuron), spiking, 12).spikes
        for neuron in (Leaky(), Burst(1), Leaky(0.2))
    )
    chex.assert_trees_all_equal(own, known)
    assert any((own[path] != other[path]).any() for path in own)
