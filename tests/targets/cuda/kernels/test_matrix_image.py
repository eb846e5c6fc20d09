"""Convolutions of images that are copied or normalized first, or lie in another order; rows that
compute several pixels of the result.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import check_interpreted
from helpers.levels import Levels, conv_of_levels, product_of_levels
from helpers.products import (
    ALL,
    F16,
    F32,
    FAMILY,
    FLAT,
    ROW,
    SAME,
    TAPS,
    TOLERANCES,
    Builder,
    arrays,
    check,
    conv_task,
    matmul_task,
    tactics,
)
from helpers.tactics import row_padded
from planish.errors import PlanError
from planish.fusion.candidates import propose
from planish.graph import DType
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast, ew
from planish.ops.matmul import MatMul
from planish.ops.quantization import ConvInteger
from planish.ops.shape import Transpose
from planish.targets.base import Binding, Layout
from planish.targets.cuda.kernels.matrix import (
    ImageFamily,
    MatrixTactic,
)
from planish.targets.cuda.kernels.matrix_tile import PERSISTENT
from planish.targets.cuda.machine import H200


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


@pytest.mark.parametrize("turned", [False, True], ids=["rows", "planes"])
def test_bytes_of_an_image_are_normalized_on_the_way(turned, rng):
    """From uint8 to what the first convolution gives: one task, one kernel or a copy before it."""
    b = Builder(rng)
    y = b.input((2, 3, 9, 11) if turned else (2, 9, 11, 3), DType.UINT8)
    y = b.add(Cast(F32), y)
    if turned:
        y = b.add(Transpose((0, 2, 3, 1)), y)
    y = b.add(ew.Mul(), b.add(ew.Sub(), y, b.constant((3,), F32)), b.constant((3,), F32, 0.01))
    y = b.add(Cast(F16), y)
    y = b.add(Conv((2, 2), SAME, (1, 1)), y, b.constant((3, 3, 3, 20), F16, 0.2))
    y = b.add(ew.Relu(), b.add(ew.Add(), y, b.constant((20,), F16)))
    task = b.task(y)
    family = ImageFamily(H200) if turned else FAMILY
    assert set(task.nodes) in [set(t.nodes) for t in propose(b.graph)]
    assert task.inputs[0].dtype is DType.UINT8
    counts = {len(t.launches(Binding({}))) for t in family.tactics(task, Binding({}))}
    assert counts == ({2} if turned else {1, 2})
    copied = MatrixTactic(task, 32, 32, 32, 4, 2, 1, TAPS, channels=3, pixels=1)
    offered = [copied] if turned else [copied, MatrixTactic(task, 32, 32, 32, 4, 2, 1, FLAT)]
    check_interpreted(family, task, rng, tactics=offered, tolerance=2e-2, limit=None)


def test_floats_of_an_image_become_levels_on_the_way(rng):
    """From planes of float32 to the levels that the first convolution gives."""
    b = Levels(rng)
    turned = b.add(Transpose((0, 2, 3, 1)), b.input((2, 3, 10, 12), F32))
    op = ConvInteger((2, 2), SAME, (1, 1), 1)
    sums = b.add(op, b.quantized(turned), b.levels((3, 3, 3, 20)), *b.zeros())
    task = b.task(b.requantized(sums, 27, False, DType.INT8))
    assert task.image is not None and task.pattern == "image"
    assert set(task.nodes) in [set(t.nodes) for t in propose(b.graph)]
    offered = list(ImageFamily(H200).tactics(task, Binding({})))
    assert {t.pixels for t in offered} >= {0, 1, 2}
    assert all(len(t.launches(Binding({}))) == 2 for t in offered)
    best = {t.pixels: t for t in reversed(offered)}
    check_interpreted(ImageFamily(H200), task, rng, tactics=best.values(), limit=None)


@pytest.mark.parametrize("prologue", [None, "cast", "sum"])
@pytest.mark.parametrize("split", [1, 2])
def test_images_of_few_channels_are_copied_first(prologue, split, rng):
    cases = [
        dict(shape=(2, 11, 12, 3), window=(5, 4), stride=2, padding=((2, 1), (0, 3))),
        dict(shape=(3, 8, 9, 5), window=(3, 3), padding=SAME, dilation=2),
        dict(shape=(1, 9, 7), window=(3,), padding=((1, 1),)),
    ]
    for case in cases:
        task = conv_task(rng, filters=20, prologue=prologue, residual=True, **case)
        walk = FLAT if "dilation" in case else ROW
        offered = tactics(task, walks=(walk,), splits=(split,))
        check(task, rng, [replace(t, channels=8) for t in offered], limit=0)
    offered = {(t.channels, t.pixels) for t in FAMILY.tactics(task, Binding({}))}
    assert {(0, 0), (8, 0)} <= offered


FOLDED = [
    dict(shape=(2, 16, 16, 3), filters=20, window=(7, 7), stride=2, padding=((3, 3), (3, 3))),
    dict(shape=(1, 11, 12, 3), filters=10, window=(3, 3), padding=SAME, prologue="cast"),
    dict(shape=(3, 9, 13, 2), filters=9, window=(2, 5), stride=3, padding=((0, 1), (2, 1))),
    dict(shape=(2, 16, 3), filters=12, window=(3,), stride=2, padding=((1, 0),)),
]


@pytest.mark.parametrize("pixels", [1, 2, 4])
@pytest.mark.parametrize("case", FOLDED, ids=str)
def test_copies_whose_strides_become_channels(case, pixels, rng):
    """Rows of one pixel or of neighbouring ones."""
    task = conv_task(rng, **case, residual=True, per_image=True)
    tile = (32, 64, 32, 4, 2)
    offered = [
        MatrixTactic(task, *tile, split, walk, False, 1, channels, transposed, pixels)
        for split, walk, transposed in ((1, TAPS, False), (2, FLAT, True))
        for channels in (case["shape"][-1], 4)
    ]
    offered = [tactic for tactic in offered if tactic.accepts(Binding({}))]
    if case.get("stride", 1) > 1 or pixels == 2:
        assert offered
        check(task, rng, offered, limit=0)
    else:  # without a stride nothing is folded; runs of 2 x 3 halves begin anywhere
        assert pixels == 1 or offered


def test_stems_are_offered_folded_copies(rng):
    task = conv_task(rng, (128, 224, 224, 3), 64, (7, 7), stride=2, padding=((3, 3), (3, 3)))
    folded = [t for t in FAMILY.tactics(task, Binding({})) if t.pixels]
    assert {(t.pixels, t.channels) for t in folded} == {(1, 3), (2, 3), (4, 3)}
    tactic = next(t for t in folded if t.pixels == 2)
    _, product = tactic.launches(Binding({}))
    assert product.params[0] == 128 * 112 * 56
    assert product.kernel.columns == 128
    deep = conv_task(rng, (8, 56, 56, 64), 64, (3, 3), stride=2, padding=SAME)
    assert not any(t.pixels for t in FAMILY.tactics(deep, Binding({})))
    product = matmul_task(rng, (64, 32), (32, 16), constant=True)
    with pytest.raises(PlanError):
        FAMILY.restore(product, {**tactic.parameters, "channels": 32})


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("pixels", [2, 4])
def test_rows_of_several_pixels(pixels, stride, rng):
    """Of images that are read as they lie, borders included."""
    task = conv_task(
        rng, (2, 7, 8 * stride, 16), 12, (3, 3), stride, SAME, residual=True, prologue="cast"
    )
    offered = [
        MatrixTactic(task, 32, 64, 32, 4, 2, split, walk, transposed=turned, pixels=pixels)
        for split, walk, turned in ((1, TAPS, False), (2, ROW, True), (1, FLAT, False))
    ]
    check(task, rng, offered, limit=0)
    odd = conv_task(rng, (2, 7, 9, 16), 12, (3, 3), padding=SAME)
    assert not replace(offered[0], task=odd).accepts(Binding({}))


def test_rows_of_several_pixels_are_offered_for_few_filters(rng):
    def offered(filters):
        task = conv_task(rng, (128, 72, 72, 32), filters, (3, 3), padding=SAME)
        return {t.pixels for t in FAMILY.tactics(task, Binding({}))}

    assert (offered(32), offered(16), offered(64)) == ({0, 2}, {0, 4}, {0})


@pytest.mark.parametrize(("channels", "filters", "pixels"), [(16, 96, 2), (24, 144, 4), (8, 48, 4)])
def test_pixels_of_few_bytes_are_multiplied_together(channels, filters, pixels, rng):
    task = conv_of_levels(rng, (2, 6, 8, channels), filters, residual=True)
    best = {t.pixels: t for t in reversed(list(FAMILY.tactics(task, Binding({}))))}
    assert set(best) == {0, pixels}
    small = MatrixTactic(task, 64, 64, 64, 4, 2, pixels=pixels)
    many = MatrixTactic(task, 64, 64, 128, 4, 2, PERSISTENT, pixels=pixels)
    offered = [*best.values(), small, many]
    check_interpreted(FAMILY, task, rng, tactics=offered, limit=None)
    odd = conv_of_levels(rng, (1, 5, 3, channels), filters)
    assert {t.pixels for t in FAMILY.tactics(odd, Binding({}))} == {0}
    assert not replace(small, task=odd).accepts(Binding({}))


@pytest.mark.parametrize(
    ("left", "right", "how", "together"),
    [
        ((64, 64), (64, 24), {}, 2),
        ((128, 64), (10, 64), dict(op=MatMul(False, True), more=[(1, 10)]), 4),
        ((4, 6, 64), (64, 24), dict(more=[(24,), (4, 6, 24)]), 2),
        ((6, 64), (64, 10), dict(more=[(6, 1)]), 0),
    ],
    ids=str,
)
def test_rows_of_products_are_multiplied_together(left, right, how, together, rng):
    task = matmul_task(rng, left, right, constant=True, **how)
    best = {t.pixels: t for t in reversed(list(FAMILY.tactics(task, Binding({}))))}
    assert set(best) == {0, together}
    check(task, rng, best.values(), limit=0)


def test_rows_of_products_of_bytes_are_multiplied_together(rng):
    task = product_of_levels(rng, (2, 8, 16), (16, 96))
    best = {t.pixels: t for t in reversed(list(FAMILY.tactics(task, Binding({}))))}
    assert set(best) == {0, 2}
    check_interpreted(FAMILY, task, rng, tactics=best.values(), limit=None)


@pytest.mark.parametrize(("size", "pixels"), [((5, 5), {0}), ((4, 5), {0, 2})])
def test_pixels_multiplied_together_are_of_one_image(size, pixels, rng):
    """Where the results of images lie apart, as before a concatenation."""
    task = conv_task(rng, (4, *size, 64), 24)
    dense = {t.pixels for t in FAMILY.tactics(task, Binding({}))}
    assert dense == {0, 2}

    def apart(value):
        layout = Binding({}).layout(value)
        if value not in task.outputs:
            return layout
        image, *more = layout.strides
        return Layout(layout.shape, (2 * image, *more), layout.alignment)

    binding = Binding({}, {v: apart(v) for v in (*task.inputs, *task.outputs)})
    offered = list(FAMILY.tactics(task, binding))
    assert {t.pixels for t in offered} == pixels
    best = {t.pixels: t for t in reversed(offered)}.values()
    check_interpreted(
        FAMILY, task, rng, tactics=best, tolerance=TOLERANCES[F16], limit=None, layouts=apart
    )


@pytest.mark.parametrize("dtype", [F16, F32], ids=str)
@pytest.mark.parametrize("window", [(3, 3), (1, 1)])
def test_images_may_lie_in_another_order(window, dtype, rng):
    b = Builder(rng)
    x = b.add(Cast(dtype), b.input((2, 3, 11, 12), F32))
    turned = b.add(Transpose((0, 2, 3, 1)), b.add(ew.Mul(), x, b.constant((), dtype)))
    scaled = b.add(ew.Mul(), turned, b.constant((3,), dtype))
    op = Conv((2, 1), SAME if window == (3, 3) else ((0, 0), (0, 0)), (1, 1))
    y = b.add(op, scaled, b.constant((*window, 3, 20), dtype, 0.2))
    task = b.task(b.add(ew.Relu(), b.add(ew.Add(), y, b.constant((20,), dtype))))
    family = ImageFamily(H200)
    offered = list(family.tactics(task, Binding({})))
    assert all(t.channels for t in offered)
    assert bool(offered) == (window == (3, 3))
    few = [MatrixTactic(task, 16, 16, 32, 4, 2), *(replace(t, split=1) for t in offered[:1])]

    def chosen(value):
        return Binding({}).layout(value) if value.is_constant else row_padded(value)

    for layouts in (None, chosen):
        check_interpreted(
            family, task, rng, tactics=few, tolerance=TOLERANCES[dtype], limit=None, layouts=layouts
        )


def test_a_copy_does_not_spread_infinite_pixels(rng):
    task = conv_task(rng, (1, 6, 7, 3), 4, (3, 3), padding=SAME, dtype=F32)
    data = arrays(task, rng)
    data[0][0, 2, 3, 1] = np.inf
    offered = [replace(t, channels=4) for t in tactics(task, walks=ALL)]
    check_interpreted(FAMILY, task, rng, tactics=offered, arrays=data, tolerance=1e-4, limit=None)


# ---- layouts -------------------------------------------------------------------------------------
