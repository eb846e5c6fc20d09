"""Convolutions with tensor maps whose result is pooled before it is stored: VGG's, for example.

A tile is a box of pixels with even sides, so that every window of two by two pixels lies in one.
The largest of a window is taken of the sums, before bias and activation, which keep the order of
numbers. Its pixels belong to one thread: those of a row lie side by side there, and the rows of a
box a multiple of eight pixels apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from planish.fusion.openings import POOL
from planish.fusion.pooled import pooled_of
from planish.fusion.task import Task, make_task
from planish.targets.base import Binding
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernels.fused import bind_work
from planish.targets.cuda.kernels.mapped import MappedFamily, MappedTactic, mapped_problem
from planish.targets.cuda.kernels.mapped_kernel import MappedKernel, MappedWriter
from planish.targets.cuda.kernels.matrix_pieces import Piece
from planish.targets.cuda.kernels.matrix_problem import Problem, is_packed, understood


@dataclass(frozen=True)
class MappedPoolKernel(MappedKernel):
    """One specialisation: a `MappedKernel` whose result has a row for each window."""

    family = "mapped_pool"

    def write(self, k: Source) -> None:
        MappedPoolWriter(self, k).write()


class MappedPoolWriter(MappedWriter):
    """Writes a `MappedPoolKernel`: what becomes of the sums."""

    def _finish(self, total: str, pieces: Sequence[Piece] = ()) -> None:
        k, kernel = self.k, self.kernel
        down, across = kernel.high // 2, kernel.wide // 2
        windows, columns = self.tile.rows // 4, self.tile.columns
        beside = self._larger(total, (self.tile.rows // 2, 2, columns), (0, 2, 1))
        shape = (windows // across, 2, across, columns)
        both = self._larger(beside, shape, (0, 2, 3, 1))
        pooled = k.let("pooled", f"tl.reshape({both}, ({windows}, {columns}))")
        high, wide = (extent // 2 for extent in kernel.pixels_of_result)
        window = k.let("window", f"tl.arange(0, {windows})")
        x = k.let("x", f"left_side // 2 + {window} % {across}")
        y = k.let("y", f"top // 2 + {window} // {across} % {down}")
        each = k.let("each", f"image + {window} // {across * down}")
        exists = k.let("exists", f"({x} < {wide}) & ({y} < {high}) & ({each} < images)")
        count = k.let("count", f"images * {high * wide}")
        row = k.let("row", f"tl.where({exists}, ({each} * {high} + {y}) * {wide} + {x}, {count})")
        self._store(pooled, row, count)

    def _larger(self, tile: str, shape: Sequence[int], order: Sequence[int]) -> str:
        """The larger of neighbours: along the axis of two that `order` puts last. NaN is larger
        than all.
        """
        k = self.k
        pairs = f"tl.permute(tl.reshape({tile}, {tuple(shape)}), {tuple(order)})"
        first, second = k.name("first"), k.name("second")
        k.line(f"{first}, {second} = tl.split({pairs})")
        nan = "propagate_nan=tl.PropagateNan.ALL"
        return k.let("larger", f"tl.maximum({first}, {second}, {nan})")


def pooled_problem(task: Task, binding: Binding) -> Problem | None:
    """The problem of a convolution, with the pooled result; None if the kernel cannot."""
    found = pooled_of(task.nodes)
    if found is None or found.before or found.pool.op != POOL:
        return None
    problem = mapped_problem(make_task(found.unpooled, found.conv), binding)
    if problem is None or problem.window is None:
        return None
    shape = binding.shape(task.output)
    result, _, values = bind_work(
        task, task.epilogue, task.outputs, binding, shape, (len(shape) - 1,)
    )
    return replace(problem, result=result, result_values=values)


@dataclass(frozen=True)
class MappedPoolTactic(MappedTactic):
    """A `MappedTactic` of a convolution with a pooling."""

    family: ClassVar[str] = "mapped_pool"
    kernel: ClassVar[type[MappedKernel]] = MappedPoolKernel

    def result_shape(self, binding: Binding) -> tuple[int, ...]:
        return self.task.output.type.bind(binding.symbols)

    def problem(self, binding: Binding) -> Problem | None:
        return pooled_problem(self.task, binding)


@dataclass(frozen=True)
class MappedPoolFamily(MappedFamily):
    """Convolutions with a pooling, for this or another machine."""

    name: ClassVar[str] = "mapped_pool"
    pattern: ClassVar[str] = "pooled"
    tactic: ClassVar[type[MappedTactic]] = MappedPoolTactic
    least: ClassVar[int] = 2

    def problem(self, task: Task, binding: Binding) -> Problem | None:
        return pooled_problem(task, binding)

    def understands(self, task: Task) -> bool:
        if task.pooled is None or task.prologue or task.pooled.pool != POOL:
            return False
        return understood(task) and is_packed(task)


FAMILIES = (MappedPoolFamily(),)
