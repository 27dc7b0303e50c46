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

from tests.faults.cloud import BUCKET
from tests.faults.hosts import gone

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
    campaign.cloud.refuse(dice.choice(["beat_", "claim_", "finish_", "/rpc/"]), dice.choice([429, 500, 502, 503]))
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
