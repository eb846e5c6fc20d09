"""Puts the commands together."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from planish.cli import bench, build, compare, convert, inspect, run_plan
from planish.cli.console import INTERRUPTED, note, paragraphs

HELP = """An inference optimizer: a trained model goes in, the fastest measured plan comes out.

Every command explains itself: planish COMMAND --help"""

EPILOG = """Examples

planish build saved_model/ -o m.plan

planish run m.plan --input x.npy --output y.npy

planish bench saved_model/ --against tensorflow --batch 1,8

planish inspect m.plan --layers

planish compare saved_model/ m.plan --max-error 1e-4

planish convert saved_model/ optimized_saved_model/

Exit codes: 0 done, 1 an error (what, where, why, cure), 2 wrong usage, 3 a threshold was missed,
130 interrupted. PLANISH_LOG=debug shows what happens, and tracebacks."""

app = typer.Typer(
    help=HELP,
    epilog=paragraphs(EPILOG),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=paragraphs(build.EPILOG))(build.build)
app.command("run", epilog=paragraphs(run_plan.EPILOG))(run_plan.run)
app.command(epilog=paragraphs(bench.EPILOG))(bench.bench)
app.command(epilog=paragraphs(inspect.EPILOG))(inspect.inspect)
app.command(epilog=paragraphs(compare.EPILOG))(compare.compare)
app.command(epilog=paragraphs(convert.EPILOG))(convert.convert)


def _show_version(wanted: bool) -> None:
    if wanted:
        from planish.version import __version__

        typer.echo(f"planish {__version__}")
        raise typer.Exit


@app.callback()
def _planish(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    from planish import logs

    logs.configure()


def run() -> None:
    """Runs the command line and exits."""
    try:
        app(prog_name="planish")
    except KeyboardInterrupt:  # while modules are imported
        note("interrupted")
        sys.exit(INTERRUPTED)
    except SystemExit as end:
        if end.code == INTERRUPTED:
            note("interrupted")
        raise
