"""Arrays of other libraries on the GPU: through DLPack, else through ``__cuda_array_interface__``.

Both say on which stream an array is written. DLPack is told where it will be read, and sees to it;
the other protocol names a stream, which is waited for here. Without one of its own a caller waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from planish.errors import DeviceError, InputError
from planish.targets.base import dense_strides
from planish.targets.cuda import dlpack
from planish.targets.cuda.driver import LEGACY_STREAM, Gpu
from planish.targets.cuda.memory import DeviceArray
from planish.targets.cuda.torch_tensors import Tensors


def read(tensors: Tensors, given: Any, stream: Any) -> DeviceArray | None:
    """An array on a GPU, to be used on a stream, or now where that is None; None if it is no such.

    Raises
    ------
    DeviceError
        It is not dense, or lies on another GPU.
    InputError
        It cannot be had: of an unknown type, or its library refuses.
    """
    if isinstance(given, DeviceArray):
        given.ready_for(stream)
        return given
    seen = tensors.find(given, stream)
    if seen is not None:
        return seen
    gpu = tensors.gpu
    where = getattr(given, "__dlpack_device__", None)
    if where is not None:
        kind, number = where()
        if kind not in (dlpack.CUDA, dlpack.CUDA_MANAGED):
            return None
        if number != gpu.ordinal:
            raise _elsewhere(gpu, int(number))
        array = _from_dlpack(gpu, given, stream)
        tensors.remember(given, array)
        return array
    described = getattr(given, "__cuda_array_interface__", None)
    return None if described is None else _from_interface(gpu, given, described, stream)


def _from_dlpack(gpu: Gpu, given: Any, stream: Any) -> DeviceArray:
    reader = gpu.stream if stream is None else stream
    handle = int(gpu.handle(reader)) or LEGACY_STREAM
    try:
        try:
            capsule = given.__dlpack__(stream=handle, max_version=dlpack.VERSION)
        except TypeError:  # of before DLPack 1.0
            capsule = given.__dlpack__(stream=handle)
        found = dlpack.read(capsule)
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"A {type(given).__name__} on the GPU cannot be read through DLPack",
            where="the arguments of the engine",
            why=f"its library refuses ({error})",
            cure="pass it detached and of a dtype that the engine names",
        ) from error
    if stream is None:
        reader.sync()
    if found.strides is not None:
        _require_dense(found.shape, found.strides)
    # the capsule keeps the memory
    return DeviceArray(
        gpu, found.shape, found.dtype, found.address, capsule, writeable=not found.read_only
    )


def _from_interface(gpu: Gpu, given: Any, described: dict[str, Any], stream: Any) -> DeviceArray:
    shape, dtype = tuple(described["shape"]), np.dtype(described["typestr"])
    address, read_only = described["data"]
    number = gpu.device_of(address) if address else gpu.ordinal
    if number != gpu.ordinal:
        raise _elsewhere(gpu, number)
    strides = described.get("strides")
    if strides is not None:
        _require_dense(shape, [s // dtype.itemsize for s in strides])
    writer = described.get("stream")
    if writer is not None and (stream is None or int(gpu.handle(stream)) != writer):
        if stream is None:
            gpu.wait(gpu.wrap_stream(writer))
        else:
            stream.wait(gpu.wrap_stream(writer))
    return DeviceArray(gpu, shape, dtype, int(address or 0), given, writeable=not read_only)


def _require_dense(shape: tuple[int, ...], strides: Sequence[int]) -> None:
    dense = _dense(shape)
    if tuple(strides) == dense or 0 in shape:
        return
    if any(s != d and n != 1 for n, s, d in zip(shape, strides, dense, strict=True)):
        raise DeviceError(
            "An array on the GPU is not dense",
            where=f"shape {shape}, strides {tuple(strides)} elements",
            why="kernels read inputs as they would lie in a new array",
            cure="pass a contiguous copy (.contiguous() in PyTorch)",
        )


_dense = lru_cache(dense_strides)


def _elsewhere(gpu: Gpu, number: int) -> DeviceError:
    return DeviceError(
        f"An array lies on cuda:{number}, and the engine runs on cuda:{gpu.ordinal}",
        where="the arguments of the engine",
        why="kernels read inputs where they lie",
        cure=f"copy it to cuda:{gpu.ordinal}, or load the plan with device='cuda:{number}'",
    )
