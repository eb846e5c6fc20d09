"""Tactics of `kernel`: attention of short sequences on Hopper."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise, product
from typing import ClassVar

from planish.fusion.expression import Expression
from planish.fusion.task import Task
from planish.graph.types import DType
from planish.targets.anchored import AnchoredTactic
from planish.targets.attention import Place, Problem, problem_of
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cuda.codegen.elementwise import INEXACT
from planish.targets.cuda.kernels.family import HopperFamily
from planish.targets.cuda.kernels.fused import Access, Work, is_wide, pointer_of
from planish.targets.cuda.kernels.mapped import MAP_SECONDS
from planish.targets.cuda.kernels.matrix_tile import ceil
from planish.targets.cuda.kernels.ptx.attention.kernel import (
    BATCH,
    COLUMN,
    ROW,
    ShortAttentionKernel,
    axes_of,
)
from planish.targets.cuda.kernels.ptx.attention.operands import is_expressible
from planish.targets.cuda.kernels.ptx.attention.writer import ROWS
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.restoring import Allowed

DTYPES = (DType.FLOAT16, DType.BFLOAT16)
GROUPS = (1, 2)
TURNS = (1, 2, 4)
MOST_KEYS = 256
"""More scores of a tile do not fit into registers."""
DEEPEST = 128
"""Columns of queries or values, at most."""
ENOUGH = 2
"""Blocks of a multiprocessor, so that one loads while another computes."""
EVEN_BYTES = 16
"""What steps of tensors that are boxes are multiples of."""


@dataclass(frozen=True)
class ShortAttention(AnchoredTactic):
    """So many groups of warps of a block, each with so many tiles of 64 queries."""

    family: ClassVar[str] = "short_attention"

    groups: int
    turns: int
    machine: CudaMachine = field(default=H200, compare=False)

    @property
    def extra_seconds(self) -> float:
        return MAP_SECONDS

    def accepts(self, binding: Binding) -> bool:
        kernel = self._kernel(binding)
        return kernel is not None and kernel.shared <= self.machine.shared

    def launches(self, binding: Binding) -> list[Launch]:
        problem, kernel = problem_of(self.task, binding), self._kernel(binding)
        assert problem is not None and kernel is not None, "the tactic accepts the binding"
        scores = () if kernel.scores is None else problem.scores
        operands = (p for p in (*scores, *problem.rows) if p)
        places = (problem.q, problem.k, problem.v, *operands, problem.result)
        blocks = problem.batches * problem.heads * kernel.parts
        return [Launch(kernel, tuple(p.value for p in places), (problem.batches,), blocks)]

    def _kernel(self, binding: Binding) -> ShortAttentionKernel | None:
        return kernel_of(self.task, binding, self.groups, self.turns)


def kernel_of(task: Task, binding: Binding, groups: int, turns: int) -> ShortAttentionKernel | None:
    """The kernel of a task; None if there is none."""
    problem = problem_of(task, binding) if _understood(task) else None
    if problem is None or not _fits(problem):
        return None
    work = task.attention
    assert work is not None

    def access(place: Place) -> Access:
        strides = (place.batch, place.head, place.row, place.column)
        return Access(
            pointer_of(place.value, binding), strides, is_wide(binding.layout(place.value))
        )

    def bound(expression: Expression, places: tuple[Place | None, ...], *results: Place) -> Work:
        leaves = tuple(None if p is None else access(p) for p in places)
        return Work((-1,) * 4, expression, leaves, tuple(map(access, results)), INEXACT)

    factor = factor_of(work.scores.expression)
    q, k, v, result = map(access, (problem.q, problem.k, problem.v, problem.result))
    inside = any(BATCH in axes_of(item.strides)[1:] for item in (q, k, v, result))
    kernel = ShortAttentionKernel(
        cluster=1,
        groups=groups,
        turns=turns,
        dtype=problem.q.value.dtype,
        batches=problem.batches if inside else 0,
        heads=problem.heads,
        queries=problem.queries,
        keys=problem.keys,
        depth=problem.depth,
        values=problem.values,
        scale=work.scale * (1.0 if factor is None else factor),
        q=q,
        k=k,
        v=v,
        scores=None if factor is not None else bound(work.scores.expression, problem.scores),
        result=bound(task.epilogue.expression, problem.rows, problem.result),
        guarded=work.guarded,
    )
    return kernel if _is_possible(kernel) else None


def factor_of(expression: Expression) -> float | None:
    """What an expression multiplies its only leaf by; None if it does anything else."""
    known: list[tuple[float, bool]] = []  # a factor, and whether of the leaf
    for leaf in expression.leaves:
        if isinstance(leaf.constant, bool):
            return None
        known.append((1.0, True) if leaf.constant is None else (float(leaf.constant), False))
    if sum(is_leaf for _, is_leaf in known) != 1:
        return None
    for step in expression.instructions:
        if step.op.name != "mul":
            return None
        (a, of_a), (b, of_b) = (known[i] for i in step.args)
        if of_a and of_b:
            return None
        known.append((a * b, of_a or of_b))
    (result,) = expression.results
    factor, is_leaf = known[result]
    return factor if is_leaf else None


def _understood(task: Task) -> bool:
    if task.attention is None or task.attention.levels:
        return False
    dtypes = {task.inputs[i].dtype for i in task.attention.sources}
    return len(dtypes) == 1 and dtypes.issubset(DTYPES)


def _fits(problem: Problem) -> bool:
    """Whether registers hold the sums of a tile."""
    return problem.keys <= MOST_KEYS and max(problem.depth, problem.values) <= DEEPEST


def _is_possible(kernel: ShortAttentionKernel) -> bool:
    """Whether tensors can be loaded and stored as boxes, and PTX says what is done to scores."""
    (result,) = kernel.result.outputs
    if result.pointer.dtype.size > 2:
        return False
    if not all(map(_has_boxes, (kernel.q, kernel.k, kernel.v, result))):
        return False
    works = (kernel.result,) if kernel.scores is None else (kernel.scores, kernel.result)
    return all(map(is_expressible, works))


def _has_boxes(item: Access) -> bool:
    """Whether there is a tensor map, its axes in the order of their steps."""
    axes = axes_of(item.strides)
    steps = [item.strides[axis] for axis in axes]
    even = EVEN_BYTES // item.pointer.dtype.size
    if not item.pointer.aligned or ROW not in axes or axes[-1] != COLUMN or steps[-1] != 1:
        return False
    return not any(s % even for s in steps[:-1]) and not any(a % b for a, b in pairwise(steps))


@dataclass(frozen=True)
class ShortAttentionFamily(HopperFamily):
    """Attention of halves of up to 256 keys, for this or another machine."""

    name: ClassVar[str] = "short_attention"
    pattern: ClassVar[str] = "attention"
    tactic: ClassVar[type[Tactic]] = ShortAttention
    allowed: ClassVar[Allowed] = {"groups": GROUPS, "turns": TURNS}

    def understands(self, task: Task) -> bool:
        return _understood(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        return choices(task, binding, self.machine)


def choices(task: Task, binding: Binding, machine: CudaMachine) -> list[ShortAttention]:
    """All blocks that have no more tiles than there are, but for a last one; first those that load
    keys and values least often, if there are enough, else those of which there are most.
    """
    problem = problem_of(task, binding) if _understood(task) else None
    if problem is None:
        return []
    tiles = ceil(problem.queries, ROWS)
    found = [
        ShortAttention(task, groups, turns, machine)
        for groups, turns in product(GROUPS, TURNS)
        if groups * turns < 2 * tiles
    ]

    def order(tactic: ShortAttention) -> tuple[bool, int]:
        own = tactic.groups * tactic.turns
        blocks = problem.batches * problem.heads * ceil(tiles, own)
        enough = blocks >= ENOUGH * machine.multiprocessors
        return not enough, -own if enough else own

    return sorted((t for t in found if t.accepts(binding)), key=order)


FAMILIES: tuple[Family, ...] = (ShortAttentionFamily(),)
"""What this file offers."""
