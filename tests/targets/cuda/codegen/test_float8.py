"""Codes of FP8 made and read on GPUs: every code, every number between two, what is no number."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("triton", reason="needs Triton: pip install 'planish[cuda]'")

from helpers.interpreted import assembly, check_interpreted
from planish.fusion.task import Task, make_task
from planish.graph.graph import Graph
from planish.graph.types import DType, TensorType
from planish.ops import DecodeFloat8, EncodeFloat8, Gelu
from planish.targets.base import Binding
from planish.targets.cuda.kernels.pointwise import FAMILIES

(FAMILY,) = FAMILIES
F32, I8 = DType.FLOAT32, DType.INT8


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(8)


def halves() -> np.ndarray:
    """All halves, which hold every code's number and every one half-way between two."""
    return np.arange(1 << 16).astype(np.uint16).view(np.float16).astype(np.float32)


def task(op, dtype: DType, shape, scale: float | np.ndarray, *before) -> Task:
    graph = Graph()
    value = graph.input("x", TensorType(shape, dtype))
    for step in before:
        value = graph.add(step, value)
    graph.mark_output(graph.add(op, value, graph.constant(np.asarray(scale, np.float32))), "y")
    return make_task(graph.nodes)


@pytest.mark.parametrize("scale", [1.0, 0.125, 4.0, 0.3, 2.0**-40])
def test_numbers_become_codes(scale, rng) -> None:
    x = halves().reshape(256, 256)
    x = x * np.float32(1 - 2.0**-23) if scale == 4 else x
    check_interpreted(FAMILY, task(EncodeFloat8(), F32, x.shape, scale), rng, arrays=[x])


def test_scales_of_channels(rng) -> None:
    x, scales = halves().reshape(-1, 8), rng.uniform(0.1, 3, 8).astype(np.float32)
    made = task(EncodeFloat8(), F32, x.shape, scales)
    check_interpreted(FAMILY, made, rng, arrays=[x, scales])


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_codes_become_numbers(scale, rng) -> None:
    codes = np.arange(256).astype(np.uint8).view(np.int8).reshape(16, 16)
    check_interpreted(FAMILY, task(DecodeFloat8(), I8, codes.shape, scale), rng, arrays=[codes])


def test_hopper_has_instructions() -> None:
    """Two at once; GELU before codes takes no more operations than before levels."""
    made = task(EncodeFloat8(), F32, (64, 64), 0.5, Gelu())
    text = assembly(next(iter(FAMILY.tactics(made, Binding({})))), Binding({}))
    assert "cvt.rn.satfinite.e4m3x2.f32" in text
    read = task(DecodeFloat8(), I8, (64, 64), 0.5)
    text = assembly(next(iter(FAMILY.tactics(read, Binding({})))), Binding({}))
    assert "e4m3x2" in text


def test_gelu_before_codes(rng) -> None:
    """Near enough: few are the next code."""
    x = (rng.standard_normal((64, 64)) * 3).astype(np.float32)
    made = task(EncodeFloat8(), F32, x.shape, 2.0**-4, Gelu())
    (want,) = made.evaluate([x, made.inputs[-1].data] if len(made.inputs) > 1 else [x])
    from planish.targets.cuda.run import run_tactic

    (have,) = run_tactic(next(iter(FAMILY.tactics(made, Binding({})))), Binding({}), [x])
    assert np.mean(have != want) < 2e-3
    assert np.abs(have.astype(int) - want).max() <= 1
