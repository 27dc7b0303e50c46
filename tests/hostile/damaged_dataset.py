"""Prepare hostile datasets on disk. Each case must end soon, with a clear error or a harmless success.

Checks after each case:
- No file outside the view was written, and the source is unchanged.
- The view contains no file from outside the source and no file that runs code.
- Memory and time are bounded.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from PIL import Image

from trainer.core.dataset import DatasetOrder, Task
from trainer.core.errors import DatasetError
from trainer.core.stop import StopSignal
from trainer.datasets.decoder import here
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.fetched_tree import Fetched
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.roots import Roots

SECONDS = 20.0  # seconds of CPU time for one case on a slow host; most cases take milliseconds
MEBIBYTES = 600  # limit for the growth of the process memory in one case
ALLOWED_KEYS = {"path", "train", "val", "test", "nc", "names", "kpt_shape", "flip_idx"}
USUAL = "train: images/train\nval: images/val\n"
Damage = Callable[[Path], object]


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
    """Write a valid dataset of four images, two of them in val."""
    for number in range(4):
        split = ("train", "val")[number % 2]
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        (root / f"images/{split}/{number}.jpg").write_bytes(jpeg(number))
        (root / f"labels/{split}/{number}.txt").write_text("0 .5 .5 .5 .5\n")
    (root / "data.yaml").write_text(USUAL + "names: [a, b]\n")


def prepare(tmp_path: Path, entry: str = "data.yaml", task=None, split=None, is_private=False):
    datasets = FetchedDatasets(OnDisk(is_private), ReferenceRules(Roots(tmp_path / "roots"), "datasets"), decode=here)
    order = DatasetOrder(sources=(str(tmp_path / "roots/set" / entry),), task=task, split=split)
    return datasets.prepare(order, tmp_path / "views/run", StopSignal(), lambda _: None)


def state(folder: Path) -> dict[str, str]:
    """Return the mode, size and time of each entry inside a folder, and the checksum of each small file."""
    found = {}
    for place, folders, files in os.walk(folder):
        for name in [*folders, *files]:
            path = os.path.join(place, name)
            info = os.lstat(path)
            small = os.path.isfile(path) and not os.path.islink(path) and info.st_size < 1 << 16
            content = hashlib.sha256(Path(path).read_bytes()).hexdigest() if small else ""
            found[os.path.relpath(path, folder)] = f"{info.st_mode} {info.st_size} {info.st_mtime_ns} {content}"
    return found


def run(tmp_path: Path, damage: Damage, entry: str = "data.yaml", **how) -> str:
    """Prepare a damaged dataset and run the checks of this module. Return "ok" or the text of the error."""
    source, secrets = tmp_path / "roots/set", tmp_path / "secrets"
    base(source)
    secrets.mkdir()
    (secrets / "secret.txt").write_text("0 .5 .5 .1 .1\n")
    (secrets / "secret.jpg").write_bytes(jpeg(99))
    damage(source)
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
    assert time.monotonic() - started < 5 * SECONDS  # the case does not sleep or block; a busy host needs more time
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MEBIBYTES << 10
    assert (state(tmp_path / "roots"), state(secrets)) == before
    assert sorted(p.name for p in tmp_path.iterdir()) in (["roots", "secrets"], ["roots", "secrets", "views"])
    assert not (tmp_path / "views").exists() or [p.name for p in (tmp_path / "views").iterdir()] == ["run"]
    return outcome


def check_view(tmp_path: Path, result) -> None:
    """Check that the view has safe names, links only into the source, known YAML keys, and no file that runs code."""
    view = tmp_path / "views/run/view"
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


def with_yaml(text: str | bytes) -> Damage:
    data = text if isinstance(text, bytes) else text.encode()
    return lambda root: (root / "data.yaml").write_bytes(data)


def with_label(data: bytes | str) -> Damage:
    return lambda root: (root / "labels/train/0.txt").write_bytes(data if isinstance(data, bytes) else data.encode())


def with_image(data: bytes, name: str = "0.jpg") -> Damage:
    return lambda root: (root / "images/train" / name).write_bytes(data)


def with_list(text: str) -> Damage:
    def damage(root: Path) -> None:
        (root / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [a, b]\n")
        (root / "train.txt").write_bytes(text.replace("ROOT", str(root)).encode("utf-8", "surrogateescape"))

    return damage
