"""The rows that say of each layer what runs, how fast, and how near that is to the machine."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers.networks import N, Net, build
from planish.fusion.task import make_task
from planish.graph.graph import Graph
from planish.graph.types import DType, TensorType
from planish.ops.indexing import Gather
from planish.plan.load import load
from planish.profile import tuning_points
from planish.runtime.engine import Engine
from planish.runtime.layers import moved_bytes, rate, totals
from planish.targets.base import Binding
from planish.targets.cpu.target import CpuTarget
from planish.tuning import ceilings as module
from planish.tuning.ceilings import Ceilings


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path))
    monkeypatch.setattr(CpuTarget, "ceiling_sizes", (128, 1 << 18))
    monkeypatch.setattr(module, "SECONDS", 0.005)
    net = Net()
    return build(net.output(net.relu(net.dense(net.input(N, 24), 48))))


def test_work_at_the_usual_sizes(engine: Engine) -> None:
    (row,) = engine.layers()
    batch = tuning_points(engine.plan.graph)[0]["N"]
    assert row["flops"] == 2 * batch * 24 * 48 + 2 * batch * 48  # product; two nodes
    assert row["bytes"] == 4 * (batch * 24 + 24 * 48 + batch * 48)
    assert row["kernels"]
    assert row["tensor_cores"] is None  # of the CPU
    assert row["why_no_tensor_cores"] == ""


def test_ceilings_are_measured_where_that_is_wanted(engine: Engine) -> None:
    (row,) = engine.layers()
    assert row["of_ceiling"] is None
    (row,) = engine.layers(ceilings=True)
    if row["microseconds"]:
        assert row["gigaflops_per_second"] == pytest.approx(
            row["flops"] / row["microseconds"] / 1e3
        )
        assert row["of_ceiling"] > 0
        assert row["bound"] in ("memory", "arithmetic")
    assert engine.layers() == engine.layers(ceilings=True)  # now they are known


def test_times_of_another_machine_are_not_rated(engine: Engine) -> None:
    engine.plan.about["machine"] = "another one"
    assert engine.ceilings() is None
    assert load(engine.serialize()).layers(ceilings=True)[0]["of_ceiling"] is None


def row(**more) -> dict:
    made = {"microseconds": 100.0, "flops": 1e8, "bytes": 1e6, "precision": "fp16"}
    return made | {"tensor_cores": True} | more


def test_rates() -> None:
    limits = Ceilings({"fp32": 1e12, "fp16": 1e13}, 1e11)
    found = row()
    rate(found, limits)
    assert found["gigaflops_per_second"] == pytest.approx(1000)
    assert found["gigabytes_per_second"] == pytest.approx(10)
    assert (found["of_ceiling"], found["bound"]) == (pytest.approx(0.1), "memory")
    slow = row(tensor_cores=False)  # the ceiling of other units
    rate(slow, limits)
    assert (slow["of_ceiling"], slow["bound"]) == (pytest.approx(1.0), "arithmetic")
    unknown = row(microseconds=None)
    rate(unknown, limits)
    assert unknown["of_ceiling"] is unknown["gigaflops_per_second"] is None
    assert totals([found, slow, unknown]) == {"microseconds": 200.0, "flops": 2e8, "bytes": 2e6}


def test_of_a_table_only_what_is_picked_is_moved() -> None:
    graph = Graph("g")
    table = graph.constant(np.zeros((1000, 16), np.float32))
    indices = graph.input("i", TensorType((8,), DType.INT64))
    y = graph.add(Gather(0), table, indices)
    graph.mark_output(y, "y")
    task = make_task(graph.nodes, graph.nodes[0])
    assert moved_bytes(task, Binding({})) == 2 * 8 * 16 * 4 + 8 * 8
