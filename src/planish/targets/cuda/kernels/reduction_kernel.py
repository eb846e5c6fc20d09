"""The kernels of reductions and running sums.

A program has some rows. It takes so many elements of each at a time, combines them lane by lane,
and combines the lanes at the end; so results do not depend on anything but the tile. Whether the
elements of a row are neighbours or those of different rows only changes which way a warp reads.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import compute_type, constant
from planish.targets.cuda.codegen.literals import HALVES, limits
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import Work, apply, finish, whole_mask
from planish.targets.cuda.kernels.nest import COLUMNS, ROWS, Tile, across, lanes, spread

_NOWHERE = (1 << 31) - 1
"""The position of the best element before there is one."""


def wide_dtype(reduction: str, dtype: DType) -> DType:
    """The dtype in which a reduction is computed, and kept where it is split."""
    if dtype in HALVES:
        return DType.FLOAT32
    if dtype.is_float:
        return dtype
    if reduction == "mean":
        return DType.INT64
    return dtype if dtype.size >= 4 else DType.INT32


@dataclass(frozen=True)
class Reducer:
    """How elements are combined, as text.

    Attributes
    ----------
    reduction : str
        "sum", "mean", "prod", "max", "min", "any", "all", "argmax" or "argmin".
    dtype : DType
        Of the elements.
    last : bool
        Whether of equal elements the last is taken.
    """

    reduction: str
    dtype: DType
    last: bool = False

    @property
    def wide(self) -> DType:
        """The dtype of the state."""
        return wide_dtype(self.reduction, self.dtype)

    @property
    def is_search(self) -> bool:
        """Whether the position of an element is asked for."""
        return self.reduction.startswith("arg")

    @property
    def _largest(self) -> bool:
        return self.reduction.endswith("max") or self.reduction == "any"

    @property
    def neutral(self) -> str:
        """What changes nothing."""
        if self.reduction in ("sum", "mean"):
            return constant(0, self.wide)
        if self.reduction == "prod":
            return constant(1, self.wide)
        if self.reduction in ("any", "all"):
            return constant(int(self.reduction == "all"), self.wide)
        if self.wide.is_float:
            return constant(-np.inf if self._largest else np.inf, self.wide)
        low, high = limits(self.wide)
        return constant(low if self._largest else high, self.wide)

    def start(self, k: Source, shape: str) -> list[str]:
        """The state before any element."""
        best = k.let("state", f"tl.broadcast_to({self.neutral}, {shape})")
        if not self.is_search:
            return [best]
        return [best, k.let("where", f"tl.full({shape}, {_NOWHERE}, tl.int32)")]

    def step(self, k: Source, state: list[str], x: str, mask: str, place: str) -> None:
        """Takes elements into the state; `place` is where they stand in their rows."""
        x = k.let("x", f"{x}.to({compute_type(self.wide)})")
        best = state[0]
        if not self.is_search:
            x = k.let("x", f"tl.where({mask}, {x}, {self.neutral})")
            k.line(f"{best} = {self._combined(best, x)}")
            return
        where = state[1]
        sign = (">" if self._largest else "<") + ("=" if self.last else "")
        better = f"({x} {sign} {best})"
        if self.wide.is_float:
            better += f" | ({x} != {x})" + ("" if self.last else f" & ({best} == {best})")
        better = k.let("better", f"({mask}) & (({where} == {_NOWHERE}) | ({better}))")
        k.line(f"{best} = tl.where({better}, {x}, {best})")
        k.line(f"{where} = tl.where({better}, {place}, {where})")

    def join(self, k: Source, state: list[str]) -> list[str]:
        """The state of whole rows."""
        if not self.is_search:
            return [self._joined(k, state[0])]
        best, where = state
        known = k.let("known", f"{where} != {_NOWHERE}")
        first = k.let("known", f"tl.where({known}, {best}, {self.neutral})")
        top = self._joined(k, first)
        equal = f"({best} == {top})"
        if self.wide.is_float:
            equal += f" | (({best} != {best}) & ({top} != {top}))"
        found = k.let("found", f"{known} & ({equal})")
        other = -1 if self.last else _NOWHERE
        pick = "max" if self.last else "min"
        place = k.let("where", f"tl.where({found}, {where}, {other})")
        return [top, k.let("where", across(place, pick))]

    def conclude(self, k: Source, state: list[str], count: int) -> str:
        """The result, from the state of whole rows of `count` elements."""
        if self.is_search:
            return state[1]
        total = state[0]
        if self.reduction == "mean":
            if self.wide is DType.FLOAT32:
                number = f"tl.full({total}.shape, {float(count)!r}, tl.float32)"
                total = k.let("mean", f"tl.div_rn({total}, {number})")
            elif self.wide.is_float:
                total = k.let("mean", f"{total} / {constant(count, self.wide)}")
            else:  # towards zero
                quotient = k.let("mean", f"tl.abs({total}) // {count}")
                total = k.let("mean", f"tl.where({total} < 0, -{quotient}, {quotient})")
        if self.dtype is DType.BOOL:
            return k.let("result", f"{total} != 0")
        return k.let("result", f"{total}.to({compute_type(self.dtype)})")

    def _combined(self, a: str, b: str) -> str:
        if self.reduction in ("sum", "mean"):
            return f"{a} + {b}"
        if self.reduction == "prod":
            return f"{a} * {b}"
        nan = ", propagate_nan=tl.PropagateNan.ALL" if self.wide.is_float else ""
        return f"tl.{'maximum' if self._largest else 'minimum'}({a}, {b}{nan})"

    def _joined(self, k: Source, state: str) -> str:
        """The lanes of a state combined."""
        if self.reduction in ("sum", "mean"):
            return k.let("total", across(state, "sum"))
        if self.reduction == "prod":
            return k.let("total", across(state, "prod"))
        pick = "max" if self._largest else "min"
        if not self.wide.is_float:
            return k.let("top", across(state, pick))
        # the hardware's maximum loses NaN
        lost = k.let("lost", f"{state} != {state}")
        clean = k.let("clean", f"tl.where({lost}, {self.neutral}, {state})")
        top = k.let("top", across(clean, pick))
        lost = k.let("lost", across(f"{lost}.to(tl.int32)", "max"))
        return k.let("top", f"tl.where({lost} > 0, {constant(np.nan, self.wide)}, {top})")


@dataclass(frozen=True)
class ReductionKernel(TritonKernel):
    """A program reduces some rows, or one chunk of some rows.

    Attributes
    ----------
    reducer : Reducer
    kept, reduced : tuple of int
        The axes that tell rows apart, the first -1, and those inside a row.
    even : bool
        Whether there is always a multiple of 16 rows.
    block : (int, int)
        Rows, and elements of a row at a time.
    chunk : int
        Elements of a row that a program reduces.
    stage : str
        "whole"; or "partial", which writes the states of chunks to the workspace as
        ``[rows, chunks]``, and "joined", which reads them.
    before, after : Work
        Over the axes of rows, then those inside a row.

    Parameter: the rows.
    """

    family = "reduction"

    reducer: Reducer
    kept: tuple[int, ...]
    even: bool
    reduced: tuple[int, ...]
    block: tuple[int, int]
    chunk: int
    stage: str
    before: Work
    after: Work

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        states = [Pointer(self.reducer.wide)]
        if self.reducer.is_search:
            states.append(Pointer(DType.INT32))
        first = states if self.stage == "joined" else self.before.pointers
        return (*first, *(states if self.stage == "partial" else self.after.pointers))

    @property
    def params(self) -> tuple[bool, ...]:
        return (self.even,)

    def write(self, k: Source) -> None:
        rows, columns = self.block
        count = math.prod(self.reduced)
        chunks = -(-count // self.chunk)
        task, part = k.let("task", "tl.program_id(0)"), "0"
        if self.stage == "partial":
            part, task = k.let("part", f"{task} % {chunks}"), k.let("task", f"{task} // {chunks}")
        row = lanes(k, f"{task} * {rows}", rows, ROWS)
        exists = k.let("exists", f"{row} < n0")
        kept = spread(k, row, self.kept, exists)
        state = self.reducer.start(k, f"({rows}, {columns})")
        begin, end = "0", str(chunks if self.stage == "joined" else count)
        if self.stage == "partial":
            begin = k.let("begin", f"{part} * {self.chunk}")
            end = k.let("end", f"tl.minimum({begin} + {self.chunk}, {end})")
        if self.stage == "joined":
            with k.block(f"for start in range(0, {end}, {columns}):"):
                self._join_states(k, state, row, exists, chunks)
        elif self.chunk <= columns:
            self._take(k, state, kept, begin, end)
        else:
            with k.block(f"for start in range({begin}, {end}, {columns}):"):
                self._take(k, state, kept, "start", end)
        state = self.reducer.join(k, state)
        if self.stage == "partial":
            for number, value in enumerate(state):
                place = f"p{len(self.before.pointers) + number} + {row} * {chunks} + {part}"
                k.line(f"tl.store({place}, {value}, mask={exists})")
            return
        result = self.reducer.conclude(k, state, count)
        first = len(self.pointers) - len(self.after.pointers)
        inner = len(self.reduced)
        tile = kept + Tile(("0",) * inner, (None,) * inner)
        finish(k, self.after, first, tile.index, tile.masks, [result])

    def _take(self, k: Source, state: list[str], kept: Tile, start: str, end: str) -> None:
        """Takes the elements from `start` on into the state."""
        column = lanes(k, start, self.block[1], COLUMNS)
        count, columns = math.prod(self.reduced), self.block[1]
        even = count % columns == 0 and (self.stage == "whole" or self._is_even)
        # without a mask there is none that the compiler cannot see through
        inside = None if even else k.let("inside", f"{column} < {end}")
        tile = kept + spread(k, column, self.reduced, inside)
        (x,) = apply(k, self.before, 0, tile.index, tile.masks)
        self.reducer.step(k, state, x, whole_mask(tile.masks) or "True", column)

    @property
    def _is_even(self) -> bool:
        """Whether all chunks are whole blocks."""
        return math.prod(self.reduced) % self.chunk == 0 and self.chunk % self.block[1] == 0

    def _join_states(self, k: Source, state: list[str], row: str, exists: str, chunks: int) -> None:
        """Takes the states of chunks into the state."""
        column = lanes(k, "start", self.block[1], COLUMNS)
        mask = k.let("inside", f"({column} < {chunks}) & {exists}")
        place = f"{row} * {chunks} + {column}"
        x = k.let("x", f"tl.load(p0 + {place}, mask={mask}, other=0)")
        if self.reducer.is_search:
            column = k.let("where", f"tl.load(p1 + {place}, mask={mask}, other=0)")
        self.reducer.step(k, state, x, mask, column)


@dataclass(frozen=True)
class RunningSumKernel(TritonKernel):
    """A program sums up some rows, so many elements at a time.

    Attributes
    ----------
    dtype : DType
    exclusive, reverse : bool
        As in `planish.ops.reduce.CumSum`.
    kept, length : tuple of int, int
        The axes that tell rows apart, the first -1, and how long a row is.
    even : bool
        Whether there is always a multiple of 16 rows.
    block : (int, int)
    before, after : Work

    Parameter: the rows.
    """

    family = "running_sum"

    dtype: DType
    exclusive: bool
    reverse: bool
    kept: tuple[int, ...]
    even: bool
    length: int
    block: tuple[int, int]
    before: Work
    after: Work

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return (*self.before.pointers, *self.after.pointers)

    @property
    def params(self) -> tuple[bool, ...]:
        return (self.even,)

    def write(self, k: Source) -> None:
        rows, columns = self.block
        row = lanes(k, f"tl.program_id(0) * {rows}", rows, ROWS)
        kept = spread(k, row, self.kept, k.let("exists", f"{row} < n0"))
        if self.length <= columns:
            self._part(k, kept, "0", None)
            return
        wide = compute_type(wide_dtype("sum", self.dtype))
        carry = k.let("carry", f"tl.full(({rows}, 1), 0, {wide})")
        with k.block(f"for start in range(0, {self.length}, {columns}):"):
            self._part(k, kept, "start", carry)

    def _part(self, k: Source, kept: Tile, start: str, carry: str | None) -> None:
        step = lanes(k, start, self.block[1], COLUMNS)
        inside = k.let("inside", f"{step} < {self.length}")
        # what is summed up to an element: in an exclusive sum, up to the one before
        read, valid = step, inside
        if self.exclusive:
            read = k.let("read", f"{step} - 1")
            valid = k.let("valid", f"{inside} & ({read} >= 0)")
        source = kept + Tile((self._place(k, read),), (valid,))
        (x,) = apply(k, self.before, 0, source.index, source.masks)
        wide = compute_type(wide_dtype("sum", self.dtype))
        zero = f"tl.full({list(self.block)}, 0, {wide})"
        x = k.let("x", f"tl.where({whole_mask(source.masks)}, {x}.to({wide}), {zero})")
        total = k.let("total", f"tl.associative_scan({x}, 1, tl.standard._sum_combine)")
        if carry is not None:
            total = k.let("total", f"{total} + {carry}")
            k.line(f"{carry} = {carry} + {across(x, 'sum')}")
        result = k.let("result", f"{total}.to({compute_type(self.dtype)})")
        tile = kept + Tile((self._place(k, step),), (inside,))
        finish(k, self.after, len(self.before.pointers), tile.index, tile.masks, [result])

    def _place(self, k: Source, step: str) -> str:
        return k.let("place", f"{self.length - 1} - {step}") if self.reverse else step
