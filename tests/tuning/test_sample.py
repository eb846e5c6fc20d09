"""What inputs hold while tactics are measured."""

from __future__ import annotations

import numpy as np
import pytest

import planish.tuning.sample as sample_module
from planish.graph.types import DType
from planish.ops.float8 import decode
from planish.targets.base import Layout, dense_strides
from planish.targets.cpu.target import cpu
from planish.tuning.sample import Sample

FLOAT = np.dtype(np.float32)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_module, "PERIOD", 97)
    monkeypatch.setattr(sample_module, "APART", 11)
    sample_module._drawn.cache_clear()
    yield
    sample_module._drawn.cache_clear()


LAYOUTS = [
    Layout((), ()),
    Layout((5,), (1,)),
    Layout((9, 4, 3), dense_strides((9, 4, 3))),
    Layout((9, 4, 3), (40, 7, 2)),
    Layout((9, 4, 3), (1, 9, 36)),
    Layout((9, 4, 3), (3, 0, 1), 4),
    Layout((40, 8), (8, 1), 16),
    Layout((3, 0), (0, 1)),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_tensor_that_was_filled_holds_the_sample(layout: Layout) -> None:
    sample = Sample(layout, FLOAT, 2)
    tensor = cpu().tensor(layout, FLOAT)
    tensor.fill(sample.period)
    whole = np.asarray(sample)
    assert whole.shape == layout.shape
    np.testing.assert_array_equal(tensor.read(), whole)


@pytest.mark.parametrize("layout", [x for x in LAYOUTS if len(x.shape) == 3], ids=str)
@pytest.mark.parametrize("rows", [[0], [0, 1, 7, 8], [2, 4, 6], list(range(9))], ids=str)
def test_rows_are_those_of_the_whole(layout: Layout, rows: list[int]) -> None:
    sample = Sample(layout, FLOAT, 0)
    assert (sample.ndim, len(sample)) == (3, 9)
    np.testing.assert_array_equal(sample[np.array(rows)], np.asarray(sample)[rows])


def test_inputs_differ_and_repeat_from_run_to_run() -> None:
    layout = Layout((50, 3), (3, 1))
    first, other = (np.asarray(Sample(layout, FLOAT, n)) for n in (0, 1))
    assert np.mean(first == other) < 0.1
    np.testing.assert_array_equal(first, np.asarray(Sample(layout, FLOAT, 0)))


def test_codes_stand_for_numbers() -> None:
    codes = np.asarray(Sample(Layout((4000,), (1,)), np.dtype(np.int8), 0, codes=True))
    numbers = decode(codes)
    assert np.isfinite(numbers).all() and np.abs(numbers).max() < 2
    assert len(set(codes.tolist())) > 40 and codes.min() < 0 < codes.max()


@pytest.mark.parametrize("dtype", list(DType))
def test_every_dtype(dtype: DType) -> None:
    whole = np.asarray(Sample(Layout((60,), (1,)), dtype.numpy, 0))
    assert whole.dtype == dtype.numpy
    values = set(whole.astype(np.float64).tolist())
    assert len(values) > 20 if dtype.is_float else values == {0.0, 1.0}
