"""Elementwise expressions as Triton text.

Halves are computed in float32 and rounded where they are stored; everything else is computed in
its own type.
"""

from __future__ import annotations

from collections.abc import Sequence

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cuda.codegen.source import Source

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
_HALVES = (DType.FLOAT16, DType.BFLOAT16)


def storage_type(dtype: DType) -> str:
    """The Triton type of elements in memory."""
    return _TYPES[dtype]


def compute_type(dtype: DType) -> str:
    """The Triton type in which elements are computed."""
    return "tl.float32" if dtype in _HALVES else _TYPES[dtype]


def constant(value: float | int | bool, dtype: DType) -> str:
    """A number as Triton text, of the type it is computed in."""
    raise NotImplementedError


def emit(k: Source, expression: Expression, leaves: Sequence[str | None]) -> list[str]:
    """Writes an expression; gives the names of its results, in the types they are computed in.

    `leaves` are names of variables in the type they are computed in; None for constants.
    """
    raise NotImplementedError
