from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helpers.networks import build, mobile_net
from planish.plan.memory import ALIGNMENT, Lifetime, largest_live_set, plan_arena


def lifetimes(most: int = 24) -> st.SearchStrategy[list[Lifetime]]:
    one = st.tuples(st.integers(0, 5000), st.integers(0, 20), st.integers(0, 8))
    return st.lists(one.map(lambda t: Lifetime(t[0], t[1], t[1] + t[2])), max_size=most)


@settings(max_examples=150, deadline=None)
@given(lifetimes())
def test_living_tensors_do_not_overlap(tensors: list[Lifetime]) -> None:
    arena = plan_arena(tensors)
    placed = list(zip(tensors, arena.offsets, strict=True))
    for i, (a, start) in enumerate(placed):
        assert start % ALIGNMENT == 0
        assert start >= 0
        assert start + a.size <= arena.size
        for b, other in placed[:i]:
            if a.first <= b.last and b.first <= a.last and a.size and b.size:
                assert start + a.size <= other or other + b.size <= start
    assert arena.size >= largest_live_set(tensors)
    assert plan_arena(tensors) == arena


def test_nothing_to_place() -> None:
    assert plan_arena([]).size == 0
    assert largest_live_set([]) == 0


def test_chain_uses_two_buffers() -> None:
    chain = [Lifetime(1024, i, i + 1) for i in range(50)]
    assert plan_arena(chain).size == 2048


def test_largest_live_set_is_that_of_the_most_crowded_step() -> None:
    tensors = [Lifetime(64, 0, 2), Lifetime(128, 1, 1), Lifetime(256, 3, 4)]
    assert largest_live_set(tensors) == 256
    assert largest_live_set([*tensors, Lifetime(128, 2, 3)]) == 384


@pytest.mark.parametrize("batch", [1, 4])
def test_close_to_the_largest_live_set_on_a_real_schedule(batch: int) -> None:
    bound = build(mobile_net(96)).bound({"N": batch})
    assert 0 < bound.live_bytes <= bound.arena_bytes <= 1.1 * bound.live_bytes
