"""A plan: the optimised graph, the tasks that cover it, and the tactics chosen for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from planish.fusion.task import Task
from planish.graph.dims import evaluate
from planish.graph.graph import Graph, Value
from planish.plan.memory import ALIGNMENT
from planish.plan.stages import Stages, divide
from planish.plan.views import Placements, place
from planish.targets.base import Binding, Layout, Tactic
from planish.targets.reference import ReferenceTactic
from planish.targets.target import Target

Symbols = Mapping[str, int]


@dataclass(frozen=True)
class Choice:
    """A tactic, and the values of the symbols it was tuned at, with the time measured there."""

    at: tuple[tuple[str, int], ...]
    tactic: Tactic
    seconds: float | None = None


@dataclass(frozen=True)
class PlanStep:
    """A task and the tactics chosen for it, at one or several sizes of its dimensions.

    Attributes
    ----------
    task : Task
    choices : tuple of Choice
    wrong : tuple of str
        Tactics, as they print, that tuning found wrong at some size, or could not compile: they
        never run.
    slow : tuple of str
        Tactics that were far slower than others at every size where tuning tried them: they run
        where nothing else can.
    precisions : frozenset of str
        What its tactics may compute in beside the task's own dtypes.
    """

    task: Task
    choices: tuple[Choice, ...]
    wrong: tuple[str, ...] = ()
    slow: tuple[str, ...] = ()
    precisions: frozenset[str] = frozenset({"fp32"})

    def tactic(self, binding: Binding, target: Target) -> Tactic:
        """The tactic for these shapes: of those tuned the nearest that accepts them, else the
        target's best guess, else the reference, which also does what empty tensors leave to do.
        """
        if binding.has_empty(self.task):
            return ReferenceTactic(self.task)

        def distance(choice: Choice) -> float:
            total = 0.0
            for name, size in choice.at:
                a, b = max(size, 1), max(binding.symbols.get(name, size), 1)
                total += max(a, b) / min(a, b) - 1
            return total

        for choice in sorted(self.choices, key=distance):
            if choice.tactic.accepts(binding):
                return choice.tactic
        offered = [t for t in target.tactics(self.task, binding) if t.is_permitted(self.precisions)]
        for tactic in sorted(offered, key=lambda tactic: str(tactic) in self.slow):
            if str(tactic) not in self.wrong and tactic.accepts(binding):
                return tactic
        return ReferenceTactic(self.task)


@dataclass(frozen=True)
class Plan:
    """What tuning yields and an engine runs.

    Attributes
    ----------
    graph : Graph
        The optimised graph, copies inserted; constants hold the original weights.
    steps : tuple of PlanStep
        In the order in which they run.
    about : dict
        What the header states: machine, versions, precision, times; data for people and checks.
    """

    graph: Graph
    steps: tuple[PlanStep, ...]
    about: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def placements(self) -> Placements:
        """Where every value lives."""
        return place(self.graph)

    @cached_property
    def stages(self) -> Stages:
        """Its parts, which run one after the other."""
        return divide(self.graph, self.placements, [step.task for step in self.steps])

    def binding(self, symbols: Symbols, task: Task) -> Binding:
        """The concrete shapes and layouts of a task's values."""
        return binding_of(self.placements, symbols, (*task.inputs, *task.outputs))


def binding_of(placements: Placements, symbols: Symbols, values: Iterable[Value]) -> Binding:
    """The layouts of values for concrete sizes of the dimensions."""
    layouts = {}
    for value in values:
        placement = placements.of.get(value)
        if placement is not None:
            strides = tuple(evaluate(s, symbols) for s in placement.strides)
            start = evaluate(placement.offset, symbols) * value.dtype.size
            alignment = min(start & -start, ALIGNMENT) if start else ALIGNMENT
            layouts[value] = Layout(value.type.bind(symbols), strides, alignment)
    return Binding(symbols, layouts)
