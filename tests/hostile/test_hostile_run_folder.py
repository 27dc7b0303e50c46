"""A training process in the real sandbox attacks the files of its run: no other file is read, written or published.

Every attack ends in bounded time, and the run ends with a result or with another attempt.
"""

from __future__ import annotations

import hashlib
import json
import threading

import pytest

from tests.hostile.attacked_worker import REPLACE, REPLACEMENTS, SECONDS, SECRET, AttackedWorker
from tests.long import long_except
from tests.process.sandbox_host import needs_landlock
from tests.unit.worker.harness import BUCKET, wait_for
from trainer.core.stop import StopSignal
from trainer.worker import artifact_selection

pytestmark = needs_landlock

QUICK = long_except(REPLACEMENTS, "link to secret", "link to endless device", "pipe")


@pytest.fixture
def worker(tmp_path, monkeypatch):
    monkeypatch.setenv("SUPERVISOR_KEY", "SUPERVISOR_KEY")  # in the environment of this process, the supervisor
    made = AttackedWorker(tmp_path)
    monkeypatch.chdir(made.secrets)  # .env of the service
    yield made
    made.trainer.close()


@pytest.mark.parametrize("what", REPLACEMENTS)
def test_other_artifacts_are_left_out_and_the_model_is_published(worker, what):
    worker.replace(["results.csv", "args.yaml", "extra", "checkpoints"], what)
    run_id = worker.enqueue()

    worker.attempt()

    row = worker.row(run_id)
    assert row["status"] == "completed", row["error_message"]
    assert {"best.pt", "last.pt", "run.log", "manifest.json"} == worker.artifacts(run_id).keys()
    worker.assert_nothing_leaked()


@pytest.mark.parametrize("what", QUICK)
@pytest.mark.parametrize("name", ["weights/best.pt", "weights"])
def test_replaced_model_is_never_published_and_the_next_attempt_resumes(worker, name, what):
    worker.replace([name], what)
    run_id = worker.enqueue()

    worker.attempt()

    row = worker.row(run_id)
    assert (row["status"], row["trained_model_url"]) == ("queued", None)
    worker.assert_nothing_leaked()

    worker.behave()
    worker.attempt_again(run_id)

    row = worker.row(run_id)
    assert row["status"] == "completed", row["error_message"]
    assert worker.warnings(run_id, "resumed") == ["Resumed from the checkpoint of epoch 3."]
    worker.assert_nothing_leaked()


@pytest.mark.parametrize("what", QUICK)
def test_replaced_checkpoints_are_neither_uploaded_nor_used(worker, what):
    """The process fails, so that the worker looks for a checkpoint to publish and to resume from."""
    worker.checkpoint_seconds = 0.01
    code = REPLACEMENTS[what].format(secrets=str(worker.secrets))
    names = [f"checkpoints/epoch-0000{epoch}{suffix}" for epoch in (1, 2, 3) for suffix in (".pt", ".json")]
    worker.behave(
        with_epoch=REPLACE.format(names=[*names, "weights/last.pt", "results.csv"], replacement=code)
        + "\nimport time; time.sleep(0.2)\nif epoch == 3: os._exit(7)"
    )
    run_id = worker.enqueue()

    worker.attempt()
    assert worker.row(run_id)["status"] == "queued"
    worker.behave()
    worker.attempt_again(run_id)

    assert worker.row(run_id)["status"] == "completed"
    worker.assert_nothing_leaked()


def test_checkpoint_is_not_uploaded_through_link_even_if_its_checksum_is_known(worker):
    """The process knows the checksum of a file of another tenant, reports it, and links its checkpoint to the file."""
    worker.checkpoint_seconds = 0.01
    digest = hashlib.sha256(SECRET).hexdigest()
    worker.behave(
        with_epoch=REPLACE.format(
            names=["checkpoints/epoch-00003.pt"], replacement=f"path.symlink_to({str(worker.secrets / 'secret')!r})"
        )
        + f"\ntraining.send(kind='checkpoint', epoch=3, sha256={digest!r}, bytes={len(SECRET)},"
        f" path={str(worker.secrets / 'secret')!r}, key='training_runs/other/1/best.pt')\nimport time; time.sleep(0.3)"
    )
    run_id = worker.enqueue()

    worker.attempt()

    assert worker.row(run_id)["status"] == "completed"
    assert all("other" not in key for key in worker.stored_keys())
    worker.assert_nothing_leaked()


def test_checkpoint_that_is_replaced_by_a_link_all_the_time_publishes_no_other_file(worker):
    """The process is alive during the uploads, and exchanges its checkpoint with a link as fast as it can."""
    worker.checkpoint_seconds = 0.001
    worker.behave(
        with_epoch=f"""
import time
path, link = output / f"checkpoints/epoch-{{epoch:05d}}.pt", output / "link"
link.unlink(missing_ok=True)
link.symlink_to({str(worker.secrets / "secret")!r})
other, until = output / "other", time.monotonic() + 2
while time.monotonic() < until:
    path.rename(other); link.rename(path); path.rename(link); other.rename(path)
"""
    )
    run_id = worker.enqueue()

    worker.attempt()

    assert worker.row(run_id)["status"] == "completed"
    worker.assert_nothing_leaked()


SIDECARS = {
    "huge numbers": '{"epoch": %d, "sha256": "' + "0" * 64 + '", "bytes": 9223372036854775807}',
    "negative numbers": '{"epoch": %d, "sha256": "' + "0" * 64 + '", "bytes": -1}',
    "a key of another run": '{"epoch": %d, "sha256": "'
    + "0" * 64
    + '", "bytes": 0, "key": "training_runs/o/9/best.pt"}',
    "another digest": '{"epoch": %d, "sha256": "../../x", "bytes": 0}',
}


@pytest.mark.parametrize("what", SIDECARS)
def test_false_sidecars_are_ignored(worker, what):
    code = "for n in range(100_000_000, 100_002_000):\n"
    code += f"    (output / f'checkpoints/epoch-{{n}}.json').write_text({SIDECARS[what]!r} % n)\n"
    code += (
        "    (output / f'checkpoints/epoch-{n}.pt').touch(); os.truncate(output / f'checkpoints/epoch-{n}.pt', 2**33)\n"
    )
    worker.behave(at_end=code + "os._exit(7)")
    run_id = worker.enqueue()
    worker.attempt()

    worker.behave()
    worker.attempt_again(run_id)

    assert worker.row(run_id)["status"] == "completed"


def test_many_files_and_deep_folders_are_left_out_with_one_warning_each(worker, monkeypatch):
    monkeypatch.setattr(artifact_selection, "MOST_FILES", 100)
    monkeypatch.setattr(artifact_selection, "MOST_ENTRIES", 3000)
    worker.behave(
        at_end="""
os.chdir(output)
for _ in range(300):
    os.mkdir("d")
    os.chdir("d")
Path("x").touch()
(output / "labels").mkdir()
for n in range(5000):
    (output / "labels" / str(n)).touch()
for n in range(500):
    (output / f"huge{n}").touch()
    os.truncate(output / f"huge{n}", 2**36)
"""
    )
    run_id = worker.enqueue()

    worker.attempt()

    assert worker.row(run_id)["status"] == "completed"
    artifacts = worker.artifacts(run_id)
    assert len(artifacts) == 100 + 2
    assert {"best.pt", "last.pt", "results.csv", "run.log", "manifest.json"} <= artifacts.keys()
    messages = worker.warnings(run_id, "artifact_left_out")
    assert len(messages) == 3
    assert any(message.startswith("500 files are not published") for message in messages)
    worker.assert_nothing_leaked()


def test_files_with_control_characters_in_their_names_are_left_out(worker):
    worker.behave(at_end="for name in ('a\\nb', 'a\\x1b[2Jb', 'a\\u202eb', '[bold]b'): (output / name).touch()")
    run_id = worker.enqueue()

    worker.attempt()

    assert {"best.pt", "[bold]b"} <= worker.artifacts(run_id).keys()
    [message] = worker.warnings(run_id, "artifact_left_out")
    assert "(a\\nb, a\\x1b[2Jb, a\\u202eb): its name contains control characters" in message


def test_total_size_of_artifacts_is_limited(worker, monkeypatch):
    monkeypatch.setattr(artifact_selection, "MOST_BYTES", 2**20)
    worker.behave(at_end="for n in range(30): (output / f'plot{n}.png').write_bytes(bytes(2**16))")
    run_id = worker.enqueue()

    worker.attempt()

    artifacts = worker.artifacts(run_id)
    assert {"best.pt", "last.pt", "results.csv"} <= artifacts.keys()
    assert sum(artifact["bytes"] for artifact in artifacts.values()) < 2**20 + 2**16
    [message] = worker.warnings(run_id, "artifact_left_out")
    assert "files are not published" in message


def test_files_of_the_service_cannot_be_replaced(worker):
    """The process tries to link each file that the service writes to a file of another tenant."""
    worker.behave(
        at_end=f"""
for folder in (run, run.parent):
    for name in ("run.log", "manifest.json", ".run.log.uploading", ".finished.json", ".finished.json.tmp", ".row", "resumed/x"):
        for attack in (lambda path: path.symlink_to({str(worker.secrets / "secret")!r}), lambda path: path.unlink(),
                       lambda path: path.write_text("forged"), lambda path: path.rename(output / "moved")):
            try:
                attack(folder / name)
            except OSError:
                continue
            print("CHANGED", folder / name, flush=True)
for attack in (lambda: output.rename(run / "other"), lambda: output.rmdir(), lambda: run.rename(run.with_name("other"))):
    try:
        attack()
    except OSError:
        continue
    print("CHANGED", attack, flush=True)
"""
    )
    run_id = worker.enqueue()

    worker.attempt()

    assert worker.row(run_id)["status"] == "completed"
    log = worker.artifacts(run_id)["run.log"]
    content = (worker.home / "storage" / BUCKET / log["path"]).read_text()
    assert "epoch: epoch=3" in content
    assert "CHANGED" not in content
    worker.assert_nothing_leaked()


def test_cancel_during_upload_of_huge_sparse_file_ends_the_run(worker):
    worker.replace(["results.csv"], "huge sparse file")
    worker.behave(at_end="os.truncate(output / 'results.csv', 2**34)")  # the largest size that is published
    run_id = worker.enqueue()
    working = threading.Thread(target=lambda: worker.work(stop=StopSignal()), daemon=True)
    working.start()
    wait_for(lambda: '"uploading"' in json.dumps(worker.row(run_id)["results"]))

    worker.queue.cancel(run_id)
    working.join(SECONDS)

    assert worker.row(run_id)["status"] == "canceled"


OF_SERVICE = [
    "run.log",
    "manifest.json",
    ".run.log.uploading",
    ".finished.json",
    ".finished.json.tmp",
    ".row",
    "resumed",
]


@pytest.mark.parametrize("name", ["output", "output/weights", *OF_SERVICE])
@pytest.mark.parametrize("what", long_except(["link to secret", "link to endless device", "pipe"], "link to secret"))
def test_process_without_sandbox_cannot_publish_or_change_other_files(tmp_path, monkeypatch, name, what):
    """SANDBOX=0: the process can replace every file of the run folder, and the service follows none of the links."""
    monkeypatch.setenv("SUPERVISOR_KEY", "SUPERVISOR_KEY")
    worker = AttackedWorker(tmp_path, sandbox="0")
    monkeypatch.chdir(worker.secrets)
    code = REPLACEMENTS[what].format(secrets=str(worker.secrets))
    worker.behave(at_end=REPLACE.replace("output / name", "run / name").format(names=[name], replacement=code))
    run_id = worker.enqueue()
    try:
        worker.attempt()
        assert worker.row(run_id)["status"] in ("completed", "queued")
        worker.behave()
        if worker.row(run_id)["status"] == "queued":
            worker.attempt_again(run_id)
        assert worker.row(run_id)["status"] == "completed"
        worker.assert_nothing_leaked()
    finally:
        worker.trainer.close()
