"""The plain kernel of products and convolutions: every dtype, grouping, dimension and layout.

A program computes `rows` x `columns` of the result. One loop runs over the places of the window
and the depth; the left factor's elements are addressed by their coordinates, so that padding is a
mask and elementwise work on them needs no copy. A transposed convolution of stride s is s ordinary
ones for each dimension, interleaved: a program computes positions of one phase, which are reached
by the same places of the window.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import compute_type, storage_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import Access, Work, apply, decompose, finish, load, offset


@dataclass(frozen=True)
class SpatialAxis:
    """A spatial dimension of a convolution, transposed or not.

    Position ``q * phases + p`` of the output sees element ``q * step + shift[p] + j * move`` of
    the input by place ``first[p] + j * skip`` of the window, for j from 0 to ``count[p] - 1``.

    Attributes
    ----------
    extent, size : int
        Of the input and of the output.
    phases, step, move, skip : int
    shift, first, count : tuple of int
        One for each phase.
    """

    extent: int
    size: int
    phases: int
    step: int
    move: int
    skip: int
    shift: tuple[int, ...]
    first: tuple[int, ...]
    count: tuple[int, ...]

    @property
    def positions(self) -> int:
        """Positions of a phase, the longest one."""
        return -(-self.size // self.phases)


def ordinary_axis(
    extent: int, size: int, window: int, stride: int, dilation: int, before: int
) -> SpatialAxis:
    """A dimension of an ordinary convolution."""
    return SpatialAxis(extent, size, 1, stride, dilation, 1, (-before,), (0,), (window,))


def transposed_axis(
    extent: int, size: int, window: int, stride: int, dilation: int, before: int
) -> SpatialAxis:
    """A dimension of a transposed convolution; see `planish.ops.conv.ConvTranspose`."""
    skip = stride // math.gcd(stride, dilation)
    shift, first, count = [], [], []
    for phase in range(stride):
        # elements i with i * stride = position + before - tap * dilation
        taps = [t for t in range(window) if (phase + before - t * dilation) % stride == 0]
        first.append(taps[0] if taps else 0)
        count.append(len(taps))
        shift.append((phase + before - first[-1] * dilation) // stride)
    move = -skip * dilation // stride
    return SpatialAxis(
        extent, size, stride, 1, move, skip, tuple(shift), tuple(first), tuple(count)
    )


@dataclass(frozen=True)
class ContractionKernel(TritonKernel):
    """One specialisation. Parameter: the rows of all images or matrices together.

    Attributes
    ----------
    reads : Work
        The left factor, one axis for each of its own.
    right : Access
        Strides along the outer axes or the places of the window, the depth, and the columns.
    zeros : tuple of Access or None
        What is subtracted of each factor, along the result's axes.
    work : Work
        The epilogue, one axis for each of the result's own.
    axes : tuple of SpatialAxis
        None for matrix products.
    outer : int
        How many leading axes of a matrix product each have a right matrix of their own.
    transposed : bool
        Whether the left matrix has its depth before its rows.
    groups, depth, filters : int
        Groups, and what each of them reads and gives.
    dtype, result : DType
        Of the left factor as it is multiplied, and of the sums.
    rows, columns, unroll : int
    dot : bool
        Whether tensor cores multiply blocks of `unroll` of depth.
    """

    family = "contraction"

    reads: Work
    right: Access
    zeros: tuple[Access | None, Access | None]
    work: Work
    axes: tuple[SpatialAxis, ...]
    outer: int
    transposed: bool
    groups: int
    depth: int
    filters: int
    dtype: DType
    result: DType
    rows: int
    columns: int
    unroll: int
    dot: bool

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        zeros = (z.pointer for z in self.zeros if z is not None)
        return (*self.reads.pointers, self.right.pointer, *zeros, *self.work.pointers)

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    @property
    def accumulator(self) -> str:
        """The type of sums."""
        if self.result.is_float:
            return compute_type(self.result)
        return "tl.int64" if self.result.size == 8 else "tl.int32"

    @property
    def splits_groups(self) -> bool:
        """Whether a program works on one group, not on columns of several."""
        return self.groups > 1 and spans_groups(self.groups, self.filters) is False

    def write(self, k: Source) -> None:
        rest = k.let("program", "tl.program_id(0)")

        def take(count: int, hint: str) -> str:
            nonlocal rest
            if count == 1:
                return "0"
            part = k.let(hint, f"{rest} % {count}")
            rest = k.let("rest", f"{rest} // {count}")
            return part

        wanted = self.filters if self.splits_groups else self.filters * self.groups
        block = take(-(-wanted // self.columns), "block")
        group = take(self.groups, "group") if self.splits_groups else "0"
        phases = [take(axis.phases, "phase") for axis in self.axes]
        shape = self.work.shape  # of the result: images or matrices, positions, columns
        matrix = shape[-2]
        if self.outer:
            part = take(-(-matrix // self.rows), "part")
            outer = decompose(k, rest, shape[: self.outer], "outer")
            limit = str(matrix)
        else:
            part, outer, limit = rest, [], "n0"
        row = k.let("row", f"({part} * {self.rows} + tl.arange(0, {self.rows}))[:, None]")
        exists: str | None = None
        if not self.outer or matrix % self.rows:
            exists = k.let("exists", f"{row} < {limit}")
            row = k.let("row", f"tl.minimum({row}, {limit} - 1)")  # reads need no mask then
        column = k.let("own", f"({block} * {self.columns} + tl.arange(0, {self.columns}))[None, :]")
        inside = None
        if wanted % self.columns:
            inside = k.let("inside", f"{column} < {wanted}")
            column = k.let("own", f"tl.minimum({column}, {wanted - 1})")
        if self.splits_groups:
            column = k.let("column", f"{group} * {self.filters} + {column}")
        elif self.groups > 1:
            group = k.let("group", f"{column} // {self.filters}")
        if self.axes:
            image, *grid = decompose(k, row, (-1, *(a.positions for a in self.axes)))
            index = [image]
            masks: list[str | None] = [exists]
            for axis, phase, q in zip(self.axes, phases, grid, strict=True):
                place = q if axis.phases == 1 else k.let("out", f"{q} * {axis.phases} + {phase}")
                index.append(place)
                uneven = axis.size % axis.phases
                masks.append(k.let("is_out", f"{place} < {axis.size}") if uneven else None)
        else:
            grid, image = [], ""
            index = [*outer, *decompose(k, row, (-1, *shape[self.outer + 1 : -1]))]
            masks = [exists] * len(index)
        index.append(column)
        masks.append(inside)
        zeros = self._load_zeros(k, index)
        total = k.let("total", f"tl.full(({self.rows}, {self.columns}), 0, {self.accumulator})")
        self._accumulate(k, total, index, (image, grid, phases, group), zeros)
        value = k.let("sum", f"{total}.to({compute_type(self.result)})")
        first = len(self.pointers) - len(self.work.pointers)
        finish(k, self.work, first, index, masks, [value])

    def _load_zeros(self, k: Source, index: Sequence[str]) -> list[str | None]:
        pointer = len(self.reads.pointers) + 1
        found: list[str | None] = []
        for item in self.zeros:
            if item is None:
                found.append(None)
                continue
            value = load(k, pointer, item, index, None, "zero")
            found.append(k.let("zero", f"{value}.to({self.accumulator})"))
            pointer += 1
        return found

    def _accumulate(
        self,
        k: Source,
        total: str,
        index: Sequence[str],
        place: tuple[str, Sequence[str], Sequence[str], str],
        zeros: Sequence[str | None],
    ) -> None:
        """The loop over the places of the window and the depth."""
        image, grid, phases, group = place
        blocks = -(-self.depth // self.unroll)
        counts, firsts, starts = [], [], []
        for axis, phase, q in zip(self.axes, phases, grid, strict=True):
            counts.append(_chosen(k, phase, axis.count))
            firsts.append(_chosen(k, phase, axis.first))
            shift = _chosen(k, phase, axis.shift)
            starts.append(k.let("start", f"{q} * {axis.step} + {shift}"))
        turns = " * ".join([*counts, str(blocks)])
        if turns.replace(" ", "").replace("1*", "") == "1":
            turns = "1"
        step = k.name("step")
        with k.block(f"for {step} in range({turns}):"):
            rest, first = step, "0"
            if blocks > 1:
                first = k.let("first", f"{rest} % {blocks} * {self.unroll}")
                rest = k.let("rest", f"{rest} // {blocks}")
            taps, at, masks = [], [], []
            for number in reversed(range(len(self.axes))):
                axis = self.axes[number]
                j = k.let("j", f"{rest} % {counts[number]}") if number else rest
                if number:
                    rest = k.let("rest", f"{rest} // {counts[number]}")
                where = k.let("at", f"{starts[number]} + {j} * {axis.move}")
                taps.insert(0, k.let("tap", f"{firsts[number]} + {j} * {axis.skip}"))
                at.insert(0, where)
                if _leaves(axis):
                    masks.append(k.let("is_in", f"({where} >= 0) & ({where} < {axis.extent})"))
            column = index[-1]

            def operands(depth: str) -> tuple[list[str], list[str]]:
                """Where the factors lie at a depth."""
                if self.axes:
                    own = depth if self.groups == 1 else f"({group} * {self.depth} + {depth})"
                    return [image, *at, own], [*taps, depth, column]
                *outer, row = index[:-1]
                left = [*outer, depth, row] if self.transposed else [*outer, row, depth]
                rank = len(self.reads.shape)
                return left[len(left) - rank :], [*index[: self.outer], depth, column]

            mask = " & ".join(masks) or None
            (self._dot if self.dot else self._multiply)(k, total, operands, first, mask, zeros)

    def _multiply(self, k, total, operands, first, mask, zeros) -> None:  # type: ignore[no-untyped-def]
        """Adds products one depth after the other."""
        left_zero, right_zero = zeros
        uneven = self.depth % self.unroll
        for number in range(self.unroll):
            depth = k.let("depth", f"{first} + {number}")
            exists = k.let("is_deep", f"{depth} < {self.depth}") if uneven else None
            left, right = operands(depth)
            x = self._left(k, left, mask, exists, left_zero)
            place = f"p{len(self.reads.pointers)} + {offset(self.right, right)}"
            masked = f", mask={exists}, other=0" if exists else ""
            w = k.let("w", f"tl.load({place}{masked}).to({self.accumulator})")
            if right_zero is not None:
                w = k.let("w", f"{w} - {right_zero}")
            k.line(f"{total} += {x} * {w}")

    def _left(
        self, k: Source, index: Sequence[str], mask: str | None, deep: str | None, zero: str | None
    ) -> str:
        """Elements of the left factor, 0 where there are none."""
        both = " & ".join(m for m in (mask, deep) if m) or None
        (x,) = apply(k, self.reads, 0, index, both)
        x = k.let("x", f"{x}.to({self.accumulator})")
        if zero is not None:
            x = k.let("x", f"{x} - {zero}")
        if both is not None and (zero is not None or not self.reads.expression.is_copy):
            x = k.let("x", f"tl.where({both}, {x}, 0)")
        return x

    def _dot(self, k, total, operands, first, mask, zeros) -> None:  # type: ignore[no-untyped-def]
        """Adds the product of two blocks."""
        lanes = k.let("lanes", f"{first} + tl.arange(0, {self.unroll})")
        uneven = self.depth % self.unroll
        deep = k.let("is_deep", f"{lanes} < {self.depth}") if uneven else None
        left, _ = operands(f"{lanes}[None, :]")
        _, right = operands(f"{lanes}[:, None]")
        both = " & ".join(m for m in (mask, deep and f"{deep}[None, :]") if m) or None
        (x,) = apply(k, self.reads, 0, left, both)
        if both is not None and not self.reads.expression.is_copy:
            x = k.let("x", f"tl.where({both}, {x}, 0)")
        x = k.let("x", f"{x}.to({storage_type(self.dtype)})")
        place = f"p{len(self.reads.pointers)} + {offset(self.right, right)}"
        masked = f", mask={deep}[:, None], other=0" if deep else ""
        w = k.let("w", f"tl.load({place}{masked})")
        kind = ', input_precision="ieee"' if self.dtype is DType.FLOAT32 else ""
        out = f", out_dtype={self.accumulator}" if not self.result.is_float else ""
        k.line(f"{total} = tl.dot({x}, {w}, {total}{kind}{out})")


def spans_groups(groups: int, filters: int) -> bool:
    """Whether columns run over several groups: where one has too few."""
    return groups > 1 and filters < 16


def _chosen(k: Source, phase: str, values: Sequence[int]) -> str:
    """The number of a phase."""
    if len(set(values)) == 1:
        return str(values[0])
    text = str(values[-1])
    for number in reversed(range(len(values) - 1)):
        text = f"tl.where({phase} == {number}, {values[number]}, {text})"
    return k.let("chosen", text)


def _leaves(axis: SpatialAxis) -> bool:
    """Whether windows reach beyond the input."""
    last = (axis.positions - 1) * axis.step
    for shift, count in zip(axis.shift, axis.count, strict=True):
        ends = (shift, shift + (count - 1) * axis.move) if count else (0,)
        if min(ends) < 0 or last + max(ends) >= axis.extent:
            return True
    return False
