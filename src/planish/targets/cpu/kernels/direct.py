"""Transposed convolutions, and those of floats that the matrix kernel does not compute.

Three dimensions, filters computed while the model runs, dtypes other than float32: `DirectKernel`
takes them all. Where the window leaves the image, a copy with zeros around it is made first;
filters are packed, constants when the engine is made.

Measured beside the matrix kernel on a 56x56x64 3x3 convolution it runs at 85 % of its speed; a
transposed convolution of stride 2 (32x32x64 to 64x64x32, window 4x4) takes 0.45 ms on one core,
a quarter of the multiplications that zeros between the elements would cost.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.interpret import bind
from planish.graph.types import DType
from planish.ops.conv import Conv, ConvTranspose
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import (
    Binding,
    Constant,
    Family,
    Launch,
    Pointer,
    Tactic,
    Workspace,
    dense_strides,
)
from planish.targets.cpu.kernels.depthwise import DepthwiseFamily
from planish.targets.cpu.kernels.direct_kernel import DirectKernel, HaloKernel, PackFiltersKernel
from planish.targets.cpu.kernels.family import MachineFamily
from planish.targets.cpu.kernels.fused import access, bind_window
from planish.targets.cpu.kernels.geometry import conv_geometry
from planish.targets.cpu.kernels.register_tile import most_pixels, step_cycles
from planish.targets.restoring import Allowed

_TASKS = 64
"""Tasks that a convolution is split into, if it has as many positions."""
_WORK = 1 << 16
"""Multiplications a thread takes at a time, at least."""
_COPY, _COPIED = 1 << 22, 64
"""Elements of a copy with zeros around it: so many, or so many times source and result, at most."""
_RAW = {1: DType.UINT8, 2: DType.UINT16, 4: DType.UINT32, 8: DType.UINT64}


@dataclass(frozen=True)
class Phase:
    """Output positions ``p, p + phases, …`` of a dimension, and what reaches them."""

    taps: int
    first_tap: int
    first_source: int
    """Where the first tap of the first position lies; may be outside the image."""
    positions: int


@dataclass(frozen=True)
class Dimension:
    """One spatial dimension of a convolution: extents, and steps in elements of it."""

    extent: int
    source: int
    phases: tuple[Phase, ...]
    source_step: int
    tap_step: int
    window_step: int

    @property
    def halo(self) -> tuple[int, int]:
        """Zeros that the windows reach before and after the source."""
        low, high = 0, self.source - 1
        for p in self.phases:
            if p.taps and p.positions:
                ends = (
                    p.first_source,
                    p.first_source + (p.taps - 1) * self.tap_step,
                )
                low = min(low, *ends)
                high = max(high, max(ends) + (p.positions - 1) * self.source_step)
        return -low, high - (self.source - 1)


def ordinary(
    extent: int, source: int, window: int, stride: int, dilation: int, before: int
) -> Dimension:
    """A dimension of a convolution."""
    return Dimension(extent, source, (Phase(window, 0, -before, extent),), stride, dilation, 1)


def transposed(
    extent: int, source: int, window: int, stride: int, dilation: int, before: int
) -> Dimension:
    """A dimension of a transposed convolution.

    Position o gets tap t of source i where ``i * stride + t * dilation == o + before``; the taps
    of a position are ``stride / gcd(stride, dilation)`` apart.
    """
    common = math.gcd(stride, dilation)
    apart = stride // common
    phases = []
    for p in range(min(stride, extent)):
        first = next(
            (t for t in range(min(apart, window)) if (p + before - t * dilation) % stride == 0),
            None,
        )
        positions = -(-(extent - p) // stride)
        if first is None:
            phases.append(Phase(0, 0, 0, positions))
            continue
        source_of_first = (p + before - first * dilation) // stride
        phases.append(Phase(-(-(window - first) // apart), first, source_of_first, positions))
    return Dimension(extent, source, tuple(phases), 1, -(dilation // common), apart)


@dataclass(frozen=True)
class Direct(AnchoredTactic):
    """Direct convolution with a register tile of `positions` x `vectors`."""

    family: ClassVar[str] = "direct"
    positions: int
    vectors: int
    lanes: int

    @property
    def _width(self) -> int:
        return self.vectors * self.lanes

    @property
    def _sizes(self) -> tuple[tuple[int, ...], int, int, int, int]:
        """The window, depth, channels and groups, and how many blocks a group's channels are."""
        op, w = self.anchor.op, self.anchor.inputs[1]
        assert isinstance(op, Conv | ConvTranspose)
        *window, depth, filters = (int(d) for d in w.shape)  # type: ignore[arg-type]
        channels = filters // op.groups
        return tuple(window), depth, channels, op.groups, -(-channels // self._width)

    def constants(self) -> list[np.ndarray]:
        """Constant filters as ``[group][block][tap][depth][vectors x lanes]``, zero padded."""
        w = self.anchor.inputs[1].data
        if w is None:
            return []
        window, depth, channels, groups, blocks = self._sizes
        taps = math.prod(window)
        packed = np.zeros((groups, taps * depth, blocks * self._width), w.dtype)
        packed[:, :, :channels] = w.reshape(taps * depth, groups, channels).transpose(1, 0, 2)
        shape = (groups, taps * depth, blocks, self._width)
        return [np.ascontiguousarray(packed.reshape(shape).transpose(0, 2, 1, 3))]

    def accepts(self, binding: Binding) -> bool:
        """Not where the window of a huge dilation would need gigabytes of zeros around it."""
        halo = self._halo(binding)
        if halo is not None:
            source, result = binding.shape(self.task.inputs[0]), self.result_shape(binding)
            copy = source[0] * math.prod(halo) * source[-1]
            if copy > max(_COPY, _COPIED * (math.prod(source) + math.prod(result))):
                return False
        return super().accepts(binding)

    def workspace(self, binding: Binding) -> int:
        return self._weights_at(binding) + self._weight_bytes

    @property
    def _weight_bytes(self) -> int:
        if self.anchor.inputs[1].is_constant:
            return 0
        window, depth, _, groups, blocks = self._sizes
        size = self.anchor.inputs[1].dtype.size
        return size * groups * blocks * math.prod(window) * depth * self._width

    def _weights_at(self, binding: Binding) -> int:
        """Where filters are packed in the workspace: behind the copy of the source."""
        halo = self._halo(binding)
        if halo is None:
            return 0
        x = self.task.inputs[0]
        size = x.dtype.size * math.prod(halo) * binding.shape(x)[0] * binding.shape(x)[-1]
        return size + -size % 64

    def _halo(self, binding: Binding) -> list[int] | None:
        """Spatial extents of a copy of the source, None where it is read where it lies."""
        dims = self._dimensions(binding)
        source = binding.layout(self.task.inputs[0])
        dense = source.strides[-1] == 1 or source.shape[-1] == 1
        if dense and all(d.halo == (0, 0) for d in dims):
            return None
        return [d.source + sum(d.halo) for d in dims]

    def _dimensions(self, binding: Binding) -> list[Dimension]:
        op = bind(self.anchor.op, binding.symbols)
        sources = binding.shape(self.task.inputs[0])[1:-1]
        extents = self.result_shape(binding)[1:-1]
        assert isinstance(op, Conv | ConvTranspose)
        if isinstance(op, Conv):
            make, before = ordinary, [before for before, _ in op.padding]
        else:
            make, before = transposed, list(op.before)
        window = self._sizes[0]
        return [
            make(*dim)  # type: ignore[arg-type]
            for dim in zip(extents, sources, window, op.strides, op.dilations, before, strict=True)
        ]

    def launches(self, binding: Binding) -> list[Launch]:
        shape = self.result_shape(binding)
        if 0 in shape:
            return []
        task, dims = self.task, self._dimensions(binding)
        x = task.inputs[0]
        source, halo = binding.layout(x), self._halo(binding)
        launches = []
        pointer: Pointer = x
        strides, offset = source.strides, 0
        if halo is not None:
            before = [d.halo[0] for d in dims]
            launches.append(self._copy(binding, halo, before))
            pointer = Workspace(0)
            strides = dense_strides((shape[0], *halo, source.shape[-1]))
            offset = sum(b * s for b, s in zip(before, strides[1:-1], strict=True))
        weights: Pointer = Constant(0)
        if not self.anchor.inputs[1].is_constant:
            weights = Workspace(self._weights_at(binding))
            launches.append(self._pack(binding, weights))
        launches.append(self._convolve(binding, dims, pointer, weights, strides, offset))
        return launches

    def _copy(self, binding: Binding, halo: Sequence[int], before: Sequence[int]) -> Launch:
        x = self.task.inputs[0]
        source = binding.layout(x)
        read = access(x, source.strides)
        kernel = HaloKernel(
            rank=len(halo), source=type(read)(_RAW[x.dtype.size], read.step, read.fixed)
        )
        dims = itertools.chain(*zip(source.shape[1:-1], halo, before, strict=True))
        row = halo[-1] * source.shape[-1]
        return Launch(
            kernel,
            (x, Workspace(0)),
            (source.shape[-1], *dims, *source.strides),
            tasks=source.shape[0] * math.prod(halo[:-1]),
            grain=max(1, 4096 // max(row, 1)),
        )

    def _pack(self, binding: Binding, target: Workspace) -> Launch:
        w = self.anchor.inputs[1]
        window, depth, channels, groups, blocks = self._sizes
        taps = math.prod(window)
        strides = binding.strides(w)
        read = access(w, strides)
        kernel = PackFiltersKernel(
            filters=type(read)(_RAW[w.dtype.size], read.step, read.fixed),
            rank=len(window),
            lanes=self.lanes,
            vectors=self.vectors,
        )
        return Launch(
            kernel,
            (w, target),
            (channels, blocks, depth, taps, *window, *strides),
            tasks=groups * blocks * taps,
        )

    def _convolve(
        self,
        binding: Binding,
        dims: Sequence[Dimension],
        source: Pointer,
        weights: Pointer,
        strides: Sequence[int],
        offset: int,
    ) -> Launch:
        task = self.task
        shape = self.result_shape(binding)
        window, depth, channels, groups, blocks = self._sizes
        _, operands, outputs = bind_window(task, binding, shape)
        width = self._width
        tap_weights = [n * depth * width for n in dense_strides(window)]
        table: list[int] = []
        described: list[int] = []
        for dim, stride, tap in zip(dims, strides[1:-1], tap_weights, strict=True):
            described += [
                dim.extent,
                len(dim.phases),
                dim.source_step * stride,
                dim.tap_step * stride,
                dim.window_step * tap,
            ]
            for p in dim.phases:
                table += [p.taps, p.first_tap * tap, p.first_source * stride, p.positions]
        rows = shape[0] * math.prod(shape[1:-2]) * groups
        longest = max(p.positions for p in dims[-1].phases)
        # long rows are split first, then blocks of channels, so that there are tasks enough
        column_tasks = max(1, min(-(-_TASKS // rows), longest // (4 * self.positions)))
        columns = -(-longest // column_tasks)
        columns += -columns % self.positions
        column_tasks = -(-longest // columns)
        channel_tasks = min(blocks, -(-_TASKS // (rows * column_tasks)))
        per_task = -(-blocks // channel_tasks)
        channel_tasks = -(-blocks // per_task)
        values = (
            channels,
            depth,
            groups,
            blocks,
            per_task,
            channel_tasks,
            column_tasks,
            columns,
            offset,
            strides[0],
            math.prod(window) * depth * width,
        )
        kernel = DirectKernel(
            dtype=task.inputs[0].dtype,
            rank=len(dims),
            lanes=self.lanes,
            vectors=self.vectors,
            positions=self.positions,
            pixel_step=dims[-1].source_step * strides[-2],
            whole=channels % width == 0,
            expression=task.epilogue.expression,
            accesses=operands.accesses,
            outputs=outputs.accesses,
        )
        work = columns * len(dims[-1].phases) * depth * per_task * width * math.prod(window)
        tasks = rows * column_tasks * channel_tasks
        return Launch(
            kernel,
            (source, weights, *operands.pointers, *outputs.pointers),
            (*values, *described, *operands.params, *outputs.params, *table),
            tasks=tasks,
            grain=max(1, min(_WORK // max(work, 1), -(-tasks // 8))),
        )


@dataclass(frozen=True)
class DirectFamily(MachineFamily):
    """Convolutions of any dimensions, dtypes and filters, where no faster family has them."""

    name: ClassVar[str] = "direct"
    tactic: ClassVar[type[Tactic]] = Direct
    allowed: ClassVar[Allowed] = {
        "positions": range(1, 17),
        "vectors": range(1, 5),
        "lanes": (2, 4, 8, 16, 32, 64),
    }

    def understands(self, task: Task) -> bool:
        anchor = task.anchor
        return (
            anchor is not None
            and isinstance(anchor.op, Conv | ConvTranspose)
            and task.prologue is None
            and len(anchor.op.strides) > 0
            and task.inputs[0].dtype is not DType.BOOL
            and anchor.inputs[1].shape[-1] != 0
            and isinstance(anchor.inputs[1].shape[-2], int)
        )

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if _better_elsewhere(task, binding):
            return
        machine = self.machine
        lanes = max(1, machine.lanes * 4 // max(4, task.inputs[0].dtype.size))
        channels = Direct(task, 1, 1, lanes)._sizes[2]
        needed = -(-channels // lanes)
        offered = []
        for vectors in (1, 2, 3, 4):
            if vectors <= needed:
                positions = min(most_pixels(vectors, machine), 12)
                waste = -(-needed // vectors) * vectors / needed
                cycles = waste * step_cycles(positions, vectors)
                offered.append((cycles / (positions * vectors), vectors, positions))
        for _, vectors, positions in sorted(offered)[:3]:
            yield Direct(task, positions, vectors, lanes)


def _better_elsewhere(task: Task, binding: Binding) -> bool:
    assert task.anchor is not None
    if isinstance(task.anchor.op, ConvTranspose):
        return False
    if not task.inputs[0].dtype.is_float or conv_geometry(task, binding) is not None:
        return True
    depthwise = next(iter(DepthwiseFamily().tactics(task, binding)), None)
    return depthwise is not None and depthwise.accepts(binding)


FAMILIES: tuple[Family, ...] = (DirectFamily(),)
