"""One tiny dataset in every layout and for every task, as file names and bytes."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from PIL import Image

from trainer.core.dataset import SplitRequest, Task

WIDTH, HEIGHT = 64, 48
HALF = SplitRequest(train_ratio=0.5)
YAML = "train: images/train\nval: images/val\nnames: [cat]\n"
ROWS = {
    Task.DETECT: "0 0.5 0.5 0.25 0.25",
    Task.SEGMENT: "0 0.25 0.25 0.75 0.25 0.75 0.75 0.5 0.875 0.25 0.75",
    Task.OBB: "0 0.25 0.5 0.5 0.25 0.75 0.5 0.5 0.75",
    Task.POSE: "0 0.5 0.5 0.25 0.25 0.5 0.5 2 0.4375 0.4375 1",
}
KEYPOINTS = "kpt_shape: [2, 3]\nflip_idx: [0, 1]\n"


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`files`: content by file name. `entry`: file for data_yaml, or "" for the folder. `images`: expected number per split."""

    files: dict[str, bytes]
    images: dict[str, int]
    entry: str = "data.yaml"
    split: SplitRequest | None = None


@cache
def jpeg(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (WIDTH, HEIGHT), (shade, 80, 255 - shade)).save(out, "JPEG")
    return out.getvalue()


def labeled(task: Task, *places: tuple[str, str]) -> dict[str, bytes]:
    """Return an image and a label file for each pair of paths."""
    files = {}
    for number, (image, label) in enumerate(places):
        files |= {image: jpeg(10 + 40 * number), label: ROWS[task].encode() + b"\n"}
    return files


def yaml(task: Task, text: str) -> dict[str, bytes]:
    return {"data.yaml": (text + (KEYPOINTS if task is Task.POSE else "")).encode()}


def split_folders(task: Task = Task.DETECT) -> Layout:
    places = [(f"images/{n}.jpg", f"labels/{n}.txt") for n in ("train/a", "train/b", "val/c", "test/d")]
    return Layout(
        files=labeled(task, *places) | yaml(task, YAML + "test: images/test\n"),
        images={"train": 2, "val": 1, "test": 1},
    )


def roboflow(task: Task = Task.DETECT) -> Layout:
    places = [
        (f"{s}/images/{n}.jpg", f"{s}/labels/{n}.txt") for s, n in (("train", "a"), ("train", "b"), ("valid", "c"))
    ]
    text = "train: ../train/images\nval: ../valid/images\nnc: 1\nnames: ['cat']\n"
    return Layout(files=labeled(task, *places) | yaml(task, text), images={"train": 2, "val": 1})


def lists(task: Task = Task.DETECT) -> Layout:
    files = labeled(task, *((f"images/{n}.jpg", f"labels/{n}.txt") for n in ("a", "b", "c")))
    files |= {"train.txt": b"./images/a.jpg\nimages/b.jpg\n", "val.txt": b"./images/c.jpg\n"}
    return Layout(
        files=files | yaml(task, "train: train.txt\nval: [val.txt]\nnames: [cat]\n"), images={"train": 2, "val": 1}
    )


def flat(task: Task = Task.DETECT) -> Layout:
    files = labeled(task, *((f"{n}.jpg", f"{n}.txt") for n in ("a", "b", "c", "d")))
    described = yaml(task, "names: [cat]\n") if task is Task.POSE else {"classes.txt": b"cat\n"}
    return Layout(files=files | described, images={"train": 2, "val": 2}, entry="", split=HALF)


def on_demand(task: Task = Task.DETECT) -> Layout:
    files = labeled(task, *((f"images/train/{n}.jpg", f"labels/train/{n}.txt") for n in ("a", "b", "c", "d")))
    return Layout(
        files=files | yaml(task, "train: images/train\nnames: [cat]\n"), images={"train": 2, "val": 2}, split=HALF
    )


def listed_on_demand() -> Layout:
    files = labeled(Task.DETECT, *((f"images/{n}.jpg", f"labels/{n}.txt") for n in ("a", "b", "c", "d")))
    files |= {"all.txt": b"".join(b"images/%c.jpg\n" % n for n in b"abcd")}
    return Layout(
        files=files | yaml(Task.DETECT, "train: all.txt\nnames: [cat]\n"), images={"train": 2, "val": 2}, split=HALF
    )


def class_folders(_: Task = Task.CLASSIFY) -> Layout:
    names = ("train/cat/a", "train/dog/b", "val/cat/c", "val/dog/d")
    files = {f"{name}.jpg": jpeg(10 + 40 * number) for number, name in enumerate(names)}
    return Layout(files=files, images={"train": 2, "val": 2}, entry="")


def coco(task: Task = Task.DETECT) -> Layout:
    return _annotated(task, {"categories": [_category(task, 7)]}, _objects)


def dice(task: Task = Task.DETECT) -> Layout:
    """Return a DICE dataset: nested annotations, a background class, and a split with image ids as text."""
    head = {
        "classes": [{"id": 0, "name": "__background__"}, _category(task, 7)],
        "storage_info": {"image_root": "images/"},
        "split_config": {"method": "manual", "splits": {"0": "train", "1": "train", "2": "val", "3": "val"}},
    }
    return _annotated(task, head, _nested)


def _category(task: Task, number: int) -> dict:
    return {"id": number, "name": "cat"} | ({"keypoints": ["nose", "tail"]} if task is Task.POSE else {})


def _annotated(task: Task, head: dict, annotate: Callable[[Task, dict], None]) -> Layout:
    document = head | {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": WIDTH, "height": HEIGHT} for n in range(4)],
    }
    annotate(task, document)
    files = {f"images/{n}.jpg": jpeg(10 + 40 * n) for n in range(4)} | {
        "annotations.json": json.dumps(document).encode()
    }
    is_drawn = "split_config" not in document
    return Layout(
        files=files, images={"train": 2, "val": 2}, entry="annotations.json", split=HALF if is_drawn else None
    )


def _shape(task: Task) -> dict:
    shape: dict = {"bbox": [16, 12, 32, 24]}
    if task is Task.SEGMENT:
        shape["segmentation"] = [[16, 12, 48, 12, 48, 36, 32, 42, 16, 36]]
    if task is Task.OBB:
        shape["segmentation"] = [[16, 24, 32, 12, 48, 24, 32, 36]]
    if task is Task.POSE:
        shape["keypoints"] = [32, 24, 2, 28, 21, 1]
    return shape


def _objects(task: Task, document: dict) -> None:
    if task is Task.CLASSIFY:
        document["categories"].append({"id": 3, "name": "dog"})
    document["annotations"] = [
        {"id": n, "image_id": n, "category_id": (7, 3)[n % 2] if task is Task.CLASSIFY else 7, **_shape(task)}
        for n in range(4)
    ]


def _nested(task: Task, document: dict) -> None:
    if task is Task.CLASSIFY:
        document["classes"].append({"id": 3, "name": "dog"})
        for number, image in enumerate(document["images"]):
            image["annotation"] = {"class_id": (7, 3)[number % 2]}
        return
    for image in document["images"]:
        image["annotations"] = [{"class_id": 7, **_shape(task)}]


def export(layout: str, url: Callable[[str], str], task: Task = Task.DETECT) -> tuple[Layout, dict[str, bytes]]:
    """Return an NDJSON export, and the images at the URLs of its records."""
    splits = {"split on request": ["train"] * 4}.get(layout, ["train", "train", "val", "val"])
    keys = {Task.DETECT: "boxes", Task.SEGMENT: "segments", Task.OBB: "obb", Task.POSE: "pose"}
    names = {"0": "cat", "1": "dog"} if task is Task.CLASSIFY else {"0": "cat"}
    records: list[dict] = [{"task": task.value, "class_names": names}]
    if task is Task.POSE:
        records[0] |= {"kpt_shape": [2, 3], "flip_idx": [0, 1]}
    pictures = {}
    for number, split in enumerate(splits):
        picture = f"/pictures/{number}"
        pictures[picture] = jpeg(10 + 40 * number)
        annotations: dict = (
            {"classification": [number % 2]} if task is Task.CLASSIFY else {keys[task]: [_numbers(task)]}
        )
        records.append({"file": f"{number}.jpg", "url": url(picture), "split": split, "annotations": annotations})
    made = "\n".join(map(json.dumps, records)).encode()
    split = HALF if layout == "split on request" else None
    return Layout(files={"set.ndjson": made}, images={"train": 2, "val": 2}, entry="set.ndjson", split=split), pictures


def _numbers(task: Task) -> list[float]:
    return list(_as_written(ROWS[task].split()))


def _as_written(tokens: list[str]) -> Iterator[float]:
    for token in tokens:
        number = float(token)
        yield int(number) if math.isclose(number, round(number)) else number


def renamed(layout: Layout) -> Layout:
    """Return a dataset with another class and other images, to be merged with `layout`."""
    files = {name: data.replace(b"cat", b"dog") if name == "data.yaml" else data for name, data in layout.files.items()}
    swap = {jpeg(10 + 40 * n): jpeg(25 + 40 * n) for n in range(4)}
    return Layout(
        files={name: swap.get(data, data) for name, data in files.items()},
        images=layout.images,
        entry=layout.entry,
        split=layout.split,
    )
