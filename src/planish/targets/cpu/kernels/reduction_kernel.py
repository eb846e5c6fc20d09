"""The reduction kernel: vectors along a reduced axis, or along a kept one (see `sweep`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.codegen.types import I32, register_type
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.axes import unravel
from planish.targets.cpu.kernels.fused import Accesses, Operands, Span, apply, for_spans
from planish.targets.cpu.kernels.reducers import Reducer, make_reducer, wide_dtype
from planish.targets.cpu.kernels.sweep import State, Sweep

COLUMNS = 64
"""Elements of a kept vector axis that a task takes."""


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
            lanes = self.reducer.lanes
            sweep = Sweep(
                k,
                kernel.kept,
                extents[kernel.kept : -1],
                extents[-1] if kernel.vector_reduced else None,
                lanes,
                kernel.vectors,
            )
            start = [self.source.at(place)]
            places = self.reads.at(place), self.writes.at(place)
            if kernel.vector_reduced:
                (state,) = sweep.reduce(self.reducer, [self.source], start, None, self._step)
                self._finish(self.reducer.single(), state, places, Span(0, 1))
            else:
                self._columns(sweep, start, first, places)

    def _columns(self, sweep: Sweep, start: Any, first: Any, places: Any) -> None:
        """The results of a task along a kept vector axis."""
        lanes = self.reducer.lanes

        def columns(spans: list[Span], _: Any) -> None:
            states = sweep.reduce(self.reducer, [self.source], start, spans, self._step)
            for span, state in zip(spans, states, strict=True):
                self._finish(self.reducer, state, places, span)

        last = self.k.min(self.k.add(first, COLUMNS), self.extents[-1])
        vectors = max(1, min(self.kernel.vectors, COLUMNS // lanes))
        for_spans(self.k, first, last, lanes, columns, vectors=vectors)

    def _step(
        self, places: Sequence[Any], spans: list[Span], states: list[State], row: Any
    ) -> list[State]:
        """Takes the elements at some spans into the states."""
        k, kernel, reducer = self.k, self.kernel, self.reducer
        new = []
        for span, state in zip(spans, states, strict=True):
            leaves = self.source.load(places[0], span)
            (x,) = emit(k, kernel.prologue, leaves, span.lanes)
            # lanes of a kept axis that do not exist may hold anything
            mask = span.mask if kernel.vector_reduced else None
            if kernel.stage != "joined":
                new.append(reducer.step(state, x, self._positions(span, row), mask))
                continue
            merged = reducer.merge(state, [x])
            if mask is not None:
                merged = [k.b.select(mask, a, c) for a, c in zip(merged, state, strict=True)]
            new.append(merged)
        return new

    def _positions(self, span: Span, row: Any) -> ir.Value | None:
        """The positions of a vector's elements along the reduced axis, for arg max."""
        k = self.k
        if self.kernel.index_dtype is None:
            return None
        if not self.kernel.vector_reduced:
            return k.splat(k.b.trunc(row, I32), span.lanes)
        first = k.splat(k.b.trunc(k.i64(span.start), I32), span.lanes)
        vector = ir.VectorType(I32, span.lanes)
        return k.b.add(first, ir.Constant(vector, [I32(lane) for lane in range(span.lanes)]))

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
