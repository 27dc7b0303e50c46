"""The `base_model` of a row: a published model, an architecture, a file in MODELS_DIR, an object, or a run."""

from __future__ import annotations

import re

from trainer.core import model_catalog
from trainer.core.dataset import ObjectRef
from trainer.core.errors import BadRequest
from trainer.core.model import ModelFile, ModelObject, ModelOfRun, ModelRef
from trainer.core.text import shown

_RUN_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_MAY_BE = (
    "base_model can be a published model (yolo11n, YOLOv8s-seg), an architecture (yolo11n.yaml), a .pt file in "
    "MODELS_DIR, storage:KEY.pt in the artifacts bucket, or the ID of a completed run"
)


def read_model(text: str, artifacts_bucket: str) -> ModelRef:
    """Return the model that `text` names. Raise BadRequest with the reason and the nearest valid names."""
    name = text.strip()
    if _RUN_ID.fullmatch(name):
        return ModelOfRun(run_id=name.lower())
    if len(name) > 500 or not name.isprintable():
        raise _refused(name, "the name is too long (more than 500 characters) or not printable")
    if name.lower().startswith("storage:"):
        return ModelObject(ref=ObjectRef(bucket=artifacts_bucket, key=_object_key(name, artifacts_bucket)))
    if re.match(r"[a-z][a-z0-9+.-]*:", name, re.IGNORECASE):
        raise _refused(name, "weights are not fetched from a URL")
    if name.lower().endswith((".yaml", ".yml")):
        return _architecture(name)
    if name.lower().endswith(".pt"):
        return _weights_file(name)
    return _official(name)


def _official(name: str) -> ModelRef:
    if model := model_catalog.find_weights(name):
        return model
    if model_catalog.find_architecture(name):
        raise _refused(name, f"it has no published weights; use {name}.yaml to train it from scratch")
    raise _unknown(name)


def _architecture(name: str) -> ModelRef:
    model = model_catalog.find_architecture(name.rpartition(".")[0]) if _is_plain(name) else None
    if model is None:
        raise _unknown(name, "only architectures of the installed Ultralytics can be trained")
    return model


def _weights_file(name: str) -> ModelRef:
    stem = name[: -len(".pt")]
    model = model_catalog.find_weights(stem) if _is_plain(name) else None
    if model:
        return model
    if model_catalog.is_untrainable_file(stem):
        raise _unknown(name)
    reason = _path_problem(name)
    if reason:
        raise _refused(name, reason)
    return ModelFile(name=name)


def _object_key(name: str, artifacts_bucket: str) -> str:
    key = name.partition(":")[2].strip().lstrip("/").removeprefix(f"{artifacts_bucket}/")
    reason = _path_problem(key)
    if reason or not key.lower().endswith(".pt"):
        raise _refused(name, reason or "the object must be a .pt file")
    return key


def _is_plain(name: str) -> bool:
    """Return whether a file name may be an official name; a name with "_" or spaces is a file of the user."""
    return re.fullmatch(r"[A-Za-z0-9.-]+", name, re.ASCII) is not None and ".." not in name


def _path_problem(path: str) -> str | None:
    parts = path.split("/")
    if path.startswith(("/", "~", "-")) or "\\" in path:
        return "a path must be relative, must not start with ~ or -, and must use / instead of \\"
    if any(part in {"", ".", ".."} or part.startswith(".") for part in parts):
        return "a path must not contain .., an empty name or a hidden name"
    if any(len(part.encode(errors="replace")) > 255 for part in parts):
        return "a file or folder name is too long (more than 255 bytes)"
    return None


def _refused(name: str, reason: str) -> BadRequest:
    return BadRequest(f"base_model = {shown(name)}: {reason}; {_MAY_BE}")


def _unknown(name: str, otherwise: str = "the model is unknown") -> BadRequest:
    plain = name.rpartition("/")[2]
    reason = model_catalog.untrainable(plain) or otherwise
    return BadRequest(f"base_model = {shown(name)}: {reason}; similar names: {', '.join(model_catalog.nearest(plain))}")
