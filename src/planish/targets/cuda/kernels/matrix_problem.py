"""How a convolution or matrix product looks to the matrix kernel: rows, columns and depth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.fusion.expression import Expression, identity
from planish.fusion.task import ACCUMULATOR, Task
from planish.graph.dims import evaluate
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.ops.float8 import MatMulFloat8
from planish.ops.matmul import MatMul
from planish.ops.quantization import ConvInteger, MatMulInteger
from planish.targets.base import Binding, Layout
from planish.targets.cuda.kernels.fused import (
    WIDE,
    Access,
    Work,
    access,
    bind_work,
    broadcast_strides,
    is_wide,
    merge,
    pointer_of,
)
from planish.targets.cuda.kernels.matrix_tile import Tile, Window, regrouped, segments

DTYPES = (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32)
"""What the kernel multiplies, beside bytes."""
BYTES = (DType.INT8, DType.UINT8)

Convolution = Conv | ConvInteger
Product = MatMul | MatMulFloat8 | MatMulInteger


@dataclass(frozen=True)
class Problem:
    """A product in the kernel's terms, for concrete shapes and layouts.

    Attributes
    ----------
    rows, columns, batch : int
        Of each matrix, and how many matrices there are.
    channels : int
        The depth without taps.
    dtype : DType
    left : Work
        See `MatrixKernel`, also for `axes`, `window`, `right` and `right_axes`.
    left_values : tuple of Value
    right_value : Value or None
        The right factor; None where it is a packed constant.
    result : Work
    result_values : tuple of Value
    zero : int
        The zero point of the left factor.
    pixels : int
        Pixels of the result that a row holds, if not 0: then the result has an axis for them.
    codes : bool
        Whether bytes are codes of FP8.
    """

    rows: int
    columns: int
    batch: int
    channels: int
    dtype: DType
    left: Work
    left_values: tuple[Value, ...]
    axes: tuple[int, ...]
    batched: bool
    window: Window | None
    right: Access | None
    right_axes: tuple[int, ...]
    right_value: Value | None
    result: Work
    result_values: tuple[Value, ...]
    zero: int = 0
    pixels: int = 0
    codes: bool = False

    @property
    def taps(self) -> tuple[int, int]:
        """Rows and columns of the filter."""
        return self.window.taps if self.window else (1, 1)

    @property
    def depth(self) -> int:
        """Products per element of the result."""
        return math.prod(self.taps) * self.channels

    @property
    def whole_rows(self) -> bool:
        """Whether the left factor's rows lie side by side, and are a multiple of 16."""
        return self.rows % 16 == 0 and any(
            a.strides[-2] == 1 != a.strides[-1]
            for a in self.left.leaves
            if a is not None and self.window is None
        )


def understood(task: Task) -> bool:
    """Whether a task is of the kernel's kind; shapes and layouts decide the rest."""
    anchor = task.anchor
    if anchor is None or not isinstance(anchor.op, Convolution | Product):
        return False
    x, w = anchor.inputs[:2]
    if isinstance(anchor.op, ConvInteger | MatMulInteger):
        if not _has_known_levels(task):
            return False
    elif not isinstance(anchor.op, MatMulFloat8) and (
        x.dtype not in DTYPES or w.dtype is not x.dtype
    ):
        return False
    if isinstance(anchor.op, Convolution):
        return anchor.op.groups == 1 and len(anchor.op.strides) in (1, 2) and w.is_constant
    return True


def is_packed(task: Task) -> bool:
    """Whether the right factor is one constant matrix, whatever the shapes."""
    assert task.anchor is not None
    value = task.anchor.inputs[1]
    return value.is_constant and (
        isinstance(task.anchor.op, Convolution) or math.prod(value.type.bind({})[:-2]) == 1
    )


def problem_of(task: Task, binding: Binding) -> Problem | None:
    """The problem of a task; None if the kernel cannot compute it."""
    return binding.derived(_problem, task)


def _problem(task: Task, binding: Binding) -> Problem | None:
    if not understood(task):
        return None
    assert task.anchor is not None
    is_conv = isinstance(task.anchor.op, Convolution)
    problem = _conv(task, binding) if is_conv else _matmul(task, binding)
    return problem if _is_in_reach(problem) else None


def pack(weights: np.ndarray, tile: Tile, neighbours: int = 0) -> np.ndarray:
    """Filters ``[rows, columns, C, K]`` of taps as the kernel reads them; with `neighbours` in the
    order of `regrouped`.

    Returns
    -------
    array
        ``[K, depth]``: the depth as the loop goes over it, both padded with zeros to whole tiles.
    """
    *taps, channels, columns = weights.shape
    count, length, blocks = segments(tile, (taps[0], taps[1]), channels)
    padded = columns + -columns % tile.columns
    packed = np.zeros((padded, count, blocks * tile.depth), weights.dtype)
    packed[:columns, :, :length] = weights.reshape(count, length, columns).transpose(2, 0, 1)
    packed = packed.reshape(padded, -1)
    return packed[regrouped(padded, neighbours)] if neighbours else packed


def neighbours(task: Task, tile: Tile, warps: int) -> int:
    """The columns of a packed factor of bytes that four threads share, multiplied in the order of
    `regrouped`; 0 where they are multiplied in their own.
    """
    assert task.anchor is not None
    if task.anchor.inputs[0].dtype not in BYTES or not is_packed(task):
        return 0
    read = [task.inputs[s] for s in task.epilogue.sources if s is not None and s != ACCUMULATOR]
    values = (*task.outputs, *(v for v in read if v.data is None))
    return tile.neighbours(warps, max(v.dtype.size for v in values))


def filters(task: Task) -> np.ndarray:
    """The constant right factor as ``[rows, columns, C, K]`` of taps; bytes without zero point."""
    assert task.anchor is not None
    op, data = task.anchor.op, task.anchor.inputs[1].data
    assert data is not None
    if isinstance(op, ConvInteger | MatMulInteger):
        data = centred_weights(task).astype(np.int8)
    if isinstance(op, Product):
        matrix = data.reshape(data.shape[-2:])
        return (matrix.T if op.transpose_b else matrix)[None, None]
    return data if data.ndim == 4 else data[None]


# ---- bytes ---------------------------------------------------------------------------------------


def centred_weights(task: Task) -> np.ndarray:
    """The constant right factor of bytes without its zero points, int16."""
    assert task.anchor is not None
    op, (w, zero) = task.anchor.op, (v.data for v in task.anchor.inputs[1:4:2])
    assert w is not None and zero is not None
    if isinstance(op, MatMulInteger) and op.transpose_b and zero.size > 1:
        zero = zero.reshape(-1, 1)
    return w.astype(np.int16) - zero.astype(np.int16)


def zero_of(task: Task) -> int:
    """The zero point of the left factor; of floats 0."""
    assert task.anchor is not None
    if not isinstance(task.anchor.op, ConvInteger | MatMulInteger):
        return 0
    data = task.anchor.inputs[2].data
    assert data is not None
    return int(data.reshape(()))


def corrections(weights: np.ndarray, zero: int, tile: Tile) -> np.ndarray:
    """What sums of levels hold too much where level `zero` stands for 0, for whole tiles.

    Parameters
    ----------
    weights : array of int8
        As `filters` gives them.
    zero : int
    tile : Tile

    Returns
    -------
    array of int32, ``[columns]``
    """
    sums = zero * weights.sum(axis=(0, 1, 2), dtype=np.int32)
    return np.pad(sums, (0, -len(sums) % tile.columns))


def _has_known_levels(task: Task) -> bool:
    """Whether weights and zero points are constants, and what remains of the weights is int8."""
    assert task.anchor is not None
    _, w, zero, w_zero = task.anchor.inputs
    if any(v.data is None for v in (w, zero, w_zero)) or zero.type.elements != 1:
        return False
    if isinstance(task.anchor.op, MatMulInteger) and math.prod(w.type.bind({})[:-2]) != 1:
        return False
    if w.dtype is DType.INT8 and w_zero.data is not None and not w_zero.data.any():
        return True
    centred = centred_weights(task)
    return bool(np.all(centred == centred.astype(np.int8)))


# ---- convolutions --------------------------------------------------------------------------------


def _conv(task: Task, binding: Binding) -> Problem:
    anchor = task.anchor
    assert anchor is not None and isinstance(anchor.op, Convolution)
    op, (x, w) = anchor.op, anchor.inputs[:2]
    result_shape = anchor.output.type.bind(binding.symbols)
    shape = x.type.bind(binding.symbols)
    expression, sources = _left(task)
    accesses = [_pixels(task, v, binding, shape) for v in sources]
    pads = tuple(evaluate(before, binding.symbols) for before, _ in op.padding)
    taps, steps, spread = w.type.bind({})[:-2], op.strides, op.dilations
    image = result_shape
    if len(op.strides) == 1:  # an image of one row
        shape, image = (shape[0], 1, *shape[1:]), (image[0], 1, *image[1:])
        accesses = [Access(a.pointer, _with_row(a.strides), a.wide) for a in accesses]
        pads, taps, steps, spread = (0, *pads), (1, *taps), (1, *steps), (1, *spread)
    checked = [
        pad > 0 or (positions - 1) * step + (tap - 1) * dilation - pad >= size
        for pad, positions, step, tap, dilation, size in zip(
            pads, image[1:3], steps, taps, spread, shape[1:3], strict=True
        )
    ]
    window = None
    if taps == (1, 1) and pads == (0, 0) and not any(checked):
        strides = [
            (n, y * steps[0], x * steps[1], channel)
            for n, y, x, channel in (a.strides for a in accesses)
        ]
        extents, merged = merge((*image[:3], shape[3]), strides, (3,))
        accesses = _replaced(accesses, merged)
        axes = (-1, *extents[1:-1])
    else:
        window = Window(
            (shape[1], shape[2]),
            (taps[0], taps[1]),
            (steps[0], steps[1]),
            (spread[0], spread[1]),
            (pads[0], pads[1]),
            (checked[0], checked[1]),
        )
        axes = (-1, *image[1:3])
    result, _, result_values = bind_work(
        task, task.epilogue, task.outputs, binding, result_shape, (len(result_shape) - 1,)
    )
    return Problem(
        rows=math.prod(image[:3]),
        columns=image[3],
        batch=1,
        channels=shape[3],
        dtype=x.dtype,
        left=_work(expression, accesses),
        left_values=sources,
        axes=axes,
        batched=False,
        window=window,
        right=None,
        right_axes=(),
        right_value=None,
        result=result,
        result_values=result_values,
        zero=zero_of(task),
    )


def _pixels(task: Task, value: Value, binding: Binding, shape: Sequence[int]) -> Access:
    """The access to what an image is made of; the image itself may lie in another order of axes."""
    if task.image is None or value is not task.inputs[0]:
        return access(value, binding, shape)
    layout, perm = binding.layout(value), task.image.perm
    turned = Layout(tuple(layout.shape[p] for p in perm), tuple(layout.strides[p] for p in perm))
    return Access(pointer_of(value, binding), broadcast_strides(turned, shape), is_wide(layout))


def _with_row(strides: tuple[int, ...]) -> tuple[int, ...]:
    return (strides[0], 0, *strides[1:])


# ---- matrix products -----------------------------------------------------------------------------


def _matmul(task: Task, binding: Binding) -> Problem:
    anchor = task.anchor
    assert anchor is not None and isinstance(anchor.op, Product)
    op, (a, b) = anchor.op, anchor.inputs[:2]
    result_shape = anchor.output.type.bind(binding.symbols)
    *lead, rows, columns = result_shape
    rank = len(result_shape)
    a_shape = a.type.bind(binding.symbols)
    depth = a_shape[-2] if op.transpose_a else a_shape[-1]
    expression, sources = _left(task)
    accesses = [_spread(access(v, binding, a_shape), rank, op.transpose_a) for v in sources]
    b_access = _spread(access(b, binding, binding.shape(b)), rank, op.transpose_b)
    batched = any(b_access.strides[:-2])
    groups = (rank - 2, rank - 1) if batched else (rank - 1,)
    extents, merged = merge((*lead, rows, depth), [s.strides for s in accesses], groups)
    right: Access | None = None
    right_axes: tuple[int, ...] = ()
    if batched:
        b_extents, (strides,) = merge((*lead, depth, columns), [b_access.strides], groups)
        right, right_axes = Access(b_access.pointer, strides, b_access.wide), b_extents[:-2]
    elif not is_packed(task):
        right = Access(b_access.pointer, b_access.strides[-2:], b_access.wide)
    result, _, result_values = bind_work(
        task, task.epilogue, task.outputs, binding, result_shape, groups
    )
    return Problem(
        rows=rows if batched else rows * math.prod(lead),
        columns=columns,
        batch=math.prod(lead) if batched else 1,
        channels=depth,
        dtype=a.dtype,
        left=_work(expression, _replaced(accesses, merged)),
        left_values=sources,
        axes=(-1, *extents[1:-1]),
        batched=batched,
        window=None,
        right=right,
        right_axes=(-1, *right_axes[1:]) if right_axes else (),
        right_value=b if right else None,
        result=result,
        result_values=result_values,
        zero=zero_of(task),
        codes=isinstance(op, MatMulFloat8),
    )


def _spread(item: Access, rank: int, transposed: bool) -> Access:
    """An access of a matrix as one of that rank, its matrices transposed if need be."""
    *lead, row, column = item.strides
    if transposed:
        row, column = column, row
    strides = (*([0] * (rank - len(item.strides))), *lead, row, column)
    return Access(item.pointer, strides, item.wide)


# ---- both ----------------------------------------------------------------------------------------


def _left(task: Task) -> tuple[Expression, tuple[Value, ...]]:
    """What happens to the left factor's elements, and what that reads."""
    assert task.anchor is not None
    if task.prologue is None:
        value = task.anchor.inputs[0]
        return identity(value.dtype), (value,)
    sources = [task.inputs[s] for s in task.prologue.sources if s is not None]
    return task.prologue.expression, tuple(sources)


def _work(expression: Expression, accesses: Sequence[Access]) -> Work:
    rest = iter(accesses)
    leaves = [next(rest) if leaf.constant is None else None for leaf in expression.leaves]
    return Work((), expression, tuple(leaves), ())


def _replaced(accesses: Sequence[Access], strides: Sequence[tuple[int, ...]]) -> list[Access]:
    return [Access(a.pointer, s, a.wide) for a, s in zip(accesses, strides, strict=True)]


def _is_in_reach(problem: Problem) -> bool:
    """Whether offsets that the kernel computes with 32 bits fit."""
    if problem.rows * problem.batch >= WIDE:
        return False
    depth = math.prod(problem.taps) * problem.channels
    if problem.right is None and (problem.columns + 256) * (depth + 256 * problem.taps[0]) >= WIDE:
        return False
    for item in problem.left.leaves:
        if item is None:
            continue
        reach = abs(item.strides[-1]) * (problem.channels + 256)
        if problem.window is not None:
            pairs = zip(problem.taps, problem.window.dilations, item.strides[1:3], strict=True)
            reach += sum(taps * dilation * abs(stride) for taps, dilation, stride in pairs)
        if reach >= WIDE:
            return False
    return True
