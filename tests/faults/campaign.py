"""F27: run workers with random faults for some minutes, then check every invariant.

    python -m tests.faults.campaign --minutes 10 --workers 4 --seed 7
    python -m tests.faults.campaign --minutes 20 --real

A campaign uses real processes and signals, real PostgreSQL and PostgREST, and a fake Storage server. The training is
fake; with `--real`, Ultralytics trains. The seed determines the faults, the affected hosts and the pauses between
faults. But the scheduling of the processes differs between two campaigns.
"""

from __future__ import annotations

import argparse
import errno
import os
import random
import shutil
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
from tests.faults.disks import DiskUnavailable, HostDisk
from tests.faults.findings import Findings
from tests.faults.hosts import Host, gone
from tests.faults.random_faults import released
from tests.faults.recipes import FakeTraining, RealTraining
from trainer.core.job import Status

REFUSED = 2  # exit code of a service that cannot work with its settings
_LARGE = shutil.ignore_patterns("*.img", "*.pt")


@dataclass
class Site:
    """A host, its disk, and its proxy to the cloud.

    A fault holds `lock` while it uses the host, and `disk_lock` while it uses the disk.
    """

    host: Host
    wire: object
    disk: HostDisk | None  # None if this machine cannot create the disk
    lock: threading.Lock = field(default_factory=threading.Lock)
    disk_lock: threading.Lock = field(default_factory=threading.Lock)


class Campaign:
    """Hosts, runs and random faults. `recipe` describes the trainings.

    `runs` is the maximum number of runs. If it is None, enough runs are queued to keep the workers busy.
    """

    def __init__(self, cloud: Cloud, folder: Path, recipe, *, workers: int, runs: int | None, seed: int) -> None:
        self.cloud = cloud
        self.recipe = recipe
        self.random = random.Random(seed)
        self.most = runs
        self.counts: Counter[str] = Counter()
        self.runs: list[str] = []
        self.findings = Findings(cloud)
        self.sites: list[Site] = []
        self._folder = folder
        self._workers = workers
        self.servers = threading.Lock()  # locked during an outage
        self.disk_failing = threading.Lock()  # locked while the disk of one host is full or read-only
        self._threads: list[threading.Thread] = []
        self._open = ExitStack()

    def __enter__(self):
        for number in range(self._workers):
            wire = self._open.enter_context(self.cloud.proxy())
            disk = self._disk(self._folder / f"disk{number}")
            home = (disk.place if disk else self._folder) / f"w{number}"
            host = self.recipe.host(self.cloud, home, wire.url)
            if disk:
                disk.sync()
            host.log = self._folder / f"w{number}.log"  # not on the disk that fails
            self._open.callback(host.end)
            self.sites.append(Site(host.start(), wire, disk))
        return self

    def _disk(self, place: Path) -> HostDisk | None:
        try:
            return self._open.enter_context(HostDisk(place))
        except DiskUnavailable:
            return None

    def __exit__(self, *_):
        self._open.close()

    # ── the campaign ──

    def inject_faults(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._restart_dead_services()
            self._enqueue()
            fault, weight = zip(*self.recipe.faults.items(), strict=True)
            chosen = self.random.choices(fault, weight)[0]
            site = self.random.choice(self.sites)
            seed = self.random.random()
            thread = threading.Thread(target=self._guarded, args=(chosen, site, random.Random(seed)), daemon=True)
            thread.start()
            self._threads.append(thread)
            self.recipe.pause(self)

    def _restart_dead_services(self) -> None:
        """Restart services as systemd does. A service may exit by itself only if it starts on a read-only disk."""
        for site in self.sites:
            if site.lock.acquire(blocking=False):
                with released(site.lock):
                    if (code := site.host.process.poll()) is None:
                        continue
                    end = site.host.tail()[-500:]
                    if code != REFUSED or os.strerror(errno.EROFS) not in end:
                        self.findings.violations.append(f"{site.host.home.name} exited by itself ({code}): {end}")
                    site.host.start()

    def wait_until_runs_end(self, seconds: float) -> None:
        """End all faults, start the services that are down, and wait until every run has ended."""
        for thread in self._threads:
            thread.join(60)
        self.cloud.gateway.reset()
        self.cloud.storage.faults.clear()
        for site in self.sites:
            site.wire.restore()
            if site.host.process.poll() is not None:
                site.host.start()
        wait_for(
            self.cloud.quiet,
            seconds,
            lambda: [r["id"] for r in self.cloud.rows() if not Status(r["status"]).is_terminal],
        )

    def stop(self) -> None:
        """Stop each service. Check I10: it exits with 0, and no journal, process or unused checkpoint is left."""
        for site in self.sites:
            try:
                site.host.wait_idle(30, spares=int(self.recipe.keeps_spare), torn=site.disk is not None)
            except AssertionError as left:
                self.findings.violations.append(f"I10: {site.host.home.name} is not idle: {str(left)[:300]}")
            self._stop(site)
        self._check_bucket()
        for process in psutil.process_iter(["cmdline"]):
            if any(str(self._folder) in part for part in process.info["cmdline"] or ()):
                self.findings.violations.append(
                    f"I10: process {process.pid} is still running: {process.info['cmdline']}"
                )

    def _stop(self, site: Site) -> None:
        wait_for(site.host.handles_sigterm)
        children = site.host.children()
        if (code := site.host.stop(seconds=30)) != 0:
            self.findings.violations.append(f"I10: {site.host.home.name} exited with {code}")
        if not gone(children):
            self.findings.violations.append(f"I10: processes of {site.host.home.name} are still running")

    def _check_bucket(self) -> None:
        """I10: after each service has been started again, the bucket has only checkpoints of failed runs."""

        def left() -> list[str]:
            failed = {row["id"] for row in self.cloud.rows() if row["status"] == "failed"}
            keys = [key for key in self.cloud.storage.stored(BUCKET) if "/checkpoints/" in key]
            return [key for key in keys if key.split("/")[1] not in failed]

        if not left():
            return
        for site in self.sites:
            site.host.start()
        with suppress(AssertionError):
            wait_for(lambda: not left(), 30)
        for site in self.sites:
            self._stop(site)
        # on a full disk, the service cannot record its uploads, so it does not delete the checkpoints
        if left() and not self.counts["full disk"] + self.counts["read only disk"]:
            self.findings.violations.append(f"I10: unused checkpoints in the bucket: {left()}")

    def _enqueue(self) -> None:
        if self.most is not None and len(self.runs) >= self.most:
            return
        rows = self.ask(self.cloud.rows)
        at_once = self.recipe.busy(self.random, self._workers)
        if rows is not None and sum(not Status(row["status"]).is_terminal for row in rows) < at_once:
            run_id = self.ask(lambda: self.cloud.insert(**self.recipe.row(self.random)))
            self.runs += [run_id] if run_id else []

    def _guarded(self, fault, site: Site, dice: random.Random) -> None:
        name = fault.__name__.replace("_", " ")
        try:
            if fault(self, site, dice):
                self.counts[name] += 1
        except Exception as error:  # this is a thread: nothing else would report the error
            self.findings.violations.append(f"the code that injects the fault {name!r} failed: {error!r}")

    def ask(self, question):
        """Return the answer, or None while the servers are down."""
        try:
            return question()
        except (httpx.HTTPError, AssertionError):
            return None

    def runs_of(self, site: Site):
        rows = self.ask(self.cloud.rows) or []
        return [r for r in rows if r["worker_id"] == site.host.home.name and r["status"] == "running"]


def run_campaign(
    recipe,
    seconds: float,
    *,
    workers: int,
    runs: int | None = None,
    seed: int,
    keep: Path | None = None,
) -> Campaign:
    """Run a campaign and return it with its findings. Copy the files of the hosts to `keep`, if it is given."""
    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        folder = Path(name)
        with running_cloud(recipe.draw(folder / "drawn")) as cloud:
            recipe.prepare(cloud, folder)
            with Campaign(cloud, folder, recipe, workers=workers, runs=runs, seed=seed) as campaign:
                campaign.inject_faults(seconds)
                try:
                    campaign.wait_until_runs_end(recipe.patience)
                except AssertionError as error:
                    campaign.findings.violations.append(f"I6: a run did not end: {error}")
                campaign.stop()
                campaign.findings.check(campaign.runs, recipe)
                campaign.findings.collect_histories()
                if keep:
                    shutil.copytree(folder, keep, symlinks=True, dirs_exist_ok=True, ignore=_LARGE)
        return campaign


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, help="number of hosts (default: 4, with --real 2)")
    parser.add_argument("--runs", type=int, help="maximum number of runs (default: enough to keep the workers busy)")
    parser.add_argument("--real", action="store_true", help="train with Ultralytics instead of the fake training")
    parser.add_argument("--keep", type=Path, help="copy the files of all hosts into this folder after the campaign")
    options = parser.parse_args()
    recipe = RealTraining() if options.real else FakeTraining()
    workers = options.workers or (2 if options.real else 4)
    campaign = run_campaign(
        recipe, 60 * options.minutes, workers=workers, runs=options.runs, seed=options.seed, keep=options.keep,
    )  # fmt: skip
    heading = f"{recipe.title}, {options.minutes:g} min, {workers} workers, seed {options.seed}"
    print(campaign.findings.table(heading, campaign.counts))
    for violation in campaign.findings.violations:
        print(f"VIOLATION {violation}", file=sys.stderr)
    for run_id, history in campaign.findings.histories.items():
        print(f"\nHISTORY of {run_id}\n{history}", file=sys.stderr)
    return 1 if campaign.findings.violations else 0


if __name__ == "__main__":
    sys.exit(main())
