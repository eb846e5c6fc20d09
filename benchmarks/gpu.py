"""Planish on a GPU beside PyTorch, eager and compiled: builds, checks and times models in turns.

    python benchmarks/gpu.py --models resnet50,bert --batches 1,8,128 --precision fp16 --profile

Models are made on the fly (`gpu_models.py`). Every model and batch size is a process of its own, in
which all runners take turns (A B A B ...) on the same random inputs in device memory, several sets
of them, each run a replay of a CUDA graph. Three times are given: on the device alone, by events,
while more runs are queued; of a call that the host waits for; and from host to host, with the share
of it in which the GPU computes ("busy"). Every output is compared with PyTorch's in float32. Writes
``NAME.json`` with everything, machine and versions included, and ``NAME.md`` with the tables, after
each model.

Needs PyTorch, torchvision, transformers and onnxscript besides ``planish[cuda,onnx]``. It is not
called cuda.py, as that would be found in place of the package ``cuda``, which cuda-core brings.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gpu_layers

import planish

FOLDER = Path(__file__).parent
USUAL = (
    "resnet50,mobilenetv2,inceptionv3,vgg16,bert,densenet121,efficientnetb0,vit_b_16,"
    "ssd_mobilenetv3"
)
RUNNERS = ("planish", "torch", "compile", "compile-max", "xla")
PACKAGES = (
    "torch",
    "torchvision",
    "transformers",
    "jax",
    "triton",
    "cuda-core",
    "nvidia-cudnn-cu13",
    "nvidia-cudnn-frontend",
    "nvidia-cublas",
    "nvmath-python",
)


def versions() -> dict[str, str]:
    """What is installed of the packages that matter."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def gpu_name() -> str:
    """GPU and driver, as the driver's tool says."""
    command = ["nvidia-smi", "--query-gpu=name,driver_version,power.limit", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except OSError:
        return "none"
    lines = done.stdout.strip().splitlines()
    return lines[0] if lines else "none"


class Bench:
    """The models, one after the other, within a budget of seconds."""

    def __init__(self, arguments: argparse.Namespace, work: Path, output: Path) -> None:
        self.arguments, self.work, self.output = arguments, work, output
        self.deadline = time.monotonic() + arguments.budget
        self.about = {
            "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="minutes"),
            "device": arguments.device,
            "precision": arguments.precision,
            "gpu": gpu_name(),
            "processor": platform.processor() or platform.machine(),
            "python": platform.python_version(),
            "planish": planish.__version__,
            **versions(),
            "command": "python benchmarks/gpu.py " + " ".join(sys.argv[1:]),
        }
        self.results = earlier(output)

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.deadline - time.monotonic()

    def export(self, models: Sequence[str]) -> dict[str, str]:
        """Writes the models' files, all at the same time; the errors of those that fail."""
        start, processes, failed = time.monotonic(), {}, {}
        for model in models:
            if (self.work / f"{model}.onnx").exists() and (self.work / f"{model}.pt").exists():
                continue
            log = (self.work / f"{model}.export.log").open("w")
            command = [sys.executable, str(FOLDER / "gpu_models.py"), model, str(self.work)]
            processes[model] = subprocess.Popen(command, stdout=log, stderr=log), log
        for model, (process, log) in processes.items():
            try:
                status = process.wait(max(self.left, 1))
            except subprocess.TimeoutExpired:
                process.kill()
                status = process.wait()
            log.close()
            if status:
                failed[model] = "export failed: " + ending(Path(log.name))
        if processes:
            print(f"exported in {time.monotonic() - start:.0f} s", flush=True)
        return failed

    def run(self) -> None:
        """Measures all, writes after each."""
        arguments = self.arguments
        failed = self.export(arguments.models)
        for model in arguments.models:
            for batch in arguments.batches:
                if model in failed:
                    result: dict[str, Any] = {"failed": failed[model]}
                elif self.left < arguments.least:
                    result = {"failed": "no time was left"}
                else:
                    print(f"{model}, batch {batch}, {self.left:.0f} s left", flush=True)
                    result = self.one(model, batch)
                self.results.setdefault(model, {})[str(batch)] = result
                self.tell(model, batch, result)
                write(self.output, self.about, self.results)

    def one(self, model: str, batch: int) -> dict[str, Any]:
        """One model at one batch size; what became known before it failed, if it fails."""
        arguments = self.arguments
        folder = self.work / f"{model}-{batch}"
        folder.mkdir(exist_ok=True)
        job, result = folder / "job.json", folder / "result.json"
        result.unlink(missing_ok=True)
        asked = {
            "model": model,
            "batch": batch,
            "device": arguments.device,
            "precision": arguments.precision,
            "peers": arguments.peers,
            "seconds": arguments.seconds,
            "tuning_seconds": arguments.tuning_seconds,
            "profile": arguments.profile,
            "onnx": str(self.work / f"{model}.onnx"),
            "weights": str(self.work / f"{model}.pt"),
            "result": str(result),
        }
        job.write_text(json.dumps(asked))
        with tempfile.TemporaryDirectory(dir=folder) as cache:
            environment = os.environ | {"PLANISH_CACHE": cache}
            error = watched(
                [sys.executable, str(FOLDER / "gpu_one.py"), str(job)],
                environment,
                folder / "log",
                min(self.left, arguments.longest),
            )
        known: dict[str, Any] = json.loads(result.read_text()) if result.exists() else {}
        if error:
            known["failed"] = f"in the step {known.get('step', 'start')!r}: {error}"
        return known

    def tell(self, model: str, batch: int, result: dict[str, Any]) -> None:
        """Prints what was found."""
        print(speed({model: {str(batch): result}}), flush=True)
        print(engines({model: {str(batch): result}}), flush=True)
        if result.get("profile"):
            print(gpu_layers.table(result["profile"], self.arguments.layers), flush=True)
        for key in ("failed", "planish_error"):
            if key in result:
                print(f"{key}: {result[key]}", flush=True)


def watched(command: list[str], environment: dict[str, str], log: Path, limit: float) -> str:
    """Runs a process, shows its lines as they come, and gives its error, empty if there is none."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        end, shown = time.monotonic() + limit, 0
        while process.poll() is None and time.monotonic() < end:
            time.sleep(0.2)
            shown = show(log, shown)
        late = process.poll() is None
        if late:
            process.kill()
        status = process.wait()
    show(log, shown)
    if late:
        return f"stopped after {limit:.0f} s"
    return f"exit status {status}: {ending(log)}" if status else ""


def show(log: Path, shown: int) -> int:
    """Prints the complete indented lines of a log that were not shown; where it has come to."""
    with log.open("rb") as file:
        file.seek(shown)
        text = file.read()
    text = text[: text.rfind(b"\n") + 1]
    for line in text.decode(errors="replace").splitlines():
        if line.startswith("  ") and not line.startswith("   "):
            print(line, flush=True)
    return shown + len(text)


def ending(log: Path) -> str:
    """The end of a log."""
    return log.read_text(errors="replace")[-3000:].strip()


def speed(results: dict[str, Any]) -> str:
    """The times as a Markdown table, in milliseconds."""
    lines = [
        "| model | batch | runtime | on the device | p10 to p90 | Planish / it | call | "
        "host to host | busy | error | cosine |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model, batches in results.items():
        for batch, result in batches.items():
            times, checks = result.get("times", {}), result.get("checks", {})
            for name, row in times.items():
                ratio = ""
                if name != "planish" and "planish" in times:
                    ratio = f"{times['planish']['device_ms'] / row['device_ms']:.2f}"
                checked = checks.get(name, {})
                wrong = "" if checked.get("right") else " WRONG"
                lines.append(
                    f"| {model} | {batch} | {name} | {row['device_ms']:.4f} "
                    f"| {row['device_p10_ms']:.4f} to {row['device_p90_ms']:.4f} | {ratio} "
                    f"| {row['call_ms']:.3f} | {row['host_ms']:.3f} "
                    f"| {row['device_ms'] / row['host_ms']:.0%} "
                    f"| {checked.get('error', float('nan')):.1e}{wrong} "
                    f"| {checked.get('cosine', float('nan')):.6f} |"
                )
            for name in ("planish_error", *(f"{r} failed" for r in RUNNERS)):
                if name in result:
                    why = result[name].splitlines()[0].replace("|", "/")
                    lines.append(f"| {model} | {batch} | {name}: {why} | | | | | | | | |")
            if not times:
                why = str(result.get("failed", "")).splitlines()[-1:] or [""]
                lines.append(f"| {model} | {batch} | failed: {why[0]} | | | | | | | | |")
    return "\n".join(lines)


def engines(results: dict[str, Any]) -> str:
    """The engines as a Markdown table: seconds to build and load, layers, families, memory."""
    lines = [
        "| model | batch | build s | again | load s | first call | layers | host steps "
        "| measured | wrong | plan MB | device MB | layers by family |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for model, batches in results.items():
        for batch, result in batches.items():
            if "build_seconds" not in result:
                continue
            load = result.get("load", {})
            families = sorted(result["families"].items(), key=lambda f: -f[1])
            lines.append(
                f"| {model} | {batch} | {result['build_seconds']:.1f} "
                f"| {result.get('build_again_seconds', float('nan')):.1f} "
                f"| {load.get('load_seconds', float('nan')):.2f} "
                f"| {load.get('first_call_seconds', float('nan')):.2f} "
                f"| {result['layers']} | {len(result['host_steps'])} | {result['measured']} "
                f"| {result['rejected']} | {result.get('plan_megabytes', 0):.0f} "
                f"| {load.get('megabytes', 0):.0f} "
                f"| {', '.join(f'{name} {count}' for name, count in families)} |"
            )
    return "\n".join(lines)


def write(output: Path, about: dict[str, str], results: dict[str, Any]) -> None:
    """Writes what is known so far as JSON and as Markdown tables."""
    output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about, "models": results}, indent=1)
    output.with_suffix(".json").write_text(text + "\n")
    head = [f"{key}: {value}  " for key, value in about.items()]
    page = [*head, "", "Milliseconds.", "", speed(results), "", engines(results), ""]
    output.with_suffix(".md").write_text("\n".join(page))


def earlier(output: Path) -> dict[str, Any]:
    """The results that the file already holds: models can be measured one after the other."""
    file = output.with_suffix(".json")
    return json.loads(file.read_text())["models"] if file.exists() else {}


def names(text: str) -> list[str]:
    """A list with commas."""
    return [name.strip() for name in text.split(",") if name.strip() not in ("", "none")]


def main() -> None:
    """Measures all models and batch sizes, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--models", type=names, default=names(USUAL))
    parser.add_argument("--batches", type=lambda t: [int(n) for n in names(t)], default=[1, 8, 128])
    parser.add_argument("--precision", default="fp16", choices=["fp32", "tf32", "fp16", "bf16"])
    parser.add_argument("--device", default="cuda:0", help='"cpu" only to try the script')
    parser.add_argument(
        "--peers",
        type=names,
        default=["torch", "compile"],
        help="of torch, compile, compile-max, xla (ResNet-50), with commas; none: Planish alone",
    )
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing, model and batch")
    parser.add_argument("--tuning-seconds", type=float, help="of tuning; None: Planish's default")
    parser.add_argument("--profile", action="store_true", help="also time layer by layer")
    parser.add_argument("--layers", type=int, default=25, help="layers of a profile to print")
    parser.add_argument("--budget", type=float, default=560.0, help="seconds for everything")
    parser.add_argument("--longest", type=float, default=300.0, help="for a model and batch")
    parser.add_argument(
        "--least", type=float, default=30.0, help="seconds that must be left to begin with another"
    )
    parser.add_argument("--work", type=Path, help="folder of the models' files; None: temporary")
    parser.add_argument("-o", "--output", type=Path, help="results, without a suffix")
    arguments = parser.parse_args()
    folder = Path(os.environ.get("OUT") or FOLDER / "results")
    kind = arguments.device.partition(":")[0]
    today = datetime.date.today().isoformat()
    output = arguments.output or folder / f"{kind}_{arguments.precision}_{today}"
    with contextlib.ExitStack() as stack:
        work = arguments.work
        if work is None:
            work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="planish-")))
        work.mkdir(parents=True, exist_ok=True)
        Bench(arguments, work.resolve(), output).run()


if __name__ == "__main__":
    main()
