"""The conversion of a GraphDef: segments found, engines built, nodes replaced.

Both converters, of TensorFlow 1 and 2, come down to `convert_graph_def`; what differs is where the
plans are kept (see `PlanStore`).
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.graphdef import Tensor
from planish.graph.graph import DimRange
from planish.graph.types import TensorType
from planish.profile import UNBOUNDED
from planish.runtime.engine import Engine
from planish.tensorflow import report
from planish.tensorflow.engines import thread_count
from planish.tensorflow.rewrite import EngineNode, Rewritten, replace_segments, stored_weights
from planish.tensorflow.segments import Segment, find_segments, import_segment
from planish.tensorflow.settings import Settings, variable

log = logging.getLogger("planish")

ENGINE_NAME = "PlanishEngine_{:03}"

PlanStore = Callable[[Any, str, Engine], str]
"""Keeps the plan of an engine: ``store(graph_def, engine name, engine)`` adds the node that gives
the plan to the graph, and returns the node's name."""


@dataclass
class Converted:
    """What became of a graph.

    Attributes
    ----------
    graph_def : GraphDef
        The new graph; it has a node for the plan of each engine.
    source : GraphDef
        The graph before.
    engines : list of EngineNode
    built : dict of str to Engine
        By the name of the engine's node.
    reasons : dict of str to str
        Why each other node stayed in TensorFlow.
    moved : mapping of Tensor to Tensor
        Where tensors are now that segments made.
    """

    graph_def: Any
    source: Any
    engines: list[EngineNode] = field(default_factory=list)
    built: dict[str, Engine] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    moved: Mapping[Tensor, Tensor] = field(default_factory=dict)

    def tensor(self, name: str) -> str:
        """The present name of a tensor of the source."""
        found = graphdef.tensor_name(name)
        node, index = self.moved.get(found, found)
        return f"{node}:{index}"

    def operations(self, engine: str) -> Counter[str]:
        """The op types in an engine, constants included, with their numbers."""
        (node,) = (e for e in self.engines if e.name == engine)
        nodes = graphdef.nodes_by_name(self.source)
        return Counter(nodes[n].op for n in (*node.segment.nodes, *node.segment.constants))


def convert_graph_def(
    graph_def: Any,
    outputs: Iterable[str],
    settings: Settings,
    store: PlanStore,
    types: Mapping[str, TensorType] | None = None,
) -> Converted:
    """Replaces what can and should be converted by engines.

    Parameters
    ----------
    graph_def : GraphDef
        Frozen, without calls of functions.
    outputs : iterable of str
        Tensors that must stay available (under a new name, see `Converted.tensor`).
    settings : Settings
    store : PlanStore
    types : mapping of str to TensorType, optional
        Types of placeholders that are known better than the graph says.

    Raises
    ------
    PlanishError
        The graph is damaged, or an engine cannot be built.
    """
    ends = [graphdef.tensor_name(t) for t in outputs]
    found = find_segments(graph_def, ends, settings, types)
    nodes = graphdef.nodes_by_name(graph_def)
    names = _free_names(nodes)
    result = Converted(graph_def, graph_def, reasons=found.reasons)
    plans: Any = type(graph_def)()
    for segment in found.segments:
        name = next(names)
        engine = build_segment(graph_def, segment, name, settings)
        result.built[name] = engine
        weights = {}
        if not segment.covered and settings.allow_native_segments:
            weights = stored_weights(segment, nodes, engine.plan.graph)
        result.engines.append(
            EngineNode(
                name,
                segment,
                tuple(v.type for v in engine.plan.graph.outputs),
                store(plans, name, engine),
                {
                    "programs": settings.maximum_cached_engines,
                    "native": settings.allow_native_segments,
                },
                weights,
            )
        )
    rewritten: Rewritten = replace_segments(graph_def, result.engines, ends)
    result.graph_def, result.moved = rewritten.graph_def, rewritten.moved
    result.graph_def.node.extend(plans.node)
    report.tell(result, settings.report)
    if path := variable("EXPORT_GRAPH_VIZ_PATH"):
        report.write_dot(result.graph_def, path)
    if folder := variable("EXPORT_TRT_ENGINES_PATH"):
        report.export_engines(result.built, folder)
    return result


def build_segment(
    graph_def: Any,
    segment: Segment,
    name: str,
    settings: Settings,
    ranges: Mapping[str, DimRange] | None = None,
) -> Engine:
    """The engine of a segment; `ranges` says which sizes of its dimensions to tune for."""
    from planish.builder import build_graph, find_target

    graph = import_segment(graph_def, segment, name)
    graph.ranges.update({n: r for n, r in (ranges or {}).items() if n in graph.ranges})
    log.info("building engine %s of %d nodes", name, segment.size)
    engine = build_graph(
        graph,
        find_target("cpu"),
        threads=thread_count(),
        tuning_seconds=settings.tuning_seconds,
        max_workspace_size=settings.max_workspace_size,
    )
    for symbol, limits in engine.plan.graph.ranges.items():
        engine.plan.graph.ranges[symbol] = DimRange(min(limits.min, 1), limits.opt, UNBOUNDED)
    return engine


def _free_names(nodes: Mapping[str, Any]) -> Any:
    number = 0
    while True:
        name = ENGINE_NAME.format(number)
        number += 1
        if name not in nodes:
            yield name
