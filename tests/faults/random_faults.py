"""The faults and user actions of a campaign. Each function returns False if nothing happened.

Each fault runs in its own thread, together with other faults. `site` is the affected host, and `dice` is the source of
random numbers.
"""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import suppress

import psutil

from tests.faults import invalid_rows
from tests.faults.cloud import BUCKET
from tests.faults.hosts import gone
from tests.postgres_server import SqlError
from tests.storage_http import PORTAL
from trainer.core.job import Status

TRAINING = ("training", "validating")  # the phases in which the training process trains or validates epochs

# ── processes ──


def kill_training(campaign, site, dice) -> bool:
    trainings, runs = site.host.trainings(), campaign.runs_of(site)
    if not trainings or not runs:
        return False
    if _phase(runs[0]) in TRAINING:
        campaign.findings.killed(runs[0])
    with suppress(psutil.NoSuchProcess):  # the process has just ended
        trainings[0].kill()
        return True
    return False


def kill_spare(campaign, site, dice) -> bool:
    """Kill the prestarted training processes."""
    spares = site.host.trainings()[1:]
    for spare in spares:
        with suppress(psutil.NoSuchProcess):
            spare.kill()
    return bool(spares)


def suspend_training(campaign, site, dice) -> bool:
    trainings, runs = site.host.trainings(), campaign.runs_of(site)
    if not trainings or not runs or _phase(runs[0]) not in TRAINING:
        return False
    with suppress(psutil.NoSuchProcess):  # the process has just ended
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
            campaign.findings.violations.append("I10: processes of a killed service are still running")
        time.sleep(dice.choice([0, 1, 2 * campaign.recipe.lease]))
        site.host.start()
    return True


def kill_subreaper(campaign, site, dice) -> bool:
    """Kill one of the two processes between the service and the training."""
    subreapers = site.host.subreapers()
    if not subreapers:
        return False
    with suppress(psutil.NoSuchProcess):  # the process has just ended
        killed = dice.choice(subreapers[:2])
        descendants = killed.children(recursive=True)
        killed.kill()
        if not gone(descendants):
            campaign.findings.violations.append(
                f"I10: {descendants} are still running after the end of their subreaper"
            )
        return True
    return False


def suspend_service(campaign, site, dice) -> bool:
    if not site.lock.acquire(blocking=False):
        return False
    with released(site.lock):
        site.host.pause()
        time.sleep(dice.uniform(0.3, 2.5) * campaign.recipe.lease)
        site.host.resume()
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
            campaign.findings.violations.append(
                f"F13: a service did not exit within {campaign.recipe.exit_seconds} s after SIGTERM"
            )
            site.host.kill()
        site.host.start()
    return True


def power_cut(campaign, site, dice) -> bool:
    """Kill all processes of the host and drop all data that was not synced."""
    if not site.disk or not site.disk_lock.acquire(blocking=False):
        return False
    with released(site.disk_lock), site.lock:
        for row in campaign.runs_of(site):
            campaign.findings.killed(row, service=True)
        site.host.kill_all()
        site.disk.fail()
        time.sleep(dice.choice([0, 1, 2 * campaign.recipe.lease]))
        site.disk.restore()
        site.host.start()
    return True


def full_disk(campaign, site, dice) -> bool:
    """Fill the disk of one host for a while."""
    if not site.disk or not campaign.disk_failing.acquire(blocking=False):
        return False
    with released(campaign.disk_failing), site.disk_lock:
        site.disk.fill()
        time.sleep(dice.uniform(1, 4) * campaign.recipe.lease)
        site.disk.free()
    return True


def read_only_disk(campaign, site, dice) -> bool:
    """Make the disk read-only, then kill all processes of the host, repair the disk and start the service."""
    if not site.disk or not campaign.disk_failing.acquire(blocking=False):
        return False
    with released(campaign.disk_failing), site.disk_lock:
        site.disk.turn_read_only()
        time.sleep(dice.uniform(1, 4) * campaign.recipe.lease)
        with site.lock:
            for row in campaign.runs_of(site):
                campaign.findings.killed(row, service=True)
            site.host.kill_all()
            site.disk.repair()
            site.host.start()
    return True


# ── servers and connections ──


def outage(campaign, site, dice) -> bool:
    if not campaign.servers.acquire(blocking=False):
        return False
    with released(campaign.servers):
        server = dice.choice([campaign.cloud.stack.postgrest, campaign.cloud.stack.postgres])
        server.stop()
        time.sleep(dice.choice([0.2, 1.0, 1.5 * campaign.recipe.lease]))
        server.start()
    return True


def wrong_queue_answers(campaign, site, dice) -> bool:
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


def wrong_storage_answers(campaign, site, dice) -> bool:
    """For a while, Storage gives wrong answers: not found, a login page, `null`."""
    # no fault for DELETE: after "not found", a client does not delete the object
    asked = ["POST /object/sign/", "POST /object/list", f"POST /object/{BUCKET}", "GET /object/", "HEAD /object/"]
    on = dice.choice([*asked, "/upload/resumable", f"GET /bucket/{BUCKET}"])
    missing = {"body": b'{"statusCode":"404","error":"not_found","message":"Object not found"}'}
    answers = {
        "404": ("status", {"status": 404} | missing),
        "400 with a 404 in the body": ("status", {"status": 400} | missing),
        "a login page": ("portal", {}),
        "null": ("status", {"status": 200, "body": b"null", "headers": {"Content-Type": "application/json"}}),
    }
    kind, details = answers[dice.choice(list(answers))]
    fault = campaign.cloud.storage.fault(kind, on=on, times=1_000_000, **details)
    time.sleep(dice.uniform(0.3, 1.5) * campaign.recipe.lease)
    fault.times = 0
    return True


def bad_connection(campaign, site, dice) -> bool:
    wire = site.wire
    dice.choice([wire.cut, wire.freeze, lambda: wire.slow(0.3), lambda: wire.cut_answer(50)])()
    time.sleep(dice.choice([0.3, 1.0, 1.5 * campaign.recipe.lease]))
    wire.restore()
    return True


# ── actions of users ──


def cancel(campaign, site, dice) -> bool:
    runs, trainings = campaign.runs_of(site), site.host.trainings()[:1]
    if not runs or not trainings:
        return False
    requested = time.monotonic()
    if campaign.ask(lambda: campaign.cloud.cancel(runs[0]["id"]) or True) is None:
        return False
    if _phase(runs[0]) in TRAINING and not site.lock.locked() and gone(trainings, 20):
        campaign.findings.cancels.append(time.monotonic() - requested)
    return True


def finish(campaign, site, dice) -> bool:
    runs = campaign.runs_of(site)
    edit = campaign.cloud.edit
    return bool(runs) and bool(campaign.ask(lambda: edit(runs[0]["id"], finish_requested=True) or True))


def delete_row(campaign, site, dice) -> bool:
    runs = campaign.runs_of(site)
    return bool(runs) and bool(campaign.ask(lambda: campaign.cloud.delete(runs[0]["id"]) or True))


def invalid_row(campaign, site, dice) -> bool:
    """Insert an invalid row."""
    name = dice.choice(list(invalid_rows.ROWS))
    model = campaign.recipe.row(dice).get("base_model", "yolo11n.yaml")
    try:
        run_id = invalid_rows.insert(campaign.cloud, name, model)
    except SqlError:  # the database is down
        return False
    campaign.findings.invalid[run_id] = name
    return True


def edit_and_requeue(campaign, site, dice) -> bool:
    """Edit and requeue an ended run, as a user does after an error, or edit a queued run after its first attempt."""
    rows = [row for row in campaign.ask(campaign.cloud.rows) or [] if row["id"] in campaign.runs]
    editable = [
        row for row in rows if Status(row["status"]).is_terminal or (row["status"] == "queued" and row["attempt"])
    ]
    if not editable:
        return False
    row = dice.choice(editable)
    columns = campaign.recipe.edited(row, dice) | {"status": "queued", "cancel_requested": False}
    campaign.findings.requeued[row["id"]] += 1  # counted before the call, because its answer can be lost
    return bool(campaign.ask(lambda: campaign.cloud.edit(row["id"], if_status=row["status"], **columns) or True))


class released:  # noqa: N801 - used like a function
    """Release the lock at the end of the block."""

    def __init__(self, lock):
        self._lock = lock

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._lock.release()


def _phase(row) -> str | None:
    return ((row["results"] or {}).get("progress") or {}).get("phase")
