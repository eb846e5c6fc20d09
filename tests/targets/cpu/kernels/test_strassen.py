"""Products with seven eighths of the multiplications against the references."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from helpers.machines import restricted
from planish.errors import PlanError
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType, symbol
from planish.ops.conv import Conv
from planish.ops.elementwise import ew
from planish.ops.matmul import MatMul
from planish.targets.base import Binding
from planish.targets.cpu.kernels.strassen import StrassenFamily, StrassenTactic
from planish.targets.cpu.kernels.strassen_kernel import FACTORS, SHARES
from planish.targets.cpu.machine import Machine, host
from planish.targets.cpu.run import run_tactic

TOLERANCE = 1e-5
"""Of the largest result, as for the matrix kernel: what a sum in another order may differ by."""


def product(
    shape: tuple,
    channels: int,
    *,
    transpose_b: bool = False,
    residual: bool = False,
    conv: bool = False,
    **conv_attributes,
) -> Task:
    """A product with constant weights, with a bias, perhaps a residual, and an activation."""
    rng = np.random.default_rng(len(shape) + channels)
    graph = Graph()
    x = graph.input("x", TensorType(shape, DType.FLOAT32))
    depth = int(shape[-1]) // conv_attributes.get("groups", 1)
    size = (1, 1, depth, channels) if conv else (channels, depth)[:: 1 if transpose_b else -1]
    size = conv_attributes.pop("window", (1, 1)) + size[2:] if conv else size
    weights = graph.constant(rng.standard_normal(size).astype(np.float32))
    op = MatMul(False, transpose_b)
    if conv:
        given = {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilations": (1, 1), "groups": 1}
        op = Conv(**{**given, **conv_attributes})
    y = graph.add(op, x, weights)
    anchor = y.producer
    nodes = [anchor]
    others = [graph.constant(rng.standard_normal(channels).astype(np.float32))]
    if residual:
        others.append(graph.input("residual", y.type))
    for other in others:
        y = graph.add(ew.Add(), y, other)
        nodes.append(y.producer)
    y = graph.add(ew.Relu(), y)
    nodes.append(y.producer)
    graph.mark_output(y, "y")
    return make_task(nodes, anchor)


def tactics_of(task: Task, machine: Machine, binding: Binding) -> list[StrassenTactic]:
    """Small and large register tiles, one and several of them, where they suit the problem."""
    family = StrassenFamily(machine)
    found = []
    for (pixels, vectors), tiles in itertools.product(((5, 1), (3, 2), (2, 3)), (1, 2, 3)):
        tactic = family.restore(task, {"pixels": pixels, "vectors": vectors, "tiles": tiles})
        if tactic.accepts(binding):
            found.append(tactic)
    return found


def check(task: Task, machine: Machine, binding: Binding | None = None) -> int:
    """Compares tactics with the ops; gives how many there were."""
    binding = binding or Binding({})
    rng = np.random.default_rng()
    arrays = [
        v.data
        if v.is_constant
        else rng.standard_normal(v.type.bind(binding.symbols)).astype(np.float32)
        for v in task.inputs
    ]
    (expected,) = task.evaluate(arrays)
    tactics = tactics_of(task, machine, binding)
    for tactic in tactics:
        (have,) = run_tactic(tactic, binding, arrays, machine)
        scale = float(np.abs(expected).max())
        np.testing.assert_allclose(
            have, expected, rtol=0, atol=TOLERANCE * scale, err_msg=str(tactic)
        )
    return len(tactics)


def test_products_and_shares_are_the_product_of_two_by_two_blocks() -> None:
    rng = np.random.default_rng()
    a, b = rng.integers(-9, 10, (2, 4))

    def summed(terms, quadrants):
        return sum(sign * quadrants[q] for q, sign in terms.items())

    result = np.zeros(4, int)
    for (left, right), shares in zip(FACTORS, SHARES, strict=True):
        for quadrant, sign in shares.items():
            result[quadrant] += sign * summed(left, a) * summed(right, b)
    np.testing.assert_array_equal(result.reshape(2, 2), a.reshape(2, 2) @ b.reshape(2, 2))


def test_the_first_share_of_a_quadrant_is_positive() -> None:
    """It is stored, not added."""
    first: dict[int, int] = {}
    for shares in SHARES:
        first = {**shares, **first}
    assert first == dict.fromkeys(range(4), 1)


@pytest.mark.parametrize("isa", ["native", "avx2"])
@pytest.mark.parametrize(
    "case",
    [
        dict(shape=(1, 30, 64), channels=192),
        dict(shape=(2, 31, 96), channels=96, transpose_b=True, residual=True),
        dict(shape=(2, 3, 7, 64), channels=128, residual=True),
        dict(shape=(3, 6, 32), channels=192),
        dict(shape=(2, 5, 7, 64), channels=64, conv=True, residual=True),
        dict(shape=(2, 9, 7, 64), channels=64, conv=True, residual=True, strides=(2, 1)),
        dict(shape=(1, 10, 14, 32), channels=96, conv=True, strides=(2, 3)),
        dict(shape=(1, 9, 2048), channels=64),
    ],
    ids=[
        *("even", "transposed", "stack", "few pixels", "conv", "strides", "one image"),
        "pixels that alias",
    ],
)
def test_against_the_references(case, isa) -> None:
    if isa == "avx2" and host().isa == "neon":
        pytest.skip("an x86-64 instruction set")
    assert check(product(**case), host() if isa == "native" else restricted("avx2"))


def test_sizes_that_change_between_calls() -> None:
    tokens = product((2, symbol("n"), 64), 192)
    assert not check(tokens, host(), Binding({"n": 1}))
    for count in (5, 11, 64):
        assert check(tokens, host(), Binding({"n": count}))
    samples = product((symbol("n"), 13, 64), 192)
    for count in (1, 3):
        assert check(samples, host(), Binding({"n": count}))


def test_samples_do_not_hear_of_each_other() -> None:
    task, rng = product((3, 11, 64), 192, residual=True), np.random.default_rng()
    arrays = [
        v.data if v.is_constant else rng.standard_normal(v.shape).astype(np.float32)
        for v in task.inputs
    ]
    spoiled = [a if v.is_constant else a.copy() for a, v in zip(arrays, task.inputs, strict=True)]
    for array, value in zip(spoiled, task.inputs, strict=True):
        if not value.is_constant:
            array[1] = rng.choice([np.nan, np.inf, 1e30], array[1].shape)
    tactics = tactics_of(task, host(), Binding({}))
    assert tactics
    for tactic in tactics:
        (alone,) = run_tactic(tactic, Binding({}), arrays)
        (beside,) = run_tactic(tactic, Binding({}), spoiled)
        np.testing.assert_array_equal(beside[[0, 2]], alone[[0, 2]])


def test_the_order_of_tasks_does_not_show() -> None:
    """Pixels that two halves compute are rounded in two ways; only one of them may be stored."""
    task, rng = product((3, 29, 576), 64), np.random.default_rng()
    arrays = [
        v.data if v.is_constant else rng.standard_normal(v.shape).astype(np.float32)
        for v in task.inputs
    ]
    tactics = tactics_of(task, host(), Binding({}))
    assert tactics
    for tactic in tactics:
        (launch,) = tactic.launches(Binding({}))
        assert launch.tasks > 1
        (forwards,) = run_tactic(tactic, Binding({}), arrays, ranges=1)
        (backwards,) = run_tactic(tactic, Binding({}), arrays, ranges=launch.tasks)
        np.testing.assert_array_equal(backwards, forwards)


ONE = {"pixels": 2, "vectors": 1, "tiles": 1}


@pytest.mark.parametrize(
    "case",
    [
        dict(shape=(2, 8, 8, 64), channels=64, conv=True, window=(3, 3)),
        dict(shape=(2, 8, 8, 128), channels=128, conv=True, groups=2),
    ],
    ids=["window", "groups"],
)
def test_what_is_no_plain_product_is_refused(case) -> None:
    task, family = product(**case), StrassenFamily(host())
    assert not list(family.tactics(task, Binding({})))
    with pytest.raises(PlanError, match="does not compute this"):
        family.restore(task, ONE)


@pytest.mark.parametrize(
    "case",
    [
        dict(shape=(2, 8, 8, 64), channels=64, conv=True, padding=((1, 1), (1, 1))),
        dict(shape=(1, 30, 63), channels=64),
        dict(shape=(1, 30, 64), channels=60),
        dict(shape=(30, 1, 64), channels=64),
        dict(shape=(30, 64), channels=64),
    ],
    ids=["padding", "depth", "channels", "one pixel", "samples of a row"],
)
def test_shapes_that_do_not_suit_are_left_alone(case) -> None:
    task, family = product(**case), StrassenFamily(host())
    assert not list(family.tactics(task, Binding({})))
    assert not family.restore(task, ONE).accepts(Binding({}))


def test_offered_for_deep_products_only() -> None:
    family = StrassenFamily(host())
    assert not list(family.tactics(product((1, 128, 256), 768), Binding({})))
    offered = list(family.tactics(product((1, 128, 768), 768), Binding({})))
    assert offered
    assert all(tactic.accepts(Binding({})) for tactic in offered)


@pytest.mark.parametrize(
    "wrong", [{"pixels": 0}, {"tiles": 5}, {"vectors": 33}, {"pixels": 20, "vectors": 2}]
)
def test_impossible_parameters_are_refused(wrong) -> None:
    with pytest.raises(PlanError, match="impossible strassen kernel"):
        StrassenFamily(host()).restore(product((1, 30, 64), 64), {**ONE, **wrong})
