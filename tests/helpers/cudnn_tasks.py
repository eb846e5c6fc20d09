"""Tasks for cuDNN, and its graphs interpreted in NumPy."""

from __future__ import annotations

import math

import numpy as np

from helpers.levels import Levels
from planish.fusion.task import Task, make_task
from planish.graph import DType, Graph, TensorType
from planish.graph.graph import Value
from planish.ops.conv import Conv
from planish.ops.elementwise import Clip, Elu, Gelu, HardSigmoid, LeakyRelu, ew
from planish.ops.matmul import MatMul
from planish.ops.quantization import Dequantize, MatMulInteger, Quantize
from planish.targets.base import Binding, Constant
from planish.targets.cuda.kernels.cudnn import CudnnFamily
from planish.targets.cuda.kernels.cudnn_problem import Problem, problem_of
from planish.targets.cuda.libraries.cudnn_graph import Tensor
from planish.targets.cuda.machine import H200

F32, I8 = DType.FLOAT32, DType.INT8
FAMILY = CudnnFamily(H200)
PLAN = {"version": 91900, "plan": "eng4_k24=25", "tf32": False, "residual_first": False}

ACTIVATIONS = [
    Clip(0.0, 6.0),
    LeakyRelu(0.3),
    Elu(),
    Gelu(),
    Gelu(approximate=True),
    HardSigmoid(0.2, 0.4),
    ew.HardSwish(),
    ew.Mish(),
    ew.Sigmoid(),
    ew.Silu(),
    ew.Tanh(),
    ew.Softplus(),
    ew.Square(),
    ew.Exp(),
    ew.Neg(),
]


class Builder:
    """A convolution and what follows, as a task."""

    def __init__(self, rng: np.random.Generator, dtype: DType = F32) -> None:
        self.rng, self.dtype = rng, dtype
        self.graph = Graph()
        self.nodes: list = []

    def conv(self, shape, filters, window, strides=1, padding=(0, 0), dilation=1, groups=1):
        spatial = len(window)
        x = self.graph.input("x", TensorType(tuple(shape), self.dtype))
        size = (*window, shape[-1] // groups, filters)
        weights = self.rng.standard_normal(size) * math.prod(size[:-1]) ** -0.5
        w = self.graph.constant(weights.astype(self.dtype.numpy))
        op = Conv((strides,) * spatial, (padding,) * spatial, (dilation,) * spatial, groups)
        return self.add(op, x, w)

    def add(self, op, *values):
        result = self.graph.add(op, *values)
        self.nodes.append(result.producer)
        return result

    def constant(self, shape, dtype=None):
        dtype = dtype or self.dtype
        return self.graph.constant(self.rng.standard_normal(shape).astype(dtype.numpy))

    def input(self, shape, dtype=None):
        name = f"x{len(self.graph.inputs)}"
        return self.graph.input(name, TensorType(tuple(shape), dtype or self.dtype))

    def task(self, *outputs) -> Task:
        for i, output in enumerate(outputs):
            self.graph.mark_output(output, f"y{i}")
        anchor = next(n for n in self.nodes if isinstance(n.op, Conv | MatMul))
        return make_task(self.nodes, anchor)


def conv_bias(rng, epilogue=None, dtype=F32, shape=(2, 6, 5, 8), filters=16, **more) -> Task:
    """A 3x3 convolution, a bias, and an op."""
    b = Builder(rng, dtype)
    more = {"window": (3, 3), "padding": (1, 1), **more}
    y = b.add(ew.Add(), b.conv(shape, filters, **more), b.constant((filters,)))
    return b.task(b.add(epilogue, y) if epilogue else y)


def product(rng, epilogue=None, dtype=F32, shape=(2, 7, 8), columns=16, transpose=False) -> Task:
    """A product by a constant matrix, a bias, a residual, an op."""
    b = Builder(rng, dtype)
    size = (columns, shape[-1]) if transpose else (shape[-1], columns)
    weights = rng.standard_normal(size) * shape[-1] ** -0.5
    w = b.graph.constant(weights.astype(dtype.numpy))
    y = b.add(MatMul(transpose_b=transpose), b.input(shape), w)
    y = b.add(ew.Add(), y, b.constant((columns,)))
    y = b.add(ew.Add(), y, b.input(y.shape))
    return b.task(b.add(epilogue, y) if epilogue else y)


def residual(rng, dtype=F32, shape=(2, 6, 5, 8)) -> Task:
    """A convolution, a scale and a bias per channel, a residual, ReLU."""
    b = Builder(rng, dtype)
    y = b.add(ew.Mul(), b.conv(shape, 16, (1, 1)), b.constant((1, 1, 1, 16)))
    y = b.add(ew.Add(), b.add(ew.Add(), y, b.constant((16,))), b.input(y.shape))
    return b.task(b.add(ew.Relu(), y))


def arrays_of(task: Task, rng) -> list[np.ndarray]:
    return [
        v.data if v.data is not None else rng.standard_normal(v.type.bind({})).astype(v.dtype.numpy)
        for v in task.inputs
    ]


# ---- graphs, interpreted -------------------------------------------------------------------------

ELEMENTWISE = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "div": np.divide,
    "max": np.maximum,
    "min": np.minimum,
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "swish": lambda x: x / (1 + np.exp(-x)),
    "tanh": np.tanh,
    "softplus": lambda x: np.log1p(np.exp(x)),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "gelu": lambda x: x / 2 * (1 + np.vectorize(math.erf)(x / 2**0.5)),
    "gelu_approx_tanh": lambda x: x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3))),
    "abs": np.abs,
    "neg": np.negative,
    "exp": np.exp,
}
"""What cuDNN's operations mean, by its documentation."""


def view(tensor: Tensor, array: np.ndarray) -> np.ndarray:
    """The elements of an array as cuDNN sees them: images, channels, rows, columns."""
    flat = np.ascontiguousarray(array).reshape(-1)
    steps = [s * flat.itemsize for s in tensor.strides]
    return np.lib.stride_tricks.as_strided(flat, tensor.shape, steps).astype(np.float64)


def interpret(problem: Problem, task: Task, arrays: list[np.ndarray]) -> list[np.ndarray]:
    """What a graph computes, in float64, as the task's outputs."""
    graph = problem.graph
    assert np.isfinite(problem.scalars).all()
    known = dict(zip(task.inputs, arrays, strict=True))
    tactic = FAMILY.restore(task, PLAN)
    launch = tactic.launches(Binding({}))[0]
    constants = tactic.constants()
    pointers = [
        constants[p.index] if isinstance(p, Constant) else known.get(p)
        for p in launch.pointers[: 2 + len(graph.operands)]
    ]
    x, w = view(graph.image, pointers[0]), view(graph.filters, pointers[1])
    images, channels, *_ = x.shape
    filters, depth, *window = w.shape
    pads = list(zip(graph.before, graph.after, strict=True))
    x = np.pad(x, ((0, 0), (0, 0), *pads))
    sizes = [
        (x.shape[2 + i] - (window[i] - 1) * graph.dilations[i] - 1) // graph.strides[i] + 1
        for i in range(2)
    ]
    y = np.zeros((images, filters, *sizes))
    groups = channels // depth
    x = x.reshape(images, groups, depth, *x.shape[2:])
    w = w.reshape(groups, filters // groups, depth, *window)
    for row, column in np.ndindex(*window):
        r, c = row * graph.dilations[0], column * graph.dilations[1]
        part = x[..., r : r + (sizes[0] - 1) * graph.strides[0] + 1 : graph.strides[0], :][
            ..., c : c + (sizes[1] - 1) * graph.strides[1] + 1 : graph.strides[1]
        ]
        y += np.einsum("ngchw,gkc->ngkhw", part, w[..., row, column]).reshape(y.shape)
    slots = [y, *(view(t, p) for t, p in zip(graph.operands, pointers[2:], strict=True))]
    for step in graph.steps:
        args = [slots[i] for i in step.args]
        if step.operation == "relu":
            slots.append(np.where(args[0] > 0, args[0], (step.slope or 0.0) * args[0]))
        else:
            slots.append(ELEMENTWISE[step.operation](*args))
    results = []
    for (slot, described), value in zip(graph.results, task.outputs, strict=True):
        assert slots[slot].shape == described.shape
        results.append(slots[slot].transpose(0, 2, 3, 1).reshape(value.type.bind({})))
    return results


def check(task: Task, rng, tolerance: float = 1e-5, residual_first: bool = False) -> Problem:
    problem = problem_of(task, Binding({}), False, residual_first)
    assert problem is not None
    arrays = arrays_of(task, rng)
    for got, wanted in zip(interpret(problem, task, arrays), task.evaluate(arrays), strict=True):
        wanted = wanted.astype(np.float64)
        np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance)
    return problem


def product_with_scales(rng, rows: int = 1024, columns: int = 1024) -> Task:
    """A product of levels as it stands in a transformer: scales of channels before and after."""
    b = Levels(rng)
    zero = b.graph.constant(np.float32(0))
    sums = b.add(MatMulInteger(), b.input((rows, 768)), b.levels((768, columns)), *b.zeros())
    scales = rng.uniform(0.5, 1.5, columns).astype(np.float32) / 2000
    y = b.add(Dequantize(), sums, b.graph.constant(scales), zero)
    y = b.add(Gelu(), b.add(ew.Add(), y, b.floats((columns,))))
    y = b.add(ew.Add(), y, b.add(Dequantize(), b.input((rows, columns)), *numbers(b, 0.05, 0)))
    steps = b.graph.constant((scales * 200).astype(np.float32))
    return b.task(b.add(Quantize(I8, -127, 127), y, steps, zero))


def numbers(b: Levels, *values: float) -> list[Value]:
    return [b.graph.constant(np.float32(n)) for n in values]
