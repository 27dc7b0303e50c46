"""Hostile images, file names and links in a dataset."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image

from tests.hostile.damaged_dataset import (
    Damage,
    OnDisk,
    jpeg,
    run,
    with_image,
)
from trainer.core.dataset import DatasetOrder
from trainer.core.stop import StopSignal
from trainer.datasets.decoder import here
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.roots import Roots


def png(width: int, height: int, tail: bytes = b"IEND") -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + tail


def avif() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "AVIF")
    return out.getvalue()


IMAGES = {
    "PNG of 60,000 x 60,000 pixels": (png(60_000, 60_000), "more than"),
    "PNG with sides of two billion pixels": (png(2**31 - 1, 2**31 - 1), "more than"),
    "PNG of 0 x 0 pixels": (png(0, 0), "each side must have at least"),
    "PNG with a decompression bomb in a text chunk": (
        png(16, 16, b"zTXt" + zlib.compress(bytes(10 << 20)) + b"IEND"),
        "ok",
    ),
    "JPEG of 65,535 x 65,535 pixels": (
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" + bytes(9) + b"\xff\xd9",
        "more than",
    ),
    "JPEG with 100,000 empty segments": (b"\xff\xd8" + b"\xff\xe0\x00\x02" * 100_000 + b"\xff\xd9", "damaged"),
    "JPEG with only fill bytes": (b"\xff\xd8" + b"\xff" * 500_000 + b"\xff\xd9", "damaged"),
    "TIFF whose directory points to itself": (b"II*\0\x08\0\0\0" + b"\x01\0" + b"\0" * 12 + b"\x08\0\0\0", "damaged"),
    "TIFF of 50,000 x 50,000 pixels": (
        b"II*\0\x08\0\0\0\x02\0"
        + struct.pack("<HHII", 256, 4, 1, 50_000)
        + struct.pack("<HHII", 257, 4, 1, 50_000)
        + bytes(4),
        "",
    ),
    "BMP of negative height": (
        b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + struct.pack("<Iii", 40, 16, -16) + bytes(1000),
        "ok",
    ),
    "BMP with sides of two billion pixels": (
        b"BM" + struct.pack("<IHHI", 99, 0, 0, 54) + struct.pack("<Iii", 40, 2**31 - 1, -(2**31)) + bytes(99),
        "more than",
    ),
    "AVIF without item location": (avif().replace(b"iloc", b"xloc"), "damaged"),
    "truncated AVIF": (avif()[:200], ""),
    "empty file": (b"", "empty"),
    "web page as image": (b"<html>sign in</html>", "web page"),
    "shell script": (b"#!/bin/sh\ntouch /tmp/hostile-was-here\n", "not an image"),
    "ZIP archive": (b"PK\x03\x04" + bytes(100), "not an image"),
    "PostScript file": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not an image"),
    "SVG with an external entity": (
        b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><svg/>",
        "SVG",
    ),
    "truncated JPEG": (jpeg()[:300], "truncated"),
    "JPEG with data after its end mark": (jpeg() + b"<?php system('x') ?>" * 10, "ok"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_hostile_image_is_rejected_or_harmless(tmp_path, case):
    data, expected = IMAGES[case]
    assert expected in run(tmp_path, with_image(data))
    assert not Path("/tmp/hostile-was-here").exists()


def rename(name: str) -> Damage:
    def damage(root: Path) -> None:
        (root / "images/train/0.jpg").rename(root / "images/train" / f"{name}.jpg")
        (root / "labels/train/0.txt").rename(root / "labels/train" / f"{name}.txt")

    return damage


NAMES = [
    "-rf",
    "--help",
    "-",
    "a\nb",
    "a\tb",
    "\x1b[31mred",
    "a\x7fb",
    "*",
    "?",
    "[a-z]",
    "%s%n",
    "$(touch x)",
    "`id`",
    "a;b",
    "a|b",
    "a'b",
    'a"b',
    "a b",
    " ",
    "a ",
    "a..",
    "~",
    "CON",
    "\u202egpj.exe",
    "\ufeff",
    "ä",
    "a\u0308",
    "\ud7ff",
    "\udcff\udcfe",
    "😀" * 50,
    "x" * 240,
    "é" * 120,
    "data",
    "a.jpg",
    "\\..\\..\\x",
    "&",
    "<b>",
    "#",
    "null",
    "a\u2028b",
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.encode("unicode_escape").decode()[:24])
def test_dataset_with_hostile_file_name_is_prepared(tmp_path, name):
    assert run(tmp_path, rename(name)) == "ok"
    assert len(list((tmp_path / "views/run/view/images/train").iterdir())) == 2


def test_images_whose_names_differ_only_in_case_are_kept(tmp_path):
    def damage(root: Path) -> None:
        for name in ("IMG", "img", "Img"):
            (root / f"images/train/{name}.jpg").write_bytes(jpeg(len(name)))
            (root / f"labels/train/{name}.txt").write_text("0 .5 .5 .5 .5")

    assert run(tmp_path, damage) == "ok"
    made = [p.name.lower() for p in (tmp_path / "views/run/view/images/train").iterdir()]
    assert len(set(made)) == len(made) == 5


def link(place: str, target: str) -> Damage:
    def damage(root: Path) -> None:
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target.replace("SECRETS", str(root.parent.parent / "secrets")).replace("ROOT", str(root)))

    return damage


LINKS = {
    "image linked to a secret": (link("images/train/s.jpg", "SECRETS/secret.jpg"), "symlinks are broken or lead"),
    "image linked to a device": (link("images/train/s.jpg", "/dev/zero"), "symlinks are broken or lead"),
    "image with a broken symlink": (link("images/train/s.jpg", "/no/such/file"), "symlinks are broken or lead"),
    "image linked to itself": (link("images/train/s.jpg", "s.jpg"), "symlinks are broken or lead"),
    "label linked to a secret": (link("labels/train/s.txt", "SECRETS/secret.txt"), "symlinks are broken or lead"),
    "folder linked to secrets": (link("images/train/more", "SECRETS"), "symlinks are broken or lead"),
    "folder linked to /": (link("images/train/more", "/"), "symlinks are broken or lead"),
    "folder linked to its parent": (link("images/train/up", "ROOT/images"), "ok"),
    "folder linked to itself": (link("images/train/me", "me"), "symlinks are broken or lead"),
    "image linked to another image": (link("images/train/s.jpg", "ROOT/images/train/0.jpg"), "ok"),
}


@pytest.mark.parametrize("case", LINKS)
def test_symlink_is_rejected_or_stays_inside_dataset(tmp_path, case):
    damage, expected = LINKS[case]
    assert expected in run(tmp_path, damage)


@pytest.mark.parametrize("is_private", [True, False])
@pytest.mark.parametrize("folder", ["images/train", "labels/train", "labels", "images"])
def test_folder_linked_to_outside_the_dataset_is_rejected(tmp_path, folder, is_private):
    def damage(root: Path) -> None:
        (root / folder).rename(root / "moved")
        (root / folder).symlink_to(root.parent.parent / "secrets")

    outcome = run(tmp_path, damage, is_private=is_private)
    assert "outside" in outcome or "names no images" in outcome


def test_hidden_images_are_reported(tmp_path):
    assert run(tmp_path, with_image(jpeg(5), "..a.jpg")) == "ok"
    (tmp_path / "roots/set/images/train/._0.jpg").write_bytes(b"resource fork")
    datasets = FetchedDatasets(OnDisk(False), ReferenceRules(Roots(tmp_path / "roots"), "datasets"), decode=here)
    order = DatasetOrder(sources=(str(tmp_path / "roots/set"),))
    found = {f.code: f for f in datasets.prepare(order, tmp_path / "again", StopSignal(), lambda _: None).findings}
    assert (found["image_hidden"].count, found["image_hidden"].examples) == (1, ("images/train/..a.jpg",))


def test_symlink_loop_of_folders_is_read_in_bounded_time(tmp_path):
    def damage(root: Path) -> None:
        for name in ("a", "b", "c", "d"):
            (root / "images/train" / name).mkdir()
        for name in ("a", "b", "c", "d"):
            for other in ("a", "b", "c", "d"):
                (root / f"images/train/{name}/{other}x").symlink_to(root / f"images/train/{other}")

    assert run(tmp_path, damage) == "ok"


def test_too_deeply_nested_folder_is_rejected(tmp_path):
    deep = "/".join(["d"] * 60)
    assert "nested more than" in run(tmp_path, lambda root: (root / "images/train" / deep).mkdir(parents=True))


def test_named_pipe_among_images_or_labels_is_not_opened(tmp_path):
    def damage(root: Path) -> None:
        os.mkfifo(root / "images/train/p.jpg")
        os.mkfifo(root / "labels/train/0b.txt")

    assert run(tmp_path, damage) == "ok"


@pytest.mark.parametrize("name", ["data.yaml", "annotations.json", "obj.names"])
def test_named_pipe_that_describes_the_dataset_is_not_read(tmp_path, name):
    def damage(root: Path) -> None:
        (root / "data.yaml").unlink()
        os.mkfifo(root / name)

    assert "not a regular file" in run(tmp_path, damage, "")


def test_named_pipe_as_list_of_images_is_not_read(tmp_path):
    def damage(root: Path) -> None:
        (root / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [a, b]\n")
        os.mkfifo(root / "train.txt")

    assert "not a regular file" in run(tmp_path, damage)
