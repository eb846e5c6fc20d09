"""Logging of Planish: the logger "planish", switched on by the environment variable PLANISH_LOG.

``PLANISH_LOG=debug`` (info, warning, error) sends the records of that level and above to standard
error. Programs that configure `logging` themselves need none of this.
"""

from __future__ import annotations

import logging
import os

VARIABLE = "PLANISH_LOG"
LEVELS = ("debug", "info", "warning", "error")

_FORMAT = "%(asctime)s %(name)s %(levelname)s: %(message)s"


def configure(level: str | None = None) -> None:
    """Sends log records to standard error.

    Parameters
    ----------
    level : str, optional
        One of `LEVELS`; by default what PLANISH_LOG says, and nothing happens where it is unset.
        An unknown level is reported as a warning and counts as "info".
    """
    wanted = (os.environ.get(VARIABLE, "") if level is None else level).strip().lower()
    if not wanted:
        return
    logger = logging.getLogger("planish")
    if not any(getattr(handler, "planish", False) for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.planish = True  # type: ignore[attr-defined]
        handler.setFormatter(logging.Formatter(_FORMAT, "%H:%M:%S"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel((wanted if wanted in LEVELS else "info").upper())
    if wanted not in LEVELS:
        logger.warning("%s=%s is no level; use one of %s", VARIABLE, wanted, ", ".join(LEVELS))


def debugging() -> bool:
    """Whether PLANISH_LOG asks for debug records, and so for tracebacks."""
    return os.environ.get(VARIABLE, "").strip().lower() == "debug"
