"""Operators that only wire: constants, identities, dropout. Random numbers are refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from planish.frontends.onnx.context import Conversion, NoFallbackError
from planish.frontends.onnx.converters.layout import broadcast
from planish.frontends.onnx.items import Item
from planish.frontends.onnx.registry import converter
from planish.graph import DType, Value


@converter("Identity")
def _identity(c: Conversion) -> Item:
    item = c.inputs[0] if c.inputs else None
    return c.input(0) if item is None else item


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
            value = c.graph.constant(data, c.name)
            return c.narrow.mark(value, c.tensor_type(name))
    raise c.unsupported("a constant of strings, or without a value")


@converter("Dropout")
def _dropout(c: Conversion) -> Sequence[Value]:
    x, training = c.input(0), c.optional(2)
    if training is not None:
        known, ratio = c.known(training), c.optional(1)
        share = None if ratio is None else c.known(ratio)
        drops_nothing = share is not None and not share.any()
        if not drops_nothing and (known is None or known.any()):
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
