from __future__ import annotations

import numpy as np
import pytest

from helpers.networks import Net
from planish.errors import ShapeError
from planish.graph.dims import symbol
from planish.graph.graph import DimRange, Graph
from planish.profile import (
    BATCHES,
    UNBOUNDED,
    USUAL_SIZE,
    Profile,
    is_batch,
    settle_ranges,
    tuning_points,
)


def graph(*names: str, **ranges: tuple[int, int, int]) -> Graph:
    """A graph with one input whose dimensions have these names."""
    net = Net()
    made = net.output(net.relu(net.input(*(symbol(n) for n in names))))
    made.ranges.update({n: DimRange(*r) for n, r in ranges.items()})
    return made


class TestProfile:
    def test_shapes_are_tuples_of_integers(self) -> None:
        profile = Profile([1, np.int64(3)], (4, 3), (8, 3))  # type: ignore[arg-type]
        assert (profile.min, profile.opt, profile.max) == ((1, 3), (4, 3), (8, 3))
        assert profile == Profile((1, 3), (4, 3), (8, 3))
        assert len({profile, Profile((1, 3), (4, 3), (8, 3))}) == 1

    @pytest.mark.parametrize("shape", [(1, 3.0), (1, None), 3, "ab"])
    def test_shapes_that_are_none(self, shape: object) -> None:
        with pytest.raises(ShapeError, match="opt of a profile is not a shape"):
            Profile((1, 3), shape, (8, 3))  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        "shapes",
        [
            ((2,), (1,), (3,)),
            ((1,), (4,), (3,)),
            ((-1,), (1,), (1,)),
            ((1, 2), (1,), (1,)),
            ((1,), (1, 2), (1, 2)),
        ],
    )
    def test_shapes_out_of_order(self, shapes: tuple) -> None:
        with pytest.raises(ShapeError, match="min <= opt <= max") as caught:
            Profile(*shapes)
        assert "Profile(min=" in caught.value.where
        assert caught.value.cure


class TestTuningPoints:
    def test_without_symbols_there_is_one(self) -> None:
        net = Net()
        assert tuning_points(net.output(net.relu(net.input(2, 3)))) == [{}]

    def test_least_usual_and_greatest(self) -> None:
        assert tuning_points(graph("N", N=(1, 4, 32))) == [{"N": 4}, {"N": 1}, {"N": 32}]

    def test_equal_points_are_one(self) -> None:
        assert tuning_points(graph("N", N=(1, 1, 8))) == [{"N": 1}, {"N": 8}]
        assert tuning_points(graph("N", N=(5, 5, 5))) == [{"N": 5}]

    def test_unbounded_batch(self) -> None:
        assert tuning_points(graph("N")) == [{"N": 1}, {"N": BATCHES}]
        assert tuning_points(graph("N", N=(1, 2, UNBOUNDED))) == [
            {"N": 2},
            {"N": 1},
            {"N": 2 * BATCHES},
        ]

    def test_unbounded_length(self) -> None:
        made = graph("N", "length", N=(1, 1, UNBOUNDED), length=(1, 1, UNBOUNDED))
        settle_ranges(made)
        assert made.ranges["N"] == DimRange(1, 1, UNBOUNDED)
        assert made.ranges["length"] == DimRange(1, USUAL_SIZE, UNBOUNDED)
        points = tuning_points(made)
        assert points[0] == {"N": 1, "length": USUAL_SIZE}
        assert {p["length"] for p in points} == {USUAL_SIZE}

    def test_given_sizes_are_kept(self) -> None:
        made = graph("N", "length", length=(1, 20, 50))
        settle_ranges(made)
        assert made.ranges["length"] == DimRange(1, 20, 50)
        assert [p["length"] for p in tuning_points(made)] == [20, 1, 50]


def test_is_batch() -> None:
    made = graph("N", "length")
    assert is_batch(made, "N")
    assert not is_batch(made, "length")
