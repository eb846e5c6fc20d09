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
from planish.targets.cuda.kernels.fused import Access, Work, decompose, finish, load, whole_mask
from planish.targets.cuda.kernels.patches import read_source


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
        Of the left factor, and of the sums.
    rows, columns, unroll : int
    dot : bool
        Whether blocks of `unroll` of depth are multiplied by tensor cores. Bytes are float16 there:
        the sums of a block of 128 are exact. Not so where all have a sign and no zero point, and 32
        at a time are multiplied.
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
    def factor(self) -> str:
        """The type in which factors are multiplied."""
        if not self.dot:
            return self.accumulator
        if self.multiplies_bytes:
            return "tl.int8"
        return storage_type(self.dtype) if self.result.is_float else "tl.float16"

    @property
    def multiplies_bytes(self) -> bool:
        """Whether tensor cores are given bytes."""
        dtypes = {self.dtype, self.right.pointer.dtype}
        return dtypes == {DType.INT8} and self.zeros == (None, None) and self.unroll >= 32

    @property
    def splits_groups(self) -> bool:
        """Whether a program works on one group, not on columns of several."""
        return self.groups > 1 and not spans_groups(self.groups, self.filters)

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
        if not self.dot:  # factors of the whole shape are loaded where they are multiplied
            column = k.let("own", f"tl.broadcast_to({column}, ({self.rows}, {self.columns}))")
        inside = None
        if wanted % self.columns:
            inside = k.let("inside", f"{column} < {wanted}")
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
            masks = [*[None] * self.outer, *[exists] * (len(index) - self.outer)]
        index.append(column)
        masks.append(inside)
        zeros = self._load_zeros(k, index, masks)
        total = k.let("total", f"tl.full(({self.rows}, {self.columns}), 0, {self.accumulator})")
        self._accumulate(k, _Places(total, index, inside, image, grid, phases, group, zeros))
        value = k.let("sum", f"{total}.to({compute_type(self.result)})")
        first = len(self.pointers) - len(self.work.pointers)
        finish(k, self.work, first, index, masks, [value])

    def _load_zeros(
        self, k: Source, index: Sequence[str], masks: Sequence[str | None]
    ) -> tuple[str | None, ...]:
        """The zero points, in the type that factors are multiplied in."""
        pointer = len(self.reads.pointers) + 1
        found: list[str | None] = []
        for item in self.zeros:
            if item is None:
                found.append(None)
                continue
            value = load(k, pointer, item, index, masks, "zero")
            found.append(k.let("zero", f"{value}.to({self.factor})"))
            pointer += 1
        return tuple(found)

    def _accumulate(self, k: Source, places: _Places) -> None:
        """The loop over the places of the window and the depth."""
        blocks = -(-self.depth // self.unroll)
        counts, firsts, starts = [], [], []
        for axis, phase, q in zip(self.axes, places.phases, places.grid, strict=True):
            counts.append(_chosen(k, phase, axis.count))
            firsts.append(_chosen(k, phase, axis.first))
            shift = _chosen(k, phase, axis.shift)
            starts.append(k.let("start", f"{q} * {axis.step} + {shift}"))
        step = k.name("step")
        with k.block(f"for {step} in range({' * '.join([*counts, str(blocks)])}):"):
            rest, first = step, "0"
            if blocks > 1:
                first = k.let("first", f"{rest} % {blocks} * {self.unroll}")
                rest = k.let("rest", f"{rest} // {blocks}")
            taps: list[str] = []
            at: list[str] = []
            masks: list[str | None] = []
            for number in reversed(range(len(self.axes))):
                axis, j = self.axes[number], rest
                if number:
                    j = k.let("j", f"{rest} % {counts[number]}")
                    rest = k.let("rest", f"{rest} // {counts[number]}")
                where = k.let("at", f"{starts[number]} + {j} * {axis.move}")
                taps.insert(0, k.let("tap", f"{firsts[number]} + {j} * {axis.skip}"))
                at.insert(0, where)
                test = f"({where} >= 0) & ({where} < {axis.extent})"
                masks.insert(0, k.let("is_in", test) if _leaves(axis) else None)
            combine = self._dot if self.dot else self._multiply
            combine(k, places, _Window(at, masks, taps), first)

    def _left(
        self, k: Source, places: _Places, window: _Window, depth: str, deep: str | None
    ) -> str:
        """Elements of the left factor, 0 where there are none."""
        masks: list[str | None]
        if self.axes:
            own, mask = depth, deep
            if self.groups > 1:
                own = f"({places.group} * {self.depth} + {depth})"
                mask = whole_mask([deep, None if self.splits_groups else places.inside])
            index = [places.image, *window.at, own]
            masks = [None, *window.masks, mask]
        else:
            *outer, row = places.index[:-1]
            index, masks = [*outer, row, depth], [*[None] * (len(outer) + 1), deep]
            if self.transposed:
                index[-2:], masks[-2:] = [depth, row], [deep, None]
            rank = len(self.reads.shape)
            index, masks = index[-rank:], masks[-rank:]
        x = read_source(k, self.reads, index, masks)
        x = k.let("x", f"{x}.to({self.factor})")
        zero, mask = places.zeros[0], whole_mask(masks)
        if zero is None:
            return x
        return k.let("x", f"{x} - {zero}" if mask is None else f"tl.where({mask}, {x} - {zero}, 0)")

    def _right(
        self, k: Source, places: _Places, window: _Window, depth: str, deep: str | None
    ) -> str:
        """Elements of the right factor, its zero point subtracted."""
        outer = window.taps if self.axes else places.index[: self.outer]
        index = [*outer, depth, places.index[-1]]
        masks = [*[None] * len(outer), deep, places.inside]
        w = load(k, len(self.reads.pointers), self.right, index, masks, "w")
        w = k.let("w", f"{w}.to({self.factor})")
        zero = places.zeros[1]
        return w if zero is None else k.let("w", f"{w} - {zero}")

    def _multiply(self, k: Source, places: _Places, window: _Window, first: str) -> None:
        """Adds products one depth after the other."""
        for number in range(self.unroll):
            depth = k.let("depth", f"{first} + {number}")
            deep = None
            if self.depth % self.unroll:
                deep = k.let("is_deep", f"{depth} < {self.depth}")
            x = self._left(k, places, window, depth, deep)
            w = self._right(k, places, window, depth, deep)
            k.line(f"{places.total} += {x} * {w}")

    def _dot(self, k: Source, places: _Places, window: _Window, first: str) -> None:
        """Adds the product of two blocks."""
        lanes = k.let("lanes", f"{first} + tl.arange(0, {self.unroll})")
        left, right = f"({self.rows}, {self.unroll})", f"({self.unroll}, {self.columns})"
        across = k.let("across", f"tl.broadcast_to({lanes}[None, :], {left})")
        down = k.let("down", f"tl.broadcast_to({lanes}[:, None], {right})")
        deep: tuple[str | None, str | None] = (None, None)
        if self.depth % self.unroll:
            tests = (f"{lane} < {self.depth}" for lane in (across, down))
            deep = (k.let("is_deep", next(tests)), k.let("is_deep", next(tests)))
        x = self._left(k, places, window, across, deep[0])
        w = self._right(k, places, window, down, deep[1])
        x, w = f"tl.broadcast_to({x}, {left})", f"tl.broadcast_to({w}, {right})"
        total = places.total
        if self.result.is_float:
            exact = ', input_precision="ieee"' if self.factor == "tl.float32" else ""
            k.line(f"{total} = tl.dot({x}, {w}, {total}, out_dtype={self.accumulator}{exact})")
        elif self.multiplies_bytes:
            k.line(f"{total} = tl.dot({x}, {w}, {total}, out_dtype={self.accumulator})")
        else:  # exact: less than 2^24, and added as integers
            k.line(f"{total} += tl.dot({x}, {w}).to({self.accumulator})")


@dataclass(frozen=True)
class _Window:
    """Names of where a place of the window lies, per spatial axis: in the input, and in it."""

    at: Sequence[str]
    masks: Sequence[str | None]
    taps: Sequence[str]


@dataclass(frozen=True)
class _Places:
    """Names of what a program computes, and of where."""

    total: str
    index: Sequence[str]
    """Along the result's axes."""
    inside: str | None
    """Which columns exist."""
    image: str
    grid: Sequence[str]
    """Positions of a phase, per spatial axis."""
    phases: Sequence[str]
    group: str
    zeros: tuple[str | None, ...]


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
