"""Which ops of a graph could not be converted, and why: what a partitioner needs to know.

Every node is converted on its own. Where that fails, the node's results go on as if they were
inputs of the graph, with the shapes that TensorFlow's shape functions give them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from planish.errors import ModelError, PlanishError
from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.convert import Importer
from planish.frontends.tensorflow.graphdef import Tensor
from planish.frontends.tensorflow.inputs import ModelInput, input_types, placeholder
from planish.frontends.tensorflow.model import tensorflow
from planish.frontends.tensorflow.weights import Weights
from planish.graph.dims import symbol
from planish.graph.graph import Graph, Value
from planish.graph.types import TensorType


@dataclass
class Analysis:
    """What can be converted of a graph.

    Attributes
    ----------
    graph : Graph
        What all nodes became that could be converted; their origins name TensorFlow's.
    reasons : dict of str to str
        The nodes that cannot be converted, by name, each with the reason.
    tensors : dict of Tensor to Value
        What is known of every tensor: type, and content or data.
    sources : dict of str to list of (Tensor, int)
        For each symbol the dimensions that it was introduced for. Several unknown first
        dimensions share the symbol of the batch, although nothing says that they are equal.
    """

    graph: Graph
    reasons: dict[str, str] = field(default_factory=dict)
    tensors: dict[Tensor, Value] = field(default_factory=dict)
    sources: dict[str, list[tuple[Tensor, int]]] = field(default_factory=dict)


def unsupported(
    graph_def: Any,
    types: Mapping[str, TensorType] | None = None,
    weights: Weights | None = None,
) -> dict[str, str]:
    """The nodes of a graph that cannot be converted, each with the reason.

    Parameters
    ----------
    graph_def : GraphDef
    types : mapping of str to TensorType, optional
        Types of placeholders, by node name, instead of those that they declare.
    weights : Weights, optional
        The arrays of nodes that only stand for them.

    Returns
    -------
    dict of str to str
        By node name. Placeholders are not in it: they are inputs.

    Raises
    ------
    ModelError
        The graph itself is damaged.
    """
    return analyze(graph_def, types, weights).reasons


def analyze(
    graph_def: Any,
    types: Mapping[str, TensorType] | None = None,
    weights: Weights | None = None,
    *,
    distinct: bool = False,
) -> Analysis:
    """Converts every node of a graph on its own; see `unsupported` for arguments and errors.

    `distinct` gives every unknown dimension a symbol of its own, also the batches.
    """
    importer = Importer(graph_def, "analysis", weights)
    result = Analysis(importer.graph, tensors=importer.tensors)
    shapes = _TensorFlowShapes(graph_def, types or {})
    placeholders = {n.name for n in graph_def.node if n.op in ("Placeholder", "PlaceholderV2")}
    placeholders -= importer.weights.keys()

    def introduce(tensor: Tensor, kind: TensorType | None, name: str) -> None:
        if kind is None:
            return
        if distinct:
            kind = _distinct(kind, len(result.sources))
        for axis, dim in enumerate(kind.shape):
            if not isinstance(dim, int):
                result.sources.setdefault(str(dim), []).append((tensor, axis))
        importer.tensors[tensor] = importer.graph.input(name, kind)

    for name in placeholders:
        kind = (types or {}).get(name) or _declared_type(importer.nodes[name])
        introduce((name, 0), kind, name)
    reasons = result.reasons
    reasons.update(
        dict.fromkeys(
            _inside_loops(graph_def), "it is in a loop of TensorFlow 1, which cannot be converted"
        )
    )
    roots = [(n.name, 0) for n in graph_def.node]
    for node in graphdef.ancestors(importer.nodes, roots, cut_loops=True):
        if node.name in placeholders:
            continue
        if node.name not in reasons:
            try:
                importer.convert(node)
                continue
            except PlanishError as error:
                reasons[node.name] = f"{error.what}: {error.why}" if error.why else error.what
        for index, kind in enumerate(shapes.of(node.name)):
            introduce((node.name, index), kind, f"{node.name}:{index}")
    return result


def _distinct(kind: TensorType, count: int) -> TensorType:
    """The type with a new symbol for each unknown dimension; `count` symbols exist already."""
    return TensorType(
        tuple(
            d if isinstance(d, int) else symbol(f"d{count}_{axis}")
            for axis, d in enumerate(kind.shape)
        ),
        kind.dtype,
    )


def _declared_type(node: Any) -> TensorType | None:
    try:
        return input_types([placeholder(node, node.name)])[0][node.name]
    except ModelError:
        return None


def _inside_loops(graph_def: Any) -> list[str]:
    """The nodes between Enter and Exit, with these."""
    readers: dict[str, list[Any]] = defaultdict(list)
    for node in graph_def.node:
        for source, _ in graphdef.data_inputs(node):
            readers[source].append(node)
    stack = [n for n in graph_def.node if n.op in ("Enter", "RefEnter")]
    seen: dict[str, None] = {}
    while stack:
        node = stack.pop()
        if node.name not in seen:
            seen[node.name] = None
            if node.op not in ("Exit", "RefExit"):
                stack += readers[node.name]
    return list(seen)


class _TensorFlowShapes:
    """Types of tensors by TensorFlow's own shape functions; asked only where ours fail."""

    def __init__(self, graph_def: Any, types: Mapping[str, TensorType]) -> None:
        self._graph_def = graph_def
        self._types = types

    def of(self, node: str) -> list[TensorType | None]:
        """The types of a node's outputs, None where even the rank is unknown."""
        if self._graph is None:
            return []
        op = self._graph.get_operation_by_name(node)
        return [
            _type_of((node, i), _shape_of(op, i, self._declared.get(node)), tensor.dtype)
            for i, tensor in enumerate(op.outputs)
        ]

    @cached_property
    def _declared(self) -> dict[str, Any]:
        """Shapes that the nodes themselves declare; TensorFlow ignores them."""
        return {
            n.name: n.attr[graphdef.SHAPES].list.shape
            for n in self._graph_def.node
            if graphdef.SHAPES in n.attr
        }

    @cached_property
    def _graph(self) -> Any:
        """The imported graph; None if TensorFlow refuses it (ops that are not registered)."""
        v1 = tensorflow().compat.v1
        graph = tensorflow().Graph()
        with graph.as_default():
            given = {
                f"{name}:0": v1.placeholder(
                    kind.dtype.numpy, [d if isinstance(d, int) else None for d in kind.shape]
                )
                for name, kind in self._types.items()
            }
            try:
                v1.import_graph_def(self._graph_def, input_map=given, name="")
            except (ValueError, tensorflow().errors.OpError):
                return None
        return graph


def _shape_of(op: Any, index: int, declared: Any) -> tuple[int | None, ...] | None:
    """The shape of an op's output, where TensorFlow knows it or could."""
    found = op.outputs[index].shape
    if found.rank is None and op.type == "LookupTableFindV2":
        keys, default = op.inputs[1:]
        found = keys.shape.concatenate(default.shape)  # which has the shape of one value
    if found.rank is not None:
        return tuple(found.as_list())
    return graphdef.shape_of(declared[index]) if declared and index < len(declared) else None


def _type_of(tensor: Tensor, shape: tuple[int | None, ...] | None, kind: Any) -> TensorType | None:
    dtype = graphdef.dtype_of(kind.as_datatype_enum)
    if shape is None or dtype is None:
        return None
    name = f"{tensor[0]}_{tensor[1]}"
    return input_types([ModelInput(name, name, shape, dtype)])[0][name]
