"""Data formats and window padding, shared by convolutions, pooling and batch normalization.

Our spatial ops are channels-last. For a channels-first node the converters work on a transposed
input and transpose the result back; passes cancel transposes that meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planish.frontends.tensorflow.context import Context
from planish.graph.dims import DimLike
from planish.graph.graph import Value
from planish.ops.conv import Padding, same_padding

_CHANNELS_FIRST = {"NCHW", "NCDHW", "NCW"}
_CHANNELS_LAST = {"NHWC", "NDHWC", "NWC"}


def is_channels_first(ctx: Context) -> bool:
    """Whether the node's data_format has the channels before the spatial dimensions.

    Raises
    ------
    UnsupportedOpError
        The format is neither that nor channels last (NCHW_VECT_C, ...).
    """
    data_format = ctx.attr("data_format")
    if data_format not in _CHANNELS_FIRST | _CHANNELS_LAST:
        raise ctx.unsupported(f"its data_format is {data_format}", "export with NHWC or NCHW")
    return data_format in _CHANNELS_FIRST


def to_channels_last(ctx: Context, x: Value) -> Value:
    """`x` of the node's data_format as channels last."""
    if not is_channels_first(ctx):
        return x
    return ctx.transpose(x, (0, *range(2, x.type.rank), 1), part="to_channels_last")


def from_channels_last(ctx: Context, x: Value) -> Value:
    """The inverse of `to_channels_last`."""
    if not is_channels_first(ctx):
        return x
    rank = x.type.rank
    return ctx.transpose(x, (0, rank - 1, *range(1, rank - 1)), part="to_channels_first")


def main_part(ctx: Context) -> str:
    """The part name of the op between the transposes; the last op of a node has none."""
    return ctx.node.op.lower() if is_channels_first(ctx) else ""


def spatial(ctx: Context, values: Sequence[Any], what: str) -> tuple[Any, ...]:
    """The spatial entries of an attribute with one entry per dimension.

    Raises
    ------
    UnsupportedOpError
        The entries of batch or channels are not 1.
    """
    first = is_channels_first(ctx)
    batch, channels = values[0], values[1 if first else -1]
    if (batch, channels) != (1, 1):
        raise ctx.unsupported(f"its {what} {list(values)} reach over batch or channels")
    return tuple(values[2:] if first else values[1:-1])


def window_padding(
    ctx: Context,
    sizes: Sequence[DimLike],
    window: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
) -> Padding:
    """Zeros around each spatial dimension by the node's `padding` attribute.

    `sizes` are the spatial dimensions of the larger side (the input; of a transposed convolution
    the output). Where they are symbolic, so may the padding be.
    """
    padding = ctx.attr("padding")
    if padding == "VALID":
        return ((0, 0),) * len(sizes)
    if padding == "EXPLICIT":
        explicit = ctx.attr("explicit_paddings")
        pairs = list(zip(explicit[::2], explicit[1::2], strict=True))
        return tuple(pairs[2:] if is_channels_first(ctx) else pairs[1:-1])
    if padding != "SAME":
        raise ctx.unsupported(f"its padding is {padding}")
    return tuple(
        same_padding(*dimension)
        for dimension in zip(sizes, window, strides, dilations, strict=True)
    )
