"""PTX that lacks something, for tests that want it to be found."""

from __future__ import annotations

import re
from collections.abc import Callable


def without(pattern: str, which: int) -> Callable[[str], str]:
    """Text without a line: the one of that number that has a pattern; what waits does not wait."""

    def change(text: str) -> str:
        lines = text.splitlines()
        found = [i for i, line in enumerate(lines) if re.search(pattern, line)]
        waits = re.search(r"try_wait\S* (%p\d+)", lines[found[which]])
        lines[found[which]] = f"    setp.eq.u32 {waits[1]}, 0, 0;" if waits else ""
        return "\n".join(lines) + "\n"

    return change
