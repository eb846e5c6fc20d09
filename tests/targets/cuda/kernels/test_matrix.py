"""The matrix kernel on GPUs against the references: convolutions and matrix products of every kind,
in Triton's interpreter; and what it compiles to.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.products import (
    ALL,
    BF16,
    F16,
    F32,
    FAMILY,
    FLAT,
    ROW,
    SAME,
    TAPS,
    arrays,
    check,
    conv_task,
    matmul_task,
    tactics,
)
from helpers.tactics import row_padded, strided
from planish.errors import PlanError
from planish.graph import DType
from planish.ops.matmul import MatMul
from planish.targets.base import Binding, Layout, dense_strides
from planish.targets.cuda.kernels.matrix import (
    MatrixTactic,
    shape_of,
)
from planish.targets.cuda.kernels.matrix_cost import choices
from planish.targets.cuda.kernels.matrix_problem import problem_of
from planish.targets.cuda.kernels.matrix_tile import PERSISTENT
from planish.targets.cuda.machine import H200


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


# ---- convolutions --------------------------------------------------------------------------------

CONVOLUTIONS = [
    dict(shape=(2, 9, 11, 3), filters=5, window=(3, 3), stride=2, padding=((0, 1), (2, 1))),
    dict(shape=(5, 5, 4, 7), filters=33, window=(3, 3), padding=SAME, residual=True),
    dict(shape=(1, 7, 9, 16), filters=24, window=(3, 2), padding=((3, 0), (0, 2))),
    dict(shape=(2, 6, 5, 24), filters=40, window=(3, 3), residual=True, dtype=BF16),
    dict(shape=(1, 12, 13, 3), filters=8, window=(7, 7), stride=2, padding=((3, 3), (3, 3))),
    dict(shape=(3, 4, 4, 1), filters=16, window=(2, 5), padding=((1, 1), (2, 2)), dtype=F32),
    dict(shape=(2, 5, 5, 34), filters=17, window=(1, 3), padding=((0, 0), (1, 1)), dtype=F32),
    dict(shape=(2, 5, 5, 8), filters=16, window=(3, 1), padding=((1, 1), (0, 0)), stride=3),
    dict(shape=(1, 1, 1, 40), filters=24, window=(3, 3), padding=SAME),  # a single pixel
    dict(shape=(1, 1, 1, 17), filters=9, window=(5, 1), padding=((2, 2), (0, 0)), prologue="sum"),
]
DILATED = [
    dict(shape=(2, 9, 8, 6), filters=20, window=(3, 3), padding=((2, 2), (1, 2)), dilation=2),
    dict(shape=(1, 13, 9, 16), filters=9, window=(3, 2), dilation=3, stride=2, residual=True),
]
POINTWISE = [
    dict(shape=(2, 5, 7, 20), filters=33),
    dict(shape=(3, 6, 5, 32), filters=16, stride=2, residual=True),
    dict(shape=(1, 1, 1, 40), filters=100, dtype=F32),
    dict(shape=(4, 3, 3, 17), filters=5, per_image=True, relu=False, dtype=BF16),
    dict(shape=(2, 4, 4, 16), filters=16, padding=((1, 0), (2, 1)), stride=2),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions(case, rng):
    task = conv_task(rng, **case)
    check(task, rng, tactics(task, walks=ALL), limit=1)


@pytest.mark.parametrize("case", DILATED, ids=str)
def test_dilated_convolutions(case, rng):
    task = conv_task(rng, **case)
    check(task, rng, tactics(task, walks=(TAPS, FLAT)))
    refused = replace(tactics(task)[0], walk=ROW)
    assert not refused.accepts(Binding({}))


@pytest.mark.parametrize("case", POINTWISE, ids=str)
def test_pointwise_convolutions(case, rng):
    task = conv_task(rng, **case)
    check(task, rng, tactics(task, splits=(1, 2)))


@pytest.mark.parametrize("padding", [((0, 0),), ((1, 2),)])
def test_convolutions_of_one_dimension(padding, rng):
    task = conv_task(rng, (3, 14, 10), 12, (3,), padding=padding, stride=2, residual=True)
    check(task, rng, tactics(task, walks=ALL), limit=1)


def test_random_convolutions(rng):
    for _ in range(6):
        window = tuple(int(n) for n in rng.integers(1, 5, 2))
        dilation = int(rng.integers(1, 3))
        size = [(w - 1) * dilation + 1 + int(rng.integers(0, 5)) for w in window]
        case = dict(
            shape=(int(rng.integers(1, 6)), *size, int(rng.integers(1, 40))),
            filters=int(rng.integers(1, 40)),
            window=window,
            stride=int(rng.integers(1, 4)),
            padding=tuple(tuple(int(n) for n in rng.integers(0, 3, 2)) for _ in range(2)),
            dilation=dilation,
            residual=bool(rng.integers(2)),
            per_image=bool(rng.integers(2)),
            prologue=(None, "affine", "sum")[rng.integers(3)],
            dtype=(F16, BF16, F32)[rng.integers(3)],
        )
        task = conv_task(rng, **case)
        walk = FLAT if dilation > 1 else int(rng.integers(3))
        split = int(rng.integers(1, 5))
        check(task, rng, tactics(task, walks=(walk,), splits=(split,)), limit=1)


@pytest.mark.parametrize("prologue", ["cast", "affine", "sum"])
@pytest.mark.parametrize("window", [(1, 1), (3, 3)])
def test_a_prologue_comes_before_the_padding(prologue, window, rng):
    padding = SAME if window == (3, 3) else None
    task = conv_task(rng, (2, 5, 6, 9), 20, window, padding=padding, prologue=prologue)
    assert task.prologue is not None
    walks = ALL if window == (3, 3) else (TAPS,)
    check(task, rng, tactics(task, walks=walks), limit=1)


@pytest.mark.parametrize("walk", ALL)
def test_an_infinite_pixel_reaches_only_windows_that_cover_it(walk, rng):
    task = conv_task(rng, (1, 6, 7, 3), 4, (3, 3), padding=SAME, dtype=F32)
    data = arrays(task, rng)
    data[0][0, 2, 3, 1] = np.inf
    expected = np.isfinite(task.evaluate(data)[0])
    assert 0 < expected.mean() < 1
    offered = tactics(task, walks=(walk,))
    check_interpreted(FAMILY, task, rng, tactics=offered, arrays=data, tolerance=1e-4)


FEW = replace(H200, multiprocessors=2)
"""A machine on which a program goes through many tiles of small tasks."""


@pytest.mark.parametrize("dtype", [F16, BF16, F32], ids=str)
@pytest.mark.parametrize("case", range(4))
def test_programs_of_many_tiles(case, dtype, rng):
    task = [
        lambda: conv_task(rng, (3, 9, 11, 24), 40, residual=True, dtype=dtype),
        lambda: conv_task(rng, (9, 13, 9, 3), 20, (3, 3), stride=2, padding=SAME, dtype=dtype),
        lambda: conv_task(rng, (5, 7, 12, 30), 9, prologue="sum", dtype=dtype),
        lambda: matmul_task(rng, (7, 33, 20), (20, 50), constant=True, more=((50,),), dtype=dtype),
    ][case]()
    walk = FLAT if case == 1 else TAPS
    offered = [
        MatrixTactic(task, rows, columns, 32, 4, 3, PERSISTENT, walk, machine=FEW)
        for rows, columns in ((16, 32), (32, 16), (64, 64))
    ]
    (launch,) = offered[0].launches(Binding({}))
    assert launch.tasks < launch.params[0] // 16
    check(task, rng, offered, limit=0)


def test_programs_of_many_tiles_are_offered_where_the_depth_is_one_step(rng):
    def offered(**more):
        task = conv_task(rng, **more)
        return [t for t in FAMILY.tactics(task, Binding({})) if t.split == PERSISTENT]

    large = offered(shape=(32, 56, 56, 24), filters=144)
    assert large and len(large) < len(list(FAMILY.tactics(large[0].task, Binding({}))))
    assert {t.depth for t in offered(shape=(32, 56, 56, 256), filters=64)} == {256}
    wide = offered(shape=(128, 14, 14, 256), filters=1024, residual=True)
    assert wide and all(
        t.rows * t.columns < 128 * 128 for t in wide
    )  # what does not fit is left out
    assert not offered(shape=(32, 56, 56, 512), filters=64)
    assert not offered(shape=(1, 14, 14, 24), filters=144)
    deep = conv_task(rng, (2, 9, 9, 48), 16)
    assert not MatrixTactic(deep, 16, 16, 32, 4, 3, PERSISTENT).accepts(Binding({}))
    assert MatrixTactic(deep, 16, 16, 64, 4, 3, PERSISTENT).accepts(Binding({}))
    product = matmul_task(rng, (64, 32), (32, 16))
    assert not MatrixTactic(product, 16, 16, 32, 4, 3, PERSISTENT).accepts(Binding({}))
    with pytest.raises(PlanError):
        FAMILY.restore(deep, {**large[0].parameters, "depth": 256, "split": 1})
    with pytest.raises(PlanError):
        FAMILY.restore(deep, {**large[0].parameters, "vector": True, "passes": 0})


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("split", [PERSISTENT, 1, 3])
@pytest.mark.parametrize("case", range(4))
def test_weights_are_multiplied_by_rows(case, split, dtype, rng):
    """The product the other way round, of tiles of many rows and of few."""
    task = [
        lambda: conv_task(rng, (2, 7, 9, 24), 40, residual=True, dtype=dtype),
        lambda: conv_task(rng, (3, 9, 7, 3), 70, (3, 3), padding=SAME, dtype=dtype),
        lambda: conv_task(rng, (2, 5, 12, 30), 9, prologue="sum", per_image=True, dtype=dtype),
        lambda: matmul_task(rng, (4, 33, 20), (4, 20, 50), more=((50,),), dtype=dtype),
    ][case]()
    if case == 3:  # programs of many tiles keep constant weights
        split = max(split, 1)
    walk = FLAT if case == 1 else TAPS
    offered = [
        MatrixTactic(task, rows, columns, 32, 4, 3, split, walk, transposed=True, machine=FEW)
        for rows, columns in ((16, 64), (128, 64))
    ]
    check(task, rng, offered, limit=0)


@pytest.mark.parametrize(("rows", "columns"), [(16, 64), (256, 64), (128, 128)])
def test_tensor_cores_take_all_rows_of_a_transposed_tile_at_once(rows, columns, rng):
    task = conv_task(rng, (8, 28, 28, 64), 64, (3, 3), padding=SAME)
    tactic = MatrixTactic(task, rows, columns, 64, 4, 3, transposed=True)
    assert f"m64n{rows}k16" in assembly(tactic, Binding({}))
    with pytest.raises(PlanError):
        FAMILY.restore(task, {**tactic.parameters, "columns": 32})


def test_products_of_computed_factors_end_with_their_step(rng):
    """Otherwise the next step overwrites registers that tensor cores still read."""
    computed = conv_task(rng, (8, 28, 28, 256), 128, prologue="sum")
    plain = conv_task(rng, (8, 28, 28, 256), 128)
    for task in (computed, plain):
        tactic = MatrixTactic(task, 128, 128, 64, 8, 3)
        kernel = tactic.launches(Binding({}))[0].kernel
        assert ("= tl.inline_asm" in kernel.source(overlaps=True)) == (task is computed)


def test_the_next_tiles_are_loaded_meanwhile(rng):
    task = conv_task(rng, (64, 56, 56, 24), 144)
    (first, *_) = [t for t in FAMILY.tactics(task, Binding({})) if t.split == PERSISTENT]
    text = assembly(first, Binding({}))
    loop = text[text.index("wgmma.mma_async") :]
    assert "cp.async.cg" in loop and "cp.async.wait_group" in text


@pytest.mark.parametrize("layouts", ["gaps", "any order"])
@pytest.mark.parametrize("window", [(1, 1), (3, 3)])
def test_layouts(layouts, window, rng):
    padding = SAME if window == (3, 3) else None
    task = conv_task(rng, (2, 5, 6, 9), 20, window, padding=padding, residual=True, prologue="sum")
    layout = row_padded if layouts == "gaps" else lambda v: strided(v, rng)

    def chosen(value):
        return Binding({}).layout(value) if value.is_constant else layout(value)

    offered = tactics(task, walks=(TAPS, FLAT) if padding else (TAPS,), splits=(1, 2))
    check(task, rng, offered, limit=1, layouts=chosen)


def test_a_part_of_a_concatenation(rng):
    task = conv_task(rng, (3, 4, 5, 16), 24, residual=True)

    def part(value):
        shape = value.type.bind({})
        return Layout(shape, dense_strides((*shape[:-1], shape[-1] + 40)), 16)

    binding = Binding({}, {task.output: part(task.output)})
    (launch,) = tactics(task)[0].launches(binding)
    # rows merge all the same: one axis of pixels, no division
    assert len(launch.kernel.result.shape) == 2 and "//" not in _body(launch)
    layouts = {v: binding.layout(v) for v in (*task.inputs, *task.outputs)}
    check(task, rng, tactics(task, splits=(1, 3)), layouts=layouts.__getitem__)


def _body(launch) -> str:
    """The kernel's text from where its tile is known."""
    return launch.kernel.source().split("depth = ")[1]


def test_batches_share_kernels(rng):
    for window, padding in (((1, 1), None), ((3, 3), SAME)):
        kernels = set()
        for batch in (2, 3, 8):
            task = conv_task(rng, (batch, 6, 6, 16), 16, window, padding=padding, residual=True)
            (launch,) = tactics(task)[0].launches(Binding({}))
            kernels.add(launch.kernel)
        assert len(kernels) == 1


# ---- programs that share a tile ------------------------------------------------------------------


@pytest.mark.parametrize("split", [2, 3, 4, 16])
def test_programs_share_tiles(split, rng):
    task = conv_task(rng, (1, 5, 5, 24), 40, (3, 3), padding=SAME, residual=True, dtype=F32)
    tactic = MatrixTactic(task, 16, 32, 32, 4, 2, split, TAPS)
    assert tactic.zeroed(Binding({})) == 4 * 2 * 2
    check(task, rng, [tactic], limit=0)


def test_tiles_that_would_need_too_much_memory_are_not_shared(rng):
    task = conv_task(rng, (64, 56, 56, 16), 16)
    assert not MatrixTactic(task, 16, 16, 16, 4, 2, 16).accepts(Binding({}))


# ---- matrix products -----------------------------------------------------------------------------

PRODUCTS = [
    ((5, 33), (33, 20), dict(constant=True)),
    ((2, 3, 7, 40), (40, 17), dict(constant=True, more=[(2, 3, 7, 17), (17,)])),
    ((2, 3, 7, 40), (1, 1, 40, 17), dict(constant=True, more=[(3, 1, 17)])),
    ((6, 40), (24, 40), dict(op=MatMul(False, True), constant=True, cast=True)),
    ((40, 18), (40, 24), dict(op=MatMul(True, False))),
    ((32, 16), (24, 32), dict(op=MatMul(True, True), more=[(16, 1)])),
    ((2, 3, 7, 10), (2, 3, 10, 9), dict(more=[(2, 1, 1, 9), (7, 9)])),
    ((2, 3, 7, 10), (2, 3, 9, 10), dict(op=MatMul(False, True), more=[(2, 1, 1, 1)])),
    ((2, 3, 10, 7), (3, 10, 9), dict(op=MatMul(True, False), cast=True)),
    ((2, 1, 7, 10), (3, 10, 9), dict(more=[(2, 3, 7, 9)])),
    ((7, 10), (2, 10, 9), dict(cast=True)),
    ((4, 1, 5), (4, 5, 1), {}),
    ((4, 3, 20), (4, 20, 6), dict(constant=True)),
    ((1, 1, 9, 33), (33, 12), {}),
    ((1, 1), (1, 1), {}),
    ((3, 5, 1), (3, 1, 1), {}),
]


@pytest.mark.parametrize("dtype", [F16, F32])
@pytest.mark.parametrize(("left", "right", "how"), PRODUCTS, ids=str)
def test_matrix_products(left, right, how, dtype, rng):
    task = matmul_task(rng, left, right, dtype=dtype, **how)
    check(task, rng, tactics(task, splits=(1, 2)), limit=1)


def test_layouts_of_products(rng):
    for how in ({}, dict(op=MatMul(True, True))):
        left, right = ((2, 7, 20), (2, 20, 9)) if not how else ((2, 20, 7), (2, 9, 20))
        task = matmul_task(rng, left, right, more=[(2, 7, 9)], **how)
        for layout in (row_padded, lambda v: strided(v, rng)):
            check(task, rng, tactics(task), limit=1, layouts=layout)


@pytest.mark.parametrize("rows", [1, 2, 3, 8])
@pytest.mark.parametrize("split", [1, 3])
def test_few_rows_without_tensor_cores(rows, split, rng):
    task = matmul_task(rng, (rows, 200), (200, 21), constant=True, more=[(rows, 21)])
    own = MatrixTactic(task, max(r for r in (1, 2, 8) if r <= rows), 4, 64, 2, 1, split, 0, True, 0)
    check(task, rng, [own, replace(own, stages=3)], limit=0)


def test_few_rows_of_computed_matrices(rng):
    for op, right in ((MatMul(), (3, 40, 21)), (MatMul(False, True), (3, 21, 40))):
        task = matmul_task(rng, (3, 1, 40), right, op=op, more=[(21,)], dtype=BF16)
        check(task, rng, [MatrixTactic(task, 1, 8, 64, 2, 1, 1, 0, True, 0)], limit=0)


def test_attention_of_one_token_reads_matrices_once(rng):
    task = matmul_task(rng, (1, 2048), (2048, 1000), constant=True)
    assert [t for t in FAMILY.tactics(task, Binding({})) if t.vector]


# ---- what is offered -----------------------------------------------------------------------------


def test_float32_is_offered_with_and_without_tf32(rng):
    task = conv_task(rng, (8, 14, 14, 64), 64, (3, 3), padding=SAME, dtype=F32)
    offered = list(FAMILY.tactics(task, Binding({})))
    assert {(t.passes, t.precision) for t in offered} == {(1, "tf32"), (3, "fp32"), (0, "fp32")}
    small = conv_task(rng, (1, 4, 4, 16), 16, dtype=F32)
    check(small, rng, [t for p in (0, 3) for t in tactics(small, passes=p)])


RESNET = {
    "stem": dict(shape=(224, 224, 3), filters=64, window=(7, 7), stride=2, padding=((3, 3),) * 2),
    "3x3": dict(shape=(56, 56, 64), filters=64, window=(3, 3), padding=SAME),
    "expand": dict(shape=(56, 56, 64), filters=256, residual=True),
    "last 3x3": dict(shape=(7, 7, 512), filters=512, window=(3, 3), padding=SAME),
}


def resnet_task(rng, name, batch):
    case = dict(RESNET[name])
    return conv_task(rng, (batch, *case.pop("shape")), **case)


@pytest.mark.parametrize("batch", [1, 8, 128])
@pytest.mark.parametrize("name", RESNET)
def test_what_is_offered_differs(name, batch, rng):
    task = resnet_task(rng, name, batch)
    offered = list(FAMILY.tactics(task, Binding({})))
    plain = [t for t in offered if not t.transposed]
    assert 8 <= len(plain) <= (24 if name == "stem" else 14)
    assert 1 <= len(offered) - len(plain) <= 5
    assert len({(t.rows, t.columns) for t in offered}) >= 3
    assert any(t.split == 1 for t in offered)
    assert any(t.channels for t in offered) is (name == "stem")
    if name == "last 3x3" and batch == 1:
        assert offered[0].split > 1 and offered[0].rows <= 64
    if batch == 128 and name != "stem":
        assert offered[0].rows * offered[0].columns >= 128 * 64


def test_a_smaller_machine_is_offered_smaller_tiles(rng):
    small = replace(H200, capability=(8, 6), shared=101376, shared_per_multiprocessor=102400)
    problem = problem_of(resnet_task(rng, "last 3x3", 128), Binding({}))
    for choice in choices(shape_of(problem), small, 1, 12):
        tile = choice.tile
        assert choice.stages * (tile.rows + tile.columns) * tile.depth * 2 <= small.shared


def test_other_tasks_are_declined(rng):
    grouped = conv_task(rng, (1, 5, 5, 8), 8, (3, 3), groups=2)
    space = conv_task(rng, (1, 5, 5, 5, 8), 8, (2, 2, 2))
    integers = matmul_task(rng, (4, 8), (8, 4), dtype=DType.INT32)
    for task in (grouped, space, integers):
        assert not list(FAMILY.tactics(task, Binding({})))
        with pytest.raises(PlanError, match="does not compute this"):
            FAMILY.restore(task, tactics(task)[0].parameters)


@pytest.mark.parametrize(
    "change",
    [
        {"rows": 17},
        {"split": 5},
        {"rows": 1},
        {"vector": True},
        {"passes": 3},
        {"depth": 512},
        {"channels": 4},
    ],
    ids=str,
)
def test_plans_cannot_ask_for_impossible_tiles(change, rng):
    task = conv_task(rng, (1, 5, 5, 8), 8)
    parameters = {**tactics(task)[0].parameters, **change}
    with pytest.raises(PlanError, match="impossible matrix kernel"):
        FAMILY.restore(task, parameters)


# ---- what it compiles to -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "batch"), [("stem", 8), ("3x3", 128), ("expand", 128), ("last 3x3", 1)]
)
def test_hopper_multiplies_in_groups_of_warps(name, batch, rng):
    task = resnet_task(rng, name, batch)
    offered = [t for t in FAMILY.tactics(task, Binding({})) if t.rows >= 64]
    tactic = offered[0] if batch > 1 else replace(tactics(task)[0], rows=64, depth=64, split=8)
    text = assembly(tactic, Binding({}))
    assert "wgmma.mma_async" in text
    assert ".local" not in text  # nothing is spilled before ptxas
    *_, code = compiled(tactic, Binding({}))
    assert code.shared <= H200.shared
    stores = [line for line in text.splitlines() if "st.global" in line and ".b32" in line]
    assert any(".v4.b32" in line for line in stores)
    if name != "stem":  # three channels are not loaded 16 bytes at a time
        assert "cp.async.cg.shared.global" in text or batch == 128


def test_large_tensors_are_addressed_with_64_bits(rng):
    task = matmul_task(rng, (1 << 20, 4096), (4096, 64), constant=True)
    tactic = next(iter(FAMILY.tactics(task, Binding({}))))
    (launch,) = tactic.launches(Binding({}))
    assert "(safe[:, None]).to(tl.int64) * 4096" in launch.kernel.source()
    assert compiled(tactic, Binding({}))


@pytest.mark.parametrize("passes", [0, 1, 3])
def test_float32_compiles(passes, rng):
    task = conv_task(rng, (8, 14, 14, 64), 64, (3, 3), padding=SAME, dtype=F32)
    tactic = next(t for t in FAMILY.tactics(task, Binding({})) if t.passes == passes)
    text = assembly(tactic, Binding({}))
    assert (".tf32" in text) is (passes > 0)


def test_a_vector_product_loads_16_bytes_at_a_time(rng):
    task = matmul_task(rng, (1, 2048), (2048, 1024), constant=True)
    tactic = next(t for t in FAMILY.tactics(task, Binding({})) if t.vector)
    text = assembly(tactic, Binding({}))
    assert "ld.global.v4.b32" in text or "cp.async.cg.shared.global" in text
    assert "mma" not in text
