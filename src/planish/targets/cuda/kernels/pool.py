"""Max and average pooling, channels last, over any number of spatial dimensions; see `patches`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.graph.types import DType
from planish.ops.pool import AvgPool, MaxPool
from planish.targets.base import Binding, Family, Pointer
from planish.targets.cuda.codegen.casts import byte_to_short, larger_short, short_to_byte
from planish.targets.cuda.codegen.elementwise import compute_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernels.fused import Work
from planish.targets.cuda.kernels.patch_family import PatchFamily
from planish.targets.cuda.kernels.patches import (
    PatchKernel,
    PatchTactic,
    Windows,
)

BYTES = (DType.INT8, DType.UINT8)


@dataclass(frozen=True)
class MaxPoolKernel(PatchKernel):
    """The largest element of each window; NaN counts as larger than all."""

    family = "max_pool"

    dtype: DType

    @property
    def fill(self) -> str:
        return 'float("-inf")' if self.dtype.is_float else str(np.iinfo(self.dtype.numpy).min)

    @property
    def is_of_bytes(self) -> bool:
        """Whether bytes are compared: as int16, two at once."""
        return self.dtype in BYTES

    def start(self) -> str:
        kind = "tl.int16" if self.is_of_bytes else compute_type(self.dtype)
        return f"tl.full(({self.patches}, {self.block}), {self.fill}, {kind})"

    def element(self, k: Source, x: str) -> str:
        return byte_to_short(k, x, self.dtype) if self.is_of_bytes else x

    def result(self, k: Source, accumulator: str, position: Sequence[str]) -> str:
        return short_to_byte(k, accumulator, self.dtype) if self.is_of_bytes else accumulator

    def step(self, accumulator: str, x: str, tap: str) -> str:
        if self.is_of_bytes:
            return larger_short(accumulator, x)
        nan = ", propagate_nan=tl.PropagateNan.ALL" if self.dtype.is_float else ""
        return f"tl.maximum({accumulator}, {x}{nan})"


@dataclass(frozen=True)
class AvgPoolKernel(PatchKernel):
    """The mean of each window: of all its places, or of those in the image (`count_padding`)."""

    family = "avg_pool"

    dtype: DType
    count_padding: bool

    def start(self) -> str:
        return f"tl.full(({self.patches}, {self.block}), 0, {compute_type(self.dtype)})"

    def step(self, accumulator: str, x: str, tap: str) -> str:
        return f"{accumulator} + {x}"

    def result(self, k: Source, accumulator: str, position: Sequence[str]) -> str:
        counts, known = [], 1
        for axis, place in enumerate(position):
            count = None if self.count_padding else self._count(k, axis, place)
            if count is None:
                known *= self.windows.window[axis]
            else:
                counts.append(count)
        wide = compute_type(self.dtype)
        if not counts:
            return k.let("mean", f"{accumulator} / {float(known)}")
        product = f"tl.maximum({' * '.join(counts)} * {known}, 1).to({wide})"
        return k.let("mean", f"{accumulator} / {product}")

    def _count(self, k: Source, axis: int, place: str) -> str | None:
        """How many places of a window lie in the image along an axis; None: always all."""
        windows = self.windows
        extent, stride, dilation = (
            windows.extents[axis],
            windows.strides[axis],
            windows.dilations[axis],
        )
        window, before = windows.window[axis], windows.before[axis]
        last = (windows.sizes[axis] - 1) * stride - before + (window - 1) * dilation
        if before == 0 and last < extent:
            return None
        start = k.let("start", f"{place} * {stride} - {before}")
        # what is divided must not be negative: division rounds towards zero
        low = f"(tl.maximum(-{start}, 0) + {dilation - 1}) // {dilation}"
        high = f"tl.maximum({extent + dilation - 1} - {start}, 0) // {dilation}"
        return k.let("count", f"tl.maximum(tl.minimum({high}, {window}) - ({low}), 0)")


@dataclass(frozen=True)
class Pool(PatchTactic):
    """Pooling, the windows of a tile sharing what they load."""

    family: ClassVar[str] = "pool"

    def windows(self, binding: Binding) -> Windows:
        return _windows(self.task, binding)

    def kernel(
        self, source: Work, work: Work, windows: Windows, binding: Binding
    ) -> tuple[PatchKernel, tuple[Pointer, ...]]:
        op, dtype = self.anchor.op, self.anchor.inputs[0].dtype
        tile = self.tile(len(windows.sizes))
        common = (self.warps, 1, source, work, windows, tile, self.patches, self.channels, dtype)
        if isinstance(op, AvgPool):
            return AvgPoolKernel(*common, op.count_include_pad), ()
        return MaxPoolKernel(*common), ()


def _windows(task: Task, binding: Binding) -> Windows:
    assert task.anchor is not None and isinstance(task.anchor.op, MaxPool | AvgPool)
    op = task.anchor.op
    return Windows(
        task.anchor.inputs[0].type.bind(binding.symbols)[1:-1],
        task.anchor.output.type.bind(binding.symbols)[1:-1],
        op.window,
        op.strides,
        op.spread if isinstance(op, AvgPool) else op.dilations,
        tuple(max(evaluate(before, binding.symbols), 0) for before, _ in op.padding),
    )


@dataclass(frozen=True)
class PoolFamily(PatchFamily):
    """Max and average pooling."""

    name: ClassVar[str] = "pool"
    tactic: ClassVar[type[PatchTactic]] = Pool
    most: ClassVar[int] = 6

    def understands(self, task: Task) -> bool:
        return (
            task.anchor is not None
            and isinstance(task.anchor.op, MaxPool | AvgPool)
            and len(task.anchor.op.window) > 0
        )

    def windows(self, task: Task, binding: Binding) -> Windows:
        return _windows(task, binding)


FAMILIES: tuple[Family, ...] = (PoolFamily(),)
