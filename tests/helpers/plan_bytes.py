"""Plan files taken apart and put together again, with checksums that are right."""

from __future__ import annotations

import hashlib
import json
from typing import Any

FIRST_LINE = 93


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """The header and the weights of a plan file."""
    end = FIRST_LINE + int(data[17:27])
    return json.loads(data[FIRST_LINE:end]), data[end:]


def join(header: object, weights: bytes, version: int = 1, described: bool = True) -> bytes:
    """A plan file whose checksums are right, whatever it holds; without `described` the header says
    of the weights what it said.
    """
    if described and isinstance(header, dict) and isinstance(header.get("weights"), dict):
        header["weights"] = {"bytes": len(weights), "sha256": hashlib.sha256(weights).hexdigest()}
    text = json.dumps(header).encode()
    text += b" " * (-(FIRST_LINE + len(text)) % 64)
    digest = hashlib.sha256(text).hexdigest()
    return f"planish plan {version:03} {len(text):010} {digest}\n".encode() + text + weights
