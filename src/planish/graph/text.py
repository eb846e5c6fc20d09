"""A readable dump of a graph, the same for the same graph on every run."""

from __future__ import annotations

from planish.graph.graph import Graph, Value


def dump(graph: Graph) -> str:
    """The graph as text: a line for its inputs, one per node, one for its outputs."""
    head = ", ".join(f"%{v.name}: {v.type}" for v in graph.inputs)
    ranges = "".join(
        f"\n  where {name} in {r.min}..{r.max}, usually {r.opt}"
        for name, r in sorted(graph.ranges.items())
    )
    lines = [f"graph {graph.name}({head}){ranges}"]
    for node in graph.nodes:
        outputs = ", ".join(f"%{v.name}: {v.type}" for v in node.outputs)
        inputs = " ".join(_operand(v) for v in node.inputs)
        origin = f"  # {node.origin}" if node.origin and node.origin != node.name else ""
        lines.append(f"  {outputs} = {node.op} {inputs}{origin}")
    for name, count in graph.counts.items():
        room = "padded to" if count.padded else "at most"
        lines.append(f"  count {name} is %{graph.counted(name).name}, {room} {count.limit}")
    for name, shape in graph.trims.items():
        lines.append(f"  cut {name} to [{', '.join(map(str, shape))}]")
    tail = ", ".join(
        f"{name}=%{v.name}" for name, v in zip(graph.output_names, graph.outputs, strict=True)
    )
    return "\n".join([*lines, f"  return {tail}"])


def _operand(value: Value) -> str:
    if value.data is None:
        return f"%{value.name}"
    if value.data.size == 1:
        return f"{value.data.reshape(())[()]}:{value.type.dtype.value}"
    return f"@{value.name}:{value.type}"
