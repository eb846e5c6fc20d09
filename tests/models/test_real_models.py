"""Real models on real images: the same results as TensorFlow, Keras and ONNX Runtime give."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import batched  # noqa: F401
from pathlib import Path
