"""What Triton's interpreter lacks or has wrong, in NumPy: for `run`.

It knows none of CUDA's mathematical functions, cuts floats to bfloat16 instead of rounding them,
and takes integers that wrap around for a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np

from planish.targets.cuda.codegen.compile import triton

_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "acos": np.arccos,
    "acosh": np.arccosh,
    "asin": np.arcsin,
    "asinh": np.arcsinh,
    "atan": np.arctan,
    "atan2": np.arctan2,
    "atanh": np.arctanh,
    "ceil": np.ceil,
    "copysign": np.copysign,
    "cos": np.cos,
    "cosh": np.cosh,
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "floor": np.floor,
    "fmod": np.fmod,
    "log": np.log,
    "log1p": np.log1p,
    "log2": np.log2,
    "mul_rn": np.multiply,
    "pow": np.power,
    "rint": np.rint,
    "sin": np.sin,
    "sinh": np.sinh,
    "sqrt": np.sqrt,
    "tan": np.tan,
    "tanh": np.tanh,
    "trunc": np.trunc,
}


def _float_to_int(x: np.ndarray) -> np.ndarray:
    """As a GPU's conversion: to the nearest, saturating, 0 for NaN."""
    limits = np.iinfo(np.int32)
    return np.nan_to_num(np.clip(np.rint(x.astype(np.float64)), limits.min, limits.max)).astype(
        np.int32
    )


_TO_INT32: dict[str, Callable[..., np.ndarray]] = {"float2int_rn": _float_to_int}


def libdevice() -> SimpleNamespace:
    """Stands for `triton.language.extra.libdevice` in kernels that are interpreted."""
    triton()
    from triton.runtime.interpreter import TensorHandle, interpreter_semantic, tl

    def interpreted(function: Callable[..., np.ndarray], to: Any = None) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            tensors = [interpreter_semantic.to_tensor(a) for a in arguments]
            kind = tensors[0].type.scalar
            assert kind in (tl.float32, tl.float64), f"no function of CUDA's takes {kind}"
            assert all(t.type.scalar == kind for t in tensors), "operands of different types"
            data = function(*(t.handle.data for t in tensors))
            blocks = [t.type for t in tensors if t.type.is_block()]
            made = to or kind
            result = tl.block_type(made, list(data.shape)) if blocks else made
            return tl.tensor(TensorHandle(data, made), result)

        return call

    functions = {name: interpreted(f) for name, f in _FUNCTIONS.items()}
    functions |= {name: interpreted(f, tl.int32) for name, f in _TO_INT32.items()}
    return SimpleNamespace(**functions)


@contextmanager
def corrected_interpreter() -> Iterator[None]:
    """The interpreter with what it has wrong made right.

    Casts round as a GPU does, integers may wrap around, loops may have computed bounds, bfloat16 is
    multiplied as such, and comparisons of scalars are spread as such.
    """
    triton()
    from triton.runtime import interpreter
    from triton.runtime.interpreter import (
        InterpreterOptions,
        TensorHandle,
        interpreter_builder,
        tl,
    )

    original = interpreter_builder.cast_impl

    def cast(source: Any, kind: Any) -> Any:
        to = kind.scalar
        if to == tl.bfloat16 and source.data.dtype == np.float32:
            return TensorHandle(source.data.astype(ml_dtypes.bfloat16).view(np.uint16), to)
        if to == tl.float32 and source.dtype.scalar == tl.bfloat16 and source.data.itemsize == 2:
            return TensorHandle(source.data.view(ml_dtypes.bfloat16).astype(np.float32), to)
        return original(source, kind)

    plain_dot = interpreter_builder.create_dot

    def dot(a: Any, b: Any, *rest: Any) -> Any:  # it would multiply the bits of bfloat16
        if a.dtype.scalar == tl.bfloat16:
            a, b = cast(a, tl.float32), cast(b, tl.float32)
        return plain_dot(a, b, *rest)

    patch_tensor = interpreter._patch_lang_tensor

    def patch(tensor: Any, scope: Any) -> None:
        patch_tensor(tensor, scope)
        tensor.__index__ = lambda self: self.handle.data.item()  # it holds an array of one element

    def fma(a: Any, b: Any, c: Any) -> Any:  # it would round the product
        wide = (x.data.astype(np.float64) for x in (a, b, c))
        first, second, third = wide
        return TensorHandle((first * second + third).astype(a.data.dtype), a.dtype.scalar)

    plain_splat = interpreter_builder.create_splat

    def splat(shape: Any, scalar: Any) -> Any:  # it would give a comparison its operands' type
        if scalar.data.dtype == np.bool_:
            return TensorHandle(np.full(shape.shape, scalar.data.item()), tl.int1)
        return plain_splat(shape, scalar)

    options = interpreter_builder.options
    interpreter._patch_lang_tensor = patch
    interpreter_builder.cast_impl = cast
    interpreter_builder.create_dot = dot
    interpreter_builder.create_fma = fma
    interpreter_builder.create_splat = splat
    interpreter_builder.options = InterpreterOptions(sanitize_overflow=False)
    try:
        yield
    finally:
        interpreter._patch_lang_tensor = patch_tensor
        del interpreter_builder.cast_impl, interpreter_builder.create_dot
        del interpreter_builder.create_fma, interpreter_builder.create_splat
        interpreter_builder.options = options
