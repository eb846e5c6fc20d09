"""Operators that are matrix products: MatMul, Gemm, Einsum."""

from __future__ import annotations

from collections.abc import Sequence

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import reshaped, transposed
from planish.frontends.onnx.registry import converter
from planish.graph import DType, Value
from planish.graph.dims import product
from planish.ops import MatMul, ReduceSum, Reshape, broadcast_shapes, ew


@converter("MatMul")
def _matmul(c: Conversion) -> Value:
    return _product(c, c.input(0), c.input(1))


def _product(c: Conversion, a: Value, b: Value) -> Value:
    """NumPy's matmul: vectors are matrices of one row or column, which then disappears."""
    row, column = a.type.rank == 1, b.type.rank == 1
    if row:
        a = reshaped(c, a, (1, *a.shape))
    if column:
        b = reshaped(c, b, (*b.shape, 1))
    y = c.add(MatMul(), a, b)
    if not row and not column:
        return y
    rows = () if row else (y.shape[-2],)
    columns = () if column else (y.shape[-1],)
    return reshaped(c, y, (*y.shape[:-2], *rows, *columns))


@converter("MatMulInteger")
def _matmul_integer(c: Conversion) -> Value:
    operands = []
    for index, column in ((0, True), (1, False)):
        x = c.cast(c.input(index), DType.INT32)
        if (zero := c.optional(index + 2)) is not None:
            zero = c.cast(zero, DType.INT32)
            if column and zero.type.rank == 1 and zero.shape != (1,):
                zero = reshaped(c, zero, (*zero.shape, 1))
            x = c.aux(ew.Sub(), x, zero)
        operands.append(x)
    return _product(c, *operands)


@converter("Gemm")
def _gemm(c: Conversion) -> Value:
    a, b, offset = c.input(0), c.input(1), c.optional(2)
    alpha, beta = c.attr("alpha", 1.0), c.attr("beta", 1.0)
    y = c.add(MatMul(bool(c.attr("transA", 0)), bool(c.attr("transB", 0))), a, b)
    if alpha != 1.0:
        y = c.aux(ew.Mul(), y, c.scalar_like(alpha, y))
    if offset is None or beta == 0.0:
        return y
    if beta != 1.0:
        offset = c.aux(ew.Mul(), offset, c.scalar_like(beta, offset))
    return c.aux(ew.Add(), y, offset)


@converter("Einsum")
def _einsum(c: Conversion) -> Value:
    """Products of two operands at a time, each a MatMul over permuted and merged dimensions."""
    values = c.present()
    terms, output = _parse(c, c.attr("equation", ""), values)
    while len(values) > 1:
        later = set(output).union(*terms[2:])
        y, term = _contract(c, values[0], values[1], terms[0], terms[1], later)
        values, terms = [y, *values[2:]], [term, *terms[2:]]
    y, term = _summed(c, values[0], terms[0], set(output))
    return transposed(c, y, [term.index(label) for label in output])


def _parse(c: Conversion, equation: str, values: Sequence[Value]) -> tuple[list[str], str]:
    """One letter a dimension; an ellipsis becomes letters of its own."""
    left, arrow, output = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(terms) != len(values):
        raise c.shape_error(f"Einsum {equation!r} has {len(values)} operands")
    ranks = [
        v.type.rank - len(t.replace("...", "")) if "..." in t else 0
        for t, v in zip(terms, values, strict=True)
    ]
    extra = "".join(chr(0xE000 + i) for i in range(max(ranks, default=0)))
    if not arrow:
        letters = sorted(set(left) - set(",."))
        output = "..." + "".join(x for x in letters if left.count(x) == 1)
    terms = [
        t.replace("...", extra[len(extra) - rank :]) for t, rank in zip(terms, ranks, strict=True)
    ]
    output = output.replace("...", extra)
    for term, value in zip(terms, values, strict=True):
        if len(term) != value.type.rank:
            raise c.shape_error(f"Einsum {equation!r} does not fit an operand {value.type}")
        if len(set(term)) != len(term):
            raise c.unsupported(f"{equation!r} takes a diagonal")
    return terms, output


def _summed(c: Conversion, x: Value, term: str, kept: set[str]) -> tuple[Value, str]:
    axes = tuple(i for i, label in enumerate(term) if label not in kept)
    if axes:
        x = c.add(ReduceSum(axes), x)
    return x, "".join(label for label in term if label in kept)


def _contract(
    c: Conversion, a: Value, b: Value, term_a: str, term_b: str, later: set[str]
) -> tuple[Value, str]:
    a, term_a = _summed(c, a, term_a, later | set(term_b))
    b, term_b = _summed(c, b, term_b, later | set(term_a))
    shared = [x for x in term_a if x in term_b]
    batch = [x for x in shared if x in later]
    inner = [x for x in shared if x not in later]
    rows = [x for x in term_a if x not in term_b]
    columns = [x for x in term_b if x not in term_a]
    size_a = dict(zip(term_a, a.shape, strict=True))
    size_b = dict(zip(term_b, b.shape, strict=True))
    if any(size_a[x] != size_b[x] for x in inner):
        raise c.unsupported("it broadcasts a dimension that it sums over")
    left = transposed(c, a, [term_a.index(x) for x in (*batch, *rows, *inner)])
    right = transposed(c, b, [term_b.index(x) for x in (*batch, *inner, *columns)])
    m, k = product(size_a[x] for x in rows), product(size_a[x] for x in inner)
    n = product(size_b[x] for x in columns)
    left = reshaped(c, left, (*(size_a[x] for x in batch), m, k))
    right = reshaped(c, right, (*(size_b[x] for x in batch), k, n))
    y = c.add(MatMul(), left, right)
    both = broadcast_shapes([size_a[x] for x in batch], [size_b[x] for x in batch])
    shape = (*both, *(size_a[x] for x in rows), *(size_b[x] for x in columns))
    if shape != y.shape:
        y = c.aux(Reshape(shape), y)
    return y, "".join((*batch, *rows, *columns))
