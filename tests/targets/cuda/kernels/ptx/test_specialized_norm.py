"""Products with a layer norm as one kernel: against references of higher precision, in an
interpreter that delays copies, products and what blocks tell one another; what is offered.
"""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import check_interpreted
from helpers.normalized import NormalizedNet
from helpers.ptx_text import without
from helpers.tactics import row_padded
from planish.errors import PlanError
from planish.fusion.task import Task
from planish.graph import DType
from planish.ops.float8 import decode
from planish.targets.base import Binding, Zeroed
from planish.targets.cuda.codegen.compile import triton
from planish.targets.cuda.kernels.ptx.specialized_norm.tactics import LIMIT, NormFamily, NormTactic
from planish.targets.cuda.machine import H200
from planish.targets.cuda.ptx_interpreter import Grid
from planish.targets.cuda.run import run_tactic

F16, BF16 = DType.FLOAT16, DType.BFLOAT16
FEW = replace(H200, multiprocessors=16)
FAMILY = NormFamily(FEW)
ULP = {F16: 2.0**-10, BF16: 2.0**-7}
TILES = [
    (64, (64, 64, 64, 2, 2, 64)),
    (256, (64, 128, 64, 3, 3, 32)),
    (384, (192, 128, 64, 2, 1, 64)),
    (1024, (64, 256, 64, 2, 2, 64)),
]
"""Columns; a tile: rows, columns, depth, stages, ring, width."""


def tactic(task: Task, *parameters) -> NormTactic:
    return NormTactic(task, *parameters, machine=FEW)


def odd(rng: np.random.Generator, most: int = 300) -> int:
    return int(rng.integers(1, most // 2)) * 2 + 1


class Exact:
    """What floats should give: nothing is rounded before the end."""

    def __init__(self, net: NormalizedNet, task: Task, data: list[np.ndarray]) -> None:
        x, w, bias, *rest = (a.astype(np.float64) for a in data)
        inner = x @ w + bias
        if len(rest) == 3:
            inner, rest = inner + rest[0], rest[1:]
        self.inner, (self.gain, self.offset) = inner, rest
        self.dtype = net.inner.dtype
        self.result = self.normalized(inner)

    def normalized(self, inner: np.ndarray) -> np.ndarray:
        self.away = inner - self.inner.mean(-1, keepdims=True)
        self.scale = 1 / np.sqrt((self.away**2).mean(-1, keepdims=True) + 1e-5)
        return self.away * self.scale * self.gain + self.offset

    @property
    def bound(self) -> np.ndarray:
        """How far from it a result may be where the inner tensor is rounded, and the result."""
        inner = (np.abs(self.inner) / 2 + np.abs(self.away) / 4) * np.abs(self.scale * self.gain)
        return ULP[self.dtype] * (inner + np.abs(self.result) + 1e-2)


@pytest.mark.parametrize(("columns", "tile"), TILES, ids=str)
@pytest.mark.parametrize(
    "more",
    [{}, {"residual": False, "dtype": BF16}, {"kept": True}],
    ids=["residual", "bf16", "kept"],
)
def test_floats(columns: int, tile, more) -> None:
    rng = np.random.default_rng()
    depth = 8 * int(rng.integers(1, 20))
    net = NormalizedNet(odd(rng, 300 if columns < 1024 else 150), depth, columns, **more)
    task, binding = net.task, Binding({})
    data = net.arrays(task)
    made = tactic(task, *tile)
    assert made.accepts(binding) and FAMILY.restore(task, made.parameters) == made
    found = run_tactic(made, binding, data)
    exact = Exact(net, task, data)
    assert len(found) == 1 + net.is_kept and found[0].dtype == task.output.dtype.numpy
    assert np.all(np.abs(found[0].astype(np.float64) - exact.result) <= exact.bound)
    for have in found[1:]:
        error = np.abs(have.astype(np.float64) - exact.inner)
        assert np.all(error <= ULP[exact.dtype] * (np.abs(exact.inner) + 1e-2))


@pytest.mark.parametrize("mean", [30.0, 300.0])
def test_a_mean_that_is_large_beside_the_deviation(mean: float) -> None:
    """Sums of squares would lose all digits; halves lose theirs where the tensor between would."""
    net = NormalizedNet(101, 64, 256, residual=False, shift=mean)
    task = net.task
    data = net.arrays(task)
    exact = Exact(net, task, data)
    want = exact.normalized(exact.inner.astype(np.float16).astype(np.float64))  # but the mean
    (have,) = run_tactic(tactic(task, *TILES[1][1]), Binding({}), data)
    wrong = np.abs(have.astype(np.float64) - want) > 2 * ULP[F16] * (np.abs(want) + 1)
    assert np.mean(wrong) < 0.02  # where float32 and float64 are rounded otherwise


def test_rows_of_one_number() -> None:
    """They have no deviation: what is left is the offset."""
    net = NormalizedNet(70, 64, 256, residual=False)
    task = net.task
    data = net.arrays(task)
    data[0][3:5], data[2][:] = 0, 2.5
    exact = Exact(net, task, data)
    (have,) = run_tactic(tactic(task, *TILES[1][1]), Binding({}), data)
    wanted = np.broadcast_to(exact.offset, (2, 256))
    assert np.all(np.abs(have[3:5] - wanted) <= ULP[F16] * (np.abs(wanted) + 1e-3))


BYTES = [(64, 128, 128, 2, 3, 128), (128, 64, 64, 3, 2, 64)]


@pytest.mark.parametrize("tile", BYTES, ids=str)
@pytest.mark.parametrize("residual", [True, False], ids=["residual", "plain"])
def test_levels(tile, residual: bool) -> None:
    rng = np.random.default_rng()
    net = NormalizedNet(odd(rng), 16 * odd(rng, 18), 256, factors="levels", residual=residual)
    task = net.task
    data = net.arrays(task)
    (want,) = task.evaluate(data)
    (have,) = run_tactic(tactic(task, *tile), Binding({}), data)
    assert np.abs(have.astype(int) - want).max() <= 1
    assert np.mean(have != want) < 0.02  # which halves in between would round otherwise


@pytest.mark.parametrize("tile", BYTES, ids=str)
def test_codes(tile) -> None:
    rng = np.random.default_rng()
    net = NormalizedNet(odd(rng), 16 * odd(rng, 18), 256, factors="codes")
    task = net.task
    data = net.arrays(task)
    (want,) = task.evaluate(data)
    (have,) = run_tactic(tactic(task, *tile), Binding({}), data)
    assert np.mean(have != want) < 0.05
    have, want = decode(have), decode(want)
    assert np.all(np.abs(have - want) <= np.maximum(np.abs(want) / 8, 2.0**-9) + 0.5)


def test_axes_and_gaps() -> None:
    """Rows of several axes; rows of tensors need not lie side by side."""
    rng = np.random.default_rng()
    net = NormalizedNet((3, odd(rng, 90)), 72, 256, kept=True)

    def layout(value):
        return row_padded(value, 8 if value.data is None and len(value.shape) == 3 else 0)

    task = net.task
    tactics, data = [tactic(task, *TILES[1][1])], net.arrays(task)
    check_interpreted(
        FAMILY, task, rng, tactics=tactics, layouts=layout, arrays=data, tolerance=2e-2
    )


def test_results_are_the_same_in_every_run() -> None:
    net = NormalizedNet(201, 136, 256)
    task = net.task
    data = net.arrays(task)
    made = tactic(task, *TILES[1][1])
    first, *others = (run_tactic(made, Binding({}), data)[0] for _ in range(3))
    assert all(np.array_equal(first.view(np.uint16), o.view(np.uint16)) for o in others)


# ---- that the interpreter would notice -----------------------------------------------------------


def runs(change, seed: int, team: int) -> bool:
    """Whether a kernel whose text is changed still computes what it should: two teams of blocks,
    with several tiles for each group.
    """
    net = NormalizedNet(64 * 9 - 5, 136, 64 * team, seed=seed)
    task = net.task
    data = net.arrays(task)
    exact = Exact(net, task, data)
    made = tactic(task, 64, 64, 64, 2, 1, 32)
    (launch,) = made.launches(Binding({}))
    kernel, (weights,) = launch.kernel, made.constants()
    result = np.zeros(exact.result.shape, np.float16)
    states = np.zeros(made.zeroed(Binding({})) // 4, np.int32)
    memory = dict(zip(task.inputs, data, strict=True)) | {task.output: result, Zeroed(): states}
    pointers = [memory.get(p, weights) if p in memory else weights for p in launch.pointers]
    Grid(
        change(kernel.text()),
        [p.map for p in kernel.pointers],
        [p.dtype.numpy for p in kernel.pointers],
        [p.ctypes.data for p in pointers],
        launch.params,
        2 * team,
        1,
        seed,
    ).run()
    return not states.any() and bool(np.all(np.abs(result - exact.result) <= exact.bound))


def found_out(change) -> bool:
    """Whether a change makes results wrong, or has threads wait for ever."""

    def fails(seed: int) -> bool:
        try:
            return not runs(change, seed, 2)
        except AssertionError:
            return True

    return any(fails(seed) for seed in range(8))


@pytest.mark.parametrize(("team", "orders"), [(1, 2), (2, 2), (3, 1)])
def test_any_order_gives_the_result(team: int, orders: int) -> None:
    assert all(runs(lambda text: text, seed, team) for seed in range(orders))


WAITS = r"mbarrier\.try_wait"


@pytest.mark.parametrize(
    ("pattern", "which"),
    [
        (WAITS, 0),  # loading: until a stage was read
        (WAITS, 1),  # boxes: until the first was read
        (WAITS, 3),  # until the first is complete
        (WAITS, 5),  # computing: until a stage is there
        (WAITS, 7),  # until the second residual is there
        (WAITS, 9),  # until the first box was stored
        (r"cp\.async\.bulk\.wait_group", 0),
        (r"st\.global\.v4", 0),  # zeros for the next launch
        (r"st\.relaxed", 0),
    ],
)
def test_what_lacks_is_found(pattern: str, which: int) -> None:
    assert found_out(without(pattern, which))


def test_numbers_that_are_not_awaited_are_found() -> None:
    again = r"(ld\.relaxed[^\n]*\n(?:    (?:min|setp)[^\n]*\n)+)    @%p\d+ bra[^\n]*\n"
    assert found_out(lambda text: re.sub(again, r"\1", text))
    every = r"(ld\.relaxed[^\n]*\n)    min[^\n]*\n    min[^\n]*\n    min(\S* %r\d+), %r\d+"
    assert found_out(lambda text: re.sub(every, r"\1    min\2, -1", text))  # but the last


# ---- what is offered -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more",
    [{}, {"kept": True}, {"factors": "levels"}, {"factors": "codes"}, {"dtype": BF16}],
    ids=str,
)
def test_what_is_offered_for_transformers(more, tmp_path) -> None:
    task = NormalizedNet((128, 128), 768, 768, **more).task
    binding = Binding({})
    tactics = list(NormFamily().tactics(task, binding))
    assert len(tactics) <= LIMIT and len({(t.rows, t.columns) for t in tactics}) >= 2
    first = tactics[0]
    (launch,) = first.launches(binding)
    assert launch.tasks % launch.kernel.column_tiles == 0
    assert 0.9 * H200.multiprocessors <= launch.tasks <= H200.multiprocessors
    source = tmp_path / "kernel.ptx"
    source.write_text(launch.kernel.text())
    command = [triton().knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", str(source)]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "kernel.cubin")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "C75" not in done.stderr  # products wait for one another


@pytest.mark.parametrize("columns", [256, 384, 512, 768, 1024])
def test_columns(columns: int) -> None:
    task = NormalizedNet(8192, 128, columns).task
    tactics = list(NormFamily().tactics(task, Binding({})))
    assert tactics
    assert all(columns % t.columns == 0 and columns // t.columns <= 8 for t in tactics)


def test_what_is_declined() -> None:
    family, binding = NormFamily(), Binding({})
    for net in (
        NormalizedNet(4096, 64, 4096),  # teams of more than eight
        NormalizedNet(1 << 17, 64, 768),  # much to give
        NormalizedNet(4096, 64, 760),  # no whole tiles
        NormalizedNet(4096, 20, 768),  # rows of 40 bytes
        NormalizedNet(4096, 64, 768, dtype=DType.FLOAT32),
        NormalizedNet(4096, 64, 768, factors="levels", kept=True),  # elements of two sizes
    ):
        assert not list(family.tactics(net.task, binding))
    task = NormalizedNet(4096, 64, 768).task
    old = NormFamily(replace(H200, capability=(8, 0)))
    assert list(family.tactics(task, binding)) and not list(old.tactics(task, binding))


@pytest.mark.parametrize(
    "change",
    [dict(rows=96), dict(columns=32), dict(stages=1), dict(width=16), dict(rows=192, columns=192)],
    ids=str,
)
def test_impossible_parameters(change) -> None:
    task = NormalizedNet(4096, 64, 768).task
    good = tactic(task, 64, 192, 64, 3, 2, 64).parameters
    assert FAMILY.restore(task, good).parameters == good
    with pytest.raises(PlanError):
        FAMILY.restore(task, dict(good) | change)


def test_what_does_not_fit() -> None:
    task, binding = NormalizedNet(4096, 64, 768).task, Binding({})
    assert tactic(task, 64, 192, 64, 3, 2, 64).accepts(binding)
    for tile in (
        (64, 64, 64, 3, 2, 64),  # teams of twelve
        (64, 192, 64, 3, 2, 128),  # boxes of 256 bytes
        (128, 192, 64, 5, 2, 64),  # shared memory
    ):
        assert not tactic(task, *tile).accepts(binding)
