"""Laws of populations that stand for any function, and of products of two signals.

With refining neurons, without silence and limit, the network at step `t` is the user's
function with every population rounded to its quantum of that step, to the last bit.
"""

import functools
import warnings

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import nets
import numpy as np
import pytest
from flax import nnx
from jax import lax

from jaxburst.convert import convert, verify
from jaxburst.graph import Neuron, Product
from jaxburst.methods.anytime import Margins, decide
from jaxburst.methods.calibration import calibrate_mse
from jaxburst.methods.corrections import correct
from jaxburst.methods.direct import direct
from jaxburst.network import Refused, forward
from jaxburst.neurons import Burst, Refining
from jaxburst.normalise import normalise
from jaxburst.run import Model, simulate
from jaxburst.tracing import trace


@pytest.fixture(scope="module", autouse=True)
def double():
    with jax.enable_x64(True):  # types are mixed within Flax
        yield


STEPS = 8
IMAGES = nets.images(4, 4, 3)
TOKENS = nets.images(4, 6)
W = dict(zip("abcd", nets.weights((6, 12), (12, 6), (6, 4), (6, 6)), strict=True))


class Vit(nn.Module):
    """A block of a transformer on patches, with a token for the class."""

    @nn.compact
    def __call__(self, x):
        x = nn.Conv(6, (2, 2), (2, 2))(x).reshape(x.shape[0], -1, 6)
        token = self.param("token", nn.initializers.normal(), (1, 1, 6), x.dtype)
        x = jnp.concatenate([jnp.broadcast_to(token, (x.shape[0], 1, 6)), x], 1)
        x = x + self.param("place", nn.initializers.normal(), (1, 5, 6), x.dtype)
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(2)(h, h)
        x = x + nn.Dense(6)(nn.gelu(nn.Dense(12)(nn.LayerNorm()(x))))
        return nn.Dense(3)(nn.LayerNorm()(x)[:, 0])


class Mobile(nn.Module):
    """A block of MobileNetV3: hard-swish, depthwise, squeeze and excite."""

    @nn.compact
    def __call__(self, x):
        x = nn.hard_swish(nn.BatchNorm(True)(nn.Conv(4, (3, 3))(x)))
        y = nn.hard_swish(nn.Conv(4, (3, 3), feature_group_count=4)(x))
        gate = nn.relu(nn.Dense(3)(y.mean((1, 2))))
        y = y * nn.hard_sigmoid(nn.Dense(4)(gate))[:, None, None]
        return nn.Dense(3)((x + nn.Conv(4, (1, 1))(y)).mean((1, 2)))


class Causal(nnx.Module):
    """RMSNorm, attention that does not look ahead, and a gated linear unit."""

    def __init__(self):
        rngs, kind = nnx.Rngs(0), {"param_dtype": jnp.float64}
        self.norms = nnx.List([nnx.RMSNorm(6, rngs=rngs, **kind) for _ in range(3)])
        sizes = (6, 18), (6, 6), (6, 8), (6, 8), (8, 6), (6, 3)
        self.layers = nnx.List([nnx.Linear(*n, rngs=rngs, **kind) for n in sizes])
        seen = jnp.tril(jnp.ones((1, 4, 4), bool))
        self.mask = nnx.Variable(jnp.where(seen, 0, -jnp.inf))

    def __call__(self, x):
        qkv, out, gate, up, down, head = self.layers
        first, second, last = self.norms
        q, k, v = jnp.split(qkv(first(x)), 3, -1)
        scores = q @ k.transpose(0, 2, 1) / 6**0.5 + self.mask
        x = x + out(jax.nn.softmax(scores) @ v)
        h = second(x)
        x = x + down(jax.nn.silu(gate(h)) * up(h))
        return head(last(x)[:, -1])


class Groups(eqx.Module):
    """GroupNorm and SiLU, channels first, one image at a time."""

    first: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    last: eqx.nn.Linear

    def __init__(self):
        one, two = jax.random.split(jax.random.key(0))
        self.first = eqx.nn.Conv2d(4, 4, 3, padding=1, key=one, dtype=jnp.float64)
        self.norm = eqx.nn.GroupNorm(2, 4, dtype=jnp.float64)
        self.last = eqx.nn.Linear(4, 3, key=two, dtype=jnp.float64)

    def __call__(self, x):
        x = x + jax.nn.silu(self.norm(self.first(x)))
        return self.last(x.mean((1, 2)))


def of_linen(module, inputs):
    variables = module.init(jax.random.key(0), inputs)
    return module.apply, settled(variables), inputs


def settled(variables):
    """Random numbers instead of those of an initialisation, in double precision."""
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda x: (
            jnp.abs(x + 0.3 * rng.normal(size=x.shape))
            if x.ndim == 1
            else x + 0.1 * rng.normal(size=x.shape)
        ),
        jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), variables),
    )


def of_haiku():
    def net(x):
        h = hk.LayerNorm(-1, True, True)(hk.Linear(6)(x))
        scaled = hk.initializers.VarianceScaling()
        h = x + hk.MultiHeadAttention(2, 3, w_init=scaled, model_size=6)(h, h, h)
        return hk.Linear(3)(jax.nn.gelu(hk.Linear(6)(h), approximate=False).mean(1))

    found = hk.without_apply_rng(hk.transform(net))
    return found.apply, settled(found.init(jax.random.key(0), TOKENS)), TOKENS


def unit(x):
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


def cosine(w, x):
    q, k, v = x @ w["d"], x @ w["a"][:, :6], x @ w["a"][:, 6:]
    scores = 5 * unit(q) @ unit(k).transpose(0, 2, 1)
    return (jax.nn.softmax(scores) @ v).mean(1) @ w["c"]


def padded(w, inputs):
    """Attention and a mean over the tokens that are there."""
    x, ids = inputs
    h = jax.nn.relu(x @ w["d"])
    scores = jnp.where(ids[:, None] > 0, h @ w["d"] @ h.transpose(0, 2, 1), -1e9)
    there = (ids > 0).astype(x.dtype)[..., None]
    y = jax.nn.softmax(scores) @ (h @ w["a"][:, :6])
    return (y * there).sum(1) / there.sum(1) @ w["c"]


def recurrent(w, x):
    """A gated recurrent network over three tokens, unrolled."""

    def step(h, row):
        both = row @ w["a"] + h @ w["d"][:, :6] @ w["a"]
        gate, new = jax.nn.sigmoid(both[:, :6]), jnp.tanh(both[:, 6:])
        return h + gate * (new - h), None

    start = jnp.zeros((x.shape[0], 6), x.dtype)
    return lax.scan(step, start, x[:, :3].transpose(1, 0, 2))[0] @ w["c"]


def several(w, x):
    """Functions of one signal, side by side."""
    y = 3 * x @ w["d"]
    found = {
        "glu": jax.nn.glu(x @ w["a"]),
        "mish": jax.nn.mish(y),
        "hard tanh": jax.nn.hard_tanh(y),
        "softplus": jax.nn.softplus(y),
        "softsign": jax.nn.soft_sign(y),
        "elu": jax.nn.elu(y),
        "shrunk": jnp.where(abs(y) > 1, y, 0),
        "square": y**2,
        "mirrored": y * y[..., ::-1],
        "quotient": y / (1 + y * y),
        "normed relu": jax.nn.relu(jax.nn.standardize(y)),
        "clipped": unit(jnp.maximum(y, -0.5)),
        "normed sum": jax.nn.standardize(jnp.tanh(y) + jax.nn.silu(y @ w["d"])),
        "largest": jax.nn.logsumexp(y, axis=1, keepdims=True),
        "one after the other": lax.map(lambda row: jnp.tanh(row), y),
    }
    return {name: z @ w["c"] for name, z in found.items()}


def windows(w, x):
    """Maxima over signed numbers, and a gate that stands behind one."""
    h = jax.nn.silu(x @ w["d"])
    most = lax.reduce_window(h, -jnp.inf, lax.max, (1, 3, 1), (1, 1, 1), "SAME")
    gate = jax.nn.sigmoid(most.max(1) @ w["d"])
    return jnp.concatenate([h, most * gate[:, None]], -1).sum(1) @ w["b"] @ w["c"]


IDS = np.array([[1, 2, 0, 0], [3, 1, 1, 2], [2, 0, 0, 0]])
TABLE = {
    "vit": lambda: of_linen(Vit(), IMAGES),
    "mobile": lambda: of_linen(Mobile(), IMAGES),
    "causal": lambda: (Causal(), TOKENS),
    "groups": lambda: (Groups(), np.moveaxis(nets.images(4, 4, 4), -1, 1)),
    "haiku": of_haiku,
    "cosine": lambda: (cosine, W, TOKENS),
    "padded": lambda: (padded, W, (TOKENS, IDS)),
    "recurrent": lambda: (recurrent, W, TOKENS),
    "several": lambda: (several, W, TOKENS),
    "windows": lambda: (windows, W, TOKENS),
}


class Case:
    """A network, its weights, and thresholds of 5 quanta that are no round numbers."""

    def __init__(self, arguments):
        *self.traced, inputs = arguments
        self.inputs = jax.tree.map(
            lambda x: x.astype(np.float64) if x.dtype.kind == "f" else x, inputs
        )
        if len(self.traced) == 2:
            self.traced[1] = jax.tree.map(jnp.float64, self.traced[1])
        first = jax.tree.map(lambda x: x[:2], self.inputs)
        self.network = trace(*self.traced, first)
        own = self.network.variables
        self.variables = own if own is not None else self.traced[1]
        self.weights = nets.quick(self.network.weights)(self.variables)
        self.expected, self.activations = nets.quick(
            lambda w, x: forward(self.network, w, x)
        )(self.weights, self.inputs)
        self.thresholds = {
            name: jnp.asarray(abs(x).max() / 5.1234) + 1e-9
            for name, x in self.activations.items()
        }
        self.spiking = convert(self.network, self.variables, self.thresholds)

    def model(self, neuron):
        return Model(self.network, neuron)


@functools.cache
def case(name) -> Case:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Case(TABLE[name]())


EXACT = Refining(gamma=None, silence=0)


@pytest.mark.parametrize("name", TABLE)
def test_every_step_is_the_function_with_every_population_rounded(name):
    """Spike for spike; and the error falls as the quanta do."""
    it, model = case(name), case(name).model(EXACT)

    @nets.quick
    def both(spiking, inputs):
        record = it.network.neurons
        found = simulate(model, spiking, inputs, STEPS, record=record, schedule="step")

        def rounded(t):
            def neuron(node, drive, f):
                quantum = it.thresholds[node.name] / 2.0**t
                return quantum * jnp.floor(f(drive) / quantum + 0.5)

            return forward(it.network, spiking, inputs, neuron)

        return found, lax.map(rounded, jnp.arange(STEPS))

    found, (outputs, activations) = both(it.spiking, it.inputs)
    for name, spikes in found.spikes.items():
        sent = np.zeros(spikes.shape[1:])
        quanta = np.asarray(it.thresholds[name]) / 2.0 ** np.arange(STEPS)
        for t in range(STEPS):  # what is sent adds up to what stands
            sent = 2 * sent + np.asarray(spikes[t])
            expected = np.asarray(activations[name][t]) / quanta[t]
            np.testing.assert_array_equal(sent, np.round(expected))
        assert spikes.any()
    slopes = []
    pairs = zip(jax.tree.leaves(found.logits), outputs, it.expected, strict=True)
    for logits, other, expected in pairs:
        np.testing.assert_allclose(logits, other, rtol=1e-9, atol=1e-9)
        errors = np.abs(logits - np.asarray(expected)[None])
        errors = errors.reshape(STEPS, -1).mean(1)
        assert errors[0] > 1e-4 * np.abs(expected).mean()
        slopes.append(np.polyfit(np.arange(2, STEPS), np.log2(errors[2:]), 1)[0])
    assert abs(np.mean(slopes) + 1) < 0.35  # few images scatter


@pytest.mark.parametrize("name", ["padded", "windows"])
def test_direct_and_layer_order_say_the_same(name):
    it = case(name)
    at_once = direct(it.model(EXACT), it.spiking, it.inputs, (1, 3, STEPS))
    for schedule in ("step", "layer"):
        found = simulate(
            it.model(EXACT), it.spiking, it.inputs, STEPS, schedule=schedule
        ).logits
        times = np.array([0, 2, STEPS - 1])
        np.testing.assert_allclose(found[times], at_once, rtol=1e-9, atol=1e-9)


def test_the_ratio_is_the_slope():
    it = case("mobile")
    model = it.model(Refining(gamma=None, ratio=4, silence=0))
    found = simulate(model, it.spiking, it.inputs, 6).logits
    errors = np.abs(found - it.expected[0][None]).mean((1, 2))
    slope = np.polyfit(np.arange(2, 6), np.log2(errors[2:]), 1)[0]
    assert abs(slope + 2) < 0.5


@pytest.mark.parametrize("name", ["causal"])
def test_the_other_readings_know_functions_and_products(name):
    """verify, the paper's unit, thresholds, corrections, and the table."""
    it, neuron = case(name), Refining()
    network, spiking = it.network, it.spiking
    assert max(verify(network, it.variables, spiking, it.inputs).values()) < 1e-9
    plain = simulate(it.model(neuron), spiking, it.inputs, 4).logits
    other, scaled = normalise(network, spiking)
    again = simulate(Model(other, neuron), scaled, it.inputs, 4).logits
    np.testing.assert_allclose(again, plain, rtol=1e-9, atol=1e-9)
    better = correct(it.model(neuron), spiking, it.inputs, steps=2)
    corrected = simulate(it.model(neuron), better, it.inputs, 4).logits
    assert np.isfinite(corrected).all() and (corrected != plain).any()
    assert f"{network.products[0]}  " in str(network)


def test_one_population_for_each_module():
    vit, mobile = case("vit").network, case("mobile").network
    assert [n.split("/")[-1] for n in vit.neurons] == [
        *("norm0", "identity0", "identity0", "identity0", "softmax0", "identity0"),
        *("norm0", "gelu0", "norm0"),
    ]
    assert "LayerNorm_0/norm0" in vit.neurons and len(vit.products) == 2
    assert [n for n in mobile.neurons if "hard_silu" in n] == [
        *("hard_silu0", "hard_silu1"),
    ]
    assert len(mobile.products) == 1
    groups = case("groups").network
    assert groups.neurons == ("silu0",) and not groups.graph.of(Product)


def test_a_synapse_is_called_like_its_layer_and_has_its_parameters():
    """Also where a layer is called `value`, or has no bias; the others are sums."""
    module = nn.MultiHeadDotProductAttention(2, use_bias=False)
    apply, variables, tokens = of_linen(module, TOKENS[:, None])

    def function(variables, tokens):
        return jax.nn.relu(apply(variables, tokens))

    network = trace(function, variables, tokens)
    own = dict.fromkeys(("query", "key", "value", "out"), 36)
    assert network.program.parameters == own


def one_of(y):
    return jax.nn.softmax(y)[:, 0, :1]


def pieces(y):
    """Which of several is a place, but of no signal."""
    return jnp.select([y < 0, y < 1], [0.1 * y, y], jnp.ones_like(y))


ENDS = {  # a function, its name if it is set aside, and what comes out instead
    "chance": (lambda y: 1 / (1 + jnp.exp(-2 * y)), "sigmoid", lambda y: 2 * y),
    "class": (lambda y: jax.nn.softmax(y).argmax(-1), "argmax", lambda y: y),
    "exp": (jnp.exp, "exp", lambda y: y),
    "moved": (lambda y: jax.nn.sigmoid(y)[..., 0].T, "sigmoid", lambda y: y[..., 0].T),
    "reshaped": (
        lambda y: jax.nn.softmax(y).reshape(y.shape[0], -1),
        "softmax",
        lambda y: y.reshape(y.shape[0], -1),
    ),
    "by hand": (
        lambda y: y - jax.nn.logsumexp(y, -1, keepdims=True),
        "log_softmax",
        lambda y: y,
    ),
    "features": (jax.nn.silu, None, jax.nn.silu),
    "pieces": (pieces, None, pieces),
    "one of them": (one_of, None, one_of),
    "sum": (lambda y: y + jax.nn.sigmoid(y), None, lambda y: y + jax.nn.sigmoid(y)),
}


def test_what_is_set_aside():
    def ends(w, x):
        y = jax.nn.relu(x @ w["d"]) @ w["c"]
        return {name: end(y) for name, (end, _, _) in ENDS.items()}

    with pytest.warns(UserWarning, match="set aside"):
        network = trace(ends, W, TOKENS[:1])
    y = jax.nn.relu(TOKENS @ W["d"]) @ W["c"]
    for i, name in enumerate(sorted(ENDS)):
        _, what, expected = ENDS[name]
        assert network.aside[i].what == what if what else i not in network.aside
        found = network(W, TOKENS)[name]
        np.testing.assert_allclose(found, expected(y), rtol=1e-5, atol=1e-5)


def test_burst_refuses_by_name():
    it = case("mobile")
    with pytest.raises(ValueError, match=r"hard_silu0 stands for another.*Refining"):
        it.model(Burst())

    def gate(w, x):
        h = jax.nn.relu(x @ w["d"])
        return h * jax.nn.relu(h @ w["d"]) @ w["c"]

    network = trace(gate, W, TOKENS[:1])
    with pytest.raises(ValueError, match=r"mul0 is a product of two signals"):
        Model(network, Burst())


def test_what_stays_refused():
    """By name, with the reason: what no population could stand for."""

    def behind(function):
        return lambda w, x: function(jnp.tanh(x @ w["d"])) @ w["c"]

    for function, words in (
        (jnp.floor, "floor.*rounding"),
        (jnp.sign, "sign.*rounding"),
        (lambda y: jnp.sort(y), "sort.*end of a network"),
        (
            lambda y: lax.while_loop(lambda z: z.sum() < 9, lambda z: 2 * z, y),
            "while.*depends on the data",
        ),
        (lambda y: y * y.mean(0, keepdims=True), "mixes the images"),
    ):
        with pytest.raises(Refused, match=words):
            trace(behind(function), W, TOKENS[:2])


def test_thresholds_describe_signed_activations_best():
    """Against all of the 100 candidates, one by one."""
    it = case("vit")
    name = it.network.neurons[0]
    found = calibrate_mse(it.network, it.variables, it.inputs, Burst(3), per="layer")[
        name
    ]
    x = np.asarray(it.activations[name])
    assert x.min() < 0 < x.max()
    candidates = np.abs(x).max() / 3 * np.linspace(0.01, 1, 100)
    errors = [((t * np.clip(np.rint(x / t), -3, 3) - x) ** 2).sum() for t in candidates]
    np.testing.assert_allclose(found, candidates[np.argmin(errors)], rtol=1e-6)


# A second derivation: one block of attention in NumPy, spike by spike.


def attention(w, x):
    h = jax.nn.standardize(x @ w["d"], epsilon=1e-3)
    q, k, v = h @ w["a"][:, :6], h @ w["a"][:, 6:], h @ w["b"][:6]
    return jax.nn.softmax(q @ k.transpose(0, 2, 1) / 2) @ v @ w["c"]


class Oracle:
    """Refining neurons by the equations of their docstring, with a limit, silence."""

    def __init__(self, theta, neuron):
        self.theta, self.neuron, self.sent, self.spikes = theta, neuron, 0, []

    def __call__(self, y, t):
        """The change of what has been sent, in activations, for the activation `y`."""
        n, quantum = self.neuron, self.theta / self.neuron.ratio**t
        before = self.neuron.ratio * self.sent
        away = y / quantum - before
        spikes = np.floor(y / quantum + 0.5) - before
        if t:
            spikes = np.where(np.abs(away) <= n.silence, 0, spikes)
        if n.gamma is not None:
            spikes = np.clip(spikes, -n.gamma, n.gamma)
        self.sent = before + spikes
        self.spikes.append(spikes)
        return spikes * quantum


@pytest.mark.parametrize("neuron", [EXACT, Refining(3, 2, 0.6), Refining(5, 3, 0.9)])
def test_attention_spike_for_spike(neuron):
    x = TOKENS.astype(np.float64)
    w = {name: np.asarray(value, np.float64) for name, value in W.items()}
    network = trace(attention, w, x[:1])
    norm, *qkv, soft, out = network.neurons
    assert len(qkv) == 3 and len(network.products) == 2
    thetas = dict.fromkeys(network.neurons, 0.2345) | {soft: 0.0678}
    found = simulate(
        Model(network, neuron), convert(network, w, thetas), x, 6,
        record=network.neurons,
    )  # fmt: skip
    cells = {name: Oracle(thetas[name], neuron) for name in network.neurons}
    drive = x @ w["d"]
    centred = drive - drive.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-3)
    kernels = dict(zip(qkv, (w["a"][:, :6], w["a"][:, 6:], w["b"][:6]), strict=True))
    charge = dict.fromkeys(qkv, 0)  # exact sums of what arrived
    q = k = v = a = scores = mixed = logits = 0
    for t in range(6):
        h = cells[norm](normed, t)
        for name, kernel in kernels.items():
            charge[name] = charge[name] + h @ kernel
        dq, dk, dv = (cells[name](charge[name], t) for name in qkv)
        q, k, v = q + dq, k + dk, v + dv
        # Of a product of two: (q + Δq) Δk + Δq k.
        scores = scores + q @ dk.swapaxes(1, 2) / 2 + dq @ (k - dk).swapaxes(1, 2) / 2
        e = np.exp(scores - scores.max(-1, keepdims=True))
        da = cells[soft](e / e.sum(-1, keepdims=True), t)
        a = a + da
        mixed = mixed + a @ dv + da @ (v - dv)
        logits = logits + cells[out](mixed, t) @ w["c"]
        np.testing.assert_allclose(found.logits[t], logits, rtol=0, atol=1e-9)
    for name, cell in cells.items():
        assert cell.spikes[0].any()
        np.testing.assert_array_equal(found.spikes[name], np.stack(cell.spikes))


def test_graphs_with_functions_are_static_and_equal():
    again = Case(TABLE["mobile"]()).network
    assert again == case("mobile").network and hash(again) == hash(again)
    inner = [n.role.function for n in again.graph.of(Neuron) if n.role.function]
    assert len(again.graph.weighing) > len(again.graph.nodes)
    assert all(graph.of(Neuron, Product) or graph.nodes for graph in inner)


def test_images_that_stop_leave_products_too():
    """Anytime inference: the batch shrinks, and what remains is what it was."""
    it = case("vit")
    model, inputs = it.model(Refining()), np.concatenate([it.inputs] * 3)
    logits = simulate(model, it.spiking, inputs, 5).logits
    ordered = np.sort(np.asarray(logits), -1)
    margins = ordered[..., -1] - ordered[..., -2]
    wanted = np.array([np.median(margins[0]), np.median(margins[1]), 0.3, 0, 0])
    steps = 1 + (margins >= wanted[:, None]).argmax(0)
    assert len(set(steps)) > 1
    found = decide(model, it.spiking, inputs, Margins(wanted))
    np.testing.assert_array_equal(found.steps, steps)
    last = logits[steps - 1, np.arange(len(steps))]
    np.testing.assert_array_equal(found.classes, last.argmax(-1))


def crowded(w, x):
    """Tokens before images, and merged with them, as PyTorch's attention has them."""
    h = jax.nn.gelu(x @ w["d"]).transpose(1, 0, 2)
    y = jax.nn.silu(h.reshape(-1, 6) @ w["a"]) @ w["b"]
    return (y.reshape(4, -1, 6) + h).mean(0) @ w["c"]


def test_images_that_stand_behind_tokens():
    """In both orders of the work, and image by image."""
    it = Case((crowded, W, TOKENS))
    assert max(it.network.graph.ahead.values()) == 4
    model = it.model(Refining())
    runs = [
        simulate(model, it.spiking, it.inputs, 4, schedule=kind, record="silu0")
        for kind in ("step", "layer")
    ]
    for i in range(len(TOKENS)):
        one = it.inputs[i : i + 1]
        alone = simulate(model, it.spiking, one, 4, record="silu0")
        for run in runs:
            found = run.logits[:, i], run.spikes["silu0"][:, i]
            expected = alone.logits[:, 0], alone.spikes["silu0"][:, 0]
            for left, right in zip(found, expected, strict=True):
                np.testing.assert_allclose(left, right, rtol=0, atol=1e-9)
            for name, counts in alone.events.items():
                np.testing.assert_array_equal(run.events[name][:, i], counts[:, 0])
    margins = Margins(np.array([0.05, 0.02, 0.0]))
    many = np.concatenate([it.inputs] * 3)
    found = decide(model, it.spiking, many, margins)
    for i in range(len(many)):
        alone = decide(model, it.spiking, many[i : i + 1], margins)
        assert found.steps[i] == alone.steps[0]
        assert found.classes[i] == alone.classes[0]
        for name, counts in alone.events.items():
            np.testing.assert_array_equal(found.events[name][:, i], counts[:, 0])
