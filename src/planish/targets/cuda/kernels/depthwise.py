"""Depthwise convolution: as many groups as channels, any multiplier, in one to three dimensions.

It is bound by memory: a 3x3 window does nine multiply-adds per element read, so what matters is
that elements are loaded once, 16 bytes at a time; see `patches`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.ops.quantization import ConvInteger
from planish.targets.base import Binding, Constant, Family, Pointer
from planish.targets.cuda.codegen.elementwise import compute_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer as Argument
from planish.targets.cuda.kernels.depthwise_dots import DepthwiseDotKernel, packed, serves
from planish.targets.cuda.kernels.fused import Access, Work, load, pointer_of
from planish.targets.cuda.kernels.matrix_problem import zero_of
from planish.targets.cuda.kernels.patch_family import PatchFamily
from planish.targets.cuda.kernels.patches import (
    PatchKernel,
    PatchTactic,
    Windows,
)


@dataclass(frozen=True)
class DepthwiseKernel(PatchKernel):
    """Multiplies each element of a window by a filter's. `filters` has a stride per axis of the
    window, then that of the result's channels, of which each of the source has `multiplier`.
    Where elements are bytes, level `zero` stands for 0.
    """

    family = "depthwise"

    filters: Access
    multiplier: int
    zero: int = 0

    @property
    def extra(self) -> tuple[Argument, ...]:
        return (self.filters.pointer,)

    def start(self) -> str:
        return f"tl.full(({self.patches}, {self.block}), 0, {self.sums})"

    @property
    def fill(self) -> str:
        return str(self.zero)

    @property
    def sums(self) -> str:
        """The type of factors and sums."""
        dtype = self.filters.pointer.dtype
        return compute_type(dtype if dtype.is_float else DType.INT32)

    def tap(self, k: Source, place: Sequence[str], channel: str, mask: str | None) -> str:
        pointer = len(self.reads.pointers)
        return self._wide(k, load(k, pointer, self.filters, [*place, channel], mask, "w"))

    def element(self, k: Source, x: str) -> str:
        wide = self._wide(k, x)
        return k.let("own", f"{wide} - {self.zero}") if self.zero else wide

    def _wide(self, k: Source, factor: str) -> str:
        """A factor in the type that it is multiplied in."""
        is_float = self.filters.pointer.dtype.is_float
        return factor if is_float else k.let("wide", f"{factor}.to({self.sums})")

    def step(self, accumulator: str, x: str, tap: str) -> str:
        return f"{accumulator} + {x} * {tap}"

    def source_channel(self, k: Source, channel: str) -> str:
        return channel if self.multiplier == 1 else k.let("own", f"{channel} // {self.multiplier}")


@dataclass(frozen=True)
class Depthwise(PatchTactic):
    """A tile's filters stay in registers while its patches are computed."""

    family: ClassVar[str] = "depthwise"

    @property
    def has_dots(self) -> bool:
        """Whether four bytes are multiplied at once: signed ones, and level 0 stands for 0."""
        op, (x, w) = self.anchor.op, self.anchor.inputs[:2]
        if not (x.dtype is w.dtype is DType.INT8 and w.is_constant and zero_of(self.task) == 0):
            return False
        assert isinstance(op, ConvInteger)
        if w.shape[-1] != op.groups:
            return False
        taps = w.type.bind({})[:-2]
        return serves(Windows((), (), taps, op.strides, op.dilations, ()), self.tile(len(taps)))

    def windows(self, binding: Binding) -> Windows:
        return _windows(self.task, binding)

    def constants(self) -> list[np.ndarray]:
        if not self.has_dots:
            return []
        op, data = self.anchor.op, self.anchor.inputs[1].data
        assert isinstance(op, ConvInteger) and data is not None
        return [packed(data[..., 0, :], op.strides[-1], self.columns)]

    def kernel(
        self, source: Work, work: Work, windows: Windows, binding: Binding
    ) -> tuple[PatchKernel, tuple[Pointer, ...]]:
        x, filters = self.anchor.inputs[:2]
        common = (
            self.warps,
            1,
            source,
            work,
            windows,
            self.tile(len(windows.sizes)),
            self.patches,
            self.channels,
        )
        if self.has_dots:
            shape = self.constants()[0].shape
            strides = tuple(math.prod(shape[axis + 1 :]) for axis in range(len(shape)))
            taps = Access(Argument(DType.INT32), strides)
            return DepthwiseDotKernel(*common, taps), (Constant(0),)
        layout = binding.layout(filters)
        strides = (*layout.strides[:-2], layout.strides[-1])
        kernel = DepthwiseKernel(
            *common,
            Access(pointer_of(filters, binding), strides),
            layout.shape[-1] // x.type.bind(binding.symbols)[-1],
            zero_of(self.task),
        )
        return kernel, (filters,)


def _windows(task: Task, binding: Binding) -> Windows:
    assert task.anchor is not None and isinstance(task.anchor.op, Conv | ConvInteger)
    op, (x, w) = task.anchor.op, task.anchor.inputs[:2]
    return Windows(
        x.type.bind(binding.symbols)[1:-1],
        task.anchor.output.type.bind(binding.symbols)[1:-1],
        w.type.bind(binding.symbols)[:-2],
        op.strides,
        op.dilations,
        tuple(max(evaluate(before, binding.symbols), 0) for before, _ in op.padding),
    )


@dataclass(frozen=True)
class DepthwiseFamily(PatchFamily):
    """Convolutions of as many groups as channels."""

    name: ClassVar[str] = "depthwise"
    tactic: ClassVar[type[PatchTactic]] = Depthwise
    most: ClassVar[int] = 8

    def understands(self, task: Task) -> bool:
        if task.anchor is None or not isinstance(task.anchor.op, Conv | ConvInteger):
            return False
        op, (x, w, *zeros) = task.anchor.op, task.anchor.inputs
        known = [zero.data for zero in zeros if zero.data is not None]
        return (
            (x.dtype.is_float or (len(known) == 2 and not known[1].any()))
            and len(op.strides) > 0
            and w.shape[-2] == 1
            and x.shape[-1] == op.groups
            and w.shape[-1] != 0
        )

    def windows(self, task: Task, binding: Binding) -> Windows:
        return _windows(task, binding)


FAMILIES: tuple[Family, ...] = (DepthwiseFamily(),)
