"""The faults and wishes of a campaign. Each returns whether it found something to do.

A fault runs in a thread of its own while others are active. `site` is the host that it was drawn for, `dice` the
randomness that belongs to it.
"""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress

import psutil

from tests.faults import poison
from tests.faults.cloud import BUCKET
from tests.faults.hosts import gone
from tests.postgres_server import SqlError
from tests.storage_http import PORTAL
from trainer.core.job import Status

TRAINING = ("training", "validating")  # the phases in which a process of the run's own is at work

# ── processes ──


def kill_training(campaign, site, dice) -> bool:
    trainings, runs = site.host.trainings(), campaign.runs_of(site)
    if not trainings or not runs:
        return False
    if _phase(runs[0]) in TRAINING:
        campaign.findings.killed(runs[0])
    with suppress(psutil.NoSuchProcess):  # it has just ended by itself
        trainings[0].kill()
        return True
    return False


def kill_spare(campaign, site, dice) -> bool:
    """The process that waits for the next run."""
    spares = site.host.trainings()[1:]
    for spare in spares:
        with suppress(psutil.NoSuchProcess):
            spare.kill()
    return bool(spares)


def stop_training(campaign, site, dice) -> bool:
    trainings, runs = site.host.trainings(), campaign.runs_of(site)
    if not trainings or not runs or _phase(runs[0]) not in TRAINING:
        return False
    with suppress(psutil.NoSuchProcess):  # it has just ended by itself
        trainings[0].suspend()
        return True
    return False


def kill_service(campaign, site, dice) -> bool:
    if not site.lock.acquire(blocking=False):
        return False
    with released(site.lock):
        for row in campaign.runs_of(site):
            campaign.findings.killed(row, service=True)
        children = site.host.kill()
        if not gone(children):
            campaign.findings.violations.append("I10: a training outlived its killed service")
        time.sleep(dice.choice([0, 1, 2 * campaign.recipe.lease]))
        site.host.start()
    return True


def kill_guardian(campaign, site, dice) -> bool:
    """SIGKILL to one of the two processes between the service and the training, alone."""
    guardians = site.host.guardians()
    if not guardians:
        return False
    with suppress(psutil.NoSuchProcess):  # it has just ended by itself
        killed = dice.choice(guardians[:2])
        below = killed.children(recursive=True)
        killed.kill()
        if not gone(below):
            campaign.findings.violations.append(f"I10: {below} outlived their guardian")
        return True
    return False


def suspend_service(campaign, site, dice) -> bool:
    if not site.lock.acquire(blocking=False):
        return False
    with released(site.lock):
        site.host.pause()
        time.sleep(dice.uniform(0.3, 2.5) * campaign.recipe.lease)
        site.host.go_on()
    return True


def deploy(campaign, site, dice) -> bool:
    if not site.lock.acquire(blocking=False):
        return False
    with released(site.lock):
        site.host.process.send_signal(signal.SIGTERM)
        if dice.random() < 0.2:
            time.sleep(0.3)
            site.host.process.send_signal(signal.SIGTERM)
        try:
            site.host.process.wait(campaign.recipe.exit_seconds)
        except subprocess.TimeoutExpired:
            campaign.findings.violations.append("F13: a service did not end within its drain time")
            site.host.kill()
        site.host.start()
    return True


def power_cut(campaign, site, dice) -> bool:
    """All processes of the host are gone at once, and what was not synced is lost."""
    if not site.disk or not site.disk_lock.acquire(blocking=False):
        return False
    with released(site.disk_lock), site.lock:
        for row in campaign.runs_of(site):
            campaign.findings.killed(row, service=True)
        site.host.kill_all()
        site.disk.strike()
        time.sleep(dice.choice([0, 1, 2 * campaign.recipe.lease]))
        site.disk.mend()
        site.host.start()
    return True


def full_disk(campaign, site, dice) -> bool:
    """The host has no space left for a while; one host at a time."""
    if not site.disk or not campaign.sick.acquire(blocking=False):
        return False
    with released(campaign.sick), site.disk_lock:
        site.disk.fill()
        time.sleep(dice.uniform(1, 4) * campaign.recipe.lease)
        site.disk.free()
    return True


def read_only_disk(campaign, site, dice) -> bool:
    """The host's disk turns read-only, until somebody stops the service, repairs the disk and starts it again."""
    if not site.disk or not campaign.sick.acquire(blocking=False):
        return False
    with released(campaign.sick), site.disk_lock:
        site.disk.turn_read_only()
        time.sleep(dice.uniform(1, 4) * campaign.recipe.lease)
        with site.lock:
            for row in campaign.runs_of(site):
                campaign.findings.killed(row, service=True)
            site.host.kill_all()
            site.disk.repair()
            site.host.start()
    return True


# ── servers and the lines to them ──


def outage(campaign, site, dice) -> bool:
    if not campaign.servers.acquire(blocking=False):
        return False
    with released(campaign.servers):
        server = dice.choice([campaign.cloud.stack.postgrest, campaign.cloud.stack.postgres])
        server.stop()
        time.sleep(dice.choice([0.2, 1.0, 1.5 * campaign.recipe.lease]))
        server.start()
    return True


def bad_gateway(campaign, site, dice) -> bool:
    what = dice.choice(["beat_", "claim_", "finish_", "/rpc/"])
    status, body = dice.choice(
        [(429, b"{}"), (500, b"{}"), (502, b"<html>"), (503, b"{}"), (200, PORTAL), (404, b"{}")]
    )
    campaign.cloud.refuse(what, status, body)
    time.sleep(dice.uniform(0.2, 2))
    campaign.cloud.gateway.faults = None
    return True


def lost_answers(campaign, site, dice) -> bool:
    campaign.cloud.gateway.lose_answers += dice.randint(1, 4)
    return True


def bad_storage(campaign, site, dice) -> bool:
    kind = dice.choice(["status", "lost", "cut_request", "delay"])
    campaign.cloud.storage.fault(kind, on=f"/object/{BUCKET}", times=dice.randint(1, 12), seconds=0.3)
    return True


def storage_denies(campaign, site, dice) -> bool:
    """For a while, Storage answers what is not true: that nothing is there, a login page, `null`."""
    # not to DELETE: who hears that an object is gone does not remove it
    asked = ["POST /object/sign/", "POST /object/list", f"POST /object/{BUCKET}", "GET /object/", "HEAD /object/"]
    on = dice.choice([*asked, "/upload/resumable", f"GET /bucket/{BUCKET}"])
    missing = {"body": b'{"statusCode":"404","error":"not_found","message":"Object not found"}'}
    answers = {
        "404": ("status", {"status": 404} | missing),
        "400 that means 404": ("status", {"status": 400} | missing),
        "a login page": ("portal", {}),
        "null": ("status", {"status": 200, "body": b"null", "headers": {"Content-Type": "application/json"}}),
    }
    kind, details = answers[dice.choice(list(answers))]
    fault = campaign.cloud.storage.fault(kind, on=on, times=1_000_000, **details)
    time.sleep(dice.uniform(0.3, 1.5) * campaign.recipe.lease)
    fault.times = 0
    return True


def bad_line(campaign, site, dice) -> bool:
    wire = site.wire
    dice.choice([wire.cut, wire.freeze, lambda: wire.slow(0.3), lambda: wire.mutter(50)])()
    time.sleep(dice.choice([0.3, 1.0, 1.5 * campaign.recipe.lease]))
    wire.mend()
    return True


# ── what the people at the web app do ──


def cancel(campaign, site, dice) -> bool:
    runs, trainings = campaign.runs_of(site), site.host.trainings()[:1]
    if not runs or not trainings:
        return False
    asked = time.monotonic()
    if campaign.ask(lambda: campaign.cloud.cancel(runs[0]["id"]) or True) is None:
        return False
    if _phase(runs[0]) in TRAINING and not site.lock.locked() and gone(trainings, 20):
        campaign.findings.cancels.append(time.monotonic() - asked)
    return True


def finish(campaign, site, dice) -> bool:
    runs = campaign.runs_of(site)
    edit = campaign.cloud.edit
    return bool(runs) and bool(campaign.ask(lambda: edit(runs[0]["id"], finish_requested=True) or True))


def delete_row(campaign, site, dice) -> bool:
    runs = campaign.runs_of(site)
    return bool(runs) and bool(campaign.ask(lambda: campaign.cloud.delete(runs[0]["id"]) or True))


def poison_row(campaign, site, dice) -> bool:
    """Beside the good rows: one that no worker can read or train."""
    name = dice.choice(list(poison.ROWS))
    model = campaign.recipe.row(dice).get("base_model", "yolo11n.yaml")
    try:
        run_id = poison.insert(campaign.cloud, name, model)
    except SqlError:  # the database is down
        return False
    campaign.findings.poison[run_id] = name
    return True


def edit_and_queue_again(campaign, site, dice) -> bool:
    """Ask an ended run for something else, as somebody does who follows the service's own advice; or a waiting one."""
    rows = [row for row in campaign.ask(campaign.cloud.rows) or [] if row["id"] in campaign.runs]
    waits = [row for row in rows if Status(row["status"]).is_terminal or (row["status"] == "queued" and row["attempt"])]
    if not waits:
        return False
    row = dice.choice(waits)
    columns = campaign.recipe.edited(row, dice) | {"status": "queued", "cancel_requested": False}
    campaign.findings.queued_again[row["id"]] += 1  # also when the answer is lost
    return bool(campaign.ask(lambda: campaign.cloud.edit(row["id"], if_status=row["status"], **columns) or True))


class released:  # noqa: N801 - reads as a word
    """Release the lock at the end of the block."""

    def __init__(self, lock):
        self._lock = lock

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._lock.release()


def _phase(row) -> str | None:
    return ((row["results"] or {}).get("progress") or {}).get("phase")
