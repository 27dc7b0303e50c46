"""The sandboxed process trains on a view of links, like that of `prepare`, and writes nothing through the links."""

import hashlib

import pytest
from child_run import order_for, run_child
from drawn import NAMES, draw

from trainer.core.dataset import PreparedDataset, Task
from trainer.core.events import Finished
from trainer.core.stop import StopSignal
from trainer.datasets.samples import Sample
from trainer.datasets.view.links import placed, write_data_yaml, write_view

pytestmark = pytest.mark.training


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.long
def test_linked_labels_folder_is_trained_on(tmp_path):
    cached = draw(tmp_path / "cache", Task.DETECT).root
    samples = []
    for image in sorted(cached.glob("images/*/*.png")):
        label = cached / "labels" / image.parent.name / f"{image.stem}.txt"
        text = label.read_bytes()
        samples.append(Sample(str(image), image.name, image.parent.name, str(label), text, owned=True))
    before, view = contents(cached), tmp_path / "view"
    write_view(view, placed(samples), StopSignal())
    assert (view / "labels/train").is_symlink()
    data = write_data_yaml(view, NAMES, ("train", "val"), None, None)
    images = {"train": 16, "val": 8}
    dataset = PreparedDataset(
        root=view, data=data, task=Task.DETECT, names=NAMES, images=images, fingerprint="0" * 64, readable=(cached,)
    )

    run = run_child(order_for(dataset, tmp_path / "run"), tmp_path / "home")

    assert isinstance(run.last, Finished), run.output
    assert "16 images, 0 backgrounds, 0 corrupt" in run.output
    assert contents(cached) == before
    assert {path.name for path in (view / "labels").iterdir()} == {"train", "train.cache", "val", "val.cache"}
