"""Settings are read from the environment and checked together. Errors and output contain no secret."""

from pathlib import Path

import pytest

from trainer.core.errors import Misconfigured
from trainer.settings import read_settings

KEY = "sb_secret_do_not_show_me"


@pytest.fixture
def environment(monkeypatch):
    def set_all(**values):
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return set_all


def complaint():
    with pytest.raises(Misconfigured) as refused:
        read_settings()
    return str(refused.value)


def test_all_invalid_variables_are_reported_together(environment):
    environment(POLL_INTERVAL="-1", SLOTS="many", BACKEND="mysql", METRICS_PORT="70000")

    text = complaint()

    for name in ("POLL_INTERVAL", "SLOTS", "BACKEND", "METRICS_PORT"):
        assert name in text
    assert "'many'" in text
    assert len(text.splitlines()) == 4


def test_error_of_supabase_without_key_names_two_fixes(environment):
    environment(BACKEND="supabase", SUPABASE_URL="https://x.supabase.co")

    assert "SUPABASE_SERVICE_ROLE_KEY" in complaint()
    assert "BACKEND=local" in complaint()


def test_lease_shorter_than_three_heartbeats_is_rejected(environment):
    environment(LEASE_SECONDS="10", CANCEL_CHECK_INTERVAL="5")

    assert "LEASE_SECONDS" in complaint()


def test_backend_is_local_without_supabase_url(environment):
    assert not read_settings().uses_supabase

    environment(SUPABASE_URL="https://x.supabase.co", SUPABASE_SERVICE_ROLE_KEY=KEY)

    assert read_settings().uses_supabase


def test_supabase_key_is_not_in_errors_or_output(environment):
    environment(SUPABASE_URL="https://x.supabase.co", SUPABASE_SERVICE_ROLE_KEY=KEY, SLOTS="-1")
    assert KEY not in complaint()

    environment(SLOTS="1")

    settings = read_settings()
    assert KEY not in repr(settings)
    assert KEY not in str(settings.model_dump())


def test_folders_are_inside_trainer_home_by_default(environment, tmp_path):
    environment(TRAINER_HOME=str(tmp_path), RUNS_DIR="/elsewhere/runs")

    settings = read_settings()

    assert settings.datasets_folder == tmp_path / "datasets"
    assert settings.models_folder == tmp_path / "models"
    assert settings.runs_folder == Path("/elsewhere/runs")


def test_items_of_list_settings_are_separated_by_commas(environment):
    environment(EXTRA_DATASET_ROOTS="/a, /b,,", ALLOWED_DATASET_HOSTS="")

    assert read_settings().extra_dataset_roots == ("/a", "/b")
    assert read_settings().allowed_dataset_hosts == ()


def test_empty_variable_means_default(environment):
    environment(WORKER_ID="", POLL_INTERVAL="")

    assert read_settings().poll_interval == 10
    assert read_settings().worker_id
