"""DLPack, the protocol by which libraries hand arrays to one another without a copy.

An array is a capsule, which holds a C structure. A capsule that is dropped frees what it holds, so
that whoever only reads it keeps the capsule and needs nothing else. The layout is that of
``dlpack.h`` of DLPack 1.0, with and without a version in front.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from planish.graph.types import DType

CPU, CUDA, CUDA_MANAGED = 1, 2, 13
"""Kinds of devices."""

VERSION = (1, 0)

READ_ONLY = 1
"""A flag of capsules with a version."""

_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}
_BFLOAT = 4
_TYPES: dict[tuple[int, int], np.dtype] = {
    (_BFLOAT if d is DType.BFLOAT16 else _CODES[d.numpy.kind], 8 * d.size): d.numpy for d in DType
}
"""Element types by code and bits."""
_CODE_OF = {dtype: code for code, dtype in _TYPES.items()}


class _Tensor(ctypes.Structure):
    """DLTensor."""

    _fields_ = (
        ("data", ctypes.c_uint64),
        ("kind", ctypes.c_int32),
        ("number", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned. Without a version the tensor comes first."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_uint64),
        ("deleter", ctypes.c_uint64),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


_PLAIN, _VERSIONED = b"dltensor", b"dltensor_versioned"

_api = ctypes.pythonapi
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)


class Described(NamedTuple):
    """What a capsule says; strides in elements, or None for a dense array."""

    shape: tuple[int, ...]
    strides: tuple[int, ...] | None
    dtype: np.dtype
    address: int
    device: tuple[int, int]
    read_only: bool


def read(capsule: Any) -> Described:
    """The array of a capsule, which lives as long as the capsule does.

    Raises
    ------
    BufferError
        It is none, of a version not known here, or its elements are of a type that Planish lacks.
    """
    tensor, versioned = _tensor(capsule)
    if versioned is not None and versioned.major != VERSION[0]:
        raise BufferError(f"DLPack of version {versioned.major} is not known")
    dtype = _TYPES.get((tensor.code, tensor.bits))
    if dtype is None or tensor.lanes != 1:
        kind = f"type {tensor.code} with {tensor.bits} bits"
        raise BufferError(f"elements of DLPack's {kind} are not known")
    rank = tensor.rank
    return Described(
        tuple(tensor.shape[:rank]),
        tuple(tensor.strides[:rank]) if tensor.strides else None,
        dtype,
        tensor.data + tensor.offset,
        (tensor.kind, tensor.number),
        versioned is not None and bool(versioned.flags & READ_ONLY),
    )


def _tensor(capsule: Any) -> tuple[_Tensor, _Versioned | None]:
    """What a capsule holds; the latter if it has a version."""
    if _is_valid(capsule, _VERSIONED):
        versioned = _Versioned.from_address(_pointer(capsule, _VERSIONED))
        return versioned.tensor, versioned
    if _is_valid(capsule, _PLAIN):
        return _Tensor.from_address(_pointer(capsule, _PLAIN)), None
    raise BufferError("this is no capsule of DLPack, or it was used before")


class _Memory:
    """An array's memory, as NumPy takes it without looking at it."""

    def __init__(
        self, address: int, shape: Sequence[int], dtype: np.dtype, owner: object, writeable: bool
    ) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "shape": tuple(shape),
            "typestr": f"<u{dtype.itemsize}",
            "data": (address, not writeable),
            "version": 3,
        }


def export(
    address: int,
    shape: Sequence[int],
    dtype: np.dtype,
    device: tuple[int, int],
    owner: object,
    *,
    versioned: bool = True,
    writeable: bool = True,
) -> Any:
    """A capsule of a dense array; `owner` lives until nobody uses it any more.

    NumPy makes it, as of an array of the host's that nobody reads, because what frees a capsule may
    run while an error is on its way, which a function in Python would not survive. Then type and
    device are set.
    """
    code, bits = _CODE_OF[np.dtype(dtype)]
    array = np.asarray(_Memory(address, shape, np.dtype(dtype), owner, writeable))
    try:
        capsule = array.__dlpack__(max_version=VERSION if versioned else None)
    except TypeError:  # NumPy before 2.1
        capsule = array.__dlpack__()
    tensor, _ = _tensor(capsule)
    tensor.kind, tensor.number = device
    tensor.code, tensor.bits = code, bits
    return capsule
