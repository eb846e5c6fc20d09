"""Products in tiles (AMX) against the references, by emulated instructions; see `helpers.tiles`."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import bfloat_tasks, byte_tasks
from helpers.byte_tasks import I8, U8
from helpers.tiles import PLAIN, run_emulated, with_tiles
from planish.errors import PlanError
from planish.fusion.task import Task
from planish.graph.dims import symbol
from planish.targets.base import Binding, Layout, dense_strides
from planish.targets.cpu.codegen.compile import emit_text
from planish.targets.cpu.kernels.tile_matrix import TileMatrixFamily, groups_of_step
from planish.targets.cpu.machine import generic

FAMILY = TileMatrixFamily().on(PLAIN)


def some(task: Task, binding: Binding, most: int) -> list:
    """So many tactics, of different blocks of tiles."""
    tactics = list(FAMILY.tactics(task, binding))
    assert tactics
    blocks = list({(t.pixels, t.vectors): t for t in tactics}.values())
    return [*blocks[:: max(len(blocks) // most, 1)], tactics[0]]


def check_bfloat(task: Task, rng, *, binding: Binding | None = None, most: int = 2) -> None:
    binding = binding or Binding({})
    arrays = [
        v.data if v.data is not None else bfloat_tasks.draw(rng, *v.type.bind(binding.symbols))
        for v in task.inputs
    ]
    (expected,) = task.evaluate(arrays)
    expected = expected.astype(np.float64)
    scale = float(np.abs(expected).max(initial=0)) * 2**-8
    atol = scale if len(task.nodes) > 1 else scale / 64  # as for vectors
    for tactic in some(task, binding, most):
        (have,) = run_emulated(tactic, binding, arrays, PLAIN)
        have = have.astype(np.float64)
        np.testing.assert_allclose(have, expected, rtol=2**-7, atol=atol, err_msg=str(tactic))


def check_bytes(task: Task, rng, *, binding: Binding | None = None, most: int = 2) -> None:
    binding = binding or Binding({})
    arrays = byte_tasks.arrays_of(task, rng)
    (expected,) = task.evaluate(arrays)
    for tactic in some(task, binding, most):
        (have,) = run_emulated(tactic, binding, arrays, PLAIN)
        np.testing.assert_array_equal(have, expected, err_msg=str(tactic))


BFLOAT_CONVS = [
    dict(shape=(1, 7, 9, 32), filters=48, window=1),
    dict(shape=(2, 5, 7, 24), filters=17, window=1, residual=True),
    dict(shape=(1, 5, 18, 16), filters=40, window=3, pad=1, stride=2, residual=True),
    dict(shape=(1, 4, 20, 16), filters=40, window=3, pad=2, dilation=2, wide=True),
    dict(shape=(2, 3, 16, 32), filters=24, window=3, pad=1, groups=2),
    dict(shape=(1, 8, 24, 24), filters=32, window=1, stride=2),
    dict(shape=(1, 9, 9, 20), filters=32, window=3, prologue=True, residual=True),
    dict(shape=(1, 4, 4, 1024), filters=16, window=1),
]


@pytest.mark.parametrize("case", BFLOAT_CONVS, ids=str)
def test_convolutions_of_bfloat16(case) -> None:
    rng = np.random.default_rng(1)
    check_bfloat(bfloat_tasks.conv_task(rng, **case), rng)


@pytest.mark.parametrize(
    ("a", "b", "transpose_b"),
    [
        ((16, 64), (64, 100), False),
        ((3, 17, 40), (33, 40), True),
        ((47, 32), (32, 16), False),
        ((6, 72), (72, 70), False),
    ],
)
def test_matrix_products_of_bfloat16(a, b, transpose_b) -> None:
    rng = np.random.default_rng(2)
    check_bfloat(bfloat_tasks.matmul_task(rng, a, b, transpose_b=transpose_b), rng)


BYTE_CONVS = [
    dict(shape=(1, 7, 9, 32), filters=48, window=1),
    dict(shape=(2, 5, 7, 33), filters=17, window=1),
    dict(shape=(2, 5, 22, 8), filters=24, window=3, stride=2, pad=1, residual=True),
    dict(shape=(1, 5, 13, 32), filters=40, window=3, pad=2, dilation=2),
    dict(shape=(2, 3, 16, 32), filters=24, window=3, pad=1, groups=2),
    dict(shape=(1, 8, 8, 64), filters=24, window=1, source=I8, zero=-7),
    dict(shape=(1, 3, 16, 48), filters=32, window=1, stride=2, zero=255),
    dict(shape=(1, 3, 17, 20), filters=32, window=1, prologue=True, residual=True),
    dict(shape=(1, 9, 9, 20), filters=16, window=3, pad=1, prologue=True, source=I8, zero=-128),
    dict(shape=(2, 3, 8, 12), filters=16, window=3, pad=1, source=I8, zero=0),
    dict(shape=(1, 9, 30, 3), filters=8, window=7, stride=2, pad=3),
    dict(shape=(1, 7, 7, 16), filters=16, window=3, pad=1, weights=U8, weight_zero=131),
]


@pytest.mark.parametrize("case", BYTE_CONVS, ids=str)
def test_convolutions_of_bytes(case) -> None:
    rng = np.random.default_rng(3)
    task = byte_tasks.conv_task(rng, **case)
    if case.get("weights") is U8:  # only where all weights, less their zero point, are bytes
        data = task.anchor.inputs[1].data
        data[...] = np.maximum(data, 4)
    check_bytes(task, rng)


@pytest.mark.parametrize(
    "case",
    [
        dict(a=(16, 64), b=(64, 40)),
        dict(a=(33, 128), b=(128, 101)),
        dict(a=(2, 7, 48), b=(48, 24), source=I8),
        dict(a=(9, 48), b=(31, 48), transpose_b=True),
    ],
    ids=str,
)
def test_matrix_products_of_bytes(case) -> None:
    rng = np.random.default_rng(4)
    check_bytes(byte_tasks.matmul_task(rng, **case), rng)


@pytest.mark.parametrize("seed", range(12))
def test_random_matrix_products(seed) -> None:
    """Rows, depth and columns of any size: what is left at the ends."""
    rng = np.random.default_rng(seed)
    rows, depth, columns = (int(n) for n in rng.integers((16, 1, 1), (70, 160, 70)))
    groups = -(-depth // 4)
    if 16 * groups_of_step(groups) >= 64:
        task = byte_tasks.matmul_task(
            rng, (rows, depth), (depth, columns), source=(U8, I8)[seed % 2]
        )
        check_bytes(task, rng, most=1)
    depth += depth % 2
    if 16 * groups_of_step(depth // 2) >= 64:
        check_bfloat(bfloat_tasks.matmul_task(rng, (rows, depth), (depth, columns)), rng, most=1)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("pixels", "vectors"),
    [(16, 1), (12, 2), (16, 3), (7, 4), (32, 1), (29, 2), (48, 1), (41, 1)],
)
def test_every_block_of_tiles(pixels: int, vectors: int, packed: bool) -> None:
    rng = np.random.default_rng(12)
    tile = dict(pixels=pixels, vectors=vectors, tail=0, pixels_outer=packed, packed=packed)
    task = byte_tasks.matmul_task(rng, (51, 40), (40, 70), source=I8)
    arrays = byte_tasks.arrays_of(task, rng)
    tactic = FAMILY.restore(task, tile)
    assert tactic.accepts(Binding({}))
    (have,) = run_emulated(tactic, Binding({}), arrays, PLAIN)
    np.testing.assert_array_equal(have, task.evaluate(arrays)[0])


def test_dynamic_batch() -> None:
    rng = np.random.default_rng(5)
    task = bfloat_tasks.conv_task(rng, shape=(symbol("N"), 6, 6, 16), filters=16, window=1)
    for n in (1, 3):
        check_bfloat(task, rng, binding=Binding({"N": n}))


def test_rows_and_channels_that_lie_apart() -> None:
    """A part of something wider is read, and a part of something wider written."""
    rng = np.random.default_rng(6)
    task = byte_tasks.conv_task(rng, shape=(2, 4, 8, 12), filters=16, window=3, pad=1)
    (x,), (y,) = [v for v in task.inputs if not v.is_constant], task.outputs
    layouts = {}
    for value, channels in {x: 20, y: 48}.items():
        shape = tuple(value.shape)
        layouts[value] = Layout(shape, dense_strides((*shape[:-1], channels)), alignment=1)
    check_bytes(task, rng, binding=Binding({}, layouts))


def test_an_odd_depth_of_halves_is_left_to_vectors() -> None:
    """The partner of the last one may be infinite."""
    rng = np.random.default_rng(7)
    task = bfloat_tasks.matmul_task(rng, (32, 33), (33, 32))
    assert not list(FAMILY.tactics(task, Binding({})))


def test_infinities_stay_in_their_rows() -> None:
    rng = np.random.default_rng(8)
    task = bfloat_tasks.matmul_task(rng, (32, 48), (48, 32))
    x = bfloat_tasks.draw(rng, 32, 48)
    x[1::2] = np.inf
    for tactic in list(FAMILY.tactics(task, Binding({})))[::4]:
        (have,) = run_emulated(tactic, Binding({}), [x, task.inputs[1].data], PLAIN)
        assert np.isfinite(have[::2].astype(np.float32)).all()
        assert not np.isfinite(have[1::2].astype(np.float32)).any()


def test_blocks_of_tiles() -> None:
    """The likeliest block of a large product has four tiles of sums."""
    rng = np.random.default_rng(9)
    for task in (
        bfloat_tasks.matmul_task(rng, (256, 256), (256, 256)),
        byte_tasks.matmul_task(rng, (256, 256), (256, 256)),
    ):
        first = next(iter(FAMILY.tactics(task, Binding({}))))
        assert (first.pixels, first.vectors) == (32, 2)


def test_tiles_that_would_be_nearly_empty_are_not_offered() -> None:
    rng = np.random.default_rng(10)
    for rows, depth in ((1, 64), (3, 64), (64, 6), (64, 2 * 17 * 3)):
        task = bfloat_tasks.matmul_task(rng, (rows, depth), (depth, 32))
        assert not list(FAMILY.tactics(task, Binding({})))


# ---- machines ------------------------------------------------------------------------------------


def tasks() -> dict[str, Task]:
    rng = np.random.default_rng(11)
    wide = dict(filters=64, window=1)
    return {
        "tdpbf16ps": bfloat_tasks.conv_task(rng, shape=(1, 14, 14, 32), **wide),
        "tdpbusd": byte_tasks.conv_task(rng, shape=(1, 14, 14, 64), **wide),
        "tdpbssd": byte_tasks.conv_task(rng, shape=(1, 14, 14, 64), **wide, source=I8),
    }


@pytest.mark.parametrize(
    ("machine", "offered"),
    [
        (generic("avx512"), set()),
        (generic("avx2"), set()),
        (generic("neon"), set()),
        (PLAIN.restricted("avx2"), set()),
        (PLAIN.without_tiles(), set()),
        (with_tiles(generic("avx512"), "+amx-tile"), set()),
        (with_tiles(generic("avx512"), "+amx-tile", "+amx-bf16"), {"tdpbf16ps"}),
        (with_tiles(generic("avx512"), "+amx-tile", "+amx-int8"), {"tdpbusd", "tdpbssd"}),
        (PLAIN, {"tdpbf16ps", "tdpbusd", "tdpbssd"}),
    ],
    ids=["avx512", "avx2", "neon", "narrow", "without", "tile", "bf16", "int8", "all"],
)
def test_offered_only_where_there_are_tiles(machine, offered) -> None:
    family = TileMatrixFamily().on(machine)
    for name, task in tasks().items():
        assert bool(list(family.tactics(task, Binding({})))) == (name in offered)


@pytest.mark.parametrize("name", ["tdpbf16ps", "tdpbusd", "tdpbssd"])
def test_instructions(name) -> None:
    """For four tiles of sums and a step of depth: four loads of factors and four products."""
    task = tasks()[name]
    tile = {"pixels": 28, "vectors": 2, "tail": 0, "pixels_outer": False, "packed": False}
    tactic = FAMILY.restore(task, tile)
    (launch,) = tactic.launches(Binding({}))
    text = emit_text(launch.kernel.assembly(PLAIN), PLAIN)
    counts = {w: text.count(f"{w}\t") for w in ("ldtilecfg", "tileloadd", "tilestored", name)}
    loads = 4 if name == "tdpbf16ps" else 8  # bytes begin with sums that are not zero
    assert counts == {"ldtilecfg": 1, "tileloadd": loads, "tilestored": 4, name: 4}
    assert text.count("tilezero") == (4 if name == "tdpbf16ps" else 0)
    assert text.count("tilerelease") == 1
    assert launch.kernel.compile(PLAIN)


def test_plans_of_machines_with_tiles() -> None:
    """Elsewhere their tactics are refused, so that loading takes what this machine has."""
    task = tasks()["tdpbusd"]
    tactic = next(iter(FAMILY.tactics(task, Binding({}))))
    again = FAMILY.restore(task, tactic.parameters)
    assert (type(again), again.parameters) == (type(tactic), tactic.parameters)
    with pytest.raises(PlanError, match="AMX"):
        TileMatrixFamily().on(generic("avx512")).restore(task, tactic.parameters)
    for changed in ({"pixels": 49}, {"pixels": 33, "vectors": 2}, {"vectors": 5}, {"tail": 3}):
        with pytest.raises(PlanError, match="impossible tile_matrix"):
            FAMILY.restore(task, {**tactic.parameters, **changed})
