"""The elementwise program inside a task: what happens to each element, as data.

An expression has leaves (values that come from outside: an accumulator, an operand, a constant)
and instructions in SSA order, each an elementwise op on earlier slots. Slots are numbered leaves
first, then instructions. It knows nothing of memory: how a leaf is loaded is the kernel's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.graph.types import DType
from planish.ops.elementwise import Elementwise


@dataclass(frozen=True)
class Leaf:
    """A value from outside. `constant` is set for a scalar that is known when compiling."""

    dtype: DType
    constant: float | int | bool | None = None


@dataclass(frozen=True)
class Instruction:
    """An elementwise op applied to slots; `dtype` is that of its result."""

    op: Elementwise
    args: tuple[int, ...]
    dtype: DType


@dataclass(frozen=True)
class Expression:
    """Leaves, instructions, and the slots that are results. Hashable: part of a kernel's key."""

    leaves: tuple[Leaf, ...]
    instructions: tuple[Instruction, ...]
    results: tuple[int, ...]

    def dtype(self, slot: int) -> DType:
        """The dtype of a slot."""
        if slot < len(self.leaves):
            return self.leaves[slot].dtype
        return self.instructions[slot - len(self.leaves)].dtype

    def evaluate(self, leaves: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The results by the ops' NumPy references; constants may be given as anything."""
        slots = [
            np.asarray(a) if leaf.constant is None else np.asarray(leaf.constant, leaf.dtype.numpy)
            for a, leaf in zip(leaves, self.leaves, strict=True)
        ]
        for step in self.instructions:
            slots += step.op.reference(*(slots[i] for i in step.args))
        return [slots[i] for i in self.results]

    @property
    def is_copy(self) -> bool:
        """Whether the only result is the only leaf."""
        return not self.instructions and self.results == (0,) and len(self.leaves) == 1

    def __str__(self) -> str:
        names = [
            f"x{i}" if leaf.constant is None else str(leaf.constant)
            for i, leaf in enumerate(self.leaves)
        ]
        for step in self.instructions:
            names.append(f"{step.op}({', '.join(names[i] for i in step.args)})")
        return ", ".join(names[i] for i in self.results)


def identity(dtype: DType) -> Expression:
    """The expression that gives its one leaf."""
    return Expression((Leaf(dtype),), (), (0,))
