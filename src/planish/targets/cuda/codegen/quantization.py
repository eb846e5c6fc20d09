"""The elementwise ops of quantization, as Triton text: each rounding where the references round."""

from __future__ import annotations

from collections.abc import Callable

from planish.graph.types import DType
from planish.targets.cuda.codegen.casts import cast
from planish.targets.cuda.codegen.floats import (
    between,
    exact_product,
    exact_quotient,
    maximum,
    minimum,
)
from planish.targets.cuda.codegen.literals import Step


def _quantize(s: Step, x: str, scale: str, zero: str) -> str:
    level = f"libdevice.rint({exact_quotient(s, x, scale)}) + {zero}"
    inside = s.let(between(s, level, s.op.low, s.op.high))  # NaN stays
    return cast(s.k, inside, DType.FLOAT32, s.op.to)


def _dequantize(s: Step, x: str, scale: str, zero: str) -> str:
    return exact_product(f"{cast(s.k, x, s.dtypes[0], DType.FLOAT32)} - {zero}", scale)


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


RULES: dict[str, Callable[..., str]] = {
    "quantize": _quantize,
    "dequantize": _dequantize,
    "snap_to_levels": _snap_to_levels,
    "fake_quant": _fake_quant,
}
"""By the op's name: ``rule(step, *operands)`` gives an expression."""
