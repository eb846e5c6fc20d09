"""Real models on real images: the same results as TensorFlow, Keras and ONNX Runtime give."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import planish
from helpers import frameworks, images
from helpers.detections import Detection, unmatched
from helpers.engines import quick_engine
from helpers.frameworks import Reference, assert_agrees, run_engine

pytestmark = pytest.mark.data

Prepare = Callable[[Path, int], np.ndarray]


@dataclass(frozen=True)
class RealModel:
    """A model file, its input by name, and a batch of real input for it."""

    file: str
    input: str
    prepare: Prepare
    outputs: tuple[str, ...] = ()
    batches: tuple[int, ...] = (1, 3, 8)

    def reference(self, data_dir: Path) -> Reference:
        path = data_dir / self.file
        if path.suffix == ".onnx":
            return frameworks.onnx_model(path)
        if path.suffix == ".h5":
            return frameworks.keras_model(path)
        return frameworks.frozen_graph(path, self.outputs)


def _mobilenet(data_dir: Path, count: int) -> np.ndarray:
    return images.symmetric(images.first_imagenet(data_dir)[:count])


def _squeezenet(data_dir: Path, count: int) -> np.ndarray:
    chosen = images.first_imagenet(data_dir)[:count]
    return images.channels_first(images.standardized(chosen))


def _cifar(data_dir: Path, count: int) -> np.ndarray:
    return images.standardized(images.cifar(data_dir)[:count])


def _cifar_first(data_dir: Path, count: int) -> np.ndarray:
    return images.channels_first(_cifar(data_dir, count))


def _cifar_raw(data_dir: Path, count: int) -> np.ndarray:
    return images.cifar(data_dir)[:count].astype(np.float32)


def _wake_words(data_dir: Path, count: int) -> np.ndarray:
    return images.resized_photos(data_dir, count, 96, 96).astype(np.float32) / np.float32(255)


def _nanodet(data_dir: Path, count: int) -> np.ndarray:
    return images.nanodet_input(images.resized_photos(data_dir, count, 320, 320))


def _detector(data_dir: Path, count: int) -> np.ndarray:
    return images.resized_photos(data_dir, count, 320, 400)


SSD_FILE = "ssd_mobilenet_v1_0.75_300_coco_frozen.pb"
DETECTIONS = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")
RAW = ("raw_detection_boxes", "raw_detection_scores")
MOBILENET = RealModel(
    "mobilenet_v2_1.0_224_frozen.pb", "input", _mobilenet, ("MobilenetV2/Predictions/Softmax",)
)
SQUEEZENET = RealModel("squeezenet1.1.onnx", "data", _squeezenet)
SSD = RealModel(SSD_FILE, "image_tensor", _detector, DETECTIONS)
MODELS = {
    "mobilenet_v2": MOBILENET,
    "squeezenet": SQUEEZENET,
    "resnet20_pb": RealModel("resnet20_cifar10_frozen.pb", "input", _cifar, ("softmax",)),
    "resnet56_pb": RealModel("resnet56_cifar10_frozen.pb", "input", _cifar, ("softmax",)),
    "resnet20_onnx": RealModel("resnet20_cifar10.onnx", "input", _cifar_first),
    "resnet56_onnx": RealModel("resnet56_cifar10.onnx", "input", _cifar_first),
    "resnet8_keras": RealModel("mlperf_tiny_resnet8_cifar10.h5", "input_1", _cifar_raw),
    "wake_words_keras": RealModel(
        "mlperf_tiny_vww_mobilenet_v1_0.25_96.h5", "input_1", _wake_words
    ),
    # declared for one image: its outputs have no batch dimension
    "nanodet": RealModel("nanodet_m_320_coco.onnx", "image", _nanodet, batches=(1,)),
    "ssd": SSD,
}


@pytest.fixture(scope="module")
def engines(data_dir: Path) -> Callable[..., planish.Engine]:
    """Makes an engine of a model file once for all tests here."""
    made: dict[Any, planish.Engine] = {}

    def engine(file: str, outputs: tuple[str, ...] | None = None) -> planish.Engine:
        if (file, outputs) not in made:
            made[file, outputs] = quick_engine(data_dir / file, outputs=outputs)
        return made[file, outputs]

    return engine


@pytest.fixture(scope="module")
def references(data_dir: Path) -> Callable[[RealModel], Reference]:
    """Loads a model in its own framework once for all tests here."""
    made: dict[RealModel, Reference] = {}

    def reference(model: RealModel) -> Reference:
        if model not in made:
            made[model] = model.reference(data_dir)
        return made[model]

    return reference


@pytest.mark.parametrize("name", MODELS)
def test_everything_is_native(name: str, engines) -> None:
    assert engines(MODELS[name].file).host_steps() == []


@pytest.mark.parametrize(
    ("name", "batch"), [(n, b) for n, m in MODELS.items() for b in m.batches if n != "ssd"]
)
def test_results(name: str, batch: int, engines, references, data_dir: Path) -> None:
    model = MODELS[name]
    feeds = {model.input: model.prepare(data_dir, batch)}
    assert_agrees(engines(model.file), references(model), feeds)


@pytest.mark.parametrize("name", MODELS)
def test_a_loaded_plan_gives_equal_results(name: str, engines, data_dir: Path, tmp_path) -> None:
    model, engine = MODELS[name], engines(MODELS[name].file)
    feeds = {model.input: model.prepare(data_dir, 1)}
    engine.save(tmp_path / "model.plan")
    for again in (planish.load(tmp_path / "model.plan"), planish.load(engine.serialize())):
        assert again.host_steps() == engine.host_steps()
        results = run_engine(again, feeds)
        for output, expected in run_engine(engine, feeds).items():
            np.testing.assert_array_equal(results[output], expected, err_msg=output)


def test_a_middle_tensor(engines, data_dir: Path) -> None:
    middle = ("MobilenetV2/Logits/Squeeze", "MobilenetV2/Predictions/Softmax")
    reference = frameworks.frozen_graph(data_dir / MOBILENET.file, middle)
    engine = engines(MOBILENET.file, middle)
    assert [info.name for info in engine.outputs] == list(middle)
    assert_agrees(engine, reference, {"input": _mobilenet(data_dir, 2)})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mobilenet_v2", "squeezenet"])
def test_top_1_of_a_thousand_images(name: str, engines, references, data_dir: Path) -> None:
    model = MODELS[name]
    engine, reference = engines(model.file), references(model)
    own: list[int] = []
    framework: list[int] = []
    for batch in _batches(images.imagenet(data_dir), 25):
        chosen = np.stack([image for _, image in batch])
        array = images.symmetric(chosen)
        if model is SQUEEZENET:
            array = images.channels_first(images.standardized(chosen))
        own += np.argmax(engine(array), axis=-1).tolist()
        (expected,) = reference({model.input: array}).values()
        framework += np.argmax(expected, axis=-1).tolist()
    assert len(own) == 1000
    assert own == framework
    classes = images.imagenet_classes(data_dir)
    first = 1 if model is MOBILENET else 0  # class 0 of 1001 is the background
    hits = sum(o - first == c for o, c in zip(own, classes.values(), strict=True))
    assert hits / 1000 == pytest.approx(0.893 if model is MOBILENET else 0.624, abs=0.01)


def _batches(items, size: int):
    batch = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


# ---- detection -----------------------------------------------------------------------------


def test_reference_detections(engines, data_dir: Path) -> None:
    """Photos of 22 sizes through one engine: every detection that TensorFlow found, no other."""
    engine = engines(SSD_FILE)
    reference = json.loads((data_dir / "ssd_reference_detections.json").read_text())
    photos = images.photos(data_dir)
    assert len({p.shape for p in photos.values()}) > 10
    for name, photo in photos.items():
        found = _detections(engine(photo[None]), 0)
        expected = [
            Detection(d["class_id"], d["score"], tuple(d["box_ymin_xmin_ymax_xmax"]))
            for d in reference["detections"][name]
        ]
        assert unmatched(found, expected) == [], name
        assert len(found) == len(expected), name


@pytest.mark.parametrize("batch", SSD.batches)
def test_detections_of_a_batch(batch: int, engines, references, data_dir: Path) -> None:
    feeds = {SSD.input: _detector(data_dir, batch)}
    results, expected = run_engine(engines(SSD_FILE), feeds), references(SSD)(feeds)
    assert results["detection_boxes"].shape == (batch, 100, 4)
    for index in range(batch):
        found, wanted = _detections(results, index), _detections(expected, index)
        assert unmatched(found, wanted) == []


@pytest.mark.parametrize("batch", SSD.batches)
def test_raw_detections(batch: int, engines, data_dir: Path) -> None:
    """The network before suppression, also where suppression itself is not in the way."""
    reference = frameworks.frozen_graph(data_dir / SSD_FILE, RAW)
    assert_agrees(engines(SSD_FILE, RAW), reference, {SSD.input: _detector(data_dir, batch)})


def _detections(results: dict[str, np.ndarray], index: int) -> list[Detection]:
    count = int(results["num_detections"][index])
    boxes, scores = results["detection_boxes"][index], results["detection_scores"][index]
    classes = results["detection_classes"][index]
    assert not scores[count:].any(), "what is beyond the count must be empty"
    return [
        Detection(int(classes[i]), float(scores[i]), tuple(map(float, boxes[i])))
        for i in range(count)
    ]
