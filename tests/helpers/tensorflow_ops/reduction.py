"""Cases of reductions, searches and running sums."""

from __future__ import annotations

import numpy as np

from helpers.tensorflow_ops.draw import EXACT, SUM, Case, Draw, Tolerance
from helpers.tensorflow_ops.elementwise import Generator, raw
from planish.graph.types import DType

_REDUCTIONS: dict[str, Tolerance] = {
    "Sum": SUM,
    "Mean": SUM,
    "Prod": Tolerance(16, wide=True),
    "Max": EXACT,
    "Min": EXACT,
    "Any": EXACT,
    "All": EXACT,
    "EuclideanNorm": SUM,
}


def reduction(op: str) -> Generator:
    def generate(draw: Draw) -> Case:
        types = draw.types()
        dtype = types.get("T", DType.BOOL)
        shape = draw.shape()
        axes = draw.axes(len(shape))
        low, high = (0.5, 1.5) if op == "Prod" and dtype.is_float else (-4, 4)
        x = draw.numbers(shape, dtype, low, high)
        if dtype is DType.BOOL:  # more than now and then all are true, or none
            x = draw.rng.random(shape) < draw.choose([0.1, 0.5, 0.9])
        given = np.array(axes, types["Tidx"].numpy)
        if len(axes) == 1 and draw.flip():
            given = given.reshape(())
        attributes = draw.note(keep_dims=draw.flip())
        draw.note(axes=axes)
        return draw.case(
            lambda x, axes: raw(op, x, axes, **attributes),
            draw.feed(x),
            draw.constant(given),
            tolerance=_REDUCTIONS[op],
        )

    return generate


def search(op: str) -> Generator:
    def generate(draw: Draw) -> Case:
        types = draw.types()
        shape = draw.shape(1, 5)
        axis = draw.axis(len(shape))
        shape = tuple(max(d, 1) if i == axis % len(shape) else d for i, d in enumerate(shape))
        x = draw.numbers(shape, types["T"])
        if draw.flip() and types["T"].is_float:  # several equal ones
            x = np.round(x.astype(np.float32)).astype(x.dtype)
        draw.note(axis=axis, output_type=types["output_type"].value)
        return draw.case(
            lambda x, axis: raw(op, x, axis, output_type=types["output_type"].numpy),
            draw.feed(x),
            # TensorFlow reads a constant of 16 bits as 32 bits
            draw.constant(axis, np.int64 if types["Tidx"].size == 8 else np.int32),
        )

    return generate


def cumsum(draw: Draw) -> Case:
    types = draw.types()
    shape = draw.shape(1, 5)
    axis = draw.axis(len(shape))
    attributes = draw.note(exclusive=draw.flip(), reverse=draw.flip())
    draw.note(axis=axis)
    return draw.case(
        lambda x, axis: raw("Cumsum", x, axis, **attributes),
        draw.feed(draw.numbers(shape, types["T"])),
        draw.constant(np.array(axis, types["Tidx"].numpy)),
        tolerance=SUM,
    )


def top_k(draw: Draw) -> Case:
    types = draw.types()
    shape = draw.shape(1, 4, 12)
    k = draw.integer(0, shape[-1])
    x = draw.numbers(shape, types["T"])
    # the order of equal elements is TensorFlow's only where they are sorted
    result = draw.note(k=k, index=types["index_type"].value, sorted=True)
    known = [-1] if draw.flip() or k == 0 else []
    return draw.case(
        lambda x, k: raw(
            "TopKV2", x, k, sorted=result["sorted"], index_type=types["index_type"].numpy
        ),
        draw.feed(x, known),
        draw.constant(np.array(k, types["Tk"].numpy)),
    )


CASES: dict[str, Generator] = {
    **{op: reduction(op) for op in _REDUCTIONS},
    "ArgMax": search("ArgMax"),
    "ArgMin": search("ArgMin"),
    "Cumsum": cumsum,
    "TopKV2": top_k,
}
