"""Which layers a plan quantizes, by made-up times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from helpers.networks import Net
from planish.graph.graph import Graph
from planish.quantization.choose import Attempt, Chooser, Outcome
from planish.quantization.policy import Tensor, seconds_of_plan
from planish.quantization.settle import Candidates

NAMES = ("a", "b", "c", "d")


class Machine:
    """Plans of a chain of layers, which take made-up times.

    Between a layer in integers and one in floats a conversion takes time, too; `drift` is what a
    layer takes more where its neighbours are of the other kind, which no layer's own time shows.
    """

    def __init__(
        self,
        floats: Mapping[str, float],
        integers: Mapping[str, float],
        drift: float = 0.0,
    ) -> None:
        self._floats, self._integers, self._drift = floats, integers, drift
        self.attempts: list[frozenset[str]] = []
        self._layers: dict[int, frozenset[str]] = {}

    def quantize(self, graph: Graph, layers: frozenset[str]) -> None:
        self._layers[id(graph)] = layers

    def build(self, graph: Graph) -> Attempt:
        layers = self._layers.pop(id(graph))
        self.attempts.append(layers)
        return Attempt(self.plan(layers))

    def plan(self, layers: frozenset[str]) -> Any:
        steps = [self._step(n, (self._integers if n in layers else self._floats)[n]) for n in NAMES]
        changes = sum((a in layers) != (b in layers) for a, b in pairwise(NAMES))
        return SimpleNamespace(steps=[*steps, self._step("conversions", changes * self._drift)])

    @staticmethod
    def _step(name: str, seconds: float) -> Any:
        return SimpleNamespace(
            choices=(SimpleNamespace(seconds=seconds),),
            task=SimpleNamespace(nodes=(SimpleNamespace(name=name),), anchor=None),
        )


def choose(
    machine: Machine,
    forced: tuple[str, ...] = (),
    tensors: Any = (),
    guess: Callable[[Any], float] | None = None,
    time: Callable[[Sequence[Any]], Sequence[float] | None] | None = None,
) -> Outcome:
    net = Net()
    graph = net.output(net.relu(net.input(2, 3)))
    found = Candidates(tuple(n for n in NAMES if n not in forced), forced, {})
    return Chooser(graph, found, machine.quantize, machine.build, guess, time).by_time(tensors)


def test_integers_are_never_chosen_where_slower() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        floats, integers = (
            dict(zip(NAMES, rng.uniform(1, 9, 4) * 1e-6, strict=True)) for _ in range(2)
        )
        machine = Machine(floats, integers)
        outcome = choose(machine)
        assert outcome.layers == {n for n in NAMES if integers[n] < floats[n]}
        assert set(outcome.kept) == set(NAMES) - outcome.layers
        assert outcome.attempt.plan == machine.plan(outcome.layers)


@pytest.mark.parametrize("best", ["floats", "integers"])
def test_whole_plans_decide_in_the_end(best: str) -> None:
    """The layers one by one speak for a mixture, which conversions make slower than either."""
    slow, fast = dict.fromkeys(NAMES, 5e-6), dict.fromkeys(NAMES, 4e-6)
    one, other = {**slow, "b": 3e-6}, {**fast, "b": 3.5e-6}
    floats, integers = (one, other) if best == "integers" else (other, one)
    machine = Machine(floats, integers, drift=1e-5)
    outcome = choose(machine)
    assert outcome.layers == (frozenset(NAMES) if best == "integers" else frozenset())
    assert len(machine.attempts) == 3
    times = [seconds_of_plan(machine.plan(layers)) for layers in machine.attempts]
    assert seconds_of_plan(outcome.attempt.plan) == min(times)


def test_conversions_count() -> None:
    floats, integers = dict.fromkeys(NAMES, 5e-6), {**dict.fromkeys(NAMES, 6e-6), "b": 4e-6}
    tensors = [Tensor((a,), (b,), 1e-6) for a, b in pairwise(NAMES)]
    assert choose(Machine(floats, integers)).layers == {"b"}
    assert choose(Machine(floats, integers), tensors=tensors).layers == frozenset()


def test_what_is_forced_is_quantized_however_slow() -> None:
    floats, integers = dict.fromkeys(NAMES, 1e-6), dict.fromkeys(NAMES, 9e-6)
    outcome = choose(Machine(floats, integers), forced=("c",))
    assert outcome.layers == {"c"}
    assert "floats (1 µs; int8 9 µs" in outcome.kept["a"]


def test_a_layer_that_was_not_measured_is_quantized_and_others_are_chosen() -> None:
    floats, integers = dict.fromkeys(NAMES, 3e-6), {**dict.fromkeys(NAMES, 4e-6), "a": 2e-6}
    for unknown in (floats, integers):
        known = unknown["c"]
        unknown["c"] = None  # type: ignore[assignment]
        assert choose(Machine(floats, integers)).layers == {"a", "c"}
        unknown["c"] = known


def test_without_measurements_everything_is_quantized() -> None:
    unknown = dict.fromkeys(NAMES, None)
    outcome = choose(Machine(unknown, unknown))  # type: ignore[arg-type]
    assert outcome.layers == set(NAMES) and not outcome.kept


def test_what_was_not_measured_may_be_kept_with_the_whole() -> None:
    """Guessed, it makes a network of integers the slower one."""
    floats, integers = dict.fromkeys(NAMES, 1e-6), {**dict.fromkeys(NAMES, 9e-6), "c": None}
    machine = Machine(floats, integers, drift=1e-6)  # type: ignore[arg-type]
    outcome = choose(machine, guess=lambda step: 1e-6)
    assert outcome.layers == frozenset()
    assert set(outcome.kept) == set(NAMES)
    assert "int8 9 µs" in outcome.kept["a"]
    assert outcome.kept["c"] == "the whole is faster in floats"


WAYS = (frozenset("b"), frozenset(NAMES), frozenset())
"""What a choice of one layer of four is compared with."""


@pytest.mark.parametrize("best", WAYS, ids=len)
def test_plans_that_are_near_are_timed(best: frozenset[str]) -> None:
    """Whole plans may take something else than their steps in all."""
    floats, integers = dict.fromkeys(NAMES, 5e-6), {**dict.fromkeys(NAMES, 5.1e-6), "b": 4.9e-6}
    machine = Machine(floats, integers)
    plans = [machine.plan(layers) for layers in WAYS]

    def time(timed: Sequence[Any]) -> list[float]:
        assert timed == plans
        return [1.0 if plan == machine.plan(best) else 2.0 for plan in timed]

    outcome = choose(machine, time=time)
    assert outcome.layers == best
    assert set(outcome.kept) == set(NAMES) - best
    slower = {name for name, why in outcome.kept.items() if why.startswith("as fast or faster")}
    assert slower == outcome.kept.keys() - {"b"}
    assert outcome.kept.get("b", "the whole is faster in floats") == "the whole is faster in floats"


def test_plans_that_cannot_be_timed_are_chosen_by_their_steps() -> None:
    floats, integers = dict.fromkeys(NAMES, 5e-6), {**dict.fromkeys(NAMES, 5.1e-6), "b": 4.9e-6}
    assert choose(Machine(floats, integers), time=lambda plans: None).layers == {"b"}


def test_plans_far_from_the_fastest_are_not_timed() -> None:
    floats, integers = dict.fromkeys(NAMES, 5e-6), {**dict.fromkeys(NAMES, 9e-6), "b": 1e-6}
    machine = Machine(floats, integers)
    assert choose(machine, time=lambda plans: pytest.fail("timed")).layers == {"b"}
