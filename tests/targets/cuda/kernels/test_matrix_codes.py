"""The matrix kernel for codes of FP8: what products of what they stand for give."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, compiled
from helpers.levels import product_of_codes
from helpers.tactics import row_padded, strided
from planish.fusion.task import Task
from planish.graph import DType
from planish.ops.float8 import decode, encode
from planish.targets.base import Binding
from planish.targets.cuda.kernels.matrix import MatrixFamily, MatrixTactic
from planish.targets.cuda.kernels.matrix_tile import PERSISTENT
from planish.targets.cuda.machine import H200
from planish.targets.cuda.run import is_on_gpu, run_tactic

FAMILY = MatrixFamily(H200)
I8 = DType.INT8
TILES = [
    (16, 32, 32, 4, 2),
    (32, 16, 64, 4, 2, 3),
    (64, 64, 32, 4, 2),
    (64, 64, 128, 4, 1, PERSISTENT),
]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(31)


def check(task: Task, rng, offered=(), layouts=None) -> None:
    """Runs tactics given and the first that the family offers."""
    values = (*task.inputs, *task.outputs)
    binding = Binding({}, {v: layouts(v) for v in values} if layouts else {})
    own = [t for t in FAMILY.tactics(task, binding) if t.rows * t.columns <= 4096][:1]
    arrays = [v.data if v.data is not None else sample(v, rng) for v in task.inputs]
    (want,) = task.evaluate(arrays)
    for tactic in (*(t for t in offered if t.accepts(binding)), *own):
        assert FAMILY.restore(task, tactic.parameters) == tactic
        (have,) = run_tactic(tactic, binding, arrays)
        assert have.dtype == want.dtype and have.shape == want.shape
        # Hopper's tensor cores keep 14 bits of a sum
        near = (3e-3 if is_on_gpu() else 1e-5) * float(np.abs(want.astype(np.float32)).max())
        if have.dtype == np.int8:  # the order of sums decides what is half-way
            assert np.mean(have != want) < (0.1 if is_on_gpu() else 0.01)
            x, y = decode(have), decode(want)
            near = 3e-3 * np.abs(y).max() if is_on_gpu() else 0
            assert np.all(np.abs(x - y) <= np.maximum(np.abs(y) / 8, 2.0**-9) + near)
        else:
            relative = 1e-3 if have.dtype == np.float16 else 0
            np.testing.assert_allclose(have, want, rtol=relative, atol=near)


def sample(value, rng) -> np.ndarray:
    x = rng.standard_normal(value.type.bind({}))
    return encode(x) if value.dtype is I8 else x.astype(value.dtype.numpy)


@pytest.mark.parametrize(
    "case",
    [
        dict(left=(40, 64), right=(64, 48)),
        dict(left=(3, 9, 33), right=(33, 21), to=DType.FLOAT32),
        dict(left=(70, 130), right=(130, 96), gelu=True),
        dict(left=(65, 64), right=(64, 64), residual=True, to=DType.FLOAT16),
        dict(left=(17, 48), right=(40, 48), transpose_b=True),
        dict(left=(2, 20, 64), right=(64, 32), quantize=True),
        dict(left=(1, 300), right=(300, 10), to=DType.FLOAT32),
        dict(left=(12, 2), right=(2, 1), to=DType.FLOAT32),
    ],
    ids=str,
)
def test_products(case, rng) -> None:
    task = product_of_codes(rng, **case)
    assert task.precision == "fp8"
    check(task, rng, [MatrixTactic(task, *tile) for tile in TILES])


def test_turned_round(rng) -> None:
    task = product_of_codes(rng, (40, 96), (96, 64))
    check(task, rng, [MatrixTactic(task, 64, 64, 32, 4, 2, transposed=True)])


@pytest.mark.parametrize("layout", [row_padded, strided])
def test_layouts(layout, rng) -> None:
    task = product_of_codes(rng, (6, 5, 32), (32, 24), residual=True)
    check(task, rng, layouts=layout if layout is row_padded else lambda v: strided(v, rng))


def test_codes_are_multiplied_as_they_lie(rng) -> None:
    """Tensor cores of FP8, copies that go ahead, codes written 16 bytes at a time."""
    task = product_of_codes(rng, (512, 768), (768, 256), gelu=True)
    text = assembly(MatrixTactic(task, 128, 128, 128, 4, 3), Binding({}))
    assert "wgmma.mma_async.sync.aligned.m64n128k32.f32.e4m3.e4m3" in text
    assert "cp.async.cg.shared.global" in text
    assert "st.global.v4.b32" in text and "cvt.rn.satfinite.e4m3x2.f32" in text


@pytest.mark.parametrize("shape", [(64, 48), (3, 64, 48)], ids=str)
def test_both_are_computed(shape, rng) -> None:
    task = product_of_codes(rng, (*shape[:-2], 40, 64), shape, constant=False, to=DType.FLOAT32)
    check(task, rng, [MatrixTactic(task, 32, 32, 32, 4, 2)])
    compiled(MatrixTactic(task, 64, 64, 64, 4, 2), Binding({}))
