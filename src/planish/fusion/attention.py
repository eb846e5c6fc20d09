"""Recognises attention, softmax(e(q kᵀ)) v, in the primitives that frameworks write it in.

    q ─▶ Transpose, Mul ─▶ MatMul ─▶ scale, mask ─▶ Softmax ─▶ row by row ─▶ MatMul ─▶ Transpose ─▶
    k ─▶ Transpose, Mul ─────┘       (elementwise)                             │
    v ─▶ Transpose ────────────────────────────────────────────────────────────┘

The nodes become one candidate task, whose inputs are q, k and v as they lie before the transposes.
A transpose or a scalar factor belongs to it where nothing else reads what it makes. What stands
between softmax and the second product may only do the same to a whole row of weights (a factor per
head, zero where everything is masked), so that it can be done to the result instead. Where levels
are made of the result, as in quantized networks, that belongs to it, too. So does what makes floats
of levels of q, k and v, where the weights are quantized as well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

from planish.fusion.fused import Fused
from planish.graph.graph import Node, Value
from planish.graph.types import DType
from planish.ops.elementwise import Cast, Elementwise, Select, ew
from planish.ops.float8 import EncodeFloat8
from planish.ops.matmul import MatMul
from planish.ops.normalization import QuantizedSoftmax, Softmax
from planish.ops.quantization import Dequantize, Quantize
from planish.ops.shape import Transpose

MIDDLE = 128
"""The level of 0 where q, k and v are levels."""

LONGEST = 24
"""Most elementwise nodes between the first product and softmax."""

Axes = tuple[int, ...]


@dataclass(frozen=True)
class Attention:
    """What a task of attention computes before its epilogue, as data.

    All tensors are seen with the axes ``[*batch, rows, columns]``: queries by depth, keys by depth,
    keys by values, and for the result queries by values.

    Attributes
    ----------
    sources : tuple of int
        Which of the task's inputs are q, k and v.
    axes : tuple of tuple of int
        For q, k, v and the result, which axis of the tensor in memory each of those is.
    scale : float
        Factor of all scores.
    scores : Fused
        Elementwise work on the scaled scores ``[*batch, queries, keys]``; its operands broadcast to
        them.
    guarded : bool
        Whether a query whose weights are NaN, as all its scores are -inf, gives 0.
    steps : tuple of int
        Where q, k and v are levels, unsigned ones with `MIDDLE` for 0: which of the task's inputs
        are the distances of these, float32 numbers. Empty where q, k and v are floats.
    levels : int
        How many levels weights have (`planish.ops.QuantizedSoftmax`); 0: they are floats.
    """

    sources: tuple[int, int, int]
    axes: tuple[Axes, Axes, Axes, Axes]
    scale: float
    scores: Fused
    guarded: bool
    steps: tuple[int, ...] = ()
    levels: int = 0

    def __str__(self) -> str:
        scores = f"{self.scores.expression} of {self.scores.sources}"
        guarded = ", guarded" if self.guarded else ""
        levels = f", levels={self.levels} of {self.steps}" if self.levels else ""
        return f"attention(axes={self.axes}, scale={self.scale!r}{guarded}{levels}) [{scores}]"


@dataclass(frozen=True)
class Found:
    """The nodes of an attention, by what they do.

    Attributes
    ----------
    operands : tuple of Value
        q, k and v as they come from outside.
    axes, scale, guarded
        See `Attention`.
    product, mix : Node
        The two products; the first one's output are the scores.
    chain, rows : tuple of Node
        What is done to the scores, and to the weights (row by row).
    softmax : Node
    moves : tuple of Node
        Transposes and scalar factors.
    after : tuple of Node
        What makes levels of the result.
    steps : tuple of Value
        Where q, k and v are levels, the distances of these.
    """

    operands: tuple[Value, Value, Value]
    axes: tuple[Axes, Axes, Axes, Axes]
    scale: float
    guarded: bool
    product: Node
    chain: tuple[Node, ...]
    softmax: Node
    rows: tuple[Node, ...]
    guard: tuple[Node, ...]
    mix: Node
    moves: tuple[Node, ...]
    after: tuple[Node, ...]
    steps: tuple[Value, ...] = ()

    @property
    def nodes(self) -> set[Node]:
        """All nodes."""
        rest = (*self.chain, *self.rows, *self.guard, *self.moves, *self.after)
        return {self.product, self.softmax, self.mix, *rest}


@dataclass(frozen=True)
class _Reach:
    """What may belong to the task: nodes that are `open`, and only values that are `hidden`."""

    open: Callable[[Node], bool]
    hidden: Callable[[Value], bool]

    def user(self, value: Value) -> Node | None:
        """The only reader of a value, if both may belong to the task."""
        if len(value.users) != 1 or not self.hidden(value):
            return None
        (node,) = value.users
        return node if self.open(node) else None

    def maker(self, value: Value) -> Node | None:
        """The producer of a value that only one node reads, if both may belong to the task."""
        node = value.producer
        if node is None or len(value.users) != 1 or not self.hidden(value):
            return None
        return node if self.open(node) else None


def attention_around(
    softmax: Node, free: Collection[Node], outputs: Collection[Value]
) -> Found | None:
    """The attention in a graph whose weights a softmax gives; None if there is none.

    Nothing in `free` belongs to it, and of the graph's `outputs` at most its result.
    """
    return _find(softmax, _Reach(lambda n: n not in free, lambda v: v not in outputs))


def attention_of(nodes: Collection[Node]) -> Found | None:
    """The attention that consists of just these nodes; None if they are no such thing."""
    members = set(nodes)
    middle = [n for n in nodes if isinstance(n.op, Softmax)]
    if len(middle) != 1:
        return None
    found = _find(middle[0], _Reach(members.__contains__, lambda v: members.issuperset(v.users)))
    return found if found is not None and found.nodes == members else None


def _find(softmax: Node, reach: _Reach) -> Found | None:
    op, weights = softmax.op, softmax.output
    rank = weights.type.rank
    if not isinstance(op, Softmax) or op.axis % rank != rank - 1 or not weights.dtype.is_float:
        return None
    above = _scores(softmax.inputs[0], reach, LONGEST)
    if above is None:
        return None
    product, *chain = above
    weights, rows, guard = _row_work(weights, reach)
    mix = reach.user(weights)
    if mix is None or not isinstance(mix.op, MatMul):
        return None
    q, k = product.inputs
    assert isinstance(product.op, MatMul)
    if any(v.type.rank != rank for v in (q, k, *mix.inputs)):
        return None
    if any(n.output.dtype is DType.FLOAT64 for n in (*above, softmax, *rows, mix)):
        return None  # kernels know float32 between the products
    # the second product is weights by v, or v by weights, all transposed
    first = mix.inputs[0] is weights
    v = mix.inputs[1 if first else 0]
    if v is weights or (mix.op.transpose_a if first else not mix.op.transpose_b):
        return None
    v_swapped = mix.op.transpose_b if first else not mix.op.transpose_a
    seen = [
        _operand(q, product.op.transpose_a, reach, scaled=True),
        _operand(k, not product.op.transpose_b, reach, scaled=True),
        _operand(v, v_swapped, reach, scaled=False),
    ]
    axes = _swapped(rank) if not first else tuple(range(rank))
    after = _levels(mix.output, reach) if not rows else []
    last = reach.user(after[-1].output if after else mix.output)
    moves = [node for _, _, _, found in seen for node in found]
    if last is not None and isinstance(last.op, Transpose):
        moves.append(last)
        axes = tuple(last.op.perm.index(axis) for axis in axes)
    scale = seen[0][2] * seen[1][2]
    operands = [value for value, _, _, _ in seen]
    steps: list[Value] = []
    if isinstance(op, QuantizedSoftmax):
        read = [_dequantized(value, reach) for value in operands]
        if not all(read):
            return None
        moves += read  # type: ignore[arg-type]
        operands = [node.inputs[0] for node in read if node]
        steps = [node.inputs[1] for node in read if node]
    return Found(
        operands=(operands[0], operands[1], operands[2]),
        axes=(seen[0][1], seen[1][1], seen[2][1], axes),
        scale=scale,
        guarded=bool(guard),
        product=product,
        chain=tuple(chain),
        softmax=softmax,
        rows=tuple(rows),
        guard=tuple(guard),
        mix=mix,
        moves=tuple(moves),
        after=tuple(after),
        steps=tuple(steps),
    )


def _dequantized(value: Value, reach: _Reach) -> Node | None:
    """What makes floats of the levels of q, k or v; None if these are not as kernels know them."""
    node = reach.maker(value)
    if node is None or not isinstance(node.op, Dequantize):
        return None
    levels, step, zero = node.inputs
    if levels.dtype is not DType.UINT8 or step.data is None or step.data.size != 1:
        return None
    return node if zero.data is not None and (zero.data == MIDDLE).all() else None


def _levels(value: Value, reach: _Reach) -> list[Node]:
    """What makes levels of a value, or codes, all by one scale."""
    nodes: list[Node] = []
    node = reach.user(value)
    if node is not None and is_float_cast(node):
        nodes.append(node)
        node = reach.user(node.output)
    if node is None or not isinstance(node.op, Quantize | EncodeFloat8):
        return []
    known = all(v.data is not None and v.data.size == 1 for v in node.inputs[1:])
    return [*nodes, node] if known else []


def _swapped(rank: int) -> Axes:
    return (*range(rank - 2), rank - 1, rank - 2)


def _scores(value: Value, reach: _Reach, longest: int) -> list[Node] | None:
    """The product above a value and the elementwise nodes between them, in order."""
    node = reach.maker(value)
    if node is None:
        return None
    if isinstance(node.op, MatMul):
        return [node] if node.inputs[0].dtype.is_float else None
    if not isinstance(node.op, Elementwise) or longest == 0:
        return None
    for source in dict.fromkeys(node.inputs):
        if source.shape == value.shape:
            above = _scores(source, reach, longest - 1)
            if above is not None:
                return [*above, node]
    return None


def _row_work(value: Value, reach: _Reach) -> tuple[Value, list[Node], list[Node]]:
    """What follows the weights row by row: the last value, the nodes, and a guard against NaN."""
    rows: list[Node] = []
    guard: list[Node] = []
    while True:
        node = reach.user(value)
        if node is not None and _is_row_wise(node, value):
            rows.append(node)
        elif not guard and not rows and (guard := _nan_guard(value, reach)):
            node = guard[-1]
        else:
            return value, rows, guard
        assert node is not None
        value = node.output


def _is_row_wise(node: Node, value: Value) -> bool:
    """Whether a node does the same to every weight of a row, and keeps zeros and sums in place."""
    if node.output.shape != value.shape:
        return False
    if isinstance(node.op, Cast):
        return is_float_cast(node)
    others = [v for v in node.inputs if v is not value]
    if isinstance(node.op, ew.Mul):
        return len(others) == 1 and _is_per_row(others[0])
    if isinstance(node.op, Select) and len(others) == 2:
        condition, *choices = node.inputs
        zero = next(v for v in choices if v is not value) if value in choices else condition
        return _is_zero(zero) and _is_per_row(condition)
    return False


def is_float_cast(node: Node) -> bool:
    """Whether a node makes floats of other floats."""
    return isinstance(node.op, Cast) and node.op.to.is_float and node.inputs[0].dtype.is_float


def _is_per_row(value: Value) -> bool:
    return value.type.rank == 0 or value.shape[-1] == 1


def _is_zero(value: Value) -> bool:
    return value.data is not None and value.data.size == 1 and not value.data.any()


def _nan_guard(value: Value, reach: _Reach) -> list[Node]:
    """``select(is_nan(w), 0, w)``: the two nodes, or none."""
    if len(value.users) != 2 or not reach.hidden(value):
        return []
    for test in value.users:
        if not isinstance(test.op, ew.IsNan) or not reach.open(test):
            continue
        choice = reach.user(test.output)
        if choice is None or not isinstance(choice.op, Select) or choice not in value.users:
            continue
        condition, yes, no = choice.inputs
        if condition is test.output and no is value and _is_zero(yes):
            return [test, choice]
    return []


def _operand(
    value: Value, swapped: bool, reach: _Reach, scaled: bool
) -> tuple[Value, Axes, float, list[Node]]:
    """A factor before the transposes and scalar factors that only serve it.

    Gives the value, its axes as `Attention` has them, the factor, and the nodes.
    """
    rank = value.type.rank
    axes = _swapped(rank) if swapped else tuple(range(rank))
    scale = 1.0
    nodes: list[Node] = []
    while (node := reach.maker(value)) is not None:
        if isinstance(node.op, Transpose):
            perm = node.op.perm
            axes = tuple(perm[axis] for axis in axes)
            value = node.inputs[0]
        elif scaled and isinstance(node.op, ew.Mul) and (factor := _factor(node)) is not None:
            value, own = factor
            scale *= own
        else:
            break
        nodes.append(node)
    return value, axes, scale, nodes


def _factor(node: Node) -> tuple[Value, float] | None:
    """What a product with a scalar constant multiplies, and by what."""
    for value, other in (node.inputs, node.inputs[::-1]):
        data = other.data
        if data is not None and data.size == 1 and value.shape == node.output.shape:
            return value, float(data.reshape(())[()])
    return None
