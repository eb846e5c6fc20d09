"""Attention in the terms of kernels: levels of batches, strides, and who is asked for it."""

from __future__ import annotations

import pytest

from helpers.attentions import Form, attention, attention_task
from planish.errors import PlanError
from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph.graph import Graph
from planish.plan.plan import binding_of
from planish.plan.views import insert_copies, place
from planish.targets.attention import Problem, problem_of
from planish.targets.base import Binding
from planish.targets.cpu.target import cpu


def placed(graph: Graph, **sizes: int) -> tuple[Task, Problem]:
    """The attention of a graph as a plan would bind it."""
    insert_copies(graph)
    placements = place(graph)
    (task,) = (t for t in propose(graph, placements.free) if t.attention)
    problem = problem_of(task, binding_of(placements, sizes, (*task.inputs, *task.outputs)))
    assert problem is not None
    return task, problem


def test_heads_are_read_and_written_where_they_lie() -> None:
    _, problem = placed(attention(Form(merged=True), queries=10, keys=10))
    assert (problem.batches, problem.heads, problem.queries, problem.keys) == (2, 3, 10, 10)
    assert (problem.depth, problem.values) == (16, 16)
    for matrix in (problem.q, problem.k, problem.v):
        assert (matrix.batch, matrix.head, matrix.row, matrix.column) == (3 * 480, 16, 144, 1)
    result = problem.result
    assert (result.batch, result.head, result.row, result.column) == (480, 16, 48, 1)


def test_transposed_factors_are_other_strides() -> None:
    _, problem = placed(attention(Form(heads_last=False, keys_first=True, values_first=True)))
    assert (problem.k.row, problem.k.column) == (16, 1)
    assert (problem.result.row, problem.result.column) == (16, 1)
    # batches and heads lie evenly, so that they are one level
    assert problem.batches * problem.heads == 6 and 1 in (problem.batches, problem.heads)


@pytest.mark.parametrize(
    ("mask", "strides"),
    [("keys", (10, 0, 0, 1)), ("queries", (100, 0, 10, 1)), ("heads", (0, 100, 10, 1))],
)
def test_masks_are_broadcast(mask: str, strides: tuple[int, ...]) -> None:
    _, problem = placed(attention(Form(mask=mask)))
    (operand,) = (p for p in problem.scores if p)
    assert (operand.batch, operand.head, operand.row, operand.column) == strides


def test_factors_per_head_belong_to_rows() -> None:
    _, problem = placed(attention(Form(factor=True)))
    (operand,) = (p for p in problem.rows if p)
    assert (operand.batch, operand.head, operand.row, operand.column) == (0, 1, 0, 0)


def test_operations() -> None:
    _, problem = placed(attention(Form(), queries=10, keys=20, values=8))
    assert problem.operations == 2 * 2 * 3 * 10 * 20 * (16 + 8)


def test_only_families_of_attention_are_asked() -> None:
    graph = attention(Form(mask="keys"))
    task = attention_task(graph)
    assert {t.family for t in cpu().tactics(task, Binding({}))} == {"attention"}
    for other in propose(graph):
        if not other.attention:
            assert "attention" not in {t.family for t in cpu().tactics(other, Binding({}))}
    with pytest.raises(PlanError, match="'matrix'"):
        cpu().restore(task, "matrix", {})
