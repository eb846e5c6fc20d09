"""The search for the layers that an accuracy budget takes."""

from __future__ import annotations

import math

import pytest

from planish.quantization.budget import keep_within

LAYERS = [f"layer {i}" for i in range(20)]
COSTS = {name: float(i) for i, name in enumerate(LAYERS)}


@pytest.mark.parametrize("harm", [{}, {3: 1.0}, {0: 0.5}, {19: 2.0}, {2: 0.5, 11: 0.3, 17: 0.4}])
def test_exactly_the_harmful_ones_are_kept(harm: dict[int, float]) -> None:
    calls = []

    def score(kept: frozenset[str]) -> float:
        calls.append(kept)
        return 90 - sum(loss for i, loss in harm.items() if LAYERS[i] not in kept)

    found = keep_within(LAYERS, COSTS, score, 89.9)
    assert {k.layer: k.gain for k in found.kept} == pytest.approx(
        {LAYERS[i]: loss for i, loss in harm.items()}
    )
    assert [k.seconds for k in found.kept] == sorted(harm)
    assert found.score == 90
    assert len(calls) == len(set(calls)) <= 2 * len(LAYERS)


def test_a_budget_allows_some_harm() -> None:
    def score(kept: frozenset[str]) -> float:
        return 80 - sum(0.1 for name in LAYERS if name not in kept)

    found = keep_within(LAYERS, COSTS, score, 79)
    assert found.score >= 79
    assert len(found.kept) == 10
    # the cheapest ones
    assert [k.layer for k in found.kept] == LAYERS[:10]


def test_what_nothing_can_reach() -> None:
    found = keep_within(LAYERS[:3], {}, lambda kept: 1.0, 2.0)
    assert [k.layer for k in found.kept] == LAYERS[:3]
    assert found.score == 1.0
    assert all(math.isnan(k.seconds) for k in found.kept)
