"""Convolutions and matrix products of bytes as tasks, with random constants."""

from __future__ import annotations

import numpy as np

from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.ops.elementwise import Cast, ew
from planish.ops.quantization import ConvInteger, Dequantize, MatMulInteger, Quantize

F32, I8, U8 = DType.FLOAT32, DType.INT8, DType.UINT8


def bytes_of(rng: np.random.Generator, dtype: DType, *shape: int) -> np.ndarray:
    """Bytes of the whole range, the extremes often: what saturates would be seen."""
    info = np.iinfo(dtype.numpy)
    values = rng.integers(info.min, info.max + 1, shape)
    ends = rng.choice([info.min, info.max], shape)
    return np.where(rng.random(shape) < 0.3, ends, values).astype(dtype.numpy)


def short(weights: np.ndarray, count: int) -> np.ndarray:
    """The same bytes with less in some, so that of `count` whose products are added up in 16 bits
    those of one sign are 128 together at most; often they are. At an odd depth every second one is
    0.
    """
    flat = weights.reshape(-1, weights.shape[-1]).astype(np.int32)
    if count == 4:
        eights = flat.reshape(-1, 2, 2, 2, flat.shape[-1])
        together = [eights[:, i, :, j] for i in range(2) for j in range(2)]
    elif weights.shape[-2] % 2:
        flat[1::2] = 0
        together = [flat]
    else:
        together = [flat[0::2], flat[1::2]]
    above, below = np.full(together[0].shape, 128), np.full(together[0].shape, -128)
    for some in together:
        some[...] = np.clip(some, below, above)
        above, below = above - np.maximum(some, 0), below - np.minimum(some, 0)
    return flat.reshape(weights.shape).astype(np.int8)


def conv_task(
    rng,
    *,
    shape,
    filters,
    window,
    stride=1,
    pad=0,
    dilation=1,
    groups=1,
    source=U8,
    zero=3,
    weight_zero=0,
    weights=I8,
    residual=False,
    prologue=False,
    added=0,
) -> Task:
    graph = Graph()
    x = graph.input("x", TensorType(shape, F32 if prologue else source))
    nodes = []
    if prologue:
        info = np.iinfo(source.numpy)
        scale = graph.constant(np.float32(0.013))
        x = graph.add(
            Quantize(source, int(info.min), int(info.max)),
            x,
            scale,
            graph.constant(np.float32(zero)),
        )
        nodes.append(x.producer)
    data = bytes_of(rng, weights, window, window, shape[-1] // groups, filters)
    w = graph.constant(short(data, added) if added else data)
    conv = ConvInteger((stride, stride), ((pad, pad), (pad, pad)), (dilation, dilation), groups)
    y = graph.add(
        conv,
        x,
        w,
        graph.constant(np.asarray(zero, source.numpy)),
        graph.constant(np.asarray(weight_zero, weights.numpy)),
    )
    anchor = y.producer
    nodes.append(anchor)

    def vector(low: float, high: float):
        return graph.constant(rng.uniform(low, high, filters).astype(np.float32))

    steps = [(Cast(F32),), (ew.Mul(), vector(1e-4, 1e-2)), (ew.Add(), vector(100, 150))]
    for op, *others in steps:
        y = graph.add(op, y, *others)
        nodes.append(y.producer)
    if residual:
        r = graph.input("r", TensorType(y.shape, U8))
        one, none = graph.constant(np.float32(0.37)), graph.constant(np.float32(121))
        wide = graph.add(Dequantize(), r, one, none)
        y = graph.add(ew.Add(), y, wide)
        nodes += [wide.producer, y.producer]
    one, none = graph.constant(np.float32(1)), graph.constant(np.float32(0))
    y = graph.add(Quantize(U8, 0, 255), y, one, none)
    nodes.append(y.producer)
    graph.mark_output(y, "y")
    return make_task(nodes, anchor)


def matmul_task(rng, a, b, *, transpose_b=False, source=U8, column_zeros=False) -> Task:
    graph = Graph()
    x = graph.input("x", TensorType(a, source))
    w = graph.constant(bytes_of(rng, I8, *b))
    columns = b[0] if transpose_b else b[1]
    w_zero = rng.integers(-3, 4, columns).astype(np.int8) if column_zeros else np.int8(0)
    y = graph.add(
        MatMulInteger(False, transpose_b),
        x,
        w,
        graph.constant(np.asarray(5, source.numpy)),
        graph.constant(w_zero),
    )
    graph.mark_output(y, "y")
    return make_task([y.producer], y.producer)


def arrays_of(task: Task, rng) -> list[np.ndarray]:
    found = []
    for v in task.inputs:
        if v.is_constant:
            found.append(v.data)
        elif v.dtype is F32:
            found.append(rng.standard_normal(v.shape).astype(np.float32))
        else:
            found.append(bytes_of(rng, v.dtype, *v.shape))
    return found
