"""The parts of a plan that run one after the other, because later shapes depend on earlier results.

What a stage hands to later ones, and the outputs, live outside its arena, in memory that is made
when the stage starts that writes it: then its size is known. A plan without dimensions that depend
on the data has one stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planish.fusion.task import Task
from planish.graph.dims import symbols
from planish.graph.graph import Graph, Value, mentions
from planish.graph.stages import node_stages
from planish.ops.row_wise import is_row_wise
from planish.plan.views import Placements


@dataclass(frozen=True)
class Stage:
    """A part of a plan.

    Attributes
    ----------
    steps : tuple of int
        The numbers of its steps, in the order in which they run.
    symbols : tuple of str
        The dimensions on which its shapes depend.
    inputs : tuple of int
        Which of the graph's inputs it reads.
    writes : tuple of int
        Which of `Stages.kept` it is the first to write.
    counts : tuple of str
        The dimensions that are known after it.
    """

    steps: tuple[int, ...]
    symbols: tuple[str, ...]
    inputs: tuple[int, ...]
    writes: tuple[int, ...]
    counts: tuple[str, ...]


@dataclass(frozen=True)
class Stages:
    """A plan's parts.

    Attributes
    ----------
    parts : tuple of Stage
    kept : tuple of Value
        What outlives a stage: the outputs of the graph, then what is handed over.
    shared : frozenset of int
        Which of `kept` several stages read or write.
    row_wise : frozenset of str
        The dimensions that may be larger than counted: see `planish.ops.row_wise`.
    """

    parts: tuple[Stage, ...]
    kept: tuple[Value, ...]
    shared: frozenset[int]
    row_wise: frozenset[str]


def divide(graph: Graph, placements: Placements, tasks: Sequence[Task]) -> Stages:
    """The stages of tasks that cover a graph, in an order in which they could run."""
    number = node_stages(graph)
    open_counts = {s: c for s, c in graph.counts.items() if not c.padded}
    ready = {
        s: 1 + number.get(p, 0) if (p := graph.counted(s).producer) else 1 for s in open_counts
    }

    def stage_for(task: Task) -> int:
        # a copy into a part of something larger waits until that can be made
        roots = (placements.of[v].root for v in task.outputs)
        sizes = {s for root in roots for d in root.shape for s in symbols(d)}
        nodes = (number.get(n, 0) for n in task.nodes)
        return max([*nodes, *(ready.get(s, 0) for s in sizes)])

    stage_of = [stage_for(task) for task in tasks]
    count = max([*stage_of, 0]) + 1
    if count == 1:
        part = Stage(
            tuple(range(len(tasks))),
            tuple(sorted(graph.symbols())),
            tuple(range(len(graph.inputs))),
            tuple(range(len(graph.outputs))),
            tuple(graph.counts),
        )
        return Stages((part,), tuple(graph.outputs), frozenset(), frozenset())
    written: dict[Value, int] = {}
    touched: dict[Value, set[int]] = {}
    handed: dict[Value, None] = dict.fromkeys(graph.outputs)
    for stage, task in sorted(zip(stage_of, tasks, strict=True), key=lambda pair: pair[0]):
        for value in (*task.inputs, *task.outputs):
            touched.setdefault(placements.of[value].root, set()).add(stage)
        for value in task.outputs:
            written.setdefault(placements.of[value].root, stage)
        for value in task.inputs:
            root = placements.of[value].root
            if written.get(root, stage) < stage:
                handed[root] = None
    kept = tuple(handed)
    parts = []
    for stage in range(count):
        mine = [i for i, s in enumerate(stage_of) if s == stage]
        parts.append(
            Stage(
                tuple(mine),
                _symbols([tasks[i] for i in mine], placements),
                tuple(i for i, v in enumerate(graph.inputs) if stage in touched.get(v, ())),
                tuple(i for i, root in enumerate(kept) if written.get(root, 0) == stage),
                tuple(s for s in graph.counts if written.get(graph.counted(s), 0) == stage),
            )
        )
    row_wise = [
        s
        for s, c in open_counts.items()
        if all(is_row_wise(node, s, c.limit) for node in graph.nodes)
        and not any(s in symbols(other.limit) for other in open_counts.values())
    ]
    shared = frozenset(i for i, root in enumerate(kept) if len(touched.get(root, ())) > 1)
    return Stages(tuple(parts), kept, shared, frozenset(row_wise))


def _symbols(tasks: Sequence[Task], placements: Placements) -> tuple[str, ...]:
    """What the shapes and layouts in some tasks depend on."""
    found: set[str] = set()
    for task in tasks:
        for node in task.nodes:
            found |= mentions(node)
        for value in (*task.inputs, *task.outputs):
            place = placements.of[value]
            dims = (*value.shape, *place.root.shape, *place.strides, place.offset)
            found = found.union(*map(symbols, dims))
    return tuple(sorted(found))
