"""The process of one peer: opens a model, runs it, measures it. Speaks JSON lines over pipes.

Run as a script, in the environment of the peer; it imports NumPy and the peer, and Planish only
if that is the peer. Requests come on standard input, one a line, and each has one reply:

    {"do": "open", "model": …, "kind": …, "threads": …, "inputs": […], "outputs": […]}
    {"do": "feed", "file": "x.npz"}         arrays arr_0, arr_1, … in the order of the inputs
    {"do": "run", "file": "y.npz"}          writes the outputs as arr_0, arr_1, …
    {"do": "measure", "seconds": …, "least": …}     → {"milliseconds": […]}

A request that fails is answered with {"error": …, "missing": module or null}.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from typing import Any

if __name__ == "__main__":  # the folder of this file must not shadow other modules
    sys.path.pop(0)


class Peer:
    """A runtime with a model open in it."""

    version = ""

    def open(self, request: dict[str, Any]) -> None:
        """Reads and compiles the model."""
        raise NotImplementedError

    def feed(self, arrays: list[Any]) -> None:
        """Takes the inputs of all executions to come."""
        self.arrays = arrays

    def execute(self) -> Any:
        """One execution, as a user of this runtime would write it."""
        raise NotImplementedError

    def outputs(self) -> list[Any]:
        """The outputs as NumPy arrays in the order asked for."""
        raise NotImplementedError


class TensorFlow(Peer):
    """SavedModels by their signature, frozen graphs as a wrapped function."""

    def open(self, request: dict[str, Any]) -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(request["threads"])
        tf.config.threading.set_inter_op_parallelism_threads(request["threads"])
        self.tf, self.version = tf, tf.__version__
        self.names, self.wanted = request["inputs"], request["outputs"]
        if request["kind"] == "frozen":
            graph_def = tf.compat.v1.GraphDef()
            with open(request["model"], "rb") as file:
                graph_def.ParseFromString(file.read())
            wrapped = tf.compat.v1.wrap_function(
                lambda: tf.import_graph_def(graph_def, name=""), []
            )
            graph = wrapped.graph
            self.function = wrapped.prune(
                [graph.get_tensor_by_name(_tensor(n)) for n in self.names],
                [graph.get_tensor_by_name(_tensor(n)) for n in self.wanted],
            )
            self.by_name = False
        else:
            self.module = tf.saved_model.load(request["model"])
            self.function = self.module.signatures["serving_default"]
            self.by_name = True
            self.keys = _matched(
                self.names, [[k] for k in self.function.structured_input_signature[1]]
            )
            self.fetch = _matched(self.wanted, [[k] for k in self.function.structured_outputs])

    def feed(self, arrays: list[Any]) -> None:
        tensors = [self.tf.constant(a) for a in arrays]
        if self.by_name:
            signature = list(self.function.structured_input_signature[1])
            self.given = {signature[k]: t for k, t in zip(self.keys, tensors, strict=True)}
        else:
            self.tensors = tensors

    def execute(self) -> Any:
        return self.function(**self.given) if self.by_name else self.function(*self.tensors)

    def outputs(self) -> list[Any]:
        results = self.execute()
        if self.by_name:
            values = list(results.values())
            names = list(self.function.structured_outputs)
            results = [results[names[k]] for k in self.fetch] if values else []
        return [r.numpy() for r in results]


class OnnxRuntime(Peer):
    """ONNX Runtime on the CPU."""

    def open(self, request: dict[str, Any]) -> None:
        import onnxruntime as ort

        self.version = ort.__version__
        options = ort.SessionOptions()
        options.intra_op_num_threads = request["threads"]
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self.session = ort.InferenceSession(
            request["model"], options, providers=["CPUExecutionProvider"]
        )
        have = [i.name for i in self.session.get_inputs()]
        self.keys = [have[k] for k in _matched(request["inputs"], [[n] for n in have])]
        made = [o.name for o in self.session.get_outputs()]
        self.fetch = [made[k] for k in _matched(request["outputs"], [[n] for n in made])]

    def feed(self, arrays: list[Any]) -> None:
        self.given = dict(zip(self.keys, arrays, strict=True))

    def execute(self) -> Any:
        return self.session.run(self.fetch, self.given)

    def outputs(self) -> list[Any]:
        return list(self.execute())


class OnnxReference(Peer):
    """The reference evaluator of the package onnx: slow, and by definition right."""

    def open(self, request: dict[str, Any]) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        self.version = onnx.__version__
        self.session = ReferenceEvaluator(request["model"])
        have = list(self.session.input_names)
        self.keys = [have[k] for k in _matched(request["inputs"], [[n] for n in have])]
        made = list(self.session.output_names)
        self.fetch = [made[k] for k in _matched(request["outputs"], [[n] for n in made])]

    def feed(self, arrays: list[Any]) -> None:
        self.given = dict(zip(self.keys, arrays, strict=True))

    def execute(self) -> Any:
        return self.session.run(self.fetch, self.given)

    def outputs(self) -> list[Any]:
        return list(self.execute())


class OpenVINO(Peer):
    """OpenVINO on the CPU, tuned for latency, in float32; compiled for the shapes it is fed."""

    precision = "f32"

    def open(self, request: dict[str, Any]) -> None:
        import openvino as ov

        self.ov, self.version = ov, ov.__version__.split("-")[0]
        self.request = request
        if request["kind"] == "onnx":
            self.model = ov.Core().read_model(request["model"])
        else:
            self.model = ov.convert_model(request["model"])
        self.keys = _matched(request["inputs"], [sorted(i.get_names()) for i in self.model.inputs])
        self.fetch = _matched(
            request["outputs"], [sorted(o.get_names()) for o in self.model.outputs]
        )

    def feed(self, arrays: list[Any]) -> None:
        ports = self.model.inputs
        self.model.reshape(
            {ports[k]: list(a.shape) for k, a in zip(self.keys, arrays, strict=True)}
        )
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.request["threads"],
            "INFERENCE_PRECISION_HINT": self.precision,
        }
        self.given = dict(zip(self.keys, arrays, strict=True))
        compiled = self.ov.Core().compile_model(self.prepared(), "CPU", settings)
        self.inference = compiled.create_infer_request()

    def prepared(self) -> Any:
        """The model to compile, of the shapes that it is fed."""
        return self.model

    def execute(self) -> Any:
        return self.inference.infer(self.given)

    def outputs(self) -> list[Any]:
        results = self.execute()
        return [results[k].copy() for k in self.fetch]


class OpenVINOBf16(OpenVINO):
    """OpenVINO where it may compute in bfloat16."""

    precision = "bf16"


class OpenVINOInt8(OpenVINO):
    """OpenVINO with a model that NNCF has quantized, calibrated with the inputs themselves: its
    speed is of interest, not its accuracy. Without gathers: NNCF 3.4 fails on those of a constant
    by constants, as BERT's positions are.
    """

    def prepared(self) -> Any:
        import logging

        import nncf

        nncf.set_log_level(logging.ERROR)
        gathers = nncf.IgnoredScope(types=["Gather"], validate=False)
        data = nncf.Dataset([self.given])
        return nncf.quantize(self.model, data, subset_size=1, ignored_scope=gathers)


class Planish(Peer):
    """Planish itself, from a plan file."""

    def open(self, request: dict[str, Any]) -> None:
        import planish

        self.version = planish.__version__
        self.engine = planish.load(
            request["model"], allow_device_code=request["kind"] == "trusted plan"
        )
        self.context = self.engine.create_execution_context(request["threads"])
        self.names, self.wanted = request["inputs"], request["outputs"]

    def feed(self, arrays: list[Any]) -> None:
        self.given = dict(zip(self.names, arrays, strict=True))

    def execute(self) -> Any:
        return self.context.execute(self.given)

    def outputs(self) -> list[Any]:
        results = self.execute()
        return [results[n] for n in self.wanted] if isinstance(results, dict) else [results]


PEERS = {
    "planish": Planish,
    "tensorflow": TensorFlow,
    "onnxruntime": OnnxRuntime,
    "onnx-reference": OnnxReference,
    "openvino": OpenVINO,
    "openvino-bf16": OpenVINOBf16,
    "openvino-int8": OpenVINOInt8,
}


def _tensor(name: str) -> str:
    return name if ":" in name else f"{name}:0"


def _matched(wanted: list[str], have: list[list[str]]) -> list[int]:
    """For each wanted name the index of the end that bears it; by order where none does."""

    def plain(name: str) -> str:
        return name[:-2] if name.endswith(":0") else name

    bare = [{plain(n) for n in names} for names in have]
    found = [next((i for i, n in enumerate(bare) if plain(w) in n), None) for w in wanted]
    if None not in found:
        return found  # type: ignore[return-value]
    if len(wanted) != len(have) or any(i is not None for i in found):
        raise ValueError(f"the names {wanted} are not among {have}")
    return list(range(len(wanted)))


def _answer(peer: Peer, request: dict[str, Any]) -> dict[str, Any]:
    import numpy as np

    do = request["do"]
    if do == "open":
        peer.open(request)
        return {"version": peer.version}
    if do == "feed":
        with np.load(request["file"], allow_pickle=False) as file:
            peer.feed([file[f"arr_{i}"] for i in range(len(file.files))])
        return {}
    if do == "run":
        np.savez(request["file"], *peer.outputs())
        return {}
    if do == "measure":
        return {"milliseconds": _measure(peer, request["seconds"], request["least"])}
    raise ValueError(f"unknown request {do!r}")


def _measure(peer: Peer, seconds: float, least: int) -> list[float]:
    """The milliseconds of each execution, after one that does not count."""
    peer.execute()
    times: list[float] = []
    clock = time.perf_counter
    end = clock() + seconds
    while len(times) < least or clock() < end:
        start = clock()
        peer.execute()
        times.append((clock() - start) * 1e3)
    return times


def main() -> None:
    """Serves requests until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this process ends it
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is not a reply
    sys.stdout = sys.stderr
    peer = PEERS[sys.argv[1]]()
    for line in sys.stdin:
        try:
            reply = _answer(peer, json.loads(line))
        except ImportError as error:
            reply = {"error": str(error), "missing": error.name or str(error)}
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:2000], "missing": None}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
