"""What must hold for a graph: the checks, and cutting a graph down that one of them fails for."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from helpers.fuzz.onnx_model import onnx_difference
from helpers.fuzz.recipe import Domain, Recipe, Ref, Source, Step, Symbols
from helpers.fuzz.rounding import Bounds, Noise, evaluate
from helpers.fuzz.target import FuzzTarget, Offer
from planish.builder import build_graph
from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph.graph import Graph, Value
from planish.passes import optimize
from planish.plan.file import deserialize
from planish.plan.load import restore
from planish.plan.plan import binding_of
from planish.plan.views import insert_copies, place
from planish.profile import settle_ranges
from planish.runtime.engine import Engine
from planish.targets.base import Binding, Layout, Tactic
from planish.targets.cpu.kernels import strips
from planish.targets.cpu.machine import Machine
from planish.targets.target import Target

strips.DISTANT = 0  # small images, too

RUNS = 3
"""Noisy runs that bound rounding errors."""

MANY_RUNS = 24
"""Noisy runs before a difference is believed."""


class Mismatch(Exception):
    """A check failed. `stage` is which."""

    def __init__(self, stage: str, what: str) -> None:
        super().__init__(f"{stage}: {what}")
        self.stage = stage


@dataclass
class Tally:
    """What was checked so far."""

    graphs: int = 0
    nodes: int = 0
    tactics: int = 0
    offered: int = 0
    onnx_nodes: int = 0
    elements: int = 0
    compared: int = 0
    ops: dict[str, int] = field(default_factory=dict)
    families: dict[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        share = self.compared / max(self.elements, 1)
        return (
            f"{self.graphs} graphs, {self.nodes} ops of {len(self.ops)} kinds, {self.tactics} "
            f"tactics of {len(self.families)} families ({self.offered} offered), "
            f"{self.onnx_nodes} ops by ONNX Runtime, {share:.2%} of elements comparable"
        )


@dataclass(frozen=True)
class Options:
    """What is checked.

    Attributes
    ----------
    engine, onnx : bool
    share : float
        The share of tasks whose kernels the engine uses.
    tactics : int
        Tactics of a graph tried one by one, at most.
    kernels : int, optional
        Kernels compiled for a graph, at most; beyond that only tactics are tried, and used in
        engines, whose kernels were compiled for an earlier graph. None: no limit.
    optimized : float
        The share of kernels that LLVM compiles as it does for users; see `FuzzTarget`.
    machine : Machine, optional
        Whose tactics; None: this one's.
    """

    engine: bool = True
    onnx: bool = True
    share: float = 1.0
    tactics: int = 1000
    kernels: int | None = None
    optimized: float = 1.0
    machine: Machine | None = None


class Checker:
    """Checks recipes; keeps compiled kernels and a tally.

    `target` is a `FuzzTarget`, or what has its attributes.
    """

    def __init__(self, options: Options = Options(), target: Any = None) -> None:
        self.options = options
        self.target = target or FuzzTarget(options.machine, options.optimized)
        self.tally = Tally()
        self._folder = tempfile.TemporaryDirectory(prefix="planish-fuzz-")

    def check(self, recipe: Recipe, seed: int, runs: int = RUNS) -> None:
        """Raises `Mismatch` (or what the code under test raises) where something is wrong."""
        self.target.seed, self.target.share = seed, self.options.share
        self.target.known_only = self.options.kernels is not None
        graph, values = recipe.build()
        self.tally.graphs += 1
        self.tally.nodes += len(graph.nodes)
        for node in graph.nodes:
            self.tally.ops[node.op.name] = self.tally.ops.get(node.op.name, 0) + 1
        expected = []
        for symbols in recipe.points:
            known = [_known(recipe, values, symbols, None)]
            known += [_known(recipe, values, symbols, Noise(seed + k)) for k in range(runs)]
            for each, noise in zip(
                known, [None, *map(Noise, range(seed, seed + runs))], strict=True
            ):
                evaluate(graph.nodes, each, symbols, noise)
            expected.append(known)
        if self.options.onnx and not recipe.points[0]:
            self._check_onnx(recipe, values, expected[0])
        bounds = [[_bounds(known, values[r]) for r in recipe.outputs] for known in expected]
        for each in bounds:
            for bound in each:
                self.tally.elements += bound.compared.size
                self.tally.compared += int(bound.compared.sum())
        if self.options.engine:
            self._check_engine(recipe, bounds)
        if self.options.tactics:
            self._check_tactics(recipe, seed, runs)

    # ---- engines --------------------------------------------------------------------------

    def _check_engine(self, recipe: Recipe, bounds: list[list[Bounds]]) -> None:
        cache = Path(self._folder.name) / "timing.sqlite"
        engine = build_graph(recipe.graph(), self.target, tuning_seconds=0, timing_cache=cache)
        again = Engine(restore(deserialize(engine.serialize()), self.target), self.target)
        for symbols, each in zip(recipe.points, bounds, strict=True):
            arrays = recipe.arrays(symbols)
            results = _run(engine, arrays)
            for name, bound in zip(results, each, strict=True):
                if wrong := bound.difference(results[name]):
                    raise Mismatch("engine", f"output {name} at {dict(symbols)}: {wrong}")
            for name, array in _run(again, arrays).items():
                if array.tobytes() != results[name].tobytes():
                    raise Mismatch("saved plan", f"output {name} differs at {dict(symbols)}")
        engine.close()
        again.close()

    # ---- tactics --------------------------------------------------------------------------

    def _check_tactics(self, recipe: Recipe, seed: int, runs: int) -> None:
        self.target.share, self.target.known_only = 1.0, False
        symbols = recipe.points[-1]
        graph, found = _offered(self.target, recipe, seed)
        self.tally.offered += len(found)
        arrays = recipe.arrays(symbols)
        known = {v: arrays[v.name] for v in graph.inputs}
        evaluate(graph.nodes, known, symbols)
        chosen = self._sample(found, np.random.default_rng(seed))
        expected: dict[int, list[dict[Value, np.ndarray]]] = {}
        with self.target.loaded(chosen):
            for tactic, binding in chosen:
                task = tactic.task
                if id(task) not in expected:
                    expected[id(task)] = _noisy(task, known, binding.symbols, seed, runs)
                self._check_tactic(tactic, binding, known, expected[id(task)])

    def _check_tactic(
        self,
        tactic: Tactic,
        binding: Binding,
        known: dict[Value, np.ndarray],
        expected: list[dict[Value, np.ndarray]],
    ) -> None:
        task = tactic.task
        self.tally.tactics += 1
        self.tally.families[tactic.family] = self.tally.families.get(tactic.family, 0) + 1
        given = [v.data if v.data is not None else known[v] for v in task.inputs]
        where = f"{tactic} of {task.key} at {dict(binding.symbols)}"
        again = self.target.restore(task, tactic.family, tactic.parameters)
        if str(again) != str(tactic):
            raise Mismatch("tactic", f"{where} is another one in a plan")
        outputs, *others = self.target.run(tactic, binding, given)
        for value, output in zip(task.outputs, outputs, strict=True):
            if wrong := _bounds(expected, value).difference(output):
                layouts = [binding.strides(v) for v in (*task.inputs, *task.outputs)]
                raise Mismatch("tactic", f"{where}, strides {layouts}: {wrong}")
        for other in others:
            if any(a.tobytes() != b.tobytes() for a, b in zip(outputs, other, strict=True)):
                raise Mismatch("tactic", f"{where}: the order of its tasks shows in its results")

    def _sample(self, found: list[Offer], rng: np.random.Generator) -> list[Offer]:
        """Tactics of as many tasks as there are, at most as many as the options say.

        Of the kernels to compile, every other one is of the family that was tried least so far.
        """
        most, budget = self.options.tactics, self.options.kernels
        seen: dict[str, int] = {}
        turns = []
        for i in rng.permutation(len(found)):
            name = found[i][0].task.name
            seen[name] = seen.get(name, 0) + 1
            turns.append((seen[name], int(i)))
        offers = [found[i] for _, i in sorted(turns, key=lambda turn: turn[0])]
        if budget is None:
            return offers[:most]
        missing = [self.target.missing(*offer) for offer in offers]
        ready = [offer for offer, symbols in zip(offers, missing, strict=True) if not symbols]
        rest = [(o, symbols) for o, symbols in zip(offers, missing, strict=True) if symbols]
        chosen: list[Offer] = []
        compiled: set[str] = set()
        tried = dict(self.tally.families)
        while rest and len(compiled) < budget:
            turn = 0
            if (self.tally.graphs + len(chosen)) % 2:
                turn = min(range(len(rest)), key=lambda i: tried.get(rest[i][0][0].family, 0))
            offer, symbols = rest.pop(turn)
            chosen.append(offer)
            compiled |= symbols
            tried[offer[0].family] = tried.get(offer[0].family, 0) + 1
        return [*chosen, *ready][:most]

    # ---- ONNX Runtime ---------------------------------------------------------------------

    def _check_onnx(
        self, recipe: Recipe, values: dict[Ref, Value], known: list[dict[Value, np.ndarray]]
    ) -> None:
        made = [v for ref, v in values.items() if isinstance(recipe.entries[ref.entry], Step)]
        bounds = {v: _bounds(known, v) for v in made}
        wrong, count = onnx_difference(recipe, values, known[0], bounds)
        self.tally.onnx_nodes += count
        if wrong:
            raise Mismatch("ONNX Runtime", wrong)


def offered(target: Target, recipe: Recipe, seed: int) -> list[tuple[Tactic, Binding]]:
    """Every tactic for every task that fusion proposes, at layouts as planned and with gaps."""
    return _offered(target, recipe, seed)[1]


def _offered(
    target: Target, recipe: Recipe, seed: int
) -> tuple[Graph, list[tuple[Tactic, Binding]]]:
    graph = recipe.graph()
    settle_ranges(graph)
    optimize(graph)
    insert_copies(graph)
    placements = place(graph)
    rng, rare = np.random.default_rng(seed), np.random.default_rng(seed + 1)
    found = []
    for task in propose(graph, placements.free):
        binding = binding_of(placements, recipe.points[-1], (*task.inputs, *task.outputs))
        for each in (binding, _with_gaps(task, binding, rng, rare)):
            found += [(t, each) for t in target.tactics(task, each) if t.accepts(each)]
    return graph, found


def _noisy(
    task: Task, known: dict[Value, np.ndarray], symbols: Symbols, seed: int, runs: int
) -> list[dict[Value, np.ndarray]]:
    """What a task computes by the references, without and with rounding errors."""
    given = {v: v.data if v.data is not None else known[v] for v in task.inputs}
    results = []
    for noise in [None, *(Noise(seed + k) for k in range(runs))]:
        near = {v: noise.on(None, a) if noise else a for v, a in given.items()}
        results.append(evaluate(task.nodes, near, symbols, noise))
    return results


def _with_gaps(
    task: Task, binding: Binding, rng: np.random.Generator, rare: np.random.Generator
) -> Binding:
    """The same sizes with axes in other orders in memory, and gaps between elements or rows, rarely
    between images.
    """
    layouts = {}
    for value in dict.fromkeys((*task.inputs, *task.outputs)):
        if value.is_constant:
            continue
        shape = binding.shape(value)
        order = rng.permutation(len(shape)) if rng.random() < 0.3 else range(len(shape))[::-1]
        strides, step = [0] * len(shape), 1 + int(rng.random() < 0.2)
        for turn, axis in enumerate(order):
            strides[axis] = step
            gaps = rng if turn < 2 else rare if rare.random() < 0.2 else None
            step *= shape[axis] + (int(gaps.integers(0, 3)) if gaps else 0)
        layouts[value] = Layout(shape, tuple(strides))
    return Binding(binding.symbols, layouts)


def _known(
    recipe: Recipe, values: dict[Ref, Value], symbols: Symbols, noise: Noise | None
) -> dict[Value, np.ndarray]:
    known = {}
    for i, source in recipe.sources():
        array = source.sample(symbols)
        known[values[Ref(i)]] = noise.on(None, array) if noise else array
    return known


def _bounds(known: list[dict[Value, np.ndarray]], value: Value) -> Bounds:
    return Bounds(known[0][value], [k[value] for k in known[1:]])


def _run(engine: Engine, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    result = engine(arrays)
    if isinstance(result, dict):
        return result
    return {engine.outputs[0].name: result}


# ---- finding the smallest graph ------------------------------------------------------------


def failure(checker: Checker, recipe: Recipe, seed: int, runs: int = MANY_RUNS) -> str:
    """How a recipe fails; empty where it does not."""
    try:
        checker.check(recipe, seed, runs)
    except Mismatch as error:
        return str(error)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def shrink(recipe: Recipe, fails: Callable[[Recipe], bool], most: int = 200) -> Recipe:
    """A smaller recipe for which the check fails too: outputs, then ops dropped one by one."""
    tries = 0

    def smaller(candidates: Iterable[Recipe]) -> Recipe | None:
        nonlocal tries
        for candidate in candidates:
            tries += 1
            if tries > most:
                return None
            if fails(candidate):
                return candidate
        return None

    while (found := smaller(_less(recipe))) is not None:
        recipe = found
    return recipe


def _less(recipe: Recipe) -> Iterable[Recipe]:
    """Recipes that compute less, the smallest first."""
    steps = recipe.steps()
    for i in steps:
        for ref in _results(recipe, i):
            if recipe.outputs != (ref,):
                part = recipe.with_outputs(ref)
                if len(part.steps()) < len(steps) or len(recipe.outputs) > 1:
                    yield part
    if len(recipe.outputs) > 1:
        for ref in recipe.outputs:
            yield recipe.with_outputs(*(r for r in recipe.outputs if r != ref))
    for i in steps:
        cut = _cut(recipe, i)
        if cut is not None and cut.steps():
            yield cut


def _results(recipe: Recipe, entry: int) -> list[Ref]:
    values = recipe.build()[1]
    return [r for r in values if r.entry == entry]


def _cut(recipe: Recipe, entry: int) -> Recipe | None:
    """The recipe with an op's result as an input; None where that cannot be said."""
    _, values = recipe.build()
    refs = [r for r in values if r.entry == entry]
    if len(refs) != 1 or refs[0] in recipe.outputs:
        return None
    value = values[refs[0]]
    if any(not isinstance(d, int) and not str(d).isidentifier() for d in value.shape):
        return None
    fixed = {}
    graph = recipe.build()[0]
    for symbols in recipe.points:
        arrays = recipe.arrays(symbols)
        known = evaluate(graph.nodes, {v: arrays[v.name] for v in graph.inputs}, symbols)
        same = next(v for n in graph.nodes for v in n.outputs if v.name == value.name)
        fixed[tuple(sorted(symbols.items()))] = known[same]
    source = Source(value.type, Domain(), 0, fixed)
    cut = recipe.with_source(entry, source)
    named = {str(d) for _, s in cut.sources() for d in s.type.shape if not isinstance(d, int)}
    return cut if named >= set(recipe.points[0]) else _without_symbols(cut, named)


def _without_symbols(recipe: Recipe, named: set[str]) -> Recipe | None:
    return replace(recipe, points=({},)) if not named and not _symbolic(recipe) else None


def _symbolic(recipe: Recipe) -> bool:
    return any(not v.type.is_static for v in recipe.build()[1].values())


def smallest_failure(checker: Checker, recipe: Recipe, seed: int, most: int = 200) -> str:
    """The smallest graph found that fails as the given one does, for people.

    Empty where the given one does not fail once rounding errors were looked at more closely. Every
    tactic is tried where a tactic failed, so that the one that did is among them. What is tried
    here does not count.
    """
    options, tally = checker.options, checker.tally
    checker.tally = Tally()
    try:
        return _smallest_failure(checker, recipe, seed, most)
    finally:
        checker.options, checker.tally = options, tally


def _smallest_failure(checker: Checker, recipe: Recipe, seed: int, most: int) -> str:
    options = checker.options
    what = failure(checker, recipe, seed)
    if not what and options.kernels is not None:
        checker.options = replace(options, tactics=1000, kernels=None)
        what = failure(checker, recipe, seed)
    if not what:
        return ""
    kind = what.split(":")[0]
    if kind == "tactic":
        checker.options = replace(options, engine=False, onnx=False, tactics=1000, kernels=None)
    elif kind in ("engine", "saved plan", "ONNX Runtime"):
        checker.options = replace(options, tactics=0)

    def fails(candidate: Recipe) -> bool:
        return failure(checker, candidate, seed).startswith(kind)

    small = shrink(recipe, fails, most)
    sizes = ", ".join(str(dict(p)) for p in small.points if p)
    at = f"\nat {sizes}" if sizes else ""
    what = failure(checker, small, seed)
    return f"seed {seed}: {what}\n{small.graph()}{at}"
