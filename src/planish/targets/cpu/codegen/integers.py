"""Integer arithmetic on registers that is defined for all operands, as the references define it.

No instruction here traps: ``x / 0`` is 0, the most negative number divided by -1 wraps, shifts by
the width or more give what shifting one by one would.
"""

from __future__ import annotations

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import F32, F64, I64


def limits(dtype: DType) -> tuple[int, int]:
    """The least and the greatest integer of a dtype."""
    bits = 8 * dtype.size
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed(dtype) else (0, (1 << bits) - 1)


def is_signed(dtype: DType) -> bool:
    """Whether an integer dtype has negative numbers."""
    return dtype.value[0] == "i"


def divide(k: KernelBuilder, dtype: DType, lanes: int, a: ir.Value, b: ir.Value) -> ir.Value:
    """``a / b`` towards zero; 0 where b is 0."""
    zero = k.zero(dtype, lanes)
    none = k.b.icmp_unsigned("==", b, zero)
    one = k.constant(1, dtype, lanes)
    if not is_signed(dtype):
        quotient = _divide(k, dtype, lanes, a, k.b.select(none, one, b))
    else:
        opposite = k.b.icmp_signed("==", b, k.constant(-1, dtype, lanes))
        safe = k.b.select(k.b.or_(none, opposite), one, b)
        quotient = _divide(k, dtype, lanes, a, safe)
        quotient = k.b.select(opposite, k.b.neg(a), quotient)
    return k.b.select(none, zero, quotient)


def modulo(k: KernelBuilder, dtype: DType, lanes: int, a: ir.Value, b: ir.Value) -> ir.Value:
    """The remainder with the sign of a; 0 where b is 0."""
    rest = k.b.sub(a, k.b.mul(divide(k, dtype, lanes, a, b), b))
    zero = k.zero(dtype, lanes)
    return k.b.select(k.b.icmp_unsigned("==", b, zero), zero, rest)


def floor_divide(k: KernelBuilder, dtype: DType, lanes: int, a: ir.Value, b: ir.Value) -> ir.Value:
    """``a / b`` rounded down; 0 where b is 0."""
    quotient = divide(k, dtype, lanes, a, b)
    if not is_signed(dtype):
        return quotient
    rest = k.b.sub(a, k.b.mul(quotient, b))
    lower = _crosses_zero(k, dtype, lanes, rest, b)
    down = k.b.select(lower, k.b.sub(quotient, k.constant(1, dtype, lanes)), quotient)
    zero = k.zero(dtype, lanes)
    return k.b.select(k.b.icmp_unsigned("==", b, zero), zero, down)


def floor_modulo(k: KernelBuilder, dtype: DType, lanes: int, a: ir.Value, b: ir.Value) -> ir.Value:
    """The remainder with the sign of b; 0 where b is 0."""
    rest = modulo(k, dtype, lanes, a, b)
    if not is_signed(dtype):
        return rest
    return k.b.select(_crosses_zero(k, dtype, lanes, rest, b), k.b.add(rest, b), rest)


def power(k: KernelBuilder, dtype: DType, lanes: int, a: ir.Value, b: ir.Value) -> ir.Value:
    """``a ** b`` modulo the width, by squaring; 0 where b is negative."""
    zero, one = k.zero(dtype, lanes), k.constant(1, dtype, lanes)
    negative = k.b.icmp_signed("<", b, zero) if is_signed(dtype) else None
    exponent = b if negative is None else k.b.select(negative, zero, b)
    most = k.reduce("umax", exponent)
    width = 8 * dtype.size
    leading = k.intrinsic("ctlz", most, ir.Constant(ir.IntType(1), 0))
    rounds: ir.Value = k.b.sub(ir.Constant(most.type, width), leading)
    if width < 64:
        rounds = k.b.zext(rounds, I64)
    with k.loop(0, rounds, carried=[one, a, exponent]) as loop:
        result, base, left = loop.carried
        odd = k.b.icmp_unsigned("!=", k.b.and_(left, one), zero)
        result = k.b.select(odd, k.b.mul(result, base), result)
        loop.next = [result, k.b.mul(base, base), k.b.lshr(left, one)]
    result = loop.carried[0]
    return result if negative is None else k.b.select(negative, zero, result)


def shift_left(k: KernelBuilder, dtype: DType, lanes: int, a: ir.Value, b: ir.Value) -> ir.Value:
    """``a << b``; 0 for shifts by the width or more, or by negative amounts."""
    width = k.constant(8 * dtype.size, dtype, lanes)
    inside = k.b.icmp_unsigned("<", b, width)
    return k.b.select(inside, k.b.shl(a, b), k.zero(dtype, lanes))


def shift_right(k: KernelBuilder, dtype: DType, lanes: int, a: ir.Value, b: ir.Value) -> ir.Value:
    """``a >> b``; 0 or -1, by the sign of a, for shifts by the width or more."""
    width = 8 * dtype.size
    inside = k.b.icmp_unsigned("<", b, k.constant(width, dtype, lanes))
    if is_signed(dtype):
        last = k.constant(width - 1, dtype, lanes)
        return k.b.ashr(a, k.b.select(inside, b, last))
    return k.b.select(inside, k.b.lshr(a, b), k.zero(dtype, lanes))


def _crosses_zero(
    k: KernelBuilder, dtype: DType, lanes: int, rest: ir.Value, b: ir.Value
) -> ir.Value:
    """Whether there is a remainder, and its sign differs from the divisor's."""
    zero = k.zero(dtype, lanes)
    differ = k.b.icmp_signed("<", k.b.xor(rest, b), zero)
    return k.b.and_(k.b.icmp_unsigned("!=", rest, zero), differ)


def _divide(k: KernelBuilder, dtype: DType, lanes: int, a: ir.Value, b: ir.Value) -> ir.Value:
    """The truncated quotient where b is neither 0 nor -1.

    CPUs have no vector division of integers. A quotient of integers of up to 16 (32) bits, rounded
    to float32 (float64), cannot reach an integer that the exact quotient does not reach: their
    distance, 1 / b, is more than half a unit in the last place. So it truncates to the right one.
    """
    signed = is_signed(dtype)
    if dtype.size == 8 or lanes == 1 or _is_constant(b):
        return k.b.sdiv(a, b) if signed else k.b.udiv(a, b)
    element = F32 if dtype.size <= 2 else F64
    wide = ir.VectorType(element, lanes)
    to_float = k.b.sitofp if signed else k.b.uitofp
    quotient = k.b.fdiv(to_float(a, wide), to_float(b, wide))
    return k.b.fptosi(quotient, a.type) if signed else k.b.fptoui(quotient, a.type)


def _is_constant(value: ir.Value) -> bool:
    """Whether a divisor derives from constants alone: LLVM then divides by multiplying."""
    if isinstance(value, ir.Constant):
        return True
    if isinstance(value, ir.Instruction):
        return all(_is_constant(operand) for operand in value.operands)
    return False
