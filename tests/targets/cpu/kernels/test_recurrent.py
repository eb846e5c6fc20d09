"""The recurrent kernel against the references: every layer, direction, layout and activation."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.tactics import check_tactics, strided, task_of
from planish.errors import PlanError
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.ops import Gru, Lstm, MatMul, Rnn
from planish.ops.recurrent import ACTIVATIONS, Activation, Recurrent
from planish.targets.base import Layout, dense_strides
from planish.targets.cpu.kernels.recurrent import RecurrentFamily

FAMILY = RecurrentFamily()
SIGMOID: Activation = ("sigmoid", 0.0, 0.0)
TANH: Activation = ("tanh", 0.0, 0.0)
BOTH = (False, True)


@pytest.fixture
def rng():
    return np.random.default_rng(23)


def lstm(reverse=(False,), **attributes) -> Lstm:
    return Lstm(reverse, (SIGMOID, TANH, TANH), **attributes)


def gru(reverse=(False,), **attributes) -> Gru:
    return Gru(reverse, (SIGMOID, TANH), **attributes)


def check(
    op: Recurrent,
    rng: np.random.Generator,
    sizes: tuple[int, int, int],
    *,
    dtype: DType = DType.FLOAT32,
    constant: bool = True,
    layouts: bool = False,
) -> None:
    """Compares every tactic for T, N and H with the reference."""
    steps, batch, hidden = sizes
    directions, kind = len(op.reverse), dtype.numpy
    graph = Graph()

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(kind)

    weights = random(directions, hidden, op.gates, hidden) / kind.type(np.sqrt(hidden))
    values = [
        graph.input("x", TensorType((steps, batch, directions, op.gates, hidden), dtype)),
        graph.constant(weights)
        if constant
        else graph.input("weights", TensorType(weights.shape, dtype)),
    ]
    state = TensorType((directions, batch, hidden), dtype)
    values += [graph.input(f"state{i}", state) for i in range(op.states)]
    values += [graph.constant(random(*shape)) for shape in op.extras(directions, hidden)]
    if op.lengths:
        values.append(graph.input("lengths", TensorType((batch,), DType.INT64)))
    node = graph.add_node(op, values)
    task = make_task([node], node)
    lengths = rng.integers(-1, steps + 2, batch)  # beyond either end counts as that end
    arrays = [
        v.data
        if v.data is not None
        else {"lengths": lengths, "weights": weights}.get(v.name, random(*map(int, v.shape)))  # type: ignore[arg-type]
        for v in task.inputs
    ]

    def layout(value) -> Layout:
        if value.is_constant:
            return Layout(value.shape, dense_strides(value.shape))
        return strided(value, rng)

    check_tactics(
        FAMILY,
        task,
        rng,
        arrays=arrays,
        layouts=layout if layouts else None,
        tolerance=2e-5 if dtype is DType.FLOAT32 else 1e-12,
    )


@pytest.mark.parametrize(
    ("op", "sizes"),
    [
        (Rnn(BOTH, (TANH,), lengths=True), (4, 3, 7)),
        (lstm(lengths=True), (5, 5, 20)),
        (lstm(BOTH, peepholes=True, input_forget=True, clip=0.4), (3, 2, 16)),
        (gru((True,), clip=0.4), (5, 4, 20)),
        (gru(BOTH, reset_after=True, lengths=True), (4, 6, 33)),
    ],
    ids=str,
)
def test_layers(op, sizes, rng):
    check(op, rng, sizes)


@pytest.mark.parametrize("op", [lstm(BOTH, lengths=True, peepholes=True), gru(reset_after=True)])
def test_layouts_and_weights_that_are_not_constant(op, rng):
    check(op, rng, (4, 3, 20), constant=False, layouts=True)


@pytest.mark.parametrize("op", [lstm(), gru(BOTH)], ids=str)
def test_float64(op, rng):
    check(op, rng, (3, 2, 11), dtype=DType.FLOAT64)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name, rng):
    check(Rnn((False,), ((name, 0.4, 0.3),)), rng, (3, 1, 9))


def test_one_unit_and_one_step(rng):
    check(lstm(), rng, (1, 1, 1))


def other_task() -> Task:
    return task_of((MatMul(), 2), inputs=[((4, 8), DType.INT8), ((8, 16), DType.INT8)])


def test_other_tasks_and_impossible_parameters_are_refused():
    with pytest.raises(PlanError, match="recurrent"):
        FAMILY.restore(other_task(), {"rows": 1})
    graph = Graph()
    x = graph.input("x", TensorType((3, 2, 1, 1, 4), DType.FLOAT32))
    weights = graph.input("w", TensorType((1, 4, 1, 4), DType.FLOAT32))
    state = graph.input("s", TensorType((1, 2, 4), DType.FLOAT32))
    node = graph.add_node(Rnn((False,), (TANH,)), (x, weights, state))
    with pytest.raises(PlanError, match="recurrent"):
        FAMILY.restore(make_task([node], node), {"rows": 3})
