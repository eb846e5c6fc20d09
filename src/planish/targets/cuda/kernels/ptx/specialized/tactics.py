"""Tactics of the matrix kernel with specialised warps: many tiles, on Hopper."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np

from planish.fusion.task import Task
from planish.graph.types import DType
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Constant, Launch, Pointer, Tactic, Workspace
from planish.targets.cuda.kernels.family import HopperFamily
from planish.targets.cuda.kernels.fused import Access
from planish.targets.cuda.kernels.mapped import (
    MAP_SECONDS,
    Box,
    is_left_mapped,
    row_tiles,
    stays_in_pixels,
)
from planish.targets.cuda.kernels.matrix_image import CHANNELS, ImageCopy, filters_on_copy
from planish.targets.cuda.kernels.matrix_problem import (
    Convolution,
    Problem,
    filters,
    is_packed,
    pack,
    problem_of,
    understood,
)
from planish.targets.cuda.kernels.matrix_tile import Tile, ceil
from planish.targets.cuda.kernels.ptx.specialized.cost import (
    CLUSTERS,
    COLUMNS,
    DEPTHS,
    FRAMES,
    MOST_SUMS,
    RINGS,
    ROWS,
    STAGES,
    choices,
    has_frames,
)
from planish.targets.cuda.kernels.ptx.specialized.kernel import SpecializedKernel, neighbours
from planish.targets.cuda.kernels.ptx.specialized.results import is_expressible
from planish.targets.cuda.kernels.ptx.specialized.tiles import LINES, SIDE
from planish.targets.cuda.kernels.ptx.warp_groups import THREADS
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.restoring import Allowed

DTYPES = (DType.FLOAT16, DType.BFLOAT16, DType.INT8)
MOST_STEPS = 36
"""Whose weights stay in shared memory."""
LIMIT = 12
"""Tactics offered."""
OF_SIZE = 3
"""Of these with tiles of the same rows and columns."""
SIDES = (0, *(1 << i for i in range(9)))
"""Of a box, in pixels; 0: there is none."""
FRAMED = 3
"""Tactics with frames offered beside them, each of other rows or columns."""


def specialized_problem(
    task: Task, binding: Binding, channels: int = 0
) -> tuple[Problem, ImageCopy | None] | None:
    """The problem of a task, with `channels` on a copy of its images whose pixels have so many;
    None if the kernel does not compute it.
    """
    if channels:
        problem = binding.derived(_stored_problem, task)
        return _on_copy(problem, channels) if problem else None
    problem = binding.derived(_mapped_problem, task)
    return (problem, None) if problem else None


def _mapped_problem(task: Task, binding: Binding) -> Problem | None:
    """The problem of a task whose images are copied in boxes, too."""
    problem = binding.derived(_stored_problem, task)
    if problem is None or not problem.left.expression.is_copy or len(problem.left.leaves) != 1:
        return None
    steps = LINES[0] // problem.dtype.size  # of the narrowest tiles
    return problem if is_left_mapped(problem) and stays_in_pixels(problem, steps) else None


def _stored_problem(task: Task, binding: Binding) -> Problem | None:
    """The problem of a task whose results are stored in boxes."""
    if not understood(task) or not is_packed(task):
        return None
    problem = problem_of(task, binding)
    if problem is None or problem.dtype not in DTYPES or problem.batched or problem.zero:
        return None
    return problem if is_result_mapped(problem) else None


def _on_copy(problem: Problem, channels: int) -> tuple[Problem, ImageCopy] | None:
    """A convolution of few channels by steps of two, on folded images: what a row of taps covers is
    one run of memory, so that it is as if pixels had as many channels and windows one column.
    """
    copy = ImageCopy(problem, channels, 1)
    if problem.window is None or copy.fold == (1, 1) or not copy.makes_sense:
        return None
    size, step = problem.dtype.size, copy.deep
    if copy.run * size > LINES[-1] or step * size % 16 or copy.size[1] * step * size % 16:
        return None
    found = copy.problem
    assert found.window is not None
    # runs of neighbouring pixels overlap; there are as many as the result has pixels
    window = replace(found.window, size=(copy.size[0], problem.axes[-1]))
    return replace(found, window=window, result=problem.result, pixels=0), copy


def is_result_mapped(problem: Problem) -> bool:
    """Whether boxes of the result can be stored, and what is added to it loaded."""
    work = problem.result
    if len(work.outputs) != 1 or len(work.shape) != 2:
        return False
    size = work.outputs[0].pointer.dtype.size
    whole = whole_tensors((*work.leaves, *work.outputs), problem.columns, size)
    if whole is None or whole > 2:
        return False
    return is_expressible(work, sums_of(problem))


def sums_of(problem: Problem) -> str:
    """The type of sums of products."""
    return "int32" if problem.dtype is DType.INT8 and not problem.codes else "float32"


def whole_tensors(items: Iterable[Access | None], columns: int, size: int) -> int | None:
    """How many tensors have an element for each of the result, in boxes of elements of so many
    bytes; None if one cannot be copied in boxes, or another not be loaded by columns.
    """
    whole = 0
    for item in items:
        if item is None or not any(item.strides):
            continue
        if not item.pointer.aligned or item.wide or item.strides[-1] != 1:
            return None
        if item.strides[0] == 0:
            continue
        pitch = item.strides[0]
        if pitch < columns or pitch * size % 16 or item.pointer.dtype.size != size:
            return None
        whole += 1
    return whole if size <= 2 else None


@dataclass(frozen=True)
class SpecializedTactic(AnchoredTactic):
    """The matrix kernel with specialised warps, with a tile; see `SpecializedKernel`."""

    family: ClassVar[str] = "specialized"

    rows: int
    columns: int
    depth: int
    stages: int
    ring: int = 2
    cluster: int = 1
    high: int = 0
    wide: int = 0
    channels: int = 0
    frames: int = 0
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
        found = specialized_problem(self.task, binding, self.channels)
        if found is None:
            return False
        problem, _ = found
        if (problem.window is None) != (self.wide == 0):
            return False
        size = problem.result.outputs[0].pointer.dtype.size
        if problem.columns % self.columns or not neighbours(self.tile, size):
            return False
        if self.depth * problem.dtype.size not in LINES:
            return False
        if not stays_in_pixels(problem, self.depth):
            return False
        if self.frames and (self.channels or not has_frames(problem, self.high)):
            return False
        return self._kernel(problem).shared <= self.machine.shared

    def constants(self) -> list[np.ndarray]:
        size, weights = self.task.outputs[0].dtype.size, filters(self.task)
        if self.channels:
            op = self.anchor.op
            assert isinstance(op, Convolution)
            weights = filters_on_copy(weights, self.channels, (1, *op.strides)[-2:], 1)
        return [pack(weights, self.tile, neighbours(self.tile, size))]

    def launches(self, binding: Binding) -> list[Launch]:
        problem, copy = self._problem(binding)
        kernel = self._kernel(problem)
        launches: list[Launch] = []
        pointers: list[Pointer] = [*problem.left_values, Constant(0), *problem.result_values]
        if copy:
            where: tuple[Pointer, ...] = (*copy.source.left_values, Workspace())
            tasks = ceil(copy.places, copy.kernel.pixels)
            launches.append(Launch(copy.kernel, where, (copy.places,), tasks))
            pointers.insert(0, Workspace())
        box = Box(self.rows, self.high, self.wide)
        units = ceil(row_tiles(problem, box), self.cluster) * kernel.column_tiles
        most = self.machine.multiprocessors // self.cluster
        tasks = self.cluster * min(units, most)
        return [*launches, Launch(kernel, tuple(pointers), (problem.rows,), tasks)]

    def workspace(self, binding: Binding) -> int:
        copy = self._problem(binding)[1]
        return copy.bytes if copy else 0

    def _problem(self, binding: Binding) -> tuple[Problem, ImageCopy | None]:
        found = specialized_problem(self.task, binding, self.channels)
        assert found is not None, "the tactic accepts the binding"
        return found

    def _kernel(self, problem: Problem) -> SpecializedKernel:
        (left,) = problem.left.leaves
        assert left is not None
        return SpecializedKernel(
            tile=self.tile,
            stages=self.stages,
            ring=self.ring,
            cluster=self.cluster,
            dtype=problem.dtype,
            left=left,
            axes=problem.axes,
            window=problem.window,
            channels=problem.channels,
            columns=problem.columns,
            result=problem.result,
            high=self.high,
            wide=self.wide,
            codes=problem.codes,
            frames=self.frames,
        )


@dataclass(frozen=True)
class SpecializedFamily(HopperFamily):
    """Convolutions and products by constants, of many tiles, for this or another machine."""

    name: ClassVar[str] = "specialized"
    tactic: ClassVar[type[Tactic]] = SpecializedTactic
    allowed: ClassVar[Allowed] = {
        "rows": ROWS,
        "columns": COLUMNS,
        "depth": DEPTHS,
        "stages": range(STAGES[0], MOST_STEPS + 1),
        "ring": RINGS,
        "cluster": CLUSTERS,
        "high": SIDES,
        "wide": SIDES,
        "channels": (0, *CHANNELS),
        "frames": (0, *FRAMES),
    }

    def understands(self, task: Task) -> bool:
        return understood(task) and is_packed(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        forms = [(c, specialized_problem(task, binding, c)) for c in self._channels(task)]
        channels, form = next(((c, f) for c, f in forms if f), (0, None))
        if form is None:
            return
        found = sorted(choices(form[0], self.machine), key=lambda item: item[0])
        sizes: dict[object, int] = {}
        kept = {False: 0, True: 0}
        for _, choice in found:
            framed = choice.frames > 0
            size = framed, choice.rows, choice.columns
            if sizes.get(size, 0) == (1 if framed else OF_SIZE):
                continue
            if kept[framed] == (FRAMED if framed else LIMIT):
                continue
            parameters = choice._asdict() | {"channels": channels}
            tactic = SpecializedTactic(task, **parameters, machine=self.machine)
            if tactic.accepts(binding):
                sizes[size] = sizes.get(size, 0) + 1
                kept[framed] += 1
                yield tactic

    def _channels(self, task: Task) -> Iterable[int]:
        """Channels of copies worth trying, the first that can be: as it is, then few."""
        return (0, *CHANNELS)

    def restore(self, task: Task, parameters: Mapping[str, Any]) -> Tactic:
        return super().restore(task, {"frames": 0, **parameters})  # older plans have none

    def forbids(self, task: Task, values: Mapping[str, Any]) -> str:
        pixels = values["high"] * values["wide"]
        wrong = (values["high"] > 0) != (values["wide"] > 0)
        wrong = wrong or (pixels > 0 and values["rows"] % pixels != 0)
        wrong = wrong or values["rows"] * values["columns"] > MOST_SUMS * THREADS
        framed = values["frames"] > 0
        wrong = wrong or not (framed or values["stages"] in STAGES)
        wrong = wrong or (framed and (values["wide"] != SIDE or values["high"] % SIDE != 0))
        assert task.anchor is not None
        copied = values["channels"] > 0
        wrong = wrong or (copied and framed)
        wrong = wrong or (copied and not isinstance(task.anchor.op, Convolution))
        wrong = wrong or (copied and values["channels"] < filters(task).shape[2])
        wrong = wrong or values["depth"] * task.anchor.inputs[0].dtype.size not in LINES
        return f"no tile is {dict(values)}" if wrong else ""


@dataclass(frozen=True)
class SpecializedImageFamily(SpecializedFamily):
    """The same of images whose axes lie in another order: on copies."""

    pattern: ClassVar[str] = "image"

    def _channels(self, task: Task) -> Iterable[int]:
        return CHANNELS


FAMILIES = (SpecializedFamily(),)
IMAGE_FAMILIES = (SpecializedImageFamily(),)
