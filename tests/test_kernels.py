"""Each form of a convolution equals its definition, wherever it comes from."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxburst import kernels
from jaxburst.kernels.convolution import choose, convolve, convolve_once, prepare
from jaxburst.kernels.training import accelerate

OPTIMISED = True
LAST = ("NHWC", "HWIO", "NHWC")
FIRST = ("NCHW", "OIHW", "NCHW")


def params_of(function, *inputs):
    """Those of the one convolution that a function makes."""
    equations = jax.make_jaxpr(function)(*inputs).jaxpr.eqns
    (found,) = (e for e in equations if e.primitive.name == "conv_general_dilated")
    return found.params


def convolution(strides=1, padding=1, numbers=LAST, **options):
    """A convolution as a function of input and kernel."""
    rank = len(numbers[0]) - 2
    if isinstance(padding, int):
        padding = ((padding, padding),) * rank
    if isinstance(strides, int):
        strides = (strides,) * rank

    def function(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, strides, padding, dimension_numbers=numbers, **options
        )

    return function


def form_of(function, x, kernel, platform="cpu", **options):
    params = params_of(function, x, kernel)
    return choose(params, kernel.shape, x.shape, x.dtype, platform=platform, **options)


def by_definition(x, kernel, strides, padding, lhs_dilation, rhs_dilation):
    """One tap at a time, `[B, *sides, C]`: zeros between, zeros around, then sums."""
    rank = x.ndim - 2
    spread = [(s - 1) * d + 1 for s, d in zip(x.shape[1:-1], lhs_dilation, strict=True)]
    apart = np.zeros((len(x), *spread, x.shape[-1]))
    apart[(slice(None), *(slice(None, None, d) for d in lhs_dilation))] = x
    padded = np.pad(apart, ((0, 0), *np.maximum(padding, 0).tolist(), (0, 0)))
    cut = [slice(max(-a, 0), -b if b < 0 else None) for a, b in padding]
    padded = padded[(slice(None), *cut)]
    sides = [
        (padded.shape[1 + i] - (kernel.shape[i] - 1) * rhs_dilation[i] - 1)
        // strides[i]
        + 1
        for i in range(rank)
    ]
    out = np.zeros((len(x), *sides, kernel.shape[-1]))
    for place in itertools.product(*map(range, sides)):
        for tap in itertools.product(*map(range, kernel.shape[:rank])):
            at = tuple(
                o * s + t * d
                for o, s, t, d in zip(place, strides, tap, rhs_dilation, strict=True)
            )
            out[(slice(None), *place)] += padded[(slice(None), *at)] @ kernel[tap]
    return out


# sides, taps, strides, padding, lhs_dilation, rhs_dilation, whether a small map
BY_DEFINITION = [
    ((5, 4), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), False),
    ((5, 4), (3, 3), (2, 2), ((0, 1), (1, 0)), (1, 1), (1, 1), False),
    ((6, 7), (5, 2), (3, 1), ((2, 2), (0, 3)), (1, 1), (1, 2), False),
    ((4, 5), (1, 1), (2, 2), ((0, 0), (0, 0)), (1, 1), (1, 1), False),
    ((2, 5), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), False),
    ((2, 2), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), True),
    ((2, 2), (3, 3), (2, 2), ((0, 1), (0, 1)), (1, 1), (1, 1), True),
    ((1, 1), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), (1, 1), True),
    ((2, 4), (3, 3), (1, 2), ((1, 1), (0, 1)), (1, 1), (1, 1), True),
    ((3, 2), (5, 5), (2, 2), ((3, 3), (3, 3)), (1, 1), (1, 1), True),
    ((3, 3), (3, 3), (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), True),
    ((2, 3), (3, 3), (1, 1), ((2, 2), (2, 1)), (1, 1), (2, 2), True),
    ((2, 2), (4, 4), (1, 1), ((2, 2), (2, 2)), (2, 2), (1, 1), True),
    ((3, 2), (3, 3), (1, 1), ((2, 1), (-1, 4)), (1, 3), (1, 1), True),
    ((1, 1), (1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), True),
    ((4,), (7,), (1,), ((3, 3),), (1,), (1,), True),
    ((9,), (4,), (2,), ((1, 2),), (1,), (1,), False),
    ((2, 1, 2), (2, 3, 2), (1, 1, 2), ((0, 1), (1, 1), (1, 1)), (1,) * 3, (1,) * 3, 1),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize(
    "sides, taps, strides, padding, lhs_dilation, rhs_dilation, small", BY_DEFINITION
)
def test_any_convolution_by_definition(
    sides, taps, strides, padding, lhs_dilation, rhs_dilation, small, first
):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *sides, 3))
    kernel = rng.normal(size=(*taps, 3, 4))
    expected = by_definition(x, kernel, strides, padding, lhs_dilation, rhs_dilation)
    letters = "DHW"[3 - len(sides) :]
    numbers = f"N{letters}C", f"{letters}IO", f"N{letters}C"
    if first:
        x, expected = np.moveaxis(x, -1, 1), np.moveaxis(expected, -1, 1)
        kernel = np.moveaxis(kernel, (-1, -2), (0, 1))
        numbers = f"NC{letters}", f"OI{letters}", f"NC{letters}"
    function = convolution(
        strides,
        padding,
        numbers,
        lhs_dilation=lhs_dilation,
        rhs_dilation=rhs_dilation,
    )
    x, kernel = jnp.asarray(x), jnp.asarray(kernel)
    form = form_of(function, x, kernel)
    assert form.kind == ("map" if small else "last" if first else "plain")
    elsewhere = form_of(function, x, kernel, platform="tpu").kind
    assert elsewhere == ("map" if small else "plain")
    assert form.sides_out == (expected.shape[2:] if first else expected.shape[1:-1])
    prepared = prepare(form, kernel)
    assert (prepared is kernel) == (form.kind == "plain")
    found = convolve(form, x, prepared)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(function(x, kernel), expected, rtol=0, atol=1e-13)

    def loss(convolution):
        return lambda x, kernel: jnp.tanh(convolution(x, kernel)).sum()

    for ours, theirs in zip(
        jax.grad(loss(lambda x, kernel: convolve_once(form, x, kernel)), (0, 1))(
            x, kernel
        ),
        jax.grad(loss(function), (0, 1))(x, kernel),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def error(found, expected):
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape and found.dtype == expected.dtype
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.parametrize("sides", [(4, 4), (8, 8), (16, 12), (7, 14)])
@pytest.mark.parametrize("numbers", [LAST, FIRST])
def test_winograd_equals_the_definition_up_to_rounding(sides, numbers):
    x, kernel = random(2, *sides, 64), random(3, 3, 64, 33, seed=1)
    expected = convolution()(x, kernel)
    function = convolution(numbers=numbers)
    if numbers == FIRST:
        x, expected = jnp.moveaxis(x, -1, 1), jnp.moveaxis(expected, -1, 1)
        kernel = kernel.transpose(3, 2, 0, 1)
    form = form_of(function, x, kernel)
    assert form.kind == "winograd", "this shape is one that pays"
    prepared = prepare(form, kernel)
    assert prepared.shape == (36, 64, 33)
    assert error(jax.jit(convolve, static_argnums=0)(form, x, prepared), expected) < (
        1e-5
    )


def test_kernels_that_fill_the_cache_are_multiplied_by_threes(monkeypatch):
    x, kernel = random(2, 8, 8, 64), random(3, 3, 64, 33, seed=1)
    form = form_of(convolution(), x, kernel)
    prepared = prepare(form, kernel)

    def program():
        return jax.jit(lambda x: convolve(form, x, prepared)).lower(x)

    at_once = program()
    monkeypatch.setattr(kernels.convolution, "CACHED", prepared.size - 1)
    by_threes = program()
    assert "while" in by_threes.as_text() and "while" not in at_once.as_text()
    found, expected = (one.compile()(x) for one in (by_threes, at_once))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("sides", [(8, 8), (7, 14)])
@pytest.mark.parametrize("numbers", [LAST, FIRST])
def test_gradients_of_winograd_are_those_of_the_convolution(sides, numbers):
    x, kernel = random(3, *sides, 32), random(3, 3, 32, 40, seed=1)
    if numbers == FIRST:
        x, kernel = jnp.moveaxis(x, -1, 1), kernel.transpose(3, 2, 0, 1)
    theirs = convolution(numbers=numbers)
    form = form_of(theirs, x, kernel)
    assert form.kind == "winograd", "it pays"

    def loss(convolution):
        return lambda x, kernel: jnp.tanh(0.1 * convolution(x, kernel)).sum()

    found, expected = (
        jax.jit(jax.grad(loss(convolution), (0, 1)))(x, kernel)
        for convolution in (lambda x, kernel: convolve_once(form, x, kernel), theirs)
    )
    for ours_is, theirs_is in zip(found, expected, strict=True):
        assert error(ours_is, theirs_is) < 1e-5


@pytest.mark.parametrize("sides", [(4, 4), (7, 6), (3, 16)])
def test_two_columns_at_once_equal_the_definition(sides):
    x, kernel = random(2, *sides, 5), random(3, 3, 5, 16, seed=1)
    form = form_of(convolution(), x, kernel, one_core=True)
    assert form.kind == "pairs", "this shape is one that pays"
    prepared = prepare(form, kernel)
    assert prepared.shape == (3, 4, 5, 32)
    found = jax.jit(convolve, static_argnums=0)(form, x, prepared)
    assert error(found, convolution()(x, kernel)) < 1e-6
    odd = random(2, sides[0], 5, 5)
    for function, x_ in (
        (convolution(), odd),
        (convolution(2), x),
        (convolution(1, 0), x),
    ):
        assert form_of(function, x_, kernel, one_core=True).kind == "plain"
    assert form_of(convolution(), x, kernel).kind == "plain"
    assert form_of(convolution(), x, kernel, one_core=True, exact=True).kind == "plain"


PLAIN = [
    ((1, 8, 8, 64), (3, 3, 64, 16), convolution(), "too few channels"),
    ((1, 5, 5, 64), (3, 3, 64, 64), convolution(), "two tiles are mostly padding"),
    ((1, 8, 8, 64), (3, 3, 64, 64), convolution(2), "a stride"),
    ((1, 8, 8, 64), (3, 3, 64, 64), convolution(1, 0), "no padding"),
    ((1, 8, 8, 64), (3, 3, 64, 64), convolution(1, ((0, 2), (1, 1))), "uneven"),
    ((1, 8, 8, 64), (1, 1, 64, 64), convolution(1, 0), "one tap"),
    ((1, 8, 8, 64), (3, 3, 64, 64), convolution(rhs_dilation=(2, 2)), "dilation"),
    ((1, 8, 8, 64), (3, 3, 32, 64), convolution(feature_group_count=2), "groups"),
    ((1, 2, 2, 64), (3, 3, 32, 64), convolution(feature_group_count=2), "groups"),
    ((1, 8, 8, 64), (3, 3, 64, 64), convolution(precision="highest"), "asked for"),
    ((1, 6, 6, 512), (7, 7, 512, 512), convolution(1, 3), "1.4 GB as a matrix"),
]


@pytest.mark.parametrize("shape, kernel_shape, function, why", PLAIN)
def test_where_nothing_pays_kernels_stay_as_they_are(
    shape, kernel_shape, function, why
):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    kernel = jax.ShapeDtypeStruct(kernel_shape, jnp.float32)
    form = form_of(function, x, kernel, one_core=True)
    assert form.kind == "plain", why
    assert prepare(form, kernel) is kernel


def test_what_is_asked_decides():
    x, kernel = random(1, 8, 8, 32), random(3, 3, 32, 32)
    kinds = {
        form_of(convolution(), x, kernel, **options).kind
        for options in ({"exact": True}, {"platform": "tpu"}, {"platform": "cuda"})
    }
    assert kinds == {"plain"}
    assert form_of(convolution(), x, kernel).kind == "winograd"
    half = jnp.bfloat16
    assert form_of(convolution(), x.astype(half), kernel.astype(half)).kind == "plain"
    small = form_of(convolution(), x[:, :2, :2], kernel, platform="tpu", exact=True)
    assert small.kind == "map", "on any platform"
    assert hash(small) == hash(form_of(convolution(), x[:, :2, :2], kernel))


@pytest.mark.parametrize("side", [2, 8])
def test_sums_of_short_numbers_are_kept_in_longer_ones(side):
    x, kernel = random(2, side, side, 8), random(3, 3, 8, 8, seed=1)
    x, kernel = x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16)
    form = form_of(convolution(), x, kernel)
    prepared = prepare(form, kernel)
    assert convolve(form, x, prepared).dtype == jnp.bfloat16
    expected = convolution()(x.astype(jnp.float32), kernel.astype(jnp.float32))
    assert error(convolve(form, x, prepared, jnp.float32), expected) < 1e-6
    asked = form_of(convolution(preferred_element_type=jnp.float32), x, kernel)
    assert convolve(asked, x, prepared).dtype == jnp.float32


def test_a_form_is_for_one_shape():
    x, kernel = random(2, 2, 2, 4), random(3, 3, 4, 4)
    form = form_of(convolution(), x, kernel)
    assert convolve(form, x[:1], prepare(form, kernel)).shape == (1, 2, 2, 4)
    with pytest.raises(ValueError, match=r"sides of the input to be \(2, 2\).*\(1, 2"):
        convolve(form, x[:, :1], prepare(form, kernel))
    with pytest.raises(ValueError, match=r"the kernel to be \(3, 3, 4, 4\).*\(3, 3, 2"):
        prepare(form, kernel[:, :, :2])


# Whole networks.


class Net(nn.Module):
    """A bit of everything that training meets."""

    @nn.compact
    def __call__(self, x, train: bool = False):
        x = nn.Conv(32, (3, 3), padding=1)(x)
        x = nn.relu(nn.BatchNorm(not train)(x))
        x = nn.relu(nn.jit(nn.Conv)(32, (3, 3), padding="SAME")(x))
        x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.remat(nn.Conv)(32, (3, 3))(x)
        x = nn.max_pool(x, (3, 3), (1, 1), "SAME")
        x = nn.Conv(40, (3, 3), (2, 2))(nn.Dropout(0.5, deterministic=not train)(x))
        x = nn.relu(nn.Conv(8, (3, 3))(nn.gelu(x)))
        return nn.Dense(3)(x.mean((1, 2)))


def loss_of(net):
    def loss(params, rest, x, key):
        variables = {"params": params, **rest}
        out, updated = net.apply(
            variables, x, train=True, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return (out**2).sum(), updated

    return loss


def test_an_accelerated_function_is_the_same_function():
    net, x, key = Net(), random(4, 8, 8, 3), jax.random.key(1)
    rest = net.init(jax.random.key(0), x)
    params = rest.pop("params")
    loss = loss_of(net)
    fast = accelerate(loss, "cpu")
    gradient = jax.jit(jax.value_and_grad(fast, has_aux=True))
    expected = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, rest, x, key)
    found = gradient(params, rest, x, key)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        if np.abs(other).max() > 1e-4:  # else: a bias in front of a norm
            assert error(one, other) < 1e-4
    text = gradient.lower(params, rest, x, key).as_text()
    assert "reverse" in text and "stablehlo.select_and_scatter" in text


def operations(function, platform, *inputs):
    lowered = jax.jit(function).trace(*inputs).lower(lowering_platforms=(platform,))
    text = lowered.as_text()
    return text.count("stablehlo.convolution("), text.count("stablehlo.dot_general ")


def test_nothing_for_a_cpu_is_lowered_for_a_tpu():
    x, kernel = random(2, 8, 8, 32), random(3, 3, 32, 32)

    def two(x):
        x = nn.max_pool(convolution()(x, kernel), (2, 2), (2, 2))
        return nn.max_pool(jax.jit(convolution())(x, kernel), (4, 4), (4, 4))

    for platform, expected in (("tpu", (2, 0)), ("cpu", (0, 4))):
        fast = accelerate(two, platform)
        assert operations(fast, platform, x) == expected
        windows = str(jax.make_jaxpr(fast)(x)).count("reduce_window_max")
        assert windows == (2 if platform == "tpu" else 0)
        assert error(fast(x), two(x)) < 1e-5


def test_windows_that_do_not_fill_the_map():
    x = random(2, 7, 8, 3)

    def pool(x):
        return nn.max_pool(x, (3, 2), (3, 2))

    np.testing.assert_array_equal(accelerate(pool, "cpu")(x), pool(x))
    gradients = (
        jax.grad(lambda x, f=f: (f(x) ** 2).sum())(x)
        for f in (pool, accelerate(pool, "cpu"))
    )
    np.testing.assert_array_equal(*gradients)


def test_any_pytree_goes_in_and_out():
    def function(x, *, scale, other=None):
        return {"a": (x["x"] * scale, None), "b": x["x"]}

    found = accelerate(function, "cpu")({"x": jnp.ones(2)}, scale=3.0)
    assert found["a"][1] is None and found["a"][0].tolist() == [3, 3]


def test_derivative_rules_are_kept():
    @jax.custom_vjp
    def straight(x):
        return jnp.round(x)

    straight.defvjp(lambda x: (jnp.round(x), None), lambda _, gradient: (gradient,))

    @jax.custom_jvp
    def doubled(x):
        return x

    doubled.defjvp(lambda primals, tangents: (primals[0], 2 * tangents[0]))
    for function in (lambda x: straight(doubled(x)), jax.jit(lambda x: doubled(x))):
        fast = accelerate(lambda x, f=function: f(x).sum(), "cpu")
        assert jax.jit(jax.grad(fast))(jnp.ones(3)).tolist() == [2, 2, 2]


def test_what_is_closed_over_is_differentiated():
    def loss(w):
        return accelerate(lambda x: (w * x).sum(), "cpu")(jnp.arange(3.0))

    assert jax.jit(jax.grad(loss))(2.0) == 3
