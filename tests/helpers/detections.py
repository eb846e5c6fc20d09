"""Compares lists of detected objects, whose order among equals means nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LEAST_OVERLAP = 0.99
SCORE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Detection:
    """An object: its class, score, and box (ymin, xmin, ymax, xmax)."""

    label: int
    score: float
    box: tuple[float, ...]


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    height = max(min(a[2], b[2]) - max(a[0], b[0]), 0.0)
    width = max(min(a[3], b[3]) - max(a[1], b[1]), 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - height * width
    return height * width / union if union > 0 else float(tuple(a) == tuple(b))


def unmatched(found: Sequence[Detection], expected: Sequence[Detection]) -> list[Detection]:
    """The detections of either list that have no partner in the other, each used once."""
    left, missing = list(found), []
    for one in expected:
        partners = [
            other
            for other in left
            if other.label == one.label
            and abs(other.score - one.score) <= SCORE_TOLERANCE
            and overlap(other.box, one.box) >= LEAST_OVERLAP
        ]
        if partners:
            left.remove(max(partners, key=lambda other: overlap(other.box, one.box)))
        else:
            missing.append(one)
    return missing + left
