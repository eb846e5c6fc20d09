"""Tactics of products whose rows are normalized before they are stored, on Hopper: BERT's and
vision transformers' residual sums with their layer norms; see `NormKernel`.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from planish.fusion.expression import Expression, Instruction, Leaf
from planish.fusion.fused import ACCUMULATOR, Fused
from planish.fusion.normalized import normalized_of
from planish.fusion.task import Task, make_task
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.elementwise import Cast, ew
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Constant, Launch, Pointer, Tactic, Zeroed
from planish.targets.cuda.kernels.family import HopperFamily, foremost
from planish.targets.cuda.kernels.fused import Work, bind_work
from planish.targets.cuda.kernels.mapped import MAP_SECONDS, is_left_mapped
from planish.targets.cuda.kernels.matrix_problem import (
    Problem,
    filters,
    is_packed,
    pack,
    problem_of,
    understood,
)
from planish.targets.cuda.kernels.matrix_tile import Tile, ceil
from planish.targets.cuda.kernels.ptx.specialized.cost import MOST_SUMS
from planish.targets.cuda.kernels.ptx.specialized.results import is_expressible
from planish.targets.cuda.kernels.ptx.specialized.tactics import DTYPES, sums_of, whole_tensors
from planish.targets.cuda.kernels.ptx.specialized.tiles import LINES
from planish.targets.cuda.kernels.ptx.specialized_norm.kernel import NormKernel
from planish.targets.cuda.kernels.ptx.specialized_norm.writer import AT_ONCE
from planish.targets.cuda.kernels.ptx.warp_groups import THREADS
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.execution import ZEROED_BYTES
from planish.targets.restoring import Allowed

ROWS = (64, 128, 192)
COLUMNS = (64, 128, 192, 256)
DEPTHS = (32, 64, 128)
STAGES = (2, 3, 4, 5, 6, 8)
RINGS = (1, 2, 3, 4, 6)
WIDTHS = (32, 64, 128)
MOST_BLOCKS = 8
"""Of a team."""
LIMIT = 12
"""Tactics offered."""
OF_SIZE = 3
"""Of these with tiles of the same rows and columns."""
_PRODUCTS = 4096
"""Of bytes, per cycle and multiprocessor; of halves half as many."""
_CACHE = 48
"""Bytes per cycle that a multiprocessor takes from the second-level cache."""
_LATENCY = 1500
"""Cycles until a stage is loaded again, while all load, or a box is."""
_FEW = 1.3
"""How much longer few stages take, by their square."""
_END, _EACH = 2500, 24.0
"""Cycles of a tile's end: in all, and for each of a thread's sums."""
_EXCHANGE = 700
"""Cycles until what another block has given is there: for each that is waited for by itself."""
_START = 4000


class Parts(NamedTuple):
    """A task for concrete shapes and layouts.

    Attributes
    ----------
    problem : Problem
        The product; its result is what is normalized, with an output if that is kept.
    after : Work
        Of normalized numbers.
    values : tuple of Value
        What the kernel's pointers behind the factors point to.
    """

    problem: Problem
    after: Work
    values: tuple[Value, ...]


def parts_of(task: Task, binding: Binding) -> Parts | None:
    """The parts of a task; None if the kernel does not compute it."""
    return binding.derived(_parts, task)


def _parts(task: Task, binding: Binding) -> Parts | None:
    found = normalized_of(task.nodes) if _understood(task) else None
    if found is None:
        return None
    inner = make_task([n for n in task.nodes if n in {found.product, *found.between}], task.anchor)
    problem = problem_of(inner, binding)
    if problem is None or problem.dtype not in DTYPES or problem.batched or problem.zero:
        return None
    if not problem.left.expression.is_copy or not is_left_mapped(problem):
        return None
    shape = binding.shape(task.output)
    after, _, values = bind_work(
        task, _scaled(task), task.outputs[:1], binding, shape, (len(shape) - 1,)
    )
    # sums of other orders are behind all of it
    after = replace(after, facts=replace(after.facts, inexact=True))
    if len(problem.result.shape) != 2 or len(after.shape) != 2:
        return None
    *leaves, inner_value = problem.result_values
    assert task.normalized is not None
    if not task.normalized.kept:
        problem = replace(problem, result=replace(problem.result, outputs=()))
    if not _is_stored(problem, after) or not is_expressible(problem.result, sums_of(problem)):
        return None
    kept = (inner_value,) if task.normalized.kept else ()
    return Parts(problem, after, (*leaves, *values, *kept))


def _is_stored(problem: Problem, after: Work) -> bool:
    """Whether boxes of what is as large as the result can be copied: all of one size."""
    before, size = problem.result, after.outputs[0].pointer.dtype.size
    loaded = whole_tensors(before.leaves, problem.columns, size)
    others = whole_tensors(after.leaves, problem.columns, size)
    stored = whole_tensors((*before.outputs, *after.outputs), problem.columns, size)
    if loaded is None or loaded > 1 or others != 0 or stored is None:
        return False
    return stored == 1 + len(before.outputs) and is_expressible(after, "float32")


def _scaled(task: Task) -> Fused:
    """The epilogue, with scale and offset before it: of numbers of mean 0 and deviation 1."""
    norm, epilogue = task.normalized, task.epilogue
    assert norm is not None
    types = [task.inputs[i].dtype for i in (norm.scale, norm.offset)]
    own = [Leaf(DType.FLOAT32), *map(Leaf, types)]
    sources: list[int | None] = [ACCUMULATOR, norm.scale, norm.offset]
    behind = [i for i, source in enumerate(epilogue.sources) if source != ACCUMULATOR]
    leaves = (*own, *(epilogue.expression.leaves[i] for i in behind))
    made = len(leaves)
    float32 = DType.FLOAT32
    instructions = [
        Instruction(Cast(float32), (1,), float32),
        Instruction(Cast(float32), (2,), float32),
        Instruction(ew.Mul(), (0, made), float32),
        Instruction(ew.Add(), (made + 2, made + 1), float32),
        Instruction(Cast(norm_dtype(task)), (made + 3,), norm_dtype(task)),
    ]
    slots = {old: len(own) + new for new, old in enumerate(behind)}
    slots |= {i: made + 4 for i in range(len(epilogue.sources)) if i not in slots}
    for number, step in enumerate(epilogue.expression.instructions):
        slots[len(epilogue.sources) + number] = made + len(instructions)
        args = tuple(slots[i] for i in step.args)
        instructions.append(Instruction(step.op, args, step.dtype))
    results = tuple(slots[i] for i in epilogue.expression.results)
    sources += [epilogue.sources[i] for i in behind]
    return Fused(Expression(leaves, tuple(instructions), results), tuple(sources))


def norm_dtype(task: Task) -> DType:
    """The dtype of what is normalized."""
    found = normalized_of(task.nodes)
    assert found is not None
    return found.norm.output.dtype


def _understood(task: Task) -> bool:
    return task.normalized is not None and understood(task) and is_packed(task)


class Choice(NamedTuple):
    """A tactic's parameters."""

    rows: int
    columns: int
    depth: int
    stages: int
    ring: int
    width: int

    @property
    def tile(self) -> Tile:
        """What a group computes."""
        return Tile(self.rows, self.columns, self.depth)


@dataclass(frozen=True)
class NormTactic(AnchoredTactic):
    """A product that is normalized, with a tile; see `NormKernel`."""

    family: ClassVar[str] = "specialized_norm"

    rows: int
    columns: int
    depth: int
    stages: int
    ring: int
    width: int
    machine: CudaMachine = field(default=H200, compare=False)

    @property
    def tile(self) -> Tile:
        """What a group computes."""
        return Tile(self.rows, self.columns, self.depth)

    @property
    def extra_seconds(self) -> float:
        return MAP_SECONDS

    def accepts(self, binding: Binding) -> bool:
        if not super().accepts(binding):
            return False
        parts = parts_of(self.task, binding)
        if parts is None or parts.problem.columns % self.columns:
            return False
        team = parts.problem.columns // self.columns
        if team > min(MOST_BLOCKS, self.machine.multiprocessors):
            return False
        lines = self.depth * parts.problem.dtype.size, self.width * self.task.output.dtype.size
        if not set(lines) <= set(LINES) or self.columns % self.width:
            return False
        kernel = self._kernel(parts)
        fits = kernel.memory_of_teams(parts.problem.rows) <= ZEROED_BYTES
        return fits and kernel.shared <= self.machine.shared

    def constants(self) -> list[np.ndarray]:
        return [pack(filters(self.task), self.tile, self.width)]

    def launches(self, binding: Binding) -> list[Launch]:
        parts = parts_of(self.task, binding)
        assert parts is not None, "the tactic accepts the binding"
        kernel = self._kernel(parts)
        pointers: tuple[Pointer, ...] = (*parts.problem.left_values, Constant(0), *parts.values)
        team = kernel.column_tiles
        if team > 1:
            pointers = (*pointers, Zeroed())
        teams = min(ceil(parts.problem.rows, self.rows), self.machine.multiprocessors // team)
        tasks = team * teams
        return [Launch(kernel, pointers, (parts.problem.rows,), tasks)]

    def zeroed(self, binding: Binding) -> int:
        parts = parts_of(self.task, binding)
        assert parts is not None, "the tactic accepts the binding"
        return self._kernel(parts).memory_of_teams(parts.problem.rows)

    def _kernel(self, parts: Parts) -> NormKernel:
        problem, norm = parts.problem, self.task.normalized
        (left,) = problem.left.leaves
        assert left is not None and norm is not None
        return NormKernel(
            tile=self.tile,
            stages=self.stages,
            ring=self.ring,
            cluster=1,
            dtype=problem.dtype,
            left=left,
            axes=problem.axes,
            window=None,
            channels=problem.channels,
            columns=problem.columns,
            result=problem.result,
            codes=problem.codes,
            after=parts.after,
            epsilon=norm.norm.epsilon,
            width=self.width,
        )


@dataclass(frozen=True)
class NormFamily(HopperFamily):
    """Products with a layer norm behind them, for this or another machine."""

    name: ClassVar[str] = "specialized_norm"
    pattern: ClassVar[str] = "normalized"
    tactic: ClassVar[type[Tactic]] = NormTactic
    allowed: ClassVar[Allowed] = {
        "rows": ROWS,
        "columns": COLUMNS,
        "depth": DEPTHS,
        "stages": STAGES,
        "ring": RINGS,
        "width": WIDTHS,
    }

    def understands(self, task: Task) -> bool:
        return _understood(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        parts = parts_of(task, binding)
        if parts is None:
            return
        choices = sorted(self._choices(parts), key=lambda c: self._cycles(parts, c))
        tactics = (NormTactic(task, *choice, machine=self.machine) for choice in choices)
        yield from foremost(tactics, binding, LIMIT, OF_SIZE, lambda t: (t.rows, t.columns))

    def _choices(self, parts: Parts) -> Iterator[Choice]:
        """Tiles, with as many stages as there is room for beside each ring."""
        problem, size = parts.problem, parts.after.outputs[0].pointer.dtype.size
        line = LINES[problem.channels * problem.dtype.size > LINES[0]]
        most = min(MOST_BLOCKS, self.machine.multiprocessors)
        for rows, columns in itertools.product(ROWS, COLUMNS):
            blocks = problem.columns // columns
            if problem.columns % columns or blocks > most:
                continue
            if rows * columns > MOST_SUMS * THREADS:
                continue
            for width, ring in itertools.product(WIDTHS, RINGS):
                if width * size not in LINES or columns % width or ring > 2 * columns // width:
                    continue
                room = self.machine.shared - 1024 - 2 * ring * rows * width * size
                fit = [n for n in STAGES if n * (rows + columns) * line <= room]
                if fit:
                    yield Choice(rows, columns, line // problem.dtype.size, fit[-1], ring, width)

    def _cycles(self, parts: Parts, choice: Choice) -> float:
        """Roughly, how long it takes: products, loading, or the ends of tiles."""
        problem, tile = parts.problem, choice.tile
        blocks, line = problem.columns // tile.columns, tile.depth * problem.dtype.size
        steps = ceil(problem.channels, tile.depth)
        products = tile.rows * tile.columns * tile.depth / (_PRODUCTS // problem.dtype.size)
        early = _LATENCY / (choice.stages - 1)
        loop = steps * max(products, (tile.rows + tile.columns) * line / _CACHE, early)
        loop *= 1 + _FEW / choice.stages**2
        end = _END + tile.rows * tile.columns / THREADS * _EACH
        boxes = tile.columns // choice.width
        late = ceil(max(2 * boxes - choice.ring, 0), choice.ring)
        end += late * _LATENCY / 2 + boxes * 100
        end += ceil((blocks - 1) * tile.rows // 64, AT_ONCE) * _EXCHANGE
        rounds = ceil(ceil(problem.rows, tile.rows), self.machine.multiprocessors // blocks)
        return _START + rounds * max(loop, (loop + end) / 2) + loop + end

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        if values["rows"] * values["columns"] > MOST_SUMS * THREADS:
            return f"no tile is {dict(values)}"
        return ""


FAMILIES = (NormFamily(),)
