"""A row cannot name folders of the service, hidden folders and files outside of the dataset folders."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.dataset_painter import paint
from tests.hostile.dataset_service import prepared, service, settings_in
from trainer.core.errors import DatasetError, Misconfigured
from trainer.settings import read_settings
from trainer.wiring.datasets import dataset_roots

ROOT = Path(__file__).parents[2]
SECRET = ("runs", "models", "journal", "uploaded", "uploads", "children", "storage", "datasets/.cache/trees",
          "datasets/datasets/run_x", "datasets/.git", "../outside")  # fmt: skip


@pytest.fixture
def place(tmp_path):
    """Yield a folder with a service in `home`. Each of its folders contains a dataset of another user."""
    root = tmp_path / "home" / "datasets"
    for name in SECRET:
        paint(tmp_path / "home" / name / "other")
    paint(root / "mine")
    for link, target in {
        "to_cache": root / ".cache/trees/other",
        "to_view": root / "datasets/run_x/other",
        "to_runs": tmp_path / "home/runs/other",
        "to_models": tmp_path / "home/models",
        "to_git": root / ".git/other",
        "to_outside": tmp_path / "outside/other",
    }.items():
        (root / link).symlink_to(target)
    return tmp_path


@pytest.fixture
def prepare(place):
    """Return a function that prepares the dataset of a row."""
    with service(settings_in(place)) as datasets:
        yield lambda reference: prepared(datasets, reference)


def images_of(dataset):
    """Return the files and folders that the links of a view point to."""
    found = {path.resolve() for path in dataset.root.rglob("*") if path.is_symlink()}
    assert found
    return found


# ── folders of this host ──

PRIVATE = [
    ".cache", ".cache/trees/other", "./.cache/trees/other", "mine/../.cache/trees/other/data.yaml", ".cache/trees/missing",
    "datasets", "datasets/run_x", "datasets/run_x/other/data.yaml", "{home}/runs/other", "{home}/runs", "{home}/models/other",
    "{home}/journal/other", "{home}/uploaded/other", "{home}/uploads/other", "{home}/children/other", "{home}/storage/other",
    "{home}/queue.db", "{home}", "{home}/..", ".git/other", "{home}/datasets/.git/other/data.yaml", "to_cache", "to_view", "to_runs", "to_git",
    "to_models/other", "to_cache/data.yaml", "to_git/images", "to_outside",
]  # fmt: skip


@pytest.mark.parametrize("reference", PRIVATE)
def test_folder_of_the_service_cannot_be_a_dataset(prepare, place, reference):
    with pytest.raises(DatasetError, match=r"of the service itself|is hidden|outside the allowed folders"):
        prepare(reference.format(home=place / "home"))


YAMLS = {
    "path to the cache": "path: ../.cache/trees/other\ntrain: images/train\nval: images/val\nnames: [a]\n",
    "absolute path to the cache": "path: {root}/.cache/trees/other\ntrain: images/train\nval: images/val\nnames: [a]\n",
    "train in the view of another run": "train: ../datasets/run_x/other/images/train\nval: images/val\nnames: [a]\n",
    "train is a link to a hidden folder": "train: ../to_git/images/train\nval: images/val\nnames: [a]\n",
    "train in the run folder": "train: {root}/../runs/other/images/train\nval: images/val\nnames: [a]\n",
}


@pytest.mark.parametrize("text", YAMLS.values(), ids=YAMLS)
def test_yaml_cannot_name_a_folder_of_the_service(prepare, place, text):
    root = place / "home/datasets"
    (root / "mine/data.yaml").write_text(text.format(root=root))
    with pytest.raises(DatasetError, match=r"of the service itself|is hidden|outside the allowed folders"):
        prepare("mine/data.yaml")


def test_list_of_images_cannot_name_a_folder_of_the_service(prepare, place):
    """A listed path that is not allowed is treated as a path of another host: only the dataset itself is searched."""
    root = place / "home/datasets"
    names = [image.name for image in (root / "mine/images/train").iterdir()]
    folders = (
        f"{root}/.cache/trees/other",
        f"{root}/mine/../datasets/run_x/other",
        "../.cache/trees/other",
        "../to_git",
    )
    (root / "mine/train.txt").write_text("".join(f"{f}/images/train/{n}\n" for f in folders for n in names))
    (root / "mine/data.yaml").write_text("train: train.txt\nval: images/val\nnames: [a, b]\n")

    assert all(image.is_relative_to(root / "mine") for image in images_of(prepare("mine/data.yaml")))


def test_link_inside_a_dataset_to_a_folder_of_the_service_is_an_error(prepare, place):
    root = place / "home/datasets"
    (root / "mine/images/train/more").symlink_to(root / ".cache/trees/other/images/train")
    image = next((root / "datasets/run_x/other/images/train").iterdir())
    (root / "mine/images/train/other.png").symlink_to(image)

    with pytest.raises(DatasetError, match="2 symlinks are broken or lead outside"):
        prepare("mine")


def test_dataset_root_as_dataset_does_not_contain_the_folders_of_the_service(place, prepare):
    root = place / "home/datasets"
    paint(root)
    for link in root.glob("to_*"):
        link.unlink()

    own = (root / "images", root / "labels", root / "mine")
    assert all(any(image.is_relative_to(folder) for folder in own) for image in images_of(prepare(".")))


def test_own_dataset_is_prepared_although_the_home_of_the_service_is_hidden(prepare, place):
    (place / "home").rename(place / ".home")
    (place / "home").symlink_to(place / ".home")

    assert prepare("mine").images["train"] > 0
    assert prepare(str(place / "home/datasets/mine/data.yaml")).images["train"] > 0


def test_operator_can_open_a_hidden_folder(place):
    opened = settings_in(place, extra_dataset_roots=(str(place / "home/datasets/.git"),))
    inside = place / "home/datasets/.git/other"

    assert dataset_roots(opened).admit(inside) == inside
    with pytest.raises(DatasetError, match="is hidden"):
        dataset_roots(settings_in(place)).admit(inside)


@pytest.mark.parametrize("variable", ["RUNS_DIR", "MODELS_DIR"])
def test_dataset_root_must_not_be_a_folder_of_the_service(monkeypatch, tmp_path, variable):
    monkeypatch.setenv("BACKEND", "local")
    monkeypatch.setenv("DATASET_ROOT", str(tmp_path))
    monkeypatch.setenv(variable, str(tmp_path))

    with pytest.raises(Misconfigured, match=f"{variable} and DATASET_ROOT are the same folder"):
        read_settings()


def test_every_folder_in_the_home_of_the_service_is_private(tmp_path):
    """A new folder in TRAINER_HOME must be added to the list."""
    sources = "".join(path.read_text() for path in (ROOT / "trainer").rglob("*.py"))
    names = set(re.findall(r'home / "([\w.-]+)"', sources)) - {"datasets"}
    settings = settings_in(tmp_path)

    assert {"journal", "children", "queue.db", "storage", "uploads"} <= names
    assert {settings.trainer_home / name for name in names} <= set(dataset_roots(settings).private)
