"""Engines for callers in C: programs by input signature, run without Python.

TensorFlow's kernels run a ``NativeEngine`` through the functions of ``native/planish.h``; Python
is asked only for shapes that no program was made for yet.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import itertools
import logging
import weakref
from collections.abc import Callable, Iterable, Sequence
from ctypes import POINTER, c_int, c_int64, c_size_t, c_void_p
from typing import Any, NamedTuple

import numpy as np

from planish.errors import DeviceError, InputError, ShapeError
from planish.graph.dims import evaluate
from planish.graph.types import DType, TensorType
from planish.native import (
    ERROR_SIZE,
    FAILED,
    INVALID,
    OK,
    Program,
    aligned_empty,
    declare,
    library,
    raise_status,
    write_error,
)

_log = logging.getLogger(__name__)

# TensorFlow's DataType numbers, with which callers in C describe element types.
DTYPE_CODES = {
    DType.FLOAT32: 1,
    DType.FLOAT64: 2,
    DType.INT32: 3,
    DType.UINT8: 4,
    DType.INT16: 5,
    DType.INT8: 6,
    DType.INT64: 9,
    DType.BOOL: 10,
    DType.BFLOAT16: 14,
    DType.UINT16: 17,
    DType.FLOAT16: 19,
    DType.UINT32: 22,
    DType.UINT64: 23,
}
_DTYPE_OF_CODE = {code: dtype for dtype, code in DTYPE_CODES.items()}


class _Signature(ctypes.Structure):
    _fields_ = [
        ("count", c_int),
        ("ranks", POINTER(c_int)),
        ("dims", POINTER(c_int64)),
        ("dtypes", POINTER(c_int)),
    ]


class _Trim(ctypes.Structure):
    _fields_ = [("output", c_int), ("axis", c_int), ("count", c_int), ("factor", c_int64)]


class _Counting(ctypes.Structure):
    _fields_ = [
        ("visible_count", c_int),
        ("trim_count", c_int),
        ("visible", POINTER(c_int)),
        ("trims", POINTER(_Trim)),
    ]


_BIND = ctypes.CFUNCTYPE(c_int, c_int64, POINTER(_Signature), c_void_p, c_size_t)
_CAN_BIND = ctypes.CFUNCTYPE(c_int, c_int64, POINTER(_Signature))
_ALLOCATE = ctypes.CFUNCTYPE(
    c_int,
    c_void_p,
    c_int,
    c_int,
    c_int,
    POINTER(c_int64),
    c_size_t,
    POINTER(c_void_p),
    c_void_p,
    c_size_t,
)

# fmt: off
_PROTOTYPES: dict[str, tuple[Any, list[Any]]] = {
    "planish_on_bind": (None, [_BIND, _CAN_BIND]),
    "planish_engine_create": (c_void_p, [c_int64, c_int, c_int]),
    "planish_engine_retain": (None, [c_void_p]),
    "planish_engine_release": (None, [c_void_p]),
    "planish_engine_size": (c_int, [c_void_p]),
    "planish_engine_ready": (c_int, [c_void_p, POINTER(_Signature)]),
    "planish_engine_table": (c_void_p, []),
    "planish_engine_add_counted_program":
        (c_int, [c_void_p, POINTER(_Signature), POINTER(_Signature), c_void_p, POINTER(_Counting),
                 c_void_p, c_size_t]),
    "planish_engine_run":
        (c_int, [c_void_p, POINTER(_Signature), c_void_p, _ALLOCATE, c_void_p, c_void_p, c_size_t]),
}
# fmt: on


@functools.cache
def engine_library() -> ctypes.CDLL:
    """The C runtime, ready for engines; raises what ``native.library`` raises."""
    loaded = library()
    declare(loaded, _PROTOTYPES)
    loaded.planish_on_bind(_on_bind, _on_can_bind)
    # Threads of a host program may outlive the interpreter; they must not call into it then.
    atexit.register(loaded.planish_on_bind, _BIND(), _CAN_BIND())
    return loaded


class Trim(NamedTuple):
    """A dimension of an output that is cut, after the run, to `factor` times what the output
    number `counter` holds (an integer).
    """

    output: int
    axis: int
    counter: int
    factor: int


class Bound(NamedTuple):
    """A program for one signature, and the types of its outputs (static shapes).

    `visible` are the numbers of the outputs that the caller gets, in order; None: all. Those in
    `trims` are as large as they can become, and are cut to size.
    """

    program: Program
    outputs: tuple[TensorType, ...]
    visible: tuple[int, ...] | None = None
    trims: tuple[Trim, ...] = ()


Bind = Callable[[tuple[TensorType, ...]], Bound]
_engines: weakref.WeakValueDictionary[int, NativeEngine] = weakref.WeakValueDictionary()
_engine_ids = itertools.count(1)


class NativeEngine:
    """Programs per input signature, run from C (TensorFlow's kernels) without Python.

    Parameters
    ----------
    bind : callable
        ``bind(inputs) -> Bound`` makes the program for the given static input types. Called once
        per unseen signature, on the thread that runs it, never on two threads at once.
    can_bind : callable, optional
        ``can_bind(inputs) -> bool``: whether ``bind`` would succeed; default: always.
    capacity : int
        How many programs are held; the least recently used one goes.
    threads : int
        For every execution.
    """

    def __init__(
        self,
        bind: Bind,
        *,
        can_bind: Callable[[tuple[TensorType, ...]], bool] | None = None,
        capacity: int = 1,
        threads: int = 1,
    ) -> None:
        native = engine_library()
        self.bind, self.can_bind = bind, can_bind
        self.identifier = next(_engine_ids)
        self.handle: int = native.planish_engine_create(self.identifier, capacity, threads)
        if not self.handle:
            raise DeviceError("There is no memory for an engine.")
        self._release = native.planish_engine_release
        _engines[self.identifier] = self

    def __del__(self) -> None:
        if hasattr(self, "_release"):
            self._release(self.handle)

    def __len__(self) -> int:
        return engine_library().planish_engine_size(self.handle)

    def retained(self) -> int:
        """The engine's handle with a reference for the caller, who releases it in C."""
        engine_library().planish_engine_retain(self.handle)
        return self.handle

    def add(self, inputs: Sequence[TensorType], bound: Bound) -> None:
        """Put a program in, as ``bind`` would."""
        error = ctypes.create_string_buffer(ERROR_SIZE)
        status = engine_library().planish_engine_add_counted_program(
            self.handle,
            ctypes.byref(_signature(inputs)),
            ctypes.byref(_signature(bound.outputs)),
            bound.program.handle,
            _counting(bound),
            error,
            ERROR_SIZE,
        )
        if status:
            raise_status(
                status,
                "A program cannot be added to an engine.",
                error.value.decode("utf-8", "replace"),
            )

    def ready(self, inputs: Sequence[TensorType]) -> bool:
        """Whether a program for these inputs exists or may be made."""
        return (
            engine_library().planish_engine_ready(self.handle, ctypes.byref(_signature(inputs)))
            == 1
        )

    def run(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Run from Python, the way a caller in C does; arrays in, new arrays out."""
        arrays = [np.ascontiguousarray(array) for array in arrays]
        outputs: dict[int, np.ndarray] = {}

        def allocate(_context, index, code, rank, dims, nbytes, data, _error, _size) -> int:
            made = aligned_empty(nbytes).view(_DTYPE_OF_CODE[code].numpy)
            outputs[index] = made.reshape(tuple(dims[:rank]))
            data[0] = made.ctypes.data
            return OK

        error = ctypes.create_string_buffer(ERROR_SIZE)
        status = engine_library().planish_engine_run(
            self.handle,
            ctypes.byref(_signature([TensorType(a.shape, DType.of(a.dtype)) for a in arrays])),
            (c_void_p * len(arrays))(*(a.ctypes.data for a in arrays)),
            _ALLOCATE(allocate),
            None,
            error,
            ERROR_SIZE,
        )
        if status:
            raise_status(status, "An engine failed.", error.value.decode("utf-8", "replace"))
        return [outputs[index] for index in range(len(outputs))]


def _signature(types: Iterable[TensorType]) -> _Signature:
    types = list(types)
    dims = [evaluate(d, {}) for t in types for d in t.shape]
    return _Signature(
        len(types),
        (c_int * len(types))(*(t.rank for t in types)),
        (c_int64 * len(dims))(*dims),
        (c_int * len(types))(*(DTYPE_CODES[t.dtype] for t in types)),
    )


def _counting(bound: Bound) -> Any:
    """What C is told of a program whose outputs are cut to size; None of another one."""
    if bound.visible is None:
        return None
    visible, trims = bound.visible, [_Trim(*trim) for trim in bound.trims]
    return ctypes.byref(
        _Counting(
            len(visible),
            len(trims),
            (c_int * len(visible))(*visible),
            (_Trim * len(trims))(*trims),
        )
    )


def dtype_of_code(code: int) -> DType:
    """The element type with this number in TensorFlow's DataType."""
    if code not in _DTYPE_OF_CODE:
        raise InputError(f"No kernel takes elements of TensorFlow's type number {code}.")
    return _DTYPE_OF_CODE[code]


def _types(signature: _Signature) -> tuple[TensorType, ...]:
    types, at = [], 0
    for i in range(signature.count):
        rank, dtype = signature.ranks[i], dtype_of_code(signature.dtypes[i])
        types.append(TensorType(tuple(signature.dims[at : at + rank]), dtype))
        at += rank
    return tuple(types)


def _engine_of(identifier: int) -> NativeEngine:
    engine = _engines.get(identifier)
    if engine is None:
        raise InputError("The engine was closed: nothing in Python refers to it any more.")
    return engine


@_BIND
def _on_bind(identifier: int, signature: Any, error: int | None, size: int) -> int:
    try:
        engine = _engine_of(identifier)
        inputs = _types(signature.contents)
        engine.add(inputs, engine.bind(inputs))
        return OK
    except BaseException as problem:
        _log.debug("bind failed", exc_info=True)
        write_error(error, size, str(problem) or type(problem).__name__)
        return INVALID if isinstance(problem, (InputError, ShapeError)) else FAILED


@_CAN_BIND
def _on_can_bind(identifier: int, signature: Any) -> int:
    try:
        engine = _engine_of(identifier)
        return int(engine.can_bind is None or engine.can_bind(_types(signature.contents)))
    except BaseException:
        _log.debug("can_bind failed", exc_info=True)
        return 0


def engine_table() -> int:
    """Address of the C table of engine functions, for a library that is not linked with ours."""
    return engine_library().planish_engine_table()
