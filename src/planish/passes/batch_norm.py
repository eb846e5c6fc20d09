"""Batch normalization by known statistics is one multiplication and one addition per channel.

      x                                x
      |                                |
    BatchNorm(scale, offset,   =>     Mul  ← scale / sqrt(variance + epsilon)
      mean, variance)                  |
      |                               Add  ← offset - mean * that

The multiplication then disappears into the weights of a convolution before it: see `scales.py`.
"""

from __future__ import annotations

import numpy as np

from planish.graph.graph import Graph, Value
from planish.ops.elementwise import ew
from planish.ops.normalization import BatchNorm
from planish.passes.rewrite import Apply, Const, Match, Rule, Var, rewrite


def lower_batch_norm(graph: Graph) -> bool:
    """Replaces every `BatchNorm` with constant parameters."""
    return rewrite(graph, RULES)


def _lower(m: Match) -> Value | None:
    op, x = m.ops["op"], m["x"]
    assert isinstance(op, BatchNorm)
    scale, offset, mean, variance = (
        np.asarray(m[name].data, np.float64) for name in ("scale", "offset", "mean", "variance")
    )
    with np.errstate(all="ignore"):
        factor = scale / np.sqrt(variance + op.epsilon)
        shift = offset - mean * factor
    name = m.root.name
    scaled = m.add(ew.Mul(), x, m.constant(factor, x, f"{name}/scale"))
    return m.add(ew.Add(), scaled, m.constant(shift, x, f"{name}/offset"))


RULES = (
    Rule(
        "batch_norm(x) => x * a + b",
        Apply(
            BatchNorm,
            Var("x"),
            Const("scale"),
            Const("offset"),
            Const("mean"),
            Const("variance"),
            called="op",
        ),
        _lower,
    ),
)
