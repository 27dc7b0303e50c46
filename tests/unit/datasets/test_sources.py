"""Every kind of source becomes a trainable view."""

import io
import json
import shutil
import tarfile
from dataclasses import replace

import pytest
from PIL import Image

from tests.dataset_sources import SUPABASE, DatasetPlaces
from tests.web_server import body, web_server
from trainer.core.dataset import DatasetOrder, Task
from trainer.core.events import TransferProgress
from trainer.core.stop import StopSignal
from trainer.datasets.checks import statistics
from trainer.datasets.images.facts_cache import FactsCache

IMAGES = {"train/one": 10, "train/two": 90, "val/three": 170}
LABEL = "0 0.5 0.5 0.25 0.25\n"


def jpeg(shade):
    out = io.BytesIO()
    Image.new("RGB", (64, 48), (shade, 80, 255 - shade)).save(out, "JPEG")
    return out.getvalue()


def files(yaml="train: images/train\nval: images/val\nnames: [cat]\n"):
    made = {f"images/{name}.jpg": jpeg(shade) for name, shade in IMAGES.items()}
    made |= {f"labels/{name}.txt": LABEL.encode() for name in IMAGES}
    return made | {"data.yaml": yaml.encode()}


def write(folder, content):
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


class Places(DatasetPlaces):
    def zip(self, folder, content=None):
        write(folder / "packed", content or files())
        shutil.make_archive(str(folder / "set"), "zip", folder / "packed")
        shutil.rmtree(folder / "packed")
        return folder / "set.zip"

    def tar(self, folder):
        write(folder / "packed/top", files())
        with tarfile.open(folder / "set.tar.gz", "w:gz") as archive:
            archive.add(folder / "packed/top", "top")
        shutil.rmtree(folder / "packed")
        return folder / "set.tar.gz"

    def export(self):
        records = [{"task": "detect", "class_names": {"0": "cat"}}]
        for name, shade in IMAGES.items():
            self.server.pages[f"/images/{name}"] = body(jpeg(shade))
            split, file = name.split("/")
            boxes = [[0, 0.5, 0.5, 0.25, 0.25]]
            url = self.server.url(f"/images/{name}")
            records.append({"file": f"{file}.jpg", "url": url, "split": split, "annotations": {"boxes": boxes}})
        return "\n".join(json.dumps(record) for record in records).encode()

    def lists(self, folder):
        """Serve a dataset with .txt lists of images at URLs inside `folder`."""
        content = files("train: train.txt\nval: lists/val.txt\nnames: [cat]\n")
        content["train.txt"] = b"./images/train/one.jpg\nimages/train/two.jpg\n"
        content["lists/val.txt"] = b"./three.jpg\n"
        content["lists/three.jpg"], content["lists/three.txt"] = jpeg(170), LABEL.encode()
        for name, data in content.items():
            self.page(f"{folder}/{name}", data)
        return self.server.url(f"{folder}/data.yaml")


SOURCES = {
    "absolute path of a YAML": lambda p: str(write(p.root / "set", files()) / "data.yaml"),
    "relative path of a YAML": lambda p: write(p.root / "set", files()) and "set/data.yaml",
    "path of a folder": lambda p: str(write(p.root / "set", files())),
    "path of a zip": lambda p: str(p.zip(p.root)),
    "path of a tar with one folder at its top": lambda p: str(p.tar(p.root)),
    "path of an export": lambda p: str(write(p.root, {"set.ndjson": p.export()}) / "set.ndjson"),
    "stored YAML": lambda p: write(p.bucket / "p/s", files()) and "storage:p/s/data.yaml",
    "stored YAML, with bucket name": lambda p: write(p.bucket / "p/s", files()) and "storage:datasets/p/s/data.yaml",
    "stored YAML with another name": lambda p: (
        write(p.bucket / "p/s", files() | {"1700-my.yaml": files()["data.yaml"]}) and "storage:p/s/1700-my.yaml"
    ),
    "stored YAML without a suffix": lambda p: (
        write(p.bucket / "p/s", files() | {"1700-my set": files()["data.yaml"]}) and "storage:p/s/1700-my set"
    ),
    "path of a YAML without a suffix": lambda p: str(
        write(p.root / "set", files() | {"mine": files()["data.yaml"]}) / "mine"
    ),
    "stored folder": lambda p: write(p.bucket / "p/s", files()) and "storage:p/s",
    "stored zip": lambda p: p.zip(p.bucket) and "storage:set.zip",
    "stored export": lambda p: write(p.bucket, {"set.ndjson": p.export()}) and "storage:set.ndjson",
    "public URL of our storage": lambda p: (
        write(p.bucket / "p", files()) and f"{SUPABASE}/storage/v1/object/public/datasets/p/data.yaml"
    ),
    "signed URL of our storage": lambda p: (
        write(p.bucket / "p", files()) and f"{SUPABASE}/storage/v1/object/sign/datasets/p/data.yaml?token=x"
    ),
    "URL of a zip": lambda p: p.page("/set.zip", p.zip(p.root).read_bytes()),
    "URL of a tar without a suffix": lambda p: p.page("/download", p.tar(p.root).read_bytes()),
    "URL of an export": lambda p: p.page("/set.ndjson", p.export()),
    "URL of a YAML with lists": lambda p: p.lists("/sets/a"),
}


@pytest.fixture
def places(tmp_path):
    with web_server() as server:
        yield Places(tmp_path, server)


@pytest.mark.parametrize("kind", ["stored YAML", "stored zip", "path of a YAML without a suffix"])
def test_prefetched_dataset_is_not_downloaded_or_read_again(places, datasets, monkeypatch, kind):
    order = DatasetOrder(sources=(SOURCES[kind](places),))
    datasets = replace(datasets, facts=FactsCache(places.root / ".cache/facts"))
    datasets.prefetch(order, StopSignal())
    assert not list((places.root / ".cache/tmp").iterdir())
    monkeypatch.setattr(statistics, "facts", lambda image: pytest.fail(f"{image} was read again"))
    events = []

    prepared = datasets.prepare(order, places.root / "datasets/1", StopSignal(), events.append)

    assert prepared.images == {"train": 2, "val": 1}
    moved = [event.bytes for event in events if isinstance(event, TransferProgress)]
    assert not any(moved)


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_source_becomes_trainable_view(places, datasets, make):
    order = DatasetOrder(sources=(make(places),))
    for run in ("first", "again"):
        prepared = datasets.prepare(order, places.root / "datasets" / run, StopSignal(), lambda _: None)
        assert (prepared.task, prepared.names, prepared.images) == (Task.DETECT, ("cat",), {"train": 2, "val": 1})
        assert prepared.summary["labels"] == {"train": {"cat": 2}, "val": {"cat": 1}}
