"""Matrix products and Einsum, which becomes transposes, reshapes and one matrix product."""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontends.tensorflow.context import Context, converter
from planish.frontends.tensorflow.nn import apply_fused
from planish.graph.dims import DimLike, product
from planish.graph.graph import Value
from planish.ops.base import broadcast_shapes
from planish.ops.matmul import MatMul
from planish.ops.reduce import ReduceSum
from planish.ops.shape import BroadcastTo


@converter("MatMul")
def _mat_mul(ctx: Context, a: Value, b: Value) -> Value:
    return ctx.add(MatMul(ctx.attr("transpose_a"), ctx.attr("transpose_b")), a, b)


@converter("BatchMatMul", "BatchMatMulV2", "BatchMatMulV3")
def _batch_mat_mul(ctx: Context, a: Value, b: Value) -> Value:
    product_type = ctx.dtype("Tout" if ctx.node.op == "BatchMatMulV3" else "T")
    a, b = ctx.cast(a, product_type, "cast_a"), ctx.cast(b, product_type, "cast_b")
    return ctx.add(MatMul(ctx.attr("adj_x"), ctx.attr("adj_y")), a, b)


@converter("_FusedMatMul")
def _fused_mat_mul(ctx: Context, a: Value, b: Value, *rest: Value) -> Value:
    matrix = MatMul(ctx.attr("transpose_a"), ctx.attr("transpose_b"))
    return apply_fused(ctx, ctx.add(matrix, a, b, part="mat_mul"), rest)


# ---- Einsum ------------------------------------------------------------------------------------


@converter("Einsum")
def _einsum(ctx: Context, *inputs: Value) -> Value:
    terms, target = _parse(ctx, ctx.attr("equation"), inputs)
    if len(inputs) == 1:
        return _arrange(ctx, inputs[0], terms[0], target)
    if len(inputs) != 2:
        raise ctx.unsupported(f"its equation has {len(inputs)} operands")
    return _contract(ctx, inputs, terms, target)


def _parse(ctx: Context, equation: str, inputs: Sequence[Value]) -> tuple[list[str], str]:
    """Labels of each operand and of the result; an ellipsis becomes labels of its own."""
    equation = equation.replace(" ", "")
    left, arrow, target = equation.partition("->")
    terms = left.split(",")
    if not arrow or len(terms) != len(inputs):
        raise ctx.unsupported(f"its equation {equation!r} is malformed")
    covered = [
        x.type.rank - len(t.replace("...", "")) if "..." in t else 0
        for t, x in zip(terms, inputs, strict=True)
    ]
    # private-use characters, the last one for the last dimension: ellipses align at the right
    batch = "".join(chr(0xE000 + i) for i in range(max(covered)))
    terms = [t.replace("...", batch[len(batch) - n :]) for t, n in zip(terms, covered, strict=True)]
    target = target.replace("...", batch)
    for term, x in zip(terms, inputs, strict=True):
        if len(set(term)) != len(term) or len(term) != x.type.rank:
            raise ctx.unsupported(f"its equation {equation!r} takes a diagonal or does not fit")
    if len(set(target)) != len(target) or not set(target) <= set("".join(terms)):
        raise ctx.unsupported(f"its equation {equation!r} repeats or invents a dimension")
    return terms, target


def _arrange(ctx: Context, x: Value, term: str, target: str, part: str = "") -> Value:
    """Sums over the labels that `target` lacks and puts the others in its order."""
    gone = tuple(i for i, label in enumerate(term) if label not in target)
    if gone:
        x = ctx.add(ReduceSum(gone, False), x, part="sum" if term != target else part)
        term = "".join(label for label in term if label in target)
    return ctx.transpose(x, [term.index(label) for label in target], part=part)


def _contract(ctx: Context, inputs: Sequence[Value], terms: list[str], target: str) -> Value:
    """``[batch, rows, inner] x [batch, inner, columns]`` with labels grouped into these four."""
    both = [label for label in terms[0] if label in terms[1]]
    batch = "".join(label for label in both if label in target)
    inner = "".join(label for label in both if label not in target)
    rows = "".join(label for label in terms[0] if label not in both and label in target)
    columns = "".join(label for label in terms[1] if label not in both and label in target)
    a, b = inputs
    a = _arrange(ctx, a, terms[0], batch + rows + inner, "a")
    b = _arrange(ctx, b, terms[1], batch + inner + columns, "b")
    batch_a, rows_dims, inner_a = _split(a.shape, len(batch), len(rows))
    batch_b, inner_b, columns_dims = _split(b.shape, len(batch), len(inner))
    inner_dims = broadcast_shapes(inner_a, inner_b)
    a = _spread(ctx, a, (*batch_a, *rows_dims, *inner_dims), "a")
    b = _spread(ctx, b, (*batch_b, *inner_dims, *columns_dims), "b")
    inner_size = product(inner_dims)
    a = ctx.reshape(a, (*batch_a, product(rows_dims), inner_size), "a/matrix")
    b = ctx.reshape(b, (*batch_b, inner_size, product(columns_dims)), "b/matrix")
    result_dims = (*broadcast_shapes(batch_a, batch_b), *rows_dims, *columns_dims)
    labels = batch + rows + columns
    direct = len(rows) == len(columns) == 1 and labels == target
    result = ctx.add(MatMul(), a, b, part="" if direct else "mat_mul")
    last = labels == target
    result = ctx.reshape(result, result_dims, "" if last else "unfold")
    return ctx.transpose(result, [labels.index(label) for label in target], "")


def _split(
    shape: Sequence[DimLike], first: int, second: int
) -> tuple[tuple[DimLike, ...], tuple[DimLike, ...], tuple[DimLike, ...]]:
    return (
        tuple(shape[:first]),
        tuple(shape[first : first + second]),
        tuple(shape[first + second :]),
    )


def _spread(ctx: Context, x: Value, shape: tuple[DimLike, ...], part: str) -> Value:
    """A dimension of size 1 that is summed over goes with every place of the other operand."""
    return x if x.shape == shape else ctx.add(BroadcastTo(shape), x, part=f"{part}/spread")
