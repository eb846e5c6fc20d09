"""Arrays from the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import typer

from planish.cli.arrays import random_array, read_inputs, write_outputs
from planish.errors import InputError
from planish.graph.dims import symbol
from planish.graph.graph import DimRange
from planish.runtime.arrays import TensorInfo

N = symbol("N")
INFOS = [
    TensorInfo("a", np.dtype(np.float32), (N, 3), {"N": DimRange(1, 1, 9)}),
    TensorInfo("b", np.dtype(np.int64), (N * 2,), {"N": DimRange(1, 1, 9)}),
]


def test_random_inputs_follow_the_sizes_of_those_given(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((4, 3), np.float32))
    arrays, made = read_inputs([str(tmp_path / "a.npy")], INFOS, {"N": 1})
    assert made == ["b"]
    assert arrays["b"].shape == (8,)
    assert arrays["b"].dtype == np.int64


def test_arrays_without_names_are_taken_in_order(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((1, 3), np.float32))
    np.save(tmp_path / "b.npy", np.ones(2, np.int64))
    paths = [str(tmp_path / "a.npy"), str(tmp_path / "b.npy")]
    arrays, made = read_inputs(paths, INFOS, {"N": 1})
    assert not made
    assert arrays["b"].tolist() == [1, 1]
    with pytest.raises(InputError, match="one array too many"):
        read_inputs([*paths, paths[0]], INFOS, {"N": 1})


def test_random_values_are_repeatable() -> None:
    for dtype in (np.float32, np.int8, np.bool_):
        first = random_array((5, 2), dtype, 3)
        assert first.dtype == dtype
        np.testing.assert_array_equal(first, random_array((5, 2), dtype, 3))


@pytest.mark.parametrize("spec", ["c=2x3", "c=x.npy"])
def test_unknown_names(spec: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.zeros(1))
    with pytest.raises(InputError, match="There is no input 'c'"):
        read_inputs([spec], INFOS, {"N": 1})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no such file"):
        read_inputs([f"a={tmp_path / 'none.npy'}"], INFOS, {"N": 1})
    (tmp_path / "bad.npy").write_bytes(b"nonsense")
    with pytest.raises(InputError, match="holds no arrays"):
        read_inputs([f"a={tmp_path / 'bad.npy'}"], INFOS, {"N": 1})
    np.save(tmp_path / "pickled.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="holds no arrays"):
        read_inputs([f"a={tmp_path / 'pickled.npy'}"], INFOS, {"N": 1})
    with pytest.raises(typer.BadParameter):
        read_inputs(["nonsense"], INFOS, {"N": 1})


def test_outputs_are_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "y.npy"
    write_outputs(path, {"y": np.arange(3)})
    write_outputs(path, {"y": np.arange(4)})
    assert np.load(path).tolist() == [0, 1, 2, 3]
    assert [p.name for p in tmp_path.iterdir()] == ["y.npy"]
    with pytest.raises(InputError, match=r"neither \.npy nor \.npz"):
        write_outputs(tmp_path / "y.txt", {"y": np.arange(3)})
    with pytest.raises(InputError, match="cannot be written"):
        write_outputs(tmp_path / "none" / "y.npy", {"y": np.arange(3)})
