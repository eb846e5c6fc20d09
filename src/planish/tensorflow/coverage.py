"""Whether an engine takes every shape that TensorFlow can pass to it.

The frontend lets unknown first dimensions share the symbol of the batch, and a segment gives its
inputs' dimensions to symbols. Where that claims more than is known (two inputs of the model may
have different batches), the engine refuses shapes that TensorFlow would take, and needs a native
segment beside it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any

from planish.frontends.tensorflow.graphdef import Tensor
from planish.frontends.tensorflow.inputs import ModelInput, input_types, placeholder
from planish.graph.dims import DimLike, evaluate, symbols
from planish.graph.graph import Value
from planish.graph.types import TensorType

_TRIALS = 3


def is_covered(
    inputs: Sequence[Tensor],
    types: Sequence[TensorType],
    contents: Mapping[Tensor, Value],
    distinct: Mapping[Tensor, Value],
) -> bool:
    """Whether a segment's symbols hold whatever the sizes of the model's inputs are.

    Checked by trying sizes: two polynomials that differ rarely agree at a few random points
    (Schwartz 1980).

    Parameters
    ----------
    inputs, types, contents
        As in `Segment`.
    distinct : mapping
        The graph's tensors where every unknown dimension has a symbol of its own.
    """
    if not all(t in distinct for t in (*inputs, *contents)):
        return False
    shapes = {t: distinct[t].shape for t in inputs}
    contents = {t: v for t, v in contents.items() if v.data is None}
    values = {t: distinct[t].content for t in contents}
    if any(v is None for v in values.values()):
        return False
    dims = [d for s in shapes.values() for d in s]
    dims += [d for v in values.values() if v is not None for d in v.flat]
    names = sorted({s for d in dims for s in symbols(d)})
    source = random.Random(0)
    for _ in range(_TRIALS):
        sizes = {name: source.randrange(64, 4096) for name in names}
        bound: dict[str, int] = {}
        for tensor, kind in zip(inputs, types, strict=True):
            for dim, actual in zip(kind.shape, shapes[tensor], strict=True):
                size = int(evaluate(actual, sizes))
                if isinstance(dim, int):
                    if dim != size:
                        return False
                elif bound.setdefault(str(dim), size) != size:
                    return False
        for tensor, value in contents.items():
            assert value.content is not None
            actual_items = values[tensor]
            assert actual_items is not None
            for dim, actual in zip(value.content.flat, actual_items.flat, strict=True):
                if _size(dim, bound) != _size(actual, sizes):
                    return False
    return True


def _size(dim: DimLike, sizes: Mapping[str, int]) -> int:
    return int(evaluate(dim, sizes))


def alike_types(graph_def: Any) -> dict[str, TensorType]:
    """Types of placeholders in which those declared alike have equal sizes.

    Empty where no two placeholders share an unknown dimension other than the batch.
    """
    declared = [placeholder(n, n.name) for n in graph_def.node if n.op == "Placeholder"]
    declared = [d for d in declared if d.dtype is not None and d.shape is not None]
    groups: dict[Any, list[ModelInput]] = {}
    for item in declared:
        if item.shape is not None and None in item.shape[1:]:
            groups.setdefault(item.shape, []).append(item)
    shapes: dict[str, list[Any]] = {}
    for shape, members in groups.items():
        if len(members) > 1:
            first = re.sub(r"\W", "_", members[0].name, flags=re.ASCII)
            dims = [f"of_{first}_{a}" if a and d is None else d for a, d in enumerate(shape)]
            shapes.update({item.name: dims for item in members})
    return input_types(declared, shapes)[0] if shapes else {}
