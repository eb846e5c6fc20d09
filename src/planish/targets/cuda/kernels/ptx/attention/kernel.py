"""The kernel of attention of short sequences, softmax(e(q kᵀ)) v, on Hopper.

What such layers cost is memory: of 128 tokens all scores of a head are fewer than the numbers read.
So a block loads what it needs of one head at once, as boxes (tensor maps): keys, values, and some
tiles of 64 queries. Scores of a tile against all keys are one product, whose sums lie in the
registers of a group of four warps, a row in four threads. Softmax needs no other memory then, and
no second pass: its largest score is known before any weight is computed. Weights, rounded to the
dtype of the values, stay in the registers where they are: sums of 64 rows lie in a group's threads
as the left factor of a product does. Values are the right factor as they lie, a row for each key:
tensor cores read them across (Shah et al., "FlashAttention-3", 2024, multiply so, too).

Results take the place of the tile's queries in shared memory and leave as boxes. Blocks are small,
so that several share a multiprocessor: some load while others compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from planish.graph.types import DType
from planish.targets.cuda.codegen.tensor_map import TensorMap
from planish.targets.cuda.kernel import MappedPointer, Pointer, PtxKernel
from planish.targets.cuda.kernels.fused import Access, Work
from planish.targets.cuda.kernels.matrix_tile import ceil
from planish.targets.cuda.kernels.ptx.attention.writer import (
    FACTORS,
    ROWS,
    WARP_ROWS,
    AttentionWriter,
)
from planish.targets.cuda.kernels.ptx.warp_groups import BARRIER, THREADS
from planish.targets.cuda.machine import H200

KEYS = 16
"""Keys come in multiples of it: the depth of an instruction of the second product."""
LINES = 64, 128
"""Bytes of a row of a box."""
WHOLE = 1024
"""Bytes of which places in shared memory are multiples where boxes begin."""
BATCH, HEAD, ROW, COLUMN = range(4)
"""Axes of a tensor."""

_OTHERS, _WORK, _MANY = 32, 16, 16
"""Registers of a thread beside sums and weights: always, for work on scores, and for many keys."""
_STEP, _MOST = 8, 256
"""By which a thread's are counted; what it has at most, one of them for nothing."""


@dataclass(frozen=True)
class Boxes:
    """Rows of a tensor in shared memory: boxes side by side, their lines exchanged.

    Attributes
    ----------
    rows, columns : int
        Of the tensor; columns beyond it are zeros.
    size : int
        Bytes of an element.
    """

    rows: int
    columns: int
    size: int

    @property
    def line(self) -> int:
        """Bytes of a row of a box."""
        return LINES[self.columns * self.size > LINES[0]]

    @property
    def wide(self) -> int:
        """Columns of a box."""
        return self.line // self.size

    @property
    def count(self) -> int:
        return ceil(self.columns, self.wide)

    @property
    def each(self) -> int:
        """Bytes of a box."""
        return self.rows * self.line

    @property
    def bytes(self) -> int:
        return self.count * self.each


@dataclass(frozen=True)
class ShortAttentionKernel(PtxKernel):
    """One specialisation. Parameter: the batches.

    Attributes
    ----------
    groups : int
        Groups of warps of a block.
    turns : int
        Tiles of queries of a group.
    dtype : DType
        Of q, k and v.
    batches : int
        0 where only the parameter says how many there are: they are the longest steps everywhere.
    heads, queries, keys, depth, values : int
    scale : float
        Factor of all scores.
    q, k, v : Access
        Along batch, head, rows, columns.
    scores : Work or None
        Work on the scaled scores, along batch, head, queries, keys, if there is any; no outputs.
    result : Work
        The epilogue and the result, along batch, head, queries, columns.
    guarded : bool
        Whether queries without any weight give 0.
    """

    family = "short_attention"
    codes: ClassVar[bool] = False

    groups: int
    turns: int
    dtype: DType
    batches: int
    heads: int
    queries: int
    keys: int
    depth: int
    values: int
    scale: float
    q: Access
    k: Access
    v: Access
    scores: Work | None
    result: Work
    guarded: bool

    @property
    def warps(self) -> int:  # type: ignore[override]
        return self.groups * THREADS // 32

    @property
    def params(self) -> tuple[bool, ...]:
        return (False,)

    @property
    def at_once(self) -> int:
        """Blocks that fit on a multiprocessor, by shared memory and by registers."""
        held = max(self.whole_keys // 2, self.whole_keys // 4 + self.v_boxes.count * self.sums)
        held += _OTHERS + (_WORK if self.scores else 0) + (_MANY if self.keys > 128 else 0)
        held = min(ceil(held, _STEP) * _STEP, _MOST)
        by_memory = H200.shared_per_multiprocessor // (self.shared + WHOLE)
        return max(1, min(by_memory, H200.registers // (held * THREADS * self.groups)))

    # ---- tensors ---------------------------------------------------------------------------------

    @property
    def pointers(self) -> tuple[Pointer, ...]:
        rows = (self.queries, self.keys, self.keys)
        boxes = (self.q_boxes, self.k_boxes, self.v_boxes)
        factors = [
            self._mapped(*item) for item in zip((self.q, self.k, self.v), rows, boxes, strict=True)
        ]
        leaves = () if self.scores is None else self.scores.pointers
        rest = [a.pointer for a in self.result.leaves if a is not None]
        (result,) = self.result.outputs
        own = Boxes(WARP_ROWS, self.values, result.pointer.dtype.size)
        return (*factors, *leaves, *rest, self._mapped(result, self.queries, own))

    @property
    def first_of_result(self) -> int:
        """The number of the epilogue's first pointer."""
        return FACTORS + (0 if self.scores is None else len(self.scores.pointers))

    @property
    def axes(self) -> list[tuple[int, ...]]:
        """Of the maps of q, k, v and the result."""
        (result,) = self.result.outputs
        return [axes_of(item.strides) for item in (self.q, self.k, self.v, result)]

    def _mapped(self, item: Access, rows: int, boxes: Boxes) -> MappedPointer:
        axes = axes_of(item.strides)
        extents = {BATCH: self.batches, HEAD: self.heads, ROW: rows, COLUMN: boxes.columns}
        blocks = {BATCH: 1, HEAD: 1, ROW: boxes.rows, COLUMN: boxes.wide}
        tensor = TensorMap(
            tuple(extents[axis] for axis in axes),
            tuple(item.strides[axis] for axis in axes),
            tuple(blocks[axis] for axis in axes),
            int(axes[0] == BATCH and not self.batches),
        )
        return MappedPointer(item.pointer.dtype, item.pointer.aligned, tensor=tensor)

    @property
    def whole_keys(self) -> int:
        """Keys, and what is beside them in boxes."""
        return ceil(self.keys, KEYS) * KEYS

    @property
    def q_boxes(self) -> Boxes:
        """Of a tile."""
        return Boxes(ROWS, self.depth, self.dtype.size)

    @property
    def k_boxes(self) -> Boxes:
        return Boxes(self.whole_keys, self.depth, self.dtype.size)

    @property
    def v_boxes(self) -> Boxes:
        return Boxes(self.whole_keys, self.values, self.dtype.size)

    @property
    def result_boxes(self) -> Boxes:
        """Of a tile."""
        return Boxes(ROWS, self.values, self.result.outputs[0].pointer.dtype.size)

    @property
    def sums(self) -> int:
        """Of a thread, of a box of values."""
        return self.v_boxes.wide // 2

    # ---- tiles -----------------------------------------------------------------------------------

    @property
    def tiles(self) -> int:
        """Of a block."""
        return self.groups * self.turns

    @property
    def parts(self) -> int:
        """Blocks of a head."""
        return ceil(self.queries, ROWS * self.tiles)

    # ---- shared memory ---------------------------------------------------------------------------

    @property
    def tile_bytes(self) -> int:
        """Of a tile's queries, and of its result."""
        return ceil(max(self.q_boxes.bytes, self.result_boxes.bytes), WHOLE) * WHOLE

    @property
    def keys_start(self) -> int:
        return self.tiles * self.tile_bytes

    @property
    def values_start(self) -> int:
        return self.keys_start + self.k_boxes.bytes

    @property
    def barriers(self) -> int:
        return self.values_start + self.v_boxes.bytes

    @property
    def shared(self) -> int:
        return self.barriers + 2 * BARRIER

    def text(self) -> str:
        return AttentionWriter(self).write()


def axes_of(strides: Sequence[int]) -> tuple[int, ...]:
    """The axes of a tensor's map, the one with the longest steps first: those that it has."""
    return tuple(sorted((i for i, s in enumerate(strides) if s), key=lambda i: (-strides[i], i)))
