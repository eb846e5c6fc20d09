"""Attention is found in every form in which frameworks write it, and nowhere else."""

from __future__ import annotations

import copy

import numpy as np
import pytest

from helpers.attentions import MASKS, STEP, Form, attention, attention_task, feeds_for
from helpers.networks import feeds
from planish.fusion.attention import attention_around, attention_of
from planish.fusion.candidates import propose
from planish.fusion.fused import ACCUMULATOR
from planish.fusion.task import make_task
from planish.graph.dims import DimLike, symbol
from planish.graph.graph import Graph, Node, Value
from planish.graph.interpret import interpret
from planish.graph.types import DType, TensorType
from planish.ops.elementwise import ew
from planish.ops.matmul import MatMul
from planish.ops.normalization import Softmax
from planish.ops.quantization import Dequantize
from planish.ops.shape import Reshape, Slice, Transpose
from planish.passes import optimize
from planish.plan.views import insert_copies, place

FORMS = [
    *(Form(mask=mask) for mask in MASKS),
    *(Form(scaled=scaled) for scaled in ("none", "q", "both")),
    Form(heads_last=False),
    Form(keys_first=True, scaled="both"),
    Form(values_first=True),
    Form(heads_last=False, values_first=True),
    Form(guard="nan", mask="bool"),
    Form(guard="rows", factor=True),
    Form(factor=True),
    Form(wide=True, mask="keys"),
]


def softmax_of(graph: Graph) -> Node:
    (node,) = (n for n in graph.nodes if isinstance(n.op, Softmax))
    return node


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_all_nodes_become_one_task(form: Form) -> None:
    dtype = DType.FLOAT16 if form.wide else DType.FLOAT32
    graph = attention(form, dtype=dtype)
    task = attention_task(graph)
    assert set(task.nodes) == set(graph.nodes)
    assert task.kind == "attention"
    assert task.output is graph.outputs[0]
    assert {v for v in task.inputs if not v.is_constant} == set(graph.inputs)
    again = make_task(task.nodes, task.anchor)
    assert again.key == task.key
    assert task.precision == ("fp16" if form.wide else "fp32")


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_its_description_gives_the_same_as_its_nodes(form: Form) -> None:
    """softmax(e(scale q kᵀ)) v by what `Attention` says, in NumPy."""
    dtype = DType.FLOAT16 if form.wide else DType.FLOAT32
    graph = attention(form, dtype=dtype, queries=7, keys=10)
    task = attention_task(graph)
    work = task.attention
    assert work is not None
    arrays = feeds_for(task.inputs, np.random.default_rng(0))
    q, k, v = (
        arrays[i].transpose(axes) for i, axes in zip(work.sources, work.axes[:3], strict=True)
    )
    scores = (q.astype(np.float64) @ k.astype(np.float64).swapaxes(-1, -2)) * work.scale

    def evaluate(fused, own):
        leaves = [
            own if s == ACCUMULATOR else None if s is None else arrays[s] for s in fused.sources
        ]
        return fused.expression.evaluate(leaves)[0]

    with np.errstate(all="ignore"):
        scores = evaluate(work.scores, scores)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        total = weights.sum(-1, keepdims=True)
        result = weights @ v.astype(np.float64) / total
    if work.guarded:
        result = np.where(total > 0, result, 0.0)
    result = evaluate(task.epilogue, result)
    expected = task.evaluate(arrays)[0].transpose(work.axes[3])
    np.testing.assert_allclose(
        result, expected.astype(np.float64), rtol=0, atol=2e-3 if form.wide else 1e-5
    )


def test_factors_are_found_where_they_lie() -> None:
    task = attention_task(attention(Form(scaled="both", keys_first=True)))
    assert task.attention is not None
    assert task.attention.axes == ((0, 2, 1, 3),) * 4
    assert task.attention.scale == pytest.approx(16**-0.5)
    assert not task.attention.scores.expression.instructions


def test_casts_between_the_products_do_nothing() -> None:
    task = attention_task(attention(Form(wide=True), dtype=DType.FLOAT16))
    assert task.attention is not None
    assert "cast" not in str(task.attention.scores.expression)
    assert task.epilogue.expression.instructions == ()


def test_parts_are_proposed_too() -> None:
    graph = attention(Form(mask="keys"))
    sizes = sorted(len(t.nodes) for t in propose(graph))
    assert sizes.count(1) == len(graph.nodes)
    assert sizes[-1] == len(graph.nodes)


def test_a_transpose_that_others_read_stays_outside() -> None:
    graph = attention(Form())
    k = next(n for n in graph.nodes if n.inputs[0].name == "k")
    graph.mark_output(graph.add(ew.Relu(), k.output), "other")
    task = attention_task(graph)
    assert k not in task.nodes
    assert k.output in task.inputs


@pytest.mark.parametrize("what", ["scores", "weights", "mixed"])
def test_what_is_an_output_stays_visible(what: str) -> None:
    graph = attention(Form(scaled="none"))
    products = [n for n in graph.nodes if isinstance(n.op, MatMul)]
    softmax = softmax_of(graph)
    value = {
        "scores": products[0].output,
        "weights": softmax.output,
        "mixed": products[1].output,
    }[what]
    graph.mark_output(value, "seen")
    found = attention_around(softmax, (), graph.outputs)
    if what == "mixed":  # then it is the task's result, and the transpose reads it
        assert found is not None
        assert found.mix.output is value and found.axes[3] == (0, 1, 2, 3)
    else:
        assert found is None


@pytest.mark.parametrize("levels", ["floats", "levels"])
def test_levels_of_all_that_is_multiplied_belong_to_it(levels: str) -> None:
    graph = attention(Form(levels=levels, mask="keys"))
    task = attention_task(graph)
    assert set(task.nodes) == set(graph.nodes)
    assert task.attention is not None
    assert task.attention.levels == 255
    assert [task.inputs[i].dtype for i in task.attention.sources] == [DType.UINT8] * 3
    assert [float(task.inputs[i].data) for i in task.attention.steps] == [np.float32(STEP)] * 3  # type: ignore[arg-type]
    assert task.precision == "int8"
    assert "levels=255" in task.key


def test_other_zeros_than_kernels_know_are_none() -> None:
    graph = attention(Form(levels="floats"))
    node = next(n for n in graph.nodes if isinstance(n.op, Dequantize))
    other = graph.constant(np.float32(3))
    graph.set_inputs(node, (*node.inputs[:2], other))
    assert attention_around(softmax_of(graph), (), graph.outputs) is None


def test_levels_of_plain_weights_are_made_outside() -> None:
    graph = attention(Form(levels="floats"))
    softmax_of(graph).op = Softmax(3)
    task = attention_task(graph)
    assert task.attention is not None and task.attention.levels == 0
    assert not any(isinstance(n.op, Dequantize) for n in task.nodes)


def test_softmax_between_products_with_weights_is_none() -> None:
    graph = Graph("mixture")
    x = graph.input("x", TensorType((4, 5, 8), DType.FLOAT32))
    a, b = (graph.constant(np.ones(s, np.float32)) for s in ((8, 6), (6, 8)))
    weights = graph.add(Softmax(2), graph.add(MatMul(), x, a))
    graph.mark_output(graph.add(MatMul(), weights, b), "y")
    assert attention_around(softmax_of(graph), (), graph.outputs) is None


@pytest.mark.parametrize("axis", [1, 2])
def test_softmax_over_another_axis_is_none(axis: int) -> None:
    graph = attention(Form())
    softmax = softmax_of(graph)
    softmax.op = Softmax(axis)
    assert attention_around(softmax, (), graph.outputs) is None


def test_doubles_are_left_to_the_parts() -> None:
    graph = attention(Form(), dtype=DType.FLOAT64)
    assert not any(task.attention for task in propose(graph))


def test_a_part_of_an_attention_is_none() -> None:
    graph = attention(Form(mask="keys"))
    assert attention_of(graph.nodes) is not None
    assert attention_of(graph.nodes[:-2]) is None
    assert attention_of(graph.nodes[1:]) is not None  # without the transpose of q
    extra = graph.add(ew.Relu(), graph.outputs[0])
    assert extra.producer is not None
    assert attention_of([*graph.nodes[:-1], extra.producer]) is None


def pytorch_vision(batch: DimLike, width: int = 24, heads: int = 3, length: int = 5) -> Graph:
    """``torch.nn.MultiheadAttention`` of one tensor, batch first, as PyTorch's exporter has it:
    batch and length change places twice, and heads are merged with the batch in between.
    """
    graph = Graph("vision")
    add, size = graph.add, width // heads
    random = np.random.default_rng(3)

    def weights(*shape: int) -> Value:
        return graph.constant((random.standard_normal(shape) / 4).astype(np.float32))

    x = graph.input("x", TensorType((batch, length, width), DType.FLOAT32))
    whole = add(MatMul(), add(Transpose((1, 0, 2)), x), weights(width, 3 * width))
    whole = add(ew.Add(), whole, weights(3 * width))
    whole = add(Reshape((1, length, batch, 3, width)), whole)
    whole = add(Reshape((3, length, batch, width)), add(Transpose((3, 1, 2, 0, 4)), whole))
    parts = []
    for i in range(3):
        part = add(Slice((i, 0, 0, 0), (1, length, batch, width), (1,) * 4), whole)
        part = add(Reshape((length, batch * heads, size)), part)
        part = add(Transpose((1, 0, 2)), part)
        parts.append(add(Reshape((batch, heads, length, size)), part))
    root = graph.constant(np.float32(size**-0.25))
    q = add(ew.Mul(), parts[0], root)
    k = add(ew.Mul(), add(Transpose((0, 1, 3, 2)), parts[1]), root)
    mixed = add(MatMul(), add(Softmax(3), add(MatMul(), q, k)), parts[2])
    joined = add(Reshape((length * batch, width)), add(Transpose((2, 0, 1, 3)), mixed))
    out = add(ew.Add(), add(MatMul(), joined, weights(width, width)), weights(width))
    out = add(Transpose((1, 0, 2)), add(Reshape((length, batch, width)), out))
    graph.mark_output(add(ew.Add(), x, out), "y")
    return graph


@pytest.mark.parametrize("batch", [symbol("N"), 1])
def test_no_copy_is_left_of_pytorch_vision(batch: DimLike) -> None:
    graph = pytorch_vision(batch)
    before = copy.deepcopy(graph)
    optimize(graph)
    insert_copies(graph)
    tasks = propose(graph, place(graph).free)
    (attended,) = (task for task in tasks if task.attention)
    outside = [n for n in graph.nodes if n not in attended.nodes]
    moves = [n.op for n in outside if isinstance(n.op, Transpose)]
    assert not moves
    # a projection of all three, the attention, and one of its result
    free = place(graph).free
    assert len([n for n in outside if n not in free and isinstance(n.op, MatMul)]) == 2
    given = feeds(before, 2)
    for have, want in zip(interpret(graph, given), interpret(before, given), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)
