"""The catalog of models: every family and size that the pinned Ultralytics can train, and their usual spellings.

A *stem* is a model without its task ("yolo11n"). A *name* is a published file without its extension ("yolo11n-seg").
`tests/unit/core/test_model_catalog.py` compares the tables with the installed package.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from trainer.core.dataset import Task
from trainer.core.errors import BadRequest
from trainer.core.model import Architecture, OfficialModel

Model = TypeVar("Model", bound=OfficialModel | Architecture)

SUFFIXES: Mapping[Task, str] = {
    Task.DETECT: "", Task.SEGMENT: "-seg", Task.CLASSIFY: "-cls", Task.POSE: "-pose", Task.OBB: "-obb",
}  # fmt: skip
_SIZE_WORDS = {"n": "nano", "s": "small", "m": "medium", "l": "large", "x": "xlarge"}
_TASK_WORDS = {
    Task.DETECT: ("detect", "detection"),
    Task.SEGMENT: ("segment", "segmentation"),
    Task.CLASSIFY: ("classify", "classification"),
    Task.POSE: ("keypoints",),
    Task.OBB: (),
}
_DETECT = (Task.DETECT,)
_ALL = tuple(SUFFIXES)

_Table = dict[str, dict[Task, str]]


def _variants(stems: list[str], tasks: tuple[Task, ...]) -> _Table:
    return {stem: {task: stem + SUFFIXES[task] for task in tasks} for stem in stems}


def _sized(pattern: str, sizes: str = "nsmlx") -> list[str]:
    return [pattern.format(size) for size in sizes]


# stem → task → published weights without ".pt"
WEIGHTS: Mapping[str, Mapping[Task, str]] = (
    _variants(["yolov3u", "yolov3-sppu", "yolov3-tinyu"], _DETECT)
    | _variants(_sized("yolov5{}u") + _sized("yolov5{}6u"), _DETECT)
    | _variants(_sized("yolov8{}"), _ALL)
    | _variants(_sized("yolov8{}-oiv7"), _DETECT)
    | {"yolov8x-p6": {Task.POSE: "yolov8x-pose-p6"}}
    | _variants(_sized("yolov9{}", "tsm"), _DETECT)
    | _variants(_sized("yolov9{}", "ce"), (Task.DETECT, Task.SEGMENT))
    | _variants(_sized("yolov10{}", "nsmblx"), _DETECT)
    | _variants(_sized("yolo11{}"), _ALL)
    | _variants(_sized("yolo12{}"), _DETECT)
    | _variants(_sized("yolo26{}"), _ALL)
    | _variants(_sized("yolo26{}-distill"), _DETECT)
    | {f"yolo26{k}-objv1": {Task.DETECT: f"yolo26{k}-objv1-150", Task.SEGMENT: f"yolo26{k}-objv1-seg"} for k in "nsmlx"}
    | _variants(["rtdetr-l", "rtdetr-x"], _DETECT)
)

# stem → task → packaged architecture without ".yaml"; Ultralytics interprets the size letter
ARCHITECTURES: Mapping[str, Mapping[Task, str]] = (
    _variants(["yolov3", "yolov3-spp", "yolov3-tiny"], _DETECT)
    | _variants(_sized("yolov5{}") + _sized("yolov5{}-p6") + _sized("yolov6{}"), _DETECT)
    | _variants(_sized("yolov8{}"), _ALL)
    | _variants([s for p in ("p2", "ghost", "ghost-p2", "ghost-p6") for s in _sized("yolov8{}-" + p)], _DETECT)
    | {
        f"yolov8{k}-p6": {
            Task.DETECT: f"yolov8{k}-p6",
            Task.SEGMENT: f"yolov8{k}-seg-p6",
            Task.POSE: f"yolov8{k}-pose-p6",
        }
        for k in "nsmlx"
    }
    | _variants(_sized("yolov9{}", "tsm"), _DETECT)
    | _variants(_sized("yolov9{}", "ce"), (Task.DETECT, Task.SEGMENT))
    | _variants(_sized("yolov10{}", "nsmblx"), _DETECT)
    | _variants(_sized("yolo11{}") + _sized("yolo12{}") + _sized("yolo26{}"), _ALL)
    | _variants(_sized("yolo26{}-p2") + _sized("yolo26{}-p6"), _DETECT)
    | _variants(["rtdetr-l", "rtdetr-x", "rtdetr-resnet50", "rtdetr-resnet101"], _DETECT)
)

_TEXT = "it needs a CLIP text encoder, which Ultralytics installs and downloads during the training"
# existing models that cannot be trained here: pattern of the lower-case name → reason
_UNTRAINABLE = (
    (r"world", _TEXT),
    (r"yoloe", _TEXT),
    (r"^(sam|mobile_?sam|fast_?sam)", "SAM models are used with prompts and are not trained"),
    (r"nas", "Ultralytics can run YOLO-NAS, but not train it"),
    (r"-sem\b|semantic|-depth\b", "semantic segmentation and depth estimation are not supported"),
    (r"reid|mobileclip|calibration", "it is not a model that can be trained"),
    (r"grayscale", "it takes images with one channel; train its color variant"),
    (r"efficientdet|faster.?rcnn|detectron|ssd|retinanet|centernet", "it is not a YOLO model"),
    (r"-cls-resnet|v8.?-rtdetr", "its mixed architecture is not supported"),
)
# published files that a row must not name, even if they are in MODELS_DIR
_UNTRAINABLE_FILE = re.compile(
    r"sam2?(\.1)?_[blst]|mobile_sam|fastsam-[sx]|yolo_nas_[sml]|yoloe-(v8|11|26)[nsmlx]-seg(-pf)?"
    r"|yolov8[smlx]-world(v2)?|yolo26[nsmlx]-(sem|depth|sem-ade20k)|yolo11n-grayscale",
)


@dataclass(frozen=True)
class Entry:
    """One line of the `models` command: a stem with its published weights and its architectures, by task."""

    stem: str
    weights: Mapping[Task, str]
    architectures: Mapping[Task, str]


def find_weights(name: str) -> OfficialModel | None:
    """Return the published model for a spelling ("YOLOv8s", "yolo8s", "YOLO 11 n", "yolo11n-seg"), or None."""
    return _WEIGHT_SPELLINGS.get(_squeezed(name))


def find_architecture(name: str) -> Architecture | None:
    """Return the packaged architecture for a spelling without extension, or None."""
    return _ARCHITECTURE_SPELLINGS.get(_squeezed(name))


def resolve_name(stem: str, task: Task, *, scratch: bool = False) -> str:
    """Return the published name of a stem for a task: ("yolo11n", SEGMENT) → "yolo11n-seg".

    `scratch` selects the architecture instead of the weights. Raises BadRequest with alternatives if no name exists.
    """
    table = ARCHITECTURES if scratch else WEIGHTS
    name = table.get(stem, {}).get(task)
    if name is not None:
        return name
    what = "architecture" if scratch else "published weights"
    served = ", ".join(table.get(stem, {}))
    other_tasks = f" (only for {served})" if served else ""
    other = [s + SUFFIXES[task] for s in ("yolo11n", "yolo26n", "yolov8n")]
    if not scratch and task in ARCHITECTURES.get(stem, {}):
        other.insert(0, f"{ARCHITECTURES[stem][task]}.yaml (from scratch)")
    raise BadRequest(f"base_model: {stem} has no {what} for the task {task}{other_tasks}; use {', '.join(other)}")


def untrainable(name: str) -> str | None:
    """Return the reason why a well-known model cannot be trained here, or None."""
    return next((reason for pattern, reason in _UNTRAINABLE if re.search(pattern, name.lower())), None)


def is_untrainable_file(stem: str) -> bool:
    """Return whether `stem` is the name of a published file that cannot be trained."""
    return _UNTRAINABLE_FILE.fullmatch(stem.lower()) is not None


def nearest(name: str) -> tuple[str, ...]:
    """Return one to three valid names that are most similar to `name`."""
    spellings: dict[str, OfficialModel | Architecture] = {**_ARCHITECTURE_SPELLINGS, **_WEIGHT_SPELLINGS}
    close = difflib.get_close_matches(_squeezed(name)[:40], spellings, n=12, cutoff=0.6)
    found = dict.fromkeys(_published(spellings[key]) for key in close)
    return tuple(found)[:3] or ("yolo11n", "yolo26n", "yolov8s")


def entries() -> list[Entry]:
    """Return all accepted models, in the order of the tables."""
    stems = dict.fromkeys([*WEIGHTS, *ARCHITECTURES])
    return [Entry(stem, WEIGHTS.get(stem, {}), ARCHITECTURES.get(stem, {})) for stem in stems]


def _published(model: OfficialModel | Architecture) -> str:
    weights, architectures = WEIGHTS.get(model.stem, {}), ARCHITECTURES.get(model.stem, {})
    task = model.task or Task.DETECT
    return weights.get(task) or (
        f"{architectures[task]}.yaml" if task in architectures else next(iter(weights.values()))
    )


def _squeezed(name: str) -> str:
    return re.sub(r"[\s._-]+", "", name.lower())


def _spelled(stem: str) -> Iterator[str]:
    """Yield the stem and its usual misspellings: with or without "v", size as a word, v3 and v5 with or without "u"."""
    plain = [stem]
    if re.match(r"yolov[35]", stem) and stem.endswith("u"):
        plain.append(stem.removesuffix("u"))
    elif re.match(r"yolov[35]", stem):
        plain.append(f"{stem}u")
    sized = re.match(r"(yolov?\d+)([nsmlx])(.*)", stem)
    if sized:
        plain.append(f"{sized[1]}-{_SIZE_WORDS[sized[2]]}{sized[3]}")
    for name in plain:
        yield name
        yield name.replace("yolov", "yolo") if name.startswith("yolov") else name.replace("yolo", "yolov", 1)


def _spellings(kind: type[Model], table: Mapping[str, Mapping[Task, str]]) -> dict[str, Model]:
    found: dict[str, Model] = {}
    for stem, names in table.items():
        for spelling in _spelled(stem):
            found.setdefault(_squeezed(spelling), kind(stem=stem))
            for task in names:
                for word in (*_TASK_WORDS[task], SUFFIXES[task]) if SUFFIXES[task] else _TASK_WORDS[task]:
                    found.setdefault(_squeezed(f"{spelling}-{word}"), kind(stem=stem, task=task))
    for stem, names in table.items():
        for task, name in names.items():
            for spelling in _spelled(name):
                found.setdefault(_squeezed(spelling), kind(stem=stem, task=task if SUFFIXES[task] else None))
    return found


_WEIGHT_SPELLINGS = _spellings(OfficialModel, WEIGHTS)
_ARCHITECTURE_SPELLINGS = _spellings(Architecture, ARCHITECTURES)
