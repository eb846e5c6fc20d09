"""The cut is the cheapest one: compared with trying all of them."""

import itertools

import numpy as np
import pytest

from planish.passes.min_cut import Network


@pytest.mark.parametrize("seed", range(20))
def test_against_all_cuts(seed):
    random = np.random.default_rng(seed)
    network = Network()
    vertices = [network.vertex() for _ in range(5)]
    edges = []
    for _ in range(14):
        a, b = random.choice([0, 1, *vertices], 2, replace=False)
        edges.append((int(a), int(b), int(random.integers(0, 9))))
        network.edge(*edges[-1])

    def cost(sink_side):
        return sum(c for a, b, c in edges if a not in sink_side and b in sink_side)

    sides = [{1, *chosen} for n in range(6) for chosen in itertools.combinations(vertices, n)]
    least = min(map(cost, sides))
    found, side = network.cut()
    assert found == least == cost(side)
    assert len(side) == min(len(s) for s in sides if cost(s) == least)
