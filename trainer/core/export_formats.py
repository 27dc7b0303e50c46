"""Which export formats are served, and what each one needs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# what each served format needs besides Ultralytics and torch, as import names
PACKAGES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "torchscript": (),
        "onnx": ("onnx", "onnxslim", "onnxruntime"),
        "openvino": ("openvino",),
        "engine": ("tensorrt", "onnx"),
        "coreml": ("coremltools",),
        "ncnn": ("ncnn", "pnnx"),
        "mnn": ("MNN", "onnx"),
        "paddle": ("paddle", "x2paddle"),
    },
)
# formats whose exporters install a tool chain of their own into the running environment
UNSERVED = frozenset(
    {
        *("saved_model", "pb", "edgetpu", "litert", "coreai", "imx", "rknn", "executorch", "axelera", "deepx", "qnn"),
        *("hailo", "ascend", "xilinx"),
    },
)
