"""Goes over the elements of one result (or of a vector of results) of a reduction.

There are two ways. Along a reduced vector axis, several accumulators take turns and their lanes are
joined at the end: one result. Along a kept vector axis every lane is a result of its own, and rows
are taken one after the other. Either way accumulators start afresh every few thousand elements and
are then added up, so that long sums stay accurate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import llvmlite.ir as ir

from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.kernels.fused import Span, for_spans
from planish.targets.cpu.kernels.reducers import Reducer

_CHUNK = 4096
"""Elements along a reduced vector axis after which accumulators start afresh."""
_ROWS = 256
"""Rows after which accumulators along a kept vector axis start afresh."""

State = list[ir.Value]
Place = list["ir.Value | None"]
Visit = Callable[[Sequence[Place], list[Span]], None]
"""What is done at some spans of a row: gets the movables' places."""
Step = Callable[[Sequence[Place], list[Span], list[State], Any], list[State]]
"""Takes elements into the states of some spans; the last argument is the row's number."""


class Movable(Protocol):
    """What has places that move along axes, as `Operands` have."""

    def move(self, places: Place, axis: int, by: int | ir.Value) -> Place: ...


class Scratch:
    """A thread's scratch memory, seen as dense along some axes.

    Parameters
    ----------
    k : KernelBuilder
    dtype : DType
        Of its elements.
    strides : mapping
        For each axis, the elements from one position to the next.
    """

    def __init__(self, k: KernelBuilder, dtype: Any, strides: dict[int, Any]) -> None:
        self.k, self.dtype, self.strides = k, dtype, strides

    def start(self) -> Place:
        """The place of the first element."""
        return [self.k.scratch]

    def move(self, places: Place, axis: int, by: int | ir.Value) -> Place:
        step = self.k.mul(self.strides[axis], by)
        return [self.k.offset(places[0], step, self.dtype)]


def nest(
    k: KernelBuilder,
    movables: Sequence[Movable],
    places: Sequence[Place],
    axis: int,
    extents: Sequence[int | ir.Value],
    body: Callable[[Sequence[Place], State], Sequence[ir.Value] | None],
    carried: Sequence[ir.Value] = (),
) -> State:
    """Loops over axes from `axis` on, moving the places; carried values go through."""
    if not extents:
        return list(body(places, list(carried)) or ())
    with k.loop(0, extents[0], carried=carried) as loop:
        here = [m.move(p, axis, loop.index) for m, p in zip(movables, places, strict=True)]
        loop.next = nest(k, movables, here, axis + 1, extents[1:], body, loop.carried)
    return loop.carried


class Sweep:
    """The loops over one result's elements.

    Parameters
    ----------
    k : KernelBuilder
    axis : int
        The number of the first row axis; the others follow.
    inner : sequence
        The extents of the row axes that are loops.
    extent : llvmlite.ir.Value or None
        The extent of the vector axis if it is reduced; None if it is kept.
    lanes, vectors : int
        Vectors at a time along a reduced vector axis.
    """

    def __init__(
        self,
        k: KernelBuilder,
        axis: int,
        inner: Sequence[int | ir.Value],
        extent: ir.Value | None,
        lanes: int,
        vectors: int,
    ) -> None:
        self.k, self.axis, self.inner, self.extent = k, axis, list(inner), extent
        self.lanes, self.vectors = lanes, vectors

    def visit(
        self,
        movables: Sequence[Movable],
        places: Sequence[Place],
        spans: list[Span] | None,
        body: Visit,
    ) -> None:
        """Goes over all elements; `spans` are those of a kept vector axis."""

        def row(here: Sequence[Place], _: State) -> None:
            if spans is not None:
                body(here, spans)
                return
            assert self.extent is not None
            for_spans(
                self.k,
                0,
                self.extent,
                self.lanes,
                lambda found, _: body(here, found),
                vectors=self.vectors,
            )

        nest(self.k, movables, places, self.axis, self.inner, row)

    def reduce(
        self,
        reducer: Reducer,
        movables: Sequence[Movable],
        places: Sequence[Place],
        spans: list[Span] | None,
        step: Step,
    ) -> list[State]:
        """The states of all elements: of each span of a kept vector axis, or one of scalars."""
        if spans is not None:
            return self._down_rows(reducer, movables, places, spans, step)
        return [self._along_vectors(reducer, movables, places, step)]

    def _along_vectors(
        self, reducer: Reducer, movables: Sequence[Movable], places: Sequence[Place], step: Step
    ) -> State:
        k, extent, vectors = self.k, self.extent, self.vectors
        assert extent is not None

        def row(here: Sequence[Place], totals: State) -> State:
            with k.loop(0, extent, _CHUNK, totals) as chunk:
                end = k.min(k.add(chunk.index, _CHUNK), extent)

                def take(spans: list[Span], values: State) -> State:
                    return _flat(step(here, spans, _each(values, len(spans)), None))

                sums = for_spans(
                    k,
                    chunk.index,
                    end,
                    self.lanes,
                    take,
                    vectors=vectors,
                    carried=reducer.initial() * vectors,
                )
                chunk.next = _merged(reducer, chunk.carried, sums, vectors)
            return chunk.carried

        initial = reducer.initial() * vectors
        states = _each(nest(k, movables, places, self.axis, self.inner, row, initial), vectors)
        while len(states) > 1:
            joined = [reducer.merge(a, c) for a, c in zip(states[::2], states[1::2], strict=False)]
            states = joined + states[len(joined) * 2 :]
        return reducer.horizontal(states[0])

    def _down_rows(
        self,
        reducer: Reducer,
        movables: Sequence[Movable],
        places: Sequence[Place],
        spans: list[Span],
        step: Step,
    ) -> list[State]:
        k, count = self.k, len(spans)
        initial = reducer.initial() * count
        if not self.inner:
            return step(places, spans, _each(initial, count), k.i64(0))
        last = self.axis + len(self.inner) - 1

        def rows(here: Sequence[Place], totals: State) -> State:
            with k.loop(0, self.inner[-1], _ROWS, totals) as chunk:
                end = k.min(k.add(chunk.index, _ROWS), self.inner[-1])
                with k.loop(chunk.index, end, carried=reducer.initial() * count) as row:
                    at = [m.move(p, last, row.index) for m, p in zip(movables, here, strict=True)]
                    row.next = _flat(step(at, spans, _each(row.carried, count), row.index))
                chunk.next = _merged(reducer, chunk.carried, row.carried, count)
            return chunk.carried

        return _each(nest(k, movables, places, self.axis, self.inner[:-1], rows, initial), count)


def _each(values: Sequence[ir.Value], count: int) -> list[State]:
    size = len(values) // count
    return [list(values[i * size : (i + 1) * size]) for i in range(count)]


def _flat(states: Sequence[State]) -> State:
    return [value for state in states for value in state]


def _merged(reducer: Reducer, a: State, c: State, count: int) -> State:
    pairs = zip(_each(a, count), _each(c, count), strict=True)
    return [value for x, y in pairs for value in reducer.merge(x, y)]
