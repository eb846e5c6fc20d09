"""What `precision=` means, and what of it a target grants."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from planish.errors import PrecisionError
from planish.graph.types import DType
from planish.precision.permissions import (
    Permissions,
    parse_precision,
    permit,
    precision_text,
    recorded,
)

ALL = frozenset({"fp32", "tf32", "fp16", "bf16"})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("fp32", {"fp32"}),
        ("FP16", {"fp32", "fp16"}),
        (" bf16 ", {"fp32", "bf16"}),
        ("tf32", {"fp32", "tf32"}),
        ({"fp16"}, {"fp32", "fp16"}),
        (["bf16", "fp16"], {"fp32", "fp16", "bf16"}),
        (("fp32", "tf32"), {"fp32", "tf32"}),
        (frozenset({"fp32"}), {"fp32"}),
        ("best", ALL),
        ({"best", "fp16"}, ALL),
    ],
)
def test_names(given: Any, expected: set[str]) -> None:
    assert parse_precision(given, "cuda:0", ALL) == expected


def test_best_is_what_the_device_has() -> None:
    assert parse_precision("best", "cpu", {"fp32"}) == {"fp32"}


@pytest.mark.parametrize("given", ["fp12", "", None, 3, [], {}, {"fp16": 1}, {"fp16", "x"}, [None]])
def test_what_is_no_precision(given: Any) -> None:
    with pytest.raises(PrecisionError, match="no precision") as caught:
        parse_precision(given, "cpu", {"fp32"})
    assert caught.value.cure


@pytest.mark.parametrize("given", ["int8", "FP8", {"fp16", "int8"}])
def test_what_changes_results_and_has_no_kernels(given: Any) -> None:
    with pytest.raises(PrecisionError, match="not available on cpu"):
        parse_precision(given, "cpu", {"fp32"})


@pytest.mark.parametrize(
    ("asked", "available", "granted", "said"),
    [
        ({"fp32", "fp16"}, {"fp32"}, {"fp32"}, "FP16 is permitted and not used: it has"),
        # never silently as BF16
        ({"fp32", "fp16"}, {"fp32", "bf16"}, {"fp32"}, "FP16 is permitted and not used"),
        ({"fp32", "fp16", "tf32"}, {"fp32"}, {"fp32"}, "TF32, FP16 are permitted and not used"),
        ({"fp32", "fp16"}, ALL, {"fp32", "fp16"}, ""),
        ({"fp32"}, {"fp32"}, {"fp32"}, ""),
    ],
)
def test_what_a_target_grants(
    asked: set[str],
    available: set[str],
    granted: set[str],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "planish"):
        assert permit(frozenset(asked), "it", available) == granted
    assert len(caplog.records) == bool(said)
    assert said in caplog.text


@pytest.mark.parametrize(
    ("allowed", "text", "lower"),
    [
        ({"fp32"}, "fp32", None),
        ({"fp32", "fp16"}, "fp16", DType.FLOAT16),
        ({"fp32", "bf16"}, "bf16", DType.BFLOAT16),
        ({"fp32", "tf32"}, "tf32", None),
        (ALL, "tf32,fp16,bf16", DType.FLOAT16),
    ],
)
def test_text_and_dtype(allowed: set[str], text: str, lower: DType | None) -> None:
    permissions = Permissions(frozenset(allowed))
    assert str(permissions) == precision_text(allowed) == text
    assert permissions.lower is lower
    assert recorded({"precision": text}) == allowed


def test_a_header_permits_nothing_that_is_unknown() -> None:
    assert recorded({}) == {"fp32"}
    assert recorded({"precision": "fp4,fp16"}) == {"fp32", "fp16"}
    assert recorded({"precision": 16}) == {"fp32"}
