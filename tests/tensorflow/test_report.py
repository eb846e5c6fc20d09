"""Summary, report, pictures, TensorBoard and the function behind the command."""

from __future__ import annotations

import csv

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import planish  # noqa: E402
import planish.tensorflow  # noqa: E402
from planish.tensorflow import report  # noqa: E402
from planish.tensorflow import trt_convert as trt  # noqa: E402

IMAGE = tf.TensorSpec([None, 32, 32, 3], name="image")


@pytest.fixture
def folder(layers, save):
    def serve(image):
        x = tf.nn.relu(layers.conv(image, 8))
        text = tf.strings.as_string(x)
        return {"y": layers.conv(tf.strings.to_number(text), 4), "text": text}

    return save(serve, IMAGE)[0]


def test_summary(folder):
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    converter.convert()
    lines: list[str] = []
    converter.summary(print_fn=lambda line="": lines.append(line))
    heads = lines[0].split()
    assert heads[:3] == ["PlanishEngine", "Name", "Device"]
    assert lines[1] == "=" * 160
    rows = [line for line in lines if line.startswith("PlanishEngine_")]
    assert [r.split()[:2] for r in rows] == [
        ["PlanishEngine_000", "CPU:0"],
        ["PlanishEngine_001", "CPU:0"],
    ]
    assert "[-1, 32, 32, 3]" in rows[0]
    assert all(len(line) <= 160 for line in rows)
    assert "\t- Conv2D: 1x" in lines
    assert "\t- Const: 2x" in lines
    assert any("Total number of Planish engines: 2" in line for line in lines)
    assert any("% of OPs Converted: " in line for line in lines)
    short: list[str] = []
    converter.summary(200, detailed=False, print_fn=lambda line="": short.append(line))
    assert "\t- Conv2D: 1x" not in short
    with pytest.raises(ValueError, match="line_length"):
        converter.summary(line_length=100)


def test_reports_as_csv_and_picture_and_plans(folder, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("TF_TRT_SHOW_DETAILED_REPORT", str(tmp_path / "report.csv"))
    monkeypatch.setenv("TF_TRT_EXPORT_GRAPH_VIZ_PATH", str(tmp_path / "graph.dot"))
    monkeypatch.setenv("TF_TRT_EXPORT_TRT_ENGINES_PATH", str(tmp_path / "plans"))
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    with caplog.at_level("INFO", "planish"):
        converter.convert()
    assert "became 2 engine(s)" in caplog.text
    with open(tmp_path / "report.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["op"] for row in rows} >= {"AsString", "StringToNumber"}
    dot = (tmp_path / "graph.dot").read_text()
    assert dot.startswith("digraph {")
    assert '"PlanishEngine_000" [label="PlanishEngine_000\\nPlanishEngine"' in dot
    assert '"PlanishEngine_000" ->' in dot
    plans = sorted((tmp_path / "plans").iterdir())
    assert len(plans) == 2
    engine = planish.load(plans[0])
    assert engine(np.zeros((1, 32, 32, 3), np.float32)).shape == (1, 32, 32, 8)


def test_what_splits_the_graph(folder):
    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    converter.convert()
    splits = [op for _, op in report.splitting_nodes(converter.converted)]
    assert splits == ["AsString", "StringToNumber"]


def test_graphs_for_tensorboard(folder, tmp_path):
    from tensorflow.core.framework.graph_pb2 import GraphDef

    converter = trt.TrtGraphConverterV2(input_saved_model_dir=folder)
    with pytest.raises(RuntimeError):
        planish.tensorflow.write_graphs(tmp_path / "logs", converter)
    converter.convert()
    ops = {}
    for path in planish.tensorflow.write_graphs(tmp_path / "logs", converter):
        (file,) = path.iterdir()
        (graph,) = (
            GraphDef.FromString(event.graph_def)
            for event in tf.compat.v1.train.summary_iterator(str(file))
            if event.graph_def
        )
        ops[path.name] = [n.op for n in graph.node]
    assert ops["before"].count("Conv2D") == 2
    assert ops["after"].count("PlanishEngine") == 2


@pytest.mark.parametrize("old", [False, True])
def test_the_function_behind_the_command(folder, tmp_path, old):
    lines: list[str] = []
    told = planish.tensorflow.convert_saved_model(
        folder,
        tmp_path / "converted",
        convert_tf1_model=old,
        tensorboard=tmp_path / "logs",
        print_fn=lambda line="": lines.append(line),
        input_fn=lambda: [np.zeros((2, 32, 32, 3), np.float32)],
    )
    assert sorted(told["engines"]) == ["PlanishEngine_000", "PlanishEngine_001"]
    assert told["converted"] == sum(told["engines"].values())
    assert "AsString" in told["report"]
    assert (tmp_path / "logs" / "after").is_dir()
    assert bool(lines) != old
    loaded = tf.saved_model.load(str(tmp_path / "converted"))
    results = loaded.signatures["serving_default"](image=tf.zeros([1, 32, 32, 3]))
    assert results["y"].shape == (1, 32, 32, 4)
