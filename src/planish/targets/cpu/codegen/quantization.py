"""The elementwise ops of quantization on registers: each rounding where the references round.

Their operands differ in dtype, or are more than three; `elementwise.emit` hands them over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.ops.elementwise import Elementwise
from planish.ops.float8 import GREATEST
from planish.ops.quantization import FakeQuant, Quantize, SnapToLevels
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.casts import cast
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.codegen.types import register_type

F32 = DType.FLOAT32


def quantize(
    k: KernelBuilder, op: Elementwise, dtypes: Sequence[DType], lanes: int, *arguments: ir.Value
) -> ir.Value:
    """Integers of the op's dtype."""
    assert isinstance(op, Quantize)
    x, scale, zero = arguments
    f = Floats(k, F32, lanes)
    quotient = x if _is(scale, 1.0) else f.div(x, scale)
    if _is(zero, 0.0) and op.low == 0 and op.to.size <= 2:
        positive = f.max(quotient, f.c(0.0))  # NaN becomes 0
        nearest = f.nearest(positive)
        if nearest is None:
            nearest = f.to_integer(f.rint(f.min(positive, f.c(float(op.high)))))
        high = k.constant(op.high, DType.INT32, lanes)
        inside = k.intrinsic("umin", nearest, high)  # as one with what follows
        return k.b.trunc(inside, register_type(op.to, lanes))
    level = f.add(f.rint(quotient), zero)
    low, high = f.c(float(op.low)), f.c(float(op.high))
    if op.to.size > 2:
        return cast(k, f.min(high, f.max(low, level)), F32, op.to, lanes)  # NaN stays until then
    inside = f.min(f.max(level, low), high)  # NaN becomes the least level
    if op.low != 0:
        inside = f.select(f.is_nan(level), f.c(0.0), inside)
    return k.b.trunc(f.to_integer(inside), register_type(op.to, lanes))


def _is(value: ir.Value, number: float) -> bool:
    """Whether a register is known to hold one number."""
    if not isinstance(value, ir.Constant):
        return False
    held = value.constant
    elements = held if isinstance(held, list | tuple) else [value]
    return all(element.constant == number for element in elements)


def dequantize(
    k: KernelBuilder, op: Elementwise, dtypes: Sequence[DType], lanes: int, *arguments: ir.Value
) -> ir.Value:
    """Floats of integers."""
    x, scale, zero = arguments
    f = Floats(k, F32, lanes)
    return f.mul(f.sub(cast(k, x, dtypes[0], F32, lanes), zero), scale)


def snap_to_levels(
    k: KernelBuilder, op: Elementwise, dtypes: Sequence[DType], lanes: int, *arguments: ir.Value
) -> ir.Value:
    """Floats on levels."""
    assert isinstance(op, SnapToLevels)
    x, scale, inverse = arguments
    f = Floats(k, dtypes[0], lanes)
    scaled = f.mul(x, scale)
    level = k.intrinsic("floor", f.add(scaled, f.c(0.5))) if op.half_up else f.rint(scaled)
    return f.mul(level, inverse)


def fake_quant(
    k: KernelBuilder, op: Elementwise, dtypes: Sequence[DType], lanes: int, *arguments: ir.Value
) -> ir.Value:
    """Floats on levels of which one is 0."""
    assert isinstance(op, FakeQuant)
    x, least, greatest, scale, inverse, zero = arguments
    f = Floats(k, F32, lanes)
    inside = f.max(least, f.min(greatest, x))  # NaN stays
    shifted = f.sub(inside, least)
    level = f.div(shifted, scale) if op.divide else f.mul(shifted, inverse)
    whole = k.intrinsic("floor", f.add(f.sub(level, zero), f.c(0.5)))
    return f.mul(whole, scale)


def encode_float8(
    k: KernelBuilder, op: Elementwise, dtypes: Sequence[DType], lanes: int, *arguments: ir.Value
) -> ir.Value:
    """Codes of E4M3: the last bits of a sum below the least normal number, 2**-6; else exponent and
    mantissa, shifted and rounded.
    """
    x, scale = arguments
    f = Floats(k, F32, lanes)
    quotient = f.div(x, scale)
    size = f.min(k.intrinsic("fabs", quotient), f.c(GREATEST))
    bits, signs = (k.b.bitcast(v, register_type(DType.INT32, lanes)) for v in (size, quotient))
    whole = partial(k.constant, dtype=DType.INT32, lanes=lanes)
    odd = k.b.and_(k.b.lshr(bits, whole(20)), whole(1))
    rounded = k.b.lshr(k.b.add(k.b.add(bits, whole(0x7FFFF)), odd), whole(20))
    normal = k.b.sub(rounded, whole(120 << 3))
    sum_ = k.b.bitcast(f.add(size, f.c(float(1 << 14))), register_type(DType.INT32, lanes))
    little = k.b.and_(sum_, whole(0xF))
    code = k.b.select(f.lt(size, f.c(2.0**-6)), little, normal)
    code = k.b.or_(code, k.b.and_(k.b.lshr(signs, whole(24)), whole(0x80)))
    code = k.b.select(f.is_nan(quotient), whole(0x7F), code)
    return k.b.trunc(code, register_type(DType.INT8, lanes))


def decode_float8(
    k: KernelBuilder, op: Elementwise, dtypes: Sequence[DType], lanes: int, *arguments: ir.Value
) -> ir.Value:
    """What codes of E4M3 stand for: a float's bits, of another exponent by 120; below the least
    normal number, 2**-6, that is added and taken away again.
    """
    x, scale = arguments
    f = Floats(k, F32, lanes)
    if dtypes[0] is not DType.INT8:
        return f.mul(x, scale)
    whole = partial(k.constant, dtype=DType.INT32, lanes=lanes)
    wide = k.b.zext(x, register_type(DType.INT32, lanes))
    size = k.b.and_(wide, whole(0x7F))
    little = k.b.icmp_unsigned("<", size, whole(8))
    shift = k.b.select(little, whole(121 << 23), whole(120 << 23))
    shifted = k.b.bitcast(k.b.add(k.b.shl(size, whole(20)), shift), register_type(F32, lanes))
    number = f.sub(shifted, k.b.select(little, f.c(2.0**-6), f.c(0.0)))
    sign = k.b.shl(k.b.and_(wide, whole(0x80)), whole(24))
    number = k.b.or_(k.b.bitcast(number, register_type(DType.INT32, lanes)), sign)
    number = k.b.bitcast(number, register_type(F32, lanes))
    is_nan = k.b.icmp_unsigned("==", size, whole(0x7F))
    return f.mul(k.b.select(is_nan, f.c(math.nan), number), scale)


RULES: dict[str, Callable[..., ir.Value]] = {
    "quantize": quantize,
    "dequantize": dequantize,
    "snap_to_levels": snap_to_levels,
    "fake_quant": fake_quant,
    "encode_float8": encode_float8,
    "decode_float8": decode_float8,
}
"""By the op's name: ``rule(k, op, dtypes of the arguments, lanes, *arguments)``."""
