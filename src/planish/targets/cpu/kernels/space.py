"""Iteration spaces with operands over them, and how they are cut into tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cpu.kernels.nest import Operand

TASK_BYTES = 64 << 10
"""About how much memory a task touches."""

_HEAVY = {
    *("exp", "expm1", "log", "log1p", "sigmoid", "silu", "mish", "softplus", "selu", "elu", "gelu"),
    *("tanh", "erf", "sin", "cos", "tan", "asin", "acos", "atan", "sinh", "cosh", "atan2", "pow"),
    *("asinh", "acosh", "atanh", "floor_mod", "trunc_mod"),
}


@dataclass(frozen=True)
class Space:
    """An iteration space with the operands over it."""

    shape: tuple[int, ...]
    inputs: tuple[Operand | None, ...]
    outputs: tuple[Operand, ...]

    @staticmethod
    def of(
        inputs: Sequence[Operand | None], outputs: Sequence[Operand], shape: Sequence[int]
    ) -> Space:
        return Space(tuple(shape), tuple(inputs), tuple(outputs))

    def operands(self) -> list[Operand]:
        """Every operand, indices too, in the order kernels take them."""
        return [o for top in (*self.inputs, *self.outputs) if top for o in top.family()]

    def map_axes(self, axes: Sequence[int]) -> Space:
        """The space with its axes picked and ordered anew."""

        def moved(operand: Operand) -> Operand:
            terms = tuple(replace(t, index=moved(t.index)) for t in operand.terms)
            strides = tuple(operand.strides[a] for a in axes)
            return replace(operand, strides=strides, terms=terms)

        return Space(
            tuple(self.shape[a] for a in axes),
            tuple(o and moved(o) for o in self.inputs),
            tuple(moved(o) for o in self.outputs),
        )

    def with_front_axis(self) -> Space:
        """The space with an axis of one element in front."""

        def widened(operand: Operand) -> Operand:
            terms = tuple(replace(t, index=widened(t.index)) for t in operand.terms)
            return replace(operand, strides=(0, *operand.strides), terms=terms)

        return Space(
            (1, *self.shape),
            tuple(o and widened(o) for o in self.inputs),
            tuple(widened(o) for o in self.outputs),
        )

    @property
    def bytes_per_point(self) -> int:
        """Memory touched at a point, by operands that move at all."""
        return sum(o.dtype.size for o in self.operands() if any(o.strides) or o.terms) or 1


def is_heavy(expression: Expression) -> bool:
    """Whether an expression has ops of dozens of instructions: computing, not memory, limits it."""
    return any(step.op.name in _HEAVY for step in expression.instructions)


def register_bytes(dtype: DType) -> int:
    """Bytes of an element in registers."""
    return 4 if dtype in (DType.FLOAT16, DType.BFLOAT16) else dtype.size


def even_block(extent: int, most: int, multiple: int) -> int:
    """A block size of about `most` that divides an extent into about equal parts."""
    parts = -(-extent // max(most, 1)) or 1
    return max(-(-extent // (parts * multiple)) * multiple, 1)
