"""Elementwise expressions as Triton text: what every kernel's epilogue calls.

The results agree with the NumPy references in ``ops/elementwise.py``: NaN goes through, integers
wrap, divisions by zero and shifts are defined. Halves are computed in float32 and everything else
in its own type. Between two ops of an expression halves are not rounded, which is more exact than
the references; but before an op that jumps (a comparison, ``floor``, a cast) they are, so that it
decides as if the halves had been stored. Where levels are made, products are rounded before
anything is added to them, so that the levels are those of the references.
"""

from __future__ import annotations

from collections.abc import Sequence

from planish.fusion.expression import Expression
from planish.graph.types import DType
from planish.targets.cuda.codegen import floats, integers, quantization
from planish.targets.cuda.codegen.casts import cast, round_half
from planish.targets.cuda.codegen.literals import (
    HALVES,
    INEXACT,
    UNKNOWN,
    Facts,
    Step,
    compute_type,
    constant,
    storage_type,
)
from planish.targets.cuda.codegen.source import Source

__all__ = ["INEXACT", "UNKNOWN", "Facts", "compute_type", "constant", "emit", "storage_type"]

_JUMPS = {
    *("equal", "not_equal", "less", "less_equal", "greater", "greater_equal"),
    *("floor", "ceil", "trunc", "round", "floor_div", "floor_mod", "trunc_mod"),
    *("is_inf", "is_finite", "cast", "snap_to_levels"),
}
_KEEPS_ROUNDED = {
    *("neg", "abs", "sign", "relu", "maximum", "minimum", "select"),
    *("floor", "ceil", "trunc", "round"),
}
_OF_ANY_DTYPE: dict[str, floats.Rule] = {
    "select": lambda s, condition, yes, no: f"tl.where({condition}, {yes}, {no})",
    "logical_not": lambda s, x: f"{x} ^ {s.c(True)}",
    "logical_and": lambda s, a, b: f"{a} & {b}",
    "logical_or": lambda s, a, b: f"{a} | {b}",
    "logical_xor": lambda s, a, b: f"{a} ^ {b}",
    "equal": lambda s, a, b: f"{a} == {b}",
    "not_equal": lambda s, a, b: f"{a} != {b}",
    "less": lambda s, a, b: f"{a} < {b}",
    "less_equal": lambda s, a, b: f"{a} <= {b}",
    "greater": lambda s, a, b: f"{a} > {b}",
    "greater_equal": lambda s, a, b: f"{a} >= {b}",
    "cast": lambda s, x: cast(s.k, x, s.dtype, s.op.to),
}


def emit(
    k: Source,
    expression: Expression,
    leaves: Sequence[str | None],
    facts: Facts = UNKNOWN,
) -> list[str]:
    """Writes an expression; gives the names of its results, in the types they are computed in.

    Parameters
    ----------
    k : Source
        Where to write.
    expression : Expression
    leaves : sequence
        Per leaf the name of a variable in the type it is computed in. Constant leaves are made
        here, and may be None. A result of constants alone is a scalar.
    facts : Facts
    """
    slots: list[str] = []
    for leaf, name in zip(expression.leaves, leaves, strict=True):
        if leaf.constant is not None:
            name = k.let("c", constant(leaf.constant, leaf.dtype))
        assert name is not None
        slots.append(name)
    constants = [leaf.constant for leaf in expression.leaves]
    rounded = [True] * len(slots)
    names = {step.op.name for step in expression.instructions}
    makes_levels = not names.isdisjoint(quantization.LEVELS)
    for step in expression.instructions:
        name = step.op.name
        if name in _JUMPS:
            for slot in step.args:
                if not rounded[slot]:
                    slots[slot] = k.let("h", round_half(slots[slot], expression.dtype(slot)))
                    rounded[slot] = True
        dtypes = tuple(expression.dtype(i) for i in step.args)
        known = tuple(constants[i] if i < len(constants) else None for i in step.args)
        rules = floats.RULES if dtypes[-1].is_float else integers.RULES
        rule = quantization.RULES.get(name) or _OF_ANY_DTYPE.get(name) or rules[name]
        if makes_levels and dtypes[-1] is DType.FLOAT32:
            rule = quantization.OF_LEVELS.get(name, rule)
        operands = [slots[i] for i in step.args]
        slots.append(k.let("v", rule(Step(k, step.op, dtypes, known, facts), *operands)))
        keeps = name in _KEEPS_ROUNDED and all(rounded[i] for i in step.args)
        rounded.append(step.dtype not in HALVES or name == "cast" or keeps)
    return [slots[i] for i in expression.results]
