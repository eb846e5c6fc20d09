"""The LLVM types of dtypes, in memory and in registers, and constants of them.

Memory holds elements as NumPy lays them out; in registers half-precision floats are float32 and
bools are i1.
"""

from __future__ import annotations

import math
import struct

import llvmlite.ir as ir

from planish.graph.types import DType

I1, I8, I16, I32, I64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
F16, F32, F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()
PTR = ir.PointerType()

_MEMORY = {
    DType.FLOAT64: F64,
    DType.FLOAT32: F32,
    DType.FLOAT16: F16,
    DType.BFLOAT16: I16,
    DType.INT64: I64,
    DType.INT32: I32,
    DType.INT16: I16,
    DType.INT8: I8,
    DType.UINT64: I64,
    DType.UINT32: I32,
    DType.UINT16: I16,
    DType.UINT8: I8,
    DType.BOOL: I8,
}
_REGISTER = {**_MEMORY, DType.FLOAT16: F32, DType.BFLOAT16: F32, DType.BOOL: I1}


def memory_type(dtype: DType, lanes: int = 1) -> ir.Type:
    """The LLVM type of an element, or of a vector of them, in memory."""
    return vector_type(_MEMORY[dtype], lanes)


def register_type(dtype: DType, lanes: int = 1) -> ir.Type:
    """The LLVM type of an element, or of a vector of them, in registers."""
    return vector_type(_REGISTER[dtype], lanes)


def vector_type(element: ir.Type, lanes: int) -> ir.Type:
    """The type of so many elements; of one the element's own."""
    return element if lanes == 1 else ir.VectorType(element, lanes)


def mangled(type: ir.Type) -> str:
    """How LLVM spells a type inside an intrinsic's name."""
    if isinstance(type, ir.VectorType):
        return f"v{type.count}{mangled(type.element)}"
    if isinstance(type, ir.IntType):
        return f"i{type.width}"
    return {"half": "f16", "float": "f32", "double": "f64"}[str(type)]


def constant(value: float | int | bool, dtype: DType, lanes: int = 1) -> ir.Constant:
    """A constant of the dtype's register type, the same in all lanes."""
    element = register_type(dtype)
    if element in (F32, F64):
        if element == F32:  # llvmlite wants a float32 to be representable exactly
            value = struct.unpack("f", struct.pack("f", _clamp_f32(float(value))))[0]
        scalar = ir.Constant(element, float(value))
    else:
        width = element.width
        scalar = ir.Constant(element, int(value) & ((1 << width) - 1))
    if lanes == 1:
        return scalar
    return ir.Constant(ir.VectorType(element, lanes), [scalar] * lanes)


def _clamp_f32(value: float) -> float:
    """Doubles beyond float32's range become infinite, as NumPy's cast does."""
    limit = 3.4028235677973366e38
    if value != value or abs(value) < limit:
        return value
    return math.copysign(math.inf, value)
