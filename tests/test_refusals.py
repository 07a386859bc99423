"""What has no spiking meaning is refused by name; nothing is converted wrongly.

A refusal names the primitive, the nearest layer and the user's own line. Beside it
stand functions that look alike and are piecewise linear: they must be right.
"""

import inspect
import re
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
from jax.ad_checkpoint import checkpoint_name

import jaxburst.tracing as tracing
from jaxburst.convert import convert, verify
from jaxburst.energy import macs
from jaxburst.network import Refused, forward
from jaxburst.neurons import Burst, Refining
from jaxburst.run import Model, simulate

relu = jax.nn.relu
W = dict(
    zip("abcsm", nets.weights((6, 8), (8, 8), (8, 5), (1, 8), (1, 8)), strict=True)
)
X = nets.images(6)


def hidden(w, x):
    return relu(x @ w["a"])


def end(w, y):
    return relu(y @ w["b"]) @ w["c"]


def inside(function):
    """A network with a function of `(weights, drive)` in its middle."""
    return lambda w, x: end(w, function(w, 2 * x @ w["a"]))


def behind(function):
    """The same behind a ReLU."""
    return lambda w, x: end(w, function(w, hidden(w, x)))


def refusal(function, variables=W, inputs=X) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(Refused) as found:
            tracing.trace(function, variables, inputs[:1])
    return str(found.value)


@jax.custom_vjp
def quantised(x):
    return jnp.round(4 * x) / 4


quantised.defvjp(lambda x: (quantised(x), None), lambda _, g: (g,))


def merged(w, x):
    """The batch behind the patches."""
    patches = x.reshape(-1, 2, 3).transpose(1, 0, 2).reshape(-1, 3)
    return end(w, relu(patches @ w["a"][:3]).reshape(2, -1, 8).mean(0))


def twice(w, x):
    both = jnp.concatenate([x, -x])
    return sum(jnp.split(end(w, hidden(w, both)), [x.shape[0]]))


stop = lax.stop_gradient
REFUSED = {
    "fft": (behind(lambda w, y: jnp.fft.fft(y).real), "complex"),
    # rounding and comparison, which have a derivative of 0
    "floor": (inside(lambda w, y: jnp.floor(y)), "round"),
    "straight through": (inside(lambda w, y: y + stop(jnp.round(y) - y)), "round"),
    "custom rounding": (inside(lambda w, y: quantised(y)), "round"),
    "sign": (inside(lambda w, y: jnp.sign(y)), "sign"),
    "remainder": (behind(lambda w, y: y % 1), "rem"),
    "whole inputs": (
        lambda w, x: end(w, hidden(w, x.astype(int).astype(x.dtype))),
        "int",
    ),
    "eight bits": (
        behind(lambda w, y: y.astype(jnp.float8_e4m3fn).astype(y.dtype)),
        "few bits",
    ),
    "largest, one-hot": (
        behind(lambda w, y: y * jax.nn.one_hot(y.argmax(-1), 8)),
        "argmax",
    ),
    "truths": (lambda w, x: end(w, hidden(w, x)) > 0, "gives bool"),
    "sorted": (behind(lambda w, y: jnp.sort(y)), "sort"),
    "scatter max": (behind(lambda w, y: y.at[:, 3].max(y[:, 1])), "scatter"),
    # control flow
    "while": (
        lambda w, x: lax.while_loop(
            lambda y: y.sum() < 9, lambda y: relu(y @ w["b"]) + 1, hidden(w, x)
        ),
        "depends on the data",
    ),
    "python if": (
        lambda w, x: end(w, x @ w["a"]) if x.sum() > 0 else x,
        "Python code",
    ),
    # images of a batch that are not treated alike
    "mean of the batch": (behind(lambda w, y: y - y.mean(0, keepdims=True)), "train"),
    "max of the batch": (behind(lambda w, y: y - y.max(0, keepdims=True)), "mixes"),
    "size of the batch": (behind(lambda w, y: y / y.shape[0]), "number of images"),
    "if of its size": (
        behind(lambda w, y: y * (2 if y.shape[0] > 1 else 1)),
        "number of images",
    ),
    "length of the batch": (behind(lambda w, y: y / len(y)), "number of images"),
    "each by itself": (
        lambda w, x: jnp.concatenate([hidden(w, x[i][None]) for i in range(len(x))]),
        "number of images",
    ),
    "place in the batch": (
        behind(lambda w, y: y + jnp.arange(y.shape[0], dtype=y.dtype)[:, None]),
        "place of an image",
    ),
    "from the fourth image on": (
        behind(lambda w, y: y + (jnp.arange(y.shape[0]) > 2)[:, None]),
        "place of an image",
    ),
    "weights for every image, added up": (
        behind(lambda w, y: y + jnp.tile(w["s"], (y.shape[0], 1)).sum(0)[None]),
        "number of images",
    ),
    "weights repeated for every image": (
        lambda w, x: relu(
            x.reshape(-1, 2) @ w["a"][:2] + jnp.tile(w["b"][:3], (x.shape[0], 1))
        ),
        "repeated for every image",
    ),
    "a kernel for every image": (
        lambda w, x: jax.vmap(lambda y: jnp.convolve(y, relu(y @ w["a"])))(x),
        "kernel of its own",
    ),
    "first of the batch": (behind(lambda w, y: y + y[:1]), "mixes"),
    "reversed": (behind(lambda w, y: y + lax.rev(y, (0,))), "mixes"),
    "rolled": (behind(lambda w, y: jnp.roll(y, 1, 0)), "mixes"),
    "cumulated": (behind(lambda w, y: jnp.cumsum(y, 0)), "batch"),
    "a batch and a row": (
        behind(lambda w, y: jnp.concatenate([y, w["s"]])[1:]),
        "mixes",
    ),
    # what is no network
    "no relu": (lambda w, x: x @ w["a"] @ w["c"], "no ReLU"),
    "constant": (lambda w, x: (end(w, hidden(w, x)), w["c"]), "output 1"),
    "random mask": (
        behind(lambda w, y: y * jax.random.bernoulli(jax.random.key(0), 0.5, (1, 8))),
        "deterministic=True",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    function, expected = REFUSED[name]
    message = refusal(function)
    assert expected.lower() in message.lower()
    if name not in ("no relu", "constant"):
        line = int(re.search(rf"{__file__}:(\d+)", message).group(1))
        assert (
            0 < line <= len(inspect.getsource(inspect.getmodule(refusal)).splitlines())
        )


class Block(nn.Module):
    middle: nn.Module
    call: dict

    @nn.compact
    def __call__(self, x):
        x = relu(nn.Conv(4, (3, 3), name="stem")(x))
        x = self.middle(x, **self.call)
        return nn.Dense(3)(relu(x).mean((1, 2)))


LAYERS = {
    "norm in training": (
        nn.BatchNorm(use_running_average=False),
        {},
        "use_running_average=True",
    ),
    "dropout in training": (
        nn.Dropout(0.5, deterministic=False),
        {"rng": jax.random.key(0)},
        "deterministic=True",
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_flax_that_are_refused(name):
    middle, call, expected = LAYERS[name]
    inputs = nets.images(4, 4, 2)
    module = Block(middle, call)
    variables = module.init(jax.random.key(0), inputs)

    def apply(variables, x):
        return module.apply(variables, x, mutable=["batch_stats"])[0]

    message = refusal(apply, variables, inputs)
    assert expected in message and ("stem" in message or "key" in message)
    assert "middle" in message
    assert re.search(rf"{__file__}:\d+ \(Block.__call__\)", message)


def test_training_mode_beside_the_number_of_images():
    """`len(x)` hides from a trace that it is the batch that is averaged over."""
    module, images = nn.BatchNorm(use_running_average=False), nets.images(4)
    variables = module.init(jax.random.key(0), images)

    def apply(variables, x):
        x, _ = module.apply(variables, x, mutable=["batch_stats"])
        return relu(x.reshape(len(x), -1))

    assert "use_running_average=True" in refusal(apply, variables, images)


def test_errors_of_the_function_say_what_it_was_called_with():
    """An error that it raises itself is left as it is; a note says the rest."""
    net = nn.Sequential([nn.BatchNorm(False), nn.Dense(3)])
    variables = net.init(jax.random.key(0), X)
    told = "inputs float32 .*6., the batch in front.*at inference"
    for function, given, words in (
        (net.apply, variables, f"a dictionary of batch_stats, params and {told}"),
        (
            net.apply,
            variables["params"],
            f"a dictionary of layers_0, layers_1 and {told}",
        ),
        (
            lambda w, x: x @ w["none"],
            W,
            f"a dictionary of a, b, c, s and 1 more and {told}",
        ),
        (net.apply, X, f"variables float32 .*6. and {told}"),
    ):
        with pytest.raises(Exception) as raised:
            tracing.trace(function, given, X)
        assert not isinstance(raised.value, Refused)
        assert re.search(words, raised.value.__notes__[-1])
    with pytest.raises(TypeError, match="pass trace.module.apply, variables, example"):
        tracing.trace(net, variables, X)


def test_training_mode_of_other_frameworks():
    """The message says which flag to set."""
    images = nets.images(4)

    net = hk.transform_with_state(
        lambda x: hk.Linear(2)(
            relu(hk.BatchNorm(True, True, 0.9)(hk.Linear(3)(x), is_training=True))
        )
    )
    variables = net.init(jax.random.key(0), images)
    message = refusal(lambda v, x: net.apply(*v, None, x)[0], variables, images)
    assert "is_training=False" in message

    class Nnx(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.first = nnx.Linear(4, 3, rngs=rngs)
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)
            self.last = nnx.Linear(3, 2, rngs=rngs)

        def __call__(self, x):
            return self.last(self.drop(relu(self.norm(self.first(x)))))

    module = Nnx()
    with pytest.raises(Refused, match=r"model\.eval\(\)"):
        tracing.trace(module, images[:1])
    module.eval()
    network = tracing.trace(module, images[:1])
    assert network.neurons == ("relu0",)
    for leaf in jax.tree.leaves(network.variables):  # and no keys of random numbers
        assert jnp.issubdtype(leaf.dtype, jnp.floating)


# What variables and functions may hold.


@pytest.mark.parametrize("kind", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("jit", [lambda f: f, jax.jit])
def test_a_closure_holds_its_variables(kind, jit):
    """Under the names they have, in calls, too; and the function follows them."""
    first, last = kind(W["a"]), kind(W["c"])
    inner = jit(lambda x: relu(x @ first))
    network = tracing.trace(jit(lambda x: inner(x) @ last), X[:1])
    assert network.synapses == ("first", "last")
    doubled = jax.tree.map(lambda x: 2 * x, network.variables)
    for variables, factor in ((network.variables, 1), (doubled, 4)):
        expected = factor * relu(X @ first) @ last
        for found in (network(variables, X), network.function(variables, X)):
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    # A backbone that is held, and a head that is given.
    both = tracing.trace(lambda w, x: inner(x) @ w["c"], {"c": W["c"]}, X[:1])
    assert both.synapses == ("first", "c")
    assert both != tracing.trace(lambda w, x: inner(2 * x) @ w["c"], W, X[:1])
    np.testing.assert_allclose(both({"c": last}, X), relu(X @ first) @ last, atol=1e-5)


def test_wrappers_of_equinox_take_what_they_wrap():
    """A module one image, and what is vmapped all."""
    module = eqx.nn.MLP(6, 3, 4, 1, key=jax.random.key(0))
    many = lambda x: jax.vmap(module)(x)  # noqa: E731
    jit = eqx.filter_jit
    vmap = eqx.filter_vmap
    for spelled in (module, jit(module), jit(many), vmap(module), jit(vmap(module))):
        network = tracing.trace(spelled, X[:1])
        assert len(network.synapses) == 2
        np.testing.assert_allclose(network(network.variables, X), many(X), atol=1e-6)


def test_weights_that_are_made_and_not_finite_are_named():
    """As of a variance below 0, which the variables do not show."""

    def net(w, x):
        return end(w, hidden(w, x) / jnp.sqrt(w["m"]))

    variables = W | {"m": W["m"] - 9}
    with pytest.raises(ValueError, match="variables: div0.*a variance below 0"):
        tracing.trace(net, variables, X[:1])


def test_a_module_among_the_variables():
    """Functions and texts that it holds are no arrays."""
    module = eqx.nn.MLP(6, 3, 4, 1, key=jax.random.key(0))

    def net(variables, x):
        return jax.vmap(variables["net"])(x)

    variables = {"net": module, "name": "mlp"}
    network = tracing.trace(net, variables, X[:1])
    np.testing.assert_allclose(network(variables, X), net(variables, X), atol=1e-6)
    spiking = convert(network, variables, {"relu0": 1.0})
    assert verify(network, variables, spiking, X)["logits"] < 1e-6


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_half_precision_throughout_is_proved_in_single(kind):
    """Weights and inputs both, so that nothing in the function casts."""

    def net(w, x):
        return end(w, hidden(w, x))

    variables, x = jax.tree.map(lambda a: jnp.asarray(a, kind), (W, X))
    network = tracing.trace(net, variables, x[:1])
    wide = jax.tree.map(np.float32, (variables, x))
    np.testing.assert_allclose(network(variables, x), net(*wide), atol=1e-5)


COPIES = {  # of a kernel, one for each image: a product with one of them
    "right": lambda w, y: y @ w,
    "left": lambda w, y: w @ y.swapaxes(1, 2),
    "moved": lambda w, y: jnp.einsum("bni,bij->nbj", y, w).swapaxes(0, 1),
    "between": lambda w, y: jnp.einsum("bij,bni->jbn", w, y).swapaxes(0, 1),
}


@pytest.mark.parametrize("name", COPIES)
def test_copies_of_a_kernel_are_one_synapse(name):
    def net(w, x):
        kernel = jnp.broadcast_to(w["a"][:3], (x.shape[0], 3, 8))
        if name == "left":
            kernel = kernel.swapaxes(1, 2)
        return relu(COPIES[name](kernel, x.reshape(-1, 2, 3)))

    network = tracing.trace(net, W, X[:1])
    assert network.synapses == ("a",)
    assert macs(network) == {"a": 2 * 3 * 8}
    np.testing.assert_allclose(network(W, X), net(W, X), atol=1e-5)


A = W["a"].reshape(2, 3, 8)
SUMS = {  # of a signal times a kernel: how often the kernel's numbers are met
    "dense": (48, lambda a, x: (x[..., None] * a.reshape(1, 6, 8)).sum(1)),
    "kernel first": (48, lambda a, x: (a.reshape(1, 6, 8).mT * x[:, None]).sum(-1)),
    "mean": (48, lambda a, x: (x[..., None] * a.reshape(1, 6, 8)).mean(1)),
    "two axes": (48, lambda a, x: (x.reshape(-1, 2, 3, 1) * a[None]).sum((1, 2))),
    "one number": (
        6,
        lambda a, x: (x * a[None, ..., 0].reshape(1, 6)).sum(-1, keepdims=True),
    ),
    "one for each": (6, lambda a, x: (x.reshape(-1, 2, 3) * a[None, ..., 0]).sum(1)),
    "copies of both": (
        12,
        lambda a, x: (jnp.repeat(x[..., None], 2, 2) * a[..., :1].reshape(1, 6, 1)).sum(
            1
        ),
    ),
    "by rows": (
        48,
        jax.vmap(lambda a, x: (a.reshape(6, 8).T * x[None]).sum(1), (None, 0)),
    ),
}


@pytest.mark.parametrize("name", SUMS)
def test_a_product_written_as_a_sum_is_a_synapse(name):
    times, function = SUMS[name]

    def net(a, x):
        return relu(function(a, x))

    network = tracing.trace(net, A, X[:1])
    assert sum(macs(network).values()) == times
    for weights in (A, 2 * A[::-1]):
        np.testing.assert_allclose(network(weights, X), net(weights, X), atol=1e-5)


def test_numbers_among_the_variables():
    """A whole number is part of the program, another one a weight."""

    def net(w, x):
        return w["scale"] * relu(x @ w["a"][:, : w["count"]]) @ w["c"][: w["count"]]

    variables = W | {"count": 3, "scale": 2.0}
    network = tracing.trace(net, variables, X[:1])
    for scale in (2.0, 3.0):
        other = variables | {"scale": scale}
        found = network(other, X)
        np.testing.assert_allclose(found, net(other, X), rtol=0, atol=1e-5)
    alone = tracing.trace(lambda w, x: relu(relu(x @ w) @ w.T), W["b"], X[:1, [0] * 8])
    assert len(alone.synapses) == 2  # the only variable, and it has no name
    with pytest.raises(ValueError, match="count was 3 when traced, is 4"):
        network.weights(variables | {"count": 4})


# Piecewise linear, however it looks: as the user's function, and spikes approach it.

RIGHT = {
    "stop gradient": inside(lambda w, y: stop(relu(y)) + 0 * y),
    "times positive": inside(lambda w, y: y * (y > 0)),
    "times negative": inside(lambda w, y: (y < 0).astype(y.dtype) * y),
    "where": inside(lambda w, y: jnp.where(0 >= y, 0 * y, y)),
    "where swapped": inside(lambda w, y: jnp.where(y >= 0, 0.0, y)),
    "two slopes": inside(lambda w, y: jnp.where(y > 0, 2 * y, -0.5 * y)),
    "clip": inside(lambda w, y: jnp.clip(y, -1, 1)),
    "clip from above": inside(lambda w, y: jnp.clip(y, None, 0.5)),
    "clip between": inside(lambda w, y: jnp.clip(y, 0.5, 2)),
    "clip the wrong way": inside(lambda w, y: jnp.clip(relu(y), 2, 1) + y),
    "clip by weights": inside(lambda w, y: jnp.clip(y, -abs(w["s"]), abs(w["s"]))),
    "relu of relu": inside(lambda w, y: relu(jnp.minimum(relu(relu(y)), 1.5))),
    "named, and put where it is": behind(
        lambda w, y: jax.device_put(checkpoint_name(jnp.array(y, copy=True), "y"))
    ),
    "padded by its means": behind(
        lambda w, y: jnp.pad(y, ((0, 0), (2, 0)), mode="mean")[:, :8]
    ),
    "clamp": inside(lambda w, y: lax.clamp(0.1, y, 1.0)),
    "max with weights": inside(lambda w, y: jnp.maximum(y, w["m"])),
    "min with weights": behind(lambda w, y: jnp.minimum(y, abs(w["m"]))),
    "min": inside(lambda w, y: jnp.minimum(y, 0)),
    "hard sigmoid": inside(lambda w, y: jax.nn.hard_sigmoid(y)),
    "leaky by max": inside(lambda w, y: jnp.maximum(y, 0.1 * y)),
    "max of two": behind(lambda w, y: jnp.maximum(y, relu(y @ w["b"]))),
    "min of two": behind(lambda w, y: jnp.minimum(y, relu(y @ w["b"]))),
    "min over windows": behind(
        lambda w, y: y - jnp.repeat(y.reshape(-1, 4, 2).min(-1), 2, -1)
    ),
    "max of negatives": behind(
        lambda w, y: y + jnp.repeat((-y).reshape(-1, 4, 2).max(-1), 2, -1)
    ),
    "maxout": inside(lambda w, y: jnp.repeat(y.reshape(-1, 4, 2).max(-1), 2, -1)),
    "less its mean": behind(lambda w, y: y - y.mean(-1, keepdims=True)),
    "cumulated": behind(lambda w, y: jnp.cumsum(y, -1)),
    "associative scan": behind(lambda w, y: lax.associative_scan(jnp.add, y, axis=1)),
    "set": behind(lambda w, y: y.at[:, 3].set(1.5).at[:, 2].set(y[:, 1])),
    "added": behind(lambda w, y: y.at[:, 3].add(0.7).at[:, 2].multiply(3.0)),
    "put into zeros": behind(
        lambda w, y: jnp.zeros_like(y).at[:, jnp.array([1, 3])].set(y[:, :2])
    ),
    "updated slice": behind(
        lambda w, y: lax.dynamic_update_slice(y, 2 * y[:, 2:4], (0, 5))
    ),
    "padded": behind(
        lambda w, y: (
            jnp.pad(y, ((0, 0), (1, 1)), constant_values=2.0)[:, :8]
            + jnp.pad(y, ((0, 0), (1, 1)), mode="reflect")[:, :8]
        )
    ),
    "moved": behind(
        lambda w, y: (
            jnp.roll(y, 3, -1)[:, ::-1]
            + jnp.tile(y[:, :4], (1, 2))
            - jnp.repeat(y[:, 4:], 2, -1)
        )
    ),
    "gathered": behind(lambda w, y: y[:, jnp.array([3, 1, 0, 2, 7, 7, 6, 5])]),
    "one-hot": behind(lambda w, y: y @ jax.nn.one_hot(jnp.arange(8)[::-1], 8)),
    "a fixed mask": behind(
        lambda w, y: jnp.where(jnp.arange(8)[None] % 2 == 0, y, 3.0)
    ),
    "a mask of weights": behind(lambda w, y: jnp.where(w["m"] > 0, y, -y)),
    "grouped einsum": lambda w, x: end(
        w,
        relu(
            jnp.einsum(
                "bgi,gio->bgo",
                hidden(w, x).reshape(-1, 2, 4),
                w["b"].reshape(2, 4, 8)[..., :4],
            )
        ).reshape(-1, 8),
    ),
    "batch in the middle": lambda w, x: end(
        w, relu(jnp.einsum("gij,bg->ibj", w["b"].reshape(2, 4, 8), x[:, :2])).sum(0)
    ),
    "a kernel for each image": behind(
        lambda w, y: jnp.einsum(
            "bi,bio->bo", y, jnp.broadcast_to(w["b"], (y.shape[0], 8, 8))
        )
    ),
    "a number of images": lambda w, x: end(
        w, hidden(w, x).reshape(len(x), -1) + np.ones((int(x.shape[0]), 8), np.float32)
    ),
    "patches": lambda w, x: end(
        w, relu(x.reshape(-1, 3) @ w["a"][:3]).reshape(-1, 2, 8).mean(1)
    ),
    "batch behind patches": merged,
    "batches one behind the other": twice,
    "rows one by one": behind(
        lambda w, y: jnp.concatenate(jnp.unstack(y.reshape(-1, 2, 4), axis=1)[::-1], 1)
    ),
    "noise that is not used": behind(
        lambda w, y: (jax.random.normal(jax.random.key(0), (1, 8)) * y, y)[1]
    ),
    "inverse of weights": lambda w, x: end(
        w | {"b": jnp.linalg.inv(w["b"] + 2 * jnp.eye(8))}, hidden(w, x)
    ),
    "singular values and fft of weights": lambda w, x: end(
        w
        | {
            "b": jnp.fft.ifft(jnp.fft.fft(w["b"])).real
            / jnp.linalg.svd(w["b"], compute_uv=False)[0]
        },
        hidden(w, x),
    ),
    "rounded weights": lambda w, x: end(
        w | {"b": jnp.round(8 * w["b"]) / 8}, hidden(w, x)
    ),
    "a loop": lambda w, x: (
        lax.fori_loop(0, 3, lambda i, y: relu(y @ w["b"]), hidden(w, x)) @ w["c"]
    ),
    "a fixed branch": behind(lambda w, y: lax.cond(True, lambda y: y, lambda y: -y, y)),
    "half inside": behind(lambda w, y: y.astype(jnp.bfloat16).astype(y.dtype)),
    "convolution": behind(
        lambda w, y: jax.vmap(lambda row: jnp.convolve(row, w["s"][0, :3], "same"))(y)
    ),
    "cubic resize": behind(
        lambda w, y: jax.image.resize(y, (y.shape[0], 12), "cubic")[:, 2:10]
    ),
    "softmax of a negative": lambda w, x: nn.softmax(-end(w, hidden(w, x))),
    "tanh at the end": lambda w, x: jnp.tanh(end(w, hidden(w, x))),
}


GROUPS = [list(RIGHT)[i : i + 9] for i in range(0, len(RIGHT), 9)]


@pytest.mark.parametrize("names", GROUPS, ids=["-".join(names) for names in GROUPS])
def test_piecewise_linear_is_right(names):
    def function(w, x):
        return {name: RIGHT[name](w, x) for name in names}

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="output")
        network = tracing.trace(function, W, X[:1])

    def read(w, x):
        return function(w, x), forward(network, network.weights(w), x)

    own, (outputs, activations) = nets.quick(read)(W, X)
    thresholds = {
        path: np.float32(max(values.max(), 0.1) * 1.01)
        for path, values in activations.items()
    }

    def errors(w, x, thresholds):
        spiking = convert(network, w, {k: t / 5 for k, t in thresholds.items()})
        bursts = simulate(Model(network, Burst(5)), spiking, x, 256).logits
        spiking = convert(network, w, {k: t / 8 for k, t in thresholds.items()})
        neuron = Refining(gamma=None, silence=0)
        refined = simulate(Model(network, neuron), spiking, x, 12).logits
        found = {}
        for name, expected in zip(sorted(names), outputs, strict=True):
            off = [
                abs(out[name] - expected[None]).max((1, 2)) for out in (bursts, refined)
            ]
            found[name] = off[0] * jnp.arange(1, 257), off[1]
        return found

    found = nets.quick(errors)(W, X, thresholds)
    for i, (name, expected) in enumerate(zip(sorted(names), outputs, strict=True)):
        if i not in network.aside:
            rounding = 2e-2 if name == "half inside" else 1e-5
            np.testing.assert_allclose(expected, own[name], rtol=0, atol=rounding)
        bursts, refined = found[name]
        size = abs(expected).max()
        assert bursts[128:].max() <= 2.5 * bursts[16:64].max(), name
        assert bursts[0] > 1e-3 * size > refined[-1], name
