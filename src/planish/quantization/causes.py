"""Why a layer's results are off, in words, from what was measured.

A layer's own error is split in parts by where it arises: what is lost by holding its results
(values beyond the ends, rounding), and what its arithmetic loses. The largest part names the cause;
for rounding to levels, how the values are spread says why the levels are too far apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from planish.graph.graph import Node
from planish.graph.types import DType
from planish.ops import Conv, ConvTranspose, MatMul
from planish.quantization.differences import Differences
from planish.quantization.holding import Holding

ADDED = 0.01
"""A layer that makes less than this share of its error inherits it."""

NOTHING = 100.0
"""Signal to noise in dB that float32 has anyway."""

APART = 4.0
"""So much further than usual values must the range reach, to be called too wide: two bits."""

USUAL = 0.99
"""The share of values that are usual ones."""

CREST = 6.0
"""A filter's largest weight by its root mean square, above which it is called outlying."""

SPIKE = 16.0
"""A channel's largest value by its root mean square, above which it is an outlier."""

FEW_TAPS = 32
"""Weights of a filter, below which their errors hardly cancel."""


@dataclass(frozen=True)
class Work:
    """What computes a tensor.

    Attributes
    ----------
    precision : str
        As `Task.precision` says it.
    product : Node or None
        The product or convolution of the float32 model among it.
    """

    precision: str = "fp32"
    product: Node | None = None


@dataclass(frozen=True)
class Evidence:
    """What was measured about a tensor.

    Attributes
    ----------
    total : Differences
        Of what the plan gives, from the inputs on.
    own : Differences
        Of what the layer gives where its inputs are right.
    held : Holding
        Of the right results.
    work : Work
    """

    total: Differences
    own: Differences
    held: Holding
    work: Work

    @property
    def own_sqnr(self) -> float:
        """Signal to noise of the layer's own error in dB, of the whole tensor or of the middle one
        of its channels, whichever is less.
        """
        return min(self.own.sqnr, self.own.channel_sqnr)

    @property
    def inherited(self) -> float:
        """The share of the error that comes from earlier layers, of the whole tensor or in the
        middle one of its channels, whichever is less.
        """
        if self.total.broken:
            return 0.0 if self.own.broken else 1.0
        used = self.total.noise > 0
        if not used.any():
            return 0.0
        own, total = self.own.noise[used], self.total.noise[used]
        return float(1.0 - min(max(np.median(own / total), own.sum() / total.sum()), 1.0))


def cause(found: Evidence) -> str:
    """The likely cause of an error, with the numbers that speak for it."""
    own, held, form = found.own, found.held, found.held.form
    if own.broken:
        if held.beyond and not form.is_levels:
            return (
                f"overflow: {held.beyond} of {held.count} values are beyond {form.ends[1]:.5g}, "
                f"the largest that {form} holds; they reach {held.histogram.largest:.4g}"
            )
        return f"overflow inside the layer: {own.broken} of {own.count} results are infinite or NaN"
    if found.total.broken:
        return "inherited: earlier layers give infinity or NaN"
    if found.own_sqnr > NOTHING and found.total.sqnr > NOTHING:
        return "nothing but float32 rounding"
    if found.inherited > 1 - ADDED:
        return "inherited from earlier layers"
    saturation, rounding, arithmetic = _parts(found)
    largest = max(saturation, rounding, arithmetic)
    if largest == saturation:
        return _saturated(held)
    return _arithmetic(found.work, own) if largest == arithmetic else _rounded(held)


def _parts(found: Evidence) -> tuple[float, float, float]:
    """What saturation, rounding and arithmetic take of the signal: of the whole tensor where that
    has lost more than most channels, else the mean over channels, none of which can lose more than
    all of its signal.
    """
    own, held = found.own, found.held
    arithmetic = np.maximum(own.noise - held.saturation - held.rounding, 0.0)
    parts = (held.saturation, held.rounding, arithmetic)
    weights = np.ones_like(own.signal)
    if own.channel_sqnr < own.sqnr:
        whole = np.maximum(own.signal, own.noise)
        weights = np.divide(1.0, whole, out=np.zeros_like(whole), where=own.signal > 0)
    saturation, rounding, rest = (float(part @ weights) for part in parts)
    return saturation, rounding, rest


def _saturated(held: Holding) -> str:
    low, high = held.form.ends
    least, greatest = held.histogram.least, held.histogram.greatest
    return (
        f"saturated: {100 * held.beyond / held.count:.2g}% of the values are beyond the range, "
        f"which was calibrated too narrow: {_span(low, high)}, and the values are "
        f"{_span(least, greatest)}"
    )


def _rounded(held: Holding) -> str:
    form = held.form
    lost = f"{held.vanished / held.count:.1%} of the values become 0"
    if not form.is_levels:
        least = {DType.FLOAT16: "6e-8"}.get(form.dtype, "1e-40")
        if held.vanished > held.count / 100:
            return f"underflow: {lost}, being below {least}, the least that {form} holds"
        return f"rounding to {form}"
    low, high = form.ends
    largest = held.histogram.largest
    reach = max(-max(low, -largest), min(high, largest))
    if held.levels_used * APART <= 256:
        return (
            f"range wider than the data: {_span(low, high)}, of which the data use "
            f"{held.levels_used} levels; {lost}"
        )
    extents = held.extents[held.extents > 0]
    middle = float(np.median(extents))
    widest, size = held.widest
    spiked = widest > SPIKE * size
    if len(extents) > 1 and not form.factors and middle * APART <= reach and not spiked:
        return (
            f"one scale for channels of very unlike ranges: the largest reaches {reach:.4g}, half "
            f"of them no further than {middle:.4g}, which is {middle / form.scale:.0f} levels; "
            f"{lost}"
        )
    usual = held.quantile(USUAL)
    if usual * APART <= reach:  # whether in all channels or in few
        return (
            f"range too wide because of outliers: it reaches {reach:.4g}, and {USUAL:.0%} of the "
            f"values no further than {usual:.4g}, which is {usual / form.scale:.0f} levels; {lost}"
        )
    size = held.usual / form.scale
    return f"rounding to 256 levels: the root mean square of a channel is {size:.0f} of them"


def _arithmetic(work: Work, own: Differences) -> str:
    if work.precision != "int8":
        if own.vanished > own.count / 100:
            share = own.share(own.vanished)
            return f"underflow inside the layer: {share:.1%} of its results are 0 and should not be"
        return f"rounding while it computes in {work.precision}"
    text = "weights rounded to 8 bits"
    weights = _filters(work.product)
    if weights is None:
        return text
    size = np.sqrt(np.square(weights).mean(axis=0))
    crest = float(np.median(np.abs(weights).max(axis=0)[size > 0] / size[size > 0]))
    if crest >= CREST:
        return (
            f"{text}, which few large ones spread apart: the largest of a filter is {crest:.1f} "
            "times its root mean square"
        )
    if len(weights) < FEW_TAPS:
        return f"{text}, and a filter has only {len(weights)}, whose errors hardly cancel"
    return text


def _filters(product: Node | None) -> np.ndarray | None:
    """A product's constant weights, ``[taps, filters]``."""
    if product is None or not isinstance(product.op, Conv | ConvTranspose | MatMul):
        return None
    data = product.inputs[1].data
    if data is None or data.ndim < 2 or not np.any(data):
        return None
    turned = isinstance(product.op, MatMul) and product.op.transpose_b
    wide = np.swapaxes(data, -1, -2) if turned else data
    return wide.reshape(-1, wide.shape[-1]).astype(np.float64)


def _span(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g}" if math.isfinite(low + high) else "unknown"
