"""The kernel of attention: softmax(e(q kᵀ)) v by blocks of keys, the weights never in memory.

A program computes the result of some queries of one head. For every block of keys it multiplies
them by the queries, takes the largest score so far, and adds the weighted values to what it has
so far, faded by how much that largest score grew: the online softmax of M. Milakov & N. Gimelshein
(2018) in the tiles of T. Dao et al., "FlashAttention" (2022). Scores, weights' sums and the result
are float32 throughout; weights are rounded to the dtype of the values to be multiplied by them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planish.graph.types import DType
from planish.targets.cuda.codegen.elementwise import storage_type
from planish.targets.cuda.codegen.source import Source
from planish.targets.cuda.kernel import Pointer, TritonKernel
from planish.targets.cuda.kernels.fused import (
    Access,
    Mask,
    Work,
    apply,
    finish,
    offset,
    whole_mask,
)
from planish.targets.cuda.kernels.nest import across

PRECISIONS = {0: "ieee", 1: "tf32", 3: "tf32x3"}
"""How float32 is multiplied, by the number of products on tensor cores."""

LOG2_E = 1 / math.log(2)


@dataclass(frozen=True)
class AttentionKernel(TritonKernel):
    """One specialisation; batches are as many as a launch has programs for.

    Attributes
    ----------
    dtype : DType
        Of q, k and v.
    rows, block : int
        Queries of a program, and keys of a step; powers of two.
    passes : int
        See `PRECISIONS`.
    heads, queries, keys, depth, values : int
    scale : float
        Factor of all scores.
    q, k, v : Access
        Along batch, head, rows, columns.
    scores : Work
        Work on the scores, along batch, head, queries, keys; it has no outputs.
    result : Work
        The epilogue and the result, along batch, head, queries, columns.
    guarded : bool
        Whether queries without any weight give 0.
    """

    family = "attention"

    dtype: DType
    rows: int
    block: int
    passes: int
    heads: int
    queries: int
    keys: int
    depth: int
    values: int
    scale: float
    q: Access
    k: Access
    v: Access
    scores: Work
    result: Work
    guarded: bool

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        matrices = (self.q.pointer, self.k.pointer, self.v.pointer)
        return (*matrices, *self.scores.pointers, *self.result.pointers)

    def write(self, k: Source) -> None:
        tiles = -(-self.queries // self.rows)
        pid = k.let("pid", "tl.program_id(0)")
        matrix = k.let("matrix", f"{pid} // {tiles}") if tiles > 1 else pid
        tile = k.let("tile", f"{pid} % {tiles}") if tiles > 1 else "0"
        batch = k.let("batch", f"{matrix} // {self.heads}") if self.heads > 1 else matrix
        head = k.let("head", f"{matrix} % {self.heads}") if self.heads > 1 else "0"
        row = k.let("row", f"({tile} * {self.rows} + tl.arange(0, {self.rows}))[:, None]")
        exists = None
        near = row
        if self.queries % self.rows:
            exists = k.let("exists", f"{row} < {self.queries}")
            near = k.let("near", f"tl.minimum({row}, {self.queries - 1})")
        column, inside = _columns(k, self.depth)
        place = [batch, head, near, f"{column}[None, :]"]
        q = self._load(k, 0, self.q, place, [_across(inside)])
        most = k.let("most", f'tl.full(({self.rows}, 1), float("-inf"), tl.float32)')
        total = k.let("total", f"tl.full(({self.rows}, 1), 0.0, tl.float32)")
        out, within = _columns(k, self.values)
        shape = f"({self.rows}, {power_of_two(self.values)})"
        mixed = k.let("mixed", f"tl.full({shape}, 0.0, tl.float32)")
        first = k.name("first")
        with k.block(f"for {first} in range(0, {self.keys}, {self.block}):"):
            key = k.let("key", f"{first} + tl.arange(0, {self.block})")
            known, close = None, key
            if self.keys % self.block:
                known = k.let("known", f"{key} < {self.keys}")
                close = k.let("close", f"tl.minimum({key}, {self.keys - 1})")
            place = [batch, head, f"{close}[None, :]", f"{column}[:, None]"]
            keys = self._load(k, 1, self.k, place, [_down(inside)])
            score = k.let("score", f"tl.dot({q}, {keys}{self._how()})")
            if self.scale != 1.0:
                score = k.let("score", f"{score} * {self.scale!r}")
            index = [batch, head, near, f"{key}[None, :]"]
            masks = [None, None, None, _across(known)]
            (score,) = apply(k, self.scores, 3, index, masks, [score])
            if known is not None:
                score = k.let("score", f'tl.where({known}[None, :], {score}, float("-inf"))')
            now = k.let("now", f"tl.maximum({most}, {across(score, 'max')})")
            # where all scores are -inf, no weight may become NaN: later keys may have finite ones
            safe = k.let("safe", f'tl.where({now} == float("-inf"), 0.0, {now})')
            weight = k.let("weight", f"tl.exp2(({score} - {safe}) * {LOG2_E!r})")
            faded = k.let("faded", f"tl.exp2(({most} - {safe}) * {LOG2_E!r})")
            place = [batch, head, f"{key}[:, None]", f"{out}[None, :]"]
            values = self._load(k, 2, self.v, place, [_down(known), _across(within)])
            k.line(f"{total} = {total} * {faded} + {across(weight, 'sum')}")
            k.line(f"{mixed} = {mixed} * {faded}")
            weight = k.let("weight", f"{weight}.to({storage_type(self.dtype)})")
            k.line(f"{mixed} = tl.dot({weight}, {values}, {mixed}{self._how()})")
            k.line(f"{most} = {now}")
        value = k.let("value", f"{mixed} / {total}")
        if self.guarded:
            value = k.let("value", f"tl.where({total} > 0.0, {value}, 0.0)")
        index = [batch, head, near, f"{out}[None, :]"]
        pointer = 3 + len(self.scores.pointers)
        finish(k, self.result, pointer, index, [None, None, exists, _across(within)], [value])

    def _how(self) -> str:
        if self.dtype is not DType.FLOAT32:
            return ""
        return f', input_precision="{PRECISIONS[self.passes]}"'

    def _load(
        self, k: Source, pointer: int, item: Access, index: Sequence[str], masks: Mask
    ) -> str:
        """Loads a tile in the dtype that is multiplied; 0 where the masks say so."""
        mask = whole_mask(masks)
        masked = f", mask={mask}, other=0" if mask else ""
        return k.let("tile", f"tl.load(p{pointer} + {offset(item, index)}{masked})")


def power_of_two(columns: int) -> int:
    """Columns of a tile that holds so many: tensor cores take no fewer than 16."""
    return max(16, 1 << (columns - 1).bit_length())


def _columns(k: Source, count: int) -> tuple[str, str | None]:
    """Names of the columns of a tile, and of which exist: None where all do."""
    column = k.let("column", f"tl.arange(0, {power_of_two(count)})")
    whole = power_of_two(count) == count
    return column, None if whole else k.let("inside", f"{column} < {count}")


def _across(mask: str | None) -> str | None:
    return mask and f"{mask}[None, :]"


def _down(mask: str | None) -> str | None:
    return mask and f"{mask}[:, None]"
