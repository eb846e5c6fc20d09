"""Every row of docs/errors.md is provoked, and says what the table says, word for word.

The functions that provoke are in tests/helpers/provoke, under the names of the rows. In the table
``<…>`` stands for what varies.
"""

from __future__ import annotations

import importlib
import logging
import re
from pathlib import Path
from typing import NamedTuple

import pytest

from helpers.provoke.registry import CASES
from planish import PlanishError

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "errors.md"

for _path in sorted((Path(__file__).parent / "helpers" / "provoke").glob("*.py")):
    importlib.import_module(f"helpers.provoke.{_path.stem}")


class Row(NamedTuple):
    """A row of the table; the message without code marks, a part a line."""

    name: str
    kind: str
    message: str


def rows(text: str) -> list[Row]:
    """The rows of all tables of three columns."""
    found = []
    for line in text.splitlines():
        cells = [c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != 3 or set(cells[0]) <= {"-"} or cells[0] == "What is wrong":
            continue
        parts = [part.strip().strip("`").strip() for part in cells[2].split("<br>")]
        found.append(Row(cells[0], cells[1].strip("`"), "\n".join(parts).replace("\\|", "|")))
    return found


ROWS = rows(TABLE.read_text(encoding="utf-8"))


def says(row: Row, text: str, whole: bool = True) -> bool:
    """Whether a text is the message of a row, placeholders filled."""
    text = re.sub(r"(?m)^  (where|why|cure): +", r"\1: ", text)
    pieces = re.split(r"<[a-z ]+>", row.message)
    pattern = ".*?".join(map(re.escape, pieces))
    return bool((re.fullmatch if whole else re.search)(pattern, text, re.DOTALL))


def test_rows_and_cases_are_the_same() -> None:
    assert sorted(row.name for row in ROWS) == sorted(CASES)


def provoke(row: Row, folder: Path) -> object:
    """The error of a row, or what its function gives."""
    try:
        return CASES[row.name](folder)
    except Exception as error:  # TensorFlow's errors are no kinds of ours
        return error


@pytest.mark.usefixtures("without_bf16")
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_message(row: Row, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "planish"):
        outcome = provoke(row, tmp_path)
    text = str(outcome)
    if row.kind == "a warning":
        assert not isinstance(outcome, Exception), text
        told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert any(says(row, line) for line in told), "\n".join(told)
    elif row.kind == "exit code 130":
        assert says(row, text), text
    else:
        assert type(outcome).__name__ == row.kind.rpartition(".")[2], text
        ours = isinstance(outcome, PlanishError)
        assert ours or row.kind.startswith("tf.errors."), text
        assert says(row, text, whole=ours), f"{text}\n---- is not ----\n{row.message}"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_table_is_worth_reading(row: Row) -> None:
    """Every error has a cure, and says where or why; nothing is only a placeholder."""
    if row.kind in ("a warning", "exit code 130"):
        return
    labels = [line.partition(":")[0] for line in row.message.splitlines()[1:]]
    assert labels == [x for x in ("where", "why", "cure") if x in labels]
    assert "cure" in labels
    assert "why" in labels or "where" in labels
    for line in row.message.splitlines():
        words = re.sub(r"<[a-z ]+>|^(where|why|cure):", "", line)
        assert line.startswith("where:") or re.search(r"\w", words), line
