"""``planish compare --data``: layer by layer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

X = np.random.default_rng(3).standard_normal((12, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "x.npz"
    np.savez(path, x=X)
    return path


@pytest.fixture(scope="module")
def quantized(cli, model: Path, data: Path) -> Path:
    path = data.with_name("int8.plan")
    outcome = cli(
        *("build", model, "-o", path, "--precision", "int8", "--calibration", data),
        *("--tuning-seconds", 0),
    )
    assert outcome.code == 0, outcome.err
    return path


def test_a_plan_in_int8(cli, model: Path, quantized: Path, data: Path, tmp_path: Path) -> None:
    labels = tmp_path / "labels.txt"
    labels.write_text("class\n" + "\n".join("3" for _ in X))
    given = ("compare", model, quantized, "--data", data)
    outcome = cli(*given, "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert document["reference"] == "planish fp32"
    assert document["samples"] == len(X)
    assert {layer["layer"] for layer in document["layers"]} >= {"x"}
    errors = [
        min(layer[name] or np.inf for name in ("own_sqnr", "channel_sqnr"))
        for layer in document["layers"]
    ]
    assert errors == sorted(errors)
    assert not any(layer["broken"] for layer in document["layers"])
    assert [o["name"] for o in document["outputs"]] == ["y", "z"]
    assert all(20 < o["sqnr"] < 80 for o in document["outputs"])
    outcome = cli(*given)
    assert "rounding" in outcome.out
    assert "top-1 plan" not in outcome.out
    outcome = cli(*given, "--labels", labels, "--max-error", 1e-9)
    assert outcome.code == 1  # two outputs could be meant
    assert "could be the scores" in outcome.err
    outcome = cli(*given, "--labels", labels, "--label-output", "z", "--json")
    shares = {o["name"]: (o["accuracy_fp32"], o["accuracy"]) for o in outcome.document["outputs"]}
    assert shares["y"] == (None, None)
    assert all(0 <= share <= 100 for share in shares["z"])


def test_limits_and_wrong_usage(cli, model: Path, plan: Path, data: Path, tmp_path: Path) -> None:
    given = ("compare", model, plan, "--data", data)
    assert cli(*given, "--max-error", 1e-4).code == 0
    missed = cli(*given, "--max-error=-1", "--json")
    assert missed.code == 3
    assert missed.document["layers"]
    assert cli("compare", model, plan, "--labels", "labels.txt").code == 2
    assert cli(*given, "--input", "x=9x6").code == 2
    assert cli("compare", model, plan, "--data", tmp_path).code == 2  # a folder without a size
    np.savez(tmp_path / "wrong.npz", w=X)
    wrong = cli("compare", model, plan, "--data", tmp_path / "wrong.npz")
    assert wrong.code == 1
    assert "where: data=" in " ".join(wrong.err.split())
