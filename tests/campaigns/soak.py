"""Endurance: memory over many inferences, loads and builds, and eight threads for ten minutes.

    python tests/campaigns/soak.py inferences loads builds threads [--scale 0.1] [-o FILE]

Each trial prints a row: what was done, how often, how long it took, and how much the process grew
from the end of a warm-up (a fifth of the trial, at most) to the end. A trial fails, and the exit
code is 1, where growth exceeds what its row allows or a result differs by a single bit.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import planish
from helpers.networks import N, Net
from planish.builder import build_graph
from planish.graph.graph import Graph
from planish.ops import ReduceMean
from planish.runtime.engine import Engine
from planish.targets.cpu.target import cpu

ALLOWED = 2.0
"""Megabytes a process may grow by after its warm-up; what is kept on purpose is bounded."""


@dataclass(frozen=True)
class Row:
    """What a trial found."""

    trial: str
    count: int
    seconds: float
    start: float
    growth: float
    differing: int = 0

    @property
    def failed(self) -> bool:
        return self.growth > ALLOWED or self.differing > 0

    def __str__(self) -> str:
        return (
            f"| {self.trial} | {self.count:,} | {self.seconds:.0f} | {self.start:.1f} "
            f"| {self.growth:+.2f} | {self.differing} |"
        )


def network(size: int = 12) -> Graph:
    """A small residual network with a batch, a height and a width that change."""
    net = Net(seed=7)
    x = net.input(N, size, size, 3)
    y = net.relu(net.bias(net.conv(x, 16, 3)))
    y = net.relu(net.add(net.conv(y, 16, 3), y))
    graph = net.graph
    net.output(net.dense(graph.add(ReduceMean((1, 2), False), y), 10))
    return graph


def build(tuning_seconds: float = 0.0) -> Engine:
    return build_graph(network(), cpu(), tuning_seconds=tuning_seconds)


def resident() -> float:
    """Megabytes of memory that the process holds, free lists given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def repeat(trial: str, count: int, body: Callable[[int], bool]) -> Row:
    """Calls `body` `count` times; it says whether its result was right."""
    warm = max(count // 5, 1)
    differing = 0
    started = time.monotonic()
    for i in range(warm):
        differing += not body(i)
    start = resident()
    for i in range(warm, count):
        differing += not body(i)
    growth = resident() - start
    return Row(trial, count, time.monotonic() - started, start, growth, differing)


def inferences(scale: float) -> Row:
    """One engine, batches from 1 to 16 in turn, fresh outputs."""
    engine = build()
    rng = np.random.default_rng(0)
    feeds = [rng.standard_normal((n, 12, 12, 3)).astype(np.float32) for n in range(1, 17)]
    wanted = [engine(x) for x in feeds]

    def body(i: int) -> bool:
        k = i % len(feeds)
        return np.array_equal(engine(feeds[k]), wanted[k])

    return repeat("inferences", int(10_000 * scale), body)


def loads(scale: float) -> Row:
    """A plan loaded, run once and let go."""
    plan = build().serialize()
    x = np.ones((2, 12, 12, 3), np.float32)
    wanted = planish.load(plan)(x)

    def body(_: int) -> bool:
        with planish.load(plan) as engine:
            return np.array_equal(engine(x), wanted)

    return repeat("loads of a plan", int(1_000 * scale), body)


def builds(scale: float) -> Row:
    """A network built, run once and let go."""
    x = np.ones((2, 12, 12, 3), np.float32)
    wanted = build()(x)

    def body(_: int) -> bool:
        with build() as engine:
            return np.array_equal(engine(x), wanted)

    return repeat("builds", int(200 * scale), body)


def threads(scale: float) -> Row:
    """Eight threads with a context each, on batches of their own, for ten minutes."""
    engine = build()
    rng = np.random.default_rng(1)
    feeds = [rng.standard_normal((n, 12, 12, 3)).astype(np.float32) for n in range(1, 9)]
    wanted = [engine(x) for x in feeds]
    end = time.monotonic() + 600 * scale
    counts, differing = [0] * 8, [0] * 8

    def work(k: int) -> None:
        with engine.create_execution_context() as context:
            while time.monotonic() < end:
                differing[k] += not np.array_equal(context.execute(feeds[k]), wanted[k])
                counts[k] += 1

    started = time.monotonic()
    with ThreadPoolExecutor(8) as team:
        done = [team.submit(work, k) for k in range(8)]
        time.sleep(60 * scale)
        start = resident()
    for future in done:
        future.result()
    seconds = time.monotonic() - started
    return Row(
        "inferences by 8 threads", sum(counts), seconds, start, resident() - start, sum(differing)
    )


TRIALS = {"inferences": inferences, "loads": loads, "builds": builds, "threads": threads}


def main() -> int:
    """Runs the trials named, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trials", nargs="*", choices=[*TRIALS, []], default=list(TRIALS))
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of the counts and the ten minutes"
    )
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    lines = [
        "| trial | count | seconds | memory after warm-up, MB | growth, MB | differing results |",
        "|---|---|---|---|---|---|",
    ]
    print(*lines, sep="\n")
    failed = False
    for trial in arguments.trials or TRIALS:
        row = TRIALS[trial](arguments.scale)
        failed |= row.failed
        lines.append(str(row))
        print(row, flush=True)
        if arguments.output:
            arguments.output.write_text("\n".join([*lines, ""]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
