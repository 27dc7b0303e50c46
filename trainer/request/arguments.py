"""Ultralytics' train arguments: which a row may set, with type and range, and which it may not, with the reason.

Every argument of the installed `default.yaml` is in exactly one of `ALLOWED`, `REFUSED`, `IGNORED` and `PLANNED`
(tests/unit/request/test_arguments.py), so an argument that a new version adds is noticed before it is served.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

from trainer.core.model import Value

T_co = TypeVar("T_co", covariant=True)

_TRUE = frozenset({"true", "1", "yes", "y", "on"})
_FALSE = frozenset({"false", "0", "no", "n", "off"})
_NUMBER = re.compile(r"[+-]?(\d{1,30}(\.\d{0,30})?|\.\d{1,30})(e[+-]?\d{1,3})?", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Rule(Generic[T_co]):
    """What a value must be, as a person reads it, and how it is read; `read` raises ValueError for anything else."""

    text: str
    read: Callable[[object], T_co]


def _number(value: object) -> int | float:
    """A finite number, also when it is written as a string."""
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value) if re.search(r"[.e]", value, re.IGNORECASE) else int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ValueError(value)


def _whole(value: object) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError(value)
    return int(number)


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower() if isinstance(value, str | int) else ""
    if word in _TRUE | _FALSE:
        return word in _TRUE
    raise ValueError(value)


def _word(value: object) -> str:
    if isinstance(value, str):
        return value.strip().lower()
    raise ValueError(value)


def _items(value: object) -> list[object]:
    if not isinstance(value, list | tuple) or len(value) > 1000:
        raise ValueError(value)
    return list(value)


def _require(fits: bool, value: object) -> None:
    if not fits:
        raise ValueError(value)


def whole(low: int, high: int) -> Rule[int]:
    """A whole number in [low, high]; 16, 16.0 and "16" are the same."""

    def read(value: object) -> int:
        number = _whole(value)
        _require(low <= number <= high, value)
        return number

    return Rule(f"a whole number from {low} to {high}", read)


def number(low: float, high: float, *, above: bool = False) -> Rule[float]:
    """A finite number in [low, high], or in (low, high] when it has to be `above` low."""

    def read(value: object) -> float:
        found = _number(value)
        _require(low <= found <= high and not (above and found == low), value)
        return float(found)

    return Rule(f"a number above {low:g} and up to {high:g}" if above else f"a number from {low:g} to {high:g}", read)


def chance() -> Rule[float]:
    """A share in [0, 1]; true and false stand for 1 and 0."""
    inner = number(0, 1)

    def read(value: object) -> float:
        is_word = isinstance(value, str) and not _NUMBER.fullmatch(value.strip())
        return float(_flag(value)) if is_word or isinstance(value, bool) else inner.read(value)

    return Rule(inner.text, read)


def choice(*names: str) -> Rule[str]:
    """One of `names`, in any case."""
    by_word = {name.lower(): name for name in names}

    def read(value: object) -> str:
        _require(_word(value) in by_word, value)
        return by_word[_word(value)]

    return Rule(f"one of {', '.join(names)}", read)


FLAG = Rule("true or false", _flag)
EPOCHS = whole(1, 100_000)
IMGSZ = whole(32, 8192)


def _read_batch(value: object) -> int | float:
    if isinstance(value, str) and value.strip().lower() == "auto":
        return -1
    found = _number(value)
    if 0 < found < 1:
        return found
    images = _whole(found)
    _require(images == -1 or 1 <= images <= 4096, value)
    return images


def _read_cache(value: object) -> bool | str:
    if isinstance(value, str) and _word(value) in {"ram", "disk"}:
        return _word(value)
    return _flag(value)


def _read_amp(value: object) -> bool | str:
    if isinstance(value, str) and _word(value) in {"fp16", "bf16", "fp32"}:
        return _word(value)
    return _flag(value)


def _read_fraction(value: object) -> Value:
    if not isinstance(value, list | tuple):
        found = _number(value)
        _require(0 < found <= 1 or (1 < found <= 10**9 and found == int(found)), value)
        return float(found) if found <= 1 else int(found)
    parts = [_number(part) for part in _items(value)]
    fits = all(0 <= p <= 1 or (1 < p <= 10**9 and p == int(p)) for p in parts)
    _require(len(parts) in {2, 3} and fits and all(parts[:2]), value)
    return [float(p) if p <= 1 else int(p) for p in parts]


def _read_freeze(value: object) -> Value:
    def layer(item: object) -> int | str:
        if isinstance(item, str) and re.fullmatch(r"\d{1,4}(\.\w{1,40}){1,8}", item, re.ASCII):
            return item
        index = _whole(item)
        _require(0 <= index <= 1000, value)
        return index

    if isinstance(value, list | tuple):
        return [layer(item) for item in _items(value)]
    return whole(0, 1000).read(value)


def _read_scale(value: object) -> Value:
    if not isinstance(value, list | tuple):
        return number(0, 1).read(value)
    gains = [float(_number(item)) for item in _items(value)]
    _require(len(gains) == 2 and 0 < gains[0] <= gains[1] <= 10, value)
    return list(gains)


def _read_classes(value: object) -> Value:
    found = [_whole(item) for item in _items(value)] if isinstance(value, list | tuple) else [_whole(value)]
    _require(bool(found) and all(0 <= index < 100_000 for index in found), value)
    return list(found)


def _read_kept(value: object) -> bool:
    _require(_flag(value), value)
    return True


BATCH = Rule("a whole number from 1 to 4096, -1 (automatic), or a share of the GPU memory between 0 and 1", _read_batch)

_FLAGS = (
    *("cls_remap", "verbose", "deterministic", "single_cls", "rect", "cos_lr", "channels_last", "overlap_mask", "val"),
    *("plots", "nms", "augment", "agnostic_nms", "visualize", "save_txt", "save_conf"),
)
_SHARES = (
    *("multi_scale", "dropout", "conf", "iou", "lrf", "momentum", "weight_decay", "warmup_momentum", "warmup_bias_lr"),
    *("cls_pw", "hsv_h", "hsv_s", "hsv_v", "translate", "perspective"),
)
_CHANCES = ("flipud", "fliplr", "bgr", "mosaic", "mixup", "cutmix", "copy_paste", "erasing")
_GAINS = ("box", "cls", "dfl", "pose", "kobj", "rle", "angle")

ALLOWED: Mapping[str, Rule[Value]] = MappingProxyType(
    {
        **dict.fromkeys(_FLAGS, FLAG),
        **dict.fromkeys(_SHARES, number(0, 1)),
        **dict.fromkeys(_CHANCES, chance()),
        **dict.fromkeys(_GAINS, number(0, 1000)),
        "time": number(0, 8760, above=True),  # hours
        "patience": whole(0, 100_000),
        "save": Rule("true: checkpoints are what a run goes on from", _read_kept),
        "save_period": whole(-1, 100_000),
        "cache": Rule("true, false, 'ram' or 'disk'", _read_cache),
        "workers": whole(0, 64),
        "optimizer": choice("SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp", "auto"),
        "seed": whole(0, 2**31 - 1),
        "close_mosaic": whole(0, 100_000),
        "amp": Rule("true, false, 'fp16', 'bf16' or 'fp32'", _read_amp),
        "fraction": Rule("a share above 0 and up to 1, a number of images, or [train, val] of these", _read_fraction),
        "freeze": Rule(
            "a number of layers, or a list of layer indices (0 to 1000) or names like '23.cv2'", _read_freeze
        ),
        "mask_ratio": whole(1, 32),
        "max_det": whole(1, 100_000),
        "classes": Rule("a class index or a list of them", _read_classes),
        "lr0": number(0, 1, above=True),
        "warmup_epochs": number(0, 100_000),
        "nbs": whole(1, 65_536),
        "degrees": number(0, 180),
        "shear": number(0, 180),
        "scale": Rule("a number from 0 to 1, or [least, most] as gains up to 10", _read_scale),
        "copy_paste_mode": choice("flip", "mixup"),
        "auto_augment": choice("randaugment", "autoaugment", "augmix"),
    },
)

# arguments that the plan holds in fields of its own
PLANNED = frozenset({"task", "model", "data", "epochs", "batch", "imgsz", "device", "split"})

_PLACE = "the service decides where a run writes"
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "project": _PLACE,
        "name": f"{_PLACE}; the run's name is the row's run_name",
        "exist_ok": _PLACE,
        "save_dir": _PLACE,
        "resume": "an interrupted run goes on by itself; to go on from a finished one, put its id into base_model",
        "resume_from_model": "to go on from a finished run, put its id into base_model",
        "pretrained": "only true or false; name the weights to start from in base_model",
        "distill_model": "a second model is not loaded in a run",
        "cfg": "settings are read from the row only, not from a file",
        "compile": "it would run the host's compiler",
        "profile": "it would install packages",
        "quantize": "quantization-aware training would install packages",
        "save_json": "it would install packages; use predictions: true",
        "source": "a training reads its dataset only",
        "mode": "a run is a training",
        "augmentations": "Python objects cannot come from a row",
        "callbacks": "code cannot come from a row",
        "trainer": "code cannot come from a row",
    },
)

_PREDICT = "it belongs to predict mode and has no effect on a training"
_EXPORT = 'it belongs to export mode; use export: ["onnx", …]'
_DEPTH = "it belongs to a task that is not served"
IGNORED: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(
        (
            *("dnn", "vid_stride", "stream_buffer", "retina_masks", "embed", "show", "save_frames", "save_crop"),
            *("show_labels", "show_conf", "show_boxes", "line_width", "tracker"),
        ),
        _PREDICT,
    )
    | dict.fromkeys(("format", "optimize", "dynamic", "simplify", "opset", "workspace"), _EXPORT)
    | dict.fromkeys(("dlog", "dgrad", "dlam"), _DEPTH)
    | {"dis": "it belongs to distillation, which is not served"},
)
