"""The export formats that a run may ask for, and the packages that each one needs."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# import names of what each format needs besides Ultralytics and torch
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
# formats whose exporters install their own tool chain into the running environment
UNSERVED = frozenset(
    {
        *("saved_model", "pb", "edgetpu", "litert", "coreai", "imx", "rknn", "executorch", "axelera", "deepx", "qnn"),
        *("hailo", "ascend", "xilinx"),
    },
)
