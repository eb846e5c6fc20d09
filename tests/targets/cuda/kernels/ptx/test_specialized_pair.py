"""Two 1x1 convolutions by specialised warps: without a GPU in an interpreter that delays copies and
products; sizes, dtypes, layouts, weights that stay or not, what is kept; what is offered.
"""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import check_interpreted
from helpers.pairs import PairNet, PointwiseNet, SummedNet, pair_task
from helpers.ptx_text import without
from helpers.tactics import random_array, row_padded
from planish.errors import PlanError
from planish.fusion.task import Task
from planish.graph import DType
from planish.targets.base import Binding
from planish.targets.cuda.codegen.compile import triton
from planish.targets.cuda.kernels.ptx.specialized_pair.kernel import SpecializedPairKernel
from planish.targets.cuda.kernels.ptx.specialized_pair.tactics import (
    FAMILIES,
    LIMIT,
    SpecializedPair,
)
from planish.targets.cuda.machine import H200
from planish.targets.cuda.ptx_interpreter import Deadlock
from planish.targets.cuda.run import is_on_gpu, run_tactic

FAMILY, SUMMED = FAMILIES
FEW = replace(H200, multiprocessors=2)
"""A machine on which a block goes through several tiles of small tasks."""
TOLERANCES = {DType.FLOAT16: 1e-2, DType.BFLOAT16: 1e-1}


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(9)


def check(task: Task, rng, *choices: tuple[int, ...], layouts=None) -> None:
    tactics = [SpecializedPair(task, *choice, FEW) for choice in choices]
    tolerance = TOLERANCES[task.output.dtype]
    family = SUMMED if task.sum else FAMILY
    check_interpreted(
        family, task, rng, tactics=tactics, layouts=layouts, tolerance=tolerance, limit=None
    )


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kept", [False, True], ids=["hidden", "kept"])
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "residual"])
def test_what_is_kept_and_added(dtype, kept, residual):
    rng = np.random.default_rng()
    rows = int(rng.integers(300, 700))
    net = PointwiseNet((1, 1, rows, 64), 128, 64, dtype=dtype, kept=kept, residual=residual)
    check(pair_task(net), rng, (64, 2, 3, 1))


@pytest.mark.parametrize(
    ("shape", "middle", "columns", "choice"),
    [
        ((2, 11, 13, 64), 256, 128, (64, 4, 6, 2)),
        ((2, 11, 13, 64), 256, 64, (64, 2, 4, 1)),
        ((1, 1, 900, 128), 256, 128, (128, 2, 4, 1)),
        ((3, 7, 7, 24), 64, 64, (128, 1, 3, 2)),
        ((5, 1, 1, 136), 192, 256, (64, 2, 3, 1)),
    ],
    ids=str,
)
def test_sizes(shape, middle, columns, choice, rng):
    check(pair_task(PointwiseNet(shape, middle, columns)), rng, choice)


def test_rows_with_gaps(rng):
    task = pair_task(PointwiseNet((2, 5, 30, 72), 64, 64))

    def layout(value):
        return row_padded(value, 8 if value.data is None else 0)

    check(task, rng, (64, 1, 3, 1), layouts=layout)


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("kept", [False, True], ids=["hidden", "kept"])
def test_sums(dtype, kept):
    rng = np.random.default_rng()
    rows = int(rng.integers(300, 600))
    net = SummedNet((1, 1, rows, 64), 64, 128, 64, dtype=dtype, kept=kept, swapped=kept)
    check(pair_task(net), rng, (64, 2, 3, 1))


def test_sums_of_other_sizes(rng):
    check(pair_task(SummedNet((2, 7, 20, 24), 136, 192, 128)), rng, (64, 2, 3, 1))
    check(pair_task(SummedNet((2, 9, 17, 64), 64, 256, 64)), rng, (128, 4, 3, 1))


@pytest.mark.parametrize(
    ("pattern", "which"),
    [
        ("try_wait", 0),
        ("try_wait", 1),
        ("try_wait", -1),
        ("mbarrier.arrive", 0),
        ("mbarrier.arrive", -1),
        ("bulk.wait_group", 0),
        ("wait_group.sync", 0),
        ("wait_group.sync", -1),
    ],
)
def test_what_lacks_is_found(pattern, which, rng, monkeypatch):
    if is_on_gpu():
        pytest.skip("a GPU would wait for ever")
    task = pair_task(PointwiseNet((1, 1, 700, 64), 256, 64))
    arrays = [
        v.data if v.data is not None else random_array(rng, v.type.bind({}), v.dtype)
        for v in task.inputs
    ]
    wanted, change, text = (
        task.evaluate(arrays),
        without(pattern, which),
        SpecializedPairKernel.text,
    )
    monkeypatch.setattr(SpecializedPairKernel, "text", lambda self: change(text(self)))
    try:
        with np.errstate(all="ignore"):
            found = run_tactic(SpecializedPair(task, 64, 2, 3, 1, FEW), Binding({}), arrays)
    except (AssertionError, Deadlock):
        return
    pairs = [
        (f.astype(np.float32), w.astype(np.float32)) for f, w in zip(found, wanted, strict=True)
    ]
    assert not all(np.allclose(f, w, atol=1e-2, rtol=1e-2) for f, w in pairs)


def assert_assembled(kernel: SpecializedPairKernel, folder: Path) -> None:
    """The assembler takes it: products do not wait for one another, and no registers are stored
    away.
    """
    source = folder / "kernel.ptx"
    source.write_text(kernel.text())
    tool = triton().knobs.nvidia.ptxas.path
    command = [tool, "-v", "--gpu-name=sm_90a", str(source), "-o", str(folder / "code")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "C75" not in done.stderr
    assert " 0 bytes spill stores" in done.stderr


NETWORKS = [
    ((128, 56, 56, 64), 256, 128, True),
    ((128, 56, 56, 64), 256, 64, True),
    ((128, 28, 28, 128), 512, 128, True),
    ((128, 28, 28, 128), 512, 256, True),
    ((64, 56, 56, 24), 192, 64, False),
]


@pytest.mark.parametrize(("shape", "middle", "columns", "kept"), NETWORKS, ids=str)
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
def test_tactics_of_a_network(shape, middle, columns, kept, dtype, tmp_path: Path):
    net = PointwiseNet(shape, middle, columns, kept=kept, residual=kept, dtype=dtype)
    task, binding = pair_task(net), Binding({})
    tactics = list(FAMILY.tactics(task, binding))
    assert 2 <= len(tactics) == len(set(tactics)) <= LIMIT
    for made in tactics[:: 1 if dtype is DType.FLOAT16 else len(tactics)]:
        assert FAMILY.restore(task, made.parameters) == made
        (launch,) = made.launches(binding)
        assert launch.tasks <= H200.multiprocessors and launch.kernel.shared <= H200.shared
        assert_assembled(launch.kernel, tmp_path)


def test_weights_stay_where_they_fit():
    for shape, middle, stay in (((128, 56, 56, 64), 256, True), ((128, 28, 28, 128), 512, False)):
        task = pair_task(PointwiseNet(shape, middle, 128))
        first, *_ = FAMILY.tactics(task, Binding({}))
        (launch,) = first.launches(Binding({}))
        assert launch.kernel.keeps_weights == stay


def test_sums_of_a_network(tmp_path: Path):
    task, binding = pair_task(SummedNet((128, 56, 56, 64), 64, 256, 64)), Binding({})
    tactics = list(SUMMED.tactics(task, binding))
    assert 2 <= len(tactics) <= LIMIT
    for made in tactics:
        assert SUMMED.restore(task, made.parameters) == made
        (launch,) = made.launches(binding)
        assert_assembled(launch.kernel, tmp_path)
    strided = pair_task(SummedNet((32, 28, 28, 64), 64, 256, 64, stride=2))
    assert not list(SUMMED.tactics(strided, binding))


def test_what_it_declines():
    for task in (
        pair_task(PointwiseNet((8, 28, 28, 64), 64, 64, dtype=DType.FLOAT32)),
        pair_task(PointwiseNet((1, 14, 14, 64), 64, 64)),  # few rows
        pair_task(PointwiseNet((64, 28, 28, 64), 64, 512)),
        pair_task(PointwiseNet((64, 28, 28, 64), 72, 64)),
        pair_task(PointwiseNet((64, 28, 28, 64), 64, 40)),
        pair_task(PointwiseNet((64, 28, 28, 20), 64, 64)),  # rows of 40 bytes
        pair_task(PairNet((64, 28, 28, 64), 64)),
    ):
        assert not list(FAMILY.tactics(task, Binding({})))
    task = pair_task(PointwiseNet((64, 28, 28, 64), 64, 64))
    old = FAMILY.on(replace(H200, capability=(8, 0)))
    assert list(FAMILY.tactics(task, Binding({}))) and not list(old.tactics(task, Binding({})))


@pytest.mark.parametrize(
    "change",
    [{"rows": 32}, {"stages": 0}, {"stages": 5}, {"stages": 1}, {"ring": 2}, {"ahead": 3}],
    ids=str,
)
def test_impossible_parameters(change):
    task = pair_task(PointwiseNet((64, 28, 28, 64), 256, 64))
    good = SpecializedPair(task, 64, 4, 3, 1).parameters
    assert FAMILY.restore(task, good).parameters == good
    with pytest.raises(PlanError, match="specialized_pair"):
        FAMILY.restore(task, {**good, **change})
    wide = pair_task(PointwiseNet((64, 28, 28, 64), 256, 256))
    with pytest.raises(PlanError, match="no tile is"):
        FAMILY.restore(wide, {**good, "rows": 128})
    assert not SpecializedPair(task, 64, 4, 12, 2).accepts(Binding({}))  # no room
