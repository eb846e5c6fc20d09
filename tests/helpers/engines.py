"""Engines for tests: built by heuristics, so that nothing depends on times measured before."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import planish


def quick_engine(model: Any, **options: Any) -> planish.Engine:
    """`planish.build` without measuring, with an empty timing cache."""
    with TemporaryDirectory() as folder:
        return planish.build(
            model,
            tuning_seconds=0,
            timing_cache=Path(folder) / "timing.sqlite",
            progress=False,
            **options,
        )
