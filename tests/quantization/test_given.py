"""Ranges that users give, by name and pattern; and the message about those that are missing."""

from __future__ import annotations

from typing import Any

import pytest

from helpers.networks import residual_net
from planish.errors import CalibrationError, InputError
from planish.graph.graph import Graph
from planish.passes import optimize
from planish.quantization.given import apply_dynamic_ranges, check_complete, dummy_ranges
from planish.quantization.observe import quantizable
from planish.quantization.ranges import Ranges


@pytest.fixture(scope="module")
def graph() -> Graph:
    made = residual_net()
    optimize(made)
    return made


def tensors(graph: Graph, given: dict[str, Any], ranges: Ranges | None = None) -> dict[str, Any]:
    return dict(apply_dynamic_ranges(ranges or Ranges({}), graph, given).tensors)


@pytest.mark.parametrize(
    ("given", "limits"),
    [
        (6, (-6.0, 6.0)),
        (2.5, (-2.5, 2.5)),
        ((-1, 3), (-1.0, 3.0)),
        ([0.0, 6.0], (0.0, 6.0)),
        ((2.0, 3.0), (0.0, 3.0)),
        ((-3.0, -2.0), (-3.0, 0.0)),
    ],
)
def test_a_range_or_a_limit(graph: Graph, given: Any, limits: tuple[float, float]) -> None:
    assert tensors(graph, {"relu": given}) == {"relu": limits}


@pytest.mark.parametrize(
    "given",
    [0, -1, float("nan"), float("inf"), (1, 1), (3, 1), (1,), (1, 2, 3), "6", None, ("a", "b")],
)
def test_no_range(graph: Graph, given: Any) -> None:
    with pytest.raises(InputError, match="The dynamic range of 'relu' is"):
        tensors(graph, {"relu": given})


def test_names_that_users_know(graph: Graph) -> None:
    assert tensors(graph, {"x:0": 1.0}) == {"x": (-1.0, 1.0)}
    value = graph.outputs[0]
    assert tensors(graph, {"out0": 1.0}) == {value.name: (-1.0, 1.0)}


def test_patterns_and_names(graph: Graph) -> None:
    everything = [v.name for v in graph.values() if not v.is_constant]
    found = tensors(graph, {"x": 9.0, "*": 1.0, "relu*": 2.0})
    assert list(found) == everything
    assert found["x"] == (-9.0, 9.0)
    assert found["relu_1"] == (-2.0, 2.0)
    assert found["conv"] == (-1.0, 1.0)


def test_unknown_names(graph: Graph) -> None:
    with pytest.raises(InputError) as caught:
        tensors(graph, {"rellu": 1.0})
    assert "near names are 'relu'" in caught.value.cure


def test_what_was_given_is_obeyed_in_all_channels(graph: Graph) -> None:
    names = [value.name for value in quantizable(graph)][:2]
    extremes = dict.fromkeys(names, ((0.0, 1.0), (-1.0, 0.0)))
    ranges = Ranges(dict.fromkeys(names, (-1.0, 1.0)), extremes=extremes)
    found = apply_dynamic_ranges(ranges, graph, {names[0]: 6.0})
    assert found.extremes.keys() == {names[1]}


def test_others_stay(graph: Graph) -> None:
    before = Ranges({"x": (-1.0, 1.0), "relu": (0.0, 5.0)}, "n", "mse")
    assert tensors(graph, {"relu": 2.0}, before) == {"x": (-1.0, 1.0), "relu": (-2.0, 2.0)}
    assert apply_dynamic_ranges(before, graph, None) is before


def test_missing_ranges_are_one_message(graph: Graph) -> None:
    values = quantizable(graph)
    ranges = Ranges({values[0].name: (0.0, 1.0)}, "n", "mse")
    check_complete(ranges, values[:1])
    with pytest.raises(CalibrationError) as caught:
        check_complete(ranges, [*values, *values])
    count = len(values) - 1
    assert caught.value.what.startswith(f"Could not find scales for {count} tensor(s): ")
    named = caught.value.what.partition(": ")[2]
    assert named.count(",") == min(count, 10) - 1
    check_complete(dummy_ranges(graph), values)
