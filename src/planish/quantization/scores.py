"""Metrics that are means over samples, and how surely they tell two engines apart.

The same samples run in FP32 and in INT8, so what is compared are pairs: most samples score the same
in both, and the few that do not say both how much is lost and how far chance has a hand in it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


class Scores(float):
    """A metric that is the mean of a score for each sample: a number, which knows its samples.

    Parameters
    ----------
    samples : array_like of float, ``[N]``
        In the metric's unit, larger is better: 0 or 100 for an accuracy in percent.

    Attributes
    ----------
    samples : ndarray of float64, ``[N]``
    """

    samples: np.ndarray

    def __new__(cls, samples: Sequence[float] | np.ndarray) -> Scores:
        array = np.asarray(samples, np.float64)
        scores = super().__new__(cls, array.mean())
        scores.samples = array
        return scores

    def __getnewargs__(self) -> tuple[np.ndarray]:  # type: ignore[override]
        return (self.samples,)


@dataclass(frozen=True)
class Loss:
    """How much lower a metric is than in FP32.

    Attributes
    ----------
    mean : float
    error : float
        Its standard error.
    unit : float
        What one sample might change the mean by: the range of scores in FP32, 0 included, by the
        number of samples.
    samples : int
    """

    mean: float
    error: float
    unit: float
    samples: int

    def within(self, budget: float) -> bool:
        """Whether it is within the budget by its standard error."""
        return self.mean + self.error <= budget

    def well_within(self, budget: float) -> bool:
        """Whether it is within by twice the error, taking no luck for granted.

        INT8 is not expected to be better than FP32, so a gain counts as none; and where no sample
        changed, one might have.
        """
        return max(self.mean, 0.0) + 2 * max(self.error, self.unit) <= budget

    def enough(self, budget: float) -> float:
        """How many samples tell that a loss of this mean, less than the budget, is within it."""
        return self.samples * (self.error / (budget - self.mean)) ** 2


def paired_loss(exact: Scores, found: Scores) -> Loss:
    """What is lost on the same samples: the mean of the differences, and its standard error.

    Of scores that are right or wrong the error is, nearly, the root of how many changed, divided by
    how many there are, as in McNemar's test (McNemar 1947, "Note on the sampling error of the
    difference between correlated proportions or percentages"). Where no score changed it is 0.
    """
    count = len(exact.samples)
    differences = exact.samples - found.samples
    return Loss(
        float(differences.mean()),
        float(differences.std()) / math.sqrt(count),
        float(np.ptp(np.append(exact.samples, 0.0))) / count,
        count,
    )
