"""Calibration data of every kind become batches; bad ones are told apart (messages word for word:
tests/helpers/provoke/calibration.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from planish.errors import CalibrationError
from planish.graph.dims import DimLike, symbol
from planish.graph.graph import Value
from planish.graph.types import DType, TensorType
from planish.quantization.batches import ROWS, Batches
from planish.quantization.min_max import MinMaxCalibrator

N = symbol("N")
X = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)


def inputs(*shapes: tuple[DimLike, ...], dtype: DType = DType.FLOAT32) -> list[Value]:
    names = "xyz"
    return [Value(n, TensorType(s, dtype)) for n, s in zip(names, shapes, strict=False)]


ONE = inputs((N, 4))
TWO = inputs((N, 4), (N, 2))


def joined(values: list[Value], data: Any) -> list[np.ndarray]:
    """All batches of each input put together."""
    batches = list(Batches(values, data))
    assert all(list(b) == [v.name for v in values] for b in batches)
    return [np.concatenate([b[v.name] for b in batches]) for v in values]


class Four:
    """A calibrator as TensorRT's users wrote them: no class of ours in sight."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = iter(batches)
        self.asked: list[list[str]] = []

    def get_batch_size(self) -> int:
        return 8

    def get_batch(self, names: list[str]) -> Any:
        self.asked.append(list(names))
        return next(self.batches, None)

    def read_calibration_cache(self) -> None:
        return None

    def write_calibration_cache(self, cache: bytes) -> None:
        pass


class Tensor:
    """Another framework's array."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return self.array


class Unsized:
    """As TensorFlow's data sets: iterable, with a length that it does not tell; callable, too."""

    def __call__(self) -> None:
        raise AssertionError

    def __len__(self) -> int:
        raise TypeError("the length is unknown")

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter([X[:3], X[3:]])


def generator() -> Iterator[np.ndarray]:
    yield X[:12]
    yield X[12:]


KINDS: dict[str, Any] = {
    "array": lambda: X,
    "another framework's array": lambda: Tensor(X),
    "mapping": lambda: {"x": X},
    "list of batches": lambda: [X[:3], X[3:]],
    "list of samples": lambda: list(X),
    "list of mappings": lambda: [{"x": X[:3]}, {"x": X[3:]}],
    "list of tuples": lambda: [(X[:3],), (X[3:],)],
    "generator": generator,
    "function of an array": lambda: lambda: X,
    "function of a generator": lambda: generator,
    "calibrator": lambda: MinMaxCalibrator(X),
    "TensorRT's four methods": lambda: Four([[X[:3]], [X[3:]]]),
    "TensorRT's, by name": lambda: Four([{"x": X[:3]}, {"x": X[3:]}]),
    "data set of unknown length": Unsized,
    "doubles": lambda: X.astype(np.float64),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_same_samples(kind: str) -> None:
    np.testing.assert_array_equal(joined(ONE, KINDS[kind]())[0], X)


def test_several_inputs() -> None:
    y = X[:, :2] * 2
    for data in (
        {"x": X, "y": y},
        [{"y": y[:5], "x": X[:5]}, {"x": X[5:], "y": y[5:]}],
        [(X[:5], y[:5]), [X[5:], y[5:]]],
        Four([[X[:5], y[:5]], [X[5:], y[5:]]]),
    ):
        found = joined(TWO, data)
        np.testing.assert_array_equal(found[0], X)
        np.testing.assert_array_equal(found[1], y)


def test_names_are_told_to_get_batch() -> None:
    calibrator = Four([[X, X[:, :2]]])
    list(Batches(TWO, calibrator))
    assert calibrator.asked == [["x", "y"]] * 2


def test_npz_files(tmp_path: Path) -> None:
    y = X[:, :2]
    np.savez(tmp_path / "two.npz", x=X, y=y)
    np.savez(tmp_path / "one.npz", X)
    np.testing.assert_array_equal(joined(TWO, str(tmp_path / "two.npz"))[1], y)
    np.testing.assert_array_equal(joined(ONE, tmp_path / "one.npz")[0], X)
    np.testing.assert_array_equal(joined(ONE, MinMaxCalibrator(tmp_path / "one.npz"))[0], X)


def test_totals() -> None:
    assert Batches(ONE, X).total == -(-20 // ROWS)
    assert Batches(ONE, [X, X]).total == 2
    assert Batches(ONE, MinMaxCalibrator(X)).total == -(-20 // ROWS)
    assert Batches(ONE, generator()).total == 0


def test_a_fixed_batch(caplog: pytest.LogCaptureFixture) -> None:
    found = list(Batches(inputs((6, 4)), X))
    assert [len(b["x"]) for b in found] == [6, 6, 6]
    assert "the last 2 of 20 samples are left out" in caplog.text
    with pytest.raises(CalibrationError, match=r"has shape \(5, 4\)"):
        list(Batches(inputs((6, 4)), X[:5]))


def test_integers_are_converted_where_nothing_is_lost() -> None:
    ids = inputs((N, 4), dtype=DType.INT32)
    data = np.arange(8, dtype=np.int64).reshape(2, 4)
    assert joined(ids, [data])[0].dtype == np.int32
    with pytest.raises(CalibrationError, match="dtype int64, not int32"):
        list(Batches(ids, [data << 40]))


def test_an_input_that_is_constant_beside_one_that_is_not() -> None:
    assert len(joined(TWO, {"x": X, "y": np.ones((20, 2), np.float32)})) == 2


def test_integers_may_be_constant() -> None:
    assert joined(inputs((N, 4), dtype=DType.INT64), np.zeros((3, 4), np.int64))[0].shape == (3, 4)


def test_batches_before_a_bad_one_are_given() -> None:
    batches = iter(Batches(ONE, [X, X * np.nan]))
    np.testing.assert_array_equal(next(batches)["x"], X)
    with pytest.raises(CalibrationError, match="Batch 1 has values that are NaN"):
        next(batches)


def test_scalars_stay_scalars() -> None:
    values = inputs((N, 4), ())
    (batch,) = Batches(values, [{"x": X, "y": np.float32(0.5)}])
    assert batch["y"].shape == ()
