"""The elementwise ops of quantization and FP8, as Triton text: each rounding where the references
round.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from planish.graph.types import DType
from planish.targets.cuda.codegen import floats
from planish.targets.cuda.codegen.casts import cast, code_to_float, finite_to_byte, float_to_code
from planish.targets.cuda.codegen.floats import (
    between,
    exact_product,
    exact_quotient,
    maximum,
    minimum,
)
from planish.targets.cuda.codegen.literals import Step, constant, storage_type

_BEYOND = float(1 << 20)
"""More than any level of a byte."""
_LEAST = 2.0**-80
"""Of scales and their inverses, so that nothing between underflows."""


def _quantize(s: Step, x: str, scale: str, zero: str) -> str:
    known = s.constants[1]
    steps = x if known == 1 else _steps(s, x, scale, known)
    if s.constants[2] == 0 and s.facts.finite and s.op.to.size == 1:
        return finite_to_byte(s.k, steps, s.op.low, s.op.high, s.op.to, s.facts.small)
    if s.constants[2] == 0 and s.op.low <= 0 <= s.op.high:
        # one instruction rounds, saturates, and makes 0 of NaN
        level = s.let(f"libdevice.float2int_rn({steps})")
        inside = f"tl.minimum(tl.maximum({level}, {s.op.low}), {s.op.high})"
        return f"{inside}.to({storage_type(s.op.to)})"
    level = f"libdevice.rint({steps}) + {zero}"
    inside = s.let(between(s, level, s.op.low, s.op.high))  # NaN stays
    return cast(s.k, inside, DType.FLOAT32, s.op.to)


def _steps(s: Step, x: str, scale: str, known: float | None) -> str:
    """``x / scale``, which rounding to an integer is to see as if it were correctly rounded.

    It is the product with the inverse, and what that leaves of x, divided the same way (P.
    Markstein, "Computation of elementary functions on the IBM RISC System/6000 processor", IBM J.
    Res. Dev. 34, 1990). Scales that are read are few, and so are their inverses. Quotients beyond
    all levels stay beyond them; NaN stays.
    """
    fits = s.facts.invertible if known is None else has_inverse(np.float32(known))
    if s.op.to.size > 1 or not fits:
        return exact_quotient(s, x, scale)
    if known is None:
        inverse = s.let(exact_quotient(s, s.c(1), scale))
        negative = s.let(f"{scale} * {s.c(-1)}")
    else:
        inverse = s.c(float(np.float32(1) / np.float32(known)))
        negative = s.c(-known)
    near = f"({x}) * {inverse}"
    if s.facts.inexact:
        return near
    near = s.let(near if s.facts.small else between(s, near, -_BEYOND, _BEYOND))
    rest = s.let(f"tl.fma({near}, {negative}, {x})")
    return f"tl.fma({rest}, {inverse}, {near})"


def has_inverse(numbers: np.ndarray | np.float32) -> bool:
    """Whether inverses serve as well: not where all bits of a mantissa are set."""
    numbers = np.asarray(numbers, np.float32)
    whole = numbers.view(np.uint32) & 0x7FFFFF == 0x7FFFFF
    size = np.abs(numbers)
    return bool(np.all((size > _LEAST) & (size < 1 / _LEAST) & ~whole))


def _dequantize(s: Step, x: str, scale: str, zero: str) -> str:
    return _scaled(s, f"{cast(s.k, x, s.dtypes[0], DType.FLOAT32)} - {zero}", scale)


def _scaled(s: Step, x: str, scale: str) -> str:
    """A product that is rounded before anything is added to it where that may decide a level."""
    return f"({x}) * {scale}" if s.facts.inexact else exact_product(x, scale)


def _snap_to_levels(s: Step, x: str, scale: str, inverse: str) -> str:
    scaled = exact_product(x, scale)
    level = f"tl.floor({scaled} + {s.c(0.5)})" if s.op.half_up else f"libdevice.rint({scaled})"
    return exact_product(level, inverse)


def _fake_quant(
    s: Step, x: str, least: str, greatest: str, scale: str, inverse: str, zero: str
) -> str:
    inside = maximum(s, minimum(s, x, greatest), least)  # NaN stays
    shifted = s.let(f"{inside} - {least}")
    divided = exact_quotient(s, shifted, scale)
    level = divided if s.op.divide else exact_product(shifted, inverse)
    return exact_product(f"tl.floor({level} - {zero} + {s.c(0.5)})", scale)


_TAIL = (
    *(-1.0000376321497937, -1.150787771145436, -0.4599926434428479),
    *(-0.05182716991550627, 0.007084461579828713, -0.0004732940528316977),
)
"""As `floats._TAIL`, for the least absolute error of ``x`` times the tail: 4.4e-7, and 6.4e-7 as it
is computed, which is little of a level.
"""


def _gelu(s: Step, x: str) -> str:
    return floats.RULES["gelu"](s, x) if s.op.approximate else floats.without_tail(s, x, _TAIL)


def _encode_float8(s: Step, x: str, scale: str) -> str:
    known = s.constants[1]
    if known is not None and math.frexp(known)[0] == 0.5 and 1 / known <= _BEYOND:
        return float_to_code(s.k, s.let(f"({x}) * {constant(1 / known, DType.FLOAT32)}"))
    return float_to_code(s.k, s.let(exact_quotient(s, x, scale)))


def _decode_float8(s: Step, x: str, scale: str) -> str:
    return f"({code_to_float(s.k, x) if s.dtypes[0] is DType.INT8 else x}) * {scale}"


LEVELS = ("quantize", "encode_float8")
"""Ops that make levels or codes: what comes before them may be computed as `OF_LEVELS` says."""

OF_LEVELS: dict[str, Callable[..., str]] = {
    "mul": _scaled,
    "gelu": _gelu,
}
"""Ops on float32 in expressions that make levels, where they are not those of `floats`."""

RULES: dict[str, Callable[..., str]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "snap_to_levels": _snap_to_levels,
    "fake_quant": _fake_quant,
    "encode_float8": _encode_float8,
    "decode_float8": _decode_float8,
}
"""By the op's name: ``rule(step, *operands)`` gives an expression."""
