"""Segments of random graphs: every node once, and never a cycle."""

from __future__ import annotations

import graphlib

from hypothesis import given, settings
from hypothesis import strategies as st

from planish.tensorflow.partition import partition


def contracted_order(producers, segments):
    """A topological order of the contracted graph; raises where it has a cycle."""
    home = {name: i for i, segment in enumerate(segments) for name in segment}
    graph: dict = {}
    for name, sources in producers.items():
        here = home.get(name, name)
        graph.setdefault(here, set()).update(
            home.get(s, s) for s in sources if home.get(s, s) != here
        )
    return list(graphlib.TopologicalSorter(graph).static_order())


@st.composite
def graphs(draw):
    count = draw(st.integers(1, 18))
    producers = {
        f"n{i}": [f"n{j}" for j in sorted(draw(st.sets(st.integers(0, i - 1), max_size=3)))]
        if i
        else []
        for i in range(count)
    }
    convertible = {name for name in producers if draw(st.booleans())}
    return producers, convertible


@settings(max_examples=200, deadline=None)
@given(graphs())
def test_segments_are_a_partition_without_cycles(graph):
    producers, convertible = graph
    segments = partition(producers, convertible)
    members = [name for segment in segments for name in segment]
    assert len(members) == len(set(members))
    assert set(members) == convertible
    contracted_order(producers, segments)
    position = {name: i for i, name in enumerate(producers)}
    for segment in segments:
        assert list(segment) == sorted(segment, key=position.__getitem__)


@settings(max_examples=100, deadline=None)
@given(graphs())
def test_no_two_neighbours_could_still_be_merged(graph):
    producers, convertible = graph
    segments = partition(producers, convertible)
    home = {name: i for i, segment in enumerate(segments) for name in segment}
    edges = {
        (home[s], home[n]) for n in home for s in producers[n] if s in home and home[s] != home[n]
    }
    for a, b in edges:
        merged = [s for i, s in enumerate(segments) if i not in (a, b)]
        merged.append(segments[a] + segments[b])
        try:
            contracted_order(producers, merged)
        except graphlib.CycleError:
            continue
        raise AssertionError(f"{segments[a]} and {segments[b]} are neighbours")


def test_an_op_in_the_middle_splits():
    producers = {"a": [], "x": ["a"], "b": ["x"], "c": ["b"]}
    assert partition(producers, {"a", "b", "c"}) == [("a",), ("b", "c")]


def test_a_way_around_keeps_neighbours_apart():
    #   a -> x -> c
    #    \_______/
    producers = {"a": [], "x": ["a"], "c": ["a", "x"]}
    assert partition(producers, {"a", "c"}) == [("a",), ("c",)]


def test_a_branch_joins_the_segment_it_feeds():
    producers = {"a": [], "x": ["a"], "side": [], "c": ["x", "side"]}
    assert partition(producers, {"a", "side", "c"}) == [("a",), ("side", "c")]


def test_branches_of_one_input_become_one_segment():
    producers = {"input": [], "a": ["input"], "b": ["input"]}
    assert partition(producers, {"a", "b"}) == [("a", "b")]


def test_loops_stay_out_and_are_not_run_through():
    # a -> enter -> merge -> switch -> next -> merge; switch -> exit -> c; a -> c
    producers = {
        "a": [],
        "enter": ["a"],
        "merge": ["enter", "next"],
        "switch": ["merge"],
        "next": ["switch"],
        "exit": ["switch"],
        "c": ["exit", "a"],
    }
    assert partition(producers, set(producers)) == [("a", "enter"), ("exit", "c")]
    assert partition(producers, {"a", "c"}) == [("a",), ("c",)]


def test_a_node_that_reads_itself_is_a_loop():
    assert partition({"a": ["a"], "b": []}, {"a", "b"}) == [("b",)]
