"""Finds the layers whose values overflow: those to keep in FP32 by `layer_precision`.

The graph is run by the references of its ops, on inputs that the user thinks typical. A layer is to
blame if what it gives is out of range, and nothing that it reads is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planish.graph.graph import Graph, Node
from planish.graph.interpret import interpret
from planish.graph.types import DType
from planish.precision.ranges import LARGEST


@dataclass(frozen=True)
class Overflow:
    """A layer whose values leave the range of its dtype.

    Attributes
    ----------
    layer, origin, op : str
        The node, the user's ops in it, and the kind of op.
    dtype : DType
        The dtype that does not hold its values.
    largest : float
        The largest magnitude among those that are finite.
    overflowed, nan : int
        How many elements are too large or infinite, and how many are NaN.
    elements : int
        Of how many.
    """

    layer: str
    origin: str
    op: str
    dtype: DType
    largest: float
    overflowed: int
    nan: int
    elements: int

    def __str__(self) -> str:
        parts = [f"{self.overflowed} overflow"] if self.overflowed else []
        parts += [f"{self.nan} are NaN"] if self.nan else []
        return (
            f"{self.origin or self.layer}: of {self.elements} values of {self.dtype.numpy.name} "
            f"{' and '.join(parts)}; the largest finite one is {self.largest:.4g}"
        )


def find_overflows(
    graph: Graph, inputs: Mapping[str, np.ndarray], dtype: DType | None = None
) -> list[Overflow]:
    """The layers at which values leave the range, in the order in which they run.

    Parameters
    ----------
    graph : Graph
        An engine's graph (``engine.plan.graph``), or any other.
    inputs : mapping of str to numpy.ndarray
        An array for every input of the graph.
    dtype : DType, optional
        FLOAT16 or BFLOAT16: tells of float32 values too that this dtype would not hold, before
        anything is lowered; None: every value is judged by its own dtype.

    Raises
    ------
    InputError, ShapeError
        The inputs do not fit the graph.
    """
    found: list[Overflow] = []

    def judge(node: Node, given: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> None:
        if any(_out_of_range(a, dtype) is not None for a in given):
            return
        for array in results:
            counts = _out_of_range(array, dtype)
            if counts is not None:
                overflowed, nan, largest = counts
                kind = _judged_by(array, dtype)
                found.append(
                    Overflow(
                        node.name,
                        node.origin,
                        node.op.name,
                        kind,
                        largest,
                        overflowed,
                        nan,
                        array.size,
                    )
                )
                return

    interpret(graph, inputs, judge)
    return found


def _judged_by(array: np.ndarray, dtype: DType | None) -> DType:
    own = DType.of(array.dtype)
    return dtype if dtype is not None and own is DType.FLOAT32 else own


def _out_of_range(array: np.ndarray, dtype: DType | None) -> tuple[int, int, float] | None:
    """How many elements are too large, how many NaN, and the largest finite; None if none is."""
    kind = _judged_by(array, dtype)
    if not kind.is_float or not array.size:
        return None
    with np.errstate(all="ignore"):
        magnitude = np.abs(array.astype(np.float32) if array.dtype.itemsize == 2 else array)
        limit = LARGEST.get(kind, np.inf)
        too_large = (magnitude > limit) | np.isinf(magnitude)
        nan = np.isnan(magnitude)
        if not (too_large.any() or nan.any()):
            return None
        finite = np.isfinite(magnitude)
        largest = float(np.max(magnitude, where=finite, initial=0.0))
    return int(too_large.sum()), int(nan.sum()), largest
