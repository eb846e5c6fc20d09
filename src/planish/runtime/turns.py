"""Times whole plans in turns: what their steps take one by one does not add up to a thousandth."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from statistics import median

from planish.plan.plan import Plan
from planish.profile import tuning_points
from planish.runtime.engine import Engine
from planish.targets.base import Layout, dense_strides
from planish.targets.target import Target
from planish.tuning.cache import TimingCache
from planish.tuning.sample import Sample

TURNS, FEWEST_TURNS = 7, 3
"""Turns of each plan; in the end fewer where they take more than `SECONDS`."""

SECONDS = 3.0

SECONDS_EACH = 0.03
"""Time given to a plan at each of its turns; it has a run at least, and in the first one two."""

MOST_RUNS = 200


def remembered_seconds(
    plans: Sequence[Plan], target: Target, threads: int, cache: TimingCache
) -> list[float] | None:
    """What `seconds_in_turns` gives; of plans that were compared before, what it gave then, so that
    rebuilds are equal.
    """
    usual = sorted(tuning_points(plans[0].graph)[0].items())
    chosen = [f"{step.task.key} {step.choices[0].tactic}" for p in plans for step in p.steps]
    sizes = [len(plan.steps) for plan in plans]
    about = f"{target.timing_key} t{threads} {usual} plans of {sizes} steps: {chosen}"
    keys = [f"{number} of {about}" for number in range(len(plans))]
    known = [seconds for seconds in map(cache.get, keys) if seconds is not None]
    if len(known) == len(plans):
        return known
    seconds = seconds_in_turns(plans, target, threads)
    if seconds is not None:
        cache.put(zip(keys, seconds, strict=True))
    return seconds


def seconds_in_turns(plans: Sequence[Plan], target: Target, threads: int) -> list[float] | None:
    """The seconds of a run of each plan at the usual sizes: the median of its turns' fastest runs.

    All plans are of one network, and run on the same random inputs (indices are 0). None if its
    sizes depend on the data, or there is none.

    Raises
    ------
    DeviceError
        The engines and the tensors do not fit into the memory of the device together.
    """
    if any(len(plan.stages.parts) > 1 for plan in plans):
        return None
    usual = tuning_points(plans[0].graph)[0]
    given, kept = plans[0].graph.inputs, plans[0].stages.kept
    shapes = [value.type.bind(usual) for value in (*given, *kept)]
    if any(0 in shape for shape in shapes):
        return None
    with contextlib.ExitStack() as stack:
        runs = [stack.enter_context(Engine(plan, target)).bound(usual).executable for plan in plans]
        tensors = []
        for number, (value, shape) in enumerate(zip((*given, *kept), shapes, strict=True)):
            layout, dtype = Layout(shape, dense_strides(shape)), value.dtype.numpy
            tensor = target.tensor(layout, dtype)
            tensor.fill(Sample(layout, dtype, number, greatest=0).period)
            tensors.append(tensor)
        addresses = [tensor.address for tensor in tensors]
        inputs, outputs = addresses[: len(given)], addresses[len(given) :]
        arenas = [target.arena(run.arena_bytes) for run in runs]
        turns: list[list[float]] = [[] for _ in runs]
        spent = 0.0
        for turn in range(TURNS):
            if turn >= FEWEST_TURNS and spent > SECONDS:
                break
            for run, arena, times in zip(runs, arenas, turns, strict=True):
                count = (
                    int(min(max(SECONDS_EACH / max(times[0], 1e-9), 1), MOST_RUNS)) if times else 2
                )
                each = run.measure(arena, inputs, outputs, threads, count)
                times.append(float(each.min()))
                spent += float(each.sum())
        return [median(times) for times in turns]


def _runs_in_a_turn(seconds: float) -> int:
    """How many runs that take so many seconds each."""
    return int(min(max(SECONDS_EACH / max(seconds, 1e-9), 1), MOST_RUNS))
