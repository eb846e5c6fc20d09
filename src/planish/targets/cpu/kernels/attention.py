"""Attention in float32 as one kernel; see `attention_kernel`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from planish.fusion.task import Task
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.targets.attention import Place, Problem, problem_of
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cpu.kernels.attention_kernel import AttentionKernel
from planish.targets.cpu.kernels.blocking import ceil
from planish.targets.cpu.kernels.family import MachineFamily
from planish.targets.cpu.kernels.fused import Bound, bind_leaves
from planish.targets.cpu.machine import Machine
from planish.targets.restoring import FLAG, Allowed

GROUPS = (1, 2, 4, 8, 16)
BLOCKS = (64, 128, 256, 512)
MOST_ROWS, MOST_VECTORS = 16, 4
PARAMETERS: Allowed = {
    "rows": range(1, MOST_ROWS + 1),
    "vectors": range(1, MOST_VECTORS + 1),
    "groups": GROUPS,
    "block": BLOCKS,
    "packed": FLAG,
}
"""The possible parameters of a tactic of attention."""
DEEPEST = 512
"""Columns of queries or values, at most: the tiles of more would not stay in the cache."""


@dataclass(frozen=True, eq=False)
class AttentionTactic(Tactic):
    """The attention kernel with a register tile, queries of a task, and keys of a block."""

    family: ClassVar[str] = "attention"
    machine: Machine
    rows: int
    vectors: int
    groups: int
    block: int
    packed: bool

    def accepts(self, binding: Binding) -> bool:
        return _understood(self.task) and readable(self.task, binding) is not None

    def launches(self, binding: Binding) -> list[Launch]:
        task, work = self.task, self.task.attention
        problem = readable(task, binding)
        assert work is not None and problem is not None
        operands = _bound(task, work.scores, problem.scores)
        last = _bound(task, task.epilogue, problem.rows)
        kernel = self._kernel(
            depth=problem.depth,
            values=problem.values,
            scale=work.scale,
            rows=self.rows,
            vectors=self.vectors,
            groups=self.groups,
            block=self.block,
            packed=self.packed,
            scores=work.scores.expression,
            operands=operands.accesses,
            after=task.epilogue.expression,
            last=last.accesses,
            guarded=work.guarded,
            dtype=problem.q.value.dtype,
            written=problem.result.value.dtype,
            levels=work.levels,
        )
        lanes = self.machine.lanes
        blocks = ceil(problem.queries, self.groups * self.vectors * lanes)
        matrices = (problem.q, problem.k, problem.v, problem.result)
        strides = [s for p in matrices for s in (p.batch, p.head, p.row)]
        sizes = (problem.heads, blocks, problem.queries, problem.keys)
        return [
            Launch(
                kernel,
                (
                    *(p.value for p in matrices[:3]),
                    *(task.inputs[i] for i in work.steps),
                    *operands.pointers,
                    *last.pointers,
                    problem.result.value,
                ),
                (*sizes, *strides, *operands.params, *last.params),
                problem.batches * problem.heads * blocks,
                scratch=4 * kernel.scratch_elements(lanes),
            )
        ]

    def _kernel(self, **fields: Any) -> AttentionKernel:
        return AttentionKernel(**fields)


def _bound(task: Task, fused: Any, places: tuple[Place | None, ...]) -> Bound:
    """The operands of an expression, along batches, heads, keys and queries."""
    strides = {p.value: (p.batch, p.head, p.column, p.row) for p in places if p}

    def strides_of(value: Value) -> tuple[int, ...]:
        return strides[value]

    return bind_leaves(task, fused, strides_of)


def _understood(task: Task) -> bool:
    if task.attention is None:
        return False
    if task.attention.levels:
        return True
    factors = [task.inputs[i] for i in task.attention.sources]
    dtypes = {v.dtype for v in (*factors, *task.outputs)}
    return dtypes in ({DType.FLOAT32}, {DType.BFLOAT16})


def _packed(task: Task) -> Sequence[bool]:
    """Whether keys and values may be copied, or must be: levels become floats so."""
    return (True,) if task.attention and task.attention.levels else FLAG


def readable(task: Task, binding: Binding) -> Problem | None:
    """The problem, if columns lie side by side and are not too many."""
    problem = problem_of(task, binding) if task.attention else None
    if problem is None or max(problem.depth, problem.values) > DEEPEST:
        return None
    matrices = (problem.q, problem.k, problem.v, problem.result)
    columns = (problem.depth, problem.depth, problem.values, problem.values)
    if any(p.column != 1 != n for p, n in zip(matrices, columns, strict=True)):
        return None
    return problem


@dataclass(frozen=True)
class AttentionFamily(MachineFamily):
    """Attention of float32 or bfloat16, for this or another machine."""

    name: ClassVar[str] = "attention"
    pattern: ClassVar[str] = "attention"
    tactic: ClassVar[type[Tactic]] = AttentionTactic
    allowed: ClassVar[Allowed] = PARAMETERS

    def understands(self, task: Task) -> bool:
        return _understood(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        problem = readable(task, binding)
        if problem is not None:
            for candidate in candidates(problem, self.machine, _packed(task)):
                yield AttentionTactic(task, self.machine, *candidate)

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        if values["packed"] not in _packed(task):
            return f"packed is {values['packed']}, which is none of {_packed(task)}"
        return ""


Candidate = tuple[int, int, int, int, bool]
"""rows, vectors, groups, block, packed."""

TRIED = 12
"""Candidates that are worth measuring."""


def candidates(
    problem: Problem, machine: Machine, packed: Sequence[bool] = FLAG
) -> list[Candidate]:
    """The candidates that are worth measuring, the likeliest first."""
    found = _candidates(problem, machine, packed)
    ranked = sorted(found, key=lambda c: estimate(problem, c, machine))
    return ranked[:TRIED]


def _candidates(problem: Problem, machine: Machine, packed: Sequence[bool]) -> Iterator[Candidate]:
    tiles = (
        ((6, 2), (4, 2), (4, 3), (8, 1))
        if machine.registers == 16
        else ((12, 2), (8, 2), (8, 3), (6, 4))
    )
    for rows, vectors in tiles:
        most = ceil(problem.queries, vectors * machine.lanes)
        for groups in GROUPS:
            if groups > 1 and groups // 2 >= most:
                continue
            for block in BLOCKS:
                if block > BLOCKS[0] and block // 2 >= problem.keys:
                    continue
                for is_packed in packed:
                    yield rows, vectors, groups, block, is_packed


def estimate(problem: Problem, candidate: Candidate, machine: Machine) -> float:
    """Cycles of the thread that has most to do; for ordering candidates."""
    rows, vectors, groups, block, packed = candidate
    width = vectors * machine.lanes
    tasks = problem.batches * problem.heads * ceil(problem.queries, groups * width)
    columns = problem.depth + problem.values
    # a step of depth: multiply-adds, two a cycle, at least four cycles for the chain of a sum
    step = max(rows * vectors / 2, (rows + vectors) / 2, 4.0) / rows
    pair = step * columns + 12 * vectors  # of a vector of queries and a key
    own = groups * problem.keys * pair
    # a block's beginning: its results fade, and the next ones start
    own += ceil(problem.keys, block) * groups * (problem.values * vectors * 2 + 40)
    near = 4 * (block * (columns + width) + width * columns)
    own *= 1.0 if near <= machine.l2 else 1.5
    if packed:
        own += problem.keys * columns / machine.lanes * 2
    elif problem.k.row % 256 == 0:  # rows compete for the same sets of the cache
        own *= 1.1
    own += groups * width * columns
    return ceil(tasks, machine.cores) * (own + 200)


FAMILIES: tuple[Family, ...] = (AttentionFamily(),)
"""What this file offers."""
