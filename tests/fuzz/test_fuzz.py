"""Random graphs through the whole pipeline, against the references and ONNX Runtime.

Kernels are compiled for some tasks only, drawn by the seed: compiling is what takes the time. The
long run with every tactic of every task is `tests/campaigns/fuzz_graphs.py`.
"""

from __future__ import annotations

import numpy as np
import pytest

import planish.ops as ops
from helpers.fuzz.check import Checker, Options, shrink, smallest_failure
from helpers.fuzz.generate import SMALLEST, random_recipe
from helpers.fuzz.recipe import Domain, Recipe, Ref, Source, Step, Weight
from helpers.fuzz.rounding import Bounds, Noise
from helpers.fuzz.specs import has_spec
from planish.graph import TensorType
from planish.graph.types import DType
from planish.ops.base import OPS

GRAPHS = 120
BATCH = 20
NO_SPEC = {"onnx_fallback"}
"""Ops that no graph of ours can hold: calls of another runtime."""

_ENGINES = Checker(Options(share=0.1, tactics=0))
"""Kernels run some of the tasks of an engine."""

_TACTICS = Checker(Options(share=0.0, tactics=1))
"""The references run the engine; a tactic is tried by itself."""


def _check(checker: Checker, seed: int) -> None:
    recipe = random_recipe(seed)
    try:
        checker.check(recipe, seed)
    except Exception:
        if told := smallest_failure(checker, recipe, seed, 60):
            pytest.fail(told)  # else more noise showed that rounding explains it


@pytest.mark.parametrize("first", range(0, GRAPHS, BATCH))
def test_random_graphs(first: int) -> None:
    for seed in range(first, first + BATCH):
        _check((_ENGINES, _TACTICS)[seed % 2], seed)


@pytest.mark.parametrize("first", range(0, GRAPHS // 2, BATCH))
def test_random_graphs_on_a_gpu(first: int) -> None:
    """Tactics of a described one, in interpreters."""
    pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")
    from helpers.fuzz.cuda_target import CudaFuzzTarget

    checker = Checker(Options(engine=False, onnx=False, tactics=5), CudaFuzzTarget())
    for seed in range(first, first + BATCH):
        _check(checker, seed)
    assert len(checker.tally.families) >= 8, str(checker.tally)


def test_enough_was_compared() -> None:
    """After all of the above, or a few graphs: rounding must not hide everything."""
    tally = _ENGINES.tally
    if not tally.graphs:
        _ENGINES.check(random_recipe(0), 0)
    assert tally.compared >= 0.97 * tally.elements, str(tally)
    assert tally.nodes >= 0.9 * SMALLEST * tally.graphs, str(tally)


def test_every_op_can_be_drawn() -> None:
    assert {op.name for op in OPS.values() if not has_spec(op)} <= NO_SPEC


def test_every_op_is_drawn() -> None:
    missing = {name for name, op in OPS.items() if has_spec(op)}
    for seed in range(GRAPHS):
        if not missing:
            break
        missing -= {node.op.name for node in random_recipe(seed).graph().nodes}
    assert not missing


def test_a_seed_is_a_graph() -> None:
    assert str(random_recipe(7).graph()) == str(random_recipe(7).graph())


@pytest.mark.parametrize(("small", "accepted"), [(1e-13, True), (1e-6, False)])
def test_a_product_may_be_zero_where_an_order_gives_that(small: float, accepted: bool) -> None:
    """Of 1e-13: 1e-32 if taken in turn, 0 if two lanes take every other number."""
    x = np.float32([1e5, small] * 4)
    op = ops.ReduceProd((0,))
    (exact,), noisy = op.reference(x), Noise(0).results(op, [x])
    assert exact > 0 and (np.prod(x[::2]) * np.prod(x[1::2]) == 0) == accepted
    assert (Bounds(exact, noisy).difference(np.zeros_like(exact)) == "") == accepted


def test_onnx_runtime_is_not_given_a_value_of_both_runtimes() -> None:
    """It rounds the first op otherwise and does not have the second: y >= y holds all the same."""
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)
    x = Source(TensorType((1, 8, 33), DType.FLOAT32), Domain(), 0)
    scales = [Weight(rng.standard_normal(33).astype(np.float32)) for _ in range(2)]
    steps = (
        Step(ops.InstanceNorm(1e-2), (Ref(0), Ref(1), Ref(2))),
        Step(ops.Pad(((0, 0),) * 3, "symmetric"), (Ref(3),)),
        Step(ops.ew.GreaterEqual(), (Ref(4), Ref(3))),
    )
    checker = Checker(Options(engine=False, tactics=0))
    checker.check(Recipe((x, *scales, *steps), (Ref(5),)), 0)
    assert checker.tally.onnx_nodes == 2


def test_a_failing_graph_is_cut_down() -> None:
    """To the one op, and an input, that the failure needs."""
    name = "softmax"
    graphs = ((s, random_recipe(s).graph().nodes) for s in range(200))
    seed = next(  # an op of several results is never cut off
        s
        for s, nodes in graphs
        if any(n.op.name == name for n in nodes) and all(len(n.outputs) == 1 for n in nodes)
    )
    recipe = random_recipe(seed)

    def fails(candidate) -> bool:
        return any(n.op.name == name for n in candidate.graph().nodes)

    small = shrink(recipe, fails)
    assert [n.op.name for n in small.graph().nodes] == [name]
