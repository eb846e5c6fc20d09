"""Fuzzing of everything that reads files, by coverage (libFuzzer through atheris).

    pip install atheris
    python tests/campaigns/fuzz_loaders.py LOADER CORPUS \\
        -max_total_time=3600

where LOADER is onnx, graphdef, plan, timing-cache or calibration-cache.

Whatever bytes it is given, a loader ends with a result or a `PlanishError`; any other exception, a
crash, more than 20 seconds or more than 3 GB is a finding, which libFuzzer writes to a file. Errors
that only the catch-all of `import_model` turned into a `PlanishError` are listed in
``unforeseen.txt``, one line for each place they come from, and their inputs are kept beside it:
they are no danger, but their text is no help.

The corpus folder is filled with small valid files first. Half of the mutations of models are of the
messages' fields rather than of bytes, and a plan's checksums are made right again after each
mutation, as otherwise nothing behind them would be reached. Run again with the same folder, a
campaign goes on where it was.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import random
import re
import sys
import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import atheris

sys.path.insert(0, str(Path(__file__).parent.parent))

with atheris.instrument_imports(include=["planish"]):
    from planish import builder
    from planish.errors import PlanishError
    from planish.frontends import import_model
    from planish.frontends.onnx import convert as _onnx_convert  # noqa: F401 (to instrument it)
    from planish.frontends.tensorflow import convert as _convert  # noqa: F401
    from planish.plan import load
    from planish.quantization import cache as calibration_cache
    from planish.targets.cpu.target import cpu
    from planish.tuning.cache import TimingCache

import numpy as np

from helpers.fuzz.generate import op_recipes
from helpers.fuzz.specs import has_spec
from helpers.networks import N, Net
from planish.ops.base import OPS
from planish.quantization.ranges import Ranges

UNEXPECTED = "please report this"
"""What the catch-all of `import_model` says."""

LONGEST = 16384
"""Bytes that an input of the fuzzer may have."""

SCRATCH = Path(tempfile.mkdtemp(prefix="planish-fuzz-", dir="/dev/shm"))


_seen: set[str] = set()


def check(error: PlanishError, data: bytes) -> None:
    """Lists an error that nobody wrote for this case, once for each place it comes from."""
    if UNEXPECTED not in error.cure:
        return
    place = error.__cause__.__traceback__ if error.__cause__ else None
    while place and place.tb_next:
        place = place.tb_next
    where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else ""
    if where not in _seen:
        _seen.add(where)
        kept = f"unforeseen-{hashlib.sha1(data).hexdigest()[:8]}"
        Path(kept).write_bytes(data)
        with Path("unforeseen.txt").open("a") as file:
            file.write(f"{where} {error.why[:200]!r} {kept}\n")


def read_onnx(data: bytes) -> None:
    path = SCRATCH / "model.onnx"
    path.write_bytes(data)
    import_model(path)


def read_graphdef(data: bytes) -> None:
    path = SCRATCH / "model.pb"
    path.write_bytes(data)
    import_model(path)


def read_plan(data: bytes) -> None:
    with load.load(data) as engine:
        shapes = {i.name: [d if isinstance(d, int) else 1 for d in i.shape] for i in engine.inputs}
        if sum(map(math.prod, shapes.values())) < 1 << 17:
            engine({i.name: np.zeros(shapes[i.name], i.dtype) for i in engine.inputs})


def read_timing_cache(data: bytes) -> None:
    path = SCRATCH / "timing.sqlite"
    for stale in SCRATCH.glob("timing.sqlite*"):
        stale.unlink()
    path.write_bytes(data)
    cache = TimingCache(path)
    cache.get("a")
    cache.put([("a", 1.0), ("b", 2.0)])
    cache.put_largest([("a", 3.0)])
    cache.close()


def read_calibration_cache(data: bytes) -> None:
    ranges = calibration_cache.decode(data)
    again = calibration_cache.encode(ranges)
    assert calibration_cache.decode(again) == ranges


# ---- mutations -----------------------------------------------------------------------------


def mutate_message(parse: Callable[[bytes], Any]) -> Callable[[bytes, int, int], bytes]:
    """A mutator that changes one field of a protobuf message, or bytes."""

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if rng.random() < 0.5:
            return atheris.Mutate(data, most)
        try:
            message = parse(data)
        except Exception:
            return atheris.Mutate(data, most)
        for _ in range(rng.choice((1, 1, 2, 4))):
            _change(message, rng)
        changed = message.SerializeToString()
        return changed if len(changed) <= most else atheris.Mutate(data, most)

    return mutate


def _change(message: Any, rng: random.Random) -> None:
    """Goes down to a random field and changes it."""
    fields = message.ListFields()
    if not fields:
        return
    field, value = rng.choice(fields)
    repeated = hasattr(value, "__len__") and not isinstance(value, str | bytes)
    if field.message_type is not None:
        if repeated and hasattr(value, "keys"):
            keys = list(value.keys())
            if not keys or rng.random() < 0.2:
                value.clear()
            elif hasattr(value[keys[0]], "ListFields"):
                _change(value[rng.choice(keys)], rng)
            return
        if repeated:
            if not value:
                return
            action = rng.random()
            if action < 0.1:
                del value[rng.randrange(len(value))]
            elif action < 0.2:
                value.add().CopyFrom(rng.choice(value))
            else:
                _change(rng.choice(value), rng)
            return
        if rng.random() < 0.05:
            message.ClearField(field.name)
        else:
            _change(value, rng)
        return
    new = _scalar(field, rng, message)
    if new is None:
        return
    try:
        if repeated:
            if value and rng.random() < 0.7:
                value[rng.randrange(len(value))] = new
            elif rng.random() < 0.5:
                value.append(new)
            else:
                message.ClearField(field.name)
        elif rng.random() < 0.1:
            message.ClearField(field.name)
        else:
            setattr(message, field.name, new)
    except (ValueError, TypeError):
        pass


NUMBERS = (0, 1, 2, 3, -1, -2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**40, 2**63 - 1, -(2**63))


def _scalar(field: Any, rng: random.Random, message: Any) -> Any:
    if field.cpp_type in (field.CPPTYPE_INT32, field.CPPTYPE_INT64, field.CPPTYPE_ENUM):
        return rng.choice(NUMBERS) if rng.random() < 0.7 else rng.randrange(-4, 300)
    if field.cpp_type in (field.CPPTYPE_UINT32, field.CPPTYPE_UINT64):
        return abs(rng.choice(NUMBERS))
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice((0.0, -1.0, 0.5, 1e30, float("inf"), float("nan")))
    if field.cpp_type == field.CPPTYPE_BOOL:
        return rng.random() < 0.5
    if field.type == field.TYPE_STRING:
        return rng.choice(("", "x", "y", "Add", "Conv", "Reshape", "../x", "a" * 300, "\u00e9"))
    old = getattr(message, field.name)
    if isinstance(old, bytes) and old:
        cut = bytearray(old)
        cut[rng.randrange(len(cut))] = rng.randrange(256)
        return bytes(cut) if rng.random() < 0.7 else bytes(cut[: rng.randrange(len(cut))])
    return b"x"


def mutate_plan(data: bytes, most: int, seed: int) -> bytes:
    """Changes a plan's header as text, or bytes anywhere, and makes its checksums right."""
    rng = random.Random(seed)
    line, newline, rest = data.partition(b"\n")
    match = re.fullmatch(rb"planish plan (\d{3}) (\d{10}) ([0-9a-f]{64})", line)
    if not match or not newline or rng.random() < 0.1:
        return atheris.Mutate(data, most)
    size = int(match[2])
    header, weights = rest[:size], rest[size:]
    if weights and rng.random() < 0.2:
        weights = atheris.Mutate(weights, max(most - len(header) - len(line) - 1, 1))
    else:
        tokens = list(re.finditer(rb'-?\d+|"[^"]*"|true|false|null|[\[\]{}]', header))
        for _ in range(rng.choice((1, 1, 2, 3))):
            if not tokens:
                break
            token = rng.choice(tokens)
            other = (
                rng.choice(tokens)[0] if rng.random() < 0.5 else str(rng.choice(NUMBERS)).encode()
            )
            header = header[: token.start()] + other + header[token.end() :]
            tokens = list(re.finditer(rb'-?\d+|"[^"]*"|true|false|null|[\[\]{}]', header))
    digest = hashlib.sha256(weights).hexdigest().encode()
    header = re.sub(rb'("sha256": ?)"[0-9a-f]{64}"', rb'\g<1>"' + digest + b'"', header)
    header = re.sub(rb'("bytes": ?)\d+', rb"\g<1>" + str(len(weights)).encode(), header)
    seal = hashlib.sha256(header).hexdigest().encode()
    first = b"planish plan %s %010d %s\n" % (match[1], len(header), seal)
    return (first + header + weights)[:most]


# ---- corpora -------------------------------------------------------------------------------


def onnx_files() -> list[bytes]:
    """The node tests that `onnx` carries, and a small network."""
    import onnx.backend.test.loader as loader

    found = []
    for case in loader.load_model_tests(kind="node"):
        data = case.model.SerializeToString()
        if len(data) < 2000:
            found.append(data)
    return found


def graphdef_files() -> list[bytes]:
    """Small frozen graphs of several kinds, and two of each op that is converted."""
    import tensorflow as tf
    from helpers.tensorflow_ops.run import graph_def_of
    from helpers.tensorflow_ops.table import TABLE, case_of

    def network(x):
        y = tf.nn.conv2d(x, tf.ones((3, 3, 2, 4)), 2, "SAME")
        y = tf.nn.relu(tf.nn.bias_add(y, tf.ones(4)))
        y = tf.nn.max_pool2d(y, 2, 2, "VALID")
        return tf.nn.softmax(tf.reshape(y, [tf.shape(y)[0], -1]))

    def shapes(x):
        a, b = tf.split(tf.transpose(x, (0, 3, 1, 2)), 2, axis=1)
        return tf.concat([tf.pad(a, [[0, 0]] * 4), tf.tile(b, [1, 1, 1, 1])], 1)[:, ::-1]

    def picks(x):
        return tf.gather(tf.reduce_mean(x, (1, 2)), [1, 0], axis=1), tf.math.top_k(x, 1)[0]

    found = []
    for function in (network, shapes, picks):
        concrete = tf.function(function).get_concrete_function(
            tf.TensorSpec((None, 8, 8, 2), tf.float32)
        )
        found.append(concrete.graph.as_graph_def().SerializeToString())
    for op in TABLE:
        for seed in range(2):
            try:
                data = graph_def_of(case_of(op, seed)).SerializeToString()
            except (tf.errors.OpError, ValueError):
                continue  # attributes that TensorFlow itself refuses
            if len(data) < 4000:
                found.append(data)
    return found


def plan_files() -> list[bytes]:
    """Small plans of several kinds, and one around each op that has a kernel."""
    found = []
    for kind in range(3):
        net = Net(seed=kind)
        if kind == 0:
            net.output(net.relu(net.input(N, 5)))
        elif kind == 1:
            net.output(net.relu(net.bias(net.dense(net.input(N, 4), 3))))
        else:
            x = net.input(N, 4, 4, 2)
            net.output(net.add(net.conv(x, 2, 3), x))
        engine = builder.build_graph(net.graph, cpu(), tuning_seconds=0)
        found.append(engine.serialize())
    for op in OPS.values():
        if not has_spec(op):
            continue
        ((_, recipe),) = op_recipes(op.name, 1)
        engine = builder.build_graph(recipe.graph(), cpu(), tuning_seconds=0)
        data = engine.serialize()
        if len(data) < LONGEST:
            found.append(data)
    return found


def timing_cache_files() -> list[bytes]:
    """A cache with a few times in it."""
    path = SCRATCH / "seed.sqlite"
    cache = TimingCache(path)
    cache.put([("a", 0.5), ("c", 1.0)])
    cache.close()
    return [path.read_bytes()]


def calibration_cache_files() -> list[bytes]:
    """Caches of no tensor, of one, and of several with odd names; one with means of channels."""
    tensors = {"x": (-1.5, 2.25), 'a "b"\n\u00e9': (0.0, 6.0), "tiny": (-1e-38, 0.0)}
    means = {"tiny": (0.5, -1.25e-7)}
    return [
        calibration_cache.encode(
            Ranges(dict(islice(tensors.items(), count)), "0" * 16, "mse", means=means)
        )
        for count in range(4)
    ]


def _graphdef(data: bytes) -> Any:
    from tensorflow.core.framework.graph_pb2 import GraphDef

    return GraphDef.FromString(data)


def _onnx(data: bytes) -> Any:
    import onnx

    return onnx.ModelProto.FromString(data)


LOADERS: dict[str, tuple[Callable[[bytes], None], Callable[[], list[bytes]], Any]] = {
    "onnx": (read_onnx, onnx_files, mutate_message(_onnx)),
    "graphdef": (read_graphdef, graphdef_files, mutate_message(_graphdef)),
    "plan": (read_plan, plan_files, mutate_plan),
    "timing-cache": (read_timing_cache, timing_cache_files, None),
    "calibration-cache": (read_calibration_cache, calibration_cache_files, None),
}


def main() -> None:
    """Fills the corpus and fuzzes until libFuzzer's limits say stop."""
    read, seeds, mutate = LOADERS[sys.argv[1]]
    corpus = Path(sys.argv[2])
    corpus.mkdir(parents=True, exist_ok=True)
    for data in seeds():
        (corpus / hashlib.sha1(data).hexdigest()).write_bytes(data)
    logging.getLogger("planish").setLevel(logging.CRITICAL)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

    def one(data: bytes) -> None:
        try:
            read(data)
        except PlanishError as error:
            check(error, data)

    options = ["-timeout=20", "-rss_limit_mb=3072", f"-max_len={LONGEST}", "-len_control=0"]
    arguments = [sys.argv[0], str(corpus), *options, *sys.argv[3:]]
    atheris.Setup(arguments, one, **({"custom_mutator": mutate} if mutate else {}))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
