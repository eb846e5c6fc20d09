"""Quantized operators against ONNX Runtime where it has them, else against ONNX's reference."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from helpers.engines import quick_engine
from helpers.onnx_graph import compare_op, model, node, runtime
from planish.errors import UnsupportedOpError
from planish.frontends.onnx import import_model
from planish.graph.interpret import interpret

INT8 = [np.int8, np.uint8]


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def integers(rng, dtype: type, *shape: int) -> np.ndarray:
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max + 1, shape).astype(dtype)


def factors(rng, dtype, *shape):
    """Second factors: signed ones of seven bits, because ONNX Runtime saturates sums of two
    products by larger ones on CPUs without 8-bit dot products. Tests of kernels take all eight.
    """
    array = integers(rng, dtype, *shape)
    return array // 2 if dtype == np.int8 else array


def floats(rng, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (rng.standard_normal(shape) * scale).astype(np.float32)


def one_node(op: str, inputs, opset: int, **attributes: Any) -> tuple[onnx.ModelProto, dict]:
    """A model of one node, with inputs of any element type, and what to feed it."""
    names = [f"x{i}" if a is not None else "_" for i, a in enumerate(inputs)]
    feeds = {n: np.asarray(a) for n, a in zip(names, inputs, strict=True) if a is not None}
    declared = {n: (a.dtype, a.shape) for n, a in feeds.items()}
    return model([node(op, " ".join(names), "y", **attributes)], declared, ["y"], {}, opset), feeds


def compare_with_reference(op: str, inputs, opset: int, **attributes: Any) -> None:
    """Bit by bit; element types that are narrower than any of ours are compared as numbers."""
    proto, feeds = one_node(op, inputs, opset, **attributes)
    (expected,) = ReferenceEvaluator(proto).run(None, feeds)
    graph = import_model(proto, allow_fallback=False)
    (result,) = interpret(
        graph, {v.name: feeds[v.name].astype(v.dtype.numpy) for v in graph.inputs}
    )
    np.testing.assert_array_equal(result.astype(np.float64), expected.astype(np.float64))


# ---- between floats and integers ---------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16])
def test_per_tensor_axis_and_block(dtype, rng):
    wide = np.iinfo(dtype).bits == 16
    x, step = floats(rng, 4, 3, 5, scale=30), np.float32(3e-4 if wide else 0.07)
    q = integers(rng, dtype, 4, 3, 5)
    channels = np.abs(floats(rng, 3)) + step
    blocks = np.abs(floats(rng, 4, 3, 3)) + step
    for scale, axis, block in ((step, 1, 0), (channels, 1, 0), (channels, -2, 0), (blocks, 2, 2)):
        zero = integers(rng, dtype, *np.shape(scale))
        options = {"opset": 21, "axis": axis, "symbolic": block == 0}
        options |= {"block_size": block} if block else {}
        compare_op("QuantizeLinear", [x, scale, zero], **options)
        compare_op("DequantizeLinear", [q, scale, zero], **options)


def test_halves_round_to_even_before_the_zero_point_is_added():
    x = np.arange(-6, 7, dtype=np.float32) / 2
    for zero in (np.uint8(3), np.int8(-3), None):
        compare_op("QuantizeLinear", [x, np.float32(1), zero])


def test_integers_without_zero_point(rng):
    compare_op("DequantizeLinear", [integers(rng, np.int32, 5), np.float32(0.37)])
    compare_with_reference("QuantizeLinear", [integers(rng, np.int32, 5), np.float32(1e7)], 21)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_halves_are_divided_in_halves(dtype, rng):
    x, scale = floats(rng, 4, 50, scale=30).astype(dtype), np.asarray(0.3, dtype)
    for zero in (np.uint8(77), np.int16(-4)):
        compare_with_reference("QuantizeLinear", [x, scale, zero], 21)
        q = integers(rng, zero.dtype.type, 4, 5)
        compare_with_reference("DequantizeLinear", [q, scale, zero], 21)


def test_precision_and_output_type(rng):
    x, scale = floats(rng, 40, scale=30).astype(np.float16), np.float16(0.3)
    code = onnx.TensorProto
    for target in (code.INT8, code.UINT16):
        options = {"output_dtype": target, "precision": code.FLOAT}
        compare_with_reference("QuantizeLinear", [x, scale], 23, **options)
    q = integers(rng, np.int8, 9)
    compare_with_reference("DequantizeLinear", [q, np.float32(0.3)], 23, output_dtype=code.FLOAT16)


NARROW_INTEGERS = ["int4", "uint4", "int2", "uint2"]
NARROW_FLOATS = ["float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz"]


@pytest.mark.parametrize("name", NARROW_INTEGERS)
def test_integers_of_few_bits(name, rng):
    dtype = np.dtype(getattr(ml_dtypes, name))
    opset, info = (25, ml_dtypes.iinfo(dtype))
    x, scale = floats(rng, 6, 20, scale=5), np.float32(0.7)
    zero = np.array(int(info.max) // 2, dtype)
    compare_with_reference("QuantizeLinear", [x, scale, zero], opset)
    code = onnx.helper.np_dtype_to_tensor_dtype(dtype)
    compare_with_reference("QuantizeLinear", [x, scale], opset, output_dtype=code)
    q = rng.integers(int(info.min), int(info.max) + 1, (6, 20)).astype(dtype)
    compare_with_reference("DequantizeLinear", [q, scale, zero], opset)


@pytest.mark.parametrize("name", NARROW_FLOATS)
@pytest.mark.parametrize("saturate", [0, 1])
def test_floats_of_8_bits(name, saturate, rng):
    dtype = np.dtype(getattr(ml_dtypes, name))
    x = np.concatenate([floats(rng, 99, scale=s) for s in (1e-3, 1.0, 300.0, 3e5)])
    x[:4] = [0.0, np.inf, -np.inf, np.nan]
    scale, zero = np.float32(0.7), np.zeros((), dtype)
    compare_with_reference("QuantizeLinear", [x, scale, zero], 21, saturate=saturate)
    q = floats(rng, 50, scale=9).astype(dtype)
    compare_with_reference("DequantizeLinear", [q, scale, zero], 21)


@pytest.mark.parametrize("low", [-3.0, 0.0, 1.0])
def test_dynamic_range(low, rng):
    for scale in (0.0, 1.0, 1e6):
        x = floats(rng, 5, 7, scale=scale) + np.float32(low)
        compare_op("DynamicQuantizeLinear", [x], outputs=3, opset=11)
    compare_op("DynamicQuantizeLinear", [np.abs(x) * np.float32(low)], outputs=3, opset=11)


# ---- sums of products --------------------------------------------------------------------------

CONVOLUTIONS = [
    ((2, 4, 7, 8), (6, 4, 3, 3), {"pads": [1, 1, 0, 1]}),
    ((2, 4, 7, 8), (6, 2, 3, 2), {"group": 2, "strides": [2, 1], "dilations": [1, 2]}),
    ((2, 4, 7, 8), (4, 1, 3, 3), {"group": 4, "auto_pad": "SAME_UPPER"}),
    ((1, 3, 9), (5, 3, 4), {"pads": [2, 1]}),
]


@pytest.mark.parametrize("a", INT8)
@pytest.mark.parametrize("b", INT8)
def test_matmul(a, b, rng):
    left, right = integers(rng, a, 3, 5, 7), factors(rng, b, 7, 9)
    zeros = integers(rng, a, 1)[0], integers(rng, b, 1)[0]
    if (a, b) != (np.int8, np.uint8):  # ONNX Runtime lacks that pair
        compare_op("MatMulInteger", [left, right], opset=10)
        compare_op("MatMulInteger", [left, right, *zeros], opset=10)
        compare_op("MatMulInteger", [left, right, zeros[0], integers(rng, b, 9)], opset=10)
    scales = np.float32([0.02, 0.01, 0.3])
    quantized = [left, scales[0], zeros[0], right, scales[1], zeros[1], scales[2], zeros[0]]
    if (a, b) != (np.int8, np.uint8):
        compare_op("QLinearMatMul", quantized, opset=10)
        quantized[4:6] = np.abs(floats(rng, 9, scale=0.02)), integers(rng, b, 9)
        compare_op("QLinearMatMul", quantized, opset=10)
    rows = integers(rng, a, 5)
    compare_with_reference("MatMulInteger", [left[0], right, rows[:, None], zeros[1]], 10)


@pytest.mark.parametrize(("shape", "filters", "attributes"), CONVOLUTIONS)
def test_convolution(shape, filters, attributes, rng):
    x, w = integers(rng, np.uint8, *shape), integers(rng, np.uint8, *filters)
    compare_op("ConvInteger", [x, w], opset=10, **attributes)
    compare_op("ConvInteger", [x, w, np.uint8(7), np.uint8(100)], opset=10, **attributes)
    scales = np.float32([0.02, 0.01, 0.09])
    bias = rng.integers(-9999, 9999, filters[0]).astype(np.int32)
    for a, b in ((np.uint8, np.int8), (np.uint8, np.uint8), (np.int8, np.int8)):
        x, w = integers(rng, a, *shape), factors(rng, b, *filters)
        zeros = integers(rng, a, 1)[0], integers(rng, b, 1)[0], integers(rng, a, 1)[0]
        inputs = [x, scales[0], zeros[0], w, scales[1], zeros[1], scales[2], zeros[2]]
        compare_op("QLinearConv", inputs, opset=10, **attributes)
        inputs[4:6] = np.abs(floats(rng, filters[0], scale=0.01)), np.zeros(filters[0], b)
        compare_op("QLinearConv", [*inputs, bias], opset=10, **attributes)


def test_engine_of_a_quantized_network(rng):
    """Quantize, convolve, requantize, multiply, dequantize: no step outside native code."""
    weights = {
        "w": factors(rng, np.int8, 20, 3, 3, 3),
        "ws": np.abs(floats(rng, 20, scale=0.01)) + np.float32(1e-3),
        "wz": np.zeros(20, np.int8),
        "b": rng.integers(-99, 99, 20).astype(np.int32),
        "m": factors(rng, np.int8, 6, 10),
    }
    scalars = {"xs": np.float32(0.02), "xz": np.uint8(128), "ys": np.float32(0.1)}
    scalars |= {"yz": np.uint8(90), "ms": np.float32(0.03), "mz": np.int8(3)}
    nodes = [
        node("QuantizeLinear", "x xs xz", "q"),
        node("QLinearConv", "q xs xz w ws wz ys yz b", "y", pads=[1, 1, 1, 1]),
        node("QLinearMatMul", "y ys yz m ms mz ys yz", "p"),
        node("DequantizeLinear", "p ys yz", "r"),
        node("DynamicQuantizeLinear", "r", "d s z"),
        node("MatMulInteger", "d n z mz", "t"),
    ]
    constants = {**weights, **scalars, "n": factors(rng, np.int8, 10, 4)}
    proto = model(nodes, {"x": (np.float32, ["N", 3, 5, 6])}, ["p", "r", "s", "t"], constants)
    engine = quick_engine(proto, allow_fallback=False)
    for batch in (1, 3):
        feeds = {"x": floats(rng, batch, 3, 5, 6)}
        results, expected = engine(feeds), runtime(proto, feeds)
        for name, other in zip(("p", "r", "s", "t"), expected, strict=True):
            np.testing.assert_array_equal(results[name], other, name)


def test_unknown_targets_are_refused():
    proto, _ = one_node("QuantizeLinear", [np.zeros(3, np.float32), np.float32(1)], 21)
    proto.graph.node[0].attribute.append(
        onnx.helper.make_attribute("output_dtype", onnx.TensorProto.FLOAT16)
    )
    with pytest.raises(UnsupportedOpError, match="QuantizeLinear"):
        import_model(proto, allow_fallback=False)
