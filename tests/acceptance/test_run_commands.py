"""Commands that list, change and delete runs of the queue."""

import pytest

from tests.acceptance.service import Service
from trainer.core.ports import Worker
from trainer.jobs.sqlite import SqliteQueue

ID = "11111111-1111-4111-8111-111111111111"
OTHER_ID = "22222222-2222-4222-8222-222222222222"


@pytest.fixture
def service(tmp_path):
    return Service(tmp_path / "home", {})


@pytest.fixture
def enqueue(service):
    return lambda *options, check=True: service.run("enqueue", "--data", str(service.home), *options, check=check)


def claim(service):
    return SqliteQueue(service.home / "queue.db").claim(Worker(id="w"), OTHER_ID, 60)


def test_run_has_given_group_tags_and_priority(service, enqueue):
    run_id = enqueue("--group", "search", "--tag", "small", "--tag", "night", "--priority", "3").stdout.strip()

    row = service.row(run_id)
    assert (row["group"], row["tags"], row["priority"]) == ("search", ["small", "night"], 3)
    shown = service.run("status", run_id).stdout
    assert [text for text in ("search", "small, night", "3") if text not in shown] == []


def test_repeated_enqueue_with_id_inserts_one_run(service, enqueue):
    assert enqueue("--id", ID).stdout == enqueue("--id", ID).stdout == f"{ID}\n"
    assert len(service.json("status")["runs"]) == 1

    refused = enqueue("--id", ID, "epochs=7", check=False)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "there is another run with this id (configuration differs)" in refused.stderr

    refused = enqueue("--id", "7", check=False)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: id = '7': must be a UUID; omit it to get a new ID\n"


def test_list_contains_only_selected_runs(service, enqueue):
    both = enqueue("--group", "a", "--tag", "x", "--tag", "y").stdout.strip()
    claimed = claim(service)
    assert claimed.job.id == both
    one = enqueue("--group", "a", "--tag", "x").stdout.strip()
    none = enqueue().stdout.strip()

    def listed(*options):
        return [row["id"] for row in service.json("status", *options)["runs"]]

    assert listed() == [none, one, both]
    assert listed("--group", "a") == [one, both]
    assert listed("--tag", "x") == [one, both]
    assert listed("--tag", "x", "--tag", "y") == [both]
    assert listed("--status", "running") == listed("--worker", "w") == [both]
    assert listed("--status", "running", "--status", "queued") == [none, one, both]
    assert listed("--group", "a", "--status", "queued") == [one]
    assert service.run("status", "--group", "b").stdout == "There are no runs; `enqueue --data …` inserts one.\n"


def test_status_refuses_id_together_with_selection(service, enqueue):
    run_id = enqueue().stdout.strip()

    refused = service.run("status", run_id, "--group", "a", check=False)

    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: Give the ID of one run, or options that select runs, not both.\n"


def test_priority_changes_which_run_is_claimed_first(service, enqueue):
    first, second = (enqueue().stdout.strip() for _ in range(2))

    assert service.run("priority", first, "-5").stdout == f"{first} has priority -5\n"
    assert service.json("priority", second, "9")["priority"] == 9

    assert claim(service).job.id == second
    assert service.run("priority", ID, "1", check=False).returncode == 1


def test_deleted_run_is_gone(service, enqueue):
    first, second = (enqueue().stdout.strip() for _ in range(2))

    assert service.run("delete", first).stdout == f"{first} is deleted\n"
    assert service.json("delete", second) == {"id": second, "deleted": True}

    assert service.json("status")["runs"] == []
    refused = service.run("delete", first, check=False)
    assert (refused.returncode, refused.stderr) == (
        1,
        f"error: {first}: there is no such run; `status` lists the newest runs.\n",
    )


def test_running_run_is_not_deleted(service, enqueue):
    run_id = enqueue().stdout.strip()
    claim(service)

    refused = service.run("delete", run_id, check=False)

    assert (refused.returncode, refused.stdout) == (1, "")
    assert (
        refused.stderr
        == f"error: A worker holds the lease of run {run_id}: cancel the run, wait until it has ended, then delete it\n"
    )
    assert service.row(run_id)["status"] == "running"
