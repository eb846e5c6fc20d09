"""Max pooling that also tells where each maximum stands."""

from __future__ import annotations

import math
from contextlib import ExitStack
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.graph.types import DType
from planish.ops.pool import MaxPoolIndices
from planish.targets.base import Binding, Family, Launch
from planish.targets.cuda.codegen.elementwise import compute_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer
from planish.targets.cuda.kernels.fused import Access, Work
from planish.targets.cuda.kernels.nest import Operand, open_ended
from planish.targets.cuda.kernels.patches import Windows, bind_source, read_source
from planish.targets.cuda.kernels.positions import (
    Positions,
    PositionsFamily,
    PositionsKernel,
    PositionsTactic,
)


@dataclass(frozen=True)
class MaxPoolIndicesKernel(PositionsKernel):
    """Goes over each window in row-major order, and keeps the first of its largest elements.

    Attributes
    ----------
    reads : Work
    outputs : tuple of Access
        Maxima and places.
    windows : Windows
    dtype : DType
    """

    family = "max_pool_indices"

    reads: Work
    outputs: tuple[Access, ...]
    windows: Windows
    dtype: DType

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (*self.reads.pointers, *(a.pointer for a in self.outputs))

    def compute(self, k: Source, at: Positions) -> None:
        shape, windows = f"({self.rows}, {self.block})", self.windows
        least = 'float("-inf")' if self.dtype.is_float else str(np.iinfo(self.dtype.numpy).min)
        best = k.let("best", f"tl.full({shape}, {least}, {compute_type(self.dtype)})")
        where = k.let("where", f"tl.full({shape}, -1, tl.int32)")
        image, *positions = at.index
        with ExitStack() as loops:
            places, tests, flat = [], [], "0"
            for axis, position in enumerate(positions):
                tap = k.name("tap")
                loops.enter_context(k.block(f"for {tap} in range({windows.window[axis]}):"))
                start = f"{position} * {windows.strides[axis]} - {windows.before[axis]}"
                place = k.let("place", f"{start} + {tap} * {windows.dilations[axis]}")
                extent = windows.extents[axis]
                tests.append(k.let("counts", f"({place} >= 0) & ({place} < {extent})"))
                flat = k.let("flat", f"{flat} * {extent} + {place}")
                places.append(place)
            masks = [None, *tests, at.inside]
            x = read_source(k, self.reads, [image, *places, at.channel], masks)
            valid = k.let("valid", " & ".join(tests))
            better = k.let("better", f"{valid} & ({x} > {best})")
            # where nothing exceeds the least number it is the first element inside the image
            k.line(f"{where} = tl.where({better} | ({valid} & ({where} < 0)), {flat}, {where})")
            k.line(f"{best} = tl.where({better}, {x}, {best})")
        place = f"tl.maximum({where}, 0)"
        self.store(k, len(self.reads.pointers), self.outputs, at, best, place)


@dataclass(frozen=True)
class PoolingIndices(PositionsTactic):
    """Maxima and their places."""

    family: ClassVar[str] = "max_pool_indices"

    def launches(self, binding: Binding) -> list[Launch]:
        task, op, shape = self.task, self.anchor.op, self.result_shape(binding)
        assert isinstance(op, MaxPoolIndices)
        if 0 in shape:
            return []
        source, reads = bind_source(task, binding)
        outputs = tuple(Operand.of(v, binding).access() for v in task.outputs)
        fed = self.anchor.inputs[0]
        windows = Windows(
            fed.type.bind(binding.symbols)[1:-1],
            shape[1:-1],
            op.window,
            op.strides,
            op.dilations,
            tuple(max(evaluate(before, binding.symbols), 0) for before, _ in op.padding),
        )
        tile = (open_ended(shape), self.rows, self.channels)
        kernel = MaxPoolIndicesKernel(self.warps, 1, *tile, source, outputs, windows, fed.dtype)
        pointers = (*reads, *task.outputs)
        return [Launch(kernel, pointers, (math.prod(shape[:-1]),), self.programs(shape))]


class PoolIndicesFamily(PositionsFamily):
    """`MaxPoolIndices` of any dtype and number of dimensions."""

    name: ClassVar[str] = "max_pool_indices"
    tactic: ClassVar[type[PositionsTactic]] = PoolingIndices

    def understands(self, task: Task) -> bool:
        anchor = task.anchor
        return (
            anchor is not None
            and isinstance(anchor.op, MaxPoolIndices)
            and len(anchor.op.window) > 0
        )


FAMILIES: tuple[Family, ...] = (PoolIndicesFamily(),)
