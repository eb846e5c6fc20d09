"""Every op has a kind, so that a new one is not forgotten."""

from __future__ import annotations

from planish.ops import OPS, Elementwise
from planish.precision.kinds import KINDS, OBEDIENT, WHY_KEPT, Kind


def test_every_op_has_a_kind() -> None:
    missing = [
        op.__name__ for op in OPS.values() if op not in KINDS and not issubclass(op, Elementwise)
    ]
    assert not missing


def test_whoever_is_kept_has_a_reason() -> None:
    kept = {op for op, kind in KINDS.items() if kind is Kind.KEEP}
    without_floats = {"MatMulInteger", "ConvInteger"}
    assert {op.__name__ for op in kept - WHY_KEPT.keys()} == without_floats
    assert set(OBEDIENT) <= kept
