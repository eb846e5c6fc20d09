"""Variables of a GraphDef: who reads and writes them, and weights in the place of those only read.

A variable is a node that gives a handle (a captured placeholder, a VarHandleOp), or in TensorFlow 1
a reference (VariableV2). Its uses are followed through Identities and through the functions that it
is passed to. What is not known to read only is taken for a writer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from planish.frontends.tensorflow import graphdef, weights
from planish.frontends.tensorflow.graphdef import Tensor

HANDLES = ("VarHandleOp",)
REFERENCES = ("VariableV2", "Variable")

_READS = {
    "ReadVariableOp": "dtype",
    "ResourceGather": "dtype",
    "ResourceGatherNd": "dtype",
    "VariableShape": "",
}
"""Ops that read a variable, with the attribute that tells its element type."""

_CALLERS = {
    "If": 1,
    "StatelessIf": 1,
    "Case": 1,
    "StatelessCase": 1,
    "While": 0,
    "StatelessWhile": 0,
    "PartitionedCall": 0,
    "StatefulPartitionedCall": 0,
}
"""Ops that pass their inputs to functions, with the number of inputs that they keep."""

_LOOPS = ("While", "StatelessWhile")
_PASSING = ("Identity", "RefIdentity")
_CONTROL_FLOW = ("Switch", "Merge", "Enter", "Exit", "NextIteration")


@dataclass
class Use:
    """What becomes of one variable.

    Attributes
    ----------
    code : int or None
        The number of its element type; None where nobody reads it.
    inside : bool
        Whether functions of control flow, or loops of TensorFlow 1, use it.
    written : bool
        Whether its value may change.
    reads : list of NodeDef
        The ops of the graph itself that give its value.
    """

    code: int | None = None
    inside: bool = False
    written: bool = False
    reads: list[Any] = field(default_factory=list)
    _seen: set[tuple[str, Tensor]] = field(default_factory=set)


def uses(graph_def: Any, names: Iterable[str]) -> dict[str, Use]:
    """The use of each variable whose handle these nodes give."""
    library = {f.signature.name: f for f in graph_def.library.function}
    scopes: dict[str, _Scope] = {"": _Scope(graph_def.node)}
    found = {}
    for name in names:
        found[name] = use = Use()
        _follow(library, scopes, "", (name, 0), use)
    nodes = {n.name: n for n in graph_def.node}
    groups: dict[str, list[Use]] = defaultdict(list)
    for name, use in found.items():
        shared = nodes[name].attr["shared_name"].s if "shared_name" in nodes[name].attr else b""
        groups[shared.decode() or name].append(use)
    for members in groups.values():  # handles of one variable
        written = any(use.written for use in members)
        for use in members:
            use.written = written
    return found


class _Scope:
    """The readers of each tensor of a graph or of a function's body."""

    def __init__(self, nodes: Iterable[Any]) -> None:
        self.readers: dict[Tensor, list[tuple[Any, int]]] = defaultdict(list)
        for node in nodes:
            for position, tensor in enumerate(graphdef.data_inputs(node)):
                self.readers[_plain(tensor)].append((node, position))


def _plain(tensor: Tensor) -> Tensor:
    """In a function's body ``node:output:0`` is the tensor of a node; only Identities matter."""
    return tensor[0].partition(":")[0], tensor[1]


def _follow(
    library: Mapping[str, Any], scopes: dict[str, _Scope], where: str, handle: Tensor, use: Use
) -> None:
    stack = [handle]
    while stack:
        tensor = stack.pop()
        if (where, tensor) in use._seen:
            continue
        use._seen.add((where, tensor))
        for node, position in scopes[where].readers[tensor]:
            callees = [f for f in _callees(node) if f in library]
            if node.op in _READS:
                use.inside |= bool(where)
                if _READS[node.op]:
                    use.code = node.attr[_READS[node.op]].type
                if node.op == "ReadVariableOp" and not where:
                    use.reads.append(node)
            elif node.op in _PASSING:
                stack.append((node.name, 0))
            elif callees and (node.op in _CALLERS or node.op in library):
                use.inside = True
                for name in callees:
                    inner = library[name]
                    scopes.setdefault(name, _Scope(inner.node_def))
                    argument = inner.signature.input_arg[position - _CALLERS.get(node.op, 0)].name
                    if argument in inner.ret.values() and node.op not in _LOOPS:
                        use.written = True
                    _follow(library, scopes, name, (argument, 0), use)
                if node.op in _LOOPS:
                    stack.append((node.name, position))
            elif node.op in _CONTROL_FLOW:
                use.inside = True
                stack += [(node.name, 0), (node.name, 1)]
            elif node.op != "VarIsInitializedOp":
                use.written = True


def _callees(node: Any) -> list[str]:
    names = [node.op]
    for attribute in node.attr.values():
        if attribute.HasField("func"):
            names.append(attribute.func.name)
        names += [f.name for f in attribute.list.func]
    return names


def written_references(graph_def: Any) -> set[str]:
    """The variables of TensorFlow 1 (VariableV2) that some op may write."""
    from tensorflow.python.framework import op_def_registry

    references = {n.name for n in graph_def.node if n.op in REFERENCES}
    written = set()
    for node in graph_def.node:
        for position, (source, _) in enumerate(graphdef.data_inputs(node)):
            if source in references:
                op_def = op_def_registry.get(node.op)
                arguments = op_def.input_arg if op_def else ()
                # an op with a list of inputs has no references among them
                if op_def is None or (position < len(arguments) and arguments[position].is_ref):
                    written.add(source)
    return written


def replace_handles(
    graph_def: Any,
    values: Mapping[str, tuple[np.ndarray, int]],
    found: dict[str, np.ndarray],
    kept: Container[str] = (),
) -> None:
    """Puts weights into the place of variables, in place.

    Parameters
    ----------
    graph_def : GraphDef
    values : mapping of str to (array, int)
        By the node that gives the handle: the variable's value and its element type's number.
        Nobody may write it.
    found : dict
        Receives the arrays; see `weights.place`.
    kept : container of str
        Handles that stay beside their weight, because functions go on reading them.
    """
    scope = _Scope(graph_def.node)
    nodes = {n.name: n for n in graph_def.node}
    copies: dict[Tensor, str] = {}
    for name, (array, code) in values.items():
        weight = nodes[name]
        if name in kept:
            weight = graph_def.node.add(name=_free(f"{name}/weight", nodes))
            nodes[weight.name] = weight
        weights.place(weight, array, code, found)
        stack = [(name, 0)]
        while stack:
            for node, position in scope.readers[stack.pop()]:
                if node.op in _PASSING:
                    stack.append((node.name, 0))
                if node.op in _READS or (node.op in _PASSING and name not in kept):
                    if name in kept:
                        node.input[position] = weight.name
                    if _read_weight(graph_def, nodes, node, code):
                        copies[node.name, 0] = weight.name
    for node in graph_def.node:
        for position, text in enumerate(node.input):
            if not graphdef.is_control(text) and graphdef.tensor_name(text) in copies:
                node.input[position] = copies[graphdef.tensor_name(text)]


def _read_weight(graph_def: Any, nodes: dict[str, Any], node: Any, code: int) -> bool:
    """Makes an op that reads a handle one that reads the weight; whether it only copies it."""
    attributes = {"Tindices": node.attr["Tindices"].type} if "Tindices" in node.attr else {}
    inputs = list(node.input)
    match node.op:
        case "ReadVariableOp" | "Identity" | "RefIdentity":
            _change(node, "Identity", inputs, {"T": code})
            return not any(map(graphdef.is_control, inputs))
        case "VariableShape":
            kind = node.attr["out_type"].type if "out_type" in node.attr else 3
            _change(node, "Shape", inputs, {"T": code, "out_type": kind})
        case "ResourceGather":
            dims = node.attr["batch_dims"].i if "batch_dims" in node.attr else 0
            axis = graph_def.node.add(name=_free(f"{node.name}/axis", nodes))
            nodes[axis.name] = axis
            weights.make_constant(axis, np.array(dims, np.int32), 3)
            _change(
                node,
                "GatherV2",
                [*inputs[:2], axis.name, *inputs[2:]],
                {"Tparams": code, "Taxis": 3, **attributes},
            )
            node.attr["batch_dims"].i = dims
        case "ResourceGatherNd":
            _change(node, "GatherNd", inputs, {"Tparams": code, **attributes})
    return False


def _change(node: Any, op: str, inputs: Iterable[str], types: Mapping[str, int]) -> None:
    name, device = node.name, node.device
    node.Clear()
    node.name, node.op, node.device = name, op, device
    node.input.extend(inputs)
    for attribute, code in types.items():
        node.attr[attribute].type = code


def _free(name: str, taken: Mapping[str, Any]) -> str:
    while name in taken:
        name += "_"
    return name
