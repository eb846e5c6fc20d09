"""Tactics of `depthwise_product_kernel`: a depthwise convolution and the 1x1 one after it."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from planish.fusion.expression import identity
from planish.fusion.task import ACCUMULATOR, Task
from planish.graph.dims import evaluate
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Constant, Launch, Pointer, Tactic
from planish.targets.cuda.kernels import matrix_cost as cost
from planish.targets.cuda.kernels.depthwise_product_kernel import DepthwiseProductKernel
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.kernels.fused import (
    WIDE,
    Access,
    Work,
    access,
    bind_work,
    is_wide,
    pointer_of,
)
from planish.targets.cuda.kernels.matrix_problem import pack
from planish.targets.cuda.kernels.matrix_tile import Tile, Window, ceil
from planish.targets.restoring import Allowed

DTYPES = (DType.FLOAT16, DType.BFLOAT16)
ROWS = (16, 32, 64, 128)
COLUMNS = (16, 32, 64, 128, 256)
DEPTHS = (16, 32, 64)
WARPS = (2, 4, 8)
LIMIT = 10
"""Tactics offered."""
LARGEST_WINDOW = 49
"""Taps: they are all written out."""
LEAST_SUMS, SUMS = 8, 64
"""Of a thread, of both convolutions together."""


@dataclass(frozen=True)
class DepthwiseProduct(AnchoredTactic):
    """So many pixels by result channels a program, and channels a step."""

    family: ClassVar[str] = "depthwise_product"

    rows: int
    columns: int
    depth: int
    warps: int

    @property
    def tile(self) -> Tile:
        """What a program computes."""
        return Tile(self.rows, self.columns, self.depth)

    def accepts(self, binding: Binding) -> bool:
        return super().accepts(binding) and _is_in_reach(self.task, binding)

    def constants(self) -> list[np.ndarray]:
        data = self.anchor.inputs[1].data
        assert data is not None
        return [pack(data, self.tile)]

    def launches(self, binding: Binding) -> list[Launch]:
        task, pair = self.task, self.task.pair
        assert pair is not None
        x, filters = task.inputs[0], task.inputs[pair.filters]
        shape = self.result_shape(binding)
        result, _, values = bind_work(task, task.epilogue, task.outputs, binding, shape, (3,))
        operands = [task.inputs[s] for s in pair.between.sources if s is not None and _reads(s)]
        channels = x.type.bind(binding.symbols)[-1]
        accesses = iter(_along_channels(v, binding) for v in operands)
        leaves = tuple(next(accesses) if _reads(s) else None for s in pair.between.sources)
        taps = binding.strides(filters)
        kernel = DepthwiseProductKernel(
            warps=self.warps,
            stages=2,
            tile=self.tile,
            dtype=x.dtype,
            left=Work((), identity(x.dtype), (access(x, binding, binding.shape(x)),), ()),
            axes=(-1, *shape[1:3]),
            batched=False,
            window=_window(task, binding),
            right=None,
            right_axes=(),
            channels=channels,
            columns=shape[3],
            result=result,
            filters=Access(pointer_of(filters, binding), (taps[0], taps[1], taps[3])),
            between=Work((-1,), pair.between.expression, leaves, ()),
        )
        rows = math.prod(shape[:3])
        tasks = ceil(rows, self.rows) * ceil(shape[3], self.columns)
        pointers: tuple[Pointer, ...] = (x, filters, *operands, Constant(0), *values)
        return [Launch(kernel, pointers, (rows,), tasks)]


def _along_channels(value: Value, binding: Binding) -> Access:
    """The access to a value that has channels alone, or is a single number; of any rank."""
    item = access(value, binding, (1,))
    return replace(item, strides=item.strides[-1:])


def _reads(source: int | None) -> bool:
    """Whether a leaf reads an operand: it is no constant, and not what was computed."""
    return source is not None and source != ACCUMULATOR


def _window(task: Task, binding: Binding) -> Window:
    """How the depthwise convolution walks over its image."""
    assert task.pair is not None and task.anchor is not None
    op = task.pair.first
    (_, *size, _), (_, *positions, _) = (
        v.type.bind(binding.symbols) for v in (task.inputs[0], task.anchor.inputs[0])
    )
    taps = task.inputs[task.pair.filters].type.bind({})[:2]
    pads = [evaluate(before, binding.symbols) for before, _ in op.padding]
    checked = [
        pad > 0 or (count - 1) * stride + (tap - 1) * dilation - pad >= extent
        for pad, count, stride, tap, dilation, extent in zip(
            pads, positions, op.strides, taps, op.dilations, size, strict=True
        )
    ]

    def two(numbers: Sequence[Any]) -> tuple[Any, Any]:
        first, second = numbers
        return first, second

    return Window(two(size), two(taps), two(op.strides), two(op.dilations), two(pads), two(checked))


def _understood(task: Task) -> bool:
    if task.pair is None or task.anchor is None or not task.pair.is_depthwise:
        return False
    x, filters = task.inputs[0], task.inputs[task.pair.filters]
    weights = task.anchor.inputs[1]
    same = x.dtype is filters.dtype is weights.dtype
    return same and x.dtype in DTYPES and math.prod(filters.type.bind({})[:2]) <= LARGEST_WINDOW


def _is_in_reach(task: Task, binding: Binding) -> bool:
    """Whether offsets fit into 32 bits, beside those from a row's start."""
    if not _understood(task):
        return False
    assert task.anchor is not None
    layout = binding.layout(task.inputs[0])
    rows = math.prod(task.anchor.output.type.bind(binding.symbols)[:3])
    return not is_wide(layout) and rows < WIDE


@dataclass(frozen=True)
class DepthwiseProductFamily(MachineFamily):
    """Pairs of halves, for this or another machine."""

    name: ClassVar[str] = "depthwise_product"
    pattern: ClassVar[str] = "pair"
    tactic: ClassVar[type[Tactic]] = DepthwiseProduct
    allowed: ClassVar[Allowed] = {"rows": ROWS, "columns": COLUMNS, "depth": DEPTHS, "warps": WARPS}

    def understands(self, task: Task) -> bool:
        return _understood(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        if not _is_in_reach(task, binding):
            return
        for choice in self._choices(task, binding):
            tile = choice.tile
            yield DepthwiseProduct(task, tile.rows, tile.columns, tile.depth, choice.warps)

    def _choices(self, task: Task, binding: Binding) -> list[cost.Choice]:
        """The likely best, at most two with the same rows and columns."""
        assert task.pair is not None and task.anchor is not None
        *pixels, columns = task.anchor.output.type.bind(binding.symbols)
        channels = task.inputs[0].type.bind(binding.symbols)[-1]
        taps = math.prod(task.inputs[task.pair.filters].type.bind({})[:2])
        size = task.inputs[0].dtype.size
        shape = cost.Shape(
            rows=math.prod(pixels),
            columns=columns,
            batch=1,
            taps=(1, 1),
            channels=channels,
            size=size,
            read=size * taps,
            worked=True,
            moved=size,
            vector=16 // size,
        )
        found = []
        for rows, width, depth, warps in itertools.product(ROWS, COLUMNS, DEPTHS, WARPS):
            too_large = width >= 2 * columns and width > COLUMNS[0]
            too_deep = depth >= 2 * channels and depth > DEPTHS[0]
            sums = rows * (width + depth) / (32 * warps)
            if too_large or too_deep or not LEAST_SUMS <= sums <= SUMS:
                continue
            found.append(cost.Choice(Tile(rows, width, depth), warps, 2))
        found.sort(key=lambda choice: cost.estimate(shape, choice, self.machine))
        seen: Counter[tuple[int, int]] = Counter()
        kept = []
        for choice in found:
            key = choice.tile.rows, choice.tile.columns
            seen[key] += 1
            if seen[key] <= 2:
                kept.append(choice)
        return kept[:LIMIT]

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        if values["rows"] * (values["columns"] + values["depth"]) > 32 * SUMS * values["warps"]:
            return f"no tile is {dict(values)}"
        return ""


FAMILIES = (DepthwiseProductFamily(),)
