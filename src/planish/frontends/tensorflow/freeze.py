"""Concrete functions and sessions as GraphDefs without variables: these become weights beside it.

TensorFlow's own freezing (`convert_variables_to_constants_v2`) writes the weights into the graph;
that takes minutes for large models and fails from 2 GB on. It is asked only for variables that
control flow reads inside its functions.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from planish.frontends.tensorflow import graphdef, variables
from planish.frontends.tensorflow.inline import Inlined
from planish.frontends.tensorflow.model import tensorflow
from planish.frontends.tensorflow.weights import place

_RESOURCE, _VARIANT = 20, 21
_CONTROL_FLOW = ("If", "StatelessIf", "Case", "StatelessCase", "While", "StatelessWhile")


class Captured(Protocol):
    """What a function captures: a tensor, or the handle of a variable.

    Attributes
    ----------
    code : int
        The number of the element type: of resources where it is a handle.
    shape : TensorShapeProto or None
        Of the variable behind a handle, where that is known.
    """

    @property
    def code(self) -> int: ...
    @property
    def shape(self) -> Any: ...

    def read(self, code: int) -> np.ndarray:
        """The tensor's value, or the variable's of that element type."""
        ...


class CapturedTensor(NamedTuple):
    """A tensor outside of any graph. A variable's value shares the variable's memory; assigning to
    that makes new memory."""

    tensor: Any

    @property
    def code(self) -> int:
        return int(self.tensor.dtype.as_datatype_enum)

    @property
    def shape(self) -> Any:
        data = getattr(self.tensor, "_handle_data", None)
        if data is None or len(data.shape_and_type) != 1:
            return None
        return data.shape_and_type[0].shape

    def read(self, code: int) -> np.ndarray:
        if self.code != _RESOURCE:
            return np.asarray(self.tensor)
        tf = tensorflow()
        with tf.init_scope():
            return np.asarray(
                tf.raw_ops.ReadVariableOp(resource=self.tensor, dtype=tf.as_dtype(code))
            )


AnyCaptured = TypeVar("AnyCaptured", bound=Captured)


@dataclass(frozen=True)
class GraphFunction(Generic[AnyCaptured]):
    """A function as a graph, which calls those of its library.

    Attributes
    ----------
    graph_def : GraphDef
    arguments, results : tuple of str
        Tensors; what is captured comes last among the arguments.
    captures : mapping of str to Captured
        By its placeholder.
    """

    graph_def: Any
    arguments: tuple[str, ...]
    results: tuple[str, ...]
    captures: Mapping[str, AnyCaptured]


@dataclass(frozen=True)
class FrozenGraph(Generic[AnyCaptured]):
    """A function as a graph without calls and, as far as possible, without variables.

    Attributes
    ----------
    graph_def : GraphDef
    weights : mapping of str to array
        Of the nodes that stand for them; see `planish.frontends.tensorflow.weights`.
    outputs : tuple of str
        The tensors that the function returns.
    captures : mapping of str to Captured
        By its placeholder, what the graph still takes from outside: handles of tables, and of
        variables that are written.
    """

    graph_def: Any
    weights: Mapping[str, np.ndarray]
    outputs: tuple[str, ...]
    captures: Mapping[str, AnyCaptured]


def freeze_function(function: Any, *, inside: bool = True) -> FrozenGraph[CapturedTensor]:
    """A concrete function without variables, and without calls of other functions.

    Parameters
    ----------
    function : ConcreteFunction
    inside : bool
        Whether variables that functions of control flow read become constants in these, too; else
        they stay captured.
    """
    source = GraphFunction(
        function.graph.as_graph_def(),
        tuple(t.name for t in function.inputs),
        tuple(t.name for t in function.outputs),
        {
            graphdef.tensor_name(inner.name)[0]: CapturedTensor(outer)
            for outer, inner in function.graph.captures
        },
    )
    inlined = Inlined(_inlined(source))
    found = _uses(source, inlined)
    hard = _read_inside(found) if inside else []
    if hard:
        inlined = Inlined(_frozen_by_tensorflow(function, hard))
    return _without_variables(source, inlined, found, hard)


def freeze_saved(function: GraphFunction[AnyCaptured]) -> FrozenGraph[AnyCaptured] | None:
    """The same for a function that is only there as a graph.

    Returns
    -------
    FrozenGraph or None
        None where control flow reads variables inside its functions.
    """
    inlined = Inlined(_inlined(function))
    found = _uses(function, inlined)
    return None if _read_inside(found) else _without_variables(function, inlined, found, [])


def _uses(function: GraphFunction[Any], inlined: Inlined) -> dict[str, variables.Use]:
    handles = [n for n, c in function.captures.items() if c.code == _RESOURCE]
    return variables.uses(inlined.graph_def, handles)


def _read_inside(found: Mapping[str, variables.Use]) -> list[str]:
    return [n for n, use in found.items() if use.inside and not use.written]


def _without_variables(
    function: GraphFunction[AnyCaptured],
    inlined: Inlined,
    found: Mapping[str, variables.Use],
    constant: Container[str],
) -> FrozenGraph[AnyCaptured]:
    """Weights in the place of variables, but for those that are written or `constant` already."""
    graph_def, captures = inlined.graph_def, function.captures
    weights: dict[str, np.ndarray] = {}
    easy = {
        name: (captures[name].read(use.code), use.code)
        for name, use in found.items()
        if use.code is not None and not use.written and name not in constant
    }
    kept = {name for name in easy if found[name].inside}
    variables.replace_handles(graph_def, easy, weights, kept)
    for node in graph_def.node:
        captured = captures.get(node.name)
        if captured is not None and captured.code not in (_RESOURCE, _VARIANT):
            place(node, captured.read(captured.code), captured.code, weights)
    for name, use in found.items():
        for node in use.reads if name not in easy else ():
            _declare_shape(node, captures[name].shape)
    left = {
        n.name
        for n in graph_def.node
        if n.name in captures and n.op == "Placeholder" and n.name not in weights
    }
    return FrozenGraph(
        graph_def,
        weights,
        tuple(map(inlined.tensor, function.results)),
        {n: c for n, c in captures.items() if n in left},
    )


def freeze_session(session: Any, outputs: Sequence[str]) -> FrozenGraph[CapturedTensor]:
    """The part of a session's graph that computes `outputs`, without variables and calls.

    Parameters
    ----------
    session : Session
        Of TensorFlow 1; its variables are initialized.
    outputs : sequence of str
        Names of tensors.
    """
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_from_session_graph,
    )
    from tensorflow.python.framework.graph_util import extract_sub_graph

    ends = sorted({graphdef.tensor_name(t)[0] for t in outputs})
    with _quiet():
        needed = extract_sub_graph(session.graph_def, ends)
    known = {n.name for n in needed.node}
    inlined = Inlined(needed)
    handles = [n.name for n in inlined.graph_def.node if n.op in variables.HANDLES]
    found = variables.uses(inlined.graph_def, [n for n in handles if n in known])
    hard = [n for n, use in found.items() if use.inside]
    if hard:
        with _quiet():
            inlined = Inlined(
                convert_variables_to_constants_from_session_graph(
                    session, needed, ends, variable_names_allowlist=hard
                )
            )
    graph_def = inlined.graph_def
    weights: dict[str, np.ndarray] = {}
    easy = {
        n: use.code
        for n, use in found.items()
        if use.code is not None and not use.inside and not use.written
    }
    read = session.run({n: _reading(session, n, code) for n, code in easy.items()})
    variables.replace_handles(graph_def, {n: (read[n], c) for n, c in easy.items()}, weights)
    written = variables.written_references(graph_def)
    references = [
        n for n in graph_def.node if n.op in variables.REFERENCES and n.name in known - written
    ]
    read = session.run({n.name: f"{n.name}:0" for n in references})
    for node in references:
        place(node, read[node.name], node.attr["dtype"].type, weights)
    return FrozenGraph(graph_def, weights, tuple(map(inlined.tensor, outputs)), {})


def _declare_shape(node: Any, shape: Any) -> None:
    """Notes the shape of a variable at an op that reads it, where only the handle knows it."""
    if shape is not None:
        shapes = node.attr[graphdef.SHAPES].list
        shapes.ClearField("shape")
        shapes.shape.add().CopyFrom(shape)


def _reading(session: Any, name: str, code: int) -> Any:
    tf = tensorflow()
    with session.graph.as_default():
        handle = session.graph.get_tensor_by_name(f"{name}:0")
        return tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.as_dtype(code))


def _inlined(function: GraphFunction[Any]) -> Any:
    """The graph of a function, its calls inlined by TensorFlow's optimizer."""
    from tensorflow.core.protobuf.config_pb2 import ConfigProto
    from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
    from tensorflow.core.protobuf.rewriter_config_pb2 import RewriterConfig
    from tensorflow.python.grappler import tf_optimizer

    meta = MetaGraphDef()
    meta.graph_def.CopyFrom(function.graph_def)
    bodies = [meta.graph_def.node, *(f.node_def for f in meta.graph_def.library.function)]
    for node in (n for body in bodies for n in body):
        if node.op in _CONTROL_FLOW:
            node.attr["_lower_using_switch_merge"].b = False
    for callee in meta.graph_def.library.function:
        # an implementation for other devices; it keeps the function from being inlined
        callee.attr.pop("api_implements", None)
    ends = (*function.arguments, *function.results)
    meta.collection_def["train_op"].node_list.value.extend(ends)
    config = ConfigProto()
    options = config.graph_options.rewrite_options
    options.min_graph_nodes = -1
    options.optimizers.append("function")
    options.function_optimization = RewriterConfig.AGGRESSIVE
    return tf_optimizer.OptimizeGraph(config, meta, graph_id=b"planish")


def _frozen_by_tensorflow(function: Any, names: Iterable[str]) -> Any:
    """The graph of a function with these variables, by their placeholders, as constants."""
    from tensorflow.python.framework import convert_to_constants

    with _quiet():
        data = convert_to_constants._FunctionConverterDataInEager(
            function, False, True, variable_names_allowlist=list(names)
        )
        graph_def, _ = convert_to_constants._replace_variables_by_constants(data)
    return graph_def


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps TensorFlow's deprecation notes about its own internals from the user."""
    logger = logging.getLogger("tensorflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
