"""Builds every network of `keras.applications` with random weights and compares it with Keras.

    python tests/campaigns/keras_applications.py                         # all; about an hour
    python tests/campaigns/keras_applications.py --names VGG16,Xception
    python tests/campaigns/keras_applications.py --write docs/models.md  # rows of the docs' table
    python tests/campaigns/keras_applications.py --write docs/models.md --missing  # those not in it

Each network runs in a process of its own, by tactics that heuristics choose (nothing is measured).
The exit status is 1 if a network fails, runs on the host in part, or differs from Keras.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

SIZES = {"InceptionResNetV2": 96, "InceptionV3": 96, "Xception": 96}
USUAL_SIZE = 64
"""Height and width of images: small, but every layer still has something to do."""

CHAOTIC = ("EfficientNetV2S", "EfficientNetV2M", "EfficientNetV2L")
"""Networks in which batch norms must know the statistics of images; see `settle`."""

TOLERANCE = 1e-4
"""Largest difference from Keras as a share of the largest logit."""

HEAD = (
    "| network | image | parameters (M) | layers of Keras | layers of the engine | host steps "
    "| largest error | built in (s) |",
    "|---|---|---|---|---|---|---|---|",
)
BEGIN, END = "<!-- keras.applications: begin -->", "<!-- keras.applications: end -->"


def main() -> int:
    """Runs the campaign that the command line asks for; 1 if a network failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--names", default="", help="comma list; default: all")
    parser.add_argument("--write", default="", help="a file with the table to put the rows into")
    parser.add_argument("--missing", action="store_true", help="only those not in that table yet")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one)))
        return 0
    names = [n for n in arguments.names.split(",") if n] or architectures()
    if arguments.missing:
        present = table_of(Path(arguments.write).read_text())
        names = [name for name in names if name not in present]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("PLANISH_CACHE", folder)
        for name in names:
            rows.append(_in_own_process(name))
            print(_line(rows[-1]), flush=True)
            if arguments.write:
                write(Path(arguments.write), rows[-1])
    return int(not all(row.get("good") for row in rows))


def architectures() -> list[str]:
    """The names of the functions of `keras.applications` that make a network."""
    import tensorflow as tf

    module = tf.keras.applications
    return [n for n in dir(module) if n[0].isupper() and callable(getattr(module, n))]


def measure(name: str) -> dict[str, Any]:
    """Builds one network and compares two batches with Keras."""
    import numpy as np

    from helpers.applications import application, random_images, settle
    from helpers.engines import quick_engine
    from helpers.frameworks import keras_model, run_engine

    size = SIZES.get(name, USUAL_SIZE)
    model = application(name, size)
    if name in CHAOTIC:
        settle(model, random_images(32, size))
    started = time.perf_counter()
    engine = quick_engine(model)
    seconds = time.perf_counter() - started
    reference, error = keras_model(model), 0.0
    for batch in (1, 3):
        feeds = {engine.inputs[0].name: random_images(batch, size)}
        results, expected = run_engine(engine, feeds), reference(feeds)
        for key, array in results.items():
            difference = np.abs(array - expected[key]).max()
            error = max(error, float(difference / np.abs(expected[key]).max()))
            varies = float(np.ptp(expected[key]) / np.abs(expected[key]).max())
    host = engine.host_steps()
    return {
        "name": name,
        "size": size,
        "parameters": model.count_params(),
        "keras_layers": len(model.layers),
        "layers": len(engine.layers()),
        "host_steps": len(host),
        "error": error,
        "seconds": seconds,
        # logits that are all alike would say nothing
        "good": not host and error <= TOLERANCE and varies > 0.1,
    }


def _in_own_process(name: str) -> dict[str, Any]:
    command = [sys.executable, __file__, "--one", name]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        return {"name": name, "failure": done.stderr.strip()[-2000:]}
    return dict(json.loads(lines[-1]))


def _line(row: dict[str, Any]) -> str:
    if "failure" in row:
        return f"{row['name']}: FAILED\n{row['failure']}"
    return (
        f"{row['name']} ({row['size']}x{row['size']}, {row['parameters'] / 1e6:.1f} M): "
        f"{row['keras_layers']} layers of Keras, {row['layers']} of the engine, "
        f"{row['host_steps']} host steps, error {row['error']:.1e}, {row['seconds']:.1f} s"
        f"{'' if row['good'] else '  FAILED'}"
    )


def table_of(text: str) -> dict[str, str]:
    """The rows of the table between the marks, by network."""
    inside = text.partition(BEGIN)[2].partition(END)[0].strip().splitlines()[2:]
    return {line.split("|")[1].strip(): line for line in inside}


def write(path: Path, row: dict[str, Any]) -> None:
    """Puts a row into the table between the marks in a file."""
    text = path.read_text()
    before, _, rest = text.partition(BEGIN)
    rows = table_of(text)
    if "failure" in row:
        rows[row["name"]] = f"| {row['name']} | | | | | | failed | |"
    else:
        rows[row["name"]] = (
            f"| {row['name']} | {row['size']} | {row['parameters'] / 1e6:.1f} "
            f"| {row['keras_layers']} | {row['layers']} | {row['host_steps']} "
            f"| {row['error']:.1e} | {row['seconds']:.0f} |"
        )
    lines = [*HEAD, *(rows[name] for name in sorted(rows))]
    path.write_text("\n".join([before + BEGIN, *lines, END + rest.partition(END)[2]]))


if __name__ == "__main__":
    sys.exit(main())
