"""The attention kernel against the references: every form, size, layout, tile and machine."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.attentions import (
    FORMS,
    MASKS,
    Form,
    attention,
    attention_task,
    feeds_for,
    feeds_hiding,
)
from helpers.machines import restricted
from helpers.tactics import assert_close, assert_gaps_untouched, row_padded, strided
from planish.errors import PlanError
from planish.graph.types import DType
from planish.targets.attention import problem_of
from planish.targets.base import Binding, Layout
from planish.targets.cpu.kernels import attention as family
from planish.targets.cpu.kernels.attention import AttentionFamily, AttentionTactic
from planish.targets.cpu.machine import Machine, generic, host
from planish.targets.cpu.run import run_tactic

FAMILY = AttentionFamily()
CLOSE = 2e-5
"""Of results of about 1; the sums of exponentials are added in another order."""


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(4)


def check(
    form, rng, *, layouts=None, tactics=1, arrays=None, machine=None, close=CLOSE, **sizes
) -> None:
    """Runs the likeliest tactics, each as a plan would restore it."""
    task = attention_task(attention(form, **sizes))
    machine = machine or host()
    values = (*task.inputs, *task.outputs)
    binding = Binding({}, {v: layouts(v) for v in values} if layouts else {})
    if arrays is None:
        arrays = feeds_for(task.inputs, rng)
    expected = task.evaluate(arrays)
    here = FAMILY.on(machine)
    offered = list(here.tactics(task, binding))[:tactics]
    assert offered, "the family declines the task"
    for tactic in offered:
        assert here.restore(task, tactic.parameters).parameters == tactic.parameters
        outputs = run_tactic(tactic, binding, arrays, machine)
        for got, want in zip(outputs, expected, strict=True):
            assert_close(got, want, close)
            assert_gaps_untouched(got)


@pytest.mark.parametrize("mask", MASKS)
def test_masks(mask, rng):
    check(Form(mask=mask), rng, queries=21, keys=37)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_forms(form, rng):
    check(form, rng, queries=17, keys=9)


@pytest.mark.parametrize("size", [1, 7, 32, 64, 80, 96, 128])
def test_head_sizes(size, rng):
    check(Form(mask="keys"), rng, size=size, queries=19, keys=23)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 300), (5, 2), (33, 64), (50, 513)])
def test_lengths(queries, keys, rng):
    check(Form(), rng, queries=queries, keys=keys, heads=2)


@pytest.mark.parametrize("mask", ["none", "keys"])
def test_bfloat16(mask, rng):
    """Read and written so; the reference rounds scores and weights too, the kernel only results."""
    sizes = {"queries": 21, "keys": 37, "dtype": DType.BFLOAT16}
    check(Form(mask=mask), rng, tactics=2, close=3e-2, **sizes)


def test_values_may_be_narrower_than_queries(rng):
    check(Form(), rng, size=24, values=40)


def test_parts_of_one_projection(rng):
    check(Form(merged=True, mask="keys"), rng, queries=12, keys=12)


@pytest.mark.parametrize("gaps", ["rows", "axes"])
def test_layouts(gaps, rng):
    def layouts(value):
        if gaps == "rows" or value.name in ("q", "k", "v") or value.type.rank < 4:
            return row_padded(value)
        if value.producer is not None:
            return row_padded(value)
        return strided(value, rng)

    check(Form(mask="queries", factor=True), rng, layouts=layouts, queries=11, keys=13)


@pytest.mark.parametrize(
    ("rows", "vectors", "packed"),
    [(1, 1, False), (3, 2, True), (4, 3, False), (5, 1, True), (6, 2, True), (8, 1, False)],
)
def test_tiles(rows, vectors, packed, rng):
    task = attention_task(attention(Form(mask="queries"), queries=53, keys=70, size=20))
    arrays = feeds_for(task.inputs, rng)
    (expected,) = task.evaluate(arrays)
    for groups, block in ((1, 64), (2, 128)):
        tactic = AttentionTactic(task, host(), rows, vectors, groups, block, packed)
        (got,) = run_tactic(tactic, Binding({}), arrays)
        assert_close(got, expected, CLOSE)


def test_results_do_not_depend_on_how_tasks_are_split(rng):
    task = attention_task(attention(Form(mask="keys"), queries=70, keys=200))
    arrays = feeds_for(task.inputs, rng)
    tactic = AttentionTactic(task, host(), 4, 2, 1, 64, False)
    first, *others = (run_tactic(tactic, Binding({}), arrays, ranges=n)[0] for n in (1, 2, 5))
    for other in others:
        np.testing.assert_array_equal(first, other)


class TestRowsWithoutWeights:
    """Scores of -inf: in a whole block of keys, in whole rows."""

    def test_a_whole_block_of_keys_is_hidden(self, rng):
        task = attention_task(attention(Form(mask="bool"), queries=20, keys=200))
        arrays = feeds_hiding(task, rng, (3, slice(0, 130)), (4, slice(64, 128)))
        (expected,) = task.evaluate(arrays)
        assert np.isfinite(expected).all()
        tactic = AttentionTactic(task, host(), 4, 2, 1, 64, False)
        assert_close(run_tactic(tactic, Binding({}), arrays)[0], expected, CLOSE)

    @pytest.mark.parametrize("guard", ["", "nan"])
    def test_everything_is_hidden(self, guard, rng):
        task = attention_task(attention(Form(mask="bool", guard=guard), queries=20, keys=70))
        arrays = feeds_hiding(task, rng, (3, slice(None)))
        with np.errstate(invalid="ignore"):
            (expected,) = task.evaluate(arrays)
        assert np.isnan(expected).any() == (guard == "")
        tactic = AttentionTactic(task, host(), 4, 2, 1, 64, True)
        assert_close(run_tactic(tactic, Binding({}), arrays)[0], expected, CLOSE)

    def test_least_finite_scores_count_alike(self, rng):
        """A mask of the least float: where it covers a row, all weights are equal."""
        task = attention_task(attention(Form(mask="keys"), queries=9, keys=70))
        arrays = feeds_for(task.inputs, rng)
        arrays[-1] = np.full_like(arrays[-1], np.finfo(np.float32).min)
        (expected,) = task.evaluate(arrays)
        tactic = AttentionTactic(task, host(), 4, 2, 1, 64, True)
        assert_close(run_tactic(tactic, Binding({}), arrays)[0], expected, CLOSE)

    def test_nan_goes_through(self, rng):
        task = attention_task(attention(Form(mask="keys"), queries=9, keys=70, batch=2))
        arrays = feeds_for(task.inputs, rng)
        arrays[-1][1, 0, 0, 5] = np.nan
        (got,) = run_tactic(AttentionTactic(task, host(), 4, 2, 1, 64, False), Binding({}), arrays)
        assert np.isnan(got[1]).all() and np.isfinite(got[0]).all()


def test_large_scores_do_not_overflow(rng):
    task = attention_task(attention(Form(scaled="none"), queries=9, keys=70))
    arrays = feeds_for(task.inputs, rng)
    arrays[0] *= 100
    (expected,) = task.evaluate(arrays)
    for tactic in list(FAMILY.tactics(task, Binding({})))[:2]:
        # scores of some hundreds: their own rounding is a relative error of the weights
        assert_close(run_tactic(tactic, Binding({}), arrays)[0], expected, 2e-3)


@pytest.mark.parametrize("isa", ["avx2", "avx512", "neon"])
def test_machines(isa, rng):
    if isa == "neon":  # what it computes is tested where there is an Arm, or an emulator
        task = attention_task(attention(Form(mask="queries"), size=20))
        here = FAMILY.on(generic("neon"))
        tactic = next(iter(here.tactics(task, Binding({}))))
        (launch,) = tactic.launches(Binding({}))
        assert launch.kernel.compile(generic("neon"))
        return
    machine = restricted(isa)
    check(Form(mask="queries"), rng, machine=machine, queries=40, keys=33)


def test_what_is_offered_is_ordered_and_differs(rng):
    task = attention_task(attention(Form(mask="keys"), queries=128, keys=128, heads=12, size=32))
    offered = list(FAMILY.tactics(task, Binding({})))
    assert len(offered) == family.TRIED
    assert len({(t.rows, t.vectors) for t in offered}) > 1
    assert len({t.groups for t in offered}) > 1
    problem = problem_of(task, Binding({}))
    costs = [family.estimate(problem, tuple(t.parameters.values()), host()) for t in offered]
    assert costs == sorted(costs)


def test_other_tasks_are_declined(rng):
    halves = attention_task(attention(Form(), dtype=DType.FLOAT16))
    assert not list(FAMILY.tactics(halves, Binding({})))
    with pytest.raises(PlanError, match="impossible attention kernel"):
        FAMILY.restore(halves, dict(rows=4, vectors=2, groups=1, block=64, packed=False))
    wide = attention_task(attention(Form(), size=1024))
    assert not list(FAMILY.tactics(wide, Binding({})))
    task = attention_task(attention(Form()))
    turned = {v: strided_last(v) for v in task.inputs}
    assert not list(FAMILY.tactics(task, Binding({}, turned)))


def strided_last(value) -> Layout:
    """Columns that do not lie side by side."""
    shape = value.type.bind({})
    return Layout(shape, (*(2 * s for s in row_padded(value).strides[:-1]), 2))


@pytest.mark.parametrize(
    "change", [{"rows": 0}, {"vectors": 5}, {"groups": 3}, {"block": 100}, {"packed": 1}], ids=str
)
def test_plans_cannot_ask_for_impossible_tiles(change):
    task = attention_task(attention(Form()))
    known = dict(rows=4, vectors=2, groups=1, block=64, packed=False)
    assert FAMILY.restore(task, known)
    with pytest.raises(PlanError, match="impossible attention kernel"):
        FAMILY.restore(task, {**known, **change})


def test_machine_has_another_form_for_each_vector_width() -> None:
    machines: list[Machine] = [generic(isa) for isa in ("avx2", "avx512", "neon")]
    task = attention_task(attention(Form(), queries=64, keys=64))
    tiles = [
        next(iter(FAMILY.on(m).tactics(task, Binding({})))).parameters["rows"] for m in machines
    ]
    assert tiles[0] < tiles[1]
