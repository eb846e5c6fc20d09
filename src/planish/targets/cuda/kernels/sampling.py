"""Sampling of images at computed positions: how the tasks are bound to their kernels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.ops.sampling import CropAndResize, DeformSample, GridSample, RoiAlign
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cuda.kernels.fused import Access, bind_work, is_wide, pointer_of
from planish.targets.cuda.kernels.patch_cost import channel_blocks
from planish.targets.cuda.kernels.patches import bind_source
from planish.targets.cuda.kernels.sampling_kernel import SampleKernel
from planish.targets.cuda.kernels.sampling_kernels import (
    CropKernel,
    DeformKernel,
    GridSampleKernel,
    RoiAlignKernel,
)
from planish.targets.restoring import checked_parameters

_OPS = GridSample | CropAndResize | RoiAlign | DeformSample


@dataclass(frozen=True)
class Sampling(AnchoredTactic):
    """A program does `rows` positions of the result x `channels`."""

    family: ClassVar[str] = "sampling"

    rows: int
    channels: int
    warps: int

    def accepts(self, binding: Binding) -> bool:
        return super().accepts(binding) and math.prod(self.result_shape(binding)[:-1]) < 1 << 30

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
        tile = (self.rows, self.channels)
        common = (self.warps, 1, source, inputs, work, x.dtype, extents, *tile)
        kernel = self._kernel(common, shape, binding)
        rows = math.prod(shape[:-1])
        programs = -(-rows // self.rows) * -(-shape[-1] // self.channels)
        images = x.type.bind(binding.symbols)[0]
        return [Launch(kernel, (*reads, *further, *values), (rows, images), programs)]

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


def _understood(task: Task) -> bool:
    return task.anchor is not None and isinstance(task.anchor.op, _OPS)


class SamplingFamily(Family):
    """Sampling of images at computed positions."""

    name: ClassVar[str] = "sampling"

    def tactics(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if not _understood(task):
            return
        channels = task.output.type.bind(binding.symbols)[-1]
        vector = max(1, 16 // task.inputs[0].dtype.size)
        block = channel_blocks(channels, vector)[-1]
        for warps, vectors in ((4, 1), (2, 1), (1, 1), (4, 2)):
            tactic = Sampling(task, max(1, 32 * warps * vectors * vector // block), block, warps)
            if tactic.accepts(binding):
                yield tactic

    def restore(self, task: Task, parameters: Mapping[str, Any]) -> Tactic:
        powers = tuple(1 << n for n in range(12))
        allowed = {"rows": powers, "channels": powers[:9], "warps": (1, 2, 4, 8)}
        return Sampling(
            task,
            **checked_parameters(self.name, task, parameters, _understood(task), **allowed),
        )


FAMILIES: tuple[Family, ...] = (SamplingFamily(),)
