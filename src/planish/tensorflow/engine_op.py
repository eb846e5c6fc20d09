"""The TensorFlow ops of Planish: loads their library and connects it to the C runtime.

``PlanishEngine``, ``PlanishReady`` and ``PlanishWeight`` (``native/tensorflow_op.c``) know a plan
only as the string in a graph, an asset's path or the plan itself. What it stands for is answered
by the two functions given to ``connect``.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import json
import logging
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

import numpy as np

import planish
from planish import native
from planish.errors import DeviceError, InputError, PlanError, ShapeError
from planish.graph.types import DType, TensorType
from planish.runtime import native_engine

_log = logging.getLogger(__name__)

Resolve = Callable[[str, bytes, dict[str, Any]], native_engine.NativeEngine]
Weight = Callable[[str, bytes, TensorType], np.ndarray]

_RESOLVE = ctypes.CFUNCTYPE(c_int64, c_char_p, c_void_p, c_size_t, c_char_p, c_void_p, c_size_t)
_WEIGHT = ctypes.CFUNCTYPE(
    c_int,
    c_char_p,
    c_void_p,
    c_size_t,
    c_int,
    c_int,
    POINTER(c_int64),
    c_void_p,
    c_size_t,
    c_void_p,
    c_size_t,
)

# C calls these for as long as the process lives.
_connected: list[object] = []


def library_path() -> Path:
    """Where the library with the ops is."""
    return Path(planish.__file__).with_name("_tf_engine.so")


@functools.cache
def ops() -> Any:
    """The module of op functions: ``planish_engine``, ``planish_ready``, ``planish_weight``.

    Raises
    ------
    DeviceError
        The library is missing, or this TensorFlow cannot load it.
    """
    import tensorflow as tf

    try:
        _share_symbols(tf)
        return tf.load_op_library(str(library_path()))
    except (tf.errors.OpError, OSError) as error:
        raise DeviceError(
            "The TensorFlow ops of Planish cannot be loaded.",
            where=str(library_path()),
            why=str(error),
            cure="Install the package with pip (a source tree: pip install -e .), which builds it.",
        ) from error


def _share_symbols(tf: Any) -> None:
    """Lets the library see TensorFlow's C API, which TensorFlow 2.16 loads for itself only."""
    library = Path(tf.sysconfig.get_lib()) / "libtensorflow_framework.so.2"
    if library.exists():
        ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)


def connect(resolve: Resolve, weight: Weight) -> None:
    """Load the ops, and say how they find their engines and weights.

    Parameters
    ----------
    resolve : callable
        ``resolve(engine, plan, settings)`` with the node's key, the plan's path or bytes, and the
        settings of the node. Called once per kernel. The caller of ``connect`` must keep the engine
        alive: one that is gone can still run its programs, but bind no new shapes.
    weight : callable
        ``weight(name, plan, type)`` gives the array with that name, of exactly this type.

    Raises
    ------
    DeviceError
        The ops cannot be loaded.
    """
    ops()
    library = ctypes.CDLL(str(library_path()))
    function = library.planish_tf_connect
    function.restype, function.argtypes = c_int, [c_void_p, _RESOLVE, _WEIGHT]
    callbacks = (_RESOLVE(_resolver(resolve)), _WEIGHT(_weight_resolver(weight)))
    first = not _connected
    _connected.append(callbacks)
    function(native_engine.engine_table(), *callbacks)
    if first:
        # TensorFlow's threads and kernels may outlive the interpreter.
        atexit.register(function, None, _RESOLVE(), _WEIGHT())


def _resolver(resolve: Resolve) -> Callable[..., int]:
    def call(engine, plan, plan_size, settings, error, error_size) -> int:
        try:
            found = resolve(
                engine.decode(), ctypes.string_at(plan, plan_size), json.loads(settings or b"{}")
            )
            return found.retained()
        except BaseException as problem:
            _log.debug("no engine %s", engine, exc_info=True)
            native.write_error(error, error_size, str(problem) or type(problem).__name__)
            return 0

    return call


def _weight_resolver(weight: Weight) -> Callable[..., int]:
    def call(name, plan, plan_size, code, rank, dims, data, nbytes, error, error_size) -> int:
        try:
            expected = TensorType(tuple(dims[:rank]), native_engine.dtype_of_code(code))
            array = weight(name.decode(), ctypes.string_at(plan, plan_size), expected)
            if DType.of(array.dtype) is not expected.dtype or array.shape != expected.shape:
                raise PlanError(
                    f"The plan holds {TensorType(array.shape, DType.of(array.dtype))}, "
                    f"the graph expects {expected}."
                )
            array = np.ascontiguousarray(array)
            ctypes.memmove(data, array.ctypes.data, nbytes)
            return native.OK
        except BaseException as problem:
            _log.debug("no weight %s", name, exc_info=True)
            native.write_error(error, error_size, str(problem) or type(problem).__name__)
            return (
                native.INVALID if isinstance(problem, (InputError, ShapeError)) else native.FAILED
            )

    return call
