"""A matrix product with what cuBLASLt does after it, in cuBLASLt's terms: data only.

cuBLASLt's matrices lie column by column, and its bias is a number per row.
"""

from __future__ import annotations

from dataclasses import dataclass

from planish.graph.types import DType


@dataclass(frozen=True)
class Matrix:
    """Matrices that lie column by column, evenly apart.

    Attributes
    ----------
    dtype : DType
    rows, columns : int
        As they lie in memory.
    step : int
        Elements from a column to the next.
    transposed : bool
        Whether it is the transposed matrix that is meant.
    apart : int
        Elements from a matrix to the next; 0 where it is one for the whole batch.
    alignment : int
        Bytes that the addresses of all the matrices are multiples of.
    """

    dtype: DType
    rows: int
    columns: int
    step: int
    transposed: bool
    apart: int
    alignment: int


@dataclass(frozen=True)
class Product:
    """``result = activation(scale * left @ right + residual + bias)``, of each pair of a batch.

    Attributes
    ----------
    left, right, result : Matrix
        `left` is the second factor of the task.
    residual : Matrix or None
    bias : bool
        One number per row of the result, in the result's dtype.
    activation : str
        "", "relu" or "gelu" (by tanh).
    scale : float
    batch : int
    tf32 : bool
        Whether factors in float32 may be rounded to TF32.
    """

    left: Matrix
    right: Matrix
    result: Matrix
    residual: Matrix | None
    bias: bool
    activation: str
    scale: float
    batch: int
    tf32: bool = False
