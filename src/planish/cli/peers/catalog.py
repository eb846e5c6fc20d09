"""Which peer reads which models, and what a model must become before it does.

A Keras file is exported to a SavedModel once; TensorFlow and OpenVINO read that. ONNX Runtime reads
ONNX files; for a TensorFlow model tf2onnx makes one, in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from planish.cli.peers.process import PeerError
from planish.errors import ModelError

READS: dict[str, tuple[str, ...]] = {
    "tensorflow": ("saved_model", "frozen"),
    "onnxruntime": ("onnx",),
    "onnx-reference": ("onnx",),
    "openvino": ("saved_model", "frozen", "onnx"),
    "openvino-bf16": ("saved_model", "frozen", "onnx"),
    "openvino-int8": ("saved_model", "frozen", "onnx"),
}
"""The kinds of model each peer reads."""

BENCHED = ("tensorflow", "onnxruntime", "openvino", "openvino-bf16", "openvino-int8")
"""The peers worth measuring. What follows a hyphen is a precision: Planish's own is chosen with
``--precision``."""


def runtime(peer: str) -> str:
    """The runtime of a peer: ``openvino`` for ``openvino-int8``."""
    return peer.partition("-")[0]


_KERAS = (".keras", ".h5", ".hdf5")


@dataclass(frozen=True)
class PeerModel:
    """A model as a peer reads it, and the names of its ends there."""

    path: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass
class ModelFiles:
    """The forms of one model, made when a peer needs them; a context manager that removes them.

    Attributes
    ----------
    path : str
        The user's model.
    inputs, outputs : sequence of str
        The names of its ends in Planish.
    pythons : mapping
        The Python of each peer, also of "tf2onnx", where it is not this one.
    """

    path: str
    inputs: Sequence[str]
    outputs: Sequence[str]
    pythons: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="planish-")
        self._made: dict[str, PeerModel] = {}

    def for_peer(self, peer: str) -> PeerModel:
        """The model in a form that a peer reads.

        Raises
        ------
        PeerError
            There is no such form.
        """
        own = self._own()
        if own.kind in READS[peer]:
            return own
        if "onnx" in READS[peer]:
            return self._onnx(own)
        raise PeerError(
            f"{peer} does not read {own.kind} models",
            where=self.path,
            cure=f"compare with {' or '.join(p for p in BENCHED if own.kind in READS[p])}",
        )

    @property
    def kind(self) -> str:
        """The kind of the user's model."""
        return self._own().kind

    def _own(self) -> PeerModel:
        if "own" not in self._made:
            self._made["own"] = self._as_it_is()
        return self._made["own"]

    def _as_it_is(self) -> PeerModel:
        path = Path(self.path)
        names = tuple(self.inputs), tuple(self.outputs)
        if path.name == "saved_model.pb":
            path = path.parent
        if path.is_dir():
            return PeerModel(str(path), "saved_model", *names)
        if path.suffix.lower() == ".onnx":
            return PeerModel(str(path), "onnx", *names)
        if path.suffix.lower() == ".pb":
            return PeerModel(str(path), "frozen", *names)
        if path.suffix.lower() in _KERAS:
            return self._export_keras(path)
        raise ModelError(
            "No other runtime reads this model",
            where=self.path,
            cure="pass a SavedModel folder, a .pb, .keras, .h5 or .onnx file",
        )

    def _export_keras(self, path: Path) -> PeerModel:
        """The SavedModel of a Keras file; its ends are named by position, as Keras orders them."""
        from planish.frontends.tensorflow.keras_model import read_keras_file
        from planish.frontends.tensorflow.model import tensorflow

        tf = tensorflow()
        model = read_keras_file(path)
        specs = [
            tf.TensorSpec(tuple(t.shape), t.dtype, name=f"input_{i}")
            for i, t in enumerate(model.inputs)
        ]

        def call(*tensors):
            results = model(tensors[0] if len(tensors) == 1 else list(tensors), training=False)
            return {f"output_{i}": r for i, r in enumerate(tf.nest.flatten(results))}

        function = tf.function(call, input_signature=specs, autograph=False)
        folder = f"{self._folder.name}/saved_model"
        tf.saved_model.save(model, folder, signatures=function.get_concrete_function())
        inputs = tuple(f"input_{i}" for i in range(len(self.inputs)))
        return PeerModel(
            folder, "saved_model", inputs, tuple(f"output_{i}" for i in range(len(self.outputs)))
        )

    def _onnx(self, own: PeerModel) -> PeerModel:
        if "onnx" not in self._made:
            self._made["onnx"] = self._by_tf2onnx(own)
        return self._made["onnx"]

    def _by_tf2onnx(self, own: PeerModel) -> PeerModel:
        python = self.pythons.get("tf2onnx", sys.executable)
        cure = (
            "pip install tf2onnx, name a Python that has it: --python-for tf2onnx=/path/to/python, "
            "or pass the model as an .onnx file"
        )
        present = subprocess.run(
            [python, "-c", "import tf2onnx"], capture_output=True, text=True, check=False
        )
        if present.returncode:
            raise PeerError(
                "ONNX Runtime does not read TensorFlow models, and tf2onnx cannot be imported",
                where=python,
                why=present.stderr.strip().rpartition("\n")[2],
                cure=cure,
            )
        target = f"{self._folder.name}/model.onnx"
        if own.kind == "saved_model":
            source = ["--saved-model", own.path]
        else:
            ends = [
                ",".join(n if ":" in n else f"{n}:0" for n in e) for e in (own.inputs, own.outputs)
            ]
            source = ["--graphdef", own.path, "--inputs", ends[0], "--outputs", ends[1]]
        made = subprocess.run(
            [python, "-m", "tf2onnx.convert", *source, "--output", target, "--opset", "17"],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode or not Path(target).exists():
            raise PeerError(
                "tf2onnx cannot convert the model",
                where=self.path,
                why=made.stderr.strip().rpartition("\n")[2],
                cure="pass the model as an .onnx file",
            )
        return PeerModel(target, "onnx", own.inputs, own.outputs)

    def __enter__(self) -> ModelFiles:
        return self

    def __exit__(self, *exception: object) -> None:
        self._folder.cleanup()
