"""Sampling of images at computed positions: how the tasks are bound to their kernels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.ops.sampling import CropAndResize, DeformSample, GridSample, RoiAlign
from planish.targets.base import Binding, Family, Launch
from planish.targets.cuda.kernels.fused import bind_work
from planish.targets.cuda.kernels.nest import Operand
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
        inputs = tuple(Operand.of(v, binding).access() for v in further)
        common = {
            "warps": self.warps,
            "stages": 1,
            "shape": work.shape,
            "rows": self.rows,
            "block": self.channels,
            "reads": source,
            "inputs": inputs,
            "work": work,
            "dtype": x.dtype,
            "extents": x.type.bind(binding.symbols)[1:-1],
        }
        kernel = self._kernel(common, shape, binding)
        numbers = (math.prod(shape[:-1]), x.type.bind(binding.symbols)[0])
        return [Launch(kernel, (*reads, *further, *values), numbers, self.programs(shape))]

    def _kernel(
        self, common: dict[str, Any], shape: tuple[int, ...], binding: Binding
    ) -> SampleKernel:
        """The kernel of the anchor's op."""
        op = self.anchor.op
        own: dict[str, Any]
        if isinstance(op, GridSample):
            own = {"mode": op.mode, "border": op.border, "align_corners": op.align_corners}
            return GridSampleKernel(**common, **own)
        if isinstance(op, CropAndResize):
            own = {"mode": op.mode, "extrapolation": op.extrapolation, "size": shape[1:-1]}
            return CropKernel(**common, **own)
        if isinstance(op, RoiAlign):
            own = {"scale": op.scale, "sampling": op.sampling, "mode": op.mode}
            own |= {"half_pixel": op.half_pixel, "size": shape[1:-1]}
            return RoiAlignKernel(**common, **own)
        assert isinstance(op, DeformSample)
        own = {"window": op.window, "strides": op.strides, "dilations": op.dilations}
        own["before"] = tuple(evaluate(pair[0], binding.symbols) for pair in op.padding)
        return DeformKernel(**common, **own, groups=op.groups)


class SamplingFamily(PositionsFamily):
    """Sampling of images at computed positions."""

    name: ClassVar[str] = "sampling"
    tactic: ClassVar[type[PositionsTactic]] = Sampling

    def understands(self, task: Task) -> bool:
        return task.anchor is not None and isinstance(task.anchor.op, _OPS)


FAMILIES: tuple[Family, ...] = (SamplingFamily(),)
