"""Sampling of images at computed positions: how the tasks are bound to their kernels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.graph.graph import Value
from planish.ops.sampling import CropAndResize, DeformSample, GridSample, RoiAlign
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cpu.kernels.fused import (
    access,
    bind_leaves,
    bind_values,
    broadcast_strides,
)
from planish.targets.cpu.kernels.sampling_kernel import SampleKernel
from planish.targets.cpu.kernels.sampling_kernels import (
    CropKernel,
    DeformKernel,
    GridSampleKernel,
    RoiAlignKernel,
)
from planish.targets.restoring import Allowed

_BLOCK = 256
"""Channels per task, at most."""
_WORK = 1 << 13
"""Elements read by a thread at a time, at least."""


@dataclass(frozen=True)
class Sampling(AnchoredTactic):
    """Sampling with `vectors` vectors of channels at a time."""

    family: ClassVar[str] = "sampling"
    vectors: int

    def launches(self, binding: Binding) -> list[Launch]:
        task, op = self.task, self.anchor.op
        shape = self.result_shape(binding)
        if 0 in shape:
            return []
        x, *further = self.anchor.inputs
        source = binding.layout(x)
        groups = op.groups if isinstance(op, DeformSample) else 1
        split = isinstance(op, DeformSample)
        per_group = shape[-1] // groups

        def spread(strides: Sequence[int]) -> tuple[int, ...]:
            """Strides with the channels as groups of channels."""
            last = strides[-1]
            return (*strides[:-1], last * per_group, last) if split else tuple(strides)

        def strides_of(value: Value) -> tuple[int, ...]:
            return spread(broadcast_strides(binding.layout(value), shape))

        source_strides = spread(source.strides)
        inputs = bind_values(further, binding.strides)
        operands = bind_leaves(task, task.epilogue, strides_of)
        outputs = bind_values(task.outputs, strides_of)
        sizes = (*shape[1:-1], groups) if split else shape[1:-1]
        common: dict[str, Any] = {
            "dtype": x.dtype,
            "rank": len(source.shape) - 2,
            "axes": len(sizes) + 2,
            "channel_axes": 2 if split else 1,
            "vectors": self.vectors,
            "source": (access(x, source_strides),),
            "inputs": inputs.accesses,
            "ranks": tuple(v.type.rank for v in further),
            "expression": task.epilogue.expression,
            "accesses": operands.accesses,
            "outputs": outputs.accesses,
        }
        kernel, own = self._kernel(binding, common)
        blocks = -(-per_group // _BLOCK)
        per_block = -(-per_group // blocks)
        per_block += -per_block % 64  # whole vectors of every dtype
        blocks = -(-per_group // per_block)
        row = sizes[-1] * min(per_block, per_group) * 2 ** (len(source.shape) - 2)
        return [
            Launch(
                kernel,
                (x, *inputs.pointers, *operands.pointers, *outputs.pointers),
                (
                    per_group,
                    blocks,
                    per_block,
                    *own,
                    *source.shape[1:-1],
                    *sizes,
                    *source_strides,
                    *inputs.params,
                    *operands.params,
                    *outputs.params,
                ),
                tasks=shape[0] * math.prod(sizes[:-1]) * blocks,
                grain=max(1, _WORK // row),
            )
        ]

    def _kernel(
        self, binding: Binding, common: dict[str, Any]
    ) -> tuple[SampleKernel, tuple[int, ...]]:
        """The kernel of the anchor's op, and the parameters of its own."""
        op = self.anchor.op
        images = binding.shape(self.anchor.inputs[0])[0]
        if isinstance(op, GridSample):
            common |= {"mode": op.mode, "border": op.border}
            return GridSampleKernel(**common, align_corners=op.align_corners), ()
        if isinstance(op, CropAndResize):
            kernel = CropKernel(**common, mode=op.mode, extrapolation=op.extrapolation)
            return kernel, (images,)
        if isinstance(op, RoiAlign):
            regions: dict[str, Any] = {
                "scale": op.scale,
                "sampling": op.sampling,
                "mode": op.mode,
                "half_pixel": op.half_pixel,
            }
            return RoiAlignKernel(**common, **regions), (images,)
        assert isinstance(op, DeformSample)
        before = tuple(evaluate(pair[0], binding.symbols) for pair in op.padding)
        common |= {"window": op.window, "strides": op.strides, "dilations": op.dilations}
        return DeformKernel(**common), before


class SamplingFamily(Family):
    """Sampling of images at computed positions."""

    name: ClassVar[str] = "sampling"
    tactic: ClassVar[type[Tactic]] = Sampling
    allowed: ClassVar[Allowed] = {"vectors": range(1, 5)}

    def understands(self, task: Task) -> bool:
        return (
            task.anchor is not None
            and isinstance(task.anchor.op, GridSample | CropAndResize | RoiAlign | DeformSample)
            and task.prologue is None
        )

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if Sampling(task, 1).result_shape(binding)[-1] > 16:
            yield Sampling(task, 2)
        yield Sampling(task, 1)


FAMILIES: tuple[Family, ...] = (SamplingFamily(),)
