"""Writes a launch's own integer parameters to memory: shapes as tensors."""

from __future__ import annotations

from dataclasses import dataclass

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.codegen.types import register_type
from planish.targets.cpu.kernel import CpuKernel


@dataclass(frozen=True)
class ParametersKernel(CpuKernel):
    """Parameters: a count, the output's stride, and as many values."""

    family = "parameters"

    dtype: DType

    def write(self, k: KernelBuilder) -> None:
        output, count, stride = k.pointer(0), k.param(0), k.param(1)
        with k.loop(k.begin, k.end), k.loop(0, count) as loop:
            value: ir.Value = k.param(k.add(loop.index, 2))
            if self.dtype.size < 8:
                value = k.b.trunc(value, register_type(self.dtype))
            place = k.offset(output, k.mul(loop.index, stride), self.dtype)
            k.store(value, place, self.dtype)
