"""``planish build``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import planish


def test_writes_a_plan_that_loads(plan: Path) -> None:
    engine = planish.load(plan)
    assert [i.name for i in engine.inputs] == ["x"]
    assert engine(np.zeros((3, 6), np.float32))["z"].shape == (3, 4)


def test_json(cli, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    outcome = cli(
        "build", model, "-o", path, "--tuning-seconds", 0, "--input", "x=1:2:8x6", "--json"
    )
    assert outcome.code == 0
    document = outcome.document
    assert document["plan"] == str(path)
    assert document["bytes"] == path.stat().st_size
    assert document["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": ["N", 6], "profile": {"N": [1, 2, 8]}}
    ]
    assert document["report"]["layers"] == document["layers"]


def test_default_name_is_the_models(cli, model: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli("build", model, "--tuning-seconds", 0).code == 0
    assert (tmp_path / "small.plan").is_file()


def test_output_names(cli, model: Path, tmp_path: Path) -> None:
    outcome = cli(
        "build", model, "-o", tmp_path / "b.plan", "--output-name", "h", "--tuning-seconds", 0,
        "--json",
    )  # fmt: skip
    assert [o["name"] for o in outcome.document["outputs"]] == ["h"]


def test_says_what_is_wrong_with_the_model(cli, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"nonsense")
    outcome = cli("build", bad, "-o", tmp_path / "bad.plan")
    assert outcome.code == 1
    assert outcome.err.startswith("error: ")
    assert "where:" in outcome.err
    assert not (tmp_path / "bad.plan").exists()


@pytest.mark.parametrize("name", ["no/such/folder/m.plan", "."])
def test_complains_before_the_work_if_nothing_could_be_saved(
    cli, model: Path, tmp_path: Path, name: str
) -> None:
    outcome = cli("build", model, "-o", tmp_path / name)
    assert outcome.code == 1
    assert "The result could not be written" in outcome.err


def test_precision_that_is_not_there(cli, model: Path, tmp_path: Path) -> None:
    outcome = cli("build", model, "-o", tmp_path / "c.plan", "--precision", "fp3", "--json")
    assert outcome.code == 1
    assert outcome.document["error"]["kind"] == "PrecisionError"


def test_precision_flags(cli, model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "p.plan"
    arguments = ("build", model, "-o", plan, "--tuning-seconds", 0, "--precision", "fp16,tf32")
    outcome = cli(*arguments, "--layer-precision", "dense=fp32", "--strict-types", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.document["precision"] == "fp32", "all that the CPU has"
    outcome = cli(*arguments, "--layer-precision", "dens=fp32")
    assert outcome.code == 1
    assert "near names are 'dense'" in outcome.err
    outcome = cli(*arguments, "--layer-precision", "dense=fp16", "--strict-types")
    assert outcome.code == 1
    assert "cpu has no kernels for fp16" in outcome.err


@pytest.mark.parametrize("command", ["build", "run", "bench", "inspect"])
def test_gpus_that_are_not_there(
    cli, model: Path, tmp_path: Path, command: str, monkeypatch
) -> None:
    from helpers.fake_driver import FakeDevice, stand_in
    from planish.targets.cuda import driver
    from planish.targets.cuda.target import cuda

    more = ("-o", tmp_path / "m.plan") if command == "build" else ()
    for devices, device, said in (
        (RuntimeError("no libcuda.so.1"), "cuda:0", "There is no NVIDIA driver"),
        ([], "cuda", "There is no NVIDIA GPU"),
        ([FakeDevice("NVIDIA H200")], "cuda:2", "There is no GPU number 2"),
        ([FakeDevice("NVIDIA H200")], "cuda:x", "There is no device 'cuda:x'"),
    ):
        driver.gpu.cache_clear()
        cuda.cache_clear()
        stand_in(monkeypatch, devices)
        outcome = cli(command, model, *more, "--device", device)
        assert outcome.code == 1
        assert said in outcome.err
        assert "cure:" in outcome.err
