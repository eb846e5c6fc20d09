"""Non-maximum suppression; the kernels stand in `suppression`, `suppression_outputs` and
`suppression_soft`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from planish.fusion.task import Task
from planish.graph.graph import Value
from planish.ops.data_dependent import SelectBoxes
from planish.ops.detection import CombinedNonMaxSuppression, NonMaxSuppression
from planish.targets.base import Binding, Family, Launch, Tactic, Workspace
from planish.targets.cpu.kernels.fused import bind_values
from planish.targets.cpu.kernels.overlaps import wide_float
from planish.targets.cpu.kernels.sorting import key_bits
from planish.targets.cpu.kernels.suppression import CLASSES, SuppressKernel
from planish.targets.cpu.kernels.suppression_outputs import CombineKernel, ListKernel
from planish.targets.cpu.kernels.suppression_soft import SoftSuppressKernel, scratch_bytes

_FIRST = 256
"""Candidates that are tried first, at least."""


@dataclass(frozen=True)
class SuppressionSizes:
    """Extents of a suppression, and what memory it takes."""

    images: int
    boxes: int
    classes: int
    limit: int
    ticket: int
    """Bytes of a ticket."""
    float: int
    """Bytes of a float that is computed with."""

    @property
    def tickets(self) -> int:
        """Bytes of all tickets in the workspace, rounded up to cache lines."""
        size = self.images * self.classes * self.limit * self.ticket
        return size + -size % 64

    @property
    def workspace(self) -> int:
        return self.tickets + self.images * self.classes * self.limit * 8

    def launch(
        self,
        task: Task,
        binding: Binding,
        op: CombinedNonMaxSuppression | NonMaxSuppression | SelectBoxes,
        total: int,
    ) -> Launch:
        """The suppression within each class, where `total` boxes are wanted of an image."""
        inputs = bind_values(task.inputs, lambda v: _input_strides(v, binding))
        kernel = SuppressKernel(
            dtype=task.inputs[0].dtype,
            iou_threshold=op.iou_threshold,
            score_threshold=op.score_threshold,
            inputs=inputs.accesses,
        )
        blocks = -(-self.classes // CLASSES)
        key = self.ticket // 2
        scratch = (
            (self.boxes + 2) * CLASSES * key
            + 16 * CLASSES
            + 2 * (self.boxes + 1) * self.ticket
            + 5 * (self.limit + 16) * self.float
            + 64
        )
        return Launch(
            kernel,
            (*inputs.pointers, Workspace(0), Workspace(self.tickets)),
            (
                self.boxes,
                self.classes,
                blocks,
                self.limit,
                total,
                max(_FIRST, 2 * min(self.limit, total)),
                *inputs.params,
            ),
            tasks=self.images * blocks,
            scratch=scratch,
        )


@dataclass(frozen=True)
class CombinedSuppression(Tactic):
    """Suppression class by class in parallel, then the best of each image."""

    family: ClassVar[str] = "combined_suppression"

    def workspace(self, binding: Binding) -> int:
        return self._sizes(binding).workspace

    def launches(self, binding: Binding) -> list[Launch]:
        task, op, sizes = self.task, self._op, self._sizes(binding)
        if not sizes.images:
            return []
        total = binding.shape(task.outputs[1])[1]
        inputs = bind_values(task.inputs, lambda v: _input_strides(v, binding))

        def spread(value: Value) -> tuple[int, ...]:
            found = binding.strides(value)
            return (*found, *(0,) * (3 - len(found)))

        outputs = bind_values(task.outputs, spread)
        combine = Launch(
            CombineKernel(task.inputs[0].dtype, op.clip_boxes, inputs.accesses, outputs.accesses),
            (*inputs.pointers, Workspace(0), Workspace(sizes.tickets), *outputs.pointers),
            (sizes.classes, sizes.limit, total, *inputs.params, *outputs.params),
            tasks=sizes.images,
            scratch=2 * (2 * total + 1) * sizes.ticket,
        )
        if not sizes.classes:
            return [combine]
        return [sizes.launch(task, binding, op, total), combine]

    @property
    def _op(self) -> CombinedNonMaxSuppression:
        assert self.task.anchor is not None
        assert isinstance(self.task.anchor.op, CombinedNonMaxSuppression)
        return self.task.anchor.op

    def _sizes(self, binding: Binding) -> SuppressionSizes:
        images, boxes, classes = binding.shape(self.task.inputs[1])
        dtype = self.task.inputs[0].dtype
        # no more of a class can be kept than there are boxes, or come out than there is room for
        total = binding.shape(self.task.outputs[1])[1]
        limit = max(1, min(self._op.max_per_class, boxes, total))
        size = wide_float(dtype).size
        return SuppressionSizes(images, boxes, classes, limit, key_bits(dtype) // 4, size)


@dataclass(frozen=True)
class Suppression(Tactic):
    """Suppression of one list of boxes, hard or soft."""

    family: ClassVar[str] = "suppression"

    def workspace(self, binding: Binding) -> int:
        return 0 if self._op.soft_sigma > 0 else self._sizes(binding).workspace

    def launches(self, binding: Binding) -> list[Launch]:
        task, op, sizes = self.task, self._op, self._sizes(binding)
        dtype = task.inputs[0].dtype

        def spread(value: Value) -> tuple[int, ...]:
            return (*binding.strides(value), 0)[:1]

        outputs = bind_values(task.outputs, spread)
        if op.soft_sigma > 0:
            inputs = bind_values(task.inputs, lambda v: _input_strides(v, binding))
            kernel = SoftSuppressKernel(
                dtype, op.soft_sigma, op.score_threshold, inputs.accesses, outputs.accesses
            )
            return [
                Launch(
                    kernel,
                    (*inputs.pointers, *outputs.pointers),
                    (sizes.boxes, sizes.limit, *inputs.params, *outputs.params),
                    scratch=scratch_bytes(sizes.boxes, sizes.limit, sizes.float),
                )
            ]
        scores = bind_values(task.inputs[1:], lambda v: binding.strides(v))
        take = Launch(
            ListKernel(dtype, scores.accesses, outputs.accesses),
            (*scores.pointers, Workspace(0), Workspace(sizes.tickets), *outputs.pointers),
            (sizes.limit, *scores.params, *outputs.params),
        )
        return [sizes.launch(task, binding, op, sizes.limit), take]

    @property
    def _op(self) -> NonMaxSuppression:
        assert self.task.anchor is not None
        assert isinstance(self.task.anchor.op, NonMaxSuppression)
        return self.task.anchor.op

    def _sizes(self, binding: Binding) -> SuppressionSizes:
        (boxes,) = binding.shape(self.task.inputs[1])
        dtype = self.task.inputs[0].dtype
        size = wide_float(dtype).size
        return SuppressionSizes(1, boxes, 1, self._op.max_outputs, key_bits(dtype) // 4, size)


def _input_strides(value: Value, binding: Binding) -> tuple[int, ...]:
    """Strides along images, boxes, classes and coordinates.

    Scores are read by vectors of classes and have no coordinates; boxes are read by coordinates,
    and are the same for all classes if they have only one.
    """
    layout = binding.layout(value)
    strides = layout.strides
    if len(layout.shape) == 4:
        return (*strides[:2], 0 if layout.shape[2] == 1 else strides[2], strides[3])
    if len(layout.shape) == 3:
        return (*strides[:2], 0, strides[2])
    if len(layout.shape) == 2:
        return (0, strides[0], 0, strides[1])
    return (0, strides[0], 0, 0)


def _understood(task: Task, kind: type) -> bool:
    return task.anchor is not None and type(task.anchor.op) is kind and task.prologue is None


class CombinedSuppressionFamily(Family):
    """Combined non-maximum suppression."""

    name: ClassVar[str] = "combined_suppression"
    tactic: ClassVar[type[Tactic]] = CombinedSuppression

    def understands(self, task: Task) -> bool:
        return _understood(task, CombinedNonMaxSuppression)


class SuppressionFamily(Family):
    """Non-maximum suppression of one list of boxes."""

    name: ClassVar[str] = "suppression"
    tactic: ClassVar[type[Tactic]] = Suppression

    def understands(self, task: Task) -> bool:
        return _understood(task, NonMaxSuppression)


FAMILIES: tuple[Family, ...] = (CombinedSuppressionFamily(), SuppressionFamily())
