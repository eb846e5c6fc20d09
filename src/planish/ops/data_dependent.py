"""Ops that give as many elements as the data say: they give room for all, and a count.

The outputs of these ops are as large as they can become; the last output is the number of elements
that mean something, an int64 scalar. Those past it are zero, so that they are valid indices. What
makes shapes of a count is `planish.graph.graph.Graph.measure`; a `Slice` cuts off the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from planish.graph.dims import dim_min, product
from planish.graph.graph import Value
from planish.graph.types import DType, TensorType
from planish.ops.base import Op, require
from planish.ops.detection import expect_thresholds, suppress
from planish.ops.operands import expect_count, expect_float, widen


@dataclass(frozen=True)
class NonZero(Op):
    """The indices of the elements that are not zero, in row-major order.

    Input: of any dtype, at least one axis. Outputs: indices int64 ``[elements, rank]``, and how
    many there are.
    """

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        (x,) = inputs
        require(x.type.rank > 0, f"{self.name} needs a tensor of at least one axis, not {x.type}")
        rows = TensorType((product(x.shape), x.type.rank), DType.INT64)
        return [rows, TensorType((), DType.INT64)]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        (x,) = inputs
        rows = np.argwhere(x)
        padded = np.zeros((x.size, x.ndim), np.int64)
        padded[: len(rows)] = rows
        return [padded, np.array(len(rows), np.int64)]


@dataclass(frozen=True)
class SelectBoxes(Op):
    """Non-maximum suppression class by class, as ONNX defines it: which boxes are kept.

    Inputs: boxes ``[N, boxes, 1, 4]`` by two opposite corners, scores ``[N, boxes, classes]``.
    Outputs: image, class and box of each box that is kept, int64 ``[N * classes * limit, 3]``, and
    how many there are. The limit of a class is `max_per_class`, or the number of boxes if that is
    less. Order: by image, class, then as they are chosen.
    """

    max_per_class: int
    iou_threshold: float
    score_threshold: float

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 2)
        expect_float(self, *inputs)
        boxes, scores = inputs
        expect_thresholds(self, self.iou_threshold)
        require(
            boxes.type.rank == 4 and scores.type.rank == 3 and boxes.shape[2:] == (1, 4),
            f"{self.name} needs boxes [N, boxes, 1, 4] and scores [N, boxes, classes], not "
            f"{boxes.type} and {scores.type}",
        )
        require(
            boxes.shape[:2] == scores.shape[:2],
            f"{self.name}: boxes {boxes.type} and scores {scores.type} do not fit",
        )
        require(self.max_per_class >= 0, f"{self.name} cannot keep {self.max_per_class} boxes")
        images, count, classes = scores.shape
        rows = TensorType((images * classes * dim_min(count, self.max_per_class), 3), DType.INT64)
        return [rows, TensorType((), DType.INT64)]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        boxes, scores = (widen(a) for a in inputs)
        images, count, classes = scores.shape
        rows = [
            (image, label, box)
            for image in range(images)
            for label in range(classes)
            for box in suppress(
                boxes[image, :, 0],
                scores[image, :, label],
                self.max_per_class,
                self.iou_threshold,
                self.score_threshold,
            )[0]
        ]
        padded = np.zeros((images * classes * min(count, self.max_per_class), 3), np.int64)
        padded[: len(rows)] = np.array(rows, np.int64).reshape(-1, 3)
        return [padded, np.array(len(rows), np.int64)]


@dataclass(frozen=True)
class Unique(Op):
    """The distinct elements of a vector, ascending or in the order in which they first occur.

    Input ``[n]``. Outputs: the elements ``[n]``, where each occurs first, for each element of the
    input its place among the distinct ones, and how often each occurs (int64 ``[n]``), and how many
    distinct ones there are. NaNs are equal to each other here, and come last in ascending order.
    """

    sorted: bool = True

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 1)
        (x,) = inputs
        require(x.type.rank == 1, f"{self.name} needs a vector, not {x.type}")
        places = TensorType(x.shape, DType.INT64)
        return [x.type, places, places, places, TensorType((), DType.INT64)]

    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        (x,) = inputs
        distinct, first, inverse, counts = np.unique(
            widen(x), return_index=True, return_inverse=True, return_counts=True
        )
        if not self.sorted:
            order = np.argsort(first, kind="stable")
            rank = np.empty_like(order)
            rank[order] = np.arange(len(order))
            first, counts, inverse = first[order], counts[order], rank[inverse]
        number = len(distinct)

        def padded(rows: np.ndarray) -> np.ndarray:
            whole = np.zeros(x.shape, rows.dtype)
            whole[:number] = rows
            return whole

        places = [padded(a.astype(np.int64)) for a in (first, counts)]
        return [
            padded(x[first]),
            places[0],
            inverse.reshape(x.shape).astype(np.int64),
            places[1],
            np.array(number, np.int64),
        ]
