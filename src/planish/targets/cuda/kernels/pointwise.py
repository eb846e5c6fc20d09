"""Tasks without an anchor: elementwise work on broadcasting operands of any layout.

A program does a block of neighbouring elements of the result, numbered as in a dense array. What is
dense too is read by that number alone, whatever the shape; only operands that are broadcast or
strided need it taken apart, each no further than its own strides ask for. So a warp reads 16 bytes
a thread wherever an operand lies evenly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import ClassVar

from planish.fusion.task import Task
from planish.targets.base import Binding, Launch, Tactic
from planish.targets.cuda.codegen.elementwise import emit
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.kernels.fused import WIDE, Access, Work, bind_work, load, merge, store
from planish.targets.restoring import Allowed

BLOCKS = (32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Elements that a program may do."""
WARPS = (1, 2, 4, 8)
VECTOR = 16
"""Bytes that a thread reads or writes at a time."""
PART = 1 << 30
"""Element counts that 32 bits cannot hold are passed as so many, and the rest."""


@dataclass(frozen=True)
class PointwiseKernel(TritonKernel):
    """Every program does `block` neighbouring elements of the result.

    Parameters: the elements; if `wide` the rest beyond whole `PART`s, and how many of those.

    Attributes
    ----------
    work : Work
    block : int
    even : bool
        The elements are a multiple of 16, so that masks allow wide accesses.
    wide : bool
        There are so many elements that their numbers need 64 bits.
    """

    family = "pointwise"

    work: Work
    block: int
    even: bool = False
    wide: bool = False

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        return self.work.pointers

    @property
    def params(self) -> tuple[bool, ...]:
        return (self.even, False) if self.wide else (self.even,)

    def write(self, k: Source) -> None:
        program = "tl.program_id(0).to(tl.int64)" if self.wide else "tl.program_id(0)"
        flat = k.let("flat", f"{program} * {self.block} + tl.arange(0, {self.block})")
        count = f"n0 + n1.to(tl.int64) * {PART}" if self.wide else "n0"
        mask = k.let("mask", f"{flat} < {count}")
        places = _Places(k, flat, self.work.shape)
        leaves: list[str | None] = []
        pointer = 0
        for item in self.work.leaves:
            if item is None:
                leaves.append(None)
                continue
            leaves.append(load(k, pointer, *places.of(item), mask))
            pointer += 1
        results = emit(k, self.work.expression, leaves, self.work.facts)
        for result, item in zip(results, self.work.outputs, strict=True):
            store(k, pointer, *places.of(item), mask, result)
            pointer += 1


class _Places:
    """Takes the numbers of elements apart as accesses need it, each index once."""

    def __init__(self, k: Source, flat: str, shape: tuple[int, ...]) -> None:
        self._k, self._flat, self._shape = k, flat, shape
        self._names: dict[tuple[int, int], str] = {}

    def of(self, item: Access) -> tuple[Access, list[str]]:
        """An access with the axes merged that it steps through evenly, and its index."""
        shape, (strides,) = merge(self._shape, [item.strides])
        inner, index = 1, []
        for axis in reversed(range(len(shape))):
            extent = shape[axis] if axis else 0  # the first one's is not known
            index.append(self._index(inner, extent) if strides[axis] else self._flat)
            inner *= extent
        index.reverse()
        return replace(item, strides=strides), index

    def _index(self, inner: int, extent: int) -> str:
        if (inner, extent) not in self._names:
            text = self._flat if inner == 1 else f"{self._flat} // {inner}"
            text = f"({text}) % {extent}" if extent else text
            name = text if text == self._flat else self._k.let("i", text)
            self._names[inner, extent] = name
        return self._names[inner, extent]


@dataclass(frozen=True)
class PointwiseTactic(Tactic):
    """One kernel over the elements of the outputs."""

    family = "pointwise"
    block: int = 1024
    warps: int = 4

    def accepts(self, binding: Binding) -> bool:
        shapes = {binding.shape(v) for v in self.task.outputs}
        return len(shapes) == 1 and math.prod(shapes.pop()) < WIDE * BLOCKS[0]

    def launches(self, binding: Binding) -> list[Launch]:
        task = self.task
        shape = binding.shape(task.output)
        elements = math.prod(shape)
        if elements == 0:
            return []
        work, _, values = bind_work(task, task.epilogue, task.outputs, binding, shape)
        wide = elements > WIDE - self.block
        kernel = PointwiseKernel(self.warps, 1, work, self.block, elements % 16 == 0, wide)
        params = (elements % PART, elements // PART) if wide else (elements,)
        return [Launch(kernel, values, params, -(-elements // self.block))]


@dataclass(frozen=True)
class PointwiseFamily(MachineFamily):
    """Offers one kernel for elementwise tasks, for this or another machine."""

    name: ClassVar[str] = "pointwise"
    tactic: ClassVar[type[Tactic]] = PointwiseTactic
    allowed: ClassVar[Allowed] = {"block": BLOCKS, "warps": WARPS}

    def understands(self, task: Task) -> bool:
        return task.anchor is None

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if not PointwiseTactic(task).accepts(binding):
            return
        sizes = [v.dtype.size for v in (*task.inputs, *task.outputs)]
        elements = math.prod(binding.shape(task.output))
        for block, warps in _blocks(elements, VECTOR // min(sizes), self.machine.multiprocessors):
            yield PointwiseTactic(task, block, warps)


def _blocks(elements: int, vector: int, multiprocessors: int) -> list[tuple[int, int]]:
    """Blocks and their warps, the likely best first.

    A thread does a vector of the narrowest dtype; where that would leave multiprocessors without
    work it does less, and where there is plenty of work perhaps more.
    """
    share = max(elements // (128 * multiprocessors), 1)  # for 4 warps on each multiprocessor
    each = min(1 << share.bit_length() - 1, vector)
    wanted = [(128 * each, 4), (256 * each, 4), (256 * each, 8), (64 * each, 2)]
    if each < vector:
        wanted.append((128 * vector, 4))
    if elements < 128:
        warps = 1 << max(-(-elements // 32) - 1, 0).bit_length()
        wanted = [(32 * warps, warps)]
    return list(dict.fromkeys((block, warps) for block, warps in wanted if block in BLOCKS))


FAMILIES = (PointwiseFamily(),)
