"""A small case of every kernel family: on a GPU under compute-sanitizer, `make sanitize-cuda`.

Everything is as in a plan: sizes that no tile divides, workspace, counters, constants. Without a
GPU the interpreter runs the cases.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.attentions import Form, attention, attention_task
from helpers.first_layers import FirstNet, first_tasks
from helpers.interpreted import FUSED, TF32
from helpers.levels import conv_of_levels, product_of_codes, product_of_levels
from helpers.normalized import NormalizedNet
from helpers.openings import OpeningNet, opening_tasks
from helpers.pairs import PairNet, PointwiseNet, pair_task
from helpers.pooled import PooledNet, pooled_tasks
from helpers.sums import SumNet, sum_tasks
from helpers.tactics import assert_close, random_array
from planish.fusion.task import Task, make_task
from planish.graph.graph import Graph
from planish.graph.types import DType, TensorType
from planish.ops.base import Op
from planish.ops.conv import Conv, ConvTranspose, Fold
from planish.ops.data_dependent import NonZero, Unique
from planish.ops.detection import CombinedNonMaxSuppression, NonMaxSuppression
from planish.ops.elementwise import Cast, Elementwise, ew
from planish.ops.indexing import Gather, ScatterNd
from planish.ops.matmul import MatMul
from planish.ops.normalization import LayerNorm, Lrn, Softmax
from planish.ops.pool import AvgPool, MaxPool, MaxPoolIndices
from planish.ops.quantization import MatMulInteger
from planish.ops.recurrent import Lstm
from planish.ops.reduce import CumSum, ReduceSum, TopK
from planish.ops.sampling import GridSample
from planish.ops.shape import Concat, Transpose
from planish.ops.spatial import Resize
from planish.targets.base import Binding, Family
from planish.targets.cuda.kernels import FAMILIES
from planish.targets.cuda.machine import H200
from planish.targets.cuda.run import is_on_gpu, run_tactic

LIBRARIES = {"cudnn", "cudnn_attention", "cublaslt"}
"""Families that exist on a GPU only, where they are installed."""

EACH = 2
"""So many tactics of each family are run for a case."""

TOLERANCE = {"fp8": 1e-2, "fp16": 2e-2, "bf16": 5e-2, "tf32": TF32}

RNG = np.random.default_rng(0)
PAD = ((1, 1), (1, 1))
HALF = DType.FLOAT16


def floats(*shape: int, dtype: DType = DType.FLOAT32) -> np.ndarray:
    return random_array(RNG, shape, dtype)


def case(
    op: Op, *inputs: np.ndarray, then: Sequence[Elementwise] = (), constant: Sequence[int] = ()
) -> tuple[Task, list[np.ndarray]]:
    """A task of an op with elementwise ones behind it, and its inputs, some of them constants."""
    graph = Graph("case")
    values = [
        graph.constant(a)
        if i in constant
        else graph.input(f"x{i}", TensorType(a.shape, DType.of(a.dtype)))
        for i, a in enumerate(inputs)
    ]
    taken = len(inputs) - sum(e.arity - 1 for e in then)
    node = graph.add_node(op, tuple(values[:taken]))
    result, rest = node.output, values[taken:]
    for elementwise in then:
        more, rest = rest[: elementwise.arity - 1], rest[elementwise.arity - 1 :]
        result = graph.add(elementwise, result, *more)
    graph.mark_output(result, "y")
    task = make_task(graph.nodes, None if isinstance(op, Elementwise) else node)
    given = dict(zip(values, inputs, strict=True))
    return task, [given[v] for v in task.inputs]


def with_data(task: Task) -> tuple[Task, list[np.ndarray]]:
    """A task, and its constants or random numbers."""
    arrays = [
        v.data if v.data is not None else random_array(RNG, v.type.bind({}), v.dtype)
        for v in task.inputs
    ]
    return task, arrays


def with_codes(task: Task) -> tuple[Task, list[np.ndarray]]:
    """The same of codes of FP8, none of which is NaN."""
    task, arrays = with_data(task)
    pairs = zip(task.inputs, arrays, strict=True)
    return task, [a if v.data is not None else a & np.int8(~0x40) for v, a in pairs]


def alone(op: Op, *inputs: np.ndarray) -> tuple[Task, list[np.ndarray]]:
    """A task of an op alone, of any number of results, and its inputs."""
    graph = Graph("case")
    values = [
        graph.input(f"x{i}", TensorType(a.shape, DType.of(a.dtype))) for i, a in enumerate(inputs)
    ]
    node = graph.add_node(op, values)
    return make_task([node], node), list(inputs)


def transposed_image() -> tuple[Task, list[np.ndarray]]:
    """A convolution of an image that lies channels first."""
    graph = Graph("case")
    x = graph.input("x", TensorType((1, 3, 8, 9), DType.FLOAT32))
    y = graph.add(Transpose((0, 2, 3, 1)), graph.add(Cast(HALF), x))
    w = graph.constant(floats(3, 3, 3, 8, dtype=HALF))
    result = graph.add(Conv((2, 2), PAD, (1, 1)), y, w)
    graph.mark_output(result, "y")
    return with_data(make_task(graph.nodes, result.producer))


def boxes(*shape: int) -> np.ndarray:
    """Boxes by their corners."""
    corner, size = RNG.random((*shape, 2)), RNG.random((*shape, 2)) * 0.4
    return np.concatenate([corner, corner + size], -1).astype(np.float32)


def scores(*shape: int) -> np.ndarray:
    """Scores from 0 to 1, some of them equal."""
    return (np.round(RNG.random(shape) * 20) / 20).astype(np.float32)


ACTIVATIONS = (("sigmoid", 0.0, 0.0), ("tanh", 0.0, 0.0), ("tanh", 0.0, 0.0))

CASES = {
    "elementwise": case(ew.Mul(), floats(7, 33), floats(33), then=(ew.Tanh(),)),
    "sum": case(ReduceSum((1,), False), floats(5, 77)),
    "sum of columns": case(ReduceSum((0,), True), floats(300, 9)),
    "running sum": case(CumSum(1), floats(3, 45)),
    "softmax": case(Softmax(-1), floats(6, 50, dtype=HALF)),
    "norm": case(LayerNorm(-1, 1e-5), floats(6, 50), floats(50), floats(50), constant=(1, 2)),
    "response": case(Lrn(2, 1.0, 0.5, 0.75), floats(2, 3, 4, 10)),
    "transpose": case(Transpose((0, 2, 1)), floats(2, 33, 17), then=(ew.Relu(),)),
    "concat": case(Concat(-1), floats(5, 3), floats(5, 6)),
    "gather": case(Gather(0), floats(9, 20), np.array([0, -1, 8, 3], np.int64)),
    "scatter": case(ScatterNd(), floats(9, 5), np.array([[1], [7]], np.int64), floats(2, 5)),
    "max pool": case(MaxPool((3, 3), (2, 2), PAD, (1, 1)), floats(2, 7, 9, 20)),
    "mean pool": case(AvgPool((2, 2), (2, 2), ((0, 0), (0, 0))), floats(1, 6, 6, 5, dtype=HALF)),
    "resize": case(Resize((9, 7), "linear", "half_pixel"), floats(1, 5, 4, 6)),
    "product": case(
        MatMul(), floats(33, 48, dtype=HALF), floats(48, 40, dtype=HALF), constant=(1,)
    ),
    "product in float32": case(MatMul(), floats(33, 40), floats(40, 24), then=(ew.Relu(),)),
    "product of few rows": case(
        MatMul(), floats(1, 256, dtype=HALF), floats(256, 64, dtype=HALF), constant=(1,)
    ),
    "product of many tiles": case(
        MatMul(),
        floats(4300, 40, dtype=HALF),
        floats(40, 64, dtype=HALF),
        floats(64, dtype=HALF),
        floats(4300, 64, dtype=HALF),
        then=(ew.Add(), ew.Add()),
        constant=(1, 2),
    ),
    "convolution": case(
        Conv((2, 2), PAD, (1, 1)),
        floats(2, 9, 9, 16, dtype=HALF),
        floats(3, 3, 16, 24, dtype=HALF),
        floats(24, dtype=HALF),
        then=(ew.Add(), ew.Relu()),
        constant=(1, 2),
    ),
    "convolution of few channels": case(
        Conv((1, 1), PAD, (1, 1)), floats(1, 8, 8, 3), floats(3, 3, 3, 8), constant=(1,)
    ),
    "convolution of a transposed image": transposed_image(),
    "depthwise": case(
        Conv((1, 1), PAD, (1, 1), groups=20),
        floats(1, 8, 9, 20),
        floats(3, 3, 1, 20),
        constant=(1,),
    ),
    "grouped": case(
        Conv((1, 1), PAD, (1, 1), groups=2), floats(1, 6, 6, 8), floats(3, 3, 4, 8), constant=(1,)
    ),
    "transposed": case(
        ConvTranspose((8, 8), (2, 2), (1, 1), (1, 1)), floats(1, 4, 4, 6), floats(4, 4, 6, 5)
    ),
    "attention": with_data(attention_task(attention(Form(mask="keys"), dtype=HALF))),
    "depthwise and pointwise": with_data(pair_task(PairNet((1, 6, 7, 24), 20))),
    "two pointwise": with_data(pair_task(PointwiseNet((1, 46, 46, 24), 72, 20))),
    "two pointwise of many rows": with_data(pair_task(PointwiseNet((1, 92, 91, 64), 64, 64))),
    "two added": with_data(
        sum_tasks(SumNet((2, 7, 9, 24), (2, 13, 18, 40), 20, stride=2).graph)[0]
    ),
    "first layers": with_data(opening_tasks(OpeningNet(3, 11, 14, 3, 16, 32).graph)[0]),
    "first layer and pooling": with_data(first_tasks(FirstNet(2, 17, 23).graph)[-1]),
    "first layer of levels and pooling": with_data(
        first_tasks(FirstNet(2, 18, 24, dtype=DType.INT8).graph)[-1]
    ),
    "convolution and pooling": with_data(pooled_tasks(PooledNet((2, 7, 10, 72), 70).graph)[0]),
    "product and layer norm": with_data(NormalizedNet((2, 70), 72, 256).task),
    "fold": alone(Fold((7, 6), (3, 2), (2, 3), (1, 0), (1, 2)), floats(1, 4, 2, 6, 5)),
    "places of maxima": alone(MaxPoolIndices((3, 3), (2, 2), PAD, (1, 1)), floats(2, 7, 6, 5)),
    "best of rows": alone(TopK(5), floats(3, 70)),
    "indices of what is not zero": alone(NonZero(), np.maximum(floats(5, 40), 0)),
    "different elements": alone(Unique(), random_array(RNG, (300,), DType.INT32)),
    "grid": alone(
        GridSample("linear", "zeros", False),
        floats(2, 5, 6, 3),
        RNG.uniform(-1.5, 1.5, (2, 3, 4, 2)).astype(np.float32),
    ),
    "suppression": alone(
        CombinedNonMaxSuppression(10, 9, 0.3, 0.4, False, True), boxes(2, 20, 1), scores(2, 20, 2)
    ),
    "soft suppression": alone(NonMaxSuppression(5, 0.5, 0.1, 0.5), boxes(9), scores(9)),
    "recurrent": alone(
        Lstm((False,), ACTIVATIONS),
        floats(3, 2, 1, 4, 5),
        floats(1, 5, 4, 5),
        floats(1, 2, 5),
        floats(1, 2, 5),
    ),
    "bytes": case(
        MatMulInteger(),
        random_array(RNG, (9, 32), DType.INT8),
        random_array(RNG, (32, 12), DType.INT8),
        np.array(3, np.int8),
        np.array(0, np.int8),
    ),
    "convolution of levels": with_data(
        conv_of_levels(RNG, (2, 9, 9, 16), 32, (3, 3), padding=PAD, residual=True)
    ),
    "convolution of levels without a sign": with_data(
        conv_of_levels(RNG, (1, 9, 9, 3), 24, (3, 3), dtype=DType.UINT8, zero=128, quantize=True)
    ),
    "depthwise of levels": with_data(
        conv_of_levels(RNG, (1, 8, 9, 20), 20, (3, 3), padding=PAD, groups=20)
    ),
    "grouped of levels": with_data(
        conv_of_levels(RNG, (1, 6, 6, 48), 64, (3, 3), padding=PAD, groups=2)
    ),
    "product of levels": with_data(product_of_levels(RNG, (40, 64), (64, 48), residual=True)),
    "product of codes": with_codes(product_of_codes(RNG, (40, 64), (64, 48), to=DType.FLOAT32)),
}


def run(name: str) -> set[str]:
    """Runs a case with every family that offers something; the names of these."""
    task, arrays = CASES[name]
    expected = task.evaluate(arrays)
    ran = set()
    for family in _understanding(task):
        offered = family.tactics(task, Binding({}))
        tactics = [t for t in offered if t.accepts(Binding({}))][:EACH]
        for tactic in tactics:
            outputs = run_tactic(tactic, Binding({}), arrays)
            tolerance = TOLERANCE.get(tactic.precision, FUSED if is_on_gpu() else 1e-5)
            for output, want in zip(outputs, expected, strict=True):
                exact = not DType.of(want.dtype).is_float
                if exact:
                    tolerance = 0.0 if tactic.is_exact_to_the_level else 1.0
                assert_close(output, want, tolerance if exact else max(tolerance, 1e-4))
            ran.add(family.name)
    return ran


def _understanding(task: Task) -> list[Family]:
    """The families that are asked about a task, on the GPU that runs it."""
    from planish.targets.cuda.driver import gpu

    machine = gpu(0).machine() if is_on_gpu() else H200
    return [family.on(machine) for family in FAMILIES if family.pattern == task.pattern]


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    assert run(name), "no family offers anything"


def test_every_family_has_a_case() -> None:
    """A new family needs a case above: sanitizers see no other."""
    covered = set()
    for task, _ in CASES.values():
        for family in _understanding(task):
            if next(iter(family.tactics(task, Binding({}))), None) is not None:
                covered.add(family.name)
    assert {family.name for family in FAMILIES} - covered <= LIBRARIES
