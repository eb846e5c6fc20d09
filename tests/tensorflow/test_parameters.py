"""The parameters of TF-TRT: fields, defaults, checks."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

pytest.importorskip("tensorflow")

from planish.errors import PlanishError, PrecisionError
from planish.tensorflow import parameters
from planish.tensorflow import trt_convert as trt


def test_fields_and_defaults():
    assert trt.DEFAULT_TRT_CONVERSION_PARAMS._asdict() == {
        "max_workspace_size_bytes": 1 << 30,
        "precision_mode": "FP32",
        "minimum_segment_size": 3,
        "maximum_cached_engines": 1,
        "use_calibration": True,
        "allow_build_at_runtime": True,
    }
    changed = trt.DEFAULT_TRT_CONVERSION_PARAMS._replace(
        precision_mode="FP16", max_workspace_size_bytes=8_000_000_000
    )
    assert isinstance(changed, trt.TrtConversionParams)
    assert (changed.precision_mode, changed.minimum_segment_size) == ("FP16", 3)


def test_fields_of_older_versions_are_accepted():
    params = trt.TrtConversionParams(is_dynamic_op=True, max_batch_size=8)
    assert params == trt.DEFAULT_TRT_CONVERSION_PARAMS
    assert params._replace(is_dynamic_op=True, rewriter_config_template=None) == params


def test_precision_modes():
    assert trt.TrtPrecisionMode.supported_precision_modes() == [
        "FP32", "FP16", "INT8", "fp32", "fp16", "int8",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"precision_mode": "FP31"}, "precision mode 'FP31'"),
        ({"precision_mode": None}, "precision mode None"),
        ({"minimum_segment_size": 0}, "minimum segment size should be positive or -1"),
        ({"minimum_segment_size": -2}, "minimum segment size should be positive or -1"),
        ({"maximum_cached_engines": 0}, "maximum_cached_engines"),
    ],
)
def test_wrong_values(change, message):
    params = trt.DEFAULT_TRT_CONVERSION_PARAMS._replace(**change)
    with pytest.raises(ValueError, match=message) as caught:
        parameters.check_params(params)
    assert isinstance(caught.value, PlanishError)


def test_a_precision_without_kernels():
    params = trt.DEFAULT_TRT_CONVERSION_PARAMS._replace(precision_mode="fp8")
    parameters.check_params(params)
    with pytest.raises(PrecisionError, match="no kernels"):
        parameters.settle_precision(params, "cpu")


def test_float8_is_not_for_tensorflow(monkeypatch):
    gpu = SimpleNamespace(device="cuda:0", precisions={"fp32", "fp8"})
    monkeypatch.setattr(parameters, "find_target", lambda device: gpu)
    params = trt.DEFAULT_TRT_CONVERSION_PARAMS._replace(precision_mode="FP8")
    with pytest.raises(PrecisionError, match=r"planish\.build has it"):
        parameters.settle_precision(params, "cuda:0")


@pytest.mark.parametrize("mode", ["INT8", "int8"])
def test_int8_with_and_without_calibration(mode):
    params = trt.DEFAULT_TRT_CONVERSION_PARAMS._replace(precision_mode=mode)
    parameters.check_params(params)
    for use in (True, False):
        own = params._replace(use_calibration=use)
        assert parameters.settle_precision(own, "cpu") == {"int8", "fp32"}
        assert parameters.needs_calibration(own) == use


@pytest.mark.usefixtures("without_bf16")
@pytest.mark.parametrize("mode", ["FP16", "bf16"])
def test_permitted_precisions_run_as_fp32_and_say_so(mode, caplog):
    params = trt.DEFAULT_TRT_CONVERSION_PARAMS._replace(precision_mode=mode)
    with caplog.at_level(logging.WARNING, "planish"):
        parameters.settle_precision(params, "cpu")
    assert len(caplog.records) == 1
    assert mode.upper() in caplog.text


def test_profile_strategies():
    for strategy in trt.supported_profile_strategies():
        parameters.check_profile_strategy(strategy.lower())
    with pytest.raises(ValueError, match="profile_strategy 'Widest'"):
        parameters.check_profile_strategy("Widest")


def test_versions():
    assert trt.is_tensorrt_enabled()
    assert trt.get_linked_tensorrt_version() == (0, 0, 0)
    with pytest.raises(PlanishError, match="No TensorRT is loaded"):
        trt.get_loaded_tensorrt_version()
