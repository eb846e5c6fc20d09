"""Long lives and rough treatment: memory that stays, threads, forks, interrupts, shared caches.

Minutes of the same, and hours of fuzzing, are campaigns: see docs/robustness.md.
"""

from __future__ import annotations

import gc
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import onnx
import pytest

import planish
import planish.runtime.engine
from campaigns.soak import repeat
from helpers.networks import N, Net
from helpers.provoke.models import relu
from helpers.small_disk import make_read_only, small_disk
from planish.builder import ProgressEvent, build_graph
from planish.graph.interpret import interpret
from planish.runtime.engine import Engine
from planish.targets.cpu.target import CpuTarget, cpu

PLAN_MEGABYTES = 4.2
"""What the weights of `network` need; its arena and its outputs are made as large."""


def network(seed: int = 0) -> Net:
    """A network of 4 MB of weights whose arena needs 4 MB at a batch of 16, as do its outputs."""
    net = Net(seed=seed)
    x = net.input(N, 1024)
    y = net.relu(net.bias(net.dense(x, 1024)))
    net.output(net.relu(net.dense(net.add(y, x), 32)))
    return net


def build(**options: object) -> Engine:
    return build_graph(network().graph, cpu(), tuning_seconds=0, **options)  # type: ignore[arg-type]


def image_engine() -> Engine:
    """An engine with large intermediate results and large outputs: 2.4 MB each at a batch of 16."""
    net = Net(seed=1)
    y = net.relu(net.conv(net.input(N, 48, 48, 3), 16, 3))
    net.output(net.relu(net.add(net.conv(y, 16, 3), y)))
    return build_graph(net.graph, cpu(), tuning_seconds=0)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return build()


def batch(size: int) -> np.ndarray:
    return np.random.default_rng(size).standard_normal((size, 1024)).astype(np.float32)


def grows(trial: str, count: int, body: Callable[[int], bool], most: float) -> bool:
    """Whether a trial grows by more megabytes than that, each of three times: a leak does;
    what a process takes once does not.
    """
    for _ in range(3):
        row = repeat(trial, count, body)
        assert row.differing == 0
        if row.growth < most:
            return False
    return True


class TestMemory:
    """Each trial would grow by more than it may, were one array of a cycle in three kept."""

    def test_inferences_of_changing_batch(self) -> None:
        engine = image_engine()
        random = np.random.default_rng(0)
        feeds = [random.standard_normal((n, 48, 48, 3)).astype(np.float32) for n in range(1, 9)]
        wanted = [engine(x) for x in feeds]

        def body(i: int) -> bool:
            return np.array_equal(engine(feeds[i % 8]), wanted[i % 8])

        # all outputs together: 160 MB
        assert not grows("inferences", 300, body, 8)

    def test_contexts(self) -> None:
        engine = image_engine()
        x = np.ones((8, 48, 48, 3), np.float32)
        wanted = engine(x)

        def body(_: int) -> bool:
            with engine.create_execution_context() as context:
                return np.array_equal(context.execute(x), wanted)

        # 40 arenas: at least 48 MB
        assert not grows("contexts", 50, body, 8)

    def test_loads(self, engine: Engine) -> None:
        plan, x = engine.serialize(), batch(2)
        assert len(plan) > PLAN_MEGABYTES * 1e6
        wanted = engine(x)

        def body(_: int) -> bool:
            with planish.load(plan) as loaded:
                return np.array_equal(loaded(x), wanted)

        # 24 plans: 100 MB, and as much in packed weights
        assert not grows("loads", 30, body, 8)

    def test_builds(self, engine: Engine) -> None:
        x = batch(2)
        wanted = engine(x)

        def body(_: int) -> bool:
            with build() as built:
                return np.array_equal(built(x), wanted)

        # 16 builds: 68 MB, and as much in packed weights; malloc takes 8
        assert not grows("builds", 20, body, 16)

    def test_a_leak_is_seen(self, engine: Engine) -> None:
        plan, kept = engine.serialize(), []

        def body(_: int) -> bool:
            kept.append(planish.load(plan))
            return True

        assert grows("leaks", 5, body, 8)
        kept.clear()
        gc.collect()


def test_eight_threads_give_the_same_bits(engine: Engine) -> None:
    feeds = [batch(n) for n in range(1, 9)]
    wanted = [engine(x) for x in feeds]
    end = time.monotonic() + 2

    def work(k: int) -> tuple[int, int]:
        runs = differing = 0
        with engine.create_execution_context() as context:
            while time.monotonic() < end:
                k = (k + 1) % 8
                differing += not np.array_equal(context.execute(feeds[k]), wanted[k])
                runs += 1
        return runs, differing

    with ThreadPoolExecutor(8) as team:
        results = list(team.map(work, range(8)))
    assert all(runs > 0 for runs, _ in results)
    assert sum(differing for _, differing in results) == 0


# ---- processes --------------------------------------------------------------------------------


def in_child(work: Callable[[], bool], seconds: float = 60) -> None:
    """Runs `work` in a forked child, which must give True, and in time."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if work() else 2
        except BaseException:
            sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        finally:
            os._exit(code)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    pytest.fail(f"the forked child still runs after {seconds} seconds")


class TestFork:
    def test_an_engine_that_has_run(self, engine: Engine) -> None:
        """With shapes it has run before, with others, with a new context, and in a grandchild."""
        feeds = [batch(n) for n in (1, 3, 23)]
        reference = build()
        wanted = [reference(x) for x in feeds]
        assert np.array_equal(engine(feeds[0]), wanted[0])

        def work() -> bool:
            with engine.create_execution_context(threads=4) as context:
                for x, want in zip(feeds, wanted, strict=True):
                    assert np.array_equal(engine(x), want)
                    assert np.array_equal(context.execute(x), want)
            return True

        def twice() -> bool:
            in_child(work)
            return work()

        in_child(twice)
        assert work()

    def test_a_context_of_the_parent(self, engine: Engine) -> None:
        x = batch(5)
        with engine.create_execution_context(threads=4) as context:
            wanted = context.execute(x)
            in_child(lambda: np.array_equal(context.execute(x), wanted))
            assert np.array_equal(context.execute(x), wanted)

    def test_building_in_the_child(self, engine: Engine) -> None:
        x = batch(3)
        wanted = engine(x)

        def work() -> bool:
            target = CpuTarget()
            target._cache._folder = None  # so that it compiles
            with build_graph(network().graph, target, tuning_seconds=0.2) as built:
                np.testing.assert_allclose(built(x), wanted, rtol=1e-4, atol=1e-4)
            return True

        in_child(work)

    def test_while_another_thread_binds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A child has none of the other threads, and must not wait for what they hold."""
        engine, binding, go_on = build(), threading.Event(), threading.Event()
        real = planish.runtime.engine.bind

        def slow(*args: object) -> object:
            with engine._lock, engine._constants._lock, engine.target._lock:  # type: ignore[attr-defined]
                binding.set()
                go_on.wait()
            return real(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(planish.runtime.engine, "bind", slow)
        x = batch(37)
        with ThreadPoolExecutor(1) as other:
            result = other.submit(engine, x)
            assert binding.wait(60)
            monkeypatch.undo()
            try:
                in_child(lambda: engine(x).shape == (37, 32))
            finally:
                go_on.set()
            np.testing.assert_array_equal(result.result(), engine(x))

    def test_while_another_thread_compiles(self) -> None:
        """The fork waits for LLVM, whose lock would be held in the child for good."""
        lock = pytest.importorskip("llvmlite.binding.ffi").lib._lock
        build()  # LLVM is set up
        held = threading.Event()

        def hold() -> None:
            with lock:
                held.set()
                time.sleep(0.2)

        def work() -> bool:
            target = CpuTarget()
            target._cache._folder = None  # so that it compiles
            net = Net()
            net.output(net.relu(net.dense(net.input(N, 7), 5)))
            build_graph(net.graph, target, tuning_seconds=0)
            return True

        with ThreadPoolExecutor(1) as other:
            done = other.submit(hold)
            assert held.wait(60)
            in_child(work)
            done.result()


SPAWN = """
import multiprocessing, sys
import numpy as np, planish

def work(path, x, wanted):
    assert np.array_equal(planish.load(path)(x), wanted)

if __name__ == "__main__":
    engine = planish.load(sys.argv[1])
    x = np.ones((3, 1024), np.float32)
    for method in ("spawn", "forkserver"):
        child = multiprocessing.get_context(method).Process(
            target=work, args=(sys.argv[1], x, engine(x))
        )
        child.start()
        child.join(60)
        assert child.exitcode == 0, (method, child.exitcode)
"""


def test_spawned_processes(engine: Engine, tmp_path: Path) -> None:
    engine.save(tmp_path / "model.plan")
    (tmp_path / "main.py").write_text(SPAWN)
    command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path / "model.plan")]
    subprocess.run(command, check=True, timeout=120)


# ---- interrupts -------------------------------------------------------------------------------


def children() -> set[int]:
    """The processes that this one has started and that still run."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        found |= {int(n) for n in (task / "children").read_text().split()}
    return {child for child in found if _runs(child)}


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """A KeyboardInterrupt after some time, wherever the main thread is then."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class TestInterrupts:
    @pytest.fixture
    def model(self, tmp_path: Path) -> Path:
        """A model of two products whose tactics are worth measuring."""
        w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
        helper = onnx.helper
        graph = helper.make_graph(
            [
                helper.make_node("MatMul", ["x", "w"], ["a"]),
                helper.make_node("Softmax", ["a"], ["b"]),
                helper.make_node("MatMul", ["b", "w"], ["y"]),
            ],
            "g",
            [helper.make_tensor_value_info("x", 1, ["N", 64])],
            [helper.make_tensor_value_info("y", 1, ["N", 64])],
            [onnx.numpy_helper.from_array(w, "w")],
        )
        path = tmp_path / "model.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), path)
        return path

    def build(self, model: Path, progress: Callable[[ProgressEvent], None] | bool) -> Engine:
        return planish.build(
            model,
            tuning_seconds=0.3,
            timing_cache=model.with_name("timing.sqlite"),
            progress=progress,
        )

    def check(self, model: Path, before: set[int]) -> None:
        """Nothing is broken: it can be built, and gives what the reference does."""
        built = self.build(model, False)
        x = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
        want = interpret(built.plan.graph, {"x": x})[0]
        np.testing.assert_allclose(built(x), want, rtol=1e-4, atol=1e-5)
        assert built.report.tuning.host_steps == []
        with sqlite3.connect(model.with_name("timing.sqlite")) as database:
            assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        database.close()
        end = time.monotonic() + 30
        while not children() <= before:  # processes that compile end when nobody talks to them
            gc.collect()
            assert time.monotonic() < end
            time.sleep(0.02)
        assert not list(model.parent.glob("*.damaged*"))

    def test_at_every_stage(self, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Nothing is compiled before, so that processes that compile are among what is ended."""
        monkeypatch.setenv("PLANISH_CACHE", str(model.parent / "cache"))
        monkeypatch.setattr("planish.targets.cpu.target.cpu", CpuTarget)
        monkeypatch.setattr("planish.builder.find_target", lambda _: CpuTarget())
        before, stages = children(), []
        self.build(model, lambda event: stages.append(event.stage))
        every = list(dict.fromkeys(stages))
        assert {"import", "optimize", "tune"} <= set(every)
        for number, stage in enumerate(every):
            monkeypatch.setenv("PLANISH_CACHE", str(model.parent / f"cache{number}"))

            def interrupt(event: ProgressEvent, stage: str = stage) -> None:
                if event.stage == stage and (event.done or stage in ("import", "optimize")):
                    raise KeyboardInterrupt

            model.with_name("timing.sqlite").unlink(missing_ok=True)
            with suppress(KeyboardInterrupt):
                self.build(model, interrupt)
            self.check(model, before)

    def test_at_any_time(self, model: Path) -> None:
        """Later and later, until a build ends before its interrupt comes."""
        before, seconds = children(), 0.002
        self.build(model, False)  # compiles: the next ones are shorter
        while seconds < 20:
            model.with_name("timing.sqlite").unlink(missing_ok=True)
            try:
                with interrupted_after(seconds):
                    self.build(model, False)
                break
            except KeyboardInterrupt:
                seconds *= 1.7
        assert 0.002 < seconds < 20
        self.check(model, before)

    def test_an_engine_that_binds(self) -> None:
        """A shape whose binding was interrupted can be run by other threads, and by this one."""
        engine = build()
        interrupts = 0
        for size in range(3, 33):
            try:
                with interrupted_after(0.0002 * (size % 10) + 0.00005):
                    engine(batch(size))
            except KeyboardInterrupt:
                interrupts += 1
            with ThreadPoolExecutor(1) as other:
                result = other.submit(engine, batch(size)).result(timeout=60)
            np.testing.assert_array_equal(result, engine(batch(size)))
        assert interrupts


# ---- caches -----------------------------------------------------------------------------------

BUILD = """
import logging, sys, time
import numpy as np, planish
logging.basicConfig(format="%(levelname)s %(message)s")
x = np.ones((3, 8), np.float32)
for _ in range(int(sys.argv[2])):
    engine = planish.build(sys.argv[1], tuning_seconds=0.2, progress=False)
    (name, shape) = engine.inputs[0].name, engine.inputs[0].shape
    shape = [d if isinstance(d, int) else 3 for d in shape]
    assert (engine(np.full(shape, -1, np.float32)) == 0).all()
    assert (engine(np.full(shape, 2, np.float32)) == 2).all()
print("measured", engine.report.tuning.measured)
"""


def build_elsewhere(model: Path, cache: Path, times: int = 1) -> subprocess.Popen[str]:
    """Processes that build a model with caches in a folder, some times."""
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, str(model), str(times)],
        env={**os.environ, "PLANISH_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def relu_model(tmp_path: Path) -> Path:
    onnx.save(relu(), tmp_path / "relu.onnx")
    return tmp_path / "relu.onnx"


def finished(process: subprocess.Popen[str]) -> tuple[str, str]:
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return out, errors


def test_two_processes_share_the_caches(relu_model: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    processes = [build_elsewhere(relu_model, cache, 3) for _ in range(2)]
    for process in processes:
        _, errors = finished(process)
        assert "WARNING" not in errors
    with sqlite3.connect(cache / "timing.sqlite") as database:
        assert database.execute("pragma integrity_check").fetchone() == ("ok",)
    database.close()
    assert not [p for p in cache.rglob("*") if p.is_file() and "tmp" in p.name]
    assert finished(build_elsewhere(relu_model, cache))[0] == "measured 0\n"


@pytest.mark.parametrize("filled", [False, True])
def test_read_only_caches(relu_model: Path, tmp_path: Path, filled: bool) -> None:
    """Building and running go on, and each of the two caches says so once at most."""
    with small_disk(tmp_path / "disk", 4096) as disk:
        if filled:
            finished(build_elsewhere(relu_model, disk))
        make_read_only(disk)
        out, errors = finished(build_elsewhere(relu_model, disk, 3))
        assert (out == "measured 0\n") == filled
        lines = [line for line in errors.splitlines() if line.startswith("WARNING")]
        kernels = [line for line in lines if "kernel cache" in line]
        times = [line for line in lines if "timing cache" in line]
        assert len(kernels) == (0 if filled else 1), errors
        assert len(times) == 1, errors
        assert len(lines) == len(kernels) + len(times), errors
        assert "Traceback" not in errors
