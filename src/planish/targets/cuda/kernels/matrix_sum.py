"""Tactics of the matrix kernel for two convolutions whose results are added: one sum over both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from planish.fusion.sums import sum_of
from planish.fusion.task import Task, make_task
from planish.graph.types import DType
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Constant, Launch, Pointer, Tactic, Workspace, Zeroed
from planish.targets.cuda.kernels import matrix_cost as cost
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.kernels.fused import facts_of
from planish.targets.cuda.kernels.matrix import shape_of
from planish.targets.cuda.kernels.matrix_kernel import MatrixKernel, SumKernel
from planish.targets.cuda.kernels.matrix_problem import (
    BYTES,
    Problem,
    filters,
    neighbours,
    pack,
    problem_of,
)
from planish.targets.cuda.kernels.matrix_tile import PERSISTENT, Tile, ceil, segments
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.execution import ZEROED_BYTES
from planish.targets.restoring import FLAG, Allowed

DTYPES = (DType.FLOAT16, DType.BFLOAT16, DType.INT8)
LIMIT = 14
"""Tactics offered that multiply as usual."""
MOST_SUMS = 64
"""Of a thread, of each product of bytes."""


class Parts(NamedTuple):
    """Both products as problems of their own; the second one's result is that of the task."""

    first: Problem
    second: Problem


def tasks_of(task: Task) -> tuple[Task, Task]:
    """The parts of a task as tasks; the second one reads what the first one gives."""
    found = sum_of(task.nodes)
    assert found is not None
    first, second = found.first, found.second
    rest = [second, *(n for n in task.nodes if n not in (first, second))]
    return make_task([first], first), make_task(rest, second)


def parts_of(task: Task, binding: Binding) -> Parts | None:
    """The parts of a task; None if the kernel cannot compute it."""
    return binding.derived(_parts, task)


def _parts(task: Task, binding: Binding) -> Parts | None:
    if not _understood(task):
        return None
    first, second = (problem_of(part, binding) for part in tasks_of(task))
    if first is None or second is None or first.zero or second.zero:
        return None
    given = tasks_of(task)[0].output
    at = second.result_values.index(given)
    leaves = list(second.result.leaves)
    read = [i for i, leaf in enumerate(leaves) if leaf is not None]
    leaves[read[at]] = None  # it is in the accumulators
    sources = [task.inputs[s] if s is not None and s >= 0 else None for s in task.epilogue.sources]
    result = replace(
        second.result, leaves=tuple(leaves), facts=facts_of(task.epilogue, sources, task)
    )
    values = tuple(v for v in second.result_values if v is not given)
    return Parts(first, replace(second, result=result, result_values=values))


def _understood(task: Task) -> bool:
    if task.sum is None or task.anchor is None:
        return False
    read = (task.sum.image, task.sum.filters, 0, 1)
    return len({task.inputs[i].dtype for i in read}) == 1 and task.inputs[0].dtype in DTYPES


@dataclass(frozen=True)
class MatrixSum(AnchoredTactic):
    """Two products with a tile; the fields are those of `Tile`, warps and stages."""

    family: ClassVar[str] = "matrix_sum"

    rows: int
    columns: int
    depth: int
    warps: int
    stages: int
    split: int = 1
    transposed: bool = False
    machine: CudaMachine = field(default=H200, compare=False)

    @property
    def tile(self) -> Tile:
        """What a program computes."""
        return Tile(self.rows, self.columns, self.depth, self.split, transposed=self.transposed)

    def accepts(self, binding: Binding) -> bool:
        parts = parts_of(self.task, binding)
        if parts is None or self.zeroed(binding) > ZEROED_BYTES:
            return False
        if parts.first.dtype in BYTES and (self.tile.split > 1 or self.transposed):
            return False
        if self.tile.is_persistent and max(part.depth for part in parts) > self.depth:
            return False
        return self.workspace(binding) <= cost.MOST_WORKSPACE

    def constants(self) -> list[np.ndarray]:
        parts = [pack(filters(part), self.tile, self._neighbours) for part in tasks_of(self.task)]
        return [np.concatenate(parts, axis=1)]

    def launches(self, binding: Binding) -> list[Launch]:
        parts = parts_of(self.task, binding)
        assert parts is not None, "the tactic accepts the binding"
        first, second = parts
        kernel = SumKernel(self.warps, self.stages, self._kernel(first), self._kernel(second))
        pointers: list[Pointer] = [*first.left_values, *second.left_values]
        pointers += [Constant(0), *second.result_values]
        if self.split > 1:
            pointers += [Workspace(), Zeroed()]
        tasks = self._tiles(second) * self.tile.shares
        if self.tile.is_persistent:
            choice = cost.Choice(replace(self.tile, depth=2 * self.depth), self.warps, self.stages)
            lanes = cost.lanes(choice, _shape(parts), self.machine)
            tasks = lanes * ceil(second.columns, self.columns)
        return [Launch(kernel, tuple(pointers), (second.rows,), tasks)]

    def _kernel(self, problem: Problem) -> MatrixKernel:
        return MatrixKernel(
            warps=self.warps,
            stages=self.stages,
            tile=self.tile,
            dtype=problem.dtype,
            left=problem.left,
            axes=problem.axes,
            batched=False,
            window=problem.window,
            right=None,
            right_axes=(),
            channels=problem.channels,
            columns=problem.columns,
            result=problem.result,
            neighbours=self._neighbours,
        )

    @property
    def _neighbours(self) -> int:
        return neighbours(self.task, self.tile, self.warps)

    def workspace(self, binding: Binding) -> int:
        if self.split <= 1:
            return 0
        parts = parts_of(self.task, binding)
        assert parts is not None
        return 4 * self._tiles(parts.second) * self.split * self.rows * self.columns

    def zeroed(self, binding: Binding) -> int:
        parts = parts_of(self.task, binding)
        assert parts is not None
        return 4 * self._tiles(parts.second) if self.split > 1 else 0

    def _tiles(self, problem: Problem) -> int:
        return ceil(problem.rows, self.rows) * ceil(problem.columns, self.columns)


@dataclass(frozen=True)
class MatrixSumFamily(MachineFamily):
    """Sums of two convolutions of halves, for this or another machine."""

    name: ClassVar[str] = "matrix_sum"
    pattern: ClassVar[str] = "sum"
    tactic: ClassVar[type[Tactic]] = MatrixSum
    allowed: ClassVar[Allowed] = {
        "rows": cost.ROWS,
        "columns": cost.COLUMNS,
        "depth": cost.DEPTHS,
        "warps": (4, 8),
        "stages": cost.STAGES,
        "split": (PERSISTENT, *cost.SPLITS),
        "transposed": FLAG,
    }

    def understands(self, task: Task) -> bool:
        return _understood(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        parts = parts_of(task, binding)
        if parts is None:
            return
        shape = _shape(parts)
        many = cost.programs_of_many_tiles(shape, self.machine)
        limit = LIMIT if shape.size > 1 else 2 * LIMIT  # of which some share tiles
        for choice in dict.fromkeys([*cost.choices(shape, self.machine, 1, limit), *many]):
            tile = choice.tile
            if tile.is_persistent:  # both depths are one step
                deepest = max(part.depth for part in parts)
                tile = replace(tile, depth=max(16, 1 << (deepest - 1).bit_length()))
            if tile.vector or _padding(parts, tile) > 2:
                continue
            if shape.size == 1 and not _has_room(choice):
                continue
            if _shared_bytes(parts, choice) > self.machine.shared - 4096:
                continue
            tactic = MatrixSum(
                task,
                tile.rows,
                tile.columns,
                tile.depth,
                choice.warps,
                choice.stages,
                tile.split,
                tile.transposed,
                self.machine,
            )
            if tactic.accepts(binding):
                yield tactic

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        large = values["rows"] * values["columns"] * values["depth"] > 1 << 22
        if large or (values["transposed"] and values["columns"] < 64):
            return f"no tile is {dict(values)}"
        return ""


def _shape(parts: Parts) -> cost.Shape:
    """Both products as one to the cost model."""
    first, second = map(shape_of, parts)
    return replace(
        second,
        taps=(1, 1),
        channels=first.depth + second.depth,
        packed=True,
        worked=second.size == 1,  # two sums take as many registers
        vector=min(first.vector, second.vector),
        dilated=False,
    )


def _shared_bytes(parts: Parts, choice: cost.Choice) -> int:
    """Bytes of shared memory: the pipeline's; a product of one step is none, and lies beside it."""
    shape, tile = _shape(parts), choice.tile
    if tile.is_persistent:
        return shape.kept(tile, choice.stages)
    single = sum(part.depth <= tile.depth for part in parts)
    return shape.staged(tile, choice.stages) + single * shape.staged(tile, 1)


def _has_room(choice: cost.Choice) -> bool:
    """Whether a tile has room for two sums of bytes, and is one that groups of warps multiply."""
    tile = choice.tile
    sums = tile.rows * tile.columns // (32 * choice.warps)
    whole = tile.split <= 1 and not tile.transposed and min(tile.rows, tile.columns) >= 64
    return whole and sums <= MOST_SUMS


def _padding(parts: Parts, tile: Tile) -> float:
    """How many times the depths are what they need to be, as both are whole steps."""
    padded = 0
    for part in parts:
        count, _, blocks = segments(tile, part.taps, part.channels)
        padded += count * blocks * tile.depth
    return padded / sum(part.depth for part in parts)


FAMILIES = (MatrixSumFamily(),)
