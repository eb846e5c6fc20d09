from __future__ import annotations

import numpy as np
import pytest

from helpers.attentions import STEP, Form, attention, attention_task
from helpers.host_tactics import HostTactic
from helpers.levels import Levels, conv_of_levels
from planish.fusion.task import Task, make_task
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops import (
    Cast,
    Dequantize,
    FakeQuant,
    Gelu,
    MatMul,
    MatMulInteger,
    ReduceMean,
    SnapToLevels,
    ew,
)
from planish.tuning.slack import HALF_WAY, RARE, slack

SURE = (0.0, 0.0)


def slack_of(task: Task) -> tuple[float, float]:
    return slack(task, HostTactic(task))


@pytest.fixture
def b() -> Levels:
    return Levels(np.random.default_rng(0))


def scaled(b: Levels, sums: Value, scale: float) -> Value:
    return b.add(
        Dequantize(), sums, b.graph.constant(np.float32(scale)), b.graph.constant(np.float32(0))
    )


def test_exact_sums(b: Levels) -> None:
    assert slack_of(conv_of_levels(b.rng, (1, 4, 4, 8), 8, residual=True)) == SURE


def test_levels_of_exact_work(b: Levels) -> None:
    x = b.quantized(b.add(ew.Relu(), b.input((4, 8), DType.FLOAT32)))
    assert slack_of(b.task(b.add(MatMulInteger(), x, b.levels((8, 8)), *b.zeros()))) == SURE


def test_floats_without_levels(b: Levels) -> None:
    y = b.add(ew.Silu(), b.add(Cast(DType.FLOAT16), b.input((4, 8), DType.FLOAT32)))
    assert slack_of(make_task([y.producer], None)) == SURE


def test_functions_of_exact_sums_are_seldom_half_way(b: Levels) -> None:
    sums = b.add(MatMulInteger(), b.input((4, 8)), b.levels((8, 8)), *b.zeros())
    task = b.task(b.quantized(b.add(Gelu(), b.add(Cast(DType.FLOAT32), sums))))
    assert slack_of(task) == (1.0, RARE)


def test_sums_of_floats(b: Levels) -> None:
    mean = b.add(ReduceMean((1,), True), b.input((4, 8), DType.FLOAT32))
    assert slack_of(make_task([*b.nodes, b.quantized(mean).producer], b.nodes[0])) == (
        1.0,
        HALF_WAY,
    )


def test_levels_of_halves(b: Levels) -> None:
    wide = b.add(Cast(DType.FLOAT32), b.add(ew.Sigmoid(), b.input((4, 8), DType.BFLOAT16)))
    b.quantized(wide)
    assert slack_of(make_task(b.nodes, None)) == (1.0, HALF_WAY)


@pytest.mark.parametrize("dtype", [DType.FLOAT16, DType.FLOAT32])
def test_products_of_levels_that_may_be_the_next(b: Levels, dtype: DType) -> None:
    """Off by a few levels times the largest weight, in whatever unit the results have."""
    x = b.add(ew.Silu(), b.input((4, 8), dtype))
    x = x if dtype is DType.FLOAT32 else b.add(Cast(DType.FLOAT32), x)
    weights = b.graph.constant(np.arange(-60, 4, dtype=np.int8).reshape(8, 8))
    sums = b.add(MatMulInteger(), b.quantized(x), weights, *b.zeros())
    assert slack_of(b.task(sums)) == (180.0, HALF_WAY)
    y = scaled(b, sums, 0.25)
    assert slack_of(b.task(y)) == (45.0, HALF_WAY)
    assert slack_of(b.task(b.quantized(y, scale=0.5))) == (91.0, HALF_WAY)


def test_products_of_computed_factors(b: Levels) -> None:
    x = b.quantized(b.add(ew.Silu(), b.input((4, 8), DType.FLOAT32)))
    assert slack_of(b.task(b.add(MatMulInteger(), x, b.input((8, 8)), *b.zeros())))[0] == 3 * 255


def test_levels_of_levels(b: Levels) -> None:
    """Sums of floats, rounded, scaled and rounded again."""
    weights = b.floats((8, 8))
    sums = b.add(MatMul(), b.input((4, 8), DType.FLOAT32), weights)
    y = scaled(b, b.quantized(sums, scale=0.5), 0.5)
    assert slack_of(make_task(b.nodes, b.nodes[0])) == (0.5, HALF_WAY)
    b.quantized(y, scale=0.25)
    assert slack_of(make_task(b.nodes, b.nodes[0])) == (3.0, HALF_WAY)


def test_simulated_levels(b: Levels) -> None:
    sums = b.add(MatMul(), b.input((4, 8), DType.FLOAT32), b.floats((8, 8)))
    product = b.nodes[0]
    numbers = [b.graph.constant(np.float32(x)) for x in (4.0, 0.25)]
    snapped = b.add(SnapToLevels(), sums, *numbers)
    assert slack_of(make_task([product, snapped.producer], product)) == (0.25, HALF_WAY)
    numbers = [b.graph.constant(np.float32(x)) for x in (-1, 1, 0.125, 8, 8)]
    faked = b.add(FakeQuant(), sums, *numbers)
    assert slack_of(make_task([product, faked.producer], product)) == (0.125, HALF_WAY)


def test_weights_of_attention_may_be_the_next_levels() -> None:
    floats, levels = (attention_task(attention(Form(levels=n))) for n in ("floats", "levels"))
    step = float(np.float32(STEP))
    assert slack_of(floats) == (2 * step, HALF_WAY)
    assert slack_of(levels) == (1 + 2 * step, HALF_WAY)
