"""The command ``planish``: build, run, bench, inspect, compare, convert. One command a file.

Exit codes: 0 done, 1 an error that Planish explains, 2 wrong usage, 3 a threshold that the user
asked for was missed, 130 interrupted.
"""

from __future__ import annotations


def main() -> None:
    """Runs the command line and exits with its code."""
    from planish.cli.app import run

    run()


__all__ = ["main"]
