"""Sums from which follows how far a tensor is from what it should be; batch by batch."""

from __future__ import annotations

import math

import numpy as np

BLOCK = 1 << 16
"""Elements that are looked at together: they stay in the cache."""

TOLERANCE = 0.1
"""A value is off that is further than this from its reference, by the reference's magnitude."""


class Differences:
    """How far arrays are from their references, over all batches, by channel (the last axis).

    Elements that are NaN or infinite in the reference are left out. Those that are so in the array
    alone are counted and left out of the sums.

    Parameters
    ----------
    channels : int, optional
        The size of the last axis; None: the whole tensor counts as one channel.

    Attributes
    ----------
    signal, noise : array of float64, ``[channels]``
        The sums of squares of the reference, and of the differences.
    power : float
        The sum of squares of the arrays.
    count, off, vanished, broken : int
        Elements; how many are off by more than `TOLERANCE`; zero though the reference is not; NaN
        or infinite.
    largest : float
        The largest difference.
    scale : float
        The largest magnitude of the reference.
    """

    def __init__(self, channels: int | None = None) -> None:
        self._channels = channels or 1
        self.signal = np.zeros(self._channels)
        self.noise = np.zeros(self._channels)
        self.power = self.largest = self.scale = 0.0
        self.count = self.off = self.vanished = self.broken = 0

    def add(self, reference: np.ndarray, actual: np.ndarray) -> None:
        """Adds arrays of one shape, of any floating-point dtype."""
        columns = self._channels
        wanted, have = reference.reshape(-1, columns), actual.reshape(-1, columns)
        rows = max(BLOCK // columns, 1)
        for at in range(0, len(wanted), rows):
            self._add(wanted[at : at + rows], have[at : at + rows])

    def _add(self, wanted: np.ndarray, have: np.ndarray) -> None:
        a, b = wanted.astype(np.float64), have.astype(np.float64)
        with np.errstate(all="ignore"):
            difference = b - a
            if not math.isfinite(float(difference.sum())):
                known, finite = np.isfinite(a), np.isfinite(a) & np.isfinite(b)
                self.count += int(known.sum()) - a.size
                self.broken += int((known & ~finite).sum())
                a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
                difference = b - a
        magnitude, error = np.abs(a), np.abs(difference)
        self.count += a.size
        self.signal += np.einsum("rc,rc->c", a, a)
        self.noise += np.einsum("rc,rc->c", difference, difference)
        self.power += float(np.einsum("rc,rc->", b, b))
        self.off += int(np.count_nonzero(error > TOLERANCE * magnitude))
        self.vanished += int(np.count_nonzero((b == 0) & (a != 0)))
        self.largest = max(self.largest, float(error.max(initial=0.0)))
        self.scale = max(self.scale, float(magnitude.max(initial=0.0)))

    # ---- what follows ---------------------------------------------------------------------

    @property
    def sqnr(self) -> float:
        """Signal to noise of the whole tensor in dB; infinite without noise, -inf if it is broken.

        What is broken has no finite square.
        """
        return -math.inf if self.broken else decibels(self.signal.sum(), self.noise.sum())

    @property
    def channel_sqnr(self) -> float:
        """Signal to noise of the middle one of all channels that are not zero, in dB.

        A few large channels, or a few that are nearly zero, have no say in it.
        """
        if self.broken:
            return -math.inf
        used = self.signal > 0
        if not used.any():
            return self.sqnr
        with np.errstate(divide="ignore"):
            ratios = self.signal[used] / self.noise[used]
        return decibels(float(np.median(ratios)), 1.0)

    @property
    def cosine(self) -> float:
        """Of the angle between arrays and references as vectors; 1 for two vectors of zeros."""
        signal, noise = float(self.signal.sum()), float(self.noise.sum())
        lengths = math.sqrt(signal) * math.sqrt(self.power)
        if not lengths:
            return 1.0 if signal == self.power else 0.0
        apart = noise - (math.sqrt(signal) - math.sqrt(self.power)) ** 2
        return 1.0 - max(apart, 0.0) / (2 * lengths)

    @property
    def relative(self) -> float:
        """The largest difference by the largest magnitude; infinite if it is broken."""
        return math.inf if self.broken else self.largest / (self.scale or 1.0)

    def share(self, number: int) -> float:
        """A number of elements as a share of all."""
        return number / self.count if self.count else 0.0


def decibels(signal: float, noise: float) -> float:
    """Ten times the logarithm of a ratio of squares; infinite without noise."""
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf
