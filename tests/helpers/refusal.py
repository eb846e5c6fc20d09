"""Expects an error of Planish that says everything an error should say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from planish import PlanishError


@contextmanager
def refused(kind: type[PlanishError], *words: str) -> Iterator[None]:
    """Expects an error of this kind that says something everywhere it should, and these words."""
    with pytest.raises(kind) as caught:
        yield
    error = caught.value
    assert error.what
    assert error.where or error.why
    assert error.cure
    text = str(error)
    assert "Internal error" not in text
    assert "report this" not in text
    for word in words:
        assert word in text, f"{word!r} is not in:\n{text}"
