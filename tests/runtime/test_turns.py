from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.networks import N, Net, build
from planish.errors import DeviceError
from planish.graph.dims import DimLike
from planish.graph.graph import DimRange
from planish.ops import Gather, NonZero, Slice
from planish.plan.plan import Plan
from planish.runtime import turns
from planish.runtime.turns import remembered_seconds, seconds_in_turns
from planish.targets.cpu.target import CpuExecutable, CpuTarget, cpu
from planish.tuning.cache import TimingCache


def dense(layers: int = 1, batch: DimLike = 16, usual: int = 1) -> Plan:
    """Layers of [batch, 64]."""
    net = Net()
    x = net.input(batch, 64)
    if not isinstance(batch, int):
        net.graph.ranges["N"] = DimRange(1, usual, 4096)
    for _ in range(layers):
        x = net.relu(net.dense(x, 64))
    return build(net.output(x)).plan


def test_more_layers_take_longer() -> None:
    plans = [dense(1), dense(40), dense(1)]
    short, long, again = seconds_in_turns(plans, cpu(), 1) or (0.0, 0.0, 0.0)
    assert 0 < 3 * short < long
    assert 3 * again < long


def test_usual_sizes_are_run() -> None:
    few, many = (seconds_in_turns([dense(4, N, n)], cpu(), 1) or [0.0] for n in (1, 1024))
    assert 0 < 3 * few[0] < many[0]


@pytest.mark.parametrize(
    ("seconds", "runs"),
    [(1.0, [2, 1, 1]), (0.1, [2, 1, 1, 1, 1, 1, 1]), (0.006, [2, *[5] * 6]), (0, [2, *[200] * 6])],
)
def test_slow_plans_have_few_runs(
    seconds: float, runs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def measure(self, arena, inputs, outputs, threads, count, touched=()):
        seen.append(count)
        return np.full(count, seconds)

    monkeypatch.setattr(CpuExecutable, "measure", measure)
    assert seconds_in_turns([dense(), dense()], cpu(), 1) == [seconds] * 2
    assert seen[::2] == seen[1::2] == runs


def test_what_cannot_be_timed() -> None:
    """Sizes that depend on the data, and tensors of no elements."""
    net = Net()
    node = net.graph.add_node(NonZero(), [net.input(40)])
    count = net.graph.measure(node.outputs[1], 40, "n")
    found = net.graph.add(Slice((0,), (count,), (1,)), net.reshape(node.outputs[0], 40))
    net.output(net.dense(net.graph.add(Gather(), net.input(40, 6, name="table"), found), 9))
    staged = build(net.graph).plan
    for plan in (dense(batch=0), staged):
        assert seconds_in_turns([plan, plan], cpu(), 1) is None


def test_without_memory_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dense()

    def full(self: CpuTarget, *_: object) -> None:
        raise DeviceError("Too little memory", where="here", why="none is free", cure="free some")

    monkeypatch.setattr(CpuTarget, "tensor", full)
    with pytest.raises(DeviceError):
        seconds_in_turns([plan], cpu(), 1)


def test_plans_that_were_compared_are_not_run_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    plans = [dense(1), dense(2), dense(3)]
    runs = iter([[3.0, 2.0], [5.0, 4.0, 6.0], [1.0, 2.0], None])
    monkeypatch.setattr(turns, "seconds_in_turns", lambda *_: next(runs))

    def compared(*which: int) -> list[float] | None:
        cache = TimingCache(tmp_path / "timing.sqlite")
        return remembered_seconds([plans[i] for i in which], cpu(), 1, cache)

    for _ in range(2):
        assert compared(0, 1) == [3, 2]
    for _ in range(2):  # with others the same plan has another time
        assert compared(0, 1, 2) == [5, 4, 6]
    assert compared(1, 0) == [1, 2]
    assert compared(1, 2) is None
