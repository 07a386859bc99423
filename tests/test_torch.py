"""What PyTorch computes, the imported function computes: under jit, for any batch."""

import functools
import inspect
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason='pip install "jaxburst[torch]"')

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from jaxburst.io.torch import from_torch  # noqa: E402
from jaxburst.tracing import trace  # noqa: E402

IMAGE, MAP, SIGNAL = (3, 12, 10), (4, 7, 9), (4, 21)


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Block(nn.Module):
    """A residual block with everything that ResNets and EfficientNets have."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(4, 8, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8, eps=1e-3)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8)
        self.bn2 = nn.BatchNorm2d(8, affine=False)
        self.down = nn.Sequential(nn.Conv2d(4, 8, 1, 2), nn.BatchNorm2d(8))
        self.squeeze = nn.Linear(8, 8)

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu_(self.bn1(self.conv1(x)))))
        gate = torch.sigmoid(self.squeeze(F.adaptive_avg_pool2d(y, 1).flatten(1)))
        return F.relu(y * gate[:, :, None, None] + self.down(x), inplace=True)


class UNet(nn.Module):
    """Down, up by a transposed convolution, concatenated with the way down."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.ReLU6())
        self.deep = nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")
        self.up = nn.ConvTranspose2d(6, 4, 2, 2)
        self.heads = nn.ModuleDict(
            {"mask": nn.Conv2d(8, 2, 1), "edge": nn.Conv2d(8, 1, 1)}
        )

    def forward(self, x):
        down = self.down(x)
        up = self.up(F.max_pool2d(self.deep(down), 2))
        y = torch.cat([down, up], 1)
        return {"mask": self.heads["mask"](y), "edge": (self.heads["edge"](y),)}


class Attention(nn.Module):
    """The patches, class token, positions and blocks of a ViT."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 8, 2, 2)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.register_buffer("positions", torch.randn(1, 31, 8))
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8, eps=1e-6)
        self.blocks = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(
                8, 2, 16, activation="gelu", batch_first=True, norm_first=True
            ),
            1,
            enable_nested_tensor=False,
        )

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        batch, length, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, length, 3, 2, width // 2)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-2, -1)) * (width // 2) ** -0.5
        by_hand = scores.softmax(-1) @ v
        whole = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + (by_hand + whole).transpose(1, 2).reshape(batch, length, width)
        return self.blocks(x)[:, 0]


class Tokens(nn.Module):
    """Whole numbers in, an index out; a table of indices as a buffer."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 6, padding_idx=0)
        self.register_buffer("order", torch.tensor([2, 0, 1]))
        self.rnn_free = nn.Linear(6, 5)

    def forward(self, x):
        y = self.rnn_free(self.embedding(x)[:, self.order])
        return (
            y.argmax(-1),
            F.one_hot(x, 11).float() @ torch.ones(11, 2),
            y.amax((1, 2)),
        )


def shuffle(x):
    batch, channels, *size = x.shape
    x = x.view(batch, 2, channels // 2, *size).transpose(1, 2).contiguous()
    first, second = x.view(batch, channels, *size).chunk(2, 1)
    return F.channel_shuffle(torch.cat([second, first], 1), 2)


def activations(x):
    names = """relu relu6 hardtanh hardswish hardsigmoid leaky_relu gelu silu sigmoid
        tanh elu selu celu softplus softsign mish logsigmoid tanhshrink hardshrink"""
    return (
        [getattr(F, name)(3 * x) for name in names.split()]
        + [F.softmax(x, 1), F.log_softmax(x, -1), F.gelu(x, approximate="tanh")]
        + [F.hardtanh(x, -0.3, 0.5), F.elu(x, 0.5), F.softplus(x, 2.0, 0.4)]
        + [F.threshold(x, 0.1, 0.2), F.glu(x, 1), F.softmin(x, 1)]
    )


def arithmetic(x):
    y = x.abs() + 0.5
    return (
        [x + y, x.sub(y, alpha=2), x * y, x / y, -x, y**2, y**0.5, 2**x, y**-1, y**x]
        + [1 / y, 2 - x, x // y, x % y, torch.fmod(x, y), y.rsqrt(), y.sqrt(), y.log()]
        + [x.exp(), x.clamp(-0.5), x.clamp(max=0.2), x.clip(0, 6), x.sign(), x.floor()]
        + [torch.maximum(x, y), torch.minimum(x, y), torch.where(x > 0, x, -y)]
        + [x.masked_fill(x < 0, 7.0), torch.erf(x), x.sin(), torch.atan2(x, y)]
        + [torch.addcmul(x, x, y, value=0.5), torch.lerp(x, y, 0.25), x.round()]
        + [(x > 0) & (y < 1), (x * 4).int() // 3, (x > 0).float(), x.double().float()]
    )


def reductions(x):
    return (
        [x.mean((2, 3)), x.mean(1, True), x.sum(-1), x.amax((2, 3)), x.amin(1)]
        + [x.max(1)[0], x.min(2, True)[0], x.max(3)[1], x.argmax(1), x.argmin(-1, True)]
        + [x.std(1), x.var((2, 3), unbiased=False), x.norm(dim=1), x.logsumexp(1)]
        + [x.cumsum(1), x.prod(1), (x > 1).any(1), (x > -9).all(3)]
        + [F.normalize(x, dim=1), torch.var_mean(x, (1, 2))[1]]
    )


def put(x):
    y = torch.zeros_like(x)
    y[:, 1:, :2] = x[:, :-1, 1:3]
    y[:, 0] = 2 * x[:, 1]
    y[:, :, [0, 3]] = x[:, :, [1, 1]]
    return y


def shapes(x):
    batch = x.shape[0]
    return (
        [
            x.reshape(batch, -1),
            x.flatten(1, 2),
            x.permute(0, 2, 3, 1),
            x.transpose(1, 3),
        ]
        + [x.unsqueeze(1), x[:, :1].squeeze(1), x[:, 1], x[..., ::2], x[:, -2:, 1:-1]]
        + [x[:, None].expand(-1, 2, -1, -1, -1), x[:, :1].expand(batch, 3, 7, 9)]
        + [*torch.split(x, [1, 3], 1), *x.chunk(3, 3), *x.split(2, 1), x.unbind(1)[2]]
        + [torch.stack([x, -x], 1), x.repeat(1, 2, 1, 1), x.repeat_interleave(2, 2)]
        + [x.roll((1, 2), (2, 3)), x.flip(3), x[:, [2, 0]], x.narrow(2, 1, 3)]
        + [x.unflatten(1, (2, 2)), x.movedim(1, -1), x.tril(), x.triu(1), x.tile(2, 1)]
        + [torch.cat([x, torch.zeros(batch, 2, 7, 9)], 1), torch.zeros_like(x) + 1]
        + [x.gather(1, x.argmax(1, keepdim=True)), x.index_select(1, torch.tensor([1]))]
        + [F.pixel_shuffle(x, 2), F.pixel_unshuffle(x[:, :, :6, :8], 2)]
        + [F.fold(F.unfold(x, (3, 2), stride=2), (7, 9), (3, 2), stride=2), put(x)]
        + [
            torch.einsum("bchw,bdhw->bcd", x, x),
            torch.meshgrid(x[0, 0, 0], x[0, 0, 1])[0],
        ]
    )


def pads(x):
    return [
        F.pad(x, (1, 2, 3, 0), value=2.5),
        F.pad(x, (-1, 2)),
        F.pad(x, (1, 2, 3, 0), mode="reflect"),
        F.pad(x, (1, 2, 3, 0), mode="replicate"),
        F.pad(x, (1, 2, 3, 0), mode="circular"),
        F.pad(x[:, 0], (4, 3), mode="reflect"),
    ]


def resizes(x):
    return [
        F.interpolate(x, scale_factor=2),
        F.interpolate(x, size=(5, 13)),
        F.interpolate(x, scale_factor=(1.5, 0.7)),
        F.interpolate(x, scale_factor=(1.1, 0.6)),
        F.interpolate(x[:, :, :4], scale_factor=(2.2, 1)),
        F.interpolate(x, scale_factor=(1.1, 2), mode="bilinear"),
        F.interpolate(x, scale_factor=2, mode="bilinear"),
        F.interpolate(x, size=(5, 13), mode="bilinear"),
        F.interpolate(x, scale_factor=1.7, mode="bilinear", align_corners=True),
        F.interpolate(x, scale_factor=1.7, mode="bilinear"),
        F.interpolate(
            x, scale_factor=1.7, mode="bilinear", recompute_scale_factor=True
        ),
        F.interpolate(x, size=(4, 13), mode="bilinear", antialias=True),
        F.interpolate(x, scale_factor=(1.6, 0.4), mode="bilinear", antialias=True),
        F.interpolate(x, size=(10, 4), mode="bicubic"),
        F.interpolate(x, size=(10, 4), mode="bicubic", align_corners=True),
        F.interpolate(x[:, 0], scale_factor=3, mode="linear"),
        F.interpolate(x[:, None], size=(2, 9, 9), mode="trilinear"),
    ]


def pools(x):
    line = x[:, 0]
    return (
        [F.max_pool2d(x, 3, 2, 1, ceil_mode=c) for c in (False, True)]
        + [F.max_pool2d(x, (2, 3), (3, 2), (1, 0), ceil_mode=True)]
        + [F.max_pool2d(x, 2, 1, dilation=(3, 2)), F.max_pool2d(-x.abs() - 1, 3, 1, 1)]
        + [
            F.avg_pool2d(x, (3, 2), 2, (1, 0), ceil_mode=c, count_include_pad=p)
            for c in (False, True)
            for p in (False, True)
        ]
        + [F.avg_pool2d(x, 2, divisor_override=3), F.avg_pool1d(line, 3, 2, 1)]
        + [
            F.max_pool1d(line, 3),
            F.max_pool3d(x[:, None], 2),
            F.avg_pool3d(x, (1, 2, 2)),
        ]
        + [F.adaptive_avg_pool2d(x, s) for s in (1, (7, 3), (5, 4), (None, 2))]
        + [F.adaptive_max_pool2d(x, s) for s in (1, (7, 3), (5, 4))]
        + [F.adaptive_avg_pool1d(line, 2), F.adaptive_max_pool1d(line, 1)]
        + [F.adaptive_avg_pool3d(x[:, None], (2, 3, 3))]
    )


def norms(x):
    return [
        F.instance_norm(x),
        F.group_norm(x, 2, eps=0.1),
        F.layer_norm(x, (7, 9)),
        F.local_response_norm(x, 3),
        F.rms_norm(x, (9,)),
    ]


MODULES = {
    "residual": (Block, MAP),
    "unet": (UNet, IMAGE),
    "attention": (Attention, IMAGE),
    "activations": (lambda: Lambda(activations), MAP),
    "arithmetic": (lambda: Lambda(arithmetic), MAP),
    "reductions": (lambda: Lambda(reductions), MAP),
    "shapes": (lambda: Lambda(shapes), MAP),
    "shuffle": (lambda: Lambda(shuffle), MAP),
    "pads": (lambda: Lambda(pads), MAP),
    "resizes": (lambda: Lambda(resizes), MAP),
    "pools": (lambda: Lambda(pools), MAP),
    "norms": (lambda: Lambda(norms), MAP),
    "uneven": (lambda: nn.Conv2d(3, 6, (4, 2), (3, 1), (2, 1), groups=3), IMAGE),
    "conv1d": (lambda: nn.Conv1d(4, 6, 4, 3, padding=2, dilation=2), SIGNAL),
    "same": (lambda: nn.Conv1d(4, 6, 4, padding="same"), SIGNAL),
    "conv3d": (lambda: nn.Conv3d(2, 4, (1, 3, 2), 2, 1, groups=2), (2, 5, 6, 7)),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, (3, 4), (2, 3), (1, 2), (1, 2), 2, dilation=2),
        MAP,
    ),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 2, 5, 4, bias=False), SIGNAL),
    "transposed3d": (lambda: nn.ConvTranspose3d(2, 4, 3, 2, 1, 1), (2, 3, 4, 3)),
    "dense": (
        lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(84, 7), nn.BatchNorm1d(7), nn.Dropout(), nn.PReLU(7)
        ),
        SIGNAL,
    ),
    "batch_norms": (
        lambda: nn.Sequential(
            nn.BatchNorm1d(4, affine=False),
            nn.InstanceNorm1d(4, affine=True, track_running_stats=True),
            nn.GroupNorm(2, 4),
            nn.LayerNorm((4, 21), bias=False),
            nn.PReLU(),
        ),
        SIGNAL,
    ),
    "weight_norm": (
        lambda: nn.Sequential(
            nn.utils.parametrizations.weight_norm(nn.Conv1d(4, 3, 3)),
            nn.utils.parametrizations.spectral_norm(nn.Conv1d(3, 2, 3)),
        ),
        SIGNAL,
    ),
    "orthogonal": (
        lambda: nn.Sequential(
            *(
                nn.utils.parametrizations.orthogonal(
                    nn.Linear(21, size), "weight", kind
                )
                for size, kind in ((21, "cayley"), (21, "matrix_exp"))
            ),
            nn.utils.parametrizations.orthogonal(nn.Linear(21, 9)),  # householder
        ),
        SIGNAL,
    ),
}


def built(name):
    """A module in eval mode with random parameters and statistics, and inputs."""
    make, shape = MODULES[name]
    torch.manual_seed(0)
    module = make().eval()
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            if tensor.is_floating_point() and "spectral" not in name:
                tensor.add_(0.1 * torch.rand_like(tensor))
    return module, torch.randn(3, *shape)


@functools.cache
def imported(name):
    module, x = built(name)
    return module, x, *from_torch(module, x[:1])


def both(module, x, function, variables):
    """Leaves of what PyTorch and JAX return."""
    with torch.no_grad():
        wanted = jax.tree.leaves(module(x.clone()))
    found = jax.jit(function)(variables, x.numpy())
    return [w.numpy() for w in wanted], jax.tree.leaves(found)


def assert_equal(wanted, found):
    assert len(wanted) == len(found) > 0
    for i, (w, f) in enumerate(zip(wanted, found, strict=True)):
        assert w.shape == f.shape, i
        assert jnp.dtype(f.dtype) == jax.dtypes.canonicalize_dtype(w.dtype), i
        scale = np.abs(w.astype(float)).max()
        np.testing.assert_allclose(f, w, rtol=0, atol=1e-5 * scale, err_msg=str(i))


@pytest.mark.parametrize("name", MODULES)
def test_outputs_are_pytorchs(name):
    module, x, function, variables = imported(name)
    assert_equal(*both(module, x, function, variables))


@pytest.mark.parametrize("name", MODULES)
def test_a_symbolic_batch_gives_one_program(name):
    module, x, function, variables = imported(name)
    (b,) = jax.export.symbolic_shape("b")
    spec = jax.ShapeDtypeStruct((b, *x.shape[1:]), jnp.float32)
    outputs = jax.make_jaxpr(function)(variables, spec).out_avals
    with torch.no_grad():
        wanted = [tuple(w.shape) for w in jax.tree.leaves(module(x))]
    found = [tuple(eval(str(d), {"b": 3}) for d in o.shape) for o in outputs]
    assert found == wanted, "b is 3"


def test_whole_numbers_several_inputs_and_constants():
    torch.manual_seed(0)
    module = Tokens().eval()
    x = torch.randint(0, 11, (4, 3))
    function, variables = from_torch(module, x)
    assert set(variables) == {"embedding", "rnn_free"}, "indices are no variables"
    assert_equal(*both(module, x, function, variables))

    class Two(nn.Module):
        def forward(self, x, y):
            return y - x.sum(1), None

    pair = torch.randn(1, 5, 2), torch.randn(1, 2)
    function, variables = from_torch(Two().eval(), pair)
    found, nothing = function(variables, tuple(p.numpy() for p in pair))
    assert variables == {} and nothing is None
    np.testing.assert_allclose(found, pair[1] - pair[0].sum(1), rtol=1e-5)


def test_variables_have_the_modules_names_and_are_the_modules():
    module, x = built("residual")
    function, variables = from_torch(module, x)
    flat = {
        "/".join(key.key for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    state = module.state_dict()
    names = {n for n, t in state.items() if t.is_floating_point()}
    assert set(flat) == {name.replace(".", "/") for name in names}
    for name in names:
        np.testing.assert_array_equal(flat[name.replace(".", "/")], state[name])
    with torch.no_grad():
        module.conv1.weight.zero_()
    assert np.any(variables["conv1"]["weight"]), "a copy"

    other, _ = built("residual")
    with torch.no_grad():
        other.conv1.weight.mul_(-2)
    _, changed = from_torch(other, x)
    assert_equal(*both(other, x, function, changed))
    with pytest.raises(ValueError, match="variables lack 'conv1.weight'"):
        function({}, x.numpy())


def test_it_works_under_vmap_and_grad_as_pytorch_does():
    module, x = built("residual")
    function, variables = from_torch(module, x)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        wanted = jax.jit(function)(variables, x.numpy())
        one = lambda image: function(variables, image[None])[0]  # noqa: E731
        np.testing.assert_allclose(jax.jit(jax.vmap(one))(x.numpy()), wanted, atol=1e-5)
        loss = lambda v: (function(v, x.numpy()) ** 2).sum()  # noqa: E731
        found = jax.jit(jax.grad(loss))(variables)["conv1"]["weight"]
    (module(x) ** 2).sum().backward()
    wanted = module.conv1.weight.grad.numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4 * np.abs(wanted).max())


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        inner = [
            v
            for v in equation.params.values()
            if isinstance(v, jax.extend.core.ClosedJaxpr)
        ]
        yield equation.primitive.name
        for each in inner:
            yield from primitives(each.jaxpr)


def test_a_network_of_relus_is_spelled_in_plain_primitives():
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(24, 5),
    ).eval()  # fmt: skip
    x = torch.randn(1, 3, 12, 10)
    function, variables = from_torch(net, x)
    jaxpr = jax.make_jaxpr(function)(variables, x.numpy())
    found = set(primitives(jaxpr.jaxpr))
    assert found <= set(
        """add broadcast_in_dim conv_general_dilated custom_jvp_call div dot_general
        integer_pow jit max mul neg reduce_window_max reduce_window_sum reshape sqrt
        sub""".split()
    )
    assert {"custom_jvp_call", "reduce_window_max", "reduce_window_sum"} <= found
    stacks = {str(e.source_info.name_stack) for e in jaxpr.eqns}
    assert {"0", "2", "6"} <= stacks, "equations lie in the modules' scopes"


def test_batches_behind_each_other():
    """Both halves of a doubled batch go through one network, and are traced."""

    def both(x):
        return torch.relu(torch.cat([x, -x])).chunk(2)[1] + torch.ones_like(x)

    x = np.float32([[1, -2, 3], [-1, 2, -3]])
    function, variables = from_torch(Lambda(both).eval(), x)
    network = trace(function, variables, x[:1])
    np.testing.assert_array_equal(network(variables, x), np.maximum(-x, 0) + 1)


def test_half_precision_is_widened_and_said():
    module, x = built("residual")
    module.to(torch.bfloat16)
    with pytest.warns(UserWarning, match="half-precision .* widened to float32"):
        function, variables = from_torch(module, x.bfloat16())
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    assert_equal(*both(module.float(), x, function, variables))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_torch(module, x)


class Named(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.inner = Lambda(function)

    def forward(self, x):
        return self.inner(x)


REFUSED = {
    "sort": (
        lambda x: x.sort(1)[0],
        r"aten\.sort.* in inner \(Lambda\).*forward; return",
    ),
    "topk": (lambda x: x.topk(2)[0], r"aten\.topk"),
    "indices": (
        lambda x: F.max_pool2d(x, 2, return_indices=True)[1],
        r"indices of aten\.max_pool2d.*inner",
    ),
    "antialias": (
        lambda x: F.interpolate(x, size=(3, 3), mode="bicubic", antialias=True),
        "upsample_bicubic2d_aa",
    ),
    "batch statistics": (
        lambda x: F.batch_norm(x, None, None, training=True),
        "statistics of the batch",
    ),
    "dropout": (F.dropout, "training mode.*training=self.training"),
    "fixed batch": (lambda x: x.reshape(2, -1), "free batch"),
    "value-dependent": (lambda x: x if x.sum() > 0 else -x, "cannot write"),
    "complex": (lambda x: torch.fft.fft(x).abs(), "aten._fft|complex"),
    "mask": (lambda x: x[x > 0], "cannot write|mask|free batch"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_operation_and_the_place(name):
    function, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        from_torch(Named(function).eval(), torch.randn(2, *MAP))


def test_training_mode_wrong_examples_and_wrong_inputs_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Dropout())
    with pytest.raises(ValueError, match=r"training mode: call module\.eval\(\)"):
        from_torch(net, torch.zeros(1, *IMAGE))
    net.eval()
    with pytest.raises(ValueError, match="expected tensors or arrays, found"):
        from_torch(net, object())
    with pytest.raises(ValueError, match="first axis of every input is the batch"):
        from_torch(net, (torch.zeros(1, 2), torch.zeros(2, 2)))
    function, variables = from_torch(net, np.zeros((1, *IMAGE), np.float32))
    with pytest.raises(ValueError, match=r"expected \[B, 3, 12, 10\].*found \(1, 3, 9"):
        function(variables, jnp.zeros([1, 3, 9, 9]))


def test_the_docstrings_example_runs():
    import doctest

    names = {"torch": torch, "jnp": jnp, "from_torch": from_torch}
    (test,) = doctest.DocTestFinder(recurse=False).find(
        from_torch, "from_torch", globs=names
    )
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0
    assert inspect.getdoc(from_torch)
