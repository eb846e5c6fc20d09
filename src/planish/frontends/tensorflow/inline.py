"""Inlining of function calls that TensorFlow's own optimizer leaves in a graph.

It leaves calls that are marked for compilation or not to be inlined. Here a call's nodes come under
its name: ``call/node``. What waits for a call waits for its effects, gathered in ``call/done``;
where there are none (to read a variable is none), it waits for nothing, so that nothing stands
between two calls.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from planish.errors import ModelError
from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.graphdef import Tensor

_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_MAX_NODES = 1_000_000
_DONE = "/done"
_NO_EFFECT = ("ReadVariableOp", "ResourceGather", "ResourceGatherNd", "VarHandleOp", "NoOp")


class Inlined:
    """A graph without calls, and where the results of its calls are now.

    Attributes
    ----------
    graph_def : GraphDef
        The given one if it has no calls.
    """

    def __init__(self, graph_def: Any) -> None:
        self.graph_def = graph_def
        self._moved: dict[Tensor, Tensor] = {}
        self._functions = {f.signature.name: f for f in graph_def.library.function}
        self._effects: dict[str, list[str]] = {}
        self._awaited: dict[str, str | None] = {}
        if any(self._callee(n) for n in graph_def.node):
            self.graph_def = self._expand_all(graph_def)

    def tensor(self, name: str) -> str:
        """The present name of a tensor of the given graph."""
        node, index = self._final(graphdef.tensor_name(name))
        return f"{node}:{index}"

    def _callee(self, node: Any) -> str | None:
        name = node.attr["f"].func.name if node.op in _CALLS else node.op
        return name if name in self._functions else None

    def _expand_all(self, graph_def: Any) -> Any:
        flat: list[Any] = []
        with library(graph_def):
            self._expand(graph_def.node, "", (), (), flat)
        result = type(graph_def)()
        result.versions.CopyFrom(graph_def.versions)
        result.library.CopyFrom(graph_def.library)
        for node in flat:
            sources = [self._final(s) for s in graphdef.data_inputs(node)]
            awaited = [
                self._awaited.get(t[1:], t[1:]) for t in node.input if graphdef.is_control(t)
            ]
            del node.input[:]
            node.input.extend(f"{name}:{index}" if index else name for name, index in sources)
            node.input.extend(f"^{name}" for name in dict.fromkeys(awaited) if name)
            result.node.append(node)
        return result

    def _expand(
        self,
        nodes: Iterable[Any],
        prefix: str,
        before: tuple[str, ...],
        callers: tuple[str, ...],
        flat: list[Any],
    ) -> None:
        """Adds nodes; those with state wait for the nodes `before`."""
        for node in nodes:
            copy = type(node)()
            copy.CopyFrom(node)
            copy.name = prefix + node.name
            sources = [(prefix + name, index) for name, index in graphdef.data_inputs(node)]
            awaited = [prefix + text[1:] for text in node.input if graphdef.is_control(text)]
            callee = self._callee(node)
            if callee is not None and callee not in callers:
                self._call(copy, callee, sources, (*before, *awaited), callers, flat)
            else:
                del copy.input[:]
                copy.input.extend(f"{name}:{index}" for name, index in sources)
                awaited += before if _is_stateful(node) else ()
                copy.input.extend(f"^{name}" for name in awaited)
                flat.append(copy)
            if len(flat) > _MAX_NODES:
                raise ModelError(
                    "The graph grows without end when its functions are inlined",
                    where=graphdef.origin_of(node),
                    why=f"it has more than {_MAX_NODES} nodes",
                    cure="export the model again",
                )

    def _call(
        self,
        call: Any,
        callee: str,
        sources: list[Tensor],
        before: tuple[str, ...],
        callers: tuple[str, ...],
        flat: list[Any],
    ) -> None:
        from tensorflow.python.framework.function_def_to_graph import function_def_to_graph_def

        function = self._functions[callee]
        body, names = function_def_to_graph_def(function)
        prefix = f"{call.name}/"
        arguments = [a.name for a in function.signature.input_arg]
        if len(arguments) != len(sources):
            raise ModelError(
                f"A call of {callee} passes {len(sources)} arguments, not {len(arguments)}",
                where=graphdef.origin_of(call),
                cure="export the model again",
            )
        for argument, source in zip(arguments, sources, strict=True):
            self._moved[prefix + argument, 0] = source
            self._awaited[prefix + argument] = None
        for index, result in enumerate(function.signature.output_arg):
            self._moved[call.name, index] = _inside(prefix, function.ret[result.name], names)
        inner = [n for n in body.node if n.name not in set(arguments)]
        self._expand(inner, prefix, before, (*callers, callee), flat)
        effects = self._effects_of(callee)
        self._awaited[call.name] = call.name + _DONE if effects else None
        if effects:
            done = type(call)(name=call.name + _DONE, op="NoOp")
            done.input.extend(f"^{prefix}{name}" for name in effects)
            flat.append(done)

    def _effects_of(self, function: str) -> list[str]:
        """The nodes of a function that must run, whether its results need them or not."""
        if function not in self._effects:
            self._effects[function] = []  # a function that calls itself adds nothing
            definition = self._functions[function]
            nodes = {n.name: n for n in definition.node_def}
            roots = [name for name in definition.control_ret.values() if name in nodes]
            self._effects[function] = [n for n in roots if self._has_effect(nodes, n, set())]
        return self._effects[function]

    def _has_effect(self, nodes: Mapping[str, Any], name: str, seen: set[str]) -> bool:
        node = nodes.get(name)
        if node is None or name in seen:
            return False
        seen.add(name)
        callee = self._callee(node)
        if callee is not None:
            if self._effects_of(callee):
                return True
        elif _is_stateful(node) and node.op not in _NO_EFFECT:
            return True
        awaited = (text[1:] for text in node.input if graphdef.is_control(text))
        return any(self._has_effect(nodes, other, seen) for other in awaited)

    def _final(self, tensor: Tensor) -> Tensor:
        while tensor in self._moved:
            tensor = self._moved[tensor]
        return tensor


def _is_stateful(node: Any) -> bool:
    """Whether an op has a state or an effect; one that is not known may have."""
    from tensorflow.python.framework import op_def_registry

    op_def = op_def_registry.get(node.op)
    return op_def is None or op_def.is_stateful


def _inside(prefix: str, nested: str, names: Mapping[str, str]) -> Tensor:
    """A tensor of a function body, by its name there (``node:output:0``, or an argument)."""
    name, index = graphdef.tensor_name(names.get(nested, nested))
    return prefix + name, index


@contextmanager
def library(graph_def: Any) -> Iterator[None]:
    """A context in which TensorFlow knows the functions of the graph."""
    import tensorflow as tf

    functions = type(graph_def)()
    functions.library.CopyFrom(graph_def.library)
    functions.versions.CopyFrom(graph_def.versions)
    with tf.Graph().as_default():
        tf.compat.v1.import_graph_def(functions, name="")
        yield
