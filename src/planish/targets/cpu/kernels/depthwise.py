"""Depthwise convolution: packs weights, chooses register tiles, and splits the work into tasks.

The kernel itself stands in `depthwise_kernel`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.graph.graph import Value
from planish.ops.conv import Conv
from planish.ops.quantization import ConvInteger
from planish.targets.anchored import outputs_follow
from planish.targets.base import Binding, Constant, Family, Launch, Tactic
from planish.targets.cpu.kernels.depthwise_kernel import (
    BLOCK,
    EXACT_TAPS,
    PARAMS,
    DepthwiseKernel,
    Edges,
)
from planish.targets.cpu.kernels.fused import (
    bind_leaves,
    bind_values,
    broadcast_strides,
)
from planish.targets.restoring import FLAG, Allowed

_WORK = 1 << 16
"""Multiplications a task has at least, if the convolution has as many."""
_DISTANT = 1 << 20
"""Bytes from which a tensor is not expected in the second-level cache."""


@dataclass(frozen=True)
class Depthwise(Tactic):
    """Depthwise convolution with a register tile of ``rows`` x ``columns`` x ``vectors``."""

    family: ClassVar[str] = "depthwise"
    columns: int
    rows: int
    vectors: int
    channels_inner: bool

    def constants(self) -> list[np.ndarray]:
        """``[block][tap][16]`` weights in the accumulator's dtype, the blocks even in number, then
        a block of zeros."""
        filters = _anchor_inputs(self.task)[1].data
        assert filters is not None
        if isinstance(_conv(self.task), ConvInteger):
            zero = _anchor_inputs(self.task)[3].data
            assert zero is not None
            filters = filters.astype(np.int32) - zero
        wide = np.float64 if filters.dtype == np.float64 else np.float32
        channels = filters.shape[-1]
        taps = filters.astype(wide).reshape(-1, channels)
        blocks = -(-channels // (2 * BLOCK)) * 2
        packed = np.zeros((blocks * len(taps) + 1, BLOCK), wide)
        padded = np.pad(taps, ((0, 0), (0, blocks * BLOCK - channels)))
        packed[:-1] = padded.reshape(len(taps), blocks, BLOCK).transpose(1, 0, 2).reshape(-1, BLOCK)
        return [packed]

    def accepts(self, binding: Binding) -> bool:
        source = binding.layout(self.task.inputs[0])
        dense = source.strides[-1] == 1 or source.shape[-1] == 1
        return dense and outputs_follow(self.task, binding, _output_shape(self.task, binding))

    def launches(self, binding: Binding) -> list[Launch]:
        task = self.task
        op, filters = _conv(task), _anchor_inputs(task)[1]
        shape = _output_shape(task, binding)
        if 0 in shape:
            return []
        source = binding.layout(task.inputs[0])
        flat = len(op.strides) == 1  # one spatial dimension: an image of one row
        batch, *spatial, channels = shape
        rows, columns = (1, *spatial) if flat else spatial
        height, width = (1, source.shape[1]) if flat else source.shape[1:3]
        window = _two([int(n) for n in filters.shape[:-2]])  # type: ignore[arg-type]
        strides, dilations = _two(op.strides), _two(op.dilations)
        before = [evaluate(pair[0], binding.symbols) for pair in op.padding]
        pad_top, pad_left = (0, *before) if flat else before
        source_row, pitch = (0, source.strides[1]) if flat else source.strides[1:3]

        def strides_of(value: Value) -> tuple[int, ...]:
            found = broadcast_strides(binding.layout(value), shape)
            return (found[0], 0, *found[1:]) if flat else found

        reads = bind_leaves(task, task.epilogue, strides_of)
        writes = bind_values(task.outputs, strides_of)
        bottom = (rows - 1) * strides[0] + (window[0] - 1) * dilations[0] - pad_top
        output_columns = task.outputs[0].shape[-2]
        edges = None
        if isinstance(output_columns, int):
            span = (window[1] - 1) * dilations[1] + 1
            edges = _edges(columns, self.columns, width, pad_left, strides[1], span)
        kernel = DepthwiseKernel(
            dtype=task.inputs[0].dtype,
            window=window,
            strides=strides,
            dilations=dilations,
            multiplier=channels // source.shape[-1],
            pitch=pitch,
            columns=self.columns,
            rows=self.rows,
            vectors=self.vectors,
            channels_inner=self.channels_inner,
            tail=channels % (2 * BLOCK),
            row_checks=pad_top > 0 or bottom >= height or rows % self.rows != 0,
            edges=edges,
            expression=task.epilogue.expression,
            accesses=reads.accesses,
            outputs=writes.accesses,
        )
        work = rows * columns * channels * window[0] * window[1]
        row_blocks, rows_per_block, channel_blocks, channels_per_block = _split(
            work, rows, channels, self.rows, self.vectors
        )
        values = {
            "height": height,
            "width": width,
            "rows": rows,
            "columns": columns,
            "channels": channels,
            "source_batch": source.strides[0],
            "source_row": source_row,
            "pad_top": pad_top,
            "pad_left": pad_left,
            "row_blocks": row_blocks,
            "rows_per_block": rows_per_block,
            "channel_blocks": channel_blocks,
            "channels_per_block": channels_per_block,
            "zero": _zero_point(task),
        }
        return [
            Launch(
                kernel,
                (task.inputs[0], Constant(0), *reads.pointers, *writes.pointers),
                (*(values[name] for name in PARAMS), *reads.params, *writes.params),
                tasks=batch * row_blocks * channel_blocks,
            )
        ]


def _split(
    work: int, rows: int, channels: int, tile_rows: int, vectors: int
) -> tuple[int, int, int, int]:
    """Blocks of rows and of channels, and the size of each, for tasks of a sensible size."""
    wanted = max(1, -(-work // _WORK))
    tall = max(8, tile_rows)  # lower blocks would read their neighbours' rows too often
    row_blocks = min(wanted, max(1, rows // tall))
    per_block = -(-rows // row_blocks)
    per_block += -per_block % tile_rows
    row_blocks = -(-rows // per_block)
    step = BLOCK * vectors
    steps = -(-channels // step)
    channel_blocks = min(steps, -(-wanted // row_blocks))
    channels_per_block = -(-steps // channel_blocks) * step
    return row_blocks, per_block, -(-channels // channels_per_block), channels_per_block


def _edges(columns: int, tile: int, width: int, pad: int, stride: int, span: int) -> Edges | None:
    """The edges of rows of a known width; None if more tiles than the outer two have any."""
    tiles = -(-columns // tile)
    final = columns - (tiles - 1) * tile
    reach = (tile - 1) * stride + span - 1
    last = width - 1 + pad - (tiles - 1) * tile * stride
    if tiles > 1:
        second, before_last = tile * stride - pad, (tiles - 2) * tile * stride - pad
        if second < 0 or before_last + reach >= width:
            return None
    return Edges(min(tiles, 3), min(pad, reach + 1), max(-1, min(last, reach)), final)


def _two(numbers: Sequence[int]) -> tuple[int, int]:
    """A pair for rows and columns, where there may be columns only."""
    return (1, numbers[0]) if len(numbers) == 1 else (numbers[0], numbers[1])


def _conv(task: Task) -> Conv | ConvInteger:
    assert task.anchor is not None
    assert isinstance(task.anchor.op, Conv | ConvInteger)
    return task.anchor.op


def _zero_point(task: Task) -> int:
    """The zero point of bytes; 0 for floats."""
    if isinstance(_conv(task), Conv):
        return 0
    zero = _anchor_inputs(task)[2].data
    assert zero is not None
    return int(zero.reshape(()))


def _anchor_inputs(task: Task) -> tuple[Value, ...]:
    assert task.anchor is not None
    return task.anchor.inputs


def _output_shape(task: Task, binding: Binding) -> tuple[int, ...]:
    assert task.anchor is not None
    return task.anchor.output.type.bind(binding.symbols)


class DepthwiseFamily(Family):
    """Convolutions of as many groups as channels."""

    name: ClassVar[str] = "depthwise"
    tactic: ClassVar[type[Tactic]] = Depthwise
    allowed: ClassVar[Allowed] = {
        "columns": range(1, 17),
        "rows": range(1, 5),
        "vectors": range(1, 3),
        "channels_inner": FLAG,
    }

    def understands(self, task: Task) -> bool:
        if task.anchor is None or not isinstance(task.anchor.op, Conv | ConvInteger):
            return False
        op, (x, w, *zeros) = task.anchor.op, task.anchor.inputs
        exact = not zeros or math.prod(map(int, w.shape[:-2])) < EXACT_TAPS  # type: ignore[arg-type]
        return (
            task.prologue is None
            and (x.dtype.is_float or bool(zeros))
            and exact
            and all(zero.is_constant for zero in zeros)
            and len(op.strides) in (1, 2)
            and w.is_constant
            and w.shape[-2] == 1
            and x.shape[-1] == op.groups
            and w.shape[-1] != 0
        )

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        shape = _output_shape(task, binding)
        columns, channels = max(1, shape[-2]), shape[-1]
        moved = task.inputs[0].dtype.size * (
            math.prod(shape) + math.prod(binding.shape(task.inputs[0]))
        )
        # fewest tiles first, then the least columns computed in vain
        sizes = sorted((4, 7, 8), key=lambda n: (-(-columns // n) * (n + 1), n))
        narrow = [
            Depthwise(task, sizes[0], 1, 1, False),
            Depthwise(task, sizes[0], 1, 1, True),
            Depthwise(task, sizes[0], 2, 1, False),
        ]
        wide, even = [], channels % (2 * BLOCK) == 0
        if even or channels > 4 * BLOCK:
            wide = [Depthwise(task, 4, 1, 2, False), Depthwise(task, 4, 1, 2, True)]
        # from distant memory, two cache lines at a time come faster than one
        yield from (*wide, *narrow) if even and moved > _DISTANT else (*narrow, *wide)


FAMILIES: tuple[Family, ...] = (DepthwiseFamily(),)
