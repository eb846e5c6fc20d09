"""Tensor maps: extents in a launch, and descriptions of code that are damaged."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from planish.targets.cuda.codegen.tensor_map import BoxedArgument, TensorMap

GOOD = BoxedArgument(1, "fp16", (0, 6, 24), (144, 24, 1), 6, (8, 2, 16), 1)


def test_the_first_extent_follows_from_a_parameter() -> None:
    known = TensorMap((4, 24), (24, 1), (4, 16))
    assert known.extents([7]) == (4, 24)
    assert GOOD.extents([30, 2]) == (5, 6, 24)


def test_a_description_is_what_it_was() -> None:
    assert BoxedArgument.of(asdict(GOOD)) == GOOD
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(GOOD).items()}
    assert BoxedArgument.of(lists) == GOOD


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "fp64"},
        {"swizzle": 4},
        {"each": -1},
        {"argument": True},
        {"shape": [0, 6]},
        {"box": [8, 2, 512]},
        {"box": [8, 0, 16]},
        {"strides": "abc"},
        {"box": 3},
        {"more": 1},
    ],
    ids=str,
)
def test_damaged_descriptions(change) -> None:
    with pytest.raises(ValueError, match="tensor map"):
        BoxedArgument.of(asdict(GOOD) | change)
    with pytest.raises(ValueError, match="tensor map"):
        BoxedArgument.of([GOOD])
