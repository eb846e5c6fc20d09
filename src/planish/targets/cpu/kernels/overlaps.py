"""Boxes inside a kernel: their corners, and how much they overlap.

Overlaps are computed as the reference does it, operation by operation, so that every decision that
rests on them is the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.kernels.fused import Operands, Span
from planish.targets.cpu.kernels.reducers import make_reducer


def wide_float(dtype: DType) -> DType:
    """The dtype that is computed in."""
    return DType.FLOAT64 if dtype is DType.FLOAT64 else DType.FLOAT32


class Overlaps:
    """Boxes that were kept, as five arrays, and overlaps of another box with them.

    Parameters
    ----------
    k : KernelBuilder
    dtype : DType
        float32 or float64.
    memory : llvmlite.ir.Value
        Where the arrays are.
    capacity : llvmlite.ir.Value
        How many boxes there is room for; overlaps read up to a vector beyond.
    """

    def __init__(
        self, k: KernelBuilder, dtype: DType, memory: ir.Value, capacity: ir.Value
    ) -> None:
        self.k, self.dtype = k, dtype
        room = k.add(capacity, k.lanes)
        self._arrays = [k.offset(memory, k.mul(room, i), dtype) for i in range(5)]

    def corners(self, coordinates: Sequence[ir.Value]) -> list[ir.Value]:
        """Lower corner, upper corner and area of a box given by two opposite corners."""
        f = Floats(self.k, self.dtype, 1)
        a, b = coordinates[:2], coordinates[2:]
        low = [pick(self.k, "min", self.dtype, x, y, 1) for x, y in zip(a, b, strict=True)]
        high = [pick(self.k, "max", self.dtype, x, y, 1) for x, y in zip(a, b, strict=True)]
        return [*low, *high, f.mul(f.sub(high[0], low[0]), f.sub(high[1], low[1]))]

    def append(self, box: Sequence[ir.Value], count: ir.Value) -> None:
        """Adds a box (from `corners`) to so many."""
        for array, value in zip(self._arrays, box, strict=True):
            self.k.store(value, self.k.offset(array, count, self.dtype), self.dtype)

    def at(self, box: Sequence[ir.Value], index: ir.Value, lanes: int) -> ir.Value:
        """Intersection over union of a box with kept ones; 0 for boxes without area."""
        k, f = self.k, Floats(self.k, self.dtype, lanes)
        y0, x0, y1, x1, area = (k.splat(v, lanes) for v in box)
        ky0, kx0, ky1, kx1, kept_area = (
            k.load(k.offset(array, index, self.dtype), self.dtype, lanes) for array in self._arrays
        )
        zero = f.c(0)
        sides = []
        for high, kept_high, low, kept_low in ((y1, ky1, y0, ky0), (x1, kx1, x0, kx0)):
            upper = pick(k, "min", self.dtype, kept_high, high, lanes)
            lower = pick(k, "max", self.dtype, kept_low, low, lanes)
            sides.append(pick(k, "max", self.dtype, f.sub(upper, lower), zero, lanes))
        shared = f.mul(sides[0], sides[1])
        overlap = f.div(shared, f.sub(f.add(kept_area, area), shared))
        real = k.b.and_(f.gt(kept_area, zero), f.gt(area, zero))
        return f.select(real, overlap, zero)

    def any_above(self, box: Sequence[ir.Value], count: ir.Value, threshold: float) -> ir.Value:
        """Whether a box overlaps one of the first `count` by more than the threshold."""
        k, lanes = self.k, self.k.lanes
        f = Floats(k, self.dtype, lanes)
        with k.loop(0, count, lanes, [k.zero(DType.BOOL, lanes)]) as loop:
            above = f.gt(self.at(box, loop.index, lanes), f.c(threshold))
            exists = k.tail_mask(k.sub(count, loop.index), lanes)
            loop.next = [k.b.or_(loop.carried[0], k.b.and_(above, exists))]
        return f.any(loop.carried[0])


def pick(
    k: KernelBuilder, which: str, dtype: DType, a: ir.Value, b: ir.Value, lanes: int
) -> ir.Value:
    """The smaller or larger of two; NaN wins."""
    return make_reducer(k, which, dtype, lanes).merge([a], [b])[0]


def load_box(k: KernelBuilder, boxes: Operands, image: Any, box: Any, label: Any) -> list[ir.Value]:
    """The coordinates of a box in ``[images, boxes, classes, 4]``."""
    place = boxes.at([image, box, label])
    coordinates = []
    for i in range(4):
        (value,) = boxes.load(place, Span(i, 1))
        assert value is not None
        coordinates.append(value)
    return coordinates
