"""Tactics of `kernel`: two convolutions of single pixels, on Hopper."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import numpy as np

from planish.fusion.summed import summed_of
from planish.fusion.task import Task, make_task
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Constant, Launch, Pointer, Tactic
from planish.targets.cuda.kernels.family import HopperFamily
from planish.targets.cuda.kernels.mapped import MAP_SECONDS, is_left_mapped
from planish.targets.cuda.kernels.matrix_problem import Problem, filters, pack, problem_of
from planish.targets.cuda.kernels.matrix_sum import parts_of as sum_parts_of
from planish.targets.cuda.kernels.matrix_sum import tasks_of
from planish.targets.cuda.kernels.matrix_tile import Tile, ceil, regrouped
from planish.targets.cuda.kernels.product_pair import is_pair, parts_of
from planish.targets.cuda.kernels.ptx.specialized.tactics import is_result_mapped
from planish.targets.cuda.kernels.ptx.specialized.tiles import GROUPS
from planish.targets.cuda.kernels.ptx.specialized_pair.kernel import SpecializedPairKernel
from planish.targets.cuda.kernels.ptx.specialized_pair.writer import BOX, SIDE
from planish.targets.cuda.kernels.ptx.warp_groups import THREADS
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.restoring import Allowed

ROWS = (64, 128)
MOST_STAGES = 16
FEWEST_STAGES = 2
"""Of weights that do not stay."""
RINGS = range(3, 13)
AHEAD = (1, 2)
DEEPEST = 512
"""Channels of images."""
WIDEST = 256
"""Columns of the second result."""
MOST_SUMS = 128
"""Of a thread, of the second product."""
LIMIT = 8
"""Tactics offered."""

_PRODUCTS = 2048
"""Per cycle and multiprocessor."""
_MEMORY, _CACHE = 18, 48
"""Bytes per cycle that a multiprocessor takes from memory, and from the second-level cache."""
_WEIGHTS, _CHUNK = 150, 200
"""The same of weights that do not stay, beside all else; cycles until a chunk of them has come."""
_BOX = 1500
"""Cycles until a box that is stored has been loaded and computed again, while all load."""
_START, _TILE = 4000, 400


class Choice(NamedTuple):
    """The parameters of a tactic; see `SpecializedPairKernel`."""

    rows: int
    stages: int
    ring: int
    ahead: int


class Parts(NamedTuple):
    """Both convolutions as problems of their own; the first one's images, each with its problem:
    two where it is a sum.
    """

    images: tuple[Problem, ...]
    first: Problem
    second: Problem


@dataclass(frozen=True)
class SpecializedPair(AnchoredTactic):
    """Both products by specialised warps; the parameters are the kernel's."""

    family: ClassVar[str] = "specialized_pair"

    rows: int
    stages: int
    ring: int
    ahead: int
    machine: CudaMachine = field(default=H200, compare=False)

    @property
    def extra_seconds(self) -> float:
        return MAP_SECONDS

    def accepts(self, binding: Binding) -> bool:
        parts = mapped_parts(self.task, binding)
        if parts is None or self.task.output.shape != self.anchor.output.shape:
            return False
        kernel = self._kernel(parts)
        return self.stages <= kernel.chunks and kernel.shared <= self.machine.shared

    def constants(self) -> list[np.ndarray]:
        assert self.task.pair is not None
        if self.task.sum:
            found = [filters(part) for part in tasks_of(_before(self.task))]
        else:
            data = self.task.inputs[self.task.pair.filters].data
            assert data is not None
            found = [data]
        second = filters(make_task([self.anchor], self.anchor))
        middle, columns = second.shape[2:]
        first = [pack(weights, Tile(self.rows, SIDE, SIDE), SIDE) for weights in found]
        after = pack(second, Tile(self.rows, columns, SIDE), SIDE)
        # its depth as the first product's columns are multiplied
        order = regrouped(middle, SIDE)
        return [np.concatenate(first, axis=1), np.ascontiguousarray(after[:, order])]

    def launches(self, binding: Binding) -> list[Launch]:
        parts = mapped_parts(self.task, binding)
        assert parts is not None, "the tactic accepts the binding"
        kernel, (images, first, second) = self._kernel(parts), parts
        pointers: tuple[Pointer, ...] = (
            *(value for image in images for value in image.left_values),
            Constant(0),
            *(first.result_values if kernel.kept else first.result_values[:-1]),
            Constant(1),
            *second.result_values,
        )
        tasks = min(ceil(first.rows, GROUPS * self.rows), self.machine.multiprocessors)
        return [Launch(kernel, pointers, (first.rows,), tasks)]

    def _kernel(self, parts: Parts) -> SpecializedPairKernel:
        assert self.task.pair is not None
        choice = Choice(self.rows, self.stages, self.ring, self.ahead)
        return kernel_of(parts, self.task.pair.kept, choice)


def mapped_parts(task: Task, binding: Binding) -> Parts | None:
    """The parts of a task; None if the kernel does not compute it: of boxes, nearly all."""
    return binding.derived(_mapped_parts, task)


def _mapped_parts(task: Task, binding: Binding) -> Parts | None:
    parts = _parts(task, binding)
    if parts is None:
        return None
    images, first, second = parts
    if first.columns % SIDE or second.columns % SIDE or second.columns > WIDEST:
        return None
    if sum(image.channels for image in images) > DEEPEST:
        return None
    if not all(map(is_left_mapped, images)) or not all(map(is_result_mapped, (first, second))):
        return None
    if any(a is not None and any(a.strides[:-1]) for a in second.result.leaves):
        return None  # nothing is added to the second result
    written = (*first.result.outputs, *second.result.outputs)
    return parts if all(a.pointer.dtype.size == 2 for a in written) else None


def _parts(task: Task, binding: Binding) -> Parts | None:
    if not task.sum:
        pair = parts_of(task, binding)
        return Parts((pair.first,), *pair) if pair else None
    if not is_pair(task):
        return None
    before = _before(task)
    found = sum_parts_of(before, binding)
    after = make_task([n for n in task.nodes if n not in before.nodes], task.anchor)
    second = problem_of(after, binding)
    if found is None or second is None or any(p.window for p in (*found, second)):
        return None
    return Parts(tuple(found), found.second, second)


def _before(task: Task) -> Task:
    """The sum that a pair begins with."""
    whole = summed_of(task.nodes)
    assert whole is not None
    return make_task([n for n in task.nodes if n in whole.nodes - {whole.pair.second}], None)


def kernel_of(parts: Parts, kept: bool, choice: Choice) -> SpecializedPairKernel:
    """The kernel of a choice."""
    images, first, second = parts
    leaves = [leaf for image in images for leaf in image.left.leaves]
    return SpecializedPairKernel(
        cluster=1,
        **choice._asdict(),
        dtype=first.dtype,
        images=tuple(leaf for leaf in leaves if leaf is not None),
        channels=tuple(image.channels for image in images),
        middle=first.columns,
        columns=second.columns,
        between=first.result,
        result=second.result,
        kept=kept,
    )


@dataclass(frozen=True)
class SpecializedPairFamily(HopperFamily):
    """Pairs of halves, for this or another machine."""

    name: ClassVar[str] = "specialized_pair"
    pattern: ClassVar[str] = "pair"
    tactic: ClassVar[type[Tactic]] = SpecializedPair
    allowed: ClassVar[Allowed] = {
        "rows": ROWS,
        "stages": range(1, MOST_STAGES + 1),
        "ring": RINGS,
        "ahead": AHEAD,
    }

    def understands(self, task: Task) -> bool:
        return is_pair(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        parts = mapped_parts(task, binding)
        if parts is None or task.pair is None:
            return
        kernels = {c: kernel_of(parts, task.pair.kept, c) for c in self._choices(parts)}
        order = sorted(kernels, key=lambda c: self._cycles(parts, kernels[c]))
        tactics = (SpecializedPair(task, *choice, self.machine) for choice in order)
        yield from itertools.islice((t for t in tactics if t.accepts(binding)), LIMIT)

    def _choices(self, parts: Parts) -> Iterator[Choice]:
        """Tiles of which there are enough, and the largest ring that fits each."""
        _, first, second = parts
        chunks = first.columns // SIDE
        some = [n for n in (FEWEST_STAGES, FEWEST_STAGES + 1) if n < chunks]
        for rows, stages, ahead in itertools.product(ROWS, (chunks, *some), AHEAD):
            units = ceil(first.rows, GROUPS * rows)
            if 2 * units < self.machine.multiprocessors or stages > MOST_STAGES:
                continue
            if _sums(rows, second.columns) > MOST_SUMS:
                continue
            base = kernel_of(parts, True, Choice(rows, stages, 0, ahead)).barriers
            ring = min((self.machine.shared - 1024 - base) // (GROUPS * BOX), RINGS[-1])
            if ring in RINGS:
                yield Choice(rows, stages, ring, ahead)

    def _cycles(self, parts: Parts, kernel: SpecializedPairKernel) -> float:
        """Roughly, how long it takes, by what limits a multiprocessor."""
        images, first, second = parts
        depth = sum(image.channels for image in images)
        both = GROUPS * kernel.rows
        size = first.dtype.size
        boxes = GROUPS * kernel.boxes
        read = boxes if kernel.residual is not None else 0
        moved = both * depth * size + (boxes + read) * BOX
        weights = 0 if kernel.keeps_weights else kernel.chunks * kernel.stage_bytes
        products = both * first.columns * (depth + second.columns) / _PRODUCTS
        early = kernel.boxes * _BOX / (kernel.ring - 1)
        each = max(moved / _MEMORY, (moved + weights) / _CACHE, products, early)
        each += _TILE
        if not kernel.keeps_weights:
            each += weights / _WEIGHTS + kernel.chunks * _CHUNK / (kernel.stages - 1)
        alone = each / kernel.ahead / kernel.chunks  # until the next tile of the image is there
        rounds = ceil(ceil(first.rows, both), self.machine.multiprocessors)
        return _START + rounds * (each + alone)

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        assert task.anchor is not None
        middle, columns = task.anchor.inputs[1].type.bind({})[-2:]
        wrong = middle % SIDE != 0 or columns % SIDE != 0 or values["stages"] > middle // SIDE
        wrong = wrong or (values["stages"] < FEWEST_STAGES and middle > SIDE)
        if wrong or _sums(values["rows"], columns) > MOST_SUMS:
            return f"no tile is {dict(values)}"
        return ""


def _sums(rows: int, columns: int) -> int:
    """Of a thread, of the second product."""
    return rows * columns // THREADS


@dataclass(frozen=True)
class SpecializedSummedFamily(SpecializedPairFamily):
    """The same of pairs that begin with a sum of two convolutions."""

    pattern: ClassVar[str] = "summed"


FAMILIES = (SpecializedPairFamily(), SpecializedSummedFamily())
