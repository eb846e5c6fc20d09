"""Sampling of images at computed positions: how the tasks are bound to their kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.ops.sampling import CropAndResize, DeformSample, GridSample, RoiAlign
from planish.targets.base import Binding, Family, Launch
from planish.targets.cuda.kernels.fused import Access, bind_work, is_wide, pointer_of
from planish.targets.cuda.kernels.patches import bind_source
from planish.targets.cuda.kernels.positions import PositionsFamily, PositionsTactic
from planish.targets.cuda.kernels.sampling_kernel import SampleKernel
from planish.targets.cuda.kernels.sampling_kernels import (
    CropKernel,
    DeformKernel,
    GridSampleKernel,
    RoiAlignKernel,
)

_OPS = GridSample | CropAndResize | RoiAlign | DeformSample


@dataclass(frozen=True)
class Sampling(PositionsTactic):
    """Samples of images."""

    family: ClassVar[str] = "sampling"

    def launches(self, binding: Binding) -> list[Launch]:
        task, shape = self.task, self.result_shape(binding)
        if 0 in shape:
            return []
        source, reads = bind_source(task, binding)
        axes = range(len(shape))
        work, _, values = bind_work(task, task.epilogue, task.outputs, binding, shape, axes)
        x, *further = self.anchor.inputs
        inputs = tuple(
            Access(
                pointer_of(v, binding), binding.strides(v), is_wide(binding.layout(v))
            )
            for v in further
        )
        extents = x.type.bind(binding.symbols)[1:-1]
        tile = (work.shape, self.rows, self.channels)
        common = (self.warps, 1, *tile, source, inputs, work, x.dtype, extents)
        kernel = self._kernel(common, shape, binding)
        rows = math.prod(shape[:-1])
        images = x.type.bind(binding.symbols)[0]
        return [Launch(kernel, (*reads, *further, *values), (rows, images), self.programs(shape))]

    def _kernel(
        self, common: tuple[Any, ...], shape: tuple[int, ...], binding: Binding
    ) -> SampleKernel:
        op = self.anchor.op
        if isinstance(op, GridSample):
            return GridSampleKernel(*common, op.mode, op.border, op.align_corners)
        if isinstance(op, CropAndResize):
            return CropKernel(*common, op.mode, op.extrapolation, shape[1:-1])
        if isinstance(op, RoiAlign):
            attributes = (op.scale, op.sampling, op.mode, op.half_pixel)
            return RoiAlignKernel(*common, *attributes, shape[1:-1])
        assert isinstance(op, DeformSample)
        before = tuple(evaluate(pair[0], binding.symbols) for pair in op.padding)
        return DeformKernel(*common, op.window, op.strides, op.dilations, before, op.groups)


class SamplingFamily(PositionsFamily):
    """Sampling of images at computed positions."""

    name: ClassVar[str] = "sampling"
    tactic: ClassVar[type[PositionsTactic]] = Sampling

    def understands(self, task: Task) -> bool:
        return task.anchor is not None and isinstance(task.anchor.op, _OPS)


FAMILIES: tuple[Family, ...] = (SamplingFamily(),)
