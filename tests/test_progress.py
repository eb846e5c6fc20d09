"""The progress bar: silent where nobody looks, also where nobody knows how much there is to do."""

from __future__ import annotations

import io
import sys

import pytest

from planish.progress import ProgressEvent, console_progress


class Terminal(io.StringIO):
    """Says that somebody looks."""

    def isatty(self) -> bool:
        return True


def test_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    show, close = console_progress()
    assert show is None
    close()


@pytest.mark.parametrize(("total", "shown"), [(8, "3/8"), (0, "3/?")])
def test_stages_are_drawn(monkeypatch: pytest.MonkeyPatch, total: int, shown: str) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    show, close = console_progress()
    assert show is not None
    show(ProgressEvent("optimize", 1, 1, 0.1))
    show(ProgressEvent("calibrate", 3, total, 0.2))
    close()
    assert "calibrate" in terminal.getvalue()
    assert shown in terminal.getvalue()
