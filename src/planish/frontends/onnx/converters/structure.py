"""Operators that only wire: constants, identities, dropout, conditionals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.frontends.onnx.context import Conversion, NoFallbackError
from planish.frontends.onnx.converters.layout import broadcast
from planish.frontends.onnx.registry import converter
from planish.graph import DType, Value
from planish.ops import Concat, Reshape

UNROLL_LIMIT = 256
"""Rounds of a loop; a longer one would make a graph too large to be of use."""


@converter("Identity")
def _identity(c: Conversion) -> Value:
    return c.input(0)


@converter("Constant")
def _constant(c: Conversion) -> Value:
    for name, dtype in (
        ("value", None),
        ("sparse_value", None),
        ("value_float", np.float32),
        ("value_floats", np.float32),
        ("value_int", np.int64),
        ("value_ints", np.int64),
    ):
        if c.has(name):
            data = np.asarray(c.attr(name), dtype)
            try:
                DType.of(data.dtype)
            except TypeError as error:
                raise c.unsupported(str(error)) from error
            return c.graph.constant(data, c.name)
    raise c.unsupported("a constant of strings, or without a value")


@converter("Dropout")
def _dropout(c: Conversion) -> Sequence[Value]:
    x, training = c.input(0), c.optional(2)
    if training is not None:
        known = c.known(training)
        if known is None or known.any():
            raise NoFallbackError(
                "Dropout in training mode gives another result on every run",
                where=c.origin,
                cure="export the model in evaluation mode",
            )
    if not c.wants(1):
        return [x]
    dtype = DType.BOOL if c.opset >= 10 else x.dtype
    return [x, broadcast(c, c.constant(True, dtype), x.shape)]


@converter(
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
)
def _random(c: Conversion) -> Value:
    raise NoFallbackError(
        f"{c.node.op_type} cannot be converted",
        where=c.origin,
        why="it gives another result on every run, and an engine must give the same",
        cure="make the random numbers outside the model and pass them as an input",
    )


@converter("If")
def _if(c: Conversion) -> Sequence[Value]:
    branch = "then" if c.constant_input(0, "its condition").any() else "else"
    return c.inline(c.attr(f"{branch}_branch"), branch, ())


@converter("Loop")
def _loop(c: Conversion) -> Sequence[Value]:
    """Unrolls a loop whose number of rounds is known while it is converted."""
    body, states = c.attr("body"), [c.input(i) for i in range(2, len(c.inputs))]
    most = int(c.constant_input(0, "its number of rounds")) if c.optional(0) else None
    going = bool(c.constant_input(1, "its condition").any()) if c.optional(1) else True
    condition = c.constant(going)
    collected: list[list[Value]] = [[] for _ in body.output[1 + len(states) :]]
    turn = 0
    while going and (most is None or turn < most):
        if turn == UNROLL_LIMIT:
            raise c.unsupported(f"it takes more than {UNROLL_LIMIT} rounds")
        number = c.constant(turn, DType.INT64)
        condition, *results = c.inline(body, str(turn), (number, condition, *states))
        states, scanned = results[: len(states)], results[len(states) :]
        for values, value in zip(collected, scanned, strict=True):
            values.append(c.aux(Reshape((1, *value.shape)), value))
        known = c.known(condition)
        if known is None:
            raise c.unsupported("whether it goes on depends on the data")
        going, turn = bool(known.any()), turn + 1
    if collected and not turn:
        raise c.unsupported("it never runs, so the shapes of its outputs are not known")
    return [*states, *(_stacked(c, values) for values in collected)]


def _stacked(c: Conversion, values: list[Value]) -> Value:
    return values[0] if len(values) == 1 else c.aux(Concat(0), *values)
