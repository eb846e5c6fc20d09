"""The matrix kernel with specialised warps against the references: without a GPU in an interpreter
that delays copies and products; turns, rings, clusters, borders; what is offered.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import check_interpreted, compiled
from helpers.levels import Levels, conv_of_levels, product_of_codes, product_of_levels
from helpers.products import (
    BF16,
    F16,
    F32,
    SAME,
    TOLERANCES,
    Builder,
    arrays,
    conv_task,
    matmul_task,
)
from helpers.ptx_text import without
from planish.errors import PlanError
from planish.fusion.task import Task
from planish.graph import DType
from planish.ops import Cast, Gelu, MatMulInteger, ew
from planish.ops.float8 import decode, encode
from planish.ops.matmul import MatMul
from planish.targets.base import Binding, Layout, dense_strides
from planish.targets.cuda.codegen.compile import triton
from planish.targets.cuda.kernels.ptx.specialized.tactics import (
    LIMIT,
    SpecializedFamily,
    SpecializedTactic,
)
from planish.targets.cuda.machine import H200
from planish.targets.cuda.ptx_interpreter import Grid
from planish.targets.cuda.run import is_on_gpu, run_tactic

FEW = replace(H200, multiprocessors=2)
FAMILY = SpecializedFamily(FEW)
I8 = DType.INT8
HALVES = [
    (64, 64, 64, 3, 2, 1),
    (64, 128, 64, 2, 1, 2),
    (128, 64, 32, 5, 3, 2),
    (192, 128, 64, 2, 1, 1),
]
"""Rows, columns, depth, stages, ring, cluster."""
BYTES = [(64, 128, 128, 3, 2, 1), (128, 64, 64, 4, 1, 2), (256, 64, 64, 2, 3, 1)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(51)


def tactic(task: Task, *parameters: int) -> SpecializedTactic:
    return SpecializedTactic(task, *parameters, machine=FEW)


def check(task: Task, rng, tiles, layouts=None) -> None:
    data = arrays(task, rng)
    scale = max(float(np.abs(e.astype(np.float32)).max()) for e in task.evaluate(data))
    check_interpreted(
        FAMILY,
        task,
        rng,
        tactics=[tactic(task, *tile) for tile in tiles],
        arrays=data,
        layouts=layouts,
        tolerance=TOLERANCES[task.anchor.output.dtype] * max(scale, 1),
        limit=None,
    )


def product(rng, rows, depth, columns, *ops, residual=False, dtype=F16) -> Task:
    """A product, a bias, functions, and something added."""
    b = Builder(rng)
    y = b.add(MatMul(), b.input((rows, depth), dtype), b.constant((depth, columns), dtype, 0.1))
    y = b.add(ew.Add(), y, b.constant((columns,), dtype))
    for op in ops:
        y = b.add(op, y)
    return b.task(b.add(ew.Add(), y, b.input((rows, columns), dtype)) if residual else y)


@pytest.mark.parametrize("tile", HALVES, ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
def test_products(tile, residual):
    rng = np.random.default_rng()
    rows, columns = int(rng.integers(200, 600)), tile[1] * int(rng.integers(1, 3))
    depth = 8 * int(rng.integers(1, 25))
    check(product(rng, rows, depth, columns, residual=residual), rng, [tile])


@pytest.mark.parametrize(
    "op", [Gelu(), Gelu(approximate=True), ew.Silu(), ew.Sigmoid(), ew.HardSwish(), ew.Relu()]
)
def test_functions(op, rng):
    for dtype in (F16, BF16):
        check(product(rng, 200, 72, 128, op, dtype=dtype, residual=True), rng, HALVES[:2])


def test_numbers_and_wide_leaves(rng):
    b = Builder(rng)
    y = b.add(MatMul(), b.input((130, 64), F16), b.constant((64, 64), F16, 0.1))
    y = b.add(Cast(F32), y)
    y = b.add(ew.Mul(), y, b.input((), F32))
    y = b.add(ew.Add(), y, b.input((64,), F32))
    check(b.task(b.add(Cast(F16), y)), rng, HALVES[:1])


def test_one_tile_for_two_groups(rng):
    """Groups without a tile end at once."""
    for tile in HALVES[:3]:
        check(product(rng, 40, 24, tile[1], residual=True), rng, [tile])


CONVOLUTIONS = [
    (dict(shape=(3, 9, 11, 24), filters=64, window=(3, 3), padding=SAME), (4, 16)),
    (dict(shape=(5, 5, 4, 72), filters=128, window=(3, 3), padding=SAME, residual=True), (2, 4)),
    (dict(shape=(2, 7, 9, 16), filters=64, window=(3, 2), padding=((3, 0), (0, 2))), (8, 8)),
    (dict(shape=(7, 1, 1, 24), filters=64, window=(3, 3), padding=SAME, dtype=BF16), (1, 1)),
    (
        dict(shape=(3, 9, 8, 16), filters=64, window=(3, 3), padding=((2, 2), (1, 2)), dilation=2),
        (4, 8),
    ),
    (
        dict(shape=(5, 8, 12, 64), filters=64, window=(3, 3), padding=SAME, stride=2),
        (4, 8),
    ),
    (
        dict(shape=(3, 6, 4, 64), filters=64, window=(3, 3), padding=((0, 1), (1, 0)), stride=2),
        (1, 2),
    ),
]


@pytest.mark.parametrize(("case", "box"), CONVOLUTIONS, ids=str)
def test_convolutions(case, box, rng):
    tiles = [(*tile, *box) for tile in HALVES[:3] if case["filters"] % tile[1] == 0]
    check(conv_task(rng, **case), rng, tiles)


def test_pointwise_convolutions_are_products(rng):
    task = conv_task(rng, (3, 5, 7, 24), 128, residual=True)
    check(task, rng, HALVES[:3])
    assert not tactic(task, 64, 64, 64, 3, 2, 1, 4, 4).accepts(Binding({}))


def test_gaps(rng):
    """Rows of tensors need not lie side by side."""
    task = conv_task(rng, (3, 5, 6, 16), 64, (3, 3), padding=SAME, residual=True)

    def layout(value):
        shape = value.type.bind({})
        if value.is_constant or len(shape) != 4:
            return Layout(shape, dense_strides(shape))
        return Layout(shape, dense_strides((*shape[:-1], shape[-1] + 8)), 16)

    check(task, rng, [(64, 64, 64, 3, 2, 2, 4, 8)], layout)


FRAMED = [
    (64, 64, 64, 9, 2, 1, 8, 8, 0, 3),  # weights stay
    (192, 64, 64, 9, 1, 1, 8, 8, 0, 2),
    (128, 64, 64, 4, 2, 1, 16, 8, 0, 2),
    (128, 64, 64, 5, 3, 2, 8, 8, 0, 3),
]
"""With high, wide, channels and frames."""


def odd_shape(rng: np.random.Generator, channels: int) -> tuple[int, int, int, int]:
    """Some images, smaller or larger than a tile."""
    images, high, wide = (int(rng.integers(1, n)) for n in (6, 14, 20))
    return images, high, wide, channels


@pytest.mark.parametrize("tile", FRAMED, ids=str)
@pytest.mark.parametrize(("dtype", "residual"), [(F16, True), (BF16, False)], ids=str)
def test_pixels_are_loaded_once_for_all_taps(tile, dtype, residual):
    rng = np.random.default_rng()
    task = conv_task(
        rng, odd_shape(rng, 64), 64, (3, 3), padding=SAME, residual=residual, dtype=dtype
    )
    check(task, rng, [tile])


@pytest.mark.parametrize(
    ("filters", "tile"),
    [
        (128, (64, 64, 64, 6, 2, 1, 8, 8, 0, 2)),
        (128, (64, 128, 64, 3, 2, 2, 8, 8, 0, 2)),
        (64, (64, 64, 64, 18, 1, 1, 8, 8, 0, 2)),  # weights stay
        (128, (64, 64, 64, 18, 1, 1, 8, 8, 0, 2)),  # not with two tiles of columns
    ],
    ids=str,
)
def test_frames_of_several_channels(filters, tile):
    rng = np.random.default_rng()
    shape = odd_shape(rng, 8 * int(rng.integers(9, 17)))
    task = conv_task(rng, shape, filters, (3, 3), padding=SAME)
    check(task, rng, [tile])


WINDOWS = [
    dict(window=(3, 2), padding=((3, 0), (0, 2))),
    dict(window=(1, 5), padding=((0, 0), (1, 1))),
    dict(window=(3, 3), padding=((2, 2), (1, 2)), dilation=2),
]


@pytest.mark.parametrize("case", WINDOWS, ids=str)
def test_frames_of_other_windows(case, rng):
    task = conv_task(rng, (3, 9, 13, 40), 64, residual=True, **case)
    steps = case["window"][0] * case["window"][1]
    tiles = [(64, 64, 64, n, 2, 1, 8, 8, 0, 2) for n in (3, steps)]
    check(task, rng, tiles)


COPIED = [
    dict(shape=(3, 9, 13, 3), filters=64, window=(7, 7), stride=2, padding=((3, 3), (3, 3))),
    dict(shape=(2, 12, 10, 3), filters=64, window=(3, 3), stride=2, padding=((0, 1), (0, 1))),
    dict(shape=(2, 9, 8, 4), filters=128, window=(5, 3), stride=2, padding=((2, 2), (1, 0))),
]


@pytest.mark.parametrize("case", COPIED, ids=str)
def test_few_channels_on_copies(case, rng):
    for prologue in (None, "affine"):
        task = conv_task(rng, **case, prologue=prologue)
        depth = 64 if case["window"] == (7, 7) else 32
        tiles = [(64, 64, depth, 3, 2, 1, 2, 8, 4), (128, 64, depth, 2, 1, 2, 4, 4, 4)]
        check(task, rng, tiles)


def test_copies_are_offered_where_channels_are_few(rng):
    case = dict(filters=64, window=(7, 7), stride=2, padding=((3, 3), (3, 3)))
    for channels in (3, 4):
        task = conv_task(rng, (32, 64, 64, channels), **case)
        offered = list(SpecializedFamily().tactics(task, Binding({})))
        assert offered and {t.channels for t in offered} == {4}
        assert all(t.workspace(Binding({})) for t in offered)
    task = conv_task(rng, (32, 64, 64, 8), **case)  # runs of 256 bytes
    assert not list(SpecializedFamily().tactics(task, Binding({})))


def test_few_levels_on_copies(rng):
    case = dict(shape=(3, 9, 13, 3), filters=64, window=(7, 7), padding=((3, 3), (3, 3)))
    task = conv_of_levels(rng, stride=2, **case)
    made = tactic(task, 128, 64, 64, 2, 1, 2, 4, 4, 4)
    check_interpreted(FAMILY, task, rng, tactics=[made])


LEVELS = [
    (dict(shape=(3, 9, 7, 64), filters=128, residual=True), ()),
    (dict(shape=(3, 9, 7, 48), filters=128, window=(3, 3), padding=SAME, residual=True), (4, 8)),
    (dict(shape=(2, 8, 8, 64), filters=128, window=(3, 3), padding=SAME, stride=2), (2, 2)),
    (dict(shape=(2, 8, 9, 32), filters=128, window=(1, 3), padding=((0, 0), (1, 1))), (1, 8)),
]


@pytest.mark.parametrize(("case", "box"), LEVELS, ids=str)
def test_levels_are_those_of_the_references(case, box, rng):
    task = conv_of_levels(rng, **case)
    for tile in BYTES:
        if "stride" in case and tile[2] > 64:
            continue
        check_interpreted(FAMILY, task, rng, tactics=[tactic(task, *tile, *box)])


@pytest.mark.parametrize(
    ("channels", "tile"),
    [
        (64, (128, 64, 64, 9, 2, 1, 8, 8, 0, 4)),
        (64, (256, 64, 64, 9, 3, 1, 16, 8, 0, 3)),
        (128, (64, 128, 128, 9, 2, 1, 8, 8, 0, 2)),
        (128, (128, 128, 128, 5, 2, 2, 16, 8, 0, 2)),
        (144, (64, 64, 64, 7, 2, 1, 8, 8, 0, 2)),
    ],
    ids=str,
)
def test_frames_of_levels(channels, tile):
    rng = np.random.default_rng()
    shape = odd_shape(rng, channels)
    filters = 64 if channels == 64 else 128
    task = conv_of_levels(rng, shape, filters, (3, 3), padding=SAME, residual=channels != 128)
    check_interpreted(FAMILY, task, rng, tactics=[tactic(task, *tile)])


def test_products_of_levels(rng):
    task = product_of_levels(rng, (3, 100, 144), (144, 256), residual=True)
    check_interpreted(FAMILY, task, rng, tactics=[tactic(task, *t) for t in BYTES], limit=None)


def test_levels_behind_functions(rng):
    """Levels behind GELU are those of the references but for what rounds otherwise."""
    b = Levels(rng)
    sums = b.add(MatMulInteger(), b.input((300, 96)), b.levels((96, 128)), *b.zeros())
    scales = b.graph.constant((rng.uniform(0.5, 1.5, 128) * 2e-5).astype(np.float32))
    y = b.add(ew.Mul(), b.add(Cast(F32), sums), scales)
    y = b.add(Gelu(), b.add(ew.Add(), y, b.floats((128,), 0.5)))
    task = b.task(b.quantized(y, scale=0.03))
    data = [
        v.data if v.data is not None else rng.integers(-128, 128, (300, 96)).astype(np.int8)
        for v in task.inputs
    ]
    (want,) = task.evaluate(data)
    for tile in BYTES:
        (have,) = run_tactic(tactic(task, *tile), Binding({}), data)
        assert np.abs(have.astype(int) - want).max() <= 1
        assert np.mean(have != want) < 2e-3


@pytest.mark.parametrize(("to", "gelu"), [(I8, False), (I8, True), (F16, False)], ids=str)
def test_codes(to, gelu, rng):
    task = product_of_codes(rng, (300, 160), (160, 128), to=to, gelu=gelu)
    data = [
        v.data if v.data is not None else encode(rng.standard_normal(v.type.bind({})))
        for v in task.inputs
    ]
    (want,) = task.evaluate(data)
    for tile in BYTES:
        if not tactic(task, *tile).accepts(Binding({})):
            assert to is F16  # too much shared memory
            continue
        (have,) = run_tactic(tactic(task, *tile), Binding({}), data)
        if to is I8:  # the order of sums decides what is half-way
            assert np.mean(have != want) < (0.1 if is_on_gpu() else 0.01)
            have, want_ = decode(have), decode(want)
            assert np.all(np.abs(have - want_) <= np.maximum(np.abs(want_) / 8, 2.0**-9) + 0.02)
        else:
            near = (3e-3 if is_on_gpu() else 1e-3) * float(np.abs(want.astype(np.float32)).max())
            np.testing.assert_allclose(have, want, rtol=1e-3, atol=near)


def test_results_are_the_same_in_every_run(rng):
    task = product(rng, 300, 136, 128, Gelu(), residual=True)
    data = arrays(task, rng)
    for tile in HALVES[:3]:
        first, *others = (run_tactic(tactic(task, *tile), Binding({}), data)[0] for _ in range(3))
        assert all(np.array_equal(first.view(np.uint16), o.view(np.uint16)) for o in others)


# ---- that the interpreter would notice -----------------------------------------------------------


def grid_of(change, rng, seed: int, tile=(64, 64, 64, 3, 1, 2)) -> tuple[Grid, object]:
    """A launch of a kernel whose text is changed, and how far its result is from the right one."""
    task = product(rng, 1200, 320, 64, residual=True)
    if len(tile) > 6:
        shape = (3, 9, 11, 64 if tile[3] == 9 else 128)
        task = conv_task(rng, shape, 64, (3, 3), padding=SAME, residual=True)
    data = arrays(task, rng)
    (want,) = task.evaluate(data)
    (launch,) = tactic(task, *tile).launches(Binding({}))
    kernel, memory = launch.kernel, dict(zip(task.inputs, data, strict=True))
    (weights,) = tactic(task, *tile).constants()
    result = np.zeros_like(want)
    memory[task.outputs[0]] = result
    pointers = [memory.get(p, weights) if p in memory else weights for p in launch.pointers]
    grid = Grid(
        change(kernel.text()),
        [p.map for p in kernel.pointers],
        [p.dtype.numpy for p in kernel.pointers],
        [p.ctypes.data for p in pointers],
        launch.params,
        launch.tasks,
        kernel.cluster,
        seed,
    )

    def error(_keep=(data, weights)) -> float:
        away = np.abs(result.astype(np.float32) - want.astype(np.float32)).max()
        return float(away / np.abs(want.astype(np.float32)).max())

    return grid, error


def run_text(change, rng, seed: int, *tile) -> bool:
    """Whether a kernel whose text is changed still computes what it should."""
    grid, error = grid_of(change, rng, seed, *tile)
    grid.run()
    return error() < 2e-2


def test_any_order_gives_the_result(rng):
    assert all(run_text(lambda text: text, rng, seed) for seed in range(4))


@pytest.mark.parametrize(
    ("pattern", "which"),
    [
        (r"mbarrier\.try_wait", 0),  # loading: until a stage was read
        (r"mbarrier\.try_wait", 1),  # storing: until a box is complete
        (r"mbarrier\.try_wait", 2),  # computing: until a stage is there
        (r"mbarrier\.try_wait", 3),  # until a residual is there
        (r"wgmma\.wait_group\.sync\.aligned 0", 0),
        (r"wgmma\.wait_group\.sync\.aligned 1", 0),
        (r"cp\.async\.bulk\.wait_group", 0),
        (r"mbarrier\.arrive\.shared::cluster", 0),
        (r"bar\.arrive", 1),
    ],
)
def test_a_barrier_that_lacks_is_found(pattern, which, rng):
    def fails(seed: int) -> bool:
        try:
            return not run_text(without(pattern, which), rng, seed)
        except AssertionError:
            return True

    assert any(fails(seed) for seed in range(6))


STAYS = (64, 64, 64, 9, 1, 1, 8, 8, 0, 2)
PASSES = (64, 64, 64, 3, 1, 2, 8, 8, 0, 2)


@pytest.mark.parametrize("tile", [STAYS, PASSES], ids=["weights stay", "weights pass"])
def test_any_order_gives_the_result_of_frames(tile, rng):
    assert all(run_text(lambda text: text, rng, seed, tile) for seed in range(3))


@pytest.mark.parametrize(
    ("tile", "pattern", "which"),
    [
        (STAYS, r"mbarrier\.try_wait", 0),  # loading: until a frame was read
        (STAYS, r"mbarrier\.try_wait", 3),  # computing: until a frame is there
        (STAYS, r"mbarrier\.try_wait", 12),  # until the last tap's weights are there
        (STAYS, r"wgmma\.wait_group\.sync\.aligned 0", 0),
        (STAYS, r"bar\.arrive", 1),
        (PASSES, r"mbarrier\.try_wait", 1),  # loading: until a stage was read (so were frames)
        (PASSES, r"mbarrier\.try_wait", 3),  # computing: until a frame is there
        (PASSES, r"mbarrier\.try_wait", 4),  # until a tap's weights are there
        (PASSES, r"wgmma\.wait_group\.sync\.aligned 1", 1),
        (PASSES, r"mbarrier\.arrive\.shared::cluster", 3),
    ],
)
def test_a_barrier_of_frames_that_lacks_is_found(tile, pattern, which, rng):
    def fails(seed: int) -> bool:
        try:
            return not run_text(without(pattern, which), rng, seed, tile)
        except AssertionError:
            return True

    assert any(fails(seed) for seed in range(6))


@pytest.mark.parametrize("lines", [1, 700])
def test_what_a_later_kernel_reads_is_asked_for(lines, rng):
    grid, error = grid_of(lambda text: text, rng, 0)
    grid.params |= {"ahead": 1 << 40, "lines": lines}
    grid.run()
    assert sorted(grid.asked) == [(1 << 40) + 128 * i for i in range(lines)]
    assert error() < 2e-2


# ---- what is offered -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda rng: product(rng, 16384, 768, 3072, Gelu()),
        lambda rng: product(rng, 16384, 768, 768, residual=True),
        lambda rng: conv_task(rng, (128, 28, 28, 128), 128, (3, 3), padding=SAME),
        lambda rng: conv_of_levels(rng, (128, 14, 14, 256), 1024, residual=True),
        lambda rng: conv_of_levels(rng, (64, 56, 56, 64), 64, (3, 3), padding=SAME),
        lambda rng: conv_task(rng, (64, 56, 56, 64), 64, (3, 3), padding=SAME, residual=True),
    ],
    ids=["gelu", "residual", "3x3", "levels", "levels 3x3", "3x3 of 64"],
)
def test_many_tiles_are_offered(make, rng, tmp_path):
    task, binding = make(rng), Binding({})
    tactics = list(SpecializedFamily().tactics(task, binding))
    assert len({(t.rows, t.columns) for t in tactics}) >= 3
    for made in tactics:
        (launch,) = made.launches(binding)
        assert launch.tasks <= H200.multiprocessors and launch.tasks % made.cluster == 0
    (code,) = compiled(tactics[0], binding)
    assert code.shared <= H200.shared and code.tensor_cores and code.warps == 12
    assert len(code.maps) == 3 + (launch.kernel.residual is not None)
    assert type(code).from_bytes(code.to_bytes()) == code
    for made in tactics:  # products must not wait for one another, nor registers be stored away
        source = tmp_path / "kernel.ptx"
        (launch,) = made.launches(binding)
        source.write_text(launch.kernel.text())
        command = [triton().knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", str(source)]
        done = subprocess.run(
            [*command, "-o", str(tmp_path / "kernel.cubin")], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "C75" not in done.stderr
        assert made.rows * made.columns > 128 * 128 or " 0 bytes spill stores" in done.stderr


@pytest.mark.parametrize("make", [conv_task, conv_of_levels])
def test_frames_are_offered_beside_the_others(make, rng):
    task = make(rng, (128, 56, 56, 64), 64, (3, 3), padding=SAME)
    tactics = list(SpecializedFamily().tactics(task, Binding({})))
    framed = [t for t in tactics if t.frames]
    assert len(framed) == 3 and 4 <= len(tactics) - len(framed) <= LIMIT
    for made in framed:
        (launch,) = made.launches(Binding({}))
        assert launch.kernel.keeps_weights
        assert FAMILY.restore(task, made.parameters).parameters == made.parameters
    for shape, stride, window in (
        ((128, 56, 56, 64), 2, (3, 3)),
        ((512, 5, 5, 64), 1, (3, 3)),  # more beside the images than in them
        ((128, 56, 56, 64), 1, (5, 5)),
    ):
        task = make(rng, shape, 64, window, padding=SAME, stride=stride)
        assert not any(t.frames for t in SpecializedFamily().tactics(task, Binding({})))


def test_older_plans_have_no_frames(rng):
    task = conv_task(rng, (4, 16, 16, 64), 64, (3, 3), padding=SAME)
    made = tactic(task, 64, 64, 64, 3, 2, 1, 8, 8)
    old = {k: v for k, v in made.parameters.items() if k != "frames"}
    assert FAMILY.restore(task, old).parameters == made.parameters
    good = tactic(task, 64, 64, 64, 9, 2, 1, 8, 8, 0, 2).parameters
    assert FAMILY.restore(task, good).parameters == good
    for change in (
        dict(frames=1),
        dict(frames=0),  # as many stages only where they stay
        dict(wide=4, high=16),
        dict(high=4),
        dict(stages=37),
        dict(channels=64),
    ):
        with pytest.raises(PlanError):
            FAMILY.restore(task, good | change)
    assert not tactic(task, 128, 64, 64, 9, 4, 1, 8, 8, 0, 4).accepts(Binding({}))  # no room
    strided = conv_task(rng, (4, 16, 16, 64), 64, (3, 3), padding=SAME, stride=2)
    assert not tactic(strided, 64, 64, 64, 9, 2, 1, 8, 8, 0, 2).accepts(Binding({}))


def test_what_is_declined(rng):
    family, binding = SpecializedFamily(), Binding({})
    for task in (
        product(rng, 200, 768, 768),  # few tiles
        matmul_task(rng, (16384, 768), (768, 768)),  # no constant
        matmul_task(rng, (16384, 768), (768, 768), constant=True, dtype=F32),
        matmul_task(rng, (16384, 768), (768, 760), constant=True),  # no whole tiles
        matmul_task(rng, (16384, 20), (20, 768), constant=True),  # rows of 40 bytes
        product(rng, 16384, 64, 768, ew.Erf()),
        conv_task(rng, (64, 28, 28, 64), 64, (3, 3), padding=SAME, prologue="sum"),
        conv_of_levels(rng, (64, 28, 28, 64), 64, zero=3),
    ):
        assert not list(family.tactics(task, binding))
    task = product(rng, 16384, 768, 768)
    old = SpecializedFamily(replace(H200, capability=(8, 0)))
    assert list(family.tactics(task, binding)) and not list(old.tactics(task, binding))


@pytest.mark.parametrize(
    "change",
    [
        dict(rows=96),
        dict(columns=32),
        dict(depth=16),
        dict(depth=128),
        dict(stages=1),
        dict(cluster=4),
        dict(high=4),
        dict(channels=4),
        dict(channels=3),
        dict(high=8, wide=16),
        dict(rows=256, columns=256),
    ],
    ids=str,
)
def test_impossible_parameters(change, rng):
    task = product(rng, 16384, 768, 768)
    good = tactic(task, 64, 64, 64, 3, 2, 1).parameters
    assert FAMILY.restore(task, good).parameters == good
    with pytest.raises(PlanError):
        FAMILY.restore(task, dict(good) | change)
