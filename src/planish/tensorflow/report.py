"""What a conversion says of itself: which nodes stayed in TensorFlow and why, and pictures."""

from __future__ import annotations

import csv
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from planish.frontends.tensorflow import graphdef
from planish.runtime.engine import Engine
from planish.tensorflow.converted import Converted
from planish.tensorflow.names import asset_name

log = logging.getLogger("planish")

_QUIET = {"Placeholder", "PlaceholderV2", "PlaceholderWithDefault", "NoOp", "Const"}


def native_nodes(converted: Converted) -> list[tuple[str, str, str]]:
    """Name, op and reason of each node that stayed in TensorFlow, but for inputs."""
    ops = {n.name: n.op for n in converted.source.node}
    return [
        (name, ops[name], reason)
        for name, reason in converted.reasons.items()
        if ops[name] not in _QUIET
    ]


def splitting_nodes(converted: Converted) -> list[tuple[str, str]]:
    """Name and op of the native nodes that stand between two engines."""
    if len(converted.engines) < 2:
        return []
    home = {n: e.name for e in converted.engines for n in e.segment.nodes}
    above = _engines_beyond(converted.source, home, False)
    below = _engines_beyond(converted.source, home, True)
    return [(name, op) for name, op, _ in native_nodes(converted) if above[name] and below[name]]


def counting_nodes(converted: Converted) -> list[tuple[str, str]]:
    """Name and op of the nodes of engines that begin another one than what they read, because they
    need to know how large that is, which the data decide.
    """
    home = {n: e.name for e in converted.engines for n in e.segment.nodes}
    ops = {n.name: n.op for n in converted.source.node}
    apart = {
        reader
        for source, reader in converted.cuts
        if source in home and reader in home and home[source] != home[reader]
    }
    return [(name, ops[name]) for name in ops if name in apart]


def _engines_beyond(graph_def: Any, home: Mapping[str, str], forward: bool) -> dict[str, set[str]]:
    """For each node the engines among its descendants (or ancestors)."""
    nodes = graphdef.nodes_by_name(graph_def)
    order = graphdef.ancestors(nodes, [(n, 0) for n in nodes], cut_loops=True)
    found: dict[str, set[str]] = defaultdict(set)
    for node in reversed(order) if forward else order:
        for source, _ in graphdef.data_inputs(node):
            near, far = (source, node.name) if forward else (node.name, source)
            found[near] |= found[far] | ({home[far]} if far in home else set())
    return found


def text(converted: Converted) -> str:
    """The report as text: totals, the reasons by number of nodes, what splits the graph."""
    nodes = native_nodes(converted)
    inside = sum(e.segment.size for e in converted.engines)
    lines = [
        f"{inside} nodes became {len(converted.engines)} engine(s), "
        f"{len(nodes)} stayed in TensorFlow"
    ]
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, op, reason in nodes:
        groups[op, reason].append(name)
    for (op, reason), names in sorted(groups.items(), key=lambda g: -len(g[1])):
        shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
        lines.append(f"  {len(names):4} x {op}: {reason} ({shown})")
    if splits := splitting_nodes(converted):
        lines.append(f"  between engines stand: {_by_op(splits)}")
    if counting := counting_nodes(converted):
        lines.append(
            f"  engines begin where a size is needed that the data decide: {_by_op(counting)}"
        )
    guarded = [e.name for e in converted.engines if not e.segment.covered]
    if guarded:
        lines.append(f"  with a native segment beside them: {', '.join(guarded)}")
    return "\n".join(lines)


def _by_op(nodes: Iterable[tuple[str, str]]) -> str:
    counts = Counter(op for _, op in nodes)
    return ", ".join(f"{op} ({count}x)" for op, count in counts.most_common())


def tell(converted: Converted, where: str) -> None:
    """Logs the report; prints it ("1"), or writes it to a CSV file, where that is asked for."""
    words = text(converted)
    log.info("%s", words)
    if not where:
        return
    if where.lower() in ("1", "true"):
        print(words)
        return
    with open(where, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["node", "op", "reason"])
        writer.writerows(native_nodes(converted))


def write_dot(graph_def: Any, path: str) -> None:
    """Writes a picture of a graph in Graphviz's language; constants are left out."""
    lines = ["digraph {", "  node [shape=box, fontname=Helvetica];"]
    constants = {n.name for n in graph_def.node if n.op == "Const"}
    for node in graph_def.node:
        if node.name in constants:
            continue
        style = ', style=filled, fillcolor="#9be564"' if node.op == "PlanishEngine" else ""
        lines.append(f'  "{_quoted(node.name)}" [label="{_quoted(node.name)}\\n{node.op}"{style}];')
        for name in _sources(node):
            if name not in constants:
                lines.append(f'  "{_quoted(name)}" -> "{_quoted(node.name)}";')
    lines.append("}")
    try:
        Path(path).write_text("\n".join(lines) + "\n")
    except OSError as error:
        log.error("the picture of the graph cannot be written: %s", error)


def export_engines(engines: Mapping[str, Engine], folder: str) -> None:
    """Writes the plan of each engine into a folder."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for name, engine in engines.items():
        engine.save(Path(folder) / asset_name(name))


def _sources(node: Any) -> Iterable[str]:
    return dict.fromkeys(graphdef.tensor_name(t.removeprefix("^"))[0] for t in node.input)


def _quoted(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"')
