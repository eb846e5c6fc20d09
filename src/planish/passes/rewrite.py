"""Rewrite rules as data: patterns over the graph, and the driver that applies a table of them.

A pass of simple rewrites is a table of `Rule`s. A rule has a label that reads as algebra, a pattern
and a function that builds the better value from what the pattern captured:

    Rule("relu(relu(x)) => relu(x)", Apply(ew.Relu, Apply(ew.Relu, X)), lambda m: ...)

`rewrite` visits nodes in order, then whatever a rewrite touched, until no rule applies.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType
from planish.ops.base import Op
from planish.ops.elementwise import ew

COMMUTATIVE: tuple[type[Op], ...] = (
    ew.Add,
    ew.Mul,
    ew.Maximum,
    ew.Minimum,
    ew.SquaredDifference,
    ew.Equal,
    ew.NotEqual,
    ew.LogicalAnd,
    ew.LogicalOr,
    ew.LogicalXor,
    ew.BitwiseAnd,
    ew.BitwiseOr,
    ew.BitwiseXor,
)
"""Ops of two inputs whose order does not matter."""

ORIGINS_SHOWN = 4
"""A merged node names at most this many of the user's ops."""

_TOLERANCE = {DType.BFLOAT16: 1e-2, DType.FLOAT16: 2e-3}


# ---- patterns --------------------------------------------------------------------------------


@dataclass
class Captured:
    """What a pattern has matched so far: values by name, and the nodes."""

    values: dict[str, Value] = field(default_factory=dict)
    nodes: tuple[Node, ...] = ()
    ops: dict[str, Op] = field(default_factory=dict)


@dataclass(frozen=True)
class Pattern:
    """Base class of patterns; ``a | b`` matches either."""

    def match(self, value: Value, found: Captured) -> Iterator[Captured]:
        """Every way in which the pattern matches the value, given what is captured already."""
        raise NotImplementedError

    def __or__(self, other: Pattern) -> Pattern:
        return Either((self, other))


@dataclass(frozen=True)
class Either(Pattern):
    """Matches what any of its options matches."""

    options: tuple[Pattern, ...]

    def match(self, value: Value, found: Captured) -> Iterator[Captured]:
        for option in self.options:
            yield from option.match(value, found)

    def __or__(self, other: Pattern) -> Pattern:
        return Either((*self.options, other))


@dataclass(frozen=True)
class Var(Pattern):
    """Any value; the same name again must be the same value."""

    name: str

    def match(self, value: Value, found: Captured) -> Iterator[Captured]:
        known = found.values.get(self.name)
        if known is None:
            yield Captured({**found.values, self.name: value}, found.nodes, found.ops)
        elif known is value:
            yield found


@dataclass(frozen=True)
class Const(Var):
    """A constant."""

    def match(self, value: Value, found: Captured) -> Iterator[Captured]:
        if value.is_constant:
            yield from super().match(value, found)


@dataclass(frozen=True)
class Scalar(Const):
    """A constant of one element."""

    def match(self, value: Value, found: Captured) -> Iterator[Captured]:
        if value.data is not None and value.data.size == 1:
            yield from super().match(value, found)


@dataclass(frozen=True)
class Number(Pattern):
    """A constant all of whose elements are this number, within the dtype's rounding."""

    value: float

    def match(self, value: Value, found: Captured) -> Iterator[Captured]:
        if value.data is not None and all_equal(value, self.value):
            yield found


@dataclass(frozen=True, init=False)
class Apply(Pattern):
    """An op applied to inputs; commutative ops match in either order.

    `kind` is the op's class or classes; `called` captures the op itself under a name.
    """

    kind: type[Op] | tuple[type[Op], ...]
    args: tuple[Pattern, ...]
    called: str

    def __init__(
        self, kind: type[Op] | tuple[type[Op], ...], *args: Pattern, called: str = ""
    ) -> None:
        object.__setattr__(self, "kind", kind)
        object.__setattr__(self, "args", args)
        object.__setattr__(self, "called", called)

    def match(self, value: Value, found: Captured) -> Iterator[Captured]:
        node = value.producer
        if node is None or not isinstance(node.op, self.kind):
            return
        if len(node.outputs) != 1:
            return
        if not (self.args and isinstance(self.args[-1], Rest)):
            if len(node.inputs) != len(self.args):
                return
        elif len(node.inputs) < len(self.args) - 1:
            return
        ops = {**found.ops, self.called: node.op} if self.called else found.ops
        start = Captured(found.values, (*found.nodes, node), ops)
        yield from _match_all(self.args, node.inputs, start)
        if isinstance(node.op, COMMUTATIVE) and node.inputs[0] is not node.inputs[1]:
            yield from _match_all(self.args, node.inputs[::-1], start)


@dataclass(frozen=True)
class Rest(Pattern):
    """As the last argument of `Apply`: any number of further inputs, which the node knows."""


def _match_all(
    patterns: Sequence[Pattern], values: Sequence[Value], found: Captured
) -> Iterator[Captured]:
    if not patterns or isinstance(patterns[0], Rest):
        yield found
        return
    for first in patterns[0].match(values[0], found):
        yield from _match_all(patterns[1:], values[1:], first)


@dataclass(frozen=True, init=False)
class Product(Pattern):
    """A product of factors in every order and association; squares count as two factors."""

    factors: tuple[Pattern, ...]
    kind: tuple[type[Op], ...]

    def __init__(self, *factors: Pattern) -> None:
        object.__setattr__(self, "factors", factors)
        object.__setattr__(self, "kind", (ew.Mul, ew.Square))

    def match(self, value: Value, found: Captured) -> Iterator[Captured]:
        if len(self.factors) == 1:
            yield from self.factors[0].match(value, found)
            return
        node = value.producer
        if node is None or not isinstance(node.op, self.kind):
            return
        start = Captured(found.values, (*found.nodes, node), found.ops)
        for chosen in range(1, (1 << len(self.factors)) - 1):
            left = [f for i, f in enumerate(self.factors) if chosen >> i & 1]
            right = [f for i, f in enumerate(self.factors) if not chosen >> i & 1]
            for first in Product(*left).match(node.inputs[0], start):
                yield from Product(*right).match(node.inputs[-1], first)


def all_equal(value: Value, number: float) -> bool:
    """Whether a value is a constant all of whose elements are `number`, within rounding."""
    if value.data is None or value.data.size == 0 or value.dtype is DType.BOOL:
        return False
    if not value.dtype.is_float:
        return bool(np.all(value.data == number))
    data = value.data.astype(np.float64)
    tolerance = _TOLERANCE.get(value.dtype, 1e-5)
    return bool(np.all(np.abs(data - number) <= tolerance * abs(number)))


def scalar(value: Value) -> float:
    """The only element of a constant."""
    assert value.data is not None
    return float(value.data.reshape(())[()])


# ---- rules -----------------------------------------------------------------------------------


class Match:
    """A pattern that matched at a node: what it captured, and the means to build its successor."""

    def __init__(self, graph: Graph, root: Node, found: Captured) -> None:
        self.graph, self.root = graph, root
        self.values, self.nodes, self.ops = found.values, found.nodes, found.ops
        self.created: list[Node] = []

    def __getitem__(self, name: str) -> Value:
        return self.values[name]

    @property
    def output(self) -> Value:
        """The value that the rule replaces."""
        return self.root.output

    def add(self, op: Op, *inputs: Value) -> Value:
        """Applies an op; the new node carries the origins of all nodes of the match."""
        origin = join_origins(self.nodes)
        node = self.graph.add_node(op, inputs, name=self.root.name, origin=origin)
        self.created.append(node)
        return node.output

    def constant(self, data: Any, like: Value, name: str = "") -> Value:
        """A constant of the dtype of another value."""
        array = np.asarray(data).astype(like.dtype.numpy)
        return self.graph.constant(array, name or f"{self.root.name}/constant")


Build = Callable[[Match], "Value | None"]


@dataclass(frozen=True)
class Rule:
    """A rewrite: where `pattern` matches, what `build` returns replaces the matched value.

    `build` may decline by returning None, and a result of another type than the replaced value's
    counts as declined too. The values inside a pattern must have no users outside of it, unless
    `shared` is set: rewriting would compute them twice.
    """

    label: str
    pattern: Apply | Product
    build: Build
    shared: bool = False


def rules(label: str, pattern: Pattern, build: Build) -> tuple[Rule, ...]:
    """A rule for each option of a pattern that matches one of several ops."""
    options = pattern.options if isinstance(pattern, Either) else (pattern,)
    found = []
    for option in options:
        assert isinstance(option, Apply | Product), "a rule starts from an op"
        found.append(Rule(label, option, build))
    return tuple(found)


def rewrite(graph: Graph, rules: Sequence[Rule]) -> bool:
    """Applies rules at every node until none applies; tells whether anything changed."""
    table: dict[type[Op], list[Rule]] = {}
    queue, queued, changed = deque(graph.nodes), set(graph.nodes), False
    dead: set[Node] = set()
    while queue:
        node = queue.popleft()
        queued.discard(node)
        kind = type(node.op)
        if kind not in table:
            table[kind] = [r for r in rules if issubclass(kind, r.pattern.kind)]
        if node in dead or not table[kind]:
            continue
        for rule in table[kind]:
            touched = _apply(graph, rule, node, dead)
            if touched is not None:
                changed = True
                for other in touched:
                    if other not in queued and other not in dead:
                        queue.append(other)
                        queued.add(other)
                break
    if changed:
        graph.tidy()
    return changed


def _apply(graph: Graph, rule: Rule, node: Node, dead: set[Node]) -> list[Node] | None:
    """Applies a rule at a node: the nodes worth another look, or None where it does not apply."""
    if len(node.outputs) != 1:
        return None
    for found in rule.pattern.match(node.output, Captured()):
        if not rule.shared and not _is_private(graph, node, found.nodes):
            continue
        match = Match(graph, node, found)
        new = rule.build(match)
        if new is None or new is node.output or new.type != node.output.type:
            for created in reversed(match.created):
                dead.update(release(graph, created)[0])
            continue
        users = list(node.output.users)
        removed, orphans = substitute(graph, node.output, new)
        dead.update(removed)
        return [*match.created, *users, *orphans]
    return None


def _is_private(graph: Graph, root: Node, nodes: Iterable[Node]) -> bool:
    inside = set(nodes)
    return all(
        node is root
        or all(
            inside.issuperset(v.users) and not any(v is o for o in graph.outputs)
            for v in node.outputs
        )
        for node in inside
    )


# ---- changing graphs -------------------------------------------------------------------------


def substitute(graph: Graph, old: Value, new: Value) -> tuple[list[Node], list[Node]]:
    """Replaces a value and detaches what nobody needs any more.

    A new node that computes the same value takes over the name of the old one.

    Returns
    -------
    tuple of list of Node
        The nodes removed, and the live nodes that read one of their inputs: their inputs now have
        fewer users.
    """
    producer, successor = old.producer, new.producer
    graph.replace(old, new)
    if producer is None:
        return [], []
    removed, orphans = release(graph, producer)
    if (
        successor
        and producer in removed
        and successor.name.startswith(f"{producer.name}_")
        and len(producer.outputs) == len(successor.outputs)
    ):
        swap_names(producer, successor)
    return removed, orphans


def swap_names(a: Node, b: Node) -> None:
    """Exchanges the names of two nodes and of their outputs."""
    a.name, b.name = b.name, a.name
    for x, y in zip(a.outputs, b.outputs, strict=True):
        x.name, y.name = y.name, x.name


def release(graph: Graph, node: Node) -> tuple[list[Node], list[Node]]:
    """Detaches a node from its inputs if nothing uses it, and then its producers likewise.

    Detached nodes leave the list of nodes with the next `Graph.tidy`.
    """
    removed: list[Node] = []
    orphans: dict[Node, None] = {}
    stack = [node]
    outputs = set(graph.outputs)
    while stack:
        node = stack.pop()
        if node in removed or any(v.users or v in outputs for v in node.outputs):
            continue
        removed.append(node)
        for value in node.inputs:
            value.users.pop(node, None)
            orphans.update(value.users)
            if value.producer:
                stack.append(value.producer)
    return removed, [n for n in orphans if n not in removed]


def has_one_user(graph: Graph, value: Value) -> bool:
    """Whether exactly one node reads the value, and it is not an output of the graph."""
    return len(value.users) == 1 and not any(value is o for o in graph.outputs)


def join_origins(nodes: Iterable[Node]) -> str:
    """The origins of merged nodes as one text: ``a (Conv2D) + b (BiasAdd)``.

    `nodes` come as a pattern finds them, the last one of the computation first.
    """
    parts: dict[str, None] = {}
    for node in reversed(list(nodes)):
        for part in node.origin.split(" + "):
            if part:
                parts[part] = None
    shown = [p for p in parts if p != "…"]
    if len(shown) > ORIGINS_SHOWN:
        shown = [*shown[: ORIGINS_SHOWN - 1], "…", shown[-1]]
    return " + ".join(shown)
