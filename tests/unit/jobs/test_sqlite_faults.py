"""The SQLite queue: faults of the file, of the disk and of single rows."""

import os
import sqlite3
from contextlib import closing

import pytest

from tests.unit.jobs.sqlite_calls import claim, enqueue, python
from trainer.core.errors import Misconfigured, Refused, Unavailable
from trainer.core.job import Failed, RunEvent, RunRequest, Verdict
from trainer.core.ports import Worker
from trainer.jobs import sqlite
from trainer.jobs.sqlite import SqliteQueue
from trainer.jobs.sqlite_file import SqliteFile
from trainer.jobs.sqlite_schema import SCHEMA_VERSION


def test_missing_folder_is_created(tmp_path):
    path = tmp_path / "new" / "deep" / "queue #1 ä?.db"
    enqueue(SqliteQueue(path))
    assert path.is_file()


def test_locked_file_raises_unavailable_with_file_name(path):
    queue = SqliteQueue(path, busy_seconds=0.05)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("begin immediate")
        with pytest.raises(Unavailable, match=r"queue\.db is not available: it is locked by another program"):
            enqueue(queue)
    enqueue(queue)


def test_full_disk_raises_unavailable_and_loses_no_run(path, monkeypatch):
    queue = SqliteQueue(path)
    run_id = enqueue(queue)
    connect = SqliteFile._connect

    def on_a_small_disk(self, mode):
        connection = connect(self, mode)
        connection.execute("pragma max_page_count = 20")
        return connection

    with monkeypatch.context() as patch:
        patch.setattr(SqliteFile, "_connect", on_a_small_disk)
        with pytest.raises(Unavailable, match=r"queue\.db is not available: its disk is full; free some space"):
            enqueue(queue, configuration={"text": "x" * 60_000})
    assert [row.id for row in queue.list(limit=5).runs] == [run_id]
    enqueue(queue, configuration={"text": "x" * 60_000})


def test_failed_write_raises_unavailable_with_reason(path):
    code = """
import resource, signal, sys
from pathlib import Path
from trainer.core.errors import Unavailable
from trainer.core.job import RunRequest
from trainer.jobs.sqlite import SqliteQueue
queue = SqliteQueue(Path(sys.argv[1]))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    queue.enqueue(RunRequest(data_yaml="x", configuration={"text": "x" * 60_000}))
except Unavailable as error:
    print(error)
"""
    said = python(code, path).communicate(timeout=30)[0]
    assert f"The queue file {path} is not available: its disk fails to read or write" in said
    assert SqliteQueue(path).list(limit=5).runs == ()


def test_deleted_file_is_reported_and_not_recreated(path):
    queue = SqliteQueue(path)
    path.unlink()
    with pytest.raises(Misconfigured, match=r"queue\.db cannot be used: it cannot be opened"):
        claim(queue)
    assert not path.exists()


def test_folder_instead_of_file_is_rejected(tmp_path):
    with pytest.raises(Misconfigured, match="cannot be used: it cannot be opened"):
        SqliteQueue(tmp_path)


def test_path_inside_a_file_is_rejected(path):
    path.write_text("x")
    with pytest.raises(Misconfigured, match=f"cannot be used: .* at {path}"):
        SqliteQueue(path / "queue.db")


@pytest.mark.parametrize("content", [b"not a database at all, just text\n" * 50, os.urandom(5000)])
def test_file_that_is_not_a_database_is_rejected_and_unchanged(path, content):
    path.write_bytes(content)
    with pytest.raises(Misconfigured, match="not an SQLite database; choose another file"):
        SqliteQueue(path)
    assert path.read_bytes() == content


def test_database_of_other_program_is_rejected_and_unchanged(path):
    with closing(sqlite3.connect(path)) as other:
        other.execute("create table training_runs (id)")
    with pytest.raises(Misconfigured, match="another program's database"):
        SqliteQueue(path)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("select count(*) from sqlite_master").fetchone() == (1,)


@pytest.mark.parametrize("version", [SCHEMA_VERSION - 1, SCHEMA_VERSION + 1])
def test_file_of_another_version_is_rejected_and_unchanged(path, version):
    SqliteQueue(path)
    with closing(sqlite3.connect(path)) as other:
        other.execute(f"pragma user_version = {version}")
    expected = f"has version {version}, and this trainer needs version {SCHEMA_VERSION}: use the trainer for version"
    with pytest.raises(Misconfigured, match=expected):
        SqliteQueue(path)
    with closing(sqlite3.connect(path)) as other:
        assert other.execute("pragma user_version").fetchone() == (version,)


def test_damaged_file_is_reported(path):
    queue = SqliteQueue(path)
    for _ in range(50):
        enqueue(queue, configuration={"text": "x" * 2000})
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    with pytest.raises(Misconfigured, match=r"queue\.db cannot be used: it is damaged; restore it from a backup"):
        claim(queue)


def test_invalid_json_reaches_worker_as_text(path):
    queue = SqliteQueue(path)
    run_id = enqueue(queue)
    for text in ("{", "NaN", "[" * 100_000, "", "9" * 5000):
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute(
                "update training_runs set configuration = ?, results = ?, checkpoint = ?, status = 'queued', claim_id = null, "
                "lease_expires_at = null",
                [text] * 3,
            )
        lease = claim(queue)
        assert (lease.job.id, lease.job.checkpoint) == (run_id, None)
        assert lease.job.request.configuration == text
        assert queue.beat(lease, {"progress": 1}, []) is Verdict.OK
        assert queue.get(run_id).results == {"progress": 1}


BY_HAND = [  # invalid values that SQLite stores
    "not_before = x'ff'", "not_before = cast(x'ff' as text)", "host_failures = cast(x'7bff' as text)",
    "configuration = cast(x'7bff7d' as text)", "configuration = x'7b7d'", "id = null", "id = x'61'", "id = cast(x'ff' as text)",
    "id = null, cancel_requested = 1", "id = x'61', status = 'running', lease_expires_at = '2000'",
    "id = '../x', status = 'canceling', lease_expires_at = '2000'", "worker_id = x'ff', status = 'running', lease_expires_at = '2000'",
]  # fmt: skip


@pytest.mark.parametrize("change", BY_HAND)
def test_damaged_row_does_not_block_other_rows(path, change):
    queue = SqliteQueue(path)
    enqueue(queue, priority=9)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute(f"update training_runs set {change}")
    good = enqueue(queue)
    claimed = []
    while lease := claim(queue):
        assert lease.job.id not in claimed
        claimed.append(lease.job.id)
        assert queue.finish(lease, Failed(message="odd"), []) is not None
    assert good in claimed
    assert len(queue.list(limit=10).runs) == 2


@pytest.mark.parametrize(
    ("sql", "index"),
    [
        (sqlite.NEXT, "training_runs_next"),
        (sqlite.EXPIRED, "training_runs_lease"),
        (sqlite.CANCELED_IN_QUEUE, "training_runs_cancel"),
    ],
)
def test_claim_uses_indexes_without_sorting(path, sql, index):
    SqliteQueue(path)
    with closing(sqlite3.connect(path)) as other:
        other.create_function("can_serve", 1, lambda _: True)
        other.create_function("can_begin", 2, lambda *_: True)
        plan = str(other.execute(f"explain query plan {sql}", ["2026"] * sql.count("?")).fetchall())
    assert index in plan
    assert "TEMP B-TREE" not in plan


def test_value_that_a_trigger_refuses_raises_refused(path):
    queue = SqliteQueue(path)
    run_id = queue.enqueue(RunRequest(data_yaml="a"))
    lease = queue.claim(Worker(id="w"), "11111111-1111-4111-8111-111111111111", 60)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(
            "create trigger app_rule before insert on training_run_events when new.kind = 'odd' "
            "begin select raise(abort, 'the app refuses this'); end"
        )

    with pytest.raises(Refused, match="the app refuses this"):
        queue.beat(lease, None, [RunEvent(seq=1, at="2026-01-01T00:00:00+00:00", kind="odd", data={})])

    assert queue.beat(lease, None, []) is Verdict.OK
    assert queue.events(run_id) == []
