"""From ranges to levels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planish.graph.types import DType
from planish.quantization.scheme import SYMMETRIC, UNSIGNED, Levels, Scheme, scheme_of
from planish.targets.cpu.target import cpu
from planish.targets.cuda.target import CudaTarget

numbers = st.floats(0, 2.0**99, allow_nan=False, width=32)


@pytest.mark.parametrize("scheme", [UNSIGNED, SYMMETRIC])
@given(numbers, numbers)
def test_ranges_are_held(scheme: Scheme, below: float, above: float) -> None:
    levels = scheme.levels(-below, above)
    assert levels.low <= levels.zero <= levels.high
    least = (levels.low - levels.zero) * levels.scale
    greatest = (levels.high - levels.zero) * levels.scale
    assert least <= -below + 0.51 * levels.scale
    assert greatest >= above - 0.51 * levels.scale
    assert levels.scale == np.float32(levels.scale) > 0


def test_known_ranges() -> None:
    assert UNSIGNED.levels(0, 255) == Levels(DType.UINT8, 1.0, 0)
    assert UNSIGNED.levels(-127.5, 127.5).zero == 128
    assert UNSIGNED.levels(2, 255) == Levels(DType.UINT8, 1.0, 0)
    assert UNSIGNED.levels(-255, 0) == Levels(DType.UINT8, 1.0, 255)
    assert SYMMETRIC.levels(-3, 254) == Levels(DType.INT8, 2.0, 0)
    assert SYMMETRIC.levels(0, 0) == Levels(DType.INT8, 1.0, 0)


def test_targets_have_a_scheme() -> None:
    here = cpu()
    own = replace(UNSIGNED, attention=here.attends_to_levels, short=here.adds_short)
    assert scheme_of(here) == own
    assert scheme_of(object.__new__(CudaTarget)) == SYMMETRIC
