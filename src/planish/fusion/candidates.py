"""Proposes tasks: overlapping convex sets of nodes, among which tuning chooses a cover.

    x ─▶ conv ─▶ add bias ─▶ add residual ─▶ relu ─▶        proposed: conv with all that follows,
                                 ▲                          conv up to the residual (its other
    y ─▶ conv ─▶ add bias ───────┘                          producer may take it instead), every
                                                            elementwise cluster, every node alone

Attention (`planish.fusion.attention`), pairs of convolutions (`planish.fusion.pairs`), inverted
bottlenecks (`planish.fusion.bottleneck`), convolutions of transposed images
(`planish.fusion.images`), sums of convolutions (`planish.fusion.sums`), pairs that begin with one
(`planish.fusion.summed`), a network's opening (`planish.fusion.openings`), a convolution with a
pooling (`planish.fusion.pooled`) and a product with a layer norm (`planish.fusion.normalized`) are
proposed as a whole too, beside their parts.

Only sets with one output are proposed (but for ops that have several themselves, pairs, and
products with a layer norm), and every other value inside is used only inside, so that any choice
that covers each node once is a valid plan.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from planish.fusion.attention import attention_around
from planish.fusion.bottleneck import bottleneck_before
from planish.fusion.images import image_before
from planish.fusion.normalized import normalized_behind
from planish.fusion.openings import opening_before
from planish.fusion.pairs import pair_before
from planish.fusion.pooled import pooled_before
from planish.fusion.summed import summed_before
from planish.fusion.sums import sum_with
from planish.fusion.task import Task, make_task
from planish.graph.graph import Graph, Node, Value
from planish.graph.types import DType
from planish.ops.conv import Conv
from planish.ops.elementwise import Elementwise
from planish.ops.float8 import MatMulFloat8
from planish.ops.normalization import Softmax
from planish.ops.pool import MaxPool
from planish.ops.quantization import ConvInteger, MatMulInteger

_BYTES = (DType.INT8, DType.UINT8)

_LARGER = (bottleneck_before, summed_before)
"""What a pair may be the end of."""

LONGEST = 24
"""Most elementwise nodes around one anchor."""


def propose(graph: Graph, free: frozenset[Node] = frozenset()) -> list[Task]:
    """All candidate tasks of a graph; `free` nodes need none.

    Every node that is not free is in at least one task that holds nothing else, so that a cover
    always exists.
    """
    position = {node: i for i, node in enumerate(graph.nodes)}
    outputs = set(graph.outputs)
    found: dict[frozenset[Node], Task] = {}

    def offer(nodes: set[Node], anchor: Node | None) -> None:
        key = frozenset(nodes)
        if key not in found:
            found[key] = make_task(sorted(nodes, key=position.__getitem__), anchor)

    for node in graph.nodes:
        if node in free:
            continue
        if isinstance(node.op, Elementwise):
            offer({node}, None)
            offer(_cone(node, outputs, node.output, free), None)
            continue
        offer({node}, node)
        if isinstance(node.op, Softmax):
            attention = attention_around(node, free, outputs)
            if attention is not None and attention.after:
                offer(attention.nodes, attention.mix)
                attention = attention_around(node, {*free, *attention.after}, outputs)
            if attention is not None:
                offer(attention.nodes, attention.mix)
        if isinstance(node.op, MaxPool):
            opening = opening_before(node, free, outputs)
            if opening is not None:
                offer(opening.nodes, opening.second)
            for pooled in pooled_before(node, free, outputs):
                offer(pooled.nodes, pooled.conv)
        befores = []
        if len(node.outputs) == 1:
            befores.append(_prologue(node, outputs, free))
        reads_images = isinstance(node.op, Conv | ConvInteger)
        image = image_before(node, free, outputs) if reads_images else None
        if image:
            befores.append(set(image.before))
        befores = [before for before in befores if before]
        for before in befores:
            offer({node} | before, node)
        pair = pair_before(node, free, outputs) if isinstance(node.op, Conv) else None
        larger = [find(pair, free, outputs) for find in _LARGER] if pair else []
        wholes = [whole for whole in (pair, *larger) if whole]
        for whole in wholes:
            offer(whole.nodes, node)
        added = sum_with(node, free, outputs) if reads_images else None
        for after in _epilogues(node, outputs, free, position):
            if added and added.join in after:
                offer({*added.nodes, *after}, None)
            offer({node, *after}, node)
            normalized = normalized_behind(node, after, free, outputs)
            if normalized is not None:
                offer(normalized.nodes, node)
            for before in befores:
                offer({node, *after} | before, node)
            for whole in wholes:
                if not whole.feeds(after):
                    offer({*whole.nodes, *after}, node)
    return list(found.values())


def _single_user(value: Value, outputs: set[Value]) -> Node | None:
    """The only reader of a value that nobody outside sees."""
    if value in outputs or len(value.users) != 1:
        return None
    return next(iter(value.users))


def _epilogues(
    anchor: Node, outputs: set[Value], free: frozenset[Node], position: Mapping[Node, int]
) -> Iterator[list[Node]]:
    """The elementwise chains after an anchor worth fusing: the longest, and those that end where
    another producer could take over, or with bytes, of which fewest are written.
    """
    if len(anchor.outputs) != 1:
        return
    chain: list[Node] = []
    beside: list[set[Node]] = []
    value = anchor.output
    cuts: list[int] = []
    while len(chain) < LONGEST:
        user = _single_user(value, outputs)
        if user is None or user in free or not isinstance(user.op, Elementwise):
            break
        if user.output.shape != anchor.output.shape:
            break
        others = [v for v in user.inputs if v is not value]
        if any(v.producer is not None and v.shape == value.shape for v in others):
            cuts.append(len(chain))
        made = {node for v in others for node in _from_levels(v, outputs, free)}
        late = all(position[node] > position[anchor] for node in made)
        beside.append(made if late else set())  # what stands before an anchor is its prologue
        chain.append(user)
        value = user.output
        if value.dtype in _BYTES:
            cuts.append(len(chain))
    for length in dict.fromkeys((len(chain), *reversed(cuts))):
        if length:
            yield [*chain[:length], *set().union(*beside[:length])]


def _from_levels(value: Value, outputs: set[Value], free: frozenset[Node]) -> set[Node]:
    """The elementwise nodes that make floats of a tensor of bytes for one reader: it reads the
    bytes itself at a quarter of the cost.
    """
    producer = value.producer
    if (
        producer is None
        or producer in free
        or not isinstance(producer.op, Elementwise)
        or _single_user(value, outputs) is None
    ):
        return set()
    cone = _cone(producer, outputs, value, free, stop=_BYTES)
    read = {v for n in cone for v in n.inputs if v.producer not in cone and not v.is_constant}
    bytes_only = len(read) == 1 and all(v.dtype in _BYTES for v in read)
    return cone if bytes_only else set()


def _prologue(anchor: Node, outputs: set[Value], free: frozenset[Node]) -> set[Node]:
    """The elementwise nodes that only serve the anchor's first input, all of one shape.

    Sums of levels and codes are no source: they take four times the bytes of what they become, and
    belong to the product before. (Measured with ResNet-50's layers, 100 to 310 µs instead of 20 to
    70; but to find that out took a third of its tuning.)
    """
    if not anchor.inputs:
        return set()
    value = anchor.inputs[0]
    producer = value.producer
    if (
        producer is None
        or producer in free
        or not isinstance(producer.op, Elementwise)
        or anchor.inputs.count(value) > 1
        or _single_user(value, outputs) is not anchor
    ):
        return set()
    cone = _cone(producer, outputs, value, free)
    full = [v for n in cone for v in n.inputs if v.producer not in cone and v.shape == value.shape]
    # the kernels read one tensor of the input's own shape; more would be a fusion of its own
    if len(dict.fromkeys(full)) != 1:
        return set()
    source = full[0].producer
    of_bytes = ConvInteger | MatMulFloat8 | MatMulInteger
    return set() if source and isinstance(source.op, of_bytes) else cone


def _cone(
    root: Node,
    outputs: set[Value],
    result: Value,
    free: frozenset[Node],
    stop: Collection[DType] = (),
) -> set[Node]:
    """The elementwise nodes above `root` whose results are used only inside the set, and are not
    of the dtypes at which to `stop`.
    """
    members = {root}
    frontier = [root]
    while frontier and len(members) < LONGEST:
        node = frontier.pop(0)
        for value in node.inputs:
            producer = value.producer
            if (
                producer is None
                or producer in members
                or producer in free
                or not isinstance(producer.op, Elementwise)
                or value in outputs
                or value.dtype in stop
                or value.shape != result.shape
                or any(u not in members for u in value.users)
            ):
                continue
            members.add(producer)
            frontier.append(producer)
    return members
