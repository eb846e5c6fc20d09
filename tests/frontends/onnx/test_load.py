"""Reading model files: what is damaged or hostile is refused, and nothing outside is read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from helpers.onnx_graph import compare, model, node
from planish.errors import InputError, ModelError, PlanishError, UnsupportedOpError
from planish.frontends.onnx import convert, import_model, load_model

W = np.arange(12, dtype=np.float32).reshape(3, 4)


def proto(weights: TensorProto | None = None) -> onnx.ModelProto:
    result = model([node("MatMul", "x w", "y")], {"x": (np.float32, ["N", 3])}, ["y"])
    result.graph.initializer.append(weights or numpy_helper.from_array(W, "w"))
    return result


def external(location: str, **fields: int | str) -> TensorProto:
    """A tensor of W's type whose data is in a file."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=W.shape)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **fields}.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def saved(folder: Path, tensor: TensorProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(proto(tensor).SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "w.bin").write_bytes(b"pad!" + W.tobytes())
    (tmp_path / "secret.bin").write_bytes(W.tobytes())
    return tmp_path / "models"


def weights_of(path: Path) -> np.ndarray:
    graph = import_model(path)
    return graph.nodes[0].inputs[1].data


# ---- what works -----------------------------------------------------------------------------


def test_sources() -> None:
    data = proto().SerializeToString()
    assert load_model(data) == load_model(proto()) == proto()
    assert len(import_model(data).nodes) == 1


@pytest.mark.parametrize("kind", [str, Path])
def test_paths(folder: Path, kind: type) -> None:
    path = saved(folder, numpy_helper.from_array(W, "w"))
    assert load_model(kind(path)) == proto()


def test_external_data(folder: Path) -> None:
    path = saved(folder, external("w.bin", offset=4, length=48))
    np.testing.assert_array_equal(weights_of(path), W)
    loaded = load_model(path)
    np.testing.assert_array_equal(numpy_helper.to_array(loaded.graph.initializer[0]), W)
    compare(loaded, {"x": np.ones((2, 3), np.float32)})


def test_external_data_of_other_types(folder: Path) -> None:
    for dtype in (np.int64, np.float16, np.bool_, np.uint8):
        array = (W % 2).astype(dtype)
        tensor = external("w.bin", offset=4, length=array.nbytes)
        tensor.data_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        (folder / "w.bin").write_bytes(b"pad!" + array.tobytes())
        (loaded,) = load_model(saved(folder, tensor)).graph.initializer
        np.testing.assert_array_equal(numpy_helper.to_array(loaded), array)


def test_models_saved_by_onnx_itself(folder: Path) -> None:
    path = folder / "other.onnx"
    onnx.save_model(
        proto(), path, save_as_external_data=True, location="other.data", size_threshold=0
    )
    np.testing.assert_array_equal(weights_of(path), W)


def test_links_inside_the_folder_are_followed(folder: Path) -> None:
    (folder / "blobs").mkdir()
    (folder / "w.bin").rename(folder / "blobs" / "w.bin")
    (folder / "link.bin").symlink_to(Path("blobs") / "w.bin")
    np.testing.assert_array_equal(weights_of(saved(folder, external("link.bin", offset=4))), W)


# ---- containment ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "location",
    [
        "../secret.bin",
        "sub/../../secret.bin",
        "{tmp}/secret.bin",
        "..\\secret.bin",
        "C:\\w",
        "",
        ".",
    ],
)
def test_paths_that_lead_outside_are_refused(folder: Path, location: str) -> None:
    path = saved(folder, external(location.format(tmp=folder.parent)))
    with pytest.raises(ModelError, match=r"outside the model's folder"):
        import_model(path)


def test_symbolic_links_that_lead_outside_are_refused(folder: Path) -> None:
    (folder / "link.bin").symlink_to(folder.parent / "secret.bin")
    (folder / "dir").symlink_to(folder.parent)
    for location in ("link.bin", "dir/secret.bin"):
        with pytest.raises(ModelError, match="outside"):
            import_model(saved(folder, external(location)))


def test_hard_links_are_refused(folder: Path) -> None:
    os.link(folder.parent / "secret.bin", folder / "hard.bin")
    with pytest.raises(ModelError, match="hard links"):
        import_model(saved(folder, external("hard.bin")))


def test_special_files_are_refused(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    with pytest.raises(ModelError, match="not a regular file"):
        import_model(saved(folder, external("pipe")))


@pytest.mark.parametrize(
    "fields",
    [
        {"offset": 8},
        {"offset": -4},
        {"offset": 2**62},
        {"offset": 4, "length": 44},
        {"offset": 4, "length": -48},
        {"length": "lots"},
        {"offset": "4.0"},
    ],
)
def test_wrong_offsets_and_lengths_are_refused(folder: Path, fields: dict) -> None:
    with pytest.raises(ModelError, match="xternal data"):
        import_model(saved(folder, external("w.bin", **fields)))


def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(ModelError, match="cannot be opened") as caught:
        import_model(saved(folder, external("gone.bin")))
    assert "gone.bin" in caught.value.where


def test_huge_promises_do_not_allocate(folder: Path) -> None:
    tensor = external("w.bin")
    tensor.dims[:] = [2**40, 2**20]
    with pytest.raises(ModelError, match="ends too early"):
        import_model(saved(folder, tensor))


def test_without_a_folder_external_data_cannot_be_read(folder: Path) -> None:
    hidden = proto(external("w.bin", offset=4))
    for source in (hidden, hidden.SerializeToString()):
        with pytest.raises(ModelError, match="folder is not known"):
            import_model(source)


# ---- damage ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty"),
        (b"\x80\x05 certainly no model \xff\xff", "not an ONNX model"),
        (b"\x08\x07", "not an ONNX model"),
        (proto().SerializeToString()[:-9], "not an ONNX model"),
    ],
)
def test_what_is_not_a_model_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(data)
    for source in (path, data):
        with pytest.raises(ModelError, match=message) as caught:
            load_model(source)
        assert caught.value.where


def test_every_cut_is_refused_or_harmless() -> None:
    whole = proto().SerializeToString()
    for end in range(0, len(whole), 3):
        try:
            import_model(whole[:end])
        except PlanishError:
            continue


def test_every_changed_byte_is_refused_or_harmless() -> None:
    whole = proto().SerializeToString()
    for place in range(0, len(whole), 2):
        changed = bytearray(whole)
        changed[place] ^= 0x55
        try:
            import_model(bytes(changed))
        except PlanishError:
            continue


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read") as caught:
        load_model(tmp_path / "none.onnx")
    assert "none.onnx" in caught.value.where
    with pytest.raises(ModelError):
        load_model(tmp_path)


def test_other_kinds_are_refused() -> None:
    with pytest.raises(InputError):
        load_model(7)


@pytest.mark.parametrize(
    "tensor",
    [
        TensorProto(name="w", data_type=1, dims=[3, 4], raw_data=W.tobytes()[:-4]),
        TensorProto(name="w", data_type=1, dims=[3, 5], raw_data=W.tobytes()),
        TensorProto(name="w", data_type=1, dims=[3, -4], raw_data=W.tobytes()),
        TensorProto(name="w", data_type=1, dims=[2**40, 2**40], raw_data=W.tobytes()),
        TensorProto(name="w", data_type=1, dims=[3, 4], float_data=[1.0]),
        TensorProto(name="w", data_type=1, dims=[3, 4]),
        TensorProto(name="w", data_type=99, dims=[3, 4], raw_data=W.tobytes()),
    ],
)
def test_damaged_tensors_are_refused(tensor: TensorProto) -> None:
    with pytest.raises(ModelError) as caught:
        import_model(proto(tensor))
    assert "'w'" in caught.value.where


def test_tensors_of_strings_are_refused() -> None:
    with pytest.raises(UnsupportedOpError, match="strings"):
        import_model(proto(helper.make_tensor("w", TensorProto.STRING, [1], [b"a"])))


@pytest.mark.parametrize(
    ("dims", "indices"), [([2**40], [0, 1]), ([4], [0, 4]), ([4], [-1, 0]), ([4], [0])]
)
def test_damaged_sparse_tensors_are_refused(dims: list[int], indices: list[int]) -> None:
    broken = model([node("Add", "x s", "y")], {"x": (np.float32, [4])}, ["y"])
    sparse = onnx.SparseTensorProto(dims=dims)
    sparse.values.CopyFrom(helper.make_tensor("s", 1, [2], [1.0, 2.0]))
    sparse.indices.CopyFrom(helper.make_tensor("", 7, [len(indices)], indices))
    broken.graph.sparse_initializer.append(sparse)
    with pytest.raises(ModelError, match="parse tensor"):
        import_model(broken)


def test_small_integers_are_widened() -> None:
    tensor = helper.make_tensor("w", TensorProto.INT4, [3, 4], list(range(-6, 6)))
    small = model(
        [node("Cast", "w", "f", to=1), node("MatMul", "x f", "y")],
        {"x": (np.float32, [2, 3])},
        ["y"],
    )
    small.graph.initializer.append(tensor)
    expected = np.ones((2, 3), np.float32) @ np.arange(-6, 6, dtype=np.float32).reshape(3, 4)
    compare(small, {"x": np.ones((2, 3), np.float32)}, expected=[expected])


def test_short_descriptions_of_huge_tensors_take_no_memory() -> None:
    sizes = {"n": np.array([2**21, 2**20]), "zero": np.int64(0), "one": np.int64(1)}
    sizes["far"] = np.int64(2**41)
    nodes = [node("ConstantOfShape", "n", "y"), node("Range", "zero far one", "z")]
    graph = import_model(model(nodes, {"x": (np.float32, [1])}, ["y", "z"], sizes))
    assert [v.type.elements for v in graph.outputs] == [2**41, 2**41]


@pytest.mark.slow
def test_models_beyond_two_gigabytes(tmp_path: Path) -> None:
    rows = 2**29 // 1024 + 1
    with open(tmp_path / "big.bin", "wb") as file:
        file.truncate(rows * 1024 * 4)  # a sparse file: it takes no room
    tensor = external("big.bin")
    tensor.dims[:] = [rows, 1024]
    nodes = [node("Gather", "w i", "y")]
    big = model(nodes, {"i": (np.int64, [2])}, ["y"])
    big.graph.initializer.append(tensor)
    path = tmp_path / "big.onnx"
    path.write_bytes(big.SerializeToString())
    graph = import_model(path)
    assert graph.nodes[0].inputs[0].data.nbytes > 2**31


def test_a_second_import_reads_no_weight_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of positions fits only up to its length, which a first import finds out."""
    table = np.arange(24, dtype=np.float32).reshape(8, 3)
    constants = {"table": table, "zero": np.array([0]), "first": np.array([0])}
    nodes = [
        node("Shape", "x", "shape"),
        node("Gather", "shape first", "length"),
        node("Slice", "table zero length first", "rows"),
        node("Add", "x rows", "y"),
    ]
    positions = model(nodes, {"x": (np.float32, ["L", 3])}, ["y"], constants)
    read: list[str] = []
    original = convert.tensor_array

    def counted(tensor: TensorProto, folder: Path | None) -> np.ndarray:
        read.append(tensor.name)
        return original(tensor, folder)

    monkeypatch.setattr(convert, "tensor_array", counted)
    graph = import_model(positions)
    assert graph.ranges["L"].max == 8
    assert sorted(read) == ["first", "table", "zero"]


# ---- what fuzzing found ---------------------------------------------------------------------


@pytest.mark.parametrize("version", [-(2**63), -1, 2**31, 2**63 - 1])
def test_impossible_operator_sets(version: int) -> None:
    damaged = proto()
    damaged.opset_import[0].version = version
    with pytest.raises(ModelError, match=rf"no operator set 'ai.onnx' of version {version}"):
        import_model(damaged.SerializeToString())
    good = proto()
    function = good.functions.add(domain="own", name="F")
    function.opset_import.add(domain="", version=version)
    with pytest.raises(ModelError, match=f"of version {version}"):
        import_model(good.SerializeToString())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"MatMul", b"Mat\xfaul"),  # an operator's type
        (b"first_node", b"first\xa0node"),
        (b"the_size", b"the\xa0size"),
        (b"the_attribute", b"the\xa0attribute"),
    ],
)
def test_names_that_are_no_text(old: bytes, new: bytes) -> None:
    whole = model(
        [node("MatMul", "x w", "y", name="first_node", the_attribute=1)],
        {"x": (np.float32, ["the_size", 3])},
        ["y"],
    )
    whole.graph.initializer.append(numpy_helper.from_array(W, "w"))
    data = whole.SerializeToString()
    assert old in data
    with pytest.raises(ModelError, match="damaged") as caught:
        import_model(data.replace(old, new))
    assert "is not UTF-8 text" in caught.value.why


def test_nodes_without_their_subgraph() -> None:
    for kind, inputs, missing in (
        ("If", "b", "else_branch"),
        ("Loop", "i b x", "body"),
        ("Scan", "x", "body"),
    ):
        damaged = model(
            [node(kind, inputs, "y")],
            {
                "x": (np.float32, [2, 3]),
                "b": (np.bool_, []),
                "i": (np.int64, []),
            },
            ["y"],
        )
        with pytest.raises(ModelError, match="malformed") as caught:
            import_model(damaged)
        assert "lacks the graph" in caught.value.why, missing


def test_more_outputs_than_the_function_has() -> None:
    damaged = model([node("Softplus", "x", "y z")], {"x": (np.float32, [3])}, ["z"])
    damaged.graph.node[0].domain = "own"
    function = damaged.functions.add(domain="own", name="Softplus", input=["a"], output=["b"])
    function.node.append(helper.make_node("Relu", ["a"], ["b"]))
    function.opset_import.add(domain="", version=17)
    damaged.opset_import.add(domain="own", version=1)
    with pytest.raises(ModelError, match="malformed") as caught:
        import_model(damaged)
    assert "2 outputs" in caught.value.why


def test_attributes_of_no_type() -> None:
    shown = {"x": (np.float32, [2, 3])}
    damaged = model([node("Einsum", "x", "y", equation="ij->ji")], shown, ["y"])
    attribute = damaged.graph.node[0].attribute[0]
    attribute.Clear()
    attribute.name = "equation"
    with pytest.raises(ModelError, match="malformed"):
        import_model(damaged)
