"""cuDNN's attention. Without a GPU: tasks as graphs, interpreted in NumPy against the references;
what is refused; what plans store. With one (marked cuda): every plan runs, and is right.
"""

from __future__ import annotations

import numpy as np
import pytest

from helpers.attentions import FORMS, Form, attention, attention_task, feeds_for
from helpers.tactics import row_padded
from planish.errors import PlanError, TuningError
from planish.fusion.task import Task
from planish.graph import DType
from planish.targets.base import Binding
from planish.targets.cuda.kernels.cudnn_attention import (
    CudnnAttention,
    CudnnAttentionFamily,
    graph_of,
)
from planish.targets.cuda.libraries.cudnn_graph import Tensor
from planish.targets.cuda.machine import H200

F16, BF16, F32 = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32
FAMILY = CudnnAttentionFamily(H200)
PLAIN = Form()
PLAN = {"version": 91900, "plan": "eng4_k24=25"}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def task_of(form: Form = PLAIN, dtype: DType = F16, **sizes) -> Task:
    return attention_task(attention(form, dtype=dtype, **sizes))


def view(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    """The elements of an array as cuDNN sees them: batches, heads, rows, columns."""
    flat = np.ascontiguousarray(array).reshape(-1)
    steps = [s * flat.itemsize for s in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, steps)


@pytest.mark.parametrize(
    "form",
    [
        Form(),
        Form(heads_last=False, scaled="both"),
        Form(keys_first=False, scaled="none"),
        Form(scaled="q", values_first=True),
        Form(wide=True),
    ],
    ids=str,
)
@pytest.mark.parametrize("batch", [1, 2])
def test_graphs(form, batch, rng) -> None:
    task = task_of(form, batch=batch, queries=9, keys=13)
    graph = graph_of(task, Binding({}))
    assert graph is not None
    work = task.attention
    assert work is not None
    arrays = feeds_for(task.inputs, rng)
    q, k, v = (
        view(t, arrays[i]).astype(np.float64)
        for t, i in zip((graph.q, graph.k, graph.v), work.sources, strict=True)
    )
    scores = graph.scale * q @ k.swapaxes(-1, -2)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    wanted = weights / weights.sum(-1, keepdims=True) @ v
    (result,) = task.evaluate(arrays)
    assert graph.result.shape == wanted.shape
    np.testing.assert_allclose(view(graph.result, result), wanted, atol=4e-3)


@pytest.mark.parametrize("form", [f for f in FORMS if f.factor or f.guard], ids=str)
def test_work_beside_a_scale_is_refused(form) -> None:
    assert graph_of(task_of(form), Binding({})) is None


@pytest.mark.parametrize("mask", ["keys", "bool", "causal"])
def test_masks_are_refused(mask) -> None:
    assert graph_of(task_of(Form(mask=mask)), Binding({})) is None


def test_other_sizes_and_layouts_are_refused() -> None:
    assert graph_of(task_of(dtype=F32), Binding({})) is None
    assert graph_of(task_of(size=12), Binding({})) is None
    assert graph_of(task_of(size=256), Binding({})) is None
    assert graph_of(task_of(size=128), Binding({})) is not None
    task = task_of()
    odd = {v: row_padded(v, 1) for v in task.inputs[:1]}
    assert graph_of(task, Binding({}, odd)) is None


def test_without_a_gpu_nothing_is_offered() -> None:
    task = task_of()
    assert list(FAMILY.tactics(task, Binding({}))) == []
    assert not FAMILY.restore(task, PLAN).accepts(Binding({}))


def test_a_plan_restores_what_it_stores() -> None:
    task = task_of()
    tactic = FAMILY.restore(task, PLAN)
    assert isinstance(tactic, CudnnAttention)
    assert tactic.parameters == PLAN
    (launch,) = tactic.launches(Binding({}))
    assert len(launch.pointers) == 5
    other = FAMILY.restore(task, {**PLAN, "plan": "eng5"}).launches(Binding({}))[0].kernel
    assert launch.kernel.symbol != other.symbol  # type: ignore[union-attr]


@pytest.mark.parametrize("wrong", [{"plan": "eng4; rm"}, {"version": "9"}, {"more": 1}], ids=str)
def test_impossible_parameters_are_refused(wrong) -> None:
    with pytest.raises(PlanError, match="cudnn_attention"):
        FAMILY.restore(task_of(), {**PLAN, **wrong})
    with pytest.raises(PlanError, match="cudnn_attention"):
        FAMILY.restore(task_of(Form(mask="keys")), PLAN)


# ---- on a GPU ------------------------------------------------------------------------------------


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize(
    ("form", "sizes"),
    [
        (Form(), {"batch": 2, "heads": 4, "queries": 128, "keys": 128, "size": 64}),
        (Form(merged=True), {"batch": 3, "heads": 2, "queries": 197, "keys": 197, "size": 64}),
        (Form(heads_last=False), {"batch": 1, "heads": 2, "queries": 40, "keys": 333, "size": 32}),
    ],
    ids=str,
)
def test_plans_are_right(rng, dtype, form, sizes) -> None:
    from planish.targets.cuda.target import cuda
    from planish.tuning.measure import Bench

    target = cuda("cuda:0")
    task = task_of(form, dtype, **sizes)
    bench = Bench(task, Binding({}), target, 1)
    offered = list(CudnnAttentionFamily(target.machine).tactics(task, Binding({})))
    assert offered, "cuDNN offers nothing"
    found = {}
    for tactic in offered:
        try:
            found[str(tactic)] = bench.measure(tactic).wrong
        except TuningError as error:
            found[str(tactic)] = str(error)
    assert any(not wrong for wrong in found.values()), found
