"""The whole service over PostgREST and a storage server: rows of one user name the data of another user."""

import json
import re
import time

import pytest

from tests.acceptance.service import running
from tests.integration.whole_supabase import put_dataset, settings_for, storage_for
from tests.supabase_fixtures import supabase, supabase_servers  # noqa: F401 (fixtures)
from trainer.demo import draw_dataset

ALICE, BOB = "11111111-aaaa-4aaa-8aaa-111111111111", "22222222-bbbb-4bbb-8bbb-222222222222"


def insert(stack, owner, data_yaml, base_model="yolo11n.yaml"):
    """Insert a row with the JWT of a user. Return its ID."""
    settings = json.dumps({"epochs": 1, "imgsz": 32, "batch": 8, "device": "cpu"})
    columns = f"'attack', '{owner}', '{data_yaml}', '{base_model}', '{settings}', 'queued'"
    names = "run_name, created_by, data_yaml, base_model, configuration, status"
    claims = {"role": "authenticated", "sub": owner}
    script = f"insert into training_runs ({names}) values ({columns}) returning id"
    return stack.sql(script, role="authenticated", claims=claims).strip()


def ended(stack, run_id, seconds=120):
    """Wait until the run has ended. Return its status and its message."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = stack.sql(f"select status, error_message from training_runs where id = '{run_id}'").split("|", 1)
        if found[0] in {"completed", "failed"}:
            return found
        time.sleep(0.2)
    raise AssertionError(f"after {seconds} s the run is {found}")


@pytest.mark.long
def test_rows_of_one_user_reach_no_data_of_another_user(supabase, tmp_path):  # noqa: F811 (a fixture)
    drawn = draw_dataset(tmp_path / "drawn", images=20, size=32).parent
    settings = {**settings_for(supabase), "DATASETS_BY_OWNER": "1"}
    with storage_for(supabase) as storage, running(tmp_path / "home", {}, **settings):
        for owner in (ALICE, BOB):
            put_dataset(storage, drawn, f"{owner}/set")
        storage.put("datasets", "kyc/passport.jpg", b"secret", "image/jpeg")
        trained = insert(supabase, ALICE, f"storage:{ALICE}/set/data.yaml")
        assert ended(supabase, trained) == ["completed", ""]

        own = f"storage:{BOB}/set/data.yaml"
        attacks = {
            insert(supabase, BOB, own, trained): "no run with this id among the runs of the owner",
            insert(supabase, BOB, own, f"storage:training_runs/{trained}/1/best.pt"): "no run with this id among",
            insert(supabase, BOB, own, "storage:private/best.pt"): "a row can start only from objects in",
            insert(supabase, BOB, f"storage:{ALICE}/set"): "is not in the folder of the owner",
            insert(supabase, BOB, "storage:kyc"): "is not in the folder of the owner",
            insert(
                supabase, BOB, f"storage:training-artifacts/training_runs/{trained}"
            ): "not in the folder of the owner",
            insert(supabase, BOB, f"{supabase.url}/storage/v1/object/public/kyc-documents/x"): "is not allowed",
            insert(supabase, BOB, ".cache"): "of the service itself",
            insert(supabase, BOB, "datasets"): "of the service itself",
            insert(supabase, BOB, f"{tmp_path}/home/runs/train_{trained}"): "of the service itself|outside the allowed",
        }
        for run_id, message in attacks.items():
            status, said = ended(supabase, run_id)
            assert status == "failed"
            assert re.search(message, said), said
        assert ended(supabase, insert(supabase, BOB, own)) == ["completed", ""]
