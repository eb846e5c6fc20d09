"""Bad inputs by the names that docs/errors.md gives them; see tests/test_error_table.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Provoke = Callable[[Path], object]

CASES: dict[str, Provoke] = {}
"""Each raises the error, or logs the warning, of its row; it is given an empty folder."""


def case(name: str) -> Callable[[Provoke], Provoke]:
    """Registers a function under the name of its row."""

    def register(function: Provoke) -> Provoke:
        assert name not in CASES, f"two cases are called {name!r}"
        CASES[name] = function
        return function

    return register
