"""The sampling kernels: grids, boxes, regions, deformed windows; see `sampling_kernel`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir
import numpy as np

from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.codegen.types import I64
from planish.targets.cpu.kernels.fused import Span
from planish.targets.cpu.kernels.overlaps import pick
from planish.targets.cpu.kernels.sampling_kernel import SampleKernel, Sampler, interpolate


@dataclass(frozen=True)
class GridSampleKernel(SampleKernel):
    """`GridSample`; the further input is the grid."""

    family: ClassVar[str] = "grid_sample"
    mode: str
    border: str
    align_corners: bool

    def sample(self, s: Sampler, place: list[Any]) -> Any:
        p, f = s.positions, s.positions.f
        axes = []
        for axis, extent in enumerate(s.extents):
            at = f.add(s.scalar(0, [*place, self.rank - 1 - axis]), p.c(1))
            if self.align_corners:
                at = f.mul(f.div(at, p.c(2)), p.number(s.k.sub(extent, 1)))
            else:
                at = f.div(f.sub(f.mul(at, p.number(extent)), p.c(1)), p.c(2))
            axes.append(p.neighbours(at, extent, self.mode, self.border, self.align_corners))
        return s.source.at(place[:1]), axes

    def value(self, s: Sampler, found: Any, span: Span) -> ir.Value:
        start, axes = found
        return interpolate(s.k, s.wide, s.source, start, axes, span)


@dataclass(frozen=True)
class CropKernel(SampleKernel):
    """`CropAndResize`; further inputs are boxes and images. Own parameter: the images there are."""

    family: ClassVar[str] = "crop_and_resize"
    mode: str
    extrapolation: float

    @property
    def own(self) -> int:
        return 1

    def sample(self, s: Sampler, place: list[Any]) -> Any:
        k, p, f = s.k, s.positions, s.positions.f
        axes, inside = [], None
        for axis in range(2):
            size, extent, index = s.sizes[axis], s.extents[axis], place[1 + axis]
            low, high = (s.scalar(0, [place[0], axis + n]) for n in (0, 2))
            last = p.number(k.sub(extent, 1))
            steps = p.number(k.max(k.sub(size, 1), 1))
            scale = f.div(f.mul(f.sub(high, low), last), steps)
            several = f.add(f.mul(low, last), f.mul(p.number(index), scale))
            middle = f.mul(f.mul(p.c(0.5), f.add(low, high)), last)
            at = f.select(k.b.icmp_signed(">", size, I64(1)), several, middle)
            within = k.b.and_(f.ge(at, p.c(0)), f.le(at, last))
            inside = within if inside is None else k.b.and_(inside, within)
            at = f.select(within, at, p.c(0))
            if self.mode == "nearest":
                floor = p.floor(at)
                up = f.ge(f.sub(at, floor), p.c(0.5))
                at = f.add(floor, f.select(up, p.c(1), p.c(0)))
            axes.append(p.neighbours(at, extent, "linear", "border", False))
        return s.image(1, place[0]), axes, inside

    def value(self, s: Sampler, found: Any, span: Span) -> ir.Value:
        start, (rows, columns), inside = found
        f = Floats(s.k, s.wide, span.lanes)

        def mixed(low: ir.Value, high: ir.Value, weight: ir.Value) -> ir.Value:
            return f.add(low, f.mul(f.sub(high, low), s.k.splat(weight, span.lanes)))

        lines = []
        for row in rows:
            here = s.source.move(start, 1, row.index)
            ends = [s.source.load(s.source.move(here, 2, c.index), span)[0] for c in columns]
            lines.append(mixed(ends[0], ends[1], columns[1].weight))
        value = mixed(lines[0], lines[1], rows[1].weight)
        return s.k.b.select(inside, value, f.c(self.extrapolation))


@dataclass(frozen=True)
class RoiAlignKernel(SampleKernel):
    """`RoiAlign`; further inputs are regions and images. Own parameter: the images there are."""

    family: ClassVar[str] = "roi_align"
    scale: float
    sampling: int
    mode: str
    half_pixel: bool

    @property
    def own(self) -> int:
        return 1

    def sample(self, s: Sampler, place: list[Any]) -> Any:
        """The place of the image; for each axis where the bin starts, its width, its samples, and
        the first and last of those that may lie in the image.
        """
        k, p, f = s.k, s.positions, s.positions.f
        offset, scale = p.c(0.5 if self.half_pixel else 0.0), p.c(self.scale)
        axes = []
        for axis in range(2):
            start, end = (s.scalar(0, [place[0], n - axis]) for n in (1, 3))
            first = f.sub(f.mul(start, scale), offset)
            length = f.sub(f.sub(f.mul(end, scale), offset), first)
            if not self.half_pixel:
                length = f.max(length, p.c(1))
            width = f.div(length, p.number(s.sizes[axis]))
            count: Any = self.sampling
            if not count:
                count = k.max(p.integer(p.near(k.intrinsic("ceil", width))), 0)
            here = f.add(first, f.mul(p.number(place[1 + axis]), width))
            axes.append((here, width, count, *self._visited(s, axis, here, width, count)))
        return s.image(1, place[0]), axes

    def _visited(self, s: Sampler, axis: int, start: Any, width: Any, count: Any) -> tuple:
        """The samples from the first to before the last that may lie in the image."""
        if self.sampling:
            return 0, count
        k, p, f = s.k, s.positions, s.positions.f
        pitch = f.div(width, p.number(k.max(count, 1)))

        def sample(edge: ir.Value, towards: str, beyond: int) -> ir.Value:
            number = f.sub(f.div(f.sub(edge, start), pitch), p.c(0.5))
            number = k.add(p.integer(p.near(k.intrinsic(towards, number))), beyond)
            return k.min(k.max(number, 0), count)

        return sample(p.c(-1), "ceil", -1), sample(p.number(s.extents[axis]), "floor", 2)

    def value(self, s: Sampler, found: Any, span: Span) -> ir.Value:
        k = s.k
        start, (rows, columns) = found
        f = Floats(k, s.wide, span.lanes)
        initial = f.c(0 if self.mode == "avg" else -np.inf)
        with k.loop(rows[3], rows[4], carried=[initial]) as row:
            y = self._along(s, 0, rows, row.index)
            with k.loop(columns[3], columns[4], carried=row.carried) as column:
                x = self._along(s, 1, columns, column.index)
                corners = self._corners(s, start, y, x, span)
                total = column.carried[0]
                if self.mode == "avg":
                    part = f.add(f.add(f.add(corners[0], corners[1]), corners[2]), corners[3])
                    column.next = [f.add(total, part)]
                else:
                    for corner in corners:
                        total = pick(k, "max", s.wide, total, corner, span.lanes)
                    column.next = [total]
            row.next = column.carried
        (result,) = row.carried
        samples = k.i64(k.mul(rows[2], columns[2]))
        if self.mode == "avg":
            count = s.positions.number(k.max(samples, 1))
            return f.div(result, k.splat(count, span.lanes))
        if not self.sampling:  # those that are not visited are 0
            visited = [k.sub(stop, begin) for *_, begin, stop in (rows, columns)]
            fewer = [
                k.b.icmp_signed("<", v, k.i64(axis[2]))
                for v, axis in zip(visited, (rows, columns), strict=True)
            ]
            most = pick(k, "max", s.wide, result, f.c(0), span.lanes)
            result = k.b.select(k.b.or_(*fewer), most, result)
        return k.b.select(k.b.icmp_signed(">", samples, I64(0)), result, f.c(0))

    def _along(self, s: Sampler, axis: int, bin: Any, sample: ir.Value) -> Any:
        """Lower and upper neighbour of a sample, the upper one's weight, whether it is inside."""
        k, p, f = s.k, s.positions, s.positions.f
        start, width, count, *_ = bin
        extent, last = s.extents[axis], k.sub(s.extents[axis], 1)
        step = f.mul(f.add(p.number(sample), p.c(0.5)), width)
        at = f.add(start, f.div(step, p.number(k.max(count, 1))))
        inside = k.b.and_(f.ge(at, p.c(-1)), f.le(at, p.number(extent)))
        at = f.select(inside, f.max(at, p.c(0)), p.c(0))
        low = k.min(p.integer(at), last)
        high = k.min(k.add(low, 1), last)
        edge = k.b.icmp_signed(">=", low, k.i64(last))
        weight = f.select(edge, p.c(0), f.sub(at, p.number(low)))
        return low, high, weight, inside

    def _corners(self, s: Sampler, start: Any, y: Any, x: Any, span: Span) -> list[ir.Value]:
        k, f = s.k, Floats(s.k, s.wide, span.lanes)
        inside = k.b.and_(y[3], x[3])
        one, narrow = s.positions.c(1), s.positions.f
        corners = []
        for row, down in ((y[0], narrow.sub(one, y[2])), (y[1], y[2])):
            here = s.source.move(start, 1, row)
            for column, along in ((x[0], narrow.sub(one, x[2])), (x[1], x[2])):
                (value,) = s.source.load(s.source.move(here, 2, column), span)
                assert value is not None
                weighted = f.mul(k.splat(narrow.mul(down, along), span.lanes), value)
                corners.append(k.b.select(inside, weighted, f.c(0)))
        return corners


@dataclass(frozen=True)
class DeformKernel(SampleKernel):
    """`DeformSample`; further inputs are offsets and, perhaps, factors.

    Outputs are seen as ``[N, *size, taps, groups, C / groups]``, the image with its channels as
    ``[groups, C / groups]``. Own parameters: what stands before each dimension.
    """

    family: ClassVar[str] = "deform_sample"
    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def own(self) -> int:
        return self.rank

    def sample(self, s: Sampler, place: list[Any]) -> Any:
        k, p, f = s.k, s.positions, s.positions.f
        *output, tap, group = place
        taps = int(np.prod(self.window))
        number = k.add(k.mul(group, taps), tap)
        along = k.unravel(tap, self.window[1:])
        axes = []
        for axis in range(self.rank):
            grid = k.sub(k.mul(output[1 + axis], self.strides[axis]), s.own[axis])
            grid = k.add(grid, k.mul(along[axis], self.dilations[axis]))
            offset = s.scalar(0, [*output, k.add(k.mul(number, self.rank), axis)])
            at = f.add(p.number(grid), offset)
            axes.append(p.neighbours(at, s.extents[axis], "linear", "zeros", False))
        factor = s.scalar(1, [*output, number]) if len(self.inputs) > 1 else None
        start = s.source.move(s.source.at(output[:1]), 1 + self.rank, group)
        return start, axes, factor

    def value(self, s: Sampler, found: Any, span: Span) -> ir.Value:
        start, axes, factor = found
        value = interpolate(s.k, s.wide, s.source, start, axes, span)
        if factor is None:
            return value
        return Floats(s.k, s.wide, span.lanes).mul(value, s.k.splat(factor, span.lanes))
