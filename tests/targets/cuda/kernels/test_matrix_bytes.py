"""The matrix kernel for bytes: every result is that of the references, bit by bit."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.levels import Levels, conv_of_levels, product_of_levels
from helpers.tactics import row_padded, strided
from planish.errors import PlanError
from planish.fusion.task import Task
from planish.graph import DType
from planish.ops import Cast, MatMulInteger, Quantize, ew
from planish.targets.base import Binding
from planish.targets.cuda.kernels.matrix import MatrixFamily, MatrixTactic
from planish.targets.cuda.kernels.matrix_problem import neighbours
from planish.targets.cuda.kernels.matrix_tile import PERSISTENT, Walk
from planish.targets.cuda.machine import H200

FAMILY = MatrixFamily(H200)
I8, U8 = DType.INT8, DType.UINT8
TAPS, ROW, FLAT = ALL = tuple(map(int, Walk))
SAME = ((1, 1), (1, 1))


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(21)


def tactics(task: Task, walks=(TAPS,), splits=(1,)) -> list[MatrixTactic]:
    """Small tiles of several forms."""
    forms = [(16, 32, 32), (32, 16, 64), (64, 64, 32)]
    made = []
    for i, (walk, split) in enumerate((w, s) for w in walks for s in splits):
        made.append(MatrixTactic(task, *forms[i % 3], 4, 2, split, walk))
    return made


def check(task: Task, rng, offered=(), limit=1, layouts=None) -> None:
    """Runs tactics given and the first ones that the family offers."""
    binding = Binding({})
    own = [t for t in FAMILY.tactics(task, binding) if t.rows * t.columns <= 4096][:limit]
    check_interpreted(FAMILY, task, rng, tactics=[*offered, *own], layouts=layouts, limit=None)


CONVOLUTIONS = [
    dict(shape=(2, 9, 11, 3), filters=5, window=(3, 3), stride=2, padding=((0, 1), (2, 1))),
    dict(shape=(5, 5, 4, 7), filters=33, window=(3, 3), padding=SAME, residual=True),
    dict(shape=(1, 7, 9, 16), filters=24, window=(3, 2), padding=((3, 0), (0, 2)), to=U8),
    dict(shape=(2, 6, 5, 24), filters=40, window=(3, 3), residual=True, to=None),
    dict(shape=(2, 5, 5, 40), filters=16, window=(3, 1), padding=((1, 1), (0, 0)), stride=3),
]
LEVELS = [
    dict(),
    dict(dtype=U8, zero=128),
    dict(dtype=U8, zero=0),
    dict(dtype=U8, zero=37),
    dict(zero=-128),
    dict(zero=5, weights=U8, weight_zero=128),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions(case, rng):
    task = conv_of_levels(rng, **case)
    check(task, rng, tactics(task, ALL))


@pytest.mark.parametrize("levels", LEVELS, ids=str)
@pytest.mark.parametrize("quantize", [False, True])
def test_zero_points_stand_around_images(levels, quantize, rng):
    if quantize:
        levels = {**levels, "zero": 128 * (levels.get("dtype") is U8)}
    task = conv_of_levels(
        rng, (2, 6, 7, 9), 20, (3, 3), padding=SAME, residual=True, quantize=quantize, **levels
    )
    assert (task.prologue is not None) == quantize
    check(task, rng, tactics(task, ALL, (1, 2)))


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_zero_points_stand_around_a_single_pixel(levels, rng):
    task = conv_of_levels(rng, (1, 1, 1, 40), 20, (3, 3), padding=SAME, **levels)
    check(task, rng, tactics(task, ALL, (1, 2)))


def test_zero_points_by_channel(rng):
    task = product_of_levels(rng, (5, 33), (33, 20), weight_zero=None, zero=2)
    weights, zeros = (task.anchor.inputs[i].data for i in (1, 3))
    np.clip(weights, -124, 124, out=weights)
    check(task, rng, tactics(task, splits=(1, 2)))
    weights[3, 7], zeros[7] = 127, -1
    # what remains of the weights is no byte: another family's
    assert not list(FAMILY.tactics(task, Binding({})))


@pytest.mark.parametrize("levels", LEVELS[:4], ids=str)
def test_a_program_of_many_tiles(levels, rng):
    task = conv_of_levels(rng, (5, 5, 7, 40), 33, residual=True, **levels)
    many = MatrixTactic(task, 16, 32, 64, 4, 3, PERSISTENT)
    assert many.accepts(Binding({}))
    check(task, rng, [many], limit=0)


@pytest.mark.parametrize("split", [2, 3, 4])
def test_programs_share_tiles(split, rng):
    task = conv_of_levels(rng, (1, 5, 5, 24), 40, (3, 3), padding=SAME, residual=True, zero=3)
    check(task, rng, [MatrixTactic(task, 16, 32, 32, 4, 2, split, TAPS)], limit=0)


@pytest.mark.parametrize("quantize", [False, True])
@pytest.mark.parametrize("levels", LEVELS[:3], ids=str)
def test_images_of_few_channels_are_copied_first(quantize, levels, rng):
    case = dict(shape=(2, 11, 12, 3), window=(5, 4), stride=2, padding=((2, 1), (0, 3)))
    if quantize:
        levels = {**levels, "zero": 128 * (levels.get("dtype") is U8)}
    task = conv_of_levels(rng, filters=20, quantize=quantize, **case, **levels)
    offered = tactics(task, (ROW,), (1, 2))
    copies = [(4, 0), (8, 0), (4, 1), (4, 2)]
    copied = [replace(t, channels=c, pixels=p) for t in offered for c, p in copies]
    check(task, rng, copied, limit=0)
    assert (4, 1) in {(t.channels, t.pixels) for t in FAMILY.tactics(task, Binding({}))}
    once = MatrixTactic(task, 64, 64, 64, 4, 2, 1, FLAT, channels=4, pixels=2)
    check(task, rng, [once], limit=0)


FORMS = [(64, 64, 64, 4, 2), (128, 128, 32, 4, 2), (128, 64, 64, 8, 2), (256, 64, 64, 4, 2)]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("to", [I8, U8, None], ids=str)
def test_sums_stay_with_their_threads(form, to, rng):
    """Columns are multiplied in another order than they are written in."""
    shape = (3, 9, 5, 64)
    task = conv_of_levels(rng, shape, 80, dtype=U8, zero=7, residual=True, to=to)
    once = MatrixTactic(task, *form)
    assert neighbours(task, once.tile, once.warps) == (16 if to is None else 64)
    many = replace(once, depth=64, stages=3, split=PERSISTENT)
    check(task, rng, [once, *([many] if form[1] == 64 else [])], limit=0)


def test_halves_are_written_by_whom_they_were_summed(rng):
    b = Levels(rng)
    x, w = b.input((70, 96)), b.levels((96, 64))
    sums = b.add(Cast(DType.FLOAT32), b.add(MatMulInteger(), x, w, *b.zeros()))
    y = b.add(ew.Mul(), sums, b.floats((64,), 0.001))
    y = b.add(ew.Add(), y, b.add(Cast(DType.FLOAT32), b.input((70, 64))))
    y = b.add(ew.Add(), y, b.add(Cast(DType.FLOAT32), b.input((70, 64), DType.FLOAT16)))
    task = b.task(b.add(Cast(DType.FLOAT16), y))
    tactic = MatrixTactic(task, 128, 64, 32, 4, 2)
    assert neighbours(task, tactic.tile, 4) == 32
    check_interpreted(FAMILY, task, rng, tactics=[tactic], tolerance=1e-3)


def test_scales_of_channels_are_divided_by(rng):
    """As division rounds, though kernels multiply by inverses."""
    b = Levels(rng)
    x, w = b.input((70, 96)), b.levels((96, 64))
    y = b.add(Cast(DType.FLOAT32), b.add(MatMulInteger(), x, w, *b.zeros()))
    scales = rng.uniform(900, 1100, 64).astype(np.float32)
    levels = Quantize(I8, -127, 127)
    y = b.add(levels, y, b.graph.constant(scales), b.graph.constant(np.float32(0)))
    task = b.task(y)
    tactic = MatrixTactic(task, 64, 64, 32, 4, 2)
    check(task, rng, [*tactics(task), tactic])
    assert 0 < assembly(tactic, Binding({})).count("div.rn") <= 16  # of columns, not of elements
    scales[5] = np.uint32(0x447FFFFF).view(np.float32)  # by which only division serves
    check(task, rng, tactics(task))


PRODUCTS = [
    ((5, 33), (33, 20), {}),
    ((2, 3, 7, 40), (40, 17), dict(residual=True, zero=-7)),
    ((6, 40), (24, 40), dict(op=MatMulInteger(False, True), dtype=U8, zero=9)),
    ((40, 18), (40, 24), dict(op=MatMulInteger(True, False))),
    ((2, 7, 40), (1, 40, 17), dict(to=None)),
]


@pytest.mark.parametrize(("left", "right", "how"), PRODUCTS, ids=str)
def test_matrix_products(left, right, how, rng):
    task = product_of_levels(rng, left, right, **how)
    check(task, rng, tactics(task, splits=(1, 2)))


@pytest.mark.parametrize("dtype", [I8, U8])
def test_one_row_without_tensor_cores(dtype, rng):
    task = product_of_levels(rng, (1, 200), (200, 21), dtype=dtype, zero=11, residual=True)
    own = MatrixTactic(task, 1, 4, 64, 2, 1, 3, 0, True, 0)
    check(task, rng, [own, replace(own, stages=3, split=1)], limit=0)
    several = product_of_levels(rng, (3, 2048), (2048, 100))
    assert not any(t.vector for t in FAMILY.tactics(several, Binding({})))
    with pytest.raises(PlanError, match="impossible matrix kernel"):
        FAMILY.restore(several, {**own.parameters, "rows": 2})


@pytest.mark.parametrize("layouts", ["gaps", "any order"])
def test_layouts(layouts, rng):
    task = conv_of_levels(rng, (2, 5, 6, 9), 20, (3, 3), padding=SAME, residual=True, zero=-5)
    layout = row_padded if layouts == "gaps" else lambda v: strided(v, rng)

    def chosen(value):
        return Binding({}).layout(value) if value.is_constant else layout(value)

    check_interpreted(FAMILY, task, rng, tactics=tactics(task, ALL), layouts=chosen, limit=None)


def test_random_convolutions(rng):
    for _ in range(6):
        window = tuple(int(n) for n in rng.integers(1, 5, 2))
        dilation = int(rng.integers(1, 3))
        size = [(w - 1) * dilation + 1 + int(rng.integers(0, 5)) for w in window]
        dtype = (I8, U8)[rng.integers(2)]
        info = np.iinfo(dtype.numpy)
        task = conv_of_levels(
            rng,
            shape=(int(rng.integers(1, 6)), *size, int(rng.integers(1, 70))),
            filters=int(rng.integers(1, 40)),
            window=window,
            stride=int(rng.integers(1, 4)),
            padding=tuple(tuple(int(n) for n in rng.integers(0, 3, 2)) for _ in range(2)),
            dilation=dilation,
            residual=bool(rng.integers(2)),
            dtype=dtype,
            zero=int(rng.integers(info.min, info.max, endpoint=True)),
            to=(I8, U8, None)[rng.integers(3)],
        )
        walk = FLAT if dilation > 1 else int(rng.integers(3))
        check(task, rng, tactics(task, (walk,), (int(rng.integers(1, 5)),)))


def test_sums_do_not_saturate(rng):
    """The most that sums of bytes can be, of either sign."""
    task = product_of_levels(rng, (16, 4096), (4096, 16), to=None)
    x = np.full((16, 4096), -128, np.int8)
    w = task.anchor.inputs[1].data
    w[...] = np.where(np.arange(16) % 2, -128, 127)
    arrays = [v.data if v.data is not None else x for v in task.inputs]
    check_interpreted(FAMILY, task, rng, tactics=tactics(task, splits=(1, 3)), arrays=arrays)


def test_tensor_cores_multiply_bytes(rng):
    task = conv_of_levels(rng, (8, 14, 14, 64), 128, (3, 3), padding=SAME)
    tactic = MatrixTactic(task, 128, 128, 64, 4, 3)
    assert all(code.tensor_cores for code in compiled(tactic, Binding({})))
    text = assembly(tactic, Binding({}))
    assert "wgmma.mma_async.sync.aligned.m64n128k32.s32.s8.s8" in text
    assert "cp.async" in text and "div.rn" not in text
    unsigned = conv_of_levels(rng, (8, 14, 14, 64), 128, (3, 3), dtype=U8, zero=7)
    computed = replace(tactic, task=unsigned)  # what is multiplied is in registers
    assert all(code.tensor_cores for code in compiled(computed, Binding({})))
    small = MatrixTactic(task, 16, 32, 64, 4, 3)
    assert "mma.sync.aligned.m16n8k32" in assembly(small, Binding({}))


@pytest.mark.parametrize("columns", [1, 2])
def test_fewer_results_than_instructions_take_at_once(rng, columns):
    """Of a layer of squeeze and excitation, for one image."""
    task = product_of_levels(rng, (1, 512), (512, 120), residual=True)
    tactic = MatrixTactic(task, 1, columns, 512, 2, 1, vector=True, passes=0)
    assert tactic in FAMILY.tactics(task, Binding({}))
    check_interpreted(FAMILY, task, rng, tactics=[tactic])
    assert compiled(tactic, Binding({}))


@pytest.mark.parametrize(("columns", "warps"), [(2, 2), (4, 2), (4, 4)])
def test_no_float_is_stored_as_a_byte(rng, columns, warps):
    """An assembler would convert it: these three gave wrong results on an H200."""
    b = Levels(rng)
    sums = b.add(MatMulInteger(), b.input((1, 1152)), b.levels((1152, 48)), *b.zeros())
    scaled = b.add(ew.Mul(), b.add(Cast(DType.FLOAT32), sums), b.floats((48,), 1e-3))
    task = b.task(b.quantized(b.add(ew.Silu(), scaled)))
    tactic = MatrixTactic(task, 1, columns, 512, warps, 3, vector=True, passes=0)
    check_interpreted(FAMILY, task, rng, tactics=[tactic])
    text = assembly(tactic, Binding({}))
    stored = set(re.findall(r"st\.shared\.b8\s+\[.*?\], (%r\d+);", text))
    assert stored and stored.isdisjoint(re.findall(r"\.f32\s+(%r\d+),", text))


def test_sums_of_bytes_go_through_no_shared_memory(rng):
    task = conv_of_levels(rng, (8, 14, 14, 64), 256, residual=True)
    for form in ((128, 128, 64, 4, 2), (128, 64, 64, 4, 3, PERSISTENT)):
        text = assembly(MatrixTactic(task, *form), Binding({}))
        end = text.split("wgmma.wait_group", 1)[1]
        assert "st.shared" not in end.split("st.global", 1)[0]
        assert "max.s16x2" in end and "st.global.v4.b32" in end


def test_what_is_declined(rng):
    computed = product_of_levels(rng, (4, 32), (32, 8), constant=False)
    grouped = conv_of_levels(rng, (1, 5, 5, 8), 8, (3, 3), groups=2)
    for task in (computed, grouped):
        assert not list(FAMILY.tactics(task, Binding({})))
    task = conv_of_levels(rng, (1, 5, 5, 8), 8)
    parameters = tactics(task)[0].parameters
    with pytest.raises(PlanError, match="impossible matrix kernel"):
        FAMILY.restore(task, {**parameters, "depth": 16})
    with pytest.raises(PlanError, match="impossible matrix kernel"):
        FAMILY.restore(task, {**parameters, "passes": 3})
