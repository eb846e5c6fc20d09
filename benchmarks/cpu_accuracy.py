"""What lower precisions cost in accuracy on a CPU: real networks beside themselves in FP32.

    PLANISH_TEST_DATA=FOLDER python benchmarks/cpu_accuracy.py --precision int8 --splits 5 -o NAME
    ... python benchmarks/cpu_accuracy.py --precision int8 --budget 0.2 mobilenetv2
    ... python benchmarks/cpu_accuracy.py --precision bf16 resnet56 squeezenet

Each network sees the same samples in FP32 and in the lower precision. INT8 is calibrated on samples
that are not judged by; with several splits each is calibrated on others. Without
``--tuning-seconds`` every layer is lowered that can be: what tuning keeps in FP32 can only be
nearer. On CPUs without products of bfloat16 set PLANISH_EMULATE_BF16=1: accuracy is the same there,
speed is not.

Writes ``NAME.json``, a row for each split, and ``NAME.md``, a row for each network; what is not
measured again stays there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import numpy as np
from accuracy_models import Network, networks

import planish
from planish.quantization import (
    EntropyCalibrator,
    EntropyCalibrator2,
    MinMaxCalibrator,
    MseCalibrator,
    PercentileCalibrator,
    Scores,
)

CALIBRATORS = {
    "mse": MseCalibrator,
    "entropy": EntropyCalibrator,
    "entropy-2": EntropyCalibrator2,
    "min-max": MinMaxCalibrator,
    "percentile": PercentileCalibrator,
}

BUDGETED = 500
"""How many samples a metric is measured on to keep within a budget; calibration takes them too."""

ABOUT = ("model", "precision", "calibrator", "budget")
"""What the rows of one line of the table have in common."""


def divided(network: Network, split: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples to calibrate on, and others to judge by."""
    first = network.judged if network.samples > network.judged else 0
    pool = np.arange(first, network.samples)
    chosen = np.random.default_rng(split).choice(pool, count, replace=False)
    return chosen, np.setdiff1d(np.arange(network.judged), chosen)


def measured(
    network: Network, exact: Any, split: int, arguments: argparse.Namespace
) -> dict[str, Any]:
    """A row of results."""
    count = 0
    options: dict[str, Any] = {"precision": arguments.precision}
    if arguments.precision == "int8":
        count = network.calibrated if arguments.budget is None else BUDGETED
    chosen, judged = divided(network, split, count)
    if count:
        options["calibration"] = CALIBRATORS[arguments.calibrator](list(network.feeds(chosen)))
    tried = 0
    if arguments.budget is not None:

        def evaluate(engine: planish.Engine) -> Scores:
            nonlocal tried
            tried += 1
            return network.scores(network.results(engine, chosen), chosen)

        options |= {"evaluate": evaluate, "accuracy_budget": arguments.budget}
    start = time.perf_counter()
    with network.build(tuning_seconds=arguments.tuning_seconds, **options) as engine:
        seconds = time.perf_counter() - start
        found = network.results(engine, judged)
        layers = engine.layers()
        report = engine.report
    return {
        "split": split,
        "calibrated": count,
        "judged": len(judged),
        **network.figures(network.selected(exact, judged), found, judged),
        "lowered_layers": sum(row["precision"] == arguments.precision for row in layers),
        "layers": len(layers),
        "kept_in_fp32": [kept.layer for kept in report.bought],
        "engines_tried": tried,
        "doubt": report.doubt,
        "build_seconds": seconds,
    }


def summary(rows: list[dict[str, Any]], network: Network) -> dict[str, str]:
    """Rows of several splits in words: means, and whether they reach the bars."""
    figures = {}
    for name, value in rows[0].items():
        if isinstance(value, float) and name not in ("build_seconds", "budget"):
            figures[name] = float(np.mean([row[name] for row in rows]))
    bars = dict(network.bars)
    if rows[0]["budget"] is not None:
        bars["lost"] = rows[0]["budget"]
    goals = []
    for name, bar in bars.items():
        is_most = name in ("lost", "invented")
        reached = figures[name] <= bar if is_most else figures[name] >= bar
        sign = "at most" if is_most else "at least"
        goals.append(f"{name} {sign} {bar:g}: {'reached' if reached else 'MISSED'}")
    if "top1_tflite" in figures:
        above = figures["top1"] - figures["top1_tflite"]
        goals.append(f"top1 by TFLite's: {above:+.2f}")
    lowered = {f"{row['lowered_layers']} of {row['layers']}" for row in rows}
    return {
        "splits": str(len(rows)),
        "figures": ", ".join(f"{name} {_number(name, value)}" for name, value in figures.items()),
        "layers": ", ".join(sorted(lowered)),
        "goals": "; ".join(goals),
    }


def _number(name: str, value: float) -> str:
    return f"{value:.4f}" if "cosine" in name else f"{value:.2f}"


def write(output: Path, rows: list[dict[str, Any]], known: dict[str, Network]) -> None:
    """Writes what is known so far; rows of earlier runs that were not measured again are kept."""
    file = output.with_suffix(".json")
    earlier = json.loads(file.read_text())["results"] if file.exists() else []
    new = {tuple(row[key] for key in ABOUT) for row in rows}
    kept = [row for row in earlier if tuple(row[key] for key in ABOUT) not in new]
    about = {
        "planish": planish.__version__,
        "date": datetime.date.today().isoformat(),
        "machine": _machine(),
    }
    every = [*kept, *rows]
    file.write_text(json.dumps({**about, "results": every}, indent=1) + "\n")
    lines = [f"{name}: {value}  " for name, value in about.items()]
    lines += ["", f"| {' | '.join(ABOUT)} | splits | figures (means) | lowered layers | goals |"]
    lines.append("|---" * (len(ABOUT) + 4) + "|")
    for key in dict.fromkeys(tuple(row[k] for k in ABOUT) for row in every):
        own = [row for row in every if tuple(row[k] for k in ABOUT) == key]
        cells = ["" if part is None else str(part) for part in key]
        lines.append(f"| {' | '.join([*cells, *summary(own, known[key[0]]).values()])} |")
    output.with_suffix(".md").write_text("\n".join(lines) + "\n")


def _machine() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main() -> None:
    """Measures the networks, one after the other."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("models", nargs="*", help="all by default")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--calibrator", choices=CALIBRATORS, default="mse")
    parser.add_argument("--splits", type=int, default=1, help="calibrations of INT8")
    parser.add_argument("--budget", type=float, help="points of top-1 that INT8 may cost")
    parser.add_argument("--tuning-seconds", type=float, default=0.0, help="of each engine")
    parser.add_argument("--data", type=Path, default=os.environ.get("PLANISH_TEST_DATA"))
    parser.add_argument("--minilm", type=Path, help="folder of all-MiniLM-L6-v2: see minilm.py")
    parser.add_argument("-o", "--output", type=Path, help="results, without an ending")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("--data, or the variable PLANISH_TEST_DATA, must name the folder of the data")
    known = networks(Path(arguments.data), arguments.minilm)
    if unknown := set(arguments.models) - known.keys():
        parser.error(f"there is no network {sorted(unknown)[0]!r}: they are {', '.join(known)}")
    is_int8 = arguments.precision == "int8"
    rows = []
    for name in arguments.models or known:
        network = known[name]
        with network.build(tuning_seconds=0.0) as engine:
            exact = network.results(engine, np.arange(network.judged))
        for split in range(arguments.splits):
            row = {
                "model": name,
                "precision": arguments.precision,
                "calibrator": arguments.calibrator if is_int8 else None,
                "budget": arguments.budget,
                **measured(network, exact, split, arguments),
            }
            rows.append(row)
            told = summary([row], network)
            print(f"{name} {arguments.precision} split {split}: {told['figures']}", flush=True)
            print(f"    {told['layers']} layers lowered; {told['goals']}", flush=True)
            if arguments.output:
                write(arguments.output, rows, known)


if __name__ == "__main__":
    main()
