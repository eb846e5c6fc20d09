"""The long run of the graph fuzzer: many random graphs, every tactic of every task.

    python tests/campaigns/fuzz_graphs.py --graphs 20000 --seed 0 --log fuzz.log

A line a graph that fails, then the smallest graph that still does. Interrupted, it goes on where it
was: the log's last line says how far it came. `--machine avx2` checks the tactics of a narrower
machine, `--machine neon` those of 64-bit Arm in an emulator, `--machine h200` those of a GPU in
interpreters, with its engines (`--tactics 25`: nothing limits them but that).

Compiling takes nearly all the time, and most graphs share most of their kernels with others. So
`--kernels` says how many new ones a graph may cost: every other one is of the family tried least so
far, the others are drawn at random. All tactics whose kernels an earlier graph has compiled are
tried as well, and engines use such. A quarter of the kernels (`--optimized`) is compiled as for
users, the others without LLVM's passes. `--kernels -1 --optimized 1` compiles all, as it is.
"""

from __future__ import annotations

import argparse
import gc
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.fuzz.check import Checker, Options, smallest_failure
from helpers.fuzz.generate import random_recipe
from planish.targets.cpu.machine import Machine, host

EVERY = 20
"""Graphs between two lines of progress."""


def checker(given: argparse.Namespace) -> Checker:
    """The checks of a machine's tactics; engines only run on this one."""
    if given.machine == "h200":
        from helpers.fuzz.cuda_target import CudaFuzzTarget

        return Checker(Options(onnx=False, tactics=given.tactics), CudaFuzzTarget())
    here = given.machine != "neon"
    options = Options(
        engine=here,
        onnx=here,
        tactics=given.tactics,
        kernels=None if given.kernels < 0 else given.kernels,
        optimized=given.optimized,
        machine=cpu(given.machine),
    )
    return Checker(options)


def cpu(name: str) -> Machine:
    """The CPU whose tactics are checked."""
    if name == "neon":
        from helpers import emulator

        return emulator.emulate()
    return host() if name == "host" else host().restricted(name)


def reached(log: Path, first: int) -> int:
    """The seed to go on with."""
    if not log.exists():
        return first
    found = re.findall(r"^next seed (\d+)", log.read_text(), re.MULTILINE)
    return max([first, *map(int, found)])


def run(checker: Checker, first: int, graphs: int, log: Path) -> int:
    """Checks graphs; how many failed."""
    failed = 0
    start = time.monotonic()
    with log.open("a") as file:

        def say(text: str) -> None:
            print(text, file=file, flush=True)
            print(text, flush=True)

        for seed in range(reached(log, first), first + graphs):
            recipe = random_recipe(seed)
            if checker.tally.graphs == EVERY:
                gc.collect()
                gc.freeze()  # what lives by now lives on: not to be looked at again and again
            try:
                checker.check(recipe, seed)
            except Exception as error:
                told = smallest_failure(checker, recipe, seed)
                failed += bool(told)
                say(told or f"seed {seed}: not confirmed with more noise: {error}")
            if (seed + 1 - first) % EVERY == 0:
                speed = checker.tally.graphs / (time.monotonic() - start)
                done = f"{checker.tally}; {checker.target.compiled} kernels compiled"
                say(f"next seed {seed + 1}: {failed} failed; {done}; {speed:.2f} a second")
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--graphs", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, default=Path("fuzz.log"))
    parser.add_argument("--tactics", type=int, default=1000, help="at most so many a graph")
    parser.add_argument("--kernels", type=int, default=1, help="compiled for a graph; -1: all")
    parser.add_argument("--optimized", type=float, default=0.25, help="share compiled as for users")
    parser.add_argument("--machine", choices=["host", "avx2", "neon", "h200"], default="host")
    given = parser.parse_args()
    sys.exit(1 if run(checker(given), given.seed, given.graphs, given.log) else 0)


if __name__ == "__main__":
    main()
