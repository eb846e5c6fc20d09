"""Casts, and the element types that a wider one stands for, against ml_dtypes."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from helpers.engines import quick_engine
from helpers.onnx_graph import compare, model, node
from planish.frontends.onnx import import_model
from planish.graph.interpret import interpret

RNG = np.random.default_rng(14)
FLOATS = {
    "FLOAT8E4M3FN": ml_dtypes.float8_e4m3fn,
    "FLOAT8E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "FLOAT8E5M2": ml_dtypes.float8_e5m2,
    "FLOAT8E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "FLOAT4E2M1": ml_dtypes.float4_e2m1fn,
}
INTEGERS = {
    "INT4": ml_dtypes.int4,
    "UINT4": ml_dtypes.uint4,
    "INT2": ml_dtypes.int2,
    "UINT2": ml_dtypes.uint2,
}


def numbers(dtype: Any) -> np.ndarray:
    """Every number of a type, what lies between two of them, and random ones of all sizes."""
    name = "float8_e5m2" if np.dtype(dtype).name == "float4_e2m1fn" else np.dtype(dtype).name
    own = np.arange(256, dtype=np.uint8).view(getattr(ml_dtypes, name)).astype(np.float32)
    own = np.unique(own[np.isfinite(own)])
    ties = (own[1:] + own[:-1]) / 2
    sizes = np.exp2(RNG.uniform(-20, 18, 500)) * RNG.choice([-1, 1], 500)
    beside = [np.nextafter(ties, np.float32(np.inf)), np.nextafter(ties, np.float32(-np.inf))]
    return np.concatenate([own, ties, *beside, sizes]).astype(np.float32)


def cast(x: np.ndarray, target: str, kernels: bool = False, **attributes: Any) -> np.ndarray:
    nodes = [node("Cast", "x", "y", to=getattr(TensorProto, target), **attributes)]
    proto = model(nodes, {"x": (x.dtype, ["N"])}, ["y"], opset=24)
    graph = import_model(proto, allow_fallback=False)
    (result,) = interpret(graph, {"x": x})
    if kernels:  # bit by bit the same
        np.testing.assert_array_equal(quick_engine(proto)(x), result)
    return result


@pytest.mark.parametrize("name", FLOATS)
def test_to_narrow_floats(name: str) -> None:
    dtype = FLOATS[name]
    x = numbers(dtype)
    wanted = numpy_helper.saturate_cast(x, np.dtype(dtype)).astype(np.float32)
    np.testing.assert_array_equal(cast(x, name, kernels=name == "FLOAT8E5M2"), wanted)


@pytest.mark.parametrize("name", [n for n in FLOATS if "8" in n])
def test_to_narrow_floats_without_saturation(name: str) -> None:
    x = np.concatenate([numbers(FLOATS[name]), np.float32([np.inf, -np.inf, np.nan, 0])])
    with np.errstate(invalid="ignore"):
        wanted = x.astype(FLOATS[name]).astype(np.float32)
    result = cast(x, name, kernels=name == "FLOAT8E4M3FN", saturate=0)
    np.testing.assert_array_equal(result, wanted)


@pytest.mark.parametrize("mode", ["up", "down", "nearest"])
def test_to_powers_of_two(mode: str) -> None:
    x = np.exp2(RNG.uniform(-100, 100, 300)).astype(np.float32)
    x = np.concatenate([x, np.exp2(np.arange(-20, 20)).astype(np.float32)])
    wanted = numpy_helper.to_float8e8m0(x, True, mode).astype(np.float32)
    np.testing.assert_array_equal(cast(x, "FLOAT8E8M0", round_mode=mode), wanted)


@pytest.mark.parametrize("name", INTEGERS)
def test_to_narrow_integers(name: str) -> None:
    x = np.arange(-40, 40, dtype=np.int32)
    wanted = x.astype(INTEGERS[name]).astype(np.int8)
    np.testing.assert_array_equal(cast(x, name).astype(np.int8), wanted)
    halves = np.linspace(-1.9, 1.9, 23, dtype=np.float32)
    truncated = np.trunc(halves).astype(np.int32).astype(INTEGERS[name]).astype(np.int8)
    np.testing.assert_array_equal(cast(halves, name).astype(np.int8), truncated)


def test_double_precision_is_rounded_once() -> None:
    """Just above a tie in float64, and on it in float32."""
    x = np.array([1.0625 + 2.0**-40, 1.0625, 1.1875 - 2.0**-40], np.float64)
    np.testing.assert_array_equal(cast(x, "FLOAT8E4M3FN"), np.float32([1.125, 1.0, 1.125]))


def stored(array: np.ndarray, name: str) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def test_narrow_weights_have_their_values() -> None:
    """And a cast like them is a cast to their type, not to the one that stands for it."""
    weights = RNG.standard_normal((2, 3)).astype(ml_dtypes.float8_e4m3fn)
    nodes = [
        node("Transpose", "w", "t"),
        node("CastLike", "x t", "c"),
        node("Cast", "c", "y", to=1),
    ]
    proto = model(nodes, {"x": (np.float32, ["N"])}, ["y"], opset=21)
    proto.graph.initializer.append(stored(weights, "w"))
    x = RNG.standard_normal(50).astype(np.float32)
    (result,) = interpret(import_model(proto), {"x": x})
    np.testing.assert_array_equal(result, x.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))


def test_quantization_saturates_at_the_narrow_type() -> None:
    x = np.linspace(-12, 12, 40, dtype=np.float32)
    for name, dtype in INTEGERS.items():
        if "2" in name:
            continue
        nodes = [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "y")]
        proto = model(nodes, {"x": (np.float32, [40])}, ["y"], {"s": np.float32(0.5)}, opset=21)
        proto.graph.initializer.append(stored(np.array(1, dtype), "z"))
        proto.ir_version = 10
        info = ml_dtypes.iinfo(dtype)
        steps = np.clip(np.round(x / 0.5) + 1, info.min, info.max)
        compare(proto, {"x": x}, expected=[((steps - 1) * 0.5).astype(np.float32)])


def test_a_narrow_input_and_output_have_the_wider_type() -> None:
    proto = model([node("Identity", "x", "y")], {"x": (np.int8, [4])}, ["y"], opset=21)
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT4
    engine = quick_engine(proto)
    assert engine.inputs[0].dtype == np.int8
    np.testing.assert_array_equal(engine(np.int8([-8, 0, 3, 7])), [-8, 0, 3, 7])


def test_casts_between_ordinary_types() -> None:
    x = np.array([-1.7, 0.0, 0.4, 2.6], np.float32)
    for dtype in (np.int32, np.uint8, np.bool_, np.float64, np.float16):
        code = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        positive = np.abs(x)
        compare(model([node("Cast", "x", "y", to=code)], {"x": (np.float32, [4])}, ["y"]),
                {"x": positive})  # fmt: skip
