"""Recovery of crashed processes: the next process publishes their artifacts under the same lease."""

import os
import time
from contextlib import closing

import pytest

from tests.unit.worker.worker_room import BUCKET, Room
from trainer.core.errors import MachineFailed, Unavailable
from trainer.core.job import Failed
from trainer.core.stop import StopReason, StopSignal
from trainer.worker import artifact_upload
from trainer.worker.journal import Journal
from trainer.worker.orphaned_journals import orphaned_journals

AGAIN = "22222222-2222-4222-8222-222222222222"
TRAINED = {"last.pt", "results.csv", "run.log", "manifest.json"}


@pytest.fixture
def room(tmp_path):
    return Room(tmp_path)


def killed(room, lease=None):
    """Return a run whose process was killed in its second epoch, and its run folder."""
    run_id = lease.job.id if lease else room.enqueue()
    lease = lease or room.claim(AGAIN)
    journal = Journal.create(room.folders.journals, lease)
    journal.record("epoch", {"epoch": 1})
    journal.close()
    run_dir = room.folders.folder(lease.job).path
    (run_dir / "weights").mkdir(parents=True)
    (run_dir / "weights" / "last.pt").write_bytes(b"last of 1")
    (run_dir / "results.csv").write_text("epoch\n1\n")
    (run_dir / "run.log").write_text("training begins\n")
    return run_id, run_dir


def recover(room, queue=None, stop=None, **parts):
    queue = queue or room.queue
    room.deliver_orphans(room.recovery(queue=queue, **parts), queue, stop)


def artifacts(room, run_id):
    return {artifact["name"]: artifact for artifact in (room.row(run_id)["results"] or {}).get("artifacts", [])}


def published(room):
    return {path.name for path in (room.home / "storage" / BUCKET).rglob("*") if path.is_file()}


class Watched:
    """A store or queue that calls `before` in each of its methods `names`."""

    def __init__(self, watched, before, *names):
        self.watched, self.before, self.names = watched, before, names

    def __getattr__(self, name):
        found = getattr(self.watched, name)
        if name not in self.names:
            return found

        def call(*arguments, **more):
            self.before(*arguments)
            return found(*arguments, **more)

        return call


def test_artifacts_of_killed_process_are_published_and_run_is_requeued(room):
    run_id, run_dir = killed(room)

    recover(room)

    row = room.row(run_id)
    assert (row["status"], row["failures"]) == ("queued", 1)
    assert "crash" in row["error_message"]
    assert artifacts(room, run_id).keys() == TRAINED
    assert row["results"]["run_dir"] == str(run_dir)
    assert room.kinds(run_id) == ["epoch", "phase", "phase"]
    assert (run_dir / "run.log").read_text().startswith("training begins\n[")
    assert not list(room.folders.journals.iterdir())


def test_canceled_run_of_killed_process_keeps_artifacts_and_progress(room):
    run_id, _ = killed(room)
    lease = room.claim(AGAIN)
    room.queue.beat(lease, {"progress": {"epoch": 2, "percent": 40.0}}, [])
    room.queue.cancel(run_id)

    recover(room)

    row = room.row(run_id)
    assert (row["status"], row["error_message"]) == ("canceled", "Canceled by user.")
    assert artifacts(room, run_id).keys() == TRAINED
    assert row["results"]["progress"] == {"epoch": 2, "percent": 40.0}


def test_cancel_during_recovery_is_obeyed(room):
    run_id, _ = killed(room)

    def cancel(*_):
        room.queue.cancel(run_id)
        time.sleep(0.3)

    recover(room, store=Watched(room.store, cancel, "upload"))

    assert room.row(run_id)["status"] == "canceled"
    assert artifacts(room, run_id).keys() == TRAINED


def claims_of_another_worker_while_it_recovers(room):
    """Return what another worker claims during an upload of 1.2 s."""
    claimed = []

    def slow(path, *_):
        if path.name == "last.pt":
            for _ in range(12):
                time.sleep(0.1)
                claimed.append(room.claim("93333333-3333-4333-8333-333333333333", worker="other"))

    recover(room, store=Watched(room.store, slow, "upload"))
    assert claimed
    return claimed


def test_lease_is_renewed_during_upload_of_recovery(room):
    room.lease_seconds, room.drain_seconds = 0.4, 10.0
    run_id, _ = killed(room)
    assert not any(claims_of_another_worker_while_it_recovers(room))
    assert room.row(run_id)["status"] == "queued"


def test_nothing_is_published_for_run_that_ended_meanwhile(room):
    run_id, _ = killed(room)
    room.queue.finish(room.claim(AGAIN), Failed(message="the web app ended it"), [])

    recover(room)

    assert room.row(run_id)["error_message"] == "the web app ended it"
    assert not (room.home / "storage").exists()
    assert not list(room.folders.journals.iterdir())


def test_recovery_waits_for_queue_and_uploads_once(room):
    run_id, _ = killed(room)
    errors, uploads = iter([Unavailable("down"), Unavailable("down")]), []

    def fail(*_):
        for error in errors:
            assert not uploads
            raise error

    queue = Watched(room.queue, fail, "beat")
    recover(room, queue, store=Watched(room.store, lambda path, *_: uploads.append(path.name), "upload"))

    assert room.row(run_id)["status"] == "queued"
    assert len(uploads) == len(set(uploads)) == len(TRAINED)


def test_undelivered_outcome_does_not_repeat_upload(room):
    run_id, _ = killed(room)
    errors, uploads = iter([Unavailable("down"), Unavailable("down")]), []

    def fail(*_):
        for error in errors:
            raise error

    queue = Watched(room.queue, fail, "finish")
    recover(room, queue, store=Watched(room.store, lambda path, *_: uploads.append(path.name), "upload"))

    assert artifacts(room, run_id).keys() == TRAINED
    assert len(uploads) == len(TRAINED)


@pytest.mark.parametrize(
    "error", [Unavailable("down"), MachineFailed("disk"), KeyError("bug"), OSError(5, "I/O error")]
)
@pytest.mark.parametrize("canceled", [False, True])
def test_run_of_killed_process_is_requeued_while_store_fails(room, error, canceled):
    room.drain_seconds = 1.0
    run_id, _ = killed(room)
    if canceled:
        room.queue.cancel(run_id)

    def fail(*_):
        raise error

    recover(room, store=Watched(room.store, fail, "upload"))

    assert room.row(run_id)["status"] == ("canceled" if canceled else "queued")
    assert not list(room.folders.journals.iterdir())


def test_known_outcomes_do_not_wait_for_recoveries(room):
    room.enqueue(), room.enqueue()
    leases = [room.claim(AGAIN), room.claim("33333333-3333-4333-8333-333333333333")]
    # whose journal would be read first
    orphan, decided = sorted(leases, key=lambda lease: lease.job.id)
    first, second = orphan.job.id, decided.job.id
    killed(room, orphan)
    journal = Journal.create(room.folders.journals, decided)
    journal.end(Failed(message="no labels"))
    journal.close()
    seen = []

    recover(room, store=Watched(room.store, lambda *_: seen.append(room.row(second)["status"]), "upload"))

    assert set(seen) == {"failed"}
    assert room.row(first)["status"] == "queued"


def test_missing_run_folder_is_not_created(room):
    run_id, run_dir = killed(room)
    run_dir.rename(room.home / "elsewhere")

    recover(room)

    assert (room.row(run_id)["status"], artifacts(room, run_id)) == ("queued", {})
    assert not run_dir.exists()


def test_shutdown_ends_recovery(room):
    room.drain_seconds = 0.5
    killed(room)
    stop = StopSignal()

    def hang(*_):
        stop.set(StopReason.SHUTDOWN)
        time.sleep(0.2)

    began = time.monotonic()
    recover(room, stop=stop, store=Watched(room.store, hang, "upload"))

    assert time.monotonic() - began < 5


# ── what a training process may have put there ──


@pytest.mark.parametrize("name", ["run.log", "manifest.json", ".run.log.uploading", "results.csv", "weights/last.pt"])
def test_link_out_of_run_folder_is_not_followed(room, tmp_path, name):
    run_id, run_dir = killed(room)
    secret = tmp_path / "secret"
    secret.write_text("a key")
    (run_dir / name).unlink(missing_ok=True)
    (run_dir / name).symlink_to(secret)

    recover(room)

    assert room.row(run_id)["status"] == "queued"
    assert secret.read_text() == "a key"
    for artifact in artifacts(room, run_id).values():
        assert b"a key" not in (room.home / "storage" / BUCKET / artifact["path"]).read_bytes()


@pytest.mark.parametrize("name", ["run.log", "manifest.json", ".run.log.uploading", "results.csv"])
def test_pipe_in_run_folder_does_not_block(room, name):
    run_id, run_dir = killed(room)
    (run_dir / name).unlink(missing_ok=True)
    os.mkfifo(run_dir / name)

    recover(room)

    assert "last.pt" in artifacts(room, run_id)


@pytest.mark.parametrize("name", ["manifest.json", ".run.log.uploading"])
def test_folder_in_place_of_log_or_manifest_does_not_stop_publishing(room, name):
    run_id, run_dir = killed(room)
    (run_dir / name / "deep").mkdir(parents=True)

    recover(room)

    assert artifacts(room, run_id).keys() == TRAINED


@pytest.mark.parametrize("name", ["results.csv", "run.log"])
def test_huge_file_does_not_exceed_time_or_memory(room, name):
    """A sparse file is free to create, but reading it takes a core for hours, while the lease is renewed."""
    room.drain_seconds = 0.5
    run_id, run_dir = killed(room)
    os.truncate(run_dir / name, 2**42)

    began = time.monotonic()
    recover(room)

    assert time.monotonic() - began < 5
    assert room.row(run_id)["status"] == "queued"


def test_only_end_of_large_log_is_published(room, monkeypatch):
    monkeypatch.setattr(artifact_upload, "LARGEST_LOG", 1000)
    run_id, run_dir = killed(room)
    (run_dir / "run.log").write_text("epoch\n" * 10_000)

    recover(room)

    log = artifacts(room, run_id)["run.log"]
    content = (room.home / "storage" / BUCKET / log["path"]).read_text()
    assert len(content) == log["bytes"] == 1000
    assert "uploading" in content.splitlines()[-1]


def test_weights_are_published_first_within_time_limit(room):
    room.drain_seconds = 0.5
    run_id, run_dir = killed(room)
    (run_dir / "labels").mkdir()
    for number in range(50):
        (run_dir / "labels" / f"{number}.txt").write_text("0 0.5 0.5 0.1 0.1\n")

    recover(room, store=Watched(room.store, lambda *_: time.sleep(0.1), "upload"))

    assert "last.pt" in artifacts(room, run_id)
    assert len(artifacts(room, run_id)) < 50


# ── several of them ──


def claimed_and_killed(room, count):
    """Return runs of a killed process, each with a claim of its own."""
    runs = [room.enqueue() for _ in range(count)]
    for number in range(count):
        killed(room, room.claim(f"{number}2222222-2222-4222-8222-222222222222"))
    return runs


def test_leases_of_all_runs_are_renewed_while_one_uploads(room):
    room.lease_seconds, room.drain_seconds = 0.5, 10.0
    runs = claimed_and_killed(room, 3)
    assert not any(claims_of_another_worker_while_it_recovers(room))
    assert [artifacts(room, run_id).keys() for run_id in runs] == [TRAINED] * 3


def test_known_outcome_is_retried_while_other_run_uploads(room):
    runs = claimed_and_killed(room, 2)
    journal = next(orphaned_journals(room.folders.journals, "w", 60))
    decided = journal.lease.job.id
    journal.end(Failed(message="no labels"))
    journal.close()
    errors, seen = iter([Unavailable("down")]), []

    def fail(lease, *_):
        if lease.job.id == decided:
            for error in errors:
                raise error

    def slow(path, *_):
        if path.name == "last.pt":
            time.sleep(1.5)
            seen.append(room.row(decided)["status"])

    recover(room, Watched(room.queue, fail, "finish"), store=Watched(room.store, slow, "upload"))

    assert seen == ["failed"]
    assert {room.row(run_id)["status"] for run_id in runs} == {"failed", "queued"}


# ── recoveries that do not end ──


def test_recovery_that_kills_service_is_tried_three_times(room):
    """Each recovery renews the lease, so the queue would never count the attempt as lost."""
    run_id, _ = killed(room)

    def die(*_):
        raise SystemExit

    recovery = room.recovery(store=Watched(room.store, die, "upload"))
    for _ in range(3):
        with closing(next(orphaned_journals(room.folders.journals, "w", 60))) as journal, pytest.raises(SystemExit):
            recovery.recover(journal, StopSignal())
    room.deliver_orphans(recovery)

    assert (room.row(run_id)["status"], artifacts(room, run_id)) == ("queued", {})
