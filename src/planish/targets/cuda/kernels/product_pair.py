"""Tactics of `product_pair_kernel`: two convolutions of single pixels, one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple

import numpy as np

from planish.fusion.pairs import pair_of
from planish.fusion.task import Task, make_task
from planish.graph.types import DType
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Constant, Launch, Pointer, Tactic
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.kernels.matrix_problem import Problem, pack, problem_of
from planish.targets.cuda.kernels.matrix_tile import Tile, ceil
from planish.targets.cuda.kernels.product_pair_kernel import ProductPairKernel
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.restoring import FLAG, Allowed

DTYPES = (DType.FLOAT16, DType.BFLOAT16)
ROWS = (32, 64, 128)
BLOCKS = (32, 64, 128)
WARPS = (4, 8)
STAGES = (2, 3, 4)
DEEPEST, WIDEST = 512, 512
"""Channels of the image and columns of the second result, at most: programs keep all of them."""
DEPTH = 64
"""Channels of the image that one product takes."""
SUMS = 160
"""Of a thread, of both products together."""
STEPS = 16
"""Blocks of columns of a program of many tiles, at most: they are written one after the other."""
LIMIT = 10
"""Tactics offered."""


class Choice(NamedTuple):
    """The parameters of a tactic."""

    rows: int
    block: int
    warps: int
    stages: int
    persistent: bool


class Parts(NamedTuple):
    """Both convolutions as problems of their own."""

    first: Problem
    second: Problem


def parts_of(task: Task, binding: Binding) -> Parts | None:
    """The parts of a task; None if the kernel cannot compute it."""
    return binding.derived(_parts, task)


def _parts(task: Task, binding: Binding) -> Parts | None:
    found = pair_of(task.nodes) if is_pair(task) else None
    if found is None:
        return None
    before = make_task([n for n in task.nodes if n in found.nodes - {found.second}], found.first)
    after = make_task([n for n in task.nodes if n not in before.nodes], found.second)
    first, second = problem_of(before, binding), problem_of(after, binding)
    if first is None or second is None or first.window or second.window:
        return None
    if first.channels > DEEPEST or second.columns > WIDEST:
        return None
    return Parts(first, second)


def is_pair(task: Task) -> bool:
    """Whether a task is two convolutions of single pixels, of halves."""
    if task.pair is None or task.anchor is None or task.pair.is_depthwise:
        return False
    values = (task.inputs[0], task.anchor.inputs[0], *task.anchor.inputs[1:])
    return {v.dtype for v in values} <= {task.inputs[0].dtype} <= set(DTYPES)


@dataclass(frozen=True)
class ProductPair(AnchoredTactic):
    """So many rows a tile, and columns of the first result a step; `persistent`: many tiles a
    program.
    """

    family: ClassVar[str] = "product_pair"

    rows: int
    block: int
    warps: int
    stages: int
    persistent: bool = False
    machine: CudaMachine = field(default=H200, compare=False)

    @property
    def choice(self) -> Choice:
        """Its parameters."""
        return Choice(self.rows, self.block, self.warps, self.stages, self.persistent)

    def accepts(self, binding: Binding) -> bool:
        parts = parts_of(self.task, binding)
        return parts is not None and self.task.output.shape == self.anchor.output.shape

    def constants(self) -> list[np.ndarray]:
        assert self.task.pair is not None
        first, second = self.task.inputs[self.task.pair.filters].data, self.anchor.inputs[1].data
        assert first is not None and second is not None
        depth, width = _depth(first.shape[2]), _power_of_two(second.shape[3])
        return [
            pack(first, Tile(self.rows, self.block, depth)),
            pack(second, Tile(self.rows, width, self.block)),
        ]

    def launches(self, binding: Binding) -> list[Launch]:
        parts, pair = parts_of(self.task, binding), self.task.pair
        assert parts is not None and pair is not None
        first, second = parts
        between, written = first.result, first.result_values
        if not pair.kept:
            between, written = replace(between, outputs=()), written[:-1]
        (left,) = first.left.leaves
        assert left is not None
        kernel = ProductPairKernel(
            self.warps,
            self.stages,
            rows=self.rows,
            block=self.block,
            depth=_depth(first.channels),
            width=_power_of_two(second.columns),
            dtype=first.dtype,
            left=left,
            axes=first.axes,
            channels=first.channels,
            middle=first.columns,
            columns=second.columns,
            between=between,
            result=second.result,
            persistent=self.persistent,
        )
        pointers: tuple[Pointer, ...] = (
            *first.left_values,
            Constant(0),
            *written,
            Constant(1),
            *second.result_values,
        )
        tasks = ceil(first.rows, self.rows)
        if self.persistent:
            choice = Choice(self.rows, self.block, self.warps, self.stages, True)
            tasks = min(
                tasks, _resident(parts, choice, self.machine) * self.machine.multiprocessors
            )
        return [Launch(kernel, pointers, (first.rows,), tasks)]


def _depth(channels: int) -> int:
    return min(DEPTH, _power_of_two(channels))


def _power_of_two(count: int) -> int:
    """The least one that products take and that is not below a number."""
    return max(16, 1 << (count - 1).bit_length())


@dataclass(frozen=True)
class ProductPairFamily(MachineFamily):
    """Pairs of halves, for this or another machine."""

    name: ClassVar[str] = "product_pair"
    pattern: ClassVar[str] = "pair"
    tactic: ClassVar[type[Tactic]] = ProductPair
    allowed: ClassVar[Allowed] = {
        "rows": ROWS,
        "block": BLOCKS,
        "warps": WARPS,
        "stages": STAGES,
        "persistent": FLAG,
    }

    def understands(self, task: Task) -> bool:
        return is_pair(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        parts = parts_of(task, binding)
        if parts is None:
            return
        choices = sorted(self._choices(parts), key=lambda c: self._cycles(parts, c))
        many = [choice for choice in choices if choice.persistent][: LIMIT // 2]
        others = [choice for choice in choices if not choice.persistent][: LIMIT - len(many)]
        for rank in itertools.zip_longest(others, many):
            for choice in filter(None, rank):
                rows, block, warps, stages, persistent = choice
                yield ProductPair(task, rows, block, warps, stages, persistent, self.machine)

    def _choices(self, parts: Parts) -> Iterator[Choice]:
        """Tiles that fit a multiprocessor and keep most of them busy."""
        every = itertools.product(ROWS, BLOCKS, WARPS, STAGES, (False, True))
        for choice in itertools.starmap(Choice, every):
            rows, block, warps, stages, persistent = choice
            programs = ceil(parts.first.rows, rows)
            if 2 * programs < self.machine.multiprocessors:
                continue  # small images are better off with one convolution after the other
            if block > 32 and block >= 2 * parts.first.columns:
                continue
            if _sums(parts, rows, block, warps) > SUMS or rows * block < 512 * warps:
                continue
            if shared_bytes(parts, choice) > self.machine.shared - 8192:
                continue
            if persistent:
                together = _resident(parts, choice, self.machine) * self.machine.multiprocessors
                steps = ceil(parts.first.columns, block)
                if stages > 3 or rows < 64 or steps > STEPS or programs < 3 * together:
                    continue
            yield choice

    def _cycles(self, parts: Parts, choice: Choice) -> float:
        """Roughly, how long it takes: products, or traffic with the second-level cache; of programs
        of many tiles, with memory.
        """
        rows, block, _, stages, persistent = choice
        width = _power_of_two(parts.second.columns)
        steps = ceil(parts.first.columns, block)
        products = rows * block * (parts.first.channels + width) / 2400
        programs = ceil(parts.first.rows, rows)
        share = programs / self.machine.multiprocessors
        moved = share * parts.first.dtype.size * rows * _moved(parts) / 18
        if persistent:  # a few cycles of every step, as blocks are written one after the other
            return 2500 + max(moved, share * steps * (products + 150)) + 10 * share * steps
        traffic = parts.first.dtype.size * block * (parts.first.channels + width + 2 * rows) / 40
        at_once = max(1, min(self.machine.shared // shared_bytes(parts, choice), 4))
        latency = 1200 / (stages - 1) / at_once
        waves = max(1.0, share / at_once)
        cycles = waves * at_once * (2500 / at_once + steps * max(products, traffic, latency))
        return max(cycles, moved) + 0.1 * cycles

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        assert task.anchor is not None
        middle, width = task.anchor.inputs[1].type.bind({})[-2:]
        steps = ceil(middle, values["block"]) if values["persistent"] else 1
        sums = values["rows"] * (values["block"] + width)
        if sums > 32 * SUMS * values["warps"] or steps > STEPS:
            return f"no tile is {dict(values)}"
        return ""


def _reads(parts: Parts) -> int:
    """Operands of the work between that have the first result's shape."""
    leaves = (leaf for leaf in parts.first.result.leaves if leaf is not None)
    return sum(bool(leaf.strides[-1] and any(leaf.strides[:-1])) for leaf in leaves)


def _moved(parts: Parts) -> int:
    """Elements that every row reads and writes, roughly."""
    kept = len(parts.first.result.outputs)
    middle = (_reads(parts) + kept) * parts.first.columns
    return parts.first.channels + middle + parts.second.columns


def shared_bytes(parts: Parts, choice: Choice) -> int:
    """Bytes of shared memory: the image, a block of the first result, and weights; of a program of
    many tiles all weights, and what the next tiles read.
    """
    rows, block, _, stages, persistent = choice
    size, channels = parts.first.dtype.size, parts.first.channels
    weights = block * (channels + _power_of_two(parts.second.columns))
    if not persistent:
        return size * (rows * (channels + block) + stages * weights)
    steps = ceil(parts.first.columns, block)
    read = rows * (channels + _reads(parts) * steps * block)
    return size * (steps * weights + (stages - 1) * read + 2 * rows * block)


def _resident(parts: Parts, choice: Choice, machine: CudaMachine) -> int:
    """Programs of many tiles that a multiprocessor runs at once."""
    return max(1, min(4, machine.shared // shared_bytes(parts, choice)))


def _sums(parts: Parts, rows: int, block: int, warps: int) -> float:
    """Sums that a thread keeps."""
    return rows * (block + _power_of_two(parts.second.columns)) / (32 * warps)


FAMILIES = (ProductPairFamily(),)
