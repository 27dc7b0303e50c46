"""Every failure of supabase-py and httpx becomes a TrainerError, with advice and without the key."""

import inspect
import json

import httpx
import jwt
import postgrest.exceptions
import pytest
from postgrest.exceptions import APIError

from trainer.core.errors import Misconfigured, Refused, TrainerError, Unavailable
from trainer.remote import supabase as remote
from trainer.remote.supabase import CallLimits, Project, translated
from trainer.remote.supabase_access import checked_key, checked_url, role_of

KEY = jwt.encode({"role": "service_role"}, "a-key-that-is-long-enough-for-the-library", "HS256")


def exceptions_of(module) -> list[type[Exception]]:
    return [
        found for _, found in inspect.getmembers(module, inspect.isclass)
        if issubclass(found, Exception) and found.__module__.split(".")[0] == module.__name__.split(".")[0]
    ]  # fmt: skip


def made(kind: type[Exception]) -> Exception:
    """Return an instance of an exception class, with the arguments that its constructor needs."""
    if kind is APIError:
        return APIError({"message": "m", "code": "PGRST000"})
    if kind is httpx.HTTPStatusError:
        return kind("m", request=httpx.Request("GET", "http://a"), response=httpx.Response(500))
    return kind() if not inspect.signature(kind).parameters else kind("m")


LIBRARY = [*exceptions_of(httpx), *exceptions_of(postgrest.exceptions)]


def project(answer, **limits) -> Project:
    """Return a project with a fake transport."""
    found = Project("http://db.example", KEY, CallLimits(**limits))
    found._http._transport.close()
    found._http._transport = httpx.MockTransport(answer)
    return found


def failure(answer) -> TrainerError:
    with project(answer) as supabase, pytest.raises(TrainerError) as caught:
        supabase.call("claim_training_run")
    return caught.value


def refused(code, message="m", status=400, headers=None):
    body = {"code": code, "message": message, "details": None, "hint": None}
    return failure(lambda _: httpx.Response(status, json=body, headers=headers))


def test_list_of_library_exceptions_is_complete():
    names = {kind.__name__ for kind in LIBRARY}
    assert {"APIError", "ConnectError", "ReadTimeout", "InvalidURL", "TooManyRedirects", "StreamConsumed"} <= names
    assert len(names) > 25


@pytest.mark.parametrize("kind", LIBRARY, ids=lambda kind: kind.__name__)
def test_every_library_exception_becomes_trainer_error(kind):
    error = translated(made(kind), host="db.example")
    assert isinstance(error, Unavailable | Misconfigured)
    assert "db.example" in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize("kind", [k for k in LIBRARY if k is not APIError], ids=lambda kind: kind.__name__)
def test_every_transport_exception_becomes_trainer_error(kind):
    def fail(_):
        raise made(kind)

    assert isinstance(failure(fail), Unavailable | Misconfigured)


@pytest.mark.parametrize("code", ["PGRST202", "PGRST204", "PGRST205", "42P01", "42703", "42883"])
def test_error_of_missing_schema_advises_migration(code):
    error = refused(code, status=404)
    assert isinstance(error, Misconfigured)
    assert "apply the migrations in supabase/migrations/" in str(error)


@pytest.mark.parametrize(
    ("code", "status"),
    [("PGRST301", 401), ("PGRST303", 401), ("PGRST302", 401), ("42501", 403), ("42501", 401), (None, 401), (None, 403)],
)  # fmt: skip
def test_error_of_rejected_key_advises_to_replace_key(code, status):
    error = refused(code, status=status)
    assert isinstance(error, Misconfigured)
    assert "SUPABASE_SERVICE_ROLE_KEY" in str(error)
    assert "service_role" in str(error)


def test_missing_role_of_key_advises_to_replace_key():
    assert "SUPABASE_SERVICE_ROLE_KEY" in str(refused("22023", 'role "trainer_worker" does not exist'))


@pytest.mark.parametrize(
    ("code", "status"), [("22023", 400), ("22003", 400), ("23514", 400), ("PT403", 403), ("PT401", 401)]
)
def test_value_that_a_rule_refuses_is_not_reported_as_wrong_key(code, status):
    assert isinstance(refused(code, "cannot extract elements from a scalar", status=status), Refused)


@pytest.mark.parametrize(
    ("code", "status"),
    [("", 400), ("57014", 500), ("PGRST000", 503), ("PGRST001", 503), ("PGRST002", 503), ("PGRST003", 504),
     ("40001", 400), ("40P01", 400), ("53300", 503), ("08006", 503), ("57P03", 500), (None, 429), (None, 408),
     (None, 500), (None, 502), (None, 503), (None, 504), ("XX000", 500)],
)  # fmt: skip
def test_transient_errors_raise_unavailable(code, status):
    assert isinstance(refused(code, status=status), Unavailable)


@pytest.mark.parametrize("status", [404, 405, 418])
def test_error_of_other_server_advises_to_check_url(status):
    for answer in (httpx.Response(status, html="<h1>no</h1>"), httpx.Response(status, json={"message": "no route"})):
        error = failure(lambda _, answer=answer: answer)
        assert isinstance(error, Misconfigured)
        assert "SUPABASE_URL" in str(error)


@pytest.mark.parametrize(
    ("code", "status"),
    [("22P02", 400), ("22003", 400), ("22P05", 400), ("23503", 409), ("23505", 409), ("23514", 400), ("P0001", 400),
     ("54000", 500), ("PGRST102", 400), (None, 413)],
)  # fmt: skip
def test_refused_value_does_not_count_as_outage(code, status):
    error = refused(code, status=status)
    assert isinstance(error, Refused)
    assert (code or str(status)) in str(error)


@pytest.mark.parametrize("code", ["PGRST999", "22P02", "22P05", "23503", "23505", "P0001"])
def test_other_rejections_include_their_code(code):
    error = refused(code, "something new")
    assert isinstance(error, Misconfigured)
    assert f"{code} something new" in str(error)


def test_error_page_of_gateway_raises_unavailable():
    error = failure(lambda _: httpx.Response(502, html="<html>Bad Gateway</html>"))
    assert isinstance(error, Unavailable)
    assert "502" in str(error)


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("-3", 0.0), (None, None), ("Wed, 21 Oct 2026 07:28:00 GMT", None)],
)
def test_retry_after_is_passed_on(header, seconds):
    error = refused(None, status=429, headers={"Retry-After": header} if header else None)
    assert isinstance(error, Unavailable)
    assert error.retry_after == seconds


def test_login_page_with_status_200_raises_unavailable():
    login = httpx.Response(200, html="<html>Please log in</html>")
    with project(lambda _: login) as supabase, pytest.raises(Unavailable, match="SUPABASE_URL"):
        supabase.rows(supabase.table("training_runs").select("*"))


@pytest.mark.parametrize("body", [b"", b'{"cut', b"\xff\xfe"])
def test_error_with_broken_body_is_classified_by_status(body):
    assert isinstance(failure(lambda _: httpx.Response(503, content=body)), Unavailable)


def test_every_call_has_a_time_limit():
    seen = {}

    def answer(request):
        seen.update(request.extensions["timeout"])
        return httpx.Response(200, json=1)

    with project(answer, connect=1.0, read=2.0, total=1.5) as supabase:
        assert supabase.call("trainer_schema_version") == 1
    assert seen == {"connect": 1.0, "read": 2.0, "write": 2.0, "pool": 1.5}


def test_key_is_not_in_errors_or_repr():
    def echo(request):
        return httpx.Response(400, json={"code": "PGRST100", "message": f"bad: {request.headers['apikey']}"})

    error = failure(echo)
    assert KEY not in str(error)
    assert error.__cause__ is None
    with project(echo) as supabase:
        assert KEY not in repr(supabase)


@pytest.mark.parametrize("key", ["", "  ", "a key", "sb_secret_é", "key\nwith newline", "a\x00b"])
def test_invalid_key_is_rejected_without_quoting_it(key):
    with pytest.raises(Misconfigured) as caught:
        checked_key(key)
    assert "invalid characters" in str(caught.value)
    assert not key.strip() or key.strip() not in str(caught.value)


def test_key_can_end_with_line_break():
    assert checked_key(f" {KEY}\n") == KEY


@pytest.mark.parametrize(
    "url", ["", "abc", "ftp://a.b", "https://", "abcd.supabase.co", "http://a:99999", "http://a b", "http://[::"]
)
def test_invalid_url_is_rejected(url):
    with pytest.raises(Misconfigured, match="SUPABASE_URL must be"):
        checked_url(url)


@pytest.mark.parametrize("url", ["http://a.b", "http://a.b/", " http://a.b/ ", "http://a.b/rest/v1/"])
def test_usual_forms_of_url_are_accepted(url):
    assert checked_url(url) == "http://a.b"


def test_password_in_url_is_not_part_of_host():
    with Project("http://user:secret@db.example:8000", KEY) as supabase:
        assert supabase.host == "db.example:8000"


@pytest.mark.parametrize(
    ("key", "role"),
    [(KEY, "service_role"), ("sb_secret_x", "service_role"), ("sb_publishable_x", "anon"), ("nonsense", None), ("a.b.c", None),
     ("a.W10.c", None), ("a.eyJyb2xlIjogM30.c", None)],
)  # fmt: skip
def test_role_is_read_from_key(key, role):
    assert role_of(key) == role


def test_import_of_adapter_does_not_import_supabase_library():
    import subprocess
    import sys

    code = "import sys, trainer.remote.supabase, trainer.jobs.supabase; print([m for m in ('supabase', 'postgrest') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
    assert remote.MIGRATE
