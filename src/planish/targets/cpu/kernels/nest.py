"""What the loop-nest kernels share: operands as strided views, tasks, and the way to an element.

A loop nest visits an iteration space, evaluates an expression at each of its points, and stores
the results. Each tensor is an `Operand`: a pointer with a stride per axis of the space, so
broadcasting (stride 0), transposing, slicing and reversing are the same thing. Where elements lie
may also depend on data: each `Term` adds an index, read from another tensor, times a stride.

The last two axes of the space are its rows and columns; the others are outer axes. A task is a
block of rows and columns at one point of the outer axes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.base import Pointer
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import I64
from planish.targets.cpu.kernel import CpuKernel

RUN_TIME = -1
"""A step along the columns that is neither 0 nor 1, and known only when running."""
TRANSPOSED = -2
"""Elements lie one after the other along the rows."""
INTERLEAVED = -3
"""Elements lie one after the other along the rows, and then the columns; there are few rows."""


# ---- when binding --------------------------------------------------------------------------


@dataclass(frozen=True)
class Term:
    """An index from memory: where it is negative, `size` is added, then it is clamped."""

    index: Operand
    size: int
    stride: int


@dataclass(frozen=True)
class Operand:
    """A tensor as a function of the point in the iteration space.

    Attributes
    ----------
    pointer : Pointer or None
        None: there is no memory, and an element is its own offset (``arange`` and the like).
    dtype : DType
    strides : tuple of int
        In elements, per axis of the space.
    offset : int
        Where the first element lies.
    terms : tuple of Term
        What data add to the offset.
    """

    pointer: Pointer | None
    dtype: DType
    strides: tuple[int, ...]
    offset: int = 0
    terms: tuple[Term, ...] = ()

    def family(self) -> list[Operand]:
        """The operand and those it is indexed by, in the order kernels take them."""
        return [self, *(t.index for t in self.terms)]


# ---- what a kernel is specialised on -------------------------------------------------------


@dataclass(frozen=True)
class Access:
    """How a tensor is read or written.

    Attributes
    ----------
    dtype : DType
    step : int
        Its stride along the columns: 0, 1, `RUN_TIME`, or one of the other arrangements.
    in_memory : bool
        Whether there is a pointer.
    terms : tuple of Access
        Its indices.
    """

    dtype: DType
    step: int
    in_memory: bool = True
    terms: tuple[Access, ...] = ()


@dataclass(frozen=True)
class NestKernel(CpuKernel):
    """Base of the loop-nest kernels.

    Attributes
    ----------
    expression : Expression
    rank : int
        Axes of the iteration space, at least 2.
    inputs : tuple of Access or None
        One per leaf; None for constants.
    outputs : tuple of Access
    """

    expression: Expression
    rank: int
    inputs: tuple[Access | None, ...]
    outputs: tuple[Access, ...]

    def write(self, k: KernelBuilder) -> None:
        nest = Nest(k, self)
        begin, end = self.range(k, nest)
        with k.loop(begin, end) as loop:
            rest, column = k.divmod(loop.index, nest.column_blocks)
            rest, row = k.divmod(rest, nest.row_blocks)
            _, *indices = k.unravel(rest, nest.outer)
            column = k.mul(column, nest.column_block)
            row = k.mul(row, nest.row_block)
            block = Block(
                row,
                k.min(k.add(row, nest.row_block), nest.rows),
                column,
                k.min(k.add(column, nest.column_block), nest.columns),
            )
            self.block(
                k,
                block,
                [None if t is None else t.start(indices) for t in nest.inputs],
                [t.start(indices) for t in nest.outputs],
            )

    def range(self, k: KernelBuilder, nest: Nest) -> tuple[ir.Value, ir.Value]:
        """The tasks that a call does."""
        return k.begin, k.end

    @abstractmethod
    def block(
        self, k: KernelBuilder, block: Block, inputs: list[Place | None], outputs: list[Place]
    ) -> None:
        """Writes the loops over a task's rows and columns."""


# ---- when writing --------------------------------------------------------------------------


@dataclass(frozen=True)
class Block:
    """A task's rows and columns."""

    row: ir.Value
    row_end: ir.Value
    column: ir.Value
    column_end: ir.Value


class Nest:
    """The parameters of a nest inside a kernel, in the order `loopnest.launch` passes them."""

    FIXED = 7

    def __init__(self, k: KernelBuilder, kernel: NestKernel) -> None:
        self.columns, self.column_block, self.column_blocks = (k.param(i) for i in range(3))
        self.rows, self.row_block, self.row_blocks = (k.param(i) for i in range(3, 6))
        self.tasks = k.param(6)
        self.outer = [k.param(self.FIXED + i) for i in range(kernel.rank - 2)]
        self._pointer, self._param = 0, self.FIXED + kernel.rank - 2
        self.inputs = [
            None if a is None else self._tensor(k, a, kernel.rank) for a in kernel.inputs
        ]
        self.outputs = [self._tensor(k, a, kernel.rank) for a in kernel.outputs]

    def _tensor(self, k: KernelBuilder, access: Access, rank: int) -> Tensor:
        pointer = None
        if access.in_memory:
            pointer = k.pointer(self._pointer)
            self._pointer += 1
        numbers = [k.param(self._param + i) for i in range(1 + rank)]
        self._param += 1 + rank
        terms = []
        for index in access.terms:
            size, stride = k.param(self._param), k.param(self._param + 1)
            self._param += 2
            terms.append((self._tensor(k, index, rank), size, stride))
        return Tensor(k, access, pointer, numbers[0], numbers[1:], terms)


@dataclass(frozen=True)
class Tensor:
    """An operand inside a kernel."""

    k: KernelBuilder
    access: Access
    pointer: ir.Value | None
    offset: ir.Value
    strides: Sequence[ir.Value]
    terms: Sequence[tuple[Tensor, ir.Value, ir.Value]]

    def start(self, indices: Sequence[ir.Value]) -> Place:
        """The place of row 0 and column 0 at a point of the outer axes."""
        offset = self.offset
        for index, stride in zip(indices, self.strides, strict=False):
            offset = self.k.add(offset, self.k.mul(index, stride))
        return Place(self, offset, tuple(t.start(indices) for t, _, _ in self.terms))


@dataclass(frozen=True)
class Place:
    """Where a tensor's elements begin, in elements from its pointer."""

    tensor: Tensor
    offset: ir.Value
    terms: tuple[Place, ...]

    @property
    def access(self) -> Access:
        return self.tensor.access

    def row(self, row: int | ir.Value) -> Place:
        """The place that many rows further; indices that are the same in all columns are added."""
        k, tensor = self.tensor.k, self.tensor
        offset = k.add(self.offset, k.mul(row, tensor.strides[-2]))
        terms = tuple(t.row(row) for t in self.terms)
        for term, (_, size, stride) in zip(terms, tensor.terms, strict=True):
            if term.access.step == 0:
                index = _wrapped(k, term.load(0, 1), term.access.dtype, size, 1)
                offset = k.add(offset, k.mul(index, stride))
        return Place(tensor, offset, terms)

    def at(self, column: int | ir.Value) -> ir.Value:
        """The offset of a column, indices apart."""
        k, step = self.tensor.k, self.access.step
        if step == 1:
            return k.add(self.offset, column)
        if step == 0:
            return self.offset
        return k.add(self.offset, k.mul(column, self.tensor.strides[-1]))

    def load(
        self,
        column: int | ir.Value,
        lanes: int,
        mask: ir.Value | None = None,
        count: ir.Value | None = None,
    ) -> ir.Value:
        """A vector of columns from one row; of masked-off lanes, anything."""
        k, access, dtype = self.tensor.k, self.access, self.access.dtype
        if any(t.access.step != 0 for t in self.terms):
            return self._load_indexed(column, lanes, mask, count)
        if self.tensor.pointer is None:
            offsets = self._offsets(column, lanes)
            register = dtype.size * 8
            if register == 64:
                return offsets
            kind = ir.IntType(register)
            return k.b.trunc(offsets, kind if lanes == 1 else ir.VectorType(kind, lanes))
        place = k.offset(self.tensor.pointer, self.at(column), dtype)
        if access.step == 0 or lanes == 1:
            return k.splat(k.load(place, dtype), lanes)
        if access.step == 1:
            return k.load(place, dtype, lanes, mask=mask)
        if dtype.size >= 4:
            return k.gather_at(
                self.tensor.pointer, self._offsets(column, lanes), dtype, lanes, mask
            )
        return k.gather(place, self.tensor.strides[-1], dtype, lanes, count)

    def _load_indexed(
        self, column: int | ir.Value, lanes: int, mask: ir.Value | None, count: ir.Value | None
    ) -> ir.Value:
        k, dtype = self.tensor.k, self.access.dtype
        offsets = self._offsets(column, lanes)
        for term, (_, size, stride) in zip(self.terms, self.tensor.terms, strict=True):
            if term.access.step == 0:
                continue  # added when the row began
            index = term.load(column, lanes, mask, count)
            index = _wrapped(k, index, term.access.dtype, size, lanes)
            offsets = k.b.add(offsets, k.b.mul(index, k.splat(stride, lanes)))
        assert self.tensor.pointer is not None
        return k.gather_at(self.tensor.pointer, offsets, dtype, lanes, mask)

    def _offsets(self, column: int | ir.Value, lanes: int) -> ir.Value:
        """The offsets of consecutive columns, indices apart."""
        k = self.tensor.k
        first = k.splat(k.i64(self.at(column)), lanes)
        if lanes == 1 or self.access.step == 0:
            return first
        lane: ir.Value = ir.Constant(ir.VectorType(I64, lanes), [I64(i) for i in range(lanes)])
        if self.access.step != 1:
            lane = k.b.mul(lane, k.splat(self.tensor.strides[-1], lanes))
        return k.b.add(first, lane)

    def store(
        self, value: ir.Value, column: int | ir.Value, lanes: int, mask: ir.Value | None = None
    ) -> None:
        """Stores a vector of columns; only a step of 1 can be masked."""
        k, dtype, offset = self.tensor.k, self.access.dtype, self.at(column)
        assert self.tensor.pointer is not None
        for term, (_, size, stride) in zip(self.terms, self.tensor.terms, strict=True):
            if term.access.step != 0:
                assert lanes == 1
                index = _wrapped(k, term.load(column, 1), term.access.dtype, size, 1)
                offset = k.add(offset, k.mul(index, stride))
        place = k.offset(self.tensor.pointer, offset, dtype)
        if self.access.step == 1 or lanes == 1:
            k.store(value, place, dtype, lanes, mask=mask)
        else:
            k.scatter(value, place, self.tensor.strides[-1], dtype, lanes)


def _wrapped(
    k: KernelBuilder, index: ir.Value, dtype: DType, size: ir.Value, lanes: int
) -> ir.Value:
    """Indices as 64-bit integers, counted from the front and clamped into the dimension."""
    kind = I64 if lanes == 1 else ir.VectorType(I64, lanes)
    signed = dtype.value[0] == "i"
    if dtype.size < 8:
        index = k.b.sext(index, kind) if signed else k.b.zext(index, kind)
    zero, size = ir.Constant(kind, None), k.splat(size, lanes)
    last = k.b.sub(size, k.splat(I64(1), lanes))
    if signed:
        index = k.b.select(k.b.icmp_signed("<", index, zero), k.b.add(index, size), index)
        index = k.b.select(k.b.icmp_signed("<", index, zero), zero, index)
        return k.b.select(k.b.icmp_signed("<", index, last), index, last)
    return k.b.select(k.b.icmp_unsigned("<", index, last), index, last)


def can_mask(k: KernelBuilder, accesses: Sequence[Access | None]) -> bool:
    """Whether the machine loads and stores these dtypes under a mask."""
    isa = k.machine.isa
    if isa == "avx512":
        return True
    return isa == "avx2" and all(a is None or a.dtype.size >= 4 for a in accesses)
