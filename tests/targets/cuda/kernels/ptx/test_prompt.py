"""The matrix kernel that is ready before its turn against the references: boxes of pixels, of rows;
borders, depths that are no steps, clusters that share a depth; what is offered; what fits.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import check_interpreted
from helpers.levels import conv_of_levels, product_of_levels
from helpers.products import BF16, F32, SAME, TOLERANCES, arrays, conv_task, matmul_task
from helpers.ptx_text import without
from planish.errors import PlanError
from planish.targets.base import Binding
from planish.targets.cuda import ptx_interpreter
from planish.targets.cuda.codegen.compile import DeviceCode
from planish.targets.cuda.kernels.ptx.prompt.tactics import LIMIT, PromptFamily, PromptTactic
from planish.targets.cuda.machine import H200

FAMILY = PromptFamily()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(23)


def check(task, rng, tactics) -> None:
    data = arrays(task, rng)
    scale = max(float(np.abs(e.astype(np.float32)).max()) for e in task.evaluate(data))
    tolerance = TOLERANCES[task.anchor.output.dtype] * max(scale, 1)
    check_interpreted(
        FAMILY, task, rng, tactics=tactics, arrays=data, tolerance=tolerance, limit=None
    )


CONVOLUTIONS = [
    dict(shape=(3, 9, 13, 24), filters=64, window=(3, 3), padding=SAME, residual=True),
    dict(shape=(5, 7, 7, 72), filters=64, window=(3, 3), padding=SAME, dtype=BF16),
    dict(shape=(2, 8, 12, 64), filters=64, window=(3, 3), padding=SAME, stride=2),
    dict(shape=(1, 7, 9, 16), filters=128, window=(3, 2), padding=((3, 0), (0, 2))),
]
BOXES = [
    (64, 32, 64, 2, 1, 0, 4, 8),
    (64, 64, 64, 3, 4, 0, 1, 8),
    (128, 64, 64, 2, 2, 0, 8, 8),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions(case, rng):
    task = conv_task(rng, **case)
    check(task, rng, [PromptTactic(task, *box) for box in BOXES])


@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
@pytest.mark.parametrize("residual", [False, True])
def test_clusters_share_a_depth(cluster, residual, rng):
    more = [(128,), (131, 128)] if residual else [(128,)]
    task = matmul_task(rng, (131, 600), (600, 128), constant=True, more=more)
    check(task, rng, [PromptTactic(task, 128, 128, 64, 3, cluster)])


FRAMED = [
    dict(shape=(3, 9, 13, 24), filters=64, window=(3, 3), padding=SAME, residual=True),
    dict(shape=(2, 8, 17, 200), filters=64, window=(3, 3), padding=SAME, dtype=BF16),
    dict(shape=(1, 7, 9, 136), filters=64, window=(3, 2), padding=((3, 0), (0, 2))),
    dict(shape=(1, 12, 11, 72), filters=64, window=(3, 3), padding=((2, 2), (1, 2)), dilation=2),
    dict(shape=(2, 8, 9, 200), filters=64, window=(1, 3), padding=((0, 0), (1, 1))),
    dict(shape=(1, 9, 8, 264), filters=64, window=(2, 1), padding=((1, 0), (0, 0))),
]
SQUARES = [
    (64, 64, 64, 4, 1, 1, 8, 8),
    (128, 32, 64, 3, 1, 2, 8, 8),
    (192, 64, 64, 6, 1, 1, 8, 8),
    (128, 64, 64, 3, 2, 1, 8, 8),
]


@pytest.mark.parametrize("case", FRAMED, ids=str)
def test_pixels_are_loaded_once_for_all_taps(case, rng):
    task = conv_task(rng, **case)
    tactics = [PromptTactic(task, *square) for square in SQUARES]
    check(task, rng, [t for t in tactics if t.cluster == 1 or case["shape"][-1] > 64])


def test_images_of_which_tiles_have_several(rng):
    task = conv_task(rng, (5, 5, 6, 32), 32, (3, 3), padding=SAME, residual=True)
    check(task, rng, [PromptTactic(task, 64, 32, 32, 4, 2, 0, 2, 8)])


def levels_check(task, rng, tactics) -> None:
    check_interpreted(FAMILY, task, rng, tactics=tactics, limit=None)


def test_levels(rng):
    task = conv_of_levels(rng, (5, 7, 11, 48), 128, (3, 3), padding=SAME, residual=True)
    boxes = [
        (64, 64, 64, 3, 1, 0, 4, 8),
        (64, 128, 64, 4, 4, 0, 2, 8),
        (128, 64, 128, 2, 2, 0, 8, 16),
        (128, 64, 64, 4, 1, 2, 8, 8),
    ]
    levels_check(task, rng, [PromptTactic(task, *box) for box in boxes])
    task = product_of_levels(rng, (70, 304), (304, 128), residual=True)
    levels_check(task, rng, [PromptTactic(task, 64, 128, 128, 2, 2)])


# ---- that the interpreter would notice -----------------------------------------------------------


def grid_of(change, rng, seed: int, tile=(128, 64, 64, 3, 2, 1, 8, 8)):
    """A launch of a kernel whose text is changed, and the error it makes, once it has run."""
    task = conv_task(rng, (2, 9, 13, 248), 64, (3, 3), padding=SAME, residual=True)
    data = arrays(task, rng)
    (want,) = task.evaluate(data)
    tactic = PromptTactic(task, *tile)
    (launch,), (weights,) = tactic.launches(Binding({})), tactic.constants()
    kernel, memory = launch.kernel, dict(zip(task.inputs, data, strict=True))
    memory[task.outputs[0]] = result = np.zeros_like(want)
    pointers = [memory.get(p, weights) for p in launch.pointers]
    grid = ptx_interpreter.Grid(
        change(kernel.text()),
        [p.map for p in kernel.pointers],
        [p.dtype.numpy for p in kernel.pointers],
        [p.ctypes.data for p in pointers],
        launch.params,
        launch.tasks,
        kernel.cluster,
        seed,
    )
    scale = float(np.abs(want.astype(np.float32)).max())

    def error() -> float:
        assert weights is not None  # and alive until it has run
        return float(np.abs(result.astype(np.float32) - want.astype(np.float32)).max()) / scale

    return grid, error, memory


def run_text(change, rng, seed: int) -> bool:
    """Whether a kernel whose text is changed still computes what it should."""
    grid, error, _ = grid_of(change, rng, seed)
    grid.run()
    return error() < 2e-2


def test_any_order_gives_the_result(rng):
    assert all(run_text(lambda text: text, rng, seed) for seed in range(3))


@pytest.mark.parametrize(
    ("pattern", "which"),
    [
        (r"mbarrier\.try_wait", 0),  # loading: until a frame was read
        (r"mbarrier\.try_wait", 1),  # loading: until a stage was read
        (r"mbarrier\.try_wait", 2),  # computing: until a frame is there
        (r"mbarrier\.try_wait", 3),  # computing: until a stage is there
        (r"wgmma\.wait_group\.sync\.aligned 0", 0),
        (r"barrier\.cluster\.wait", 0),  # until nobody reads what sums replace
        (r"barrier\.cluster\.wait", 1),  # until all sums are there
    ],
)
def test_a_barrier_that_lacks_is_found(pattern, which, rng):
    def fails(seed: int) -> bool:
        try:
            return not run_text(without(pattern, which), rng, seed)
        except AssertionError:
            return True

    assert any(fails(seed) for seed in range(6))


@pytest.mark.parametrize("lines", [1, 300])
def test_what_a_later_kernel_reads_is_asked_for(lines, rng):
    grid, error, _ = grid_of(lambda text: text, rng, 0)
    grid.params |= {"ahead": 1 << 40, "lines": lines}
    grid.run()
    assert sorted(grid.asked) == [(1 << 40) + 128 * i for i in range(lines)]
    assert error() < 2e-2


# ---- what is offered -----------------------------------------------------------------------------

LAYERS = [
    dict(shape=(8, 56, 56, 64), filters=64, window=(3, 3), padding=SAME),
    dict(shape=(8, 14, 14, 256), filters=256, window=(3, 3), padding=SAME),
    dict(shape=(8, 7, 7, 512), filters=2048, residual=True),
    dict(shape=(8, 14, 14, 512), filters=512, window=(3, 3), padding=SAME, stride=2),
    dict(shape=(1, 14, 14, 512), filters=512, window=(3, 3), padding=SAME),
]


@pytest.mark.parametrize("case", LAYERS, ids=str)
def test_what_is_offered_fits_twice_on_a_multiprocessor(case, rng):
    task = conv_task(rng, **case)
    tactics = list(FAMILY.tactics(task, Binding({})))
    assert 4 <= len(tactics) <= LIMIT
    for tactic in tactics:
        assert FAMILY.restore(task, tactic.parameters) == tactic
        (launch,) = tactic.launches(Binding({}))
        code = DeviceCode.from_bytes(launch.kernel.compile(H200))
        assert 2 * (code.shared + 1024) <= H200.shared_per_multiprocessor
        assert launch.tasks % tactic.cluster == 0 and code.warps == 5 and len(code.maps) == 2
    assert any(t.cluster > 1 for t in tactics) or case["shape"][1] == 56


def test_what_does_not_depend_on_the_kernel_before_comes_first(rng):
    task = conv_task(rng, (8, 14, 14, 256), 256, (3, 3), padding=SAME, residual=True)
    (launch,) = PromptTactic(task, 64, 64, 64, 3, 2, 0, 4, 16).launches(Binding({}))
    early, *late = launch.kernel.text().split("griddepcontrol.wait;")
    assert early.count("cp.async.bulk.tensor.2d") == 3 and "cp.async.bulk.tensor.4d" not in early
    assert "ld.global" not in early and "bar.sync" in early
    assert len(late) == 2  # the thread that loads, and those that compute


def test_other_machines_and_problems_are_declined(rng):
    small = conv_task(rng, (2, 7, 7, 64), 64)
    assert not list(PromptFamily(replace(H200, capability=(8, 0))).tactics(small, Binding({})))
    for task in (
        conv_task(rng, (2, 5, 6, 12), 64, (3, 3), padding=SAME),  # rows of 24 bytes
        conv_task(rng, (2, 5, 6, 16), 24, (3, 3), padding=SAME),  # columns of no tile
        conv_task(rng, (2, 5, 6, 16), 64, (3, 3), padding=SAME, dtype=F32),
        conv_task(rng, (128, 56, 56, 64), 256),  # many tiles
    ):
        assert not list(FAMILY.tactics(task, Binding({})))


WRONG = [
    dict(rows=96),
    dict(cluster=3),
    dict(cluster=8, columns=32, high=4, wide=8),  # pieces for two blocks only
    dict(rows=192, columns=128, frames=1),
    dict(rows=192, cluster=4, high=8, wide=8),  # three pieces of rows of two
    dict(frames=1, high=4, wide=16),
    dict(high=4, wide=0),
    dict(depth=16),
    dict(high=3),
]


@pytest.mark.parametrize("change", WRONG, ids=str)
def test_wrong_parameters_are_refused(change, rng):
    task = conv_task(rng, (2, 8, 8, 64), 64, (3, 3), padding=SAME)
    good = dict(rows=64, columns=64, depth=64, stages=3, cluster=2, frames=0, high=8, wide=8)
    assert FAMILY.restore(task, good).accepts(Binding({}))
    with pytest.raises(PlanError):
        FAMILY.restore(task, good | change)
