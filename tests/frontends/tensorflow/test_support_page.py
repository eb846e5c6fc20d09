"""docs/tensorflow-support.md says what the converters do."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytest.importorskip("tensorflow", reason="needs TensorFlow")

SCRIPT = Path(__file__).parents[3] / "docs" / "make_tensorflow_support.py"


@pytest.fixture(scope="module")
def make():
    spec = importlib.util.spec_from_file_location("make_tensorflow_support", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def test_the_page_is_up_to_date(make):
    page = make.PAGE.read_text()
    assert make.comparable(page) == make.comparable(make.render()), (
        "run python docs/make_tensorflow_support.py"
    )


def test_every_converter_is_on_it(make):
    from planish.frontends.tensorflow.context import CONVERTERS

    page = make.render()
    missing = [op for op in CONVERTERS if f"| {op} |" not in page]
    assert not missing


def test_what_it_reads_from_the_converters(make):
    page = make.render()
    assert "| GatherV2 | all | axis |  |" in page
    assert "| Tile | all | multiples (or of shapes) |  |" in page
    assert "| While | which ops run depends on the values of tensors |" in page
    assert "| LogicalAnd | bool |  |  |" in page
