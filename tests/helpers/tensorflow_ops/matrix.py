"""Cases of matrix products and Einsum."""

from __future__ import annotations

from typing import Any

import numpy as np

from helpers.tensorflow_ops.draw import SUM, Case, Draw
from helpers.tensorflow_ops.elementwise import Generator, raw


def mat_mul(draw: Draw) -> Case:
    dtype = draw.dtype()
    m, k, n = (draw.integer(1, 20) for _ in range(3))
    attributes = draw.note(transpose_a=draw.flip(), transpose_b=draw.flip())
    a = draw.numbers((k, m) if attributes["transpose_a"] else (m, k), dtype)
    b = draw.numbers((n, k) if attributes["transpose_b"] else (k, n), dtype)
    first, second = _matrices(draw, a, b, attributes["transpose_a"])
    return draw.case(lambda a, b: raw("MatMul", a, b, **attributes), first, second, tolerance=SUM)


def _matrices(draw: Draw, a: np.ndarray, b: np.ndarray, transposed: bool) -> tuple[Any, Any]:
    """Operands; the dimension that is summed over is known where one is a constant."""
    second = draw.either(b, known=range(b.ndim))
    inner = a.ndim - (2 if transposed else 1)
    return draw.feed(a, known=[inner]), second


def batch_mat_mul(op: str) -> Generator:
    def generate(draw: Draw) -> Case:
        types = draw.types()
        left, right = types.get("T") or types["Ta"], types.get("T") or types["Tb"]
        m, k, n = (draw.integer(1, 12) for _ in range(3))
        batch = draw.shape(0 if op != "BatchMatMul" else 1, 3, 3)
        other = tuple(1 if draw.flip(0.3) else d for d in batch)[draw.integer(0, 1) :]
        if op == "BatchMatMul" or draw.flip(0.3):
            other = batch
        attributes = draw.note(adj_x=draw.flip(), adj_y=draw.flip())
        if op == "BatchMatMulV3":
            attributes = {**attributes, "Tout": types["Tout"].numpy}
        a = draw.numbers((*batch, *((k, m) if attributes["adj_x"] else (m, k))), left)
        b = draw.numbers((*other, *((n, k) if attributes["adj_y"] else (k, n))), right)
        row = a.ndim - (1 if attributes["adj_x"] else 2)
        alike = batch == other and bool(batch) and draw.flip()  # the first of both is unknown
        first = draw.feed(a, known=[i for i in range(a.ndim) if i != row and (i or not alike)])
        second = draw.constant(b) if draw.flip(0.4) and not alike else draw.feed(b, range(b.ndim))
        if 0 in first.unknown and row:
            second = draw.feed(b, range(1, b.ndim))
        return draw.case(lambda a, b: raw(op, a, b, **attributes), first, second, tolerance=SUM)

    return generate


_EQUATIONS = (
    "ij,jk->ik",
    "bij,bjk->bik",
    "...ij,...jk->...ik",
    "bqhd,bkhd->bhqk",
    "bhqk,bkhd->bqhd",
    "abc,cde->abde",
    "abc,abc->ab",
    "ab,ab->",
    "i,j->ij",
    "i,i->",
    "ij,i->j",
    "abcd,d->abc",
    "ij->ji",
    "abc->ca",
    "abc->b",
    "ab->",
    "...i->...",
    "i...->...i",
    "ii->i",
    "i->ii",
    "ab->aab",
    "iji,jk->ik",
    "aab,b->aba",
    "ii->",
    "bii->bi",
    "aabb->ab",
    "ij,ij->ij",
    "ab,b->ba",
    "a,b->ba",
    "abc,acd->abd",
    "aij,jk->aik",
    "...,...->...",
    "...a,...b->...ab",
    "ii,i->i",
    "ab,cb->",
    "abc,bad->dc",
    "ab,cd->adcb",
    "a...b,b->...a",
)


def einsum(draw: Draw) -> Case:
    equation = draw.choose(_EQUATIONS)
    sizes = {label: draw.integer(1, 5) for label in "abcdefhijkq"}
    terms = equation.partition("->")[0].split(",")
    middle = tuple(draw.integer(1, 3) for _ in range(draw.integer(0, 2)))
    dtype = draw.dtype()
    operands = []
    for i, term in enumerate(terms):
        before, dots, after = term.partition("...")
        inner = middle
        if i and dots:  # ellipses broadcast
            inner = tuple(1 if draw.flip(0.3) else d for d in middle)
        shape = [*(sizes[c] for c in before), *(inner if dots else ()), *(sizes[c] for c in after)]
        array = draw.numbers(shape, dtype)
        alone = len(terms) == 1 and len(set(term)) == len(term)
        operands.append(draw.feed(array, known=() if alone else range(len(shape))))
    draw.note(equation=equation)
    return draw.case(lambda *x: raw("Einsum", list(x), equation=equation), *operands, tolerance=SUM)


CASES: dict[str, Generator] = {
    "MatMul": mat_mul,
    "BatchMatMul": batch_mat_mul("BatchMatMul"),
    "BatchMatMulV2": batch_mat_mul("BatchMatMulV2"),
    "BatchMatMulV3": batch_mat_mul("BatchMatMulV3"),
    "Einsum": einsum,
}
