"""Elementwise converters against ONNX Runtime, over opsets and attributes."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from helpers.onnx_graph import compare_op

RNG = np.random.default_rng(0)


def floats(*shape: int, low: float = -3, high: float = 3) -> np.ndarray:
    return RNG.uniform(low, high, shape).astype(np.float32)


def integers(*shape: int, low: int = -9, high: int = 9, dtype=np.int64) -> np.ndarray:
    return RNG.integers(low, high, shape).astype(dtype)


X = floats(3, 4, 5)


# fmt: off
UNARY = [
    "Abs", "Neg", "Sign", "Exp", "Sin", "Cos", "Tan", "Atan", "Sinh", "Cosh", "Tanh", "Asinh",
    "Erf", "Relu", "Sigmoid", "Softplus", "Softsign", "Floor", "Ceil", "Round", "IsNaN", "IsInf",
    "Elu", "Selu", "Celu", "LeakyRelu", "HardSigmoid", "ThresholdedRelu", "Shrink", "HardSwish",
    "Mish", "Clip", "Identity",
]
# fmt: on


@pytest.mark.parametrize("op_type", UNARY)
def test_unary_of_any_number(op_type: str) -> None:
    compare_op(op_type, [X])


@pytest.mark.parametrize("op_type", ["Log", "Sqrt", "Reciprocal", "Acosh"])
def test_unary_of_positive(op_type: str) -> None:
    compare_op(op_type, [np.abs(X) + 1])


@pytest.mark.parametrize("op_type", ["Asin", "Acos", "Atanh"])
def test_unary_inside_one(op_type: str) -> None:
    compare_op(op_type, [X / 4])


def test_round_takes_halves_to_even() -> None:
    compare_op("Round", [np.array([0.5, 1.5, 2.5, -0.5, -1.5], np.float32)])


@pytest.mark.parametrize("opset", [7, 13, 14, 18])
@pytest.mark.parametrize("op_type", ["Add", "Sub", "Mul", "Div"])
def test_arithmetic(op_type: str, opset: int) -> None:
    compare_op(op_type, [X, floats(1, 5, low=1)], opset=opset)
    compare_op(op_type, [integers(3, 4), integers(4, low=1)], opset=opset)


def test_integer_division_truncates() -> None:
    numbers = np.array([-7, 7, -7, 7], np.int32)
    compare_op("Div", [numbers, np.array([2, 2, -2, -2], np.int32)])


@pytest.mark.parametrize("fmod", [0, 1])
def test_mod_of_integers(fmod: int) -> None:
    divisors = np.array([3, -3, 4, -4, 5], np.int64)
    compare_op("Mod", [integers(6, 5), divisors], fmod=fmod)


def test_mod_of_floats() -> None:
    compare_op("Mod", [X, floats(5, low=1)], fmod=1)


@pytest.mark.parametrize("op_type", ["Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"])
def test_comparisons(op_type: str) -> None:
    a, b = integers(4, 5, low=-2, high=2), integers(5, low=-2, high=2)
    compare_op(op_type, [a, b], opset=16)
    compare_op(op_type, [a.astype(np.float32), b.astype(np.float32)], opset=16)


@pytest.mark.parametrize("op_type", ["And", "Or", "Xor"])
def test_logic(op_type: str) -> None:
    compare_op(op_type, [RNG.random((4, 5)) > 0.5, RNG.random(5) > 0.5])


def test_not() -> None:
    compare_op("Not", [RNG.random((4, 5)) > 0.5])


@pytest.mark.parametrize("op_type", ["BitwiseAnd", "BitwiseOr", "BitwiseXor"])
def test_bits(op_type: str) -> None:
    compare_op(op_type, [integers(4, 5), integers(5)])


@pytest.mark.parametrize("direction", ["LEFT", "RIGHT"])
def test_bit_shift(direction: str) -> None:
    numbers, places = integers(6, low=0, dtype=np.uint32), np.full(6, 2, np.uint32)
    compare_op("BitShift", [numbers, places], direction=direction)


@pytest.mark.parametrize("op_type", ["Sum", "Max", "Min", "Mean"])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_any_number_of_inputs(op_type: str, count: int) -> None:
    compare_op(op_type, [floats(3, 4), floats(4), floats(1, 4), floats(3, 1)][:count])


@pytest.mark.parametrize("exponent", [2.0, 0.5, 3.0, -1.0])
def test_power_of_a_constant(exponent: float) -> None:
    compare_op("Pow", [np.abs(X) + 0.1, np.float32(exponent)], constant=[1])


def test_power_of_mixed_dtypes() -> None:
    compare_op("Pow", [X, integers(5, low=0, high=4)])
    compare_op("Pow", [integers(4, 5, low=0, high=5), np.array([2.0], np.float32)])
    compare_op("Pow", [integers(4, 5), np.array([3], np.int64)])


def test_where() -> None:
    compare_op("Where", [RNG.random((3, 1)) > 0.5, floats(3, 4), floats(4)])


@pytest.mark.parametrize("to", [np.float32, np.float16, np.int32, np.int64, np.uint8, np.bool_])
@pytest.mark.parametrize("source", [np.float32, np.int32, np.bool_])
def test_cast(source: type, to: type) -> None:
    x = np.array([[0, 1, 2, 100], [0, 3, 0, 9]]).astype(source)
    compare_op("Cast", [x], to=onnx.helper.np_dtype_to_tensor_dtype(np.dtype(to)))


def test_cast_like() -> None:
    compare_op("CastLike", [X, np.array([1], np.int32)], opset=15)


def test_clip_by_attributes() -> None:
    compare_op("Clip", [X], opset=10, min=-1.0, max=0.5)
    compare_op("Clip", [X], opset=7, max=0.5)


@pytest.mark.parametrize("constant", [[1, 2], []])
def test_clip_by_inputs(constant: list[int]) -> None:
    low, high = np.float32(-1), np.float32(0.5)
    compare_op("Clip", [X, low, high], constant=constant)
    compare_op("Clip", [X, low], constant=constant)
    compare_op("Clip", [X, None, high], constant=constant)


def test_clip_of_integers() -> None:
    compare_op("Clip", [integers(4, 5), np.int64(-2), np.int64(3)], constant=[1, 2])


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [
        ("LeakyRelu", {"alpha": 0.3}),
        ("Elu", {"alpha": 0.7}),
        ("Selu", {"alpha": 1.2, "gamma": 0.9}),
        ("Celu", {"alpha": 2.0}),
        ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
        ("ThresholdedRelu", {"alpha": 0.4}),
        ("Shrink", {"lambd": 0.7, "bias": 0.2}),
        ("IsInf", {"detect_negative": 0}),
        ("IsInf", {"detect_positive": 0}),
        ("IsInf", {"detect_positive": 0, "detect_negative": 0}),
    ],
)
def test_attributes(op_type: str, attributes: dict[str, float]) -> None:
    x = X.copy()
    if op_type == "IsInf":
        x[0, 0, :2] = np.inf, -np.inf
    compare_op(op_type, [x], **attributes)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_gelu(approximate: str) -> None:
    compare_op("Gelu", [X], opset=20, approximate=approximate)


def test_prelu() -> None:
    compare_op("PRelu", [floats(2, 3, 4, 4), floats(3, 1, 1)])
    compare_op("PRelu", [floats(2, 3), floats(3)])


@pytest.mark.parametrize("op_type", ["Add", "Mul", "Sigmoid", "Exp"])
def test_half_precision(op_type: str) -> None:
    x = floats(4, 5).astype(np.float16)
    inputs = [x, x[:1]] if op_type in ("Add", "Mul") else [x]
    compare_op(op_type, inputs, tolerance=2e-3)
