# make demo    native TensorFlow beside Planish, from nothing: makes .venv, installs, runs
# make test    lint, types and tests
# make test-arm    all tests of kernels on emulated 64-bit Arm; Debian packages it needs:
#                  qemu-user gcc-aarch64-linux-gnu libc6-dev-arm64-cross
# make test-avx2   tests of kernels and engines without AVX-512
# make test-torch  tests of PyTorch models; makes .venv-torch, as PyTorch wants a Triton of its own
# make test-cuda   tests on an NVIDIA GPU
# make sanitize-cuda   a case of every kernel family under compute-sanitizer, on a GPU;
#                  TOOL=racecheck looks for races instead of wrong accesses
# PYTHON=python3.12 make test    with another Python (3.10 to 3.13)

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
SANITIZER ?= compute-sanitizer
TOOL ?= memcheck
PIP := $(BIN)/python -m pip install --disable-pip-version-check
SOURCES := pyproject.toml setup.py $(wildcard native/*)

export TF_CPP_MIN_LOG_LEVEL ?= 3

.PHONY: help demo test test-arm test-avx2 test-torch test-cuda sanitize-cuda docs clean

help:
	@sed -n 's/^# //p' Makefile

demo: $(VENV)/demo.stamp
	$(BIN)/python examples/demo.py

test: $(VENV)/test.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n $(WORKERS)

test-arm: $(VENV)/test.stamp
	PLANISH_TEST_ARM=all PLANISH_TEST_ISA=neon $(BIN)/pytest -n $(WORKERS) \
	    tests/arm tests/targets/cpu/codegen tests/targets/cpu/kernels

test-avx2: $(VENV)/test.stamp
	PLANISH_CPU_ISA=avx2 $(BIN)/pytest -n $(WORKERS) tests/fuzz tests/runtime tests/targets/cpu

test-torch: $(VENV)-torch/test.stamp
	$(VENV)-torch/bin/python -m pytest tests/frontends/torch tests/models/test_torch.py \
	    'tests/test_docs.py::test_code_blocks_run[docs/howto/pytorch.md]'

test-cuda: $(VENV)/test.stamp
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES:-0} $(BIN)/pytest tests/targets/cuda tests/tensorflow/test_devices.py

# the first run compiles, which takes long under the sanitizer
sanitize-cuda: export CUDA_VISIBLE_DEVICES ?= 0
sanitize-cuda: $(VENV)/test.stamp
	$(BIN)/python -m pytest -q tests/targets/cuda/test_families.py
	$(SANITIZER) --tool $(TOOL) --error-exitcode 9 \
	    $(BIN)/python -m pytest -q -x tests/targets/cuda/test_families.py

docs: $(VENV)/test.stamp
	$(BIN)/python docs/make_how_it_works.py

$(BIN)/python $(VENV)-torch/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 13) else \
	    "Planish needs Python 3.10 to 3.13 and $(PYTHON) is " + sys.version.split()[0] + \
	    ": name another one, PYTHON=python3.12 make ...")'
	$(PYTHON) -m venv $(@:/bin/python=)

$(VENV)/demo.stamp: $(SOURCES) | $(BIN)/python
	$(PIP) -e '.[tensorflow,demo]'
	@touch $@

$(VENV)/test.stamp: $(SOURCES) | $(BIN)/python
	$(PIP) -e '.[tensorflow,onnx,dev]'
	@touch $@

$(VENV)-torch/test.stamp: $(SOURCES) | $(VENV)-torch/bin/python
	$(VENV)-torch/bin/python -m pip install --disable-pip-version-check -e '.[torch-test]'
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-torch build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f src/planish/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
