"""The least divergence against a search that follows the definition word by word."""

from __future__ import annotations

import math

import numpy as np
import pytest

from planish.quantization.entropy import EntropyCalibrator, EntropyCalibrator2, best_bins
from planish.quantization.histogram import Histogram

SHAPES = {
    "normal": lambda r, n: r.standard_normal(n),
    "relu": lambda r, n: np.maximum(r.standard_normal(n), 0),
    "tails": lambda r, n: r.standard_t(3, n),
    "two humps": lambda r, n: np.concatenate(
        [r.normal(0, 1, n - n // 50), r.normal(9, 1, n // 50)]
    ),
    "uniform": lambda r, n: r.uniform(-1, 1, n),
}


def divergence(counts: list[int], bins: int, levels: int) -> float:
    """KL(P, Q) for the first `bins` bins, as the slides' pseudocode computes it."""
    p = [float(c) for c in counts[:bins]]
    p[-1] += sum(counts[bins:])
    members: list[list[int]] = [[] for _ in range(levels)]
    for place in range(bins):
        members[place * levels // bins].append(place)
    q = [0.0] * bins
    for places in members:
        filled = [place for place in places if counts[place]]
        for place in filled:
            q[place] = sum(counts[j] for j in places) / len(filled)
    p_sum, q_sum = sum(p), sum(q)
    result = 0.0
    for a, b in zip(p, q, strict=True):
        if a and not b:
            return math.inf
        if a:
            result += a / p_sum * math.log(a / p_sum / (b / q_sum))
    return result


def search(counts: list[int], levels: int) -> tuple[int, dict[int, float]]:
    found = {n: divergence(counts, n, levels) for n in range(levels, len(counts) + 1)}
    return min(found, key=lambda n: found[n]), found


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(4))
def test_least_divergence_is_found(shape: str, seed: int) -> None:
    random = np.random.default_rng(seed)
    elements = np.abs(SHAPES[shape](random, 5000))
    counts = np.histogram(elements, bins=300)[0]
    best, all_of_them = search(counts.tolist(), 16)
    found = best_bins(counts, 16)
    # where two thresholds are equally good, rounding may choose
    assert all_of_them[found] == pytest.approx(all_of_them[best], rel=1e-9, abs=1e-12)
    assert found == best or abs(all_of_them[found] - all_of_them[best]) < 1e-12


def test_full_size() -> None:
    random = np.random.default_rng(7)
    counts = np.histogram(np.abs(random.standard_t(4, 100_000)), bins=700)[0]
    assert best_bins(counts) == search(counts.tolist(), 128)[0]


@pytest.mark.parametrize("size", [1, 127, 128])
def test_few_bins_are_all_kept(size: int) -> None:
    assert best_bins(np.ones(size, np.int64)) == size


def test_outliers_are_cut_off() -> None:
    histogram = Histogram()
    random = np.random.default_rng(0)
    histogram.add(random.standard_normal(1_000_000).astype(np.float32))
    histogram.add(np.array([60.0, -70.0], np.float32))
    for calibrator in (EntropyCalibrator(), EntropyCalibrator2()):
        low, high = calibrator.range(histogram)
        assert 2.5 < high < 12
        assert low == -high


@pytest.mark.parametrize("calibrator", [EntropyCalibrator(), EntropyCalibrator2()])
def test_zeros_have_no_say(calibrator: EntropyCalibrator) -> None:
    random = np.random.default_rng(0)
    positive = np.abs(random.standard_normal(100_000)).astype(np.float32)
    thresholds = []
    for zeros in (0, 1_000_000):
        histogram = Histogram()
        histogram.add(positive)
        histogram.add(np.zeros(zeros, np.float32))
        thresholds.append(calibrator.threshold(histogram))
    assert thresholds[0] == thresholds[1]


def test_elements_near_zero_have_less_say_in_the_second() -> None:
    random = np.random.default_rng(0)
    histogram = Histogram()
    histogram.add(np.abs(random.standard_normal(100_000)).astype(np.float32))
    histogram.add(np.full(1_000_000, 1e-6, np.float32))
    first, second = (c().threshold(histogram) for c in (EntropyCalibrator, EntropyCalibrator2))
    assert first < 1 < 2.5 < second


@pytest.mark.parametrize("calibrator", [EntropyCalibrator(), EntropyCalibrator2()])
def test_degenerate_tensors(calibrator: EntropyCalibrator) -> None:
    for elements, wanted in (
        (np.zeros(10), (0.0, 0.0)),
        (np.full(10, 3.0), (0.0, 3.0)),
        (np.full(10, -3.0), (-3.0, 0.0)),
        (np.zeros(0), (0.0, 0.0)),
        (np.array([0.0, 0.0, 5.0]), (0.0, 5.0)),
    ):
        histogram = Histogram()
        histogram.add(elements.astype(np.float32))
        assert calibrator.range(histogram) == wanted
