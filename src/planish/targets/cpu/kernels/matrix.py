"""Tactics of the matrix kernel: convolutions, and matrix products with constant or other B."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.ops.matmul import MatMul
from planish.targets.base import (
    Binding,
    Constant,
    Launch,
    Pointer,
    Tactic,
    Workspace,
)
from planish.targets.cpu.kernels.blocking import Blocking, ceil, choose_blocking
from planish.targets.cpu.kernels.epilogue import Operand
from planish.targets.cpu.kernels.family import MachineFamily
from planish.targets.cpu.kernels.gemm import GemmKernel
from planish.targets.cpu.kernels.geometry import (
    Geometry,
    Place,
    conv_geometry,
    matmul_geometry,
    operand_kinds,
    operand_place,
    pack_weights,
)
from planish.targets.cpu.kernels.pack_matrix import PackMatrixKernel
from planish.targets.cpu.kernels.pack_rows import Pack
from planish.targets.cpu.kernels.register_tile import (
    ALIASING,
    PREFETCH,
    asking_tiles,
    most_pixels,
    step_cycles,
    unrolled,
)
from planish.targets.cpu.machine import Machine
from planish.targets.restoring import FLAG, Allowed

LARGEST_TILE = 64
"""Registers that a tile may take, at most, on any machine."""


@dataclass(frozen=True, eq=False)
class MatrixTactic(Tactic):
    """The matrix kernel with a given register tile, loop order and packing."""

    family: ClassVar[str] = "matrix"
    machine: Machine
    pixels: int
    vectors: int
    tail: int
    pixels_outer: bool
    packed: bool

    @cached_property
    def _weights(self) -> Value | None:
        """The constant weights; None where B is computed at run time."""
        assert self.task.anchor is not None
        value = self.task.anchor.inputs[1]
        return value if value.is_constant else None

    def constants(self) -> list[np.ndarray]:
        if self._weights is None:
            return []
        assert self.task.anchor is not None and self._weights.data is not None
        op, data = self.task.anchor.op, self._weights.data
        if isinstance(op, MatMul):
            return [
                np.concatenate(
                    [
                        pack_weights(matrix, 1, self.vectors, self.machine.lanes, op.transpose_b)
                        for matrix in data.reshape(-1, *data.shape[-2:])
                    ]
                )
            ]
        assert isinstance(op, Conv)
        return [pack_weights(data, op.groups, self.vectors, self.machine.lanes)]

    def accepts(self, binding: Binding) -> bool:
        g = self._geometry(binding)
        if g is None:
            return False
        if g.columns < (self.tail or self.pixels):
            return g.pixels == 0
        if self.tail and g.columns % self.pixels > self.tail:
            return False
        if not self.packed:
            return self._reads_in_place(g)
        return all(place is not None for _, place in self._prologue_places(g, binding))

    def _geometry(self, binding: Binding) -> Geometry | None:
        """The problem at these shapes and layouts; None if it is none of the kernel's."""
        return _geometry(self.task, binding)

    def _reads_in_place(self, g: Geometry) -> bool:
        """Whether the source can be read where it lies, without packing."""
        return not (g.padded or self.task.prologue)

    def workspace(self, binding: Binding) -> int:
        g = self._geometry(binding)
        if self._weights is not None or g is None:
            return 0
        width = self.vectors * self.machine.lanes
        return 4 * g.matrices * g.depth * ceil(g.channels, width) * width

    def launches(self, binding: Binding) -> list[Launch]:
        g = self._geometry(binding)
        assert g is not None
        main = self._main_launch(g, binding)
        return [main] if self._weights is not None else [self._pack_launch(g, binding), main]

    def _pack_launch(self, g: Geometry, binding: Binding) -> Launch:
        """Packs B into workspace as the kernel reads it."""
        anchor = self.task.anchor
        assert anchor is not None and isinstance(anchor.op, MatMul)
        b = anchor.inputs[1]
        down, along = binding.strides(b)[-2:]
        if anchor.op.transpose_b:
            down, along = along, down
        lanes = self.machine.lanes
        blocks = ceil(g.channels, self.vectors * lanes)
        groups = g.weights[0] or g.matrices
        assert g.second is not None
        params = (blocks, g.depth, g.channels, groups, g.second.batch, g.second.group, down, along)
        kernel = PackMatrixKernel(self.vectors, contiguous=along == 1)
        return Launch(kernel, (b, Workspace()), params, tasks=g.matrices * blocks)

    def _main_launch(self, g: Geometry, binding: Binding) -> Launch:
        task, lanes = self.task, self.machine.lanes
        cut = self._blocking(g)
        window, dilations = g.window, g.dilations
        pack, scratch, pack_params = None, 0, ()
        if self.packed:
            pack, scratch, pack_params, row_step, tap_row = self._packing(g, cut, binding)
            pitch = pack.pitch
            pixel_step = pack.columns_per_column * pitch
        else:
            pitch = g.source.column
            row_step = g.strides[0] * g.source.row
            tap_row = dilations[0] * g.source.row
            pixel_step = g.strides[1] * pitch
        merged = self._merges_taps(g, pitch)
        run = g.depth * (window[1] if merged else 1)
        tap_columns = 1 if merged else window[1]
        steps = self.pixels * self.vectors
        blocks = ceil(g.channels, self.vectors * lanes)
        block = self._block(window[0] * tap_columns * self._weights_of_run(run))
        last_axis = binding.shape(task.outputs[0])[-1]
        kernel = self._kernel(
            pixels=self.pixels,
            vectors=self.vectors,
            tail=self.tail,
            tap_rows=window[0],
            tap_columns=tap_columns,
            run=run,
            pixel_step=pixel_step,
            tap_column_step=0 if merged else dilations[1] * pitch,
            masked=g.channels % (self.vectors * lanes) != 0,
            pixels_outer=self.pixels_outer,
            unroll=unrolled(run, steps),
            epilogue=task.epilogue.expression,
            operands=operand_kinds(task.epilogue, task, last_axis, binding),
            columns_apart=g.columns_apart,
            pack=pack,
            prefetch=PREFETCH if 8 * block > self.machine.l1 else 0,
            tiles=self._tiles(g, cut),
        )
        params = (
            g.channels,
            blocks,
            cut.blocks,
            cut.channel_tasks,
            g.rows,
            cut.rows,
            cut.row_tasks,
            g.columns,
            cut.columns,
            cut.column_tasks,
            g.groups,
            g.source.batch,
            g.source.group,
            row_step,
            tap_row,
            g.weights[0] * blocks * block,
            g.weights[1] * blocks * block,
            block,
            *pack_params,
        )
        values, places = g.epilogue_arguments(task)
        for value, place in self._prologue_places(g, binding):
            assert place is not None
            values, places = (*values, value), (*places, *place.params)
        weights: Pointer = Constant(0) if self._weights else Workspace()
        tasks = g.batch * g.groups * cut.row_tasks * cut.column_tasks * cut.channel_tasks
        if g.pixels == 0:
            tasks = 0
        pointers = (task.inputs[0], weights, *values)
        return Launch(kernel, pointers, (*params, *places), tasks, scratch=scratch)

    def _blocking(self, g: Geometry) -> Blocking:
        """How the work is cut into tasks."""
        return choose_blocking(g, self.pixels, self.vectors, self.machine)

    def _tiles(self, g: Geometry, cut: Blocking) -> int:
        """Over how many tiles the weights of the next block are asked for."""
        weights = 4 * g.depth * g.channels
        near = g.window != (1, 1) or g.rows > 1 or self.pixels_outer or weights < self.machine.l2
        return 0 if near else asking_tiles(cut.columns // self.pixels)

    def _merges_taps(self, g: Geometry, pitch: int) -> bool:
        """Whether a row of taps is read as one run of depth."""
        return g.dilations[1] == 1 and pitch == g.depth

    def _weights_of_run(self, run: int) -> int:
        """How many packed weights a run of depth takes, for one block of channels."""
        return run * self.vectors * self.machine.lanes

    def _block(self, weights: int) -> int:
        """From one block of channels to the next, for so many weights."""
        return weights

    def _kernel(self, **fields: Any) -> GemmKernel:
        return GemmKernel(**fields)

    def _prologue_places(self, g: Geometry, binding: Binding) -> list[tuple[Value, Place | None]]:
        """The operands in memory of what is applied while packing, and where they lie.

        None: at a layout that the kernel cannot follow.
        """
        task = self.task
        if not task.prologue:
            return []
        shape = binding.shape(task.inputs[0])
        operands = _prologue_operands(task, g.depth * g.groups, binding)
        sources = zip(task.prologue.sources, operands, strict=True)
        values = [task.inputs[s] for s, operand in sources if operand and s is not None]
        return [(v, operand_place(v, shape, g.depth, binding)) for v in values]

    def _packing(self, g: Geometry, cut: Any, binding: Binding) -> tuple:
        """The pack specification, scratch bytes, parameters, and the steps through scratch."""
        window, strides, dilations = g.window, g.strides, g.dilations
        row_unit = strides[0] if window[0] == 1 else 1
        column_unit = strides[1] if window[1] == 1 else 1
        rows_per_row, columns_per_column = strides[0] // row_unit, strides[1] // column_unit
        halo_rows = (window[0] - 1) * dilations[0] + 1
        halo_columns = (window[1] - 1) * dilations[1] + 1
        pitch = g.depth
        if pitch * columns_per_column % ALIASING == 0 and window[1] == 1:
            pitch += self.machine.lanes
        # a last task may start earlier than its columns: see the kernel
        columns = min(max(cut.columns, self.pixels), g.columns)
        scratch_row = ((columns - 1) * columns_per_column + halo_columns) * pitch
        scratch_row += -scratch_row % self.machine.lanes
        if scratch_row % ALIASING == 0:
            scratch_row += self.machine.lanes
        scratch_rows = (cut.rows - 1) * rows_per_row + halo_rows
        prologue = None
        operands: tuple[Operand | None, ...] = ()
        if self.task.prologue:
            prologue = self.task.prologue.expression
            operands = _prologue_operands(self.task, g.depth * g.groups, binding)
        pack = Pack(
            depth=g.depth,
            pitch=pitch,
            column_unit=column_unit,
            columns_per_column=columns_per_column,
            contiguous=column_unit == 1
            and g.source.column == pitch == g.depth
            and prologue is None,
            prologue=prologue,
            operands=operands,
            dtype=self.task.inputs[0].dtype,
        )
        params = (
            g.height,
            g.width,
            *g.pads,
            *strides,
            row_unit,
            rows_per_row,
            halo_rows,
            halo_columns,
            scratch_row,
            g.source.row,
            g.source.column,
        )
        # the copies read and write whole vectors beyond nothing: tails are masked
        scratch = 4 * scratch_rows * scratch_row
        return pack, scratch, params, rows_per_row * scratch_row, dilations[0] * scratch_row


def _understood(task: Task) -> bool:
    """Whether a task is of the kernel's kind; shapes and layouts decide the rest (`_geometry`)."""
    if task.anchor is None or not isinstance(task.anchor.op, Conv | MatMul):
        return False
    op, (x, weights) = task.anchor.op, task.anchor.inputs
    if x.dtype is not DType.FLOAT32:
        return False
    if isinstance(op, Conv):
        return len(op.strides) in (1, 2) and weights.is_constant
    return not op.transpose_a and task.prologue is None


@dataclass(frozen=True)
class MatrixFamily(MachineFamily):
    """Convolutions (not depthwise) and matrix products in float32, for this or another machine."""

    name: ClassVar[str] = "matrix"
    tactic: ClassVar[type[Tactic]] = MatrixTactic
    allowed: ClassVar[Allowed] = {
        "pixels": range(1, LARGEST_TILE + 1),
        "vectors": range(1, LARGEST_TILE + 1),
        "tail": range(LARGEST_TILE + 1),
        "pixels_outer": FLAG,
        "packed": FLAG,
    }

    def understands(self, task: Task) -> bool:
        return _understood(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        g = _geometry(task, binding)
        if g is None or g.depth == g.channels == 1 < g.groups:  # depthwise has its own family
            return
        machine = self.machine
        candidates = sorted(_candidates(g, task, machine), key=lambda c: estimate(g, c, machine))
        for tile in candidates:
            yield MatrixTactic(task, machine, *tile)

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        pixels, vectors, tail = values["pixels"], values["vectors"], values["tail"]
        if pixels * vectors > LARGEST_TILE or 0 < pixels <= tail:
            return f"no tile has {pixels} pixels, {vectors} vectors and a tail of {tail}"
        return ""


Tile = tuple[int, int, int, bool, bool]
"""pixels, vectors, tail, pixels_outer, packed."""


def _candidates(g: Geometry, task: Task, machine: Machine) -> Iterator[Tile]:
    must_pack = g.padded or task.prologue is not None
    vectors_needed = ceil(g.channels, machine.lanes)
    for vectors in range(1, min(vectors_needed, 6) + 1):
        most = most_pixels(vectors, machine)
        for pixels, tail in pixel_tiles(g.columns, most):
            for packed in (True,) if must_pack else (False, True):
                if packed and not must_pack and not _packing_may_pay(g):
                    continue
                for pixels_outer in (False, True):
                    if pixels_outer and vectors_needed <= vectors:
                        continue
                    yield pixels, vectors, tail, pixels_outer, packed


def pixel_tiles(columns: int, most: int) -> Iterator[tuple[int, int]]:
    """Tile heights worth trying, with their tails: the tallest, and those that waste least."""
    heights = range(1, min(most, max(columns, 1)) + 1)
    tall = [m for m in heights if 2 * m > most or m == heights[-1]]
    # fewest tiles' worth of pixels computed, then the tallest tile
    best = sorted(tall, key=lambda m: (ceil(columns, m) * m, -m))[:2]
    for m in dict.fromkeys((*best, tall[-1])):
        yield m, 0
        if rest := columns % m:
            yield m, rest
    if heights[-1] != 1:
        yield 1, 0


def _packing_may_pay(g: Geometry) -> bool:
    """Whether pixels alias in the cache, or lie apart, where they are."""
    step = g.strides[1] * g.source.column
    return step % ALIASING == 0 or g.strides[1] > 1


def estimate(g: Geometry, tile: Tile, machine: Machine) -> float:
    """Roughly, cycles of one core: ranks tactics where nothing was measured yet."""
    pixels, vectors, tail, pixels_outer, packed = tile
    depth = g.depth * g.window[0] * g.window[1]
    blocks = ceil(g.channels, vectors * machine.lanes)

    whole, rest = divmod(g.columns, pixels)
    per_row = whole * step_cycles(pixels, vectors)
    tiles = whole
    if rest:
        per_row += step_cycles(tail or pixels, vectors)
        tiles += 1
    overhead = 20 + 3 * pixels * vectors
    rows = g.batch * g.rows * g.groups
    cycles = rows * blocks * (per_row * depth + tiles * overhead)
    if packed:
        cycles += g.batch * g.height * g.width * g.depth * g.groups / machine.lanes * 3
    # weights beyond the first-level cache are read again for every tile
    weight_bytes = depth * vectors * machine.lanes * 4
    if not pixels_outer and weight_bytes > machine.l1 // 2:
        cycles += rows * tiles * blocks * weight_bytes / 64
    elif pixels_outer:
        cycles += rows * tiles * blocks * weight_bytes / 48
    return cycles


def _geometry(task: Task, binding: Binding) -> Geometry | None:
    if not _understood(task):
        return None
    return conv_geometry(task, binding) or matmul_geometry(task, binding)


def _prologue_operands(task: Task, channels: int, binding: Binding) -> tuple[Operand | None, ...]:
    assert task.prologue is not None
    kinds = operand_kinds(task.prologue, task, channels, binding)
    return tuple(
        None if source == 0 else kind
        for source, kind in zip(task.prologue.sources, kinds, strict=True)
    )


FAMILIES = (MatrixFamily(),)
