"""Logging by PLANISH_LOG."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def _stderr(level: str | None) -> str:
    code = (
        "import planish, logging; log = logging.getLogger('planish')\n"
        "log.debug('fine'); log.info('usual'); log.warning('serious')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PLANISH_LOG"}
    if level is not None:
        environment["PLANISH_LOG"] = level
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    return done.stderr


@pytest.mark.parametrize(
    ("level", "shown"),
    [
        (None, ["serious"]),  # Python's own last resort
        ("", ["serious"]),
        ("DEBUG", ["fine", "usual", "serious"]),
        ("info", ["usual", "serious"]),
        ("error", []),
        ("nonsense", ["is no level", "usual", "serious"]),
    ],
)
def test_levels(level: str | None, shown: list[str]) -> None:
    said = _stderr(level)
    for word in ("fine", "usual", "serious", "is no level"):
        assert (word in said) == (word in shown)
