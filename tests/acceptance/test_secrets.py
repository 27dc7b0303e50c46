"""No secret that the service receives appears in its logs, rows, events, files or training process."""

import json
import re
import time
import zipfile
from contextlib import contextmanager
from io import BytesIO

import pytest

from tests.acceptance.service import Service
from tests.integration.whole_supabase import WebApp, put_dataset, settings_for, storage_for
from tests.long import long_except
from tests.web_server import body, redirect, web_server
from trainer.demo import draw_dataset

AWS = "aws-wJalrXUtnFEMI-secret"
PASSWORD = "hunter2-of-the-proxy"
URL_PASSWORD = "pw-in-the-url"
URL_TOKEN = "token-in-the-query"
REDIRECT_TOKEN = "token-behind-a-redirect"
SIGNED = re.compile(r"eyJ[\w-]{6,}\.[\w-]+\.[\w-]*")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return draw_dataset(tmp_path_factory.mktemp("drawn"), images=8, size=32).parent


@pytest.fixture
def storage(supabase):
    with storage_for(supabase) as storage:
        yield storage


@pytest.fixture
def web(drawn):
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for path in drawn.rglob("*"):
            archive.write(path, path.relative_to(drawn))
    with web_server() as server:
        server.pages["/cats.zip"] = body(packed.getvalue())
        server.pages["/moved"] = redirect(f"/gone.zip?X-Amz-Signature={REDIRECT_TOKEN}")
        yield server


@pytest.fixture(params=long_except(["legacy JWT", "sb_secret_"], "sb_secret_"))
def key(request, supabase):
    return supabase.service_key if request.param == "legacy JWT" else supabase.secret_key


class Leaks:
    """Search the output of the service for secrets. `out` maps each place to its text."""

    def __init__(self, service, app, secrets):
        self.service, self.app, self.secrets = service, app, secrets
        self.out = {}

    def command(self, *arguments):
        done = self.service.run(*arguments, check=False)
        self.out[" ".join(arguments)] = done.stdout + done.stderr
        return done.stdout

    def collect(self, storage, runs):
        self.out["service.log"] = self.service.log.read_text()
        for path in self.service.home.rglob("*"):
            if path.is_file() and not path.is_symlink() and path.name not in {"behavior.json", "service.log"}:
                self.out[str(path)] = path.read_bytes().decode("latin-1")
        for run in runs:
            row = self.app.row(run)
            row.pop("data_yaml")  # the user wrote this value, not the service
            self.out[f"row {run}"] = json.dumps(row)
            self.out[f"events {run}"] = json.dumps(self.app.events(run))
        for bucket, objects in storage.objects.items():
            for name in objects:
                self.out[f"{bucket}/{name}"] = storage.get(bucket, name).decode("latin-1")

    def found(self):
        """Return each place with each secret that its text contains."""
        return sorted(
            {(place, secret) for place, text in self.out.items() for secret in self.secrets if secret in text}
        )

    def links(self):
        """Return the places, except rows, that contain signed URLs of the user's objects."""
        return [place for place, text in self.out.items() if SIGNED.search(text) and not place.startswith("row ")]


@contextmanager
def service_on(home, supabase, key, **settings):
    service = Service(
        home, {"lines": 2}, FAKE_TRAINING="prints_its_environment.py", **settings_for(supabase, key), **settings
    )
    service.environment |= {
        "AWS_SECRET_ACCESS_KEY": AWS, "HTTP_PROXY_PASSWORD": PASSWORD, "WANDB_API_KEY": AWS, "LOG_LEVEL": "DEBUG",
    }  # fmt: skip
    service.start()
    try:
        yield service
    finally:
        service.stop()


def wait(app, run_id, *statuses, seconds=240):
    deadline = time.monotonic() + seconds
    while (row := app.row(run_id))["status"] not in statuses:
        assert time.monotonic() < deadline, row
        time.sleep(0.1)
    return row


def echo(key):
    """Answer like a careless proxy, which returns the request with its credentials."""
    return f'{{"message": "cannot pass on: apikey {key}, Authorization: Bearer {key}", "code": "X"}}'.encode()


@pytest.mark.long
@pytest.mark.timeout(900)  # each refusal of a bucket is retried for up to a minute
def test_no_secret_leaves_the_service(supabase, storage, web, drawn, key, tmp_path):
    with (
        WebApp(supabase) as app,
        service_on(tmp_path / "home", supabase, key, ALLOWED_DATASET_HOSTS=web.host) as service,
    ):
        leaks = Leaks(service, app, [key, supabase.service_key, AWS, PASSWORD, URL_PASSWORD, URL_TOKEN, REDIRECT_TOKEN])
        secret_url = f"http://user:{URL_PASSWORD}@{web.host}/%s?token={URL_TOKEN}"
        data = put_dataset(storage, drawn)
        # a run whose upload and heartbeats fail at a proxy that echoes the key
        storage.fault("status", on="POST /object/training-artifacts", times=2, status=503, body=echo(key))
        refusals = iter([(503, {"Content-Type": "application/json"}, echo(key))] * 3)
        supabase.gateway.faults = lambda _, path: next(refusals, None) if "beat_training_run" in path else None
        runs = [app.insert(data, epochs=2)]
        assert wait(app, runs[0], "completed", "failed")["status"] == "completed"
        # datasets by URL: one works, several fail
        runs.append(app.insert(f"http://{web.host}/cats.zip?token={URL_TOKEN}", epochs=1))
        assert wait(app, runs[1], "completed", "failed")["status"] == "completed", app.row(runs[1])["error_message"]
        for path in ("gone.zip", "moved", "cats.zip"):
            runs.append(app.insert(secret_url % path, epochs=1))
            wait(app, runs[-1], "completed", "failed")
        # a dataset in a bucket whose error messages contain the key
        storage.fault("status", on="/object/", times=30, status=400, body=echo(key))
        runs.append(app.insert("storage:datasets/elsewhere/data.yaml", epochs=1))
        wait(app, runs[-1], "failed", "queued", "completed")
        storage.faults.clear()
        # a training that prints its whole environment and crashes
        service.behave(at_epoch=1, crash={"error": "RuntimeError", "message": "boom"}, print=f"url {secret_url}")
        runs.append(app.insert(data, epochs=1))
        wait(app, runs[-1], "failed")
        for command in (["doctor"], ["doctor", "--json"], ["status"], ["logs", runs[0]], ["logs", runs[-1], "--json"]):
            leaks.command(*command)
        printed = leaks.out[f"logs {runs[0]}"]
        leaks.collect(storage, runs)

    assert "environment HOME=" in printed, "the training process must print its environment"
    leaked = {
        (place, secret) for place, secret in leaks.found() if not _printed_by_the_training_itself(place, runs[-1])
    }
    assert leaked == set()
    assert leaks.links() == []


def _printed_by_the_training_itself(place, run_id):
    """Return whether the place is the log of the run, to which the training prints a URL with secrets."""
    return run_id in place and ("run.log" in place or place.startswith("logs "))


def test_wrong_key_appears_in_no_output(supabase, storage, key, tmp_path):
    wrong = key[:-6] + "WRONG1"
    with WebApp(supabase) as app, service_on(tmp_path / "home", supabase, wrong) as service:
        leaks = Leaks(service, app, [wrong, AWS, PASSWORD])
        deadline = time.monotonic() + 20
        while '"level": "error"' not in service.log.read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        for command in (["doctor"], ["enqueue", "--data", "x"]):
            leaks.command(*command)
        leaks.collect(storage, [])

    assert "no runs can be claimed" in leaks.out["service.log"]
    assert leaks.found() == []


def test_printed_settings_contain_no_secret(monkeypatch):
    from trainer.settings import read_settings

    monkeypatch.setenv("SUPABASE_URL", "https://abc.supabase.co")
    monkeypatch.setenv("SUPABASE_SERVICE_ROLE_KEY", "sb_secret_of_the_test")
    settings = read_settings()

    assert "sb_secret" not in f"{settings!r} {settings} {settings.model_dump_json()} {settings.model_dump()}"


def test_error_about_a_setting_does_not_contain_the_key(tmp_path):
    service = Service(tmp_path / "home", SUPABASE_SERVICE_ROLE_KEY="sb_secret_" + "x" * 20, SLOTS="many")
    service.environment["SUPABASE_URL"] = ""

    done = service.run(check=False)

    assert done.returncode == 2
    assert "sb_secret" not in done.stdout + done.stderr


def test_repr_of_clients_does_not_contain_the_key(tmp_path):
    from trainer.remote.storage_api import StorageApi
    from trainer.remote.supabase import Project
    from trainer.storage.supabase import SupabaseObjectStore

    key = "sb_secret_of_the_test"
    with Project("https://abc.supabase.co", key) as project:
        api = StorageApi("https://abc.supabase.co", key)
        shown = f"{project!r} {api!r} {SupabaseObjectStore(api, notes=tmp_path, stop=None)!r}"
        api.close()

    assert key not in shown
