"""Arrays as a safetensors blob: the weights of a plan file, ready to be used where they lie.

The layout is that of the safetensors format (a length, a JSON table, the bytes), so that its own
tools read a plan's weights too. Every array starts at a multiple of `ALIGNMENT` bytes, so that a
mapped file needs no copy; the format allows no holes, so the gaps are tensors of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from planish.errors import PlanError
from planish.graph.types import DType

ALIGNMENT = 64
PADDING = ".padding."
"""Names of the tensors that fill gaps start so."""

_CODES = {
    DType.FLOAT64: "F64",
    DType.FLOAT32: "F32",
    DType.FLOAT16: "F16",
    DType.BFLOAT16: "BF16",
    DType.INT64: "I64",
    DType.INT32: "I32",
    DType.INT16: "I16",
    DType.INT8: "I8",
    DType.UINT64: "U64",
    DType.UINT32: "U32",
    DType.UINT16: "U16",
    DType.UINT8: "U8",
    DType.BOOL: "BOOL",
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


def pieces(arrays: Mapping[str, np.ndarray]) -> Iterator[bytes | memoryview]:
    """The blob in pieces, in order; the same arrays give the same bytes."""
    table: dict[str, Any] = {}
    body: list[bytes | memoryview] = []
    position = 0
    for name, array in arrays.items():
        gap = -position % ALIGNMENT
        if gap:
            ends = [position, position + gap]
            table[f"{PADDING}{len(table)}"] = {"dtype": "U8", "shape": [gap], "data_offsets": ends}
            body.append(bytes(gap))
            position += gap
        dense = np.asarray(array, order="C")
        table[name] = {
            "dtype": _CODES[DType.of(dense.dtype)],
            "shape": list(dense.shape),
            "data_offsets": [position, position + dense.nbytes],
        }
        body.append(dense.reshape(-1).view(np.uint8).data)
        position += dense.nbytes
    head = json.dumps(table, separators=(",", ":")).encode()
    head += b" " * (-(8 + len(head)) % ALIGNMENT)
    yield len(head).to_bytes(8, "little")
    yield head
    yield from body


def read(blob: memoryview) -> dict[str, np.ndarray]:
    """The arrays of a blob, as read-only views of it.

    Raises
    ------
    PlanError
        The blob is not what `pieces` writes; nothing was allocated for it.
    """
    if len(blob) < 8:
        raise PlanError("The weights end early")
    size = int.from_bytes(blob[:8], "little")
    if size > len(blob) - 8:
        raise PlanError("The weights end early", why=f"their table should be {size} bytes long")
    try:
        table = json.loads(bytes(blob[8 : 8 + size]))
    except (ValueError, RecursionError) as error:
        raise PlanError("The table of the weights cannot be read", why=str(error)) from error
    if not isinstance(table, dict):
        raise PlanError("The table of the weights is not a table")
    body = blob[8 + size :]
    arrays: dict[str, np.ndarray] = {}
    position = 0
    for name, entry in table.items():
        array, position = _array(name, entry, body, position)
        if not name.startswith(PADDING):
            arrays[name] = array
    if position != len(body):
        raise PlanError("The weights are not of the size that their table states")
    return arrays


def _array(name: str, entry: Any, body: memoryview, position: int) -> tuple[np.ndarray, int]:
    """A tensor that starts where the last one ended, and where it ends."""
    match entry:
        case {"dtype": str(code), "shape": [*shape], "data_offsets": [int(start), int(end)]} if (
            code in _DTYPES and all(type(n) is int and n >= 0 for n in shape) and len(shape) <= 64
        ):
            dtype = _DTYPES[code].numpy
        case _:
            raise PlanError("A weight is described wrongly", where=f"weight {name!r}")
    size = math.prod(shape) * dtype.itemsize
    if start != position or end != start + size or end > len(body):
        raise PlanError(
            "A weight is not where the table of the weights says",
            where=f"weight {name!r}",
            why=f"it takes {size} bytes and is said to take {start} to {end} of {len(body)}",
        )
    array = np.frombuffer(body[start:end], dtype).reshape(shape)
    if dtype == np.bool_ and np.any(array.view(np.uint8) > 1):
        raise PlanError("A boolean weight has bytes that are no booleans", where=f"weight {name!r}")
    return array, end
