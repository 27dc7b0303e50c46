"""Every supported combination of source and layout in docs/datasets.md becomes a trainable view."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import dataset_layouts as made
import pytest

from tests.dataset_layouts import Layout
from tests.dataset_sources import SUPABASE, DatasetPlaces
from tests.web_server import web_server
from trainer.core.dataset import DatasetOrder, Task
from trainer.core.errors import DatasetError
from trainer.core.stop import StopSignal
from trainer.datasets.prepare import FetchedDatasets

PAGE = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text()
LAYOUTS = {
    "`images/{train,val,test}`": made.split_folders,
    "Roboflow": made.roboflow,
    "`.txt` lists": made.lists,
    "flat": made.flat,
    "class folders": made.class_folders,
    "COCO": made.coco,
    "DICE": made.dice,
    "merged": made.split_folders,
    "split on request": made.on_demand,
}
EVERY = tuple(LAYOUTS)
EXPORTED = ("`images/{train,val,test}`", "class folders", "merged", "split on request")
SOURCES = {
    "absolute path": EVERY,
    "path inside `DATASET_ROOT`": EVERY,
    "`storage:`": EVERY,
    "public URL of our storage": EVERY,
    "signed URL of our storage": EVERY,
    "http(s) URL of an archive": EVERY,
    "http(s) URL of an NDJSON export": EXPORTED,
    "http(s) URL of a YAML": ("`.txt` lists", "merged", "split on request"),
    "folder instead of a YAML": EVERY,
    "annotation file instead of a YAML": ("COCO", "DICE"),
}
LABELED = (Task.DETECT, Task.SEGMENT, Task.POSE, Task.OBB)
TASKS = {
    "`images/{train,val,test}`": LABELED,
    "Roboflow": LABELED,
    "`.txt` lists": LABELED,
    "flat": LABELED,
    "class folders": (Task.CLASSIFY,),
    "COCO": tuple(Task),
    "DICE": tuple(Task),
    "NDJSON export": tuple(Task),
}


class Places(DatasetPlaces):
    def written(self, folder: Path, layout: Layout) -> Path:
        for name, data in layout.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder / layout.entry

    def put(self, source: str, name: str, layout: Layout) -> str:
        """Store the dataset as `source` requires, and return the reference to the dataset."""
        place = f"{name}/{layout.entry}".rstrip("/")
        match source:
            case "path inside `DATASET_ROOT`":
                self.written(self.root / name, layout)
                return place
            case "folder instead of a YAML":
                self.written(self.root / name, layout)
                return str(self.root / name)
            case "`storage:`":
                self.written(self.bucket / name, layout)
                return f"storage:datasets/{place}"
            case "public URL of our storage" | "signed URL of our storage":
                self.written(self.bucket / name, layout)
                kind, query = ("public", "") if source.startswith("public") else ("sign", "?token=x")
                return f"{SUPABASE}/storage/v1/object/{kind}/datasets/{place}{query}"
            case "http(s) URL of an archive":
                self.written(self.root / "packed", layout)
                shutil.make_archive(str(self.root / name), "zip", self.root / "packed")
                shutil.rmtree(self.root / "packed")
                return self.page(f"/{name}.zip", (self.root / f"{name}.zip").read_bytes())
            case "http(s) URL of a YAML" | "http(s) URL of an NDJSON export":
                for file, data in layout.files.items():
                    self.page(f"/{name}/{file}", data)
                return self.server.url(f"/{place}")
        return str(self.written(self.root / name, layout))

    def export(self, layout: str, task: Task = Task.DETECT) -> Layout:
        exported, pictures = made.export(layout, self.server.url, task)
        for path, data in pictures.items():
            self.page(path, data)
        return exported


@pytest.fixture
def places(tmp_path):
    with web_server() as server:
        yield Places(tmp_path, server)


def layout_of(places: Places, source: str, name: str) -> Layout:
    """Return the layout in the form for `source`: an export is one file, and a YAML at a URL names .txt lists."""
    if source.endswith("NDJSON export"):
        return places.export(name, Task.CLASSIFY if name == "class folders" else Task.DETECT)
    if source.endswith("URL of a YAML"):
        return {"split on request": made.listed_on_demand}.get(name, made.lists)()
    return LAYOUTS[name]()


def prepare(datasets: FetchedDatasets, places: Places, layout: Layout, *sources: str, task: Task | None = None):
    order = DatasetOrder(sources=sources, task=task, split=layout.split)
    return datasets.prepare(order, places.root / "datasets/run_1", StopSignal(), lambda _: None)


@pytest.mark.parametrize(("source", "name"), [(source, name) for source, names in SOURCES.items() for name in names])
def test_source_and_layout_become_trainable_view(places, datasets, source, name):
    layout = layout_of(places, source, name)
    sources = [places.put(source, "a", layout)]
    expected = layout.images
    if name == "merged":
        other = layout if source.endswith("NDJSON export") else made.renamed(layout)
        sources.append(places.put(source, "b", other))
        expected = {split: 2 * count for split, count in expected.items()}

    result = prepare(datasets, places, layout, *sources)

    assert dict(result.images) == expected
    assert result.task is (Task.CLASSIFY if name == "class folders" else Task.DETECT)
    is_alike = name != "class folders" and (name != "merged" or source.endswith("NDJSON export"))
    assert result.names == (("cat",) if is_alike else ("cat", "dog"))
    folders = [result.root / ("" if name == "class folders" else "images") / split for split in expected]
    pictures = [path for folder in folders for path in folder.rglob("*.jpg")]
    assert len(pictures) == sum(expected.values())
    if result.task is Task.DETECT:
        texts = label_texts(result)
        assert sorted({tuple(map(float, text.split()))[1:] for text in texts}) == [(0.5, 0.5, *size(name))]
        assert len(texts) == len(pictures)


def label_texts(result) -> list[str]:
    """Return the label text of each image, read from the path that Ultralytics uses."""
    images = result.root / "images"
    places = [path.relative_to(images).with_suffix(".txt") for split in images.iterdir() for path in split.rglob("*.*")]
    return [(result.root / "labels" / place).read_text() for place in places]


def size(name: str) -> tuple[float, float]:
    return (0.5, 0.5) if name in ("COCO", "DICE") else (0.25, 0.25)


@pytest.mark.parametrize(("name", "task"), [(name, task) for name, tasks in TASKS.items() for task in tasks])
def test_layout_has_labels_for_task(places, datasets, name, task):
    layout = places.export(name, task) if name == "NDJSON export" else LAYOUTS[name](task)

    result = prepare(datasets, places, layout, places.put("absolute path", "a", layout), task=task)

    assert result.task is task
    assert sum(result.images.values()) == sum(layout.images.values())
    if task is not Task.CLASSIFY:
        columns = {len(text.split()) for text in label_texts(result)}
        assert columns == {{Task.DETECT: 5, Task.SEGMENT: 11, Task.OBB: 9, Task.POSE: 11}[task]}


@pytest.mark.parametrize(
    ("source", "name", "sign"),
    [
        ("http(s) URL of a YAML", "`images/{train,val,test}`", "folders cannot be listed"),
        ("http(s) URL of a YAML", "COCO", "annotation file, whose images cannot be found"),
        ("absolute path", "NDJSON export", "has no url"),
    ],
)
def test_unsupported_combination_is_rejected_with_advice(places, datasets, source, name, sign):
    layout = LAYOUTS[name]() if name in LAYOUTS else places.export(name)
    if name == "NDJSON export":
        layout = replace(layout, files={"set.ndjson": layout.files["set.ndjson"].replace(b'"url"', b'"link"')})

    with pytest.raises(DatasetError, match=sign):
        prepare(datasets, places, layout, places.put(source, "a", layout))


def docs_table(corner: str) -> dict[str, set[str]]:
    """Return the names of the columns with "yes" for each row of a table in docs/datasets.md.

    `corner` is the first cell of the table.
    """
    lines = PAGE[PAGE.index(f"| {corner} |") :].split("\n\n")[0].splitlines()
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {row[0]: {name for name, cell in zip(head[1:], row[1:], strict=True) if cell == "yes"} for row in rows}


def test_documentation_lists_exactly_the_tested_sources_and_layouts():
    assert docs_table("source") == {source: set(names) for source, names in SOURCES.items()}


def test_documentation_lists_exactly_the_tested_layouts_and_tasks():
    assert docs_table("layout") == {name: {f"`{task}`" for task in tasks} for name, tasks in TASKS.items()}
