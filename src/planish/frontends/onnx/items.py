"""What a name in an ONNX model can stand for: a tensor, a sequence of tensors, or nothing.

An engine knows only tensors. Sequences and optionals exist while a model is converted: a sequence
is the list of its tensors, so its length must be known then; an optional is its tensor, or absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from planish.graph import Value


@dataclass(frozen=True, eq=False)
class TensorSequence:
    """A sequence whose length is known while the model is converted."""

    values: tuple[Value, ...]

    def __str__(self) -> str:
        return f"a sequence of {len(self.values)} tensor(s)"


@dataclass(frozen=True, eq=False)
class Absent:
    """An optional without an element."""

    def __str__(self) -> str:
        return "an optional without an element"


Item: TypeAlias = "Value | TensorSequence | Absent"
