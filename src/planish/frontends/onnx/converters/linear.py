"""Operators on matrices: MatMul, Gemm, Einsum, Det."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from planish.frontends.onnx.context import Conversion
from planish.frontends.onnx.converters.layout import reshaped, transposed
from planish.frontends.onnx.registry import converter
from planish.graph import Value
from planish.graph.dims import product
from planish.ops import MatMul, ReduceSum, Reshape, Slice, ew


@converter("MatMul")
def _matmul(c: Conversion) -> Value:
    return matrix_product(c, c.input(0), c.input(1), lambda a, b: c.add(MatMul(), a, b))


def matrix_product(
    c: Conversion, a: Value, b: Value, multiply: Callable[[Value, Value], Value]
) -> Value:
    """NumPy's matmul: vectors are matrices of one row or column, which then disappears."""
    row, column = a.type.rank == 1, b.type.rank == 1
    if row:
        a = reshaped(c, a, (1, *a.shape))
    if column:
        b = reshaped(c, b, (*b.shape, 1))
    y = multiply(a, b)
    if not row and not column:
        return y
    rows = () if row else (y.shape[-2],)
    columns = () if column else (y.shape[-1],)
    return reshaped(c, y, (*y.shape[:-2], *rows, *columns))


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
    diagonals = [_diagonal(c, v, term) for v, term in zip(values, terms, strict=True)]
    values, terms = [v for v, _ in diagonals], [term for _, term in diagonals]
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
    if not set(output) <= set("".join(terms)) or len(set(output)) != len(output):
        raise c.shape_error(f"Einsum {equation!r} has the output {output!r}")
    return terms, output


def _diagonal(c: Conversion, x: Value, term: str) -> tuple[Value, str]:
    """The elements at which equal labels have equal indices, each label once."""
    while len(set(term)) != len(term):
        label = next(k for k in term if term.count(k) > 1)
        first, second = [i for i, k in enumerate(term) if k == label][:2]
        size = x.shape[first]
        if size != x.shape[second]:
            raise c.shape_error(f"Einsum takes a diagonal of {x.type}")
        if not isinstance(size, int):
            raise c.unsupported(f"it takes a diagonal of the size {size}, which is not fixed")
        rest = [i for i in range(len(term)) if i not in (first, second)]
        x = transposed(c, x, (*rest, first, second))
        outer = x.shape[:-2]
        # the elements (i, i) of a matrix lie size + 1 apart
        x = reshaped(c, x, (*outer, size * size))
        strides = (*(1,) * len(outer), size + 1)
        x = c.aux(Slice((0,) * (len(outer) + 1), (*outer, size), strides), x)
        term = "".join(term[i] for i in rest) + label
    return x, term


def _summed(c: Conversion, x: Value, term: str, kept: set[str]) -> tuple[Value, str]:
    axes = tuple(i for i, label in enumerate(term) if label not in kept)
    if axes:
        x = c.add(ReduceSum(axes), x)
    return x, "".join(label for label in term if label in kept)


def _without_ones(c: Conversion, x: Value, term: str, labels: set[str]) -> tuple[Value, str]:
    """A dimension of 1 that meets a larger one is broadcast: as if the operand did not have it."""
    kept = [i for i, label in enumerate(term) if label not in labels]
    return reshaped(c, x, [x.shape[i] for i in kept]), "".join(term[i] for i in kept)


def _contract(
    c: Conversion, a: Value, b: Value, term_a: str, term_b: str, later: set[str]
) -> tuple[Value, str]:
    sizes = {x: (a.shape[term_a.index(x)], b.shape[term_b.index(x)]) for x in term_a if x in term_b}
    a, term_a = _without_ones(c, a, term_a, {x for x, (m, n) in sizes.items() if m == 1 != n})
    b, term_b = _without_ones(c, b, term_b, {x for x, (m, n) in sizes.items() if n == 1 != m})
    a, term_a = _summed(c, a, term_a, later | set(term_b))
    b, term_b = _summed(c, b, term_b, later | set(term_a))
    shared = [x for x in term_a if x in term_b]
    batch = [x for x in shared if x in later]
    inner = [x for x in shared if x not in later]
    rows = [x for x in term_a if x not in term_b]
    columns = [x for x in term_b if x not in term_a]
    size_a = dict(zip(term_a, a.shape, strict=True))
    size_b = dict(zip(term_b, b.shape, strict=True))
    if any(size_a[x] != size_b[x] for x in shared):
        raise c.shape_error(f"Einsum of {a.type} and {b.type}: their dimensions differ")
    left = transposed(c, a, [term_a.index(x) for x in (*batch, *rows, *inner)])
    right = transposed(c, b, [term_b.index(x) for x in (*batch, *inner, *columns)])
    m, k = product(size_a[x] for x in rows), product(size_a[x] for x in inner)
    n = product(size_b[x] for x in columns)
    left = reshaped(c, left, (*(size_a[x] for x in batch), m, k))
    right = reshaped(c, right, (*(size_b[x] for x in batch), k, n))
    y = c.add(MatMul(), left, right)
    shape = (*(size_a[x] for x in batch), *(size_a[x] for x in rows), *(size_b[x] for x in columns))
    if shape != y.shape:
        y = c.aux(Reshape(shape), y)
    return y, "".join((*batch, *rows, *columns))


@converter("Det")
def _det(c: Conversion) -> Value:
    """By Laplace's expansion, for matrices of up to 4 rows."""
    x = c.input(0)
    if x.type.rank < 2 or x.shape[-1] != x.shape[-2]:
        raise c.shape_error(f"Det needs square matrices, not {x.type}")
    size = x.shape[-1]
    if not isinstance(size, int) or not 1 <= size <= 4:
        raise c.unsupported(f"its matrices have {size} rows, and up to 4 are written out")
    entries = [[_entry(c, x, i, j) for j in range(size)] for i in range(size)]
    return _determinant(c, entries, tuple(range(size)), 0)


def _entry(c: Conversion, x: Value, row: int, column: int) -> Value:
    rank = x.type.rank
    begin = (*(0,) * (rank - 2), row, column)
    part = c.aux(Slice(begin, (*x.shape[:-2], 1, 1), (1,) * rank), x)
    return reshaped(c, part, x.shape[:-2])


def _determinant(
    c: Conversion, entries: list[list[Value]], columns: tuple[int, ...], row: int
) -> Value:
    """Of the rows from `row` on and these columns."""
    total = entries[row][columns[0]]
    if len(columns) == 1:
        return total
    for place, column in enumerate(columns):
        rest = columns[:place] + columns[place + 1 :]
        term = c.aux(ew.Mul(), entries[row][column], _determinant(c, entries, rest, row + 1))
        total = term if not place else c.aux(ew.Sub() if place % 2 else ew.Add(), total, term)
    return total
