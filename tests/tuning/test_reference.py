"""References are computed once, a few ahead of being wanted, and forgotten afterwards."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from helpers.networks import Net
from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.ops import ew
from planish.targets.base import Binding
from planish.tuning.reference import AHEAD, Reference, References


@pytest.fixture
def task() -> Task:
    net = Net()
    (task,) = propose(net.output(net.add(net.input(3, 5), net.input(3, 5, name="y"))))
    return task


def test_results_are_those_of_the_references(task: Task) -> None:
    reference = Reference(task, Binding({}))
    (result,) = reference.results()
    np.testing.assert_array_equal(result, np.add(*map(np.asarray, reference.arrays)))
    assert reference.results()[0] is result
    assert Reference(task, Binding({}), [result]).results()[0] is result


class Counted(Reference):
    """Takes a moment, and counts."""

    computed = 0
    at_once = threading.Lock()

    def _computed(self) -> list[np.ndarray]:
        time.sleep(0.002)
        with Counted.at_once:
            Counted.computed += 1
        return super()._computed()


@pytest.mark.parametrize("threads", [0, 3])
def test_each_is_computed_once_and_not_far_ahead(task: Task, threads: int) -> None:
    Counted.computed, made = 0, []

    def make(number: int) -> Reference:
        made.append(number)
        return Counted(task, Binding({}))

    count = 3 * AHEAD
    references = References([lambda n=n: make(n) for n in range(count)], threads)
    for number in range(count):
        reference = references.get(number)
        assert reference is references.get(number)
        assert reference.results()
        assert max(made) < number + AHEAD + 1
    references.close()
    assert Counted.computed == count
    assert sorted(made) == list(range(count))


def test_what_is_skipped_is_not_computed(task: Task) -> None:
    made: list[int] = []

    def make(number: int) -> Reference:
        made.append(number)
        return Reference(task, Binding({}))

    references = References([lambda n=n: make(n) for n in range(5 * AHEAD)])
    assert references.get(4 * AHEAD).results()
    references.close()
    assert not [n for n in made if AHEAD < n < 4 * AHEAD]


def test_an_error_is_raised_where_the_result_is_wanted(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: ew.Add, *values: np.ndarray) -> list[np.ndarray]:
        raise ArithmeticError("no")

    monkeypatch.setattr(ew.Add, "reference", broken)
    references = References([lambda: Reference(task, Binding({}))])
    with pytest.raises(ArithmeticError):
        references.get(0).results()
    references.close()
