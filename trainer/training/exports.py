"""Which formats a model can be exported to on this host; imports no torch, so that a request can be checked early."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

# format → the modules that Ultralytics needs for it (it would install them by itself, which we never let it do)
NEEDS: Mapping[str, tuple[str, ...]] = {
    "torchscript": (),
    "onnx": ("onnx", "onnxslim", "onnxruntime"),
    "openvino": ("openvino",),
    "engine": ("tensorrt", "onnx"),
    "coreml": ("coremltools",),
    "ncnn": ("ncnn", "pnnx"),
    "mnn": ("MNN", "onnx"),
    "paddle": ("paddle", "x2paddle"),
}


def available_exports() -> tuple[str, ...]:
    """The formats whose packages are installed."""
    return tuple(name for name, modules in NEEDS.items() if all(find_spec(module) for module in modules))
