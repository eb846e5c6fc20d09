"""Chooses which tasks run, by which tactic: the exact cheapest cover of the graph.

Each candidate covers a set of nodes, reads values in certain formats and writes its result in one.
A choice is valid if every node is covered exactly once; where a value is wanted in a format other
than the one it is written in, it is reformatted once per format. The integer program

    minimise    sum of cost(c) x[c]  +  sum of reformat(v, f) r[v, f]
    subject to  sum of x[c] over c covering n  =  1                       for every node n
                x[c]  <=  r[v, f] + sum of x[d] over d writing v in f     for c reading v in f
                r[v, f]  <=  sum of x[d] over d writing v                 for every reformat

is solved by HiGHS in integer nanoseconds, on one thread, with ties broken by the candidates' order.
The graph falls into independent parts wherever candidates do not overlap; each is solved alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from planish.errors import TuningError

Format = Hashable
Key = Hashable


@dataclass(frozen=True)
class Choice:
    """A candidate: what it covers, costs, reads and writes.

    Attributes
    ----------
    covers : frozenset
        The nodes.
    cost : int
        Nanoseconds.
    reads : mapping
        For each value read from another choice, the format it must have.
    writes : mapping
        For each value written, its format.
    """

    covers: frozenset[Key]
    cost: int
    reads: Mapping[Key, Format] = field(default_factory=dict)
    writes: Mapping[Key, Format] = field(default_factory=dict)


Reformat = Callable[[Key, Format, Format], int]
"""The cost in nanoseconds of giving a value another format."""


def select(
    choices: Sequence[Choice],
    reformat: Reformat,
    given: Mapping[Key, Format] | None = None,
    wanted: Mapping[Key, Format] | None = None,
) -> list[int]:
    """The indices of the cheapest valid choices, ascending.

    Parameters
    ----------
    choices : sequence of Choice
    reformat : callable
        Cost of a reformat of a value.
    given : mapping, optional
        The formats of values that come from outside; others have no constraint.
    wanted : mapping, optional
        The formats in which the outside wants values.

    Raises
    ------
    TuningError
        No cover exists.
    """
    selected: list[int] = []
    for part in _parts(choices):
        if len(part) == 1:
            selected += part
        else:
            selected += _solve(
                [choices[i] for i in part], part, reformat, given or {}, wanted or {}
            )
    return sorted(selected)


def cost_of(
    selected: Sequence[int],
    choices: Sequence[Choice],
    reformat: Reformat,
    given: Mapping[Key, Format] | None = None,
    wanted: Mapping[Key, Format] | None = None,
) -> int | None:
    """What a selection costs, reformats included; None if it does not cover each node once."""
    covered: set[Key] = set()
    written: dict[Key, Format] = dict(given or {})
    total = 0
    for i in selected:
        choice = choices[i]
        if covered & choice.covers:
            return None
        covered |= choice.covers
        total += choice.cost
        written.update(choice.writes)
    if covered != set().union(*(c.covers for c in choices)):
        return None
    demanded = {(v, f) for i in selected for v, f in choices[i].reads.items()}
    demanded |= set((wanted or {}).items())
    for value, wish in demanded:
        if value in written and written[value] != wish:
            total += reformat(value, written[value], wish)
    return total


def _parts(choices: Sequence[Choice]) -> list[list[int]]:
    """Groups of choices that must be decided together: they share nodes, or formats to agree on."""
    parent = list(range(len(choices)))

    def find(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    owner: dict[Any, int] = {}
    formats: dict[Key, set[Format]] = defaultdict(set)
    for choice in choices:
        for value, form in (*choice.reads.items(), *choice.writes.items()):
            formats[value].add(form)
    for i, choice in enumerate(choices):
        shared = [("node", n) for n in choice.covers]
        touched = (*choice.reads, *choice.writes)
        shared += [("value", v) for v in touched if len(formats[v]) > 1]
        for key in shared:
            parent[find(i)] = find(owner.setdefault(key, i))
    groups: dict[int, list[int]] = defaultdict(list)
    for i in range(len(choices)):
        groups[find(i)].append(i)
    return list(groups.values())


def _solve(
    choices: Sequence[Choice],
    numbers: Sequence[int],
    reformat: Reformat,
    given: Mapping[Key, Format],
    wanted: Mapping[Key, Format],
) -> list[int]:
    import highspy
    import numpy as np

    writers: dict[tuple[Key, Format], list[int]] = defaultdict(list)
    producers: dict[Key, list[int]] = defaultdict(list)
    for i, choice in enumerate(choices):
        for value, form in choice.writes.items():
            writers[value, form].append(i)
            producers[value].append(i)
    sources: dict[Key, set[Format]] = defaultdict(set)
    for value, form in writers:
        sources[value].add(form)
    for value, form in given.items():
        sources[value].add(form)

    costs: list[float] = [float(c.cost) for c in choices]
    conversions: dict[tuple[Key, Format, Format], int] = {}

    def conversion(value: Key, have: Format, want: Format) -> int:
        key = (value, have, want)
        if key not in conversions:
            conversions[key] = len(costs)
            costs.append(float(reformat(value, have, want)))
        return conversions[key]

    rows: list[tuple[dict[int, float], float, float]] = []
    covering: dict[Key, list[int]] = defaultdict(list)
    for i, choice in enumerate(choices):
        for node in choice.covers:
            covering[node].append(i)
    for members in covering.values():
        rows.append((dict.fromkeys(members, 1.0), 1.0, 1.0))

    def supply(value: Key, want: Format) -> dict[int, float]:
        """Columns any of which makes the value available in the format."""
        columns = dict.fromkeys(writers[value, want], 1.0)
        for have in sources[value] - {want}:
            columns[conversion(value, have, want)] = 1.0
        return columns

    infinity = highspy.kHighsInf
    readers: dict[tuple[Key, Format], list[int]] = defaultdict(list)
    for i, choice in enumerate(choices):
        for value, want in choice.reads.items():
            if sources[value] and given.get(value) != want:
                readers[value, want].append(i)
    for (value, want), users in readers.items():
        columns = supply(value, want)
        for i in users:
            row = dict(columns)
            row[i] = row.get(i, 0.0) - 1.0
            rows.append((row, 0.0, infinity))
    for value, want in wanted.items():
        if sources[value] and given.get(value) != want:
            rows.append((supply(value, want), 1.0, infinity))
    for (value, have, _), column in conversions.items():
        if given.get(value) == have:
            continue
        row = dict.fromkeys(writers[value, have], 1.0)
        row[column] = -1.0
        rows.append((row, 0.0, infinity))

    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("mip_rel_gap", 0.0)
    solver.setOptionValue("mip_abs_gap", 0.5)
    # an earlier candidate wins a tie: far less than a nanosecond altogether
    nudge = [0.4 * i / (len(costs) ** 2 + 1) for i in range(len(costs))]
    for cost, extra in zip(costs, nudge, strict=True):
        solver.addCol(cost + extra, 0.0, 1.0, 0, np.array([], np.int32), np.array([], np.float64))
    for column in range(len(costs)):
        solver.changeColIntegrality(column, highspy.HighsVarType.kInteger)
    for row, low, high in rows:
        index = np.fromiter(row, np.int32, len(row))
        solver.addRow(low, high, len(row), index, np.fromiter(row.values(), np.float64, len(row)))
    solver.run()
    if solver.getModelStatus() != highspy.HighsModelStatus.kOptimal:
        raise TuningError(
            "No choice of tactics covers the graph",
            why=f"the solver says {solver.modelStatusToString(solver.getModelStatus())}",
        )
    solution = solver.getSolution().col_value
    return [numbers[i] for i in range(len(choices)) if solution[i] > 0.5]
