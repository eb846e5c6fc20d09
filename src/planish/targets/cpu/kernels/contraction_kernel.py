"""Sums of products for every dtype: the plain counterpart of the matrix kernel.

    out[outer, pixel, column] = sum over taps and depth of left[...] * right[...]

Both factors are views with a stride per axis, so matrix products (transposed or not, constant or
not) and convolutions (of any rank, grouped, depthwise) are one loop nest. A tile of `pixels` x
`vectors` stays in registers over the whole sum. Integers are summed exactly modulo the width of
the accumulator, halves in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.casts import cast
from planish.targets.cpu.codegen.types import register_type
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.axes import unravel
from planish.targets.cpu.kernels.fused import Access, Accesses, Operands, Span, apply, load_span

AXIS_PARAMS = ("taps", "stride", "dilation", "padding", "extent", "left_tap", "right_tap")
"""Parameters of each spatial axis: how many taps; from a pixel, and a tap, to the next in the
input; padding before it; its extent; from a tap to the next in the memory of either factor.
"""


VECTOR_BYTES = 64
"""Bytes of accumulators in a vector; LLVM splits it where registers are smaller."""


def accumulator_of(dtype: DType) -> DType:
    """The dtype in which products of a dtype are summed."""
    if dtype in (DType.FLOAT64, DType.INT64, DType.UINT64):
        return dtype
    return DType.FLOAT32 if dtype.is_float else DType.INT32


@dataclass(frozen=True)
class ContractionKernel(CpuKernel):
    """One specialisation. A task is one tile.

    Pointers: left, right, their zero points where there are any, operands, outputs. Parameters:
    extents (outer axes, pixels, columns), depth, the factors' strides along it, the left factor's
    start, then `AXIS_PARAMS` of each spatial axis, then the strides of all tensors.

    Attributes
    ----------
    factors : tuple of Access
        The left and the right factor.
    zeros : tuple of Access or None
        Their zero points, which are subtracted from each element.
    accumulator, result : DType
        In what is summed, and of what dtype the anchor's output is.
    pixels, vectors : int
        The register tile.
    outer : int
        Axes besides pixels and columns.
    spatial : tuple of int
        For each spatial axis which of the kernel's axes it is.
    masked : bool
        Whether the last block of columns may be partial.
    """

    family: ClassVar[str] = "contraction"
    factors: tuple[Access, Access]
    zeros: tuple[Access | None, Access | None]
    accumulator: DType
    result: DType
    pixels: int
    vectors: int
    outer: int
    spatial: tuple[int, ...]
    masked: bool
    epilogue: Expression
    operands: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        _Writer(k, self).write()


class _Writer:
    """Writes one kernel; holds what its parts share."""

    def __init__(self, k: KernelBuilder, kernel: ContractionKernel) -> None:
        self.k, self.kernel = k, kernel
        self.lanes = VECTOR_BYTES // kernel.accumulator.size
        axes = kernel.outer + 2
        self.extents = [k.param(i) for i in range(axes)]
        self.depth, left_step, right_step, self.left_start = (k.param(axes + i) for i in range(4))
        self.depth_steps = (left_step, right_step)
        at = axes + 4
        self.spatial = []
        for _ in kernel.spatial:
            self.spatial.append(
                {name: k.param(at + i) for i, name in enumerate(AXIS_PARAMS)}  # by its own name
            )
            at += len(AXIS_PARAMS)
        self.factors = Operands(k, (*kernel.factors, *kernel.zeros), 0, at, axes)
        self.steps = [k.param(at + (i + 1) * axes - 1) for i in range(2)]
        self.reads = Operands(
            k, kernel.operands, self.factors.next_pointer, self.factors.next_param, axes
        )
        self.writes = Operands(
            k, kernel.outputs, self.reads.next_pointer, self.reads.next_param, axes
        )

    def write(self) -> None:
        k, kernel = self.k, self.kernel
        width = kernel.vectors * self.lanes
        *outer, pixels, columns = self.extents

        def blocks(extent: ir.Value, size: int) -> ir.Value:
            return k.b.sdiv(k.add(extent, size - 1), k.i64(size))

        counts = [*outer, blocks(pixels, kernel.pixels), blocks(columns, width)]
        with k.loop(k.begin, k.end) as tasks:
            *place, tile, block = unravel(k, tasks.index, counts)
            first = k.mul(block, width)
            # the last tile's surplus pixels do its last one again
            rows = [
                k.min(k.add(k.mul(tile, kernel.pixels), i), k.sub(pixels, 1))
                for i in range(kernel.pixels)
            ]
            whole = [Span(k.add(first, v * self.lanes), self.lanes) for v in range(kernel.vectors)]
            if kernel.masked:
                self._masked_tile(place, rows, whole)
            else:
                self._tile(place, rows, whole)

    def _masked_tile(
        self, outer: Sequence[int | ir.Value], rows: Sequence[ir.Value], whole: Sequence[Span]
    ) -> None:
        """A tile that may lack columns."""
        k, columns = self.k, self.extents[-1]

        def partial() -> None:
            spans = []
            for span in whole:
                count = k.i64(k.sub(columns, span.start))
                spans.append(Span(span.start, self.lanes, count, k.tail_mask(count, self.lanes)))
            self._tile(outer, rows, spans)

        end = k.add(whole[-1].start, self.lanes)
        full = k.b.icmp_signed("<=", end, columns)
        k.choose(full, lambda: self._tile(outer, rows, whole), partial)

    def _tile(
        self, outer: Sequence[int | ir.Value], rows: Sequence[ir.Value], spans: Sequence[Span]
    ) -> None:
        k, kernel = self.k, self.kernel
        start = self.factors.at(outer)
        places = [self.factors.move(start, kernel.outer, row) for row in rows]
        right_zero = [self._zero_point(1, start, span) for span in spans]
        left_zero = [[self._zero_point(0, place, span) for span in spans] for place in places]
        zero = k.zero(kernel.accumulator, self.lanes)
        sums: list[ir.Value] = [zero] * (len(rows) * len(spans))
        scratch = self._fill_border(start) if kernel.spatial else None

        def products(
            lefts: Sequence[tuple[ir.Value, ir.Value | None]], right: ir.Value, sums: list[ir.Value]
        ) -> list[ir.Value]:
            """Adds the products of one tap; `lefts` are places, and whether they exist."""
            steps, lane_steps, starts = [], [], []
            for place, exists in lefts:
                step, lane_step = self.depth_steps[0], self.steps[0]
                if exists is not None:
                    assert scratch is not None
                    place = k.b.select(exists, place, scratch)
                    step = k.b.select(exists, step, k.i64(0))
                    lane_step = k.b.select(exists, lane_step, k.i64(0))
                starts.append(place)
                steps.append(step)
                lane_steps.append(lane_step)
            with k.loop(0, self.depth, carried=sums) as loop:
                at = k.offset(
                    right, k.mul(loop.index, self.depth_steps[1]), kernel.factors[1].dtype
                )
                columns = [
                    self._element(1, at, self.steps[1], s, z)
                    for s, z in zip(spans, right_zero, strict=True)
                ]
                following = []
                for number, (place, step, lane_step) in enumerate(
                    zip(starts, steps, lane_steps, strict=True)
                ):
                    here = k.offset(place, k.mul(loop.index, step), kernel.factors[0].dtype)
                    exists = lefts[number][1]
                    shared: ir.Value | None = None
                    for v, span in enumerate(spans):
                        if shared is None or kernel.factors[0].step != 0:
                            shared = self._element(
                                0, here, lane_step, span, left_zero[number][v], exists
                            )
                        total = loop.carried[number * len(spans) + v]
                        following.append(self._multiply_add(shared, columns[v], total))
                loop.next = following
            return loop.carried

        lefts = [
            k.offset(p[0], self.left_start, kernel.factors[0].dtype)  # type: ignore[arg-type]
            for p in places
        ]
        assert start[1] is not None
        right = start[1]
        if kernel.spatial:
            sums = self._taps(0, (*outer, None), rows, lefts, right, sums, products)
        else:
            sums = products([(p, None) for p in lefts], right, sums)
        self._store(outer, rows, spans, sums)

    def _taps(self, axis, outer, rows, lefts, right, sums, products) -> list[ir.Value]:
        """The loops over the taps of one spatial axis and those inside it."""
        k, kernel, numbers = self.k, self.kernel, self.spatial[axis]
        left_dtype, right_dtype = (f.dtype for f in kernel.factors)
        along_pixels = kernel.spatial[axis] == kernel.outer
        begin: int | ir.Value = 0
        end = numbers["taps"]
        first = None
        if not along_pixels:  # taps beyond the border are left out
            first = k.sub(k.mul(outer[kernel.spatial[axis]], numbers["stride"]), numbers["padding"])
            below = k.max(k.sub(0, first), 0)
            begin = k.b.sdiv(k.add(below, k.sub(numbers["dilation"], 1)), numbers["dilation"])
            room = k.max(k.sub(numbers["extent"], first), 0)
            inside = k.b.sdiv(k.add(room, k.sub(numbers["dilation"], 1)), numbers["dilation"])
            end = k.min(end, inside)
        with k.loop(begin, end, carried=sums) as loop:
            by = k.mul(loop.index, numbers["left_tap"])
            here = [k.offset(p, by, left_dtype) for p in lefts]
            there = k.offset(right, k.mul(loop.index, numbers["right_tap"]), right_dtype)
            if not along_pixels:
                loop.next = self._taps(axis + 1, outer, rows, here, there, loop.carried, products)
            else:
                reach = k.sub(k.mul(loop.index, numbers["dilation"]), numbers["padding"])
                checked = []
                for row, place in zip(rows, here, strict=True):
                    coordinate = k.add(k.mul(row, numbers["stride"]), reach)
                    # as unsigned numbers, negative ones are too large as well
                    exists = k.b.icmp_unsigned("<", coordinate, numbers["extent"])
                    checked.append((place, exists))
                loop.next = products(checked, there, loop.carried)
        return loop.carried

    def _fill_border(self, start: Sequence[ir.Value | None]) -> ir.Value:
        """Scratch memory with what lies beyond the border: the left factor's zero point, or 0."""
        k, dtype = self.k, self.kernel.factors[0].dtype
        place = start[2]
        value = k.zero(dtype) if place is None else k.load(place, dtype)
        k.store(k.splat(value, self.lanes), k.scratch, dtype, self.lanes)
        return k.scratch

    def _zero_point(
        self, factor: int, places: Sequence[ir.Value | None], span: Span
    ) -> ir.Value | None:
        chosen = [place if i == 2 + factor else None for i, place in enumerate(places)]
        item, value = self.kernel.zeros[factor], self.factors.load(chosen, span)[2 + factor]
        if item is None or value is None:
            return None
        return cast(self.k, value, item.dtype, self.kernel.accumulator, self.lanes)

    def _element(
        self,
        factor: int,
        place: ir.Value,
        step: ir.Value,
        span: Span,
        zero: ir.Value | None,
        exists: ir.Value | None = None,
    ) -> ir.Value:
        """A vector of a factor in the accumulator's dtype, less its zero point."""
        k, item = self.k, self.kernel.factors[factor]
        if exists is not None and item.step != 0:
            # what lies beyond the border is one vector, wherever the columns begin
            start = k.b.select(exists, k.i64(span.start), k.i64(0))
            span = Span(start, span.lanes, span.count, span.mask)
        value = load_span(k, place, item, step, span)
        value = cast(k, value, item.dtype, self.kernel.accumulator, self.lanes)
        return value if zero is None else k.b.sub(value, zero)

    def _multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        if self.kernel.accumulator.is_float:
            return self.k.fma(a, b, c)
        return self.k.b.add(c, self.k.b.mul(a, b))

    def _store(
        self,
        outer: Sequence[int | ir.Value],
        rows: Sequence[ir.Value],
        spans: Sequence[Span],
        sums: Sequence[ir.Value],
    ) -> None:
        k, kernel = self.k, self.kernel
        read, written = self.reads.at(outer), self.writes.at(outer)
        narrow = not kernel.result.is_float and kernel.result.size < kernel.accumulator.size
        for number, row in enumerate(rows):
            source = self.reads.move(read, kernel.outer, row)
            target = self.writes.move(written, kernel.outer, row)
            for v, span in enumerate(spans):
                total = sums[number * len(spans) + v]
                if narrow:
                    total = k.b.trunc(total, register_type(kernel.result, self.lanes))
                loaded = self.reads.load(source, span)
                results = apply(k, kernel.epilogue, loaded, [total], kernel.operands, self.lanes)
                self.writes.store(target, span, results)
