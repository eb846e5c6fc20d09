"""Capsules of DLPack: NumPy reads those made here, and the other way round."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from planish.graph.types import DType
from planish.targets.cuda import dlpack

HERE = (dlpack.CPU, 0)


class Exporting:
    """An array on the host that DLPack gives on as arrays on GPUs are."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return HERE

    def __dlpack__(self, *, max_version: tuple[int, int] | None = None, **_: Any) -> Any:
        a, versioned = self.array, max_version is not None
        return dlpack.export(a.ctypes.data, a.shape, a.dtype, HERE, self, versioned=versioned)


class Plain(Exporting):
    """As before DLPack 1.0."""

    def __dlpack__(self, *, stream: Any = None) -> Any:  # type: ignore[override]
        return super().__dlpack__()


@pytest.mark.parametrize("kind", [Exporting, Plain])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4), (0, 3)])
def test_numpy_reads_what_is_exported(kind: type[Exporting], shape: tuple[int, ...]) -> None:
    array = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    got = np.from_dlpack(kind(array))
    np.testing.assert_array_equal(got, array)
    assert got.size == 0 or np.shares_memory(got, array)


@pytest.mark.parametrize("dtype", [d for d in DType if d is not DType.BFLOAT16])
def test_all_dtypes(dtype: DType) -> None:
    array = np.ones(3, dtype.numpy)
    assert np.from_dlpack(Exporting(array)).dtype == array.dtype
    assert dlpack.read(array.__dlpack__()).dtype == array.dtype


def test_bfloat16() -> None:
    array = np.ones(3, ml_dtypes.bfloat16)
    found = dlpack.read(Exporting(array).__dlpack__())
    assert found.dtype == array.dtype


@pytest.mark.parametrize("versioned", [False, True])
def test_memory_lives_as_long_as_somebody_reads_it(versioned: bool) -> None:
    exporting = (Exporting if versioned else Plain)(np.arange(4.0))
    alive = weakref.ref(exporting)
    got = np.from_dlpack(exporting)
    del exporting
    gc.collect()
    assert alive() is not None
    np.testing.assert_array_equal(got, np.arange(4.0))
    del got
    gc.collect()
    assert alive() is None


def test_a_capsule_that_nobody_takes_frees_what_it_holds() -> None:
    for version in (None, (1, 0)):
        exporting = Exporting(np.arange(4.0))
        alive = weakref.ref(exporting)
        capsule = exporting.__dlpack__(max_version=version)
        del exporting
        assert alive() is not None
        del capsule
        assert alive() is None


def test_an_error_on_its_way_does_no_harm() -> None:
    def fail() -> None:
        capsule = Exporting(np.arange(4.0)).__dlpack__()
        assert capsule
        raise KeyError("on its way")

    for _ in range(3):
        with pytest.raises(KeyError, match="on its way"):
            fail()


def test_reading() -> None:
    array = np.arange(24, dtype=np.int16).reshape(4, 6)[1:, ::2]
    for version in (None, (1, 0)):
        capsule = array.__dlpack__(max_version=version)
        found = dlpack.read(capsule)
        assert found.shape == (3, 3)
        assert found.strides == (6, 2)
        assert found.address == array.ctypes.data
        assert found.device == HERE
        assert not found.read_only


def test_read_only_arrays_say_so() -> None:
    array = np.arange(4.0)
    array.flags.writeable = False
    assert dlpack.read(array.__dlpack__(max_version=(1, 0))).read_only
    capsule = dlpack.export(array.ctypes.data, (4,), array.dtype, HERE, array, writeable=False)
    assert dlpack.read(capsule).read_only


def test_what_is_no_capsule() -> None:
    capsule = np.arange(3.0).__dlpack__()
    np.from_dlpack(Used(capsule))
    for given in (capsule, 3, None):
        with pytest.raises(BufferError, match="no capsule"):
            dlpack.read(given)


class Used:
    """Gives a capsule on."""

    def __init__(self, capsule: Any) -> None:
        self.capsule = capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return HERE

    def __dlpack__(self, **_: Any) -> Any:
        return self.capsule


def test_complex_numbers_are_refused() -> None:
    with pytest.raises(BufferError, match="not known"):
        dlpack.read(np.ones(3, np.complex64).__dlpack__())
