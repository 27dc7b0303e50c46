"""The keys that are sent to the gateway and to the API."""

import httpx
import pytest
import respx

from trainer.remote.supabase import Project

URL = "https://project.supabase.co"
ANON = "sb_publishable_abc"
RESTRICTED = "eyJhbGciOiJIUzI1NiJ9.eyJyb2xlIjoidHJhaW5lcl93b3JrZXIifQ.c2lnbmF0dXJl"


@pytest.fixture
def seen():
    with respx.mock(base_url=URL) as server:
        route = server.post("/rest/v1/rpc/trainer_schema_version").mock(return_value=httpx.Response(200, json=1))
        yield lambda: route.calls.last.request.headers


def test_single_key_is_sent_as_apikey_and_bearer_token(seen):
    with Project(URL, "sb_secret_abc") as project:
        project.call("trainer_schema_version")

    assert seen()["apikey"] == "sb_secret_abc"
    assert seen()["authorization"] == "Bearer sb_secret_abc"


def test_project_key_is_sent_to_gateway_for_restricted_role(seen):
    with Project(URL, RESTRICTED, apikey=ANON) as project:
        project.call("trainer_schema_version")
        assert project.role == "trainer_worker"

    assert seen()["apikey"] == ANON
    assert seen()["authorization"] == f"Bearer {RESTRICTED}"
