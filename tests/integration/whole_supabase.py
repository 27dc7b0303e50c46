"""Helpers for a whole run over Supabase: Storage, a dataset in a bucket, settings, and a web app."""

import mimetypes
import uuid
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.storage_server import StorageServer

BUCKETS = {"datasets": False, "training-artifacts": False}
PROJECT = "6a1f"
STEP = "77b0"


@contextmanager
def storage_for(stack):
    """Return an empty Storage server behind the URL of the stack."""
    with StorageServer(BUCKETS, key=stack.service_key) as storage:
        stack.route_storage(storage.url)
        yield storage


def put_dataset(storage: StorageServer, folder: Path, prefix: str = f"{PROJECT}/{STEP}") -> str:
    """Upload every file of `folder` into the datasets bucket, as the app does. Return the row's `data_yaml`."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            mime = mimetypes.guess_type(path.name)[0] or "text/plain"
            storage.put("datasets", f"{prefix}/{path.relative_to(folder)}", path.read_bytes(), mime)
    # the bucket of the app also contains other objects next to a dataset
    storage.put("datasets", f"{prefix}/thumbnails/train/small.png", b"a thumbnail", "image/png")
    return f"storage:datasets/{prefix}/data.yaml"


def settings_for(stack, key=None) -> dict[str, str]:
    return {"BACKEND": "supabase", "SUPABASE_URL": stack.url, "SUPABASE_SERVICE_ROLE_KEY": key or stack.service_key}


class WebApp:
    """A fake web app, which sends rows over REST with the columns and values of the real web app."""

    def __init__(self, stack) -> None:
        key = stack.service_key
        self._http = httpx.Client(
            base_url=f"{stack.url}/rest/v1",
            headers={"apikey": key, "Authorization": f"Bearer {key}", "Prefer": "return=representation"},
            timeout=60,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_) -> None:
        self._http.close()

    def insert(self, data_yaml: str, base_model: str = "yolo11n.yaml", **configuration) -> str:
        row = {
            "run_name": "from the app",
            "created_by": "unknown@local",
            "base_model": base_model,
            "data_yaml": data_yaml,
            "status": "queued",
            "configuration": {"runName": "from the app", "dataYaml": "stale.yaml", "compute": "cpu", "device": "cpu"}
            | configuration,
        }
        return self._changed("POST", {}, row)[0]["id"]

    def insert_from_dialog(self, data_yaml: str, base_model: str = "yolo11n.yaml", **edited) -> str:
        """Insert a row as the app's dialog does: all its settings, with the `dataYaml` from before the upload."""
        state = {
            "runName": "Inspect_v1",
            "dataYaml": "",
            "baseModel": base_model,
            "epochs": 60,
            "batchSize": 8,
            "imgSize": 320,
            "learningRate": None,
            "optimizer": "",
            "compute": "cpu",
            "device": "cpu",
            "augmentation": {"preset": "custom", "hsv_h": 0, "mosaic": 1, "mixup": 0, "fliplr": 0.5, "degrees": None},
            "optimizationStrategy": "manual",
            "bayesianConfig": {"objective": "maximize_mAP", "numTrials": None, "maxDuration": None, "searchSpace": {}},
        } | edited
        row = {
            "created_by": "unknown@local",
            "project_id": str(uuid.uuid4()),
            "step_id": str(uuid.uuid4()),
            "run_name": state["runName"],
            "base_model": base_model,
            "data_yaml": data_yaml,
            "status": "queued",
            "configuration": state,
        }
        return self._changed("POST", {}, row)[0]["id"]

    def cancel(self, run_id: str) -> None:
        self._changed("PATCH", {"id": f"eq.{run_id}"}, {"status": "canceling", "cancel_requested": True})

    def row(self, run_id: str):
        answer = self._http.get("/training_runs", params={"id": f"eq.{run_id}"})
        rows = answer.raise_for_status().json()
        return rows[0] if rows else None

    def events(self, run_id: str):
        answer = self._http.get("/training_run_events", params={"run_id": f"eq.{run_id}", "order": "attempt,seq"})
        return answer.raise_for_status().json()

    def worker(self, worker_id: str):
        answer = self._http.get("/trainer_workers", params={"worker_id": f"eq.{worker_id}"})
        return answer.raise_for_status().json()[0]

    def _changed(self, method, where, columns):
        answer = self._http.request(method, "/training_runs", params=where, json=columns)
        assert answer.is_success, answer.text
        return answer.json()
