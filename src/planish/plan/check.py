"""Checks that steps from outside are ones that fusion could have proposed and tuning have chosen.

Kernels rely on it: what a task holds decides which memory they read and write.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from planish.errors import PlanError
from planish.fusion.attention import attention_of
from planish.fusion.bottleneck import bottleneck_of
from planish.fusion.images import image_of
from planish.fusion.normalized import normalized_of
from planish.fusion.openings import opening_of
from planish.fusion.pairs import pair_of
from planish.fusion.pooled import pooled_of
from planish.fusion.summed import summed_of
from planish.fusion.sums import sum_of
from planish.fusion.task import Task
from planish.graph.graph import Graph, Node, Value
from planish.ops.elementwise import Elementwise
from planish.plan.views import Placements


def check_nodes(graph: Graph, nodes: Sequence[Node], anchor: Node | None) -> None:
    """Checks that nodes may form a task with that anchor: see `planish.fusion.candidates`.

    Raises
    ------
    PlanError
        They may not; says why.
    """
    where = f"the step of {nodes[-1].name!r}" if nodes else "a step"

    def require(condition: bool, why: str) -> None:
        if not condition:
            raise PlanError("A step of the plan is not a task", where=where, why=why)

    position = {node: i for i, node in enumerate(graph.nodes)}
    order = [position[node] for node in nodes]
    require(bool(nodes), "it has no nodes")
    require(order == sorted(set(order)), "its nodes are not in the order of the graph")
    members, outputs = set(nodes), set(graph.outputs)
    whole = bottleneck_of(nodes) or summed_of(nodes)
    pair = whole.pair if whole else pair_of(nodes)
    normalized = normalized_of(nodes)
    for node in nodes[:-1]:
        for value in node.outputs:
            inner = bool(value.users) and all(u in members for u in value.users)
            inner = inner or (pair is not None and value is pair.inner)
            inner = inner or (normalized is not None and value is normalized.inner)
            require(inner and value not in outputs, f"{value.name!r} is needed outside")
    attention = attention_of(nodes)
    if attention is not None:
        require(anchor is attention.mix, "its anchor is not the attention's second product")
        return
    opening = opening_of(nodes)
    if opening is not None:
        require(anchor is opening.second, "its anchor is not the second convolution")
        return
    pooled = pooled_of(nodes)
    if pooled is not None:
        require(anchor is pooled.conv, "its anchor is not the convolution")
        return
    if normalized is not None:
        require(anchor is normalized.product, "its anchor is not the product")
        return
    if pair is not None:
        require(anchor is pair.second, "its anchor is not the pair's second convolution")
        behind = [n for n in nodes if n not in (whole or pair).nodes]
        require(not (whole or pair).feeds(behind), "its epilogue reads what lies before its anchor")
        require(all(position[n] > position[pair.second] for n in behind), "it is entangled")
        nodes = (pair.second, *behind)
    image = image_of(nodes) if pair is None else None
    if image is not None:
        require(anchor is image.conv, "its anchor is not the convolution")
        behind = [n for n in nodes if n is not image.conv and n not in image.before]
        early = {n.output for n in image.before}
        require(not any(v in early for n in behind for v in n.inputs), "its parts are entangled")
        nodes = (image.conv, *behind)
    added = sum_of(nodes) if pair is None else None
    if added is not None:
        require(anchor is added.second, "its anchor is not the second convolution")
        behind = [n for n in nodes if n not in (added.first, added.second)]
        nodes = (added.second, *behind)
    require(
        all((node is anchor) != isinstance(node.op, Elementwise) for node in nodes),
        "all nodes but the anchor must be elementwise",
    )
    if anchor is None:
        full = nodes[-1].output.shape
        require(all(n.output.shape == full for n in nodes), "its nodes differ in shape")
        return
    require(anchor in members, "its anchor is not among its nodes")
    require(len(anchor.outputs) == 1 or len(nodes) == 1, "its anchor has several outputs")
    at = nodes.index(anchor)
    before, after = nodes[:at], nodes[at + 1 :]
    for node in after:
        require(node.output.shape == anchor.output.shape, f"{node.name!r} changes the shape")
    early = {v for n in before for v in n.outputs}
    require(not any(v in early for n in after for v in n.inputs), "its parts are entangled")
    require(not any(v in early for v in anchor.inputs[1:]), "its prologue feeds several inputs")
    if not before:
        return
    fed = anchor.inputs[0]
    require(fed.producer is before[-1], "its prologue does not feed its anchor")
    require(all(n.output.shape == fed.shape for n in before), "its prologue changes the shape")
    read = {v for n in before for v in n.inputs if v not in early and v.shape == fed.shape}
    require(len(read) == 1, "its prologue reads several tensors")


def check_steps(graph: Graph, placements: Placements, tasks: Iterable[Task]) -> None:
    """Checks that tasks compute every node once, each when its inputs are ready.

    Raises
    ------
    PlanError
        They do not.
    """
    covered: set[Node] = set()
    ready: set[Value] = {v for v in graph.values() if v.producer is None}

    def available(value: Value) -> bool:
        """Whether a value is written, or a view of values that are."""
        pending = [value]
        while pending:
            current = pending.pop()
            if current in ready:
                continue
            producer = current.producer
            if producer is None or producer not in placements.free:
                return False
            pending += producer.inputs
        ready.add(value)
        return True

    for task in tasks:
        for node in task.nodes:
            if node in covered or node in placements.free:
                raise PlanError("The plan runs a node twice", where=f"node {node.name!r}")
            covered.add(node)
        for value in task.inputs:
            if not available(value):
                raise PlanError(
                    f"The plan runs {task.name!r} before its input {value.name!r} is ready",
                    where=f"the step of {task.name!r}",
                )
        ready.update(task.outputs)
    for node in graph.nodes:
        if node not in covered and node not in placements.free:
            raise PlanError("The plan never runs a node", where=f"node {node.name!r}")
