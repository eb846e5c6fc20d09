"""Cases of elementwise ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from helpers.tensorflow_ops.draw import EXACT, FUNCTION, Case, Draw, Tolerance
from planish.graph.types import DType

Generator = Callable[[Draw], Case]

WHOLE = (-100.0, 100.0)

# name: least and greatest operand, and the tolerance; whole numbers take -100 to 100
_UNARY: dict[str, tuple[float, float, Tolerance]] = {
    "Abs": (-9, 9, EXACT),
    "Acos": (-1, 1, FUNCTION),
    "Acosh": (1.0625, 40, FUNCTION),
    "Asin": (-1, 1, FUNCTION),
    "Asinh": (-40, 40, FUNCTION),
    "Atan": (-40, 40, FUNCTION),
    "Atanh": (-0.96875, 0.96875, FUNCTION),
    "Ceil": (-9, 9, EXACT),
    "Cos": (-30, 30, Tolerance(3, of_largest=True, wide=True)),
    "Cosh": (-9, 9, FUNCTION),
    # TensorFlow takes 1 from exp(x), which costs it the digits of small results
    "Elu": (-9, 9, Tolerance(4, of_largest=True, wide=True)),
    "Erf": (-4, 4, FUNCTION),
    "Erfc": (-4, 0.5, FUNCTION),  # computed as 1 - erf: small results lose digits
    "Exp": (-9, 9, FUNCTION),
    "Expm1": (-9, 9, FUNCTION),
    "Floor": (-9, 9, EXACT),
    "Inv": (0.125, 9, FUNCTION),
    "IsFinite": (-9, 9, EXACT),
    "IsInf": (-9, 9, EXACT),
    "IsNan": (-9, 9, EXACT),
    "Invert": (*WHOLE, EXACT),
    "Log": (0.0625, 40, Tolerance(4, of_largest=True, wide=True)),
    "Log1p": (-0.9375, 40, FUNCTION),
    "LogicalNot": (0, 1, EXACT),
    "Neg": (-9, 9, EXACT),
    "Reciprocal": (0.125, 9, FUNCTION),
    "Relu": (-9, 9, EXACT),
    "Relu6": (-9, 9, EXACT),
    "Rint": (-9, 9, EXACT),
    "Round": (-9, 9, EXACT),
    "Rsqrt": (0.0625, 40, FUNCTION),
    "Selu": (-9, 9, Tolerance(4, of_largest=True, wide=True)),
    "Sigmoid": (-20, 20, FUNCTION),
    "Sign": (-9, 9, EXACT),
    "Sin": (-30, 30, Tolerance(3, of_largest=True, wide=True)),
    "Sinh": (-9, 9, FUNCTION),
    "Softplus": (-20, 20, FUNCTION),
    "Softsign": (-20, 20, FUNCTION),
    "Sqrt": (0, 40, EXACT),
    "Square": (-9, 9, EXACT),
    "Tan": (-1.5, 1.5, FUNCTION),
    "Tanh": (-9, 9, FUNCTION),
    "Identity": (*WHOLE, EXACT),
    "Snapshot": (*WHOLE, EXACT),
    "StopGradient": (*WHOLE, EXACT),
    "OnesLike": (*WHOLE, EXACT),
    "ZerosLike": (*WHOLE, EXACT),
}

_LIMITLESS = {"Abs", "Ceil", "Floor", "IsFinite", "IsInf", "IsNan", "Neg", "Relu", "Relu6", "Sign"}
_LIMITLESS |= {"Identity", "Snapshot", "StopGradient", "OnesLike", "ZerosLike", "Round", "Rint"}
_LIMITLESS |= {"Exp", "Sigmoid", "Tanh", "Elu", "Selu", "Sqrt", "Square", "Atan"}
"""What is also tried with infinities and NaN. TensorFlow's Erf of a double infinity is NaN."""


def raw(op: str, *inputs: Any, **attributes: Any) -> Any:
    """An op by name with positional inputs."""
    import tensorflow as tf

    function = getattr(tf.raw_ops, op)
    names = list(function.__signature__.parameters)
    return function(**dict(zip(names, inputs, strict=False)), **attributes)


def unary(op: str) -> Generator:
    low, high, tolerance = _UNARY[op]

    def generate(draw: Draw) -> Case:
        # of whole numbers TensorFlow's Round is 0
        types = draw.types(*(("f16", "bf16", "f32", "f64") if op == "Round" else ()))
        dtype = types.get("T", DType.BOOL)
        if dtype.is_float or op in ("Identity", "Snapshot", "StopGradient"):
            special = 0.3 if op in _LIMITLESS else 0.0
            x = draw.numbers(draw.shape(), dtype, low, high, special)
            if tolerance is EXACT and draw.flip(0.3) and dtype.is_float:
                x = (np.round(x.astype(np.float32) * 2) / 2).astype(x.dtype)  # halves to round
        else:
            x = (
                draw.whole(draw.shape(), dtype)
                if draw.flip()
                else draw.numbers(draw.shape(), dtype)
            )
            if dtype is DType.BOOL:
                x = draw.numbers(draw.shape(), dtype)
        if low >= 0 and dtype.is_integer:
            x = np.maximum(x, 1)
        return draw.case(lambda x: raw(op, x), draw.feed(x), tolerance=tolerance)

    return generate


QUOTIENT = Tolerance(1.5)
"""Division by a constant becomes multiplication by its inverse: two roundings."""

# name: tolerance, and whether a divisor of whole numbers must not be 0
_BINARY: dict[str, tuple[Tolerance, bool]] = {
    "Add": (EXACT, False),
    "AddV2": (EXACT, False),
    "Atan2": (FUNCTION, False),
    "BitwiseAnd": (EXACT, False),
    "BitwiseOr": (EXACT, False),
    "BitwiseXor": (EXACT, False),
    "Div": (QUOTIENT, True),
    "DivNoNan": (QUOTIENT, False),
    "Equal": (EXACT, False),
    "FloorDiv": (EXACT, True),
    "FloorMod": (EXACT, True),
    "Greater": (EXACT, False),
    "GreaterEqual": (EXACT, False),
    "Less": (EXACT, False),
    "LessEqual": (EXACT, False),
    "LogicalAnd": (EXACT, False),
    "LogicalOr": (EXACT, False),
    "Maximum": (EXACT, False),
    "Minimum": (EXACT, False),
    "Mod": (EXACT, True),
    "Mul": (EXACT, False),
    "MulNoNan": (EXACT, False),
    "NotEqual": (EXACT, False),
    "Pow": (Tolerance(12, wide=True), False),
    "RealDiv": (QUOTIENT, True),
    "SquaredDifference": (Tolerance(0, wide=True), False),  # halves are rounded once
    "Sub": (EXACT, False),
    "TruncateDiv": (EXACT, True),
    "TruncateMod": (EXACT, True),
    "Xdivy": (QUOTIENT, False),
    "Xlog1py": (FUNCTION, False),
    "Xlogy": (Tolerance(6, of_largest=True, wide=True), False),
}


def binary(op: str) -> Generator:
    tolerance, divides = _BINARY[op]

    def generate(draw: Draw) -> Case:
        dtype = draw.types().get("T", DType.BOOL)
        low, high = (-4.0, 4.0) if dtype.is_float else WHOLE
        if op in ("Pow", "Xlogy", "Xlog1py"):
            low, high = (0.125, 4.0) if dtype.is_float else (0.0, 5.0)
        a, b = draw.broadcast(2, dtype, low=low, high=high, special=0.0)
        if divides and not dtype.is_float:
            b.array[...] = np.where(b.array == 0, 3, b.array)
            if dtype.numpy.kind == "i":  # the lowest number by -1 is no number
                a.array[...] = np.maximum(a.array, np.iinfo(dtype.numpy).min + 1)
        if dtype.is_float and draw.flip(0.3):  # equal elements, and whole quotients
            for operand in (a, b):
                operand.array[...] = np.round(operand.array.astype(np.float32))
            if divides:
                b.array[...] = np.where(b.array == 0, 1, b.array)
        return draw.case(lambda a, b: raw(op, a, b), a, b, tolerance=tolerance)

    return generate


def shift(op: str) -> Generator:
    def generate(draw: Draw) -> Case:
        dtype = draw.dtype()
        a, b = draw.broadcast(2, dtype, low=-100, high=100)
        b.array[...] = np.abs(b.array.astype(np.int64)) % (dtype.size * 8)
        return draw.case(lambda a, b: raw(op, a, b), a, b)

    return generate


def leaky_relu(draw: Draw) -> Case:
    x = draw.numbers(draw.shape(), draw.dtype(), special=0.3)
    attributes = draw.note(alpha=draw.choose([0.0, 0.2, 0.01, 1.5, -0.5, 1.0]))
    return draw.case(
        lambda x: raw("LeakyRelu", x, **attributes),
        draw.feed(x),
        tolerance=Tolerance(1, wide=True),
    )


def add_n(draw: Draw) -> Case:
    shape, dtype = draw.shape(), draw.types()["T"]
    count = draw.integer(1, 5)
    operands = [draw.feed(draw.numbers(shape, dtype)) for _ in range(count)]
    return draw.case(
        lambda *x: raw("AddN", list(x)),
        *operands,
        tolerance=Tolerance(2, of_largest=True, wide=True),
    )


def bias_add(draw: Draw) -> Case:
    dtype = draw.dtype()
    first = draw.flip()
    shape = draw.shape(3 if first else 2, 5)
    channel = 1 if first else len(shape) - 1
    attributes = draw.note(data_format="NCHW" if first else "NHWC")
    x = draw.feed(draw.numbers(shape, dtype), known=[channel])
    bias = draw.either(draw.numbers(shape[channel : channel + 1], dtype), known=[0])
    return draw.case(lambda x, b: raw("BiasAdd", x, b, **attributes), x, bias)


def clip_by_value(draw: Draw) -> Case:
    dtype, shape = draw.dtype(), draw.shape()
    limits = shape if draw.flip(0.3) else ()
    x = draw.feed(draw.numbers(shape, dtype, special=0.2), known=range(len(limits)))
    low, high = draw.numbers(limits, dtype, -3, 0), draw.numbers(limits, dtype, 1, 3)
    return draw.case(
        lambda x, a, b: raw("ClipByValue", x, a, b),
        x,
        draw.either(low, known=range(len(limits))),
        draw.either(high, known=range(len(limits))),
    )


def cast(draw: Draw) -> Case:
    types = draw.types()
    source, target = types["SrcT"], types["DstT"]
    if source.is_integer:
        x = draw.whole(draw.shape(), source)
    else:
        high = 4e4 if target is DType.FLOAT16 else 1e5
        if target.is_integer:  # what does not fit is undefined
            high = float(min(np.iinfo(target.numpy).max, 2**24)) - 1
        high = min(high, 6e4) if source is DType.FLOAT16 else high
        low = 0.0 if target.is_integer and target.value[0] == "u" else -high
        x = draw.numbers(draw.shape(), source, low, high)
        if source is DType.BFLOAT16 and target.is_integer:  # rounding may have left the range
            x = (x.astype(np.float32) * np.float32(0.99)).astype(x.dtype)
    truncate = draw.flip(0.2)
    attributes = draw.note(DstT=target.numpy.name, Truncate=truncate)
    return draw.case(lambda x: raw("Cast", x, **attributes), draw.feed(x))


def select(draw: Draw) -> Case:
    dtype, shape = draw.dtype(), draw.shape(0, 4)
    kind = draw.choose(["same", "rows", "scalar"]) if shape else "same"
    condition = {"same": shape, "rows": shape[:1], "scalar": ()}[kind]
    draw.note(condition=kind)
    a, b = (draw.numbers(shape, dtype) for _ in range(2))
    return draw.case(
        lambda c, a, b: raw("Select", c, a, b),
        draw.feed(draw.numbers(condition, DType.BOOL)),
        draw.feed(a),
        draw.feed(b),
    )


def select_v2(draw: Draw) -> Case:
    dtype = draw.dtype()
    condition, a, b = draw.broadcast(3, dtype)
    flags = draw.numbers(condition.array.shape, DType.BOOL)
    c = type(condition)(flags, condition.fed, condition.unknown)
    return draw.case(lambda c, a, b: raw("SelectV2", c, a, b), c, a, b)


def l2_loss(draw: Draw) -> Case:
    x = draw.numbers(draw.shape(), draw.dtype())
    return draw.case(
        lambda x: raw("L2Loss", x), draw.feed(x), tolerance=Tolerance(8, of_largest=True, wide=True)
    )


CASES: dict[str, Generator] = {
    **{op: unary(op) for op in _UNARY},
    **{op: binary(op) for op in _BINARY},
    "LeftShift": shift("LeftShift"),
    "RightShift": shift("RightShift"),
    "LeakyRelu": leaky_relu,
    "AddN": add_n,
    "BiasAdd": bias_add,
    "ClipByValue": clip_by_value,
    "Cast": cast,
    "Select": select,
    "SelectV2": select_v2,
    "L2Loss": l2_loss,
}
