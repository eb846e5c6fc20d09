"""The arrays that callers hand to an engine: checked, and never converted silently."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from planish.errors import DeviceError, InputError
from planish.graph.dims import DimLike
from planish.graph.graph import DimRange, Value
from planish.graph.types import DType
from planish.targets.target import Target


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of an engine.

    Attributes
    ----------
    name : str
    dtype : numpy.dtype
    shape : tuple
        Integers, or dimensions that print as their name ("N").
    profile : dict
        For each symbolic dimension its least, usual and greatest size.
    """

    name: str
    dtype: np.dtype
    shape: tuple[DimLike, ...]
    profile: Mapping[str, DimRange]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


def input_array(given: Any, value: Value, target: Target, stream: Any = None) -> Any:
    """A dense array of the input's dtype, on the host or the target's own; never converts silently.

    It may be read on `stream`, or right now where that is None (see `Target.foreign_array`).

    Raises
    ------
    InputError
        It is no array, or of another dtype.
    """
    array = given
    if not isinstance(array, np.ndarray):
        array = target.foreign_array(given, stream)
        if array is None:
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
    if not isinstance(array, np.ndarray):
        return array
    try:
        return np.ascontiguousarray(array) if not array.flags.c_contiguous else array
    except MemoryError as error:
        raise no_memory(f"a dense copy of input {value.name!r}", error) from error


def address_of(array: Any) -> int:
    """Where an array's elements are, on the host or a target's own memory."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.address


def output_arrays(
    infos: Sequence[TensorInfo],
    shapes: Sequence[tuple[int, ...]],
    out: Any,
    inputs: Sequence[Any],
    target: Target,
    stream: Any = None,
) -> list[Any]:
    """The arrays to write: those given, else new ones, which live where the inputs live.

    Raises
    ------
    InputError
        A given array has another shape or dtype, or is not writeable, or there is no such output.
    DeviceError
        There is no memory.
    """
    if out is None:
        if any(not isinstance(a, np.ndarray) for a in inputs):
            return [target.new_array(s, i.dtype) for s, i in zip(shapes, infos, strict=True)]
        try:
            return [np.empty(s, info.dtype) for s, info in zip(shapes, infos, strict=True)]
        except MemoryError as error:
            raise no_memory("the outputs", error) from error
    given = out if isinstance(out, Mapping) else {infos[0].name: out}
    unknown = [name for name in given if name not in {info.name for info in infos}]
    if unknown:
        raise InputError(
            f"There is no output {unknown[0]!r}",
            where="out=",
            why=f"the engine's outputs are {', '.join(map(str, infos))}",
            cure="use these names",
        )
    return [
        _output_array(given.get(info.name), info, shape, target, stream)
        for info, shape in zip(infos, shapes, strict=True)
    ]


def _output_array(
    given: Any, info: TensorInfo, shape: tuple[int, ...], target: Target, stream: Any
) -> Any:
    array = given if isinstance(given, np.ndarray) else target.foreign_array(given, stream)
    if (
        array is None
        or array.shape != shape
        or array.dtype != info.dtype
        or not (_writeable(array) if isinstance(array, np.ndarray) else array.writeable)
    ):
        raise InputError(
            f"out= for {info.name!r} must be a writeable, contiguous {info.dtype} array "
            f"of shape {shape}",
            where=f"output {info.name!r}",
            why=f"it is {describe(given)}",
            cure="pass an array of that dtype and shape for each output, or leave out out=",
        )
    return array


def _writeable(array: np.ndarray) -> bool:
    return array.flags.c_contiguous and array.flags.writeable


def no_memory(what: str, error: MemoryError) -> DeviceError:
    """The error of an allocation that failed."""
    return DeviceError(
        f"There is no memory for {what}",
        where="host memory",
        why=str(error),
        cure="use smaller inputs, or a smaller batch",
    )


def refuse_overlaps(outputs: Sequence[Any], inputs: Sequence[Any], names: Sequence[str]) -> None:
    """Kernels write outputs while inputs are still read: they must be memory of their own."""
    for i, output in enumerate(outputs):
        for other in (*inputs, *outputs[:i]):
            if _overlap(output, other):
                raise InputError(
                    f"out= for {names[i]!r} overlaps another array of this call",
                    where=f"output {names[i]!r}",
                    why="outputs are written while inputs are still read",
                    cure="pass arrays with memory of their own",
                )


def _overlap(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.may_share_memory(a, b)
    begins, sizes = zip(*((address_of(x), x.nbytes) for x in (a, b)), strict=True)
    return begins[0] < begins[1] + sizes[1] and begins[1] < begins[0] + sizes[0]


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
