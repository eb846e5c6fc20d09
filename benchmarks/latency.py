"""Latency of Planish beside TensorFlow, ONNX Runtime and OpenVINO, for several models in one run.

    python benchmarks/latency.py MODEL... --python-for openvino=/path/to/python -o results/NAME

Each model is measured by ``planish bench``: every runtime in a process of its own, taking turns
(A B A B ...) on the same inputs and threads. Writes ``NAME.json`` with everything, machine,
versions and date included, and ``NAME.md`` with the table.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any


def measure(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """What ``planish bench`` says about a model; its error text if it fails."""
    command = [sys.executable, "-m", "planish", "bench", str(model), "--json"]
    command += ["--against", arguments.against, "--batch", arguments.batch]
    command += ["--seconds", str(arguments.seconds)]
    for peer in arguments.python_for:
        command += ["--python-for", peer]
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


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table: medians in milliseconds, and ratios to each peer."""
    lines = [
        "| model | batch | runtime | median ms | p10 | Planish / it |",
        "|---|---|---|---|---|---|",
    ]
    for model, result in results.items():
        if "error" in result:
            lines.append(f"| {model} | | failed: {result['error'].splitlines()[-1]} | | | |")
            continue
        for row in result["results"]:
            ratio = row.get("ratio")
            lines.append(
                f"| {model} | {row['batch']} | {row['runtime']} | {row['milliseconds']:.3f} "
                f"| {row['p10']:.3f} | {'' if ratio is None else f'{ratio:.2f}'} |"
            )
    return "\n".join(lines)


def write(output: Path, about: dict[str, str], results: dict[str, Any]) -> None:
    """Writes what is known so far as JSON and as a Markdown table."""
    text = json.dumps({**about, "models": results}, indent=1)
    output.with_suffix(".json").write_text(text + "\n")
    head = [f"{key}: {value}  " for key, value in about.items()]
    output.with_suffix(".md").write_text("\n".join([*head, "", table(results), ""]))


def earlier(output: Path) -> dict[str, Any]:
    """The results that the file already holds: models can be measured one after the other."""
    file = output.with_suffix(".json")
    return json.loads(file.read_text())["models"] if file.exists() else {}


def main() -> None:
    """Measures all models, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--against", default="tensorflow,onnxruntime,openvino")
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--input", action="append", default=[], metavar="NAME=SHAPE")
    parser.add_argument("--python-for", action="append", default=[], metavar="PEER=PYTHON")
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "command": "python benchmarks/latency.py "
        + " ".join(m.name for m in arguments.models)
        + f" --batch {arguments.batch} --seconds {arguments.seconds}",
    }
    results = earlier(arguments.output)
    for model in arguments.models:
        print(f"{model.stem} ...", flush=True)
        results[model.stem] = measure(model, arguments)
        print(table({model.stem: results[model.stem]}), flush=True)
        write(arguments.output, about, results)


if __name__ == "__main__":
    main()
