"""Scores of single samples, and what is lost between two of them."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

from planish.quantization.scores import Loss, Scores, paired_loss


def test_a_number_that_knows_its_samples() -> None:
    scores = Scores([0.0, 100.0, 100.0, 100.0])
    assert scores == 75.0 and f"{scores:.1f}" == "75.0"
    again = copy.deepcopy(scores)
    assert again == scores
    np.testing.assert_array_equal(again.samples, scores.samples)


@pytest.mark.parametrize(("worse", "better"), [(0, 0), (5, 0), (0, 3), (7, 2), (4, 4)])
def test_right_and_wrong_samples_as_in_mcnemars_test(worse: int, better: int) -> None:
    count = 500
    exact = np.full(count, 100.0)
    exact[:100] = 0.0
    found = exact.copy()
    found[:better] = 100.0
    found[count - worse :] = 0.0
    loss = paired_loss(Scores(exact), Scores(found))
    mean = 100 * (worse - better) / count
    assert loss.mean == pytest.approx(mean)
    # the exact variance of the difference of correlated proportions
    variance = (100 / count) ** 2 * (worse + better) - mean**2 / count
    assert loss.error == pytest.approx(math.sqrt(variance))
    assert loss.unit == 0.2 and loss.samples == count


def test_the_error_is_what_repeated_samples_differ_by() -> None:
    """Of real-valued scores; the pairs vary less than either metric."""
    rng = np.random.default_rng(0)
    losses = []
    for _ in range(400):
        exact = rng.normal(60, 15, 300)
        losses.append(paired_loss(Scores(exact), Scores(exact - rng.normal(0.5, 2, 300))))
    assert np.std([loss.mean for loss in losses]) == pytest.approx(2 / math.sqrt(300), rel=0.15)
    assert losses[0].error == pytest.approx(2 / math.sqrt(300), rel=0.15)


def test_within_a_budget() -> None:
    assert Loss(0.1, 0.1, 0.0, 100).within(0.2)
    assert not Loss(0.1, 0.11, 0.0, 100).within(0.2)
    assert Loss(-0.5, 0.6, 0.0, 100).within(0.2)
    # a gain is luck, and one more sample might have changed
    assert Loss(-0.5, 0.1, 0.05, 100).well_within(0.2)
    assert not Loss(-0.5, 0.11, 0.05, 100).well_within(0.2)
    assert not Loss(0.0, 0.0, 0.2, 500).well_within(0.2)
    assert Loss(0.0, 0.0, 0.1, 1000).well_within(0.2)


def test_what_differs_nowhere_is_within_any_budget() -> None:
    scores = Scores([0.0, 100.0] * 5)
    assert paired_loss(scores, scores).within(0.0)


def test_how_many_samples_could_tell() -> None:
    loss = Loss(0.1, 0.3, 0.2, 500)
    enough = loss.enough(0.2)
    assert enough == pytest.approx(4500)
    assert Loss(0.1, 0.3 * math.sqrt(500 / enough), 0.0, 4500).within(0.2 + 1e-12)
