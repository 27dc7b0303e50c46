"""An invalid answer from a proxy, a login page or a broken connection becomes a TrainerError."""

import json
from urllib.parse import parse_qs

import httpx
import pytest

from trainer.core.errors import BadRequest, Misconfigured, Unavailable
from trainer.core.job import Failed, Interrupted, Job, Lease, RunRequest
from trainer.core.ports import Worker
from trainer.core.retry import RetryPolicy
from trainer.jobs.supabase import SupabaseQueue
from trainer.remote.supabase import LARGEST_ANSWER, Project, Unreadable
from trainer.request.parse import plan_of

RUN = "0b8e1a52-2b1e-4a57-9a3e-6a1c6bb8f0aa"
CLAIM = "5f1e1a52-2b1e-4a57-9a3e-6a1c6bb8f0bb"
ONCE = RetryPolicy(tries=1)
LEASE = Lease(
    job=Job(id=RUN, request=RunRequest(data_yaml="d")), claim_id=CLAIM, worker_id="w", seconds=60, trusted_until=0,
)  # fmt: skip
NO_ROW = {
    "null": b"null",
    "an object": b"{}",
    "text": b'"x"',
    "a number": b"7",
    "a login page": b"<html>Please log in</html>",
    "a truncated answer": b'[{"id": "0b8e1a52-2b1e-4a57-9a3e-6a1c6bb8f0aa", "configuration": "{',
    "nothing": b"",
    "invalid UTF-8": b"\xff\xfe\x00",
    "a list of null": b"[null]",
    "a list of numbers": b"[1]",
    "a list of lists": b"[[]]",
    "5,000 levels": b"[" * 5000 + b"]" * 5000,
    "300 levels": b"[" * 300 + b"]" * 300,
    "5,000 digits": b'[{"id": "x", "attempt": ' + b"9" * 5000 + b"}]",
    "5 MB": b'[{"id": "x", "run_name": "' + b"x" * 5_000_000 + b'"}]',
}
NO_ID = {
    "no id": b'[{"attempt": 1}]',
    "an id of null": b'[{"id": null}]',
    "an id that is a path": b'[{"id": "../../etc"}]',
    "an id of NaN": b'[{"id": NaN}]',
}
CALLS = {
    "claim": lambda queue: queue.claim(Worker(id="w"), CLAIM, 60),
    "peek": lambda queue: queue.peek(Worker(id="w")),
    "beat": lambda queue: queue.beat(LEASE, None, []),
    "finish": lambda queue: queue.finish(LEASE, Failed(message="m"), []),
    "release": lambda queue: queue.finish(LEASE, Interrupted(checkpoint=None), []),
}
READS = {
    "get": lambda queue: queue.get(RUN),
    "list": lambda queue: queue.list(limit=3),
    "events": lambda queue: queue.events(RUN),
    "cancel": lambda queue: queue.cancel(RUN),
}


def queue_whose_answer_is(answer, status=200):
    project = Project("http://db.example", "sb_secret_x")
    respond = answer if callable(answer) else lambda _: httpx.Response(status, stream=httpx.ByteStream(answer))
    project._http._transport.close()
    project._http._transport = httpx.MockTransport(respond)
    return SupabaseQueue(project, claim=ONCE, beat=ONCE, finish=ONCE, read=ONCE)


@pytest.mark.parametrize("answer", [*NO_ROW, *NO_ID])
@pytest.mark.parametrize("call", CALLS)
def test_invalid_answer_raises_unavailable(call, answer):
    with pytest.raises(Unavailable) as unavailable:
        CALLS[call](queue_whose_answer_is((NO_ROW | NO_ID)[answer]))
    assert len(str(unavailable.value)) < 300


@pytest.mark.parametrize("answer", [answer for answer in NO_ROW if answer != "5 MB"])
@pytest.mark.parametrize("call", READS)
def test_invalid_rows_raise_unavailable(call, answer):
    with pytest.raises(Unavailable):
        READS[call](queue_whose_answer_is(NO_ROW[answer]))


def server(row, seen):
    """Return a fake PostgREST with one claimed row.

    A query of all columns returns `row`. Other queries return only the id and the attempt.
    """

    def respond(request):
        select = parse_qs(request.url.query.decode())["select"][0]
        seen.append((json.loads(request.content)["claim_id"], select))
        if "configuration" in select:
            return httpx.Response(200, stream=httpx.ByteStream(row))
        return httpx.Response(200, json=[{"id": RUN, "attempt": 4}])

    return respond


@pytest.mark.parametrize("answer", NO_ROW)
def test_unreadable_claimed_row_becomes_run_with_reason(answer):
    seen = []
    lease = queue_whose_answer_is(server(NO_ROW[answer], seen)).claim(Worker(id="w"), CLAIM, 60)
    assert (lease.job.id, lease.job.attempt, lease.claim_id) == (RUN, 4, CLAIM)
    assert {claim_id for claim_id, _ in seen} == {CLAIM}
    assert seen[1][1] == "id,attempt"
    assert len(seen) == (2 if answer == "5 MB" else 3)
    with pytest.raises(
        BadRequest, match=r"cannot be read .*: shorten run_name, data_yaml, base_model and configuration"
    ):
        plan_of(lease.job.request)


def test_claim_returns_run_after_one_damaged_answer():
    seen, answers = (
        [],
        iter([NO_ROW["a truncated answer"], json.dumps([{"id": RUN, "attempt": 4, "run_name": "nuts"}]).encode()]),
    )

    def respond(request):
        return server(next(answers) if b"configuration" in request.url.query else b"", seen)(request)

    lease = queue_whose_answer_is(respond).claim(Worker(id="w"), CLAIM, 60)
    assert (lease.job.id, lease.job.request.name, lease.job.request.unreadable) == (RUN, "nuts", None)


def test_json_columns_are_requested_as_text():
    seen = []
    queue_whose_answer_is(server(b"[]", seen)).claim(Worker(id="w"), CLAIM, 60)
    assert "configuration::text" in seen[0][1].split(",")
    assert "checkpoint::text" in seen[0][1].split(",")
    assert "results" not in seen[0][1]


@pytest.mark.parametrize("size", [LARGEST_ANSWER, LARGEST_ANSWER + 1])
def test_largest_allowed_answer_is_read_and_larger_answer_is_rejected(size):
    body = b'"' + b"x" * (size - 2) + b'"'
    with queue_whose_answer_is(body)._project as project:
        if size == LARGEST_ANSWER:
            assert project.call("f") == "x" * (size - 2)
            return
        with pytest.raises(Unreadable, match="more than 4 MiB"):
            project.call("f")


@pytest.mark.parametrize("status", [400, 404, 409, 500])
@pytest.mark.parametrize("answer", [*NO_ROW, *NO_ID])
def test_invalid_answer_with_error_status_becomes_trainer_error(answer, status):
    for call in (*CALLS.values(), *READS.values()):
        with pytest.raises((Unavailable, Misconfigured)) as refused:
            call(queue_whose_answer_is((NO_ROW | NO_ID)[answer], status))
        assert len(str(refused.value)) < 600


@pytest.mark.parametrize(
    "body", [{"code": 5}, {"code": {"a": 1}, "message": [1]}, {"code": "23514", "message": "\u0000" * 10_000}]
)
def test_malformed_or_long_rejection_raises_short_error(body):
    with pytest.raises((Unavailable, Misconfigured)) as refused:
        CALLS["claim"](queue_whose_answer_is(json.dumps(body).encode(), 400))
    assert len(str(refused.value)) < 1000
