from __future__ import annotations

import itertools
import logging

import ml_dtypes
import numpy as np
import pytest

from helpers.host_tactics import HostTactic
from helpers.levels import Levels, product_of_codes
from helpers.networks import N, Net
from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph.dims import symbol
from planish.graph.graph import Graph
from planish.graph.types import DType, TensorType
from planish.native import Memory
from planish.ops import (
    Cast,
    Dequantize,
    Gather,
    GatherNd,
    MatMulInteger,
    Op,
    Quantize,
    Reshape,
    Softmax,
    ew,
)
from planish.targets.base import Binding, Kernel, Launch, Layout
from planish.targets.cpu.target import CpuExecutable, cpu
from planish.tuning import measure
from planish.tuning.estimate import estimate, operations
from planish.tuning.measure import (
    PATIENCE,
    Bench,
    Measurement,
    _difference,
    kernels_of,
)


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other process takes a CPU, unless a test says so."""
    monkeypatch.setattr(measure, "_interruptions", lambda: 0)


@pytest.fixture
def task() -> Task:
    net = Net()
    (task,) = propose(net.output(net.add(net.input(N, 5), net.input(N, 5, name="y"))))
    return task


def bench(task: Task, **layouts: Layout) -> Bench:
    by_name = {v.name: v for v in (*task.inputs, *task.outputs)}
    binding = Binding({"N": 3}, {by_name[n]: layout for n, layout in layouts.items()})
    return Bench(task, binding, cpu(), 1)


def seen_by_measure(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[Memory]]]:
    """Repeats, and memory touched before each, of what is measured from now on."""
    seen: list[tuple[int, list[Memory]]] = []
    program = CpuExecutable.measure

    def spy(self, arena, inputs, outputs, threads, repeats, touched=()):
        seen.append((repeats, list(touched)))
        return program(self, arena, inputs, outputs, threads, repeats, touched)

    monkeypatch.setattr(CpuExecutable, "measure", spy)
    return seen


def sums_of_rounded(depth: int, dtype: DType) -> Task:
    """Integer products of the levels of a SiLU of halves."""
    b = Levels(np.random.default_rng(0))
    x = b.input((64, depth), dtype)
    wide = b.add(Cast(DType.FLOAT32), b.add(ew.Mul(), x, b.add(ew.Sigmoid(), x)))
    levels = b.quantized(wide, scale=1 / 40)
    return b.task(b.add(MatMulInteger(), levels, b.levels((depth, 64)), *b.zeros()))


class TestBench:
    def test_a_right_tactic_is_timed(self, task: Task) -> None:
        measured = bench(task).measure(HostTactic(task, delay=1.0))
        assert measured.seconds is not None
        assert 1e-3 <= measured.seconds < 0.1
        assert not measured.wrong

    @pytest.mark.parametrize(("size", "near"), [(600, (1, 0)), (599, (0,))])
    def test_operands_come_from_memory_but_for_those_just_computed(
        self, task: Task, size: int, near: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        other = np.zeros(size, np.uint8)
        seen = seen_by_measure(monkeypatch)
        cold = Bench(task, Binding({"N": 3}), cpu(), 1, other=other)
        assert cold.measure(HostTactic(task)).seconds is not None
        inputs = [(cold._inputs[i].address, 3 * 5 * 4) for i in near]
        assert seen
        for repeats, touched in seen:
            assert touched == [(other.ctypes.data, other.nbytes), *inputs]
            assert repeats == 1
        seen.clear()
        assert bench(task).measure(HostTactic(task)).seconds is not None
        assert not any(touched for _, touched in seen)

    def test_runs_that_others_took_a_cpu_from_do_not_count(
        self, task: Task, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seconds, taken = iter([3.0, 1.0, 5.0, 2.0, 9.0]), iter([0, 1, 1, 2, 2, 2, 2, 2])
        monkeypatch.setattr(measure, "_interruptions", lambda: next(taken))
        monkeypatch.setattr(
            CpuExecutable, "measure", lambda self, *a, **k: np.array([next(seconds)])
        )
        cold = Bench(task, Binding({"N": 3}), cpu(), 1, other=np.zeros(99, np.uint8))
        with cold._program(HostTactic(task)) as (executable, arena):
            assert list(cold._run(executable, arena, 2)) == [5.0, 2.0]

    def test_all_runs_count_where_there_is_no_calm(
        self, task: Task, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        taken = itertools.count()
        monkeypatch.setattr(measure, "_interruptions", lambda: next(taken))
        seen = seen_by_measure(monkeypatch)
        warm = bench(task)
        with warm._program(HostTactic(task)) as (executable, arena):
            assert len(warm._run(executable, arena, 7)) == 7 * PATIENCE
        assert [repeats for repeats, _ in seen] == [7] * PATIENCE

    @pytest.mark.parametrize("kind", ["wrong", "idle"])
    def test_a_wrong_tactic_is_out(
        self, task: Task, kind: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.WARNING, "planish"):
            measured = bench(task).measure(HostTactic(task, kind))
        assert measured.seconds is None
        assert "output 0" in measured.wrong
        assert task.name in caplog.text

    def test_what_a_library_does_wrong_is_no_warning(
        self, task: Task, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Theirs(HostTactic):
            is_of_library = True

        with caplog.at_level(logging.INFO, "planish"):
            assert bench(task).measure(Theirs(task, "wrong")).wrong
        assert [record.levelno for record in caplog.records] == [logging.INFO]

    @pytest.mark.parametrize("op", [Gather(0), GatherNd()], ids=str)
    def test_indices_into_a_dimension_of_one(self, op: Op) -> None:
        graph = Graph()
        data = graph.input("data", TensorType((1, 5), DType.FLOAT32))
        indices = graph.input("indices", TensorType((40, 1), DType.INT64))
        graph.mark_output(graph.add(op, data, indices), "y")
        (task,) = propose(graph)
        made = Bench(task, Binding({}), cpu(), 1)
        (expected,) = made.expected()
        assert expected.size == 200
        tactic = next(iter(cpu().tactics(task, Binding({}))))
        cpu().prepare(kernels_of(tactic, Binding({})))
        assert made.measure(tactic).seconds is not None

    def test_halves_between_are_kept_in_float32(self) -> None:
        """A float32 softmax of halves that were just computed: not rounded before."""
        graph = Graph()
        x = graph.input("x", TensorType((64, 48), DType.BFLOAT16))
        third = graph.constant(np.asarray(1 / 3, ml_dtypes.bfloat16))
        wide = graph.add(Cast(DType.FLOAT32), graph.add(ew.Mul(), x, third))
        graph.mark_output(graph.add(Softmax(-1), wide), "y")
        task = max(propose(graph), key=lambda t: len(t.nodes))
        assert len(task.nodes) == 3
        tactics = list(cpu().tactics(task, Binding({})))
        assert tactics
        for tactic in tactics:
            cpu().prepare(kernels_of(tactic, Binding({})))
            assert Bench(task, Binding({}), cpu(), 1).measure(tactic).seconds is not None

    def test_levels_of_halves_may_be_the_next(self) -> None:
        graph = Graph()
        x = graph.input("x", TensorType((64, 48), DType.BFLOAT16))
        wide = graph.add(Cast(DType.FLOAT32), graph.add(ew.Sigmoid(), x))
        steps = graph.constant(np.float32(1 / 255)), graph.constant(np.float32(0))
        graph.mark_output(graph.add(Quantize(DType.UINT8, 0, 255), wide, *steps), "y")
        task = max(propose(graph), key=lambda t: len(t.nodes))
        tactic = next(iter(cpu().tactics(task, Binding({}))))
        cpu().prepare(kernels_of(tactic, Binding({})))
        assert Bench(task, Binding({}), cpu(), 1).measure(tactic).seconds is not None

    @pytest.mark.parametrize("depth", [9, 200])
    @pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
    def test_sums_of_levels_of_halves(self, dtype: DType, depth: int) -> None:
        """Made in float32, they differ from the references' in many elements."""
        task = sums_of_rounded(depth, dtype)

        class Exact(HostTactic):
            """Does not round halves between; one sum in seven is `more`."""

            more = 0

            def launches(self, binding: Binding) -> list[Launch]:
                (launch,) = super().launches(binding)

                def run(*arrays: np.ndarray) -> None:
                    x, y = arrays[0].astype(np.float32), arrays[-1]
                    levels = np.rint(x / (1 + np.exp(-x)) * 40).clip(-128, 127)
                    y[:] = levels.astype(np.int32) @ arrays[1].astype(np.int32)
                    y[:, ::7] += self.more

                return [Launch(run, launch.pointers)]

        class Wrong(Exact):
            more = 3000 * depth

        made = bench(task)
        assert made.measure(HostTactic(task)).seconds is not None
        assert made.measure(Exact(task)).seconds is not None
        assert np.mean(made._outputs[0].read() != made.expected()[0]) > 0.01
        assert "off by" in made.measure(Wrong(task)).wrong

    @pytest.mark.parametrize("dtype", [DType.BFLOAT16, DType.FLOAT16])
    def test_floats_of_sums_of_levels_of_halves(self, dtype: DType) -> None:
        """Levels that are the next ones are seen in what a kernel makes of the sums."""
        b = Levels(np.random.default_rng(0))
        x = b.input((4096, 3), dtype)
        wide = b.add(
            Cast(DType.FLOAT32), b.add(ew.Silu(), b.add(ew.Add(), x, b.halves((3,), dtype)))
        )
        weights = b.graph.constant(np.full((3, 64), 127, np.int8))
        sums = b.add(MatMulInteger(), b.quantized(wide, scale=0.25), weights, *b.zeros())
        scale = b.graph.constant(np.float32(0.25 / 127)), b.graph.constant(np.float32(0))
        y = b.add(Cast(dtype), b.add(Dequantize(), sums, *scale))
        task = b.task(y)

        class Exact(HostTactic):
            """Does not round halves between; then all results are `more`."""

            more = 0.0

            def launches(self, binding: Binding) -> list[Launch]:
                (launch,) = super().launches(binding)

                def run(*arrays: np.ndarray) -> None:
                    x, offsets = (a.astype(np.float32) for a in arrays[:2])
                    x = x + offsets
                    levels = np.rint(x / (1 + np.exp(-x)) / np.float32(0.25)).clip(-128, 127)
                    arrays[-1][:] = levels.sum(1, keepdims=True) * 0.25 + self.more  # 127 / 127

                return [Launch(run, launch.pointers)]

        class Wrong(Exact):
            more = 2.0

        made = bench(task)
        assert made.measure(Exact(task)).seconds is not None
        worst = np.abs(made._outputs[0].read() - made.expected()[0]).max()
        assert worst > 0.2
        assert "off by" in made.measure(Wrong(task)).wrong

    @pytest.mark.parametrize(("best", "runs"), [(1e-5, 2), (3e-3, 2), (1.0, 5)])
    def test_a_slow_tactic_is_measured_twice(self, task: Task, best: float, runs: int) -> None:
        """Of five milliseconds, and others not often."""
        calls = []
        tactic = HostTactic(task, delay=5.0)
        launches = tactic.launches

        def counted(binding: Binding):
            (launch,) = launches(binding)

            def run(*arrays: np.ndarray) -> None:
                calls.append(1)
                launch.kernel(*arrays)  # type: ignore[operator]

            return [type(launch)(run, launch.pointers)]

        object.__setattr__(tactic, "launches", counted)
        measured = bench(task).measure(tactic, best)
        assert measured.seconds is not None
        assert len(calls) == runs

    def test_strided_values(self, task: Task) -> None:
        x, y, z = task.inputs[0].name, task.inputs[1].name, task.output.name
        wide, columns = Layout((3, 5), (16, 1)), Layout((3, 5), (1, 3))
        for layouts in ({x: wide}, {y: columns}, {z: wide}, {x: columns, z: columns}):
            assert bench(task, **layouts).measure(HostTactic(task)).seconds is not None
            assert bench(task, **layouts).measure(HostTactic(task, "wrong")).seconds is None

    def test_symbolic_attributes_are_bound(self) -> None:
        graph = Graph()
        n = symbol("N")
        x = graph.input("x", TensorType((n, 4), DType.FLOAT32))
        graph.mark_output(graph.add(ew.Neg(), graph.add(Reshape((n * 4,)), x)), "y")
        for task in propose(graph):
            assert bench(task).measure(HostTactic(task)).seconds is not None

    def test_generated_kernels(self, task: Task) -> None:
        binding = Binding({"N": 3})
        tactics = cpu().tactics(task, binding)
        assert tactics
        for tactic in tactics:
            assert all(isinstance(k, Kernel) for k in kernels_of(tactic, binding))
            assert bench(task).measure(tactic).seconds is not None
        assert kernels_of(HostTactic(task), binding) == []

    @pytest.mark.parametrize("dtype", list(DType))
    def test_every_dtype(self, dtype: DType) -> None:
        graph = Graph()
        x = graph.input("x", TensorType((4, 3), dtype))
        op = ew.LogicalOr() if dtype is DType.BOOL else ew.Maximum()
        graph.mark_output(graph.add(op, x, graph.input("y", x.type)), "z")
        (task,) = propose(graph)
        assert bench(task).measure(HostTactic(task)).seconds is not None


class TestCodes:
    """Of FP8: the order of a sum decides which is the nearest."""

    def measured(self, change) -> Measurement:
        """A product of codes whose results are changed, in place."""
        task = product_of_codes(np.random.default_rng(0), (16, 64), (64, 32))

        class Changed(HostTactic):
            def launches(self, binding: Binding) -> list[Launch]:
                (launch,) = super().launches(binding)

                def run(*arrays: np.ndarray) -> None:
                    launch.kernel(*arrays)
                    change(arrays[-1])

                return [Launch(run, launch.pointers)]

        return bench(task).measure(Changed(task))

    def test_right(self) -> None:
        assert self.measured(lambda codes: None).seconds is not None

    def test_some_are_the_next(self) -> None:
        def change(codes: np.ndarray) -> None:
            codes[:4] ^= 1

        assert self.measured(change).seconds is not None

    @pytest.mark.parametrize("which", [np.s_[3:4, 3:4], np.s_[:]], ids=["one", "all"])
    def test_wrong(self, which) -> None:
        def change(codes: np.ndarray) -> None:
            codes[which] ^= 24 if codes[which].size == 1 else 1

        assert "off by" in self.measured(change).wrong


class TestDifference:
    def test_floats_may_differ_a_little(self) -> None:
        want = np.array([1.0, 1000.0, np.nan, np.inf, -np.inf], np.float32)
        assert not _difference([want + np.float32(0.05)], [want])
        for place, value in ((0, 5.0), (2, 0.0), (3, -np.inf), (3, 1.0), (4, np.nan), (1, np.nan)):
            have = want.copy()
            have[place] = value
            assert _difference([have], [want]), (place, value)

    def test_integers_may_not(self) -> None:
        want = np.arange(4)
        assert not _difference([want.copy()], [want])
        assert "25.0%" in _difference([np.array([0, 1, 2, 4])], [want])

    @pytest.mark.parametrize("step", [np.uint8(1), np.float32(0.7)])
    def test_levels_of_sums_may_be_the_next_ones(self, step) -> None:
        want = np.arange(100).astype(step.dtype) * step
        near, far, everywhere = want.copy(), want.copy(), want + step
        near[::9] += step
        far[7] += 2 * step
        assert _difference([near], [want])
        assert not _difference([near], [want], step=float(step))
        assert _difference([far], [want], step=float(step))
        assert _difference([everywhere], [want], step=float(step))

    def test_halves_have_a_wider_tolerance(self) -> None:
        want = np.ones(3, ml_dtypes.bfloat16)
        assert not _difference([(want * 1.01).astype(ml_dtypes.bfloat16)], [want])
        assert _difference([(want * 1.1).astype(ml_dtypes.bfloat16)], [want])

    def test_nothing_and_zeros(self) -> None:
        empty, zeros = np.zeros((0, 3), np.float32), np.zeros(3, np.float32)
        assert not _difference([empty], [empty])
        assert not _difference([zeros], [zeros])
        assert _difference([zeros + np.float32(1e-6)], [zeros])


def test_estimate_counts_arithmetic() -> None:
    net = Net()
    graph = net.output(net.relu(net.conv(net.input(N, 8, 8, 16), 32, 3)))
    tasks = {len(t.nodes): t for t in propose(graph) if t.anchor}
    binding, rates = Binding({"N": 2}), cpu().rates
    plain = 2 * 2 * 8 * 8 * 32 * 9 * 16
    assert operations(tasks[1], binding) == plain + 2 * 8 * 8 * 32
    assert operations(tasks[2], binding) == plain + 2 * 2 * 8 * 8 * 32
    assert estimate(tasks[1], binding, rates) < estimate(tasks[1], Binding({"N": 20}), rates)
