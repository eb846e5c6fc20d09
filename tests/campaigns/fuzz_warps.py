"""The long run of kernels in PTX: random layers, tactics offered for a GPU of few multiprocessors.

    python tests/campaigns/fuzz_warps.py --minutes 30 --seed 0 --log warps.log

A line a failure, with the layer and the tactic: a wrong result, or threads that wait for ever. Runs
in the interpreter; on a machine with a GPU, and CUDA_VISIBLE_DEVICES set, on that.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.attentions import MASKS, Form, attention
from helpers.first_layers import FirstNet
from helpers.levels import conv_of_levels
from helpers.normalized import NormalizedNet
from helpers.pairs import PointwiseNet
from helpers.products import BF16, F16, conv_task, matmul_task
from planish.fusion.candidates import propose
from planish.fusion.task import Task
from planish.graph.types import DType
from planish.targets.base import Binding, Family, Tactic
from planish.targets.cuda.kernels import FAMILIES
from planish.targets.cuda.kernels.ptx.attention.tactics import OFFERED, ShortAttentionFamily
from planish.targets.cuda.machine import H200
from planish.targets.cuda.run import run_tactic

NAMES = {
    *("specialized", "prompt", "first_conv", "mapped_pool"),
    *("specialized_norm", "specialized_pair", "short_attention"),
}
EVERY = (*FAMILIES, *(() if OFFERED else (ShortAttentionFamily(),)))
WINDOWS = ((1, 1), (1, 2), (1, 3), (3, 1), (2, 2), (3, 2), (3, 3), (1, 7), (7, 1), (5, 5))
EACH = 4
"""Tactics of a layer that are tried."""

Random = np.random.Generator


def convolution(rng: Random) -> list[Task]:
    """A convolution of halves or of levels."""
    window = WINDOWS[rng.integers(len(WINDOWS))]
    stride, dilation = (int(n) for n in rng.choice([1, 1, 1, 2], 2))
    around = [int(n) for n in rng.integers(0, 3, 4)]
    padding = tuple(
        tuple(min(n, (taps - 1) * dilation) for n in pair)
        for pair, taps in zip((around[:2], around[2:]), window, strict=True)
    )
    least = [(taps - 1) * dilation + 1 for taps in window]
    sides = [int(n + rng.integers(0, 16)) for n in least]
    shape = (int(rng.integers(1, 6)), *sides, 8 * int(rng.integers(2, 40)))
    filters = int(rng.choice([32, 64, 128, 192]))
    more: dict[str, Any] = {"padding": padding, "stride": stride, "residual": rng.random() < 0.5}
    if rng.random() < 0.3:
        shape = (*shape[:3], -(-shape[3] // 16) * 16)
        return [conv_of_levels(rng, shape, filters, window, **more)]
    dtype = (F16, BF16)[int(rng.integers(2))]
    return [conv_task(rng, shape, filters, window, dilation=dilation, dtype=dtype, **more)]


def product(rng: Random) -> list[Task]:
    """A matrix product by a constant."""
    rows, depth = int(rng.integers(1, 300)), 8 * int(rng.integers(2, 80))
    columns = int(rng.choice([32, 64, 128, 256]))
    more = [(columns,), (rows, columns)][: int(rng.integers(3))]
    return [matmul_task(rng, (rows, depth), (depth, columns), constant=True, more=more)]


def norm(rng: Random) -> list[Task]:
    """A product and a layer norm."""
    rows, depth = int(rng.integers(1, 200)), 16 * int(rng.integers(1, 24))
    columns = int(rng.choice([256, 384, 512, 768]))
    more = {"residual": rng.random() < 0.5, "factors": str(rng.choice(["floats", "levels"]))}
    return [NormalizedNet(rows, depth, columns, **more).task]


def pair(rng: Random) -> list[Task]:
    """Two convolutions of single pixels."""
    sizes = [int(n) for n in rng.choice([64, 128, 256], 3)]
    shape = (int(rng.integers(1, 4)), int(rng.integers(1, 12)), int(rng.integers(1, 20)), sizes[0])
    net = PointwiseNet(shape, *sizes[1:], residual=rng.random() < 0.7, kept=rng.random() < 0.7)
    return [task for task in propose(net.graph) if task.pair]


def first(rng: Random) -> list[Task]:
    """An image's convolution, perhaps with a pooling."""
    sides = [int(n) for n in rng.integers(12, 40, 2)]
    more: dict[str, Any] = {
        "window": int(rng.choice([3, 5, 7])),
        "dtype": (F16, BF16, DType.INT8)[int(rng.integers(3))],
        "pool": int(rng.choice([0, 2, 3])),
    }
    graph = FirstNet(int(rng.integers(1, 4)), *sides, int(rng.integers(1, 5)), **more).graph
    return [task for task in propose(graph) if task.anchor is not None]


def heads(rng: Random) -> list[Task]:
    """Attention of short sequences."""
    lengths = [int(n) for n in rng.integers(2, 150, 2)]
    size, values = (8 * int(n) for n in rng.integers(1, 17, 2))
    more: dict[str, Any] = {"mask": str(rng.choice(MASKS)), "factor": rng.random() < 0.2}
    form = Form(heads_last=rng.random() < 0.7, guard=str(rng.choice(["", "nan", "rows"])), **more)
    graph = attention(
        form,
        batch=int(rng.integers(1, 4)),
        heads=int(rng.integers(1, 4)),
        queries=lengths[0],
        keys=lengths[1],
        size=size,
        values=values,
        dtype=(F16, BF16)[int(rng.integers(2))],
    )
    return [task for task in propose(graph) if task.attention]


KINDS: dict[str, Callable[[Random], list[Task]]] = {
    made.__name__: made for made in (convolution, product, norm, pair, first, heads)
}


def tactics(task: Task, machine: Any) -> Iterator[tuple[Family, Tactic]]:
    """All tactics in PTX that are offered for a task."""
    for family in EVERY:
        if family.name in NAMES and family.pattern == task.pattern:
            own = family.on(machine)
            yield from ((own, tactic) for tactic in own.tactics(task, Binding({})))


def arrays(task: Task, rng: Random) -> list[np.ndarray]:
    """The task's constants, and random inputs: levels all there are, floats around 0."""
    made = []
    for value in task.inputs:
        shape = value.type.bind({})
        if value.data is not None:
            made.append(value.data)
        elif value.dtype is DType.INT8:
            made.append(rng.integers(-128, 128, shape).astype(np.int8))
        elif value.dtype is DType.BOOL:
            made.append(rng.random(shape) < 0.7)
        else:
            numbers = rng.standard_normal(shape)
            if task.attention and value is task.inputs[task.attention.sources[0]]:
                numbers /= 4  # references round scores to halves, which large ones would show
            made.append(numbers.astype(value.dtype.numpy))
    return made


def difference(have: np.ndarray, want: np.ndarray) -> float:
    """The largest one by the largest number, of levels in levels; infinite where one is NaN."""
    a, b = have.astype(np.float64), want.astype(np.float64)
    if (np.isfinite(a) != np.isfinite(b)).any():
        return float("inf")
    a, b = (np.where(np.isfinite(b), x, 0) for x in (a, b))
    scale = 1.0 if want.dtype == np.int8 else max(float(np.abs(b).max(initial=0.0)), 1.0)
    return float(np.abs(a - b).max(initial=0.0)) / scale


def bound(want: np.ndarray) -> float:
    """The largest difference that rounding makes."""
    if want.dtype == np.int8:
        return 1.0
    return 4e-3 if want.dtype.itemsize != 2 or want.dtype == np.float16 else 3e-2


def run(seed: int, report: Callable[[str], None], machine: Any, tried: Counter[str]) -> None:
    """A random layer and some of its tactics."""
    rng = np.random.default_rng(seed)
    kind = list(KINDS)[int(rng.integers(len(KINDS)))]
    known = [(task, list(tactics(task, machine))) for task in KINDS[kind](rng)]
    known = [item for item in known if item[1]]
    for task, offered in [known[i] for i in rng.permutation(len(known))[:1]]:
        data = arrays(task, rng)
        with np.errstate(all="ignore"):
            wanted = task.evaluate(data)
        for i in rng.permutation(len(offered))[:EACH]:
            family, tactic = offered[i]
            tried[family.name] += 1
            assert family.restore(task, tactic.parameters) == tactic
            try:
                outputs = run_tactic(tactic, Binding({}), data)
                found = max(
                    difference(o, w) / bound(w) for o, w in zip(outputs, wanted, strict=True)
                )
                problem = f"difference {found:.3g} of what is allowed" if found > 1 else ""
            except Exception as error:
                problem = f"{type(error).__name__}: {str(error)[:200]}"
            if problem:
                shapes = [(str(v.dtype), v.type.bind({})) for v in task.inputs[:3]]
                op = task.anchor.op if task.anchor else None
                report(f"FAILED seed {seed} {kind} {op} of {shapes}: {tactic}: {problem}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--multiprocessors", type=int, default=2)
    parser.add_argument("--log", type=Path)
    arguments = parser.parse_args()
    machine = replace(H200, multiprocessors=arguments.multiprocessors)
    tried: Counter[str] = Counter()

    def report(line: str) -> None:
        print(line, flush=True)
        if arguments.log:
            with arguments.log.open("a") as file:
                file.write(line + "\n")

    start, seed = time.monotonic(), arguments.seed
    while time.monotonic() - start < 60 * arguments.minutes:
        run(seed, report, machine, tried)
        seed += 1
    report(f"seeds {arguments.seed} to {seed - 1}: {dict(tried)}")


if __name__ == "__main__":
    main()
