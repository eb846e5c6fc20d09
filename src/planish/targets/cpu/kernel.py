"""The base of all generated CPU kernels."""

from __future__ import annotations

from abc import abstractmethod

from planish.targets.base import Kernel
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.compile import compile_assembly
from planish.targets.cpu.machine import Machine


class CpuKernel(Kernel):
    """A kernel written with a `KernelBuilder`. Subclasses are frozen dataclasses."""

    @abstractmethod
    def write(self, k: KernelBuilder) -> None:
        """Writes the kernel's body."""

    def assembly(self, machine: Machine) -> str:
        """The kernel as LLVM assembly."""
        builder = KernelBuilder(self.symbol, machine)
        self.write(builder)
        return builder.finish()

    def compile(self, machine: Machine) -> bytes:
        return compile_assembly(self.assembly(machine), machine)
