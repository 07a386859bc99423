"""PyTorch's state dicts on Flax modules: what PyTorch computes, or a refusal.

Expected values follow PyTorch's definitions, in NumPy and channel-first.
"""

import math
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from numpy.lib.stride_tricks import sliding_window_view
from safetensors.flax import save_file as save_flax
from safetensors.numpy import save_file

from jaxburst.io.state_dict import load_pytorch
from jaxburst.zoo import VGG, ResNet

RNG = np.random.default_rng(0)


@pytest.fixture(autouse=True)
def the_same_numbers():
    """Each test draws the same, whichever others run."""
    RNG.bit_generator.state = np.random.default_rng(0).bit_generator.state


# PyTorch, by definition.


def weights(*shape):
    return np.float32(RNG.normal(size=shape) * math.sqrt(2 / math.prod(shape[1:])))


def conv(x, w, stride=1, pad=0, groups=1):
    """`torch.conv1d`, 2d or 3d: `x [B, C, ...]`, `w [O, C / groups, ...]`."""
    rank = w.ndim - 2
    x = np.pad(x, [(0, 0)] * 2 + [(pad, pad)] * rank)
    x = sliding_window_view(x, w.shape[2:], tuple(range(2, 2 + rank)))
    x = x[(slice(None), slice(None), *[slice(None, None, stride)] * rank)]
    parts = zip(np.split(x, groups, 1), np.split(w, groups, 0), strict=True)
    inner = tuple(range(x.ndim - rank, x.ndim))
    found = [
        np.tensordot(a, b, ((1, *inner), tuple(range(1, b.ndim)))) for a, b in parts
    ]
    return np.moveaxis(np.concatenate(found, -1), -1, 1)


def conv_transpose(x, w, stride):
    """`torch.conv_transpose2d`: every number sends `w [C, O, h, w]` times itself."""
    batch, _, height, width = x.shape
    high, wide = w.shape[2:]
    shape = (stride * (height - 1) + high, stride * (width - 1) + wide)
    out = np.zeros((batch, w.shape[1], *shape))
    for i in range(height):
        for j in range(width):
            sent = np.einsum("bc,cohw->bohw", x[:, :, i, j], w)
            rows, columns = stride * i, stride * j
            out[:, :, rows : rows + high, columns : columns + wide] += sent
    return out


def pool(x, window):
    view = sliding_window_view(x, (window, window), (2, 3))
    return view[:, :, ::window, ::window].max((4, 5))


def relu(x):
    return np.maximum(x, 0)


NORM = ("weight", "bias", "running_mean", "running_var")


def random_norm(n):
    values = RNG.uniform(0.5, 2, n), *RNG.normal(size=(2, n)), RNG.uniform(0.2, 3, n)
    return dict(zip(NORM, map(np.float32, values), strict=True))


def norm(x, values, epsilon=1e-5):
    weight, bias, mean, var = (
        np.float64(values[name]).reshape(-1, *[1] * (x.ndim - 2)) for name in NORM
    )
    return (x - mean) / np.sqrt(var + epsilon) * weight + bias


def under(name, values):
    return {f"{name}.{leaf}": value for leaf, value in values.items()}


def last(x):
    """Channel-first to what Flax takes."""
    return np.moveaxis(np.float32(x), 1, -1)


def assert_computes(module, source, x, expected, **options):
    """The loaded module gives what PyTorch does; returns what was loaded."""
    x = last(x) if x.ndim > 2 else np.float32(x)
    loaded = load_pytorch(module, source, x, **options)
    found = np.asarray(module.apply(loaded.variables, x))
    assert np.abs(expected).max() > 0.1
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    return loaded


class Net(nn.Module):
    """A module whose call is a function of layers made by `nn`."""

    function: object

    @nn.compact
    def __call__(self, x):
        return self.function(x)


def batch_norm(**options):
    return nn.BatchNorm(use_running_average=True, **options)


def dense(features, bias=False, **options):
    return nn.Dense(features, use_bias=bias, **options)


def conv3(features, stride=1, bias=False, **options):
    return nn.Conv(features, (3, 3), stride, 1, use_bias=bias, **options)


def flat(x):
    return x.reshape(x.shape[0], -1)


# Names that people's networks have.


def written(module, shape, names, **options):
    """Variables of a module, and its state dict under `names` in order of use.

    Every convolution, dense layer and normalisation takes the next name. What follows
    a flattened map must have seen one of 1x1.
    """
    shapes = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: rng.uniform(0.5, 1.5, leaf.shape).astype("f4"), shapes
    )
    owners: dict = {}
    for path, value in flatten_dict(variables).items():
        owners.setdefault(path[1:-1], {})[path[-1]] = value
    calls = []

    def watch(call, positional, keywords, context):
        calls.append(context.module.path)
        return call(*positional, **keywords)

    with nn.intercept_methods(watch):
        jax.eval_shape(module.apply, variables, jnp.zeros(shape))
    names = iter(names)
    state = {}
    theirs = {"mean": "running_mean", "var": "running_var", "bias": "bias"}
    for path in dict.fromkeys(calls):
        if path not in owners:
            continue
        name = next(names)
        for leaf in ("kernel", "scale", "bias", "mean", "var"):
            if leaf in owners[path]:
                value = owners[path][leaf]
                if leaf == "kernel":
                    value = value.transpose(*[3, 2, 0, 1][4 - value.ndim :])
                    value = value if value.ndim == 4 else value.T.reshape(value.T.shape)
                state[f"{name}.{theirs.get(leaf, 'weight')}"] = value
        if "mean" in owners[path]:
            state[f"{name}.num_batches_tracked"] = np.array(7)
    assert next(names, None) is None
    return variables, {k: np.ascontiguousarray(v) for k, v in state.items()}


def blocks(*counts, downsample, per=2):
    """Names of torchvision's and akamaster's blocks, stage by stage."""
    names = ["conv1", "bn1"]
    for stage, count in enumerate(counts, 1):
        for block in range(count):
            for i in range(1, per + 1):
                names += [f"layer{stage}.{block}.{name}{i}" for name in ("conv", "bn")]
            if downsample and block == 0 and (stage > 1 or per > 2):
                names += [f"layer{stage}.0.downsample.{i}" for i in (0, 1)]
    return names


class Head(nn.Module):
    """torchvision's VGG with a BatchNorm1d in the head, of a width of the features."""

    @nn.compact
    def __call__(self, x):
        for i, features in enumerate((2, 6, 4, 5)):
            x = nn.relu(batch_norm()(conv3(features, bias=True)(x)))
            if i != 2:
                x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.relu(batch_norm()(dense(6)(flat(x))))
        return dense(3, bias=True)(x)


class Bottleneck(nn.Module):
    """A ResNet of bottlenecks; the shortcut is called before the rest, or after it."""

    shortcut_first: bool

    @nn.compact
    def __call__(self, x):
        x = nn.relu(batch_norm()(conv3(2)(x)))
        for i in range(2):
            around = self.shortcut(x) if i == 0 and self.shortcut_first else x
            y = nn.relu(batch_norm()(nn.Conv(2, (1, 1), use_bias=False)(x)))
            y = nn.relu(batch_norm()(conv3(2)(y)))
            y = batch_norm()(nn.Conv(8, (1, 1), use_bias=False)(y))
            if i == 0 and not self.shortcut_first:
                around = self.shortcut(x)
            x = nn.relu(y + around)
        return dense(3, bias=True)(x.mean((1, 2)))

    def shortcut(self, x):
        x = nn.Conv(8, (1, 1), use_bias=False, name="around")(x)
        return batch_norm(name="around_norm")(x)


class Dense(nn.Module):
    """A DenseNet: every layer normalises all before it, of a width of the stem."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(batch_norm()(conv3(4)(x)))
        x = nn.max_pool(x, (2, 2), (2, 2))
        for block in range(2):
            for _ in range(2):
                y = x
                for features in (6, 2):
                    y = nn.relu(batch_norm()(y))
                    y = nn.Conv(features, (1, 1), use_bias=False)(y)
                x = jnp.concatenate([x, y], -1)
            if block == 0:
                x = nn.Conv(4, (1, 1), use_bias=False)(nn.relu(batch_norm()(x)))
                x = nn.avg_pool(x, (2, 2), (2, 2))
        return dense(3, bias=True)(nn.relu(batch_norm()(x)).mean((1, 2)))


def dense_block(number):
    """torchvision's names of two layers of a DenseNet."""
    layers = [f"features.denseblock{number}.denselayer{i}." for i in (1, 2)]
    kinds = ("norm1", "conv1", "norm2", "conv2")
    return [layer + kind for layer in layers for kind in kinds]


# name: (module, images, PyTorch's names in order of use)
DIALECTS = {
    # github.com/akamaster/pytorch_resnet_cifar10; eleven blocks: 1.10 after 1.9
    "akamaster": (
        ResNet((2, 3), (11, 2), 5),
        (1, 4, 4, 3),
        [*blocks(11, 2, downsample=False), "linear"],
    ),
    "torchvision resnet": (
        ResNet((2, 3), 2, 5, "conv"),
        (1, 4, 4, 3),
        [*blocks(2, 2, downsample=True), "fc"],
    ),
    "torchvision vgg": (
        Head(),
        (1, 8, 8, 3),
        [
            *("features.0", "features.1", "features.4", "features.5"),
            *("features.8", "features.9", "features.11", "features.12"),
            *("classifier.0", "classifier.1", "classifier.4"),
        ],
    ),
    "one sequential": (
        VGG((2, "M", 4, "M"), 3, hidden=(6,)),
        (1, 4, 4, 3),
        ["0", "1", "4", "5", "9", "11"],
    ),
    "torchvision densenet": (
        Dense(),
        (1, 4, 4, 3),
        ["features.conv0", "features.norm0", *dense_block(1)]
        + [f"features.transition1.{kind}" for kind in ("norm", "conv")]
        + [*dense_block(2), "features.norm5", "classifier"],
    ),
    "torchvision bottlenecks": (
        Bottleneck(shortcut_first=False),
        (1, 4, 4, 3),
        [*blocks(2, downsample=True, per=3), "fc"],
    ),
}


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("name", DIALECTS)
def test_round_trip(name, tmp_path):
    module, shape, names = DIALECTS[name]
    variables, state = written(module, shape, names)
    assert len(state) > 8
    assert_equal(load_pytorch(module, state, shape).variables, variables)
    save_file(state, tmp_path / "weights")  # which sorts them
    assert_equal(load_pytorch(module, tmp_path / "weights", shape).variables, variables)


@pytest.mark.parametrize(
    "prefix, inner",
    [
        ("module.", ""),
        ("_orig_mod.", ""),
        ("model.", ""),
        ("module._orig_mod.net.", ""),
        ("", "module."),  # nn.DataParallel around the features alone
        ("model.", "_orig_mod."),
    ],
)
def test_prefixes_change_nothing(prefix, inner, tmp_path):
    module, shape, names = DIALECTS["torchvision vgg"]
    variables, state = written(module, shape, names)
    state = {
        prefix + name.replace("features.", f"features.{inner}"): value
        for name, value in state.items()
    }
    save_file(state, tmp_path / "weights")
    for source in (state, tmp_path / "weights"):
        assert_equal(load_pytorch(module, source, shape).variables, variables)


def test_a_shortcut_may_be_called_before_what_it_goes_around(tmp_path):
    """A state dict has it last; of the same shape as the block's last convolution."""
    module, shape, names = DIALECTS["torchvision bottlenecks"]
    _, state = written(module, shape, names)
    save_file(state, tmp_path / "weights")
    other = Bottleneck(shortcut_first=True)
    x = np.float32(RNG.uniform(size=shape))
    expected = module.apply(load_pytorch(module, state, shape).variables, x)
    for source in (state, tmp_path / "weights"):
        found = other.apply(load_pytorch(other, source, shape).variables, x)
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_shortcuts_normalisation_goes_with_its_convolution():
    """Its own is of the shape of the others', and its layers are called first."""

    class First(nn.Module):
        @nn.compact
        def __call__(self, x):
            around = nn.Conv(4, (1, 1), use_bias=False, name="around")(x)
            around = batch_norm(name="around_norm")(around)
            y = nn.relu(batch_norm(name="one_norm")(conv3(4, name="one")(x)))
            y = batch_norm(name="two_norm")(conv3(4, name="two")(y))
            return dense(3)(nn.relu(y + around).mean((1, 2)))

    x = RNG.normal(size=(4, 3, 5, 5))
    names = ("conv1", "conv2", "bn1", "bn2", "downsample.0", "downsample.1")
    one, two, around = weights(4, 3, 3, 3), weights(4, 4, 3, 3), weights(4, 3, 1, 1)
    values, fc = [random_norm(4) for _ in range(3)], weights(3, 4)
    y = relu(norm(conv(x, one, pad=1), values[0]))
    y = norm(conv(y, two, pad=1), values[1]) + norm(conv(x, around), values[2])
    expected = relu(y).mean((2, 3)) @ fc.T
    held = ({"weight": one}, {"weight": two}, *values[:2], {"weight": around})
    held = dict(zip(names, (*held, values[2]), strict=True))
    for order in (names, ("conv1", "bn1", "conv2", "bn2", *names[4:])):
        state = {}
        for name in order:
            state |= under(f"block.{name}", held[name])
        assert_computes(First(), state | {"fc.weight": fc}, x, expected)


# Order.


def squares():
    """Four layers of which three are square; a state dict in order of use."""
    names = ("input", "hidden1", "hidden2", "output")
    tensors = [*(weights(4, 4) for _ in range(3)), weights(3, 4)]
    x = h = RNG.normal(size=(5, 4))
    for w in tensors[:3]:
        h = relu(h @ w.T)
    state = {f"{n}.weight": w for n, w in zip(names, tensors, strict=True)}
    layers = [dense(4), nn.relu, dense(4), nn.relu, dense(4), nn.relu, dense(3)]
    return nn.Sequential(layers), state, x, h @ tensors[3].T


def test_a_mapping_is_in_order_of_use():
    assert_computes(*squares())


def test_the_alphabet_decides_nothing(tmp_path):
    module, state, x, expected = squares()
    save_file(state, tmp_path / "weights")
    with pytest.raises(ValueError, match="more than one assignment fits") as caught:
        load_pytorch(module, tmp_path / "weights", (1, 4))
    message = str(caught.value)
    right = "'hidden1': 'layers_2', 'hidden2': 'layers_4'"
    wrong = "'hidden1': 'layers_0', 'hidden2': 'layers_2'"
    assert right in message and wrong in message and "names=" in message
    # One name is enough: the others have numbers.
    assert_computes(
        module, tmp_path / "weights", x, expected, names={"input": "layers_0"}
    )


def test_names_that_are_the_modules_own_decide(tmp_path):
    _, state, x, expected = squares()
    names = [name.split(".")[0] for name in state]

    def call(x):
        for name in names[:3]:
            x = nn.relu(dense(4, name=name)(x))
        return dense(3, name=names[3])(x)

    save_file(state, tmp_path / "weights")
    assert_computes(Net(call), tmp_path / "weights", x, expected)


def test_explicit_names_win():
    module, state, x, _ = squares()
    w = list(state.values())
    expected = relu(relu(relu(x @ w[2].T) @ w[0].T) @ w[1].T) @ w[3].T
    names = {"hidden2": "layers_0", "input": "layers_2"}
    assert_computes(module, state, x, expected, names=names)
    for names, word in (
        ({"hidden": "layers_0"}, "'hidden' is no layer of the source"),
        ({"input": "layers_1"}, "'layers_1' is no layer of the module"),
        ({"input": "layers_0", "hidden1": "layers_0"}, "given twice"),
    ):
        with pytest.raises(ValueError, match=word):
            load_pytorch(module, state, (1, 4), names=names)
    with pytest.raises(ValueError, match="wrong shape: output.weight"):
        load_pytorch(module, state, (1, 4), names={"output": "layers_0"})


def test_a_mapping_whose_numbers_say_otherwise_is_unclear():
    module, state, _, _ = squares()
    names = dict(zip(state, ("fc2.weight", "fc1.weight", "fc3.weight"), strict=False))
    state = {names.get(name, name): value for name, value in state.items()}
    with pytest.raises(ValueError, match="more than one assignment fits"):
        load_pytorch(module, state, (1, 4))


def test_a_mapping_that_a_file_has_sorted_has_no_order(tmp_path):
    layers = [dense(4, bias=True), nn.relu, dense(4, bias=True), nn.relu]
    module = nn.Sequential([*layers, dense(3, bias=True)])
    names = ("stem", "body", "head")
    _, state = written(module, (1, 4), names)
    load_pytorch(module, state, (1, 4))
    with pytest.raises(ValueError, match="more than one assignment fits"):
        load_pytorch(module, dict(sorted(state.items())), (1, 4))


def test_heads_side_by_side_need_numbers_or_names():
    class Heads(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(dense(5)(x))
            return dense(3, name="policy")(x), dense(3, name="value")(x)

    x = np.ones((2, 4), np.float32)
    trunk, one, other = weights(5, 4), weights(3, 5), weights(3, 5)
    state = {"trunk.weight": trunk, "b.weight": one, "a.weight": other}
    with pytest.raises(ValueError, match="more than one assignment fits"):
        load_pytorch(Heads(), state, x)
    loaded = load_pytorch(Heads(), state, x, names={"a": "policy"})
    np.testing.assert_array_equal(
        loaded.variables["params"]["policy"]["kernel"], other.T
    )
    numbered = {"trunk.weight": trunk, "head.0.weight": one, "head.1.weight": other}
    loaded = load_pytorch(Heads(), numbered, x)
    np.testing.assert_array_equal(loaded.variables["params"]["policy"]["kernel"], one.T)


# Kernels.


def test_one_and_three_dimensions():
    for rank, sizes in ((1, (9,)), (3, (4, 5, 3))):
        x = RNG.normal(size=(2, 3, *sizes))
        one, two = weights(4, 3, *[3] * rank), weights(2, 4, *[2] * rank)
        bias = weights(4, 1).ravel()
        maps = conv(x, one, stride=2, pad=1) + bias.reshape(-1, *[1] * rank)
        expected = last(conv(relu(maps), two))

        def call(x, rank=rank):
            x = nn.relu(nn.Conv(4, (3,) * rank, 2, 1)(x))
            return nn.Conv(2, (2,) * rank, padding="VALID", use_bias=False)(x)

        state = {"a.weight": one, "a.bias": bias, "b.weight": two}
        assert_computes(Net(call), state, x, expected)


def test_groups_and_depthwise():
    x = RNG.normal(size=(2, 4, 5, 5))
    deep, groups, point = weights(8, 1, 3, 3), weights(6, 4, 3, 3), weights(3, 6, 1, 1)
    maps = relu(conv(x, deep, groups=4))
    expected = last(conv(conv(maps, groups, groups=2), point))

    def call(x):
        options = {"padding": "VALID", "use_bias": False}
        x = nn.relu(nn.Conv(8, (3, 3), feature_group_count=4, **options)(x))
        x = nn.Conv(6, (3, 3), feature_group_count=2, **options)(x)
        return nn.Conv(3, (1, 1), **options)(x)

    state = {"0.weight": deep, "2.weight": groups, "3.weight": point}
    assert_computes(Net(call), state, x, expected)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("stride", [1, 2])
def test_transposed_convolutions(stride, transposed):
    x = RNG.normal(size=(2, 3, 4, 5))
    up, point = weights(3, 3, 3, 3), weights(2, 3, 1, 1)
    expected = last(conv(relu(conv_transpose(x, up, stride)), point))

    def call(x):
        x = nn.ConvTranspose(
            3,
            (3, 3),
            (stride, stride),
            padding=2,
            use_bias=False,
            transpose_kernel=transposed,
        )(x)
        return nn.Conv(2, (1, 1), use_bias=False)(nn.relu(x))

    assert_computes(Net(call), {"up.weight": up, "out.weight": point}, x, expected)


def test_flaxs_own_padding_is_the_modules():
    """A kernel is a kernel: 'SAME' with stride 2 pads on one side only, in Flax."""
    x = RNG.normal(size=(3, 3, 8, 8))
    kernel, out = weights(4, 3, 3, 3), weights(2, 4)
    padded = np.pad(x, ((0, 0), (0, 0), (0, 1), (0, 1)))
    expected = relu(conv(padded, kernel, 2)).mean((2, 3)) @ out.T

    def call(x):
        x = nn.relu(nn.Conv(4, (3, 3), 2, use_bias=False)(x))
        return dense(2)(x.mean((1, 2)))

    assert_computes(Net(call), {"c.weight": kernel, "f.weight": out}, x, expected)


def test_dense_layers_that_timm_writes_as_convolutions():
    """timm's VGG: a convolution over the whole map, and one over a single place."""
    module, shape = VGG((2, "M", 3, "M"), 4, hidden=(5, 6)), (1, 8, 8, 3)
    x = RNG.normal(size=(2, 3, 8, 8))
    a, b, c, d = weights(2, 3, 3, 3), weights(3, 2, 3, 3), weights(5, 3, 2, 2), None
    d, e = weights(6, 5, 1, 1), weights(4, 6)
    first, second = random_norm(2), random_norm(3)
    state = {"features.0.weight": a, "features.0.bias": np.ones(2, "f4")}
    state |= under("features.1", first)
    state |= {"features.4.weight": b, "features.4.bias": np.ones(3, "f4")}
    state |= under("features.5", second)
    for name, w in (("pre_logits.fc1", c), ("pre_logits.fc2", d), ("head.fc", e)):
        state |= {f"{name}.weight": w, f"{name}.bias": np.zeros(len(w), "f4")}
    maps = pool(relu(norm(conv(x, a, pad=1) + 1, first)), 2)
    maps = pool(relu(norm(conv(maps, b, pad=1) + 1, second)), 2)
    hidden = relu(relu(conv(maps, c))[:, :, 0, 0] @ d[:, :, 0, 0].T)
    assert_computes(module, state, x, hidden @ e.T)
    del state["head.fc.weight"], state["head.fc.bias"]
    with pytest.raises(ValueError, match="missing: dense weight of dense2"):
        load_pytorch(module, state, shape)


# What meets a flattened map.


def maps():
    return RNG.uniform(size=(6, 3, 2, 4))


def test_a_dense_after_a_flattened_map():
    x, hidden, out = maps(), weights(5, 24), weights(3, 5)
    expected = relu(x.reshape(6, -1) @ hidden.T) @ out.T
    state = {"a.weight": hidden, "b.weight": out}

    def call(x):
        return dense(3)(nn.relu(dense(5)(flat(nn.relu(x)))))

    assert_computes(Net(call), state, x, expected)

    def channel_first(x):  # as some do it by hand
        x = nn.relu(dense(5, name="first")(flat(x.transpose(0, 3, 1, 2))))
        return dense(3)(x)

    loaded = assert_computes(Net(channel_first), state, x, expected)
    np.testing.assert_array_equal(
        loaded.variables["params"]["first"]["kernel"], hidden.T
    )


def test_a_shortcut_around_dense_layers_keeps_pytorchs_order():
    x, down, up, out = maps(), weights(5, 24), weights(24, 5), weights(4, 24)
    bias, values = weights(24, 1).ravel(), random_norm(24)
    flattened = x.reshape(6, -1)
    inner = norm(relu(flattened @ down.T) @ up.T + bias, values)
    expected = relu(flattened + inner) @ out.T
    state = {"fc1.weight": down, "fc2.weight": up, "fc2.bias": bias}
    state |= under("bn", values) | {"fc3.weight": out}

    def call(x):
        x = flat(x)
        y = dense(24, bias=True)(nn.relu(dense(5)(x)))
        return dense(4)(nn.relu(x + batch_norm()(y)))

    assert_computes(Net(call), state, x, expected)


def test_a_normalisation_of_a_flattened_map():
    x, values, out = maps(), random_norm(24), weights(3, 24)
    expected = relu(norm(x.reshape(6, -1), values)) @ out.T

    def call(x):
        return dense(3)(nn.relu(batch_norm()(flat(x))))

    assert_computes(Net(call), under("n", values) | {"f.weight": out}, x, expected)


def test_features_that_become_a_map():
    x, up, kernel = RNG.normal(size=(4, 5)), weights(24, 5), weights(2, 3, 3, 3)
    bias = weights(24, 1).ravel()
    grid = relu(x @ up.T + bias).reshape(4, 3, 2, 4)
    expected = last(conv(grid, kernel, pad=1))

    def call(x):
        x = nn.relu(dense(24, bias=True)(x)).reshape(-1, 2, 4, 3)
        return conv3(2)(x)

    state = {"up.weight": up, "up.bias": bias, "out.weight": kernel}
    assert_computes(Net(call), state, x, expected)


def test_flattened_maps_side_by_side():
    x, extra, out = maps(), weights(5, 3), weights(3, 17)
    parts = pool(x, 2).reshape(6, -1), relu(x.mean((2, 3)) @ extra.T), x[:, :, 0, 0] * 2
    parts = (*parts, x[:, :, 1, 3])
    expected = np.concatenate(parts, 1) @ out.T

    def call(x):
        parts = flat(nn.max_pool(x, (2, 2), (2, 2)))
        pooled = nn.relu(dense(5)(x.mean((1, 2))))
        rest = x[:, 0, 0] * 2, x[:, 1, 3]
        return dense(3)(jnp.concatenate([parts, pooled, *rest], -1))

    assert_computes(Net(call), {"e.weight": extra, "o.weight": out}, x, expected)


def test_maps_pooled_by_reshaping_and_repeated():
    x, out = RNG.normal(size=(3, 2, 4, 4)), weights(3, 32)
    pooled = pool(x, 2).repeat(2, 2).repeat(2, 3)
    expected = relu(pooled).reshape(3, -1) @ out.T

    def call(x):
        x = x.reshape(-1, 2, 2, 2, 2, 2).max((2, 4))
        x = x.repeat(2, 1).repeat(2, 2)
        return dense(3)(flat(nn.relu(x)))

    assert_computes(Net(call), {"o.weight": out}, x, expected)


@pytest.mark.parametrize("kind", ["no channels", "pixels", "tokens", "mixed"])
def test_orders_that_cannot_be_told_are_refused(kind):
    """Where PyTorch's network may be one or the other."""

    def no_channels(x):  # [B, H, W], or [B, T, C]
        return dense(3)(nn.relu(dense(5)(flat(x[..., 0]))))

    def pixels(x):  # channels made of pixels: C is the last part of them, or the first
        x = x.reshape(-1, 2, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
        return conv3(3)(nn.relu(x.reshape(-1, 2, 2, 12)))

    def tokens(x):  # nn.Linear works on the last axis: is the flattened one [T, C]?
        return dense(3)(flat(nn.relu(dense(5)(x))))

    def mixed(x):  # [C, H, W] next to [H, W, C]
        return dense(3)(nn.relu(flat(x) + flat(x.transpose(0, 3, 1, 2))))

    call = {"no channels": no_channels, "pixels": pixels, "tokens": tokens}
    module = Net(call.get(kind, mixed))
    shape = (1, 4, 4, 3)
    if kind == "no channels":
        module, shape = Net(lambda x: no_channels(x[..., None])), (1, 4, 4)
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros(shape))
    state = {
        f"{path[1]}.weight": np.ones(leaf.shape, "f4").transpose(
            (3, 2, 0, 1) if leaf.ndim == 4 else (1, 0)
        )
        for path, leaf in flatten_dict(variables).items()
    }
    with pytest.raises(ValueError, match="PyTorch") as caught:
        load_pytorch(module, state, shape)
    named = {"mixed": "add", "pixels": "Conv_0"}.get(kind, "Dense_0")
    assert named in str(caught.value) or "Dense_1" in str(caught.value)


def test_a_global_average_needs_no_order():
    x, kernel, out = RNG.normal(size=(3, 2, 3, 8)), weights(4, 2, 3, 3), weights(2, 4)
    expected = relu(conv(x, kernel, pad=1)).mean((2, 3)) @ out.T

    def call(x):
        return dense(2)(nn.relu(conv3(4)(x)).mean((1, 2)))

    assert_computes(Net(call), {"c.weight": kernel, "f.weight": out}, x, expected)


# Normalisations.


def test_the_epsilon_is_the_modules():
    x = RNG.normal(size=(3, 3, 4, 4)) * 0.02
    kernel, values, out = weights(4, 3, 3, 3), random_norm(4), weights(2, 4)
    values["running_mean"] *= np.float32(0.01)
    values["running_var"] = np.float32(RNG.uniform(1e-4, 4e-4, 4))
    state = {"c.weight": kernel, **under("n", values), "f.weight": out}
    for epsilon in (1e-5, 1e-3):
        drive = norm(conv(x, kernel, pad=1), values, epsilon)
        expected = relu(drive).mean((2, 3)) @ out.T

        def call(x, epsilon=epsilon):
            x = nn.relu(batch_norm(epsilon=epsilon)(conv3(4)(x)))
            return dense(2)(x.mean((1, 2)))

        assert_computes(Net(call), state, x, expected)


def test_a_normalisation_without_weight_and_bias():
    x, kernel, out = RNG.normal(size=(3, 3, 4, 4)), weights(4, 3, 3, 3), weights(2, 4)
    values = random_norm(4) | {"weight": np.ones(4, "f4"), "bias": np.zeros(4, "f4")}
    expected = relu(norm(conv(x, kernel, pad=1), values)).mean((2, 3)) @ out.T
    state = {"c.weight": kernel, "f.weight": out} | {
        f"n.{leaf}": values[leaf] for leaf in ("running_mean", "running_var")
    }
    for affine in (True, False):

        def call(x, affine=affine):
            x = batch_norm(use_scale=affine, use_bias=affine)(conv3(4)(x))
            return dense(2)(nn.relu(x).mean((1, 2)))

        loaded = assert_computes(Net(call), state, x, expected)
        assert ("(weight: 1)" in str(loaded)) == affine


def test_normalisations_after_the_relu_and_before_the_convolution():
    x = RNG.normal(size=(3, 4, 6, 6))
    kernels, values = [weights(4, 4, 3, 3) for _ in range(3)], [random_norm(4)] * 0
    values, out = [random_norm(4) for _ in range(4)], weights(2, 4)
    y = norm(relu(conv(x, kernels[0], pad=1)), values[0])
    for kernel, value in zip(kernels[1:], values[1:3], strict=True):
        y = y + conv(relu(norm(y, value)), kernel, pad=1)
    expected = relu(norm(y, values[3])).mean((2, 3)) @ out.T
    state = {"0.weight": kernels[0], **under("2", values[0])}
    for i in (1, 2):
        state |= under(f"blocks.{i}.bn1", values[i])
        state[f"blocks.{i}.conv1.weight"] = kernels[i]
    state |= under("bn", values[3]) | {"fc.weight": out}

    def call(x):
        x = batch_norm()(nn.relu(conv3(4)(x)))
        for _ in range(2):
            x = x + conv3(4)(nn.relu(batch_norm()(x)))
        return dense(2)(nn.relu(batch_norm()(x)).mean((1, 2)))

    assert_computes(Net(call), state, x, expected)


def test_a_slope_is_a_number_with_or_without_an_axis():
    x, kernel, out = RNG.normal(size=(3, 4)), weights(5, 4), weights(2, 5)
    hidden = x @ kernel.T
    expected = np.where(hidden > 0, hidden, 0.3 * hidden) @ out.T
    state = {"a.weight": kernel, "b.weight": np.float32([0.3]), "c.weight": out}
    module = nn.Sequential([dense(5), nn.PReLU(), dense(2)])
    assert_computes(module, state, x, expected)


# Files and wrappers.


def small():
    """A module, its variables, and its state dict."""
    module = Net(lambda x: dense(2, bias=True)(nn.relu(conv3(3)(x)).mean((1, 2))))
    return module, *written(module, (1, 4, 4, 2), ("conv", "fc"))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 182, "best_prec1": 91.7},
        lambda state: {
            "epoch": 3,
            "model": state,
            "optimizer": {"state": {0: {"momentum": state["conv.weight"]}}},
        },
        lambda state: {"model_state_dict": state, "ema": state},
        lambda state: {"checkpoint": {"state_dict": state}},
    ],
)
def test_checkpoints_hold_the_state_dict_under_a_key(wrap):
    module, variables, state = small()
    loaded = load_pytorch(module, wrap(state), (1, 4, 4, 2))
    assert_equal(loaded.variables, variables)


def test_which_of_two_state_dicts_is_meant():
    module, _, state = small()
    with pytest.raises(ValueError, match=r"source\['student'\], source\['teacher'\]"):
        load_pytorch(module, {"student": state, "teacher": state}, (1, 4, 4, 2))
    with pytest.raises(ValueError, match="no tensor"):
        load_pytorch(module, {}, (1, 4, 4, 2))
    with pytest.raises(ValueError, match="epoch: expected a tensor"):
        load_pytorch(module, state | {"epoch": 3}, (1, 4, 4, 2))


def test_half_precision_is_widened(tmp_path):
    module, variables, state = small()
    for kind in (jnp.float16, jnp.bfloat16):
        half = {name: jnp.asarray(value, kind) for name, value in state.items()}
        save_flax(half, tmp_path / "weights")
        for source in (half, tmp_path / "weights"):
            found = load_pytorch(module, source, (1, 4, 4, 2)).variables
            assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))
            expected = jax.tree.map(
                lambda x, k=kind: np.float32(x.astype(k)), variables
            )
            assert_equal(found, expected)
    with pytest.raises(ValueError, match="conv.weight: expected floating-point"):
        whole = {name: np.int8(value) for name, value in state.items()}
        load_pytorch(module, whole, (1, 4, 4, 2))


def test_files_that_are_none(tmp_path, monkeypatch):
    module, _, state = small()
    path = tmp_path / "weights"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load_pytorch(module, path, (1, 4, 4, 2))
    path.write_bytes(b"something else")
    with pytest.raises(ValueError, match="neither"):
        load_pytorch(module, path, (1, 4, 4, 2))
    path.write_bytes(b"PK\x03\x04 and so on")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r'pip install "jaxburst\[torch\]"'):
        load_pytorch(module, path, (1, 4, 4, 2))
    with pytest.raises(FileNotFoundError, match="weights.none"):
        load_pytorch(module, tmp_path / "weights.none", (1, 4, 4, 2))
    with pytest.raises(TypeError, match=r"Linen module, found \(\)"):
        load_pytorch((), state, (1, 4, 4, 2))


# What does not fit.


def test_every_misfit_is_listed_in_one_error():
    module, shape, names = DIALECTS["torchvision vgg"]
    _, state = written(module, shape, names)
    del state["features.4.bias"]
    state["features.0.weight"] = state["features.0.weight"][:, :, :2]
    state["classifier.9.running_mean"] = np.zeros(3, np.float32)
    state["classifier.0.mask"] = np.zeros(3, np.float32)
    state["temperature"] = np.zeros(1, np.float32)
    with pytest.raises(ValueError) as caught:
        load_pytorch(module, {f"module.{k}": v for k, v in state.items()}, shape)
    message = str(caught.value)
    for problem in (
        "5 problems",
        "missing: module.features.4.bias for Conv_1",
        "wrong shape: module.features.0.weight is (2, 3, 2, 3), but Conv_0 needs "
        "(2, 3, 3, 3)",
        "left over: module.classifier.9.running_mean",
        "left over: module.classifier.0.mask",
        "left over: module.temperature",
    ):
        assert problem in message, message


def test_missing_layers_are_listed_by_path():
    module, shape, names = DIALECTS["torchvision resnet"]
    _, state = written(module, shape, names)
    gone = {key: value for key, value in state.items() if not key.startswith("fc")}
    with pytest.raises(ValueError, match="missing: dense weight of dense0"):
        load_pytorch(module, gone, shape)


def test_layers_that_are_not_known_are_named():
    def call(x):
        return nn.DenseGeneral(3, axis=(1, 2, 3))(nn.relu(x))

    state = {"fc.weight": weights(3, 12), "fc.bias": np.zeros(3, "f4")}
    with pytest.raises(ValueError, match="not known here: kernel .* of DenseGeneral_0"):
        load_pytorch(Net(call), state, (1, 2, 2, 3))


def test_the_table_says_what_went_where():
    module, _, state = small()
    table = str(load_pytorch(module, state, (1, 4, 4, 2)))
    assert table.splitlines() == [
        "conv.weight  3x2x3x3  params/Conv_0/kernel   3x3x2x3",
        "fc.weight    2x3      params/Dense_0/kernel  3x2",
        "fc.bias      2        params/Dense_0/bias    2",
    ]
