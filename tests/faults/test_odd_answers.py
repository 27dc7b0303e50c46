"""F7, F20: what a run fetches or keeps meanwhile, while the store talks nonsense. Every setting is the default."""

import pytest

from tests.faults.cloud import wait_for
from tests.faults.conftest import QUICK, SLOW
from tests.faults.test_finished import NO_KEY
from tests.faults.test_killed import stored_dataset
from tests.long import long_except

ODD = {
    "404 once": {"status": 400, "body": NO_KEY, "times": 1},
    "a web page with 404": {"status": 404, "times": 2},
    "a login page": {"status": 200, "body": b"<html>Log in</html>", "times": 6},
    "null": {"status": 200, "body": b"null", "times": 6},
    "a list of null": {"status": 200, "body": b"[null]", "times": 6},
    "the key is refused": {"status": 403, "body": b'{"message":"Invalid JWT"}', "times": 2},
}


LISTED_OR_READ = [
    *(("GET /object/", odd) for odd in ODD if odd != "a list of null"),
    *(("POST /object/list", odd) for odd in ("404 once", "a list of null")),
    *(("HEAD /object/", odd) for odd in ("404 once", "a login page")),
]
QUICKEST = [("GET /object/", "404 once"), ("POST /object/list", "a list of null"), ("HEAD /object/", "a login page")]


@pytest.mark.parametrize(("route", "odd"), long_except(LISTED_OR_READ, *QUICKEST))
def test_a_dataset_is_fetched_once_the_store_is_itself_again(cloud, host, route, odd):
    """F7 F20 (I11): no attempt is lost, nothing is failed, and the training gets all of the dataset."""
    reference = stored_dataset(cloud)
    cloud.storage.fault("status", on=route, **ODD[odd])
    a = host("a", QUICK)

    row = cloud.wait(cloud.enqueue(reference, epochs=2), "completed", "failed", seconds=90)

    assert (row["status"], row["attempt"], row["failures"]) == ("completed", 1, 0), row["error_message"]
    assert row["results"]["dataset"]["images"] == {"train": 4, "val": 2}
    a.wait_idle()


@pytest.mark.parametrize("odd", long_except(ODD, "404 once", "a login page"))
def test_checkpoints_that_the_store_does_not_take_cost_the_run_nothing(cloud, host, odd):
    """F20 (I8): the next one is sent once the store is itself again; the training never notices."""
    cloud.storage.fault("status", on="/checkpoints/", **ODD[odd])
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=400)

    wait_for(lambda: (cloud.row(run_id)["checkpoint"] or {}).get("key"), seconds=60)

    cloud.edit(run_id, finish_requested=True)
    row = cloud.wait(run_id, "completed", "failed", seconds=60)
    assert (row["status"], row["attempt"], row["failures"]) == ("completed", 1, 0), row["error_message"]
    assert list(cloud.epochs(run_id)) == [1]
    a.wait_idle()


@pytest.mark.parametrize("odd", long_except(["404 once", "a login page", "null", "the key is refused"], "404 once"))
def test_a_checkpoint_in_the_bucket_is_not_given_up_for_an_odd_answer(cloud, host, odd):
    """F20 (I9): the first host is gone, and the only checkpoint is in the bucket."""
    a = host("a", SLOW)
    run_id = cloud.enqueue(epochs=8)
    wait_for(lambda: ((cloud.row(run_id)["checkpoint"] or {}).get("epoch") or 0) >= 3)
    a.kill()
    cloud.storage.fault("status", on="/checkpoints/", **ODD[odd])

    host("b", QUICK)

    row = cloud.wait(run_id, "completed", "failed", seconds=90)
    assert (row["status"], row["attempt"]) == ("completed", 2), row["error_message"]
    assert "resumed" in cloud.warnings(run_id)
    cloud.check_epochs(run_id, back=4)
