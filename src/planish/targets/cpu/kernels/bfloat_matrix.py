"""Tactics of the matrix kernel for bfloat16: convolutions and products with constant weights.

Products are of bfloat16, sums float32, rounded once behind the epilogue. On CPUs without such
products the kernel computes the same slowly; there the target does not lower graphs to bfloat16,
and these tactics serve models that hold bfloat16 themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.ops.matmul import MatMul
from planish.targets.cpu.codegen.dot import HALVES, Dot
from planish.targets.cpu.kernels.dot_matrix import DotMatrixFamily, DotMatrixTactic


@dataclass(frozen=True, eq=False)
class BfloatMatrixTactic(DotMatrixTactic):
    """The matrix kernel for bfloat16 with a given register tile, loop order and packing."""

    family: ClassVar[str] = "bfloat_matrix"

    @cached_property
    def dot(self) -> Dot:
        return HALVES

    def constants(self) -> list[np.ndarray]:
        assert self.task.anchor is not None
        op, data = self.task.anchor.op, self.task.anchor.inputs[1].data
        assert data is not None
        if isinstance(op, MatMul):
            matrix = np.swapaxes(data, 0, 1) if op.transpose_b else data
            return [self._packed_weights(matrix[None], (1, 1), (1,))]
        assert isinstance(op, Conv)
        window = (1,) * (2 - len(op.strides)) + data.shape[:-2]
        taps = data.reshape(-1, *data.shape[-2:])
        return [self._packed_weights(taps, window, op.dilations, op.groups)]


def understood(task: Task) -> bool:
    """Whether a task is of the kernel's kind; shapes and layouts decide the rest."""
    anchor = task.anchor
    if anchor is None or not isinstance(anchor.op, Conv | MatMul):
        return False
    op, (x, weights) = anchor.op, anchor.inputs
    if not x.dtype is weights.dtype is DType.BFLOAT16 or weights.data is None:
        return False
    if isinstance(op, Conv):
        return len(op.strides) in (1, 2)
    return not op.transpose_a and weights.type.rank == 2 and task.prologue is None


@dataclass(frozen=True)
class BfloatMatrixFamily(DotMatrixFamily):
    """Convolutions (not depthwise) and matrix products in bfloat16, for this or another machine."""

    name: ClassVar[str] = "bfloat_matrix"
    tactic: ClassVar[type[DotMatrixTactic]] = BfloatMatrixTactic

    def understands(self, task: Task) -> bool:
        return understood(task)


FAMILIES = (BfloatMatrixFamily(),)
