"""A small archive that expands to gigabytes of objects does not fill the memory of the service."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.hostile.damaged_dataset import jpeg
from tests.process.sandbox_host import PROJECT, needs_landlock

PROGRAM = Path(__file__).parent / "programs/prepares_dataset.py"
DAEMON_MIB = 150  # the limit for the memory of the service
BOMB = 128 << 20  # bytes of JSON


def bomb(path):
    """Write an archive of about 1 MB with a COCO file of 128 MiB."""
    row = b'{"id":1,"image_id":1,"category_id":1,"bbox":[1,2,3,4],"area":12.0,"iscrowd":0},'
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("noise.txt", os.urandom(400_000).hex())  # the ratio of the archive is not suspicious
        with archive.open("annotations.json", "w") as file:
            file.write(b'{"images":[{"id":1,"file_name":"a.jpg"}],"categories":[{"id":1,"name":"x"}],"annotations":[')
            for _ in range(BOMB // len(row) // 10_000):
                file.write(row * 10_000)
            file.write(b"{}]}")
        archive.writestr("a.jpg", jpeg())


def prepared_by_service(tmp_path, reference):
    program = [sys.executable, str(PROGRAM), str(tmp_path / "home"), reference]
    done = subprocess.run(
        program, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(PROJECT)}, check=True, timeout=280
    )
    return json.loads(done.stdout)


@needs_landlock
def test_archive_whose_annotations_expand_too_much_is_rejected(tmp_path):
    (tmp_path / "home/datasets").mkdir(parents=True)
    bomb(tmp_path / "home/datasets/bomb.zip")

    done = prepared_by_service(tmp_path, "bomb.zip")

    assert "expands to more than 100 times its size" in done["outcome"]
    assert done["peak"] < DAEMON_MIB << 10


@needs_landlock
@pytest.mark.long
def test_annotations_of_128_mib_do_not_fill_the_memory_of_the_service(tmp_path):
    (tmp_path / "home/datasets").mkdir(parents=True)
    bomb(tmp_path / "bomb.zip")
    with zipfile.ZipFile(tmp_path / "bomb.zip") as archive:
        archive.extractall(tmp_path / "home/datasets/set")

    done = prepared_by_service(tmp_path, "set")

    assert "DatasetError" in done["outcome"]
    assert done["peak"] < DAEMON_MIB << 10
