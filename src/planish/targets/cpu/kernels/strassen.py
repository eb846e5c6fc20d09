"""Tactics of large matrix products and 1x1 convolutions with seven eighths of the multiplications.

Where a product runs at the machine's peak, only less arithmetic is faster. It costs weights seven
fourths as large, and accuracy: rounding is that of the largest elements of two rows and of all
weights of two blocks of channels, no longer that of each product of its own. Rows are only summed
with others of their sample (the first axis), so that no sample hears of what is batched with it.
Chosen by measurement, and checked as every tactic is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.ops.matmul import MatMul
from planish.targets.base import Binding, Constant, Launch, Tactic
from planish.targets.cpu.kernels.blocking import ceil
from planish.targets.cpu.kernels.family import MachineFamily
from planish.targets.cpu.kernels.geometry import (
    Geometry,
    Place,
    conv_geometry,
    matmul_geometry,
    operand_kinds,
)
from planish.targets.cpu.kernels.register_tile import (
    ALIASING,
    PREFETCH,
    most_pixels,
    step_cycles,
    unrolled,
)
from planish.targets.cpu.kernels.strassen_kernel import FACTORS, StrassenKernel
from planish.targets.cpu.machine import Machine
from planish.targets.cpu.pool import aligned_empty
from planish.targets.restoring import Allowed

LEAST_DEPTH = 512
"""Of a shallower product, adding to the quadrants costs what the eighth product would."""

TILES = (1, 2, 3, 4, 6, 8)
"""Register tiles along a half, at most: each task reads all weights once."""

OFFERED = 4
"""So many tactics of a task are offered, the likely best."""


@dataclass(frozen=True, eq=False)
class StrassenTactic(Tactic):
    """Products of a `pixels` x `vectors` register tile, `tiles` of them along a half."""

    family: ClassVar[str] = "strassen"
    machine: Machine
    pixels: int
    vectors: int
    tiles: int

    @property
    def _width(self) -> int:
        return self.vectors * self.machine.lanes

    def constants(self) -> list[np.ndarray]:
        """``[pair of channel blocks][product][depth / 2][vectors x lanes]``."""
        matrix = _weights(self.task)
        assert matrix is not None
        depth, pairs = len(matrix) // 2, matrix.shape[1] // (2 * self._width)
        # [down][depth][pair][right][width]
        halves = matrix.reshape(2, depth, pairs, 2, self._width)
        packed = aligned_empty((pairs, len(FACTORS), depth, self._width), DType.FLOAT32)
        for product, (_, terms) in enumerate(FACTORS):
            parts = [sign * halves[q // 2, :, :, q % 2] for q, sign in terms.items()]
            packed[:, product] = sum(parts[1:], parts[0]).swapaxes(0, 1)
        return [packed]

    def accepts(self, binding: Binding) -> bool:
        g = _geometry(self.task, binding)
        if g is None or g.channels % (2 * self._width) or g.depth % (2 * self.machine.lanes):
            return False
        return _sample_pixels(self.task, binding) >= self.pixels * self.tiles

    def launches(self, binding: Binding) -> list[Launch]:
        g, task, lanes = _geometry(self.task, binding), self.task, self.machine.lanes
        assert g is not None
        depth = g.depth // 2
        pitch = depth + lanes if depth % ALIASING == 0 else depth
        kernel = StrassenKernel(
            pixels=self.pixels,
            vectors=self.vectors,
            tiles=self.tiles,
            depth=depth,
            pitch=pitch,
            unroll=unrolled(depth, self.pixels * self.vectors),
            prefetch=PREFETCH,
            epilogue=task.epilogue.expression,
            operands=operand_kinds(task.epilogue, task, g.channels, binding),
        )
        pairs = g.channels // (2 * self._width)
        pixels = _sample_pixels(task, binding)
        pixel_tasks, channel_tasks = _tasks(g, self, pixels)
        pairs_per_task = ceil(pairs, channel_tasks)
        channel_tasks = ceil(pairs, pairs_per_task)
        params = (
            pixels,
            ceil(pixels, 2 * kernel.half),
            g.rows,
            g.columns,
            g.source.batch,
            g.source.row * g.strides[0],
            g.source.column * g.strides[1],
            pairs,
            pairs_per_task,
            channel_tasks,
        )
        values, places = g.epilogue_arguments(task)
        return [
            Launch(
                kernel,
                (task.inputs[0], Constant(0), *values),
                (*params, *places),
                tasks=pixel_tasks * channel_tasks,
                scratch=4 * kernel.scratch_elements(lanes),
            )
        ]


@dataclass(frozen=True)
class StrassenFamily(MachineFamily):
    """Large float32 products with constant weights, for this or another machine."""

    name: ClassVar[str] = "strassen"
    tactic: ClassVar[type[Tactic]] = StrassenTactic
    allowed: ClassVar[Allowed] = {"pixels": range(1, 33), "vectors": range(1, 33), "tiles": TILES}

    def understands(self, task: Task) -> bool:
        return _weights(task) is not None

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        g = _geometry(task, binding)
        if g is None or g.depth < LEAST_DEPTH:
            return
        tactics = (StrassenTactic(task, self.machine, *c) for c in _candidates(g, self.machine))
        accepted = [tactic for tactic in tactics if tactic.accepts(binding)]
        pixels = _sample_pixels(task, binding)
        yield from sorted(accepted, key=lambda tactic: _estimate(g, tactic, pixels))[:OFFERED]

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        if values["pixels"] * values["vectors"] > 32:
            return "no register tile is that large"
        return ""


def _weights(task: Task) -> np.ndarray | None:
    """The constant weights, depth x channels; None if the task is none of the kernel's kind."""
    anchor = task.anchor
    if anchor is None or task.prologue is not None or not isinstance(anchor.op, Conv | MatMul):
        return None
    op, (x, weights) = anchor.op, anchor.inputs[:2]
    if weights.data is None or x.dtype is not DType.FLOAT32:
        return None
    if isinstance(op, MatMul):
        plain = weights.data.ndim == 2 and not op.transpose_a
        return (weights.data.T if op.transpose_b else weights.data) if plain else None
    window = weights.data.shape[:-2]
    one = op.groups == 1 and all(n == 1 for n in window)
    return weights.data.reshape(weights.data.shape[-2:]) if one and len(window) in (1, 2) else None


def _geometry(task: Task, binding: Binding) -> Geometry | None:
    """The problem with its results as one row of pixels; None if it is none of the kernel's."""
    if _weights(task) is None:
        return None
    g = conv_geometry(task, binding) or matmul_geometry(task, binding)
    if g is None or not g.is_matrix or g.groups != 1:
        return None
    followed = all(place is None or _is_a_row(place, g) for place in (*g.outputs, *g.operands))
    return g if followed else None


def _is_a_row(place: Place, g: Geometry) -> bool:
    """Whether all pixels of all images are the same step apart."""
    row = g.columns * place.column
    return (g.rows == 1 or place.row == row) and (g.batch == 1 or place.batch == g.rows * row)


def _candidates(g: Geometry, machine: Machine) -> Iterator[tuple[int, int, int]]:
    """pixels, vectors, tiles."""
    for vectors in range(1, 5):
        most = most_pixels(vectors, machine)
        for pixels in range(most, most * 2 // 3, -1):
            for tiles in TILES:
                yield pixels, vectors, tiles


def _sample_pixels(task: Task, binding: Binding) -> int:
    """Pixels of a sample, the results' first axis; 1 where their rows are samples."""
    assert task.anchor is not None
    return math.prod(task.anchor.output.type.bind(binding.symbols)[1:-1])


def _tasks(g: Geometry, tactic: StrassenTactic, pixels: int) -> tuple[int, int]:
    """How many tasks there are along pixels, so many a sample, and along channels."""
    cores = tactic.machine.cores
    pixel_tasks = g.pixels // pixels * ceil(pixels, 2 * tactic.pixels * tactic.tiles)
    channel_tasks = 1
    while pixel_tasks * channel_tasks % cores and channel_tasks < cores:
        channel_tasks += 1
    return pixel_tasks, min(channel_tasks, g.channels // (2 * tactic._width))


def _estimate(g: Geometry, tactic: StrassenTactic, pixels: int) -> float:
    """Roughly, cycles of one core: ranks tactics where nothing was measured yet."""
    machine, lanes = tactic.machine, tactic.machine.lanes
    half, tile = tactic.pixels * tactic.tiles, tactic.pixels * tactic.vectors
    depth, pairs = g.depth // 2, g.channels // (2 * tactic._width)
    pixel_tasks, channel_tasks = _tasks(g, tactic, pixels)
    steps = tactic.tiles * len(FACTORS) * (depth * step_cycles(tactic.pixels, tactic.vectors))
    shares = 3 * 4 * tactic.tiles * tile
    weights = len(FACTORS) * depth * tactic._width * 4 / 64
    summed = channel_tasks * len(FACTORS) * half * depth / lanes
    cycles = pixel_tasks * (pairs * (steps + shares + weights) + summed)
    beyond = 4 * half * len(FACTORS) * depth > machine.l2 // 2
    tasks = pixel_tasks * channel_tasks
    return cycles * (1.1 if beyond else 1.0) * ceil(tasks, machine.cores) * machine.cores / tasks


FAMILIES = (StrassenFamily(),)
