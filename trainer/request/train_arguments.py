"""Ultralytics' train arguments: those that a row can set, and those that are refused or ignored, with the reason.

Every argument of the installed `default.yaml` is in exactly one of `TrainArguments`, `REFUSED` and `IGNORED`, or has its
own field in the plan. tests/unit/request/test_train_arguments.py fails if a new version has an additional argument.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict

from trainer.request.fields import (
    Amp,
    Cache,
    Chance,
    Classes,
    Flag,
    Fraction,
    Freeze,
    Gain,
    Kept,
    Scale,
    Seed,
    Share,
    above_zero,
    between,
    one_of,
    setting,
    whole,
)


class TrainArguments(BaseModel):
    """The arguments that are passed to Ultralytics, with its defaults except for `optimizer` and `lr0`."""

    model_config = ConfigDict(frozen=True, validate_by_name=True, validate_by_alias=True)

    # length of the training
    time: Annotated[float, above_zero(8760)] = setting(None, "Maximum training time in hours; replaces `epochs`.")
    patience: Annotated[int, whole(0, 100_000)] = setting(
        100, "Stop after this many epochs without improvement.", "earlyStoppingPatience"
    )
    save: Kept = setting(True, "Checkpoints are always saved.")
    save_period: Annotated[int, whole(-1, 100_000)] = setting(
        -1, "Number of epochs between two saved checkpoints; -1 saves only best and last.", "checkpointInterval"
    )
    val: Flag = setting(True, "Validate after each epoch.")
    seed: Seed = setting(0, "Seed of the random numbers.", "randomSeed")
    deterministic: Flag = setting(True, "Use reproducible operations; may be slower.")
    verbose: Flag = setting(True, "Print the progress into the run's log.")
    plots: Flag = setting(True, "Draw the plots of the training and of the validation.")

    # data
    cache: Cache = setting(False, "Keep the images in memory ('ram') or decoded on disk ('disk').")
    workers: Annotated[int, whole(0, 64)] = setting(
        None,
        "Processes that load images, per GPU. By default, the share of the host's CPUs for one slot.",
        "numWorkers",
    )
    fraction: Fraction = setting(1.0, "Share of the images to use, or number of images.")
    classes: Classes = setting(None, "Train on these classes only.")
    single_cls: Flag = setting(False, "Treat all classes as one class.")
    cls_remap: Flag = setting(True, "Keep the rows of the pretrained head whose class names match.")
    rect: Flag = setting(False, "Use batches of images with similar shapes instead of square images.")
    multi_scale: Share = setting(0.0, "Vary the image size by up to this share.")

    # optimizer
    optimizer: Annotated[
        str, one_of("SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSProp", "auto")
    ] = setting("Adam", "Optimizer; `auto` also chooses the learning rate.", "optimizerType", "optim")
    lr0: Annotated[float, above_zero(1)] = setting(
        0.001, "Learning rate at the start.", "lr", "learningRate", "initialLr", "initialLearningRate"
    )
    lrf: Share = setting(0.01, "Learning rate at the end, as a share of `lr0`.")
    cos_lr: Flag = setting(False, "Lower the learning rate along a cosine.", "cosineLr")
    momentum: Share = setting(0.937, "Momentum of SGD, beta1 of Adam.")
    weight_decay: Share = setting(0.0005, "Weight decay (L2).")
    warmup_epochs: Annotated[float, between(0, 100_000)] = setting(3.0, "Number of warm-up epochs.")
    warmup_momentum: Share = setting(0.8, "Momentum at the start of the warm-up.")
    warmup_bias_lr: Share = setting(0.1, "Learning rate of the biases during the warm-up.")
    nbs: Annotated[int, whole(1, 65_536)] = setting(64, "Nominal batch size, to which the loss is normalized.")
    amp: Amp = setting(True, "Mixed precision: true or false, or the number format.", "mixedPrecision")
    channels_last: Flag = setting(None, "Memory format with the channels last.")
    freeze: Freeze = setting(None, "Layers that are not trained: the number of the first layers, or a list of layers.")
    dropout: Share = setting(0.0, "Dropout of the head (classify).")

    # loss
    box: Gain = setting(7.5, "Weight of the box loss.")
    cls: Gain = setting(0.5, "Weight of the class loss.")
    cls_pw: Share = setting(0.0, "Power of the class weights; 1 weighs classes by inverse frequency.")
    dfl: Gain = setting(1.5, "Weight of the distribution focal loss.")
    pose: Gain = setting(12.0, "Weight of the keypoint loss (pose).")
    kobj: Gain = setting(1.0, "Weight of the keypoint visibility loss (pose).")
    rle: Gain = setting(1.0, "Weight of the log-likelihood loss (pose).")
    angle: Gain = setting(1.0, "Weight of the angle loss (obb).")
    overlap_mask: Flag = setting(True, "Merge the masks of an image (segment).")
    mask_ratio: Annotated[int, whole(1, 32)] = setting(4, "Downsampling of the masks (segment).")

    # augmentation
    hsv_h: Share = setting(0.015, "Maximum change of the hue, as a share.")
    hsv_s: Share = setting(0.7, "Maximum change of the saturation, as a share.")
    hsv_v: Share = setting(0.4, "Maximum change of the brightness, as a share.")
    degrees: Annotated[float, between(0, 180)] = setting(0.0, "Rotation by up to this many degrees.")
    translate: Share = setting(0.1, "Shift by up to this share of the image.")
    scale: Scale = setting(0.5, "Zoom by up to this share.")
    shear: Annotated[float, between(0, 180)] = setting(0.0, "Shear by up to this many degrees.")
    perspective: Share = setting(0.0, "Perspective distortion; 0.001 is strong.")
    flipud: Chance = setting(0.0, "Probability of a vertical flip.")
    fliplr: Chance = setting(0.5, "Probability of a horizontal flip.")
    bgr: Chance = setting(0.0, "Probability of exchanged color channels.")
    mosaic: Chance = setting(1.0, "Probability of a mosaic of several images.")
    close_mosaic: Annotated[int, whole(0, 100_000)] = setting(10, "Number of epochs at the end without mosaic.")
    mixup: Chance = setting(0.0, "Probability of a blend of two images.")
    cutmix: Chance = setting(0.0, "Probability of a pasted part of another image.")
    copy_paste: Chance = setting(0.0, "Probability of copied objects (segment, obb).")
    copy_paste_mode: Annotated[str, one_of("flip", "mixup")] = setting(
        "flip", "Source of the copied objects: the flipped image, or another image."
    )
    auto_augment: Annotated[str, one_of("randaugment", "autoaugment", "augmix")] = setting(
        "randaugment", "Automatic augmentation (classify)."
    )
    erasing: Chance = setting(0.4, "Probability of an erased part (classify).")

    # validation
    conf: Share = setting(None, "Minimum confidence of a detection.")
    iou: Share = setting(0.7, "Overlap (IoU) above which only the more confident detection is kept.")
    max_det: Annotated[int, whole(1, 100_000)] = setting(300, "Maximum number of detections per image.")
    nms: Flag = setting(None, "If false, the validation uses the head that needs no non-maximum suppression.")
    agnostic_nms: Flag = setting(False, "Also suppress overlapping detections of different classes.")
    augment: Flag = setting(False, "Also validate on augmented copies of the images.")
    visualize: Flag = setting(False, "Draw correct and wrong detections.")
    save_txt: Flag = setting(False, "Save the detections of the validation as text.")
    save_conf: Flag = setting(False, "Also save the confidence of these detections.")


_FOLDER = "the service chooses the folder of a run"
REFUSED: Mapping[str, str] = {
    "project": _FOLDER,
    "name": f"{_FOLDER}; the run's name is the row's run_name",
    "exist_ok": _FOLDER,
    "save_dir": _FOLDER,
    "resume": "an interrupted run resumes automatically; to continue a finished run, put its ID into base_model",
    "resume_from_model": "to continue a finished run, put its ID into base_model",
    "distill_model": "a run loads only one model",
    "cfg": "settings come from the row, not from a file",
    "compile": "it would run the host's compiler",
    "profile": "it would install packages",
    "quantize": "quantization-aware training would install packages",
    "save_json": "it would install packages; use predictions: true",
    "source": "a training reads only its dataset",
    "mode": "a run always trains",
    "augmentations": "a row cannot contain Python objects",
    "callbacks": "a row cannot contain code",
    "trainer": "a row cannot contain code",
}

_PREDICT = "it belongs to the predict mode and has no effect on a training"
_EXPORT = 'it belongs to the export mode; use export: ["onnx", …]'
_DEPTH = "it belongs to a task that is not supported"
IGNORED: Mapping[str, str] = (
    dict.fromkeys(
        (
            *("dnn", "vid_stride", "stream_buffer", "retina_masks", "embed", "show", "save_frames", "save_crop"),
            *("show_labels", "show_conf", "show_boxes", "line_width", "tracker"),
        ),
        _PREDICT,
    )
    | dict.fromkeys(("format", "optimize", "dynamic", "simplify", "opset", "workspace"), _EXPORT)
    | dict.fromkeys(("dlog", "dgrad", "dlam"), _DEPTH)
    | {"dis": "it belongs to distillation, which is not supported"}
)
