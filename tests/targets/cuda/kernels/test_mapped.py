"""The matrix kernel with tensor maps against the references: boxes of pixels, of rows; borders,
gaps, depths that are no steps, programs that share tiles and that go through many; what is offered.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted, compiled
from helpers.products import BF16, F16, F32, SAME, TOLERANCES, arrays, conv_task, matmul_task
from planish.errors import PlanError
from planish.ops.matmul import MatMul
from planish.targets.base import Binding, Layout, dense_strides
from planish.targets.cuda.kernels.mapped import MappedFamily, MappedTactic
from planish.targets.cuda.kernels.matrix_tile import PERSISTENT
from planish.targets.cuda.machine import H200

FAMILY = MappedFamily()
FEW = replace(H200, multiprocessors=1)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(21)


def check(task, rng, tactics, layouts=None) -> None:
    data = arrays(task, rng)
    scale = max(float(np.abs(e.astype(np.float32)).max()) for e in task.evaluate(data))
    check_interpreted(
        FAMILY,
        task,
        rng,
        tactics=tactics,
        arrays=data,
        layouts=layouts,
        tolerance=TOLERANCES[task.anchor.output.dtype] * max(scale, 1),
        limit=None,
    )


CONVOLUTIONS = [
    dict(shape=(2, 9, 11, 8), filters=5, window=(3, 3), padding=SAME),
    dict(shape=(5, 5, 4, 72), filters=33, window=(3, 3), padding=SAME, residual=True),
    dict(shape=(1, 7, 9, 16), filters=72, window=(3, 2), padding=((3, 0), (0, 2))),
    dict(shape=(3, 1, 1, 24), filters=40, window=(3, 3), padding=SAME, dtype=BF16),
    dict(shape=(2, 9, 8, 16), filters=8, window=(3, 3), padding=((2, 2), (1, 2)), dilation=2),
    dict(shape=(2, 3, 7, 8), filters=8, window=(1, 7), padding=((0, 0), (3, 3)), per_image=True),
]
BOXES = [(16, 64, 64, 4, 3, 1, True, 2, 4), (64, 64, 128, 4, 3, 1, True, 4, 4)]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions(case, rng):
    task = conv_task(rng, **case)
    check(task, rng, [MappedTactic(task, *box) for box in BOXES])


@pytest.mark.parametrize("split", [2, 3])
def test_programs_share_tiles(split, rng):
    task = conv_task(rng, (2, 5, 6, 72), 70, (3, 3), padding=SAME, residual=True)
    check(task, rng, [MappedTactic(task, 32, 64, 64, 4, 3, split, True, 2, 8)])
    task = matmul_task(rng, (19, 200), (200, 24), constant=True, more=[(24,)])
    check(task, rng, [MappedTactic(task, 16, 64, 64, 4, 3, split, True)])


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_products(dtype, rng):
    task = matmul_task(rng, (3, 23, 40), (40, 130), constant=True, dtype=dtype, more=[(3, 23, 130)])
    tactics = [MappedTactic(task, 64, 64, 64, 4, 3, 1, turned) for turned in (False, True)]
    check(task, rng, tactics)


PAIRS = [
    dict(shape=(2, 8, 12, 64), filters=24, window=(3, 3), padding=SAME),
    dict(shape=(3, 6, 4, 128), filters=70, window=(3, 3), padding=((0, 1), (1, 0)), residual=True),
    dict(shape=(1, 10, 8, 64), filters=8, window=(5, 2), padding=((2, 2), (0, 0)), dtype=BF16),
    dict(shape=(2, 12, 8, 64), filters=8, window=(2, 3), padding=((3, 1), (2, 2)), dilation=2),
]


@pytest.mark.parametrize("case", PAIRS, ids=str)
def test_convolutions_by_steps_of_two(case, rng):
    task = conv_task(rng, stride=2, **case)
    boxes = [(16, 64, 64, 4, 3, 1, True, 2, 4), (32, 64, 64, 4, 3, 3, True, 4, 2)]
    tactics = [MappedTactic(task, *box) for box in boxes]
    check(task, rng, tactics)
    if case["shape"][-1] == 128:
        deep = replace(tactics[0], depth=128)
        check(task, rng, [deep])
        text = assembly(deep, Binding({}))
        assert "cp.async.bulk.tensor.5d" in text and "wgmma" in text


def test_images_of_pairs_with_gaps(rng):
    task = conv_task(rng, (2, 6, 8, 64), 16, (3, 3), padding=SAME, stride=2)

    def layout(value):
        shape = value.type.bind({})
        if value.is_constant or len(shape) != 4:
            return Layout(shape, dense_strides(shape))
        return Layout(shape, dense_strides((*shape[:-1], shape[-1] + 8)), 16)

    check(task, rng, [MappedTactic(task, 16, 64, 64, 4, 3, 1, True, 2, 4)], layout)


def test_products_by_transposed_matrices(rng):
    task = matmul_task(rng, (9, 32), (20, 32), op=MatMul(transpose_b=True), constant=True)
    check(task, rng, [MappedTactic(task, 16, 64, 64, 4, 4)])


def test_pointwise_convolutions_are_products(rng):
    task = conv_task(rng, (2, 5, 7, 24), 33, residual=True)
    check(task, rng, [MappedTactic(task, 32, 64, 64, 4, 3)])
    assert not MappedTactic(task, 32, 64, 64, 4, 3, 1, True, 4, 4).accepts(Binding({}))


@pytest.mark.parametrize(("columns", "boxes"), [(300, False), (304, True)])
def test_programs_go_through_many_tiles(columns, boxes, rng):
    shapes = [(columns,), (700, columns)]
    task = matmul_task(rng, (700, 72), (72, columns), constant=True, more=shapes)
    tactic = MappedTactic(task, 128, 128, 64, 8, 3, PERSISTENT, False, machine=FEW)
    (launch,) = tactic.launches(Binding({}))
    assert launch.tasks < 3 * 6 and launch.kernel.stores_boxes is boxes
    check(task, rng, [tactic])


def test_images_with_gaps(rng):
    task = conv_task(rng, (2, 5, 6, 16), 24, (3, 3), padding=SAME)

    def layout(value):
        shape = value.type.bind({})
        if value.is_constant or len(shape) != 4:
            return Layout(shape, dense_strides(shape))
        strides = dense_strides((*shape[:-1], shape[-1] + 8))
        return Layout(shape, strides, 16)

    check(task, rng, [MappedTactic(task, *box) for box in BOXES], layout)


def test_what_is_declined(rng):
    for task in (
        conv_task(rng, (2, 5, 6, 12), 24, (3, 3), padding=SAME),  # rows of 24 bytes
        conv_task(rng, (2, 5, 6, 16), 24, (3, 3), padding=SAME, dtype=F32),
        conv_task(rng, (2, 5, 6, 64), 24, (3, 3), padding=SAME, stride=2),  # an odd row
        conv_task(rng, (2, 6, 6, 16), 24, (3, 3), padding=SAME, stride=2),  # few channels
        conv_task(rng, (2, 9, 9, 64), 24, (3, 3), padding=SAME, stride=3),
        conv_task(rng, (2, 6, 6, 16), 24, stride=2),
        conv_task(rng, (2, 5, 6, 16), 24, prologue="sum"),
        matmul_task(rng, (20, 32), (32, 32)),
        matmul_task(rng, (1, 32), (32, 32), constant=True),
    ):
        assert not list(FAMILY.tactics(task, Binding({})))
    task = conv_task(rng, (2, 5, 6, 16), 24, (3, 3), padding=SAME)
    tactic = MappedTactic(task, *BOXES[0])

    def unaligned(value):
        shape = value.type.bind({})
        return Layout(shape, dense_strides(shape), 8)

    values = (*task.inputs, *task.outputs)
    assert not tactic.accepts(Binding({}, {v: unaligned(v) for v in values}))
    assert tactic.accepts(Binding({}))
    old = replace(H200, capability=(8, 0))
    assert not list(MappedFamily(old).tactics(task, Binding({})))


@pytest.mark.parametrize(
    "change",
    [
        dict(rows=48),
        dict(columns=32),
        dict(high=64),
        dict(high=0),
        dict(split=PERSISTENT),
        dict(transposed=False),
    ],
    ids=str,
)
def test_impossible_parameters(change, rng):
    task = conv_task(rng, (2, 5, 6, 16), 24, (3, 3), padding=SAME)
    good = MappedTactic(task, *BOXES[0]).parameters
    assert FAMILY.restore(task, good).parameters == good
    with pytest.raises(PlanError):
        FAMILY.restore(task, dict(good) | change)


@pytest.mark.parametrize(
    ("shape", "filters"), [((8, 14, 14, 256), 256), ((1, 28, 28, 512), 512), ((8, 7, 7, 512), 512)]
)
def test_small_images_are_offered(shape, filters, rng):
    task = conv_task(rng, shape, filters, (3, 3), padding=SAME)
    tactics = list(FAMILY.tactics(task, Binding({})))
    assert len({(t.rows, t.columns) for t in tactics}) >= 3
    assert any(t.depth == 128 for t in tactics)
    assert all(t.extra_seconds > 0 for t in tactics)  # a network pays for their maps
    text = assembly(tactics[0], Binding({}))
    assert "cp.async.bulk.tensor.4d" in text and "wgmma" in text
    for tactic in tactics:
        (code,) = compiled(tactic, Binding({}))
        assert code.shared <= H200.shared and len(code.maps) == 2
        assert type(code).from_bytes(code.to_bytes()) == code


def test_large_products_are_offered_to_programs_of_many_tiles(rng):
    task = matmul_task(rng, (16384, 768), (768, 3072), constant=True)
    tactics = list(FAMILY.tactics(task, Binding({})))
    assert any(t.split == PERSISTENT for t in tactics)
    for tactic in tactics:
        (code,) = compiled(tactic, Binding({}))
        assert code.shared <= H200.shared
