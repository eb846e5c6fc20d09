"""RNN, GRU and LSTM with random attributes against ONNX Runtime, and whole engines of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import planish
from helpers.engines import quick_engine
from helpers.onnx_graph import assert_close, compare_op, model, node, runtime
from planish.errors import PlanishError
from planish.frontends.onnx import import_model
from planish.graph.interpret import interpret

GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}
FUNCTIONS = {"RNN": 1, "GRU": 2, "LSTM": 3}
WITH_ALPHA = {"Affine", "LeakyRelu", "ThresholdedRelu", "ScaledTanh", "HardSigmoid", "Elu"}
WITH_BETA = {"Affine", "ScaledTanh", "HardSigmoid"}
ACTIVATIONS = [*WITH_ALPHA, "Relu", "Tanh", "Sigmoid", "Softsign", "Softplus"]


def inputs_of(rng, op: str, sizes: tuple[int, int, int, int], directions: int, chance: float):
    """Inputs of a node; optional ones are left out unless a random number is below `chance`."""
    steps, batch, features, hidden = sizes
    rows = GATES[op] * hidden

    def random(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    lengths = rng.integers(1, steps + 1, batch).astype(np.int32)
    lengths[rng.integers(batch)] = steps  # ONNX Runtime wants one sequence of full length
    optional = [random(directions, 2 * rows), lengths, random(directions, batch, hidden)]
    if op == "LSTM":
        optional += [random(directions, batch, hidden), random(directions, 3 * hidden)]
    given = [value if rng.random() < chance else None for value in optional]
    weights = random(directions, rows, features), random(directions, rows, hidden) / 4
    return [random(steps, batch, features), *weights, *given]


def attributes_of(rng, op: str, directions: int) -> dict[str, Any]:
    attributes: dict[str, Any] = {"direction": str(rng.choice(["forward", "reverse"]))}
    if directions == 2:
        attributes["direction"] = "bidirectional"
    if rng.random() < 0.5:
        attributes["clip"] = 0.7
    if rng.random() < 0.5 and op != "RNN":
        attributes["input_forget" if op == "LSTM" else "linear_before_reset"] = 1
    if rng.random() < 0.5:
        names = [str(rng.choice(ACTIVATIONS)) for _ in range(FUNCTIONS[op] * directions)]
        attributes["activations"] = names
        # for these ONNX Runtime takes 0, not what ONNX states
        names_without_default = {"Affine", "ScaledTanh", "ThresholdedRelu"} & set(names)
        for key, having in (("alpha", WITH_ALPHA), ("beta", WITH_BETA)):
            count = sum(name in having for name in names)
            if count and (names_without_default or rng.random() < 0.7):
                attributes[f"activation_{key}"] = rng.uniform(0.1, 0.5, count).tolist()
    return attributes


@pytest.mark.parametrize("op", GATES)
@pytest.mark.parametrize("seed", range(12))
def test_random_layers(op, seed):
    rng = np.random.default_rng(seed)
    directions = int(rng.integers(1, 3))
    sizes = tuple(int(n) for n in rng.integers(1, 6, 4))
    compare_op(
        op,
        inputs_of(rng, op, sizes, directions, 0.5),
        constant=(1, 2, 3, 7),
        outputs=3 if op == "LSTM" else 2,
        opset=14,
        symbolic=False,
        hidden_size=sizes[-1],
        **attributes_of(rng, op, directions),
    )


@pytest.mark.parametrize("op", GATES)
def test_batch_first_is_the_same_transposed(op):
    rng = np.random.default_rng(3)
    inputs = inputs_of(rng, op, (4, 3, 5, 6), 2, 1.0)
    results = {}
    names = " ".join(f"x{i}" for i in range(len(inputs)))
    for layout in (0, 1):
        one = node(op, names, "y h", hidden_size=6, direction="bidirectional", layout=layout)
        feeds = {f"x{i}": a for i, a in enumerate(inputs)}
        if layout:
            for i in (0, 5, 6):
                if f"x{i}" in feeds:
                    feeds[f"x{i}"] = feeds[f"x{i}"].swapaxes(0, 1)
        proto = model([one], {n: (a.dtype, a.shape) for n, a in feeds.items()}, ["y", "h"])
        results[layout] = interpret(import_model(proto), feeds)
    np.testing.assert_array_equal(results[1][0], results[0][0].transpose(2, 0, 1, 3))
    np.testing.assert_array_equal(results[1][1], results[0][1].swapaxes(0, 1))


@pytest.mark.parametrize("op", GATES)
def test_engines_of_any_length_and_batch(op):
    rng = np.random.default_rng(7)
    inputs = inputs_of(rng, op, (2, 2, 6, 20), 2, 1.0)
    one = node(op, "x w r b lengths", "y h", hidden_size=20, direction="bidirectional")
    constants = {"w": inputs[1], "r": inputs[2], "b": inputs[3]}
    declared = {"x": (np.float32, ["T", "N", 6]), "lengths": (np.int32, ["N"])}
    proto = model([one], declared, ["y", "h"], constants, opset=14)
    shapes = planish.Profile(min=(1, 1, 6), opt=(4, 2, 6), max=(9, 9, 6))
    engine = quick_engine(proto, allow_fallback=False, inputs={"x": shapes})
    for steps, batch in ((4, 2), (9, 1), (1, 9)):
        x, *_ = inputs_of(rng, op, (steps, batch, 6, 20), 2, 1.0)
        lengths = rng.integers(1, steps + 1, batch).astype(np.int32)
        lengths[0] = steps
        feeds = {"x": x, "lengths": lengths}
        results, expected = engine(feeds), runtime(proto, feeds)
        for name, other in zip(("y", "h"), expected, strict=True):
            assert_close(results[name], other, 1e-5, name)


def test_half_precision_is_computed_in_float32():
    rng = np.random.default_rng(2)
    inputs = [a.astype(np.float16) for a in inputs_of(rng, "GRU", (3, 2, 4, 5), 1, 0.0)[:3]]
    names = ("x", "w", "r")
    one = node("GRU", "x w r", "y h", hidden_size=5)
    results = {}
    for dtype in (np.float16, np.float32):
        feeds = {n: a.astype(dtype) for n, a in zip(names, inputs, strict=True)}
        proto = model([one], {n: (dtype, a.shape) for n, a in feeds.items()}, ["y", "h"])
        results[dtype] = interpret(import_model(proto, allow_fallback=False), feeds)
    for half, single in zip(results[np.float16], results[np.float32], strict=True):
        np.testing.assert_array_equal(half, single.astype(np.float16))


@pytest.mark.parametrize(
    "attributes",
    [
        {"hidden_size": 4},
        {"hidden_size": 5, "direction": "bidirectional"},
        {"hidden_size": 5, "direction": "sideways"},
        {"hidden_size": 5, "activations": ["Tanh", "Tanh"]},
        {"hidden_size": 5, "activations": ["Gelu"]},
    ],
)
def test_what_does_not_fit_is_refused(attributes):
    inputs = inputs_of(np.random.default_rng(0), "RNN", (3, 2, 4, 5), 1, 0.0)[:3]
    declared = {f"x{i}": (a.dtype, a.shape) for i, a in enumerate(inputs)}
    proto = model([node("RNN", "x0 x1 x2", "y", name="layer", **attributes)], declared, ["y"])
    with pytest.raises(PlanishError, match="RNN"):
        import_model(proto, allow_fallback=False)
