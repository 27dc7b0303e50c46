"""F7, F20: Storage gives wrong answers while a run downloads its dataset or uploads checkpoints."""

import pytest

from tests.faults.cloud import wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.test_finished import NO_KEY
from tests.long import long_except

WRONG = {
    "404 once": {"status": 400, "body": NO_KEY, "times": 1},
    "a web page with 404": {"status": 404, "times": 2},
    "a login page": {"status": 200, "body": b"<html>Log in</html>", "times": 6},
    "null": {"status": 200, "body": b"null", "times": 6},
    "a list of null": {"status": 200, "body": b"[null]", "times": 6},
    "the key is refused": {"status": 403, "body": b'{"message":"Invalid JWT"}', "times": 2},
}


LISTED_OR_READ = [
    *(("GET /object/", answer) for answer in WRONG if answer != "a list of null"),
    *(("POST /object/list", answer) for answer in ("404 once", "a list of null")),
    *(("HEAD /object/", answer) for answer in ("404 once", "a login page")),
]
QUICKEST = [("GET /object/", "404 once"), ("POST /object/list", "a list of null"), ("HEAD /object/", "a login page")]


@pytest.mark.parametrize(("route", "answer"), long_except(LISTED_OR_READ, *QUICKEST))
def test_dataset_is_fetched_after_wrong_storage_answers(cloud, host, route, answer):
    """F7 F20 (I11): no attempt is lost, and the training gets the complete dataset."""
    reference = cloud.store_dataset()
    cloud.storage.fault("status", on=route, **WRONG[answer])
    a = host("a", QUICK)

    row = cloud.wait(cloud.enqueue(reference, epochs=2), "completed", "failed", seconds=90)

    assert (row["status"], row["attempt"], row["failures"]) == ("completed", 1, 0), row["error_message"]
    assert row["results"]["dataset"]["images"] == {"train": 4, "val": 2}
    a.wait_idle()


@pytest.mark.parametrize("answer", long_except(WRONG, "404 once", "a login page"))
def test_refused_checkpoint_uploads_do_not_fail_run(cloud, host, answer):
    """F20 (I8): a later checkpoint is uploaded when Storage works again. The training is not affected."""
    cloud.storage.fault("status", on="/checkpoints/", **WRONG[answer])
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=400)

    wait_for(lambda: (cloud.row(run_id)["checkpoint"] or {}).get("key"), seconds=60)

    cloud.edit(run_id, finish_requested=True)
    row = cloud.wait(run_id, "completed", "failed", seconds=60)
    assert (row["status"], row["attempt"], row["failures"]) == ("completed", 1, 0), row["error_message"]
    assert list(cloud.epochs(run_id)) == [1]
    a.wait_idle()


@pytest.mark.parametrize("answer", long_except(["404 once", "a login page", "null", "the key is refused"], "404 once"))
def test_takeover_resumes_after_wrong_storage_answers(cloud, host, answer):
    """F20 (I9): the first host was killed, and the only checkpoint is in the bucket."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=8)
    wait_for(lambda: ((cloud.row(run_id)["checkpoint"] or {}).get("epoch") or 0) >= 3)
    a.kill()
    cloud.storage.fault("status", on="/checkpoints/", **WRONG[answer])

    host("b", QUICK)

    row = cloud.wait(run_id, "completed", "failed", seconds=90)
    assert (row["status"], row["attempt"]) == ("completed", 2), row["error_message"]
    assert "resumed" in cloud.warnings(run_id)
    cloud.check_epochs(run_id, back=4)
