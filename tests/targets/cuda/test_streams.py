"""Launches on several streams: whatever conflicts is ordered, whatever does not may overlap."""

from __future__ import annotations

import numpy as np
import pytest

from planish.targets.cuda.streams import Placed, conflicts, place
from planish.targets.execution import ARENA, FIRST_INPUT, Range

Launches = list[tuple[Range, ...]]


def reads(begin: int, end: int, base: int = ARENA) -> Range:
    return Range(base, begin, end, False)


def writes(begin: int, end: int, base: int = ARENA) -> Range:
    return Range(base, begin, end, True)


def before(placed: list[Placed]) -> list[set[int]]:
    """For each launch those that have ended when it starts: by its stream, and by waiting."""
    found: list[set[int]] = []
    last: dict[int, int] = {}
    for number, where in enumerate(placed):
        ended: set[int] = set()
        for other in (*where.waits, *([last[where.stream]] if where.stream in last else [])):
            assert other < number
            ended |= {other} | found[other]
        found.append(ended)
        last[where.stream] = number
    return found


def random_launches(seed: int) -> Launches:
    random = np.random.default_rng(seed)
    made = []
    for _ in range(int(random.integers(2, 40))):
        ranges = []
        for _ in range(int(random.integers(1, 4))):
            begin = int(random.integers(0, 60))
            base = ARENA if random.random() < 0.8 else FIRST_INPUT
            end = begin + int(random.integers(0, 12))
            ranges.append(Range(base, begin, end, bool(random.random() < 0.4)))
        made.append(tuple(ranges))
    return made


def conflict(a: tuple[Range, ...], b: tuple[Range, ...]) -> bool:
    return any(
        r.base == s.base and r.begin < s.end and s.begin < r.end and (r.written or s.written)
        for r in a
        for s in b
    )


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize("streams", [1, 3, 6])
def test_conflicts_are_ordered(seed: int, streams: int) -> None:
    launches = random_launches(seed)
    placed = place(launches, streams)
    assert {p.stream for p in placed} <= set(range(streams))
    order = before(placed)
    for later, ranges in enumerate(launches):
        wanted = [i for i in range(later) if conflict(launches[i], ranges)]
        assert conflicts(launches)[later] == wanted
        assert order[later] >= set(wanted)
    awaited = {w for p in placed for w in p.waits}
    assert awaited == {i for i, p in enumerate(placed) if p.awaited}


def test_a_chain_stays_on_one_stream_and_waits_for_nothing() -> None:
    chain = [(reads(i * 10, i * 10 + 10), writes(i * 10 + 10, i * 10 + 20)) for i in range(9)]
    assert all(p == Placed(0, (), False) for p in place(chain))


def test_branches_overlap() -> None:
    root = (writes(0, 10),)
    branches: Launches = []
    for i in range(1, 4):
        branches.append((reads(0, 10), writes(100 * i, 100 * i + 10)))
        branches.append((reads(100 * i, 100 * i + 10), writes(100 * i + 10, 100 * i + 20)))
    join = (*(reads(100 * i, 100 * i + 20) for i in range(1, 4)), writes(0, 10))
    placed = place([root, *branches, join])
    order = before(placed)
    assert all(order[number] <= {0, number - 1} for number in range(1, 7))
    assert order[7] == set(range(7))
    assert len({p.stream for p in placed}) == 3


def test_memory_that_is_used_again_is_waited_for() -> None:
    launches = [(writes(0, 10),), (reads(0, 10), writes(20, 30)), (writes(0, 5),)]
    assert before(place(launches))[2] >= {1}


def test_empty_ranges_touch_nothing() -> None:
    assert conflicts([(writes(0, 0),), (writes(0, 0),)]) == [[], []]
