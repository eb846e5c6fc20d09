"""What tactics of the matrix kernel for short numbers share: bytes, and bfloat16."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.targets.base import Binding, Tactic
from planish.targets.cpu.codegen.dot import HALVES, Dot
from planish.targets.cpu.kernels.blocking import ceil
from planish.targets.cpu.kernels.dot_gemm import DotGemmKernel, groups_of
from planish.targets.cpu.kernels.gemm import GemmKernel
from planish.targets.cpu.kernels.geometry import Geometry, conv_geometry, matmul_geometry
from planish.targets.cpu.kernels.matrix import MatrixFamily, MatrixTactic, Tile, pixel_tiles
from planish.targets.cpu.kernels.register_tile import most_pixels, step_cycles, unrolled
from planish.targets.cpu.machine import Machine

MARGIN = 64
"""Bytes of scratch behind the last pixel: its last group is read whole."""
SMALLEST: Tile = (1, 1, 0, False, False)
WIDEST = 4
"""Vectors of channels of a tile."""
BYTES_LATENCY, HALVES_LATENCY, ADD_LATENCY = 4, 7, 1
"""Cycles from a sum to the next, of products of bytes by VNNI, of products of bfloat16, and where
products are added up by an instruction of its own.
"""
RATE = 2.5
"""Instructions in a cycle where a group's products take several."""
START = 14
"""Cycles until a tile's sums are under way."""
END = 10
"""Instructions that make bytes of a vector of sums."""
WINDOW = 120
"""Instructions of a tile's end that a processor does beside the next tile's products."""
WIDTH = 4
"""Instructions of the others in a cycle."""
OF_L2 = 256
"""Bytes of weights from the second-level cache for which products wait a cycle."""
RESIDUAL = 0.75
"""Cycles more for a vector of a residual that is not read from one end to the other."""
WAY = 4096
"""Bytes after which addresses compete for the same set of the first-level cache."""


class DotMatrixTactic(MatrixTactic):
    """The matrix kernel for short numbers with a given register tile, loop order and packing."""

    @property
    def _source(self) -> DType:
        assert self.task.anchor is not None
        return self.task.anchor.inputs[0].dtype

    @cached_property
    @abstractmethod
    def dot(self) -> Dot:
        """How the task's numbers are multiplied."""

    def ways(self, g: Geometry) -> tuple[bool, ...]:
        """Whether to pack the source: what is worth measuring."""
        if not self._reads_in_place(g):
            return (True,)
        aliases = g.source.column * self._source.size % WAY == 0
        return (False, True) if aliases or g.strides[1] > 1 else (False,)

    def _packed_weights(
        self, weights: np.ndarray, window: Sequence[int], dilations: Sequence[int], groups: int = 1
    ) -> np.ndarray:
        """Weights as the kernel reads them, zero padded.

        Parameters
        ----------
        weights : array ``[taps, depth, channels of all groups]``
        window : tuple of int
            Rows and columns of taps.

        Returns
        -------
        array ``[groups, blocks, runs, steps, vectors * lanes, elements of a group of products]``
        """
        dot, width = self.dot, self.vectors * self.machine.lanes
        channels = weights.shape[-1] // groups
        blocks = ceil(channels, width)
        runs = window[0] * (1 if self._merges(window, dilations) else window[1])
        run = weights.shape[0] * weights.shape[1] // runs
        steps = groups_of(run, dot)
        padded = np.zeros((groups, runs, steps * dot.group, blocks * width), weights.dtype)
        split = weights.reshape(runs, run, groups, channels).transpose(2, 0, 1, 3)
        padded[:, :, :run, :channels] = split
        shaped = padded.reshape(groups, runs, steps, dot.group, blocks, width)
        return np.ascontiguousarray(shaped.transpose(0, 4, 1, 2, 5, 3))

    def _geometry(self, binding: Binding) -> Geometry | None:
        return geometry(self.task, binding)

    def _merges(self, window: Sequence[int], dilations: Sequence[int]) -> bool:
        return window[1] == 1 or (self.packed and dilations[-1] == 1)

    def _merges_taps(self, g: Geometry, pitch: int) -> bool:
        return self._merges(g.window, g.dilations)

    def _weights_of_run(self, run: int) -> int:
        return groups_of(run, self.dot) * self.dot.group * self.vectors * self.machine.lanes

    def _kernel(self, **fields: Any) -> GemmKernel:
        groups = groups_of(fields["run"], self.dot)
        fields["unroll"] = unrolled(groups, self.pixels * self.vectors)
        return DotGemmKernel(**fields, source=self._source, dot=self.dot)

    def _packing(self, g: Geometry, cut: Any, binding: Binding) -> tuple:
        pack, scratch, params, row_step, tap_row = super()._packing(g, cut, binding)
        dense = pack.column_unit == 1 and g.source.column == pack.pitch == g.depth
        pack = replace(pack, contiguous=dense and not any(pack.operands))
        return pack, scratch + MARGIN, params, row_step, tap_row


@dataclass(frozen=True)
class DotMatrixFamily(MatrixFamily):
    """Offers a `DotMatrixTactic` with the likeliest tiles."""

    tactic: ClassVar[type[DotMatrixTactic]]

    def offered(self, task: Task, binding: Binding) -> Iterator[Tactic]:
        g = geometry(task, binding)
        if g is None or g.depth == g.channels == 1 < g.groups:  # depthwise has its own family
            return
        for tile in candidates(self.tactic(task, self.machine, *SMALLEST), g):
            yield self.tactic(task, self.machine, *tile)


def geometry(task: Task, binding: Binding) -> Geometry | None:
    """The geometry of a task that is a convolution or matrix product."""
    return conv_geometry(task, binding) or matmul_geometry(task, binding)


def candidates(tactic: DotMatrixTactic, g: Geometry) -> list[Tile]:
    """Tiles worth measuring, the likely best first, for the task of a tactic of any tile."""
    machine, dot = tactic.machine, tactic.dot
    needed = ceil(g.channels, machine.lanes)
    tiles = [
        (pixels, vectors, tail, outer, packed)
        for vectors in range(1, min(needed, WIDEST) + 1)
        for pixels, tail in _heights(g.columns, _most_pixels(vectors, dot, machine))
        for packed in tactic.ways(g)
        for outer in ((False, True) if needed > vectors else (False,))
    ]
    return sorted(tiles, key=lambda tile: estimate(g, tile, dot, machine))


def _most_pixels(vectors: int, dot: Dot, machine: Machine) -> int:
    """As `most_pixels`; several groups at a time need registers for their factors and products."""
    if dot.together == 1:
        return most_pixels(vectors, machine)
    return max((machine.registers - dot.together * (vectors + 2)) // vectors, 1)


def _heights(columns: int, most: int) -> Iterator[tuple[int, int]]:
    """Tiles' pixels and tails: as for other numbers, and half of the tallest. The end of a small
    tile, bytes above all, takes as long as its products, and is done beside the next one's.
    """
    yield from pixel_tiles(columns, most)
    half = most // 2
    if 1 < half < columns:
        yield half, 0


def estimate(g: Geometry, tile: Tile, dot: Dot, machine: Machine) -> float:
    """Roughly, cycles of one core: ranks tactics where nothing was measured yet.

    What a tile's end takes is from times of ResNet50's layers, on a core of AMD Zen 5.
    """
    pixels, vectors, tail, pixels_outer, packed = tile
    window = g.window[0] * g.window[1]
    depth = ceil(g.depth * window, dot.group)
    blocks = ceil(g.channels, vectors * machine.lanes)
    tiles, rest = divmod(g.columns, pixels)
    of_row = tiles * _cycles(pixels, vectors, depth, dot, machine)
    if rest:
        tiles += 1
        of_row += _cycles(tail or pixels, vectors, depth, dot, machine)
    rows = g.batch * g.rows * g.groups
    cycles = rows * blocks * of_row
    if packed:
        cycles += 3 * g.batch * g.height * g.width * g.depth * g.groups / machine.lanes
    weights = 4 * depth * vectors * machine.lanes
    if weights * (blocks if pixels_outer else 1) > machine.l1 // 2:  # read again for every tile
        cycles += rows * tiles * blocks * weights / OF_L2
    if not pixels_outer and blocks > 1 and any(p and p.column for p in g.operands):
        cycles += rows * g.columns * blocks * vectors * RESIDUAL
    return cycles


def _cycles(pixels: int, vectors: int, depth: int, dot: Dot, machine: Machine) -> float:
    """Of a tile, in registers."""
    sums = pixels * vectors
    several = dot.instructions(machine)
    if several > 1:
        step = max(step_cycles(pixels, vectors, ADD_LATENCY), sums * several / RATE)
    else:
        latency = HALVES_LATENCY if dot == HALVES else BYTES_LATENCY
        step = step_cycles(pixels, vectors, latency)
    beyond = max(END * sums - WINDOW, 0)
    return depth * step + sums + START + beyond / WIDTH
