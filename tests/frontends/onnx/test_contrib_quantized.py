"""ONNX Runtime's quantized operators against ONNX Runtime, which defines them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from helpers.contrib import contrib_model
from helpers.onnx_graph import runtime
from planish.errors import UnsupportedOpError
from planish.frontends.onnx import import_model
from planish.graph.interpret import interpret

RNG = np.random.default_rng(12)


def levels(*shape: int, dtype: type = np.uint8) -> np.ndarray:
    info = np.iinfo(dtype)
    return RNG.integers(info.min, info.max + 1, shape).astype(dtype)


def check(op_type: str, inputs: list[Any], near: bool = False, **options: Any) -> None:
    """The same levels; with `near` few may be the next ones: roundings are not defined."""
    proto, feeds = contrib_model(op_type, inputs, **options)
    (want,) = runtime(proto, feeds)
    (have,) = interpret(import_model(proto, allow_fallback=False), feeds)
    assert (have.dtype, have.shape) == (want.dtype, want.shape)
    off = np.abs(have.astype(np.float64) - want)
    if want.dtype == np.float32:
        np.testing.assert_allclose(have, want, rtol=1e-5)
        return
    assert off.max() <= near and off.mean() < 0.05
    assert len(np.unique(want)) > 3


A, B, Y = (np.float32(s) for s in (0.021, 0.034, 0.05))


@pytest.mark.parametrize("op_type", ["QLinearAdd", "QLinearMul"])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_of_two_operands(op_type: str, dtype: type) -> None:
    a, b, zeros = levels(2, 3, 40, dtype=dtype), levels(40, dtype=dtype), levels(3, dtype=dtype)
    near = op_type == "QLinearAdd"  # many sums are half-way between two levels
    check(op_type, [a, A, zeros[0], b, B, zeros[1], Y, zeros[2]], near)


@pytest.mark.parametrize("op_type", ["QLinearLeakyRelu", "QLinearSigmoid"])
def test_of_one_operand(op_type: str) -> None:
    attributes = {"alpha": 0.2} if op_type == "QLinearLeakyRelu" else {}
    x = levels(3, 50, dtype=np.int8)
    check(op_type, [x, A, np.int8(-3), B, np.int8(5)], constant=[1, 2, 3, 4], **attributes)


def test_pools() -> None:
    x = levels(2, 3, 6, 5)
    parameters = [A, np.uint8(100), np.float32(0.015), np.uint8(7)]
    check("QLinearGlobalAveragePool", [x, *parameters])
    window = {"kernel_shape": [2, 3], "strides": [2, 1], "pads": [0, 1, 0, 1]}
    check("QLinearAveragePool", [x, *parameters], near=True, **window)
    proto, _ = contrib_model("QLinearGlobalAveragePool", [x, *parameters], channels_last=1)
    with pytest.raises(UnsupportedOpError, match="its channels come last"):
        import_model(proto, allow_fallback=False)


def test_concatenation() -> None:
    parts = [levels(2, 3, 4), A, np.uint8(9), levels(2, 5, 4), B, np.uint8(99)]
    check("QLinearConcat", [Y, np.uint8(50), *parts], axis=1, constant=[0, 1, 3, 4, 6, 7])


def test_softmax_and_choice() -> None:
    x = levels(3, 9)
    check(
        "QLinearSoftmax",
        [x, A, np.uint8(7), np.float32(1 / 256), np.uint8(0)],
        constant=[1, 2, 3, 4],
        axis=-1,
        opset=13,
    )
    condition = RNG.integers(0, 2, (3, 9)).astype(bool)
    choice = [condition, x, A, np.uint8(3), levels(3, 9), B, np.uint8(8), Y, np.uint8(9)]
    check("QLinearWhere", choice, constant=[2, 3, 5, 6, 7, 8])


@pytest.mark.parametrize("per_channel", [False, True])
def test_gemm(per_channel: bool) -> None:
    a, b = levels(4, 9), levels(6, 9, dtype=np.int8) // 2
    scales = np.abs(RNG.standard_normal(6)).astype(np.float32) / 50 if per_channel else B
    zeros = np.zeros(6, np.int8) if per_channel else np.int8(4)
    bias = RNG.integers(-999, 999, 6).astype(np.int32)
    inputs = [a, A, np.uint8(99), b, scales, zeros, bias]
    check("QGemm", [*inputs, np.float32(0.4), np.uint8(111)], transB=1)
    check("QGemm", [*inputs[:6], None, np.float32(0.4), np.uint8(111)], transB=1)
    check("QGemm", inputs, transB=1, alpha=0.5)


def test_conversions_of_that_domain() -> None:
    x = RNG.standard_normal((3, 4)).astype(np.float32)
    check("QuantizeLinear", [x, A, np.int8(3)])
    check("DequantizeLinear", [levels(3, 4), np.abs(x[0]), levels(4)], axis=1)
