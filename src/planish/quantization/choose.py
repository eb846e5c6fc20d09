"""The quantized plan of a network: which layers, by time and by the user's metric.

Every attempt is the whole pipeline after the passes, on a copy of the graph: the rewrite, and
tuning, which finds in the timing cache what an earlier attempt measured.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from planish.errors import InputError
from planish.graph.duplicate import duplicate
from planish.graph.graph import Graph
from planish.plan.plan import Plan, PlanStep
from planish.quantization.budget import Kept, keep_within
from planish.quantization.policy import (
    Tensor,
    faster_as_integers,
    seconds_of_layers,
    seconds_of_plan,
)
from planish.quantization.scores import Scores
from planish.quantization.settle import Candidates
from planish.quantization.surely import keep_surely

log = logging.getLogger("planish")

NEAR = 1.15
"""Plans whose steps take so many times the least sum at most are timed as wholes: a whole takes 0.8
to 1.1 of its steps' sum on an H200; of DenseNet121's two plans one took 0.99 of it, the other 1.06.
"""


@dataclass(frozen=True)
class Attempt:
    """A plan, and whatever the builder wants to know about how it came about."""

    plan: Plan
    notes: Any = None


@dataclass(frozen=True)
class Outcome:
    """What was chosen.

    Attributes
    ----------
    attempt : Attempt
    layers : frozenset of str
        The quantized layers.
    kept : dict of str to str
        The others that could have been, with the reason.
    scores : dict of str to float
        The user's metric in "fp32", with all of it that is faster in "int8", and as "chosen".
    bought : tuple of Kept
        What the accuracy budget took.
    doubt : str
        What more samples might change of that; "" where it is not their number that keeps layers.
    """

    attempt: Attempt
    layers: frozenset[str]
    kept: dict[str, str] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    bought: tuple[Kept, ...] = ()
    doubt: str = ""


class Chooser:
    """Chooses among quantized forms of a network.

    Parameters
    ----------
    graph : Graph
        The optimised graph in which no layer is quantized yet; it is not changed.
    found : Candidates
    quantize : callable
        Quantizes these layers of a copy of the graph, in place.
    build : callable
        From a graph, which it may change, to an `Attempt`.
    guess : callable, optional
        The seconds of a step that was not measured.
    time : callable, optional
        The seconds of whole plans, measured in turns; None if they cannot be.
    """

    def __init__(
        self,
        graph: Graph,
        found: Candidates,
        quantize: Callable[[Graph, frozenset[str]], object],
        build: Callable[[Graph], Attempt],
        guess: Callable[[PlanStep], float] | None = None,
        time: Callable[[Sequence[Plan]], Sequence[float] | None] | None = None,
    ) -> None:
        self._graph, self._found, self._guess, self._time = graph, found, guess, time
        self._quantize, self._build = quantize, build
        self._attempts: dict[frozenset[str], Attempt] = {}
        self._losses: dict[str, float] = {}
        self._scores: dict[frozenset[str], Scores] = {}

    def by_time(self, tensors: Iterable[Tensor] = ()) -> Outcome:
        """The fastest plan by what was measured: layers, and then whole plans.

        A layer that was not measured both ways is quantized; so is everything where nothing was.

        Parameters
        ----------
        tensors : iterable of Tensor
            What has to be converted where one layer is quantized, and the next is not.
        """
        found = self._found
        everything = frozenset((*found.free, *found.forced))
        whole, plain = self._attempt(everything), self._attempt(frozenset(found.forced))
        integers = seconds_of_layers(whole.plan, everything)
        floats = seconds_of_layers(plain.plan, found.free)
        floats.update({name: integers[name] for name in found.forced if name in integers})
        common = floats.keys() & integers.keys()
        self._losses = {name: floats[name] - integers[name] for name in common}
        if not common:
            return Outcome(whole, everything)
        chosen = everything - common
        chosen |= faster_as_integers(
            {name: floats[name] for name in common},
            {name: integers[name] for name in common},
            tensors,
            found.forced,
        )
        ways = [frozenset(chosen)]
        if math.inf not in (self._seconds(everything), self._seconds(found.forced)):
            ways += [everything, frozenset(found.forced)]
        layers = self._fastest(ways)
        kept = {}
        for name in sorted(everything - layers):
            kept[name] = "the whole is faster in floats"
            if name in common - chosen:
                kept[name] = (
                    f"as fast or faster in floats ({floats[name] * 1e6:.0f} µs; "
                    f"int8 {integers[name] * 1e6:.0f} µs, conversions not counted)"
                )
        return Outcome(self._attempt(layers), layers, kept)

    def by_metric(
        self, outcome: Outcome, score: Callable[[Plan], Any], budget: float | None
    ) -> Outcome:
        """Scores an outcome against float32; with a budget keeps layers in float32 to stay in it.

        Parameters
        ----------
        outcome : Outcome
            What is fastest.
        score : callable
            The user's metric of a plan: a number, or a score for each sample.
        budget : float, optional
            How much less than in float32 it may be; None: only the scores are wanted.
        """
        exact, whole = self._score(score, frozenset()), self._score(score, outcome.layers)
        scores = {"fp32": float(exact), "int8": float(whole), "chosen": float(whole)}
        if budget is None:
            return Outcome(outcome.attempt, outcome.layers, outcome.kept, scores)
        free = [name for name in self._found.free if name in outcome.layers]
        order = sorted(free, key=lambda name: self._losses.get(name, 0.0))

        def score_without(kept: frozenset[str]) -> Scores:
            return self._score(score, outcome.layers - kept)

        if len(exact.samples) > 1:
            found = keep_surely(order, self._losses, score_without, exact, budget)
        else:
            found = keep_within(order, self._losses, score_without, exact - budget)
        layers = outcome.layers - {k.layer for k in found.kept}
        if found.score < exact - budget:
            log.warning(
                "accuracy_budget=%g is exceeded: the metric is %g in fp32, and %g with the layers "
                "quantized that layer_precision asks for",
                budget,
                exact,
                found.score,
            )
        if found.doubt:
            log.info("accuracy: %s", found.doubt)
        reasons = {k.layer: f"accuracy: worth {k.gain:g} of the metric" for k in found.kept}
        scores["chosen"] = float(found.score)
        kept = {**outcome.kept, **reasons}
        attempt = self._attempt(layers)
        return Outcome(attempt, layers, kept, scores, found.kept, found.doubt)

    def _fastest(self, ways: Iterable[frozenset[str]]) -> frozenset[str]:
        """The way whose plan is the fastest, by its steps; plans that are near to each other are
        timed.
        """
        seconds = {way: self._seconds(way) for way in ways}
        limit = NEAR * min(seconds.values())
        near = [way for way, its in seconds.items() if its <= limit]
        if self._time is not None and len(near) > 1:
            measured = self._time([self._attempt(way).plan for way in near])
            if measured is not None:
                seconds = dict(zip(near, measured, strict=True))
        return min(seconds, key=seconds.__getitem__)

    def _seconds(self, layers: Collection[str]) -> float:
        return seconds_of_plan(self._attempt(layers).plan, self._guess)

    def _attempt(self, layers: Collection[str]) -> Attempt:
        key = frozenset(layers)
        if key not in self._attempts:
            graph, _ = duplicate(self._graph)
            self._quantize(graph, key)
            self._attempts[key] = self._build(graph)
        return self._attempts[key]

    def _score(self, score: Callable[[Plan], Any], layers: frozenset[str]) -> Scores:
        """The metric with these layers quantized; a number is one sample's score."""
        if layers in self._scores:
            return self._scores[layers]
        value = score(self._attempt(layers).plan)
        try:
            samples = value.samples if isinstance(value, Scores) else np.asarray(value, np.float64)
        except (TypeError, ValueError):
            samples = np.empty(0)
        if samples.ndim > 1 or not samples.size or not np.isfinite(samples).all():
            raise InputError(
                "evaluate= gave no number",
                where="evaluate=",
                why=f"it gave {value!r}"[:200],
                cure="return a finite number, larger is better, or such a number for each sample",
            )
        found = Scores(np.atleast_1d(samples))
        for other in self._scores.values():
            if len(other.samples) != len(found.samples):
                raise InputError(
                    f"evaluate= gave {len(other.samples)} numbers, and then {len(found.samples)}",
                    where="evaluate=",
                    why="engines are compared sample by sample",
                    cure="score the same samples of every engine, in the same order",
                )
        self._scores[layers] = found
        return found
