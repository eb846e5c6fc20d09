"""Exit codes and the separation of results from everything else."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
import typer

from planish.cli.console import ThresholdMissedError, command, paragraphs, table
from planish.errors import InputError


def _ending(error: BaseException | None, as_json: bool) -> int:
    @command
    def work(json_output: bool = False) -> dict[str, bool]:
        print("a library says something")
        if error is not None:
            raise error
        return {"done": True}

    try:
        work(json_output=as_json)
    except typer.Exit as end:
        return end.exit_code
    return 0


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, 0),
        (InputError("bad", where="here", why="because", cure="better"), 1),
        (ThresholdMissedError("too slow", {"ratio": 2}), 3),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(error: BaseException | None, code: int) -> None:
    assert _ending(error, as_json=False) == code


@pytest.mark.parametrize(
    ("error", "document"),
    [
        (None, {"done": True}),
        (ThresholdMissedError("too slow", {"ratio": 2}), {"ratio": 2}),
        (
            ThresholdMissedError("bad", {"all": [math.inf, {"x": math.nan}]}),
            {"all": [None, {"x": None}]},
        ),
        (
            InputError("bad", where="here"),
            {
                "error": {
                    "kind": "InputError",
                    "what": "bad",
                    "where": "here",
                    "why": "",
                    "cure": "",
                }
            },
        ),
    ],
)
def test_json_is_all_of_standard_output(capsys, error, document) -> None:
    _ending(error, as_json=True)
    captured = capsys.readouterr()
    assert json.loads(captured.out) == document
    assert "a library says something" in captured.err


def test_json_keeps_out_what_c_code_prints() -> None:
    code = (
        "import os\n"
        "from planish.cli.console import command\n"
        "@command\n"
        "def work(json_output: bool = False):\n"
        "    os.write(1, b'from C')\n"
        "    return {}\n"
        "work(json_output=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "{}\n"
    assert "from C" in done.stderr


def test_errors_are_explained_without_traceback(capsys, monkeypatch) -> None:
    monkeypatch.delenv("PLANISH_LOG", raising=False)
    _ending(InputError("bad", where="here", why="because", cure="better"), as_json=False)
    assert capsys.readouterr().err == (
        "error: bad\n  where: here\n  why:   because\n  cure:  better\n"
    )


def test_debugging_shows_the_traceback(capsys, monkeypatch) -> None:
    monkeypatch.setenv("PLANISH_LOG", "debug")
    _ending(InputError("bad"), as_json=False)
    assert "Traceback" in capsys.readouterr().err


def test_tables_in_files_are_not_folded(capsys) -> None:
    table(["name", ">count"], [("x" * 200, 7), ("[bold]", 12)])
    lines = capsys.readouterr().out.splitlines()
    assert any("x" * 200 in line for line in lines)
    assert any("[bold]" in line for line in lines)


def test_paragraphs_are_joined() -> None:
    assert paragraphs("a\nb\n\nc") == "a b\n\nc"
    assert os.linesep not in paragraphs("a\nb")
