"""The order in which the nodes of an ONNX graph are converted: needed ones only, inputs first."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence

import onnx

from planish.errors import ModelError


def conversion_order(
    nodes: Sequence[onnx.NodeProto], outputs: Iterable[str], available: Callable[[str], bool]
) -> list[onnx.NodeProto]:
    """The nodes that `outputs` need, each after the nodes whose outputs it uses.

    Parameters
    ----------
    nodes : sequence of NodeProto
        In any order; where theirs is valid already, it is kept.
    outputs : iterable of str
        Names of the tensors wanted.
    available : callable
        Says whether a tensor comes from outside: an input, an initializer, an outer graph.

    Raises
    ------
    ModelError
        The graph has a cycle, a tensor that nothing produces, or one that two nodes produce.
    """
    producers = _producers(nodes)
    uses = [_used_names(node) for node in nodes]
    needed = _needed(nodes, uses, producers, outputs, available)
    waiting = {i: len({producers[name] for name in uses[i] if name in producers}) for i in needed}
    users: dict[int, list[int]] = {i: [] for i in needed}
    for i in needed:
        for producer in {producers[name] for name in uses[i] if name in producers}:
            users[producer].append(i)
    ready = [i for i, count in waiting.items() if not count]
    heapq.heapify(ready)
    order: list[onnx.NodeProto] = []
    while ready:
        i = heapq.heappop(ready)
        order.append(nodes[i])
        for user in users[i]:
            waiting[user] -= 1
            if not waiting[user]:
                heapq.heappush(ready, user)
    if len(order) < len(needed):
        stuck = nodes[min(i for i, count in waiting.items() if count)]
        raise ModelError(
            "The model's graph has a cycle",
            where=f"{node_label(stuck)} ({stuck.op_type})",
            why="the node needs its own output, directly or through others",
            cure="export the model again, or check it with onnx.checker.check_model",
        )
    return order


def node_label(node: onnx.NodeProto) -> str:
    """The user's name of a node: its own, or that of its first output."""
    return node.name or next((name for name in node.output if name), node.op_type)


def _producers(nodes: Sequence[onnx.NodeProto]) -> dict[str, int]:
    producers: dict[str, int] = {}
    for i, node in enumerate(nodes):
        for name in node.output:
            if name and producers.setdefault(name, i) != i:
                raise ModelError(
                    f"Two nodes produce the tensor {name!r}",
                    where=f"{node_label(node)} ({node.op_type})",
                    why=f"{node_label(nodes[producers[name]])} produces it too",
                    cure="export the model again, or check it with onnx.checker.check_model",
                )
    return producers


def _needed(
    nodes: Sequence[onnx.NodeProto],
    uses: Sequence[Iterable[str]],
    producers: dict[str, int],
    outputs: Iterable[str],
    available: Callable[[str], bool],
) -> list[int]:
    stack = [producers[name] for name in outputs if name in producers]
    found: set[int] = set()
    while stack:
        i = stack.pop()
        if i in found:
            continue
        found.add(i)
        for name in uses[i]:
            if name in producers:
                stack.append(producers[name])
            elif not available(name):
                raise ModelError(
                    f"Nothing produces the tensor {name!r}",
                    where=f"{node_label(nodes[i])} ({nodes[i].op_type})",
                    why="it is neither an input, nor an initializer, nor the output of a node",
                    cure="export the model again, or check it with onnx.checker.check_model",
                )
    return sorted(found)


def _used_names(node: onnx.NodeProto) -> list[str]:
    return list(dict.fromkeys([name for name in node.input if name] + subgraph_names(node)))


def subgraph_names(node: onnx.NodeProto) -> list[str]:
    """The tensors that the subgraphs of a node take from the graphs around it."""
    names: list[str] = []
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            names += _captured(graph)
    return list(dict.fromkeys(names))


def _captured(graph: onnx.GraphProto) -> list[str]:
    own = {value.name for value in graph.input} | {t.name for t in graph.initializer}
    own |= {s.values.name for s in graph.sparse_initializer}
    own |= {name for node in graph.node for name in node.output}
    used = [name for node in graph.node for name in _used_names(node)]
    used += [value.name for value in graph.output]
    return [name for name in dict.fromkeys(used) if name not in own]
