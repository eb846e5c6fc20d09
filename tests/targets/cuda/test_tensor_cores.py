"""Which layers use tensor cores, by their machine code; and what is said of those that do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.simulated_gpu import SimulatedTarget
from planish.builder import build_graph
from planish.fusion.task import Task, make_task
from planish.graph.graph import Graph
from planish.graph.types import DType, TensorType
from planish.ops.base import Op
from planish.ops.conv import Conv
from planish.ops.elementwise import ew
from planish.ops.matmul import MatMul
from planish.ops.quantization import MatMulInteger
from planish.targets.base import Binding, Tactic
from planish.targets.cuda.tensor_cores import extents, why_not
from planish.tuning.ceilings import Ceilings

HALF = DType.FLOAT16


def product(*shapes: Sequence[int], op: Op | None = None, dtype: DType = HALF) -> Task:
    graph = Graph("g")
    values = [graph.input(f"x{i}", TensorType(tuple(s), dtype)) for i, s in enumerate(shapes)]
    graph.mark_output(graph.add(op or MatMul(), *values), "y")
    return make_task(graph.nodes, graph.nodes[0])


def conv(groups: int = 1) -> Conv:
    return Conv((1, 1), ((1, 1), (1, 1)), (1, 1), groups)


@dataclass(frozen=True)
class Chosen(Tactic):
    """Any tactic of a task."""

    def launches(self, binding: Binding) -> list:
        return []


def relu() -> Task:
    graph = Graph("g")
    x = graph.input("x", TensorType((4, 4), HALF))
    graph.mark_output(graph.add(ew.Relu(), x), "y")
    return make_task(graph.nodes)


@pytest.mark.parametrize(
    ("task", "permitted", "said"),
    [
        (relu(), {"fp32"}, "no product of matrices"),
        (product((64, 32), (32, 16), dtype=DType.FLOAT32), {"fp32"}, "TF32 is not permitted"),
        (product((64, 32), (32, 16), dtype=DType.FLOAT32), {"fp32", "tf32"}, "as fast as those"),
        (product((64, 32), (32, 16), dtype=DType.FLOAT64), {"fp32"}, "its factors are float64"),
        (
            product((64, 24), (24, 8), (), (), op=MatMulInteger(), dtype=DType.INT8),
            {"fp32"},
            "its depth of 24 is no multiple of 16",
        ),
        (product((1, 8, 8, 32), (3, 3, 1, 32), op=conv(32)), {"fp32"}, "depthwise"),
        (
            product((1, 8, 8, 32), (3, 3, 8, 32), op=conv(4)),
            {"fp32"},
            "4 groups: each is a product",
        ),
        (product((2, 32), (32, 16)), {"fp32"}, "2 rows are too few"),
        (product((64, 30), (30, 16)), {"fp32"}, "its depth of 30 is no multiple of 8"),
        (product((1, 8, 8, 32), (3, 3, 32, 30), op=conv()), {"fp32"}, "its columns of 30"),
        (product((64, 32), (32, 16)), {"fp32"}, "another kernel was faster"),
    ],
)
def test_reasons(task: Task, permitted: set[str], said: str) -> None:
    assert said in why_not(Chosen(task), Binding({}), permitted)


def test_extents() -> None:
    both = MatMul(transpose_a=True, transpose_b=True)
    assert extents(product((5, 7), (3, 5), op=both), Binding({})) == (7, 5, 3, 1)
    assert extents(product((4, 7, 5), (4, 5, 3)), Binding({})) == (7, 5, 3, 1)
    assert extents(product((4, 7, 5), (1, 5, 3)), Binding({})) == (28, 5, 3, 1)
    assert extents(product((2, 8, 8, 6), (3, 3, 3, 4), op=conv(2)), Binding({})) == (128, 3, 2, 2)


def test_layers_of_an_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Found in the machine code, also of products in FP32, which may be three in TF32."""
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path))
    graph = Graph("net")
    weights = np.ones((32, 32), np.float32)
    for name in ("half", "single"):
        x = graph.input(name, TensorType((64, 32), DType.FLOAT32))
        graph.mark_output(graph.add(MatMul(), x, graph.constant(weights), name=f"{name}/p"), name)
    engine = build_graph(
        graph,
        SimulatedTarget(),
        precision=frozenset({"fp16", "fp32"}),
        layer_precision={"single/*": "fp32"},
        tuning_seconds=0,
    )
    rows = {row["name"]: row for row in engine.layers() if row["op"] == "mat_mul"}
    half = next(row for row in rows.values() if row["precision"] == "fp16")
    single = next(row for row in rows.values() if row["precision"] == "fp32")
    assert half["tensor_cores"] is True
    assert half["why_no_tensor_cores"] == ""
    assert single["tensor_cores"] is ("passes=3" in single["tactic"])
    casts = [row for row in engine.layers() if row["op"] == "elementwise"]
    assert all(row["tensor_cores"] is False for row in casts)
    assert all(name.startswith("matrix_") for name in half["kernels"])
    assert half["flops"] == 2 * 64 * 32 * 32 + 64 * 32 * len(_nodes(engine, half["name"]))
    assert Ceilings({"fp16": 1.0, "fp32": 1.0}, 1.0).floor(2, 1, "fp16") == 2


def _nodes(engine, name: str) -> tuple:
    return next(s.task.nodes for s in engine.plan.steps if s.task.name == name)
