"""Tactics of the matrix kernel for bytes: convolutions and matrix products with constant weights.

What it declines (computed weights, three dimensions, zero points that are not constant) is left to
`contraction`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.quantization import ConvInteger, MatMulInteger
from planish.targets.base import Binding, Tactic
from planish.targets.cpu.codegen.dot import BYTES, Dot, dot_of
from planish.targets.cpu.kernels.blocking import ceil
from planish.targets.cpu.kernels.family import MachineFamily
from planish.targets.cpu.kernels.gemm import GemmKernel
from planish.targets.cpu.kernels.geometry import Geometry, conv_geometry, matmul_geometry
from planish.targets.cpu.kernels.integer_gemm import IntegerGemmKernel, groups_of
from planish.targets.cpu.kernels.matrix import MatrixTactic, Tile, checked_tile, pixel_tiles
from planish.targets.cpu.kernels.register_tile import most_pixels, unrolled
from planish.targets.cpu.machine import Machine

MARGIN = 64
"""Bytes of scratch behind the last pixel: its last group is read whole."""


@dataclass(frozen=True, eq=False)
class IntegerMatrixTactic(MatrixTactic):
    """The matrix kernel for bytes with a given register tile, loop order and packing."""

    family: ClassVar[str] = "integer_matrix"

    @property
    def _dot(self) -> Dot:
        return dot_of(self.machine)

    @property
    def _source(self) -> DType:
        assert self.task.anchor is not None
        return self.task.anchor.inputs[0].dtype

    @property
    def _zero(self) -> int:
        """The zero point of the activations, as the kernel is to take it."""
        zero = _zero_points(self.task)[0]
        return zero + 128 if self._dot == BYTES and self._source is DType.INT8 else zero

    def constants(self) -> list[np.ndarray]:
        """Per block of channels the packed weights; for bytes, before them the first sums."""
        assert self.task.anchor is not None
        op, data = self.task.anchor.op, self.task.anchor.inputs[1].data
        assert data is not None
        weights = _centred_weights(self.task)
        if isinstance(op, MatMulInteger):
            window: tuple[int, ...] = (1, 1)
            groups, merged = 1, True
        else:
            assert isinstance(op, ConvInteger)
            window = (1,) * (2 - len(op.strides)) + data.shape[:-2]
            groups, merged = op.groups, self._merges(window, op.dilations)
        return [self._packed(weights, window, groups, merged)]

    def _packed(
        self, weights: np.ndarray, window: tuple[int, ...], groups: int, merged: bool
    ) -> np.ndarray:
        """Weights ``[taps, depth, channels of all groups]`` as the kernel reads them."""
        dot, width = self._dot, self.vectors * self.machine.lanes
        channels = weights.shape[-1] // groups
        blocks = ceil(channels, width)
        runs = window[0] * (1 if merged else window[1])
        run = weights.shape[0] * weights.shape[1] // runs
        steps = groups_of(run, dot)
        padded = np.zeros((groups, runs, steps * dot.group, blocks * width), np.int32)
        split = weights.reshape(runs, run, groups, channels).transpose(2, 0, 1, 3)
        padded[:, :, :run, :channels] = split
        shaped = padded.reshape(groups, runs, steps, dot.group, blocks, width)
        packed = shaped.transpose(0, 4, 1, 2, 5, 3).astype(dot.right.numpy)
        packed = packed.reshape(groups, blocks, -1)
        if dot != BYTES:
            return np.ascontiguousarray(packed)
        first = padded.sum(axis=(1, 2)).reshape(groups, blocks, width) * np.int32(-self._zero)
        raw = first.astype(np.int32).view(np.int8)
        return np.concatenate([raw, packed], axis=-1)

    def _geometry(self, binding: Binding) -> Geometry | None:
        return _geometry(self.task, binding)

    def _reads_in_place(self, g: Geometry) -> bool:
        as_bytes = self._dot == BYTES and self._source is DType.UINT8 and g.depth % 4 == 0
        return as_bytes and super()._reads_in_place(g)

    def _merges(self, window: tuple[int, ...], dilations: tuple[int, ...]) -> bool:
        return window[1] == 1 or (self.packed and dilations[-1] == 1)

    def _merges_taps(self, g: Geometry, pitch: int) -> bool:
        return self._merges(g.window, g.dilations)

    def _weights_of_run(self, run: int) -> int:
        return groups_of(run, self._dot) * self._dot.group * self.vectors * self.machine.lanes

    def _block(self, weights: int) -> int:
        first = 4 * self.vectors * self.machine.lanes if self._dot == BYTES else 0
        return weights + first

    def _kernel(self, **fields: Any) -> GemmKernel:
        steps = self.pixels * self.vectors
        groups = groups_of(fields["run"], self._dot)
        fields["unroll"] = unrolled(groups, steps)
        return IntegerGemmKernel(**fields, source=self._source)

    def _packing(self, g: Geometry, cut: Any, binding: Binding) -> tuple:
        pack, scratch, params, row_step, tap_row = super()._packing(g, cut, binding)
        dense = pack.column_unit == 1 and g.source.column == pack.pitch == g.depth
        pack = replace(pack, contiguous=dense and not any(pack.operands))
        return pack, scratch + MARGIN, (*params, self._zero), row_step, tap_row


def _zero_points(task: Task) -> tuple[int, np.ndarray]:
    """The constant zero points of activations and weights."""
    assert task.anchor is not None
    x_zero, w_zero = (v.data for v in task.anchor.inputs[2:4])
    assert x_zero is not None and w_zero is not None
    return int(x_zero.reshape(())), w_zero.astype(np.int32)


def _centred_weights(task: Task) -> np.ndarray:
    """Weights without their zero points, int32 ``[taps, depth, channels]``."""
    assert task.anchor is not None
    op, data = task.anchor.op, task.anchor.inputs[1].data
    assert data is not None
    if isinstance(op, MatMulInteger) and op.transpose_b:
        data = np.swapaxes(data, -1, -2)
    centred = data.astype(np.int32) - _zero_points(task)[1]
    return centred.reshape(-1, *data.shape[-2:])


def _understood(task: Task, machine: Machine) -> bool:
    anchor = task.anchor
    if anchor is None or not isinstance(anchor.op, ConvInteger | MatMulInteger):
        return False
    _, weights, x_zero, w_zero = anchor.inputs
    if any(v.data is None for v in (weights, x_zero, w_zero)) or x_zero.type.elements != 1:
        return False
    if isinstance(anchor.op, MatMulInteger) and weights.type.rank != 2:
        return False
    assert w_zero.data is not None
    columns = anchor.output.shape[-1]
    if w_zero.data.size not in (1, columns):
        return False
    if dot_of(machine) == BYTES:
        centred = _centred_weights(task)
        return bool(np.all(np.abs(centred + 0.5) < 128))
    return True


def _geometry(task: Task, binding: Binding) -> Geometry | None:
    if task.anchor is None or not isinstance(task.anchor.op, ConvInteger | MatMulInteger):
        return None
    return conv_geometry(task, binding) or matmul_geometry(task, binding)


@dataclass(frozen=True)
class IntegerMatrixFamily(MachineFamily):
    """Convolutions (not depthwise) and matrix products of bytes."""

    name: ClassVar[str] = "integer_matrix"

    def tactics(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        machine = self.machine
        if not _understood(task, machine):
            return
        g = _geometry(task, binding)
        if g is None or g.depth == g.channels == 1 < g.groups:
            return
        for tile in _candidates(g, machine):
            tactic = IntegerMatrixTactic(task, machine, *tile)
            if tactic.accepts(binding):
                yield tactic

    def restore(self, task: Task, parameters: Mapping[str, Any]) -> Tactic:
        understood = _understood(task, self.machine)
        tile = checked_tile(self.name, task, parameters, understood)
        return IntegerMatrixTactic(task, self.machine, **tile)


def _candidates(g: Geometry, machine: Machine) -> Iterator[Tile]:
    """The likely best first."""
    needed = ceil(g.channels, machine.lanes)
    # vectors beyond the last channel are multiplied in vain, and bytes are stored with masks
    widths = sorted(range(1, min(needed, 4) + 1), key=lambda v: (-needed % v, abs(v - 2)))
    ways = (False, True) if dot_of(machine) == BYTES else (True,)
    for vectors in widths:
        most = most_pixels(vectors, machine)
        for pixels, tail in pixel_tiles(g.columns, most):
            for packed in ways:
                for outer in (False, True) if needed > vectors else (False,):
                    yield pixels, vectors, tail, outer, packed


FAMILIES = (IntegerMatrixFamily(),)
