"""Hostile datasets on disk: every case ends in a clear error or a harmless success, soon, and inside its folders.

Whatever a case is, these must hold: no code of the dataset's runs, nothing outside the view is written, the source stays
as it was, no file outside the source gets into the view, memory and time are bounded.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image

from trainer.core.dataset import DatasetOrder, SplitRequest, Task
from trainer.core.errors import DatasetError
from trainer.core.stop import StopSignal
from trainer.datasets.fetch import Fetched
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.reference import Roots

SECONDS = 20.0  # of processor time for one case, on a slow machine; most take milliseconds
MEBIBYTES = 600  # of growth
ALLOWED_KEYS = {"path", "train", "val", "test", "nc", "names", "kpt_shape", "flip_idx"}
USUAL = "train: images/train\nval: images/val\n"
Spoil = Callable[[Path], object]


class OnDisk:
    def __init__(self, is_private: bool) -> None:
        self._is_private = is_private

    def fetch(self, ref, staging, stop, on_event):
        path = Path(ref.path)
        root, entry = (path, None) if path.is_dir() else (path.parent, Path(path.name))
        return Fetched(root=root, entry=entry, is_private=self._is_private)

    def scratch(self):
        raise NotImplementedError


def jpeg(number: int = 0) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (number * 7 % 256, number * 31 % 256, 40)).save(out, "JPEG")
    return out.getvalue()


def base(root: Path) -> None:
    """Four sound images, two in val."""
    for number in range(4):
        split = ("train", "val")[number % 2]
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        (root / f"images/{split}/{number}.jpg").write_bytes(jpeg(number))
        (root / f"labels/{split}/{number}.txt").write_text("0 .5 .5 .5 .5\n")
    (root / "data.yaml").write_text(USUAL + "names: [a, b]\n")


def prepare(tmp_path: Path, entry: str = "data.yaml", task=None, split=None, is_private=False):
    datasets = FetchedDatasets(OnDisk(is_private), Roots(tmp_path / "roots"), "datasets")
    order = DatasetOrder(run_id="r", sources=(str(tmp_path / "roots/set" / entry),), task=task, split=split)
    return datasets.prepare(order, tmp_path / "views/run", StopSignal(), lambda _: None)


def state(folder: Path) -> dict[str, str]:
    """Everything below a folder: kind, size, time and the content of small files."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(place, name)
            info = os.lstat(path)
            small = os.path.isfile(path) and not os.path.islink(path) and info.st_size < 1 << 16
            content = hashlib.sha256(Path(path).read_bytes()).hexdigest() if small else ""
            found[os.path.relpath(path, folder)] = f"{info.st_mode} {info.st_size} {info.st_mtime_ns} {content}"
    return found


def run(tmp_path: Path, spoil: Spoil, entry: str = "data.yaml", **how) -> str:
    """Prepare a spoilt dataset and check what must always hold. "ok" or the error's text."""
    source, secrets = tmp_path / "roots/set", tmp_path / "secrets"
    base(source)
    secrets.mkdir()
    (secrets / "secret.txt").write_text("0 .5 .5 .1 .1\n")
    (secrets / "secret.jpg").write_bytes(jpeg(99))
    spoil(source)
    before = state(tmp_path / "roots"), state(secrets)
    started = time.monotonic()
    began, memory = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        result = prepare(tmp_path, entry, **how)
        outcome = "ok"
    except DatasetError as error:
        outcome = str(error)
        assert outcome.strip()
        assert len(outcome) < 20_000
        assert outcome.isprintable() or "\n" in outcome
        outcome.encode("utf-8")
    else:
        check_view(tmp_path, result)
    assert time.process_time() - began < SECONDS
    assert time.monotonic() - started < 5 * SECONDS  # nothing sleeps or blocks, also on a busy machine
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEBIBYTES << 10
    assert (state(tmp_path / "roots"), state(secrets)) == before
    assert sorted(p.name for p in tmp_path.iterdir()) in (["roots", "secrets"], ["roots", "secrets", "views"])
    assert not (tmp_path / "views").exists() or [p.name for p in (tmp_path / "views").iterdir()] == ["run"]
    return outcome


def check_view(tmp_path: Path, result) -> None:
    """Plain names, links only into the source, a YAML with our keys only, and nothing that a loader would obey."""
    view = tmp_path / "views/run"
    json.dumps(result.summary, allow_nan=False).encode("utf-8")
    assert len(json.dumps(result.summary)) < 1 << 20
    for place, _, files in os.walk(view):
        for name in files:
            path = Path(place, name)
            assert name.isprintable()
            assert name[0] not in "-."
            assert len(name) <= 200
            assert path.suffix not in {".cache", ".npy", ".py", ".pt"}
            assert path.resolve().is_relative_to(tmp_path / "roots") or path.resolve().is_relative_to(view)
    if result.task is not Task.CLASSIFY:
        data = yaml.safe_load(result.data.read_text())
        assert set(data) <= ALLOWED_KEYS
        assert data["path"] == str(view)
        assert all(data[key] == f"images/{key}" for key in ("train", "val", "test") if key in data)


def with_yaml(text: str | bytes) -> Spoil:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda root: (root / "data.yaml").write_bytes(data)


def with_label(data: bytes | str) -> Spoil:
    return lambda root: (root / "labels/train/0.txt").write_bytes(data if isinstance(data, bytes) else data.encode())


def with_image(data: bytes, name: str = "0.jpg") -> Spoil:
    return lambda root: (root / "images/train" / name).write_bytes(data)


def with_list(text: str) -> Spoil:
    def spoil(root: Path) -> None:
        (root / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [a, b]\n")
        (root / "train.txt").write_bytes(text.replace("ROOT", str(root)).encode("utf-8", "surrogateescape"))

    return spoil


def bomb(levels: int = 12) -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    return USUAL + "\n".join(lines) + f"\nnames: *a{levels - 1}\n"


TOUCH = "open('/tmp/hostile-was-here', 'w')"

# what the YAML is → what the outcome begins with or contains; "ok": harmless
YAMLS = {
    "download script in python": (USUAL + f"names: [a]\ndownload: |\n  {TOUCH}\n", "ok"),
    "download script in bash": (USUAL + "names: [a]\ndownload: bash -c 'touch /tmp/hostile-was-here'\n", "ok"),
    "download from a url": (USUAL + "names: [a]\ndownload: http://169.254.169.254/latest/meta-data\n", "ok"),
    "download script and a val that is missing": (
        f"train: images/train\nval: images/none\nnames: [a]\ndownload: {TOUCH}\n", "no val split",
    ),
    "python object tag": (USUAL + "names: !!python/object/apply:os.system ['touch /tmp/hostile-was-here']\n", "ok"),
    "python name tag on a key": (USUAL + "!!python/name:os.system names: [a]\n", "ok"),
    "python module tag as path": (USUAL + "names: [a]\npath: !!python/module:os .\n", "ok"),
    "unknown tag": (USUAL + "names: !x/y [a]\n", "ok"),
    "binary tag": (USUAL + "names: [!!binary aGVsbG8=]\n", "ok"),
    "alias": (USUAL + "names: &x [a, b]\nother: *x\n", "aliases"),
    "alias bomb": (bomb(), "aliases"),
    "merge key": (USUAL + "base: &b {names: [a]}\n<<: *b\n", "aliases"),
    "an alias to itself": (USUAL + "names: &x [*x]\n", "aliases"),
    "deep brackets": (USUAL + "names: " + "[" * 50_000, "nested too deeply"),
    "deep mappings": (USUAL + "names: " + "{a: " * 50_000, "nested too deeply"),
    "deep indentation": ("\n".join(" " * n + "a:" for n in range(2000)), "nested too deeply"),
    "many values": (USUAL + "names: [" + "a," * 600_000 + "]", "too many values"),
    "too large": (b"#" * (5 << 20), "larger than 4 MiB"),
    "a hundred megabytes in one line": (b"names: " + b"a" * (100 << 20), "larger than 4 MiB"),
    "binary": (os.urandom(4096), ""),
    "NUL bytes": (b"train: images/train\0\nval: images/val\nnames: [a]\n", ""),
    "empty": (b"", "must be a mapping"),
    "a list": ("- a\n- b\n", "must be a mapping"),
    "a word": ("hello\n", "must be a mapping"),
    "several documents": (USUAL + "names: [a]\n---\nnames: [b]\n", "no valid YAML"),
    "unclosed quote": (USUAL + 'names: ["a\n', "no valid YAML"),
    "keys that are lists": ("? [a, b]\n: c\n" + USUAL + "names: [a]\n", ""),
    "path to the root": ("path: /\n" + USUAL + "names: [a]\n", "ok"),
    "path to etc": ("path: /etc\n" + USUAL + "names: [a]\n", "outside the folders"),
    "path upwards": ("path: ../../secrets\n" + USUAL + "names: [a]\n", "outside the folders"),
    "path with a NUL": ('path: "a\\0b"\n' + USUAL + "names: [a]\n", ""),
    "path of ten thousand characters": (f"path: {'a/' * 5000}\n" + USUAL + "names: [a]\n", "ok"),
    "train upwards": ("train: ../../secrets\nval: images/val\nnames: [a]\n", "outside the folders"),
    "train in etc": ("train: /etc\nval: images/val\nnames: [a]\n", "outside the folders"),
    "train is /proc": ("train: /proc/self/root\nval: images/val\nnames: [a]\n", "outside the folders"),
    "train is a device": ("train: /dev/zero\nval: images/val\nnames: [a]\n", "outside the folders"),
    "train is a url": ("train: http://127.0.0.1/x.zip\nval: images/val\nnames: [a]\n", "leads to no images"),
    "train is a stream": ("train: rtsp://10.0.0.1/x\nval: images/val\nnames: [a]\n", "leads to no images"),
    "train is a mapping": ("train: {a: b}\nval: images/val\nnames: [a]\n", "must be a folder"),
    "train with a NUL": ('train: "images\\0/train"\nval: images/val\nnames: [a]\n', ""),
    "train is a glob": ("train: images/*\nval: images/val\nnames: [a]\n", "leads to no images"),
    "train is an option": ("train: --help\nval: images/val\nnames: [a]\n", "leads to no images"),
    "train is the yaml": ("train: data.yaml\nval: images/val\nnames: [a]\n", "must lead to a folder"),
    "ten thousand splits": (f"train: [{'images/train,' * 10_000}]\nval: images/val\nnames: [a]\n", "ok"),
    "names of ten thousand characters": (USUAL + f"names: [{'n' * 10_000}]\n", "names: must be"),
    "names with control characters": (USUAL + 'names: ["a\\nb", "\\u0007", "\\u202Egpj"]\n', "ok"),
    "names that are options and paths": (USUAL + "names: [--help, ../../x, /etc/passwd, 'a;b']\n", "ok"),
    "names nested": (USUAL + "names: [[a], {b: c}]\n", "names: must be"),
    "names by words": (USUAL + "names: {zero: a}\n", "names: must be"),
    "names by huge numbers": (USUAL + f"names: {{{'9' * 900}: a, 0: b}}\n", "names: must be"),
    "names by negative numbers": (USUAL + "names: {-1: a, 0: b}\n", "names: must be"),
    "two names for a number": (USUAL + "names: {0: a, '00': b}\n", "two names to one class"),
    "a million classes": (USUAL + "names: [" + "a," * 100_000 + "]\n", "are the limit"),
    "nc of a billion": (USUAL + "nc: 1000000000\nnames: [a]\n", "ok"),
    "nc of a billion without names": (USUAL + "nc: 1000000000\n", "ok"),
    "nc that is code": (USUAL + "nc: __import__('os')\nnames: [a]\n", "ok"),
    "kpt_shape huge": (USUAL + "names: [a]\nkpt_shape: [100000000, 3]\n", "kpt_shape is"),
    "kpt_shape of words": (USUAL + "names: [a]\nkpt_shape: [a, b]\n", "list of whole numbers"),
    "flip_idx out of range": (USUAL + "names: [a]\nkpt_shape: [2, 3]\nflip_idx: [0, 7]\n", "flip_idx must name"),
    "other keys that Ultralytics knows": (USUAL + "names: [a]\nchannels: 99\nyaml_file: /etc/passwd\nminival: x\n", "ok"),
}


@pytest.mark.parametrize("case", YAMLS)
def test_hostile_yaml(tmp_path, case):
    text, expected = YAMLS[case]
    outcome = run(tmp_path, with_yaml(text))
    assert expected in outcome
    assert not Path("/tmp/hostile-was-here").exists()


LABELS = {
    "a line of a hundred megabytes": (b"0 " + b"0.5 " * (25 << 20), "larger than 16 MiB"),
    "five million numbers": (b"0 " + b".5 " * (5 << 20), "ok"),
    "ten megabytes of digits": (b"0 .5 .5 .5 0." + b"5" * (10 << 20), "ok"),
    "a class of a million digits": (b"9" * (1 << 20) + b" .5 .5 .5 .5", "no class number"),
    "a class beyond 64 bits": ("18446744073709551616 .5 .5 .5 .5", "no class number"),
    "a class of two billion": ("2000000000 .5 .5 .5 .5", "no class number"),
    "numbers beyond doubles": ("0 1e999 .5 .5 .5", "NaN or infinity"),
    "denormal sizes": ("0 .5 .5 1e-320 1e-320", "ok"),
    "hexadecimal": ("0x0 .5 .5 .5 .5", "not a number"),
    "underscores": ("0 0.5_0 .5 .5 .5", "ok"),
    "other digits": ("\u0660 .5 .5 .5 .5", "not a number"),
    "NUL bytes": (b"0 .5 .5 .5 .5\0", "not a number"),
    "binary": (bytes(range(256)) * 8, "not a number"),
    "escape sequences": ("\x1b[2J .5 .5 .5 .5", "not a number"),
    "right to left marks": ("\u202e0 .5 .5 .5 .5", "not a number"),
    "UTF-16": ("0 .5 .5 .5 .5".encode("utf-16"), "ok"),
    "half a UTF-16": ("0 .5 .5 .5 .5".encode("utf-16") + b"\x00", ""),
    "two hundred thousand rows": ("0 .5 .5 .5 .5\n" * 200_000, "ok"),
    "a polygon of ten thousand corners": ("0 " + ".5 .6 .7 .2 " * 5_000 + "\n", "ok"),
    "a million lines of nothing": (b"\n" * (1 << 20), "ok"),
    "code": ("__import__('os').system('touch /tmp/hostile-was-here')\n", "not a number"),
    "pickle": (b"cos\nsystem\n(S'touch /tmp/hostile-was-here'\ntR.", "not a number"),
    "commas only": (",,,,,,", "ok"),
    "minus zero": ("-0 .5 .5 .5 .5", "ok"),
}


@pytest.mark.parametrize("case", LABELS)
def test_hostile_labels(tmp_path, case):
    data, expected = LABELS[case]
    assert expected in run(tmp_path, with_label(data))
    assert not Path("/tmp/hostile-was-here").exists()


def png(width: int, height: int, tail: bytes = b"IEND") -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)) + tail


def avif() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "AVIF")
    return out.getvalue()


IMAGES = {
    "a PNG of sixty thousand pixels squared": (png(60_000, 60_000), "more than"),
    "a PNG of two billion pixels squared": (png(2**31 - 1, 2**31 - 1), "more than"),
    "a PNG of no pixels": (png(0, 0), "smaller than"),
    "a PNG with a text bomb": (png(16, 16, b"zTXt" + zlib.compress(bytes(10 << 20)) + b"IEND"), "ok"),
    "a JPEG of 65,535 pixels squared": (
        b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03" + bytes(9) + b"\xff\xd9", "more than"
    ),
    "a JPEG of segments without end": (b"\xff\xd8" + b"\xff\xe0\x00\x02" * 100_000 + b"\xff\xd9", "damaged"),
    "a JPEG of fill bytes": (b"\xff\xd8" + b"\xff" * 500_000 + b"\xff\xd9", "damaged"),
    "a TIFF that points at itself": (b"II*\0\x08\0\0\0" + b"\x01\0" + b"\0" * 12 + b"\x08\0\0\0", "damaged"),
    "a TIFF of a billion pixels": (
        b"II*\0\x08\0\0\0\x02\0" + struct.pack("<HHII", 256, 4, 1, 50_000) + struct.pack("<HHII", 257, 4, 1, 50_000)
        + bytes(4), "",
    ),
    "a BMP of negative height": (
        b"BM" + struct.pack("<IHHI", 1000, 0, 0, 54) + struct.pack("<Iii", 40, 16, -16) + bytes(1000), "ok"
    ),
    "a BMP of two billion pixels": (
        b"BM" + struct.pack("<IHHI", 99, 0, 0, 54) + struct.pack("<Iii", 40, 2**31 - 1, -(2**31)) + bytes(99), "more than"
    ),
    "an AVIF whose picture is nowhere": (avif().replace(b"iloc", b"xloc"), "damaged"),
    "an AVIF that is cut off": (avif()[:200], ""),
    "an empty file": (b"", "empty"),
    "a web page": (b"<html>sign in</html>", "web page"),
    "a shell script": (b"#!/bin/sh\ntouch /tmp/hostile-was-here\n", "not an image"),
    "an archive": (b"PK\x03\x04" + bytes(100), "not an image"),
    "a PostScript file": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99 99\n", "not an image"),
    "an SVG with an entity": (b"<?xml version='1.0'?><!DOCTYPE x [<!ENTITY e SYSTEM 'file:///etc/passwd'>]><svg/>", "SVG"),
    "half a JPEG": (jpeg()[:300], "cut off"),
    "a JPEG with a payload behind its end": (jpeg() + b"<?php system('x') ?>" * 10, "ok"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_hostile_images(tmp_path, case):
    data, expected = IMAGES[case]
    assert expected in run(tmp_path, with_image(data))
    assert not Path("/tmp/hostile-was-here").exists()


def rename(name: str) -> Spoil:
    def spoil(root: Path) -> None:
        (root / "images/train/0.jpg").rename(root / "images/train" / f"{name}.jpg")
        (root / "labels/train/0.txt").rename(root / "labels/train" / f"{name}.txt")

    return spoil


NAMES = [
    "-rf", "--help", "-", "a\nb", "a\tb", "\x1b[31mred", "a\x7fb", "*", "?", "[a-z]", "%s%n", "$(touch x)", "`id`", "a;b",
    "a|b", "a'b", 'a"b', "a b", " ", "a ", "a..", "~", "CON", "\u202egpj.exe", "\ufeff", "ä", "a\u0308", "\ud7ff",
    "\udcff\udcfe", "😀" * 50, "x" * 240, "é" * 120, "data", "a.jpg", "\\..\\..\\x", "&", "<b>", "#", "null", "a\u2028b",
]


@pytest.mark.parametrize("name", NAMES, ids=lambda name: name.encode("unicode_escape").decode()[:24])
def test_hostile_file_names(tmp_path, name):
    assert run(tmp_path, rename(name)) == "ok"
    assert len(list((tmp_path / "views/run/images/train").iterdir())) == 2


def test_names_that_differ_only_in_case_do_not_meet(tmp_path):
    def spoil(root: Path) -> None:
        for name in ("IMG", "img", "Img"):
            (root / f"images/train/{name}.jpg").write_bytes(jpeg(len(name)))
            (root / f"labels/train/{name}.txt").write_text("0 .5 .5 .5 .5")

    assert run(tmp_path, spoil) == "ok"
    made = [p.name.lower() for p in (tmp_path / "views/run/images/train").iterdir()]
    assert len(set(made)) == len(made) == 5


def link(place: str, target: str) -> Spoil:
    def spoil(root: Path) -> None:
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target.replace("SECRETS", str(root.parent.parent / "secrets")).replace("ROOT", str(root)))

    return spoil


LINKS = {
    "an image to a secret": (link("images/train/s.jpg", "SECRETS/secret.jpg"), "symlinks lead"),
    "an image to a device": (link("images/train/s.jpg", "/dev/zero"), "symlinks lead"),
    "an image to nothing": (link("images/train/s.jpg", "/no/such/file"), "symlinks lead"),
    "an image to itself": (link("images/train/s.jpg", "s.jpg"), "symlinks lead"),
    "a label to a secret": (link("labels/train/s.txt", "SECRETS/secret.txt"), "symlinks lead"),
    "a folder to secrets": (link("images/train/more", "SECRETS"), "symlinks lead"),
    "a folder to the root": (link("images/train/more", "/"), "symlinks lead"),
    "a folder to its own parent": (link("images/train/up", "ROOT/images"), "ok"),
    "a folder to itself": (link("images/train/me", "me"), "symlinks lead"),
    "an image to another image": (link("images/train/s.jpg", "ROOT/images/train/0.jpg"), "ok"),
}


@pytest.mark.parametrize("case", LINKS)
def test_hostile_symlinks(tmp_path, case):
    spoil, expected = LINKS[case]
    assert expected in run(tmp_path, spoil)


@pytest.mark.parametrize("is_private", [True, False])
@pytest.mark.parametrize("folder", ["images/train", "labels/train", "labels", "images"])
def test_whole_folders_that_are_links_outwards(tmp_path, folder, is_private):
    def spoil(root: Path) -> None:
        (root / folder).rename(root / "moved")
        (root / folder).symlink_to(root.parent.parent / "secrets")

    outcome = run(tmp_path, spoil, is_private=is_private)
    assert "outside" in outcome or "leads to no images" in outcome


def test_hidden_images_are_told(tmp_path):
    assert run(tmp_path, with_image(jpeg(5), "..a.jpg")) == "ok"
    (tmp_path / "roots/set/images/train/._0.jpg").write_bytes(b"resource fork")
    datasets = FetchedDatasets(OnDisk(False), Roots(tmp_path / "roots"), "datasets")
    order = DatasetOrder(run_id="r", sources=(str(tmp_path / "roots/set"),))
    found = {f.code: f for f in datasets.prepare(order, tmp_path / "again", StopSignal(), lambda _: None).findings}
    assert (found["image-hidden"].count, found["image-hidden"].examples) == (1, ("images/train/..a.jpg",))


def test_folders_linked_to_each_other_end(tmp_path):
    def spoil(root: Path) -> None:
        for name in ("a", "b", "c", "d"):
            (root / "images/train" / name).mkdir()
        for name in ("a", "b", "c", "d"):
            for other in ("a", "b", "c", "d"):
                (root / f"images/train/{name}/{other}x").symlink_to(root / f"images/train/{other}")

    assert run(tmp_path, spoil) == "ok"


def test_folders_without_end(tmp_path):
    deep = "/".join(["d"] * 60)
    assert "nested more than" in run(tmp_path, lambda root: (root / "images/train" / deep).mkdir(parents=True))


def test_a_pipe_or_socket_among_the_images_is_not_opened(tmp_path):
    def spoil(root: Path) -> None:
        os.mkfifo(root / "images/train/p.jpg")
        os.mkfifo(root / "labels/train/0b.txt")

    assert run(tmp_path, spoil) == "ok"


LISTS = {
    "etc": ("/etc/passwd\n", "do not exist"),
    "upwards": ("../../secrets/secret.jpg\n", "do not exist"),
    "secrets by absolute path": ("ROOT/../../secrets/secret.jpg\n", "do not exist"),
    "urls": ("http://169.254.169.254/a.jpg\nfile:///etc/passwd\n", "do not exist"),
    "a line of a megabyte": ("images/train/" + "a" * (1 << 20) + ".jpg\n", "do not exist"),
    "names of ten thousand characters": ("a/" * 5000 + "b.jpg\n", "do not exist"),
    "NUL bytes": ("images/train/0.jpg\0\n", "do not exist"),
    "broken Unicode": ("images/train/\udcff\udcfe.jpg\n", "do not exist"),
    "control characters": ("images/train/\x1b[2J.jpg\n", "do not exist"),
    "options": ("--exec=touch\n-rf\n", "do not exist"),
    "a hundred thousand times the same": ("images/train/0.jpg\n" * 100_000, "ok"),
    "a list that names itself": ("train.txt\n", "do not exist"),
    "nothing": ("\n\n", "leads to no images"),
    "folders": ("images/train/\nimages/train/.\n", "do not exist"),
}


@pytest.mark.parametrize("case", LISTS)
def test_hostile_image_lists(tmp_path, case):
    text, expected = LISTS[case]
    assert expected in run(tmp_path, with_list(text))


def coco(change: Callable[[dict], object] | None = None) -> Spoil:
    document = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 16, "height": 16} for n in range(4)],
        "annotations": [{"image_id": n, "category_id": 1, "bbox": [1, 1, 5, 5]} for n in range(4)],
        "categories": [{"id": 1, "name": "a"}],
    }
    if change:
        change(document)
    return with_json(json.dumps(document))


def with_json(text: str | bytes) -> Spoil:
    return lambda root: (root / "annotations.json").write_bytes(text if isinstance(text, bytes) else text.encode())


def first_annotation(**fields) -> Spoil:
    return coco(lambda document: document["annotations"][0].update(fields))


def rle(counts, size=(16, 16)) -> Spoil:
    return first_annotation(segmentation={"size": list(size), "counts": counts}, bbox=None)


JSONS = {
    "deep brackets": (with_json("[" * 100_000), "no valid JSON"),
    "deep objects": (with_json('{"images":' * 100_000), "no valid JSON"),
    "binary": (with_json(bytes(range(256))), ""),
    "a number of a million digits": (with_json('{"images": [' + "9" * (1 << 20) + "]}"), "no valid JSON"),
    "a list": (with_json("[]"), "no COCO file"),
    "no images": (with_json('{"images": [], "categories": [{"id": 1, "name": "a"}]}'), "no images"),
    "images that are words": (with_json('{"images": ["a"], "categories": [{"id": 1, "name": "a"}]}'), "no images"),
    "a file name upwards": (coco(lambda d: d["images"][0].update(file_name="../../secrets/secret.jpg")), "do not exist"),
    "a file name in etc": (coco(lambda d: d["images"][0].update(file_name="/etc/passwd")), "do not exist"),
    "a file name of dots": (coco(lambda d: d["images"][0].update(file_name="../..")), "do not exist"),
    "a file name that is a list": (coco(lambda d: d["images"][0].update(file_name=["a"])), "no file_name"),
    "a file name of a megabyte": (coco(lambda d: d["images"][0].update(file_name="a" * (1 << 20))), "do not exist"),
    "a size of zero": (coco(lambda d: d["images"][0].update(width=0, height=-5)), "ok"),
    "a size of words": (coco(lambda d: d["images"][0].update(width="x")), "ok"),
    "a huge size": (coco(lambda d: d["images"][0].update(width=10**30, height=10**30)), "ok"),
    "a box of infinity": (first_annotation(bbox=[0, 0, float("inf"), 1]), "neither a box"),
    "a box of NaN": (first_annotation(bbox=[float("nan")] * 4), "neither a box"),
    "a box far outside": (first_annotation(bbox=[10**6, 10**6, 5, 5]), "ok"),
    "a box turned inside out": (first_annotation(bbox=[9, 9, -5, -5]), "outside"),
    "a mask of the wrong size": (rle([10**9], (10**5, 10**5)), "masks cannot be decoded"),
    "a mask of negative runs": (rle([-5, 261]), "masks cannot be decoded"),
    "a mask of too many runs": (rle([1] * 100_000), "masks cannot be decoded"),
    "a mask that is too short": (rle([5]), "masks cannot be decoded"),
    "a compressed mask of junk": (rle("~~~~~~~~oooooooo"), "masks cannot be decoded"),
    "a compressed mask without end": (rle("o" * 100_000), "masks cannot be decoded"),
    "a mask of words": (rle(["a", "b"]), "masks cannot be decoded"),
    "an outline of half a million corners": (first_annotation(segmentation=[[1.0, 2.0] * 500_000]), ""),
    "ten thousand outlines": (first_annotation(segmentation=[[1, 1, 5, 1, 5, 5]] * 10_000), "ok"),
    "an outline of lists": (first_annotation(segmentation=[[[1, 2], [3, 4]]]), "ok"),
    "a category that is a list": (first_annotation(category_id=[1]), "category that the file does not list"),
    "categories that are words": (coco(lambda d: d.update(categories=["a"])), "no categories"),
    "a category of a megabyte": (coco(lambda d: d["categories"][0].update(name="x" * (1 << 20))), "ok"),
    "supercategories that are no text": (coco(lambda d: d["categories"][0].update(supercategory=[{}])), "ok"),
    "a category that is a path": (coco(lambda d: d["categories"][0].update(name="../../x")), "ok"),
    "splits of lists": (coco(lambda d: d.update(split_config={"splits": {"0": ["val"]}})), ""),
    "a split share of a word": (coco(lambda d: d.update(split_config={"train_ratio": "x"})), "shares between"),
    "an image root upwards": (coco(lambda d: d.update(storage_info={"image_root": "../../secrets"})), "ok"),
}


@pytest.mark.parametrize("case", JSONS)
def test_hostile_annotation_files(tmp_path, case):
    spoil, expected = JSONS[case]
    outcome = run(tmp_path, spoil, "annotations.json", split=SplitRequest(train_ratio=0.5))
    assert expected in outcome


@pytest.mark.parametrize("name", ["../../x", "-rf", "a\nb", "\x1b[2J", "é" * 80, "..", "a;b"])
def test_hostile_class_folders(tmp_path, name):
    name = name.replace("..", "_..").replace("/", "_")

    def spoil(root: Path) -> None:
        for split in ("train", "val"):
            for cls in (name, "ok"):
                (root / "cls" / split / cls).mkdir(parents=True)
                (root / "cls" / split / cls / "x.jpg").write_bytes(jpeg(3))

    outcome = run(tmp_path, spoil, "cls", task=Task.CLASSIFY)
    assert outcome == "ok"


def test_caches_and_arrays_beside_the_images_are_left_behind(tmp_path):
    def spoil(root: Path) -> None:
        payload = b"\x80\x04cos\nsystem\n(S'touch /tmp/hostile-was-here'\ntR."
        for place in ("labels/train.cache", "labels/val.cache", "images/train/0.npy", "train.cache"):
            (root / place).write_bytes(payload)

    assert run(tmp_path, spoil) == "ok"
