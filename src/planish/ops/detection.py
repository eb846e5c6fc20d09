"""Non-maximum suppression: of boxes that overlap, only the best scored is kept.

Both ops follow TensorFlow's CPU kernels (tensorflow/core/kernels/image/non_max_suppression_op.cc),
arithmetic in float32. Boxes are given by two opposite corners, in either order. Of equal scores,
the lower index (then the lower class) comes first.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np

from planish.errors import ShapeError
from planish.graph.dims import DimLike
from planish.graph.graph import Value
from planish.graph.types import DType, TensorType
from planish.ops.base import Op, require
from planish.ops.operands import expect_count, expect_float, widen


@dataclass(frozen=True)
class CombinedNonMaxSuppression(Op):
    """Suppression per class, then the best boxes over all classes of each image.

    Inputs: boxes ``[N, boxes, 1 or classes, 4]``, scores ``[N, boxes, classes]``. Outputs, padded
    with zeros: boxes ``[N, T, 4]``, scores and classes ``[N, T]``, valid int32 ``[N]``; T is
    `max_total`, or with `pad_per_class` at most ``max_per_class * classes``. `clip_boxes` clips
    coordinates to ``0 … 1``.
    """

    max_per_class: int
    max_total: int
    iou_threshold: float
    score_threshold: float
    pad_per_class: bool
    clip_boxes: bool

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 2)
        expect_float(self, *inputs)
        boxes, scores = inputs
        expect_thresholds(self, self.iou_threshold)
        require(
            boxes.type.rank == 4 and boxes.shape[3] == 4 and scores.type.rank == 3,
            f"{self.name} needs boxes [N, boxes, 1 or classes, 4] and scores [N, boxes, classes], "
            f"not {boxes.type} and {scores.type}",
        )
        require(
            boxes.shape[:2] == scores.shape[:2] and boxes.shape[2] in (1, scores.shape[2]),
            f"{self.name}: boxes {boxes.type} and scores {scores.type} do not fit",
        )
        require(
            self.max_per_class > 0 and self.max_total > 0, f"{self.name} must keep at least one box"
        )
        batch, total = boxes.shape[0], self._total(scores.shape[2])
        return [
            TensorType((batch, total, 4), boxes.dtype),
            TensorType((batch, total), boxes.dtype),
            TensorType((batch, total), boxes.dtype),
            TensorType((batch,), DType.INT32),
        ]

    def _total(self, classes: DimLike) -> int:
        if not self.pad_per_class:
            return self.max_total
        require(isinstance(classes, int), f"{self.name} needs a known number of classes")
        return min(self.max_total, self.max_per_class * int(classes))  # type: ignore[arg-type]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        boxes, scores = (widen(a) for a in inputs)
        batch, classes = scores.shape[0], scores.shape[2]
        total = self._total(classes)
        kept_boxes = np.zeros((batch, total, 4), boxes.dtype)
        kept_scores = np.zeros((batch, total), boxes.dtype)
        kept_classes = np.zeros((batch, total), boxes.dtype)
        valid = np.zeros(batch, np.int32)
        for image in range(batch):
            index, label = self._select(boxes[image], scores[image])
            best = np.argsort(-scores[image, index, label], kind="stable")[:total]
            index, label, count = index[best], label[best], len(best)
            coordinates = boxes[image, index, label if boxes.shape[2] > 1 else 0]
            kept_boxes[image, :count] = (
                np.clip(coordinates, 0, 1) if self.clip_boxes else coordinates
            )
            kept_scores[image, :count] = scores[image, index, label]
            kept_classes[image, :count] = label
            valid[image] = count
        dtype = inputs[0].dtype
        return [
            *(a.astype(dtype, copy=False) for a in (kept_boxes, kept_scores, kept_classes)),
            valid,
        ]

    def _select(self, boxes: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Box and class of what is left of one image, class by class."""
        indices, labels = [], []
        for label in range(scores.shape[1]):
            kept, _ = suppress(
                boxes[:, label if boxes.shape[1] > 1 else 0],
                scores[:, label],
                self.max_per_class,
                self.iou_threshold,
                self.score_threshold,
            )
            indices.append(kept)
            labels.append(np.full(len(kept), label))
        return np.concatenate([np.zeros(0, int), *indices]), np.concatenate(
            [np.zeros(0, int), *labels]
        )


@dataclass(frozen=True)
class NonMaxSuppression(Op):
    """Suppression among all boxes; with `soft_sigma` > 0 scores decay instead (Soft-NMS).

    Inputs: boxes ``[boxes, 4]``, scores ``[boxes]``. Outputs, padded with zeros to
    `max_outputs`: indices int32, their scores, and how many are valid (an int32 scalar). Without
    `padded` the result's length depends on the data: it can be computed, but has no type in a
    graph. Bodla et al., "Soft-NMS", arXiv:1704.04503.
    """

    max_outputs: int
    iou_threshold: float
    score_threshold: float
    soft_sigma: float = 0.0
    padded: bool = True

    def infer(self, *inputs: Value) -> list[TensorType]:
        expect_count(self, inputs, 2)
        expect_float(self, *inputs)
        boxes, scores = inputs
        expect_thresholds(self, self.iou_threshold)
        require(
            boxes.type.rank == 2
            and boxes.shape[1] == 4
            and scores.type.rank == 1
            and boxes.shape[0] == scores.shape[0],
            f"{self.name} needs boxes [boxes, 4] and scores [boxes], not {boxes.type} and "
            f"{scores.type}",
        )
        require(self.max_outputs >= 0, f"{self.name} cannot keep {self.max_outputs} boxes")
        require(self.soft_sigma >= 0, f"{self.name} cannot have sigma {self.soft_sigma}")
        if not self.padded:
            raise ShapeError(
                f"The length of the result of {self.name} depends on the data",
                why="it is not padded to max_outputs",
                cure="ask for a padded result, and use the number of valid boxes",
            )
        return [
            TensorType((self.max_outputs,), DType.INT32),
            TensorType((self.max_outputs,), boxes.dtype),
            TensorType((), DType.INT32),
        ]

    @np.errstate(all="ignore")
    def reference(self, *inputs: np.ndarray) -> list[np.ndarray]:
        boxes, scores = (widen(a) for a in inputs)
        indices, kept = suppress(
            boxes,
            scores,
            self.max_outputs,
            self.iou_threshold,
            self.score_threshold,
            self.soft_sigma,
        )
        margin = (0, self.max_outputs - len(indices) if self.padded else 0)
        return [
            np.pad(indices, margin).astype(np.int32),
            np.pad(kept, margin).astype(inputs[0].dtype),
            np.array(len(indices), np.int32),
        ]


def suppress(
    boxes: np.ndarray,
    scores: np.ndarray,
    limit: int,
    iou_threshold: float,
    score_threshold: float,
    soft_sigma: float = 0.0,
) -> tuple[np.ndarray, np.ndarray]:
    """Greedy non-maximum suppression.

    Parameters
    ----------
    boxes : np.ndarray
        ``[boxes, 4]``, two opposite corners.
    scores : np.ndarray
        ``[boxes]``; boxes that do not score more than `score_threshold` are left out.
    limit : int
        At most how many boxes are kept.
    iou_threshold : float
        A box that overlaps a kept one more than that (intersection over union) is dropped,
        unless `soft_sigma` is positive.
    soft_sigma : float
        If positive, scores are multiplied by ``exp(-iou² / (2 sigma))`` instead.

    Returns
    -------
    indices : np.ndarray
        int64, the boxes kept, in the order they were chosen.
    scores : np.ndarray
        Their scores, decayed if soft.
    """
    kind = scores.dtype.type
    candidates = np.flatnonzero(scores > kind(score_threshold))
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    area = (high - low)[:, 0] * (high - low)[:, 1]
    if soft_sigma > 0:
        return _suppress_softly(
            low, high, area, scores, candidates, limit, score_threshold, soft_sigma
        )
    order = candidates[np.argsort(-scores[candidates], kind="stable")]
    alive = np.ones(len(order), bool)
    kept: list[int] = []
    for place, index in enumerate(order):
        if len(kept) >= limit:
            break
        if alive[place]:
            kept.append(int(index))
            rest = order[place + 1 :]
            alive[place + 1 :] &= ~(_overlap(low, high, area, index, rest) > kind(iou_threshold))
    indices = np.array(kept, np.int64)
    return indices, scores[indices]


def _suppress_softly(
    low: np.ndarray,
    high: np.ndarray,
    area: np.ndarray,
    scores: np.ndarray,
    candidates: np.ndarray,
    limit: int,
    score_threshold: float,
    sigma: float,
) -> tuple[np.ndarray, np.ndarray]:
    kind = scores.dtype.type
    scale, least = kind(-0.5) / kind(sigma), kind(score_threshold)
    # best score first, then lowest index; the last entry: kept boxes it was already compared with
    queue = [(-scores[i], int(i), 0) for i in candidates]
    heapq.heapify(queue)
    kept: list[int] = []
    kept_scores: list[np.floating] = []
    while queue and len(kept) < limit:
        negative, index, compared = heapq.heappop(queue)
        score = original = -negative
        overlaps = _overlap(low, high, area, index, np.array(kept[compared:], np.int64))
        for overlap in overlaps[::-1]:
            # in float64, and rounded once: as good C libraries give it in float32
            score = score * kind(np.exp(np.float64(scale * overlap * overlap)))
            if score <= least:
                break
        if score == original:
            kept.append(index)
            kept_scores.append(score)
        elif score > least:
            heapq.heappush(queue, (-score, index, len(kept)))
    return np.array(kept, np.int64), np.array(kept_scores, scores.dtype)


def _overlap(
    low: np.ndarray, high: np.ndarray, area: np.ndarray, one: int, others: np.ndarray
) -> np.ndarray:
    """Intersection over union of one box with others; 0 for boxes without area."""
    sides = np.minimum(high[one], high[others]) - np.maximum(low[one], low[others])
    sides = np.maximum(sides, 0)
    intersection = sides[:, 0] * sides[:, 1]
    overlap = intersection / (area[one] + area[others] - intersection)
    return np.where((area[one] > 0) & (area[others] > 0), overlap, low.dtype.type(0))


def expect_thresholds(op: Op, iou_threshold: float) -> None:
    """Raises `ShapeError` unless an overlap threshold is one."""
    require(
        0 <= iou_threshold <= 1,
        f"{op.name} needs an overlap threshold between 0 and 1, not {iou_threshold}",
    )
