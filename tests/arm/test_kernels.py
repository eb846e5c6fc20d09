"""Every kernel family compiled for 64-bit Arm (NEON), run under QEMU, against the references.

Tasks are small graphs around each op, with random shapes, layouts with gaps among them; outputs are
poisoned. By default a few tactics of each are run; `make test-arm` (PLANISH_TEST_ARM=all) runs all
tactics of three graphs an op, and beside them the tests of kernels and of code generation with Arm
in place of this machine.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from helpers import emulator
from helpers.fuzz.check import Checker, Options, offered
from helpers.fuzz.draft import Skip
from helpers.fuzz.generate import op_recipe, op_recipes, random_recipe
from helpers.fuzz.specs import has_spec
from planish.ops.base import OPS
from planish.ops.elementwise import Elementwise
from planish.targets.cpu.codegen.compile import Library, compile_assembly
from planish.targets.cpu.kernels import FAMILIES
from planish.targets.cpu.machine import host
from planish.targets.cpu.target import CpuTarget

ALL = os.environ.get("PLANISH_TEST_ARM") == "all"
SEEDS, TACTICS = (3, 1000) if ALL else (1, 1)
FEW = 6
"""Graphs of many ops where not all is run: elementwise ops are met there."""

NAMES = [op.name for op in OPS.values() if has_spec(op)]
OTHERS = [name for name in NAMES if ALL or not issubclass(OPS[name], Elementwise)]

pytestmark = [
    pytest.mark.arm,
    pytest.mark.skipif(bool(emulator.missing()), reason=emulator.missing() or "-"),
]


@pytest.fixture(scope="module")
def checker() -> Checker:
    machine = emulator.emulate()
    return Checker(Options(engine=False, onnx=False, tactics=TACTICS, machine=machine))


@pytest.mark.parametrize("name", OTHERS)
def test_op(name: str, checker: Checker) -> None:
    for seed, recipe in op_recipes(name, SEEDS):
        checker.check(recipe, seed)


@pytest.mark.parametrize("seed", range(FEW))
def test_graph(seed: int, checker: Checker) -> None:
    recipe = random_recipe(seed)
    if ALL:
        checker.check(recipe, seed)
        return
    some = Checker(Options(engine=False, onnx=False, tactics=8, machine=emulator.NEON))
    some.check(recipe, seed)


def test_every_family_is_offered() -> None:
    """The graphs of all ops together hold at least three tasks for every family but x86's."""
    anywhere = [f.name for f in FAMILIES if f.name not in ("tile_matrix", "attention_dots")]
    target = CpuTarget(emulator.NEON)
    counts: Counter[str] = Counter()
    for seed in range(40):
        if all(counts[name] >= 3 for name in anywhere):
            break
        for name in ("add", *(n for n in NAMES if not issubclass(OPS[n], Elementwise))):
            try:
                recipe = op_recipe(name, seed, after=1)
            except Skip:
                continue
            counts.update({t.family for t, _ in offered(target, recipe, seed)})
    assert {name: counts[name] for name in anywhere if counts[name] < 3} == {}


def test_code_is_for_the_other_machine() -> None:
    """An object file for AArch64 (ELF machine 183), which this process refuses to run."""
    from planish.errors import DeviceError
    from planish.targets.cpu.codegen.builder import KernelBuilder

    code = compile_assembly(KernelBuilder("nothing", emulator.NEON).finish(), emulator.NEON)
    assert code[:4] == b"\x7fELF"
    assert int.from_bytes(code[18:20], "little") == 183
    if host().architecture != "aarch64":
        with pytest.raises(DeviceError, match="aarch64"):
            Library({"nothing": code}, emulator.NEON)


def test_a_kernel_that_crashes_is_told(checker: Checker) -> None:
    """And the emulator goes on with the next one."""
    arm = emulator.EmulatedArm()
    with pytest.raises(AssertionError, match="ended"):
        arm.call(8, [], [], 0, 1, 0)
    (_, address) = arm.memory(64)
    assert address % 64 == 0
    checker.check(op_recipe("softmax", 1), 1)
