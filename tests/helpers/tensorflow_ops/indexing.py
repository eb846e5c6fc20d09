"""Cases of ops that pick elements: slices, splits, gathering, scattering."""

from __future__ import annotations

from typing import Any

import numpy as np

from helpers.tensorflow_ops.draw import EXACT, SUM, Case, Draw
from helpers.tensorflow_ops.elementwise import Generator, raw


def slice_(draw: Draw) -> Case:
    types = draw.types()
    shape = draw.shape(1, 5)
    begin = [draw.integer(0, d) for d in shape]
    size = [
        -1 if draw.flip(0.3) else draw.integer(0, d - b) for d, b in zip(shape, begin, strict=True)
    ]
    draw.note(begin=begin, size=size)
    kind = types["Index"].numpy
    return draw.case(
        lambda x: raw("Slice", x, np.array(begin, kind), np.array(size, kind)),
        draw.feed(draw.numbers(shape, types["T"])),
    )


def strided_slice(draw: Draw) -> Case:
    """Every mask, negative strides, bounds beyond the ends, bounds computed of the shape."""
    types = draw.types()
    shape = draw.shape(1, 5)
    rank = len(shape)
    masks = dict.fromkeys(("begin", "end", "ellipsis", "new_axis", "shrink_axis"), 0)
    begins, ends, steps = [], [], []
    axis, ellipsis = 0, None
    known: set[int] = set()
    while axis < rank or (len(begins) == 0) or draw.flip(0.15):
        i = len(begins)
        kind = draw.choose(["slice"] * 6 + ["new", "ellipsis", "shrink", "stop"])
        if kind == "stop" and begins:
            break
        begin = end = 0
        step = 1
        if kind == "new":
            masks["new_axis"] |= 1 << i
        elif kind == "ellipsis" and ellipsis is None:
            masks["ellipsis"] |= 1 << i
            ellipsis = i
            axis += draw.integer(0, rank - axis)
        elif axis == rank:
            break
        elif kind == "shrink" and shape[axis] and ellipsis is None:
            masks["shrink_axis"] |= 1 << i
            begin = draw.integer(-shape[axis], shape[axis] - 1)
            end = begin + 1
            axis += 1
        elif ellipsis is None or kind == "slice":
            step = draw.choose([1, 1, 1, 2, 3, -1, -2])
            begin, end = (draw.integer(-9, 9) for _ in range(2))
            masks["begin"] |= draw.flip(0.3) << i
            masks["end"] |= draw.flip(0.3) << i
            axis += 1
        else:
            continue
        begins.append(begin)
        ends.append(end)
        steps.append(step)
    if ellipsis is not None:  # what follows it counts from the end: all of it must exist
        kept = sum(not masks["new_axis"] >> i & 1 for i in range(len(begins)) if i != ellipsis)
        if kept > rank:
            return strided_slice(Draw(draw.op, draw.seed + 1000003))
    attributes = draw.note(**{f"{name}_mask": value for name, value in masks.items()})
    draw.note(begin=begins, end=ends, strides=steps)
    index = types["Index"].numpy
    given = [np.array(v, index) for v in (begins, ends, steps)]
    x = draw.feed(draw.numbers(shape, types["T"]), sorted(known))
    return draw.case(lambda x: raw("StridedSlice", x, *given, **attributes), x)


def split(draw: Draw) -> Case:
    count = draw.integer(1, 4)
    shape = list(draw.shape(1, 4, 5))
    axis = draw.axis(len(shape))
    shape[axis] = count * draw.integer(1, 3)
    draw.note(axis=axis, num_split=count)
    x = draw.feed(draw.numbers(shape, draw.dtype()), known=[axis])
    return draw.case(lambda x: raw("Split", np.int32(axis), x, num_split=count), x)


def split_v(draw: Draw) -> Case:
    types = draw.types()
    sizes = [draw.integer(0, 4) for _ in range(draw.integer(1, 4))]
    shape = list(draw.shape(1, 4, 5))
    axis = draw.axis(len(shape))
    shape[axis] = sum(sizes)
    kind = types["Tlen"].numpy  # TensorFlow itself dies of int8
    given = np.array(sizes, np.int64 if kind == np.int8 else kind)
    if draw.flip():
        given[draw.integer(0, len(sizes) - 1)] = -1
    draw.note(axis=axis, sizes=given.tolist())
    x = draw.feed(draw.numbers(shape, types["T"]), known=[] if -1 in given else [axis])
    return draw.case(lambda x: raw("SplitV", x, given, np.int32(axis), num_split=len(sizes)), x)


def reverse(draw: Draw) -> Case:
    types = draw.types()
    shape = draw.shape(0, 5)
    axes = draw.axes(len(shape))
    draw.note(axes=axes)
    given = np.array(axes, types["Tidx"].numpy)
    return draw.case(
        lambda x: raw("ReverseV2", x, given), draw.feed(draw.numbers(shape, types["T"]))
    )


def roll(draw: Draw) -> Case:
    types = draw.types()
    shape = draw.shape(1, 4)
    axes = [draw.axis(len(shape)) for _ in range(draw.integer(1, 3))]  # the same one more than once
    shifts = [draw.integer(-12, 12) for _ in axes]
    draw.note(axes=axes, shifts=shifts)
    one = len(axes) == 1 and draw.flip()
    shift = np.array(shifts[0] if one else shifts, types["Tshift"].numpy)
    axis = np.array(axes[0] if one else axes, types["Taxis"].numpy)
    x = draw.feed(draw.numbers(shape, types["T"]), known=axes if draw.flip() else [])
    return draw.case(lambda x: raw("Roll", x, shift, axis), x)


# ---- gathering and scattering ------------------------------------------------------------------


def gather(draw: Draw) -> Case:
    types = draw.types()
    shape = tuple(max(d, 1) for d in draw.shape(1, 4, 5))
    rank = len(shape)
    axis = draw.integer(0, rank - 1)
    batch = draw.integer(0, axis) if draw.flip() else 0
    places = (*shape[:batch], *draw.shape(0, 2, 4))
    indices = draw.rng.integers(0, shape[axis], places).astype(types["Tindices"].numpy)
    position = np.array(axis - rank * draw.flip(), types["Taxis"].numpy)
    given = batch - len(places) if draw.flip(0.3) and len(places) > batch else batch
    attributes = draw.note(batch_dims=given)
    draw.note(axis=int(position))
    x = draw.feed(draw.numbers(shape, types["Tparams"]))
    where = draw.either(indices, known=range(batch) if draw.flip() else [])
    if not where.fed:
        x = draw.feed(x.array, known=range(batch))
    return draw.case(lambda x, i: raw("GatherV2", x, i, position, **attributes), x, where)


def gather_nd(draw: Draw) -> Case:
    types = draw.types()
    shape = tuple(max(d, 1) for d in draw.shape(1, 4, 5))
    depth = draw.integer(0, len(shape))
    places = draw.shape(1, 2, 4)
    indices = (
        np.stack([draw.rng.integers(0, d, places) for d in shape[:depth]], -1)
        if depth
        else np.zeros((*places, 0))
    )
    draw.note(depth=depth)
    return draw.case(
        lambda x, i: raw("GatherNd", x, i),
        draw.feed(draw.numbers(shape, types["Tparams"])),
        draw.either(indices.astype(types["Tindices"].numpy), known=[-1]),
    )


def scatter_nd(draw: Draw) -> Case:
    types = draw.types()
    shape = tuple(max(d, 1) for d in draw.shape(1, 4, 5))
    indices, updates = _places(draw, types, shape)
    kind = types["Tindices"].numpy
    draw.note(shape=shape)
    return draw.case(
        lambda i, u: raw("ScatterNd", i, u, np.array(shape, kind)), indices, updates, tolerance=SUM
    )


def _places(draw: Draw, types: Any, shape: Any, distinct: bool = False) -> Any:
    """Operands: indices into a tensor of a shape, and updates for these places."""
    depth = draw.integer(1, len(shape))
    places = draw.shape(1, 2, 4)
    indices = np.stack([draw.rng.integers(0, d, places) for d in shape[:depth]], -1)
    if distinct:  # of equal places the last one wins, in an order that TensorFlow does not promise
        flat = indices.reshape(-1, depth)
        indices = np.unique(flat, axis=0)
        draw.rng.shuffle(indices)
        places = indices.shape[:1]
    updates = draw.numbers((*places, *shape[depth:]), types["T"])
    known = [-1, *range(len(places))]
    where = draw.either(indices.astype(types["Tindices"].numpy), known=known)
    return where, draw.feed(updates, known=range(updates.ndim))


def tensor_scatter(op: str) -> Generator:
    def generate(draw: Draw) -> Case:
        types = draw.types()
        shape = tuple(max(d, 1) for d in draw.shape(1, 4, 5))
        indices, updates = _places(draw, types, shape, distinct=op == "TensorScatterUpdate")
        x = draw.feed(draw.numbers(shape, types["T"]), known=range(len(shape)))
        exact = types["T"].is_integer or op in ("TensorScatterUpdate",)
        return draw.case(
            lambda x, i, u: raw(op, x, i, u),
            x,
            indices,
            updates,
            tolerance=EXACT if exact else SUM,
        )

    return generate


def one_hot(draw: Draw) -> Case:
    types = draw.types()
    shape = draw.shape(0, 3)
    axis = draw.choose([-1, *range(len(shape) + 1)])
    depth = draw.integer(0, 6)
    low = 0 if types["TI"].value[0] == "u" else -2
    indices = draw.rng.integers(low, depth + 2, shape).astype(types["TI"].numpy)
    on, off = (draw.either(draw.numbers((), types["T"])) for _ in range(2))
    attributes = draw.note(axis=axis)
    draw.note(depth=depth)
    return draw.case(
        lambda i, on, off: raw("OneHot", i, np.int32(depth), on, off, **attributes),
        draw.feed(indices),
        on,
        off,
    )


def where(draw: Draw) -> Case:
    dtype = draw.dtype()
    shape = draw.shape(1, 4, 5)
    x = draw.numbers(shape, dtype)
    x = np.where(draw.rng.random(shape) < draw.choose([0.0, 0.3, 0.8, 1.0]), x, x.dtype.type(0))
    return draw.case(lambda x: raw("Where", x), draw.feed(x))


# ---- data formats and matrices -----------------------------------------------------------------

_FORMATS = [("NHWC", "NCHW"), ("NCHW", "NHWC"), ("NHWC", "NHWC"), ("NDHWC", "NCDHW")]


def vec_permute(draw: Draw) -> Case:
    source, target = draw.choose(_FORMATS)
    count = len(source) - 2 * draw.flip(0.3)
    shape = (count, 2) if draw.flip() else (count,)
    attributes = draw.note(src_format=source, dst_format=target)
    x = draw.feed(draw.numbers(shape, draw.dtype()), known=[0, 1][: len(shape)])
    return draw.case(lambda x: raw("DataFormatVecPermute", x, **attributes), x)


def dim_map(draw: Draw) -> Case:
    source, target = draw.choose(_FORMATS)
    attributes = draw.note(src_format=source, dst_format=target)
    values = draw.rng.integers(-len(source), len(source), draw.shape(0, 2))
    x = draw.feed(values.astype(draw.dtype().numpy))
    return draw.case(lambda x: raw("DataFormatDimMap", x, **attributes), x)


def band_part(draw: Draw) -> Case:
    types = draw.types()
    shape = draw.shape(2, 4)
    kind = types["Tindex"].numpy.type
    lower, upper = (kind(draw.integer(-1, d)) for d in shape[-2:])
    draw.note(lower=lower, upper=upper)
    x = draw.feed(draw.numbers(shape, types["T"]))
    return draw.case(lambda x: raw("MatrixBandPart", x, lower, upper), x)


def invert_permutation(draw: Draw) -> Case:
    perm = draw.rng.permutation(draw.integer(1, 9)).astype(draw.dtype().numpy)
    return draw.case(lambda: raw("InvertPermutation", perm))


_TENSOR_SCATTERS = ("Update", "Add", "Sub", "Max", "Min")

CASES: dict[str, Generator] = {
    "Slice": slice_,
    "StridedSlice": strided_slice,
    "Split": split,
    "SplitV": split_v,
    "ReverseV2": reverse,
    "Roll": roll,
    "GatherV2": gather,
    "GatherNd": gather_nd,
    "ScatterNd": scatter_nd,
    **{f"TensorScatter{name}": tensor_scatter(f"TensorScatter{name}") for name in _TENSOR_SCATTERS},
    "OneHot": one_hot,
    "Where": where,
    "DataFormatVecPermute": vec_permute,
    "DataFormatDimMap": dim_map,
    "MatrixBandPart": band_part,
    "InvertPermutation": invert_permutation,
}
