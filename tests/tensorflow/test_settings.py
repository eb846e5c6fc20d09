"""What the environment says of a conversion."""

from __future__ import annotations

import pytest

pytest.importorskip("tensorflow")

from planish.errors import InputError
from planish.tensorflow.settings import Settings


def test_defaults(monkeypatch):
    monkeypatch.delenv("PLANISH_TUNING_SECONDS")
    assert Settings.from_environment() == Settings()


def test_variables_and_their_twins(monkeypatch):
    monkeypatch.setenv("TF_TRT_OP_DENYLIST", "Conv2D, Relu,")
    monkeypatch.setenv("TF_TRT_MAX_ALLOWED_ENGINES", "5")
    monkeypatch.setenv("PLANISH_MAX_ALLOWED_ENGINES", "7")
    monkeypatch.setenv("TF_TRT_ALLOW_ENGINE_NATIVE_SEGMENT_EXECUTION", "False")
    monkeypatch.setenv("TF_TRT_SHOW_DETAILED_REPORT", "0")
    found = Settings.from_environment(minimum_segment_size=9)
    assert found.denied_ops == {"Conv2D", "Relu"}
    assert found.max_engines == 7
    assert not found.allow_native_segments
    assert found.report == ""
    assert found.minimum_segment_size == 9
    assert found.tuning_seconds == 0


def test_no_number(monkeypatch):
    monkeypatch.setenv("TF_TRT_MAX_ALLOWED_ENGINES", "many")
    with pytest.raises(InputError, match="MAX_ALLOWED_ENGINES is 'many'"):
        Settings.from_environment()
