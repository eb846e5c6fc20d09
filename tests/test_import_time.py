"""`import planish` stays light: what is heavy is imported where it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = [
    "tensorflow", "keras", "onnx", "onnxruntime", "torch", "numpy", "llvmlite", "highspy", "rich",
    "typer", "safetensors", "platformdirs", "sqlite3", "asyncio", "planish.builder",
    "planish.graph", "planish.runtime",
]  # fmt: skip


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import planish", []),
        ("import planish; dir(planish); planish.PlanishError, planish.__version__", []),
        ("import planish.cli.app", ["typer", "rich"]),
    ],
)
def test_heavy_modules_are_not_imported(statement: str, allowed: list[str]) -> None:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = set(done.stdout.splitlines())
    assert not (set(HEAVY) - set(allowed)) & modules
