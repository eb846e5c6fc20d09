"""Tactics of the matrix kernel for bytes: convolutions and matrix products with constant weights.

What it declines (computed weights, three dimensions, zero points that are not constant) is left to
`contraction`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.quantization import ConvInteger, MatMulInteger
from planish.targets.base import Binding
from planish.targets.cpu.codegen.dot import BYTES, BYTES_TWICE, PAIRS, Dot, fits
from planish.targets.cpu.kernels.dot_matrix import DotMatrixFamily, DotMatrixTactic
from planish.targets.cpu.kernels.geometry import Geometry
from planish.targets.cpu.machine import Machine


@dataclass(frozen=True, eq=False)
class IntegerMatrixTactic(DotMatrixTactic):
    """The matrix kernel for bytes with a given register tile, loop order and packing."""

    family: ClassVar[str] = "integer_matrix"

    @cached_property
    def dot(self) -> Dot:
        return dot_for(self.task, self.machine)

    @property
    def _zero(self) -> int:
        """The zero point of the activations, as the kernel is to take it."""
        zero = zero_points(self.task)[0]
        flipped = self.dot.is_of_bytes and self._source is not self.dot.left
        return zero + 128 if flipped else zero

    def constants(self) -> list[np.ndarray]:
        """Per block of channels the packed weights; for bytes, before them the first sums."""
        assert self.task.anchor is not None
        op, data = self.task.anchor.op, self.task.anchor.inputs[1].data
        assert data is not None
        weights = centred_weights(self.task)
        if isinstance(op, MatMulInteger):
            packed = self._packed_weights(weights, (1, 1), (1,))
        else:
            assert isinstance(op, ConvInteger)
            window = (1,) * (2 - len(op.strides)) + data.shape[:-2]
            packed = self._packed_weights(weights, window, op.dilations, op.groups)
        short = packed.astype(self.dot.right.numpy)
        if not self.dot.is_of_bytes:
            return [short]
        first = packed.sum(axis=(2, 3, 5), dtype=np.int32) * np.int32(-self._zero)
        raw = first.view(np.int8)
        return [np.concatenate([raw, short.reshape(*raw.shape[:2], -1)], axis=-1)]

    def _reads_in_place(self, g: Geometry) -> bool:
        as_it_lies = self._source is self.dot.left and g.depth % self.dot.group == 0
        return as_it_lies and super()._reads_in_place(g)

    def _block(self, weights: int) -> int:
        first = 4 * self.vectors * self.machine.lanes if self.dot.is_of_bytes else 0
        return weights + first

    def _packing(self, g: Geometry, cut: Any, binding: Binding) -> tuple:
        pack, scratch, params, row_step, tap_row = super()._packing(g, cut, binding)
        return pack, scratch, (*params, self._zero), row_step, tap_row


def zero_points(task: Task) -> tuple[int, np.ndarray]:
    """The constant zero points of activations and weights."""
    assert task.anchor is not None
    x_zero, w_zero = (v.data for v in task.anchor.inputs[2:4])
    assert x_zero is not None and w_zero is not None
    return int(x_zero.reshape(())), w_zero.astype(np.int32)


def centred_weights(task: Task) -> np.ndarray:
    """Weights without their zero points, int32 ``[taps, depth, channels]``."""
    assert task.anchor is not None
    op, data = task.anchor.op, task.anchor.inputs[1].data
    assert data is not None
    if isinstance(op, MatMulInteger) and op.transpose_b:
        data = np.swapaxes(data, -1, -2)
    centred = data.astype(np.int32) - zero_points(task)[1]
    return centred.reshape(-1, *data.shape[-2:])


def dot_for(task: Task, machine: Machine) -> Dot:
    """How a machine multiplies a task's numbers: by bytes only if the weights, less their zero
    points, are bytes, and without VNNI only if no sum of 16 bits can saturate.
    """
    if machine.isa == "neon" or not are_bytes(task):
        return PAIRS
    if machine.has_vnni:
        return BYTES
    weights = centred_weights(task)
    return next((dot for dot in (BYTES_TWICE, BYTES) if fits(dot, weights)), PAIRS)


def are_bytes(task: Task) -> bool:
    """Whether the weights, less their zero points, are signed bytes."""
    assert task.anchor is not None
    plain = task.anchor.inputs[1].dtype is DType.INT8 and not zero_points(task)[1].any()
    return plain or bool(np.all(np.abs(centred_weights(task) + 0.5) < 128))


def understood(task: Task) -> bool:
    """Whether a task is of the kernel's kind; shapes and layouts decide the rest."""
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
    return w_zero.data.size in (1, columns)


@dataclass(frozen=True)
class IntegerMatrixFamily(DotMatrixFamily):
    """Convolutions (not depthwise) and matrix products of bytes."""

    name: ClassVar[str] = "integer_matrix"
    tactic: ClassVar[type[DotMatrixTactic]] = IntegerMatrixTactic

    def understands(self, task: Task) -> bool:
        return understood(task)


FAMILIES = (IntegerMatrixFamily(),)
