"""``planish run``."""

from __future__ import annotations

from pathlib import Path

import numpy as np

import planish


def test_arrays_from_and_to_files(cli, plan: Path, tmp_path: Path) -> None:
    x = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    outcome = cli("run", plan, "--input", tmp_path / "x.npy", "-o", tmp_path / "out.npz")
    assert outcome.code == 0, outcome.err
    with np.load(tmp_path / "out.npz") as results:
        np.testing.assert_array_equal(results["z"], 2 * results["y"])
    assert "random" not in outcome.err


def test_inputs_by_name(cli, plan: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "in.npz", x=np.ones((2, 6), np.float32))
    np.save(tmp_path / "x.npy", np.ones((2, 6), np.float32))
    for spec in (str(tmp_path / "in.npz"), f"x={tmp_path / 'x.npy'}"):
        document = cli("run", plan, "--input", spec, "--json").document
        assert document["outputs"][0] == {"name": "y", "dtype": "float32", "shape": [2, 4]}
        assert document["inputs"][0]["random"] is False


def test_says_that_inputs_are_random(cli, plan: Path) -> None:
    outcome = cli("run", plan, "--input", "x=7x6", "--json")
    assert outcome.code == 0
    assert "random values for x" in outcome.err
    assert outcome.document["inputs"][0]["shape"] == [7, 6]
    assert outcome.document["inputs"][0]["random"] is True


def test_runs_a_model_too(cli, model: Path) -> None:
    outcome = cli("run", model, "--tuning-seconds", 0, "--json")
    assert outcome.code == 0
    assert [o["name"] for o in outcome.document["outputs"]] == ["y", "z"]


def test_wrong_arrays_are_explained(cli, plan: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", np.ones((2, 6)))
    outcome = cli("run", plan, "--input", tmp_path / "d.npy")
    assert outcome.code == 1
    assert "float64" in outcome.err
    assert "cure:" in outcome.err


def test_several_outputs_need_an_npz(cli, plan: Path, tmp_path: Path) -> None:
    outcome = cli("run", plan, "-o", tmp_path / "y.npy")
    assert outcome.code == 1
    assert not list(tmp_path.iterdir())


def test_damaged_plan(cli, tmp_path: Path) -> None:
    (tmp_path / "m.plan").write_bytes(b"planish plan nonsense")
    outcome = cli("run", tmp_path / "m.plan")
    assert outcome.code == 1
    assert "m.plan" in outcome.err


def test_malformed_inputs_are_wrong_usage(cli, plan: Path) -> None:
    assert cli("run", plan, "--input", "x").code == 2
    assert cli("run", plan, "--input", "x=Nx6").code == 2


def test_the_device_of_a_plan_can_be_another(cli, plan: Path) -> None:
    outcome = cli("run", plan, "--device", "npu:1")
    assert outcome.code == 1
    assert "There is no device 'npu:1'" in outcome.err
    assert cli("run", plan, "--device", "cpu").code == 0


def test_device_code_may_be_allowed(cli, plan: Path, monkeypatch) -> None:
    asked = []
    load = planish.load

    def noted(path, device, allow_device_code):
        asked.append((device, allow_device_code))
        return load(path)

    monkeypatch.setattr(planish, "load", noted)
    assert cli("run", plan).code == 0
    assert cli("run", plan, "--allow-device-code").code == 0
    assert cli("inspect", plan, "--allow-device-code").code == 0
    assert asked == [(None, False), (None, True), (None, True)]
