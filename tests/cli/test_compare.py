"""``planish compare``."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest


def test_against_onnx_runtime(cli, model: Path, plan: Path) -> None:
    pytest.importorskip("onnxruntime")
    outcome = cli("compare", model, plan, "--max-error", 1e-5, "--input", "x=9x6", "--json")
    assert outcome.code == 0
    document = outcome.document
    assert document["reference"].startswith("onnxruntime ")
    assert [o["name"] for o in document["outputs"]] == ["y", "z"]
    assert all(o["top1"] == 1.0 for o in document["outputs"])


def test_onnx_reference_stands_in(cli, model: Path, plan: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"  # one that has everything but onnxruntime
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "\nraise SystemExit(1)"\n')
    python.chmod(0o755)
    outcome = cli("compare", model, plan, "--python-for", f"onnxruntime={python}", "--json")
    assert outcome.code == 0
    assert outcome.document["reference"].startswith("onnx-reference ")
    assert "onnx.reference stands in" in outcome.err


def test_a_missed_limit_exits_with_3(cli, model: Path, plan: Path) -> None:
    outcome = cli("compare", model, plan, "--max-error=-1", "--json")
    assert outcome.code == 3
    assert outcome.document["outputs"]
    assert "--max-error" in outcome.err


def test_tensorflow_models_are_run_by_tensorflow(cli, tmp_path: Path) -> None:
    tf = pytest.importorskip("tensorflow")
    module = tf.Module()
    module.w = tf.Variable(tf.random.stateless_normal([6, 4], [1, 2]))
    module.call = tf.function(
        lambda x: {"double": 2.0 * tf.nn.relu(x @ module.w), "sum": tf.reduce_sum(x, 1)},
        input_signature=[tf.TensorSpec([None, 6], tf.float32, name="x")],
    )
    folder = str(tmp_path / "saved")
    tf.saved_model.save(module, folder, signatures=module.call)
    outcome = cli("compare", folder, "--tuning-seconds", 0, "--max-error", 1e-5, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.document["reference"].startswith("tensorflow ")
    assert {o["name"] for o in outcome.document["outputs"]} == {"double", "sum"}


def test_keras_files(cli, tmp_path: Path) -> None:
    keras = pytest.importorskip("keras")
    path = tmp_path / "m.keras"
    keras.Sequential([keras.Input((6,)), keras.layers.Dense(3, activation="tanh")]).save(path)
    outcome = cli("compare", path, "--tuning-seconds", 0, "--max-error", 1e-5)
    assert outcome.code == 0, outcome.err


def test_layers_that_overflow_are_named(cli, model: Path, plan: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    outcome = cli("compare", model, plan, "--layers", "--input", "x=9x6")
    assert outcome.code == 0, outcome.err
    assert "no layer overflows" in outcome.out
    np.save(tmp_path / "x.npy", np.full((2, 6), 1e38, np.float32))
    arguments = ("compare", model, plan, "--layers", "--input", f"x={tmp_path / 'x.npy'}")
    outcome = cli(*arguments)
    assert outcome.code == 0, outcome.err
    assert "overflow in " in outcome.out
    assert "--layer-precision" in outcome.err
    (first, *_) = cli(*arguments, "--json").document["overflows"]
    assert first["dtype"] == "f32"
    assert first["overflowed"] > 0
