"""What `build` checks at the door."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from helpers.refusal import refused
from planish.checks import check_limits, checked_inputs, checked_outputs, warn_of_nan
from planish.errors import InputError
from planish.graph import DType, Graph, TensorType
from planish.ops import elementwise as ew


def test_good_arguments_pass() -> None:
    assert checked_inputs(None) is None
    assert checked_inputs({"x": (1, 2)}) == {"x": (1, 2)}
    assert checked_outputs(None) is None
    assert checked_outputs(iter(["b", "a"])) == ["b", "a"]
    check_limits(threads=None, max_workspace_size=None, tuning_seconds=None, timing_cache=None)
    check_limits(
        threads=np.int64(2), max_workspace_size=0, tuning_seconds=0.5, timing_cache="cache"
    )


@pytest.mark.parametrize("inputs", [[("x", 1)], {1: (2,)}, 3])
def test_inputs_must_be_a_mapping_from_names(inputs: object) -> None:
    with refused(InputError, "inputs=", "mapping"):
        checked_inputs(inputs)


def test_outputs_must_be_distinct_names() -> None:
    with refused(InputError, "['y']"):
        checked_outputs("y")
    with refused(InputError, "'y' twice"):
        checked_outputs(["y", "z", "y"])
    with refused(InputError, "list of names"):
        checked_outputs([])


def test_a_truth_value_is_no_number() -> None:
    limits = {"max_workspace_size": None, "tuning_seconds": None, "timing_cache": None}
    with refused(InputError, "threads="):
        check_limits(threads=True, **limits)


@pytest.mark.parametrize("count", [0, 1, 7])
def test_a_warning_names_weights_that_are_nan(count: int, caplog) -> None:
    graph = Graph()
    x = graph.input("x", TensorType((3,), DType.FLOAT32))
    for i in range(8):
        weight = np.ones(3, np.float32)
        weight[1] = np.nan if i < count else np.inf
        x = graph.add(ew.Add(), x, graph.constant(weight, f"weight_{i}"))
    whole = graph.constant(np.arange(3), "whole")
    graph.mark_output(graph.add(ew.Add(), x, graph.add(ew.Cast(DType.FLOAT32), whole)), "y")
    with caplog.at_level(logging.WARNING, "planish"):
        warn_of_nan(graph)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == bool(count)
    if count:
        assert "weight_0" in messages[0]
        assert ("and 2 more" in messages[0]) == (count == 7)
        assert "weight_7" not in messages[0]
