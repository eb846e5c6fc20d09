"""cuDNN's tactics: what plans store; on a GPU (marked cuda) every plan runs, and is right."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import numpy as np
import pytest

from helpers.cudnn_tasks import (
    ACTIVATIONS,
    FAMILY,
    PLAN,
    conv_bias,
    product,
    product_with_scales,
    residual,
)
from helpers.levels import conv_of_levels
from helpers.tactics import row_padded
from planish.errors import PlanError, TuningError
from planish.fusion.task import Task
from planish.graph import DType, Graph, TensorType
from planish.graph.dims import symbol
from planish.graph.graph import DimRange
from planish.ops.conv import Conv
from planish.ops.elementwise import Clip, Gelu, ew
from planish.targets.base import Binding
from planish.targets.cuda.kernels.cudnn import CudnnFamily, CudnnTactic

F16, BF16, F32 = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


# ---- tactics -------------------------------------------------------------------------------------


def test_without_a_gpu_nothing_is_offered(rng) -> None:
    task = conv_bias(rng)
    assert list(FAMILY.tactics(task, Binding({}))) == []
    assert not FAMILY.restore(task, PLAN).accepts(Binding({}))


def test_a_plan_restores_what_it_stores(rng) -> None:
    task = conv_bias(rng, Clip(0.0, 6.0))
    tactic = FAMILY.restore(task, PLAN)
    assert isinstance(tactic, CudnnTactic)
    assert tactic.parameters == PLAN
    filters, *scalars = tactic.constants()
    weights = task.inputs[1].data
    assert weights is not None
    np.testing.assert_array_equal(filters, weights.transpose(3, 0, 1, 2))
    assert filters.flags["C_CONTIGUOUS"]
    assert [s.tolist() for s in scalars] == [[0.0], [6.0]]
    kernel = tactic.launches(Binding({}))[0].kernel
    again = FAMILY.restore(task, dict(PLAN)).launches(Binding({}))[0].kernel
    assert kernel.symbol == again.symbol  # type: ignore[union-attr]
    other = FAMILY.restore(task, {**PLAN, "plan": "eng4_k24=24"}).launches(Binding({}))[0].kernel
    assert kernel.symbol != other.symbol  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "wrong",
    [
        {"plan": "eng4; rm"},
        {"plan": 4},
        {"version": -1},
        {"version": "9"},
        {"tf32": 1},
        {"more": 1},
    ],
    ids=str,
)
def test_impossible_parameters_are_refused(rng, wrong) -> None:
    with pytest.raises(PlanError, match="cudnn"):
        FAMILY.restore(conv_bias(rng), {**PLAN, **wrong})


def test_other_tasks_are_refused(rng) -> None:
    with pytest.raises(PlanError, match="cudnn"):
        FAMILY.restore(conv_bias(rng, ew.Sin()), PLAN)
    with pytest.raises(PlanError, match="TF32"):
        FAMILY.restore(conv_bias(rng, dtype=F16), {**PLAN, "tf32": True})
    without = {name: value for name, value in PLAN.items() if name != "plan"}
    with pytest.raises(PlanError, match="plan"):
        FAMILY.restore(conv_bias(rng), without)


# ---- on a GPU ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def target():
    from planish.targets.cuda.target import cuda

    return cuda("cuda:0")


def offered(target, task: Task, binding: Binding | None = None) -> list[CudnnTactic]:
    found = list(CudnnFamily(target.machine).tactics(task, binding or Binding({})))
    assert found, "cuDNN offers nothing"
    return found  # type: ignore[return-value]


def measured(target, task: Task, binding: Binding | None = None) -> dict[str, str]:
    """For each tactic offered what is wrong with its results; empty: nothing."""
    from planish.tuning.measure import Bench

    binding = binding or Binding({})
    bench = Bench(task, binding, target, 1)
    found = {}
    for tactic in offered(target, task, binding):
        assert tactic.accepts(binding)
        try:
            found[str(tactic)] = bench.measure(tactic).wrong
        except TuningError as error:
            found[str(tactic)] = str(error)
    return found


@pytest.mark.cuda
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("window", [(1, 1), (3, 3)])
def test_levels_on_a_gpu(target, rng, residual, window) -> None:
    around = ((window[0] // 2,) * 2,) * 2
    task = conv_of_levels(rng, (4, 14, 14, 64), 128, window, padding=around, residual=residual)
    wrong = measured(target, task)
    assert any(not why for why in wrong.values()), wrong


@pytest.mark.cuda
def test_products_of_levels_on_a_gpu(target, rng) -> None:
    wrong = measured(target, product_with_scales(rng))
    assert not any(wrong.values()), wrong  # there need not be any plan


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"shape": (1, 56, 56, 64), "filters": 64},
        {"strides": 2, "padding": (0, 1), "shape": (3, 28, 28, 32), "filters": 96},
        {"shape": (2, 1, 1, 64), "window": (1, 1), "padding": (0, 0)},
        {"dilation": 2, "padding": (2, 2), "shape": (1, 14, 14, 64)},
        {"groups": 8},
        {"groups": 4, "shape": (2, 14, 14, 64), "filters": 64},
        {"shape": (1, 17, 9, 3), "filters": 5},
        {"shape": (3, 90, 32), "window": (3,)},
    ],
    ids=str,
)
def test_plans_are_right(target, rng, dtype, more) -> None:
    results = measured(target, conv_bias(rng, ew.Relu(), dtype=dtype, **more))
    assert not any(list(results.values())[:1]), results
    assert sum(not wrong for wrong in results.values()) * 2 > len(results), results


@pytest.mark.cuda
@pytest.mark.parametrize(
    "op",
    ACTIVATIONS,
    ids=str,
)
def test_fused_work_is_right(target, rng, op) -> None:
    task = conv_bias(rng, op, dtype=F16, shape=(2, 14, 14, 64), filters=64)
    results = measured(target, task)
    assert any(not wrong for wrong in results.values()), results


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("shape", [(1024, 768), (2, 512, 768), (2, 4, 128, 768)], ids=str)
def test_products_are_right(target, rng, dtype, shape) -> None:
    results = measured(target, product(rng, Gelu(), dtype, shape, 1024))
    assert any(not wrong for wrong in results.values()), results


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [F16, F32], ids=str)
def test_residuals_and_strided_results_are_right(target, rng, dtype) -> None:
    task = residual(rng, dtype, (2, 14, 14, 64))
    results = measured(target, task)
    assert any("residual_first=True" in name for name in results)
    assert not any(results.values()), results
    binding = Binding({}, {task.output: row_padded(task.output, 16)})
    results = measured(target, task, binding)
    assert any(not wrong for wrong in results.values()), results


@pytest.mark.cuda
def test_float32_is_not_rounded_to_tf32(target, rng) -> None:
    task = conv_bias(rng, ew.Relu(), shape=(2, 14, 14, 64), filters=64)
    tactics = offered(target, task)
    assert {t.precision for t in tactics} == {"fp32", "tf32"}
    results = measured(target, task)
    assert not any(results[str(t)] for t in tactics if t.precision == "fp32"), results


@pytest.mark.cuda
def test_plans_are_made_again(target, rng) -> None:
    """By name, and as cuDNN wrote them, in a session that knows nothing."""
    from planish.targets.cuda.libraries import cudnn as library
    from planish.tuning.measure import Bench

    task = conv_bias(rng, dtype=F16, shape=(2, 14, 14, 64), filters=64)
    bench = Bench(task, Binding({}), target, 1)
    old = library.session(target.gpu.ordinal)
    assert old is not None
    for tactic in offered(target, task):
        kernel = tactic.launches(Binding({}))[0].kernel
        old._cache._memory.pop(f"{kernel.symbol}_plan", None)  # type: ignore[union-attr]
        fresh = library.CudnnSession(target.gpu, old.cudnn)
        fresh._cache._folder = None
        for stored in (False, True):  # the second time from what the first one wrote
            assert (fresh.code(kernel.symbol) is not None) == stored  # type: ignore[union-attr]
            old._ready[kernel.symbol] = fresh.make(kernel)  # type: ignore[union-attr, arg-type]
            target._libraries.clear()
            assert bench.measure(tactic).wrong == ""


@pytest.mark.cuda
def test_plans_of_nobody_are_refused(target, rng) -> None:
    task = conv_bias(rng, dtype=F16, shape=(2, 14, 14, 64), filters=64)
    first = offered(target, task)[0]
    assert first.accepts(Binding({}))
    assert not replace(first, plan="eng9999_k24=3").accepts(Binding({}))
    assert not replace(first, version=80000).accepts(Binding({}))


@pytest.mark.cuda
def test_several_threads_queue_at_once(target, rng) -> None:
    tasks = [conv_bias(rng, dtype=F16, shape=(2, 14, 14, 64), filters=k) for k in (32, 64, 96)]
    wrong: list[str] = []

    def work(task: Task) -> None:
        wrong.extend(w for w in measured(target, task).values() if w)

    threads = [threading.Thread(target=work, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_of_libraries_only(target, rng, monkeypatch, precision) -> None:
    """Built, run at sizes tuned and others, saved, and loaded where nothing is ready."""
    from planish.builder import build_graph
    from planish.plan.load import load
    from planish.targets.cpu.target import cpu
    from planish.targets.cuda.libraries import cublaslt, cudnn

    def network() -> Graph:
        random = np.random.default_rng(3)
        graph = Graph("net")
        y = graph.input("x", TensorType((symbol("N"), 14, 14, 8), F32))
        graph.ranges["N"] = DimRange(1, 4, 16)
        for size in ((3, 3, 8, 32), (1, 1, 32, 64), (3, 3, 64, 64)):
            pads = ((size[0] // 2,) * 2,) * 2
            weights = random.standard_normal(size) * math.prod(size[:-1]) ** -0.5
            bias = random.standard_normal(size[-1]).astype(np.float32)
            conv = Conv((1, 1), pads, (1, 1))
            y = graph.add(conv, y, graph.constant(weights.astype(np.float32)))
            y = graph.add(ew.Relu(), graph.add(ew.Add(), y, graph.constant(bias)))
        graph.mark_output(y, "y")
        return graph

    chosen = [f for f in target.families() if f.name in ("cudnn", "cublaslt", "pointwise")]
    monkeypatch.setattr(target, "_families", tuple(chosen))
    engine = build_graph(network(), target, precision=frozenset({"fp32", precision}))
    used = {step.choices[0].tactic.family for step in engine.plan.steps}
    assert used <= {"cudnn", "cublaslt", "pointwise"} and "cudnn" in used
    reference = build_graph(network(), cpu(), tuning_seconds=0)
    stored = engine.serialize()
    for module in (cudnn, cublaslt):
        module.session.cache_clear()
    target._libraries.clear()
    again = load(stored)
    tolerance = 1e-4 if precision == "fp32" else 2e-2
    for images in (4, 1, 16, 7, 3):
        x = rng.standard_normal((images, 14, 14, 8)).astype(np.float32)
        wanted = reference(x)
        for made in (engine, again):
            error = np.abs(made(x) - wanted).max()
            assert error <= tolerance * np.abs(wanted).max()
        np.testing.assert_array_equal(engine(x), again(x))
