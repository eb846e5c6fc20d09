"""Which nodes may be lowered to a half, and why the others may not.

Lowered is work on float32 that pays and does not suffer: products, convolutions, pooling, norms,
elementwise work. In float32 stay what compares exactly (detection, and what leads to it
elementwise), coordinates, sums of powers, epsilons, constants outside the range, recurrent states,
and quantization (`planish.precision.kinds` and `.ranges` say what is which). Ops that only move
elements go with their neighbours, so that no value is rounded for their sake alone, and a group of
elementwise nodes with no lowered work beside it stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType
from planish.ops import (
    Identity,
    LogSoftmax,
    QuantizedSoftmax,
    ReduceMax,
    ReduceMean,
    ReduceMin,
    Reshape,
    Softmax,
)
from planish.ops.recurrent import Recurrent
from planish.precision.attention import levelled_attention
from planish.precision.kinds import (
    BOUNDED,
    COORDINATES,
    DETECTION,
    OBEDIENT,
    POWERS,
    SUMS,
    WHY_KEPT,
    Kind,
    float32_inputs,
    has_float32_work,
    kind_of,
    limits,
)
from planish.precision.ranges import Need, constant_need, passed_on, reason

ASKED = "layer_precision says so"

_WORK = (Kind.PRODUCT, Kind.NORM, Kind.WINDOW)

_LEADING = (LogSoftmax, ReduceMax, ReduceMean, ReduceMin, Softmax)
"""Work that may stand between the last product and detection, and belongs to the latter."""


@dataclass(frozen=True)
class Decision:
    """What becomes of the nodes that work in float32.

    Attributes
    ----------
    lowered : dict of Node to DType
        The nodes that leave float32.
    kept : dict of Node to str
        The others, with the reason.
    """

    lowered: dict[Node, DType] = field(default_factory=dict)
    kept: dict[Node, str] = field(default_factory=dict)


def obstacle(node: Node) -> str:
    """Why a node cannot be lowered even where a user insists; empty if it can."""
    if any(v.dtype is DType.FLOAT64 for v in (*node.inputs, *node.outputs)):
        return "it computes in float64"
    if kind_of(node) is Kind.KEEP and not isinstance(node.op, OBEDIENT):
        return WHY_KEPT.get(type(node.op), "it has no form for lower precisions")
    return ""


def decide(graph: Graph, dtype: DType, asked: Mapping[Node, DType] | None = None) -> Decision:
    """Decides about every node that works in float32.

    Parameters
    ----------
    graph : Graph
        An optimised graph; it is not changed.
    dtype : DType
        FLOAT16 or BFLOAT16: what nodes are lowered to.
    asked : mapping of Node to DType, optional
        What users ask for: it overrides everything but `obstacle`. FLOAT32 keeps a node.
    """
    return _Policy(graph, dtype, asked or {}).run()


class _Policy:
    def __init__(self, graph: Graph, dtype: DType, asked: Mapping[Node, DType]) -> None:
        self._graph, self._dtype = graph, dtype
        self._work = [n for n in graph.nodes if has_float32_work(n)]
        self._kept: dict[Node, str] = {}
        self._lowered: dict[Node, DType] = {}
        for node in self._work:
            wanted = asked.get(node)
            if wanted is DType.FLOAT32:
                self._kept[node] = ASKED
            elif wanted is not None and not obstacle(node):
                self._lowered[node] = wanted
        self._settled = frozenset((*self._kept, *self._lowered))
        self._asked = frozenset(self._lowered)
        self._outputs = set(graph.outputs)
        self._exact: set[Node] = set()
        """Nodes that lead to detection or are places: what they give is a coordinate."""
        self._sums: dict[Value, bool] = {}

    def run(self) -> Decision:
        self._keep_by_kind()
        self._keep_before_detection()
        self._keep_by_range()
        for node in self._work:
            if node not in self._kept and kind_of(node) not in (Kind.MOVE, Kind.READ):
                self._lowered.setdefault(node, self._dtype)
        self._move_with_neighbours()
        self._drop_lonely()
        self._read_what_is_given()
        order = {node: i for i, node in enumerate(self._graph.nodes)}
        return Decision(
            {n: self._lowered[n] for n in sorted(self._lowered, key=order.__getitem__)},
            {n: self._kept[n] for n in sorted(self._kept, key=order.__getitem__)},
        )

    def _keep(self, node: Node, why: str) -> None:
        if node not in self._settled:
            self._kept.setdefault(node, why)

    # ---- by what a node is ----------------------------------------------------------------

    def _keep_by_kind(self) -> None:
        for node in self._work:
            why = obstacle(node)
            if not why and kind_of(node) is Kind.KEEP:
                why = WHY_KEPT[type(node.op)]
            if why:
                self._keep(node, why)
            if isinstance(node.op, QuantizedSoftmax):
                for near in levelled_attention(node):
                    self._keep(near, "it multiplies levels")

    def _keep_before_detection(self) -> None:
        """Keeps what leads to detection and to places, back to the nearest product or norm."""
        stack: list[Value] = []
        for node in self._graph.nodes:
            if isinstance(node.op, DETECTION):
                stack += node.inputs
                self._exact.add(node)
            stack += [
                node.inputs[i] for i in COORDINATES.get(type(node.op), ()) if i < len(node.inputs)
            ]
        seen: set[Value] = set()
        work = set(self._work)
        while stack:
            value = stack.pop()
            source = value.producer
            if source is None or value in seen:
                continue
            seen.add(value)
            if kind_of(source) in _WORK and not isinstance(source.op, _LEADING):
                continue
            if source in work:
                self._exact.add(source)
                self._keep(source, "detection or sampling depends on its exact values")
            if not isinstance(source.op, Recurrent):
                stack += source.inputs

    # ---- by the values ------------------------------------------------------------------------

    def _keep_by_range(self) -> None:
        needs: dict[Value, Need] = {}
        work = set(self._work)
        for node in self._graph.nodes:
            if node in self._asked:
                continue
            if node not in work:
                continue
            follow = float32_inputs(node)
            given = [
                needs.get(v, Need.NONE) if i in follow else Need.NONE
                for i, v in enumerate(node.inputs)
            ]
            own = self._own_need(node)
            kind = kind_of(node)
            for need in given:
                forced = need & Need.HUGE if kind is Kind.PRODUCT else need
                if forced and kind in (*_WORK, Kind.POINT):
                    self._keep(node, reason(forced, self._dtype))
            result = passed_on(node, given) | own
            if result and kind is Kind.PRODUCT:
                result = Need.NONE
            for value in node.outputs:
                if value.dtype is DType.FLOAT32 and result:
                    needs[value] = result
        self._needs = needs

    def _own_need(self, node: Node) -> Need:
        """What a node adds to its inputs' needs; keeps the node where it adds something."""
        if node in self._exact:
            return Need.EXACT
        op, kind = node.op, kind_of(node)
        if kind is Kind.KEEP:
            if isinstance(op, OBEDIENT):
                return Need.EXACT if op.name == "cum_sum" else Need.WIDE
            return Need.EXACT if op.name == "onnx_fallback" else Need.NONE
        if kind is Kind.READ:
            return Need.NONE
        found = Need.NONE
        arrays = [v.data for i, v in enumerate(node.inputs) if i in float32_inputs(node)]
        for number in limits(node):
            arrays.append(np.float32(number).reshape(()))
        for data in arrays:
            if data is not None:
                digits = kind in (Kind.POINT, Kind.MOVE)
                need, why = constant_need(data, self._dtype, digits)
                if need:
                    self._keep(node, why)
                    found |= need
        if kind is Kind.POINT and not found and self._is_summed_power(node):
            self._keep(node, "a sum of its powers may leave the range")
            found |= Need.WIDE
        if kind is Kind.POINT and passed_on(node, [Need.NONE] * len(node.inputs)):
            self._keep(node, "it makes floats of whole numbers: counts or coordinates")
        return found

    def _is_summed_power(self, node: Node) -> bool:
        squared = node.op.name == "mul" and node.inputs[0] is node.inputs[1]
        if not (squared or isinstance(node.op, POWERS)):
            return False
        if all(v.op is not None and isinstance(v.op, BOUNDED) for v in node.inputs):
            return False
        return self._reaches_sum(node.output)

    def _reaches_sum(self, value: Value) -> bool:
        """Whether elementwise work and moves lead from a value to a sum."""
        if value in self._sums:
            return self._sums[value]
        self._sums[value] = False
        stack, seen = [value], {value}
        while stack:
            for node in stack.pop().users:
                if isinstance(node.op, SUMS):
                    self._sums[value] = True
                    return True
                kind = kind_of(node)
                if kind not in (Kind.POINT, Kind.MOVE) or isinstance(node.op, BOUNDED):
                    continue
                fresh = [v for v in node.outputs if v not in seen]
                seen.update(fresh)
                stack += fresh
        return False

    # ---- by the neighbours ----------------------------------------------------------------------

    def _move_with_neighbours(self) -> None:
        """Moves are lowered where all they move is lowered, or all who read it are."""
        movers = [n for n in self._work if kind_of(n) is Kind.MOVE and self._is_open(n)]
        wanted: set[Node] = set()
        for node in reversed(movers):
            values = [v for v in node.outputs if v.dtype is DType.FLOAT32]
            readers = [(v, u) for v in values for u in v.users]
            if (
                readers
                and not any(v in self._outputs for v in values)
                and not any(v in self._needs for v in values)
                and all(self._reads_low(u, v) or u in wanted for v, u in readers)
            ):
                wanted.add(node)
        for node in movers:
            sources = [v for v in node.inputs if v.dtype is DType.FLOAT32 and not v.is_constant]
            given = bool(sources) and all(self._is_low(v) for v in sources)
            if given and self._ends(node):
                self._kept[node] = "it gives an output as it is"
            elif node in wanted or given:
                self._lowered[node] = self._type_around(node, sources)
            else:
                self._kept[node] = "what it moves, or who reads it, is float32"

    def _ends(self, node: Node) -> bool:
        """Whether nothing follows: what makes the elements then gives them as float32 at once."""
        values = set(node.outputs)
        read = any(v.users for v in values)
        return isinstance(node.op, Reshape | Identity) and not read and values <= self._outputs

    def _is_open(self, node: Node) -> bool:
        return node not in self._kept and node not in self._lowered

    def _is_low(self, value: Value) -> bool:
        return value.producer is not None and value.producer in self._lowered

    def _reads_low(self, node: Node, value: Value) -> bool:
        if node not in self._lowered:
            return False
        return all(i in float32_inputs(node) for i, v in enumerate(node.inputs) if v is value)

    def _type_around(self, node: Node, sources: list[Value]) -> DType:
        """The dtype of what a move is given, or else of those who read it, where that is one."""
        given = [v.producer for v in sources if v.producer is not None]
        for around in (given, [u for v in node.outputs for u in v.users]):
            found = {self._lowered[n] for n in around if n in self._lowered}
            if len(found) == 1:
                return found.pop()
        return self._dtype

    def _drop_lonely(self) -> None:
        """Elementwise nodes and moves stay in float32 where no lowered work adjoins the group."""
        seen: set[Node] = set()
        for start in list(self._lowered):
            if start in seen:
                continue
            group, stack = [start], [start]
            seen.add(start)
            while stack:
                node = stack.pop()
                around = [v.producer for v in node.inputs if v.producer is not None]
                around += [u for v in node.outputs if v.dtype is DType.FLOAT32 for u in v.users]
                fresh = [n for n in around if n in self._lowered and n not in seen]
                seen.update(fresh)
                group += fresh
                stack += fresh
            if not any(n in self._asked or kind_of(n) in _WORK for n in group):
                for node in group:
                    del self._lowered[node]
                    self._kept[node] = "no work that pays adjoins it"

    def _read_what_is_given(self) -> None:
        """Comparisons and the like read lowered values where that changes nothing."""
        for node in self._work:
            if kind_of(node) is not Kind.READ or not self._is_open(node):
                continue
            values = [node.inputs[i] for i in float32_inputs(node)]
            types = {
                self._lowered.get(v.producer) if v.producer else None
                for v in values
                if v.data is None
            }
            dtype = types.pop() if len(types) == 1 else None
            if dtype is not None and all(
                v.data is None or _is_exact(v.data, dtype) for v in values
            ):
                self._lowered[node] = dtype
            else:
                self._kept[node] = "it compares what is float32"


def _is_exact(data: np.ndarray, dtype: DType) -> bool:
    with np.errstate(all="ignore"):
        return bool(np.array_equal(data.astype(dtype.numpy).astype(data.dtype), data))
