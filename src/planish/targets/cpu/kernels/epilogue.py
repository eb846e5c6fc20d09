"""The epilogue of a register tile: its operands, loaded where they lie, and its stores.

Kernels that compute pixels with channels innermost finish them here: the matrix kernel and
Winograd's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.elementwise import emit

LINE = 64
"""Bytes that caches load at once."""


@dataclass(frozen=True)
class Operand:
    """An operand of an epilogue or prologue.

    Attributes
    ----------
    dtype : DType
    channel_stride : int
        Along channels: 0 or 1.
    by_pixel : bool
        Whether it may differ from pixel to pixel; otherwise it is a number, or one per channel.
    """

    dtype: DType
    channel_stride: int
    by_pixel: bool = True


@dataclass(frozen=True)
class Lie:
    """Where an operand or output lies: pointer, and strides of batch, group, row and column.

    A column's may be known, so that the pixels of a tile are at known distances.
    """

    pointer: ir.Value
    batch: ir.Value
    group: ir.Value
    row: ir.Value
    column: ir.Value | int

    def start(
        self, k: KernelBuilder, batch: ir.Value, group: ir.Value, row: ir.Value, column: ir.Value
    ) -> ir.Value:
        """The offset of channel 0 of a pixel, in elements."""
        matrix = k.add(k.mul(self.batch, batch), k.mul(self.group, group))
        return k.add(matrix, k.add(k.mul(self.row, row), k.mul(self.column, column)))


class Arguments:
    """Hands out a kernel's pointers and parameters in order."""

    def __init__(self, k: KernelBuilder) -> None:
        self._k = k
        self._pointers = self._params = 0

    def pointer(self) -> ir.Value:
        self._pointers += 1
        return self._k.pointer(self._pointers - 1)

    def param(self) -> ir.Value:
        self._params += 1
        return self._k.param(self._params - 1)

    def params(self, names: Sequence[str]) -> dict[str, ir.Value]:
        """As many parameters, by their names."""
        return {name: self.param() for name in names}

    def lie(self) -> Lie:
        """A pointer and four strides."""
        pointer = self.pointer()
        return Lie(pointer, *(self.param() for _ in range(4)))

    def lies(self, operands: Sequence[Operand | None]) -> list[Lie | None]:
        """Those of operands in memory."""
        return [self.lie() if operand else None for operand in operands]


class Epilogue:
    """Applies an expression to sums in registers, and stores its results.

    Parameters
    ----------
    k : KernelBuilder
    arguments : Arguments
        Where pointers and strides of the outputs, then those of the operands, come from.
    expression : Expression
        Its results go to the outputs in order.
    operands : tuple
        For each leaf an `Operand`, or None for the accumulator and constants.
    columns : tuple of int
        From a pixel to the next in its row, in elements: of each output, then of each operand in
        memory. Empty: only known at run time.
    """

    def __init__(
        self,
        k: KernelBuilder,
        arguments: Arguments,
        expression: Expression,
        operands: Sequence[Operand | None],
        columns: Sequence[int] = (),
    ) -> None:
        self._k, self._expression, self._kinds = k, expression, operands
        known = iter(columns)

        def lie() -> Lie:
            found = arguments.lie()
            return replace(found, column=next(known)) if columns else found

        self._outputs = [lie() for _ in expression.results]
        self._operands = [lie() if operand else None for operand in operands]

    def at(
        self, batch: ir.Value, group: ir.Value, row: ir.Value, column: ir.Value
    ) -> list[ir.Value | None]:
        """Where channel 0 of a pixel lies in each operand and output, for `apply`."""
        k = self._k

        def start(lie: Lie, kind: Operand | None) -> ir.Value:
            if kind is not None and not kind.by_pixel:
                return k.mul(lie.group, group)
            return lie.start(k, batch, group, row, column)

        lies = (*self._operands, *self._outputs)
        kinds = (*self._kinds, *(None for _ in self._outputs))
        return [lie and start(lie, kind) for lie, kind in zip(lies, kinds, strict=True)]

    def ask(
        self,
        starts: Sequence[ir.Value | None],
        shift: Callable[[Lie], ir.Value | int],
        channel: ir.Value,
        vectors: int,
    ) -> None:
        """Asks for the operands that `apply` will load for so many vectors of channels.

        A residual was written layers ago: it comes from memory, or from a cache that cores share.
        Into the second-level cache, since pixels of many channels compete for sets of the first.
        """
        k = self._k
        for lie, start, operand in zip(self._operands, starts, self._kinds, strict=False):
            if operand and operand.by_pixel and operand.channel_stride:
                assert lie and start is not None
                dtype = operand.dtype
                pointer = self._place(lie, k.add(start, channel), shift(lie), dtype)
                line = max(LINE // dtype.size, k.lanes)
                for element in range(0, vectors * k.lanes, line):
                    k.prefetch(k.offset(pointer, element, dtype), locality=2)

    def _place(self, lie: Lie, start: ir.Value, shift: ir.Value | int, dtype: DType) -> ir.Value:
        """A pointer so far from where pixels start."""
        return self._k.offset(self._k.offset(lie.pointer, start, dtype), shift, dtype)

    def apply(
        self,
        starts: Sequence[ir.Value | None],
        shift: Callable[[Lie], ir.Value | int],
        channel: ir.Value,
        sums: ir.Value,
        mask: ir.Value | None,
    ) -> None:
        """Finishes one vector of channels of a pixel.

        `starts` is what `at` gave for some pixel, and `shift` tells how far this one is from it.
        """
        k, lanes, expression = self._k, self._k.lanes, self._expression

        def load(index: int, operand: Operand) -> ir.Value:
            lie, start = self._operands[index], starts[index]
            assert lie and start is not None
            distance = shift(lie) if operand.by_pixel else 0
            if operand.channel_stride == 0:
                pointer = self._place(lie, start, distance, operand.dtype)
                return k.splat(k.load(pointer, operand.dtype), lanes)
            pointer = self._place(lie, k.add(start, channel), distance, operand.dtype)
            return k.load(pointer, operand.dtype, lanes, mask=mask)

        leaves: list[ir.Value | None] = []
        computed = []
        for index, (leaf, operand) in enumerate(zip(expression.leaves, self._kinds, strict=True)):
            if operand is not None:
                leaves.append(load(index, operand))
            elif leaf.constant is not None:
                leaves.append(None)
            else:
                computed.append(index)
                leaves.append(sums)
        results = emit(k, expression, leaves, lanes, computed)
        own = starts[len(self._operands) :]
        for slot, result, lie, start in zip(
            expression.results, results, self._outputs, own, strict=True
        ):
            assert start is not None
            dtype = expression.dtype(slot)
            pointer = self._place(lie, k.add(start, channel), shift(lie), dtype)
            k.store(result, pointer, dtype, lanes, mask=mask)
