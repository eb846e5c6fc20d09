"""Tactics of `strips_kernel`: a depthwise convolution and its 1x1 neighbours, strip by strip.

Each convolution runs by the kernel that it would run by alone. Of an inverted bottleneck, the rows
that two strips of a band share are computed once and kept; bands share no rows, so that at their
borders some are computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar, NamedTuple

import numpy as np

from planish.fusion.bottleneck import bottleneck_of
from planish.fusion.pairs import FoundPair, pair_of
from planish.fusion.task import Task, make_task
from planish.graph.dims import evaluate
from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType, TensorType
from planish.ops.conv import Conv
from planish.targets.base import (
    Binding,
    Constant,
    Family,
    Launch,
    Layout,
    Pointer,
    Tactic,
    dense_strides,
)
from planish.targets.cpu.kernels import bfloat_matrix, depthwise, matrix
from planish.targets.cpu.kernels.blocking import ceil
from planish.targets.cpu.kernels.depthwise_kernel import DepthwiseKernel
from planish.targets.cpu.kernels.family import MachineFamily
from planish.targets.cpu.kernels.strips_kernel import HEADER, STRIP, Slot, Stage, StripsKernel
from planish.targets.cpu.machine import Machine
from planish.targets.restoring import Allowed

BANDS_PER_THREAD = 2
"""At least so many bands for each, where there are rows enough."""
CACHE_SHARES = (1.5, 0.75)
"""What lies between the kernels of a strip, in sizes of the second-level cache. Taller strips do
less at their borders, and a little more than the cache does no harm.
"""
DISTANT = 8 << 20
"""Bytes between the convolutions from which strips are worth measuring. Fewer stay in a last-level
cache, from where they come fast enough. With 32 MB of it strips won from 24 MB on a Zen 3 and lost
below 18; on a Zen 5 they won at 14 MB of bfloat16.
"""
TALLEST = 4096
"""Rows of a strip."""
_PRODUCTS: dict[DType, Callable[[Machine], Family]] = {
    DType.FLOAT32: matrix.MatrixFamily,
    DType.BFLOAT16: bfloat_matrix.BfloatMatrixFamily,
}
"""What multiplies elements of a dtype by constant matrices."""


class Part(NamedTuple):
    """A convolution of the task and the elementwise nodes behind it."""

    nodes: tuple[Node, ...]

    @property
    def conv(self) -> Conv:
        op = self.nodes[0].op
        assert isinstance(op, Conv)
        return op

    @property
    def image(self) -> Value:
        """What the convolution reads."""
        return self.nodes[0].inputs[0]

    @property
    def result(self) -> Value:
        """What the last node gives."""
        return self.nodes[-1].output


class Strip(NamedTuple):
    """Result rows ``first`` to ``last`` of an image, and what they need of the depthwise image.

    Attributes
    ----------
    first, last : int
    above, below : int
        The rows of the depthwise convolution's image that it reads.
    fresh : int
        The first of them that is not kept from the strip before.
    before : int
        The row with which the first buffer began for the strip before.
    padding : int
        Rows of zeros above the first of them.
    """

    first: int
    last: int
    above: int
    below: int
    fresh: int
    before: int
    padding: int


@dataclass(frozen=True, eq=False)
class SubTask:
    """A part on a strip, as a task of its own, and the task's own values for those it reads."""

    task: Task
    values: Mapping[Value, Value]

    @property
    def binding(self) -> Binding:
        """Rows lie dense, and begin anywhere."""
        shapes = {v: v.type.bind({}) for v in (*self.task.inputs, *self.task.outputs)}
        layouts = {v: Layout(s, dense_strides(s), v.dtype.size) for v, s in shapes.items()}
        return Binding({}, layouts)


@dataclass(frozen=True)
class Strips(Tactic):
    """Strips of ``rows`` rows of the result."""

    family: ClassVar[str] = "strips"
    machine: Machine
    rows: int

    @cached_property
    def _parts(self) -> tuple[Part, ...]:
        return _parts(self.task)

    @cached_property
    def _inner(self) -> tuple[Tactic, ...]:
        """What each part runs by: what is offered first for a whole strip. Empty if some part runs
        by nothing.
        """
        rows = min(self.rows, _sizes(self.task).result_rows)
        strip = next(_strips(self.task, (0, rows), rows))
        found = [self._first_offered(self._sub_task(p, strip), p) for p in self._parts]
        return tuple(t for t in found if t) if all(found) else ()

    def _first_offered(self, sub: SubTask, part: Part) -> Tactic | None:
        task = sub.task
        if part.conv.groups > 1:
            return next(iter(depthwise.FAMILIES[0].tactics(task, sub.binding)), None)
        family = _PRODUCTS[task.inputs[0].dtype](replace(self.machine, cores=1))
        row = part.image.shape[2]  # the lowest strip has one
        offered = family.tactics(task, sub.binding)
        return next((t for t in offered if _fits_rows(t, int(row))), None)  # type: ignore[arg-type]

    def _sub_task(self, part: Part, strip: Strip) -> SubTask:
        return _strip_task(self.task, part, self._parts, strip)

    def constants(self) -> list[np.ndarray]:
        return [c for tactic in self._inner for c in tactic.constants()]

    def accepts(self, binding: Binding) -> bool:
        moving = [v for v in (*self.task.inputs, *self.task.outputs) if _moves(v)]
        if not self._inner:
            return False
        return all(
            binding.strides(v)[1:] == dense_strides(binding.shape(v))[1:] for v in moving
        ) and all(
            tactic.accepts(sub.binding)
            for strip in self._all_strips(binding)
            for tactic, sub in self._of_strip(strip)
        )

    def _of_strip(self, strip: Strip) -> Iterator[tuple[Tactic, SubTask]]:
        for tactic, part in zip(self._inner, self._parts, strict=True):
            if part is self._parts[0] and self._expands and strip.fresh >= strip.below:
                continue
            sub = self._sub_task(part, strip)
            yield replace(tactic, task=sub.task), sub

    @property
    def _expands(self) -> bool:
        return len(self._parts) == 3

    def _bands(self, binding: Binding) -> list[tuple[int, int]]:
        """The result rows of each band."""
        rows = _sizes(self.task).result_rows
        batch = max(1, binding.shape(self.task.inputs[0])[0])
        wanted = ceil(BANDS_PER_THREAD * self.machine.cores, batch)
        height = ceil(ceil(rows, min(wanted, ceil(rows, self.rows))), self.rows) * self.rows
        edges = [*range(0, rows, height), rows]
        return list(pairwise(edges))

    def _all_strips(self, binding: Binding) -> list[Strip]:
        bands = self._bands(binding)
        return [strip for band in bands for strip in _strips(self.task, band, self.rows)]

    def launches(self, binding: Binding) -> list[Launch]:
        batch = binding.shape(self.task.inputs[0])[0]
        bands = self._bands(binding)
        writer = _Writer(self.task, self._expands)
        for band in bands:
            for strip in _strips(self.task, band, self.rows):
                launches: list[tuple[Launch, SubTask] | None] = [
                    (launch, sub)
                    for tactic, sub in self._of_strip(strip)
                    for launch in tactic.launches(sub.binding)
                ]
                if len(launches) < len(self._parts):
                    launches.insert(0, None)
                writer.add(strip, launches)
            writer.end_band()
        return [writer.launch(binding, batch * len(bands))]


class _Writer:
    """Gathers what strips do into one launch."""

    def __init__(self, task: Task, expands: bool) -> None:
        self.task, self.expands = task, expands
        self.sizes = _sizes(task)
        count = 3 if expands else 2
        self.kernels: list[Any] = [None] * count
        self.slots: list[tuple[Slot, ...]] = [()] * count
        self.pointers: list[Pointer] = []
        self.moving: list[int] = []
        self.strips: list[tuple[Strip, list[tuple[tuple[int, ...], int]]]] = []
        self.bands = [0]
        self.keeps = False

    def add(self, strip: Strip, launches: Sequence[tuple[Launch, SubTask] | None]) -> None:
        """A strip with the launch of each kernel; None for one that has nothing to do."""
        calls: list[tuple[tuple[int, ...], int]] = []
        for i, found in enumerate(launches):
            if found is None:
                calls.append((self.strips[-1][1][i][0], 0))
                continue
            launch, sub = found
            self.kernels[i] = _merged(self.kernels[i], launch.kernel)
            self.slots[i] = tuple(self._slot(i, p, sub) for p in launch.pointers)
            calls.append((launch.params, launch.tasks))
        self.keeps = self.keeps or (self.expands and strip.fresh > strip.above)
        self.strips.append((strip, calls))

    def end_band(self) -> None:
        """The strips added since the last call are a band."""
        self.bands.append(len(self.strips))

    def _slot(self, stage: int, pointer: Pointer, sub: SubTask) -> Slot:
        last = len(self.kernels) - 1
        if isinstance(pointer, Constant):  # each part has one: its packed filters
            return Slot("given", self._number(Constant(stage)))
        assert isinstance(pointer, Value)
        if pointer is sub.task.output:
            if stage == last:
                return self._moving("result", self.task.output)
            return Slot("fresh", 0) if self.expands and stage == 0 else Slot("buffer", 1)
        if pointer is sub.task.inputs[0] and stage > 0:
            return Slot("buffer", 0 if self.expands and stage == 1 else 1)
        value = sub.values[pointer]
        if value.is_constant:
            return Slot("given", self._number(value))
        return self._moving("result" if stage == last else "source", value)

    def _moving(self, kind: str, value: Value) -> Slot:
        number = self._number(value)
        if number not in self.moving:
            self.moving.append(number)
        return Slot(kind, number)

    def _number(self, pointer: Pointer) -> int:
        if pointer not in self.pointers:
            self.pointers.append(pointer)
        return self.pointers.index(pointer)

    def launch(self, binding: Binding, tasks: int) -> Launch:
        """The launch of all strips."""
        sizes, width = self.sizes, len(STRIP) + 2 * len(self.kernels)
        bands_at = len(HEADER) + 2 * len(self.moving)
        strips_at = bands_at + 2 * (len(self.bands) - 1)
        blocks_at = strips_at + width * len(self.strips)
        blocks: dict[tuple[int, ...], int] = {}
        flat: list[int] = []
        table: list[int] = []
        for strip, calls in self.strips:
            table += [
                strip.fresh if self.expands else strip.above,
                strip.first,
                max(0, strip.above - strip.before) * sizes.image_row,
                (strip.fresh - strip.above) * sizes.image_row,
            ]
            for params, count in calls:
                if params not in blocks:
                    blocks[params] = blocks_at + len(flat)
                    flat += params
                table += [blocks[params], count]
        first_buffer = 0
        if self.expands:
            tallest = max(s.below - s.above for s, _ in self.strips)
            first_buffer = _padded(tallest * sizes.image_row)
        tallest = max(s.last - s.first for s, _ in self.strips)
        second_buffer = _padded(tallest * sizes.middle_row)
        steps: list[int] = []
        for number in self.moving:
            value = self.pointers[number]
            assert isinstance(value, Value)
            steps += binding.strides(value)[:2]
        ends = [edge for band in pairwise(self.bands) for edge in band]
        header = (len(self.bands) - 1, bands_at, strips_at, first_buffer)
        stages = tuple(map(Stage, self.kernels, self.slots))
        dtype = self.task.output.dtype
        kernel = StripsKernel(stages, tuple(self.moving), self.keeps, dtype)
        params = (*header, *steps, *ends, *table, *flat)
        scratch = dtype.size * (first_buffer + second_buffer)
        return Launch(kernel, tuple(self.pointers), params, tasks, scratch=scratch)


def _merged(known: Any, kernel: Any) -> Any:
    """One kernel for all strips: checks of rows stay where any strip needs them."""
    if known is None or known == kernel:
        return kernel
    assert isinstance(kernel, DepthwiseKernel)
    checked = replace(kernel, row_checks=True)
    assert checked == replace(known, row_checks=True)
    return checked


def _padded(elements: int) -> int:
    """Elements of a buffer, with room for a vector written beyond its end."""
    return ceil(elements + 64, 32) * 32


class _Sizes(NamedTuple):
    """Extents of a task that do not depend on the batch; rows of tensors in elements."""

    image_rows: int
    result_rows: int
    image_row: int
    middle_row: int


def _sizes(task: Task) -> _Sizes:
    middle = _parts(task)[-1].image.shape
    image = _parts(task)[-2].image.shape
    return _Sizes(
        int(image[1]),  # type: ignore[arg-type]
        int(middle[1]),  # type: ignore[arg-type]
        int(image[2]) * int(image[3]),  # type: ignore[arg-type]
        int(middle[2]) * int(middle[3]),  # type: ignore[arg-type]
    )


def _parts(task: Task) -> tuple[Part, ...]:
    whole = bottleneck_of(task.nodes)
    pair: FoundPair | None = whole.pair if whole else pair_of(task.nodes)
    assert pair is not None
    inside = (whole or pair).nodes
    after = tuple(n for n in task.nodes if n not in inside)
    parts = (Part((pair.first, *pair.chain)), Part((pair.second, *after)))
    return (Part((whole.first, *whole.chain)), *parts) if whole else parts


def _strips(task: Task, band: tuple[int, int], rows: int) -> Iterator[Strip]:
    """The strips of a band of result rows."""
    part = _parts(task)[-2]
    height, op = _sizes(task).image_rows, part.conv
    stride, dilation = op.strides[0], op.dilations[0]
    window = int(part.nodes[0].inputs[1].shape[0])  # type: ignore[arg-type]
    pad = evaluate(op.padding[0][0], {})
    before = reach = 0
    for first in range(*band, rows):
        last = min(first + rows, band[1])
        top = first * stride - pad
        above = min(max(top, 0), height)
        end = (last - 1) * stride + (window - 1) * dilation + 1 - pad
        below = max(above, min(end, height))
        fresh = max(above, min(reach, below)) if first > band[0] else above
        yield Strip(first, last, above, below, fresh, before, above - top)
        before, reach = above, below


def _strip_task(task: Task, part: Part, parts: Sequence[Part], strip: Strip) -> SubTask:
    """A part as a task on a strip: an image of that many rows, in a batch of one."""
    number = parts.index(part)
    is_first, is_last = number == 0 and len(parts) == 3, number == len(parts) - 1
    op = part.conv
    if is_first:
        source, result = strip.below - strip.fresh, strip.below - strip.fresh
    elif is_last:
        source = result = strip.last - strip.first
    else:
        source, result = strip.below - strip.above, strip.last - strip.first
        window = int(part.nodes[0].inputs[1].shape[0])  # type: ignore[arg-type]
        reach = (result - 1) * op.strides[0] + (window - 1) * op.dilations[0] + 1
        rows = strip.padding, reach - strip.padding - source
        op = replace(op, padding=(rows, op.padding[1]))
    graph = Graph("strip")
    known: dict[Value, Value] = {}
    originals: dict[Value, Value] = {}

    def read(value: Value, rows: int) -> Value:
        if value not in known:
            if value.data is not None:
                known[value] = graph.constant(value.data)
            else:
                shape = (1, rows, *value.shape[2:])
                known[value] = graph.input("x", TensorType(shape, value.dtype))
            originals[known[value]] = value
        return known[value]

    nodes = []
    for node in part.nodes:
        is_conv = node is part.nodes[0]
        # the image is an input of its own even if an epilogue reads it, too
        values = [
            read(v, source if is_conv and i == 0 else result) for i, v in enumerate(node.inputs)
        ]
        if is_conv:
            known.pop(node.inputs[0])
        made = graph.add_node(op if is_conv else node.op, values)
        known[node.output] = made.output
        nodes.append(made)
    return SubTask(make_task(nodes, nodes[0]), originals)


def _fits_rows(tactic: Tactic, columns: int) -> bool:
    """Whether it computes any number of rows of so many columns, from where they lie."""
    assert isinstance(tactic, matrix.MatrixTactic)
    return not (tactic.packed or tactic.tail) and tactic.pixels <= columns


def _moves(value: Value) -> bool:
    """Whether a value of a task is an image, and no constant."""
    return not value.is_constant


@dataclass(frozen=True)
class StripsFamily(MachineFamily):
    """Depthwise convolutions with their 1x1 neighbours, for this or another machine."""

    name: ClassVar[str] = "strips"
    tactic: ClassVar[type[Tactic]] = Strips
    allowed: ClassVar[Allowed] = {"rows": range(1, TALLEST + 1)}

    def understands(self, task: Task) -> bool:
        if task.pair is None or (task.bottleneck is None and not task.pair.is_depthwise):
            return False
        images = [v for v in (*task.inputs, *task.outputs) if _moves(v)]
        result = task.output.shape
        for part in _parts(task):
            extents = (*part.image.shape[1:], *part.result.shape[1:])
            if not all(isinstance(d, int) and d > 0 for d in extents):
                return False
            if not all(isinstance(edge, int) for pair in part.conv.padding for edge in pair):
                return False
        dtypes = {v.dtype for v in images} | {part.image.dtype for part in _parts(task)}
        return (
            len(dtypes) == 1
            and dtypes <= _PRODUCTS.keys()
            and all(v is task.inputs[0] or v.shape == result for v in images)
            and all(len(v.shape) == 4 for v in images)
        )

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if _bytes_between(task, binding) < DISTANT:
            return
        for rows in _heights(task, self.machine):
            yield Strips(task, self.machine, rows)


@dataclass(frozen=True)
class PairStripsFamily(StripsFamily):
    """A depthwise and a 1x1 convolution."""

    pattern: ClassVar[str] = "pair"


@dataclass(frozen=True)
class BottleneckStripsFamily(StripsFamily):
    """Inverted bottlenecks."""

    pattern: ClassVar[str] = "bottleneck"


def _bytes_between(task: Task, binding: Binding) -> int:
    """What the convolutions would write for each other, one after the other."""
    between = (part.image.type for part in _parts(task)[1:])
    return sum(t.dtype.size * math.prod(t.bind(binding.symbols)) for t in between)


def _heights(task: Task, machine: Machine) -> list[int]:
    """Heights of strips for which what lies between the kernels fits into shares of the cache."""
    sizes, op = _sizes(task), _parts(task)[-2].conv
    found = []
    for share in CACHE_SHARES:
        budget = share * machine.l2 / task.output.dtype.size
        row = sizes.middle_row
        if task.bottleneck:
            row += op.strides[0] * sizes.image_row
            budget -= 2 * sizes.image_row
        found.append(max(1, min(int(budget // row), sizes.result_rows, TALLEST)))
    return list(dict.fromkeys(found))


FAMILIES = (PairStripsFamily(), BottleneckStripsFamily())
