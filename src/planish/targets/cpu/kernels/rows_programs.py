"""What the ops that go over a row several times do in each pass, as data for `rows_kernel`.

A program is a list of `Phase`s, each of which turns the elements into others and reduces them to a
statistic, and a final map that uses the statistics and the op's parameters:

    softmax       m = max x;           e = exp(x - m), s = sum e;      e / s
    quantized     as softmax, e rounded to levels
    log softmax   m = max x;           d = x - m, s = sum exp d;       d - log s
    layer and     m = sum x / count;   d = x - m, v = sum d² / count;
    instance norm                      d / sqrt(v + epsilon) * scale + offset
    batch norm    (x - mean) * (scale / sqrt(variance + epsilon)) + offset
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import llvmlite.ir as ir

from planish.ops.base import Op
from planish.ops.normalization import (
    BatchNorm,
    InstanceNorm,
    LayerNorm,
    LogSoftmax,
    QuantizedSoftmax,
    Softmax,
)
from planish.targets.cpu.codegen import math as functions
from planish.targets.cpu.codegen.floats import Floats

Statistics = list[ir.Value]


def _same(f: Floats, x: ir.Value, known: Statistics) -> ir.Value:
    return x


@dataclass(frozen=True)
class Phase:
    """One pass over a row.

    Attributes
    ----------
    reduction : str
        "max" or "sum".
    transform : callable
        The new element from the one the phase before left, and the statistics known so far.
    term : callable
        What is reduced, from the new element.
    conclude : callable
        The statistic, from what came out and the number of elements (as a float).
    costly : bool
        Whether the transform is worth keeping rather than doing again.
    """

    reduction: str
    transform: Callable[[Floats, ir.Value, Statistics], ir.Value] = _same
    term: Callable[[Floats, ir.Value, Statistics], ir.Value] = _same
    conclude: Callable[[Floats, ir.Value, ir.Value], ir.Value] = lambda f, total, count: total
    costly: bool = False


@dataclass(frozen=True)
class Program:
    """The phases and the final map, with how many parameters the op has.

    `prepare` gives further statistics from parameters that do not change along a row.
    """

    phases: tuple[Phase, ...]
    map: Callable[[Floats, ir.Value, Statistics, Sequence[ir.Value]], ir.Value]
    prepare: Callable[[Floats, Sequence[ir.Value]], Statistics] | None = None


def _minus_first(f: Floats, x: ir.Value, known: Statistics) -> ir.Value:
    return f.sub(x, known[0])


def _standard_deviations(epsilon: float) -> tuple[Phase, Phase]:
    def invert(f: Floats, total: ir.Value, count: ir.Value) -> ir.Value:
        variance = f.div(total, count)
        return f.div(f.c(1), f.sqrt(f.add(variance, f.c(epsilon))))

    return (
        Phase("sum", conclude=lambda f, total, count: f.div(total, count)),
        Phase("sum", _minus_first, lambda f, x, known: f.mul(x, x), invert),
    )


def _softmax(levels: int = 0) -> Program:
    def shifted(f: Floats, x: ir.Value, known: Statistics) -> ir.Value:
        weight = functions.exp(f, f.sub(x, known[0]))
        return f.rint(f.mul(weight, f.c(levels))) if levels else weight

    return Program(
        (
            Phase("max"),
            Phase(
                "sum",
                shifted,
                conclude=lambda f, total, count: f.div(f.c(1), total),
                costly=True,
            ),
        ),
        lambda f, x, known, parameters: f.mul(x, known[1]),
    )


def _log_softmax() -> Program:
    return Program(
        (
            Phase("max"),
            Phase(
                "sum",
                _minus_first,
                lambda f, x, known: functions.exp(f, x),
                lambda f, total, count: functions.log(f, total),
            ),
        ),
        lambda f, x, known, parameters: f.sub(x, known[1]),
    )


def _standardize(epsilon: float) -> Program:
    def scaled(
        f: Floats, x: ir.Value, known: Statistics, parameters: Sequence[ir.Value]
    ) -> ir.Value:
        scale, offset = parameters
        return f.fma(f.mul(x, known[1]), scale, offset)

    return Program(_standard_deviations(epsilon), scaled)


def _batch_norm(epsilon: float) -> Program:
    def prepare(f: Floats, parameters: Sequence[ir.Value]) -> Statistics:
        scale, _, _, variance = parameters
        return [f.div(scale, f.sqrt(f.add(variance, f.c(epsilon))))]

    def scaled(
        f: Floats, x: ir.Value, known: Statistics, parameters: Sequence[ir.Value]
    ) -> ir.Value:
        _, offset, mean, _ = parameters
        return f.fma(f.sub(x, mean), known[0], offset)

    return Program((), scaled, prepare)


def program_of(op: Op) -> Program | None:
    """The program of an op; None for other ops."""
    if isinstance(op, QuantizedSoftmax):
        return _softmax(op.levels)
    if isinstance(op, Softmax):
        return _softmax()
    if isinstance(op, LogSoftmax):
        return _log_softmax()
    if isinstance(op, LayerNorm | InstanceNorm):
        return _standardize(op.epsilon)
    if isinstance(op, BatchNorm):
        return _batch_norm(op.epsilon)
    return None
