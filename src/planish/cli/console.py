"""What the commands say, and how they end.

Results go to standard output, everything else (progress, notes, errors) to standard error. With
``--json`` standard output holds one JSON document and nothing else: whatever a library prints there
is sent to standard error.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any

import typer

from planish.errors import PlanishError

ERROR, THRESHOLD_MISSED, INTERRUPTED = 1, 3, 130

Json = Annotated[
    bool,
    typer.Option("--json", help="Write one JSON document to standard output, for scripts."),
]


class ThresholdMissedError(Exception):
    """A limit that the user set was missed; everything was done and shown nevertheless.

    Parameters
    ----------
    message : str
        Which limit, and by how much.
    result : dict
        What the command would have returned.
    """

    def __init__(self, message: str, result: dict[str, Any]) -> None:
        super().__init__(message)
        self.result = result


def command(function: Callable[..., dict[str, Any] | None]) -> Callable[..., None]:
    """Makes a command of a function: errors become exit codes, its result the JSON document.

    The function must have a parameter `json_output`.
    """

    @functools.wraps(function)
    def guarded(*args: Any, **options: Any) -> None:
        as_json = bool(options.get("json_output"))
        code = 0
        with _result_stream(as_json) as write:
            try:
                write(function(*args, **options))
            except PlanishError as error:
                _explain(error)
                write({"error": as_dict(error)})
                code = ERROR
            except ThresholdMissedError as missed:
                note(f"missed: {missed}")
                write(missed.result)
                code = THRESHOLD_MISSED
            except KeyboardInterrupt:
                code = INTERRUPTED  # of which `run` tells
        if code:
            raise typer.Exit(code)

    # typer resolves annotations where `guarded` is defined, so they are resolved here; not by
    # get_type_hints, which on Python 3.10 hides those of parameters with the default None
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    guarded.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    guarded.__annotations__ = {p.name: p.annotation for p in parameters}
    return guarded


@contextlib.contextmanager
def _result_stream(as_json: bool) -> Iterator[Callable[[dict[str, Any] | None], None]]:
    """A function that writes the JSON document, while nothing else reaches standard output."""
    if not as_json:
        yield lambda document: None
        return
    stdout = sys.stdout
    written: list[str] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        if stdout is sys.__stdout__:  # C code prints to the descriptor itself
            stdout.flush()  # type: ignore[union-attr]
            kept = os.dup(1)
            os.dup2(2, 1)
            stack.callback(os.close, kept)
            stack.callback(os.dup2, kept, 1)
        yield lambda document: written.append(json.dumps(_plain(document), indent=2, default=str))
    for text in written[:1]:
        stdout.write(text + "\n")
        stdout.flush()


def _plain(value: Any) -> Any:
    """The value with null for what is no number in JSON: infinities and nan."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def as_dict(error: PlanishError) -> dict[str, str]:
    """An error for scripts."""
    parts = {name: getattr(error, name) for name in ("what", "where", "why", "cure")}
    return {"kind": type(error).__name__, **parts}


def _explain(error: PlanishError) -> None:
    from planish import logs

    if logs.debugging():
        import traceback

        traceback.print_exception(type(error), error, error.__traceback__)
    typer.secho("error: ", fg=typer.colors.RED, bold=True, err=True, nl=False)
    typer.echo(str(error), err=True)


def paragraphs(text: str) -> str:
    """Text for the end of a help page: line breaks within a paragraph are only the source's."""
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def note(text: str) -> None:
    """Says something that is not the result."""
    typer.echo(text, err=True)


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> None:
    """Prints a table; columns whose name starts with ">" are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        right = name.startswith(">")
        made.add_column(
            name.removeprefix(">"),
            justify="right" if right else "left",
            no_wrap=right,
            overflow="fold",
        )
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:  # nobody reads a file through an 80-column window
        console = Console(file=sys.stdout, highlight=False, width=_UNLIMITED)
        console.width = console.measure(made).maximum
    console.print(made)


_UNLIMITED = 10_000
