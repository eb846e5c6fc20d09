"""The rewrite: products become products of integers, levels are all that is kept between them.

    x ──▶ conv ──▶ add ──▶ relu ──▶ y           x ──▶ Quantize ──▶ conv_integer ──▶ Dequantize
           ▲                                                          ▲                 │
           w                                               int8 w ────┘   Quantize ◀── relu ◀── add

Every tensor that a quantized product reads exists as levels; whoever else reads it reads the levels
too, through a Dequantize of its own, which becomes part of the reader. What only moves or compares
elements moves levels. All conversions are elementwise: fusion makes them parts of the tasks around,
so that floats between two quantized layers exist in registers alone. Codes of FP8 go the same way.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planish.fusion.attention import Found
from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType
from planish.graph.verify import verify
from planish.ops import (
    Concat,
    Conv,
    Gather,
    Identity,
    MatMul,
    MaxPool,
    Pad,
    ReduceMax,
    ReduceMin,
    Reshape,
    Resize,
    Slice,
    Tile,
    Transpose,
    ew,
)
from planish.ops.float8 import decode
from planish.quantization.attention import CENTRED, fold_steps, quantize_attentions
from planish.quantization.products import multiply_codes, multiply_levels, suffix_of
from planish.quantization.ranges import Ranges
from planish.quantization.requantize import fold_scales
from planish.quantization.scheme import Codes, Float8Scheme, Levels, Scheme
from planish.quantization.spread import channel_factors, factors_of_weights, matrix_of
from planish.quantization.weights import encode_weights, mean_shift, quantize_weights

_MOVES = (
    Concat,
    Gather,
    Identity,
    MaxPool,
    Pad,
    ReduceMax,
    ReduceMin,
    Reshape,
    Resize,
    Slice,
    Tile,
    Transpose,
)
"""Ops whose results are elements of what they read: on levels they give levels."""

_COMPARES = (MaxPool, ReduceMax, ReduceMin)
"""Those that choose elements by their order."""


def is_product(node: Node) -> bool:
    """Whether a node could become a product of integers: of float32 by constant weights."""
    if not isinstance(node.op, Conv | MatMul) or node.output.dtype is not DType.FLOAT32:
        return False
    x, weights = node.inputs
    if weights.data is None or x.is_constant or not weights.data.size:
        return False
    if isinstance(node.op, MatMul):
        return not node.op.transpose_a and weights.type.rank == 2 and x.type.rank >= 2
    return bool(node.op.strides)


def moves_levels(node: Node, ordered: bool = True) -> bool:
    """Whether a node gives levels where it is given levels, which are `ordered` as floats are."""
    op = node.op
    if not isinstance(op, _MOVES) or node.outputs[0].dtype is not DType.FLOAT32:
        return False
    if isinstance(op, _COMPARES) and not ordered:
        return False
    if isinstance(op, Pad):
        return op.mode != "constant" or op.value == 0
    return not isinstance(op, Resize) or op.mode == "nearest"


def moved(node: Node) -> tuple[Value, ...]:
    """The inputs whose elements a node of `moves_levels` gives."""
    return node.inputs if isinstance(node.op, Concat) else node.inputs[:1]


@dataclass(frozen=True)
class Quantized:
    """What a rewrite made.

    Attributes
    ----------
    layers : tuple of str
        The products that became products of integers.
    levels : dict of str to Levels
        Of each tensor that is kept as levels, by its name in the float32 graph.
    """

    layers: tuple[str, ...]
    levels: Mapping[str, Levels | Codes]


def quantized_values(
    graph: Graph, products: Iterable[Node], ordered: bool = True
) -> list[list[Value]]:
    """The tensors to be kept as levels where these nodes are quantized, as groups of one scale;
    `ordered` as for `moves_levels`.
    """
    groups = _Groups()
    work = [node.inputs[0] for node in products]
    seen: set[Value] = set()
    while work:
        value = work.pop()
        if value in seen or value.is_constant:
            continue
        seen.add(value)
        groups.add(value)
        producer = value.producer
        moves = producer is not None and moves_levels(producer, ordered)
        sources = moved(producer) if producer is not None and moves else ()
        if not any(v.is_constant for v in sources):
            for source in sources:
                groups.join(value, source)
                work.append(source)
        for user in value.users:
            if (
                moves_levels(user, ordered)
                and not isinstance(user.op, Concat)
                and user.inputs[0] is value
            ):
                groups.join(value, user.output)
                work.append(user.output)
    return groups.lists()


def summands(graph: Graph, products: Iterable[Node]) -> list[Value]:
    """Results of products that are only added to those of other products: of two the earlier.

    They are written out, and fewer bytes as levels than as floats; the later product adds them
    where its sums are still in registers. They stay floats where their range is not known.
    """
    chosen, outputs = set(products), set(graph.outputs)
    rank = {node: i for i, node in enumerate(graph.nodes)}
    found = []
    for node in graph.nodes:
        if not isinstance(node.op, ew.Add) or len(set(node.inputs)) < 2:
            continue
        behind = {v: _product_behind(v, chosen, outputs) for v in node.inputs}
        if all(behind.values()) and all(v.shape == node.output.shape for v in behind):
            found.append(min(behind, key=lambda v: rank[behind[v]]))  # type: ignore[index]
    return found


def _product_behind(value: Value, chosen: set[Node], outputs: set[Value]) -> Node | None:
    """The product of which nobody else reads a value; between them is what scales and shifts."""
    while value not in outputs and len(value.users) == 1 and value.producer is not None:
        node = value.producer
        if node in chosen:
            return node
        steps = [v for v in node.inputs if not v.is_constant]
        if not isinstance(node.op, ew.Add | ew.Mul) or len(steps) != 1:
            return None
        value = steps[0]
    return None


def quantize(
    graph: Graph,
    products: Iterable[Node],
    ranges: Ranges,
    scheme: Scheme | Float8Scheme,
    attentions: Sequence[Found] = (),
) -> Quantized:
    """Quantizes products, in place.

    Parameters
    ----------
    graph : Graph
        An optimised graph, before `planish.plan.views.insert_copies`.
    products : iterable of Node
        Nodes of `is_product`.
    ranges : Ranges
        Of one tensor at least of each of `quantized_values`' groups: see `missing_ranges`.
    scheme : Scheme or Float8Scheme
        The target's; or `FLOAT8`, for products of matrices.
    attentions : sequence of Found
        Of `planish.quantization.attention.quantizable_attentions`.
    """
    chosen = set(products)
    wanted = [node for node in graph.nodes if node in chosen]
    mixed = {found.mix for found in attentions}
    if not wanted and not mixed:
        return Quantized((), {})
    levels: dict[Value, Levels | Codes] = {}
    for group in quantized_values(graph, wanted, scheme.is_ordered):
        known = [ranges.tensors[v.name] for v in group if v.name in ranges.tensors]
        centred = (
            CENTRED if scheme.attention and any(v.producer in mixed for v in group) else scheme
        )
        own = centred.levels(min(low for low, _ in known), max(high for _, high in known))
        if scheme.by_channel and (found := channel_factors(group, wanted, ranges)):
            factors, least, greatest = found
            own = replace(scheme.levels(least, greatest), factors=tuple(map(float, factors)))
        levels.update(dict.fromkeys(group, own))
    for value in summands(graph, wanted) if isinstance(scheme, Scheme) else ():
        if value.name in ranges.tensors:
            levels.setdefault(value, scheme.levels(*ranges.tensors[value.name]))
    named = {value.name: own for value, own in levels.items()}
    named.update(quantize_attentions(graph, attentions, ranges))
    _Rewrite(graph, levels, ranges.means, scheme.short).run(wanted)
    graph.tidy()
    fold_scales(graph)
    fold_steps(graph)
    graph.tidy()
    verify(graph, after="quantize")
    layers = (*wanted, *(found.softmax for found in attentions))
    return Quantized(tuple(node.name for node in layers), named)


def missing_ranges(
    graph: Graph, products: Iterable[Node], ranges: Ranges, ordered: bool = True
) -> list[Value]:
    """The tensors without a range that quantizing these nodes needs, one of each group."""
    groups = quantized_values(graph, products, ordered)
    return [g[0] for g in groups if not any(v.name in ranges.tensors for v in g)]


class _Groups:
    """Values that share their levels: disjoint sets."""

    def __init__(self) -> None:
        self._parent: dict[Value, Value] = {}

    def add(self, value: Value) -> None:
        self._parent.setdefault(value, value)

    def join(self, a: Value, b: Value) -> None:
        self.add(a)
        self.add(b)
        self._parent[self._root(a)] = self._root(b)

    def lists(self) -> list[list[Value]]:
        found: dict[Value, list[Value]] = {}
        for value in self._parent:
            found.setdefault(self._root(value), []).append(value)
        return list(found.values())

    def _root(self, value: Value) -> Value:
        while self._parent[value] is not value:
            value = self._parent[value]
        return value


class _Rewrite:
    def __init__(
        self,
        graph: Graph,
        levels: dict[Value, Levels | Codes],
        means: Mapping[str, Sequence[float]],
        short: bool,
    ) -> None:
        self._graph, self._levels, self._short = graph, levels, short
        known = {v: means[v.name] for v in levels if v.name in means}
        self._means = {v: m for v, m in known.items() if len(m) == v.shape[-1]}
        self._integers: dict[Value, Value] = {}

    def run(self, products: list[Node]) -> None:
        graph = self._graph
        nodes = list(graph.nodes)
        origins = {v: n.origin or n.name for n in reversed(nodes) for v in n.inputs}
        for value in graph.inputs:
            if value in self._levels:
                self._integers[value] = self._quantize(value, origins.get(value, value.name))
        quantized = set(products)
        moves = [n for n in nodes if self._moves(n)]
        on_levels = {n for n in moves if all(v in self._levels for v in moved(n))}
        for node in nodes:
            if node in quantized:
                self._make_integer(node)
                continue
            if node not in on_levels:
                self._read_levels(node)
            for value in node.outputs:
                if value in self._levels:
                    self._integers[value] = (
                        self._move(node)
                        if node in on_levels
                        else self._quantize(value, node.origin or node.name)
                    )

    def _moves(self, node: Node) -> bool:
        """Whether a node is to move levels."""
        own = self._levels.get(node.outputs[0])
        return own is not None and moves_levels(node, isinstance(own, Levels))

    def _quantize(self, value: Value, origin: str) -> Value:
        own = self._levels[value]
        return self._graph.add(
            own.encoder,
            value,
            *self._parameters(own),
            name=f"{value.name}/{suffix_of(own)}",
            origin=origin,
        )

    def _move(self, node: Node) -> Value:
        op = node.op
        if isinstance(op, Pad) and op.mode == "constant":
            op = replace(op, value=float(self._levels[node.output].zero))
        given = [self._integers[v] for v in moved(node)]
        inputs = (*given, *node.inputs[len(given) :])
        own = self._levels[node.output]
        return self._graph.add(
            op,
            *inputs,
            name=f"{node.output.name}/{suffix_of(own)}",
            origin=node.origin or node.name,
        )

    def _read_levels(self, node: Node) -> None:
        """Gives a node that computes with floats those that the levels stand for."""
        inputs = [self._dequantized(v, node) if v in self._levels else v for v in node.inputs]
        if any(a is not b for a, b in zip(inputs, node.inputs, strict=True)):
            self._graph.set_inputs(node, inputs)

    def _dequantized(self, value: Value, reader: Node) -> Value:
        return self._graph.add(
            self._levels[value].decoder,
            self._integers[value],
            *self._parameters(self._levels[value]),
            name=f"{value.name}/fp32",
            origin=reader.origin or reader.name,
        )

    def _parameters(self, levels: Levels | Codes) -> list[Value]:
        """Scale, and of levels the zero point, as float32 constants."""
        names = "scale", "zero"
        return [
            self._graph.constant(data, name)
            for data, name in zip(levels.parameters, names, strict=False)
        ]

    def _make_integer(self, node: Node) -> None:
        """Makes a product one of integers or codes; its readers read what the sums stand for."""
        graph = self._graph
        x, weights = node.inputs
        own = self._levels[x]
        data, groups = matrix_of(node)
        factors = np.asarray(own.factors or 1.0)
        if own.factors:
            wide = factors_of_weights(factors, data.shape, groups)
            data = (data * wide).astype(np.float32)
        sums = node.output
        if isinstance(own, Codes):
            codes, scales = encode_weights(data)
            result = multiply_codes(
                graph, node, self._integers[x], codes, np.float32(own.scale) * scales
            )
            integers = decode(codes)
        else:
            is_depthwise = groups > 1 and data.shape[-2] == 1
            integers, scales = quantize_weights(
                data, keep_sums=is_depthwise, short=self._short and not is_depthwise
            )
            result = multiply_levels(
                graph,
                node,
                self._integers[x],
                own.zero,
                (np.ascontiguousarray(integers), np.int8(0)),
                (own.scale * scales.astype(np.float64)).astype(np.float32),
            )
        if x in self._means:
            means = np.asarray(self._means[x]) / factors
            shift = mean_shift(data, integers, scales, means, groups)
            result = self._corrected(node, result, shift, f"{weights.name}/shift")
        if sums in self._levels:
            self._levels[result] = self._levels.pop(sums)
            if sums in self._means:
                self._means[result] = self._means.pop(sums)
            self._integers[result] = self._quantize(result, node.origin or node.name)

    def _corrected(self, node: Node, result: Value, shift: np.ndarray, name: str) -> Value:
        """What is to be read in a product's place where a vector is added; a bias takes it in."""
        graph = self._graph
        bias = _bias_behind(result, graph.outputs)
        if bias is not None:
            both = (bias.data + shift).astype(np.float32)
            add = next(iter(result.users))
            given = [graph.constant(both, bias.name) if v is bias else v for v in add.inputs]
            graph.set_inputs(add, given)
            return result
        wanted = graph.add(
            ew.Add(),
            result,
            graph.constant(shift, name),
            name=f"{node.name}/corrected",
            origin=node.origin,
        )
        graph.replace(result, wanted)
        return wanted


def _bias_behind(value: Value, outputs: Iterable[Value]) -> Value | None:
    """The constant, one number for each channel, that is all that a value's reader adds to it."""
    if len(value.users) != 1 or value in outputs:
        return None
    (user,) = value.users
    others = [v for v in user.inputs if v is not value]
    if not isinstance(user.op, ew.Add) or len(others) != 1 or others[0].data is None:
        return None
    return others[0] if others[0].shape == value.shape[-1:] else None
