"""Plans that hold ONNX operators without a kernel: stored, and loaded without any frontend."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import planish
from helpers.networks import N, Net, build
from helpers.plan_bytes import join, split
from planish.errors import PlanError, UnsupportedOpError
from planish.graph.graph import Graph
from planish.ops import OnnxFallback
from planish.plan.load import load

helper = pytest.importorskip("onnx.helper", reason="the package onnx is not installed")

RNG = np.random.default_rng(7)
DETERMINANT = OnnxFallback(
    "Det", "", 11, helper.make_node("Det", ["%0"], ["=0"]).SerializeToString()
)


def determinants() -> Graph:
    net = Net()
    x = net.input(N, 3, 3, name="x")
    return net.output(net.graph.add(DETERMINANT, net.relu(x), name="det"))


def conditional() -> Graph:
    """``b if any else a + b``: the subgraphs use tensors around them."""
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node(op, ["b", *more], [f"{name}_y"])],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}_y", 1, None)],
        )
        for name, op, more in (("then", "Identity", []), ("else", "Add", ["a"]))
    }
    node = helper.make_node("If", ["%0"], ["=0"], **branches)
    net = Net()
    a, b = net.input(2, 3, name="a"), net.input(2, 3, name="b")
    flag = net.graph.input(
        "flag", planish.graph.types.TensorType((), planish.graph.types.DType.BOOL)
    )
    op = OnnxFallback("If", "", 16, node.SerializeToString(), ("b", "a"))
    return net.output(net.graph.add(op, flag, b, a, name="choice"))


def run_elsewhere(plan: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs code with `engine` loaded from the plan, in a process that imported nothing else."""
    source = Path(planish.__file__).parents[1]
    start = f"import sys, numpy as np, planish\nengine = planish.load({str(plan)!r})\n"
    return subprocess.run(
        [sys.executable, "-c", start + code],
        env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_fresh_process_runs_a_plan_with_a_fallback(tmp_path: Path) -> None:
    engine = build(determinants())
    assert engine.host_steps()
    engine.save(tmp_path / "m.plan")
    x = RNG.standard_normal((4, 3, 3)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    code = f"""
np.save({str(tmp_path / "y.npy")!r}, engine(np.load({str(tmp_path / "x.npy")!r})))
print([m for m in sys.modules if m.startswith("planish.frontends")])
"""
    result = run_elsewhere(tmp_path / "m.plan", code)
    assert result.stdout.strip() == "[]", result.stderr
    want = np.linalg.det(np.maximum(x, 0).astype(np.float64))
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("flag", [True, False])
def test_subgraphs_keep_what_they_take_from_around_them(flag: bool) -> None:
    engine = load(build(conditional()).serialize())
    a, b = RNG.standard_normal((2, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(engine(a=a, b=b, flag=np.array(flag)), b if flag else a + b)


def test_a_plan_that_needs_onnx_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = build(determinants()).serialize()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(PlanError, match="Det is run by ONNX's reference") as caught:
        load(data)
    assert caught.value.cure == "install it: pip install onnx"


def test_damaged_nodes_are_refused() -> None:
    header, weights = split(build(determinants()).serialize())
    (item,) = (n for n in header["graph"]["nodes"] if n["op"] == "onnx_fallback")
    for stored in ({"bytes": "////"}, {"bytes": "?"}, {"bytes": 3}, "text", {"bytes": "", "x": 1}):
        item["attributes"]["node"] = stored
        with pytest.raises(PlanError):
            load(join(header, weights))


def test_an_operator_that_onnx_does_not_know() -> None:
    with pytest.raises(UnsupportedOpError, match="cannot be converted, nor run"):
        replace(DETERMINANT, op_type="Nothing", node=b"\x22\x07Nothing").reference(np.eye(3))


def test_a_length_that_only_a_damaged_file_has() -> None:
    """ONNX's inference would need 100 GB for it; found by fuzzing."""
    INT64 = planish.graph.types.DType.INT64
    node = helper.make_node("Slice", ["%0", "%1", "%2"], ["=0"]).SerializeToString()
    net = Net()
    x = net.input(20, 10, 5)
    starts = net.graph.input("starts", planish.graph.types.TensorType((3,), INT64))
    ends = net.graph.input("ends", planish.graph.types.TensorType((2**31 - 1,), INT64))
    with pytest.raises(UnsupportedOpError, match="Slice"):
        net.graph.add(OnnxFallback("Slice", "", 17, node), x, starts, ends)
