"""Tiles (Intel AMX) for tests on CPUs that have none.

The calls of a kernel's module that would become instructions on tiles call functions here instead,
which do what Intel's manual says (instruction set reference, LDTILECFG to TILEZERO), faults
included. All else of the module is as it would run on a CPU with tiles.
"""

from __future__ import annotations

import ctypes
import re
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest

from planish.targets.base import Binding, Kernel, Tactic
from planish.targets.cpu.codegen.compile import compile_assembly
from planish.targets.cpu.kernel import CpuKernel
from planish.targets.cpu.machine import Machine, generic, host
from planish.targets.cpu.run import load_kernels, run_tactic
from planish.targets.cpu.target import CpuTarget

FEATURES = ("+amx-bf16", "+amx-int8", "+amx-tile")


def with_tiles(machine: Machine, *features: str) -> Machine:
    """A machine as if it had tiles, or only some of the features that go with them."""
    had = (*machine.features, *(features or FEATURES))
    return replace(machine, features=tuple(sorted(set(had))))


PLAIN = with_tiles(generic("avx512"))
"""Nothing but AVX-512 and tiles, so that what is not emulated runs on most CPUs."""


class Tiles:
    """Eight tiles of a thread.

    Attributes
    ----------
    faults : list of str
        What a CPU would have refused.
    products : int
        How many there were.
    """

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.products = 0
        self.tilerelease()

    # ---- the instructions, their operands as integers --------------------------------------------

    def ldtilecfg(self, address: int) -> None:
        table = _memory(address, 64)
        self.data = np.zeros((8, 16, 64), np.uint8)
        self.row_bytes = table[16:32].view(np.uint16).astype(int)
        self.rows = table[48:56].astype(int)
        self.configured = table[0] == 1
        unused = [*table[1:16], *table[32:48], *table[56:]]
        self._check(self.configured and not any(unused), "a table of tiles that is none")
        self._check(bool((self.rows <= 16).all() and (self.row_bytes <= 64).all()), "too large")
        self._check(bool(((self.rows == 0) == (self.row_bytes == 0)).all()), "half a tile")

    def tilerelease(self) -> None:
        self.configured = False
        self.data = np.zeros((8, 16, 64), np.uint8)
        self.rows = self.row_bytes = np.zeros(8, int)

    def tilezero(self, tile: int) -> None:
        self._exists(tile)
        self.data[tile] = 0

    def tileloadd64(self, tile: int, address: int, step: int) -> None:
        self._exists(tile)
        self.data[tile] = 0
        for row in range(self.rows[tile]):
            found = _memory(address + row * step, self.row_bytes[tile])
            self.data[tile, row, : len(found)] = found

    def tilestored64(self, tile: int, address: int, step: int) -> None:
        self._exists(tile)
        for row in range(self.rows[tile]):
            memory = _memory(address + row * step, self.row_bytes[tile])
            memory[...] = self.data[tile, row, : len(memory)]

    def tdpbusd(self, sums: int, left: int, right: int) -> None:
        self._multiply_bytes(sums, left, right, np.uint8, np.int8)

    def tdpbssd(self, sums: int, left: int, right: int) -> None:
        self._multiply_bytes(sums, left, right, np.int8, np.int8)

    def tdpbf16ps(self, sums: int, left: int, right: int) -> None:
        a, b = self._factors(sums, left, right, np.uint16, 2)
        a, b = (
            _flushed((x.astype(np.uint32) << 16).view(np.float32)).astype(np.float64)
            for x in (a, b)
        )
        total = np.zeros((a.shape[0], b.shape[1], 2), np.float32)
        with np.errstate(invalid="ignore", over="ignore"):
            for k in range(a.shape[1]):  # a product is not rounded before it is added
                total = (total + a[:, None, k] * b[k]).astype(np.float32)
            result = self._sums(sums, np.float32)
            result[...] = _flushed(_flushed(result) + _flushed(total[..., 0] + total[..., 1]))

    # ---- what they have in common ----------------------------------------------------------------

    def _multiply_bytes(self, sums: int, left: int, right: int, kind: type, other: type) -> None:
        a, b = self._factors(sums, left, right, np.uint8, 4)
        a, b = a.view(kind).astype(np.float64), b.view(other).astype(np.float64)  # exact
        product = a.reshape(len(a), -1) @ b.swapaxes(1, 2).reshape(-1, b.shape[1])
        result = self._sums(sums, np.int32)
        result[...] = (result + product.astype(np.int64)).astype(np.int32)

    def _factors(self, sums: int, left: int, right: int, kind: type, group: int) -> list:
        for tile in (sums, left, right):
            self._exists(tile)
        self.products += 1
        self._check(len({sums, left, right}) == 3, "the same tile twice")
        self._check(self.rows[sums] == self.rows[left], "rows of sums and of the left factor")
        self._check(self.row_bytes[sums] == self.row_bytes[right], "columns of sums and right")
        self._check(self.row_bytes[left] == 4 * self.rows[right], "depths of the factors")
        return [
            np.ascontiguousarray(self.data[t, : self.rows[t], : self.row_bytes[t]])
            .view(kind)
            .reshape(self.rows[t], -1, group)
            for t in (left, right)
        ]

    def _sums(self, tile: int, kind: type) -> np.ndarray:
        whole = self.data[tile].view(kind)
        return whole[: self.rows[tile], : self.row_bytes[tile] // 4]

    def _exists(self, tile: int) -> None:
        self._check(self.configured and self.rows[tile] > 0, f"tile {tile} is not configured")

    def _check(self, holds: bool, fault: str) -> None:
        if not holds:
            self.faults.append(fault)


def _memory(address: int, size: int) -> np.ndarray:
    return np.frombuffer((ctypes.c_uint8 * int(size)).from_address(address), np.uint8)


def _flushed(x: np.ndarray) -> np.ndarray:
    """Denormal numbers are zero on tiles, whatever the thread's settings are."""
    return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)


# ---- kernels -------------------------------------------------------------------------------------

_of_threads: defaultdict[int, Tiles] = defaultdict(Tiles)


def _bridge(name: str) -> tuple[object, int]:
    function = getattr(Tiles, name)
    arguments = [ctypes.c_int64] * (function.__code__.co_argcount - 1)

    def call(*values: int) -> None:
        tiles = _of_threads[threading.get_ident()]
        try:
            function(tiles, *values)
        except Exception as error:  # an error cannot cross the kernel
            tiles.faults.append(repr(error))

    bridge = ctypes.CFUNCTYPE(None, *arguments)(call)
    return bridge, ctypes.cast(bridge, ctypes.c_void_p).value or 0


_NAMES = ("ldtilecfg", "tilerelease", "tilezero", "tileloadd64", "tilestored64")
_BRIDGES = {name: _bridge(name) for name in (*_NAMES, "tdpbusd", "tdpbssd", "tdpbf16ps")}


def emulated(assembly: str) -> str:
    """A kernel's module with the functions above in place of the instructions."""

    def define(match: re.Match[str]) -> str:
        pointers = re.sub(r"\w+\*", "ptr", match[2])
        name, types = match[1], re.findall(r"(i8|i64|ptr) %", pointers)
        widen = {"i8": "zext i8 {} to i64", "i64": "add i64 {}, 0", "ptr": "ptrtoint ptr {} to i64"}
        taken = ", ".join(f"{t} %a{i}" for i, t in enumerate(types))
        lines = [f"%w{i} = {widen[t].format(f'%a{i}')}" for i, t in enumerate(types)]
        given = ", ".join(f"i64 %w{i}" for i in range(len(types)))
        lines.append(f"call void inttoptr (i64 {_BRIDGES[name][1]} to ptr)({given})")
        body = "\n  ".join(lines)
        return f'define internal void @"llvm.x86.{name}"({taken}) {{\n  {body}\n  ret void\n}}'

    names = "|".join(_BRIDGES)
    defined = re.sub(rf'declare void @"llvm\.x86\.({names})"\(([^)]*)\)', define, assembly)
    return re.sub(rf'@"llvm\.x86\.({names})"', r'@"emulated.\1"', defined)


def compile_emulated(kernel: Kernel, machine: Machine) -> bytes:
    """Object code of a kernel for a machine with tiles, for this one."""
    assert isinstance(kernel, CpuKernel)
    if host().architecture != machine.architecture:
        pytest.skip("what is not emulated of the kernel is x86 code")
    assembly = kernel.assembly(machine)
    if "llvm.x86.avx512" in assembly and host().isa != "avx512":
        pytest.skip("what is not emulated of the kernel needs AVX-512")
    return compile_assembly(emulated(assembly), host())


@contextmanager
def watched() -> Iterator[None]:
    """No instruction may fault inside, some have to be products, and all tiles are given back."""
    _of_threads.clear()
    yield
    faults = [fault for tiles in _of_threads.values() for fault in tiles.faults]
    assert not faults, faults[:3]
    assert not any(tiles.configured for tiles in _of_threads.values())
    assert any(tiles.products for tiles in _of_threads.values())


def run_emulated(
    tactic: Tactic, binding: Binding, arrays: Sequence[np.ndarray], machine: Machine
) -> list[np.ndarray]:
    """The task's outputs, as `run_tactic`, watched."""
    kernels = [x.kernel for x in tactic.launches(binding)]
    load_kernels(kernels, machine, lambda kernel: compile_emulated(kernel, machine))
    with watched():
        return run_tactic(tactic, binding, arrays, machine)


class EmulatingTarget(CpuTarget):
    """This machine as a target with tiles."""

    def __init__(self) -> None:
        super().__init__(with_tiles(host()))

    def prepare(self, kernels: object, progress: object = None) -> None:
        """Nothing is compiled ahead."""

    def _code(self, kernel: Kernel) -> bytes:
        return compile_emulated(kernel, self.machine)
