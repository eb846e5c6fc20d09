"""Reductions along any axes, with elementwise work before and after, and arg max.

The kernel stands in `reduction_kernel`. Where there are few results of many elements, a first
launch reduces fixed blocks into the workspace and a second one the blocks' states; so results do
not depend on the number of threads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from planish.fusion.expression import identity
from planish.fusion.task import Task
from planish.graph.graph import Value
from planish.graph.types import TensorType
from planish.ops.base import normalize_axis
from planish.ops.reduce import (
    ArgMax,
    Reduction,
)
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Tactic, Workspace, dense_strides
from planish.targets.cpu.kernels.axes import (
    Box,
    Tensor,
    anchor_parameters,
    prologue_of,
    task_box,
)
from planish.targets.cpu.kernels.reducers import wide_dtype
from planish.targets.cpu.kernels.reduction_kernel import COLUMNS, ReductionKernel
from planish.targets.reductions import KINDS
from planish.targets.restoring import Allowed

_GRAIN = 1 << 13
"""Elements a thread takes at a time, at least."""
_BLOCK = 1 << 14
"""Elements of a block, at least, where a reduction is split."""
_SPLIT_BELOW = 16
"""A reduction of at least so many tasks is not split."""


@dataclass(frozen=True)
class Reduce(AnchoredTactic):
    """A reduction with `vectors` vectors at a time."""

    family: ClassVar[str] = "reduction"
    vectors: int

    def workspace(self, binding: Binding) -> int:
        return sum(filled for _, filled in self._stages(binding))

    def launches(self, binding: Binding) -> list[Launch]:
        return [launch for launch, _ in self._stages(binding)]

    def _stages(self, binding: Binding) -> list[tuple[Launch, int]]:
        """The launches, and how many bytes of workspace each fills."""
        task, op, fed = self.task, self.anchor.op, self.anchor.inputs[0]
        rank = fed.type.rank
        if 0 in self.result_shape(binding):
            return []
        given = (op.axis,) if isinstance(op, ArgMax) else op.axes  # type: ignore[attr-defined]
        axes = [normalize_axis(a, rank) for a in given]
        box, kept, reduced, vector_reduced = task_box(task, binding, axes).simplified().ordered()
        count = math.prod(n for n, r in zip(box.extents, box.reduced, strict=True) if r)
        name = KINDS[type(op)]
        dtype = fed.dtype
        if not dtype.is_float:
            count = max(count, 1)
        vectors = min(self.vectors, max(1, -(-box.extents[-1] // 16)))
        kernel = ReductionKernel(
            reduction=name,
            dtype=dtype,
            index_dtype=op.dtype if isinstance(op, ArgMax) else None,
            select_last=isinstance(op, ArgMax) and op.select_last,
            kept=kept,
            reduced=reduced,
            vector_reduced=vector_reduced,
            vectors=vectors,
            split=None,
            stage="whole",
            prologue=prologue_of(task).expression,
            leaves=(),
            epilogue=task.epilogue.expression,
            operands=(),
            outputs=(),
        )
        tasks = _tasks(box, kernel)
        blocks = min(256, math.prod(box.extents) // _BLOCK)
        if isinstance(op, ArgMax) or tasks >= _SPLIT_BELOW or blocks < 2:
            return [_stage(kernel, box, count, 0)]
        return _split(kernel, box, count, blocks)


def _tasks(box: Box, kernel: ReductionKernel) -> int:
    outer = math.prod(box.extents[: kernel.kept])
    return outer if kernel.vector_reduced else outer * -(-box.extents[-1] // COLUMNS)


def _stage(
    kernel: ReductionKernel, box: Box, count: int, block_length: int, filled: int = 0
) -> tuple[Launch, int]:
    """A kernel bound to a box: the launch, and the bytes of workspace it fills."""
    leaves, operands, outputs = box.bound()
    bound = leaves + operands + outputs
    kernel = replace(
        kernel,
        leaves=leaves.accesses,
        operands=operands.accesses,
        outputs=outputs.accesses,
    )
    tasks = _tasks(box, kernel)
    work = max(1, math.prod(box.extents) // max(1, tasks))
    launch = Launch(
        kernel,
        bound.pointers,
        (*box.extents, count, block_length, *bound.params),
        tasks=tasks,
        grain=max(1, _GRAIN // work),
    )
    return launch, filled


def _split(kernel: ReductionKernel, box: Box, count: int, blocks: int) -> list[tuple[Launch, int]]:
    """Two stages: blocks of the longest reduced axis, then the blocks' states together."""
    kept, rank = kernel.kept, len(box.extents)
    inner = range(kept, rank if kernel.vector_reduced else rank - 1)
    axis = max(inner, key=lambda a: box.extents[a])
    length = -(-box.extents[axis] // min(blocks, box.extents[axis]))
    if axis == rank - 1:
        length += -length % 64
    blocks = -(-box.extents[axis] // length)
    wide = wide_dtype(kernel.reduction, kernel.dtype)
    partial = Value("partial", TensorType((), wide))
    columns = () if kernel.vector_reduced else (box.extents[-1],)
    shape = (*box.extents[:kept], blocks, *columns)
    strides = dense_strides(shape)
    outer, across = strides[:kept], strides[kept]

    def with_blocks(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        s = tensor.strides
        return replace(tensor, strides=(*s[:kept], s[axis] * length, *s[kept:]))

    between = (0,) * kernel.reduced
    first_box = Box(
        (*box.extents[:kept], blocks, *box.extents[kept:]),
        (*box.reduced[:kept], False, *box.reduced[kept:]),
        tuple(map(with_blocks, box.leaves)),
        (),
        (
            Tensor(
                partial,
                Workspace(0),
                (*outer, across, *between, 0 if kernel.vector_reduced else 1),
            ),
        ),
    )
    first = replace(
        kernel,
        kept=kept + 1,
        split=axis - kept,
        stage="blocks",
        epilogue=identity(wide),
    )

    def without_rows(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        last = () if kernel.vector_reduced else tensor.strides[-1:]
        return replace(tensor, strides=(*tensor.strides[:kept], 0, *last))

    states = Tensor(
        partial, Workspace(0), (*outer, across, *(() if kernel.vector_reduced else (1,)))
    )
    second_box = Box(
        shape,
        (*box.reduced[:kept], True, *((False,) * len(columns))),
        (states,),
        tuple(map(without_rows, box.others)),
        tuple(map(without_rows, box.outputs)),
    )
    second = replace(
        kernel,
        reduced=0 if kernel.vector_reduced else 1,
        stage="joined",
        prologue=identity(wide),
    )
    return [
        _stage(first, first_box, count, length, math.prod(shape) * wide.size),
        _stage(second, second_box, count, 0),
    ]


class ReductionFamily(Family):
    """Reductions and arg max along any axes."""

    name: ClassVar[str] = "reduction"
    tactic: ClassVar[type[Tactic]] = Reduce
    allowed: ClassVar[Allowed] = {"vectors": range(1, 9)}

    def understands(self, task: Task) -> bool:
        if task.anchor is None or type(task.anchor.op) not in KINDS:
            return False
        return not anchor_parameters(task) and isinstance(task.anchor.op, Reduction | ArgMax)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        yield Reduce(task, 4)
        yield Reduce(task, 2)


FAMILIES: tuple[Family, ...] = (ReductionFamily(),)
