"""Tactics of Winograd convolution of bytes: windows of 3 x 3, moved by one pixel, without rounding.

Transformed bytes and filters are integers of 16 bits. A convolution takes 36 products of such for a
tile of 4 x 4 pixels instead of 144 of bytes, of which a vector holds twice as many; and results are
those of direct sums, bit by bit. Overflows on the way cancel, see `winograd_transform`; whether the
sums themselves are small enough is known from the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.ops.quantization import ConvInteger
from planish.targets.base import Binding, Tactic
from planish.targets.cpu.codegen.dot import PAIRS
from planish.targets.cpu.kernels.family import MachineFamily
from planish.targets.cpu.kernels.geometry import conv_geometry
from planish.targets.cpu.kernels.integer_matrix import (
    centred_weights,
    dot_for,
    understood,
    zero_points,
)
from planish.targets.cpu.kernels.winograd import (
    FIRST_BYTE,
    LEAST_CHANNELS,
    TILES,
    AnyWinograd,
    Cut,
    estimate,
    tiles,
    too_large,
    transforms,
)
from planish.targets.cpu.kernels.winograd_transform import Transform
from planish.targets.restoring import Allowed

TAPS = (3, 3)
"""The window. Along one axis alone as many products of 16 bits are needed as there are of bytes."""
RESULTS = (4, 2)
"""Pixels of a tile along each axis."""
MARGIN = 2.0
"""Tactics are offered up to so many times the estimate of a convolution without transforms: weights
may be nearer than it takes them to be.
"""
REACH = 1.3
"""And of another size of tile up to so many times the best one of the first."""
OFFERED = 4
"""Tactics of each size of tile."""
LARGEST = (1 << 15) - 1
"""Of transformed weights."""


@dataclass(frozen=True, eq=False)
class IntegerWinogradTactic(AnyWinograd):
    """Winograd convolution of bytes."""

    family: ClassVar[str] = "integer_winograd"

    @property
    def factor(self) -> DType:
        return DType.INT16

    def transforms(self, window: tuple[int, ...]) -> tuple[Transform, Transform]:
        return transforms(window, self.results, True)

    @property
    def cost_of_product(self) -> float:
        return PAIRS.instructions(self.machine) / PAIRS.group

    @property
    def zero(self) -> int:
        return zero_points(self.task)[0]

    def accepts(self, binding: Binding) -> bool:
        """Also: whether transformed weights have 16 bits, and no sum has too many."""
        if not super().accepts(binding):
            return False
        down, along = self.transforms(TAPS)
        weight, total = binding.derived(_largest, self.task)
        fits = weight * down.gain * along.gain <= LARGEST
        return fits and total < 1 << (31 - down.shift - along.shift)

    @property
    def filters(self) -> np.ndarray:
        return _filters(self.task)


def _filters(task: Task) -> np.ndarray:
    """Less their zero points, int32 ``[rows, columns, depth, channels]``."""
    weights = centred_weights(task)
    return weights.reshape(*TAPS, *weights.shape[-2:])


def _largest(task: Task, binding: Binding) -> tuple[int, int]:
    """The largest weight, and the largest that a sum of products may be, of any image."""
    weights = _filters(task)
    low = -128 if task.inputs[0].dtype is DType.INT8 else 0
    zero = zero_points(task)[0]
    least, most = low - zero, low + 255 - zero
    above = np.maximum(weights, 0).sum(axis=(0, 1, 2), dtype=np.int64)
    below = np.minimum(weights, 0).sum(axis=(0, 1, 2), dtype=np.int64)
    total = max((most * above + least * below).max(), -(least * above + most * below).min())
    return int(np.abs(weights).max()), int(total)


@dataclass(frozen=True)
class IntegerWinogradFamily(MachineFamily):
    """Winograd convolutions of bytes, for this or another machine."""

    name: ClassVar[str] = "integer_winograd"
    tactic: ClassVar[type[Tactic]] = IntegerWinogradTactic
    allowed: ClassVar[Allowed] = {"results": RESULTS, **TILES}

    def understands(self, task: Task) -> bool:
        if task.prologue is not None or not understood(task):
            return False
        assert task.anchor is not None
        op, weights = task.anchor.op, task.anchor.inputs[1].data
        if not isinstance(op, ConvInteger) or weights is None or weights.shape[:-2] != TAPS:
            return False
        return op.groups == 1 and all(n == 1 for n in (*op.strides, *op.dilations))

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        g = conv_geometry(task, binding)
        if g is None or min(g.depth, g.channels) < LEAST_CHANNELS:
            return
        dot = dot_for(task, self.machine)
        direct = g.operations / 2 * dot.instructions(self.machine) / dot.group
        direct += FIRST_BYTE * math.prod(TAPS) * g.depth * g.channels
        limit = MARGIN * direct
        for results in RESULTS:
            found: dict[tuple, tuple[float, Tactic]] = {}
            for tile in tiles(g, self.machine):
                tactic = IntegerWinogradTactic(task, self.machine, results, *tile)
                cut = Cut.of(g, tactic)
                # more cache than there are tiles for is the same tactic again
                found.setdefault((*tile[:2], cut), (estimate(g, tactic, cut), tactic))
            ranked = sorted(found.values(), key=lambda item: item[0])[:OFFERED]
            yield from (tactic for cost, tactic in ranked if cost < limit)
            limit = min(limit, REACH * ranked[0][0])

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        return too_large(values)


FAMILIES = (IntegerWinogradFamily(),)
