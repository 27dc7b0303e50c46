"""F27: everything at random. N runs, M workers, faults for T minutes; then every invariant is checked.

    python -m tests.faults.campaign --minutes 10 --workers 4 --seed 7

Real processes and signals, real PostgreSQL and PostgREST, a stand-in for Storage, a quick stand-in for the training.
The seed decides what is done to whom and when; how that falls between the processes differs from run to run.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil

from tests.faults.cloud import BUCKET, Cloud, running_cloud, wait_for
from tests.faults.findings import Findings
from tests.faults.hosts import LEASE, Host, gone
from trainer.core.job import Status
from trainer.demo import draw_dataset

CHECKPOINT = 1.0  # seconds between uploads of checkpoints
SETTINGS = {"STALL_SECONDS": 3, "CHECKPOINT_INTERVAL": CHECKPOINT, "DRAIN_SECONDS": 6}
KNOBS = {"seconds_per_epoch": 0.2}
ATTEMPTS = 5


@dataclass
class Site:
    """A host, the wire between it and the cloud, and whether a fault has it in its hands."""

    host: Host
    wire: object
    lock: threading.Lock = field(default_factory=threading.Lock)


class Campaign:
    def __init__(self, cloud: Cloud, folder: Path, *, workers: int, runs: int | None, seed: int) -> None:
        self.cloud = cloud
        self.random = random.Random(seed)
        self.most = runs
        self.counts: Counter[str] = Counter()
        self.runs: list[str] = []
        self.findings = Findings(cloud)
        self.sites: list[Site] = []
        self._folder = folder
        self._workers = workers
        self._servers = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._open = ExitStack()

    def __enter__(self):
        for number in range(self._workers):
            wire = self._open.enter_context(self.cloud.proxy())
            host = Host(self.cloud, self._folder / f"w{number}", KNOBS, url=wire.url, **SETTINGS)
            self._open.callback(host.end)
            self.sites.append(Site(host.start(), wire))
        return self

    def __exit__(self, *_):
        self._open.close()

    # ── the course of events ──

    def rage(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._enqueue()
            fault, weight = zip(*FAULTS.items(), strict=True)
            chosen = self.random.choices(fault, weight)[0]
            site = self.random.choice(self.sites)
            seed = self.random.random()
            thread = threading.Thread(target=self._guarded, args=(chosen, site, random.Random(seed)), daemon=True)
            thread.start()
            self._threads.append(thread)
            time.sleep(self.random.expovariate(1 / 0.9))

    def calm(self, seconds: float) -> None:
        """Every fault is over, every server and worker is up; wait until every row has ended."""
        for thread in self._threads:
            thread.join(60)
        self.cloud.gateway.reset()
        self.cloud.storage.faults.clear()
        for site in self.sites:
            site.wire.mend()
            if site.host.process.poll() is not None:
                site.host.start()
        wait_for(self.cloud.quiet, seconds, lambda: [self.cloud.story(r["id"]) for r in self.cloud.rows()][-1])

    def stop(self) -> None:
        """I10: nothing is left on a host, and each service ends in peace."""
        for site in self.sites:
            try:
                site.host.wait_idle(30)
            except AssertionError as left:
                self.findings.violations.append(f"I10: left on {site.host.home.name}: {str(left)[:300]}")
            wait_for(site.host.hears_sigterm)
            if (code := site.host.stop(seconds=30)) != 0:
                self.findings.violations.append(f"I10: {site.host.home.name} exited with {code}")
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self._folder) in part for part in process.info["cmdline"] or ()):
                self.findings.violations.append(f"I10: process {process.pid} is left: {process.info['cmdline']}")

    def _enqueue(self) -> None:
        if self.most is not None and len(self.runs) >= self.most:
            return
        rows = self._ask(self.cloud.rows)
        # a worker is left over, to take over what another loses
        if rows is not None and sum(not Status(row["status"]).is_terminal for row in rows) < max(1, self._workers - 1):
            run_id = self._ask(
                lambda: self.cloud.enqueue(epochs=self.random.randint(8, 40), max_attempts=ATTEMPTS),
            )
            self.runs += [run_id] if run_id else []

    def _guarded(self, fault, site: Site, dice: random.Random) -> None:
        name = fault.__name__.replace("_", " ")
        try:
            if fault(self, site, dice):
                self.counts[name] += 1
        except Exception as error:  # in a thread: nobody else would hear of it
            self.findings.violations.append(f"a fault went wrong itself, {name}: {error!r}")

    def _ask(self, question):
        """The answer, or None while the servers are down."""
        try:
            return question()
        except (httpx.HTTPError, AssertionError):
            return None

    def _runs_of(self, site: Site):
        rows = self._ask(self.cloud.rows) or []
        return [r for r in rows if r["worker_id"] == site.host.home.name and r["status"] == "running"]

    # ── faults; each says whether it found something to do ──

    def kill_training(self, site: Site, dice: random.Random) -> bool:
        trainings, runs = site.host.trainings(), self._runs_of(site)
        if not trainings or not runs:
            return False
        self.findings.killed(runs[0])
        with suppress(psutil.NoSuchProcess):  # it has just ended by itself
            trainings[0].kill()
            return True
        return False

    def stop_training(self, site: Site, dice: random.Random) -> bool:
        trainings = site.host.trainings()
        for training in trainings:
            with suppress(psutil.NoSuchProcess):  # it has just ended by itself
                training.suspend()
        return bool(trainings)

    def kill_service(self, site: Site, dice: random.Random) -> bool:
        if not site.lock.acquire(blocking=False):
            return False
        with _released(site.lock):
            runs = self._runs_of(site)
            for row in runs:
                self.findings.killed(row, service=True)
            children = site.host.kill()
            if not gone(children):
                self.findings.violations.append("I10: a training outlived its killed service")
            time.sleep(dice.choice([0, 1, 2 * LEASE]))
            site.host.start()
        return True

    def suspend_service(self, site: Site, dice: random.Random) -> bool:
        if not site.lock.acquire(blocking=False):
            return False
        with _released(site.lock):
            site.host.pause()
            time.sleep(dice.uniform(0.3, 2.5) * LEASE)
            site.host.go_on()
        return True

    def deploy(self, site: Site, dice: random.Random) -> bool:
        if not site.lock.acquire(blocking=False):
            return False
        with _released(site.lock):
            site.host.process.send_signal(signal.SIGTERM)
            if dice.random() < 0.2:
                time.sleep(0.3)
                site.host.process.send_signal(signal.SIGTERM)
            try:
                site.host.process.wait(20)
            except subprocess.TimeoutExpired:
                self.findings.violations.append("F13: a service did not end within its drain time")
                site.host.kill()
            site.host.start()
        return True

    def outage(self, site: Site, dice: random.Random) -> bool:
        if not self._servers.acquire(blocking=False):
            return False
        with _released(self._servers):
            server = dice.choice([self.cloud.stack.postgrest, self.cloud.stack.postgres])
            server.stop()
            time.sleep(dice.choice([0.2, 1.0, 1.5 * LEASE]))
            server.start()
        return True

    def bad_gateway(self, site: Site, dice: random.Random) -> bool:
        self.cloud.refuse(dice.choice(["beat_", "claim_", "finish_", "/rpc/"]), dice.choice([429, 500, 502, 503]))
        time.sleep(dice.uniform(0.2, 2))
        self.cloud.gateway.faults = None
        return True

    def lost_answers(self, site: Site, dice: random.Random) -> bool:
        self.cloud.gateway.lose_answers += dice.randint(1, 4)
        return True

    def bad_storage(self, site: Site, dice: random.Random) -> bool:
        kind = dice.choice(["status", "lost", "cut_request", "delay"])
        self.cloud.storage.fault(kind, on=f"/object/{BUCKET}", times=dice.randint(1, 12), seconds=0.3)
        return True

    def bad_line(self, site: Site, dice: random.Random) -> bool:
        trouble = dice.choice(
            [site.wire.cut, site.wire.freeze, lambda: site.wire.slow(0.3), lambda: site.wire.mutter(50)]
        )
        trouble()
        time.sleep(dice.choice([0.3, 1.0, 1.5 * LEASE]))
        site.wire.mend()
        return True

    def cancel(self, site: Site, dice: random.Random) -> bool:
        runs, trainings = self._runs_of(site), site.host.trainings()
        if not runs or not trainings:
            return False
        asked = time.monotonic()
        if self._ask(lambda: self.cloud.cancel(runs[0]["id"]) or True) is None:
            return False
        if not site.lock.locked() and gone(trainings, 20):
            self.findings.cancels.append(time.monotonic() - asked)
        return True

    def finish(self, site: Site, dice: random.Random) -> bool:
        runs = self._runs_of(site)
        return bool(runs) and bool(self._ask(lambda: self.cloud.edit(runs[0]["id"], finish_requested=True) or True))

    def delete_row(self, site: Site, dice: random.Random) -> bool:
        runs = self._runs_of(site)
        return bool(runs) and bool(self._ask(lambda: self.cloud.delete(runs[0]["id"]) or True))


FAULTS = {
    Campaign.kill_training: 6,
    Campaign.kill_service: 5,
    Campaign.suspend_service: 3,
    Campaign.stop_training: 2,
    Campaign.deploy: 3,
    Campaign.outage: 3,
    Campaign.bad_gateway: 2,
    Campaign.lost_answers: 3,
    Campaign.bad_storage: 3,
    Campaign.bad_line: 4,
    Campaign.cancel: 2,
    Campaign.finish: 1,
    Campaign.delete_row: 1,
}


class _released:  # noqa: N801 - reads as a word
    def __init__(self, lock):
        self._lock = lock

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._lock.release()


def run_campaign(seconds: float, *, workers: int, runs: int | None, seed: int, patience: float = 180) -> Campaign:
    """The campaign after its end, with all that was found out."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        folder = Path(name)
        data = draw_dataset(folder / "drawn", images=6, size=32)
        with running_cloud(data) as cloud, Campaign(cloud, folder, workers=workers, runs=runs, seed=seed) as campaign:
            campaign.rage(seconds)
            try:
                campaign.calm(patience)
            except AssertionError as unended:
                campaign.findings.violations.append(f"I6: a row did not end: {unended}")
            campaign.stop()
            campaign.findings.check(campaign.runs)
        return campaign


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--runs", type=int, help="at most so many; without it, as many as keep the workers busy")
    options = parser.parse_args()
    campaign = run_campaign(60 * options.minutes, workers=options.workers, runs=options.runs, seed=options.seed)
    print(campaign.findings.table(options.minutes, options.workers, options.seed, campaign.counts))
    for violation in campaign.findings.violations:
        print(f"VIOLATION {violation}", file=sys.stderr)
    return 1 if campaign.findings.violations else 0


if __name__ == "__main__":
    sys.exit(main())
