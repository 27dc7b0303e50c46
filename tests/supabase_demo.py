"""`make supabase-demo`: start a local Supabase and run the demo with it."""

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from tests.integration.whole_supabase import WebApp, put_dataset, settings_for, storage_for
from tests.supabase_stack import running_stack
from trainer.demo import CONFIGURATION, MODEL, SERVICE, draw_dataset, running_service, service_environment

IMAGES = 250  # a listing needs three pages, because the default page size is 100


def main() -> int:
    with ExitStack() as opened:
        folder = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="supabase-demo-")))
        print("starting PostgreSQL, PostgREST and a fake Storage server …")
        stack = opened.enter_context(running_stack())
        storage = opened.enter_context(storage_for(stack))
        app = opened.enter_context(WebApp(stack))
        draw_dataset(folder / "drawn", images=IMAGES)
        data_yaml = put_dataset(storage, folder / "drawn")
        print(f"{stack.url}: {len(storage.objects['datasets'])} objects in the bucket `datasets`")
        environment = service_environment() | settings_for(stack) | {
            "TRAINER_HOME": str(folder / "home"),
            "POLL_INTERVAL": "1",
            "PROGRESS_INTERVAL": "1",
            "CANCEL_CHECK_INTERVAL": "1",
        }  # fmt: skip
        log = opened.enter_context((folder / "service.log").open("ab"))
        opened.enter_context(running_service(environment, log))
        run_id = app.insert(data_yaml, MODEL, **CONFIGURATION)
        code = subprocess.run([*SERVICE, "watch", run_id], env=environment, check=False).returncode
        row = app.row(run_id)
        print(
            json.dumps({name: row[name] for name in ("status", "attempt", "worker_id", "trained_model_url")}, indent=2)
        )
        print(f"events: {len(app.events(run_id))}; artifacts: {len(storage.objects['training-artifacts'])}")
    return code


if __name__ == "__main__":
    sys.exit(main())
