"""Which layers become integers: by time, conversions counted."""

from __future__ import annotations

import itertools
import math
from types import SimpleNamespace
from typing import Any

import numpy as np

from helpers.networks import Net
from planish.ops import Concat
from planish.quantization.policy import (
    Tensor,
    faster_as_integers,
    seconds_of_plan,
    tensors_between,
)


def total(chosen: set[str], floats, integers, tensors) -> float:
    seconds = sum(integers[n] if n in chosen else floats[n] for n in floats)
    for tensor in tensors:
        makers = tensor.makers or ("",)  # what comes from outside is floats
        for maker, reader in itertools.product(makers, tensor.readers):
            seconds += tensor.seconds * ((maker in chosen) != (reader in chosen))
    return seconds


def test_choice_is_the_best_of_all() -> None:
    rng = np.random.default_rng(0)
    names = "abcdef"
    for _ in range(40):
        floats = dict(zip(names, rng.uniform(1e-6, 9e-6, 6), strict=True))
        integers = dict(zip(names, rng.uniform(1e-6, 9e-6, 6), strict=True))
        tensors = [Tensor((), ("a",), 1e-6)]
        for maker, reader in itertools.pairwise(names):
            tensors.append(Tensor((maker,), (reader,), float(rng.uniform(0, 3e-6))))
        tensors.append(Tensor(("a", "c"), ("f",), 1e-6))
        chosen = faster_as_integers(floats, integers, tensors)
        best = min(
            total(set(some), floats, integers, tensors)
            for count in range(7)
            for some in itertools.combinations(names, count)
        )
        assert abs(total(chosen, floats, integers, tensors) - best) < 2e-8


def test_a_layer_alone_does_not_pay_for_conversions() -> None:
    floats, integers = {"a": 9e-6, "b": 5e-6, "c": 9e-6}, {"a": 10e-6, "b": 4e-6, "c": 10e-6}
    tensors = [Tensor(("a",), ("b",), 1e-6), Tensor(("b",), ("c",), 1e-6)]
    assert faster_as_integers(floats, integers, tensors) == set()
    assert faster_as_integers(floats, integers, []) == {"b"}


def test_forced_layers_stay_integers() -> None:
    floats, integers = {"a": 1e-6, "b": 1e-6}, {"a": 9e-6, "b": 2e-6}
    tensors = [Tensor(("a",), ("b",), 5e-6)]
    assert faster_as_integers(floats, integers, tensors) == set()
    assert faster_as_integers(floats, integers, tensors, ["a"]) == {"a", "b"}


def test_tensors_lead_through_what_is_between() -> None:
    n = Net()
    x = n.input(2, 8, 8, 4)
    a, b = n.conv(x, 4), n.conv(x, 8)
    joined = n.relu(n.graph.add(Concat(3), a, b))
    n.graph.mark_output(n.conv(joined, 4), "y")
    first, last = tensors_between(n.graph, {}, 10e9)
    names = [node.name for node in n.graph.nodes if node.op.name == "conv"]
    assert (first.makers, first.readers) == ((), (names[0], names[1]))
    assert (last.makers, last.readers) == (tuple(sorted(names[:2])), (names[2],))
    assert last.seconds == 2 * 8 * 8 * 12 * 5 / 10e9


def test_guesses_are_scaled_by_what_was_measured() -> None:
    """By steps with the same op, else by all: integers are not slow because guesses are."""

    def step(op: object, seconds: float | None) -> Any:
        task = SimpleNamespace(anchor=op and SimpleNamespace(op=op))
        return SimpleNamespace(choices=(SimpleNamespace(seconds=seconds),), task=task)

    measured = [step(1, 2.0), step(1, 4.0), step("text", 18.0), step(None, 1.0)]
    plan: Any = SimpleNamespace(steps=measured)
    assert seconds_of_plan(plan) == seconds_of_plan(plan, lambda step: 5.0) == 25.0
    for unknown, seconds in ((1, 3.0), ("text", 18.0), (None, 25 / 4), (2.0, 25 / 4)):
        plan = SimpleNamespace(steps=[*measured, step(unknown, None)])
        assert seconds_of_plan(plan, lambda step: 5.0) == 25.0 + seconds
        assert seconds_of_plan(plan) == math.inf
    assert seconds_of_plan(SimpleNamespace(steps=[step(1, None)]), lambda step: 5.0) == 5.0  # type: ignore[arg-type]
