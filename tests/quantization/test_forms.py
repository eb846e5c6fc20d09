"""What bytes of a plan stand for, also after it was saved; and which tensors they are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from helpers.networks import build, feeds, residual_net
from planish.errors import PlanError
from planish.graph.duplicate import duplicate
from planish.graph.types import DType
from planish.passes import optimize
from planish.plan.codec import decode_graph, encode_graph
from planish.plan.file import deserialize
from planish.quantization.calibration import calibrate
from planish.quantization.forms import Form, forms, match
from planish.quantization.min_max import MinMaxCalibrator
from planish.quantization.scheme import UNSIGNED
from planish.quantization.taps import stored_values

X = np.array([-3.0, -0.6, 0.0, 0.2, 0.3, 1e9, np.nan], np.float32)


def test_levels_are_encoded_and_decoded() -> None:
    form = Form(DType.UINT8, 0.5, 4)
    np.testing.assert_array_equal(form.encode(X), [0, 3, 4, 4, 5, 255, 0])
    np.testing.assert_array_equal(form.decode(form.encode(X))[:-1], [-2, -0.5, 0, 0, 0.5, 125.5])
    assert form.ends == (-2.0, 125.5)


def test_channels_have_levels_of_their_own() -> None:
    form = Form(DType.UINT8, 0.5, 4, factors=(1.0, 0.1))
    held = form.encode(np.array([[-3.0, -3.0], [0.2, 0.2], [9.0, 9.0]], np.float32))
    np.testing.assert_array_equal(held, [[0, 0], [4, 8], [22, 184]])
    np.testing.assert_allclose(form.decode(held), [[-2, -0.2], [0, 0.2], [9, 9]], rtol=1e-6)
    assert form.ends == (-2.0, 125.5)
    np.testing.assert_allclose(form.widths, [1, 0.1])


def test_halves_are_encoded_and_decoded() -> None:
    form = Form(DType.FLOAT16)
    assert form.encode(X).dtype == np.float16
    assert np.isinf(form.decode(form.encode(X))[5])
    assert form.ends == (-65504.0, 65504.0)
    assert Form(DType.FLOAT32).encode(X) is X


def test_scales_that_were_folded_are_known_after_loading() -> None:
    graph = residual_net()
    optimize(graph)
    given = feeds(graph, 8)["x"]
    ranges = replace(calibrate(graph, MinMaxCalibrator(given)), extremes={})
    engine = build(duplicate(graph)[0], precision=frozenset({"fp32", "int8"}), calibration=ranges)
    loaded = deserialize(engine.serialize()).graph
    assert loaded.scales == engine.plan.graph.scales
    assert loaded.scales
    found = match(graph, engine.plan.graph, stored_values(engine.plan))
    levels = {m.reference.name: m.form for m in found if m.form.is_levels}
    assert len(levels) == 3  # the input, and what both convolutions read and give
    for name, form in levels.items():
        expected = UNSIGNED.levels(*ranges.tensors[name])
        assert form == Form(
            expected.dtype, pytest.approx(expected.scale), expected.zero, name == "x"
        )
    again = {v.name: form for v, form in forms(loaded).items()}
    assert again == {v.name: form for v, form in forms(engine.plan.graph).items()}


def test_factors_of_channels_are_known_after_loading() -> None:
    graph = residual_net()
    optimize(graph)
    ranges = calibrate(graph, MinMaxCalibrator(feeds(graph, 8)["x"]))
    value = next(n.output for n in graph.nodes if n.output.name in ranges.extremes)
    unlike = tuple((0.0, 0.5**c) for c in range(value.shape[-1]))
    ranges = replace(ranges, extremes={value.name: unlike})
    engine = build(duplicate(graph)[0], precision=frozenset({"fp32", "int8"}), calibration=ranges)
    loaded = deserialize(engine.serialize()).graph
    (scales,) = (s for s in loaded.scales.values() if len(s) > 2)
    assert len(scales) == 2 + len(unlike)
    found = match(graph, engine.plan.graph, stored_values(engine.plan))
    (held,) = (m.form for m in found if m.reference.name == value.name)
    assert held.factors == scales[2:]
    assert held.factors[0] == 1 > held.factors[-1]


@pytest.mark.parametrize("item", [[1.0, 0.0, 0.5], [1.0, 0.0, *[-1.0] * 4], [1.0, 0.0, *["x"] * 4]])
def test_factors_that_are_none_are_refused(item: list) -> None:
    graph = residual_net()
    names = {v: v.name for v in graph.constants()}
    encoded = encode_graph(graph, names)
    arrays = {v.name: v.data for v in graph.constants()}
    encoded["scales"] = {graph.nodes[0].output.name: item}
    with pytest.raises(PlanError, match=r"scale of .* is stored wrongly"):
        decode_graph(encoded, arrays)  # type: ignore[arg-type]


def test_a_scale_that_is_none_is_refused() -> None:
    graph = residual_net()
    names = {v: v.name for v in graph.constants()}
    encoded = encode_graph(graph, names)
    arrays = {v.name: v.data for v in graph.constants()}
    encoded["scales"] = {graph.nodes[0].output.name: [-1.0, 0.0]}
    with pytest.raises(PlanError, match=r"scale of .* is stored wrongly"):
        decode_graph(encoded, arrays)  # type: ignore[arg-type]
