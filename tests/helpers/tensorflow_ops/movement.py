"""Cases of ops that move elements: shapes, layouts, joining, repeating, padding, blocks."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from helpers.tensorflow_ops.draw import EXACT, Case, Draw
from helpers.tensorflow_ops.elementwise import Generator, raw
from planish.graph.types import DType

# ---- shapes ------------------------------------------------------------------------------------


def reshape(draw: Draw) -> Case:
    dtype = draw.dtype()
    sizes = [draw.integer(1, 4) for _ in range(draw.integer(1, 4))]
    target = [int(d) for d in draw.rng.permutation([*sizes, 1])]
    if draw.flip():  # two dimensions become one
        target = [target[0] * target[1], *target[2:]]
    if draw.flip():
        target[draw.integer(0, len(target) - 1)] = -1
    x = draw.feed(draw.numbers(sizes, dtype), known=range(1, 9))
    draw.note(shape=target)
    return draw.case(lambda x, s: raw("Reshape", x, s), x, draw.index(target))


def expand_dims(draw: Draw) -> Case:
    types = draw.types()
    shape = draw.shape(0, 4)
    axis = draw.integer(-len(shape) - 1, len(shape))
    draw.note(axis=axis)
    return draw.case(
        lambda x, axis: raw("ExpandDims", x, axis),
        draw.feed(draw.numbers(shape, types["T"])),
        draw.constant(np.array(axis, types["Tdim"].numpy)),
    )


def squeeze(draw: Draw) -> Case:
    shape = [1 if draw.flip() else draw.size() for _ in range(draw.integer(0, 5))]
    ones = [i for i, d in enumerate(shape) if d == 1]
    axes = [i - len(shape) * draw.flip() for i in ones if draw.flip()] if draw.flip() else []
    known = [i for i in range(len(shape)) if i in ones or not axes]
    attributes = draw.note(axis=axes)
    x = draw.feed(draw.numbers(shape, draw.dtype()), known)
    return draw.case(lambda x: raw("Squeeze", x, **attributes), x)


def transpose(draw: Draw) -> Case:
    types = draw.types()
    shape = draw.shape(1, 6, 5)  # of a scalar TensorFlow dies
    perm = draw.rng.permutation(len(shape)).astype(types["Tperm"].numpy)
    draw.note(perm=perm.tolist())
    return draw.case(
        lambda x, p: raw(draw.op, x, p),
        draw.feed(draw.numbers(shape, types["T"])),
        draw.constant(perm),
    )


def of_shape(op: str) -> Generator:
    """Shape, Size: with the type of the result."""

    def generate(draw: Draw) -> Case:
        types = draw.types()
        x = draw.feed(draw.numbers(draw.shape(), types["T"]))
        draw.note(out_type=types["out_type"].value)
        return draw.case(lambda x: raw(op, x, out_type=types["out_type"].numpy), x)

    return generate


def shape_n(draw: Draw) -> Case:
    types = draw.types()
    operands = [draw.feed(draw.numbers(draw.shape(1), types["T"])) for _ in range(3)]
    return draw.case(lambda *x: raw("ShapeN", list(x), out_type=types["out_type"].numpy), *operands)


def rank(draw: Draw) -> Case:
    return draw.case(lambda x: raw("Rank", x), draw.feed(draw.numbers(draw.shape(), draw.dtype())))


def ensure_shape(draw: Draw) -> Case:
    shape = draw.shape()
    wanted = [None if draw.flip() else d for d in shape]
    x = draw.feed(draw.numbers(shape, draw.dtype()))
    return draw.case(lambda x: raw("EnsureShape", x, wanted), x)


def identity_n(draw: Draw) -> Case:
    count = draw.integer(1, 4)
    among = ("f32", "f64", "i32", "i64", "bool", "f16", "bf16", "u8")
    operands = [
        draw.feed(draw.numbers(draw.shape(1), DType(draw.choose(among)))) for _ in range(count)
    ]
    return draw.case(lambda *x: raw("IdentityN", list(x)), *operands)


# ---- fills -------------------------------------------------------------------------------------


def constant(draw: Draw) -> Case:
    """Filled with one element, or with as many as the shape holds, and handed on."""
    import tensorflow as tf

    dtype, shape = draw.dtype("dtype"), draw.shape(0, 4)
    array = draw.numbers(() if draw.flip() else shape, dtype)
    proto = tf.make_tensor_proto(array, shape=shape)
    return draw.case(lambda: raw("Identity", raw("Const", proto, dtype.numpy)))


def fill(draw: Draw) -> Case:
    types = draw.types()
    shape = draw.shape(0, 4)
    x = draw.feed(np.zeros(shape, np.float32))
    value = draw.either(draw.numbers((), types["T"]))
    sizes = np.array(shape, types["index_type"].numpy)
    computed = draw.flip()
    draw.note(computed=computed)

    def build(x: Any, v: Any) -> Any:
        import tensorflow as tf

        dims = tf.shape(x, out_type=sizes.dtype) if computed else tf.constant(sizes)
        return raw("Fill", dims, v)

    return draw.case(build, x, value)


def range_(draw: Draw) -> Case:
    dtype = draw.dtype("Tidx")
    kind = dtype.numpy.type
    delta = draw.choose([-3, -1, 1, 2, 4, 0.5, -0.25] if dtype.is_float else [-3, -1, 1, 2, 4])
    delta = abs(delta) if dtype.value[0] == "u" else delta
    start = draw.integer(0, 9)
    limit = start + int(delta * draw.integer(0, 12)) + draw.integer(0, 1) * (1 if delta > 0 else -1)
    limit = max(limit, 0) if dtype.value[0] == "u" else limit
    draw.note(start=start, limit=limit, delta=delta)
    if dtype in (DType.INT32, DType.INT64) and draw.flip():

        def by_shape(x: Any) -> Any:
            import tensorflow as tf

            length = tf.shape(x, out_type=dtype.numpy)[0]
            if delta > 0:
                return raw("Range", kind(0), length, kind(delta))
            return raw("Range", length, kind(-1), kind(delta))

        x = draw.feed(np.zeros((draw.integer(1, 20), 2), np.float32))
        return draw.case(by_shape, x)
    return draw.case(lambda: raw("Range", kind(start), kind(limit), kind(delta)))


def lin_space(draw: Draw) -> Case:
    from helpers.tensorflow_ops.draw import SUM

    types = draw.types()
    kind = types["T"].numpy.type
    count = types["Tidx"].numpy.type(draw.integer(1, 20))
    return draw.case(lambda: raw("LinSpace", kind(-2), kind(5), count), tolerance=SUM)


# ---- joining and repeating ---------------------------------------------------------------------


def concat(draw: Draw) -> Case:
    types = draw.types()
    shape = list(draw.shape(1, 5, 5))
    axis = draw.axis(len(shape))
    operands = []
    for _ in range(draw.integer(2, 5)):
        shape[axis] = draw.size()
        array = draw.numbers(shape, types["T"])
        operands.append(draw.feed(array, known=[] if draw.flip() else [axis]))
    draw.note(axis=axis)
    position = np.array(axis, types["Tidx"].numpy)
    return draw.case(lambda *x: raw("ConcatV2", list(x), position), *operands)


def pack(draw: Draw) -> Case:
    shape, dtype = draw.shape(0, 4), draw.dtype()
    attributes = draw.note(axis=draw.integer(-len(shape) - 1, len(shape)))
    operands = [draw.feed(draw.numbers(shape, dtype)) for _ in range(draw.integer(1, 5))]
    return draw.case(lambda *x: raw("Pack", list(x), **attributes), *operands)


def unpack(draw: Draw) -> Case:
    shape, dtype = draw.shape(1, 5), draw.dtype()
    axis = draw.axis(len(shape))
    if shape[axis] == 0:
        shape = tuple(max(d, 1) for d in shape)
    attributes = draw.note(axis=axis, num=shape[axis])
    x = draw.feed(draw.numbers(shape, dtype), known=[axis] if draw.flip() else [])
    return draw.case(lambda x: raw("Unpack", x, **attributes), x)


def tile(draw: Draw) -> Case:
    types = draw.types()
    shape = draw.shape(0, 5, 4)
    repeats = np.array([draw.integer(0 if draw.flip(0.1) else 1, 3) for _ in shape])
    draw.note(multiples=repeats.tolist())
    return draw.case(
        lambda x, m: raw("Tile", x, m),
        draw.feed(draw.numbers(shape, types["T"])),
        draw.constant(repeats.astype(types["Tmultiples"].numpy)),
    )


def broadcast_to(draw: Draw) -> Case:
    types = draw.types()
    full = draw.shape(0, 5, 5)
    shape = tuple(1 if draw.flip(0.4) else d for d in full)[draw.integer(0, len(full)) :]
    sizes = np.array(full, types["Tidx"].numpy)
    draw.note(shape=full)
    x = draw.feed(draw.numbers(shape, types["T"]), known=range(len(shape)))
    if draw.flip() and full:  # the target is the shape of another tensor

        def build(x: Any, like: Any) -> Any:
            import tensorflow as tf

            return raw("BroadcastTo", x, tf.shape(like, out_type=sizes.dtype))

        first = len(full) - len(shape)
        known = [first + i for i, d in enumerate(shape) if d != 1]
        return draw.case(build, x, draw.feed(np.zeros(full, np.float32), known=known))
    return draw.case(lambda x: raw("BroadcastTo", x, sizes), x)


def broadcast_args(draw: Draw) -> Case:
    kind = draw.dtype().numpy
    full = draw.shape(1, 5)
    a, b = (np.array([1 if draw.flip(0.3) else d for d in full], kind) for _ in range(2))
    b = b[draw.integer(0, len(full)) :]
    return draw.case(lambda: raw("BroadcastArgs", a, b))


# ---- padding -----------------------------------------------------------------------------------


def pad(op: str) -> Generator:
    def generate(draw: Draw) -> Case:
        types = draw.types()
        dtype = types["T"]
        mode = draw.choose(["REFLECT", "SYMMETRIC"])
        shape = tuple(max(d, 1) for d in draw.shape(0, 5, 5))
        most = [3 if op != "MirrorPad" else d - (mode == "REFLECT") for d in shape]
        pairs = [[draw.integer(0, m), draw.integer(0, m)] for m in most]
        sizes = np.array(pairs, types["Tpaddings"].numpy).reshape(len(shape), 2)
        draw.note(paddings=pairs)
        x = draw.feed(draw.numbers(shape, dtype, special=0.1))
        if op == "PadV2":
            value = draw.either(draw.numbers((), dtype))
            return draw.case(lambda x, v: raw(op, x, sizes, v), x, value)
        attributes = draw.note(mode=mode) if op == "MirrorPad" else {}
        return draw.case(lambda x: raw(op, x, sizes, **attributes), x)

    return generate


# ---- blocks ------------------------------------------------------------------------------------


def batch_and_space(op: str) -> Generator:
    def generate(draw: Draw) -> Case:
        types = draw.types()
        count = draw.integer(1, 3)
        block = [draw.integer(1, 3) for _ in range(count)]
        sizes = [draw.integer(1, 3) for _ in range(count)]
        rest = list(draw.shape(0, 2, 4))
        if op == "SpaceToBatchND":
            pairs = []
            for i, b in enumerate(block):
                before, after = draw.integer(0, 2), draw.integer(0, 2)
                sizes[i] = max(sizes[i] * b - before - after, 1)
                after += -(before + sizes[i] + after) % b
                pairs.append([before, after])
            batch = draw.integer(1, 3)
        else:
            batch = draw.integer(1, 3) * prod(block)
            pairs = []
            for size, b in zip(sizes, block, strict=True):
                before = draw.integer(0, (size * b - 1) // 2)
                pairs.append([before, draw.integer(0, (size * b - 1) // 2)])
        draw.note(block=block, pairs=pairs)
        x = draw.feed(draw.numbers((batch, *sizes, *rest), types["T"]), known=range(1, count + 1))
        if op == "BatchToSpaceND":
            x = draw.feed(x.array, known=range(count + 1))
        kinds = [k for k in types if k != "T"]
        blocks = np.array(block, types[kinds[0]].numpy)
        amounts = np.array(pairs, types[kinds[1]].numpy)
        return draw.case(lambda x: raw(op, x, blocks, amounts), x, tolerance=EXACT)

    return generate


CASES: dict[str, Generator] = {
    "Reshape": reshape,
    "ExpandDims": expand_dims,
    "Squeeze": squeeze,
    "Transpose": transpose,
    "ConjugateTranspose": transpose,
    "Shape": of_shape("Shape"),
    "Size": of_shape("Size"),
    "ShapeN": shape_n,
    "Rank": rank,
    "EnsureShape": ensure_shape,
    "IdentityN": identity_n,
    "Const": constant,
    "Fill": fill,
    "Range": range_,
    "LinSpace": lin_space,
    "ConcatV2": concat,
    "Pack": pack,
    "Unpack": unpack,
    "Tile": tile,
    "BroadcastTo": broadcast_to,
    "BroadcastArgs": broadcast_args,
    "Pad": pad("Pad"),
    "PadV2": pad("PadV2"),
    "MirrorPad": pad("MirrorPad"),
    "SpaceToBatchND": batch_and_space("SpaceToBatchND"),
    "BatchToSpaceND": batch_and_space("BatchToSpaceND"),
}
