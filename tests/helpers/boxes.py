"""What suppression is given: boxes of every kind, and scores with ties."""

from __future__ import annotations

import numpy as np


def boxes(rng: np.random.Generator, *shape: int, size: float = 0.3) -> np.ndarray:
    """Boxes given by opposite corners, in either order; some have no area."""
    center, sides = rng.random((*shape, 2)), rng.random((*shape, 2)) * size
    sides[rng.random(shape) < 0.05] = 0
    sides[rng.random(shape) < 0.3] *= -1
    return np.concatenate([center - sides / 2, center + sides / 2], -1)


def equal_scores(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Scores of few different values, so that there are many equal ones."""
    return np.round(rng.random(shape) * 20) / 20
