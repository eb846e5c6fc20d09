"""Resizing of images, also of boxes cut out of them."""

from __future__ import annotations

from planish.frontends.tensorflow.context import Context, converter
from planish.graph.graph import Value
from planish.graph.types import DType
from planish.ops.sampling import CropAndResize
from planish.ops.spatial import Resize


@converter("ResizeBilinear")
def _resize_bilinear(ctx: Context, x: Value, size: Value) -> Value:
    """Computes in float32 whatever the input's dtype."""
    dims = ctx.dims(size, "size")
    op = Resize(dims, "linear", _coordinates(ctx))
    return ctx.add(op, ctx.cast(x, DType.FLOAT32))


@converter("ResizeNearestNeighbor")
def _resize_nearest(ctx: Context, x: Value, size: Value) -> Value:
    coordinates = _coordinates(ctx)
    rounding = "round_prefer_ceil" if coordinates == "align_corners" else "floor"
    if coordinates == "half_pixel":
        coordinates = "tf_half_pixel_for_nn"
    return ctx.add(Resize(ctx.dims(size, "size"), "nearest", coordinates, rounding), x)


@converter("ResizeBicubic")
def _resize_bicubic(ctx: Context, x: Value, size: Value) -> Value:
    """With half pixel centers Keys' cubic without the elements outside, else a = -0.75."""
    coordinates = _coordinates(ctx)
    half = coordinates == "half_pixel"
    op = Resize(
        ctx.dims(size, "size"),
        "cubic",
        coordinates,
        cubic_coeff=-0.5 if half else -0.75,
        exclude_outside=half,
        steps=1024,  # entries of the table of weights
    )
    return ctx.add(op, ctx.cast(x, DType.FLOAT32))


@converter("CropAndResize")
def _crop_and_resize(ctx: Context, image: Value, boxes: Value, images: Value, size: Value) -> Value:
    """Computes in float32 whatever the image's dtype."""
    mode = {"bilinear": "linear"}.get(ctx.attr("method"), ctx.attr("method"))
    op = CropAndResize(ctx.dims(size, "size"), mode, ctx.attr("extrapolation_value"))
    return ctx.add(op, ctx.cast(image, DType.FLOAT32), boxes, images)


def _coordinates(ctx: Context) -> str:
    if ctx.attr("half_pixel_centers"):
        return "half_pixel"
    return "align_corners" if ctx.attr("align_corners") else "asymmetric"
