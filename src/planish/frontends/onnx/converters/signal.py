"""Fourier transforms of a known length, as products with a constant matrix.

The transform of a signal of length n takes n² multiply-adds that way, and not n log n. For the
lengths that models of sound use (frames of some hundred samples) a matrix product is no slower than
a fast transform, and it is one kernel.
"""

from __future__ import annotations

import numpy as np

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import reshaped, transposed
from planish.frontends.onnx.registry import converter
from planish.graph import DimLike, DType, Value
from planish.graph.dims import floordiv, product
from planish.ops import Conv, Gather, MatMul, Pad, Slice, ew, normalize_axis

LARGEST_MATRIX = 1 << 24
"""Elements of the constant matrix of a transform."""


def _transform(length: int, parts: int, bins: int, sign: int) -> np.ndarray:
    """``[length, parts, bins, 2]``: what each real or imaginary part adds to each bin's two parts.

    `parts` is 1 for real signals and 2 for complex ones; `sign` is -1 for the transform and 1 for
    its inverse, which is not divided by the length yet.
    """
    # the product of the indices is reduced before it becomes an angle: no digits are lost
    angles = sign * 2 * np.pi / length * (np.outer(np.arange(length), np.arange(bins)) % length)
    cos, sin = np.cos(angles), np.sin(angles)
    matrix = np.empty((length, parts, bins, 2))
    matrix[:, 0, :, 0], matrix[:, 0, :, 1] = cos, sin
    if parts == 2:
        matrix[:, 1, :, 0], matrix[:, 1, :, 1] = -sin, cos
    return matrix


def _real_inverse(length: int, parts: int, bins: int) -> np.ndarray:
    """``[bins, parts, length, 1]``: a real signal from one side of its spectrum."""
    matrix = _transform(length, parts, length, 1)[:bins, :, :, :1]
    mirrored = np.arange(bins) * 2 % length != 0  # these bins stand for their mirror images too
    matrix[mirrored] *= 2
    return matrix


def _check_matrix(c: Conversion, elements: int) -> None:
    if elements > LARGEST_MATRIX:
        raise c.unsupported(f"its matrix would have {elements:,} elements")


@converter("DFT")
def _dft_along_attribute(c: Conversion) -> Value:
    return _dft(c, c.axis(c.input(0).type.rank, 1))


@converter("DFT", since=20)
def _dft_along_input(c: Conversion) -> Value:
    axis = c.integers(2, "the axis")[0] if c.optional(2) is not None else -2
    return _dft(c, normalize_axis(axis, c.input(0).type.rank))


def _dft(c: Conversion, axis: int) -> Value:
    x, rank = c.input(0), c.input(0).type.rank
    parts = x.shape[-1]
    if axis == rank - 1 or parts not in (1, 2):
        raise c.shape_error(f"DFT of {x.type} along axis {axis}")
    inverse, one_sided = bool(c.attr("inverse", 0)), bool(c.attr("onesided", 0))
    dim = x.shape[axis]
    default: DimLike = 2 * (dim - 1) if inverse and one_sided else dim
    length = c.integers(1, "its length")[0] if c.optional(1) is not None else default
    if not isinstance(length, int) or not isinstance(parts, int):
        raise c.unsupported(f"its length {length} is not fixed", cure="fix it with inputs=")
    if length < 1:
        raise c.shape_error(f"DFT of length {length}")
    half = length // 2 + 1
    taken = half if inverse and one_sided else length
    _check_matrix(c, taken * parts * length * 2)
    if not inverse:
        matrix = _transform(length, parts, half if one_sided else length, -1)
    elif one_sided:
        matrix = _real_inverse(length, parts, taken) / length
    else:
        matrix = _transform(length, parts, length, 1) / length
    # the axis before the parts, so that both are the rows of the matrix
    order = [i for i in range(rank) if i not in (axis, rank - 1)] + [axis, rank - 1]
    rows = _fitted(c, transposed(c, x, order), taken)
    outer, inner, last = rows.shape[:-2], taken * parts, matrix.shape[2:]
    flat = reshaped(c, rows, (product(outer), inner))
    weights = c.constant(matrix.reshape(inner, -1), x.dtype)
    y = reshaped(c, c.add(MatMul(), flat, weights), (*outer, *last))
    return transposed(c, y, [order.index(i) for i in range(rank)])


def _fitted(c: Conversion, x: Value, length: int) -> Value:
    """``[..., n, parts]`` cut or padded with zeros to `length`."""
    dim, rank = x.shape[-2], x.type.rank
    if dim == length:
        return x
    if not isinstance(dim, int):
        raise c.unsupported(f"the dimension {dim} is not fixed", cure="fix it with inputs=")
    if dim > length:
        size = (*x.shape[:-2], length, x.shape[-1])
        return c.aux(Slice((0,) * rank, size, (1,) * rank), x)
    return c.aux(Pad(((0, 0),) * (rank - 2) + ((0, length - dim), (0, 0))), x)


@converter("STFT")
def _stft(c: Conversion) -> Value:
    """Transforms of overlapping frames: a convolution, or a product where the window is data."""
    signal, window = c.input(0), c.optional(2)
    (step,) = c.integers(1, "the step between frames")
    if signal.type.rank == 2:
        signal = reshaped(c, signal, (*signal.shape, 1))
    if signal.type.rank != 3 or signal.shape[-1] not in (1, 2) or step < 1:
        raise c.shape_error(f"STFT of {signal.type} in steps of {step}")
    length = _frame_length(c, signal, window)
    parts = int(signal.shape[-1])  # type: ignore[arg-type]
    one_sided = bool(c.attr("onesided", 1))
    if one_sided and parts == 2:
        raise c.shape_error("STFT of a complex signal cannot be one-sided")
    bins = length // 2 + 1 if one_sided else length
    _check_matrix(c, length * parts * bins * 2)
    matrix = _transform(length, parts, bins, -1)
    frames = floordiv(signal.shape[1] - length, step) + 1
    shape = (signal.shape[0], frames, bins, 2)
    known = None if window is None else c.known(window)
    if window is None or known is not None:
        if known is not None:
            matrix *= known.astype(np.float64)[:, None, None, None]
        filters = c.constant(matrix.reshape(length, parts, bins * 2), signal.dtype)
        op = Conv((step,), ((0, 0),), (1,), 1)
        return reshaped(c, c.add(op, signal, filters), shape)
    if not isinstance(frames, int):
        raise c.unsupported("its window depends on the data, and the signal's length is not fixed")
    _check_matrix(c, frames * length)
    places = step * np.arange(frames)[:, None] + np.arange(length)
    framed = c.aux(Gather(1), signal, c.constant(places, DType.INT64))
    framed = c.aux(ew.Mul(), framed, reshaped(c, window, (length, 1)))
    flat = reshaped(c, framed, (signal.shape[0] * frames, length * parts))
    weights = c.constant(matrix.reshape(length * parts, bins * 2), signal.dtype)
    return reshaped(c, c.add(MatMul(), flat, weights), shape)


def _frame_length(c: Conversion, signal: Value, window: Value | None) -> int:
    length: DimLike = signal.shape[1]
    if window is not None:
        (length,) = window.shape
    if c.optional(3) is not None:
        (length,) = c.integers(3, "the length of frames")
    if not isinstance(length, int):
        raise c.unsupported(f"the length {length} of its frames is not fixed")
    if window is not None and window.shape != (length,):
        raise c.unsupported(f"its window {window.type} is not as long as its frames of {length}")
    return length
