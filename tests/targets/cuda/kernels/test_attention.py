"""Attention on GPUs against the references, in Triton's interpreter; and what it compiles to."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.attentions import (
    FORMS,
    MASKS,
    Form,
    attention,
    attention_task,
    feeds_for,
    feeds_hiding,
)
from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.tactics import row_padded, strided
from planish.errors import PlanError
from planish.fusion.candidates import propose
from planish.graph.types import DType
from planish.ops.elementwise import Cast
from planish.ops.quantization import Quantize
from planish.ops.shape import Transpose
from planish.targets.attention import problem_of
from planish.targets.base import Binding
from planish.targets.cuda.kernels.attention import AttentionFamily, AttentionTactic, choices
from planish.targets.cuda.machine import H200
from planish.targets.cuda.run import run_tactic

FAMILY = AttentionFamily(H200)
F16, BF16, F32 = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32
CLOSE = {F16: 4e-3, BF16: 3e-2, F32: 2e-5}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(6)


def task_of(form, dtype=F16, **sizes):
    return attention_task(attention(form, dtype=dtype, **sizes))


def check(form, rng, dtype=F16, *, layouts=None, arrays=None, tactics=None, **sizes) -> None:
    task = task_of(form, dtype, **sizes)
    check_interpreted(
        FAMILY,
        task,
        rng,
        tactics=tactics and [AttentionTactic(task, *t) for t in tactics],
        layouts=layouts,
        arrays=arrays or feeds_for(task.inputs, rng),
        tolerance=CLOSE[dtype],
        limit=None if tactics else 1,
    )


@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, rng):
    check(Form(mask=mask), rng, queries=21, keys=37)


@pytest.mark.parametrize("form", [*FORMS, Form(wide=True, mask="keys")], ids=str)
def test_forms(form, rng):
    check(form, rng, queries=17, keys=9)


@pytest.mark.parametrize("size", [1, 32, 64, 80, 96, 128])
def test_head_sizes(size, rng):
    check(Form(mask="keys"), rng, size=size, queries=19, keys=23)


@pytest.mark.parametrize("guard", ["", "nan"], ids=["plain", "guarded"])
@pytest.mark.parametrize("wide", [True, False], ids=["cast", "float"])
@pytest.mark.parametrize("heads_last", [True, False], ids=["turned", "as it is"])
def test_levels_of_the_result(heads_last, wide, guard, rng):
    """As where a quantized product reads it: levels, and then the transposition."""
    dtype = F16 if wide else F32
    form = Form(heads_last=heads_last, guard=guard, mask="keys")
    graph = attention(form, dtype=dtype, queries=17, keys=9)
    (result,) = graph.outputs
    source = result.producer.inputs[0] if heads_last else result
    numbers = (graph.constant(np.float32(n)) for n in (0.02, 0.0))
    levels = graph.add(Cast(F32), source) if wide else source
    levels = graph.add(Quantize(DType.INT8, -128, 127), levels, *numbers)
    if heads_last:
        levels = graph.add(Transpose((0, 2, 1, 3)), levels)
    graph.outputs = [levels]
    graph.tidy()
    found = [task for task in propose(graph) if task.attention]
    assert [task.output.dtype for task in found] == [DType.INT8, dtype]
    assert all(task.attention.guarded == bool(guard) for task in found)
    arrays = feeds_for(found[0].inputs, rng)
    tactic, *_ = FAMILY.tactics(found[0], Binding({}))
    (got,), (wanted,) = run_tactic(tactic, Binding({}), arrays), found[0].evaluate(arrays)
    apart = np.abs(got.astype(int) - wanted)
    assert apart.max() <= 1 and apart.mean() < 0.05 and np.abs(wanted).max() > 20


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 300), (33, 64), (50, 129)])
def test_lengths(queries, keys, rng):
    check(Form(), rng, queries=queries, keys=keys, heads=2)


def test_values_may_be_narrower_than_queries(rng):
    check(Form(), rng, size=24, values=40)


def test_parts_of_one_projection(rng):
    check(Form(merged=True, mask="keys"), rng, queries=12, keys=12)


@pytest.mark.parametrize("layouts", [row_padded, strided])
def test_layouts(layouts, rng):
    chosen = row_padded if layouts is row_padded else lambda v: strided(v, rng)
    check(Form(mask="queries", factor=True), rng, layouts=chosen, queries=11, keys=13)


@pytest.mark.parametrize("dtype", [F16, BF16, F32])
@pytest.mark.parametrize("tile", [(16, 16, 4, 1), (32, 64, 4, 2), (64, 32, 4, 2), (128, 16, 8, 3)])
def test_tiles(tile, dtype, rng):
    check(Form(mask="queries"), rng, dtype, tactics=[tile], queries=50, keys=70, heads=2, batch=1)


def test_passes_of_float32(rng):
    task = task_of(Form(), F32)
    offered = list(FAMILY.tactics(task, Binding({})))
    assert {(t.passes, t.precision) for t in offered} == {(0, "fp32"), (1, "tf32"), (3, "fp32")}
    assert not any(t.is_permitted(frozenset({"fp32"})) for t in offered if t.passes == 1)
    tactics = [(16, 16, 4, 1, passes) for passes in (0, 1, 3)]
    check(Form(), rng, F32, tactics=tactics)


class TestRowsWithoutWeights:
    def test_a_whole_block_of_keys_is_hidden(self, rng):
        task = task_of(Form(mask="bool"), queries=20, keys=60)
        arrays = feeds_hiding(task, rng, (3, slice(0, 40)))
        assert np.isfinite(task.evaluate(arrays)[0]).all()
        tactics = [AttentionTactic(task, 16, 16, 4, 1)]
        check_interpreted(FAMILY, task, rng, tactics=tactics, arrays=arrays, tolerance=CLOSE[F16])

    @pytest.mark.parametrize("guard", ["", "nan"])
    def test_everything_is_hidden(self, guard, rng):
        task = task_of(Form(mask="bool", guard=guard), queries=20, keys=20)
        arrays = feeds_hiding(task, rng, (3, slice(None)))
        with np.errstate(invalid="ignore"):
            assert np.isnan(task.evaluate(arrays)[0]).any() == (guard == "")
            tactics = [AttentionTactic(task, 16, 16, 4, 1)]
            check_interpreted(
                FAMILY, task, rng, tactics=tactics, arrays=arrays, tolerance=CLOSE[F16]
            )

    def test_least_finite_scores_count_alike(self, rng):
        task = task_of(Form(mask="keys"), F32, queries=9, keys=20)
        arrays = feeds_for(task.inputs, rng)
        arrays[-1] = np.full_like(arrays[-1], np.finfo(np.float32).min)
        tactics = [AttentionTactic(task, 16, 16, 4, 1, 0)]
        check_interpreted(FAMILY, task, rng, tactics=tactics, arrays=arrays, tolerance=CLOSE[F32])


BERT = dict(queries=128, keys=128, heads=12, size=64)
VIT = dict(queries=197, keys=197, heads=12, size=64)


@pytest.mark.parametrize("sizes", [BERT, VIT], ids=["bert", "vit"])
@pytest.mark.parametrize("batch", [1, 8, 128])
def test_what_is_offered_differs(batch, sizes):
    task = task_of(Form(), batch=batch, **sizes)
    offered = list(FAMILY.tactics(task, Binding({})))
    assert 8 <= len(offered) <= 12
    assert len({(t.rows, t.block) for t in offered}) >= 5
    assert any(t.rows >= 64 for t in offered)
    if batch == 128:
        assert offered[0].rows >= 64


def test_a_smaller_machine_is_offered_smaller_tiles():
    small = replace(H200, capability=(8, 6), shared=101376, shared_per_multiprocessor=102400)
    problem = problem_of(task_of(Form(), batch=8, **{**BERT, "size": 128}), Binding({}))
    for rows, block, _, stages in choices(problem, 2, 1, small):
        assert 2 * (rows + 2 * stages * block) * 128 <= small.shared


@pytest.mark.parametrize("batch", [1, 8])
def test_hopper_multiplies_in_groups_of_warps(batch):
    task = task_of(Form(mask="keys"), batch=batch, **BERT)
    offered = list(FAMILY.tactics(task, Binding({})))
    tactic = next(t for t in offered if t.rows >= 64 and t.stages > 1)
    text = assembly(tactic, Binding({}))
    assert text.count("wgmma.mma_async") >= 2
    assert ".local" not in text  # nothing is spilled before ptxas
    assert "cp.async.cg.shared.global" in text
    (code,) = compiled(tactic, Binding({}))
    assert code.shared <= H200.shared


def test_batches_share_a_kernel():
    kernels = set()
    for batch in (2, 5):
        task = task_of(Form(mask="keys"), batch=batch, **BERT)
        (launch,) = AttentionTactic(task, 64, 64, 4, 2).launches(Binding({}))
        kernels.add(launch.kernel.symbol)
        assert launch.tasks == 2 * 12 * batch
    assert len(kernels) == 1


def test_float32_compiles():
    task = task_of(Form(mask="bool"), F32, **BERT)
    for passes in (0, 1, 3):
        tactic = AttentionTactic(task, 64, 32, 4, 1, passes)
        assert (".tf32" in assembly(tactic, Binding({}))) is (passes > 0)


def test_other_tasks_are_declined():
    assert not list(FAMILY.tactics(task_of(Form(), size=512), Binding({})))
    graph = attention(Form())
    (plain,) = (t for t in propose(graph) if t.kind == "softmax" and len(t.nodes) == 1)
    with pytest.raises(PlanError, match="impossible attention kernel"):
        FAMILY.restore(plain, dict(rows=64, block=64, warps=4, stages=2, passes=1))


@pytest.mark.parametrize("change", [{"rows": 24}, {"block": 8}, {"passes": 2}], ids=str)
def test_plans_cannot_ask_for_impossible_tiles(change):
    task = task_of(Form())
    known = dict(rows=64, block=64, warps=4, stages=2, passes=1)
    assert FAMILY.restore(task, known)
    with pytest.raises(PlanError, match="impossible attention kernel"):
        FAMILY.restore(task, {**known, **change})
