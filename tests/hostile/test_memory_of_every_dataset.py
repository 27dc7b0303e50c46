"""No hostile dataset of this folder fills the memory of the service, which has the real sandbox for datasets."""

from __future__ import annotations

import json

import pytest

from tests.hostile import (
    test_hostile_annotations,
    test_hostile_archives,
    test_hostile_exports,
    test_hostile_images,
    test_hostile_labels,
)
from tests.hostile.damaged_dataset import base, jpeg, with_image, with_label, with_list, with_yaml
from tests.hostile.dataset_service import DAEMON_MIB, prepared_by_service
from tests.process.sandbox_host import needs_landlock
from tests.web_server import body, web_server


def damaged(cases, entry=""):
    """Return a function that writes a folder with one damaged dataset for each case, and yields the sources."""

    def write(home, server):
        (home / "secrets").mkdir()
        (home / "secrets/secret.jpg").write_bytes(jpeg(99))
        for number, damage in enumerate(cases):
            root = home / f"datasets/set{number}"
            base(root)
            damage(root)
            yield f"set{number}/{entry}"

    return write


def archives(home, server):
    for number, make in enumerate(test_hostile_archives.ARCHIVES.values()):
        (home / f"datasets/set{number}.zip").write_bytes(make())
        yield f"set{number}.zip"


def yaml_at_url(home, server):
    for number, text in enumerate(test_hostile_exports.YAMLS.values()):
        server.pages[f"/{number}/data.yaml"] = body(text.encode())
        server.pages[f"/{number}/a.jpg"] = body(jpeg())
        yield server.url(f"/{number}/data.yaml")


def exports(home, server):
    exports = ["\n".join(map(json.dumps, records)).encode() for records in test_hostile_exports.EXPORTS.values()]
    for number, text in enumerate([*exports, *EXPORTS_THAT_EXPAND]):
        server.pages[f"/{number}.ndjson"] = body(text)
        yield server.url(f"/{number}.ndjson")


def stored(home, server):
    for number, make in enumerate(test_hostile_exports.STORED.values()):
        folder = home / f"storage/datasets/{number}"
        (folder / "p/images").mkdir(parents=True)
        (folder / "p/data.yaml").write_text("train: images\nval: images\nnames: [a]\n")
        make(folder)
        yield f"storage:{number}/p/data.yaml"


HEAD = json.dumps(test_hostile_exports.HEAD).encode() + b"\n"
EXPORTS_THAT_EXPAND = [
    HEAD + b'{"file":"a.jpg","split":"train","annotations":{"boxes":[' + b"[]," * 3_000_000 + b"[]]}}\n",
    HEAD + b"{}\n" * 200_000,
    HEAD + b'{"file":"a.jpg","split":"train","url":"storage:x"}\n' * 100_000,
    b'{"class_names":{'
    + b",".join(b'"%d":"x"' % n for n in range(300_000))
    + b"}}\n"
    + b'{"file":"a.jpg","split":"train"}',
]
LISTS = [with_list(text) for text, _ in test_hostile_annotations.LISTS.values()]
JSONS = [damage for damage, _ in test_hostile_annotations.JSONS.values()]
IMAGES = [with_image(data) for data, _ in test_hostile_images.IMAGES.values()]
NAMES = [test_hostile_images.rename(name) for name in test_hostile_images.NAMES]
LINKS = [damage for damage, _ in test_hostile_images.LINKS.values()]
YAMLS = [with_yaml(text) for text, _ in test_hostile_labels.YAMLS.values()]
LABELS = [with_label(data) for data, _ in test_hostile_labels.LABELS.values()]
LARGEST = [
    with_yaml("train: images/train\nval: images/val\nnames: [" + ",".join(["é" * 95] * 20_000) + "]\n"),
    with_yaml("train: images/train\nval: images/val\nnames: [" + "a," * 20_000 + "]\n"),
]
GROUPS = {
    "archives": (archives, None),
    "YAML at a URL": (yaml_at_url, None),
    "exports": (exports, None),
    "objects of a store": (stored, None),
    "lists of images": (damaged(LISTS), None),
    "annotation files": (damaged(JSONS, "annotations.json"), 0.5),
    "images": (damaged(IMAGES), None),
    "names": (damaged(NAMES), None),
    "links": (damaged(LINKS), None),
    "YAML files": (damaged(YAMLS, "data.yaml"), None),
    "labels": (damaged(LABELS), None),
    "most names of classes": (damaged(LARGEST, "data.yaml"), None),
}


@needs_landlock
@pytest.mark.long
@pytest.mark.parametrize("group", GROUPS)
def test_hostile_datasets_do_not_fill_the_memory_of_the_service(tmp_path, group):
    write, split = GROUPS[group]
    home = tmp_path / "home"
    (home / "datasets").mkdir(parents=True)
    with web_server() as server:
        sources = list(write(home, server))
        outcomes = prepared_by_service(home, sources, split=split, host=server.host)

    assert len(outcomes) == len(sources)
    peaks = {source: outcome["peak"] >> 10 for source, outcome in zip(sources, outcomes, strict=True)}
    assert {source: mib for source, mib in peaks.items() if mib >= DAEMON_MIB} == {}
    failures = [outcome["outcome"] for outcome in outcomes if outcome["outcome"].startswith("MachineFailed")]
    assert failures == []  # a run with this dataset would be executed again
