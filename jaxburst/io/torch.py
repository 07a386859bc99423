"""A PyTorch module becomes a JAX function and its variables.

`torch.export` writes the module down as a graph of ATen operations; a table below says
what each is in JAX. An argument of an operation that its function does not name must
have its default value, so that nothing is ignored in silence.
"""

from __future__ import annotations

import copy
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from jaxburst.checks import finite, instance
from jaxburst.io import _operations as ops

try:
    import torch
    import torch.utils._pytree
except ImportError as error:
    raise ImportError(
        'from_torch needs PyTorch: pip install "jaxburst[torch]"'
    ) from error

# Where tensors lie and whether they alias: nothing to a pure function.
_IGNORED = {"device", "layout", "memory_format", "non_blocking", "pin_memory"}
_IGNORED |= {"implicit", "generator"}

# What export would take apart, and what reads better (or is faster) whole.
_KEPT = """
    einsum group_norm hardsigmoid hardswish instance_norm layer_norm linear log_softmax
    matmul mish reflection_pad1d reflection_pad2d reflection_pad3d relu6
    replication_pad1d replication_pad2d replication_pad3d roll
    scaled_dot_product_attention selu silu softmax softplus upsample_bicubic2d
    upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d
""".split()


TOLERANCE = 1e-3
"""By how much, relative to the largest output, a function may differ from PyTorch's."""


def from_torch(module: torch.nn.Module, example: Any) -> tuple[Callable, dict]:
    """Turns a PyTorch module in eval mode into a pure JAX function.

    The function takes what the module takes, channel-first, for any batch: the first
    axis of every input is the batch, and may be symbolic. It works under `jit`, `vmap`
    and `grad`. Half-precision weights are widened to float32, with a warning.

    Args:
      module: the module, after `module.eval()`. It is left as it was.
      example: what it is called with: a tensor `[B, ...]`, or a tuple of them. NumPy
        and JAX arrays do as well. Shapes matter, and the values for the check.

    Returns:
      `(function, variables)`: `function(variables, inputs)` returns what the module
      returns, with `inputs` as in `example`; `variables` holds parameters and floating
      buffers in nested dicts, `layer1.0.conv1.weight` at `layer1/0/conv1/weight`.

    Raises:
      ValueError: for a module in training mode, one that cannot be exported or fixes
        its batch, an operation or argument that is not in the table (by name and
        place), or outputs that differ.

    Examples:
      >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU()).eval()
      >>> function, variables = from_torch(net, torch.zeros(1, 3, 9, 9))
      >>> variables["0"]["weight"].shape
      (8, 3, 3, 3)
      >>> function(variables, jnp.zeros([5, 3, 9, 9])).shape
      (5, 8, 7, 7)

    References:
      PyTorch, "torch.export" and "Core ATen IR",
      https://docs.pytorch.org/docs/stable/export.html
    """
    instance("module", module, torch.nn.Module, "a torch.nn.Module, in eval mode")
    training = [n or "the module" for n, m in module.named_modules() if m.training]
    if training:
        raise ValueError(
            f"{training[0]} is in training mode: call module.eval() before from_torch"
        )
    alone = not isinstance(example, tuple | list)
    tensors = [_widened(_tensor(x)) for x in ([example] if alone else example)]
    batches = {len(x) if x.ndim else None for x in tensors}
    if len(batches) != 1 or None in batches:
        raise ValueError(
            "the first axis of every input is the batch, one for all, found shapes "
            f"{[tuple(x.shape) for x in tensors]}"
        )
    module = _single_precision(module)
    if batches == {1}:  # export takes a batch of one to be always one
        tensors = [torch.cat([x, x]) for x in tensors]
    program = _export(module, tensors)
    program, variables = _read(program)
    finite("module", variables, "train it again", masks=True)
    finite("example", [np.asarray(x) for x in tensors], "normalise it again")

    def function(variables: dict, inputs: Any) -> Any:
        values = (inputs,) if alone else tuple(inputs)
        _check_inputs(values, tensors)
        instance("variables", variables, dict, "those that from_torch returned")
        flat = flatten_dict(variables, sep=".")
        # PyTorch broadcasts and promotes, whatever the user of JAX has forbidden.
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return program(flat, [jnp.asarray(x) for x in values])

    _check_outputs(module, tensors, function, variables, alone)
    return function, variables


class _Ref(NamedTuple):
    """Stands for the value of another step."""

    name: str


class _Step(NamedTuple):
    """One operation: `name = call(**arguments)`, at a place in the module."""

    name: str
    call: Callable
    arguments: dict[str, Any]
    dtype: Any
    scope: str


class _Program(NamedTuple):
    """The exported graph, without PyTorch."""

    parameters: dict[str, str]  # step: name of a variable
    constants: dict[str, np.ndarray]
    inputs: tuple[str, ...]
    steps: tuple[_Step, ...]
    outputs: tuple[Any, ...]
    structure: Any  # of what is returned, with positions in `outputs` as leaves

    def __call__(self, variables: dict[str, Any], inputs: Sequence[jax.Array]) -> Any:
        values: dict[str, Any] = {k: jnp.asarray(v) for k, v in self.constants.items()}
        values.update(zip(self.inputs, inputs, strict=True))
        for step, name in self.parameters.items():
            if name not in variables:
                raise ValueError(
                    f"variables lack {name!r}, expected what from_torch returned"
                )
            values[step] = variables[name]
        for step in self.steps:
            with jax.named_scope(step.scope or "module"):
                value = step.call(**_resolve(step.arguments, values))
            if step.dtype is not None and value.dtype != step.dtype:
                value = value.astype(step.dtype)
            values[step.name] = value
        outputs = [_resolve(o, values) for o in self.outputs]
        return jax.tree.map(lambda i: outputs[i], self.structure)


def _resolve(tree, values):
    """Values in the place of references."""
    return jax.tree.map(
        lambda leaf: values[leaf.name] if isinstance(leaf, _Ref) else leaf,
        tree,
        is_leaf=lambda leaf: isinstance(leaf, _Ref),
    )


def _tensor(x) -> torch.Tensor:
    if isinstance(x, torch.Tensor):
        return x.detach()
    try:
        return torch.from_numpy(np.array(x))
    except TypeError as error:
        raise ValueError(
            f"example: expected tensors or arrays, found {type(x).__name__}"
        ) from error


_HALF = (torch.float16, torch.bfloat16)


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in _HALF else x


def _single_precision(module: torch.nn.Module) -> torch.nn.Module:
    """The module, or a copy without half precision."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    half = [name for name, x in tensors.items() if x.dtype in _HALF]
    if not half:
        return module
    warnings.warn(
        f"{len(half)} half-precision tensors ({half[0]}, ...) are widened to float32",
        stacklevel=3,
    )
    return copy.deepcopy(module)._apply(_widened)


def _export(module: torch.nn.Module, tensors: list[torch.Tensor]):
    """The exported program, decomposed but for `_KEPT`, with a free batch."""
    free = {0: torch.export.Dim.DYNAMIC}
    names = list(inspect.signature(module.forward).parameters.values())
    shapes: Any = tuple(free for _ in tensors)
    if names and names[0].kind is inspect.Parameter.VAR_POSITIONAL:
        shapes = {names[0].name: shapes}
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # an operation with no definition
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(
                module,
                tuple(tensors),
                dynamic_shapes=shapes,
                strict=False,
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            table = torch.export.default_decompositions()
            for name in _KEPT:
                packet = getattr(torch.ops.aten, name, None)
                for overload in packet.overloads() if packet else ():
                    table.pop(getattr(packet, overload), None)
            return exported.run_decompositions(table)
    except Exception as error:
        raise ValueError(
            f"torch.export cannot write {type(module).__name__} down for a free batch "
            "(the first axis of every input). Look for control flow on values and for "
            f"batch numbers in reshapes. It said:\n{error}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _read(exported) -> tuple[_Program, dict]:
    """The program and its variables; refuses what the table does not know."""
    kinds = torch.export.graph_signature.InputKind
    parameters, constants, inputs, variables = {}, {}, [], {}
    for spec in exported.graph_signature.input_specs:
        name = spec.arg.name
        if spec.kind is kinds.USER_INPUT:
            inputs.append(name)
            continue
        if spec.kind is kinds.TOKEN:  # the order of assertions, which are left out
            continue
        if spec.target in exported.state_dict:
            tensor = exported.state_dict[spec.target]
        else:
            tensor = exported.constants.get(spec.target)
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f"{spec.target}: expected a tensor, found {spec.kind}")
        _dtype(tensor.dtype, spec.target)
        array = tensor.detach().cpu().resolve_conj().numpy()
        named = spec.kind in (kinds.PARAMETER, kinds.BUFFER)
        if named and tensor.is_floating_point():
            parameters[name] = spec.target
            variables[spec.target] = jnp.array(array)
        else:  # counters, index tables, literals: nothing to differentiate
            constants[name] = array.copy()

    graph = exported.graph
    (output,) = (n for n in graph.nodes if n.op == "output")
    specs = exported.graph_signature.output_specs
    user = torch.export.graph_signature.OutputKind.USER_OUTPUT
    outputs = [
        value
        for value, spec in zip(output.args[0], specs, strict=True)
        if spec.kind is user
    ]
    needed, pending = set(), [n for n in outputs if isinstance(n, torch.fx.Node)]
    while pending:  # assertions about sizes are left out
        node = pending.pop()
        if node not in needed:
            needed.add(node)
            pending += node.all_input_nodes
    steps = [_step(n) for n in graph.nodes if n in needed and n.op == "call_function"]
    spec = exported.call_spec.out_spec
    structure = torch.utils._pytree.tree_unflatten(list(range(len(outputs))), spec)
    if sorted(jax.tree.leaves(structure)) != list(range(len(outputs))):
        raise ValueError(
            f"the module returns a {type(structure).__name__}: return a tensor, a "
            "tuple or a dict of tensors"
        )
    used = {n.name for n in needed}
    program = _Program(
        parameters={k: v for k, v in parameters.items() if k in used},
        constants={k: v for k, v in constants.items() if k in used},
        inputs=tuple(inputs),
        steps=tuple(steps),
        outputs=tuple(_plain(value) for value in outputs),
        structure=structure,
    )
    return program, unflatten_dict(variables, sep=".")


def _plain(value):
    """Arguments with references for nodes and NumPy's types for PyTorch's."""
    if isinstance(value, torch.fx.Node):
        return _Ref(value.name)
    if isinstance(value, tuple | list):
        return [_plain(v) for v in value]
    if isinstance(value, torch.dtype):
        return _dtype(value, "an argument")
    return value


def _dtype(dtype: torch.dtype, place: str):
    """The JAX type of a PyTorch type, half precision widened."""
    dtype = torch.float32 if dtype in _HALF else dtype
    name = str(dtype).removeprefix("torch.")
    if name not in ("bool", "float32", "float64", "uint8") and name[:3] != "int":
        raise ValueError(
            f"{place}: expected bool, whole or floating numbers, found {dtype}"
        )
    return jax.dtypes.canonicalize_dtype(name)


def _place(node) -> str:
    """Where a node comes from: the module's path and the last line of its source."""
    path, kind = _module(node)
    place = f"in {path or 'the module itself'} ({kind})" if kind else ""
    lines = [line.strip() for line in (node.meta.get("stack_trace") or "").split("\n")]
    lines = [line for line in lines if line]
    return f"{place}: {'; '.join(lines[-2:])}" if lines else place


def _module(node) -> tuple[str, str]:
    """Path and class of the innermost module of a node."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return "", ""
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__name__
    return path.removeprefix("L['self']").lstrip("."), kind.rpartition(".")[2]


_REMEDY = {
    "": "write that layer with operations of the table in jaxburst/io/torch.py",
    "_native_batch_norm_legit": "it uses the statistics of the batch, of which an "
    "image knows nothing; set track_running_stats=True and train",
    "native_dropout": "it is in training mode: pass training=self.training",
}
_POOLS = ("max_pool", "adaptive_max_pool")


def _step(node) -> _Step:
    """Looks a node up in the table and its arguments in the table's function."""
    path, _ = _module(node)
    scope = path.replace(".", "/")
    target = node.target
    if getattr(target, "__module__", None) == "_operator":  # sizes, and tuples
        made_by = getattr(node.args[0], "target", None)
        if node.args[-1] == 1 and getattr(made_by, "__name__", "").startswith(_POOLS):
            raise ValueError(
                f"from_torch does not know the indices of {made_by} (node "
                f"{node.name}, {_place(node)}): return the maxima alone"
            )
        values = {i: _plain(value) for i, value in enumerate(node.args)}
        return _Step(node.name, _apply(target), {"values": values}, None, scope)
    schema = getattr(target, "_schema", None)
    name = schema.name.removeprefix("aten::") if schema else str(target)
    call = _TABLE.get(name)
    if schema is None or call is None:
        raise ValueError(
            f"from_torch does not know {target} (node {node.name}, {_place(node)}): "
            f"{_REMEDY.get(name, _REMEDY[''])}"
        )
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False))
    given.update(node.kwargs)
    defaults = {a.name: a.default_value for a in schema.arguments}
    known = inspect.signature(call).parameters
    arguments = {}
    for key, value in given.items():
        renamed = "x" if key in ("self", "input") else key
        if renamed in known:
            arguments[renamed] = _plain(value)
        elif key not in _IGNORED and value != defaults[key]:
            raise ValueError(
                f"from_torch does not know {key}={value} of {target} (node "
                f"{node.name}, {_place(node)})"
            )
    value = node.meta.get("val")
    dtype = None
    if isinstance(value, torch.Tensor):
        dtype = _dtype(value.dtype, f"{node.name}, {_place(node)}")
    return _Step(node.name, call, arguments, dtype, scope)


def _apply(function):
    return lambda values: function(*values.values())


def _check_inputs(inputs, tensors):
    if len(inputs) != len(tensors):
        raise ValueError(f"expected {len(tensors)} inputs, found {len(inputs)}")
    for i, (x, t) in enumerate(zip(inputs, tensors, strict=True)):
        expected, found = tuple(t.shape[1:]), tuple(np.shape(x)[1:])
        if np.ndim(x) != t.ndim or expected != found:
            raise ValueError(
                f"input {i}: expected [B, {', '.join(map(str, expected))}] as in the "
                f"example, found {np.shape(x)}; call from_torch with such an example"
            )


def _check_outputs(module, tensors, function, variables, alone):
    """Both functions on the example: the table is only as good as its rows."""
    with torch.no_grad():
        wanted = module(*[x.clone() for x in tensors])
    inputs = [jnp.array(x.cpu().numpy()) for x in tensors]
    found = jax.jit(function)(variables, inputs[0] if alone else inputs)
    pairs = zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True)
    for i, (w, f) in enumerate(pairs):
        if not isinstance(w, torch.Tensor):
            continue
        if tuple(w.shape) != f.shape:
            raise ValueError(f"output {i}: expected {tuple(w.shape)}, found {f.shape}")
        if w.is_floating_point() and w.numel():
            w, f = w.double().cpu().numpy(), np.asarray(f, float)
            scale = np.abs(w[np.isfinite(w)]).max(initial=0)
            with np.errstate(invalid="ignore"):
                close = np.isclose(f, w, rtol=0, atol=TOLERANCE * scale, equal_nan=True)
            if not close.all():
                worst = np.nanmax(np.abs(f - w))
                raise ValueError(
                    f"output {i} differs from PyTorch's on the example by {worst:.2g} "
                    f"({scale:.2g} is the largest): an operation is read wrongly; "
                    "please report the module"
                )


# The table: ATen's name, and the function with ATen's names of the arguments.
# `self` and `input` are called x.

_TABLE: dict[str, Callable] = {}


def _aten(*names) -> Callable[[Callable], Callable]:
    def register(function):
        _TABLE.update(dict.fromkeys(names, function))
        return function

    return register


def _those_of(module, names: str) -> dict[str, Callable]:
    """Functions that have ATen's name there."""
    return {name: getattr(module, name) for name in names.split()}


_SAME = "alias clone contiguous detach lift_fresh lift_fresh_copy"
_ONE: dict[str, Callable] = {  # argument, of any name
    **_those_of(
        jnp,
        """abs acos asin atan bitwise_not ceil cos cosh exp exp2 expm1 floor isinf isnan
        log log10 log1p log2 logical_not round sign sin sinh sqrt tan tanh trunc""",
    ),
    **_those_of(jax.nn, "mish relu relu6 selu sigmoid silu"),
    **_those_of(lax, "erf neg rsqrt"),
    _SAME: lambda x: x,
    "hardsigmoid": jax.nn.hard_sigmoid,
    "hardswish": jax.nn.hard_swish,
    "reciprocal": lambda x: 1 / x,
    "relu_": jax.nn.relu,
}
_TWO: dict[str, Callable] = {
    **_those_of(
        jnp,
        """atan2 bitwise_and bitwise_or bitwise_xor fmod logical_and logical_or
        logical_xor maximum minimum remainder""",
    ),
    "eq": jnp.equal,
    "ge": jnp.greater_equal,
    "gt": jnp.greater,
    "le": jnp.less_equal,
    "lt": jnp.less,
    "mul": jnp.multiply,
    "ne": jnp.not_equal,
}
_REDUCTIONS = _those_of(jnp, "amax amin any argmax argmin mean prod sum")
_OTHERS: dict[str, Callable] = {
    "add": lambda x, other, alpha=1: jnp.add(x, _times(alpha, other)),
    "sub": lambda x, other, alpha=1: jnp.subtract(x, _times(alpha, other)),
    "gelu": lambda x, approximate="none": jax.nn.gelu(x, approximate == "tanh"),
    "softmax _softmax": lambda x, dim, dtype=None, half_to_float=False: jax.nn.softmax(
        x if dtype is None else x.astype(dtype), dim
    ),
    "log_softmax _log_softmax": lambda x, dim, dtype=None, half_to_float=False: (
        jax.nn.log_softmax(x if dtype is None else x.astype(dtype), dim)
    ),
    "mm": lambda x, mat2: jnp.matmul(x, mat2),
    "bmm": lambda x, mat2: jnp.matmul(x, mat2),
    "matmul": lambda x, other: jnp.matmul(x, other),
    "addmm": lambda x, mat1, mat2, beta=1, alpha=1: (
        _times(beta, x) + _times(alpha, mat1 @ mat2)
    ),
    "addmv": lambda x, mat, vec, beta=1, alpha=1: (
        _times(beta, x) + _times(alpha, mat @ vec)
    ),
    "diagonal": lambda x, offset=0, dim1=0, dim2=1: jnp.diagonal(x, offset, dim1, dim2),
    "linalg_matrix_exp": lambda x: jax.scipy.linalg.expm(x),
    "linalg_householder_product": lambda x, tau: lax.linalg.householder_product(x, tau),
    "embedding": lambda weight, indices, padding_idx=None: (  # which is for gradients
        jnp.take(weight, indices, 0, mode="clip")
    ),
    "view": lambda x, size: jnp.reshape(x, size),
    "full_like": lambda x, fill_value, dtype=None: jnp.full_like(x, fill_value, dtype),
    "empty": lambda size, dtype=None: jnp.zeros(size, dtype),
    "arange": lambda start, end, step=1, dtype=None: jnp.arange(
        start, end, step, dtype
    ),
    "leaky_relu": lambda x, negative_slope=0.01: jax.nn.leaky_relu(x, negative_slope),
    "einsum": lambda equation, tensors: jnp.einsum(equation, *tensors),
    "reflection_pad1d reflection_pad2d reflection_pad3d": lambda x, padding: jnp.pad(
        x, _pad_widths(x, padding), mode="reflect"
    ),
    "replication_pad1d replication_pad2d replication_pad3d": lambda x, padding: jnp.pad(
        x, _pad_widths(x, padding), mode="edge"
    ),
    "cumsum": lambda x, dim, dtype=None: jnp.cumsum(x, dim, dtype=dtype),
    "sym_size": lambda x, dim: x.shape[dim],
    "permute": lambda x, dims: jnp.transpose(x, dims),
    "unsqueeze": lambda x, dim: jnp.expand_dims(x, dim),
    "select": lambda x, dim, index: lax.index_in_dim(x, index, dim, keepdims=False),
    "copy": lambda x, src: jnp.broadcast_to(src, x.shape),
    "index_select": lambda x, dim, index: jnp.take(x, index, dim),
    "flip": lambda x, dims: jnp.flip(x, dims),
    "repeat": lambda x, repeats: ops.tile(x, repeats),
    "where": lambda condition, x, other: jnp.where(condition, x, other),
    "_to_copy": lambda x, dtype=None: x if dtype is None else x.astype(dtype),
    "full": lambda size, fill_value, dtype=None: jnp.full(size, fill_value, dtype),
    "scalar_tensor": lambda s, dtype=None: jnp.asarray(s, dtype),
}


def _called(kind: str, call: Callable) -> Callable:
    """A row's function, with ATen's names for its arguments."""
    if kind == "one":
        return lambda x: call(x)
    if kind == "two":
        return lambda x, other: call(x, other)

    def reduction(x, dim=None, keepdim=False, dtype=None):
        x = x if dtype is None else x.astype(dtype)
        return call(x, _axes(dim), keepdims=keepdim)

    return reduction


_TABLE |= {
    name: _called(kind, call)
    for kind, rows in (("one", _ONE), ("two", _TWO), ("reduction", _REDUCTIONS))
    for names, call in rows.items()
    for name in names.split()
}
_TABLE |= {name: call for names, call in _OTHERS.items() for name in names.split()}


def _times(factor, x):
    return x if isinstance(factor, int) and factor == 1 else factor * x


def _extreme(value, place):
    def call(x, dim=None, keepdim=False):
        if dim is None:
            return value(x)
        return value(x, dim, keepdims=keepdim), place(x, dim, keepdims=keepdim)

    return call


_TABLE |= {
    "max": _extreme(jnp.max, jnp.argmax),
    "min": _extreme(jnp.min, jnp.argmin),
}


@_aten("div")
def _div(x, other, rounding_mode=None):
    if rounding_mode is None:
        return jnp.true_divide(x, other)
    if rounding_mode == "floor":
        return jnp.floor_divide(x, other)
    return jnp.trunc(jnp.true_divide(x, other))


@_aten("pow")
def _pow(x, exponent):
    if isinstance(exponent, int | float):
        return ops.integer_power(x, exponent)
    return jnp.power(x, exponent)


@_aten("clamp")
def _clamp(x, min=None, max=None):
    x = x if min is None else jnp.maximum(x, min)
    return x if max is None else jnp.minimum(x, max)


@_aten("hardtanh")
def _hardtanh(x, min_val=-1, max_val=1) -> Any:
    return jnp.minimum(jnp.maximum(x, min_val), max_val)


@_aten("elu")
def _elu(x, alpha=1, scale=1, input_scale=1):
    negative = alpha * jnp.expm1(jnp.where(x > 0, 0, x) * input_scale)
    return scale * jnp.where(x > 0, x, negative)


@_aten("softplus")
def _softplus(x, beta=1, threshold=20):
    smooth = jnp.logaddexp(x * beta, 0) / beta
    return jnp.where(x * beta > threshold, x, smooth)


# Linear layers


@_aten("convolution")
def _convolution(
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups
):
    rank = weight.ndim - 2
    stride, padding, dilation, more = (
        _each(v, rank) for v in (stride, padding, dilation, output_padding)
    )
    if transposed:
        sides = [(p, p - q) for p, q in zip(padding, more, strict=True)]
        layer = ops.transposed_convolution
    else:
        sides = [(p, p) for p in padding]
        layer = ops.convolution
    alone = x.ndim == rank + 1  # one image without a batch
    y = layer(x[None] if alone else x, weight, bias, stride, sides, dilation, groups)
    return y[0] if alone else y


def _each(value, rank):
    value = list(value) if isinstance(value, tuple | list) else [value]
    return value * rank if len(value) == 1 else value


@_aten("linear")
def _linear(x, weight, bias=None):
    y = lax.dot_general(x, weight, (((x.ndim - 1,), (weight.ndim - 1,)), ((), ())))
    return y if bias is None else y + bias


@_aten("_linalg_solve_ex")  # of weights, as orthogonal ones are made
def _solve(A, B, left=True):
    if left:
        return jnp.linalg.solve(A, B), None, None, None
    return jnp.linalg.solve(A.mT, B.mT).mT, None, None, None


@_aten("scaled_dot_product_attention")
def _attention(query, key, value, attn_mask=None, is_causal=False, scale=None):
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = jnp.matmul(query * scale, jnp.swapaxes(key, -1, -2))
    if is_causal:
        attn_mask = np.tri(*scores.shape[-2:], dtype=bool)
    if attn_mask is not None and attn_mask.dtype == bool:
        scores = jnp.where(attn_mask, scores, -jnp.inf)
    elif attn_mask is not None:
        scores = scores + attn_mask
    return jnp.matmul(jax.nn.softmax(scores, -1), value)


# Normalisation


@_aten("_native_batch_norm_legit_no_training")
def _batch_norm(x, weight, bias, running_mean, running_var, momentum, eps):
    y = ops.batch_norm(x, weight, bias, running_mean, running_var, eps)
    return y, None, None  # statistics for the backward pass


@_aten("instance_norm")
def _instance_norm(
    x, weight, bias, running_mean, running_var, use_input_stats, momentum, eps,
    cudnn_enabled,
):  # fmt: skip
    if not use_input_stats:
        return ops.batch_norm(x, weight, bias, running_mean, running_var, eps)
    return ops.group_norm(x, x.shape[1], weight, bias, eps)


@_aten("group_norm")
def _group_norm(x, num_groups, weight=None, bias=None, eps=1e-5, cudnn_enabled=None):
    return ops.group_norm(x, num_groups, weight, bias, eps)


@_aten("layer_norm")
def _layer_norm(
    x, normalized_shape, weight=None, bias=None, eps=1e-5, cudnn_enable=None
):
    y = ops.standardize(x, tuple(range(x.ndim - len(normalized_shape), x.ndim)), eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


# Pools


@_aten("max_pool2d_with_indices", "max_pool3d_with_indices")
def _max_pool(x, kernel_size, stride=(), padding=0, dilation=1, ceil_mode=False):
    rank = len(kernel_size)
    stride = stride or kernel_size
    stride, padding, dilation = (_each(v, rank) for v in (stride, padding, dilation))
    sides = [(p, p) for p in padding]

    def call(x):
        return ops.max_pool(x, kernel_size, stride, sides, dilation, ceil_mode)

    return _batched(call, x, rank), None  # _step refuses the indices


@_aten("avg_pool2d", "avg_pool3d")
def _avg_pool(
    x,
    kernel_size,
    stride=(),
    padding=0,
    ceil_mode=False,
    count_include_pad=True,
    divisor_override=None,
):
    rank = len(kernel_size)
    stride, padding = (_each(v, rank) for v in (stride or kernel_size, padding))
    sides, ones = [(p, p) for p in padding], [1] * rank
    counted = ceil_mode, count_include_pad, divisor_override

    def call(x):
        return ops.average_pool(x, kernel_size, stride, sides, ones, *counted)

    return _batched(call, x, rank)


def _batched(call, x, rank):
    return call(x) if x.ndim == rank + 2 else call(x[None])[0]


@_aten("_adaptive_avg_pool2d", "_adaptive_avg_pool3d")
def _adaptive_avg_pool(x, output_size):
    return ops.adaptive_pool(x, _sizes(x, output_size), maximum=False)


@_aten("adaptive_max_pool2d", "adaptive_max_pool3d")
def _adaptive_max_pool(x, output_size):
    return ops.adaptive_pool(x, _sizes(x, output_size), maximum=True), None


def _sizes(x, output_size):
    spatial = x.shape[x.ndim - len(output_size) :]
    return [n if s is None else s for n, s in zip(spatial, output_size, strict=True)]


# Resizing


def _resize(x, output_size, scale_factors, weights):
    """Each spatial axis by `weights(size, new size, step) -> what ops needs`."""
    rank = x.ndim - 2
    factors = [None] * rank if scale_factors is None else scale_factors
    for i in range(rank):
        axis, size = i + 2, x.shape[i + 2]
        new = math.floor(size * factors[i]) if output_size is None else output_size[i]
        if new == size:  # PyTorch copies, whatever the factor
            continue
        step = size / new if factors[i] is None else 1 / factors[i]
        chosen = weights(size, new, np.float32(step))
        x = (ops.pick if chosen.ndim == 1 else ops.mix)(x, axis, chosen)
    return x


@_aten("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d")
def _nearest(x, output_size=None, scale_factors=None):
    def weights(size, new, step):
        if new == 2 * size:  # as PyTorch does, whatever the factor
            return np.arange(new) // 2
        at = np.arange(new, dtype=np.float32) * step
        return np.minimum(at.astype(int), size - 1)

    return _resize(x, output_size, scale_factors, weights)


def _positions(size, new, step, align_corners):
    if align_corners:
        return np.arange(new) * np.float32((size - 1) / max(new - 1, 1))
    return (np.arange(new) + np.float32(0.5)) * step - np.float32(0.5)


@_aten("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d")
def _linear_resize(x, output_size=None, align_corners=False, scale_factors=None):
    def weights(size, new, step):
        return ops.linear_weights(_positions(size, new, step, align_corners), size)

    return _resize(x, output_size, scale_factors, weights)


@_aten("_upsample_bilinear2d_aa")
def _blurred_resize(x, output_size, align_corners, scales_h=None, scales_w=None):
    """Triangles as wide as what becomes one pixel."""

    def weights(size, new, step):
        centres, wide = (np.arange(new) + 0.5) * step, max(step, 1)
        away = abs(np.arange(size)[:, None] + 0.5 - centres) / wide
        triangles = np.maximum(1 - away, 0)
        return np.float32(triangles / triangles.sum(0))

    return _resize(x, output_size, (scales_h, scales_w), weights)


@_aten("upsample_bicubic2d")
def _cubic_resize(x, output_size=None, align_corners=False, scale_factors=None):
    def weights(size, new, step):
        positions = _positions(size, new, step, align_corners)
        return ops.cubic_weights(positions, size, -0.75)

    return _resize(x, output_size, scale_factors, weights)


# Padding


def _pad_widths(x, pad):
    """PyTorch's pads, last axis first, as pairs per axis."""
    pairs = [(pad[i], pad[i + 1]) for i in range(0, len(pad), 2)][::-1]
    return [(0, 0)] * (x.ndim - len(pairs)) + pairs


@_aten("constant_pad_nd")
def _constant_pad(x, pad, value=0):
    widths = [(low, high, 0) for low, high in _pad_widths(x, pad)]  # may be negative
    return lax.pad(x, jnp.asarray(value, x.dtype), widths)


# Reductions


def _axes(dim):
    if dim is None or (isinstance(dim, list) and not dim):
        return None
    return tuple(dim) if isinstance(dim, tuple | list) else dim


@_aten("var")
def _var(x, dim=None, correction=1, keepdim=False):
    correction = 1 if correction is None else correction
    return jnp.var(x, _axes(dim), ddof=correction, keepdims=keepdim)


@_aten("var_mean")
def _var_mean(x, dim=None, correction=1, keepdim=False):
    return _var(x, dim, correction, keepdim), jnp.mean(x, _axes(dim), keepdims=keepdim)


@_aten("linalg_vector_norm")  # PyTorch 2.13 does not take it apart
def _vector_norm(x, ord=2, dim=None, keepdim=False):
    axes = _axes(dim)
    if ord == 2:
        return jnp.sqrt(jnp.sum(x * x, axes, keepdims=keepdim))
    if ord == math.inf:
        return jnp.max(jnp.abs(x), axes, keepdims=keepdim)
    return jnp.sum(jnp.abs(x) ** ord, axes, keepdims=keepdim) ** (1 / ord)


# Shapes


@_aten("expand")
def _expand(x, size):
    kept = [None] * (len(size) - x.ndim) + list(x.shape)
    shape = [
        k if isinstance(s, int) and s == -1 else s
        for k, s in zip(kept, size, strict=True)
    ]
    return jnp.broadcast_to(x, shape)


@_aten("squeeze")
def _squeeze(x, dim=None):
    dims = range(x.ndim) if dim is None else _each(dim, 1)
    # The batch is never squeezed, even if it is one.
    ones = [d for d in dims if isinstance(x.shape[d], int) and x.shape[d] == 1]
    return jnp.squeeze(x, tuple(ones))


@_aten("cat")
def _cat(tensors, dim=0):
    # An empty vector is PyTorch's way to start a concatenation.
    return jnp.concatenate([x for x in tensors if x.shape != (0,)], dim)


@_aten("split_with_sizes")
def _split_with_sizes(x, split_sizes, dim=0):
    ends = np.cumsum(split_sizes)
    starts = ends - split_sizes
    return tuple(
        lax.slice_in_dim(x, int(a), int(b), axis=dim)
        for a, b in zip(starts, ends, strict=True)
    )


def _edges(x, dim, start, end):
    """Bounds as Python reads them; without any, a symbolic axis is whole."""
    size = x.shape[dim]
    start = 0 if start is None else start
    if end is None or (isinstance(end, int) and end >= 2**31):
        end = size
    if isinstance(size, int):
        start, end, _ = slice(start, end).indices(size)
        end = max(start, end)
    return start, end


@_aten("slice")
def _slice(x, dim=0, start=None, end=None, step=1):
    start, end = _edges(x, dim, start, end)
    return lax.slice_in_dim(x, start, end, step, dim)


@_aten("slice_scatter")
def _slice_scatter(x, src, dim=0, start=None, end=None, step=1):
    start, end = _edges(x, dim, start, end)
    where = (slice(None),) * (dim % x.ndim) + (slice(start, end, step),)
    whole = step == 1 and isinstance(start, int) and start == 0 and end == x.shape[dim]
    return src if whole else x.at[where].set(src)


def _places(indices):
    if any(i is not None and i.dtype == bool for i in indices):
        raise ValueError(
            "indexing by a mask gives a shape that depends on values: use torch.where"
        )
    return tuple(slice(None) if i is None else i for i in indices)


@_aten("index")
def _index(x, indices):
    return x[_places(indices)]


@_aten("index_put")
def _index_put(x, indices, values, accumulate=False):
    at = x.at[_places(indices)]
    return at.add(values) if accumulate else at.set(values)


@_aten("gather")
def _gather(x, dim, index):
    # torch.gather may read fewer rows than there are along the other axes.
    for axis, size in enumerate(index.shape):
        if axis != dim % x.ndim and size != x.shape[axis]:
            x = lax.slice_in_dim(x, 0, size, axis=axis)
    return jnp.take_along_axis(x, index, dim)


@_aten("roll")
def _roll(x, shifts, dims=()):
    if not dims:
        return jnp.roll(x.reshape(-1), shifts[0]).reshape(x.shape)
    return jnp.roll(x, shifts, dims)
