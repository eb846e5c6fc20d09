"""`planish.build` in INT8: from calibration data to an engine, and what steers it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import planish
from helpers.engines import quick_engine
from helpers.halves import HalfCpu
from helpers.networks import N, Net
from helpers.onnx_graph import model, node
from planish.builder import build_graph
from planish.errors import CalibrationError, InputError, PrecisionError
from planish.graph.graph import Graph
from planish.quantization import Ranges
from planish.targets.cpu.target import cpu


def net() -> Graph:
    n = Net()
    a = n.relu(n.bias(n.conv(n.input(N, 8, 8, 3), 16, 3)))
    b = n.relu(n.bias(n.conv(a, 16, 3, groups=16)))
    c = n.add(n.conv(b, 16), a)
    n.graph.mark_output(n.relu(n.conv(c, 24)), "y")
    return n.graph


X = np.random.default_rng(0).standard_normal((6, 8, 8, 3)).astype(np.float32)


@pytest.fixture
def built(tmp_path: Path) -> Callable[..., planish.Engine]:
    """Builds in INT8 without measuring, and without what other builds have measured."""
    given = {
        "precision": frozenset({"fp32", "int8"}),
        "calibration": X,
        "tuning_seconds": 0,
        "timing_cache": tmp_path / "timing.sqlite",
    }
    return lambda **options: build_graph(net(), cpu(), **{**given, **options})


def reference() -> np.ndarray:
    return np.asarray(build_graph(net(), cpu(), tuning_seconds=0)(X))


def test_layers_compute_in_integers(built) -> None:
    engine = built()
    assert len(engine.report.quantized) == 4
    assert engine.precision == "int8"
    assert [row["precision"] for row in engine.layers()].count("int8") == 4
    exact, have = reference(), engine(X)
    assert 0 < np.square(exact - have).sum() < 10**-2.5 * np.square(exact).sum()


def test_engines_are_saved_and_loaded(built, tmp_path: Path) -> None:
    engine = built()
    engine.save(tmp_path / "net.plan")
    again = planish.load(tmp_path / "net.plan")
    np.testing.assert_array_equal(again(X), engine(X))
    assert again.precision == "int8"


def test_any_batch(built) -> None:
    engine = built()
    rows = [engine(X[i : i + 1]) for i in range(len(X))]
    np.testing.assert_array_equal(np.concatenate(rows), engine(X))


def test_layer_precision_is_obeyed(built) -> None:
    names = built().report.quantized
    engine = built(layer_precision={names[0]: "fp32", names[1]: "int8"}, strict_types=True)
    assert engine.report.quantized == names[1:]
    assert engine.report.not_quantized[names[0]] == "layer_precision says so"
    assert engine.report.kept_in_fp32 == engine.report.not_quantized


def test_layers_in_halves_are_not_in_fp32(built) -> None:
    first, second, *others = built().report.quantized
    report = build_graph(
        net(),
        HalfCpu(),
        precision=frozenset({"fp32", "fp16", "int8"}),
        layer_precision={first: "fp16", second: "fp32"},
        calibration=X,
        tuning_seconds=0,
    ).report
    assert report.quantized == others
    assert report.not_quantized == dict.fromkeys([first, second], "layer_precision says so")
    assert second in report.kept_in_fp32 and first not in report.kept_in_fp32
    assert report.kept_in_fp32.keys() <= {n.name for n in net().nodes}


def test_what_cannot_be_quantized_is_refused(built) -> None:
    graph = net()
    name = next(n.name for n in graph.nodes if n.op.name == "relu")
    with pytest.raises(PrecisionError, match="cannot compute in int8"):
        built(layer_precision={name: "int8"}, strict_types=True)
    assert built(layer_precision={name: "int8"}).report.quantized


def test_no_ranges_no_integers(built) -> None:
    with pytest.raises(CalibrationError, match="Could not find scales"):
        built(calibration=None)
    with pytest.raises(CalibrationError, match="another network"):
        built(calibration=Ranges({"x": (-1.0, 1.0)}))


def test_scores_are_reported(built) -> None:
    exact = reference()

    def negative_error(engine: planish.Engine) -> float:
        return -float(np.abs(engine(X) - exact).max())

    report = built(evaluate=negative_error).report
    assert report.accuracy["fp32"] == 0
    assert report.accuracy["int8"] == report.accuracy["chosen"] < 0
    assert not report.bought


def test_budget_keeps_the_harmful_layer(built) -> None:
    names = built().report.quantized

    def metric(engine: planish.Engine) -> float:
        integers = {n.name for n in engine.plan.graph.nodes if n.op.name == "conv_integer"}
        return 90.0 - 1.5 * (names[2] in integers)

    engine = built(evaluate=metric, accuracy_budget=0.2)
    assert engine.report.quantized == [n for n in names if n != names[2]]
    (kept,) = engine.report.bought
    assert (kept.layer, kept.gain) == (names[2], 1.5)
    assert engine.report.accuracy == {"fp32": 90.0, "int8": 88.5, "chosen": 90.0}
    assert "worth 1.5" in engine.report.not_quantized[names[2]]


def test_a_budget_is_kept_by_what_samples_can_tell(built) -> None:
    """A sample more and a sample less by the third layer: no loss, and no proof of none."""
    names = built().report.quantized
    few = np.array([0.0, 100.0] * 50)

    def metric(engine: planish.Engine) -> np.ndarray:
        integers = {n.name for n in engine.plan.graph.nodes if n.op.name == "conv_integer"}
        changed = few.copy()
        changed[:2] = (100.0, 0.0) if names[2] in integers else (0.0, 100.0)
        return changed

    report = built(evaluate=metric, accuracy_budget=1.0).report
    assert report.accuracy == {"fp32": 50.0, "int8": 50.0, "chosen": 50.0}
    assert names[2] in [kept.layer for kept in report.bought]
    assert names[2] not in report.quantized
    assert "100 samples are too few" in report.doubt
    assert "about 200 might" in report.doubt

    report = built(evaluate=lambda engine: float(metric(engine).mean()), accuracy_budget=1.0).report
    assert report.quantized == names and not report.bought and not report.doubt


@pytest.mark.parametrize("answer", [None, "good", float("nan"), [], [1.0, np.inf], [[1.0]]])
def test_metrics_that_are_no_number(built, answer: object) -> None:
    with pytest.raises(InputError, match="gave no number"):
        built(evaluate=lambda engine: answer)


def dense() -> onnx.ModelProto:
    w = np.random.default_rng(0).standard_normal((6, 8)).astype(np.float32)
    nodes = [node("MatMul", "x w", "h", "dense"), node("Relu", "h", "y", "relu")]
    return model(nodes, {"x": (np.float32, ["N", 6])}, ["y"], {"w": w})


@pytest.mark.usefixtures("without_bf16")
def test_best_needs_no_calibration() -> None:
    for best in ("best", {"best", "fp32"}):
        assert quick_engine(dense(), precision=best).precision == "fp32"
    x = np.random.default_rng(1).standard_normal((40, 6)).astype(np.float32)
    engine = quick_engine(dense(), precision="best", calibration=x)
    assert engine.report.quantized == ["dense"]
    exact = quick_engine(dense())(x)
    assert np.abs(engine(x) - exact).max() < 0.05 * exact.max()


@pytest.mark.parametrize("name", ["calibration", "evaluate"])
def test_arguments_of_int8_without_it(name: str) -> None:
    with pytest.raises(PrecisionError, match=f"{name}= has no effect"):
        quick_engine(dense(), **{name: len})


@pytest.mark.parametrize("budget", [-1, "0.2"])
def test_budgets_that_are_none(budget: object) -> None:
    with pytest.raises(InputError, match="must be a number from 0 on"):
        quick_engine(dense(), precision="int8", calibration=X, evaluate=len, accuracy_budget=budget)
