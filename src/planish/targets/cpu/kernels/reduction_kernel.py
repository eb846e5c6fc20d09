"""The reduction kernel: vectors along a reduced axis, or along a kept one.

Along a reduced axis there are several accumulators, whose lanes are joined at the end; along a kept
axis (as in global average pooling, channels last) every lane is a result. Accumulators start afresh
every few thousand elements and are then added up, so that long sums stay accurate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import I32, KernelBuilder, register_type
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.axes import nest, unravel
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span, apply, for_spans
from planish.targets.cpu.kernels.reducers import Reducer, make_reducer, wide_dtype

COLUMNS = 64
"""Elements of a kept vector axis that a task takes."""
_CHUNK = 4096
"""Elements along a reduced vector axis after which accumulators start afresh."""
_ROWS = 256
"""Rows after which accumulators along a kept vector axis start afresh."""


@dataclass(frozen=True)
class ReductionKernel(CpuKernel):
    """One specialisation; extents and strides are parameters.

    Attributes
    ----------
    reduction : str
        One of `REDUCTIONS`.
    dtype : DType
        Of the elements that are reduced.
    index_dtype : DType or None
        The result's dtype, for arg max.
    kept, reduced : int
        Loop axes of either kind, besides the vector axis.
    vector_reduced : bool
        Whether the vector axis is reduced.
    vectors : int
        Vectors at a time.
    split : int or None
        Which of the reduced axes (counted as loops, then the vector axis) is cut into blocks; the
        last kept axis then numbers the blocks.
    stage : str
        "whole"; "blocks": gives the state of each block; "joined": takes states.

    Parameters of the launch: the extents of all axes; how many elements a result has; elements
    per block of the split axis; the strides of leaves, operands and outputs. A task is one
    position of the kept axes, and some elements of a kept vector axis.
    """

    family: ClassVar[str] = "reduction"
    reduction: str
    dtype: DType
    index_dtype: DType | None
    select_last: bool
    kept: int
    reduced: int
    vector_reduced: bool
    vectors: int
    split: int | None
    stage: str
    prologue: Expression
    leaves: Accesses
    epilogue: Expression
    operands: Accesses
    outputs: Accesses

    def write(self, k: KernelBuilder) -> None:
        _Writer(self, k).write()


class _Writer:
    """Writes a `ReductionKernel`."""

    def __init__(self, kernel: ReductionKernel, k: KernelBuilder) -> None:
        self.kernel, self.k = kernel, k
        axes = kernel.kept + kernel.reduced + 1
        self.extents: list[ir.Value] = [k.param(i) for i in range(axes)]
        self.count, self.block_length = k.param(axes), k.param(axes + 1)
        self.source = Operands(k, kernel.leaves, 0, axes + 2, axes)
        self.reads = Operands(
            k, kernel.operands, self.source.next_pointer, self.source.next_param, axes
        )
        self.writes = Operands(
            k, kernel.outputs, self.reads.next_pointer, self.reads.next_param, axes
        )
        wide = wide_dtype(kernel.reduction, kernel.dtype)
        lanes = k.lanes * 4 // min(4, wide.size)
        self.reducer = make_reducer(
            k, kernel.reduction, kernel.dtype, lanes, select_last=kernel.select_last
        )

    def write(self) -> None:
        k, kernel = self.k, self.kernel
        with k.loop(k.begin, k.end) as tasks:
            outer: ir.Value = tasks.index
            first: Any = 0
            if not kernel.vector_reduced:
                blocks = k.b.sdiv(k.add(self.extents[-1], COLUMNS - 1), k.i64(COLUMNS))
                outer, block = k.divmod(outer, blocks)
                first = k.mul(block, COLUMNS)
            place = unravel(k, outer, self.extents[: kernel.kept])
            extents = list(self.extents)
            if kernel.split is not None:
                axis = kernel.kept + kernel.split
                done = k.mul(place[-1], self.block_length)
                extents[axis] = k.min(self.block_length, k.sub(extents[axis], done))
            inner = extents[kernel.kept : -1]
            start = self.source.at(place)
            places = self.reads.at(place), self.writes.at(place)
            if kernel.vector_reduced:
                state = self._along_vectors(start, inner, extents[-1])
                self._finish(self.reducer.single(), state, places, Span(0, 1))
            else:
                self._columns(start, inner, first, places)

    def _columns(self, start: Any, inner: Any, first: Any, places: Any) -> None:
        """The results of a task along a kept vector axis."""
        lanes = self.reducer.lanes

        def columns(spans: list[Span], _: Any) -> None:
            states = self._each(self._down_rows(start, inner, spans), len(spans))
            for span, state in zip(spans, states, strict=True):
                self._finish(self.reducer, state, places, span)

        last = self.k.min(self.k.add(first, COLUMNS), self.extents[-1])
        vectors = max(1, min(self.kernel.vectors, COLUMNS // lanes))
        for_spans(self.k, first, last, lanes, columns, vectors=vectors)

    # ---- the two schemes --------------------------------------------------------------------

    def _along_vectors(self, start: Any, inner: Any, extent: ir.Value) -> list[ir.Value]:
        """The state of one result, vectors along a reduced axis; as scalars."""
        k = self.k
        reducer, lanes = self.reducer, self.reducer.lanes

        def row(places: Sequence[Any], totals: list[ir.Value]) -> list[ir.Value]:
            with k.loop(0, extent, _CHUNK, totals) as chunk:
                end = k.min(k.add(chunk.index, _CHUNK), extent)

                def step(spans: list[Span], states: list[ir.Value]) -> list[ir.Value]:
                    new: list[ir.Value] = []
                    for span, state in zip(spans, self._each(states, len(spans)), strict=True):
                        x = self._load(places[0], span)
                        index = self._positions(span.start, lanes, moving=True)
                        new += self._step(reducer, state, x, index, span.mask)
                    return new

                fresh = reducer.initial() * self.kernel.vectors
                sums = for_spans(
                    k, chunk.index, end, lanes, step, vectors=self.kernel.vectors, carried=fresh
                )
                chunk.next = self._merged(reducer, chunk.carried, sums)
            return chunk.carried

        initial = reducer.initial() * self.kernel.vectors
        totals = nest(k, [self.source], [start], self.kernel.kept, inner, row, initial)
        states = self._each(totals, self.kernel.vectors)
        while len(states) > 1:
            joined = [reducer.merge(a, c) for a, c in zip(states[::2], states[1::2], strict=False)]
            states = joined + states[len(joined) * 2 :]
        return reducer.horizontal(states[0])

    def _down_rows(self, start: Any, inner: Any, spans: list[Span]) -> list[ir.Value]:
        """The states of some vectors of results, vectors along a kept axis."""
        k = self.k
        reducer = self.reducer

        def add(place: Any, states: list[ir.Value], row: Any) -> list[ir.Value]:
            new: list[ir.Value] = []
            index = self._positions(row, reducer.lanes, moving=False)
            for span, state in zip(spans, self._each(states, len(spans)), strict=True):
                x = self._load(place, span)
                new += self._step(reducer, state, x, index, None)
            return new

        axis = self.kernel.kept + self.kernel.reduced - 1

        def rows(places: Sequence[Any], totals: list[ir.Value]) -> list[ir.Value]:
            with k.loop(0, inner[-1], _ROWS, totals) as chunk:
                end = k.min(k.add(chunk.index, _ROWS), inner[-1])
                fresh = reducer.initial() * len(spans)
                with k.loop(chunk.index, end, carried=fresh) as row:
                    here = self.source.move(
                        places[0], self.kernel.kept + self.kernel.reduced - 1, row.index
                    )
                    row.next = add(here, row.carried, row.index)
                chunk.next = self._merged(reducer, chunk.carried, row.carried)
            return chunk.carried

        initial = reducer.initial() * len(spans)
        if not self.kernel.reduced:
            return add(start, initial, k.i64(0))
        return nest(k, [self.source], [start], self.kernel.kept, inner[:-1], rows, initial)

    # ---- pieces -----------------------------------------------------------------------------

    def _load(self, place: Any, span: Span) -> ir.Value:
        k = self.k
        leaves = self.source.load(place, span)
        return emit(k, self.kernel.prologue, leaves, span.lanes)[0]

    def _step(
        self, reducer: Reducer, state: Any, x: ir.Value, index: Any, mask: Any
    ) -> list[ir.Value]:
        k = self.k
        if self.kernel.stage != "joined":
            return reducer.step(state, x, index, mask)
        merged = reducer.merge(state, [x])
        if mask is None:
            return merged
        return [k.b.select(mask, new, old) for new, old in zip(merged, state, strict=True)]

    def _each(self, states: Sequence[ir.Value], count: int) -> list[list[ir.Value]]:
        size = len(states) // count
        return [list(states[i * size : (i + 1) * size]) for i in range(count)]

    def _merged(self, reducer: Reducer, a: Sequence[Any], c: Sequence[Any]) -> list[ir.Value]:
        size = len(reducer.initial())
        count = len(a) // size
        pairs = zip(self._each(a, count), self._each(c, count), strict=True)
        return [value for x, y in pairs for value in reducer.merge(x, y)]

    def _positions(self, start: int | ir.Value, lanes: int, moving: bool) -> ir.Value | None:
        """The positions of a vector's elements along the reduced axis, for arg max."""
        k = self.k
        if self.kernel.index_dtype is None:
            return None
        first = k.splat(k.b.trunc(k.i64(start), I32), lanes)
        if not moving:
            return first
        steps = ir.Constant(ir.VectorType(I32, lanes), [I32(lane) for lane in range(lanes)])
        return k.b.add(first, steps)

    def _finish(self, reducer: Reducer, state: Sequence[ir.Value], places: Any, span: Span) -> None:
        """The result of a state, through the epilogue, to memory."""
        k, kernel = self.k, self.kernel
        read, written = places
        if kernel.stage == "blocks":
            self.writes.store(written, span, [state[0]])
            return
        result = reducer.finish(state, self.count)
        if kernel.index_dtype is not None:
            target = register_type(kernel.index_dtype, span.lanes)
            if result.type != target:
                result = k.b.trunc(result, target)
        loaded = self.reads.load(read, span)
        results = apply(k, kernel.epilogue, loaded, [result], kernel.operands, span.lanes)
        self.writes.store(written, span, results)
