"""Histograms of magnitudes that take data in any portions, in bounded memory.

The bins are equal and their range is a power of two. A magnitude past the range doubles it, and
neighbouring bins are added up: because all widths are powers of two, an element is then in the bin
where it would have been counted with the wider range from the start. So a histogram depends on the
elements alone, not on the order or the portions in which they came; there is no first pass over the
data to find the range.
"""

from __future__ import annotations

import math

import numpy as np

from planish.quantization.tally import BLOCK, TABLES, tally

BINS = 4096
"""More than half of them are in use: the greatest magnitude is in the upper half of the range."""

LOWEST = -100
"""The exponent of the smallest range; the scale to bins stays a normal float32."""

HIGHEST = 128
"""The exponent of the range that holds every float32."""

AT_ONCE = 1 << 30
"""Elements counted before the sums are taken over into 64 bits."""


class Histogram:
    """How many elements of a tensor have which magnitude, and their extremes.

    Attributes
    ----------
    counts : numpy.ndarray
        int64 [BINS]; bin i holds magnitudes from ``i * width`` to below ``(i + 1) * width``.
    least, greatest : float
        The extremes of the elements, with sign; ``inf`` and ``-inf`` before there are any.
    zeros : int
        How many elements were exactly zero; they are in the first bin.
    unfit : int
        How many elements were infinite or NaN; they are in no bin.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BINS, np.int64)
        self.exponent = LOWEST
        self.least, self.greatest = math.inf, -math.inf
        self.zeros = self.unfit = 0

    @property
    def width(self) -> float:
        """The width of a bin."""
        return math.ldexp(1.0, self.exponent) / BINS

    @property
    def total(self) -> int:
        """How many elements were counted."""
        return int(self.counts.sum())

    @property
    def largest(self) -> float:
        """The greatest magnitude; 0 if there were no elements."""
        return max(-self.least, self.greatest, 0.0)

    def used(self) -> np.ndarray:
        """The counts up to the last bin that holds something."""
        filled = np.flatnonzero(self.counts)
        return self.counts[: filled[-1] + 1 if filled.size else 0]

    def add(self, array: np.ndarray) -> None:
        """Counts the elements of a float32 array of any shape."""
        elements = np.ascontiguousarray(array, np.float32).reshape(-1)
        for start in range(0, elements.size, AT_ONCE):
            self._add(elements[start : start + AT_ONCE])

    def merge(self, other: Histogram) -> None:
        """Adds what another histogram has counted."""
        self._widen(other.exponent)
        self.counts += _coarser(other.counts, self.exponent - other.exponent)
        self.least = min(self.least, other.least)
        self.greatest = max(self.greatest, other.greatest)
        self.zeros += other.zeros
        self.unfit += other.unfit

    # ---- counting -------------------------------------------------------------------------

    def _add(self, elements: np.ndarray) -> None:
        run, lanes = tally(BINS)
        whole = elements.size - elements.size % lanes
        extremes = np.array([self.least, self.greatest], np.float32)
        table = np.zeros((TABLES, BINS), np.int32)
        done = 0
        while done < whole:
            scale = math.ldexp(BINS, -self.exponent)
            limit = math.ldexp(1.0, self.exponent) if self.exponent < HIGHEST else math.inf
            counted, zeros = run(elements[done:whole], table, extremes, scale, limit)
            done += counted
            self.zeros += zeros
            if done < whole:
                self.counts += table.sum(0)
                table[...] = 0
                done += self._overcome(elements[done : min(whole, done + BLOCK)])
        self.counts += table.sum(0)
        self.least = min(self.least, float(extremes[0]))
        self.greatest = max(self.greatest, float(extremes[1]))
        self._add_plainly(elements[whole:])

    def _overcome(self, block: np.ndarray) -> int:
        """Widens the range for a block; counts one that no range holds, and gives its size."""
        if np.isfinite(block).all():
            self._widen(_exponent(float(np.abs(block).max())))
            return 0
        self._add_plainly(block)
        return block.size

    def _add_plainly(self, elements: np.ndarray) -> None:
        """Counts a few elements, infinite ones too."""
        finite = elements[np.isfinite(elements)]
        self.unfit += elements.size - finite.size
        if not finite.size:
            return
        self.least = min(self.least, float(finite.min()))
        self.greatest = max(self.greatest, float(finite.max()))
        magnitudes = np.abs(finite)
        self.zeros += int((magnitudes == 0).sum())
        self._widen(_exponent(float(magnitudes.max())))
        scale = np.float32(math.ldexp(BINS, -self.exponent))
        self.counts += np.bincount((magnitudes * scale).astype(np.int64), minlength=BINS)

    def _widen(self, exponent: int) -> None:
        if exponent > self.exponent:
            self.counts = _coarser(self.counts, exponent - self.exponent)
            self.exponent = exponent


def _exponent(magnitude: float) -> int:
    """The exponent of the smallest range that holds a magnitude."""
    return max(math.frexp(magnitude)[1], LOWEST) if magnitude else LOWEST


def _coarser(counts: np.ndarray, doublings: int) -> np.ndarray:
    """The same counts in bins that are `doublings` times twice as wide."""
    together = 1 << min(doublings, BINS.bit_length() - 1)
    result = np.zeros_like(counts)
    result[: BINS // together] = counts.reshape(-1, together).sum(1)
    return result
