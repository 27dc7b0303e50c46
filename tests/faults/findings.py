"""The results of a campaign: violations of the invariants, and recovery times."""

from __future__ import annotations

import re
import time
from collections import Counter
from datetime import datetime
from itertools import pairwise

from tests.faults.record import check_change
from trainer.core.job import Status

# fault → its name in the table of results
KILLS = {
    "kill training": "trainings", "kill service": "services", "kill subreaper": "subreapers of a training",
    "kill spare": "processes waiting for the next run",
}  # fmt: skip
HOSTS = {"power cut": "power cuts", "full disk": "full disks", "read only disk": "read-only disks"}
OUTAGES = ("outage", "wrong queue answers", "lost answers", "bad storage", "wrong storage answers", "bad connection")
REST = {
    "suspend service": "suspended services", "suspend training": "stuck trainings", "deploy": "deploys",
    "cancel": "cancels", "finish": "early ends", "delete row": "deleted rows",
    "edit and requeue": "ended runs edited and requeued",
}  # fmt: skip


class Findings:
    def __init__(self, cloud) -> None:
        self.violations: list[str] = []
        self.cancels: list[float] = []  # seconds from the cancel request until the process is gone
        self.takeovers: list[float] = []  # seconds from the kill of a service to the claim of the next attempt
        self.lost: list[float] = []  # seconds of training that were lost by a kill
        self.ended: Counter[str] = Counter()
        self.cloud = cloud
        self.invalid: dict[str, str] = {}  # run ID → the name in invalid_rows.ROWS
        self.requeued: Counter[str] = Counter()  # run ID → number of edits
        self.histories: dict[str, str] = {}  # run ID → history, for the runs that a violation names
        self.curves = None  # only for real trainings
        self._kills: list[tuple[float, str, int, bool]] = []

    def killed(self, row, *, service: bool = False) -> None:
        """Record that the training of this attempt was killed now. `service`: its service was also killed."""
        self._kills.append((time.time(), row["id"], row["attempt"], service))

    def check(self, runs: list[str], recipe) -> None:
        """Check all recorded changes and rows after the campaign."""
        for stale in self.cloud.stack.rows("select * from faults.stale_events"):
            self.violations.append(f"I5: a stale event was stored: {stale}")
        changes = self.cloud.stack.rows("select at, run_id, path, was, became from faults.changes order by n")
        for change in changes:
            try:
                check_change(change["path"], change["was"], change["became"])
            except AssertionError as broken:
                self.violations.append(f"{change['run_id']}: {broken}")
        claims = {
            (c["run_id"], c["became"]["attempt"]): c for c in changes if c["became"]["attempt"] != c["was"]["attempt"]
        }
        rows = {row["id"]: row for row in self.cloud.rows()}
        self.ended["deleted"] = sum(run_id not in rows for run_id in runs)
        for row in rows.values():
            if row["id"] in self.invalid:
                self._check_invalid(row)
            else:
                self._check_row(row, claims)
        for kill in self._kills:
            self._measure(*kill, rows, claims)
        self.curves = recipe.check(self, rows)

    def collect_histories(self) -> None:
        """Store the row and the events of each run that a violation names."""
        for run_id in set(re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", " ".join(self.violations))):
            self.histories[run_id] = self.cloud.history(run_id)

    def _check_invalid(self, row) -> None:
        # a user can cancel the row before a worker reads it
        if row["status"] not in ("failed", "canceled") or not row["error_message"]:
            name = self.invalid[row["id"]]
            self.violations.append(f"{row['id']} ({name}) is {row['status']}: {row['error_message']}")

    def _check_row(self, row, claims) -> None:
        status = Status(row["status"])
        self.ended[status.value] += 1
        if not status.is_terminal:
            self.violations.append(f"I6: {row['id']} is still {status}")
        kills = sum(run_id == row["id"] for _, run_id, _, _ in self._kills)
        if status is Status.FAILED and kills < row["max_attempts"]:
            self.violations.append(f"I7: {row['id']} failed after only {kills} kills: {row['error_message']}")
        attempts = sorted(self.cloud.epochs(row["id"]).items())
        trained = self.cloud.trained(row["id"])
        if status is Status.COMPLETED:
            self._check_completed(row, attempts)
        for attempt, epochs in attempts:
            if epochs != list(range(epochs[0], epochs[0] + len(epochs))):
                self.violations.append(f"I9: attempt {attempt} of {row['id']} reported the epochs {epochs}")
            if row["id"] in self.requeued or attempt not in trained:
                continue
            known = claims.get((row["id"], attempt), {"became": {}})["became"].get("checkpoint") or {"epoch": 0}
            if trained[attempt][0] <= known["epoch"]:
                self.violations.append(
                    f"I9: attempt {attempt} of {row['id']} began at epoch {trained[attempt][0]},"
                    f" but its claim had the checkpoint {known}"
                    f" ({self.cloud.warnings(row['id'])})",
                )
        # an attempt first reports the epochs that a killed service did not report
        for (_, before), (later, after) in pairwise(attempts):
            if after[0] > before[-1] + 1 and row["id"] not in self.requeued:
                self.violations.append(f"I9: epochs are missing before attempt {later} of {row['id']}: {attempts}")

    def _check_completed(self, row, attempts) -> None:
        try:
            self.cloud.check_published(row)
        except (AssertionError, KeyError, StopIteration) as broken:
            self.violations.append(f"I8: {row['id']}: {broken!r}")
        asked, plan = row["configuration"], row["results"]["plan"]
        done, wanted = row["results"]["metrics"]["epoch"], asked["epochs"]
        if done != wanted and not row["finish_requested"]:
            self.violations.append(f"I8: {row['id']} completed with {done} of {wanted} epochs")
        missing = set(range(1, done + 1)) - {epoch for _, epochs in attempts for epoch in epochs}
        if missing:
            self.violations.append(f"I9: the history of {row['id']} has no epochs {sorted(missing)}: {attempts}")
        for name in ("epochs", "batch", "imgsz"):
            if asked.get(name, plan[name]) != plan[name]:
                self.violations.append(f"{row['id']} asks for {name} {asked[name]}, but its plan has {plan[name]}")

    def _measure(self, at: float, run_id: str, attempt: int, service: bool, rows, claims) -> None:
        following = claims.get((run_id, attempt + 1))
        if run_id not in rows or following is None:
            return
        if service:
            self.takeovers.append(_seconds(following["at"]) - at)
        began, finished = None, {}
        for event in self.cloud.events(run_id):
            if event["attempt"] == attempt and event["kind"] == "phase" and event["data"]["phase"] == "training":
                began = _seconds(event["at"])
            if event["kind"] == "epoch":
                finished.setdefault((event["attempt"], event["data"]["epoch"]), _seconds(event["at"]))
        resumed = self.cloud.epochs(run_id).get(attempt + 1)
        if began is None or not resumed:
            return
        kept = finished.get((attempt, resumed[0] - 1), began)
        if at - kept >= 0:
            self.lost.append(at - kept)

    def table(self, heading: str, counts: Counter[str]) -> str:
        """Return the results as a Markdown table."""
        kills, hosts, rest = (
            {label: counts[fault] for fault, label in labels.items()} for labels in (KILLS, HOSTS, REST)
        )
        outages = sum(counts[fault] for fault in OUTAGES)
        lines = [
            ("campaign", heading),
            ("runs", f"{sum(self.ended.values())} ({_listed(self.ended)})"),
            ("processes killed (SIGKILL)", f"{sum(kills.values())} ({_listed(kills)})"),
            ("faults of a host", _listed(hosts) or "none"),
            ("outages and wrong answers of database, network or storage", str(outages)),
            ("other faults and requests", _listed(rest)),
            ("rows that no worker can train", str(len(self.invalid))),
            *(self.curves.lines() if self.curves else []),
            ("**violations of an invariant**", f"**{len(self.violations)}**"),
            ("training seconds lost per kill, p50 / p99", _quantiles(self.lost)),
            ("seconds from the kill of a service to the takeover, p50 / p99", _quantiles(self.takeovers)),
            ("seconds from cancel until the process is gone, p50 / p99", _quantiles(self.cancels)),
        ]
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in lines)])


def _listed(counts) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


def _quantiles(values: list[float]) -> str:
    if not values:
        return "none"
    ordered = sorted(values)
    p50, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99))
    return f"{p50:.1f} / {p99:.1f} (n = {len(ordered)})"


def _seconds(stamp: str) -> float:
    return datetime.fromisoformat(stamp).timestamp()
