"""64-bit Arm on any machine: kernels linked by GNU ld, run by QEMU on memory shared with Python.

One emulated process serves all calls. It needs the Debian packages that `PACKAGES` names.
"""

from __future__ import annotations

import mmap
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from planish.targets.cpu import machine
from planish.targets.cpu.machine import Machine, generic
from planish.targets.cpu.run import run_on

PACKAGES = ("qemu-user", "gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross")
COMPILER, LINKER, NAMES, IMAGE = (
    f"aarch64-linux-gnu-{tool}" for tool in ("gcc", "ld", "nm", "objcopy")
)
EMULATOR = "qemu-aarch64"

PROCESS = Path(__file__).parents[1] / "arm" / "emulated_process.c"
FLAGS = ("-O2", "-Wall", "-Wextra", "-Werror", "-static")

MEMORY_AT, MEMORY_SIZE = 0x6000000000, 256 << 20
CODE_AT = 0x5000000000
PAGE = 64 << 10

NEON = generic("neon")


def missing() -> str:
    """Why nothing can be emulated here; empty where it can."""
    lacking = [t for t in (EMULATOR, COMPILER, LINKER, NAMES, IMAGE) if not shutil.which(t)]
    if not lacking:
        return ""
    return f"no {', '.join(lacking)}: apt install {' '.join(PACKAGES)}"


def cross_compile(sources: Sequence[Path], program: Path, *flags: str) -> None:
    """A static program for Arm from C files, without a single warning."""
    command = [COMPILER, *FLAGS, *flags, *map(str, sources), "-o", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class EmulatedArm:
    """Where kernels for Arm run; see `planish.targets.cpu.run.Processor`."""

    def __init__(self) -> None:
        self._folder = TemporaryDirectory(prefix="planish-arm-")
        self._path = Path(self._folder.name)
        cross_compile([PROCESS], self._path / "process")
        shared = self._path / "memory"
        with shared.open("wb") as file:
            file.truncate(MEMORY_SIZE)
        with shared.open("r+b") as file:
            self._memory = np.frombuffer(mmap.mmap(file.fileno(), MEMORY_SIZE), np.uint8)
        self._used = 0
        self._images = 0
        self._next = CODE_AT
        self._code: list[str] = []
        self._start()

    def _start(self) -> None:
        program, memory = self._path / "process", self._path / "memory"
        self._process = subprocess.Popen(
            [EMULATOR, program, memory, f"{MEMORY_SIZE:x}", f"{MEMORY_AT:x}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._functions = self._answer().split()

    def _answer(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def _ask(self, line: str) -> None:
        assert self._process.stdin
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        if (answer := self._answer()) != "done":
            status = self._process.wait()
            self._start()  # for the tests that follow
            for code in self._code:
                self._ask(code)
            raise AssertionError(f"the emulated process ended with {status} ({answer}): {line}")

    def memory(self, size: int) -> tuple[np.ndarray, int]:
        """Bytes of memory; used again when all of it was given out."""
        room = -(-max(size, 1) // 64) * 64 + 64
        assert room <= MEMORY_SIZE, "more memory than is shared with the emulator"
        if self._used + room > MEMORY_SIZE:
            self._used = 0
        start = self._used
        self._used += room
        return self._memory[start : start + size], MEMORY_AT + start

    def load(self, objects: dict[str, bytes], _machine: Machine) -> dict[str, int]:
        """Links object files at a fixed address and maps the result there."""
        stem = self._path / f"image{self._images}"
        self._images += 1
        paths = []
        for i, code in enumerate(objects.values()):
            paths.append(self._path / f"object{i}.o")
            paths[-1].write_bytes(code)
        linked, flat = stem.with_suffix(".elf"), stem.with_suffix(".bin")
        known = [f"--defsym={function}" for function in self._functions]
        place = [f"-Ttext={self._next:#x}", "-N", "-e", "0", "--no-warn-rwx-segments"]
        _run(LINKER, *place, *known, *map(str, paths), "-o", str(linked))
        _run(IMAGE, "-O", "binary", str(linked), str(flat))
        symbols = {
            name: int(address, 16)
            for address, _, name in map(str.split, _run(NAMES, str(linked)).splitlines())
        }
        size = -(-flat.stat().st_size // PAGE) * PAGE
        with flat.open("r+b") as file:
            file.truncate(size)
        line = f"code {flat} {size:x} {self._next:x}"
        self._ask(line)
        self._code.append(line)
        self._next += size + PAGE
        for path in (linked, *paths):
            path.unlink()
        return {name: symbols[name] for name in objects}

    def forget(self) -> None:
        """Starts a new process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()
        for flat in self._path.glob("*.bin"):
            flat.unlink()
        self._code.clear()
        self._next = CODE_AT
        self._start()

    def call(
        self,
        function: int,
        pointers: Sequence[int],
        params: Sequence[int],
        begin: int,
        end: int,
        scratch: int,
    ) -> None:
        """Calls a kernel and waits for it."""
        tables = []
        for numbers in (pointers, params):
            array, address = self.memory(8 * len(numbers))
            array.view(np.int64)[...] = np.array(numbers, np.int64)
            tables.append(address)
        arguments = (function, *tables, begin, end, scratch)
        self._ask("call " + " ".join(f"{a:x}" for a in arguments))


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"
    return done.stdout


def stand_in() -> None:
    """Makes `host` give the emulated machine everywhere, for a whole run of tests of kernels.

    Raises
    ------
    pytest.UsageError
        Something is missing; says which packages.
    """
    if missing():
        raise pytest.UsageError(f"PLANISH_TEST_ISA=neon cannot be emulated here: {missing()}")
    emulated, real = emulate(), machine.host
    for module in list(sys.modules.values()):
        if getattr(module, "host", None) is real:
            module.host = lambda: emulated  # type: ignore[attr-defined]


@cache
def emulate() -> Machine:
    """Lets code for Arm run from now on; the machine to generate it for."""
    run_on(NEON.architecture, EmulatedArm())
    return NEON
