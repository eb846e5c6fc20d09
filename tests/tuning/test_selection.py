from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from planish.errors import TuningError
from planish.tuning.selection import Choice, cost_of, select

FORMATS = ("rows", "columns")
REFORMAT_COSTS = {"rows": 40, "columns": 55}


def reformat(value: object, have: object, want: object) -> int:
    return REFORMAT_COSTS[want] + sum(map(ord, str(value))) % 7  # type: ignore[index]


def network(random: np.random.Generator) -> tuple[list[Choice], dict, dict]:
    """Candidates of a small random graph: each node in two formats, and fused with its reader."""
    count = int(random.integers(3, 6))
    reads: dict[int, list[object]] = {}
    for node in range(count):
        earlier: list[object] = ["input", *range(node)]
        some = random.choice(len(earlier), min(len(earlier), 1 + int(random.integers(2))), False)
        reads[node] = [earlier[i] for i in sorted(some)]
    users = {n: [m for m in reads if n in reads[m]] for n in range(count)}

    def cost() -> int:
        return int(random.integers(10, 200))

    choices = []
    for node in range(count):
        for form in FORMATS:
            inputs = dict.fromkeys(reads[node], form)
            choices.append(Choice(frozenset([node]), cost(), inputs, {node: form}))
        if len(users[node]) == 1:
            (reader,) = users[node]
            outside = [v for v in dict.fromkeys(reads[node] + reads[reader]) if v != node]
            for form in FORMATS:
                pair = frozenset([node, reader])
                inputs = dict.fromkeys(outside, form)
                choices.append(Choice(pair, cost(), inputs, {reader: form}))
    outputs = {n: "rows" for n in range(count) if not users[n]}
    return choices, {"input": "rows"}, outputs


def covers(choices: Sequence[Choice]) -> Iterator[tuple[int, ...]]:
    """Every way to cover each node once."""
    nodes = sorted(set().union(*(c.covers for c in choices)))

    def extend(done: frozenset, picked: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        rest = [n for n in nodes if n not in done]
        if not rest:
            yield picked
            return
        for i, choice in enumerate(choices):
            if rest[0] in choice.covers and not done & choice.covers:
                yield from extend(done | choice.covers, (*picked, i))

    yield from extend(frozenset(), ())


def greedy(choices: Sequence[Choice], given: dict) -> list[int]:
    """Node by node what is cheapest now, reformats of its inputs included."""
    written, done, picked = dict(given), set(), []
    for node in sorted(set().union(*(c.covers for c in choices))):
        if node in done:
            continue

        def total(i: int) -> int:
            extra = sum(
                reformat(v, written[v], f)
                for v, f in choices[i].reads.items()
                if v in written and written[v] != f
            )
            return (choices[i].cost + extra) // len(choices[i].covers)

        fitting = [i for i, c in enumerate(choices) if node in c.covers and not done & c.covers]
        best = min(fitting, key=total)
        picked.append(best)
        done |= choices[best].covers
        written.update(choices[best].writes)
    return picked


def test_equals_brute_force_and_beats_greedy() -> None:
    random = np.random.default_rng(7)
    better = 0
    for _ in range(200):
        choices, given, wanted = network(random)
        found = cost_of(select(choices, reformat, given, wanted), choices, reformat, given, wanted)
        costs = (cost_of(c, choices, reformat, given, wanted) for c in covers(choices))
        assert found == min(c for c in costs if c is not None)
        rival = cost_of(greedy(choices, given), choices, reformat, given, wanted)
        assert rival is not None
        assert found is not None
        better += found < rival
    assert better > 20


def test_is_deterministic() -> None:
    random = np.random.default_rng(3)
    for _ in range(10):
        choices, given, wanted = network(random)
        first = select(choices, reformat, given, wanted)
        assert first == sorted(first)
        assert all(select(choices, reformat, given, wanted) == first for _ in range(3))


def test_earlier_candidates_win_ties() -> None:
    alike = [Choice(frozenset([n]), 10, {}, {n: "rows"}) for n in "ab" for _ in range(3)]
    assert select(alike, reformat) == [0, 3]
    whole = Choice(frozenset("ab"), 20)
    assert select([whole, *alike], reformat) == [0]
    assert select([*alike, whole], reformat) == [0, 3]


def test_a_fused_candidate_wins_only_if_it_is_cheaper() -> None:
    parts = [Choice(frozenset([n]), 10) for n in "abc"]
    for cost, expected in ((29, [3]), (31, [0, 1, 2])):
        assert select([*parts, Choice(frozenset("abc"), cost)], reformat) == expected


def test_a_reformat_is_paid_once_for_all_readers() -> None:
    choices = [
        Choice(frozenset("a"), 10, {}, {"a": "rows"}),
        Choice(frozenset("a"), 90, {}, {"a": "columns"}),
        *(Choice(frozenset([n]), 10, {"a": "columns"}, {n: "rows"}) for n in "bcd"),
    ]
    picked = select(choices, lambda *_: 50)
    assert picked == [0, 2, 3, 4]
    assert cost_of(picked, choices, lambda *_: 50) == 90
    assert select(choices, lambda *_: 100)[0] == 1


def test_formats_of_the_outside() -> None:
    choices = [
        Choice(frozenset("a"), 10, {"x": "columns"}, {"a": "columns"}),
        Choice(frozenset("a"), 60, {"x": "rows"}, {"a": "rows"}),
    ]
    assert select(choices, lambda *_: 30) == [0]
    assert select(choices, lambda *_: 30, {"x": "rows"}, {"a": "rows"}) == [1]
    assert select(choices, lambda *_: 20, {"x": "rows"}, {"a": "rows"}) == [0]


def test_independent_parts_are_solved_alone() -> None:
    choices = [
        Choice(frozenset([(part, n)]), 5 + (part * 7 + n) % 3)
        for part, n, _ in itertools.product(range(40), range(3), range(2))
    ]
    picked = select(choices, reformat)
    assert len(picked) == 120
    assert cost_of(picked, choices, reformat) == sum(choices[i].cost for i in picked)


def test_no_cover() -> None:
    with pytest.raises(TuningError):
        select([Choice(frozenset("ab"), 1), Choice(frozenset("bc"), 1)], reformat)
    assert select([], reformat) == []


def test_cost_of_selections_that_are_none() -> None:
    choices = [Choice(frozenset("ab"), 1), Choice(frozenset("bc"), 1), Choice(frozenset("c"), 1)]
    assert cost_of([0, 2], choices, reformat) == 2
    assert cost_of([0, 1], choices, reformat) is None
    assert cost_of([0], choices, reformat) is None
