"""What every family's `restore` does with a plan's parameters."""

from __future__ import annotations

import pytest

from planish.errors import PlanError
from planish.fusion.task import Task, make_task
from planish.graph.graph import Graph
from planish.graph.types import DType, TensorType
from planish.ops.elementwise import ew
from planish.ops.matmul import MatMul
from planish.ops.normalization import Softmax
from planish.targets.base import Family
from planish.targets.cpu.kernels import FAMILIES
from planish.targets.restoring import FLAG, checked_parameters


def make(op, *shapes: tuple[int, ...], anchor: bool = True) -> Task:
    graph = Graph()
    values = [graph.input(f"x{i}", TensorType(s, DType.FLOAT32)) for i, s in enumerate(shapes)]
    graph.add(op, *values, name="layer")
    node = graph.nodes[-1]
    return make_task((node,), node if anchor else None)


SUM = make(ew.Add(), (2, 3), (2, 3), anchor=False)
SOFTMAX = make(Softmax(-1), (2, 3))
MATMUL = make(MatMul(), (2, 3), (3, 4))
POSSIBLE = {
    "matrix": {"pixels": 4, "vectors": 2, "tail": 0, "pixels_outer": False, "packed": False},
    "rows": {"vectors": 2},
    "elementwise": {"unroll": 4},
}


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
@pytest.mark.parametrize(
    ("task", "owners"),
    [(SUM, ["elementwise"]), (SOFTMAX, ["rows"]), (MATMUL, ["matrix", "contraction"])],
    ids=["add", "softmax", "matmul"],
)
def test_a_task_of_another_kind_is_refused(family: Family, task: Task, owners: list[str]) -> None:
    if family.name in owners:
        return
    with pytest.raises(PlanError) as caught:
        family.restore(task, {})
    assert caught.value.what == f"The plan asks for an impossible {family.name} kernel"
    assert caught.value.where == task.name
    assert "does not compute this" in caught.value.why
    assert caught.value.cure


@pytest.mark.parametrize(
    ("family", "task"), [("matrix", MATMUL), ("rows", SOFTMAX), ("elementwise", SUM)]
)
def test_wrong_parameters_are_named(family: str, task: Task) -> None:
    (chosen,) = (f for f in FAMILIES if f.name == family)
    possible = POSSIBLE[family]
    assert chosen.restore(task, possible).parameters == possible
    for name, value in possible.items():
        alike = () if isinstance(value, bool) else (bool(value),)
        for wrong in (-1, 10_000, 1.5, float(value), "4", None, *alike):
            with pytest.raises(PlanError, match=f"{name} is {wrong!r}"):
                chosen.restore(task, {**possible, name: wrong})
        with pytest.raises(PlanError, match="its parameters are"):
            chosen.restore(task, {n: v for n, v in possible.items() if n != name})
    with pytest.raises(PlanError, match=r"the plan gives .*colour"):
        chosen.restore(task, {**possible, "colour": 1})


def test_a_tile_of_too_many_registers() -> None:
    (matrix,) = (f for f in FAMILIES if f.name == "matrix")
    for changed in ({"pixels": 64}, {"tail": 5}, {"tail": 4}, {"pixels": 1, "tail": 1}):
        with pytest.raises(PlanError, match="no tile has"):
            matrix.restore(MATMUL, {**POSSIBLE["matrix"], **changed})


def test_values_are_listed() -> None:
    with pytest.raises(PlanError) as caught:
        checked_parameters("rows", SOFTMAX, {"vectors": 9}, True, vectors=range(1, 9))
    assert caught.value.why == "vectors is 9, which is none of 1 to 8"
    with pytest.raises(PlanError) as caught:
        checked_parameters("rows", SOFTMAX, {"wide": 1}, True, wide=FLAG)
    assert caught.value.why == "wide is 1, which is none of False, True"
    with pytest.raises(PlanError) as caught:
        checked_parameters("rows", SOFTMAX, {"vectors": 9}, True)
    assert caught.value.why == "its parameters are none; the plan gives vectors"
