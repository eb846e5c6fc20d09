"""Factors of channels: levels of a tensor whose channels reach unlike far.

With one scale for the whole tensor a channel that reaches a hundredth of the largest one has three
levels. So a level q of channel c may stand for ``(q - z) * s * v[c]``. A product takes v into its
weights, by the row of a matrix or the depth of a filter; everything else multiplies channels by
vectors in any case. It costs no time. What it costs is in the weights: rows with large factors
leave the others fewer of an output channel's levels; except in depthwise layers, where an output
channel is an input channel. ``v = (a / max(a)) ** alpha`` with a the reach of each channel weighs
one against the other; alpha is chosen by an estimate of the error in what reads the tensor.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", arXiv:2211.10438, section 4, where the factors go into the layer before and alpha is given.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.graph.graph import Node, Value
from planish.ops import Conv, Identity, MatMul, MaxPool
from planish.quantization.ranges import Ranges

EXPONENTS = (0.25, 0.5, 0.75, 1.0)
"""What alpha is chosen from, beside 0."""

WORTH = 0.7
"""Factors are used where they take the error to less than so much of what it is without. One range
by a calibrator may cut what is rare, which the estimate does not know.
"""

LEAST = 1e-4
"""The reach of channels of nothing but zeros, by that of the largest channel."""

CREST = 4.0
"""How far a channel reaches by its root mean square, roughly; a normal distribution's 4."""

_MOVES = (Identity, MaxPool)
"""Ops whose results have the channels of what they read."""


def channel_factors(
    group: Sequence[Value], products: Sequence[Node], ranges: Ranges
) -> tuple[np.ndarray, float, float] | None:
    """Factors of the channels of tensors that share levels, where they are worth it.

    Parameters
    ----------
    group : sequence of Value
    products : sequence of Node
        What is quantized.
    ranges : Ranges

    Returns
    -------
    factors : array, ``[channels]``
        At most 1, and 1 for the channel that reaches furthest.
    least, greatest : float
        The range of the values divided by the factors.
    """
    known = [ranges.extremes.get(v.name) for v in group]
    channels = group[0].shape[-1]
    if not isinstance(channels, int) or any(v.shape[-1] != channels for v in group):
        return None
    if any(extremes is None or len(extremes) != channels for extremes in known):
        return None
    own = set(group)
    readers = [n for n in products if n.inputs[0] in own]
    moves = {u for v in group for u in v.users if u.outputs[0] in own}
    if not readers or not all(isinstance(node.op, _MOVES) for node in moves):
        return None
    limits = np.array(known, np.float64)
    low, high = np.minimum(limits[..., 0].min(0), 0), np.maximum(limits[..., 1].max(0), 0)
    reach = np.maximum(-low, high)
    if not reach.any():
        return None
    reach = np.maximum(reach / reach.max(), LEAST)

    def scaled(alpha: float) -> tuple[np.ndarray, float, float]:
        factors = reach**alpha
        return factors, float((low / factors).min()), float((high / factors).max())

    def error(alpha: float) -> float:
        factors, least, greatest = scaled(alpha)
        step = (greatest - least) / reach_of_all / 255
        return sum(_error(node, reach, factors, step) for node in readers)

    reach_of_all = float(np.maximum(-low, high).max())
    errors = {alpha: error(alpha) for alpha in EXPONENTS}
    best = min(errors, key=lambda alpha: errors[alpha])
    return scaled(best) if errors[best] < WORTH * error(0.0) else None


def factors_of_weights(factors: np.ndarray, shape: Sequence[int], groups: int) -> np.ndarray:
    """Factors of a product's input as those of its weights ``[*window, C / groups, K]``."""
    depth, filters = shape[-2:]
    wide = np.repeat(factors.reshape(groups, depth).T, filters // groups, axis=1)
    return wide.reshape(depth, filters)


def matrix_of(node: Node) -> tuple[np.ndarray, int]:
    """A product's weights, ``[*window, C / groups, K]``, and its groups."""
    op, data = node.op, node.inputs[1].data
    assert data is not None
    if isinstance(op, MatMul):
        return np.swapaxes(data, -1, -2) if op.transpose_b else data, 1
    assert isinstance(op, Conv)
    return data, op.groups


def _error(node: Node, reach: np.ndarray, factors: np.ndarray, step: float) -> float:
    """Squared error by signal of a product's results; reach and step by the largest channel's."""
    data, groups = matrix_of(node)
    weights = data.reshape(-1, *data.shape[-2:]).astype(np.float64)
    wide = factors_of_weights(factors, data.shape, groups)
    extent = factors_of_weights(reach, data.shape, groups)
    scaled = np.abs(weights * wide).max(axis=(0, 1)) / 127
    by_rounding = np.square(step * wide) * np.square(weights).sum(0)
    by_weights = len(weights) * np.square(scaled * extent / wide / CREST)
    signal = np.square(extent / CREST) * np.square(weights).sum(0)
    total = float(signal.sum())
    return float((by_rounding.sum() + by_weights.sum()) / 12) / total if total else 0.0
