from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors

from helpers.networks import Net, build, residual_net
from helpers.plan_bytes import FIRST_LINE, join, split
from planish.errors import PlanError
from planish.graph.dims import symbol
from planish.graph.graph import Graph
from planish.graph.types import DType, TensorType
from planish.ops import Cast, Clip, Pad, Resize, TopK, ew
from planish.plan import file as plan_file
from planish.plan import tensors
from planish.plan.codec import decode_graph, encode_graph
from planish.plan.file import deserialize, read_about, save, serialize
from planish.plan.plan import Plan
from planish.runtime.engine import Engine


@pytest.fixture(scope="module")
def engine() -> Engine:
    return build(residual_net())


@pytest.fixture(scope="module")
def data(engine: Engine) -> bytes:
    return engine.serialize()


class TestFormat:
    def test_first_line_and_header_are_text(self, data: bytes) -> None:
        assert re.fullmatch(rb"planish plan 001 \d{10} [0-9a-f]{64}", data.split(b"\n")[0])
        header, _ = split(data)
        assert header["about"]["device"] == "cpu"
        assert header["graph"]["nodes"][0]["op"] == "conv"
        assert max(map(len, data[: FIRST_LINE + int(data[17:27])].split(b"\n"))) < 2000

    def test_weights_are_safetensors_and_aligned(self, engine: Engine, data: bytes) -> None:
        weights = split(data)[1]
        assert (len(data) - len(weights)) % 64 == 0
        read = {n: t for n, t in safetensors.deserialize(weights) if not n.startswith(".padding.")}
        for value in engine.plan.graph.constants():
            assert value.data is not None
            assert bytes(read[value.name]["data"]) == value.data.tobytes()
        for value in deserialize(data).graph.constants():
            assert value.data is not None
            where = value.data.ctypes.data - np.frombuffer(data, np.uint8).ctypes.data
            assert where % 64 == 0

    def test_equal_plans_are_equal_bytes(self, engine: Engine, data: bytes) -> None:
        assert engine.serialize() == data
        assert build(residual_net()).serialize() == data
        assert build(residual_net(seed=1)).serialize() != data

    def test_equal_constants_are_stored_once(self) -> None:
        graph = Graph()
        x = graph.input("x", TensorType((64,), DType.FLOAT32))
        numbers = np.arange(64, dtype=np.float32)
        y = graph.add(ew.Add(), x, graph.constant(numbers))
        y = graph.add(ew.Mul(), y, graph.constant(numbers.copy()))
        graph.mark_output(graph.add(ew.Sub(), y, graph.constant(numbers[::-1])), "y")
        weights = split(serialize(Plan(graph, ())))[1]
        arrays = tensors.read(memoryview(weights))
        assert len(arrays) == 2
        read = deserialize(serialize(Plan(graph, ()))).graph
        assert len({v.name for v in read.constants()}) == 3

    def test_reading_back_writes_the_same(self, engine: Engine, data: bytes) -> None:
        stored = deserialize(data)
        again = serialize(Plan(stored.graph, engine.plan.steps, stored.about))
        assert again == data
        assert str(stored.graph) == str(engine.plan.graph)
        assert stored.graph.ranges == engine.plan.graph.ranges

    def test_about_is_read_alone(self, data: bytes, tmp_path: Path) -> None:
        path = tmp_path / "m.plan"
        path.write_bytes(data[:-100])  # the weights do not matter
        assert read_about(path)["device"] == "cpu"


class TestTensors:
    @pytest.mark.parametrize("dtype", list(DType))
    def test_every_dtype(self, dtype: DType) -> None:
        random = np.random.default_rng(0)
        array = random.integers(0, 2, (3, 5)).astype(dtype.numpy)
        arrays = {"a": array, "scalar": array[0, 0].reshape(()), "empty": array[:0], "b": array.T}
        blob = b"".join(tensors.pieces(arrays))
        read = tensors.read(memoryview(blob))
        assert list(read) == list(arrays)
        for name, want in arrays.items():
            assert read[name].dtype == want.dtype
            assert read[name].shape == want.shape
            np.testing.assert_array_equal(read[name], want)
            assert not read[name].flags.writeable

    def test_bfloat16_bits(self) -> None:
        array = np.array([1.5, -np.inf, np.nan, 3e38], ml_dtypes.bfloat16)
        read = tensors.read(memoryview(b"".join(tensors.pieces({"x": array}))))["x"]
        assert read.tobytes() == array.tobytes()

    @pytest.mark.parametrize(
        "change",
        [
            {"dtype": "F33"},
            {"dtype": 7},
            {"shape": [1 << 40, 1 << 40]},
            {"shape": [-4]},
            {"shape": [2.0]},
            {"shape": "4"},
            {"data_offsets": [0, 1 << 60]},
            {"data_offsets": [4, 20]},
            {"data_offsets": [0]},
            {"data_offsets": [-16, 0]},
        ],
        ids=str,
    )
    def test_wrong_tables(self, change: dict) -> None:
        entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **change}
        with pytest.raises(PlanError):
            tensors.read(memoryview(self._blob({"x": entry}, bytes(16))))

    def test_bytes_left_over_overlapping_and_missing(self) -> None:
        entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
        for table, body in (({"x": entry}, 20), ({"x": entry, "y": entry}, 16), ({"x": entry}, 8)):
            with pytest.raises(PlanError):
                tensors.read(memoryview(self._blob(table, bytes(body))))

    def test_booleans_are_booleans(self) -> None:
        entry = {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}
        with pytest.raises(PlanError, match="boolean"):
            tensors.read(memoryview(self._blob({"x": entry}, b"\x01\x07")))

    @pytest.mark.parametrize(
        "blob", [b"", b"abc", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x03"]
    )
    def test_no_table(self, blob: bytes) -> None:
        with pytest.raises(PlanError):
            tensors.read(memoryview(blob))

    @staticmethod
    def _blob(table: object, body: bytes) -> bytes:
        head = json.dumps(table).encode()
        return len(head).to_bytes(8, "little") + head + body


class TestGraph:
    def test_every_kind_of_attribute(self) -> None:
        n = symbol("n")
        graph = Graph("all kinds")
        x = graph.input("x", TensorType((n, 4, 6, 3), DType.FLOAT32))
        y = graph.add(Clip(float("-inf"), 6.5), x, origin="user/relu (Relu)")
        y = graph.add(Pad(((0, 0), (1, 1), (0, n), (0, 0)), "constant", 0.1), y)
        y = graph.add(
            Resize((8, n * 2), "linear", "asymmetric", scales=(1.5, 1 / 3)), y, name="naïve ☃"
        )
        node = graph.add_node(TopK(2, axis=-1, index_dtype=DType.INT32), [y])
        graph.mark_output(graph.add(Cast(DType.BFLOAT16), node.outputs[0]), "a")
        graph.mark_output(node.outputs[1], "b")
        text = json.loads(json.dumps(encode_graph(graph, {})))
        read = decode_graph(text, {})
        assert [(m.name, m.op, m.origin) for m in read.nodes] == [
            (m.name, m.op, m.origin) for m in graph.nodes
        ]
        assert [v.type for v in read.values()] == [v.type for v in graph.values()]
        assert read.output_names == ["a", "b"]
        assert encode_graph(read, {}) == encode_graph(graph, {})

    def test_names_that_passes_gave(self) -> None:
        net = Net()
        y = net.relu(net.input(2, 3))
        assert y.producer is not None
        y.producer.name, y.name = "renamed", "x.renamed"
        graph = net.output(y)
        read = decode_graph(encode_graph(graph, {}), {})
        assert read.nodes[0].name == "renamed"
        assert read.outputs[0].name == "x.renamed"

    def test_dimension_that_does_not_read_back(self) -> None:
        net = Net()
        graph = net.output(net.relu(net.input(symbol("a batch"), 3)))
        with pytest.raises(PlanError, match="a batch"):
            encode_graph(graph, {})


def broken(data: bytes) -> dict[str, bytes]:
    """Files whose checksums are right and whose content is not."""
    found = {}

    def change(name: str, edit) -> None:
        header, weights = split(data)
        found[name] = join(edit(header) or header, weights)

    def put(name: str, value: object, *path: object) -> None:
        def edit(header: dict) -> None:
            place = header
            for step in path[:-1]:
                place = place[step]
            if value is ...:
                del place[path[-1]]
            else:
                place[path[-1]] = value

        change(name, edit)

    node = ("graph", "nodes", 0)
    put("no graph", ..., "graph")
    put("no steps", ..., "steps")
    put("no about", ..., "about")
    put("graph is a list", [], "graph")
    put("unknown op", "conv9", *node, "op")
    put("unknown attribute", 1, *node, "attributes", "magic")
    put("missing attribute", ..., *node, "attributes", "strides")
    put("attribute of another type", [1.5, 1], *node, "attributes", "strides")
    put("attribute of another length", [1], *node, "attributes", "strides")
    put("attribute that is a table", {"a": 1}, *node, "attributes", "strides")
    put("zero stride", [0, 0], *node, "attributes", "strides")
    put("deep attribute", {"dim": "N+" * 3000 + "1"}, *node, "attributes", "groups")
    put("other stride", [3, 3], *node, "attributes", "strides")
    put("wrong type", ["f32", "N", 6, 6, 9], *node, "outputs", "conv")
    put("wrong dtype", ["f64", "N", 6, 6, 8], *node, "outputs", "conv")
    put("no such dtype", ["f31", "N", 6, 6, 8], *node, "outputs", "conv")
    put("code for a dimension", ["f32", "__import__('os')"], *node, "outputs", "conv")
    put("two outputs", {"a": ["f32"], "b": ["f32"]}, *node, "outputs")
    put("reads the future", ["relu", "w"], *node, "inputs")
    put("reads a number", [1, 2], *node, "inputs")
    put("two nodes of a name", "conv_1", *node, "name")
    put("constant without data", "nothing", "graph", "constants", "w")
    put("constant of another shape", "w_1", "graph", "constants", "w")
    put("output that is not there", [["y", "nothing"]], "graph", "outputs")
    put("bad range", [3, 2, 1], "graph", "ranges", "N")
    put("bad input type", ["f32", -1], "graph", "inputs", "x")
    put("step of unknown nodes", ["nothing"], "steps", 0, "nodes")
    put("anchor that is not there", "nothing", "steps", 0, "anchor")
    put("anchor that is a list", [], "steps", 0, "anchor")
    put("sizes that are none", {"N": -1}, "steps", 0, "choices", 0, "at")
    put("seconds that are none", "soon", "steps", 0, "choices", 0, "seconds")
    put("family that is none", 3, "steps", 0, "choices", 0, "family")
    change("nothing but null", lambda header: "null")
    header, weights = split(data)
    found["weights cut off"] = join(header, weights[:-64])
    found["no weights"] = join(header, b"")
    deep = '{"about": ' + "[" * 100_000 + "]" * 100_000 + "}"
    text = deep.encode()
    line = f"planish plan 001 {len(text):010} {hashlib.sha256(text).hexdigest()}\n".encode()
    found["deeply nested"] = line + text
    infinite = b'{"about": {"x": Infinity}}'
    line = f"planish plan 001 {len(infinite):010} {hashlib.sha256(infinite).hexdigest()}\n".encode()
    found["infinity"] = line + infinite
    return found


class TestDistrust:
    def test_content_that_is_wrong(self, data: bytes) -> None:
        for name, bad in broken(data).items():
            with pytest.raises(PlanError) as caught:
                deserialize(bad)
            assert caught.value.where, name
            assert caught.value.cure, name

    def test_cut_short_anywhere(self, data: bytes) -> None:
        step = max(len(data) // 97, 1)
        for end in [*range(1, 120), *range(120, len(data), step), len(data) - 1]:
            with pytest.raises(PlanError) as caught:
                deserialize(data[:end])
            assert "the bytes given" in caught.value.where

    def test_any_bit_flipped(self, data: bytes) -> None:
        random = np.random.default_rng(0)
        places = {*range(FIRST_LINE), *random.integers(0, len(data), 200).tolist()}
        for place in places:
            bad = bytearray(data)
            bad[place] ^= 1 << int(random.integers(8))
            with pytest.raises(PlanError):
                deserialize(bad)

    def test_bytes_at_the_end(self, data: bytes) -> None:
        with pytest.raises(PlanError, match="longer"):
            deserialize(data + b"\0")

    @pytest.mark.parametrize("version", [0, 2, 999])
    def test_other_format_version(self, data: bytes, version: int) -> None:
        with pytest.raises(PlanError, match=f"format version {version}") as caught:
            deserialize(join(*split(data), version))
        assert caught.value.cure

    @pytest.mark.parametrize("content", [b"PK\x03\x04zip", b"\x08\x07onnx" * 50, b"p", b"hello\n"])
    def test_other_files(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "other"
        path.write_bytes(content)
        with pytest.raises(PlanError) as caught:
            deserialize(path)
        assert str(path) in caught.value.where

    def test_paths_that_hold_no_file(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        os.mkfifo(tmp_path / "pipe")
        for path in (tmp_path, tmp_path / "nothing", tmp_path / "empty", tmp_path / "pipe", "a\0b"):
            with pytest.raises(PlanError) as caught:
                deserialize(path)
            assert caught.value.where == str(path)
        with pytest.raises(PlanError, match="int"):
            deserialize(3)  # type: ignore[arg-type]

    def test_nothing_is_unpickled(self) -> None:
        code = Path(plan_file.__file__).parent
        for path in code.glob("*.py"):
            assert "pickle." not in path.read_text()
            assert "eval(" not in path.read_text()


class TestSaving:
    def test_file_equals_bytes(self, engine: Engine, data: bytes, tmp_path: Path) -> None:
        engine.save(tmp_path / "m.plan")
        assert (tmp_path / "m.plan").read_bytes() == data
        assert os.listdir(tmp_path) == ["m.plan"]

    def test_a_file_in_use_is_replaced_not_overwritten(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        path = tmp_path / "m.plan"
        engine.save(path)
        stored = deserialize(path)
        before = {v.name: np.array(v.data) for v in stored.graph.constants()}
        build(residual_net(seed=5)).save(path)
        for value in stored.graph.constants():
            np.testing.assert_array_equal(value.data, before[value.name])

    def test_links_are_kept(self, engine: Engine, data: bytes, tmp_path: Path) -> None:
        (tmp_path / "link").symlink_to(tmp_path / "m.plan")
        engine.save(tmp_path / "link")
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "m.plan").read_bytes() == data

    def test_permissions_are_the_users_own(self, engine: Engine, tmp_path: Path) -> None:
        old = os.umask(0o027)
        try:
            engine.save(tmp_path / "m.plan")
        finally:
            os.umask(old)
        assert (tmp_path / "m.plan").stat().st_mode & 0o777 == 0o640

    @pytest.mark.parametrize("call", ["write", "fsync", "replace"])
    def test_full_disk_keeps_the_old_file(
        self, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
    ) -> None:
        path = tmp_path / "m.plan"
        path.write_bytes(b"old")

        def full(*arguments: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        if call == "write":
            pieces = plan_file._pieces

            def some(plan: Plan, code: object):
                yield next(iter(pieces(plan, None)))
                full()

            monkeypatch.setattr(plan_file, "_pieces", some)
        else:
            monkeypatch.setattr(plan_file.os, call, full)
        with pytest.raises(PlanError, match="No space") as caught:
            engine.save(path)
        monkeypatch.undo()
        assert caught.value.where == str(path)
        assert path.read_bytes() == b"old"
        assert os.listdir(tmp_path) == ["m.plan"]

    def test_an_interrupt_leaves_nothing(
        self, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def interrupted(plan: Plan, code: object):
            yield b"planish"
            raise KeyboardInterrupt

        monkeypatch.setattr(plan_file, "_pieces", interrupted)
        with pytest.raises(KeyboardInterrupt):
            engine.save(tmp_path / "m.plan")
        assert os.listdir(tmp_path) == []

    def test_folders_that_cannot_be_written(self, engine: Engine, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for path in (tmp_path, tmp_path / "no" / "m.plan", tmp_path / "file" / "m.plan"):
            with pytest.raises(PlanError, match="cannot be written"):
                engine.save(path)
        assert sorted(os.listdir(tmp_path)) == ["file"]

    def test_really_full_disk(self, tmp_path: Path) -> None:
        """The size of files is limited for a process of its own, as a full disk would."""
        code = """
import resource, signal, sys
from helpers.networks import Net
from planish.errors import PlanError
from planish.plan.file import save
from planish.plan.plan import Plan
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
net = Net()
graph = net.output(net.dense(net.input(1, 500), 500))
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(Plan(graph, ()), sys.argv[1])
except PlanError as error:
    print(error)
"""
        tests, source = Path(__file__).parents[1], Path(plan_file.__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{source}"}
        result = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path / "m.plan")],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert "cannot be written" in result.stdout
        assert os.listdir(tmp_path) == []


def test_save_function(engine: Engine, data: bytes, tmp_path: Path) -> None:
    save(engine.plan, str(tmp_path / "m.plan"))
    assert (tmp_path / "m.plan").read_bytes() == serialize(engine.plan) == data
