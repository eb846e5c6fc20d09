"""Graphs of attention in the forms in which frameworks write it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from planish.fusion.attention import MIDDLE
from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph.dims import DimLike
from planish.graph.graph import Graph, Value
from planish.graph.types import DType, TensorType
from planish.ops.elementwise import Cast, Select, ew
from planish.ops.matmul import MatMul
from planish.ops.normalization import QuantizedSoftmax, Softmax
from planish.ops.quantization import Dequantize, Quantize
from planish.ops.shape import Reshape, Slice, Transpose

MASKS = ("none", "keys", "queries", "heads", "bool", "causal")


@dataclass(frozen=True)
class Form:
    """What an attention looks like; see `attention`.

    Attributes
    ----------
    mask : str
        One of `MASKS`: additive per key, per query and key, or per head; boolean; a constant of
        -inf above the diagonal.
    scaled : str
        What is multiplied by a constant: "scores", "q", "both" (q and k, before they are
        transposed), or "none".
    heads_last : bool
        Whether q, k, v and the result are ``[batch, length, heads, size]`` and transposed.
    merged : bool
        Whether q, k and v are parts of one tensor.
    keys_first : bool
        Whether k is transposed to ``[batch, heads, size, keys]``.
    values_first : bool
        Whether the second product is that of the transposed factors.
    guard : str
        "nan", "rows" (boolean, per query) or "": how rows without weights are made 0.
    factor : bool
        Whether weights are multiplied by a factor per head.
    wide : bool
        Whether softmax is in float32, between casts.
    levels : str
        Whether q, k and v are levels, and weights quantized: "" for floats; "floats" where the
        result is one, "levels" where levels are made of it.
    """

    mask: str = "none"
    scaled: str = "scores"
    heads_last: bool = True
    merged: bool = False
    keys_first: bool = False
    values_first: bool = False
    guard: str = ""
    factor: bool = False
    wide: bool = False
    levels: str = ""


STEP = 0.03
"""The distance of the levels of q, k and v in tests."""

FORMS = (
    Form(heads_last=False, scaled="both"),
    Form(keys_first=True, scaled="none"),
    Form(values_first=True),
    Form(factor=True),
    Form(guard="rows", mask="queries"),
)
"""Each differs from what frameworks write most in another way."""


def attention(
    form: Form,
    *,
    batch: DimLike = 2,
    heads: int = 3,
    queries: DimLike = 10,
    keys: DimLike = 10,
    size: int = 16,
    values: int | None = None,
    dtype: DType = DType.FLOAT32,
) -> Graph:
    """A graph that is one attention."""
    graph = Graph("attention")
    add = graph.add
    values = values or size

    def given(name: str, length: DimLike, columns: int) -> Value:
        shape = (
            (batch, length, heads, columns) if form.heads_last else (batch, heads, length, columns)
        )
        given = graph.input(name, TensorType(shape, DType.UINT8 if form.levels else dtype))
        return from_levels(given) if form.levels else given

    def from_levels(x: Value) -> Value:
        zero = graph.constant(np.float32(MIDDLE), "zero")
        return add(Dequantize(), x, graph.constant(np.float32(STEP), "scale"), zero)

    if form.merged:
        assert form.heads_last and keys is queries and values == size
        width = heads * size
        kind = DType.UINT8 if form.levels else dtype
        whole = graph.input("qkv", TensorType((batch, queries, 3 * width), kind))
        q, k, v = (
            add(
                Reshape((batch, queries, heads, size)),
                add(Slice((0, 0, i * width), (batch, queries, width), (1, 1, 1)), whole),
            )
            for i in range(3)
        )
        if form.levels:
            q, k, v = map(from_levels, (q, k, v))
    else:
        q, k = given("q", queries, size), given("k", keys, size)
        v = given("v", keys, values)

    def number(value: float, kind: DType = dtype) -> Value:
        return graph.constant(np.asarray(value, kind.numpy))

    root = size**-0.25
    if form.scaled in ("q", "both"):
        q = add(ew.Mul(), q, number(root if form.scaled == "both" else root**2))
    if form.scaled == "both":
        k = add(ew.Mul(), number(root), k)
    if form.heads_last:
        q, k, v = (add(Transpose((0, 2, 1, 3)), x) for x in (q, k, v))
    if form.keys_first:
        k = add(Transpose((0, 1, 3, 2)), k)
    scores = add(MatMul(transpose_b=not form.keys_first), q, k)
    if form.scaled == "scores":
        scores = add(ew.Mul(), scores, number(root**2))
    inner = dtype
    if form.wide:
        inner = DType.FLOAT32
        scores = add(Cast(inner), scores)
    scores = _masked(graph, form.mask, scores, inner)
    weights = add(QuantizedSoftmax(3, 255) if form.levels else Softmax(3), scores)
    if form.guard == "nan":
        weights = add(Select(), add(ew.IsNan(), weights), number(0, inner), weights)
    elif form.guard == "rows":
        off = graph.input("off", TensorType((queries, 1), DType.BOOL))
        weights = add(Select(), off, number(0, inner), weights)
    if form.factor:
        weights = add(ew.Mul(), weights, graph.input("factor", TensorType((heads, 1, 1), inner)))
    if form.wide:
        weights = add(Cast(dtype), weights)
    if form.values_first:
        mixed = add(MatMul(True, True), v, weights)
        result = add(Transpose((0, 3, 1, 2) if form.heads_last else (0, 1, 3, 2)), mixed)
    else:
        result = add(MatMul(), weights, v)
        if form.levels == "levels":
            one, zero = (graph.constant(np.float32(n)) for n in (1.0, MIDDLE))
            result = add(Quantize(DType.UINT8, 0, 255), result, one, zero)
        if form.heads_last:
            result = add(Transpose((0, 2, 1, 3)), result)
    graph.mark_output(result, "y")
    return graph


def _masked(graph: Graph, mask: str, scores: Value, dtype: DType) -> Value:
    batch, heads, queries, keys = scores.shape

    def given(*shape: DimLike, kind: DType = dtype) -> Value:
        return graph.input("mask", TensorType(shape, kind))

    if mask == "keys":
        return graph.add(ew.Add(), scores, given(batch, 1, 1, keys))
    if mask == "queries":
        return graph.add(ew.Add(), scores, given(batch, 1, queries, keys))
    if mask == "heads":
        return graph.add(ew.Add(), given(1, heads, queries, keys), scores)
    if mask == "bool":
        low = graph.constant(np.asarray(-np.inf, dtype.numpy))
        allowed = given(batch, 1, queries, keys, kind=DType.BOOL)
        return graph.add(Select(), allowed, scores, low)
    if mask == "causal":
        assert isinstance(queries, int) and isinstance(keys, int)
        later = np.triu(np.full((queries, keys), -np.inf), 1 + keys - queries)
        return graph.add(ew.Add(), scores, graph.constant(later.astype(dtype.numpy)))
    return scores


def attention_task(graph: Graph) -> Task:
    """The candidate task that is the whole attention of a graph."""
    return max((task for task in propose(graph) if task.attention), key=lambda t: len(t.nodes))


def feeds_for(values: Sequence[Value], rng: np.random.Generator, **sizes: int) -> list[np.ndarray]:
    """Arrays for them: of about 1, masks with a query that sees nothing where they may have one."""
    arrays = []
    for value in values:
        shape = value.type.bind(sizes)
        if value.data is not None:
            arrays.append(value.data)
        elif value.dtype is DType.BOOL:
            arrays.append(rng.random(shape) < 0.7)
        elif value.dtype is DType.UINT8:
            arrays.append(np.clip(rng.normal(MIDDLE, 30, shape), 0, 255).astype(np.uint8))
        elif value.name == "mask":
            arrays.append(np.where(rng.random(shape) < 0.3, -30.0, 0.0).astype(value.dtype.numpy))
        else:
            arrays.append(rng.standard_normal(shape).astype(value.dtype.numpy))
    return arrays


def feeds_hiding(
    task: Task, rng: np.random.Generator, *hidden: tuple[int, slice]
) -> list[np.ndarray]:
    """Arrays of a task with a boolean mask, which hides from a query some keys."""
    arrays = feeds_for(task.inputs, rng)
    number = [v.name for v in task.inputs].index("mask")
    arrays[number] = np.ones_like(arrays[number])
    for query, keys in hidden:
        arrays[number][:, :, query, keys] = False
    return arrays
