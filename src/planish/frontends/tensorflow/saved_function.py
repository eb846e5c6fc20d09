"""The function behind a SavedModel's signature, read from the files themselves.

`tf.saved_model.load` makes objects of every function and variable of a model; that takes seconds
where one function and its variables take tenths. The way from a signature to its variables is that
of TensorFlow's loader: the signature's function in the graph of objects, the objects it is bound
to, and these objects' values in the checkpoint, whose own graph of objects has the same names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from planish.frontends.tensorflow.freeze import GraphFunction
from planish.frontends.tensorflow.inline import library
from planish.frontends.tensorflow.model import tensorflow

_RESOURCE = 20
_OBJECTS = "_CHECKPOINTABLE_OBJECT_GRAPH"


class SavedValue(NamedTuple):
    """What a saved function captures, by its value in the files; see `Captured`."""

    value: np.ndarray
    code: int
    shape: Any = None

    def read(self, code: int) -> np.ndarray:
        return self.value


def signature_function(meta: Any, folder: Path, signature: str) -> GraphFunction[SavedValue] | None:
    """The function of a signature with the values of the variables it is bound to.

    Parameters
    ----------
    meta : MetaGraphDef
        With a graph of objects, that is of TensorFlow 2.
    folder : Path
        Of the SavedModel.
    signature : str
        One that `meta` has.

    Returns
    -------
    GraphFunction or None
        None where the function is bound to more than plain variables (tables, assets, parts of
        distributed variables), which only TensorFlow's loader makes.

    Raises
    ------
    tf.errors.OpError
        The checkpoint lacks a value, or is damaged.
    """
    objects = meta.object_graph_def
    name = _function_name(objects, signature)
    functions = {f.signature.name: f for f in meta.graph_def.library.function}
    if name not in functions or name not in objects.concrete_functions:
        return None
    definition = functions[name]
    bound = objects.concrete_functions[name].bound_inputs
    values = _values(meta, bound, folder / "variables" / "variables")
    if values is None:
        return None
    graph_def, flat = _graph(definition, functions)
    arguments = [a.name for a in definition.signature.input_arg]
    captured = arguments[len(arguments) - len(bound) :]
    return GraphFunction(
        graph_def,
        tuple(f"{a}:0" for a in arguments),
        tuple(flat[definition.ret[a.name]] for a in definition.signature.output_arg),
        dict(zip(captured, values, strict=True)),
    )


def _function_name(objects: Any, signature: str) -> str:
    node = objects.nodes[0]
    for name in ("signatures", signature):
        children = {c.local_name: c.node_id for c in node.children}
        if name not in children:
            return ""
        node = objects.nodes[children[name]]
    return str(node.bare_concrete_function.concrete_function_name)


def _graph(definition: Any, functions: Mapping[str, Any]) -> tuple[Any, dict[str, str]]:
    """A function as a graph with those it calls, and what its tensors are called there."""
    from tensorflow.core.framework.graph_pb2 import GraphDef
    from tensorflow.python.framework.function_def_to_graph import function_def_to_graph_def

    called = GraphDef()
    called.library.function.extend(_called(definition, functions))
    with library(called):
        body, flat = function_def_to_graph_def(definition)
        v1 = tensorflow().compat.v1
        v1.import_graph_def(body, name="")  # with the attributes that saving leaves out
        return v1.get_default_graph().as_graph_def(), flat


def _called(definition: Any, functions: Mapping[str, Any]) -> list[Any]:
    """The functions it calls and those that these call."""
    found: dict[str, Any] = {}
    left = [definition]
    while left:
        for node in left.pop().node_def:
            names = [node.op]
            for value in node.attr.values():
                names += [f.name for f in (value.func, *value.list.func)]
            for name in names:
                if name in functions and name not in found:
                    found[name] = functions[name]
                    left.append(functions[name])
    return list(found.values())


def _values(meta: Any, bound: Sequence[int], prefix: Path) -> list[SavedValue] | None:
    """The values of these objects; None if one is neither a constant nor a plain variable."""
    nodes = {i: meta.object_graph_def.nodes[i] for i in bound}
    constants = {i: n.constant.operation for i, n in nodes.items() if n.HasField("constant")}
    variables = {i: n.variable for i, n in nodes.items() if n.HasField("variable")}
    keys = _checkpoint_keys(meta.object_graph_def, prefix) if variables else {}
    known = {*constants, *(i for i in variables if i in keys)}
    if known != set(bound) or any(
        v.experimental_distributed_variable_components for v in variables.values()
    ):
        return None
    values = _read_variables(variables, keys, prefix) | _read_constants(meta.graph_def, constants)
    return [values[i] for i in bound]


def _read_variables(
    variables: Mapping[int, Any], keys: Mapping[int, str], prefix: Path
) -> dict[int, SavedValue]:
    if not variables:
        return {}
    tf = tensorflow()
    with tf.init_scope():
        tensors = tf.raw_ops.RestoreV2(
            prefix=str(prefix),
            tensor_names=[keys[i] for i in variables],
            shape_and_slices=[""] * len(variables),
            dtypes=[v.dtype for v in variables.values()],
        )
    return {
        i: SavedValue(np.asarray(tensor), _RESOURCE, variable.shape)
        for (i, variable), tensor in zip(variables.items(), tensors, strict=True)
    }


def _read_constants(graph_def: Any, names: Mapping[int, str]) -> dict[int, SavedValue]:
    """Constants by their nodes."""
    nodes = {n.name: n for n in graph_def.node} if names else {}
    tensors = {i: nodes[name].attr["value"].tensor for i, name in names.items()}
    make = tensorflow().make_ndarray
    return {i: SavedValue(make(t), t.dtype) for i, t in tensors.items()}


def _checkpoint_keys(objects: Any, prefix: Path) -> dict[int, str]:
    """By the number of a saved object, the key of its value in the checkpoint.

    The checkpoint numbers objects in its own way: both graphs are walked along the same names.
    """
    from tensorflow.core.protobuf.trackable_object_graph_pb2 import TrackableObjectGraph

    saved = TrackableObjectGraph()
    reader = tensorflow().train.load_checkpoint(str(prefix))
    saved.ParseFromString(reader.get_tensor(_OBJECTS))
    keys: dict[int, str] = {}
    seen = {0}
    pairs = [(0, 0)]
    for here, there in pairs:
        for attribute in saved.nodes[there].attributes:
            if attribute.name == "VARIABLE_VALUE":
                keys[here] = attribute.checkpoint_key
        same = {c.local_name: c.node_id for c in saved.nodes[there].children}
        for child in objects.nodes[here].children:
            if child.local_name in same and child.node_id not in seen:
                seen.add(child.node_id)
                pairs.append((child.node_id, same[child.local_name]))
    return keys
