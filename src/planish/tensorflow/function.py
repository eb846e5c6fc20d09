"""Functions of SavedModels: frozen into a GraphDef, and made again from a converted one."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planish.errors import ModelError
from planish.frontends.tensorflow import freeze, graphdef
from planish.frontends.tensorflow.weights import Weights
from planish.tensorflow.optimize import optimize_graph_def


@dataclass(frozen=True)
class FrozenFunction:
    """A signature's function without calls, its variables as weights.

    Attributes
    ----------
    graph_def : GraphDef
    weights : Weights
        The arrays of nodes that only stand for them.
    inputs : dict of str to (str, TensorSpec)
        By keyword, in the function's order: the tensor's name, and what it may be.
    outputs : dict of str to str
        By key: the tensor's name.
    captures : dict of str to tensor
        Tensors from outside (handles of tables, and of variables that control flow reads or that
        are written) by the name of their placeholder.
    owners : list
        The objects that these tensors belong to.
    model : object
        The loaded model, where its functions are still called; else None.
    """

    graph_def: Any
    weights: Weights
    inputs: Mapping[str, tuple[str, Any]]
    outputs: Mapping[str, str]
    captures: Mapping[str, Any]
    owners: Sequence[Any]
    model: Any


def load_function(folder: str | os.PathLike[str], tags: Iterable[str], signature: str) -> Any:
    """A SavedModel and the function of one of its signatures.

    Raises
    ------
    ModelError
        The SavedModel cannot be loaded, or has no such signature.
    """
    import tensorflow as tf

    try:
        loaded = tf.saved_model.load(str(folder), tags=list(tags))
    except (OSError, RuntimeError, ValueError, tf.errors.OpError) as error:
        raise ModelError(
            f"The SavedModel {Path(folder).name!r} cannot be loaded",
            where=str(folder),
            why=f"{type(error).__name__}: {str(error)[:500]}",
            cure="check the folder, its files and the tags",
        ) from error
    if signature not in loaded.signatures:
        present = ", ".join(map(repr, loaded.signatures)) or "none"
        raise ModelError(
            f"The SavedModel has no signature {signature!r}",
            where=str(folder),
            why=f"its signatures: {present}",
            cure="name one of these in input_saved_model_signature_key=",
        )
    return loaded, loaded.signatures[signature]


def freeze_function(loaded: Any, function: Any) -> FrozenFunction:
    """The function as a GraphDef of ops and constants, its weights beside it."""
    import tensorflow as tf

    frozen = freeze.freeze_function(function, inside=False)
    captured = {inside.name for _, inside in function.graph.captures}
    arguments = [t for t in function.inputs if t.name not in captured]
    keywords = _keywords(function, len(arguments))
    declared = function.structured_input_signature[1]
    inputs = {
        key: (t.name, declared.get(key) or tf.TensorSpec(t.shape, t.dtype, key))
        for key, t in zip(keywords, arguments, strict=True)
    }
    keys = _output_keys(function.structured_outputs, len(frozen.outputs))
    outputs = dict(zip(keys, frozen.outputs, strict=True))
    ends = [graphdef.tensor_name(t)[0] for t in outputs.values()]
    ends += [graphdef.tensor_name(t.name)[0] for t in arguments]
    graph_def, weights = optimize_graph_def(frozen.graph_def, ends, frozen.weights)
    present = {n.name for n in graph_def.node}
    captures = {n: c.tensor for n, c in frozen.captures.items() if n in present}
    return FrozenFunction(
        graph_def,
        weights,
        inputs,
        outputs,
        captures,
        _owners(loaded, captures.values()),
        loaded if graph_def.library.function else None,
    )


def _keywords(function: Any, count: int) -> list[str]:
    """The keyword of each argument, in order."""
    keywords = list(getattr(function, "_arg_keywords", None) or ())[:count]
    return keywords if len(keywords) == count else sorted(function.structured_input_signature[1])


def _output_keys(structure: Any, count: int) -> list[str]:
    if isinstance(structure, Mapping) and len(structure) == count:
        return sorted(structure)
    return [f"output_{i}" for i in range(count)]


def _owners(loaded: Any, captured: Iterable[Any]) -> list[Any]:
    """The tables, variables and other resources of a model whose handles are captured."""
    from tensorflow.python.checkpoint.graph_view import ObjectGraphView

    handles = {id(t) for t in captured}
    if not handles:
        return []
    found = []
    for item in ObjectGraphView(loaded).breadth_first_traversal()[0]:
        own = (getattr(item, name, None) for name in ("resource_handle", "handle"))
        if any(id(handle) in handles for handle in own):
            found.append(item)
    return found


def make_function(
    graph_def: Any,
    frozen: FrozenFunction,
    outputs: Mapping[str, str],
    given: Mapping[str, Any],
    variables: Mapping[str, Any],
) -> Any:
    """A concrete function that runs a converted graph.

    Parameters
    ----------
    graph_def : GraphDef
    frozen : FrozenFunction
        The function before; its signature is kept.
    outputs : mapping of str to str
        By key: the tensor's name in `graph_def`.
    given : mapping of str to tensor
        What stands for nodes that `graph_def` reads and does not have.
    variables : mapping of str to Variable
        The weights that native nodes read, by the nodes that stand for them.
    """
    import tensorflow as tf

    body = type(graph_def)()
    body.CopyFrom(graph_def)
    arguments = {graphdef.tensor_name(name)[0]: key for key, (name, _) in frozen.inputs.items()}
    outside = {graphdef.tensor_name(n)[0]: t for n, t in frozen.captures.items()} | dict(given)
    given_nodes = (arguments, outside, variables)
    kept = [n for n in body.node if not any(n.name in names for names in given_nodes)]
    names = {n.name for n in kept}
    for node in kept:  # to wait for an argument is to wait for nothing
        inputs = [t for t in node.input if not graphdef.is_control(t) or t[1:] in names]
        del node.input[:]
        node.input.extend(inputs)
    read = {graphdef.tensor_name(t)[0] for n in kept for t in n.input}
    copies = [type(n).FromString(n.SerializeToString()) for n in kept]
    del body.node[:]
    body.node.extend(copies)
    rename_functions(body)
    _register(body.library.function)

    def call(**tensors: Any) -> dict[str, Any]:
        inputs = {name: tensors[key] for name, key in arguments.items() if name in read}
        graph = tf.compat.v1.get_default_graph()
        inputs |= {name: graph.capture(tensor) for name, tensor in outside.items() if name in read}
        inputs |= {name: v.read_value() for name, v in variables.items() if name in read}
        inner = {k: t for k, t in outputs.items() if graphdef.tensor_name(t)[0] not in arguments}
        found = tf.graph_util.import_graph_def(body, inputs, list(inner.values()), name="")
        results = dict(zip(inner, found, strict=True))
        for key, name in outputs.items():
            if key not in results:
                results[key] = tensors[arguments[graphdef.tensor_name(name)[0]]]
        return results

    specs = {
        key: tf.TensorSpec(spec.shape, spec.dtype, name=key)
        for key, (_, spec) in frozen.inputs.items()
    }
    function = tf.function(call, autograph=False).get_concrete_function(**specs)
    function._arg_keywords = list(frozen.inputs)
    function._num_positional_args = len(frozen.inputs)
    # TensorFlow forgets the functions of a model that is gone, also those that are called here.
    function.planish_model = frozen.model
    return function


def rename_functions(graph_def: Any) -> None:
    """Gives all functions of a graph names that no other graph's functions have, in place.

    A process and a SavedModel hold one function of each name, and those of the model before its
    conversion, whose bodies the optimizer has changed since, may be there already.
    """
    content = hashlib.sha256(graph_def.library.SerializeToString(deterministic=True)).hexdigest()
    library = graph_def.library
    names = {
        f.signature.name: f"{_SUFFIX.sub('', f.signature.name)}_planish_{content[:16]}"
        for f in library.function
    }
    bodies = [graph_def.node, *(f.node_def for f in library.function)]
    for node in (n for body in bodies for n in body):
        node.op = names.get(node.op, node.op)
        for attribute in node.attr.values():
            _rename(attribute, names)
    for function in library.function:
        function.signature.name = names[function.signature.name]
        for attribute in function.attr.values():
            _rename(attribute, names)
    for gradient in library.gradient:
        gradient.function_name = names.get(gradient.function_name, gradient.function_name)
        gradient.gradient_func = names.get(gradient.gradient_func, gradient.gradient_func)


_SUFFIX = re.compile(r"_planish_[0-9a-f]{16}$")


def _rename(attribute: Any, names: Mapping[str, str]) -> None:
    if attribute.HasField("func"):
        attribute.func.name = names.get(attribute.func.name, attribute.func.name)
    for item in attribute.list.func:
        item.name = names.get(item.name, item.name)


def _register(functions: Iterable[Any]) -> None:
    """Makes functions known to eager execution, which an import into a graph does not do."""
    from tensorflow.python.eager import context

    known = context.context()
    for function in functions:
        if not known.has_function(function.signature.name):
            known.add_function_def(function)
