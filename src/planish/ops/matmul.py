"""Matrix multiplication over batches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.graph.graph import Value
from planish.graph.types import TensorType
from planish.ops.base import Op, broadcast_shapes, require
from planish.ops.operands import expect_count, expect_number, matmul


@dataclass(frozen=True)
class MatMul(Op):
    """Product of matrices: a ``[..., M, K]`` and b ``[..., K, N]`` give ``[..., M, N]``.

    Batch dimensions broadcast. With `transpose_a` a is ``[..., K, M]``, with `transpose_b` b is
    ``[..., N, K]``. Integer sums wrap around.
    """

    transpose_a: bool = False
    transpose_b: bool = False

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 2)
        expect_number(self, *inputs)
        a, b = inputs
        require(
            a.type.rank >= 2 and b.type.rank >= 2,
            f"mat_mul needs matrices, not {a.type} and {b.type}",
            cure="reshape vectors to matrices of one row or column",
        )
        rows, inner = a.shape[-2:] if not self.transpose_a else a.shape[:-3:-1]
        inner_b, columns = b.shape[-2:] if not self.transpose_b else b.shape[:-3:-1]
        require(
            inner == inner_b,
            f"mat_mul of {a.type} and {b.type}: inner dimensions {inner} and {inner_b} differ",
        )
        batch = broadcast_shapes(a.shape[:-2], b.shape[:-2])
        return [TensorType((*batch, rows, columns), a.dtype)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        a, b = inputs
        left = np.swapaxes(a, -1, -2) if self.transpose_a else a
        right = np.swapaxes(b, -1, -2) if self.transpose_b else b
        return [matmul(left, right).astype(a.dtype, copy=False)]
