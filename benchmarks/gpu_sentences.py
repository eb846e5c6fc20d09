"""What lower precisions cost a sentence encoder on a GPU: its embeddings beside those of FP32.

    python benchmarks/gpu_sentences.py prepare WEIGHTS FOLDER    on any CPU
    python benchmarks/gpu_sentences.py run FOLDER                where the GPU is; needs FOLDER only

`WEIGHTS` holds all-MiniLM-L6-v2 as `minilm.py` reads it. `prepare` writes an ONNX file, of the
words that the sentences below have and with weights rounded to halves (22 MB), and the embeddings
by the references. `run` builds it in FP16, INT8 and FP8, calibrated on one half of the sentences,
and gives the cosine of each embedding of the other half with that of FP32. It exits with 1 where
FP8's mean is below `--bar`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from minilm import MiniLm
from onnx import TensorProto, helper, numpy_helper

import planish
from planish.frontends import import_model
from planish.graph.interpret import interpret
from planish.quantization import MinMaxCalibrator

LONGEST = 32
"""Pieces of a sentence, at most."""

PRECISIONS: dict[str, Any] = {
    "fp16": "fp16",
    "int8": {"int8", "fp16"},
    "fp8": {"fp8", "fp16"},
}

SENTENCES = """
The ferry leaves for the island at half past six, if the weather allows it.
She had never seen so many stars as on that night in the desert.
A convolution adds up what lies around a pixel, weighted by a filter.
Could you tell me where the nearest railway station is?
The committee postponed its decision until the figures have been checked.
He bakes bread every Sunday morning with flour from the old mill.
Prices of copper fell sharply after the mine had reopened.
The patient was given antibiotics for a week and recovered fully.
Two children were building a castle of sand close to the water.
This library reads arrays of any shape and returns them without a copy.
Please send the signed contract back before the end of the month.
The orchestra played the second movement far too fast.
Bees find their way home by the position of the sun.
Our flight was cancelled, so we took the night train to Vienna.
The bridge was closed because one of its cables had rusted through.
I would like a table for four people near the window.
The new law requires companies to publish how much energy they use.
A volcano in the south of the country has been smoking since Tuesday.
The goalkeeper saved two penalties in the last minutes of the match.
Quantum computers need temperatures close to absolute zero.
Grandmother kept the letters in a tin box under the bed.
The museum shows paintings that were thought to be lost in the war.
Memory is cheap, but moving data costs time and energy.
Rain is expected in the north, while the south stays dry and warm.
He forgot his umbrella on the bus again.
The river is too shallow for ships in late summer.
Interest rates remained unchanged for the third time this year.
The recipe asks for three eggs, a pinch of salt and some butter.
A small earthquake woke the town shortly after four in the morning.
Students protested against the rise of the fees.
The compiler replaces a division by a multiplication where it can.
Wolves have returned to the forests along the border.
My neighbour plays the trumpet, though not very well.
The court ruled that the company must pay damages.
An old map led them to a cave behind the waterfall.
The battery lasts two days if the screen is dimmed.
She teaches mathematics at a school in the suburbs.
The harvest was poor because it had not rained for months.
Astronomers discovered a planet that circles two suns.
Turn left after the church and follow the road up the hill.
""".strip().split("\n")


def prepare(arguments: argparse.Namespace) -> int:
    """Writes the folder."""
    encoder, folder = MiniLm(arguments.weights), arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "minilm.onnx"
    encoder.write(file)
    every = [encoder.tokens(sentence) for sentence in SENTENCES]
    words = np.unique(np.concatenate(every, axis=1))
    model = onnx.load(file)
    onnx.save(reduced(model, words), file)
    tokens = [np.searchsorted(words, ids) for ids in every]
    graph = import_model(str(file), inputs=None, outputs=None, allow_fallback=True)
    wanted = np.concatenate([interpret(graph, {"ids": ids})[0] for ids in tokens])
    np.savez(
        folder / "sentences.npz", wanted=wanted, **{f"ids{i}": t for i, t in enumerate(tokens)}
    )
    print(f"{folder}: {sum(f.stat().st_size for f in folder.iterdir()) / 1e6:.1f} MB")
    return 0


def reduced(model: onnx.ModelProto, words: np.ndarray) -> onnx.ModelProto:
    """The model with the embeddings of some words, and its weights as halves."""
    graph = model.graph
    casts = []
    for initializer in list(graph.initializer):
        array = numpy_helper.to_array(initializer)
        if initializer.name == "embeddings.word_embeddings.weight":
            array = array[words]
        if array.dtype != np.float32 or array.ndim == 0:
            continue
        graph.initializer.remove(initializer)
        half = f"{initializer.name}/half"
        graph.initializer.append(numpy_helper.from_array(array.astype(np.float16), half))
        casts.append(helper.make_node("Cast", [half], [initializer.name], to=TensorProto.FLOAT))
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    return model


def run(arguments: argparse.Namespace) -> int:
    """Builds, compares, prints."""
    folder = arguments.folder
    stored = np.load(folder / "sentences.npz")
    wanted = stored["wanted"]
    tokens = [stored[f"ids{i}"] for i in range(len(wanted))]
    half = len(tokens) // 2
    data = [{"ids": ids} for ids in tokens[:half]]
    results = {}
    for name in arguments.precisions.split(","):
        precision = PRECISIONS[name]
        engine = planish.build(
            folder / "minilm.onnx",
            device=arguments.device,
            precision=precision,
            calibration=None if name == "fp16" else MinMaxCalibrator(data),
            inputs={"ids": planish.Profile((1, 4), (1, 16), (1, LONGEST))},
            tuning_seconds=arguments.tuning_seconds,
            progress=False,
        )
        have = np.concatenate([np.asarray(engine({"ids": ids})) for ids in tokens[half:]])
        norms = np.linalg.norm(have, axis=1) * np.linalg.norm(wanted[half:], axis=1)
        cosine = (have * wanted[half:]).sum(1) / norms
        results[name] = {
            "mean": float(cosine.mean()),
            "least": float(cosine.min()),
            "quantized": len(engine.report.quantized),
        }
        print(name, results[name], flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1))
    return int("fp8" in results and results["fp8"]["mean"] < arguments.bar)


def main() -> int:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("prepare")
    command.add_argument("weights", type=Path)
    command.add_argument("folder", type=Path)
    command.set_defaults(call=prepare)
    command = commands.add_parser("run")
    command.add_argument("folder", type=Path)
    command.add_argument("--device", default="cuda:0")
    command.add_argument("--precisions", default=",".join(PRECISIONS))
    command.add_argument("--tuning-seconds", type=float, default=10.0)
    command.add_argument("--bar", type=float, default=0.995)
    command.add_argument("--output", type=Path)
    command.set_defaults(call=run)
    arguments = parser.parse_args()
    return int(arguments.call(arguments))


if __name__ == "__main__":
    sys.exit(main())
