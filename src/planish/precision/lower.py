"""The rewrite: nodes compute in halves, Casts stand at the borders, constants are converted.

    x: f32 ──▶ conv ──▶ f32        x: f32 ──▶ Cast ──▶ conv (f16) ──▶ Cast ──▶ f32
                ▲                                          ▲
             w: f32                                     w: f16

Fusion then makes the Casts part of the tasks around them, as any elementwise work. Inputs and
outputs of the graph keep their dtypes. A value is made narrow once for all its readers, so that one
copy of half the size serves them; it is made wide again for each reader apart, so that every one
of these Casts can become part of its reader.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType, TensorType
from planish.graph.verify import verify
from planish.ops import Cast
from planish.precision.kinds import float32_inputs
from planish.precision.rounding import rounded

SUFFIXES = {DType.FLOAT16: "fp16", DType.BFLOAT16: "bf16", DType.FLOAT32: "fp32"}
"""What the names of Casts and converted constants end in."""


def lower(graph: Graph, precisions: Mapping[Node, DType]) -> None:
    """Lowers nodes, in place.

    Parameters
    ----------
    graph : Graph
        An optimised graph, before `planish.plan.views.insert_copies`.
    precisions : mapping of Node to DType
        FLOAT16 or BFLOAT16 for each node that is to be lowered (`planish.precision.policy`);
        FLOAT32, and nodes that are not named, stay.

    Raises
    ------
    ModelError
        A node was named whose op has no form for halves.
    """
    wanted = {n: d for n, d in precisions.items() if d is not DType.FLOAT32}
    if not wanted:
        return
    _Lowering(graph, wanted).run()
    graph.tidy()
    verify(graph, after="lower")


class _Lowering:
    def __init__(self, graph: Graph, wanted: Mapping[Node, DType]) -> None:
        self._graph, self._wanted = graph, wanted
        self._constants: dict[tuple[Value, DType], Value] = {}
        self._narrow: dict[tuple[Value, DType], Value] = {}
        self._lowered: dict[Value, Node] = {}

    def run(self) -> None:
        graph = self._graph
        nodes = list(graph.nodes)
        # what each node reads in float32 is known only while its inputs still are
        follow = {node: float32_inputs(node) for node in nodes}
        apart = {
            node: [i for i, v in enumerate(node.inputs) if v.dtype is DType.FLOAT32]
            for node in nodes
        }
        for node, dtype in self._wanted.items():
            if isinstance(node.op, Cast) and node.op.to is DType.FLOAT32:
                node.op = Cast(dtype)
            for value in node.outputs:
                if value.dtype is DType.FLOAT32:
                    value.type = TensorType(value.shape, dtype)
                    self._lowered[value] = node
        for node in nodes:
            own = self._wanted.get(node, DType.FLOAT32)
            inputs = list(node.inputs)
            for i in apart[node]:
                inputs[i] = self._as(inputs[i], own if i in follow[node] else DType.FLOAT32, node)
            if any(a is not b for a, b in zip(inputs, node.inputs, strict=True)):
                graph.set_inputs(node, inputs)
        self._restore_outputs()
        for node in nodes:
            if isinstance(node.op, Cast) and node.inputs[0].type == node.output.type:
                graph.replace(node.output, node.inputs[0])

    def _as(self, value: Value, dtype: DType, reader: Node) -> Value:
        """A value, float32 before, in the dtype that a reader wants."""
        if value.dtype is dtype:
            return value
        if value.data is not None:
            return self._constant(value, value.data, dtype, reader)
        if dtype is DType.FLOAT32:
            return self._cast(value, dtype, reader.origin or reader.name)
        key = value, dtype
        if key not in self._narrow:
            producer = value.producer
            origin = (producer.origin or producer.name) if producer else ""
            self._narrow[key] = self._cast(value, dtype, origin or reader.origin or reader.name)
        return self._narrow[key]

    def _constant(self, value: Value, data: np.ndarray, dtype: DType, reader: Node) -> Value:
        key = value, dtype
        if key not in self._constants:
            converted = rounded(data, dtype, reader)
            self._constants[key] = self._graph.constant(converted, _named(value, dtype))
        return self._constants[key]

    def _cast(self, value: Value, dtype: DType, origin: str) -> Value:
        return self._graph.add(Cast(dtype), value, name=_named(value, dtype), origin=origin)

    def _restore_outputs(self) -> None:
        """Outputs that were float32 are again."""
        wide: dict[Value, Value] = {}
        for i, value in enumerate(self._graph.outputs):
            node = self._lowered.get(value)
            if node is None:
                continue
            if value not in wide:
                wide[value] = self._cast(value, DType.FLOAT32, node.origin or node.name)
            self._graph.outputs[i] = wide[value]


def _named(value: Value, dtype: DType) -> str:
    return f"{value.name}/{SUFFIXES[dtype]}"
