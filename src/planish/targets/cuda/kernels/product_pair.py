"""Tactics of `product_pair_kernel`: two convolutions of single pixels, one after the other."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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
from planish.targets.restoring import checked_parameters, impossible

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
LIMIT = 10
"""Tactics offered."""


class Parts(NamedTuple):
    """Both convolutions as problems of their own."""

    first: Problem
    second: Problem


def parts_of(task: Task, binding: Binding) -> Parts | None:
    """The parts of a task; None if the kernel cannot compute it."""
    found = pair_of(task.nodes) if _understood(task) else None
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


def _understood(task: Task) -> bool:
    if task.pair is None or task.anchor is None or task.pair.is_depthwise:
        return False
    values = (task.inputs[0], task.anchor.inputs[0], *task.anchor.inputs[1:])
    return {v.dtype for v in values} <= {task.inputs[0].dtype} <= set(DTYPES)


@dataclass(frozen=True)
class ProductPair(AnchoredTactic):
    """So many rows a program, and columns of the first result a step."""

    family: ClassVar[str] = "product_pair"

    rows: int
    block: int
    warps: int
    stages: int

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
        )
        pointers: tuple[Pointer, ...] = (
            *first.left_values,
            Constant(0),
            *written,
            Constant(1),
            *second.result_values,
        )
        return [Launch(kernel, pointers, (first.rows,), ceil(first.rows, self.rows))]


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

    def tactics(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        parts = parts_of(task, binding)
        if parts is None:
            return
        choices = sorted(self._choices(parts), key=lambda c: self._cycles(parts, c))
        for choice in choices[:LIMIT]:
            tactic = ProductPair(task, *choice)
            if tactic.accepts(binding):
                yield tactic

    def _choices(self, parts: Parts) -> Iterator[tuple[int, int, int, int]]:
        """Rows, block, warps and stages that fit a multiprocessor and keep most of them busy."""
        for rows, block, warps, stages in itertools.product(ROWS, BLOCKS, WARPS, STAGES):
            programs = ceil(parts.first.rows, rows)
            if 2 * programs < self.machine.multiprocessors:
                continue  # small images are better off with one convolution after the other
            if block > 32 and block >= 2 * parts.first.columns:
                continue
            if _sums(parts, rows, block, warps) > SUMS or rows * block < 512 * warps:
                continue
            if self._shared(parts, rows, block, stages) > self.machine.shared - 8192:
                continue
            yield rows, block, warps, stages

    @staticmethod
    def _shared(parts: Parts, rows: int, block: int, stages: int) -> int:
        """Bytes of shared memory: the image, a block of the first result, and weights."""
        size, channels = parts.first.dtype.size, parts.first.channels
        weights = block * (channels + _power_of_two(parts.second.columns))
        return size * (rows * (channels + block) + stages * weights)

    def _cycles(self, parts: Parts, choice: tuple[int, int, int, int]) -> float:
        """Roughly, how long it takes: products, or traffic with the second-level cache."""
        rows, block, _, stages = choice
        width = _power_of_two(parts.second.columns)
        steps = ceil(parts.first.columns, block)
        products = rows * block * (parts.first.channels + width) / 2400
        traffic = parts.first.dtype.size * block * (parts.first.channels + width + 2 * rows) / 40
        at_once = max(1, min(self.machine.shared // self._shared(parts, rows, block, stages), 4))
        latency = 1200 / (stages - 1) / at_once
        programs = ceil(parts.first.rows, rows)
        waves = max(1.0, programs / (self.machine.multiprocessors * at_once))
        return waves * at_once * (2500 / at_once + steps * max(products, traffic, latency))

    def restore(self, task: Task, parameters: Mapping[str, Any]) -> Tactic:
        values = checked_parameters(
            self.name,
            task,
            parameters,
            _understood(task),
            rows=ROWS,
            block=BLOCKS,
            warps=WARPS,
            stages=STAGES,
        )
        assert task.anchor is not None
        width = task.anchor.inputs[1].shape[-1]
        assert isinstance(width, int)
        if values["rows"] * (values["block"] + width) > 32 * SUMS * values["warps"]:
            raise impossible(self.name, task, f"no tile is {dict(values)}")
        return ProductPair(task, **values)


def _sums(parts: Parts, rows: int, block: int, warps: int) -> float:
    """Sums that a thread keeps."""
    return rows * (block + _power_of_two(parts.second.columns)) / (32 * warps)


FAMILIES = (ProductPairFamily(),)
