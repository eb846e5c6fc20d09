"""`Fold`: every element of the result adds up what the windows over it hold."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.graph.types import DType
from planish.ops.conv import Fold
from planish.targets.base import Binding, Family, Launch
from planish.targets.cuda.codegen.elementwise import compute_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer
from planish.targets.cuda.kernels.fused import Work, bind_work, finish
from planish.targets.cuda.kernels.patches import bind_source, read_source
from planish.targets.cuda.kernels.positions import (
    Positions,
    PositionsFamily,
    PositionsKernel,
    PositionsTactic,
)

UNROLLED = 32
"""Taps that are written out; more are looped over."""


@dataclass(frozen=True)
class FoldKernel(PositionsKernel):
    """See the module.

    Attributes
    ----------
    reads, work : Work
        The windows and the epilogue, one axis each.
    op : Fold
    before : tuple of int
        As the op's, bound.
    windows : tuple of int
        Windows along each dimension.
    dtype : DType
    """

    family = "fold"

    reads: Work
    work: Work
    op: Fold
    before: tuple[int, ...]
    windows: tuple[int, ...]
    dtype: DType

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (*self.reads.pointers, *self.work.pointers)

    def compute(self, k: Source, at: Positions) -> None:
        shape = f"({self.rows}, {self.block})"
        total = k.let("total", f"tl.full({shape}, 0, {compute_type(self.dtype)})")
        window = self.op.window
        if math.prod(window) <= UNROLLED:
            for tap in itertools.product(*(range(n) for n in window)):
                self._add(k, at, [str(t) for t in tap], total)
        else:
            with ExitStack() as loops:
                taps = []
                for extent in window:
                    taps.append(k.name("tap"))
                    loops.enter_context(k.block(f"for {taps[-1]} in range({extent}):"))
                self._add(k, at, taps, total)
        finish(k, self.work, len(self.reads.pointers), at.whole, at.masks, [total])

    def _add(self, k: Source, at: Positions, taps: Sequence[str], total: str) -> None:
        """Adds what the windows hold whose tap lies on the positions."""
        image, *places = at.index
        index, tests, number = [], [], "0"
        for axis, (place, tap) in enumerate(zip(places, taps, strict=True)):
            stride = self.op.strides[axis]
            number = f"({number}) * {self.op.window[axis]} + {tap}"
            moved = f"{place} + {self.before[axis]} - {tap} * {self.op.dilations[axis]}"
            moved = k.let("moved", moved)
            window = k.let("window", f"{moved} // {stride}") if stride > 1 else moved
            test = f"({moved} >= 0) & ({window} < {self.windows[axis]})"
            if stride > 1:
                test += f" & ({window} * {stride} == {moved})"
            index.append(window)
            tests.append(k.let("counts", test))
        masks = [None, *tests, None, at.inside]
        x = read_source(k, self.reads, [image, *index, f"({number})", at.channel], masks)
        k.line(f"{total} += {x}")


@dataclass(frozen=True)
class Folding(PositionsTactic):
    """Windows put back."""

    family: ClassVar[str] = "fold"

    def launches(self, binding: Binding) -> list[Launch]:
        task, op, shape = self.task, self.anchor.op, self.result_shape(binding)
        assert isinstance(op, Fold)
        if 0 in shape:
            return []
        source, reads = bind_source(task, binding)
        axes = range(len(shape))
        work, _, values = bind_work(task, task.epilogue, task.outputs, binding, shape, axes)
        fed = self.anchor.inputs[0]
        kernel = FoldKernel(
            self.warps,
            1,
            work.shape,
            self.rows,
            self.channels,
            source,
            work,
            Fold((), op.window, op.strides, (), op.dilations),
            tuple(evaluate(n, binding.symbols) for n in op.before),
            fed.type.bind(binding.symbols)[1:-2],
            fed.dtype,
        )
        positions = math.prod(shape[:-1])
        return [Launch(kernel, (*reads, *values), (positions,), self.programs(shape))]


class FoldFamily(PositionsFamily):
    """`Fold` of any dtype and number of dimensions."""

    name: ClassVar[str] = "fold"
    tactic: ClassVar[type[PositionsTactic]] = Folding

    def understands(self, task: Task) -> bool:
        anchor = task.anchor
        return anchor is not None and isinstance(anchor.op, Fold) and len(anchor.op.window) > 0


FAMILIES: tuple[Family, ...] = (FoldFamily(),)
