"""INT8 and FP8 beside FP16 on a GPU: all built by Planish, checked, and timed in turns.

    python benchmarks/gpu_int8.py --models resnet50,bert --batches 1,8,128

The models are those of `gpu.py`, with random weights; their ranges are calibrated on random inputs,
on the CPU, once per model, or made up (``--made-up``: for speed). INT8 is what
``precision={"int8", "fp16"}`` gives: each layer in what is faster, conversions counted.
``--all-int8`` adds ``precision="int8"`` (INT8 and FP32) beside it, ``--fp8``
``precision={"fp8", "fp16"}``. Outputs are compared with FP16's: how well the others do on trained
networks is another question (`gpu_accuracy.py`, `gpu_sentences.py`). Writes
``NAME.json`` and ``NAME.md`` after each model and batch.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import median
from typing import Any

import gpu
import gpu_models
import gpu_one
import gpu_peers
import numpy as np
import torch

import planish
from planish.quantization import MinMaxCalibrator, calibrate_model
from planish.quantization.calibration import DUMMY

SETS = gpu_one.SETS
CALIBRATION = 8
"""Random inputs that ranges are from."""

PRECISIONS: dict[str, Any] = {
    "fp16": "fp16",
    "int8": {"int8", "fp16"},
    "int8 or fp32": "int8",
    "fp8": {"fp8", "fp16"},
}


def ranges_of(name: str, onnx: Path) -> Any:
    """The ranges of a model's tensors."""
    model = gpu_models.MODELS[name]
    samples = gpu_models.samples(model, CALIBRATION, seed=3)
    data = dict(zip(model.inputs, (t.numpy() for t in samples), strict=True))
    shapes = {n: (CALIBRATION, *i.shape) for n, i in model.inputs.items()}
    return calibrate_model(onnx, MinMaxCalibrator([data]), inputs=shapes, progress=False)


def built(job: argparse.Namespace, name: str, onnx: Path, batch: int, how: str, ranges: Any) -> Any:
    """An engine, and what its build tells."""
    inputs = {n: (batch, *i.shape) for n, i in gpu_models.MODELS[name].inputs.items()}
    start = time.perf_counter()
    engine = planish.build(
        onnx,
        inputs=inputs,
        device=job.device,
        precision=PRECISIONS[how],
        calibration=ranges if how != "fp16" else None,
        tuning_seconds=job.tuning_seconds * (1 if how == "fp16" else 2),  # INT8 tunes both
        progress=False,
    )
    rows = engine.layers()
    known = {
        "build_seconds": time.perf_counter() - start,
        "measured": engine.report.tuning.measured,
        "rejected": engine.report.tuning.rejected,
        "complete": engine.report.tuning.complete,
        "layers": len(rows),
        "quantized": len(engine.report.quantized),
        "kept": engine.report.not_quantized if how != "fp16" else {},
        "families": Counter(row["tactic"].split("(")[0] for row in rows),
        "int8_families": Counter(
            row["tactic"].split("(")[0] for row in rows if row["precision"] in ("int8", "fp8")
        ),
        "sum_ms": sum(row["microseconds"] or 0 for row in rows) / 1e3,
        "unmeasured": sum(row["microseconds"] is None for row in rows),
        "host_steps": engine.host_steps(),
        "rows": [
            {k: row[k] for k in ("name", "op", "tactic", "precision", "output", "microseconds")}
            for row in rows
        ],
    }
    return engine, known


def one(job: argparse.Namespace, name: str, onnx: Path, batch: int, ranges: Any) -> dict[str, Any]:
    """A model at a batch size: its engines, checked and timed in turns."""
    result: dict[str, Any] = {}
    stream = torch.cuda.Stream()
    clock = gpu_one.Clock(stream)
    with torch.no_grad(), torch.cuda.stream(stream):
        model = gpu_models.MODELS[name]
        sets = [
            [t.cuda() for t in gpu_models.samples(model, batch, seed=10 + i)] for i in range(SETS)
        ]
        runners: dict[str, gpu_peers.PlanishRunner] = {}
        for how in job.precisions:
            engine, result[how] = built(job, name, onnx, batch, how, ranges)
            runners[how] = gpu_peers.PlanishRunner(engine, sets, stream)
            told = {k: v for k, v in result[how].items() if k not in ("rows", "kept")}
            print(f"  {how}: {json.dumps(told)}", flush=True)
        wanted = None
        for how, runner in runners.items():
            for tensor in runner.outputs(0):
                tensor.fill_(float("nan"))
            runner.launch(0)
            clock.wait()
            found = [t.clone() for t in runner.outputs(0)]
            wanted = wanted or found
            result[how] |= gpu_one.errors(found, wanted)
        times = turns(runners, clock, job.seconds)
        for how, measured in times.items():
            low, high = np.percentile(measured, [10, 90])
            result[how] |= {
                "ms": 1e3 * median(measured),
                "p10_ms": 1e3 * float(low),
                "p90_ms": 1e3 * float(high),
            }
    return result


def turns(runners: dict[str, Any], clock: Any, seconds: float) -> dict[str, list[float]]:
    """Seconds of runs on the device alone, everybody in turns."""
    times: dict[str, list[float]] = {how: [] for how in runners}
    queueing = {how: clock.queueing(r.launch, 8) for how, r in runners.items()}
    each = {how: median(clock.calls(r.launch, 5)) for how, r in runners.items()}
    start, turn = time.perf_counter(), 0
    while turn < 3 or time.perf_counter() - start < seconds:
        for how, runner in runners.items():
            count = int(min(max(gpu_one.TURN_SECONDS / each[how], 4), 200))
            clock.calls(runner.launch, 2)
            times[how] += clock.runs(runner.launch, count, queueing[how])
        turn += 1
    return times


def table(results: dict[str, Any]) -> str:
    """All results as a Markdown table."""
    lines = [
        "| model | batch | precision | ms on the device | p10 to p90 | to FP16 | quantized "
        "| layers | sum of layers, ms | cosine to FP16's | measured | wrong | built in s "
        "| INT8 layers by |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model, batches in results.items():
        for batch, result in batches.items():
            if "failed" in result:
                lines.append(f"| {model} | {batch} | failed: {result['failed']} |" + " |" * 11)
                continue
            for how, row in result.items():
                ratio = f"{row['ms'] / result['fp16']['ms']:.2f}" if "fp16" in result else ""
                families = ", ".join(f"{n} {c}" for n, c in sorted(row["int8_families"].items()))
                lines.append(
                    f"| {model} | {batch} | {how} | {row['ms']:.4f} | {row['p10_ms']:.4f} to "
                    f"{row['p90_ms']:.4f} | {ratio} | {row['quantized']} | {row['layers']} "
                    f"| {row['sum_ms']:.4f}{' +?' * bool(row['unmeasured'])} "
                    f"| {row['cosine']:.5f}{'' if row['finite'] else ' NOT FINITE'} "
                    f"| {row['measured']} | {row['rejected']} | {row['build_seconds']:.0f} "
                    f"| {families} |"
                )
    return "\n".join(lines)


def write(output: Path, about: dict[str, str], results: dict[str, Any]) -> None:
    """Writes what is known so far."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.with_suffix(".json").write_text(json.dumps({**about, "models": results}, indent=1))
    head = [f"{key}: {value}  " for key, value in about.items()]
    output.with_suffix(".md").write_text("\n".join([*head, "", table(results), ""]))


def main() -> None:
    """Measures models and batch sizes one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=gpu.names, default=gpu.names("resnet50,mobilenetv2"))
    parser.add_argument("--batches", type=lambda t: list(map(int, gpu.names(t))), default=[128])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seconds", type=float, default=1.5, help="of timing")
    parser.add_argument("--tuning-seconds", type=float, default=20.0, help="of FP16, and of INT8")
    parser.add_argument("--all-int8", action="store_true", help="also without FP16")
    parser.add_argument("--fp8", action="store_true", help="also FP8 with FP16")
    parser.add_argument("--made-up", action="store_true", help="ranges that nobody measured")
    parser.add_argument("--budget", type=float, default=540.0, help="seconds for everything")
    parser.add_argument("--least", type=float, default=60.0, help="to begin with another")
    parser.add_argument("--work", type=Path, help="folder of the models' files; None: temporary")
    parser.add_argument("-o", "--output", type=Path, help="results, without a suffix")
    job = parser.parse_args()
    more = {"int8 or fp32": job.all_int8, "fp8": job.fp8}
    job.precisions = ["fp16", "int8", *(name for name, asked in more.items() if asked)]
    today = datetime.date.today().isoformat()
    folder = Path(os.environ.get("OUT") or Path(__file__).parent / "results")
    output = job.output or folder / f"cuda_int8_{today}"
    job.peers, job.precision = [], "int8"
    with contextlib.ExitStack() as stack:
        work = job.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planish-")))
        work.mkdir(parents=True, exist_ok=True)
        bench = gpu.Bench(job, work.resolve(), output)
        about = bench.about | {
            "command": "python benchmarks/gpu_int8.py " + " ".join(sys.argv[1:]),
            "calibration": DUMMY if job.made_up else f"{CALIBRATION} random inputs, min-max",
        }
        failed = bench.export(job.models)
        results: dict[str, Any] = gpu.earlier(output)
        for name in job.models:
            ranges = None
            for batch in job.batches:
                onnx = work / f"{name}.onnx"
                print(f"{name}, batch {batch}, {bench.left:.0f} s left", flush=True)
                try:
                    if name in failed or bench.left < job.least:
                        raise RuntimeError(failed.get(name, "no time was left")[-300:])
                    ranges = ranges or (DUMMY if job.made_up else ranges_of(name, onnx))
                    found = one(job, name, onnx, batch, ranges)
                except Exception as error:
                    gpu_one.tell(f"{name} {batch}", error)
                    found = {"failed": gpu_one.text(error).splitlines()[0]}
                results.setdefault(name, {})[str(batch)] = found
                write(output, about, results)
                print(table({name: {str(batch): found}}), flush=True)


if __name__ == "__main__":
    main()
