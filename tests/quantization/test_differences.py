"""Sums of differences, against the formulas on whole arrays."""

from __future__ import annotations

import math

import numpy as np
import pytest

from planish.quantization import differences
from planish.quantization.differences import Differences

RANDOM = np.random.default_rng(0)
A = RANDOM.standard_normal((50, 3)).astype(np.float32)
B = (A + 0.05 * RANDOM.standard_normal((50, 3))).astype(np.float32)


def test_batches_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(differences, "BLOCK", 21)
    sums = Differences(3)
    sums.add(A[:20], B[:20])
    sums.add(A[20:].reshape(5, 6, 3), B[20:].reshape(5, 6, 3))
    a, b = A.astype(np.float64), B.astype(np.float64)
    ratios = np.sum(a**2, 0) / np.sum((a - b) ** 2, 0)
    assert sums.count == A.size
    assert sums.sqnr == pytest.approx(10 * math.log10(np.sum(a**2) / np.sum((a - b) ** 2)))
    assert sums.channel_sqnr == pytest.approx(10 * math.log10(np.median(ratios)))
    cosine = np.sum(a * b) / np.linalg.norm(a) / np.linalg.norm(b)
    assert sums.cosine == pytest.approx(cosine, abs=1e-12)
    assert sums.off == np.sum(np.abs(a - b) > 0.1 * np.abs(a))
    assert sums.relative == pytest.approx(np.abs(a - b).max() / np.abs(a).max())


def test_what_is_broken_is_counted_apart() -> None:
    a = np.array([1.0, 2.0, np.inf, np.nan, 5.0], np.float32)
    b = np.array([np.inf, 2.0, np.inf, 0.0, np.nan], np.float32)
    sums = Differences()
    sums.add(a, b)
    assert (sums.count, sums.broken) == (3, 2)
    assert sums.sqnr == sums.channel_sqnr == -math.inf
    assert sums.relative == math.inf
    assert sums.noise.sum() == 0


def test_equal_arrays() -> None:
    sums = Differences(3)
    sums.add(A, A)
    assert sums.sqnr == math.inf
    assert sums.cosine == 1.0
    assert sums.off == sums.vanished == 0
    sums = Differences()
    sums.add(np.zeros(4, np.float32), np.zeros(4, np.float32))
    assert sums.cosine == 1.0
