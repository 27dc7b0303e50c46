"""Label files: accepted, converted and rejected rows, and their messages."""

from __future__ import annotations

import numpy as np
import pytest

from trainer.core.dataset import Finding, Task
from trainer.core.stop import Stopped, StopReason, StopSignal
from trainer.datasets.findings import Report
from trainer.datasets.labels.check import Labels, check
from trainer.datasets.labels.convert import Shape
from trainer.datasets.labels.parse import CHUNK, column_counts, guess_task

BOX = "0 0.5 0.5 0.2 0.2"
TRIANGLE = "1 0.1 0.1 0.5 0.1 0.5 0.5"
SQUARE = "0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75"
POSE = "0 0.5 0.5 0.2 0.2 0.4 0.4 2 0.6 0.6 0"


def checked(*texts: str | bytes, task=Task.DETECT, classes=2, keypoints=None) -> tuple[Labels, dict[str, Finding]]:
    report = Report()
    shape = Shape(task=task, classes={number: number for number in range(classes)}, keypoints=keypoints)
    encoded = [text.encode() if isinstance(text, str) else text for text in texts]
    labels = check(encoded, [f"{n}.txt" for n in range(len(texts))], shape, report, StopSignal())
    return labels, {finding.code: finding for finding in report.findings}


def numbers(text: bytes) -> list[list[float]]:
    return [[float(token) for token in line.split()] for line in text.splitlines()]


@pytest.mark.parametrize(
    ("task", "text"),
    [
        (Task.DETECT, BOX),
        (Task.DETECT, f"{BOX}\n1 0.1 0.1 0.1 0.1\n"),
        (Task.SEGMENT, TRIANGLE),
        (Task.OBB, SQUARE),
        (Task.POSE, POSE),
        (Task.DETECT, ""),
        (Task.DETECT, "\n \n"),
        (Task.DETECT, "1.0 0.5 0.5 1 1"),
        (Task.DETECT, f"{BOX}\r\n"),
        (Task.DETECT, "0\t.5\t.5  1e-1 1E-1"),
        (Task.DETECT, "0 1 1 1 1"),
    ],
)
def test_valid_file_is_kept_byte_for_byte(task, text):
    labels, found = checked(text, task=task, keypoints=(2, 3))
    assert (labels.texts, found) == ([text.encode()], {})


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        (b"\xef\xbb\xbf" + BOX.encode(), [[0, 0.5, 0.5, 0.2, 0.2]]),
        (BOX.encode("utf-16"), [[0, 0.5, 0.5, 0.2, 0.2]]),
        (b"0,0.5,0.5,0.2,0.2", [[0, 0.5, 0.5, 0.2, 0.2]]),
        (b"0, 0.5, 0.5, 0.2, 0.2,", [[0, 0.5, 0.5, 0.2, 0.2]]),
        (b"0;0.5;0.5;0.2;0.2", [[0, 0.5, 0.5, 0.2, 0.2]]),
    ],
)
def test_other_separators_and_encodings_are_read(text, rows):
    labels, found = checked(text)
    assert numbers(labels.texts[0]) == rows
    assert found["label_separators"].count == 1
    assert not [finding for finding in found.values() if finding.level == "error"]


def test_polygons_and_boxes_are_converted_for_task():
    labels, found = checked(TRIANGLE)
    assert numbers(labels.texts[0]) == [pytest.approx([1, 0.3, 0.3, 0.4, 0.4])]
    assert found["label_polygon_to_box"].examples == ("0.txt",)
    labels, found = checked(BOX, task=Task.SEGMENT)
    assert numbers(labels.texts[0]) == [pytest.approx([0, 0.4, 0.4, 0.6, 0.4, 0.6, 0.6, 0.4, 0.6])]
    assert found["label_box_to_polygon"].count == 1


def test_box_outside_image_is_clipped_when_converted():
    labels, _ = checked("0 0.0 0.5 0.2 0.2", task=Task.SEGMENT)
    assert numbers(labels.texts[0]) == [pytest.approx([0, 0, 0.4, 0.1, 0.4, 0.1, 0.6, 0, 0.6])]


def test_boxes_and_polygons_become_oriented_boxes():
    turned = "1 0.5 0.1 0.9 0.5 0.7 0.7 0.5 0.9 0.1 0.5"  # a rotated square with an extra point
    labels, found = checked(f"{BOX}\n{turned}\n{SQUARE}", task=Task.OBB)
    box, tip, square = numbers(labels.texts[0])
    assert box == pytest.approx([0, 0.4, 0.4, 0.6, 0.4, 0.6, 0.6, 0.4, 0.6])
    assert sorted(zip(tip[1::2], tip[2::2], strict=True)) == [
        pytest.approx(point) for point in ((0.1, 0.5), (0.5, 0.1), (0.5, 0.9), (0.9, 0.5))
    ]
    assert square == numbers(SQUARE.encode())[0]
    assert {"label_box_to_obb", "label_polygon_to_obb"} <= found.keys()


def test_mixed_shapes_are_converted_with_warning():
    labels, found = checked(f"{BOX}\n{TRIANGLE}", task=Task.SEGMENT)
    assert [len(row) for row in numbers(labels.texts[0])] == [9, 7]
    assert found["label_mixed"].level == "warning"


def test_duplicate_rows_are_removed():
    labels, found = checked(f"{BOX}\n1 .1 .1 .1 .1\n{BOX}\n0 0.50 0.5 0.2 0.2\n", BOX)
    assert len(numbers(labels.texts[0])) == 2
    assert found["label_duplicate"].count == 2
    assert labels.rows.image.tolist() == [0, 0, 1]
    assert labels.rows.cls.tolist() == [0, 1, 0]


def test_equal_rows_in_two_files_are_kept():
    labels, found = checked(BOX, BOX)
    assert labels.texts == [BOX.encode()] * 2
    assert not found


@pytest.mark.parametrize(
    ("row", "fixed"),
    [("0 1.004 0.5 0.2 0.2", [0, 1, 0.5, 0.2, 0.2]), ("0 0.5 -0.001 0.2 0.2", [0, 0.5, 0, 0.2, 0.2])],
)
def test_coordinates_with_rounding_errors_are_clipped(row, fixed):
    labels, found = checked(row)
    assert numbers(labels.texts[0]) == [fixed]
    assert found["label_clipped"].count == 1


@pytest.mark.parametrize(
    ("task", "row"),
    [
        (Task.DETECT, "0 0.5 0.5 0 0.2"),
        (Task.DETECT, "0 0.5 0.5 0.2 0.0"),
        (Task.SEGMENT, "0 0.1 0.1 0.5 0.1 0.9 0.1"),
        (Task.DETECT, "0 0.1 0.1 0.1 0.5 0.1 0.9"),
        (Task.POSE, "0 0.5 0.5 0 0 0.4 0.4 2 0.6 0.6 0"),
    ],
)
def test_shapes_without_area_are_removed_with_warning(task, row):
    labels, found = checked(row, task=task, keypoints=(2, 3))
    assert labels.texts == [b""]
    assert labels.rows.cls.tolist() == []
    assert found["label_degenerate"].level == "warning"


@pytest.mark.parametrize(
    ("row", "code", "sign"),
    [
        ("2 0.5 0.5 0.2 0.2", "class_outside", "names: has 2 classes, numbered 0 to 1 (0.txt line 1: class 2)"),
        ("-1 0.5 0.5 0.2 0.2", "class_outside", "class -1"),
        ("0.5 0.5 0.5 0.2 0.2", "class_not_whole", "do not start with a class number"),
        ("nan 0.5 0.5 0.2 0.2", "class_not_whole", "do not start with a class number"),
        ("1e300 0.5 0.5 0.2 0.2", "class_not_whole", "do not start with a class number"),
        ("cat 0.5 0.5 0.2 0.2", "label_text", "0.txt line 1: cat"),
        ("0 0.5 0.5 0.2 0.2 # note", "label_text", "#"),
        ("0 0.5 0.5 0.2", "label_columns", "4 columns"),
        ("0", "label_columns", "1 columns"),
        ("0 0.5 0.5 0.2 0.2 0.9", "label_columns", "is the last number a confidence?"),
        ("0 0.5 0.5 0.2 0.2 0.9 0.9 0.9", "label_columns", "8 columns"),
        ("0 nan 0.5 0.2 0.2", "label_nan", "0.txt line 1"),
        ("0 0.5 inf 0.2 0.2", "label_nan", "0.txt line 1"),
        ("0 320 240 100 80", "label_pixels", "seem to be in pixels"),
        ("0 0.5 1.3 0.2 0.2", "label_outside", "outside 0…1"),
        ("0 0.5 -0.3 0.2 0.2", "label_outside", "outside 0…1"),
    ],
)
def test_invalid_row_is_an_error_with_line_number(row, code, sign):
    _, found = checked(f"\n{row}\n".encode().removeprefix(b"\n"))
    assert found[code].level == "error"
    assert sign in found[code].message


@pytest.mark.parametrize(
    ("row", "code"),
    [
        (BOX, "label_columns"),
        (POSE + " 1", "label_columns"),
        ("0 .5 .5 .2 .2 3 40 2 .6 .6 0", "label_pixels"),
        ("0 .5 .5 .2 .2 1.5 .4 2 .6 .6 0", "label_outside"),
    ],
)
def test_invalid_pose_row_is_an_error(row, code):
    _, found = checked(row, task=Task.POSE, keypoints=(2, 3))
    assert found[code].level == "error"


def test_keypoint_visibility_is_not_checked_as_coordinate():
    labels, found = checked("0 .5 .5 .2 .2 1.001 .4 2 .6 .6 0", task=Task.POSE, keypoints=(2, 3))
    assert numbers(labels.texts[0]) == [[0, 0.5, 0.5, 0.2, 0.2, 1, 0.4, 2, 0.6, 0.6, 0]]
    assert set(found) == {"label_clipped"}


def test_errors_are_counted_and_five_are_shown():
    _, found = checked(*["9 0.5 0.5 0.1 0.1"] * 40)
    assert (found["class_outside"].count, len(found["class_outside"].examples)) == (40, 5)
    assert found["class_outside"].message.startswith("40 label rows")


def test_rows_after_first_chunk_have_index_and_name_of_their_file():
    labels, found = checked(*[BOX] * CHUNK, "1 .5 .5 .2 .2", "7 .5 .5 .1 .1")
    assert (labels.rows.image[-1], labels.rows.cls[-1], len(labels.texts)) == (CHUNK, 1, CHUNK + 2)
    assert f"{CHUNK + 1}.txt line 1" in found["class_outside"].message


def test_large_text_is_parsed_in_chunks(monkeypatch):
    monkeypatch.setattr("trainer.datasets.labels.parse.CHUNK_BYTES", 20)
    labels, found = checked(BOX, "", f"1 {BOX[2:]}", BOX, "", "7 .5 .5 .1 .1")
    assert (labels.rows.image.tolist(), labels.rows.cls.tolist()) == ([0, 2, 3], [0, 1, 0])
    assert "5.txt line 1" in found["class_outside"].message


def test_check_of_labels_can_be_stopped():
    stop = StopSignal()
    stop.set(StopReason.CANCELED)
    with pytest.raises(Stopped):
        check([BOX.encode()], ["a"], Shape(task=Task.DETECT, classes={0: 0}), Report(), stop)


def test_class_ids_with_gaps_are_renumbered():
    report = Report()
    shape = Shape(task=Task.DETECT, classes={1: 0, 5: 1})
    labels = check([b"5 .5 .5 .1 .1\n1 .2 .2 .1 .1"], ["a"], shape, report, StopSignal())
    assert [row[0] for row in numbers(labels.texts[0])] == [1, 0]
    assert labels.rows.cls.tolist() == [1, 0]


def test_rewriting_does_not_change_valid_rows():
    rng = np.random.default_rng(0)
    rows = [[0, *rng.uniform(0.2, 0.8, 4)] for _ in range(50)]
    text = "\n".join(" ".join(map(repr, (row[0], *map(float, row[1:])))) for row in rows)
    labels, _ = checked(f"{text}\n0 1.001 .5 .2 .2")  # the last row must be clipped, so the file is rewritten
    assert numbers(labels.texts[0])[:-1] == rows


@pytest.mark.parametrize(
    ("texts", "task"),
    [
        ([TRIANGLE, SQUARE], Task.SEGMENT),
        ([TRIANGLE, BOX], Task.DETECT),
        ([BOX], Task.DETECT),
        ([""], Task.DETECT),
        ([SQUARE], Task.SEGMENT),
        (["", TRIANGLE], Task.SEGMENT),
    ],
)
def test_task_is_guessed_from_labels(texts, task):
    assert guess_task(column_counts([text.encode() for text in texts])) is task
