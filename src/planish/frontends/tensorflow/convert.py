"""Walks a GraphDef in topological order and converts node by node.

`import_model` is the way in for a model; `import_graph_def` for a part of a graph between given
tensors; `unsupported` tells, op by op, what could not be converted.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from planish.errors import (
    InputError,
    ModelError,
    PlanishError,
    ShapeError,
    UnsupportedOpError,
)
from planish.frontends.tensorflow import families, graphdef, passing
from planish.frontends.tensorflow.context import CONVERTERS, Context
from planish.frontends.tensorflow.graphdef import Tensor
from planish.frontends.tensorflow.inputs import ModelInput, equal_sizes, placeholder
from planish.frontends.tensorflow.inputs import input_types as types_of_inputs
from planish.frontends.tensorflow.load import load_graph_def
from planish.frontends.tensorflow.weights import Weights
from planish.graph.graph import Graph, Value
from planish.graph.types import TensorType

__all__ = ["Importer", "import_graph_def", "import_model"]

log = logging.getLogger("planish")

families.load()


def import_model(
    source: Any,
    *,
    inputs: Mapping[str, Any] | None = None,
    outputs: Sequence[str] | None = None,
    name: str | None = None,
    signature: str = "serving_default",
    tags: Sequence[str] = ("serve",),
) -> Graph:
    """The graph of a TensorFlow or Keras model.

    Parameters
    ----------
    source
        What `load_graph_def` takes: a path, a GraphDef, a Keras model.
    inputs : mapping of str to shape or profile, optional
        Overrides the shapes that the model declares; see `input_types`. A PlaceholderWithDefault
        that is named here becomes an input; it is its default otherwise. Where the model joins
        inputs of unknown sizes, as tokens and their mask, these are taken to be equal.
    outputs : sequence of str, optional
        Names of the model's outputs or of any tensors in it (``"node"``, ``"node:1"``); by default
        all outputs of the model. Inputs that these do not need are left out.
    name : str, optional
        The graph's name; by default the model's.
    signature, tags
        Which function of a SavedModel.

    Raises
    ------
    ModelError
        The model cannot be read.
    UnsupportedOpError
        The outputs need an op that cannot be converted.
    ShapeError
        Shapes do not fit inside the model.
    InputError
        An input or output that is named does not exist, or a shape is malformed.
    """
    model = load_graph_def(source, tags=tags, signature=signature)
    known = {o.name: o.tensor for o in model.outputs}
    wanted = {o: known.get(o.removesuffix(":0"), o) for o in outputs} if outputs else known
    nodes = graphdef.nodes_by_name(model.graph_def)
    for user_name, tensor in wanted.items():
        if graphdef.tensor_name(tensor)[0] not in nodes:
            raise InputError(
                f"The model has no output or node {user_name!r}",
                where="outputs",
                why=f"its outputs are {', '.join(map(repr, known))}",
                cure="use one of these, or the name of a node",
            )
    declared = [*model.inputs, *_defaults_named(nodes, model.inputs, inputs or {})]
    if outputs or not model.has_signature:
        given = {i.name.removesuffix(":0") for i in declared} & {
            n.removesuffix(":0") for n in inputs or {}
        }
        declared = _needed(nodes, declared, wanted.values(), given)

    def imported(shapes: Mapping[str, Any] | None) -> Graph:
        types, ranges = types_of_inputs(declared, shapes)
        graph = import_graph_def(
            model.graph_def,
            {i.name: i.tensor for i in declared},
            wanted,
            input_types=types,
            graph_name=name or model.name,
            weights=model.weights,
        )
        graph.ranges.update(ranges)
        return graph

    try:
        return imported(inputs)
    except ShapeError:
        alike = equal_sizes(declared, inputs)
        if alike is None:
            raise
        try:
            graph = imported(alike)
        except PlanishError:
            graph = None
        if graph is None:
            raise
    log.info("unknown dimensions of %s are taken to be equal, axis by axis", ", ".join(alike))
    return graph


def import_graph_def(
    graph_def: Any,
    inputs: Mapping[str, str] | Sequence[str],
    outputs: Mapping[str, str] | Sequence[str],
    *,
    input_types: Mapping[str, TensorType] | None = None,
    graph_name: str = "graph",
    weights: Weights | None = None,
) -> Graph:
    """The part of a GraphDef that computes `outputs` from `inputs`.

    Parameters
    ----------
    graph_def : GraphDef
    inputs, outputs : mapping of str to str, or sequence of str
        User's name to tensor name (``"node"`` or ``"node:1"``), or tensor names that are both. Any
        tensor may be an input, not only placeholders.
    input_types : mapping of str to TensorType, optional
        By user's name. What it lacks is taken from the placeholder.
    graph_name : str
    weights : Weights, optional
        The arrays of nodes that only stand for them.

    Raises
    ------
    ModelError
        The graph is damaged, or an input has no type.
    UnsupportedOpError
        The outputs need an op that cannot be converted.
    ShapeError
        Shapes do not fit inside the model.
    """
    importer = Importer(graph_def, graph_name, weights)
    importer.add_inputs(inputs, input_types)
    wanted = {n: graphdef.tensor_name(t) for n, t in _by_name(outputs).items()}
    for node in graphdef.ancestors(importer.nodes, wanted.values(), importer.tensors):
        importer.convert(node)
    for user_name, tensor in wanted.items():
        importer.graph.mark_output(importer.value(tensor, user_name), user_name)
    importer.graph.tidy()
    return importer.graph


class Importer:
    """A graph in the making, and the values of the tensors converted so far."""

    def __init__(self, graph_def: Any, name: str, weights: Weights | None = None) -> None:
        self.weights = weights or {}
        self.nodes = graphdef.nodes_by_name(graph_def)
        self.graph = Graph(name)
        self.tensors: dict[Tensor, Value] = {}

    def add_inputs(
        self,
        inputs: Mapping[str, str] | Sequence[str],
        types: Mapping[str, TensorType] | None = None,
    ) -> None:
        """Makes tensors inputs of the graph.

        Raises
        ------
        ModelError
            An input does not exist, or its type is neither given nor declared.
        """
        wanted = _by_name(inputs)
        missing = [n for n in wanted if n not in (types or {})]
        declared = [self._declared(n, wanted[n]) for n in missing]
        found, ranges = types_of_inputs(declared)
        self.graph.ranges.update(ranges)
        for user_name, tensor in wanted.items():
            kind = (types or {}).get(user_name) or found[user_name]
            self.tensors[graphdef.tensor_name(tensor)] = self.graph.input(user_name, kind)

    def convert(self, node: Any) -> None:
        """Converts one node, whose inputs have been converted.

        Raises
        ------
        UnsupportedOpError
            There is no converter, or the converter refuses.
        ModelError
            The node is malformed.
        ShapeError
            Shapes do not fit.
        """
        if node.name in self.weights:
            array = self.weights[node.name]
            self.tensors[node.name, 0] = self.graph.constant(array, node.name)
            return
        function = CONVERTERS.get(node.op)
        context = Context(self.graph, node)
        if function is None:
            foreign = _foreign_types(node)
            raise UnsupportedOpError(
                f"There is no conversion of the op {node.op}",
                where=context.origin,
                why=f"it works on values of type {foreign}, which only TensorFlow has"
                if foreign
                else "it is a custom op, or one that this version does not know",
                cure="let TensorFlow run it, or name outputs= that do not need it",
            )
        try:
            inputs = [self.value(t, context.origin) for t in graphdef.data_inputs(node)]
        except UnsupportedOpError:
            if node.op in passing.REFUSED:  # whatever its inputs are
                function(context)
            raise
        try:
            results = function(context, *inputs)
        except PlanishError as error:
            raise _located(error, context.origin) from error
        except (TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
            raise ModelError(
                f"The node {node.name!r} is malformed",
                where=context.origin,
                why=f"{len(inputs)} inputs of types {', '.join(str(v.type) for v in inputs)}: "
                f"{error}",
                cure="export the model again",
            ) from error
        outputs = [results] if isinstance(results, Value) else results
        for index, value in enumerate(outputs):
            if value is not None:
                self.tensors[node.name, index] = value

    def value(self, tensor: Tensor, reader: str) -> Value:
        """The value of a tensor that has been converted.

        Raises
        ------
        UnsupportedOpError
            The tensor's node gave no value for it.
        """
        try:
            return self.tensors[tensor]
        except KeyError:
            name, index = tensor
            node = self.nodes.get(name)
            raise UnsupportedOpError(
                f"Output {index} of {graphdef.origin_of(node) if node else repr(name)} is not "
                "available",
                where=reader,
                why="the op could not be converted, or only its other outputs can be",
                cure="let TensorFlow run this op",
            ) from None

    def _declared(self, user_name: str, tensor: str) -> ModelInput:
        node = self.nodes.get(graphdef.tensor_name(tensor)[0])
        if node is None or node.op not in ("Placeholder", "PlaceholderWithDefault"):
            raise ModelError(
                f"Input {user_name!r} has no type" if node else f"There is no tensor {tensor!r}",
                where=f"input {user_name!r}",
                why="only placeholders declare their type" if node else "",
                cure="give its type in input_types" if node else "use the name of a node",
            )
        return placeholder(node, user_name)


def _defaults_named(
    nodes: Mapping[str, Any], declared: Sequence[ModelInput], named: Mapping[str, Any]
) -> list[ModelInput]:
    """The placeholders with defaults that the user names: they become inputs, too."""
    known = {i.name.removesuffix(":0") for i in declared}
    wanted = {name: nodes.get(name.removesuffix(":0")) for name in named}
    return [
        placeholder(node, name.removesuffix(":0"))
        for name, node in wanted.items()
        if node is not None
        and node.op == "PlaceholderWithDefault"
        and name.removesuffix(":0") not in known
    ]


def _needed(
    nodes: Mapping[str, Any],
    declared: Sequence[ModelInput],
    outputs: Any,
    named: set[str],
) -> list[ModelInput]:
    """The inputs that the outputs need, and those that the user named."""
    tensors = {graphdef.tensor_name(i.tensor): i for i in declared}
    roots = [graphdef.tensor_name(t) for t in outputs]
    read = set(roots)
    for node in graphdef.ancestors(nodes, roots, tensors):
        read.update(graphdef.data_inputs(node))
    return [i for t, i in tensors.items() if t in read or i.name in named]


def _by_name(names: Mapping[str, str] | Sequence[str]) -> dict[str, str]:
    return dict(names) if isinstance(names, Mapping) else {n: n for n in names}


def _foreign_types(node: Any) -> str:
    """The element types of a node's arguments that we do not have, as words."""
    from tensorflow.python.framework import op_def_registry

    op_def = op_def_registry.get(node.op)
    found: dict[str, None] = {}
    for argument in (*op_def.input_arg, *op_def.output_arg) if op_def else ():
        codes = [argument.type] if argument.type else [node.attr[argument.type_attr].type]
        if argument.type_list_attr:
            codes = list(node.attr[argument.type_list_attr].list.type)
        found.update((graphdef.dtype_text(c), None) for c in codes if not graphdef.dtype_of(c))
    return " and ".join(found)


def _located(error: PlanishError, origin: str) -> PlanishError:
    """The same error, naming the node if it names nothing yet."""
    if error.where:
        return error
    return type(error)(error.what, where=origin, why=error.why, cure=error.cure)
