"""Kernels in tiles (AMX) as machine code, run by Bochs, against the references.

Where `helpers.tiles` shows that kernels compute what they should, this shows that instructions are
what a CPU takes them for, and that it accepts how tiles are configured. Skipped where there is no
Bochs: see `helpers.bochs`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from helpers import bfloat_tasks, byte_tasks
from helpers.bochs import Bochs, missing
from helpers.byte_tasks import I8, U8
from helpers.tiles import PLAIN
from planish.fusion.task import Task
from planish.targets.base import Binding
from planish.targets.cpu import run
from planish.targets.cpu.kernels.tile_matrix import TileMatrixFamily, groups_of_step

FAMILY = TileMatrixFamily().on(PLAIN)

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "-")


@pytest.fixture(autouse=True)
def _on_bochs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setitem(run._processors, "x86_64", Bochs())
    run.forget_kernels()
    yield
    run.forget_kernels()


def results(task: Task, arrays: list[np.ndarray]) -> Iterator[np.ndarray]:
    """What one tactic of every block of tiles computes."""
    tactics = list(FAMILY.tactics(task, Binding({})))
    assert tactics
    for tactic in {(t.pixels, t.vectors, t.packed): t for t in tactics}.values():
        (have,) = run.run_tactic(tactic, Binding({}), arrays, PLAIN)
        run.forget_kernels()
        yield have


def check_bfloat(task: Task, rng: np.random.Generator) -> None:
    arrays = [
        v.data if v.data is not None else bfloat_tasks.draw(rng, *v.shape) for v in task.inputs
    ]
    (expected,) = task.evaluate(arrays)
    expected = expected.astype(np.float64)
    scale = float(np.abs(expected).max()) * 2**-8
    atol = scale if len(task.nodes) > 1 else scale / 64
    for have in results(task, arrays):
        np.testing.assert_allclose(have.astype(np.float64), expected, rtol=2**-7, atol=atol)


@pytest.fixture
def _small_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bochs 3.0 multiplies bytes without their signs, so none has the bit of the sign."""

    def draw(rng: np.random.Generator, dtype, *shape: int) -> np.ndarray:
        return rng.integers(0, 128, shape).astype(dtype.numpy)

    monkeypatch.setattr(byte_tasks, "bytes_of", draw)


def check_bytes(task: Task, rng: np.random.Generator) -> None:
    arrays = byte_tasks.arrays_of(task, rng)
    (expected,) = task.evaluate(arrays)
    for have in results(task, arrays):
        np.testing.assert_array_equal(have, expected)


@pytest.mark.parametrize("seed", range(4))
def test_products_of_bfloat16(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = (int(n) for n in rng.integers(16, 70, 2))
    depth = 2 * int(rng.choice([n for n in range(8, 60) if groups_of_step(n) >= 4]))
    task = bfloat_tasks.matmul_task(rng, (rows, depth), (depth, columns))
    check_bfloat(task, rng)


@pytest.mark.parametrize(
    "case",
    [
        dict(shape=(2, 5, 7, 24), filters=17, window=1, residual=True),
        dict(shape=(1, 5, 18, 16), filters=40, window=3, pad=1, stride=2, residual=True),
        dict(shape=(2, 3, 16, 32), filters=24, window=3, pad=1, groups=2),
        dict(shape=(1, 5, 9, 20), filters=32, window=3, prologue=True, residual=True),
    ],
    ids=str,
)
def test_convolutions_of_bfloat16(case) -> None:
    rng = np.random.default_rng(5)
    check_bfloat(bfloat_tasks.conv_task(rng, **case), rng)


@pytest.mark.usefixtures("_small_bytes")
@pytest.mark.parametrize("source", [U8, I8], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_products_of_bytes(seed: int, source) -> None:
    rng = np.random.default_rng(seed)
    rows, columns = (int(n) for n in rng.integers(16, 70, 2))
    depth = 4 * int(rng.choice([n for n in range(4, 40) if groups_of_step(n) >= 4]))
    check_bytes(byte_tasks.matmul_task(rng, (rows, depth), (depth, columns), source=source), rng)


@pytest.mark.usefixtures("_small_bytes")
@pytest.mark.parametrize(
    "case",
    [
        dict(shape=(2, 5, 22, 8), filters=24, window=3, stride=2, pad=1, residual=True),
        dict(shape=(2, 3, 16, 32), filters=24, window=3, pad=1, groups=2, source=I8),
        dict(shape=(1, 9, 30, 3), filters=8, window=7, stride=2, pad=3),
    ],
    ids=str,
)
def test_convolutions_of_bytes(case) -> None:
    rng = np.random.default_rng(6)
    check_bytes(byte_tasks.conv_task(rng, **case), rng)


def test_a_kernel_that_faults_is_told() -> None:
    with pytest.raises(AssertionError, match="did not return"):
        Bochs().call(8, [], [], 0, 1, 0)
