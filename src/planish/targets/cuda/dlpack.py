"""DLPack, the protocol by which libraries hand arrays to one another without a copy.

An array is a capsule, which holds a C structure. A capsule that is dropped frees what it holds, so
that whoever only reads it keeps the capsule and needs nothing else. The layout is that of
``dlpack.h`` of DLPack 1.0, with and without a version in front.
"""

from __future__ import annotations

import ctypes
import struct
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

_TENSOR = struct.Struct("=QiiiBBHQQQ")  # data, device, its number, rank, type, shape, strides, offset
_HEAD = struct.Struct("=IIQQQ")  # version, context, deleter, flags
_PLAIN, _VERSIONED = b"dltensor", b"dltensor_versioned"

_api = ctypes.pythonapi
_new = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)(
    ("PyCapsule_New", _api)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", _api)
)
# a destructor sees a capsule that nothing refers to any more: by address only
_dying_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", _api)
)
_dying_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
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
    read_only = False
    if _is_valid(capsule, _VERSIONED):
        place = _pointer(capsule, _VERSIONED)
        major, _, _, _, flags = _HEAD.unpack(ctypes.string_at(place, _HEAD.size))
        if major != VERSION[0]:
            raise BufferError(f"DLPack of version {major} is not known")
        place += _HEAD.size
        read_only = bool(flags & READ_ONLY)
    elif _is_valid(capsule, _PLAIN):
        place = _pointer(capsule, _PLAIN)
    else:
        raise BufferError("this is no capsule of DLPack, or it was used before")
    data, kind, number, rank, code, bits, lanes, shape, strides, offset = _TENSOR.unpack(
        ctypes.string_at(place, _TENSOR.size)
    )
    dtype = _TYPES.get((code, bits))
    if dtype is None or lanes != 1:
        raise BufferError(f"elements of DLPack's type {code} with {bits} bits are not known")
    return Described(
        _integers(shape, rank),
        _integers(strides, rank) if strides else None,
        dtype,
        data + offset,
        (kind, number),
        read_only,
    )


def _integers(address: int, count: int) -> tuple[int, ...]:
    return struct.unpack(f"={count}q", ctypes.string_at(address, 8 * count)) if count else ()


_exported: dict[int, tuple[Any, Any]] = {}
"""What capsules hold, and whose memory it is, until they are done with."""


def export(
    address: int,
    shape: Sequence[int],
    dtype: np.dtype,
    device: tuple[int, int],
    owner: object,
    versioned: bool,
) -> Any:
    """A capsule of a dense array; `owner` lives until nobody uses it any more."""
    code, bits = _CODE_OF[np.dtype(dtype)]
    rank = len(shape)
    strides = [1] * rank
    for axis in range(rank - 2, -1, -1):
        strides[axis] = strides[axis + 1] * max(shape[axis + 1], 1)
    numbers = (ctypes.c_int64 * max(2 * rank, 1))(*shape, *strides)
    start = ctypes.addressof(numbers)
    deleter = ctypes.cast(_delete, ctypes.c_void_p).value
    tensor = _TENSOR.pack(address, *device, rank, code, bits, 1, start, start + 8 * rank, 0)
    if versioned:
        content = _HEAD.pack(*VERSION, 0, deleter, 0) + tensor
    else:
        content = tensor + struct.pack("=QQ", 0, deleter)
    memory = ctypes.create_string_buffer(content, len(content))
    place = ctypes.addressof(memory)
    _exported[place] = (memory, numbers), owner
    destructor = ctypes.cast(_destruct, ctypes.c_void_p).value
    return _new(place, _VERSIONED if versioned else _PLAIN, destructor)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _delete(place: int) -> None:
    """Called by whoever took the array out of a capsule, when done with it."""
    _exported.pop(place, None)


@ctypes.CFUNCTYPE(None, ctypes.c_void_p)
def _destruct(capsule: int) -> None:
    """Called when a capsule is dropped; where its name is still ours, nobody took the array."""
    for name in (_PLAIN, _VERSIONED):
        if _dying_is_valid(capsule, name):
            _exported.pop(_dying_pointer(capsule, name), None)
