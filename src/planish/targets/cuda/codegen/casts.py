"""Conversions between dtypes, as the reference of `Cast` defines them, as Triton text."""

from __future__ import annotations

import numpy as np

from planish.graph.types import DType
from planish.targets.cuda.codegen.literals import (
    HALVES,
    compute_type,
    constant,
    is_signed,
    limits,
    storage_type,
)
from planish.targets.cuda.codegen.source import COMPILED, Source

_BYTES = (DType.INT8, DType.UINT8)


def round_half(value: str, dtype: DType) -> str:
    """A float of any type rounded to what a half-precision dtype can hold, as float32."""
    return f"({value}).to({storage_type(dtype)}).to(tl.float32)"


def cast(k: Source, value: str, source: DType, target: DType) -> str:
    """A variable converted to another dtype.

    Floats become integers by truncation, saturating, NaN becoming 0; integers wrap; anything but
    zero is true.
    """
    wanted = compute_type(target)
    if source is target:
        return value
    if target is DType.BOOL:
        return f"{value} != {constant(0, source)}"
    if source.is_float and target.is_integer:
        return _float_to_integer(k, value, source, target)
    if source in _BYTES and target is DType.FLOAT32:
        return _byte_to_float(k, value, source)
    if target not in HALVES:
        return f"{value}.to({wanted})"
    if source is DType.FLOAT64:
        return round_half(value if target is DType.FLOAT16 else _rounded_to_odd(k, value), target)
    return round_half(f"{value}.to(tl.float32)", target)


def _rounded_to_odd(k: Source, value: str) -> str:
    """A float64 as float32 whose last bit is set where it is inexact: to be rounded once more."""
    narrow = k.let("t", f"{value}.to(tl.float32)")
    back = k.let("t", f"{narrow}.to(tl.float64)")
    bits = k.let("t", f"{narrow}.to(tl.int32, bitcast=True)")
    down = f"({bits} - (tl.abs({back}) > tl.abs({value})).to(tl.int32))"
    odd = k.let("t", f"tl.where({back} == {value}, {bits}, {down} | 1)")
    return f"{odd}.to(tl.float32, bitcast=True)"


def _byte_to_float(k: Source, value: str, source: DType) -> str:
    """A byte as the last bits of a float32 of 2**23, which is taken away again: two fast
    instructions, where the conversion of bytes is a slow one. Hopper is given one instruction for
    each of four bytes, which Triton would not find.
    """
    signed = is_signed(source)
    bits = f"({value}.to(tl.uint8, bitcast=True) ^ 128)" if signed else value
    number = f"({bits}.to(tl.int32) | 0x4B000000)"
    flip = "0x80808080" if signed else "0"
    four = " ".join(f"prmt.b32 ${i}, t, 0x4B000000, 0x744{i};" for i in range(4))
    asm = f"{{ .reg .b32 t; xor.b32 t, $4, {flip}; {four} }}"
    how = "dtype=tl.int32, is_pure=True, pack=4"
    compiled = f'tl.inline_asm_elementwise("{asm}", "=r,=r,=r,=r,r", [{value}], {how})'
    t = k.either("t", number, compiled)
    return f"{t}.to(tl.float32, bitcast=True) - {float((1 << 23) + 128 * signed)}"


def float_to_code(k: Source, value: str) -> str:
    """A float32 as an int8 code of E4M3: see `planish.ops.float8.encode`.

    Hopper has an instruction. Elsewhere the last bits of a sum are the code of what is below the
    least normal number, 2**-6, and else exponent and mantissa are shifted and rounded.
    """
    bits = f"({value}).to(tl.int32, bitcast=True)"
    size = k.let("size", f"tl.minimum(tl.abs({value}), 448.0)")
    whole = k.let("bits", f"{size}.to(tl.int32, bitcast=True)")
    normal = f"(({whole} + 0x7FFFF + (({whole} >> 20) & 1)) >> 20) - {120 << 3}"
    little = f"({size} + 16384.0).to(tl.int32, bitcast=True) & 0xF"
    code = k.let("code", f"tl.where({size} < 0.015625, {little}, {normal})")
    signed = f"{code} | (({bits} >> 24) & 0x80)"
    text = f"tl.where({value} == {value}, {signed}, 0x7F).to(tl.int8)"
    return k.either("t", text, f"({value}).to(tl.float8e4nv).to(tl.int8, bitcast=True)")


def code_to_float(k: Source, value: str) -> str:
    """What an int8 code of E4M3 stands for, as float32: a half float's bits, of another exponent
    by 8.
    """
    wide = f"({value}).to(tl.int16)"  # no statement: Hopper's instruction needs none
    bits = f"((({wide} & 0x7F) << 7) | (({wide} & 0x80) << 8)).to(tl.float16, bitcast=True)"
    nan = 'float("nan")'
    text = f"tl.where(({wide} & 0x7F) == 0x7F, {nan}, {bits}.to(tl.float32) * 256.0)"
    return k.either("t", text, f"({value}).to(tl.float8e4nv, bitcast=True).to(tl.float32)")


def byte_to_short(k: Source, value: str, source: DType) -> str:
    """A byte as int16, of which Hopper compares two at once."""
    low, high = ("0x9180", "0xB3A2") if is_signed(source) else ("0x4140", "0x4342")
    asm = f"prmt.b32 $0, $2, 0, {low}; prmt.b32 $1, $2, 0, {high};"
    how = "dtype=tl.int16, is_pure=True, pack=4"
    compiled = f'tl.inline_asm_elementwise("{asm}", "=r,=r,r", [{value}], {how})'
    return k.either("t", f"{value}.to(tl.int16)", compiled)


def short_to_byte(k: Source, value: str, target: DType) -> str:
    """An int16 that holds a byte, as such."""
    kind = storage_type(target)
    how = f"dtype={kind}, is_pure=True, pack=4"
    asm = '"prmt.b32 $0, $1, $2, 0x6420;", "=r,r,r"'
    return k.either(
        "t", f"{value}.to({kind})", f"tl.inline_asm_elementwise({asm}, [{value}], {how})"
    )


def larger_short(a: str, b: str) -> str:
    """The larger of two int16, as what `Source.line` takes."""
    how = "dtype=tl.int16, is_pure=True, pack=2"
    asm = '"max.s16x2 $0, $1, $2;", "=r,r,r"'
    return f"tl.maximum({a}, {b}){COMPILED}tl.inline_asm_elementwise({asm}, [{a}, {b}], {how})"


def finite_to_byte(
    k: Source, value: str, low: int, high: int, target: DType, small: bool = False
) -> str:
    """A finite float32 rounded to an integer between two bytes: the last bits of its sum with
    3 * 2**22. Where it is `small`, below 2**15, these are 16 bits, and Hopper limits two at once.

    Floats of one sign are in the order of their bits, and so the lower limit is one of integers.
    Without an operation on integers behind the sum Triton 3.6's assembler takes what is stored as a
    byte for a float to be converted.
    """
    kind = storage_type(target)
    bits, shift = ".to(tl.int32, bitcast=True)", float(3 << 22)
    least = int(np.float32(shift).view(np.int32)) + low
    inside = f"tl.maximum((tl.minimum({value}, {float(high)}) + {shift}){bits}, {least})"
    number = f"{inside}.to({kind})"
    if not small:
        return k.let("t", number)
    limits = f"mov.b32 low, {_twice(low)}; mov.b32 high, {_twice(high)};"
    pairs = [
        f"prmt.b32 {pair}, ${first}, ${first + 1}, 0x5410; "
        + (
            f"min.relu.s16x2 {pair}, {pair}, high;"
            if low == 0
            else f"max.s16x2 {pair}, {pair}, low; min.s16x2 {pair}, {pair}, high;"
        )
        for pair, first in (("a", 1), ("b", 3))
    ]
    asm = f"{{ .reg .b32 a, b, low, high; {limits} {' '.join(pairs)} prmt.b32 $0, a, b, 0x6420; }}"
    how = f"dtype={kind}, is_pure=True, pack=4"
    rounded = f"({value} + {shift}){bits}"
    compiled = f'tl.inline_asm_elementwise("{asm}", "=r,r,r,r,r", [{rounded}], {how})'
    return k.either("t", number, compiled)


def _twice(number: int) -> str:
    """A number in both halves of a register."""
    return f"0x{(number & 0xFFFF) * 0x10001:08X}"


def _float_to_integer(k: Source, value: str, source: DType, target: DType) -> str:
    wanted = storage_type(target)
    low, high = limits(target)
    digits = 53 if source is DType.FLOAT64 else 24
    if high < 1 << digits:  # both limits are floats
        clean = k.let("t", f"tl.where({value} == {value}, {value}, {constant(0, source)})")
        inside = (
            f"tl.minimum(tl.maximum({clean}, {constant(low, source)}), {constant(high, source)})"
        )
        wide = "tl.int64" if target is DType.UINT32 else "tl.int32"
        return f"{inside}.to({wide}).to({wanted})"
    above = k.let("t", f"{value} >= {constant(high, source)}")  # which is high + 1 as a float
    least = constant(low, source)
    below = k.let("t", f"{value} < {least}")
    fits = f"({value} >= {least}) & ({value} < {constant(high, source)})"
    clean = k.let("t", f"tl.where({fits}, {value}, {constant(0, source)}).to({wanted})")
    saturated = f"tl.where({below}, {constant(low, target)}, {clean})"
    return f"tl.where({above}, {constant(high, target)}, {saturated})"
