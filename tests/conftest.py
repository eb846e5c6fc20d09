"""What all tests share: the helpers' folder on the path, and the folder of real models."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

found = importlib.util.find_spec("tensorflow")
if found is not None and found.origin is None:  # no TensorFlow, but our folder of that name
    sys.modules["tensorflow"] = None  # type: ignore[assignment]

if os.environ.get("PLANISH_TEST_ISA") == "neon":
    from helpers import emulator

    emulator.stand_in()


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real models and images, from the environment variable PLANISH_TEST_DATA."""
    folder = os.environ.get("PLANISH_TEST_DATA")
    if not folder:
        pytest.skip("PLANISH_TEST_DATA does not name the folder of real models and images")
    path = Path(folder)
    if not path.is_dir():
        pytest.skip(f"PLANISH_TEST_DATA names {folder}, which is not a folder")
    return path


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels and times go to a folder of this run, unless one was chosen from outside."""
    if "PLANISH_CACHE" in os.environ:
        yield
        return
    os.environ["PLANISH_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    yield
    del os.environ["PLANISH_CACHE"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Without a GPU, or where it is hidden, what needs one is skipped."""
    if os.environ["CUDA_VISIBLE_DEVICES"] == "-1":
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU: make test-cuda"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item):
    """Where there is data, a test that needs it and is skipped all the same has failed."""
    report = yield
    if report.skipped and item.get_closest_marker("data") and os.environ.get("PLANISH_TEST_DATA"):
        report.outcome = "failed"
    return report


@pytest.fixture
def without_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU without products of bfloat16, whatever this one has."""
    from planish.targets.cpu.machine import Machine
    from planish.targets.cpu.target import cpu

    monkeypatch.setattr(Machine, "has_bf16", False)
    monkeypatch.setattr(cpu(), "precisions", frozenset({"fp32", "int8"}))
