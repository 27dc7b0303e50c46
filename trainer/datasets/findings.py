"""Findings about a dataset: errors, warnings and notes, one per code, with a count and examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, TypeAlias

from pydantic import TypeAdapter

from trainer.core.dataset import Finding
from trainer.core.errors import DatasetError
from trainer.core.text import printable

Level: TypeAlias = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
MAX_EXAMPLES = 5

# code → message; {n} is the count of the finding, other placeholders are values passed to `Report.add`
ERRORS = {
    "no_images": "The dataset has no images.",
    "image_unreadable": "{n} images cannot be used for training; replace or remove the images",
    "image_missing": "{n} images of the annotation file do not exist; upload the images or remove their entries",
    "listed_image_missing": "{n} images that are listed in {file} do not exist",
    "symlink_outside": "{n} symlinks are broken or lead outside the allowed folders; replace the symlinks with the files",
    "label_unreadable": "{n} label files cannot be read",
    "label_size": "{n} label files are larger than {limit} MiB",
    "label_text": "{n} label rows contain something that is not a number; a row is a class number and coordinates",
    "label_columns": "{n} label rows have the wrong number of columns; {rule}",
    "label_nan": "{n} label rows contain NaN or infinity",
    "label_pixels": "{n} label rows seem to be in pixels; divide the coordinates by the width and height of the image",
    "label_outside": "{n} label rows have coordinates outside 0…1",
    "class_not_whole": "{n} label rows do not start with a class number",
    "class_outside": (
        "{n} label rows have an unknown class number; names: has {classes} classes, numbered {low} to {high}"
    ),
    "class_off_by_one": (
        "The labels count classes from 1 to {classes}, but names: counts from 0 to {last}. Number the names from 1 "
        "(names: {{1: …}}), or the labels from 0."
    ),
    "no_labels": (
        "No labeled annotations found in the dataset. Add labels (and ensure class names are assigned) then retry."
    ),
    "train_unlabeled": "The {images} images of train have no labels; label some of the images.",
    "val_unlabeled": "The {images} images of val have no labels; label some of the images.",
    "train_empty": "{problem}",
    "val_empty": "{problem}",
    "val_missing": (
        'The dataset has no val split; add val, or request a split in the configuration: "split": '
        '{{"train_ratio": 0.8, "seed": 0}}.'
    ),
    "split_impossible": "{problem}",
    "split_unknown": "No name in the requested split matches an image. Compare the names with the file names.",
    "yaml_names": "{problem}",
    "yaml_train": "train: must name a folder of images, a .txt list of images, or a list of such entries",
    "yaml_val": "val: must name a folder of images, a .txt list of images, or a list of such entries",
    "yaml_test": "test: must name a folder of images, a .txt list of images, or a list of such entries",
    "kpt_shape": "{problem}",
    "flip_idx": "{problem}",
    "merge_keypoints": "The sources have different values of kpt_shape and cannot be trained together.",
    "coco_file_name": "{n} images have no file_name",
    "coco_ambiguous": "{n} file names match several images",
    "coco_duplicate_image": "{n} images are listed twice in the annotation file",
    "coco_category": "{n} annotations have a category that the file does not list",
    "coco_classes": "{n} images do not have exactly one class; the task classify needs one class per image",
    "coco_shape": "{n} annotations have neither a readable box nor a readable outline",
    "coco_mask": "{n} masks cannot be decoded, or do not have the size of their image",
    "coco_keypoints": "{n} annotations do not have {keypoints} keypoints of x, y, visibility",
}
WARNINGS = {
    "image_suffix": "{n} images have a file name suffix that does not match their format",
    "image_hidden": "{n} images are hidden (their names start with a dot) and were skipped",
    "image_listed_twice": "{n} images are listed more than once in their split; each image was used once",
    "image_duplicate": "{n} images are exact copies of another image in the same split",
    "split_leak": "{n} images are also in another split, so the metrics will be too high; keep each image in one split",
    "names_differ_only_in_case": (
        "{n} file names differ from another name only in upper and lower case; some systems cannot distinguish them"
    ),
    "image_without_label": "{n} images have no label file and count as background",
    "label_mixed": "The labels contain boxes and {n} polygons; all rows were converted to the shape of the task",
    "label_duplicate": "{n} label rows were copies of another row in the same file and were removed",
    "label_degenerate": "{n} label rows without width or height were removed",
    "label_without_image": "{n} label files have no image and were ignored",
    "names_missing": "The dataset has no class names; class0, class1, … were used",
    "class_empty": "{n} classes have no labels",
    "class_rare": "{n} classes have fewer than {limit} labels",
    "class_not_in_train": "{n} classes do not occur in train and cannot be learned",
    "class_balance": "The most frequent class has {most} labels, the rarest class has {fewest}",
    "test_empty": "{problem}",
    "flip_idx_missing": (
        "The YAML has no flip_idx (the order of the keypoints in a mirrored image), so images are not mirrored"
    ),
    "task_ambiguous": (
        "All labels have four corners, which fits the tasks segment and obb; the task segment was chosen. "
        'For oriented boxes, set "task": "obb" in the configuration'
    ),
    "yaml_nc": "{problem}",
    "yaml_task": "task: {value} is not one of {tasks} and was ignored.",
    "yaml_encoding": "{file} is not UTF-8 and was read as Windows-1252; check the class names.",
    "yaml_tabs": "{file} is indented with tabs, which were read as spaces.",
    "yaml_path": "path: leads outside the allowed folders; the folder of the YAML was used",
    "yaml_foreign_path": (
        "{n} paths of the YAML do not exist on this host; folders of the same name beside the YAML were used"
    ),
    "yaml_no_val": "val: is not in the YAML; the val folder of the dataset was used",
    "yaml_no_test": "test: is not in the YAML; the test folder of the dataset was used",
    "coco_orphan": "{n} annotations refer to an image that is not in the file",
    "coco_outside": "{n} boxes reach outside their image and were clipped",
}
NOTES = {
    "image_background": "{n} images have no labels and count as background",
    "label_separators": "{n} label files with commas, semicolons or a byte order mark were normalized",
    "label_clipped": "{n} label rows reached outside the image by a rounding error and were clipped",
    "label_renumbered": (
        "{n} label rows were renumbered, because names: does not count from 0 without gaps, or because datasets were "
        "merged"
    ),
    "label_box_to_polygon": "{n} boxes were converted to polygons with four corners",
    "label_polygon_to_box": "{n} polygons were converted to boxes",
    "label_polygon_to_obb": "{n} polygons were converted to oriented boxes",
    "label_box_to_obb": "{n} boxes were converted to oriented boxes without rotation",
    "class_not_in_val": "{n} classes do not occur in val",
    "split_unassigned": "{n} images are not in the requested split and were put into train",
    "split_drawn": "The images were split at random: train ratio {ratio:g}, seed {seed}",
    "coco_crowd": "{n} crowd annotations were skipped",
}
KINDS: dict[str, tuple[Level, str]] = {
    **{code: ("error", message) for code, message in ERRORS.items()},
    **{code: ("warning", message) for code, message in WARNINGS.items()},
    **{code: ("note", message) for code, message in NOTES.items()},
}
LONGEST_MESSAGE = 5000  # characters
_FINDING = TypeAdapter(Finding)


def finding_of(value: object) -> Finding:
    """Return the finding that a confined process wrote as JSON. Raises ValueError."""
    finding = _FINDING.validate_python(value)
    require_possible(finding)
    return finding


def require_possible(finding: Finding) -> None:
    """Raise ValueError for a finding that no `Report` contains."""
    if finding.code not in KINDS or not 0 <= finding.count < 1 << 31 or len(finding.examples) > MAX_EXAMPLES:
        raise ValueError("a finding has an unknown code, an impossible count or too many examples")
    if any(len(text) > LONGEST_MESSAGE for text in (finding.message, *finding.examples)):
        raise ValueError("a finding has a text that is too long")


class Report:
    """Collects findings. Each code becomes one finding with a count and up to five examples."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}
        self._counts: Counter[str] = Counter()
        self._others: list[Finding] = []

    def add(
        self, code: str, example: str = "", count: int = 1, *, level: Level | None = None, **values: object
    ) -> None:
        """Add a finding. `code` is a key of KINDS. The message contains the `values` of the first call."""
        self._counts[code] += count
        if code not in self._found:
            usual, message = KINDS[code]
            message = message.format(**{"n": "{n}"} | values)
            self._found[code] = Finding(level=level or usual, code=code, message=message)
        known = self._found[code]
        if example and len(known.examples) < MAX_EXAMPLES:
            self._found[code] = replace(known, examples=(*known.examples, printable(example)))

    def extend(self, findings: Iterable[Finding]) -> None:
        self._others += findings

    def has(self, *codes: str) -> bool:
        """Return whether at least one of the codes was reported."""
        return not self._found.keys().isdisjoint(codes)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """All findings: errors, then warnings, then notes."""
        found = [*self._others, *(_counted(found, self._counts[code]) for code, found in self._found.items())]
        return tuple(sorted(found, key=lambda f: LEVELS.index(f.level)))

    def raise_errors(self) -> None:
        """Raise `DatasetError` with all errors, if there are any."""
        problems = [finding.message for finding in self.findings if finding.level == "error"]
        if problems:
            raise DatasetError(problems)


def _counted(finding: Finding, count: int) -> Finding:
    message = finding.message.replace("{n}", str(count))
    if finding.examples:
        more = ", …" if count > len(finding.examples) else ""
        message = f"{message} ({', '.join(finding.examples)}{more})"
    return replace(finding, message=message, count=count)
