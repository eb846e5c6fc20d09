"""Matrix products and Einsum, which becomes transposes, reshapes and one matrix product."""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontends.tensorflow.context import Context, converter
from planish.frontends.tensorflow.nn import apply_fused
from planish.graph.dims import DimLike, product
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.base import broadcast_shapes
from planish.ops.matmul import MatMul
from planish.ops.reduce import ReduceSum
from planish.ops.shape import BroadcastTo, Pad, Slice


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
    dtype = inputs[0].dtype
    once = "".join(dict.fromkeys(target))
    pairs = [_diagonals(ctx, x, t, i) for i, (x, t) in enumerate(zip(inputs, terms, strict=True))]
    values, terms = [x for x, _ in pairs], [t for _, t in pairs]
    if _sums_alone(terms, once) and dtype.is_float and dtype.size == 2:  # rounded once, at the end
        values = [ctx.cast(x, DType.FLOAT32, f"{i}/widen") for i, x in enumerate(values)]
    if len(values) == 1:
        result = _arrange(ctx, values[0], terms[0], once)
    elif len(values) == 2:
        result = _contract(ctx, values, terms, once)
    else:
        raise ctx.unsupported(f"its equation has {len(inputs)} operands")
    return _embed(ctx, ctx.cast(result, dtype, "narrow"), once, target)


def _sums_alone(terms: Sequence[str], target: str) -> bool:
    """Whether one of two operands has a label that neither the other nor the result has."""
    return len(terms) == 2 and bool((set(terms[0]) ^ set(terms[1])) - set(target))


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
        if len(term) != x.type.rank:
            raise ctx.unsupported(f"its equation {equation!r} does not fit its operands")
    if not set(target) <= set("".join(terms)):
        raise ctx.unsupported(f"its equation {equation!r} invents a dimension")
    return terms, target


def _diagonals(ctx: Context, x: Value, term: str, number: int) -> tuple[Value, str]:
    """An operand with each label once: of repeated ones the elements where all are equal."""
    for label in dict.fromkeys(term):
        while term.count(label) > 1:
            first, second = [i for i, c in enumerate(term) if c == label][:2]
            others = [i for i in range(len(term)) if i not in (first, second)]
            size = x.shape[first]
            if not isinstance(size, int):
                raise ctx.unsupported("it takes the diagonal of dimensions of unknown size")
            x = ctx.transpose(x, (*others, first, second), f"{number}/last")
            rest = x.shape[:-2]
            x = ctx.reshape(x, (*rest, size * size), f"{number}/flat")
            ends = (0,) * len(rest), (1,) * len(rest)
            every = Slice((*ends[0], 0), (*rest, size), (*ends[1], size + 1))
            x = ctx.add(every, x, part=f"{number}/diagonal")
            term = "".join(term[i] for i in others) + label
    return x, term


def _embed(ctx: Context, x: Value, labels: str, target: str) -> Value:
    """The result with the labels that the target repeats on diagonals, and zeros around them."""
    if labels == target:
        return x
    for label in dict.fromkeys(target):
        for _ in range(target.count(label) - 1):
            place = labels.index(label)
            size, rank = x.shape[place], x.type.rank
            if not isinstance(size, int):
                raise ctx.unsupported("it makes a diagonal of a dimension of unknown size")
            others = [i for i in range(rank) if i != place]
            x = ctx.transpose(x, (*others, place), "to_last")
            rest = x.shape[:-1]
            # a row of the element and `size` zeros, again and again, is the diagonal
            x = ctx.reshape(x, (*rest, size, 1), "column")
            x = ctx.add(Pad((*((0, 0),) * (rank), (0, size))), x, part="zeros")
            x = ctx.reshape(x, (*rest, size * (size + 1)), "rows")
            whole = Slice((0,) * rank, (*rest, size * size), (1,) * rank)
            x = ctx.reshape(ctx.add(whole, x, part="cut"), (*rest, size, size), "square")
            labels = "".join(labels[i] for i in others) + label * 2
    order = []
    for label in target:  # equal labels are interchangeable
        order.append(next(i for i, c in enumerate(labels) if c == label and i not in order))
    return ctx.transpose(x, order, "")


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
