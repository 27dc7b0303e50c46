"""Which checkpoint a later attempt begins from, and what a hostile one can do to the service: nothing."""

import hashlib
import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from trainer.core.dataset import ObjectRef, PreparedDataset, Task
from trainer.core.errors import ObjectMissing, Unavailable
from trainer.core.job import Checkpoint, Job, RunRequest
from trainer.core.plan import Architecture, TrainPlan
from trainer.core.ports import TrainingOrder
from trainer.core.resumption import Resume, Setup, StartOver
from trainer.core.stop import StopSignal
from trainer.remote.retry import RetryPolicy
from trainer.storage.local import LocalObjectStore
from trainer.worker import resume
from trainer.worker.resume import Checkpoints, continued

BUCKET, KEY = "artifacts", "training_runs/x/1/checkpoints/epoch.pt"
PLAN = TrainPlan(
    sources=("d",), model=Architecture(stem="yolo11n"), task=None, epochs=100, batch=16, imgsz=640, device=None,
)  # fmt: skip
DATA = PreparedDataset(
    root=Path("/view"), data=Path("/view/data.yaml"), task=Task.DETECT, names=("cat",), images={"train": 9}, fingerprint="a" * 64,
)  # fmt: skip
NOW = Setup.of(PLAN, DATA)
OTHER = Setup.of(replace(PLAN, args={"lr0": 0.5}), DATA)


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "BELIEVED_AFTER", RetryPolicy(tries=3, first_wait=0.01))
    return Host(tmp_path)


class Host:
    """The folders of two attempts, and a bucket."""

    def __init__(self, home):
        self.first, self.second = home / "train_x", home / "train_x-2"
        self.store = LocalObjectStore(home / "bucket")
        self.job = Job(id="x", request=RunRequest(data_yaml="d"), attempt=3)
        self.told = []

    def keep(self, run_dir, epoch, setup=NOW, **facts):
        return self.write(run_dir, epoch, setup and {"epoch": epoch, "setup": setup.as_json()} | facts)

    def write(self, run_dir, epoch, facts):
        folder = run_dir / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"epoch-{epoch:05d}.pt"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", f"state after {epoch}")
            if facts is not None:
                archive.writestr("archive/run/checkpoint.json", json.dumps(facts))
        return self.note(path, epoch)

    def note(self, path, epoch):
        facts = {"epoch": epoch, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size}
        path.with_suffix(".json").write_text(json.dumps(facts))
        return path

    def upload(self, epoch, setup=NOW):
        """Put a checkpoint into the bucket only; the row points to it."""
        path = self.keep(self.first.parent / "elsewhere", epoch, setup)
        self.store.upload(path, ObjectRef(bucket=BUCKET, key=KEY), StopSignal())
        facts = json.loads(path.with_suffix(".json").read_text())
        self.job = replace(self.job, checkpoint=Checkpoint(**facts, key=KEY))

    def found(self, setup=NOW):
        target = self.first.parent / "train_x-3"
        checkpoints = Checkpoints(self.job, [self.first, self.second], target, self.store, BUCKET, self.told.append)
        return checkpoints.best_for(setup, StopSignal())

    @property
    def codes(self):
        return [event.code for event in self.told]


def test_the_newest_of_all_attempts_is_resumed(host):
    host.keep(host.first, 4)
    newest = host.keep(host.second, 7)
    host.upload(6)

    found = host.found()
    assert (found.path, found.attempt, found.epoch, found.decision) == (newest, 2, 7, Resume())
    assert host.codes == []


def test_the_buckets_is_fetched_when_it_is_newer(host):
    host.keep(host.first, 4)
    host.upload(6)

    found = host.found()
    assert (found.epoch, found.path.parent) == (6, host.first.parent / "train_x-3" / "checkpoints")
    assert found.attempt == int(KEY.split("/")[2])
    assert found.setup == NOW


def test_checkpoint_that_an_attempt_fetched_still_belongs_to_the_attempt_that_trained_it(host):
    """The attempt that fetched it trained nothing; which epochs the history has of it depends on who trained them."""
    host.upload(6)
    fetched = host.found().path

    host.job = replace(host.job, attempt=4, checkpoint=None)
    host.second = fetched.parent.parent
    again = host.found()

    assert (again.path, again.attempt) == (fetched, int(KEY.split("/")[2]))


@pytest.mark.parametrize(("told", "attempt", "epoch"), [(14, 3, 13), (14, 1, 14), (12, 3, 14)])
def test_epochs_that_a_later_attempt_trained_again_elsewhere_are_not_resumed_from(host, monkeypatch, told, attempt, epoch):
    """Unless they are more than that attempt told, or the bucket's checkpoint is of this host's own attempt."""
    key = f"training_runs/x/{attempt}/checkpoints/epoch.pt"
    monkeypatch.setattr("test_resume.KEY", key)
    host.keep(host.second, 14)
    host.upload(13)
    host.job = replace(host.job, told_epoch=told, attempt=4)

    assert host.found().epoch == epoch


def test_a_newer_checkpoint_of_other_settings_does_not_shadow_the_one_to_resume(host):
    """The run started over after 40 epochs and was interrupted in its fourth: that training is resumed."""
    host.keep(host.first, 40, OTHER)
    newest = host.keep(host.second, 3)
    host.upload(39, OTHER)

    assert (host.found().path, host.found().decision) == (newest, Resume())


def test_without_one_to_resume_the_newest_is_what_to_start_over_from(host):
    host.keep(host.first, 39, OTHER)
    newest = host.keep(host.first, 40, OTHER, best_epoch=17)

    found = host.found()
    assert (found.path, found.best_epoch) == (newest, 17)
    assert found.decision == StartOver(from_best=True, changes=("lr0 0.5 → 0.01",))
    assert host.codes == []


def test_a_checkpoint_without_a_record_is_resumed(host):
    host.keep(host.first, 5, None)
    assert (host.found().decision, host.found().setup) == (Resume(), None)


def test_what_is_damaged_or_gone_is_told_and_left_aside(host):
    host.keep(host.first, 4)
    host.keep(host.second, 7).write_bytes(b"torn")
    host.upload(6)
    host.store.delete(ObjectRef(bucket=BUCKET, key=KEY))

    assert host.found().epoch == 4
    assert host.codes == ["checkpoint_broken", "checkpoint_missing"]


def test_without_any_that_is_whole_the_training_starts_anew_and_says_so(host):
    assert host.found() is None
    assert host.codes == []
    host.keep(host.second, 7).write_bytes(b"torn")
    assert host.found() is None
    assert host.codes == ["checkpoint_broken", "no_checkpoint"]


def test_a_bucket_that_does_not_answer_is_waited_for_only_when_it_has_the_newest(host):
    host.keep(host.first, 4)
    host.upload(6)

    def down(*_, **__):
        raise Unavailable("storage is down")

    host.store.download = down
    with pytest.raises(Unavailable):
        host.found()
    host.keep(host.second, 7)
    assert host.found().epoch == 7


@pytest.mark.parametrize("answer", ["404", "a login page"])
def test_what_the_bucket_says_once_throws_no_checkpoint_away(host, answer):
    host.upload(6)
    download, asked = host.store.download, []

    def first_says_something_else(ref, path, stop):
        asked.append(ref)
        if len(asked) > 1:
            return download(ref, path, stop)
        if answer == "404":
            raise ObjectMissing("no such object")
        path.write_bytes(b"<html>Log in</html>")
        return None

    host.store.download = first_says_something_else

    assert host.found().epoch == 6
    assert host.codes == []


def test_of_two_with_as_many_epochs_the_later_is_resumed(host):
    """It may be in the middle of the next epoch."""
    earlier, later = host.keep(host.second, 5), host.keep(host.first, 5)
    for path, at in ((earlier, 100), (later, 200)):
        os.utime(path, (at, at))
    assert host.found().path == later


# ── what the attempt begins with ──

ORDER = TrainingOrder(plan=PLAN, model=Path("m.pt"), dataset=DATA, run_dir=Path("/runs/x"), setup=NOW.as_json())


def test_a_resumed_training_stays_what_it_was_started_from(host):
    path = host.keep(host.first, 5, replace(NOW, started_from="the best weights of before"))
    order, events = continued(ORDER, NOW, host.found())

    assert (order.resume, order.best_of) == (path, None)
    assert order.setup["started_from"] == "the best weights of before"
    assert [event.code for event in events] == ["resumed"]


def test_changes_are_told_with_old_and_new(host):
    host.keep(host.first, 5, Setup.of(replace(PLAN, batch=32, imgsz=320), DATA))
    order, events = continued(ORDER, NOW, host.found())

    assert order.resume
    assert [event.code for event in events] == ["resumed", "resumed_with_changes"]
    assert "batch 32 → 16, imgsz 320 → 640" in events[1].message
    assert "the best model is one of the epochs that follow" in events[1].message


def test_starting_over_takes_the_best_weights_and_says_why(host):
    path = host.keep(host.first, 40, OTHER, best_epoch=17)
    order, [event] = continued(ORDER, NOW, host.found())

    assert (order.resume, order.best_of) == (None, path)
    assert order.setup["started_from"] == "the best weights of an earlier training of this run (epoch 17)"
    assert event.code == "started_over"
    assert "lr0 0.5 → 0.01" in event.message


def test_another_model_starts_over_from_itself(host):
    host.keep(host.first, 40, Setup.of(replace(PLAN, model=Architecture(stem="yolov8n")), DATA))
    order, [event] = continued(ORDER, NOW, host.found())

    assert order == ORDER
    assert event.code == "started_over"
    assert "base_model yolov8n.yaml → yolo11n.yaml" in event.message


def test_a_message_names_a_few_of_many_changes(host):
    many = {f"setting_{n:02}": n for n in range(50)}
    host.keep(host.first, 40, replace(NOW, settings={**NOW.settings, **many}))
    _, [event] = continued(ORDER, NOW, host.found())

    assert "and 40 more" in event.message
    assert len(event.message) < 1500


# ── what the training process could have written ──


@pytest.mark.parametrize(
    "facts",
    [b"", b"{", b"[]", b'{"epoch": "x", "sha256": "x", "bytes": 1}', b'{"epoch": 1, "sha256": 5, "bytes": 1}', b"[" * 100_000]
)
def test_a_sidecar_that_makes_no_sense_is_left_aside(host, facts):
    usable = host.keep(host.first, 3)
    host.keep(host.first, 9).with_suffix(".json").write_bytes(facts)
    assert host.found().path == usable


@pytest.mark.parametrize("which", [".pt", ".json"])
@pytest.mark.parametrize("how", [os.mkfifo, os.mkdir, lambda path: os.symlink("/etc/passwd", path)], ids=["pipe", "folder", "link"])
def test_what_is_no_plain_file_is_left_aside(host, which, how):
    usable = host.keep(host.first, 3)
    path = host.keep(host.first, 9).with_suffix(which)
    path.unlink()
    how(path)
    assert host.found().path == usable


def bomb(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", "x")
        archive.writestr("archive/run/checkpoint.json", b"[" + b" " * 300_000_000)


def crowd(path):
    with zipfile.ZipFile(path, "w") as archive:
        for n in range(200_000):
            archive.writestr(f"archive/{n}", "")


def directory_elsewhere(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/run/checkpoint.json", json.dumps({"setup": OTHER.as_json()}))
    content = path.read_bytes()
    path.write_bytes(content[:-22] + b"PK\6\7" + b"\0" * 16 + content[-22:])


def truncated(path):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/run/checkpoint.json", json.dumps({"setup": OTHER.as_json()}))
    content = path.read_bytes()
    path.write_bytes(content[:60] + b"\xff" * 40 + content[100:])


@pytest.mark.parametrize("make", [bomb, crowd, directory_elsewhere, truncated, lambda path: path.write_bytes(b"no archive")])
def test_an_archive_that_cannot_be_read_within_bounds_records_nothing(host, make):
    path = host.keep(host.first, 9)
    make(path)
    host.note(path, 9)

    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = host.found()
    assert (found.epoch, found.setup, found.decision) == (9, None, Resume())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


@pytest.mark.parametrize("facts", [[], "x", {}, {"setup": "x"}, {"setup": {}}, {"best_epoch": "x"}, {"complete": "no"}])
def test_notes_that_make_no_sense_are_left_aside(host, facts):
    host.write(host.first, 9, facts)
    assert host.found().epoch == 9
    assert isinstance(host.found().best_epoch, int)
