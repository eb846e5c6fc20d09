"""Tuning: measures tactics of candidate tasks within a time budget, and chooses among them.

An estimate says which tasks will likely be chosen. Of every task of several products one tactic of
each family is measured first, as it knows little of them; then a few of each likely one, then one
of every other task, which may show that another cover is cheaper; then, round by round, some more
of the tasks of what is the cheapest cover by then, costly ones before cheap ones; then all others,
until the budget is spent. What was measured before (timing cache) costs nothing. The exact cheapest
cover of what was measured is chosen at the usual sizes; its tasks are then tuned at the other sizes
too.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from planish.errors import DeviceLostError, TuningError
from planish.fusion.task import Task
from planish.graph.graph import Graph, Node, Value
from planish.native import aligned_empty
from planish.plan.plan import Choice, Plan, PlanStep, binding_of
from planish.plan.views import Placements
from planish.precision.permissions import Permissions
from planish.profile import FACTORS
from planish.targets.base import Binding, Tactic
from planish.targets.reference import ReferenceTactic
from planish.targets.target import Target
from planish.tuning.cache import TimingCache
from planish.tuning.entry import Entry, ordered
from planish.tuning.estimate import estimate
from planish.tuning.measure import Bench, Measurement, kernels_of, level_of_faults
from planish.tuning.selection import Choice as Candidate
from planish.tuning.selection import select

log = logging.getLogger("planish")

USUAL_SHARE = 0.7
"""Share of the budget for the usual sizes, where there are others."""

WRONG = float("inf")
"""In the timing cache, the time of a tactic whose result was wrong."""

ROUND = 6
"""So many tactics of each likely task are measured before the rest of any."""

LATER_ROUND = 2 * ROUND
"""And then so many at a time of each task of what is the cheapest cover by then. In 70
tasks on an H200 that were measured whole, the best of the first 18 was slower than the best of all
by 0.1 % in the mean and 2 % at most.
"""

BATCH = 48
"""Tactics whose kernels are compiled together, and whose times are kept together."""

HOST_STEP_SECONDS = 1e-3
"""What leaving native code is taken to cost, where nothing else can run a task."""

STEP_SECONDS = 2e-6
"""What every further step costs beside its own time: threads meet, and its input comes from a cache
that another core has just written, where a measurement finds it in its own.
"""

Report = Callable[[str, int, int], None]
"""Called with (what, done, of how many)."""


@dataclass
class TuningReport:
    """What tuning did.

    Attributes
    ----------
    measured, cached, rejected : int
        Tactics timed now, known from the timing cache, and found wrong.
    seconds : float
    complete : bool
        Whether everything worth measuring was measured.
    host_steps : list of str
        Layers that no kernel can run.
    """

    measured: int = 0
    cached: int = 0
    rejected: int = 0
    seconds: float = 0.0
    complete: bool = True
    host_steps: list[str] = field(default_factory=list)


class Tuner:
    """Tunes the candidate tasks of one graph."""

    def __init__(
        self,
        graph: Graph,
        placements: Placements,
        target: Target,
        cache: TimingCache,
        *,
        budget: float,
        threads: int,
        max_workspace: int | None = None,
        permissions: Permissions | None = None,
        report: Report | None = None,
    ) -> None:
        self._graph, self._placements, self._target = graph, placements, target
        self._cache, self._threads = cache, threads
        self._budget = budget
        self._max_workspace = max_workspace
        self._permissions = permissions or Permissions()
        self._report = report or (lambda what, done, total: None)
        self._entries: dict[tuple[str, frozenset[str]], Entry] = {}
        self._cold: dict[tuple[tuple[str, int], ...], bool] = {}
        self.result = TuningReport()

    def run(self, tasks: Sequence[Task], points: Sequence[Mapping[str, int]]) -> Plan:
        """Tunes and chooses. `points` are sizes of the dimensions, the usual ones first."""
        with self._target.compiling():
            return self._run(tasks, points)

    def _run(self, tasks: Sequence[Task], points: Sequence[Mapping[str, int]]) -> Plan:
        start = time.monotonic()
        usual = points[0]
        tasks = [task for task in tasks if self._runs_everywhere(task, points)]
        entries = [self._entry(task, self._occupied(task, usual)) for task in tasks]
        share = USUAL_SHARE if len(points) > 1 else 1.0
        found = dict(zip(tasks, entries, strict=True))
        likely = self._choose(found)
        deadline = start + share * self._budget

        def cheapest() -> list[Entry]:
            return [found[t] for t in self._choose_known(found, likely)]

        if self._measure_some([found[t] for t in likely], entries, "tuning", deadline):
            self._measure_rest(cheapest, entries, "tuning", deadline)
        chosen = self._choose_known(found, likely)
        more = []
        for symbols in points[1:]:
            for task in chosen:
                entry = self._entry(task, self._occupied(task, symbols))
                entry.shorten(self._entry(task, self._occupied(task, usual)))
                more.append(entry)
        deadline = start + self._budget
        if self._measure_some(more, more, "tuning other sizes", deadline):
            self._measure_rest(lambda: more, more, "tuning other sizes", deadline)
        self._settle()
        steps = tuple(self._step(task, points) for task in self._ordered(chosen))
        self.result.seconds = time.monotonic() - start
        self.result.host_steps = [
            step.task.name
            for step in steps
            if isinstance(step.choices[0].tactic, ReferenceTactic)
            and not self._does_nothing(step.task, usual)
        ]
        return Plan(self._graph, steps)

    def _runs_everywhere(self, task: Task, points: Sequence[Mapping[str, int]]) -> bool:
        """Whether kernels that run a task at one point also run it, perhaps others, at all points.

        A batch of one hides broadcasts that no kernel can do at a larger one; the parts of such a
        task are better off alone. Single nodes stay, so that there is a cover.
        """
        if len(task.nodes) == 1:
            return True
        entries = [self._entry(task, self._occupied(task, symbols)) for symbols in points]
        return len({bool(entry.tactics) for entry in entries}) == 1

    def _settle(self) -> None:
        """Remembers what this budget bought: the same build again has nothing left to measure.

        A budget that bought nothing, on a machine too busy even to compile within it, is no reason
        not to try again.
        """
        entries = self._entries.values()
        keys = [entry.settled_key for entry in entries]
        if self._budget > 0 and any(entry.times or entry.rejected for entry in entries):
            self._cache.put_largest((key, self._budget) for key in keys)

    # ---- measuring ------------------------------------------------------------------------

    def _entry(self, task: Task, symbols: Mapping[str, int]) -> Entry:
        """The entry of a task; equal tasks share one, but tactics hold the task they are for."""
        binding = self._binding(task, symbols)
        layouts = [binding.layout(v) for v in (*task.inputs, *task.outputs)]
        cold = self._is_cold(symbols)
        key = f"{self._target.timing_key} t{self._threads} {task.key} {layouts}"
        key += " cold" if cold else ""
        precisions = self._permissions.of(task.nodes)
        shared = self._entries.get((key, precisions))
        if shared is None:
            tactics = [
                t
                for t in self._target.tactics(task, binding)
                if t.is_permitted(precisions) and self._fits(t, binding)
            ][: self._target.tactics_per_task]
            guess = estimate(task, binding, self._target.rates)
            shared = Entry(task, binding, key, tactics, precisions, guess, cold=cold)
            self._entries[key, precisions] = shared
            for i, tactic in enumerate(tactics):
                seconds = self._cache.get(f"{key} {tactic}")
                if seconds == WRONG:
                    shared.rejected.add(i)
                elif seconds is not None:
                    shared.times[i] = seconds
                    self.result.cached += 1
            spent = self._cache.get(shared.settled_key)
            if spent is not None and spent >= self._budget:
                shared.shortlist = []
        return shared

    def _occupied(self, task: Task, symbols: Mapping[str, int]) -> Mapping[str, int]:
        """The sizes, or multiples of them where these would leave a tensor of the task empty.

        Kernels do not run on empty tensors, and a tactic is wanted for when there is something.
        """
        for factor in FACTORS:
            larger = {
                name: min(size * factor, max(size, self._graph.ranges[name].max))
                if name in self._graph.ranges
                else size * factor
                for name, size in symbols.items()
            }
            if not self._binding(task, larger).has_empty(task):
                return larger
        return symbols

    def _is_cold(self, symbols: Mapping[str, int]) -> bool:
        """Whether the caches hold less than the network's constants and its two largest tensors."""
        if not self._target.cached_bytes:
            return False
        sizes = tuple(sorted(symbols.items()))
        if sizes not in self._cold:
            values = {v for node in self._graph.nodes for v in (*node.inputs, *node.outputs)}
            binding = binding_of(self._placements, symbols, tuple(values))
            bytes_of = {v: v.dtype.size * math.prod(binding.shape(v)) for v in values}
            constants = sum(n for v, n in bytes_of.items() if v.is_constant)
            largest = max((n for v, n in bytes_of.items() if not v.is_constant), default=0)
            self._cold[sizes] = constants + 2 * largest > self._target.cached_bytes
        return self._cold[sizes]

    @cached_property
    def _other(self) -> np.ndarray:
        """As much memory as the caches hold, and some more."""
        memory = aligned_empty(self._target.cached_bytes * 5 // 4)
        memory[:] = 0
        return memory

    def _does_nothing(self, task: Task, symbols: Mapping[str, int]) -> bool:
        """Whether no result of the task has an element, at these sizes or larger ones."""
        binding = self._binding(task, self._occupied(task, symbols))
        return all(0 in binding.shape(v) for v in task.outputs)

    def _binding(self, task: Task, symbols: Mapping[str, int]) -> Binding:
        return binding_of(self._placements, symbols, (*task.inputs, *task.outputs))

    def _fits(self, tactic: Tactic, binding: Binding) -> bool:
        return self._max_workspace is None or tactic.workspace(binding) <= self._max_workspace

    def _measure_some(
        self, likely: Sequence[Entry], entries: Sequence[Entry], what: str, deadline: float
    ) -> bool:
        """Measures a few tactics of likely entries, of each family one of wholes, which come first,
        and one of the others; False if there was no time for that.
        """
        if self._budget <= 0:
            self.result.complete = False
            return False
        wholes: list[tuple[Entry, int]] = []
        some: list[tuple[Entry, int]] = []
        for entry, is_likely in ordered(likely, entries, lambda e: e.guess):
            if is_likely:
                some += [(entry, i) for i in entry.unknown()[:ROUND]]
            elif entry.task.pattern:
                wholes += [(entry, i) for i in entry.firsts()]
            elif not entry.times:
                some += [(entry, i) for i in entry.unknown()[:1]]
        order = [*wholes, *some]  # no guess tells what a whole gains over its parts
        return self._measure_all(order, what, deadline)

    def _measure_rest(
        self,
        cheapest: Callable[[], Sequence[Entry]],
        entries: Sequence[Entry],
        what: str,
        deadline: float,
    ) -> None:
        """Measures all other tactics: some more of the entries that are `cheapest` by then, which
        may make others the cheapest, until these are done; then those of other entries.
        """

        def costly_first(some: Sequence[Entry], most: int | None) -> list[tuple[Entry, int]]:
            order = ordered(some, some, lambda e: min(e.times.values(), default=0.0))
            return [(entry, i) for entry, _ in order for i in entry.unknown()[:most]]

        while wanted := costly_first(cheapest(), LATER_ROUND):
            if not self._measure_all(wanted, what, deadline):
                return
        self._measure_all(costly_first(entries, None), what, deadline)

    def _measure_all(self, wanted: Sequence[tuple[Entry, int]], what: str, deadline: float) -> bool:
        """Measures tactics in order; False if time ran out before the last one."""
        owner: Entry | None = None
        bench: Bench | None = None
        fresh: list[tuple[str, float]] = []
        with closing(self._compiled(wanted)) as compiled:
            for done, (entry, i) in enumerate(compiled, 1):
                if time.monotonic() > deadline:
                    self._cache.put(fresh)
                    self.result.complete = False
                    return False
                if bench is None or owner is not entry:
                    owner = entry
                    bench = Bench(
                        entry.task,
                        entry.binding,
                        self._target,
                        self._threads,
                        entry.expected,
                        self._other if entry.cold else None,
                    )
                try:
                    fresh += self._measure_one(entry, i, bench)
                except DeviceLostError as error:
                    name = f"{entry.key} {entry.tactics[i]}"
                    self._cache.put([*fresh, (name, WRONG)])
                    raise _named(error, entry, i) from error
                self._report(what, done, len(wanted))
                if len(fresh) >= BATCH:
                    self._cache.put(fresh)
                    fresh = []
        self._cache.put(fresh)
        return True

    def _measure_one(self, entry: Entry, i: int, bench: Bench) -> list[tuple[str, float]]:
        """Measures a tactic; what the timing cache is to know of it."""
        best = min(entry.times.values(), default=float("inf"))
        outcome = self._try(bench, entry.tactics[i], best)
        entry.expected = bench.small_results()
        name = f"{entry.key} {entry.tactics[i]}"
        if outcome.seconds is None:
            entry.rejected.add(i)
            self.result.rejected += 1
            return [(name, WRONG)] if outcome.wrong else []
        entry.times[i] = outcome.seconds
        self.result.measured += 1
        return [(name, outcome.seconds)]

    def _compiled(
        self, wanted: Sequence[tuple[Entry, int]]
    ) -> Generator[tuple[Entry, int], None, None]:
        """Tactics whose kernels are compiled, in order.

        Where that does not disturb measuring, the next ones are compiled meanwhile.
        """

        def prepare(members: Sequence[tuple[Entry, int]]) -> None:
            try:
                self._target.prepare(
                    k for entry, i in members for k in kernels_of(entry.tactics[i], entry.binding)
                )
            except TuningError as error:
                # measuring the tactic in question finds it again, and only that one is out
                log.debug("a kernel does not compile: %s", error)

        beside = self._target.compilers_beside
        if not beside:
            for start in range(0, len(wanted), BATCH):
                batch = wanted[start : start + BATCH]
                prepare(batch)
                yield from batch
            return
        pool = ThreadPoolExecutor(beside)
        try:
            waiting = [pool.submit(prepare, [member]) for member in wanted]
            for member, ready in zip(wanted, waiting, strict=True):
                ready.result()
                yield member
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @staticmethod
    def _try(bench: Bench, tactic: Tactic, best: float) -> Measurement:
        try:
            return bench.measure(tactic, best)
        except TuningError as error:
            log.log(level_of_faults(tactic), "tactic %s is out: %s", tactic, error)
            return Measurement(None)

    # ---- choosing -------------------------------------------------------------------------

    def _choose_known(self, entries: Mapping[Task, Entry], likely: Sequence[Task]) -> list[Task]:
        """The cheapest cover of what was measured; where that is none, with `likely` tasks."""
        known = {
            task: entry
            for task, entry in entries.items()
            if entry.times or (len(task.nodes) == 1 and not entry.has_tactics)
        }
        if {n for t in known for n in t.nodes} == {n for t in entries for n in t.nodes}:
            try:
                return self._choose(known)
            except TuningError as error:
                log.debug("what was measured is no cover: %s", error)
        if not all(entries[t].has_tactics or len(t.nodes) == 1 for t in likely):
            return self._choose(entries)
        spared = set(likely)
        return self._choose({t: e for t, e in entries.items() if e.times or t in spared})

    def _choose(self, entries: Mapping[Task, Entry]) -> list[Task]:
        """The cheapest cover of the graph by some tasks. Costs are nanoseconds."""
        tasks, candidates = [], []
        # where a measurement is above its guess, so are other tasks likely to be
        measured = [min(e.times.values()) / e.guess for e in entries.values() if e.times]
        off = max([1.0, *measured])
        for task, entry in entries.items():
            tactic, seconds = entry.best()
            if isinstance(tactic, ReferenceTactic):
                if len(task.nodes) > 1:
                    continue  # its nodes alone do as well
                seconds = HOST_STEP_SECONDS + entry.guess
            elif seconds is None:
                if task.pattern not in ("", "attention"):
                    continue  # only measuring tells whether it is faster than its parts
                seconds = off * entry.guess
            cost = int((seconds + tactic.extra_seconds + STEP_SECONDS) * 1e9)
            tasks.append(task)
            candidates.append(Candidate(frozenset(task.nodes), cost))
        picked = select(candidates, lambda value, have, want: 0)
        return [tasks[i] for i in picked]

    def _step(self, task: Task, points: Sequence[Mapping[str, int]]) -> PlanStep:
        choices: list[Choice] = []
        sizes = [self._occupied(task, symbols) for symbols in points]
        entries = [self._entry(task, symbols) for symbols in sizes]
        wrong = {name for entry in entries for name in entry.wrong()}
        sane: dict[str, bool] = {}
        for entry in entries:
            entry.drop(wrong)
            for name, fast in entry.sane().items():
                sane[name] = fast or sane.get(name, False)
        for symbols, entry in zip(sizes, entries, strict=True):
            tactic, seconds = entry.best()
            if tactic.task is not task:
                tactic = (
                    self._target.restore(task, tactic.family, tactic.parameters)
                    if (not isinstance(tactic, ReferenceTactic))
                    else ReferenceTactic(task)
                )
            if isinstance(tactic, ReferenceTactic) and choices:
                continue
            choices.append(Choice(tuple(sorted(symbols.items())), tactic, seconds))
        slow = (name for name, fast in sane.items() if not fast)
        return PlanStep(
            task,
            tuple(choices),
            tuple(sorted(wrong)),
            tuple(sorted(slow)),
            self._permissions.of(task.nodes),
        )

    def _ordered(self, chosen: Sequence[Task]) -> list[Task]:
        """Tasks in the order of their last node: every input is ready when a task runs."""
        position: dict[Node, int] = {n: i for i, n in enumerate(self._graph.nodes)}
        made: dict[Value, Task] = {v: t for t in chosen for v in t.outputs}
        order: list[Task] = []
        seen: set[int] = set()

        def sources(task: Task) -> list[Task]:
            """The tasks whose results a task reads, through views."""
            found, stack = [], list(task.inputs)
            while stack:
                value = stack.pop()
                if value in made:
                    found.append(made[value])
                elif value.producer is not None:
                    stack += value.producer.inputs
            return found

        ready = sorted(chosen, key=lambda t: position[t.nodes[-1]])
        stack = list(reversed(ready))
        while stack:
            task = stack[-1]
            if id(task) in seen:
                stack.pop()
                continue
            waiting = [t for t in sources(task) if id(t) not in seen]
            if waiting:
                stack += waiting
                continue
            seen.add(id(task))
            order.append(task)
            stack.pop()
        return order


def _named(error: DeviceLostError, entry: Entry, i: int) -> DeviceLostError:
    """The error with the layer and the tactic in which it happened."""
    return DeviceLostError(
        error.what,
        where=f"{error.where}, layer {entry.task.name!r}, tactic {entry.tactics[i]}",
        why=error.why,
        cure=f"{error.cure}. The timing cache knows the tactic now: builds leave it out",
    )
