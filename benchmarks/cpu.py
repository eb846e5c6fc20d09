"""Latency of Planish on CPUs beside TensorFlow, ONNX Runtime and OpenVINO, many models in one run.

    python benchmarks/cpu.py                         # the models below, at batch 1 and 8
    python benchmarks/cpu.py ResNet50 model.onnx --batch 1 -o results/NAME
    python benchmarks/cpu.py --precision bf16        # or int8: beside OpenVINO in these, too

A model is a file, or the name of one of Keras' applications, which is made with random weights.
Runtimes that are not named with ``--python-for`` are installed once, each in an environment of its
own. Every model is measured by ``planish bench``: every runtime in a process of its own, taking
turns (A B A B ...) on the same inputs and threads. Writes ``NAME.json`` with everything (machine,
versions and date included) and ``NAME.md`` with the table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

PACKAGES = {
    "tensorflow": ["tensorflow-cpu"],
    "onnxruntime": ["onnxruntime"],
    "openvino": ["openvino", "nncf"],
    "tf2onnx": ["tf2onnx", "tensorflow-cpu", "onnx"],
}
"""What is installed for each runtime; tf2onnx makes of TensorFlow's models what ONNX Runtime
reads."""

AGAINST = {
    "fp32": "tensorflow,onnxruntime,openvino",
    "bf16": "openvino,openvino-bf16",
    "int8": "tensorflow,openvino,openvino-bf16,openvino-int8",
}
"""Runtimes that are measured, by the precision that Planish is permitted."""

GOALS = {
    "fp32": {
        "VGG16": 0.60,
        "ResNet50": 0.85,
        "InceptionV3": 0.95,
        "DenseNet121": 0.95,
        "MobileNetV2": 0.90,
        "EfficientNetB0": 0.90,
        "NASNetMobile": 0.90,
    },
    "bf16": {
        "VGG16": 1.0,
        "ResNet50": 1.0,
        "InceptionV3": 1.0,
        "MobileNetV2": 0.90,
        "EfficientNetB0": 0.90,
        "NASNetMobile": 0.90,
    },
    "int8": {"VGG16": 1.0, "ResNet50": 0.95, "InceptionV3": 1.0, "MobileNetV2": 0.90},
}
"""The models measured by default, and the ratio to the best of the others that is aimed at."""

MAKE = """
import sys
import numpy as np
import tensorflow as tf
model = getattr(tf.keras.applications, sys.argv[1])(weights=None)
shape = model.inputs[0].shape[1:]
model.export(sys.argv[2], input_signature=[tf.TensorSpec((None, *shape), tf.float32, name="x")])
np.savez(sys.argv[2] + "/calibration.npz", x=np.random.default_rng(0).random((8, *shape), "f4"))
"""
"""A SavedModel of one of Keras' applications, and images of noise to calibrate it with."""


class Environments:
    """Pythons that have the runtimes: those the user named, and others installed here."""

    def __init__(self, folder: Path, named: Sequence[str]) -> None:
        self._folder = folder
        self._pythons = dict(pair.split("=", 1) for pair in named)

    def python(self, runtime: str) -> str:
        """The Python of a runtime, installed first where it is not there."""
        if runtime not in self._pythons:
            python = self._folder / runtime / "bin" / "python"
            if not python.exists():
                print(f"installing {runtime} in {python.parent.parent} ...", flush=True)
                subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
                install = [python, "-m", "pip", "install", "-q", *PACKAGES[runtime]]
                subprocess.run(install, check=True)
            self._pythons[runtime] = str(python)
        return self._pythons[runtime]

    def model(self, given: str) -> Path:
        """The file or folder of a model; Keras' applications are made on first use."""
        if Path(given).exists():
            return Path(given)
        made = self._folder / "models" / given
        if not made.exists():
            print(f"making {given} ...", flush=True)
            command = [self.python("tensorflow"), "-c", MAKE, given, str(made)]
            subprocess.run(command, check=True, capture_output=True)
        return made


def measure(
    model: Path, environments: Environments, arguments: argparse.Namespace
) -> dict[str, Any]:
    """What ``planish bench`` says about a model; its error text if it fails."""
    command = [sys.executable, "-m", "planish", "bench", str(model), "--json"]
    command += ["--against", arguments.against, "--batch", arguments.batch]
    command += ["--seconds", str(arguments.seconds), "--precision", arguments.precision]
    if "int8" in arguments.precision:
        command += ["--calibration", str(arguments.calibration or model / "calibration.npz")]
    plan = arguments.plans and arguments.plans / f"{model.stem}.plan"
    if plan and plan.exists():
        command += ["--plan", str(plan)]
    helpers = ["tf2onnx"] if model.suffix != ".onnx" and "onnxruntime" in arguments.against else []
    runtimes = {peer.partition("-")[0] for peer in arguments.against.split(",") if peer}
    for runtime in sorted({*runtimes, *helpers}):
        command += ["--python-for", f"{runtime}={environments.python(runtime)}"]
    for shape in arguments.input:
        command += ["--input", shape]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        result: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"error": (done.stderr or done.stdout)[-2000:]}
    if "error" in result:
        return {"error": "{what} ({why})".format(**result["error"])}
    return result


def table(results: dict[str, Any], goals: Mapping[str, float]) -> str:
    """The results as a Markdown table: medians in milliseconds, ratios, and goals met or missed."""
    lines = [
        "| model | batch | runtime | median ms | p10 | Planish / it | goal |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, result in results.items():
        if "error" in result:
            lines.append(f"| {model} | | failed: {result['error'].splitlines()[-1]} | | | | |")
            continue
        for row in result["results"]:
            beside = [r for r in result["results"] if r["batch"] == row["batch"] and r["ratio"]]
            hardest = max((r["ratio"] for r in beside), default=None)
            ratio, goal = row["ratio"], ""
            if ratio is not None and ratio == hardest and model in goals:
                goal = f"{goals[model]:.2f}" + (", met" if ratio <= goals[model] else "")
            lines.append(
                f"| {model} | {row['batch']} | {row['runtime']} | {row['milliseconds']:.3f} "
                f"| {row['p10']:.3f} | {'' if ratio is None else f'{ratio:.2f}'} | {goal} |"
            )
    return "\n".join(lines)


def write(
    output: Path, about: dict[str, str], results: dict[str, Any], goals: Mapping[str, float]
) -> None:
    """Writes what is known so far as JSON and as a Markdown table."""
    text = json.dumps({**about, "models": results}, indent=1)
    output.with_suffix(".json").write_text(text + "\n")
    head = [f"{key}: {value}  " for key, value in about.items()]
    output.with_suffix(".md").write_text("\n".join([*head, "", table(results, goals), ""]))


def earlier(output: Path) -> dict[str, Any]:
    """The results that the file already holds: models can be measured one after the other."""
    file = output.with_suffix(".json")
    return json.loads(file.read_text())["models"] if file.exists() else {}


def machine() -> str:
    """The processor, its instruction set and the number of cores that are used."""
    from planish.targets.cpu.machine import host

    here = host()
    return f"{here.model}, {here.isa}, {here.cores} cores"


def main() -> None:
    """Measures all models, one after the other."""
    today = datetime.date.today().isoformat()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("models", nargs="*")
    parser.add_argument("--precision", default="fp32", help="fp32, bf16, int8")
    parser.add_argument("--calibration", type=Path, help="with int8, for models of your own")
    parser.add_argument("--against", help="runtimes, with commas (default: by the precision)")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--input", action="append", default=[], metavar="NAME=SHAPE")
    parser.add_argument("--python-for", action="append", default=[], metavar="RUNTIME=PYTHON")
    parser.add_argument("--plans", type=Path, help="a folder of plans, used where it has NAME.plan")
    parser.add_argument(
        "--environments", type=Path, default=Path.home() / ".cache" / "planish-benchmarks"
    )
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    precision, goals = arguments.precision, GOALS.get(arguments.precision, {})
    arguments.models = arguments.models or list(goals)
    if arguments.against is None:
        arguments.against = AGAINST.get(precision, AGAINST["fp32"])
    output = arguments.output or HERE / "results" / f"cpu_{precision}_{today}"
    command = ["python", "benchmarks/cpu.py", *(Path(m).name for m in arguments.models)]
    command += ["--precision", precision, "--against", arguments.against]
    command += ["--batch", arguments.batch, "--seconds", str(arguments.seconds)]
    about = {
        "date": today,
        "machine": machine(),
        "python": platform.python_version(),
        "command": shlex.join(command),
    }
    environments = Environments(arguments.environments, arguments.python_for)
    results = earlier(output)
    for given in arguments.models:
        name = Path(given).stem
        print(f"{name} ...", flush=True)
        results[name] = measure(environments.model(given), environments, arguments)
        print(table({name: results[name]}, goals), flush=True)
        write(output, about, results, goals)


if __name__ == "__main__":
    main()
