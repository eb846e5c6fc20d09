"""Types and numbers as Triton text, and what a rule knows of the op that it writes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from planish.graph.types import DType
from planish.targets.cuda.codegen.source import Source

HALVES = (DType.FLOAT16, DType.BFLOAT16)
_TYPES = {
    DType.FLOAT64: "tl.float64",
    DType.FLOAT32: "tl.float32",
    DType.FLOAT16: "tl.float16",
    DType.BFLOAT16: "tl.bfloat16",
    DType.INT64: "tl.int64",
    DType.INT32: "tl.int32",
    DType.INT16: "tl.int16",
    DType.INT8: "tl.int8",
    DType.UINT64: "tl.uint64",
    DType.UINT32: "tl.uint32",
    DType.UINT16: "tl.uint16",
    DType.UINT8: "tl.uint8",
    DType.BOOL: "tl.int1",
}


def storage_type(dtype: DType) -> str:
    """The Triton type of elements in memory."""
    return _TYPES[dtype]


def compute_type(dtype: DType) -> str:
    """The Triton type in which elements are computed."""
    return "tl.float32" if dtype in HALVES else _TYPES[dtype]


def constant(value: float | int | bool, dtype: DType) -> str:
    """A number as Triton text, of the type it is computed in."""
    kind = compute_type(dtype)
    if not dtype.is_float:
        return f"tl.full([], {bool(value) if dtype is DType.BOOL else int(value)}, {kind})"
    value = float(value)
    if value == 0 and math.copysign(1, value) < 0:  # Triton forgets the sign of a zero
        return f"(tl.full([], -1.0, {kind}) * 0.0)"
    text = repr(value) if math.isfinite(value) else f'float("{value}")'
    return f"tl.full([], {text}, {kind})"


def is_signed(dtype: DType) -> bool:
    """Whether an integer dtype has negative numbers."""
    return dtype.value[0] == "i"


def limits(dtype: DType) -> tuple[int, int]:
    """The least and the greatest integer of a dtype."""
    bits = 8 * dtype.size
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if is_signed(dtype) else (0, (1 << bits) - 1)


@dataclass(frozen=True)
class Facts:
    """What is known of an expression that makes levels of sums of levels.

    Attributes
    ----------
    finite : bool
        Whether no leaf is, and nothing between can become, infinite or NaN.
    small : bool
        Whether what becomes levels is below 2**15.
    invertible : bool
        Whether a product with the inverse of each scale serves as well as a division.
    inexact : bool
        Whether what becomes levels is not rounded as the references round it, so that dividing it
        by a scale need not be, either.
    """

    finite: bool = False
    small: bool = False
    invertible: bool = False
    inexact: bool = False


UNKNOWN = Facts()
"""Nothing is known."""
INEXACT = Facts(inexact=True)
"""For what is made of sums of floats, which are rounded in another order than the references'."""


@dataclass(frozen=True)
class Step:
    """One op for operands of one dtype, about to be written.

    Attributes
    ----------
    k : Source
        Where rules put what takes more than one statement.
    op : Elementwise
        Each rule knows the attributes of its own.
    dtypes : tuple of DType
        Of the operands.
    constants : tuple
        Per operand its number where it is known when compiling, else None.
    facts : Facts
    """

    k: Source
    op: Any
    dtypes: tuple[DType, ...]
    constants: tuple[float | int | bool | None, ...]
    facts: Facts = UNKNOWN

    @property
    def dtype(self) -> DType:
        """The last operand's."""
        return self.dtypes[-1]

    @property
    def is_half(self) -> bool:
        """Whether the operands are float32 that stand for halves: a few ulp more do not matter."""
        return self.dtype in HALVES

    @property
    def type(self) -> str:
        """The Triton type that the last operand is computed in."""
        return compute_type(self.dtype)

    def c(self, value: float) -> str:
        """A number of the last operand's dtype."""
        return constant(value, self.dtype)

    def let(self, text: str) -> str:
        """A new variable."""
        return self.k.let("t", text)
