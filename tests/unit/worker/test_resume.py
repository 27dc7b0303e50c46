"""The choice of the checkpoint from which an attempt resumes."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.unit.worker.resume_harness import BUCKET, DATA, KEY, NOW, OTHER, PLAN, Host
from trainer.core.dataset import ObjectRef
from trainer.core.errors import ObjectMissing, Unavailable
from trainer.core.model import Architecture
from trainer.core.ports import TrainingOrder
from trainer.core.resumption import Resume, Setup, StartOver
from trainer.core.retry import RetryPolicy
from trainer.worker import resume
from trainer.worker.resume import resumed_order


@pytest.fixture
def host(tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "MISSING_RETRIES", RetryPolicy(tries=3, first_wait=0.01))
    return Host(tmp_path)


def test_training_resumes_from_newest_checkpoint_of_all_attempts(host):
    host.keep(host.first, 4)
    newest = host.keep(host.second, 7)
    host.upload(6)

    found = host.found()
    assert found.path.samefile(newest)
    assert (found.attempt, found.epoch, found.decision) == (2, 7, Resume())
    assert host.codes == []


def test_uploaded_checkpoint_is_downloaded_when_newer(host):
    host.keep(host.first, 4)
    host.upload(6)

    found = host.found()
    assert (found.epoch, found.path.parent) == (6, host.first.parent / "train_x-3" / "resumed")
    assert found.attempt == int(KEY.split("/")[2])
    assert found.setup == NOW


def test_downloaded_checkpoint_belongs_to_attempt_that_trained_it(host):
    """The attempt that downloads a checkpoint is not the attempt that trained its epochs."""
    host.upload(6)
    fetched = host.found().path

    host.job = replace(host.job, attempt=4, checkpoint=None)
    host.second = fetched.parent.parent
    again = host.found()

    assert again.path.samefile(fetched)
    assert again.attempt == int(KEY.split("/")[2])


@pytest.mark.parametrize(("last_reported", "attempt", "epoch"), [(14, 3, 13), (14, 1, 14), (12, 3, 14)])
def test_local_checkpoint_is_chosen_unless_superseded_by_later_attempt(host, last_reported, attempt, epoch):
    """A local checkpoint is superseded if its epoch was reported and a later attempt has uploaded a checkpoint."""
    key = f"training_runs/x/{attempt}/checkpoints/epoch.pt"
    host.key = key
    host.keep(host.second, 14)
    host.upload(13)
    host.job = replace(host.job, last_reported_epoch=last_reported, attempt=4)

    assert host.found().epoch == epoch


def test_resumable_checkpoint_is_chosen_over_later_epoch_of_other_settings(host):
    """The run started over after 40 epochs and was interrupted in epoch 4. The newer training must resume."""
    host.keep(host.first, 40, OTHER)
    newest = host.keep(host.second, 3)
    host.upload(39, OTHER)

    assert host.found().path.samefile(newest)
    assert host.found().decision == Resume()


def test_newest_checkpoint_is_used_to_start_over(host):
    host.keep(host.first, 39, OTHER)
    newest = host.keep(host.first, 40, OTHER, best_epoch=17)

    found = host.found()
    assert found.path.samefile(newest)
    assert found.best_epoch == 17
    assert found.decision == StartOver(from_best=True, changes=("lr0 0.5 → 0.01",))
    assert host.codes == []


def test_training_resumes_from_checkpoint_without_metadata(host):
    host.keep(host.first, 5, None)
    assert (host.found().decision, host.found().setup) == (Resume(), None)


def test_damaged_and_missing_checkpoints_are_reported_and_skipped(host):
    host.keep(host.first, 4)
    host.keep(host.second, 7).write_bytes(b"damaged")
    host.upload(6)
    host.store.delete(ObjectRef(bucket=BUCKET, key=KEY))

    assert host.found().epoch == 4
    assert host.codes == ["checkpoint_broken", "checkpoint_missing"]


def test_training_starts_from_scratch_without_intact_checkpoint(host):
    assert host.found() is None
    assert host.codes == []
    host.keep(host.second, 7).write_bytes(b"damaged")
    assert host.found() is None
    assert host.codes == ["checkpoint_broken", "no_checkpoint"]


def test_unavailable_bucket_is_an_error_if_it_has_the_newest_checkpoint(host):
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
def test_checkpoint_is_downloaded_after_one_404_or_login_page(host, answer):
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


def test_training_resumes_from_later_of_two_checkpoints_with_equal_epochs(host):
    """The later checkpoint can include part of the next epoch."""
    earlier, later = host.keep(host.second, 5), host.keep(host.first, 5)
    for path, at in ((earlier, 100), (later, 200)):
        os.utime(path, (at, at))
    assert host.found().path.samefile(later)


# ── the start of the attempt ──

ORDER = TrainingOrder(plan=PLAN, model=Path("m.pt"), dataset=DATA, run_dir=Path("/runs/x"), setup=NOW.as_json())


def test_resumed_training_keeps_started_from(host):
    host.keep(host.first, 5, replace(NOW, started_from="the best weights of an earlier training"))
    order, events = resumed_order(ORDER, NOW, host.found())

    assert order.resume.name == "1-epoch-00005.pt"
    assert order.best_of is None
    assert order.setup["started_from"] == "the best weights of an earlier training"
    assert [event.code for event in events] == ["resumed"]


def test_changes_are_reported_with_old_and_new_value(host):
    host.keep(host.first, 5, Setup.of(replace(PLAN, batch=32, imgsz=320), DATA))
    order, events = resumed_order(ORDER, NOW, host.found())

    assert order.resume
    assert [event.code for event in events] == ["resumed", "resumed_with_changes"]
    assert "batch 32 → 16, imgsz 320 → 640" in events[1].message
    assert "best.pt is selected only from the next epochs" in events[1].message


def test_starting_over_uses_best_weights_and_reports_reason(host):
    host.keep(host.first, 40, OTHER, best_epoch=17)
    order, [event] = resumed_order(ORDER, NOW, host.found())

    assert order.resume is None
    assert order.best_of.name == "1-epoch-00040.pt"
    assert order.setup["started_from"] == "the best weights of an earlier training of this run (epoch 17)"
    assert event.code == "started_over"
    assert "lr0 0.5 → 0.01" in event.message


def test_other_model_starts_over_from_its_own_weights(host):
    host.keep(host.first, 40, Setup.of(replace(PLAN, model=Architecture(stem="yolov8n")), DATA))
    order, [event] = resumed_order(ORDER, NOW, host.found())

    assert order == ORDER
    assert event.code == "started_over"
    assert "base_model yolov8n.yaml → yolo11n.yaml" in event.message


def test_message_lists_at_most_ten_changes(host):
    many = {f"setting_{n:02}": n for n in range(50)}
    host.keep(host.first, 40, replace(NOW, settings={**NOW.settings, **many}))
    _, [event] = resumed_order(ORDER, NOW, host.found())

    assert "and 40 more" in event.message
    assert len(event.message) < 1500
