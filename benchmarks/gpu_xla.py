"""JAX as a peer of `gpu.py`: networks written with `jax.lax`, compiled by XLA.

The weights are those of PyTorch's module, batch norms folded. Inputs and outputs are as for all
others: float32, images channels first, on the device. XLA queues on streams of its own, so that a
run's time is that of many queued one after the other, divided by their number; where a run takes
less than queueing it, that is the time of queueing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import gpu_peers
import numpy as np
import torch
from torch import nn

Weights = Mapping[str, Any]


class XlaRunner(gpu_peers.Runner):
    """A network of `NETWORKS`, jitted."""

    name = "xla"

    def __init__(
        self, model: str, module: nn.Module, precision: str, sets: Sequence[gpu_peers.Inputs]
    ) -> None:
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
        import jax
        import jax.numpy as jnp

        start = time.perf_counter()
        dtype = {"fp16": jnp.float16, "bf16": jnp.bfloat16}.get(precision, jnp.float32)
        self._jax = jax
        self._weights = {k: jnp.asarray(v, dtype) for k, v in folded(module).items()}
        self._run = jax.jit(NETWORKS[model])
        self._sets = [[jax.dlpack.from_dlpack(t.contiguous()) for t in inputs] for inputs in sets]
        self._results = [[self._run(self._weights, *inputs)] for inputs in self._sets]
        jax.block_until_ready(self._results)
        self.seconds = time.perf_counter() - start

    def launch(self, number: int) -> None:
        self._results[number] = [self._run(self._weights, *self._sets[number])]
        self._jax.block_until_ready(self._results[number])

    def runs(self, clock: Any, count: int, queueing: float) -> list[float]:
        """Seconds of a run: so many, queued one after the other, by their number."""
        start = time.perf_counter()
        for i in range(count):
            self._results[i % len(self._sets)] = [
                self._run(self._weights, *self._sets[i % len(self._sets)])
            ]
        self._jax.block_until_ready(self._results)
        return [(time.perf_counter() - start) / count]

    def outputs(self, number: int) -> list[torch.Tensor]:
        return [torch.from_dlpack(r) for r in self._results[number]]

    def on_host(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [np.asarray(self._run(self._weights, *arrays))]


def folded(module: nn.Module) -> dict[str, np.ndarray]:
    """Filters ``[rows, columns, C, K]`` and biases of all convolutions, the batch norm behind each
    folded in; matrices and biases of dense layers.
    """
    found: dict[str, np.ndarray] = {}
    last = ""
    for name, part in module.named_modules():
        if isinstance(part, nn.Conv2d):
            last = name
            found[f"{name}.w"] = part.weight.double().cpu().numpy().transpose(2, 3, 1, 0)
            found[f"{name}.b"] = np.zeros(part.out_channels)
        elif isinstance(part, nn.BatchNorm2d):
            mean, variance, gamma, beta = (
                t.double().cpu().numpy()  # type: ignore[union-attr]
                for t in (part.running_mean, part.running_var, part.weight, part.bias)
            )
            scale = gamma / np.sqrt(variance + part.eps)
            found[f"{last}.w"] = found[f"{last}.w"] * scale
            found[f"{last}.b"] = beta - mean * scale
        elif isinstance(part, nn.Linear):
            found[f"{name}.w"] = part.weight.double().cpu().numpy().T
            found[f"{name}.b"] = part.bias.double().cpu().numpy()
    return found


def resnet50(weights: Weights, image: Any) -> Any:
    """torchvision's ResNet-50."""
    import jax
    from jax import lax

    relu = jax.nn.relu

    def conv(name: str, x: Any, stride: int = 1, pad: int = 0) -> Any:
        w = weights[f"{name}.w"]
        y = lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            [(pad, pad)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + weights[f"{name}.b"]

    x = image.astype(weights["conv1.w"].dtype).transpose(0, 2, 3, 1)
    x = relu(conv("conv1", x, 2, 3))
    border = ((0, 0), (1, 1), (1, 1), (0, 0))
    least = -np.inf
    x = lax.reduce_window(x, x.dtype.type(least), lax.max, (1, 3, 3, 1), (1, 2, 2, 1), border)
    for layer, blocks in enumerate((3, 4, 6, 3), 1):
        for block in range(blocks):
            name = f"layer{layer}.{block}"
            stride = 2 if block == 0 and layer > 1 else 1
            y = relu(conv(f"{name}.conv1", x))
            y = relu(conv(f"{name}.conv2", y, stride, 1))
            y = conv(f"{name}.conv3", y)
            if block == 0:
                x = conv(f"{name}.downsample.0", x, stride)
            x = relu(x + y)
    x = x.astype(np.float32).mean((1, 2)).astype(x.dtype)
    return (x @ weights["fc.w"] + weights["fc.b"]).astype(np.float32)


NETWORKS: dict[str, Callable[..., Any]] = {"resnet50": resnet50}
"""By the names of `gpu_models.MODELS`."""
