"""What bytes of a plan stand for, also after it was saved; and which tensors they are."""

from __future__ import annotations

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
from planish.quantization.scheme import SCHEMES
from planish.quantization.taps import stored_values

X = np.array([-3.0, -0.6, 0.0, 0.2, 0.3, 1e9, np.nan], np.float32)


def test_levels_are_encoded_and_decoded() -> None:
    form = Form(DType.UINT8, 0.5, 4)
    np.testing.assert_array_equal(form.encode(X), [0, 3, 4, 4, 5, 255, 0])
    np.testing.assert_array_equal(form.decode(form.encode(X))[:-1], [-2, -0.5, 0, 0, 0.5, 125.5])
    assert form.ends == (-2.0, 125.5)


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
    ranges = calibrate(graph, MinMaxCalibrator(given))
    engine = build(duplicate(graph)[0], precision=frozenset({"fp32", "int8"}), calibration=ranges)
    loaded = deserialize(engine.serialize()).graph
    assert loaded.scales == engine.plan.graph.scales
    assert loaded.scales
    found = match(graph, engine.plan.graph, stored_values(engine.plan))
    levels = {m.reference.name: m.form for m in found if m.form.is_levels}
    assert len(levels) == 3  # the input, and what both convolutions read and give
    for name, form in levels.items():
        expected = SCHEMES["cpu"].levels(*ranges.tensors[name])
        assert form == Form(
            expected.dtype, pytest.approx(expected.scale), expected.zero, name == "x"
        )
    again = {v.name: form for v, form in forms(loaded).items()}
    assert again == {v.name: form for v, form in forms(engine.plan.graph).items()}


def test_a_scale_that_is_none_is_refused() -> None:
    graph = residual_net()
    names = {v: v.name for v in graph.constants()}
    encoded = encode_graph(graph, names)
    arrays = {v.name: v.data for v in graph.constants()}
    encoded["scales"] = {graph.nodes[0].output.name: [-1.0, 0.0]}
    with pytest.raises(PlanError, match=r"scale of .* is stored wrongly"):
        decode_graph(encoded, arrays)  # type: ignore[arg-type]
