"""Precisions as permissions: which nodes may leave float32, and the rewrite that makes them."""
