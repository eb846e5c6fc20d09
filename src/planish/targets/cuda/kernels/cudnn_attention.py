"""Attention by cuDNN: of halves, without work on the scores beside a scale.

Its kernels overlap products with exponentials, which generated ones do only as far as several
programs run at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from planish.fusion.task import ACCUMULATOR, Fused, Task
from planish.graph.types import DType
from planish.ops.elementwise import Cast
from planish.targets.anchored import AnchoredTactic
from planish.targets.attention import Place, problem_of
from planish.targets.base import Binding, Launch, Tactic, Workspace
from planish.targets.cuda.driver import gpu
from planish.targets.cuda.kernel import LIBRARY_SECONDS
from planish.targets.cuda.kernels.cudnn import own_session
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.libraries.cudnn import NAME, SdpaKernel
from planish.targets.cuda.libraries.cudnn_graph import AttentionGraph, Tensor
from planish.targets.cuda.libraries.session import workspace_bytes
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.restoring import Allowed

DTYPES = (DType.FLOAT16, DType.BFLOAT16)
STEP = 8
"""What columns, and the strides of rows, heads and batches, are multiples of: 16 bytes."""
DEEPEST = 128
"""Columns of queries and values, at most."""
ALIGNMENT = 16


@dataclass(frozen=True)
class CudnnAttention(AnchoredTactic):
    """A plan of cuDNN's; `version` and `plan` as in `planish.targets.cuda.kernels.cudnn`."""

    family: ClassVar[str] = "cudnn_attention"
    is_of_library: ClassVar[bool] = True

    version: int
    plan: str
    machine: CudaMachine = field(default=H200, compare=False)

    @property
    def extra_seconds(self) -> float:
        return LIBRARY_SECONDS

    def accepts(self, binding: Binding) -> bool:
        own, graph = own_session(self.machine), graph_of(self.task, binding)
        if own is None or graph is None or own.version != self.version:
            return False
        return own.has(SdpaKernel(graph, self.version, self.plan))

    def launches(self, binding: Binding) -> list[Launch]:
        work = self.task.attention
        assert work is not None
        matrices = (self.task.inputs[i] for i in work.sources)
        return [Launch(self._kernel(binding), (*matrices, self.task.output, Workspace()))]

    def workspace(self, binding: Binding) -> int:
        assert self.machine.ordinal is not None, "tactics are run where they are offered"
        call = self._kernel(binding).load(gpu(self.machine.ordinal))
        return workspace_bytes(call.workspace)

    def _kernel(self, binding: Binding) -> SdpaKernel:
        graph = graph_of(self.task, binding)
        assert graph is not None, "the tactic accepts the binding"
        return SdpaKernel(graph, self.version, self.plan)


def understood(task: Task) -> bool:
    """Whether a task is attention without work on scores or result; shapes decide the rest."""
    work = task.attention
    if work is None or work.guarded or len(task.outputs) != 1:
        return False
    dtypes = {task.output.dtype, *(task.inputs[i].dtype for i in work.sources)}
    if len(dtypes) != 1 or not dtypes.issubset(DTYPES) or _factor(task.epilogue) != 1.0:
        return False
    return _factor(work.scores) is not None


def _factor(work: Fused) -> float | None:
    """The number that an expression multiplies its accumulator by; None if it does other things."""
    leaves, factor = work.expression.leaves, 1.0
    if ACCUMULATOR not in work.sources:
        return None
    current = work.sources.index(ACCUMULATOR)
    for number, step in enumerate(work.expression.instructions, len(leaves)):
        others = [slot for slot in step.args if slot != current]
        if isinstance(step.op, Cast) and step.dtype.is_float:
            current = number
            continue
        if len(others) != 1 or len(step.args) != 2 or others[0] >= len(leaves):
            return None
        constant = leaves[others[0]].constant
        if not constant:
            return None
        if step.op.name == "mul":
            factor *= float(constant)
        elif step.op.name == "div" and step.args[0] == current:
            factor /= float(constant)
        else:
            return None
        current = number
    return factor if work.expression.results == (current,) and math.isfinite(factor) else None


def graph_of(task: Task, binding: Binding) -> AttentionGraph | None:
    """The graph of a task; None where there is none."""
    problem = problem_of(task, binding) if understood(task) else None
    if problem is None or max(problem.depth, problem.values) > DEEPEST:
        return None
    work = task.attention
    assert work is not None
    outer, queries, keys = (problem.batches, problem.heads), problem.queries, problem.keys

    def tensor(place: Place, rows: int, columns: int) -> Tensor | None:
        shape = (*outer, rows, columns)
        strides = (place.batch, place.head, place.row, place.column)
        pairs = [(n, s) for n, s in zip(shape, strides, strict=True) if n > 1]
        if any(s == 0 for _, s in pairs) or columns % STEP or place.column != 1:
            return None
        if any(s % STEP for n, s in pairs[:-1]):
            return None
        if binding.layout(place.value).alignment < ALIGNMENT:
            return None
        reach = max(n * s for n, s in pairs)
        batch, head, row, column = (
            s if n > 1 else reach for n, s in zip(shape, strides, strict=True)
        )
        return Tensor(shape, (batch, head, row, column), place.value.dtype)

    q = tensor(problem.q, queries, problem.depth)
    k = tensor(problem.k, keys, problem.depth)
    v = tensor(problem.v, keys, problem.values)
    result = tensor(problem.result, queries, problem.values)
    if q is None or k is None or v is None or result is None:
        return None
    factor = _factor(work.scores)
    assert factor is not None, "the task is understood"
    return AttentionGraph(q, k, v, result, work.scale * factor)


@dataclass(frozen=True)
class CudnnAttentionFamily(MachineFamily):
    """Attention by cuDNN, where it is installed."""

    name: ClassVar[str] = "cudnn_attention"
    pattern: ClassVar[str] = "attention"
    tactic: ClassVar[type[Tactic]] = CudnnAttention
    allowed: ClassVar[Allowed] = {"version": range(1 << 31), "plan": NAME}

    def understands(self, task: Task) -> bool:
        return understood(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        graph = graph_of(task, binding)
        own = own_session(self.machine) if graph is not None else None
        if graph is None or own is None:
            return
        for kernel in own.attentions(graph):
            yield CudnnAttention(task, kernel.version, kernel.plan, self.machine)


FAMILIES = (CudnnAttentionFamily(),)
