"""A task: what may become one kernel. An anchor with the elementwise work around it, as data.

    inputs ──▶ prologue ──▶ anchor ──▶ epilogue ──▶ outputs
                 (elementwise,   (conv, matmul,   (elementwise, with more
                  on input 0)     reduction, …)    operands, residuals too)

A task without an anchor is elementwise altogether: then everything stands in the epilogue. A task
of attention has two products (see `planish.fusion.attention`), a pair two convolutions (see
`planish.fusion.pairs`), a bottleneck three (see `planish.fusion.bottleneck`); the last one is its
anchor. So is the last one of two convolutions whose results are added (`planish.fusion.sums`), also
where they are the first of a pair (`planish.fusion.summed`), of two before a pooling
(`planish.fusion.openings`), one before a pooling (`planish.fusion.pooled`), and a product before a
layer norm (`planish.fusion.normalized`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from planish.fusion.attention import Attention, Found, attention_of, is_float_cast
from planish.fusion.bottleneck import Bottleneck, FoundBottleneck, bottleneck_of
from planish.fusion.expression import identity
from planish.fusion.fused import ACCUMULATOR, Fused, fuse
from planish.fusion.images import FoundImage, Image, image_of
from planish.fusion.normalized import FoundNormalized, Normalized, normalized_of
from planish.fusion.openings import FoundOpening, Opening, opening_of
from planish.fusion.pairs import FoundPair, Pair, pair_of
from planish.fusion.pooled import FoundPooled, Pooled, pooled_of
from planish.fusion.summed import FoundSummed, summed_of
from planish.fusion.sums import FoundSum, Sum, sum_of
from planish.graph.graph import Node, Value
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.ops.elementwise import Cast
from planish.ops.float8 import MatMulFloat8
from planish.ops.normalization import LayerNorm, QuantizedSoftmax
from planish.ops.pool import MaxPool
from planish.ops.quantization import ConvInteger, MatMulInteger
from planish.ops.shape import Transpose

__all__ = ["ACCUMULATOR", "PRECISIONS", "Fused", "Task", "make_task"]

PRECISIONS = {
    DType.FLOAT64: "fp64",
    DType.FLOAT32: "fp32",
    DType.FLOAT16: "fp16",
    DType.BFLOAT16: "bf16",
}
"""What the precision of a floating-point dtype is called; others have their dtype's name."""


@dataclass(frozen=True, eq=False, repr=False)
class Task:
    """A convex set of nodes that one kernel can run.

    Attributes
    ----------
    nodes : tuple of Node
        In topological order.
    anchor : Node or None
        The one node that is not elementwise; of several products, the last one.
    inputs : tuple of Value
        What comes from outside: the anchor's inputs first (its input 0 replaced by the prologue's
        first operand, if there is a prologue), then further operands, each once.
    outputs : tuple of Value
        What goes outside. With an anchor of several outputs: those, and no epilogue. Of a pair:
        the epilogue's, and what the first convolution gives if that is kept.
    prologue : Fused or None
        Elementwise work on the anchor's input 0. Its leaves read `inputs`.
    epilogue : Fused
        Elementwise work on the anchor's output; as many results as `outputs`.
    attention : Attention or None
        What comes before the epilogue in a task of attention; then there is no prologue.
    pair : Pair or None
        What comes before the anchor in a task of two convolutions; then there is no prologue.
    bottleneck : Bottleneck or None
        What comes before the pair in a task of three convolutions.
    image : Image or None
        In which order of axes a convolution reads input 0, where that is another than the task's.
    sum : Sum or None
        What is added to the anchor's result in a task of two convolutions side by side; of a pair,
        to the first one's.
    opening : Opening or None
        What comes before the anchor in a task of two convolutions and a pooling, which is last.
    pooled : Pooled or None
        What is taken of the anchor's result in a task of a convolution and a pooling: the epilogue
        is that of the pooled result.
    normalized : Normalized or None
        What is done to the anchor's result in a task of a product and a layer norm: the epilogue is
        that of the normalized result.
    """

    nodes: tuple[Node, ...]
    anchor: Node | None
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    prologue: Fused | None
    epilogue: Fused
    attention: Attention | None = None
    pair: Pair | None = None
    bottleneck: Bottleneck | None = None
    image: Image | None = None
    sum: Sum | None = None
    opening: Opening | None = None
    pooled: Pooled | None = None
    normalized: Normalized | None = None

    def __repr__(self) -> str:
        return f"<Task {self.name}: {self.kind}>"  # without the graph that its nodes lead to

    @property
    def pattern(self) -> str:
        """Which kind of task it is that only some families know: "attention", "pair", "bottleneck",
        "image", "sum", "summed", "opening", "pooled", "normalized"; "" for all others.
        """
        if self.opening:
            return "opening"
        if self.attention:
            return "attention"
        if self.pooled:
            return "pooled"
        if self.image:
            return "image"
        if self.sum:
            return "summed" if self.pair else "sum"
        if self.normalized:
            return "normalized"
        return "bottleneck" if self.bottleneck else "pair" if self.pair else ""

    @property
    def kind(self) -> str:
        """What it computes, in a word: its pattern, its anchor's op, or "elementwise"."""
        if self.pattern:
            return self.pattern
        return self.anchor.op.name if self.anchor else "elementwise"

    @property
    def computes(self) -> str:
        """What it computes between prologue and epilogue, with all attributes."""
        op = str(self.attention or self.anchor.op) if self.anchor else "elementwise"
        before = (self.opening, self.pooled, self.image, self.bottleneck, self.pair, self.sum)
        return " ".join(str(part) for part in (*before, self.normalized, op) if part)

    @property
    def output(self) -> Value:
        """The first output."""
        return self.outputs[0]

    @property
    def name(self) -> str:
        """The name of the node whose result this is."""
        return self.nodes[-1].name

    @property
    def origin(self) -> str:
        """The user's ops in this task."""
        return " + ".join(dict.fromkeys(n.origin or n.name for n in self.nodes))

    @cached_property
    def precision(self) -> str:
        """The precision it computes in, by its dtypes: "fp32", "fp16", "int8", "fp8", "bool", …."""
        if self.anchor is not None and isinstance(self.anchor.op, ConvInteger | MatMulInteger):
            return "int8"
        if self.attention is not None and self.attention.levels:
            return "int8"
        if self.anchor is not None and isinstance(self.anchor.op, MatMulFloat8):
            return "fp8"
        for node in (self.anchor, *self.nodes):
            if node is None or (isinstance(node.op, Cast) and node is not self.nodes[-1]):
                continue
            values = (*node.outputs[:1], *node.inputs)
            found = next(
                (v for v in values if v.dtype.is_float), (*node.inputs, node.outputs[0])[0]
            )
            return PRECISIONS.get(found.dtype, found.dtype.numpy.name)
        raise AssertionError("a task has nodes")

    @cached_property
    def key(self) -> str:
        """Everything that a kernel for this task depends on but the constants' values."""
        types = ", ".join(f"{'@' if v.is_constant else ''}{v.type}" for v in self.inputs)
        before = f"{self.prologue.expression} of {self.prologue.sources}" if self.prologue else "-"
        after = f"{self.epilogue.expression} of {self.epilogue.sources}"
        outputs = ", ".join(str(v.type) for v in self.outputs)
        return f"{self.computes} ({types}) [{before}] [{after}] -> {outputs}"

    def evaluate(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The outputs by the references, for concrete arrays of `inputs`. Attributes that hold
        symbolic dimensions must have been bound before.
        """
        known = dict(zip(self.inputs, arrays, strict=True))
        for node in self.nodes:
            values = [known.get(v, v.data) for v in node.inputs]
            known.update(zip(node.outputs, node.op.reference(*values), strict=True))  # type: ignore[arg-type]
        return [known[v] for v in self.outputs]


def make_task(nodes: Iterable[Node], anchor: Node | None = None) -> Task:
    """The task of a set of nodes in topological order.

    Nodes before the anchor form the prologue, nodes after it the epilogue. Constants of one
    element become constant leaves. The anchor must come with its inputs 1.. from outside the set,
    unless the nodes are an attention or a pair; of nodes before it, only a convolution's may hold a
    transposition.
    """
    nodes = tuple(nodes)
    found = attention_of(nodes)
    if found is not None:
        return _attention_task(nodes, found)
    opening = opening_of(nodes)
    if opening is not None:
        return _opening_task(nodes, opening)
    pooled = pooled_of(nodes)
    if pooled is not None:
        return _pooled_task(nodes, pooled)
    normalized = normalized_of(nodes)
    if normalized is not None:
        return _normalized_task(nodes, normalized)
    pair = pair_of(nodes)
    if pair is not None:
        return _pair_task(nodes, pair)
    whole = bottleneck_of(nodes) or summed_of(nodes)
    if whole is not None:
        return _pair_task(nodes, whole.pair, whole)
    image = image_of(nodes)
    if image is not None:
        return _image_task(nodes, image)
    found_sum = sum_of(nodes)
    if found_sum is not None:
        return _sum_task(nodes, found_sum)
    inside = {v for n in nodes for v in n.outputs}
    members = set(nodes)
    position = nodes.index(anchor) if anchor else -1
    before, after = nodes[: max(position, 0)], nodes[position + 1 :]
    outputs = tuple(
        v for n in nodes for v in n.outputs if not v.users or any(u not in members for u in v.users)
    )
    inputs: dict[Value, int] = {}

    def operand(value: Value) -> int:
        return inputs.setdefault(value, len(inputs))

    prologue = None
    if anchor:
        if before:
            fed = anchor.inputs[0]
            for node in before:  # the operand of the anchor's own shape comes first
                for value in node.inputs:
                    if value not in inside and value.shape == fed.shape:
                        operand(value)
            prologue = fuse(before, (fed,), operand, None)
        for value in anchor.inputs[1 if before else 0 :]:
            operand(value)
    if anchor and len(anchor.outputs) > 1:
        outputs = anchor.outputs
        dtype = outputs[0].dtype
        epilogue = Fused(identity(dtype), (ACCUMULATOR,))
    elif anchor:
        epilogue = fuse(after, outputs, operand, anchor.output)
    else:
        epilogue = fuse(nodes, outputs, operand, None)
    return Task(nodes, anchor, tuple(inputs), outputs, prologue, epilogue)


def _attention_task(nodes: tuple[Node, ...], found: Found) -> Task:
    """The task of an attention; q, k and v are its first inputs, each once."""
    inputs: dict[Value, int] = {}

    def operand(value: Value) -> int:
        return inputs.setdefault(value, len(inputs))

    q, k, v = (operand(value) for value in found.operands)
    scores, weights = found.product.output, found.softmax.output
    last = found.chain[-1].output if found.chain else scores
    # scores and result are not rounded between the products, so nothing needs widening
    casts = [n for n in (*found.chain, *found.rows) if is_float_cast(n)]
    work = fuse(found.chain, (last,), operand, scores, casts)
    # what is done to whole rows of weights is done to the result
    before = found.guard[-1].output if found.guard else weights
    after = found.rows[-1].output if found.rows else before
    epilogue = fuse(found.rows, (after,), operand, before, casts)
    if found.after:
        epilogue = fuse(found.after, (found.after[-1].output,), operand, found.mix.output)
    steps = tuple(operand(value) for value in found.steps)
    levels = op.levels if isinstance(op := found.softmax.op, QuantizedSoftmax) else 0
    attention = Attention((q, k, v), found.axes, found.scale, work, found.guarded, steps, levels)
    outputs = nodes[-1].outputs
    return Task(nodes, found.mix, tuple(inputs), outputs, None, epilogue, attention)


def _image_task(nodes: tuple[Node, ...], found: FoundImage) -> Task:
    """The task of a convolution of a transposed image, which is its first input."""
    inputs: dict[Value, int] = {}

    def operand(value: Value) -> int:
        return inputs.setdefault(value, len(inputs))

    operand(found.source)
    conv = found.conv
    prologue = fuse(found.before, (conv.inputs[0],), operand, None, (found.transpose,))
    for value in conv.inputs[1:]:
        operand(value)
    last = nodes[-1].output
    epilogue = fuse(nodes[nodes.index(conv) + 1 :], (last,), operand, conv.output)
    return Task(nodes, conv, tuple(inputs), (last,), prologue, epilogue, image=Image(found.perm))


def _opening_task(nodes: tuple[Node, ...], found: FoundOpening) -> Task:
    """The task of two convolutions and a pooling; the image is its first input."""
    inputs: dict[Value, int] = {}

    def operand(value: Value) -> int:
        return inputs.setdefault(value, len(inputs))

    operand(found.source)
    first, second, image = found.first, found.second, found.image
    prologue = None
    if image is not None:
        prologue = fuse(image.before, (first.inputs[0],), operand, None, (image.transpose,))
    filters = operand(first.inputs[1])
    between = fuse(found.between, (second.inputs[0],), operand, first.output)
    operand(second.inputs[1])
    epilogue = fuse(found.behind, (found.pool.inputs[0],), operand, second.output)
    opening = Opening(filters, between, image.perm if image else None)
    outputs = (found.pool.output,)
    return Task(nodes, second, tuple(inputs), outputs, prologue, epilogue, opening=opening)


def _pooled_task(nodes: tuple[Node, ...], found: FoundPooled) -> Task:
    """The task of a convolution and a pooling; image and filters are its first inputs, the image as
    it is before what stands before the convolution.
    """
    inputs: dict[Value, int] = {}

    def operand(value: Value) -> int:
        return inputs.setdefault(value, len(inputs))

    conv, pool, prologue = found.conv, found.pool, None
    operand(found.source)
    if found.before:
        skipped = (found.transpose,) if found.transpose else ()
        prologue = fuse(found.before, (conv.inputs[0],), operand, None, skipped)
    for value in conv.inputs[1:]:
        operand(value)
    image = None
    if found.transpose is not None:
        assert isinstance(found.transpose.op, Transpose)
        image = Image(found.transpose.op.perm)
    epilogue = fuse(found.behind, (pool.inputs[0],), operand, conv.output)
    assert isinstance(pool.op, MaxPool)
    outputs, pooled = (pool.output,), Pooled(pool.op)
    return Task(nodes, conv, tuple(inputs), outputs, prologue, epilogue, image=image, pooled=pooled)


def _normalized_task(nodes: tuple[Node, ...], found: FoundNormalized) -> Task:
    """The task of a product and a layer norm; the product's inputs are its first."""
    inputs: dict[Value, int] = {}

    def operand(value: Value) -> int:
        return inputs.setdefault(value, len(inputs))

    product, norm, inner = found.product, found.norm, found.inner
    for value in product.inputs:
        operand(value)
    between = fuse(found.between, (inner,), operand, product.output)
    scale, offset = (operand(value) for value in norm.inputs[1:])
    last = nodes[-1].output
    epilogue = fuse(found.behind, (last,), operand, norm.output)
    assert isinstance(norm.op, LayerNorm)
    normalized = Normalized(norm.op, between, scale, offset, found.is_kept)
    outputs = (last, inner) if found.is_kept else (last,)
    return Task(nodes, product, tuple(inputs), outputs, None, epilogue, normalized=normalized)


def _sum_task(nodes: tuple[Node, ...], found: FoundSum) -> Task:
    """The task of two convolutions whose results are added, images and filters its first inputs."""
    inputs: dict[Value, int] = {}

    def operand(value: Value) -> int:
        return inputs.setdefault(value, len(inputs))

    first, second = found.first, found.second
    assert isinstance(first.op, Conv | ConvInteger)
    for value in second.inputs:
        operand(value)
    image, filters, *_ = [operand(value) for value in first.inputs]
    last = nodes[-1].output
    work = [n for n in nodes if n not in (first, second)]
    epilogue = fuse(work, (last,), operand, second.output, beside=first.output)
    added = Sum(first.op, image, filters)
    return Task(nodes, second, tuple(inputs), (last,), None, epilogue, sum=added)


def _pair_task(
    nodes: tuple[Node, ...], found: FoundPair, whole: FoundBottleneck | FoundSummed | None = None
) -> Task:
    """The task of two convolutions, or three: image and filters of the first are its first inputs.

    What the second of three reads comes from inside, so that the task has no input for it; unless
    it is added to the first.
    """
    inputs: dict[Value, int] = {}

    def operand(value: Value) -> int:
        return inputs.setdefault(value, len(inputs))

    bottleneck = None
    if isinstance(whole, FoundBottleneck):
        _, filters = (operand(value) for value in whole.first.inputs)
        work = fuse(whole.chain, (found.first.inputs[0],), operand, whole.first.output)
        assert isinstance(whole.first.op, Conv)
        bottleneck = Bottleneck(whole.first.op, filters, work)
    else:
        operand(found.first.inputs[0])
    first, second = found.first, found.second
    filters = operand(first.inputs[1])
    added, beside, chain = None, None, found.chain
    if isinstance(whole, FoundSummed):
        beside, chain = whole.first.output, tuple(n for n in nodes if n in whole.chain)
        assert isinstance(whole.first.op, Conv)
        added = Sum(whole.first.op, *(operand(value) for value in whole.first.inputs))
    between = fuse(chain, (second.inputs[0],), operand, first.output, beside=beside)
    operand(second.inputs[1])
    inside = (whole or found).nodes
    last = nodes[-1].output
    epilogue = fuse([n for n in nodes if n not in inside], (last,), operand, second.output)
    assert isinstance(first.op, Conv)
    pair = Pair(first.op, filters, between, found.is_kept)
    return Task(
        nodes,
        second,
        tuple(inputs),
        (last, found.inner) if found.is_kept else (last,),
        None,
        epilogue,
        pair=pair,
        bottleneck=bottleneck,
        sum=added,
    )
