"""Replaces segments of a GraphDef by engine nodes.

An engine node reads its plan from a node that the caller supplies. Where the engine may meet a
shape that it does not take, the node is an ``If`` between the engine and the segment's own nodes,
the *native segment*.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.graphdef import Tensor
from planish.frontends.tensorflow.weights import Weights
from planish.graph.graph import Graph
from planish.graph.types import TensorType
from planish.runtime.native_engine import DTYPE_CODES
from planish.tensorflow.segments import Segment

ENGINE_OP = "PlanishEngine"
_WEIGHT_BYTES = 256
"""Constants of a native segment from this size on come out of the plan."""


@dataclass(frozen=True)
class EngineNode:
    """A segment and the node that takes its place.

    Attributes
    ----------
    name : str
    segment : Segment
    outputs : tuple of TensorType
    plan : str
        The node that gives the plan or its path.
    settings : mapping
        What the resolver is told.
    weights : mapping of str to str
        Constants of the segment that the plan holds: the plan's name of each.
    """

    name: str
    segment: Segment
    outputs: tuple[TensorType, ...]
    plan: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Rewritten:
    """The new graph, and where tensors are that segments made."""

    graph_def: Any
    moved: Mapping[Tensor, Tensor]


def replace_segments(
    graph_def: Any,
    engines: Iterable[EngineNode],
    outputs: Iterable[Tensor],
    weights: Weights | None = None,
) -> Rewritten:
    """The graph with engines. Constants and weights that nobody reads any more are left out.

    The plan nodes are not added. `weights` are the arrays of nodes that only stand for them.
    """
    arrays = weights or {}
    engines = list(engines)
    owner = {name: e for e in engines for name in e.segment.nodes}
    moved = {t: (e.name, i) for e in engines for i, t in enumerate(e.segment.outputs)}
    ends = {name for name, _ in outputs}
    nodes = graphdef.nodes_by_name(graph_def)
    result = type(graph_def)()
    result.versions.CopyFrom(graph_def.versions)
    result.library.CopyFrom(graph_def.library)
    placed: set[str] = set()
    for node in graph_def.node:
        engine = owner.get(node.name)
        if engine is None:
            result.node.add().CopyFrom(node)
        elif engine.name not in placed:
            placed.add(engine.name)
            _add_engine(result, nodes, engine, arrays)
    for node in result.node:
        _rewire(node, moved, owner, arrays)
    _drop_unused_constants(result, ends, arrays)
    return Rewritten(result, moved)


def _rewire(
    node: Any,
    moved: Mapping[Tensor, Tensor],
    owner: Mapping[str, EngineNode],
    weights: Weights,
) -> None:
    inputs: dict[str, None] = {}
    data = []
    for text in node.input:
        if graphdef.is_control(text):
            name = text[1:]
            target = owner[name].name if name in owner else name
            if target != node.name and target not in weights:
                inputs[f"^{target}"] = None
        else:
            name, index = moved.get(graphdef.tensor_name(text), graphdef.tensor_name(text))
            data.append(f"{name}:{index}" if index else name)
    del node.input[:]
    node.input.extend([*data, *inputs])


def _drop_unused_constants(graph_def: Any, ends: set[str], weights: Weights) -> None:
    read = {graphdef.tensor_name(t.removeprefix("^"))[0] for n in graph_def.node for t in n.input}
    needed = read | ends
    kept = [
        n for n in graph_def.node if n.name in needed or not (n.op == "Const" or n.name in weights)
    ]
    if len(kept) < len(graph_def.node):
        copies = [type(n).FromString(n.SerializeToString()) for n in kept]
        del graph_def.node[:]
        graph_def.node.extend(copies)


def _add_engine(
    graph_def: Any, nodes: Mapping[str, Any], engine: EngineNode, weights: Weights
) -> None:
    segment = engine.segment
    control = {
        text
        for name in segment.nodes
        for text in nodes[name].input
        if graphdef.is_control(text) and text[1:] not in (*segment.nodes, *segment.constants)
    }
    inputs = [engine.plan, *(f"{n}:{i}" if i else n for n, i in segment.inputs)]
    if segment.covered or not engine.settings.get("native", True):
        node = graph_def.node.add(name=engine.name)
        _fill_engine(node, engine, inputs)
    else:
        ready = graph_def.node.add(name=f"{engine.name}/ready", op="PlanishReady")
        ready.input.extend(inputs)
        _describe(ready, engine)
        node = graph_def.node.add(name=engine.name)
        _fill_if(graph_def, nodes, node, engine, [ready.name, *inputs], weights)
    node.input.extend(sorted(control))


def _fill_engine(node: Any, engine: EngineNode, inputs: Iterable[str]) -> None:
    node.op = ENGINE_OP
    node.input.extend(inputs)
    _describe(node, engine)
    node.attr["OutT"].list.type.extend(DTYPE_CODES[t.dtype] for t in engine.outputs)
    node.attr["output_shapes"].list.SetInParent()
    _add_shapes(node.attr["output_shapes"].list, engine.outputs)
    _add_shapes(node.attr["_output_shapes"].list, engine.outputs)


def _describe(node: Any, engine: EngineNode) -> None:
    """The attributes that PlanishEngine and PlanishReady share."""
    node.attr["InT"].list.SetInParent()
    node.attr["InT"].list.type.extend(DTYPE_CODES[t.dtype] for t in engine.segment.types)
    node.attr["engine"].s = engine.name.encode()
    node.attr["settings"].s = json.dumps(dict(engine.settings), sort_keys=True).encode()


def _add_shapes(shapes: Any, types: Iterable[TensorType]) -> None:
    for kind in types:
        proto = shapes.shape.add()
        proto.SetInParent()
        for dim in kind.shape:
            proto.dim.add(size=dim if isinstance(dim, int) else -1)


# ---- the choice between an engine and its native segment ------------------------------------


def _fill_if(
    graph_def: Any,
    nodes: Mapping[str, Any],
    node: Any,
    engine: EngineNode,
    inputs: list[str],
    weights: Weights,
) -> None:
    segment = engine.segment
    beside = [n for n in segment.constants if n in weights and n not in engine.weights]
    node.op = "If"
    node.input.extend([*inputs, *map(_text, segment.contents), *beside])
    codes = [DTYPE_CODES[t.dtype] for t in segment.types]
    codes += [DTYPE_CODES[v.dtype] for v in segment.contents.values()]
    codes += [nodes[n].attr["dtype"].type for n in beside]
    node.attr["Tcond"].type = 10
    node.attr["Tin"].list.type.extend([7, *codes])
    node.attr["Tout"].list.type.extend(DTYPE_CODES[t.dtype] for t in engine.outputs)
    node.attr["_lower_using_switch_merge"].b = True
    _add_shapes(node.attr["output_shapes"].list, engine.outputs)
    _add_shapes(node.attr["_output_shapes"].list, engine.outputs)
    arguments = ["plan", *(f"input_{i}" for i in range(len(codes)))]
    tensors = (*segment.inputs, *segment.contents, *((n, 0) for n in beside))
    branches = {
        "then_branch": _engine_branch(type(graph_def), engine, arguments),
        "else_branch": _native_branch(
            type(graph_def), nodes, engine, dict(zip(tensors, arguments[1:], strict=True))
        ),
    }
    for branch, (body, outputs) in branches.items():
        function = _function(f"{engine.name}_{branch}", body, arguments, [7, *codes], outputs)
        graph_def.library.function.append(function)
        node.attr[branch].func.name = function.signature.name


def _engine_branch(
    kind: type, engine: EngineNode, arguments: list[str]
) -> tuple[Any, list[Tensor]]:
    body = kind()
    count = 1 + len(engine.segment.inputs)
    _fill_engine(body.node.add(name="engine"), engine, arguments[:count])
    return body, [("engine", i) for i in range(len(engine.outputs))]


def _native_branch(
    kind: type, nodes: Mapping[str, Any], engine: EngineNode, given: Mapping[Tensor, str]
) -> tuple[Any, list[Tensor]]:
    """The nodes of the segment, with the constants that the plan holds taken from there."""
    segment = engine.segment
    body = kind()
    for name in (*segment.constants, *segment.nodes):
        if (name, 0) in given:  # a weight that the plan does not hold
            continue
        node = body.node.add()
        if name in engine.weights:
            _fill_weight(node, nodes[name], engine.weights[name])
            continue
        node.CopyFrom(nodes[name])
        node.ClearField("device")
        data = [given.get(t, _text(t)) for t in graphdef.data_inputs(node)]
        del node.input[:]
        node.input.extend(data)
    return body, list(segment.outputs)


def _fill_weight(node: Any, constant: Any, name: str) -> None:
    if constant.op == "Const":
        declared = constant.attr["value"].tensor.tensor_shape
    else:
        declared = constant.attr["shape"].shape
    node.name, node.op = constant.name, "PlanishWeight"
    node.input.append("plan")
    node.attr["weight"].s = name.encode()
    node.attr["dtype"].type = constant.attr["dtype"].type
    shape = node.attr["shape"].list
    shape.SetInParent()
    shape.i.extend(d.size for d in declared.dim)
    node.attr["_output_shapes"].list.shape.add().CopyFrom(declared)


def _function(
    name: str, body: Any, arguments: list[str], types: list[int], outputs: list[Tensor]
) -> Any:
    """A FunctionDef with this body; a process can hold only one of each name."""
    from tensorflow.python.framework.graph_to_function_def import graph_to_function_def

    import tensorflow as tf

    used = {text for node in body.node for text in node.input}
    with tf.Graph().as_default() as graph:
        inputs = [
            tf.compat.v1.placeholder(tf.as_dtype(t), name=argument)
            for argument, t in zip(arguments, types, strict=True)
        ]
        tf.graph_util.import_graph_def(
            body, {a: t for a, t in zip(arguments, inputs, strict=True) if a in used}, name=""
        )
        results = [graph.get_tensor_by_name(f"{n}:{i}") for n, i in outputs]
        function = graph_to_function_def(graph, graph.get_operations(), inputs, results)
    digest = hashlib.sha256(function.SerializeToString(deterministic=True)).hexdigest()
    function.signature.name = f"{name}_{digest[:16]}"
    return function


def stored_weights(
    segment: Segment, nodes: Mapping[str, Any], weights: Weights, graph: Graph
) -> dict[str, str]:
    """The larger constants of a segment that its engine's graph holds too, by the names there."""
    known = {_key(v.data): v.name for v in graph.constants() if v.data is not None}
    found = {}
    for name in segment.constants:
        array = weights.get(name)
        if array is None:
            array = graphdef.constant(nodes[name].attr["value"].tensor, name)
        if array.nbytes >= _WEIGHT_BYTES and (stored := known.get(_key(array))) is not None:
            found[name] = stored
    return found


def _key(array: np.ndarray) -> tuple[np.dtype, bytes]:
    return array.dtype, np.ascontiguousarray(array).tobytes()


def _text(tensor: Tensor) -> str:
    return f"{tensor[0]}:{tensor[1]}" if tensor[1] else tensor[0]


def keep_names(graph_def: Any, engines: Iterable[EngineNode], names: Iterable[str]) -> None:
    """Adds an Identity, under the old name, for each of these nodes that is in an engine now.

    The engine must have all its outputs from the first to the last one that is wanted.
    """
    wanted = set(names)
    for engine in engines:
        made: dict[str, list[int]] = {}
        for position, (name, _) in enumerate(engine.segment.outputs):
            if name in wanted:
                made.setdefault(name, []).append(position)
        for name, positions in made.items():
            node = graph_def.node.add(name=name)
            node.input.extend(f"{engine.name}:{i}" if i else engine.name for i in positions)
            types = [engine.outputs[i] for i in positions]
            codes = [DTYPE_CODES[t.dtype] for t in types]
            if len(codes) == 1:
                node.op = "Identity"
                node.attr["T"].type = codes[0]
            else:
                node.op = "IdentityN"
                node.attr["T"].list.type.extend(codes)
            _add_shapes(node.attr["_output_shapes"].list, types)
