"""Winograd convolution of bytes against the references, bit by bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.byte_tasks import I8, U8, arrays_of, conv_task
from helpers.machines import restricted
from planish.errors import PlanError
from planish.fusion.task import Task, make_task
from planish.graph import Graph, TensorType
from planish.ops.quantization import ConvInteger
from planish.targets.base import Binding, Layout, dense_strides
from planish.targets.cpu.codegen.compile import emit_text, is_native
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.kernels.integer_winograd import (
    IntegerWinogradFamily,
    IntegerWinogradTactic,
)
from planish.targets.cpu.machine import Machine, generic, host
from planish.targets.cpu.run import run_tactic

FAMILY = IntegerWinogradFamily()
TILES = ((2, 6, 1, 1), (4, 3, 2, 1), (2, 2, 3, 8), (4, 4, 1, 4))
"""results, pixels, vectors, halves."""


def tactics_of(task: Task, machine: Machine) -> list[IntegerWinogradTactic]:
    names = ("results", "pixels", "vectors", "halves")
    family = FAMILY.on(machine)
    return [family.restore(task, dict(zip(names, tile, strict=True))) for tile in TILES]


def check(task: Task, *, binding: Binding | None = None, machine: Machine | None = None) -> None:
    binding = binding or Binding({})
    arrays = arrays_of(task, np.random.default_rng(1))
    (expected,) = task.evaluate(arrays)
    for tactic in tactics_of(task, machine or host()):
        assert tactic.accepts(binding)
        (have,) = run_tactic(tactic, binding, arrays, machine)
        np.testing.assert_array_equal(have, expected, err_msg=str(tactic))


CASES = [
    dict(shape=(1, 8, 8, 16), filters=16, pad=1),
    dict(shape=(2, 9, 11, 32), filters=48, pad=1, residual=True),
    dict(shape=(1, 7, 6, 19), filters=21, pad=1, source=I8, zero=-7, residual=True),
    dict(shape=(1, 6, 5, 3), filters=5, pad=1, zero=255),
    dict(shape=(1, 10, 12, 24), filters=16),
    dict(shape=(1, 3, 4, 16), filters=16, pad=2, source=I8, zero=-128),
    dict(shape=(3, 1, 1, 16), filters=16, pad=1),
    dict(shape=(1, 6, 7, 47), filters=16, pad=1, weight_zero=1),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolutions(case) -> None:
    check(conv_task(np.random.default_rng(0), window=3, **case))


@pytest.mark.parametrize("case", [CASES[1], CASES[2], CASES[5]], ids=str)
def test_convolutions_avx2(case) -> None:
    check(conv_task(np.random.default_rng(0), window=3, **case), machine=restricted("avx2"))


def test_parts_of_larger_tensors() -> None:
    task = conv_task(np.random.default_rng(2), shape=(2, 6, 7, 12), filters=16, window=3, pad=1)
    (x,), (y,) = [v for v in task.inputs if not v.is_constant], task.outputs
    layouts = {
        value: Layout(tuple(value.shape), dense_strides((*value.shape[:-1], wide)), alignment=1)
        for value, wide in ((x, 20), (y, 48))
    }
    check(task, binding=Binding({}, layouts))


@pytest.mark.parametrize("seed", range(8))
def test_random_convolutions(seed: int) -> None:
    """Any sizes, zero points, tiles and distances between pixels."""
    rng = np.random.default_rng(seed)
    machine = host() if host().isa != "avx512" or seed % 2 else restricted("avx2")
    source = (U8, I8)[seed // 2 % 2]
    levels = np.iinfo(source.numpy)
    size, depth = rng.integers(3, 20, 2), rng.choice([1, 3, 15, 16, 31, 33, 48, 80])
    task = conv_task(
        rng,
        shape=(int(rng.integers(1, 4)), *map(int, size), int(depth)),
        filters=int(rng.integers(1, 65)),
        window=3,
        pad=int(rng.integers(0, 3)),
        source=source,
        zero=int(rng.integers(levels.min, levels.max + 1)),
        residual=bool(rng.integers(2)),
    )
    layouts = {}
    for value in (*(v for v in task.inputs if not v.is_constant), *task.outputs):
        apart = (*value.shape[:-1], int(value.shape[-1]) + int(rng.integers(0, 9)))
        layouts[value] = Layout(tuple(value.shape), dense_strides(apart), alignment=1)
    check(task, binding=Binding({}, layouts), machine=machine)


def constant_task(depth: int, weight: int, source=U8, zero: int = 0, weight_zero: int = 0) -> Task:
    """A bare convolution of equal weights, whose sums are the largest that there are."""
    graph = Graph()
    x = graph.input("x", TensorType((1, 6, 6, depth), source))
    kind = np.uint8 if weight > 127 else np.int8
    w = graph.constant(np.full((3, 3, depth, 16), weight, kind))
    zeros = graph.constant(np.asarray(zero, source.numpy)), graph.constant(kind(weight_zero))
    y = graph.add(ConvInteger((1, 1), ((1, 1), (1, 1)), (1, 1), 1), x, w, *zeros)
    graph.mark_output(y, "y")
    return make_task([y.producer], y.producer)


@pytest.mark.parametrize("weight", [127, -128])
@pytest.mark.parametrize(("source", "zero"), [(U8, 0), (U8, 255), (I8, 0), (I8, 127)])
def test_sums_up_to_the_largest(weight: int, source, zero: int) -> None:
    """Tiles of 4 x 4 lose six bits: sums are right up to 2^25, and refused where one may be more;
    those of 2 x 2 lose two.
    """
    extreme = np.iinfo(source.numpy)
    far = max(extreme.max - zero, zero - extreme.min)
    most = ((1 << 25) - 1) // (9 * abs(weight) * far)  # channels
    for depth in (most, most + 1):
        task = constant_task(depth, weight, source, zero)
        small, large = tactics_of(task, host())[:2]
        assert small.accepts(Binding({}))
        assert large.accepts(Binding({})) == (depth == most)
        for value in (extreme.min, extreme.max):
            x = np.full((1, 6, 6, depth), value, source.numpy)
            arrays = [x if v.data is None else v.data for v in task.inputs]
            (expected,) = task.evaluate(arrays)
            for tactic in (small, large)[: 1 + (depth == most)]:
                (have,) = run_tactic(tactic, Binding({}), arrays)
                np.testing.assert_array_equal(have, expected, err_msg=str(tactic))


def test_transformed_weights_of_more_than_16_bits_are_refused() -> None:
    """255 times 12 along both axes is more; with tiles of 2 x 2 it is times 3."""
    small, large = tactics_of(constant_task(16, 255), host())[:2]
    assert small.accepts(Binding({})) and not large.accepts(Binding({}))
    small, large = tactics_of(constant_task(16, 255, weight_zero=128), host())[:2]
    assert small.accepts(Binding({})) and large.accepts(Binding({}))


@pytest.mark.parametrize(
    "case",
    [{"stride": 2}, {"dilation": 2}, {"groups": 2}, {"window": 5}, {"window": 1}, {"prologue": 1}],
    ids=str,
)
def test_other_convolutions_are_declined(case: dict) -> None:
    given = {"shape": (1, 28, 28, 64), "filters": 64, "window": 3, **case}
    task = conv_task(np.random.default_rng(0), **given)
    assert not list(FAMILY.tactics(task, Binding({})))
    with pytest.raises(PlanError, match="does not compute this conv"):
        FAMILY.restore(task, {})


@pytest.mark.parametrize("isa", ["avx512", "avx2", "neon"])
def test_offered_where_it_may_pay(isa: str) -> None:
    family = FAMILY.on(generic(isa))
    rng = np.random.default_rng(0)
    wide = conv_task(rng, shape=(8, 28, 28, 64), filters=64, window=3, pad=1)
    offered = list(family.tactics(wide, Binding({})))
    assert offered[0].results == 4
    for tactic in offered:
        assert family.restore(wide, tactic.parameters).parameters == tactic.parameters
    few = conv_task(rng, shape=(8, 28, 28, 4), filters=4, window=3, pad=1)
    assert not list(family.tactics(few, Binding({})))
    # weights alone would take longer
    deep = conv_task(rng, shape=(1, 2, 2, 512), filters=512, window=3, pad=1)
    assert not list(family.tactics(deep, Binding({})))


def test_a_tile_of_too_many_registers() -> None:
    task = conv_task(np.random.default_rng(0), **CASES[0], window=3)
    with pytest.raises(PlanError, match="no register tile is that large"):
        FAMILY.restore(task, {"results": 4, "pixels": 20, "vectors": 2, "halves": 1})


@pytest.mark.parametrize(
    ("isa", "feature", "registers"),
    [("avx512", "+avx512vnni", "%zmm"), ("avx2", "+avxvnni", "%ymm")],
)
def test_vnni_adds_products_in_registers(isa: str, feature: str, registers: str) -> None:
    """An instruction for two products a lane, and nothing to do with the stack between them."""
    plain = generic(isa)
    machine = replace(plain, features=tuple(sorted((*plain.features, feature))))
    pixels = 14 if isa == "avx512" else 6
    case = dict(shape=(1, 28, 28, 256), filters=256, window=3, pad=1)
    task = conv_task(np.random.default_rng(0), **case)
    tactic = IntegerWinogradTactic(task, machine, 4, pixels, 2, 4)
    (launch,) = tactic.launches(Binding({}))
    kernel = launch.kernel
    assert isinstance(kernel, CpuKernel)
    text = emit_text(kernel.assembly(machine), machine)
    inner = max(text.split(".LBB"), key=lambda block: block.count("vpdpwssd"))
    assert inner.count("vpdpwssd") == 2 * pixels * 4
    assert registers in inner and "(%rsp)" not in inner
    assert "vpmaddwd" not in text
    if is_native(machine):  # where it is not, nobody reads such an instruction
        kernel.compile(machine)
