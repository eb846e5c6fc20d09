"""The matrix kernel with specialised warps: many tiles."""
