"""Folding of what depends on weights only, which TensorFlow's optimizer knows nothing of.

Without it the scale of a batch norm would be computed anew at each inference where the graph is cut
between it and its reader, and no engine could take it for a constant.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from math import prod
from typing import Any

import numpy as np

from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.graphdef import Tensor
from planish.frontends.tensorflow.weights import Weights, place

log = logging.getLogger("planish")

_ALWAYS_BYTES = 100_000
"""Results up to this size may be larger than what they are computed from."""

_KEPT = ("FakeQuant", "QuantizeAndDequantize", "Placeholder")
"""Starts of the names of ops that are not folded: what emulates quantization says how to round."""

_FRAMES = ("Enter", "RefEnter", "Exit", "Switch", "RefSwitch", "Merge", "NextIteration", "LoopCond")
"""Ops of TensorFlow 1 that say where a loop or branch begins and ends."""


def fold_weights(
    graph_def: Any, weights: Weights, ends: Iterable[str]
) -> tuple[Any, dict[str, np.ndarray]]:
    """The graph with weights instead of the ops that compute something of weights only.

    Parameters
    ----------
    graph_def : GraphDef
        Changed in place; what its ends do not need any more is left out of the one returned.
    weights : Weights
    ends : iterable of str
        Names of the nodes that must stay.
    """
    if not weights:
        return graph_def, {}
    ends = set(ends)
    found = dict(weights)
    made = _made_of_weights(graph_def, found, ends)
    if made:
        _evaluate(graph_def, found, made)
    kept = _without_unread(graph_def, found.keys() | made.keys(), ends)
    return kept, {n.name: found[n.name] for n in kept.node if n.name in found}


def _made_of_weights(graph_def: Any, weights: Weights, ends: set[str]) -> dict[str, Any]:
    """The nodes that depend on weights, on constants perhaps, and on nothing else."""
    from tensorflow.python.framework import op_def_registry

    nodes = graphdef.nodes_by_name(graph_def)
    made: dict[str, Any] = {}
    roots = [(n.name, 0) for n in graph_def.node]
    for node in graphdef.ancestors(nodes, roots, cut_loops=True):
        op_def = op_def_registry.get(node.op)
        sources = [name for name, _ in graphdef.data_inputs(node)]
        if (
            op_def is not None
            and not op_def.is_stateful
            and node.name not in ends
            and not node.op.startswith(_KEPT)
            and node.op not in _FRAMES
            and len(sources) == len(node.input) > 0
            and not any(a.HasField("func") or a.list.func for a in node.attr.values())
            and all(s in made or s in weights or nodes[s].op == "Const" for s in sources)
            and any(s in made or s in weights for s in sources)
        ):
            made[node.name] = node
    return made


def _evaluate(graph_def: Any, weights: dict[str, np.ndarray], made: dict[str, Any]) -> None:
    """Turns those of the nodes into weights whose results others read."""
    import tensorflow as tf

    part = type(graph_def)()
    part.versions.CopyFrom(graph_def.versions)
    sources = {name for node in made.values() for name, _ in graphdef.data_inputs(node)}
    for node in graph_def.node:
        if node.name in made or node.name in sources:
            copy = part.node.add()
            copy.CopyFrom(node)
            copy.device = ""
            copy.attr.pop("_class", None)  # may name nodes that are not in this part
            if node.name not in made:  # a constant, whatever it waits for
                del copy.input[:]
    wanted: dict[Tensor, None] = {}
    for node in graph_def.node:
        if node.name not in made:
            wanted.update((t, None) for t in graphdef.data_inputs(node) if t[0] in made)
    nodes = graphdef.nodes_by_name(graph_def)
    graph = tf.Graph()
    try:
        with graph.as_default():
            tf.graph_util.import_graph_def(part, name="")
        fetches = {
            t: tensor
            for t in wanted
            if _is_worthwhile(
                tensor := graph.get_tensor_by_name(f"{t[0]}:{t[1]}"), made[t[0]], graph
            )
        }
        if not fetches:
            return
        feeds = {f"{n}:0": weights[n] for n in sources if n in weights}
        with tf.compat.v1.Session(graph=graph) as session:
            results = session.run(fetches, feeds)
    except (ValueError, tf.errors.OpError):
        log.debug("weights cannot be folded", exc_info=True)
        return
    names: dict[Tensor, str] = {}
    for tensor, array in results.items():
        if len(graph.get_operation_by_name(tensor[0]).outputs) == 1:
            node = nodes[tensor[0]]
        else:
            node = graph_def.node.add(name=_free(tensor, nodes))
            nodes[node.name] = node
        del node.input[:]
        place(node, array, int(fetches[tensor].dtype.as_datatype_enum), weights)
        names[tensor] = node.name
    for node in graph_def.node:
        for position, text in enumerate(node.input):
            if not graphdef.is_control(text):
                node.input[position] = names.get(graphdef.tensor_name(text), text)


def _is_worthwhile(tensor: Any, node: Any, graph: Any) -> bool:
    """Whether the result is one that we know, and not much larger than what it is made of."""
    size = _bytes(tensor)
    if size is None:
        return False
    given = graph.get_operation_by_name(node.name).inputs
    return size <= max(_ALWAYS_BYTES, sum(_bytes(t) or 0 for t in given))


def _bytes(tensor: Any) -> int | None:
    dtype = graphdef.dtype_of(int(tensor.dtype.as_datatype_enum))
    if dtype is None or not tensor.shape.is_fully_defined():
        return None
    return prod(tensor.shape.as_list()) * dtype.size


def _free(tensor: Tensor, taken: Any) -> str:
    name = f"{tensor[0]}/{tensor[1]}"
    while name in taken:
        name += "_"
    return name


def _without_unread(graph_def: Any, removable: Collection[str], ends: Iterable[str]) -> Any:
    """The graph without those of the removable nodes that no other node needs."""
    nodes = graphdef.nodes_by_name(graph_def)
    kept = {name for name in nodes if name not in removable} | {n for n in ends if n in nodes}
    stack = list(kept)
    while stack:
        for text in nodes[stack.pop()].input:
            name = graphdef.tensor_name(text.removeprefix("^"))[0]
            if name not in kept:
                kept.add(name)
                stack.append(name)
    result = type(graph_def)()
    result.versions.CopyFrom(graph_def.versions)
    result.library.CopyFrom(graph_def.library)
    result.node.extend(node for node in graph_def.node if node.name in kept)
    return result
