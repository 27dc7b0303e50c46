"""F20, F23: uploads that are refused or cut, and hostile configurations."""

from tests.faults.cloud import BUCKET, wait_for
from tests.faults.conftest import QUICK, SLOW

MIB = 2**20
CHUNK = 6 * MIB


def test_upload_is_retried_until_size_limit_is_raised(cloud, host):
    """F20 (I6 I8): Storage answers 413 until the operator raises the limit. No training is repeated."""
    a = host("a", QUICK)
    cloud.storage.limit = 20
    run_id = cloud.enqueue(epochs=2)
    wait_for(lambda: "upload_waits" in cloud.warnings(run_id))
    message = next(e["data"]["message"] for e in cloud.events(run_id, "warning") if e["data"]["code"] == "upload_waits")
    assert "larger than" in message
    assert "limit" in message
    cloud.storage.limit = None

    row = cloud.wait(run_id, "completed")

    assert row["attempt"] == 1
    a.wait_idle()


def test_upload_is_retried_until_bucket_is_created(cloud, host):
    """F20 (I6 I8): the bucket does not exist. The run completes after the bucket has been created."""
    a = host("a", QUICK)
    bucket = cloud.storage.buckets.pop(BUCKET)
    try:
        run_id = cloud.enqueue(epochs=2)
        wait_for(lambda: "upload_waits" in cloud.warnings(run_id))
    finally:
        cloud.storage.buckets[BUCKET] = bucket

    assert cloud.wait(run_id, "completed")["attempt"] == 1
    a.wait_idle()


def test_cut_upload_resumes_where_it_stopped(cloud, host):
    """F20 (I8): an upload of 20 MiB is cut three times. At most one chunk is sent again."""
    size = 20 * MIB
    a = host("a", {"seconds_per_epoch": 0.5, "checkpoint_bytes": size}, CHECKPOINT_INTERVAL=3600)
    run_id = cloud.enqueue(epochs=50)
    cloud.wait_epoch(run_id, 1)
    cloud.storage.fault("cut_request", on="PATCH /upload/resumable", times=1, after=CHUNK - 60_000)
    cloud.storage.fault("cut_request", on="PATCH /upload/resumable", times=2, after=MIB)
    cloud.cancel(run_id)

    row = cloud.wait(run_id, "canceled")

    last = next(artifact for artifact in row["results"]["artifacts"] if artifact["name"] == "last.pt")
    assert last["bytes"] == size
    cloud.check_published(row)
    assert cloud.storage.received < size + CHUNK + MIB
    a.wait_idle()


def test_upload_is_idempotent_after_lost_answer(cloud, host):
    """F20 F8 (I8): the object was stored, and the answer was lost. The same object is sent again."""
    cloud.storage.fault("lost", on="/1/best.pt", times=3)
    host("a", QUICK)

    row = cloud.wait(cloud.enqueue(epochs=2), "completed")

    assert row["attempt"] == 1
    assert sum(key.endswith("/1/best.pt") for _, _, key in cloud.storage.writes) == 4


HOSTILE = {
    "a path with ..": ({}, {"data_yaml": "../../../../etc/passwd"}, "passwd"),
    "a path outside the roots": ({}, {"data_yaml": "/etc/data.yaml"}, "/etc/data.yaml"),
    "too many epochs": ({"epochs": 10**12}, {}, "epochs"),
    "an image size larger than any memory": ({"imgsz": 10**6}, {}, "imgsz"),
    "an unknown setting and a string instead of a number": ({"learning_rate_of_doom": 1, "lr0": "fast"}, {}, "lr0"),
    "code as the model": ({}, {"base_model": "__import__('os').system('id')"}, "base_model"),
    "weights from a URL": ({}, {"base_model": "https://example.com/evil.pt"}, "base_model"),
    "another output folder": ({"project": "/etc"}, {}, "project"),
    "a task that the model does not have": ({"task": "pose"}, {"base_model": "yolo11n-seg.yaml"}, "pose"),
    "a list": ({}, {"configuration": [1, 2]}, "configuration"),
    "a long text instead of a number": ({"epochs": "9" * 60_000}, {}, "epochs"),
}


def test_hostile_configuration_is_rejected_with_reason(cloud, host):
    """F23 (I6): the run fails at once with an error that names the setting. The service continues."""
    a = host("a", QUICK, SLOTS=4)
    runs = {}
    for name, (configuration, columns, _) in HOSTILE.items():
        runs[name] = cloud.insert(configuration=columns.pop("configuration", {"epochs": 1} | configuration), **columns)

    for name, run_id in runs.items():
        row = cloud.wait(run_id, "failed", "completed", seconds=60)
        assert row["status"] == "failed", name
        assert HOSTILE[name][2] in row["error_message"], (name, row["error_message"][:300])
        assert "Traceback" not in row["error_message"]
        assert len(row["error_message"]) < 5000
        assert row["attempt"] == 1
        assert cloud.epochs(run_id) == {}
    a.wait_idle()
    cloud.wait(cloud.enqueue(epochs=1), "completed")


def test_configuration_edited_during_run_does_not_change_attempt(cloud, host):
    """F23 (I8): the app edits the configuration of a running row, and this attempt keeps its plan."""
    host("a", SLOW)
    run_id = cloud.enqueue(epochs=5)
    cloud.wait_epoch(run_id, 1)
    cloud.edit(run_id, configuration={"epochs": 500})

    row = cloud.wait(run_id, "completed")

    assert row["results"]["plan"]["epochs"] == row["results"]["metrics"]["epoch"] == 5
