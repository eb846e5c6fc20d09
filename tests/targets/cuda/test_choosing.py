"""Which tasks an engine for a GPU runs where nothing was measured."""

from __future__ import annotations

import pytest

from helpers.interpreted_target import InterpretedTarget
from helpers.pairs import PairNet
from planish.builder import build_graph
from planish.targets.cuda.target import CudaTarget


@pytest.mark.parametrize("shape", [(1, 14, 14, 384), (128, 56, 56, 144)])
def test_pairs_are_taken_only_where_they_were_measured(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On an H200, MobileNetV2 took three times as long with pairs that were guessed to be fast."""
    monkeypatch.setattr(InterpretedTarget, "rates", CudaTarget.rates)
    net = PairNet(shape, 16)
    net.graph.mark_output(net.result, "y")
    with build_graph(net.graph, InterpretedTarget(), tuning_seconds=0) as engine:
        steps = engine.plan.steps
    assert [len(step.task.nodes) for step in steps] == [3, 2]
    assert not any(step.task.pair for step in steps)
