"""All ops with the generators of their cases."""

from __future__ import annotations

from helpers.tensorflow_ops import (
    convolution,
    elementwise,
    indexing,
    matrix,
    movement,
    others,
    reduction,
)
from helpers.tensorflow_ops.draw import Case, Draw
from helpers.tensorflow_ops.elementwise import Generator

MODULES = (elementwise, reduction, movement, indexing, matrix, convolution, others)

TABLE: dict[str, Generator] = {}
for _module in MODULES:
    for _op, _generator in _module.CASES.items():
        assert _op not in TABLE, f"two generators for {_op}"
        TABLE[_op] = _generator

VARIABLES = frozenset({"ReadVariableOp", "VariableV2"})
"""Ops that exist only in a model with variables: their tests save such a model."""


def case_of(op: str, seed: int) -> Case:
    """A case of an op, the same for the same seed."""
    return TABLE[op](Draw(op, seed))
