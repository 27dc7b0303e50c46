"""The whole path on one machine: `make supabase-demo`.

A drawn dataset in the bucket `datasets`, a row as the web app inserts it, the real service, and the model in the bucket
`training-artifacts`, over real PostgreSQL and PostgREST and a stand-in for Storage.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).parent))

from storage_server import StorageServer
from supabase_stack import Stack, running_stack

from trainer.demo import CONFIGURATION, SERVICE, draw_dataset, running_service
from trainer.settings import process_environment

HOME = Path("demo") / "supabase"


@contextmanager
def storage_beside(stack: Stack) -> Iterator[StorageServer]:
    """Storage with the two private buckets, below the stack's URL."""
    buckets = {"datasets": False, "training-artifacts": False}
    with StorageServer(buckets, key=stack.service_key, anon_key=stack.anon_key, tus_host=stack.url) as storage:
        stack.route_storage(storage.url)
        yield storage


def upload_dataset(storage: StorageServer, folder: Path, prefix: str) -> str:
    """Put a dataset where the web app puts it; the reference that goes into a row's `data_yaml`."""
    for path in folder.rglob("*"):
        if path.is_file():
            storage.put("datasets", f"{prefix}/{path.relative_to(folder)}", path.read_bytes())
    return f"storage:datasets/{prefix}/data.yaml"


def insert_run(stack: Stack, data_yaml: str, base_model: str, configuration: Mapping[str, Any]) -> str:
    """Insert a row the way the web app does; its id."""
    row = {
        "created_by": "unknown@local",
        "step_id": str(uuid.uuid4()),
        "run_name": "demo",
        "base_model": base_model,
        "data_yaml": data_yaml,
        "status": "queued",
        "configuration": {**configuration, "dataYaml": "stale/data.yaml", "optimizationStrategy": "manual"},
    }
    key = stack.service_key
    headers = {"apikey": key, "Authorization": f"Bearer {key}", "Prefer": "return=representation"}
    answer = httpx.post(f"{stack.url}/rest/v1/training_runs", json=row, headers=headers)
    run_id: str = answer.raise_for_status().json()[0]["id"]
    return run_id


def service_environment(stack: Stack, home: Path, **settings: str) -> dict[str, str]:
    """What an operator would put into the service's environment file."""
    return {
        **process_environment(),
        "SUPABASE_URL": stack.url,
        "SUPABASE_SERVICE_ROLE_KEY": stack.service_key,
        "TRAINER_HOME": str(home.absolute()),
        "POLL_INTERVAL": "1",
        "PROGRESS_INTERVAL": "1",
        "HEARTBEAT_INTERVAL": "2",
        "CANCEL_CHECK_INTERVAL": "1",
        **settings,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=CONFIGURATION["epochs"])
    epochs = parser.parse_args().epochs
    HOME.mkdir(parents=True, exist_ok=True)
    with running_stack() as stack, storage_beside(stack) as storage:
        print(f"a Supabase project answers at {stack.url}")
        dataset = draw_dataset(HOME / "drawn").parent
        reference = upload_dataset(storage, dataset, f"{uuid.uuid4()}/{uuid.uuid4()}")
        run_id = insert_run(stack, reference, "yolo11n.yaml", {**CONFIGURATION, "epochs": epochs})
        print(f"inserted run {run_id} with data_yaml {reference}")
        environment = service_environment(stack, HOME, LOG_FORMAT="console")
        with (HOME / "service.log").open("ab") as log, running_service(environment, log):
            code = subprocess.run([*SERVICE, "watch", run_id], env=environment, check=False).returncode
        row = stack.rows(f"select * from training_runs where id = '{run_id}'")[0]
        print(f"the row: {row['status']}, mAP {(row['results'] or {}).get('mAP')}, {row['error_message'] or 'no error'}")
        print(*(f"  {key}" for key in sorted(storage.objects["training-artifacts"])), sep="\n")
        if row["trained_model_url"]:
            print(f"the model: {len(httpx.get(row['trained_model_url']).content):,} bytes from its URL")
        print(f"the service's own log: {HOME / 'service.log'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
