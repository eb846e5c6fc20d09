"""One level of Strassen's algorithm around the register tile: seven products instead of eight.

A task takes two halves of rows, R pixels of one sample each, of both halves of the depth; with a
pair of channel blocks these are the quadrants of a 2 x 2 product. Seven sums of the activations'
quadrants go to scratch memory once per task. Weights come as seven sums per pair of blocks, made
when the plan was built. Each product is accumulated in registers over half the depth, and added to
those quadrants of the result, kept in scratch memory, that it belongs to; then the epilogue runs
over them.

V. Strassen, "Gaussian elimination is not optimal", Numerische Mathematik 13 (1969). Sums next to
the register tile, without temporary matrices: J. Huang et al., "Strassen's algorithm reloaded",
SC 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import I64
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.epilogue import Arguments, Epilogue, Lie, Operand
from planish.targets.cpu.kernels.register_tile import Later, RegisterTile

F32 = DType.FLOAT32

Terms = dict[int, int]
"""Signs of the quadrants that a sum takes; quadrants count 0 1 in the first row, 2 3 below."""

FACTORS: tuple[tuple[Terms, Terms], ...] = (
    ({0: 1, 3: 1}, {0: 1, 3: 1}),
    ({2: 1, 3: 1}, {0: 1}),
    ({0: 1}, {1: 1, 3: -1}),
    ({3: 1}, {2: 1, 0: -1}),
    ({0: 1, 1: 1}, {3: 1}),
    ({2: 1, 0: -1}, {0: 1, 1: 1}),
    ({1: 1, 3: -1}, {2: 1, 3: 1}),
)
"""Of each product, what is summed of the activations (rows x depth) and of the weights (depth x
channels)."""

SHARES: tuple[Terms, ...] = (
    {0: 1, 3: 1},
    {2: 1, 3: -1},
    {1: 1, 3: 1},
    {0: 1, 2: 1},
    {0: -1, 1: 1},
    {3: 1},
    {0: 1},
)
"""Of each product, the quadrants of the result (rows x channels) that it is added to."""

PARAMS = (
    "pixels",  # of a sample
    "sample_tasks",  # tasks that these are split into, the pairs of channel blocks left aside
    "rows",  # of an image of results
    "columns",
    "source_batch",  # strides in elements, from a pixel of the results to the next
    "source_row",
    "source_column",
    "pairs",  # of channel blocks
    "pairs_per_task",
    "channel_tasks",  # tasks that the pairs are split into: the fastest part of the task index
)


@dataclass(frozen=True)
class StrassenKernel(CpuKernel):
    """One specialisation.

    Attributes
    ----------
    pixels, vectors : int
        The register tile.
    tiles : int
        Register tiles along the pixels of a half: a half has ``pixels * tiles`` of them.
    depth : int
        Half the depth; whole vectors.
    pitch : int
        Elements from one pixel's sum to the next.
    unroll, prefetch : int
        See `RegisterTile`.
    epilogue : Expression
        Its results go to the outputs in order.
    operands : tuple
        For each leaf of the epilogue an `Operand`, or None for the accumulator and constants.
    """

    family: ClassVar[str] = "strassen"
    pixels: int
    vectors: int
    tiles: int
    depth: int
    pitch: int
    unroll: int
    prefetch: int
    epilogue: Expression
    operands: tuple[Operand | None, ...]

    @property
    def half(self) -> int:
        """Pixels of a half."""
        return self.pixels * self.tiles

    def scratch_elements(self, lanes: int) -> int:
        """Floats of scratch memory: sums of the activations, and quadrants of the result."""
        return self.half * (len(FACTORS) * self.pitch + 4 * self.vectors * lanes)

    def write(self, k: KernelBuilder) -> None:
        """Pointers: source, weights, outputs, epilogue operands."""
        StrassenWriter(self, k).write()


class StrassenWriter:
    """Writes a `StrassenKernel`."""

    def __init__(self, kernel: StrassenKernel, k: KernelBuilder) -> None:
        self.kernel, self.k = kernel, k
        arguments = Arguments(k)
        self.p = arguments.params(PARAMS)
        self.source, self.weights = arguments.pointer(), arguments.pointer()
        self.epilogue = Epilogue(k, arguments, kernel.epilogue, kernel.operands)
        self.width = kernel.vectors * k.lanes
        self.result = k.offset(k.scratch, len(FACTORS) * kernel.half * kernel.pitch, F32)

    def write(self) -> None:
        k, p, half = self.k, self.p, self.kernel.half
        with k.loop(k.begin, k.end, carried=[I64(-1)]) as loop:
            place, part = k.divmod(loop.index, p["channel_tasks"])
            sample, number = k.divmod(place, p["sample_tasks"])
            begin = k.mul(sample, p["pixels"])
            # halves that would pass the last pixel start earlier, and compute some pixels again;
            # only those of their own are stored, since sums are rounded otherwise in another half
            last = k.sub(p["pixels"], half)
            upper = k.mul(number, 2 * half)
            lower = k.add(upper, half)
            starts = tuple(k.add(begin, k.min(first, last)) for first in (upper, lower))
            again = tuple(k.max(k.sub(first, last), 0) for first in (upper, lower))
            with k.when(k.b.icmp_signed("!=", place, loop.carried[0])):
                self._sum_activations(starts)
            loop.next = [place]
            pair0 = k.mul(part, p["pairs_per_task"])
            pair1 = k.min(k.add(pair0, p["pairs_per_task"]), p["pairs"])
            with k.loop(pair0, pair1) as pairs:
                self._ask(starts, again, pairs.index)
                self._multiply(pairs.index)
                self._finish(starts, again, pairs.index)

    def _sum_activations(self, starts: Sequence[ir.Value]) -> None:
        k, kernel = self.k, self.kernel
        with k.loop(0, kernel.half) as rows:
            upper, lower = (self._pixel(k.add(start, rows.index)) for start in starts)
            to = k.offset(k.scratch, k.mul(rows.index, kernel.pitch), F32)
            with k.loop(0, kernel.depth, k.lanes) as along:
                quadrants = [
                    k.load(k.offset(row, k.add(along.index, right), F32), F32, k.lanes)
                    for row in (upper, lower)
                    for right in (0, kernel.depth)
                ]
                for index, (terms, _) in enumerate(FACTORS):
                    at = k.add(along.index, index * kernel.half * kernel.pitch)
                    k.store(self._sum(terms, quadrants), k.offset(to, at, F32), F32, k.lanes)

    def _pixel(self, index: ir.Value) -> ir.Value:
        """Where a pixel lies in the source."""
        k, p = self.k, self.p
        image, row, column = k.unravel(index, (p["rows"], p["columns"]))
        steps = (image, "batch"), (row, "row"), (column, "column")
        offsets = [k.mul(place, p[f"source_{axis}"]) for place, axis in steps]
        return k.offset(self.source, k.add(k.add(*offsets[:2]), offsets[2]), F32)

    def _sum(self, terms: Terms, quadrants: list[ir.Value]) -> ir.Value:
        first, *others = terms.items()
        total = quadrants[first[0]]
        for quadrant, sign in others:
            combine = self.k.b.fadd if sign > 0 else self.k.b.fsub
            total = combine(total, quadrants[quadrant])
        return total

    def _multiply(self, pair: ir.Value) -> None:
        """The quadrants of the result, for a pair of channel blocks."""
        k, kernel = self.k, self.kernel
        tile = RegisterTile(
            kernel.pixels,
            kernel.vectors,
            kernel.depth,
            kernel.pitch,
            kernel.unroll,
            kernel.prefetch,
        )
        first = k.mul(pair, len(FACTORS))
        with k.loop(0, len(FACTORS)) as products:
            weight = k.mul(k.add(first, products.index), kernel.depth * self.width)
            weights = k.offset(self.weights, weight, F32)
            following = k.offset(weights, kernel.depth * self.width, F32)
            sums_of = k.mul(products.index, kernel.half * kernel.pitch)
            with k.loop(0, kernel.tiles) as tiles:
                at = k.add(sums_of, k.mul(tiles.index, kernel.pixels * kernel.pitch))
                later = Later.share(k, tile, following, tiles.index, kernel.tiles)
                sums = tile.add(k, k.offset(k.scratch, at, F32), weights, tile.zeros(k), later)
                to = k.mul(tiles.index, kernel.pixels * self.width)
                self._share(products.index, sums, k.offset(self.result, to, F32))

    def _share(self, product: ir.Value, sums: list[ir.Value], result: ir.Value) -> None:
        """Adds a tile of a product to its quadrants; the first product of a quadrant is stored."""
        k = self.k
        begun: set[int] = set()
        for index, shares in enumerate(SHARES):
            with k.when(k.b.icmp_signed("==", product, I64(index))):
                for quadrant, sign in shares.items():
                    own = k.offset(result, quadrant * self.kernel.half * self.width, F32)
                    for n, value in enumerate(sums):
                        pointer = k.offset(own, n * k.lanes, F32)
                        if quadrant in begun:
                            combine = k.b.fadd if sign > 0 else k.b.fsub
                            value = combine(k.load(pointer, F32, k.lanes), value)
                        k.store(value, pointer, F32, k.lanes)
                begun.update(shares)

    def _ask(self, starts: Sequence[ir.Value], again: Sequence[ir.Value], pair: ir.Value) -> None:
        """Asks for the operands of the epilogue that come from far away."""
        k = self.k
        channel = k.mul(pair, 2 * self.width)
        for start, first in zip(starts, again, strict=True):
            with k.loop(first, self.kernel.half) as rows:
                at = self._at(start, rows.index)
                self.epilogue.ask(at, _stay, channel, 2 * self.kernel.vectors)

    def _finish(
        self, starts: Sequence[ir.Value], again: Sequence[ir.Value], pair: ir.Value
    ) -> None:
        """The epilogue over the quadrants of the result, but for pixels that are computed again."""
        k, kernel = self.k, self.kernel
        channel = k.mul(pair, 2 * self.width)
        for below, (start, first) in enumerate(zip(starts, again, strict=True)):
            with k.loop(first, kernel.half) as rows:
                at = self._at(start, rows.index)
                for right in range(2):
                    quadrant = (2 * below + right) * kernel.half * self.width
                    row = k.offset(self.result, k.add(quadrant, k.mul(rows.index, self.width)), F32)
                    for vector in range(kernel.vectors):
                        sums = k.load(k.offset(row, vector * k.lanes, F32), F32, k.lanes)
                        own = k.add(channel, right * self.width + vector * k.lanes)
                        self.epilogue.apply(at, _stay, own, sums, None)

    def _at(self, start: ir.Value, row: ir.Value) -> list[ir.Value | None]:
        none = I64(0)
        return self.epilogue.at(none, none, none, self.k.add(start, row))


def _stay(lie: Lie) -> Any:
    return 0
