"""Models converted for a GPU, and run by a TensorFlow that knows of none: `make test-cuda` does so
on a GPU, elsewhere their kernels are interpreted.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")
pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted_target import InterpretedTarget  # noqa: E402
from planish.targets.execution import Executable  # noqa: E402
from planish.tensorflow import trt_convert as trt  # noqa: E402
from planish.tensorflow.engines import registry  # noqa: E402

IMAGE = tf.TensorSpec([None, 8, 8, 3], name="image")


@pytest.fixture(autouse=True, params=["interpreted", pytest.param("gpu", marks=pytest.mark.cuda)])
def device(request, monkeypatch):
    """What `cuda:0` is."""
    if request.param == "interpreted":
        target = InterpretedTarget()
        monkeypatch.setattr("planish.targets.cuda.target.cuda", lambda _: target)
    yield
    registry.release()


@pytest.fixture
def network(layers, save):
    def serve(image):
        x = tf.nn.relu(layers.conv(image, 8))
        x = tf.nn.relu(layers.conv(x, 8, stride=2))
        return {"logits": tf.reduce_mean(x, [1, 2]), "features": x}

    return save(serve, IMAGE)


def converted(folder, to, **params):
    """The signature of a SavedModel, converted for the GPU, saved and loaded."""
    params = trt.DEFAULT_TRT_CONVERSION_PARAMS._replace(**params)
    converter = trt.TrtGraphConverterV2(folder, conversion_params=params, device="cuda:0")
    converter.convert()
    converter.save(str(to))
    registry.release()
    return tf.saved_model.load(str(to)).signatures["serving_default"]


def images(rng, batch):
    return tf.constant(rng.standard_normal((batch, 8, 8, 3)).astype(np.float32))


@pytest.mark.parametrize(("precision", "tolerance"), [("FP32", 2e-5), ("FP16", 5e-3)])
def test_a_saved_model(network, tmp_path, rng, close, precision, tolerance):
    folder, serve = network
    loaded = converted(folder, tmp_path / "saved", precision_mode=precision)
    for batch in (1, 3, 2, 3):
        given = images(rng, batch)
        results, wanted = loaded(image=given), serve(image=given)
        assert results.keys() == wanted.keys()
        for name, expected in wanted.items():
            close(results[name], expected, tolerance)
    assert loaded(image=images(rng, 0))["logits"].shape == (0, 8)


def test_threads(network, tmp_path, rng, close):
    folder, serve = network
    loaded = converted(folder, tmp_path / "saved")
    given = [images(rng, 2) for _ in range(4)]
    results = {}
    threads = [
        threading.Thread(target=lambda i=i: results.update({i: loaded(image=given[i])}))
        for i in range(len(given))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, image in enumerate(given):
        close(results[number]["logits"], serve(image=image)["logits"])


def executables():
    """All that are alive."""
    gc.collect()
    return [e for e in gc.get_objects() if isinstance(e, Executable)]


def test_executables_are_freed(network, tmp_path, rng):
    """Device memory goes when the registry forgets an engine."""
    folder, _ = network
    loaded = converted(folder, tmp_path / "saved")
    before = set(map(id, executables()))
    loaded(image=images(rng, 2))
    made = [weakref.ref(e) for e in executables() if id(e) not in before]
    assert made
    del loaded
    registry.release()
    deadline = time.monotonic() + 20
    while any(reference() for reference in made):  # TensorFlow ends kernels when it likes
        assert time.monotonic() < deadline
        time.sleep(0.05)
        gc.collect()


def test_a_failure_on_the_device(network, tmp_path, rng, close, monkeypatch):
    """It is TensorFlow's error, with the reason, and the next call works."""
    folder, serve = network
    loaded = converted(folder, tmp_path / "saved")
    given = images(rng, 2)
    loaded(image=given)

    def fails(*_, **__):
        raise RuntimeError("the GPU has fallen off the bus")

    with monkeypatch.context() as patches:
        for kind in set(map(type, executables())):
            patches.setattr(kind, "run", fails)
        with pytest.raises(tf.errors.OpError, match="fallen off the bus"):
            loaded(image=given)
    close(loaded(image=given)["logits"], serve(image=given)["logits"])
