"""Where values leave the range of halves, or need more digits than these have: a forward analysis.

Halves of 16 bits hold 65504 at most (float16), lose what is below 6e-5 bit by bit, and tell whole
numbers apart up to 2048 (bfloat16: 256). A `Need` is noted where such a value arises, and follows
it through elementwise ops until one makes it harmless:

    variance + 1e-12  ──▶  rsqrt  ──▶  mul with x  ──▶  any
         SMALL            INVERSE       (harmless)
"""

from __future__ import annotations

from enum import Flag, auto

import numpy as np

from planish.graph.graph import Node
from planish.graph.types import DType
from planish.ops import Cast, Clip, ew
from planish.precision.kinds import BOUNDED, Kind, kind_of

LARGEST = {DType.FLOAT16: 65504.0, DType.BFLOAT16: 2.0**127 * (2 - 2.0**-7)}
"""The largest finite number of a dtype."""

SMALLEST = {DType.FLOAT16: 2.0**-14, DType.BFLOAT16: 2.0**-126}
"""The smallest number that a dtype holds with all its digits."""


class Need(Flag):
    """Why a value needs float32."""

    NONE = 0
    EXACT = auto()
    """Coordinates, counts, ids: neighbours must stay apart."""
    SMALL = auto()
    """Near zero, where that matters: an epsilon."""
    INVERSE = auto()
    """The inverse of something that needs float32; times that thing it is of the order of 1."""
    WIDE = auto()
    """Powers and sums, which may leave the range."""
    HUGE = auto()
    """Derived from a constant outside the range."""


REASONS = {
    Need.HUGE: "its input may be larger than {dtype} holds",
    Need.WIDE: "its input is a sum or power that may be larger than {dtype} holds",
    Need.SMALL: "its input may be too small for {dtype}",
    Need.INVERSE: "its input may be larger than {dtype} holds",
    Need.EXACT: "its input is a count or coordinate",
}
"""Why a node whose input has a need stays in float32."""


def reason(need: Need, dtype: DType) -> str:
    """The reason of the first need."""
    text = next(text for one, text in REASONS.items() if one & need)
    return text.format(dtype=dtype.numpy.name)


def constant_need(data: np.ndarray, dtype: DType, digits: bool) -> tuple[Need, str]:
    """What a float32 constant needs that `dtype` does not have, and why.

    Parameters
    ----------
    data : numpy.ndarray
        Any shape; infinities and NaN are the same in every dtype and do not count.
    dtype : DType
        FLOAT16 or BFLOAT16.
    digits : bool
        Whether lists of whole numbers must stay what they are.
    """
    if not data.size:
        return Need.NONE, ""
    with np.errstate(all="ignore"):
        magnitude = np.abs(data)
        largest = float(np.max(magnitude, where=np.isfinite(magnitude), initial=0.0))
        if np.isinf(np.float32(largest).astype(dtype.numpy)):
            return Need.HUGE, f"its constant {largest:.4g} overflows {dtype.numpy.name}"
        if 0 < largest < SMALLEST[dtype]:
            return Need.SMALL, f"its constant {largest:.4g} is too small for {dtype.numpy.name}"
        whole = digits and data.size > 1 and np.all(data == np.rint(data))
        if whole and np.any(data.astype(dtype.numpy).astype(data.dtype) != data):
            return Need.EXACT, f"{dtype.numpy.name} does not tell its coordinates apart"
    return Need.NONE, ""


def passed_on(node: Node, needs: list[Need]) -> Need:
    """What the results of a node need, from the needs of its inputs (constants have none)."""
    every = Need.NONE
    for need in needs:
        every |= need
    kind = kind_of(node)
    if kind in (Kind.MOVE, Kind.WINDOW):
        return every
    return _pointwise(node, needs, every) if kind is Kind.POINT else Need.NONE


def _pointwise(node: Node, needs: list[Need], every: Need) -> Need:
    op = node.op
    if isinstance(op, Cast):
        source = node.inputs[0].dtype
        return every | (Need.EXACT if source.is_integer and source.size > 1 else Need.NONE)
    if not every:
        return every
    large = Need.WIDE | Need.HUGE | Need.INVERSE
    if isinstance(op, BOUNDED):
        return Need.NONE
    if isinstance(op, Clip):
        inside = max(abs(op.low), abs(op.high)) <= LARGEST[DType.FLOAT16]
        return every & ~large if inside else every
    if isinstance(op, ew.Log | ew.Log1p):
        return every & Need.EXACT
    if isinstance(op, ew.Sqrt):
        return every & ~(Need.WIDE | Need.HUGE)
    if isinstance(op, ew.Rsqrt | ew.Reciprocal):
        turned = Need.INVERSE if every & (large | Need.SMALL) else Need.NONE
        return (every & Need.EXACT) | turned
    if isinstance(op, ew.Div):
        return _divided(*needs)
    if isinstance(op, ew.Mul):
        return _multiplied(node, *needs)
    return every


def _divided(above: Need, below: Need) -> Need:
    result = above & (Need.EXACT | Need.HUGE)
    if not below:
        result |= above
    return result | (Need.SMALL if below & Need.HUGE else Need.NONE)


def _multiplied(node: Node, a: Need, b: Need) -> Need:
    result = a | b
    if result & Need.INVERSE and node.inputs[0] is not node.inputs[1]:
        result &= Need.EXACT | Need.HUGE
    scaled = not any(v.is_constant for v in node.inputs)
    if scaled and bool(a & Need.EXACT) != bool(b & Need.EXACT):
        result &= ~Need.EXACT  # features under a mask are no coordinates
    return result
