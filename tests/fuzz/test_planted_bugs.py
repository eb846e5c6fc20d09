"""The fuzzer finds bugs: each of these, planted one at a time, within a number of graphs.

Every bug is one that a tired author could write: an edge, an order, a constant, a life too short.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

import planish.passes
from helpers.fuzz.check import Checker, Mismatch, Options
from helpers.fuzz.generate import random_recipe
from planish.errors import PlanishError
from planish.graph.graph import Graph
from planish.ops.elementwise import ew
from planish.ops.shape import Concat
from planish.passes import padding, transposes
from planish.plan import codec, views
from planish.plan.memory import Lifetime, plan_arena
from planish.runtime import bind
from planish.targets.cpu import run
from planish.targets.cpu.codegen import casts, elementwise
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.floats import Floats
from planish.targets.cpu.kernels import reducers
from planish.targets.cpu.kernels.views import View

Patch = pytest.MonkeyPatch

EVERY_BUG = bool(os.environ.get("PLANISH_TEST_EVERY_BUG"))
"""Whether a campaign must find every bug here; else those alone that it finds soon."""

SOON = 40
"""Graphs; 300 take 2 minutes."""

WHOLE = Options(onnx=False, share=0.0, tactics=0)
"""Engines, their tasks run by the references: finds what is wrong before the kernels."""

MIXED = Options(onnx=False, share=0.5, tactics=0)
"""Engines, half of whose tasks kernels run: the references copy what they read."""

KERNELS = Options(engine=False, onnx=False, tactics=3)
"""Tactics."""

GPU = replace(KERNELS, tactics=10)
"""Tactics of a GPU."""

CAMPAIGN = Options(onnx=False, kernels=1, optimized=0.25)
"""Both as in the long run: a new kernel a graph, and tactics whose kernels there are already."""


@dataclass(frozen=True)
class Bug:
    """A bug, where to look for it, and within how many graphs it must show: so, in a campaign of
    this machine's kernels.
    """

    plant: Callable[[Patch], None]
    options: Options
    within: int
    campaign: int | None


BUGS: dict[str, Bug] = {}


def bug(
    options: Options, within: int, campaign: int | None = None
) -> Callable[[Callable[[Patch], None]], None]:
    def register(plant: Callable[[Patch], None]) -> None:
        BUGS[plant.__name__] = Bug(plant, options, within, campaign)

    return register


# ---- in kernels ----------------------------------------------------------------------------


@bug(KERNELS, 10, 10)
def tail_one_short(patch: Patch) -> None:
    """The last lane of a tail is left out."""
    right = KernelBuilder.tail_mask
    patch.setattr(
        KernelBuilder, "tail_mask", lambda k, count, lanes: right(k, k.sub(count, 1), lanes)
    )


@bug(KERNELS, 20, 80)
def broadcast_along_the_wrong_axis(patch: Patch) -> None:
    """Operands of a lower rank are aligned with the first axes instead of the last."""
    right = View.broadcast

    def wrong(view: View, shape: tuple[int, ...]) -> View:
        result = right(view, shape)
        extra = len(shape) - len(view.strides)
        if extra > 0:
            result = replace(result, strides=result.strides[extra:] + result.strides[:extra])
        return result

    patch.setattr(View, "broadcast", wrong)


@bug(KERNELS, 60, 200)
def clip_without_its_upper_bound(patch: Patch) -> None:
    """The upper bound of a clip is one too large."""
    right = elementwise._between

    def wrong(e, x, low, high):
        return right(e, x, low, high + 1)

    patch.setattr(elementwise, "_between", wrong)


@bug(KERNELS, 60, 80)
def maximum_starts_at_zero(patch: Patch) -> None:
    """A maximum of negative numbers is 0."""
    patch.setattr(reducers, "lowest", lambda dtype, highest=False: 0)


@bug(replace(KERNELS, tactics=8), 40, 200)
def cast_rounds_to_nearest(patch: Patch) -> None:
    """Floats become integers by rounding instead of truncation."""
    right = casts._float_to_integer

    def wrong(k, value, source, target, lanes):
        return right(k, Floats(k, source, lanes).rint(value), source, target, lanes)

    patch.setattr(casts, "_float_to_integer", wrong)


@bug(GPU, 20)
def windows_see_beyond_their_image(patch: Patch) -> None:
    """A convolution on a GPU takes what lies around an image for its border."""
    from planish.targets.cuda.kernels.matrix_product import ProductWriter

    patch.setattr(ProductWriter, "_inside", lambda writer, step: [])


@bug(GPU, 20)
def columns_beyond_the_last_are_written(patch: Patch) -> None:
    """The last tile of a product on a GPU is taken for a whole one."""
    from planish.targets.cuda.kernels.matrix_kernel import MatrixKernel

    patch.setattr(MatrixKernel, "is_ragged", False)


# ---- before and behind them ----------------------------------------------------------------


@bug(WHOLE, 90, 90)
def pass_drops_a_residual(patch: Patch) -> None:
    """A pass takes an addition of two equal shapes for one of a zero."""

    def drop(graph: Graph) -> bool:
        for node in graph.nodes:
            if node.op == ew.Add() and node.inputs[0].producer and node.inputs[1].producer:
                a, b = node.inputs
                if a is not b and a.shape == b.shape == node.output.shape:
                    graph.replace(node.output, a)
                    return True
        return False

    group = planish.passes.PASSES[0]
    patch.setattr(
        planish.passes,
        "PASSES",
        (replace(group, passes=(*group.passes, drop)), *planish.passes.PASSES[1:]),
    )


@bug(WHOLE, 90, 80)
def folded_padding_forgets_the_end(patch: Patch) -> None:
    """Padding that moves into a convolution is taken over only before the image."""
    patch.setattr(
        padding,
        "_sum",
        lambda a, b: tuple((p[0] + q[0] + q[1], p[1]) for p, q in zip(a, b, strict=True)),
    )


@bug(WHOLE, 150, 200)  # two transposes in a row whose order matters are rare
def transposes_compose_in_the_wrong_order(patch: Patch) -> None:
    """Two transposes become the one of the opposite order."""
    right = transposes.compose
    patch.setattr(transposes, "compose", lambda a, b: right(b, a))


@bug(MIXED, 30, 150)
def tensors_die_a_step_too_early(patch: Patch) -> None:
    """A tensor's memory is given away to the step that still reads it."""

    def wrong(tensors):
        return plan_arena([Lifetime(t.size, t.first, max(t.last - 1, t.first)) for t in tensors])

    patch.setattr(bind, "plan_arena", wrong)


@bug(WHOLE, 20, 20)
def concatenation_from_behind(patch: Patch) -> None:
    """The parts of a concatenation lie in the opposite order."""
    right = views._place_parts

    def wrong(node, of):
        node.inputs = node.inputs[::-1]
        right(node, of)
        node.inputs = node.inputs[::-1]

    assert Concat
    patch.setattr(views, "_place_parts", wrong)


@bug(WHOLE, 90, 80)
def saved_plan_forgets_an_attribute(patch: Patch) -> None:
    """A stride of a slice that goes backwards is read as one that goes forwards."""
    right = codec._decode

    def wrong(data):
        result = right(data)
        if isinstance(result, tuple) and -1 in result and all(type(n) is int for n in result):
            return tuple(abs(n) for n in result)
        return result

    patch.setattr(codec, "_decode", wrong)


@pytest.fixture(autouse=True)
def _no_kernels_of_others(monkeypatch: Patch) -> None:
    """Kernels with a bug in them stay in the test that planted it."""
    monkeypatch.setattr(run, "_compiled", {})


IN_CAMPAIGNS = {n: b.campaign for n, b in BUGS.items() if b.campaign is not None}


@pytest.mark.parametrize("name", BUGS)
def test_is_found(name: str, monkeypatch: Patch) -> None:
    planted = BUGS[name]
    _search(planted, planted.options, planted.within, monkeypatch)


@pytest.mark.parametrize("name", [n for n, c in IN_CAMPAIGNS.items() if EVERY_BUG or c <= SOON])
def test_a_campaign_finds_it(name: str, monkeypatch: Patch) -> None:
    _search(BUGS[name], CAMPAIGN, IN_CAMPAIGNS[name], monkeypatch)


def _search(planted: Bug, options: Options, within: int, patch: Patch) -> None:
    checker = _checker(options)
    planted.plant(patch)
    for seed in range(within):
        try:
            checker.check(random_recipe(seed), seed)
        # wrong, outside of an output, or refused where nothing is wrong
        except (Mismatch, AssertionError, PlanishError):
            return
    pytest.fail(f"not found within {within} graphs: {checker.tally}")


def _checker(options: Options) -> Checker:
    if options is not GPU:
        return Checker(options)
    pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")
    from helpers.fuzz.cuda_target import CudaFuzzTarget

    return Checker(options, CudaFuzzTarget())


@pytest.mark.parametrize("options", [WHOLE, KERNELS, GPU, CAMPAIGN])
def test_nothing_is_found_without_a_bug(options: Options) -> None:
    checker = _checker(options)
    for seed in range(5):
        checker.check(random_recipe(seed), seed)
