"""Attention as ONNX Runtime's optimizer writes it: Attention, MultiHeadAttention, RotaryEmbedding.

Caches of past keys and values are not converted: their lengths change from run to run.
"""

from __future__ import annotations

import math

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.contrib import DOMAIN
from planish.frontends.onnx.converters.layout import iota, reshaped
from planish.frontends.onnx.registry import converter
from planish.graph import DimLike, DType, Value
from planish.ops import Concat, Gather, MatMul, Select, Slice, Softmax, Transpose, ew


@converter("Attention", domain=DOMAIN)
def _attention(c: Conversion) -> Value:
    """Projects its input to queries, keys and values, and attends."""
    x, weights, bias = c.input(0), c.input(1), c.optional(2)
    _refuse(c, (4, "past"), (6, "past_sequence_length"))
    if c.attr("do_rotary", 0):
        raise c.unsupported("it rotates its queries and keys")
    heads, total = c.attr("num_heads", 1), weights.shape[1]
    if not isinstance(total, int):
        raise c.unsupported("the size of its weights is not fixed")
    sizes = c.attr("qkv_hidden_sizes", (total // 3,) * 3)
    projected = c.aux(MatMul(), x, weights)
    if bias is not None:
        projected = c.aux(ew.Add(), projected, bias)
    parts, start = [], 0
    for size in sizes:
        parts.append(_columns(c, projected, start, size))
        start += size
    q, k, v = (_heads(c, part, heads) for part in parts)
    return _attended(c, q, k, v, c.optional(3), c.optional(5))


@converter("MultiHeadAttention", domain=DOMAIN)
def _multi_head_attention(c: Conversion) -> Value:
    """Attention of queries, keys and values ``[batch, length, size]``."""
    _refuse(c, (6, "past_key"), (7, "past_value"), (8, "past_sequence_length"))
    heads = c.attr("num_heads", 1)
    values = [c.optional(i) for i in range(3)]
    if any(v is None or v.type.rank != 3 for v in values):
        raise c.unsupported("its queries, keys and values are packed, or split into heads")
    bias, start = c.optional(3), 0
    parts = []
    for value in values:
        assert value is not None  # as was just checked
        size = value.shape[-1]
        if bias is not None:
            if not isinstance(size, int):
                raise c.unsupported(f"the size {size} is not fixed")
            value = c.aux(ew.Add(), value, _columns(c, bias, start, size))
            start += size
        parts.append(_heads(c, value, heads))
    q, k, v = parts
    return _attended(c, q, k, v, c.optional(4), c.optional(5))


def _refuse(c: Conversion, *inputs: tuple[int, str]) -> None:
    for index, name in inputs:
        if c.optional(index) is not None:
            raise c.unsupported(f"it has the input {name}", cure="export the model without a cache")


def _columns(c: Conversion, x: Value, start: int, size: int) -> Value:
    rank = x.type.rank
    begin, shape = (*(0,) * (rank - 1), start), (*x.shape[:-1], size)
    return c.aux(Slice(begin, shape, (1,) * rank), x)


def _heads(c: Conversion, x: Value, heads: int) -> Value:
    """``[batch, length, heads * size]`` as ``[batch, heads, length, size]``."""
    batch, length, size = x.shape
    if not isinstance(size, int) or size % heads:
        raise c.shape_error(f"{c.node.op_type} splits {size} into {heads} heads")
    split = reshaped(c, x, (batch, length, heads, size // heads))
    return c.aux(Transpose((0, 2, 1, 3)), split)


def _attended(
    c: Conversion, q: Value, k: Value, v: Value, mask: Value | None, bias: Value | None
) -> Value:
    """``softmax(q kᵀ scale + bias, masked) v``, the heads joined again."""
    size = q.shape[-1]
    assert isinstance(size, int)
    scale = c.attr("scale", 0.0) or 1 / math.sqrt(size)
    scores = c.aux(MatMul(transpose_b=True), q, k)
    scores = c.aux(ew.Mul(), scores, c.scalar_like(scale, scores))
    if bias is not None:
        scores = c.aux(ew.Add(), scores, bias)
    if mask is not None:  # by addition: where all is masked, the scores still decide
        zero = c.constant(0, scores.dtype)
        lowest = c.constant(c.attr("mask_filter_value", -10000.0), scores.dtype)
        added = c.aux(Select(), _allowed(c, mask, scores), zero, lowest)
        scores = c.aux(ew.Add(), scores, added)
    if c.attr("unidirectional", 0):
        if q.shape[2] != k.shape[2]:
            raise c.unsupported("it is unidirectional over keys of another number than queries")
        rows, columns = iota(c, q.shape[2]), iota(c, k.shape[2])
        later = c.aux(ew.GreaterEqual(), reshaped(c, rows, (q.shape[2], 1)), columns)
        low = c.constant(-math.inf, scores.dtype)
        scores = c.aux(Select(), later, scores, low)
    mixed = c.add(MatMul(), c.aux(Softmax(3), scores), v)
    joined = c.aux(Transpose((0, 2, 1, 3)), mixed)
    batch, length, heads, part = joined.shape
    return reshaped(c, joined, (batch, length, heads * part))


def _allowed(c: Conversion, mask: Value, scores: Value) -> Value:
    """Where the mask lets attention through, as it broadcasts to the scores."""
    batch, _, rows, columns = scores.shape
    zero = c.constant(0, mask.dtype)
    wide: tuple[DimLike, ...]
    if mask.shape == (batch, columns):
        wide = (batch, 1, 1, columns)
    elif mask.shape == (batch, rows, columns):
        wide = (batch, 1, rows, columns)
    elif mask.shape == (batch,):  # how many keys count
        ends = c.cast(reshaped(c, mask, (batch, 1, 1, 1)), DType.INT64)
        return c.aux(ew.Less(), iota(c, columns), ends)
    else:
        raise c.unsupported(f"its mask is {mask.type}")
    return c.aux(ew.Greater(), reshaped(c, mask, wide), zero)


@converter("RotaryEmbedding", domain=DOMAIN)
def _rotary_embedding(c: Conversion) -> Value:
    """Rotates pairs of elements by angles that grow with the position."""
    x, positions, cosines, sines = (c.input(i) for i in range(4))
    if c.attr("rotary_embedding_dim", 0) or c.attr("is_packed_batching", 0):
        raise c.unsupported("it rotates a part of each head, or a packed batch")
    half = cosines.shape[-1]
    if not isinstance(half, int):
        raise c.unsupported(f"the size {half} of its table is not fixed")
    flat = x.type.rank == 3
    batch, length = x.shape[0], x.shape[1 if flat else 2]
    heads: DimLike = x.shape[-1] // (2 * half) if flat else x.shape[1]
    rows = x
    if flat:
        split = reshaped(c, x, (batch, length, heads, 2 * half))
        rows = c.aux(Transpose((0, 2, 1, 3)), split)
    if positions.shape in ((), (1,)) and positions.shape != (batch, length):
        offset = reshaped(c, c.cast(positions, DType.INT64), ())
        places = reshaped(c, c.aux(ew.Add(), iota(c, length), offset), (1, length))
    else:
        places = positions
    angles = [
        reshaped(c, v, (v.shape[0], 1, length, half))
        for v in (c.aux(Gather(0), table, places) for table in (cosines, sines))
    ]
    rotated = _rotated(c, rows, angles[0], angles[1], bool(c.attr("interleaved", 0)))
    if not flat:
        return rotated
    return reshaped(c, c.aux(Transpose((0, 2, 1, 3)), rotated), x.shape)


def _rotated(c: Conversion, x: Value, cos: Value, sin: Value, interleaved: bool) -> Value:
    """Pairs are neighbours if `interleaved`, else an element of each half."""
    rank, half = x.type.rank, cos.shape[-1]
    size = (*x.shape[:-1], half)
    assert isinstance(half, int)
    step = 2 if interleaved else 1
    a, b = (
        c.aux(Slice((*(0,) * (rank - 1), start), size, (*(1,) * (rank - 1), step)), x)
        for start in ((0, 1) if interleaved else (0, half))
    )
    real = c.aux(ew.Sub(), c.aux(ew.Mul(), a, cos), c.aux(ew.Mul(), b, sin))
    imaginary = c.aux(ew.Add(), c.aux(ew.Mul(), a, sin), c.aux(ew.Mul(), b, cos))
    if not interleaved:
        return c.add(Concat(rank - 1), real, imaginary)
    pairs = [reshaped(c, v, (*size, 1)) for v in (real, imaginary)]
    return reshaped(c, c.add(Concat(rank), *pairs), x.shape)
