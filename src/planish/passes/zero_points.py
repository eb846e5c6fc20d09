"""Zero points that are known only when a network runs leave its products of integers.

    product(x, w, z, v) => product(x, w, 0, v) - z * sum(w - v)

Fast kernels take zero points out beforehand, so they must be known then; models that are quantized
as they run (ONNX's DynamicQuantizeLinear) compute them. All of it is modulo 2 ** 32, and exact.
"""

from __future__ import annotations

import numpy as np

from planish.graph.graph import Graph, Value
from planish.graph.types import DType
from planish.ops.elementwise import Cast, ew
from planish.ops.quantization import ConvInteger, MatMulInteger
from planish.passes.rewrite import Apply, Const, Match, Rule, Var, rewrite, swap_names


def move_zero_points(graph: Graph) -> bool:
    """Applies `RULES`."""
    return rewrite(graph, RULES)


def _behind(m: Match) -> Value | None:
    op, w, zero = m.ops["op"], m["w"], m["zero"]
    assert isinstance(op, MatMulInteger | ConvInteger)
    assert w.data is not None and m["v"].data is not None
    if zero.is_constant:
        return None
    if isinstance(op, MatMulInteger):
        if w.type.rank != 2:
            return None
        data = w.data.T if op.transpose_b else w.data
    else:
        if any(amount != 0 for pair in op.padding for amount in pair):
            return None  # what is padded counts as the zero point
        data = w.data
    centred = data.astype(np.int32) - m["v"].data.astype(np.int32)
    sums = centred.reshape(-1, data.shape[-1]).sum(axis=0, dtype=np.int32)
    name, origin = m.root.name, m.root.origin
    none = m.constant(0, zero, f"{name}/zero")
    product = m.add(op, m["x"], w, none, m["v"])
    assert product.producer is not None
    swap_names(m.root, product.producer)
    shift = m.add(ew.Mul(), m.add(Cast(DType.INT32), zero), m.graph.constant(sums, f"{name}/sums"))
    node = m.graph.add_node(ew.Sub(), (product, shift), name=f"{name}/shifted", origin=origin)
    m.created.append(node)
    return node.output


RULES = (
    Rule(
        "product(x, w, z, v) => product(x, w, 0, v) - z * sum(w - v)",
        Apply(
            (MatMulInteger, ConvInteger),
            Var("x"),
            Const("w"),
            Var("zero"),
            Const("v"),
            called="op",
        ),
        _behind,
    ),
)
