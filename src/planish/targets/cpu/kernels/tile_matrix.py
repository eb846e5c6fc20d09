"""Convolutions and matrix products in tiles (Intel AMX): bfloat16 and bytes, with constant weights.

It is the matrix kernel for short numbers with its sums in tiles: up to 16 pixels are the rows of a
tile, 16 channels its columns. Weights lie as `dot_gemm` packs them for vectors, which is how tiles
want them: a row of groups of depth after the other. So packing, borders, taps and zero points are
shared; finished sums go through memory to the epilogue, which is the vectors' own.

Depth is cut into equal steps of at most 16 groups, not into full ones and a rest: a rest needs
tiles of its own, of which there are too few beside four of sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import llvmlite.ir as ir

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.targets.base import Binding, Tactic
from planish.targets.cpu.codegen import tiles
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.dot import Dot
from planish.targets.cpu.kernels import bfloat_matrix, integer_matrix
from planish.targets.cpu.kernels.blocking import SMALLEST_TASK, Blocking, ceil, choose_blocking
from planish.targets.cpu.kernels.dot_gemm import (
    DotGemmKernel,
    DotGemmWriter,
    DotTile,
    groups_of,
)
from planish.targets.cpu.kernels.dot_matrix import DotMatrixTactic, geometry
from planish.targets.cpu.kernels.epilogue import Lie
from planish.targets.cpu.kernels.gemm import GemmKernel
from planish.targets.cpu.kernels.geometry import Geometry
from planish.targets.cpu.kernels.matrix import MatrixFamily, Tile
from planish.targets.cpu.kernels.register_tile import Later, RegisterTile
from planish.targets.cpu.machine import Machine

MOST_SUMS = 4
"""Tiles of sums: what is left holds factors, and four hide the latency of a product."""

PRODUCT_CYCLES, LOAD_CYCLES, CHAIN_CYCLES = 16, 8, 52
"""Of a product of full tiles, of loading a tile, and until the same sums can be added to again
(Intel 64 and IA-32 Architectures Optimization Reference Manual, chapter 20)."""

LEAST_WORK = 64
"""Rows times groups of depth of a product from which tiles are offered: with less, a product of
tiles does no more in its 16 cycles than vectors do."""

OFFERED = 6
"""Tactics of a task: tuning measures twice as many, and vectors are to be among them."""

SPEED_UP = 8
"""How much faster than a product of float32, roughly: tasks are to take as long as others."""


def groups_of_step(groups: int) -> int:
    """The most groups of depth, at most a tile's rows, that divide a run of so many evenly."""
    return max(n for n in range(1, tiles.ROWS + 1) if groups % n == 0)


@dataclass(frozen=True)
class TileProduct(DotTile):
    """A block of sums of `pixels` x `vectors`, in tiles. Sums are not values: lists are empty."""

    @property
    def shape(self) -> tuple[int, int]:
        """Tiles of sums, along pixels and along channels."""
        return ceil(self.pixels, tiles.ROWS), self.vectors

    @property
    def step(self) -> int:
        """Groups of depth that are multiplied at a time."""
        return groups_of_step(self.steps)

    def shapes(self) -> list[tuple[int, int]]:
        """Rows and bytes of a row of all tiles: sums, left factors, right ones."""
        down, along = self.shape
        rows = [min(tiles.ROWS, self.pixels - tiles.ROWS * i) for i in range(down)]
        sums = [(n, tiles.ROW_BYTES) for n in rows for _ in range(along)]
        left = [(n, self.step * 4) for n in rows]
        return sums + left + [(self.step, tiles.ROW_BYTES)] * self._right_tiles

    @property
    def _right_tiles(self) -> int:
        down, along = self.shape
        return min(along, tiles.TILES - down * along - down)

    def sums(self) -> Iterator[tuple[int, int, int]]:
        """Tiles of sums: number, first pixel, vector of channels."""
        down, along = self.shape
        for i in range(down):
            for v in range(along):
                yield i * along + v, tiles.ROWS * i, v

    def zeros(self, k: KernelBuilder) -> list[ir.Value]:
        for tile, _, _ in self.sums():
            tiles.zero(k, tile)
        return []

    def add(
        self,
        k: KernelBuilder,
        source: ir.Value,
        weights: ir.Value,
        sums: list[ir.Value],
        later: Later | None = None,
    ) -> list[ir.Value]:
        with k.loop(0, self.steps // self.step) as loop:
            depth = k.mul(loop.index, self.step)
            s = k.offset(source, k.mul(depth, self.dot.group), self.dot.left)
            self._multiply(k, s, k.offset(weights, k.mul(depth, self._step(k)), self.dot.right))
        return []

    def _multiply(self, k: KernelBuilder, source: ir.Value, weights: ir.Value) -> None:
        """Adds the products of one step of depth to all sums."""
        down, along = self.shape
        first_left = down * along
        first_right = first_left + down
        for i in range(down):
            place = k.offset(source, tiles.ROWS * i * self.pixel_step, self.dot.left)
            tiles.load(k, first_left + i, place, self.pixel_step * self.dot.left.size)
        for v in range(along):
            right = first_right + v % self._right_tiles
            place = k.offset(weights, v * k.lanes * self.dot.group, self.dot.right)
            tiles.load(k, right, place, along * tiles.ROW_BYTES)
            for i in range(down):
                tiles.multiply(k, self.dot, i * along + v, first_left + i, right)


@dataclass(frozen=True)
class TileGemmKernel(DotGemmKernel):
    """One specialisation of the matrix kernel in tiles; `unroll` and `prefetch` mean nothing."""

    family: ClassVar[str] = "tile_gemm"

    def write(self, k: KernelBuilder) -> None:
        """As `DotGemmKernel`."""
        _Writer(self, k).write()


class _Writer(DotGemmWriter):
    def __init__(self, kernel: TileGemmKernel, k: KernelBuilder) -> None:
        super().__init__(kernel, k)
        self.tile = self._register_tile(kernel.pixels)
        self.sums = tiles.memory(k, kernel.pixels * kernel.vectors * k.lanes, DType.INT32)

    def write(self) -> None:
        tiles.configure(self.k, self.tile.shapes())
        super().write()
        tiles.release(self.k)

    def _register_tile(self, pixels: int) -> TileProduct:
        kernel = self.kernel
        return TileProduct(
            pixels, kernel.vectors, kernel.run, kernel.pixel_step, 1, 0, dot=self.dot
        )

    def _begin(self, tile: RegisterTile, weights: ir.Value) -> tuple[list[ir.Value], ir.Value]:
        k = self.k
        if not self.dot.is_of_bytes:
            return tile.zeros(k), weights
        for number, _, v in self.tile.sums():  # steps of nothing: the same in all rows
            tiles.load(k, number, k.offset(weights, v * k.lanes, DType.INT32), 0)
        return [], k.offset(weights, tile.vectors * k.lanes, DType.INT32)

    def _finish(
        self,
        pixels: int,
        row: ir.Value,
        column: ir.Value,
        channel: ir.Value,
        sums: list[list[ir.Value]],
        masks: Sequence[ir.Value | None],
    ) -> None:
        """Epilogue and stores of a tile."""
        k, width = self.k, self.tile.vectors * self.k.lanes
        for number, pixel, v in self.tile.sums():
            place = k.offset(self.sums, pixel * width + v * k.lanes, DType.INT32)
            tiles.store(k, number, place, width * 4)
        starts = self.epilogue.at(self.batch, self.group, row, column)
        with k.loop(0, pixels) as loop:
            for v, mask in enumerate(masks):
                place = k.add(k.mul(loop.index, width), v * k.lanes)
                self.epilogue.apply(
                    starts,
                    partial(_along, k, loop.index),
                    k.add(channel, v * k.lanes),
                    k.load(
                        k.offset(self.sums, place, DType.INT32),
                        self.dot.sums,
                        k.lanes,
                        aligned=True,
                    ),
                    mask,
                )


def _along(k: KernelBuilder, pixels: ir.Value, lie: Lie) -> ir.Value:
    return k.mul(lie.column, pixels)


# ---- tactics -------------------------------------------------------------------------------------


class _InTiles(DotMatrixTactic):
    """What makes a tactic of vectors one of tiles."""

    family: ClassVar[str] = "tile_matrix"

    @cached_property
    def dot(self) -> Dot:
        return tiles.dot_of_tiles(self._source)

    def accepts(self, binding: Binding) -> bool:
        """Halves are multiplied in pairs: what lies behind an odd run may be infinite."""
        g = self._geometry(binding)
        even = g is not None and (self.dot.is_of_bytes or self._run(g) % 2 == 0)
        return even and super().accepts(binding)

    def _run(self, g: Geometry) -> int:
        return g.depth * (g.window[1] if self._merges(g.window, g.dilations) else 1)

    def _blocking(self, g: Geometry) -> Blocking:
        smallest = SPEED_UP * SMALLEST_TASK
        return choose_blocking(g, self.pixels, self.vectors, self.machine, smallest)

    def _kernel(self, **fields: Any) -> GemmKernel:
        fields |= {"unroll": 1, "prefetch": 0, "tiles": 0}
        return TileGemmKernel(**fields, source=self._source, dot=self.dot)

    def cycles(self, g: Geometry) -> float:
        """Roughly, cycles of one core: ranks tactics where nothing was measured yet."""
        down, along = ceil(self.pixels, tiles.ROWS), self.vectors
        groups = groups_of(self._run(g), self.dot)
        taps = g.window[0] * g.window[1] * g.depth // self._run(g)
        loads = LOAD_CYCLES * (down + along)
        step = max(PRODUCT_CYCLES * down * along, loads, CHAIN_CYCLES)
        blocks = g.batch * g.rows * g.groups * ceil(g.columns, self.pixels)
        blocks *= ceil(g.channels, along * self.machine.lanes)
        finish = 40 + 16 * down * along + 3 * self.pixels * along
        cycles: float = blocks * (taps * groups // groups_of_step(groups) * step + finish)
        if self.packed:
            cycles += g.batch * g.height * g.width * g.depth * g.groups / self.machine.lanes * 3
        return cycles

    def is_worth_it(self, g: Geometry) -> bool:
        """Whether tiles are full enough to be faster than vectors."""
        step = groups_of_step(groups_of(self._run(g), self.dot))
        return min(self.pixels, tiles.ROWS) * step >= LEAST_WORK


@dataclass(frozen=True, eq=False)
class TileBfloatTactic(_InTiles, bfloat_matrix.BfloatMatrixTactic):
    """The matrix kernel in tiles of bfloat16."""


@dataclass(frozen=True, eq=False)
class TileIntegerTactic(_InTiles, integer_matrix.IntegerMatrixTactic):
    """The matrix kernel in tiles of bytes, which are signed or not as they lie."""


def _tactic_of(task: Task) -> type[TileBfloatTactic | TileIntegerTactic] | None:
    """The class of a task's tactics; None for a task of another kind."""
    if bfloat_matrix.understood(task):
        return TileBfloatTactic
    if integer_matrix.understood(task) and integer_matrix.are_bytes(task):
        return TileIntegerTactic
    return None


def _runs_on(machine: Machine, kind: type[Tactic]) -> bool:
    return machine.has_bf16_tiles if kind is TileBfloatTactic else machine.has_byte_tiles


def _candidates(g: Geometry, machine: Machine) -> Iterator[Tile]:
    needed = ceil(g.channels, machine.lanes)
    for down, along in ((2, 2), (1, 4), (3, 1), (1, 3), (1, 2), (2, 1), (1, 1)):
        most = tiles.ROWS * down
        # blocks as equal as can be: the last one overlaps the one before
        pixels = ceil(g.columns, max(ceil(g.columns, most), 1))
        if along > needed or ceil(pixels, tiles.ROWS) != down:
            continue
        for packed in (False, True):
            for outer in (False, True) if needed > along else (False,):
                yield pixels, along, 0, outer, packed


@dataclass(frozen=True)
class TileMatrixFamily(MatrixFamily):
    """Convolutions (not depthwise) and matrix products in tiles, where the machine has them."""

    name: ClassVar[str] = "tile_matrix"

    def understands(self, task: Task) -> bool:
        return _tactic_of(task) is not None

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        kind = _tactic_of(task)
        if kind is None or not _runs_on(self.machine, kind):
            return
        g = geometry(task, binding)
        if g is None or not g.depth or g.depth == g.channels == 1 < g.groups:  # empty, depthwise
            return
        offered = [kind(task, self.machine, *tile) for tile in _candidates(g, self.machine)]
        possible = [t for t in offered if t.accepts(binding) and t.is_worth_it(g)]
        yield from sorted(possible, key=lambda tactic: tactic.cycles(g))[:OFFERED]

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        kind = _tactic_of(task)
        if kind is None or not _runs_on(self.machine, kind):
            return "this machine has no such tiles (AMX)"
        down, along = ceil(values["pixels"], tiles.ROWS), values["vectors"]
        if down > 3 or down * along > MOST_SUMS or values["tail"]:
            return f"there are no {down} x {along} tiles of sums with a tail of {values['tail']}"
        return super().forbids(task, values)

    def make(self, task: Task, **values: Any) -> Tactic:
        kind = _tactic_of(task)
        assert kind is not None
        return kind(task, self.machine, **values)


FAMILIES = (TileMatrixFamily(),)
