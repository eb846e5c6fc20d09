"""A small ONNX model, a plan of it, and the command line as a function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from typer.testing import CliRunner

from planish.cli.app import app


class Outcome(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """Standard output, which must be one JSON document."""
        return json.loads(self.out)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    patch = pytest.MonkeyPatch()
    patch.setenv("PLANISH_CACHE", str(tmp_path_factory.mktemp("cache")))
    yield
    patch.undo()


@pytest.fixture(scope="session")
def cli() -> Callable[..., Outcome]:
    """Runs ``planish ARGUMENTS``."""

    def run(*arguments: object) -> Outcome:
        result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
        return Outcome(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """y [N, 4] = relu((x [N, 6] · w + b) · s), z = y + y."""
    generator = np.random.default_rng(0)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], name="dense"),
            helper.make_node("Mul", ["h", "s"], ["scaled"], name="scale"),
            helper.make_node("Relu", ["scaled"], ["y"], name="relu"),
            helper.make_node("Add", ["y", "y"], ["z"], name="twice"),
        ],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 6])],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4]),
            helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 4]),
        ],
        [
            numpy_helper.from_array(generator.standard_normal((6, 4)).astype(np.float32), "w"),
            numpy_helper.from_array(generator.standard_normal(4).astype(np.float32), "b"),
            numpy_helper.from_array(np.array([1, 2, 3, 4], np.float32), "s"),
        ],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("model") / "small.onnx"
    onnx.save(made, path)
    return path


@pytest.fixture(scope="session")
def plan(model: Path, cli: Callable[..., Outcome]) -> Path:
    """A plan of `model`, by heuristics."""
    path = model.with_suffix(".plan")
    outcome = cli("build", model, "-o", path, "--tuning-seconds", 0)
    assert outcome.code == 0, outcome.err
    return path
