"""What stays in TensorFlow around engines: equal results in a fresh process, and told by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="needs TensorFlow")

from planish.tensorflow import report  # noqa: E402
from planish.tensorflow import trt_convert as trt  # noqa: E402

WIDTH = 192
FLOATS = tf.TensorSpec([None, WIDTH], name="x")
WORDS = tf.TensorSpec([None], tf.string, name="words")


class Net(tf.Module):
    """Weights, and the resources that a case needs."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.weights = [
            tf.Variable(rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 14)
            for _ in range(3)
        ]
        self.count = tf.Variable(np.zeros(WIDTH, np.float32))
        self.words = tf.lookup.StaticHashTable(
            tf.lookup.KeyValueTensorInitializer(["1", "2"], tf.constant([1.0, 2.0])), 0.5
        )

    def dense(self, x: Any, index: int = 0) -> Any:
        y = tf.nn.relu(tf.matmul(x, self.weights[index])) + x
        return tf.tanh(tf.matmul(y, self.weights[index])) * 2.0 + x


def in_while(net: Net, x: Any) -> Any:
    def body(i: Any, y: Any) -> Any:
        return i + 1, tf.tanh(tf.matmul(y, net.weights[1])) + y

    steps = tf.cast(tf.reduce_sum(tf.abs(x[0, :2])), tf.int32) % 3 + 2
    y = tf.while_loop(lambda i, y: i < steps, body, [0, net.dense(x)])[1]
    return net.dense(y, 2)


def in_if(net: Net, x: Any) -> Any:
    y = net.dense(x)

    def yes() -> Any:
        return tf.matmul(y, net.weights[1])

    y = tf.cond(tf.reduce_sum(x) > 0, yes, lambda: y * 2.0)
    return net.dense(y, 2)


def in_switch(net: Net, x: Any) -> Any:
    y = net.dense(x)
    branches = [lambda: y, lambda: tf.matmul(y, net.weights[1]), lambda: -y]
    y = tf.switch_case(tf.cast(tf.reduce_sum(x), tf.int32) % 3, branches)
    return net.dense(y, 2)


def written_variable(net: Net, x: Any) -> Any:
    net.count.assign_add(tf.reduce_sum(x, axis=0))
    return net.dense(net.dense(x) + net.count, 2)


def table(net: Net, x: Any, words: Any) -> Any:
    y = net.dense(x) * net.words.lookup(words)[:, tf.newaxis]
    return net.dense(y, 2)


def strings(net: Net, x: Any, words: Any) -> Any:
    numbers = tf.strings.to_number(tf.strings.regex_replace(words, "[12]", "7"))
    return net.dense(net.dense(x) * numbers[:, tf.newaxis], 2)


def tensor_array(net: Net, x: Any) -> Any:
    y = net.dense(x)
    array = tf.TensorArray(tf.float32, size=3, element_shape=[None, WIDTH])
    for i in range(3):
        array = array.write(i, y * float(i))
    return net.dense(tf.reduce_sum(array.stack(), axis=0), 2)


def map_rows(net: Net, x: Any) -> Any:
    y = tf.map_fn(lambda row: row / (1.0 + tf.reduce_max(tf.abs(row))), net.dense(x))
    return net.dense(y, 2)


def asserted(net: Net, x: Any) -> Any:
    y = net.dense(x)
    tf.debugging.assert_less(tf.reduce_max(y), 1e9, message="too large")
    return net.dense(y, 2)


def custom_op(net: Net, x: Any) -> Any:
    y = tf.nn.ctc_greedy_decoder(tf.reshape(net.dense(x), [-1, 1, WIDTH]), [tf.shape(x)[0]])
    return net.dense(x + tf.cast(tf.size(y[0][0].values), tf.float32), 2)


@dataclass(frozen=True)
class Case:
    """A model, and what must stay in TensorFlow: each op with a part of the reason."""

    build: Callable[..., Any]
    ops: dict[str, str]
    words: bool = False
    engines: int = 2


RESOURCE, STRING, VARIANT = "type resource", "type string", "type variant"
FLOW = "depends on the values of tensors"

CASES = {
    "while": Case(in_while, {"While": FLOW}),
    "if": Case(in_if, {"If": FLOW}),
    "case": Case(in_switch, {"Case": FLOW}),
    "written_variable": Case(
        written_variable,
        {"AssignAddVariableOp": "may change", "ReadVariableOp": "may change"},
        engines=1,
    ),
    "table": Case(table, {"LookupTableFindV2": RESOURCE}, words=True, engines=1),
    "strings": Case(
        strings, {"StaticRegexReplace": STRING, "StringToNumber": STRING}, words=True, engines=1
    ),
    "tensor_array": Case(tensor_array, {"TensorListSetItem": VARIANT, "TensorListStack": VARIANT}),
    "map": Case(
        map_rows,
        {"StatelessWhile": FLOW, "TensorListFromTensor": VARIANT, "TensorListStack": VARIANT},
    ),
    "assert": Case(asserted, {"If": FLOW}, engines=1),
    "custom": Case(custom_op, {"CTCGreedyDecoder": "this version does not know"}),
}


@dataclass
class Outcome:
    """A converted model, and the results of three calls before and after."""

    converter: Any
    expected: list[np.ndarray]
    here: list[np.ndarray]
    elsewhere: list[np.ndarray]


FRESH = """
import sys
from pathlib import Path
import numpy as np
import tensorflow as tf
import planish.tensorflow

root = Path(sys.argv[1])
given = np.load(root / "given.npz")
found = {}
for folder in sorted(root.glob("*/converted")):
    function = tf.saved_model.load(str(folder)).signatures["serving_default"]
    for i in range(3):
        values = {n: tf.constant(given[f"{n}_{i}"]) for n in function._arg_keywords}
        values = {n: tf.strings.as_string(v) if n == "words" else v for n, v in values.items()}
        found[f"{folder.parent.name}_{i}"] = function(**values)["y"]
np.savez(root / "found.npz", **found)
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    root = tmp_path_factory.mktemp("native")
    rng = np.random.default_rng(20240607)
    given = {f"x_{i}": rng.standard_normal((3 + i, WIDTH)).astype(np.float32) for i in range(3)}
    given |= {f"words_{i}": rng.integers(0, 4, 3 + i) for i in range(3)}
    np.savez(root / "given.npz", **given)
    outcomes = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PLANISH_TUNING_SECONDS", "0")
        for name, case in CASES.items():
            outcomes[name] = _convert(case, root / name, given)
    command = [sys.executable, "-c", FRESH, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    with np.load(root / "found.npz") as found:
        for name, outcome in outcomes.items():
            outcome.elsewhere = [found[f"{name}_{i}"] for i in range(3)]
    return outcomes


def _convert(case: Case, folder: Path, given: dict[str, np.ndarray]) -> Outcome:
    net = Net(np.random.default_rng(3))
    specs = [FLOATS, WORDS] if case.words else [FLOATS]

    def serve(*arguments: Any) -> dict[str, Any]:
        return {"y": case.build(net, *arguments)}

    net.serve = tf.function(serve, input_signature=specs, autograph=False)
    tf.saved_model.save(net, str(folder / "model"), signatures=net.serve)
    before = tf.saved_model.load(str(folder / "model")).signatures["serving_default"]
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=str(folder / "model"))
    after = converter.convert()
    converter.save(str(folder / "converted"))
    results: list[list[np.ndarray]] = [[], []]
    for i in range(3):
        arguments = {"x": tf.constant(given[f"x_{i}"])}
        if case.words:
            arguments["words"] = tf.strings.as_string(tf.constant(given[f"words_{i}"]))
        for found, function in zip(results, (before, after), strict=True):
            found.append(function(**arguments)["y"].numpy())
    return Outcome(converter, *results, [])


@pytest.mark.parametrize("name", CASES)
def test_results_are_equal_here_and_in_a_fresh_process(outcomes, close, name):
    outcome = outcomes[name]
    assert len(outcome.converter.converted.engines) == CASES[name].engines
    for expected, here, elsewhere in zip(
        outcome.expected, outcome.here, outcome.elsewhere, strict=True
    ):
        close(here, expected)
        close(elsewhere, expected)


@pytest.mark.parametrize("name", CASES)
def test_the_report_names_what_stays_and_why(outcomes, name):
    converted = outcomes[name].converter.converted
    nodes = report.native_nodes(converted)
    small = ("too little work", "minimum_segment_size")
    told = {op: why for _, op, why in nodes if not any(words in why for words in small)}
    told.pop("Identity", None)
    for op, reason in CASES[name].ops.items():
        assert reason in told[op]
        assert op in report.text(converted)
    allowed = set(CASES[name].ops) | {"TensorListReserve"}
    assert set(told) <= allowed, told


def test_a_written_variable_keeps_counting(outcomes):
    """Three calls give three results; the second would equal the first if it were a constant."""
    outcome = outcomes["written_variable"]
    function = outcome.converter._function
    x = tf.ones([2, WIDTH])
    first, second = function(x=x)["y"].numpy(), function(x=x)["y"].numpy()
    assert np.abs(first - second).max() > 1e-3


def test_large_weights_of_native_ops_are_variables_of_the_saved_model(save, rng, close, tmp_path):
    """An embedding that only TensorFlow reads is in the checkpoint, not in the graph."""
    table = rng.standard_normal((3000, 100)).astype(np.float32)
    net = tf.Module()
    net.table = tf.Variable(table)

    def serve(words):
        ids = tf.strings.to_hash_bucket_fast(words, 3000)
        sparse = tf.sparse.from_dense(ids[:, None] + 1)
        sparse = tf.SparseTensor(sparse.indices, ids, sparse.dense_shape)
        return {"y": tf.nn.embedding_lookup_sparse(net.table, sparse, None, combiner="sum")}

    folder, native = save(serve, WORDS, resources=[net])
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    function = converter.convert()
    assert function.graph.as_graph_def().ByteSize() < 50_000
    converter.save(str(tmp_path / "converted"))
    assert (tmp_path / "converted" / "saved_model.pb").stat().st_size < 200_000
    again = tf.saved_model.load(str(tmp_path / "converted")).signatures["serving_default"]
    words = tf.constant(["a", "b", "c"])
    for found in (function, again):
        close(found(words=words)["y"], native(words=words)["y"])


def test_loops_of_tensorflow_1_that_read_variables(rng, close, tmp_path):
    """A GraphDef has nowhere to keep a variable, so that it becomes a constant in the loop."""
    v1 = tf.compat.v1
    values = rng.standard_normal((WIDTH, WIDTH)).astype(np.float32) / 14
    x = rng.standard_normal((4, WIDTH)).astype(np.float32)

    def body(i, y):
        return i + 1, tf.tanh(tf.matmul(y, v1.get_variable("inner")))

    for modern in (True, False):
        with v1.Session(graph=tf.Graph()) as session:
            (v1.enable_control_flow_v2 if modern else v1.disable_control_flow_v2)()
            try:
                given = v1.placeholder("float32", [None, WIDTH], "x")
                with v1.variable_scope("s", use_resource=True, reuse=v1.AUTO_REUSE):
                    v1.get_variable("inner", initializer=values)
                    outer = v1.get_variable("outer", initializer=values.T)
                    y = tf.tanh(tf.matmul(tf.nn.relu(tf.matmul(given, outer)) + given, outer))
                    y = v1.while_loop(lambda i, y: i < 3, body, (0, y))[1]
                y = tf.ensure_shape(y, [None, WIDTH])
                y = tf.identity(tf.tanh(tf.matmul(tf.nn.relu(y), outer)) * 2.0 + y, "y")
            finally:
                v1.enable_control_flow_v2()
            session.run(v1.global_variables_initializer())
            folder = str(tmp_path / f"model_{modern}")
            v1.saved_model.simple_save(session, folder, {"x": given}, {"y": y})
            expected = session.run(y, {given: x})
        graph_def = trt.create_inference_graph(None, None, input_saved_model_dir=folder)
        assert sum(n.op == "PlanishEngine" for n in graph_def.node) >= 1
        with v1.Session(graph=tf.Graph()) as session:
            tf.graph_util.import_graph_def(graph_def, name="")
            close(session.run("y:0", {"x:0": x}), expected)
