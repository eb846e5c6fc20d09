"""Levels: which integers stand for which numbers.

A level q of scale s and zero point z stands for ``(q - z) * s``. Activations have one scale per
tensor, which follows from its range; weights have one per output channel (`weights`). What
activations are quantized to is the target's: see `scheme_of`.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", arXiv:1712.05877, section 2.1; Wu et al., "Integer Quantization for Deep Learning
Inference", arXiv:2004.09602, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from planish.graph.types import DType
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
    def low(self) -> int:
        """The least level."""
        return int(np.iinfo(self.dtype.numpy).min)

    @property
    def high(self) -> int:
        """The greatest level."""
        return int(np.iinfo(self.dtype.numpy).max)


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
    """

    dtype: DType
    symmetric: bool
    by_channel: bool = False
    attention: bool = False

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


UNSIGNED = Scheme(DType.UINT8, symmetric=False, by_channel=True)
"""All levels for the range that there is: what multiplies unsigned by signed bytes takes it."""

SYMMETRIC = Scheme(DType.INT8, symmetric=True, by_channel=True)
"""Level 0 is 0, so that padding is zeros, and sums need no correction."""


def scheme_of(target: Target) -> Scheme:
    """The scheme of a machine."""
    own = SYMMETRIC if target.symmetric_levels else UNSIGNED
    return replace(own, attention=target.attends_to_levels)


def scale_of(extent: float, levels: int) -> float:
    """The distance of so many levels, a float32; 1 for tensors that are 0 throughout."""
    scale = float(np.float32(extent / levels))
    return scale if scale >= float(np.finfo(np.float32).tiny) else 1.0
