"""Attention of short sequences in PTX: without a GPU in an interpreter that delays copies and
products; masks, forms, sizes, dtypes, layouts, what is declined.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

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
from helpers.interpreted import check_interpreted
from helpers.ptx_text import without
from helpers.tactics import row_padded, strided
from planish.errors import PlanError
from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph import DType
from planish.graph.graph import Value
from planish.ops.elementwise import Cast, ew
from planish.ops.matmul import MatMul
from planish.ops.quantization import Quantize
from planish.ops.shape import Transpose
from planish.targets.base import Binding, Layout
from planish.targets.cuda.codegen.compile import triton
from planish.targets.cuda.kernels.ptx.attention.kernel import ShortAttentionKernel
from planish.targets.cuda.kernels.ptx.attention.tactics import (
    ShortAttention,
    ShortAttentionFamily,
    factor_of,
)
from planish.targets.cuda.machine import H200
from planish.targets.cuda.ptx_interpreter import Grid
from planish.targets.cuda.run import is_on_gpu, run_tactic

FAMILY = ShortAttentionFamily()
F16, BF16, F32 = DType.FLOAT16, DType.BFLOAT16, DType.FLOAT32
CLOSE = {F16: 4e-3, BF16: 3e-2}
ONE = ((1, 1),)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(6)


def task_of(form: Form, dtype: DType = F16, **sizes) -> Task:
    return attention_task(attention(form, dtype=dtype, **sizes))


def offered(task: Task, binding: Binding | None = None) -> list[ShortAttention]:
    return list(FAMILY.tactics(task, binding or Binding({})))


def check(
    form: Form,
    rng,
    dtype: DType = F16,
    *,
    tiles=ONE,
    layouts: Callable[[Value], Layout] | None = None,
    arrays: list[np.ndarray] | None = None,
    **sizes,
) -> None:
    task = task_of(form, dtype, **sizes)
    check_interpreted(
        FAMILY,
        task,
        rng,
        tactics=[ShortAttention(task, *tile) for tile in tiles],
        layouts=layouts,
        arrays=arrays or feeds_for(task.inputs, rng),
        tolerance=CLOSE[dtype],
        limit=None,
    )


def quiet(task: Task, rng) -> list[np.ndarray]:
    """Arrays whose scores are so small that halves, which references keep them in, are exact."""
    arrays = feeds_for(task.inputs, rng)
    return [a / a.dtype.type(2) if a.dtype == np.float16 and a.ndim == 4 else a for a in arrays]


# ---- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("keys", [37, 48])
def test_masks(mask, keys, rng):
    check(Form(mask=mask), rng, queries=21, keys=keys)


@pytest.mark.parametrize("form", [*FORMS, Form(wide=True, mask="keys")], ids=str)
def test_forms(form, rng):
    check(form, rng, queries=17, keys=24)


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("size", [8, 32, 40, 64, 80, 128])
def test_head_sizes(size, dtype, rng):
    check(Form(mask="keys"), rng, dtype, size=size, queries=19, keys=40)


@pytest.mark.parametrize(("size", "values"), [(24, 40), (64, 128), (128, 32)])
def test_values_of_another_size(size, values, rng):
    check(Form(), rng, size=size, values=values, queries=70, keys=30)


@pytest.mark.parametrize("tile", [(1, 1), (2, 1), (1, 2), (2, 2)], ids=str)
@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_tiles(tile, dtype):
    rng = np.random.default_rng()
    sizes = {"queries": int(rng.integers(65, 300)), "keys": int(rng.integers(2, 129))}
    sizes |= {"batch": int(rng.integers(1, 3)), "heads": int(rng.integers(1, 4))}
    check(Form(), rng, dtype, tiles=[tile], size=64, **sizes)


@pytest.mark.parametrize("keys", [2, 16, 129, 197, 256])
def test_keys(keys, rng):
    sizes = {"queries": 66, "keys": keys, "heads": 1, "size": 64}
    arrays = quiet(task_of(Form(), **sizes), rng)
    mask = rng.standard_normal((2, 1, 66, keys)).astype(np.float16)
    check(Form(mask="queries"), rng, tiles=[(1, 2)], arrays=[*arrays, mask], **sizes)


@pytest.mark.parametrize(("batch", "heads"), [(1, 1), (1, 5), (5, 1), (3, 7)])
def test_batches_and_heads(batch, heads, rng):
    check(Form(mask="queries"), rng, batch=batch, heads=heads, queries=16, keys=16)


def test_bert(rng):
    """Parts of one projection, as a network of 12 heads has them."""

    def part(value: Value) -> Layout:
        shape = value.type.bind({})
        if len(shape) != 4 or shape[3] != 64:
            return row_padded(value, 0)
        _, length, heads, size = shape
        width = heads * size * (1 if value.name == "transpose_3" else 3)
        return Layout(shape, (length * width, width, size, 1))

    sizes = {"batch": 2, "heads": 2, "queries": 128, "keys": 128, "size": 64}
    check(Form(), rng, tiles=[(1, 2), (2, 1)], layouts=part, **sizes)


@pytest.mark.parametrize("scaled", ["none", "q"])
def test_factors_of_scores(scaled, rng):
    sizes = {"queries": 16, "keys": 32, "size": 64}
    arrays = quiet(task_of(Form(scaled=scaled), **sizes), rng)
    check(Form(scaled=scaled), rng, arrays=arrays, **sizes)


def test_negative_factor(rng):
    graph = attention(Form(scaled="none"), dtype=F16, queries=16, keys=32)
    product = next(n for n in graph.nodes if isinstance(n.op, MatMul))
    three = graph.constant(np.float16(-3))
    (softmax,) = product.output.users
    graph.set_inputs(softmax, [graph.add(ew.Mul(), product.output, three)])
    graph.tidy()
    task = attention_task(graph)
    (launch,) = ShortAttention(task, 1, 1).launches(Binding({}))
    assert launch.kernel.scale == -3.0 and launch.kernel.scores is None
    check_interpreted(
        FAMILY,
        task,
        rng,
        tactics=[ShortAttention(task, 1, 1)],
        arrays=quiet(task, rng),
        tolerance=CLOSE[F16],
    )


@pytest.mark.parametrize("guard", ["", "nan"], ids=["plain", "guarded"])
def test_levels_of_the_result(guard, rng):
    """As where a quantized product reads it: levels, and then the transposition."""
    form = Form(guard=guard, mask="keys")
    graph = attention(form, dtype=F16, batch=1, heads=2, queries=70, keys=40, size=64)
    (result,) = graph.outputs
    levels = graph.add(Cast(F32), result.producer.inputs[0])
    numbers = (graph.constant(np.float32(n)) for n in (0.02, 0.0))
    levels = graph.add(Quantize(DType.INT8, -128, 127), levels, *numbers)
    graph.outputs = [graph.add(Transpose((0, 2, 1, 3)), levels)]
    graph.tidy()
    task = next(t for t in propose(graph) if t.attention and t.output.dtype is DType.INT8)
    arrays = feeds_for(task.inputs, rng)
    (wanted,) = task.evaluate(arrays)
    for tile in ((1, 1), (2, 1)):
        (got,) = run_tactic(ShortAttention(task, *tile), Binding({}), arrays)
        apart = np.abs(got.astype(int) - wanted)
        assert apart.max() <= 1 and apart.mean() < 0.05 and np.abs(wanted).max() > 20


class TestRowsWithoutWeights:
    @pytest.mark.parametrize("guard", ["", "nan"])
    def test_everything_is_hidden(self, guard, rng):
        task = task_of(Form(mask="bool", guard=guard), queries=20, keys=20)
        arrays = feeds_hiding(task, rng, (3, slice(None)), (5, slice(0, 17)))
        with np.errstate(invalid="ignore"):
            assert np.isnan(task.evaluate(arrays)[0]).any() == (guard == "")
            check_interpreted(
                FAMILY,
                task,
                rng,
                tactics=[ShortAttention(task, 1, 1)],
                arrays=arrays,
                tolerance=CLOSE[F16],
            )

    def test_least_finite_scores_count_alike(self, rng):
        task = task_of(Form(mask="keys", wide=True), queries=9, keys=20)
        arrays = feeds_for(task.inputs, rng)
        number = [v.name for v in task.inputs].index("mask")
        arrays[number] = np.full_like(arrays[number], np.finfo(np.float32).min)
        check(Form(mask="keys", wide=True), rng, arrays=arrays, queries=9, keys=20)

    def test_infinite_scores(self, rng):
        task = task_of(Form(), queries=9, keys=20, heads=1, batch=1)
        arrays = feeds_for(task.inputs, rng)
        arrays[0][:, 4] = np.inf
        with np.errstate(all="ignore"):
            assert np.isnan(task.evaluate(arrays)[0]).any()
            check(Form(), rng, arrays=arrays, queries=9, keys=20, heads=1, batch=1)


# ---- that the interpreter would notice -----------------------------------------------------------


def run_text(change, rng, seed: int, tile=(1, 2)) -> bool:
    """Whether a kernel whose text is changed still computes what it should."""
    task = task_of(Form(), queries=80, keys=32, heads=2, batch=2, size=64)
    data = feeds_for(task.inputs, rng)
    (want,) = task.evaluate(data)
    (launch,) = ShortAttention(task, *tile).launches(Binding({}))
    kernel, memory = launch.kernel, dict(zip(task.inputs, data, strict=True))
    result = memory[task.output] = np.full_like(want, np.nan)
    grid = Grid(
        change(kernel.text()),
        [p.map for p in kernel.pointers],
        [p.dtype.numpy for p in kernel.pointers],
        [memory[p].ctypes.data for p in launch.pointers],
        launch.params,
        launch.tasks,
        kernel.cluster,
        seed,
    )
    with np.errstate(all="ignore"):
        grid.run()
    return np.allclose(result, want, rtol=4e-3, atol=4e-3)


@pytest.mark.parametrize("tile", [(1, 2), (2, 1)], ids=str)
def test_any_order_gives_the_result(tile, rng):
    assert all(run_text(lambda text: text, rng, seed, tile) for seed in range(3))


@pytest.mark.parametrize(
    ("pattern", "which"),
    [
        (r"mbarrier\.try_wait", 0),  # until queries and keys are there
        (r"mbarrier\.try_wait", 1),  # until values are there
        (r"wgmma\.wait_group\.sync\.aligned 0", 0),
        (r"wgmma\.wait_group\.sync\.aligned 0", 1),
        (r"cp\.async\.bulk\.wait_group", 0),
        (r"bar\.sync 0", 0),
    ],
)
def test_what_lacks_is_found(pattern, which, rng):
    def fails(seed: int) -> bool:
        try:
            return not run_text(without(pattern, which), rng, seed)
        except (AssertionError, KeyError):
            return True

    assert any(fails(seed) for seed in range(6))


# ---- text ----------------------------------------------------------------------------------------


def assert_assembled(kernel: ShortAttentionKernel, folder: Path) -> int:
    """The assembler takes it: products do not wait for one another, no registers are stored away,
    so many blocks fit as are asked for; the registers.
    """
    source = folder / "kernel.ptx"
    source.write_text(kernel.text())
    tool = triton().knobs.nvidia.ptxas.path
    command = [tool, "-v", "--gpu-name=sm_90a", str(source), "-o", str(folder / "code")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "C75" not in done.stderr
    assert " 0 bytes spill stores" in done.stderr
    used = re.search(r"Used (\d+) registers", done.stderr)
    assert used is not None
    return int(used[1])


BERT = {"queries": 128, "keys": 128, "heads": 12, "size": 64, "batch": 128}
SIZES = [BERT, {**BERT, "size": 128}, {**BERT, "queries": 197, "keys": 197}, {**BERT, "keys": 77}]


@pytest.mark.parametrize("form", [Form(), Form(mask="keys", wide=True), Form(mask="bool")], ids=str)
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_tactics_of_a_network(sizes, form, tmp_path: Path):
    task = task_of(form, **sizes)
    found = offered(task)
    assert 3 <= len(found) == len(set(found)) <= 6
    for made in found:
        assert FAMILY.restore(task, made.parameters) == made
        (launch,) = made.launches(Binding({}))
        assert launch.kernel.shared <= H200.shared
        assert_assembled(launch.kernel, tmp_path)


def test_four_blocks_of_bert_fit(tmp_path: Path):
    task = task_of(Form(), **BERT)
    (launch,) = ShortAttention(task, 1, 2).launches(Binding({}))
    kernel = launch.kernel
    assert launch.tasks == 128 * 12
    assert kernel.at_once == 4 and 4 * (kernel.shared + 1024) <= H200.shared_per_multiprocessor
    registers = assert_assembled(kernel, tmp_path)
    assert 4 * 128 * registers <= H200.registers
    assert kernel.scores is None  # the scale is all that is done to scores


def test_batches_share_a_kernel():
    symbols = set()
    for batch in (2, 5):
        task = task_of(Form(mask="keys"), **{**BERT, "batch": batch})
        (launch,) = ShortAttention(task, 1, 2).launches(Binding({}))
        symbols.add(launch.kernel.symbol)
        assert launch.tasks == 12 * batch and launch.params == (batch,)
    assert len(symbols) == 1


def test_factors():
    def of(form: Form) -> float | None:
        work = task_of(form).attention
        return factor_of(work.scores.expression)

    assert of(Form(scaled="none")) == 1.0 and of(Form()) == pytest.approx(0.25)
    assert of(Form(mask="keys")) is None and of(Form(mask="bool")) is None


# ---- what is offered -----------------------------------------------------------------------------


def test_other_machines_are_offered_nothing():
    task = task_of(Form(), **BERT)
    old = FAMILY.on(replace(H200, capability=(8, 0)))
    assert not list(old.tactics(task, Binding({})))


def test_the_first_is_the_likely_best():
    for batch, order in ((128, [(1, 2), (2, 1), (1, 1)]), (1, [(1, 1), (1, 2), (2, 1)])):
        found = offered(task_of(Form(), **{**BERT, "batch": batch}))
        assert [(t.groups, t.turns) for t in found] == order


@pytest.mark.parametrize(
    ("form", "dtype", "sizes"),
    [
        (Form(), F32, {}),
        (Form(), F16, {"keys": 257}),
        (Form(), F16, {"size": 136}),
        (Form(), F16, {"size": 20}),  # rows of 40 bytes
        (Form(), F16, {"queries": 1}),
        (Form(levels="floats"), F32, {}),
    ],
    ids=str,
)
def test_what_it_declines(form, dtype, sizes):
    assert not offered(task_of(form, dtype, **{"keys": 24, **sizes}))


def test_layouts():
    task = task_of(Form(), queries=24, keys=24)
    rng = np.random.default_rng(1)

    def with_layouts(layouts: Callable[[Value], Layout]) -> Binding:
        return Binding({}, {v: layouts(v) for v in (*task.inputs, *task.outputs)})

    def batches_inside(value: Value) -> Layout:
        n, length, heads, size = value.type.bind({})
        return Layout((n, length, heads, size), (heads * size, n * heads * size, size, 1))

    assert offered(task, with_layouts(lambda v: row_padded(v, 16)))
    assert not offered(task, with_layouts(lambda v: row_padded(v, 3)))
    assert not offered(task, with_layouts(lambda v: strided(v, rng)))
    assert offered(task, with_layouts(batches_inside))


def test_rows_with_gaps(rng):
    check(Form(mask="queries"), rng, layouts=lambda v: row_padded(v, 16), queries=20, keys=24)


def test_batches_between_rows(rng):
    def layout(value: Value) -> Layout:
        shape = value.type.bind({})
        if value.name == "mask":
            return row_padded(value, 0)
        n, _, heads, size = shape
        return Layout(shape, (heads * size, n * heads * size, size, 1))

    check(Form(mask="queries"), rng, layouts=layout, queries=20, keys=24)


@pytest.mark.parametrize("change", [{"groups": 3}, {"turns": 0}, {"turns": 3}], ids=str)
def test_impossible_parameters(change):
    task = task_of(Form())
    known = ShortAttention(task, 1, 2).parameters
    assert FAMILY.restore(task, known).parameters == known
    with pytest.raises(PlanError, match="impossible short_attention kernel"):
        FAMILY.restore(task, {**known, **change})
    (plain,) = (t for t in propose(attention(Form())) if t.kind == "softmax" and len(t.nodes) == 1)
    with pytest.raises(PlanError, match="short_attention"):
        FAMILY.restore(plain, known)


def test_replays_give_the_same_bits(rng):
    if not is_on_gpu():
        pytest.skip("needs a GPU")
    task = task_of(Form(mask="keys"), **{**BERT, "batch": 8})
    data = feeds_for(task.inputs, rng)
    for tactic in offered(task):
        first, *others = (run_tactic(tactic, Binding({}), data)[0] for _ in range(3))
        assert all(np.array_equal(first.view(np.uint16), o.view(np.uint16)) for o in others)
