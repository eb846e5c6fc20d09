"""Recurrent layers in Triton's interpreter: every layer, direction, layout and activation."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import check_interpreted, compiled
from helpers.tactics import strided
from planish.errors import PlanError
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.ops import Gru, Lstm, Rnn
from planish.ops.recurrent import ACTIVATIONS, Activation, Recurrent
from planish.targets.base import Binding
from planish.targets.cuda.kernels.recurrent import Recurrence, RecurrentFamily

FAMILY = RecurrentFamily()
SIGMOID: Activation = ("sigmoid", 0.0, 0.0)
TANH: Activation = ("tanh", 0.0, 0.0)
BOTH = (False, True)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(23)


def lstm(reverse=(False,), **attributes) -> Lstm:
    return Lstm(reverse, (SIGMOID, TANH, TANH), **attributes)


def gru(reverse=(False,), **attributes) -> Gru:
    return Gru(reverse, (SIGMOID, TANH), **attributes)


def task_for(op: Recurrent, sizes: tuple[int, int, int], dtype: DType = DType.FLOAT32) -> Task:
    """The layer with T, N and H; nothing is constant."""
    steps, batch, hidden = sizes
    directions, graph = len(op.reverse), Graph()
    shapes = [
        (steps, batch, directions, op.gates, hidden),
        (directions, hidden, op.gates, hidden),
        *((directions, batch, hidden) for _ in range(op.states)),
        *op.extras(directions, hidden),
    ]
    values = [graph.input(f"x{i}", TensorType(s, dtype)) for i, s in enumerate(shapes)]
    if op.lengths:
        values.append(graph.input("lengths", TensorType((batch,), DType.INT64)))
    node = graph.add_node(op, values)
    return make_task([node], node)


def check(
    op, rng, sizes, tile=(1, 4, 8), dtype=DType.FLOAT32, layouts=False, stepwise=False
) -> None:
    task = task_for(op, sizes, dtype)
    arrays = [rng.standard_normal(v.shape).astype(dtype.numpy) for v in task.inputs]
    arrays[1] /= np.sqrt(sizes[2])
    if op.lengths:  # beyond either end counts as that end
        arrays[-1] = rng.integers(-1, sizes[0] + 2, sizes[1])
    check_interpreted(
        FAMILY,
        task,
        rng,
        tactics=[Recurrence(task, *tile, 1, stepwise)],
        arrays=arrays,
        layouts=(lambda v: strided(v, rng)) if layouts else None,
        tolerance=2e-5 if dtype is DType.FLOAT32 else 1e-12,
    )


@pytest.mark.parametrize(
    ("op", "sizes", "tile"),
    [
        (Rnn(BOTH, (TANH,), lengths=True), (4, 3, 7), (2, 4, 8)),
        (lstm(lengths=True), (3, 5, 20), (4, 8, 16)),
        (lstm(BOTH, peepholes=True, input_forget=True, clip=0.4), (3, 2, 16), (1, 8, 16)),
        (gru((True,), clip=0.4), (3, 3, 20), (2, 16, 16)),
        (gru(BOTH, lengths=True), (3, 3, 5), (2, 8, 4)),
        (gru(BOTH, reset_after=True, lengths=True), (3, 2, 9), (1, 8, 16)),
        (lstm(BOTH, lengths=True), (2, 17, 20), (16, 16, 16)),
        (gru(), (2, 5, 33), (16, 16, 16)),
    ],
    ids=str,
)
def test_layers(op, sizes, tile, rng):
    check(op, rng, sizes, tile)


@pytest.mark.parametrize(
    ("op", "sizes", "tile"),
    [
        (Rnn((True,), (TANH,)), (3, 1, 9), (1, 8, 4)),
        (lstm(BOTH, lengths=True, peepholes=True), (3, 3, 20), (2, 8, 8)),
        (gru(BOTH, lengths=True), (3, 3, 10), (2, 8, 4)),
        (gru(reset_after=True), (2, 17, 20), (16, 16, 16)),
    ],
    ids=str,
)
def test_a_launch_for_every_step(op, sizes, tile, rng):
    check(op, rng, sizes, tile, stepwise=True)


@pytest.mark.parametrize("op", [lstm(BOTH, lengths=True, peepholes=True), gru(reset_after=True)])
def test_layouts(op, rng):
    check(op, rng, (3, 3, 10), (2, 8, 8), layouts=True)


@pytest.mark.parametrize("op", [lstm(), gru(BOTH)], ids=str)
def test_float64(op, rng):
    check(op, rng, (2, 2, 5), dtype=DType.FLOAT64)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name, rng):
    check(Rnn((False,), ((name, 0.4, 0.3),)), rng, (2, 1, 5))


def test_one_unit_and_one_step(rng):
    check(lstm(), rng, (1, 1, 1))


@pytest.mark.parametrize("op", [lstm(BOTH, lengths=True), gru()], ids=["lstm", "gru"])
@pytest.mark.parametrize("batch", [1, 32])
def test_offered_tactics_compile(op, batch):
    task = task_for(op, (1, batch, 64))
    offered = list(FAMILY.tactics(task, Binding({})))
    for tactic in (offered[0], next(t for t in offered if not t.stepwise)):
        assert all(code.cubin for code in compiled(tactic, Binding({})))


def test_many_steps_have_no_launches_of_their_own():
    offered = list(FAMILY.tactics(task_for(lstm(), (2000, 1, 16)), Binding({})))
    assert offered
    assert not any(t.stepwise for t in offered)


def test_float64_is_not_multiplied_by_the_other_kernel():
    task = task_for(lstm(), (2, 32, 64), DType.FLOAT64)
    assert all(t.rows < 16 for t in FAMILY.tactics(task, Binding({})))
    assert not Recurrence(task, 16, 16, 16, 4).accepts(Binding({}))


def test_plans_cannot_ask_for_impossible_parameters():
    task = task_for(lstm(), (2, 3, 4))
    with pytest.raises(PlanError, match="impossible recurrent kernel"):
        FAMILY.restore(task, {"rows": 3, "depth": 4, "units": 8, "warps": 1, "stepwise": False})
