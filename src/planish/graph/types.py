"""Element types and tensor types."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from functools import cached_property

import ml_dtypes
import numpy as np

from planish.graph.dims import DimLike, evaluate, product


class DType(Enum):
    """An element type; the value is the short name that dumps and plans use."""

    FLOAT64 = "f64"
    FLOAT32 = "f32"
    FLOAT16 = "f16"
    BFLOAT16 = "bf16"
    INT64 = "i64"
    INT32 = "i32"
    INT16 = "i16"
    INT8 = "i8"
    UINT64 = "u64"
    UINT32 = "u32"
    UINT16 = "u16"
    UINT8 = "u8"
    BOOL = "bool"

    @property
    def numpy(self) -> np.dtype:
        """The NumPy dtype of the same elements."""
        return _NUMPY[self]

    @property
    def size(self) -> int:
        """Bytes per element."""
        return self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        return self in _FLOATS

    @property
    def is_integer(self) -> bool:
        return self not in _FLOATS and self is not DType.BOOL

    @staticmethod
    def of(dtype: object) -> DType:
        """The element type of a NumPy dtype, or of anything ``numpy.dtype`` takes.

        Raises
        ------
        TypeError
            There is no such element type (strings, complex numbers, objects).
        """
        try:
            return _FROM_NUMPY[np.dtype(dtype)]  # type: ignore[call-overload]
        except (KeyError, TypeError):
            raise TypeError(f"no element type for dtype {dtype!r}") from None


_NUMPY = {
    DType.FLOAT64: np.dtype(np.float64),
    DType.FLOAT32: np.dtype(np.float32),
    DType.FLOAT16: np.dtype(np.float16),
    DType.BFLOAT16: np.dtype(ml_dtypes.bfloat16),
    DType.INT64: np.dtype(np.int64),
    DType.INT32: np.dtype(np.int32),
    DType.INT16: np.dtype(np.int16),
    DType.INT8: np.dtype(np.int8),
    DType.UINT64: np.dtype(np.uint64),
    DType.UINT32: np.dtype(np.uint32),
    DType.UINT16: np.dtype(np.uint16),
    DType.UINT8: np.dtype(np.uint8),
    DType.BOOL: np.dtype(np.bool_),
}
_FROM_NUMPY = {dtype: ours for ours, dtype in _NUMPY.items()}
_FLOATS = {DType.FLOAT64, DType.FLOAT32, DType.FLOAT16, DType.BFLOAT16}


@dataclass(frozen=True)
class TensorType:
    """Shape and element type of a value. Dimensions are integers or symbolic."""

    shape: tuple[DimLike, ...]
    dtype: DType

    @property
    def rank(self) -> int:
        return len(self.shape)

    @cached_property
    def elements(self) -> DimLike:
        """How many elements a tensor of this type has."""
        return product(self.shape)

    @property
    def is_static(self) -> bool:
        return all(isinstance(d, int) for d in self.shape)

    def bind(self, bindings: Mapping[str, int]) -> tuple[int, ...]:
        """The shape where each symbol has the given value."""
        return tuple(evaluate(d, bindings) for d in self.shape)

    def __str__(self) -> str:
        return f"{self.dtype.value}[{', '.join(map(str, self.shape))}]"
