"""The export formats that a run can request, and the packages that each format needs."""

from __future__ import annotations

from collections.abc import Mapping

# import names of the packages that each format needs in addition to Ultralytics and torch
PACKAGES: Mapping[str, tuple[str, ...]] = {
    "torchscript": (),
    "onnx": ("onnx", "onnxslim", "onnxruntime"),
    "openvino": ("openvino",),
    "engine": ("tensorrt", "onnx"),
    "coreml": ("coremltools",),
    "ncnn": ("ncnn", "pnnx"),
    "mnn": ("MNN", "onnx"),
    "paddle": ("paddle", "x2paddle"),
}
# not supported, because the exporters install their own tool chain into the running environment
UNSUPPORTED = frozenset(
    {
        *("saved_model", "pb", "edgetpu", "litert", "coreai", "imx", "rknn", "executorch", "axelera", "deepx", "qnn"),
        *("hailo", "ascend", "xilinx"),
    },
)
