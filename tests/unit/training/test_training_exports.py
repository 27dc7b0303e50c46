"""The export formats that this host supports."""

import importlib.util
import subprocess
import sys

from trainer.training import exports
from trainer.training.exports import available_exports


def test_torchscript_is_always_available():
    assert "torchscript" in available_exports()


def test_format_is_available_if_all_packages_are_installed(monkeypatch):
    installed = {"onnx", "onnxslim", "onnxruntime", "tensorrt"}
    monkeypatch.setattr(exports, "find_spec", lambda name: object() if name in installed else None)
    assert set(available_exports()) == {"torchscript", "onnx", "engine"}

    installed.remove("onnxslim")
    assert set(available_exports()) == {"torchscript", "engine"}


def test_available_exports_does_not_import_torch():
    looking = (
        "import sys; from trainer.training.exports import available_exports as a; a(); print('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", looking], capture_output=True, text=True, check=True)

    assert result.stdout == "False\n"
    assert importlib.util.find_spec("torch")
