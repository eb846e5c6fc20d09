"""One generator for everything that visits each output element once: elementwise work, copies,
slices, broadcasts, gathers, and with `transposition.py` changes of the axes' order.

`launch` takes an expression and its operands over an iteration space. It leaves out axes of one
element, orders the axes as the output lies in memory, merges those that all operands let merge,
picks the kernel for the innermost ones, and cuts the space into tasks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import llvmlite.ir as ir

from planish.fusion.expression import Expression, identity
from planish.graph.types import DType
from planish.targets.base import Launch, Pointer
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.elementwise import emit
from planish.targets.cpu.kernels.nest import (
    RUN_TIME,
    Access,
    Block,
    Nest,
    NestKernel,
    Operand,
    Place,
    can_mask,
)
from planish.targets.cpu.kernels.space import TASK_BYTES, Space, even_block, register_bytes
from planish.targets.cpu.kernels.transposition import choose_kernel


@dataclass(frozen=True)
class LoopKernel(NestKernel):
    """Rows one by one, columns in vectors.

    Attributes
    ----------
    unroll : int
        Vectors per round.
    serial : bool
        Whether one task does everything in order, because elements may be written twice.
    """

    family = "loop"

    unroll: int = 4
    serial: bool = False

    def range(self, k: KernelBuilder, nest: Nest) -> tuple[ir.Value, ir.Value]:
        if not self.serial:
            return k.begin, k.end
        # the launch has one task: whoever runs it does all
        return k.mul(k.begin, nest.tasks), k.mul(k.end, nest.tasks)

    def block(
        self, k: KernelBuilder, block: Block, inputs: list[Place | None], outputs: list[Place]
    ) -> None:
        with k.loop(block.row, block.row_end) as rows:
            sources = [p and p.row(rows.index) for p in inputs]
            targets = [p.row(rows.index) for p in outputs]
            self._columns(k, block, sources, targets)

    def _columns(
        self, k: KernelBuilder, block: Block, sources: list[Place | None], targets: list[Place]
    ) -> None:
        lanes = self._lanes(k)
        strided = any(map(_is_strided, (*self.inputs, *self.outputs)))
        unroll = 1 if strided else self.unroll
        step = lanes * unroll
        fixed = [
            p.load(0, lanes) if p and p.access.step == 0 and not _varies(p.access) else None
            for p in sources
        ]

        def run(columns: Sequence[ir.Value], lanes: int, mask=None, count=None) -> None:
            loaded = [
                [
                    value if value is not None else p and p.load(column, lanes, mask, count)
                    for p, value in zip(sources, fixed if lanes > 1 else scalars, strict=True)
                ]
                for column in columns
            ]
            results = [emit(k, self.expression, leaves, lanes) for leaves in loaded]
            for column, values in zip(columns, results, strict=True):
                for value, target in zip(values, targets, strict=True):
                    target.store(value, column, lanes, mask)

        scalars: list[ir.Value | None] = [None] * len(sources)
        if lanes == 1:
            with k.loop(block.column, block.column_end) as loop:
                run([loop.index], 1)
            return
        extent = k.sub(block.column_end, block.column)
        full = k.add(block.column, k.sub(extent, k.b.urem(extent, k.i64(step))))
        with k.loop(block.column, full, step) as loop:
            run([k.add(loop.index, lanes * u) for u in range(unroll)], lanes)
        if can_mask(k, (*self.inputs, *self.outputs)) and all(t.step == 1 for t in self.outputs):
            with k.loop(full, block.column_end, lanes) as loop:
                count = k.sub(block.column_end, loop.index)
                run([loop.index], lanes, k.tail_mask(count, lanes), count)
            return
        if unroll > 1:
            extent = k.sub(block.column_end, full)
            whole = k.add(full, k.sub(extent, k.b.urem(extent, k.i64(lanes))))
            with k.loop(full, whole, lanes) as loop:
                run([loop.index], lanes)
            full = whole
        with k.loop(full, block.column_end) as loop:
            run([loop.index], 1)

    def _lanes(self, k: KernelBuilder) -> int:
        """As many as the largest element leaves room for in a register."""
        if any(_varies(a) for a in self.outputs):
            return 1  # two lanes could write the same element
        sizes = [register_bytes(leaf.dtype) for leaf in self.expression.leaves]
        sizes += [register_bytes(step.dtype) for step in self.expression.instructions]
        sizes += [8 for a in self.inputs if a and _varies(a)]
        lanes = max(4 * k.lanes // max(sizes), 1)
        # elements apart from each other are loaded one by one, in code that grows with the lanes
        strided = any(map(_is_strided, (*self.inputs, *self.outputs)))
        return min(lanes, 16) if strided else lanes


def _is_strided(access: Access | None) -> bool:
    return access is not None and (access.step == RUN_TIME or _varies(access))


def _varies(access: Access) -> bool:
    """Whether a data-dependent index changes from column to column."""
    return any(t.step != 0 for t in access.terms)


# ---- binding -------------------------------------------------------------------------------


def launch(
    expression: Expression,
    inputs: Sequence[Operand | None],
    outputs: Sequence[Operand],
    shape: Sequence[int],
    *,
    unroll: int = 4,
    serial: bool = False,
) -> Launch:
    """The launch that evaluates an expression at every point of a space.

    Parameters
    ----------
    expression : Expression
    inputs : sequence of Operand or None
        One per leaf; None for constant leaves.
    outputs : sequence of Operand
        One per result.
    shape : sequence of int
        The iteration space. An extent of 0 gives a launch without tasks.
    unroll : int
        Vectors per round of the innermost loop.
    serial : bool
        Whether points may write the same element: then they are visited in order, by one task.
    """
    space = _arrange(Space.of(inputs, outputs, shape), ordered=serial)
    expression, space = _as_raw_bits(expression, space)
    chosen = None if serial else choose_kernel(expression, space)
    if chosen is None:
        accesses = [None if o is None else _access(o) for o in space.inputs]
        kernel: NestKernel = LoopKernel(
            expression=expression,
            rank=len(space.shape),
            inputs=tuple(accesses),
            outputs=tuple(_access(o) for o in space.outputs),
            unroll=unroll,
            serial=serial,
        )
        row_block, column_block = _blocks(space)
    else:
        kernel, space, row_block, column_block = chosen
    return _make_launch(kernel, space, row_block, column_block, serial)


def _arrange(space: Space, ordered: bool) -> Space:
    """At least two axes, of more than one element where possible, as few as possible."""
    axes = [a for a, n in enumerate(space.shape) if n != 1]
    if not ordered and space.outputs:
        first = space.outputs[0].strides
        axes.sort(key=lambda a: -abs(first[a]))
    space = space.map_axes(axes)
    strides = [o.strides for o in space.operands()]
    kept: list[int] = []
    shape = list(space.shape)
    for axis in range(len(shape)):
        if kept and all(s[kept[-1]] == s[axis] * shape[axis] for s in strides):
            shape[axis] *= shape[kept.pop()]
        kept.append(axis)
    merged = space.map_axes(kept)
    space = replace(merged, shape=tuple(shape[a] for a in kept))
    while len(space.shape) < 2:
        space = space.with_front_axis()
    return space


def _as_raw_bits(expression: Expression, space: Space) -> tuple[Expression, Space]:
    """Copies move bits: one kernel for all dtypes of a size, and no conversion of halves."""
    source = space.inputs[0] if expression.is_copy else None
    if source is None:
        return expression, space
    raw = {1: DType.UINT8, 2: DType.UINT16, 4: DType.UINT32, 8: DType.UINT64}
    dtype = raw[expression.leaves[0].dtype.size]
    (target,) = space.outputs
    return (
        identity(dtype),
        replace(
            space,
            inputs=(replace(source, dtype=dtype),),
            outputs=(replace(target, dtype=dtype),),
        ),
    )


def _access(operand: Operand) -> Access:
    step = operand.strides[-1]
    return Access(
        operand.dtype,
        step if step in (0, 1) else RUN_TIME,
        operand.pointer is not None,
        tuple(_access(t.index) for t in operand.terms),
    )


def _blocks(space: Space) -> tuple[int, int]:
    """Rows and columns of a task."""
    rows, columns = space.shape[-2:]
    points = max(TASK_BYTES // space.bytes_per_point, 256)
    if columns > points:
        return 1, even_block(columns, points, 64)
    return even_block(rows, max(points // max(columns, 1), 1), 1), max(columns, 1)


def _make_launch(
    kernel: NestKernel, space: Space, row_block: int, column_block: int, serial: bool
) -> Launch:
    rows, columns = space.shape[-2:]
    row_blocks, column_blocks = -(-rows // row_block), -(-columns // column_block)
    tasks = math.prod(space.shape[:-2]) * row_blocks * column_blocks
    params = [columns, column_block, column_blocks, rows, row_block, row_blocks, tasks]
    params += space.shape[:-2]
    pointers: list[Pointer] = []

    def bind(operand: Operand) -> None:
        if operand.pointer is not None:
            pointers.append(operand.pointer)
        params.extend((operand.offset, *operand.strides))
        for term in operand.terms:
            params.extend((term.size, term.stride))
            bind(term.index)

    for operand in (*space.inputs, *space.outputs):
        if operand is not None:
            bind(operand)
    touched = row_block * column_block * space.bytes_per_point
    return Launch(
        kernel,
        tuple(pointers),
        tuple(params),
        tasks=min(tasks, 1) if serial else tasks,
        grain=max(1, min(TASK_BYTES // max(touched, 1), max(tasks, 1))),
    )
