"""One model at one batch size, in a process of its own: `gpu.py` starts it with a job as JSON.

    build cold ─▶ build with the timing cache ─▶ load in a new process ─▶ check ─▶ time in turns

What is known so far is written to the job's result file after every step: a step that fails, or a
kernel that takes the process with it, loses nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import gpu_layers
import gpu_models
import gpu_peers
import gpu_xla
import numpy as np
import torch

SETS = 4
"""Sets of inputs and outputs in turn: as many as an engine keeps CUDA graphs for."""

TOLERANCE = {"fp32": 1e-3, "tf32": 5e-3, "fp16": 2e-2, "bf16": 5e-2}
"""Largest error, as a share of the largest magnitude of the output."""

COSINE = 0.999

TURN_SECONDS = 0.1
"""Time of a runner's turn, roughly."""

CYCLES_PER_SECOND = 2e9
"""At most so many cycles of the GPU: how long it spins while the host queues a turn."""


class Job:
    """What to do, and what is known so far."""

    def __init__(self, path: Path) -> None:
        self.asked: dict[str, Any] = json.loads(path.read_text())
        self.known: dict[str, Any] = {}
        self._result = Path(self.asked["result"])

    def note(self, **facts: Any) -> None:
        """Adds facts and writes all that is known."""
        self.known.update(facts)
        temporary = self._result.with_suffix(".new")
        temporary.write_text(json.dumps(self.known))
        os.replace(temporary, self._result)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step by name: the one that an error, or the end of the process, happened in."""
        self.note(step=name)
        start = time.perf_counter()
        yield
        print(f"  {name}: {time.perf_counter() - start:.1f} s", flush=True)


class Clock:
    """Times launches: with events on a GPU, which spins until all are queued."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def wait(self) -> None:
        """Waits for the device."""
        if self.stream is not None:
            self.stream.synchronize()

    def hold(self, seconds: float) -> None:
        """Keeps the device busy for at least so long."""
        if self.stream is not None:
            torch.cuda._sleep(int(CYCLES_PER_SECOND * (seconds + 1e-3)))

    def between(self) -> float:
        """Seconds between two events with nothing in between."""
        return median(self.runs(lambda i: None, 50, 1e-5))

    def queueing(self, launch: Callable[[int], None], count: int) -> float:
        """Seconds that the host needs to queue a run."""
        self.wait()
        start = time.perf_counter()
        for i in range(count):
            launch(i % SETS)
        seconds = (time.perf_counter() - start) / count
        self.wait()
        return seconds

    def calls(self, launch: Callable[[int], None], count: int) -> list[float]:
        """Seconds of each of so many runs that the host waits for."""
        times = []
        for i in range(count):
            start = time.perf_counter()
            launch(i % SETS)
            self.wait()
            times.append(time.perf_counter() - start)
        return times

    def runs(self, launch: Callable[[int], None], count: int, queueing: float) -> list[float]:
        """Seconds of each of so many runs on the device alone."""
        if self.stream is None:
            return self.calls(launch, count)
        events = [[torch.cuda.Event(enable_timing=True) for _ in "se"] for _ in range(count)]
        self.hold(1.5 * queueing * count)
        for i, (start, end) in enumerate(events):
            start.record(self.stream)
            launch(i % SETS)
            end.record(self.stream)
        self.wait()
        return [start.elapsed_time(end) / 1e3 for start, end in events]


def build(job: Job, model: gpu_models.Model) -> Any:
    """The engine: built with empty caches, and again with what the first build left."""
    import planish

    asked = job.asked
    inputs = {name: (asked["batch"], *i.shape) for name, i in model.inputs.items()}

    def once() -> tuple[Any, float]:
        start = time.perf_counter()
        engine = planish.build(
            asked["onnx"],
            inputs=inputs,
            device=asked["device"],
            precision=asked["precision"],
            tuning_seconds=asked["tuning_seconds"],
            progress=False,
        )
        return engine, time.perf_counter() - start

    engine, cold = once()
    report = engine.report
    job.note(
        build_seconds=cold,
        build_stages=report.seconds,
        measured=report.tuning.measured,
        rejected=report.tuning.rejected,
        tuned_completely=report.tuning.complete,
        layers=len(engine.layers()),
        lowered=getattr(report, "lowered", 0),
        kept_in_fp32=getattr(report, "kept_in_fp32", {}),
        host_steps=engine.host_steps(),
        reasons=report.fallbacks,
        families=Counter(
            step.choices[0].tactic.family if step.choices else "none" for step in engine.plan.steps
        ),
    )
    again, warm = once()
    again.close()
    job.note(build_again_seconds=warm)
    return engine


def load(job: Job, engine: Any, inputs: Sequence[torch.Tensor]) -> None:
    """Loads the plan in a new process without PyTorch."""
    folder = Path(job.asked["result"]).parent
    plan, arrays = folder / "model.plan", folder / "inputs.npz"
    engine.save(plan)
    names = [info.name for info in engine.inputs]
    np.savez(arrays, **dict(zip(names, (t.cpu().numpy() for t in inputs), strict=True)))
    script = Path(__file__).with_name("gpu_load.py")
    done = subprocess.run(
        [sys.executable, str(script), str(plan), str(arrays), job.asked["device"]],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        job.note(load={"error": done.stderr[-2000:]})
    else:
        job.note(load=json.loads(done.stdout.splitlines()[-1]))
    job.note(plan_megabytes=plan.stat().st_size / 1e6)
    plan.unlink()
    arrays.unlink()


def expected(module: Any, sets: Sequence[gpu_peers.Inputs]) -> list[list[torch.Tensor]]:
    """The outputs of every set by PyTorch in float32."""
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    results = [gpu_peers.as_list(module(*inputs)) for inputs in sets]
    return [[r.clone() for r in result] for result in results]


def errors(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> dict[str, Any]:
    """The largest error by the output's scale, the smallest cosine, and whether all is finite."""
    worst, cosine, finite = 0.0, 1.0, True
    for y, r in zip(found, wanted, strict=True):
        if y.shape != r.shape:
            raise ValueError(f"the output has shape {tuple(y.shape)}, not {tuple(r.shape)}")
        y, r = y.double().flatten(), r.double().flatten()
        finite &= bool(torch.isfinite(y).all())
        worst = max(worst, float((y - r).abs().max() / r.abs().max()))
        cosine = min(cosine, float(y @ r / (y.norm() * r.norm())))
    return {"error": worst, "cosine": cosine, "finite": finite}


def check(
    runner: gpu_peers.Runner, wanted: Sequence[Sequence[torch.Tensor]], precision: str, wait: Any
) -> dict[str, Any]:
    """Runs all sets on poisoned outputs and compares; the worst of them."""
    found = []
    for number, references in enumerate(wanted):
        for tensor in runner.outputs(number):
            tensor.fill_(float("nan"))
        runner.launch(number)
        wait()
        found.append(errors(runner.outputs(number), references))
    worst: dict[str, Any] = {
        "error": max(f["error"] for f in found),
        "cosine": min(f["cosine"] for f in found),
        "finite": all(f["finite"] for f in found),
    }
    worst["right"] = (
        worst["finite"] and worst["error"] <= TOLERANCE[precision] and worst["cosine"] > COSINE
    )
    return worst


def ready(
    job: Job,
    engine: Any,
    module: Any,
    sets: Sequence[gpu_peers.Inputs],
    wanted: Sequence[Sequence[torch.Tensor]],
    clock: Clock,
) -> list[gpu_peers.Runner]:
    """Whoever takes part, made ready and checked; what cannot run is noted and left out."""
    precision = job.asked["precision"]
    makers: dict[str, Callable[[], gpu_peers.Runner]] = {}
    if engine is not None:
        makers["planish"] = lambda: gpu_peers.PlanishRunner(engine, sets, clock.stream)
    for name in job.asked["peers"]:
        if name == "xla":
            if job.asked["model"] in gpu_xla.NETWORKS:
                makers[name] = lambda: gpu_xla.XlaRunner(
                    job.asked["model"], module, precision, sets
                )
            continue
        makers[name] = lambda name=name: gpu_peers.TorchRunner(  # type: ignore[misc]
            name, module, precision, sets, clock.stream
        )
    taking_part, checks = [], {}
    for name, make in makers.items():
        try:
            with job.step(name):
                runner = make()
                checks[name] = check(runner, wanted, precision, clock.wait)
        except Exception as error:
            job.note(**{f"{name} failed": text(error)})
            tell(name, error)
            continue
        job.note(checks=checks)
        taking_part.append(runner)
    return taking_part


def tell(what: str, error: Exception) -> None:
    """Prints an error: a line for `gpu.py` to show, and where it came from."""
    print(f"  {what} failed: {text(error)}", flush=True)
    traceback.print_exception(error)


def text(error: BaseException) -> str:
    """An error in at most a few lines."""
    return f"{type(error).__name__}: {error}"[:2000]


def measure(
    job: Job,
    taking_part: Sequence[gpu_peers.Runner],
    arrays: Sequence[np.ndarray],
    clock: Clock,
    seconds: float,
) -> None:
    """Times all in turns until the time is spent: on the device, as calls, from host to host."""
    queueing, counts = {}, {}
    times: dict[str, dict[str, list[float]]] = {}
    for runner in taking_part:
        clock.calls(runner.launch, SETS)
        queueing[runner.name] = clock.queueing(runner.launch, 8)
        each = median(clock.calls(runner.launch, 5))
        counts[runner.name] = int(min(max(TURN_SECONDS / each, 4), 200))
        times[runner.name] = {"device": [], "call": [], "host": []}
    start, turns = time.perf_counter(), 0
    while turns < 3 or time.perf_counter() - start < seconds:
        for runner in taking_part:
            count, found = counts[runner.name], times[runner.name]
            clock.calls(runner.launch, 2)
            found["device"] += runner.runs(clock, count, queueing[runner.name])
            found["call"] += clock.calls(runner.launch, max(count // 4, 3))
            for _ in range(3 if turns else 1):
                begin = time.perf_counter()
                runner.on_host(arrays)
                if turns:
                    found["host"].append(time.perf_counter() - begin)
        turns += 1
    summary = {}
    for runner in taking_part:
        found = times[runner.name]
        summary[runner.name] = {
            f"{kind}_ms": 1e3 * median(values) for kind, values in found.items()
        } | {
            "device_p10_ms": 1e3 * float(np.percentile(found["device"], 10)),
            "device_p90_ms": 1e3 * float(np.percentile(found["device"], 90)),
            "runs": len(found["device"]),
            "queueing_ms": 1e3 * queueing[runner.name],
            "ready_seconds": runner.seconds,
        }
    job.note(turns=turns, times=summary)


def run(job: Job) -> None:
    """All steps."""
    asked = job.asked
    model = gpu_models.MODELS[asked["model"]]
    on_gpu = asked["device"].startswith("cuda")
    device = torch.device(asked["device"])
    stream = torch.cuda.Stream() if on_gpu else None
    clock = Clock(stream)
    torch.backends.cudnn.benchmark = True
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if stream is not None:
            stack.enter_context(torch.cuda.stream(stream))
        sets = [
            [t.to(device) for t in gpu_models.samples(model, asked["batch"], seed=10 + i)]
            for i in range(SETS)
        ]
        arrays = [t.cpu().numpy() for t in sets[0]]
        engine = None
        try:
            with job.step("build"):
                engine = build(job, model)
            with job.step("load"):
                load(job, engine, sets[0])
        except Exception as error:
            job.note(planish_error=text(error))
            tell("planish", error)
        with job.step("reference"):
            module = gpu_models.create(asked["model"], Path(asked["weights"])).to(device)
            wanted = expected(module, sets)
            different = errors(wanted[1], wanted[0])["error"]
            job.note(inputs_matter=different)
        if asked["precision"] == "tf32":
            torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = True
        taking_part = ready(job, engine, module, sets, wanted, clock)
        with job.step("timing"):
            measure(job, taking_part, arrays, clock, asked["seconds"])
        if asked["profile"] and taking_part and taking_part[0].name == "planish":
            with job.step("profile"):
                planish: Any = taking_part[0]
                job.note(profile=gpu_layers.profile(engine, planish, clock))
        for runner in taking_part[:1]:
            with job.step("check again"):
                again = check(runner, wanted, asked["precision"], clock.wait)
                job.note(checks=job.known["checks"] | {f"{runner.name} again": again})
    job.note(step="done")


if __name__ == "__main__":
    run(Job(Path(sys.argv[1])))
