"""Expressions as kernels of their own: interpreted on arrays, or compiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from planish.fusion.expression import Expression
from planish.targets.cuda.codegen.elementwise import compute_type, emit, storage_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.run import interpret


@dataclass(frozen=True)
class ExpressionKernel(TritonKernel):
    """One program that applies an expression to `block` elements of each leaf."""

    family = "expression"

    expression: Expression
    block: int

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        read = [leaf.dtype for leaf in self.expression.leaves if leaf.constant is None]
        written = [self.expression.dtype(slot) for slot in self.expression.results]
        return tuple(Pointer(dtype) for dtype in (*read, *written))

    def write(self, k: Source) -> None:
        at = k.let("at", f"tl.arange(0, {self.block})")
        place = 0
        leaves: list[str | None] = []
        for leaf in self.expression.leaves:
            if leaf.constant is not None:
                leaves.append(None)
                continue
            text = f"tl.load(p{place} + {at}).to({compute_type(leaf.dtype)})"
            leaves.append(k.let("x", text))
            place += 1
        for slot, name in zip(
            self.expression.results, emit(k, self.expression, leaves), strict=True
        ):
            dtype = storage_type(self.expression.dtype(slot))
            k.line(f"tl.store(p{place} + {at}, {name}.to({dtype}))")
            place += 1


def evaluate(expression: Expression, arrays: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """The results of an expression in Triton's interpreter; None stands for a constant leaf."""
    given = [np.ascontiguousarray(a) for a in arrays if a is not None]
    (count,) = {a.size for a in given}
    kernel = ExpressionKernel(4, 1, expression, count)
    types = [expression.dtype(slot).numpy for slot in expression.results]
    poison = [np.full(count * t.itemsize, 1 if t.kind == "b" else 0xA5, np.uint8) for t in types]
    outputs = [p.view(t) for p, t in zip(poison, types, strict=True)]
    interpret(kernel, [a.ctypes.data for a in (*given, *outputs)], (), 1)
    return outputs


@pytest.fixture(name="evaluate")
def _evaluate():
    return evaluate


@pytest.fixture
def expression_kernel():
    return ExpressionKernel
