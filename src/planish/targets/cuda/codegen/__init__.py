"""Kernels as text: Triton programs written from expressions and shapes, compiled to cubins."""
