import numpy as np
import pytest

import tensorflow as tf
from planish.errors import UnsupportedOpError
from planish.frontends.tensorflow.convert import import_graph_def

raw = tf.raw_ops


def some(rng, *shape):
    return rng.normal(size=shape).astype("f")


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize("transpose_b", [False, True])
def test_mat_mul(check, rng, transpose_a, transpose_b):
    a = some(rng, *((4, 3) if transpose_a else (3, 4)))
    b = some(rng, *((5, 4) if transpose_b else (4, 5)))
    flags = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    shapes = ["static"] if transpose_a else ["static", "batch"]
    check(lambda a: raw.MatMul(a=a, b=b, **flags), a, shapes=shapes)
    flags = {"adj_x": transpose_a, "adj_y": transpose_b}
    stacked = np.stack([a, a * 2])
    check(lambda a: raw.BatchMatMulV2(x=a, y=b[None], **flags), stacked)


def test_batch_mat_mul_broadcasts(check, rng):
    a, b = some(rng, 2, 1, 3, 4), some(rng, 5, 4, 2)
    check(lambda a: raw.BatchMatMulV2(x=a, y=b), a)
    check(lambda a: raw.BatchMatMul(x=a, y=a, adj_y=True), a)


def test_integer_mat_mul(check, rng):
    a = rng.integers(-9, 9, (3, 4)).astype("int32")
    b = rng.integers(-9, 9, (4, 2)).astype("int32")
    check(lambda a: tf.matmul(a, b), a)


def test_batch_mat_mul_of_bytes(check, rng):
    a = rng.integers(-128, 127, (2, 3, 40)).astype("int8")
    b = rng.integers(-128, 127, (2, 40, 5)).astype("int8")
    check(lambda a: raw.BatchMatMulV3(x=a, y=b, Tout=tf.int32), a, shapes=["static"])


EQUATIONS = [
    ("abc,cd->abd", (2, 3, 4), (4, 5)),
    ("abc,cde->abde", (2, 3, 4), (4, 5, 6)),
    ("abcd,cde->abe", (2, 3, 4, 5), (4, 5, 6)),
    ("aecd,abcd->acbe", (2, 3, 4, 5), (2, 6, 4, 5)),
    ("acbe,aecd->abcd", (2, 4, 3, 6), (2, 6, 4, 5)),
    ("BNFT,BTNH->BFNH", (2, 3, 4, 5), (2, 5, 3, 6)),
    ("...ab,...bc->...ac", (2, 3, 4), (2, 4, 5)),
    ("...ab,bc->...ac", (2, 7, 3, 4), (4, 5)),
    ("...x,xy->y...", (2, 3, 4), (4, 5)),
    ("ab,cb->ac", (2, 3), (4, 3)),
    ("ab,ac->abc", (2, 3), (2, 4)),
    ("abc,abd->a", (2, 3, 4), (2, 3, 5)),
    ("ab,ab->", (2, 3), (2, 3)),
    ("a,b->ba", (2,), (3,)),
]


@pytest.mark.parametrize(("equation", "a", "b"), EQUATIONS)
def test_einsum(check, rng, equation, a, b):
    a, b = some(rng, *a), some(rng, *b)
    check(lambda a, b: tf.einsum(equation, a, b), a, b, shapes=["static"], tolerance=5e-6)
    first, second = (term[0] for term in equation.split("->")[0].split(","))
    if first == second:  # a batch of both
        check(lambda a, b: tf.einsum(equation, a, b), a, b, shapes=["batch"], tolerance=5e-6)
    elif first not in equation.split(",")[1].split("->")[0]:
        check(lambda a: tf.einsum(equation, a, b), a, shapes=["batch"], tolerance=5e-6)


def test_einsum_of_one(check, rng):
    for equation in ("abc->cab", "abc->b", "...a->a...", "abc->abc"):
        x = some(rng, 2, 3, 4)
        check(lambda x, e=equation: raw.Einsum(inputs=[x], equation=e), x)


@pytest.mark.parametrize(
    ("equation", "shape"),
    [("aa->a", (3, 3)), ("abab->ba", (2, 3, 2, 3)), ("aaa->", (4, 4, 4)), ("a->aaa", (3,))],
)
def test_diagonals(check, rng, equation, shape):
    x = rng.normal(size=shape).astype("f")
    check(lambda x: raw.Einsum(inputs=[x], equation=equation), x, shapes=["static"])


def test_diagonals_of_unknown_size_are_refused():
    with tf.Graph().as_default() as graph:
        x = tf.compat.v1.placeholder("float32", [None, None], "x")
        raw.Einsum(inputs=[x], equation="aa->a", name="y")
    with pytest.raises(UnsupportedOpError, match="diagonal"):
        import_graph_def(graph.as_graph_def(), ["x"], ["y"])


def test_attention(check, rng):
    """Multi-head attention as exporters write it, with a causal mask of unknown length."""
    x = some(rng, 2, 5, 8)
    w = some(rng, 3, 8, 2, 4)

    def build(x):
        q, k, v = (tf.einsum("btd,dhc->bhtc", x, w[i]) for i in range(3))
        scores = tf.matmul(q, k, transpose_b=True) / 2.0
        length = tf.shape(x)[1]
        mask = tf.linalg.band_part(tf.ones([length, length]), -1, 0)
        weights = tf.nn.softmax(scores + (1.0 - mask) * -1e9)
        return tf.reshape(tf.transpose(weights @ v, [0, 2, 1, 3]), [-1, length, 8])

    check(build, x, tolerance=1e-5)
