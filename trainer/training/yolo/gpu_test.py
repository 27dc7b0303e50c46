"""The test of the GPUs of a host, in a training process without a run."""

from __future__ import annotations

import torch

_SIZE = 64  # pixels and channels: enough for kernels of cuBLAS and cuDNN, with little memory


def use_gpus(count: int) -> None:
    """Execute a matrix product and a convolution on each of the first `count` GPUs. Raises the exceptions of CUDA."""
    if torch.cuda.device_count() < count:
        raise RuntimeError(
            f"No CUDA GPUs are available: {torch.cuda.device_count()} of {count} GPUs of the run respond"
        )
    for index in range(count):
        images = torch.ones(1, 3, _SIZE, _SIZE, device=f"cuda:{index}")
        weights = torch.ones(_SIZE, 3, 3, 3, device=f"cuda:{index}")
        features = torch.nn.functional.conv2d(images, weights)
        (features @ features.mT).sum().item()
