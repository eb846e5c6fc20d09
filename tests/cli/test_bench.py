"""``planish bench``: what takes part, what is shown, when it fails. No time is judged."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_rows(cli, model: Path, plan: Path) -> None:
    pytest.importorskip("onnxruntime")
    outcome = cli(
        "bench", model, "--plan", plan, "--against", "onnxruntime", "--batch", "1,3",
        "--seconds", 0, "--threads", 1, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    rows = outcome.document["results"]
    assert [(r["batch"], r["runtime"]) for r in rows] == [
        (1, "planish"), (1, "onnxruntime"), (3, "planish"), (3, "onnxruntime"),
    ]  # fmt: skip
    assert all(r["milliseconds"] > 0 for r in rows)
    assert rows[1]["deviation"] < 1e-5
    assert rows[1]["ratio"] == pytest.approx(rows[0]["milliseconds"] / rows[1]["milliseconds"])
    assert outcome.document["threads"] == 1


def test_other_plans_take_part(cli, model: Path, plan: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.plan"
    other.write_bytes(plan.read_bytes())
    outcome = cli(
        "bench", model, "--plan", plan, "--against", f"{other},{tmp_path / 'none.plan'}",
        "--seconds", 0, "--json",
    )  # fmt: skip
    assert outcome.code == 0, outcome.err
    own, beside = outcome.document["results"]
    assert (own["runtime"], beside["runtime"]) == ("planish", str(other))
    assert beside["deviation"] == 0
    assert beside["ratio"] > 0
    assert "none.plan" in next(iter(outcome.document["left_out"]))


def test_what_is_no_runtime_is_refused(cli, model: Path) -> None:
    outcome = cli("bench", model, "--against", "tensorfow")
    assert outcome.code == 2
    assert "no runtime and no plan" in outcome.err


def test_peers_that_are_left_out_are_named_with_the_cure(cli, model: Path, plan: Path) -> None:
    outcome = cli(
        "bench", model, "--plan", plan, "--against", "tensorflow,openvino",
        "--python-for", "openvino=/no/such/python", "--seconds", 0, "--json",
    )  # fmt: skip
    assert outcome.code == 0
    left_out = outcome.document["left_out"]
    assert "does not read onnx models" in left_out["tensorflow"]
    assert "--python-for openvino=" in left_out["openvino"]


def test_a_missed_ratio_exits_with_3(cli, model: Path, plan: Path) -> None:
    pytest.importorskip("onnxruntime")
    outcome = cli(
        "bench", model, "--plan", plan, "--against", "onnxruntime", "--seconds", 0,
        "--max-ratio", 0, "--json",
    )  # fmt: skip
    assert outcome.code == 3
    assert "--max-ratio" in outcome.err
    assert outcome.document["results"]


def test_a_ratio_needs_somebody_to_compare_with(cli, model: Path, plan: Path) -> None:
    outcome = cli("bench", model, "--plan", plan, "--against", "none", "--max-ratio", 1)
    assert outcome.code == 1
    assert "cannot be judged" in outcome.err


def test_a_batch_the_model_cannot_run(cli, model: Path) -> None:
    outcome = cli(
        "bench", model, "--against", "none", "--input", "x=2x6", "--batch", "2,3",
        "--tuning-seconds", 0,
    )  # fmt: skip
    assert outcome.code == 1
    assert "cannot run at batch 3" in outcome.err
    assert "turns" not in outcome.err  # nothing was measured in vain


def test_the_batch_of_a_model_that_has_one_of_its_own(cli, model: Path) -> None:
    outcome = cli(
        "bench", model, "--against", "none", "--input", "x=2x6", "--tuning-seconds", 0,
        "--seconds", 0, "--json",
    )  # fmt: skip
    assert outcome.code == 0
    assert [row["batch"] for row in outcome.document["results"]] == [2]
