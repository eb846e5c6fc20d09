"""Direct convolution, also transposed, over any number of dimensions and for every dtype.

    output row ──▶ phases of its last dimension ──▶ blocks of channels ──▶ tiles of positions
                        tile += window x depth:  broadcast x times a vector of packed weights

A transposed convolution of stride s is s ordinary ones for each dimension, interleaved: output
positions ``p, p + s, p + 2 s, …`` (phase p) are reached by the same taps of the window. So each
dimension has a table of phases; that of an ordinary convolution has one entry. Nothing here knows
of borders: where the window leaves the image, the source is a copy with zeros around it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.fused import (
    Access,
    Accesses,
    Operands,
    Span,
    apply,
    for_spans,
    load_span,
)

PARAMS = (
    "channels",  # output channels of a group
    "depth",  # input channels of a group
    "groups",
    "blocks",  # blocks of a group's channels
    "blocks_per_task",
    "channel_tasks",
    "column_tasks",
    "columns_per_task",  # positions of a phase
    "source_offset",  # elements
    "source_batch",
    "block_weights",  # elements of the weights of a block of channels
)
DIMENSION = (
    "extent",  # output positions
    "phases",
    "source_step",  # elements from a position of a phase to the next one
    "tap_step",  # elements of the source from a tap of a phase to the next one
    "weight_step",  # elements of the weights, likewise
)
PHASE = ("taps", "weight_offset", "source_offset", "positions")


@dataclass(frozen=True)
class DirectKernel(CpuKernel):
    """One specialisation; a task is a part of a row of output positions of one group.

    Pointers: source, packed weights ``[group][block][tap][depth][vectors x lanes]``, operands,
    outputs. Parameters: `PARAMS`; `DIMENSION` for each dimension; strides of operands and outputs;
    then for each dimension `PHASE` of each of its phases.

    Attributes
    ----------
    dtype : DType
        Of source, weights and result; halves are summed in float32.
    rank : int
        Spatial dimensions.
    lanes, vectors, positions : int
        The register tile: channels are vectors of lanes.
    pixel_step : int
        Elements of the source from a position of a phase to the next one, in the last dimension.
    whole : bool
        Whether a group's channels are a multiple of the tile's.
    """

    family: ClassVar[str] = "direct"
    dtype: DType
    rank: int
    lanes: int
    vectors: int
    positions: int
    pixel_step: int
    whole: bool
    expression: Expression
    accesses: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        _Direct(self, k).write()


class _Direct:
    """Writes a `DirectKernel`."""

    def __init__(self, kernel: DirectKernel, k: KernelBuilder) -> None:
        self.kernel, self.k = kernel, k
        self.p = {name: k.param(i) for i, name in enumerate(PARAMS)}
        base = len(PARAMS)
        self.dims = [
            {name: k.param(base + len(DIMENSION) * d + i) for i, name in enumerate(DIMENSION)}
            for d in range(kernel.rank)
        ]
        base += len(DIMENSION) * kernel.rank
        axes = kernel.rank + 2
        self.source, self.weights = k.pointer(0), k.pointer(1)
        self.reads = Operands(k, kernel.accesses, 2, base, axes)
        self.writes = Operands(
            k, kernel.outputs, self.reads.next_pointer, self.reads.next_param, axes
        )
        self.tables: list[Any] = [self.writes.next_param]
        for dim in self.dims[:-1]:
            self.tables.append(k.add(self.tables[-1], k.mul(dim["phases"], len(PHASE))))

    def write(self) -> None:
        k, p = self.k, self.p
        with k.loop(k.begin, k.end) as tasks:
            rest, channel_task = k.divmod(tasks.index, p["channel_tasks"])
            rest, column_task = k.divmod(rest, p["column_tasks"])
            rest, group = k.divmod(rest, p["groups"])
            image, *outer = k.unravel(rest, [dim["extent"] for dim in self.dims[:-1]])
            start = k.add(p["source_offset"], k.mul(image, p["source_batch"]))
            start = k.add(start, k.mul(group, p["depth"]))
            first_block = k.mul(channel_task, p["blocks_per_task"])
            weights: Any = k.mul(k.mul(group, p["blocks"]), p["block_weights"])
            taps = []
            for axis, index in enumerate(outer):
                turn, phase = k.divmod(index, self.dims[axis]["phases"])
                entry = self._phase(axis, phase)
                taps.append(entry["taps"])
                start = k.add(start, k.mul(turn, self.dims[axis]["source_step"]))
                start = k.add(start, entry["source_offset"])
                weights = k.add(weights, entry["weight_offset"])
            begin = k.mul(column_task, p["columns_per_task"])
            place = [image, *outer]
            reads, writes = self.reads.at(place), self.writes.at(place)
            last = self.kernel.rank - 1
            with k.loop(0, self.dims[last]["phases"]) as phases:
                entry = self._phase(last, phases.index)
                end = k.min(k.add(begin, p["columns_per_task"]), entry["positions"])
                self._row(
                    group,
                    first_block,
                    [*taps, entry["taps"]],
                    k.add(start, entry["source_offset"]),
                    k.add(weights, entry["weight_offset"]),
                    (begin, end, phases.index),
                    (reads, writes),
                )

    def _phase(self, axis: int, phase: Any) -> dict[str, ir.Value]:
        k = self.k
        entry = k.add(self.tables[axis], k.mul(phase, len(PHASE)))
        return {name: k.param(k.add(entry, i)) for i, name in enumerate(PHASE)}

    def _row(
        self,
        group: Any,
        first_block: Any,
        taps: list[Any],
        source: Any,
        weights: Any,
        columns: tuple[Any, Any, Any],
        places: tuple[Any, Any],
    ) -> None:
        """The positions of one phase in one row, block of channels by block."""
        k, kernel, p = self.k, self.kernel, self.p
        width = kernel.lanes * kernel.vectors
        shift = k.mul(group, p["channels"])
        beyond = k.min(k.add(first_block, p["blocks_per_task"]), p["blocks"])
        begin, end, phase = columns
        with k.loop(first_block, beyond) as block:
            here = k.add(weights, k.mul(block.index, p["block_weights"]))
            spans = self._spans(k.mul(block.index, width), shift)
            at: Any = begin
            for size in self._sizes():
                full = k.sub(end, k.b.srem(k.i64(k.sub(end, at)), k.i64(size))) if size > 1 else end
                # an empty range: a phase may have fewer positions than others
                with k.loop(at, full, size) as tile:
                    self._tile(size, spans, taps, source, here, tile.index, phase, places)
                at = k.max(full, at)

    def _spans(self, start: Any, shift: Any) -> list[Span]:
        """The vectors of a block of channels; the last block's may exceed the group."""
        k, kernel = self.k, self.kernel
        spans = []
        for v in range(kernel.vectors):
            first = k.add(start, v * kernel.lanes)
            if kernel.whole:
                spans.append(Span(k.add(shift, first), kernel.lanes))
                continue
            count = k.i64(k.sub(self.p["channels"], first))
            mask = k.tail_mask(count, kernel.lanes)
            spans.append(Span(k.add(shift, first), kernel.lanes, count, mask))
        return spans

    def _sizes(self) -> list[int]:
        """Positions of a tile: as many as wished, and fewer for the end of a row."""
        positions = self.kernel.positions
        return [positions, *(size for size in (4, 1) if size < positions)]

    def _tile(
        self,
        size: int,
        spans: list[Span],
        taps: list[Any],
        source: Any,
        weights: Any,
        position: Any,
        phase: Any,
        places: tuple[Any, Any],
    ) -> None:
        k, kernel = self.k, self.kernel
        last = self.dims[-1]
        start = k.offset(
            self.source, k.add(source, k.mul(position, kernel.pixel_step)), kernel.dtype
        )
        zero = k.zero(kernel.dtype, kernel.lanes)
        sums: Sequence[ir.Value] = [zero] * (size * len(spans))
        sums = self._taps(0, size, taps, start, k.offset(self.weights, weights, kernel.dtype), sums)
        reads, writes = places
        for pixel in range(size):
            column = k.add(k.mul(k.add(position, pixel), last["phases"]), phase)
            read = self.reads.move(reads, kernel.rank, column)
            written = self.writes.move(writes, kernel.rank, column)
            for number, span in enumerate(spans):
                total = sums[pixel * len(spans) + number]
                loaded = self.reads.load(read, span)
                results = apply(
                    k, kernel.expression, loaded, [total], kernel.accesses, kernel.lanes
                )
                self.writes.store(written, span, results)

    def _taps(
        self, axis: int, size: int, taps: list[Any], x: Any, w: Any, sums: Sequence[ir.Value]
    ) -> Sequence[ir.Value]:
        """Adds the taps of this dimension and those after it."""
        k, dtype = self.k, self.kernel.dtype
        if axis == self.kernel.rank:
            return self._depth(size, x, w, sums)
        with k.loop(0, taps[axis], carried=sums) as tap:
            here = k.offset(x, k.mul(tap.index, self.dims[axis]["tap_step"]), dtype)
            weights = k.offset(w, k.mul(tap.index, self.dims[axis]["weight_step"]), dtype)
            tap.next = list(self._taps(axis + 1, size, taps, here, weights, tap.carried))
        return tap.carried

    def _depth(self, size: int, x: Any, w: Any, sums: Sequence[ir.Value]) -> Sequence[ir.Value]:
        """Adds one tap: for each input channel a row of weights times each position's element."""
        k, kernel = self.k, self.kernel
        width = kernel.lanes * kernel.vectors
        with k.loop(0, self.p["depth"], carried=sums) as loop:
            row = k.offset(w, k.mul(loop.index, width), kernel.dtype)
            vectors = [
                k.load(k.offset(row, v * kernel.lanes, kernel.dtype), kernel.dtype, kernel.lanes)
                for v in range(kernel.vectors)
            ]
            at = k.offset(x, loop.index, kernel.dtype)
            following = []
            for pixel in range(size):
                place = k.offset(at, pixel * kernel.pixel_step, kernel.dtype)
                element = k.splat(k.load(place, kernel.dtype), kernel.lanes)
                for number, vector in enumerate(vectors):
                    total = loop.carried[pixel * len(vectors) + number]
                    following.append(self._multiply_add(element, vector, total))
            loop.next = following
        return loop.carried

    def _multiply_add(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        if self.kernel.dtype.is_float:
            return self.k.fma(a, b, c)
        return self.k.b.add(self.k.b.mul(a, b), c)


@dataclass(frozen=True)
class HaloKernel(CpuKernel):
    """Copies ``[N, *spatial, C]`` into a dense array with zeros around the spatial dimensions.

    A task is one row of the copy. Pointers: source, target. Parameters: channels; for each
    dimension its extent in the source, in the target, and what stands before it; the source's
    strides.
    """

    family: ClassVar[str] = "halo"
    rank: int
    source: Access

    def write(self, k: KernelBuilder) -> None:
        dtype, rank = self.source.dtype, self.rank
        channels = k.param(0)
        dims = [[k.param(1 + 3 * d + i) for i in range(3)] for d in range(rank)]
        source = Operands(k, (self.source,), 0, 1 + 3 * rank, rank + 2)
        target, step = k.pointer(1), k.param(1 + 3 * rank + rank + 1)
        zero = k.zero(dtype, k.lanes)
        (extent, wide, before) = dims[-1]
        with k.loop(k.begin, k.end) as tasks:
            rest: Any = tasks.index
            row = k.offset(target, k.mul(rest, k.mul(wide, channels)), dtype)
            place: list[Any] = []
            inside: Any = k.b.icmp_signed("==", k.i64(0), k.i64(0))
            for size, padded, lead in reversed(dims[:-1]):
                rest, index = k.divmod(rest, padded)
                index = k.sub(index, lead)
                place.insert(0, index)
                # a negative index is a large unsigned one
                inside = k.b.and_(inside, k.b.icmp_unsigned("<", index, size))
            (start,) = source.at([rest, *place])

            def zeros(first: Any, end: Any, row: Any = row) -> None:
                def body(spans: list[Span], _: Any) -> None:
                    for s in spans:
                        k.store(zero, k.offset(row, s.start, dtype), dtype, s.lanes, mask=s.mask)

                for_spans(k, k.mul(first, channels), k.mul(end, channels), k.lanes, body)

            def copied(row: Any = row, start: Any = start, zeros: Any = zeros) -> None:
                zeros(0, before)
                with k.loop(0, extent) as column:
                    (pixel,) = source.move([start], rank, column.index)
                    out = k.offset(row, k.mul(k.add(column.index, before), channels), dtype)

                    def body(spans: list[Span], _: Any, pixel: Any = pixel, out: Any = out) -> None:
                        for s in spans:
                            value = load_span(k, pixel, self.source, step, s)
                            k.store(
                                value, k.offset(out, s.start, dtype), dtype, s.lanes, mask=s.mask
                            )

                    for_spans(k, 0, channels, k.lanes, body)
                zeros(k.add(before, extent), wide)

            k.choose(inside, copied, lambda zeros=zeros: zeros(0, wide))


@dataclass(frozen=True)
class PackFiltersKernel(CpuKernel):
    """Filters computed while the model runs, packed as `DirectKernel` reads its weights.

    A task is one tap of one block of channels of one group. Pointers: filters, target. Parameters:
    channels of a group, blocks, depth, taps; the extents of the window; the filters' strides.
    """

    family: ClassVar[str] = "pack_filters"
    filters: Access
    rank: int
    lanes: int
    vectors: int

    def write(self, k: KernelBuilder) -> None:
        dtype, width = self.filters.dtype, self.lanes * self.vectors
        channels, blocks, depth, taps = map(k.param, range(4))
        window = [k.param(4 + i) for i in range(self.rank)]
        filters = Operands(k, (self.filters,), 0, 4 + self.rank, self.rank + 2)
        step = k.param(4 + 2 * self.rank + 1)
        target = k.pointer(1)
        with k.loop(k.begin, k.end) as tasks:
            matrix, tap = k.divmod(tasks.index, taps)
            group, block = k.divmod(matrix, blocks)
            first = k.mul(block, width)
            (start,) = filters.at(k.unravel(tap, window[1:]))
            start = k.offset(start, k.mul(k.mul(group, channels), step), dtype)
            out = k.offset(target, k.mul(k.mul(tasks.index, depth), width), dtype)
            with k.loop(0, depth) as row:
                (source,) = filters.move([start], self.rank, row.index)
                line = k.offset(out, k.mul(row.index, width), dtype)
                for v in range(self.vectors):
                    at = k.add(first, v * self.lanes)
                    left = k.sub(channels, at)
                    mask = k.tail_mask(left, self.lanes)
                    # lanes beyond the channels read the last one again, then become zero
                    count = k.max(left, 1)
                    at = k.min(at, k.sub(channels, 1)) if self.filters.step != 1 else at
                    span = Span(at, self.lanes, count, mask)
                    value = load_span(k, source, self.filters, step, span)
                    value = k.b.select(mask, value, k.zero(dtype, self.lanes))
                    k.store(value, k.offset(line, v * self.lanes, dtype), dtype, self.lanes)
