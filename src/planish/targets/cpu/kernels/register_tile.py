"""The inner loop of matrix products: a tile of sums in registers, over one run of depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import llvmlite.ir as ir

from planish.graph.types import DType
from planish.targets.cpu.codegen.builder import KernelBuilder
from planish.targets.cpu.machine import Machine

F32 = DType.FLOAT32

PREFETCH = 16
"""Steps of depth ahead that weights are asked for, where a block of them fills much of the
first-level cache: inside a network they come from far away, once per inference.
"""

MOST_TILES = 16
"""Of more register tiles than that, weights of the next block come in time anyway."""

ALIASING = 1024
"""Pixels this many elements apart (or a multiple) compete for the same sets of the cache."""

FULL_UNROLL = 400
"""Inner steps (depth x tile) up to which a run of depth is unrolled completely."""


def unrolled(run: int, tile: int) -> int:
    """Steps of depth worth doing per round of the inner loop, for a tile of so many registers."""
    if run * tile <= FULL_UNROLL:
        return run
    return 4 if tile > 8 else 8


def asking_tiles(tiles: int) -> int:
    """Over how many of a block's register tiles the weights of the next block are asked for: a
    power of two, so that problems share kernels; 0 where they come in time anyway.
    """
    return 1 << tiles.bit_length() - 1 if 1 <= tiles <= MOST_TILES else 0


def most_pixels(vectors: int, machine: Machine) -> int:
    """The tallest tile that stays in registers beside a row of weights and one broadcast."""
    return max((machine.registers - vectors - 1) // vectors, 1)


def step_cycles(pixels: int, vectors: int, chain: float = 4.0) -> float:
    """Cycles of a step of depth, roughly: arithmetic, loads, or the latency of the sums' chain."""
    return max(pixels * vectors / 2, (pixels + vectors) / 1.7, chain)


@dataclass(frozen=True)
class RegisterTile:
    """Broadcast elements of the source against vectors of weights, summed in registers.

    Attributes
    ----------
    pixels, vectors : int
        The tile.
    run : int
        Steps of depth: elements side by side in the source; weights lie ``[run][vectors x lanes]``.
    pixel_step : int
        Elements from one pixel of the source to the next.
    unroll : int
        Steps of depth per round of the inner loop.
    prefetch : int
        How many steps of depth ahead weights are asked for; 0: not at all.
    """

    pixels: int
    vectors: int
    run: int
    pixel_step: int
    unroll: int
    prefetch: int

    @property
    def steps(self) -> int:
        """Of depth; each takes ``vectors x lanes`` weights of four bytes."""
        return self.run

    def zeros(self, k: KernelBuilder) -> list[ir.Value]:
        """Empty sums, as `add` takes and gives them: ``[pixel x vectors]``."""
        return [k.zero(F32, k.lanes)] * (self.pixels * self.vectors)

    def weights_of_run(self, k: KernelBuilder) -> int:
        """How many weights a run takes."""
        return self.run * self.vectors * k.lanes

    def add(
        self,
        k: KernelBuilder,
        source: ir.Value,
        weights: ir.Value,
        sums: list[ir.Value],
        later: Later | None = None,
    ) -> list[ir.Value]:
        """Adds the run of depth to the sums, and asks for what is wanted later."""
        whole = self.run // self.unroll * self.unroll
        if whole == self.unroll:
            sums = self._steps(k, source, weights, 0, whole, sums, later)
        elif whole:
            with k.loop(0, whole, self.unroll, carried=sums) as loop:
                loop.next = self._steps(
                    k, source, weights, loop.index, self.unroll, loop.carried, later
                )
            sums = loop.carried
        return self._steps(k, source, weights, whole, self.run - whole, sums, later)

    def _steps(
        self,
        k: KernelBuilder,
        source: ir.Value,
        weights: ir.Value,
        first: Any,
        count: int,
        sums: list[ir.Value],
        later: Later | None,
    ) -> list[ir.Value]:
        s = k.offset(source, first, F32)
        w = k.offset(weights, k.mul(first, self.vectors * k.lanes), F32)
        for depth in range(count):
            vectors = [
                k.load(
                    k.offset(w, (depth * self.vectors + v) * k.lanes, F32),
                    F32,
                    k.lanes,
                    aligned=k.lanes == 16,
                )
                for v in range(self.vectors)
            ]
            for v in range(self.vectors if self.prefetch else 0):
                ahead = (depth + self.prefetch) * self.vectors + v
                k.prefetch(k.offset(w, ahead * k.lanes, F32))
            if later:
                later.ask(k, k.add(first, depth))
            updated = []
            for i in range(self.pixels):
                element = k.load(k.offset(s, i * self.pixel_step + depth, F32), F32)
                spread = k.splat(element, k.lanes)
                for v, vector in enumerate(vectors):
                    updated.append(k.fma(spread, vector, sums[i * self.vectors + v]))
            sums = updated
        return sums


@dataclass(frozen=True)
class Later:
    """What is asked for into the second-level cache while a tile is summed: so many floats of it
    with each step of depth.
    """

    pointer: ir.Value
    floats: int

    @staticmethod
    def share(
        k: KernelBuilder, tile: RegisterTile, weights: ir.Value, number: ir.Value, tiles: int
    ) -> Later:
        """The share of a tile in a block of weights that so many tiles ask for together."""
        floats = -(-tile.vectors * k.lanes // tiles)
        return Later(k.offset(weights, k.mul(number, tile.steps * floats), F32), floats)

    def ask(self, k: KernelBuilder, step: Any) -> None:
        """Asks for what belongs to a step."""
        k.prefetch(k.offset(self.pointer, k.mul(step, self.floats), F32), locality=2)
