"""Every op on every dtype for which TensorFlow has a CPU kernel, against that kernel."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from tensorflow.python.framework import kernels

import tensorflow as tf
from planish.frontends.tensorflow.convert import import_graph_def
from planish.graph import DType
from planish.graph.interpret import interpret

raw = tf.raw_ops
RNG = np.random.default_rng(0)

# fmt: off
UNARY = (
    "Abs", "Neg", "Sign", "Reciprocal", "Inv", "Sqrt", "Rsqrt", "Square", "Exp", "Expm1", "Log",
    "Log1p", "Sin", "Cos", "Tan", "Asin", "Acos", "Atan", "Sinh", "Cosh", "Tanh", "Asinh", "Acosh",
    "Atanh", "Erf", "Erfc", "Sigmoid", "Floor", "Ceil", "Rint", "IsNan", "IsInf", "IsFinite",
    "LogicalNot", "Invert", "OnesLike", "ZerosLike",
)
ACTIVATIONS = ("Relu", "Relu6", "LeakyRelu", "Elu", "Selu", "Softplus", "Softsign")
BINARY = (
    "Add", "AddV2", "Sub", "Mul", "Maximum", "Minimum", "SquaredDifference", "Equal", "NotEqual",
    "Less", "LessEqual", "Greater", "GreaterEqual", "LogicalAnd", "LogicalOr", "BitwiseAnd",
    "BitwiseOr", "BitwiseXor", "Atan2", "MulNoNan",
)
DIVISIONS = (
    "Div", "RealDiv", "TruncateDiv", "FloorDiv", "FloorMod", "Mod", "TruncateMod", "DivNoNan",
)
REDUCTIONS = ("Sum", "Mean", "Max", "Min", "Prod", "Any", "All")
RESIZES = ("ResizeBilinear", "ResizeNearestNeighbor")
SCATTERS = (
    "TensorScatterUpdate", "TensorScatterAdd", "TensorScatterSub", "TensorScatterMax",
    "TensorScatterMin",
)
# fmt: on
MAIN = {"LogicalNot": None, "LogicalAnd": None, "LogicalOr": None, "Any": None, "All": None}
"""The attribute that is the type of the op's main input, where it is not T; None: always bool."""
MAIN |= {"TensorScatter" + n: "T" for n in ("Update", "Add", "Sub", "Max", "Min")}
MAIN |= {"GatherV2": "Tparams", "GatherNd": "Tparams", "Tile": "T", "Cast": "SrcT"}


def some(shape: tuple[int, ...], dtype: DType, most: int = 100) -> np.ndarray:
    """Random elements of both signs, the extreme integers among them."""
    if dtype is DType.BOOL:
        return RNG.integers(0, 2, shape).astype(bool)
    if dtype.is_float:
        return (RNG.standard_normal(shape) * 3).astype(dtype.numpy)
    info = np.iinfo(dtype.numpy)
    x = RNG.integers(max(info.min, -most), most + 1, shape).astype(dtype.numpy)
    if most == 100 and x.size >= 4:
        x.reshape(-1)[:2] = info.min, info.max
    return x


def without_zero(shape: tuple[int, ...], dtype: DType) -> np.ndarray:
    x = some(shape, dtype)
    return np.where(x == 0, np.ones_like(x), x)


def cases(d: DType) -> Iterator[tuple[str, Callable[..., object], list[np.ndarray]]]:
    """Op, how it is built of its inputs, and these."""
    rows = some((3, 8), d)
    for op in UNARY:
        yield op, lambda x, o=op: getattr(raw, o)(x=x), [some((3, 40), d)]
    for op in ACTIVATIONS:
        yield op, lambda x, o=op: getattr(raw, o)(features=x), [some((3, 40), d)]
    for op in ("Softmax", "LogSoftmax"):
        yield op, lambda x, o=op: getattr(raw, o)(logits=x), [some((3, 40), d)]
    for op in BINARY + DIVISIONS:
        divisor = without_zero((40,), d) if op in DIVISIONS else some((40,), d)
        yield op, lambda x, y, o=op: getattr(raw, o)(x=x, y=y), [some((3, 40), d), divisor]
    bits = 8 * d.size
    for op in ("LeftShift", "RightShift"):
        shifts = RNG.integers(0, min(bits, 100), 8).astype(d.numpy)
        yield op, lambda x, y, o=op: getattr(raw, o)(x=x, y=y), [rows, shifts]
    small = np.abs(some((3, 8), d, 4)) if d.is_float else some((3, 8), d, 4)
    exponents = RNG.integers(0, 4, 8).astype(d.numpy)
    yield "Pow", lambda x, y: raw.Pow(x=x, y=y), [small, exponents]
    for op in REDUCTIONS:
        yield op, lambda x, o=op: getattr(raw, o)(input=x, axis=[1]), [some((3, 7, 4), d, 4)]
    for op in ("ArgMax", "ArgMin"):
        yield op, lambda x, o=op: getattr(raw, o)(input=x, dimension=1), [some((3, 7, 4), d)]
    yield "Cumsum", lambda x: raw.Cumsum(x=x, axis=1), [some((3, 7), d, 4)]
    yield "TopKV2", lambda x: raw.TopKV2(input=x, k=3)[0], [some((3, 17), d)]
    yield "AddN", lambda x, y: raw.AddN(inputs=[x, y]), [rows, some((3, 8), d)]
    choice = some((3, 8), DType.BOOL)
    yield "SelectV2", lambda c, x, y: raw.SelectV2(condition=c, t=x, e=y), [choice, rows, rows]
    yield "ConcatV2", lambda x, y: raw.ConcatV2(values=[x, y], axis=1), [rows, some((3, 2), d)]
    yield "Pack", lambda x, y: raw.Pack(values=[x, y], axis=1), [rows, some((3, 8), d)]
    yield "Split", lambda x: raw.Split(value=x, num_split=2, axis=1)[1], [rows]
    yield "StridedSlice", lambda x: x[1:, ::2], [rows]
    yield "Transpose", lambda x: raw.Transpose(x=x, perm=[1, 0]), [rows]
    if d is not DType.UINT16:  # its kernel refuses them when it runs
        yield "Tile", lambda x: raw.Tile(input=x, multiples=[1, 2]), [rows]
    yield "BroadcastTo", lambda x: raw.BroadcastTo(input=x, shape=[2, 3, 8]), [rows]
    yield "ReverseV2", lambda x: raw.ReverseV2(tensor=x, axis=[1]), [rows]
    yield "Pad", lambda x: raw.Pad(input=x, paddings=[[1, 1], [0, 2]]), [rows]
    yield (
        "MirrorPad",
        lambda x: raw.MirrorPad(input=x, paddings=[[1, 1], [0, 2]], mode="REFLECT"),
        [rows],
    )
    for kind in (np.int32, np.int64):
        one, two = np.array([2, 0], kind), np.array([[2, 0], [1, 1]], kind)
        yield "GatherV2", lambda x, i=one: raw.GatherV2(params=x, indices=i, axis=1), [rows]
        yield "GatherNd", lambda x, i=two: raw.GatherNd(params=x, indices=i), [rows]
    for op in SCATTERS:
        yield (
            op,
            lambda x, u, o=op: getattr(raw, o)(tensor=x, indices=[[2], [0]], updates=u),
            [some((4, 8), d), some((2, 8), d)],
        )
    yield (
        "MatMul",
        lambda x, y: raw.MatMul(a=x, b=y, transpose_b=True),
        [some((3, 8), d, 4), some((5, 8), d, 4)],
    )
    yield (
        "BatchMatMulV2",
        lambda x, y: raw.BatchMatMulV2(x=x, y=y),
        [some((2, 3, 8), d, 4), some((2, 8, 5), d, 4)],
    )
    image, ones = some((1, 5, 5, 2), d, 4), [1, 1, 1, 1]
    filters = some((3, 3, 2, 3), d, 4)
    yield (
        "Conv2D",
        lambda x: raw.Conv2D(input=x, filter=filters, strides=ones, padding="SAME"),
        [image],
    )
    yield (
        "DepthwiseConv2dNative",
        lambda x: raw.DepthwiseConv2dNative(input=x, filter=filters, strides=ones, padding="SAME"),
        [image],
    )
    yield "BiasAdd", lambda x: raw.BiasAdd(value=x, bias=some((8,), d)), [rows]
    window = {"ksize": [1, 2, 2, 1], "strides": ones, "padding": "SAME"}
    yield "MaxPool", lambda x: raw.MaxPool(input=x, **window), [image]
    yield "AvgPool", lambda x: raw.AvgPool(value=x, **window), [image]
    for op in RESIZES:
        yield op, lambda x, o=op: getattr(raw, o)(images=x, size=[7, 9]), [image]
    yield "SpaceToDepth", lambda x: raw.SpaceToDepth(input=x, block_size=5), [image]
    yield "Fill", lambda x: raw.Fill(dims=[2, 3], value=x), [some((), d)]
    yield "MatrixBandPart", lambda x: raw.MatrixBandPart(input=x, num_lower=-1, num_upper=0), [rows]
    for to in DType:
        x = np.abs(some((3, 8), d, 4)) if to.value[0] == "u" and d is not DType.BOOL else rows
        if d.is_integer or to.is_float or to is DType.BOOL:
            yield "Cast", lambda x, t=to: raw.Cast(x=x, DstT=tf.as_dtype(t.numpy)), [x]


registered = functools.cache(kernels.get_registered_kernels_for_op)


def has_kernel(op: str, dtype: DType) -> bool:
    """Whether TensorFlow registers a CPU kernel of the op for the dtype."""
    attribute = MAIN.get(op, "T")
    if attribute is None:
        return dtype is DType.BOOL
    code = tf.as_dtype(dtype.numpy).as_datatype_enum
    for kernel in registered(op).kernel:
        if kernel.device_type not in ("CPU", "DEFAULT"):
            continue
        limits = [c.allowed_values.list.type for c in kernel.constraint if c.name == attribute]
        if all(code in types for types in limits):
            return True
    return False


@pytest.mark.parametrize("dtype", DType, ids=lambda d: d.value)
def test_ops_take_the_dtypes_that_tensorflow_has_kernels_for(dtype):
    tolerance = {DType.FLOAT16: 2e-3, DType.BFLOAT16: 1.6e-2}.get(dtype, 1e-5)
    feeds: dict[str, np.ndarray] = {}
    outputs, labels = [], []
    with tf.Graph().as_default() as graph:
        for op, build, arrays in cases(dtype):
            if not has_kernel(op, dtype):
                continue
            ends = []
            for array in arrays:
                name = f"x{len(feeds)}"
                feeds[name] = array
                ends.append(tf.compat.v1.placeholder(array.dtype, array.shape, name))
            try:
                outputs.append(tf.identity(build(*ends)))
            except (TypeError, ValueError):  # a kernel without an op that takes the dtype
                continue
            labels.append(op)
        with tf.compat.v1.Session(graph=graph) as session:
            expected = session.run(outputs, {f"{n}:0": a for n, a in feeds.items()})
    imported = import_graph_def(graph.as_graph_def(), list(feeds), [v.name for v in outputs])
    results = interpret(imported, {v.name: feeds[v.name] for v in imported.inputs})
    assert len(labels) > 15
    for op, result, other in zip(labels, results, expected, strict=True):
        message = f"{op} of {dtype.value}"
        assert result.dtype == other.dtype, message
        exact = not DType.of(other.dtype).is_float
        a, b = (v if exact else v.astype(np.float64) for v in (result, other))
        scale = 0 if exact else np.abs(b[np.isfinite(b)]).max(initial=0.0)
        np.testing.assert_allclose(
            a, b, rtol=0 if exact else tolerance, atol=tolerance * scale, err_msg=message
        )
