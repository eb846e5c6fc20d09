"""Tactics of `opening_kernel`: two convolutions of an image and the pooling behind them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import numpy as np

from planish.fusion.openings import opening_of
from planish.fusion.task import Task, make_task
from planish.graph.types import DType
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Constant, Launch, Pointer, Tactic, Workspace
from planish.targets.cuda.kernels.family import MachineFamily
from planish.targets.cuda.kernels.fused import WIDE, Work, bind_work
from planish.targets.cuda.kernels.matrix_image import ImageKernel, filters_on_copy
from planish.targets.cuda.kernels.matrix_problem import Problem, problem_of
from planish.targets.cuda.kernels.matrix_tile import ceil
from planish.targets.cuda.kernels.opening_kernel import CHANNELS, PADS, RUN, OpeningKernel
from planish.targets.cuda.machine import H200, CudaMachine
from planish.targets.restoring import Allowed

DTYPES = (DType.FLOAT16, DType.BFLOAT16)
WIDTHS = (32, 64, 128)
"""Neighbouring pixels of a tile."""
ROWS = 128
"""Pixels of a tile, of some images."""
HEIGHTS = (8, 14, 28, 56)
STAGES = (2, 3)
COUNTS = (16, 32, 64)
"""Channels that the convolutions may give: their weights stay in shared memory."""


class Parts(NamedTuple):
    """The first convolution as a problem, and what happens to both results.

    `given` and `written` are what the works' pointers point to.
    """

    problem: Problem
    between: Work
    given: tuple[Pointer, ...]
    result: Work
    written: tuple[Pointer, ...]

    @property
    def size(self) -> tuple[int, int, int]:
        """Images, and rows and columns of each."""
        _, rows, columns = self.problem.axes
        return self.problem.rows // (rows * columns), rows, columns

    @property
    def copied(self) -> tuple[int, int]:
        """Rows and columns of an image's copy."""
        _, rows, columns = self.size
        more = RUN // CHANNELS + PADS[1] - 1
        return rows + 2 * PADS[0], columns + more + -(columns + more) % 4

    @property
    def places(self) -> int:
        """Pixels of all copies."""
        return self.size[0] * self.copied[0] * self.copied[1]

    @property
    def bytes(self) -> int:
        """Of all copies."""
        return self.places * CHANNELS * self.problem.dtype.size

    @property
    def copy(self) -> ImageKernel:
        """The kernel that copies."""
        return ImageKernel(
            warps=4,
            stages=1,
            image=self.problem.left,
            size=(*self.size[1:], self.problem.channels),
            copy=(*self.copied, CHANNELS),
            pads=PADS,
            dtype=self.problem.dtype,
        )


def parts_of(task: Task, binding: Binding) -> Parts | None:
    """The parts of a task; None if the kernel cannot compute it."""
    return binding.derived(_parts, task)


def _parts(task: Task, binding: Binding) -> Parts | None:
    if not _understood(task):
        return None
    found = opening_of(task.nodes)
    assert found is not None
    first = make_task([*found.before, found.first, *found.between], found.first)
    problem = problem_of(first, binding)
    if problem is None:
        return None
    shape = binding.shape(task.output)
    result, _, written = bind_work(
        task, task.epilogue, task.outputs, binding, shape, (len(shape) - 1,)
    )
    between = replace(problem.result, outputs=())
    parts = Parts(problem, between, problem.result_values[:-1], result, written)
    return parts if parts.places * CHANNELS < WIDE else None


def _understood(task: Task) -> bool:
    if task.opening is None or task.anchor is None:
        return False
    filters = [task.inputs[task.opening.filters], task.anchor.inputs[1]]
    values = [task.anchor.inputs[0], task.output, *filters]
    counts = {v.type.bind({})[-1] for v in filters}
    return counts <= set(COUNTS) and {v.dtype for v in values} <= {values[0].dtype} <= set(DTYPES)


@dataclass(frozen=True)
class OpeningTactic(AnchoredTactic):
    """So many neighbouring pixels of each image, and rows of the second result a program."""

    family: ClassVar[str] = "opening"

    width: int
    height: int
    stages: int
    machine: CudaMachine = field(default=H200, compare=False)

    def accepts(self, binding: Binding) -> bool:
        return parts_of(self.task, binding) is not None

    def constants(self) -> list[np.ndarray]:
        assert self.task.opening is not None
        first, second = self.task.inputs[self.task.opening.filters].data, self.anchor.inputs[1].data
        assert first is not None and second is not None
        small = filters_on_copy(first, CHANNELS, (1, 1), 0)
        rows, taps, channels, count = small.shape
        small = np.pad(small, ((0, 0), (0, RUN // channels - taps), (0, 0), (0, 0)))
        return [
            np.ascontiguousarray(small.reshape(rows * RUN, count).T),
            np.ascontiguousarray(second.transpose(0, 1, 3, 2)),
        ]

    def launches(self, binding: Binding) -> list[Launch]:
        parts = parts_of(self.task, binding)
        assert parts is not None, "the tactic accepts the binding"
        problem, copy = parts.problem, parts.copy
        images, *size = parts.size
        rows, columns = parts.copied
        kernel = OpeningKernel(
            8,
            self.stages,
            images=ROWS // self.width,
            width=self.width,
            height=self.height,
            dtype=problem.dtype,
            size=(size[0], size[1]),
            pitches=(rows * columns * CHANNELS, columns * CHANNELS),
            middle=problem.columns,
            columns=self.anchor.output.type.bind(binding.symbols)[-1],
            between=parts.between,
            result=parts.result,
        )
        copied: tuple[Pointer, ...] = (*problem.left_values, Workspace())
        down, across = kernel.programs
        pointers: tuple[Pointer, ...] = (
            Workspace(),
            Constant(0),
            *parts.given,
            Constant(1),
            *parts.written,
        )
        tasks = ceil(images, kernel.images) * down * across
        return [
            Launch(copy, copied, (parts.places,), ceil(parts.places, copy.pixels)),
            Launch(kernel, pointers, (images,), tasks),
        ]

    def workspace(self, binding: Binding) -> int:
        parts = parts_of(self.task, binding)
        assert parts is not None, "the tactic accepts the binding"
        return parts.bytes


@dataclass(frozen=True)
class OpeningFamily(MachineFamily):
    """Openings of halves, for this or another machine."""

    name: ClassVar[str] = "opening"
    pattern: ClassVar[str] = "opening"
    tactic: ClassVar[type[Tactic]] = OpeningTactic
    allowed: ClassVar[Allowed] = {"width": WIDTHS, "height": HEIGHTS, "stages": STAGES}

    def understands(self, task: Task) -> bool:
        return _understood(task)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        parts = parts_of(task, binding)
        if parts is None:
            return
        images, down, across = parts.size
        widths = [w for w in WIDTHS if ROWS // w < 2 * images]
        width = min(widths, key=lambda w: (ceil(across, w) * w, w), default=WIDTHS[-1])
        heights = [h for h in HEIGHTS if h <= down + 1] or [HEIGHTS[0]]

        def programs(height: int) -> int:
            return ceil(images, ROWS // width) * ceil(across, width) * ceil(down, height)

        # a strip's first two rows are computed by two programs: long ones, if all have work
        busy = [h for h in heights if programs(h) >= self.machine.multiprocessors]
        for height in (*reversed(busy[-2:]), *(h for h in heights[:1] if h not in busy)):
            for stages in reversed(STAGES):
                yield OpeningTactic(task, width, height, stages, self.machine)


FAMILIES = (OpeningFamily(),)
