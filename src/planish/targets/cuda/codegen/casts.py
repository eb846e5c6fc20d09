"""Conversions between dtypes, as the reference of `Cast` defines them, as Triton text."""

from __future__ import annotations

from planish.graph.types import DType
from planish.targets.cuda.codegen.literals import (
    HALVES,
    compute_type,
    constant,
    limits,
    storage_type,
)
from planish.targets.cuda.codegen.source import Source


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
    if target not in HALVES:
        return f"{value}.to({wanted})"
    if source is DType.FLOAT64 and target is DType.FLOAT16:
        return round_half(value, target)
    return round_half(f"{value}.to(tl.float32)", target)  # as the reference: it rounds twice


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
