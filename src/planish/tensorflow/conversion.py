"""The conversion of a GraphDef: segments found, engines built, nodes replaced.

Both converters, of TensorFlow 1 and 2, come down to `convert_graph_def`; what differs is where the
plans are kept (see `PlanStore`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any

from planish.errors import PrecisionError
from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.weights import Weights
from planish.graph.graph import DimRange
from planish.graph.types import TensorType
from planish.precision.permissions import INT8
from planish.profile import UNBOUNDED
from planish.quantization.ranges import Ranges
from planish.runtime.engine import Engine
from planish.tensorflow import report
from planish.tensorflow.converted import Converted
from planish.tensorflow.engines import thread_count
from planish.tensorflow.rewrite import EngineNode, Rewritten, replace_segments, stored_weights
from planish.tensorflow.segments import Segment, find_segments, import_segment
from planish.tensorflow.settings import Settings, variable

log = logging.getLogger("planish")

ENGINE_NAME = "PlanishEngine_{:03}"

_SIMULATIONS = ("FakeQuantWithMinMax", "QuantizeAndDequantize")
"""How the names of ops begin that simulate quantization."""

PlanStore = Callable[[Any, str, Engine], str]
"""Keeps the plan of an engine: ``store(graph_def, engine name, engine)`` adds the node that gives
the plan to the graph, and returns the node's name."""

Calibrate = Callable[[Mapping[str, Segment]], Mapping[str, Ranges]]
"""Finds the ranges of segments, by the names of the engines that they become."""


def convert_graph_def(
    graph_def: Any,
    outputs: Iterable[str],
    settings: Settings,
    store: PlanStore,
    types: Mapping[str, TensorType] | None = None,
    weights: Weights | None = None,
    calibrate: Calibrate | None = None,
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
    weights : Weights, optional
        The arrays of nodes that only stand for them.
    calibrate : Calibrate, optional
        Where INT8 needs ranges.

    Raises
    ------
    PrecisionError
        INT8 has no ranges: neither are they measured, nor does the graph bring scales.
    PlanishError
        The graph is damaged, or an engine cannot be built.
    """
    if INT8 in settings.precisions and calibrate is None:
        _expect_scales(graph_def)
    ends = [graphdef.tensor_name(t) for t in outputs]
    arrays = weights or {}
    found = find_segments(graph_def, ends, settings, types, arrays)
    nodes = graphdef.nodes_by_name(graph_def)
    result = Converted(graph_def, graph_def, arrays, reasons=found.reasons, cuts=found.cuts)
    plans: Any = type(graph_def)()
    segments = name_segments(graph_def, found.segments)
    if calibrate is not None:
        result.ranges.update(calibrate(segments))
    for name, segment in segments.items():
        engine = build_segment(
            graph_def,
            segment,
            name,
            settings,
            weights=arrays,
            calibration=result.ranges.get(name),
        )
        result.built[name] = engine
        stored = {}
        if not segment.covered and settings.allow_native_segments:
            stored = stored_weights(segment, nodes, arrays, engine.plan.graph)
        result.engines.append(
            EngineNode(
                name,
                segment,
                tuple(TensorType(s, v.dtype) for _, v, s in engine.plan.graph.results()),
                store(plans, name, engine),
                {
                    "programs": settings.maximum_cached_engines,
                    "native": settings.allow_native_segments,
                },
                stored,
            )
        )
    rewritten: Rewritten = replace_segments(graph_def, result.engines, ends, arrays)
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
    weights: Weights | None = None,
    calibration: Ranges | None = None,
) -> Engine:
    """The engine of a segment; `ranges` says which sizes of its dimensions to tune for, and
    `calibration` which numbers its tensors hold: without it, segments that bring no scales of their
    own have no INT8.
    """
    from planish.builder import build_graph, find_target
    from planish.quantization.explicit import settle_scales

    graph = import_segment(graph_def, segment, name, weights)
    graph.ranges.update({n: r for n, r in (ranges or {}).items() if n in graph.ranges})
    calibrated: dict[str, Any] = {} if calibration is None else {"calibration": calibration}
    precisions = settings.precisions
    if INT8 in precisions and calibration is None and not settle_scales(graph):
        precisions -= {INT8}
    log.info("building engine %s of %d nodes", name, segment.size)
    engine = build_graph(
        graph,
        find_target(settings.device),
        precision=precisions,
        threads=thread_count(),
        tuning_seconds=settings.tuning_seconds,
        max_workspace_size=settings.max_workspace_size,
        **calibrated,
    )
    for symbol, limits in engine.plan.graph.ranges.items():
        engine.plan.graph.ranges[symbol] = DimRange(min(limits.min, 1), limits.opt, UNBOUNDED)
    return engine


def _expect_scales(graph_def: Any) -> None:
    bodies = (graph_def.node, *(function.node_def for function in graph_def.library.function))
    if not any(node.op.startswith(_SIMULATIONS) for body in bodies for node in body):
        raise PrecisionError(
            "INT8 is not available without calibration",
            where="use_calibration=",
            why="the model brings no scales of its own (FakeQuant, QuantizeAndDequantize)",
            cure="leave use_calibration out, and give convert() a calibration_input_fn",
        )


def name_segments(graph_def: Any, segments: Iterable[Segment]) -> dict[str, Segment]:
    """The segments of a graph by the names of the engines that they become."""
    nodes = graphdef.nodes_by_name(graph_def)
    free = (name for i in count() if (name := ENGINE_NAME.format(i)) not in nodes)
    return dict(zip(free, segments, strict=False))
