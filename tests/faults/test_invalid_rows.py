"""F23: rows that could stop a worker, together with a running training. The current schema refuses such rows."""

import json
import uuid

import pytest

from tests.faults.cloud import wait_for
from tests.faults.conftest import QUICK, SLOW

DEEP = '{"a":' * 1500 + "1" + "}" * 1500
# name → columns as SQL, and a part of the error message
INVALID = {
    "1,500 levels": ({"configuration": f"'{DEEP}'"}, "nested deeper than 32 levels"),
    "1,500 levels inside a text": (
        {"configuration": "to_jsonb(repeat('[', 1500) || repeat(']', 1500))"},
        "nested deeper than 32",
    ),
    "5,001 digits": ({"configuration": """'{"epochs": 1e5000}'"""}, "more than 400 digits"),
    "NaN": ({"configuration": """to_jsonb('{"epochs": NaN}'::text)"""}, "NaN is not a number"),
    "incomplete JSON": ({"configuration": """to_jsonb('{"epochs": '::text)"""}, "not JSON"),
    "a list": ({"configuration": "'[1]'"}, "must be a JSON object"),
    "a configuration of 5 MB": ({"configuration": "jsonb_build_object('a', repeat('x', 5000000))"}, "configuration"),
    "4 MB of commas": ({"configuration": "jsonb_build_object('device', repeat(',', 4000000))"}, "configuration"),
    "200,000 keys": (
        {"configuration": "(select jsonb_object_agg(n, n) from generate_series(1, 200000) n)"},
        "configuration",
    ),
    "a name of 10 MB": ({"run_name": "repeat('n', 10000000)"}, "run_name"),
    "a dataset of 10 MB": ({"data_yaml": "repeat('d', 10000000)"}, "data_yaml"),
    "a model of 10 MB": ({"base_model": "repeat('m', 10000000)"}, "base_model"),
    "the largest attempt number": ({"attempt": "2147483647"}, "attempt = 2147483647"),
}
EXTREME_COLUMNS = {
    "an invalid checkpoint": {"checkpoint": """'{"epoch": 1e300, "sha256": {}, "bytes": -1, "key": "../../x"}'"""},
    "a checkpoint of 1,500 levels": {"checkpoint": f"'{DEEP}'"},
    "results of 1,500 levels": {"results": f"'{DEEP}'"},
    "infinite dates": {"created_at": "'-infinity'", "started_at": "'infinity'"},
    "largest and smallest numbers": {
        "priority": "2147483647",
        "last_reported_epoch": "2147483647",
        "failures": "-2147483648",
        "max_attempts": "0",
    },
}


def insert_unchecked(cloud, **sql):
    """Insert a row without the triggers that would refuse it, and return its ID."""
    run_id = str(uuid.uuid4())
    columns = {
        "id": f"'{run_id}'", "run_name": "'invalid'", "base_model": "'yolo11n.yaml'", "data_yaml": f"'{cloud.data}'",
        "configuration": """'{"epochs": 1}'""", **sql,
    }  # fmt: skip
    cloud.sql(
        f"set session_replication_role = replica; insert into training_runs ({', '.join(columns)}) values ({', '.join(columns.values())})"
    )
    return run_id


def outcome(cloud, run_id):
    return json.loads(
        cloud.sql(
            f"select json_build_array(status, left(error_message, 2000)) from training_runs where id = '{run_id}'"
        )
    )


@pytest.fixture
def cloud_with_invalid_rows(cloud):
    yield cloud
    # the client that checks the invariants reads all columns, so replace the values that it cannot read
    cloud.sql("""
        set session_replication_role = replica;
        update training_runs set configuration = null, run_name = 'r', data_yaml = null, base_model = null, checkpoint = null,
          attempt = least(attempt, 1000), failures = greatest(failures, 0), max_attempts = 3, created_at = now(), started_at = now();
        update training_runs set results = results - 'a'; delete from faults.changes; delete from faults.stale_events;""")


@pytest.mark.long
def test_invalid_rows_fail_with_reason_beside_valid_run(cloud_with_invalid_rows, host):
    cloud = cloud_with_invalid_rows
    a = host("a", SLOW, SLOTS=2)
    good = cloud.enqueue(epochs=40)
    cloud.wait_epoch(good, 1)
    runs = {name: insert_unchecked(cloud, **columns) for name, (columns, _) in INVALID.items()}

    for name, run_id in runs.items():
        wait_for(lambda run_id=run_id: outcome(cloud, run_id)[0] not in ("queued", "running"), 60, a.tail)
        status, error = outcome(cloud, run_id)
        assert (name, status) == (name, "failed")
        assert INVALID[name][1] in error, (name, error)
        assert "Traceback" not in error
    row = cloud.wait(good, "completed", seconds=60)

    assert (row["attempt"], cloud.epochs(good)) == (1, {1: list(range(1, 41))})
    assert a.process.poll() is None
    assert "claim loop failed" not in a.log.read_text()
    assert "failed in the service itself" not in a.log.read_text()


def test_runs_with_extreme_values_in_queue_columns_complete(cloud_with_invalid_rows, host):
    cloud = cloud_with_invalid_rows
    a = host("a", QUICK)
    runs = {name: insert_unchecked(cloud, **columns) for name, columns in EXTREME_COLUMNS.items()}

    for name, run_id in runs.items():
        wait_for(lambda run_id=run_id: outcome(cloud, run_id)[0] not in ("queued", "running"), 60, a.tail)
        assert (name, *outcome(cloud, run_id)) == (name, "completed", None)
    assert "claim loop failed" not in a.log.read_text()


def test_invalid_row_does_not_stop_prefetch(cloud_with_invalid_rows, host):
    """A busy worker reads the next runs of the queue to fetch their datasets. The worker skips unreadable rows."""
    cloud = cloud_with_invalid_rows
    a = host("a", SLOW)
    good = cloud.enqueue(epochs=40)  # a prefetch begins 3 s after the start
    cloud.wait_epoch(good, 1)
    invalid = [
        insert_unchecked(cloud, priority="9", **INVALID[name][0]) for name in ("1,500 levels", "a name of 10 MB")
    ]
    later = cloud.enqueue(epochs=1)

    cloud.wait(good, "completed")
    assert cloud.wait(later, "completed")["attempt"] == 1
    assert {outcome(cloud, run_id)[0] for run_id in invalid} == {"failed"}
    assert "prefetch failed" not in a.log.read_text()
