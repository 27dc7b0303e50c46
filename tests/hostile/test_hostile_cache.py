"""Code in a training process tries to change cached files, or to read the files of other runs."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tests.dataset_painter import paint
from tests.process.sandbox_host import needs_landlock, order_for, reading, sandbox_host
from trainer.core.dataset import DatasetOrder
from trainer.core.retry import RetryPolicy
from trainer.core.stop import StopSignal
from trainer.datasets.cache.content import ContentCache
from trainer.datasets.cache.pixels import PixelCache
from trainer.datasets.decoder import here
from trainer.datasets.prepare import FetchedDatasets
from trainer.datasets.source.fetch import Fetcher
from trainer.datasets.source.reference import ReferenceRules
from trainer.datasets.source.roots import Roots
from trainer.remote.web import GuardedClient
from trainer.storage.local import LocalObjectStore

pytestmark = needs_landlock

# changes a file, and then restores its modification time and mode
OVERWRITE = """
import os
found = os.stat({0!r})
for attack in (
    lambda: os.chmod({0!r}, 0o666),
    lambda: open({0!r}, 'r+b').write(b'attack'),
    lambda: os.truncate({0!r}, 3),
    lambda: os.utime({0!r}, ns=(found.st_atime_ns, found.st_mtime_ns)),
    lambda: os.remove(os.path.realpath({0!r})),
    lambda: os.link(os.path.realpath({0!r}), {1!r}),
    lambda: os.rename(os.path.realpath({0!r}), {1!r}),
    lambda: open({1!r}, 'r+b').write(b'attack'),
):
    try:
        attack()
    except OSError:
        pass
"""


class Tenants:
    """A host that prepares datasets of several users, and executes code in the training process of a run."""

    def __init__(self, root: Path, home: Path) -> None:
        self.root = root
        self.host = sandbox_host(root / "host", home)
        store = LocalObjectStore(root / "store")
        self.cache = ContentCache(root / "datasets/.cache", max_bytes=1 << 30, reserve=0)
        self.web = GuardedClient(policy=RetryPolicy(tries=1, first_wait=0.01, total_seconds=5))
        roots = Roots(root / "datasets", private=(root / "datasets/.cache", root / "datasets/datasets"))
        fetcher = Fetcher(
            rules=ReferenceRules(roots, "datasets"), cache=self.cache, web=self.web, store=store, decode=here
        )
        self.datasets = FetchedDatasets(
            fetcher, ReferenceRules(roots, "datasets"), pixels=PixelCache(self.cache), decode=here
        )

    def prepare(self, source: str, run: str, owner: str | None = None):
        order = DatasetOrder(sources=(source,), owner=owner, imgsz=16)
        return self.datasets.prepare(order, self.root / "datasets/datasets" / run, StopSignal(), lambda _: None)

    def execute(self, dataset, *snippets):
        order = replace(order_for(self.host.root), dataset=dataset)
        return self.host.execute(*snippets, order=order)["results"]


@pytest.fixture
def tenants(tmp_path):
    made = Tenants(tmp_path, tmp_path / "home")
    yield made
    made.web.close()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def bucket(tenants: Tenants, name: str) -> str:
    paint(tenants.root / "store/datasets" / name)
    return f"storage:{name}/data.yaml"


def archive(tenants: Tenants, name: str) -> str:
    paint(tenants.root / "painted" / name)
    shutil.make_archive(str(tenants.root / "store/datasets" / name), "zip", tenants.root / "painted" / name)
    return f"storage:{name}.zip"


def folder(tenants: Tenants, name: str) -> str:
    paint(tenants.root / "datasets" / name)
    return f"{name}/data.yaml"


KINDS = pytest.mark.parametrize("kind", [bucket, archive, folder])


@KINDS
def test_training_cannot_change_cached_files_and_files_of_user(tenants, kind):
    dataset = tenants.prepare(kind(tenants, "set"), "run_1")
    linked = sorted(dataset.root.glob("images/*/*.jpg"))
    before = {path: path.read_bytes() for path in linked}
    cached = {path: data for path, data in contents(tenants.root / "datasets").items() if "/view/" not in path}
    copy = dataset.root / "copy.jpg"

    results = tenants.execute(dataset, *(OVERWRITE.format(str(path), str(copy)) for path in linked))

    assert len(linked) == 8
    assert set(results.values()) == {"done"}
    assert {path: path.read_bytes() for path in linked} == before
    assert {path: Path(path).read_bytes() for path in cached} == cached
    assert all(path.lstat().st_nlink == 1 for path in dataset.root.rglob("*") if not path.is_dir())


@KINDS
def test_training_cannot_read_datasets_of_other_runs(tenants, kind):
    theirs = tenants.prepare(kind(tenants, "theirs"), "run_1", owner="bob")
    ours = tenants.prepare(kind(tenants, "ours"), "run_2", owner="ann")
    own = set(contents(ours.root))
    sources = () if kind is folder else ours.readable  # a downloaded source has only files of the run
    foreign = {
        path
        for path in contents(tenants.root / "datasets").keys() - own
        if not any(map(Path(path).is_relative_to, sources))
    } - {os.path.realpath(path) for path in own}

    assert set(tenants.execute(ours, *map(reading, own)).values()) == {"done"}
    assert set(tenants.execute(ours, *map(reading, foreign)).values()) == {"PermissionError"}
    assert {os.path.realpath(path) for path in contents(theirs.root)} <= foreign


def test_images_beside_other_folders_are_allowed_one_by_one(tenants):
    """The images are directly in the dataset root, beside the cache and the datasets of other runs."""
    theirs = tenants.prepare(folder(tenants, "theirs"), "run_1")
    painted = paint(tenants.root / "painted").parent
    for image in painted.glob("images/*/*.jpg"):
        image.rename(tenants.root / "datasets" / image.name)
    images = sorted(path.name for path in (tenants.root / "datasets").glob("*.jpg"))
    (tenants.root / "datasets/train.txt").write_text("\n".join(f"./{name}" for name in images[:6]))
    (tenants.root / "datasets/val.txt").write_text("\n".join(f"./{name}" for name in images[6:]))
    (tenants.root / "datasets/data.yaml").write_text("train: train.txt\nval: val.txt\nnames: [square, disc]\n")
    for name in images:
        (tenants.root / "datasets" / name).with_suffix(".txt").write_text("0 .5 .5 .5 .5\n")
    ours = tenants.prepare("data.yaml", "run_2")

    assert set(tenants.execute(ours, *map(reading, ours.root.glob("images/*/*"))).values()) == {"done"}
    theirs_files = [path for path in contents(tenants.root / "datasets") if "/theirs/" in path or "/run_1/" in path]
    assert set(tenants.execute(ours, *map(reading, theirs_files)).values()) == {"PermissionError"}
    assert len(theirs.images) == 2
    assert tenants.root / "datasets" not in ours.readable


def test_links_to_places_outside_of_the_sources_are_not_readable(tenants):
    """Such a link can come from a decoder that a hostile image took over."""
    dataset = tenants.prepare(folder(tenants, "set"), "run_1")
    secret = tenants.root / "secret/key.pem"
    secret.parent.mkdir()
    secret.write_text("secret")
    (dataset.root / "images/train/0.jpg").symlink_to(secret)
    (dataset.root / "labels/more").symlink_to(secret.parent)
    dataset = replace(dataset, readable=(tenants.root / "datasets/set",))

    assert set(tenants.execute(dataset, reading(secret)).values()) == {"PermissionError"}


# stores forged pixels for all images of a view
FORGE = """
import os, sys
from pathlib import Path
from trainer.core.stored_pixels import ImageVersion, trailer
view = Path({0!r})
for image in view.glob('images/*/*.jpg'):
    path = view / 'pixels/16-3-fit' / (str(image.relative_to(view)) + '.npy')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b'forged' + trailer((32, 32), ImageVersion.of(image.stat())))
"""


@KINDS
def test_forged_pixels_do_not_reach_other_owners(tenants, kind):
    source = kind(tenants, "set")
    first = tenants.prepare(source, "run_1", owner="ann")
    assert set(tenants.execute(first, FORGE.format(str(first.root))).values()) == {"done"}
    tenants.datasets.discard(first.root.parent)

    assert not tenants.prepare(source, "run_2", owner="bob").kept_pixels.exists()
    assert not tenants.prepare(source, "run_3", owner=None).kept_pixels.exists()
    assert len(list(tenants.prepare(source, "run_4", owner="ann").kept_pixels.rglob("*.npy"))) == 8


def test_pixels_of_earlier_training_can_be_read_but_not_changed(tenants):
    source = folder(tenants, "set")
    first = tenants.prepare(source, "run_1")
    tenants.execute(first, FORGE.format(str(first.root)))
    tenants.datasets.discard(first.root.parent)
    second = tenants.prepare(source, "run_2")
    kept = sorted(second.kept_pixels.rglob("*.npy"))
    before = {path: data for path, data in contents(tenants.root / "datasets").items() if "/view/" not in path}
    copy = second.root / "pixels.npy"

    results = tenants.execute(second, *(OVERWRITE.format(str(path), str(copy)) for path in kept), reading(kept[0]))

    assert len(kept) == 8
    assert set(results.values()) == {"done"}
    assert {path: Path(path).read_bytes() for path in before} == before


def test_links_and_pipes_instead_of_pixels_stay_out_of_the_cache(tenants):
    source = folder(tenants, "set")
    first = tenants.prepare(source, "run_1")
    attack = (
        FORGE.format(str(first.root))
        + """
    path.unlink()
    image.name[3] in '01' and path.symlink_to('/proc/self/environ')
    image.name[3] in '23' and os.mkfifo(path)
    image.name[3] in '45' and path.mkdir()
    image.name[3] in '67' and path.symlink_to(image)
"""
    )
    assert set(tenants.execute(first, attack).values()) == {"done"}
    tenants.datasets.discard(first.root.parent)

    assert not list((tenants.cache.root / "derived").rglob("*"))
