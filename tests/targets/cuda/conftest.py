"""Where a GPU is to be used, the tests of kernels run on it, not in Triton's interpreter."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(scope="session", autouse=True)
def _device() -> None:
    if os.environ["CUDA_VISIBLE_DEVICES"] != "-1":
        from planish.targets.cuda.driver import gpu
        from planish.targets.cuda.run import run_on

        run_on(gpu(0))
