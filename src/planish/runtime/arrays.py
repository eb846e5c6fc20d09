"""The arrays that callers hand to an engine: checked, and never converted silently."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from planish.errors import DeviceError, InputError
from planish.graph.graph import Value
from planish.graph.types import DType


def input_array(given: Any, value: Value) -> np.ndarray:
    """A dense array of the input's dtype; never converts silently."""
    array = given
    if not isinstance(array, np.ndarray):
        array = _exported(given)
        if array is None:
            raise InputError(
                f"Input {value.name!r} is a {type(given).__name__}, not an array",
                where=f"input {value.name!r}",
                why="inputs are NumPy arrays, or objects with DLPack",
                cure="pass a NumPy array",
            )
    if array.dtype != value.dtype.numpy:
        raise InputError(
            f"Input {value.name!r} has dtype {array.dtype}, not {value.dtype.numpy}",
            where=f"input {value.name!r}",
            why="arrays are not converted silently",
            cure=f"pass array.astype({_dtype_name(value.dtype)})",
        )
    try:
        return np.ascontiguousarray(array) if not array.flags.c_contiguous else array
    except MemoryError as error:
        raise no_memory(f"a dense copy of input {value.name!r}", error) from error


def no_memory(what: str, error: MemoryError) -> DeviceError:
    """The error of an allocation that failed."""
    return DeviceError(
        f"There is no memory for {what}",
        where="host memory",
        why=str(error),
        cure="use smaller inputs, or a smaller batch",
    )


def refuse_overlaps(
    outputs: Sequence[np.ndarray], inputs: Sequence[np.ndarray], names: Sequence[str]
) -> None:
    """Kernels write outputs while inputs are still read: they must be memory of their own."""
    for i, output in enumerate(outputs):
        for other in (*inputs, *outputs[:i]):
            if np.may_share_memory(output, other):
                raise InputError(
                    f"out= for {names[i]!r} overlaps another array of this call",
                    where=f"output {names[i]!r}",
                    why="outputs are written while inputs are still read",
                    cure="pass arrays with memory of their own",
                )


def describe(array: Any) -> str:
    """An argument in a few words."""
    if isinstance(array, np.ndarray):
        return f"{array.dtype} of shape {array.shape}"
    return f"a {type(array).__name__}"


def _exported(given: Any) -> np.ndarray | None:
    """The array that another library's object shows through DLPack or ``__array__``, if any."""
    if hasattr(given, "__dlpack__"):
        try:
            return np.from_dlpack(given)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            # on another device, or of a dtype that DLPack or NumPy lacks
            if not hasattr(given, "__array__"):
                raise InputError(
                    f"A {type(given).__name__} cannot be read on the CPU",
                    where="the arguments of the engine",
                    why=str(error),
                    cure="copy it to the CPU, or pass a NumPy array",
                ) from error
    return np.asarray(given) if hasattr(given, "__array__") else None


def _dtype_name(dtype: DType) -> str:
    return f"np.{dtype.numpy.name}"
