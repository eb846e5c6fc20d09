"""Conversions between dtypes on registers, as the reference of `Cast` defines them."""

from __future__ import annotations

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.codegen.integers import is_signed, limits
from planish.targets.cpu.codegen.types import I32, I64, register_type

_HALVES = (DType.FLOAT16, DType.BFLOAT16)


def round_half(k: KernelBuilder, value: ir.Value, dtype: DType, lanes: int) -> ir.Value:
    """A float32 register rounded to what the half-precision dtype can hold."""
    return k.from_memory(k.to_memory(value, dtype, lanes), dtype, lanes)


def cast(k: KernelBuilder, value: ir.Value, source: DType, target: DType, lanes: int) -> ir.Value:
    """A register converted to another dtype.

    Floats become integers by truncation, saturating, NaN becoming 0; integers wrap; anything but
    zero is true.
    """
    if source is target:
        return value
    wanted = register_type(target, lanes)
    if source is DType.BOOL:
        return k.b.uitofp(value, wanted) if target.is_float else k.b.zext(value, wanted)
    if target is DType.BOOL:
        if source.is_float:
            f = Floats(k, source, lanes)
            return f.ne(value, f.c(0.0))
        return k.b.icmp_unsigned("!=", value, k.zero(source, lanes))
    if source.is_float:
        if target.is_float:
            return _float_to_float(k, value, source, target, lanes)
        return _float_to_integer(k, value, source, target, lanes)
    if target.is_float:
        convert = k.b.sitofp if is_signed(source) else k.b.uitofp
        result = convert(value, wanted)
        return round_half(k, result, target, lanes) if target in _HALVES else result
    if target.size <= source.size:
        return value if target.size == source.size else k.b.trunc(value, wanted)
    return k.b.sext(value, wanted) if is_signed(source) else k.b.zext(value, wanted)


def _float_to_float(
    k: KernelBuilder, value: ir.Value, source: DType, target: DType, lanes: int
) -> ir.Value:
    if target is DType.FLOAT64:
        return k.b.fpext(value, register_type(target, lanes))
    if source is DType.FLOAT64:
        narrow = k.b.fptrunc(value, register_type(target, lanes))
        if target is DType.FLOAT32:
            return narrow
        value = _round_to_odd(k, value, narrow, lanes)
    return value if target is DType.FLOAT32 else round_half(k, value, target, lanes)


def _round_to_odd(k: KernelBuilder, value: ir.Value, narrow: ir.Value, lanes: int) -> ir.Value:
    """A float64 as float32 whose last bit is set if it is inexact: to be rounded once more.

    Boldo & Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using
    rounding to odd", IEEE Transactions on Computers 57 (2008).
    """
    f, d = Floats(k, DType.FLOAT32, lanes), Floats(k, DType.FLOAT64, lanes)
    back = k.b.fpext(narrow, d.type)
    inexact = k.b.fcmp_ordered("!=", back, value)
    beyond = d.gt(d.abs(back), d.abs(value))
    bits = f.bits(narrow)
    down = k.b.select(beyond, k.b.sub(bits, f.i(1)), bits)
    return f.from_bits(k.b.select(inexact, k.b.or_(down, f.i(1)), bits))


def _float_to_integer(
    k: KernelBuilder, value: ir.Value, source: DType, target: DType, lanes: int
) -> ir.Value:
    f = Floats(k, source, lanes)
    low, high = limits(target)
    zero, least = f.c(0.0), f.c(float(low))
    wanted = register_type(target, lanes)
    if high < 2 ** (f.fraction + 1):  # both limits are floats
        if low == 0:
            inside = f.min(f.max(value, zero), f.c(float(high)))  # NaN becomes the second: 0
        else:
            inside = f.min(f.c(float(high)), f.max(least, value))
            inside = f.select(f.is_nan(value), zero, inside)
        wide = I64 if target is DType.UINT32 else I32
        vector = wide if lanes == 1 else ir.VectorType(wide, lanes)
        integer = k.b.fptosi(inside, vector)
        return integer if vector == wanted else k.b.trunc(integer, wanted)
    over = f.ge(value, f.c(float(high)))  # float(high) is high + 1
    unfit = k.b.or_(over, f.is_nan(value))
    clean = f.select(unfit, zero, f.max(least, value))
    convert = k.b.fptosi if low else k.b.fptoui
    return k.b.select(over, k.constant(high, target, lanes), convert(clean, wanted))
