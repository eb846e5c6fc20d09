"""From a frozen GraphDef to the segments that become engines, and the reasons of what does not.

``find_segments`` asks the frontend which nodes can be converted, groups them, and imports every
group on its own: what the frontend could do in the whole graph it may not be able to do there,
because a segment knows less of its inputs. Nodes for which that is so stay in TensorFlow, and the
rest is grouped again.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from planish.errors import PlanishError
from planish.frontends.tensorflow import graphdef
from planish.frontends.tensorflow.analysis import Analysis, analyze
from planish.frontends.tensorflow.convert import Importer
from planish.frontends.tensorflow.graphdef import Tensor
from planish.frontends.tensorflow.inputs import ANY_SIZE
from planish.frontends.tensorflow.weights import Weights
from planish.graph.dims import DimLike, symbol, symbols
from planish.graph.graph import Graph, Value
from planish.graph.types import TensorType
from planish.ops.shape import Dims
from planish.passes.counted import settle_counts
from planish.runtime.native_engine import DTYPE_CODES
from planish.tensorflow import counted
from planish.tensorflow.cost import gain
from planish.tensorflow.coverage import alike_types, is_covered
from planish.tensorflow.partition import partition
from planish.tensorflow.settings import Settings

log = logging.getLogger("planish")

CONSTANT = "Const"
PLACEHOLDERS = ("Placeholder", "PlaceholderV2", "PlaceholderWithDefault")

_SWITCHES = ("Switch", "RefSwitch", "_SwitchN")

_NEVER = {
    **dict.fromkeys(PLACEHOLDERS, "it is an input of the graph"),
    "NoOp": "it computes nothing",
    "Assert": "it checks values while the model runs",
    "Print": "it prints while the model runs",
}


@dataclass(frozen=True)
class Segment:
    """Nodes that become one engine.

    Attributes
    ----------
    nodes : tuple of str
        In topological order, without constants.
    constants : tuple of str
        The constants that they read.
    inputs, outputs : tuple of Tensor
        The engine's, in order.
    types : tuple of TensorType
        Of the inputs.
    contents : mapping of Tensor to array of dimensions
        Tensors from outside that are known from the shapes of the inputs.
    covered : bool
        Whether the engine takes every shape that TensorFlow may pass to it.
    gain : float
        Estimated microseconds that it saves an inference.
    """

    nodes: tuple[str, ...]
    constants: tuple[str, ...]
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    types: tuple[TensorType, ...]
    contents: Mapping[Tensor, Value] = field(default_factory=dict)
    covered: bool = True
    gain: float = 0.0

    @property
    def size(self) -> int:
        """The nodes, as they count for the minimum segment size."""
        return len(self.nodes) + len(self.constants)


@dataclass
class Segmentation:
    """The segments of a graph, why each other node stays in TensorFlow, and the edges at which
    the graph was cut because what follows needs to know how large a result is.
    """

    segments: list[Segment]
    reasons: dict[str, str]
    cuts: frozenset[counted.Edge] = frozenset()


class _Refused(Exception):
    """Nodes cannot be converted as part of a segment; `reasons` says which and why."""

    def __init__(self, reasons: dict[str, str]) -> None:
        super().__init__(str(reasons))
        self.reasons = reasons


def find_segments(
    graph_def: Any,
    outputs: Iterable[Tensor],
    settings: Settings,
    types: Mapping[str, TensorType] | None = None,
    weights: Weights | None = None,
) -> Segmentation:
    """The segments of a frozen graph that are worth converting.

    Parameters
    ----------
    graph_def : GraphDef
        Without variables and calls.
    outputs : iterable of Tensor
        What must remain available in TensorFlow.
    settings : Settings
    types : mapping of str to TensorType, optional
        Types of placeholders that are known better than the graph says.
    weights : Weights, optional
        The arrays of nodes that only stand for them; they count as constants.
    """
    return _Search(graph_def, set(outputs), settings, types, weights or {}).run()


class _Search:
    def __init__(
        self,
        graph_def: Any,
        outputs: set[Tensor],
        settings: Settings,
        types: Mapping[str, TensorType] | None,
        weights: Weights,
    ) -> None:
        self._given = _with_plain_placeholders(graph_def)
        self._weights = weights
        self._outputs = outputs
        self._settings = settings
        self._nodes = graphdef.nodes_by_name(graph_def)
        self._types, self._analysis = _analyze(self._given, types, weights)
        self._distinct: Analysis | None = None
        self._readers: dict[Tensor, set[str]] = {tensor: set() for tensor in outputs}
        for node in graph_def.node:
            for source in graphdef.data_inputs(node):
                self._readers.setdefault(source, set()).add(node.name)
        self._read_outputs: dict[str, list[Tensor]] = {}
        for tensor in sorted(self._readers):
            self._read_outputs.setdefault(tensor[0], []).append(tensor)

    def run(self) -> Segmentation:
        reasons = self._native()
        if self._settings.minimum_segment_size == -1:
            for name in self._nodes:
                if not self._is_constant(name):
                    reasons.setdefault(name, "minimum_segment_size is -1")
            return Segmentation([], reasons)
        producers = {
            name: self._producers(node)
            for name, node in self._nodes.items()
            if not self._is_constant(name)
        }
        cuts = counted.cuts(self._nodes, self._analysis)
        linked = counted.with_cuts(producers, cuts)
        switches = [name for name, node in self._nodes.items() if node.op in _SWITCHES]
        known: dict[tuple[str, ...], Segment] = {}
        refused: dict[str, str] | None = None
        while refused is None or refused:
            refused = {}
            candidates = frozenset(name for name in producers if name not in reasons)
            groups = partition(linked, candidates, switches)
            for group in groups:
                try:
                    known[group] = known.get(group) or self._segment(group)
                except _Refused as refusal:
                    refused.update(refusal.reasons)
            reasons.update(refused)
        kept = self._worthwhile([known[group] for group in groups], reasons)
        converted = {name for segment in kept for name in segment.nodes}
        for name in producers:  # what is in a loop is never grouped
            if name not in converted:
                reasons.setdefault(name, "it is in a loop of TensorFlow 1")
        return Segmentation(kept, reasons, frozenset(cuts))

    def _producers(self, node: Any) -> list[str]:
        """The nodes that a node waits for. Constants wait for those that control them."""
        found: dict[str, None] = {}
        for text in node.input:
            source = self._nodes[_producer(text)]
            if self._is_constant(source.name):
                found.update(dict.fromkeys(_producer(t) for t in source.input))
            else:
                found[source.name] = None
        return [name for name in found if not self._is_constant(name)]

    def _is_constant(self, name: str) -> bool:
        return self._nodes[name].op == CONSTANT or name in self._weights

    def _native(self) -> dict[str, str]:
        """The nodes that cannot or must not be converted."""
        reasons = dict(self._analysis.reasons)
        denied_nodes = {graphdef.tensor_name(n)[0] for n in self._settings.denied_nodes}
        ends = {name for name, _ in self._outputs}
        for name, node in self._nodes.items():
            if node.op in _NEVER:
                reasons[name] = _NEVER[node.op]
            elif name in denied_nodes:
                reasons[name] = "the denylist names it"
            elif node.op in self._settings.denied_ops:
                reasons[name] = f"the denylist names the op {node.op}"
            elif name in ends and node.op in ("Identity", "IdentityN"):
                reasons.setdefault(name, "it only gives an output its name")
        return {n: r for n, r in reasons.items() if not self._is_constant(n)}

    def _segment(self, group: tuple[str, ...]) -> Segment:
        """What stands around a group of nodes; raises `_Refused`."""
        members = set(group)
        constants: dict[str, None] = {}
        outside: dict[Tensor, None] = {}
        for name in group:
            for source in graphdef.data_inputs(self._nodes[name]):
                if self._is_constant(source[0]):
                    constants[source[0]] = None
                elif source[0] not in members:
                    outside[source] = None
        made = (t for name in group for t in self._read_outputs.get(name, ()))
        outputs = tuple(t for t in made if self._is_needed(t, members))
        inputs, types, contents = self._inputs(group, outside)
        segment = Segment(group, tuple(constants), inputs, outputs, types, contents)
        refused = self._refusals(segment)
        if refused:
            raise _Refused(refused)
        if not segment.inputs:
            return segment  # nothing to compute at run time: left to constant folding
        worth = gain([self._nodes[n] for n in group], self._analysis.tensors, inputs)
        return replace(segment, covered=self._is_covered(segment), gain=worth)

    def _refusals(self, segment: Segment) -> dict[str, str]:
        """The nodes of a segment that cannot be converted in it, each with the reason."""
        importer = _start(self._given, segment, "segment", self._weights)
        refused: dict[str, str] = {}
        for node in graphdef.ancestors(importer.nodes, segment.outputs, importer.tensors):
            try:
                importer.convert(node)
                continue
            except PlanishError as error:
                refused[node.name] = f"{error.what}: {error.why}" if error.why else error.what
            for tensor in self._read_outputs.get(node.name, ()):  # the rest shall still be tried
                value = self._analysis.tensors.get(tensor)
                if value is not None:
                    importer.tensors[tensor] = importer.graph.input(_text(tensor), value.type)
        for tensor in segment.outputs:
            value = importer.tensors.get(tensor)
            if value is None:
                refused.setdefault(tensor[0], "only some of its results can be computed")
            elif value.dtype not in DTYPE_CODES:
                refused.setdefault(tensor[0], f"engines cannot give results of {value.dtype}")
        return refused or counted.unsettled(_finished(importer, segment), self._nodes)

    def _is_needed(self, tensor: Tensor, members: Collection[str]) -> bool:
        return tensor in self._outputs or not self._readers.get(tensor, set()) <= set(members)

    def _inputs(
        self, group: tuple[str, ...], outside: Iterable[Tensor]
    ) -> tuple[tuple[Tensor, ...], tuple[TensorType, ...], dict[Tensor, Value]]:
        """The tensors that an engine must be given, and those that their shapes determine."""
        renamed: dict[str, DimLike] = {}
        inputs: dict[Tensor, TensorType] = {}
        contents: dict[Tensor, Value] = {}
        for tensor in outside:
            value = self._analysis.tensors.get(tensor)
            if value is None:
                reader = next(n for n in group if tensor in graphdef.data_inputs(self._nodes[n]))
                raise _Refused({reader: f"nothing is known of its input {_text(tensor)}"})
            if value.data is None and (value.content is None or value.type.rank > 1):
                inputs[tensor] = _plain(value.type, renamed)
            else:
                contents[tensor] = value
        available = {str(d) for t in inputs.values() for d in t.shape}
        for tensor, value in list(contents.items()):
            dims = value.content.flat if value.data is None and value.content is not None else ()
            if not {s for d in dims for s in symbols(d)} <= available:
                del contents[tensor]
                inputs[tensor] = _plain(value.type, renamed)
        return tuple(inputs), tuple(inputs.values()), contents

    def _is_covered(self, segment: Segment) -> bool:
        shared = [s for s, found in self._analysis.sources.items() if len(found) > 1]
        used = {s for t in segment.types for d in t.shape for s in symbols(d)}
        if not used & set(shared):
            return True
        if self._distinct is None:
            self._distinct = analyze(self._given, self._types, self._weights, distinct=True)
        return is_covered(segment.inputs, segment.types, segment.contents, self._distinct.tensors)

    def _worthwhile(self, segments: list[Segment], reasons: dict[str, str]) -> list[Segment]:
        """The segments that become engines; notes why the others do not."""
        settings = self._settings
        kept = []
        for segment in segments:
            why = ""
            if not segment.inputs or not segment.outputs:
                why = "it depends on constants only, or nothing needs it"
            elif segment.size < settings.minimum_segment_size:
                why = (
                    f"its segment has {segment.size} nodes, and minimum_segment_size is "
                    f"{settings.minimum_segment_size}"
                )
            elif settings.weigh and segment.gain <= 0:
                why = "its segment is too little work to pay for calling an engine"
            for name in segment.nodes if why else ():
                reasons[name] = why
            if not why:
                kept.append(segment)
        if 0 < settings.max_engines < len(kept):
            largest = sorted(kept, key=lambda s: s.size, reverse=True)[: settings.max_engines]
            for segment in kept:
                for name in segment.nodes if segment not in largest else ():
                    reasons[name] = f"only the {settings.max_engines} largest segments are kept"
            kept = [s for s in kept if s in largest]
        return kept


def _analyze(
    graph_def: Any, types: Mapping[str, TensorType] | None, weights: Weights
) -> tuple[Mapping[str, TensorType] | None, Analysis]:
    """What can be converted, with the types of inputs under which that is most.

    Inputs that are declared alike (token numbers and their mask) may have to have equal sizes for
    ops that join them. That is assumed only where it helps; engines of which it is not certain get
    a native segment.
    """
    found = analyze(graph_def, types, weights)
    alike = None if types else alike_types(graph_def)
    if alike and found.reasons:
        bolder = analyze(graph_def, alike, weights)
        if len(bolder.reasons) < len(found.reasons):
            return alike, bolder
    return types, found


def import_segment(
    graph_def: Any, segment: Segment, name: str, weights: Weights | None = None
) -> Graph:
    """The graph of a segment; `weights` are the arrays of nodes that only stand for them.

    Raises
    ------
    PlanishError
        The segment is not one of this graph.
    """
    importer = _start(graph_def, segment, name, weights)
    for node in graphdef.ancestors(importer.nodes, segment.outputs, importer.tensors):
        importer.convert(node)
    graph = _finished(importer, segment)
    settle_counts(graph, counted.COSTLY_ROWS)
    return graph


def _finished(importer: Importer, segment: Segment) -> Graph:
    """The graph of a segment whose nodes have been converted."""
    for tensor in segment.outputs:
        importer.graph.mark_output(importer.tensors[tensor], _text(tensor))
    importer.graph.tidy()
    return importer.graph


def _start(graph_def: Any, segment: Segment, name: str, weights: Weights | None) -> Importer:
    """An importer that knows what a segment is given."""
    importer = Importer(graph_def, name, weights)
    for tensor, kind in zip(segment.inputs, segment.types, strict=True):
        importer.tensors[tensor] = importer.graph.input(_text(tensor), kind)
        for dim in kind.shape:
            if not isinstance(dim, int):
                importer.graph.ranges[str(dim)] = ANY_SIZE
    for tensor, value in segment.contents.items():
        importer.tensors[tensor] = _content(importer.graph, value, _text(tensor))
    return importer


def _content(graph: Graph, value: Value, name: str) -> Value:
    """A tensor that needs no input: a constant, or dimensions."""
    if value.data is not None:
        return graph.constant(value.data, name)
    assert value.content is not None
    items = tuple(value.content.reshape(-1))
    if all(isinstance(d, int) for d in items):
        return graph.constant(value.content.astype(value.dtype.numpy), name)
    dims: Any = items if value.type.rank else items[0]
    return graph.add_node(Dims(dims, value.dtype), (), name=name).outputs[0]


def _plain(kind: TensorType, renamed: dict[str, DimLike]) -> TensorType:
    """The type with a symbol of its own for each dimension that is an expression."""
    shape: list[DimLike] = []
    for dim in kind.shape:
        if not isinstance(dim, int) and not str(dim).isidentifier():
            dim = renamed.setdefault(str(dim), symbol(f"inner_{len(renamed)}"))
        shape.append(dim)
    return TensorType(tuple(shape), kind.dtype)


def _with_plain_placeholders(graph_def: Any) -> Any:
    """A copy in which placeholders have no defaults, which would be taken for constants."""
    copy = type(graph_def)()
    copy.CopyFrom(graph_def)
    for node in copy.node:
        if node.op == "PlaceholderWithDefault":
            node.op = "Placeholder"
            del node.input[:]
    return copy


def _producer(text: str) -> str:
    return graphdef.tensor_name(text.removeprefix("^"))[0]


def _text(tensor: Tensor) -> str:
    """The name of an engine's input or output: that of the node where it has one result."""
    return f"{tensor[0]}:{tensor[1]}" if tensor[1] else tensor[0]
