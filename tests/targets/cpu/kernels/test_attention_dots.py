"""Attention by dot products of short numbers: bfloat16 and levels, beside the references."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.attentions import (
    FORMS,
    MASKS,
    STEP,
    Form,
    attention,
    attention_task,
    feeds_for,
    feeds_hiding,
)
from helpers.machines import restricted
from helpers.tactics import assert_gaps_untouched, row_padded
from planish.errors import PlanError
from planish.fusion.task import Task
from planish.graph.types import DType
from planish.targets.base import Binding
from planish.targets.cpu.kernels.attention import AttentionFamily
from planish.targets.cpu.kernels.attention_dots import AttentionDotsFamily, AttentionDotsTactic
from planish.targets.cpu.machine import Machine, generic, host
from planish.targets.cpu.run import run_tactic

NUMBERS = ("bfloat16", "levels")
LEVELS = Form(levels="floats")
TILES = [(12, 2, 1, 64, True), (5, 1, 2, 128, False), (6, 4, 1, 64, False), (8, 2, 4, 256, True)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def machine_for(numbers: str) -> Machine:
    machine = host()
    has_it = machine.has_bf16 if numbers == "bfloat16" else machine.has_vnni
    if not has_it:
        pytest.skip(f"this CPU does not multiply {numbers} several at a time")
    return machine


def task_of(numbers: str, form: Form, **sizes: object) -> Task:
    if numbers == "bfloat16":
        return attention_task(attention(form, dtype=DType.BFLOAT16, **sizes))  # type: ignore[arg-type]
    return attention_task(attention(replace(form, levels="floats"), **sizes))  # type: ignore[arg-type]


def expected_of(task: Task, numbers: str, arrays: list[np.ndarray]) -> np.ndarray:
    """In float32 throughout; levels with their weights rounded."""
    if numbers == "levels":
        return task.evaluate(arrays)[0]
    q, k, v = (arrays[i].astype(np.float32) for i in range(3))
    assert task.attention is not None
    axes = task.attention.axes
    q, k, v = (x.transpose(a) for x, a in zip((q, k, v), axes, strict=False))
    scores = q @ k.swapaxes(-1, -2) * np.float32(task.attention.scale * q.shape[-1] ** -0.5)
    if len(arrays) > 3:
        scores = scores + arrays[3].astype(np.float32)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).transpose(np.argsort(axes[3]))


def check(
    numbers: str,
    form: Form,
    rng: np.random.Generator,
    *,
    tactics: int = 2,
    padded: bool = False,
    **sizes: object,
) -> None:
    """Runs the likeliest tactics, each as a plan would restore it."""
    machine = machine_for(numbers)
    task = task_of(numbers, form, **sizes)
    values = [v for v in (*task.inputs, *task.outputs) if v.type.rank == 4]
    binding = Binding({}, {v: row_padded(v) for v in values} if padded else {})
    arrays = feeds_for(task.inputs, rng)
    (wanted,) = task.evaluate(arrays)
    here = AttentionDotsFamily().on(machine)
    offered = list(here.tactics(task, binding))[:tactics]
    assert offered, "the family declines the task"
    for tactic in offered:
        assert here.restore(task, tactic.parameters).parameters == tactic.parameters
        (got,) = run_tactic(tactic, binding, arrays, machine)
        assert_near(got, wanted, numbers)
        assert_gaps_untouched(got)


def assert_near(got: np.ndarray, wanted: np.ndarray, numbers: str) -> None:
    """Bfloat16: of results of about 1, which the reference rounds thrice. Levels: a weight, one
    part of 255 at least, is the next level now and then, and finer ones before the greatest is
    known.
    """
    error = np.abs(got.astype(np.float32) - wanted.astype(np.float32))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    error = error[~np.isnan(error)]
    if numbers == "bfloat16":
        assert error.max(initial=0) < 3e-2
        return
    assert error.max(initial=0) < 2 * STEP
    assert error.size == 0 or error.mean() < STEP / 50


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("mask", MASKS)
def test_masks(numbers, mask, rng):
    check(numbers, Form(mask=mask), rng, queries=21, keys=37)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_forms(numbers, form, rng):
    check(numbers, form, rng, queries=17, keys=9)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("size", [4, 20, 32, 64, 80, 96, 128])
def test_head_sizes(numbers, size, rng):
    check(numbers, Form(mask="keys"), rng, size=size, queries=19, keys=23)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 301), (5, 2), (33, 64), (50, 515)])
def test_lengths(numbers, queries, keys, rng):
    check(numbers, Form(), rng, queries=queries, keys=keys, heads=2)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_values_may_be_narrower_than_queries(numbers, rng):
    check(numbers, Form(), rng, size=24, values=39)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_parts_of_one_projection(numbers, rng):
    check(numbers, Form(merged=True, mask="keys"), rng, queries=12, keys=12)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_rows_apart(numbers, rng):
    """Rows of an odd stride: groups that lie at no multiple of their size."""
    check(numbers, Form(mask="queries"), rng, padded=True, queries=11, keys=13)


@pytest.mark.parametrize("numbers", NUMBERS)
@pytest.mark.parametrize("tile", TILES, ids=str)
def test_tiles(numbers, tile, rng):
    machine = machine_for(numbers)
    task = task_of(numbers, Form(mask="keys"), queries=53, keys=70, size=20)
    arrays = feeds_for(task.inputs, rng)
    (got,) = run_tactic(AttentionDotsTactic(task, machine, *tile), Binding({}), arrays)
    assert_near(got, expected_of(task, numbers, arrays), numbers)


@pytest.mark.parametrize("numbers", NUMBERS)
def test_results_do_not_depend_on_how_tasks_are_split(numbers, rng):
    tactic = AttentionDotsTactic(
        task_of(numbers, Form(mask="keys"), queries=70, keys=200), machine_for(numbers), 4, 2, 1,
        64, False,
    )  # fmt: skip
    arrays = feeds_for(tactic.task.inputs, rng)
    first, *others = (run_tactic(tactic, Binding({}), arrays, ranges=n)[0] for n in (1, 2, 5))
    for other in others:
        np.testing.assert_array_equal(first, other)


@pytest.mark.parametrize("numbers", NUMBERS)
class TestRowsWithoutWeights:
    def test_a_whole_block_of_keys_is_hidden(self, numbers, rng):
        machine = machine_for(numbers)
        task = task_of(numbers, Form(mask="bool"), queries=20, keys=200)
        arrays = feeds_hiding(task, rng, (3, slice(0, 130)), (4, slice(64, 128)))
        (wanted,) = task.evaluate(arrays)
        assert np.isfinite(wanted.astype(np.float32)).all()
        tactic = AttentionDotsTactic(task, machine, 4, 2, 1, 64, False)
        assert_near(run_tactic(tactic, Binding({}), arrays)[0], wanted, numbers)

    @pytest.mark.parametrize("guard", ["", "nan"])
    def test_everything_is_hidden(self, numbers, guard, rng):
        machine = machine_for(numbers)
        task = task_of(numbers, Form(mask="bool", guard=guard), queries=20, keys=70)
        arrays = feeds_hiding(task, rng, (3, slice(None)))
        with np.errstate(invalid="ignore"):
            (wanted,) = task.evaluate(arrays)
        assert np.isnan(wanted.astype(np.float32)).any() == (guard == "")
        tactic = AttentionDotsTactic(task, machine, 4, 2, 1, 64, True)
        assert_near(run_tactic(tactic, Binding({}), arrays)[0], wanted, numbers)

    def test_nan_goes_through(self, numbers, rng):
        machine = machine_for(numbers)
        task = task_of(numbers, Form(mask="keys"), queries=9, keys=70, batch=2)
        arrays = feeds_for(task.inputs, rng)
        number = [v.name for v in task.inputs].index("mask")
        arrays[number][1, 0, 0, 5] = np.nan
        (got,) = run_tactic(
            AttentionDotsTactic(task, machine, 4, 2, 1, 64, False), Binding({}), arrays
        )
        assert np.isnan(got[1].astype(np.float32)).all()
        assert np.isfinite(got[0].astype(np.float32)).all()


def test_what_lies_behind_the_keys_does_not_matter(rng):
    """Infinite values behind the last key of an odd number, which a group would reach."""
    machine = machine_for("bfloat16")
    task = task_of("bfloat16", Form(heads_last=False), queries=4, keys=7, heads=2, batch=1)
    arrays = feeds_for(task.inputs, rng)
    arrays[2][0, 1] = np.inf  # the second head's values lie behind the first one's
    (got,) = run_tactic(AttentionDotsTactic(task, machine, 4, 1, 1, 64, False), Binding({}), arrays)
    assert np.isfinite(got[0, 0].astype(np.float32)).all()


def test_extreme_levels_are_exact(rng):
    """Levels of 0 and 255 in products of full length: no sum leaves its 32 bits."""
    machine = machine_for("levels")
    task = task_of("levels", Form(scaled="none"), size=512, queries=5, keys=40, heads=1)
    arrays = feeds_for(task.inputs, rng)
    for i in range(3):
        arrays[i] = rng.choice(np.array([0, 255], np.uint8), arrays[i].shape)
    (got,) = run_tactic(AttentionDotsTactic(task, machine, 4, 1, 1, 64, False), Binding({}), arrays)
    assert_near(got, task.evaluate(arrays)[0], "levels")


def test_levels_of_the_result(rng):
    machine = machine_for("levels")
    task = attention_task(attention(Form(levels="levels", mask="keys"), queries=50, keys=33))
    assert task.output.dtype is DType.UINT8
    arrays = feeds_for(task.inputs, rng)
    number = [v.is_constant for v in task.inputs].index(True)
    arrays[number + 2] = np.float32(1.1)  # the step of v, by that of the result
    known = dict(zip(task.inputs, arrays, strict=True))
    family = AttentionDotsFamily().on(machine)
    for tactic in list(family.tactics(task, Binding({})))[:2]:
        (got,) = run_tactic(tactic, Binding({}), [known[v] for v in task.inputs], machine)
        (wanted,) = task.evaluate(arrays)
        apart = np.abs(got.astype(int) - wanted.astype(int))
        assert apart.max() <= 1
        assert np.mean(apart > 0) < 0.1


class TestOffers:
    def test_what_numbers_need(self):
        bfloats, levels = (task_of(n, Form(), queries=9, keys=9) for n in NUMBERS)
        for isa in ("avx2", "neon"):
            family = AttentionDotsFamily().on(generic(isa) if isa == "neon" else restricted(isa))
            assert not list(family.tactics(bfloats, Binding({})))
        assert not list(AttentionDotsFamily().on(generic("neon")).tactics(levels, Binding({})))

    def test_depths_that_are_no_groups(self):
        for numbers, size in (("bfloat16", 7), ("levels", 18)):
            machine = machine_for(numbers)
            task = task_of(numbers, Form(), size=size)
            assert not list(AttentionDotsFamily().on(machine).tactics(task, Binding({})))

    def test_float32_is_another_family_s(self):
        task = attention_task(attention(Form()))
        assert not list(AttentionDotsFamily().tactics(task, Binding({})))
        with pytest.raises(PlanError):
            AttentionDotsFamily().restore(task, {})


class TestLevelsAsFloats:
    """Where bytes are not multiplied four at a time, levels become float32 as they are copied."""

    @pytest.mark.parametrize("isa", ["avx2", "avx512"])
    @pytest.mark.parametrize("mask", ["none", "queries"])
    def test_results(self, isa, mask, rng):
        machine = restricted(isa)
        task = task_of("levels", Form(mask=mask), queries=40, keys=33, size=18)
        arrays = feeds_for(task.inputs, rng)
        family = AttentionFamily().on(machine)
        offered = list(family.tactics(task, Binding({})))
        assert offered and all(tactic.packed for tactic in offered)
        for tactic in offered[:2]:
            (got,) = run_tactic(tactic, Binding({}), arrays, machine)
            error = np.abs(got - task.evaluate(arrays)[0])
            assert error.max() < 2 * STEP
            assert np.mean(error > 1e-4) < 1e-2

    def test_they_must_be_copied(self):
        task = task_of("levels", Form(), queries=9, keys=9)
        tactic = next(iter(AttentionFamily().tactics(task, Binding({}))))
        with pytest.raises(PlanError):
            AttentionFamily().restore(task, {**tactic.parameters, "packed": False})
