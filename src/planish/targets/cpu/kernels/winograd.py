"""Tactics of Winograd convolution: windows of 3, 5 or 7 along one or both axes, moved by one pixel.

A 3 x 3 convolution takes 36 products for a tile of 4 x 4 pixels instead of 144. What that costs in
weights (four times as many bytes) and in accuracy decides where it is chosen: by measurement, and
checked as every tactic is.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.targets.base import Binding, Constant, Launch, Tactic
from planish.targets.cpu.kernels.blocking import ceil
from planish.targets.cpu.kernels.family import MachineFamily
from planish.targets.cpu.kernels.geometry import Geometry, conv_geometry, operand_kinds
from planish.targets.cpu.kernels.register_tile import (
    ALIASING,
    PREFETCH,
    asking_tiles,
    most_pixels,
    step_cycles,
    unrolled,
)
from planish.targets.cpu.kernels.winograd_kernel import WinogradKernel
from planish.targets.cpu.kernels.winograd_transform import Transform, transform_filters
from planish.targets.cpu.machine import Machine
from planish.targets.cpu.pool import aligned_empty
from planish.targets.restoring import FLAG, Allowed

LEAST_CHANNELS = 16
"""Of fewer input or output channels the transforms cost more than they save."""

MOST_SCRATCH = 8 << 20
"""Bytes of scratch memory per thread, at most."""

HALVES = (1, 2, 4, 8, 16, 32)
"""A task's transformed tiles and products take so many halves of the second-level cache: more than
all of it where weights are large, because each task reads them once.
"""

TILES: Allowed = {"pixels": range(1, 33), "vectors": range(1, 33), "halves": HALVES}
"""The possible parameters of any tactic but `results`."""

OFFERED = 6
"""So many tactics of a task are offered, the likely best."""

NARROW_RESULTS = 2
"""Tiles that products of bfloat16 are accurate enough for: with 4 pixels the transforms would
multiply their rounding by ten.
"""

MARGIN = 1.2
"""Tactics are offered up to so many times the estimate of a convolution without transforms."""

FIRST_BYTE, NEXT_BYTE = 5.0, 2.0
"""Multiply-adds that take as long as a byte of weights takes to come, the first time and again."""


@dataclass(frozen=True, eq=False)
class AnyWinograd(Tactic):
    """What tactics of Winograd convolution share.

    Tiles have `results` pixels along each transformed axis; `pixels` x `vectors` is the register
    tile, and `halves` how much of the second-level cache a task may take, in halves of it.
    """

    machine: Machine
    results: int
    pixels: int
    vectors: int
    halves: int

    @property
    @abstractmethod
    def factor(self) -> DType:
        """Of transformed patches and weights."""

    @abstractmethod
    def transforms(self, window: tuple[int, ...]) -> tuple[Transform, Transform]:
        """Those of rows and of columns."""

    @property
    @abstractmethod
    def cost_of_product(self) -> float:
        """What a product takes, in float32 multiply-adds."""

    @property
    @abstractmethod
    def filters(self) -> np.ndarray:
        """Float32 or integers ``[rows, columns, depth, channels]``."""

    @property
    def zero(self) -> int:
        """The zero point of the image."""
        return 0

    def constants(self) -> list[np.ndarray]:
        """``[position][block][depth][vectors x lanes]``, zero padded; of 16 bits by pairs of depth:
        ``[position][block][pair][vectors x lanes][2]``.
        """
        filters, factor = self.filters, self.factor
        down, along = self.transforms(filters.shape[:2])
        depth, channels = filters.shape[2:]
        width = self.vectors * self.machine.lanes
        blocks, positions = ceil(channels, width), down.size * along.size
        shape: tuple[int, ...] = (positions, blocks, depth, width)
        if factor.size == 2:
            shape = (positions, blocks, ceil(depth, 2), width, 2)
        packed = aligned_empty(shape, factor)
        for block in range(blocks):  # one by one: only the result is large
            part = filters[..., block * width : (block + 1) * width]
            made = transform_filters(part, down, along, np.float32 if factor.is_float else np.int16)
            if factor.size == 2:
                even = np.pad(made, ((0, 0), (0, depth % 2), (0, 0)))
                made = even.reshape(positions, -1, 2, part.shape[-1]).swapaxes(-1, -2)
            packed[:, block, :, : part.shape[-1]] = made
            packed[:, block, :, part.shape[-1] :] = 0
        return [packed]

    def accepts(self, binding: Binding) -> bool:
        g = conv_geometry(self.task, binding)
        return g is not None and g.pixels > 0

    def launches(self, binding: Binding) -> list[Launch]:
        g, task, lanes = conv_geometry(self.task, binding), self.task, self.machine.lanes
        assert g is not None
        down, along = self.transforms(g.window)
        cut = Cut.of(g, self)
        width, size = self.vectors * lanes, self.factor.size
        weight_bytes = 4 * g.depth * width
        kernel = WinogradKernel(
            down=down,
            along=along,
            depth=g.depth,
            pitch=cut.pitch,
            pixels=self.pixels,
            vectors=self.vectors,
            masked=g.channels % lanes != 0,
            unroll=unrolled(ceil(g.depth, 4 // size), self.pixels * self.vectors),
            prefetch=PREFETCH if 8 * weight_bytes > self.machine.l1 else 0,
            tiles=asking_tiles(ceil(cut.tiles, self.pixels)),
            epilogue=task.epilogue.expression,
            operands=operand_kinds(
                task.epilogue, task, binding.shape(task.outputs[0])[-1], binding
            ),
            source=task.inputs[0].dtype,
            factor=self.factor,
        )
        # a cache line more, or the positions of a tile compete for the same sets of the cache
        source_position = cut.room * cut.pitch + lanes * (4 // size)
        product_position = cut.room * cut.blocks * width + 16
        positions = down.size * along.size
        products = positions * source_position * size // 4
        patch = products + positions * product_position
        edge = patch + positions * cut.pitch
        params = (
            g.channels,
            cut.all_blocks,
            cut.blocks,
            cut.channel_tasks,
            cut.all_tiles,
            cut.tiles,
            cut.image_tiles,
            cut.row_tiles,
            g.height,
            g.width,
            g.rows,
            g.columns,
            *g.pads,
            g.source.batch,
            g.source.row,
            g.source.column,
            patch,
            edge,
            products,
            source_position,
            product_position,
            cut.blocks * width,
            self.zero,
        )
        values, places = g.epilogue_arguments(task)
        return [
            Launch(
                kernel,
                (task.inputs[0], Constant(0), *values),
                (*params, *places),
                tasks=cut.tile_tasks * cut.channel_tasks,
                scratch=4 * (edge + down.results * along.results * lanes),
            )
        ]


@dataclass(frozen=True, eq=False)
class WinogradTactic(AnyWinograd):
    """Of float32 and bfloat16; if `narrow`, products are of the image's dtype, bfloat16."""

    family: ClassVar[str] = "winograd"
    narrow: bool = False

    @property
    def factor(self) -> DType:
        return DType.BFLOAT16 if self.narrow else DType.FLOAT32

    def transforms(self, window: tuple[int, ...]) -> tuple[Transform, Transform]:
        return transforms(window, self.results)

    @property
    def cost_of_product(self) -> float:
        return 0.5 if self.narrow and self.machine.has_bf16 else 1.0

    @property
    def filters(self) -> np.ndarray:
        assert self.task.anchor is not None
        data = self.task.anchor.inputs[1].data
        assert data is not None
        return (data if data.ndim == 4 else data[None]).astype(np.float32)


@dataclass(frozen=True)
class Cut:
    """How the tiles and channel blocks are cut into tasks.

    `room` is how many tiles there is scratch memory for, and `pitch` elements from one transformed
    tile to the next.
    """

    pitch: int
    row_tiles: int
    image_tiles: int
    all_tiles: int
    tiles: int
    tile_tasks: int
    room: int
    all_blocks: int
    blocks: int
    channel_tasks: int

    @staticmethod
    def of(g: Geometry, tactic: AnyWinograd) -> Cut:
        machine, size = tactic.machine, tactic.factor.size
        down, along = tactic.transforms(g.window)
        width = tactic.vectors * machine.lanes
        all_blocks = ceil(g.channels, width)
        pitch = ceil(g.depth, machine.lanes) * machine.lanes
        if pitch * size % (4 * ALIASING) == 0:
            pitch += machine.lanes
        row_tiles = ceil(g.columns, along.results)
        image_tiles = ceil(g.rows, down.results) * row_tiles
        all_tiles = g.batch * image_tiles
        # as many tasks as the cache wants, but the same number for every core
        tile_bytes = down.size * along.size * (size * pitch + 4 * all_blocks * width)
        fit = max(min(tactic.halves * machine.l2 // 2, MOST_SCRATCH) // tile_bytes, 1)
        tile_tasks = ceil(all_tiles, fit)
        channel_tasks = 1
        if tile_tasks < machine.cores:
            channel_tasks = min(ceil(machine.cores, tile_tasks), all_blocks)
        else:
            tile_tasks = ceil(tile_tasks, machine.cores) * machine.cores
        tiles = ceil(all_tiles, tile_tasks)
        blocks = ceil(all_blocks, channel_tasks)
        return Cut(
            pitch=pitch,
            row_tiles=row_tiles,
            image_tiles=image_tiles,
            all_tiles=all_tiles,
            tiles=tiles,
            tile_tasks=ceil(all_tiles, tiles),
            room=max(tiles, tactic.pixels),
            all_blocks=all_blocks,
            blocks=blocks,
            channel_tasks=ceil(all_blocks, blocks),
        )


@dataclass(frozen=True)
class WinogradFamily(MachineFamily):
    """Winograd convolutions of float32 and bfloat16, for this or another machine."""

    name: ClassVar[str] = "winograd"
    tactic: ClassVar[type[Tactic]] = WinogradTactic
    allowed: ClassVar[Allowed] = {
        "results": (2, 4),
        **TILES,
        "narrow": FLAG,
    }

    def understands(self, task: Task) -> bool:
        return _understood(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        g = conv_geometry(task, binding)
        if g is None or min(g.depth, g.channels) < LEAST_CHANNELS:
            return
        machine = self.machine
        found: dict[tuple, tuple[float, Tactic]] = {}
        for candidate in _candidates(g, machine, _may_be_narrow(task)):
            tactic = WinogradTactic(task, machine, *candidate)
            results, pixels, vectors, _, narrow = candidate
            cut = Cut.of(g, tactic)
            # more cache than there are tiles for is the same tactic again
            key = results, pixels, vectors, narrow, cut
            found.setdefault(key, (estimate(g, tactic, cut), tactic))
        ranked = sorted(found.values(), key=lambda item: item[0])[:OFFERED]
        direct = g.operations / 2 + FIRST_BYTE * 4 * math.prod(g.window) * g.depth * g.channels
        yield from (tactic for cost, tactic in ranked if cost < MARGIN * direct)

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        results = values["results"]
        if results not in _results(_window(task)):
            return f"tiles of {results} pixels do not suit its window"
        if values["narrow"] and not _may_be_narrow(task):
            return f"narrow is True, and the image is {task.inputs[0].dtype}"
        if values["narrow"] and results > NARROW_RESULTS:
            return f"narrow tiles have {NARROW_RESULTS} pixels"
        return too_large(values)


def too_large(values: Mapping[str, Any]) -> str:
    """What is wrong with a tile that has too many registers; empty if it has not."""
    return "no register tile is that large" if values["pixels"] * values["vectors"] > 32 else ""


def _understood(task: Task) -> bool:
    """Whether a task is of the kernel's kind; channels and layouts decide the rest."""
    if task.anchor is None or task.prologue is not None:
        return False
    op = task.anchor.op
    if not isinstance(op, Conv) or len(op.strides) not in (1, 2) or op.groups != 1:
        return False
    unit = all(n == 1 for n in (*op.strides, *op.dilations))
    dtype = task.anchor.inputs[0].dtype
    return unit and dtype in (DType.FLOAT32, DType.BFLOAT16) and bool(_results(_window(task)))


def _window(task: Task) -> tuple[int, ...]:
    """The window of a convolution; empty if its filters are computed."""
    assert task.anchor is not None
    filters = task.anchor.inputs[1].data
    return () if filters is None else filters.shape[:-2]


def _results(window: Iterable[int]) -> list[int]:
    """Sizes of a tile of results that suit a window, smallest first."""
    taps = {n for n in window if n > 1}
    if len(taps) != 1:
        return []
    return [2, 4] if max(taps) in (3, 5) else [2] if max(taps) == 7 else []


@functools.cache  # a transform works out its fractions once
def transforms(
    window: tuple[int, ...], results: int, exact: bool = False
) -> tuple[Transform, Transform]:
    """Of rows and of columns."""
    down, along = (Transform(results if n > 1 else 1, n, exact) for n in window)
    return down, along


def _may_be_narrow(task: Task) -> bool:
    return task.inputs[0].dtype is DType.BFLOAT16


def _candidates(
    g: Geometry, machine: Machine, narrow: bool
) -> Iterator[tuple[int, int, int, int, bool]]:
    """results, pixels, vectors, halves, narrow."""
    for results in _results(g.window):
        for tile in tiles(g, machine):
            yield results, *tile, False
            if narrow and results <= NARROW_RESULTS:
                yield results, *tile, True


def tiles(g: Geometry, machine: Machine) -> Iterator[tuple[int, int, int]]:
    """pixels, vectors, halves."""
    for vectors in range(1, min(ceil(g.channels, machine.lanes), 4) + 1):
        most = most_pixels(vectors, machine)
        for pixels in range(most, most * 2 // 3, -1):
            for halves in HALVES:
                yield pixels, vectors, halves


def estimate(g: Geometry, tactic: AnyWinograd, cut: Cut) -> float:
    """Roughly, the time in multiply-adds: ranks tactics where nothing was measured yet."""
    machine = tactic.machine
    down, along = tactic.transforms(g.window)
    positions = down.size * along.size
    width = tactic.vectors * machine.lanes
    step = step_cycles(tactic.pixels, tactic.vectors, 5.0)
    steps = cut.tile_tasks * ceil(cut.tiles, tactic.pixels) * cut.all_blocks
    products = steps * positions * g.depth * step * 2 * machine.lanes * tactic.cost_of_product
    # per element of a tile: loads, stores, and what the matrices cost, along both axes
    per_element = 4.0 + 2 * math.log2(positions)
    transforms = cut.all_tiles * positions * per_element
    transforms *= g.depth * cut.channel_tasks + g.channels
    weights = tactic.factor.size * positions * g.depth * cut.all_blocks * width
    moved = (FIRST_BYTE + NEXT_BYTE * (cut.tile_tasks - 1)) * weights
    tasks = cut.tile_tasks * cut.channel_tasks
    idle = ceil(tasks, machine.cores) * machine.cores / tasks
    # transformed tiles and products beyond the second-level cache come from the third
    spill = 1.0 + 0.05 * (tactic.halves > 2) + 0.05 * (tactic.halves > 4)
    return (products * spill + transforms + moved) * idle


FAMILIES = (WinogradFamily(),)
