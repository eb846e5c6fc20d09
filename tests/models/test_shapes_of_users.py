"""Models of the shapes that users have, converted as they would: SavedModel in, SavedModel out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs TensorFlow")

from helpers import user_models  # noqa: E402
from helpers.onnx_graph import assert_close  # noqa: E402
from planish.tensorflow import engine_op, report  # noqa: E402
from planish.tensorflow import trt_convert as trt  # noqa: E402
from planish.tensorflow.engines import registry  # noqa: E402

SIDE = user_models.SIDE


@pytest.fixture(autouse=True, scope="module")
def _connected() -> None:
    """The ops ask the real engines, whatever an earlier module had them ask."""
    engine_op.connect(registry.resolve, registry.weight)


@dataclass(frozen=True)
class Expected:
    """How many engines a model may have, and the ops that stay in TensorFlow (none other may).

    Some may stay because too few of them are together to pay for an engine.
    """

    engines: int
    native: frozenset[str] = frozenset()
    tolerance: float = 2e-5


EXPECTED = {
    "FasterRcnn": Expected(1),
    # the crops of all levels are put in order twice, and how many each level has is counted before
    "MaskRcnn": Expected(3),
    "RetinaNet": Expected(1),
    "NeuralCollaborativeFiltering": Expected(1),
    "Transformer": Expected(1, frozenset({"While"})),
    "UNet": Expected(1),
}


def inputs_of(name: str, rng: np.random.Generator, count: int) -> dict[str, Any]:
    """Random inputs; `count` is the batch, where a model has one."""
    match name:
        case "FasterRcnn" | "MaskRcnn":
            return {"image": rng.integers(0, 256, (1, SIDE, SIDE, 3)).astype(np.uint8)}
        case "RetinaNet":
            return {"image": rng.standard_normal((count, SIDE, SIDE, 3)).astype(np.float32)}
        case "UNet":
            return {"image": rng.standard_normal((count, 48, 16 * count, 3)).astype(np.float32)}
        case "Transformer":
            tokens = rng.integers(1, 50, (count, 4 + count)).astype(np.int32)
            tokens[:, -2:] = 0
            return {"tokens": tokens}
        case _:
            return {n: rng.integers(0, 500, 5 * count).astype(np.int32) for n in ("user", "item")}


@pytest.mark.parametrize("name", EXPECTED)
def test_results_engines_and_report(name: str, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PLANISH_TUNING_SECONDS", "0")
    net = getattr(user_models, name)()
    tf.saved_model.save(net, str(tmp_path / "model"), signatures=net.serve)
    before = tf.saved_model.load(str(tmp_path / "model")).signatures["serving_default"]
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=str(tmp_path / "model"))
    converter.convert()
    converter.save(str(tmp_path / "converted"))
    after = tf.saved_model.load(str(tmp_path / "converted")).signatures["serving_default"]
    rng = np.random.default_rng(20240607)
    for count in (1, 3):
        arguments = {k: tf.constant(v) for k, v in inputs_of(name, rng, count).items()}
        expected, found = before(**arguments), after(**arguments)
        assert set(found) == set(expected)
        for key, array in expected.items():
            assert_close(found[key].numpy(), array.numpy(), EXPECTED[name].tolerance, key)
    converted = converter.converted
    assert 1 <= len(converted.engines) <= EXPECTED[name].engines
    few = ("too little work", "minimum_segment_size")
    nodes = [(op, why) for _, op, why in report.native_nodes(converted) if op != "Identity"]
    native = {op for op, why in nodes if not any(words in why for words in few)}
    assert native <= EXPECTED[name].native, report.text(converted)
    if len(converted.engines) > 1:
        told = report.text(converted)
        apart = [*report.splitting_nodes(converted), *report.counting_nodes(converted)]
        assert len(apart) >= len(converted.engines) - 1
        assert all(f"{op} (" in told for _, op in apart)
