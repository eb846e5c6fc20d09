"""ONNX tensors to NumPy arrays, trusting nothing: sizes are checked before memory is taken.

External data is read tensor by tensor, straight into the array, from files inside the folder of the
model and from nowhere else. That is what lets models over protobuf's 2 GB limit in.
"""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from planish.errors import ModelError, UnsupportedOpError
from planish.frontends.onnx.narrow import widened

MAX_BYTES_FROM_NOTHING = 1 << 30
"""Largest array made from a description (a sparse tensor) that is smaller than the array."""

_PACKED = {"INT4": 2, "UINT4": 2, "FLOAT4E2M1": 2, "INT2": 4, "UINT2": 4}
"""Element types of which several share a byte, by name (older `onnx` lack some)."""
_PER_BYTE = {
    TensorProto.DataType.Value(name): count
    for name, count in _PACKED.items()
    if name in TensorProto.DataType.keys()  # noqa: SIM118 (an enum wrapper, not a dict)
}


def tensor_array(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """The elements of a tensor; those of narrow types in the wider one (see `narrow`).

    Parameters
    ----------
    tensor : TensorProto
        Its data may be inside or in an external file.
    folder : Path or None
        The model's folder, in which external files must lie; None if the model was not a file.

    Raises
    ------
    ModelError
        The tensor is damaged, or its external data is missing, too short or outside the folder.
    UnsupportedOpError
        It holds strings, or another type without a NumPy equivalent here.
    """
    where = f"tensor {tensor.name!r}"
    dtype, shape = _element_type(tensor, where), _shape(tensor, where)
    if tensor.data_location == TensorProto.EXTERNAL:
        array = _read_external(tensor, dtype, shape, folder, where)
    else:
        _check_inside(tensor, dtype, shape, where)
        try:
            array = numpy_helper.to_array(tensor)
        except (ValueError, TypeError) as error:
            raise ModelError("A tensor is damaged", where=where, why=str(error)) from error
    return widened(array)


def sparse_array(sparse: onnx.SparseTensorProto, folder: Path | None) -> np.ndarray:
    """A sparse tensor as a dense array.

    Raises
    ------
    ModelError
        Indices are out of bounds, or the dense array would be absurdly large.
    """
    where = f"sparse tensor {sparse.values.name!r}"
    values, indices = tensor_array(sparse.values, folder), tensor_array(sparse.indices, folder)
    shape = tuple(sparse.dims)
    if min(shape, default=0) < 0:
        raise ModelError("A tensor has a negative dimension", where=where, why=f"shape {shape}")
    size = math.prod(shape)
    if size * values.dtype.itemsize > MAX_BYTES_FROM_NOTHING:
        raise ModelError(
            f"A sparse tensor of shape {shape} is too large to be made dense",
            where=where,
            why=f"it would take {size * values.dtype.itemsize:,} bytes",
            cure="store it as a dense tensor with external data",
        )
    try:
        flat = indices if indices.ndim == 1 else np.ravel_multi_index(tuple(indices.T), shape)
        if values.ndim != 1 or flat.shape != values.shape:
            raise ValueError(f"{values.shape} values with indices of shape {indices.shape}")
        if flat.size and not (flat.min() >= 0 and flat.max() < size):
            raise ValueError("an index is out of bounds")
    except ValueError as error:
        raise ModelError("A sparse tensor is damaged", where=where, why=str(error)) from error
    dense = np.zeros(size, values.dtype)
    dense[flat] = values
    return dense.reshape(shape)


def _element_type(tensor: TensorProto, where: str) -> np.dtype:
    if tensor.data_type == TensorProto.STRING:
        raise UnsupportedOpError(
            "Tensors of strings cannot be converted",
            where=where,
            cure="leave the text processing out of the exported model",
        )
    try:
        return onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except (KeyError, ValueError, TypeError) as error:
        raise ModelError(
            f"A tensor has the unknown element type {tensor.data_type}",
            where=where,
            why="the file is damaged, or newer than the installed onnx package",
            cure="export the model again, or upgrade onnx",
        ) from error


def _shape(tensor: TensorProto, where: str) -> tuple[int, ...]:
    shape = tuple(tensor.dims)
    if min(shape, default=0) < 0:
        raise ModelError("A tensor has a negative dimension", where=where, why=f"shape {shape}")
    return shape


def _stored_bytes(data_type: int, dtype: np.dtype, shape: Sequence[int]) -> int:
    count = math.prod(shape)
    if data_type in _PER_BYTE:
        return -(-count // _PER_BYTE[data_type])
    return count * dtype.itemsize


def _check_inside(tensor: TensorProto, dtype: np.dtype, shape: tuple[int, ...], where: str) -> None:
    """An array is only as large as the data in the file: no allocation on a mere promise."""
    if tensor.HasField("raw_data"):
        stored, wanted, unit = (
            len(tensor.raw_data),
            _stored_bytes(tensor.data_type, dtype, shape),
            "bytes",
        )
    else:
        field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
        stored, unit = len(getattr(tensor, field)), "elements"
        wanted = -(-math.prod(shape) // _PER_BYTE.get(tensor.data_type, 1))
        if dtype.kind == "c":
            wanted *= 2
    if stored != wanted:
        raise ModelError(
            "A tensor is damaged",
            where=where,
            why=f"shape {shape} needs {wanted:,} {unit}, and the file has {stored:,}",
            cure="export or download the model again",
        )


def _read_external(
    tensor: TensorProto,
    dtype: np.dtype,
    shape: tuple[int, ...],
    folder: Path | None,
    where: str,
) -> np.ndarray:
    fields = {entry.key: entry.value for entry in tensor.external_data}
    location = fields.get("location", "")
    if folder is None:
        raise ModelError(
            "The model keeps a tensor in an external file, and its folder is not known",
            where=where,
            why=f"the data is in {location!r} beside the model's file",
            cure="pass the model as a path, or load its external data first",
        )
    offset = _natural(fields.get("offset", "0"), "offset", where)
    wanted = _stored_bytes(tensor.data_type, dtype, shape)
    length = _natural(fields.get("length", str(wanted)), "length", where)
    if length != wanted:
        raise ModelError(
            "External data has the wrong length",
            where=where,
            why=f"{dtype} of shape {shape} takes {wanted:,} bytes, and the model says {length:,}",
            cure="export or download the model again",
        )
    with os.fdopen(_open_contained(folder, location, where), "rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        if offset + wanted > size:
            raise ModelError(
                "External data ends too early",
                where=where,
                why=f"bytes {offset:,} to {offset + wanted:,} of {location!r}, which has {size:,}",
                cure="download the file again; it may be cut off",
            )
        file.seek(offset)
        stored = _read_exactly(file, wanted, where)
    if tensor.data_type in _PER_BYTE:
        inline = TensorProto(data_type=tensor.data_type, dims=shape, raw_data=stored.tobytes())
        return numpy_helper.to_array(inline)
    return stored.view(dtype.newbyteorder("<")).astype(dtype, copy=False).reshape(shape)


def _read_exactly(file, count: int, where: str) -> np.ndarray:
    try:
        buffer = np.empty(count, np.uint8)
    except MemoryError as error:
        raise ModelError(
            f"There is no memory for a tensor of {count:,} bytes", where=where
        ) from error
    view, done = memoryview(buffer.data), 0
    while done < count:
        read = file.readinto(view[done:])
        if not read:
            raise ModelError("External data ends too early", where=where, why="the file shrank")
        done += read
    return buffer


def _natural(text: str, what: str, where: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ModelError(
            f"The {what} of external data is not a whole number of at least 0",
            where=where,
            why=f"it is {text[:40]!r}",
        )
    return int(text)


def _open_contained(folder: Path, location: str, where: str) -> int:
    """A descriptor of a regular file that lies inside `folder`, whatever links lead there."""

    def refuse(why: str) -> ModelError:
        return ModelError(
            "External data lies outside the model's folder",
            where=f"{where}, external file {location[:200]!r}",
            why=why,
            cure="keep the data file itself in the model's folder",
        )

    # Windows separators and drives are refused everywhere: a model must mean the same anywhere
    parts = location.replace("\\", "/").split("/")
    if not location or "\0" in location:
        raise refuse("the path is empty or not a path")
    if location.startswith(("/", "\\")) or ":" in parts[0] or ".." in parts:
        raise refuse("the path is absolute or leads upwards")
    root = Path(os.path.realpath(folder))
    path = Path(os.path.realpath(root / location))
    if not path.is_relative_to(root):
        raise refuse(f"a symbolic link leads to {path}")
    try:
        descriptor = os.open(
            path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        )
    except OSError as error:
        raise ModelError(
            "The external data of the model cannot be opened",
            where=f"{where}, external file {location[:200]!r}",
            why=error.strerror or str(error),
            cure="put the data file beside the model, under the name that it was saved with",
        ) from error
    status = os.fstat(descriptor)
    reason = ""
    if not stat.S_ISREG(status.st_mode):
        reason = "it is not a regular file"
    elif status.st_nlink > 1:
        reason = f"it has {status.st_nlink} hard links, so it may be another file's content"
    if reason:
        os.close(descriptor)
        raise refuse(reason)
    return descriptor
