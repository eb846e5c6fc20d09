"""The tests that the onnx package brings for backends: none may be wrong, none may crash.

Of the tests of single operators an eighth runs here, always the same, and all of some families
that are hard; with ``PLANISH_ALL_ONNX_TESTS=1`` all. ``docs/make_onnx_support.py`` runs all, too,
and writes what became of each family to ``docs/onnx-support.md``.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter

import pytest

from helpers.onnx_backend import Case, Outcome, light_cases, model_cases, node_cases, run_case

ALWAYS = {"CumProd", "DFT", "Det", "If", "Loop", "STFT", "Scan"}
"""Operators of which all tests run: few, and of many parts."""

GENERATED, PASSED = 0.75, 0.93
"""Shares of the sample that must be equal: without a host step, and with the fallback. Of all cases
it is 95 % with the fallback.
"""

SMALL = {"light_shufflenet", "light_squeezenet"}
"""Architectures of few weights."""


def _picked(case: Case) -> bool:
    return zlib.crc32(case.name.encode()) % 8 == 0


def _report(outcomes: list[Outcome], *kinds: str) -> str:
    found = [o for o in outcomes if o.kind in kinds]
    return "\n".join(f"{o.kind}: {o.name}: {o.message}" for o in found[:20])


def test_single_operators() -> None:
    everything = os.environ.get("PLANISH_ALL_ONNX_TESTS") == "1"
    cases = node_cases()
    picked = [c for c in cases if everything or _picked(c)]
    outcomes = [run_case(c) for c in picked]
    more = [] if everything else [c for c in cases if c.op_type in ALWAYS and not _picked(c)]
    every = outcomes + [run_case(c) for c in more]
    assert not _report(every, "wrong", "crash")
    counts = Counter(o.kind for o in outcomes)
    generated = counts["generated"] + counts["folded"]
    assert generated >= GENERATED * len(outcomes), counts
    assert generated + counts["fallback"] >= PASSED * len(outcomes), (
        counts,
        _report(outcomes, "refused"),
    )


@pytest.mark.parametrize("kind", ["simple", "pytorch-operator", "pytorch-converted"])
def test_small_models(kind: str) -> None:
    outcomes = [run_case(c) for c in model_cases(kind)]
    assert outcomes
    assert not _report(outcomes, "wrong", "crash")
    if kind != "simple":  # which has strings, gradients and shapes that depend on the data
        assert not _report(outcomes, "refused", "fallback")


def test_architectures() -> None:
    outcomes = [run_case(c) for c in light_cases(SMALL)]
    assert {o.name for o in outcomes} == SMALL
    assert not _report(outcomes, "fallback", "refused", "wrong", "crash")
