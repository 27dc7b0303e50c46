"""The configuration of a run: every setting with its names, type, range, default and meaning."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, WithJsonSchema

from trainer.core.dataset import Task
from trainer.core.export_formats import PACKAGES
from trainer.request.fields import Batch, Flag, Rule, Seed, between, flag, number, setting, whole, word
from trainer.request.split import SPLIT_RULE, Split, split_fields
from trainer.request.train_arguments import TrainArguments

_MOST_SOURCES = 64
_MOST_GPUS = 64  # limit per run, and limit of the indices that are read from a long text
_GPU = {"type": "integer", "minimum": -1, "maximum": _MOST_GPUS - 1}
_TASK_PREFIXES = {
    "det": Task.DETECT, "seg": Task.SEGMENT, "cls": Task.CLASSIFY, "class": Task.CLASSIFY, "pose": Task.POSE,
    "keypoint": Task.POSE, "obb": Task.OBB, "orient": Task.OBB,
}  # fmt: skip
_EXPORT_ALIASES = {"tensorrt": "engine", "trt": "engine", "savedmodel": "saved_model", "tflite": "litert"}


def references(value: object) -> list[str]:
    """Return the dataset references in a text or a list. Raise ValueError if a reference is not valid."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not 0 < len(texts) <= _MOST_SOURCES:
        raise ValueError("not a list of references")
    usable = [text.strip() for text in texts if isinstance(text, str)]
    if len(usable) != len(texts) or not all(text.isprintable() and 0 < len(text) <= 4096 for text in usable):
        raise ValueError("not a reference")
    return usable


def _task(value: object) -> Task | None:
    letters = re.sub(r"[^a-z]", "", word(value))
    letters = re.sub(r"^(object|instance|image|pose(?=keypoint))", "", letters)
    return next((task for prefix, task in _TASK_PREFIXES.items() if letters.startswith(prefix)), None)


def _devices(value: object) -> Sequence[float]:
    """Return the GPU indices in a value, or an empty list for the CPU."""
    if isinstance(value, str) and word(value) in {"cpu", "gpu", "cuda"}:
        return [] if word(value) == "cpu" else [0]
    if isinstance(value, str):
        value = word(value).removeprefix("cuda:").split(",", _MOST_GPUS)
    indices = [number(item) for item in (value if isinstance(value, list | tuple) else [value])[: _MOST_GPUS + 1]]
    if not 0 < len(indices) <= _MOST_GPUS or (len(set(indices)) != len(indices) and set(indices) != {-1}):
        raise ValueError("not a list of different GPU indices")
    if not all(index in range(-1, _MOST_GPUS) for index in indices):
        raise ValueError("not a GPU index")
    # -1 is any free GPU; the service decides which GPUs belong to a slot
    return list(range(len(indices))) if -1 in indices else indices


def _formats(value: object) -> list[str]:
    names = [] if value is False else value.split(",", 20) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or len(names) > 20:
        raise ValueError("not a list of formats")
    return list(dict.fromkeys(_EXPORT_ALIASES.get(re.sub(r"[\s_-]+", "", word(name)), word(name)) for name in names))


class Requirements(BaseModel):
    """The requirements of a run for its worker."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    gpus: Annotated[float, between(0, 100_000)] = setting(None, "Minimum number of free GPUs.")
    gpu_memory_gb: Annotated[float, between(0, 100_000)] = setting(None, "Minimum memory of each GPU in GiB.")


class RunConfiguration(TrainArguments):
    """Settings of a training run."""

    # dataset and model
    data: Annotated[
        list[str],
        Rule(f"a path, a storage: reference or a URL, or a list of up to {_MOST_SOURCES} of these", references),
        WithJsonSchema(
            {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "maxItems": _MOST_SOURCES}]}
        ),
    ] = setting(
        None, "Dataset, or several datasets to merge. The row's `data_yaml` has priority.",
        "dataYaml", "datasetYaml", "datasetS3Uri", "datasetUri", "datasetPath",
    )  # fmt: skip
    base_model: Annotated[str, Rule("a model's name")] = setting(
        "yolov8s",
        "Model to start from: a published model, an architecture (.yaml), a .pt file in MODELS_DIR, `storage:KEY.pt`, or "
        "the ID of a completed run. The row's `base_model` has priority.",
        "model", "modelName", "modelSpec", "weights",
    )  # fmt: skip
    task: Annotated[Task, Rule(f"one of {', '.join(Task)}", _task)] = setting(
        None, "Task to learn. By default, the task of the dataset.", "modelTask", "trainingTask", "taskType"
    )
    pretrained: Annotated[bool, Rule("true or false; name the weights to start from in base_model", flag)] = setting(
        True, "If false, the same network is trained from scratch."
    )
    split: Annotated[Split, Rule(SPLIT_RULE, split_fields)] = setting(
        None, "Split of a dataset without validation images: an object, the share of the train split, or a list of shares.",
        "splitConfig", "splitStrategy", "splitRatio",
    )  # fmt: skip
    split_seed: Seed = setting(0, "Seed of the split, unless `split` contains a seed.")

    # size of the training
    epochs: Annotated[int, whole(1, 100_000)] = setting(
        100, "Number of epochs.", "numEpochs", "nEpochs", "totalEpochs", "epoch"
    )
    batch: Batch = setting(
        16,
        "Images per training step; `auto` or -1 chooses a number that fits the GPU memory.",
        "batchSize",
        "trainBatchSize",
        "bs",
    )
    imgsz: Annotated[int, whole(32, 8192)] = setting(
        640, "Size of the images in pixels, rounded up to a multiple of 32.",
        "imgSize", "imageSize", "inputSize", "imageSz",
    )  # fmt: skip
    device: Annotated[
        list[int],
        Rule("'cpu', a GPU index like 0, or a list of different indices like [0, 1]", _devices),
        WithJsonSchema({"anyOf": [{"type": "string"}, _GPU, {"type": "array", "items": _GPU, "maxItems": _MOST_GPUS}]}),
    ] = setting(
        None,
        "`cpu`, or GPU indices. Only the number of indices matters: the worker selects the GPUs. The default is one slot.",
    )
    compute: Annotated[
        Literal["gpu", "cpu"], Rule("'gpu' or 'cpu'", lambda value: "gpu" if word(value) == "cuda" else word(value))
    ] = setting(None, "Train on a GPU or on the CPU, as chosen in the web app. It must not contradict `device`.")
    requires: Annotated[
        Requirements, Rule('an object with numbers for gpus and gpu_memory_gb, like {"gpu_memory_gb": 16}')
    ] = setting(None, "Only a worker with these resources claims the run.")

    # results
    exports: Annotated[
        list[str],
        Rule(f"a list of {', '.join(PACKAGES)}", _formats),
        WithJsonSchema({"type": "array", "items": {"enum": list(PACKAGES)}, "maxItems": 20}),
    ] = setting((), "Formats to export the best model to.", "export", "exportFormats", "exportFormat")
    predictions: Flag = setting(False, "Keep the predictions of the validation images.", "savePredictions")

    # fields of the web app that have no effect
    run_name: Any = setting(
        None, "Name of the run in the web app. It has no effect: the row's `run_name` is the name of the run."
    )
    preset: Any = setting(
        None,
        "Name of an augmentation in the web app. The name has no effect: send the values of the augmentation.",
        "augmentation",
    )
    optimization_strategy: Any = setting(None, "`bayesian` is not supported: one training uses the given values.")
    bayesian_config: Any = setting(None, "Settings of the Bayesian search, which is not supported.")


# the settings that become train arguments of Ultralytics
ARGUMENTS: Mapping[str, object] = TrainArguments.model_fields
