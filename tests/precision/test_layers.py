"""`layer_precision`: what names and patterns mean."""

from __future__ import annotations

import logging

import pytest

from helpers.halves import F16, F32
from helpers.networks import Net, residual_net
from planish.errors import InputError, PrecisionError
from planish.graph.graph import Graph
from planish.ops import CumSum, MatMul, ew
from planish.passes import optimize
from planish.precision.layers import all_names, check_layer_precision, match_layers, names_of
from planish.precision.settle import settle_precision

ASKED = frozenset({"fp32", "fp16"})


def model() -> Graph:
    """Two dense layers as a user's model would have them, and a running sum."""
    net = Net()
    x = net.input(2, 4)
    for layer in ("body", "head"):
        origin = f"{layer}/dense (MatMul)"
        product = net.graph.add(MatMul(), x, net.weights(4, 4), name=f"{layer}/p", origin=origin)
        x = net.graph.add(
            ew.Relu(), product, name=f"{layer}/r", origin=f"{layer}/relu (Relu) + {layer}/x (Id)"
        )
    sums = net.graph.add(CumSum(1), x, name="sums", origin="sums (Cumsum)")
    return net.output(net.graph.add(ew.Tanh(), sums, name="tanh"), x)


def matched(graph: Graph, **wanted: str) -> dict[str, str]:
    return {n.name: p for n, p in match_layers(graph, wanted).items()}


def test_names_of_merged_layers() -> None:
    graph = model()
    assert names_of(graph.nodes[1]) == ["body/r", "body/relu", "body/x"]
    assert {"sums", "tanh", "head/dense"} <= all_names(graph)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("body/p", {"body/p"}),
        ("body/dense", {"body/p"}),
        ("body/*", {"body/p", "body/r"}),
        ("*/x", {"body/r", "head/r"}),
        ("*[st]anh", {"tanh"}),
    ],
)
def test_patterns(pattern: str, expected: set[str]) -> None:
    assert matched(model(), **{pattern: "fp16"}).keys() == expected


def test_a_name_counts_more_and_later_patterns_do() -> None:
    found = matched(model(), **{"body/p": "fp32", "*": "fp16", "head/*": "tf32"})
    assert found["body/p"] == "fp32"
    assert found["body/r"] == "fp16"
    assert found["head/r"] == "tf32"


def test_a_name_with_brackets_is_a_name() -> None:
    graph = model()
    graph.nodes[0].name = "a[0]"
    assert matched(graph, **{"a[0]": "fp16"}) == {"a[0]": "fp16"}


@pytest.mark.parametrize("pattern", ["body/dens", "Body/*", "tanhs"])
def test_what_matches_nothing_is_an_error_with_near_names(pattern: str) -> None:
    with pytest.raises(PrecisionError, match="names no layer") as caught:
        match_layers(model(), {pattern: "fp16"})
    near = caught.value.cure
    assert "tanh" in near if pattern == "tanhs" else "body/" in near


def test_what_optimisation_removed(caplog: pytest.LogCaptureFixture) -> None:
    graph = model()
    with caplog.at_level(logging.WARNING, "planish"):
        assert match_layers(graph, {"gone/*": "fp16"}, before={"gone/bias"}) == {}
    assert "'gone/*' was removed or merged" in caplog.text
    with pytest.raises(PrecisionError, match="names no layer") as caught:
        match_layers(graph, {"gone/*": "fp16"}, before={"gone/bias"}, strict=True)
    assert "optimisation" in caught.value.why


def settled(strict: bool = False, available: frozenset[str] = ASKED, **layers: str) -> Graph:
    graph = model()
    optimize(graph)
    settle_precision(graph, ASKED, device="it", available=available, layers=layers, strict=strict)
    return graph


def types(graph: Graph) -> dict[str, object]:
    return {n.name: n.outputs[0].dtype for n in graph.nodes if "/fp" not in n.name}


def test_layers_are_obeyed() -> None:
    assert types(settled()) == {
        "body/p": F16, "body/r": F16, "head/p": F16, "head/r": F16, "sums": F32, "tanh": F32,
    }  # fmt: skip
    found = types(settled(**{"body/*": "fp32", "sums": "fp16"}))
    assert found["body/p"] is found["body/r"] is F32
    assert found["head/p"] is found["sums"] is F16


def test_strict_types_obeys_or_raises(caplog: pytest.LogCaptureFixture) -> None:
    assert types(settled(strict=True, **{"tanh": "fp16"}))["tanh"] is F16
    only = frozenset({"fp32", "bf16"})
    with pytest.raises(PrecisionError, match="'tanh' cannot compute in fp16") as caught:
        settled(strict=True, available=only, tanh="fp16")
    assert "it has no kernels for fp16" in caught.value.why
    with caplog.at_level(logging.WARNING, "planish"):
        assert set(types(settled(available=only, tanh="fp16")).values()) == {F32}
    assert "1 layer(s) stay in fp32: tanh" in caplog.text


def test_strict_types_of_what_has_no_form_for_halves() -> None:
    from planish.graph.types import DType
    from planish.ops import Cast

    net = Net()
    wide = net.graph.add(Cast(DType.FLOAT64), net.dense(net.input(2, 4), 4), name="wide")
    graph = net.output(wide)
    with pytest.raises(PrecisionError, match="'wide' cannot"):
        settle_precision(
            graph, ASKED, device="it", available=ASKED, layers={"wide": "fp16"}, strict=True
        )


def test_permissions_of_tasks() -> None:
    graph = residual_net()
    asked = frozenset({"fp32", "tf32"})
    permissions, decision = settle_precision(
        graph, asked, device="it", available=asked, layers={"conv": "fp32"}
    )
    assert not decision.lowered
    conv, other = graph.nodes[0], graph.nodes[1]
    assert conv.name == "conv"
    assert permissions.of([other]) == asked
    assert permissions.of([conv, other]) == {"fp32"}


@pytest.mark.parametrize("wrong", [["a"], "a", {"a": 1}, {1: "fp16"}, 3])
def test_what_is_no_mapping(wrong: object) -> None:
    with pytest.raises(InputError, match="layer_precision"):
        check_layer_precision(wrong, False, ASKED)


@pytest.mark.parametrize(
    ("layers", "strict", "asked", "message"),
    [
        ({"a": "fp16"}, False, {"fp32"}, "layer_precision= has no effect"),
        (None, True, {"fp32"}, "strict_types= has no effect"),
        (None, True, ASKED, "strict_types= has no effect without"),
        ({"a": "bf16"}, False, ASKED, "'bf16' is not permitted"),
        ({"a": "int4"}, False, ASKED, "no precision 'int4'"),
    ],
)
def test_what_cannot_be_asked_for(layers, strict, asked, message: str) -> None:
    with pytest.raises(PrecisionError, match=message) as caught:
        check_layer_precision(layers, strict, frozenset(asked))
    assert caught.value.cure


def test_case_does_not_matter() -> None:
    assert check_layer_precision({"a": " FP16"}, False, ASKED) == {"a": "fp16"}
    assert check_layer_precision(None, False, ASKED) == {}
