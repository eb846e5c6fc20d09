"""Tactics of the plain contraction kernel: what the matrix and depthwise kernels decline.

Those are fast for float32 with constant weights. This family does every other dtype, integer
products with zero points, convolutions over any number of dimensions, and filters that are not
constant. Faster kernels for a dtype are further families beside this one: a tactic says by itself
in which precision it computes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.ops.matmul import MatMul
from planish.ops.quantization import ConvInteger, MatMulInteger
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import (
    Binding,
    Constant,
    Family,
    Launch,
    Layout,
    Pointer,
    Tactic,
    dense_strides,
)
from planish.targets.cpu.kernels import depthwise, integer_matrix, matrix
from planish.targets.cpu.kernels.contraction_kernel import (
    VECTOR_BYTES,
    ContractionKernel,
    accumulator_of,
)
from planish.targets.cpu.kernels.fused import (
    Access,
    access,
    bind_leaves,
    bind_values,
    broadcast_strides,
)
from planish.targets.restoring import Allowed

_GRAIN = 1 << 14
"""Multiplications a thread takes at a time, at least."""
_MARGIN = 1024
"""Bytes of scratch for a vector of what lies beyond the border."""


@dataclass(frozen=True)
class _Factor:
    """A factor of the products in the kernel's axes: outer ones, pixels, columns; and depth."""

    strides: tuple[int, ...]
    depth: int


@dataclass(frozen=True)
class _Axis:
    """A spatial axis; see the kernel's `AXIS_PARAMS`."""

    place: int
    params: tuple[int, ...]


@dataclass(frozen=True)
class _Problem:
    """A product or convolution in the kernel's terms.

    Attributes
    ----------
    extents : tuple of int
        Outer axes, pixels, columns.
    left, right : _Factor
    start : int
        Where the left factor's first element lies, padding counted.
    axes : tuple of _Axis
    arrange : callable
        Strides along the output's axes as strides along the kernel's.
    """

    extents: tuple[int, ...]
    depth: int
    left: _Factor
    right: _Factor
    start: int
    axes: tuple[_Axis, ...]
    arrange: Callable[[Sequence[int]], tuple[int, ...]]


@dataclass(frozen=True)
class Contraction(AnchoredTactic):
    """The plain kernel with a register tile of `pixels` x `vectors`."""

    family: ClassVar[str] = "contraction"
    pixels: int
    vectors: int

    def constants(self) -> list[np.ndarray]:
        """The transpose of a constant right matrix that is read along its columns."""
        value = _transposed_constant(self.task)
        return [] if value is None else [np.ascontiguousarray(np.swapaxes(value, -1, -2))]

    def launches(self, binding: Binding) -> list[Launch]:
        task, anchor = self.task, self.anchor
        shape = self.result_shape(binding)
        if 0 in shape:
            return []
        problem = _problem(task, binding)
        left, right = anchor.inputs[:2]

        def strides_of(value: Value) -> tuple[int, ...]:
            return problem.arrange(broadcast_strides(binding.layout(value), shape))

        zeros = [_zero_point(task, i, strides_of) for i in (0, 1)]
        reads = bind_leaves(task, task.epilogue, strides_of)
        writes = bind_values(task.outputs, strides_of)
        accumulator = accumulator_of(anchor.output.dtype)
        width = self.vectors * (VECTOR_BYTES // accumulator.size)
        *outer, pixels, columns = problem.extents
        kernel = ContractionKernel(
            factors=(access(left, problem.left.strides), access(right, problem.right.strides)),
            zeros=(zeros[0][0], zeros[1][0]),
            accumulator=accumulator,
            result=anchor.output.dtype,
            pixels=self.pixels,
            vectors=self.vectors,
            outer=len(outer),
            spatial=tuple(a.place for a in problem.axes),
            masked=columns % width != 0,
            epilogue=task.epilogue.expression,
            operands=reads.accesses,
            outputs=writes.accesses,
        )
        second: Pointer = right if _transposed_constant(task) is None else Constant(0)
        pointers = (left, second, *(p for _, p, _ in zeros if p is not None))
        params = [*problem.extents, problem.depth, problem.left.depth, problem.right.depth]
        params.append(problem.start)
        params += [n for axis in problem.axes for n in axis.params]
        params += [*problem.left.strides, *problem.right.strides, *zeros[0][2], *zeros[1][2]]
        taps = math.prod(axis.params[0] for axis in problem.axes)
        work = problem.depth * taps * self.pixels * width
        return [
            Launch(
                kernel,
                (*pointers, *reads.pointers, *writes.pointers),
                (*params, *reads.params, *writes.params),
                tasks=math.prod(outer) * -(-pixels // self.pixels) * -(-columns // width),
                grain=max(1, _GRAIN // max(work, 1)),
                scratch=_MARGIN,
            )
        ]


def _transposed_constant(task: Task) -> np.ndarray | None:
    assert task.anchor is not None
    op, data = task.anchor.op, task.anchor.inputs[1].data
    return data if isinstance(op, MatMul | MatMulInteger) and op.transpose_b else None


def _zero_point(
    task: Task, index: int, strides_of: Callable[[Value], tuple[int, ...]]
) -> tuple[Access | None, Pointer | None, tuple[int, ...]]:
    """Access, pointer and strides of a factor's zero point; nothing where it is known to be 0."""
    assert task.anchor is not None
    if len(task.anchor.inputs) < 4:
        return None, None, ()
    value = task.anchor.inputs[2 + index]
    if value.data is not None and not value.data.any():
        return None, None, ()
    strides = strides_of(value)
    return access(value, strides), value, strides


def _problem(task: Task, binding: Binding) -> _Problem:
    assert task.anchor is not None
    if isinstance(task.anchor.op, MatMul | MatMulInteger):
        return _product(task, binding)
    return _convolution(task, binding)


def _product(task: Task, binding: Binding) -> _Problem:
    anchor = task.anchor
    assert anchor is not None and isinstance(anchor.op, MatMul | MatMulInteger)
    op, (a, b) = anchor.op, anchor.inputs[:2]
    shape = anchor.output.type.bind(binding.symbols)
    a_layout, b_layout = binding.layout(a), binding.layout(b)
    if op.transpose_a:
        a_layout = _swapped(a_layout)
    if op.transpose_b:
        b_layout = _swapped(b_layout)
        if _transposed_constant(task) is not None:
            b_layout = Layout(b_layout.shape, dense_strides(b_layout.shape))

    def batches(layout: Layout) -> tuple[int, ...]:
        outer = Layout(layout.shape[:-2], layout.strides[:-2])
        return broadcast_strides(outer, shape[:-2])

    left = _Factor((*batches(a_layout), a_layout.strides[-2], 0), a_layout.strides[-1])
    columns = 1 if shape[-1] == 1 else b_layout.strides[-1]
    right = _Factor((*batches(b_layout), 0, columns), b_layout.strides[-2])
    return _Problem(shape, a_layout.shape[-1], left, right, 0, (), tuple)


def _swapped(layout: Layout) -> Layout:
    shape, strides = layout.shape, layout.strides
    return Layout((*shape[:-2], shape[-1], shape[-2]), (*strides[:-2], strides[-1], strides[-2]))


def _convolution(task: Task, binding: Binding) -> _Problem:
    """Axes: batch, spatial but the last, groups, the last spatial one as pixels, filters; with one
    filter of one channel a group, groups are the columns.
    """
    anchor = task.anchor
    assert anchor is not None and isinstance(anchor.op, Conv | ConvInteger)
    op, (x, w) = anchor.op, anchor.inputs[:2]
    shape = anchor.output.type.bind(binding.symbols)
    x_layout, w_layout = binding.layout(x), binding.layout(w)
    spatial = len(op.strides)
    before = [max(evaluate(pair[0], binding.symbols), 0) for pair in op.padding]
    channels, filters = w_layout.shape[-2], w_layout.shape[-1] // op.groups
    depthwise_like = channels == filters == 1
    in_x, in_w = x_layout.strides[-1], w_layout.strides[-1]
    moves = [s * n for s, n in zip(op.strides, x_layout.strides[1:], strict=False)]

    def arrange(strides: Sequence[int]) -> tuple[int, ...]:
        batch, *inner, last = strides
        groups = () if depthwise_like else (filters * last,)
        return (batch, *inner[:-1], *groups, inner[-1], last)

    if depthwise_like:
        left = (x_layout.strides[0], *moves, in_x)
        right = (*(0,) * (1 + spatial), in_w)
    else:
        group = channels * in_x
        left = (x_layout.strides[0], *moves[:-1], group, moves[-1], 0)
        right = (*(0,) * spatial, filters * in_w, 0, in_w)
    sizes = (shape[0], *shape[1:-2])
    extents = (
        (*sizes, shape[-2], shape[-1])
        if depthwise_like
        else (*sizes, op.groups, shape[-2], filters)
    )
    axes = []
    for i in range(spatial):
        place = 1 + i if i < spatial - 1 else len(extents) - 2
        step = x_layout.strides[1 + i]
        numbers = (
            w_layout.shape[i],
            op.strides[i],
            op.dilations[i],
            before[i],
            x_layout.shape[1 + i],
            op.dilations[i] * step,
            w_layout.strides[i],
        )
        axes.append(_Axis(place, numbers))
    start = -sum(p * s for p, s in zip(before, x_layout.strides[1:], strict=False))
    return _Problem(
        extents,
        channels,
        _Factor(left, in_x),
        _Factor(right, w_layout.strides[-2]),
        start,
        tuple(axes),
        arrange,
    )


def _has_faster(task: Task, binding: Binding) -> bool:
    """Whether the families before this one take the task."""
    return any(
        next(iter(family.tactics(task, binding)), None) is not None
        for family in (*matrix.FAMILIES, *integer_matrix.FAMILIES, *depthwise.FAMILIES)
    )


class ContractionFamily(Family):
    """Matrix products and convolutions of every dtype."""

    name: ClassVar[str] = "contraction"
    tactic: ClassVar[type[Tactic]] = Contraction
    allowed: ClassVar[Allowed] = {"pixels": (1, 2, 4), "vectors": (1, 2)}

    def understands(self, task: Task) -> bool:
        if task.anchor is None or task.prologue is not None:
            return False
        op = task.anchor.op
        if isinstance(op, Conv | ConvInteger):
            return bool(op.strides) and task.anchor.inputs[0].dtype is not DType.BOOL
        return isinstance(op, MatMul | MatMulInteger)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if not Contraction(task, 1, 1).accepts(binding):
            return
        if _has_faster(task, binding):
            return
        *_, pixels, columns = _problem(task, binding).extents
        assert task.anchor is not None
        lanes = VECTOR_BYTES // accumulator_of(task.anchor.output.dtype).size
        most = 2 if columns > lanes else 1
        tiles = [(p, v) for v in range(most, 0, -1) for p in (4, 2, 1) if p <= max(pixels, 1)]
        for tile in tiles[:1] + tiles[-1:] if len(tiles) > 1 else tiles:
            yield Contraction(task, *tile)


FAMILIES: tuple[Family, ...] = (ContractionFamily(),)
