"""Symbolic dimensions: integer expressions over named symbols, in canonical form.

A dimension is a plain ``int`` or a `Dim`. A `Dim` is a polynomial with integer coefficients over
*atoms*: symbols such as ``N``, and the opaque ``floordiv``, ``max`` and ``min`` of other
dimensions. Two dimensions are known to be equal exactly if their canonical forms are. Arithmetic
that turns out constant gives back an ``int``, so most code never notices the difference.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias


@dataclass(frozen=True, order=True)
class _Atom:
    """A factor of a monomial: a symbol (``args`` empty) or a function of other dimensions."""

    name: str
    args: tuple[Any, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.args))})" if self.args else self.name


_Monomial: TypeAlias = "tuple[_Atom, ...]"

_UNLIMITED = 1 << 62
"""No dimension is larger."""

_MOST_CORNERS = 64
"""Broken lines with corners further out are left as they are."""


def _atom_key(atom: _Atom) -> str:
    return str(atom)


class Dim:
    """An integer expression that is not a constant. Build it with `symbol` and arithmetic."""

    __slots__ = ("_hash", "_terms", "_text")

    def __init__(self, terms: tuple[tuple[_Monomial, int], ...]) -> None:
        self._terms = terms
        self._hash = hash(terms)
        self._text = ""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self._terms == other._terms

    def __hash__(self) -> int:
        return self._hash

    def __reduce__(self):
        return parse, (str(self),)

    def __str__(self) -> str:
        if not self._text:
            self._text = " + ".join(_term_text(m, c) for m, c in self._terms).replace("+ -", "- ")
        return self._text

    __repr__ = __str__

    def __bool__(self) -> bool:
        return True

    def __add__(self, other: DimLike) -> DimLike:
        if not isinstance(other, int | Dim):
            return NotImplemented
        total = dict(self._terms)
        for monomial, coefficient in _terms_of(other):
            total[monomial] = total.get(monomial, 0) + coefficient
        return _from_terms(total)

    def __mul__(self, other: DimLike) -> DimLike:
        if not isinstance(other, int | Dim):
            return NotImplemented
        product: dict[_Monomial, int] = {}
        for m1, c1 in self._terms:
            for m2, c2 in _terms_of(other):
                monomial = tuple(sorted(m1 + m2, key=_atom_key))
                product[monomial] = product.get(monomial, 0) + c1 * c2
        return _from_terms(product)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> DimLike:
        return self * -1

    def __sub__(self, other: DimLike) -> DimLike:
        return self + other * -1

    def __rsub__(self, other: int) -> DimLike:
        return -self + other

    def __floordiv__(self, other: DimLike) -> DimLike:
        return floordiv(self, other)

    def __rfloordiv__(self, other: int) -> DimLike:
        return floordiv(other, self)

    def __mod__(self, other: DimLike) -> DimLike:
        return self - floordiv(self, other) * other

    def __rmod__(self, other: int) -> DimLike:
        return other - floordiv(other, self) * self


DimLike: TypeAlias = int | Dim
"""A dimension: no string, as types that hold it are looked into when plans are read."""


def symbol(name: str) -> Dim:
    """The dimension called `name`, a free integer of at least 0."""
    return Dim((((_Atom(name),), 1),))


def floordiv(a: DimLike, b: DimLike) -> DimLike:
    """Floor of ``a / b``, simplified where the division is exact for all values."""
    if isinstance(a, int) and isinstance(b, int):
        return a // b
    if b == 1:
        return a
    if isinstance(b, int):
        # (q*b + r) // b == q + r // b holds for the floor whatever the sign of the terms
        exact = {m: c // b for m, c in _terms_of(a) if c % b == 0 or not m}
        rest = {m: c % b if not m else c for m, c in _terms_of(a) if c % b}
        if any(exact.values()):
            return _from_terms(exact) + floordiv(_from_terms(rest), b)
        if b > 0 and (nested := _nested_quotient(a, b)) is not None:
            return nested
    elif (quotient := _exact_quotient(a, b)) is not None:
        return quotient
    return Dim((((_Atom("floordiv", (a, b)),), 1),))


def ceildiv(a: DimLike, b: DimLike) -> DimLike:
    """Ceiling of ``a / b``."""
    if isinstance(b, int) and b > 0:
        return floordiv(a + (b - 1), b)
    return -floordiv(-a, b)


def dim_max(a: DimLike, b: DimLike) -> DimLike:
    """The larger of two dimensions."""
    return _extremum("max", a, b)


def dim_min(a: DimLike, b: DimLike) -> DimLike:
    """The smaller of two dimensions."""
    return _extremum("min", a, b)


def product(dims: Iterable[DimLike]) -> DimLike:
    """The product of dimensions, 1 for none."""
    one: DimLike = 1
    return reduce(lambda a, b: a * b, dims, one)


def evaluate(dim: DimLike, bindings: Mapping[str, int]) -> int:
    """The value of `dim` where each symbol has the value that `bindings` gives it.

    Raises
    ------
    KeyError
        A symbol is not bound.
    """
    if isinstance(dim, int):
        return dim
    total = 0
    for monomial, coefficient in dim._terms:
        term = coefficient
        for atom in monomial:
            term *= _evaluate_atom(atom, bindings)
        total += term
    return total


def substitute(dim: DimLike, replacements: Mapping[str, DimLike]) -> DimLike:
    """`dim` with symbols replaced by other dimensions."""
    if isinstance(dim, int):
        return dim
    total: DimLike = 0
    for monomial, coefficient in dim._terms:
        term: DimLike = coefficient
        for atom in monomial:
            term = term * _substitute_atom(atom, replacements)
        total = total + term
    return total


def symbols(dim: DimLike) -> set[str]:
    """The names that `dim` depends on."""
    if isinstance(dim, int):
        return set()
    found: set[str] = set()
    for monomial, _ in dim._terms:
        for atom in monomial:
            if atom.args:
                found.update(*(symbols(a) for a in atom.args))
            else:
                found.add(atom.name)
    return found


def terms(dim: DimLike) -> list[tuple[int, list[tuple[str, tuple[DimLike, ...]]]]]:
    """A dimension as a sum: each term a coefficient and factors, which are symbols (no arguments)
    or the functions ``floordiv``, ``max`` and ``min`` of two dimensions.
    """
    return [(c, [(atom.name, atom.args) for atom in m]) for m, c in _terms_of(dim)]


def bounds(dim: DimLike, ranges: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    """An interval that holds every value of `dim` for symbols in `ranges` (interval arithmetic)."""
    if isinstance(dim, int):
        return dim, dim
    low = high = 0
    for monomial, coefficient in dim._terms:
        interval = (coefficient, coefficient)
        for atom in monomial:
            interval = _interval_product(interval, _atom_bounds(atom, ranges))
        low, high = low + interval[0], high + interval[1]
    return low, high


def parse(text: str) -> DimLike:
    """The dimension that ``str(dim)`` wrote; accepts names, integers, ``+ - *`` and functions.

    Raises
    ------
    ValueError
        The text is anything else.
    """
    try:
        return _parse_node(ast.parse(text, mode="eval").body)
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"not a dimension: {text[:80]!r}") from error


# --------------------------------------------------------------------------------------------


def _terms_of(dim: DimLike) -> tuple[tuple[_Monomial, int], ...]:
    if isinstance(dim, Dim):
        return dim._terms
    return (((), int(dim)),) if dim else ()


def _from_terms(terms: Mapping[_Monomial, int]) -> DimLike:
    kept = [(m, c) for m, c in terms.items() if c]
    if not kept:
        return 0
    if len(kept) == 1 and not kept[0][0]:
        return kept[0][1]
    # higher degrees first, the constant last
    kept.sort(key=lambda term: (-len(term[0]), [str(a) for a in term[0]]))
    return Dim(tuple(kept))


def _term_text(monomial: _Monomial, coefficient: int) -> str:
    factors = [str(atom) for atom in monomial]
    if coefficient != 1 or not factors:
        if coefficient == -1 and factors:
            return "-" + "*".join(factors)
        factors.insert(0, str(coefficient))
    return "*".join(factors)


def _exact_quotient(a: DimLike, b: Dim) -> DimLike | None:
    """``a / b`` where that is a polynomial: found for a divisor of one term, or equal terms."""
    if a == b:
        return 1
    if len(b._terms) != 1:
        return None
    (divisor, divisor_coefficient), quotient = b._terms[0], {}
    for monomial, coefficient in _terms_of(a):
        rest = list(monomial)
        for atom in divisor:
            if atom not in rest:
                return None
            rest.remove(atom)
        if coefficient % divisor_coefficient:
            return None
        quotient[tuple(rest)] = coefficient // divisor_coefficient
    return _from_terms(quotient)


def _nested_quotient(a: DimLike, b: int) -> DimLike | None:
    """``(x // c + k) // b`` as ``(x + k*c) // (c*b)``, so that chains of strides compare equal."""
    for monomial, coefficient in _terms_of(a):
        if coefficient == 1 and len(monomial) == 1 and monomial[0].name == "floordiv":
            x, c = monomial[0].args
            k = a - Dim(((monomial, 1),))
            if isinstance(c, int) and c > 0 and isinstance(k, int):
                return floordiv(x + k * c, c * b)
    return None


def _extremum(name: str, a: DimLike, b: DimLike) -> DimLike:
    low, high = bounds(a - b, dict.fromkeys(symbols(a - b), (0, _UNLIMITED)))
    if low >= 0 or high <= 0:
        return a if (name == "max") == (low >= 0) else b
    if isinstance(a, int):
        a, b = b, a
    if not isinstance(b, int) and str(b) < str(a):
        a, b = b, a
    dim = Dim((((_Atom(name, (a, b)),), 1),))
    straight = _straight(dim)
    return dim if straight is None else straight


def _straight(dim: Dim) -> DimLike | None:
    """``slope * s + offset`` if `dim` is that for every value of its only symbol, else None.

    Without quotients and products `dim` is a broken line in `s`, whose corners are at most as large
    as its constants together; beyond them one step tells the slope.
    """
    names = symbols(dim)
    last = _corners(dim)
    if len(names) != 1 or last is None or last > _MOST_CORNERS:
        return None
    (name,) = names
    values = [evaluate(dim, {name: s}) for s in range(last + 3)]
    slope = values[-1] - values[-2]
    if any(v != slope * s + values[0] for s, v in enumerate(values)):
        return None
    return symbol(name) * slope + values[0]


def _corners(dim: DimLike) -> int | None:
    """No corner of a broken line is beyond this; None if `dim` is none."""
    total = 0
    for monomial, coefficient in _terms_of(dim):
        if len(monomial) > 1:
            return None
        inner: int | None = 0 if monomial else 1
        if monomial and monomial[0].args:
            if monomial[0].name == "floordiv":
                return None
            parts = [_corners(arg) for arg in monomial[0].args]
            inner = None if None in parts else sum(p for p in parts if p is not None)
        if inner is None:
            return None
        total += abs(coefficient) * inner
    return total


_FUNCTIONS = {"floordiv": floordiv, "max": dim_max, "min": dim_min}


def _evaluate_atom(atom: _Atom, bindings: Mapping[str, int]) -> int:
    if not atom.args:
        return int(bindings[atom.name])
    a, b = (evaluate(arg, bindings) for arg in atom.args)
    return {"floordiv": lambda: a // b, "max": lambda: max(a, b), "min": lambda: min(a, b)}[
        atom.name
    ]()


def _substitute_atom(atom: _Atom, replacements: Mapping[str, DimLike]) -> DimLike:
    if not atom.args:
        return replacements.get(atom.name, Dim((((atom,), 1),)))
    a, b = (substitute(arg, replacements) for arg in atom.args)
    return _FUNCTIONS[atom.name](a, b)


def _interval_product(x: tuple[int, int], y: tuple[int, int]) -> tuple[int, int]:
    corners = [a * b for a in x for b in y]
    return min(corners), max(corners)


def _atom_bounds(atom: _Atom, ranges: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    if not atom.args:
        return ranges[atom.name]
    (a_low, a_high), (b_low, b_high) = (bounds(arg, ranges) for arg in atom.args)
    if atom.name == "max":
        return max(a_low, b_low), max(a_high, b_high)
    if atom.name == "min":
        return min(a_low, b_low), min(a_high, b_high)
    divisors = [d for d in (b_low, b_high, -1, 1) if d and b_low <= d <= b_high] or [1]
    corners = [a // b for a in (a_low, a_high) for b in divisors]
    return min(corners), max(corners)


def _parse_node(node: ast.expr) -> DimLike:
    match node:
        case ast.Constant(value=int(value)) if not isinstance(value, bool):
            return value
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return _parse_node(operand) * -1
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _parse_node(left) + _parse_node(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _parse_node(left) - _parse_node(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _parse_node(left) * _parse_node(right)
        case ast.Call(func=ast.Name(id=name), args=[a, b], keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](_parse_node(a), _parse_node(b))
    raise ValueError(f"not a dimension: {ast.unparse(node)[:80]!r}")
