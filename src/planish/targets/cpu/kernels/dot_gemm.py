"""The matrix kernel for short numbers: bytes, whose sums are int32 and exact, and bfloat16.

It is `gemm`'s kernel with another inner loop: what is broadcast to all lanes is a group of elements
of depth, and weights are packed ``[block][tap rows][tap columns][groups][vectors x lanes][group]``.

    pairs (any CPU)    rows are packed as 16-bit integers, their zero point taken out on the way;
                       weights have 16 bits, and are anything that bytes minus a zero point can be
    bytes (x86)        rows are unsigned bytes, in place where they lie so; a block's weights begin
                       with what its sums begin with: minus the zero point times the weights' sums
    halves (BF16)      rows are bfloat16, in place where they lie so; sums are float32
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.casts import cast
from planish.targets.cpu.codegen.dot import HALVES, PAIRS, Dot
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.codegen.types import I16, I32, register_type
from planish.targets.cpu.kernels.epilogue import Arguments
from planish.targets.cpu.kernels.gemm import GemmKernel, GemmWriter
from planish.targets.cpu.kernels.pack_rows import PACK_PARAMS, Pack, Region, RowPacker, in_pieces
from planish.targets.cpu.kernels.register_tile import Later, RegisterTile

WIDEST = 16
"""Elements that are packed at a time."""


def groups_of(run: int, dot: Dot) -> int:
    """How many groups of products a run of depth takes."""
    return -(-run // dot.group)


@dataclass(frozen=True)
class DotGemmKernel(GemmKernel):
    """One specialisation of the matrix kernel for short numbers.

    Attributes
    ----------
    source : DType
        INT8, UINT8 or BFLOAT16: the factor's elements, behind the prologue if there is one.
    dot : Dot
        How they are multiplied.
    """

    family: ClassVar[str] = "dot_gemm"
    source: DType = DType.UINT8
    dot: Dot = PAIRS

    def write(self, k: KernelBuilder) -> None:
        """As `GemmKernel`; packers of bytes take one more parameter, the zero point."""
        DotGemmWriter(self, k).write()


class DotGemmWriter(GemmWriter):
    """Writes a `DotGemmKernel`."""

    kernel: DotGemmKernel

    def __init__(self, kernel: DotGemmKernel, k: KernelBuilder) -> None:
        self.dot = kernel.dot
        if self.dot != HALVES:
            self.pack_params = (*PACK_PARAMS, "zero")
        self.element, self.weight = self.dot.left, self.dot.right
        super().__init__(kernel, k)

    def _packer(self, params: dict[str, ir.Value], arguments: Arguments) -> RowPacker | None:
        pack = self.kernel.pack
        if pack is None:
            return None
        return FactorPacker(self.k, pack, params, arguments, self.dot, self.kernel.source)

    def _register_tile(self, pixels: int) -> RegisterTile:
        kernel = self.kernel
        return DotTile(
            pixels,
            kernel.vectors,
            kernel.run,
            kernel.pixel_step,
            kernel.unroll,
            kernel.prefetch,
            self.dot,
        )

    def _begin(self, tile: RegisterTile, weights: ir.Value) -> tuple[list[ir.Value], ir.Value]:
        k = self.k
        if not self.dot.is_of_bytes:
            return tile.zeros(k), weights
        width = tile.vectors * k.lanes
        first = [
            k.load(k.offset(weights, v * k.lanes, DType.INT32), DType.INT32, k.lanes)
            for v in range(tile.vectors)
        ]
        return first * tile.pixels, k.offset(weights, width, DType.INT32)


@dataclass(frozen=True)
class DotTile(RegisterTile):
    """Broadcast groups of the source against vectors of weights, summed in registers.

    `run` counts elements; `unroll` and `prefetch` count groups.
    """

    dot: Dot

    @property
    def steps(self) -> int:
        return groups_of(self.run, self.dot)

    def zeros(self, k: KernelBuilder) -> list[ir.Value]:
        return [k.zero(self.dot.sums, k.lanes)] * (self.pixels * self.vectors)

    def weights_of_run(self, k: KernelBuilder) -> int:
        return self.steps * self._step(k)

    def add(
        self,
        k: KernelBuilder,
        source: ir.Value,
        weights: ir.Value,
        sums: list[ir.Value],
        later: Later | None = None,
    ) -> list[ir.Value]:
        groups = self.steps
        # what lies behind a run may be infinite: there, weights of zero are no protection
        cut = self.dot == HALVES and self.run % 2 == 1
        whole = (groups - cut) // self.unroll * self.unroll
        if whole == self.unroll:
            sums = self._groups(k, source, weights, 0, whole, sums, later)
        elif whole:
            with k.loop(0, whole, self.unroll, carried=sums) as loop:
                loop.next = self._groups(
                    k, source, weights, loop.index, self.unroll, loop.carried, later
                )
            sums = loop.carried
        return self._groups(k, source, weights, whole, groups - whole, sums, later, cut)

    def _step(self, k: KernelBuilder) -> int:
        """Weights of a group."""
        return self.vectors * k.lanes * self.dot.group

    def _groups(
        self,
        k: KernelBuilder,
        source: ir.Value,
        weights: ir.Value,
        first: Any,
        count: int,
        sums: list[ir.Value],
        later: Later | None,
        cut: bool = False,
    ) -> list[ir.Value]:
        """Adds so many groups; if `cut`, the last one is a single element."""
        element, weight, group = self.dot.left, self.dot.right, self.dot.group
        vector = register_type(DType.INT32, k.lanes)
        s = k.offset(source, k.mul(first, group), element)
        w = k.offset(weights, k.mul(first, self._step(k)), weight)

        def row(depth: int) -> list[ir.Value]:
            """A group's weights, by vector."""
            factors = []
            for v in range(self.vectors):
                place = k.offset(w, depth * self._step(k) + v * k.lanes * group, weight)
                factors.append(k.b.load(place, typ=vector, align=32 if k.lanes >= 8 else 16))
                if self.prefetch:
                    ahead = (depth + self.prefetch) * self._step(k) + v * k.lanes * group
                    k.prefetch(k.offset(w, ahead, weight))
            if later:
                later.ask(k, k.add(first, depth))
            return factors

        def spread(pixel: int, depth: int) -> ir.Value:
            """A group of a pixel in every lane."""
            place = k.offset(s, pixel * self.pixel_step + depth * group, element)
            if cut and depth == count - 1:
                bits = k.b.zext(k.b.load(place, typ=I16, align=1), I32)
            else:
                bits = k.b.load(place, typ=I32, align=1)
            return k.splat(bits, k.lanes)

        for start in range(0, count, self.dot.together):
            depths = range(start, min(start + self.dot.together, count))
            rows = [row(depth) for depth in depths]
            updated = []
            for i in range(self.pixels):
                lefts = [spread(i, depth) for depth in depths]
                for v, rights in enumerate(zip(*rows, strict=True)):
                    place = i * self.vectors + v
                    updated.append(self.dot.add_groups(k, sums[place], lefts, rights))
            sums = updated
        return sums


class FactorPacker(RowPacker):
    """Packs rows of short numbers as the inner loop reads them.

    Pairs are numbers of 16 bits, 0 where there is no input, and so are halves. Where there is no
    byte of input the zero point stands; signed bytes that are multiplied as unsigned ones have 128
    added.
    """

    def __init__(
        self,
        k: KernelBuilder,
        pack: Pack,
        params: dict[str, ir.Value],
        arguments: Arguments,
        dot: Dot,
        source: DType,
    ) -> None:
        super().__init__(k, pack, params, arguments)
        self.element, self._dot, self._source = dot.left, dot, source

    def _zero(self, pointer: ir.Value, count: ir.Value) -> None:
        k = self.k

        def store(at: Any, lanes: int) -> None:
            if self._dot.is_of_bytes:
                zero = k.b.trunc(self.p["zero"], register_type(self.element))
                fill = k.splat(zero, lanes)
            else:
                fill = k.zero(self.element, lanes)
            k.store(fill, k.offset(pointer, at, self.element), self.element, lanes)

        in_pieces(k, count, store, WIDEST)

    def _copy_pixels(
        self, source: Any, target: Any, count: Any, y: Any, x: Any, region: Region
    ) -> None:
        k, p, pack = self.k, self.p, self.kind
        if pack.contiguous:
            self._convert(source, target, k.mul(count, pack.pitch), y, x, region)
            return
        with k.loop(0, count) as pixels:
            away = k.mul(k.mul(pixels.index, pack.column_unit), p["source_pixel"])
            s = k.offset(source, away, pack.dtype)
            t = k.offset(target, k.mul(pixels.index, pack.pitch), self.element)
            column = k.add(x, k.mul(pixels.index, pack.column_unit))
            self._convert(s, t, pack.depth, y, column, region)

    def _convert(
        self, source: Any, target: Any, count: Any, y: Any, x: Any, region: Region
    ) -> None:
        k, pack = self.k, self.kind

        def convert(at: Any, lanes: int) -> None:
            if pack.prologue is None and self._dot == HALVES:
                bits = k.load(k.offset(source, at, DType.INT16), DType.INT16, lanes)
                k.store(bits, k.offset(target, at, DType.INT16), DType.INT16, lanes)
                return
            if pack.prologue is None:
                value = k.load(k.offset(source, at, pack.dtype), pack.dtype, lanes)
            else:
                value = self._prologue(pack.prologue, source, at, lanes, y, x, region)
            factor = self._as_factor(value, lanes)
            k.store(factor, k.offset(target, at, self.element), self.element, lanes)

        in_pieces(k, count, convert, WIDEST)

    def _as_factor(self, value: ir.Value, lanes: int) -> ir.Value:
        k = self.k
        if self._source is self._dot.left:
            return value
        if self._dot.is_of_bytes:
            return k.b.xor(value, k.constant(128, self._source, lanes))
        wide = cast(k, value, self._source, self.element, lanes)
        zero = k.splat(k.b.trunc(self.p["zero"], register_type(self.element)), lanes)
        return k.b.sub(wide, zero)

    def _prologue(
        self, prologue: Expression, source: Any, at: Any, lanes: int, y: Any, x: Any, region: Region
    ) -> ir.Value:
        k, pack = self.k, self.kind
        leaves: list[ir.Value | None] = []
        for leaf, operand, lie in zip(prologue.leaves, pack.operands, self.before, strict=True):
            if leaf.constant is not None:
                leaves.append(None)
            elif operand is None or lie is None:
                leaves.append(k.load(k.offset(source, at, pack.dtype), pack.dtype, lanes))
            else:
                where = lie.start(k, region.batch, region.group, y, x)
                if operand.channel_stride == 0:
                    element = k.load(k.offset(lie.pointer, where, operand.dtype), operand.dtype)
                    leaves.append(k.splat(element, lanes))
                else:
                    pointer = k.offset(lie.pointer, k.add(where, at), operand.dtype)
                    leaves.append(k.load(pointer, operand.dtype, lanes))
        return emit(k, prologue, leaves, lanes)[0]
