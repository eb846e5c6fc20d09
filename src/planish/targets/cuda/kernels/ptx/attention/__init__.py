"""Attention of short sequences."""
