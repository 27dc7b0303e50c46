"""The processor time for a hostile dataset grows with its size, not with the square of its size."""

from __future__ import annotations

import json
import time

import pytest

from tests.hostile.damaged_dataset import jpeg
from trainer.core.errors import DatasetError
from trainer.datasets.findings import Report
from trainer.datasets.formats.coco_document import keypoints
from trainer.datasets.images import header
from trainer.datasets.source.ndjson import read_ndjson
from trainer.datasets.view.links import view_names

SECONDS = 5.0  # of processor time; the squares below would need at least three times as long


def test_images_whose_names_become_equal():
    """The view replaces each symbol by `_`."""
    symbols = [chr(code) for code in range(0x2600, 0x2690)]
    names = [f"images/{a}{b}.jpg" for a in symbols for b in symbols]
    began = time.process_time()

    made = view_names(names)

    assert time.process_time() - began < SECONDS
    assert len(set(made)) == len(names)


def test_export_with_many_class_names(tmp_path):
    head = {"task": "detect", "class_names": [f"n{number}" for number in range(60_000)]}
    (tmp_path / "a.ndjson").write_text(json.dumps(head))
    began = time.process_time()

    with pytest.raises(DatasetError, match="lists no images"):
        read_ndjson(tmp_path / "a.ndjson", "a.ndjson")

    assert time.process_time() - began < SECONDS


def test_categories_with_many_keypoints():
    category = {"id": 1, "name": "a", "keypoints": [f"left{number}" for number in range(60_000)]}
    report, began = Report(), time.process_time()

    assert keypoints([{"images": [], "categories": [category]}], report) == (None, None)

    assert time.process_time() - began < SECONDS
    assert "the limit is 1000" in report.findings[0].message


def test_metadata_of_many_megabytes_is_not_read(tmp_path, monkeypatch):
    def opened(path):
        raise AssertionError("Pillow joins the segments one by one")

    monkeypatch.setattr(header, "opened_by_pillow", opened)
    segment = b"\xff\xe1" + (65_002).to_bytes(2) + b"Exif\0\0".ljust(65_000, b"x")
    image = jpeg()
    (tmp_path / "a.jpg").write_bytes(image[:2] + segment * 300 + image[2:])

    found = header.facts(str(tmp_path / "a.jpg"))

    assert not found.problem
    assert not found.is_surely_readable
