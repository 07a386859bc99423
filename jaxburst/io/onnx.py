"""An ONNX file becomes a JAX function and its variables.

The graph is read node by node each time JAX traces the function. Sizes are NumPy arrays
(of objects, where the batch is symbolic) and stay out of the program; only what depends
on inputs or variables becomes JAX. A row of the table names an operator's inputs, and
after the star its attributes: what it does not name is refused.
"""

from __future__ import annotations

import functools
import inspect
import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxburst.io import _operations as ops

try:
    import onnx
    from onnx import TensorProto, numpy_helper
    from onnx.inliner import inline_local_functions
except ImportError as error:
    raise ImportError(
        'from_onnx needs the package onnx: pip install "jaxburst[onnx]"'
    ) from error

OLDEST, NEWEST = 7, 28  # opsets; before 7 numbers broadcast otherwise

# Where a tensor of one number is a weight. Elsewhere it is a number of the model
# (an epsilon, an exponent, a cap) and stays what it is.
_WEIGHTED = {"Conv", "ConvTranspose", "Gemm", "MatMul", "PRelu"}
_WEIGHTED |= {f"{kind}Normalization" for kind in ("Batch", "Group", "Instance")}
_WEIGHTED |= {"LayerNormalization", "RMSNormalization"}


def from_onnx(model: str | os.PathLike | onnx.ModelProto) -> tuple[Callable, dict]:
    """Turns an ONNX model into a pure JAX function; no runtime is needed.

    The function is the whole model, a softmax at the end included, channel-first as
    the file has it. It works under `jit`, `vmap` and `grad`, and with a symbolic first
    axis. A file that was exported for a batch of one is mapped over any batch.

    Args:
      model: a file, whose external data lie beside it, or a model in memory.

    Returns:
      `(function, variables)`: `function(variables, inputs)` takes one array for one
      input, else a sequence in the file's order or a mapping from names, and returns
      one array, or a tuple for several outputs. `variables` are the floating
      initializers and constants, under their names; half precision is widened to
      float32, with a warning. What sizes are computed from stays in the function, and
      so do single numbers, except in layers.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: for a damaged file, or an operator or attribute that is not in the
        table, by name and node.

    Examples:
      >>> from onnx import helper, TensorProto
      >>> x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])
      >>> y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
      >>> node = helper.make_node("Relu", ["x"], ["y"])
      >>> model = helper.make_model(helper.make_graph([node], "g", [x], [y]))
      >>> function, variables = from_onnx(model)
      >>> function(variables, jnp.array([[-1.0, 0.0, 2.0]]))
      Array([[0., 0., 2.]], dtype=float32)

    References:
      ONNX operators, https://onnx.ai/onnx/operators/
    """
    proto = read(model)
    graph = proto.graph
    versions = {o.domain: o.version for o in proto.opset_import}
    opset = versions.get("", versions.get("ai.onnx", 0))
    if not OLDEST <= opset <= NEWEST:
        raise ValueError(
            f"the model uses opset {opset}, expected {OLDEST} to {NEWEST}: convert it "
            "with onnx.version_converter.convert_version"
        )
    tensors = _tensors(graph)
    nodes = _nodes(graph, opset, set(tensors))
    variables, constants = _divided(nodes, tensors)
    nodes = _folded(nodes, constants)
    for node in nodes.nodes:  # kernels that the file computes are weights, too
        for name in node.inputs if node.operator in _WEIGHTED else ():
            array = constants.get(name)
            if array is not None and array.dtype.kind == "f" and array.size > 1:
                variables[name] = jnp.array(constants.pop(name))

    def function(variables: Mapping[str, Any], inputs: Any) -> Any:
        for name in names - set(variables):
            raise ValueError(
                f"variables lack {name!r}, expected what from_onnx returned"
            )
        values = _in_order(inputs, nodes.inputs)
        # ONNX broadcasts, whatever the user of JAX has forbidden.
        with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
            return _call(nodes, {**constants, **variables}, values)

    names = set(variables)
    return function, variables


def parse(content: bytes) -> onnx.ModelProto:
    """The model of a file's content; no other file is opened.

    Raises:
      ValueError: if it is damaged.
    """
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's own class
        raise ValueError(f"not a whole ONNX file ({error}); save it again") from error


class _Node(NamedTuple):
    """One operator."""

    name: str
    operator: str
    call: Callable
    inputs: tuple[str, ...]  # "" for an input left out
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    static: frozenset[int]  # inputs that must be known while tracing


class _Graph(NamedTuple):
    """Nodes in order, `(name, dtype, shape)` of inputs, names of outputs."""

    nodes: tuple[_Node, ...]
    inputs: tuple[tuple[str, Any, tuple | None], ...]
    outputs: tuple[str, ...]


def read(model: str | os.PathLike | onnx.ModelProto) -> onnx.ModelProto:
    """The model of a file with its external data, its functions inlined.

    Raises:
      FileNotFoundError, ValueError: as `from_onnx`.
    """
    proto: Any = model
    if not isinstance(model, onnx.ModelProto):
        path = os.fspath(model)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"{path}: there is no such ONNX file")
        try:
            proto = onnx.load(path)
        except Exception as error:  # protobuf's own class, or onnx's for missing data
            raise ValueError(
                f"{path}: not a whole ONNX file ({error}); export or download it again"
            ) from error
        if not proto.graph.node or not proto.graph.output:
            raise ValueError(f"{path}: not a whole ONNX file (it holds no graph)")
    return inline_local_functions(proto) if proto.functions else proto


def _tensors(graph) -> dict[str, np.ndarray]:
    """Initializers and constants as arrays; half precision is widened, and said."""
    if graph.sparse_initializer:
        raise ValueError("sparse initializers are not read: export them dense")
    found = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            (attribute,) = node.attribute
            found[node.output[0]] = onnx.helper.get_attribute_value(attribute)
    half = [n for n, t in found.items() if getattr(t, "data_type", 0) in _HALF]
    if half:
        warnings.warn(
            f"{len(half)} half-precision tensors ({half[0]}, ...) are widened to "
            "float32",
            stacklevel=3,
        )
    return {name: _array(name, tensor) for name, tensor in found.items()}


_HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}


def _array(name: str, tensor) -> np.ndarray:
    if not isinstance(tensor, onnx.TensorProto):  # value_float, value_ints, ...
        array = np.asarray(tensor)
        kind = np.float32 if array.dtype.kind == "f" else np.int64
        if array.dtype.kind not in "fi":
            raise ValueError(f"{name}: expected numbers, found {array.dtype}")
        return array.astype(kind)
    try:
        array = numpy_helper.to_array(tensor)
    except Exception as error:
        raise ValueError(
            f"{name}: the tensor's data do not fit its shape {list(tensor.dims)} "
            f"({error}); export or download the file again"
        ) from error
    if tensor.data_type in _HALF:
        array = array.astype(np.float32)
    _dtype(tensor.data_type, name)
    return array


def _dtype(code: int, place: str):
    """NumPy's type for ONNX's, half precision widened."""
    if code in _HALF:
        return np.dtype(np.float32)
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(code)
    except (KeyError, ValueError, TypeError):
        dtype = np.dtype(object)
    if dtype.kind not in "fiub":
        kind = TensorProto.DataType.Name(code)
        raise ValueError(f"{place}: expected numbers or booleans, found {kind}")
    return dtype


def _nodes(graph, opset: int, known: set[str]) -> _Graph:
    """Looks every node up in the table. `known` are names from outside."""
    inputs = [row for row in declared(graph) if row[0] not in known]
    known = known | {t.name for t in graph.initializer} | {row[0] for row in inputs}
    used = {o.name for o in graph.output} | _read_names(graph)
    nodes = []
    for i, proto in enumerate(graph.node):
        if proto.op_type == "Constant" and proto.domain in ("", "ai.onnx"):
            known.add(proto.output[0])
            continue
        node = _node(proto, i, opset, known, used)
        nodes.append(node)
        known |= set(node.outputs)
    for output in graph.output:
        if output.name not in known:
            raise ValueError(
                f"output {output.name} is made by no node: the file is damaged"
            )
    return _Graph(tuple(nodes), tuple(inputs), tuple(o.name for o in graph.output))


def declared(graph) -> list[tuple[str, Any, tuple | None]]:
    """Name, type and shape of every input but initializers; None where it is open."""
    held, rows = {t.name for t in graph.initializer}, []
    for value in graph.input:
        if value.name not in held:
            if not value.type.HasField("tensor_type"):
                raise ValueError(f"input {value.name}: expected a tensor")
            kind = value.type.tensor_type
            dims = kind.shape.dim if kind.HasField("shape") else None
            shape = dims and tuple(
                d.dim_value if d.dim_value > 0 else None for d in dims
            )
            rows.append((value.name, _dtype(kind.elem_type, value.name), shape))
    return rows


def _read_names(graph) -> set[str]:
    """Every name that a node reads, those of inner graphs included."""
    names = set()
    for node in graph.node:
        names |= set(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                inner = attribute.g
                names |= _read_names(inner) | {o.name for o in inner.output}
    return names


def _node(proto, i: int, opset: int, known: set[str], used: set[str]) -> _Node:
    place = f"node {proto.name or f'number {i}'} ({', '.join(proto.output)})"
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    operator = f"{domain}.{proto.op_type}" if domain else proto.op_type
    row = _TABLE.get(operator)
    if row is None:
        raise ValueError(
            f"from_onnx does not know the operator {operator} of {place}: export that "
            "layer with operators of the table in jaxburst/io/onnx.py"
        )
    call, static, ignored = row
    missing = [name for name in proto.input if name and name not in known]
    if missing:
        raise ValueError(
            f"{place} reads {missing[0]}, which nothing before it makes: the file is "
            "damaged"
        )
    parameters = inspect.signature(call).parameters.values()
    allowed = {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        allowed |= _WINDOW
    attributes = {}
    for attribute in proto.attribute:
        value = onnx.helper.get_attribute_value(attribute)
        if attribute.name in ignored:
            continue
        if attribute.name not in allowed - {"opset", "count", "outer"}:
            raise ValueError(
                f"from_onnx does not know the attribute {attribute.name}={value} of "
                f"{operator}, {place}"
            )
        if isinstance(value, onnx.GraphProto):
            outer = known | {t.name for t in value.initializer}
            value = _inner(value, opset, outer)
        elif isinstance(value, onnx.TensorProto):
            value = _array(place, value)
        attributes[attribute.name] = (
            value.decode() if isinstance(value, bytes) else value
        )
    if "opset" in allowed:
        attributes["opset"] = opset
    if "count" in allowed:
        attributes["count"] = len(proto.output)
    elif any(name in used for name in proto.output[1:] if name):
        raise ValueError(
            f"from_onnx knows the first output of {operator} alone, but another one "
            f"of {place} is read"
        )
    outputs = tuple(proto.output) if "count" in allowed else (proto.output[0],)
    name = proto.name.strip("/") or f"{proto.op_type}_{i}"
    return _Node(name, operator, call, tuple(proto.input), outputs, attributes, static)


def _inner(graph, opset, known):
    """A branch of an If, with the constants of its own."""
    return _nodes(graph, opset, known), _tensors(graph)


def _divided(graph: _Graph, tensors) -> tuple[dict, dict]:
    """Which tensors are variables, and which constants of the function."""
    shapes: set[str] = set()  # whatever sizes, limits and axes are computed from
    readers: dict[str, set[str]] = {}
    makers = {o: n.operator for n in graph.nodes for o in n.outputs}
    for node in reversed(graph.nodes):
        if shapes & set(node.outputs) and node.operator not in ("Shape", "Size"):
            shapes |= set(node.inputs)
        shapes |= {node.inputs[i] for i in node.static if i < len(node.inputs)}
        for name in node.inputs:
            # A bias, and not an epsilon.
            layer = node.operator == "Add" and any(
                makers.get(other) in _WEIGHTED for other in node.inputs
            )
            readers.setdefault(name, set()).add(_LAYER if layer else node.operator)
    variables, constants = {}, {}
    for name, array in tensors.items():
        weight = array.size > 1 or readers.get(name, set()) & (_WEIGHTED | {_LAYER})
        if array.dtype.kind == "f" and weight and name not in shapes:
            variables[name] = jnp.array(array)
        else:
            constants[name] = array
    return variables, constants


_LAYER = "Add behind a layer"


def _folded(graph: _Graph, constants: dict) -> _Graph:
    """Evaluates what depends on constants alone, into `constants`."""
    rest = []
    for node in graph.nodes:
        ready = all(not name or name in constants for name in node.inputs)
        if ready and node.operator != "If":  # whose branches read more
            values = _run(node, constants)
            if all(isinstance(v, np.ndarray) for v in values.values()):
                constants.update(values)
                continue
        rest.append(node)
    return graph._replace(nodes=tuple(rest))


def _in_order(inputs, expected) -> list:
    if isinstance(inputs, Mapping):
        names = [name for name, _, _ in expected]
        if set(inputs) != set(names):
            raise ValueError(f"expected the inputs {names}, found {sorted(inputs)}")
        values = [inputs[name] for name in names]
    elif isinstance(inputs, tuple | list):
        values = list(inputs)
    else:
        values = [inputs]
    if len(values) != len(expected):
        names = [name for name, _, _ in expected]
        raise ValueError(f"expected the inputs {names}, found {len(values)}")
    converted = []
    for x, (name, dtype, shape) in zip(values, expected, strict=True):
        x = jnp.asarray(x)
        floating = jnp.issubdtype(x.dtype, jnp.floating)
        if floating != (dtype.kind == "f"):
            raise ValueError(f"input {name}: expected {dtype}, found {x.dtype}")
        fits = shape is None or (
            len(shape) == x.ndim
            and all(
                want is None or want == found
                for want, found in zip(shape[1:], x.shape[1:], strict=True)
            )
        )
        if not fits:
            dims = ["?" if d is None else d for d in shape or ()]
            raise ValueError(f"input {name}: expected {dims}, found {x.shape}")
        small = x.dtype in (jnp.float16, jnp.bfloat16)
        converted.append(x.astype(jnp.float32) if small else x)
    return converted


def _call(graph: _Graph, values: dict, inputs: list):
    """Runs the graph, over the batch where the file was made for another."""
    ranked = [(x, shape) for x, (_, _, shape) in zip(inputs, graph.inputs, strict=True)]
    fixed = {shape[0] if shape else None for _, shape in ranked}
    (batch,) = fixed if len(fixed) == 1 else (None,)
    found = {x.shape[0] if x.ndim else None for x in inputs}
    if batch is None or found == {batch}:
        return _outputs(graph, values, inputs)
    if batch != 1:
        raise ValueError(
            f"the file was exported for a batch of {batch}, found {found}: export it "
            "with a dynamic first axis"
        )

    def one(*images):
        outputs = _outputs(graph, values, [image[None] for image in images])
        for y in jax.tree.leaves(outputs):
            if y.shape[:1] != (1,):
                raise ValueError(
                    "the file was exported for a batch of one and has an output "
                    f"{y.shape} without it: export it with a dynamic first axis"
                )
        return jax.tree.map(lambda y: y[0], outputs)

    return jax.vmap(one)(*inputs)


def _outputs(graph: _Graph, values: dict, inputs: list):
    values = dict(values)
    values.update(zip((name for name, _, _ in graph.inputs), inputs, strict=True))
    _evaluate(graph, values)
    outputs = tuple(_dynamic(values[name]) for name in graph.outputs)
    return outputs[0] if len(outputs) == 1 else outputs


def _evaluate(graph: _Graph, values: dict) -> None:
    for node in graph.nodes:
        values.update(_run(node, values))


def _run(node: _Node, values: dict) -> dict:
    """The outputs of a node by name; errors say which node."""
    inputs = [values[name] if name else None for name in node.inputs]
    attributes = node.attributes
    if node.operator == "If":
        attributes = {**attributes, "outer": values}
    try:
        for i in node.static:
            if i < len(inputs) and isinstance(inputs[i], jax.Array):
                raise ValueError(
                    f"its input {node.inputs[i]!r} depends on values, expected what "
                    "follows from shapes and constants alone"
                )
        with jax.named_scope(node.name):
            result = node.call(*inputs, **attributes)
    except Exception as error:
        shapes = [None if x is None else np.shape(x) for x in inputs]
        raise ValueError(
            f"{node.operator}, node {node.name}, inputs {shapes}: {error}"
        ) from error
    results = result if isinstance(result, tuple | list) else [result]
    return {
        name: _value(value)
        for name, value in zip(node.outputs, results, strict=True)
        if name
    }


# Values: a `jax.Array`, or a NumPy array, which may hold symbolic sizes as objects.


def _value(x):
    if isinstance(x, jax.Array):
        return x
    if not isinstance(x, np.ndarray | np.generic):
        array = np.empty((), object)
        array[()] = x
        x = array
    x = np.asarray(x)
    if x.dtype == object and all(isinstance(n, int | np.integer) for n in x.flat):
        x = x.astype(np.int64)
    return x


def _dynamic(x):
    """The same as a `jax.Array`."""
    if isinstance(x, np.ndarray) and x.dtype == object:
        flat = [jnp.asarray(n) for n in x.flat]
        return jnp.stack(flat).reshape(x.shape) if flat else jnp.zeros(x.shape, int)
    return jnp.asarray(x)


def _static(*values) -> bool:
    return all(x is None or isinstance(x, np.ndarray) for x in values)


def _together(*values):
    """The module to compute with, and the values for it; single numbers bare."""
    if _static(*values):
        return np, *values
    rank = max(x.ndim for x in values if isinstance(x, jax.Array))
    return jnp, *(
        x.reshape(())
        if isinstance(x, np.ndarray)
        and x.size == 1
        and x.ndim <= rank
        and x.dtype != object
        else _dynamic(x)
        for x in values
    )


def _numbers(x, attribute=None) -> Any:
    """A static array as Python numbers and symbolic sizes.

    Without one, the attribute that stood in its place in older opsets.
    """
    return attribute if x is None else np.ravel(x).tolist()


def _scalar(x, default=None) -> Any:
    return default if x is None or x.size == 0 else x.reshape(-1)[0].item()


# The table

_TABLE: dict[str, tuple[Callable, frozenset[int], frozenset[str]]] = {}


def _onnx(*names, static: Sequence[int] = (), ignored: str = ""):
    """A row: `static` inputs must be known while tracing; `ignored` change nothing."""

    def register(function):
        row = function, frozenset(static), frozenset(ignored.split())
        _TABLE.update(dict.fromkeys(names, row))
        return function

    return register


def _named(name: str):
    """NumPy's function, of sizes and constants, and JAX's of everything else."""

    def call(*values):
        module, *values = _together(*values)
        return getattr(module, name)(*values)

    return call


_NUMPY = """Abs Acos Add Asin Atan Ceil Cos Cosh Equal Exp Floor Greater IsNaN Less Log
    Round Sign Sin Sinh Sqrt Tan Tanh""".split()
_RENAMED = {
    "And": "logical_and",
    "GreaterOrEqual": "greater_equal",
    "LessOrEqual": "less_equal",
    "Mul": "multiply",
    "Neg": "negative",
    "Not": "logical_not",
    "Or": "logical_or",
    "Sub": "subtract",
    "Xor": "logical_xor",
}
for _name in (*_NUMPY, *_RENAMED):
    _onnx(_name)(_named(_RENAMED.get(_name, _name.lower())))


@_onnx("Div")
def _div(x, y):
    module, x, y = _together(x, y)
    if x.dtype == object or y.dtype == object:
        return x // y  # sizes
    if jnp.issubdtype(x.dtype, jnp.integer):  # towards zero
        return module.sign(x) * module.sign(y) * (module.abs(x) // module.abs(y))
    return x / y


@_onnx("Pow")
def _pow(x, y):
    if _static(y) and not _static(x) and y.size == 1 and y.ndim <= x.ndim:
        return ops.integer_power(x, y.item())
    module, x, y = _together(x, y)
    return module.power(x, y).astype(x.dtype)


@_onnx("Where")
def _where(condition, x, y):
    if _static(condition, x, y) and object in (x.dtype, y.dtype):
        x, y = x.astype(object), y.astype(object)
    module, condition, x, y = _together(condition, x, y)
    return module.where(condition, x, y)


@_onnx("Clip", static=(1, 2))
def _clip(x, low=None, high=None, *, min=None, max=None):
    low, high = _scalar(low, min), _scalar(high, max)
    module, x = _together(x)
    x = x if low is None else module.maximum(x, np.asarray(low, x.dtype))
    return x if high is None else module.minimum(x, np.asarray(high, x.dtype))


def _softmax_axes(x, axis, opset):
    """Until opset 12, all axes from this one on, the first by default."""
    if opset >= 13:
        return -1 if axis is None else axis
    return tuple(range((1 if axis is None else axis) % x.ndim, x.ndim))


@_onnx("Dropout", static=(1, 2), ignored="ratio seed")
def _dropout(x, ratio=None, training_mode=None, *, is_test=1):
    if _scalar(training_mode, False) or not is_test:
        raise ValueError("it is in training mode: export the model for inference")
    return x


# Layers


def _same_padding(auto_pad, sizes, spans, strides):
    """Padding by which `ceil(size / stride)` windows fit."""
    pairs = []
    for size, span, stride in zip(sizes, spans, strides, strict=True):
        total = max((-(-size // stride) - 1) * stride + span - size, 0)
        less, more = total // 2, total - total // 2
        pairs.append((less, more) if auto_pad == "SAME_UPPER" else (more, less))
    return pairs


_WINDOW = {"strides", "dilations", "pads", "auto_pad"}
"""Attributes of convolutions and pools."""


def _window(x, kernel, strides=None, dilations=None, pads=None, auto_pad="NOTSET"):
    """`(strides, dilations, padding)` of a convolution or pool, defaults filled in."""
    rank = len(kernel)
    strides, dilations = strides or [1] * rank, dilations or [1] * rank
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilations, strict=True)]
        return strides, dilations, _same_padding(auto_pad, x.shape[2:], spans, strides)
    if auto_pad not in ("NOTSET", "VALID"):
        raise ValueError(f"auto_pad is {auto_pad!r}")
    pads = pads if pads and auto_pad == "NOTSET" else [0] * 2 * rank
    return strides, dilations, list(zip(pads[:rank], pads[rank:], strict=True))


@_onnx("Conv", ignored="kernel_shape")
def _conv(x, kernel, bias=None, *, group=1, **window):
    strides, dilations, padding = _window(x, kernel.shape[2:], **window)
    return ops.convolution(x, kernel, bias, strides, padding, dilations, group)


@_onnx("ConvTranspose", ignored="kernel_shape")
def _conv_transpose(
    x, kernel, bias=None, *, group=1, output_padding=None, output_shape=None,
    auto_pad="NOTSET", **window,
):  # fmt: skip
    sizes = kernel.shape[2:]
    rank = len(sizes)
    same = auto_pad in ("SAME_UPPER", "SAME_LOWER")
    window["auto_pad"] = "NOTSET" if same else auto_pad
    strides, dilations, padding = _window(x, sizes, **window)
    more = output_padding or [0] * rank
    if same and not output_shape:
        output_shape = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if output_shape:
        padding = []
        for i, size in enumerate(output_shape[-rank:]):
            full = (x.shape[i + 2] - 1) * strides[i] + dilations[i] * (sizes[i] - 1)
            total = full + 1 + more[i] - size
            if same and total < 0:  # ONNX's text and its runtime disagree
                raise ValueError(
                    f"auto_pad {auto_pad} with strides larger than the kernel"
                )
            low = total // 2 if auto_pad == "SAME_UPPER" else total - total // 2
            padding.append((low, total - low))
    padding = [(low, high - m) for (low, high), m in zip(padding, more, strict=True)]
    return ops.transposed_convolution(
        x, kernel, bias, strides, padding, dilations, group
    )


@_onnx("MaxPool", ignored="storage_order")
def _max_pool(x, *, kernel_shape, ceil_mode=0, **window):
    strides, dilations, padding = _window(x, kernel_shape, **window)
    return ops.max_pool(x, kernel_shape, strides, padding, dilations, ceil_mode)


@_onnx("AveragePool")
def _average_pool(x, *, kernel_shape, ceil_mode=0, count_include_pad=0, **window):
    strides, dilations, padding = _window(x, kernel_shape, **window)
    return ops.average_pool(
        x, kernel_shape, strides, padding, dilations, ceil_mode, count_include_pad
    )


@_onnx("Gemm")
def _gemm(x, y, bias=None, *, alpha=1.0, beta=1.0, transA=0, transB=0):
    contracted = ((0 if transA else 1,), (1 if transB else 0,))
    z = lax.dot_general(_dynamic(x), _dynamic(y), (contracted, ((), ())))
    z = z if alpha == 1 else alpha * z
    if bias is None:
        return z
    return z + (bias if beta == 1 else beta * bias)


@_onnx("BatchNormalization", ignored="momentum")
def _batch_norm(
    x, scale, shift, mean, variance, *, epsilon=1e-5, training_mode=0, spatial=1
):
    if training_mode or not spatial:
        raise ValueError("it is in training mode: export the model for inference")
    return ops.batch_norm(x, scale, shift, mean, variance, epsilon)


@_onnx("GroupNormalization", ignored="stash_type")
def _group_norm(x, scale, shift, *, num_groups, epsilon=1e-5, opset):
    if opset < 21:  # one number per group
        each = x.shape[1] // num_groups
        scale, shift = jnp.repeat(scale, each), jnp.repeat(shift, each)
    return ops.group_norm(x, num_groups, scale, shift, epsilon)


@_onnx("LayerNormalization", ignored="stash_type")
def _layer_norm(x, scale, shift=None, *, axis=-1, epsilon=1e-5):
    axes = tuple(range(axis % x.ndim, x.ndim))
    y = ops.standardize(x, axes, epsilon) * scale
    return y if shift is None else y + shift


@_onnx("RMSNormalization", ignored="stash_type")
def _rms_norm(x, scale, *, axis=-1, epsilon=1e-5):
    axes = tuple(range(axis % x.ndim, x.ndim))
    return x * lax.rsqrt((x * x).mean(axes, keepdims=True) + epsilon) * scale


@_onnx("LpNormalization")
def _lp_norm(x, *, axis=-1, p=2):
    norm = jnp.sum(jnp.abs(x) if p == 1 else x * x, axis, keepdims=True)
    norm = norm if p == 1 else jnp.sqrt(norm)
    return x / jnp.where(norm == 0, 1, norm)


@_onnx("LRN")
def _local_response_norm(x, *, size, alpha=1e-4, beta=0.75, bias=1.0):
    width = [(0, 0)] * x.ndim
    width[1] = ((size - 1) // 2, size // 2)
    shape = (1, size) + (1,) * (x.ndim - 2)
    ones = (1,) * x.ndim
    sums = lax.reduce_window(x * x, np.zeros((), x.dtype), lax.add, shape, ones, width)
    return x / (bias + alpha / size * sums) ** beta


# Resizing


@_onnx("Upsample", static=(1,))
def _upsample(x, given=None, *, scales=None, mode="nearest"):
    """Also Resize before opset 11."""
    scales = np.array(_numbers(given, scales), np.float32)
    mode = "linear" if mode == "bilinear" else mode
    kind: dict[str, Any] = {"coordinate_transformation_mode": "asymmetric"}
    kind["nearest_mode"] = "floor"
    return _resize(x, None, scales, mode=mode, opset=11, **kind)


@_onnx("Resize", static=(1, 2, 3), ignored="extrapolation_value")
def _resize(
    x,
    roi=None,
    scales=None,
    sizes=None,
    *,
    mode="nearest",
    coordinate_transformation_mode="half_pixel",
    nearest_mode="round_prefer_floor",
    cubic_coeff_a=-0.75,
    exclude_outside=0,
    antialias=0,
    axes=None,
    keep_aspect_ratio_policy="stretch",
    opset,
):
    if opset < 11:  # (x, scales), and no choice
        return _upsample(x, roi, mode=mode)
    if exclude_outside or antialias or keep_aspect_ratio_policy != "stretch":
        raise ValueError("exclude_outside, antialias and aspect ratios are not known")
    axes = range(x.ndim) if axes is None else [axis % x.ndim for axis in axes]
    scaled = scales is not None and scales.size > 0
    found = {}
    for axis, wanted in zip(axes, _numbers(scales if scaled else sizes), strict=True):
        size = x.shape[axis]
        if wanted != (1 if scaled else size):
            scale = np.float32(wanted if scaled else wanted / size)
            found[axis] = scale, int(np.float32(size) * scale) if scaled else wanted
    if all(x.shape[axis] == new for axis, (_, new) in found.items()):
        return x
    for axis, (scale, new) in found.items():
        size = x.shape[axis]
        at = _coordinates(coordinate_transformation_mode, size, new, scale)
        if mode == "nearest":
            _check_ties(coordinate_transformation_mode, nearest_mode, at)
            x = ops.pick(x, axis, np.clip(_nearest(nearest_mode, at), 0, size - 1))
        elif mode == "linear":
            x = ops.mix(x, axis, ops.linear_weights(at, size))
        elif mode == "cubic":
            x = ops.mix(x, axis, ops.cubic_weights(at, size, cubic_coeff_a))
        else:
            raise ValueError(f"the mode {mode!r} is not known")
    return x


def _coordinates(kind, size, new, scale):
    """Where each new position lies among the old ones; at a tie rounding decides."""
    i, half = np.arange(new, dtype=np.float32), np.float32(0.5)
    if kind == "asymmetric":
        return i / scale
    if kind == "align_corners":
        return i * np.float32(size - 1) / np.float32(max(new - 1, 1))
    if kind == "half_pixel" or (kind == "pytorch_half_pixel" and new > 1):
        return (i + half) / scale - half
    if kind == "pytorch_half_pixel":
        return i * 0
    if kind == "half_pixel_symmetric":
        offset = size / 2 - new / scale / 2
        return np.float32(offset) + (i + half) / scale - half
    raise ValueError(f"coordinate_transformation_mode {kind!r} is not known")


def _check_ties(kind, rounding, at):
    """Where the last bit would decide, runtimes differ."""
    ties = at + 0.5 if rounding.startswith("round") else at
    if kind == "half_pixel_symmetric" and (abs(ties - np.round(ties)) < 1e-4).any():
        raise ValueError(
            f"{kind} has positions where {rounding!r} depends on the last bit; "
            "export with half_pixel"
        )


def _nearest(kind, at):
    rounded = {
        "round_prefer_floor": lambda: np.ceil(at - 0.5),
        "round_prefer_ceil": lambda: np.floor(at + 0.5),
        "floor": lambda: np.floor(at),
        "ceil": lambda: np.ceil(at),
    }
    if kind not in rounded:
        raise ValueError(f"nearest_mode {kind!r} is not known")
    return rounded[kind]().astype(int)


@_onnx("DepthToSpace")
def _depth_to_space(x, *, blocksize, mode="DCR"):
    batch, channels, height, width = x.shape
    depth = channels // blocksize**2
    if mode == "DCR":
        y = x.reshape(batch, blocksize, blocksize, depth, height, width)
        y = y.transpose(0, 3, 4, 1, 5, 2)
    else:
        y = x.reshape(batch, depth, blocksize, blocksize, height, width)
        y = y.transpose(0, 1, 4, 2, 5, 3)
    return y.reshape(batch, depth, height * blocksize, width * blocksize)


@_onnx("SpaceToDepth")
def _space_to_depth(x, *, blocksize, mode="DCR"):
    batch, channels, height, width = x.shape
    high, wide = height // blocksize, width // blocksize
    y = x.reshape(batch, channels, high, blocksize, wide, blocksize)
    y = y.transpose((0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4))
    return y.reshape(batch, channels * blocksize**2, high, wide)


# Reductions


def _reduction(dynamic, static=None):
    def call(x, given=None, *, axes=None, keepdims=1, noop_with_empty_axes=0):
        axes = _numbers(given, axes)
        if not axes and noop_with_empty_axes:
            return x
        axes = tuple(axes) if axes else None
        if static and _static(x):
            return static(x, axis=axes, keepdims=bool(keepdims))
        return dynamic(_dynamic(x), axis=axes, keepdims=bool(keepdims))

    return call


def _norm(x, axis, keepdims):
    return jnp.sqrt(jnp.sum(x * x, axis, keepdims=keepdims))


for _name, _functions in {
    "ReduceSum": (jnp.sum, np.sum),
    "ReduceMean": (jnp.mean,),
    "ReduceMax": (jnp.max, np.max),
    "ReduceMin": (jnp.min, np.min),
    "ReduceProd": (jnp.prod, np.prod),
    "ReduceL1": (lambda x, **options: jnp.sum(jnp.abs(x), **options),),
    "ReduceL2": (_norm,),
    "ReduceSumSquare": (lambda x, **options: jnp.sum(x * x, **options),),
    "ReduceLogSum": (lambda x, **options: jnp.log(jnp.sum(x, **options)),),
    "ReduceLogSumExp": (jax.nn.logsumexp,),
}.items():
    _onnx(_name, static=(1,))(_reduction(*_functions))


def _arg(function):
    def call(x, *, axis=0, keepdims=1, select_last_index=0):
        if not select_last_index:
            return function(x, axis, keepdims=bool(keepdims))
        index = function(jnp.flip(x, axis), axis, keepdims=bool(keepdims))
        return x.shape[axis] - 1 - index

    return call


@_onnx("CumSum", static=(1,))
def _cumsum(x, axis, *, exclusive=0, reverse=0):
    axis = _scalar(axis)
    x = jnp.flip(_dynamic(x), axis) if reverse else _dynamic(x)
    y = jnp.cumsum(x, axis)
    y = y - x if exclusive else y
    return jnp.flip(y, axis) if reverse else y


# Shapes


@_onnx("Reshape", static=(1,))
def _reshape(x, shape, *, allowzero=0):
    shape = [
        x.shape[i] if not allowzero and isinstance(n, int) and n == 0 else n
        for i, n in enumerate(_numbers(shape))
    ]
    return x.reshape(shape)


@_onnx("Flatten")
def _flatten(x, *, axis=1):
    if axis < 0:
        axis += x.ndim
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@_onnx("Squeeze", static=(1,))
def _squeeze(x, given=None, *, axes=None):
    axes = _numbers(given, axes)
    if axes is None:
        axes = [i for i, n in enumerate(x.shape) if isinstance(n, int) and n == 1]
    return x.squeeze(tuple(axes))


@_onnx("Unsqueeze", static=(1,))
def _unsqueeze(x, given=None, *, axes=None):
    axes = _numbers(given, axes)
    module = np if _static(x) else jnp
    return module.expand_dims(x, tuple(axes))


@_onnx("Concat")
def _concat(*values, axis):
    if not _static(*values):
        return jnp.concatenate([_dynamic(x) for x in values], axis)
    return np.concatenate(values, axis)


@_onnx("Split", static=(1,))
def _split(x, given=None, *, axis=0, split=None, num_outputs=None, count):
    sizes = _numbers(given, split)
    if sizes is None:
        each = -(-x.shape[axis] // count)
        sizes = [each] * (count - 1) + [x.shape[axis] - each * (count - 1)]
    ends = np.cumsum(sizes).tolist()
    before = (slice(None),) * (axis % x.ndim)
    return [
        x[(*before, slice(end - n, end))] for n, end in zip(sizes, ends, strict=True)
    ]


_END = 10**9  # numbers from here on stand for the end of an axis


@_onnx("Slice", static=(1, 2, 3, 4))
def _slice(
    x,
    given=None,
    stops=None,
    along=None,
    steps=None,
    *,
    starts=None,
    ends=None,
    axes=None,
):
    starts, ends = _numbers(given, starts), _numbers(stops, ends)
    axes = _numbers(along, axes or range(len(starts)))
    steps = _numbers(steps, [1] * len(starts))
    where = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        size = x.shape[axis]
        if isinstance(end, int) and (end >= _END or end < -_END):
            end = None
        if isinstance(start, int) and (start == 0 and step > 0 or start >= _END):
            start = None
        if isinstance(end, int) and step < 0 and end < -size:
            end = None
        if isinstance(size, int) or step != 1:
            where[axis] = slice(start, end, step)
            continue
        edges = 0 if start is None else start, size if end is None else end
        x = lax.slice_in_dim(x, *edges, axis=axis)  # of several batches, some
    return x[tuple(where)]


@_onnx("Gather")
def _gather(x, index, *, axis=0):
    if _static(x, index):
        return np.take(x, index.astype(int), axis)
    x, axis = _dynamic(x), axis % x.ndim
    size = x.shape[axis]
    if not _static(index):
        return jnp.take(x, jnp.where(index < 0, index + size, index), axis, mode="clip")
    if index.size and index.min() < 0:
        index = np.where(index < 0, index + size, index)
    if index.ndim == 0:
        return lax.index_in_dim(x, int(index), axis, keepdims=False)
    return jnp.take(x, index, axis, mode="clip")


@_onnx("GatherElements")
def _gather_elements(x, index, *, axis=0):
    axis, index = axis % x.ndim, _dynamic(index)
    for other, size in enumerate(index.shape):
        if other != axis and size != x.shape[other]:
            x = lax.slice_in_dim(x, 0, size, axis=other)
    return jnp.take_along_axis(_dynamic(x), index, axis)


@_onnx("GatherND", static=(1,))
def _gather_nd(x, index, *, batch_dims=0):
    if batch_dims:
        raise ValueError(f"batch_dims={batch_dims} is not known")
    where = tuple(np.moveaxis(index.astype(int), -1, 0))
    return x[where]


@_onnx("ScatterND", static=(1,))
def _scatter_nd(x, index, updates, *, reduction="none"):
    if reduction != "none":
        raise ValueError(f"the reduction {reduction!r} is not known")
    where = tuple(np.moveaxis(index.astype(int), -1, 0))
    if _static(x, updates):
        x = x.astype(updates.dtype if updates.dtype == object else x.dtype)
        x[where] = updates
        return x
    return _dynamic(x).at[where].set(_dynamic(updates))


@_onnx("Expand", static=(1,))
def _expand(x, shape):
    sizes: Any = jnp.broadcast_shapes(x.shape, tuple(_numbers(shape)))
    if _static(x) and all(isinstance(n, int) for n in sizes):
        return np.broadcast_to(x, sizes)
    return jnp.broadcast_to(_dynamic(x), sizes)


@_onnx("Tile", static=(1,))
def _tile(x, repeats):
    if _static(x) and repeats.dtype != object:
        return np.tile(x, repeats)
    return ops.tile(_dynamic(x), _numbers(repeats))


@_onnx("Pad", static=(1, 2, 3))
def _pad(x, given=None, fill=None, axes=None, *, mode="constant", pads=None, value=0.0):
    pads = _numbers(given, pads)
    axes = _numbers(axes, range(x.ndim))
    widths = [(0, 0)] * x.ndim
    for i, axis in enumerate(axes):
        widths[axis] = (pads[i], pads[i + len(axes)])
    x = _dynamic(x)
    if mode == "constant":
        fill = jnp.asarray(_scalar(fill, value), x.dtype)
        return lax.pad(x, fill, [(low, high, 0) for low, high in widths])
    if mode not in ("reflect", "edge", "wrap"):
        raise ValueError(f"the mode {mode!r} is not known")
    for axis, (low, high) in enumerate(widths):
        if low < 0 or high < 0:
            x = lax.slice_in_dim(
                x, max(-low, 0), x.shape[axis] + min(high, 0), axis=axis
            )
    widths = [(max(low, 0), max(high, 0)) for low, high in widths]
    return jnp.pad(x, widths, mode=mode)


@_onnx("Cast", ignored="saturate round_mode")
def _cast(x, *, to):
    dtype = _dtype(to, "Cast")
    if not _static(x):
        return x.astype(jax.dtypes.canonicalize_dtype(dtype))
    if x.dtype == object:
        if dtype.kind != "i":
            raise ValueError(f"a symbolic size cannot become {dtype}")
        return x
    return x.astype(dtype)


@_onnx("ConstantOfShape", static=(0,))
def _constant_of_shape(shape, *, value=None):
    value = np.zeros(1, np.float32) if value is None else value
    shape = _numbers(shape)
    module = np if all(isinstance(n, int) for n in shape) else jnp
    return module.full(shape, value.item(), value.dtype)


@_onnx("Range", static=(0, 1, 2))
def _range(start, limit, delta):
    numbers = [_numbers(n)[0] for n in (start, limit, delta)]
    if object in (start.dtype, limit.dtype, delta.dtype):
        return jnp.arange(*numbers)
    return np.arange(*numbers, dtype=start.dtype)


@_onnx("OneHot", static=(1, 2))
def _one_hot(index, depth, values, *, axis=-1):
    depth, (off, on) = int(_scalar(depth)), values
    index = jnp.expand_dims(_dynamic(index), axis)
    axis = axis % index.ndim
    index = jnp.where(index < 0, index + depth, index)
    row = np.arange(depth).reshape([-1 if i == axis else 1 for i in range(index.ndim)])
    return jnp.where(index == row.astype(index.dtype), on, off)


@_onnx("Trilu", static=(1,))
def _trilu(x, k=None, *, upper=1):
    module = np if _static(x) else jnp
    return (module.triu if upper else module.tril)(x, int(_scalar(k, 0)))


@_onnx("If", static=(0,))
def _if(condition, *, then_branch, else_branch, outer=(), count):
    graph, tensors = then_branch if _scalar(condition) else else_branch
    values = {**dict(outer), **tensors}
    _evaluate(graph, values)
    return [values[name] for name in graph.outputs]


# Operators that a line says.


def _all_of(name: str):
    """A function of two, of any number."""
    return lambda *values: functools.reduce(_named(name), values)


def _spatial(x):
    return tuple(range(2, x.ndim))


for _name, _call_of in {
    "ArgMax": _arg(jnp.argmax),
    "ArgMin": _arg(jnp.argmin),
    "Celu": lambda x, *, alpha=1.0: jax.nn.celu(x, alpha),
    "Einsum": lambda *values, equation: jnp.einsum(equation, *map(_dynamic, values)),
    "Elu": lambda x, *, alpha=1.0: jax.nn.elu(x, alpha),
    "Erf": lambda x: lax.erf(_dynamic(x)),
    "Gelu": lambda x, *, approximate="none": jax.nn.gelu(x, approximate == "tanh"),
    "GlobalAveragePool": lambda x: x.mean(_spatial(x), keepdims=True),
    "GlobalMaxPool": lambda x: x.max(_spatial(x), keepdims=True),
    "HardSigmoid": lambda x, *, alpha=0.2, beta=0.5: jnp.minimum(
        jnp.maximum(alpha * x + beta, 0), 1
    ),
    "HardSwish": lambda x: jax.nn.hard_swish(x),
    "Identity": lambda x: x,
    "InstanceNormalization": lambda x, scale, shift, *, epsilon=1e-5: ops.group_norm(
        x, x.shape[1], scale, shift, epsilon
    ),
    "LeakyRelu": lambda x, *, alpha=0.01: jax.nn.leaky_relu(x, alpha),
    "LogSoftmax": lambda x, *, axis=None, opset: jax.nn.log_softmax(
        x, _softmax_axes(x, axis, opset)
    ),
    "MatMul": lambda x, y: jnp.matmul(_dynamic(x), _dynamic(y)),
    "Max": _all_of("maximum"),
    "Mean": lambda *values: _all_of("add")(*values) * (1 / len(values)),
    "MeanVarianceNormalization": lambda x, *, axes=(0, 2, 3): ops.standardize(
        x, tuple(axes), 1e-9
    ),
    "Min": _all_of("minimum"),
    "Mish": lambda x: jax.nn.mish(x),
    "Mod": lambda x, y, *, fmod=0: _named("fmod" if fmod else "mod")(x, y),
    "PRelu": lambda x, slope: jnp.where(x >= 0, x, slope * x),
    "Reciprocal": lambda x: 1 / x,
    "Relu": lambda x: jax.nn.relu(_dynamic(x)),
    "Selu": lambda x, *, alpha=1.67326319217681884765625, gamma=1.050701022148132: (
        gamma * jax.nn.elu(x, alpha)
    ),
    "Shape": lambda x, *, start=0, end=None: np.array(x.shape[start:end], object),
    "Sigmoid": lambda x: jax.nn.sigmoid(_dynamic(x)),
    "Size": lambda x: math.prod(x.shape),
    "Softmax": lambda x, *, axis=None, opset: jax.nn.softmax(
        x, _softmax_axes(x, axis, opset)
    ),
    "Softplus": lambda x: jax.nn.softplus(_dynamic(x)),
    "Softsign": lambda x: jax.nn.soft_sign(_dynamic(x)),
    "Sum": _all_of("add"),
    "Swish": lambda x, *, alpha=1.0: x * jax.nn.sigmoid(alpha * x),
    "ThresholdedRelu": lambda x, *, alpha=1.0: jnp.where(x > alpha, x, 0),
    "Transpose": lambda x, *, perm=None: x.transpose(perm or range(x.ndim)[::-1]),
}.items():
    _onnx(_name)(_call_of)

_onnx("CastLike", ignored="saturate round_mode")(lambda x, like: x.astype(like.dtype))
_onnx("NonZero", static=(0,))(lambda x: np.stack(np.nonzero(x)))
