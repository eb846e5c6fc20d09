"""Every example runs and says what it should."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
SAYS = {
    "build_and_run": ["largest difference from Keras: ", "the same after loading: True"],
    "dynamic_batch": ["batch 32: difference from Keras", "batch 33 is outside the profile"],
    "inspect_layers": ["fuses", "µs"],
    "tensorflow_savedmodel": ["largest difference from native TensorFlow: "],
}


def test_every_example_is_tested() -> None:
    names = {path.stem for path in EXAMPLES.glob("*.py")}
    assert names == {*SAYS, "demo"}


@pytest.mark.parametrize("name", SAYS)
def test_example(name: str, capsys, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("tensorflow")
    monkeypatch.setenv("PLANISH_CACHE", str(tmp_path))
    monkeypatch.setattr("planish.builder.LEAST_BUDGET", 1.0)
    monkeypatch.setattr("planish.builder.MOST_BUDGET", 1.0)
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    said = capsys.readouterr().out
    for text in SAYS[name]:
        assert text in said
    for line in said.splitlines():
        if "difference" in line:
            assert float(line.rpartition(" ")[2]) < 1e-4, line


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    pytest.importorskip("tensorflow")
    pytest.importorskip("sklearn")
    quick = {"PLANISH_CACHE": str(tmp_path), "PLANISH_TUNING_SECONDS": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / "demo.py", "--offline"],
        env={**os.environ, **quick},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "handwritten digits" in done.stdout
    for row in ("latency, batch 1", "latency, batch 8", "accuracy", "graph nodes", "engines"):
        assert row in done.stdout
    same = next(line for line in done.stdout.splitlines() if "same prediction" in line)
    assert float(same.split("│")[3].strip().rstrip("%")) > 99
