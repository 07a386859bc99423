"""What onnxruntime computes, the imported function computes: for any batch.

Single operators are checked against the cases that ONNX itself defines them by.
"""

import collections
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason='pip install "jaxburst[onnx]"')
runtime = pytest.importorskip("onnxruntime", reason='pip install "jaxburst[frontends]"')

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.backend.test.case.node import collect_testcases  # noqa: E402

from jaxburst.io import onnx as frontend  # noqa: E402
from jaxburst.io.onnx import from_onnx  # noqa: E402

rng = np.random.default_rng(0)


def weights(**shapes):
    """Random initializers of these shapes; arrays and numbers are kept."""
    return [
        numpy_helper.from_array(
            rng.normal(size=s).astype("f4") / 3 if type(s) is tuple else np.asarray(s),
            name,
        )
        for name, s in shapes.items()
    ]


def ints(*numbers):
    return np.array(numbers, np.int64)


def node(operator, inputs, output, **attributes):
    outputs = output.split()
    return helper.make_node(
        operator, inputs.split(" "), outputs, outputs[0], **attributes
    )


def model(nodes, tensors, shape, opset, outputs=("y",), kind=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", kind, shape)],
        [onnx.ValueInfoProto(name=name) for name in outputs],
        tensors,
    )
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def residual(opset=13):
    """A bottleneck with uneven padding, a gate, a legacy clip and a softmax."""
    nodes = [
        node("Conv", "x stem", "a", auto_pad="SAME_UPPER", strides=[2, 2]),
        node("BatchNormalization", "a scale shift mean var", "b", epsilon=1e-3),
        node("Relu", "b", "c"),
        node("Conv", "c depthwise bias", "d", group=6, pads=[2, 1, 2, 3],
             dilations=[2, 2]),
        node("Clip", "d zero six", "e"),
        node("GlobalAveragePool", "e", "f"),
        node("Conv", "f squeeze", "g"),
        node("HardSigmoid", "g", "h", alpha=1 / 6),
        node("Mul", "e h", "i"),
        node("Add", "i c", "j"),
        node("LeakyRelu", "j", "k", alpha=0.1),
        node("MaxPool", "k", "l", kernel_shape=[3, 2], strides=[2, 2],
             pads=[1, 0, 0, 1]),
        node("Flatten", "l", "m"),
        node("Gemm", "m dense bias2", "n", transB=1, alpha=0.5, beta=2.0),
        node("Softmax", "n", "y"),
    ]  # fmt: skip
    tensors = weights(
        stem=(6, 3, 3, 3), scale=(6,), shift=(6,), mean=(6,),
        var=np.linspace(0.5, 2, 6, dtype="f4"), depthwise=(6, 1, 3, 3), bias=(6,),
        zero=np.float32(0), six=np.float32(0.8), squeeze=(6, 6, 1, 1),
        dense=(4, 36), bias2=(4,),
    )  # fmt: skip
    return model(nodes, tensors, ["n", 3, 10, 12], opset)


def transformer(opset=14):
    """Patches, a class token expanded by the batch, attention and GELU by hand."""
    nodes = [
        node("Conv", "x patch", "p", strides=[4, 4]),
        node("Shape", "p", "s"),
        node("Gather", "s i0", "batch", axis=0),
        node("Slice", "s s0 s2", "kept"),
        node("Concat", "kept minus", "flat", axis=0),
        node("Reshape", "p flat", "q"),
        node("Transpose", "q", "r", perm=[0, 2, 1]),
        node("Unsqueeze", "batch i00", "batch1"),
        node("Concat", "batch1 one one", "token_shape", axis=0),
        node("ConstantOfShape", "three", "ones",
             value=helper.make_tensor("v", TensorProto.INT64, [1], [1])),
        node("Mul", "ones minus", "minuses"),
        node("Equal", "token_shape minuses", "same"),
        node("Where", "same ones token_shape", "where"),
        node("Expand", "token where", "tokens"),
        node("Concat", "tokens r", "t", axis=1),
        node("Add", "t position", "z"),
        node("ReduceMean", "z", "mean", axes=[-1]),
        node("Sub", "z mean", "centred"),
        node("Pow", "centred two", "squares"),
        node("ReduceMean", "squares", "var", axes=[-1]),
        node("Add", "var eps", "var_eps"),
        node("Sqrt", "var_eps", "std"),
        node("Div", "centred std", "normal"),
        node("Mul", "normal gamma", "ln"),
        node("MatMul", "ln qkv", "m"),
        node("Shape", "m", "ms"),
        node("Gather", "ms i0", "m0", axis=0),
        node("Gather", "ms i1", "m1", axis=0),
        node("Unsqueeze", "m0 i00", "m0u"),
        node("Unsqueeze", "m1 i00", "m1u"),
        node("Concat", "m0u m1u three two_i four", "split_shape", axis=0),
        node("Reshape", "m split_shape", "heads"),
        node("Transpose", "heads", "heads_first", perm=[2, 0, 3, 1, 4]),
        node("Split", "heads_first", "q1 k1 v1", axis=0),
        node("Squeeze", "q1 i00", "q2"),
        node("Squeeze", "k1 i00", "k2"),
        node("Squeeze", "v1 i00", "v2"),
        node("Transpose", "k2", "k3", perm=[0, 1, 3, 2]),
        node("MatMul", "q2 k3", "scores"),
        node("Div", "scores scale", "scaled"),
        node("Softmax", "scaled", "attention", axis=-1),
        node("MatMul", "attention v2", "mixed"),
        node("Transpose", "mixed", "mixed1", perm=[0, 2, 1, 3]),
        node("Reshape", "mixed1 keep_flat", "mixed2"),
        node("Add", "z mixed2", "z1"),
        node("Div", "z1 root2", "g1"),
        node("Erf", "g1", "g2"),
        node("Add", "g2 one_f", "g3"),
        node("Mul", "z1 g3", "g4"),
        node("Mul", "g4 half", "gelu"),
        node("Slice", "gelu s0 s1 s1 s1", "first"),
        node("Gather", "gelu i0", "y", axis=1),
        node("ArgMax", "gelu", "index", axis=-1, keepdims=0),
    ]  # fmt: skip
    tensors = weights(
        patch=(8, 3, 4, 4), token=(1, 1, 8), position=(1, 7, 8), gamma=(8,),
        qkv=(8, 24), i0=np.array(0), i1=np.array(1), i00=ints(0), s0=ints(0),
        s1=ints(1), s2=ints(2), minus=ints(-1), one=ints(1), three=ints(3),
        two_i=ints(2), four=ints(4), keep_flat=ints(0, 0, -1), two=np.float32(2),
        eps=np.array([1e-5], "f4"), scale=np.float32(2), root2=np.float32(2**0.5),
        one_f=np.float32(1), half=np.float32(0.5),
    )  # fmt: skip
    return model(nodes, tensors, ["n", 3, 8, 12], opset, ("y", "index", "first"))


def decoder(opset=11):
    """Up again, four ways, with the sizes computed from shapes as exporters do."""
    nodes = [
        node("ConvTranspose", "x up bias", "a", strides=[2, 2], pads=[1, 0, 1, 2],
             output_padding=[1, 0], group=2),
        node("InstanceNormalization", "a gamma beta", "b"),
        node("PRelu", "b slope", "c"),
        node("Resize", "c roi scales", "d", mode="nearest", nearest_mode="floor",
             coordinate_transformation_mode="asymmetric"),
        node("Shape", "d", "s"),
        node("Slice", "s s0 s2", "head"),
        node("Slice", "s s2 s4", "tail"),
        node("Cast", "tail", "tail_f", to=TensorProto.FLOAT),
        node("Mul", "tail_f factor", "bigger"),
        node("Floor", "bigger", "floored"),
        node("Cast", "floored", "sizes", to=TensorProto.INT64),
        node("Concat", "head sizes", "all_sizes", axis=0),
        node("Resize", "d roi none all_sizes", "e", mode="linear",
             coordinate_transformation_mode="pytorch_half_pixel"),
        node("Pad", "e pads two", "f", mode="constant"),
        node("Pad", "f pads", "g", mode="reflect"),
        node("AveragePool", "g", "h", kernel_shape=[3, 3], strides=[2, 2],
             pads=[1, 1, 0, 1], ceil_mode=1, count_include_pad=1),
        node("AveragePool", "h", "i", kernel_shape=[3, 2], auto_pad="SAME_LOWER",
             strides=[2, 2]),
        node("ConvTranspose", "i last", "j", auto_pad="SAME_UPPER", strides=[3, 2]),
        node("Sigmoid", "j", "y"),
    ]  # fmt: skip
    tensors = weights(
        up=(4, 3, 3, 4), bias=(6,), gamma=(6,), beta=(6,), slope=(6, 1, 1),
        roi=np.array([], "f4"), scales=np.array([1, 1, 2, 3], "f4"), s0=ints(0),
        s2=ints(2), s4=ints(4), factor=np.array([1.3, 0.7], "f4"),
        none=np.array([], "f4"), pads=ints(0, 0, 1, 0, 0, 0, 2, 3),
        two=np.float32(0.25), last=(6, 1, 4, 3),
    )  # fmt: skip
    return model(nodes, tensors, ["n", 4, 5, 6], opset)


def tokens(opset=15):
    """Bytes in: one-hot by comparison, folded tables, statistics, old softmax."""
    nodes = [
        node("Cast", "x", "x64", to=TensorProto.INT64),
        node("Unsqueeze", "x64 last", "wide"),
        node("Equal", "wide table", "hot"),
        node("Cast", "hot", "hot_f", to=TensorProto.FLOAT),
        node("MatMul", "hot_f embedding", "a"),
        node("Gather", "embedding2 x64", "b", axis=0),
        node("Add", "a b", "c"),
        node("LayerNormalization", "c gamma beta", "d", axis=-1, epsilon=1e-6),
        node("ReduceMax", "d", "e", axes=[1], keepdims=0),
        node("Reciprocal", "scale", "inverse"),
        node("Mul", "e inverse", "f"),
        node("Einsum", "f mixing", "g", equation="bi,ij->bj"),
        node("LogSoftmax", "g", "y", axis=1),
        node("OneHot", "x64 depth on_off", "one_hot"),
        node("ReduceSum", "one_hot last1", "counts", keepdims=0),
    ]
    tensors = weights(
        last=ints(-1), table=np.arange(9)[None, None], embedding=(9, 6), last1=ints(1),
        embedding2=(9, 6), gamma=(6,), beta=(6,), scale=(6,), mixing=(6, 4),
        depth=np.array(9), on_off=np.array([0, 1], "f4"),
    )  # fmt: skip
    shape = ["n", 7]
    return model(nodes, tensors, shape, 17, ("y", "counts"), TensorProto.INT32)


MODELS = {"residual": residual, "transformer": transformer, "decoder": decoder}
MODELS |= {"tokens": tokens, "residual11": lambda: residual(11)}


def inputs_of(proto, batch=3):
    (spec,) = (i for i in proto.graph.input)
    dims = [d.dim_value for d in spec.type.tensor_type.shape.dim][1:]
    if spec.type.tensor_type.elem_type == TensorProto.INT32:
        return rng.integers(0, 9, (batch, *dims)).astype(np.int32)
    return rng.normal(size=(batch, *dims)).astype(np.float32)


def run(proto, x):
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(
        proto.SerializeToString(), options, ["CPUExecutionProvider"]
    )
    return session.run(None, {"x": x})


def assert_equal(wanted, found, tolerance=1e-5):
    assert len(wanted) == len(found) > 0
    for w, f in zip(wanted, found, strict=True):
        assert w.shape == f.shape
        scale = np.abs(w.astype(float)).max(initial=0)
        np.testing.assert_allclose(f, w, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_onnxruntimes(name):
    proto = MODELS[name]()
    function, variables = from_onnx(proto)
    x = inputs_of(proto)
    wanted = run(proto, x)
    assert all(np.ptp(w) > 0 for w in wanted), "something happens"
    assert_equal(wanted, jax.tree.leaves(jax.jit(function)(variables, x)))
    (b,) = jax.export.symbolic_shape("b")
    spec = jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype)
    outputs = jax.make_jaxpr(function)(variables, spec).out_avals
    found = [tuple(eval(str(d), {"b": 3}) for d in o.shape) for o in outputs]
    assert found == [w.shape for w in wanted], "b is 3"


@pytest.mark.parametrize(
    "how, rounding, scales",
    [
        ("half_pixel", "round_prefer_ceil", (1.7, 0.7)),  # a tie; 7 of 10, not 6
        ("align_corners", "round_prefer_floor", (6.2, 1.5)),
        ("asymmetric", "floor", (1.1, 1)),  # of the same size: nothing is done
    ],
)
def test_the_nearest_is_onnxruntimes_at_a_tie(how, rounding, scales):
    nodes = [
        node("Resize", "x  scales", "y", mode="nearest", nearest_mode=rounding,
             coordinate_transformation_mode=how)
    ]  # fmt: skip
    tensors = weights(scales=np.float32([1, 1, *scales]))
    proto = model(nodes, tensors, ["n", 1, 6, 10], 13)
    function, variables = from_onnx(proto)
    x = inputs_of(proto)
    assert_equal(run(proto, x), [function(variables, x)])


@pytest.mark.parametrize("opset", [7, 9])
def test_an_upsample_has_its_scales_as_an_attribute_or_as_an_input(opset):
    scales = np.array([1, 1, 2, 3], "f4")
    given = ("x", {"scales": scales}) if opset < 9 else ("x s", {})
    made = node("Upsample", given[0], "y", mode="linear", **given[1])
    proto = model([made], weights(s=scales) if opset > 8 else [], ["n", 2, 3, 4], opset)
    function, variables = from_onnx(proto)
    x = inputs_of(proto)
    assert_equal(run(proto, x), [function(variables, x)])


def test_variables_are_the_weights_and_sizes_are_none():
    _, variables = from_onnx(residual())
    assert set(variables) == set(
        "stem scale shift mean var depthwise bias squeeze dense bias2".split()
    )
    _, variables = from_onnx(transformer())
    assert set(variables) == set("patch token position gamma qkv".split())
    _, variables = from_onnx(decoder())
    assert set(variables) == set("up bias gamma beta slope last".split())


def test_changed_variables_change_the_function_and_have_gradients():
    proto = residual()
    function, variables = from_onnx(proto)
    x = inputs_of(proto)
    changed = {name: 1.5 * value for name, value in variables.items()}
    del proto.graph.initializer[:]
    constants = weights(zero=np.float32(0), six=np.float32(0.8))
    arrays = {name: np.asarray(value) for name, value in changed.items()}
    proto.graph.initializer.extend([*weights(**arrays), *constants])
    wanted = run(proto, x)
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        one = lambda image: function(changed, image[None])[0]  # noqa: E731
        assert_equal(wanted, [jax.jit(jax.vmap(one))(x)])
        loss = lambda v: (function(v, x) ** 2).sum()  # noqa: E731
        grads = jax.jit(jax.grad(loss))(variables)
    assert all(np.any(g) and np.isfinite(g).all() for g in grads.values())
    with pytest.raises(ValueError, match="variables lack"):
        function({}, x)


def test_a_network_of_relus_is_spelled_in_plain_primitives():
    nodes = [
        node("Conv", "x w b", "a"),
        node("BatchNormalization", "a g s m v", "c"),
        node("Relu", "c", "d"),
        node("MaxPool", "d", "e", kernel_shape=[2, 2], strides=[2, 2]),
        node("AveragePool", "e", "f", kernel_shape=[2, 2], pads=[1, 0, 0, 0]),
        node("Flatten", "f", "h"),
        node("Gemm", "h dense bias", "y", transB=1),
    ]
    tensors = weights(
        w=(4, 3, 3, 3), b=(4,), g=(4,), s=(4,), m=(4,), v=np.ones(4, "f4"),
        dense=(5, 32), bias=(5,),
    )  # fmt: skip
    proto = model(nodes, tensors, ["n", 3, 10, 8], 13)
    function, variables = from_onnx(proto)
    x = inputs_of(proto)
    assert_equal(run(proto, x), [function(variables, x)])
    equations = jax.make_jaxpr(function)(variables, x).jaxpr.eqns
    names = collections.Counter(e.primitive.name for e in equations)
    assert set(names) <= set(
        """add broadcast_in_dim conv_general_dilated custom_jvp_call div dot_general
        integer_pow jit max mul neg reduce_window_max reduce_window_sum reshape sqrt
        sub""".split()
    )
    assert names["custom_jvp_call"] == names["reduce_window_max"] == 1
    assert {"a", "d", "y"} <= {str(e.source_info.name_stack) for e in equations}


def test_a_file_for_a_batch_of_one_is_mapped_over_any():
    nodes = [
        node("Conv", "x w", "a"),
        node("Reshape", "a flat", "b"),
        node("MatMul", "b dense", "y"),
    ]
    tensors = weights(w=(2, 3, 3, 3), flat=ints(1, -1), dense=(16, 5))
    proto = model(nodes, tensors, [1, 3, 6, 4], 13)
    function, variables = from_onnx(proto)
    x = inputs_of(proto)
    wanted = np.concatenate([run(proto, image[None])[0] for image in x])
    assert_equal([wanted], [jax.jit(function)(variables, x)])
    (b,) = jax.export.symbolic_shape("b")
    spec = jax.ShapeDtypeStruct((b, 3, 6, 4), jnp.float32)
    assert jax.eval_shape(function, variables, spec).shape == (b, 5)

    function, variables = from_onnx(model(nodes, tensors, [2, 3, 6, 4], 13))
    with pytest.raises(ValueError, match="exported for a batch of 2"):
        function(variables, x)


def test_constants_and_half_precision_are_variables_too():
    value = numpy_helper.from_array(rng.normal(size=(4, 2)).astype(np.float16), "w")
    nodes = [
        helper.make_node("Constant", [], ["w"], value=value),
        node("Cast", "x", "half", to=TensorProto.FLOAT16),
        node("MatMul", "half w", "y"),
    ]
    with pytest.warns(UserWarning, match="half-precision .* widened to float32"):
        function, variables = from_onnx(model(nodes, [], ["n", 4], 13))
    assert variables["w"].dtype == jnp.float32
    x = rng.normal(size=(3, 4)).astype(np.float32)
    wanted = x @ numpy_helper.to_array(value).astype(np.float32)
    np.testing.assert_allclose(function(variables, x), wanted, rtol=1e-5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        from_onnx(residual())


def test_kernels_that_the_file_computes_are_variables():
    half = helper.make_tensor("v", TensorProto.FLOAT, [1], [0.5])
    nodes = [
        node("ConstantOfShape", "s", "w", value=half),
        node("Conv", "x w", "y"),
    ]
    proto = model(nodes, weights(s=ints(2, 3, 3, 3)), ["n", 3, 5, 5], 13)
    function, variables = from_onnx(proto)
    assert variables["w"].shape == (2, 3, 3, 3)
    x = inputs_of(proto)
    assert_equal(run(proto, x), [function(variables, x)])


def test_a_condition_on_shapes_chooses_its_branch():
    def branch(name, operator):
        y = onnx.ValueInfoProto(name=name)
        return helper.make_graph([node(operator, "x", name)], name, [], [y])

    nodes = [
        node("Shape", "x", "s"),
        node("Gather", "s one", "channels"),
        node("Equal", "channels four", "condition"),
        node("If", "condition", "y", then_branch=branch("a", "Neg"),
             else_branch=branch("b", "Relu")),
    ]  # fmt: skip
    for four, wanted in [(4, -1), (5, 1)]:
        tensors = weights(one=np.array(1), four=np.array(four))
        function, variables = from_onnx(model(nodes, tensors, ["n", 4], 13))
        assert (function(variables, np.ones((2, 4), "f4")) == wanted).all()


def test_external_data_and_inputs_by_name(tmp_path):
    proto = residual()
    x = inputs_of(proto)
    wanted = run(proto, x)
    path = tmp_path / "model.onnx"
    onnx.save_model(proto, path, save_as_external_data=True, size_threshold=0)
    function, variables = from_onnx(path)
    assert_equal(wanted, [function(variables, {"x": x})])
    assert_equal(wanted, [function(variables, (x,))])
    for wrong in ({"z": x}, (x, x)):
        with pytest.raises(ValueError, match=r"expected the inputs \['x'\]"):
            function(variables, wrong)
    with pytest.raises(ValueError, match="input x: expected .* 3, 10, 12.*found"):
        function(variables, x[..., 1:])
    with pytest.raises(ValueError, match="input x: expected float32, found uint8"):
        function(variables, x.astype(np.uint8))
    for file in tmp_path.iterdir():
        if file != path:
            file.unlink()
    with pytest.raises(ValueError, match="not a whole ONNX file"):
        from_onnx(path)


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such ONNX file"):
        from_onnx(tmp_path / "none.onnx")
    path = tmp_path / "model.onnx"
    whole = residual().SerializeToString()
    for data in (b"", b"<html>not found</html>", whole[: len(whole) // 2]):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a whole ONNX file"):
            from_onnx(path)
    proto = residual()
    proto.graph.initializer[0].dims[0] = 7
    with pytest.raises(ValueError, match="stem: the tensor's data do not fit"):
        from_onnx(proto)
    del proto.graph.initializer[0]
    with pytest.raises(ValueError, match=r"node a \(a\) reads stem, which nothing"):
        from_onnx(proto)


REFUSED = {
    "operator": (
        node("TopK", "x k", "y"),
        dict(k=ints(2)),
        r"operator TopK of node y \(y\)",
    ),
    "domain": (
        helper.make_node("FusedConv", ["x"], ["y"], "z", domain="com.microsoft"),
        {},
        r"operator com\.microsoft\.FusedConv of node z",
    ),
    "attribute": (
        node("Relu", "x", "y", consumed_inputs=[0]),
        {},
        r"attribute consumed_inputs=\[0\] of Relu, node y",
    ),
    "indices": (
        node("MaxPool", "x", "m y", kernel_shape=[2, 2]),
        {},
        "first output of MaxPool alone.*node m",
    ),
    "training": (
        node("BatchNormalization", "x w w w w", "y", training_mode=1),
        dict(w=(3,)),
        "BatchNormalization, node y.*training mode",
    ),
    "crop": (
        node("Resize", "x roi s", "y",
             coordinate_transformation_mode="tf_crop_and_resize"),
        dict(roi=np.zeros(8, "f4"), s=np.array([1, 1, 2, 2], "f4")),
        "Resize, node y.*'tf_crop_and_resize' is not known",
    ),
    "ties": (
        node("Resize", "x roi s", "y", nearest_mode="floor",
             coordinate_transformation_mode="half_pixel_symmetric"),
        dict(roi=np.zeros(8, "f4"), s=np.array([1, 1, 3, 3], "f4")),
        "Resize, node y.*depends on the last bit; export with half_pixel",
    ),
    "negative padding": (
        node("ConvTranspose", "x w", "y", auto_pad="SAME_LOWER", strides=[3, 3]),
        dict(w=(3, 1, 2, 2)),
        "ConvTranspose, node y.*strides larger than the kernel",
    ),
    "value": (
        node("Reshape", "x x", "y"),
        {},
        "Reshape, node y.*'x' depends on values",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_the_operator_and_the_node(name):
    made, tensors, message = REFUSED[name]
    proto = model([made], weights(**tensors), ["n", 3, 4, 4], 14)
    with pytest.raises(ValueError, match=message):
        function, variables = from_onnx(proto)
        function(variables, np.ones((2, 3, 4, 4), "f4"))


def test_old_opsets_are_refused():
    proto = model([node("Relu", "x", "y")], [], ["n", 3], 6)
    with pytest.raises(ValueError, match="opset 6, expected 7 to"):
        from_onnx(proto)


# What the table knows, but not what these cases ask.
LEFT_OUT = """antialias exclude_outside tf_crop not_larger not_smaller training
    default_mask argmax_2d scatternd_add scatternd_m empty_set string expanded
    layer_normalization gathernd_example_int32_batch_dim1
    negative_ax float16 float64 int8 int16 uint _int64 _int32 not_2d not_3d
    not_4d""".split()
# onnxruntime and PyTorch take the whole size here, ONNX the scaled one.
LEFT_OUT += [f"downsample_scales_{kind}_align_corners" for kind in ("linear", "cubic")]


def own_cases():
    """ONNX's cases of operators of the table, those of one operator together."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    found = collections.defaultdict(list)
    for case in cases:
        (first, *more) = case.model.graph.node
        inputs, outputs = case.data_sets[0]
        if (
            first.op_type in frontend._TABLE
            and first.op_type != "If"
            and not more
            and not any(part in case.name for part in LEFT_OUT)
            and all(isinstance(x, np.ndarray | np.generic) for x in [*inputs, *outputs])
        ):
            found[first.op_type].append(case)
    return found


CASES = own_cases()


@pytest.mark.parametrize("operator", CASES)
def test_operators_agree_with_onnxs_own_cases(operator):
    row = frontend._TABLE[operator]
    for case in CASES[operator]:
        proto = onnx.ModelProto()
        proto.CopyFrom(case.model)
        (single,) = proto.graph.node
        names = [i.name for i in proto.graph.input]
        inputs = dict(zip(names, case.data_sets[0][0], strict=True))
        for i in row[1]:  # what must be known while tracing
            name = single.input[i] if i < len(single.input) else ""
            if name in inputs:
                tensor = numpy_helper.from_array(np.asarray(inputs.pop(name)), name)
                proto.graph.initializer.append(tensor)
        function, variables = from_onnx(proto)
        found = jax.tree.leaves(function(variables, inputs))
        for w, f in zip(case.data_sets[0][1], found, strict=True):
            assert w.shape == f.shape, case.name
            kind = w.astype(np.float32) if w.dtype.kind == "f" else w
            np.testing.assert_allclose(f, kind, rtol=5e-4, atol=1e-5, err_msg=case.name)


def test_onnxs_own_cases_are_many():
    assert sum(map(len, CASES.values())) > 300
    layers = "Conv ConvTranspose MaxPool AveragePool Resize Softmax Pad Slice".split()
    assert all(len(CASES[name]) >= 5 for name in layers)


def test_the_docstrings_example_runs():
    import doctest

    names = {"jnp": jnp, "from_onnx": from_onnx}
    finder = doctest.DocTestFinder(recurse=False)
    (test,) = finder.find(from_onnx, "from_onnx", globs=names)
    assert test.examples and doctest.DocTestRunner().run(test).failed == 0


def test_a_file_is_converted_and_the_result_needs_it_no_more(tmp_path, capsys):
    """By the command line; what it saved holds the trained network."""
    import json

    import jaxburst as jb
    from jaxburst.cli import main

    nodes = [
        node("Conv", "x stem bias", "a", pads=[1, 1, 1, 1], strides=[2, 2]),
        node("Relu", "a", "b"),
        node("MaxPool", "b", "c", kernel_shape=[2, 2], strides=[2, 2]),
        node("Flatten", "c", "d"),
        node("Gemm", "d dense bias2", "y", transB=1),
    ]
    tensors = weights(stem=(5, 2, 3, 3), bias=(5,), dense=(3, 20), bias2=(3,))
    proto, name = model(nodes, tensors, ["n", 2, 8, 8], 13), str(tmp_path / "m.onnx")
    x = inputs_of(proto, 20)
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    np.save(tmp_path / "x.npy", x)
    data, net = str(tmp_path / "x.npy"), str(tmp_path / "net")
    assert main(["info", name]) == 0
    words = ["convert", name, "--calibration", data, "--out", net, "--json"]
    assert main(words) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    (tmp_path / "m.onnx").unlink()
    assert main(["evaluate", net, "--data", data, "--json"]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["steps"] == said["steps"] and again["steps"][0]["spikes"] > 10
    made, spiking = jb.load(net)
    trained, variables = jb.io.checkpoint.restored(net)
    assert made.network == trained
    wanted = run(proto, x)[0]
    assert_equal(wanted, np.asarray(trained(variables, x)))
    found = jb.infer(made, spiking, x, 8)
    assert np.abs(found - wanted).mean() < 0.02 * np.abs(wanted).max()
    wider = weights(stem=(5, 2, 3, 3), bias=(5,), dense=(4, 20), bias2=(4,))
    other = model(nodes, wider, ["n", 2, 8, 8], 13).SerializeToString()
    for source, says in (
        (b"no onnx", "source: not a whole ONNX file"),
        (other, "source: is of another network"),
        ("m.onnx", "source: expected the content of an ONNX file"),
    ):
        with pytest.raises((ValueError, TypeError), match=says):
            jb.save(tmp_path / "other", made, spiking, source=source)
    assert not (tmp_path / "other").exists()
