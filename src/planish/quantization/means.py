"""Mean and extremes of each channel of a tensor, batch by batch; for `weights` and `spread`."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from planish.graph.graph import Graph, Value
from planish.graph.types import DType
from planish.precision.kinds import Kind, kind_of

DIGITS = 5
"""Digits of what is kept of a channel: enough to correct a bias by, and the order of batches does
not show.
"""


def averaged(graph: Graph) -> Iterable[Value]:
    """The tensors whose channels are looked at: float32, read by a product, of a known width."""
    read = (node.inputs[0] for node in graph.nodes if kind_of(node) is Kind.PRODUCT)
    return (
        v for v in dict.fromkeys(read) if v.dtype is DType.FLOAT32 and isinstance(v.shape[-1], int)
    )


class Means:
    """Means and extremes over all axes but the last one."""

    def __init__(self) -> None:
        self._sum: np.ndarray | float = 0.0
        self._least: np.ndarray | float = math.inf
        self._greatest: np.ndarray | float = -math.inf
        self._count = 0

    def add(self, array: np.ndarray) -> None:
        """Adds a batch ``[..., channels]``."""
        rows = array.reshape(-1, array.shape[-1])
        self._sum = self._sum + rows.sum(axis=0, dtype=np.float64)
        self._least = np.minimum(self._least, rows.min(axis=0, initial=math.inf))
        self._greatest = np.maximum(self._greatest, rows.max(axis=0, initial=-math.inf))
        self._count += len(rows)

    def rounded(self) -> tuple[float, ...]:
        """The means so far, of which there must be some."""
        means = np.atleast_1d(self._sum / max(self._count, 1))
        return tuple(map(_rounded, means))

    def extremes(self) -> tuple[tuple[float, float], ...]:
        """The least and the greatest number of each channel so far."""
        both = np.atleast_1d(self._least), np.atleast_1d(self._greatest)
        return tuple((_rounded(a), _rounded(b)) for a, b in zip(*both, strict=True))


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS - 1}e}")
