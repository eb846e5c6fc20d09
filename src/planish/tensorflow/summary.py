"""The table that TF-TRT's converter prints of a conversion."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import Any

from planish.graph.dims import DimLike
from planish.graph.types import TensorType
from planish.tensorflow.converted import Converted
from planish.tensorflow.parameters import ArgumentError

MINIMUM_LENGTH = 160

_COLUMNS = (
    ("PlanishEngine Name", 0.20),
    ("Device", 0.09),
    ("# Nodes", 0.05),
    ("# Inputs", 0.09),
    ("# Outputs", 0.09),
    ("Input DTypes", 0.12),
    ("Output Dtypes", 0.12),
    ("Input Shapes", 0.12),
    ("Output Shapes", 0.12),
)


def write_summary(
    converted: Converted,
    graph_def: Any,
    line_length: int,
    detailed: bool,
    print_fn: Callable[..., Any],
) -> None:
    """Prints a table of the engines and the share of the ops that was converted.

    Parameters
    ----------
    converted : Converted
    graph_def : GraphDef
        The graph that runs now.
    line_length, detailed, print_fn
        See `TrtGraphConverterV2.summary`.

    Raises
    ------
    ArgumentError
        `line_length` is less than 160.
    """
    if line_length < MINIMUM_LENGTH:
        raise ArgumentError(
            f"Invalid `line_length` value has been received: {line_length}",
            where="line_length=",
            cure=f"pass {MINIMUM_LENGTH} or more",
        )
    ends = list(accumulate(int(line_length * share) for _, share in _COLUMNS))
    print_fn(_row([name for name, _ in _COLUMNS], ends))
    print_fn("=" * line_length)
    inside = 0
    for node in converted.engines:
        if len(converted.engines) > 1:
            print_fn(f"\n{'-' * 40}\n")
        count = node.segment.size
        inside += count
        fields = [
            node.name,
            "CPU:0",
            count,
            len(node.segment.types),
            len(node.outputs),
            _dtypes(node.segment.types),
            _dtypes(node.outputs),
            _shapes(node.segment.types),
            _shapes(node.outputs),
        ]
        print_fn(_row(fields, ends))
        if detailed:
            print_fn()
            for op, number in sorted(converted.operations(node.name).items()):
                print_fn(f"\t- {op}: {number}x")
    outside = sum(n.op not in ("PlanishEngine", "PlanishReady") for n in graph_def.node)
    total = inside + outside
    print_fn(f"\n{'=' * line_length}")
    print_fn(f"[*] Total number of Planish engines: {len(converted.engines)}")
    print_fn(f"[*] % of OPs Converted: {inside / max(total, 1):.2%} [{inside}/{total}]\n")


def _row(fields: Sequence[Any], ends: Sequence[int]) -> str:
    """The fields in columns that end at given places; what is too long is cut."""
    line = ""
    for i, (field, end) in enumerate(zip(fields, ends, strict=True)):
        line = f"{line}{' ' if i else ''}{field}".ljust(end)
        if len(line) > end:
            line = line[: end - 4] + " ..."
    return line


def _dtypes(types: Iterable[TensorType]) -> str:
    return _listed([t.dtype.numpy.name for t in types])


def _shapes(types: Iterable[TensorType]) -> str:
    return _listed(["[" + ", ".join(map(_size, t.shape)) + "]" for t in types])


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"[{', '.join(items)}]"


def _size(dim: DimLike) -> str:
    return str(dim) if isinstance(dim, int) else "-1"
