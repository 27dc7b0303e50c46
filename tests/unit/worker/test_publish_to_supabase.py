"""Publishing of finished models to Supabase Storage while the Storage server fails."""

import hashlib

import pytest

from tests.storage_server import StorageServer
from tests.unit.worker.harness import BUCKET
from trainer.core.retry import RetryPolicy
from trainer.remote.storage_api import StorageApi
from trainer.storage.supabase import SupabaseObjectStore

# ── the Supabase store with a fake server ──


@pytest.fixture
def server():
    with StorageServer({BUCKET: False}) as server:
        yield server


@pytest.fixture
def supabase(worker, server):
    api = StorageApi(server.url, "service-key")
    policy = RetryPolicy(tries=2, first_wait=0.01)
    yield SupabaseObjectStore(api, notes=worker.home / "uploads", stop=worker.shutdown, policy=policy)
    api.close()


NO_KEY = b'{"statusCode":"404","error":"NoSuchKey","message":"Object not found"}'

NO_BUCKET = b'{"statusCode":"404","error":"NoSuchBucket","message":"Bucket not found"}'

BAD_KEY = b'{"statusCode":"400","error":"InvalidKey","message":"Invalid key: best.pt"}'

TROUBLES = {
    "one 404 for a signed URL": {"on": "POST /object/sign", "status": 404, "body": NO_KEY, "times": 1},
    "twelve 404s for signed URLs": {"on": "POST /object/sign", "status": 400, "body": NO_KEY, "times": 12},
    "the bucket does not exist": {"on": "/", "status": 400, "body": NO_BUCKET, "times": 20},
    "an object key is rejected": {"on": "POST /object/training-artifacts", "status": 400, "body": BAD_KEY, "times": 7},
    "a login page for every route": {"on": "/", "status": 200, "body": b"<html>Log in</html>", "times": 20},
    "null for every route": {"on": "/", "status": 200, "body": b"null", "times": 20},
    "null for the bucket": {"on": "GET /bucket", "status": 200, "body": b"null", "times": 8},
    "an invalid listing": {"on": "POST /object/list", "status": 200, "body": b"[null]", "times": 4},
    "a web page with 404": {"on": "/", "status": 404, "times": 20},
    "the API key is rejected": {"on": "/", "status": 403, "body": b'{"message":"Invalid JWT"}', "times": 20},
    "an unknown status": {"on": "/", "status": 418, "times": 20},
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_model_is_published_when_storage_recovers(worker, server, supabase, trouble):
    server.fault("status", **TROUBLES[trouble])
    run_id = worker.enqueue()

    worker.work(store=supabase)

    row = worker.row(run_id)
    assert (row["status"], row["attempt"], row["failures"]) == ("completed", 1, 0), row["error_message"]
    assert f"/object/sign/{BUCKET}/training_runs/{run_id}/1/best.pt?token=" in row["trained_model_url"]
    for artifact in row["results"]["artifacts"]:
        assert hashlib.sha256(server.get(BUCKET, artifact["path"])).hexdigest() == artifact["sha256"]


def test_bucket_recreated_during_upload_gets_complete_model(worker, server, supabase):
    run_id = worker.enqueue()
    upload = supabase.upload

    def upload_and_lose(path, ref, stop, **more):
        stored = upload(path, ref, stop, **more)
        if ref.key.endswith("/manifest.json") and not lost:
            lost.extend(server.objects[BUCKET])
            server.objects[BUCKET].clear()
        return stored

    lost = []
    supabase.upload = upload_and_lose
    worker.work(store=supabase)

    row = worker.row(run_id)
    assert lost
    assert row["status"] == "completed"
    for artifact in row["results"]["artifacts"]:
        assert hashlib.sha256(server.get(BUCKET, artifact["path"])).hexdigest() == artifact["sha256"]
