"""``planish convert``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scores [N, 256] = relu(relu(x · w) · w) · 2 + 1."""
    module = tf.Module()
    module.w = tf.Variable(tf.random.stateless_normal([256, 256], [1, 2]))
    module.call = tf.function(
        lambda x: {"scores": tf.nn.relu(tf.nn.relu(x @ module.w) @ module.w) * 2.0 + 1.0},
        input_signature=[tf.TensorSpec([None, 256], tf.float32, name="x")],
    )
    folder = tmp_path_factory.mktemp("saved")
    tf.saved_model.save(module, str(folder), signatures=module.call)
    return folder


def test_the_result_computes_the_same(cli, saved_model: Path, tmp_path: Path) -> None:
    outcome = cli("convert", saved_model, tmp_path / "out", "--input", "x=3x256", "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.document
    assert len(document["engines"]) == 1
    assert document["converted"] >= 3
    import planish.tensorflow  # noqa: F401 (registers the engine's op)

    x = tf.constant(np.random.default_rng(0).standard_normal((3, 256)).astype(np.float32))
    before, after = (
        tf.saved_model.load(str(folder)).signatures["serving_default"](x=x)["scores"].numpy()
        for folder in (saved_model, tmp_path / "out")
    )
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-3)


def test_wrong_names_are_explained(cli, saved_model: Path, tmp_path: Path) -> None:
    outcome = cli("convert", saved_model, tmp_path / "out", "--input", "y=3x6")
    assert outcome.code == 1
    assert "they are x" in outcome.err


def test_the_model_is_not_overwritten(cli, saved_model: Path) -> None:
    outcome = cli("convert", saved_model, saved_model)
    assert outcome.code == 1
    assert "would overwrite" in outcome.err


def test_shapes_must_be_sizes(cli, saved_model: Path, tmp_path: Path) -> None:
    assert cli("convert", saved_model, tmp_path / "out", "--input", "x=Nx6").code == 2


def test_no_model_there(cli, tmp_path: Path) -> None:
    outcome = cli("convert", tmp_path, tmp_path / "out", "--json")
    assert outcome.code == 1
    assert outcome.document["error"]["kind"] == "ModelError"
