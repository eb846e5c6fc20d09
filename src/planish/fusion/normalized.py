"""Recognises a product with the layer norm behind it.

    x ─▶ MatMul ─▶ bias, residual ─┬─▶ LayerNorm ─▶ epilogue
                                   └─▶ others

As one task, beside its parts, what is normalized is not read again, nor written unless others read
it, too: in that case it is the task's second output. Rows are normalized along the product's
columns, of which a kernel then needs all.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from planish.fusion.fused import Fused
from planish.graph.graph import Node, Value
from planish.ops.base import normalize_axis
from planish.ops.elementwise import Elementwise
from planish.ops.float8 import MatMulFloat8
from planish.ops.matmul import MatMul
from planish.ops.normalization import LayerNorm
from planish.ops.quantization import MatMulInteger

_PRODUCTS = (MatMul, MatMulFloat8, MatMulInteger)

LONGEST = 8
"""Most elementwise nodes behind the layer norm."""


@dataclass(frozen=True)
class Normalized:
    """What happens to an anchor's result before the epilogue, as data.

    Attributes
    ----------
    norm : LayerNorm
        Along the last axis.
    between : Fused
        Elementwise work on the product; its result is normalized.
    scale, offset : int
        Which of the task's inputs they are: constants of a number per column.
    kept : bool
        Whether what is normalized is an output of the task.
    """

    norm: LayerNorm
    between: Fused
    scale: int
    offset: int
    kept: bool

    def __str__(self) -> str:
        kept = ", kept" if self.kept else ""
        work = f"{self.between.expression} of {self.between.sources}{kept}"
        return f"{self.norm} by {self.scale}, {self.offset} of [{work}] of"


@dataclass(frozen=True)
class FoundNormalized:
    """The nodes by what they do: `between` in the order of the graph."""

    product: Node
    between: tuple[Node, ...]
    norm: Node
    behind: tuple[Node, ...]

    @property
    def nodes(self) -> set[Node]:
        """All nodes."""
        return {self.product, *self.between, self.norm, *self.behind}

    @property
    def inner(self) -> Value:
        """What is normalized."""
        return self.norm.inputs[0]

    @property
    def is_kept(self) -> bool:
        """Whether others read it, too."""
        return len(self.inner.users) > 1


def normalized_behind(
    product: Node, between: Sequence[Node], free: Collection[Node], outputs: Collection[Value]
) -> FoundNormalized | None:
    """The layer norm in a graph that reads what a product and its epilogue `between` give; None if
    there is none.

    Nothing in `free` belongs to it, and none of the graph's `outputs` lies inside.
    """
    members = {product, *between}
    given = [v for n in members for v in n.outputs if any(u not in members for u in v.users)]
    if len(given) != 1 or given[0] in outputs:
        return None
    norms = [u for u in given[0].users if isinstance(u.op, LayerNorm) and u not in free]
    if len(norms) != 1:
        return None
    norm, behind = norms[0], list[Node]()
    value = norm.output
    while len(behind) < LONGEST and len(value.users) == 1 and value not in outputs:
        (user,) = value.users
        if user in free or not _goes_on(user, value):
            break
        behind.append(user)
        value = user.output
    found = FoundNormalized(product, tuple(between), norm, tuple(behind))
    return found if _is_whole(found) else None


def normalized_of(nodes: Collection[Node]) -> FoundNormalized | None:
    """What these nodes are, if it is a product with a layer norm; else None."""
    order = list(nodes)
    norms = [n for n in order if isinstance(n.op, LayerNorm)]
    products = [n for n in order if isinstance(n.op, _PRODUCTS)]
    if len(norms) != 1 or len(products) != 1:
        return None
    (norm,), (product,) = norms, products
    place = order.index(norm)
    between = tuple(n for n in order[:place] if n is not product)
    found = FoundNormalized(product, between, norm, tuple(order[place + 1 :]))
    return found if product in order[:place] and _is_whole(found) else None


def _is_whole(found: FoundNormalized) -> bool:
    """Whether nodes depend on one another as they must, and nothing else inside is seen outside."""
    product, norm = found.product, found.norm
    if not isinstance(product.op, _PRODUCTS) or not product.inputs[1].is_constant:
        return False
    if not _is_by_column(norm) or found.inner.shape != product.output.shape:
        return False
    before = {product, *found.between}
    if not all(isinstance(n.op, Elementwise) for n in found.between):
        return False
    if any(n.output.shape != product.output.shape for n in found.between):
        return False
    made = {v for n in before for v in n.outputs}
    if found.inner not in made or any(v in made for v in product.inputs):
        return False
    if not _is_hidden(made - {found.inner}, before.__contains__):
        return False
    value = norm.output
    for node in found.behind:
        if set(value.users) != {node} or not _goes_on(node, value):
            return False
        value = node.output
    return True


def _is_hidden(values: Collection[Value], is_inside: Callable[[Node], bool]) -> bool:
    return all(v.users and all(map(is_inside, v.users)) for v in values)


def _is_by_column(norm: Node) -> bool:
    """Whether a layer norm is along the last axis, its scale and offset constant."""
    op, (x, *parameters) = norm.op, norm.inputs
    if not isinstance(op, LayerNorm) or normalize_axis(op.axis, x.type.rank) != x.type.rank - 1:
        return False
    columns = x.shape[-1]
    return all(p.data is not None and p.data.shape == (columns,) for p in parameters)


def _goes_on(node: Node, value: Value) -> bool:
    """Whether a node does something to a value with constants alone, and keeps its shape."""
    if not isinstance(node.op, Elementwise) or node.output.shape != value.shape:
        return False
    return all(v is value or v.is_constant for v in node.inputs)
