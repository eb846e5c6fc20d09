from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from helpers.networks import N, Net, build, feeds, residual_net
from planish.errors import InputError, ShapeError
from planish.graph.dims import symbol
from planish.graph.graph import DimRange, Graph
from planish.graph.interpret import interpret
from planish.graph.types import DType, TensorType
from planish.ops import ew
from planish.runtime import engine as engine_module
from planish.runtime.engine import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    """One input, one output; the batch from 1 to 8."""
    return build(residual_net())


@pytest.fixture(scope="module")
def wide() -> Engine:
    """Two inputs of one batch, two outputs: ``a + b`` and ``relu(a)``."""
    net = Net("wide")
    a, b = net.input(N, 5, name="a"), net.input(N, 5, name="b")
    return build(net.output(net.add(a, b), net.relu(a)))


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def x() -> np.ndarray:
    return random(2, 6, 6, 4)


class TestCalls:
    def test_every_way_to_pass_arrays(self, wide: Engine) -> None:
        a, b = random(2, 5), random(2, 5, seed=1)
        context = wide.create_execution_context()
        ways = [
            wide(a, b),
            wide(a, b=b),
            wide(b=b, a=a),
            wide({"b": b, "a": a}),
            context.execute([a, b]),
            context.execute((a, b)),
            context.execute({"b": b, "a": a}),
        ]
        for result in ways:
            assert list(result) == ["out0", "out1"]
            np.testing.assert_array_equal(result["out0"], a + b)
            np.testing.assert_array_equal(result["out1"], np.maximum(a, 0))

    def test_one_output_is_bare(self, engine: Engine, x: np.ndarray) -> None:
        assert isinstance(engine(x), np.ndarray)
        assert engine(x).shape == (2, 5)
        context = engine.create_execution_context()
        np.testing.assert_array_equal(context.execute(x), engine(x))

    def test_results_are_fresh(self, engine: Engine, x: np.ndarray) -> None:
        first = engine(x)
        kept = first.copy()
        engine(-x)
        np.testing.assert_array_equal(first, kept)

    def test_inputs_are_not_changed(self, wide: Engine) -> None:
        a, b = random(2, 5), random(2, 5, seed=1)
        before = a.copy(), b.copy()
        wide(a, b)
        np.testing.assert_array_equal(a, before[0])
        np.testing.assert_array_equal(b, before[1])

    def test_strided_and_read_only_inputs(self, engine: Engine, x: np.ndarray) -> None:
        want = engine(x)
        large = np.zeros((2, 6, 6, 8), np.float32)
        large[..., ::2] = x
        frozen = x.copy()
        frozen.flags.writeable = False
        raw = np.zeros(x.nbytes + 4, np.uint8)
        unaligned = raw[4:].view(np.float32).reshape(x.shape)
        unaligned[...] = x
        for given in (large[..., ::2], x[::-1][::-1], np.asfortranarray(x), frozen, unaligned):
            np.testing.assert_array_equal(engine(given), want)

    def test_arrays_of_others(self, engine: Engine, x: np.ndarray) -> None:
        class Dlpack:
            def __dlpack__(self, **options: object):
                return x.__dlpack__()

            def __dlpack_device__(self):
                return x.__dlpack_device__()

        class Array:
            def __array__(self, dtype=None, copy=None):
                return x

        class OnlyArray(Array):
            def __dlpack__(self, **options: object):
                raise BufferError("it is somewhere else")

            def __dlpack_device__(self):
                return (2, 0)

        for given in (Dlpack(), Array(), OnlyArray()):
            np.testing.assert_array_equal(engine(given), engine(x))

    def test_every_size_of_a_dimension(self, engine: Engine) -> None:
        whole = random(8, 6, 6, 4)
        want = engine(whole)
        for size in (1, 5, 2, 8, 3):
            np.testing.assert_allclose(engine(whole[:size]), want[:size], rtol=1e-5, atol=1e-6)

    def test_an_empty_batch(self) -> None:
        net = Net()
        graph = net.output(net.relu(net.dense(net.input(N, 5), 3)))
        assert build(graph)(np.zeros((0, 5), np.float32)).shape == (0, 3)

    def test_inputs_that_nothing_reads(self) -> None:
        net = Net()
        net.input(N, 2, name="unused")
        graph = net.output(net.relu(net.input(N, 3)))
        y = build(graph)(unused=random(2, 2), x=random(2, 3))
        np.testing.assert_array_equal(y, np.maximum(random(2, 3), 0))

    def test_outputs_that_are_inputs_or_constants(self) -> None:
        net = Net()
        x, w = net.input(N, 3), net.weights(2, 2)
        engine = build(net.output(x, x, w))
        given = random(2, 3)
        result = engine(given)
        assert not np.shares_memory(result["out0"], given)
        np.testing.assert_array_equal(result["out0"], given)
        np.testing.assert_array_equal(result["out1"], given)
        np.testing.assert_array_equal(result["out2"], w.data)

    def test_other_dtypes(self) -> None:
        graph = Graph()
        x = graph.input("x", TensorType((symbol("n"),), DType.INT32))
        graph.mark_output(graph.add(ew.Less(), x, graph.constant(np.int32([3]))), "small")
        graph.mark_output(graph.add(ew.Mul(), x, x), "square")
        result = build(graph)(np.arange(5, dtype=np.int32))
        assert result["small"].tolist() == [True, True, True, False, False]
        assert result["square"].dtype == np.int32
        assert result["square"].tolist() == [0, 1, 4, 9, 16]


class TestOut:
    def test_results_are_written_there(self, engine: Engine, x: np.ndarray) -> None:
        out = np.full((2, 5), np.nan, np.float32)
        assert engine(x, out=out) is out
        np.testing.assert_array_equal(out, engine(x))
        engine(x, out={"out0": out})

    def test_several(self, wide: Engine) -> None:
        a, b = random(2, 5), random(2, 5, seed=1)
        out = {name: np.empty((2, 5), np.float32) for name in ("out1", "out0")}
        result = wide(a, b, out=out)
        assert result["out0"] is out["out0"]
        np.testing.assert_array_equal(out["out1"], np.maximum(a, 0))

    @pytest.mark.parametrize(
        "out",
        [
            np.empty((3, 5), np.float32),
            np.empty((2, 5), np.float64),
            np.empty((5, 2), np.float32).T,
            np.broadcast_to(np.float32(0), (2, 5)),
            [[0.0]],
            {},
            {"out0": None},
            {"out0": np.empty((2, 5), np.float32), "out7": np.empty((2, 5), np.float32)},
        ],
        ids=["shape", "dtype", "strided", "read-only", "list", "missing", "none", "unknown"],
    )
    def test_arrays_that_do_not_fit(self, engine: Engine, x: np.ndarray, out: object) -> None:
        with pytest.raises(InputError, match="out"):
            engine(x, out=out)

    def test_arrays_that_overlap(self, wide: Engine) -> None:
        room = np.zeros(15, np.float32)
        a, b, c = room[:5].reshape(1, 5), room[5:10].reshape(1, 5), room[10:].reshape(1, 5)
        with pytest.raises(InputError, match="overlaps"):
            wide(a, random(1, 5), out={"out0": a, "out1": c})
        with pytest.raises(InputError, match="overlaps"):
            wide(a, random(1, 5), out={"out0": c, "out1": c})
        wide(a, random(1, 5), out={"out0": b, "out1": c})


class TestWrongInputs:
    """Errors name the input and come before anything runs."""

    @pytest.fixture(autouse=True)
    def _nothing_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def ran(*arguments: object) -> None:
            raise AssertionError("something ran")

        monkeypatch.setattr(engine_module.ExecutionContext, "_run", ran)

    def test_number(self, engine: Engine, x: np.ndarray) -> None:
        with pytest.raises(InputError, match=r"1 input\(s\) and was given 2"):
            engine(x, x)
        with pytest.raises(InputError, match="'x' is missing"):
            engine()

    def test_names(self, wide: Engine) -> None:
        a = random(1, 5)
        with pytest.raises(InputError, match="no input 'c'") as caught:
            wide(a, c=a)
        assert "a: float32[N, 5]" in caught.value.why
        with pytest.raises(InputError, match="'a' is given twice"):
            wide(a, a=a)
        with pytest.raises(InputError, match="'b' is missing"):
            wide({"a": a})
        with pytest.raises(InputError, match="no input 'c'"):
            wide.create_execution_context().execute({"a": a, "b": a, "c": a})

    def test_dtype(self, engine: Engine, x: np.ndarray) -> None:
        for other in (x.astype(np.float64), x.astype(np.int32), x.astype(">f4")):
            with pytest.raises(InputError, match="dtype") as caught:
                engine(other)
            assert caught.value.where == "input 'x'"
            assert "astype(np.float32)" in caught.value.cure

    def test_kind(self, engine: Engine) -> None:
        for thing in ([[1.0]], None, "x", 3.0):
            with pytest.raises(InputError, match="not an array"):
                engine(thing)

    def test_array_on_another_device(self, engine: Engine) -> None:
        class Elsewhere:
            def __dlpack__(self, **options: object):
                raise BufferError("it is on cuda:0")

            def __dlpack_device__(self):
                return (2, 0)

        with pytest.raises(InputError, match="cannot be read on the CPU"):
            engine(Elsewhere())

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((2, 6, 6), "3 dimensions, not 4"),
            ((2, 6, 7, 4), "Dimension 2 of input 'x' is 7, not 6"),
            ((9, 6, 6, 4), "9, outside 1 to 8"),
            ((0, 6, 6, 4), "0, outside 1 to 8"),
        ],
    )
    def test_shape(self, engine: Engine, shape: tuple[int, ...], message: str) -> None:
        with pytest.raises(ShapeError, match=message) as caught:
            engine(np.zeros(shape, np.float32))
        assert "input 'x'" in caught.value.where
        assert caught.value.cure

    def test_inputs_that_disagree(self, wide: Engine) -> None:
        with pytest.raises(ShapeError, match="N is 2"):
            wide(random(2, 5), random(3, 5))


class TestThreads:
    def test_parallel_calls_give_the_same_bits(self, engine: Engine) -> None:
        inputs = [random(1 + i % 4, 6, 6, 4, seed=i) for i in range(24)]
        want = [engine(x) for x in inputs]
        start = threading.Barrier(4)

        def work(worker: int) -> bool:
            start.wait()
            order = np.random.default_rng(worker).permutation(len(inputs))
            return all(np.array_equal(engine(inputs[i]), want[i]) for i in [*order, *order])

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(work, range(4)))

    def test_number_of_threads_does_not_change_bits(self, engine: Engine, x: np.ndarray) -> None:
        want = engine(x)
        for threads in (1, 2, 3, 64):
            with engine.create_execution_context(threads) as context:
                assert context.threads == threads
                np.testing.assert_array_equal(context.execute(x), want)

    @pytest.mark.parametrize("threads", [0, -1])
    def test_no_thread_is_too_few(self, engine: Engine, threads: int) -> None:
        with pytest.raises(InputError, match="at least one thread"):
            engine.create_execution_context(threads=threads)

    def test_binding_happens_once_for_all_threads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        net = Net()
        engine = build(net.output(net.relu(net.input(N, 3))))
        bind, calls = engine_module.bind, []
        monkeypatch.setattr(engine_module, "bind", lambda *a: (calls.append(1), bind(*a))[1])
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda _: engine(random(7, 3)), range(8)))
        assert len(calls) == 1

    def test_a_slow_compilation_holds_up_no_other_shape(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        net = Net()
        engine = build(net.output(net.relu(net.input(N, 3))))
        engine(random(2, 3))
        executable = type(engine.target).executable
        compiling, go_on = threading.Event(), threading.Event()

        def slow(self, schedule):
            if threading.current_thread().name.startswith("slow"):
                compiling.set()
                assert go_on.wait(30)
            return executable(self, schedule)

        monkeypatch.setattr(type(engine.target), "executable", slow)
        with ThreadPoolExecutor(1, thread_name_prefix="slow") as pool:
            waiting = pool.submit(engine, random(7, 3))
            try:
                assert compiling.wait(30)
                for known_or_new in (2, 5):
                    x = random(known_or_new, 3)
                    with ThreadPoolExecutor(1, thread_name_prefix="quick") as other:
                        result = other.submit(engine, x).result(timeout=30)
                    np.testing.assert_array_equal(result, np.maximum(x, 0))
                assert not waiting.done()
            finally:
                go_on.set()
            np.testing.assert_array_equal(waiting.result(30), np.maximum(random(7, 3), 0))

    def test_a_failed_compilation_is_tried_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        net = Net()
        engine = build(net.output(net.relu(net.input(N, 3))))
        bind, calls = engine_module.bind, []
        barrier = threading.Barrier(4)

        def failing_twice(*arguments):
            calls.append(1)
            if len(calls) <= 2:
                raise MemoryError
            return bind(*arguments)

        def run(_: int) -> bool:
            barrier.wait(30)
            try:
                engine(random(7, 3))
            except MemoryError:
                return False
            return True

        monkeypatch.setattr(engine_module, "bind", failing_twice)
        with ThreadPoolExecutor(4) as pool:
            results = list(pool.map(run, range(4)))
        assert sorted(results) == [False, False, True, True]
        assert len(calls) == 3

    def test_what_is_bound_after_closing_is_not_kept(self, engine: Engine) -> None:
        net = Net()
        engine = build(net.output(net.relu(net.input(N, 3))))
        engine.close()
        assert engine.bound({"N": 4}) is not engine.bound({"N": 4})

    def test_streams_are_refused(self, engine: Engine) -> None:
        with pytest.raises(InputError, match="streams"):
            engine.create_execution_context(stream=object())


class TestPrograms:
    def test_the_least_recently_used_one_goes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        net = Net()
        engine = build(net.output(net.relu(net.input(N, 3))))
        monkeypatch.setattr(engine_module, "PROGRAMS", 3)
        made = {n: engine.bound({"N": n}) for n in (11, 12, 13)}
        assert engine.bound({"N": 11}) is made[11]
        engine.bound({"N": 14})
        assert engine.bound({"N": 11}) is made[11]
        assert engine.bound({"N": 13}) is made[13]
        assert engine.bound({"N": 12}) is not made[12]
        for n in range(20, 30):
            np.testing.assert_array_equal(engine(random(n, 3)), np.maximum(random(n, 3), 0))

    def test_a_context_outlives_the_program_it_used(
        self, engine: Engine, x: np.ndarray, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(engine_module, "PROGRAMS", 1)
        context = engine.create_execution_context()
        want = context.execute(x)
        engine.bound({"N": 7})
        np.testing.assert_array_equal(context.execute(x), want)


class TestClosing:
    def test_engine(self) -> None:
        net = Net()
        graph = net.output(net.relu(net.input(N, 3)))
        with build(graph) as engine:
            context = engine.create_execution_context()
            context.execute(random(1, 3))
        for call in (
            lambda: engine(random(1, 3)),
            lambda: engine.create_execution_context(),
            lambda: context.execute(random(1, 3)),
        ):
            with pytest.raises(InputError, match="closed"):
                call()
        engine.close()
        assert engine.layers()  # what it was can still be asked

    def test_context(self, engine: Engine, x: np.ndarray) -> None:
        with engine.create_execution_context() as context:
            context.execute(x)
        assert context.closed
        with pytest.raises(InputError, match="closed"):
            context.execute(x)
        engine(x)


class TestProfiler:
    def test_a_callable_or_an_object(self, engine: Engine, x: np.ndarray) -> None:
        class Collector:
            def __init__(self) -> None:
                self.times: dict[str, float] = {}

            def report_layer_time(self, layer: str, milliseconds: float) -> None:
                self.times[layer] = milliseconds

        context = engine.create_execution_context()
        want = context.execute(x)
        collector, seen = Collector(), {}
        for profiler in (collector, seen.__setitem__):
            context.profiler = profiler
            np.testing.assert_array_equal(context.execute(x), want)
        names = [row["name"] for row in engine.layers()]
        assert list(collector.times) == list(seen) == names
        assert all(0 <= t < 1000 for t in collector.times.values())
        context.profiler = None
        seen.clear()
        context.execute(x)
        assert not seen

    def test_launches(self, engine: Engine, x: np.ndarray) -> None:
        times = engine.create_execution_context().profile({"x": x})
        assert times.dtype == np.int64
        assert times.shape[1] == 2
        assert np.all(times[:, 0] <= times[:, 1])
        assert np.all(np.diff(times[:, 0]) >= 0)


class TestLooking:
    def test_packed_weights_are_counted(self) -> None:
        net = Net()
        engine = build(net.output(net.dense(net.input(2, 5), 7)))
        assert engine.packed_bytes >= 5 * 7 * 4
        net = Net()
        assert build(net.output(net.relu(net.input(2, 5)))).packed_bytes == 0

    def test_inputs_and_outputs(self, engine: Engine) -> None:
        (info,) = engine.inputs
        assert (info.name, info.dtype, str(info.shape)) == ("x", np.float32, "(N, 6, 6, 4)")
        assert info.profile == {"N": DimRange(1, 2, 8)}
        assert str(info) == "x: float32[N, 6, 6, 4]"
        assert str(engine.outputs[0]) == "out0: float32[N, 5]"

    def test_layers(self, engine: Engine) -> None:
        rows = engine.layers()
        assert [r["op"] for r in rows].count("conv") == 2
        assert {"name", "origin", "op", "tactic", "precision", "output", "microseconds"} <= set(
            rows[0]
        )
        assert rows[-1]["output"] == "f32[N, 5]"

    def test_summary(self, engine: Engine) -> None:
        text = engine.summary()
        for part in ("residual", "cpu", "fp32", "x: float32[N, 6, 6, 4]", "out0", "layers"):
            assert part in text
        assert (engine.device, engine.precision) == ("cpu", "fp32")

    def test_host_steps(self, engine: Engine) -> None:
        assert engine.host_steps() == []

    def test_agrees_with_the_references(self, engine: Engine) -> None:
        graph = residual_net()
        given = feeds(graph, 4)
        np.testing.assert_allclose(engine(given), interpret(graph, given)[0], rtol=1e-4, atol=1e-5)


def test_overlaps_are_refused_again_at_other_sizes(engine: Engine) -> None:
    """Where arrays lie apart at one size they need not at another."""
    with engine.create_execution_context() as context:
        memory = np.zeros(4096, np.float32)
        small, large = (memory[: n * 144].reshape(n, 6, 6, 4) for n in (1, 8))
        out = [memory[144 : 144 + 5 * n].reshape(n, 5) for n in (1, 8)]
        for _ in range(2):
            context.execute(small, out=out[0])
            with pytest.raises(InputError, match="overlaps"):
                context.execute(large, out=out[1])
