from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import planish
from helpers.attentions import Form, attention
from helpers.networks import N, Net, build, feeds, residual_net
from helpers.pairs import PointwiseNet
from helpers.plan_bytes import join, split
from planish.errors import DeviceError, InputError, PlanError, PlanishError, PrecisionError
from planish.fusion.candidates import propose
from planish.graph.graph import Graph
from planish.graph.interpret import interpret
from planish.graph.types import DType
from planish.plan.file import deserialize
from planish.plan.load import load, restore
from planish.plan.plan import Plan, PlanStep
from planish.runtime.engine import Engine
from planish.targets.cpu.target import cpu


@pytest.fixture(scope="module")
def engine() -> Engine:
    return build(residual_net())


@pytest.fixture(scope="module")
def data(engine: Engine) -> bytes:
    return engine.serialize()


@pytest.fixture
def changed(data: bytes) -> Callable[[Callable[[dict], object]], bytes]:
    """The plan with its header changed."""

    def change(edit: Callable[[dict], object]) -> bytes:
        header, weights = split(data)
        edit(header)
        return join(header, weights)

    return change


class TestLoading:
    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, str, Path])
    def test_results_are_those_of_the_built_engine(
        self, engine: Engine, data: bytes, tmp_path: Path, kind: type
    ) -> None:
        source: object = kind(data) if kind not in (str, Path) else kind(tmp_path / "m.plan")
        if kind in (str, Path):
            engine.save(source)
        loaded = load(source)  # type: ignore[arg-type]
        for size in (1, 3, 8):
            given = feeds(engine.plan.graph, size)
            np.testing.assert_array_equal(loaded(given), engine(given))
        assert loaded.serialize() == data
        assert loaded.layers() == engine.layers()
        assert (loaded.inputs, loaded.outputs) == (engine.inputs, engine.outputs)
        assert loaded.precision == "fp32"

    def test_is_the_public_function(self) -> None:
        assert planish.load is load

    def test_weights_of_a_file_are_not_copied(self, engine: Engine, tmp_path: Path) -> None:
        engine.save(tmp_path / "m.plan")
        graph = deserialize(tmp_path / "m.plan").graph
        for value in graph.constants():
            assert value.data is not None
            assert not value.data.flags.owndata
            assert value.data.ctypes.data % 64 == 0

    def test_file_may_be_removed_and_replaced(self, engine: Engine, tmp_path: Path) -> None:
        path = tmp_path / "m.plan"
        engine.save(path)
        loaded = load(path)
        build(residual_net(seed=3)).save(path)
        path.unlink()
        given = feeds(engine.plan.graph)
        np.testing.assert_array_equal(loaded(given), engine(given))

    def test_views_and_free_nodes(self) -> None:
        net = Net()
        x = net.input(N, 4, 4, 3)
        a, b = net.relu(net.conv(x, 4)), net.conv(x, 8)
        graph = net.output(net.reshape(net.concat(a, b), N, 192), net.slice(b, 3, 2, 3))
        before = copy.deepcopy(graph)
        loaded = load(build(graph).serialize())
        given = feeds(before, 3)
        results = loaded(given)
        for have, want in zip(results.values(), interpret(before, given), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("kept", [False, True])
    def test_pairs(self, kept: bool) -> None:
        """By the references: no family of the CPU has kernels for them."""
        graph = PointwiseNet((N, 4, 4, 8), 16, 8, dtype=DType.FLOAT32, kept=kept).done()
        before = copy.deepcopy(graph)
        tasks = propose(graph)
        pair = max(tasks, key=lambda t: len(t.nodes))
        assert pair.pattern == "pair"
        rest = [t for t in tasks if len(t.nodes) == 1 and t.nodes[0] not in pair.nodes]
        built = Engine(Plan(graph, tuple(PlanStep(t, ()) for t in (pair, *rest))), cpu())
        given = feeds(before, 3)
        loaded = load(built.serialize())
        assert loaded.layers()[0]["op"] == "pair"
        results = loaded(given)
        have = list(results.values()) if kept else [results]
        for a, b in zip(have, interpret(before, given), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)

    def test_attention(self) -> None:
        graph = attention(Form(merged=True, mask="keys"), batch=N, queries=12, keys=12)
        before = copy.deepcopy(graph)
        built = build(graph)
        assert [row["op"] for row in built.layers()] == ["attention"]
        data = built.serialize()
        loaded = load(data)
        assert loaded.layers() == built.layers()
        assert loaded.serialize() == data
        given = feeds(before, 3)
        (want,) = interpret(before, given)
        np.testing.assert_allclose(loaded(given), want, rtol=1e-4, atol=1e-5)

    def test_imports_neither_passes_nor_frontends_nor_tuning(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        engine.save(tmp_path / "m.plan")
        code = """
import sys
import planish
planish.load(sys.argv[1])
print([m for m in sys.modules if m.startswith((
    "planish.passes", "planish.frontends", "planish.tuning", "planish.builder", "tensorflow",
    "onnx", "highspy", "torch", "sqlite3"))])
"""
        source = Path(planish.__file__).parents[1]
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "m.plan")],
            env={**os.environ, "PYTHONPATH": str(source)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.stdout.strip() == "[]", result.stderr


class TestDevices:
    def test_unknown_device(self, data: bytes) -> None:
        with pytest.raises(DeviceError, match="tpu"):
            load(data, device="tpu")

    def test_plan_for_a_device_that_is_not_here(self, changed) -> None:
        foreign = changed(lambda h: h["about"].update(device="npu:7", machine="elsewhere"))
        with pytest.raises(DeviceError, match="npu:7") as caught:
            load(foreign)
        assert caught.value.cure
        assert load(foreign, device="cpu").device == "cpu"

    def test_device_code_may_be_allowed(self, data: bytes) -> None:
        assert load(data, allow_device_code=True).device == "cpu"


def foreign_tactics(header: dict) -> None:
    header["about"].update(machine="Another machine", planish="9.9")
    for step in header["steps"]:
        for choice in step["choices"]:
            choice["family"] = "quantum"


class TestBadTactics:
    """What tuning found wrong or slow is not guessed where a plan is loaded, either."""

    def test_they_are_kept(self, changed) -> None:
        def found(header: dict) -> None:
            header["steps"][0].update(wrong=["a(x=1)"], slow=["b()"])

        steps = load(changed(found)).plan.steps
        assert (steps[0].wrong, steps[0].slow) == (("a(x=1)",), ("b()",))
        again = load(load(changed(found)).serialize()).plan.steps
        assert (again[0].wrong, again[0].slow) == (("a(x=1)",), ("b()",))

    def test_another_machine_has_its_own_slow_ones(self, changed) -> None:
        def found(header: dict) -> None:
            header["about"].update(machine="Another machine")
            header["steps"][0].update(wrong=["a(x=1)"], slow=["b()"])

        step = load(changed(found)).plan.steps[0]
        assert (step.wrong, step.slow) == (("a(x=1)",), ())

    @pytest.mark.parametrize("entry", ["a()", {"a": 1}, [1], None, 3])
    @pytest.mark.parametrize("key", ["wrong", "slow"])
    def test_other_entries_are_refused(self, changed, key: str, entry: object) -> None:
        with pytest.raises(PlanError, match=f"'{key}' of a step is not a list"):
            load(changed(lambda header: header["steps"][0].update({key: entry})))


class TestOtherMachines:
    def test_tactics_that_do_not_exist_are_replaced(
        self, engine: Engine, changed, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "planish"):
            loaded = load(changed(foreign_tactics))
        (record,) = caplog.records
        assert "Another machine" in record.getMessage()
        assert "retune=True" in record.getMessage()
        given = feeds(engine.plan.graph, 3)
        np.testing.assert_allclose(loaded(given), engine(given), rtol=1e-5, atol=1e-6)
        assert loaded.layers()[0]["tactic"] == "chosen at run time"

    def test_tactics_that_exist_are_kept(
        self, engine: Engine, changed, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "planish"):
            loaded = load(changed(lambda h: h["about"].update(machine="Another machine")))
        assert len(caplog.records) == 1
        kept = [(r["name"], r["tactic"]) for r in loaded.layers()]
        assert kept == [(r["name"], r["tactic"]) for r in engine.layers()]

    def test_own_plans_load_silently(self, data: bytes, caplog: pytest.LogCaptureFixture) -> None:
        with caplog.at_level(logging.INFO, "planish"):
            load(data)
        assert not caplog.records

    def test_retuning_measures_here(self, engine: Engine, changed) -> None:
        tuned = load(changed(foreign_tactics), retune=True)
        assert tuned.plan.about["machine"] == cpu().timing_key
        assert tuned.plan.about["planish"] == planish.__version__
        assert any(row["microseconds"] for row in tuned.layers())
        given = feeds(engine.plan.graph, 3)
        np.testing.assert_allclose(tuned(given), engine(given), rtol=1e-5, atol=1e-6)

    def test_own_plan_with_an_impossible_tactic(self, changed) -> None:
        def unknown_family(header: dict) -> None:
            header["steps"][0]["choices"][0]["family"] = "quantum"

        def no_parameters(header: dict) -> None:
            header["steps"][0]["choices"][0]["parameters"] = {}

        for edit in (unknown_family, no_parameters):
            with pytest.raises(PlanError) as caught:
                load(changed(edit))
            assert "the bytes given" in caught.value.where
            assert caught.value.cure


def swap_first_two(header: dict) -> None:
    steps = header["steps"]
    steps[0], steps[1] = steps[1], steps[0]


def split_wrongly(header: dict) -> None:
    step = header["steps"][0]
    assert len(step["nodes"]) > 1
    header["steps"].append({"nodes": step["nodes"][-1:], "choices": []})
    step["nodes"] = step["nodes"][:-1]


def merge_all(header: dict) -> None:
    header["steps"][0]["nodes"] = [n for s in header["steps"] for n in s["nodes"]]
    del header["steps"][1:]


class TestSteps:
    @pytest.mark.parametrize(
        "edit",
        [
            lambda h: h["steps"].pop(),
            lambda h: h["steps"].pop(0),
            lambda h: h["steps"].append(h["steps"][-1]),
            lambda h: h["steps"][0]["nodes"].clear(),
            lambda h: h["steps"][0]["nodes"].reverse(),
            lambda h: h["steps"][0]["nodes"].append(h["steps"][0]["nodes"][-1]),
            lambda h: h["steps"][0].pop("anchor"),
            lambda h: h["steps"][0].update(anchor=h["steps"][0]["nodes"][-1]),
            lambda h: h["steps"][0].update(anchor=h["steps"][1]["nodes"][0]),
            swap_first_two,
            split_wrongly,
            merge_all,
        ],
    )
    def test_steps_that_do_not_compute_the_graph(self, changed, edit) -> None:
        bad = changed(edit)
        with pytest.raises(PlanError) as caught:
            load(bad)
        assert "the bytes given" in caught.value.where

    def test_step_of_a_free_node(self) -> None:
        net = Net()
        x = net.input(N, 4)
        y = net.concat(net.dense(x, 4), net.relu(x))
        header, weights = split(build(net.output(net.relu(net.dense(y, 8)))).serialize())
        (name,) = (n["name"] for n in header["graph"]["nodes"] if n["op"] == "concat")
        header["steps"].append({"nodes": [name], "anchor": name, "choices": []})
        with pytest.raises(PlanError, match="twice"):
            load(join(header, weights))


def residual_parts() -> tuple[Graph, dict]:
    """A graph to choose wrong tasks from, and its nodes by name."""
    net = Net()
    x = net.input(N, 6)
    before = net.graph.add(planish_ew("Tanh"), x, name="before")
    first = net.graph.add(planish_ew("Relu"), net.dense(before, 6), name="after")
    outside = net.graph.add(planish_ew("Exp"), first, name="outside")
    joined = net.graph.add(planish_ew("Add"), first, outside, name="joined")
    wide = net.graph.add(planish_ew("Add"), joined, net.weights(4, 1, 6), name="wide")
    graph = net.output(wide, outside)
    return graph, {n.name: n for n in graph.nodes}


def planish_ew(name: str):
    from planish.ops import ew

    return getattr(ew, name)()


@pytest.mark.parametrize(
    ("names", "anchor", "why"),
    [
        ((), None, "no nodes"),
        (("after", "mat_mul"), "mat_mul", "order"),
        (("mat_mul", "after", "after"), "mat_mul", "order"),
        (("mat_mul", "after", "joined"), "mat_mul", "needed outside"),
        (("after", "outside", "joined"), None, "needed outside"),
        (("mat_mul", "after"), None, "elementwise"),
        (("after",), "after", "elementwise"),
        (("after",), "mat_mul", "not among"),
        (("joined", "wide"), None, "shape"),
        (("before", "after"), None, "needed outside"),
    ],
)
def test_nodes_that_are_no_task(names: tuple[str, ...], anchor: str | None, why: str) -> None:
    from planish.plan.check import check_nodes

    graph, nodes = residual_parts()
    with pytest.raises(PlanError, match=why):
        check_nodes(graph, [nodes[n] for n in names], nodes[anchor] if anchor else None)


def test_attention_has_its_second_product_as_anchor() -> None:
    from planish.plan.check import check_nodes

    graph = attention(Form(mask="keys"))
    nodes = {n.op.name: n for n in graph.nodes}  # the second product comes last
    check_nodes(graph, graph.nodes, nodes["mat_mul"])
    with pytest.raises(PlanError, match="second product"):
        check_nodes(graph, graph.nodes, nodes["softmax"])


def test_every_candidate_is_a_task() -> None:
    from planish.fusion.candidates import propose
    from planish.plan.check import check_nodes

    for graph in (residual_parts()[0], residual_net(), attention(Form(mask="keys"))):
        for task in propose(graph):
            check_nodes(graph, task.nodes, task.anchor)


def outcome(data: bytes) -> PlanishError | None:
    """What is wrong with a plan."""
    try:
        restore(deserialize(data), cpu())
    except PlanishError as error:
        return error
    return None


def test_any_change_gives_an_error_of_our_own_or_a_plan(data: bytes) -> None:
    """Values anywhere in the header replaced by others, checksums right."""
    header, weights = split(data)
    random = np.random.default_rng(0)
    strange = [None, True, 0, -1, 1 << 70, 1.5, "", "N", "relu", [], [[]], {}, {"dim": "M"}, "w"]
    places: list[tuple[object, ...]] = []

    def walk(node: object, path: tuple[object, ...]) -> None:
        places.append(path)
        items = node.items() if isinstance(node, dict) else enumerate(node)  # type: ignore[arg-type]
        for key, child in items:
            if isinstance(child, dict | list):
                walk(child, (*path, key))
            else:
                places.append((*path, key))

    walk(header, ())
    places = [p for p in places if p and p[0] != "about"]
    survivors = 0
    for _ in range(400):
        bad = copy.deepcopy(header)
        path = places[int(random.integers(len(places)))]
        spot = bad
        for key in path[:-1]:
            spot = spot[key]  # type: ignore[index]
        value = strange[int(random.integers(len(strange)))]
        spot[path[-1]] = copy.deepcopy(value)  # type: ignore[index]
        error = outcome(join(bad, weights))
        survivors += error is None
        assert error is None or (type(error) is PlanError and error.where), f"{path} = {value!r}"
    assert survivors < 200


class TestPrecision:
    """A plan in float32 becomes one in a half where that is permitted now, without the model."""

    @pytest.fixture
    def halves(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpu(), "precisions", frozenset({"fp32", "fp16", "bf16"}))

    def test_of_one_in_fp32(self, engine: Engine, data: bytes, halves: None) -> None:
        lowered = load(data, retune=True, precision="fp16", tuning_seconds=0)
        assert lowered.precision == "fp16"
        assert {row["precision"] for row in lowered.layers()} >= {"fp16"}
        given = feeds(engine.plan.graph, 2)
        want = engine(given)
        assert lowered(given).dtype == np.float32
        np.testing.assert_allclose(lowered(given), want, atol=2e-2 * np.abs(want).max())
        assert not np.array_equal(lowered(given), want)

    def test_a_lowered_plan_stays_lowered(self, data: bytes, halves: None) -> None:
        plan = load(data, retune=True, precision="fp16", tuning_seconds=0).serialize()
        for other in ("fp32", "bf16"):
            with pytest.raises(PrecisionError, match=f"computes in fp16, .* changed to {other}"):
                load(plan, retune=True, precision=other)
        again = load(plan, retune=True, precision={"fp16", "tf32"}, tuning_seconds=0)
        assert again.precision == "fp16"

    def test_needs_retune(self, data: bytes) -> None:
        with pytest.raises(InputError, match="precision= needs retune=True"):
            load(data, precision="fp16")
        with pytest.raises(InputError, match="tuning_seconds= needs retune=True"):
            load(data, tuning_seconds=3)
        with pytest.raises(InputError, match="tuning_seconds"):
            load(data, retune=True, tuning_seconds=-1)
        with pytest.raises(PrecisionError, match="no precision 'fp12'"):
            load(data, retune=True, precision="fp12")
