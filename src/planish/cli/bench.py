"""``planish bench``: Planish beside other runtimes, in turns, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Annotated, Any

import typer

from planish.cli.console import Json, ThresholdMissedError, command, note, table
from planish.cli.models import DeviceCode, describe, open_engine, sizes
from planish.cli.options import BuildOptions, with_build_options
from planish.cli.shapes import parse_batches, parse_pairs
from planish.errors import InputError, PlanishError

if TYPE_CHECKING:
    from planish.cli.peers.process import PeerProcess
    from planish.runtime.engine import Engine

EPILOG = """Examples

planish bench saved_model/ --against tensorflow --batch 1,8

planish bench model.onnx --against onnxruntime,openvino --threads 2 --seconds 10

planish bench m.onnx --precision bf16 --against openvino-bf16

planish bench m.onnx --plan int8.plan --against fp32.plan

planish bench m.pb --plan m.plan --python-for openvino=/opt/ov/bin/python --max-ratio 1.0

The runtimes take turns (A B C A B C …), on the same inputs with the same number of threads, after a
warm-up; the ratio is Planish's median latency divided by theirs: below 1, Planish is faster."""

TURNS = 5
"""In so many turns each runtime's time is split."""

SUSPICIOUS = 1e-3
"""Outputs that differ by more, relative to their scale, are not the same computation."""

THREADS_ALL = os.cpu_count() or 1


@dataclass
class _Runner:
    """A runtime that takes part."""

    name: str
    process: PeerProcess
    times: list[float] = field(default_factory=list)


@command
@with_build_options()
def bench(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The model, as all runtimes read it.")
    ],
    against: Annotated[
        str,
        typer.Option(
            help="Runtimes to measure, and other plans, with commas; none: Planish alone."
        ),
    ] = "tensorflow,onnxruntime,openvino",
    batch: Annotated[
        str | None,
        typer.Option(help="Batch sizes, with commas; None: the model's own, or 1."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(min=0, help="Time for each runtime and batch size.")
    ] = 5.0,
    plan: Annotated[
        str | None, typer.Option(metavar="PLAN", help="A plan of this model; None: build one.")
    ] = None,
    python_for: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PEER=PYTHON",
            help="The Python of another environment in which a runtime (or tf2onnx) is installed.",
        ),
    ] = None,
    max_ratio: Annotated[
        float | None,
        typer.Option(help="Exit with 3 if Planish's latency by another's is above this."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random inputs.")] = 0,
    allow_device_code: DeviceCode = False,
    json_output: Json = False,
    *,
    options: BuildOptions,
) -> dict[str, Any]:
    """Measures latency beside TensorFlow, ONNX Runtime and OpenVINO (also in BF16 and INT8)."""
    peers, wanted = _peers(against), parse_batches(batch) if batch else []
    pythons = parse_pairs(python_for or [], "PEER=/path/to/python")
    threads = options.arguments["threads"] or THREADS_ALL
    with contextlib.ExitStack() as stack:
        engine = open_engine(plan or model, options, allow_device_code)
        batches = _batches(engine, wanted)
        trusted = allow_device_code or plan is None
        own = (plan or _keep(engine, stack), "trusted plan" if trusted else "plan")
        runners, left_out = _start(model, own, peers, pythons, threads, engine, stack)
        for peer, error in left_out.items():
            note(f"{peer} is left out: {error}")
        if max_ratio is not None and len(runners) == 1:
            raise InputError(
                "There is no runtime to compare with, so --max-ratio cannot be judged",
                cure="install one of those above",
            )
        rows = []
        for size in batches:
            rows += _measure(runners, engine, size, seconds, seed)
        result = {
            "model": model,
            "threads": threads,
            "machine": _machine(),
            "inputs": [describe(i) for i in engine.inputs],
            "results": rows,
            "left_out": {peer: str(error) for peer, error in left_out.items()},
        }
        engine.close()
    if not json_output:
        _show(rows, threads)
    if max_ratio is not None:
        worst = max((r for r in rows if r["ratio"] is not None), key=lambda r: r["ratio"])
        if worst["ratio"] > max_ratio:
            raise ThresholdMissedError(
                f"{worst['ratio']:.3f} of {worst['runtime']}'s latency at batch "
                f"{worst['batch']}, more than --max-ratio {max_ratio:g}",
                result,
            )
    return result


def _peers(text: str) -> list[str]:
    from planish.cli.peers.catalog import BENCHED

    names = [n.strip() for n in text.split(",") if n.strip() not in ("", "none")]
    for name in names:
        if name not in BENCHED and not _is_plan(name):
            known = ", ".join(BENCHED)
            raise typer.BadParameter(f"{name!r} is no runtime and no plan; known are {known}")
    return list(dict.fromkeys(names))


def _is_plan(peer: str) -> bool:
    return peer.endswith(".plan")


def _keep(engine: Engine, stack: contextlib.ExitStack) -> str:
    """Saves an engine for as long as the processes need it."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="planish-"))
    path = str(Path(folder) / "model.plan")
    engine.save(path)
    return path


def _start(
    model: str,
    plan: tuple[str, str],
    peers: Sequence[str],
    pythons: Mapping[str, str],
    threads: int,
    engine: Engine,
    stack: contextlib.ExitStack,
) -> tuple[list[_Runner], dict[str, PlanishError]]:
    """The processes with the model, or Planish's plan, open in them; why others are left out."""
    from planish.cli.peers.catalog import ModelFiles, PeerModel, runtime
    from planish.cli.peers.process import PeerProcess

    inputs = tuple(i.name for i in engine.inputs)
    outputs = tuple(o.name for o in engine.outputs)
    files = stack.enter_context(ModelFiles(model, inputs, outputs, pythons))
    runners, left_out = [], {}
    for name in ("planish", *peers):
        try:
            if name == "planish" or _is_plan(name):
                path, kind = plan if name == "planish" else (name, plan[1])
                source, program = PeerModel(path, kind, inputs, outputs), "planish"
            else:
                source, program = files.for_peer(name), name
            python = pythons.get(program, pythons.get(runtime(program)))
            process = PeerProcess(program, python=python, threads=threads)
            stack.enter_context(process)
            process.open(source.path, source.kind, source.inputs, source.outputs, threads)
        except PlanishError as error:
            if name == "planish":
                raise
            left_out[name] = error
        else:
            runners.append(_Runner(name, process))
    return runners, left_out


def _measure(
    runners: Sequence[_Runner], engine: Engine, batch: int, seconds: float, seed: int
) -> list[dict[str, Any]]:
    """One batch size: checks the outputs, then measures in turns."""
    from planish.cli.deviation import deviations

    arrays = list(_inputs(engine, batch, seed).values())
    results = {}
    for runner in runners:
        runner.times = []
        runner.process.feed(arrays)
        results[runner.name] = runner.process.run()
        runner.process.measure(0.0)
    names = ", ".join(runner.name for runner in runners)
    note(f"batch {batch}: {TURNS} turns of {names}, about {len(runners) * seconds:.0f} s")
    for _ in range(TURNS):
        for runner in runners:
            runner.times += runner.process.measure(seconds / TURNS)
    own = median(runners[0].times)
    outputs = [o.name for o in engine.outputs]
    rows = []
    for runner in runners:
        error = None
        if runner is not runners[0]:
            compared = deviations(outputs, results[runner.name], results[runners[0].name])
            error = max(d.relative for d in compared)
            if error > SUSPICIOUS:
                note(
                    f"the outputs of Planish and {runner.name} differ by {error:.2g} of their scale"
                )
        times = sorted(runner.times)
        rows.append(
            {
                "batch": batch,
                "runtime": runner.name,
                "version": runner.process.version,
                "milliseconds": median(times),
                "p10": times[len(times) // 10],
                "p90": times[(len(times) * 9) // 10],
                "runs": len(times),
                "ratio": own / median(times) if runner is not runners[0] else None,
                "deviation": error,
            }
        )
    return rows


def _batches(engine: Engine, wanted: Sequence[int]) -> Sequence[int]:
    """The batch sizes to measure at: those wanted, or the model's own.

    Raises
    ------
    InputError
        The model's batch is another, fixed one.
    """
    if _symbolic(engine):
        return wanted or [1]
    own = [int(str(i.shape[0])) for i in engine.inputs if i.shape][:1] or [1]
    for size in wanted:
        if size not in own:
            raise InputError(
                f"The model cannot run at batch {size}",
                where="--batch",
                why=f"its inputs are {', '.join(map(str, engine.inputs))}",
                cure=f"leave --batch out, or make it symbolic: --input {engine.inputs[0].name}=Nx…",
            )
    return own


def _symbolic(engine: Engine) -> set[str]:
    """The first dimensions of inputs that have names."""
    first = {str(i.shape[0]) for i in engine.inputs if i.shape}
    return {d for d in first if not d.isdigit()}


def _inputs(engine: Engine, batch: int, seed: int) -> dict[str, Any]:
    from planish.cli.arrays import read_inputs

    at = sizes(engine, dict.fromkeys(_symbolic(engine), batch))
    return read_inputs([], engine.inputs, at, seed)[0]


def _machine() -> str:
    """The processor, as the system calls it."""
    import platform

    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _show(rows: Sequence[Mapping[str, Any]], threads: int) -> None:
    table(
        [">batch", "runtime", "version", ">median ms", ">p10–p90", ">Planish / it", ">deviation"],
        [
            (
                row["batch"],
                row["runtime"],
                row["version"],
                f"{row['milliseconds']:.3f}",
                f"{row['p10']:.3f}–{row['p90']:.3f}",
                "-" if row["ratio"] is None else f"{row['ratio']:.3f}",
                "-" if row["deviation"] is None else f"{row['deviation']:.1e}",
            )
            for row in rows
        ],
        title=f"{_machine()}, {threads} thread{'s' if threads > 1 else ''}",
    )
