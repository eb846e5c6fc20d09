"""Matrix products swallow the transposes and reshapes around them.

x                                x
|                                |
Reshape [B, S, K] -> [B*S, K]   MatMul    w
|                                |
MatMul    w            =>       Add       b
|                                |
Add       b
|
Reshape [B*S, N] -> [B, S, N]

matmul(transpose(x), y)             => matmul(x, y) with transpose_a
matmul(x, w) with transpose_b       => matmul(x, w'), w' the transposed constant
matmul(flatten(transpose(x)), w)    => matmul(flatten(x), w'), w' with its rows in x's order
matmul(reshape(x), w) then reshape  => matmul(x, w)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from planish.graph.dims import DimLike
from planish.graph.graph import Graph, Node, Value
from planish.ops.elementwise import Elementwise
from planish.ops.matmul import MatMul
from planish.ops.shape import Reshape, Transpose
from planish.passes.layouts import inverse, is_identity, reshape_groups
from planish.passes.rewrite import (
    Apply,
    Const,
    Match,
    Rule,
    Var,
    has_one_user,
    join_origins,
    rewrite,
    substitute,
)

X, Y, W = Var("x"), Var("y"), Const("w")


def simplify_matmuls(graph: Graph) -> bool:
    """Applies `RULES`, then takes reshapes away from around matrix products."""
    changed = rewrite(graph, RULES)
    for node in list(graph.nodes):
        if isinstance(node.op, Reshape) and _unflatten(graph, node):
            changed = True
    if changed:
        graph.tidy()
    return changed


# ---- transposes ------------------------------------------------------------------------------


def _without_swap(perm: tuple[int, ...]) -> tuple[int, ...] | None:
    """The permutation without exchanging the last two axes, where that keeps rows together."""
    if len(perm) < 2 or perm[-2] != len(perm) - 1:
        return None
    return (*perm[:-2], perm[-1], perm[-2])


def _transposed_operand(side: str):
    def build(m: Match) -> Value | None:
        op, transpose = m.ops["op"], m.ops["transpose"]
        assert isinstance(op, MatMul)
        assert isinstance(transpose, Transpose)
        perm = _without_swap(transpose.perm)
        if perm is None:
            return None
        operand = m[side] if is_identity(perm) else m.add(Transpose(perm), m[side])
        if side == "x":
            return m.add(replace(op, transpose_a=not op.transpose_a), operand, m["y"])
        return m.add(replace(op, transpose_b=not op.transpose_b), m["x"], operand)

    return build


def _transposed_constant(m: Match) -> Value | None:
    op, w = m.ops["op"], m["w"]
    assert isinstance(op, MatMul)
    assert w.data is not None
    if not op.transpose_b or w.type.rank < 2 or len(w.users) > 1:
        return None
    data = np.ascontiguousarray(np.swapaxes(w.data, -1, -2))
    return m.add(replace(op, transpose_b=False), m["x"], m.graph.constant(data, w.name))


def absorbs(reshape: Node, perm: tuple[int, ...]) -> bool:
    """Whether products take in a transpose by `perm` that would come before a reshape.

    They do if the reshape flattens just the axes that move, and constant weights are all that its
    result meets.
    """
    (x,), y = reshape.inputs, reshape.output
    if not y.users or _flattened(x.shape, perm, y.shape) is None:
        return False
    return all(
        isinstance(user.op, MatMul)
        and user.inputs[0] is y
        and not (user.op.transpose_a or user.op.transpose_b)
        and user.inputs[1].is_constant
        and user.inputs[1].type.rank == 2
        for user in y.users
    )


def _flattened(
    before: Sequence[DimLike], perm: tuple[int, ...], after: Sequence[DimLike]
) -> list[int] | None:
    """The last axes, if a reshape merges them to one and `perm` moves no others; else None."""
    groups = reshape_groups(before, after)
    while groups and len(groups) > 1 and not groups[-1][1]:
        ones, _ = groups.pop()
        groups[-1] = (groups[-1][0] + ones, groups[-1][1])
    if not groups or len(groups[-1][1]) != 1:
        return None
    axes = groups[-1][0]
    if not axes or any(perm[a] != a for a in range(axes[0])):
        return None
    return axes if all(isinstance(before[a], int) for a in axes) else None


def _reordered_rows(m: Match) -> Value | None:
    op, transpose, x, w = m.ops["op"], m.ops["transpose"], m["x"], m["w"]
    assert isinstance(op, MatMul)
    assert isinstance(transpose, Transpose)
    assert w.data is not None
    flat, perm = m.root.inputs[0].shape, transpose.perm
    before = tuple(x.shape[a] for a in perm)
    axes = _flattened(before, perm, flat)
    if axes is None or op.transpose_a or op.transpose_b or w.type.rank != 2:
        return None
    back = inverse(tuple(a - axes[0] for a in perm[axes[0] :]))
    sizes = [int(before[a]) for a in axes]  # type: ignore[arg-type]
    rows = w.data.reshape(*sizes, w.data.shape[-1]).transpose(*back, len(sizes))
    rows = np.ascontiguousarray(rows).reshape(w.data.shape)
    return m.add(op, m.add(Reshape(flat), x), m.graph.constant(rows, w.name))


_TRANSPOSED_X = Apply(Transpose, X, called="transpose")

RULES = (
    Rule(
        "matmul(transpose(x), y) => matmul(x, y)",
        Apply(MatMul, _TRANSPOSED_X, Y, called="op"),
        _transposed_operand("x"),
    ),
    Rule(
        "matmul(x, transpose(y)) => matmul(x, y)",
        Apply(MatMul, X, Apply(Transpose, Y, called="transpose"), called="op"),
        _transposed_operand("y"),
    ),
    Rule("matmul(x, w) => matmul(x, w')", Apply(MatMul, X, W, called="op"), _transposed_constant),
    Rule(
        "matmul(flatten(transpose(x)), w) => matmul(flatten(x), w')",
        Apply(MatMul, Apply(Reshape, _TRANSPOSED_X), W, called="op"),
        _reordered_rows,
        shared=True,
    ),
)


# ---- reshapes around a product ---------------------------------------------------------------


def _unflatten(graph: Graph, last: Node) -> bool:
    """Removes the reshape of rows before products, if `last` unflattens them."""
    chain: list[Node] = []
    value = last.inputs[0]
    while has_one_user(graph, value) and value.producer and _is_rowwise(value.producer):
        chain.append(value.producer)
        value = value.producer.inputs[0]
    if not any(isinstance(node.op, MatMul) for node in chain):
        return False
    flat = value.producer
    if flat is None or not isinstance(flat.op, Reshape):
        return False
    x = flat.inputs[0]
    rows, width = last.output.shape[:-1], last.inputs[0].shape[-1:]
    if not rows or x.shape[: len(rows)] != rows or last.output.shape[-1:] != width:
        return False
    whole = (*rows, *value.shape[-1:])
    if x.shape != whole:  # the depth is flattened too: heads, say
        x = graph.add(Reshape(whole), x, name=flat.name, origin=flat.origin)
    for node in reversed(chain):
        x = graph.add(node.op, x, *node.inputs[1:], name=node.name, origin=node.origin)
    assert x.producer is not None
    x.producer.origin = join_origins([last, chain[0]])
    substitute(graph, last.output, x)
    return True


def _is_rowwise(node: Node) -> bool:
    """Whether a node works on each row of its first input by itself, with constants only."""
    others = node.inputs[1:]
    if isinstance(node.op, MatMul):
        (w,) = others
        return w.is_constant and w.type.rank == 2 and not node.op.transpose_a
    if not isinstance(node.op, Elementwise) or node.output.shape != node.inputs[0].shape:
        return False
    return all(v.data is not None and v.type.rank <= 1 for v in others)
