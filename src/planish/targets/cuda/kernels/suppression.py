"""Non-maximum suppression: per class and image, of one list, softly; three ops, which launches.

The scores of every class are ranked (`ranking`), candidates suppressed class by class
(`suppression_kernel`), and outputs made of what is left (`suppression_outputs`). Nothing is read by
the host, and launches do not depend on what the data are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from planish.fusion.task import Task
from planish.graph.graph import Value
from planish.ops.data_dependent import SelectBoxes
from planish.ops.detection import CombinedNonMaxSuppression, NonMaxSuppression
from planish.targets.anchored import AnchoredTactic
from planish.targets.base import Binding, Family, Launch, Pointer, Tactic, Workspace
from planish.targets.cuda.kernels.fused import WIDE, Access
from planish.targets.cuda.kernels.nest import Operand
from planish.targets.cuda.kernels.overlaps import Boxes
from planish.targets.cuda.kernels.ranking import Ranking, warps_for_block
from planish.targets.cuda.kernels.ranking_kernel import Ranked
from planish.targets.cuda.kernels.sorting import part_count
from planish.targets.cuda.kernels.suppression_kernel import SuppressKernel
from planish.targets.cuda.kernels.suppression_outputs import (
    CombineKernel,
    ListKernel,
    SelectionKernel,
)
from planish.targets.cuda.kernels.suppression_soft import SoftSuppressKernel
from planish.targets.restoring import Allowed

BLOCKS = (64, 128, 256, 512, 1024, 2048)
"""Elements that a program may sort."""
CANDIDATES = (16, 32, 64, 128)
"""Boxes that may be looked at at a time."""
_ALIGNMENT = 256
_OUTPUTS = 128
"""Rows of an output that are done at a time."""


@dataclass(frozen=True)
class Suppressing(AnchoredTactic):
    """Suppression, `block` scores sorted at a time, `candidates` boxes compared at a time."""

    family: ClassVar[str] = "suppression"

    block: int
    candidates: int

    def accepts(self, binding: Binding) -> bool:
        plan = self._plan(binding)
        places = plan.rows * max(plan.boxes, plan.limit)
        return places < WIDE and plan.limit > 0

    def workspace(self, binding: Binding) -> int:
        return self._plan(binding).workspace

    def launches(self, binding: Binding) -> list[Launch]:
        plan, op = self._plan(binding), self.anchor.op
        if isinstance(op, NonMaxSuppression):
            return [*plan.suppress(), plan.listed()]
        if isinstance(op, SelectBoxes):
            return [*plan.suppress(), plan.selected()]
        assert isinstance(op, CombinedNonMaxSuppression)
        return [*plan.suppress(), *plan.combined(op.clip_boxes)]

    def _plan(self, binding: Binding) -> _Plan:
        return _Plan.of(self, binding)


@dataclass(frozen=True)
class _Plan:
    """The tensors and extents of a suppression, and where things lie in the workspace.

    Attributes
    ----------
    tactic : Suppressing
    binding : Binding
    images, boxes, classes : int
    limit : int
        Boxes kept of one class of an image, at most.
    best : int
        Boxes kept of all classes of an image, at most.
    """

    tactic: Suppressing
    binding: Binding
    images: int
    boxes: int
    classes: int
    limit: int
    best: int

    @staticmethod
    def of(tactic: Suppressing, binding: Binding) -> _Plan:
        op = tactic.anchor.op
        shape = binding.shape(tactic.task.inputs[1])
        images, boxes, classes = shape if len(shape) == 3 else (1, *shape, 1)
        if isinstance(op, NonMaxSuppression):
            most, best = op.max_outputs, op.max_outputs
        elif isinstance(op, SelectBoxes):
            most, best = min(op.max_per_class, boxes), 1
        else:
            assert isinstance(op, CombinedNonMaxSuppression)
            total = binding.shape(tactic.task.outputs[1])[1]
            most = min(op.max_per_class, boxes, total)
            best = min(total, most * classes)
        return _Plan(tactic, binding, images, boxes, classes, most, best)

    @property
    def rows(self) -> int:
        """Lists of boxes that suppress one another."""
        return self.images * self.classes

    @property
    def task(self) -> Task:
        return self.tactic.task

    # ---- workspace ------------------------------------------------------------------------

    @property
    def ranking(self) -> Ranking:
        """Of the scores of every class."""
        block = self.tactic.block
        warps = warps_for_block(block)
        return Ranking(self._parts, self.rows, self.boxes, self.boxes, block, warps)

    @property
    def numbers(self) -> int:
        """Where the numbers of kept boxes stand."""
        return _aligned(self.ranking.workspace)

    @property
    def counts(self) -> int:
        """Where it stands how many there are in each row."""
        return self.numbers + _aligned(4 * self.rows * self.limit)

    def tickets(self) -> tuple[Workspace, ...]:
        """Tickets of kept boxes."""
        first = self.counts + _aligned(4 * self.rows)
        each = _aligned(8 * self.rows * self.limit)
        return tuple(Workspace(first + i * each) for i in range(self._parts))

    @property
    def best_of_images(self) -> Ranking:
        """Of the kept boxes of each image."""
        base = self.tickets()[-1].offset + _aligned(8 * self.rows * self.limit)
        length, block = self.classes * self.limit, self.tactic.block
        warps = warps_for_block(block)
        return Ranking(self._parts, self.images, length, self.best, block, warps, base)

    @property
    def workspace(self) -> int:
        """Bytes."""
        whole = self.best_of_images
        return whole.base + whole.workspace

    @property
    def _parts(self) -> int:
        return part_count(self.task.inputs[1].dtype)

    # ---- launches -------------------------------------------------------------------------

    def suppress(self) -> list[Launch]:
        """Ranks candidates and suppresses them class by class."""
        op: Any = self.tactic.anchor.op
        boxes, scores = self.task.inputs
        image, box, label = scores_access(scores, self.binding).strides
        ranked = Ranked(
            scores.dtype,
            _access(scores, self.binding, (image, label, box)),
            (-1, self.classes),
            above=op.score_threshold,
        )
        kernel = SuppressKernel(
            4, 1, boxes_of(boxes, self.binding), op.iou_threshold, self.tactic.candidates
        )
        pointers: tuple[Pointer, ...] = (
            boxes,
            *self.ranking.result,
            Workspace(self.numbers),
            Workspace(self.counts),
            *self.tickets(),
        )
        numbers = (self.boxes, self.ranking.stride, self.classes, self.limit)
        greedy = Launch(kernel, pointers, numbers, self.rows)
        return [*self.ranking.launches(ranked, (scores,)), greedy]

    def listed(self) -> Launch:
        """The outputs of `NonMaxSuppression`."""
        scores = self.task.inputs[1]
        kernel = ListKernel(
            4,
            1,
            _access(scores, self.binding),
            self._outputs(),
            _OUTPUTS,
        )
        pointers = self._given(scores, Workspace(self.numbers), Workspace(self.counts))
        return Launch(kernel, pointers, (self.limit,), -(-self.limit // _OUTPUTS))

    def selected(self) -> Launch:
        """The outputs of `SelectBoxes`."""
        kernel = SelectionKernel(4, 1, self._outputs()[0], _OUTPUTS)
        pointers = self._given(Workspace(self.numbers), Workspace(self.counts))
        return Launch(kernel, pointers, (self.classes, self.limit, self.rows), self.rows)

    def combined(self, clip: bool) -> list[Launch]:
        """The outputs of `CombinedNonMaxSuppression`."""
        boxes, scores = self.task.inputs
        ranking = self.best_of_images
        kernel = CombineKernel(
            4,
            1,
            boxes_of(boxes, self.binding),
            scores_access(scores, self.binding),
            clip,
            self._outputs(),
            _OUTPUTS,
        )
        pointers = self._given(boxes, scores, *ranking.result, Workspace(self.numbers))
        places = self.binding.shape(self.task.outputs[1])[1]
        numbers = (places, ranking.stride, self.best, self.limit, self.classes * self.limit)
        last = Launch(kernel, pointers, numbers, self.images)
        return [*ranking.launches(None, self.tickets()), last]

    def _given(self, *pointers: Pointer) -> tuple[Pointer, ...]:
        """Pointers with those of the outputs behind them."""
        return (*pointers, *self.task.outputs)

    def _outputs(self) -> tuple[Access, ...]:
        return tuple(_access(v, self.binding) for v in self.task.outputs)


@dataclass(frozen=True)
class SoftSuppression(AnchoredTactic):
    """Soft suppression, `candidates` boxes looked at at a time."""

    family: ClassVar[str] = "soft_suppression"

    candidates: int

    def accepts(self, binding: Binding) -> bool:
        return True

    def workspace(self, binding: Binding) -> int:
        return self._memory(binding)[-1]

    def launches(self, binding: Binding) -> list[Launch]:
        task, op = self.task, self.anchor.op
        assert isinstance(op, NonMaxSuppression)
        boxes, scores = task.inputs
        kernel = SoftSuppressKernel(
            4,
            1,
            boxes_of(boxes, binding),
            _access(scores, binding),
            op.soft_sigma,
            op.score_threshold,
            tuple(_access(v, binding) for v in task.outputs),
            self.candidates,
        )
        left, compared, kept, _ = (Workspace(offset) for offset in self._memory(binding))
        pointers: tuple[Pointer, ...] = (boxes, scores, left, compared, kept, *task.outputs)
        return [Launch(kernel, pointers, (binding.shape(scores)[0], op.max_outputs))]

    def _memory(self, binding: Binding) -> tuple[int, ...]:
        """Where scores, what boxes were compared with, and kept ones stand; where they end."""
        op = self.anchor.op
        assert isinstance(op, NonMaxSuppression)
        (boxes,) = binding.shape(self.task.inputs[1])
        compared = _aligned(8 * boxes)
        kept = compared + _aligned(4 * boxes)
        return 0, compared, kept, kept + _aligned(4 * op.max_outputs)


def boxes_of(value: Value, binding: Binding) -> Boxes:
    """Boxes as seen over images, boxes, classes and coordinates."""
    layout = binding.layout(value)
    if len(layout.shape) == 2:
        box, coordinate = layout.strides
        return Boxes(_access(value, binding, (0, box, 0, coordinate)))
    image, box, label, coordinate = layout.strides
    of_classes = 0 if layout.shape[2] == 1 else label
    return Boxes(_access(value, binding, (image, box, of_classes, coordinate)))


def scores_access(value: Value, binding: Binding) -> Access:
    """Scores as seen over images, boxes and classes."""
    strides = binding.strides(value)
    return _access(value, binding, strides if len(strides) == 3 else (0, *strides, 0))


def _access(value: Value, binding: Binding, strides: tuple[int, ...] | None = None) -> Access:
    whole = Operand.of(value, binding).access()
    return whole if strides is None else replace(whole, strides=strides)


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


_OPS = CombinedNonMaxSuppression | NonMaxSuppression | SelectBoxes


def _understood(task: Task, soft: bool) -> bool:
    if task.anchor is None or not isinstance(task.anchor.op, _OPS) or len(task.nodes) > 1:
        return False
    op = task.anchor.op
    return soft == (isinstance(op, NonMaxSuppression) and op.soft_sigma > 0)


class SuppressionFamily(Family):
    """Hard non-maximum suppression."""

    name: ClassVar[str] = "suppression"
    tactic: ClassVar[type[Tactic]] = Suppressing
    allowed: ClassVar[Allowed] = {"block": BLOCKS, "candidates": CANDIDATES}

    def understands(self, task: Task) -> bool:
        return _understood(task, soft=False)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        for block, candidates in ((1024, 64), (2048, 64), (1024, 32), (512, 128)):
            yield Suppressing(task, block, candidates)


class SoftSuppressionFamily(Family):
    """Soft non-maximum suppression."""

    name: ClassVar[str] = "soft_suppression"
    tactic: ClassVar[type[Tactic]] = SoftSuppression
    allowed: ClassVar[Allowed] = {"candidates": BLOCKS}

    def understands(self, task: Task) -> bool:
        return _understood(task, soft=True)

    def offered(self, task: Task, binding: Binding) -> Iterable[Tactic]:
        yield SoftSuppression(task, 1024)
        yield SoftSuppression(task, 256)


FAMILIES: tuple[Family, ...] = (SuppressionFamily(), SoftSuppressionFamily())
