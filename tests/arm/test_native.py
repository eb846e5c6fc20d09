"""The native runtime on 64-bit Arm: it compiles, runs under QEMU, and orders its memory accesses.

QEMU on x86 shows x86's strong memory order. What a weakly ordered machine needs beyond it,
acquire and release between threads, is what ThreadSanitizer checks, on any machine.
"""

from __future__ import annotations

import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from helpers import emulator

ROOT = Path(__file__).parents[2]
NATIVE = ROOT / "native"
RUNTIME = [p for p in NATIVE.glob("*.c") if p.name not in ("module.c", "tensorflow_op.c")]
CHECK = Path(__file__).with_name("native_check.c")
WARNINGS = ("-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-pthread")

needs_arm = pytest.mark.skipif(bool(emulator.missing()), reason=emulator.missing() or "-")


@pytest.mark.arm
@needs_arm
@pytest.mark.parametrize("source", sorted(p.name for p in NATIVE.glob("*.c")))
def test_compiles_without_warnings(source: str, tmp_path: Path) -> None:
    include = sysconfig.get_paths()["include"]
    if source == "module.c" and not (Path(include) / "Python.h").exists():
        pytest.skip("Python's headers are not installed")
    target = str(tmp_path / "out.o")
    command = [emulator.COMPILER, *WARNINGS, "-fPIC", f"-isystem{include}"]
    done = subprocess.run(
        [*command, "-c", str(NATIVE / source), "-o", target], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.arm
@needs_arm
@pytest.mark.parametrize("callers", [1, 4])
def test_runs_emulated(callers: int, tmp_path: Path) -> None:
    program = tmp_path / "check"
    flags = ("-std=c11", "-pthread", f"-I{NATIVE}")
    emulator.cross_compile([CHECK, *RUNTIME], program, *flags)
    done = subprocess.run(
        [emulator.EMULATOR, str(program), "40", str(callers)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (0, "as expected\n"), done.stderr


def test_orders_its_memory_accesses(tmp_path: Path) -> None:
    """No data race by the rules of C11, which hold for every machine."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    program = tmp_path / "check"
    # fences are unknown to the sanitizer; the pool has one, for sleepers, not for data
    flags = ["-std=c11", "-O1", "-g", "-pthread", "-fsanitize=thread", f"-I{NATIVE}", "-w"]
    empty = tmp_path / "empty.c"
    empty.write_text("int main(void) { return 0; }")
    can = subprocess.run([compiler, *flags, str(empty), "-o", str(program)], capture_output=True)
    if can.returncode:
        pytest.skip("the C compiler has no ThreadSanitizer")
    sources = [str(p) for p in (CHECK, *RUNTIME)]
    built = subprocess.run(
        [compiler, *flags, *sources, "-o", str(program)], capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(program), "60", "3"], capture_output=True, text=True, timeout=120)
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("this kernel's address space is too random for ThreadSanitizer")
    assert (done.returncode, done.stdout) == (0, "as expected\n"), done.stderr[:5000]
