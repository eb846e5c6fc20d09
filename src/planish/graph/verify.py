"""The verifier: executable rules that every graph obeys, run between passes.

A rule is a function that yields what is wrong, each with the place; `RULES` is their table. A pass
that breaks the graph is caught right after it, with its name in the message, instead of by wrong
results later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from planish.errors import ModelError, PlanishError
from planish.graph.dims import symbols
from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType

Complaint = tuple[str, str]
"""Where (a node or value), and what is wrong there."""


def verify(graph: Graph, after: str = "") -> None:
    """Checks that a graph obeys every rule.

    Parameters
    ----------
    graph : Graph
        The graph; it is not changed.
    after : str
        The pass that ran last, for the message.

    Raises
    ------
    ModelError
        A rule is broken; names the rule, the place and the pass.
    """
    for name, rule in RULES.items():
        for where, what in rule(graph):
            raise ModelError(
                f"Internal error: the graph breaks the rule {name!r}: {what}",
                where=where,
                why=f"the pass {after!r} left it so" if after else "it was built so",
                cure="this is a fault of Planish, not of the model: please report it",
            )


def _place(node: Node) -> str:
    origin = f" from {node.origin}" if node.origin and node.origin != node.name else ""
    return f"node {node.name!r} ({node.op.name}){origin}"


def _written_once(graph: Graph) -> Iterator[Complaint]:
    writers: dict[Value, str] = {}
    for value in graph.inputs:
        if value.producer is not None or value.data is not None:
            yield f"input {value.name!r}", "an input has a producer or data"
        if value in writers:
            yield f"input {value.name!r}", "it is listed twice"
        writers[value] = "input"
    for node in graph.nodes:
        for value in node.outputs:
            if value in writers:
                yield _place(node), f"{value.name!r} is also written by {writers[value]}"
            if value.producer is not node:
                yield _place(node), f"{value.name!r} does not name it as its producer"
            if value.data is not None:
                yield _place(node), f"its output {value.name!r} has data, as if constant"
            writers[value] = node.name


def _topological_order(graph: Graph) -> Iterator[Complaint]:
    known = set(graph.inputs)
    for node in graph.nodes:
        for value in node.inputs:
            if value not in known and not value.is_constant:
                yield _place(node), f"it reads {value.name!r} before that is written"
        known.update(node.outputs)


def _outputs_reachable(graph: Graph) -> Iterator[Complaint]:
    known = set(graph.inputs).union(*(node.outputs for node in graph.nodes))
    if len(graph.outputs) != len(graph.output_names):
        yield f"graph {graph.name!r}", "outputs and their names differ in number"
    for value, name in zip(graph.outputs, graph.output_names, strict=False):
        if value not in known and not value.is_constant:
            yield f"output {name!r}", "nothing in the graph writes it"
    for name, count in Counter(graph.output_names).items():
        if count > 1:
            yield f"output {name!r}", "two outputs have this name"


def _users_consistent(graph: Graph) -> Iterator[Complaint]:
    users: dict[Value, set[Node]] = {}
    for node in graph.nodes:
        for value in node.inputs:
            users.setdefault(value, set()).add(node)
    for value in graph.values():
        found = users.get(value, set())
        for node in value.users:
            if node not in found:
                yield f"value {value.name!r}", f"its user {node.name!r} does not read it"
        for node in found:
            if node not in value.users:
                yield _place(node), f"it is missing among the users of {value.name!r}"


def _types_inferred(graph: Graph) -> Iterator[Complaint]:
    for node in graph.nodes:
        try:
            types = node.op.infer(*node.inputs)
        except PlanishError as error:
            yield _place(node), f"its inputs do not fit: {error.what}"
            continue
        written = [value.type for value in node.outputs]
        if types != written:
            yield (
                _place(node),
                f"its outputs should be {', '.join(map(str, types))} and are recorded as "
                f"{', '.join(map(str, written))}",
            )


def _unique_names(graph: Graph) -> Iterator[Complaint]:
    for kind, names in (
        ("value", (v.name for v in graph.values())),
        ("node", (n.name for n in graph.nodes)),
    ):
        for name, count in Counter(names).items():
            if count > 1:
                yield f"{kind} {name!r}", f"{count} {kind}s have this name"


def _constants_match(graph: Graph) -> Iterator[Complaint]:
    for value in graph.constants():
        data = value.data
        assert data is not None
        if value.producer is not None:
            yield f"constant {value.name!r}", "it has a producer"
        if tuple(data.shape) != value.shape or DType.of(data.dtype) is not value.dtype:
            yield (
                f"constant {value.name!r}",
                f"its data is {data.dtype}{list(data.shape)}, its type {value.type}",
            )


def _content_matches(graph: Graph) -> Iterator[Complaint]:
    for value in graph.values():
        if value.content is not None and value.content.shape != value.shape:
            yield (
                f"value {value.name!r}",
                f"its content has shape {value.content.shape}, its type is {value.type}",
            )


def _symbols_bound(graph: Graph) -> Iterator[Complaint]:
    bound = graph.symbols()
    for value in graph.values():
        for dim in value.shape:
            for name in sorted(symbols(dim) - bound):
                yield (
                    f"value {value.name!r}",
                    f"no input or count binds the symbol {name!r} of its type {value.type}",
                )


def _counts_countable(graph: Graph) -> Iterator[Complaint]:
    inputs = {s for v in graph.inputs for d in v.shape for s in symbols(d)}
    for name, count in graph.counts.items():
        where = f"dimension {name!r}"
        if name in inputs:
            yield where, "an input has it too"
        if graph.output_names.count(count.output) != 1:
            yield where, f"there is no output {count.output!r} to hold it"
            continue
        value = graph.counted(name)
        if value.type.elements != 1 or not value.dtype.is_integer:
            yield where, f"a value of type {value.type} cannot hold it"
        for other in sorted(symbols(count.limit) - graph.symbols()):
            yield where, f"its limit depends on {other!r}, which nothing binds"


def _trims_fit(graph: Graph) -> Iterator[Complaint]:
    known = graph.symbols() | graph.counts.keys()
    for name, shape in graph.trims.items():
        where = f"output {name!r}"
        if name not in graph.output_names:
            yield where, "it is cut to size and does not exist"
            continue
        value = graph.outputs[graph.output_names.index(name)]
        if len(shape) != value.type.rank:
            yield where, f"it is cut to {len(shape)} dimensions, and is {value.type}"
        for other in sorted({s for d in shape for s in symbols(d)} - known):
            yield where, f"it is cut to a size that depends on {other!r}, which nothing binds"


RULES: dict[str, Callable[[Graph], Iterator[Complaint]]] = {
    "every value is written once": _written_once,
    "nodes stand in topological order": _topological_order,
    "outputs are reachable": _outputs_reachable,
    "users are consistent": _users_consistent,
    "names are unique": _unique_names,
    "constants match their types": _constants_match,
    "contents match their types": _content_matches,
    "types are those the ops infer": _types_inferred,
    "symbols are bound by inputs": _symbols_bound,
    "counts are integers of the graph": _counts_countable,
    "outputs are cut to known sizes": _trims_fit,
}
"""Every rule by the name that messages use."""
