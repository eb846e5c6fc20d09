"""Levels: which integers stand for which numbers; and codes of FP8, which do likewise.

A level q of scale s and zero point z stands for ``(q - z) * s``. Activations have one scale per
tensor, which follows from its range; weights have one per output channel (`weights`). What
activations are quantized to is the target's: see `scheme_of`.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", arXiv:1712.05877, section 2.1; Wu et al., "Integer Quantization for Deep Learning
Inference", arXiv:2004.09602, section 3.

FP8 needs a scale, too, as its greatest number is 448. It is a power of two, which costs a float no
bit of its mantissa: dividing by it is exact, and layers of like scales share their kernels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from planish.graph.types import DType
from planish.ops import DecodeFloat8, Dequantize, EncodeFloat8, Op, Quantize
from planish.ops.float8 import GREATEST
from planish.targets.target import Target


@dataclass(frozen=True)
class Levels:
    """What the integers of a tensor stand for.

    Attributes
    ----------
    dtype : DType
        INT8 or UINT8.
    scale : float
        The distance of two levels; a float32 above 0.
    zero : int
        The level that stands for 0.
    factors : tuple of float
        By which `scale` is multiplied, for each channel (the last axis); empty: one scale for all.
    """

    dtype: DType
    scale: float
    zero: int
    factors: tuple[float, ...] = ()

    @property
    def scales(self) -> np.ndarray:
        """The distance of two levels: a float32, or one for each channel."""
        return (self.scale * np.asarray(self.factors or 1.0)).astype(np.float32)

    @property
    def encoder(self) -> Op:
        """What makes them of floats and `parameters`."""
        return Quantize(self.dtype, self.low, self.high)

    @property
    def decoder(self) -> Op:
        """What makes floats of them and `parameters`."""
        return Dequantize()

    @property
    def parameters(self) -> tuple[np.ndarray, ...]:
        """Scale and zero point, float32."""
        return self.scales, np.asarray(self.zero, np.float32)

    @property
    def low(self) -> int:
        """The least level."""
        return int(np.iinfo(self.dtype.numpy).min)

    @property
    def high(self) -> int:
        """The greatest level."""
        return int(np.iinfo(self.dtype.numpy).max)


@dataclass(frozen=True)
class Codes:
    """What the codes of a tensor in FP8 stand for, times `scale`: as `Levels`, which see."""

    scale: float
    dtype = DType.INT8
    zero = 0
    factors: tuple[float, ...] = ()

    @property
    def encoder(self) -> Op:
        return EncodeFloat8()

    @property
    def decoder(self) -> Op:
        return DecodeFloat8()

    @property
    def parameters(self) -> tuple[np.ndarray, ...]:
        return (np.asarray(self.scale, np.float32),)


@dataclass(frozen=True)
class Scheme:
    """How a target quantizes activations.

    Attributes
    ----------
    dtype : DType
        INT8 or UINT8.
    symmetric : bool
        Whether 0 must be level 0 (or 128), with as much room on either side.
    by_channel : bool
        Whether channels may have factors (`planish.quantization.spread`).
    attention : bool
        Whether attention may read levels (`planish.quantization.attention`).
    short : bool
        Whether weights side by side are to be small (`planish.quantization.weights`).
    """

    dtype: DType
    symmetric: bool
    by_channel: bool = False
    attention: bool = False
    short: bool = False
    is_ordered = True
    """Whether bytes are in the order of what they stand for."""

    def levels(self, least: float, greatest: float) -> Levels:
        """The levels that hold a range, which is widened to hold 0; one level is exactly 0."""
        least, greatest = min(least, 0.0), max(greatest, 0.0)
        info = np.iinfo(self.dtype.numpy)
        if self.symmetric:
            zero = (int(info.max) + int(info.min) + 1) // 2
            return Levels(self.dtype, scale_of(max(-least, greatest), int(info.max) - zero), zero)
        scale = scale_of(greatest - least, int(info.max) - int(info.min))
        zero = int(info.min) + round(-least / scale)
        return Levels(self.dtype, scale, min(max(zero, int(info.min)), int(info.max)))


class Float8Scheme:
    """Codes of FP8, on every target."""

    by_channel = attention = short = is_ordered = False

    def levels(self, least: float, greatest: float) -> Codes:
        """The codes that hold a range."""
        return Codes(float(power_scale(max(-least, greatest))))


UNSIGNED = Scheme(DType.UINT8, symmetric=False, by_channel=True)
"""All levels for the range that there is: what multiplies unsigned by signed bytes takes it."""

SYMMETRIC = Scheme(DType.INT8, symmetric=True, by_channel=True)
"""Level 0 is 0, so that padding is zeros, and sums need no correction."""


FLOAT8 = Float8Scheme()


def scheme_of(target: Target) -> Scheme:
    """The scheme of a machine."""
    own = SYMMETRIC if target.symmetric_levels else UNSIGNED
    return replace(own, attention=target.attends_to_levels, short=target.adds_short)


def scale_of(extent: float, levels: int) -> float:
    """The distance of so many levels, a float32; 1 for tensors that are 0 throughout."""
    scale = float(np.float32(extent / levels))
    return scale if scale >= float(np.finfo(np.float32).tiny) else 1.0


def power_scale(extent: float) -> np.float32:
    """The least power of two by which so large a number has a code; 1 for 0."""
    exact = extent / GREATEST
    if not exact > float(np.finfo(np.float32).tiny):
        return np.float32(1)
    return np.float32(2.0 ** math.ceil(math.log2(exact)))
