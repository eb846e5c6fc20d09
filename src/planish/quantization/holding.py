"""What is lost of a tensor's exact values by the way they are held, and how these are spread."""

from __future__ import annotations

import numpy as np

from planish.quantization.differences import BLOCK
from planish.quantization.forms import Form
from planish.quantization.histogram import Histogram


class Holding:
    """Losses of holding values in a form, over all batches, by channel (the last axis).

    Values that are NaN or infinite are left out.

    Parameters
    ----------
    form : Form
    channels : int, optional
        The size of the last axis; None: the whole tensor counts as one channel.

    Attributes
    ----------
    saturation, rounding : array of float64, ``[channels]``
        Sums of squares of what is lost of values beyond the form's ends, and of all others.
    signal, extents : array of float64, ``[channels]``
        The sums of squares of the values, and the largest magnitudes.
    count, beyond, vanished : int
        Values; those beyond the ends; those that are held as zero and are not.
    histogram : Histogram
    """

    def __init__(self, form: Form, channels: int | None = None) -> None:
        self.form = form
        self._channels = channels or 1
        self.saturation = np.zeros(self._channels)
        self.rounding = np.zeros(self._channels)
        self.signal, self.extents = np.zeros((2, self._channels))
        self.count = self.beyond = self.vanished = 0
        self.histogram = Histogram()

    def add(self, values: np.ndarray, held: np.ndarray) -> None:
        """Adds exact values, and what they are held as, both float32."""
        self.histogram.add(values)
        columns = self._channels
        exact, kept = values.reshape(-1, columns), held.reshape(-1, columns)
        rows = max(BLOCK // columns, 1)
        for at in range(0, len(exact), rows):
            self._add(exact[at : at + rows], kept[at : at + rows])

    def _add(self, exact: np.ndarray, kept: np.ndarray) -> None:
        finite = np.isfinite(exact)
        low, high = self.form.ends
        slack = self.form.slack
        a = np.where(finite, exact, 0.0).astype(np.float64)
        self.count += int(finite.sum())
        self.signal += np.einsum("rc,rc->c", a, a)
        self.extents = np.maximum(self.extents, np.abs(a).max(axis=0, initial=0.0))
        if self.form.is_exact:
            return
        widths = self.form.widths
        beyond = (a > widths * (high + slack)) | (a < widths * (low - slack))
        with np.errstate(invalid="ignore"):
            lost = np.where(finite & np.isfinite(kept), kept - a, 0.0)
        self.beyond += int(np.count_nonzero(beyond))
        self.vanished += int(np.count_nonzero((kept == 0) & (a != 0)))
        outside = np.where(beyond, lost, 0.0)
        inside = lost - outside
        self.saturation += np.einsum("rc,rc->c", outside, outside)
        self.rounding += np.einsum("rc,rc->c", inside, inside)

    def quantile(self, share: float) -> float:
        """The magnitude that so large a share of the values does not exceed, to the bin."""
        counts = self.histogram.used()
        if not counts.size:
            return 0.0
        place = int(np.searchsorted(np.cumsum(counts), share * counts.sum()))
        return min((place + 1) * self.histogram.width, self.histogram.largest)

    @property
    def levels_used(self) -> int:
        """How many levels the data can reach."""
        low, high = self.form.ends
        span = min(self.histogram.greatest, high) - max(self.histogram.least, low)
        return round(span / self.form.scale) + 1 if span > 0 else 1

    @property
    def usual(self) -> float:
        """The root mean square of the middle one of all channels that are not zero."""
        used = self.signal[self.signal > 0]
        rows = max(self.count / self._channels, 1.0)
        return float(np.sqrt(np.median(used) / rows)) if used.size else 0.0

    @property
    def widest(self) -> tuple[float, float]:
        """The largest magnitude of all channels, and that channel's root mean square."""
        place = int(np.argmax(self.extents))
        rows = max(self.count / self._channels, 1.0)
        return float(self.extents[place]), float(np.sqrt(self.signal[place] / rows))
