"""Names that appear in converted models."""

from __future__ import annotations


def asset_name(engine: str) -> str:
    """The file of an engine's plan in a SavedModel."""
    return f"planish-engine.{engine}.plan"
