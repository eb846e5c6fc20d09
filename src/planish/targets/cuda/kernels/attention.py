"""Attention as one kernel on GPUs; see `attention_kernel`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from planish.fusion.expression import Expression
from planish.fusion.task import Task
from planish.graph.types import DType
from planish.targets.anchored import AnchoredTactic
from planish.targets.attention import Place, Problem, problem_of
from planish.targets.base import Binding, Family, Launch, Tactic
from planish.targets.cuda.codegen.elementwise import INEXACT
from planish.targets.cuda.kernels.attention_kernel import (
    PRECISIONS,
    AttentionKernel,
    power_of_two,
)
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.kernels.fused import Access, Work, is_wide, pointer_of
from planish.targets.cuda.machine import CudaMachine
from planish.targets.restoring import Allowed

DTYPES = (DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32)
ROWS = (16, 32, 64, 128)
BLOCKS = (16, 32, 64, 128)
WARPS = (4, 8)
STAGES = (1, 2, 3)
DEEPEST = 256
"""Columns of queries or values, at most: more do not fit into registers."""


@dataclass(frozen=True)
class AttentionTactic(AnchoredTactic):
    """So many queries a program and keys a step; `passes` as in `attention_kernel`."""

    family: ClassVar[str] = "attention"

    rows: int
    block: int
    warps: int
    stages: int
    passes: int = 1

    @property
    def precision(self) -> str:
        single = self.anchor.inputs[0].dtype is DType.FLOAT32
        return "tf32" if single and self.passes == 1 else super().precision

    def accepts(self, binding: Binding) -> bool:
        return _readable(self.task, binding) is not None

    def launches(self, binding: Binding) -> list[Launch]:
        task, work = self.task, self.task.attention
        problem = _readable(task, binding)
        assert work is not None and problem is not None

        def access(place: Place) -> Access:
            strides = (place.batch, place.head, place.row, place.column)
            layout = binding.layout(place.value)
            return Access(pointer_of(place.value, binding), strides, is_wide(layout))

        def bound(
            expression: Expression, places: tuple[Place | None, ...], *results: Place
        ) -> Work:
            leaves = tuple(None if p is None else access(p) for p in places)
            return Work((-1,) * 4, expression, leaves, tuple(map(access, results)), INEXACT)

        kernel = AttentionKernel(
            self.warps,
            self.stages,
            dtype=self.anchor.inputs[0].dtype,
            rows=self.rows,
            block=self.block,
            passes=self.passes,
            heads=problem.heads,
            queries=problem.queries,
            keys=problem.keys,
            depth=problem.depth,
            values=problem.values,
            scale=work.scale,
            q=access(problem.q),
            k=access(problem.k),
            v=access(problem.v),
            scores=bound(work.scores.expression, problem.scores),
            result=bound(task.epilogue.expression, problem.rows, problem.result),
            guarded=work.guarded,
        )
        operands = (p for p in (*problem.scores, *problem.rows) if p)
        places = (problem.q, problem.k, problem.v, *operands, problem.result)
        tiles = -(-problem.queries // self.rows)
        programs = problem.batches * problem.heads * tiles
        return [Launch(kernel, tuple(p.value for p in places), (), programs)]


def _understood(task: Task) -> bool:
    if task.attention is None:
        return False
    dtypes = {task.inputs[i].dtype for i in task.attention.sources}
    return len(dtypes) == 1 and dtypes.issubset(DTYPES)


def _readable(task: Task, binding: Binding) -> Problem | None:
    """The problem, if its columns fit into registers."""
    problem = problem_of(task, binding) if _understood(task) else None
    if problem is None or max(problem.depth, problem.values) > DEEPEST:
        return None
    return problem


@dataclass(frozen=True)
class AttentionFamily(MachineFamily):
    """Attention of halves and float32, for this or another machine."""

    name: ClassVar[str] = "attention"
    pattern: ClassVar[str] = "attention"
    tactic: ClassVar[type[Tactic]] = AttentionTactic
    allowed: ClassVar[Allowed] = {
        "rows": ROWS,
        "block": BLOCKS,
        "warps": WARPS,
        "stages": STAGES,
        "passes": tuple(PRECISIONS),
    }

    def understands(self, task: Task) -> bool:
        return _understood(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        problem = _readable(task, binding)
        if problem is None:
            return
        single = task.inputs[0].dtype is DType.FLOAT32
        for passes in PRECISIONS if single else (1,):
            size = 4 if single else 2
            for tile in choices(problem, size, passes, self.machine):
                yield AttentionTactic(task, *tile, passes)


# ---- which tiles are worth measuring -------------------------------------------------------------

Tile = tuple[int, int, int, int]
"""rows, block, warps, stages."""

_LIMITS = {0: 3, 1: 12, 3: 4}
"""Tactics offered, by passes."""
_SUMS = 128
"""Elements of scores and result that a thread may hold."""
_MULTIPLICATIONS = 2048
"""Of halves, per cycle and multiprocessor, by groups of warps."""
_EXPONENTIALS = 16
"""Per cycle and multiprocessor."""
_ARITHMETIC = 128
"""Other operations of float32, per cycle and multiprocessor."""
_START, _STEP = 2500, 500
"""Cycles for starting a program, and of a step beside its work: products wait for one another."""


def _staged(problem: Problem, tile: Tile, size: int) -> int:
    """Bytes of shared memory."""
    rows, block, _, stages = tile
    depth, values = power_of_two(problem.depth), power_of_two(problem.values)
    weights = rows * block if rows < 64 or size == 4 else 0
    return size * (rows * depth + stages * block * (depth + values) + weights)


def _tiles(problem: Problem, size: int, machine: CudaMachine) -> Iterator[Tile]:
    for rows in ROWS:
        if rows > ROWS[0] and rows >= 2 * problem.queries:
            continue
        for block in BLOCKS:
            if block > BLOCKS[0] and block >= 2 * problem.keys:
                continue
            for warps in WARPS:
                held = rows * (block + power_of_two(problem.values)) / (32 * warps)
                if held > _SUMS or (warps == 8 and rows < 128):
                    continue
                for stages in STAGES:
                    tile = (rows, block, warps, stages)
                    steps = -(-problem.keys // block)
                    if stages > max(1, steps):
                        continue
                    if _staged(problem, tile, size) < machine.shared - 4096:
                        yield tile


def choices(problem: Problem, size: int, passes: int, machine: CudaMachine) -> list[Tile]:
    """The likely best, fastest first: at most two of the same queries and keys, so that the model's
    errors do not decide everything.
    """
    ranked = sorted(
        _tiles(problem, size, machine),
        key=lambda tile: estimate(problem, tile, size, passes, machine),
    )
    kept: list[Tile] = []
    for tile in ranked:
        if sum(tile[:2] == other[:2] for other in kept) < 2:
            kept.append(tile)
    return kept[: _LIMITS[passes]]


def estimate(problem: Problem, tile: Tile, size: int, passes: int, machine: CudaMachine) -> float:
    """Roughly, cycles from the first program's start to the last one's end."""
    rows, block, warps, stages = tile
    depth, values = power_of_two(problem.depth), power_of_two(problem.values)
    programs = problem.batches * problem.heads * -(-problem.queries // rows)
    steps = -(-problem.keys // block)
    rate = _MULTIPLICATIONS * (0.6 if rows >= 64 else 0.2)
    rate /= {0: 24, 1: 2, 3: 8}[passes] if size == 4 else 1
    instructions = len(problem.scores) + 8
    work = rows * block * (depth + values) / rate
    work += rows * block * (1 / _EXPONENTIALS + instructions / _ARITHMETIC)
    work += rows * values * 2 / _ARITHMETIC
    held = rows * (block + values) / (32 * warps) + 64
    at_once = min(
        machine.shared_per_multiprocessor // (_staged(problem, tile, size) + 1024),
        int(machine.registers // (held * 32 * warps)),
        2048 // (32 * warps),
    )
    share = -(-programs // machine.multiprocessors)
    waiting = _STEP * (1.6 if stages == 1 and steps > 1 else 1.0)
    rounds, rest = divmod(share, max(at_once, 1))

    def time(together: int) -> float:
        return _START + steps * max(together * work, work + waiting)

    return rounds * time(max(at_once, 1)) + (time(rest) if rest else 0)


FAMILIES: tuple[Family, ...] = (AttentionFamily(),)
"""What this file offers."""
