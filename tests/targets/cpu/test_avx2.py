"""Every op's tactics at 8 lanes and with 16 registers, on a machine that has more.

`make test-avx2` (PLANISH_CPU_ISA=avx2) runs the tests of kernels, engines and random graphs so,
with nothing wider anywhere in the process.
"""

from __future__ import annotations

import pytest

from helpers.fuzz.check import Checker, Options
from helpers.fuzz.generate import op_recipes, random_recipe
from helpers.fuzz.specs import has_spec
from helpers.machines import restricted
from planish.ops.base import OPS
from planish.ops.elementwise import Elementwise
from planish.targets.cpu.target import CpuTarget

NAMES = [n for n, op in OPS.items() if has_spec(op) and not issubclass(op, Elementwise)]


def checker(tactics: int) -> Checker:
    options = Options(engine=False, onnx=False, tactics=tactics, machine=restricted("avx2"))
    return Checker(options)


@pytest.mark.parametrize("name", NAMES)
def test_op(name: str) -> None:
    for seed, recipe in op_recipes(name, 1):
        checker(2).check(recipe, seed)


@pytest.mark.parametrize("seed", range(4))
def test_graph(seed: int) -> None:
    checker(10).check(random_recipe(seed), seed)


def test_a_target_offers_tactics_of_its_own_machine() -> None:
    """Also where the process could do more."""
    narrow = restricted("avx2")
    (matrix,) = (f for f in CpuTarget(narrow).families() if f.name == "matrix")
    assert matrix == matrix.on(narrow)
    assert matrix != type(matrix)()


def test_an_engine_of_narrow_kernels() -> None:
    """Engines run on it too: weights are packed for 8 lanes."""
    options = Options(onnx=False, share=0.3, tactics=0, machine=restricted("avx2"))
    narrow = Checker(options)
    for seed in (2, 4):
        narrow.check(random_recipe(seed), seed)
