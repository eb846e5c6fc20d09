from __future__ import annotations

from typing import ClassVar, cast

from helpers.host_tactics import HostTactic
from helpers.networks import Net
from planish.fusion.candidates import propose
from planish.plan.views import place
from planish.targets.base import Binding
from planish.tuning.entry import FAR, Entry


class OtherTactic(HostTactic):
    family: ClassVar[str] = "other"


def entry(families: str) -> Entry:
    """One whose tactics are of these families, "h" for "host" and "o" for "other"."""
    net = Net()
    graph = net.output(net.relu(net.input(4, 5)))
    task = propose(graph, place(graph).free)[0]
    kinds = {"h": HostTactic, "o": OtherTactic}
    tactics = [kinds[name](task, delay=float(i)) for i, name in enumerate(families)]
    binding = cast(Binding, None)  # nothing is measured here
    return Entry(task, binding, "key", list(tactics), frozenset({"fp32"}), 1e-6)


def test_tactics_are_measured_in_the_order_in_which_they_are_offered() -> None:
    found = entry("hoho")
    assert found.unknown() == [0, 1, 2, 3]
    found.times[1] = 1.0
    found.rejected.add(2)
    assert found.unknown() == [0, 3]


def test_families_far_from_the_best_one_come_last() -> None:
    found = entry("hohoho")
    found.times = {0: 1.01 * FAR, 1: 1.0}
    assert found.unknown() == [3, 5, 2, 4]
    found.times[2] = 0.99 * FAR  # one that is near is enough
    assert found.unknown() == [3, 4, 5]


def test_a_family_of_which_nothing_is_known_is_not_far() -> None:
    found = entry("hhoo")
    found.times[0] = 1.0
    assert found.unknown() == [1, 2, 3]


def test_the_first_of_each_family() -> None:
    found = entry("hhoo")
    assert found.firsts() == [0, 2]
    found.times[0] = 1.0
    assert found.firsts() == [2]
    found.rejected.add(2)
    assert found.firsts() == []
