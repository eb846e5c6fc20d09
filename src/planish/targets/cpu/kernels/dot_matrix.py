"""What tactics of the matrix kernel for short numbers share: bytes, and bfloat16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.targets.base import Binding
from planish.targets.cpu.codegen.dot import Dot, dot_of
from planish.targets.cpu.kernels.blocking import ceil
from planish.targets.cpu.kernels.dot_gemm import DotGemmKernel, groups_of
from planish.targets.cpu.kernels.gemm import GemmKernel
from planish.targets.cpu.kernels.geometry import Geometry, conv_geometry, matmul_geometry
from planish.targets.cpu.kernels.matrix import MatrixTactic, Tile, pixel_tiles
from planish.targets.cpu.kernels.register_tile import most_pixels, unrolled
from planish.targets.cpu.machine import Machine

MARGIN = 64
"""Bytes of scratch behind the last pixel: its last group is read whole."""


class DotMatrixTactic(MatrixTactic):
    """The matrix kernel for short numbers with a given register tile, loop order and packing."""

    @property
    def _source(self) -> DType:
        assert self.task.anchor is not None
        return self.task.anchor.inputs[0].dtype

    @cached_property
    def _dot(self) -> Dot:
        return dot_of(self.machine, self._source)

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
        dot, width = self._dot, self.vectors * self.machine.lanes
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
        return groups_of(run, self._dot) * self._dot.group * self.vectors * self.machine.lanes

    def _kernel(self, **fields: Any) -> GemmKernel:
        groups = groups_of(fields["run"], self._dot)
        fields["unroll"] = unrolled(groups, self.pixels * self.vectors)
        return DotGemmKernel(**fields, source=self._source, dot=self._dot)

    def _packing(self, g: Geometry, cut: Any, binding: Binding) -> tuple:
        pack, scratch, params, row_step, tap_row = super()._packing(g, cut, binding)
        dense = pack.column_unit == 1 and g.source.column == pack.pitch == g.depth
        pack = replace(pack, contiguous=dense and not any(pack.operands))
        return pack, scratch + MARGIN, params, row_step, tap_row


def geometry(task: Task, binding: Binding) -> Geometry | None:
    """The geometry of a task that is a convolution or matrix product."""
    return conv_geometry(task, binding) or matmul_geometry(task, binding)


def candidates(g: Geometry, machine: Machine, ways: Sequence[bool]) -> Iterator[Tile]:
    """The likely best first; `ways` are the possible values of `packed`."""
    needed = ceil(g.channels, machine.lanes)
    # vectors beyond the last channel are multiplied in vain, and short numbers stored with masks
    widths = sorted(range(1, min(needed, 4) + 1), key=lambda v: (-needed % v, abs(v - 2)))
    for vectors in widths:
        most = most_pixels(vectors, machine)
        for pixels, tail in pixel_tiles(g.columns, most):
            for packed in ways:
                for outer in (False, True) if needed > vectors else (False,):
                    yield pixels, vectors, tail, outer, packed
